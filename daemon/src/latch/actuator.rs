//! What moves the bolt, as pure machines: a wish, sensors and the time come in, what shall be on
//! the lines comes out. No line, no clock.
//!
//! Commanded and observed are kept apart: what was wished never becomes a position; without a
//! sensor the position is unknown.

use std::time::Duration;

use pawlatch_core::door::Position;
use pawlatch_core::units::Uptime;

use super::Bolt;
use super::driven::Driven;

/// What the sensors say; `None` for one that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sensed {
    /// Whether the bolt is home, or a driven door closed.
    pub locked: Option<bool>,
    /// Whether the bolt is drawn, or a driven door open.
    pub unlocked: Option<bool>,
    /// Whether something is in the way of a driven door.
    pub obstructed: bool,
}

/// Which way a motor turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Motor {
    /// Not at all.
    Stopped,
    /// The door opens.
    Opening,
    /// The door closes.
    Closing,
}

/// What shall be on the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    /// A coil carries current or not.
    Coil(bool),
    /// A servo gets pulses of this width, or none.
    Pulse(Option<Duration>),
    /// A motor turns or not.
    Motor(Motor),
}

/// Something that moves the bolt.
#[derive(Debug, Clone)]
pub enum Actuator {
    /// A solenoid, strike or magnet.
    Coil(Coil),
    /// A servo.
    Servo(Servo),
    /// A door with a motor.
    Driven(Driven),
}

impl Actuator {
    /// What shall be on the lines before the first wish is known: locked and at rest.
    pub fn rest(&self) -> Drive {
        match self {
            Self::Coil(coil) => Drive::Coil(coil.settings.fail_safe),
            Self::Servo(_) => Drive::Pulse(None),
            Self::Driven(_) => Drive::Motor(Motor::Stopped),
        }
    }

    /// Takes over a wish. Wishing what is wished already is harmless, and tries again what is
    /// stuck.
    pub fn wish(&mut self, now: Uptime, to: Bolt) {
        match self {
            Self::Coil(coil) => coil.travel.wish(now, to),
            Self::Servo(servo) => servo.travel.wish(now, to),
            Self::Driven(driven) => driven.wish(now, to),
        }
    }

    /// One step: what shall be on the lines, and where the bolt is seen to be.
    pub fn step(&mut self, now: Uptime, sensed: Sensed) -> (Drive, Position) {
        match self {
            Self::Coil(coil) => {
                let on = coil.step(now);
                (Drive::Coil(on), coil.travel.position(now, sensed))
            }
            Self::Servo(servo) => {
                (Drive::Pulse(servo.pulse(now)), servo.travel.position(now, sensed))
            }
            Self::Driven(driven) => {
                let (motor, position) = driven.step(now, sensed);
                (Drive::Motor(motor), position)
            }
        }
    }
}

/// A commanded movement, and what the sensors say of it.
#[derive(Debug, Clone)]
struct Travel {
    takes: Duration,
    /// Where to, and since when; `None` before the first command.
    wish: Option<(Bolt, Uptime)>,
    /// Whether the bolt was seen to arrive. One that leaves again was moved by somebody.
    arrived: bool,
    jammed: bool,
}

impl Travel {
    const fn new(takes: Duration) -> Self {
        Self { takes, wish: None, arrived: false, jammed: false }
    }

    fn wish(&mut self, now: Uptime, to: Bolt) {
        if self.jammed || self.wish.is_none_or(|(bolt, _)| bolt != to) {
            *self = Self { wish: Some((to, now)), ..Self::new(self.takes) };
        }
    }

    fn position(&mut self, now: Uptime, sensed: Sensed) -> Position {
        let (home, drawn) = match (sensed.locked, sensed.unlocked) {
            (None, None) => return Position::Unknown,
            (Some(home), Some(drawn)) => (home, drawn),
            (Some(home), None) => (home, !home),
            (None, Some(drawn)) => (!drawn, drawn),
        };
        let at = match (home, drawn) {
            // A bolt cannot be at both ends: a sensor is broken.
            (true, true) => {
                self.jammed = true;
                return Position::Jammed;
            }
            (true, false) => Some(Bolt::Locked),
            (false, true) => Some(Bolt::Unlocked),
            (false, false) => None,
        };
        let seen = match at {
            Some(Bolt::Locked) => Position::Locked,
            Some(Bolt::Unlocked) => Position::Unlocked,
            None => Position::Moving,
        };
        let Some((to, since)) = self.wish else { return seen };
        if at == Some(to) {
            self.arrived = true;
            self.jammed = false;
            return seen;
        }
        if self.arrived {
            return seen;
        }
        self.jammed = now.since(since) >= self.takes;
        if self.jammed { Position::Jammed } else { Position::Moving }
    }

