//! How the surfaces hear of the door: the control loop shows each cycle to a [`Tap`], a relay
//! thread hands it on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use jiff::Timestamp;
use pawlatch_core::door::{DesiredLatch, LatchReport, Position, Proof, State};
use pawlatch_core::event::{Event, What};
use pawlatch_core::frame::Frame;
use pawlatch_core::sight::Sightings;
use pawlatch_core::track::Track;
use pawlatch_core::units::Uptime;
use tokio::sync::{broadcast, watch};

use super::house::House;
use super::words::Visit;
use crate::appliance::Moment;
use crate::slot::{self, Taken, slot};

/// Events that may wait for the relay.
const QUEUE: usize = 256;
/// News that a slow listener may fall behind before it misses some.
const BACKLOG: usize = 64;
/// Most events of one visit that are kept for its sentence.
const MAX_EVENTS: usize = 256;

/// The door as it was seen in one cycle.
#[derive(Debug, Clone)]
pub struct Glance {
    /// When.
    pub at: Uptime,
    /// The state after the cycle.
    pub state: State,
    /// What the latch is wished to be.
    pub desired: DesiredLatch,
    /// What the latch was seen to be; `None` before the first report.
    pub latch: Option<LatchReport>,
    /// Every proof, whether it held or not.
    pub proofs: Vec<Proof>,
    /// The track that was considered for opening.
    pub target: Option<u32>,
    /// Who is followed.
    pub tracks: Vec<Track>,
    /// The newest frame.
    pub frame: Option<Frame>,
    /// What was seen in it.
    pub sightings: Option<Sightings>,
    /// Why nothing could be seen in it.
    pub failure: Option<String>,
}

impl Glance {
    /// What the latch was seen to be: unknown if that was longer than `silent_after` ago.
    pub fn position(&self, silent_after: Duration) -> Position {
        match self.latch {
            Some(report) if self.at.since(report.at) <= silent_after => report.position,
            _ => Position::Unknown,
        }
    }

    /// Whether it is wished unlocked.
    pub const fn wishes_unlocked(&self) -> bool {
        matches!(self.desired, DesiredLatch::UnlockedUntil(_))
    }
}

/// Something to be told.
#[derive(Debug, Clone)]
pub enum News {
    /// Something happened.
    Event {
        /// What.
        event: Event,
        /// When, by the wall clock.
        wall: Timestamp,
    },
    /// A visit is over.
    Visit {
        /// As the journal has it.
        visit: Arc<Visit>,
        /// The picture at the moment that decided, or the last one.
        picture: Option<Frame>,
    },
}

/// Where the surfaces look.
#[derive(Debug, Clone)]
pub struct Board {
    now: watch::Sender<Option<Arc<Glance>>>,
    news: broadcast::Sender<News>,
    missed: Arc<AtomicU64>,
}

impl Board {
    /// The newest glance; `None` before the first.
    pub fn now(&self) -> Option<Arc<Glance>> {
        self.now.borrow().clone()
    }

    /// The newest glance, to be waited for.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Glance>>> {
        self.now.subscribe()
    }

    /// What happens from now on.
    pub fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    /// Tells whoever listens. Nobody listening is no error.
    pub(super) fn tell(&self, news: News) {
        let _ = self.news.send(news);
    }

    /// Events that the surfaces were too slow to hear of.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

/// The end at which the control loop shows its cycles.
#[derive(Debug)]
pub struct Tap {
    glances: slot::Sender<Glance>,
    events: SyncSender<(Event, Timestamp)>,
    missed: Arc<AtomicU64>,
    frame: Option<Frame>,
    sightings: Option<Sightings>,
    failure: Option<String>,
}

impl Tap {
    /// Shows one cycle. Never waits: a glance that nobody took is replaced, an event for which
    /// there is no room is counted as missed.
    pub fn show(&mut self, moment: &Moment<'_>) {
        let decision = moment.decision;
        if let Some(frame) = moment.frame {
            self.frame = Some(frame.clone());
            self.sightings = moment.sightings.cloned();
            self.failure = moment.failure.map(str::to_owned);
        }
        // Before the glance, so that the relay has both when it wakes.
        for event in &decision.events {
            if self.events.try_send((event.clone(), Timestamp::now())).is_err() {
                self.missed.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.glances.put(Glance {
            at: decision.at,
            state: decision.state,
            desired: decision.latch,
            latch: moment.latch,
            proofs: decision.proofs.clone(),
            target: decision.target,
            tracks: moment.tracks.to_vec(),
            frame: self.frame.clone(),
            sightings: self.sightings.clone(),
            failure: self.failure.clone(),
        });
    }
}

/// The relay's end.
#[derive(Debug)]
pub(super) struct Relay {
    glances: slot::Receiver<Glance>,
    events: std::sync::Mutex<Receiver<(Event, Timestamp)>>,
    board: Board,
}

/// A tap, its relay, and the board it ends at.
pub(super) fn board() -> (Tap, Relay, Board) {
    let (glances, taken) = slot();
    let (events, heard) = sync_channel(QUEUE);
    let missed = Arc::new(AtomicU64::new(0));
    let board = Board {
        now: watch::Sender::new(None),
        news: broadcast::Sender::new(BACKLOG),
        missed: Arc::clone(&missed),
    };
    let tap = Tap { glances, events, missed, frame: None, sightings: None, failure: None };
    let relay =
        Relay { glances: taken, events: std::sync::Mutex::new(heard), board: board.clone() };
    (tap, relay, board)
}

impl Relay {
    /// Hands on until the tap is gone.
    pub(super) fn run(&self, house: &House) {
        let mut visit: Option<(Visit, Option<Frame>)> = None;
        loop {
            let glance = match self.glances.take(Duration::from_secs(1)) {
                Taken::Value(glance) => glance,
                Taken::Nothing => continue,
                Taken::Closed => return std::thread::park(),
            };
            house.metrics.glance(&glance);
            let frame = glance.frame.clone();
            self.board.now.send_replace(Some(Arc::new(glance)));
            let events = self.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            while let Ok((event, wall)) = events.try_recv() {
                house.metrics.event(&event);
                let over = follow(&mut visit, &event, wall, frame.as_ref());
                self.board.tell(News::Event { event, wall });
                if let Some((visit, picture)) = over {
                    self.board.tell(News::Visit { visit: Arc::new(visit), picture });
                }
            }
        }
    }
}

/// Keeps the visit that is going on; gives it back when it is over.
fn follow(
    visit: &mut Option<(Visit, Option<Frame>)>,
    event: &Event,
    wall: Timestamp,
    frame: Option<&Frame>,
) -> Option<(Visit, Option<Frame>)> {
    if event.what == What::ApproachBegan {
        *visit =
            Some((Visit { began: wall, verdict: None, events: Vec::new(), goes_on: true }, None));
    }
    let (going, picture) = visit.as_mut()?;
    if going.events.len() < MAX_EVENTS {
        going.events.push(event.clone());
    }
    let decisive = matches!(event.what, What::Opened { .. } | What::Refused { .. });
    let first = !going
        .events
        .iter()
        .rev()
        .skip(1)
        .any(|e| matches!(e.what, What::Opened { .. } | What::Refused { .. }));
    if picture.is_none() || (decisive && first) {
        *picture = frame.cloned();
    }
    if let What::ApproachEnded { verdict } = event.what {
        going.verdict = Some(verdict);
        going.goes_on = false;
        return visit.take();
    }
    None
}
