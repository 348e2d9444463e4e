//! Which thread of a node does what.

use std::collections::BTreeMap;
use std::fs;

use futures_util::future::join_all;

use crate::harness::{ALL, TestCluster, plain_client};

/// As many threads as configured serve clients, each of them some connections, and Raft runs on a thread of its own.
///
/// Method: start nodes with three client threads, counted by their names in `/proc`. Sixty clients with an open
/// connection each put keys on all nodes, and then read each other's keys at once. The processor time of each thread
/// shows that all of them took part.
#[tokio::test]
async fn several_threads_serve_clients() {
    const CLIENTS: usize = 60;
    let cluster = TestCluster::form("threads", &ALL, &["--http-threads", "3"]).await;
    let clients: Vec<reqwest::Client> = (0..CLIENTS).map(|_| plain_client().build().unwrap()).collect();
    let url = |client: usize, key: usize| {
        let addr = cluster.addr(ALL[client % ALL.len()]);
        format!("http://{addr}/v1/kv/key-{key}")
    };
    for round in 0..20 {
        let puts = clients.iter().enumerate().map(|(number, client)| {
            let put = client.put(url(number, number)).body(format!("{number}-{round}"));
            async { put.send().await.unwrap().status() }
        });
        assert!(join_all(puts).await.into_iter().all(|status| status == 200), "round {round}");
        let gets = clients.iter().enumerate().map(|(number, client)| {
            let wanted = (number + 1) % CLIENTS;
            let get = client.get(url(number, wanted) + "?raw");
            async move { (wanted, get.send().await.unwrap().text().await.unwrap()) }
        });
        for (wanted, value) in join_all(gets).await {
            assert_eq!(value, format!("{wanted}-{round}"), "key-{wanted} in round {round}");
        }
    }
    for id in ALL {
        let times = times_of_threads(cluster.node(id).pid());
        let clients = times.get("actix-server wo").unwrap_or_else(|| panic!("node {id}: {times:?}"));
        assert_eq!(clients.len(), 3, "node {id}: {times:?}");
        let sum: u64 = clients.iter().sum();
        assert!(clients.iter().all(|time| *time > sum / 20), "node {id}: {times:?}");
        assert_eq!(times.get("raft").map(Vec::len), Some(1), "node {id}: {times:?}");
    }
}

/// The processor time of each thread of a process in nanoseconds, by thread name.
fn times_of_threads(pid: u32) -> BTreeMap<String, Vec<u64>> {
    let mut times: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = thread.unwrap().path();
        let name = fs::read_to_string(thread.join("comm")).unwrap();
        let time = fs::read_to_string(thread.join("schedstat")).unwrap();
        let time = time.split(' ').next().unwrap().parse().unwrap();
        times.entry(name.trim_end().to_owned()).or_default().push(time);
    }
    times
}
