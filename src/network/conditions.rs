//! `If-Match` and `If-None-Match` on one key: entity tags as clients and proxies send them (RFC 9110, section 13).
//!
//! The tag of a key is its revision in quotes, and a proxy that compresses responses changes it: nginx turns
//! `"7"` into `W/"7"`, Apache and Caddy into `"7-gzip"`. A tag names a revision of the key, not the bytes of one
//! representation, so both forms stand for revision 7, in `If-Match` too. A tag that names no revision matches nothing.

use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderName};

use super::parameters::whole_number;
use crate::config::Limits;
use crate::error::{ApiError, ConditionFailed, NotApplied};
use crate::operation::{
    Comparison, Condition, Delete, Key, Operand, Operation, Put, Relation, StepResult, Touch, Txn, TxnDone, TxnStep,
    WriteResult,
};

/// The content codings that proxies append to a tag.
const CODINGS: [&str; 4] = ["-gzip", "-br", "-zstd", "-deflate"];

/// The entity tags of one header.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tags {
    /// `*`, which must stand alone.
    Any,
    /// The revisions that the tags name, in ascending order and each once.
    Revisions(Vec<u64>),
}

/// The conditional headers of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

/// How the conditions of a read apply to a key that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadVerdict {
    /// Send the value.
    Send,
    /// The client has this revision already: 304.
    NotModified,
}

impl Conditions {
    /// The conditions of a request.
    ///
    /// # Errors
    ///
    /// 400 if a header is not a list of entity tags.
    pub fn of(request: &HttpRequest) -> Result<Self, ApiError> {
        Ok(Conditions {
            if_match: tags_of(request, &header::IF_MATCH)?,
            if_none_match: tags_of(request, &header::IF_NONE_MATCH)?,
        })
    }

    /// Judges a read of a key at `revision`: `If-Match` first, then `If-None-Match`.
    ///
    /// # Errors
    ///
    /// 412 if `If-Match` does not name the revision.
    pub fn judge_read(&self, revision: u64) -> Result<ReadVerdict, ApiError> {
        if self.if_match.as_ref().is_some_and(|tags| !tags.include(revision)) {
            return Err(condition_failed(Some(revision)));
        }
        let is_known = self.if_none_match.as_ref().is_some_and(|tags| tags.include(revision));
        Ok(if is_known { ReadVerdict::NotModified } else { ReadVerdict::Send })
    }

    /// The condition that the state machine checks when it applies the write.
    ///
    /// # Errors
    ///
    /// 400 for conditions that no state of a key fulfills, or that name too many revisions.
    pub fn of_write(self, limits: &Limits) -> Result<WriteCondition, ApiError> {
        let condition = match (self.if_match, self.if_none_match) {
            (None, None) => WriteCondition::Single(None),
            (Some(Tags::Any), None) => WriteCondition::Single(Some(Condition::Present)),
            (None, Some(Tags::Any)) => WriteCondition::Single(Some(Condition::Missing)),
            (Some(_), Some(Tags::Any)) => {
                return Err(ApiError::bad_request(
                    "conflicting_conditions",
                    "If-Match and `If-None-Match: *` must not be given together: a key cannot both exist and be \
                     missing",
                ));
            }
            (Some(Tags::Any), Some(Tags::Revisions(revisions))) => {
                WriteCondition::NoneOf { revisions, must_exist: true }
            }
            (None, Some(Tags::Revisions(revisions))) if revisions.is_empty() => WriteCondition::Single(None),
            (None, Some(Tags::Revisions(revisions))) => WriteCondition::NoneOf { revisions, must_exist: false },
            (Some(Tags::Revisions(mut wanted)), excluded) => {
                if let Some(Tags::Revisions(excluded)) = excluded {
                    wanted.retain(|revision| excluded.binary_search(revision).is_err());
                }
                match wanted[..] {
                    // No key is at revision 0, so this never holds.
                    [] => WriteCondition::Single(Some(Condition::Revision(0))),
                    [revision] => WriteCondition::Single(Some(Condition::Revision(revision))),
                    _ => WriteCondition::AnyOf(wanted),
                }
            }
        };
        let count = condition.comparisons();
        if count > limits.txn_operations {
            let message = format!(
                "If-Match and If-None-Match must name at most {} revisions on a write, got {count}",
                limits.txn_operations
            );
            return Err(ApiError::bad_request("invalid_condition", message));
        }
        Ok(condition)
    }
}

