//! The whole door, stage by stage.

use std::time::{Duration, Instant};
use std::{fs, mem};

use anyhow::{Context as _, Result};
use serde::Serialize;

use pawlatch::appliance::{Appliance, Sample, TICK, keeper};
use pawlatch::camera::{self, CameraSettings, FrameSource};
use pawlatch::clock::Clock;
use pawlatch::config::Config;
use pawlatch::journal::NoRecorder;
use pawlatch::latch::{Leased, SimulatedLatch};
use pawlatch_core::eye::Eye;
use pawlatch_core::units::Uptime;
use pawlatch_core::vision::Stage;

use super::{BenchArgs, Outcome, percentile, rounded};
use crate::commands::{Common, Usage, pictures, say, say_json};

/// From the picture as the camera gives it to the latch's command, in order.
const STAGES: [&str; 6] = ["decode", "gate", "resize", "detect", "classify", "decide"];
const DECODE: usize = 0;
const DECIDE: usize = 5;

const fn index(stage: Stage) -> usize {
    match stage {
        Stage::Gate => 1,
        Stage::Resize => 2,
        Stage::Detect => 3,
        Stage::Classify => 4,
    }
}

#[derive(Serialize)]
struct StageLine {
    stage: &'static str,
    /// Frames that went through it.
    frames: usize,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

#[derive(Serialize)]
struct DoorLine<'a> {
    source: &'a str,
    fps: f32,
    frames: u32,
    /// Frames that the networks looked at.
    looked: usize,
    /// Processor time of a minute of the source, all threads together.
    cpu_s_per_minute: f64,
    /// From the start of the command to the first decision.
    cold_start_ms: f64,
    /// Resident memory at the end.
    rss_mib: f64,
    /// How much of it has come since the warm-up.
    rss_growth_mib: f64,
    /// What it was after each tenth of the frames.
    rss_tenths_mib: Vec<f64>,
    /// The most it ever was, loading included.
    rss_peak_mib: f64,
}

/// `pawlatch bench --source`.
pub fn run(name: &str, args: &BenchArgs, common: &Common) -> Result<Outcome> {
    let began = Instant::now();
    if !(0.1..=240.0).contains(&args.fps) {
        return Err(Usage(format!("--fps {} should be 0.1 to 240", args.fps)).into());
    }
    let config = common.config()?;
    let settings = CameraSettings {
        source: Some(name.parse()?),
        fallback: None,
        fps: args.fps,
        repeat: true,
        ..config.camera.clone()
    };
    let mut source = camera::open(&settings, Clock::start())?;
    let in_use = common.in_use_of(&config.models)?;
    let threads = usize::from(args.threads);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let line = pool.install(|| {
        let mut bench = Bench::new(Eye::new(config.gate.clone(), in_use.vision()?), &config);
        bench.frame(source.as_mut())?;
        let cold_start = began.elapsed();
        for _ in 1..args.warmup.max(1) {
            bench.frame(source.as_mut())?;
        }
        bench.measure(name, args, source.as_mut(), cold_start)
    })?;
    if !args.json {
        say(&format!(
            "{} frames at {} a second, {} looked at: {:.2} s of processor time a minute; first \
             decision after {:.0} ms; memory {:.0} MiB, {:+.1} since the start, {:.0} at most",
            line.frames,
            line.fps,
            line.looked,
            line.cpu_s_per_minute,
            line.cold_start_ms,
            line.rss_mib,
            line.rss_growth_mib,
            line.rss_peak_mib
        ))?;
    }
    say_json(&line)?;
    Ok(Outcome::Done)
}

/// What each stage took of one frame; none if the frame did not go through it.
struct Laps {
    times: [Option<Duration>; STAGES.len()],
    last: Instant,
}

impl Laps {
    fn start() -> Self {
        Self { times: Default::default(), last: Instant::now() }
    }

    /// What was since the last lap belongs to no stage.
    fn restart(&mut self) -> Instant {
        self.last = Instant::now();
        self.last
    }

    fn end(&mut self, stage: usize) {
        let now = Instant::now();
        *self.times[stage].get_or_insert_default() += now - mem::replace(&mut self.last, now);
    }
}

struct Bench {
    eye: Eye,
    appliance: Appliance<Leased, NoRecorder>,
    next: Uptime,
    laps: [Vec<Duration>; STAGES.len()],
    whole: Vec<Duration>,
}

