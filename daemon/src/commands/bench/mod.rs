//! `bench`: how long a network takes, or the whole door.

mod door;
mod network;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{ArgGroup, Args};

use super::{Common, Outcome};

/// Measure how long a network takes by itself, or the whole door
///
/// With --model: one network. No picture is read, resized or decoded. Any ONNX file will do; it
/// needs no manifest. Shapes are those the file declares, with 1 for each size it leaves open;
/// inputs are filled with a fixed pattern. The network runs on a pool of --threads threads.
/// Standard output ends with one line:
///
/// {"model","threads","p50_ms","p95_ms","p99_ms"}
///
/// With --source: a directory of pictures or a video through the whole door, over and over, as
/// fast as it goes, on a simulated latch: one line a stage and a last one with the processor time
/// of a minute at --fps, the memory, and the time from the start to the first decision:
///
/// {"stage","frames","p50_ms","p95_ms","p99_ms"}
/// {"source","fps","frames","looked","cpu_s_per_minute","cold_start_ms","rss_mib","rss_growth_mib","rss_peak_mib"}
#[derive(Args)]
#[command(verbatim_doc_comment, group(ArgGroup::new("what").required(true).args(["model", "source"])))]
pub struct BenchArgs {
    /// The network, an ONNX file.
    #[arg(long, value_name = "FILE.onnx")]
    model: Option<PathBuf>,
    /// Pictures for the whole door, as in the configuration's `camera.source`.
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
    /// Threads that networks may use.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Runs, or frames, that are measured.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    runs: u32,
    /// Runs, or frames, before those, not measured.
    #[arg(long, default_value_t = 10, value_name = "N")]
    warmup: u32,
    /// Frames per second of a directory, 0.1 to 240.
    #[arg(long, default_value_t = 15.0, value_name = "FPS", requires = "source")]
    fps: f32,
    /// Also show each operator of the network: its time, multiply-adds per second, and share of
    /// what this core can do at most, which is measured first.
    #[arg(long, requires = "model")]
    ops: bool,
    /// Also run the network on plain tract, in turn with our operators, and tell how much of its
    /// time ours take: {"plain_p50_ms","of_plain"}.
    #[arg(long, requires = "model")]
    plain: bool,
    /// Compute in 8 bits, with the ranges in the `model.toml` beside the network.
    #[arg(long, requires = "model")]
    int8: bool,
    /// Print JSON only.
    #[arg(long)]
    json: bool,
}

/// `pawlatch bench`.
pub fn run(args: &BenchArgs, common: &Common) -> Result<Outcome> {
    match (&args.model, &args.source) {
        (Some(model), _) => network::run(model, args),
        (None, Some(source)) => door::run(source, args, common),
        (None, None) => Ok(Outcome::Misused),
    }
}

/// The smallest time that at least `share` of the sorted `times` do not exceed, milliseconds.
fn percentile(times: &[Duration], share: f64) -> f64 {
    let rank = (share * times.len() as f64).ceil() as usize;
    let time = times.get(rank.clamp(1, times.len().max(1)) - 1);
    time.map_or(0.0, |t| rounded(t.as_secs_f64() * 1e3))
}

/// To three decimals.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
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
