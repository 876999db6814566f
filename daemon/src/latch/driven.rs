//! A door that a motor opens and closes: the only latch here that can hurt somebody.
//!
//! ```text
//!            wish: open                       wish: closed
//!   Resting ───────────▶ Opening ─ open ─▶ Resting ─────▶ Warning ─ time over, clear ─▶ Closing
//!      ▲                   ▲                                 ▲                         │   │
//!      │                   │                   open again ───┘     obstructed, or late │   │ closed
//!      │                   └─────────────── first failure ────────────────────────────┤   │
//!      │                       second failure: open, then GivenUp ◀───────────────────┘   │
//!      └──────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Given up, the motor never turns again until somebody wishes the door open or closes it by
//! hand: an open door hurts nobody, and the door's own fault calls the owner.

use std::time::Duration;

use pawlatch_core::door::Position;
use pawlatch_core::units::Uptime;

use super::Bolt;
use super::actuator::{Motor, Sensed};

/// How a driven door moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrivenSettings {
    /// How long the door takes from end to end, at most. The motor never runs longer.
    pub travel: Duration,
    /// How long it warns before it closes.
    pub warn: Duration,
}

/// How long the motor stands still before it turns the other way.
const REVERSES: Duration = Duration::from_millis(200);
/// How many closings may fail before it gives up.
const MAX_FAILURES: u8 = 2;

/// What the door is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// The motor stands still, and the door where it should be.
    Resting,
    /// The motor opens the door.
    Opening { since: Uptime },
    /// About to close; the warning began then.
    Warning { since: Uptime },
    /// The motor closes the door.
    Closing { since: Uptime },
    /// The motor did not get the door to its end, or both switches are closed.
    Stuck,
    /// It could not be closed, twice.
    GivenUp,
}

/// A door with a motor, two limit switches and an obstruction sensor.
#[derive(Debug, Clone)]
pub struct Driven {
    settings: DrivenSettings,
    wish: Option<Bolt>,
    doing: Doing,
    failures: u8,
    /// Which way the motor turned last, and since when it has stood still.
    ran: Option<(Motor, Option<Uptime>)>,
}

impl Driven {
    /// A door whose motor stands still.
    pub const fn new(settings: DrivenSettings) -> Self {
        Self { settings, wish: None, doing: Doing::Resting, failures: 0, ran: None }
    }

    /// Takes over a wish. Restating one moves nothing that has given up.
    pub fn wish(&mut self, now: Uptime, to: Bolt) {
        let changed = self.wish != Some(to);
        self.wish = Some(to);
        match (to, self.doing) {
            (Bolt::Unlocked, _) if changed => {
                self.failures = 0;
                // Already opening, the motor gets no more time.
                if !matches!(self.doing, Doing::Opening { .. }) {
                    self.doing = Doing::Opening { since: now };
                }
            }
            (Bolt::Unlocked, Doing::Stuck) => self.doing = Doing::Opening { since: now },
            (Bolt::Locked, Doing::GivenUp) => {}
            (Bolt::Locked, Doing::Stuck) => self.doing = Doing::Warning { since: now },
            (Bolt::Locked, _) if changed => self.doing = Doing::Warning { since: now },
            (Bolt::Locked | Bolt::Unlocked, _) => {}
        }
    }

    /// One step: which way the motor shall turn, and where the door is.
    pub fn step(&mut self, now: Uptime, sensed: Sensed) -> (Motor, Position) {
        let closed = sensed.locked == Some(true);
        let open = sensed.unlocked == Some(true);
        if closed && open {
            // One of the switches is broken; nothing may be moved blindly.
            self.doing = if self.doing == Doing::GivenUp { Doing::GivenUp } else { Doing::Stuck };
            return (self.turn(now, Motor::Stopped), Position::Jammed);
        }
        self.advance(now, closed, open, sensed.obstructed);
        let motor = match self.doing {
            Doing::Opening { .. } => Motor::Opening,
            Doing::Closing { .. } => Motor::Closing,
            Doing::Resting | Doing::Warning { .. } | Doing::Stuck | Doing::GivenUp => {
                Motor::Stopped
            }
        };
        let position = match self.doing {
            Doing::Stuck | Doing::GivenUp => Position::Jammed,
            Doing::Opening { .. } | Doing::Closing { .. } => Position::Moving,
            Doing::Warning { .. } if self.failures > 0 => Position::Moving,
            Doing::Resting | Doing::Warning { .. } => match (closed, open) {
                (true, _) => Position::Locked,
                (_, true) => Position::Unlocked,
                (false, false) => Position::Moving,
            },
        };
        (self.turn(now, motor), position)
    }

