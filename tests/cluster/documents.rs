//! The documents for users: do their commands work, and do they name everything that exists?

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{BINARY, DEADLINE, Http, Slot, cluster_slot, eventually, free_port, run};

/// Longer than a command may take: a membership change has a minute.
const COMMAND_DEADLINE: Duration = Duration::from_secs(90);
const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
/// Nodes of the examples: 127.0.0.1:21001 and so on.
const NODES_MAX: usize = 9;
/// Keeps the node that founded the cluster its leader, however busy the machine is.
const CALM: &[(&str, &str)] = &[
    ("RKV_HEARTBEAT_INTERVAL_MS", "250"),
    ("RKV_ELECTION_TIMEOUT_MIN_MS", "3000"),
    ("RKV_ELECTION_TIMEOUT_MAX_MS", "4000"),
    ("RKV_HTTP_THREADS", "1"),
];

/// The commands of the README work as they are written, and print what it shows.
///
/// Method: see [`Session`]. The document forms its own cluster.
#[tokio::test]
async fn the_readme_is_true() {
    let mut session = Session::start().await;
    session.run_all("README.md", &steps_of(&read("README.md"))).await;
}

/// The same for the reference of the API.
///
/// Method: the cluster is formed by the commands of the README.
#[tokio::test]
async fn the_reference_is_true() {
    let mut session = Session::start().await;
    session.form_cluster().await;
    session.run_all("docs/api.md", &steps_of(&read("docs/api.md"))).await;
}

/// The same for the page on the command line.
#[tokio::test]
async fn the_client_page_is_true() {
    let mut session = Session::start().await;
    session.form_cluster().await;
    session.run_all("docs/client.md", &steps_of(&read("docs/client.md"))).await;
}

/// The same for the runbook.
///
/// Method: see [`Session`]. The document forms its own cluster, grows it, and replaces and removes nodes.
#[tokio::test]
async fn the_runbook_is_true() {
    let mut session = Session::start().await;
    session.run_all("docs/operations.md", &steps_of(&read("docs/operations.md"))).await;
}

/// The same for the page on security.
///
/// Method: see [`Session`]. The document forms its own cluster, over TLS.
#[tokio::test]
async fn the_security_page_is_true() {
    let mut session = Session::start().await;
    session.run_all("docs/security.md", &steps_of(&read("docs/security.md"))).await;
}

