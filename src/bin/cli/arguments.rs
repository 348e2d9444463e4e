//! The commands and their options, as clap has them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};
use raft_key_value::error::ApiError;
use raft_key_value::network::parameters::{milliseconds, ttl_ms};

// What can be asked for, beside running a node. No documentation: clap would take it for that of the program.
#[derive(Debug, Subcommand)]
#[command(subcommand_help_heading = "Commands for a cluster that runs")]
pub enum Command {
    /// Print the value of a key
    #[command(after_help = "\
Examples:
  raft-key-value get config/color                    the bytes of the value, and nothing else
  raft-key-value get config/color --output json      with revision, version and time left
  raft-key-value get photo > photo.jpg

The exit code is 1 if there is no such key.")]
    Get(Get),

    /// Set a key
    #[command(after_help = "\
Examples:
  raft-key-value put config/color green
  raft-key-value put photo --file photo.jpg
  date | raft-key-value put now -                    store standard input as it is
  raft-key-value put lock me --if-missing --ttl 30s
  raft-key-value put config/color blue --if-revision 7
  raft-key-value put temperature -- -5               a value that begins with a dash

The exit code is 1 if the condition does not hold.")]
    Put(Put),

    /// Remove a key, or all keys with a prefix
    #[command(after_help = "\
Examples:
  raft-key-value delete config/color
  raft-key-value delete config/color --if-revision 7
  raft-key-value delete --prefix config/

A key that is not there is no error, unless --if-present says so (exit code 1).")]
    Delete(Delete),

    /// List keys and values
    #[command(after_help = "\
Examples:
  raft-key-value list                                all keys, as a table
  raft-key-value list config/ --keys-only            one key a line
  raft-key-value list log/ --reverse --limit 10      the last ten
  raft-key-value list --output json | jq -r .key     one object a line, values in full

All keys are shown as they were at one revision, however slowly the output is read: pages are read ahead,
into memory and then into a temporary file.")]
    List(List),

    /// Compare keys, and do one thing or another, all or nothing
    #[command(after_help = r#"Examples:
  raft-key-value txn '{"compare":[{"key":"color","value":"green"}],
                       "success":[{"put":{"key":"color","value":"blue"}}],
                       "failure":[{"get":{"key":"color"}}]}'
  raft-key-value txn --file change.json
  generate-changes | raft-key-value txn -            read the transaction from standard input

The exit code is 1 if a comparison does not hold; what is in "failure" was done then."#)]
    Txn(Txn),

    /// Print changes as they happen, one a line
    #[command(after_help = "\
Examples:
  raft-key-value watch                               every change from now on
  raft-key-value watch config/ --initial             what is there, then every change
  raft-key-value watch --key config/color --from 7   what happened since revision 7, and goes on
  raft-key-value watch --output json | while read -r event; do …; done

Nothing is skipped and nothing is printed twice, even while nodes fail and return. While no endpoint can
serve the watch, the command says so on standard error and retries until --retry-for is over. It ends when
its output is closed.")]
    Watch(Watch),

    /// Renew the time that a key has left
    #[command(after_help = "\
Examples:
  raft-key-value touch lock --ttl 30s
  raft-key-value touch lock --ttl 30s --if-revision 7      only while the lock is the one I took

The exit code is 1 if there is no such key, or the condition does not hold.")]
    Touch(Touch),

    /// Show each node: whether it answers, what it is, and how far it has come
    #[command(after_help = "\
Examples:
  raft-key-value status
  raft-key-value status --endpoints 10.0.0.1:21001,10.0.0.2:21001 --output json

The exit code is 3 if one of them does not answer.")]
    Status(Common),

    /// Show who belongs to the cluster
    #[command(after_help = "\
Examples:
  raft-key-value members
  raft-key-value members --output json")]
    Members(Common),

    /// Print what makes a shell complete these commands
    #[command(after_help = "\
Examples:
  source <(raft-key-value completions bash)
  raft-key-value completions zsh > ~/.zfunc/_raft-key-value
  raft-key-value completions fish > ~/.config/fish/completions/raft-key-value.fish")]
    Completions(Completions),
}

/// Whom to ask, and how to answer.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Nodes to turn to, HOST:PORT, separated by commas; any nodes of the cluster will do
    #[arg(
        long,
        env = "RKV_ENDPOINTS",
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "127.0.0.1:21001,127.0.0.1:21002,127.0.0.1:21003"
    )]
    pub endpoints: Vec<String>,

    /// How to write what is found
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,

    /// Retry for this long while no node can serve the request (500ms, 10s, 5m); 0s sends it once
    /// [default: 10s; watch: without end]
    #[arg(long, value_name = "DURATION", value_parser = retry_time)]
    pub retry_for: Option<Duration>,
}

/// How what is found is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people; values as they are.
    #[default]
    Text,
    /// JSON, one object a line.
    Json,
}

/// What has to hold for a key that is there.
#[derive(Debug, Args)]
pub struct WriteOptions {
    /// Only if the key is there
    #[arg(long, conflicts_with = "if_revision")]
    pub if_present: bool,