impl Tags {
    fn include(&self, revision: u64) -> bool {
        match self {
            Tags::Any => true,
            Tags::Revisions(revisions) => revisions.binary_search(&revision).is_ok(),
        }
    }
}

/// The condition that the state machine checks when it applies a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteCondition {
    /// At most one condition, which the operation carries itself.
    Single(Option<Condition>),
    /// The key must be at one of these revisions: two or more.
    AnyOf(Vec<u64>),
    /// The key must be at none of these revisions.
    NoneOf {
        /// The revisions.
        revisions: Vec<u64>,
        /// Whether a missing key fails the condition.
        must_exist: bool,
    },
}

/// A write to one key, without its condition.
#[derive(Clone)]
pub enum KeyWrite {
    /// Sets the key.
    Put(Put),
    /// Removes the key.
    Delete(Delete),
    /// Renews the time that the key has left.
    Touch(Touch),
}

/// An operation for the log, and how to read its result.
pub struct Guarded {
    /// What is proposed.
    pub operation: Operation,
    /// How to read its result.
    pub reading: Reading,
}

/// How to read the result of a [`Guarded`] operation.
///
/// `None`: unchanged. Otherwise the operation is a transaction that replaces a plain write, and the write was applied
/// if `succeeded` has this value.
#[derive(Clone, Copy, Debug)]
pub struct Reading(Option<bool>);

impl WriteCondition {
    fn comparisons(&self) -> usize {
        match self {
            WriteCondition::Single(_) => 0,
            WriteCondition::AnyOf(revisions) => revisions.len(),
            WriteCondition::NoneOf { revisions, must_exist } => revisions.len() + usize::from(*must_exist),
        }
    }

    /// Puts the condition into a write.
    ///
    /// A condition in the log names at most one revision, and old nodes must be able to apply it. More than one becomes
    /// a transaction, which is just as atomic. All comparisons of a transaction must hold, so "one of these" is
    /// expressed by its opposite: "none of these", with the write in `failure`.
    pub fn guard(self, write: KeyWrite) -> Guarded {
        let (revisions, must_exist, done_if) = match self {
            WriteCondition::Single(condition) => {
                return write.with_condition(condition).into();
            }
            WriteCondition::AnyOf(revisions) => (revisions, false, false),
            WriteCondition::NoneOf { revisions, must_exist } => (revisions, must_exist, true),
        };
        let key = write.key().clone();
        let differs = |revision: u64| (Relation::NotEqual, Operand::Revision(revision));
        let exists = must_exist.then_some((Relation::Equal, Operand::Exists(true)));
        let compare = revisions.into_iter().map(differs).chain(exists);
        let compare = compare.map(|(relation, operand)| Comparison { key: key.clone(), relation, operand }).collect();
        // If the condition does not hold, the read returns the revision of the key.
        let (write, read) = (vec![write.into_step()], vec![TxnStep::Get(key)]);
        let (success, failure) = if done_if { (write, read) } else { (read, write) };
        let operation = Operation::Txn(Arc::new(Txn { compare, success, failure }));
        Guarded { operation, reading: Reading(Some(done_if)) }
    }
}

impl KeyWrite {
    fn key(&self) -> &Key {
        match self {
            KeyWrite::Put(put) => &put.key,
            KeyWrite::Delete(delete) => &delete.key,
            KeyWrite::Touch(touch) => &touch.key,
        }
    }

    fn with_condition(self, condition: Option<Condition>) -> Operation {
        match self {
            KeyWrite::Put(put) => Operation::Put(Put { condition, ..put }),
            KeyWrite::Delete(delete) => Operation::Delete(Delete { condition, ..delete }),
            KeyWrite::Touch(touch) => Operation::Touch(Touch { condition, ..touch }),
        }
    }

