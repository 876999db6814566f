//! The one button: tap, hold, press long.

use std::time::Duration;

use pawlatch_core::door::{Request, State};
use pawlatch_core::units::Uptime;

/// How long the button must be pressed for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ButtonSettings {
    /// From here on it is a hold.
    pub hold: Duration,
    /// From here on, when let go, it was a long press.
    pub long: Duration,
    /// From here on it is stuck or shorted and means nothing.
    pub stuck: Duration,
}

/// What was done to the button.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gesture {
    /// Pressed and let go.
    Tap,
    /// Pressed for a while; told while it is still pressed.
    Hold,
    /// Pressed for long and let go.
    Long,
}

/// Recognises gestures. Pure: the debounced level and the time come in.
///
/// What locks is told at once; what opens is told only when the button is let go, so that a
/// shorted wire never opens the door. A button that is pressed at the start means nothing until
/// it has been let go.
#[derive(Debug, Clone)]
pub struct Button {
    settings: ButtonSettings,
    pressed: Pressed,
}

#[derive(Debug, Clone, Copy)]
enum Pressed {
    /// Not known to have been up yet.
    Unknown,
    No,
    Since {
        at: Uptime,
        held: bool,
    },
}

impl Button {
    /// A button of which nothing is known.
    pub const fn new(settings: ButtonSettings) -> Self {
        Self { settings, pressed: Pressed::Unknown }
    }

    /// Takes in whether it is pressed at `now`; gives the gesture that this completes.
    pub fn step(&mut self, now: Uptime, down: bool) -> Option<Gesture> {
        match (self.pressed, down) {
            (Pressed::Unknown, true) => None,
            (Pressed::Unknown, false) => {
                self.pressed = Pressed::No;
                None
            }
            (Pressed::No, false) => None,
            (Pressed::No, true) => {
                self.pressed = Pressed::Since { at: now, held: false };
                None
            }
            (Pressed::Since { at, held }, true) => {
                let holds = !held && now.since(at) >= self.settings.hold;
                if holds {
                    self.pressed = Pressed::Since { at, held: true };
                }
                holds.then_some(Gesture::Hold)
            }
            (Pressed::Since { at, .. }, false) => {
                self.pressed = Pressed::No;
                let took = now.since(at);
                if took < self.settings.hold {
                    Some(Gesture::Tap)
                } else if took >= self.settings.long && took < self.settings.stuck {
                    Some(Gesture::Long)
                } else {
                    None
                }
            }
        }
    }
}

/// What a gesture asks of a door in `state`.
pub const fn request(gesture: Gesture, state: &State) -> Request {
    match (gesture, state) {
        // What the button has begun, the button ends.
        (Gesture::Tap, State::HeldOpen { .. }) | (Gesture::Hold, State::HeldLocked { .. }) => {
            Request::Release
        }
        (Gesture::Tap, _) => Request::OpenOnce,
        (Gesture::Hold, _) => Request::HoldLocked,
        (Gesture::Long, _) => Request::HoldOpen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn button() -> Button {
        let ms = Duration::from_millis;
        Button::new(ButtonSettings { hold: ms(1_500), long: ms(5_000), stuck: ms(15_000) })
    }

    /// Gestures of one press of `ms`, sampled every 10 ms.
    fn press(ms: u64) -> Vec<(u64, Gesture)> {
        let mut button = button();
        button.step(Uptime::ZERO, false);
        (1..=2_000)
            .filter_map(|n| {
                let down = n >= 10 && n * 10 < 100 + ms;
                Some((n * 10, button.step(Uptime::from_millis(n * 10), down)?))
            })
            .collect()
    }

    #[test]
    fn every_length_of_a_press_is_the_gesture_it_should_be() {
        for ms in (10..18_000).step_by(10) {
            let hold = (1_600, Gesture::Hold);
            let wanted = match ms {
                ..1_500 => vec![(100 + ms, Gesture::Tap)],
                // Let go before the sample that would have told.
                1_500 => vec![],
                1_510..5_000 => vec![hold],
                5_000..15_000 => vec![hold, (100 + ms, Gesture::Long)],
                _ => vec![hold],
            };
            assert_eq!(press(ms), wanted, "pressed for {ms} ms");
        }
    }

    #[test]
    fn a_shorted_button_never_opens() {
        let mut button = button();
        assert!((0..100_000).all(|n| button.step(Uptime::from_millis(n * 10), true).is_none()));
        assert_eq!(press(1_000_000), [(1_600, Gesture::Hold)], "it can only lock");
    }

    #[test]
    fn a_gesture_ends_what_it_began() {
        let t = Uptime::ZERO;
        let idle = State::Idle { since: t };
        assert_eq!(request(Gesture::Tap, &idle), Request::OpenOnce);
        assert_eq!(request(Gesture::Hold, &idle), Request::HoldLocked);
        assert_eq!(request(Gesture::Long, &idle), Request::HoldOpen);
        assert_eq!(request(Gesture::Hold, &State::HeldLocked { since: t }), Request::Release);
        let open = State::HeldOpen { since: t, until: t };
        assert_eq!(request(Gesture::Tap, &open), Request::Release);
        assert_eq!(request(Gesture::Hold, &open), Request::HoldLocked);
    }
}
