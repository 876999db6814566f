//! What hangs on wires and cables: cameras, latch, panel.

use std::time::Duration;

use super::layers::{ConfigError, Layers};
use super::ms;
use crate::camera::{CameraSettings, LiveSource, Mounting, Source};
use crate::latch::{
    CoilSettings, DrivenSettings, LatchSettings, LeaseSettings, Mover, ServoSettings,
    SimulatedSettings, WiredSettings,
};
use crate::lines::{BoardSettings, Channel, LINE_GRAMMAR, Line};
use crate::panel::{ButtonSettings, PanelSettings};

use super::keys::{Keys, LatchKeys};

/// The parts of the configuration that are parsed from texts.
#[derive(Debug, Default)]
pub(super) struct Hardware {
    source: Option<Source>,
    fallback: Option<LiveSource>,
    wired: Option<WiredSettings>,
    board: BoardSettings,
    panel: [Option<Line>; 7],
}

/// Shortest time, in control periods, between a bolt that arrives and its being seen.
const SEEN_TICKS: u64 = 2;

impl Hardware {
    /// # Errors
    /// If a text is not understood, something is missing, or two things want the same line.
    pub(super) fn parse(keys: &Keys, layers: &Layers) -> Result<Self, ConfigError> {
        let source = source("camera.source", &keys.camera.source, layers)?;
        let fallback = match source_of_fallback(keys, layers)? {
            Some(_) if !matches!(source, Some(Source::Live(_))) => {
                let expected = "nothing, since camera.source is no camera";
                return Err(layers.wrong("camera.fallback", &keys.camera.fallback, expected));
            }
            fallback => fallback,
        };
        for (key, live) in [
            ("camera.source", source.as_ref().and_then(live)),
            ("camera.fallback", fallback.as_ref()),
        ] {
            check_rate(key, live, keys, layers)?;
        }
        let turns = keys.camera.rotate;
        if ![0, 90, 180, 270].contains(&turns) {
            return Err(layers.wrong("camera.rotate", &turns.to_string(), "0, 90, 180 or 270"));
        }
        let p = &keys.panel;
        let panel = [
            line("panel.button_line", &p.button_line, layers)?,
            line("panel.beam_line", &p.beam_line, layers)?,
            line("panel.motion_line", &p.motion_line, layers)?,
            line("panel.red_line", &p.red_line, layers)?,
            line("panel.green_line", &p.green_line, layers)?,
            line("panel.blue_line", &p.blue_line, layers)?,
            line("panel.buzzer_line", &p.buzzer_line, layers)?,
        ];
        let (wired, board) = (wired(&keys.latch, layers)?, board(keys, layers)?);
        let this = Self { source, fallback, wired, board, panel };
        this.check_conflicts(keys, layers)?;
        check_gestures(keys, layers)?;
        this.check_latch(keys, layers)?;
        Ok(this)
    }

    pub(super) fn camera(&self, keys: &Keys) -> CameraSettings {
        CameraSettings {
            source: self.source.clone(),
            fallback: self.fallback.clone(),
            mounting: Mounting {
                quarter_turns: (keys.camera.rotate / 90) as u8,
                mirrored: keys.camera.mirror,
            },
            slowest: 2_000.0 / keys.door.fresh_for_ms as f32,
            fps: keys.camera.fps as f32,
            repeat: keys.camera.repeat,
        }
    }

    pub(super) fn latch(&self, keys: &LatchKeys, longest: Duration) -> LatchSettings {
        let state_path = (!keys.state_path.is_empty()).then(|| keys.state_path.clone().into());
        LatchSettings {
            lease: LeaseSettings {
                longest,
                dwell: ms(keys.dwell_ms),
                max_unlocks_per_minute: keys.max_unlocks_per_minute as usize,
            },
            wired: self.wired.clone(),
            board: self.board.clone(),
            simulated: SimulatedSettings {
                travel: ms(keys.travel_ms),
                feedback_delay: ms(keys.feedback_delay_ms),
                jam_every: keys.jam_every,
                state_path,
            },
        }
    }

