//! The lease by itself: which way the bolt shall be driven now. No clock, no thread, no latch.

use std::collections::VecDeque;
use std::time::Duration;

use pawlatch_core::door::DesiredLatch;
use pawlatch_core::units::Uptime;

use super::Bolt;

/// Limits that hold whatever is commanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseSettings {
    /// Longest a single command may keep the latch unlocked, counted from its arrival.
    pub longest: Duration,
    /// Shortest time the latch stays locked before it is unlocked again.
    pub dwell: Duration,
    /// Most times the latch is unlocked within [`DUTY_WINDOW`].
    pub max_unlocks_per_minute: usize,
}

/// The time over which unlocking is counted: fast toggling burns the driver of a coil.
pub const DUTY_WINDOW: Duration = Duration::from_secs(60);

/// Turns wishes that lapse into the direction to drive.
///
/// The bolt is unlocked only while the newest command says so and has not lapsed. Locking is
/// never delayed; unlocking waits for the dwell time and the duty limit, which is safe. If time
/// runs backwards it is taken to stand still.
#[derive(Debug, Clone)]
pub struct Lease {
    settings: LeaseSettings,
    now: Uptime,
    /// Until when the newest command keeps the bolt drawn; `None` if it said "locked".
    until: Option<Uptime>,
    bolt: Bolt,
    locked_at: Option<Uptime>,
    unlocks: VecDeque<Uptime>,
}

impl Lease {
    /// A lease that wishes the bolt locked.
    pub const fn new(settings: LeaseSettings) -> Self {
        Self {
            settings,
            now: Uptime::ZERO,
            until: None,
            bolt: Bolt::Locked,
            locked_at: None,
            unlocks: VecDeque::new(),
        }
    }

    /// Takes in the newest command, if there is one, and says which way to drive.
    pub fn step(&mut self, now: Uptime, command: Option<DesiredLatch>) -> Bolt {
        let now = now.max(self.now);
        self.now = now;
        match command {
            Some(DesiredLatch::Locked) => self.until = None,
            Some(DesiredLatch::UnlockedUntil(until)) => {
                self.until = Some(until.min(now + self.settings.longest));
            }
            None => {}
        }
        // A lapsed lease is over for good, not only while the clock says so.
        self.until = self.until.filter(|until| now < *until);
        match (self.bolt, self.until.is_some()) {
            (Bolt::Locked, true) if self.rested() => {
                self.unlocks.push_back(now);
                self.bolt = Bolt::Unlocked;
            }
            (Bolt::Unlocked, false) => {
                self.locked_at = Some(now);
                self.bolt = Bolt::Locked;
            }
            (Bolt::Locked, _) | (Bolt::Unlocked, true) => {}
        }
        self.bolt
    }

    /// When the lease lapses; `None` if there is none. [`Lease::step`] must be called by then.
    pub const fn until(&self) -> Option<Uptime> {
        self.until
    }

    /// The time of the last step.
    pub const fn now(&self) -> Uptime {
        self.now
    }

    /// Whether the latch may be unlocked again.
    fn rested(&mut self) -> bool {
        while self.unlocks.front().is_some_and(|at| self.now.since(*at) >= DUTY_WINDOW) {
            self.unlocks.pop_front();
        }
        let dwelt = self.locked_at.is_none_or(|at| self.now.since(at) >= self.settings.dwell);
        dwelt && self.unlocks.len() < self.settings.max_unlocks_per_minute
    }
}
