//! `cargo xtask bench`: our networks against onnxruntime, and the whole door, in one run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// The version measured against.
const ONNXRUNTIME: &str = "onnxruntime==1.32.0";
/// Alternations of onnxruntime and us; the ratio is the median of theirs.
const ROUNDS: usize = 5;
/// Our operators may take at most this share of plain tract's time. A lost inline makes networks
/// twenty times slower without failing any test.
const MOST_OF_PLAIN: f64 = 0.67;
/// Inferences in each, of which the median counts.
const RUNS: &str = "30";
/// What the whole door plays: a dog that comes, and a simulated yard in which nothing moves but
/// the camera's noise (its drawing counts as decoding).
const SCENES: [(&str, &str); 2] =
    [("active", "dir:../shared/data/clips/dog_field"), ("idle", "sim:")];

/// `pawlatch` for this machine: `program`, or else the release built below `target`.
pub fn released(root: &Path, target: &Path, program: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(program) = program {
        return Ok(std::path::absolute(program)?);
    }
    super::cargo(root, ["build", "--release", "--package", "pawlatch"])?;
    Ok(target.join("release/pawlatch"))
}

/// Measures and writes `docs/performance.json`, `.svg` and the tables in `performance.md`.
pub fn run(root: &Path, frames: u32, program: Option<PathBuf>) -> Result<()> {
    let target = super::target_dir(root);
    let program = released(root, &target, program)?;
    let python = venv(&target)?;
    let script = target.join("ort.py");
    fs::write(&script, include_str!("ort.py"))?;
    let bench = Bench { program, python, script };
    let (mut networks, mut ops) = (Vec::new(), serde_json::Map::new());
    for onnx in networks_in(root)? {
        for threads in [1, 2] {
            networks.push(bench.network(&onnx, threads)?);
        }
        let lines = bench.bench(&onnx, 1, &["--ops"])?;
        ops.insert(name_of(&onnx).to_owned(), kinds_of_ops(&lines).into());
    }
    let busy = bench.busy(root)?;
    let door = bench.door(root, frames)?;
    let size = fs::metadata(bench.stripped()?)?.len();
    let all = json!({
        "command": "cargo xtask bench",
        "machine": machine(),
        "onnxruntime": ONNXRUNTIME,
        "rounds": ROUNDS,
        "runs": RUNS,
        "networks": networks,
        "ops": ops,
        "busy": busy,
        "door": door,
        "program_bytes": size,
    });
    let docs = root.join("docs");
    fs::write(docs.join("performance.json"), serde_json::to_string_pretty(&all)? + "\n")?;
    fs::write(docs.join("performance.svg"), plot(&all))?;
    let page = docs.join("performance.md");
    let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    fs::write(&page, tables(&text, &all)?)?;
    Ok(())
}

struct Bench {
    program: PathBuf,
    python: PathBuf,
    script: PathBuf,
}

impl Bench {
    /// One network on one number of threads, alternating, pinned to as many cores.
    fn network(&self, onnx: &Path, threads: usize) -> Result<Value> {
        let (mut theirs, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let them = self.onnxruntime(onnx, threads)?;
            let us = self.ours(onnx, threads)?;
            ratios.push(us / them);
            theirs.push(them);
            ours.push(us);
        }
        let name = name_of(onnx);
        let of_plain = self.of_plain(onnx, threads)?;
        eprintln!("{name}, {threads} threads: {:.2}", median(&ratios));
        ensure!(
            threads > 1 || of_plain <= MOST_OF_PLAIN,
            "{name} takes {of_plain:.2} of plain tract's time; at most {MOST_OF_PLAIN} is right"
        );
        Ok(json!({
            "network": name,
            "threads": threads,
            "onnxruntime_ms": median(&theirs),
            "ours_ms": median(&ours),
            "of_plain": of_plain,
            "ratio": median(&ratios),
            "ratio_low": ratios.iter().copied().fold(f64::INFINITY, f64::min),
            "ratio_high": ratios.iter().copied().fold(0.0, f64::max),
        }))
    }

    fn onnxruntime(&self, onnx: &Path, threads: usize) -> Result<f64> {
        let mut command = pinned(threads, &self.python);
        command.arg(&self.script).arg(onnx).args([&threads.to_string(), RUNS]);
        Ok(output(&mut command)?.trim().parse()?)
    }

    fn ours(&self, onnx: &Path, threads: usize) -> Result<f64> {
        number(self.bench(onnx, threads, &[])?.last(), "p50_ms")
    }

    fn of_plain(&self, onnx: &Path, threads: usize) -> Result<f64> {
        number(self.bench(onnx, threads, &["--plain"])?.first(), "of_plain")
    }

