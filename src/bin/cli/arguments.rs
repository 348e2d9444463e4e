//! The commands and their options.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};
use raft_key_value::config::{Config, Endpoint, parse_endpoint};
use raft_key_value::duration::{milliseconds, ttl_ms};
use raft_key_value::secret::Secret;
use raft_key_value::tls::ClientTls;
use raft_key_value::tls::issue::{NewNode, parse_new_node};
use raft_key_value::{ClientError, ExampleClient, NodeId};

use super::failure::Failure;

// All that the program does besides running a node. Not a doc comment: clap would use it as the program's description.
#[derive(Debug, Subcommand)]
#[command(subcommand_help_heading = "Commands")]
pub enum Command {
    /// Print the value of a key
    #[command(after_help = "\
Examples:
  raft-key-value get config/color                    the bytes of the value, and nothing else
  raft-key-value get config/color --output json      with revision, version and remaining TTL
  raft-key-value get photo > photo.jpg

The exit code is 1 if the key does not exist.")]
    Get(Get),

    /// Set a key
    #[command(after_help = "\
Examples:
  raft-key-value put config/color green
  raft-key-value put photo --file photo.jpg
  date | raft-key-value put now -                    store standard input unchanged
  raft-key-value put lock me --if-missing --ttl 30s
  raft-key-value put config/color blue --if-revision 7
  raft-key-value put temperature -- -5               a value that begins with a dash

The exit code is 1 if the condition does not hold, and 74 if the key was set but the output
cannot be written.")]
    Put(Put),

    /// Delete a key, or all keys with a prefix
    #[command(after_help = "\
Examples:
  raft-key-value delete config/color
  raft-key-value delete config/color --if-revision 7
  raft-key-value delete --prefix config/

Deleting a key that does not exist succeeds, except with --if-present (exit code 1). The exit
code is 74 if the keys were deleted but the output cannot be written.")]
    Delete(Delete),

    /// List keys and values
    #[command(after_help = "\
Examples:
  raft-key-value list                                all keys, as a table
  raft-key-value list config/ --keys-only            one key per line
  raft-key-value list log/ --reverse --limit 10      the last ten
  raft-key-value list --output json | jq -r .key     one object per line, with whole values

All keys are shown as of one revision, however slowly the output is read: the command reads
ahead, into memory and then into a temporary file.")]
    List(List),

    /// Compare keys, then apply one of two lists of operations atomically
    #[command(after_help = r#"Examples:
  raft-key-value txn '{"compare":[{"key":"color","value":"green"}],
                       "success":[{"put":{"key":"color","value":"blue"}}],
                       "failure":[{"get":{"key":"color"}}]}'
  raft-key-value txn --file change.json
  generate-changes | raft-key-value txn -            read the transaction from standard input

The exit code is 1 if a comparison does not hold; the operations in "failure" are then applied.
It is 74 if the transaction was applied but the output cannot be written."#)]
    #[command(mut_arg("value", |arg| arg.help("Transaction to apply, as JSON; `-` reads it from standard input")))]
    #[command(mut_arg("file", |arg| arg.help("Read the transaction from this file")))]
    Txn(Txn),

    /// Print changes as they happen, one per line
    #[command(after_help = "\
Examples:
  raft-key-value watch                               every change from now on
  raft-key-value watch config/ --initial             the current keys, then every change
  raft-key-value watch --key config/color --from 7   the changes since revision 7, then every change
  raft-key-value watch --output json | while read -r event; do …; done

No change is skipped or printed twice, even if nodes fail and return. While no endpoint can
serve the watch, the command prints a message to standard error and retries until --retry-for
has passed. It ends when its output is closed. The exit code is 1 if the changes since --from
are no longer kept.")]
    Watch(Watch),

    /// Set a new TTL for a key
    #[command(after_help = "\
Examples:
  raft-key-value touch lock --ttl 30s
  raft-key-value touch lock --ttl 30s --if-revision 7      only while I still hold the lock

The exit code is 1 if the key does not exist or the condition does not hold, and 74 if the TTL
was set but the output cannot be written.")]
    Touch(Touch),

    /// Show the node, role, term and revision of each endpoint, and whether it serves requests
    #[command(after_help = "\
Examples:
  raft-key-value status
  raft-key-value status --endpoints 10.0.0.1:21001,10.0.0.2:21001 --output json

