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
//! A step cannot fail. It first analyses all inputs without effect ([`Findings`]), then takes the
//! unconditional exits to safety, then makes one match on the state. Only the `enter_*`
//! functions write the state, and each records its event.

use std::time::Duration;

use jiff::ZonedDateTime;
use serde::{Deserialize, Serialize};

use crate::event::{Event, Fault, Relock, Verdict, What, Whom};
use crate::frame::PictureHealth;
use crate::policy::{Policy, Ruling, Way};
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
    /// How long a cat is remembered after it was last seen.
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
    /// In words, where it does not hold.
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
    /// Since when the approach lasts, and how it has gone so far.
    approach: Option<(Uptime, Verdict)>,
    /// When something was last there.
    last_busy: Uptime,
    /// When a cat was last believed to be in view.
    last_cat: Option<Uptime>,
    /// Since when the picture has been sick, and how.
    sick: Option<(PictureHealth, Uptime)>,
    /// Since when the latch has not been as it should.
    latch_amiss: Option<Uptime>,
    started: Uptime,
}

/// What one look at all inputs finds, before anything is changed.
struct Findings {
    proofs: Vec<Proof>,
    target: Option<u32>,
    /// Something alive is in view.
    busy: bool,
    /// A cat is believed to be in view.
    cat: bool,
    /// What has been recognised as not being a dog.
    refused: Option<Class>,
    /// Nothing in view forbids that it stays open.
    may_stay_open: bool,
    rule: Ruling,
    way_out: Ruling,
    fault: Option<Fault>,
    seen_locked: bool,
}

impl Findings {
    fn all_proofs(&self) -> bool {
        self.proofs.iter().all(|p| p.passed)
    }
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
            approach: None,
            last_busy: now,
            last_cat: None,
            sick: None,
            latch_amiss: None,
            started: now,
        }
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

/// Looking: what the inputs mean, without effect on the state.
impl Door {
    /// Keeps the few things that must be remembered from step to step.
    fn remember(&mut self, now: Uptime, seen: &Observation<'_>, events: &mut Vec<Event>) {
        let health = seen.picture;
        let before = self.sick.map_or(PictureHealth::Good, |(health, _)| health);
        if health != before {
            // One illness passing into another is still the same time without a good picture.
            let since = self.sick.map_or(now, |(_, since)| since);
            self.sick = (health != PictureHealth::Good).then_some((health, since));
            events.push(Event { at: now, what: What::Picture { health } });
        }
        if seen.tracks.iter().any(|t| t.cat >= self.settings.veto) {
            self.last_cat = Some(now);
        }
        let position = self.position(now, seen);
        let quiet = !matches!(position, Position::Unlocked | Position::Moving | Position::Jammed);
        let excused = self.state.wishes_unlocked()
            || matches!(self.state, State::Starting { .. } | State::Relocking { .. });
        if quiet || excused {
            self.latch_amiss = None;
        } else {
            self.latch_amiss.get_or_insert(now);
        }
    }

    /// The latch's position as far as a fresh report tells it.
    fn position(&self, now: Uptime, seen: &Observation<'_>) -> Position {
        seen.latch
            .filter(|r| now.since(r.at) <= self.settings.latch_silent_after)
            .map_or(Position::Unknown, |r| r.position)
    }

    fn analyse(&self, now: Uptime, seen: &Observation<'_>) -> Findings {
        let s = &self.settings;
        let (accept, reject) = (s.budget.accept(), s.budget.reject());
        let strongest = |class: Class| {
            seen.tracks.iter().map(|t| t.evidence(class)).fold(f32::NEG_INFINITY, f32::max)
        };
        let target = seen
            .tracks
            .iter()
            .filter(|t| t.in_approach)
            .max_by(|a, b| a.dog.total_cmp(&b.dog).then(b.id.cmp(&a.id)));
        let refused = if strongest(Class::Cat) >= accept {
            Some(Class::Cat)
        } else if s.person_vetoes && strongest(Class::Person) >= accept {
            Some(Class::Person)
        } else {
            let settled = |t: &&Track| t.dog <= reject && t.other > t.person.max(t.cat);
            seen.tracks.iter().find(settled).map(|_| Class::Other)
        };
        let rule = self.policy.ruling(Class::Dog, Way::In, seen.wall);
        let proofs = self.proofs(now, seen, target, &rule);
        let holds = |kind| proofs.iter().any(|p| p.proof == kind && p.passed);
        use ProofKind::{Agreement, FreshFrame, NoCat, NoPerson};
        Findings {
            target: target.map(|t| t.id),
            busy: !seen.tracks.is_empty(),
            cat: !holds(NoCat),
            refused,
            may_stay_open: [FreshFrame, NoCat, NoPerson, Agreement].into_iter().all(holds),
            way_out: self.policy.ruling(Class::Dog, Way::Out, seen.wall),
            rule,
            fault: self.broken(now, seen),
            seen_locked: self.seen_locked(now, seen),
            proofs,
        }
    }

