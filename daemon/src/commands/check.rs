//! `check`: whether everything is as it should be, without touching the latch.

use std::time::Duration;

use anyhow::{Context as _, Error, Result};

use pawlatch::camera;
use pawlatch::config::Config;

use super::{Common, Outcome, chain, say};

/// `pawlatch check`: every fault is told, not only the first.
pub fn run(common: &Common) -> Result<Outcome> {
    let mut faults = 0;
    let mut fault = |error: &Error| {
        eprintln!("error: {}", chain(error));
        faults += 1;
    };
    let config = match common.config() {
        Ok(config) => {
            let source = common.config.as_ref();
            let from = source.map_or("defaults".to_owned(), |path| path.display().to_string());
            say(&format!("ok  configuration and limits: {from}"))?;
            config
        }
        Err(error) => {
            fault(&error);
            Config::default()
        }
    };
    match check_models(common, &config) {
        Ok(lines) => lines.iter().try_for_each(|line| say(line))?,
        Err(error) => fault(&error),
    }
    if config.camera.source.is_some() {
        match camera::open(&config.camera).context("the camera cannot be used") {
            Ok(_) => say("ok  camera")?,
            Err(error) => fault(&error),
        }
    }
    if faults == 0 {
        return Ok(Outcome::Done);
    }
    eprintln!("{faults} fault{}", if faults == 1 { "" } else { "s" });
    Ok(Outcome::Failed)
}

/// Verifies every model in use.
fn check_models(common: &Common, config: &Config) -> Result<Vec<String>> {
    let in_use = common.in_use_of(&config.models)?;
    let mut lines = Vec::new();
    let mut together = Duration::ZERO;
    for entry in in_use.entries() {
        let took = entry.verify()?;
        together += took;
        let m = &entry.manifest;
        lines.push(format!(
            "ok  {} {} {}: sha256 {}…, ran in {:.0} ms",
            m.task,
            m.name,
            m.version,
            &m.sha256[..12],
            took.as_secs_f64() * 1e3
        ));
    }
    in_use.vision()?;
    // A frame that is stale before it is understood can never open the door.
    anyhow::ensure!(
        together < config.door.fresh_for,
        "the networks take {} ms a frame here, longer than a frame stays fresh \
         (door.fresh_for_ms = {}); use smaller models",
        together.as_millis(),
        config.door.fresh_for.as_millis()
    );
    if in_use.classifier.is_none() {
        lines.push("note: without a classifier the door never opens for a dog".to_owned());
    }
    Ok(lines)
}
