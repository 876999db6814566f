//! What the owner sees and touches: the page, the broker, metrics and messages.
//!
//! Everything here lives on threads of its own and hears of the door through a [`Tap`], which
//! never waits: the newest glance replaces the one before, and events go through a bounded
//! queue. Whatever hangs, floods or panics here, the door goes on; a surface that panicked is
//! started again. The way back is narrow: a request to the door, a note to the journal, or the
//! wish to start anew with another configuration.

pub mod access;
pub mod animals;
mod board;
mod house;
pub mod metrics;
pub mod mqtt;
pub mod notify;
pub mod page;
mod settings;
pub mod words;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use thiserror::Error;

pub use board::{Board, Glance, News, Tap};
pub use house::{House, Link, Order};
pub use settings::{Broker, MqttSettings, NotifySettings, OwnerSettings, PageSettings, Told, Url};

use crate::appliance::Moment;
use crate::clock::Clock;
use access::{Access, AccessError};

/// Pause before a surface that panicked is started again.
const RESTART_AFTER: Duration = Duration::from_secs(5);
/// By how much these threads stand back behind those of the door, in steps of nice(2).
const NICENESS: i32 = 10;

/// Why the owner's surfaces cannot start.
#[derive(Debug, Error)]
pub enum OwnerError {
    /// A thread cannot be started.
    #[error("cannot start the {surface} thread")]
    Thread {
        /// Which.
        surface: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Passwords and tokens cannot be read.
    #[error("the owner's password cannot be read")]
    Access(#[from] AccessError),
}

/// The owner's surfaces, running.
#[derive(Debug)]
pub struct Owner {
    house: Arc<House>,
    tap: Tap,
}

impl Owner {
    /// Starts the surfaces that `settings` ask for. `state_dir` holds the password and what else
    /// outlives a restart; `config_path` is the file that rules are checked against before they
    /// are changed.
    ///
    /// # Errors
    /// If a thread cannot be started or the password file cannot be understood.
    pub fn start(
        settings: OwnerSettings,
        state_dir: PathBuf,
        config_path: Option<PathBuf>,
        clock: Clock,
    ) -> Result<Self, OwnerError> {
        let (tap, relay, board) = board::board();
        let access = Access::open(&state_dir)?;
        let house = Arc::new(House::new(settings, state_dir, config_path, clock, board, access));
        let relay_house = Arc::clone(&house);
        keep_running("relay", move || relay.run(&relay_house))?;
        if house.settings.page.listen.is_some() {
            let house = Arc::clone(&house);
            keep_running("page", move || page::serve(&house))?;
        }
        if house.settings.mqtt.broker.is_some() {
            let house = Arc::clone(&house);
            keep_running("broker", move || mqtt::run(&house))?;
        }
        if house.settings.notify.ntfy.is_some() || house.settings.notify.webhook.is_some() {
            let house = Arc::clone(&house);
            keep_running("messages", move || notify::run(&house))?;
        }
        Ok(Self { house, tap })
    }

    /// Shows the surfaces one cycle; never waits.
    pub fn tap(&mut self, moment: &Moment<'_>) {
        self.tap.show(moment);
    }

    /// Ties the surfaces to a door that begins to run.
    pub fn link(&self, link: Link) {
        self.house.link(link);
    }

    /// What the surfaces share.
    pub const fn house(&self) -> &Arc<House> {
        &self.house
    }
}

/// Shows whoever opens the page that the door is in safe mode. `state_dir` is that of
/// [`Owner::start`].
///
/// # Errors
/// If the thread cannot be started.
pub fn show_safe_mode(settings: PageSettings, state_dir: PathBuf) -> Result<(), OwnerError> {
    if settings.listen.is_none() {
        return Ok(());
    }
    keep_running("page", move || page::safe::serve(&settings, &state_dir))
}

/// Runs `surface` on a thread of its own that stands back behind the door's; starts it again when
/// it panics or returns.
fn keep_running(name: &'static str, surface: impl Fn() + Send + 'static) -> Result<(), OwnerError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // On Linux this is of the calling thread only, and of those it starts.
            if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
                tracing::debug!(%error, surface = name, "cannot stand back");
            }
            loop {
                if catch_unwind(AssertUnwindSafe(&surface)).is_err() {
                    tracing::error!(surface = name, "panicked; starting it again");
                } else {
                    tracing::warn!(surface = name, "ended; starting it again");
                }
                thread::sleep(RESTART_AFTER);
            }
        })
        .map(drop)
        .map_err(|source| OwnerError::Thread { surface: name, source })
}
