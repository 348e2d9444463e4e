//! Measures what TLS costs the nodes.
//!
//! The same load runs on a cluster without TLS and on one with it, in turn. The clients keep their connections, so that
//! the cost of handshakes does not mix with that of each request. The handshakes are measured by themselves: connections
//! that are opened one after another and send nothing, and the CPU time that the nodes have used meanwhile, less what
//! they use while idle.
//!
//! Then a few clients put while others make handshakes at a fixed rate, and while others begin handshakes that they
//! never complete.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use harness::http::connect_socket;
use harness::tls::{TlsConnector, connector, make_certificates};
use rustls::pki_types::ServerName;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::Verdict;
use crate::arguments::TlsArguments;
use crate::cpu::Sample;
use crate::load::{self, LoadPlan, Measurement, Workload};
use crate::ours::{OursCluster, use_tls};
use crate::process::raise_open_files_limit;
use crate::report::{Environment, Goal, Limit, publish};
use crate::statistics::{Spread, one_digit, thousands, two_digits};
use crate::target::{Target, VALUE_BYTES};
use crate::workspace::{Workspace, our_server};

const FILL_CLIENTS: usize = 64;
const WARM_UP: Duration = Duration::from_secs(2);
const WORKLOADS: [Workload; 2] = [Workload::Put, Workload::Get];
/// Server CPU of a request with TLS, as a multiple of that without.
const REQUEST_RATIO_MAX: f64 = 1.15;
const HANDSHAKE_MS_MAX: f64 = 1.5;
/// Clients that put while handshakes are made: few, so that a put waits for handshakes and not for other puts.
const PROBES: usize = 4;
const HANDSHAKES_PER_SECOND: u32 = 500;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const UNFINISHED: usize = 10_000;
/// Pause before an unfinished handshake that the node cut off is begun again.
const UNFINISHED_PAUSE: Duration = Duration::from_secs(5);
/// The beginning of a TLS record of 512 bytes, which never come.
const CLIENT_HELLO_BEGIN: [u8; 5] = [22, 3, 1, 2, 0];
/// Latency of puts during handshakes, as a multiple of that without.
const PUT_RATIO_MAX: f64 = 2.0;

#[derive(Serialize)]
struct Record {
    round: u32,
    with_tls: bool,
    workload: Workload,
    #[serde(flatten)]
    measurement: Measurement,
}

/// CPU of the nodes for a handshake.
#[derive(Serialize)]
struct Handshake {
    round: u32,
    /// Whether the client shows a certificate, which the node verifies.
    mutual: bool,
    cpu_ms: f64,
}

/// What happens to the leader while clients put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Storm {
    None,
    Handshakes,
    Unfinished,
}

const STORMS: [(Storm, &str); 3] = [
    (Storm::None, "none"),
    (Storm::Handshakes, "500 handshakes a second"),
    (Storm::Unfinished, "10,000 handshakes that never end"),
];

/// Puts during a storm.
#[derive(Serialize)]
struct UnderStorm {
    round: u32,
    storm: Storm,
    elections: u64,
    #[serde(flatten)]
    measurement: Measurement,
}

#[derive(Serialize)]
struct Figures {
    environment: Environment,
    goals: Vec<Goal>,
    records: Vec<Record>,
    handshakes: Vec<Handshake>,
    storms: Vec<UnderStorm>,
}

