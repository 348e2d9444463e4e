//! Transactions: comparisons, all or nothing, at one revision.

use std::cmp::Ordering;

use serde_json::{Value, json};

use crate::harness::{ALL, CALM, TestCluster};

/// Whether a relation holds for two operands in this order.
type Holds = fn(Ordering) -> bool;

/// Each comparison holds exactly when it should.
///
/// Method: for an existing and a missing key, compare each field with operands below, equal to and above it, by every
/// relation. The branch that is applied must match the arithmetic. Values are compared by their bytes.
#[tokio::test]
async fn every_comparison_holds_when_it_should() {
    let cluster = TestCluster::form("txn-compare", &[1], CALM).await;
    cluster.put(1, "/v1/kv/other", "v").await;
    for value in ["l", "m"] {
        cluster.put(1, "/v1/kv/k", value).await;
    }
    // The existing key was created at revision 2 and changed at 3, so its version is 2. A missing key has 0 in each
    // field.
    let relations: [(&str, Holds); 6] = [
        ("=", Ordering::is_eq),
        ("!=", Ordering::is_ne),
        ("<", Ordering::is_lt),
        ("<=", Ordering::is_le),
        (">", Ordering::is_gt),
        (">=", Ordering::is_ge),
    ];
    let mut rows: Vec<(Value, bool)> = Vec::new();
    for (op, holds) in relations {
        for (key, own) in [("k", [2, 3, 2]), ("missing", [0, 0, 0])] {
            for (name, own) in ["create_revision", "revision", "version"].into_iter().zip(own) {
                for operand in [0, 1, 2, 3, 4, u64::MAX] {
                    rows.push((json!({"key": key, "op": op, name: operand}), holds(own.cmp(&operand))));
                }
            }
        }
        for operand in ["", "l", "m", "n", "mm", "ü"] {
            rows.push((json!({"key": "k", "op": op, "value": operand}), holds("m".cmp(operand))));
            // A missing value is smaller than any value.
            rows.push((json!({"key": "missing", "op": op, "value": operand}), holds(None.cmp(&Some(operand)))));
        }
        let base64 = json!({"key": "k", "op": op, "value": "/w==", "encoding": "base64"});
        rows.push((base64, holds(b"m".as_slice().cmp(&[0xff]))));
        if op == "=" || op == "!=" {
            for (key, there) in [("k", true), ("missing", false)] {
                for operand in [true, false] {
                    rows.push((json!({"key": key, "op": op, "exists": operand}), holds(there.cmp(&operand))));
                }
            }
        }
    }
    rows.push((json!({"key": "k", "version": 2}), true)); // The default is `=`.
    rows.push((json!({"key": "k", "version": 1}), false));
    let get = json!([{"get": {"key": "k"}}]);
    for (number, (compare, holds)) in rows.iter().enumerate() {
        let mut lists = vec![(vec![compare.clone()], *holds)];
        if number % 8 == 0 {
            // One comparison that does not hold makes the whole list fail, wherever it stands.
            let mut both = vec![compare.clone()];
            both.insert(number / 8 % 2, json!({"key": "missing", "exists": true}));
            lists.push((both, false));
        }
        for (all, expected) in lists {
            let answer = cluster.txn(1, &json!({"compare": all, "success": get})).await.done();
            assert_eq!(answer["succeeded"], expected, "{all:?}");
            let results = answer["results"].as_array().unwrap().len();
            assert_eq!(results, usize::from(expected), "the other branch must be empty");
            assert_eq!(answer["revision"], 3, "reading must change nothing");
        }
    }
    eprintln!("{} comparisons", rows.len());
}

/// All changes of a transaction have one revision, and each operation sees those before it.
///
/// Method: through each node, run both branches with every operation. Compare the whole response, and then read the
/// keys on another node.
#[tokio::test]
async fn a_transaction_has_one_revision() {
    let cluster = TestCluster::form("txn-revision", &ALL, CALM).await;
    for id in ALL {
        cluster.delete_all(1).await;
        let before = cluster.put(id, "/v1/kv/old", "1").await.revision();
        let body = json!({
            "compare": [{"key": "old", "value": "1"}, {"key": "new", "exists": false}],
            "success": [
                {"get": {"key": "new"}},
                {"put": {"key": "new", "value": "/w==", "encoding": "base64"}},
                {"get": {"key": "new"}},
                {"put": {"key": "timed", "value": "2", "ttl": "1h"}},
                {"get": {"key": "timed"}},
                {"delete": {"key": "missing"}},
                {"touch": {"key": "missing too", "ttl": "1h"}},
                {"get": {"key": "old"}},
                {"delete": {"key": "old"}},
                {"get": {"key": "old"}},
            ],
            "failure": [{"touch": {"key": "timed"}}, {"put": {"key": "failed", "value": ""}}, {"get": {"key": "timed"}}],
        });
        let revision = before + 1;
        let made = |key: &str, value: &str| json!({"key": key, "value": value, "revision": revision, "create_revision": revision, "version": 1});
        let mut new = made("new", "/w==");
        new["encoding"] = json!("base64");
        let mut timed = made("timed", "2");
        timed["expires_in_ms"] = json!(3_600_000);
        let old = json!({"key": "old", "value": "1", "revision": before, "create_revision": before, "version": 1});
        let put = json!({"put": {"revision": revision, "version": 1}});
        let answer = cluster.txn(id, &body).await;
        assert_eq!(answer.revision(), revision);
        assert_eq!(
            answer.done(),
            json!({"succeeded": true, "revision": revision, "results": [
                {"get": null}, put, {"get": new}, put, {"get": timed}, {"delete": {"deleted": 0}}, {"touch": null},
                {"get": old}, {"delete": {"deleted": 1}}, {"get": null},
            ]})
        );
        let other = 1 + id % 3;
        let listed = cluster.get(other, "/v1/kv?keys_only").await.done();
        let keys: Vec<_> = listed["items"].as_array().unwrap().iter().map(|item| item["key"].as_str()).collect();
        assert_eq!((&listed["revision"], keys), (&json!(revision), vec![Some("new"), Some("timed")]));

        let answer = cluster.txn(other, &body).await.done();
        let (revision, touched) = (revision + 1, json!({"touch": {"revision": revision, "version": 1}}));
        timed.as_object_mut().unwrap().remove("expires_in_ms");
        let put = json!({"put": {"revision": revision, "version": 1}});
        let results = json!([touched, put, {"get": timed}]);
        assert_eq!(answer, json!({"succeeded": false, "revision": revision, "results": results}));
    }
}