    fn bolt(&self) -> Bolt {
        self.wish.map_or(Bolt::Locked, |(bolt, _)| bolt)
    }
}

/// How a coil is wired and what it bears.
#[derive(Debug, Clone, PartialEq)]
pub struct CoilSettings {
    /// Whether current locks (a magnet) instead of unlocking (a solenoid, a strike).
    pub fail_safe: bool,
    /// How long the bolt takes from end to end, at most.
    pub travel: Duration,
    /// How long the coil may carry current without a break, where current unlocks.
    pub longest: Duration,
    /// Share of the time it may carry current in the long run, above 0, up to 1.
    pub duty: f32,
}

/// A coil: a fail-secure solenoid or strike that current unlocks, or a fail-safe magnet that
/// current locks.
///
/// A coil that unlocks is protected from burning: current heats it, a pause cools it, and at the
/// limit it is switched off, which locks, until it has cooled down by half. A magnet is made to
/// carry current all the time and is never switched off but to unlock.
#[derive(Debug, Clone)]
pub struct Coil {
    settings: CoilSettings,
    travel: Travel,
    /// Time on that has not been cooled away.
    heat: Duration,
    /// Until it has cooled down by half.
    cooling: bool,
    on: bool,
    stepped: Uptime,
}

impl Coil {
    /// A cold coil without current.
    pub const fn new(settings: CoilSettings) -> Self {
        let travel = Travel::new(settings.travel);
        let (heat, stepped) = (Duration::ZERO, Uptime::ZERO);
        Self { settings, travel, heat, cooling: false, on: false, stepped }
    }

    fn step(&mut self, now: Uptime) -> bool {
        let bolt = self.travel.bolt();
        if self.settings.fail_safe {
            return bolt == Bolt::Locked;
        }
        let passed = now.since(self.stepped);
        self.stepped = now.max(self.stepped);
        if self.on {
            self.heat = self.heat.saturating_add(passed);
        } else {
            // At this rate a coil that is on for the share `duty` stays as warm as it is.
            let duty = self.settings.duty;
            let cooled = if duty >= 1.0 { self.heat } else { passed.mul_f32(duty / (1.0 - duty)) };
            self.heat = self.heat.saturating_sub(cooled);
        }
        if self.heat >= self.settings.longest {
            self.cooling = true;
        } else if self.heat <= self.settings.longest / 2 {
            self.cooling = false;
        }
        self.on = bolt == Bolt::Unlocked && !self.cooling;
        self.on
    }
}

/// Where a servo stands at its ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServoSettings {
    /// Width of the pulses that lock.
    pub locked: Duration,
    /// Width of the pulses that unlock.
    pub unlocked: Duration,
    /// How long the servo takes from end to end, at most.
    pub travel: Duration,
}

/// How long a servo is held at its end before it is let go: it has then stopped swinging, and
/// neither hums nor heats.
const SERVO_SETTLES: Duration = Duration::from_millis(300);

/// A servo that pushes the bolt.
#[derive(Debug, Clone)]
pub struct Servo {
    settings: ServoSettings,
    travel: Travel,
}

impl Servo {
    /// A servo that has been told nothing.
    pub const fn new(settings: ServoSettings) -> Self {
        let travel = Travel::new(settings.travel);
        Self { settings, travel }
    }

