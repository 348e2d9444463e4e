//! The header `Raft-Cluster`: every response names its cluster, and a request may.
//!
//! Two clusters may share an address by mistake, or a list of endpoints may contain nodes of both. A request that names
//! another cluster is rejected before anything is done, so that no client mixes their data.

use actix_http::body::BoxBody;
use actix_http::header::HeaderValue;
use actix_http::{HttpMessage, Request, Response};
use actix_service::Service;
use actix_web::web;
use futures_util::future::Either;

use super::reply::error_at;
use super::request_body::keep_for_a_while;
use crate::app::ExampleApp;
use crate::error::{ApiError, Details};
use crate::headers::CLUSTER;
use crate::store::ClusterId;

/// Names the cluster in a response, if the node belongs to one.
pub async fn named<E>(
    app: web::Data<ExampleApp>,
    answer: impl Future<Output = Result<Response<BoxBody>, E>>,
) -> Result<Response<BoxBody>, E> {
    let mut answer = answer.await;
    if let Ok(answer) = &mut answer
        && let Some(cluster) = app.cluster_header()
    {
        answer.headers_mut().insert(CLUSTER.clone(), cluster.clone());
    }
    answer
}

/// Passes a request to its route, unless it names another cluster.
pub fn pass<S, R>(
    app: &web::Data<ExampleApp>,
    mut request: Request,
    routes: &S,
) -> impl Future<Output = Result<Response<BoxBody>, S::Error>> + use<S, R>
where
    S: Service<Request, Response = R>,
    R: Into<Response<BoxBody>>,
{
    let checked = request.headers().get_all(&CLUSTER).try_for_each(|wanted| check_cluster(app, wanted));
    match checked {
        Err(error) => {
            keep_for_a_while(request.take_payload());
            let answer = error_at(app, request.path(), error);
            Either::Left(async { Ok(answer.into()) })
        }
        Ok(()) => {
            let answer = routes.call(request);
            Either::Right(async { answer.await.map(Into::into) })
        }
    }
}

fn check_cluster(app: &ExampleApp, wanted: &HeaderValue) -> Result<(), ApiError> {
    let Some(wanted) = parse(wanted.as_bytes()) else {
        let message = "Raft-Cluster must be a cluster id of 1 to 16 hexadecimal digits";
        return Err(ApiError::bad_request("invalid_header", message));
    };
    // A node without a cluster has an error of its own, which says what to do.
    let Some(own) = app.store.identity().cluster_id else { return Ok(()) };
    if wanted == own {
        return Ok(());
    }
    let message = format!(
        "node {} belongs to cluster {own}, but the request is for another cluster: check the endpoints",
        app.id
    );
    Err(ApiError::WrongNode(Details::not_applied(message)))
}

/// Parses an id in upper or lower case, with or without leading zeros.
fn parse(text: &[u8]) -> Option<ClusterId> {
    let digits = text.iter().all(u8::is_ascii_hexdigit) && (1..=16).contains(&text.len());
    let text = std::str::from_utf8(text).ok().filter(|_| digits)?;
    u64::from_str_radix(text, 16).ok().map(ClusterId)
}
