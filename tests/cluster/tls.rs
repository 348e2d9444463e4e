//! TLS: who can connect to a node, and do nodes prove to each other who they are?

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use openraft::raft::VoteRequest;
use openraft::vote::RaftLeaderId;
use raft_key_value::config::{TLS_HANDSHAKE_DEADLINE, TLS_HANDSHAKES_MAX};
use raft_key_value::network::peer::PeerIdentity;
use raft_key_value::types::Vote;
use raft_key_value::{ExampleClient, NodeId, TypeConfig};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use reqwest::Method;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::json;
use time::{Duration as Days, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::harness::{
    ALL, CALM, CALM_BUT_QUICK, DEADLINE, Http, STEADY, TestCluster, envelope, envelope_header, eventually, identity_of,
    make_certificates, others, raise_open_files, run, send_signal,
};

/// A certificate, followed by intermediate ones, and its key.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// What is unusual about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Expired,
    NotYetValid,
    OtherCa,
    SelfSigned,
    NoSan,
    /// Two nodes at once.
    TwoNodes,
    /// Of node 3, while it claims to be node 2.
    OtherNode,
    OfAClient,
    /// For servers, and not for clients.
    OfAServer,
    /// Names the node in another spelling.
    Spelled(&'static str),
    /// Of a CA, although another CA signed it.
    OfACa,
    /// Signed by the key of node 3, whose certificate is shown with it.
    SignedByNode,
}

/// URIs that resemble that of node 2.
const RESEMBLING: [&str; 7] =
    ["rkv:node:02", "rkv:node:+2", "rkv:node:2 ", "RKV:NODE:2", "Rkv:node:2", "rkv:node:2/", "urn:rkv:node:2"];

fn authority(directory: &Path) -> Issuer<'static, KeyPair> {
    let key = KeyPair::from_pem(&fs::read_to_string(directory.join("ca-key.pem")).unwrap()).unwrap();
    Issuer::from_ca_cert_pem(&fs::read_to_string(directory.join("ca.pem")).unwrap(), key).unwrap()
}

