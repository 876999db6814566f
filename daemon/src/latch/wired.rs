//! A latch at the end of real lines: sensors in, an actuator in the middle, lines out.

use std::time::Duration;

use pawlatch_core::door::Position;
use pawlatch_core::units::Uptime;

use super::actuator::{Actuator, Coil, CoilSettings, Drive, Motor, Sensed, Servo, ServoSettings};
use super::driven::{Driven, DrivenSettings};
use super::{Bolt, Latch, LatchError};
use crate::lines::{Board, Channel, Debounce, Input, Line, LineError, Output, Pulses};

/// What moves the bolt, and over which lines.
#[derive(Debug, Clone, PartialEq)]
pub enum Mover {
    /// A coil on one line.
    Coil(Line, CoilSettings),
    /// A servo on a PWM channel.
    Servo(Channel, ServoSettings),
    /// A motor on one line for each direction.
    Driven {
        /// Opens the door.
        open: Line,
        /// Closes it.
        close: Line,
        /// How it moves.
        settings: DrivenSettings,
    },
}

/// A latch with its lines.
#[derive(Debug, Clone, PartialEq)]
pub struct WiredSettings {
    /// What moves the bolt.
    pub mover: Mover,
    /// Active when the bolt is home or the door closed.
    pub locked: Option<Line>,
    /// Active when the bolt is drawn or the door open.
    pub unlocked: Option<Line>,
    /// Active when something is in the way of a driven door.
    pub obstruction: Option<Line>,
    /// How long a sensor must hold a level.
    pub debounce: Duration,
}

impl WiredSettings {
    /// Every line there is, with the configuration's key for it.
    pub fn lines(&self) -> Vec<(&'static str, &Line)> {
        let mut lines = match &self.mover {
            Mover::Coil(line, _) => vec![("latch.line", line)],
            Mover::Servo(..) => Vec::new(),
            Mover::Driven { open, close, .. } => {
                vec![("latch.line", open), ("latch.close_line", close)]
            }
        };
        let sensors = [
            ("latch.locked_line", &self.locked),
            ("latch.unlocked_line", &self.unlocked),
            ("latch.obstruction_line", &self.obstruction),
        ];
        lines.extend(sensors.into_iter().filter_map(|(key, line)| Some((key, line.as_ref()?))));
        lines
    }
}

/// A latch on its lines.
pub struct WiredLatch {
    actuator: Actuator,
    wires: Wires,
    locked: Option<Sensor>,
    unlocked: Option<Sensor>,
    obstruction: Option<Sensor>,
    /// What is on the lines; `None` if that failed.
    driven: Option<Drive>,
}

enum Wires {
    Coil(Box<dyn Output>),
    Servo(Box<dyn Pulses>),
    Motor { open: Box<dyn Output>, close: Box<dyn Output> },
}

struct Sensor {
    input: Box<dyn Input>,
    contact: Debounce,
}

impl Sensor {
    fn open(board: &dyn Board, line: &Line, span: Duration) -> Result<Self, LineError> {
        let mut input = board.input(line)?;
        let active = input.is_active()?;
        Ok(Self { input, contact: Debounce::new(span, active) })
    }

    fn read(&mut self, now: Uptime) -> Result<bool, LineError> {
        let active = self.input.is_active()?;
        Ok(self.contact.step(now, active))
    }
}

impl WiredLatch {
    /// Takes the lines over; a coil's level is the locked one from the first moment.
    ///
    /// # Errors
    /// If a line cannot be had.
    pub fn open(board: &dyn Board, settings: &WiredSettings) -> Result<Self, LineError> {
        let (actuator, wires) = match &settings.mover {
            Mover::Coil(line, coil) => {
                let output = board.output(line, coil.fail_safe)?;
                (Actuator::Coil(Coil::new(coil.clone())), Wires::Coil(output))
            }
            Mover::Servo(channel, servo) => {
                let pulses = board.pulses(*channel)?;
                (Actuator::Servo(Servo::new(servo.clone())), Wires::Servo(pulses))
            }
            Mover::Driven { open, close, settings } => {
                let open = board.output(open, false)?;
                let close = board.output(close, false)?;
                let door = Driven::new(settings.clone());
                (Actuator::Driven(door), Wires::Motor { open, close })
            }
        };
        let sensor = |line: &Option<Line>| {
            line.as_ref().map(|line| Sensor::open(board, line, settings.debounce)).transpose()
        };
        Ok(Self {
            driven: Some(actuator.rest()),
            actuator,
            wires,
            locked: sensor(&settings.locked)?,
            unlocked: sensor(&settings.unlocked)?,
            obstruction: sensor(&settings.obstruction)?,
        })
    }