Each endpoint is tried once. The exit code is 3 if any of them does not serve requests.")]
    #[command(mut_arg("retry_for", |arg| arg.hide(true)))]
    Status(Common),

    /// Show or change the members of the cluster
    #[command(after_help = "\
Examples:
  raft-key-value members                             the same as `members list`
  raft-key-value members list --output json
  raft-key-value members add 4 10.0.0.4:21001
  raft-key-value members replace 3 4 10.0.0.4:21001
  raft-key-value members remove 3 --dry-run")]
    #[command(args_conflicts_with_subcommands = true)]
    Members(Members),

    /// Find problems of the cluster, and what to do about each
    #[command(after_help = "\
Examples:
  raft-key-value doctor
  raft-key-value doctor --endpoints 10.0.0.1:21001,10.0.0.2:21001 --output json

The command queries all endpoints and all members that they name. Each finding has a severity, a
code, an observation and an advice. It works without a leader, and if only some nodes respond. The
exit code is 0 without findings or with infos only, 1 after a warning, and 4 if the cluster does
not serve requests, or soon will not.")]
    #[command(mut_arg("retry_for", |arg| arg.hide(true)))]
    Doctor(Common),

    /// Commands about the cluster as a whole
    Cluster(Cluster),

    /// Save, inspect, restore and load snapshots
    #[command(subcommand)]
    Snapshot(Snapshot),

    /// Verify the directory of a stopped node, without changing it
    #[command(after_help = "\
Examples:
  raft-key-value check raft-key-value-data/node-1

Every file is read. The exit code is 65 if one of them is damaged, even if a node would start
without it, and 73 if a node runs on the directory.")]
    Check(Check),

    /// Print all that is in the directory of a stopped node, as lines of JSON
    #[command(after_help = "\
Examples:
  raft-key-value dump raft-key-value-data/node-1 | jq 'select(.kind == \"entry\")'

The newest snapshot comes first, then the records of the log. Of a damaged file, what precedes the
damage is printed, and the exit code is 65.")]
    Dump(Dump),

    /// Make a stopped node the first node of a new cluster, after a majority was lost for good
    #[command(after_help = "\
Examples:
  raft-key-value recover --data-dir raft-key-value-data --id 2          show what would be lost
  raft-key-value recover --data-dir raft-key-value-data --id 2 --i-accept-that-writes-may-be-lost

This is the last resort: writes that this node does not have are lost, although clients were told
that they are done. Recover the node with the highest index, and only one. All other nodes of the
former cluster must stay down, and join with empty directories.")]
    Recover(Recover),

    /// Create, list and revoke tokens
    #[command(subcommand)]
    Token(TokenCommand),

    /// Require tokens, or end that
    #[command(subcommand)]
    Auth(AuthCommand),

    /// Make a voter the leader
    #[command(after_help = "\
Examples:
  raft-key-value leader 2

Requests wait for a few milliseconds meanwhile. The node must respond and be caught up; otherwise
nothing changes and the exit code is 2.")]
    Leader(LeaderTransfer),

    /// Make the certificates of a cluster that speaks TLS
    #[command(subcommand)]
    Tls(TlsCommand),

    /// Print or check the settings of a node, without starting it
    #[command(subcommand)]
    Config(ConfigCommand),

    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  source <(raft-key-value completions bash)
  raft-key-value completions zsh > ~/.zfunc/_raft-key-value
  raft-key-value completions fish > ~/.config/fish/completions/raft-key-value.fish")]
    Completions(Completions),
}

/// `tls`
#[derive(Debug, Subcommand)]
pub enum TlsCommand {
    /// Make a private CA, and certificates for the nodes and clients of a cluster
    #[command(after_help = "\
Examples:
  raft-key-value tls init --dir tls --node 1=10.0.0.1,n1.example --node 2=10.0.0.2 --node 3=10.0.0.3
  raft-key-value tls init --dir tls --node 4=10.0.0.4          another node, later, by the same CA

The directory then has:
  ca.pem, ca-key.pem            the CA. Every node and client needs ca.pem. Keep ca-key.pem offline:
                                whoever has it can make certificates for any node.
  node-1.pem, node-1-key.pem    for node 1 alone. The certificate names the node's id (rkv:node:1)
                                and the hosts by which clients reach it.
  client.pem, client-key.pem    for clients; needed only with --tls-client-auth.

Start each node with its own files, and clients with the CA's:
  raft-key-value --id 1 --http-addr 10.0.0.1:21001 --tls-cert node-1.pem --tls-key node-1-key.pem \\
      --tls-ca ca.pem --bootstrap
  raft-key-value get foo --endpoints 10.0.0.1:21001 --tls-ca ca.pem
  curl --cacert ca.pem https://10.0.0.1:21001/v1/kv/foo

No file is overwritten. To renew the certificate of a node, delete its two files and run the command
again; running nodes notice the new files and need no restart.")]
    Init(TlsInit),
}

