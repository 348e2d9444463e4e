//! Disks that lose power, fail, fill up, stall or return wrong data.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use harness::process::Process;
use tokio::time::Instant;

use super::snapshot::fall_behind;
use super::{CLIENT_OF_FAULTS, Scene, Sight, Who};
use crate::disk::FileSystem;
use crate::finding::{HarnessError, Symptom};
use crate::history::{Call, NodeId, Outcome};
use crate::network::Rule;
use crate::node::Node;
use crate::sandbox::run;
use crate::store::{CLIENT_DEADLINE, NodeStatus};

/// The exit code of a node whose disk failed.
const EXIT_DISK_FAILED: [i32; 1] = [74];
/// The exit codes of a node whose data is damaged, or belongs to another node.
const EXIT_DAMAGED: [i32; 2] = [65, 78];
/// How long a node may take to notice a fault.
const NOTICE_DEADLINE: Duration = Duration::from_secs(15);
/// How long until a restarted node has been sent a snapshot that it cannot write.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(4);
/// Free space on a disk on which a leader must reject writes, but can still write requests in progress: less
/// than half of the server's `DISK_FREE_BYTES_MIN`.
const SCARCE_BYTES: u64 = 48 << 20;
/// Duration of a sync during which the power is cut: longer than an election.
const STUCK_SYNC: Duration = Duration::from_secs(6);
/// More snapshots than a node begins between two starts.
const TEMPORARY_SNAPSHOTS_MAX: usize = 500;
/// Number of nodes that one fault kills at system calls, one after another.
const KILLS_AT_CALLS: usize = 5;
/// The system calls at which a node is killed, with the maximum call number in one thread while the node runs
/// and while it starts (`strace` counts by thread). 0: never.
const CALLS: [(&str, u32, u32); 9] = [
    ("fdatasync", 60, 60),
    ("write", 120, 120),
    ("writev", 60, 60),
    ("sendto", 60, 60),
    ("openat", 4, 6),
    ("rename", 1, 1),
    ("fsync", 3, 4),
    ("unlink", 2, 2),
    ("ftruncate", 0, 1),
];

/// The system calls that fail, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    Sync,
    Write,
    NoSpace,
}

pub async fn cut_power(scene: &mut Scene<'_>, who: Who) -> Result<String> {
    let targets = scene.choose(who).await?;
    let file_systems = lose_power(scene, &targets, Vec::new()).await?;
    scene.cluster.heal()?;
    Ok(format!("nodes {targets:?}, {file_systems:?}"))
}

/// Cuts the power while slow syncs keep much data unsynced. None of that data may have been acknowledged.
pub async fn cut_power_in_sync(scene: &mut Scene<'_>, who: Who) -> Result<String> {
    let targets = scene.choose(who).await?;
    let straces = slow_down(scene, &targets, STUCK_SYNC)?;
    scene.hold(300..1200).await;
    lose_power(scene, &targets, straces).await?;
    scene.cluster.heal()?;
    Ok(format!("nodes {targets:?}"))
}

