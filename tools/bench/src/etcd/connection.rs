//! A client's gRPC connection, which several clients may share.

use std::future::Future;
use std::net::SocketAddr;
use std::task::{self, Poll};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use harness::http::connect_socket;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

use super::messages::{PutRequest, PutResponse, RangeRequest, RangeResponse, StatusRequest, StatusResponse};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Number of connections at which etcd is fastest.
///
/// Measured with etcd 3.5.1 on two cores, medians of several runs of each number in random order (`compare
/// --only etcd --etcd-connections 1,2,4,8,16,64`). At 64 and 256 clients, the results of 1, 2 and 4
/// connections are within each other's spread for writes and linearizable reads (8,000 and 11,500 writes/s,
/// 22,000 and 33,000 reads/s). With 8 and 16, CPU time per operation rises by 5 to 15 %, and with one
/// connection per client throughput falls by a third. A single connection sometimes stalled for most of a
/// second, so the bench uses two.
pub fn connections_for(clients: usize) -> usize {
    clients.min(2)
}

/// Hands tonic's requests directly to hyper, like the raft-key-value client. Tonic's own channel adds a queue
/// and a task, whose CPU time etcd could have used.
#[derive(Clone)]
struct Http2Requests(http2::SendRequest<tonic::body::Body>);

impl tower_service::Service<Request<tonic::body::Body>> for Http2Requests {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A clone shares the connection.
#[derive(Clone)]
pub struct GrpcConnection {
    grpc: Grpc<Http2Requests>,
    requests: http2::SendRequest<tonic::body::Body>,
}

impl GrpcConnection {
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let connecting = async {
            let stream = connect_socket(address, None, None).await?;
            let (requests, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            // An error of the connection also fails the requests that wait for it.
            tokio::spawn(connection);
            anyhow::Ok(requests)
        };
        let requests = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| anyhow!("timed out"))
            .flatten()
            .with_context(|| format!("cannot connect to {address}"))?;
        let origin: Uri = format!("http://{address}").parse()?;
        Ok(Self { grpc: Grpc::with_origin(Http2Requests(requests.clone()), origin), requests })
    }

    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    pub async fn put(&mut self, key: Bytes, value: Bytes) -> Result<()> {
        let request = PutRequest { key, value };
        self.unary::<_, PutResponse>("/etcdserverpb.KV/Put", request).await?;
        Ok(())
    }

    /// A linearizable read of one key; empty if the key does not exist.
    pub async fn range(&mut self, key: Bytes) -> Result<Bytes> {
        let request = RangeRequest { key };
        let mut response: RangeResponse = self.unary("/etcdserverpb.KV/Range", request).await?;
        Ok(response.key_values.pop().map_or_else(Bytes::new, |found| found.value))
    }

    pub async fn status(&mut self) -> Result<StatusResponse> {
        self.unary("/etcdserverpb.Maintenance/Status", StatusRequest {}).await
    }

    async fn unary<Req, Res>(&mut self, path: &'static str, request: Req) -> Result<Res>
    where
        Req: Message + 'static,
        Res: Message + Default + 'static,
    {
        self.grpc.ready().await?;
        let response = self
            .grpc
            .unary(tonic::Request::new(request), PathAndQuery::from_static(path), ProstCodec::<Req, Res>::default())
            .await
            .map_err(|status| anyhow!("{:?}: {}", status.code(), status.message()))?;
        Ok(response.into_inner())
    }
}