    /// One step of the actuator with what the sensors say. A sensor that fails does not keep the
    /// bolt from moving: a lock that is commanded is driven first and the failure told after.
    fn step(&mut self, now: Uptime) -> Result<Position, LatchError> {
        let mut failure = None;
        let mut read = |sensor: &mut Option<Sensor>| {
            sensor.as_mut().map(|sensor| sensor.read(now)).and_then(|read| match read {
                Ok(active) => Some(active),
                Err(error) => {
                    failure = Some(error);
                    None
                }
            })
        };
        let (locked, unlocked) = (read(&mut self.locked), read(&mut self.unlocked));
        // What cannot be seen to be free may be in the way.
        let obstructed = self.obstruction.is_some() && read(&mut self.obstruction) != Some(false);
        let (drive, position) = self.actuator.step(now, Sensed { locked, unlocked, obstructed });
        if self.driven != Some(drive) {
            self.driven = None;
            self.put(drive)?;
            self.driven = Some(drive);
        }
        failure.map_or(Ok(position), |error| Err(error.into()))
    }

    fn put(&mut self, drive: Drive) -> Result<(), LineError> {
        match (&mut self.wires, drive) {
            (Wires::Coil(line), Drive::Coil(on)) => line.set(on),
            (Wires::Servo(pulses), Drive::Pulse(width)) => pulses.set(width),
            (Wires::Motor { open, close }, Drive::Motor(motor)) => {
                // The one that must be off goes first: both on would short the driver.
                if motor == Motor::Closing {
                    open.set(false)?;
                    close.set(true)
                } else {
                    close.set(false)?;
                    open.set(motor == Motor::Opening)
                }
            }
            _ => unreachable!("an actuator drives the wires it was opened with"),
        }
    }
}

impl Latch for WiredLatch {
    fn drive(&mut self, now: Uptime, to: Bolt) -> Result<(), LatchError> {
        self.actuator.wish(now, to);
        self.step(now).map(|_| ())
    }

    fn observe(&mut self, now: Uptime) -> Result<Position, LatchError> {
        self.step(now)
    }
}

impl Drop for WiredLatch {
    /// A motor or a servo must not be left moving by a program that is gone.
    fn drop(&mut self) {
        let still = match self.wires {
            Wires::Coil(_) => return,
            Wires::Servo(_) => Drive::Pulse(None),
            Wires::Motor { .. } => Drive::Motor(Motor::Stopped),
        };
        if let Err(error) = self.put(still) {
            tracing::error!(%error, "cannot stop the latch's motor at the end");
        }
    }
}

#[cfg(test)]
mod tests {
    use pawlatch_core::door::DesiredLatch;

    use super::super::{LeaseSettings, Leased};
    use super::*;
    use crate::lines::SimulatedBoard;

    fn at(ms: u64) -> Uptime {
        Uptime::from_millis(ms)
    }

    fn line(text: &str) -> Line {
        text.parse().unwrap()
    }

    fn strike(latch: &str, fail_safe: bool) -> WiredSettings {
        let travel = Duration::from_millis(100);
        let longest = Duration::from_secs(30);
        let coil = CoilSettings { fail_safe, travel, longest, duty: 0.5 };
        WiredSettings {
            mover: Mover::Coil(line(latch), coil),
            locked: Some(line("22 pull-up active-low")),
            unlocked: None,
            obstruction: None,
            debounce: Duration::from_millis(40),
        }
    }

