//! One network by itself, as a whole or operator by operator.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use pawlatch::models::{Entry, MAX_ONNX_BYTES, read_limited};
use pawlatch_core::vision::fast::{Arithmetic, Isa, Ranges, multiply_adds};
use pawlatch_core::vision::network::Bare;

use super::{BenchArgs, Outcome, percentile, rounded};
use crate::commands::{pictures, say, say_json};

#[derive(Serialize)]
struct BenchLine<'a> {
    model: &'a str,
    threads: u16,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

/// Plain tract beside our operators.
#[derive(Serialize)]
struct PlainLine {
    plain_p50_ms: f64,
    /// Our time as a share of plain tract's, the median over pairs of runs.
    of_plain: f64,
}

/// One operator of a network.
#[derive(Serialize)]
struct OpLine {
    op: String,
    name: String,
    /// Median over the runs.
    ms: f64,
    /// Multiply-adds per second, in billions; absent where they are not what counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    gmac_per_s: Option<f64>,
    /// Share of the core's peak.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_peak: Option<f64>,
}

/// `pawlatch bench --model`.
pub fn run(model: &Path, args: &BenchArgs) -> Result<Outcome> {
    let file = model.display().to_string();
    let onnx = read_limited(model, MAX_ONNX_BYTES)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(usize::from(args.threads))
        .build()
        .context("cannot start the threads")?;
    let ranges = if args.int8 { Some(ranges(model)?) } else { None };
    let arithmetic = ranges.as_ref().map_or(Arithmetic::Floats, Arithmetic::Bytes);
    let network = Bare::open_in(arithmetic, &onnx).with_context(|| file.clone())?;
    let times = pool.install(|| measure(args, &network)).with_context(|| file.clone())?;
    if args.ops {
        let peak = peak();
        let ops = pool.install(|| profile(args, &network, peak)).with_context(|| file.clone())?;
        tell(&ops, peak, args.json)?;
    }
    if args.plain {
        let plain = Bare::open_plain(&onnx).with_context(|| file.clone())?;
        let line =
            pool.install(|| compare(args, &network, &plain)).with_context(|| file.clone())?;
        if !args.json {
            let PlainLine { plain_p50_ms, of_plain } = line;
            say(&format!("plain tract takes {plain_p50_ms:.2} ms; ours {of_plain:.3} of that"))?;
        }
        say_json(&line)?;
    }
    let line = BenchLine {
        model: &file,
        threads: args.threads,
        p50_ms: percentile(&times, 0.50),
        p95_ms: percentile(&times, 0.95),
        p99_ms: percentile(&times, 0.99),
    };
    if !args.json {
        let BenchLine { p50_ms, p95_ms, p99_ms, .. } = line;
        let (runs, threads) = (args.runs, args.threads);
        // One line that says everything, to be pasted into a report from a board we do not have.
        say(&format!(
            "pawlatch {} on {} ({}, {} cores): {file}: {runs} runs on {threads} thread{}: p50 \
             {p50_ms:.2} ms, p95 {p95_ms:.2} ms, p99 {p99_ms:.2} ms",
            env!("CARGO_PKG_VERSION"),
            board(),
            Isa::detect().map_or("no kernels", Isa::name),
            std::thread::available_parallelism().map_or(1, usize::from),
            if threads == 1 { "" } else { "s" }
        ))?;
    }
    say_json(&line)?;
    Ok(Outcome::Done)
}

/// The ranges in the manifest beside `model`.
fn ranges(model: &Path) -> Result<Ranges> {
    let entry = Entry::open(model.parent().unwrap_or(Path::new(".")))?;
    let missing = "its manifest has no ranges; `pawlatch model quantise` measures them";
    entry.manifest.quantised.context(missing)
}

/// The sorted times of the measured runs.
fn measure(args: &BenchArgs, network: &Bare) -> Result<Vec<Duration>> {
    let bar = pictures::progress(u64::from(args.warmup + args.runs));
    for _ in 0..args.warmup {
        network.run()?;
        bar.inc(1);
    }
    let mut times = Vec::with_capacity(args.runs as usize);
    for _ in 0..args.runs {
        let began = Instant::now();
        network.run()?;
        times.push(began.elapsed());
        bar.inc(1);
    }
    bar.finish_and_clear();
    times.sort();
    Ok(times)
}

