//! The world around the door, simulated: animals that come and go, networks that err as they
//! were measured to err, cameras, latches and clocks that fail; and the invariants that must
//! hold in it whatever happens.
//!
//! Everything follows from a seed: the same seed gives the same world.

pub mod perception;
pub mod report;
pub mod world;
