//! The doorkeeper: tracker, clock watch and door stepped together.
//!
//! This is the unit that is recorded and replayed. The same keeper given the same inputs makes
//! the same decisions, byte for byte.

use jiff::ZonedDateTime;
use serde::{Deserialize, Serialize};

use crate::door::{
    Decision, Door, DoorSettings, JournalHealth, LatchReport, Observation, Request, VisionHealth,
};
use crate::event::What;
use crate::frame::PictureHealth;
use crate::identity::Roll;
use crate::policy::{ClockWatch, Policy};
use crate::sight::Sightings;
use crate::track::{Track, TrackSettings, Tracker};
use crate::units::Uptime;

/// Everything the keeper is told in one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// What was perceived in a frame since the last step, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sightings: Option<Sightings>,
    /// Health of the networks.
    pub vision: VisionHealth,
    /// Health of the journal.
    pub journal: JournalHealth,
    /// Newest report of the latch.
    pub latch: Option<LatchReport>,
    /// Whether the passage beam is broken; `None` without a beam.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passage: Option<bool>,
    /// What somebody asked since the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Request>,
    /// The wall clock's reading, with its zone; `None` if there is no clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall: Option<ZonedDateTime>,
}

/// Tracker, clock watch and door with their memory. Serialised, it is where a replay begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Keeper {
    tracker: Tracker,
    clock: ClockWatch,
    door: Door,
    frame_at: Option<Uptime>,
    picture: PictureHealth,
}

impl Keeper {
    /// A keeper that has seen nothing, of a locked door; `hold_locked` if the owner wanted it
    /// held locked before the start.
    pub fn new(
        tracks: TrackSettings,
        door: DoorSettings,
        policy: Policy,
        hold_locked: bool,
        now: Uptime,
    ) -> Self {
        Self {
            tracker: Tracker::new(tracks),
            clock: ClockWatch::default(),
            door: Door::new(door, policy, hold_locked, now),
            frame_at: None,
            picture: PictureHealth::Good,
        }
    }

    /// With animals that rules can be about; the sightings must hold how like each of them a dog
    /// is, in this order.
    #[must_use]
    pub fn knowing(self, roll: Roll) -> Self {
        Self { door: self.door.knowing(roll), ..self }
    }

    /// Takes in what was perceived and decides.
    pub fn step(&mut self, now: Uptime, input: &Input) -> Decision {
        // A late frame is no news, and one from the future is no frame.
        let news = input
            .sightings
            .as_ref()
            .filter(|s| s.captured_at <= now && self.frame_at.is_none_or(|at| s.captured_at > at));
        if let Some(sightings) = news {
            self.frame_at = Some(sightings.captured_at);
            self.picture = sightings.health;
        }
        self.tracker.step(now, news);
        let wall = input.wall.as_ref().filter(|wall| self.clock.trusts(now, wall.timestamp()));
        let decision = self.door.step(
            now,
            &Observation {
                tracks: self.tracker.tracks(),
                frame_at: self.frame_at,
                picture: self.picture,
                vision: input.vision,
                journal: input.journal,
                latch: input.latch,
                passage: input.passage,
                request: input.request,
                wall,
            },
        );
        // Who has had its turn proves itself anew.
        if decision.events.iter().any(|event| matches!(event.what, What::Relocking { .. })) {
            self.tracker.spend(now);
        }
        decision
    }

    /// Animals and persons followed at present.
    pub fn tracks(&self) -> &[Track] {
        self.tracker.tracks()
    }

    /// The door.
    pub const fn door(&self) -> &Door {
        &self.door
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::{Position, State};
    use crate::sight::{Class, ClassProbs, Classification, Detection, Sighting};
    use crate::units::Score;

    fn dog(captured_at: u64) -> Sightings {
        let masses = Class::ALL.map(|class| if class == Class::Dog { 0.96 } else { 0.01 });
        let probs = ClassProbs::from_masses(masses).unwrap();
        Sightings {
            captured_at: Uptime::from_millis(captured_at),
            health: PictureHealth::Good,
            motion: Score::ONE,
            looked: true,
            seen: vec![Sighting {
                detection: Detection {
                    rect: [0.3, 0.3, 0.6, 0.9].try_into().unwrap(),
                    class: Class::Dog,
                    label: "dog".to_owned(),
                    score: Score::clamped(0.8),
                },
                classification: Some(Classification { probs, rejected: false }),
                dog: Score::ONE,
                likeness: Vec::new(),
            }],
        }
    }

    /// Steps every 100 ms; the camera sees a dog where `seen` says so.
    fn openings(seen: impl Fn(u64) -> bool) -> Vec<u64> {
        let hour = std::time::Duration::from_secs(3_600);
        // What was seen long ago is held to be fresh, and nobody is forgotten.
        let tracks = TrackSettings { forget_after: hour, ..TrackSettings::default() };
        let door = DoorSettings { fresh_for: hour, ..DoorSettings::default() };
        let mut keeper = Keeper::new(tracks, door, Policy::default(), false, Uptime::ZERO);
        let (mut before, mut openings) = (false, Vec::new());
        for ms in (100..30_000).step_by(100) {
            let now = Uptime::from_millis(ms);
            let position = if before { Position::Unlocked } else { Position::Locked };
            let decision = keeper.step(
                now,
                &Input {
                    sightings: seen(ms).then(|| dog(ms - 50)),
                    vision: VisionHealth::Ready,
                    journal: JournalHealth::Writable,
                    latch: Some(LatchReport { position, at: now }),
                    passage: None,
                    request: None,
                    wall: None,
                },
            );
            let open = matches!(decision.state, State::Open { .. });
            openings.extend((open && !before).then_some(ms));
            before = open;
        }
        openings
    }

    #[test]
    fn what_opened_the_door_once_does_not_open_it_again() {
        let once = openings(|ms| ms <= 3_000);
        assert_eq!(once.len(), 1, "{once:?}");
        // A dog that still stands there proves itself anew, which takes as long as the first time.
        let again = openings(|_| true);
        assert!(again.len() > 2, "{again:?}");
        let open_for = DoorSettings::default().open_for.as_millis() as u64;
        for pair in again.windows(2) {
            let proof = pair[1] - pair[0] - open_for;
            assert!(proof >= again[0], "{again:?}");
        }
    }

    #[test]
    fn a_frame_from_before_the_door_locked_proves_nothing_after_it() {
        let mut tracker = Tracker::new(TrackSettings::default());
        for ms in (0..2_000).step_by(100) {
            tracker.step(Uptime::from_millis(ms), Some(&dog(ms)));
        }
        tracker.spend(Uptime::from_millis(2_050));
        tracker.step(Uptime::from_millis(2_100), Some(&dog(2_040)));
        assert_eq!(tracker.tracks()[0].dog, 0.0);
        tracker.step(Uptime::from_millis(2_300), Some(&dog(2_240)));
        assert!(tracker.tracks()[0].dog > 0.0);
    }
}
