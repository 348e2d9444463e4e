//! Secrets: the texts of tokens, and the files that hold them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// Longest token, in bytes.
pub const SECRET_BYTES_MAX: usize = 512;
/// Shortest root token, in bytes. A person may choose it, so it must be too long to guess.
pub const ROOT_SECRET_BYTES_MIN: usize = 32;
/// Random bytes of a token that a node makes.
const RANDOM_BYTES: usize = 32;

/// The text of a token. It is never printed by accident.
// Only tests compare two of them: nodes compare hashes, in constant time.
#[derive(Clone)]
#[cfg_attr(test, derive(PartialEq, Eq))]
pub struct Secret(Arc<str>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret")
    }
}

impl Secret {
    /// A token with this text.
    ///
    /// # Errors
    ///
    /// Unless it is 1 to 512 bytes of visible ASCII. The message does not quote it.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > SECRET_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("a token must be 1 to {SECRET_BYTES_MAX} bytes of visible ASCII"));
        }
        Ok(Secret(text.into()))
    }

    /// A new random token.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = [0; RANDOM_BYTES];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        Ok(Secret(format!("rkv_{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)).into()))
    }

    /// Reads a token from a file, without the line break at its end.
    ///
    /// Who owns the file does not matter, because only its mode lets others read it: a process that can read a file of
    /// another user with mode 0600 runs as root, which reads all files anyway.
    ///
    /// # Errors
    ///
    /// The file cannot be read, other users may read or write it, or it holds no token. No message quotes its content.
    pub fn read(path: &Path) -> Result<Self, String> {
        let named = path.display();
        let failed = |error: io::Error| format!("cannot read `{named}`: {error}");
        let file = File::open(path).map_err(failed)?;
        // Of the open file, so that it is not another one by the time it is read.
        let metadata = file.metadata().map_err(failed)?;
        let mode = metadata.mode() & 0o777;
        if metadata.is_file() && mode & 0o077 != 0 {
            return Err(format!(
                "`{named}` has mode {mode:04o}, so other users may read or change it: run `chmod 600 {named}`"
            ));
        }
        let mut text = String::new();
        let read = file.take(SECRET_BYTES_MAX as u64 + 3).read_to_string(&mut text);
        read.map_err(|_| format!("`{named}` must be a file that holds a token and nothing else"))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        Secret::new(text.strip_suffix('\r').unwrap_or(text)).map_err(|error| format!("`{named}`: {error}"))
    }

    /// Reads the root token.
    ///
    /// # Errors
    ///
    /// As [`Secret::read`], and if the token is too short.
    pub fn read_root(path: &Path) -> Result<Self, String> {
        let secret = Secret::read(path)?;
        if secret.0.len() < ROOT_SECRET_BYTES_MIN {
            return Err(format!(
                "`{}`: the root token must be at least {ROOT_SECRET_BYTES_MIN} bytes; make one with \
                 `openssl rand -hex 32`",
                path.display()
            ));
        }
        Ok(secret)
    }

    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The value of the header `Authorization`. It is marked, so that libraries do not print it.
    pub fn authorization(&self) -> reqwest::header::HeaderValue {
        let value = reqwest::header::HeaderValue::from_str(&format!("Bearer {}", self.0));
        let mut value = value.expect("visible ASCII is a valid value");
        value.set_sensitive(true);
        value
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A token file must be the user's own, and hold one token; no error quotes it.
    #[test]
    fn files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let root = "r".repeat(ROOT_SECRET_BYTES_MIN);
        let read = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let read = Secret::read_root(&path);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            read
        };
        for (text, mode) in [(root.clone(), 0o600), (format!("{root}\n"), 0o400), (format!("{root}\r\n"), 0o700)] {
            assert_eq!(read(&text, mode).unwrap().reveal(), root);
        }
        let two_lines = format!("{root}\n{root}\n");
        let rows = [
            (root.as_str(), 0o640, "mode 0640"),
            (root.as_str(), 0o604, "mode 0604"),
            (root.as_str(), 0o620, "mode 0620"),
            ("", 0o600, "visible ASCII"),
            ("secret-but-short", 0o600, "at least 32 bytes"),
            (two_lines.as_str(), 0o600, "visible ASCII"),
            ("with a space in it, and therefore wrong", 0o600, "visible ASCII"),
        ];
        for (text, mode, expected) in rows {
            let error = read(text, mode).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
        fs::remove_file(&path).unwrap();
        assert!(Secret::read(&path).unwrap_err().contains("cannot read"));
    }

    /// Tokens that are made differ, and are valid.
    #[test]
    fn generated() {
        let (one, other) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert_ne!(one, other);
        assert_eq!(Secret::new(one.reveal()).unwrap(), one);
        assert_eq!((one.reveal().len(), format!("{one:?}")), (47, "a secret".to_owned()));
    }
}
