//! The password, tokens of programs, what is recorded, and who did what.

use std::io::{self, Write};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::form::{Caller, Refusal, Sent};
use super::login::sentence;
use super::visit::{self, tar_response};
use super::{Page, Shared, form, layout};
use crate::journal::{Archive, Note};
use crate::models::read_limited;
use crate::owner::access::{self, MIN_PASSWORD, Scope};

/// Lines of the audit trail that are shown.
const SHOWN: usize = 50;
/// What must be typed for everything to be erased.
const ERASE: &str = "erase";
/// Largest file that is exported, bytes.
const MAX_FILE: u64 = 256 << 20;

/// `GET /settings`
pub(super) async fn page(
    State(page): Shared,
    Extension(caller): Extension<Caller>,
) -> Result<layout::Answer, Refusal> {
    show(&page, &caller, html! {}).await
}

async fn show(page: &Page, caller: &Caller, told: Markup) -> Result<layout::Answer, Refusal> {
    let audit = page.read(|archive| archive.audit(SHOWN)).await.unwrap_or_default();
    let mut tokens = Vec::new();
    for token in page.house.access().tokens().to_vec() {
        tokens.push(token);
    }
    let mut revoke = Vec::new();
    for _ in &tokens {
        revoke.push(form::ticket(page, caller)?);
    }
    let ticket = || form::ticket(page, caller);
    Ok(layout::page(
        "/settings",
        "Settings",
        html! {
            h1 { "Settings" }
            (told)
            form .card method="post" action="/settings/password" data-fresh {
                h2 { "Password" }
                (layout::ticket(&ticket()?))
                input type="text" name="user" value="owner" autocomplete="username" hidden;
                label for="old" { "The password now" }
                input #old type="password" name="old" required autocomplete="current-password";
                label for="new" { "The new one, at least " (MIN_PASSWORD) " characters" }
                input #new type="password" name="new" required minlength=(MIN_PASSWORD) autocomplete="new-password";
                button type="submit" { "Change it" }
                p .hint { "Everybody is logged out then, you too." }
            }
            section .card {
                h2 { "Tokens for programs" }
                p { "A program shows its token as " code { "Authorization: Bearer …" } ". " a href="/api/openapi.json" { "What programs can ask (OpenAPI)" } }
                @if tokens.is_empty() { p .hint { "There are none." } }
                ul .list {
                    @for (token, ticket) in tokens.iter().zip(&revoke) {
                        li {
                            form .inline method="post" action="/settings/tokens/revoke" data-fresh {
                                (layout::ticket(ticket))
                                input type="hidden" name="name" value=(token.name);
                                span { strong { (token.name) } " may " (may(token.scope)) }
                                button type="submit" aria-label={ "Revoke " (token.name) } { "Revoke" }
                            }
                        }
                    }
                }
                form method="post" action="/settings/tokens" data-fresh {
                    (layout::ticket(&ticket()?))
                    div .row {
                        div .wide { label for="name" { "Name" } input #name type="text" name="name" required maxlength="40" autocomplete="off"; }
                        div {
                            label for="scope" { "May" }
                            select #scope name="scope" {
                                @for scope in [Scope::Read, Scope::Open, Scope::Admin] { option value=(scope.name()) { (may(scope)) } }
                            }
                        }
                    }
                    button type="submit" { "Make a token" }
                }
            }
            section .card {
                h2 { "What is recorded" }
                p { "Pictures and events stay on this machine. Nothing is sent anywhere unless you configure messages or a broker." }
                p { a href="/export.tar" download { "Export everything (tar)" } }
            p {
                a href="/dataset.tar" download { "Export what you labelled, for the trainer (tar)" }
                ": a folder for each class, as the trainer reads it."
            }
                form method="post" action="/settings/wipe" data-fresh {
                    (layout::ticket(&ticket()?))
                    label for="word" { "To erase all visits, pictures and recordings for good, type " strong { (ERASE) } }
                    input #word type="text" name="word" autocomplete="off" autocapitalize="none";
                    button .danger type="submit" { "Erase" }
                }
            }
            section .card {
                h2 { "Who did what" }
                @if audit.is_empty() { p .hint { "Nothing yet." } }
                table {
                    caption .sr { "The audit trail, newest first" }
                    thead { tr { th scope="col" { "When (UTC)" } th scope="col" { "Who" } th scope="col" { "What" } th scope="col" { "Outcome" } } }
                    tbody {
                        @for line in &audit {
                            tr { td .time { (line.wall.get(..19).unwrap_or(&line.wall).replace('T', " ")) } td { (line.audit.who) } td { (line.audit.what.replace('_', " ")) } td { (line.audit.outcome) } }
                        }
                    }
                }
            }
            form method="post" action="/logout" data-fresh {
                (layout::ticket(&ticket()?))
                button type="submit" { "Log out" }
            }
        },
    ))
}

