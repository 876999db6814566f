//! One visit: what happened, in words, pictures and figures; what the owner says it was.

use std::collections::VecDeque;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Redirect, Response};
use image::{RgbImage, imageops};
use maud::{Markup, html};
use pawlatch_core::door::{Decision, DoorSettings};
use pawlatch_core::event::What;
use pawlatch_core::frame::Frame;
use pawlatch_core::sight::{Class, Sightings};
use pawlatch_core::units::{Rect, Uptime};
use pawlatch_core::vision::{CROP_PADDING, Localiser};

use super::form::{Caller, Refusal, Sent};
use super::live::{as_jpeg, with_boxes};
use super::{Shared, form, layout};
use crate::journal::{Archive, JournalError, Note, Replayed, StoredApproach, StoredPicture};
use crate::models::{ModelsDir, read_limited};
use crate::overlay::Overlay;
use crate::owner::words::{self, Visit, called};
use crate::replay::{Moment, Tally};
use crate::report::{Chapter, jpeg, proof_row};

/// Longest side of a picture on the page, pixels.
const SIDE: u32 = 640;
/// Largest stored file that is read, bytes.
const MAX_STORED: u64 = 64 << 20;
/// Heat maps that are kept.
const MAX_HEAT: usize = 8;

/// What one visit's page needs.
struct Told {
    approach: StoredApproach,
    visit: Visit,
    events: Vec<(Uptime, String)>,
    replay: Option<Replay>,
}

/// A recording, decided again.
pub(super) struct Replay {
    decisive: Option<Decision>,
    /// What was seen, oldest first.
    pub(super) sightings: Vec<Sightings>,
    curve: Markup,
    steps: usize,
    same: bool,
}

fn tell(archive: &Archive, id: i64, door: &DoorSettings) -> Result<Option<Told>, JournalError> {
    let Some(approach) = archive.approach(id)? else { return Ok(None) };
    let events = archive.events_of(id)?;
    let told = events.iter().map(|e| (e.event.at, e.event.to_string())).collect();
    let events = events.into_iter().map(|e| e.event).collect();
    let visit = Visit::of(archive, &approach, events)?;
    let replay = approach.recording.as_deref().and_then(|path| replay(path, door));
    Ok(Some(Told { approach, visit, events: told, replay }))
}

/// Decides a recording again. Its times are counted from its beginning in the drawing only.
fn replay(path: &FilePath, door: &DoorSettings) -> Option<Replay> {
    let text = String::from_utf8(read_limited(path, MAX_STORED).ok()?).ok()?;
    let replayed = Replayed::play(&text).ok()?;
    let base = replayed.steps.first()?.0.now;
    let mut chapter = Chapter::new("", "", door);
    let mut tally = Tally::default();
    let mut sightings = Vec::new();
    for (step, decision) in &replayed.steps {
        tally.add(decision, step.input.sightings.is_some());
        sightings.extend(step.input.sightings.clone());
        let mut shifted = decision.clone();
        shifted.at = Uptime::ZERO + decision.at.since(base);
        // Without pictures nothing is encoded, so nothing can fail.
        let _ = chapter.add(&Moment {
            decision: &shifted,
            frame: None,
            sightings: None,
            failure: None,
            tracks: &[],
            latch: step.input.latch,
        });
    }
    Some(Replay {
        decisive: tally.decisive().cloned(),
        sightings,
        curve: chapter.curve(),
        steps: replayed.steps.len(),
        same: replayed.differs_at.is_none(),
    })
}

/// The recording of an approach, decided again.
pub(super) fn replayed(approach: &StoredApproach) -> Option<Replay> {
    replay(approach.recording.as_deref()?, &DoorSettings::default())
}

/// The decision that tells most of the recording at `path`.
pub(super) fn decisive(path: &FilePath) -> Option<Decision> {
    replay(path, &DoorSettings::default())?.decisive
}