/// Kills the leader and cuts the power of the others while they vote. Syncs are so slow that no vote can be
/// on disk: a node that reports the new term must still report it after the power cut.
pub async fn cut_power_in_election(scene: &mut Scene<'_>) -> Result<String> {
    let all = scene.choose(Who::All).await?;
    let (leader, others) = all.split_first().context("a cluster without nodes")?;
    let term = highest_term(&scene.cluster.statuses().await);
    scene.cluster.node(*leader)?.kill()?;
    let straces = slow_down(scene, others, STUCK_SYNC)?;
    let deadline = Instant::now() + STUCK_SYNC / 2;
    while Instant::now() < deadline && highest_term(&scene.cluster.statuses().await) <= term {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    lose_power(scene, others, straces).await?;
    scene.cluster.heal()?;
    Ok(format!("leader {leader}, nodes {others:?}, after term {term}"))
}

fn highest_term(statuses: &[(NodeId, NodeStatus)]) -> u64 {
    statuses.iter().map(|(_, status)| status.term).max().unwrap_or_default()
}

/// Cuts the power of nodes, and restarts them. They must know their term from disk: they receive nothing from
/// each other until they were asked for it.
async fn lose_power(scene: &mut Scene<'_>, targets: &[NodeId], straces: Vec<Process>) -> Result<Vec<FileSystem>> {
    let mut file_systems = Vec::new();
    let told = scene.cluster.statuses().await;
    for id in targets {
        let node = scene.cluster.node(*id)?;
        // A node without power must not send anything. When a file system is shut down, about one in ten
        // syncs in progress reports success, and a process that lives on would acknowledge the data.
        node.freeze().await?;
        let disk = node.disk.as_ref().context("a power cut needs a disk of its own")?;
        file_systems.push(disk.file_system);
        disk.cut_power()?;
    }
    // Lets the stuck calls continue, and fail. Otherwise the processes would not end first.
    drop(straces);
    for id in targets {
        scene.cluster.node(*id)?.kill()?;
    }
    scene.hold(100..1500).await;
    let others: Vec<Rule> = scene.cluster.nodes.iter().map(|node| Rule::Drop(node.host.address)).collect();
    for id in targets {
        let node = scene.cluster.node(*id)?;
        node.disk.as_ref().context("a power cut needs a disk of its own")?.restore_power()?;
        node.host.set_rules(&others)?;
        node.start()?;
    }
    for id in targets {
        wait_until_it_answers(scene, *id).await?;
        let host = scene.cluster.node(*id)?.host.clone();
        let now = scene.cluster.client.status(host.http()).await?.term;
        let before = told.iter().find(|(told, _)| told == id).map_or(0, |(_, status)| status.term);
        if now < before {
            let text = format!("node {id} was in term {before}, and after the power was cut it is in term {now}");
            scene.symptom(Symptom::WentBack, text);
        }
    }
    Ok(file_systems)
}

fn slow_down(scene: &mut Scene<'_>, targets: &[NodeId], delay: Duration) -> Result<Vec<Process>> {
    let inject = format!("delay_enter={}", delay.as_micros());
    targets.iter().map(|id| scene.cluster.node(*id)?.strace("fdatasync,fsync", &inject)).collect()
}

/// The files on which a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Log,
    /// A snapshot that the node builds.
    SnapshotBuilt,
    /// A snapshot that the node receives.
    SnapshotReceived,
    /// The directory that a new snapshot of either kind is renamed in.
    SnapshotName,
}

/// Lets one disk call and all later ones of its kind fail. The node must stop and report that its disk
/// failed.
pub async fn call_fails(scene: &mut Scene<'_>, failing: Failing) -> Result<String> {
    let (calls, error) = match failing {
        Failing::Sync => ("fdatasync,fsync", "EIO"),
        Failing::Write => ("write,pwrite64,writev,pwritev", "EIO"),
        Failing::NoSpace => ("write,pwrite64,writev,pwritev", "ENOSPC"),
    };
    let place = match scene.random.u8(..6) {
        0..3 => Place::Log,
        3 if failing == Failing::Sync => Place::SnapshotName,
        3..5 => Place::SnapshotBuilt,
        _ => Place::SnapshotReceived,
    };
    let who = if place != Place::SnapshotReceived && scene.random.bool() { Who::Leader } else { Who::Follower };
    let id = scene.choose(who).await?[0];
    if place == Place::SnapshotReceived {
        fall_behind(scene, id).await?;
        scene.cluster.node(id)?.start()?;
    }
    // A snapshot is the first work of a thread, or its only one.
    let when = if place == Place::Log { scene.random.u32(1..20) } else { 1 };
    let node = scene.cluster.node(id)?;
    let files = match place {
        Place::Log => log_files(&node.data_directory())?,
        Place::SnapshotName => vec![node.snapshot_directory()],
        Place::SnapshotBuilt | Place::SnapshotReceived => temporary_snapshots(&node.snapshot_directory()),
    };
    // Every call from then on fails; otherwise a newly written file would succeed.
    let inject = format!("error={error}:when={when}+");
    node.expect_exit(&EXIT_DISK_FAILED);
    let mut strace = node.strace_files(calls, &inject, &files)?;
    // A snapshot for which there is no space is rejected if another node sent it, and given up if the node
    // builds it.
    let said_before = node.log().len();
    let refused = |node: &Node| {
        let log = node.log();
        let said = log.get(said_before..).unwrap_or_default();
        said.contains("cannot receive a snapshot into") || said.contains("cannot take a snapshot at index")
    };
    let is_refused = place != Place::Log && failing == Failing::NoSpace;
    let mut status = node.wait(if is_refused { REFUSAL_DEADLINE } else { NOTICE_DEADLINE }).await?;
    strace.signal(libc::SIGTERM)?;
    strace.wait(Duration::from_secs(5)).await?;
    let came = node.strace_injected()?;
    if came && status.is_none() && !refused(node) {
        status = node.wait(NOTICE_DEADLINE).await?; // The failing call may have come late.
    }
    // An exit code other than 74 is detected when the node is restarted.
    let goes_on = status.is_none() && !refused(node);
    if !came {
        scene.did_nothing();
    } else if goes_on {
        scene.finding(format!("node {id} keeps running although {calls} fails with {error}: {place:?}"));
    }
    scene.hold(100..1000).await;
    scene.cluster.heal()?;
    let end = if status.is_some() { "ended" } else { "kept running" };
    Ok(format!("node {id}, {place:?}, call {when}: {end}"))
}

