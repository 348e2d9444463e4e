//! Pages of keys, and the states that listings of several pages are read from.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use super::record::{Data, Record};
use crate::config::{LISTING_KEPT, LISTINGS_KEPT_MAX, STATE_REPLACED_BYTES_MAX};
use crate::operation::Key;

/// The keys of a listing, and their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// All keys begin with this.
    pub prefix: String,
    /// All keys are at least this.
    pub start: String,
    /// All keys are smaller than this; `None` for no upper bound.
    pub end: Option<String>,
    /// The last key of the page before, after which this one continues, in the order of the listing.
    pub start_after: Option<String>,
    /// Whether the order is from the largest key to the smallest.
    pub reverse: bool,
}

impl Range {
    /// The keys of the range, with their records, in its order.
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

/// Whether no key can be between the two. An ordered map panics on such a range.
fn is_empty(lower: &Bound<String>, upper: &Bound<String>) -> bool {
    match (lower, upper) {
        (Bound::Included(lower) | Bound::Excluded(lower), Bound::Excluded(upper)) => lower >= upper,
        _ => false,
    }
}

/// The smallest text that is larger than all texts that begin with `prefix`, if one exists.
pub(super) fn end_of_prefix(prefix: &str) -> Option<String> {
    let mut characters: Vec<char> = prefix.chars().collect();
    while let Some(last) = characters.pop() {
        // Characters sort like their UTF-8. The surrogates in between are not characters.
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

/// The states that listings of several pages read from; at most [`LISTINGS_KEPT_MAX`].
#[derive(Debug, Default)]
pub struct Listings {
    /// Ordered by when they were last used, the most recent last.
    kept: VecDeque<Kept>,
}

#[derive(Debug)]
struct Kept {
    revision: u64,
    data: Data,
    used: Instant,
    /// Bytes of values that had been replaced when it was current.
    replaced_bytes: u64,
    /// Whether a second page was read from it. Many listings never read one.
    is_continued: bool,
}

impl Listings {
    /// Keeps the state of a revision. Returns one that it replaces, which the caller frees, since that takes time.
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

    /// The state of a revision for another page, and the bytes that had been replaced then; `None` if it is not kept.
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

    /// Removes states that were not used for long, and states that hold too much memory because too much was replaced
    /// since. Returns them, since freeing takes time. `replaced_bytes` is that of the current state.
    pub fn take_unused(&mut self, replaced_bytes: u64) -> Vec<Data> {
        let is_unused = |kept: &Kept| {
            kept.used.elapsed() > LISTING_KEPT
                // A snapshot that was installed counts from 0.
                || replaced_bytes
                    .checked_sub(kept.replaced_bytes)
                    .is_none_or(|replaced_bytes| replaced_bytes > STATE_REPLACED_BYTES_MAX)
        };
        let (unused, kept) = std::mem::take(&mut self.kept).into_iter().partition(is_unused);
        self.kept = kept;
        unused.into_iter().map(|kept: Kept| kept.data).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of a prefix is above all texts that begin with it, and below all texts that follow.
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
