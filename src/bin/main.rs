//! The program: runs a node, or a command of [`cli`].

mod cli;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};
use raft_key_value::config::{Config, LOG_FLUSH_DEADLINE, LogFormat};
use raft_key_value::telemetry::logging::{LogWriter, describe_panic, say};
use raft_key_value::{ServeError, listen, serve_on};
use rustix::fs::Mode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use self::cli::{EXIT_OUTPUT, Variables};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A flag, an environment variable or the settings file is invalid.
const EXIT_USAGE: u8 = 2;
/// An error in the program itself.
const EXIT_SOFTWARE: u8 = 70;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let mut program = cli::with_commands(Config::command());
    program = cli::with_environment(program, arguments.get(1).cloned());
    let file = match cli::config_file(&program, &arguments) {
        Ok(file) => file,
        Err(error) => return fail(EXIT_USAGE, &error.to_string()),
    };
    if let Some(file) = &file {
        program = cli::with_config_file(program, file);
    }
    let parsed = program.try_get_matches_from_mut(&arguments).and_then(|matches| {
        if matches.subcommand_name().is_some() {
            return cli::run(&matches, &mut program, file.as_ref());
        }
        let log_level_is_given = matches.value_source("log_level") != Some(ValueSource::DefaultValue)
            || file.as_ref().is_some_and(|file| file.has("log-level"));
        let config = Config::from_arg_matches(&matches)?;
        Ok(start(config, log_level_is_given, &Variables::of(&program, &arguments, file.as_ref())))
    });
    match parsed {
        Ok(code) => code,
        Err(error) if error.use_stderr() => {
            fail(EXIT_USAGE, &cli::one_line(&error, &program, &arguments, file.as_ref()))
        }
        // `--help` or `--version`.
        Err(text) => match text.print().and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                fail(EXIT_OUTPUT, &format!("cannot write the output: {error}"))
            }
            _ => ExitCode::SUCCESS,
        },
    }
}

fn start(config: Config, log_level_is_given: bool, variables: &Variables) -> ExitCode {
    // Only the node's own user may read its files, whatever umask it was started with.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let format = config.log_format;
    let drop_notice = move |dropped| plain_line(format, "WARN", &dropped_lines(dropped), Some(dropped));
    let log = match LogWriter::start(io::stderr(), drop_notice) {
        Ok(log) => log,
        Err(error) => return fail(EXIT_SOFTWARE, &format!("cannot start the thread that writes the log: {error}")),
    };
    let ended = run_logged(config, log_level_is_given, &log);
    // The error comes last, after all log lines.
    log.flush(LOG_FLUSH_DEADLINE);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => fail(code, &variables.name_in(message)),
    }
}

/// Formats a log line as `tracing` does, for messages that must bypass it. `dropped` is a field of JSON lines.
fn plain_line(format: LogFormat, level: &str, message: &str, dropped: Option<u64>) -> String {
    let mut time = String::new();
    // Writing to a string cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    match format {
        LogFormat::Text => format!("{time} {level:>5} {message}\n"),
        LogFormat::Json => {
            let mut fields = serde_json::json!({"message": message});
            if let Some(dropped) = dropped {
                fields["dropped"] = dropped.into();
            }
            format!("{}\n", serde_json::json!({"timestamp": time, "level": level, "fields": fields}))
        }
    }
}

fn dropped_lines(dropped: u64) -> String {
    format!("{dropped} log lines were dropped because standard error did not accept them in time")
}

/// Runs a node. An error is the exit code and the message.
fn run_logged(mut config: Config, log_level_is_given: bool, log: &LogWriter) -> Result<(), (u8, String)> {
    #[cfg(feature = "seeded-bugs")]
    raft_key_value::seeded_bug::check().map_err(|message| (EXIT_USAGE, message))?;
    let mut complaint = None;
    if !log_level_is_given {
        let (usable, unusable) = rust_log();
        config.log_level = usable.unwrap_or(config.log_level);
        complaint = unusable;
    }
    run(config, log, complaint).map_err(|error| match error.downcast_ref::<ServeError>() {
        // Its message includes the cause.
        Some(error) => (error.exit_code(), error.to_string()),
        None => (EXIT_SOFTWARE, format!("{error:#}")),
    })
}

fn run(config: Config, log: &LogWriter, complaint: Option<String>) -> anyhow::Result<()> {
    config.validate().map_err(ServeError::Config)?;
    // Check before logging starts: a usage error is one line without log lines around it.
    config.socket_addrs().map_err(ServeError::Config)?;
    raft_key_value::tls::Tls::of(&config).map_err(ServeError::Config)?;
    if let Err(message) = start_logging(&config, log) {
        return Err(ServeError::Config(raft_key_value::config::ConfigError::log_level(&config, &message)).into());
    }
    if let Some(complaint) = complaint {
        // Bypass `tracing`: the filter in question could drop the message.
        let _ = log.clone().write_all(plain_line(config.log_format, "WARN", &complaint, None).as_bytes());
    }
    // This runtime only starts and stops the node. Requests and Raft run on other threads.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(async {
        let shutdown = shutdown_signal()?;
        serve_on(listen(&config)?, config, shutdown).await?;
        Ok(())
    })
}

