//! Many keys, in pages that all show the same state.

use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use reqwest::Method;

use super::ExampleClient;
use super::error::ClientError;
use super::request::{Effect, Request, target_of};
use crate::body::{KeyValue, ListAnswer};

/// A listing, which is read by one of [`stream`](Self::stream),
/// [`collect`](Self::collect) and [`page`](Self::page).
#[derive(Clone, Debug)]
#[must_use = "nothing is read until it is asked for"]
pub struct List<'a> {
    client: &'a ExampleClient,
    parameters: Vec<(&'static str, String)>,
}

/// Where the next page begins.
enum Place {
    Beginning,
    /// On this node, in the state of this revision, after this key.
    After {
        addr: String,
        revision: u64,
        key: String,
    },
    End,
}

impl ExampleClient {
    /// Lists the keys that begin with a prefix, in the order of their bytes.
    pub fn list(&self, prefix: impl Into<String>) -> List<'_> {
        List { client: self, parameters: vec![("prefix", prefix.into())] }
    }
}

impl<'a> List<'a> {
    /// From this key on.
    pub fn start(self, key: impl Into<String>) -> Self {
        self.with("start", key)
    }

    /// Up to this key, and without it.
    pub fn end(self, key: impl Into<String>) -> Self {
        self.with("end", key)
    }

    /// From the last key to the first.
    pub fn reverse(self) -> Self {
        self.with("reverse", "true")
    }

    /// Without values.
    pub fn keys_only(self) -> Self {
        self.with("keys_only", "true")
    }

    /// Keys of one page, from 1 to what the nodes allow, 1,000 by default.
    pub fn page_size(self, keys: usize) -> Self {
        self.with("limit", keys.to_string())
    }

    /// What a node holds, which may be behind.
    pub fn stale(self) -> Self {
        self.with("consistency", "stale")
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.parameters.retain(|(other, _)| *other != name);
        self.parameters.push((name, value.into()));
        self
    }

    /// The first page, and where the next one would begin.
    pub async fn page(self) -> Result<ListAnswer, ClientError> {
        Ok(self.read(&Place::Beginning).await?.0)
    }

    /// All keys, as they were at one revision; an error if that cannot be had to the end.
    pub async fn collect(self) -> Result<Vec<KeyValue>, ClientError> {
        self.stream().try_collect().await
    }

    /// All keys, page by page, as they were at one revision.
    ///
    /// All pages come from the node that served the first one, which keeps that
    /// state for a minute after each page. If it is gone, or too much time went
    /// by, an error is the last item: another state is never put in its place.
    pub fn stream(self) -> BoxStream<'a, Result<KeyValue, ClientError>> {
        let pages = stream::try_unfold((self, Place::Beginning), |(list, place)| async move {
            if matches!(place, Place::End) {
                return Ok(None);
            }
            let (ListAnswer { revision, items, next }, addr) = list.read(&place).await?;
            let place = next.map_or(Place::End, |key| Place::After { addr, revision, key });
            Ok(Some((stream::iter(items.into_iter().map(Ok)), (list, place))))
        });
        pages.try_flatten().boxed()
    }

    async fn read(&self, place: &Place) -> Result<(ListAnswer, String), ClientError> {
        let mut parameters = self.parameters.clone();
        let mut pinned = None;
        if let Place::After { addr, revision, key } = place {
            parameters.extend([("revision", revision.to_string()), ("start_after", key.clone())]);
            pinned = Some(addr.as_str());
        }
        let target = target_of("/v1/kv", &parameters)?;
        let request = Request::new(Method::GET, target, Effect::ReadsOnly, self.client.deadline);
        let (page, answer) = self.client.ask(pinned, &request).await?;
        Ok((page, answer.addr))
    }
}
