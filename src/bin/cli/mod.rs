//! The commands for users of a cluster.
//!
//! | module | content |
//! | --- | --- |
//! | `arguments` | the commands and their options |
//! | `keys` | commands about keys and values |
//! | `cluster` | `status` |
//! | `members` | `members` and the commands below it |
//! | `snapshot` | commands about snapshot files |
//! | `tokens` | `token` and `auth` |
//! | `stopped` | commands about the directory of a stopped node |
//! | `progress` | progress of long commands |
//! | `doctor` | problems of a cluster |
//! | `output` | text and JSON on standard output |
//! | `spool` | output that is accepted faster than it is read |
//! | `failure` | messages and exit codes of commands that fail |
//! | `settings` | the settings of a node: their file, and the commands that print and check them |
//! | `tls` | certificates |
//! | `usage` | messages about invalid settings, a node's too |

mod arguments;
mod cluster;
mod doctor;
mod failure;
mod keys;
mod members;
mod output;
mod progress;
mod settings;
mod snapshot;
mod spool;
mod stopped;
mod tls;
mod tokens;
mod usage;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, Command as Clap, FromArgMatches, Subcommand};
use raft_key_value::ExampleClient;
use raft_key_value::config::{ConfigFile, RETRY_DEADLINE_DEFAULT};

use self::arguments::{ClusterCommand, Command, Common, Snapshot, TlsCommand};
pub use self::failure::EXIT_OUTPUT;
use self::failure::Failure;
use self::output::Output;
pub use self::settings::{config_file, with_config_file};
pub use self::usage::{Variables, one_line};

/// Adds the commands to the command line of a node.
pub fn with_commands(node: Clap) -> Clap {
    Command::augment_subcommands(node).args_conflicts_with_subcommands(true).subcommand_negates_reqs(true)
}

/// Makes the command line ignore environment variables that do not apply.
///
/// An empty variable counts as unset. With a command, the variables of a node are ignored: a command that runs in the
/// environment of a node must not fail because of them. Only `config` is about them.
pub fn with_environment(program: Clap, first_argument: Option<OsString>) -> Clap {
    let is_command = first_argument.is_some_and(|name| program.find_subcommand(name).is_some());
    program
        .mut_args(|arg| {
            let ignored = is_command || is_empty(&arg);
            unset(arg, ignored)
        })
        .mut_subcommands(without_empty_variables)
}

fn is_empty(arg: &Arg) -> bool {
    arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty())
}

fn unset(arg: Arg, ignored: bool) -> Arg {
    if ignored { arg.env(None::<&'static str>) } else { arg }
}

/// Makes a command, and those below it, ignore empty variables.
fn without_empty_variables(command: Clap) -> Clap {
    let command = command.mut_args(|arg| {
        let ignored = is_empty(&arg);
        unset(arg, ignored)
    });
    command.mut_subcommands(without_empty_variables)
}

/// Runs a command, and returns its exit code.
///
/// # Errors
///
/// If the arguments are invalid.
pub fn run(matches: &clap::ArgMatches, program: &mut Clap, file: Option<&ConfigFile>) -> Result<ExitCode, clap::Error> {
    let command = Command::from_arg_matches(matches)?;
    let ended = match command {
        Command::Completions(completions) => completions.print(program),
        Command::Config(command) => settings::run(&command, matches, program, file),
        command => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(execute(command)),
            Err(error) => Err(Failure::Input(format!("cannot start the runtime: {error}"))),
        },
    };
    Ok(failure::exit_code(ended))
}

async fn execute(command: Command) -> Result<(), Failure> {
    let command = match command {
        Command::Snapshot(Snapshot::Inspect(inspect)) => {
            return snapshot::inspect(Output::new(inspect.output), inspect);
        }
        Command::Snapshot(Snapshot::Restore(restore)) => {
            return snapshot::restore(Output::new(restore.output), restore).await;
        }
        Command::Check(check) => return stopped::check(Output::new(check.output), check),
        Command::Dump(dump) => return stopped::dump(&dump),
        Command::Tls(TlsCommand::Init(init)) => return tls::init(Output::new(init.output), &init),
        Command::Recover(recover) => return stopped::recover(Output::new(recover.output), recover).await,
        command => command,
    };
    let Some(common) = command.common() else { return Ok(()) };
    let default = match &command {
        Command::Watch(_) => Duration::MAX,
        _ => RETRY_DEADLINE_DEFAULT,
    };
    let (client, output) = (common.client(default)?, common.output());
    match command {
        Command::Get(get) => keys::get(&client, output, get).await,
        Command::Put(put) => keys::put(&client, output, put).await,
        Command::Delete(delete) => keys::delete(&client, output, delete).await,
        Command::Touch(touch) => keys::touch(&client, output, touch).await,
        Command::List(list) => keys::list(&client, output, list).await,
        Command::Txn(txn) => keys::txn(&client, output, txn).await,
        Command::Watch(watch) => keys::watch(&client, output, watch).await,
        Command::Status(common) => cluster::status(output, &common.connector()?, &common.endpoints()).await,
        Command::Doctor(common) => doctor::doctor(output, &common.connector()?, &common.endpoints()).await,
        Command::Cluster(command) => match command.command {
            ClusterCommand::Status(_) => cluster::cluster_status(&client, output).await,
            ClusterCommand::Doctor(common) => doctor::doctor(output, &common.connector()?, &common.endpoints()).await,
        },
        Command::Members(members) => members::run(&client, output, members.action).await,
        Command::Token(command) => tokens::token(&client, output, command).await,
        Command::Auth(command) => tokens::auth(&client, output, command).await,
        Command::Leader(leader) => cluster::leader(&client, output, leader.id).await,
        Command::Snapshot(Snapshot::Save(save)) => snapshot::save(&client, output, save).await,
        Command::Snapshot(Snapshot::Load(load)) => snapshot::load(&client, output, load).await,
        // They need no cluster, and are handled above and in `run`.
        Command::Snapshot(Snapshot::Inspect(_) | Snapshot::Restore(_))
        | Command::Check(_)
        | Command::Dump(_)
        | Command::Recover(_)
        | Command::Tls(_)
        | Command::Config(_)
        | Command::Completions(_) => Ok(()),
    }
}

impl Common {
    fn client(&self, retry_for: Duration) -> Result<ExampleClient, Failure> {
        let endpoints = self.endpoints();
        if endpoints.is_empty() {
            let message = "no endpoints: --endpoints or RKV_ENDPOINTS must list at least one HOST:PORT";
            return Err(Failure::Usage(message.to_owned()));
        }
        let client = self.connector()?.connect(endpoints).map_err(|error| Failure::Usage(error.to_string()))?;
        Ok(client.with_retry_deadline(self.retry_for.unwrap_or(retry_for)))
    }

    fn output(&self) -> Output {
        Output::new(self.output)
    }
}
