//! One door in one world: creatures come, things break, and after every moment the invariants
//! are checked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use pawlatch::latch::{
    Bolt, Latch, LatchError, LatchPort, LeaseSettings, Leased, SimulatedLatch, SimulatedSettings,
};
use pawlatch_core::door::{
    Decision, DesiredLatch, DoorSettings, JournalHealth, Position, Request, State, VisionHealth,
};
use pawlatch_core::event::{Fault, What, Whom};
use pawlatch_core::frame::PictureHealth;
use pawlatch_core::keeper::{Input, Keeper};
use pawlatch_core::policy::{Effect, Policy, Rule, Schedule, Who};
use pawlatch_core::sight::Class;
use pawlatch_core::track::TrackSettings;
use pawlatch_core::units::Uptime;

use crate::perception::{self, Looks, Perception};

/// Time between two moments: one frame and one control cycle.
pub const MOMENT: Duration = Duration::from_millis(100);
/// Time the simulated bolt takes, with what its sensor lags.
const TRAVEL: Duration = Duration::from_millis(170);

/// What came of a number of approaches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Approaches played.
    pub approaches: u64,
    /// Moments played.
    pub moments: u64,
    /// Approaches of a dog alone, with nothing broken.
    pub dogs: u64,
    /// Of those, ended without the door having been opened.
    pub dogs_kept_out: u64,
    /// Approaches without any dog, with nothing broken.
    pub strangers: u64,
    /// Of those, the door was opened.
    pub strangers_let_in: u64,
    /// Approaches of a dog and a cat, with nothing broken.
    pub with_cat: u64,
    /// Of those, the door was opened.
    pub with_cat_let_in: u64,
    /// Approaches of a dog and a person, with nothing broken.
    pub with_person: u64,
    /// Of those, the door was opened.
    pub with_person_let_in: u64,
    /// Faults the door raised.
    pub faults: u64,
    /// Restarts of the whole appliance.
    pub restarts: u64,
}

impl Tally {
    /// Adds what came of other approaches.
    pub fn add(&mut self, other: &Self) {
        self.approaches += other.approaches;
        self.moments += other.moments;
        self.dogs += other.dogs;
        self.dogs_kept_out += other.dogs_kept_out;
        self.strangers += other.strangers;
        self.strangers_let_in += other.strangers_let_in;
        self.with_cat += other.with_cat;
        self.with_cat_let_in += other.with_cat_let_in;
        self.with_person += other.with_person;
        self.with_person_let_in += other.with_person_let_in;
        self.faults += other.faults;
        self.restarts += other.restarts;
    }
}

/// What can go wrong for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mishap {
    /// No frame comes.
    NoFrames,
    /// Frames come late by this.
    LateFrames(Duration),
    /// The picture cannot be used.
    Sick(PictureHealth),
    /// The networks fail.
    NoVision,
    /// Nothing can be recorded.
    NoJournal,
    /// The bolt sticks.
    Stuck,
    /// The latch does not answer.
    Silent,
    /// The control loop hangs.
    Hung,
    /// The wall clock jumps by this many seconds.
    ClockJump(i64),
    /// The process is killed and started again.
    Killed,
}

/// A latch that the world can reach into while the lease drives it.
#[derive(Clone)]
struct Shared(Arc<Mutex<SimulatedLatch>>);

impl Shared {
    fn reach(&self) -> MutexGuard<'_, SimulatedLatch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Latch for Shared {
    fn drive(&mut self, now: Uptime, bolt: Bolt) -> Result<(), LatchError> {
        self.reach().drive(now, bolt)
    }
    fn observe(&mut self, now: Uptime) -> Result<Position, LatchError> {
        self.reach().observe(now)
    }
}

/// One door in its world.
pub struct World<'p> {
    seed: u64,
    rng: Rng,
    perception: &'p Perception,
    now: Uptime,
    epoch: Timestamp,
    zone: TimeZone,
    keeper: Keeper,
    settings: DoorSettings,
    bolt: Shared,
    leased: Leased,
    mishap: Option<(Mishap, Uptime)>,
    /// Since when the bolt has not been locked.
    unlocked_since: Option<Uptime>,
    /// When the latch was last stuck or silent.
    latch_broke_at: Option<Uptime>,
    /// When the control loop last commanded.
    commanded_at: Uptime,
    /// Whether somebody is in the passage.
    passing_until: Option<Uptime>,
    tally: Tally,
}

/// 2026-05-01T10:00:00Z: a spring day, hours from the rule at night.
fn epoch() -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(1_777_629_600)
}

