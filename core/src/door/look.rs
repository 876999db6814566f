//! Looking: what the inputs mean, without effect on the state.

use std::time::Duration;

use super::{Door, JournalHealth, Observation, Position, Proof, ProofKind, State, VisionHealth};
use crate::event::{Event, Fault, What, Whom, recognised};
use crate::frame::PictureHealth;
use crate::policy::{Ruling, Subject, Way};
use crate::sight::Class;
use crate::track::{LOOKS_NEEDED, Track};
use crate::units::Uptime;

/// How many times as long a cat is remembered at most, while the view has not been empty since.
const REMEMBERED: u32 = 3;

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
    /// Which dog it is, where a rule depends on it.
    pub who: Option<Identity>,
    /// What the rules say about the dog that is there; without one, about dogs.
    pub rule: Ruling,
    /// What they say about dogs, whichever comes: nobody else needs to be looked at if none may.
    pub hours: Ruling,
    pub way_out: Ruling,
    pub fault: Option<Fault>,
    pub seen_locked: bool,
}

/// Which dog it is.
pub(super) struct Identity {
    /// Every animal it may be; none: an unknown dog.
    pub candidates: Vec<String>,
    /// How like the likeliest animal it is.
    pub likeness: f32,
    /// Likeness from which a dog is taken for an animal.
    pub needed: f32,
    /// Whether enough was seen of it to say so.
    pub settled: bool,
    words: String,
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
            self.cat_stays = true;
        }
        self.cat_stays &= !seen.tracks.is_empty();
        if self.cat_stays {
            self.cat_near = Some(now);
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

    /// How much longer a cat is remembered. Who has been in view ever since may be that cat, seen
    /// from behind; it is remembered until the view is empty, but not for ever, lest a dog that
    /// was taken for a cat once waits in vain.
    fn cat_memory(&self, now: Uptime) -> Duration {
        let refuse_for = self.settings.refuse_for;
        let left = |since: Option<Uptime>, whole: Duration| {
            since.map_or(Duration::ZERO, |at| whole.saturating_sub(now.since(at)))
        };
        left(self.cat_near, refuse_for).min(left(self.last_cat, refuse_for * REMEMBERED))
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
        // Who has been in view ever since a cat was is held to be that cat.
        let that_cat = self.cat_stays && seen.tracks.iter().any(|t| t.dog <= reject);
        let refused = if that_cat || strongest(Class::Cat) >= accept {
            Some(Class::Cat)
        } else if s.person_vetoes && strongest(Class::Person) >= accept {
            Some(Class::Person)
        } else if target.is_some_and(|t| self.is_kept_out(t, seen)) {
            Some(Class::Dog)
        } else {
            let settled =
                |t: &&Track| t.dog <= reject && t.other >= s.veto && t.other > t.person.max(t.cat);
            seen.tracks.iter().find(settled).map(|_| Class::Other)
        };
        let who = target.and_then(|t| self.identify(t));
        let hours = self.policy.ruling_for_dogs(&self.roll.names, Way::In, seen.wall);
        let rule = self.rule(who.as_ref(), &hours, seen);
        let mut proofs = self.proofs(now, seen, target, &rule);
        if self.policy.tells_dogs_apart() {
            proofs.push(identity_proof(who.as_ref()));
            proofs.push(Proof::plain(
                ProofKind::NoOtherDog,
                !self.other_dog(target, seen),
                "another dog is in view that may not come in",
            ));
        }
        let holds = |kind| proofs.iter().any(|p| p.proof == kind && p.passed);
        use ProofKind::{Agreement, FreshFrame, NoCat, NoOtherDog, NoPerson, Picture};
        let others = !self.policy.tells_dogs_apart() || holds(NoOtherDog);
        Findings {
            target: target.map(|t| t.id),
            busy: !seen.tracks.is_empty(),
            cat: !holds(NoCat),
            refused,
            may_stay_open: others
                && [FreshFrame, Picture, NoCat, NoPerson, Agreement].into_iter().all(holds),
            way_out: self.policy.ruling(Subject::Any(Class::Dog), Way::Out, seen.wall),
            who,
            rule,
            hours,
            fault: self.broken(now, seen),
            seen_locked: self.seen_locked(now, seen),
            proofs,
        }
    }

    /// Which dog `track` is; `None` if no rule depends on it.
    fn identify(&self, track: &Track) -> Option<Identity> {
        if !self.policy.tells_dogs_apart() {
            return None;
        }
        let (roll, likeness) = (&self.roll, &track.likeness);
        let settled = roll.is_empty() || track.looks >= LOOKS_NEEDED;
        let candidates = if settled { roll.candidates(likeness) } else { Vec::new() };
        let nearest = roll.likeliest(likeness);
        let (value, needed) = (nearest.map_or(-1.0, |(_, likeness)| likeness), roll.needed);
        let words = match nearest {
            _ if roll.is_empty() => {
                "an unknown dog: no animal is enrolled for the model in use".to_owned()
            }
            _ if !settled => "not certain yet which dog it is".to_owned(),
            Some((name, value)) if candidates.is_empty() => {
                format!("an unknown dog: most like {name}, {value:.2}, {needed:.2} needed")
            }
            _ => recognised(&candidates, value, needed),
        };
        Some(Identity { candidates, likeness: value, needed, settled, words })
    }

    /// What the rules say about the dog that is there, or for whom the door is open.
    fn rule(&self, who: Option<&Identity>, hours: &Ruling, seen: &Observation<'_>) -> Ruling {
        let open = matches!(self.state, State::Open { whom: Whom::Dog, .. });
        // Who was recognised may turn its back; the door stays open for whom it was opened.
        let let_in = self.let_in.as_ref().filter(|_| open);
        match let_in.or(who.map(|who| &who.candidates)) {
            Some(candidates) => self.policy.ruling_for_dog(candidates, Way::In, seen.wall),
            None => hours.clone(),
        }
    }

    /// Whether `track` is a dog, settled which, that the rules keep out.
    fn is_kept_out(&self, track: &Track, seen: &Observation<'_>) -> bool {
        track.dog >= self.settings.budget.accept()
            && self.identify(track).is_some_and(|who| who.settled && !self.admits(&who, seen))
    }

    fn admits(&self, who: &Identity, seen: &Observation<'_>) -> bool {
        self.policy.ruling_for_dog(&who.candidates, Way::In, seen.wall) == Ruling::Allowed
    }

    /// Whether a dog beside `target` speaks against opening: one that may not come in, or of which
    /// that is not certain yet. An open door is locked only for one of which it is certain, and
    /// only beside another: who was let in may turn its back.
    fn other_dog(&self, target: Option<&Track>, seen: &Observation<'_>) -> bool {
        let open = self.state.wishes_unlocked();
        let dogs = || seen.tracks.iter().filter(|t| t.dog >= self.settings.veto);
        let beside = |t: &Track| {
            if open { dogs().count() > 1 } else { target.is_none_or(|o| o.id != t.id) }
        };
        dogs().any(|t| {
            let forbidden = self.identify(t).is_some_and(|who| {
                let certain = who.settled && self.admits(&who, seen);
                if open { who.settled && !certain } else { !certain }
            });
            forbidden && beside(t)
        })
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
        let memory = self.cat_memory(now);
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

fn identity_proof(who: Option<&Identity>) -> Proof {
    let words = who.map_or("no dog whose likeness could be told", |who| &who.words);
    Proof {
        proof: ProofKind::Identity,
        passed: who.is_some_and(|who| who.settled),
        value: who.map(|who| who.likeness),
        limit: who.map(|who| who.needed),
        words: Some(words.to_owned()),
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
