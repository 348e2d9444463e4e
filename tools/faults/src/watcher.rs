//! Watches of the whole store from its first revision, which survive broken connections.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::Endpoints;
use crate::history::Change;
use crate::store::{Client, WatchPlace};

/// How long the watches may take to deliver the last change after all faults are healed.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(30);

/// A watch that is resumed at the next node whenever it breaks.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    stopped: AtomicBool,
    breaks: Mutex<(u64, String)>,
    place: Mutex<WatchPlace>,
    changes: Mutex<Vec<Change>>,
}

impl Watcher {
    /// `first` is the position in the list of nodes at which it begins.
    pub fn start(client: &Client, endpoints: &Endpoints, first: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(watch(client.clone(), endpoints.clone(), first, shared.clone()));
        Watcher { shared, task }
    }

    /// Waits until a revision was delivered completely, and returns all changes. Fails if that does not happen
    /// in time.
    pub async fn finish(self, revision: u64) -> Result<Vec<Change>> {
        let deadline = Instant::now() + CATCH_UP_DEADLINE;
        loop {
            let reached = self.shared.place.lock().expect("no thread panics while holding the lock").revision;
            if reached >= revision {
                break;
            }
            if Instant::now() > deadline {
                let (breaks, last) =
                    self.shared.breaks.lock().expect("no thread panics while holding the lock").clone();
                bail!(
                    "a watch reached revision {reached} instead of {revision}; it broke {breaks} times, last because of: {last}"
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The last revision may have several changes, which arrive together.
        tokio::time::sleep(Duration::from_millis(300)).await;
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.task.abort();
        Ok(std::mem::take(&mut *self.shared.changes.lock().expect("no thread panics while holding the lock")))
    }
}

async fn watch(client: Client, endpoints: Endpoints, first: usize, shared: Arc<Shared>) {
    let mut turn = first;
    let mut place = WatchPlace::default();
    while !shared.stopped.load(Ordering::Relaxed) {
        let host = {
            let endpoints = endpoints.read().expect("no thread panics while holding the lock");
            endpoints[turn % endpoints.len()].clone()
        };
        turn += 1;
        let result = client.watch(host.http(), &mut place, &|place, change| shared.take(place, change)).await;
        shared.note_break(match result {
            Ok(()) => format!("node {} ended the watch", host.id),
            Err(error) => format!("node {}: {error:#}", host.id),
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Shared {
    fn note_break(&self, reason: String) {
        let mut breaks = self.breaks.lock().expect("no thread panics while holding the lock");
        *breaks = (breaks.0 + 1, reason);
    }

    fn take(&self, place: &WatchPlace, change: Change) {
        self.changes.lock().expect("no thread panics while holding the lock").push(change);
        self.place.lock().expect("no thread panics while holding the lock").clone_from(place);
    }
}