fn rules() -> Policy {
    let rule = |name: &str, effect, when| Rule {
        name: name.to_owned(),
        who: Who::Class(Class::Dog),
        ways: Vec::new(),
        effect,
        when,
    };
    let night = Schedule {
        from: jiff::civil::time(2, 0, 0, 0),
        to: jiff::civil::time(3, 0, 0, 0),
        days: Vec::new(),
    };
    Policy::new(vec![rule("dogs", Effect::Allow, None), rule("night", Effect::Deny, Some(night))])
}

impl<'p> World<'p> {
    /// A world that follows from `seed`, its door just started.
    pub fn new(seed: u64, perception: &'p Perception) -> Self {
        let settings = DoorSettings::default();
        let bolt = Shared(Arc::new(Mutex::new(SimulatedLatch::new(SimulatedSettings {
            travel: Duration::from_millis(150),
            feedback_delay: Duration::from_millis(20),
            jam_every: 0,
            state_path: None,
        }))));
        Self {
            seed,
            rng: Rng::with_seed(seed),
            perception,
            now: Uptime::ZERO,
            epoch: epoch(),
            zone: TimeZone::UTC,
            keeper: start(&settings, Uptime::ZERO),
            leased: lease(&bolt),
            settings,
            bolt,
            mishap: None,
            unlocked_since: None,
            latch_broke_at: None,
            commanded_at: Uptime::ZERO,
            passing_until: None,
            tally: Tally::default(),
        }
    }

    /// Plays `approaches`, then lets everything be well and sees the door live: a dog that is
    /// plainly one is let in.
    ///
    /// # Errors
    /// The first violated invariant, with seed and time.
    pub fn play(mut self, approaches: u64) -> Result<Tally, String> {
        for _ in 0..approaches {
            self.approach().map_err(|why| {
                format!("seed {} at {}: {why}\n{:#?}", self.seed, self.now, self.keeper.door())
            })?;
        }
        self.must_live().map_err(|why| {
            format!("seed {} at {}: {why}\n{:#?}", self.seed, self.now, self.keeper.door())
        })?;
        Ok(self.tally)
    }

    /// One approach: a cast comes, stays a while, goes, and it is quiet again.
    fn approach(&mut self) -> Result<(), String> {
        let cast = self.cast();
        let breaks = self.rng.u8(..10) == 0;
        let stays = 15 + self.rng.u32(..35);
        let breaks_at = self.rng.u32(..stays);
        let mut opened = false;
        let was_well = self.mishap.is_none() && self.at_rest();
        let mut looks: Vec<Looks> =
            cast.iter().map(|&class| Looks::new(&mut self.rng, self.perception, class)).collect();
        for moment in 0..stays + 25 {
            if breaks && moment == breaks_at {
                self.mishap = Some(self.mishap());
            }
            let here: &mut [Looks] = if moment < stays { &mut looks } else { &mut [] };
            let request = self.request(breaks);
            let decision = self.moment(here, request)?;
            let for_dog = |w: &What| matches!(w, What::Opened { whom: Whom::Dog });
            let let_in =
                decision.as_ref().is_some_and(|d| d.events.iter().any(|e| for_dog(&e.what)));
            opened |= let_in;
            if let_in && cast == [Class::Dog] && self.rng.u8(..3) > 0 {
                // The dog goes through: it is gone from view and in the beam for a while.
                looks.clear();
                self.passing_until = Some(self.now + Duration::from_millis(1_500));
            }
        }
        self.tally.approaches += 1;
        if was_well && !breaks && self.mishap.is_none() {
            self.count(&cast, opened);
        }
        Ok(())
    }

    fn count(&mut self, cast: &[Class], opened: bool) {
        let t = &mut self.tally;
        let (total, opens) = if cast == [Class::Dog] {
            t.dogs_kept_out += u64::from(!opened);
            t.dogs += 1;
            return;
        } else if cast.contains(&Class::Dog) && cast.contains(&Class::Cat) {
            (&mut t.with_cat, &mut t.with_cat_let_in)
        } else if cast.contains(&Class::Dog) {
            (&mut t.with_person, &mut t.with_person_let_in)
        } else {
            (&mut t.strangers, &mut t.strangers_let_in)
        };
        *total += 1;
        *opens += u64::from(opened);
    }

    fn cast(&mut self) -> Vec<Class> {
        use Class::{Cat, Dog, Nothing, Other, Person};
        match self.rng.u8(..20) {
            0..8 => vec![Dog],
            8..13 => vec![Cat],
            13..15 => vec![Other],
            15 => vec![Person],
            16 => vec![Dog, Cat],
            17 => vec![Dog, Person],
            18 => vec![Cat, Cat],
            _ if self.perception.answers(Nothing).is_empty() => Vec::new(),
            _ => vec![Nothing],
        }
    }