impl Bench {
    fn new(eye: Eye, config: &Config) -> Self {
        let latch = Box::new(SimulatedLatch::new(config.latch.simulated.clone()));
        let latch = Leased::new(latch, config.latch.lease.clone());
        let appliance = Appliance::new(keeper(config, false, Uptime::ZERO), latch, NoRecorder);
        let (laps, whole) = (Default::default(), Vec::new());
        Self { eye, appliance, next: Uptime::ZERO, laps, whole }
    }

    /// Plays one frame, and before it the cycles in which nothing new is seen.
    fn frame(&mut self, source: &mut dyn FrameSource) -> Result<()> {
        let mut laps = Laps::start();
        let frame = source.next()?.context("the source has no picture")?;
        laps.end(DECODE);
        while self.next < frame.captured_at() {
            self.appliance.tick(self.next, Sample::default());
            self.next = self.next + TICK;
        }
        self.next = frame.captured_at().max(self.next);
        let captured = laps.restart();
        let sightings = self.eye.look(&frame, &mut |stage| laps.end(index(stage)))?;
        let sample = Sample { sightings: Some(sightings), frame: Some(frame), ..Sample::default() };
        self.appliance.tick(self.next, sample);
        laps.end(DECIDE);
        self.whole.push(captured.elapsed());
        self.next = self.next + TICK;
        for (all, this) in self.laps.iter_mut().zip(laps.times) {
            all.extend(this);
        }
        Ok(())
    }

    fn measure<'a>(
        &mut self,
        name: &'a str,
        args: &BenchArgs,
        source: &mut dyn FrameSource,
        cold_start: Duration,
    ) -> Result<DoorLine<'a>> {
        self.laps = std::array::from_fn(|_| room(args.runs));
        self.whole = room(args.runs);
        let (rss, cpu, start) = (memory_mib("VmRSS")?, cpu_seconds()?, self.next);
        let bar = pictures::progress(u64::from(args.runs));
        let mut tenths = Vec::with_capacity(10);
        for run in 1..=args.runs {
            self.frame(source)?;
            bar.inc(1);
            if run % args.runs.div_ceil(10) == 0 || run == args.runs {
                tenths.push(rounded(memory_mib("VmRSS")?));
            }
        }
        bar.finish_and_clear();
        let (cpu, played) = (cpu_seconds()? - cpu, self.next.since(start).as_secs_f64());
        let now = memory_mib("VmRSS")?;
        let looked = self.laps[index(Stage::Detect)].len();
        let whole = mem::take(&mut self.whole);
        let stages = STAGES.into_iter().zip(mem::take(&mut self.laps));
        for (stage, times) in stages.chain([("frame to latch", whole)]) {
            tell(stage, times, args.json)?;
        }
        Ok(DoorLine {
            source: name,
            fps: args.fps,
            frames: args.runs,
            looked,
            cpu_s_per_minute: rounded(cpu / played * 60.0),
            cold_start_ms: rounded(cold_start.as_secs_f64() * 1e3),
            rss_mib: rounded(now),
            rss_growth_mib: rounded(now - rss),
            rss_tenths_mib: tenths,
            rss_peak_mib: rounded(memory_mib("VmHWM")?),
        })
    }
}

/// Room for the times of all frames, written to once, so that no memory comes with them later.
fn room(frames: u32) -> Vec<Duration> {
    let mut room = vec![Duration::MAX; frames as usize];
    room.clear();
    room
}

fn tell(stage: &'static str, mut times: Vec<Duration>, json: bool) -> Result<()> {
    times.sort();
    let line = StageLine {
        stage,
        frames: times.len(),
        p50_ms: percentile(&times, 0.50),
        p95_ms: percentile(&times, 0.95),
        p99_ms: percentile(&times, 0.99),
    };
    if json {
        return say_json(&line);
    }
    let StageLine { frames, p50_ms, p95_ms, p99_ms, .. } = line;
    say(&format!(
        "{stage:<16} {frames:>6} frames  p50 {p50_ms:>8.3}  p95 {p95_ms:>8.3}  p99 {p99_ms:>8.3} ms"
    ))
}

/// A figure of /proc/self/status in MiB.
fn memory_mib(key: &str) -> Result<f64> {
    let path = "/proc/self/status";
    let status = fs::read_to_string(path).context(path)?;
    let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = value.and_then(|v| v.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("{path} has no {key}"))? / 1024.0)
}

/// Processor time of all threads so far.
fn cpu_seconds() -> Result<f64> {
    let mut total = 0.0;
    for task in fs::read_dir("/proc/self/task")? {
        let path = task?.path().join("schedstat");
        // A thread may end between being listed and being read.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let ns = text.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok());
        total += ns.with_context(|| format!("{} is empty", path.display()))? / 1e9;
    }
    Ok(total)
}
