//! Models: which are in use, what was measured of them, adding, choosing and going back.

use std::fs;
use std::path::Path;

use axum::extract::multipart::Multipart;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use pawlatch_core::vision::Manifest;

use super::form::{Caller, Refusal, Sent, check_ticket};
use super::login::sentence;
use super::{Page, Shared, form, layout};
use crate::models::{ACTIVE_FILE, Entry, InUse, MANIFEST_FILE, ModelsDir};
use crate::owner::access::TicketIs;

/// Largest upload, bytes.
pub(super) const MAX_UPLOAD: usize = 128 << 20;
/// The choice before the last one, in the models directory.
const BEFORE_FILE: &str = "active.toml.before";

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
    let (entries, in_use, before) = page
        .aside(move || {
            let before = models.root().join(BEFORE_FILE).is_file();
            (models.entries(), models.in_use(), before)
        })
        .await?;
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
                card(&entry.manifest, chosen, &ticket)
            }
            Err(error) => layout::notice("bad", &sentence(&error.to_string())),
        });
    }
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

fn card(m: &Manifest, in_use: bool, ticket: &str) -> Markup {
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
                            tr { td { (metric.name.replace('_', " ")) } td .number { (metric.value) } td { (metric.data) } }
                        }
                    }
                }
            }
            @if !in_use {
                form method="post" action="/models/use" data-fresh {
                    (layout::ticket(ticket))
                    input type="hidden" name="name" value=(m.name);
                    button type="submit" aria-label={ "Use it: " (m.name) } { "Use it" }
                }
            }
        }
    }
}

/// `POST /models/use`
pub(super) async fn put_in_use(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let models = page.house.linked().ok_or(Refusal::Busy)?.models;
    let name = sent.get("name").to_owned();
    let asked = name.clone();
    let outcome = page.aside(move || choose(&models, &asked)).await?;
    answer(&page, &sent.caller, &format!("use model {name}"), outcome).await
}

/// Uses a model after it was verified together with what stays in use.
fn choose(models: &ModelsDir, name: &str) -> Result<(), String> {
    let told = |error: crate::models::ModelsError| error.to_string();
    let before = models.in_use().ok().map(|in_use| active_text(&in_use));
    models.put_in_use(name, false).map_err(told)?;
    // The new choice as a whole must load, or the door could not start.
    if let Err(error) = models.in_use().and_then(|in_use| in_use.vision()) {
        if let Some(before) = &before {
            write(&models.root().join(ACTIVE_FILE), before)?;
        }
        return Err(told(error));
    }
    before.map_or(Ok(()), |before| write(&models.root().join(BEFORE_FILE), &before))
}

fn active_text(in_use: &InUse) -> String {
    let line = |key: &str, entry: &Option<Entry>| {
        entry.as_ref().map_or(String::new(), |e| format!("{key} = \"{}\"\n", e.manifest.name))
    };
    line("classifier", &in_use.classifier) + &line("detector", &in_use.detector)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let part = path.with_extension("part");
    fs::write(&part, text)
        .and_then(|()| fs::File::open(&part)?.sync_all())
        .and_then(|()| fs::rename(&part, path))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// `POST /models/back`
pub(super) async fn roll_back(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let models = page.house.linked().ok_or(Refusal::Busy)?.models;
    let outcome = page.aside(move || back(&models)).await?;
    answer(&page, &sent.caller, "go back to the models before", outcome).await
}

/// Takes the choice before; what is chosen now becomes the one before.
fn back(models: &ModelsDir) -> Result<(), String> {
    let (active, before) = (models.root().join(ACTIVE_FILE), models.root().join(BEFORE_FILE));
    let wanted =
        fs::read_to_string(&before).map_err(|_| "there are no models to go back to".to_owned())?;
    let current = models.in_use().ok().map(|in_use| active_text(&in_use));
    write(&active, &wanted)?;
    if let Err(error) = models.in_use().and_then(|in_use| in_use.vision()) {
        if let Some(current) = &current {
            write(&active, current)?;
        }
        return Err(error.to_string());
    }
    current.map_or(Ok(()), |current| write(&before, &current))
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
