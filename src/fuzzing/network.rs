//! Decoders of network messages: from other nodes, from clients and, in the client, from nodes.

use std::mem;
use std::rc::Rc;
use std::task::{Context, Waker};

use actix_codec::Decoder;
use actix_http::h1;
use actix_web::HttpRequest;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::http::{Method, Uri};
use actix_web::test::TestRequest;
use bytes::BytesMut;
use openraft::raft::{
    AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::vote::RaftLeaderId;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use raft_log::codeq::{Decode, Encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::ReadBuf;
use tokio::task::LocalSet;

use crate::app::Known;
use crate::body::{AddMember, ErrorAnswer, TxnRequest, WatchEvent};
use crate::client::events::{Event, EventParser};
use crate::config::{
    IDEMPOTENCY_KEY_BYTES_MAX, KEY_BYTES_MAX_DEFAULT, Limits, PAGE_BYTES_MAX_DEFAULT, PAGE_KEYS_MAX_DEFAULT,
    REQUEST_BYTES_MAX_DEFAULT, TTL_MS_MAX, TTL_MS_MIN, TXN_OPERATIONS_MAX_DEFAULT, VALUE_BYTES_MAX_DEFAULT,
};
use crate::error::{ApiError, Outcome};
use crate::network::conditions::{Conditions, ReadVerdict, WriteCondition};
use crate::network::founding::Step;
use crate::network::listener::intake::{Intake, Next};
use crate::network::parameters::{Parameters, check_body_type, key_from, key_of, key_with_action, request_id, ttl_ms};
use crate::network::peer::{self, Envelope, Ids, Introduction};
use crate::network::request_body::{check_lists, parse_json};
use crate::network::rpc_check::{Append, SnapshotHead, check_append, check_candidate, check_snapshot, check_transfer};
use crate::network::txn::txn_operation;
use crate::network::{api, management, watch};
use crate::node_status::NodeStatus;
use crate::operation::{Condition, Operation, Write};
use crate::store::ExampleStateMachine;
use crate::store::log::codec::PayloadRecord;
use crate::types::{Command, Entry, ExampleRequest, ExampleResponse, LogId, NodeId, Payload, TypeConfig, Vote};

pub(super) const LIMITS: Limits = Limits {
    request_bytes: REQUEST_BYTES_MAX_DEFAULT,
    key_bytes: KEY_BYTES_MAX_DEFAULT,
    value_bytes: VALUE_BYTES_MAX_DEFAULT,
    txn_operations: TXN_OPERATIONS_MAX_DEFAULT,
    page_keys: PAGE_KEYS_MAX_DEFAULT,
    page_bytes: PAGE_BYTES_MAX_DEFAULT,
};

/// Longest error message: it may quote the request, but only a readable part.
const MESSAGE_BYTES_MAX: usize = 2048;

/// Messages between nodes survive a round trip, and the log can hold every entry that is accepted.
///
/// The first byte selects the kind of message.
pub fn rpc(bytes: &[u8]) {
    let Some((message, body)) = bytes.split_first() else { return };
    match message {
        b'a' => append(body),
        b'v' => {
            checked::<VoteRequest<TypeConfig>>(body, |request, from, known| check_candidate(request, from, known, true))
        }
        b's' => checked::<SnapshotHead>(body, check_snapshot),
        b't' => checked::<TransferLeaderRequest<TypeConfig>>(body, check_transfer),
        b'r' => drop(enveloped::<()>(body)),
        b'f' => drop(enveloped::<Step>(body)),
        b'H' => ids(body),
        b'A' => answered::<AppendEntriesResponse<TypeConfig>>(body),
        b'V' => answered::<VoteResponse<TypeConfig>>(body),
        b'S' => answered::<SnapshotResponse<TypeConfig>>(body),
        b'T' => answered::<TransferLeaderResponse<TypeConfig>>(body),
        b'R' => answered::<LogId>(body),
        b'I' => same_as_json::<Result<Introduction, ApiError>>(body),
        b'N' => same_as_json::<Result<NodeStatus, ApiError>>(body),
        b'E' => same_as_json::<Result<(), ApiError>>(body),
        _ => {}
    }
}

fn append(body: &[u8]) {
    let Some(envelope) = enveloped::<Append>(body) else { return };
    let check = |known: &Known| check_append(&envelope.rpc, envelope.from, body.len(), known);
    if knowledge().map(|known| taken(check(&known)).is_none())[0] {
        return;
    }
    for entry in envelope.rpc.entries {
        let mut record = Vec::new();
        PayloadRecord(entry.payload.clone()).encode(&mut record).expect("an entry is written to the log");
        let read = PayloadRecord::decode(record.as_slice());
        assert!(read.is_ok_and(|read| read.0 == entry.payload), "the log holds something else");
    }
}

/// A node that knows nothing, and one that knows everything.
fn knowledge() -> [Known; 2] {
    let log_id = |index| Some(LogId::new(RaftLeaderId::new(5, 1), index));
    let vote = Vote { leader_id: RaftLeaderId::new(5, 1), committed: true };
    let some = Known { vote, committed: log_id(7), cluster_committed: log_id(9), membership: log_id(3) };
    [Known::default(), some]
}

/// Whatever a node knows, a check accepts an RPC or rejects it with a well-formed error.
fn checked<T: Serialize + DeserializeOwned>(body: &[u8], check: impl Fn(&T, NodeId, &Known) -> Result<(), ApiError>) {
    let Some(envelope) = enveloped::<T>(body) else { return };
    for known in knowledge() {
        taken(check(&envelope.rpc, envelope.from, &known));
    }
}

/// The ids in a header survive a round trip.
fn ids(header: &[u8]) {
    if let Some(ids) = Ids::parse(header) {
        assert_eq!(Ids::parse(ids.header().as_bytes()), Some(ids));
    }
}

fn enveloped<T: Serialize + DeserializeOwned>(body: &[u8]) -> Option<Envelope<T>> {
    let envelope = match peer::parse::<T>(body) {
        Ok(envelope) => envelope,
        Err(error) => {
            assert_readable(&error);
            return None;
        }
    };
    let written = message_pack(&envelope);
    let again = peer::parse::<T>(&written).unwrap_or_else(|error| panic!("what was written is rejected: {error}"));
    assert_eq!(message_pack(&again), written);
    Some(envelope)
}

fn answered<T: Serialize + DeserializeOwned>(body: &[u8]) {
    let Ok(answer) = rmp_serde::from_slice::<T>(body) else { return };
    let written = message_pack(&answer);
    let again: T = rmp_serde::from_slice(&written).expect("what was written is read");
    assert_eq!(message_pack(&again), written);
}

pub(super) fn message_pack(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("what was read is written")
}

fn same_as_json<T: Serialize + DeserializeOwned + PartialEq>(json: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(json) else { return };
    assert_json_holds(&value);
}

pub(super) fn assert_json_holds<T: Serialize + DeserializeOwned + PartialEq>(value: &T) {
    let written = serde_json::to_vec(value).expect("it is written");
    let read: T = serde_json::from_slice(&written).expect("what was written is read");
    assert!(read == *value, "`{}` is read as something else", String::from_utf8_lossy(&written));
}

/// A request is rejected with a well-formed error, or is decoded consistently.
///
/// The bytes are an HTTP request without the version: method and path, headers, an empty line, the body.
pub fn request(bytes: &[u8]) {
    let (head, body) = split_head(bytes);
    let Some(request) = request_of(head) else { return };
    path_and_query(&request);
    headers(&request);
    let operation = match request.path() {
        "/init" => taken(management::parse_members(1, "127.0.0.1:21001", body)).and(None),
        "/add-learner" => taken(parse_json(body, "").and_then(check_member)).and(None),
        "/change-membership" => taken(parse_json::<Vec<NodeId>>(body, "")).and(None),
        "/v1/cluster/members" => {
            same_as_json::<AddMember>(body);
            None
        }
        "/read" => taken(api::parse_key(body, &LIMITS)).and(None),
        "/write" => taken(api::parse_write(body, &LIMITS)).map(|(operation, _)| {
            same_as_json::<ExampleRequest>(body);
            assert_only_these_lists(body, 2);
            operation
        }),
        "/v1/txn" => taken(txn(body)),
        _ => None,
    };
    if let Some(operation) = operation {
        operation_holds(&request, operation);
    }
}

/// The head and the body of a request.
pub(super) fn split_head(bytes: &[u8]) -> (&[u8], &[u8]) {
    let head_end = bytes.windows(2).position(|window| window == b"\n\n");
    head_end.map_or((bytes, &[][..]), |end| (&bytes[..end], &bytes[end + 2..]))
}

/// The request; `None` if a server would not call a handler with it.
pub(super) fn request_of(head: &[u8]) -> Option<HttpRequest> {
    let mut lines = head.split(|byte| *byte == b'\n');
    let (method, target) = std::str::from_utf8(lines.next()?).ok()?.split_once(' ')?;
    target.parse::<Uri>().ok()?;
    let mut request = TestRequest::with_uri(target).method(Method::from_bytes(method.as_bytes()).ok()?);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        request = request.append_header((name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?));
    }
    Some(request.to_http_request())
}

fn path_and_query(request: &HttpRequest) {
    let keys = [taken(key_of(request, &LIMITS)), taken(key_with_action(request, "touch", &LIMITS))];
    for key in keys.into_iter().flatten() {
        assert!((1..=LIMITS.key_bytes).contains(&key.len()) && !key.contains('\0'), "{key:?} is taken for a key");
        let encoded = utf8_percent_encode(&key, NON_ALPHANUMERIC).to_string();
        assert_eq!(key_from(&encoded, &LIMITS).ok(), Some(key));
    }
    const FLAGS: [&str; 5] = ["raw", "keys_only", "reverse", "initial", "all"];
    const TEXTS: [&str; 5] = ["prefix", "start", "end", "start_after", "key"];
    const NUMBERS: [&str; 3] = ["limit", "from", "revision"];
    let known = [FLAGS.as_slice(), &TEXTS, &NUMBERS, &["ttl", "consistency"]].concat();
    let Some(parameters) = taken(Parameters::of(request, &known)) else { return };
    for name in FLAGS {
        taken(parameters.flag(name));
    }
    for text in TEXTS.into_iter().filter_map(|name| taken(parameters.key_part(name, &LIMITS)).flatten()) {
        assert!(text.len() <= LIMITS.key_bytes);
    }
    for number in NUMBERS.into_iter().filter_map(|name| taken(parameters.number(name, 1, 1000)).flatten()) {
        assert!((1..=1000).contains(&number));
    }
    taken(parameters.stale());
    if let Some(milliseconds) = taken(parameters.ttl_ms()).flatten() {
        assert!((TTL_MS_MIN..=TTL_MS_MAX).contains(&milliseconds));
        assert_eq!(ttl_ms(&format!("{milliseconds}ms")).ok(), Some(milliseconds));
    }
}

fn headers(request: &HttpRequest) {
    taken(check_body_type(request));
    if let Some(conditions) = taken(Conditions::of(request)) {
        // Reads and writes interpret the same tags alike.
        match taken(conditions.clone().of_write(&LIMITS)) {
            Some(WriteCondition::Single(Some(Condition::Revision(revision @ 1..)))) => {
                assert!(conditions.judge_read(revision).is_ok());
                let other = revision.wrapping_add(1);
                assert!(!matches!(conditions.judge_read(other), Ok(ReadVerdict::Send)));
            }
            Some(WriteCondition::AnyOf(revisions)) => {
                assert!(revisions.len() > 1 && revisions.is_sorted());
                assert!(revisions.iter().all(|revision| conditions.judge_read(*revision).is_ok()));
            }
            Some(WriteCondition::NoneOf { revisions, .. }) => {
                let known = |revision: &u64| matches!(conditions.judge_read(*revision), Ok(ReadVerdict::NotModified));
                assert!(revisions.iter().all(known));
            }
            _ => {}
        }
    }
    if let Some((revision, position)) = taken(watch::resumed_after(request)).flatten() {
        let id = match position {
            0 => format!("{}", revision - 1),
            _ => format!("{revision}.{}", position - 1),
        };
        let same = TestRequest::get().insert_header(("Last-Event-ID", id)).to_http_request();
        assert_eq!(watch::resumed_after(&same).ok(), Some(Some((revision, position))));
    }
}

fn check_member((id, addr): (NodeId, String)) -> Result<(), ApiError> {
    management::check_member(id, &addr)
}

fn txn(body: &[u8]) -> Result<Operation, ApiError> {
    let txn: TxnRequest = parse_json(body, "")?;
    assert_json_holds(&txn);
    check_lists(body, 1, "")?;
    assert_only_these_lists(body, 1);
    txn_operation(txn, &LIMITS)
}

/// Checks the scan of the bytes against the decoded body: lists are nested in at most this many objects, as values of
/// fields.
fn assert_only_these_lists(body: &[u8], objects: usize) {
    fn only_these(value: &serde_json::Value, objects: usize) -> bool {
        match value {
            serde_json::Value::Object(fields) => {
                fields.values().all(|value| only_these(value, objects.wrapping_sub(1)))
            }
            // The objects in a list have no lists.
            serde_json::Value::Array(values) => {
                objects == 0 && values.iter().all(|value| only_these(value, usize::MAX))
            }
            _ => true,
        }
    }
    let value: serde_json::Value = serde_json::from_slice(body).expect("it was read before");
    assert!(only_these(&value, objects), "a list is taken for an object: {value}");
}

/// An operation survives a round trip through the log, can be applied, and its responses survive a round trip.
fn operation_holds(request: &HttpRequest, operation: Operation) {
    let written = message_pack(&operation);
    assert!(rmp_serde::from_slice::<Operation>(&written).is_ok_and(|read| read == operation));
    let request = taken(request_id(request, None, &operation)).flatten();
    if let Some(request) = &request {
        assert!((1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&request.key.len()));
    }
    let mut machine = ExampleStateMachine::default();
    let mut responses = (0..2).map(|index| {
        let write = Write { at_ms: 1_000_000, request: request.clone(), operation: operation.clone() };
        let log_id = LogId::new(RaftLeaderId::new(1, 1), index);
        machine.apply(Entry { log_id, payload: Payload::Normal(Command::Write(write)) })
    });
    let (first, second): (ExampleResponse, ExampleResponse) =
        responses.next().zip(responses.next()).expect("there are two");
    assert_json_holds(&first);
    assert_json_holds(&second);
    if request.is_some() {
        assert_eq!(second, ExampleResponse { replayed: true, ..first });
    }
}

/// The value; an error must be a well-formed rejection.
pub(super) fn taken<T>(result: Result<T, ApiError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert_readable(&error);
            None
        }
    }
}

