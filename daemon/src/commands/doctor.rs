//! `doctor`: everything the door depends on, looked at once, each with what to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Error, Result};
use clap::Args;
use serde::Serialize;

use pawlatch::config::Config;

use super::check::{check_camera, check_lines, check_models};
use super::{Common, Outcome, chain, say, say_json};

/// Look at everything the door depends on and say what to do.
///
/// Configuration, models, camera, lines, disk, clock, temperature, power supply, service. Touches
/// nothing. While the service runs, the camera is its own and is not tried. Exit code 1 if
/// anything is bad.
#[derive(Args)]
pub struct DoctorArgs {
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    /// Worth knowing; the door works.
    Note,
    Bad,
}

/// What was looked at, how it is, and what to do.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { check, verdict, found: found.into(), remedy: None }
    }

    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, found)
    }

    fn bad(check: &'static str, error: &Error) -> Self {
        Self::new(check, Verdict::Bad, chain(error).replace('\n', " "))
    }

    fn remedy(self, remedy: &'static str) -> Self {
        Self { remedy: Some(remedy), ..self }
    }
}

/// Least free space of the journal's disk, bytes.
const LEAST_FREE: u64 = 200 << 20;
/// Temperature from which a Raspberry Pi slows down, degrees Celsius.
const HOT: f64 = 80.0;
/// The first moment a clock that was ever set can show: this program is not older.
const NOT_BEFORE: &str = "2025-01-01T00:00:00Z";

/// `pawlatch doctor`.
pub fn run(args: &DoctorArgs, common: &Common) -> Result<Outcome> {
    let mut findings = Vec::new();
    let (config, fault) = match common.config() {
        Ok(config) => {
            findings.push(Finding::ok("configuration", "sound"));
            (config, false)
        }
        Err(error) => {
            findings.push(Finding::bad("configuration", &error));
            (Config::default(), true)
        }
    };
    let running = unit_state("is-active", "pawlatch.service").as_deref() == Some("active");
    findings.extend(models(common, &config));
    if !fault {
        findings.push(camera(&config, running));
        findings.extend(lines(&config));
    }
    findings.push(disk(&config.journal.dir));
    let root = Path::new("/");
    findings.push(clock(root, &now()));
    findings.extend(temperature(root));
    findings.extend(power(root));
    findings.extend(service(running));
    for finding in &findings {
        if args.json {
            say_json(finding)?;
            continue;
        }
        let mark = match finding.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Note => "note",
            Verdict::Bad => "BAD ",
        };
        say(&format!("{mark} {}: {}", finding.check, finding.found))?;
        if let Some(remedy) = finding.remedy {
            say(&format!("       {remedy}"))?;
        }
    }
    let bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
    Ok(if bad { Outcome::Failed } else { Outcome::Done })
}

fn models(common: &Common, config: &Config) -> Vec<Finding> {
    match check_models(common, config) {
        Ok(lines) => lines
            .iter()
            .map(|line| match line.strip_prefix("note: ") {
                Some(note) => Finding::new("models", Verdict::Note, note),
                None => Finding::ok("models", line.trim_start_matches("ok  ")),
            })
            .collect(),
        Err(error) => vec![
            Finding::bad("models", &error)
                .remedy("`pawlatch model list` shows what is there; install the models again"),
        ],
    }
}

fn camera(config: &Config, running: bool) -> Finding {
    if config.camera.source.is_none() {
        return Finding::new("camera", Verdict::Bad, "none is configured")
            .remedy("set camera.source, such as v4l2:/dev/video0");
    }
    if running {
        return Finding::ok("camera", "in use by the service; its log says how it is doing");
    }
    match check_camera(config) {
        Ok(lines) => Finding::ok("camera", lines.join("; ").replace("ok  ", "")),
        Err(error) => Finding::bad("camera", &error),
    }
}

fn lines(config: &Config) -> Vec<Finding> {
    let mut findings: Vec<Finding> = check_lines(config)
        .into_iter()
        .map(|line| match line {
            Ok(line) => Finding::ok("lines", line.trim_start_matches("ok  ")),
            Err(error) => Finding::bad("lines", &error),
        })
        .collect();
    if config.latch.wired.is_none() {
        let note = Finding::new("latch", Verdict::Note, "it is simulated: no bolt moves");
        findings.push(note.remedy("set latch.kind and latch.line"));
    }
    findings
}

fn disk(dir: &Path) -> Finding {
    // The journal makes its directory itself; what counts is the disk it will be on.
    let there = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    match rustix::fs::statvfs(there) {
        Err(error) => Finding::new("disk", Verdict::Bad, format!("{}: {error}", there.display())),
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!("{} MB free for {}", free / 1_000_000, dir.display());
            if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
                Finding::new("disk", Verdict::Bad, format!("{} is read-only", there.display()))
                    .remedy("a worn card turns read-only: replace it; `dmesg` tells why")
            } else if free < LEAST_FREE {
                Finding::new("disk", Verdict::Bad, found)
                    .remedy("free space, or lower journal.budget_mb")
            } else {
                Finding::ok("disk", found)
            }
        }
    }
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

