//! The settings file of `--config`: TOML whose keys are the names of the flags.
//!
//! The values become the defaults of the flags, so flags and environment variables override them, and the flags'
//! own rules check them.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::{Arg, Command};

use super::{CONFIG_FILE_BYTES_MAX, ConfigError};

/// The flag that names the file. A file cannot name another one.
const CONFIG_FLAG: &str = "config";

/// How similar an unknown key must be to a known one for the message to suggest it, from 0 to 1.
const SUGGESTION_SIMILARITY_MIN: f64 = 0.8;

/// The settings in a file, each valid by itself.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: PathBuf,
    /// The name of each flag, without dashes in front, and its values.
    settings: Vec<(String, Vec<String>)>,
}

impl ConfigFile {
    /// Reads a file of settings for `node`, the command line of a node.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is not TOML, is longer than [`CONFIG_FILE_BYTES_MAX`], or has an unknown key or an
    /// invalid value.
    pub fn read(path: &Path, node: &Command) -> Result<Self, ConfigError> {
        let wrong = |why: String| ConfigError(format!("{}: {why}", path.display()));
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let read = file.take(CONFIG_FILE_BYTES_MAX + 1).read_to_string(&mut text);
        read.map_err(|error| wrong(format!("cannot be read: {error}")))?;
        if text.len() as u64 > CONFIG_FILE_BYTES_MAX {
            return Err(wrong(format!("is longer than {CONFIG_FILE_BYTES_MAX} bytes")));
        }
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            wrong(format!("line {line}: {}", error.message().replace('\n', ", ")))
        })?;
        let settings = table.into_iter().map(|(key, value)| {
            let arg = find(node, &key).ok_or_else(|| wrong(unknown(node, &key)))?;
            let values = values(&value).map_err(|why| wrong(format!("{key}: {why}")))?;
            check(arg, &values).map_err(|why| wrong(format!("{key}: {why}")))?;
            Ok((key, values))
        });
        Ok(ConfigFile { path: path.to_owned(), settings: settings.collect::<Result<_, _>>()? })
    }

    /// Whether the file has a setting, by the name of its flag.
    pub fn has(&self, name: &str) -> bool {
        self.names().any(|key| key == name)
    }

    /// The flags, without dashes in front, that the file sets.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.settings.iter().map(|(key, _)| key.as_str())
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the settings the defaults of a command line.
    pub fn apply(&self, node: Command) -> Command {
        node.mut_args(|arg| {
            let name = arg.get_long().unwrap_or_default();
            match self.settings.iter().find(|(key, _)| key == name) {
                Some((_, values)) => arg.required(false).default_values(values.clone()),
                None => arg,
            }
        })
    }
}

/// The flag that a key sets.
fn find<'a>(node: &'a Command, key: &str) -> Option<&'a Arg> {
    node.get_arguments().find(|arg| arg.get_long() == Some(key) && key != CONFIG_FLAG)
}

fn unknown(node: &Command, key: &str) -> String {
    let names = node.get_arguments().filter(|arg| !arg.is_hide_set()).filter_map(Arg::get_long);
    let known = names.filter(|name| ![CONFIG_FLAG, "help", "version"].contains(name));
    let similar = known.map(|name| (strsim::jaro_winkler(name, key), name));
    let nearest = similar.max_by(|one, other| one.0.total_cmp(&other.0));
    match nearest.filter(|(similarity, _)| *similarity >= SUGGESTION_SIMILARITY_MIN) {
        Some((_, name)) => format!("unknown key `{key}`; did you mean `{name}`?"),
        None => format!("unknown key `{key}`; the keys are the names of the flags, see --help"),
    }
}

/// A value as its flag accepts it.
fn values(value: &toml::Value) -> Result<Vec<String>, &'static str> {
    match value {
        toml::Value::String(text) => Ok(vec![text.clone()]),
        toml::Value::Integer(number) => Ok(vec![number.to_string()]),
        toml::Value::Float(number) => Ok(vec![number.to_string()]),
        toml::Value::Boolean(flag) => Ok(vec![flag.to_string()]),
        toml::Value::Array(items) => {
            let items = items.iter().map(|item| match item {
                toml::Value::Array(_) => Err("must not be a list of lists"),
                item => values(item),
            });
            Ok(items.collect::<Result<Vec<_>, _>>()?.concat())
        }
        toml::Value::Datetime(_) | toml::Value::Table(_) => Err("must be a string, a number, true, false, or a list"),
    }
}

