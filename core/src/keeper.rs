//! The doorkeeper: tracker, clock watch and door stepped together.
//!
//! This is the unit that is recorded and replayed. The same keeper given the same inputs makes
//! the same decisions, byte for byte.

use jiff::ZonedDateTime;
use serde::{Deserialize, Serialize};

use crate::door::{
    Decision, Door, DoorSettings, JournalHealth, LatchReport, Observation, Request, VisionHealth,
};
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
        self.door.step(
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
        )
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
