//! Who may call a route, and for which keys.
//!
//! A handler gets the node's handles only as a [`Caller`], a [`Peer`] or [`Anyone`], which it names as its first
//! argument. The route table accepts no other handlers ([`checked`]). So a handler that forgets the check does not
//! compile, and each says in its signature what its callers need.
//!
//! The keys of a request are known only once it is decoded. Reads need a [`Permit`] and writes a [`Permitted`], which
//! only [`Caller`] makes, after it has checked every key and range.

use std::cell::RefCell;
use std::fs::File;
use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::ops::Deref;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use actix_http::{HttpMessage, Request};
use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{FromRequest, Handler, HttpRequest, HttpResponse, Responder, ResponseError, Route, web};
use bytes::Bytes;
use futures_util::Stream;

use super::conditions::Guarded;
use super::listener::admission::state_of;
use super::listener::connection_state::ConnectionState;
use super::rejections::task_ended;
use super::reply::error_at;
use super::request_body::keep_for_a_while;
use crate::access::TokenRole;
use crate::app::ExampleApp;
use crate::auth::{Keys, LastToken, Who};
use crate::body::Needs;
use crate::error::{ApiError, Details, NotApplied, NotPermitted};
use crate::headers::{CHALLENGE, FORWARDED, FORWARDED_TO, PROOF};
use crate::operation::{Operation, TxnStep};
use crate::proofs::{BodyHash, Proofs, Proven, Purpose};

// ---- proofs of other nodes ----

/// Checks the proof of another node before anything else looks at a request.
///
/// # Errors
///
/// 401 for a request that says that another node forwarded it, but does not prove it. A node then repeats it with a
/// proof for the challenge in the response.
pub fn check_proof(app: &ExampleApp, request: &Request) -> Result<(), ApiError> {
    let is_forwarded = || request.headers().contains_key(&FORWARDED) || request.headers().contains_key(&FORWARDED_TO);
    match proof_of(app, request) {
        Some(proven) => drop(request.extensions_mut().insert(proven)),
        None if demands_proofs(app) && is_forwarded() => return Err(not_a_node()),
        None => {}
    }
    Ok(())
}

/// What a request proves, if its sender has proved that it is a node.
fn proof_of(app: &ExampleApp, request: &Request) -> Option<Proven> {
    let proof = request.headers().get(&PROOF)?;
    if let Proofs::ByCertificate = app.peers.proofs {
        let state = request.conn_data::<Rc<ConnectionState>>()?;
        state.caller()?.node?;
        return Some(Proven { purpose: Purpose::parse(proof.to_str().ok()?)?, body: None });
    }
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    app.peers.proofs.check(request.method().as_str(), target, request.headers())
}

/// Adds this node's challenge to a 401, so that another node can prove that it is one.
pub fn insert_challenge(app: &ExampleApp, error: &ApiError, headers: &mut HeaderMap) {
    if let (ApiError::Unauthorized(_), Some(challenge)) = (error, app.peers.proofs.challenge()) {
        headers.insert(CHALLENGE.clone(), challenge);
    }
}

fn not_a_node() -> ApiError {
    ApiError::Unauthorized(Details::not_applied(
        "only nodes may send this request, with a node's certificate or the same root token: start each node with TLS, or \
         with --root-token-file and the same token in it",
    ))
}

/// Whether other nodes must prove that they have the root token. With TLS their certificates show that they are nodes.
fn demands_proofs(app: &ExampleApp) -> bool {
    matches!(app.peers.proofs, Proofs::ByRoot(_)) && app.auth.demands_proofs()
}

fn is_certified(request: &HttpRequest) -> bool {
    state_of(request).and_then(|state| state.caller()).is_some_and(|caller| caller.node.is_some())
}

fn proven(request: &HttpRequest) -> Option<Proven> {
    request.extensions().get::<Proven>().copied()
}

fn purpose_of(request: &HttpRequest) -> Option<Purpose> {
    proven(request).map(|proven| proven.purpose)
}