/// `tls init`
#[derive(Debug, Args)]
pub struct TlsInit {
    /// Directory for the files; it is created with mode 0700 if it does not exist
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Node to make a certificate for: its id, and the names and IP addresses by which clients reach it; may be repeated
    #[arg(long = "node", value_name = "ID=HOST,...", required = true, value_parser = parse_new_node)]
    pub nodes: Vec<NewNode>,
    /// Days for which the certificates of nodes and clients are valid (the CA's is valid for 3650)
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
    /// Output format
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// `token`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create a token, and print it once
    #[command(after_help = "\
Examples:
  raft-key-value token create app --role write --prefix app/ --ttl 12h
  raft-key-value token create ci --role read > ci.token

Only the token is written to standard output. The cluster stores a hash of it,
so no later command can print it. If the output is lost, revoke the token and
create it again.")]
    Create(TokenCreate),
    /// List the tokens, without their texts
    List(Common),
    /// Revoke a token; its watches end
    Revoke(TokenRevoke),
}

/// `token create`
#[derive(Debug, Args)]
pub struct TokenCreate {
    /// Name of the token: letters, digits, `.`, `_` and `-`
    pub name: String,
    /// What the token allows; each role allows what those before it allow
    #[arg(long, value_name = "ROLE", value_enum)]
    pub role: RoleName,
    /// Beginning of the keys that the token is for; may be given several times [default: all keys]
    #[arg(long = "prefix", value_name = "PREFIX")]
    pub prefixes: Vec<String>,
    /// Expire the token after this duration (30s, 5m, 12h, 7d)
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<String>,
    #[command(flatten)]
    pub common: Common,
}

/// `token revoke`
#[derive(Debug, Args)]
pub struct TokenRevoke {
    /// Name of the token
    pub name: String,
    #[command(flatten)]
    pub common: Common,
}

/// The role of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleName {
    /// Read keys, the status of the cluster, and metrics
    Read,
    /// Write keys
    Write,
    /// Manage the cluster and tokens, and take backups
    Admin,
}

/// `auth`
#[derive(Debug, Subcommand)]
pub enum AuthCommand {
    /// Require a token with every request again, after `disable`
    Enable(Common),
    /// Stop requiring tokens: every client that reaches a node can do everything
    Disable(Common),
}

/// What to do with the settings of a node.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting that a node with these flags would use, and where it comes from, as a file for --config
    #[command(
        override_usage = "raft-key-value config print [OPTIONS]",
        after_long_help = "\
Examples:
  raft-key-value config print --config node1.toml
  raft-key-value config print --id 1 --http-addr 127.0.0.1:21001 > node1.toml

The id and the address can be given by flags, by environment variables or in the file of --config."
    )]
    Print(Box<NodeSettings>),
    /// Check the settings that a node with these flags would use; the exit code is 2 if it would reject one
    #[command(
        override_usage = "raft-key-value config check [OPTIONS]",
        after_long_help = "\
Examples:
  raft-key-value config check --config node1.toml
  raft-key-value config check --id 1 --http-addr 127.0.0.1:21001

The id and the address can be given by flags, by environment variables or in the file of --config."
    )]
    Check(Box<NodeSettings>),
}

/// The flags of a node.
#[derive(Debug, Args)]
pub struct NodeSettings {
    #[command(flatten)]
    pub config: Config,
}

#[derive(Debug, Args)]
pub struct LeaderTransfer {
    /// Id of the node that is to lead
    #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,

    #[command(flatten)]
    pub common: Common,
}

/// `cluster`
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = false)]
pub struct Cluster {
    #[command(subcommand)]
    pub command: ClusterCommand,
}

/// Commands about the cluster as a whole.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show each member: its role, version, lag, disk and clock
    #[command(after_help = "\
Examples:
  raft-key-value cluster status
  raft-key-value cluster status --output json        one object, as GET /v1/cluster returns it

