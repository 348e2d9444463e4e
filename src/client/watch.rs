//! Watches: changes as they happen, across reconnects.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt};
use reqwest::Method;
use tokio::time::{sleep, timeout};

use super::ExampleClient;
use super::error::ClientError;
use super::events::{Event, EventParser};
use super::request::{Effect, Request, rejection, target_of};
use super::retry::Retries;
use crate::body::WatchEvent;
use crate::config::{RESPONSE_BYTES_MAX, WATCH_SILENCE_MAX};
use crate::connection::{read_response, reason_of};
use crate::headers::{LAST_EVENT_ID, REVISION, WAIT};

/// The events of a watch. See [`Watch::stream`].
pub type WatchStream<'a> = BoxStream<'a, Result<WatchEvent, ClientError>>;

/// Called with the address of the node for each connection, and with each error that the watch retries after.
type Listener<'a> = Arc<dyn Fn(Result<&str, &ClientError>) + Send + Sync + 'a>;

/// A watch. Start it with [`start`](Self::start) or [`stream`](Self::stream).
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
    /// Watches the keys with a prefix; all keys if it is empty.
    pub fn watch(&self, prefix: impl Into<String>) -> Watch<'_> {
        Watch { client: self, parameters: vec![("prefix", prefix.into())], listener: None }
    }

    /// Watches one key.
    pub fn watch_key(&self, key: impl Into<String>) -> Watch<'_> {
        Watch { client: self, parameters: vec![("key", key.into())], listener: None }
    }
}

impl<'a> Watch<'a> {
    /// Begins with the changes of this revision. Otherwise the watch begins with the changes after its first
    /// connection, which [`start`](Self::start) waits for.
    pub fn from(mut self, revision: u64) -> Self {
        self.parameters.push(("from", revision.to_string()));
        self
    }

    /// Begins with the current state of all keys, then [`WatchEvent::Synced`]. It excludes [`from`](Self::from).
    ///
    /// The stream returns no key before all have arrived: if the connection breaks before that, the watch starts again
    /// with a newer state, and the two must not be mixed. So all keys are in memory at once.
    pub fn initial(mut self) -> Self {
        self.parameters.push(("initial", "true".to_owned()));
        self
    }

    /// Calls `listener` with the address of each node that serves the watch, and with each error that the watch retries
    /// after. Errors that the stream returns are not reported here.
    pub fn on_connection(mut self, listener: impl Fn(Result<&str, &ClientError>) + Send + Sync + 'a) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }

    /// Starts the watch, and returns its events once a node serves it. They include every later change.
    ///
    /// # Errors
    ///
    /// The error that [`stream`](Self::stream) would return first, if no node serves the watch.
    pub async fn start(self) -> Result<WatchStream<'a>, ClientError> {
        let mut progress = self.progress();
        progress.establish().await?;
        Ok(progress.into_stream())
    }

    /// The events. None is skipped, and none is repeated.
    ///
    /// **The first poll of the stream starts the watch.** Without [`from`](Self::from) and [`initial`](Self::initial),
    /// it misses the changes between this call and that poll; use [`start`](Self::start) where that matters.
    ///
    /// If a connection breaks, is silent for 30 s, or is ended by its node, the watch resumes at the next node after
    /// the last event. It returns an error:
    ///
    /// * if no node served it for the duration of [`with_retry_deadline`](ExampleClient::with_retry_deadline); the next
    ///   poll retries;
    /// * if a node rejects it, for example with `revision_gone` because the next changes are no longer kept (see
    ///   [`ClientError::oldest_revision`]); the stream then ends.
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

/// The state of a watch.
///
/// Invariant: `last_id` is the id of the last event in `ready`, or a later one without events in between. So a
/// connection that resumes after it continues `ready`.
struct Progress<'a> {
    client: &'a ExampleClient,
    listener: Option<Listener<'a>>,
    request: Request,
    /// Whether the watch begins with the changes after its first connection.
    begins_now: bool,
    last_id: Option<String>,
    connection: Option<Connection>,
    /// The keys of an initial state that is not complete yet.
    initial: Vec<WatchEvent>,
    /// Events that the stream has not returned yet.
    ready: VecDeque<WatchEvent>,
    /// The failure after these events.
    failed: Option<ClientError>,
    /// The attempts since the last progress.
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

    /// Waits until the next attempt is due; returns the error if a retry is useless or too late.
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

    /// Reads the next piece, and turns to another node after a failure.
    async fn read(&mut self) -> Result<(), ClientError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        match self.read_from(&mut connection).await {
            Ok(()) => {
                self.connection = Some(connection);
                // An initial state that never completes is no progress, however often it starts.
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
        // Do not wait for this node to find a leader: another node may know one.
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
            Err(rejection(&addr, status, &body).unwrap_or_else(|error| request.lost(&addr, error.to_string())))
        });
        let begun = begun.await.unwrap_or_else(|_| Err(request.lost(&addr, "it timed out")));
        let response = begun.inspect_err(|_| self.client.turn_from(&addr))?;
        if self.begins_now && self.last_id.is_none() {
            // The watch begins here even if the connection breaks before the first event.
            let revision = response.headers().get(REVISION.as_str()).and_then(|value| value.to_str().ok());
            let revision = revision.ok_or_else(|| request.lost(&addr, "it has no Raft-Revision header"))?;
            self.last_id = Some(revision.to_owned());
        }
        if let Some(listener) = &self.listener {
            listener(Ok(&addr));
        }
        Ok(Connection { addr, response, parser: EventParser::default() })
    }

    /// Reads the next piece of a connection; the error says why the connection must be closed.
    async fn read_from(&mut self, connection: &mut Connection) -> Result<(), String> {
        let piece = match timeout(WATCH_SILENCE_MAX, connection.response.chunk()).await {
            Ok(Ok(Some(piece))) => piece,
            Ok(Ok(None)) => return Err("the connection was closed".to_owned()),
            Ok(Err(error)) => return Err(reason_of(&error)),
            Err(_) => return Err(format!("the node sent nothing for {} s", WATCH_SILENCE_MAX.as_secs())),
        };
        connection.parser.push(&piece)?.into_iter().try_for_each(|event| self.take(event))
    }

    fn take(&mut self, Event { id, data }: Event) -> Result<(), String> {
        let event = data.map(|data| serde_json::from_str(&data)).transpose();
        match event.map_err(|error| format!("an event is invalid: {error}"))? {
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

    /// A watch whose prefix is too long for a request fails at once, and ends.
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