/// The files in which snapshots are built and received, existing and future ones.
fn temporary_snapshots(directory: &Path) -> Vec<PathBuf> {
    (0..TEMPORARY_SNAPSHOTS_MAX).map(|number| directory.join(format!("new-{number}.tmp"))).collect()
}

/// Starts a node on a disk that is read-only, and on one from which it cannot read a file. The node must
/// report that, change nothing, and start once the disk is repaired.
pub async fn start_fails(scene: &mut Scene<'_>) -> Result<String> {
    let who = if scene.random.bool() { Who::Leader } else { Who::Follower };
    let id = scene.choose(who).await?[0];
    let node = scene.cluster.node(id)?;
    node.kill()?;
    let (data, snapshots) = (node.data_directory(), node.snapshot_directory());
    let before = contents(&data)?;
    let disk = node.disk.as_ref().context("a disk fault needs a disk of its own")?;
    disk.make_read_only()?;
    node.start()?;
    check_refusal(scene, id, "Read-only file system", &data).await?;
    scene.cluster.node(id)?.disk.as_ref().context("the node has no disk of its own")?.make_writable()?;

    let files = read_at_start(&data, &snapshots)?;
    let file = files.get(scene.random.usize(..files.len())).context("a node without files")?;
    let calls = ["openat", "read,pread64,getdents64"][scene.random.usize(..2)];
    let node = scene.cluster.node(id)?;
    node.start_under(&strace_from_start(calls, "error=EIO", std::slice::from_ref(file)))?;
    check_refusal(scene, id, "Input/output error", file).await?;

    if contents(&data)? != before {
        scene.finding(format!("node {id} refuses to start, but changed its files"));
    }
    scene.cluster.node(id)?.start()?;
    wait_until_it_answers(scene, id).await?;
    scene.cluster.heal()?;
    Ok(format!("node {id}, then {calls} of {}", file.strip_prefix(&data).unwrap_or(file).display()))
}

/// A node that was just started must end with an error that names reason and path, and never serve.
async fn check_refusal(scene: &mut Scene<'_>, id: NodeId, reason: &str, path: &Path) -> Result<()> {
    let node = scene.cluster.node(id)?;
    node.expect_exit(&EXIT_DISK_FAILED);
    let effect = refusal_or_start(scene, id).await?;
    let node = scene.cluster.node(id)?;
    // The last line of the log is the reason.
    let said = node.log_tail(1);
    node.kill()?;
    let path = path.display().to_string();
    if effect != Effect::Refused || !said.starts_with("error: ") || !said.contains(reason) || !said.contains(&path) {
        scene.finding(format!(
            "node {id} was started while `{path}` fails ({reason}): {effect:?}; its log ends with: {said}"
        ));
    }
    Ok(())
}

/// The files that a node needs when it starts, and the directories that it lists. Earlier snapshots and
/// unfinished files are not among them.
fn read_at_start(data: &Path, snapshots: &Path) -> Result<Vec<PathBuf>> {
    let index = |path: &PathBuf| -> Option<u64> { path.file_stem()?.to_str()?.parse().ok() };
    let mut files = files_below(data)?;
    let newest = files.iter().filter(|path| path.starts_with(snapshots)).filter_map(index).max();
    files.retain(|path| match path.extension() {
        Some(extension) if extension == "snap" => index(path) == newest,
        Some(extension) => extension != "tmp",
        None => path.file_name().is_some_and(|name| name != "LOCK"),
    });
    files.extend([snapshots.to_owned(), snapshots.with_file_name("log")]);
    Ok(files)
}

