//! The decision: from what is observed now to what the latch shall do.
//!
//! ```text
//!                      seen locked
//!   Starting ─────────────────────────────▶ Idle ◀───────────── calm ──────────────┐
//!                                            │ ▲                                   │
//!                          something there   │ │ it went                           │
//!                                            ▼ │          cat, person, other       │
//!                                         Watching ─────────────────────────▶ Refused
//!                                            │    ◀──────── memory over ───────────┤
//!                               every proof  │                                     │
//!                                            ▼             every proof, no memory  │
//!      owner, somebody leaving ───────────▶ Open ◀─────────────────────────────────┘
//!                                            │ │ time up, veto, blind, rule, owner
//!                               beam broken  ▼ │
//!                                        Passing
//!                                            │ │ clear again, or too long
//!                                            ▼ ▼
//!        not locked in time, once more ┌─▶ Relocking ── seen locked ──▶ Idle, Watching, …
//!                                      └────┘ │
//!                                             │ not locked, twice
//!   any state ── something broke ──▶ Fault ◀──┘          Fault ── mended, seen locked ──▶ Idle
//!   any locked state ── a rule forbids ──▶ Scheduled ── allowed again ──▶ Idle
//!   any sound state ── owner ──▶ HeldOpen (timed) or HeldLocked (until released)
//! ```
//!
//! Only [`State::Open`], [`State::Passing`] and [`State::HeldOpen`] wish the latch unlocked, and
//! each only as a lease of [`DoorSettings::lease`], renewed by every step and never beyond the
//! state's own deadline. Whoever drives the latch locks it when the lease lapses, so a door that
//! is no longer stepped is a locked door.
//!
//! A step cannot fail. It first analyses all inputs without effect (`look`), then takes the
//! unconditional exits to safety, then makes one match on the state (`act`). Only there is the
//! state written.

mod act;
mod look;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::ZonedDateTime;
use serde::{Deserialize, Serialize};

use crate::event::{Event, Fault, Relock, Verdict, Whom};
use crate::frame::PictureHealth;
use crate::identity::Roll;
use crate::policy::Policy;
use crate::sight::Class;
use crate::track::{ErrorBudget, Track};
use crate::units::Uptime;

/// Limits of the decision. Every duration a state may last is here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DoorSettings {
    /// The error budget; its thresholds are those of the tracks.
    pub budget: ErrorBudget,
    /// Evidence for a cat or a person from which it is a veto. Lower than what it takes to
    /// refuse: deny beats allow.
    pub veto: f32,
    /// Share of doubtful frames of a track from which it is a veto, `0..=1`.
    pub doubt: f32,
    /// Whether a person in view is a veto.
    pub person_vetoes: bool,
    /// Whether the latch reports its position. Without it the door trusts [`Self::relock_within`].
    pub feedback: bool,
    /// Whether the door may only open while it can record.
    pub journal_required: bool,
    /// A frame older than this is stale: no proof of anything.
    pub fresh_for: Duration,
    /// Without a fresh frame for this long the camera is lost.
    pub camera_lost_after: Duration,
    /// A sick picture for this long is a fault.
    pub picture_fault_after: Duration,
    /// A latch report older than this is no report.
    pub latch_silent_after: Duration,
    /// How long one wish for "unlocked" holds. At least twice the step period.
    pub lease: Duration,
    /// How long the door waits unlocked for the dog to come through.
    pub open_for: Duration,
    /// How long a passage may take before the door locks regardless.
    pub pass_for: Duration,
    /// How long the passage must be clear before the door locks.
    pub clear_for: Duration,
    /// How long the latch may take to be seen locked.
    pub relock_within: Duration,
    /// How long a cat is remembered after it was last seen; up to three times as long while
    /// somebody has been in view ever since.
    pub refuse_for: Duration,
    /// How long nothing must be there for an approach to be over.
    pub calm_for: Duration,
    /// How long the owner's "hold open" lasts.
    pub hold_open_for: Duration,
}

