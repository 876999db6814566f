//! One control cycle: what was perceived and observed goes to the keeper; its wish goes to the
//! latch, what happened to the journal.
//!
//! [`Appliance::tick`] knows no clock and does not wait: [`run`](run::run) calls it in real time,
//! replay in virtual time.

mod run;

use std::time::Duration;

use jiff::ZonedDateTime;
use pawlatch_core::door::{Decision, LatchReport, Request, VisionHealth};
use pawlatch_core::event::{Verdict, What};
use pawlatch_core::frame::Frame;
use pawlatch_core::identity::Roll;
use pawlatch_core::keeper::{Input, Keeper};
use pawlatch_core::sight::Sightings;
use pawlatch_core::track::Track;
use pawlatch_core::units::Uptime;

use crate::config::Config;
use crate::journal::{Entry, Recorder, Recording};
use crate::latch::LatchPort;
pub use run::{Asker, Ended, Live, LookError, Requests, RunError, requests, run, stop_on_signals};

/// Period of the control cycle.
pub const TICK: Duration = Duration::from_millis(50);
/// Time between the pictures of an approach that are kept, unless something happens.
const PICTURE_EVERY: Duration = Duration::from_secs(1);
/// Most pictures kept of one approach.
const MAX_PICTURES: u32 = 60;

/// What there is to know in one cycle, beside what latch and journal report themselves.
#[derive(Debug, Clone)]
pub struct Sample {
    /// What was perceived in a frame since the last cycle.
    pub sightings: Option<Sightings>,
    /// That frame.
    pub frame: Option<Frame>,
    /// Whether the networks can be asked.
    pub vision: VisionHealth,
    /// Whether the passage beam is broken; `None` without a beam.
    pub passage: Option<bool>,
    /// What somebody asked.
    pub request: Option<Request>,
    /// The wall clock's reading in the policy's zone.
    pub wall: Option<ZonedDateTime>,
}

impl Default for Sample {
    /// Nothing new, nothing wrong.
    fn default() -> Self {
        Self {
            sightings: None,
            frame: None,
            vision: VisionHealth::Ready,
            passage: None,
            request: None,
            wall: None,
        }
    }
}

/// One cycle, for whoever looks on.
#[derive(Debug)]
pub struct Moment<'a> {
    /// What was decided.
    pub decision: &'a Decision,
    /// The frame that was new in this cycle.
    pub frame: Option<&'a Frame>,
    /// What was perceived in it.
    pub sightings: Option<&'a Sightings>,
    /// Why nothing could be perceived in it.
    pub failure: Option<&'a str>,
    /// Who is followed.
    pub tracks: &'a [Track],
    /// What the latch reported before the cycle.
    pub latch: Option<LatchReport>,
}

/// The keeper between its latch and its recorder.
#[derive(Debug)]
pub struct Appliance<L, R> {
    // First, so that it is dropped first: whatever else goes wrong, the latch locks.
    latch: L,
    keeper: Keeper,
    recorder: R,
    visit: Option<Visit>,
}

/// An approach that is being recorded.
#[derive(Debug)]
struct Visit {
    recording: Recording,
    pictures: u32,
    last_picture: Option<Uptime>,
}

/// A keeper as the configuration wants it, of a door that is starting.
pub fn keeper(config: &Config, hold_locked: bool, now: Uptime) -> Keeper {
    let (tracks, door) = (config.tracks.clone(), config.door.clone());
    Keeper::new(tracks, door, config.policy.clone(), hold_locked, now)
}

impl<L: LatchPort, R: Recorder> Appliance<L, R> {
    /// An appliance that has not ticked.
    pub const fn new(keeper: Keeper, latch: L, recorder: R) -> Self {
        Self { latch, keeper, recorder, visit: None }
    }

    /// With animals that rules can be about.
    #[must_use]
    pub fn knowing(self, roll: Roll) -> Self {
        Self { keeper: self.keeper.knowing(roll), ..self }
    }

    /// One control cycle.
    pub fn tick(&mut self, now: Uptime, sample: Sample) -> Decision {
        let Sample { sightings, frame, vision, passage, request, wall } = sample;
        let input = Input {
            sightings,
            vision,
            journal: self.recorder.health(),
            latch: self.latch.report(),
            passage,
            request,
            wall,
        };
        // An approach is known to begin only after the step it begins in.
        let before = self.visit.is_none().then(|| self.keeper.clone());
        let decision = self.keeper.step(now, &input);
        self.latch.command(now, decision.latch);
        self.record(before, &input, &decision, frame.as_ref());
        decision
    }

    /// Ends: a recording that is under way is kept as far as it got. Gives back latch and
    /// recorder.
    pub fn finish(mut self, now: Uptime) -> (L, R) {
        self.end_visit(now, None);
        (self.latch, self.recorder)
    }

    /// The keeper, as the last cycle left it.
    pub const fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// The latch.
    pub const fn latch(&self) -> &L {
        &self.latch
    }

    /// The recorder.
    pub const fn recorder(&self) -> &R {
        &self.recorder
    }

    fn record(
        &mut self,
        before: Option<Keeper>,
        input: &Input,
        decision: &Decision,
        frame: Option<&Frame>,
    ) {
        let happened = |wanted: fn(&What) -> bool| decision.events.iter().any(|e| wanted(&e.what));
        if let Some(before) = before
            && happened(|what| matches!(what, What::ApproachBegan))
        {
            let recording = Recording::begin(&before);
            self.visit = Some(Visit { recording, pictures: 0, last_picture: None });
        }
        for event in &decision.events {
            self.recorder.record(Entry::Event(event.clone()));
        }
        let Some(visit) = &mut self.visit else { return };
        visit.recording.push(decision.at, input, decision);
        if let Some(frame) = frame {
            let due = visit.last_picture.is_none_or(|at| decision.at.since(at) >= PICTURE_EVERY);
            let decisive = happened(|w| matches!(w, What::Opened { .. } | What::Refused { .. }));
            if (due || decisive) && visit.pictures < MAX_PICTURES {
                visit.pictures += 1;
                visit.last_picture = Some(decision.at);
                self.recorder.record(Entry::Picture(frame.clone()));
            }
        }
        let verdict = decision.events.iter().find_map(|event| match event.what {
            What::ApproachEnded { verdict } => Some(verdict),
            _ => None,
        });
        if verdict.is_some() {
            self.end_visit(decision.at, verdict);
        }
    }

    fn end_visit(&mut self, ended: Uptime, verdict: Option<Verdict>) {
        if let Some(visit) = self.visit.take() {
            let text = visit.recording.into_text();
            self.recorder.record(Entry::Recording { ended, verdict, text });
        }
    }
}