One node queries all members. The exit code is 3 if the leader does not respond to that node, so
that the output is incomplete.")]
    Status(Common),

    /// Find problems of the cluster, as `doctor` does
    #[command(mut_arg("retry_for", |arg| arg.hide(true)))]
    Doctor(Common),
}

/// Options of every command that needs a cluster.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Addresses of nodes to send requests to, HOST:PORT, http://HOST:PORT or https://HOST:PORT, separated by commas
    #[arg(
        long,
        env = "RKV_ENDPOINTS",
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = parse_endpoint,
        default_value = "127.0.0.1:21001,127.0.0.1:21002,127.0.0.1:21003"
    )]
    endpoints: Vec<Option<Endpoint>>,

    /// Speak TLS with the nodes, whose certificates must be signed by the CA in this file
    #[arg(long, env = "RKV_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// Certificate to show to the nodes, in PEM, if they require one
    #[arg(long, env = "RKV_TLS_CERT", value_name = "FILE", requires = "tls_ca", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, in PEM
    #[arg(long, env = "RKV_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// File with the token to send; only its owner may be able to read it; RKV_TOKEN may have the token itself
    #[arg(long, env = "RKV_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Output format
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,

    /// Retry for this long while no node can serve the request (500ms, 10s, 5m); 0s tries once
    /// [default: 10s; watch: forever]
    #[arg(long, value_name = "DURATION", value_parser = retry_time)]
    pub retry_for: Option<Duration>,
}

/// How to connect to nodes.
#[derive(Clone, Debug)]
pub struct Connector {
    tls: Option<ClientTls>,
    token: Option<Secret>,
}

impl Connector {
    /// A client that sends requests to one of these nodes.
    ///
    /// # Errors
    ///
    /// See [`ExampleClient::connect`].
    pub fn connect(
        &self,
        endpoints: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<ExampleClient, ClientError> {
        let mut client = ExampleClient::connect(endpoints)?;
        if let Some(tls) = &self.tls {
            client = client.with_tls(tls);
        }
        Ok(match &self.token {
            Some(token) => client.with_token(token.clone()),
            None => client,
        })
    }
}

impl Common {
    /// The addresses of the endpoints, `HOST:PORT`.
    pub fn endpoints(&self) -> Vec<String> {
        self.endpoints.iter().flatten().map(|Endpoint { addr, .. }| addr.clone()).collect()
    }

    /// How to connect to them.
    ///
    /// # Errors
    ///
    /// If an endpoint has another scheme than `--tls-ca` implies, or a file or the token cannot be used.
    pub fn connector(&self) -> Result<Connector, Failure> {
        let has_tls = self.tls_ca.is_some();
        let mut endpoints = self.endpoints.iter().flatten();
        if let Some(other) = endpoints.find(|endpoint| endpoint.is_tls.is_some_and(|is_tls| is_tls != has_tls)) {
            let addr = &other.addr;
            return Err(Failure::Usage(if has_tls {
                format!("the endpoint http://{addr} does not go with --tls-ca: write https://{addr} or {addr}")
            } else {
                format!("the endpoint https://{addr} needs --tls-ca FILE, the CA of the nodes' certificates")
            }));
        }
        let tls = match (&self.tls_ca, &self.tls_cert, &self.tls_key) {
            (None, ..) => None,
            (Some(ca), Some(certificate), Some(key)) => Some(ClientTls::from_files(ca, certificate, key)),
            (Some(ca), ..) => Some(ClientTls::from_ca(ca)),
        };
        let tls = tls.transpose().map_err(|error| Failure::Usage(format!("TLS: {error}")))?;
        Ok(Connector { tls, token: self.token()? })
    }

    /// The token that requests have.
    fn token(&self) -> Result<Option<Secret>, Failure> {
        let token = match (&self.token_file, std::env::var("RKV_TOKEN")) {
            (Some(file), _) => Some(Secret::read(file).map_err(|error| format!("--token-file: {error}"))),
            (None, Ok(text)) if !text.is_empty() => {
                Some(Secret::new(&text).map_err(|error| format!("RKV_TOKEN: {error}")))
            }
            (None, _) => None,
        };
        token.transpose().map_err(Failure::Usage)
    }
}

/// Format of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Readable text
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

/// Options of a write to one key.
#[derive(Debug, Args)]
pub struct WriteOptions {
    /// Succeed only if the key exists
    #[arg(long, conflicts_with = "if_revision")]
    pub if_present: bool,

