//! Lines of any Linux, through the GPIO character devices. The kernel gives a line to one process
//! at a time. What a line does after its process has ended depends on the chip's driver; the
//! resistor at the latch must not (docs/wiring.md).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use gpiocdev::line::{self, Value};
use gpiocdev::{Chip, Request};

use super::pwm::{KernelPwm, PWM_CLASS};
use super::{Bias, Board, Channel, Found, Input, Line, LineError, Output, Pin, Pulses};

/// What the kernel tells others who holds our lines.
const CONSUMER: &str = "pawlatch";

/// The lines of all chips.
pub(super) struct CdevBoard {
    /// The chip that numbers belong to when none is named.
    own: Option<PathBuf>,
}

impl CdevBoard {
    pub(super) fn open() -> Result<Self, LineError> {
        let chips = gpiocdev::chip::chips().unwrap_or_default();
        if chips.is_empty() {
            let problem = "there is no /dev/gpiochip*: load the board's GPIO driver".to_owned();
            return Err(LineError::NoBoard { problem });
        }
        // A board's header hangs on its pin controller; expanders and firmware chips do not.
        let header = chips.iter().find(|path| {
            let info = Chip::from_path(path).and_then(|chip| chip.info());
            info.is_ok_and(|info| info.label.starts_with("pinctrl-"))
        });
        let own = header.or(if let [only] = &chips[..] { Some(only) } else { None }).cloned();
        Ok(Self { own })
    }

    /// Chip and number of `line`, and what the kernel knows of it.
    fn locate(&self, line: &Line) -> Result<(PathBuf, line::Info), LineError> {
        let missing = |problem: String| LineError::Missing { line: line.to_string(), problem };
        let named = line.chip.as_ref().map(|chip| Path::new("/dev").join(chip));
        if let (Pin::Name(name), None) = (&line.pin, &named) {
            let found = gpiocdev::find_named_line(name).ok_or_else(|| {
                missing("no chip has a line of that name; `gpioinfo` lists them".to_owned())
            })?;
            may_open(&found.chip)?;
            return Ok((found.chip, found.info));
        }
        let path = named
            .or_else(|| self.own.clone())
            .ok_or_else(|| missing("there are several chips: write gpiochipN:NUMBER".to_owned()))?;
        may_open(&path)?;
        let chip = Chip::from_path(&path).map_err(|e| missing(e.to_string()))?;
        let info = match &line.pin {
            Pin::Name(name) => chip.find_line_info(name),
            Pin::Number(n) => chip.line_info(*n).ok(),
        };
        let lines = chip.info().map_or(0, |info| info.num_lines);
        let range = format!("{} has the lines 0 to {}", path.display(), lines.saturating_sub(1));
        Ok((path, info.ok_or_else(|| missing(range))?))
    }

    fn request(&self, line: &Line, first: Option<bool>) -> Result<CdevLine, LineError> {
        let (path, info) = self.locate(line)?;
        if info.used {
            return Err(LineError::Held { line: line.to_string(), by: info.consumer });
        }
        let mut builder = Request::builder();
        builder.with_consumer(CONSUMER).on_chip(&path).with_line(info.offset);
        match first {
            Some(active) => builder.as_output(value(active)),
            None => builder.as_input(),
        };
        if line.active_low {
            builder.as_active_low();
        }
        if let Some(bias) = match line.bias {
            Bias::AsIs => None,
            Bias::PullUp => Some(line::Bias::PullUp),
            Bias::PullDown => Some(line::Bias::PullDown),
            Bias::Off => Some(line::Bias::Disabled),
        } {
            builder.with_bias(bias);
        }
        let request = builder.request().map_err(|e| fails(line, &e))?;
        Ok(CdevLine { request, line: line.clone() })
    }
}

/// A requested line; the kernel takes it back when this is dropped.
struct CdevLine {
    request: Request,
    line: Line,
}

fn value(active: bool) -> Value {
    if active { Value::Active } else { Value::Inactive }
}

fn fails(line: &Line, error: &gpiocdev::Error) -> LineError {
    LineError::Fails { line: line.to_string(), problem: error.to_string() }
}

fn may_open(path: &Path) -> Result<(), LineError> {
    match File::open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Err(LineError::Permission { path: path.to_owned() })
        }
        Err(e) => {
            let line = path.display().to_string();
            Err(LineError::Missing { line, problem: e.to_string() })
        }
    }
}

impl Output for CdevLine {
    fn set(&mut self, active: bool) -> Result<(), LineError> {
        self.request.set_lone_value(value(active)).map_err(|e| fails(&self.line, &e))
    }
}

impl Input for CdevLine {
    fn is_active(&mut self) -> Result<bool, LineError> {
        let value = self.request.lone_value().map_err(|e| fails(&self.line, &e))?;
        Ok(value == Value::Active)
    }
}

impl Board for CdevBoard {
    fn name(&self) -> &'static str {
        "gpiocdev"
    }

    fn output(&self, line: &Line, active: bool) -> Result<Box<dyn Output>, LineError> {
        Ok(Box::new(self.request(line, Some(active))?))
    }

    fn input(&self, line: &Line) -> Result<Box<dyn Input>, LineError> {
        Ok(Box::new(self.request(line, None)?))
    }

    fn pulses(&self, channel: Channel) -> Result<Box<dyn Pulses>, LineError> {
        Ok(Box::new(KernelPwm::open(Path::new(PWM_CLASS), channel)?))
    }

    fn find(&self, line: &Line) -> Result<Found, LineError> {
        let (path, info) = self.locate(line)?;
        let name = if info.name.is_empty() { String::new() } else { format!(" ({})", info.name) };
        Ok(Found {
            place: format!("{}:{}{name}", path.display(), info.offset),
            held_by: info.used.then_some(info.consumer),
        })
    }
}
