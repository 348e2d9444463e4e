//! The checks that every request passes before its route.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_http::body::{self, BodySize, BoxBody, MessageBody};
use actix_http::{ConnectionType, HttpMessage, Method, Request, Response, Version};
use actix_service::Service;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, ResponseError, web};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{Either, ready};

use super::admission_queue::is_look;
use super::connection_limits::Class;
use super::connection_state::ConnectionState;
use super::handshake::Caller;
use super::intake::Exchange;
use crate::app::ExampleApp;
use crate::config::{REQUEST_BODY_DEADLINE, SHED_BODY_BYTES_MAX};
use crate::error::{ApiError, Details, Retry};
use crate::headers::{FORWARDED, FORWARDED_TO, REQUEST_ID};
use crate::network::access;
use crate::network::browser::{AllowedOrigin, Browsers};
use crate::network::forward;
use crate::network::observer::Observed;
use crate::network::reply::{error_at, is_v1};
use crate::network::request_body::keep_for_a_while;

const WATCH: &str = "/v1/watch";
const SNAPSHOT: &str = "/v1/snapshot";
const NODE_STATUS: &str = "/raft-status";

/// Passes a request to its route, or sheds it if the connection was admitted for that.
///
/// HEAD goes to the route of GET: the HTTP library omits the body.
pub fn pass<S, R>(
    app: &web::Data<ExampleApp>,
    browsers: &Browsers,
    mut request: Request,
    routes: &S,
) -> impl Future<Output = Result<Response<BoxBody>, S::Error>> + use<S, R>
where
    S: Service<Request, Response = R>,
    R: Into<Response<BoxBody>>,
{
    let state: Option<Rc<ConnectionState>> = request.conn_data::<Rc<ConnectionState>>().cloned();
    let exchange: Option<Rc<Exchange>> = request.conn_data::<Rc<Exchange>>().cloned();
    let is_shed = state.as_ref().is_some_and(|state| state.begin_request());
    let is_http_1_0 = request.version() < Version::HTTP_11;
    let is_head = request.method() == Method::HEAD;
    if is_head {
        request.head_mut().method = Method::GET;
    }
    let observed = state.as_ref().map(|state| state.observer().begin(&state.spent, &request));
    let mut origin = None;
    let rejected = match exchange.as_ref().and_then(|exchange| exchange.take_rejection()) {
        // The client sent another request, which was rejected.
        Some(error) => Some(error.error_response().into()),
        None => answer_at_once(app, browsers, state.as_deref(), &mut request, &mut origin),
    };
    let answer = if let Some(answer) = rejected {
        Either::Left(Either::Left(ready(Ok(answer))))
    } else if is_shed && may_be_shed(request.path()) {
        if let Some(state) = &state {
            state.observer().meters.shed.increment();
        }
        Either::Left(Either::Right(shed(app.clone(), request)))
    } else {
        let answer = routes.call(request);
        Either::Right(async { answer.await.map(Into::into) })
    };
    let under_way = UnderWay { state, observed };
    let varies = browsers.vary();
    async move {
        let mut answer = answer.await;
        if is_head {
            answer = answer.map(without_body);
        }
        if let (Some(origin), Ok(answer)) = (origin, &mut answer) {
            origin.insert_into(answer.headers_mut());
        }
        if let (true, Ok(answer)) = (varies, &mut answer) {
            answer.headers_mut().append(header::VARY, HeaderValue::from_static("Origin"));
        }
        let is_stream = answer.as_ref().is_ok_and(|answer| answer.body().size() == BodySize::Stream);
        let mut closes = exchange.is_some_and(|exchange| exchange.end(is_stream));
        // Only other nodes keep a connection to Raft's thread.
        closes |= under_way.state().is_some_and(|state| state.is_for_nodes() && !state.is_node());
        // A member's RPC on a client's thread: its first bytes arrived in pieces, or it follows another request. The
        // member must open a new connection for the next RPC, which moves to Raft's thread.
        closes |= under_way.state().is_some_and(|state| !state.is_for_nodes() && state.is_kept());
        if let Ok(answer) = &mut answer {
            if closes {
                answer.head_mut().set_connection_type(ConnectionType::Close);
            }
            // HTTP/1.0 has no chunks: the end of the connection ends the body.
            answer.head_mut().no_chunking(is_stream && is_http_1_0);
        }
        // The library makes a 500 of an error.
        let status = answer.as_ref().map_or(500, |answer| answer.status().as_u16());
        let id = under_way.end(is_stream, status);
        if let (Some(id), Ok(answer)) = (id, &mut answer) {
            answer.headers_mut().insert(REQUEST_ID.clone(), id);
        }
        answer
    }
}

