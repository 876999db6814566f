//! The world around the door, simulated.
