//! The routes of a node, and the RPCs between nodes.
//!
//! A handler decodes, calls once, and encodes. [`readiness`] decides whether a node can serve a request, [`forward`]
//! where, and [`consensus`] does it.

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
pub mod transfer;
pub mod txn;
pub mod v1;
pub mod watch;
pub mod watch_held;
mod worker;

use actix_web::web::{self, ServiceConfig};
use actix_web::{Resource, Route, Scope};

/// A path and its handlers.
pub struct Endpoint {
    /// The methods and paths in the document of the API.
    pub operations: Vec<(&'static str, &'static str)>,
    service: Service,
}

enum Service {
    Resource(Resource),
    Scope(Scope),
}

/// A public path with one method, whose errors have the original's shape.
fn original(method: &'static str, path: &'static str, route: Route) -> Endpoint {
    let resource = web::resource(path).route(route);
    let resource = match method {
        "get" => resource.default_service(web::to(reply::only_get)),
        _ => resource.default_service(web::to(reply::only_post)),
    };
    let operations = if method == "get" { get_and_head(path).to_vec() } else { vec![(method, path)] };
    Endpoint { operations, service: Service::Resource(resource) }
}

/// Every `GET` route also accepts `HEAD`: `listener::admission` turns it into `GET`.
const fn get_and_head(path: &'static str) -> [(&'static str, &'static str); 2] {
    [("get", path), ("head", path)]
}

/// A path for other nodes, which is not in the document of the API.
fn node(method: &'static str, path: &'static str, route: Route) -> Endpoint {
    Endpoint { operations: Vec::new(), ..original(method, path, route) }
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
            service: Service::Scope(
                web::scope("/v1/kv")
                    .service(
                        web::resource("")
                            .route(web::get().to(list::list))
                            .route(web::delete().to(list::delete_prefix))
                            .default_service(web::to(reply::only_list_methods)),
                    )
                    // Single keys. A pattern would be a regular expression, which costs a put 4 % of its time.
                    .default_service(web::to(kv::any)),
            ),
        },
        Endpoint {
            operations: vec![("post", "/v1/txn")],
            service: Service::Resource(
                web::resource("/v1/txn").route(web::post().to(txn::txn)).default_service(web::to(reply::only_post)),
            ),
        },
        Endpoint {
            operations: get_and_head("/v1/watch").to_vec(),
            service: Service::Resource(
                web::resource("/v1/watch").route(web::get().to(watch::watch)).default_service(web::to(reply::only_get)),
            ),
        },
        original("post", "/write", web::post().to(api::write)),
        original("post", "/read", web::post().to(api::read)),
        original("post", "/consistent_read", web::post().to(api::consistent_read)),
        original("get", "/openapi.json", web::get().to(openapi::openapi_json)),
        original("get", "/docs", web::get().to(openapi::docs)),
        // For operators.
        original("post", "/init", web::post().to(management::init)),
        original("post", "/add-learner", web::post().to(management::add_learner)),
        original("post", "/change-membership", web::post().to(management::change_membership)),
        original("get", "/metrics", web::get().to(management::metrics)),
        original("get", "/livez", web::get().to(health::livez)),
        original("get", "/readyz", web::get().to(health::readyz)),
        original("get", "/health", web::get().to(health::health)),
        Endpoint {
            operations: get_and_head("/v1/cluster").to_vec(),
            service: Service::Resource(
                web::resource("/v1/cluster")
                    .route(web::get().to(cluster_status::cluster_status))
                    .default_service(web::to(reply::only_get)),
            ),
        },
        Endpoint {
            operations: get_and_head("/v1/cluster/hash").to_vec(),
            service: Service::Resource(
                web::resource("/v1/cluster/hash")
                    .route(web::get().to(cluster_hash::cluster_hash))
                    .default_service(web::to(reply::only_get)),
            ),
        },
        Endpoint {
            operations: get_and_head("/v1/snapshot").to_vec(),
            service: Service::Resource(
                web::resource("/v1/snapshot")
                    .route(web::get().to(snapshot::snapshot))
                    .default_service(web::to(reply::only_get)),
            ),
        },
        Endpoint {
            operations: get_and_head("/v1/metrics").to_vec(),
            service: Service::Resource(
                web::resource("/v1/metrics")
                    .route(web::get().to(metrics::metrics))
                    .default_service(web::to(reply::only_get)),
            ),
        },
        Endpoint {
            operations: vec![("post", "/v1/cluster/members")],
            service: Service::Resource(
                web::resource("/v1/cluster/members")
                    .route(web::post().to(member_routes::add_member))
                    .default_service(web::to(reply::only_post)),
            ),
        },
        Endpoint {
            operations: vec![("delete", "/v1/cluster/members/{id}")],
            service: Service::Resource(
                web::resource("/v1/cluster/members/{id}")
                    .route(web::delete().to(member_routes::remove_member))
                    .default_service(web::to(reply::only_delete)),
            ),
        },
        Endpoint {
            operations: vec![("post", "/v1/cluster/members/{id}/promote")],
            service: Service::Resource(
                web::resource("/v1/cluster/members/{id}/promote")
                    .route(web::post().to(member_routes::promote_member))
                    .default_service(web::to(reply::only_post)),
            ),
        },
        Endpoint {
            operations: vec![("post", "/v1/cluster/members/{id}/replace")],
            service: Service::Resource(
                web::resource("/v1/cluster/members/{id}/replace")
                    .route(web::post().to(member_routes::replace_member))
                    .default_service(web::to(reply::only_post)),
            ),
        },
        Endpoint {
            operations: vec![("post", "/v1/cluster/leader")],
            service: Service::Resource(
                web::resource("/v1/cluster/leader")
                    .route(web::post().to(transfer::transfer_leader))
                    .default_service(web::to(reply::only_post)),
            ),
        },
        // For the other nodes.
        node("post", "/raft-append", web::post().to(raft::append)),
        node("post", "/raft-vote", web::post().to(raft::vote)),
        node("post", "/raft-pre-vote", web::post().to(raft::pre_vote)),
        node("post", "/raft-snapshot", web::post().to(raft::snapshot)),
        node("post", "/raft-transfer-leader", web::post().to(raft::transfer_leader)),
        node("post", "/raft-read-index", web::post().to(raft::read_index)),
        node("post", "/raft-found", web::post().to(founding::receive)),
        node("get", "/raft-identity", web::get().to(raft::identity)),
        node("get", "/raft-status", web::get().to(node_status::node_status)),
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