    fn bench(&self, onnx: &Path, threads: usize, more: &[&str]) -> Result<Vec<Value>> {
        let mut command = pinned(threads, &self.program);
        command.args(["bench", "--json", "--runs", RUNS, "--threads", &threads.to_string()]);
        command.args(more).arg("--model").arg(onnx);
        json_lines(&output(&mut command)?)
    }

    /// One thread against two while another program uses one of the two cores.
    fn busy(&self, root: &Path) -> Result<Value> {
        let onnx = networks_in(root)?.into_iter().next().context("there is no network")?;
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let measured = (0..ROUNDS)
                .map(|_| Ok((self.ours(&onnx, 1)?, self.ours(&onnx, 2)?)))
                .collect::<Result<Vec<_>>>();
            over.store(true, Ordering::Relaxed);
            let measured = measured?;
            let (one, two): (Vec<f64>, Vec<f64>) = measured.iter().copied().unzip();
            let ratios: Vec<f64> = measured.iter().map(|(one, two)| two / one).collect();
            Ok(json!({
                "network": name_of(&onnx),
                "one_thread_ms": median(&one),
                "two_threads_ms": median(&two),
                "ratio": median(&ratios),
            }))
        })
    }

    /// Every stage of the whole door on a scene that moves and on one that does not.
    fn door(&self, root: &Path, frames: u32) -> Result<Value> {
        let mut all = serde_json::Map::new();
        for (kind, source) in SCENES {
            let mut command = pinned(1, &self.program);
            command.current_dir(root).args(["bench", "--json", "--fps", "15", "--runs"]);
            command.arg(frames.to_string()).args(["--source", source]);
            let mut lines = json_lines(&output(&mut command)?)?;
            let summary = lines.pop().context("the door said nothing")?;
            all.insert(kind.to_owned(), json!({ "stages": lines, "summary": summary }));
        }
        Ok(all.into())
    }

    /// The program as it is shipped.
    fn stripped(&self) -> Result<PathBuf> {
        let stripped = self.program.with_extension("stripped");
        output(Command::new("strip").arg("-o").arg(&stripped).arg(&self.program))?;
        Ok(stripped)
    }
}

/// `program`, which may only use the first `threads` cores.
fn pinned(threads: usize, program: &Path) -> Command {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut command = Command::new("taskset");
    command.args(["-c", &format!("0-{}", threads.min(cores) - 1)]).arg(program);
    command
}

fn venv(target: &Path) -> Result<PathBuf> {
    let dir = target.join("bench-venv");
    let python = dir.join("bin/python");
    if !python.exists() {
        output(Command::new("python3").args(["-m", "venv"]).arg(&dir))?;
    }
    output(Command::new(&python).args(["-m", "pip", "install", "-q", ONNXRUNTIME, "numpy"]))?;
    Ok(python)
}

/// The shipped networks, and those beside the project where they are.
pub fn networks_in(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for models in [root.join("models"), root.join("../shared/models")] {
        let Ok(entries) = fs::read_dir(&models) else { continue };
        let mut dirs: Vec<PathBuf> = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
        dirs.sort();
        for dir in dirs.iter().filter(|d| d.is_dir()) {
            let mut files: Vec<PathBuf> =
                fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
            files.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
            files.sort();
            found.extend(files);
        }
    }
    let mut seen = BTreeSet::new();
    found.retain(|path| seen.insert(name_of(path).to_owned()));
    ensure!(!found.is_empty(), "no ONNX file in models/*/");
    Ok(found)
}

/// A network is called as its directory.
pub fn name_of(onnx: &Path) -> &str {
    onnx.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default()
}