/// Checks that the proof of a request, if it has one, is for this body.
///
/// # Errors
///
/// 401. It has no challenge, because another proof would not help.
pub async fn check_body(request: &HttpRequest, body: &Bytes) -> Result<(), ApiError> {
    match proven(request).and_then(|proven| proven.body) {
        Some(announced) if announced != BodyHash::of_bytes(body).await => Err(other_body()),
        _ => Ok(()),
    }
}

/// The same for a body that begins with `start` and continues with the content of a file.
///
/// # Errors
///
/// 401, or the file cannot be read.
pub async fn check_body_with_file(request: &HttpRequest, start: Vec<u8>, file: PathBuf) -> Result<(), ApiError> {
    let Some(announced) = proven(request).and_then(|proven| proven.body) else { return Ok(()) };
    let hash = move || BodyHash::of_parts(&start, File::open(file)?);
    match tokio::task::spawn_blocking(hash).await {
        Ok(Ok(hash)) if hash == announced => Ok(()),
        Ok(Ok(_)) => Err(other_body()),
        Ok(Err(error)) => Err(ApiError::internal(format!("cannot read a received snapshot: {error}"))),
        Err(error) => Err(task_ended(&error)),
    }
}

fn other_body() -> ApiError {
    ApiError::Unauthorized(Details::not_applied(
        "the proof of the root token is for another body: was it changed on the way?",
    ))
}

/// Whether a request is another node's own.
pub fn is_of_peer(request: &HttpRequest) -> bool {
    purpose_of(request) == Some(Purpose::Own) && !request.headers().contains_key(header::AUTHORIZATION)
}

// ---- the check ----

/// What the callers of a route need.
pub trait Need {
    /// The role that a token must have.
    const ROLE: TokenRole;
    /// Whether they need it even if other requests need no token.
    const ALWAYS: bool = false;
    /// Whether `--public-metrics` lifts it.
    const IS_METRICS: bool = false;
}

/// Reads keys, or the status of the cluster.
pub struct ToRead;
/// Writes keys.
pub struct ToWrite;
/// Manages the cluster, or reads everything in it.
pub struct ToManage;
/// Manages tokens.
pub struct ToManageTokens;
/// Reads metrics.
pub struct ToMeasure;

impl Need for ToRead {
    const ROLE: TokenRole = TokenRole::Read;
}

impl Need for ToWrite {
    const ROLE: TokenRole = TokenRole::Write;
}

impl Need for ToManage {
    const ROLE: TokenRole = TokenRole::Admin;
}

impl Need for ToManageTokens {
    const ROLE: TokenRole = TokenRole::Admin;
    const ALWAYS: bool = true;
}

impl Need for ToMeasure {
    const ROLE: TokenRole = TokenRole::Read;
    const IS_METRICS: bool = true;
}

/// Decides whether the sender of a request has a role, and who it is. This is the only place that does.
fn authorize<N: Need>(app: &ExampleApp, request: &HttpRequest) -> Result<Who, ApiError> {
    let is_open = !app.auth.is_required() || N::IS_METRICS && app.auth.public_metrics;
    if is_open && !N::ALWAYS {
        return Ok(Who::Anyone);
    }
    if is_of_peer(request) {
        return Ok(Who::Peer);
    }
    let who = match bearer(request.headers()) {
        Bearer::Token(secret) => match state_of(request) {
            Some(state) => app.auth.holder_of(secret, &state.last_token),
            None => app.auth.holder_of(secret, &LastToken::default()),
        },
        Bearer::Missing => return Err(unauthorized(app, "the request needs a token: Authorization: Bearer <token>")),
        Bearer::Malformed => None,
    };
    let who = who.ok_or_else(|| unauthorized(app, "the token is not valid: it may have expired or been revoked"))?;
    if who.has_role(N::ROLE) { Ok(who) } else { Err(needs(N::ROLE, None)) }
}

/// What the header `Authorization` of a request says.
#[derive(Debug, PartialEq, Eq)]
pub enum Bearer<'a> {
    /// Nothing.
    Missing,
    /// Anything but one token.
    Malformed,
    /// A token, which may be unknown.
    Token(&'a [u8]),
}