    fn advance(&mut self, now: Uptime, closed: bool, open: bool, obstructed: bool) {
        match self.doing {
            Doing::Resting => {}
            Doing::Opening { .. } if open => {
                let again = self.wish == Some(Bolt::Locked);
                self.doing = match again {
                    true if self.failures >= MAX_FAILURES => Doing::GivenUp,
                    true => Doing::Warning { since: now },
                    false => Doing::Resting,
                };
            }
            Doing::Opening { since } => {
                if now.since(since) >= self.settings.travel {
                    let gave_up = self.failures >= MAX_FAILURES;
                    self.doing = if gave_up { Doing::GivenUp } else { Doing::Stuck };
                }
            }
            Doing::Warning { .. } | Doing::Closing { .. } if closed => {
                self.failures = 0;
                self.doing = Doing::Resting;
            }
            Doing::Warning { since } => {
                if obstructed {
                    self.doing = Doing::Warning { since: now };
                } else if now.since(since) >= self.settings.warn {
                    self.doing = Doing::Closing { since: now };
                }
            }
            Doing::Closing { since } => {
                if obstructed || now.since(since) >= self.settings.travel {
                    self.failures += 1;
                    self.doing = Doing::Opening { since: now };
                }
            }
            Doing::Stuck => {
                if closed && self.wish == Some(Bolt::Locked) {
                    self.failures = 0;
                    self.doing = Doing::Resting;
                }
            }
            Doing::GivenUp => {
                if closed {
                    self.failures = 0;
                    self.doing = Doing::Resting;
                }
            }
        }
    }