    /// Succeed only if the key was last changed at this revision
    #[arg(long, value_name = "N")]
    pub if_revision: Option<u64>,

    /// Apply a request with this key at most once [default: a random key]
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
}

/// `get`
#[derive(Debug, Args)]
pub struct Get {
    /// Key to print
    pub key: String,
    /// Read from any node; the data may be stale
    #[arg(long)]
    pub stale: bool,
    #[command(flatten)]
    pub common: Common,
}

/// `put`
#[derive(Debug, Args)]
pub struct Put {
    /// Key to set
    pub key: String,
    #[command(flatten)]
    pub value: Input,
    /// Expire the key after this duration (500ms, 30s, 5m, 12h, 7d)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub ttl: Option<Duration>,
    /// Succeed only if the key does not exist
    #[arg(long, conflicts_with_all = ["if_present", "if_revision"])]
    pub if_missing: bool,
    #[command(flatten)]
    pub options: WriteOptions,
    #[command(flatten)]
    pub common: Common,
}

/// The value or body to send.
#[derive(Debug, Args)]
pub struct Input {
    /// Value to store; `-` reads it from standard input
    pub value: Option<OsString>,
    /// Read the value from this file
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    pub file: Option<PathBuf>,
}

/// `delete`
#[derive(Debug, Args)]
pub struct Delete {
    /// Key to delete
    #[arg(required_unless_present = "prefix")]
    pub key: Option<String>,
    /// Delete all keys with this prefix, which must not be empty
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
    /// Key whose TTL to set
    pub key: String,
    /// Expire the key after this duration from now (500ms, 30s, 5m, 12h, 7d)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub ttl: Duration,
    #[command(flatten)]
    pub options: WriteOptions,
    #[command(flatten)]
    pub common: Common,
}

/// `list`
#[derive(Debug, Args)]
pub struct List {
    /// Prefix of the keys to list [default: all keys]
    #[arg(default_value = "", hide_default_value = true)]
    pub prefix: String,
    /// Start at this key
    #[arg(long, value_name = "KEY")]
    pub start: Option<String>,
    /// End before this key
    #[arg(long, value_name = "KEY")]
    pub end: Option<String>,
    /// List from the last key to the first
    #[arg(long)]
    pub reverse: bool,
    /// Omit the values
    #[arg(long)]
    pub keys_only: bool,
    /// List at most this many keys
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Read from any node; the data may be stale
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
    /// Apply a request with this key at most once [default: a random key]
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    #[command(flatten)]
    pub common: Common,
}

/// `watch`
#[derive(Debug, Args)]
pub struct Watch {
    /// Prefix of the keys to watch [default: all keys]
    #[arg(default_value = "", hide_default_value = true)]
    pub prefix: String,
    /// Watch one key instead of a prefix
    #[arg(long, conflicts_with = "prefix")]
    pub key: Option<String>,
    /// Start with the changes of this revision
    #[arg(long, value_name = "REVISION", conflicts_with = "initial")]
    pub from: Option<u64>,
    /// Print the current keys first
    #[arg(long)]
    pub initial: bool,
    #[command(flatten)]
    pub common: Common,
}

/// `members`
#[derive(Debug, Args)]
pub struct Members {
    #[command(subcommand)]
    pub action: Option<MembersAction>,
    #[command(flatten)]
    pub common: Common,
}

/// The commands below `members`.
#[derive(Debug, Subcommand)]
pub enum MembersAction {
    /// Show the members
    List(Common),

    /// Add a running node with an empty directory, and make it a voter once it has all data
    #[command(after_help = "\
Examples:
  raft-key-value members add 4 10.0.0.4:21001
  raft-key-value members add 4 10.0.0.4:21001 --learner

A node that was started with --join does this by itself. Repeating the command continues it.")]
    Add(AddArguments),

    /// Make a learner a voter once it has all data
    Promote(OneMember),

    /// Put a running node with an empty directory in the place of a member, which may be down
    #[command(after_help = "\
Examples:
  raft-key-value members replace 3 4 10.0.0.4:21001

Repeating the command continues it.")]
    Replace(ReplaceArguments),

