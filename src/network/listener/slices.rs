//! Long bodies are read and written in slices, so that short requests never wait for all of them.
//!
//! A thread runs ready tasks one after another. When 3,000 watches get a value of 1 MiB each, all of them are ready,
//! and the next request would wait until each has written as much as its socket takes, once for each step of the
//! request. So in one turn of its event loop the connections of a thread move at most [`SLICE_BYTES_PER_TURN`], and the
//! others wait in their order until all other ready tasks have run.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::config::SLICE_BYTES_PER_TURN;

/// The slices of one thread.
#[derive(Debug)]
pub struct Slices {
    /// How many bytes a turn may move.
    per_turn: usize,
    /// How many more bytes this turn may move.
    left: Cell<usize>,
    waiting: RefCell<VecDeque<Weak<State>>>,
    wake: Notify,
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Slice {
    slices: Rc<Slices>,
    state: Rc<State>,
}

#[derive(Debug, Default)]
struct State {
    at: Cell<At>,
    /// How many bytes it waits to move.
    wanted: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// It is not waiting.
    #[default]
    Idle,
    Waiting,
    /// It may move a slice, which is already counted.
    Called,
}

impl Slices {
    /// The slices of a thread.
    pub fn new() -> Rc<Self> {
        Self::with(SLICE_BYTES_PER_TURN)
    }

    /// The same for anything of which a turn may do `per_turn` units, in place of bytes.
    pub fn with(per_turn: usize) -> Rc<Self> {
        let (waiting, wake) = (RefCell::default(), Notify::new());
        Rc::new(Slices { per_turn, left: Cell::new(per_turn), waiting, wake })
    }

    /// Begins one turn after another until the thread ends.
    pub async fn take_turns(self: Rc<Self>) {
        loop {
            if self.waiting.borrow().is_empty() && self.left.get() == self.per_turn {
                self.wake.notified().await;
            }
            // Let all other tasks that are ready run first.
            tokio::task::yield_now().await;
            self.begin_turn();
        }
    }

    fn begin_turn(&self) {
        let mut left = self.per_turn;
        while left > 0
            && let Some(first) = self.waiting.borrow_mut().pop_front()
        {
            if let Some(first) = first.upgrade() {
                first.at.set(At::Called);
                left = left.saturating_sub(first.wanted.get());
                if let Some(waker) = first.waker.take() {
                    waker.wake();
                }
            }
        }
        self.left.set(left);
    }

    fn count(&self, bytes: usize) {
        if self.left.get() == self.per_turn {
            self.wake.notify_one();
        }
        self.left.set(self.left.get().saturating_sub(bytes));
    }
}

impl Slice {
    /// One direction of a new connection.
    pub fn new(slices: Rc<Slices>) -> Self {
        Slice { slices, state: Rc::default() }
    }

    /// Ready if so many bytes may be moved now. Otherwise the task is woken when they may.
    pub fn poll_turn(&self, context: &Context<'_>, bytes: usize) -> Poll<()> {
        let Slice { slices, state } = self;
        match state.at.get() {
            At::Called => {
                state.at.set(At::Idle);
                return Poll::Ready(());
            }
            At::Waiting => {}
            At::Idle if slices.left.get() > 0 && slices.waiting.borrow().is_empty() => {
                slices.count(bytes);
                return Poll::Ready(());
            }
            At::Idle => {
                state.at.set(At::Waiting);
                state.wanted.set(bytes);
                slices.waiting.borrow_mut().push_back(Rc::downgrade(state));
            }
        }
        *state.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }

    /// Corrects the count once it is known how many bytes were moved.
    pub fn settle(&self, asked: usize, moved: usize) {
        let left = self.slices.left.get() + asked;
        self.slices.left.set(left.saturating_sub(moved).min(self.slices.per_turn));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SLICE_BYTES;

    /// A turn moves a limited number of bytes. The others follow in their order, and closed connections take no turn.
    #[test]
    fn one_turn_after_another() {
        const A_TURN: usize = SLICE_BYTES_PER_TURN / SLICE_BYTES;
        let slices = Slices::new();
        let context = Context::from_waker(Waker::noop());
        let mut waiting: Vec<Slice> = (0..3 * A_TURN).map(|_| Slice::new(slices.clone())).collect();
        let ready = |waiting: &[Slice]| {
            waiting.iter().filter(|slice| slice.poll_turn(&context, SLICE_BYTES).is_ready()).count()
        };
        assert_eq!(ready(&waiting), A_TURN);
        assert_eq!(ready(&waiting[A_TURN..]), 0, "they wait");
        waiting.drain(A_TURN..A_TURN + 2);
        slices.begin_turn();
        assert_eq!(ready(&waiting[A_TURN..2 * A_TURN]), A_TURN);
        assert_eq!(ready(&waiting[2 * A_TURN..]), 0);
        slices.begin_turn();
        assert_eq!(ready(&waiting[2 * A_TURN..]), A_TURN - 2);
        slices.begin_turn();
        assert!(waiting[0].poll_turn(&context, 8 * SLICE_BYTES).is_ready());
        waiting[0].settle(8 * SLICE_BYTES, SLICE_BYTES_PER_TURN - SLICE_BYTES);
        assert_eq!(ready(&waiting[..2]), 1, "there is one slice left");
    }
}