    pub(super) fn panel(&self, keys: &Keys) -> PanelSettings {
        let [button, beam, motion, red, green, blue, buzzer] = self.panel.clone();
        PanelSettings {
            button,
            gestures: ButtonSettings {
                hold: ms(keys.panel.hold_ms),
                long: ms(keys.panel.long_ms),
                stuck: ms(keys.panel.stuck_ms),
            },
            beam,
            motion,
            light: [red, green, blue],
            buzzer,
            debounce: ms(keys.panel.debounce_ms),
        }
    }

    /// Two things cannot be on one line.
    fn check_conflicts(&self, keys: &Keys, layers: &Layers) -> Result<(), ConfigError> {
        let panel = self.panel(keys);
        let mut taken: Vec<(&str, &Line)> = Vec::new();
        let latch = self.wired.as_ref().map(WiredSettings::lines).unwrap_or_default();
        for (key, line) in latch.into_iter().chain(panel.lines()) {
            if let Some((other, _)) = taken.iter().find(|(_, there)| there.key() == line.key()) {
                let expected = format!("another line: `{other}` is on this one");
                return Err(layers.wrong(key, &line.to_string(), &expected));
            }
            taken.push((key, line));
        }
        Ok(())
    }

    fn check_latch(&self, keys: &Keys, layers: &Layers) -> Result<(), ConfigError> {
        let (latch, door) = (&keys.latch, &keys.door);
        let Some(wired) = &self.wired else { return Ok(()) };
        let sensed = wired.locked.is_some() || wired.unlocked.is_some();
        if latch.feedback && !sensed {
            let expected = "false, or a sensor on latch.locked_line";
            return Err(layers.wrong("latch.feedback", "true", expected));
        }
        if !latch.feedback && sensed {
            let expected = "true, since there is a sensor, or no latch.locked_line";
            return Err(layers.wrong("latch.feedback", "false", expected));
        }
        let warns = if latch.kind == "driven" { latch.warn_ms } else { 0 };
        let least = warns
            + latch.travel_ms
            + latch.debounce_ms
            + SEEN_TICKS * crate::appliance::TICK.as_millis() as u64;
        if door.relock_within_ms < least {
            let expected = format!("at least {least}: the latch takes so long to be seen locked");
            let given = door.relock_within_ms.to_string();
            return Err(layers.wrong("door.relock_within_ms", &given, &expected));
        }
        if latch.kind != "solenoid" {
            return Ok(());
        }
        let passage = door.open_for_ms + door.pass_for_ms + door.lease_ms;
        let longest = passage.max(door.hold_open_for_ms);
        if latch.max_energised_ms < longest {
            let expected = format!(
                "at least {longest}, so that it does not lock while somebody passes or you hold \
                 the door open. If the coil bears that (a strike for continuous duty: duty = 1.0), \
                 say so; if not, lower door.hold_open_for_ms, door.open_for_ms, door.pass_for_ms"
            );
            let given = latch.max_energised_ms.to_string();
            return Err(layers.wrong("latch.max_energised_ms", &given, &expected));
        }
        Ok(())
    }
}

/// The latch as its own sections describe it.
pub(super) fn latch_alone(layers: &Layers) -> Result<LatchSettings, ConfigError> {
    let keys = layers.keys()?;
    let (wired, board) = (wired(&keys.latch, layers)?, board(&keys, layers)?);
    let hardware = Hardware { wired, board, ..Hardware::default() };
    Ok(hardware.latch(&keys.latch, ms(keys.door.lease_ms)))
}

fn board(keys: &Keys, layers: &Layers) -> Result<BoardSettings, ConfigError> {
    let kind = keys.lines.board.parse();
    let kind = kind.map_err(|e: String| layers.wrong("lines.board", &keys.lines.board, &e))?;
    let dir = &keys.lines.simulated_dir;
    Ok(BoardSettings { kind, simulated_dir: (!dir.is_empty()).then(|| dir.into()) })
}

fn live(source: &Source) -> Option<&LiveSource> {
    if let Source::Live(live) = source { Some(live) } else { None }
}

