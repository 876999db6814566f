//! The closed, versioned vocabulary of everything that can happen at the door.
//!
//! The journal stores these, the page, MQTT and the report tell them, the tests check them. A
//! change that old readers cannot understand raises [`VERSION`].

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::frame::PictureHealth;
use crate::sight::Class;
use crate::units::Uptime;

/// Version of this vocabulary, stored beside every recorded event.
pub const VERSION: u32 = 2;

/// Something that happened, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, since the program started.
    pub at: Uptime,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// The latch was seen locked and every proof of health is there: the door is in service.
    Ready,
    /// Something moved or stood before the door.
    ApproachBegan,
    /// The approach is over.
    ApproachEnded {
        /// How it ended.
        verdict: Verdict,
    },
    /// It was settled which dog it is, where a rule depends on it; told right before what was
    /// decided.
    Recognised {
        /// Every animal it may be. Empty: an unknown dog.
        animals: Vec<String>,
        /// How like the likeliest animal it is, `-1..=1`.
        likeness: f32,
        /// Likeness from which a dog is taken for an animal.
        needed: f32,
    },
    /// The latch was told to unlock.
    Opened {
        /// For whom.
        whom: Whom,
    },
    /// The door will stay shut for a while.
    Refused {
        /// What was recognised.
        class: Class,
    },
    /// The passage beam was broken while unlocked.
    Passing,
    /// The latch was told to lock again.
    Relocking {
        /// Why.
        why: Relock,
    },
    /// The latch was seen locked after having been unlocked.
    Relocked,
    /// The latch was not seen locked in time.
    RelockFailed {
        /// Which attempt, from 1.
        attempt: u8,
    },
    /// Something broke; the door is locked.
    FaultRaised {
        /// What broke.
        cause: Fault,
    },
    /// The fault is gone and the latch was seen locked.
    FaultCleared {
        /// What had broken.
        cause: Fault,
    },
    /// The owner holds the door open.
    HeldOpen {
        /// Until when.
        until: Uptime,
    },
    /// The owner holds the door locked.
    HeldLocked,
    /// The owner gave the door back to its rules.
    Released,
    /// A rule keeps the door locked now.
    ScheduleLocked,
    /// No rule keeps the door locked any longer.
    ScheduleReleased,
    /// The picture became better or worse.
    Picture {
        /// How it is now.
        health: PictureHealth,
    },
}

/// How an approach ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The door was unlocked for the dog.
    LetIn,
    /// The door was kept shut for something recognised.
    KeptShut,
    /// Nothing worth a decision was there, or it went before it was certain.
    Nobody,
    /// The owner, a schedule or a fault decided, not the camera.
    Overruled,
}

/// For whom the door was unlocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whom {
    /// A dog that the camera recognised.
    Dog,
    /// Whoever the owner asked to let through.
    Owner,
    /// Somebody inside who wants out.
    Leaving,
}

/// Why the latch was told to lock again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relock {
    /// The dog went through.
    Passed,
    /// Nobody came through in time.
    TimeUp,
    /// Something appeared that must not come in, or a proof was lost.
    Veto,
    /// The owner said so.
    Owner,
    /// A rule began to forbid it.
    Schedule,
    /// Something broke.
    Fault,
}

/// What can break. While one lasts, the door is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The latch was not seen locked after two attempts.
    RelockFailed,
    /// The latch was seen unlocked without having been told to.
    ForcedOpen,
    /// The latch reports that it is jammed.
    LatchJammed,
    /// The latch does not answer.
    LatchSilent,
    /// No fresh frame from the camera.
    CameraLost,
    /// The camera delivers, but its picture cannot be used.
    PictureUseless,
    /// The networks cannot be run.
    VisionFailed,
    /// Nothing can be recorded.
    JournalFailed,
}

impl Fault {
    /// Whether only the owner can end it, because it may come back the moment it is forgotten.
    pub const fn needs_owner(self) -> bool {
        matches!(self, Self::RelockFailed)
    }

    /// Whether it only keeps the door from recognising or recording, while the latch itself is
    /// sound: the owner and whoever wants out may still pass.
    pub const fn blinds_only(self) -> bool {
        matches!(
            self,
            Self::CameraLost | Self::PictureUseless | Self::VisionFailed | Self::JournalFailed
        )
    }

    /// What the owner is told, with the remedy.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::RelockFailed => {
                "the latch did not lock twice in a row: look for something in the way, then hold \
                 the button to lock"
            }
            Self::ForcedOpen => "the latch is unlocked although it should not be: check the door",
            Self::LatchJammed => "the latch is jammed: free it",
            Self::LatchSilent => "the latch does not answer: check its wires and power",
            Self::CameraLost => "no picture from the camera: check its cable",
            Self::PictureUseless => {
                "the camera's picture cannot be used: clean or uncover the lens"
            }
            Self::VisionFailed => "the networks cannot be run: `pawlatch check` says which and why",
            Self::JournalFailed => "nothing can be recorded: is the disk full or read-only?",
        }
    }
}

/// Whom a dog is taken for, in words: "looks like Rex 0.83, 0.78 needed".
pub fn recognised(animals: &[String], likeness: f32, needed: f32) -> String {
    match animals {
        [] => format!("an unknown dog: likeness {likeness:.2}, {needed:.2} needed"),
        names => format!("looks like {} {likeness:.2}, {needed:.2} needed", names.join(" or ")),
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Ready => f.write_str("in service"),
            What::ApproachBegan => f.write_str("something is at the door"),
            What::ApproachEnded { verdict } => f.write_str(match verdict {
                Verdict::LetIn => "approach over: let in",
                Verdict::KeptShut => "approach over: kept shut",
                Verdict::Nobody => "approach over: nobody",
                Verdict::Overruled => "approach over: not decided by the camera",
            }),
            What::Opened { whom: Whom::Dog } => f.write_str("unlocked for the dog"),
            What::Opened { whom: Whom::Owner } => f.write_str("unlocked by the owner"),
            What::Opened { whom: Whom::Leaving } => f.write_str("unlocked to let somebody out"),
            What::Recognised { animals, likeness, needed } => {
                f.write_str(&recognised(animals, *likeness, *needed))
            }
            What::Refused { class: Class::Dog } => {
                f.write_str("kept shut: a dog that may not come in")
            }
            What::Refused { class } => write!(f, "kept shut: {class}"),
            What::Passing => f.write_str("somebody is passing"),
            What::Relocking { why } => f.write_str(match why {
                Relock::Passed => "locking: the passage is clear again",
                Relock::TimeUp => "locking: nobody came through in time",
                Relock::Veto => "locking: a proof was lost",
                Relock::Owner => "locking: the owner said so",
                Relock::Schedule => "locking: a rule says so",
                Relock::Fault => "locking: something broke",
            }),
            What::Relocked => f.write_str("locked"),
            What::RelockFailed { attempt } => write!(f, "did not lock (attempt {attempt})"),
            What::FaultRaised { cause } => write!(f, "fault: {}", cause.describe()),
            What::FaultCleared { .. } => f.write_str("the fault is gone"),
            What::HeldOpen { until } => write!(f, "held open by the owner until {until}"),
            What::HeldLocked => f.write_str("held locked by the owner"),
            What::Released => f.write_str("back to the rules"),
            What::ScheduleLocked => f.write_str("locked by a rule"),
            What::ScheduleReleased => f.write_str("no rule locks the door any longer"),
            What::Picture { health } => f.write_str(health.describe()),
        }
    }
}
