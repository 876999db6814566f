//! Acting: one transition a step at most.

use super::look::{Findings, Identity};
use super::{Door, Observation, Request, State};
use crate::event::{Event, Fault, Relock, Verdict, What, Whom};
use crate::policy::Ruling;
use crate::sight::Class;
use crate::units::Uptime;

impl Door {
    /// What must happen whatever the state. Returns whether it did.
    pub(super) fn exit_to_safety(
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
    pub(super) fn obey(
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
    pub(super) fn advance(
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
                if found.hours == Ruling::Allowed {
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
        if found.hours != Ruling::Allowed {
            self.enter_scheduled(now, events);
            return;
        }
        if found.all_proofs() {
            self.let_in = found.who.as_ref().map(|who| who.candidates.clone());
            tell_who(now, found, events);
            self.enter_open(now, Whom::Dog, events);
            return;
        }
        let (s, state) = (&self.settings, self.state);
        match (found.refused, state) {
            (Some(class), State::Refused { since, class: before, .. }) if class == before => {
                self.state = State::Refused { since, class, until: now + s.refuse_for };
            }
            (Some(class), _) => {
                if class == Class::Dog {
                    tell_who(now, found, events);
                }
                self.enter_refused(now, class, events);
            }
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
    pub(super) fn close_approach(
        &mut self,
        now: Uptime,
        found: &Findings,
        events: &mut Vec<Event>,
    ) {
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
            self.approach = Some(Verdict::Nobody);
            events.insert(0, Event { at: now, what: What::ApproachBegan });
        }
        let Some(so_far) = &mut self.approach else { return };
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

/// Tells which dog it is, where a rule depends on it.
fn tell_who(now: Uptime, found: &Findings, events: &mut Vec<Event>) {
    if let Some(who) = &found.who {
        let Identity { candidates, likeness, needed, .. } = who;
        let animals = candidates.clone();
        let what = What::Recognised { animals, likeness: *likeness, needed: *needed };
        events.push(Event { at: now, what });
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
        } else if found.hours != Ruling::Allowed {
            self.enter_scheduled(now, events);
        } else if found.busy {
            self.state = State::Watching { since: now };
        } else {
            self.state = State::Idle { since: now };
        }
    }
}