    /// Only if the key was last changed at this revision
    #[arg(long, value_name = "N")]
    pub if_revision: Option<u64>,

    /// Do this once, however often it is sent with this word [default: a random one]
    #[arg(long, value_name = "WORD")]
    pub idempotency_key: Option<String>,
}

/// `get`
#[derive(Debug, Args)]
pub struct Get {
    /// The key
    pub key: String,
    /// Take what a node holds, which may be behind
    #[arg(long)]
    pub stale: bool,
    #[command(flatten)]
    pub common: Common,
}

/// `put`
#[derive(Debug, Args)]
pub struct Put {
    /// The key
    pub key: String,
    #[command(flatten)]
    pub value: Input,
    /// Let the key expire after this time, such as 500ms, 30s, 5m, 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub ttl: Option<Duration>,
    /// Only if the key is not there
    #[arg(long, conflicts_with_all = ["if_present", "if_revision"])]
    pub if_missing: bool,
    #[command(flatten)]
    pub options: WriteOptions,
    #[command(flatten)]
    pub common: Common,
}

/// A value, or another body.
#[derive(Debug, Args)]
pub struct Input {
    /// Value to send; `-` reads it from standard input
    pub value: Option<OsString>,
    /// Read the value from this file
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    pub file: Option<PathBuf>,
}

/// `delete`
#[derive(Debug, Args)]
pub struct Delete {
    /// The key
    #[arg(required_unless_present = "prefix")]
    pub key: Option<String>,
    /// Remove all keys that begin with this, which is not empty
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    #[arg(conflicts_with_all = ["key", "if_present", "if_revision", "idempotency_key"])]
    pub prefix: Option<String>,
    #[command(flatten)]
    pub options: WriteOptions,
    #[command(flatten)]
    pub common: Common,
}

/// `touch`
#[derive(Debug, Args)]
pub struct Touch {
    /// The key
    pub key: String,
    /// How long it is to stay from now on, such as 500ms, 30s, 5m, 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub ttl: Duration,
    #[command(flatten)]
    pub options: WriteOptions,
    #[command(flatten)]
    pub common: Common,
}

/// `list`
#[derive(Debug, Args)]
pub struct List {
    /// What the keys begin with; all keys if it is not given
    #[arg(default_value = "", hide_default_value = true)]
    pub prefix: String,
    /// From this key on
    #[arg(long, value_name = "KEY")]
    pub start: Option<String>,
    /// Up to this key, and without it
    #[arg(long, value_name = "KEY")]
    pub end: Option<String>,
    /// From the last key to the first
    #[arg(long)]
    pub reverse: bool,
    /// Without values
    #[arg(long)]
    pub keys_only: bool,
    /// So many keys at most
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Take what a node holds, which may be behind
    #[arg(long)]
    pub stale: bool,
    #[command(flatten)]
    pub common: Common,
}

/// `txn`
#[derive(Debug, Args)]
pub struct Txn {
    #[command(flatten)]
    pub body: Input,
    /// Do this once, however often it is sent with this word [default: a random one]
    #[arg(long, value_name = "WORD")]
    pub idempotency_key: Option<String>,
    #[command(flatten)]
    pub common: Common,
}

/// `watch`
#[derive(Debug, Args)]
pub struct Watch {
    /// What the keys begin with; all keys if it is not given
    #[arg(default_value = "", hide_default_value = true)]
    pub prefix: String,
    /// Watch this one key
    #[arg(long, conflicts_with = "prefix")]
    pub key: Option<String>,
    /// Begin with the changes of this revision
    #[arg(long, value_name = "REVISION", conflicts_with = "initial")]
    pub from: Option<u64>,
    /// Begin with what is there now
    #[arg(long)]
    pub initial: bool,
    #[command(flatten)]
    pub common: Common,
}

/// `completions`
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Shells that can complete commands.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// The Z shell.
    Zsh,
    /// fish.
    Fish,
}

impl Command {
    /// Whom to ask; for what asks nobody, whom it would.
    pub fn common(&self) -> Common {
        match self {
            Command::Get(get) => get.common.clone(),
            Command::Put(put) => put.common.clone(),
            Command::Delete(delete) => delete.common.clone(),
            Command::List(list) => list.common.clone(),
            Command::Txn(txn) => txn.common.clone(),
            Command::Watch(watch) => watch.common.clone(),
            Command::Touch(touch) => touch.common.clone(),
            Command::Status(common) | Command::Members(common) => common.clone(),
            Command::Completions(_) => Common { endpoints: Vec::new(), output: Format::default(), retry_for: None },
        }
    }
}

/// A time to retry for, which may be none at all.
fn retry_time(text: &str) -> Result<Duration, String> {
    let expected = "must be an integer and a unit, such as 0s, 500ms, 10s or 5m";
    milliseconds(text).map(Duration::from_millis).ok_or_else(|| expected.to_owned())
}

/// A time to live as the API has it.
fn duration(text: &str) -> Result<Duration, ApiError> {
    ttl_ms(text).map(Duration::from_millis)
}