/// Checks values by the rules of their flag.
fn check(arg: &Arg, values: &[String]) -> Result<(), String> {
    let is_list = arg.get_value_delimiter().is_some();
    if !is_list && values.len() != 1 {
        return Err("must be one value, not a list".to_owned());
    }
    // The action of a flag without a value, such as `--bootstrap`, accepts none on a command line.
    if !arg.get_action().takes_values() {
        return match values[0].as_str() {
            "true" | "false" => Ok(()),
            other => Err(format!("must be true or false, got `{other}`")),
        };
    }
    let name = arg.get_long().unwrap_or_default();
    // A program of this flag alone.
    let flag = arg.clone().required(false).env(None::<&'static str>);
    let flag = flag.requires(Resettable::Reset).conflicts_with(Resettable::Reset);
    let alone = Command::new("config").no_binary_name(true).arg(flag);
    let arguments = values.iter().map(|value| format!("--{name}={value}"));
    let parsed = arguments.map(|argument| alone.clone().try_get_matches_from([argument]));
    parsed.collect::<Result<Vec<_>, _>>().map(|_| ()).map_err(|error| {
        let line = describe(&error);
        // The caller names the key.
        match line.split_once(" for '--").and_then(|(value, rest)| Some((value, rest.split_once('\'')?.1))) {
            Some((value, why)) => format!("{value}{why}"),
            None => line,
        }
    })
}

/// The message of an error of the command line in one line, without clap's usage text.
pub fn describe(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    let line = lines.collect::<Vec<_>>().join(" ").replace(" tip: ", "; ");
    // The standard library's messages for invalid numbers.
    let line = line.replace("invalid digit found in string", "must be an integer");
    let line = line.replace("number too large to fit in target type", "is too large");
    line.trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::Config;

    fn read(text: &[u8]) -> Result<ConfigFile, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, text).unwrap();
        ConfigFile::read(file.path(), &Config::command())
            .map_err(|error| error.to_string().replace(&format!("{}: ", file.path().display()), ""))
    }

    /// Whatever is wrong with a file, the message names its path, and the key or line, in one line.
    #[test]
    fn bad_files() {
        let huge = vec![b'#'; CONFIG_FILE_BYTES_MAX as usize + 1];
        let rows: &[(&[u8], &str)] = &[
            (b"id = ", "line 1: "),
            (b"id = 1\n\nid = 2\n", "line 3: "),
            (b"http_addr = \"h:1\"", "unknown key `http_addr`; did you mean `http-addr`?"),
            (b"max-key-byte = 1", "did you mean `max-key-bytes`?"),
            (b"zzz = 1", "unknown key `zzz`; the keys are the names of the flags"),
            (b"config = \"other.toml\"", "unknown key `config`"),
            (b"help = true", "unknown key `help`"),
            (b"[raft]\nid = 1", "unknown key `raft`"),
            (b"id = 1979-05-27", "id: must be a string, a number, true, false, or a list"),
            (b"id = {a = 1}", "id: must be a string, a number, true, false, or a list"),
            (b"id = [1, 2]", "id: must be one value, not a list"),
            (b"id = []", "id: must be one value, not a list"),
            (b"id = \"one\"", "id: invalid value 'one': must be an integer"),
            (b"id = -1", "id: invalid value "),
            (b"allowed-hosts = [[\"a\"]]", "must not be a list of lists"),
            (b"log-format = \"xml\"", "log-format: invalid value 'xml' [possible values: text, json]"),
            (b"id = 1 \xff", "cannot be read: "),
            (&huge, "is longer than "),
        ];
        for (text, expected) in rows {
            let shown = String::from_utf8_lossy(&text[..text.len().min(40)]).into_owned();
            let message = read(text).expect_err(&shown);
            assert!(message.contains(expected), "{shown}: {message}");
            assert!(!message.contains('\n'), "{shown}: {message}");
        }
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path().to_owned(), directory.path().join("missing")] {
            let message = ConfigFile::read(&path, &Config::command()).unwrap_err().to_string();
            assert!(message.contains(path.to_str().unwrap()), "{message}");
        }
    }

    /// Values of a file are defaults: flags override them, and lists, numbers and strings arrive as from flags.
    #[test]
    fn values_are_defaults() {
        let file =
            read(b"id = 7\nhttp-addr = \"h:1\"\nallowed-hosts = [\"a\", \"b\"]\nsnapshot-entries = \"50\"").unwrap();
        let without_variables = Config::command().mut_args(|arg| arg.env(None::<&'static str>));
        let program = file.apply(without_variables);
        let parse = |arguments: &[&str]| {
            let matches = program.clone().try_get_matches_from(std::iter::once(&"node").chain(arguments)).unwrap();
            <Config as clap::FromArgMatches>::from_arg_matches(&matches).unwrap()
        };
        let config = parse(&[]);
        assert_eq!((config.id, config.http_addr.as_str(), config.snapshot_entries), (7, "h:1", 50));
        assert_eq!(config.allowed_hosts, ["a", "b"]);
        let config = parse(&["--id=8", "--allowed-hosts=c"]);
        assert_eq!((config.id, config.http_addr.as_str()), (8, "h:1"));
        assert_eq!(config.allowed_hosts, ["c"]);
    }
}
