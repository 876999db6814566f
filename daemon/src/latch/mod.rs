//! The latch: one trait, one file per backend, and the dead-man that drives it.
//!
//! The door never drives a latch. It states a wish that lapses ([`DesiredLatch`]); the dead-man
//! ([`Leased`], on its own thread as [`LatchThread`]) owns the latch, drives it, and locks by
//! itself when the wish lapses, when whoever wishes is gone, and when it ends, however it ends.

mod actuator;
mod driven;
mod lease;
mod leased;
mod simulated;
mod thread;
mod wired;

use std::time::Duration;

use pawlatch_core::door::{DesiredLatch, LatchReport, Position};
use pawlatch_core::units::Uptime;
use thiserror::Error;

use crate::clock::Clock;
use crate::lines::{self, BoardSettings, LineError};
pub use actuator::{CoilSettings, ServoSettings};
pub use driven::DrivenSettings;
pub use lease::{Lease, LeaseSettings};
pub use leased::Leased;
pub use simulated::{SimulatedLatch, SimulatedSettings};
pub use thread::LatchThread;
pub use wired::{Mover, WiredLatch, WiredSettings};

/// What a latch can be driven to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bolt {
    /// Home: the door cannot be opened.
    Locked,
    /// Drawn: the door can be pushed open.
    Unlocked,
}

/// A latch. `now` is the running time; backends of real latches need not look at it.
pub trait Latch: Send {
    /// Starts driving the bolt; does not wait for it. Driving it where it already is, or is going
    /// to, is harmless; driving one that is stuck tries again.
    ///
    /// # Errors
    /// If the latch does not take the command.
    fn drive(&mut self, now: Uptime, to: Bolt) -> Result<(), LatchError>;

    /// Where the bolt is; [`Position::Unknown`] if the latch has no sensor.
    ///
    /// # Errors
    /// If the latch does not answer.
    fn observe(&mut self, now: Uptime) -> Result<Position, LatchError>;
}

/// What the control loop needs of the latch: to wish, and to be told.
pub trait LatchPort {
    /// Takes over the newest wish.
    fn command(&mut self, now: Uptime, desired: DesiredLatch);

    /// The newest report; `None` before the first.
    fn report(&self) -> Option<LatchReport>;

    /// Whether somebody still drives the latch.
    fn is_alive(&self) -> bool;
}

/// Why a latch does not do what it should.
#[derive(Debug, Error)]
pub enum LatchError {
    /// The backend failed.
    #[error("the latch does not answer: {0}")]
    Silent(String),
    /// A line failed, or cannot be had.
    #[error("the latch cannot be driven")]
    Line(#[from] LineError),
    /// It was told to lock and was not seen locked.
    #[error("the latch was told to lock and after {} ms it is {position:?}: look at the door", within.as_millis())]
    NotLocked {
        /// How long it was waited for.
        within: Duration,
        /// Where the bolt was seen last.
        position: Position,
    },
}

/// Which latch, and how it is driven.
#[derive(Debug, Clone, PartialEq)]
pub struct LatchSettings {
    /// Limits of the dead-man.
    pub lease: LeaseSettings,
    /// The real latch; `None`: the simulated one.
    pub wired: Option<WiredSettings>,
    /// The board its lines are on.
    pub board: BoardSettings,
    /// The simulated latch.
    pub simulated: SimulatedSettings,
}

/// Opens the configured latch. A real one's lines are at their locked level from the first moment;
/// the simulated one's bolt is left where it is.
///
/// # Errors
/// If a line cannot be had.
pub fn open(settings: &LatchSettings) -> Result<Box<dyn Latch>, LatchError> {
    if let Some(wired) = &settings.wired {
        let board = lines::board(&settings.board)?;
        return Ok(Box::new(WiredLatch::open(board.as_ref(), wired)?));
    }
    Ok(Box::new(SimulatedLatch::new(settings.simulated.clone())))
}

/// Drives `latch` to locked and waits until it is seen locked; a latch without sensor is given
/// the time.
///
/// # Errors
/// If it does not answer, or is not seen locked within `within`.
pub fn lock(latch: &mut dyn Latch, within: Duration, clock: Clock) -> Result<(), LatchError> {
    let until = clock.now() + within;
    latch.drive(clock.now(), Bolt::Locked)?;
    loop {
        let position = latch.observe(clock.now())?;
        match position {
            Position::Locked => return Ok(()),
            Position::Unknown if clock.now() >= until => return Ok(()),
            _ if clock.now() >= until => return Err(LatchError::NotLocked { within, position }),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[cfg(test)]
mod tests;