    fn proofs(
        &self,
        now: Uptime,
        seen: &Observation<'_>,
        target: Option<&Track>,
        rule: &Ruling,
    ) -> Vec<Proof> {
        use ProofKind as K;
        let s = &self.settings;
        let strongest = |class: Class| {
            // Zero is "knows nothing": evidence below it is no news for a veto.
            seen.tracks.iter().map(|t| t.evidence(class)).fold(0.0, f32::max)
        };
        let age = seen.frame_at.map(|at| now.since(at));
        let fresh = age.is_some_and(|age| age <= s.fresh_for);
        let frame = Proof {
            value: age.map(|age| age.as_secs_f32()),
            limit: Some(s.fresh_for.as_secs_f32()),
            ..Proof::plain(K::FreshFrame, fresh, "no fresh frame from the camera")
        };
        let evidence =
            target.filter(|t| now.since(t.last_seen) <= s.fresh_for).map_or(0.0, |t| t.dog);
        let accept = s.budget.accept();
        let evidence = Proof {
            value: Some(evidence),
            limit: Some(accept),
            ..Proof::plain(K::Evidence, evidence >= accept, "not certain enough that it is a dog")
        };
        let mut cat = Proof::at_most(K::NoCat, strongest(Class::Cat), s.veto, "a cat is in view");
        // At the veto itself the door is already shut.
        cat.passed = strongest(Class::Cat) < s.veto;
        cat.words = (!cat.passed).then(|| "a cat is in view".to_owned());
        let person = if s.person_vetoes { strongest(Class::Person) } else { 0.0 };
        let doubt = target.map_or(0.0, |t| t.doubt);
        let memory =
            self.last_cat.map_or(Duration::ZERO, |at| s.refuse_for.saturating_sub(now.since(at)));
        vec![
            cat,
            Proof::at_most(K::NoPerson, person, s.veto, "a person is in view"),
            Proof::at_most(K::Agreement, doubt, s.doubt, "the networks contradict each other"),
            Proof::at_most(K::NoRefusal, memory.as_secs_f32(), 0.0, "a cat was here a moment ago"),
            evidence,
            frame,
            Proof::plain(K::Picture, seen.picture == PictureHealth::Good, seen.picture.describe()),
            Proof::plain(
                K::Vision,
                seen.vision == VisionHealth::Ready,
                Fault::VisionFailed.describe(),
            ),
            Proof::plain(K::Latch, self.latch_ready(now, seen), "the latch is not at rest, locked"),
            Proof::plain(
                K::Journal,
                !s.journal_required || seen.journal == JournalHealth::Writable,
                Fault::JournalFailed.describe(),
            ),
            rule_proof(rule),
        ]
    }

    /// Whether the latch is known to be locked and has nothing against it.
    fn latch_ready(&self, now: Uptime, seen: &Observation<'_>) -> bool {
        match self.position(now, seen) {
            Position::Locked => true,
            Position::Unknown => !self.settings.feedback,
            Position::Unlocked | Position::Moving | Position::Jammed => false,
        }
    }

    /// Whether the latch was seen locked since the state began; without a sensor, whether it has
    /// had the time.
    fn seen_locked(&self, now: Uptime, seen: &Observation<'_>) -> bool {
        let since = match self.state {
            State::Relocking { since, .. } | State::Starting { since } => since,
            _ => Uptime::ZERO,
        };
        if self.settings.feedback {
            let told = seen.latch.is_some_and(|r| r.at > since || since == Uptime::ZERO);
            told && self.position(now, seen) == Position::Locked
        } else {
            now.since(since) >= self.settings.relock_within
        }
    }

    /// The gravest thing that is broken.
    fn broken(&self, now: Uptime, seen: &Observation<'_>) -> Option<Fault> {
        let s = &self.settings;
        let age = |at: Option<Uptime>| now.since(at.unwrap_or(self.started));
        let position = self.position(now, seen);
        let amiss = self.latch_amiss.is_some_and(|at| now.since(at) > s.relock_within);
        if s.feedback && age(seen.latch.map(|r| r.at)) > s.latch_silent_after {
            Some(Fault::LatchSilent)
        } else if position == Position::Jammed && (amiss || self.state.wishes_unlocked()) {
            Some(Fault::LatchJammed)
        } else if s.feedback && amiss {
            Some(Fault::ForcedOpen)
        } else if age(seen.frame_at) > s.camera_lost_after {
            Some(Fault::CameraLost)
        } else if self.sick.is_some_and(|(_, at)| now.since(at) > s.picture_fault_after) {
            Some(Fault::PictureUseless)
        } else if seen.vision == VisionHealth::Failed {
            Some(Fault::VisionFailed)
        } else if s.journal_required && seen.journal == JournalHealth::Failed {
            Some(Fault::JournalFailed)
        } else {
            None
        }
    }
}

