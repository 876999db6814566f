//! What the door shows of itself: one table, from which the light is driven and the manual
//! printed.

use pawlatch_core::door::State;

/// What the light can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sign {
    /// The door starts and waits to see its latch locked.
    Starting,
    /// Locked; nobody is there.
    Locked,
    /// Somebody is there and is being looked at.
    Looking,
    /// Unlocked for who is there.
    Welcome,
    /// Kept shut for what was recognised.
    Refused,
    /// Held open by the owner.
    HeldOpen,
    /// Held locked by the owner.
    HeldLocked,
    /// The latch or the door is about to move.
    Warning,
    /// Something is broken; the door is locked.
    Fault,
    /// The program is being replaced.
    Updating,
}

/// The colours an RGB light can mix without dimming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour {
    /// For people.
    pub name: &'static str,
    /// Red, green and blue on or off.
    pub rgb: [bool; 3],
}

const WHITE: Colour = Colour { name: "white", rgb: [true, true, true] };
const RED: Colour = Colour { name: "red", rgb: [true, false, false] };
const GREEN: Colour = Colour { name: "green", rgb: [false, true, false] };
const BLUE: Colour = Colour { name: "blue", rgb: [false, false, true] };
const YELLOW: Colour = Colour { name: "yellow", rgb: [true, true, false] };
const VIOLET: Colour = Colour { name: "violet", rgb: [true, false, true] };

/// How a sign looks and sounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    /// Its colour, where the light has several.
    pub colour: Colour,
    /// Its rhythm, repeated: a tenth of a second each, `#` lit, `.` dark.
    pub rhythm: &'static str,
    /// The buzzer's rhythm, in the same notation; empty: silent.
    pub sound: &'static str,
    /// For people.
    pub meaning: &'static str,
}

/// Length of one mark of a rhythm, milliseconds.
const MARK_MS: u64 = 100;

impl Sign {
    /// All of them, in the order of the manual.
    pub const ALL: [Self; 10] = [
        Self::Starting,
        Self::Locked,
        Self::Looking,
        Self::Welcome,
        Self::Refused,
        Self::HeldOpen,
        Self::HeldLocked,
        Self::Warning,
        Self::Fault,
        Self::Updating,
    ];

    /// What the door's state is shown as.
    pub const fn of(state: &State) -> Self {
        match state {
            State::Starting { .. } => Self::Starting,
            State::Idle { .. } | State::Scheduled { .. } => Self::Locked,
            State::Watching { .. } => Self::Looking,
            State::Open { .. } | State::Passing { .. } => Self::Welcome,
            State::Refused { .. } => Self::Refused,
            State::Relocking { .. } => Self::Warning,
            State::HeldOpen { .. } => Self::HeldOpen,
            State::HeldLocked { .. } => Self::HeldLocked,
            State::Fault { .. } => Self::Fault,
        }
    }

    /// How it looks and sounds. No two have the same rhythm, so that one lamp of one colour, or
    /// an eye that sees no colours, is enough.
    pub const fn pattern(self) -> Pattern {
        let (colour, rhythm, sound, meaning) = match self {
            Self::Starting => (WHITE, "#####.....", "", "starting: waits to see the latch locked"),
            Self::Locked => {
                (GREEN, "#.......................................", "", "locked, nobody is there")
            }
            Self::Looking => (BLUE, "##..", "", "looking at who is there"),
            Self::Welcome => (GREEN, "#", "", "unlocked: come in"),
            Self::Refused => (RED, "#.#.......", "", "kept shut for what was recognised"),
            Self::HeldOpen => (YELLOW, "#########.", "", "held open by the owner"),
            Self::HeldLocked => (RED, "####.####...........", "", "held locked by the owner"),
            Self::Warning => (YELLOW, "#.", "#.", "about to move"),
            Self::Fault => {
                let often = "#.#.#...###.###.###...#.#.#.............";
                let beeps = "#.#.#..........................................................";
                (RED, often, beeps, "fault, locked: `pawlatch doctor` says what to do")
            }
            Self::Updating => (VIOLET, "##########..........", "", "updating, locked"),
        };
        Pattern { colour, rhythm, sound, meaning }
    }

    /// The lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Locked => "locked",
            Self::Looking => "looking",
            Self::Welcome => "welcome",
            Self::Refused => "refused",
            Self::HeldOpen => "held open",
            Self::HeldLocked => "held locked",
            Self::Warning => "warning",
            Self::Fault => "fault",
            Self::Updating => "updating",
        }
    }
}

impl Pattern {
    /// Whether the light is on `ms` milliseconds after the sign appeared.
    pub fn lit(&self, ms: u64) -> bool {
        on(self.rhythm, ms)
    }

    /// Whether the buzzer sounds then.
    pub fn sounds(&self, ms: u64) -> bool {
        on(self.sound, ms)
    }
}

fn on(rhythm: &str, ms: u64) -> bool {
    let marks = rhythm.as_bytes();
    !marks.is_empty() && marks[(ms / MARK_MS) as usize % marks.len()] == b'#'
}

/// The table of signs in Markdown, for the manual.
pub fn documentation() -> String {
    let mut text = String::from(
        "# The light\n\n\
         The owner reads the door without a phone. Each sign has a rhythm of its own, so that a \
         single lamp says everything; a light of three colours says it at a glance. One mark is a \
         tenth of a second: `#` lit, `.` dark, then from the beginning. `pawlatch led test` shows \
         them all.\n\n\
         This page is made from the table in `daemon/src/panel/light.rs`; a test compares them.\n\n\
         | sign | colour | rhythm | buzzer | meaning |\n|---|---|---|---|---|\n",
    );
    for sign in Sign::ALL {
        let p = sign.pattern();
        let sound = if p.sound.is_empty() { String::new() } else { format!("`{}`", p.sound) };
        text.push_str(&format!(
            "| {} | {} | `{}` | {sound} | {} |\n",
            sign.name(),
            p.colour.name,
            p.rhythm,
            p.meaning
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Runs of lit and dark in one round, begun at the smallest arrangement, so that two rhythms
    /// that differ only in where they begin are the same.
    fn shape(rhythm: &str) -> Vec<u8> {
        let marks = rhythm.as_bytes();
        (0..marks.len()).map(|n| [&marks[n..], &marks[..n]].concat()).min().unwrap()
    }

    #[test]
    fn every_sign_has_a_rhythm_of_its_own() {
        let shapes: BTreeSet<Vec<u8>> =
            Sign::ALL.iter().map(|sign| shape(sign.pattern().rhythm)).collect();
        assert_eq!(shapes.len(), Sign::ALL.len());
        for sign in Sign::ALL {
            let p = sign.pattern();
            assert!((0..10_000).step_by(100).any(|ms| p.lit(ms)), "{} is dark", sign.name());
            assert!(p.rhythm.bytes().chain(p.sound.bytes()).all(|b| b == b'#' || b == b'.'));
        }
    }

    #[test]
    fn the_table_in_the_manual_is_the_table_in_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/light.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, documentation()).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap();
        assert!(kept == documentation(), "docs/light.md is out of date: run with UPDATE=1 set");
    }
}
