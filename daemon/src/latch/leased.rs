//! A latch and the lease it is driven by, stepped together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use pawlatch_core::door::{DesiredLatch, LatchReport, Position};
use pawlatch_core::units::Uptime;

use super::{Bolt, Latch, LatchError, LatchPort, Lease, LeaseSettings};

/// How long to wait before a bolt that is not where it should be is driven once more.
const RETRY: Duration = Duration::from_millis(500);
/// How often to retry at that pace.
const QUICK_RETRIES: u32 = 4;
/// Pace of the retries after that.
const SLOW_RETRY: Duration = Duration::from_secs(10);
/// How often locking is tried when the end has come.
const LAST_TRIES: u32 = 3;

/// Owns a latch and drives it as its lease says. Dropped, it locks.
///
/// In virtual time it serves as the [`LatchPort`] itself; live, [`LatchThread`] steps it.
///
/// [`LatchThread`]: super::LatchThread
pub struct Leased {
    latch: Box<dyn Latch>,
    lease: Lease,
    /// What was last driven successfully, and when; `None` if the last attempt failed.
    driven: Option<(Bolt, Uptime)>,
    retries: u32,
    report: Option<LatchReport>,
}

impl Leased {
    /// Takes `latch` over. The first step drives it to locked.
    pub fn new(latch: Box<dyn Latch>, settings: LeaseSettings) -> Self {
        Self { latch, lease: Lease::new(settings), driven: None, retries: 0, report: None }
    }

    /// Drives the latch the way the lease says and observes it.
    ///
    /// # Errors
    /// If the latch does not take the command or does not answer; the next step tries again.
    pub fn step(
        &mut self,
        now: Uptime,
        command: Option<DesiredLatch>,
    ) -> Result<LatchReport, LatchError> {
        let bolt = self.lease.step(now, command);
        // The lease's time never runs backwards, whatever `now` does.
        let now = self.lease.now();
        if self.driven.is_none_or(|(driven, _)| driven != bolt) {
            self.retries = 0;
            self.drive(now, bolt)?;
        }
        let position = self.latch.observe(now)?;
        if self.retry_due(now, bolt, position) {
            self.retries = self.retries.saturating_add(1);
            self.drive(now, bolt)?;
        }
        let report = LatchReport { position, at: now };
        self.report = Some(report);
        Ok(report)
    }

    /// When the lease lapses; [`Leased::step`] must be called by then.
    pub const fn until(&self) -> Option<Uptime> {
        self.lease.until()
    }

    fn drive(&mut self, now: Uptime, bolt: Bolt) -> Result<(), LatchError> {
        self.driven = None;
        self.latch.drive(now, bolt)?;
        self.driven = Some((bolt, now));
        Ok(())
    }

    fn retry_due(&self, now: Uptime, bolt: Bolt, position: Position) -> bool {
        let there = match position {
            Position::Locked => bolt == Bolt::Locked,
            Position::Unlocked => bolt == Bolt::Unlocked,
            Position::Moving | Position::Unknown => true,
            Position::Jammed => false,
        };
        let pace = if self.retries < QUICK_RETRIES { RETRY } else { SLOW_RETRY };
        !there && self.driven.is_some_and(|(_, at)| now.since(at) >= pace)
    }
}

impl LatchPort for Leased {
    fn command(&mut self, now: Uptime, desired: DesiredLatch) {
        // Without a report the door learns that the latch is silent.
        if let Err(error) = self.step(now, Some(desired)) {
            tracing::debug!(%error, "latch");
        }
    }

    fn report(&self) -> Option<LatchReport> {
        self.report
    }

    fn is_alive(&self) -> bool {
        true
    }
}

impl Drop for Leased {
    /// Also runs while a panic unwinds the thread.
    fn drop(&mut self) {
        let now = self.lease.now();
        for _ in 0..LAST_TRIES {
            // The backend may be what panicked; a second panic here must not end the process
            // before the last try.
            let tried = catch_unwind(AssertUnwindSafe(|| self.latch.drive(now, Bolt::Locked)));
            match tried {
                Ok(Ok(())) => return,
                Ok(Err(error)) => tracing::error!(%error, "cannot lock at the end"),
                Err(_) => tracing::error!("the latch backend panicked while locking at the end"),
            }
        }
    }
}
