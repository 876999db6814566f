//! The animals of the house: who is known, by which pictures, and who a visit looks like.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use pawlatch_core::frame::Frame;
use pawlatch_core::units::Rect;

use super::form::{Caller, Refusal, Sent};
use super::live::as_jpeg;
use super::login::sentence;
use super::visit::{self, Replay};
use super::{Page, Shared, form, layout};
use crate::journal::StoredApproach;
use crate::models::ModelsDir;
use crate::owner::animals::{self, Added, Animals, MAX_PICTURES, MIN_PICTURES, Recogniser};

/// Pictures of a visit that are looked at to say who it is.
const ASKED: usize = 4;

/// The network that recognises, once it is asked for.
pub(super) type Network = Arc<Mutex<Recogniser>>;

/// `GET /animals`
pub(super) async fn page(
    State(page): Shared,
    Extension(caller): Extension<Caller>,
) -> Result<layout::Answer, Refusal> {
    let dir = page.house.state_dir.clone();
    let animals = page.aside(move || Animals::open(&dir)).await?;
    let known = animals.as_ref().map(|a| a.all.clone()).unwrap_or_default();
    let mut cards = Vec::new();
    for animal in &known {
        let ticket = form::ticket(&page, &caller)?;
        let n = animal.pictures.len();
        cards.push(html! {
            section .card {
                h2 { (animal.name) }
                p {
                    (n) " of at most " (MAX_PICTURES) " pictures. "
                    @if n < MIN_PICTURES { "From " (MIN_PICTURES) " on it can be recognised." }
                }
                div .faces {
                    @for file in &animal.pictures {
                        img src={ "/animals/pictures/" (file) } width="80" height="80" loading="lazy" alt="";
                    }
                }
                form method="post" action="/animals/remove" data-fresh {
                    (layout::ticket(&ticket))
                    input type="hidden" name="name" value=(animal.name);
                    button .danger type="submit" aria-label={ "Forget " (animal.name) } { "Forget" }
                }
            }
        });
    }
    Ok(layout::page(
        "/animals",
        "Animals",
        html! {
            h1 { "Animals" }
            p {
                "Let your dog stand before the camera from several sides, then open its "
                a href="/visits?verdict=let_in" { "visits" }
                " and say who it was. The door then tells you whom a visit looks like. It opens for "
                "dogs, as your rules say, whoever they are: recognising one is shown, not acted on."
            }
            @if let Err(error) = &animals { (layout::notice("bad", &sentence(&error.to_string()))) }
            @if known.is_empty() { p .hint { "Nobody is known yet." } }
            @for card in cards { (card) }
        },
    ))
}

/// `GET /animals/pictures/{file}`
pub(super) async fn picture(
    State(page): Shared,
    Path(file): Path<String>,
) -> Result<Response, Refusal> {
    let dir = page.house.state_dir.clone();
    let bytes = page.aside(move || Animals::open(&dir).ok()?.picture(&file)).await?;
    Ok(as_jpeg(Bytes::from(bytes.ok_or(Refusal::NotFound)?)))
}

/// `POST /animals/remove`
pub(super) async fn remove(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let (dir, name) = (page.house.state_dir.clone(), sent.get("name").to_owned());
    let asked = name.clone();
    let removed = page.aside(move || Animals::open(&dir)?.remove(&asked)).await?;
    match removed {
        Ok(_) => page.house.audit(&sent.caller.who, &format!("forget {name}"), "done"),
        Err(error) => tracing::warn!(%error, "an animal cannot be forgotten"),
    }
    Ok(Redirect::to("/animals").into_response())
}

/// `POST /visits/{id}/enrol`
pub(super) async fn enrol(
    State(page): Shared,
    Path(id): Path<i64>,
    sent: Sent,
) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let name = match sent.get("name") {
        "" => sent.get("new").to_owned(),
        known => known.to_owned(),
    };
    let approach =
        page.read(move |archive| archive.approach(id)).await?.ok_or(Refusal::NotFound)?;
    let models = page.house.linked().ok_or(Refusal::Busy)?.models;
    let (dir, network, asked) =
        (page.house.state_dir.clone(), Arc::clone(&page.network), name.clone());
    let added = page
        .aside(move || {
            let pictures = dogs(&approach, usize::MAX);
            let mut network = network.lock().unwrap_or_else(PoisonError::into_inner);
            Animals::open(&dir)?.add(&asked, &pictures, &mut network, &models)
        })
        .await?;
    let words = match &added {
        Ok(added) => in_words(added),
        Err(error) => sentence(&error.to_string()),
    };
    if added.is_ok() {
        page.house.audit(&sent.caller.who, &format!("visit {id} is {name}"), &words);
    }
    let status = if added.is_ok() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    let shown = layout::page(
        "/animals",
        "Who it was",
        html! {
            h1 { "Who it was" }
            (layout::notice(if added.is_ok() { "good" } else { "bad" }, &words))
            p { a href={ "/visits/" (id) } { "Back to the visit" } " · " a href="/animals" { "All animals" } }
        },
    );
    Ok((status, shown).into_response())
}

