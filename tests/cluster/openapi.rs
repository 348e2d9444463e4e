//! Does the description of the API, `/openapi.json`, match the server?

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use raft_key_value::network;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use serde_json::Value;

use crate::auth::{ROOT, secured};
use crate::harness::{CALM, TestCluster, plain_client};

/// The document's path in the repository.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
/// If this variable is set, the test writes the file instead of comparing it.
const WRITE_IT: &str = "RKV_WRITE_OPENAPI";

/// An operation of the document.
struct Operation<'a> {
    method: Method,
    path: &'a str,
    described: &'a Value,
}

impl Operation<'_> {
    /// The path and the query with the examples as parameters.
    fn example_path(&self) -> String {
        let mut path = self.path.to_owned();
        let mut query = Vec::new();
        for parameter in self.described["parameters"].as_array().into_iter().flatten() {
            let (name, example) = (parameter["name"].as_str().unwrap(), parameter["example"].as_str());
            match (parameter["in"].as_str(), example) {
                (Some("path"), example) => path = path.replace(&format!("{{{name}}}"), example.unwrap()),
                (Some("query"), Some(example)) => query.push(format!("{name}={example}")),
                (_, example) => assert!(example.is_some() || parameter["required"] != true, "{path}: {name}"),
            }
        }
        if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
    }

    /// The example of the body; empty if the operation takes none.
    fn example_body(&self) -> Vec<u8> {
        let contents = self.described["requestBody"]["content"].as_object();
        match contents.and_then(|contents| contents.iter().next()) {
            None => Vec::new(),
            Some((content_type, body)) if content_type == "application/json" => body["example"].to_string().into(),
            Some((_, body)) => body["example"].as_str().unwrap().into(),
        }
    }

    /// The names of the query parameters.
    fn query_names(&self) -> BTreeSet<&str> {
        let parameters = self.described["parameters"].as_array().into_iter().flatten();
        let in_query = parameters.filter(|parameter| parameter["in"] == "query");
        in_query.map(|parameter| parameter["name"].as_str().unwrap()).collect()
    }
}

fn operations(document: &Value) -> Vec<Operation<'_>> {
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, described)| Operation {
            method: Method::from_bytes(method.to_uppercase().as_bytes()).unwrap(),
            path,
            described,
        })
    });
    operations.collect()
}

async fn document_of(cluster: &TestCluster) -> Value {
    let answer = cluster.http().get(cluster.addr(1), "/openapi.json").await.unwrap();
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    answer.json()
}

/// The document in the repository is the one that a node serves.
///
/// Method: compare the bytes.
#[tokio::test]
async fn openapi_document_in_the_repository_is_the_one_served() {
    let cluster = TestCluster::start("openapi-file", &[1], CALM).await;
    let served = cluster.http().get(cluster.addr(1), "/openapi.json").await.unwrap();
    if std::env::var_os(WRITE_IT).is_some() {
        fs::write(FILE, &served.body).unwrap();
    }
    let kept = if Path::new(FILE).exists() { fs::read_to_string(FILE).unwrap() } else { String::new() };
    assert!(
        kept == served.text(),
        "docs/openapi.json is not what a node serves; update it with: {WRITE_IT}=1 cargo test --test cluster openapi"
    );
}

/// The document has exactly the routes of the route table that are public.
///
/// Method: compare both lists of methods and paths.
#[tokio::test]
async fn openapi_document_has_the_routes_of_the_route_table() {
    let cluster = TestCluster::start("openapi-routes", &[1], CALM).await;
    let document = document_of(&cluster).await;
    let described: BTreeSet<_> = operations(&document)
        .into_iter()
        .map(|operation| (operation.method.to_string().to_lowercase(), operation.path.to_owned()))
        .collect();
    let table: BTreeSet<_> = network::table()
        .iter()
        .flat_map(|entry| entry.operations.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())))
        .collect();
    assert_eq!(described, table);
}

/// Every operation of the document exists, accepts the documented examples, and returns a documented status and type.
///
/// Method: put the key of the examples, and then send each operation its examples. Operations that change the cluster
/// get a body that they reject.
#[tokio::test]
async fn openapi_operations_respond_as_described() {
    // The routes of tokens always need one.
    let mut cluster = secured("openapi-answers", &[1], CALM).await;
    let document = document_of(&cluster).await;
    // Do not wait for bodies, since the response to a watch never ends.
    let token = HeaderMap::from_iter([(AUTHORIZATION, format!("Bearer {ROOT}").parse().unwrap())]);
    let client = plain_client().default_headers(token).build().unwrap();
    let url = |path: &str| format!("http://{}{path}", cluster.addr(1));
    for operation in operations(&document) {
        client.put(url("/v1/kv/config/color")).body("green").send().await.unwrap().error_for_status().unwrap();
        let changes_cluster = ["/init", "/add-learner", "/change-membership", "/v1/cluster/leader"]
            .contains(&operation.path)
            || operation.path.starts_with("/v1/cluster/members");
        let body = if changes_cluster { b"rejected".to_vec() } else { operation.example_body() };
        let path = operation.example_path();
        let answer = client.request(operation.method.clone(), url(&path)).body(body).send().await.unwrap();
        let what = format!("{} {path}", operation.method);
        let status = answer.status().as_u16();
        assert_eq!(status, if changes_cluster { 400 } else { 200 }, "{what}");
        let described = &operation.described["responses"][status.to_string()];
        assert!(described.is_object(), "{what}: {status}");
        let content = if changes_cluster { &Value::Null } else { &described["content"] };
        if let Some(content) = content.as_object() {
            let content_type = answer.headers()["content-type"].to_str().unwrap();
            assert!(content.contains_key(content_type), "{what}: {content_type}");
        }
        for name in described["headers"].as_object().into_iter().flat_map(|headers| headers.keys()) {
            assert!(name == "Raft-Replayed" || answer.headers().contains_key(name), "{what}: {name}");
        }
    }
    cluster.assert_alive();
}