/// The response to a request that is rejected before its route, or to a preflight.
fn answer_at_once(
    app: &web::Data<ExampleApp>,
    browsers: &Browsers,
    state: Option<&ConnectionState>,
    request: &mut Request,
    origin: &mut Option<AllowedOrigin>,
) -> Option<Response<BoxBody>> {
    if let Some(caller) = state.and_then(ConnectionState::caller)
        && let Err(error) = check_caller(caller, request)
    {
        keep_for_a_while(request.take_payload());
        let mut answer = error_answer(app, request.path(), error);
        answer.head_mut().set_connection_type(ConnectionType::Close);
        return Some(answer);
    }
    match access::check_proof(app, request).and_then(|()| browsers.check(app, request)) {
        Ok(allowed) => *origin = allowed,
        Err(error) => {
            keep_for_a_while(request.take_payload());
            let mut answer = error_answer(app, request.path(), error.clone());
            access::insert_challenge(app, &error, answer.headers_mut());
            return Some(answer);
        }
    }
    if let Some(preflight) = origin.as_ref().and_then(|origin| origin.preflight(request)) {
        return Some(preflight);
    }
    if state.is_some_and(|state| state.is_for_nodes()) && !is_for_raft(request.path()) {
        keep_for_a_while(request.take_payload());
        let message = "this connection is reserved for requests of other nodes; use another connection";
        let mut answer = error_answer(app, request.path(), ApiError::WrongNode(Details::not_applied(message)));
        answer.head_mut().set_connection_type(ConnectionType::Close);
        return Some(answer);
    }
    let is_admitted = state.is_none_or(|state| is_admitted(app, request, state));
    if is_admitted {
        return None;
    }
    if let Some(state) = state {
        state.observer().meters.over_limit.increment();
    }
    Some(over_limit(app, request))
}

/// Rejects what only nodes may do, if the other side of a TLS connection is none.
fn check_caller(caller: &Caller, request: &mut Request) -> Result<(), ApiError> {
    let forbidden = |message: &str| Err(ApiError::Forbidden(Details::not_applied(message)));
    if !caller.is_trusted() {
        return forbidden("the certificate of this connection is no longer valid here; connect again with another one");
    }
    if caller.node.is_some() {
        return Ok(());
    }
    if request.path().starts_with("/raft-") && request.method() != Method::GET {
        return forbidden(if caller.has_certificate() {
            "this route is for other nodes, and the certificate of this connection names no node"
        } else {
            "this route is for other nodes, and this connection has no certificate"
        });
    }
    // They would say that another node forwarded the request.
    let headers = request.headers_mut();
    headers.remove(&FORWARDED);
    headers.remove(&FORWARDED_TO);
    Ok(())
}

/// Whether the connection is admitted to the class of the request.
fn is_admitted(app: &ExampleApp, request: &Request, state: &ConnectionState) -> bool {
    if state.is_node() {
        return true;
    }
    let path = request.path();
    if is_for_raft(path) {
        // It becomes a node's once the envelope is valid.
        return true;
    }
    let class = match () {
        () if is_for_operators(path) => Class::Operator,
        // Watches are never forwarded.
        () if path != WATCH && forward::is_forwarded(app, request.headers()) => Class::Node,
        () => Class::Client,
    };
    state.admit(class)
}

/// Rejects a request whose connection is not admitted, and closes the connection.
fn over_limit(app: &ExampleApp, request: &mut Request) -> Response<BoxBody> {
    keep_for_a_while(request.take_payload());
    let message = "this node has reached its limit of client connections; retry, or use another node";
    let mut answer = error_answer(app, request.path(), ApiError::Overloaded(Retry::soon(message)));
    answer.head_mut().set_connection_type(ConnectionType::Close);
    answer
}

