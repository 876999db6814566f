//! The pure core of Pawlatch: a picture and a time go in, a wish for the latch comes out.
//!
//! Nothing here reads a clock, sleeps, touches a file or keeps a global. See ARCHITECTURE.md.

pub mod door;
pub mod event;
pub mod eye;
pub mod frame;
pub mod gate;
pub mod identity;
pub mod keeper;
pub mod metrics;
pub mod policy;
pub mod sight;
pub mod track;
pub mod units;
pub mod vision;
