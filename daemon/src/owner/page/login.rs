//! The first run, logging in and out.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::header;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde_json::json;

use super::form::{self, Caller, Refusal, Sent};
use super::{Page, Shared, layout};
use crate::owner::access::{self, Attempt, MIN_PASSWORD};
use crate::owner::words;

/// `GET /login`
pub(super) async fn page(State(page): Shared) -> Response {
    if page.house.access().password_hash().is_none() {
        return Redirect::to("/setup").into_response();
    }
    log_in_page(&page, None).into_response()
}

fn log_in_page(page: &Page, wrong: Option<&str>) -> layout::Answer {
    layout::plain(
        "Log in",
        html! {
            h1 { "Log in" }
            @if let Some(wrong) = wrong { (layout::notice("bad", wrong)) }
            form method="post" action="/login" {
                // Password keepers want to know whose password it is.
                input type="text" name="user" value="owner" autocomplete="username" hidden;
                label for="password" { "Password" }
                input #password type="password" name="password" required autocomplete="current-password" autofocus;
                button .primary type="submit" { "Log in" }
            }
            (plain_http(page))
            p .hint { "Forgotten? Run " code { "pawlatch password" } " on the door itself." }
        },
    )
}

/// What plain HTTP means, said plainly.
fn plain_http(page: &Page) -> Markup {
    let settings = &page.house.settings.page;
    let local = settings.listen.is_some_and(|listen| listen.ip().is_loopback());
    html! {
        @if settings.tls.is_none() && !settings.behind_proxy && !local {
            p .hint {
                "This connection is not encrypted: whoever shares your network can read along. "
                "Set page.certificate_path, or put a proxy in front."
            }
        }
    }
}

/// `POST /login`
pub(super) async fn log_in(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let (house, address) = (&page.house, sent.caller.address);
    let who = format!("page from {address}");
    let hash = {
        let mut access = house.access();
        if let Err(error) = access.refresh() {
            tracing::warn!(%error, "the password file cannot be read again");
        }
        if let Attempt::LockedOut(wait) = access.attempt(address, house.clock.now()) {
            return Err(Refusal::TooMany(wait));
        }
        access.password_hash()
    };
    let Some(hash) = hash else { return Ok(Redirect::to("/setup").into_response()) };
    let password = sent.get_raw("password").to_owned();
    let right = page.hash(move || access::matches(&password, &hash)).await?;
    if !right {
        let lockout = house.access().failed(address, house.clock.now());
        let outcome =
            if lockout.is_some() { "wrong password; locked out" } else { "wrong password" };
        house.audit(&who, "log in", outcome);
        let words = lockout.map_or_else(
            || "That is not the password.".to_owned(),
            |wait| format!("That is not the password. Wait {}.", words::roughly(wait)),
        );
        let page = log_in_page(&page, Some(&words));
        return Ok((axum::http::StatusCode::FORBIDDEN, page).into_response());
    }
    begin_session(&page, &who, &sent.caller)
}

fn begin_session(page: &Page, who: &str, caller: &Caller) -> Result<Response, Refusal> {
    let house = &page.house;
    let secret = house.access().begin_session(caller.address, house.clock.now())?;
    house.audit(who, "log in", "done");
    let cookie = form::set_cookie(Some(&secret), &house.settings.page);
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response())
}

/// `GET /setup`
pub(super) async fn setup_page(State(page): Shared) -> Response {
    if page.house.access().password_hash().is_some() {
        return Redirect::to("/login").into_response();
    }
    set_up_page(&page, None).into_response()
}

fn set_up_page(page: &Page, wrong: Option<&str>) -> layout::Answer {
    let proxied = page.house.settings.page.behind_proxy;
    layout::plain(
        "Welcome",
        html! {
            h1 { "Welcome" }
            @if proxied {
                p {
                    "Behind a proxy anybody could be the first to come here. Set the password on the "
                    "door itself: run " code { "pawlatch password" } ", then reload this page."
                }
            } @else {
                p {
                    "Choose the password for this door. Until then the page can be reached from this "
                    "machine only."
                }
                @if let Some(wrong) = wrong { (layout::notice("bad", wrong)) }
                form method="post" action="/setup" {
                    input type="text" name="user" value="owner" autocomplete="username" hidden;
                    label for="password" { "Password, at least " (MIN_PASSWORD) " characters" }
                    input #password type="password" name="password" required minlength=(MIN_PASSWORD) autocomplete="new-password" autofocus;
                    label for="again" { "The same again" }
                    input #again type="password" name="again" required minlength=(MIN_PASSWORD) autocomplete="new-password";
                    button .primary type="submit" { "Set the password" }
                }
            }
        },
    )
}

/// `POST /setup`: once, and not through a proxy.
pub(super) async fn set_up(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let house = &page.house;
    if house.settings.page.behind_proxy || !sent.caller.address.is_loopback() {
        return Err(Refusal::Scope);
    }
    if house.access().password_hash().is_some() {
        return Err(Refusal::Scope);
    }
    if sent.get_raw("password") != sent.get_raw("again") {
        let wrong = Some("The two passwords differ.");
        return Ok(set_up_page(&page, wrong).into_response());
    }
    let password = sent.get_raw("password").to_owned();
    let hash = match page.hash(move || access::hashed(&password)).await? {
        Ok(hash) => hash,
        Err(error) => {
            return Ok(set_up_page(&page, Some(&sentence(&error.to_string()))).into_response());
        }
    };
    {
        let mut access = house.access();
        // Somebody may have been faster while the password was hashed.
        if access.password_hash().is_some() {
            return Err(Refusal::Scope);
        }
        access.set_password(hash)?;
    }
    house.audit(&sent.caller.who, "set the first password", "done");
    begin_session(&page, &sent.caller.who, &sent.caller)
}

/// An error as a sentence.
pub(super) fn sentence(error: &str) -> String {
    let mut letters = error.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

/// `POST /logout`
pub(super) async fn logout(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    if let Some(session) = &sent.caller.session {
        page.house.access().end_session(session);
    }
    let cookie = form::set_cookie(None, &page.house.settings.page);
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/login")).into_response())
}

/// `POST /ticket`: a fresh ticket for a form that has been open for long. Only a page of ours
/// can ask, and only it can read the answer.
pub(super) async fn ticket(
    State(page): Shared,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Refusal> {
    let ticket = form::ticket(&Arc::clone(&page), &caller)?;
    Ok(Json(json!({ "ticket": ticket })).into_response())
}
