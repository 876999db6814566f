//! `run` and `lock`: the real door.

use anyhow::{Context as _, Result};
use pawlatch_core::eye::Eye;
use pawlatch_core::frame::Frame;

use pawlatch::appliance::{self, Ended, Live};
use pawlatch::clock::Clock;
use pawlatch::config::Config;
use pawlatch::journal::Journal;
use pawlatch::latch::LatchThread;
use pawlatch::releases::{Probation, Releases};
use pawlatch::{camera, intent, latch};

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
    let (_asker, requests) = appliance::requests();
    let live = Live {
        latch,
        keeper: appliance::keeper(&config, intent::load(&intent_path), clock.now()),
        source: camera::open(&config.camera)?,
        look: move |frame: &Frame| {
            pool.install(|| eye.look(frame, &mut |_| {})).map_err(Into::into)
        },
        journal,
        intent_path: Some(intent_path),
        requests,
        time_zone: config.time_zone.clone(),
        clock,
    };
    let stop = appliance::stop_on_signals().context("cannot listen to signals")?;
    let mut probation = Probation::new(Releases::at(config.update.dir));
    match appliance::run(live, &stop, |decision| probation.see(decision))? {
        Ended::Stopped => tracing::info!("stopped"),
        Ended::SourceEnded => tracing::info!("the recording that served as camera is over"),
    }
    Ok(Outcome::Done)
}

/// `pawlatch lock`.
pub fn lock(common: &Common) -> Result<Outcome> {
    let (config, wrong) = match common.config() {
        Ok(config) => (config, None),
        Err(error) => {
            eprintln!("error: {}\nlocking the default latch", chain(&error));
            (Config::default(), Some(error))
        }
    };
    let mut latch = latch::open(&config.latch)?;
    latch::lock(latch.as_mut(), config.door.relock_within, Clock::start())?;
    eprintln!("locked");
    wrong.map_or(Ok(Outcome::Done), |_| Ok(Outcome::Misused))
}
