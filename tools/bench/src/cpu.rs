//! CPU time of the servers, of this process, and of the whole machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// CPU time used up to one moment.
pub struct Sample {
    at: Instant,
    servers: Vec<Duration>,
    load: Duration,
    machine: Duration,
}

/// Cores used between two samples.
pub struct Cores {
    /// By each server process.
    pub servers: Vec<f64>,
    /// By this process.
    pub load: f64,
    /// By other processes and the kernel's own threads.
    pub other: f64,
}

impl Sample {
    pub fn take(servers: &[libc::pid_t]) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            servers: servers.iter().copied().map(of_process).collect::<Result<_>>()?,
            load: of_this_process()?,
            machine: of_machine()?,
        })
    }

    /// A sample is taken when its task gets a core, which may be late. The result is therefore averaged over
    /// the actual time between the samples.
    pub fn cores_since(&self, before: &Self) -> Cores {
        let between = (self.at - before.at).as_secs_f64();
        let cores = |after: Duration, before: Duration| (after.as_secs_f64() - before.as_secs_f64()) / between;
        let pairs = self.servers.iter().zip(&before.servers);
        let servers: Vec<f64> = pairs.map(|(after, before)| cores(*after, *before)).collect();
        let load = cores(self.load, before.load);
        let other = (cores(self.machine, before.machine) - servers.iter().sum::<f64>() - load).max(0.0);
        Cores { servers, load, other }
    }
}

/// User and system time of all threads of a process, including threads that have ended.
///
/// The kernel's CPU clock of the process counts nanoseconds; `/proc/<pid>/stat` counts hundredths of a
/// second.
fn of_process(pid: libc::pid_t) -> Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` outlives the call that fills it.
    let error = unsafe { libc::clock_getcpuclockid(pid, &mut clock) };
    ensure!(error == 0, "process {pid} has no CPU clock because it has ended");
    read_clock(clock).with_context(|| format!("cannot read the CPU clock of process {pid}"))
}

fn of_this_process() -> Result<Duration> {
    read_clock(libc::CLOCK_PROCESS_CPUTIME_ID).context("cannot read this process's CPU clock")
}

pub fn of_this_thread() -> Result<Duration> {
    read_clock(libc::CLOCK_THREAD_CPUTIME_ID).context("cannot read this thread's CPU clock")
}

fn read_clock(clock: libc::clockid_t) -> std::io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call that fills it.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Time that all cores together were not idle. Time stolen by the hypervisor counts, because neither the
/// servers nor the load could use it.
fn of_machine() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat").context("cannot read `/proc/stat`")?;
    // `cpu user nice system idle iowait irq softirq steal …`, in clock ticks.
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map_while(|field| field.parse().ok())
        .collect();
    ensure!(ticks.len() >= 8, "`/proc/stat` must have at least 8 fields in its first line, got {}", ticks.len());
    let busy = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6] + ticks[7];
    // SAFETY: sysconf only reads.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(Duration::from_secs_f64(busy as f64 / ticks_per_second as f64))
}
