//! `bench`: how long a network takes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use pawlatch::models::{MAX_ONNX_BYTES, read_limited};
use pawlatch_core::vision::network::Bare;

use super::{Outcome, pictures, say, say_json};

/// Measure how long a network takes by itself
///
/// No picture is read, resized or decoded. Any ONNX file will do; it needs no manifest. Shapes
/// are those the file declares, with 1 for each size it leaves open; inputs are filled with a
/// fixed pattern. The network runs on a pool of --threads threads. Standard output ends with one
/// line:
///
/// {"model","threads","p50_ms","p95_ms","p99_ms"}
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct BenchArgs {
    /// The network, an ONNX file.
    #[arg(long, value_name = "FILE.onnx")]
    model: PathBuf,
    /// Threads it may use.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Runs that are measured.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: u32,
    /// Runs before those, not measured.
    #[arg(long, default_value_t = 10, value_name = "N")]
    warmup: u32,
    /// Print JSON only.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct BenchLine<'a> {
    model: &'a str,
    threads: u16,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

/// `pawlatch bench`.
pub fn run(args: &BenchArgs) -> Result<Outcome> {
    let file = args.model.display().to_string();
    let onnx = read_limited(&args.model, MAX_ONNX_BYTES)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(usize::from(args.threads))
        .build()
        .context("cannot start the threads")?;
    let times = pool.install(|| measure(args, &onnx)).with_context(|| file.clone())?;
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
        say(&format!(
            "{file}: {runs} runs on {threads} thread{}: p50 {p50_ms:.2} ms, p95 {p95_ms:.2} ms, \
             p99 {p99_ms:.2} ms",
            if threads == 1 { "" } else { "s" }
        ))?;
    }
    say_json(&line)?;
    Ok(Outcome::Done)
}

/// The sorted times of the measured runs.
fn measure(args: &BenchArgs, onnx: &[u8]) -> Result<Vec<Duration>> {
    let mut network = Bare::open(onnx)?;
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

/// The smallest time that at least `share` of the sorted `times` do not exceed, milliseconds.
fn percentile(times: &[Duration], share: f64) -> f64 {
    let rank = (share * times.len() as f64).ceil() as usize;
    let time = times.get(rank.clamp(1, times.len().max(1)) - 1);
    time.map_or(0.0, |t| (t.as_secs_f64() * 1e6).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 0.50), 50.0);
        assert_eq!(percentile(&times, 0.99), 99.0);
        assert_eq!(percentile(&times[..1], 0.99), 1.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
