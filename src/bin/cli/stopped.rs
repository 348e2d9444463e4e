//! Commands about the directory of a stopped node: `check`, `dump` and `recover`.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use raft_key_value::NodeId;
use raft_key_value::body::write_json_line;
use raft_key_value::config::check_address;
use raft_key_value::store::examine::{self, DumpError, Finding};
use raft_key_value::store::rebuild::{self, Founded, Survivor};
use serde::Serialize;

use super::arguments::{Check, Dump, Recover};
use super::failure::{Failure, verdict};
use super::output::{Output, printable};

/// A line of `check`.
#[derive(Serialize)]
struct CheckLine<'a> {
    path: &'a str,
    ok: bool,
    text: &'a str,
}

/// `check`
pub fn check(mut output: Output, check: Check) -> Result<(), Failure> {
    let _lock = examine::lock(&check.directory)?;
    let (mut damage, mut written) = (None, Ok(()));
    examine::check(&check.directory, &mut |Finding { path, outcome }| {
        let ok = outcome.is_ok();
        let text = match outcome {
            Ok(text) => text,
            Err(error) => {
                let text = error.finding();
                damage.get_or_insert(error);
                text
            }
        };
        let (path, verdict) = (path.display().to_string(), if ok { "ok" } else { "BAD" });
        let line = CheckLine { path: &path, ok, text: &text };
        let text = format!("{verdict:4} {}: {}", printable(&path), printable(&text));
        let printed = output.line(&line, text);
        if written.is_ok() {
            written = printed;
        }
    });
    let written = written.and_then(|()| output.flush());
    verdict(written.map_err(Failure::Output), damage.map_or(Ok(()), |error| Err(Failure::Store(error))))
}

/// `dump`
pub fn dump(dump: &Dump) -> Result<(), Failure> {
    let _lock = examine::lock(&dump.directory)?;
    let mut output = BufWriter::new(io::stdout().lock());
    let dumped = examine::dump(&dump.directory, &mut |line| {
        write_json_line(&mut output, line)?;
        writeln!(output)
    });
    let flushed = output.flush();
    match dumped {
        Ok(()) => Ok(flushed?),
        Err(DumpError::Output(error)) => Err(Failure::Output(error)),
        Err(DumpError::Store(error)) => verdict(flushed.map_err(Failure::Output), Err(Failure::Store(error))),
    }
}

/// What `recover` prints.
#[derive(Serialize)]
struct Recovered {
    /// Whether it was done, or only examined.
    done: bool,
    directory: PathBuf,
    former_directory: Option<PathBuf>,
    node: NodeId,
    addr: String,
    former_cluster_id: Option<String>,
    cluster_id: Option<String>,
    last_index: u64,
    last_term: u64,
    committed_index: Option<u64>,
    unconfirmed_entries: u64,
    torn_bytes: u64,
    revision: u64,
    keys: usize,
    hash: String,
    former_members: Vec<NodeId>,
}

impl Recovered {
    fn of(survivor: &Survivor, founded: Option<&Founded>) -> Self {
        let id = |id: Option<raft_key_value::store::ClusterId>| id.map(|id| id.to_string());
        Recovered {
            done: founded.is_some(),
            directory: survivor.directory.clone(),
            former_directory: founded.and_then(|founded| founded.former.clone()),
            node: survivor.identity.node_id,
            addr: survivor.addr.clone(),
            former_cluster_id: id(survivor.identity.cluster_id),
            cluster_id: founded.and_then(|founded| id(founded.identity.cluster_id)),
            last_index: survivor.last.index,
            last_term: survivor.last.leader_id.term,
            committed_index: survivor.committed.map(|log_id| log_id.index),
            unconfirmed_entries: survivor.unconfirmed_entries(),
            torn_bytes: survivor.torn_bytes,
            revision: survivor.machine.revision,
            keys: survivor.machine.data.len(),
            hash: survivor.machine.hash().to_string(),
            former_members: survivor.others.keys().copied().collect(),
        }
    }

    fn text(&self) -> String {
        let Recovered { node, addr, last_index, last_term, keys, revision, unconfirmed_entries, .. } = self;
        let unknown = || "none".to_owned();
        let former = self.former_cluster_id.clone().unwrap_or_else(unknown);
        let committed = self.committed_index.map_or_else(unknown, |index| index.to_string());
        let others: Vec<String> = self.former_members.iter().map(NodeId::to_string).collect();
        let others = if others.is_empty() { unknown() } else { others.join(", ") };
        let mut text = format!(
            "node {node} of cluster {former}, at {addr}; other members: {others}\n\
             kept: {keys} keys at revision {revision}, all entries up to index {last_index} of term {last_term}\n\
             of these, {unconfirmed_entries} entries after index {committed} are not known to be committed: they are \
             kept, because a client may have been told that they succeeded\n\
             lost: every write after index {last_index}, which only other nodes have; their number is not known here"
        );
        if self.torn_bytes > 0 {
            text += &format!("\nlost: {} bytes of a record that was being written", self.torn_bytes);
        }
        let directory = self.directory.display();
        match (&self.cluster_id, &self.former_directory) {
            (Some(cluster_id), Some(former)) => {
                text += &format!(
                    "\n`{directory}` is now the first node of the new cluster {cluster_id}; its former content is in \
                     `{}`\nstart it, and then add the other nodes, each with an empty directory",
                    former.display()
                );
            }
            _ => text += "\nnothing was changed",
        }
        text
    }
}

/// `recover`
pub async fn recover(mut output: Output, recover: Recover) -> Result<(), Failure> {
    let addr = recover.advertise_addr.as_deref();
    if let Some(addr) = addr {
        check_address("--advertise-addr", addr).map_err(|error| Failure::Usage(error.to_string()))?;
    }
    if !recover.accepts_loss {
        let survivor = rebuild::examine(&recover.data_dir, recover.id, addr)?;
        let examined = Recovered::of(&survivor, None);
        let written = output.line(&examined, examined.text()).and_then(|()| output.flush());
        let refused = "run this again with --i-accept-that-writes-may-be-lost to do it; never while a majority of the \
                       cluster can be started again";
        return verdict(written.map_err(Failure::Output), Err(Failure::Usage(refused.to_owned())));
    }
    let (founded, survivor) = rebuild::recover(&recover.data_dir, recover.id, addr).await?;
    let recovered = Recovered::of(&survivor, Some(&founded));
    output.line(&recovered, recovered.text())?;
    Ok(output.flush()?)
}
