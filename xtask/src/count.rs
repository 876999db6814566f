//! `cargo xtask count`: what our networks and plain tract execute on aarch64. Counts, not times.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::arm::{LIBRARIES, built};
use crate::bench::{name_of, networks_in, output, replace_part, text};

/// Counts for every network and writes `docs/instructions.json` and the table in
/// `performance.md`.
pub fn run(root: &Path, program: Option<PathBuf>, qemu: &Path, wanted: &[String]) -> Result<()> {
    let target = super::target_dir(root);
    let program = built(root, &target, program)?;
    let (source, plugin) = (target.join("count.c"), target.join("count.so"));
    fs::write(&source, include_str!("count.c"))?;
    output(Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&plugin).arg(&source))?;
    let count = |onnx: &Path, runs: u64, more: &[&str]| -> Result<[u64; 2]> {
        let mut command = Command::new(qemu);
        command.args(["-L", LIBRARIES, "-plugin"]).arg(&plugin).arg(&program);
        command.args(["bench", "--warmup", "0", "--runs", &runs.to_string()]).args(more);
        executed(command.arg("--model").arg(onnx))
    };
    let mut networks = Vec::new();
    for onnx in networks_in(root)? {
        let name = name_of(&onnx);
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        let each = |more: &[&str]| -> Result<[u64; 2]> {
            // The difference of one inference and two has no start-up in it.
            let (one, two) = (count(&onnx, 1, more)?, count(&onnx, 2, more)?);
            Ok([0, 1].map(|i| two[i].saturating_sub(one[i])))
        };
        let ours = each(&[])?;
        // With `--plain` each run is one of ours alone, and then one of each.
        let both = each(&["--plain"])?;
        let plain = [0, 1].map(|i| both[i].saturating_sub(2 * ours[i]));
        ensure!(ours[0] > 0 && plain[0] > 0, "{name}: nothing was counted");
        eprintln!("{name}: {ours:?} against {plain:?}");
        networks.push(json!({ "network": name, "ours": ours, "plain": plain }));
    }
    ensure!(!networks.is_empty(), "no such network");
    let found = json!({
        "command": "cargo xtask count",
        "what": "instructions executed on aarch64 per inference on one thread, under qemu-user, \
                 and how many of them multiply and add four floats (FMLA)",
        "networks": networks,
    });
    let docs = root.join("docs");
    fs::write(docs.join("instructions.json"), serde_json::to_string_pretty(&found)? + "\n")?;
    let page = docs.join("performance.md");
    let mut written = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    replace_part(&mut written, "instructions", &table(&found))?;
    fs::write(&page, written)?;
    Ok(())
}

/// All instructions, and the multiply-adds among them, of one run under the plugin.
fn executed(command: &mut Command) -> Result<[u64; 2]> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {shown}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown} failed: {said}");
    counts(&said).with_context(|| format!("{shown} counted nothing: {said}"))
}

fn counts(said: &str) -> Option<[u64; 2]> {
    let line = said.lines().rev().find_map(|line| line.strip_prefix("executed "))?;
    let (all, multiply_adds) = line.split_once(' ')?;
    Some([all.parse().ok()?, multiply_adds.parse().ok()?])
}

fn table(found: &Value) -> String {
    let mut out = "| network | ours, millions | of them FMLA | plain tract, millions | of them \
                   FMLA | ours of plain |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for n in found["networks"].as_array().into_iter().flatten() {
        let f = |who: &str, which: usize| n[who][which].as_f64().unwrap_or(f64::NAN);
        let share = |who: &str| 100.0 * f(who, 1) / f(who, 0);
        out += &format!(
            "| {} | {:.0} | {:.0} % | {:.0} | {:.0} % | {:.2} |\n",
            text(&n["network"]),
            f("ours", 0) / 1e6,
            share("ours"),
            f("plain", 0) / 1e6,
            share("plain"),
            f("ours", 0) / f("plain", 0)
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_count_is_read() {
        assert_eq!(counts("a\nexecuted 1 0\nb\nexecuted 98383 2000\n"), Some([98_383, 2000]));
        assert_eq!(counts("executed none"), None);
    }

    #[test]
    fn a_network_has_a_row() {
        let found = json!({ "networks": [
            { "network": "n", "ours": [2_000_000, 1_000_000], "plain": [8_000_000, 1_000_000] },
        ] });
        assert!(table(&found).ends_with("| n | 2 | 50 % | 8 | 12 % | 0.25 |\n"));
    }
}