fn rule_proof(rule: &Ruling) -> Proof {
    let words = match rule {
        Ruling::Allowed => None,
        Ruling::Denied { rule } => Some(format!("the rule \"{rule}\" forbids it now")),
        Ruling::ClockNeeded { rule } => {
            Some(format!("the rule \"{rule}\" needs the time, and the clock cannot be trusted"))
        }
        Ruling::NotAllowed => Some("no rule allows it now".to_owned()),
    };
    Proof { proof: ProofKind::Rule, passed: words.is_none(), value: None, limit: None, words }
}

/// Acting: one transition a step at most.
impl Door {
    /// What must happen whatever the state. Returns whether it did.
    fn exit_to_safety(
        &mut self,
        now: Uptime,
        found: &Findings,
        request: Option<Request>,
        events: &mut Vec<Event>,
    ) -> bool {
        let Some(cause) = found.fault else { return false };
        let spared = match self.state {
            State::Fault { cause: current, .. } => current == cause || current.needs_owner(),
            // Who opened does not need the camera; who is in the passage must get through.
            State::Open { whom, .. } => cause.blinds_only() && whom != Whom::Dog,
            State::HeldOpen { .. } | State::Passing { .. } => cause.blinds_only(),
            // First see it locked, then complain.
            State::Relocking { .. } | State::Starting { .. } => cause.blinds_only(),
            State::Idle { .. }
            | State::Watching { .. }
            | State::Refused { .. }
            | State::Scheduled { .. }
            | State::HeldLocked { .. } => false,
        };
        if spared {
            return false;
        }
        // The owner's wish to stay locked outlives the fault.
        self.hold_locked |= request == Some(Request::HoldLocked);
        self.enter_fault(now, cause, events);
        true
    }

    /// Does what somebody asked, if it may be done. Returns whether it did.
    fn obey(
        &mut self,
        now: Uptime,
        found: &Findings,
        request: Option<Request>,
        events: &mut Vec<Event>,
    ) -> bool {
        let at_rest = match self.state {
            State::Idle { .. }
            | State::Watching { .. }
            | State::Refused { .. }
            | State::Scheduled { .. }
            | State::HeldLocked { .. } => found.seen_locked,
            State::Fault { cause, .. } => cause.blinds_only() && found.seen_locked,
            State::Open { .. } | State::HeldOpen { .. } => true,
            State::Starting { .. } | State::Passing { .. } | State::Relocking { .. } => false,
        };
        match request {
            None => false,
            Some(Request::Leave) => {
                let may = at_rest
                    && !self.hold_locked
                    && !self.state.wishes_unlocked()
                    && found.way_out == Ruling::Allowed;
                if may {
                    self.enter_open(now, Whom::Leaving, events);
                }
                may
            }
            Some(Request::OpenOnce) => {
                let may = at_rest && !matches!(self.state, State::HeldOpen { .. });
                if may {
                    self.enter_open(now, Whom::Owner, events);
                }
                may
            }
            Some(Request::HoldOpen) => {
                if at_rest {
                    self.hold_locked = false;
                    self.enter_held_open(now, events);
                }
                at_rest
            }
            Some(Request::HoldLocked) => {
                self.hold_locked = true;
                self.settle_owner(now, found, events)
            }
            Some(Request::Release) => {
                self.hold_locked = false;
                self.settle_owner(now, found, events)
            }
        }
    }

    /// Carries the owner's change of mind into the state. Returns whether the state changed.
    fn settle_owner(&mut self, now: Uptime, found: &Findings, events: &mut Vec<Event>) -> bool {
        let hold = self.hold_locked;
        match &mut self.state {
            State::HeldOpen { .. } => self.enter_relocking(now, 1, Relock::Owner, events),
            State::Open { .. } | State::Passing { .. } if hold => {
                self.enter_relocking(now, 1, Relock::Owner, events);
            }
            State::Fault { acknowledged, .. } => {
                *acknowledged = true;
                return false;
            }
            State::Idle { .. }
            | State::Watching { .. }
            | State::Refused { .. }
            | State::Scheduled { .. }
            | State::HeldLocked { .. } => {
                let was_held = matches!(self.state, State::HeldLocked { .. });
                if was_held != hold {
                    if was_held {
                        events.push(Event { at: now, what: What::Released });
                    }
                    self.enter_rest(now, found, events);
                }
            }
            State::Starting { .. }
            | State::Relocking { .. }
            | State::Open { .. }
            | State::Passing { .. } => return false,
        }
        true
    }

