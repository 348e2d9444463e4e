//! `GET /livez`, `/readyz` and `/health`: for supervisors, load balancers and orchestrators.
//!
//! They need no other node, take no lock that applying entries takes, and are not shed under overload.

use std::fmt::Write;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use openraft::async_runtime::WatchReceiver;

use super::access::Anyone;
use super::openapi::answers::{HealthBody, HealthErrors, ProbeErrors};
use super::openapi::parameters::ProbeParameters;
use super::parameters::Parameters;
use super::readiness::{self, Check};
use super::rejections::raft_ended;
use super::reply::{encode, json};
use super::request_body::reject_body;
use crate::app::ExampleApp;
use crate::error::ApiError;

/// Returns whether the process works.
///
/// It does not depend on other nodes, so a supervisor may restart a node that fails it. Returns 200 with `ok`, or 503
/// with one line for each check that failed.
#[utoipa::path(
    get,
    path = "/livez",
    operation_id = "get_livez",
    tag = "The cluster",
    params(ProbeParameters),
    responses(
        (status = 200, description = "The process works.", body = String, content_type = "text/plain; charset=utf-8"),
        ProbeErrors,
    ),
)]
pub async fn livez(app: Anyone, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    let raft = match &app.raft.metrics().borrow_watched().running_state {
        Ok(()) => Ok(()),
        Err(fatal) => Err(raft_ended(fatal)),
    };
    probe(&app, &request, payload, "livez", &[Check { name: "raft", result: raft }]).await
}

/// Returns whether the node can serve requests.
///
/// It can if it is not stopping, knows a leader, has recovered, and has space for entries on its disk. Returns 200 with
/// `ok`, or 503 with one line for each check that failed. A load balancer may use it to choose nodes.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "get_readyz",
    tag = "The cluster",
    params(ProbeParameters),
    responses(
        (
            status = 200,
            description = "The node can serve requests.",
            body = String,
            content_type = "text/plain; charset=utf-8",
        ),
        ProbeErrors,
    ),
)]
pub async fn readyz(app: Anyone, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    probe(&app, &request, payload, "readyz", &readiness::checks(&app)).await
}

/// Returns the result of `/readyz` as JSON, as etcd does.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "get_health",
    tag = "The cluster",
    responses(
        (
            status = 200,
            description = "The node can serve requests.",
            body = HealthBody,
            example = json!({"health": "true"}),
        ),
        (
            status = 503,
            description = "The node cannot serve requests.",
            body = HealthBody,
            example = json!({"health": "false", "reason": "leader: no leader is known"}),
        ),
        HealthErrors,
    ),
)]
pub async fn health(app: Anyone, request: HttpRequest, payload: web::Payload) -> Result<HttpResponse, ApiError> {
    reject_body(&app, &request, payload).await?;
    Parameters::of(&request, &[])?;
    let failed: Vec<String> = readiness::checks(&app).iter().filter_map(Check::failure).collect();
    let reason = (!failed.is_empty()).then(|| failed.join("; "));
    let status = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = HealthBody { health: if reason.is_none() { "true" } else { "false" }, reason };
    Ok(not_stored(json(status, encode(&body, 256))))
}

async fn probe(
    app: &ExampleApp,
    request: &HttpRequest,
    payload: web::Payload,
    name: &str,
    checks: &[Check],
) -> Result<HttpResponse, ApiError> {
    reject_body(app, request, payload).await?;
    let is_verbose = Parameters::of(request, &["verbose"])?.flag("verbose")?;
    let (status, text) = describe(name, checks, is_verbose);
    let text_type = (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(not_stored(HttpResponse::build(status).insert_header(text_type).body(text)))
}

/// The status and the text of a probe: one line for each check if it is verbose, or for each that failed, and the
/// result.
fn describe(name: &str, checks: &[Check], is_verbose: bool) -> (StatusCode, String) {
    let mut text = String::new();
    for check in checks {
        // Writing to a string cannot fail.
        let _ = match check.failure() {
            Some(failure) => writeln!(text, "[-]{failure}"),
            None if is_verbose => writeln!(text, "[+]{}: ok", check.name),
            None => Ok(()),
        };
    }
    let (status, result) = if checks.iter().all(|check| check.result.is_ok()) {
        (StatusCode::OK, "ok".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{name} failed"))
    };
    (status, text + &result + "\n")
}

/// A cache between the node and the prober must not answer for it.
fn not_stored(mut response: HttpResponse) -> HttpResponse {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Retry;
    use crate::network::rejections::stopping;

    /// A probe has one line for each check that failed, or for each check, and a result at its end.
    #[test]
    fn one_line_a_check() {
        let good = |name| Check { name, result: Ok(()) };
        let bad = |name, error| Check { name, result: Err(error) };
        assert_eq!(describe("livez", &[good("raft")], false), (StatusCode::OK, "ok\n".to_owned()));
        assert_eq!(describe("livez", &[good("raft")], true), (StatusCode::OK, "[+]raft: ok\nok\n".to_owned()));
        let recovering = ApiError::Recovering(Retry::soon("this node has just started"));
        let checks = [bad("running", stopping()), good("leader"), bad("recovered", recovering)];
        for (is_verbose, lines) in [(false, 3), (true, 4)] {
            let (status, text) = describe("readyz", &checks, is_verbose);
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(text.lines().count(), lines, "{text}");
            assert!(text.starts_with("[-]running: this node is stopping"), "{text}");
            assert!(text.contains("\n[-]recovered: this node has just started"), "{text}");
            assert_eq!(text.contains("[+]leader: ok"), is_verbose, "{text}");
            assert!(text.ends_with("\nreadyz failed\n"), "{text}");
        }
    }
}
