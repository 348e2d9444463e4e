//! A watch as a client sees it: server-sent events, parsed as `EventSource` does.

use std::time::Duration;

use raft_key_value::NodeId;
use reqwest::{Method, Response};
use serde_json::Value;

use super::cluster::TestCluster;
use super::eventually::DEADLINE;
use super::http::{Answer, Http};

/// An event of a watch.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its id, if it has one.
    pub id: Option<String>,
    /// Its data, as JSON.
    pub data: Value,
}

impl Event {
    /// The type: `put`, `delete`, `expire`, `initial`, `synced` or `end`.
    pub fn kind(&self) -> &str {
        self.data["type"].as_str().unwrap()
    }

    /// The key of the event.
    pub fn key(&self) -> &str {
        self.data["key"].as_str().unwrap()
    }

    /// The revision of the event.
    pub fn revision(&self) -> u64 {
        self.data["revision"].as_u64().unwrap()
    }
}

/// An open watch.
#[derive(Debug)]
pub struct Watch {
    response: Response,
    /// Bytes that do not form a whole event yet.
    unread: Vec<u8>,
    /// The latest id, after which the watch can be resumed.
    pub last_id: Option<String>,
}

impl TestCluster {
    /// Opens a watch through a node; `query` follows the `?`.
    pub async fn watch(&self, id: NodeId, query: &str) -> Watch {
        self.watch_after(id, query, None).await.unwrap_or_else(|rejected| panic!("a watch on node {id}: {rejected:?}"))
    }

    /// Resumes a watch after an event; the error is the node's response.
    pub async fn watch_after(&self, id: NodeId, query: &str, last_id: Option<&str>) -> Result<Watch, Answer> {
        let opened = Watch::open(self.http(), self.addr(id), query, last_id).await;
        match opened {
            Ok(opened) => opened,
            Err(error) => panic!("GET /v1/watch?{query} on node {id}: {error:?}"),
        }
    }
}

impl Watch {
    /// Opens or resumes a watch through the node at this address, which may not respond; or its rejection.
    pub async fn open(
        http: &Http,
        addr: &str,
        query: &str,
        last_id: Option<&str>,
    ) -> Result<Result<Self, Answer>, reqwest::Error> {
        let headers: Vec<(&str, &str)> = last_id.map(|last_id| ("last-event-id", last_id)).into_iter().collect();
        let path = format!("/v1/watch?{query}");
        let response = http.open(Method::GET, addr, &path, &headers, "").await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        if status != 200 {
            let body = response.bytes().await?.into();
            return Ok(Err(Answer { status, headers, body }));
        }
        assert_eq!(headers["content-type"], "text/event-stream");
        assert_eq!(headers["cache-control"], "no-store");
        for name in ["raft-revision", "raft-term", "raft-node"] {
            assert!(headers.contains_key(name), "{name} is not in {headers:?}");
        }
        Ok(Ok(Watch { response, unread: Vec::new(), last_id: last_id.map(str::to_owned) }))
    }

    /// The next event; `None` once the node has ended the watch or died.
    pub async fn next(&mut self) -> Option<Event> {
        let next = tokio::time::timeout(DEADLINE, self.next_or_end()).await;
        next.unwrap_or_else(|_| panic!("no event within {DEADLINE:?} after {:?}", self.last_id))
    }

    /// The next event, if it arrives within this time.
    pub async fn next_within(&mut self, time: Duration) -> Option<Event> {
        tokio::time::timeout(time, self.next_or_end()).await.ok().flatten()
    }

    /// The next `count` events.
    pub async fn take(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.next().await.unwrap_or_else(|| panic!("the watch ended after {events:?}")));
        }
        events
    }

    /// All events up to the last one of a revision.
    pub async fn until_revision(&mut self, revision: u64) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("the watch ended before {revision}: {events:?}"));
            assert_ne!(event.kind(), "end", "the watch ended before {revision}: {event:?}");
            events.push(event);
            if self.last_id.as_deref() == Some(revision.to_string().as_str()) {
                return events;
            }
        }
    }

    /// All events until the node ends the watch.
    pub async fn until_end(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }

    /// The next event, however long it takes; `None` once the node has ended the watch or died.
    pub async fn next_or_end(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.unread.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.unread.drain(..end + 2).collect();
                let event = self.parse(std::str::from_utf8(&block).unwrap());
                if event.is_some() {
                    return event;
                }
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.unread.extend_from_slice(&chunk),
                // The node ended the watch or was killed; half an event does not count.
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Parses a block of lines; returns an event if it has data.
    fn parse(&mut self, block: &str) -> Option<Event> {
        let (mut id, mut data) = (None, None);
        for line in block.lines().filter(|line| !line.is_empty() && !line.starts_with(':')) {
            match line.split_once(": ") {
                Some(("id", value)) => assert_eq!(id.replace(value.to_owned()), None, "two ids in {block:?}"),
                Some(("data", value)) => assert_eq!(data.replace(value.to_owned()), None, "two data in {block:?}"),
                _ => panic!("not a line of a server-sent event: {line:?}"),
            }
        }
        if id.is_some() {
            self.last_id.clone_from(&id);
        }
        let data: Value = serde_json::from_str(&data?).unwrap_or_else(|error| panic!("{error} in {block:?}"));
        let event = Event { id, data };
        if let (Some(id), "put" | "delete" | "expire" | "synced") = (&event.id, event.kind()) {
            let revision = id.split('.').next().unwrap();
            assert_eq!(revision, event.revision().to_string(), "the id and the revision of {event:?}");
        }
        Some(event)
    }
}