/// Resolves at the first SIGTERM or SIGINT. From now on SIGHUP does not end the process: it asks a node to read its TLS
/// files again, which a node without them, or one that still opens its data, need not do.
fn shutdown_signal() -> anyhow::Result<impl Future<Output = ()>> {
    // The handler stays when the stream is dropped.
    drop(signal(SignalKind::hangup()).context("cannot handle SIGHUP")?);
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn start_logging(config: &Config, log: &LogWriter) -> Result<(), String> {
    let filter = log_filter(&config.log_level)?;
    let logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone());
    // It reports its own errors with `eprintln!`, which panics if standard error cannot be written.
    let logging = logging.log_internal_errors(false);
    let (log_panic, format) = (log.clone(), config.log_format);
    std::panic::set_hook(Box::new(move |panic| {
        let line = plain_line(format, "ERROR", &describe_panic(panic), None);
        let _ = log_panic.clone().write_all(line.as_bytes());
    }));
    match config.log_format {
        LogFormat::Text => logging.with_target(false).with_ansi(false).init(),
        LogFormat::Json => logging.json().init(),
    }
    Ok(())
}

/// The valid part of the filter in `RUST_LOG`, and a warning about the rest.
///
/// The variable is often set for other programs, so an invalid one must not prevent a node from starting.
fn rust_log() -> (Option<String>, Option<String>) {
    let Some(filter) = std::env::var_os("RUST_LOG") else { return (None, None) };
    let text = filter.to_string_lossy();
    if text.split(',').all(|part| part.trim().is_empty()) {
        return (None, None);
    }
    if log_filter(&text).is_ok() {
        return (Some(text.into_owned()), None);
    }
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let (usable, unusable): (Vec<&str>, Vec<&str>) = parts.partition(|part| log_filter(part).is_ok());
    let usable = usable.join(",");
    let usable = Some(usable).filter(|usable| log_filter(usable).is_ok());
    let instead = usable.as_ref().map_or("the default level applies", |_| "the rest applies");
    let complaint = format!(
        "RUST_LOG: ignored {:?}, which must be a level or MODULE=LEVEL; {instead}; --log-level and RKV_LOG_LEVEL \
         override RUST_LOG",
        unusable.join(",")
    );
    (usable, Some(complaint))
}

/// Parses a log level, or a list of levels for parts of the program.
fn log_filter(text: &str) -> Result<EnvFilter, String> {
    let level = text.trim().to_ascii_lowercase();
    let filter = match level.as_str() {
        // Libraries log every failed attempt to reach a node. This program logs once that a node is unreachable, and
        // once that it is reachable again.
        "error" | "warn" | "info" => format!("off,raft_key_value={level},raft_log=error,chunked_wal=error"),
        "debug" | "trace" => level,
        _ => text.to_owned(),
    };
    // A filter would take a misspelled level for the name of a module, which silences the node.
    let mut parts = filter.split(',').map(str::trim).filter(|part| !part.is_empty()).peekable();
    // An empty filter would log errors only.
    let unknown = if parts.peek().is_none() { Some(text) } else { parts.find(|part| !is_directive(part)) };
    if let Some(word) = unknown {
        return Err(format!("unknown log level `{word}`; expected error, warn, info, debug, trace, or a filter"));
    }
    EnvFilter::try_new(filter).map_err(|error| error.to_string())
}

/// Whether a part of a filter is more than a word that could be a misspelled level.
fn is_directive(part: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    const CRATES: [&str; 2] = ["raft_key_value", "openraft"];
    part.contains(['=', '[', ']'])
        || LEVELS.iter().any(|level| part.eq_ignore_ascii_case(level))
        || CRATES.contains(&part.split("::").next().unwrap_or(part))
}

fn fail(code: u8, message: &str) -> ExitCode {
    say(&format!("error: {message}\n"));
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Seek;
    use std::sync::Arc;

    use tracing::subscriber::with_default;

    use super::*;

    /// The output of `tracing`.
    fn traced(format: LogFormat, log: fn()) -> String {
        let mut file = Arc::new(tempfile::tempfile().unwrap());
        let logging = tracing_subscriber::fmt().with_writer(file.clone());
        match format {
            LogFormat::Text => with_default(logging.with_target(false).with_ansi(false).finish(), log),
            LogFormat::Json => with_default(logging.json().finish(), log),
        }
        Seek::rewind(&mut file).unwrap();
        io::read_to_string::<&File>(&file).unwrap()
    }

    /// A line that bypasses `tracing` looks like one that does not.
    ///
    /// Method: write the same line both ways, and replace each digit, so that all times are equal.
    #[test]
    fn plain_lines_look_like_others() {
        let masked = |line: &str| line.replace(|character: char| character.is_ascii_digit(), "1");
        let text = traced(LogFormat::Text, || tracing::warn!("a message"));
        assert_eq!(masked(&plain_line(LogFormat::Text, "WARN", "a message", None)), masked(&text));
        let json = traced(LogFormat::Json, || tracing::warn!(dropped = 12, "a message"));
        let mut json: serde_json::Value = serde_json::from_str(&masked(&json)).unwrap();
        // A plain line does not name a module.
        json.as_object_mut().unwrap().remove("target").unwrap();
        let plain = masked(&plain_line(LogFormat::Json, "WARN", "a message", Some(12)));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&plain).unwrap(), json);
    }
}
