//! The routes of a node, and the RPCs between nodes.
//!
//! A handler decodes, calls once, and encodes. Who may do what, and which way a
//! request takes, is decided in [`forward`].

pub mod api;
pub mod forward;
pub mod kv;
pub mod list;
pub mod listener;
pub mod management;
pub mod parameters;
pub mod peer;
pub mod raft;
pub mod raft_network_impl;
pub mod reply;
pub mod txn;
pub mod v1;
pub mod watch;

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
        .service(
            web::scope("/v1/kv")
                .service(
                    web::resource("")
                        .route(web::get().to(list::list))
                        .route(web::delete().to(list::delete_prefix))
                        .default_service(web::to(v1::only_list_methods)),
                )
                // `/v1/kv/{key}`. A pattern would be looked for with a regular
                // expression, which costs a put 4 % of its time.
                .default_service(web::to(kv::any)),
        )
        .service(web::resource("/v1/txn").route(web::post().to(txn::txn)).default_service(web::to(v1::only_post)))
        .service(web::resource("/v1/watch").route(web::get().to(watch::watch)).default_service(web::to(v1::only_get)))
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
