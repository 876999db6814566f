//! What is now, what can be ordered, and why the door last opened or stayed shut.

use std::borrow::Cow;
use std::time::Duration;

use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use pawlatch_core::door::{Position, Proof, State as DoorState};
use pawlatch_core::event::{Verdict, Whom};
use pawlatch_core::frame::PictureHealth;
use pawlatch_core::track::Track;

use super::form::{Caller, Refusal, Sent};
use super::{Page, Shared, form, layout, visit};
use crate::journal::{Archive, JournalError};
use crate::owner::board::Glance;
use crate::owner::house::Order;
use crate::owner::words::{self, Visit};
use crate::report::proof_row;

/// How many of the newest visits are searched for the last opening and the last refusal.
const SEARCHED: usize = 50;

/// `GET /`
pub(super) async fn page(
    State(page): Shared,
    Extension(caller): Extension<Caller>,
) -> Result<layout::Answer, Refusal> {
    let glance = page.house.board.now();
    let zone = page.house.time_zone();
    // A journal that cannot be read must not keep the owner from the buttons.
    let last = page.read(|archive| newest(archive, 3)).await.unwrap_or_default();
    let held_for = page.house.linked().map(|link| link.config.door.hold_open_for);
    let buttons = Order::ALL.map(|order| (order, form::ticket(&page, &caller)));
    Ok(layout::page(
        "/",
        "Now",
        html! {
            h1 .sr { "Now" }
            div .columns {
                div {
                    div #now {
                        @match &glance {
                            Some(glance) => (state(&page, glance)),
                            None => p { "The door has not begun to run yet." },
                        }
                    }
                    section .actions aria-label="Orders" {
                        @for (order, ticket) in buttons {
                            form method="post" action={ "/act/" (order.name()) } data-fresh {
                                (layout::ticket(&ticket?))
                                button .(style(order)) type="submit" { (label(order)) span { (meaning(order, held_for)) } }
                            }
                        }
                    }
                }
                div {
                    figure .live {
                        img #live src="/live.jpg" width="480" height="360" alt="The newest picture from the camera, with boxes around whoever is seen";
                        figcaption {
                            span #live-state { "The newest picture. " }
                            a href="/" { "Reload" }
                        }
                    }
                    h2 { "Last visits" }
                    @if last.is_empty() { p .hint { "Nobody has been here yet." } }
                    ul .list {
                        @for (id, visit) in &last {
                            li { a href={ "/visits/" (id) } { (visit.sentence(&zone)) } }
                        }
                    }
                    p { a href="/why" { "Why did it open, or not?" } }
                }
            }
        },
    ))
}

fn newest(archive: &Archive, limit: usize) -> Result<Vec<(i64, Visit)>, JournalError> {
    archive
        .approaches_before(None, limit)?
        .iter()
        .map(|approach| Ok((approach.id, Visit::read(archive, approach)?)))
        .collect()
}

const fn label(order: Order) -> &'static str {
    match order {
        Order::OpenOnce => "Let in once",
        Order::Lock => "Lock now",
        Order::HoldOpen => "Hold open",
        Order::HoldLocked => "Hold locked",
        Order::Release => "By the rules",
    }
}

fn meaning(order: Order, held_for: Option<Duration>) -> Cow<'static, str> {
    match order {
        Order::OpenOnce => "whoever stands there".into(),
        Order::Lock => "then by the rules again".into(),
        Order::HoldOpen => held_for.map_or_else(
            || "for anybody".into(),
            |time| format!("{} for anybody", words::roughly(time)).into(),
        ),
        Order::HoldLocked => "until you release it".into(),
        Order::Release => "the camera decides".into(),
    }
}

const fn style(order: Order) -> &'static str {
    match order {
        Order::OpenOnce => "primary",
        Order::HoldOpen => "open",
        Order::Lock | Order::HoldLocked | Order::Release => "plain",
    }
}

