//! The document of the API, `GET /openapi.json`, and its reference for people, `GET /docs`. Both are generated from the
//! attributes of the handlers.

pub mod answers;
pub mod page;
pub mod parameters;

use std::sync::LazyLock;

use actix_web::HttpResponse;
use actix_web::http::header::{self, HeaderValue};
use bytes::Bytes;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{AdditionalProperties, Schema, SchemaType, Type};
use utoipa::openapi::{RefOr, Required};
use utoipa::{Modify, OpenApi};

use self::answers::SharedAnswers;
use super::access::Anyone;
use super::{
    api, cluster_hash, cluster_status, health, kv, list, management, member_routes, metrics, snapshot, tokens,
    transfer, txn, watch,
};

/// The document as served. It is the same for every node of a version.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document_text().into());
/// The page generated from the document.
static PAGE: LazyLock<Bytes> = LazyLock::new(|| {
    let document = serde_json::to_value(ApiDocument::openapi()).unwrap_or_default();
    page::page_of(&document).into()
});

/// The parts of the document.
#[derive(OpenApi)]
#[openapi(
    info(
        description = "A replicated key-value store: three nodes, Raft, data on disk, plain HTTP. Any node accepts any \
            request. Every error says whether the request changed nothing (`not_applied`) or may have (`unknown`). \
            After a 503, retrying is always safe. Sizes and counts are the defaults of the limits.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    servers((url = "/", description = "The node that serves this document. Any other node works, too.")),
    tags(
        (name = "Keys", description = "One key by its path, or many by their prefix. Values are bytes."),
        (name = "Transactions", description = "Several keys in one request, all or nothing."),
        (name = "Watches", description = "Changes as they happen."),
        (name = "Routes of the openraft example", description = "JSON in, `{\"Ok\":…}` or `{\"Err\":…}` out. A body is \
            read as JSON whatever its `Content-Type`."),
        (name = "The cluster", description = "For operators."),
        (name = "Tokens", description = "Who may use the cluster. A request with a token has the header \
            `Authorization: Bearer <token>`."),
        (name = "This reference", description = "The API reference, for programs and for people."),
    ),
    paths(
        kv::get, kv::put, kv::delete, kv::touch, list::list, list::delete_prefix, txn::txn, watch::watch,
        api::write, api::read, api::consistent_read,
        management::init, management::add_learner, management::change_membership, management::metrics,
        health::livez, health::readyz, health::health, metrics::metrics,
        cluster_status::cluster_status, cluster_hash::cluster_hash, member_routes::add_member, member_routes::promote_member,
        member_routes::replace_member, member_routes::remove_member, transfer::transfer_leader, snapshot::snapshot,
        tokens::create_token, tokens::list_tokens, tokens::revoke_token, tokens::require_tokens,
        openapi_json, docs,
    ),
    components(schemas(
        crate::body::ErrorAnswer,
        crate::body::WatchEvent,
        answers::ErrAnswer,
    )),
    modifiers(&SharedAnswers, &Corrections),
)]
struct ApiDocument;

/// Corrections of what the macros generate.
struct Corrections;

impl Modify for Corrections {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        for item in openapi.paths.paths.values_mut() {
            item.head = item.get.as_ref().map(head_of);
        }
        for operation in openapi.paths.paths.values_mut().flat_map(answers::operations_of) {
            for parameter in operation.parameters.iter_mut().flatten() {
                // A parameter may be omitted, but is never null.
                if let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema
                    && let SchemaType::Array(types) = &schema.schema_type
                    && let Some(other) = types.iter().find(|it| **it != Type::Null)
                {
                    schema.schema_type = other.clone().into();
                }
            }
            // Bodies that may be empty.
            if matches!(operation.operation_id.as_deref(), Some("put_key" | "init"))
                && let Some(body) = &mut operation.request_body
            {
                body.required = Some(Required::False);
            }
        }
        let schemas = &mut openapi.components.get_or_insert_default().schemas;
        for name in ["TxnOperation", "ExampleRequest"] {
            let Some(RefOr::T(Schema::OneOf(variants))) = schemas.get_mut(name) else { continue };
            for variant in &mut variants.items {
                allow_no_other_fields(variant);
            }
        }
    }
}

/// The `HEAD` operation of a path with `GET`.
fn head_of(get: &Operation) -> Operation {
    let mut head = get.clone();
    let id = get.operation_id.as_deref().unwrap_or_default();
    head.operation_id = Some(format!("head_{}", id.strip_prefix("get_").unwrap_or(id)));
    head.summary = Some("Returns only the headers.".to_owned());
    head.description = Some("The status and the headers of a `GET`, without the body.".to_owned());
    for response in head.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            response.content.clear();
        }
    }
    head
}

/// The macro sees `deny_unknown_fields` on structs, but not on variants of an enum.
fn allow_no_other_fields(schema: &mut RefOr<Schema>) {
    if let RefOr::T(Schema::Object(object)) = schema
        && !object.properties.is_empty()
    {
        object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        object.properties.values_mut().for_each(allow_no_other_fields);
    }
}

/// The document of the API, as indented JSON.
pub fn document_text() -> String {
    let mut text = ApiDocument::openapi().to_pretty_json().unwrap_or_else(|error| {
        tracing::error!("cannot encode the API reference as JSON: {error}");
        "{}".to_owned()
    });
    text.push('\n');
    text
}

/// The document of the API.
///
/// It is OpenAPI 3.1, from which clients can be generated, and the same on every node of a version.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "get_openapi",
    tag = "This reference",
    responses((status = 200, description = "The document.", body = Object, content_type = "application/json"))
)]
pub async fn openapi_json(_: Anyone) -> HttpResponse {
    let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    HttpResponse::Ok().insert_header(json).body(DOCUMENT.clone())
}

/// The reference for people.
///
/// The page shows this document, and needs no other file.
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "get_docs",
    tag = "This reference",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html; charset=utf-8"))
)]
pub async fn docs(_: Anyone) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")))
        .insert_header((header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::SECURITY_POLICY)))
        .body(PAGE.clone())
}
