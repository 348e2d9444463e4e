//! `tls init`: a private CA, and certificates for the nodes and clients of one cluster.
//!
//! Nothing is ever overwritten. Each file is written under another name, synced, and then given its own name, so that a
//! crash leaves no part of a file. Keys come before their certificates: a certificate without a key does not exist.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use time::{Duration, OffsetDateTime};

use super::{NODE_URI, TlsError, read_certificates, read_file};
use crate::types::NodeId;

/// Validity of a CA, in days.
pub const CA_DAYS: u32 = 3650;
/// How long before their creation certificates become valid, for machines whose clocks are behind.
const BACKDATED: Duration = Duration::hours(1);
/// The only client that `tls init` makes a certificate for.
const CLIENT: &str = "client";

/// A node to make a certificate for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    /// The node's id.
    pub id: NodeId,
    /// The names and addresses by which clients reach it.
    pub hosts: Vec<String>,
}

/// Files to write, in this order.
struct Pair {
    key: (PathBuf, String),
    certificate: (PathBuf, String),
}

/// Writes the CA, unless `directory` has one, then certificates and keys of the nodes, and of one client unless the
/// directory has those. Certificates of nodes and clients are valid for `days` days. Returns the new files.
///
/// # Errors
///
/// If a file of one of the nodes exists, or cannot be written. Nothing was written if a file exists.
pub fn init(directory: &Path, nodes: &[NewNode], days: u32) -> Result<Vec<PathBuf>, TlsError> {
    let paths = |name: &str| (directory.join(format!("{name}.pem")), directory.join(format!("{name}-key.pem")));
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    for node in nodes {
        let (certificate, key) = paths(&format!("node-{}", node.id));
        for path in [certificate, key] {
            if exists(&path) {
                return Err(TlsError(format!(
                    "`{}` exists, and is not overwritten: delete the certificate and the key of node {} to replace them",
                    path.display(),
                    node.id
                )));
            }
        }
    }
    let failed = |error: rcgen::Error| TlsError(format!("cannot make a certificate: {error}"));
    let mut pairs = Vec::new();
    let (ca_path, ca_key_path) = paths("ca");
    let issuer = match (exists(&ca_path), exists(&ca_key_path)) {
        (true, true) => {
            // The first certificate signs. Others may be those of an earlier CA, during a change of CAs.
            let certificates = read_certificates(&ca_path)?;
            let key = String::from_utf8_lossy(&read_file(&ca_key_path)?).into_owned();
            let key = KeyPair::from_pem(&key)
                .map_err(|_| TlsError(format!("`{}`: it has no private key in PEM", ca_key_path.display())))?;
            let unusable = |_| TlsError(format!("`{}`: it is not a CA that can sign", ca_path.display()));
            Issuer::from_ca_cert_der(&certificates[0], key).map_err(unusable)?
        }
        (false, false) => {
            let key = KeyPair::generate().map_err(failed)?;
            let params = ca_params().map_err(failed)?;
            let certificate = params.self_signed(&key).map_err(failed)?;
            pairs.push(Pair { key: (ca_key_path, key.serialize_pem()), certificate: (ca_path, certificate.pem()) });
            Issuer::new(params, key)
        }
        (has_certificate, _) => {
            let (found, missing) = if has_certificate { (ca_path, ca_key_path) } else { (ca_key_path, ca_path) };
            return Err(TlsError(format!(
                "`{}` exists and `{}` does not: a CA needs both to sign; restore the missing one, or delete the other \
                 one for a new CA",
                found.display(),
                missing.display()
            )));
        }
    };
    let mut add = |name: &str, params: CertificateParams| -> Result<(), TlsError> {
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        let (path, key_path) = paths(name);
        pairs.push(Pair { key: (key_path, key.serialize_pem()), certificate: (path, certificate.pem()) });
        Ok(())
    };
    for node in nodes {
        add(&format!("node-{}", node.id), node_params(node, days).map_err(failed)?)?;
    }
    let (client, client_key) = paths(CLIENT);
    match (exists(&client), exists(&client_key)) {
        (false, false) => add(CLIENT, client_params(days).map_err(failed)?)?,
        // A former call was interrupted between the two.
        (false, true) => {
            return Err(TlsError(format!(
                "`{}` exists and `{}` does not: delete the key for a new pair",
                client_key.display(),
                client.display()
            )));
        }
        (true, _) => {}
    }
    let write = || -> io::Result<Vec<PathBuf>> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut written = Vec::new();
        for Pair { key, certificate } in pairs {
            for (path, text) in [key, certificate] {
                publish(&path, &text)?;
                written.push(path);
            }
        }
        File::open(directory)?.sync_all()?;
        Ok(written)
    };
    write().map_err(|error| TlsError(format!("cannot write to `{}`: {error}", directory.display())))
}