/// The document has exactly the parameters of the key-value API.
///
/// Method: send each operation an unknown parameter; the error lists the known ones.
#[tokio::test]
async fn openapi_document_has_the_parameters_that_the_server_takes() {
    let cluster = secured("openapi-parameters", &[1], CALM).await;
    let document = document_of(&cluster).await;
    let mut compared = 0;
    for operation in operations(&document).iter().filter(|operation| operation.path.starts_with("/v1/")) {
        if operation.method == Method::HEAD {
            continue; // Its errors have no body, and its parameters are those of GET.
        }
        let path = operation.example_path();
        let path = format!("{}?nothing=1", path.split('?').next().unwrap());
        let body = operation.example_body();
        let answer =
            cluster.http().request(operation.method.clone(), cluster.addr(1), &path, &[], body).await.unwrap().json();
        assert_eq!(answer["error"]["code"], "unknown_parameter", "{} {path}: {answer}", operation.method);
        let message = answer["error"]["message"].as_str().unwrap();
        let known = message.rsplit_once("accepts ").unwrap().1;
        let known = if known == "none" { BTreeSet::new() } else { known.split(", ").collect() };
        assert_eq!(operation.query_names(), known, "{} {path}", operation.method);
        compared += 1;
    }
    assert!(compared >= 8, "{compared}");
}

/// The reference for people is one self-contained page of HTML with every operation.
///
/// Method: look for each path and example, for anything that a page could fetch, and for the header that forbids it.
#[tokio::test]
async fn openapi_reference_is_one_page_that_stands_alone() {
    let cluster = TestCluster::start("openapi-page", &[1], CALM).await;
    let document = document_of(&cluster).await;
    let answer = cluster.http().get(cluster.addr(1), "/docs").await.unwrap();
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(answer.header("content-security-policy").contains("default-src 'none'"));
    let page = answer.text();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"), "{page}");
    for operation in operations(&document) {
        let id = operation.described["operationId"].as_str().unwrap();
        assert!(page.contains(&format!(r#"id="{id}""#)), "{id}");
        assert!(page.contains(&format!("<code>{}</code>", operation.path)), "{}", operation.path);
        let mut command = format!("127.0.0.1:21001{}", operation.example_path());
        // A longer body has line breaks on the page.
        let body = String::from_utf8(operation.example_body()).unwrap().replace('"', "&quot;");
        if !body.is_empty() && operation.path != "/v1/txn" {
            command += &format!(" -d '{body}'");
        }
        assert!(page.contains(&command), "{command}");
    }
    for part in ["<script", "<link", "<img", "<iframe", "@import", "url("] {
        assert!(!page.contains(part), "{part}");
    }
    for link in page.split(r#"href=""#).skip(1).map(|rest| rest.split('"').next().unwrap()) {
        match link.strip_prefix('#') {
            Some(id) => assert!(page.contains(&format!(r#"id="{id}""#)), "{link} leads nowhere"),
            None => assert_eq!(link, "/openapi.json"),
        }
    }
}

/// A method that the document does not have for a path is rejected with the list of those that it has.
///
/// Method: try the others on every path, except on that of a touch: to all methods but POST, that is the path of a key
/// with this ending.
#[tokio::test]
async fn openapi_methods_that_are_not_described_are_rejected() {
    let cluster = TestCluster::form("openapi-methods", &[1], CALM).await;
    let document = document_of(&cluster).await;
    let described = operations(&document);
    for operation in described.iter().filter(|operation| !operation.path.ends_with("/touch")) {
        let path = operation.example_path();
        let same_path = described.iter().filter(|other| other.path == operation.path);
        let allowed: BTreeSet<_> = same_path.map(|other| other.method.to_string()).collect();
        for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            if allowed.contains(method.as_str()) {
                continue;
            }
            let answer = cluster.http().request(method.clone(), cluster.addr(1), &path, &[], "").await.unwrap();
            assert_eq!(answer.status, 405, "{method} {path}: {}", answer.text());
            let found: BTreeSet<_> = answer.header("allow").split(", ").map(str::to_owned).collect();
            assert_eq!(found, allowed, "{method} {path}");
        }
    }
}
