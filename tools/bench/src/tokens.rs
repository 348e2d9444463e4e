//! Measures what tokens cost the nodes.
//!
//! Four clusters run at the same time: each combination of with tokens and without, with TLS and without. Without TLS,
//! tokens also make the nodes prove to each other that they have the root token. The same load runs on one cluster after
//! another, while the others are idle, many times for a short time each. The cost is the median of the ratios within
//! the rounds: what else the machine does changes more slowly than that, and affects both sides of a ratio alike.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::process::remove_variables;
use harness::tls::{TlsConnector, connector, make_certificates};
use serde::Serialize;

use crate::Verdict;
use crate::arguments::TokensArguments;
use crate::load::{self, LoadPlan, Measurement, Workload};
use crate::ours::{OursCluster, OursOptions, use_tls, use_token};
use crate::report::{Environment, Goal, Limit, publish};
use crate::statistics::{Spread, one_digit, thousands, two_digits};
use crate::target::{Target, VALUE_BYTES};
use crate::workspace::{Workspace, our_server};

const FILL_CLIENTS: usize = 64;
const WARM_UP: Duration = Duration::from_secs(1);
const WORKLOADS: [Workload; 2] = [Workload::Put, Workload::Get];
/// Server CPU of a put with tokens, as a multiple of that without.
const PUT_RATIO_MAX: f64 = 1.03;
/// The keys of the load begin with it.
const PREFIX: &str = "key-";

struct Side {
    with_tls: bool,
    with_tokens: bool,
    cluster: OursCluster,
    /// The token of the clients.
    token: Option<String>,
}

#[derive(Serialize)]
struct Record {
    round: u32,
    with_tls: bool,
    with_tokens: bool,
    workload: Workload,
    #[serde(flatten)]
    measurement: Measurement,
}

#[derive(Serialize)]
struct Figures {
    environment: Environment,
    goals: Vec<Goal>,
    records: Vec<Record>,
}

pub async fn run(arguments: &TokensArguments) -> Result<Verdict> {
    let options = our_server(&arguments.common)?;
    let environment = Environment::gather(&[&options.server])?;
    let workspace = Workspace::create(&arguments.common, "tokens")?;
    let (certificates, root_token) = (workspace.path("certificates"), workspace.path("root.token"));
    make_certificates(&options.server, &certificates, &[1, 2, 3].map(|id| (id, Ipv4Addr::LOCALHOST.into())))?;
    make_root_token(&root_token)?;
    let root = std::fs::read_to_string(&root_token)?;
    let tls = |with_tls: bool| -> Result<Option<TlsConnector>> {
        if with_tls { Ok(Some(connector(&certificates, false)?)) } else { Ok(None) }
    };

    let mut sides = Vec::new();
    for (with_tls, with_tokens) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut options = options.clone();
        if with_tls {
            options.server_arguments.extend(harness::tls::arguments(&certificates));
        }
        if with_tokens {
            options.server_arguments.extend(["--root-token-file".to_owned(), root_token.display().to_string()]);
        }
        use_tls(tls(with_tls)?);
        use_token(with_tokens.then_some(root.as_str()))?;
        let cluster = OursCluster::create(&options, &workspace.path(&format!("cluster-{}", sides.len()))).await?;
        load::fill(&Target::ours(cluster.leader().await?, FILL_CLIENTS), FILL_CLIENTS, 0..arguments.keys).await?;
        let token = match with_tokens {
            true => Some(make_tokens(arguments, &options, &cluster, &root_token, with_tls.then_some(&certificates))?),
            false => None,
        };
        sides.push(Side { with_tls, with_tokens, cluster, token });
    }

    let mut records = Vec::new();
    for round in 1..=arguments.rounds {
        if round.is_multiple_of(2) {
            sides.reverse();
        }
        for workload in WORKLOADS {
            for side in &sides {
                use_tls(tls(side.with_tls)?);
                use_token(side.with_tokens.then_some(root.as_str()))?;
                let leader = side.cluster.leader().await?;
                use_token(side.token.as_deref())?;
                let clients = usize::from(arguments.clients);
                let plan = LoadPlan {
                    workload,
                    clients,
                    warm_up: WARM_UP,
                    measured: Duration::from_secs(arguments.seconds),
                    key_count: arguments.keys,
                    seed: u64::from(round),
                };
                let measurement = load::run(&Target::ours(leader, clients), &plan, &side.cluster.pids()).await?;
                println!(
                    "round {round}  TLS: {:5}  tokens: {:5}  {}  {}/s  {:.1} µs of server CPU  errors: {}",
                    side.with_tls,
                    side.with_tokens,
                    workload.route(),
                    thousands(measurement.operations_per_second),
                    measurement.server_cpu_us_per_operation,
                    measurement.errors
                );
                let (with_tls, with_tokens) = (side.with_tls, side.with_tokens);
                records.push(Record { round, with_tls, with_tokens, workload, measurement });
            }
        }
        if round.is_multiple_of(2) {
            sides.reverse();
        }
    }
    use_tls(None);
    use_token(None)?;
    for side in sides {
        side.cluster.stop().await?;
    }
    workspace.finish()?;

    let mut goals = Vec::new();
    for with_tls in [false, true] {
        goals.push(Goal {
            what: format!(
                "server CPU of {} with tokens, to that without, {}",
                Workload::Put.route(),
                if with_tls { "with TLS" } else { "without TLS" }
            ),
            limit: Limit::AtMost(PUT_RATIO_MAX),
            measured: ratios(&records, Workload::Put, with_tls).median,
            unit: "×",
        });
    }
    let is_clean = records.iter().all(|record| record.measurement.errors == 0);
    ensure!(is_clean, "a request failed, so the figures mean nothing");
    let verdict = Goal::verdict(&goals);
    let figures = Figures { environment, goals, records };
    publish(&arguments.common, "tokens", &markdown(arguments, &figures), &figures, true)?;
    Ok(verdict)
}

