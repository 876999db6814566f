//! A latch that behaves like one: it takes time, it may stick, its sensor lags, it wears.

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use pawlatch_core::door::Position;
use pawlatch_core::units::Uptime;

use super::{Bolt, Latch, LatchError};

/// How a simulated latch behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedSettings {
    /// Time from one end to the other.
    pub travel: Duration,
    /// How much later the sensor tells.
    pub feedback_delay: Duration,
    /// Every how manieth movement sticks half-way until it is driven again; 0: never.
    pub jam_every: u64,
    /// A file that keeps the bolt's position when the program ends, as a real bolt does.
    pub state_path: Option<PathBuf>,
}

impl Default for SimulatedSettings {
    fn default() -> Self {
        Self {
            travel: Duration::from_millis(150),
            feedback_delay: Duration::from_millis(20),
            jam_every: 0,
            state_path: None,
        }
    }
}

/// One movement of the bolt.
#[derive(Debug, Clone, Copy)]
struct Move {
    at: Uptime,
    /// Where the bolt was: 0 is locked, 1 is unlocked.
    from: f32,
    to: Bolt,
    sticks: bool,
}

/// Movements kept, so that a lagging sensor can tell the past. At the usual settings only the
/// last two matter.
const MOVES: usize = 16;

/// A simulated latch. Deterministic: the same calls give the same answers.
#[derive(Debug, Clone)]
pub struct SimulatedLatch {
    settings: SimulatedSettings,
    moves: VecDeque<Move>,
    started: u64,
    stuck: bool,
    silent: bool,
}

impl SimulatedLatch {
    /// A latch at rest: where its state file says the bolt was left; locked without one. An
    /// unreadable file counts as unlocked, which is the worst that can have happened.
    pub fn new(settings: SimulatedSettings) -> Self {
        let to = match settings.state_path.as_ref().map(fs::read_to_string) {
            None => Bolt::Locked,
            Some(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => Bolt::Locked,
            Some(Ok(text)) if text == "locked" => Bolt::Locked,
            Some(_) => Bolt::Unlocked,
        };
        let rest = Move { at: Uptime::ZERO, from: end(to), to, sticks: false };
        Self { settings, moves: VecDeque::from([rest]), started: 0, stuck: false, silent: false }
    }

    /// How often the bolt was set in motion.
    pub const fn wear(&self) -> u64 {
        self.started
    }

    /// From now on every movement sticks (`true`), or none does beyond the settings' (`false`).
    pub const fn set_stuck(&mut self, stuck: bool) {
        self.stuck = stuck;
    }

    /// From now on the latch answers nothing and takes no command (`true`).
    pub const fn set_silent(&mut self, silent: bool) {
        self.silent = silent;
    }

    /// Where the bolt really is at `now`, whatever its sensor tells.
    pub fn truth(&self, now: Uptime) -> Position {
        let Some(last) = self.moves.iter().rev().find(|m| m.at <= now).or(self.moves.front())
        else {
            return Position::Unknown;
        };
        if self.place(last, now) == end(last.to) {
            return match last.to {
                Bolt::Locked => Position::Locked,
                Bolt::Unlocked => Position::Unlocked,
            };
        }
        let over = now.since(last.at) >= self.settings.travel;
        if last.sticks && over { Position::Jammed } else { Position::Moving }
    }

    /// How far the bolt is drawn after `moved` has gone on until `now`, 0 to 1.
    fn place(&self, moved: &Move, now: Uptime) -> f32 {
        let travel = self.settings.travel.as_secs_f32();
        let gone = now.since(moved.at).as_secs_f32();
        let way = if travel > 0.0 { (gone / travel).min(1.0) } else { 1.0 };
        let target = end(moved.to);
        // One that sticks does so in the middle of its own way.
        let way = if moved.sticks { way.min(0.5 * (target - moved.from).abs()) } else { way };
        if target > moved.from {
            (moved.from + way).min(target)
        } else {
            (moved.from - way).max(target)
        }
    }

    fn silence(&self) -> Result<(), LatchError> {
        if self.silent { Err(LatchError::Silent("simulated silence".to_owned())) } else { Ok(()) }
    }
}

const fn end(bolt: Bolt) -> f32 {
    match bolt {
        Bolt::Locked => 0.0,
        Bolt::Unlocked => 1.0,
    }
}

impl Latch for SimulatedLatch {
    fn drive(&mut self, now: Uptime, to: Bolt) -> Result<(), LatchError> {
        self.silence()?;
        let Some(last) = self.moves.back().copied() else { return Ok(()) };
        let from = self.place(&last, now);
        let under_way = last.to == to && self.truth(now) != Position::Jammed;
        if under_way {
            return Ok(());
        }
        self.started += 1;
        let every = self.settings.jam_every;
        let sticks = self.stuck || (every > 0 && self.started.is_multiple_of(every));
        self.moves.push_back(Move { at: now, from, to, sticks });
        if self.moves.len() > MOVES {
            self.moves.pop_front();
        }
        if let Some(path) = &self.settings.state_path {
            let name = if to == Bolt::Locked && !sticks { "locked" } else { "unlocked" };
            fs::write(path, name)
                .map_err(|e| LatchError::Silent(format!("cannot write {}: {e}", path.display())))?;
        }
        Ok(())
    }

    fn observe(&mut self, now: Uptime) -> Result<Position, LatchError> {
        self.silence()?;
        Ok(self.truth(now - self.settings.feedback_delay))
    }
}
