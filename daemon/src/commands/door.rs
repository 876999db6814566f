//! `run` and `lock`: the real door.

use anyhow::{Context as _, Result};
use pawlatch_core::eye::Eye;
use pawlatch_core::frame::Frame;

use pawlatch::appliance::{self, Asker, Ended, Live};
use pawlatch::clock::Clock;
use pawlatch::config::Config;
use pawlatch::journal::Journal;
use pawlatch::latch::LatchThread;
use pawlatch::panel::Panel;
use pawlatch::{camera, intent, latch, lines};

use super::{Common, Outcome, chain};

/// Name of the file beside the journal that keeps the owner's wish across restarts.
const INTENT_FILE: &str = "intent";

/// `pawlatch run`.
pub fn run(common: &Common) -> Result<Outcome> {
    let clock = Clock::start();
    let config = common.config()?;
    // First of all: whatever fails after this, the latch is driven to locked.
    let latch = LatchThread::spawn(latch::open(&config.latch)?, config.latch.lease.clone(), clock)
        .context("cannot start the latch thread")?;
    let in_use = common.in_use_of(&config.models)?;
    for entry in in_use.entries() {
        let m = &entry.manifest;
        tracing::info!(model = %m.name, version = %m.version, task = %m.task, sha256 = %m.sha256,
            "model in use");
    }
    let mut eye = Eye::new(config.gate.clone(), in_use.vision()?);
    let pool = config.models.pool().context("cannot start the networks' threads")?;
    let journal =
        Journal::start(config.journal.clone(), clock).context("cannot start the journal thread")?;
    let intent_path = config.journal.dir.join(INTENT_FILE);
    let (asker, requests) = appliance::requests();
    let panel = panel(&config, asker, clock)?;
    let motion = panel.motion();
    let live = Live {
        latch,
        keeper: appliance::keeper(&config, intent::load(&intent_path), clock.now()),
        source: camera::open(&config.camera, clock)?,
        look: move |frame: &Frame| {
            if motion.is_active() {
                eye.wake();
            }
            pool.install(|| eye.look(frame, &mut |_| {})).map_err(Into::into)
        },
        journal,
        intent_path: Some(intent_path),
        requests,
        panel,
        time_zone: config.time_zone.clone(),
        clock,
    };
    let stop = appliance::stop_on_signals().context("cannot listen to signals")?;
    match appliance::run(live, &stop, |_| {})? {
        Ended::Stopped => tracing::info!("stopped"),
        Ended::SourceEnded => tracing::info!("the recording that served as camera is over"),
    }
    Ok(Outcome::Done)
}

/// The panel, if there is one.
pub(super) fn panel(config: &Config, asker: Asker, clock: Clock) -> Result<Panel> {
    if config.panel.lines().is_empty() {
        return Ok(Panel::none());
    }
    let board = lines::board(&config.latch.board)?;
    Panel::start(board.as_ref(), &config.panel, asker, clock).context("the panel cannot be used")
}

/// `pawlatch lock`.
pub fn lock(common: &Common) -> Result<Outcome> {
    let usual = Config::default();
    let (settings, within, wrong) = match common.config() {
        Ok(config) => (config.latch, config.door.relock_within, false),
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            let latch = Config::load_latch(common.config.as_deref()).unwrap_or_else(|error| {
                eprintln!("error: {}\nlocking the default latch", chain(&error.into()));
                usual.latch
            });
            (latch, usual.door.relock_within, true)
        }
    };
    let mut latch = latch::open(&settings)?;
    latch::lock(latch.as_mut(), within, Clock::start())?;
    eprintln!("locked");
    Ok(if wrong { Outcome::Misused } else { Outcome::Done })
}