    fn into_step(self) -> TxnStep {
        match self {
            KeyWrite::Put(put) => TxnStep::Put(put),
            KeyWrite::Delete(delete) => TxnStep::Delete(delete),
            KeyWrite::Touch(touch) => TxnStep::Touch(touch),
        }
    }
}

impl Reading {
    /// The result of the write itself.
    pub fn result_of(self, result: Option<WriteResult>) -> Option<WriteResult> {
        match (self.0, result) {
            (Some(done_if), Some(WriteResult::Txn(done))) => result_of_txn(&done, done_if),
            (_, result) => result,
        }
    }
}

impl From<Operation> for Guarded {
    fn from(operation: Operation) -> Self {
        Guarded { operation, reading: Reading(None) }
    }
}

fn result_of_txn(done: &TxnDone, done_if: bool) -> Option<WriteResult> {
    let result = done.results.first()?;
    if done.succeeded != done_if {
        let StepResult::Get(found) = result else { return None };
        return Some(WriteResult::ConditionFailed { revision: found.as_ref().map(|found| found.revision) });
    }
    Some(match result {
        StepResult::Put(put) => WriteResult::Put(*put),
        StepResult::Delete(delete) => {
            WriteResult::Delete { deleted: delete.deleted, revision: done.revision, unfinished: None }
        }
        StepResult::Touch(Some(touch)) => WriteResult::Touch(*touch),
        StepResult::Touch(None) => WriteResult::NoSuchKey,
        StepResult::Get(_) => return None,
    })
}

/// The error for a condition that does not hold. `None`: the key does not exist.
pub fn condition_failed(revision: Option<u64>) -> ApiError {
    ApiError::ConditionFailed(ConditionFailed {
        message: match revision {
            Some(revision) => format!("the condition does not hold: the key is at revision {revision}"),
            None => "the condition does not hold: the key does not exist".to_owned(),
        },
        current_revision: revision,
        outcome: NotApplied::NotApplied,
    })
}

/// Rejects conditions on a route that does not support them: ignoring them would change what the client wanted to
/// protect.
pub fn reject_conditions(request: &HttpRequest) -> Result<(), ApiError> {
    let headers = request.headers();
    if headers.contains_key(header::IF_MATCH) || headers.contains_key(header::IF_NONE_MATCH) {
        let message = format!(
            "{} does not support If-Match and If-None-Match: they apply to one key, /v1/kv/<key>; POST /v1/txn has comparisons",
            request.path()
        );
        return Err(ApiError::bad_request("invalid_condition", message));
    }
    Ok(())
}

/// The tags of a header, whose lines form one list.
fn tags_of(request: &HttpRequest, name: &HeaderName) -> Result<Option<Tags>, ApiError> {
    let mut lines = request.headers().get_all(name).peekable();
    if lines.peek().is_none() {
        return Ok(None);
    }
    let mut is_any = false;
    let mut revisions = Vec::new();
    let mut elements = 0;
    for line in lines {
        let mut rest = line.as_bytes();
        while let Some((tag, after)) = next_tag(rest).map_err(|found| malformed(name, found))? {
            rest = after;
            elements += 1;
            match tag {
                Tag::Any => is_any = true,
                Tag::Opaque(opaque) => revisions.extend(revision_of(opaque)),
                // Not an entity tag, but a shell removes the quotes of `"7"`. It must be a revision then.
                Tag::Bare(text) => {
                    let revision = std::str::from_utf8(text).ok().and_then(whole_number);
                    revisions.push(revision.ok_or_else(|| malformed(name, text))?);
                }
            }
        }
    }
    match (is_any, elements) {
        (_, 0) => return Err(malformed(name, b"")),
        (true, 1) => return Ok(Some(Tags::Any)),
        // Not the same as `*`: the client may have meant the tags.
        (true, _) => return Err(malformed(name, b"* in a list")),
        (false, _) => {}
    }
    // A missing key has no tag; comparisons of transactions give it revision 0.
    revisions.retain(|revision| *revision != 0);
    revisions.sort_unstable();
    revisions.dedup();
    Ok(Some(Tags::Revisions(revisions)))
}