pub async fn run(arguments: &TlsArguments) -> Result<Verdict> {
    raise_open_files_limit()?;
    let options = our_server(&arguments.common)?;
    let environment = Environment::gather(&[&options.server])?;
    let workspace = Workspace::create(&arguments.common, "tls")?;
    let files = workspace.path("certificates");
    make_certificates(&options.server, &files, &[1, 2, 3].map(|id| (id, Ipv4Addr::LOCALHOST.into())))?;
    let mut encrypted = options.clone();
    encrypted.server_arguments.extend(harness::tls::arguments(&files));
    let (mut records, mut handshakes, mut storms) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        let mut order = [false, true];
        if round.is_multiple_of(2) {
            order.reverse();
        }
        for with_tls in order {
            use_tls(if with_tls { Some(connector(&files, false)?) } else { None });
            let data = workspace.path("cluster");
            let cluster = OursCluster::create(if with_tls { &encrypted } else { &options }, &data).await?;
            load::fill(&Target::ours(cluster.leader().await?, FILL_CLIENTS), FILL_CLIENTS, 0..arguments.keys).await?;
            for workload in WORKLOADS {
                let measurement = measure(arguments, &cluster, round, workload).await?;
                println!(
                    "round {round}  TLS: {with_tls:5}  {}  {}/s  {:.1} µs of server CPU  errors: {}",
                    workload.route(),
                    thousands(measurement.operations_per_second),
                    measurement.server_cpu_us_per_operation,
                    measurement.errors
                );
                records.push(Record { round, with_tls, workload, measurement });
            }
            if with_tls {
                for mutual in [false, true] {
                    let cpu_ms = shake_hands(arguments, &cluster, &connector(&files, mutual)?).await?;
                    println!("round {round}  handshake, mutual: {mutual:5}  {cpu_ms:.3} ms of server CPU");
                    handshakes.push(Handshake { round, mutual, cpu_ms });
                }
                for (storm, name) in STORMS {
                    let under = put_under(arguments, &cluster, round, storm, &connector(&files, false)?).await?;
                    println!(
                        "round {round}  puts during: {name}  p99 {:.1} ms, slowest {:.1} ms, errors: {} {}, elections: {}",
                        under.measurement.latency_us_p99 as f64 / 1e3,
                        under.measurement.latency_us_max as f64 / 1e3,
                        under.measurement.errors,
                        under.measurement.first_error.as_deref().unwrap_or_default(),
                        under.elections
                    );
                    storms.push(under);
                }
            }
            cluster.stop().await?;
            workspace.discard(&data)?;
        }
    }
    use_tls(None);
    workspace.finish()?;

    let mut goals: Vec<Goal> = WORKLOADS.iter().map(|workload| goal_of(&records, *workload)).collect();
    goals.push(Goal {
        what: "server CPU of a mutual handshake".to_owned(),
        limit: Limit::AtMost(HANDSHAKE_MS_MAX),
        measured: Spread::of(handshakes.iter().filter(|one| one.mutual).map(|one| one.cpu_ms)).median,
        unit: " ms",
    });
    let of_storms = |storm, of: fn(&UnderStorm) -> f64| {
        Spread::of(storms.iter().filter(|under| under.storm == storm).map(of)).median
    };
    let p99 = |under: &UnderStorm| under.measurement.latency_us_p99 as f64;
    let slowest = |under: &UnderStorm| under.measurement.latency_us_max as f64;
    for (storm, name) in &STORMS[1..] {
        for (what, of) in [("p99", p99 as fn(&UnderStorm) -> f64), ("slowest", slowest)] {
            goals.push(Goal {
                what: format!("{what} of puts during {name}, to that without"),
                limit: Limit::AtMost(PUT_RATIO_MAX),
                measured: of_storms(*storm, of) / of_storms(Storm::None, of),
                unit: "×",
            });
        }
    }
    goals.push(Goal {
        what: "elections during handshakes".to_owned(),
        limit: Limit::AtMost(0.0),
        measured: storms.iter().map(|under| under.elections as f64).sum(),
        unit: "",
    });
    let verdict = Goal::verdict(&goals);
    let figures = Figures { environment, goals, records, handshakes, storms };
    publish(&arguments.common, "tls", &markdown(arguments, &figures), &figures, true)?;
    Ok(verdict)
}

async fn measure(
    arguments: &TlsArguments,
    cluster: &OursCluster,
    round: u32,
    workload: Workload,
) -> Result<Measurement> {
    let clients = usize::from(arguments.clients);
    let target = Target::ours(cluster.leader().await?, clients);
    let plan = LoadPlan {
        workload,
        clients,
        warm_up: WARM_UP,
        measured: Duration::from_secs(arguments.seconds),
        key_count: arguments.keys,
        seed: u64::from(round),
    };
    load::run(&target, &plan, &cluster.pids()).await
}

/// Opens a connection, and closes it.
async fn shake(tls: &TlsConnector, node: SocketAddr) -> Result<()> {
    let stream = connect_socket(node, None, None).await?;
    let mut session = tls.connect(ServerName::from(node.ip()), stream).await?;
    // In TLS 1.3 the client is done before the node has verified its certificate. The end of the connection comes after
    // that.
    session.shutdown().await?;
    let _ = session.read(&mut [0; 16]).await;
    Ok(())
}

/// Makes handshakes with the leader one after another; returns the CPU time of all nodes for each.
async fn shake_hands(arguments: &TlsArguments, cluster: &OursCluster, tls: &TlsConnector) -> Result<f64> {
    let leader = cluster.leader().await?.address;
    let pids = cluster.pids();
    let cores = |before: &Sample| -> Result<f64> { Ok(Sample::take(&pids)?.cores_since(before).servers.iter().sum()) };
    let before = Sample::take(&pids)?;
    tokio::time::sleep(WARM_UP).await;
    let idle = cores(&before)?;
    let (before, began) = (Sample::take(&pids)?, Instant::now());
    for _ in 0..arguments.handshakes {
        shake(tls, leader).await?;
    }
    let seconds = (cores(&before)? - idle) * began.elapsed().as_secs_f64();
    Ok(seconds * 1000.0 / f64::from(arguments.handshakes))
}

