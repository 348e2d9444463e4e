//! The header `Raft-Cluster`: every answer names its cluster, and a request may.
//!
//! Two clusters may share an address by mistake, or a list of endpoints hold nodes of both. A request
//! that names another cluster is rejected before anything is done, so that no client mixes their data.

use actix_http::body::BoxBody;
use actix_http::header::{HeaderName, HeaderValue};
use actix_http::{HttpMessage, Request, Response};
use actix_service::Service;
use actix_web::{ResponseError, web};
use futures_util::future::Either;

use super::reply::keep_for_a_while;
use super::v1;
use crate::app::ExampleApp;
use crate::error::{ApiError, Details};

/// The id of a cluster: of the node that answers, or of the one that a request is meant for.
pub const CLUSTER: HeaderName = HeaderName::from_static("raft-cluster");

/// Names the cluster in an answer, if the node belongs to one.
pub async fn named<E>(
    app: web::Data<ExampleApp>,
    answer: impl Future<Output = Result<Response<BoxBody>, E>>,
) -> Result<Response<BoxBody>, E> {
    let mut answer = answer.await;
    if let Ok(answer) = &mut answer
        && let Some(cluster) = app.cluster_header()
    {
        answer.headers_mut().insert(CLUSTER, cluster.clone());
    }
    answer
}

/// Takes a request to its route, unless it is meant for another cluster.
pub fn pass<S, R>(
    app: &web::Data<ExampleApp>,
    mut request: Request,
    routes: &S,
) -> impl Future<Output = Result<Response<BoxBody>, S::Error>> + use<S, R>
where
    S: Service<Request, Response = R>,
    R: Into<Response<BoxBody>>,
{
    let wrong = request.headers().get(&CLUSTER).and_then(|wanted| wrong_cluster(app, wanted));
    match wrong {
        Some(error) => {
            keep_for_a_while(request.take_payload());
            let is_v1 = request.path().starts_with("/v1/");
            let answer = if is_v1 { v1::answer(app, Err(error)) } else { error.error_response() };
            Either::Left(async { Ok(answer.into()) })
        }
        None => {
            let answer = routes.call(request);
            Either::Right(async { answer.await.map(Into::into) })
        }
    }
}

fn wrong_cluster(app: &ExampleApp, wanted: &HeaderValue) -> Option<ApiError> {
    // A node that belongs to none says so itself, with what to do.
    let own = app.cluster_header()?;
    if own == wanted {
        return None;
    }
    let own = own.to_str().unwrap_or_default();
    let message =
        format!("node {} belongs to cluster {own}, and the request is for another one: check the endpoints", app.id);
    Some(ApiError::WrongNode(Details::not_applied(message)))
}
