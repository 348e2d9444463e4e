//! Listings: many keys, in pages of one state.

use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use reqwest::Method;

use super::ExampleClient;
use super::error::ClientError;
use super::request::{Effect, Request, target_of};
use crate::body::{KeyValue, ListAnswer};

/// A listing. Read it with [`stream`](Self::stream), [`collect`](Self::collect) or [`page`](Self::page).
#[derive(Clone, Debug)]
#[must_use = "nothing is read before `stream`, `collect` or `page` is called"]
pub struct List<'a> {
    client: &'a ExampleClient,
    parameters: Vec<(&'static str, String)>,
}

/// Where the next page begins.
enum Place {
    Beginning,
    /// After this key, on this node, in its state of this revision.
    After {
        addr: String,
        revision: u64,
        key: String,
    },
    End,
}

impl ExampleClient {
    /// Lists the keys with a prefix, in the order of their bytes. An empty prefix lists all keys.
    pub fn list(&self, prefix: impl Into<String>) -> List<'_> {
        List { client: self, parameters: vec![("prefix", prefix.into())] }
    }
}

impl<'a> List<'a> {
    /// Begins at this key.
    pub fn start(self, key: impl Into<String>) -> Self {
        self.with("start", key)
    }

    /// Ends before this key.
    pub fn end(self, key: impl Into<String>) -> Self {
        self.with("end", key)
    }

    /// Lists from the last key to the first.
    pub fn reverse(self) -> Self {
        self.with("reverse", "true")
    }

    /// Omits the values.
    pub fn keys_only(self) -> Self {
        self.with("keys_only", "true")
    }

    /// Sets the most keys in one page, from 1 to `--max-page-keys` of the nodes (1,000 by default).
    pub fn page_size(self, keys: usize) -> Self {
        self.with("limit", keys.to_string())
    }

    /// Reads the state of one node, which may be stale.
    pub fn stale(self) -> Self {
        self.with("consistency", "stale")
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.parameters.retain(|(other, _)| *other != name);
        self.parameters.push((name, value.into()));
        self
    }

    /// Reads the first page.
    pub async fn page(self) -> Result<ListAnswer, ClientError> {
        Ok(self.read(&Place::Beginning).await?.0)
    }

    /// Reads all keys, as they were at one revision.
    ///
    /// # Errors
    ///
    /// Any error of [`stream`](Self::stream).
    pub async fn collect(self) -> Result<Vec<KeyValue>, ClientError> {
        self.stream().try_collect().await
    }

    /// Reads all keys, page by page, as they were at one revision.
    ///
    /// All pages come from the node that served the first one. It keeps that state for up to a minute after each page.
    /// If the state is no longer kept or the node fails, the last item is an error.
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
