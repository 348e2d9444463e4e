//! `tls init`.

use raft_key_value::tls::issue;
use serde::Serialize;

use super::arguments::TlsInit;
use super::failure::Failure;
use super::output::{Output, printable};

/// A file that was written.
#[derive(Debug, Serialize)]
struct Written {
    path: String,
    /// Validity of a certificate; `None` for a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_days: Option<u32>,
}

/// `tls init`
pub fn init(mut output: Output, init: &TlsInit) -> Result<(), Failure> {
    let mut ids: Vec<u64> = init.nodes.iter().map(|node| node.id).collect();
    ids.sort_unstable();
    if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Failure::Usage(format!("--node {} is given twice", twice[0])));
    }
    let written = issue::init(&init.dir, &init.nodes, init.days).map_err(|error| Failure::Input(error.to_string()))?;
    for path in written {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let valid_days = match &*name {
            name if name.ends_with("-key.pem") => None,
            "ca.pem" => Some(issue::CA_DAYS),
            _ => Some(init.days),
        };
        let path = path.display().to_string();
        let what = valid_days.map_or_else(|| "private key".to_owned(), |days| format!("valid for {days} days"));
        output.line(&Written { path: path.clone(), valid_days }, format!("{}  {what}", printable(&path)))?;
    }
    output.flush()?;
    Ok(())
}
