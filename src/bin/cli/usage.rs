//! Messages about invalid flags and environment variables, in one line each.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Command as Clap;
use clap::error::ErrorKind;

/// Flags whose values come from environment variables, each with its variable.
#[derive(Debug)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// The variables that apply to a command line. A flag among its arguments overrides its variable.
    pub fn of(program: &Clap, arguments: &[OsString]) -> Self {
        let is_given = |flag: &str| {
            arguments.iter().filter_map(|argument| argument.to_str()).any(|argument| {
                argument.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
            })
        };
        let all = program.get_arguments().chain(program.get_subcommands().flat_map(Clap::get_arguments));
        let set = all.filter_map(|arg| {
            let (flag, variable) = (format!("--{}", arg.get_long()?), arg.get_env()?);
            let is_used = std::env::var_os(variable).is_some() && !is_given(&flag);
            is_used.then(|| (flag, variable.to_string_lossy().into_owned()))
        });
        Variables(set.collect())
    }

    /// Replaces flags by their variables in a message.
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
pub fn one_line(error: &clap::Error, program: &Clap, arguments: &[OsString]) -> String {
    if error.kind() == ErrorKind::InvalidUtf8 {
        return format!("{} is not valid UTF-8", not_utf8(program, arguments));
    }
    let text = error.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    let line = lines.collect::<Vec<_>>().join(" ").replace(" tip: ", "; ");
    // The standard library's messages for invalid numbers.
    let line = line.replace("invalid digit found in string", "must be an integer");
    let line = line.replace("number too large to fit in target type", "is too large");
    let line = Variables::of(program, arguments).name_in(line.trim_start_matches("error: ").to_owned());
    format!("{line}; see --help")
}

/// The argument or variable that is not UTF-8, which clap does not name.
fn not_utf8(program: &Clap, arguments: &[OsString]) -> String {
    if let Some(argument) = arguments.iter().find(|argument| argument.to_str().is_none()) {
        return format!("the argument {argument:?}");
    }
    let all = program.get_arguments().chain(program.get_subcommands().flat_map(Clap::get_arguments));
    // A path may be any bytes.
    let texts = all.filter(|arg| arg.get_value_parser().type_id() != std::any::TypeId::of::<PathBuf>());
    let mut variables = texts.filter_map(clap::Arg::get_env);
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
