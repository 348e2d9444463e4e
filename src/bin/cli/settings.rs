//! The settings of a node: the file of `--config`, and the commands `config print` and `config check`.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command as Clap};
use raft_key_value::config::{Config, ConfigError, ConfigFile};
use raft_key_value::tls::Tls;

use super::arguments::ConfigCommand;
use super::failure::Failure;
use super::usage::Variables;

/// The command that shows the settings of a node.
const CONFIG_COMMAND: &str = "config";

/// Reads the settings file that a command line or the environment names, if any.
///
/// Commands other than `config` need no settings of a node, and `--help` and `--version` must work with any file.
///
/// # Errors
///
/// If the file cannot be read, or a setting in it is invalid.
pub fn config_file(program: &Clap, arguments: &[OsString]) -> Result<Option<ConfigFile>, ConfigError> {
    let command = arguments.get(1).and_then(|name| program.find_subcommand(name));
    let is_other_command = command.is_some_and(|command| command.get_name() != CONFIG_COMMAND);
    let asks_for_help = ["--help", "-h", "--version", "-V", "help"];
    if is_other_command || arguments.iter().skip(1).any(|argument| asks_for_help.iter().any(|help| argument == help)) {
        return Ok(None);
    }
    let path = given_path(arguments).or_else(|| std::env::var_os("RKV_CONFIG").filter(|path| !path.is_empty()));
    path.map(|path| ConfigFile::read(&PathBuf::from(path), program)).transpose()
}

/// The value of the flag `--config`.
fn given_path(arguments: &[OsString]) -> Option<OsString> {
    let mut arguments = arguments.iter().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            return arguments.next().cloned();
        }
        if let Some(path) = argument.as_encoded_bytes().strip_prefix(b"--config=") {
            return Some(OsStr::from_bytes(path).to_owned());
        }
    }
    None
}

/// Makes the settings of a file the defaults of a node, and of the commands that show them.
pub fn with_config_file(program: Clap, file: &ConfigFile) -> Clap {
    let program = file.apply(program);
    program.mut_subcommand(CONFIG_COMMAND, |command| command.mut_subcommands(|command| file.apply(command)))
}

/// Runs `config print` or `config check`.
pub fn run(
    command: &ConfigCommand,
    matches: &ArgMatches,
    program: &Clap,
    file: Option<&ConfigFile>,
) -> Result<(), Failure> {
    let (ConfigCommand::Print(settings) | ConfigCommand::Check(settings)) = command;
    let config: &Config = &settings.config;
    let level = crate::log_filter(&config.log_level).map_err(|why| ConfigError::log_level(config, &why));
    // Names are not resolved here: they may have other addresses on the node's machine.
    let protection = || config.literal_addr().map_or(Ok(()), |addr| config.check_protection(&[addr]));
    let settings = config.validate().and(level.map(|_| ())).and_then(|()| Tls::of(config).map(|_| ()));
    settings.and_then(|()| protection()).map_err(|error| {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        Failure::Usage(Variables::of(program, &arguments, file).name_in(error.to_string()))
    })?;
    let mut output = io::stdout().lock();
    match command {
        ConfigCommand::Check(_) => writeln!(output, "The settings are valid.")?,
        ConfigCommand::Print(_) => {
            let given =
                |matches: &ArgMatches| matches.subcommand().map(|(name, given)| (name.to_owned(), given.clone()));
            let (name, matches) = given(matches).and_then(|(_, config)| given(&config)).unwrap_or_default();
            let node = program.find_subcommand(CONFIG_COMMAND).and_then(|command| command.find_subcommand(name));
            for arg in node.into_iter().flat_map(Clap::get_arguments) {
                if let Some(line) = line(arg, &matches, file) {
                    writeln!(output, "{line}")?;
                }
            }
        }
    }
    output.flush()?;
    Ok(())
}

/// A setting as a line of a settings file, with its source. One that has no value is a comment.
fn line(arg: &Arg, matches: &ArgMatches, file: Option<&ConfigFile>) -> Option<String> {
    let name = arg.get_long().filter(|name| !["config", "help", "version"].contains(name) && !arg.is_hide_set())?;
    let source = match matches.value_source(arg.get_id().as_str()) {
        Some(ValueSource::CommandLine) => format!("--{name}"),
        Some(ValueSource::EnvVariable) => arg.get_env().unwrap_or_default().to_string_lossy().into_owned(),
        Some(ValueSource::DefaultValue) if file.is_some_and(|file| file.has(name)) => "the file".to_owned(),
        _ => "default".to_owned(),
    };
    let values: Option<Vec<&OsStr>> = matches.get_raw(arg.get_id().as_str()).map(Iterator::collect);
    let Some(values) = values.filter(|values| !values.is_empty()) else {
        return Some(format!("# {name} is not set"));
    };
    let values: Vec<String> = values.into_iter().map(toml_value).collect();
    let value = match arg.get_value_delimiter() {
        Some(_) => format!("[{}]", values.join(", ")),
        None => values.join(", "),
    };
    Some(format!("{name} = {value} # {source}"))
}

/// A value as TOML: whatever TOML reads as the same text needs no quotes.
fn toml_value(value: &OsStr) -> String {
    let text = value.to_string_lossy();
    let is_bare =
        text.parse::<i64>().is_ok_and(|number| number.to_string() == text) || text == "true" || text == "false";
    if is_bare { text.into_owned() } else { toml::Value::String(text.into_owned()).to_string() }
}