/// `GET /visits/{id}`
pub(super) async fn page(
    State(page): Shared,
    Extension(caller): Extension<Caller>,
    Path(id): Path<i64>,
) -> Result<layout::Answer, Refusal> {
    let door = page.house.linked().map_or_else(DoorSettings::default, |l| l.config.door.clone());
    let told =
        page.read(move |archive| tell(archive, id, &door)).await?.ok_or(Refusal::NotFound)?;
    let zone = page.house.time_zone();
    let ticket = form::ticket(&page, &caller)?;
    let enrol = form::ticket(&page, &caller)?;
    let animals = super::animals::section(&page, &told.approach, &enrol).await?;
    let Told { approach, visit, events, replay } = &told;
    let day = visit.began.to_zoned_datetime(zone.clone()).strftime("%A, %-d %B %Y").to_string();
    let since = |at: Uptime| format!("{:.1} s", at.since(approach.began).as_secs_f64());
    Ok(layout::page(
        "/visits",
        "Visit",
        html! {
            p .hint { a href="/visits" { "All visits" } " · " (day) }
            h1 { (visit.sentence(&zone)) }
            @if approach.pictures.is_empty() {
                p .hint { "No pictures are kept of this visit." }
            } @else {
                div {
                    div .film tabindex="0" role="group" aria-label="Pictures, oldest first" {
                        @for (n, picture) in approach.pictures.iter().enumerate() {
                            figure {
                                img src={ "/visits/" (id) "/pictures/" (n) } width="640" height="480" loading=(if n < 2 { "eager" } else { "lazy" }) alt={ "The picture after " (since(picture.at)) };
                                figcaption { (since(picture.at)) (happened(approach, visit, n)) }
                            }
                        }
                    }
                }
            }
            (label_form(approach, &ticket))
        (animals)
            @if let Some(replay) = replay { (figures(replay, id)) }
            section .card {
                h2 { "What happened" }
                ol .events {
                    @for (at, words) in events {
                        li { span .time { (since(*at)) } " " (words) }
                    }
                }
            }
            p { a href={ "/visits/" (id) "/export" } download { "Export this visit (tar)" } }
        },
    ))
}

/// What happened around a picture: between it and the next.
fn happened(approach: &StoredApproach, visit: &Visit, n: usize) -> String {
    let from = if n == 0 { Uptime::ZERO } else { approach.pictures[n].at };
    let to = approach.pictures.get(n + 1).map_or(Uptime::from_millis(u64::MAX), |next| next.at);
    let tells = |what: &What| {
        matches!(
            what,
            What::Opened { .. } | What::Refused { .. } | What::Passing | What::FaultRaised { .. }
        )
    };
    let found = visit.events.iter().find(|e| from <= e.at && e.at < to && tells(&e.what));
    found.map_or(String::new(), |event| format!(" · {event}"))
}

fn figures(replay: &Replay, id: i64) -> Markup {
    html! {
        section .card {
            h2 { "Why" }
            (replay.curve)
            p .hint { "Evidence over time, and what the door was doing." }
            figure .heat {
                img src={ "/visits/" (id) "/heat" } width="480" height="360" loading="lazy" alt="Heat map: where the classifier sees what decided";
                figcaption { "Where the classifier sees what decided" }
            }
            @if let Some(decision) = &replay.decisive {
                table .proofs {
                    caption { "Every gate at the decisive moment" }
                    thead { tr { th scope="col" { "Gate" } th .number scope="col" { "Value" } th .number scope="col" { "Limit" } th scope="col" { "Passed" } } }
                    tbody { @for proof in &decision.proofs { (proof_row(proof)) } }
                }
            }
            p .hint {
                (replay.steps) " decisions, decided again just now: "
                @if replay.same { "all the same." } @else { "not all the same; another version decided then." }
            }
        }
    }
}

fn label_form(approach: &StoredApproach, ticket: &str) -> Markup {
    let choices = [Class::Dog, Class::Cat, Class::Person, Class::Other, Class::Nothing];
    html! {
        form .card .inline method="post" action={ "/visits/" (approach.id) "/label" } {
            (layout::ticket(ticket))
            label for="class" { "What was it really?" }
            select #class name="class" {
                option value="" selected[approach.label.is_none()] { "not said" }
                @for class in choices {
                    option value=(class.name()) selected[approach.label == Some(class)] { (called(class)) }
                }
            }
            button type="submit" { "Keep" }
            p .hint { "What you say here becomes an example for the trainer. It changes nothing about the door by itself." }
        }
    }
}

