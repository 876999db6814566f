//! Models: which are in use, what was measured of them, adding, choosing and going back.

use std::fs;

use axum::body::Bytes;
use axum::extract::multipart::Multipart;
use axum::extract::{Extension, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use pawlatch_core::frame::Frame;
use pawlatch_core::units::Uptime;
use pawlatch_core::vision::Manifest;

use super::form::{Caller, Refusal, Sent, check_ticket};
use super::live::{as_jpeg, with_boxes};
use super::login::sentence;
use super::{Page, Shared, form, layout};
use crate::journal::Archive;
use crate::models::{Entry, MANIFEST_FILE, ModelsDir, read_limited};
use crate::owner::access::TicketIs;
use crate::owner::house::Link;
use crate::shadow::Counts;

/// Largest upload, bytes.
pub(super) const MAX_UPLOAD: usize = 128 << 20;
/// Disagreements that are shown, and the longest side of their pictures, pixels.
const MAX_SHOWN: usize = 24;
const SHOWN_SIDE: u32 = 480;
/// Largest picture that is read, bytes.
const MAX_PICTURE: u64 = 32 << 20;

/// `GET /models`
pub(super) async fn page(
    State(page): Shared,
    Extension(caller): Extension<Caller>,
) -> Result<layout::Answer, Refusal> {
    show(&page, &caller, html! {}).await
}

async fn show(page: &Page, caller: &Caller, told: Markup) -> Result<layout::Answer, Refusal> {
    let link = page.house.linked().ok_or(Refusal::Busy)?;
    let models = link.models.clone();
    let (entries, in_use, before) =
        page.aside(move || (models.entries(), models.in_use(), models.has_previous())).await?;
    let active: Vec<String> = in_use
        .as_ref()
        .map(|in_use| in_use.entries().map(|e| e.manifest.sha256.clone()).collect())
        .unwrap_or_default();
    let fixed = link.config.models.classifier.is_some() || link.config.models.detector.is_some();
    let back = form::ticket(page, caller)?;
    let mut cards = Vec::new();
    for entry in entries.map_err(|_| Refusal::Failed)? {
        cards.push(match entry {
            Ok(entry) => {
                let chosen = active.contains(&entry.manifest.sha256);
                let ticket = if chosen { String::new() } else { form::ticket(page, caller)? };
                card(&entry.id(), &entry.manifest, chosen, &ticket)
            }
            Err(error) => layout::notice("bad", &sentence(&error.to_string())),
        });
    }
    let beside = beside(page, caller, &link).await?;
    let add = form::ticket(page, caller)?;
    Ok(layout::page(
        "/models",
        "Models",
        html! {
            h1 { "Models" }
            (told)
            @if let Err(error) = &in_use { (layout::notice("bad", &sentence(&error.to_string()))) }
            @if fixed {
                (layout::notice("plain", "The configuration names the models to use, whatever is chosen here: models.classifier and models.detector."))
            }
            @if before {
                form method="post" action="/models/back" data-fresh {
                    (layout::ticket(&back))
                    button type="submit" { "Go back to the models before" }
                }
            }
            @for card in cards { (card) }
            (beside)
            form .card method="post" action="/models/add" enctype="multipart/form-data" {
                h2 { "Add a model" }
                p { "As the trainer makes it: a manifest and its ONNX file. It is verified and run once; it is not used until you say so." }
                (layout::ticket(&add))
                label for="manifest" { "Manifest (" (MANIFEST_FILE) ")" }
                input #manifest type="file" name="manifest" accept=".toml" required;
                label for="onnx" { "Network (.onnx)" }
                input #onnx type="file" name="onnx" accept=".onnx" required;
                button type="submit" { "Add" }
            }
        },
    ))
}

fn card(id: &str, m: &Manifest, in_use: bool, ticket: &str) -> Markup {
    html! {
        section .card {
            h2 { (m.name) " " (m.version) @if in_use { " " span .tag { "in use" } } }
            dl .facts {
                div { dt { "Task" } dd { (m.task) } }
                div { dt { "Licence" } dd { (m.licence) } }
                div { dt { "From" } dd { (m.source) } }
                div { dt { "SHA-256" } dd .hash { (m.sha256) } }
            }
            @if m.metrics.is_empty() {
                p .hint { "Nothing measured is written in its manifest." }
            } @else {
                table {
                    caption { "Measured" }
                    thead { tr { th scope="col" { "Figure" } th .number scope="col" { "Value" } th scope="col" { "On" } } }
                    tbody {
                        @for metric in &m.metrics {
                            tr { td { (metric.name.replace('_', " ")) } td .number { (format!("{:.4}", metric.value)) } td { (metric.data) } }
                        }
                    }
                }
            }
            @if !in_use {
                form method="post" action="/models/use" data-fresh {
                    (layout::ticket(ticket))
                    input type="hidden" name="name" value=(id);
                    p .buttons {
                        button type="submit" aria-label={ "Use it: " (id) } { "Use it" }
                        button type="submit" formaction="/models/shadow" aria-label={ "Let it look on: " (id) } { "Let it look on" }
                    }
                    p .hint { "In use only if it passes the exam: about a minute; one that does worse than what is in use is refused. Looking on it is compared and decides nothing." }
                }
            }
        }
    }
}

/// How the candidate that looks on compares, with the pictures on which it disagrees.
async fn beside(page: &Page, caller: &Caller, link: &Link) -> Result<Markup, Refusal> {
    let (models, dir) = (link.models.clone(), page.house.state_dir.clone());
    let found = page
        .aside(move || {
            let candidate = models.shadow().ok().flatten()?;
            let sha256 = candidate.manifest.sha256.clone();
            let counts = Counts::read(&dir).filter(|counts| counts.candidate == sha256);
            let archive = Archive::open(&dir);
            let shown = archive.and_then(|a| a.disagreements(&sha256, MAX_SHOWN));
            Some((candidate.id(), counts.unwrap_or_default(), shown.unwrap_or_default()))
        })
        .await?;
    let Some((id, counts, shown)) = found else { return Ok(html! {}) };
    let ticket = form::ticket(page, caller)?;
    let percent = |score: f32| format!("{:.0} %", 100.0 * score);
    Ok(html! {
        section .card {
            h2 { (id) " looks on" }
            dl .facts {
                div { dt { "Agreed" } dd { (counts.agreed) } }
                div { dt { "It alone saw a dog" } dd { (counts.more) } }
                div { dt { "It alone saw none" } dd { (counts.less) } }
            }
            @match counts.proposal() {
                Some(p) => p {
                    "Taking the models in use for right, its threshold would be "
                    strong { (percent(p.threshold.get())) } ": " (p.mistaken.0) " of " (p.mistaken.1)
                    " pictures without a dog are at or above it, " (p.missed.0) " of " (p.missed.1)
                    " of a dog below."
                },
                None => p .hint { "Not enough was seen yet to propose a threshold." },
            }
            @if !shown.is_empty() {
                div .film tabindex="0" role="group" aria-label="Where they disagree, newest first" {
                    @for one in &shown {
                        figure {
                            a href={ "/visits/" (one.approach) } {
                                img src={ "/models/shadow/" (one.id) } width="320" height="240" loading="lazy"
                                    alt={ "Dog: in use " (percent(one.in_use_says)) ", looking on " (percent(one.candidate_says)) };
                            }
                            figcaption { "Dog: in use " (percent(one.in_use_says)) ", looking on " (percent(one.candidate_says)) }
                        }
                    }
                }
            }
            form method="post" action="/models/shadow" data-fresh {
                (layout::ticket(&ticket))
                button type="submit" { "No longer look on" }
            }
        }
    })
}

/// `GET /models/shadow/{id}`: the picture of a disagreement.
pub(super) async fn disagreement(
    State(page): Shared,
    UrlPath(id): UrlPath<i64>,
) -> Result<Response, Refusal> {
    let models = page.house.linked().ok_or(Refusal::Busy)?.models;
    let sha256 = page
        .aside(move || models.shadow().ok().flatten().map(|entry| entry.manifest.sha256))
        .await?
        .ok_or(Refusal::NotFound)?;
    let shown = page.read(move |archive| archive.disagreements(&sha256, MAX_SHOWN)).await?;
    let one = shown.into_iter().find(|one| one.id == id).ok_or(Refusal::NotFound)?;
    let drawn = page.aside(move || {
        let bytes = read_limited(&one.path, MAX_PICTURE).ok()?;
        let frame = Frame::decode(bytes, Uptime::ZERO).ok()?;
        with_boxes(&frame, None, SHOWN_SIDE)
    });
    Ok(as_jpeg(Bytes::from(drawn.await?.ok_or(Refusal::NotFound)?)))
}

/// `POST /models/shadow`: lets a model look on, or none.
pub(super) async fn look_on(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let models = page.house.linked().ok_or(Refusal::Busy)?.models;
    let name = Some(sent.get("name").to_owned()).filter(|name| !name.is_empty());
    let asked = name.clone();
    let outcome = page.aside(move || models.put_in_shadow(asked.as_deref())).await?;
    let what = format!("let {} look on", name.as_deref().unwrap_or("no model"));
    answer(&page, &sent.caller, &what, outcome.map_err(|error| error.to_string())).await
}

/// `POST /models/use`
pub(super) async fn put_in_use(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let models = page.house.linked().ok_or(Refusal::Busy)?.models;
    let name = sent.get("name").to_owned();
    let asked = name.clone();
    let outcome = page.aside(move || models.put_in_use(&asked, false, false)).await?;
    let outcome = outcome.map(|_| ()).map_err(|error| error.to_string());
    answer(&page, &sent.caller, &format!("use model {name}"), outcome).await
}

/// `POST /models/back`
pub(super) async fn roll_back(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let models = page.house.linked().ok_or(Refusal::Busy)?.models;
    let outcome = page.aside(move || models.roll_back()).await?;
    let outcome = outcome.map(|_| ()).map_err(|error| error.to_string());
    answer(&page, &sent.caller, "go back to the models before", outcome).await
}

/// `POST /models/add`
pub(super) async fn add(
    State(page): Shared,
    Extension(caller): Extension<Caller>,
    mut upload: Multipart,
) -> Result<Response, Refusal> {
    let (mut manifest, mut onnx, mut ticket) = (None, None, String::new());
    while let Some(field) = upload.next_field().await.map_err(|_| Refusal::Malformed)? {
        let name = field.name().unwrap_or_default().to_owned();
        let bytes = field.bytes().await.map_err(|_| Refusal::Malformed)?;
        match name.as_str() {
            "ticket" => {
                ticket = String::from_utf8_lossy(&bytes).into_owned();
                // Before the large parts are read.
                if check_ticket(&page, &caller, &ticket) != TicketIs::Good {
                    return Err(Refusal::Ticket);
                }
            }
            _ if ticket.is_empty() => return Err(Refusal::Ticket),
            "manifest" => manifest = Some(bytes),
            "onnx" => onnx = Some(bytes),
            _ => return Err(Refusal::Malformed),
        }
    }
    if ticket.is_empty() {
        return Err(Refusal::Ticket);
    }
    let (Some(manifest), Some(onnx)) = (manifest, onnx) else { return Err(Refusal::Malformed) };
    let models = page.house.linked().ok_or(Refusal::Busy)?.models;
    let outcome = page.aside(move || take_in(&models, &manifest, &onnx)).await?;
    answer(&page, &caller, "add a model", outcome).await
}

/// Verifies a model beside the others, then gives it its place.
fn take_in(models: &ModelsDir, manifest: &[u8], onnx: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(manifest).map_err(|_| "the manifest is no text".to_owned())?;
    let parsed = Manifest::parse(text).map_err(|error| error.to_string())?;
    let place = models.root().join(&parsed.name);
    if place.exists() {
        return Err(format!(
            "there is a model {} already; give the new one another name",
            parsed.name
        ));
    }
    let coming = models.root().join(format!(".{}.coming", parsed.name));
    let cannot = |error: std::io::Error| format!("cannot write {}: {error}", coming.display());
    let _ = fs::remove_dir_all(&coming);
    fs::create_dir(&coming).map_err(cannot)?;
    let verified = fs::write(coming.join(MANIFEST_FILE), manifest)
        .and_then(|()| fs::write(coming.join(&parsed.file), onnx))
        .map_err(cannot)
        .and_then(|()| {
            let entry = Entry::open(&coming).map_err(|error| error.to_string())?;
            entry.verify().map_err(|error| error.to_string())?;
            fs::rename(&coming, &place).map_err(cannot)
        });
    if verified.is_err() {
        let _ = fs::remove_dir_all(&coming);
    }
    verified
}

async fn answer(
    page: &Page,
    caller: &Caller,
    what: &str,
    outcome: Result<(), String>,
) -> Result<Response, Refusal> {
    match outcome {
        Ok(()) => {
            page.house.audit(&caller.who, what, "done");
            if !what.starts_with("add") {
                page.house.restart_door();
            }
            Ok(Redirect::to("/models").into_response())
        }
        Err(error) => {
            page.house.audit(&caller.who, what, "refused");
            let told = layout::notice("bad", &format!("Nothing was changed. {}", sentence(&error)));
            let shown = show(page, caller, told).await?;
            Ok((StatusCode::UNPROCESSABLE_ENTITY, shown).into_response())
        }
    }
}
