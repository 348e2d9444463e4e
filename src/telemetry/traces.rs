//! Traces of requests, which go to an OpenTelemetry collector by OTLP.
//!
//! A request has a span on each node that it passes. Whether it is recorded is decided once, by the client or by the
//! first node, and passed on in the header `traceparent` of [W3C Trace Context](https://www.w3.org/TR/trace-context/).
//!
//! Spans end in a queue of [`SPANS_QUEUED_MAX`]. A thread of its own sends them; while the queue is full, spans are
//! dropped. A collector that is slow or away holds up no request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{io, thread};

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanContext, SpanKind, Status, TraceFlags, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanLimits,
};

use super::operations::OPERATIONS;
use crate::config::{
    Config, SPAN_ATTRIBUTES_MAX, SPANS_EXPORT_DEADLINE, SPANS_FLUSH_DEADLINE, SPANS_PER_EXPORT_MAX, SPANS_QUEUED_MAX,
};

/// The traces of a node. Without it, a node makes no spans.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Starts the thread that sends spans, if `--otlp-endpoint` is set.
    ///
    /// # Errors
    ///
    /// If the system refuses a thread.
    pub fn start(config: &Config) -> io::Result<Option<Self>> {
        let Some(endpoint) = config.otlp_endpoint.clone() else { return Ok(None) };
        // The exporter's client has a runtime of its own, which must not be made within another.
        let exporter = thread::Builder::new().name("traces".into()).spawn(move || exporter_to(endpoint))?;
        let exporter = exporter.join().map_err(|_| io::Error::other("making the trace exporter panicked"))??;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(SPANS_QUEUED_MAX)
            .with_max_export_batch_size(SPANS_PER_EXPORT_MAX)
            .build();
        let resource = Resource::builder_empty().with_service_name("raft-key-value").with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", config.id.to_string()),
        ]);
        let limits = SpanLimits { max_attributes_per_span: SPAN_ATTRIBUTES_MAX, ..SpanLimits::default() };
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::new(exporter, batches))
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.otlp_sample_ratio))))
            .with_span_limits(limits)
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("raft-key-value");
        Ok(Some(Traces { provider, tracer }))
    }

    /// Begins the span of a request. `parent` is the value of the header `traceparent`, if the request has one.
    pub fn begin(&self, operation: usize, parent: Option<&str>) -> RequestSpan {
        let (method, route) = OPERATIONS[operation];
        let span = self.tracer.span_builder(format!("{method} {route}")).with_kind(SpanKind::Server);
        RequestSpan(span.start_with_context(&self.tracer, &context_of(parent)))
    }

    /// Sends the spans that are left, for a bounded time.
    pub fn stop(&self) {
        // What cannot be sent is lost, as it is while the node runs.
        let _ = self.provider.shutdown_with_timeout(SPANS_FLUSH_DEADLINE);
    }
}

fn context_of(parent: Option<&str>) -> Context {
    let Some(parent) = parent else { return Context::new() };
    // Without `tracestate`: it may be long, and spans wait in memory.
    let headers = HashMap::from([("traceparent".to_owned(), parent.to_owned())]);
    TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
}

/// The span of a request.
#[derive(Debug)]
pub struct RequestSpan(opentelemetry_sdk::trace::Span);

impl RequestSpan {
    /// The header `traceparent` for a request that this one causes.
    pub fn traceparent(&self) -> String {
        let context: &SpanContext = self.0.span_context();
        let flags = context.trace_flags() & TraceFlags::SAMPLED;
        format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), flags.to_u8())
    }

    /// Whether anything that is set will be sent.
    pub fn is_recorded(&self) -> bool {
        self.0.is_recording()
    }

    /// Sets an attribute to a text.
    pub fn set_text(&mut self, name: &'static str, value: impl Into<String>) {
        self.0.set_attribute(KeyValue::new(name, value.into()));
    }

    /// Sets an attribute to a number.
    pub fn set_number(&mut self, name: &'static str, value: i64) {
        self.0.set_attribute(KeyValue::new(name, value));
    }

    /// Marks it as failed.
    pub fn set_failed(&mut self, why: &'static str) {
        self.0.set_status(Status::error(why));
    }

    /// Ends it now.
    pub fn end(mut self) {
        self.0.end();
    }
}

fn exporter_to(endpoint: String) -> io::Result<Exporter> {
    let http = reqwest::blocking::Client::builder()
        .tls_backend_preconfigured(crate::tls::no_tls())
        .no_proxy() // As for nodes.
        .redirect(reqwest::redirect::Policy::none())
        .timeout(SPANS_EXPORT_DEADLINE)
        .build()
        .map_err(io::Error::other)?;
    let sender = SpanExporter::builder()
        .with_http()
        .with_http_client(http)
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(SPANS_EXPORT_DEADLINE)
        .with_endpoint(endpoint.clone())
        .build()
        .map_err(io::Error::other)?;
    Ok(Exporter { sender, endpoint, is_failing: AtomicBool::default() })
}

/// Sends spans, and logs when that begins to fail, and when it works again.
#[derive(Debug)]
struct Exporter {
    sender: SpanExporter,
    endpoint: String,
    is_failing: AtomicBool,
}

impl opentelemetry_sdk::trace::SpanExporter for Exporter {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.sender.export(spans).await;
        match (&sent, self.is_failing.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                tracing::warn!("traces cannot be sent to {}, and are dropped: {}", self.endpoint, reason(error));
            }
            (Ok(()), true) => tracing::info!("traces are sent to {} again", self.endpoint),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.sender.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.sender.set_resource(resource);
    }
}

fn reason(error: &OTelSdkError) -> String {
    match error {
        OTelSdkError::InternalFailure(why) => why.clone(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TraceContextExt;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// A valid parent is taken, and an invalid one is ignored.
    #[test]
    fn parents() {
        let trace = |parent| context_of(Some(parent)).span().span_context().trace_id().to_string();
        assert_eq!(trace(PARENT), "4bf92f3577b34da6a3ce929d0e0e4736");
        for wrong in ["", "00", "00-0-0-01", "zz-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", &PARENT[..50]] {
            assert_eq!(trace(wrong), "0".repeat(32), "{wrong}");
        }
    }
}