/// The state of the connection of a request.
pub fn state_of(request: &HttpRequest) -> Option<&Rc<ConnectionState>> {
    request.conn_data::<Rc<ConnectionState>>()
}

/// Drops a body, of which the HTTP library sends the length alone but would read all.
fn without_body(answer: Response<BoxBody>) -> Response<BoxBody> {
    match answer.body().size() {
        BodySize::Stream => answer.set_body(BoxBody::new(body::None::new())),
        BodySize::Sized(length) => answer.set_body(BoxBody::new(LengthOnly(length))),
        BodySize::None => answer,
    }
}

/// The body of a response to `HEAD`, whose length is that of the body of the response to `GET`.
struct LengthOnly(u64);

impl MessageBody for LengthOnly {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.0)
    }

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        Poll::Ready(None)
    }
}

/// A request under way. It ends with its response, or when its client disconnects.
struct UnderWay {
    state: Option<Rc<ConnectionState>>,
    observed: Option<Observed>,
}

impl UnderWay {
    fn state(&self) -> Option<&ConnectionState> {
        self.state.as_deref()
    }

    /// Notes that the request has its response; returns its id.
    fn end(mut self, is_stream: bool, status: u16) -> Option<HeaderValue> {
        self.note_end(is_stream, Some(status))
    }

    fn note_end(&mut self, is_stream: bool, status: Option<u16>) -> Option<HeaderValue> {
        let state = self.state.take()?;
        let observed = self.observed.take();
        let id = observed.and_then(|observed| state.observer().end(&state.spent, observed, status));
        state.end_request(is_stream);
        id
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.note_end(false, None);
    }
}

/// Only requests for data are shed, so that operators can manage and back up the cluster under overload. Watches are
/// not: a browser's `EventSource` does not reconnect after an error status.
fn may_be_shed(path: &str) -> bool {
    is_for_data(path) && !matches!(path, WATCH | SNAPSHOT)
}

/// Whether a route serves Raft of other nodes, on Raft's thread. The status of a node does not: requests for it may be
/// many.
fn is_for_raft(path: &str) -> bool {
    path.starts_with("/raft-") && path != NODE_STATUS
}

/// Whether a route observes or manages a node or its cluster.
fn is_for_operators(path: &str) -> bool {
    is_for_cluster(path) || is_look(path) || matches!(path, "/init" | "/add-learner" | "/change-membership")
}

fn is_for_cluster(path: &str) -> bool {
    path == "/v1/cluster" || path.starts_with("/v1/cluster/")
}

fn is_for_data(path: &str) -> bool {
    is_v1(path) && !is_for_operators(path) || matches!(path, "/write" | "/read" | "/consistent_read")
}

fn error_answer(app: &ExampleApp, path: &str, error: ApiError) -> Response<BoxBody> {
    error_at(app, path, error).into()
}

async fn shed<E>(app: web::Data<ExampleApp>, mut request: Request) -> Result<Response<BoxBody>, E> {
    // A response before the end of the body would close the connection, and a new one costs more.
    let mut payload = request.take_payload();
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(chunk)) = payload.next().await {
            bytes += chunk.len();
            if bytes > SHED_BODY_BYTES_MAX {
                return false;
            }
        }
        true
    };
    if !tokio::time::timeout(REQUEST_BODY_DEADLINE, read).await.unwrap_or(false) {
        keep_for_a_while(payload);
    }
    let error = ApiError::Overloaded(Retry::soon("this node is overloaded"));
    Ok(error_answer(&app, request.path(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests for data may be shed; requests that manage the cluster may not.
    #[test]
    fn what_may_be_shed() {
        for path in ["/v1/kv/a", "/v1/kv", "/v1/txn", "/write", "/read", "/consistent_read"] {
            assert!(may_be_shed(path), "{path}");
        }
        for path in [
            "/v1/watch",
            "/v1/snapshot",
            "/v1/cluster",
            "/v1/cluster/hash",
            "/metrics",
            "/v1/metrics",
            "/livez",
            "/readyz",
            "/health",
        ] {
            assert!(!may_be_shed(path), "{path}");
        }
        for path in ["/add-learner", "/raft-append", "/init", "/docs", "/"] {
            assert!(!may_be_shed(path), "{path}");
        }
    }
}
