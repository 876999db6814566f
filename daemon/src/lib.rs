//! The appliance: cameras, latch, journal, command line.