    /// Remove a member, which may be down
    #[command(after_help = "\
Examples:
  raft-key-value members remove 3
  raft-key-value members remove 3 --dry-run

The cluster rejects a removal after which no majority responds, or no further node may fail.")]
    Remove(OneMember),
}

/// Options of every membership change.
#[derive(Debug, Args)]
pub struct ChangeOptions {
    /// Print what would happen, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Make the change in spite of its risk: no write succeeds until enough nodes are back, or no further node may fail
    #[arg(long)]
    pub force: bool,
    /// Wait this long for the node to have all data (500ms, 10s, 5m)
    #[arg(long, value_name = "DURATION", value_parser = retry_time, default_value = "10m")]
    pub wait: Duration,
    #[command(flatten)]
    pub common: Common,
}

/// `members add`
#[derive(Debug, Args)]
pub struct AddArguments {
    /// Id of the node
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    /// Address of the node for other nodes, HOST:PORT
    pub address: String,
    /// Keep the node a learner, which receives all data and does not vote
    #[arg(long)]
    pub learner: bool,
    #[command(flatten)]
    pub options: ChangeOptions,
}

/// `members replace`
#[derive(Debug, Args)]
pub struct ReplaceArguments {
    /// Id of the member to replace
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub old: u64,
    /// Id of the new node
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    /// Address of the new node for other nodes, HOST:PORT
    pub address: String,
    #[command(flatten)]
    pub options: ChangeOptions,
}

/// `members promote` and `members remove`
#[derive(Debug, Args)]
pub struct OneMember {
    /// Id of the member
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    #[command(flatten)]
    pub options: ChangeOptions,
}

impl Members {
    fn common(&self) -> &Common {
        match &self.action {
            None => &self.common,
            Some(MembersAction::List(common)) => common,
            Some(MembersAction::Add(add)) => &add.options.common,
            Some(MembersAction::Replace(replace)) => &replace.options.common,
            Some(MembersAction::Promote(one) | MembersAction::Remove(one)) => &one.options.common,
        }
    }
}

/// `snapshot`
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Save a snapshot of a running cluster in a file
    #[command(after_help = "\
Examples:
  raft-key-value snapshot save backup.snap
  raft-key-value snapshot save backup.snap --stale --endpoints 10.0.0.2:21001

The file appears only once it is complete, verified and synced; it replaces an older one of the same
name. Until then it is FILE.part. Writes continue meanwhile.")]
    Save(SnapshotSave),

    /// Verify a snapshot file, and show what is in it
    #[command(after_help = "\
Examples:
  raft-key-value snapshot inspect backup.snap
  raft-key-value snapshot inspect backup.snap --output json | jq .hash

The files of a node, in its directory `snapshots`, can be inspected, too. The exit code is 65 if the
file is damaged.")]
    Inspect(SnapshotInspect),

    /// Make the first node of a new cluster from a snapshot file
    #[command(after_help = "\
Examples:
  raft-key-value snapshot restore backup.snap --data-dir raft-key-value-data --id 1 \\
    --advertise-addr 127.0.0.1:21001
  raft-key-value --id 1 --http-addr 127.0.0.1:21001 --data-dir raft-key-value-data

The node has the keys, revisions and remaining TTLs of the snapshot. Other nodes join it with empty
directories. DIR/node-N must be empty or missing.")]
    Restore(SnapshotRestore),

    /// Put keys of a snapshot file into a running cluster
    #[command(after_help = "\
Examples:
  raft-key-value snapshot load backup.snap --prefix config/

Keys are put in transactions of up to 100. Other keys with the prefix remain. A key keeps the TTL
that it had left. A repeated command puts only what has changed since.")]
    Load(SnapshotLoad),
}

/// `snapshot save`
#[derive(Debug, Args)]
pub struct SnapshotSave {
    /// File to write
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Save the state of any one node, which may be stale; needs no leader
    #[arg(long)]
    pub stale: bool,
    #[command(flatten)]
    pub common: Common,
}