const fn may(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "look",
        Scope::Open => "look, lock and unlock",
        Scope::Admin => "do everything",
    }
}

async fn refused(page: &Page, caller: &Caller, words: &str) -> Result<Response, Refusal> {
    let shown = show(page, caller, layout::notice("bad", words)).await?;
    Ok((StatusCode::UNPROCESSABLE_ENTITY, shown).into_response())
}

/// `POST /settings/password`
pub(super) async fn password(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let (house, address) = (&page.house, sent.caller.address);
    let known = {
        let mut access = house.access();
        // Whoever found an open session must not try out passwords with it either.
        if let access::Attempt::LockedOut(wait) = access.attempt(address, house.clock.now()) {
            return Err(Refusal::TooMany(wait));
        }
        access.password_hash().ok_or(Refusal::Unknown)?
    };
    let (old, new) = (sent.get_raw("old").to_owned(), sent.get_raw("new").to_owned());
    let outcome =
        page.hash(move || access::matches(&old, &known).then(|| access::hashed(&new))).await?;
    match outcome {
        None => {
            house.access().failed(address, house.clock.now());
            house.audit(&sent.caller.who, "change the password", "wrong password");
            refused(&page, &sent.caller, "That is not the password. Nothing was changed.").await
        }
        Some(Err(error)) => refused(&page, &sent.caller, &sentence(&error.to_string())).await,
        Some(Ok(hash)) => {
            house.access().set_password(hash)?;
            house.audit(&sent.caller.who, "change the password", "done");
            Ok(Redirect::to("/login").into_response())
        }
    }
}

/// `POST /settings/tokens`: the only time the secret is shown.
pub(super) async fn add_token(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let scope = Scope::named(sent.get("scope")).ok_or(Refusal::Malformed)?;
    let name = sent.get("name");
    let made = page.house.access().add_token(name, scope);
    match made {
        Ok(secret) => {
            let what = format!("make token {name} ({})", scope.name());
            page.house.audit(&sent.caller.who, &what, "done");
            Ok(layout::page(
                "/settings",
                "A new token",
                html! {
                    h1 { "A new token" }
                    p { "Copy it now: it is not kept, and not shown again." }
                    p { label for="token" { "Token " (name) } }
                    textarea #token .secret rows="2" readonly { (secret) }
                    p { a href="/settings" { "Done" } }
                },
            )
            .into_response())
        }
        Err(error) => refused(&page, &sent.caller, &sentence(&error.to_string())).await,
    }
}

/// `POST /settings/tokens/revoke`
pub(super) async fn revoke_token(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    let name = sent.get("name");
    if page.house.access().revoke_token(name)? {
        page.house.audit(&sent.caller.who, &format!("revoke token {name}"), "done");
    }
    Ok(Redirect::to("/settings").into_response())
}

/// `POST /settings/wipe`
pub(super) async fn wipe(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let sent = sent.checked()?;
    if sent.get("word") != ERASE {
        let words = format!("Nothing was erased: the word is “{ERASE}”.");
        return refused(&page, &sent.caller, &words).await;
    }
    if !page.house.record(Note::Wipe) {
        return Err(Refusal::Busy);
    }
    page.house.audit(&sent.caller.who, "erase everything recorded", "done");
    tokio::time::sleep(Duration::from_millis(300)).await;
    Ok(Redirect::to("/visits").into_response())
}

