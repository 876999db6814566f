//! The appliance: cameras, latch, journal, and the loop that steps the core; and what the command
//! line shows of it.

pub mod appliance;
pub mod bundle;
pub mod camera;
pub mod clock;
pub mod config;
pub mod demo;
pub mod download;
pub mod exam;
pub mod intent;
pub mod journal;
pub mod latch;
pub mod lines;
pub mod models;
mod ordeal;
pub mod overlay;
pub mod owner;
pub mod panel;
pub mod releases;
pub mod replay;
pub mod report;
pub mod shadow;
pub mod slot;
pub mod systemd;
