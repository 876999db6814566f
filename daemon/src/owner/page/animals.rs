//! The animals of the house: who is known, by which pictures, and who a visit looks like.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Extension, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use pawlatch_core::event::recognised;
use pawlatch_core::frame::Frame;
use pawlatch_core::units::Rect;
use serde::Deserialize;

use super::form::{Caller, Refusal, Sent};
use super::live::as_jpeg;
use super::login::sentence;
use super::visit::{self, Replay};
use super::{Page, Shared, form, layout};
use crate::journal::StoredApproach;
use crate::models::ModelsDir;
use crate::owner::animals::{
    self, Added, Animals, Colour, MAX_PICTURES, MIN_PICTURES, Recogniser, Standing, Worth,
};

/// How long one tap takes pictures of the dog before the camera, and how often.
const TAKES: Duration = Duration::from_secs(10);
const TAKES_EVERY: Duration = Duration::from_millis(600);
/// Pictures of a visit that are looked at to say who it is.
const ASKED: usize = 4;

/// The network that recognises, once it is asked for.
pub(super) type Network = Arc<Mutex<Recogniser>>;

/// `GET /animals`
pub(super) async fn page(
    State(page): Shared,
    Extension(caller): Extension<Caller>,
) -> Result<layout::Answer, Refusal> {
    let link = page.house.linked().ok_or(Refusal::Busy)?;
    let (dir, models) = (page.house.state_dir.clone(), link.models.clone());
    let (animals, standings) = page
        .aside(move || {
            let animals = Animals::open(&dir);
            let in_use = models.in_use();
            let classifier = in_use.ok().and_then(|in_use| in_use.classifier);
            let standings = animals.as_ref().ok().zip(classifier).map(|(a, c)| a.standings(&c));
            (animals, standings.unwrap_or_default())
        })
        .await?;
    let known = animals.as_ref().map(|a| a.all.clone()).unwrap_or_default();
    let mut cards = Vec::new();
    for (n, animal) in known.iter().enumerate() {
        let ticket = form::ticket(&page, &caller)?;
        let paint = form::ticket(&page, &caller)?;
        cards.push(html! {
            section .card {
                h2 { (coat(animal.colour)) (animal.name) }
                p { (animal.pictures.len()) " of at most " (MAX_PICTURES) " pictures. " (standing(standings.get(n))) }
                div .faces {
                    @for file in &animal.pictures {
                        img src={ "/animals/pictures/" (file) } width="80" height="80" loading="lazy" alt="";
                    }
                }
                form .inline method="post" action="/animals/paint" data-fresh {
                    (layout::ticket(&paint))
                    input type="hidden" name="name" value=(animal.name);
                    label for={ "colour-" (n) } { "Colour" }
                    select id={ "colour-" (n) } name="colour" {
                        @for colour in Colour::ALL {
                            option value=(colour.name()) selected[colour == animal.colour] { (colour.name()) }
                        }
                    }
                    button type="submit" aria-label={ "Mark it so: " (animal.name) } { "Mark it so" }
                }
                form method="post" action="/animals/remove" data-fresh {
                    (layout::ticket(&ticket))
                    input type="hidden" name="name" value=(animal.name);
                    button .danger type="submit" aria-label={ "Forget " (animal.name) } { "Forget" }
                }
            }
        });
    }
    let again = if standings.contains(&Standing::Again) {
        let ticket = form::ticket(&page, &caller)?;
        html! {
            form .notice .bad method="post" action="/animals/again" data-fresh {
                p { "The model in use is not the one that these animals were enrolled with: until they are enrolled again, every dog is an unknown one." }
                (layout::ticket(&ticket))
                button type="submit" { "Enrol their pictures again" }
            }
        }
    } else {
        html! {}
    };
    let take = form::ticket(&page, &caller)?;
    let told_apart = link.config.policy.tells_dogs_apart();
    Ok(layout::page(
        "/animals",
        "Animals",
        html! {
            h1 { "Animals" }
            p {
                "Let your dog stand before the camera from several sides, here or on a "
                a href="/visits?verdict=let_in" { "visit" }
                ", and say who it is. "
                @if told_apart {
                    "Your " a href="/rules" { "rules" } " tell dogs apart, so the door acts on it: a dog that it is not sure of is an unknown one."
                } @else {
                    "The door then tells you whom a visit looks like. It lets every dog in as the "
                    a href="/rules" { "rules" } " say, until one of them names an animal."
                }
            }
            @if let Err(error) = &animals { (layout::notice("bad", &sentence(&error.to_string()))) }
            (again)
            @if known.is_empty() { p .hint { "Nobody is known yet." } }
            @for card in cards { (card) }
            form .card method="post" action="/animals/take" data-fresh {
                h2 { "Stand it before the camera" }
                figure .live { img #live src="/live.jpg" width="480" height="360" alt="The newest picture from the camera"; }
                p #aid data-aid role="status" { "Too dark, too far away, good: is told here while this page is open." }
                (layout::ticket(&take))
                (name_fields(known.iter().map(|animal| animal.name.as_str())))
                button type="submit" { "Take pictures for " (TAKES.as_secs()) " seconds" }
            }
        },
    ))
}

/// The mark of an animal beside its name.
pub(super) fn coat(colour: Colour) -> Markup {
    html! { span .coat .(colour.name()) aria-hidden="true" {} }
}

const fn standing(standing: Option<&Standing>) -> &'static str {
    match standing {
        Some(Standing::Known) => "It can be recognised.",
        Some(Standing::TooFew) => "From 10 on it can be recognised.",
        Some(Standing::Again) => "It must be enrolled again.",
        Some(Standing::Unmeasured) => {
            "How well the model in use tells dogs apart was not measured, so nobody is recognised."
        }
        None => "No classifier is in use.",
    }
}

