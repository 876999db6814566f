//! Playing pictures through the whole system in virtual time: the same eye, keeper and dead-man
//! as on the door, and a latch that behaves like one. The same pictures give the same decisions,
//! byte for byte.

use std::cmp::Ordering;
use std::time::Duration;

use jiff::ZonedDateTime;
use pawlatch_core::door::{Decision, LatchReport, ProofKind, State, VisionHealth};
use pawlatch_core::event::{Relock, Verdict, What, Whom};
use pawlatch_core::eye::Eye;
use pawlatch_core::frame::Frame;
use pawlatch_core::identity::Roll;
use pawlatch_core::units::Uptime;
use serde::Serialize;

pub use crate::appliance::Moment;
use crate::appliance::{Appliance, Sample, TICK, keeper};
use crate::camera::{CameraError, FrameSource};
use crate::config::Config;
use crate::journal::NoRecorder;
use crate::latch::{LatchPort as _, Leased, SimulatedLatch};

/// How long the door is given to come to rest after the last frame.
const SETTLES_WITHIN: Duration = Duration::from_secs(30);

/// An eye, a keeper and a simulated latch in virtual time.
pub struct Player {
    eye: Eye,
    appliance: Appliance<Leased, NoRecorder>,
    wall: Option<ZonedDateTime>,
    vision: VisionHealth,
    next: Uptime,
    /// Whether an approach has begun and not ended.
    visited: bool,
}

impl Player {
    /// A door that starts at time zero. `wall` is the local time then; without it rules with a
    /// schedule cannot be applied.
    pub fn new(eye: Eye, config: &Config, wall: Option<ZonedDateTime>) -> Self {
        let latch = SimulatedLatch::new(config.latch.simulated.clone());
        let latch = Leased::new(Box::new(latch), config.latch.lease.clone());
        let keeper = keeper(config, false, Uptime::ZERO);
        Self {
            eye,
            appliance: Appliance::new(keeper, latch, NoRecorder),
            wall,
            vision: VisionHealth::Ready,
            next: Uptime::ZERO,
            visited: false,
        }
    }

    /// With animals that rules can be about.
    #[must_use]
    pub fn knowing(self, roll: Roll) -> Self {
        Self { appliance: self.appliance.knowing(roll), ..self }
    }

    /// The eye, for whoever wants to draw what it sees.
    pub const fn eye(&mut self) -> &mut Eye {
        &mut self.eye
    }

    /// Plays `source` to its end, and on until the door is at rest: a step for every frame, and
    /// one every [`TICK`] between them. `passage` says whether the beam is broken, given what the
    /// latch last reported.
    ///
    /// # Errors
    /// Those of the source and of `each`, which is shown every step.
    pub fn play<E: From<CameraError>>(
        &mut self,
        source: &mut dyn FrameSource,
        passage: &dyn Fn(Uptime, Option<LatchReport>) -> Option<bool>,
        each: &mut dyn FnMut(&Moment<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(frame) = source.next()? {
            while self.next < frame.captured_at() {
                self.step(None, passage, each)?;
            }
            self.next = frame.captured_at().max(self.next);
            self.step(Some(frame), passage, each)?;
        }
        let until = self.next + SETTLES_WITHIN;
        while !self.at_rest() && self.next < until {
            self.step(None, passage, each)?;
        }
        Ok(())
    }

    fn step<E>(
        &mut self,
        frame: Option<Frame>,
        passage: &dyn Fn(Uptime, Option<LatchReport>) -> Option<bool>,
        each: &mut dyn FnMut(&Moment<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let now = self.next;
        let looked = frame.as_ref().map(|frame| self.eye.look(frame, &mut |_| {}));
        let (sightings, failure) = match looked {
            None => (None, None),
            Some(Ok(sightings)) => {
                self.vision = VisionHealth::Ready;
                (Some(sightings), None)
            }
            Some(Err(error)) => {
                self.vision = VisionHealth::Failed;
                (None, Some(error.to_string()))
            }
        };
        let latch = self.appliance.latch().report();
        let sample = Sample {
            sightings: sightings.clone(),
            frame: frame.clone(),
            vision: self.vision,
            passage: passage(now, latch),
            request: None,
            wall: self.wall.as_ref().and_then(|start| wall_at(start, now)),
        };
        let decision = self.appliance.tick(now, sample);
        for event in &decision.events {
            match event.what {
                What::ApproachBegan => self.visited = true,
                What::ApproachEnded { .. } => self.visited = false,
                _ => {}
            }
        }
        self.next = now + TICK;
        each(&Moment {
            decision: &decision,
            frame: frame.as_ref(),
            sightings: sightings.as_ref(),
            failure: failure.as_deref(),
            tracks: self.appliance.keeper().tracks(),
            latch,
        })
    }

    /// Locked, nobody in view, and nothing more to come of it.
    fn at_rest(&self) -> bool {
        let keeper = self.appliance.keeper();
        let settled = match keeper.door().state() {
            State::Idle { .. } => !self.visited,
            // A cat is remembered for longer than there is something to see.
            State::Refused { .. }
            | State::Scheduled { .. }
            | State::HeldLocked { .. }
            | State::Fault { .. } => true,
            State::Starting { .. }
            | State::Watching { .. }
            | State::Open { .. }
            | State::Passing { .. }
            | State::Relocking { .. }
            | State::HeldOpen { .. } => false,
        };
        settled && keeper.tracks().is_empty()
    }
}

fn wall_at(start: &ZonedDateTime, now: Uptime) -> Option<ZonedDateTime> {
    let span = jiff::SignedDuration::from_millis(i64::try_from(now.as_millis()).ok()?);
    start.checked_add(span).ok()
}

/// What came of a replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// How often the latch was told to unlock.
    pub opened: u32,
    /// How it went as a whole.
    pub verdict: Verdict,
    /// Why, in words.
    pub reasons: Vec<String>,
}

/// Gathers decisions into a [`Summary`].
#[derive(Debug, Clone, Default)]
pub struct Tally {
    opened: u32,
    kept_shut: bool,
    overruled: bool,
    followed: bool,
    happened: Vec<String>,
    decisive: Option<(Weight, Decision)>,
}

/// How much a decision tells of a replay: the kind of moment first, then the evidence for a dog,
/// then the number of missing proofs.
type Weight = (u8, f32, usize);

/// From this kind of moment on something happened.
const HAPPENED: u8 = 2;

impl Tally {
    /// Adds one decision; gives whether it is the decisive one so far. `fresh` says whether a
    /// frame was new in it, so that a door without pictures at the beginning or the end is not
    /// taken for the reason.
    pub fn add(&mut self, decision: &Decision, fresh: bool) -> bool {
        let starting = matches!(decision.state, State::Starting { .. });
        let mut kind = u8::from(fresh && !starting);
        for event in &decision.events {
            match event.what {
                What::Opened { .. } => {
                    self.opened += 1;
                    kind = HAPPENED + 2;
                }
                What::Refused { .. } => {
                    self.kept_shut = true;
                    self.say(event.to_string());
                    kind = kind.max(HAPPENED + 1);
                }
                What::FaultRaised { .. } | What::ScheduleLocked => {
                    self.overruled = true;
                    self.say(event.to_string());
                    kind = kind.max(HAPPENED);
                }
                What::Relocking { why: Relock::Veto } => {
                    self.say(format!("locked again: {}", lost(decision)));
                }
                What::ApproachBegan => self.followed = true,
                _ => {}
            }
        }
        let evidence = value(decision, ProofKind::Evidence);
        let weight = (kind, evidence, decision.proofs.iter().filter(|p| !p.passed).count());
        // Of what happened the first counts; of mere moments the one nearest to opening.
        let heavier = |than: &Weight| {
            let nearer =
                || weight.1.total_cmp(&than.1).then(weight.2.cmp(&than.2)) == Ordering::Greater;
            weight.0 > than.0 || (weight.0 == than.0 && kind < HAPPENED && nearer())
        };
        let decisive = self.decisive.as_ref().is_none_or(|(than, _)| heavier(than));
        if decisive {
            self.decisive = Some((weight, decision.clone()));
        }
        decisive
    }

