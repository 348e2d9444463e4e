//! The routes of a node, and the RPCs between nodes.
//!
//! A handler decodes, calls once, and encodes. [`readiness`] decides whether a node can serve a request, [`forward`]
//! where, and [`consensus`] does it.

pub mod access;
pub mod api;
pub mod browser;
pub mod cluster_hash;
pub mod cluster_header;
pub mod cluster_status;
pub mod conditions;
pub mod consensus;
pub mod forward;
pub mod founding;
pub mod health;
pub mod joining;
pub mod kv;
pub mod lag;
pub mod leader_loss;
pub mod levels;
pub mod list;
pub mod listener;
pub mod long_work;
pub mod management;
pub mod member_routes;
pub mod members;
pub mod memory;
pub mod metrics;
pub mod node_status;
pub mod observer;
pub mod openapi;
pub mod parameters;
pub mod peer;
mod proposals;
pub mod raft;
pub mod raft_network_impl;
pub mod raft_thread;
mod read_index;
pub mod readiness;
pub mod rejections;
pub mod removal;
pub mod reply;
pub mod request_body;
pub mod rpc_check;
pub mod snapshot;
pub mod starting;
pub mod tokens;
pub mod transfer;
pub mod txn;
pub mod v1;
pub mod watch;
pub mod watch_held;
mod worker;

use actix_web::web::{self, ServiceConfig};
use actix_web::{Resource, Scope};

use self::access::{Checked, checked};

/// A path and its handlers.
pub struct Endpoint {
    /// The methods and paths in the document of the API.
    pub operations: Vec<(&'static str, &'static str)>,
    /// The method and path of a route for other nodes.
    pub of_nodes: Option<(&'static str, &'static str)>,
    service: Service,
}

enum Service {
    Resource(Resource),
    Scope(Scope),
}

/// A public path with one method, whose errors have the original's shape.
fn original(method: &'static str, path: &'static str, route: Checked) -> Endpoint {
    let resource = web::resource(path).route(route.0);
    let resource = match method {
        "get" => resource.default_service(web::to(reply::only_get)),
        _ => resource.default_service(web::to(reply::only_post)),
    };
    let operations = if method == "get" { get_and_head(path).to_vec() } else { vec![(method, path)] };
    Endpoint { operations, of_nodes: None, service: Service::Resource(resource) }
}

/// Every `GET` route also accepts `HEAD`: `listener::admission` turns it into `GET`.
const fn get_and_head(path: &'static str) -> [(&'static str, &'static str); 2] {
    [("get", path), ("head", path)]
}

/// A path for other nodes, which is not in the document of the API.
fn node(method: &'static str, path: &'static str, route: Checked) -> Endpoint {
    Endpoint { operations: Vec::new(), of_nodes: Some((method, path)), ..original(method, path, route) }
}

