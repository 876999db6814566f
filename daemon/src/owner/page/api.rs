//! What programs can ask, and Prometheus.

use axum::Json;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::form::{Caller, Refusal};
use super::{MAX_BODY, Shared};
use crate::journal::{Archive, JournalError, StoredApproach};
use crate::owner::access::{ORDER_LASTS, Scope};
use crate::owner::house::Order;
use crate::owner::metrics;
use crate::owner::words::Visit;

/// Most visits in one answer.
const MAX_VISITS: usize = 200;
/// Longest name of an order's id.
const MAX_ID: usize = 64;

/// `GET /api/openapi.json`
pub(super) async fn description() -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (headers, include_str!("openapi.json")).into_response()
}

/// `GET /api/status`: the door as it is observed.
pub(super) async fn status(State(page): Shared) -> Result<Json<Value>, Refusal> {
    let glance = page.house.board.now().ok_or(Refusal::Busy)?;
    let position = glance.position(page.house.silent_after());
    Ok(Json(json!({
        "at_ms": glance.at,
        "state": glance.state,
        "latch": position,
        "told_to_unlock": glance.wishes_unlocked(),
        "picture": glance.sightings.as_ref().map(|s| s.health),
        "tracks": glance.tracks,
        "proofs": glance.proofs,
        "target": glance.target,
    })))
}

/// What of the visits is wanted.
#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    before: Option<i64>,
}

#[derive(Serialize)]
struct VisitLine {
    id: i64,
    began: String,
    verdict: Option<pawlatch_core::event::Verdict>,
    words: String,
    seconds: Option<f64>,
    pictures: usize,
    label: Option<pawlatch_core::sight::Class>,
}

fn line(
    approach: &StoredApproach,
    archive: &Archive,
    zone: &jiff::tz::TimeZone,
) -> Result<VisitLine, JournalError> {
    let visit = Visit::read(archive, approach)?;
    Ok(VisitLine {
        id: approach.id,
        began: approach.began_wall.clone(),
        verdict: approach.verdict,
        words: visit.sentence(zone),
        seconds: approach.ended.map(|ended| ended.since(approach.began).as_secs_f64()),
        pictures: approach.pictures.len(),
        label: approach.label,
    })
}

/// `GET /api/visits`: newest first.
pub(super) async fn visits(
    State(page): Shared,
    query: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(wanted) = query.map_err(|_| Refusal::Malformed)?;
    let limit = wanted.limit.unwrap_or(20);
    if !(1..=MAX_VISITS).contains(&limit) {
        return Err(Refusal::Malformed);
    }
    let zone = page.house.time_zone();
    let read = page.read(move |archive| {
        let approaches = archive.approaches_before(wanted.before, limit)?;
        approaches.iter().map(|a| line(a, archive, &zone)).collect::<Result<Vec<_>, _>>()
    });
    Ok(Json(read.await?).into_response())
}

/// `GET /api/visits/{id}`: with its events.
pub(super) async fn visit(
    State(page): Shared,
    id: Result<Path<i64>, axum::extract::rejection::PathRejection>,
) -> Result<Response, Refusal> {
    let Path(id) = id.map_err(|_| Refusal::NotFound)?;
    let zone = page.house.time_zone();
    let read = page.read(move |archive| {
        let Some(approach) = archive.approach(id)? else { return Ok(None) };
        let events: Vec<Value> = archive
            .events_of(id)?
            .into_iter()
            .map(|e| json!({ "wall": e.wall, "event": e.event, "words": e.event.to_string() }))
            .collect();
        Ok(Some(json!({ "visit": line(&approach, archive, &zone)?, "events": events })))
    });
    read.await?.map(|found| Json(found).into_response()).ok_or(Refusal::NotFound)
}

/// An order of a program. `id` makes it good once, `at` for half a minute only.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ordered {
    id: String,
    at: Timestamp,
}

/// `POST /api/orders/{order}`
pub(super) async fn order(
    State(page): Shared,
    Path(order): Path<String>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Refusal> {
    // A browser's session orders by forms with tickets.
    if caller.session.is_some() || caller.scope < Some(Scope::Open) {
        return Err(Refusal::Scope);
    }
    let order = Order::named(&order).ok_or(Refusal::NotFound)?;
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY).await;
    let body = body.map_err(|_| Refusal::Malformed)?;
    let ordered: Ordered = serde_json::from_slice(&body).map_err(|_| Refusal::Malformed)?;
    if ordered.id.is_empty() || ordered.id.len() > MAX_ID {
        return Err(Refusal::Malformed);
    }
    let age = Timestamp::now().duration_since(ordered.at);
    if age.unsigned_abs() > ORDER_LASTS {
        return Err(Refusal::Stale);
    }
    let now = page.house.clock.now();
    if !page.house.access().first_time(&format!("{}/{}", caller.who, ordered.id), now) {
        return Err(Refusal::Ticket);
    }
    if !page.house.order(&caller.who, order) {
        return Err(Refusal::Busy);
    }
    Ok(Json(json!({ "ordered": order.name() })).into_response())
}

/// `GET /metrics`
pub(super) async fn metrics(State(page): Shared) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, metrics::text(&page.house)).into_response()
}
