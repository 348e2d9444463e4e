//! A node inside a program: `serve` with a listener, a configuration and a shutdown signal.

#![allow(clippy::unwrap_used)] // Test helpers fail by panicking.

use std::net::TcpListener;
use std::time::Duration;

use raft_key_value::config::Config;
use raft_key_value::error::{ApiError, Outcome};
use raft_key_value::{ClientError, ExampleClient, ExampleRequest, ServeError, serve};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Node {
    client: ExampleClient,
    shutdown: oneshot::Sender<()>,
    served: JoinHandle<Result<(), ServeError>>,
}

/// Starts node 1 on a port that the system chooses.
fn start(data_dir: &std::path::Path) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let config = Config { data_dir: data_dir.to_owned(), ..Config::new(1, addr.clone()) };
    let (shutdown, stop) = oneshot::channel();
    let served = tokio::spawn(serve(listener, config, async { drop(stop.await) }));
    Node { client: ExampleClient::new(1, addr), shutdown, served }
}

impl Node {
    async fn stop(self) {
        self.shutdown.send(()).unwrap();
        let stopped = tokio::time::timeout(Duration::from_secs(20), self.served).await;
        stopped.expect("the node did not stop").unwrap().unwrap();
    }
}

/// Repeats a probe until it succeeds: a node that was just started does not listen immediately.
async fn eventually<T, E: std::fmt::Debug>(what: &str, mut probe: impl AsyncFnMut() -> Result<T, E>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(error) if tokio::time::Instant::now() > deadline => panic!("{what}: {error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A node in a program accepts writes, stops on the shutdown signal, and still has the writes after a restart.
///
/// Method: serve, initialize, write and stop. Serve the same directory again and read, linearizably and then locally.
#[tokio::test]
async fn serves_stops_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path());
    eventually("init", async || node.client.init().await).await;
    let request = ExampleRequest::Set { key: "foo".into(), value: "bar".into() };
    let response = node.client.write(&request).await.unwrap();
    assert_eq!(response.data.value.as_deref(), Some("bar"));
    node.stop().await;

    let node = start(directory.path());
    let key = "foo".to_owned();
    assert_eq!(eventually("read", async || node.client.consistent_read(&key).await).await, "bar");
    assert_eq!(eventually("local read", async || node.client.read(&key).await).await, "bar");
    node.stop().await;
}

/// A second node on the same directory is rejected, and the first one keeps running.
#[tokio::test]
async fn a_directory_has_one_node() {
    let directory = tempfile::tempdir().unwrap();
    let first = start(directory.path());
    eventually("init", async || first.client.init().await).await;
    let second = start(directory.path());
    let error = second.served.await.unwrap().unwrap_err();
    assert_eq!(error.exit_code(), 73, "{error}");
    first.client.metrics().await.unwrap();
    first.stop().await;
}

/// The client distinguishes a request that was not applied from one whose outcome is unknown.
///
/// Method: write to a listener that never responds, and to a port without a listener.
#[tokio::test]
async fn the_client_knows_what_it_does_not_know() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap().to_string();
    let request = ExampleRequest::Set { key: "foo".into(), value: "bar".into() };

    let client = ExampleClient::new(1, addr.clone()).with_deadline(Duration::from_millis(200));
    let error = client.write(&request).await.unwrap_err();
    assert!(matches!(error, ClientError::AnswerLost { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::Unknown);
    let error = client.consistent_read(&"foo".to_owned()).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotApplied);

    drop(silent);
    let error = ExampleClient::new(1, addr).write(&request).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
}

/// The errors of a node that belongs to no cluster name `/init`.
#[tokio::test]
async fn a_lone_node_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path());
    let request = ExampleRequest::Set { key: "foo".into(), value: "bar".into() };
    let error = eventually("an answer", async || match node.client.write(&request).await {
        Err(ClientError::Api { error, .. }) => Ok(error),
        other => Err(format!("{other:?}")),
    });
    let error = error.await;
    assert!(matches!(&error, ApiError::NoLeader(retry) if retry.message.contains("/init")), "{error:?}");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    node.stop().await;
}

/// Programs written for the openraft example compile: its names exist at the same paths and have the same meaning.
///
/// Method: use the imports and calls of the example's own test, with its client on a node of this test.
#[tokio::test]
async fn the_originals_names_are_there() {
    use std::collections::BTreeSet;

    use raft_key_value::app::ExampleApp;
    use raft_key_value::client::ExampleClient;
    use raft_key_value::network::raft_network_impl::ExampleNetwork;
    use raft_key_value::store::{ExampleRequest, ExampleResponse, ExampleStateMachine, ExampleStore};
    use raft_key_value::{ExampleNodeId, ExampleRaft, ExampleTypeConfig, start_example_raft_node};

    fn is_raft_config<C: openraft::RaftTypeConfig<NodeId = ExampleNodeId, R = ExampleResponse>>() {}
    fn raft_of(app: &ExampleApp) -> &ExampleRaft {
        &app.raft
    }
    is_raft_config::<ExampleTypeConfig>();
    // Do not run it: it would write its data to the working directory of the test.
    let _ = |id: ExampleNodeId, addr: String| start_example_raft_node(id, addr);
    let _ = raft_of;
    let _ = size_of::<(ExampleNetwork, ExampleStateMachine, ExampleStore)>();

    let directory = tempfile::tempdir().unwrap();
    let node = start(directory.path());
    let (id, addr): (Option<ExampleNodeId>, String) = node.client.leader();
    let client = ExampleClient::new(id.unwrap(), addr.clone());
    eventually("init", async || client.init().await).await;
    let x = client.metrics().await.unwrap();
    assert_eq!(x.membership_config.nodes().map(|(id, node)| (*id, node.addr.clone())).collect::<Vec<_>>(), [(1, addr)]);
    let _x = client.change_membership(&BTreeSet::from([1])).await.unwrap();
    let written =
        client.write(&ExampleRequest::Set { key: "foo".to_string(), value: "bar".to_string() }).await.unwrap();
    let data: ExampleResponse = written.data;
    assert_eq!(data.value, Some("bar".to_string()));
    let x = client.read(&("foo".to_string())).await.unwrap();
    assert_eq!("bar", x);
    let x = client.consistent_read(&("foo".to_string())).await.unwrap();
    assert_eq!("bar", x);
    node.stop().await;
}
