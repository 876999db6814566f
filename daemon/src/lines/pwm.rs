//! Servo pulses through the kernel's PWM class (`/sys/class/pwm`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::{Channel, LineError, PULSE_PERIOD, Pulses};

/// Where the kernel shows its PWM chips.
pub(super) const PWM_CLASS: &str = "/sys/class/pwm";

/// How long the kernel may take to show a channel that was asked for, and udev to hand it over.
const APPEARS_WITHIN: Duration = Duration::from_secs(2);

/// One channel of the kernel's PWM class.
#[derive(Debug)]
pub(super) struct KernelPwm {
    dir: PathBuf,
    enabled: bool,
}

impl KernelPwm {
    /// Takes `channel` below `class`, silent at first.
    pub(super) fn open(class: &Path, channel: Channel) -> Result<Self, LineError> {
        let chip = class.join(format!("pwmchip{}", channel.chip));
        let dir = chip.join(format!("pwm{}", channel.channel));
        let this = Self { dir, enabled: false };
        if !chip.is_dir() {
            return Err(LineError::Missing {
                line: chip.display().to_string(),
                problem: "enable PWM (on a Raspberry Pi: dtoverlay=pwm in config.txt)".to_owned(),
            });
        }
        if !this.dir.is_dir() {
            let export = chip.join("export");
            fs::write(&export, channel.channel.to_string()).map_err(|e| this.error(&export, &e))?;
            let until = Instant::now() + APPEARS_WITHIN;
            while !this.dir.is_dir() && Instant::now() < until {
                thread::sleep(Duration::from_millis(10));
            }
        }
        // The pulse must fit the period at every moment in between.
        this.write("duty_cycle", 0).or_else(|_| this.write("enable", 0))?;
        this.write("period", PULSE_PERIOD.as_nanos())?;
        this.write("duty_cycle", 0)?;
        this.write("enable", 0)?;
        Ok(this)
    }

    fn write(&self, name: &str, value: u128) -> Result<(), LineError> {
        let path = self.dir.join(name);
        fs::write(&path, value.to_string()).map_err(|e| self.error(&path, &e))
    }

    fn error(&self, path: &Path, error: &io::Error) -> LineError {
        if error.kind() == io::ErrorKind::PermissionDenied {
            return LineError::Permission { path: path.to_owned() };
        }
        let problem = format!("cannot write {}: {error}", path.display());
        LineError::Fails { line: self.dir.display().to_string(), problem }
    }
}

impl Pulses for KernelPwm {
    fn set(&mut self, width: Option<Duration>) -> Result<(), LineError> {
        self.write("duty_cycle", width.unwrap_or_default().as_nanos())?;
        if self.enabled != width.is_some() {
            self.write("enable", u128::from(width.is_some()))?;
            self.enabled = width.is_some();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulses_are_written_in_nanoseconds_and_switched_off_when_there_are_none() {
        let class = tempfile::tempdir().unwrap();
        let channel = Channel { chip: 2, channel: 1 };
        let told = KernelPwm::open(class.path(), channel).unwrap_err().to_string();
        assert!(told.contains("pwmchip2") && told.contains("dtoverlay"), "{told}");
        let dir = class.path().join("pwmchip2/pwm1");
        fs::create_dir_all(&dir).unwrap();
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        let mut servo = KernelPwm::open(class.path(), channel).unwrap();
        assert_eq!((read("period"), read("enable")), ("20000000".to_owned(), "0".to_owned()));
        servo.set(Some(Duration::from_micros(1_500))).unwrap();
        assert_eq!((read("duty_cycle"), read("enable")), ("1500000".to_owned(), "1".to_owned()));
        servo.set(None).unwrap();
        assert_eq!((read("duty_cycle"), read("enable")), ("0".to_owned(), "0".to_owned()));
    }
}
