//! Raises the level of formats: see [`level`](crate::level).

use std::time::{Duration, Instant};

use actix_web::web;

use super::cluster_status::collect;
use super::consensus::propose;
use super::peer;
use crate::app::{ExampleApp, Role};
use crate::config::{LEVEL_CHECK_INTERVAL, LEVEL_RAISE_INTERVAL, LEVEL_RAISE_WAIT_MAX};
use crate::error::ApiError;
use crate::level::Level;
use crate::operation::Operation;

/// As leader, raises the level to the highest one that all members support: at once when this node becomes the leader,
/// and then from time to time until the level is the newest.
pub async fn raise(app: web::Data<ExampleApp>) {
    let mut last_attempt: Option<Instant> = None;
    loop {
        let is_newest = level_of(&app) >= Level::NEWEST;
        tokio::time::sleep(if is_newest { LEVEL_RAISE_INTERVAL } else { LEVEL_CHECK_INTERVAL }).await;
        if app.role() != Role::Leader || !app.recovered() {
            last_attempt = None;
            continue;
        }
        if level_of(&app) >= Level::NEWEST || last_attempt.is_some_and(|at| at.elapsed() < LEVEL_RAISE_INTERVAL) {
            continue;
        }
        if let Err(error) = raise_once(&app).await {
            tracing::debug!("the level of formats was not raised: {error}");
        }
        last_attempt = Some(Instant::now());
    }
}

/// Waits a moment until a new cluster has the newest level, if all its nodes support that.
pub async fn wait_for_newest(app: &ExampleApp) {
    let newest = async {
        while level_of(app) < Level::NEWEST {
            tokio::time::sleep(LEVEL_CHECK_INTERVAL).await;
        }
    };
    // Otherwise it is raised later.
    let _ = tokio::time::timeout(LEVEL_RAISE_WAIT_MAX, newest).await;
}

/// The level of this node's state.
pub fn level_of(app: &ExampleApp) -> Level {
    app.store.state_machine.read(|machine| machine.level)
}

/// A member may be replaced by an older version between its report and the entry. It then rejects the entry until the
/// newer version runs again, and its directory keeps the former format.
async fn raise_once(app: &ExampleApp) -> Result<(), ApiError> {
    let Some(level) = level_of_all(app).await.filter(|level| *level > level_of(app)) else { return Ok(()) };
    peer::raise_level(app, level).await?;
    propose(app, None, Operation::RaiseLevel { level }, Duration::ZERO, None).await?;
    tracing::info!("all members support formats of level {level}, and the cluster has that level now");
    Ok(())
}

/// The highest level that all members report to support, or this program does; `None` if one of them reports none.
async fn level_of_all(app: &ExampleApp) -> Option<Level> {
    let cluster = collect(app).await;
    if cluster.partial.is_some() || cluster.leader != Some(app.id) {
        return None;
    }
    let levels: Option<Vec<u32>> = cluster.members.iter().map(|member| member.format_level).collect();
    levels?.into_iter().min().map(|level| Level(level).min(Level::NEWEST))
}