/// `POST /visits/{id}/label`
pub(super) async fn label(
    State(page): Shared,
    Path(id): Path<i64>,
    sent: Sent,
) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let class = match sent.get("class") {
        "" => None,
        name => Some(Class::ALL.into_iter().find(|c| c.name() == name).ok_or(Refusal::Malformed)?),
    };
    page.read(move |archive| archive.approach(id)).await?.ok_or(Refusal::NotFound)?;
    if !page.house.record(Note::Label { approach: id, class }) {
        return Err(Refusal::Busy);
    }
    let said = class.map_or("nothing", words::called);
    page.house.audit(&sent.caller.who, &format!("label visit {id}"), said);
    // The journal writes in batches; what was said is there a moment later.
    tokio::time::sleep(Duration::from_millis(150)).await;
    Ok(Redirect::to(&format!("/visits/{id}")).into_response())
}

/// `GET /visits/{id}/pictures/{n}`: picture `n`, or the decisive one, with boxes.
pub(super) async fn picture(
    State(page): Shared,
    Path((id, which)): Path<(i64, String)>,
) -> Result<Response, Refusal> {
    let approach =
        page.read(move |archive| archive.approach(id)).await?.ok_or(Refusal::NotFound)?;
    let drawn = page.aside(move || {
        let replay = replayed(&approach);
        let picture = chosen(&approach, replay.as_ref(), &which)?;
        let frame = stored(picture)?;
        let seen = replay.iter().flat_map(|r| &r.sightings).rfind(|s| s.captured_at <= picture.at);
        with_boxes(&frame, seen, SIDE)
    });
    let bytes = drawn.await?.ok_or(Refusal::NotFound)?;
    Ok(cached(as_jpeg(Bytes::from(bytes))))
}

fn chosen<'a>(
    approach: &'a StoredApproach,
    replay: Option<&Replay>,
    which: &str,
) -> Option<&'a StoredPicture> {
    if which != "decisive" {
        return approach.pictures.get(which.parse::<usize>().ok()?);
    }
    let at = replay.and_then(|r| r.decisive.as_ref()).map(|d| d.at);
    let before = |picture: &&StoredPicture| at.is_none_or(|at| picture.at <= at);
    approach.pictures.iter().rfind(before).or(approach.pictures.first())
}

pub(super) fn stored(picture: &StoredPicture) -> Option<Frame> {
    let bytes = read_limited(&picture.path, MAX_STORED).ok()?;
    Frame::decode(bytes, picture.at).ok()
}

/// What is of a visit never changes.
fn cached(mut response: Response) -> Response {
    let value = header::HeaderValue::from_static("private, max-age=3600");
    response.headers_mut().insert(header::CACHE_CONTROL, value);
    response
}

/// Heat maps that were made, and the network that makes them once it is asked for.
#[derive(Default)]
pub(super) struct HeatMaps {
    made: Mutex<VecDeque<(i64, Bytes)>>,
    /// With the hash of its model, so that another model is noticed.
    network: Arc<Mutex<Option<(String, Localiser)>>>,
}

impl std::fmt::Debug for HeatMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeatMaps")
    }
}