fn assert_readable(error: &ApiError) {
    assert!((400..500).contains(&error.status()), "{error:?} is no fault of the request");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert!(error.to_string().len() <= MESSAGE_BYTES_MAX, "an error of {} bytes", error.to_string().len());
    assert_json_holds::<ErrorAnswer>(&error.to_body());
    assert_json_holds::<Result<(), ApiError>>(&Err(error.clone()));
}

/// A client reads the same events wherever the stream is cut into pieces.
///
/// The first byte is the length of the pieces.
pub fn events(bytes: &[u8]) {
    let Some((piece_bytes, stream)) = bytes.split_first() else { return };
    let read = |piece_bytes: usize| -> Vec<Event> {
        let mut parser = EventParser::default();
        let pieces = stream.chunks(piece_bytes);
        pieces.flat_map(|piece| parser.push(piece).expect("no event is that long")).collect()
    };
    let events = read(stream.len().max(1));
    assert_eq!(read(usize::from(*piece_bytes).max(1)), events);
    for event in events {
        same_as_json::<WatchEvent>(event.data.unwrap_or_default().as_bytes());
    }
}

/// The HTTP library finds the same requests on a connection as the node, in whatever pieces they arrive.
///
/// The first byte is the length of the pieces.
pub fn connection(bytes: &[u8]) {
    let Some((piece_bytes, stream)) = bytes.split_first() else { return };
    // The library's decoder spawns a task that updates the date.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime starts");
    LocalSet::new().block_on(&runtime, async {
        // An invalid head may be rejected before it is complete, or only then.
        let found = |piece_bytes| {
            let mut found = requests_on(stream, piece_bytes);
            found.retain(|request| request != REJECTED);
            found
        };
        assert_eq!(found(usize::from(*piece_bytes).max(1)), found(READ_BYTES));
    });
}