/// `POST /act/{order}`
pub(super) async fn act(
    State(page): Shared,
    Path(order): Path<String>,
    sent: Sent,
) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let order = Order::named(&order).ok_or(Refusal::NotFound)?;
    if page.house.order(&sent.caller.who, order) {
        Ok(Redirect::to("/").into_response())
    } else {
        Err(Refusal::Busy)
    }
}

/// The state as it is observed: what the bolt was seen to be, never what it was told.
pub(super) fn state(page: &Page, glance: &Glance) -> Markup {
    let position = glance.position(page.house.silent_after());
    let good = glance.sightings.as_ref().is_none_or(|s| s.health == PictureHealth::Good);
    let tone = match position {
        Position::Locked => "locked",
        Position::Unlocked => "unlocked",
        Position::Moving => "moving",
        Position::Jammed | Position::Unknown => "amiss",
    };
    html! {
        div .state .(tone) {
            (layout::lock(position == Position::Unlocked))
            div {
                p .headline role="status" { (observed(position)) }
                p { (doing(glance)) }
            }
        }
        @if let Some(words) = disagreement(glance, position) { (layout::notice("bad", words)) }
        @if let DoorState::Fault { cause, .. } = glance.state {
            (layout::notice("bad", &super::login::sentence(cause.describe())))
        }
        @if let (false, Some(seen)) = (good, &glance.sightings) {
            (layout::notice("bad", &super::login::sentence(seen.health.describe())))
        }
        @if let Some(failure) = &glance.failure { (layout::notice("bad", failure)) }
        (evidence(page, &glance.tracks))
        @if !glance.tracks.is_empty() && !glance.wishes_unlocked() { (missing(&glance.proofs)) }
    }
}

const fn observed(position: Position) -> &'static str {
    match position {
        Position::Locked => "Locked",
        Position::Unlocked => "Unlocked",
        Position::Moving => "The bolt is moving",
        Position::Jammed => "The latch is jammed",
        Position::Unknown => "Not known whether it is locked",
    }
}

/// What the door is doing, in words.
fn doing(glance: &Glance) -> String {
    let left = |until: pawlatch_core::units::Uptime| {
        format!("for {} more", words::roughly(until.since(glance.at)))
    };
    let whom = |whom: Whom| match whom {
        Whom::Dog => "the dog",
        Whom::Owner => "whoever you let in",
        Whom::Leaving => "whoever wants out",
    };
    match glance.state {
        DoorState::Starting { .. } => "Starting; waiting to see the bolt locked".to_owned(),
        DoorState::Idle { .. } => "Nobody is at the door".to_owned(),
        DoorState::Watching { .. } => "Somebody is at the door and is being recognised".to_owned(),
        DoorState::Refused { class, .. } => format!("Keeping it shut: {}", words::called(class)),
        DoorState::Open { until, whom: w, .. } => format!("Open for {}, {}", whom(w), left(until)),
        DoorState::Passing { whom: w, .. } => format!("In the passage: {}", whom(w)),
        DoorState::Relocking { attempt: 1, .. } => "Locking".to_owned(),
        DoorState::Relocking { attempt, .. } => format!("Locking, attempt {attempt}"),
        DoorState::Scheduled { .. } => "A rule keeps it shut now".to_owned(),
        DoorState::HeldOpen { until, .. } => format!("Held open by you, {}", left(until)),
        DoorState::HeldLocked { .. } => "Held locked by you until you release it".to_owned(),
        DoorState::Fault { cause, .. } => format!("Out of order: {}", words::short(cause)),
    }
}

/// Where the bolt is not as it was told.
fn disagreement(glance: &Glance, position: Position) -> Option<&'static str> {
    match (glance.wishes_unlocked(), position) {
        (false, Position::Unlocked) if !matches!(glance.state, DoorState::Relocking { .. }) => {
            Some("The bolt is seen drawn although it was told to lock.")
        }
        (true, Position::Locked) => Some("Told to unlock; the bolt is still seen locked."),
        _ => None,
    }
}

