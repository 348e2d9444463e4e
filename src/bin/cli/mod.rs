//! The command line for those who use a cluster, beside that of a node.
//!
//! | module | question |
//! | --- | --- |
//! | `arguments` | what can be asked for |
//! | `keys` | how keys and values are read and changed |
//! | `cluster` | how the nodes are |
//! | `output` | how it is written |
//! | `spool` | how a slow reader holds up no listing |
//! | `failure` | how it ends if it fails |
//! | `usage` | how a wrong flag or variable is explained, a node's too |

mod arguments;
mod cluster;
mod failure;
mod keys;
mod output;
mod spool;
mod usage;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, Command as Clap, FromArgMatches, Subcommand};
use raft_key_value::ExampleClient;
use raft_key_value::config::RETRY_DEADLINE_DEFAULT;

use self::arguments::{Command, Common};
pub use self::failure::EXIT_OUTPUT;
use self::failure::Failure;
use self::output::Output;
pub use self::usage::{Variables, one_line};

/// The command line of a node, with the commands beside it.
pub fn with_commands(node: Clap) -> Clap {
    Command::augment_subcommands(node).args_conflicts_with_subcommands(true).subcommand_negates_reqs(true)
}

/// The same command line, reading only the environment variables that apply.
///
/// An empty variable counts as unset. If the first argument is a command, the variables of a node are not read at all:
/// a command that runs beside a node, with the same environment, must not fail because of them.
pub fn with_environment(program: Clap, first_argument: Option<OsString>) -> Clap {
    let is_command = first_argument.is_some_and(|name| program.find_subcommand(name).is_some());
    let is_empty = |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let unset = |arg: Arg, ignored: bool| if ignored { arg.env(None::<&'static str>) } else { arg };
    program
        .mut_args(|arg| {
            let ignored = is_command || is_empty(&arg);
            unset(arg, ignored)
        })
        .mut_subcommands(|command| {
            command.mut_args(|arg| {
                let ignored = is_empty(&arg);
                unset(arg, ignored)
            })
        })
}

/// Runs the command that was asked for; an error that does not fit a command is for the usage.
pub fn run(matches: &clap::ArgMatches, program: &mut Clap) -> Result<ExitCode, clap::Error> {
    let command = Command::from_arg_matches(matches)?;
    let ended = match command {
        Command::Completions(completions) => completions.print(program),
        command => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(execute(command)),
            Err(error) => Err(Failure::Input(format!("cannot start the runtime: {error}"))),
        },
    };
    Ok(failure::exit_code(ended))
}

async fn execute(command: Command) -> Result<(), Failure> {
    let common = command.common();
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
        Command::Status(common) => cluster::status(output, &common.endpoints()).await,
        Command::Members(_) => cluster::members(&client, output).await,
        Command::Completions(_) => Ok(()), // Done before, as it needs no cluster.
    }
}

impl Common {
    fn client(&self, retry_for: Duration) -> Result<ExampleClient, Failure> {
        let endpoints = self.endpoints();
        if endpoints.is_empty() {
            let message = "no endpoint is given: --endpoints or RKV_ENDPOINTS must list at least one HOST:PORT";
            return Err(Failure::Usage(message.to_owned()));
        }
        let client = ExampleClient::connect(endpoints).map_err(|error| Failure::Usage(error.to_string()))?;
        Ok(client.with_retry_deadline(self.retry_for.unwrap_or(retry_for)))
    }

    fn output(&self) -> Output {
        Output::new(self.output)
    }
}
