//! TLS: the files of a node and of a client, their checks, and their reload.
//!
//! rustls with ring as the only source of cryptography: it needs nothing but a C compiler to build.
//!
//! A node's certificate names the node's id, as the URI `rkv:node:<id>`. Connections between nodes are checked by that
//! id and not by the host, so a node may move to another address with the same certificate. Clients check the host.

pub mod issue;
mod reload;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, InvalidMessage, RootCertStore,
    ServerConfig, SignatureScheme,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

pub use self::reload::Tls;
use crate::config::{TLS_CHAINS_KEPT, TLS_FILE_BYTES_MAX};
use crate::types::NodeId;

/// The beginning of the URI that names a node in its certificate.
pub const NODE_URI: &str = "rkv:node:";

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

/// Why TLS cannot be used with these files. The message names the file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// The files of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFiles {
    /// The node's certificate, followed by intermediate ones.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The certificates of the CA.
    pub ca: PathBuf,
}

/// Certificates and keys, as read from files once.
pub(crate) struct Loaded {
    /// What new connections are accepted with.
    pub server: Arc<ServerConfig>,
    /// When the node's certificate expires, in seconds since 1970.
    pub expires_s: i64,
    own: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    verifier: Arc<dyn ClientCertVerifier>,
    /// Whether chains that callers showed before are valid.
    judged: Mutex<HashMap<Vec<CertificateDer<'static>>, bool>>,
}

impl Loaded {
    /// Reads and checks the files of node `id`.
    pub(crate) fn read(files: &NodeFiles, id: NodeId, demands_certificates: bool) -> Result<Self, TlsError> {
        let roots = read_roots(&files.ca)?;
        let own = read_pair(&files.certificate, &files.key)?;
        let builder = WebPkiClientVerifier::builder_with_provider(roots.clone(), PROVIDER.clone());
        let builder = if demands_certificates { builder } else { builder.allow_unauthenticated() };
        let verifier = builder.build().map_err(|error| in_file(&files.ca, &error))?;
        let leaf = own.end_entity_cert().map_err(|error| in_file(&files.certificate, &error))?;
        let expires_s = expiry_of(leaf).ok_or_else(|| in_file(&files.certificate, &"its dates cannot be read"))?;
        let bad = |why: String| Err(in_file(&files.certificate, &why));
        match node_of(leaf) {
            Some(found) if found == id => {}
            Some(found) => return bad(format!("it is the certificate of node {found}, and this is node {id}")),
            None => return bad(format!("it does not name this node: it needs the URI {NODE_URI}{id} as a SAN")),
        }
        // Other nodes will check it in the same way, as a client's and as a server's.
        let rest = &own.cert[1..];
        if let Err(error) = verifier.verify_client_cert(leaf, rest, UnixTime::now()) {
            return bad(why_invalid(&error));
        }
        let node = NodeVerifier { roots: roots.clone(), expected: Some(id) };
        if let Err(error) = node.check(leaf, rest, UnixTime::now()) {
            return bad(why_invalid(&error));
        }
        let mut server = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError(error.to_string()))?
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own.clone())));
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A resumed session would skip the check of the client's certificate.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Loaded { server: Arc::new(server), expires_s, own, roots, verifier, judged: Mutex::default() })
    }

    /// The settings to dial a node: the one with this id, or any node if that is not known.
    pub(crate) fn to_node(&self, expected: Option<NodeId>) -> Result<ClientConfig, TlsError> {
        let verifier = NodeVerifier { roots: self.roots.clone(), expected };
        let config = client_builder()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(self.own.clone())));
        Ok(without_resumption(config))
    }

    /// Whether a certificate that a caller showed before is still valid.
    ///
    /// After a reload, a thread asks for all of its connections in one turn. Checking a signature takes about 0.1 ms, and
    /// many clients have the same certificate.
    pub(crate) fn accepts(&self, chain: &[CertificateDer<'static>]) -> bool {
        let Some((leaf, rest)) = chain.split_first() else { return !self.verifier.client_auth_mandatory() };
        let judged = || self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(is_valid) = judged().get(chain) {
            return *is_valid;
        }
        let is_valid = self.verifier.verify_client_cert(leaf, rest, UnixTime::now()).is_ok();
        let mut judged = judged();
        if judged.len() < TLS_CHAINS_KEPT {
            judged.insert(chain.to_vec(), is_valid);
        }
        is_valid
    }
}

/// The TLS settings of a client.
#[derive(Clone)]
pub struct ClientTls(ClientConfig);

impl fmt::Debug for ClientTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ClientTls")
    }
}

impl ClientTls {
    /// Reads the certificates of the CA that signed the nodes' certificates.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or has no certificate.
    pub fn from_ca(ca: &Path) -> Result<Self, TlsError> {
        Ok(ClientTls(without_resumption(named(ca)?.with_no_client_auth())))
    }