impl Default for DoorSettings {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            budget: ErrorBudget { false_accept: 0.001, false_reject: 0.02 },
            veto: 2.0,
            doubt: 0.5,
            person_vetoes: true,
            feedback: true,
            journal_required: true,
            fresh_for: ms(1_000),
            camera_lost_after: ms(5_000),
            picture_fault_after: ms(5_000),
            latch_silent_after: ms(2_000),
            lease: ms(1_000),
            open_for: ms(8_000),
            pass_for: ms(20_000),
            clear_for: ms(1_000),
            relock_within: ms(2_000),
            refuse_for: ms(10_000),
            calm_for: ms(2_000),
            hold_open_for: ms(600_000),
        }
    }
}

impl DoorSettings {
    /// The longest the latch may stay unlocked without the owner having asked for it: waiting
    /// for the dog, its passage, and the last lease.
    pub fn longest_open(&self) -> Duration {
        self.open_for + self.pass_for + self.lease
    }
}

/// What the latch shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DesiredLatch {
    /// Locked.
    Locked,
    /// Unlocked, but locked again at this time unless told otherwise before.
    UnlockedUntil(Uptime),
}

/// What the latch was seen to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// The bolt is home.
    Locked,
    /// The bolt is drawn.
    Unlocked,
    /// On its way.
    Moving,
    /// Stuck.
    Jammed,
    /// Not known: no sensor, or it does not answer.
    Unknown,
}

/// An observation of the latch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatchReport {
    /// What was seen.
    pub position: Position,
    /// When.
    pub at: Uptime,
}

/// What somebody asks of the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The owner: let through once.
    OpenOnce,
    /// The owner: lock now and stay locked until released.
    HoldLocked,
    /// The owner: stay open for a while.
    HoldOpen,
    /// The owner: back to the rules. Also acknowledges a fault that waits for the owner.
    Release,
    /// Somebody inside stands at the door and wants out.
    Leave,
}

/// Whether the networks can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VisionHealth {
    /// Verified models are loaded and the last frame went through.
    Ready,
    /// No verified model, or the last frame could not be evaluated.
    Failed,
}

/// Whether events can be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalHealth {
    /// The last write succeeded.
    Writable,
    /// The last write failed: full, read-only or broken.
    Failed,
}

/// Everything the door is told in one step.
#[derive(Debug, Clone)]
pub struct Observation<'a> {
    /// Animals and persons followed at present.
    pub tracks: &'a [Track],
    /// Capture time of the newest frame, looked at or not; `None` before the first.
    pub frame_at: Option<Uptime>,
    /// Health of the newest frame's picture.
    pub picture: PictureHealth,
    /// Health of the networks.
    pub vision: VisionHealth,
    /// Health of the journal.
    pub journal: JournalHealth,
    /// Newest report of the latch; `None` before the first.
    pub latch: Option<LatchReport>,
    /// Whether the passage beam is broken; `None` without a beam.
    pub passage: Option<bool>,
    /// What somebody asked since the last step.
    pub request: Option<Request>,
    /// Local time; `None` if the clock cannot be trusted.
    pub wall: Option<&'a ZonedDateTime>,
}

/// One thing that must be so for the door to open for a dog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProofKind {
    /// The newest frame is fresh. Value and limit: age in seconds.
    FreshFrame,
    /// The picture can be trusted.
    Picture,
    /// Verified networks answer.
    Vision,
    /// The latch answers and is locked.
    Latch,
    /// What happens can be recorded.
    Journal,
    /// A rule allows it.
    Rule,
    /// Evidence for a dog in the approach. Value and limit: log-likelihood ratio.
    Evidence,
    /// No cat in view. Value and limit: evidence for a cat.
    NoCat,
    /// No person in view. Value and limit: evidence for a person.
    NoPerson,
    /// Detector and classifier agree and know what they see. Value and limit: share of doubt.
    Agreement,
    /// No cat was here a moment ago. Value and limit: seconds the memory still lasts.
    NoRefusal,
    /// It is settled which dog it is, be it an unknown one. Only where a rule depends on it.
    /// Value and limit: likeness to the likeliest animal.
    Identity,
    /// No other dog in view that may not come in. Only where a rule tells dogs apart.
    NoOtherDog,
}

