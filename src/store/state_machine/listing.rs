//! Pages of keys, and the states that listings of several pages are read from.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use super::record::{Data, Record};
use crate::config::{LISTING_KEPT, LISTINGS_KEPT_MAX, STATE_REPLACED_BYTES_MAX};
use crate::operation::Key;

/// Which keys are listed, and in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// What the keys begin with.
    pub prefix: String,
    /// The smallest key, itself included; empty for the first.
    pub start: String,
    /// The key that all are smaller than; `None` for no such end.
    pub end: Option<String>,
    /// The key that the listing goes on after, in its own direction.
    pub start_after: Option<String>,
    /// From the largest key to the smallest.
    pub reverse: bool,
}

impl Range {
    /// The keys of the range, in its order.
    pub fn of<'a>(&'a self, data: &'a Data) -> Box<dyn Iterator<Item = (&'a Key, &'a Arc<Record>)> + 'a> {
        let (lower, upper) = self.bounds();
        if is_empty(&lower, &upper) {
            return Box::new(std::iter::empty());
        }
        let keys = data.range::<_, str>((as_ref(&lower), as_ref(&upper)));
        if self.reverse { Box::new(keys.rev()) } else { Box::new(keys) }
    }

    fn bounds(&self) -> (Bound<String>, Bound<String>) {
        let mut lower = Bound::Included(self.prefix.as_str().max(&self.start).to_owned());
        let mut upper = match (end_of_prefix(&self.prefix), &self.end) {
            (Some(prefix_end), Some(end)) => Bound::Excluded(prefix_end.min(end.clone())),
            (Some(end), None) => Bound::Excluded(end),
            (None, Some(end)) => Bound::Excluded(end.clone()),
            (None, None) => Bound::Unbounded,
        };
        if let Some(after) = &self.start_after {
            if self.reverse {
                upper = match upper {
                    Bound::Excluded(end) => Bound::Excluded(end.min(after.clone())),
                    _ => Bound::Excluded(after.clone()),
                };
            } else {
                lower = match lower {
                    Bound::Included(start) if start > *after => Bound::Included(start),
                    _ => Bound::Excluded(after.clone()),
                };
            }
        }
        (lower, upper)
    }
}

fn as_ref(bound: &Bound<String>) -> Bound<&str> {
    match bound {
        Bound::Included(key) => Bound::Included(key),
        Bound::Excluded(key) => Bound::Excluded(key),
        Bound::Unbounded => Bound::Unbounded,
    }
}

/// Whether nothing can be between the two, as an ordered map must not be asked for.
fn is_empty(lower: &Bound<String>, upper: &Bound<String>) -> bool {
    match (lower, upper) {
        (Bound::Included(lower) | Bound::Excluded(lower), Bound::Excluded(upper)) => lower >= upper,
        _ => false,
    }
}

/// The smallest text that is larger than all that begin with `prefix`, if there is one.
pub(super) fn end_of_prefix(prefix: &str) -> Option<String> {
    let mut characters: Vec<char> = prefix.chars().collect();
    while let Some(last) = characters.pop() {
        // Characters sort as their UTF-8 does; the surrogates between are none.
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            _ => char::from_u32(u32::from(last) + 1),
        };
        if let Some(next) = next {
            characters.push(next);
            return Some(characters.into_iter().collect());
        }
    }
    None
}

/// The states of the store that listings of several pages are read from.
#[derive(Debug, Default)]
pub struct Listings {
    /// The one that was used last comes last.
    kept: VecDeque<Kept>,
}

#[derive(Debug)]
struct Kept {
    revision: u64,
    data: Data,
    used: Instant,
    /// How many bytes of values had been replaced when it was current.
    replaced_bytes: u64,
    /// Whether a second page was read from it, as of many listings none ever is.
    is_continued: bool,
}

impl Listings {
    /// Keeps the state of a revision for a while. Returns one that has to make
    /// room for it, since freeing takes time.
    pub fn keep(&mut self, revision: u64, data: &Data, replaced_bytes: u64) -> Option<Data> {
        if let Some(position) = self.position_of(revision) {
            self.use_again(position);
            return None;
        }
        let (data, used, is_continued) = (data.clone(), Instant::now(), false);
        self.kept.push_back(Kept { revision, data, used, replaced_bytes, is_continued });
        if self.kept.len() <= LISTINGS_KEPT_MAX {
            return None;
        }
        let older = self.kept.iter().take(LISTINGS_KEPT_MAX);
        let position = older.into_iter().position(|kept| !kept.is_continued).unwrap_or(0);
        self.kept.remove(position).map(|kept| kept.data)
    }

    /// The state of a revision, if it is kept, for another page, and how many bytes had been replaced then.
    pub fn get(&mut self, revision: u64) -> Option<(Data, u64)> {
        let position = self.position_of(revision)?;
        let kept = self.use_again(position)?;
        kept.is_continued = true;
        Some((kept.data.clone(), kept.replaced_bytes))
    }

    fn position_of(&self, revision: u64) -> Option<usize> {
        self.kept.iter().position(|kept| kept.revision == revision)
    }

    fn use_again(&mut self, position: usize) -> Option<&mut Kept> {
        let mut kept = self.kept.remove(position)?;
        kept.used = Instant::now();
        self.kept.push_back(kept);
        self.kept.back_mut()
    }

    /// Lets go of those that were not used for long, and of those before which too much was replaced, so that they
    /// hold too much; returns them, since freeing takes time. `replaced_bytes` is that of the current state.
    pub fn take_unused(&mut self, replaced_bytes: u64) -> Vec<Data> {
        let is_unused = |kept: &Kept| {
            kept.used.elapsed() > LISTING_KEPT
                || replaced_bytes.saturating_sub(kept.replaced_bytes) > STATE_REPLACED_BYTES_MAX
        };
        let (unused, kept) = std::mem::take(&mut self.kept).into_iter().partition(is_unused);
        self.kept = kept;
        unused.into_iter().map(|kept: Kept| kept.data).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of a prefix is above all that begin with it, and below all that follow.
    #[test]
    fn ends_of_prefixes() {
        assert_eq!(end_of_prefix("a/"), Some("a0".into()));
        assert_eq!(end_of_prefix("é"), Some("ê".into()));
        assert_eq!(end_of_prefix("\u{d7ff}"), Some("\u{e000}".into()));
        assert_eq!(end_of_prefix("a\u{10ffff}"), Some("b".into()));
        assert_eq!(end_of_prefix("\u{10ffff}"), None);
        assert_eq!(end_of_prefix(""), None);
    }
}