    fn pulse(&self, now: Uptime) -> Option<Duration> {
        let (to, since) = self.travel.wish?;
        let under_way = now.since(since) < self.settings.travel + SERVO_SETTLES;
        let width = match to {
            Bolt::Locked => self.settings.locked,
            Bolt::Unlocked => self.settings.unlocked,
        };
        under_way.then_some(width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Uptime {
        Uptime::from_millis(ms)
    }

    const TRAVEL: Duration = Duration::from_millis(100);

    fn coil(fail_safe: bool) -> Coil {
        let longest = Duration::from_secs(30);
        Coil::new(CoilSettings { fail_safe, travel: TRAVEL, longest, duty: 0.25 })
    }

    #[test]
    fn the_position_follows_from_command_time_and_sensors_in_every_case() {
        use Position::{Jammed, Locked, Moving, Unknown, Unlocked};
        let readings = [None, Some(false), Some(true)];
        for to in [Bolt::Locked, Bolt::Unlocked] {
            for late in [false, true] {
                for (locked, unlocked) in
                    readings.iter().flat_map(|l| readings.iter().map(move |u| (*l, *u)))
                {
                    let mut travel = Travel::new(TRAVEL);
                    travel.wish(at(1_000), to);
                    let now = at(if late { 1_100 } else { 1_099 });
                    let sensed = Sensed { locked, unlocked, obstructed: false };
                    let on_the_way = if late { Jammed } else { Moving };
                    let wanted = match (locked, unlocked, to) {
                        (None, None, _) => Unknown,
                        (Some(true), Some(true), _) => Jammed,
                        (Some(true), _, Bolt::Locked) | (None, Some(false), Bolt::Locked) => Locked,
                        (_, Some(true), Bolt::Unlocked) | (Some(false), None, Bolt::Unlocked) => {
                            Unlocked
                        }
                        _ => on_the_way,
                    };
                    let told = travel.position(now, sensed);
                    assert_eq!(told, wanted, "{to:?} {late} {sensed:?}");
                }
            }
        }
    }

    #[test]
    fn a_bolt_that_leaves_by_itself_is_unlocked_and_one_that_never_came_is_jammed() {
        let home = |home| Sensed { locked: Some(home), ..Sensed::default() };
        let mut travel = Travel::new(TRAVEL);
        travel.wish(at(0), Bolt::Locked);
        assert_eq!(travel.position(at(50), home(true)), Position::Locked);
        // Restating the wish must not hide that it was forced.
        travel.wish(at(900), Bolt::Locked);
        assert_eq!(travel.position(at(1_000), home(false)), Position::Unlocked);
        let mut travel = Travel::new(TRAVEL);
        travel.wish(at(0), Bolt::Locked);
        assert_eq!(travel.position(at(200), home(false)), Position::Jammed);
        travel.wish(at(700), Bolt::Locked);
        assert_eq!(travel.position(at(750), home(false)), Position::Moving, "it is tried again");
        assert_eq!(travel.position(at(760), home(true)), Position::Locked);
    }

    #[test]
    fn current_unlocks_a_strike_and_locks_a_magnet() {
        for fail_safe in [false, true] {
            let mut actuator = Actuator::Coil(coil(fail_safe));
            assert_eq!(actuator.rest(), Drive::Coil(fail_safe), "locked before the first wish");
            for to in [Bolt::Locked, Bolt::Unlocked, Bolt::Locked] {
                actuator.wish(at(10), to);
                let (drive, position) = actuator.step(at(10), Sensed::default());
                assert_eq!(drive, Drive::Coil((to == Bolt::Unlocked) != fail_safe));
                assert_eq!(position, Position::Unknown, "no sensor, no position");
            }
        }
    }

    #[test]
    fn a_coil_is_never_on_longer_than_it_bears_nor_more_than_its_share() {
        let mut coil = coil(false);
        coil.travel.wish(at(0), Bolt::Unlocked);
        let (mut run, mut longest, mut on) = (0, 0, 0);
        let steps = 3_600_000 / 20;
        for n in 0..steps {
            if coil.step(at(n * 20)) {
                run += 20;
                on += 20;
                longest = longest.max(run);
            } else {
                run = 0;
            }
        }
        assert!((29_000..=30_020).contains(&longest), "{longest} ms without a break");
        let share = f64::from(on) / 3_600_000.0;
        assert!((0.2..0.26).contains(&share), "on for {share} of an hour");
    }

    #[test]
    fn a_magnet_stays_on_for_ever() {
        let mut magnet = coil(true);
        magnet.travel.wish(at(0), Bolt::Locked);
        assert!((0..100).all(|n| magnet.step(at(n * 3_600_000))));
    }

    #[test]
    fn a_servo_is_let_go_when_it_has_arrived_and_moved_again_when_it_jams() {
        let (locked, unlocked) = (Duration::from_micros(1_000), Duration::from_micros(2_000));
        let settings = ServoSettings { locked, unlocked, travel: TRAVEL };
        let mut actuator = Actuator::Servo(Servo::new(settings));
        let sensed = Sensed { locked: Some(false), ..Sensed::default() };
        assert_eq!(actuator.step(at(0), sensed).0, Drive::Pulse(None));
        actuator.wish(at(0), Bolt::Locked);
        assert_eq!(actuator.step(at(99), sensed), (Drive::Pulse(Some(locked)), Position::Moving));
        assert_eq!(actuator.step(at(399), sensed).0, Drive::Pulse(Some(locked)));
        assert_eq!(actuator.step(at(400), sensed), (Drive::Pulse(None), Position::Jammed));
        actuator.wish(at(900), Bolt::Locked);
        assert_eq!(actuator.step(at(900), sensed), (Drive::Pulse(Some(locked)), Position::Moving));
        actuator.wish(at(1_000), Bolt::Unlocked);
        assert_eq!(actuator.step(at(1_000), sensed).0, Drive::Pulse(Some(unlocked)));
    }
}