/// A proof with its value and the limit it was held against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// Which.
    pub proof: ProofKind,
    /// Whether it holds.
    pub passed: bool,
    /// What was measured, where it is a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f32>,
    /// The limit, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<f32>,
    /// In words, where it does not hold; of an identity also where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<String>,
}

impl Proof {
    fn plain(proof: ProofKind, passed: bool, words: &str) -> Self {
        let words = (!passed).then(|| words.to_owned());
        Self { proof, passed, value: None, limit: None, words }
    }

    fn at_most(proof: ProofKind, value: f32, limit: f32, words: &str) -> Self {
        let passed = value <= limit;
        Self { value: Some(value), limit: Some(limit), ..Self::plain(proof, passed, words) }
    }
}

/// What the door decided in one step, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// When.
    pub at: Uptime,
    /// The state after the step.
    pub state: State,
    /// What the latch shall do.
    pub latch: DesiredLatch,
    /// The track the door considered for opening.
    pub target: Option<u32>,
    /// Every proof, whether it held or not.
    pub proofs: Vec<Proof>,
    /// What happened in this step.
    pub events: Vec<Event>,
}

impl Decision {
    /// The proofs that are missing, in words, most telling first.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        self.proofs.iter().filter(|p| !p.passed).filter_map(|p| p.words.as_deref())
    }
}

/// Where the door stands. Each state carries its data; see the diagram above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[expect(missing_docs, reason = "`since` and `until` say it; the rest is documented")]
pub enum State {
    /// Locked; waiting to see the latch locked.
    Starting { since: Uptime },
    /// Locked; nothing there.
    Idle { since: Uptime },
    /// Locked; something is there and is being recognised.
    Watching { since: Uptime },
    /// Locked; what is there must not come in.
    Refused {
        since: Uptime,
        /// What was recognised.
        class: Class,
        /// How long it is remembered, unless seen again.
        until: Uptime,
    },
    /// Unlocked lease: waiting for somebody to come through.
    Open {
        since: Uptime,
        until: Uptime,
        /// For whom.
        whom: Whom,
    },
    /// Unlocked lease: somebody is in the passage.
    Passing {
        since: Uptime,
        until: Uptime,
        /// For whom.
        whom: Whom,
        /// Since when the passage has been clear again.
        clear: Option<Uptime>,
    },
    /// Told to lock; waiting to see it.
    Relocking {
        since: Uptime,
        /// Which attempt, from 1.
        attempt: u8,
        /// Why it was told.
        why: Relock,
    },
    /// Locked by the rules.
    Scheduled { since: Uptime },
    /// Unlocked by the owner for a while.
    HeldOpen { since: Uptime, until: Uptime },
    /// Locked by the owner until released.
    HeldLocked { since: Uptime },
    /// Locked; something broke.
    Fault {
        since: Uptime,
        /// What broke.
        cause: Fault,
        /// Whether the owner has acknowledged it.
        acknowledged: bool,
    },
}

impl State {
    /// What the latch shall do in this state at `now`, leases being `lease` long. Total: whatever
    /// is not named here is locked.
    pub fn desired_latch(&self, now: Uptime, lease: Duration) -> DesiredLatch {
        match self {
            Self::Open { until, .. }
            | Self::Passing { until, .. }
            | Self::HeldOpen { until, .. } => {
                DesiredLatch::UnlockedUntil((*until).min(now + lease))
            }
            Self::Starting { .. }
            | Self::Idle { .. }
            | Self::Watching { .. }
            | Self::Refused { .. }
            | Self::Relocking { .. }
            | Self::Scheduled { .. }
            | Self::HeldLocked { .. }
            | Self::Fault { .. } => DesiredLatch::Locked,
        }
    }

