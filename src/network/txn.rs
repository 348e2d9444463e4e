//! `POST /v1/txn`: compares, and then applies one of two lists of operations, all or nothing.

use std::collections::HashSet;
use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};

use super::access::{Caller, ToRead};
use super::conditions::reject_conditions;
use super::openapi::answers::TxnErrors;
use super::openapi::parameters::WriteHeaders;
use super::parameters::{Parameters, check_body_type, check_key, check_value_length, ttl_ms};
use super::reply::encode;
use super::request_body::{check_lists, parse_json, read_client_body};
use super::v1::{self, WriteOutcome, unexpected, written_as};
use crate::body::{Compare, EncodedValue, Encoding, TxnAnswer, TxnOperation, TxnRequest};
use crate::config::Limits;
use crate::error::ApiError;
use crate::operation::{
    Comparison, Delete, Key, Operand, Operation, Put, Relation, Touch, Txn, TxnStep, Value, WriteResult,
};

const TXN_BODY: &str =
    r#"{"compare":[{"key":"a","revision":7}],"success":[{"put":{"key":"a","value":"1"}}],"failure":[]}"#;

/// Compares keys, then applies one of two lists of operations atomically.
///
/// If every comparison in `compare` holds, the operations in `success` are applied, otherwise those in `failure`. Each
/// list has at most 128 entries. All changes have the same revision. A list must not write a key twice. A transaction
/// with only `success` is a batch.
#[utoipa::path(
    post,
    path = "/v1/txn",
    operation_id = "transact",
    tag = "Transactions",
    params(WriteHeaders),
    request_body(content = TxnRequest, example = json!({
        "compare": [{"key": "config/color", "value": "green"}],
        "success": [
            {"put": {"key": "config/color", "value": "blue"}},
            {"put": {"key": "config/by", "value": "me", "ttl": "1h"}}
        ],
        "failure": [{"get": {"key": "config/color"}}]
    })),
    responses(
        (
            status = 200,
            description = "One of the two lists was applied.",
            body = TxnAnswer,
            example = json!({"succeeded": true, "revision": 4, "results": [
                {"put": {"revision": 4, "version": 2}}, {"put": {"revision": 4, "version": 1}}
            ]}),
        ),
        TxnErrors,
    ),
)]
pub async fn txn(app: Caller<ToRead>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    v1::answer(&app, do_txn(&app, &request, payload).await)
}

async fn do_txn(app: &Caller<ToRead>, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let (body, memory) = read_client_body(app, request, payload).await?;
    Parameters::of(request, &[])?;
    reject_conditions(request)?;
    check_body_type(request)?;
    let (text, limits) = (body.clone(), app.limits);
    let operation = app.long_work.run(|| body.len(), move || parse_txn(&text, &limits)).await?;
    match v1::write(app, request, body, memory, app.may_write(operation)?).await? {
        WriteOutcome::Response(answer) => Ok(answer),
        WriteOutcome::Here(response, memory) => match &response.result {
            Some(result @ WriteResult::Txn(done)) => {
                let (value_bytes, done) = (result.value_bytes(), done.clone());
                let body = v1::encode_done(app, value_bytes, move || encode(done.as_ref(), 256)).await?;
                Ok(memory.until_written(written_as(&response, body, None)))
            }
            other => Err(unexpected(other.as_ref())),
        },
    }
}

fn parse_txn(body: &[u8], limits: &Limits) -> Result<Operation, ApiError> {
    let txn: TxnRequest = parse_json(body, TXN_BODY)?;
    check_lists(body, 1, TXN_BODY)?;
    txn_operation(txn, limits)
}

/// Converts a transaction to the operation in the log.
pub fn txn_operation(txn: TxnRequest, limits: &Limits) -> Result<Operation, ApiError> {
    if txn.success.is_empty() && txn.failure.is_empty() {
        return Err(invalid("a transaction must have at least one operation, in `success` or in `failure`"));
    }
    let counts = [("compare", txn.compare.len()), ("success", txn.success.len()), ("failure", txn.failure.len())];
    if let Some((list, count)) = counts.into_iter().find(|(_, count)| *count > limits.txn_operations) {
        return Err(ApiError::bad_request(
            "too_many_operations",
            format!("`{list}` must have at most {} entries, got {count}", limits.txn_operations),
        ));
    }
    let compare = collect(txn.compare, "compare", |compare| comparison(compare, limits))?;
    let success = collect(txn.success, "success", |operation| step(operation, limits))?;
    let failure = collect(txn.failure, "failure", |operation| step(operation, limits))?;
    check_each_key_once("success", &success)?;
    check_each_key_once("failure", &failure)?;
    Ok(Operation::Txn(Arc::new(Txn { compare, success, failure })))
}