fn clock(root: &Path, now: &jiff::Timestamp) -> Finding {
    let set = NOT_BEFORE.parse().is_ok_and(|least: jiff::Timestamp| *now >= least);
    let synchronised = root.join("run/systemd/timesync/synchronized").exists();
    let found = format!("{now}");
    if !set {
        Finding::new("clock", Verdict::Bad, format!("{found}: it was never set"))
            .remedy("connect a network once, or a clock with a battery; rules with times wait")
    } else if synchronised {
        Finding::ok("clock", format!("{found}, synchronised"))
    } else {
        Finding::new("clock", Verdict::Note, format!("{found}, not synchronised by systemd"))
            .remedy("`timedatectl` tells whether something else keeps the time")
    }
}

/// The hottest sensor of the board.
fn temperature(root: &Path) -> Option<Finding> {
    let zones = fs::read_dir(root.join("sys/class/thermal")).ok()?;
    let read = |path: PathBuf| -> Option<f64> {
        let text = fs::read_to_string(path.join("temp")).ok()?;
        Some(text.trim().parse::<f64>().ok()? / 1_000.0)
    };
    let hottest = zones.flatten().filter_map(|zone| read(zone.path())).max_by(f64::total_cmp)?;
    let found = format!("{hottest:.0} °C");
    Some(if hottest >= HOT {
        Finding::new("temperature", Verdict::Bad, found).remedy("give it air, shade or a heat sink")
    } else {
        Finding::ok("temperature", found)
    })
}

/// What a Raspberry Pi's firmware says of its supply.
fn power(root: &Path) -> Option<Finding> {
    const UNDER_VOLTAGE: u32 = 1;
    const UNDER_VOLTAGE_SINCE_BOOT: u32 = 1 << 16;
    let path = root.join("sys/devices/platform/soc/soc:firmware/get_throttled");
    let text = fs::read_to_string(path).ok()?;
    let flags = u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()?;
    let remedy = "use the supply made for this board and a short cable; give the latch its own";
    Some(if flags & UNDER_VOLTAGE != 0 {
        Finding::new("power", Verdict::Bad, "under-voltage now").remedy(remedy)
    } else if flags & UNDER_VOLTAGE_SINCE_BOOT != 0 {
        Finding::new("power", Verdict::Note, "under-voltage since the start").remedy(remedy)
    } else {
        Finding::ok("power", "the supply holds")
    })
}

fn service(running: bool) -> Vec<Finding> {
    if !Path::new("/run/systemd/system").is_dir() {
        return vec![Finding::new("service", Verdict::Note, "systemd does not run here")];
    }
    let mut findings = vec![if running {
        Finding::ok("service", "running")
    } else {
        Finding::new("service", Verdict::Note, "pawlatch.service does not run")
            .remedy("systemctl start pawlatch; journalctl -u pawlatch tells why it ended")
    }];
    for unit in ["pawlatch.service", "pawlatch-lock.service"] {
        let state = unit_state("is-enabled", unit);
        if state.as_deref() != Some("enabled") {
            let state = state.unwrap_or_else(|| "not installed".to_owned());
            let found = format!("{unit} is {state}: it will not start by itself");
            findings.push(
                Finding::new("service", Verdict::Note, found)
                    .remedy("systemctl enable pawlatch.service pawlatch-lock.service"),
            );
        }
    }
    findings
}

/// What systemctl answers, in its one word; `None` without systemd.
fn unit_state(question: &str, unit: &str) -> Option<String> {
    let out = Command::new("systemctl").args([question, unit]).output().ok()?;
    let word = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    (!word.is_empty()).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_boards_own_figures_are_judged() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(temperature(root).is_none() && power(root).is_none());
        file(root, "sys/class/thermal/thermal_zone0/temp", "41000\n");
        file(root, "sys/class/thermal/thermal_zone1/temp", "52400\n");
        assert_eq!(temperature(root), Some(Finding::ok("temperature", "52 °C")));
        file(root, "sys/class/thermal/thermal_zone1/temp", "81000\n");
        assert_eq!(temperature(root).unwrap().verdict, Verdict::Bad);
        let firmware = "sys/devices/platform/soc/soc:firmware/get_throttled";
        for (text, verdict) in
            [("0\n", Verdict::Ok), ("50005\n", Verdict::Bad), ("50000\n", Verdict::Note)]
        {
            file(root, firmware, text);
            let finding = power(root).unwrap();
            assert_eq!(finding.verdict, verdict, "{text}");
            assert_eq!(finding.remedy.is_some(), verdict != Verdict::Ok);
        }
    }

    #[test]
    fn a_clock_that_was_never_set_is_bad() {
        let dir = tempfile::tempdir().unwrap();
        let at = |text: &str| clock(dir.path(), &text.parse().unwrap());
        assert_eq!(at("1970-01-01T00:00:07Z").verdict, Verdict::Bad);
        assert_eq!(at("2026-06-01T00:00:00Z").verdict, Verdict::Note);
        file(dir.path(), "run/systemd/timesync/synchronized", "");
        assert_eq!(at("2026-06-01T00:00:00Z").verdict, Verdict::Ok);
    }

    #[test]
    fn a_journal_that_is_not_there_yet_is_judged_by_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        assert_ne!(disk(&dir.path().join("a/b/journal")).found, "");
        assert!(disk(&dir.path().join("a/b/journal")).found.contains("MB free"));
    }
}
