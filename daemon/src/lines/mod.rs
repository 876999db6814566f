//! Lines: the wires between the computer and the door, in the words of whoever uses them.
//!
//! One trait for a board, one file per kind of board. A line is *active* or not; which voltage
//! that is, the line itself knows (`active-low`), so that nobody else inverts anything. An output
//! has its first level before it becomes an output.

#[cfg(feature = "hardware")]
mod cdev;
mod debounce;
#[cfg(feature = "hardware")]
mod pi;
#[cfg_attr(not(feature = "hardware"), allow(dead_code, reason = "tested without hardware"))]
mod pwm;
mod simulated;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

pub use debounce::Debounce;
pub use simulated::SimulatedBoard;

/// A wire that is driven.
pub trait Output: Send {
    /// Makes the line active or inactive.
    ///
    /// # Errors
    /// If the line cannot be driven.
    fn set(&mut self, active: bool) -> Result<(), LineError>;
}

/// A wire that is read.
pub trait Input: Send {
    /// Whether the line is active now.
    ///
    /// # Errors
    /// If the line cannot be read.
    fn is_active(&mut self) -> Result<bool, LineError>;
}

/// A wire that carries servo pulses.
pub trait Pulses: Send {
    /// Repeats pulses of this width every 20 ms; `None` sends none, which lets a servo go limp.
    ///
    /// # Errors
    /// If the channel cannot be set.
    fn set(&mut self, width: Option<Duration>) -> Result<(), LineError>;
}

/// Period of servo pulses.
pub const PULSE_PERIOD: Duration = Duration::from_millis(20);

/// A set of lines.
pub trait Board: Send + Sync {
    /// Its name, as in the configuration.
    fn name(&self) -> &'static str;

    /// Takes `line` as an output, at first active or not.
    ///
    /// # Errors
    /// If there is no such line, somebody else holds it, or it may not be opened.
    fn output(&self, line: &Line, active: bool) -> Result<Box<dyn Output>, LineError>;

    /// Takes `line` as an input.
    ///
    /// # Errors
    /// As [`Board::output`].
    fn input(&self, line: &Line) -> Result<Box<dyn Input>, LineError>;

    /// Takes a hardware PWM channel.
    ///
    /// # Errors
    /// As [`Board::output`].
    fn pulses(&self, channel: Channel) -> Result<Box<dyn Pulses>, LineError>;

    /// Looks `line` up without taking it.
    ///
    /// # Errors
    /// If there is no such line or it may not be opened; not if somebody holds it.
    fn find(&self, line: &Line) -> Result<Found, LineError>;
}

/// Where a line is, and who has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// For people: chip, number and name.
    pub place: String,
    /// Who holds it; `None` if it is free.
    pub held_by: Option<String>,
}

/// A hardware PWM channel: `/sys/class/pwm/pwmchipN`, and which of its channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channel {
    /// Number of the chip.
    pub chip: u8,
    /// Number of the channel on it.
    pub channel: u8,
}

/// What holds a line in place while nobody drives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Bias {
    /// Whatever the board does.
    #[default]
    AsIs,
    /// A resistor to the supply.
    PullUp,
    /// A resistor to ground.
    PullDown,
    /// Nothing.
    Off,
}

/// Which line of a chip.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pin {
    /// By its number on the chip; on a Raspberry Pi the number behind "GPIO".
    Number(u32),
    /// By the name the board gives it.
    Name(String),
}

/// A line as the owner writes it: `GPIO17`, `17`, `gpiochip1:5`, then any of `active-low`,
/// `pull-up`, `pull-down`, `no-pull`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Line {
    /// The chip, as `gpiochipN`; `None`: the board's own.
    pub chip: Option<String>,
    /// Which line of it.
    pub pin: Pin,
    /// Whether the low level is the active one.
    pub active_low: bool,
    /// What holds it when nobody drives it.
    pub bias: Bias,
}

/// How lines are written, for errors and the documentation.
pub const LINE_GRAMMAR: &str = "a line such as \"GPIO17\", \"17\" or \"gpiochip1:5\", then any of active-low, pull-up, \
     pull-down, no-pull";

impl Line {
    /// Two lines with the same key are the same wire. A Raspberry Pi's `GPIO17` is its number 17.
    pub fn key(&self) -> String {
        let number = match &self.pin {
            Pin::Number(n) => Some(*n),
            Pin::Name(name) => name.strip_prefix("GPIO").and_then(|n| n.parse().ok()),
        };
        let pin = match (&self.pin, number) {
            (_, Some(n)) => n.to_string(),
            (Pin::Name(name), None) => name.clone(),
            (Pin::Number(n), None) => n.to_string(),
        };
        self.chip.as_ref().map_or(pin.clone(), |chip| format!("{chip}:{pin}"))
    }
}

impl FromStr for Line {
    type Err = LineError;
    fn from_str(text: &str) -> Result<Self, LineError> {
        let wrong = || LineError::Syntax { given: text.to_owned() };
        let mut words = text.split_whitespace();
        let place = words.next().ok_or_else(wrong)?;
        let (chip, pin) = match place.split_once(':') {
            Some((chip, pin)) => (Some(chip.strip_prefix("/dev/").unwrap_or(chip)), pin),
            None => (None, place),
        };
        let tame = |name: &str| {
            !name.is_empty()
                && name.len() <= 32
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-+#".contains(c))
        };
        let is_chip = |chip: &str| chip.starts_with("gpiochip") && tame(chip);
        if !tame(pin) || chip.is_some_and(|chip| !is_chip(chip)) {
            return Err(wrong());
        }
        let pin = pin.parse().map_or_else(|_| Pin::Name(pin.to_owned()), Pin::Number);
        let chip = chip.map(str::to_owned);
        let mut line = Self { chip, pin, active_low: false, bias: Bias::AsIs };
        for word in words {
            match word {
                "active-low" if !line.active_low => line.active_low = true,
                "pull-up" if line.bias == Bias::AsIs => line.bias = Bias::PullUp,
                "pull-down" if line.bias == Bias::AsIs => line.bias = Bias::PullDown,
                "no-pull" if line.bias == Bias::AsIs => line.bias = Bias::Off,
                _ => return Err(wrong()),
            }
        }
        Ok(line)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(chip) = &self.chip {
            write!(f, "{chip}:")?;
        }
        match &self.pin {
            Pin::Number(n) => write!(f, "{n}"),
            Pin::Name(name) => f.write_str(name),
        }
    }
}

