//! Messages.
use super::house::House;
use std::sync::Arc;
/// Runs.
pub(super) fn run(_house: &Arc<House>) {}