/// Every link between the documents leads to a file and a heading that exist.
#[test]
fn links_lead_somewhere() {
    let mut documents = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(str::to_owned).to_vec();
    let names = fs::read_dir(Path::new(REPOSITORY).join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap()).filter(|name| name.ends_with(".md"));
    documents.extend(names.map(|name| format!("docs/{name}")));
    let mut broken = Vec::new();
    let mut seen = 0;
    for document in &documents {
        let text = read(document);
        let prose: Vec<&str> = outside_fences(&text).collect();
        let targets = prose.iter().flat_map(|line| line.split("](").skip(1)).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            seen += 1;
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let directory = Path::new(REPOSITORY).join(document).parent().unwrap().to_owned();
            let path = if path.is_empty() { Path::new(REPOSITORY).join(document) } else { directory.join(path) };
            let leads = path.exists()
                && (heading.is_empty() || headings_of(&fs::read_to_string(&path).unwrap()).contains(heading));
            if !leads {
                broken.push(format!("{document}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(seen > 50, "only {seen} links were found");
}

/// The reference names every route, parameter, header and error code that the description of the API has, and the
/// runbook every flag of a node.
#[test]
fn nothing_is_missing() {
    let document: Value = serde_json::from_str(&read("docs/openapi.json")).unwrap();
    let reference = read("docs/api.md");
    let mut named: BTreeSet<String> = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        named.insert(path.clone());
        for operation in operations.as_object().unwrap().values() {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            named.extend(parameters.filter(|parameter| parameter["in"] != "path").map(|it| text_of(&it["name"])));
        }
    }
    for response in document["components"]["responses"].as_object().unwrap().values() {
        named.extend(response["headers"].as_object().into_iter().flat_map(|headers| headers.keys().cloned()));
        let examples = response["content"]["application/json"]["examples"].as_object().unwrap();
        named.extend(examples.values().filter_map(|example| {
            let value = &example["value"];
            value["error"]["code"].as_str().map(str::to_owned)
        }));
    }
    let missing: Vec<&String> = named.iter().filter(|name| !reference.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "docs/api.md does not name {missing:?}");
    assert!(named.len() > 60, "{named:?}");

    let help = run(&["--help"], &[]).stdout;
    let words = help.split(|character: char| !character.is_ascii_alphanumeric() && character != '-');
    let flags: BTreeSet<&str> = words.filter(|word| word.starts_with("--") && word.len() > 2).collect();
    let runbook = read("docs/operations.md");
    let missing: Vec<&&str> = flags.iter().filter(|flag| !runbook.contains(&format!("`{flag}"))).collect();
    assert!(missing.is_empty(), "docs/operations.md does not name {missing:?}");
    assert!(flags.len() > 20, "{flags:?}");
}

/// A command of a document, and what it prints.
struct Step {
    line: usize,
    command: String,
    /// `None` if the document does not show it.
    shown: Option<String>,
}

/// The commands in the `console` and `sh` blocks of a document.
///
/// In a `console` block a command begins with `$ `, and everything up to the next one is its output. In an `sh` block
/// each line is a command. A command continues in the next line if a quote is open or it ends with a backslash.
fn steps_of(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut language = None;
    for (number, line) in document.lines().enumerate() {
        if let Some(name) = line.strip_prefix("```") {
            language = if language.is_none() { Some(name) } else { None };
            continue;
        }
        if !matches!(language, Some("console" | "sh")) {
            continue;
        }
        let previous = steps.last_mut();
        let open = previous.filter(|step| step.shown.as_deref().is_none_or(str::is_empty) && is_open(&step.command));
        if let Some(step) = open {
            step.command += &format!("\n{line}");
        } else if language == Some("sh") {
            steps.push(Step { line: number + 1, command: line.to_owned(), shown: None });
        } else if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { line: number + 1, command: command.to_owned(), shown: Some(String::new()) });
        } else {
            let shown = steps.last_mut().and_then(|step| step.shown.as_mut());
            let shown = shown.unwrap_or_else(|| panic!("line {}: output without a command: {line}", number + 1));
            *shown += &format!("{line}\n");
        }
    }
    steps
}

fn is_open(command: &str) -> bool {
    command.ends_with('\\') || command.matches('\'').count() % 2 == 1
}

/// A shell in an empty directory, in which the commands of a document run one after the other.
///
/// The program under test is at `./target/release/raft-key-value`. The ports of the examples are replaced by free ones, in
/// the output back again. A command must exit with 0, unless the next one prints the exit code. A node that is started
/// in the background is waited for; a watch ends once it has printed what is shown. Output may differ from what is
/// shown in ids, hashes, dates and times; `…` stands for any text.
struct Session {
    shell: Child,
    directory: TempDir,
    /// The address in the documents, and the one that is used.
    addresses: Vec<(String, String)>,
    commands: usize,
    http: Http,
    _slot: Slot,
}

impl Session {
    async fn start() -> Self {
        let slot = cluster_slot().await;
        let directory = tempfile::Builder::new().prefix("rkv-test-documents-").tempdir().unwrap();
        let programs = directory.path().join("target/release");
        fs::create_dir_all(&programs).unwrap();
        symlink(BINARY, programs.join("raft-key-value")).unwrap();
        // Only what a terminal would show: no progress.
        fs::write(directory.path().join(".curlrc"), "silent\nshow-error\n").unwrap();
        let addresses: Vec<_> = (1..=NODES_MAX)
            .map(|id| (format!("127.0.0.1:{}", 21_000 + id), format!("127.0.0.1:{}", free_port())))
            .collect();
        let endpoints: Vec<&str> = addresses[..3].iter().map(|(_, used)| used.as_str()).collect();
        let mut shell = Command::new("sh");
        shell.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", directory.path());
        // In place of the default.
        shell.env("RKV_ENDPOINTS", endpoints.join(","));
        shell.envs(CALM.iter().copied()).current_dir(directory.path());
        // So that all that it starts ends with it.
        shell.process_group(0).stdin(Stdio::piped());
        let shell = shell.spawn().unwrap();
        Session { shell, directory, addresses, commands: 0, http: Http::new(), _slot: slot }
    }

    /// Forms a cluster of three by the commands of the README.
    async fn form_cluster(&mut self) {
        let steps = steps_of(&read("README.md"));
        let formed = steps.iter().position(|step| step.command.contains("members")).unwrap();
        self.run_all("README.md", &steps[..=formed]).await;
    }

    async fn run_all(&mut self, document: &str, steps: &[Step]) {
        assert!(!steps.is_empty(), "{document} has no commands");
        for (step, next) in steps.iter().zip(steps[1..].iter().map(Some).chain([None])) {
            eprintln!("{document}:{}: {}", step.line, step.command);
            if is_of_repository(&step.command) {
                continue;
            }
            let prints_code = next.is_some_and(|next| next.command == "echo $?");
            self.run(&format!("{document}:{}", step.line), step, prints_code).await;
        }
    }

    async fn run(&mut self, place: &str, step: &Step, may_fail: bool) {
        let command = self.addresses.iter().fold(step.command.clone(), |text, (shown, used)| text.replace(shown, used));
        let what = format!("{place}: {}", step.command);
        if command.ends_with('&') {
            self.execute(&what, &command).await;
            let addr = command.split("--http-addr ").nth(1).and_then(|rest| rest.split(' ').next());
            let addr = addr.unwrap_or_else(|| panic!("{what}: only nodes run in the background")).to_owned();
            eventually(&format!("{what}: the node runs"), DEADLINE, async || {
                let answer = self.http.get(&addr, "/metrics").await.map_err(|error| error.to_string())?;
                // A node that speaks TLS says so.
                let runs = answer.status == 200 || answer.text().contains("tls_required");
                if runs { Ok(()) } else { Err(answer.text()) }
            })
            .await;
            return;
        }
        let shown = step.shown.as_deref().map(str::trim_end);
        if let Some(shown) = shown.filter(|_| is_endless(&command)) {
            let (number, _) = self.execute(&what, &format!("{command} &\nwatch=$!")).await;
            eventually(&what, DEADLINE, async || compare(shown, &self.printed(number))).await;
            self.execute(&what, "kill $watch; wait $watch; true").await;
            return;
        }
        // A follower learns a moment later than the leader what is committed.
        let is_observation = ["status", "members", "/metrics"].iter().any(|word| command.contains(word));
        let deadline = if is_observation && !command.contains("DELETE") { DEADLINE } else { Duration::ZERO };
        let started = Instant::now();
        loop {
            let (number, code) = self.execute(&what, &command).await;
            let printed = self.printed(number);
            match shown.map_or(Ok(()), |shown| compare(shown, &printed)) {
                Ok(()) => {
                    assert!(code == 0 || may_fail, "{what}: exit code {code}, output:\n{printed}");
                    return;
                }
                Err(why) => assert!(started.elapsed() < deadline, "{what}: exit code {code}; {why}"),
            }
        }
    }

    /// Has the shell execute commands, and waits until it has; returns the number of their output and their exit code.
    async fn execute(&mut self, what: &str, command: &str) -> (usize, i32) {
        self.commands += 1;
        let number = self.commands;
        // `$?` is that of the command before.
        let script = format!(
            "(exit ${{code:-0}})\n{{\n{command}\n}} >{number}.out 2>&1 </dev/null\ncode=$?\necho $code >{number}.code\n"
        );
        self.shell.stdin.as_mut().unwrap().write_all(script.as_bytes()).unwrap();
        let path = self.directory.path().join(format!("{number}.code"));
        let code = eventually(&format!("{what}: the command ends"), COMMAND_DEADLINE, async || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            text.strip_suffix('\n').map(|code| code.parse().unwrap()).ok_or_else(|| self.printed(number))
        })
        .await;
        (number, code)
    }

    /// What a command has printed, with the addresses of the documents.
    fn printed(&self, number: usize) -> String {
        let printed = fs::read(self.directory.path().join(format!("{number}.out"))).unwrap_or_default();
        let printed = String::from_utf8_lossy(&printed).into_owned();
        self.addresses.iter().fold(printed, |text, (shown, used)| text.replace(used, shown))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.shell);
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.shell.wait();
    }
}

