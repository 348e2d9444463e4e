//! Changes as they happen, over as many connections as it takes.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt};
use reqwest::Method;
use tokio::time::{sleep, timeout};

use super::ExampleClient;
use super::error::ClientError;
use super::events::{Event, EventParser};
use super::request::{Effect, Request, refusal, target_of};
use super::retry::Retries;
use crate::body::WatchEvent;
use crate::config::{RESPONSE_BYTES_MAX, WATCH_SILENCE_MAX};
use crate::connection::{read_response, reason_of};
use crate::headers::{LAST_EVENT_ID, REVISION, WAIT};

/// The events of a watch.
pub type WatchStream<'a> = BoxStream<'a, Result<WatchEvent, ClientError>>;

/// Called for each connection, with the address of the node, and for each failure after which the watch retries.
type Listener<'a> = Arc<dyn Fn(Result<&str, &ClientError>) + Send + Sync + 'a>;

/// A watch, which is begun by [`start`](Self::start) or [`stream`](Self::stream).
#[derive(Clone)]
#[must_use = "nothing is watched until the watch is started"]
pub struct Watch<'a> {
    client: &'a ExampleClient,
    parameters: Vec<(&'static str, String)>,
    listener: Option<Listener<'a>>,
}

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("parameters", &self.parameters).finish_non_exhaustive()
    }
}

impl ExampleClient {
    /// Watches the keys that begin with a prefix; all keys if it is empty.
    pub fn watch(&self, prefix: impl Into<String>) -> Watch<'_> {
        Watch { client: self, parameters: vec![("prefix", prefix.into())], listener: None }
    }

    /// Watches one key.
    pub fn watch_key(&self, key: impl Into<String>) -> Watch<'_> {
        Watch { client: self, parameters: vec![("key", key.into())], listener: None }
    }
}

impl<'a> Watch<'a> {
    /// Begins with the changes of this revision. Without it the watch begins with the changes after its first
    /// connection, which [`start`](Self::start) waits for.
    pub fn from(mut self, revision: u64) -> Self {
        self.parameters.push(("from", revision.to_string()));
        self
    }

    /// Begins with all keys as they are now, then [`WatchEvent::Synced`]; not together with [`from`](Self::from).
    ///
    /// They are held back until all of them are there: a connection that breaks
    /// before that begins anew, and what was read of another state must not have
    /// been handed out by then. So they take memory, once.
    pub fn initial(mut self) -> Self {
        self.parameters.push(("initial", "true".to_owned()));
        self
    }

    /// Calls `listener` with the address of each node that serves the watch, and with each error after which the watch
    /// retries by itself. Errors that the stream returns are not reported here.
    pub fn on_connection(mut self, listener: impl Fn(Result<&str, &ClientError>) + Send + Sync + 'a) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }

    /// Begins the watch, and returns its events once a node serves it: they include every later change.
    ///
    /// # Errors
    ///
    /// The first error that [`stream`](Self::stream) would return, if no node served the watch before it.
    pub async fn start(self) -> Result<WatchStream<'a>, ClientError> {
        let mut progress = self.progress();
        progress.establish().await?;
        Ok(progress.into_stream())
    }

    /// The events; none is skipped and none comes twice.
    ///
    /// **Nothing is sent until the stream is polled for the first time.** A watch without [`from`](Self::from) and
    /// [`initial`](Self::initial) begins then, and does not show changes between this call and that poll.
    /// Use [`start`](Self::start) where that matters.
    ///
    /// A connection that breaks, is silent for 30 s or is ended by its node is
    /// taken up again at the next node, after the last event. Items are errors:
    ///
    /// * if for the time of [`with_retry_deadline`](ExampleClient::with_retry_deadline)
    ///   no node took it up: the stream may be polled on, and then tries again;
    /// * if a node refuses it, such as with `revision_gone` because the changes that
    ///   come next are no longer kept (see [`ClientError::oldest_revision`]): the
    ///   stream ends then.
    pub fn stream(self) -> WatchStream<'a> {
        self.progress().into_stream()
    }

    fn progress(self) -> Progress<'a> {
        let (target, failed) = match target_of("/v1/watch", &self.parameters) {
            Ok(target) => (target, None),
            Err(error) => (String::new(), Some(error)),
        };
        Progress {
            begins_now: !self.parameters.iter().any(|(name, _)| ["from", "initial"].contains(name)),
            request: Request::new(Method::GET, target, Effect::ReadsOnly, self.client.deadline),
            client: self.client,
            listener: self.listener,
            last_id: None,
            connection: None,
            initial: Vec::new(),
            ready: VecDeque::new(),
            failed,
            retry: None,
            ended: false,
        }
    }
}

/// How far a watch has come.
///
/// Invariant: `last_id` is that of the last event that was put into `ready`, or of
/// a later place up to which there is none; so a connection that begins after it
/// continues `ready`.
struct Progress<'a> {
    client: &'a ExampleClient,
    listener: Option<Listener<'a>>,
    request: Request,
    /// Whether it begins with the changes after the first connection.
    begins_now: bool,
    last_id: Option<String>,
    connection: Option<Connection>,
    /// The keys of a state that is not complete yet.
    initial: Vec<WatchEvent>,
    /// What is still to be handed out.
    ready: VecDeque<WatchEvent>,
    /// What happened after that.
    failed: Option<ClientError>,
    /// Set from the first failure on until something comes again.
    retry: Option<Retries>,
    ended: bool,
}

