//! The appliance: cameras, latch, journal, command line.

pub mod models;
pub mod overlay;