/// What `command` writes to standard output, if it succeeds.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// A value a line.
pub fn json_lines(text: &str) -> Result<Vec<Value>> {
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

fn number(line: Option<&Value>, key: &str) -> Result<f64> {
    line.and_then(|l| l[key].as_f64()).with_context(|| format!("there is no {key}"))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", name.map_or(env::consts::ARCH, |(_, name)| name))
}

/// `page` with what stands between `<!-- NAME -->` and `<!-- end -->` written anew.
fn tables(page: &str, all: &Value) -> Result<String> {
    let made =
        [("networks", networks_table(all)), ("ops", ops_table(all)), ("door", door_table(all))];
    let mut page = page.to_owned();
    for (name, table) in made {
        replace_part(&mut page, name, &table)?;
    }
    Ok(page)
}

/// Writes what stands between `<!-- NAME -->` and `<!-- end -->` in `page` anew.
pub fn replace_part(page: &mut String, name: &str, table: &str) -> Result<()> {
    let mark = format!("<!-- {name} -->");
    let start = page.find(&mark).with_context(|| format!("the page has no {mark}"))?;
    let start = start + mark.len();
    let end = page[start..].find("<!-- end -->").context("a table of the page has no end")?;
    page.replace_range(start..start + end, &format!("\n{table}"));
    Ok(())
}

fn networks_table(all: &Value) -> String {
    let mut out = format!("{}; {}.\n\n", text(&all["machine"]), text(&all["onnxruntime"]));
    out += "| network | threads | onnxruntime, ms | ours, ms | ratio (range) | of plain \
            tract |\n|---|---|---|---|---|---|\n";
    for n in all["networks"].as_array().into_iter().flatten() {
        let f = |key: &str| n[key].as_f64().unwrap_or(f64::NAN);
        let _ = writeln!(
            out,
            "| {} | {} | {:.2} | {:.2} | {:.2} ({:.2}-{:.2}) | {:.2} |",
            text(&n["network"]),
            n["threads"],
            f("onnxruntime_ms"),
            f("ours_ms"),
            f("ratio"),
            f("ratio_low"),
            f("ratio_high"),
            f("of_plain")
        );
    }
    let busy = |key: &str| all["busy"][key].as_f64().unwrap_or(f64::NAN);
    let _ = writeln!(
        out,
        "\nWhile another program uses one core, {} takes {:.2} ms on one thread and {:.2} ms on \
         two, {:.2} times as long.\n",
        text(&all["busy"]["network"]),
        busy("one_thread_ms"),
        busy("two_threads_ms"),
        busy("ratio")
    );
    out
}

/// What `bench --ops` says of each operator, summed over each kind, the longest first.
fn kinds_of_ops(lines: &[Value]) -> Vec<Value> {
    let number = |line: &Value, key: &str| line[key].as_f64().unwrap_or_default();
    let mut kinds = BTreeMap::new();
    for line in lines.iter().filter(|line| line["op"].is_string()) {
        let (ms, speed) = (number(line, "ms"), number(line, "gmac_per_s"));
        let sum = kinds.entry(text(&line["op"])).or_insert((0_u32, 0.0, 0.0, 0.0));
        let (count, total, gmac_ms, peak_ms) = *sum;
        let share = number(line, "share_of_peak");
        *sum = (count + 1, total + ms, gmac_ms + speed * ms, peak_ms + share * ms);
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    let kind = |(op, (count, ms, gmac_ms, peak_ms)): (&str, (u32, f64, f64, f64))| {
        json!({
            "op": op,
            "count": count,
            "ms": ms,
            "gmac_per_s": gmac_ms / ms.max(f64::MIN_POSITIVE),
            "share_of_peak": peak_ms / ms.max(f64::MIN_POSITIVE),
        })
    };
    kinds.into_iter().map(kind).collect()
}

fn ops_table(all: &Value) -> String {
    let mut out = "| network | operator | count | ms | of the network | GMAC/s | of the peak \
                   |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (network, kinds) in all["ops"].as_object().into_iter().flatten() {
        let kinds = kinds.as_array().map_or(&[][..], Vec::as_slice);
        let f = |kind: &Value, key: &str| kind[key].as_f64().unwrap_or(f64::NAN);
        let total: f64 = kinds.iter().map(|kind| f(kind, "ms")).sum();
        let (shown, small): (Vec<&Value>, Vec<&Value>) =
            kinds.iter().partition(|kind| f(kind, "ms") >= total / 100.0);
        for kind in shown {
            let (ms, speed) = (f(kind, "ms"), f(kind, "gmac_per_s"));
            let _ = write!(
                out,
                "| {network} | {} | {} | {ms:.2} | {:.0} % |",
                text(&kind["op"]),
                kind["count"],
                100.0 * ms / total
            );
            let _ = match speed > 0.0 {
                true => {
                    writeln!(out, " {speed:.1} | {:.0} % |", 100.0 * f(kind, "share_of_peak"))
                }
                false => writeln!(out, " | |"),
            };
        }
        let (count, ms) = small
            .iter()
            .fold((0.0, 0.0), |(n, ms), kind| (n + f(kind, "count"), ms + f(kind, "ms")));
        if count > 0.0 {
            let share = 100.0 * ms / total;
            let _ = writeln!(out, "| {network} | others | {count} | {ms:.2} | {share:.0} % | | |");
        }
    }
    out
}

fn door_table(all: &Value) -> String {
    let mut out = String::new();
    for (kind, door) in all["door"].as_object().into_iter().flatten() {
        let _ = writeln!(
            out,
            "\n{kind}:\n\n| stage | frames | p50, ms | p95, ms | p99, ms |\n|---|---|---|---|---|"
        );
        for s in door["stages"].as_array().into_iter().flatten() {
            let f = |key: &str| s[key].as_f64().unwrap_or(f64::NAN);
            let _ = writeln!(
                out,
                "| {} | {} | {:.3} | {:.3} | {:.3} |",
                text(&s["stage"]),
                s["frames"],
                f("p50_ms"),
                f("p95_ms"),
                f("p99_ms")
            );
        }
        let s = &door["summary"];
        let f = |key: &str| s[key].as_f64().unwrap_or(f64::NAN);
        let _ = writeln!(
            out,
            "\n{} frames at {} a second, {} of them looked at: {:.2} seconds of processor time a \
             minute; first decision {:.0} ms after the start; {:.0} MiB of memory at the end, \
             {:+.1} since the first frames, {:.0} at most.",
            s["frames"],
            s["fps"],
            s["looked"],
            f("cpu_s_per_minute"),
            f("cold_start_ms"),
            f("rss_mib"),
            f("rss_growth_mib"),
            f("rss_peak_mib")
        );
    }
    let megabytes = all["program_bytes"].as_f64().unwrap_or(f64::NAN) / 1e6;
    let _ = writeln!(out, "\nThe stripped program has {megabytes:.1} MB.\n");
    out
}

/// The string that `value` is; empty if it is none.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Our time as a share of onnxruntime's, a bar a network and number of threads; 1 is as fast.
fn plot(all: &Value) -> String {
    let networks: Vec<&Value> = all["networks"].as_array().into_iter().flatten().collect();
    let (left, wide, high) = (190.0, 400.0, 22.0);
    let bottom = 30.0 + high * networks.len() as f64;
    let largest = networks.iter().filter_map(|n| n["ratio_high"].as_f64()).fold(1.2, f64::max);
    let x = |ratio: f64| left + wide * ratio / largest;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 640 {:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\"><rect width=\"640\" height=\"{:.0}\" \
         fill=\"#fff\"/>",
        bottom + 40.0,
        bottom + 40.0
    );
    for (row, n) in networks.iter().enumerate() {
        let y = 20.0 + high * row as f64;
        let f = |key: &str| n[key].as_f64().unwrap_or(0.0);
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}, {}</text>\
             <rect x=\"{left}\" y=\"{}\" width=\"{:.1}\" height=\"14\" fill=\"#0072B2\"/>\
             <path d=\"M{:.1} {} H{:.1}\" stroke=\"#000\"/>\
             <text x=\"{:.1}\" y=\"{}\">{:.2}</text>",
            left - 8.0,
            y + 12.0,
            text(&n["network"]),
            n["threads"],
            y + 1.0,
            x(f("ratio")) - left,
            x(f("ratio_low")),
            y + 8.0,
            x(f("ratio_high")),
            x(f("ratio_high")) + 6.0,
            y + 12.0,
            f("ratio")
        );
    }
    let one = x(1.0);
    let _ = writeln!(
        svg,
        "<path d=\"M{one:.1} 12 V{bottom}\" stroke=\"#D55E00\" stroke-dasharray=\"4\"/>\
         <text x=\"{one:.1}\" y=\"{}\" text-anchor=\"middle\">1: as long as onnxruntime</text>\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\">network, threads</text></svg>",
        bottom + 18.0,
        left - 8.0,
        bottom + 18.0
    );
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_replace_what_stands_between_their_marks() {
        let page = "a\n<!-- networks -->old<!-- end -->b<!-- ops -->old<!-- end -->\
                    <!-- door -->old<!-- end -->c";
        let all = json!({ "networks": [], "door": {} });
        let new = tables(page, &all).unwrap();
        assert!(new.starts_with("a\n<!-- networks -->") && new.ends_with("<!-- end -->c"));
        assert!(!new.contains("old") && new.contains("| network |"));
        assert!(tables("no marks", &all).is_err());
    }

    #[test]
    fn operators_of_a_kind_are_summed() {
        let line = |op: &str, ms: f64, speed: f64| {
            json!({ "op": op, "name": "n", "ms": ms, "gmac_per_s": speed,
                    "share_of_peak": speed / 50.0 })
        };
        let small = json!({ "op": "Tiny", "name": "n", "ms": 0.01 });
        let total = json!({ "model": "m", "p50_ms": 4.0 });
        let lines = [small, line("Conv", 1.0, 40.0), line("Conv", 3.0, 20.0), total];
        let all = json!({ "ops": { "net": kinds_of_ops(&lines) } });
        let table = ops_table(&all);
        assert!(table.contains("| net | Conv | 2 | 4.00 | 100 % | 25.0 | 50 % |\n"), "{table}");
        assert!(table.ends_with("| net | others | 1 | 0.01 | 0 % | | |\n"), "{table}");
    }

    #[test]
    fn the_median_is_the_middle_value() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert!(median(&[]).is_nan());
    }
}