    /// The ordinary course of things: one match on the state.
    fn advance(
        &mut self,
        now: Uptime,
        found: &Findings,
        seen: &Observation<'_>,
        events: &mut Vec<Event>,
    ) {
        let s = &self.settings;
        match self.state {
            State::Starting { since } => {
                if found.seen_locked {
                    events.push(Event { at: now, what: What::Ready });
                    self.enter_rest(now, found, events);
                } else if now.since(since) > s.relock_within {
                    self.enter_fault(now, Fault::LatchJammed, events);
                }
            }
            State::Idle { .. } | State::Watching { .. } | State::Refused { .. } => {
                self.advance_resting(now, found, events);
            }
            State::Open { until, whom, .. } => {
                let forbidden = match whom {
                    Whom::Dog => found.rule != Ruling::Allowed,
                    Whom::Leaving => found.way_out != Ruling::Allowed,
                    Whom::Owner => false,
                };
                if whom == Whom::Dog && !found.may_stay_open {
                    self.enter_relocking(now, 1, Relock::Veto, events);
                } else if forbidden {
                    self.enter_relocking(now, 1, Relock::Schedule, events);
                } else if now >= until {
                    self.enter_relocking(now, 1, Relock::TimeUp, events);
                } else if seen.passage == Some(true) {
                    self.enter_passing(now, whom, events);
                }
            }
            State::Passing { since, until, whom, clear } => {
                let clear = match seen.passage {
                    Some(true) => None,
                    Some(false) | None => clear.or(Some(now)),
                };
                let followed = clear.is_some() && found.cat && whom == Whom::Dog;
                if clear.is_some_and(|at| now.since(at) >= s.clear_for) {
                    self.enter_relocking(now, 1, Relock::Passed, events);
                } else if followed {
                    self.enter_relocking(now, 1, Relock::Veto, events);
                } else if now >= until {
                    self.enter_relocking(now, 1, Relock::TimeUp, events);
                } else {
                    self.state = State::Passing { since, until, whom, clear };
                }
            }
            State::Relocking { since, attempt, why } => {
                if found.seen_locked {
                    events.push(Event { at: now, what: What::Relocked });
                    self.enter_rest(now, found, events);
                } else if now.since(since) > s.relock_within {
                    events.push(Event { at: now, what: What::RelockFailed { attempt } });
                    if attempt < RELOCK_ATTEMPTS {
                        self.enter_relocking(now, attempt + 1, why, events);
                    } else {
                        self.enter_fault(now, Fault::RelockFailed, events);
                    }
                }
            }
            State::Scheduled { .. } => {
                if found.rule == Ruling::Allowed {
                    events.push(Event { at: now, what: What::ScheduleReleased });
                    self.enter_rest(now, found, events);
                }
            }
            State::HeldOpen { until, .. } => {
                if now >= until {
                    self.enter_relocking(now, 1, Relock::TimeUp, events);
                }
            }
            State::HeldLocked { .. } => {}
            State::Fault { cause, acknowledged, .. } => {
                let settled = !cause.needs_owner() || acknowledged;
                if found.fault.is_none() && found.seen_locked && settled {
                    events.push(Event { at: now, what: What::FaultCleared { cause } });
                    self.enter_rest(now, found, events);
                }
            }
        }
    }

    /// The locked states in which the camera decides.
    fn advance_resting(&mut self, now: Uptime, found: &Findings, events: &mut Vec<Event>) {
        if found.rule != Ruling::Allowed {
            self.enter_scheduled(now, events);
            return;
        }
        if found.all_proofs() {
            self.enter_open(now, Whom::Dog, events);
            return;
        }
        let (s, state) = (&self.settings, self.state);
        match (found.refused, state) {
            (Some(class), State::Refused { since, class: before, .. }) if class == before => {
                self.state = State::Refused { since, class, until: now + s.refuse_for };
            }
            (Some(class), _) => self.enter_refused(now, class, events),
            // A cat is remembered; anything else is forgotten as soon as it is no longer seen.
            (None, State::Refused { class: Class::Cat, until, .. }) if now < until => {}
            (None, State::Refused { .. }) => self.enter_rest(now, found, events),
            (None, State::Idle { .. }) if found.busy => {
                self.state = State::Watching { since: now };
            }
            (None, State::Watching { .. })
                if !found.busy && now.since(self.last_busy) >= s.calm_for =>
            {
                self.state = State::Idle { since: now };
            }
            (None, _) => {}
        }
    }