/// Checks a command that builds or tests the repository. `.ci/run` runs these.
fn is_of_repository(command: &str) -> bool {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words[..] {
        ["./test-cluster.sh", ..] => true,
        ["cargo", "build", "--release"] | ["cargo", "test"] => true,
        ["cargo", "run", ..] => {
            let example = words.iter().skip_while(|word| **word != "--example").nth(1).unwrap();
            let path = Path::new(REPOSITORY).join(format!("examples/{example}.rs"));
            assert!(path.exists(), "{command}: there is no example {example}");
            true
        }
        ["make", target, ..] => {
            let makefile = read("Makefile");
            let rules = makefile.lines().filter(|line| !line.starts_with('\t'));
            let rules = rules.filter_map(|line| line.split_once(':')).map(|(targets, _)| targets);
            let mut targets = rules.flat_map(|targets| targets.split(' '));
            let exists = targets.any(|name| match name.split_once('%') {
                Some((start, _)) => target.starts_with(start) && !start.is_empty(),
                None => name == target,
            });
            assert!(exists, "{command}: there is no such target");
            true
        }
        _ => false,
    }
}

fn is_endless(command: &str) -> bool {
    command.starts_with("curl -N ") || command.contains("raft-key-value watch ")
}

/// Compares what a document shows with what was printed.
fn compare(shown: &str, printed: &str) -> Result<(), String> {
    let (shown_masked, printed_masked) = (masked(shown), masked(printed));
    let parts: Vec<&str> = shown_masked.split('…').collect();
    let agree = match &parts[..] {
        [first, middle @ .., last] => {
            let rest = printed_masked.strip_prefix(*first);
            let rest = middle.iter().fold(rest, |rest, part| rest?.split_once(*part).map(|(_, rest)| rest));
            rest.is_some_and(|rest| rest.ends_with(*last))
        }
        _ => shown_masked == printed_masked,
    };
    if agree { Ok(()) } else { Err(format!("shown:\n{shown}\nprinted:\n{printed}")) }
}