enum Tag<'a> {
    Any,
    /// The text between the quotes.
    Opaque(&'a [u8]),
    Bare(&'a [u8]),
}

/// The next element of a list and what follows it, or the element that is malformed. Empty elements are skipped.
fn next_tag(list: &[u8]) -> Result<Option<(Tag<'_>, &[u8])>, &[u8]> {
    let is_separator = |byte: &u8| matches!(byte, b' ' | b'\t' | b',');
    let Some(start) = list.iter().position(|byte| !is_separator(byte)) else { return Ok(None) };
    let element = &list[start..];
    let quoted = element.strip_prefix(b"W/").unwrap_or(element);
    let (tag, rest) = match quoted.strip_prefix(b"\"") {
        Some(opaque) => {
            let end = opaque.iter().position(|byte| *byte == b'"').ok_or(element)?;
            // etagc: visible ASCII except the quote, and everything beyond ASCII.
            if opaque[..end].iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
                return Err(element);
            }
            (Tag::Opaque(&opaque[..end]), &opaque[end + 1..])
        }
        None => {
            let end = element.iter().position(is_separator).unwrap_or(element.len());
            let (text, rest) = element.split_at(end);
            (if text == b"*" { Tag::Any } else { Tag::Bare(text) }, rest)
        }
    };
    let after = rest.trim_ascii_start();
    if after.first().is_some_and(|byte| *byte != b',') {
        return Err(element);
    }
    Ok(Some((tag, after)))
}

/// The revision that an opaque tag names, if it names one.
fn revision_of(opaque: &[u8]) -> Option<u64> {
    let mut text = std::str::from_utf8(opaque).ok()?;
    while let Some(shorter) = CODINGS.iter().find_map(|coding| text.strip_suffix(coding)) {
        // Jetty appends two dashes.
        text = shorter.strip_suffix('-').unwrap_or(shorter);
    }
    whole_number(text)
}

