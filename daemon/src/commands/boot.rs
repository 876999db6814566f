//! `boot`: what the service starts.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use pawlatch::clock::Clock;
use pawlatch::config::Config;
use pawlatch::models::INSTALLED_DIR;
use pawlatch::releases::{self, ENVIRONMENT, PROGRAM, Releases, Rung, version_of};
use pawlatch::{appliance, latch, owner, systemd};

use super::{Common, Outcome, trust};

/// How long the door stays locked before it is tried again.
const SAFE_FOR: Duration = Duration::from_secs(600);
/// How often the latch is locked again meanwhile.
const LOCK_EVERY: Duration = Duration::from_secs(30);

/// `pawlatch boot`.
pub fn run(common: &Common) -> Result<Outcome> {
    let config = common.config()?;
    let releases = Releases::at(config.update.dir.clone());
    let boot = releases.boot(&trust(&config, None)?);
    for note in &boot.notes {
        tracing::warn!(attempt = boot.attempt, "{note}");
    }
    let itself = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = match &boot.rung {
        Rung::Safe => return stay_locked(&config, &releases),
        Rung::Trial(release) | Rung::Current(release) => {
            let version = version_of(release).map(|v| v.to_string()).unwrap_or_default();
            let mut command = Command::new(release.join(PROGRAM));
            command.env(ENVIRONMENT, &version);
            tracing::info!(attempt = boot.attempt, version, "starting a release");
            command
        }
        Rung::Packaged { plain } => {
            let mut command = Command::new(&itself);
            if !plain && Path::new(INSTALLED_DIR).is_dir() {
                command.env("PAWLATCH__MODELS__DIR", INSTALLED_DIR);
            }
            command
        }
    };
    if matches!(boot.rung, Rung::Trial(_)) {
        releases::begin_deadline();
    }
    let error = command.arg("run").args(common.arguments()).exec();
    // Exec only returns if it failed; the next start takes the next rung.
    Err(error).with_context(|| format!("cannot start {}", command.get_program().display()))
}

/// Keeps the latch locked and tells so on the page, for a while. Whatever is broken may have healed
/// by then: a camera plugged in again, a disk that was cleared.
fn stay_locked(config: &Config, releases: &Releases) -> Result<Outcome> {
    tracing::error!("the door has failed to start too often; it stays locked (safe mode)");
    let stop = appliance::stop_on_signals().context("cannot listen to signals")?;
    let mut latch = latch::open(&config.latch)?;
    let clock = Clock::start();
    let began = Instant::now();
    let mut locked: Option<Instant> = None;
    while began.elapsed() < SAFE_FOR {
        if stop.load(Ordering::Relaxed) {
            return Ok(Outcome::Done);
        }
        if locked.is_none_or(|at| at.elapsed() >= LOCK_EVERY) {
            latch::lock(latch.as_mut(), config.door.relock_within, clock)?;
            if locked.is_none() {
                let (page, dir) = (config.owner.page.clone(), config.journal.dir.clone());
                if let Err(error) = owner::show_safe_mode(page, dir) {
                    tracing::warn!("{}", super::chain(&error.into()));
                }
                let _ = systemd::notify("READY=1\nSTATUS=safe mode: locked");
            }
            locked = Some(Instant::now());
        }
        let _ = systemd::notify("WATCHDOG=1");
        thread::sleep(Duration::from_millis(500));
    }
    releases.allow_one_start()?;
    bail!("safe mode is over; the door is tried once more")
}
