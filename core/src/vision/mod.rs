//! Pictures in, sightings out: model manifests, the only preprocessing, and the networks.

pub mod fast;
