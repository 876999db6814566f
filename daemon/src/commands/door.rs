//! `run` and `lock`: the real door.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};
use pawlatch_core::eye::Eye;
use pawlatch_core::frame::Frame;
use pawlatch_core::identity::Gallery;
use pawlatch_core::units::Rect;

use pawlatch::appliance::{self, Asker, Ended, Live};
use pawlatch::clock::Clock;
use pawlatch::config::Config;
use pawlatch::journal::Journal;
use pawlatch::latch::LatchThread;
use pawlatch::models::InUse;
use pawlatch::owner::animals::Animals;
use pawlatch::owner::{Link, Owner, access};
use pawlatch::panel::Panel;
use pawlatch::releases::{Probation, Releases};
use pawlatch::shadow::Shadow;
use pawlatch::{camera, intent, latch, lines, systemd};

use super::{Common, Outcome, chain};

/// Name of the file beside the journal that keeps the owner's wish across restarts.
const INTENT_FILE: &str = "intent";

/// `pawlatch run`.
pub fn run(common: &Common) -> Result<Outcome> {
    let clock = Clock::start();
    let mut config = common.config()?;
    let signalled = appliance::stop_on_signals().context("cannot listen to signals")?;
    let mut owner: Option<Owner> = None;
    loop {
        run_once(common, &config, clock, &signalled, &mut owner)?;
        let anew = owner.as_ref().is_some_and(|owner| owner.house().take_restart());
        if signalled.load(Ordering::SeqCst) || !anew {
            // Only now: systemd would end a program that has said so and goes on.
            let _ = systemd::notify("STOPPING=1");
            return Ok(Outcome::Done);
        }
        tracing::info!("starting anew, as the owner wishes");
        let _ = systemd::notify(&systemd::starting_anew());
        config = common.config()?;
    }
}

/// Runs the door until a signal, the end of its source, or the owner's wish for a new start.
fn run_once(
    common: &Common,
    config: &Config,
    clock: Clock,
    signalled: &AtomicBool,
    owner: &mut Option<Owner>,
) -> Result<()> {
    // First of all: whatever fails after this, the latch is driven to locked.
    let latch = LatchThread::spawn(latch::open(&config.latch)?, config.latch.lease.clone(), clock)
        .context("cannot start the latch thread")?;
    let owner = match owner {
        Some(owner) => owner,
        None => {
            let (dir, path) = (config.journal.dir.clone(), common.config.clone());
            owner.insert(Owner::start(config.owner.clone(), dir, path, clock)?)
        }
    };
    let house = Arc::clone(owner.house());
    let in_use = common.in_use_of(&config.models)?;
    for entry in in_use.entries() {
        let m = &entry.manifest;
        tracing::info!(model = %m.name, version = %m.version, task = %m.task, sha256 = %m.sha256,
            "model in use");
    }
    let gallery = gallery(config, &in_use);
    let roll = gallery.roll().clone();
    let mut eye = Eye::new(config.gate.clone(), in_use.vision()?.knowing(gallery));
    let pool = config.models.pool().context("cannot start the networks' threads")?;
    let journal =
        Journal::start(config.journal.clone(), clock).context("cannot start the journal thread")?;
    let intent_path = config.journal.dir.join(INTENT_FILE);
    let (asker, requests) = appliance::requests();
    let panel = panel(config, asker.clone(), clock)?;
    let motion = panel.motion();
    let mut shadow = shadow(common, config, &in_use, eye.region(), &journal);
    owner.link(Link {
        asker,
        scribe: journal.scribe(),
        config: Arc::new(config.clone()),
        models: common.models_of(&config.models)?,
    });
    let look_house = Arc::clone(&house);
    let live = Live {
        latch,
        keeper: appliance::keeper(config, intent::load(&intent_path), clock.now()).knowing(roll),
        source: camera::open(&config.camera, clock)?,
        look: move |frame: &Frame| {
            if motion.is_active() {
                eye.wake();
            }
            let mut began = Instant::now();
            let mut lap = |stage| {
                look_house.metrics.lap(stage, began.elapsed());
                began = Instant::now();
            };
            let sightings = pool.install(|| eye.look(frame, &mut lap))?;
            if let Some(shadow) = &mut shadow {
                shadow.show(frame, &sightings.seen);
            }
            Ok(sightings)
        },
        journal,
        intent_path: Some(intent_path),
        requests,
        panel,
        time_zone: config.time_zone.clone(),
        clock,
    };
    let stop = AtomicBool::new(false);
    let mut probation = Probation::new(Releases::at(config.update.dir.clone()));
    let ended = appliance::run(live, &stop, |moment| {
        owner.tap(moment);
        probation.see(moment.decision);
        if signalled.load(Ordering::SeqCst) || house.wants_restart() {
            stop.store(true, Ordering::SeqCst);
        }
    });
    match ended? {
        Ended::Stopped => tracing::info!("stopped"),
        Ended::SourceEnded => tracing::info!("the recording that served as camera is over"),
    }
    Ok(())
}

/// The candidate model that looks on, if there is one. Whatever is wrong with it, the door runs.
fn shadow(
    common: &Common,
    config: &Config,
    in_use: &InUse,
    region: Rect,
    journal: &Journal,
) -> Option<Shadow> {
    let candidate = common.models_of(&config.models).map(|models| models.shadow());
    let candidate = match candidate {
        Ok(Ok(candidate)) => candidate?,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the candidate model cannot look on");
            return None;
        }
        Err(_) => return None,
    };
    tracing::info!(model = %candidate.id(), "looks on beside the models in use");
    let (dir, scribe) = (config.journal.dir.clone(), journal.scribe());
    let started = Shadow::start(candidate, in_use.clone(), region, dir, scribe);
    started.map_err(|error| tracing::warn!(%error, "the candidate model cannot look on")).ok()
}

/// The animals that can be recognised with the models in use, if a rule depends on it. Whatever
/// keeps one from being known, the door is locked to it.
pub(super) fn gallery(config: &Config, in_use: &InUse) -> Gallery {
    let Some(classifier) = in_use.classifier.as_ref().filter(|_| config.policy.tells_dogs_apart())
    else {
        return Gallery::default();
    };
    match Animals::open(&config.journal.dir) {
        Ok(animals) => {
            let gallery = animals.gallery(classifier);
            tracing::info!(known = ?gallery.roll().names, "animals that rules can be about");
            gallery
        }
        Err(error) => {
            tracing::warn!(%error, "the animals cannot be read; every dog is an unknown one");
            Gallery::default()
        }
    }
}

/// `pawlatch password`: reads the new password from standard input.
pub fn password(common: &Common) -> Result<Outcome> {
    let dir = common.config()?.journal.dir;
    if std::io::stdin().is_terminal() {
        eprintln!("the new password, at least {} characters:", access::MIN_PASSWORD);
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read the password")?;
    let hash = access::hashed(line.trim_end_matches(['\n', '\r']))?;
    access::Access::open(&dir)?.set_password(hash)?;
    eprintln!("set; a door that runs takes it over within a second");
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
    let (settings, within, wrong) = match Config::load_without_wishes(common.config.as_deref()) {
        Ok(config) => (config.latch, config.door.relock_within, false),
        Err(error) => {
            eprintln!("error: {}", chain(&error.into()));
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
