//! `GET /v1/metrics`, and `GET /metrics` for Prometheus: what the node measures, as text.
//!
//! The text is made at most once a second, on the blocking pool, from numbers that the node publishes anyway: a scrape
//! waits for other threads only at the short locks of the log and the state machine. All scrapes of a second share the
//! text. The memory that their responses hold is bounded, apart from that of other responses.
//!
//! No label has a value that a client can choose.

mod collect;

use std::time::Instant;

use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

use self::collect::NodeCollector;
use super::access::{Caller, ToMeasure};
use super::openapi::answers::MetricsErrors;
use super::parameters::Parameters;
use super::rejections::task_ended;
use super::request_body::reject_body;
use super::v1;
use crate::app::ExampleApp;
use crate::config::METRICS_KEPT;
use crate::error::ApiError;

/// A format of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Format::Prometheus => prometheus_text::CONTENT_TYPE,
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        })
    }

    /// The format that the header `Accept` prefers to JSON, if it does. A client that does not name one gets JSON.
    pub fn preferred(headers: &HeaderMap) -> Option<Self> {
        let mut best: (f32, Option<Self>) = (0.0, None);
        let ranges = headers.get_all(header::ACCEPT).filter_map(|value| value.to_str().ok());
        for range in ranges.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let format = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "application/json" => None,
                "application/openmetrics-text" => Some(Format::OpenMetrics),
                "text/plain" => Some(Format::Prometheus),
                _ => continue,
            };
            let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let quality = quality.map_or(1.0, |quality| quality.trim().parse().unwrap_or(0.0));
            // Of equal ones, JSON comes first: some clients accept both without a preference.
            if quality > best.0 || (quality == best.0 && quality > 0.0 && format.is_none()) {
                best = (quality, format);
            }
        }
        best.1
    }
}

/// The text that was made last, in each format.
#[derive(Debug, Default)]
pub struct MetricsText {
    prometheus: tokio::sync::Mutex<Option<(Instant, Bytes)>>,
    open_metrics: tokio::sync::Mutex<Option<(Instant, Bytes)>>,
}

impl MetricsText {
    /// The text, at most [`METRICS_KEPT`] old.
    async fn get(&self, app: &web::Data<ExampleApp>, format: Format) -> Result<Bytes, ApiError> {
        let kept = match format {
            Format::Prometheus => &self.prometheus,
            Format::OpenMetrics => &self.open_metrics,
        };
        // One scrape makes the text, and the others wait for it.
        let mut kept = kept.lock().await;
        if let Some((_, text)) = kept.as_ref().filter(|(at, _)| at.elapsed() < METRICS_KEPT) {
            return Ok(text.clone());
        }
        let app = app.clone();
        let made = tokio::task::spawn_blocking(move || render(app, format)).await;
        let text = made.map_err(|error| task_ended(&error))?;
        *kept = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}

fn render(app: web::Data<ExampleApp>, format: Format) -> Bytes {
    let mut registry = Registry::with_prefix("rkv");
    registry.register_collector(Box::new(NodeCollector(app)));
    let mut text = String::new();
    let written = match format {
        Format::Prometheus => prometheus_text::encode(&mut text, &registry),
        Format::OpenMetrics => text::encode(&mut text, &registry),
    };
    if let Err(error) = written {
        tracing::error!("cannot encode the metrics: {error}");
    }
    text.into()
}

/// The response with the metrics as text.
pub async fn in_format(app: &web::Data<ExampleApp>, format: Format) -> Result<HttpResponse, ApiError> {
    let text = app.metrics_text.get(app, format).await?;
    let memory = app.client_memory.for_metrics(text.len()).await?;
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CONTENT_TYPE, format.content_type()));
    response.insert_header((header::CACHE_CONTROL, HeaderValue::from_static("no-store")));
    Ok(memory.until_written(response.body(text)))
}

/// Returns what this node measures of itself, for Prometheus.
///
/// The text format 0.0.4: counters, gauges and histograms of requests, Raft, the log, snapshots, the store and the
/// process. Values are at most a second old.
#[utoipa::path(
    get,
    path = "/v1/metrics",
    operation_id = "get_prometheus_metrics",
    tag = "The cluster",
    responses(
        (
            status = 200,
            description = "The metrics.",
            body = String,
            content_type = "text/plain; version=0.0.4; charset=utf-8",
            example = json!("# HELP rkv_raft_term Term that the node is in.\n# TYPE rkv_raft_term gauge\n\
                rkv_raft_term 1\n"),
        ),
        MetricsErrors,
    ),
)]
pub async fn metrics(app: Caller<ToMeasure>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let text = async {
        reject_body(&app, &request, payload).await?;
        Parameters::of(&request, &[])?;
        in_format(&app, Format::Prometheus).await
    };
    v1::answer(&app, text.await)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prometheus gets the format that it prefers, and everything else gets JSON.
    #[test]
    fn accept() {
        use Format::{OpenMetrics, Prometheus};
        for (accept, format) in [
            ("", None),
            ("*/*", None),
            ("application/json", None),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", None),
            ("application/json, text/plain, */*", None),
            ("text/plain;q=0, */*", None),
            ("text/plain; q=none", None),
            ("text/*", None),
            ("text/plain", Some(Prometheus)),
            ("TEXT/PLAIN; version=0.0.4; charset=utf-8", Some(Prometheus)),
            ("application/json;q=0.5,text/plain", Some(Prometheus)),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Some(OpenMetrics),
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
                 application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                 text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                Some(OpenMetrics),
            ),
        ] {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
            }
            assert_eq!(Format::preferred(&headers), format, "{accept}");
        }
    }
}