/// `GET /export.tar`
pub(super) async fn export(State(page): Shared) -> Result<Response, Refusal> {
    let ids = page
        .read(|archive| {
            Ok(archive.approaches(usize::MAX)?.iter().map(|a| a.id).collect::<Vec<_>>())
        })
        .await?;
    Ok(tar_response("pawlatch-export.tar", tar_of(&page, ids)))
}

/// The visits `ids` as a tar file, made while it is read: `visits/ID/events.jsonl` beside the
/// pictures and the recording.
pub(super) fn tar_of(page: &Page, ids: Vec<i64>) -> Body {
    let (pieces, stream) = mpsc::channel::<io::Result<Bytes>>(4);
    let dir = page.house.state_dir.clone();
    tokio::task::spawn_blocking(move || {
        let failed = pieces.clone();
        if let Err(error) = write_tar(&dir, &ids, Pieces(pieces)) {
            tracing::warn!(%error, "the export ended early");
            // So that the browser does not take it for whole.
            let _ = failed.blocking_send(Err(io::Error::other("ended early")));
        }
    });
    Body::from_stream(ReceiverStream::new(stream))
}

fn write_tar(dir: &std::path::Path, ids: &[i64], to: Pieces) -> io::Result<()> {
    let other = |error: crate::journal::JournalError| io::Error::other(error.to_string());
    let archive = Archive::open(dir).map_err(other)?;
    let mut tar = tar::Builder::new(to);
    for id in ids {
        // Evicted or erased meanwhile: left out.
        let Some(approach) = archive.approach(*id).map_err(other)? else { continue };
        let mut lines = String::new();
        for event in archive.events_of(*id).map_err(other)? {
            let line = serde_json::json!({
                "wall": event.wall, "event": event.event, "words": event.event.to_string(),
            });
            lines.push_str(&format!("{line}\n"));
        }
        if let Some(class) = approach.label {
            lines.push_str(&format!("{}\n", serde_json::json!({ "label": class })));
        }
        append(&mut tar, &format!("visits/{id}/events.jsonl"), lines.as_bytes())?;
        for path in approach.pictures.iter().map(|p| &p.path).chain(&approach.recording) {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            let (Some(name), Ok(bytes)) = (name, read_limited(path, MAX_FILE)) else { continue };
            append(&mut tar, &format!("visits/{id}/{name}"), &bytes)?;
        }
    }
    tar.into_inner().map(drop)
}

/// `GET /dataset.tar`: the pictures of labelled visits as the trainer reads them, a folder for each
/// class: the animal cut out, or the whole picture where nothing was there.
pub(super) async fn dataset(State(page): Shared) -> Result<Response, Refusal> {
    let labelled = page
        .read(|archive| {
            let mut all = archive.approaches(usize::MAX)?;
            all.retain(|approach| approach.label.is_some());
            Ok(all)
        })
        .await?;
    let (pieces, stream) = mpsc::channel::<io::Result<Bytes>>(4);
    tokio::task::spawn_blocking(move || {
        let failed = pieces.clone();
        let mut tar = tar::Builder::new(Pieces(pieces));
        let mut write = || -> io::Result<()> {
            for approach in &labelled {
                let Some(class) = approach.label else { continue };
                for (at, jpeg) in visit::examples(approach, class) {
                    let name = format!("dataset/{}/visit-{}-{at}.jpg", class.name(), approach.id);
                    append(&mut tar, &name, &jpeg)?;
                }
            }
            tar.finish()
        };
        if let Err(error) = write() {
            tracing::warn!(%error, "the export ended early");
            let _ = failed.blocking_send(Err(io::Error::other("ended early")));
        }
    });
    Ok(tar_response("pawlatch-dataset.tar", Body::from_stream(ReceiverStream::new(stream))))
}

fn append(tar: &mut tar::Builder<Pieces>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, name, bytes)
}

/// Hands on what is written, piece by piece; fails when nobody reads any more.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(64 << 10)];
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(piece)));
        sent.map(|()| piece.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