struct Connection {
    addr: String,
    response: reqwest::Response,
    parser: EventParser,
}

impl<'a> Progress<'a> {
    fn into_stream(self) -> WatchStream<'a> {
        stream::unfold(self, |mut progress| async move { Some((progress.next().await?, progress)) }).boxed()
    }

    /// Connects for the first time.
    async fn establish(&mut self) -> Result<(), ClientError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        loop {
            match self.connect().await {
                Ok(connection) => {
                    self.connection = Some(connection);
                    return Ok(());
                }
                Err(error) => self.pause(error).await?,
            }
        }
    }

    /// Waits until it is time to try again; an error if there is to be no other attempt.
    async fn pause(&mut self, error: ClientError) -> Result<(), ClientError> {
        let retry = self.retry.get_or_insert_with(|| Retries::new(self.client.retry_deadline));
        let Some(delay) = retry.delay(&error) else {
            self.retry = None;
            return Err(error);
        };
        if let Some(listener) = &self.listener {
            listener(Err(&error));
        }
        sleep(delay).await;
        Ok(())
    }

    async fn next(&mut self) -> Option<Result<WatchEvent, ClientError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.ended {
                return None;
            }
            match self.failed.take() {
                None => self.failed = self.read().await.err(),
                Some(error) => {
                    let is_final = error.retry_after().is_none();
                    if let Err(error) = self.pause(error).await {
                        self.ended = is_final;
                        return Some(Err(error));
                    }
                }
            }
        }
    }

    /// Reads what comes next, and makes sure that after a failure another node is asked.
    async fn read(&mut self) -> Result<(), ClientError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        match self.read_from(&mut connection).await {
            Ok(()) => {
                self.connection = Some(connection);
                // A state that never gets complete is no progress, however often it begins.
                if self.initial.is_empty() {
                    self.retry = None;
                }
                Ok(())
            }
            Err(reason) => {
                self.client.turn_from(&connection.addr);
                Err(self.request.lost(&connection.addr, reason))
            }
        }
    }

    async fn connect(&mut self) -> Result<Connection, ClientError> {
        self.initial.clear();
        let (_, addr) = self.client.leader();
        let mut request = self.request.clone();
        // Another node may know a leader.
        request.headers.push((WAIT.as_str(), "no".to_owned()));
        request.headers.extend(self.last_id.clone().map(|id| (LAST_EVENT_ID.as_str(), id)));
        let begun = timeout(request.deadline, async {
            let response = self.client.begin(&addr, &request).await?;
            let status = response.status().as_u16();
            if status == 200 {
                return Ok(response);
            }
            let body = read_response(response, RESPONSE_BYTES_MAX).await;
            let body = body.map_err(|error| request.lost(&addr, error.to_string()))?;
            Err(refusal(&addr, status, &body).unwrap_or_else(|error| request.lost(&addr, error.to_string())))
        });
        let begun = begun.await.unwrap_or_else(|_| Err(request.lost(&addr, "it did not answer in time")));
        let response = begun.inspect_err(|_| self.client.turn_from(&addr))?;
        if self.begins_now && self.last_id.is_none() {
            // Where "now" was; a connection that breaks before the first event must not move it.
            let revision = response.headers().get(REVISION.as_str()).and_then(|value| value.to_str().ok());
            let revision =
                revision.ok_or_else(|| request.lost(&addr, "it does not say at which revision it begins"))?;
            self.last_id = Some(revision.to_owned());
        }
        if let Some(listener) = &self.listener {
            listener(Ok(&addr));
        }
        Ok(Connection { addr, response, parser: EventParser::default() })
    }

    /// Takes the next piece; an error says why the connection is of no more use.
    async fn read_from(&mut self, connection: &mut Connection) -> Result<(), String> {
        let piece = match timeout(WATCH_SILENCE_MAX, connection.response.chunk()).await {
            Ok(Ok(Some(piece))) => piece,
            Ok(Ok(None)) => return Err("the connection was closed".to_owned()),
            Ok(Err(error)) => return Err(reason_of(&error)),
            Err(_) => return Err(format!("it was silent for {} s", WATCH_SILENCE_MAX.as_secs())),
        };
        connection.parser.push(&piece)?.into_iter().try_for_each(|event| self.take(event))
    }

    fn take(&mut self, Event { id, data }: Event) -> Result<(), String> {
        let event = data.map(|data| serde_json::from_str(&data)).transpose();
        match event.map_err(|error| format!("an event is not what this client understands: {error}"))? {
            Some(WatchEvent::End(end)) => return Err(format!("{}: {}", end.code, end.message)),
            Some(event @ WatchEvent::Initial(_)) => self.initial.push(event),
            Some(event) => {
                self.ready.extend(self.initial.drain(..));
                self.ready.push_back(event);
            }
            None => {}
        }
        if id.is_some() {
            self.last_id = id;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A watch whose prefix fits into no request fails at once, and ends.
    #[tokio::test]
    async fn a_prefix_that_is_too_long() {
        let client = ExampleClient::connect(["127.0.0.1:1"]).unwrap();
        let watch = client.watch("p".repeat(70_000));
        let is_rejected = |error: &ClientError| matches!(error, ClientError::InvalidRequest { .. });
        assert!(watch.clone().start().await.is_err_and(|error| is_rejected(&error)));
        let mut events = watch.stream();
        assert!(events.next().await.unwrap().is_err_and(|error| is_rejected(&error)));
        assert!(events.next().await.is_none());
    }
}