fn source(key: &str, text: &str, layers: &Layers) -> Result<Option<Source>, ConfigError> {
    let parsed = (!text.is_empty()).then(|| text.parse::<Source>()).transpose();
    // The text may hold a password.
    parsed.map_err(|e| layers.wrong(key, "not understood", &e.to_string()))
}

fn source_of_fallback(keys: &Keys, layers: &Layers) -> Result<Option<LiveSource>, ConfigError> {
    match source("camera.fallback", &keys.camera.fallback, layers)? {
        None => Ok(None),
        Some(Source::Live(live)) => Ok(Some(live)),
        Some(other) => {
            let expected = "a camera, such as v4l2:/dev/video1";
            Err(layers.wrong("camera.fallback", &other.to_string(), expected))
        }
    }
}

/// A camera must give a new frame before the last is stale, with one to spare.
fn check_rate(
    key: &str,
    source: Option<&LiveSource>,
    keys: &Keys,
    layers: &Layers,
) -> Result<(), ConfigError> {
    let wish = match source {
        Some(
            LiveSource::V4l2 { wish, .. }
            | LiveSource::Rpicam { wish, .. }
            | LiveSource::Argus { wish, .. },
        ) => wish,
        Some(LiveSource::Rtsp(_) | LiveSource::Http(_)) | None => return Ok(()),
    };
    let fresh = keys.door.fresh_for_ms;
    match wish.rate {
        Some(rate) if u64::from(rate) * fresh < 2_000 => {
            let expected = format!(
                "at least rate={}: two frames while one is fresh (door.fresh_for_ms = {fresh})",
                2_000_u64.div_ceil(fresh.max(1))
            );
            Err(layers.wrong(key, &format!("at rate={rate}"), &expected))
        }
        _ => Ok(()),
    }
}

fn line(key: &str, text: &str, layers: &Layers) -> Result<Option<Line>, ConfigError> {
    let parsed = (!text.is_empty()).then(|| text.parse::<Line>()).transpose();
    parsed.map_err(|_| layers.wrong(key, &format!("\"{text}\""), LINE_GRAMMAR))
}

fn wired(keys: &LatchKeys, layers: &Layers) -> Result<Option<WiredSettings>, ConfigError> {
    let optional = |key, text: &str| line(key, text, layers);
    let needed = |key: &str, text: &str| {
        let missing = || {
            let expected = format!("{LINE_GRAMMAR}, since latch.kind is {}", keys.kind);
            layers.wrong(key, "nothing", &expected)
        };
        line(key, text, layers)?.ok_or_else(missing)
    };
    let (locked, unlocked, obstruction) = (
        optional("latch.locked_line", &keys.locked_line)?,
        optional("latch.unlocked_line", &keys.unlocked_line)?,
        optional("latch.obstruction_line", &keys.obstruction_line)?,
    );
    let travel = ms(keys.travel_ms);
    let mover = match keys.kind.as_str() {
        "simulated" => return Ok(None),
        kind @ ("solenoid" | "magnet") => {
            let coil = CoilSettings {
                fail_safe: kind == "magnet",
                travel,
                longest: ms(keys.max_energised_ms),
                duty: keys.duty as f32,
            };
            Mover::Coil(needed("latch.line", &keys.line)?, coil)
        }
        "servo" => {
            let number = |key: &str, value: u64| {
                u8::try_from(value).map_err(|_| layers.wrong(key, &value.to_string(), "0 to 255"))
            };
            let channel = Channel {
                chip: number("latch.pwm_chip", keys.pwm_chip)?,
                channel: number("latch.pwm_channel", keys.pwm_channel)?,
            };
            Mover::Servo(channel, servo(keys, travel, layers)?)
        }
        "driven" => {
            if keys.warn_ms < 1_000 {
                let expected = "at least 1000: nobody must be surprised by a closing door";
                return Err(layers.wrong("latch.warn_ms", &keys.warn_ms.to_string(), expected));
            }
            for (key, text) in [
                ("latch.locked_line", &keys.locked_line),
                ("latch.unlocked_line", &keys.unlocked_line),
                ("latch.obstruction_line", &keys.obstruction_line),
            ] {
                needed(key, text)?;
            }
            Mover::Driven {
                open: needed("latch.line", &keys.line)?,
                close: needed("latch.close_line", &keys.close_line)?,
                settings: DrivenSettings { travel, warn: ms(keys.warn_ms) },
            }
        }
        other => {
            let expected = "solenoid, magnet, servo, driven or simulated";
            return Err(layers.wrong("latch.kind", other, expected));
        }
    };
    if !(keys.duty > 0.0 && keys.duty <= 1.0) {
        return Err(layers.wrong("latch.duty", &keys.duty.to_string(), "above 0, up to 1"));
    }
    let debounce = ms(keys.debounce_ms);
    if keys.debounce_ms > 500 {
        return Err(layers.wrong("latch.debounce_ms", &keys.debounce_ms.to_string(), "up to 500"));
    }
    Ok(Some(WiredSettings { mover, locked, unlocked, obstruction, debounce }))
}