/// Puts by a few clients during the storm at the leader.
async fn put_under(
    arguments: &TlsArguments,
    cluster: &OursCluster,
    round: u32,
    storm: Storm,
    tls: &TlsConnector,
) -> Result<UnderStorm> {
    let before = cluster.leader().await?;
    // Dropped at the end, which ends the tasks.
    let mut stormy = JoinSet::new();
    match storm {
        Storm::None => {}
        Storm::Handshakes => {
            let tls = tls.clone();
            stormy.spawn(async move {
                let mut beat = tokio::time::interval(Duration::from_secs(1) / HANDSHAKES_PER_SECOND);
                let mut shaking = JoinSet::new();
                loop {
                    beat.tick().await;
                    let (tls, leader) = (tls.clone(), before.address);
                    shaking.spawn(async move { tokio::time::timeout(HANDSHAKE_TIMEOUT, shake(&tls, leader)).await });
                    while shaking.try_join_next().is_some() {}
                }
            });
        }
        Storm::Unfinished => {
            for number in 0..UNFINISHED {
                stormy.spawn(async move {
                    // Not all at the same time.
                    tokio::time::sleep(UNFINISHED_PAUSE.mul_f64(number as f64 / UNFINISHED as f64)).await;
                    loop {
                        if let Ok(mut stream) = connect_socket(before.address, None, None).await {
                            let _ = stream.write_all(&CLIENT_HELLO_BEGIN).await;
                            let _ = stream.read(&mut [0; 16]).await;
                        }
                        tokio::time::sleep(UNFINISHED_PAUSE).await;
                    }
                });
            }
        }
    }
    let plan = LoadPlan {
        workload: Workload::Put,
        clients: PROBES,
        warm_up: WARM_UP,
        measured: Duration::from_secs(arguments.seconds),
        key_count: arguments.keys,
        seed: u64::from(round),
    };
    let measurement = load::run(&Target::ours(before, PROBES), &plan, &cluster.pids()).await?;
    drop(stormy);
    let elections = cluster.leader().await?.term - before.term;
    Ok(UnderStorm { round, storm, elections, measurement })
}

fn cpu_of(records: &[Record], workload: Workload, with_tls: bool) -> Spread {
    let chosen = records.iter().filter(|record| record.workload == workload && record.with_tls == with_tls);
    Spread::of(chosen.map(|record| record.measurement.server_cpu_us_per_operation))
}

fn goal_of(records: &[Record], workload: Workload) -> Goal {
    let cpu = |with_tls| cpu_of(records, workload, with_tls).median;
    Goal {
        what: format!("server CPU of {} with TLS, to that without", workload.route()),
        limit: Limit::AtMost(REQUEST_RATIO_MAX),
        measured: cpu(true) / cpu(false),
        unit: "×",
    }
}

fn markdown(arguments: &TlsArguments, figures: &Figures) -> String {
    let mut text = format!(
        "## TLS\n\n{}\n{} clients on kept connections, values of {VALUE_BYTES} bytes, {} rounds of {} s. CPU is that of all \
         three nodes. Medians, minima and maxima.\n\n{}\n| request | TLS | requests/s | server CPU µs |\n\
         | --- | --- | --- | --- |\n",
        figures.environment.markdown(),
        arguments.clients,
        arguments.rounds,
        arguments.seconds,
        Goal::table(&figures.goals),
    );
    for workload in WORKLOADS {
        for with_tls in [false, true] {
            let chosen = figures.records.iter().filter(|one| one.workload == workload && one.with_tls == with_tls);
            let rate = Spread::of(chosen.map(|one| one.measurement.operations_per_second));
            text += &format!(
                "| {} | {} | {} | {} |\n",
                workload.route(),
                if with_tls { "yes" } else { "no" },
                rate.text(thousands),
                cpu_of(&figures.records, workload, with_tls).text(one_digit)
            );
        }
    }
    text += "\n| handshake | server CPU ms |\n| --- | --- |\n";
    for (mutual, name) in [(false, "the node's certificate only"), (true, "mutual")] {
        let spread = Spread::of(figures.handshakes.iter().filter(|one| one.mutual == mutual).map(|one| one.cpu_ms));
        text += &format!("| {name} | {} |\n", spread.text(two_digits));
    }
    text += &format!(
        "\n{PROBES} clients put to the leader during what the first column has:\n\n| handshakes at the leader | p99 ms | \
         slowest ms | failed puts | elections |\n| --- | --- | --- | --- | --- |\n"
    );
    for (storm, name) in STORMS {
        let chosen = || figures.storms.iter().filter(move |under| under.storm == storm);
        text += &format!(
            "| {name} | {} | {} | {} | {} |\n",
            Spread::of(chosen().map(|under| under.measurement.latency_us_p99 as f64 / 1e3)).text(one_digit),
            Spread::of(chosen().map(|under| under.measurement.latency_us_max as f64 / 1e3)).text(one_digit),
            chosen().map(|under| under.measurement.errors).sum::<u64>(),
            chosen().map(|under| under.elections).sum::<u64>()
        );
    }
    text
}