    fn mishap(&mut self) -> (Mishap, Uptime) {
        let lasts = Duration::from_millis(200 + self.rng.u64(..9_000));
        let sick = [
            PictureHealth::Black,
            PictureHealth::Frozen,
            PictureHealth::Noise,
            PictureHealth::Covered,
        ];
        let year = 365 * 86_400;
        // A clock that jumped is not trusted for long: only some worlds have such clocks, or the
        // door would mostly be locked for want of the time.
        let kinds = if self.seed.is_multiple_of(10) { 11 } else { 9 };
        let mishap = match self.rng.u8(..kinds) {
            0 => Mishap::NoFrames,
            1 => Mishap::LateFrames(Duration::from_millis(300 + self.rng.u64(..3_000))),
            2 => Mishap::Sick(sick[self.rng.usize(..sick.len())]),
            3 => Mishap::NoVision,
            4 => Mishap::NoJournal,
            5 => Mishap::Stuck,
            6 => Mishap::Silent,
            7 => Mishap::Hung,
            8 => Mishap::Killed,
            9 => Mishap::ClockJump(year),
            _ => Mishap::ClockJump(-year),
        };
        (mishap, self.now + lasts)
    }

    /// The owner does something now and then.
    fn request(&mut self, breaks: bool) -> Option<Request> {
        if !breaks || self.rng.u16(..400) != 0 {
            return None;
        }
        let all = [
            Request::OpenOnce,
            Request::HoldLocked,
            Request::HoldOpen,
            Request::Release,
            Request::Leave,
        ];
        Some(all[self.rng.usize(..all.len())])
    }

    /// One moment: time passes, a frame is taken, the door decides, the latch obeys, and the
    /// invariants are checked. `None` if the control loop hangs.
    fn moment(
        &mut self,
        looks: &mut [Looks],
        request: Option<Request>,
    ) -> Result<Option<Decision>, String> {
        self.now = self.now + MOMENT;
        self.tally.moments += 1;
        if self.mishap.is_some_and(|(_, until)| self.now >= until) {
            self.mishap = None;
        }
        let mishap = self.mishap.map(|(mishap, _)| mishap);
        self.bolt.reach().set_stuck(mishap == Some(Mishap::Stuck));
        self.bolt.reach().set_silent(mishap == Some(Mishap::Silent));
        if mishap == Some(Mishap::Killed) {
            self.restart();
        }
        let decision = if mishap == Some(Mishap::Hung) {
            // The latch thread goes on by itself; an error is what the silent latch is for.
            let _ = self.leased.step(self.now, None);
            None
        } else {
            let input = self.input(mishap, looks, request);
            let decision = self.keeper.step(self.now, &input);
            self.leased.command(self.now, decision.latch);
            self.commanded_at = self.now;
            Some(decision)
        };
        self.check(decision.as_ref())?;
        Ok(decision)
    }

    fn restart(&mut self) {
        self.tally.restarts += 1;
        // A killed process drives nothing; the bolt stays where it is until the next start.
        let mut fresh = lease(&self.bolt);
        std::mem::swap(&mut fresh, &mut self.leased);
        std::mem::forget(fresh);
        let hold = self.keeper.door().hold_locked();
        self.keeper = start(&self.settings, self.now);
        if hold {
            let (tracks, door) = (TrackSettings::default(), self.settings.clone());
            self.keeper = Keeper::new(tracks, door, rules(), true, self.now);
        }
        self.mishap = None;
    }

    fn input(
        &mut self,
        mishap: Option<Mishap>,
        looks: &mut [Looks],
        request: Option<Request>,
    ) -> Input {
        let seen: Vec<_> =
            looks.iter_mut().filter_map(|l| l.next(&mut self.rng, self.perception)).collect();
        let health = match mishap {
            Some(Mishap::Sick(health)) => health,
            _ => PictureHealth::Good,
        };
        let late = match mishap {
            Some(Mishap::LateFrames(by)) => by,
            _ => Duration::from_millis(60),
        };
        let comes = !matches!(mishap, Some(Mishap::NoFrames | Mishap::NoVision));
        if let Some(Mishap::ClockJump(seconds)) = mishap {
            self.epoch = self
                .epoch
                .saturating_add(jiff::SignedDuration::from_secs(seconds))
                .unwrap_or(self.epoch);
            self.mishap = None;
        }
        let passing = self.passing_until.is_some_and(|until| self.now < until);
        let wall = self.epoch + Duration::from_millis(self.now.as_millis());
        Input {
            sightings: comes.then(|| perception::frame(self.now - late, health, seen)),
            vision: if mishap == Some(Mishap::NoVision) {
                VisionHealth::Failed
            } else {
                VisionHealth::Ready
            },
            journal: if mishap == Some(Mishap::NoJournal) {
                JournalHealth::Failed
            } else {
                JournalHealth::Writable
            },
            latch: self.leased.report(),
            passage: Some(passing),
            request,
            wall: Some(wall.to_zoned_datetime(self.zone.clone())),
        }
    }