/// The token of a request.
pub fn bearer(headers: &HeaderMap) -> Bearer<'_> {
    let mut values = headers.get_all(header::AUTHORIZATION);
    let Some(value) = values.next() else { return Bearer::Missing };
    let Some((scheme, secret)) = value.as_bytes().split_at_checked(7) else { return Bearer::Malformed };
    let secret = secret.trim_ascii();
    if values.next().is_some() || !scheme.eq_ignore_ascii_case(b"bearer ") || secret.is_empty() {
        return Bearer::Malformed;
    }
    Bearer::Token(secret)
}

fn unauthorized(app: &ExampleApp, message: &str) -> ApiError {
    let message = match app.auth.is_required() {
        true => message.to_owned(),
        false => format!(
            "{message}; requests to this cluster need no token, and tokens need a root token: start each node with \
             --root-token-file"
        ),
    };
    ApiError::Unauthorized(Details::not_applied(message))
}

fn needs(role: TokenRole, keys: Option<Keys<'_>>) -> ApiError {
    let name = role.as_str();
    let (key, prefix, range, what) = match keys {
        None => (None, None, None, String::new()),
        Some(Keys::One(key)) => (Some(key.to_owned()), None, None, " for this key".to_owned()),
        Some(Keys::Prefix("")) => (None, Some(String::new()), None, " for all keys".to_owned()),
        Some(Keys::Prefix(prefix)) => {
            (None, Some(prefix.to_owned()), None, " for all keys with this prefix".to_owned())
        }
        Some(Keys::Between(start, end)) => {
            (None, None, Some((start.to_owned(), end.to_owned())), " for all keys in this range".to_owned())
        }
    };
    ApiError::NotPermitted(Box::new(NotPermitted {
        message: format!("the request needs a token with the role `{name}`{what}"),
        needs: Needs { role, key, prefix, range },
        outcome: NotApplied::NotApplied,
    }))
}

/// The sender of a request, who has the role that `N` names.
pub struct Caller<N> {
    app: web::Data<ExampleApp>,
    who: Who,
    need: PhantomData<N>,
}

impl<N> Deref for Caller<N> {
    type Target = web::Data<ExampleApp>;

    fn deref(&self) -> &web::Data<ExampleApp> {
        &self.app
    }
}

/// The right to read some keys.
#[derive(Clone, Debug)]
pub struct Permit(Who);

/// A write that its sender may make.
pub struct Permitted {
    write: Guarded,
    who: Who,
}

impl<N> Caller<N> {
    /// Checks that the caller may read these keys.
    ///
    /// # Errors
    ///
    /// 403.
    pub fn may_read(&self, keys: Keys<'_>) -> Result<Permit, ApiError> {
        self.check(TokenRole::Read, keys).map(|()| Permit(self.who.clone()))
    }

    /// Whose request it is.
    pub fn who(&self) -> &Who {
        &self.who
    }

    /// The right of a caller that may read everything, whatever its keys.
    pub fn may_read_all(&self) -> Result<Permit, ApiError> {
        self.may_read(Keys::Prefix(""))
    }

    /// Checks that the caller may make this write, in whichever branch: every key that it names.
    ///
    /// # Errors
    ///
    /// 403.
    pub fn may_write(&self, write: impl Into<Guarded>) -> Result<Permitted, ApiError> {
        let write = write.into();
        if let Who::Holder { .. } = self.who {
            self.check_operation(&write.operation)?;
        }
        Ok(Permitted { write, who: self.who.clone() })
    }

