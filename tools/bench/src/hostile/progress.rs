//! Progress of the clients of a load.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memchr::memmem;
use tokio::time::Instant;

/// How many clients have reached a point, and when the last of them did.
#[derive(Clone)]
pub struct Arrivals {
    began_at: Instant,
    count: Arc<AtomicUsize>,
    last_ms: Arc<AtomicUsize>,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self { began_at: Instant::now(), count: Arc::default(), last_ms: Arc::default() }
    }
}

impl Arrivals {
    pub fn add(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.last_ms.fetch_max(self.began_at.elapsed().as_millis() as usize, Ordering::Relaxed);
    }

    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub fn last_after(&self) -> String {
        match self.count() {
            0 => String::new(),
            _ => format!(", the last after {} ms", self.last_ms.load(Ordering::Relaxed)),
        }
    }
}

/// Searches a stream of pieces for a sequence of bytes.
pub struct Search {
    finder: memmem::Finder<'static>,
    /// The end of the previous pieces, shorter than the searched bytes.
    tail: Vec<u8>,
    pub is_found: bool,
}

impl Search {
    pub fn new(needle: &'static [u8]) -> Self {
        Self { finder: memmem::Finder::new(needle), tail: Vec::new(), is_found: false }
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        let kept = self.finder.needle().len() - 1;
        self.tail.extend_from_slice(&bytes[..bytes.len().min(kept)]);
        self.is_found |= self.finder.find(&self.tail).is_some() || self.finder.find(bytes).is_some();
        self.tail.extend_from_slice(&bytes[bytes.len().min(kept).max(bytes.len().saturating_sub(kept))..]);
        self.tail.drain(..self.tail.len().saturating_sub(kept));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_for_is_found_in_any_pieces() {
        let text = b"..needle..";
        for size in 1..=text.len() {
            for (needle, is_there) in [(b"needle".as_slice(), true), (b"needed", false)] {
                let mut search = Search::new(needle);
                text.chunks(size).for_each(|piece| search.feed(piece));
                assert_eq!(search.is_found, is_there, "{size}");
            }
        }
    }
}