fn in_words(added: &Added) -> String {
    let mut words = vec![format!("{} pictures taken.", added.good)];
    let mut left_out = |n: usize, why: &str| {
        if n > 0 {
            words.push(format!("{n} left out: {why}."));
        }
    };
    left_out(added.dark, "too dark; put a light at the door");
    left_out(added.small, "too far away; let the dog come nearer");
    left_out(added.alike, "they show nothing new; let the dog turn");
    left_out(added.enough, "there are enough");
    words.join(" ")
}

/// The pictures of a visit in which a dog was seen, with where.
fn dogs(approach: &StoredApproach, most: usize) -> Vec<(Frame, Rect)> {
    let replay = visit::replayed(approach);
    let seen = replay.as_ref().map_or(&[][..], |replay: &Replay| &replay.sightings);
    let with_dog = approach.pictures.iter().filter_map(|picture| {
        let there = seen.iter().rfind(|s| s.captured_at <= picture.at)?;
        Some((picture, animals::dog(there)?))
    });
    let with_dog: Vec<_> = with_dog.collect();
    let step = with_dog.len().div_ceil(most.max(1)).max(1);
    let some = with_dog.into_iter().step_by(step);
    some.filter_map(|(picture, rect)| Some((visit::stored(picture)?, rect))).collect()
}

/// Whom the visit looks like, and the form to say who it was.
pub(super) async fn section(
    page: &Page,
    approach: &StoredApproach,
    ticket: &str,
) -> Result<Markup, Refusal> {
    let models = page.house.linked().ok_or(Refusal::Busy)?.models;
    let (dir, network) = (page.house.state_dir.clone(), Arc::clone(&page.network));
    let (id, approach) = (approach.id, approach.clone());
    let (known, words) = page.aside(move || look(&dir, &approach, &network, &models)).await?;
    Ok(html! {
        form .card method="post" action={ "/visits/" (id) "/enrol" } data-fresh {
            h2 { "Who was it?" }
            p { (words) }
            (layout::ticket(ticket))
            div .row {
                @if !known.is_empty() {
                    div {
                        label for="animal" { "It was" }
                        select #animal name="name" {
                            option value="" { "another" }
                            @for name in &known { option value=(name) { (name) } }
                        }
                    }
                }
                div .wide {
                    label for="new" { "Name" @if !known.is_empty() { ", if another" } }
                    input #new type="text" name="new" maxlength="30" autocomplete="off";
                }
            }
            button type="submit" { "Remember these pictures" }
        }
    })
}

fn look(
    dir: &std::path::Path,
    approach: &StoredApproach,
    network: &Mutex<Recogniser>,
    models: &ModelsDir,
) -> (Vec<String>, String) {
    let animals = match Animals::open(dir) {
        Ok(animals) => animals,
        Err(error) => return (Vec::new(), sentence(&error.to_string())),
    };
    let names: Vec<String> = animals.all.iter().map(|animal| animal.name.clone()).collect();
    if !animals.all.iter().any(|animal| animal.pictures.len() >= MIN_PICTURES) {
        let words =
            format!("Nobody has the {MIN_PICTURES} pictures yet that it takes to be recognised.");
        return (names, words);
    }
    let pictures = dogs(approach, ASKED);
    if pictures.is_empty() {
        return (names, "No dog was seen in the pictures that are kept.".to_owned());
    }
    let mut network = network.lock().unwrap_or_else(PoisonError::into_inner);
    let words = match animals.recognise(&pictures, &mut network, models) {
        Ok(Some((answer, threshold))) => {
            let figures = format!(
                "likeness {:.2}, {:.2} needed; a strange dog reaches that in at most {:.1} % of cases",
                answer.likeness,
                threshold.likeness,
                100.0 * threshold.false_match_at_most
            );
            match answer.animal.and_then(|n| names.get(n)) {
                Some(name) => format!("It looks like {name} ({figures})."),
                None => format!("An unknown dog ({figures})."),
            }
        }
        Ok(None) => {
            "How well dogs are told apart was not measured for the model in use.".to_owned()
        }
        Err(error) => sentence(&error.to_string()),
    };
    (names, words)
}