    fn check_operation(&self, operation: &Operation) -> Result<(), ApiError> {
        let written = |key: &str| self.check(TokenRole::Write, Keys::One(key));
        match operation {
            Operation::Put(put) => written(&put.key),
            Operation::Delete(delete) => written(&delete.key),
            Operation::Touch(touch) => written(&touch.key),
            Operation::DeletePrefix { prefix, .. } => self.check(TokenRole::Write, Keys::Prefix(prefix)),
            Operation::Txn(txn) => {
                let read = |key: &str| self.check(TokenRole::Read, Keys::One(key));
                txn.compare.iter().try_for_each(|comparison| read(&comparison.key))?;
                txn.success.iter().chain(&txn.failure).try_for_each(|step| match step {
                    TxnStep::Put(put) => written(&put.key),
                    TxnStep::Delete(delete) => written(&delete.key),
                    TxnStep::Touch(touch) => written(&touch.key),
                    TxnStep::Get(key) => read(key),
                })
            }
            Operation::Access(_) | Operation::Expire | Operation::SelfCheck { .. } | Operation::RaiseLevel { .. } => {
                if self.who.has_role(TokenRole::Admin) {
                    Ok(())
                } else {
                    Err(needs(TokenRole::Admin, None))
                }
            }
        }
    }

    fn check(&self, role: TokenRole, keys: Keys<'_>) -> Result<(), ApiError> {
        if self.who.has_role(role) && self.who.has_keys(keys) { Ok(()) } else { Err(needs(role, Some(keys))) }
    }
}

impl Permit {
    /// Checks that the token has neither expired nor been revoked since it was checked.
    ///
    /// # Errors
    ///
    /// 401.
    pub fn check_again(&self, app: &ExampleApp) -> Result<(), ApiError> {
        check_again(app, &self.0)
    }

    /// Completes once the token has expired or was revoked.
    pub fn ended(&self, app: &web::Data<ExampleApp>) -> impl Future<Output = ApiError> + use<> {
        let (permit, app, mut changes) = (self.clone(), app.clone(), app.auth.changes());
        async move {
            loop {
                changes.mark_unchanged();
                if let Err(error) = permit.check_again(&app) {
                    return error;
                }
                let left = match &permit.0 {
                    Who::Holder { token, .. } if token.expires_at_ms > 0 => {
                        let left_ms = token.expires_at_ms.saturating_sub(app.store.clock().now_ms());
                        // Log time may pass more slowly than this machine's, so it is looked at again.
                        Some(Duration::from_millis(left_ms.max(1)))
                    }
                    _ => None,
                };
                let expiry = async {
                    match left {
                        Some(left) => tokio::time::sleep(left).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { std::future::pending::<()>().await },
                    () = expiry => {}
                }
            }
        }
    }
}

/// Checks that a token has neither expired nor been revoked since it was checked.
///
/// # Errors
///
/// 401.
pub fn check_again(app: &ExampleApp, who: &Who) -> Result<(), ApiError> {
    if app.auth.still_admits(who) {
        return Ok(());
    }
    Err(unauthorized(app, "the token is not valid any more: it has expired or was revoked"))
}

impl Permitted {
    /// The write, and whose it is.
    pub fn into_parts(self) -> (Guarded, Who) {
        (self.write, self.who)
    }
}

// ---- what handlers get ----

/// A request without a valid token, or without a sufficient one.
#[derive(Debug)]
pub struct Denied {
    response: Box<RefCell<Option<HttpResponse>>>,
    error: Box<ApiError>,
}

impl Denied {
    fn new(app: &ExampleApp, request: &HttpRequest, payload: &mut Payload, error: ApiError) -> Self {
        let response = denied(app, request, payload.take(), &error);
        Denied { response: Box::new(RefCell::new(Some(response))), error: Box::new(error) }
    }
}

fn denied(app: &ExampleApp, request: &HttpRequest, payload: impl Stream + 'static, error: &ApiError) -> HttpResponse {
    keep_for_a_while(payload);
    let mut response = error_at(app, request.path(), error.clone());
    insert_challenge(app, error, response.headers_mut());
    response
}

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.error)
    }
}

impl ResponseError for Denied {
    fn status_code(&self) -> StatusCode {
        self.error.status_code()
    }

    fn error_response(&self) -> HttpResponse {
        self.response.take().unwrap_or_else(|| self.error.error_response())
    }
}

impl<N: Need> Caller<N> {
    fn of(request: &HttpRequest, payload: &mut Payload) -> Result<Self, Denied> {
        let app = app_of(request);
        match authorize::<N>(&app, request) {
            Ok(who) => Ok(Caller { app, who, need: PhantomData }),
            Err(error) => Err(Denied::new(&app, request, payload, error)),
        }
    }
}

