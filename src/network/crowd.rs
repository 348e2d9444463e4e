//! What the connections of a node are doing: those that only take up room are closed.
//!
//! Clients keep connections for later, and some open them and never ask for anything. While
//! there is room they may, for [`KEEP_ALIVE`](crate::config::KEEP_ALIVE). But who comes when there
//! is none waits in the system's queue. So a node with hardly any room closes those that have been
//! without a request for longest: not under a request or a watch, and none that another node
//! sends RPCs on. A client that sends a request just then has to send it again, as with every idle
//! connection that is closed.
//!
//! A request whose head does not come to its end is given up at any time. (The HTTP library does
//! so for the first one of a connection, and answers it with 408; whoever has used a connection
//! before could take that for the answer to another request, and gets none. A head that began to come
//! under the request before it is not seen: it counts as nothing.)

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use crate::config::{CROWD_LOOK, REQUEST_HEAD_DEADLINE, REQUESTS_A_TURN};

/// How many looks a request may take to come.
const HEAD_LOOKS: u64 = (REQUEST_HEAD_DEADLINE.as_millis() / CROWD_LOOK.as_millis()) as u64;

/// The connections of one thread.
pub struct Connections {
    /// How many there may be.
    max: usize,
    open: Cell<usize>,
    /// In the order in which they came; some are gone.
    all: RefCell<Vec<Weak<Presence>>>,
    /// The number of looks so far.
    looks: Cell<u64>,
    is_crowded: Cell<bool>,
}

/// What one connection is doing.
pub struct Presence {
    connections: Rc<Connections>,
    doing: Cell<Doing>,
    /// Whether the last request was an RPC.
    is_node: Cell<bool>,
    is_let_go: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Nothing, since there had been so many looks.
    Nothing { since: u64 },
    /// A request has begun to come, when there had been so many looks.
    Coming { since: u64 },
    /// A request is under way, or stands in line.
    Request,
    /// An answer that goes on, such as a watch; whatever comes meanwhile waits for its end.
    Stream,
}

impl Connections {
    /// None yet, of at most `max`.
    pub fn new(max: usize) -> Rc<Self> {
        Rc::new(Connections {
            max,
            open: Cell::default(),
            all: RefCell::default(),
            looks: Cell::default(),
            is_crowded: Cell::default(),
        })
    }