/// A text without what differs from run to run: ids and hashes, dates, remaining times, the order of headers.
fn masked(text: &str) -> String {
    let mut lines: Vec<String> = text.trim().lines().map(masked_line).collect();
    if text.starts_with("HTTP/1.1 ") {
        let end = lines.iter().position(String::is_empty).unwrap_or(lines.len());
        lines[1..end].sort();
    }
    lines.join("\n")
}

fn masked_line(line: &str) -> String {
    if line.starts_with("date: ") {
        return "date: #".to_owned();
    }
    let is_seconds = |word: &str| word.strip_suffix('s').is_some_and(|number| number.parse::<f64>().is_ok());
    let words = line.split_whitespace().map(|word| if is_seconds(word) { "#s" } else { word });
    let mut masked = String::new();
    for piece in words.collect::<Vec<_>>().join(" ").split_inclusive(|it: char| !it.is_ascii_alphanumeric()) {
        let (run, end) = match piece.char_indices().next_back() {
            Some((position, last)) if !last.is_ascii_alphanumeric() => piece.split_at(position),
            _ => (piece, ""),
        };
        let is_hash = matches!(run.len(), 16 | 32) && run.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_time = masked.ends_with(r#""expires_in_ms":"#) && run.parse::<u64>().is_ok();
        masked += if is_hash || is_time { "#" } else { run };
        masked += end;
    }
    masked
}

fn read(path: &str) -> String {
    let path = Path::new(REPOSITORY).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// The lines of a document that are not in a block of code.
fn outside_fences(document: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    document.lines().filter(move |line| {
        let is_fence = line.starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// The headings of a document, as links name them.
fn headings_of(document: &str) -> BTreeSet<String> {
    let headings = outside_fences(document).filter(|line| line.starts_with('#'));
    let slug = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|it| it.is_alphanumeric() || matches!(it, ' ' | '-' | '_'));
        kept.map(|it| if it == ' ' { '-' } else { it }).collect::<String>()
    };
    headings.map(slug).collect()
}

/// The comparison tells outputs apart that differ in more than what changes from run to run.
#[test]
fn outputs_are_compared() {
    for (shown, printed) in [
        ("a", "a\n"),
        (r#"{"message":"…","n":1}"#, r#"{"message":"anything","n":1}"#),
        (r#"{"expires_in_ms":600000}"#, r#"{"expires_in_ms":599966}"#),
        ("lock  4  29.98s  me", "lock  4    29.9s  me"),
        ("hash 6a1b1c0f5e7d42c89c1e3f60ab27d594", "hash 0b7e3658198b0eac09305dfcb7197027"),
        ("HTTP/1.1 200 OK\nb: 1\na: 2\n\nx", "HTTP/1.1 200 OK\r\na: 2\r\nb: 1\r\n\r\nx"),
        ("a … c", "a b c"),
        ("a…", "a b"),
    ] {
        assert_eq!(compare(shown, printed), Ok(()));
    }
    for (shown, printed) in [
        ("a", "a b"),
        ("", "a"),
        ("a", ""),
        (r#"{"message":"…","n":1}"#, r#"{"message":"anything","n":2}"#),
        ("a … c", "a b c d"),
        ("HTTP/1.1 200 OK\na: 2\n\nx", "HTTP/1.1 404 Not Found\na: 2\n\nx"),
    ] {
        assert!(compare(shown, printed).is_err(), "{shown:?} and {printed:?}");
    }
}
