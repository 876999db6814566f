//! Messages about visits and faults, to ntfy and to a webhook.
//!
//! What is told when is decided by [`Desk`], which knows no clock and no network. Sending happens
//! on this thread; whoever is slow to take a message only delays the next ones, of which a
//! limited number waits.

use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::civil::{Date, Time};
use jiff::{Timestamp, ZonedDateTime};
use pawlatch_core::event::{Event, Fault, Verdict, What};
use pawlatch_core::frame::Frame;
use serde_json::json;
use tokio::sync::broadcast::error::TryRecvError;
use ureq::Agent;

use super::board::News;
use super::house::House;
use super::settings::{NotifySettings, Told, Url};
use super::words::{self, Visit};
use crate::report::jpeg;

/// Messages that may wait; the oldest go first.
const WAITING: usize = 16;
/// Visits that are kept back over the quiet hours.
const HELD: usize = 50;
/// Attempts at one message, and the pause after each.
const PAUSES: [Duration; 3] =
    [Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(60)];
/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Longest side of the picture, pixels.
const SIDE: u32 = 640;

/// A message on its way.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// What it says.
    pub words: String,
    /// What kind: a verdict, `fault`, `quiet` or `digest`.
    pub kind: String,
    /// Whether somebody should look at once.
    pub urgent: bool,
    /// A JPEG.
    pub picture: Option<Vec<u8>>,
}

/// Decides what is told when.
#[derive(Debug)]
pub struct Desk {
    settings: NotifySettings,
    held: Vec<String>,
    counts: [u32; 4],
    was_quiet: bool,
    digested: Option<Date>,
}

impl Desk {
    /// A desk that begins at `now`.
    pub fn new(settings: NotifySettings, now: &ZonedDateTime) -> Self {
        let mut desk =
            Self { settings, held: Vec::new(), counts: [0; 4], was_quiet: false, digested: None };
        desk.was_quiet = desk.is_quiet(now);
        // A summary that was due before the start is not made up for.
        desk.digested = desk.settings.digest_at.filter(|at| now.time() >= *at).map(|_| now.date());
        desk
    }

    fn is_quiet(&self, now: &ZonedDateTime) -> bool {
        let within = |from: Time, to: Time, at: Time| {
            if from <= to { from <= at && at < to } else { from <= at || at < to }
        };
        self.settings.quiet.is_some_and(|(from, to)| within(from, to, now.time()))
    }

    /// A visit is over.
    pub fn visit(
        &mut self,
        visit: &Visit,
        picture: Option<Vec<u8>>,
        now: &ZonedDateTime,
    ) -> Option<Message> {
        let verdict = visit.verdict?;
        let n = match verdict {
            Verdict::LetIn => 0,
            Verdict::KeptShut => 1,
            Verdict::Nobody => 2,
            Verdict::Overruled => 3,
        };
        self.counts[n] += 1;
        if !self.settings.what.contains(&Told::Visit(verdict)) {
            return None;
        }
        let words = visit.sentence(&now.time_zone().clone());
        if self.is_quiet(now) {
            if self.held.len() < HELD {
                self.held.push(words);
            }
            return None;
        }
        let kind = ["let_in", "kept_shut", "nobody", "overruled"][n].to_owned();
        Some(Message { words, kind, urgent: false, picture })
    }

    /// A fault was raised, or is gone. Told at once, in quiet hours too: the door is shut.
    pub fn fault(&self, cause: Fault, raised: bool) -> Option<Message> {
        if !self.settings.what.contains(&Told::Fault) {
            return None;
        }
        let words = if raised {
            format!("Out of order: {}", cause.describe())
        } else {
            format!("In service again; it was: {}", words::short(cause))
        };
        Some(Message { words, kind: "fault".to_owned(), urgent: raised, picture: None })
    }