fn evidence(page: &Page, tracks: &[Track]) -> Markup {
    let needed = page.house.linked().map_or(6.9, |link| link.config.door.budget.accept());
    html! {
        @for track in tracks {
            div .evidence {
                p {
                    (layout::class(track.best()))
                    " seen in " (track.frames) " pictures"
                    @if !track.in_approach { ", outside the approach" }
                }
                label {
                    span { "Evidence for a dog " span .number { (format!("{:.1} of {needed:.1}", track.dog)) } }
                    meter min="0" max=(format!("{needed:.2}")) value=(format!("{:.2}", track.dog.clamp(0.0, needed))) {}
                }
                @if track.cat > 0.0 {
                    label {
                        span { "Evidence for a cat " span .number { (format!("{:.1}", track.cat)) } }
                        meter .cat min="0" max=(format!("{needed:.2}")) value=(format!("{:.2}", track.cat.clamp(0.0, needed))) {}
                    }
                }
            }
        }
    }
}

fn missing(proofs: &[Proof]) -> Markup {
    let missing: Vec<&str> =
        proofs.iter().filter(|p| !p.passed).filter_map(|p| p.words.as_deref()).collect();
    html! {
        @if !missing.is_empty() {
            div .missing-proofs {
                h2 { "Missing to open" }
                ul { @for words in missing { li { (words) } } }
            }
        }
    }
}

/// `GET /why`: the last opening and the last refusal.
pub(super) async fn why(State(page): Shared) -> Result<layout::Answer, Refusal> {
    let found = page
        .read(|archive| Ok([last(archive, Verdict::LetIn)?, last(archive, Verdict::KeptShut)?]))
        .await?;
    let zone = page.house.time_zone();
    let names = ["The last time it opened for a dog", "The last time it stayed shut for somebody"];
    let mut sections = Vec::new();
    for (name, found) in names.into_iter().zip(found) {
        let told = match found {
            None => html! { p .hint { "Not among the last " (SEARCHED) " visits." } },
            Some((id, recording, visit)) => {
                let decisive = match recording {
                    Some(path) => page.aside(move || visit::decisive(&path)).await?,
                    None => None,
                };
                html! {
                    p .said { a href={ "/visits/" (id) } { (visit.sentence(&zone)) } }
                    div .pair {
                        figure {
                            img src={ "/visits/" (id) "/pictures/decisive" } width="480" height="360" loading="lazy" alt="What was seen at the decisive moment";
                            figcaption { "What was seen" }
                        }
                        figure {
                            img src={ "/visits/" (id) "/heat" } width="480" height="360" loading="lazy" alt="Heat map: where the classifier sees what decided";
                            figcaption { "Where the classifier saw it" }
                        }
                    }
                    @if let Some(decision) = &decisive {
                        table .proofs {
                            caption { "Every gate at the decisive moment" }
                            thead { tr { th scope="col" { "Gate" } th .number scope="col" { "Value" } th .number scope="col" { "Limit" } th scope="col" { "Passed" } } }
                            tbody { @for proof in &decision.proofs { (proof_row(proof)) } }
                        }
                    }
                }
            }
        };
        sections.push((name, told));
    }
    Ok(layout::page(
        "/",
        "Why",
        html! {
            h1 { "Why did it open, or not?" }
            @for (name, told) in sections { section .card { h2 { (name) } (told) } }
        },
    ))
}

type Found = Option<(i64, Option<std::path::PathBuf>, Visit)>;

fn last(archive: &Archive, verdict: Verdict) -> Result<Found, JournalError> {
    let newest = archive.approaches_before(None, SEARCHED)?;
    let Some(approach) = newest.into_iter().find(|a| a.verdict == Some(verdict)) else {
        return Ok(None);
    };
    let visit = Visit::read(archive, &approach)?;
    Ok(Some((approach.id, approach.recording, visit)))
}