/// Which board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BoardKind {
    /// Whichever is there.
    #[default]
    Auto,
    /// A Raspberry Pi up to 4, through its registers (rppal).
    Rppal,
    /// Any Linux, through its GPIO character devices (gpiocdev).
    Gpiocdev,
    /// None: levels are kept in memory, or in files.
    Simulated,
}

impl FromStr for BoardKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "rppal" => Ok(Self::Rppal),
            "gpiocdev" => Ok(Self::Gpiocdev),
            "simulated" => Ok(Self::Simulated),
            _ => Err("auto, rppal, gpiocdev or simulated".to_owned()),
        }
    }
}

/// Which lines there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BoardSettings {
    /// Which board.
    pub kind: BoardKind,
    /// Simulated lines: a directory with one file per line, holding `0` or `1` as the voltage
    /// would be; `None` keeps them in memory.
    pub simulated_dir: Option<PathBuf>,
}

/// Why a line cannot be used.
#[derive(Debug, Error)]
pub enum LineError {
    /// Not understood.
    #[error("\"{given}\" is no line; expected {LINE_GRAMMAR}")]
    Syntax {
        /// What was given.
        given: String,
    },
    /// No board.
    #[error("no lines were found: {problem}")]
    NoBoard {
        /// What was looked for, and what to do.
        problem: String,
    },
    /// No such line.
    #[error("there is no line {line}: {problem}")]
    Missing {
        /// Which.
        line: String,
        /// What there is.
        problem: String,
    },
    /// Somebody else has it.
    #[error("the line {line} is held by \"{by}\": stop that, or use another line")]
    Held {
        /// Which.
        line: String,
        /// By whom, as the kernel names it.
        by: String,
    },
    /// It may not be opened.
    #[error("{} may not be opened: run as the service does, or join the group that owns it", path.display())]
    Permission {
        /// What.
        path: PathBuf,
    },
    /// It fails.
    #[error("the line {line} fails: {problem}")]
    Fails {
        /// Which.
        line: String,
        /// How.
        problem: String,
    },
}

/// The board that is configured, or detected.
///
/// # Errors
/// If there is none of that kind, or none at all.
pub fn board(settings: &BoardSettings) -> Result<Box<dyn Board>, LineError> {
    match settings.kind {
        BoardKind::Simulated => Ok(Box::new(SimulatedBoard::new(settings.simulated_dir.clone()))),
        #[cfg(feature = "hardware")]
        BoardKind::Rppal => Ok(Box::new(pi::PiBoard::open()?)),
        #[cfg(feature = "hardware")]
        BoardKind::Gpiocdev => Ok(Box::new(cdev::CdevBoard::open()?)),
        // The Pi 5 has its lines on a chip of its own, which only the character device knows.
        #[cfg(feature = "hardware")]
        BoardKind::Auto => match pi::PiBoard::open() {
            Ok(board) => Ok(Box::new(board)),
            Err(_) => Ok(Box::new(cdev::CdevBoard::open()?)),
        },
        #[cfg(not(feature = "hardware"))]
        BoardKind::Auto | BoardKind::Rppal | BoardKind::Gpiocdev => Err(LineError::NoBoard {
            problem: "this program was built without the feature `hardware`".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        text.parse().unwrap()
    }

    #[test]
    fn lines_are_read_as_they_are_written() {
        let plain = line("GPIO17");
        assert_eq!((plain.pin.clone(), plain.chip.clone()), (Pin::Name("GPIO17".to_owned()), None));
        assert!(!plain.active_low && plain.bias == Bias::AsIs);
        let full = line(" /dev/gpiochip1:5  pull-up active-low ");
        assert_eq!(full.pin, Pin::Number(5));
        assert_eq!(full.chip.as_deref(), Some("gpiochip1"));
        assert!(full.active_low && full.bias == Bias::PullUp);
        assert_eq!(full.to_string(), "gpiochip1:5");
        assert_eq!(line("PQ.05").pin, Pin::Name("PQ.05".to_owned()));
    }

    #[test]
    fn what_is_no_line_is_refused_with_the_grammar() {
        for text in [
            "",
            "  ",
            "17 up",
            "17 pull-up pull-down",
            "17 active-low active-low",
            "/etc/passwd",
            "chip:1",
            "gpiochip0:",
            "a b",
            "gpiochip0/../x:1",
        ] {
            let told = text.parse::<Line>().unwrap_err().to_string();
            assert!(told.contains("GPIO17") && told.contains("active-low"), "{text:?}: {told}");
        }
    }

    #[test]
    fn the_same_wire_has_the_same_key() {
        assert_eq!(line("GPIO17").key(), line("17 active-low").key());
        assert_ne!(line("17").key(), line("gpiochip1:17").key());
        assert_ne!(line("GPIO17").key(), line("GPIO7").key());
        assert_eq!(line("PQ.05").key(), "PQ.05");
    }
}