/// Writes a random root token that only this user may read.
fn make_root_token(path: &Path) -> Result<()> {
    let mut random = [0; 32];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut random)?;
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

/// Creates the tokens by the command line; returns the last one.
fn make_tokens(
    arguments: &TokensArguments,
    options: &OursOptions,
    cluster: &OursCluster,
    root_token: &Path,
    certificates: Option<&PathBuf>,
) -> Result<String> {
    let mut last = String::new();
    for number in 1..=arguments.tokens {
        let mut create = Command::new(&options.server);
        remove_variables(&mut create, "RKV_");
        let scheme = if certificates.is_some() { "https" } else { "http" };
        create.args(["token", "create", &format!("client-{number}"), "--role", "write", "--prefix", PREFIX]);
        create.args(["--endpoints", &format!("{scheme}://{}", cluster.addresses()[0])]);
        create.arg("--token-file").arg(root_token);
        if let Some(certificates) = certificates {
            create.arg("--tls-ca").arg(certificates.join("ca.pem"));
        }
        let made = create.output().context("cannot run `token create`")?;
        ensure!(made.status.success(), "`token create` failed: {}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout)?.trim().clone_into(&mut last);
    }
    Ok(last)
}

fn chosen(records: &[Record], workload: Workload, with_tls: bool, with_tokens: bool) -> Vec<&Record> {
    let is_chosen =
        |record: &&Record| (record.workload, record.with_tls, record.with_tokens) == (workload, with_tls, with_tokens);
    records.iter().filter(is_chosen).collect()
}

/// Of each round, server CPU with tokens as a multiple of that without.
fn ratios(records: &[Record], workload: Workload, with_tls: bool) -> Spread {
    let without = chosen(records, workload, with_tls, false);
    let with = chosen(records, workload, with_tls, true);
    let cpu = |record: &Record| record.measurement.server_cpu_us_per_operation;
    Spread::of(with.iter().zip(without).map(|(with, without)| cpu(with) / cpu(without)))
}

fn markdown(arguments: &TokensArguments, figures: &Figures) -> String {
    let mut text = format!(
        "## Tokens\n\n{}\n{} clients on kept connections use one of {} tokens, which has a prefix; values of {VALUE_BYTES} \
         bytes, {} rounds of {} s. CPU is that of all three nodes. Medians, minima and maxima; the ratio is the median of \
         those within a round.\n\n{}\n| request | TLS | tokens | requests/s | server CPU µs | ratio |\n\
         | --- | --- | --- | --- | --- | --- |\n",
        figures.environment.markdown(),
        arguments.clients,
        arguments.tokens,
        arguments.rounds,
        arguments.seconds,
        Goal::table(&figures.goals),
    );
    let yes = |is: bool| if is { "yes" } else { "no" };
    for workload in WORKLOADS {
        for with_tls in [false, true] {
            for with_tokens in [false, true] {
                let records = chosen(&figures.records, workload, with_tls, with_tokens);
                let of = |value: fn(&Measurement) -> f64| Spread::of(records.iter().map(|it| value(&it.measurement)));
                let ratio = ratios(&figures.records, workload, with_tls);
                text += &format!(
                    "| {} | {} | {} | {} | {} | {} |\n",
                    workload.route(),
                    yes(with_tls),
                    yes(with_tokens),
                    of(|measured| measured.operations_per_second).text(thousands),
                    of(|measured| measured.server_cpu_us_per_operation).text(one_digit),
                    if with_tokens { ratio.text(two_digits) } else { String::new() }
                );
            }
        }
    }
    text
}