/// Both in turn, so that whatever disturbs the machine disturbs both.
fn compare(args: &BenchArgs, ours: &Bare, plain: &Bare) -> Result<PlainLine> {
    let time = |network: &Bare| -> Result<Duration> {
        let began = Instant::now();
        network.run()?;
        Ok(began.elapsed())
    };
    plain.run()?;
    let (mut times, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..args.runs {
        let (plain, ours) = (time(plain)?, time(ours)?);
        times.push(plain);
        ratios.push(ours.as_secs_f64() / plain.as_secs_f64());
    }
    times.sort();
    ratios.sort_by(f64::total_cmp);
    let of_plain = rounded(ratios[ratios.len() / 2]);
    Ok(PlainLine { plain_p50_ms: percentile(&times, 0.5), of_plain })
}

/// Multiply-adds per second that one core reaches in registers: the best of many short bursts,
/// since everything that disturbs makes them slower. 0 on a CPU without kernels.
fn peak() -> f64 {
    let Some(isa) = Isa::detect() else { return 0.0 };
    let burst = || {
        let began = Instant::now();
        multiply_adds(isa) as f64 / began.elapsed().as_secs_f64()
    };
    (0..200).map(|_| burst()).fold(0.0, f64::max)
}

/// Each operator's median time, in order of execution.
fn profile(args: &BenchArgs, network: &Bare, peak: f64) -> Result<Vec<OpLine>> {
    let began = Instant::now();
    let mut clock = || u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut runs = Vec::new();
    for _ in 0..args.runs {
        runs.push(network.profile(&mut clock)?);
    }
    let ops = runs.first().cloned().unwrap_or_default();
    let line = |(i, op): (usize, pawlatch_core::vision::fast::OpTime)| {
        let mut times: Vec<u64> = runs.iter().map(|run| run[i].time).collect();
        times.sort_unstable();
        let ns = times[times.len() / 2].max(1) as f64;
        let speed = op.macs as f64 / ns;
        let counts = op.macs > 0;
        OpLine {
            op: op.op,
            name: op.name,
            ms: rounded(ns / 1e6),
            gmac_per_s: counts.then(|| rounded(speed)),
            share_of_peak: (counts && peak > 0.0).then(|| rounded(speed * 1e9 / peak)),
        }
    };
    Ok(ops.into_iter().enumerate().map(line).collect())
}

fn tell(ops: &[OpLine], peak: f64, json: bool) -> Result<()> {
    if json {
        return ops.iter().try_for_each(say_json);
    }
    say(&format!("one core's peak, measured in registers: {:.1} GMAC/s", peak / 1e9))?;
    say(&format!("{:>8}  {:>7}  {:>5}  {:<16} node", "ms", "GMAC/s", "peak", "operator"))?;
    for line in ops {
        let speed = line.gmac_per_s.map_or(String::new(), |s| format!("{s:.1}"));
        let share = line.share_of_peak.map_or(String::new(), |s| format!("{:.0} %", s * 100.0));
        say(&format!("{:>8.3}  {speed:>7}  {share:>5}  {:<16} {}", line.ms, line.op, line.name))?;
    }
    say(&format!("{:>8.3}  all operators", ops.iter().map(|o| o.ms).sum::<f64>()))
}

/// The board or processor, as the system names it.
fn board() -> String {
    let model = std::fs::read_to_string("/proc/device-tree/model");
    let model = model.map(|m| m.trim_end_matches('\0').to_owned());
    let named = model.or_else(|_| {
        let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
        let name = cpu.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
        name.map(|(_, name)| name.to_owned()).ok_or(std::io::ErrorKind::NotFound.into())
    });
    named.unwrap_or_else(|_: std::io::Error| std::env::consts::ARCH.to_owned())
}
