//! The TLS files of a running node, which are read again when they change.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};
use tokio::signal::unix::{SignalKind, signal};

use super::{Loaded, NodeFiles, TlsError};
use crate::config::{Config, ConfigError, TLS_POLL_INTERVAL};
use crate::types::NodeId;

/// What a node needs to accept and to open TLS connections.
pub struct Tls {
    id: NodeId,
    files: NodeFiles,
    demands_certificates: bool,
    current: RwLock<Arc<Loaded>>,
    /// Changes with `current`.
    number: AtomicU64,
    expires_s: AtomicI64,
    /// Why the newest files are not used, if they are not.
    rejected: Mutex<Option<String>>,
    /// The files before they were last read.
    seen: Mutex<Signature>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What changes when somebody writes or replaces the files: device, inode, length and times of each.
type Signature = [Option<(u64, u64, u64, i64, i64, i64)>; 3];

impl Tls {
    /// Reads and checks the files of node `id`. If `demands_certificates`, clients must show a certificate, too.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, or other nodes would not accept the certificate.
    pub fn open(id: NodeId, files: NodeFiles, demands_certificates: bool) -> Result<Self, TlsError> {
        let seen = Mutex::new(signature(&files));
        let loaded = Loaded::read(&files, id, demands_certificates)?;
        Ok(Tls {
            id,
            files,
            demands_certificates,
            expires_s: AtomicI64::new(loaded.expires_s),
            current: RwLock::new(Arc::new(loaded)),
            number: AtomicU64::new(1),
            rejected: Mutex::default(),
            seen,
        })
    }

    /// The same with these settings; `None` if they have no TLS files.
    ///
    /// # Errors
    ///
    /// See [`open`](Self::open).
    pub fn of(config: &Config) -> Result<Option<Arc<Self>>, ConfigError> {
        let Some([certificate, key, ca]) = config.tls_files() else { return Ok(None) };
        let files = NodeFiles { certificate: certificate.into(), key: key.into(), ca: ca.into() };
        let tls = Tls::open(config.id, files, config.tls_client_auth).map_err(|error| ConfigError::tls(&error))?;
        Ok(Some(Arc::new(tls)))
    }

    fn current(&self) -> Arc<Loaded> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A number that differs after each reload.
    pub fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// What new connections are accepted with.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.current().server.clone()
    }

    /// What connections to a node are opened with; to any node, if `node` is `None`.
    ///
    /// # Errors
    ///
    /// None with the library's current version.
    pub fn to_node(&self, node: Option<NodeId>) -> Result<ClientConfig, TlsError> {
        self.current().to_node(node)
    }

    /// Whether the chain that a caller showed before is valid with the current files.
    pub fn accepts(&self, chain: &[CertificateDer<'static>]) -> bool {
        self.current().accepts(chain)
    }

    /// When the node's certificate expires, in seconds since 1970.
    pub fn expires_s(&self) -> i64 {
        self.expires_s.load(Ordering::Relaxed)
    }

    /// Why the files on disk are not the ones in use, if they are not.
    pub fn rejected(&self) -> Option<String> {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again if they changed since they were last read, which may be long ago: a node that opens much
    /// data does not look at them meanwhile.
    fn reload_if_changed(&self) {
        let found = signature(&self.files);
        let before = std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), found);
        // Another attempt while they are invalid: they may have been read while they were written.
        if before != found || self.rejected().is_some() {
            self.reload();
        }
    }