/// Transactions that compare and then set lose no update, on whichever node they run.
///
/// Method: tasks on all nodes increment one counter and their own, comparing the revision they have read. The common
/// counter must equal the sum of the others at the end, and at every moment in between.
#[tokio::test]
async fn concurrent_transactions_lose_no_update() {
    const TASKS: usize = 6;
    const ADDITIONS: u64 = 10;
    let cluster = TestCluster::form("txn-counter", &ALL, CALM).await;
    let number = |found: &Value| found["get"]["value"].as_str().map_or(0, |text| text.parse::<u64>().unwrap());
    let add = async |task: usize| {
        let id = ALL[task % ALL.len()];
        let own = format!("own-{task}");
        let mut done = 0;
        while done < ADDITIONS {
            let read = json!({"success": [{"get": {"key": "sum"}}, {"get": {"key": own}}]});
            let read = cluster.txn(id, &read).await.done()["results"].take();
            let revision = read[0]["get"]["revision"].as_u64().unwrap_or(0);
            let (sum, mine) = (number(&read[0]) + 1, number(&read[1]) + 1);
            let body = json!({
                "compare": [{"key": "sum", "revision": revision}],
                "success": [{"put": {"key": "sum", "value": sum.to_string()}}, {"put": {"key": own, "value": mine.to_string()}}],
            });
            done += u64::from(cluster.txn(id, &body).await.done()["succeeded"] == true);
        }
    };
    let watch = async || loop {
        let items = cluster.list_all(1, "").await;
        let value = |item: &Value| item["value"].as_str().unwrap().parse::<u64>().unwrap();
        let (sums, own): (Vec<&Value>, Vec<&Value>) = items.iter().partition(|item| item["key"] == "sum");
        let sum = sums.first().map_or(0, |item| value(item));
        assert_eq!(sum, own.iter().map(|item| value(item)).sum::<u64>(), "{items:?}");
        if sum == TASKS as u64 * ADDITIONS {
            break;
        }
    };
    tokio::join!(futures_util::future::join_all((0..TASKS).map(add)), watch());
}

/// The largest transactions allowed are applied, and one whose response would be too large is rejected as a whole.
///
/// Method: send 128 comparisons and 128 puts or deletes in each branch, all at one revision. Then put five keys of 1
/// MiB, which may not be read at once, and read them in a transaction that would also write.
#[tokio::test]
async fn the_largest_transactions() {
    let cluster = TestCluster::form("txn-largest", &ALL, CALM).await;
    let follower = 1 + cluster.leader_of(&ALL).await % 3;
    let compare: Vec<_> = (0..128).map(|number| json!({"key": format!("k{number}"), "exists": false})).collect();
    let puts: Vec<_> = (0..128).map(|number| json!({"put": {"key": format!("k{number}"), "value": "v"}})).collect();
    let deletes: Vec<_> = (0..128).map(|number| json!({"delete": {"key": format!("k{number}")}})).collect();
    let body = json!({"compare": compare, "success": puts, "failure": deletes});
    let first = cluster.txn(follower, &body).await.done();
    assert_eq!((&first["succeeded"], first["results"].as_array().unwrap().len()), (&json!(true), 128));
    let items = cluster.list_all(follower, "").await;
    assert_eq!(items.len(), 128);
    assert!(items.iter().all(|item| item["revision"] == first["revision"] && item["version"] == 1), "{items:?}");
    let second = cluster.txn(follower, &body).await.done();
    assert_eq!((&second["succeeded"], &second["revision"]), (&json!(false), &json!(2)));
    assert!(cluster.list_all(1, "").await.is_empty());

    for number in 0..5 {
        cluster.put(follower, &format!("/v1/kv/large-{number}"), "v".repeat(1 << 20)).await.done();
    }
    let mut operations: Vec<_> = (0..5).map(|number| json!({"get": {"key": format!("large-{number}")}})).collect();
    operations.insert(0, json!({"put": {"key": "seen", "value": "v"}}));
    let answer = cluster.txn(follower, &json!({"success": operations})).await;
    assert_eq!(answer.assert_rejected(413, "answer_too_large")["limit"], 4 << 20);
    cluster.get(1, "/v1/kv/seen").await.assert_rejected(404, "key_not_found");
    operations.pop();
    operations.remove(0);
    let answer = cluster.txn(follower, &json!({"success": operations[..3]})).await.done();
    assert_eq!(answer["results"][2]["get"]["value"].as_str().unwrap().len(), 1 << 20);
}
