//! What the owner's surfaces share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pawlatch_core::door::Request;

use super::access::Access;
use super::board::Board;
use super::metrics::Metrics;
use super::settings::OwnerSettings;
use crate::appliance::Asker;
use crate::clock::Clock;
use crate::config::Config;
use crate::journal::{Audit, Note, Scribe};
use crate::models::ModelsDir;

/// What ties the surfaces to the door that runs now.
#[derive(Debug, Clone)]
pub struct Link {
    /// Asks it.
    pub asker: Asker,
    /// Its journal.
    pub scribe: Scribe,
    /// Its configuration.
    pub config: Arc<Config>,
    /// Its models.
    pub models: ModelsDir,
}

/// What the owner's surfaces share.
#[derive(Debug)]
pub struct House {
    /// What they are to do.
    pub settings: OwnerSettings,
    /// Directory of the journal and of what the owner has set.
    pub state_dir: PathBuf,
    /// The configuration file.
    pub config_path: Option<PathBuf>,
    /// The running time.
    pub clock: Clock,
    /// When the program started, by the wall clock.
    pub started: Timestamp,
    /// Where the door is seen.
    pub board: Board,
    /// Counters and histograms.
    pub metrics: Metrics,
    access: Mutex<Access>,
    link: Mutex<Option<Link>>,
    restart: AtomicBool,
}

impl House {
    pub(super) fn new(
        settings: OwnerSettings,
        state_dir: PathBuf,
        config_path: Option<PathBuf>,
        clock: Clock,
        board: Board,
        access: Access,
    ) -> Self {
        Self {
            settings,
            state_dir,
            config_path,
            clock,
            started: Timestamp::now(),
            board,
            metrics: Metrics::default(),
            access: Mutex::new(access),
            link: Mutex::new(None),
            restart: AtomicBool::new(false),
        }
    }

    pub(super) fn link(&self, link: Link) {
        *self.locked_link() = Some(link);
    }

    fn locked_link(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The door that runs now; `None` before the first.
    pub fn linked(&self) -> Option<Link> {
        self.locked_link().clone()
    }

    /// Passwords, sessions and tokens. Held for moments only, never while a password is hashed.
    pub fn access(&self) -> MutexGuard<'_, Access> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The zone of what is shown.
    pub fn time_zone(&self) -> TimeZone {
        self.linked().map_or_else(TimeZone::system, |link| link.config.time_zone.clone())
    }

    /// How old a report of the latch may be.
    pub fn silent_after(&self) -> Duration {
        self.linked().map_or(Duration::from_secs(2), |link| link.config.door.latch_silent_after)
    }

    /// Orders something of the door and writes down who did; whether the door will hear of it.
    pub fn order(&self, who: &str, order: Order) -> bool {
        let Some(link) = self.linked() else { return false };
        let heard = order.requests().iter().all(|request| link.asker.ask(*request));
        self.audit(who, order.name(), if heard { "ordered" } else { "not heard" });
        heard
    }

    /// Adds a line to the audit trail. Must not hold a secret.
    pub fn audit(&self, who: &str, what: &str, outcome: &str) {
        tracing::info!(who, what, outcome, "owner");
        let audit =
            Audit { who: who.to_owned(), what: what.to_owned(), outcome: outcome.to_owned() };
        self.record(Note::Audit(audit));
    }

    /// Hands a note to the journal; whether it will be recorded.
    pub fn record(&self, note: Note) -> bool {
        let recorded = self.linked().is_some_and(|link| link.scribe.record(note));
        if !recorded {
            tracing::warn!("a note of the owner's could not be recorded");
        }
        recorded
    }

    /// Wishes the door to start anew, with the configuration as it is then.
    pub fn restart_door(&self) {
        self.restart.store(true, Ordering::SeqCst);
    }

    /// Whether a new start is wished.
    pub fn wants_restart(&self) -> bool {
        self.restart.load(Ordering::SeqCst)
    }

    /// Takes the wish for a new start away; whether there was one.
    pub fn take_restart(&self) -> bool {
        self.restart.swap(false, Ordering::SeqCst)
    }
}

/// What the owner can order, on every surface under the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Let somebody in once.
    OpenOnce,
    /// Lock now, then go on by the rules.
    Lock,
    /// Hold open for a while.
    HoldOpen,
    /// Lock and hold locked until released.
    HoldLocked,
    /// Back to the rules; acknowledges a fault that waits for the owner.
    Release,
}

impl Order {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::OpenOnce, Self::Lock, Self::HoldOpen, Self::HoldLocked, Self::Release];

    /// Its name in addresses, topics and the audit trail.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenOnce => "open_once",
            Self::Lock => "lock",
            Self::HoldOpen => "hold_open",
            Self::HoldLocked => "hold_locked",
            Self::Release => "release",
        }
    }

    /// The order called `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|order| order.name() == name)
    }

    /// Whether it may unlock the door, now or by giving it back to its rules.
    pub const fn may_unlock(self) -> bool {
        !matches!(self, Self::Lock | Self::HoldLocked)
    }

    const fn requests(self) -> &'static [Request] {
        match self {
            Self::OpenOnce => &[Request::OpenOnce],
            Self::Lock => &[Request::HoldLocked, Request::Release],
            Self::HoldOpen => &[Request::HoldOpen],
            Self::HoldLocked => &[Request::HoldLocked],
            Self::Release => &[Request::Release],
        }
    }
}
