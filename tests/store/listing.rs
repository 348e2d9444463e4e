//! Which keys a listing returns, and in which order.

use std::collections::BTreeMap;

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::{Strategy, any};
use raft_key_value::ExampleStateMachine;
use raft_key_value::store::state_machine::listing::Range;

use crate::support::*;

/// Texts of characters at the limits of UTF-8's lengths and of the surrogates. There are few such characters, so that
/// one text is often a prefix of another.
fn text() -> impl Strategy<Value = String> {
    const CHARACTERS: [char; 12] =
        ['\0', 'a', 'b', '/', '\u{7f}', 'é', '\u{7ff}', '\u{d7ff}', '\u{e000}', '\u{ffff}', '\u{10000}', '\u{10ffff}'];
    vec(0..CHARACTERS.len(), 0..4).prop_map(|numbers| numbers.into_iter().map(|number| CHARACTERS[number]).collect())
}

fn range() -> impl Strategy<Value = Range> {
    let ends = (option::weighted(0.5, text()), option::weighted(0.5, text()));
    // Mostly short ones, which are prefixes of many keys.
    let prefix = text().prop_map(|text| text.chars().take(text.chars().count() / 2).collect());
    (prefix, option::weighted(0.5, text()), ends, any::<bool>()).prop_map(
        |(prefix, start, (end, start_after), reverse)| Range {
            prefix,
            start: start.unwrap_or_default(),
            end,
            start_after,
            reverse,
        },
    )
}

fn check(keys: &[String], range: &Range) {
    let mut machine = ExampleStateMachine::default();
    let mut naive = BTreeMap::new();
    for (index, key) in (0..).zip(keys) {
        machine.apply(set(1, index, key, &index.to_string()));
        naive.insert(key.clone(), index.to_string());
    }
    let after = |key: &str| match &range.start_after {
        None => true,
        Some(after) if range.reverse => key < after.as_str(),
        Some(after) => key > after.as_str(),
    };
    naive.retain(|key, _| {
        let within = *key >= range.start && range.end.as_ref().is_none_or(|end| key < end);
        key.starts_with(&range.prefix) && within && after(key)
    });
    let mut wanted: Vec<(String, String)> = naive.into_iter().collect();
    if range.reverse {
        wanted.reverse();
    }
    let found = range.of(&machine.data).map(|(key, record)| (key.to_string(), text_of(&record.value)));
    assert_eq!(found.collect::<Vec<_>>(), wanted);

    // Read in pages, each of which starts after the last key of the one before, the listing is the same.
    let mut paged = Vec::new();
    let mut page = range.clone();
    loop {
        let keys: Vec<String> = page.of(&machine.data).take(2).map(|(key, _)| key.to_string()).collect();
        page.start_after = keys.last().cloned();
        paged.extend(keys);
        assert!(paged.len() <= wanted.len(), "the pages do not end: {paged:?}");
        if page.start_after.is_none() {
            break;
        }
    }
    assert!(paged.iter().eq(wanted.iter().map(|(key, _)| key)), "in pages it is {paged:?}");
}

/// A listing returns exactly the keys between its bounds, in its order, at once and in pages.
///
/// Method: compare 2,000 random sets of keys and ranges (PROPTEST_CASES: another number; PROPTEST_RNG_SEED: one seed)
/// with a filter that visits every key.
#[test]
fn any_range() {
    let cases = (btree_set(text(), 0..20), range());
    any_of("any_range", 2000, cases, |(keys, range)| check(&keys.into_iter().collect::<Vec<_>>(), &range));
}
