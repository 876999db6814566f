//! A door in virtual time: sightings by hand, a simulated latch, a recorder that can fail.
#![allow(dead_code, reason = "each test program uses its part")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pawlatch::appliance::{self, Appliance, Sample, TICK};
use pawlatch::config::Config;
use pawlatch::journal::{Entry, Recorder};
use pawlatch::latch::{Bolt, Latch, LatchError, Leased, SimulatedLatch};
use pawlatch_core::door::{Decision, DesiredLatch, JournalHealth, Position, State};
use pawlatch_core::event::What;
use pawlatch_core::frame::PictureHealth;
use pawlatch_core::sight::{Class, ClassProbs, Classification, Detection, Sighting, Sightings};
use pawlatch_core::units::{Rect, Score, Uptime};

/// Something of which detector and classifier are sure, on the left or the right of the picture.
pub fn sure(class: Class, right: bool) -> Sighting {
    let masses = Class::ALL.map(|c| if c == class { 0.96 } else { 0.01 });
    let x = if right { 0.6 } else { 0.1 };
    Sighting {
        detection: Detection {
            rect: Rect::clipped(x, 0.3, x + 0.3, 0.9).unwrap(),
            class,
            label: class.name().to_owned(),
            score: Score::clamped(0.9),
        },
        classification: ClassProbs::from_masses(masses)
            .filter(|_| class != Class::Person)
            .map(|probs| Classification { probs, rejected: false }),
        dog: Score::clamped(if class == Class::Dog { 0.9 } else { 0.0 }),
        likeness: Vec::new(),
    }
}

/// A good picture with these in it.
pub fn frame_with(at: Uptime, seen: Vec<Sighting>) -> Sightings {
    let motion = if seen.is_empty() { Score::ZERO } else { Score::ONE };
    Sightings { captured_at: at, health: PictureHealth::Good, motion, looked: true, seen }
}

/// A recorder whose health can be set.
#[derive(Debug)]
pub struct TestRecorder {
    pub entries: Vec<Entry>,
    pub health: JournalHealth,
}

impl Recorder for TestRecorder {
    fn record(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    fn health(&self) -> JournalHealth {
        self.health
    }
}

/// A simulated latch that the test can reach while the appliance owns it.
#[derive(Clone)]
pub struct Reachable(pub Arc<Mutex<SimulatedLatch>>);

impl Latch for Reachable {
    fn drive(&mut self, now: Uptime, to: Bolt) -> Result<(), LatchError> {
        self.0.lock().unwrap().drive(now, to)
    }

    fn observe(&mut self, now: Uptime) -> Result<Position, LatchError> {
        self.0.lock().unwrap().observe(now)
    }
}

/// An appliance in virtual time with everything it decided.
pub struct World {
    pub appliance: Appliance<Leased, TestRecorder>,
    pub latch: Reachable,
    pub now: Uptime,
    pub decisions: Vec<Decision>,
}

impl World {
    /// A door that has found its latch locked and is idle.
    pub fn idle() -> Self {
        let mut world = Self::starting(&Config::default(), JournalHealth::Writable);
        world.play(Duration::from_secs(1), |now| seeing(now, Vec::new()));
        assert_eq!(world.state(), "idle");
        world
    }

    /// A door that is starting.
    pub fn starting(config: &Config, health: JournalHealth) -> Self {
        let latch = SimulatedLatch::new(config.latch.simulated.clone());
        let latch = Reachable(Arc::new(Mutex::new(latch)));
        let leased = Leased::new(Box::new(latch.clone()), config.latch.lease.clone());
        let keeper = appliance::keeper(config, false, Uptime::ZERO);
        let recorder = TestRecorder { entries: Vec::new(), health };
        let appliance = Appliance::new(keeper, leased, recorder);
        Self { appliance, latch, now: Uptime::ZERO, decisions: Vec::new() }
    }

    /// Ticks for `span`, with what `sample` gives at each time.
    pub fn play(&mut self, span: Duration, mut sample: impl FnMut(Uptime) -> Sample) {
        let end = self.now + span;
        while self.now < end {
            self.now = self.now + TICK;
            let decision = self.appliance.tick(self.now, sample(self.now));
            self.decisions.push(decision);
        }
    }

    /// The state's name after the last tick.
    pub fn state(&self) -> &'static str {
        self.decisions.last().map_or("starting", |d| d.state.name())
    }

    /// How often the latch was told to unlock.
    pub fn openings(&self) -> usize {
        let opened = |d: &&Decision| d.events.iter().any(|e| matches!(e.what, What::Opened { .. }));
        self.decisions.iter().filter(opened).count()
    }

    /// Asserts that the door stayed locked all the time and named `reason` as missing at the end.
    #[track_caller]
    pub fn kept_shut_because(&self, reason: &str) {
        assert_eq!(self.openings(), 0, "opened");
        assert!(self.decisions.iter().all(|d| d.latch == DesiredLatch::Locked));
        let last = self.decisions.last().unwrap();
        let missing: Vec<&str> = last.missing().collect();
        assert!(missing.iter().any(|m| m.contains(reason)), "{reason:?} is not in {missing:?}");
    }

    /// The fault at the end.
    pub fn fault(&self) -> Option<pawlatch_core::event::Fault> {
        match self.decisions.last().map(|d| d.state) {
            Some(State::Fault { cause, .. }) => Some(cause),
            _ => None,
        }
    }

    /// Where the latch reports the bolt.
    pub fn bolt(&self) -> Option<Position> {
        use pawlatch::latch::LatchPort as _;
        self.appliance.latch().report().map(|r| r.position)
    }
}

/// A fresh, good frame with these in it, every other tick, as a camera at 10 frames a second.
pub fn seeing(now: Uptime, seen: Vec<Sighting>) -> Sample {
    let fresh = now.as_millis().is_multiple_of(100);
    Sample { sightings: fresh.then(|| frame_with(now, seen)), ..Sample::default() }
}