/// A certificate of node `id` with this fault.
fn certificate(directory: &Path, id: NodeId, fault: Fault) -> Shown {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, format!("raft-key-value node {id}"));
    let (now, day) = (OffsetDateTime::now_utc(), Days::days(1));
    (params.not_before, params.not_after) = match fault {
        Fault::Expired => (now - day * 2, now - day),
        Fault::NotYetValid => (now + day, now + day * 2),
        _ => (now - day, now + day),
    };
    let of = |id: NodeId| format!("rkv:node:{id}");
    let uris = match fault {
        Fault::NoSan | Fault::OfAClient => vec![],
        Fault::OtherNode => vec![of(3)],
        Fault::TwoNodes => vec![of(id), of(3)],
        Fault::Spelled(uri) => vec![uri.to_owned()],
        _ => vec![of(id)],
    };
    params.subject_alt_names.extend(uris.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap())));
    if fault == Fault::NoSan {
        params.distinguished_name.push(DnType::CommonName, of(id));
    }
    if fault != Fault::OfAServer {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    if fault != Fault::OfAClient {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if fault == Fault::OfACa {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    let mut chain = Vec::new();
    let key = KeyPair::generate().unwrap();
    let signed = match fault {
        Fault::SelfSigned => params.self_signed(&key),
        Fault::OtherCa => {
            let mut other = CertificateParams::default();
            other.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.signed_by(&key, &Issuer::new(other, KeyPair::generate().unwrap()))
        }
        Fault::SignedByNode => {
            let signer = KeyPair::from_pem(&fs::read_to_string(directory.join("node-3-key.pem")).unwrap()).unwrap();
            let certificate = CertificateDer::from_pem_file(directory.join("node-3.pem")).unwrap();
            let issuer = Issuer::from_ca_cert_der(&certificate, signer).unwrap();
            chain.push(certificate.clone());
            params.signed_by(&key, &issuer)
        }
        _ => params.signed_by(&key, &authority(directory)),
    };
    chain.insert(0, signed.unwrap().der().clone());
    Shown { chain, key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A client that trusts the CA and shows this certificate, or none.
fn client_showing(directory: &Path, shown: Option<Shown>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    match shown {
        Some(shown) => builder.with_client_auth_cert(shown.chain, shown.key).unwrap(),
        None => builder.with_no_client_auth(),
    }
}

/// A connection to node 1 that shows this certificate, or none.
async fn connect_showing(
    cluster: &TestCluster,
    shown: Option<Shown>,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let config = client_showing(&cluster.tls_directory(), shown);
    let stream = tokio::net::TcpStream::connect(cluster.addr(1)).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap()
}

/// A request for the vote of a node in a later term, which it would remember.
fn vote_of(from: NodeId, to: &PeerIdentity, term: u64) -> Vec<u8> {
    let vote = Vote { leader_id: RaftLeaderId::new(term, from), committed: false };
    let rpc = VoteRequest::<TypeConfig>::new(vote, None);
    envelope(from, to, to.cluster_id.unwrap(), rpc)
}

/// A cluster over TLS serves clients, survives the loss of its leader, sends snapshots, and grows.
///
/// Method: form a cluster with certificates of `tls init`, write through each node by the library and by the command
/// line, kill the leader, and add a node that needs a snapshot.
#[tokio::test]
async fn a_cluster_speaks_tls() {
    let flags: Vec<&str> =
        CALM_BUT_QUICK.iter().copied().chain(["--snapshot-entries=50", "--snapshot-keep-entries=20"]).collect();
    let mut cluster = TestCluster::form_tls("tls", &ALL, &flags).await;
    for id in ALL {
        let client = ExampleClient::connect([cluster.addr(id)]).unwrap().with_tls(&cluster.client_tls());
        client.put(format!("k{id}"), "v").await.unwrap();
        assert_eq!(client.get(&format!("k{id}")).await.unwrap().unwrap().text(), Some("v"));
    }
    let ca = cluster.tls_directory().join("ca.pem").display().to_string();
    let endpoint = format!("https://{}", cluster.addr(2));
    let got = run(&["get", "k1", "--endpoints", &endpoint, "--tls-ca", &ca], &[]);
    assert_eq!((got.code, got.stdout.as_str()), (Some(0), "v"), "{}", got.stderr);
    let got = run(&["status"], &[("RKV_ENDPOINTS", cluster.addr(2)), ("RKV_TLS_CA", &ca)]);
    assert_eq!(got.code, Some(0), "{} {}", got.stdout, got.stderr);
    let got = run(&["doctor"], &[("RKV_ENDPOINTS", cluster.addr(2)), ("RKV_TLS_CA", &ca)]);
    assert!(got.stdout.contains("3 of 3 addresses responded as nodes"), "{} {}", got.stdout, got.stderr);

    let leader = cluster.leader_of(&ALL).await;
    let rest = others(leader);
    cluster.kill(leader);
    cluster.leader_of(&rest).await;
    cluster.write_many(rest[0], "more", 200).await;
    cluster.restart(leader).await;
    cluster.value_is(&ALL, "more199", "value 199 of more").await;
    cluster.add_node(4).await;
    cluster.add_learner(rest[0], 4).await;
    cluster.change_membership(rest[0], &[1, 2, 3, 4]).await;
    cluster.value_is(&[4], "more199", "value 199 of more").await;
    cluster.assert_alive();
}

/// A caller without a node's certificate cannot use the routes of nodes, and a node cannot use them as another one.
///
/// Method: request a vote as node 2, with each kind of certificate, with and without the header that names the ids. The
/// term of the node tells whether it listened.
#[tokio::test]
async fn peers_prove_who_they_are() {
    let cluster = TestCluster::form_tls("tls-peers", &[1], STEADY).await;
    let directory = cluster.tls_directory();
    let to = identity_of(&cluster, 1).await;
    let term = cluster.metrics(1).await.current_term;
    let forge = async |config: ClientConfig, has_header: bool| {
        let header = envelope_header(2, &to, to.cluster_id.unwrap());
        let headers: &[(&str, &str)] = if has_header { &[("raft-envelope", &header)] } else { &[] };
        let http = Http::with_tls(&config);
        http.request(Method::POST, cluster.addr(1), "/raft-vote", headers, vote_of(2, &to, term + 5)).await
    };
    for has_header in [true, false] {
        for fault in [
            Fault::Expired,
            Fault::NotYetValid,
            Fault::OtherCa,
            Fault::SelfSigned,
            Fault::OfAServer,
            Fault::OfACa,
            Fault::SignedByNode,
        ] {
            let shown = certificate(&directory, 2, fault);
            let answer = forge(client_showing(&directory, Some(shown)), has_header).await;
            assert!(answer.is_err(), "{fault:?}: {answer:?}");
        }
        let faults = [Fault::NoSan, Fault::TwoNodes, Fault::OtherNode, Fault::OfAClient];
        for fault in faults.into_iter().chain(RESEMBLING.map(Fault::Spelled)) {
            let shown = certificate(&directory, 2, fault);
            let answer = forge(client_showing(&directory, Some(shown)), has_header).await.unwrap();
            answer.assert_error(403, "Forbidden", "not_applied");
        }
        let answer = forge(client_showing(&directory, None), has_header).await.unwrap();
        answer.assert_error(403, "Forbidden", "not_applied");
    }
    for path in
        ["/raft-append", "/raft-pre-vote", "/raft-snapshot", "/raft-transfer-leader", "/raft-read-index", "/raft-found"]
    {
        let answer = Http::with_tls(&client_showing(&directory, None)).post(cluster.addr(1), path, "").await.unwrap();
        answer.assert_error(403, "Forbidden", "not_applied");
    }
    // The router decodes paths.
    for path in ["/%72aft-vote", "/raft%2dvote", "/raft-vot%65?a=b", "//raft-vote", "/v1/../raft-vote"] {
        for fault in [None, Some(Fault::OfAClient)] {
            for has_header in [true, false] {
                let header = envelope_header(2, &to, to.cluster_id.unwrap());
                let header = if has_header { format!("raft-envelope: {header}\r\n") } else { String::new() };
                let body = vote_of(2, &to, term + 5);
                let length = body.len();
                let head =
                    format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{header}content-length: {length}\r\n\r\n");
                let shown = fault.map(|fault| certificate(&directory, 2, fault));
                let mut stream = connect_showing(&cluster, shown).await;
                stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
                let mut answer = vec![0; 4096];
                let length = stream.read(&mut answer).await.unwrap();
                let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
                assert!(["403", "404"].iter().any(|status| answer[9..].starts_with(status)), "{path}: {answer}");
            }
        }
    }
    assert_eq!(cluster.metrics(1).await.current_term, term, "no forged request had an effect");
    let log = cluster.node(1).log();
    for reason in ["has expired", "is not valid yet", "is not signed by the CA"] {
        assert!(log.contains(reason), "{reason}: {log}");
    }
    // The same request with the right certificate is listened to.
    let right = certificate(&directory, 2, Fault::None);
    let answer = forge(client_showing(&directory, Some(right)), true).await.unwrap();
    assert_ne!(answer.status, 403, "{}", answer.text());
}

/// A header that says that another node forwarded a request counts only from nodes.
///
/// Method: send a host that only a forwarded request may have, with and without the certificate of a node.
#[tokio::test]
async fn only_nodes_forward() {
    let cluster = TestCluster::form_tls("tls-forward", &[1], STEADY).await;
    let directory = cluster.tls_directory();
    let own = identity_of(&cluster, 1).await;
    let receiver = format!("{}/1/{:016x}", own.cluster_id.unwrap(), own.incarnation);
    for (fault, status) in [(Fault::OfAClient, 403), (Fault::None, 404)] {
        let http = Http::with_tls(&client_showing(&directory, Some(certificate(&directory, 2, fault))));
        let headers = [("raft-forwarded", "2"), ("raft-forwarded-to", &*receiver), ("host", "evil.example")];
        let answer = http.request(Method::GET, cluster.addr(1), "/v1/kv/missing", &headers, "").await.unwrap();
        assert_eq!(answer.status, status, "{fault:?}: {}", answer.text());
    }
}

/// A node sends nothing to a server that does not prove to be the node that is dialed.
///
/// Method: have a node add a learner at the address of a server with each kind of certificate, which notes whether a
/// request arrives.
#[tokio::test]
async fn dialed_nodes_prove_who_they_are() {
    let cluster = TestCluster::form_tls("tls-dial", &[1], STEADY).await;
    let directory = cluster.tls_directory();
    let faults = [
        Fault::Expired,
        Fault::NotYetValid,
        Fault::OtherCa,
        Fault::SelfSigned,
        Fault::NoSan,
        Fault::TwoNodes,
        Fault::OfAClient,
        Fault::OfACa,
        Fault::SignedByNode,
        Fault::None,
    ];
    for fault in RESEMBLING.map(Fault::Spelled).into_iter().chain(faults) {
        let shown = certificate(&directory, 2, fault);
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(shown.chain, shown.key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { return Vec::new() };
            let mut request = vec![0; 1000];
            let length = stream.read(&mut request).await.unwrap_or_default();
            request.truncate(length);
            request
        });
        let answer = cluster.post(1, "/add-learner", json!([2, addr.to_string()]).to_string()).await;
        assert_ne!(answer.status, 200, "{fault:?}: {}", answer.text());
        let request = String::from_utf8(server.await.unwrap()).unwrap();
        let is_asked = request.starts_with("GET /raft-identity");
        assert_eq!(is_asked, fault == Fault::None, "{fault:?}: {request:?}");
    }
}

/// Plain HTTP to a node with TLS, TLS to a node without, and a missing certificate get errors that say what to do.
#[tokio::test]
async fn mismatches_are_explained() {
    let cluster = TestCluster::form_tls("tls-mismatch", &[1], STEADY).await;
    let plain = TestCluster::form("no-tls-mismatch", &[1], STEADY).await;
    let ca = cluster.tls_directory().join("ca.pem").display().to_string();
    let http = Http::new();
    let answer = http.get(cluster.addr(1), "/v1/kv/a").await.unwrap();
    assert!(answer.assert_rejected(400, "tls_required")["message"].as_str().unwrap().contains("https"));
    let answer = http.post(cluster.addr(1), "/write", vec![b'x'; 1 << 20]).await.unwrap();
    answer.assert_error(400, "BadRequest", "not_applied");
    let message_of = |arguments: &[&str]| {
        let ended = run(&[&["get", "a", "--retry-for", "0s"], arguments].concat(), &[]);
        assert!(matches!(ended.code, Some(2 | 3)), "{arguments:?}: {ended:?}");
        ended.stderr
    };
    let message = message_of(&["--endpoints", cluster.addr(1)]);
    assert!(message.contains("tls_required") && message.contains("https"), "{message}");
    let message = message_of(&["--endpoints", plain.addr(1), "--tls-ca", &ca]);
    assert!(message.contains("does not speak TLS"), "{message}");
    let message = message_of(&["--endpoints", &format!("https://{}", cluster.addr(1))]);
    assert!(message.contains("--tls-ca"), "{message}");
    let other = tempfile::tempdir().unwrap();
    make_certificates(other.path());
    let message =
        message_of(&["--endpoints", cluster.addr(1), "--tls-ca", &other.path().join("ca.pem").display().to_string()]);
    assert!(message.contains("not signed by the CA"), "{message}");
}

/// With `--tls-client-auth` every client needs a certificate of the CA. Without it, none.
#[tokio::test]
async fn clients_show_certificates() {
    let cluster = TestCluster::form_tls("tls-client-auth", &[1], &[STEADY, &["--tls-client-auth"]].concat()).await;
    let directory = cluster.tls_directory();
    let file = |name: &str| directory.join(name).display().to_string();
    let client = ["put", "a", "b", "--endpoints", cluster.addr(1), "--retry-for", "0s", "--tls-ca", &file("ca.pem")]
        .map(str::to_owned);
    let client: Vec<&str> = client.iter().map(String::as_str).collect();
    let ended = run(&client, &[]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(
        ended.stderr.contains("requires a certificate") && !ended.stderr.contains("may have been applied"),
        "{ended:?}"
    );
    let (certificate, key) = (file("client.pem"), file("client-key.pem"));
    let ended = run(&[&client[..], &["--tls-cert", &certificate, "--tls-key", &key]].concat(), &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

/// New files are used without a restart; bad ones are not, and both are reported. A certificate of a CA that is no
/// longer trusted is worth nothing, even on an open connection.
///
/// Method: replace the files of a cluster by a broken certificate, by one of a new CA, and back, while a client keeps a
/// connection.
#[tokio::test]
async fn certificates_are_reloaded() {
    let mut cluster = TestCluster::form_tls("tls-reload", &ALL, CALM).await;
    let directory = cluster.tls_directory();
    let metric = async |cluster: &TestCluster, name: &str| {
        let text = cluster.http().get(cluster.addr(1), "/v1/metrics").await.unwrap().text();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")).map(str::to_owned));
        line.unwrap_or_else(|| panic!("{name} is missing in {text}"))
    };
    let expiry: i64 = metric(&cluster, "rkv_tls_certificate_expiry_timestamp_seconds").await.parse().unwrap();
    let days = (expiry - OffsetDateTime::now_utc().unix_timestamp()) / 86_400;
    assert!((88..=90).contains(&days), "{days}");

    let good = fs::read(directory.join("node-1.pem")).unwrap();
    for bad in [b"nonsense".to_vec(), fs::read(directory.join("node-2.pem")).unwrap()] {
        fs::write(directory.join("node-1.pem"), bad).unwrap();
        send_signal(cluster.node(1).pid(), "HUP");
        eventually("the bad file is reported", DEADLINE, async || {
            let text = metric(&cluster, "rkv_tls_files_rejected").await;
            if text == "1" { Ok(()) } else { Err(text) }
        })
        .await;
        fs::write(directory.join("node-1.pem"), &good).unwrap();
        eventually("the good file is used", DEADLINE, async || {
            let text = metric(&cluster, "rkv_tls_files_rejected").await;
            if text == "0" { Ok(()) } else { Err(text) }
        })
        .await;
    }
    cluster.logs(1, &["are not used", "node-1.pem"]).await;
    cluster.write(1, "before", "x").await;

    let mut watch = connect_showing(&cluster, None).await;
    watch.write_all(b"GET /v1/watch?prefix= HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let old = certificate(&directory, 2, Fault::None);
    let mut old_peer = connect_showing(&cluster, Some(old)).await;
    let mut old_watch = connect_showing(&cluster, Some(certificate(&directory, 2, Fault::OfAClient))).await;
    old_watch.write_all(b"GET /v1/watch?prefix= HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    for stream in [&mut watch, &mut old_watch] {
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
    }

    // A new CA, in three steps that keep the cluster available: trust both, use new certificates, trust the new one.
    let old_client = Http::with_tls(&cluster.client_tls().config());
    assert_eq!(old_client.get(cluster.addr(1), "/livez").await.unwrap().status, 200);
    let new = tempfile::tempdir().unwrap();
    make_certificates(new.path());
    let (old_ca, new_ca) = (fs::read(directory.join("ca.pem")).unwrap(), fs::read(new.path().join("ca.pem")).unwrap());
    let reloads =
        |cluster: &TestCluster| ALL.map(|id| cluster.node(id).log().matches("read the TLS files again").count());
    let wait_for_reload = async |cluster: &TestCluster, before: [usize; 3]| {
        eventually("all nodes reloaded", DEADLINE, async || {
            let now = reloads(cluster);
            if now.iter().zip(before).all(|(now, before)| *now > before) { Ok(()) } else { Err(now) }
        })
        .await;
    };
    let before = reloads(&cluster);
    fs::write(directory.join("ca.pem"), [old_ca, new_ca.clone()].concat()).unwrap();
    wait_for_reload(&cluster, before).await;
    for name in ["node-1", "node-2", "node-3", "client"] {
        let before = reloads(&cluster);
        for file in [format!("{name}-key.pem"), format!("{name}.pem")] {
            fs::copy(new.path().join(&file), directory.join(&file)).unwrap();
        }
        if let Some(id) = name.strip_prefix("node-") {
            let position = id.parse::<usize>().unwrap() - 1;
            eventually("the node reloaded", DEADLINE, async || {
                let now = reloads(&cluster)[position];
                if now > before[position] { Ok(()) } else { Err(now) }
            })
            .await;
        }
    }
    cluster.read_client_files();
    cluster.write(2, "both", "x").await;
    assert_eq!(old_client.get(cluster.addr(1), "/livez").await.unwrap().status, 200, "both CAs are trusted");
    let before = reloads(&cluster);
    fs::write(directory.join("ca.pem"), new_ca).unwrap();
    wait_for_reload(&cluster, before).await;
    cluster.read_client_files();
    cluster.write(3, "after", "x").await;
    cluster.value_is(&ALL, "after", "x").await;
    let answer = old_client.get(cluster.addr(1), "/v1/kv/before").await;
    assert!(answer.as_ref().map_or(true, |answer| answer.status == 403), "{answer:?}");
    // Open connections with a certificate of the old CA end: of a node before its RPC is read, and of a watch at once.
    let to = identity_of(&cluster, 1).await;
    let body = vote_of(2, &to, cluster.metrics(1).await.current_term + 1);
    let head = format!("POST /raft-vote HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    let _ = old_peer.write_all(&[head.as_bytes(), &body].concat()).await;
    let mut answer = Vec::new();
    let _ = old_peer.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 403"), "{}", String::from_utf8_lossy(&answer));
    let ended = tokio::time::timeout(DEADLINE, async { while let Ok(1..) = old_watch.read(&mut [0; 4096]).await {} });
    ended.await.expect("the watch ends");
    // A caller without a certificate is no less trusted than before.
    cluster.write(1, "last", "seen by the watch").await;
    let seen = async {
        let mut events = Vec::new();
        while !String::from_utf8_lossy(&events).contains("seen by the watch") {
            let mut more = [0; 4096];
            let length = watch.read(&mut more).await.unwrap();
            assert_ne!(length, 0, "the watch ended");
            events.extend_from_slice(&more[..length]);
        }
    };
    tokio::time::timeout(DEADLINE, seen).await.expect("the watch continues");
    cluster.assert_alive();
}

/// SIGHUP does not end a node that has no TLS files to read again.
#[tokio::test]
async fn hangups_end_no_node() {
    let mut cluster = TestCluster::form("hangup", &[1], STEADY).await;
    for number in 0..5 {
        send_signal(cluster.node(1).pid(), "HUP");
        cluster.write(1, "k", &number.to_string()).await;
    }
    cluster.assert_alive();
}

/// A node warns at its start if not only its owner can read its key.
#[tokio::test]
async fn readable_keys_are_reported() {
    let mut cluster = TestCluster::form_tls("tls-key-mode", &[1], STEADY).await;
    let key = cluster.tls_directory().join("node-2-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    cluster.add_node(2).await;
    cluster.logs(2, &["node-2-key.pem", "has mode 0640"]).await;
    assert!(!cluster.node(1).log().contains("has mode"), "{}", cluster.node(1).log());
}

/// No private key is in what a node writes, logs or returns, at any log level, and whatever fails.
///
/// Method: run a cluster that logs everything; fail handshakes, RPCs and requests, restart the leader, and give nodes
/// and commands keys in place of other files. Then search for parts of all keys in each form that a program might print.
#[tokio::test]
async fn keys_stay_secret() {
    let flags: Vec<&str> = CALM_BUT_QUICK.iter().copied().chain(["--log-level=trace"]).collect();
    let mut cluster = TestCluster::form_tls("tls-secrets", &ALL, &flags).await;
    let directory = cluster.tls_directory();
    let mut secrets = Vec::new();
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if !path.display().to_string().ends_with("-key.pem") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let der = PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap();
        let der = der.secret_der();
        // The octet string of 32 bytes is the private number. What follows it is public.
        let start = der.windows(2).position(|window| window == [4, 32]).unwrap() + 2;
        let number = &der[start..start + 32];
        let decimal = format!("{:?}", &number[..10]);
        let hex: String = number[..10].iter().map(|byte| format!("{byte:02x}")).collect();
        secrets.push(number[..10].to_vec());
        secrets.extend([decimal.trim_matches(['[', ']']).to_owned(), hex.to_uppercase(), hex].map(String::into_bytes));
        // The end of the first line and the beginning of the second one encode parts of the number.
        let lines: Vec<&str> = text.lines().collect();
        secrets.extend([&lines[1][52..], &lines[2][..6]].map(|part| part.as_bytes().to_vec()));
    }
    assert_eq!(secrets.len(), 7 * 6, "the keys of the CA, of five nodes and of a client");
    let is_secret = |bytes: &[u8]| {
        let found = |secret: &Vec<u8>| memchr::memmem::find(bytes, secret).is_some();
        secrets.iter().any(found)
    };
    assert!(is_secret(&fs::read(directory.join("node-1-key.pem")).unwrap()), "the search works");

    let mut shown = Vec::new();
    let leader = cluster.leader_of(&ALL).await;
    cluster.write(leader, "k", "v").await;
    let to = identity_of(&cluster, 1).await;
    for fault in [Fault::Expired, Fault::OtherCa, Fault::SelfSigned, Fault::OfAClient, Fault::None] {
        let http = Http::with_tls(&client_showing(&directory, Some(certificate(&directory, 2, fault))));
        let answer = http.request(Method::POST, cluster.addr(1), "/raft-vote", &[], vote_of(3, &to, 99)).await;
        shown.push(answer.map_or_else(|error| error.to_string(), |answer| answer.text()));
    }
    shown.push(Http::new().get(cluster.addr(1), "/v1/kv/a").await.unwrap().text());
    let file = |name: &str| directory.join(name).display().to_string();
    let (ca, certificate, key) = (file("ca.pem"), file("node-1.pem"), file("node-1-key.pem"));
    for [ca, certificate, key] in [[&key, &certificate, &key], [&ca, &key, &key], [&ca, &certificate, &ca]] {
        let flags = ["--tls-ca", ca, "--tls-cert", certificate, "--tls-key", key];
        let client = ["get", "k", "--endpoints", cluster.addr(1), "--retry-for=0s"];
        let node = ["--id=1", "--http-addr=127.0.0.1:0", "--log-level=trace"];
        for words in [&client[..], &node, &["config", "check", "--id=1"], &["config", "print", "--id=1"]] {
            let ended = run(&[words, &flags].concat(), &[]);
            shown.extend([ended.stdout, ended.stderr]);
        }
    }
    for name in ["node-1.pem", "node-1-key.pem", "ca.pem"] {
        let good = fs::read(directory.join(name)).unwrap();
        // A part of a key, or a whole one where a certificate should be.
        let key = fs::read(directory.join("node-1-key.pem")).unwrap();
        let bad = if name == "node-1-key.pem" { &key[..key.len() / 2] } else { &key[..] };
        fs::write(directory.join(name), bad).unwrap();
        send_signal(cluster.node(1).pid(), "HUP");
        let text = eventually("the bad file is reported", DEADLINE, async || {
            let text = cluster.http().get(cluster.addr(1), "/raft-status").await.unwrap().text();
            if text.contains(name) { Ok(text) } else { Err(text) }
        });
        shown.push(text.await);
        for path in ["/metrics", "/v1/metrics", "/v1/cluster", "/raft-identity", "/readyz?verbose"] {
            shown.push(cluster.http().get(cluster.addr(1), path).await.unwrap().text());
        }
        fs::write(directory.join(name), good).unwrap();
        send_signal(cluster.node(1).pid(), "HUP");
        eventually("the good file is used", DEADLINE, async || {
            let text = cluster.http().get(cluster.addr(1), "/raft-status").await.unwrap().text();
            if text.contains(name) { Err(text) } else { Ok(()) }
        })
        .await;
    }
    cluster.kill(leader);
    cluster.leader_of(&others(leader)).await;
    cluster.restart(leader).await;
    cluster.value_is(&ALL, "k", "v").await;

    for text in shown {
        assert!(!is_secret(text.as_bytes()), "{text}");
    }
    for id in ALL {
        let node = cluster.node(id);
        let log = node.log();
        assert!(log.contains(" TRACE "), "node {id} logs everything");
        assert!(!is_secret(log.as_bytes()), "the log of node {id}");
        let of_process = ["cmdline", "environ"].map(|name| format!("/proc/{}/{name}", node.pid()).into());
        for path in node.files().into_iter().chain(of_process) {
            assert!(!is_secret(&fs::read(&path).unwrap()), "{}", path.display());
        }
    }
}

/// Handshakes that never end are cut off, and many of them cause no election and stop no client.
///
/// Method: more connections than a thread allows handshakes, each of which sends the first bytes of one and no more; then
/// writes, the term, and the end of each connection.
#[tokio::test]
async fn endless_handshakes_are_cut_off() {
    const CONNECTIONS: usize = 2000;
    raise_open_files(3 * CONNECTIONS as u64);
    let cluster = TestCluster::form_tls("tls-endless", &ALL, CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&ALL).await;
    let term = cluster.metrics(leader).await.current_term;
    const { assert!(CONNECTIONS > 2 * TLS_HANDSHAKES_MAX) };
    let mut open: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|number| {
            let mut stream = TcpStream::connect(cluster.addr(leader)).unwrap();
            // A record of 512 bytes, of which some arrive.
            let _ = stream.write_all(&[&[22, 3, 1, 2, 0, 1][..], &vec![0; number % 100]].concat());
            stream
        })
        .collect();
    let client = ExampleClient::connect([cluster.addr(leader)]).unwrap().with_tls(&cluster.client_tls());
    for number in 0..20 {
        client.put("k", number.to_string()).await.unwrap();
    }
    for stream in &mut open {
        stream.set_read_timeout(Some(TLS_HANDSHAKE_DEADLINE + Duration::from_secs(60))).unwrap();
        let ended = stream.read(&mut [0; 100]);
        assert!(!matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "{ended:?}");
    }
    assert_eq!(cluster.metrics(leader).await.current_term, term);
}

/// Clients that begin handshakes and send no more do not close the connections of clients that send more.
///
/// Method: a thread opens connections as fast as it can, each of which sends the first bytes of a handshake and stays
/// open. Meanwhile other clients put, each once, on a connection of its own.
#[tokio::test]
async fn unfinished_handshakes_displace_each_other() {
    const HELD: usize = 2 * TLS_HANDSHAKES_MAX;
    raise_open_files(4 * HELD as u64);
    let cluster = TestCluster::form_tls("tls-flood", &ALL, CALM_BUT_QUICK).await;
    let leader = cluster.leader_of(&ALL).await;
    let addr = cluster.addr(leader).to_owned();
    let client = cluster.client_tls().config();
    let opened = Arc::new(AtomicUsize::new(0));
    let flood = std::thread::spawn({
        let (opened, addr) = (opened.clone(), addr.clone());
        move || {
            let mut held = VecDeque::new();
            // Until the test ends, however it does.
            while Arc::strong_count(&opened) > 1 {
                if let Ok(mut stream) = TcpStream::connect(&addr) {
                    let _ = stream.write_all(&[22, 3, 1, 2, 0, 1]);
                    held.push_back(stream);
                    opened.fetch_add(1, Ordering::Relaxed);
                }
                if held.len() > HELD {
                    held.pop_front();
                }
            }
        }
    });
    let mut puts = 0;
    while puts < 100 || opened.load(Ordering::Relaxed) < 4 * HELD {
        let answer = Http::with_tls(&client).request(Method::PUT, &addr, "/v1/kv/k", &[], "v").await;
        assert_eq!(answer.as_ref().map(|answer| answer.status).ok(), Some(200), "put {puts}: {answer:?}");
        puts += 1;
    }
    drop(opened);
    flood.join().unwrap();
}

/// `tls init` makes what a node needs, teaches how to use it, and overwrites nothing. A node rejects files that are not
/// its own before it starts.
#[tokio::test]
async fn tls_init_and_the_settings() {
    let directory = tempfile::tempdir().unwrap();
    let tls = directory.path().join("tls");
    let path = tls.display().to_string();
    let ended = run(&["tls", "init", "--dir", &path, "--node", "1=127.0.0.1,localhost", "--node", "2=127.0.0.1"], &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for name in ["ca.pem  valid for 3650 days", "node-2.pem  valid for 365 days", "client-key.pem  private key"] {
        assert!(ended.stdout.contains(name), "{}", ended.stdout);
    }
    let again = run(&["tls", "init", "--dir", &path, "--node", "2=127.0.0.1"], &[]);
    assert!(again.code != Some(0) && again.stderr.contains("not overwritten"), "{again:?}");
    let twice = run(&["tls", "init", "--dir", &path, "--node", "3=a", "--node", "3=b"], &[]);
    assert!(twice.code == Some(2) && !tls.join("node-3.pem").exists(), "{twice:?}");
    let file = |name: &str| tls.join(name).display().to_string();
    let check = |id: &str, certificate: &str, key: &str, ca: &str| {
        let (certificate, key, ca) = (file(certificate), file(key), file(ca));
        let flags =
            ["--id", id, "--http-addr", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key, "--tls-ca", &ca];
        let ended = run(&[&["config", "check"][..], &flags].concat(), &[]);
        let started = (ended.code != Some(0)).then(|| run(&flags, &[]));
        if let Some(started) = started {
            assert_eq!((started.code, &started.stderr), (Some(2), &ended.stderr), "the node says the same");
            assert_eq!(started.stderr.lines().count(), 1, "{}", started.stderr);
        }
        ended
    };
    let good = check("1", "node-1.pem", "node-1-key.pem", "ca.pem");
    assert_eq!(good.code, Some(0), "{good:?}");
    for (certificate, key, ca, expected) in [
        ("node-2.pem", "node-2-key.pem", "ca.pem", "of node 2, and this is node 1"),
        ("node-1.pem", "node-2-key.pem", "ca.pem", "not the key of the certificate"),
        ("client.pem", "client-key.pem", "ca.pem", "rkv:node:1"),
        ("missing.pem", "node-1-key.pem", "ca.pem", "missing.pem"),
        ("node-1-key.pem", "node-1-key.pem", "ca.pem", "no certificate"),
        ("node-1.pem", "node-1.pem", "ca.pem", "no private key"),
        ("node-1.pem", "node-1-key.pem", "client.pem", "is not signed by the CA"),
    ] {
        let bad = check("1", certificate, key, ca);
        assert!(bad.code == Some(2) && bad.stderr.contains(expected), "{expected}: {bad:?}");
    }
}
