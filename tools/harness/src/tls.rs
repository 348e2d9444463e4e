//! Certificates of a cluster, and connections that trust them.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
pub use tokio_rustls::TlsConnector;

use crate::process::remove_variables;

/// Makes certificates of these nodes by `tls init`. The CA in the directory signs them, a new one if it has none.
pub fn make_certificates(server: &Path, directory: &Path, nodes: &[(u64, IpAddr)]) -> Result<()> {
    let mut init = Command::new(server);
    remove_variables(&mut init, "RKV_");
    init.args(["tls", "init", "--dir"]).arg(directory);
    for (id, address) in nodes {
        init.arg("--node").arg(format!("{id}={address}"));
    }
    let made = init.output().context("cannot run `tls init`")?;
    ensure!(made.status.success(), "`tls init` failed: {}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

/// The flags with which a node uses its certificate. `{id}` stands for the id of the node.
pub fn arguments(directory: &Path) -> Vec<String> {
    let files = [("--tls-cert", "node-{id}.pem"), ("--tls-key", "node-{id}-key.pem"), ("--tls-ca", "ca.pem")];
    files.iter().flat_map(|(flag, file)| [(*flag).to_owned(), directory.join(file).display().to_string()]).collect()
}

/// For clients of these nodes; with the client's certificate if `mutual`.
pub fn connector(directory: &Path, mutual: bool) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots);
    let config = if mutual {
        let certificate = CertificateDer::from_pem_file(directory.join("client.pem"))?;
        let key = PrivateKeyDer::from_pem_file(directory.join("client-key.pem"))?;
        builder.with_client_auth_cert(vec![certificate], key)?
    } else {
        builder.with_no_client_auth()
    };
    Ok(TlsConnector::from(Arc::new(config)))
}