/// Gives a file its name once all of it is on disk, and fails if the name is taken.
///
/// The file is a new one, never one that another user has put there to read the key.
fn publish(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension(format!("{:08x}.tmp", getrandom::u32().map_err(io::Error::other)?));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let published = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| Ok(renameat_with(CWD, &temporary, CWD, path, RenameFlags::NOREPLACE)?));
    if published.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    published
}

fn params(name: String, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(i64::from(days));
    params
}

fn ca_params() -> Result<CertificateParams, rcgen::Error> {
    // Two CAs must have different names, so that a file may list both while one replaces the other.
    let made = OffsetDateTime::now_utc();
    let mut params = params(format!("raft-key-value CA {}", made.unix_timestamp()), CA_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn node_params(node: &NewNode, days: u32) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(format!("raft-key-value node {}", node.id), days);
    params.subject_alt_names.push(SanType::URI(Ia5String::try_from(format!("{NODE_URI}{}", node.id))?));
    for host in &node.hosts {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        params.subject_alt_names.push(match bare.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(Ia5String::try_from(host.clone())?),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A node is a server, and a client of other nodes.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn client_params(days: u32) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params("raft-key-value client".to_owned(), days);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Parses `ID=HOST[,HOST…]`.
///
/// # Errors
///
/// If it has another form, or a host is neither a name nor an IP address.
pub fn parse_new_node(text: &str) -> Result<NewNode, String> {
    let wrong = || "must be ID=HOST[,HOST...], such as 1=10.0.0.1,node1.example".to_owned();
    let (id, hosts) = text.split_once('=').ok_or_else(wrong)?;
    let id = id.parse().ok().filter(|id: &NodeId| *id > 0).ok_or_else(wrong)?;
    let hosts: Vec<String> = hosts.split(',').map(|host| host.trim().to_owned()).collect();
    for host in &hosts {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_address = bare.parse::<IpAddr>().is_ok();
        if !is_address && (host.contains('*') || rustls::pki_types::DnsName::try_from(host.as_str()).is_err()) {
            return Err(format!("{host:?} is neither a name nor an IP address; a port does not belong here"));
        }
    }
    Ok(NewNode { id, hosts })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::tls::{ClientTls, NodeFiles, Tls, node_of};

    fn node(id: NodeId) -> NewNode {
        NewNode { id, hosts: vec!["127.0.0.1".to_owned(), "localhost".to_owned()] }
    }

    fn files(directory: &Path, name: &str) -> NodeFiles {
        NodeFiles {
            certificate: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}-key.pem")),
            ca: directory.join("ca.pem"),
        }
    }

    /// What `init` makes is what nodes and clients accept, and only for the right node. It adds nodes to its CA, and
    /// overwrites nothing.
    #[test]
    fn init_makes_what_nodes_need() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("tls");
        let written = init(&directory, &[node(1), node(2)], 90).unwrap();
        assert_eq!(written.len(), 8, "{written:?}");
        for path in &written {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
        }
        assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        for id in [1, 2] {
            let files = files(&directory, &format!("node-{id}"));
            assert_eq!(node_of(&read_certificates(&files.certificate).unwrap()[0]), Some(id));
            let tls = Tls::open(id, files.clone(), true).unwrap();
            assert!((89..=90).contains(&crate::tls::reload::days_left(tls.expires_s())));
            let message = Tls::open(3, files, true).unwrap_err().to_string();
            assert!(message.contains(&format!("of node {id}, and this is node 3")), "{message}");
        }
        let client = files(&directory, "client");
        ClientTls::from_files(&client.ca, &client.certificate, &client.key).unwrap();
        assert_eq!(node_of(&read_certificates(&client.certificate).unwrap()[0]), None);
        let message = Tls::open(1, client, false).unwrap_err().to_string();
        assert!(message.contains("rkv:node:1"), "{message}");
        let before: Vec<Vec<u8>> = written.iter().map(|path| fs::read(path).unwrap()).collect();
        let message = init(&directory, &[node(3), node(2)], 90).unwrap_err().to_string();
        assert!(message.contains("node-2.pem") && !directory.join("node-3.pem").exists(), "{message}");
        assert_eq!(init(&directory, &[node(3)], 90).unwrap().len(), 2);
        Tls::open(3, files(&directory, "node-3"), true).unwrap();
        let after: Vec<Vec<u8>> = written.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(before == after);
        // Without its key a CA signs nothing, and no second CA takes its place.
        fs::remove_file(directory.join("ca-key.pem")).unwrap();
        let message = init(&directory, &[node(4)], 90).unwrap_err().to_string();
        assert!(message.contains("ca-key.pem"), "{message}");
    }

    /// A call that was interrupted between any two files leaves either what the next call continues with, or what it
    /// names as to be deleted. It leaves no certificate without a key.
    ///
    /// Method: keep the first files of a call, in the order in which they were written.
    #[test]
    fn init_was_interrupted() {
        let parent = tempfile::tempdir().unwrap();
        let whole = parent.path().join("whole");
        let written = init(&whole, &[node(1), node(2)], 90).unwrap();
        for count in 0..written.len() {
            let directory = parent.path().join(count.to_string());
            DirBuilder::new().mode(0o700).create(&directory).unwrap();
            let kept: Vec<PathBuf> =
                written[..count].iter().map(|path| directory.join(path.file_name().unwrap())).collect();
            for (from, to) in written.iter().zip(&kept) {
                fs::copy(from, to).unwrap();
            }
            let mut attempts = 0;
            while let Err(error) = init(&directory, &[node(1), node(2)], 90) {
                let message = error.to_string();
                assert!(message.contains("delete"), "{count}: {message}");
                // What the message says: a key without its certificate, or all of a node.
                let pair_of = |path: &Path| path.display().to_string().replace("-key.pem", "").replace(".pem", "");
                let named = kept.iter().find(|path| message.contains(&format!("`{}`", path.display()))).unwrap();
                for path in kept.iter().filter(|path| pair_of(path) == pair_of(named)) {
                    let _ = fs::remove_file(path);
                }
                attempts += 1;
                assert!(attempts < written.len(), "{count}: {message}");
            }
            for id in [1, 2] {
                Tls::open(id, files(&directory, &format!("node-{id}")), true).unwrap();
            }
            let client = files(&directory, "client");
            ClientTls::from_files(&client.ca, &client.certificate, &client.key).unwrap();
        }
    }

    /// Keys are written to new files, which no other user can have opened, and not through links.
    ///
    /// Method: put a file that all may read, and a link, where keys are written to. Then let a name be taken by a link
    /// to nowhere.
    #[test]
    fn keys_are_new_files() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("tls");
        fs::create_dir(&directory).unwrap();
        let elsewhere = parent.path().join("elsewhere");
        let planted = directory.join("ca-key.tmp");
        fs::write(&planted, "").unwrap();
        fs::set_permissions(&planted, fs::Permissions::from_mode(0o666)).unwrap();
        std::os::unix::fs::symlink(&elsewhere, directory.join("node-1-key.tmp")).unwrap();
        for path in init(&directory, &[node(1)], 90).unwrap() {
            let found = path.symlink_metadata().unwrap();
            assert!(found.is_file() && found.permissions().mode() & 0o777 == 0o600, "{path:?}: {found:?}");
        }
        assert!(!elsewhere.exists());
        for name in ["node-2.pem", "node-2-key.pem"] {
            let link = directory.join(name);
            std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
            let message = init(&directory, &[node(2)], 90).unwrap_err().to_string();
            assert!(message.contains(name) && !elsewhere.exists(), "{message}");
            fs::remove_file(&link).unwrap();
        }
        publish(&directory.join("ca.pem"), "").unwrap_err();
        let names = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().ends_with(".tmp")).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    /// A node is an id and hosts.
    #[test]
    fn new_nodes() {
        let parsed = parse_new_node("1=10.0.0.1, node1.example,[::1],::1").unwrap();
        assert_eq!((parsed.id, parsed.hosts.len()), (1, 4));
        node_params(&parsed, 1).unwrap();
        for text in ["", "1", "1=", "0=a", "x=a", "1=a,", "1=a:80", "1=a b", "1=*.a", "-1=a", "1=a/b"] {
            assert!(parse_new_node(text).is_err(), "{text}");
        }
    }
}