fn servo(
    keys: &LatchKeys,
    travel: Duration,
    layers: &Layers,
) -> Result<ServoSettings, ConfigError> {
    for (key, width) in
        [("latch.locked_us", keys.locked_us), ("latch.unlocked_us", keys.unlocked_us)]
    {
        if !(500..=2_500).contains(&width) {
            return Err(layers.wrong(key, &width.to_string(), "500 to 2500 microseconds"));
        }
    }
    if keys.locked_us.abs_diff(keys.unlocked_us) < 100 {
        let expected = "at least 100 microseconds away from latch.locked_us";
        return Err(layers.wrong("latch.unlocked_us", &keys.unlocked_us.to_string(), expected));
    }
    let us = Duration::from_micros;
    Ok(ServoSettings { locked: us(keys.locked_us), unlocked: us(keys.unlocked_us), travel })
}

fn check_gestures(keys: &Keys, layers: &Layers) -> Result<(), ConfigError> {
    let p = &keys.panel;
    let at_least = |key: &str, value: u64, least: u64| {
        let expected = format!("at least {least}, so that gestures can be told apart");
        if value >= least { Ok(()) } else { Err(layers.wrong(key, &value.to_string(), &expected)) }
    };
    if p.debounce_ms > 500 {
        return Err(layers.wrong("panel.debounce_ms", &p.debounce_ms.to_string(), "up to 500"));
    }
    at_least("panel.hold_ms", p.hold_ms, p.debounce_ms + 300)?;
    at_least("panel.long_ms", p.long_ms, p.hold_ms + 500)?;
    at_least("panel.stuck_ms", p.stuck_ms, p.long_ms + 1_000)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load, refuses};
    use super::*;

    const STRIKE: &str = "[door]\nhold_open_for_ms = 60000\n[latch]\nkind = \"solenoid\"\n\
                          line = \"GPIO17\"\nlocked_line = \"GPIO22 pull-up active-low\"\n\
                          max_energised_ms = 60000\n";

    #[test]
    fn a_strike_with_its_sensor_is_read() {
        let config = load(STRIKE).unwrap();
        let wired = config.latch.wired.unwrap();
        assert!(matches!(&wired.mover, Mover::Coil(line, coil)
            if line.key() == "17" && !coil.fail_safe && coil.longest == ms(60_000)));
        assert!(config.door.feedback && wired.locked.unwrap().active_low);
    }

    #[test]
    fn every_kind_says_what_it_lacks() {
        refuses("[latch]\nkind = \"magic\"", &["latch.kind", "magic", "solenoid"]);
        refuses("[latch]\nkind = \"magnet\"", &["latch.line", "nothing", "GPIO17"]);
        refuses(
            "[latch]\nkind = \"magnet\"\nline = \"17 up\"",
            &["latch.line", "17 up", "pull-up"],
        );
        let magnet = "[latch]\nkind = \"magnet\"\nline = \"17\"\n";
        refuses(magnet, &["latch.feedback", "latch.locked_line"]);
        assert!(load(&format!("{magnet}feedback = false")).is_ok());
        refuses(
            &format!("{magnet}locked_line = \"4\"\nfeedback = false"),
            &["latch.feedback", "sensor"],
        );
        let driven = "[latch]\nkind = \"driven\"\nline = \"5\"\nclose_line = \"6\"\n\
                      locked_line = \"13\"\nunlocked_line = \"19\"\ntravel_ms = 4000\n";
        refuses(driven, &["latch.obstruction_line", "driven"]);
        let driven = format!("{driven}obstruction_line = \"26\"\n");
        refuses(&driven, &["door.relock_within_ms", "at least 7120"]);
        assert!(load(&format!("{driven}[door]\nrelock_within_ms = 8000")).is_ok());
        refuses(&format!("{driven}warn_ms = 0"), &["latch.warn_ms", "1000"]);
        let servo = "[latch]\nkind = \"servo\"\nfeedback = false\n";
        assert!(load(servo).is_ok());
        refuses(&format!("{servo}locked_us = 200"), &["latch.locked_us", "500 to 2500"]);
        refuses(&format!("{servo}unlocked_us = 1050"), &["latch.unlocked_us", "100"]);
        refuses(&format!("{servo}pwm_chip = 256"), &["latch.pwm_chip", "255"]);
    }

    #[test]
    fn a_coil_that_cannot_bear_what_is_asked_is_told_both_ways_out() {
        let text = STRIKE.replace("max_energised_ms = 60000", "max_energised_ms = 30000");
        refuses(&text, &["latch.max_energised_ms", "60000", "door.hold_open_for_ms"]);
        let text = STRIKE.replace("hold_open_for_ms = 60000", "hold_open_for_ms = 5000");
        let text = text.replace("max_energised_ms = 60000", "max_energised_ms = 28000");
        refuses(&text, &["latch.max_energised_ms", "29000"]);
        refuses(&format!("{STRIKE}duty = 0"), &["latch.duty", "above 0"]);
    }

    #[test]
    fn the_latch_can_be_read_although_the_rest_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pawlatch.toml");
        let text = format!("{STRIKE}[camera]\nsource = 7\n[nonsense]\nx = 1\n");
        std::fs::write(&path, text).unwrap();
        assert!(super::super::Config::load_with(Some(&path), []).is_err());
        let latch = super::super::Config::load_latch(Some(&path)).unwrap();
        assert_eq!(latch.wired, load(STRIKE).unwrap().latch.wired);
        std::fs::write(&path, "[latch]\nkind = \"magic\"").unwrap();
        assert!(super::super::Config::load_latch(Some(&path)).is_err());
    }

    #[test]
    fn two_things_on_one_line_are_named_both() {
        let text = format!("{STRIKE}[panel]\nbutton_line = \"17 active-low\"");
        refuses(&text, &["panel.button_line", "latch.line"]);
        let text = "[panel]\nred_line = \"GPIO5\"\nblue_line = \"5\"";
        refuses(text, &["panel.blue_line", "panel.red_line"]);
    }

    #[test]
    fn cameras_are_checked_as_far_as_they_can_be_without_them() {
        refuses("[camera]\nsource = \"v4l2:/dev/video0?rate=1\"", &["rate=1", "rate=2"]);
        refuses("[camera]\nsource = \"v4l2:video 0\"", &["camera.source", "/dev/"]);
        refuses("[camera]\nsource = \"sim:\"\nfallback = \"rpicam:0\"", &["camera.fallback"]);
        refuses(
            "[camera]\nsource = \"rpicam:0\"\nfallback = \"sim:\"",
            &["camera.fallback", "a camera"],
        );
        refuses("[camera]\nrotate = 45", &["camera.rotate", "90"]);
        refuses("[lines]\nboard = \"arduino\"", &["lines.board", "arduino", "gpiocdev"]);
        refuses("[panel]\nlong_ms = 1600", &["panel.long_ms", "at least 2000"]);
        let error = load("[camera]\nsource = \"rtsp://me:topsecret@\"").unwrap_err().to_string();
        assert!(!error.contains("topsecret"), "{error}");
        let config = load("[camera]\nsource = \"rpicam:0\"\nrotate = 270\nmirror = true").unwrap();
        assert_eq!(config.camera.mounting, Mounting { quarter_turns: 3, mirrored: true });
    }
}