/// Converts a list. An error names the entry.
fn collect<From, To>(
    list: Vec<From>,
    name: &str,
    convert: impl Fn(From) -> Result<To, ApiError>,
) -> Result<Vec<To>, ApiError> {
    let converted = list.into_iter().enumerate().map(|(position, entry)| {
        convert(entry).map_err(|error| match error {
            ApiError::BadRequest(mut bad) => {
                bad.message = format!("{name}[{position}]: {}", bad.message);
                ApiError::BadRequest(bad)
            }
            ApiError::TooLarge(mut large) => {
                large.message = format!("{name}[{position}]: {}", large.message);
                ApiError::TooLarge(large)
            }
            other => other,
        })
    });
    converted.collect()
}

fn comparison(compare: Compare, limits: &Limits) -> Result<Comparison, ApiError> {
    let Compare { key, op, exists, value, encoding, revision, create_revision, version } = compare;
    check_key(&key, limits)?;
    if encoding.is_some() && value.is_none() {
        return Err(invalid("`encoding` must not be given without `value`"));
    }
    let value = value.map(|value| decode(&value, encoding, limits)).transpose()?;
    let mut operands = [
        exists.map(Operand::Exists),
        value.map(Operand::Value),
        revision.map(Operand::Revision),
        create_revision.map(Operand::CreateRevision),
        version.map(Operand::Version),
    ]
    .into_iter()
    .flatten();
    let (Some(operand), None) = (operands.next(), operands.next()) else {
        return Err(invalid(
            "a comparison must have exactly one of `exists`, `value`, `revision`, `create_revision` and `version`",
        ));
    };
    let relation = Relation::from(op.unwrap_or_default());
    if matches!(operand, Operand::Exists(_)) && !matches!(relation, Relation::Equal | Relation::NotEqual) {
        return Err(invalid("`op` must be = or != with `exists`"));
    }
    Ok(Comparison { key: key.into(), relation, operand })
}

fn step(operation: TxnOperation, limits: &Limits) -> Result<TxnStep, ApiError> {
    let key_of = |key: String| check_key(&key, limits).map(|()| Key::from(key));
    Ok(match operation {
        TxnOperation::Put(put) => TxnStep::Put(Put {
            key: key_of(put.key)?,
            value: decode(&put.value, put.encoding, limits)?,
            ttl_ms: put.ttl.as_deref().map(ttl_ms).transpose()?,
            condition: None,
        }),
        TxnOperation::Delete(delete) => TxnStep::Delete(Delete { key: key_of(delete.key)?, condition: None }),
        TxnOperation::Get(get) => TxnStep::Get(key_of(get.key)?),
        TxnOperation::Touch(touch) => TxnStep::Touch(Touch {
            key: key_of(touch.key)?,
            ttl_ms: touch.ttl.as_deref().map(ttl_ms).transpose()?,
            condition: None,
        }),
    })
}

fn decode(value: &str, encoding: Option<Encoding>, limits: &Limits) -> Result<Value, ApiError> {
    let bytes = EncodedValue::decode(value, encoding)
        .map_err(|error| ApiError::bad_request("invalid_base64", format!("the value must be base64: {error}")))?;
    check_value_length(&bytes, limits)?;
    Ok(Value::from(&bytes))
}

/// Two writes to one key at one revision have no defined meaning.
fn check_each_key_once(list: &str, steps: &[TxnStep]) -> Result<(), ApiError> {
    let mut written = HashSet::new();
    for (position, step) in steps.iter().enumerate() {
        let key = match step {
            TxnStep::Put(put) => &put.key,
            TxnStep::Delete(delete) => &delete.key,
            TxnStep::Touch(touch) => &touch.key,
            TxnStep::Get(_) => continue,
        };
        if !written.insert(key) {
            let message = format!("{list}[{position}]: a list of operations must not write a key twice");
            return Err(ApiError::bad_request("key_twice", message));
        }
    }
    Ok(())
}

fn invalid(message: &str) -> ApiError {
    ApiError::bad_request("invalid_txn", message)
}