/// The node's handles. Only this module takes them from a request.
fn app_of(request: &HttpRequest) -> web::Data<ExampleApp> {
    request.app_data::<web::Data<ExampleApp>>().expect("every server has its handles").clone()
}

impl<N: Need> FromRequest for Caller<N> {
    type Error = Denied;
    type Future = Ready<Result<Self, Denied>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        ready(Caller::of(request, payload))
    }
}

/// Another node.
///
/// With TLS, its connection has a node's certificate. Otherwise, if this node has the root token and the cluster requires
/// tokens, the other node has proved that it has the root token, too. (With TLS and without tokens, routes that only
/// describe this node are for anyone.)
pub struct Peer(web::Data<ExampleApp>);

impl Deref for Peer {
    type Target = web::Data<ExampleApp>;

    fn deref(&self) -> &web::Data<ExampleApp> {
        &self.0
    }
}

impl FromRequest for Peer {
    type Error = Denied;
    type Future = Ready<Result<Self, Denied>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let app = app_of(request);
        let is_proven = match app.peers.proofs {
            Proofs::ByCertificate => !app.auth.is_required() || is_certified(request),
            Proofs::ByRoot(_) => !demands_proofs(&app) || purpose_of(request) == Some(Purpose::Own),
            Proofs::None => true,
        };
        if is_proven { ready(Ok(Peer(app))) } else { ready(Err(Denied::new(&app, request, payload, not_a_node()))) }
    }
}

/// The sender of a request to a route that needs no token, because its response contains no data.
pub struct Anyone(web::Data<ExampleApp>);

impl Deref for Anyone {
    type Target = web::Data<ExampleApp>;

    fn deref(&self) -> &web::Data<ExampleApp> {
        &self.0
    }
}

impl FromRequest for Anyone {
    type Error = actix_web::Error;
    type Future = Ready<Result<Self, actix_web::Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(Anyone(app_of(request))))
    }
}

/// A request to a path with several methods, whose check depends on the method.
pub struct Unchecked(());

impl Unchecked {
    /// Makes the check.
    pub fn caller<N: Need>(
        &self,
        request: &HttpRequest,
        payload: web::Payload,
    ) -> Result<(Caller<N>, web::Payload), Box<HttpResponse>> {
        let app = app_of(request);
        match authorize::<N>(&app, request) {
            Ok(who) => Ok((Caller { app, who, need: PhantomData }, payload)),
            Err(error) => Err(Box::new(denied(&app, request, payload, &error))),
        }
    }

    /// Rejects the method of a request.
    pub fn wrong_method(&self, request: &HttpRequest, allowed: &'static str) -> HttpResponse {
        super::reply::wrong_method(&app_of(request), request, allowed)
    }
}

impl FromRequest for Unchecked {
    type Error = actix_web::Error;
    type Future = Ready<Result<Self, actix_web::Error>>;

    fn from_request(_: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(Unchecked(())))
    }
}

// ---- the route table ----

/// A route whose handler cannot have forgotten the check.
pub struct Checked(pub(super) Route);

/// The arguments of a handler that begin with the check.
pub trait BeginsWithCheck: FromRequest {}

/// A first argument that checks the sender.
pub trait Check: FromRequest {}

impl<N: Need> Check for Caller<N> {}
impl Check for Peer {}
impl Check for Anyone {}
impl Check for Unchecked {}

impl<A: Check + 'static> BeginsWithCheck for (A,) {}
impl<A: Check + 'static> BeginsWithCheck for (A, HttpRequest) {}
impl<A: Check + 'static> BeginsWithCheck for (A, HttpRequest, web::Payload) {}

/// A route with this handler.
pub fn checked<F, Args>(route: Route, handler: F) -> Checked
where
    F: Handler<Args>,
    Args: BeginsWithCheck + 'static,
    F::Output: Responder + 'static,
{
    Checked(route.to(handler))
}
