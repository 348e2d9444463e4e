//! The routes of a node, and the RPCs between nodes.
//!
//! A handler decodes, calls once, and encodes. Who may do what, and which way a
//! request takes, is decided in [`forward`].

pub mod api;
pub mod forward;
pub mod listener;
pub mod management;
pub mod peer;
pub mod raft;
pub mod raft_network_impl;
pub mod reply;

use actix_web::web::{self, ServiceConfig};

/// The route table.
pub fn routes(config: &mut ServiceConfig) {
    let get = |path, handler| web::resource(path).route(handler).default_service(web::to(reply::only_get));
    let post = |path, handler| web::resource(path).route(handler).default_service(web::to(reply::only_post));
    config
        // For applications.
        .service(post("/write", web::post().to(api::write)))
        .service(post("/read", web::post().to(api::read)))
        .service(post("/consistent_read", web::post().to(api::consistent_read)))
        // For whoever runs the cluster.
        .service(post("/init", web::post().to(management::init)))
        .service(post("/add-learner", web::post().to(management::add_learner)))
        .service(post("/change-membership", web::post().to(management::change_membership)))
        .service(get("/metrics", web::get().to(management::metrics)))
        // For the other nodes.
        .service(post("/raft-append", web::post().to(raft::append)))
        .service(post("/raft-vote", web::post().to(raft::vote)))
        .service(post("/raft-pre-vote", web::post().to(raft::pre_vote)))
        .service(post("/raft-snapshot", web::post().to(raft::snapshot)))
        .service(post("/raft-transfer-leader", web::post().to(raft::transfer_leader)))
        .service(post("/raft-read-index", web::post().to(raft::read_index)))
        .service(get("/raft-identity", web::get().to(raft::identity)))
        .default_service(web::to(reply::unknown_route));
}