fn malformed(name: &HeaderName, found: &[u8]) -> ApiError {
    let name = if *name == header::IF_MATCH { "If-Match" } else { "If-None-Match" };
    let found = String::from_utf8_lossy(found);
    let message = format!("{name} must be `*` alone or a list of entity tags, such as \"7\", got `{found}`");
    ApiError::bad_request("invalid_condition", message)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;
    use crate::config::Config;

    fn conditions(headers: &[(&str, &str)]) -> Result<Conditions, ApiError> {
        let mut request = TestRequest::get();
        for (name, value) in headers {
            request = request.append_header((*name, *value));
        }
        Conditions::of(&request.to_http_request())
    }

    /// Every well-formed list is read as the revisions that it names, over all lines of the header.
    #[test]
    fn lists_are_read() {
        let rows: &[(&[&str], Option<&[u64]>)] = &[
            (&["\"7\""], Some(&[7])),
            (&["7"], Some(&[7])),
            (&["W/\"7\""], Some(&[7])),
            (&["\"7-gzip\""], Some(&[7])),
            (&["W/\"7-br\", \"8--gzip\",\"9-gzip-zstd\""], Some(&[7, 8, 9])),
            (&["\"9\" , \"7\",W/\"7\"\t,, 8"], Some(&[7, 8, 9])),
            (&["\"9\"", "\"7\""], Some(&[7, 9])),
            (&["", "\"7\""], Some(&[7])),
            (&["\"a,b\", \"W/\", \"7\""], Some(&[7])),
            (&["\"\""], Some(&[])),
            (&["\"abc\", \"-1\", \"7-\", \"-gzip\", \"7.0\""], Some(&[])),
            (&["\"7\" 8"], None),
            (&["\"99999999999999999999\""], Some(&[])),
            (&["\"ü\""], Some(&[])),
            (&["\"*\""], Some(&[])),
        ];
        for (lines, expected) in rows {
            let headers: Vec<(&str, &str)> = lines.iter().map(|line| ("if-match", *line)).collect();
            let found = conditions(&headers).ok().map(|conditions| conditions.if_match.unwrap());
            assert_eq!(found, expected.map(|revisions| Tags::Revisions(revisions.to_vec())), "{lines:?}");
        }
        for lines in [&["*"][..], &[" * "], &[", *,"], &["", "*"]] {
            let headers: Vec<(&str, &str)> = lines.iter().map(|line| ("if-none-match", *line)).collect();
            assert_eq!(conditions(&headers).unwrap().if_none_match, Some(Tags::Any), "{lines:?}");
        }
    }

    /// Everything that is not a list of entity tags is rejected, wherever the mistake is.
    #[test]
    fn malformed_lists_are_rejected() {
        for line in [
            "",
            " ,",
            "\"7",
            "7\"",
            "\"7\"\"8\"",
            "\"7\" \"8\"",
            "w/\"7\"",
            "W/7",
            "W/ \"7\"",
            "abc",
            "+7",
            "7.0",
            "\"7 \"",
        ] {
            for list in [line.to_owned(), format!("\"5\", {line}x"), format!("{line} x, \"5\"")] {
                let error = conditions(&[("if-match", &list)]);
                assert!(matches!(&error, Err(error) if error.code() == "invalid_condition"), "{list}: {error:?}");
            }
        }
        for lines in
            [&["*, \"7\""][..], &["\"7\", *"], &["\"7\"", "*"], &["*", "7"], &["*, *"], &["*", "*"], &["\"x\", *"]]
        {
            let headers: Vec<(&str, &str)> = lines.iter().map(|line| ("if-none-match", *line)).collect();
            let error = conditions(&headers);
            assert!(matches!(&error, Err(error) if error.code() == "invalid_condition"), "{lines:?}: {error:?}");
        }
    }

    /// A read is judged by If-Match first and then by If-None-Match; a write checks the same.
    #[test]
    fn both_headers_are_judged_in_order() {
        let limits = Config::new(1, "127.0.0.1:1").limits();
        let single = |condition| WriteCondition::Single(Some(condition));
        let none_of =
            |revisions: &[u64], must_exist| WriteCondition::NoneOf { revisions: revisions.to_vec(), must_exist };
        let rows: &[(&str, &str, Option<ReadVerdict>, Option<WriteCondition>)] = &[
            ("\"7\"", "", Some(ReadVerdict::Send), Some(single(Condition::Revision(7)))),
            ("\"8\"", "", None, Some(single(Condition::Revision(8)))),
            ("\"8\", \"7\"", "", Some(ReadVerdict::Send), Some(WriteCondition::AnyOf(vec![7, 8]))),
            ("\"abc\"", "", None, Some(single(Condition::Revision(0)))),
            ("\"7\"", "\"7\"", Some(ReadVerdict::NotModified), Some(single(Condition::Revision(0)))),
            ("\"8\"", "\"7\"", None, Some(single(Condition::Revision(8)))),
            ("*", "\"7\"", Some(ReadVerdict::NotModified), Some(none_of(&[7], true))),
            ("*", "*", Some(ReadVerdict::NotModified), None),
            ("", "\"7\"", Some(ReadVerdict::NotModified), Some(none_of(&[7], false))),
            ("", "\"8\", \"x\"", Some(ReadVerdict::Send), Some(none_of(&[8], false))),
            ("", "\"x\"", Some(ReadVerdict::Send), Some(WriteCondition::Single(None))),
            ("", "*", Some(ReadVerdict::NotModified), Some(single(Condition::Missing))),
        ];
        for (if_match, if_none_match, verdict, write) in rows {
            let headers = [("if-match", *if_match), ("if-none-match", *if_none_match)];
            let headers: Vec<_> = headers.into_iter().filter(|(_, value)| !value.is_empty()).collect();
            let conditions = conditions(&headers).unwrap();
            assert_eq!(conditions.judge_read(7).ok(), *verdict, "{headers:?}");
            assert_eq!(conditions.of_write(&limits).ok(), *write, "{headers:?}");
        }
        let many = (1..=129).map(|revision| format!("\"{revision}\"")).collect::<Vec<_>>().join(",");
        assert_eq!(
            conditions(&[("if-match", &many)]).unwrap().of_write(&limits).unwrap_err().code(),
            "invalid_condition"
        );
    }
}
