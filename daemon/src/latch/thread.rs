//! The dead-man's thread: steps [`Leased`] in real time.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pawlatch_core::door::{DesiredLatch, LatchReport};
use pawlatch_core::units::Uptime;

use super::{Latch, LatchPort, LeaseSettings, Leased};
use crate::clock::Clock;
use crate::ordeal::panic_if_asked;
use crate::slot::{Receiver, Sender, Taken, slot};

/// How often the latch is observed when nothing is commanded.
const POLL: Duration = Duration::from_millis(20);

/// A latch with its dead-man on a thread of its own. Dropped, it locks and waits for that.
#[derive(Debug)]
pub struct LatchThread {
    commands: Option<Sender<DesiredLatch>>,
    report: Arc<Mutex<Option<LatchReport>>>,
    thread: Option<JoinHandle<()>>,
}

impl LatchThread {
    /// Takes `latch` over; the first thing done is to drive it to locked.
    ///
    /// # Errors
    /// If the thread cannot be started; the latch is then driven to locked.
    pub fn spawn(
        latch: Box<dyn Latch>,
        settings: LeaseSettings,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let (commands, orders) = slot();
        let report = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&report);
        let leased = Leased::new(latch, settings);
        let thread = thread::Builder::new()
            .name("latch".to_owned())
            .spawn(move || keep(leased, &orders, &shared, clock))?;
        Ok(Self { commands: Some(commands), report, thread: Some(thread) })
    }
}

/// Steps until nobody can command any more. However this ends, [`Leased`] is dropped and locks.
fn keep(
    mut leased: Leased,
    orders: &Receiver<DesiredLatch>,
    report: &Mutex<Option<LatchReport>>,
    clock: Clock,
) {
    let mut silent = false;
    let mut command = None;
    loop {
        panic_if_asked("latch");
        match leased.step(clock.now(), command) {
            Ok(newest) => {
                *report.lock().unwrap_or_else(PoisonError::into_inner) = Some(newest);
                if silent {
                    tracing::info!("the latch answers again");
                }
                silent = false;
            }
            Err(error) => {
                if !silent {
                    tracing::warn!(%error, "the latch does not do as it is told");
                }
                silent = true;
            }
        }
        let left = leased.until().map_or(POLL, |until| until.since(clock.now()));
        command = match orders.take(left.min(POLL)) {
            Taken::Value(desired) => Some(desired),
            Taken::Nothing => None,
            Taken::Closed => return,
        };
    }
}

impl LatchPort for LatchThread {
    fn command(&mut self, _now: Uptime, desired: DesiredLatch) {
        if let Some(commands) = &self.commands {
            commands.put(desired);
        }
    }

    fn report(&self) -> Option<LatchReport> {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for LatchThread {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was answered by locking, and is_alive() has told of it.
            let _ = thread.join();
        }
    }
}