    /// A new one, which has done nothing yet.
    pub fn open(self: &Rc<Self>) -> Rc<Presence> {
        let presence = Rc::new(Presence {
            connections: self.clone(),
            doing: Cell::new(Doing::Nothing { since: self.looks.get() }),
            is_node: Cell::default(),
            is_let_go: Cell::default(),
            waker: RefCell::default(),
        });
        self.open.set(self.open.get() + 1);
        let mut all = self.all.borrow_mut();
        // As many again as there are may be gone, so that this is seldom.
        if all.len() >= 2 * self.open.get() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Rc::downgrade(&presence));
        presence
    }

    /// Lets go of those that only take up room, for as long as the thread runs.
    pub async fn keep_room(self: Rc<Self>) {
        loop {
            tokio::time::sleep(CROWD_LOOK).await;
            for some in self.look().chunks(REQUESTS_A_TURN) {
                some.iter().for_each(|(one, doing)| one.let_go(*doing));
                // All that is ready to run goes first, Raft too.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Whom to let go, and what each is doing: those whose request does not come to an end; and once
    /// an eighth of all is not free any more, as many of those that do nothing as it takes until a
    /// quarter is, or as there are.
    fn look(&self) -> Vec<(Rc<Presence>, Doing)> {
        let looks = self.looks.get() + 1;
        self.looks.set(looks);
        let (open, max) = (self.open.get(), self.max);
        let is_short = open + max / 8 > max;
        self.note_crowd(is_short);
        let (mut leaving, mut idle) = (Vec::new(), Vec::new());
        for one in self.all.borrow().iter().filter_map(Weak::upgrade) {
            let doing = one.doing.get();
            match doing {
                Doing::Coming { since } if since + HEAD_LOOKS < looks => {
                    leaving.push((one, doing));
                }
                Doing::Nothing { since } if is_short && since + 1 < looks && !one.is_node.get() => {
                    idle.push((since, one, doing));
                }
                _ => {}
            }
        }
        // Of those that have done nothing for as long, those that came first.
        idle.sort_by_key(|(since, ..)| *since);
        let wanted = open.saturating_sub(max - max / 4);
        leaving.extend(idle.into_iter().take(wanted).map(|(_, one, doing)| (one, doing)));
        leaving
    }

    fn note_crowd(&self, is_short: bool) {
        let (open, max) = (self.open.get(), self.max);
        if is_short && !self.is_crowded.replace(true) {
            tracing::warn!(
                "{open} of the {max} connections that this node accepts are taken: those that have done nothing for \
                 longest are closed (a higher limit of open files may allow more)"
            );
        } else if open <= max / 2 && self.is_crowded.replace(false) {
            tracing::info!("there is room for connections again");
        }
    }
}

impl Presence {
    /// Some of a request has been read: an RPC, or not.
    pub fn come(&self, is_rpc: bool) {
        if self.doing.get() != Doing::Stream {
            self.is_node.set(is_rpc);
            self.set(Doing::Coming { since: self.connections.looks.get() });
        }
    }

    /// There is something to be read, and others were there before.
    pub fn wait(&self) {
        if self.doing.get() != Doing::Stream {
            self.begin();
        }
    }

    /// There was nothing to be read after all.
    pub fn wait_no_more(&self) {
        if self.doing.get() == Doing::Request {
            self.end(false);
        }
    }

    /// A request is under way.
    pub fn begin(&self) {
        self.set(Doing::Request);
    }

    /// It has its answer, or the beginning of one that goes on.
    pub fn end(&self, is_stream: bool) {
        self.set(if is_stream { Doing::Stream } else { self.nothing() });
    }

    fn nothing(&self) -> Doing {
        Doing::Nothing { since: self.connections.looks.get() }
    }

    fn set(&self, doing: Doing) {
        self.doing.set(doing);
        self.is_let_go.set(false);
    }

    /// There is something to do on it after all, if only an answer that is still being written: it
    /// is none of those that have done nothing for longest.
    pub fn stay(&self) {
        match self.doing.get() {
            Doing::Nothing { .. } => self.set(self.nothing()),
            _ => self.is_let_go.set(false),
        }
    }

    /// Has the connection closed, unless it is doing something else by now.
    fn let_go(&self, doing: Doing) {
        if self.doing.get() == doing {
            self.is_let_go.set(true);
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }

    /// Ready once the connection is to be closed, if there is nothing to be read from it.
    pub fn poll_let_go(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        if self.is_let_go.get() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.connections.open.set(self.connections.open.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    fn look(connections: &Connections) {
        connections.look().iter().for_each(|(one, doing)| one.let_go(*doing));
    }

    fn let_go(presences: &[Rc<Presence>]) -> Vec<usize> {
        let mut context = Context::from_waker(Waker::noop());
        let mut is_let_go = |one: &Rc<Presence>| one.poll_let_go(&mut context).is_ready();
        (0..presences.len()).filter(|number| is_let_go(&presences[*number])).collect()
    }

    /// Nobody is let go while an eighth is free; then it is those that have done nothing for
    /// longest, until a quarter would be free, and nobody that sends RPCs.
    #[test]
    fn who_has_done_nothing_for_longest_goes_first() {
        let connections = Connections::new(16);
        let mut presences: Vec<_> = (0..14).map(|_| connections.open()).collect();
        presences[5].come(true);
        presences[5].end(false);
        for _ in 0..5 {
            look(&connections);
        }
        assert!(let_go(&presences).is_empty());
        for number in [0, 1, 3] {
            presences[number].begin();
            presences[number].end(false);
        }
        presences[2].begin();
        presences.extend([connections.open(), connections.open()]);
        look(&connections);
        assert_eq!(let_go(&presences), [4, 6, 7, 8]);
        // They are gone for others to come.
        for number in [8, 7, 6, 4] {
            presences.remove(number);
        }
        presences.extend([connections.open(), connections.open(), connections.open()]);
        look(&connections);
        assert_eq!(let_go(&presences), [5, 6, 7]);
    }

    /// Neither is one with a request, nor one that has done nothing for less than a look, however many there are.
    #[test]
    fn who_has_something_to_do_stays() {
        let connections = Connections::new(8);
        let presences: Vec<_> = (0..8).map(|_| connections.open()).collect();
        presences[..7].iter().for_each(|one| one.begin());
        look(&connections);
        assert!(let_go(&presences).is_empty());
        look(&connections);
        assert_eq!(let_go(&presences), [7]);
        presences[7].begin();
        assert!(let_go(&presences).is_empty());
        presences[7].end(false);
        assert!(let_go(&presences).is_empty());
        look(&connections);
        assert!(let_go(&presences).is_empty());
        let chosen = {
            connections.looks.set(connections.looks.get() + 1);
            connections.look()
        };
        assert_eq!(chosen.len(), 1);
        presences[7].begin();
        chosen.iter().for_each(|(one, doing)| one.let_go(*doing));
        assert!(let_go(&presences).is_empty(), "it was chosen, and then had something to do");
    }

    /// A head that does not end is given up, however much room there is.
    #[test]
    fn a_head_that_does_not_end() {
        let connections = Connections::new(100);
        let presences: Vec<_> = (0..3).map(|_| connections.open()).collect();
        presences.iter().for_each(|one| one.come(false));
        presences[1].begin();
        for _ in 0..HEAD_LOOKS {
            look(&connections);
            assert!(let_go(&presences).is_empty());
            presences[2].come(false);
        }
        look(&connections);
        assert_eq!(let_go(&presences), [0]);
    }

    /// Those that cannot go do not keep others from it, and a stream is never let go, whatever comes on it.
    #[test]
    fn who_cannot_go_makes_way() {
        let connections = Connections::new(8);
        let presences: Vec<_> = (0..8).map(|_| connections.open()).collect();
        presences[0].end(true);
        presences[0].come(false);
        presences[0].wait();
        look(&connections);
        look(&connections);
        assert_eq!(let_go(&presences), [1, 2]);
        presences[1..3].iter().for_each(|one| one.stay());
        look(&connections);
        assert_eq!(let_go(&presences), [3, 4]);
        presences[3..].iter().for_each(|one| one.begin());
        for _ in 0..=HEAD_LOOKS {
            look(&connections);
        }
        assert_eq!(let_go(&presences), [1, 2]);
    }

    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One that is let go in vain, as something came just then, is woken when it is let go again.
    #[test]
    fn who_is_let_go_is_woken_each_time() {
        let connections = Connections::new(8);
        let presences: Vec<_> = (0..8).map(|_| connections.open()).collect();
        presences[1..].iter().for_each(|one| one.begin());
        let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
        let waker = Waker::from(wakes.clone());
        let mut context = Context::from_waker(&waker);
        assert!(presences[0].poll_let_go(&mut context).is_pending());
        for wanted in 1..=3 {
            look(&connections);
            assert_eq!(wakes.0.load(Ordering::Relaxed), wanted - 1);
            look(&connections);
            assert_eq!(wakes.0.load(Ordering::Relaxed), wanted);
            assert!(presences[0].poll_let_go(&mut context).is_ready());
            presences[0].stay();
        }
    }

    /// Those that are gone take no memory for long.
    #[test]
    fn gone_connections_are_forgotten() {
        let connections = Connections::new(100);
        let kept: Vec<_> = (0..10).map(|_| connections.open()).collect();
        for _ in 0..1000 {
            drop(connections.open());
        }
        assert_eq!(connections.open.get(), kept.len());
        assert!(connections.all.borrow().len() <= 2 * (kept.len() + 1));
    }
}
