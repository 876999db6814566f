//! Looking: what the inputs mean, without effect on the state.

use std::time::Duration;

use super::{Door, JournalHealth, Observation, Position, Proof, ProofKind, State, VisionHealth};
use crate::event::{Event, Fault, What};
use crate::frame::PictureHealth;
use crate::policy::{Ruling, Way};
use crate::sight::Class;
use crate::track::Track;
use crate::units::Uptime;

/// What one look at all inputs finds, before anything is changed.
pub(super) struct Findings {
    pub proofs: Vec<Proof>,
    pub target: Option<u32>,
    /// Something alive is in view.
    pub busy: bool,
    /// A cat is believed to be in view.
    pub cat: bool,
    /// What has been recognised as not being a dog.
    pub refused: Option<Class>,
    /// Nothing in view forbids that it stays open.
    pub may_stay_open: bool,
    pub rule: Ruling,
    pub way_out: Ruling,
    pub fault: Option<Fault>,
    pub seen_locked: bool,
}

impl Findings {
    pub fn all_proofs(&self) -> bool {
        self.proofs.iter().all(|p| p.passed)
    }
}

impl Door {
    /// Keeps the few things that must be remembered from step to step.
    pub(super) fn remember(
        &mut self,
        now: Uptime,
        seen: &Observation<'_>,
        events: &mut Vec<Event>,
    ) {
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

    pub(super) fn analyse(&self, now: Uptime, seen: &Observation<'_>) -> Findings {
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
        use ProofKind::{Agreement, FreshFrame, NoCat, NoPerson, Picture};
        Findings {
            target: target.map(|t| t.id),
            busy: !seen.tracks.is_empty(),
            cat: !holds(NoCat),
            refused,
            may_stay_open: [FreshFrame, Picture, NoCat, NoPerson, Agreement].into_iter().all(holds),
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
        // At the veto itself the door is already shut.
        let cat = strongest(Class::Cat);
        let cat = Proof {
            value: Some(cat),
            limit: Some(s.veto),
            ..Proof::plain(K::NoCat, cat < s.veto, "a cat is in view")
        };
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