/// `snapshot inspect`
#[derive(Debug, Args)]
pub struct SnapshotInspect {
    /// File to read
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Format of the output
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// `snapshot restore`
#[derive(Debug, Args)]
pub struct SnapshotRestore {
    /// File to read
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Data directory of the new node, which gets the directory `node-<ID>`
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Id of the new node
    #[arg(long, value_name = "ID")]
    pub id: NodeId,
    /// Address of the new node that other nodes dial
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_addr: String,
    /// Format of the output
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// `snapshot load`
#[derive(Debug, Args)]
pub struct SnapshotLoad {
    /// File to read
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Prefix of the keys to load; "" for all keys
    #[arg(long)]
    pub prefix: String,
    #[command(flatten)]
    pub common: Common,
}

/// `check`
#[derive(Debug, Args)]
pub struct Check {
    /// Directory of the node, for example `raft-key-value-data/node-1`
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Format of the output
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// `dump`
#[derive(Debug, Args)]
pub struct Dump {
    /// Directory of the node, for example `raft-key-value-data/node-1`
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// `recover`
#[derive(Debug, Args)]
pub struct Recover {
    /// Data directory of the node, which has the directory `node-<ID>`
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Id of the node
    #[arg(long, value_name = "ID")]
    pub id: NodeId,
    /// Address of the node that other nodes dial [default: its address in the former cluster]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_addr: Option<String>,
    /// Recover the node; without this flag, show what would be lost
    #[arg(long = "i-accept-that-writes-may-be-lost")]
    pub accepts_loss: bool,
    /// Format of the output
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// `completions`
#[derive(Debug, Args)]
pub struct Completions {
    /// Shell to print the script for
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Shells with completion scripts.
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
    /// The options of a command that needs a cluster; `None` for one that does not.
    pub fn common(&self) -> Option<Common> {
        Some(match self {
            Command::Get(get) => get.common.clone(),
            Command::Put(put) => put.common.clone(),
            Command::Delete(delete) => delete.common.clone(),
            Command::List(list) => list.common.clone(),
            Command::Txn(txn) => txn.common.clone(),
            Command::Watch(watch) => watch.common.clone(),
            Command::Touch(touch) => touch.common.clone(),
            Command::Status(common) | Command::Doctor(common) => common.clone(),
            Command::Cluster(cluster) => match &cluster.command {
                ClusterCommand::Status(common) | ClusterCommand::Doctor(common) => common.clone(),
            },
            Command::Members(members) => members.common().clone(),
            Command::Token(token) => match token {
                TokenCommand::Create(create) => create.common.clone(),
                TokenCommand::List(common) => common.clone(),
                TokenCommand::Revoke(revoke) => revoke.common.clone(),
            },
            Command::Auth(AuthCommand::Enable(common) | AuthCommand::Disable(common)) => common.clone(),
            Command::Leader(leader) => leader.common.clone(),
            Command::Snapshot(Snapshot::Save(save)) => save.common.clone(),
            Command::Snapshot(Snapshot::Load(load)) => load.common.clone(),
            Command::Snapshot(Snapshot::Inspect(_) | Snapshot::Restore(_))
            | Command::Check(_)
            | Command::Dump(_)
            | Command::Recover(_)
            | Command::Tls(_)
            | Command::Config(_)
            | Command::Completions(_) => return None,
        })
    }
}

/// Parses `--retry-for`, which may be zero.
fn retry_time(text: &str) -> Result<Duration, String> {
    let expected = "must be an integer and a unit, such as 0s, 500ms, 10s or 5m";
    milliseconds(text).map(Duration::from_millis).ok_or_else(|| expected.to_owned())
}

/// Parses `--ttl`.
fn duration(text: &str) -> Result<Duration, &'static str> {
    ttl_ms(text).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use clap::{Command as Clap, CommandFactory};
    use raft_key_value::config::Config;

    use super::super::with_commands;

    /// No help text is wrapped where it was not written to be, and `config` requires nothing that a file may have.
    ///
    /// Method: render the help of each command, and look for the text that follows its options.
    #[test]
    fn help_texts_fit() {
        fn check(command: &mut Clap) {
            let written = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
            let help = command.render_long_help().to_string();
            for line in written.iter().flat_map(|text| text.lines()) {
                assert!(help.lines().any(|shown| shown == line), "{}: {line}", command.get_name());
            }
            command.get_subcommands_mut().for_each(check);
        }
        let mut program = with_commands(Config::command());
        program.build();
        check(&mut program);
        for name in ["check", "print"] {
            let config = program.find_subcommand_mut("config").unwrap().find_subcommand_mut(name).unwrap();
            let help = config.render_long_help().to_string();
            assert!(help.contains(&format!("Usage: raft-key-value config {name} [OPTIONS]\n")), "{help}");
            assert!(!help.contains("Exit codes of a node"), "{help}");
        }
    }
}