    /// The motor's direction, with a pause before it turns the other way. The pause counts as
    /// running time, which is safe.
    fn turn(&mut self, now: Uptime, motor: Motor) -> Motor {
        if let Some((before, stopped)) = &mut self.ran {
            if motor == Motor::Stopped || *before != motor {
                stopped.get_or_insert(now);
            }
            let turns_round = *before != motor;
            if turns_round && stopped.is_some_and(|at| now.since(at) < REVERSES) {
                return Motor::Stopped;
            }
        }
        if motor != Motor::Stopped {
            self.ran = Some((motor, None));
        }
        motor
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Uptime {
        Uptime::from_millis(ms)
    }

    fn settings() -> DrivenSettings {
        DrivenSettings { travel: Duration::from_secs(3), warn: Duration::from_secs(1) }
    }

    /// A door on its rails: 0 is closed, 2000 is open; a millisecond of motor moves it by one.
    struct Rails {
        door: Driven,
        place: i64,
        now: u64,
        obstructed: bool,
        stuck: bool,
        motors: Vec<(u64, Motor)>,
        positions: Vec<Position>,
    }

    impl Rails {
        fn new(place: i64) -> Self {
            let door = Driven::new(settings());
            Self {
                door,
                place,
                now: 1_000,
                obstructed: false,
                stuck: false,
                motors: Vec::new(),
                positions: Vec::new(),
            }
        }

        fn sensed(&self) -> Sensed {
            let (locked, unlocked) = (Some(self.place <= 0), Some(self.place >= 2_000));
            Sensed { locked, unlocked, obstructed: self.obstructed }
        }

        fn run(&mut self, ms: u64) {
            for _ in 0..ms / 20 {
                let (motor, position) = self.door.step(at(self.now), self.sensed());
                let by = match motor {
                    Motor::Stopped => 0,
                    Motor::Opening => 20,
                    Motor::Closing => -20,
                };
                if !self.stuck {
                    self.place = (self.place + by).clamp(0, 2_000);
                }
                self.motors.push((self.now, motor));
                if self.positions.last() != Some(&position) {
                    self.positions.push(position);
                }
                self.now += 20;
            }
        }

        fn wish(&mut self, to: Bolt) {
            self.door.wish(at(self.now), to);
        }

        fn ran(&self, wanted: Motor) -> u64 {
            20 * self.motors.iter().filter(|(_, motor)| *motor == wanted).count() as u64
        }
    }

    #[test]
    fn it_opens_and_warns_and_closes() {
        let mut rails = Rails::new(0);
        rails.wish(Bolt::Locked);
        rails.run(2_000);
        assert_eq!(rails.ran(Motor::Closing), 0, "a closed door is not closed");
        rails.wish(Bolt::Unlocked);
        rails.run(3_000);
        assert_eq!(rails.place, 2_000);
        let before = rails.now;
        rails.wish(Bolt::Locked);
        rails.run(4_000);
        assert_eq!(rails.place, 0);
        let first = rails.motors.iter().find(|(_, motor)| *motor == Motor::Closing).unwrap().0;
        assert!(first >= before + 1_000, "closed after a warning of {} ms", first - before);
        use Position::{Locked, Moving, Unlocked};
        assert_eq!(rails.positions, [Locked, Moving, Unlocked, Moving, Locked]);
    }

    #[test]
    fn it_opens_again_on_an_obstruction_and_gives_up_after_two_failures() {
        let mut rails = Rails::new(2_000);
        rails.wish(Bolt::Locked);
        rails.run(1_500);
        rails.obstructed = true;
        rails.run(1_500);
        assert_eq!(rails.place, 2_000, "open again");
        rails.run(5_000);
        assert_eq!(rails.place, 2_000, "it waits while something is in the way");
        rails.obstructed = false;
        rails.run(1_500);
        assert!(rails.place < 2_000, "tried again");
        rails.obstructed = true;
        rails.run(1_500);
        rails.obstructed = false;
        let turned = rails.ran(Motor::Closing);
        for _ in 0..20 {
            rails.wish(Bolt::Locked);
            rails.run(10_000);
        }
        assert_eq!(rails.ran(Motor::Closing), turned, "given up");
        assert_eq!((rails.place, rails.positions.last()), (2_000, Some(&Position::Jammed)));
        // The owner closes it by hand.
        rails.place = 0;
        rails.run(40);
        assert_eq!(rails.positions.last(), Some(&Position::Locked));
        rails.wish(Bolt::Unlocked);
        rails.run(3_000);
        rails.wish(Bolt::Locked);
        rails.run(4_000);
        assert_eq!(rails.place, 0, "in service again");
    }

    #[test]
    fn a_door_that_does_not_move_is_stuck_and_its_motor_stops() {
        let mut rails = Rails::new(0);
        rails.stuck = true;
        rails.wish(Bolt::Unlocked);
        rails.run(10_000);
        assert!(rails.ran(Motor::Opening) <= 3_000);
        assert_eq!(rails.positions.last(), Some(&Position::Jammed));
    }

    #[test]
    fn two_closed_switches_stop_everything() {
        let mut door = Driven::new(settings());
        door.wish(at(0), Bolt::Unlocked);
        let both = Sensed { locked: Some(true), unlocked: Some(true), obstructed: false };
        assert_eq!(door.step(at(20), both), (Motor::Stopped, Position::Jammed));
    }

    proptest! {
        /// Whatever is wished and sensed: never closing while obstructed, never closing without a
        /// whole warning before it, never turned round without a pause, never on for longer than
        /// the door takes.
        #[test]
        fn it_never_closes_on_somebody(script in proptest::collection::vec(
            (20_u64..400, any::<u8>()), 1..400)
        ) {
            let mut door = Driven::new(settings());
            let mut now = 1_000;
            let (mut quiet_since, mut ran, mut before) = (now, 0, (Motor::Stopped, now));
            let mut reversed_at = None;
            for (wait, what) in script {
                now += wait;
                match what % 16 {
                    0 => door.wish(at(now), Bolt::Locked),
                    1 => door.wish(at(now), Bolt::Unlocked),
                    _ => {}
                }
                let sensed = Sensed {
                    locked: Some(what & 0x30 == 0x30),
                    unlocked: Some(what & 0x50 == 0x50),
                    obstructed: what & 0x80 != 0,
                };
                let (motor, _) = door.step(at(now), sensed);
                prop_assert!(!(motor == Motor::Closing && sensed.obstructed));
                if before.0 != motor {
                    if motor == Motor::Closing {
                        prop_assert!(now - quiet_since >= 1_000, "no warning");
                    }
                    if motor != Motor::Stopped && before.0 != Motor::Stopped {
                        prop_assert!(false, "turned round at once");
                    }
                    if motor == Motor::Stopped {
                        reversed_at = Some((before.0, now));
                        quiet_since = now;
                    }
                    ran = 0;
                } else if motor != Motor::Stopped {
                    ran += now - before.1;
                    prop_assert!(ran <= 3_000 + 400, "on for {ran} ms");
                }
                if let (Some((was, at)), true) = (reversed_at, motor != Motor::Stopped) {
                    prop_assert!(was == motor || now - at >= 200, "no pause");
                    reversed_at = None;
                }
                before = (motor, now);
            }
        }
    }
}