    /// The decision that tells most: the first opening, else the first refusal, else the first
    /// fault, else the moment nearest to opening.
    pub fn decisive(&self) -> Option<&Decision> {
        self.decisive.as_ref().map(|(_, decision)| decision)
    }

    /// What came of it so far.
    pub fn summary(&self) -> Summary {
        let verdict = if self.opened > 0 {
            Verdict::LetIn
        } else if self.kept_shut {
            Verdict::KeptShut
        } else if self.overruled {
            Verdict::Overruled
        } else {
            Verdict::Nobody
        };
        let mut reasons = Vec::new();
        if let Some(decision) = self.decisive() {
            if verdict == Verdict::LetIn {
                reasons.push(opened_because(decision));
            } else if verdict == Verdict::Nobody && !self.followed {
                reasons.push("nobody was there".to_owned());
            }
            reasons.extend(self.happened.iter().cloned());
            reasons.extend(decision.missing().map(str::to_owned));
        }
        Summary { opened: self.opened, verdict, reasons }
    }

    fn say(&mut self, words: String) {
        if !self.happened.contains(&words) {
            self.happened.push(words);
        }
    }
}

/// The proof for whose loss an open door locks.
fn lost(decision: &Decision) -> &str {
    use ProofKind::{Agreement, FreshFrame, NoCat, NoOtherDog, NoPerson};
    let kept = [FreshFrame, NoCat, NoPerson, Agreement, NoOtherDog];
    let lost = decision.proofs.iter().find(|p| !p.passed && kept.contains(&p.proof));
    lost.and_then(|p| p.words.as_deref()).unwrap_or("a proof was lost")
}

fn opened_because(decision: &Decision) -> String {
    let whom = decision.events.iter().find_map(|e| match e.what {
        What::Opened { whom } => Some(whom),
        _ => None,
    });
    let proof = decision.proofs.iter().find(|p| p.proof == ProofKind::Evidence);
    match (whom, proof.and_then(|p| p.value.zip(p.limit))) {
        (Some(Whom::Dog), Some((value, limit))) => {
            let who = decision.proofs.iter().find(|p| p.proof == ProofKind::Identity);
            let who = who.and_then(|p| p.words.as_ref()).map(|words| format!("; {words}"));
            format!(
                "every proof held: evidence for a dog {value:.1}, {limit:.1} needed{}",
                who.unwrap_or_default()
            )
        }
        _ => "somebody asked".to_owned(),
    }
}

/// The value of a proof, 0 without one.
pub fn value(decision: &Decision, kind: ProofKind) -> f32 {
    decision.proofs.iter().find(|p| p.proof == kind).and_then(|p| p.value).unwrap_or(0.0)
}

/// A verdict as a sentence.
pub const fn in_words(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::LetIn => "The dog was let in.",
        Verdict::KeptShut => "The door was kept shut.",
        Verdict::Nobody => "Nobody to decide about; the door stayed shut.",
        Verdict::Overruled => "Not decided by the camera; the door stayed shut.",
    }
}