    /// What must never be otherwise.
    fn check(&mut self, decision: Option<&Decision>) -> Result<(), String> {
        let truth = self.bolt.reach().truth(self.now);
        if truth == Position::Locked {
            self.unlocked_since = None;
        } else {
            self.unlocked_since.get_or_insert(self.now);
        }
        let open = self.unlocked_since.map_or(Duration::ZERO, |at| self.now.since(at));
        if matches!(self.mishap, Some((Mishap::Stuck | Mishap::Silent, _))) {
            self.latch_broke_at = Some(self.now);
        }
        // A bolt that stuck is driven again only after a pause.
        let pause = Duration::from_secs(11);
        let broken_latch = self.latch_broke_at.is_some_and(|at| self.now.since(at) < pause);
        if let Some(decision) = decision {
            self.check_decision(decision)?;
            if matches!(decision.state, State::HeldOpen { .. }) {
                // The owner's time does not count.
                self.unlocked_since = Some(self.now);
                return Ok(());
            }
            let longest = self.settings.longest_open() + TRAVEL + MOMENT;
            if !broken_latch && open > longest {
                return Err(format!("unlocked for {open:?}, at most {longest:?}"));
            }
        } else {
            let silence = self.now.since(self.commanded_at);
            let lapsed = self.settings.lease + TRAVEL + 2 * MOMENT;
            if silence > lapsed && truth != Position::Locked && !broken_latch {
                return Err(format!("nobody commands for {silence:?}, yet the bolt is {truth:?}"));
            }
        }
        Ok(())
    }

    fn check_decision(&mut self, decision: &Decision) -> Result<(), String> {
        for event in &decision.events {
            match event.what {
                What::Opened { whom: Whom::Dog } if decision.proofs.iter().any(|p| !p.passed) => {
                    return Err("opened for a dog without every proof".to_owned());
                }
                What::FaultRaised { .. } => self.tally.faults += 1,
                _ => {}
            }
        }
        let latch_fault = matches!(
            decision.state,
            State::Fault { cause: Fault::RelockFailed | Fault::LatchSilent, .. }
        );
        if latch_fault && decision.latch != DesiredLatch::Locked {
            return Err("a broken latch is told to unlock".to_owned());
        }
        if let DesiredLatch::UnlockedUntil(until) = decision.latch
            && until > self.now + self.settings.lease
        {
            return Err(format!("a lease until {until}"));
        }
        if self.mishap.is_some_and(|(m, _)| m == Mishap::NoVision)
            && matches!(decision.state, State::Open { whom: Whom::Dog, .. })
        {
            return Err("open for a dog that no network sees".to_owned());
        }
        Ok(())
    }

    fn at_rest(&self) -> bool {
        matches!(self.keeper.door().state(), State::Idle { .. } | State::Watching { .. })
    }

    /// With everything well again the door comes to rest and lets a plain dog in.
    fn must_live(&mut self) -> Result<(), String> {
        self.mishap = None;
        self.epoch = epoch();
        self.passing_until = None;
        self.moment(&mut [], Some(Request::Release))?;
        // Long enough for the clock to be trusted again after a jump.
        for _ in 0..7_000 {
            if self.at_rest() && self.unlocked_since.is_none() {
                break;
            }
            let waits = matches!(
                self.keeper.door().state(),
                State::Fault { .. } | State::HeldLocked { .. } | State::HeldOpen { .. }
            );
            self.moment(&mut [], waits.then_some(Request::Release))?;
        }
        if !self.at_rest() {
            return Err("the door does not come to rest although all is well".to_owned());
        }
        // The clock was put right just now, which is a jump too; and a cat may be remembered.
        for _ in 0..6_200 {
            self.moment(&mut [], None)?;
        }
        for _ in 0..60 {
            let mut dog = [Looks::plain_dog()];
            if let Some(d) = self.moment(&mut dog, None)?
                && matches!(d.state, State::Open { whom: Whom::Dog, .. })
            {
                return Ok(());
            }
        }
        Err("a plain dog is kept out although all is well".to_owned())
    }
}

fn start(settings: &DoorSettings, now: Uptime) -> Keeper {
    Keeper::new(TrackSettings::default(), settings.clone(), rules(), false, now)
}

fn lease(bolt: &Shared) -> Leased {
    let settings = LeaseSettings {
        longest: DoorSettings::default().lease,
        dwell: Duration::from_millis(500),
        max_unlocks_per_minute: 20,
    };
    Leased::new(Box::new(bolt.clone()), settings)
}
