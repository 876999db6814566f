//! The appliance: cameras, latch, journal, and the loop that steps the core.

pub mod appliance;
pub mod camera;
pub mod clock;
pub mod config;
pub mod intent;
pub mod journal;
pub mod latch;
pub mod slot;
pub mod systemd;