    #[test]
    fn the_first_level_on_the_latchs_line_is_the_locked_one() {
        for (spec, fail_safe, locked) in [
            ("17", false, false),
            ("17 active-low", false, true),
            ("17", true, true),
            ("17 active-low", true, false),
        ] {
            let board = SimulatedBoard::default();
            let _latch = WiredLatch::open(&board, &strike(spec, fail_safe)).unwrap();
            assert_eq!(board.history(), [("17".to_owned(), locked)], "{spec} {fail_safe}");
        }
    }

    #[test]
    fn a_bolt_that_does_not_come_home_is_jammed_and_is_tried_again() {
        let board = SimulatedBoard::default();
        board.set_level("22", false);
        let latch = WiredLatch::open(&board, &strike("17", false)).unwrap();
        let limits = LeaseSettings {
            longest: Duration::from_secs(1),
            dwell: Duration::ZERO,
            max_unlocks_per_minute: 20,
        };
        let mut leased = Leased::new(Box::new(latch), limits);
        let mut step = |ms, command| leased.step(at(ms), command).unwrap().position;
        assert_eq!(step(0, None), Position::Locked);
        let open = Some(DesiredLatch::UnlockedUntil(at(600)));
        step(100, open);
        assert_eq!(board.level("17"), Some(true));
        board.set_level("22", true);
        step(200, None);
        assert_eq!(step(240, None), Position::Unlocked);
        // The lease lapses, the line is released, the bolt stays out.
        assert_eq!(step(620, None), Position::Moving);
        assert_eq!(board.level("17"), Some(false));
        assert_eq!(step(740, None), Position::Jammed);
        assert_eq!(step(1_140, None), Position::Jammed, "driven once more");
        assert_eq!(step(1_160, None), Position::Moving);
        board.set_level("22", false);
        step(1_180, None);
        assert_eq!(step(1_220, None), Position::Locked);
        // Somebody forces it.
        board.set_level("22", true);
        step(1_300, None);
        assert_eq!(step(1_340, None), Position::Unlocked);
        assert_eq!(step(3_000, None), Position::Unlocked, "no command hides it");
    }

    #[test]
    fn a_sensor_that_fails_keeps_no_bolt_from_being_locked() {
        let dir = tempfile::tempdir().unwrap();
        let board = SimulatedBoard::new(Some(dir.path().to_owned()));
        let sensor = dir.path().join("22");
        std::fs::write(&sensor, "0").unwrap();
        let mut latch = WiredLatch::open(&board, &strike("17", false)).unwrap();
        latch.drive(at(0), Bolt::Unlocked).unwrap();
        assert_eq!(board.level("17"), Some(true));
        std::fs::write(&sensor, "broken").unwrap();
        latch.drive(at(100), Bolt::Locked).expect_err("the failure is told");
        assert_eq!(board.level("17"), Some(false), "and the bolt is locked all the same");
    }

    #[test]
    fn a_motor_is_never_on_both_ways_and_stops_with_the_program() {
        let board = SimulatedBoard::default();
        let settings = WiredSettings {
            mover: Mover::Driven {
                open: line("5"),
                close: line("6"),
                settings: DrivenSettings {
                    travel: Duration::from_secs(2),
                    warn: Duration::from_millis(500),
                },
            },
            locked: Some(line("13")),
            unlocked: Some(line("19")),
            obstruction: Some(line("26")),
            debounce: Duration::ZERO,
        };
        board.set_level("13", true);
        let mut latch = WiredLatch::open(&board, &settings).unwrap();
        latch.drive(at(0), Bolt::Unlocked).unwrap();
        board.set_level("13", false);
        latch.observe(at(500)).unwrap();
        latch.drive(at(600), Bolt::Locked).unwrap();
        for ms in (620..2_000).step_by(20) {
            latch.observe(at(ms)).unwrap();
        }
        assert_eq!((board.level("5"), board.level("6")), (Some(false), Some(true)));
        let (mut opening, mut closing) = (false, false);
        for (key, high) in board.history() {
            if key == "5" {
                opening = high
            } else {
                closing = high
            }
            assert!(!(opening && closing), "shorted");
        }
        drop(latch);
        assert_eq!((board.level("5"), board.level("6")), (Some(false), Some(false)));
    }
}