/// `GET /visits/{id}/heat`: where the classifier in use now sees what decided then.
pub(super) async fn heat(State(page): Shared, Path(id): Path<i64>) -> Result<Response, Refusal> {
    let known = |made: &VecDeque<(i64, Bytes)>| made.iter().find(|(n, _)| *n == id).cloned();
    let found = known(&page.heat.made.lock().unwrap_or_else(PoisonError::into_inner));
    if let Some((_, bytes)) = found {
        return Ok(cached(as_jpeg(bytes)));
    }
    let link = page.house.linked().ok_or(Refusal::Busy)?;
    let approach =
        page.read(move |archive| archive.approach(id)).await?.ok_or(Refusal::NotFound)?;
    let network = Arc::clone(&page.heat.network);
    let drawn = page.aside(move || {
        let replay = replayed(&approach);
        let picture = chosen(&approach, replay.as_ref(), "decisive")?;
        let class = approach_class(replay.as_ref());
        draw_heat(&network, &link.models, &stored(picture)?, class)
    });
    let bytes = Bytes::from(drawn.await?.ok_or(Refusal::NotFound)?);
    let mut made = page.heat.made.lock().unwrap_or_else(PoisonError::into_inner);
    if made.len() >= MAX_HEAT {
        made.pop_front();
    }
    made.push_back((id, bytes.clone()));
    Ok(cached(as_jpeg(bytes)))
}

/// The class whose heat tells why: what was refused, else the dog.
fn approach_class(replay: Option<&Replay>) -> Class {
    let decision = replay.and_then(|r| r.decisive.as_ref());
    let refused = decision.and_then(|d| {
        d.events.iter().find_map(|event| match event.what {
            What::Refused { class } => Some(class),
            _ => None,
        })
    });
    refused.unwrap_or(Class::Dog)
}

fn draw_heat(
    network: &Mutex<Option<(String, Localiser)>>,
    models: &ModelsDir,
    frame: &Frame,
    class: Class,
) -> Option<Vec<u8>> {
    let entry = models.in_use().ok()?.classifier?;
    let mut network = network.lock().unwrap_or_else(PoisonError::into_inner);
    if network.as_ref().is_none_or(|(sha256, _)| *sha256 != entry.manifest.sha256) {
        *network = Some((entry.manifest.sha256.clone(), Localiser::new(&entry.load().ok()?).ok()?));
    }
    let (_, localiser) = network.as_mut()?;
    let heat = localiser.localise(frame, Rect::WHOLE).ok()?.heat;
    let mut overlay = Overlay::new(frame);
    overlay.heat(&heat, class);
    jpeg(overlay.into_picture(), SIDE).ok().map(|(bytes, _, _)| bytes)
}

/// The pictures of a labelled visit as examples of `class`, as JPEG with their time: what was seen
/// cut out as the classifier sees it, or the whole picture where nothing was there.
pub(super) fn examples(approach: &StoredApproach, class: Class) -> Vec<(u64, Vec<u8>)> {
    let replay = replayed(approach);
    let mut found = Vec::new();
    for picture in &approach.pictures {
        let seen = replay.iter().flat_map(|r| &r.sightings).rfind(|s| s.captured_at <= picture.at);
        let best = seen.and_then(|s| s.seen.first()).map(|s| s.detection.rect);
        let part = match best {
            Some(rect) if class != Class::Nothing => rect.padded(CROP_PADDING),
            None if class == Class::Nothing => Rect::WHOLE,
            // Not known to show it.
            _ => continue,
        };
        let Some(frame) = stored(picture) else { continue };
        let jpeg = RgbImage::from_raw(frame.width(), frame.height(), frame.pixels().to_vec())
            .and_then(|whole| {
                let [x0, y0, x1, y1] = part.to_pixels(frame.width(), frame.height());
                let (w, h) = ((x1 - x0).max(1.0) as u32, (y1 - y0).max(1.0) as u32);
                let cut = imageops::crop_imm(&whole, x0 as u32, y0 as u32, w, h).to_image();
                jpeg(cut, SIDE).ok()
            });
        found.extend(jpeg.map(|(bytes, ..)| (picture.at.as_millis(), bytes)));
    }
    found
}

/// `GET /visits/{id}/export`: pictures, recording and events as a tar file.
pub(super) async fn export(State(page): Shared, Path(id): Path<i64>) -> Result<Response, Refusal> {
    let approach =
        page.read(move |archive| archive.approach(id)).await?.ok_or(Refusal::NotFound)?;
    let name = format!("pawlatch-visit-{id}.tar");
    Ok(tar_response(&name, super::settings::tar_of(&page, vec![approach.id])))
}

pub(super) fn tar_response(name: &str, body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
    ];
    (headers, body).into_response()
}