    /// The lower-case name, as in JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Idle { .. } => "idle",
            Self::Watching { .. } => "watching",
            Self::Refused { .. } => "refused",
            Self::Open { .. } => "open",
            Self::Passing { .. } => "passing",
            Self::Relocking { .. } => "relocking",
            Self::Scheduled { .. } => "scheduled",
            Self::HeldOpen { .. } => "held_open",
            Self::HeldLocked { .. } => "held_locked",
            Self::Fault { .. } => "fault",
        }
    }

    const fn wishes_unlocked(&self) -> bool {
        matches!(self, Self::Open { .. } | Self::Passing { .. } | Self::HeldOpen { .. })
    }
}

/// The door.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Door {
    settings: DoorSettings,
    policy: Policy,
    state: State,
    /// Whether the owner wants the door locked until released; outlives every other state.
    hold_locked: bool,
    /// The animals that can be recognised.
    #[serde(default, skip_serializing_if = "Roll::is_empty")]
    roll: Roll,
    /// Every animal that the dog for whom the door was opened last may be, where a rule depends
    /// on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    let_in: Option<Vec<String>>,
    /// How the approach that is under way has gone so far.
    approach: Option<Verdict>,
    /// When something was last there.
    last_busy: Uptime,
    /// When a cat was last believed to be in view.
    last_cat: Option<Uptime>,
    /// Whether somebody has been in view ever since, who may be that cat.
    #[serde(default)]
    cat_stays: bool,
    /// When that cat, or who may be it, was last in view.
    #[serde(default)]
    cat_near: Option<Uptime>,
    /// Since when the picture has been sick, and how.
    sick: Option<(PictureHealth, Uptime)>,
    /// Since when the latch has not been as it should.
    latch_amiss: Option<Uptime>,
    started: Uptime,
}

impl Door {
    /// A locked door that waits to see its latch locked; `hold_locked` if the owner wanted it
    /// held locked before the start.
    pub const fn new(
        settings: DoorSettings,
        policy: Policy,
        hold_locked: bool,
        now: Uptime,
    ) -> Self {
        Self {
            settings,
            policy,
            state: State::Starting { since: now },
            hold_locked,
            roll: Roll { names: Vec::new(), needed: 0.0 },
            let_in: None,
            approach: None,
            last_busy: now,
            last_cat: None,
            cat_stays: false,
            cat_near: None,
            sick: None,
            latch_amiss: None,
            started: now,
        }
    }

    /// With animals that rules can be about. Without, every dog is an unknown one.
    #[must_use]
    pub fn knowing(self, roll: Roll) -> Self {
        Self { roll, ..self }
    }

    /// Where the door stands.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The settings it was made with.
    pub const fn settings(&self) -> &DoorSettings {
        &self.settings
    }

    /// Whether the owner wants the door locked until released. To be kept across restarts.
    pub const fn hold_locked(&self) -> bool {
        self.hold_locked
    }

    /// One decision. Time must not run backwards; if it does, durations count as zero.
    pub fn step(&mut self, now: Uptime, seen: &Observation<'_>) -> Decision {
        let mut events = Vec::new();
        self.remember(now, seen, &mut events);
        let found = self.analyse(now, seen);
        if found.busy {
            self.last_busy = now;
        }
        if !self.exit_to_safety(now, &found, seen.request, &mut events)
            && !self.obey(now, &found, seen.request, &mut events)
        {
            self.advance(now, &found, seen, &mut events);
        }
        self.close_approach(now, &found, &mut events);
        Decision {
            at: now,
            state: self.state,
            latch: self.state.desired_latch(now, self.settings.lease),
            target: found.target,
            proofs: found.proofs,
            events,
        }
    }
}