/// Which animal it is: a known one, or another with a name.
fn name_fields<'a>(known: impl Iterator<Item = &'a str>) -> Markup {
    let known: Vec<&str> = known.collect();
    html! {
        div .row {
            @if !known.is_empty() {
                div {
                    label for="animal" { "It is" }
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
    }
}

/// The name that [`name_fields`] sent.
fn name_of(sent: &Sent) -> String {
    match sent.get("name") {
        "" => sent.get("new").trim().to_owned(),
        known => known.to_owned(),
    }
}

/// The dog before the camera now.
fn dog_now(page: &Page) -> Option<(Frame, Rect)> {
    let glance = page.house.board.now()?;
    let rect = animals::dog(glance.sightings.as_ref()?)?;
    Some((glance.frame.clone()?, rect))
}

/// What can be asked of the aid.
#[derive(Debug, Deserialize)]
pub(super) struct For {
    #[serde(default)]
    name: String,
}

/// `GET /animals/aid`: what the newest picture would be worth, in a few words.
pub(super) async fn aid(State(page): Shared, Query(asked): Query<For>) -> Result<String, Refusal> {
    let Some((frame, rect)) = dog_now(&page) else {
        return Ok("No dog is seen before the camera.".to_owned());
    };
    let models = page.house.linked().ok_or(Refusal::Busy)?.models;
    let (dir, network) = (page.house.state_dir.clone(), Arc::clone(&page.network));
    let worth = page.aside(move || {
        let mut network = network.lock().unwrap_or_else(PoisonError::into_inner);
        Animals::open(&dir)?.worth(&asked.name, &frame, rect, &mut network, &models)
    });
    Ok(match worth.await? {
        Ok(worth) => advice(worth).to_owned(),
        Err(error) => sentence(&error.to_string()),
    })
}

const fn advice(worth: Worth) -> &'static str {
    match worth {
        Worth::Good => "Good.",
        Worth::Dark => "Too dark: put a light at the door.",
        Worth::Small => "Too far away: let the dog come nearer.",
        Worth::Alike => "This side is known: let the dog turn.",
        Worth::Enough => "There are enough pictures.",
    }
}

/// `POST /animals/take`: pictures of the dog before the camera for a while.
pub(super) async fn take(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let name = name_of(&sent);
    let mut pictures: Vec<(Frame, Rect)> = Vec::new();
    let until = tokio::time::Instant::now() + TAKES;
    while tokio::time::Instant::now() < until && pictures.len() < MAX_PICTURES {
        if let Some((frame, rect)) = dog_now(&page)
            && pictures.last().is_none_or(|(last, _)| last.captured_at() < frame.captured_at())
        {
            pictures.push((frame, rect));
        }
        tokio::time::sleep(TAKES_EVERY).await;
    }
    let what = format!("pictures of {name}");
    remember(&page, &sent, &what, name, move || pictures, html! {}).await
}

/// `POST /animals/again`: enrols every picture with the model in use.
pub(super) async fn again(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let models = page.house.linked().ok_or(Refusal::Busy)?.models;
    let (dir, network) = (page.house.state_dir.clone(), Arc::clone(&page.network));
    let outcome = page
        .aside(move || {
            let mut network = network.lock().unwrap_or_else(PoisonError::into_inner);
            Animals::open(&dir)?.enrol_again(&mut network, &models)
        })
        .await?;
    match outcome {
        Ok(()) => {
            page.house.audit(&sent.caller.who, "enrol all animals again", "done");
            known_anew(&page);
        }
        Err(error) => tracing::warn!(%error, "the animals cannot be enrolled again"),
    }
    Ok(Redirect::to("/animals").into_response())
}

/// Has the door take over who is known, if its rules depend on it.
fn known_anew(page: &Page) {
    if page.house.linked().is_some_and(|link| link.config.policy.tells_dogs_apart()) {
        page.house.restart_door();
    }
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
        Ok(_) => {
            page.house.audit(&sent.caller.who, &format!("forget {name}"), "done");
            known_anew(&page);
        }
        Err(error) => tracing::warn!(%error, "an animal cannot be forgotten"),
    }
    Ok(Redirect::to("/animals").into_response())
}

/// `POST /animals/paint`
pub(super) async fn paint(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let (dir, name) = (page.house.state_dir.clone(), sent.get("name").to_owned());
    let wanted = sent.get("colour");
    let colour = Colour::ALL.into_iter().find(|colour| colour.name() == wanted);
    let colour = colour.ok_or(Refusal::NotFound)?;
    let painted = page.aside(move || Animals::open(&dir)?.paint(&name, colour)).await?;
    if let Err(error) = painted {
        tracing::warn!(%error, "the colour of an animal cannot be kept");
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
    let name = name_of(&sent);
    let approach =
        page.read(move |archive| archive.approach(id)).await?.ok_or(Refusal::NotFound)?;
    let back = html! { a href={ "/visits/" (id) } { "Back to the visit" } " · " };
    let what = format!("visit {id} is {name}");
    remember(&page, &sent, &what, name, move || dogs(&approach, usize::MAX), back).await
}

/// Adds pictures to an animal and says what became of them.
async fn remember(
    page: &Page,
    sent: &Sent,
    what: &str,
    name: String,
    pictures: impl FnOnce() -> Vec<(Frame, Rect)> + Send + 'static,
    back: Markup,
) -> Result<Response, Refusal> {
    let models = page.house.linked().ok_or(Refusal::Busy)?.models;
    let (dir, network) = (page.house.state_dir.clone(), Arc::clone(&page.network));
    let added = page
        .aside(move || {
            let pictures = pictures();
            let mut network = network.lock().unwrap_or_else(PoisonError::into_inner);
            Animals::open(&dir)?.add(&name, &pictures, &mut network, &models)
        })
        .await?;
    let words = match &added {
        Ok(added) => in_words(added),
        Err(error) => sentence(&error.to_string()),
    };
    if added.is_ok() {
        page.house.audit(&sent.caller.who, what, &words);
    }
    if added.as_ref().is_ok_and(|added| added.good > 0) {
        known_anew(page);
    }
    let status = if added.is_ok() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    let shown = layout::page(
        "/animals",
        "Who it was",
        html! {
            h1 { "Who it was" }
            (layout::notice(if added.is_ok() { "good" } else { "bad" }, &words))
            p { (back) a href="/animals" { "All animals" } }
        },
    );
    Ok((status, shown).into_response())
}

fn in_words(added: &Added) -> String {
    if *added == Added::default() {
        return "No dog was seen.".to_owned();
    }
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
            (name_fields(known.iter().map(String::as_str)))
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
        Ok(Some(looks)) => format!(
            "It {}; a strange dog reaches that in at most {:.1} % of cases.",
            match looks.animals[..] {
                [] => format!("is {}", recognised(&[], looks.likeness, looks.threshold.likeness)),
                _ => recognised(&looks.animals, looks.likeness, looks.threshold.likeness),
            },
            100.0 * looks.threshold.false_match_at_most
        ),
        Ok(None) => "Nobody can be recognised with the model in use; Animals says why.".to_owned(),
        Err(error) => sentence(&error.to_string()),
    };
    (names, words)
}