    /// Time passes: what was held over the quiet hours, and the summary of the day.
    pub fn tick(&mut self, now: &ZonedDateTime) -> Vec<Message> {
        let mut due = Vec::new();
        let quiet = self.is_quiet(now);
        if self.was_quiet && !quiet && !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            let words = format!("In the quiet hours:\n{}", held.join("\n"));
            due.push(Message { words, kind: "quiet".to_owned(), urgent: false, picture: None });
        }
        self.was_quiet = quiet;
        if let Some(at) = self.settings.digest_at
            && now.time() >= at
            && self.digested != Some(now.date())
        {
            self.digested = Some(now.date());
            let [let_in, kept_shut, nobody, overruled] = std::mem::take(&mut self.counts);
            let words = format!(
                "Since the last summary: let in {let_in}, kept shut {kept_shut}, nobody {nobody}, \
                 not decided by the camera {overruled}"
            );
            due.push(Message { words, kind: "digest".to_owned(), urgent: false, picture: None });
        }
        due
    }
}

/// Tells, until the thread ends.
pub(super) fn run(house: &Arc<House>) {
    let settings = house.settings.notify.clone();
    let agent: Agent = Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .max_redirects(0)
        .http_status_as_error(true)
        .build()
        .into();
    let zoned = || Timestamp::now().to_zoned_datetime(house.time_zone());
    let mut desk = Desk::new(settings.clone(), &zoned());
    let mut waiting: VecDeque<(Message, usize)> = VecDeque::new();
    let mut next_try = Instant::now();
    let mut news = house.board.news();
    loop {
        let mut due = desk.tick(&zoned());
        loop {
            match news.try_recv() {
                Ok(told) => due.extend(message(&mut desk, told, &settings, &zoned())),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Closed) => return,
            }
        }
        for message in due {
            if waiting.len() >= WAITING {
                waiting.pop_front();
                tracing::warn!("messages pile up; the oldest is lost");
            }
            waiting.push_back((message, 0));
        }
        if Instant::now() >= next_try
            && let Some((message, tries)) = waiting.pop_front()
            && let Err(error) = send(&agent, &settings, &message)
        {
            // The error may name the address, which may be a secret.
            let error = error.to_string();
            let reason = error.split("http").next().unwrap_or_default().to_owned();
            tracing::warn!(kind = message.kind, tries, reason, "a message cannot be sent");
            if let Some(pause) = PAUSES.get(tries) {
                next_try = Instant::now() + *pause;
                waiting.push_front((message, tries + 1));
            }
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn message(
    desk: &mut Desk,
    told: News,
    settings: &NotifySettings,
    now: &ZonedDateTime,
) -> Option<Message> {
    match told {
        News::Visit { visit, picture } => {
            let picture = picture.filter(|_| settings.pictures).and_then(|frame| drawn(&frame));
            desk.visit(&visit, picture, now)
        }
        News::Event { event: Event { what: What::FaultRaised { cause }, .. }, .. } => {
            desk.fault(cause, true)
        }
        News::Event { event: Event { what: What::FaultCleared { cause }, .. }, .. } => {
            desk.fault(cause, false)
        }
        News::Event { .. } => None,
    }
}

fn drawn(frame: &Frame) -> Option<Vec<u8>> {
    let pixels = frame.pixels().to_vec();
    let picture = image::RgbImage::from_raw(frame.width(), frame.height(), pixels)?;
    jpeg(picture, SIDE).ok().map(|(bytes, ..)| bytes)
}

/// Sends to both places; the first error counts, but both are tried.
fn send(agent: &Agent, settings: &NotifySettings, message: &Message) -> Result<(), ureq::Error> {
    let token = settings.token_path.as_deref().map(fs::read_to_string).transpose()?;
    let token = token.as_deref().map(str::trim);
    let to_ntfy = settings.ntfy.as_ref().map_or(Ok(()), |url| ntfy(agent, url, token, message));
    let to_hook =
        settings.webhook.as_ref().map_or(Ok(()), |url| webhook(agent, url, token, message));
    to_ntfy.and(to_hook)
}

fn ntfy(
    agent: &Agent,
    url: &Url,
    token: Option<&str>,
    message: &Message,
) -> Result<(), ureq::Error> {
    let mut request = agent
        .put(url.reveal())
        .header("Title", "Pawlatch")
        .header("Priority", if message.urgent { "high" } else { "default" })
        .header("Tags", if message.urgent { "warning" } else { "feet" });
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    match &message.picture {
        Some(picture) => request
            .header("Filename", "visit.jpg")
            .header("Message", message.words.replace('\n', "\\n"))
            .send(&picture[..])?,
        None => request.send(&message.words)?,
    };
    Ok(())
}

fn webhook(
    agent: &Agent,
    url: &Url,
    token: Option<&str>,
    message: &Message,
) -> Result<(), ureq::Error> {
    let body = json!({
        "from": "pawlatch",
        "kind": message.kind,
        "words": message.words,
        "urgent": message.urgent,
        "picture_jpeg_base64": message.picture.as_ref().map(|p| STANDARD.encode(p)),
    });
    let mut request = agent.post(url.reveal()).header("Content-Type", "application/json");
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    request.send(body.to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk(settings: NotifySettings, now: &str) -> Desk {
        let what = vec![Told::Visit(Verdict::KeptShut), Told::Fault];
        Desk::new(NotifySettings { what, ..settings }, &at(now))
    }

    fn at(text: &str) -> ZonedDateTime {
        format!("2026-03-01T{text}[Europe/Berlin]").parse().unwrap()
    }

    fn visit(verdict: Verdict) -> Visit {
        let began = at("07:42:00").timestamp();
        Visit { began, verdict: Some(verdict), events: Vec::new(), goes_on: false }
    }

    fn quiet() -> NotifySettings {
        let time = |text: &str| text.parse::<Time>().unwrap();
        NotifySettings { quiet: Some((time("22:00"), time("06:30"))), ..NotifySettings::default() }
    }

    #[test]
    fn what_is_wanted_is_told_and_nothing_else() {
        let mut desk = desk(NotifySettings::default(), "12:00");
        let told = desk.visit(&visit(Verdict::KeptShut), Some(vec![1]), &at("12:01")).unwrap();
        assert!(told.words.starts_with("Kept shut at 07:42") && told.picture.is_some());
        assert_eq!(desk.visit(&visit(Verdict::LetIn), None, &at("12:02")), None);
    }

    #[test]
    fn quiet_hours_hold_visits_but_not_faults() {
        let mut desk = desk(quiet(), "21:59");
        assert!(desk.visit(&visit(Verdict::KeptShut), None, &at("21:59:59")).is_some());
        assert_eq!(desk.tick(&at("22:00")), []);
        assert_eq!(desk.visit(&visit(Verdict::KeptShut), None, &at("22:00")), None);
        assert_eq!(desk.visit(&visit(Verdict::KeptShut), None, &at("05:00")), None);
        assert!(desk.fault(Fault::LatchJammed, true).unwrap().urgent);
        assert_eq!(desk.tick(&at("06:29:59")), []);
        let told = desk.tick(&at("06:30"));
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].words.lines().count(), 3, "{told:?}");
        assert_eq!(desk.tick(&at("06:31")), []);
    }

    #[test]
    fn what_is_held_has_a_limit() {
        let mut desk = desk(quiet(), "23:00");
        for _ in 0..10_000 {
            desk.visit(&visit(Verdict::KeptShut), None, &at("23:30"));
        }
        assert_eq!(desk.held.len(), HELD);
    }

    #[test]
    fn the_day_is_summed_up_once() {
        let digest_at = Some("20:00".parse::<Time>().unwrap());
        let mut desk = desk(NotifySettings { digest_at, ..NotifySettings::default() }, "12:00");
        desk.visit(&visit(Verdict::LetIn), None, &at("13:00"));
        assert_eq!(desk.tick(&at("19:59")), []);
        let told = desk.tick(&at("20:00"));
        assert!(told[0].words.contains("let in 1, kept shut 0"), "{told:?}");
        assert_eq!(desk.tick(&at("20:01")), []);
    }
}
