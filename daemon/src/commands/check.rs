//! `check`: whether everything is as it should be, without touching the latch.

use std::time::Duration;

use anyhow::{Context as _, Error, Result};

use pawlatch::camera::{self, Source};
use pawlatch::clock::Clock;
use pawlatch::config::Config;
use pawlatch::lines::{self, Line, LineError};

use super::{Common, Outcome, chain, say};

/// How long a camera is tried out.
const TRIED_FOR: Duration = Duration::from_secs(2);

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
        match check_camera(&config).context("the camera cannot be used") {
            Ok(lines) => lines.iter().try_for_each(|line| say(line))?,
            Err(error) => fault(&error),
        }
    } else {
        say("note no camera: the door starts once `camera.source` names one")?;
    }
    for found in check_lines(&config) {
        match found {
            Ok(line) => say(&line)?,
            Err(error) => fault(&error),
        }
    }
    if faults == 0 {
        return Ok(Outcome::Done);
    }
    eprintln!("{faults} fault{}", if faults == 1 { "" } else { "s" });
    Ok(Outcome::Failed)
}

/// Opens the source; of cameras each gives a picture.
pub(super) fn check_camera(config: &Config) -> Result<Vec<String>> {
    let (settings, clock) = (&config.camera, Clock::start());
    let Some(Source::Live(first)) = &settings.source else {
        camera::open(settings, clock)?;
        return Ok(vec!["ok  camera".to_owned()]);
    };
    let mut lines = Vec::new();
    for source in [first].into_iter().chain(&settings.fallback) {
        let got = camera::measure(source, settings.mounting, TRIED_FOR, clock)?;
        let (width, height) = (got.frame.width(), got.frame.height());
        anyhow::ensure!(
            got.rate >= settings.slowest,
            "{source} gives {:.1} frames a second and the door needs {:.1}: raise its rate, or \
             door.fresh_for_ms",
            got.rate,
            settings.slowest
        );
        let health = got.health.describe();
        lines.push(format!("ok  {source}: {width}x{height} at {:.1}; {health}", got.rate));
    }
    Ok(lines)
}

/// Looks up every line without taking it.
pub(super) fn check_lines(config: &Config) -> Vec<Result<String>> {
    let latch = config.latch.wired.as_ref().map(|wired| wired.lines()).unwrap_or_default();
    let lines: Vec<_> = latch.into_iter().chain(config.panel.lines()).collect();
    if lines.is_empty() {
        return Vec::new();
    }
    let board = match lines::board(&config.latch.board) {
        Ok(board) => board,
        Err(error) => return vec![Err(error.into())],
    };
    let check = |(key, line): (&str, &Line)| {
        let found = board.find(line).with_context(|| format!("{key} cannot be used"))?;
        match found.held_by.as_deref() {
            Some(by) if by != "pawlatch" => {
                Err(LineError::Held { line: line.to_string(), by: by.to_owned() })
                    .with_context(|| format!("{key} cannot be used"))
            }
            Some(_) => Ok(format!("ok  {key}: {}, in use by pawlatch", found.place)),
            None => Ok(format!("ok  {key}: {}", found.place)),
        }
    };
    lines.into_iter().map(check).collect()
}

/// Verifies every model in use.
pub(super) fn check_models(common: &Common, config: &Config) -> Result<Vec<String>> {
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
