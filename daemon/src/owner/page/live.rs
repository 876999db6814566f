//! The newest picture with what was seen in it, and the stream of what changes.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use pawlatch_core::frame::Frame;
use pawlatch_core::sight::Sightings;
use pawlatch_core::units::Uptime;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::form::Refusal;
use super::{Page, Shared, now};
use crate::overlay::Overlay;
use crate::owner::board::Glance;
use crate::report::{boxes, jpeg};

/// Shortest time between two pictures that are drawn, however many look.
const PICTURE_EVERY: Duration = Duration::from_millis(200);
/// Shortest time between two messages to one browser.
const MESSAGE_EVERY: Duration = Duration::from_millis(400);
/// How long a browser may take to take a message.
const TAKEN_WITHIN: Duration = Duration::from_secs(20);
/// Longest side of the picture, pixels: small, and as large as it comes.
const SMALL: u32 = 480;
const LARGE: u32 = 1_280;

/// The last picture that was drawn, small and large.
#[derive(Debug, Default)]
pub(super) struct Live {
    drawn: Mutex<[Option<(Uptime, Bytes)>; 2]>,
}

/// What can be asked of the picture.
#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    large: Option<String>,
}

/// `GET /live.jpg`
pub(super) async fn picture(
    State(page): Shared,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Refusal> {
    let glance = page.house.board.now().ok_or(Refusal::NotFound)?;
    let frame = glance.frame.clone().ok_or(Refusal::NotFound)?;
    let size = usize::from(wanted.large.is_some());
    let at = frame.captured_at();
    let known = page.live.drawn.lock().unwrap_or_else(PoisonError::into_inner)[size].clone();
    if let Some((drawn_at, bytes)) = known
        && at.since(drawn_at) < PICTURE_EVERY
        && drawn_at <= at
    {
        return Ok(as_jpeg(bytes));
    }
    let bytes = page.aside(move || draw(&frame, &glance, size == 1)).await?;
    let bytes = bytes.ok_or(Refusal::Failed)?;
    page.live.drawn.lock().unwrap_or_else(PoisonError::into_inner)[size] =
        Some((at, bytes.clone()));
    Ok(as_jpeg(bytes))
}

fn draw(frame: &Frame, glance: &Glance, large: bool) -> Option<Bytes> {
    let side = if large { LARGE } else { SMALL };
    with_boxes(frame, glance.sightings.as_ref(), side).map(Bytes::from)
}

/// The frame as a JPEG of at most `side` pixels with boxes around what was seen in it.
pub(super) fn with_boxes(
    frame: &Frame,
    sightings: Option<&Sightings>,
    side: u32,
) -> Option<Vec<u8>> {
    let mut overlay = Overlay::new(frame);
    for seen in sightings.map_or(Vec::new(), boxes) {
        overlay.boxed(seen.rect, seen.class, &seen.label);
    }
    jpeg(overlay.into_picture(), side).ok().map(|(bytes, _, _)| bytes)
}

pub(super) fn as_jpeg(bytes: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "image/jpeg")], bytes).into_response()
}

/// `GET /events`: the state as HTML whenever it changes, and what happens.
pub(super) async fn events(State(page): Shared) -> Response {
    let (messages, stream) = mpsc::channel(4);
    tokio::spawn(tell(Arc::clone(&page), messages));
    let stream = ReceiverStream::new(stream).map(Ok::<_, Infallible>);
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

async fn tell(page: Arc<Page>, messages: mpsc::Sender<Message>) {
    let mut glances = page.house.board.watch();
    let mut last = String::new();
    loop {
        tokio::select! {
            changed = glances.changed() => if changed.is_err() { return },
            () = messages.closed() => return,
        }
        let Some(glance) = page.house.board.now() else { continue };
        let html = now::state(&page, &glance).into_string();
        if html != last {
            // Nothing in it is a line break of its own: a message is one line.
            let message = Message::default().event("now").data(html.replace(['\n', '\r'], " "));
            if messages.send_timeout(message, TAKEN_WITHIN).await.is_err() {
                return;
            }
            last = html;
        }
        tokio::time::sleep(MESSAGE_EVERY).await;
    }
}
