//! The one place where the running time is read.

use std::time::Instant;

use pawlatch_core::units::Uptime;

/// Gives the time since it was made. Copies agree.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// The time since it was made. Monotonic: no change of the wall clock moves it.
    pub fn now(&self) -> Uptime {
        let ms = self.started.elapsed().as_millis();
        Uptime::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
    }
}
