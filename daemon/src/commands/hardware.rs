//! `latch test`, `led test`, `button test`, `camera test`: wiring day.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use image::RgbImage;
use pawlatch_core::door::{Position, State};
use pawlatch_core::units::Uptime;
use serde_json::json;

use pawlatch::appliance;
use pawlatch::camera::{self, Source};
use pawlatch::clock::Clock;
use pawlatch::config::Config;
use pawlatch::latch::{self, Bolt, Latch};
use pawlatch::lines;
use pawlatch::panel::{Lamp, Sign};

use super::{Common, Outcome, Usage, door, say, say_json};

/// Commands for the latch.
#[derive(Subcommand)]
pub enum LatchCommand {
    /// Unlock and lock a few times, and tell what the sensors say.
    ///
    /// Stop the service first. Ends locked. Exit code 1 if the bolt was not seen where it should
    /// be.
    Test(LatchTest),
}

/// Options of `latch test`.
#[derive(Args)]
pub struct LatchTest {
    /// How often.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long to stay unlocked, milliseconds.
    #[arg(long, default_value_t = 1_500, value_parser = clap::value_parser!(u64).range(100..=20_000))]
    open_ms: u64,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Commands for the light.
#[derive(Subcommand)]
pub enum LedCommand {
    /// Show every sign for a few seconds and say what it means.
    Test {
        /// How long each, milliseconds.
        #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
        each_ms: u64,
    },
}

/// Commands for button, beam and motion sensor.
#[derive(Subcommand)]
pub enum ButtonCommand {
    /// Tell what button, beam and motion sensor say for a while.
    Test {
        /// How long, seconds.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
        seconds: u64,
    },
}

/// Commands for cameras.
#[derive(Subcommand)]
pub enum CameraCommand {
    /// Read a camera for a few seconds: size, rate, health, delay.
    Test(CameraTest),
}

/// Options of `camera test`.
#[derive(Args)]
pub struct CameraTest {
    /// The camera, as in `camera.source`; the configured one if absent.
    source: Option<Source>,
    /// How long, seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Keep the last picture here (PNG or JPEG).
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// `pawlatch latch`.
pub fn latch(LatchCommand::Test(args): &LatchCommand, common: &Common) -> Result<Outcome> {
    let config = common.config()?;
    let clock = Clock::start();
    let mut latch = latch::open(&config.latch)?;
    let within = config.door.relock_within;
    let mut well = true;
    let outcome = (1..=args.rounds).try_for_each(|round| -> Result<()> {
        for to in [Bolt::Unlocked, Bolt::Locked] {
            let (position, took) = drive(latch.as_mut(), to, within, clock)?;
            let wanted = if to == Bolt::Locked { Position::Locked } else { Position::Unlocked };
            let right =
                position == wanted || (position == Position::Unknown && !config.door.feedback);
            well &= right;
            if args.json {
                say_json(&json!({ "round": round, "driven": format!("{to:?}").to_lowercase(),
                    "seen": position, "after_ms": took.as_millis() as u64, "ok": right }))?;
            } else {
                let mark = if right { "ok " } else { "BAD" };
                say(&format!(
                    "{mark} round {round}: driven {to:?}, seen {position:?} after {} ms",
                    took.as_millis()
                ))?;
            }
            if to == Bolt::Unlocked {
                hold(latch.as_mut(), Duration::from_millis(args.open_ms), clock)?;
            }
        }
        Ok(())
    });
    // Whatever went wrong, it ends locked.
    latch::lock(latch.as_mut(), within, clock)?;
    outcome?;
    if !config.door.feedback {
        eprintln!("there is no sensor: watch the bolt yourself");
    }
    Ok(if well { Outcome::Done } else { Outcome::Failed })
}

/// Drives the bolt and waits until it is seen there, or should have been.
fn drive(
    latch: &mut dyn Latch,
    to: Bolt,
    within: Duration,
    clock: Clock,
) -> Result<(Position, Duration)> {
    let began = clock.now();
    latch.drive(began, to)?;
    loop {
        let now = clock.now();
        let (position, took) = (latch.observe(now)?, now.since(began));
        let there = match to {
            Bolt::Locked => position == Position::Locked,
            Bolt::Unlocked => position == Position::Unlocked,
        };
        if there || took >= within {
            return Ok((position, took));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits while the latch goes on being stepped, as its dead-man does.
fn hold(latch: &mut dyn Latch, span: Duration, clock: Clock) -> Result<()> {
    let until = clock.now() + span;
    while clock.now() < until {
        latch.observe(clock.now())?;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// `pawlatch led`.
pub fn led(LedCommand::Test { each_ms }: &LedCommand, common: &Common) -> Result<Outcome> {
    let config = common.config()?;
    if config.panel.light.iter().all(Option::is_none) && config.panel.buzzer.is_none() {
        return Err(Usage("there is no light: set panel.red_line or its sisters".to_owned()).into());
    }
    let board = lines::board(&config.latch.board)?;
    let mut lamp = Lamp::open(board.as_ref(), &config.panel)?;
    let clock = Clock::start();
    for sign in Sign::ALL {
        let pattern = sign.pattern();
        say(&format!("{:<12} {:<7} {}", sign.name(), pattern.colour.name, pattern.meaning))?;
        let until = clock.now() + Duration::from_millis(*each_ms);
        while clock.now() < until {
            lamp.show(clock.now(), sign);
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(Outcome::Done)
}

/// `pawlatch button`.
pub fn button(ButtonCommand::Test { seconds }: &ButtonCommand, common: &Common) -> Result<Outcome> {
    let config = common.config()?;
    let (clock, (asker, requests)) = (Clock::start(), appliance::requests());
    let panel = door::panel(&config, asker, clock)?;
    let inputs = [&config.panel.button, &config.panel.beam, &config.panel.motion];
    if inputs.iter().all(|line| line.is_none()) {
        return Err(Usage("there is no button: set panel.button_line".to_owned()).into());
    }
    panel.show(&State::Idle { since: Uptime::ZERO });
    eprintln!("for {seconds} s: press, walk through, wave");
    let until = clock.now() + Duration::from_secs(*seconds);
    let motion = panel.motion();
    let mut before = (None, false);
    while clock.now() < until {
        if let Some(request) = requests.take() {
            say(&format!("button: {request:?}"))?;
        }
        let now = (panel.passage(), motion.is_active());
        if now != before {
            let beam = match now.0 {
                None => "none",
                Some(true) => "broken",
                Some(false) => "whole",
            };
            say(&format!("beam: {beam}; motion: {}", if now.1 { "yes" } else { "no" }))?;
            before = now;
        }
        anyhow::ensure!(panel.is_alive(), "a line has failed");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(Outcome::Done)
}

/// `pawlatch camera`.
pub fn camera(CameraCommand::Test(args): &CameraCommand, common: &Common) -> Result<Outcome> {
    let config: Config = common.config()?;
    let source = args.source.clone().or(config.camera.source);
    let source = match source {
        Some(Source::Live(live)) => live,
        Some(other) => return Err(Usage(format!("{other} is no camera but a recording")).into()),
        None => return Err(camera::CameraError::Unset.into()),
    };
    let span = Duration::from_secs(args.seconds);
    let got = camera::measure(&source, config.camera.mounting, span, Clock::start())?;
    let (width, height) = (got.frame.width(), got.frame.height());
    if let Some(path) = &args.save {
        let picture = RgbImage::from_raw(width, height, got.frame.pixels().to_vec())
            .context("the picture has another size than it says")?;
        picture.save(path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let first_ms = got.first_after.as_millis() as u64;
    if args.json {
        say_json(&json!({ "camera": source.to_string(), "width": width, "height": height,
            "frames": got.frames, "rate": got.rate, "health": got.health,
            "first_after_ms": first_ms }))?;
    } else {
        say(&format!(
            "{source}: {width}x{height}, {} frames, {:.1} a second, the first after {first_ms} ms; {}",
            got.frames,
            got.rate,
            got.health.describe()
        ))?;
    }
    let slow = got.rate < config.camera.slowest;
    if slow {
        eprintln!("too slow: the door needs {:.1} frames a second", config.camera.slowest);
    }
    let good = got.health == pawlatch_core::frame::PictureHealth::Good && !slow;
    Ok(if good { Outcome::Done } else { Outcome::Failed })
}