/// All files with their contents, except the lock file.
fn contents(data: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let files = files_below(data)?.into_iter().filter(|path| path.file_name().is_some_and(|name| name != "LOCK"));
    files
        .map(|path| {
            let bytes = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            Ok((path, bytes))
        })
        .collect()
}

pub async fn slow_sync(scene: &mut Scene<'_>) -> Result<String> {
    let who = [Who::Leader, Who::Follower, Who::Majority][scene.random.usize(..3)];
    let targets = scene.choose(who).await?;
    let milliseconds = scene.random.u64(20..400);
    let mut straces = slow_down(scene, &targets, Duration::from_millis(milliseconds))?;
    scene.hold(1500..4000).await;
    for strace in &mut straces {
        // `strace` detaches from the node, which keeps running.
        strace.signal(libc::SIGTERM)?;
        strace.wait(Duration::from_secs(5)).await?;
    }
    scene.cluster.heal()?;
    Ok(format!("nodes {targets:?}, {milliseconds} ms"))
}

/// Fills a node's disk with a file: writes must be rejected, and nothing may be lost.
pub async fn fill(scene: &mut Scene<'_>) -> Result<String> {
    let who = [Who::Leader, Who::Follower, Who::All][scene.random.usize(..3)];
    let targets = scene.choose(who).await?;
    let mut directories = Vec::new();
    for id in &targets {
        let node = scene.cluster.node(*id)?;
        node.expect_exit(&EXIT_DISK_FAILED);
        let disk = node.disk.as_ref().context("filling needs a disk of its own")?;
        directories.push(disk.directory().to_owned());
    }
    for directory in &directories {
        // Leaves some space at first; otherwise a request in progress ends the node before it can reject one.
        let filler_bytes = free_bytes(directory)?.saturating_sub(SCARCE_BYTES);
        run("fallocate", &["-l", &filler_bytes.to_string(), &directory.join("filler").display().to_string()])?;
    }
    let refusal = match who {
        Who::Leader | Who::All => wait_for_refusal(scene, targets[0]).await?,
        Who::Follower | Who::Majority => "nothing to reject",
    };
    for directory in &directories {
        fill_up(directory, &directory.join("rest"))?;
    }
    scene.hold(1500..4000).await;
    for directory in &directories {
        for filler in ["filler", "rest"] {
            fs::remove_file(directory.join(filler)).context("cannot free the space again")?;
        }
    }
    // A node that just ran out of space may still be about to end.
    scene.hold(300..600).await;
    scene.cluster.heal()?;
    Ok(format!("nodes {targets:?}, {refusal}"))
}