/// The route table.
pub fn table() -> Vec<Endpoint> {
    let key = "/v1/kv/{key}";
    vec![
        // For applications.
        Endpoint {
            operations: vec![
                ("get", "/v1/kv"),
                ("head", "/v1/kv"),
                ("delete", "/v1/kv"),
                ("get", key),
                ("head", key),
                ("put", key),
                ("delete", key),
                ("post", "/v1/kv/{key}/touch"),
            ],
            of_nodes: None,
            service: Service::Scope(
                web::scope("/v1/kv")
                    .service(
                        web::resource("")
                            .route(checked(web::get(), list::list).0)
                            .route(checked(web::delete(), list::delete_prefix).0)
                            .default_service(web::to(reply::only_list_methods)),
                    )
                    // Single keys. A pattern would be a regular expression, which costs a put 4 % of its time.
                    .default_service(checked(web::route(), kv::any).0),
            ),
        },
        Endpoint {
            operations: vec![("post", "/v1/txn")],
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/txn")
                    .route(checked(web::post(), txn::txn).0)
                    .default_service(web::to(reply::only_post)),
            ),
        },
        Endpoint {
            operations: get_and_head("/v1/watch").to_vec(),
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/watch")
                    .route(checked(web::get(), watch::watch).0)
                    .default_service(web::to(reply::only_get)),
            ),
        },
        original("post", "/write", checked(web::post(), api::write)),
        original("post", "/read", checked(web::post(), api::read)),
        original("post", "/consistent_read", checked(web::post(), api::consistent_read)),
        original("get", "/openapi.json", checked(web::get(), openapi::openapi_json)),
        original("get", "/docs", checked(web::get(), openapi::docs)),
        // For operators.
        original("post", "/init", checked(web::post(), management::init)),
        original("post", "/add-learner", checked(web::post(), management::add_learner)),
        original("post", "/change-membership", checked(web::post(), management::change_membership)),
        original("get", "/metrics", checked(web::get(), management::metrics)),
        original("get", "/livez", checked(web::get(), health::livez)),
        original("get", "/readyz", checked(web::get(), health::readyz)),
        original("get", "/health", checked(web::get(), health::health)),
        Endpoint {
            operations: get_and_head("/v1/cluster").to_vec(),
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/cluster")
                    .route(checked(web::get(), cluster_status::cluster_status).0)
                    .default_service(web::to(reply::only_get)),
            ),
        },
        Endpoint {
            operations: get_and_head("/v1/cluster/hash").to_vec(),
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/cluster/hash")
                    .route(checked(web::get(), cluster_hash::cluster_hash).0)
                    .default_service(web::to(reply::only_get)),
            ),
        },
        Endpoint {
            operations: get_and_head("/v1/snapshot").to_vec(),
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/snapshot")
                    .route(checked(web::get(), snapshot::snapshot).0)
                    .default_service(web::to(reply::only_get)),
            ),
        },
        Endpoint {
            operations: get_and_head("/v1/metrics").to_vec(),
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/metrics")
                    .route(checked(web::get(), metrics::metrics).0)
                    .default_service(web::to(reply::only_get)),
            ),
        },
        Endpoint {
            operations: vec![("post", "/v1/cluster/members")],
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/cluster/members")
                    .route(checked(web::post(), member_routes::add_member).0)
                    .default_service(web::to(reply::only_post)),
            ),
        },
        Endpoint {
            operations: vec![("delete", "/v1/cluster/members/{id}")],
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/cluster/members/{id}")
                    .route(checked(web::delete(), member_routes::remove_member).0)
                    .default_service(web::to(reply::only_delete)),
            ),
        },
        Endpoint {
            operations: vec![("post", "/v1/cluster/members/{id}/promote")],
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/cluster/members/{id}/promote")
                    .route(checked(web::post(), member_routes::promote_member).0)
                    .default_service(web::to(reply::only_post)),
            ),
        },
        Endpoint {
            operations: vec![("post", "/v1/cluster/members/{id}/replace")],
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/cluster/members/{id}/replace")
                    .route(checked(web::post(), member_routes::replace_member).0)
                    .default_service(web::to(reply::only_post)),
            ),
        },
        Endpoint {
            operations: vec![("post", "/v1/cluster/leader")],
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/cluster/leader")
                    .route(checked(web::post(), transfer::transfer_leader).0)
                    .default_service(web::to(reply::only_post)),
            ),
        },
        Endpoint {
            operations: vec![("get", "/v1/tokens"), ("head", "/v1/tokens"), ("post", "/v1/tokens")],
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/tokens")
                    .route(checked(web::get(), tokens::list_tokens).0)
                    .route(checked(web::post(), tokens::create_token).0)
                    .default_service(web::to(reply::only_get_and_post)),
            ),
        },
        Endpoint {
            operations: vec![("delete", "/v1/tokens/{name}")],
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/tokens/{name}")
                    .route(checked(web::delete(), tokens::revoke_token).0)
                    .default_service(web::to(reply::only_delete)),
            ),
        },
        Endpoint {
            operations: vec![("post", "/v1/auth")],
            of_nodes: None,
            service: Service::Resource(
                web::resource("/v1/auth")
                    .route(checked(web::post(), tokens::require_tokens).0)
                    .default_service(web::to(reply::only_post)),
            ),
        },
        // For the other nodes.
        node("post", "/raft-append", checked(web::post(), raft::append)),
        node("post", "/raft-vote", checked(web::post(), raft::vote)),
        node("post", "/raft-pre-vote", checked(web::post(), raft::pre_vote)),
        node("post", "/raft-snapshot", checked(web::post(), raft::snapshot)),
        node("post", "/raft-transfer-leader", checked(web::post(), raft::transfer_leader)),
        node("post", "/raft-read-index", checked(web::post(), raft::read_index)),
        node("post", "/raft-found", checked(web::post(), founding::receive)),
        node("get", "/raft-identity", checked(web::get(), raft::identity)),
        node("get", "/raft-status", checked(web::get(), node_status::node_status)),
    ]
}

/// Configures a server with the route table.
pub fn routes(config: &mut ServiceConfig) {
    for endpoint in table() {
        match endpoint.service {
            Service::Resource(resource) => config.service(resource),
            Service::Scope(scope) => config.service(scope),
        };
    }
    config.default_service(web::to(reply::unknown_route));
}