    /// Reads the files again. Unless all of them are valid, the node continues with those it has.
    fn reload(&self) {
        let loaded = Loaded::read(&self.files, self.id, self.demands_certificates);
        let why = loaded.as_ref().err().map(ToString::to_string);
        let before = {
            let mut rejected = self.rejected.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *rejected, why.clone())
        };
        match loaded {
            Ok(loaded) => {
                let expires_s = loaded.expires_s;
                self.expires_s.store(expires_s, Ordering::Relaxed);
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                self.number.fetch_add(1, Ordering::Release);
                tracing::info!("read the TLS files again: the certificate expires in {}", days_until(expires_s));
                self.check_key_mode();
            }
            Err(error) if before != why => {
                tracing::error!("the TLS files changed and are not used; the previous ones stay in use: {error}");
            }
            Err(_) => {}
        }
    }

    /// Warns if others than its owner may read or change the private key. That may be intended, for a group or inside a
    /// container, so the node starts nevertheless.
    fn check_key_mode(&self) {
        let key = &self.files.key;
        let mode = fs::metadata(key).map_or(0, |found| found.mode() & 0o7777);
        if mode & 0o077 != 0 {
            tracing::warn!(
                "the private key `{}` has mode {mode:04o}, so not only its owner can use it; 0600 is safe",
                key.display()
            );
        }
    }

    /// Reads the files again whenever they change, and at SIGHUP. Warns when the certificate is about to expire.
    pub async fn watch(self: Arc<Self>) {
        self.check_key_mode();
        // Without the signal, changes are still seen.
        let mut hangup = signal(SignalKind::hangup()).ok();
        let mut days_said = i64::MAX;
        loop {
            let tls = self.clone();
            // It cannot fail but by a panic, which is logged.
            let _ = tokio::task::spawn_blocking(move || tls.reload_if_changed()).await;
            let days = days_left(self.expires_s());
            if days < 30 && days < days_said {
                tracing::warn!("the certificate of this node expires in {}", days_until(self.expires_s()));
            }
            days_said = days;
            let hung_up = async {
                match &mut hangup {
                    Some(hangup) => drop(hangup.recv().await),
                    None => std::future::pending().await,
                }
            };
            if tokio::time::timeout(TLS_POLL_INTERVAL, hung_up).await.is_ok() {
                let tls = self.clone();
                let _ = tokio::task::spawn_blocking(move || tls.reload()).await;
            }
        }
    }
}

fn signature(files: &NodeFiles) -> Signature {
    [&files.certificate, &files.key, &files.ca].map(|path| {
        let found = fs::metadata(path).ok()?;
        Some((found.dev(), found.ino(), found.len(), found.mtime(), found.mtime_nsec(), found.ctime_nsec()))
    })
}

/// Days until a time in seconds since 1970; negative if it has passed.
pub(super) fn days_left(expires_s: i64) -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    (expires_s - i64::try_from(now.as_secs()).unwrap_or(i64::MAX)).div_euclid(24 * 60 * 60)
}

fn days_until(expires_s: i64) -> String {
    match days_left(expires_s) {
        days if days < 0 => "the past: it has expired".to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::issue::{self, NewNode};
    use crate::tls::read_certificates;

    /// Files that changed after they were opened are read once, however long nothing looked at them. A file that was
    /// written in part is read again when it is complete.
    #[test]
    fn changes_are_noticed() {
        let parent = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| {
            let directory = parent.path().join(name);
            issue::init(&directory, &[NewNode { id: 1, hosts: vec!["localhost".to_owned()] }], 90).unwrap();
            directory
        });
        let names = ["node-1.pem", "node-1-key.pem", "ca.pem"];
        let [certificate, key, ca] = names.map(|name| first.join(name));
        let tls = Tls::open(1, NodeFiles { certificate, key, ca }, false).unwrap();
        tls.reload_if_changed();
        assert_eq!(tls.number(), 1, "nothing changed");
        let [former, next] =
            [&first, &second].map(|directory| read_certificates(&directory.join("client.pem")).unwrap());
        // Twice: the second time, the result is remembered.
        let judge = || [&former, &next, &former, &next].map(|chain| tls.accepts(chain));
        assert_eq!(judge(), [true, false, true, false]);
        for name in names {
            fs::copy(second.join(name), first.join(name)).unwrap();
        }
        tls.reload_if_changed();
        assert_eq!((tls.number(), tls.rejected()), (2, None));
        assert_eq!(judge(), [false, true, false, true]);
        let whole = fs::read(first.join("node-1.pem")).unwrap();
        for length in 0..whole.len() - 1 {
            fs::write(first.join("node-1.pem"), &whole[..length]).unwrap();
            tls.reload_if_changed();
            assert!(tls.rejected().is_some(), "{length} of {} bytes", whole.len());
        }
        assert_eq!(tls.number(), 2);
        fs::write(first.join("node-1.pem"), &whole).unwrap();
        tls.reload_if_changed();
        assert_eq!((tls.number(), tls.rejected()), (3, None));
    }
}
