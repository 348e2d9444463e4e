//! Messages about invalid flags, environment variables and settings files, in one line each.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Arg, Command as Clap};
use raft_key_value::config::{ConfigFile, describe};

/// Flags whose values come from environment variables or a settings file, each with the name of the source.
#[derive(Debug)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// The sources that apply to a command line. A flag among its arguments overrides its variable, which overrides
    /// the file.
    pub fn of(program: &Clap, arguments: &[OsString], file: Option<&ConfigFile>) -> Self {
        let is_given = |flag: &str| {
            arguments.iter().filter_map(|argument| argument.to_str()).any(|argument| {
                argument.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
            })
        };
        let set = all_arguments(program).filter_map(|arg| {
            let name = arg.get_long()?;
            let flag = format!("--{name}");
            let variable = arg.get_env().filter(|variable| std::env::var_os(variable).is_some());
            let source = match (variable, file) {
                _ if is_given(&flag) => None,
                (Some(variable), _) => Some(variable.to_string_lossy().into_owned()),
                (None, Some(file)) if file.has(name) => Some(format!("{name} in {}", file.path().display())),
                (None, _) => None,
            };
            source.map(|source| (flag, source))
        });
        Variables(set.collect())
    }

    /// Replaces flags with their sources in a message.
    pub fn name_in(&self, message: String) -> String {
        self.0.iter().fold(message, |message, (flag, variable)| replace_flag(&message, flag, variable))
    }
}

/// Replaces a flag, together with the quotes around it and the name of its value, if any.
fn replace_flag(message: &str, flag: &str, variable: &str) -> String {
    let mut replaced = String::new();
    let mut rest = message;
    while let Some((before, after)) = rest.split_once(flag) {
        let is_whole = !after.starts_with(|next: char| next.is_alphanumeric() || next == '-');
        let quoted = before.strip_suffix('\'').zip(after.split_once('\'').map(|(_, after)| after));
        rest = match quoted {
            Some((before, after)) if is_whole => {
                replaced.extend([before, variable]);
                after
            }
            _ => {
                replaced.extend([before, if is_whole { variable } else { flag }]);
                after
            }
        };
    }
    replaced + rest
}

/// The message of an error in one line, without clap's usage text.
pub fn one_line(error: &clap::Error, program: &Clap, arguments: &[OsString], file: Option<&ConfigFile>) -> String {
    if error.kind() == ErrorKind::InvalidUtf8 {
        return format!("{} is not valid UTF-8", not_utf8(program, arguments));
    }
    let line = Variables::of(program, arguments, file).name_in(describe(error));
    format!("{line}; see --help")
}

/// The arguments of the program, of its commands and of their commands.
fn all_arguments(program: &Clap) -> impl Iterator<Item = &Arg> {
    let commands = || program.get_subcommands();
    let nested = commands().flat_map(Clap::get_subcommands);
    program.get_arguments().chain(commands().chain(nested).flat_map(Clap::get_arguments))
}

/// The argument or variable that is not UTF-8, which clap does not name.
fn not_utf8(program: &Clap, arguments: &[OsString]) -> String {
    if let Some(argument) = arguments.iter().find(|argument| argument.to_str().is_none()) {
        return format!("the argument {argument:?}");
    }
    // A path may be any bytes.
    let texts =
        all_arguments(program).filter(|arg| arg.get_value_parser().type_id() != std::any::TypeId::of::<PathBuf>());
    let mut variables = texts.filter_map(Arg::get_env);
    let wrong = variables.find(|name| std::env::var_os(name).is_some_and(|value| value.to_str().is_none()));
    wrong.map_or_else(|| "an argument".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole flags are replaced, with the quotes and names that clap puts around them.
    #[test]
    fn flags_are_replaced_by_variables() {
        let variables = Variables(vec![("--max-key".to_owned(), "RKV_MAX_KEY".to_owned())]);
        for (message, expected) in [
            ("invalid value 'x' for '--max-key <N>': why", "invalid value 'x' for RKV_MAX_KEY: why"),
            ("--max-key must be above --max-key-bytes", "RKV_MAX_KEY must be above --max-key-bytes"),
            ("'--max-key-bytes <N>' is not --max-key", "'--max-key-bytes <N>' is not RKV_MAX_KEY"),
            ("give another --max-key", "give another RKV_MAX_KEY"),
            ("--other", "--other"),
        ] {
            assert_eq!(variables.name_in(message.to_owned()), expected);
        }
    }
}