    /// Opens and closes the bracket around one visit.
    fn close_approach(&mut self, now: Uptime, found: &Findings, events: &mut Vec<Event>) {
        let verdict = match self.state {
            State::Open { whom: Whom::Dog, .. } => Some(Verdict::LetIn),
            State::Refused { .. } => Some(Verdict::KeptShut),
            State::Open { .. }
            | State::HeldOpen { .. }
            | State::HeldLocked { .. }
            | State::Scheduled { .. }
            | State::Fault { .. } => Some(Verdict::Overruled),
            State::Starting { .. }
            | State::Idle { .. }
            | State::Watching { .. }
            | State::Passing { .. }
            | State::Relocking { .. } => None,
        };
        if self.approach.is_none() && found.busy {
            self.approach = Some((now, Verdict::Nobody));
            events.insert(0, Event { at: now, what: What::ApproachBegan });
        }
        let Some((_, so_far)) = &mut self.approach else { return };
        // What the camera decided outweighs what overruled it; having let in outweighs all.
        if let Some(verdict) = verdict {
            let weight = |v: Verdict| match v {
                Verdict::Nobody => 0,
                Verdict::Overruled => 1,
                Verdict::KeptShut => 2,
                Verdict::LetIn => 3,
            };
            if weight(verdict) > weight(*so_far) {
                *so_far = verdict;
            }
        }
        let verdict = *so_far;
        let settled = !self.state.wishes_unlocked()
            && !matches!(self.state, State::Relocking { .. } | State::Refused { .. });
        if settled && !found.busy && now.since(self.last_busy) >= self.settings.calm_for {
            self.approach = None;
            events.push(Event { at: now, what: What::ApproachEnded { verdict } });
        }
    }
}

/// How often the door tries to lock before it calls for help.
const RELOCK_ATTEMPTS: u8 = 2;

/// The only writers of the state.
impl Door {
    fn enter_open(&mut self, now: Uptime, whom: Whom, events: &mut Vec<Event>) {
        self.state = State::Open { since: now, until: now + self.settings.open_for, whom };
        events.push(Event { at: now, what: What::Opened { whom } });
    }

    fn enter_passing(&mut self, now: Uptime, whom: Whom, events: &mut Vec<Event>) {
        let until = now + self.settings.pass_for;
        self.state = State::Passing { since: now, until, whom, clear: None };
        events.push(Event { at: now, what: What::Passing });
    }

    fn enter_relocking(&mut self, now: Uptime, attempt: u8, why: Relock, events: &mut Vec<Event>) {
        self.state = State::Relocking { since: now, attempt, why };
        if attempt == 1 {
            events.push(Event { at: now, what: What::Relocking { why } });
        }
    }

    fn enter_refused(&mut self, now: Uptime, class: Class, events: &mut Vec<Event>) {
        self.state = State::Refused { since: now, class, until: now + self.settings.refuse_for };
        events.push(Event { at: now, what: What::Refused { class } });
    }

    fn enter_scheduled(&mut self, now: Uptime, events: &mut Vec<Event>) {
        self.state = State::Scheduled { since: now };
        events.push(Event { at: now, what: What::ScheduleLocked });
    }

    fn enter_held_open(&mut self, now: Uptime, events: &mut Vec<Event>) {
        let until = now + self.settings.hold_open_for;
        self.state = State::HeldOpen { since: now, until };
        events.push(Event { at: now, what: What::HeldOpen { until } });
    }

    fn enter_fault(&mut self, now: Uptime, cause: Fault, events: &mut Vec<Event>) {
        if self.state.wishes_unlocked() {
            events.push(Event { at: now, what: What::Relocking { why: Relock::Fault } });
        }
        self.state = State::Fault { since: now, cause, acknowledged: false };
        events.push(Event { at: now, what: What::FaultRaised { cause } });
    }

    /// The locked state that fits: held by the owner, by a rule, or watching, or idle.
    fn enter_rest(&mut self, now: Uptime, found: &Findings, events: &mut Vec<Event>) {
        if self.hold_locked {
            self.state = State::HeldLocked { since: now };
            events.push(Event { at: now, what: What::HeldLocked });
        } else if found.rule != Ruling::Allowed {
            self.enter_scheduled(now, events);
        } else if found.busy {
            self.state = State::Watching { since: now };
        } else {
            self.state = State::Idle { since: now };
        }
    }
}