    /// The same, with a certificate and its private key, which the client shows to nodes.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, or the key does not belong to the certificate.
    pub fn from_files(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let own = read_pair(certificate, key)?;
        let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(own));
        Ok(ClientTls(without_resumption(named(ca)?.with_client_cert_resolver(resolver))))
    }

    /// The settings of the library.
    pub fn config(&self) -> ClientConfig {
        self.0.clone()
    }
}

/// The settings of a program that dials without TLS. The HTTP client would otherwise read the system's certificates.
pub fn no_tls() -> ClientConfig {
    static NO_TLS: LazyLock<ClientConfig> = LazyLock::new(|| {
        let builder = client_builder().expect("ring supports all versions of TLS that rustls does");
        builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
    });
    NO_TLS.clone()
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>;

fn client_builder() -> Result<Builder, TlsError> {
    let builder = ClientConfig::builder_with_provider(PROVIDER.clone());
    builder.with_safe_default_protocol_versions().map_err(|error| TlsError(error.to_string()))
}

fn named(ca: &Path) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(read_roots(ca)?, PROVIDER.clone()).build();
    let verifier = verifier.map_err(|error| in_file(ca, &error))?;
    Ok(client_builder()?.with_webpki_verifier(verifier))
}

/// Connections are kept, so there is little to resume. A full handshake checks certificates each time.
fn without_resumption(mut config: ClientConfig) -> ClientConfig {
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Checks that a server is a node, by its id instead of its host.
#[derive(Debug)]
struct NodeVerifier {
    roots: Arc<RootCertStore>,
    expected: Option<NodeId>,
}

impl NodeVerifier {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = PROVIDER.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, rest, now, algorithms)?;
        let wrong = |found: &str| match self.expected {
            Some(id) => Err(rustls::Error::General(format!("its certificate is {found}, not of node {id}"))),
            None => Err(rustls::Error::General(format!("its certificate is {found}, not of a node"))),
        };
        match (node_of(leaf), self.expected) {
            (None, _) => wrong("of no node"),
            (Some(found), Some(expected)) if found != expected => wrong(&format!("of node {found}")),
            (Some(_), _) => Ok(()),
        }
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(leaf, rest, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &PROVIDER.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

/// The node that a certificate names: by exactly one URI of this form, in exactly one spelling.
///
/// Only for certificates whose signature was checked.
pub fn node_of(certificate: &[u8]) -> Option<NodeId> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = &parsed.subject_alternative_name().ok()??.value.general_names;
    let mut ids = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(NODE_URI),
        _ => None,
    });
    let text = ids.next()?;
    if ids.next().is_some() {
        return None;
    }
    text.parse().ok().filter(|id: &NodeId| *id > 0 && id.to_string() == text)
}

/// When a certificate expires, in seconds since 1970.
fn expiry_of(certificate: &[u8]) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// Describes the fault of a certificate or a handshake in the terms of the flags and files.
pub fn why_invalid(error: &rustls::Error) -> String {
    let certificate = |error: &CertificateError| match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet (is the clock right?)".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => "is not signed by the CA".to_owned(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is not valid for this host".to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "must not be used for this side of a connection".to_owned()
        }
        other => format!("is invalid: {other}"),
    };
    match error {
        rustls::Error::InvalidCertificate(error) => format!("the certificate {}", certificate(error)),
        rustls::Error::NoCertificatesPresented => "it showed no certificate".to_owned(),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => "it does not speak TLS".to_owned(),
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => {
                "it requires a certificate, and none was shown (see --tls-cert)".to_owned()
            }
            AlertDescription::CertificateExpired => "it rejected the certificate, which has expired".to_owned(),
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                "it rejected the certificate, which its CA did not sign".to_owned()
            }
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown => "it rejected the certificate".to_owned(),
            other => format!("it ended the TLS handshake: {other:?}"),
        },
        rustls::Error::General(why) => why.clone(),
        other => other.to_string(),
    }
}

fn in_file(path: &Path, why: &dyn fmt::Display) -> TlsError {
    TlsError(format!("`{}`: {why}", path.display()))
}

/// Reads a file of bounded length.
fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(TLS_FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > TLS_FILE_BYTES_MAX {
            return Err(io::Error::other(format!("it is longer than {TLS_FILE_BYTES_MAX} bytes")));
        }
        Ok(bytes)
    };
    read().map_err(|error| TlsError(format!("cannot read `{}`: {error}", path.display())))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read_file(path)?;
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(in_file(path, &"it has no certificate in PEM")),
        Ok(found) => Ok(found),
        // The cause may quote the file, which may be a key by mistake.
        Err(_) => Err(in_file(path, &"it is not valid PEM")),
    }
}

fn read_roots(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|error| in_file(path, &error))?;
    }
    Ok(Arc::new(roots))
}

fn read_pair(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = read_certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_slice(&read_file(key)?);
    let private = private.map_err(|_| in_file(key, &"it has no private key in PEM"))?;
    let own = CertifiedKey::from_der(chain, private, &PROVIDER).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            in_file(key, &format!("it is not the key of the certificate in `{}`", certificate.display()))
        }
        error => in_file(key, &error),
    })?;
    Ok(Arc::new(own))
}
