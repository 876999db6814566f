//! Lines of a Raspberry Pi up to 4, through its registers.
//!
//! Outputs keep their level when the program ends, however it ends: the latch is driven to locked
//! on the way out, and by `pawlatch lock` after a kill, and shall then stay so.

use std::time::Duration;

use rppal::gpio::{Error, Gpio, InputPin, Level, OutputPin};
use rppal::pwm::Pwm;
use rppal::system::{DeviceInfo, Model};

use super::{
    Bias, Board, Channel, Found, Input, Line, LineError, Output, PULSE_PERIOD, Pin, Pulses,
};

/// The header of a Raspberry Pi.
pub(super) struct PiBoard {
    gpio: Gpio,
    model: Model,
}

impl PiBoard {
    pub(super) fn open() -> Result<Self, LineError> {
        let no_board = |problem: String| LineError::NoBoard { problem };
        let info = DeviceInfo::new()
            .map_err(|e| no_board(format!("{e}; use lines.board = \"gpiocdev\"")))?;
        let model = info.model();
        let own_chip = matches!(
            model,
            Model::RaspberryPi5
                | Model::RaspberryPi500
                | Model::RaspberryPiComputeModule5
                | Model::RaspberryPiComputeModule5Lite
        );
        if own_chip {
            return Err(no_board(format!("a {model} needs lines.board = \"gpiocdev\"")));
        }
        let gpio = Gpio::new().map_err(|error| match error {
            Error::PermissionDenied(path) => LineError::Permission { path: path.into() },
            other => no_board(other.to_string()),
        })?;
        Ok(Self { gpio, model })
    }

    fn number(line: &Line) -> Result<u8, LineError> {
        let missing = || LineError::Missing {
            line: line.to_string(),
            problem: "a Raspberry Pi has GPIO0 to GPIO27 on its header".to_owned(),
        };
        let number = match &line.pin {
            Pin::Number(n) => u8::try_from(*n).ok(),
            Pin::Name(name) => name.strip_prefix("GPIO").and_then(|n| n.parse().ok()),
        };
        number.filter(|n| *n <= 27 && line.chip.is_none()).ok_or_else(missing)
    }

    fn pin(&self, line: &Line) -> Result<rppal::gpio::Pin, LineError> {
        if let Some(by) = holder(line) {
            return Err(LineError::Held { line: line.to_string(), by });
        }
        self.gpio.get(Self::number(line)?).map_err(|error| match error {
            Error::PinUsed(_) => {
                LineError::Held { line: line.to_string(), by: "this program".to_owned() }
            }
            other => LineError::Fails { line: line.to_string(), problem: other.to_string() },
        })
    }
}

/// Who holds the line through the kernel; the registers would not tell.
fn holder(line: &Line) -> Option<String> {
    let number = u32::from(PiBoard::number(line).ok()?);
    let chip = gpiocdev::Chip::from_name("gpiochip0").ok()?;
    let info = chip.line_info(number).ok()?;
    info.used.then_some(info.consumer)
}

struct PiOutput(OutputPin, bool);
struct PiInput(InputPin, bool);
struct PiPulses(Pwm);

impl Output for PiOutput {
    fn set(&mut self, active: bool) -> Result<(), LineError> {
        self.0.write(if active != self.1 { Level::High } else { Level::Low });
        Ok(())
    }
}

impl Input for PiInput {
    fn is_active(&mut self) -> Result<bool, LineError> {
        Ok(self.0.is_high() != self.1)
    }
}

impl Pulses for PiPulses {
    fn set(&mut self, width: Option<Duration>) -> Result<(), LineError> {
        let set = match width {
            Some(width) => self.0.set_pulse_width(width).and_then(|()| self.0.enable()),
            None => self.0.disable(),
        };
        set.map_err(|e| LineError::Fails { line: "PWM".to_owned(), problem: e.to_string() })
    }
}

impl Board for PiBoard {
    fn name(&self) -> &'static str {
        "rppal"
    }

    fn output(&self, line: &Line, active: bool) -> Result<Box<dyn Output>, LineError> {
        let pin = self.pin(line)?;
        let high = active != line.active_low;
        let mut pin = if high { pin.into_output_high() } else { pin.into_output_low() };
        pin.set_reset_on_drop(false);
        Ok(Box::new(PiOutput(pin, line.active_low)))
    }

    fn input(&self, line: &Line) -> Result<Box<dyn Input>, LineError> {
        let pin = self.pin(line)?;
        let pin = match line.bias {
            Bias::PullUp => pin.into_input_pullup(),
            Bias::PullDown => pin.into_input_pulldown(),
            Bias::AsIs | Bias::Off => pin.into_input(),
        };
        Ok(Box::new(PiInput(pin, line.active_low)))
    }

    fn pulses(&self, channel: Channel) -> Result<Box<dyn Pulses>, LineError> {
        let open = || -> rppal::pwm::Result<Pwm> {
            let mut pwm = Pwm::with_pwmchip(channel.chip, channel.channel)?;
            pwm.set_reset_on_drop(false);
            pwm.set_pulse_width(Duration::ZERO)?;
            pwm.set_period(PULSE_PERIOD)?;
            Ok(pwm)
        };
        open().map(|pwm| Box::new(PiPulses(pwm)) as Box<dyn Pulses>).map_err(|e| {
            LineError::Missing {
                line: format!("pwmchip{}:{}", channel.chip, channel.channel),
                problem: format!("{e}; enable PWM with dtoverlay=pwm in config.txt"),
            }
        })
    }

    fn find(&self, line: &Line) -> Result<Found, LineError> {
        let place = format!("GPIO{} of a {}", Self::number(line)?, self.model);
        Ok(Found { place, held_by: holder(line) })
    }
}