/// Represents a rejected request, which is the last one.
const REJECTED: &str = "rejected";
/// Bytes that a connection reads at once.
const READ_BYTES: usize = 8192;

/// What the library decodes from the bytes that an intake forwards: heads, whole bodies, rejections.
fn requests_on(stream: &[u8], piece_bytes: usize) -> Vec<String> {
    let mut intake = Intake::new(Rc::default(), 10);
    let mut pieces = stream.chunks(piece_bytes);
    let (mut library, mut undecoded) = (h1::Codec::default(), BytesMut::new());
    let (mut found, mut body) = (Vec::new(), Vec::new());
    let mut space = vec![0; READ_BYTES];
    loop {
        let mut buffer = ReadBuf::new(&mut space);
        match intake.next(&Context::from_waker(Waker::noop())) {
            Next::Read => {
                let Some(piece) = pieces.next() else { return found };
                buffer.put_slice(piece);
                intake.take(&mut buffer, 0);
            }
            Next::HandOn | Next::Begin => intake.hand_on(&mut buffer),
            Next::Wait | Next::End => return found,
        }
        undecoded.extend_from_slice(buffer.filled());
        while let Some(message) = library.decode(&mut undecoded).expect("the library takes what is handed on") {
            let is_whole = match message {
                h1::Message::Item(request) => {
                    assert!(!library.upgrade() && !matches!(library.message_type(), h1::MessageType::Stream));
                    found.push(match intake.exchange().take_rejection() {
                        None => format!("{} {} {:?}", request.method(), request.uri(), request.version()),
                        Some(error) => {
                            assert_readable(&error);
                            REJECTED.to_owned()
                        }
                    });
                    matches!(library.message_type(), h1::MessageType::None)
                }
                h1::Message::Chunk(Some(chunk)) => {
                    body.extend_from_slice(&chunk);
                    false
                }
                h1::Message::Chunk(None) => {
                    found.push(format!("{:?}", mem::take(&mut body)));
                    true
                }
            };
            if is_whole {
                assert!(undecoded.is_empty(), "the library gets more than one request");
                intake.exchange().end(false);
            }
        }
    }
}
