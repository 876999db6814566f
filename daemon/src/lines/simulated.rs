//! Lines without a board: levels in memory, where a test sets and reads them, or in files, where
//! another process does.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Bias, Board, Channel, Found, Input, Line, LineError, Output, Pulses};

/// Simulated lines. Clones are the same lines.
#[derive(Debug, Clone, Default)]
pub struct SimulatedBoard {
    dir: Option<PathBuf>,
    wires: Arc<Mutex<Wires>>,
}

#[derive(Debug, Default)]
struct Wires {
    /// High or not, by the line's key.
    levels: BTreeMap<String, bool>,
    /// What outputs were set to, in order.
    history: Vec<(String, bool)>,
    pulses: BTreeMap<String, Option<Duration>>,
}

impl SimulatedBoard {
    /// Lines whose levels are in memory, or in `dir` with one file per line.
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self { dir, wires: Arc::default() }
    }

    /// Sets the voltage of the wire `key`: high or not.
    pub fn set_level(&self, key: &str, high: bool) {
        self.wires().levels.insert(key.to_owned(), high);
    }

    /// The voltage of the wire `key`; `None` if nobody has driven it.
    pub fn level(&self, key: &str) -> Option<bool> {
        self.wires().levels.get(key).copied()
    }

    /// Every voltage that an output was set to, in order.
    pub fn history(&self) -> Vec<(String, bool)> {
        self.wires().history.clone()
    }

    /// The width of the pulses on a channel; `None` while there are none.
    pub fn pulse_width(&self, channel: Channel) -> Option<Duration> {
        self.wires().pulses.get(&key_of(channel)).copied().flatten()
    }

    fn wires(&self) -> MutexGuard<'_, Wires> {
        self.wires.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, key: &str, text: &str) -> Result<(), LineError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let fails = |e: io::Error| LineError::Fails {
            line: key.to_owned(),
            problem: format!("cannot write {}: {e}", dir.join(key).display()),
        };
        // Whole or not at all: somebody may be reading.
        let part = dir.join(format!(".{key}"));
        fs::write(&part, text).map_err(fails)?;
        fs::rename(&part, dir.join(key)).map_err(fails)
    }

    fn drive(&self, key: &str, high: bool) -> Result<(), LineError> {
        self.write(key, if high { "1" } else { "0" })?;
        let mut wires = self.wires();
        wires.levels.insert(key.to_owned(), high);
        wires.history.push((key.to_owned(), high));
        Ok(())
    }

    fn read(&self, line: &Line) -> Result<bool, LineError> {
        let key = line.key();
        let at_rest = line.bias == Bias::PullUp;
        let Some(dir) = &self.dir else { return Ok(self.level(&key).unwrap_or(at_rest)) };
        match fs::read_to_string(dir.join(&key)).as_deref().map(str::trim) {
            Ok("1") => Ok(true),
            Ok("0") => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(at_rest),
            Ok(_) => Err(LineError::Fails { line: key, problem: "neither 0 nor 1".to_owned() }),
            Err(e) => Err(LineError::Fails { line: key, problem: e.to_string() }),
        }
    }
}

fn key_of(channel: Channel) -> String {
    format!("pwmchip{}:{}", channel.chip, channel.channel)
}

/// One wire, driven or read.
struct Wire {
    board: SimulatedBoard,
    line: Line,
}

impl Output for Wire {
    fn set(&mut self, active: bool) -> Result<(), LineError> {
        self.board.drive(&self.line.key(), active != self.line.active_low)
    }
}

impl Input for Wire {
    fn is_active(&mut self) -> Result<bool, LineError> {
        Ok(self.board.read(&self.line)? != self.line.active_low)
    }
}

struct Servo {
    board: SimulatedBoard,
    channel: Channel,
}

impl Pulses for Servo {
    fn set(&mut self, width: Option<Duration>) -> Result<(), LineError> {
        let text = width.map_or("0".to_owned(), |width| width.as_micros().to_string());
        self.board.write(&key_of(self.channel), &text)?;
        self.board.wires().pulses.insert(key_of(self.channel), width);
        Ok(())
    }
}

impl Board for SimulatedBoard {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn output(&self, line: &Line, active: bool) -> Result<Box<dyn Output>, LineError> {
        let mut wire = Wire { board: self.clone(), line: line.clone() };
        Output::set(&mut wire, active)?;
        Ok(Box::new(wire))
    }

    fn input(&self, line: &Line) -> Result<Box<dyn Input>, LineError> {
        let mut wire = Wire { board: self.clone(), line: line.clone() };
        wire.is_active()?;
        Ok(Box::new(wire))
    }

    fn pulses(&self, channel: Channel) -> Result<Box<dyn Pulses>, LineError> {
        Ok(Box::new(Servo { board: self.clone(), channel }))
    }

    fn find(&self, line: &Line) -> Result<Found, LineError> {
        self.read(line)?;
        Ok(Found { place: format!("simulated {line}"), held_by: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_low_is_inverted_once_on_the_way_out_and_once_on_the_way_in() {
        let board = SimulatedBoard::default();
        let mut lamp = board.output(&"GPIO5 active-low".parse().unwrap(), false).unwrap();
        assert_eq!(board.level("5"), Some(true));
        lamp.set(true).unwrap();
        assert_eq!(board.level("5"), Some(false));
        let mut button = board.input(&"6 active-low pull-up".parse().unwrap()).unwrap();
        assert!(!button.is_active().unwrap(), "pulled up and nobody presses");
        board.set_level("6", false);
        assert!(button.is_active().unwrap());
    }

    #[test]
    fn lines_in_files_are_shared_between_processes() {
        let dir = tempfile::tempdir().unwrap();
        let board = SimulatedBoard::new(Some(dir.path().to_owned()));
        board.output(&"GPIO17".parse().unwrap(), false).unwrap().set(true).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("17")).unwrap(), "1");
        let mut bolt = board.input(&"22 pull-down".parse().unwrap()).unwrap();
        assert!(!bolt.is_active().unwrap());
        fs::write(dir.path().join("22"), "1\n").unwrap();
        assert!(bolt.is_active().unwrap());
        fs::write(dir.path().join("22"), "x").unwrap();
        assert!(bolt.is_active().is_err());
    }
}
