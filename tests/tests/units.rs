//! The shipped units: hardened as far as promised, and locking however the program ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Highest exposure that systemd may find, 0 to 10.
const MAX_EXPOSURE: f32 = 1.5;

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(name)
}

#[test]
fn the_units_are_hardened() {
    for name in ["pawlatch.service", "pawlatch-lock.service"] {
        let checked = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(unit(name))
            .output();
        let Ok(out) = checked else {
            assert!(std::env::var_os("CI").is_none(), "systemd-analyze is not installed");
            eprintln!("skipped: systemd-analyze is not installed");
            return;
        };
        let text = String::from_utf8_lossy(&out.stdout);
        let line = text.lines().find(|line| line.contains("Overall exposure level"));
        let score = line.and_then(|line| line.rsplit(':').next()?.split_whitespace().next());
        let score: f32 = score.and_then(|score| score.parse().ok()).expect(&text);
        assert!(score <= MAX_EXPOSURE, "{name} has an exposure of {score}");
    }
}

#[test]
fn the_service_locks_however_it_ends_and_is_watched() {
    let text = fs::read_to_string(unit("pawlatch.service")).unwrap();
    for line in [
        "Type=notify",
        "NotifyAccess=main",
        "ExecStopPost=/usr/bin/pawlatch lock --config /etc/pawlatch/pawlatch.toml",
        "Restart=always",
        "User=pawlatch",
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing");
    }
    let watchdog = text.lines().find_map(|l| l.strip_prefix("WatchdogSec=")).unwrap();
    let seconds: u32 = watchdog.trim_end_matches('s').parse().unwrap();
    assert!((1..=5).contains(&seconds), "WatchdogSec={watchdog}");
    let early = fs::read_to_string(unit("pawlatch-lock.service")).unwrap();
    assert!(early.contains("DefaultDependencies=no") && early.contains("WantedBy=sysinit.target"));
    assert!(early.contains("/usr/bin/pawlatch lock"));
}
