//! `cargo xtask arm`: the door decides alike on x86-64 and on aarch64.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::bench::{json_lines, output, released};

const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Where Debian keeps the libraries of the other architecture.
pub const LIBRARIES: &str = "/usr/aarch64-linux-gnu";
/// Numbers may differ by this much of the larger of 1 and themselves: sums of floats are in
/// another order on each instruction set.
const TOLERANCE: f64 = 2e-3;

/// Replays every clip on both and writes `docs/aarch64.json`.
pub fn run(
    root: &Path,
    program: Option<PathBuf>,
    here: Option<PathBuf>,
    wanted: &[String],
) -> Result<()> {
    let target = super::target_dir(root);
    let here = released(root, &target, here)?;
    let arm = built(root, &target, program)?;
    let clips = root.join("../shared/data/clips");
    let mut dirs: Vec<PathBuf> = fs::read_dir(&clips)
        .with_context(|| clips.display().to_string())?
        .map(|e| Ok(e?.path()))
        .collect::<Result<_>>()?;
    dirs.retain(|path| {
        let named = |name: &String| path.file_name().is_some_and(|file| *file == **name);
        path.is_dir() && (wanted.is_empty() || wanted.iter().any(named))
    });
    dirs.sort();
    ensure!(!dirs.is_empty(), "no clips in {}", clips.display());
    let mut all = Vec::new();
    for dir in dirs {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let replay = |command: &mut Command| {
            json_lines(&output(command.current_dir(root).args(["replay", "--json"]).arg(&dir))?)
        };
        let ours = replay(&mut Command::new(&here))?;
        let mut emulated = Command::new("qemu-aarch64-static");
        let theirs = replay(emulated.args(["-L", LIBRARIES]).arg(&arm))?;
        ensure!(ours.len() == theirs.len(), "{name}: {} steps, {}", ours.len(), theirs.len());
        let mut largest = 0.0;
        for (step, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            same(a, b, &mut largest).with_context(|| format!("{name}, step {step}: {a}\n{b}"))?;
        }
        eprintln!("{name}: {} steps alike, numbers within {largest:.1e}", ours.len());
        all.push(json!({ "clip": name, "steps": ours.len(), "largest_difference": largest }));
    }
    let found = json!({
        "command": "cargo xtask arm",
        "what": "replay --json on x86-64 and, under qemu-user, on aarch64: every decision equal",
        "tolerance": TOLERANCE,
        "clips": all,
    });
    fs::write(root.join("docs/aarch64.json"), serde_json::to_string_pretty(&found)? + "\n")?;
    Ok(())
}

/// `pawlatch` for aarch64: `program`, or else built below `target`.
pub fn built(root: &Path, target: &Path, program: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(program) = program {
        return Ok(std::path::absolute(program)?);
    }
    super::cargo(root, ["build", "--release", "--package", "pawlatch", "--target", TARGET])?;
    Ok(target.join(TARGET).join("release/pawlatch"))
}

/// Whether two answers are equal but for the last digits of their numbers, of which `largest`
/// keeps the largest difference.
fn same(a: &Value, b: &Value, largest: &mut f64) -> Result<()> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            ensure!(a.keys().eq(b.keys()), "other keys");
            a.values().zip(b.values()).try_for_each(|(a, b)| same(a, b, largest))
        }
        (Value::Array(a), Value::Array(b)) => {
            ensure!(a.len() == b.len(), "another number of elements");
            a.iter().zip(b).try_for_each(|(a, b)| same(a, b, largest))
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap_or(f64::NAN), b.as_f64().unwrap_or(f64::NAN));
            near(a, b, largest)
        }
        (Value::String(a), Value::String(b)) if a != b => {
            // Sentences hold numbers too, to one decimal.
            let (a, b): (Vec<&str>, Vec<&str>) = (words(a), words(b));
            ensure!(a.len() == b.len(), "{a:?} is not {b:?}");
            a.iter().zip(&b).try_for_each(|(a, b)| match (a.parse::<f64>(), b.parse::<f64>()) {
                (Ok(a), Ok(b)) if (a - b).abs() < 0.11 => Ok(()),
                _ if a == b => Ok(()),
                _ => bail!("{a} is not {b}"),
            })
        }
        _ => {
            ensure!(a == b, "{a} is not {b}");
            Ok(())
        }
    }
}

fn near(a: f64, b: f64, largest: &mut f64) -> Result<()> {
    let apart = (a - b).abs() / a.abs().max(1.0);
    *largest = largest.max(apart);
    ensure!(apart <= TOLERANCE, "{a} is not {b}");
    Ok(())
}

fn words(text: &str) -> Vec<&str> {
    text.split([' ', ',']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_digits_may_differ() {
        let a = json!({ "state": "open", "value": 1.0, "words": "evidence 8.3, 6.9 needed" });
        let mut largest = 0.0;
        let close = json!({ "state": "open", "value": 1.001, "words": "evidence 8.4, 6.9 needed" });
        same(&a, &close, &mut largest).unwrap();
        assert!((0.0009..0.0011).contains(&largest));
        for other in [
            json!({ "state": "idle", "value": 1.0, "words": "evidence 8.3, 6.9 needed" }),
            json!({ "state": "open", "value": 1.01, "words": "evidence 8.3, 6.9 needed" }),
            json!({ "state": "open", "value": 1.0, "words": "evidence 9.3, 6.9 needed" }),
            json!({ "state": "open", "value": 1.0 }),
        ] {
            assert!(same(&a, &other, &mut largest).is_err(), "{other}");
        }
    }
}