/// A leader whose disk is full must reject a write as not applied, for that reason.
async fn wait_for_refusal(scene: &mut Scene<'_>, leader: NodeId) -> Result<&'static str> {
    let host = scene.cluster.node(leader)?.host.clone();
    let deadline = Instant::now() + NOTICE_DEADLINE;
    loop {
        let call = Call::Put { key: "full/1".into(), value: "full".into(), condition: None };
        let called_ns = scene.recorder.now_ns();
        let attempt = scene.cluster.client.call(host.http(), &call, None, CLIENT_DEADLINE).await;
        let refused = attempt.outcome == Outcome::NotApplied && attempt.reason.starts_with("507 ");
        scene.recorder.add(CLIENT_OF_FAULTS, host.id, called_ns, call, attempt.outcome);
        if refused {
            scene.saw(Sight::WriteRefused);
            return Ok("refused");
        }
        if scene.cluster.leader().await.is_some_and(|now| now != leader) || !scene.cluster.node(leader)?.is_running()? {
            return Ok("another node led before it rejected a write");
        }
        if Instant::now() > deadline {
            scene.finding(format!(
                "node {leader} leads with a full disk, but rejects no write with 507; its last response: {}",
                attempt.reason
            ));
            return Ok("not rejected");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn free_bytes(directory: &Path) -> Result<u64> {
    let output = Command::new("stat").args(["-f", "-c", "%a %S"]).arg(directory).output();
    let said = String::from_utf8(output.context("cannot start `stat`")?.stdout)?;
    let (blocks, block_bytes) = said.trim().split_once(' ').context("`stat` does not report the free space")?;
    Ok(blocks.parse::<u64>()? * block_bytes.parse::<u64>()?)
}

fn fill_up(directory: &Path, filler: &Path) -> Result<()> {
    // Larger pieces first; the space left then is too small for any piece.
    let mut size = 512_u64 << 20;
    let mut length = 0;
    while size >= 4096 {
        let arguments = ["-l", &size.to_string(), "-o", &length.to_string(), &filler.display().to_string()];
        match run("fallocate", &arguments) {
            Ok(()) => length += size,
            Err(_) => size /= 2,
        }
    }
    if length == 0 {
        bail!(HarnessError(format!("`{}` was already full", directory.display())));
    }
    Ok(())
}

/// Kills nodes as they enter a system call, whatever they are doing.
pub async fn kill_at_call(scene: &mut Scene<'_>) -> Result<String> {
    let mut done = Vec::new();
    let mut came_count = 0;
    for _ in 0..KILLS_AT_CALLS {
        let ids = scene.cluster.ids();
        let id = ids[scene.random.usize(..ids.len())];
        let (call, while_running, while_starting) = CALLS[scene.random.usize(..CALLS.len())];
        let starting = while_running == 0 || scene.random.u8(..4) == 0;
        let when = scene.random.u32(1..=if starting { while_starting } else { while_running });
        let patience = Duration::from_millis(scene.random.u64(1000..2500));
        let node = scene.cluster.node(id)?;
        let inject = format!("signal=SIGKILL:when={when}");
        let came = if starting {
            node.kill()?;
            node.start_under(&strace_from_start(call, &inject, &[]))?;
            node.expect_kill();
            node.wait(patience).await?.is_some()
        } else {
            node.expect_kill();
            let mut strace = node.strace(call, &inject)?;
            let came = node.wait(patience).await?.is_some();
            strace.kill()?;
            came
        };
        // A rare call may never come: the node is then killed anyway.
        node.kill()?;
        node.start()?;
        if came {
            came_count += 1;
            scene.killed_at(call);
        }
        let place = if starting { "while starting" } else { "while running" };
        done.push(format!("{id} {call}#{when} {}", if came { place } else { "without that call" }));
        wait_until_it_answers(scene, id).await?;
    }
    scene.cluster.heal()?;
    if came_count == 0 {
        scene.did_nothing();
    }
    Ok(format!("{came_count} of {KILLS_AT_CALLS} at their call: {}", done.join(", ")))
}

/// The node is the harness's own child (`-D`), so waiting for it ensures that it has ended. Otherwise a
/// second process would be started while the first still runs.
fn strace_from_start(calls: &str, inject: &str, files: &[PathBuf]) -> Vec<String> {
    let arguments = ["strace", "-D", "-f", "-q", "-o", "/dev/null", "-e"];
    let mut command: Vec<String> = arguments.map(str::to_owned).to_vec();
    command.extend([format!("trace={calls}"), "-e".to_owned(), format!("inject={calls}:{inject}")]);
    command.extend(files.iter().flat_map(|file| ["-P".to_owned(), file.display().to_string()]));
    command
}

async fn wait_until_it_answers(scene: &mut Scene<'_>, id: NodeId) -> Result<()> {
    let deadline = Instant::now() + NOTICE_DEADLINE;
    let client = scene.cluster.client.clone();
    loop {
        let node = scene.cluster.node(id)?;
        if client.status(node.host.http()).await.is_ok() {
            return Ok(());
        }
        if !node.is_running()? {
            let tail = node.log_tail(5);
            bail!("node {id} does not restart:\n{tail}");
        }
        if Instant::now() > deadline {
            bail!("node {id} does not respond after a restart");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Flips a bit of a file before the node starts. The node must refuse to start, or work correctly without the
/// file. It starts once the bit is restored.
pub async fn flip(scene: &mut Scene<'_>) -> Result<String> {
    let id = scene.choose(Who::Follower).await?[0];
    scene.cluster.node(id)?.kill()?;
    // Until the bit is restored, the node's view of its data must not reach the other nodes.
    let others: Vec<Rule> = scene.cluster.nodes.iter().map(|node| Rule::Drop(node.host.address)).collect();
    scene.cluster.node(id)?.host.set_rules(&others)?;
    let data = scene.cluster.node(id)?.data_directory();
    let mut candidates = Vec::new();
    for path in files_below(&data)? {
        let length = fs::metadata(&path).context("cannot read a file's length")?.len();
        if length > 0 && path.file_name().is_some_and(|name| name != "LOCK") {
            candidates.push((path, length));
        }
    }
    let Some((path, length)) = candidates.get(scene.random.usize(..candidates.len().max(1))) else {
        scene.cluster.heal()?;
        scene.did_nothing();
        return Ok("nothing to flip".to_owned());
    };
    let copy = data.with_file_name("data.before");
    run("cp", &["-a", &data.display().to_string(), &copy.display().to_string()])?;
    let (offset, bit) = (scene.random.u64(..*length), scene.random.u8(..8));
    flip_bit(path, offset, bit)?;
    let node = scene.cluster.node(id)?;
    // The node may replace a damaged snapshot by the one before it.
    node.count_disk();
    node.start()?;
    node.expect_exit(&EXIT_DAMAGED);
    let mut effect = refusal_or_start(scene, id).await?;
    scene.cluster.node(id)?.kill()?;
    let is_snapshot = path.parent().and_then(Path::file_name).is_some_and(|name| name == "snapshots");
    if effect == Effect::Refused {
        scene.saw(Sight::StartRefused);
        flip_bit(path, offset, bit)?;
    } else if !is_snapshot {
        // The log and the identity are needed in full, except a record that was torn before.
        scene.cluster.node(id)?.wipe()?;
        run("cp", &["-a", &copy.display().to_string(), &data.display().to_string()])?;
        run("sync", &["-f", &data.display().to_string()])?; // The next power cut must not undo this.
        if was_torn(scene, id, path, offset).await? {
            effect = Effect::WasTorn;
        } else {
            let name = path.display();
            let text =
                format!("node {id} starts although bit {bit} of byte {offset} of {length} of `{name}` is flipped");
            scene.symptom(Symptom::Start, text);
        }
    }
    fs::remove_dir_all(&copy).context("cannot remove a copy of a node's data")?;
    scene.cluster.heal()?;
    let name = path.file_name().unwrap_or_default().display();
    Ok(format!("node {id}, {name}, byte {offset}, bit {bit}: {effect:?}"))
}

/// The effect of a flipped bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Refused,
    Started,
    /// The node started without a record that was incomplete anyway: nodes are killed while they write.
    WasTorn,
}

/// Starts a node with the data from before the flip, and returns whether the node itself reports that it
/// truncates the part with the bit.
async fn was_torn(scene: &mut Scene<'_>, id: NodeId, path: &Path, flipped: u64) -> Result<bool> {
    let node = scene.cluster.node(id)?;
    let said_before = node.log().len();
    node.start()?;
    wait_until_it_answers(scene, id).await?;
    let log = scene.cluster.node(id)?.log();
    let said = log.get(said_before..).unwrap_or_default();
    let cut = said.split_once(&format!("off `{}` at offset ", path.display())).map(|(_, rest)| rest);
    let digits = cut.and_then(|rest| rest.split(|letter: char| !letter.is_ascii_digit()).next());
    let cut_at: Option<u64> = digits.and_then(|digits| digits.parse().ok());
    Ok(cut_at.is_some_and(|offset| offset <= flipped))
}

async fn refusal_or_start(scene: &mut Scene<'_>, id: NodeId) -> Result<Effect> {
    let deadline = Instant::now() + NOTICE_DEADLINE;
    let client = scene.cluster.client.clone();
    loop {
        let node = scene.cluster.node(id)?;
        if node.wait(Duration::from_millis(10)).await?.is_some() {
            return Ok(Effect::Refused); // `Node` reports an unexpected exit code.
        }
        if client.status(node.host.http()).await.is_ok() {
            return Ok(Effect::Started);
        }
        if Instant::now() > deadline {
            bail!("node {id} neither starts nor refuses to start with a flipped bit");
        }
    }
}

fn flip_bit(path: &Path, offset: u64, bit: u8) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path).context("cannot open a file to damage it")?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).context("cannot read a byte")?;
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, offset).context("cannot write a byte")?;
    // A later power cut must not restore the wrong bit.
    file.sync_all().context("cannot sync a byte")
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list `{}`", directory.display()))? {
        let path = entry.context("cannot list a directory")?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The files of the log, in order. The node appends to the last one.
fn log_files(data: &Path) -> Result<Vec<PathBuf>> {
    let files = files_below(data)?;
    let in_log = |path: &PathBuf| path.parent().and_then(Path::file_name).is_some_and(|name| name == "log");
    Ok(files.into_iter().filter(in_log).collect())
}
