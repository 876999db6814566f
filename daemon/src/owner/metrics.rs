//! Counters and histograms in the text format of Prometheus.
//!
//! Everything is an atomic number, so that counting never waits.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pawlatch_core::door::Position;
use pawlatch_core::event::{Event, Fault, Verdict, What, Whom};
use pawlatch_core::frame::PictureHealth;
use pawlatch_core::sight::Class;
use pawlatch_core::units::Uptime;
use pawlatch_core::vision::Stage;

use super::board::Glance;
use super::house::House;

/// Upper bounds of the histograms' buckets, milliseconds.
const BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000];

const STAGES: [(Stage, &str); 4] = [
    (Stage::Gate, "gate"),
    (Stage::Resize, "resize"),
    (Stage::Detect, "detect"),
    (Stage::Classify, "classify"),
];
const WHOM: [(Whom, &str); 3] =
    [(Whom::Dog, "dog"), (Whom::Owner, "owner"), (Whom::Leaving, "leaving")];
const VERDICTS: [(Verdict, &str); 4] = [
    (Verdict::LetIn, "let_in"),
    (Verdict::KeptShut, "kept_shut"),
    (Verdict::Nobody, "nobody"),
    (Verdict::Overruled, "overruled"),
];
const FAULTS: [(Fault, &str); 8] = [
    (Fault::RelockFailed, "relock_failed"),
    (Fault::ForcedOpen, "forced_open"),
    (Fault::LatchJammed, "latch_jammed"),
    (Fault::LatchSilent, "latch_silent"),
    (Fault::CameraLost, "camera_lost"),
    (Fault::PictureUseless, "picture_useless"),
    (Fault::VisionFailed, "vision_failed"),
    (Fault::JournalFailed, "journal_failed"),
];
const POSITIONS: [(Position, &str); 5] = [
    (Position::Locked, "locked"),
    (Position::Unlocked, "unlocked"),
    (Position::Moving, "moving"),
    (Position::Jammed, "jammed"),
    (Position::Unknown, "unknown"),
];

#[derive(Debug, Default)]
struct Histogram {
    /// How many were within each bound; the last: beyond all.
    buckets: [AtomicU64; BOUNDS_MS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn add(&self, took: Duration) {
        let ms = took.as_secs_f64() * 1e3;
        let bucket = BOUNDS_MS.iter().position(|bound| ms <= *bound as f64);
        self.buckets[bucket.unwrap_or(BOUNDS_MS.len())].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, label: &str) {
        let comma = if label.is_empty() { "" } else { "," };
        let mut total = 0;
        for (count, bound) in self.buckets.iter().zip(BOUNDS_MS) {
            total += count.load(Ordering::Relaxed);
            let le = bound as f64 / 1e3;
            let _ = writeln!(text, "{name}_bucket{{{label}{comma}le=\"{le}\"}} {total}");
        }
        total += self.buckets[BOUNDS_MS.len()].load(Ordering::Relaxed);
        let _ = writeln!(text, "{name}_bucket{{{label}{comma}le=\"+Inf\"}} {total}");
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let braces = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
        let _ = writeln!(text, "{name}_sum{braces} {sum}\n{name}_count{braces} {total}");
    }
}

/// Counters of what happened, histograms of how long it took.
#[derive(Debug, Default)]
pub struct Metrics {
    stages: [Histogram; STAGES.len()],
    decision: Histogram,
    opens: [AtomicU64; WHOM.len()],
    refusals: [AtomicU64; Class::ALL.len()],
    visits: [AtomicU64; VERDICTS.len()],
    faults: [AtomicU64; FAULTS.len()],
    frames: AtomicU64,
    newest: AtomicU64,
}

impl Metrics {
    /// A stage of perception took `took`.
    pub fn lap(&self, stage: Stage, took: Duration) {
        if let Some(n) = STAGES.iter().position(|(known, _)| *known == stage) {
            self.stages[n].add(took);
        }
    }

    /// The door was seen.
    pub fn glance(&self, glance: &Glance) {
        let Some(frame) = &glance.frame else { return };
        let at = frame.captured_at().as_millis();
        if self.newest.swap(at, Ordering::Relaxed) != at {
            self.frames.fetch_add(1, Ordering::Relaxed);
            self.decision.add(glance.at.since(frame.captured_at()));
        }
    }

    /// Something happened.
    pub fn event(&self, event: &Event) {
        let count = |counters: &[AtomicU64], n: Option<usize>| {
            if let Some(counter) = n.and_then(|n| counters.get(n)) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        };
        match event.what {
            What::Opened { whom } => {
                count(&self.opens, WHOM.iter().position(|(known, _)| *known == whom));
            }
            What::Refused { class } => count(&self.refusals, Some(class as usize)),
            What::ApproachEnded { verdict } => {
                count(&self.visits, VERDICTS.iter().position(|(known, _)| *known == verdict));
            }
            What::FaultRaised { cause } => {
                count(&self.faults, FAULTS.iter().position(|(known, _)| *known == cause));
            }
            _ => {}
        }
    }
}

/// Everything as text, format version 0.0.4.
pub fn text(house: &House) -> String {
    let metrics = &house.metrics;
    let mut text = String::new();
    head(&mut text, "stage_seconds", "histogram", "Time of a stage of perception.");
    for ((_, name), histogram) in STAGES.iter().zip(&metrics.stages) {
        histogram.write(&mut text, "pawlatch_stage_seconds", &format!("stage=\"{name}\""));
    }
    let about = "Time from a frame's capture to the first decision after it.";
    head(&mut text, "decision_seconds", "histogram", about);
    metrics.decision.write(&mut text, "pawlatch_decision_seconds", "");
    let about = "Times the latch was told to unlock.";
    counters(&mut text, "opens_total", about, "whom", &WHOM.map(|w| w.1), &metrics.opens);
    let about = "Times the door was kept shut for something.";
    let classes = Class::ALL.map(Class::name);
    counters(&mut text, "refusals_total", about, "class", &classes, &metrics.refusals);
    let verdicts = VERDICTS.map(|v| v.1);
    counters(&mut text, "visits_total", "Visits over.", "verdict", &verdicts, &metrics.visits);
    let causes = FAULTS.map(|f| f.1);
    counters(&mut text, "faults_total", "Faults raised.", "cause", &causes, &metrics.faults);
    head(&mut text, "frames_total", "counter", "Frames that were looked at or gated away.");
    let _ = writeln!(text, "pawlatch_frames_total {}", metrics.frames.load(Ordering::Relaxed));
    head(&mut text, "missed_events_total", "counter", "Events these figures are missing.");
    let _ = writeln!(text, "pawlatch_missed_events_total {}", house.board.missed());
    if let Some(glance) = house.board.now() {
        seen(&mut text, &glance, house);
    }
    machine(&mut text, house.clock.now());
    text
}

fn head(text: &mut String, name: &str, kind: &str, about: &str) {
    let _ = writeln!(text, "# HELP pawlatch_{name} {about}\n# TYPE pawlatch_{name} {kind}");
}

fn counters(
    text: &mut String,
    name: &str,
    about: &str,
    label: &str,
    values: &[&str],
    counters: &[AtomicU64],
) {
    head(text, name, "counter", about);
    for (value, counter) in values.iter().zip(counters) {
        let count = counter.load(Ordering::Relaxed);
        let _ = writeln!(text, "pawlatch_{name}{{{label}=\"{value}\"}} {count}");
    }
}

fn gauge(text: &mut String, name: &str, about: &str, value: f64) {
    head(text, name, "gauge", about);
    let _ = writeln!(text, "pawlatch_{name} {value}");
}

fn seen(text: &mut String, glance: &Glance, house: &House) {
    head(text, "latch_position", "gauge", "1 for what the latch was seen to be.");
    let position = glance.position(house.silent_after());
    for (known, name) in POSITIONS {
        let is = u8::from(known == position);
        let _ = writeln!(text, "pawlatch_latch_position{{position=\"{name}\"}} {is}");
    }
    head(text, "state", "gauge", "1 for the state of the decision.");
    let _ = writeln!(text, "pawlatch_state{{state=\"{}\"}} 1", glance.state.name());
    let Some(frame) = &glance.frame else { return };
    let age = house.clock.now().since(frame.captured_at()).as_secs_f64();
    gauge(text, "frame_age_seconds", "Age of the newest frame.", age);
    let health = glance.sightings.as_ref().map(|s| s.health);
    let good = f64::from(u8::from(health == Some(PictureHealth::Good)));
    gauge(text, "picture_good", "Whether the newest picture can be trusted.", good);
}

fn machine(text: &mut String, up: Uptime) {
    gauge(text, "uptime_seconds", "Time since the program started.", up.as_millis() as f64 / 1e3);
    if let Some(celsius) = temperature() {
        gauge(text, "temperature_celsius", "Temperature of the processor.", celsius);
    }
    if let Some(bytes) = memory() {
        gauge(text, "memory_bytes", "Memory of this program (resident).", bytes as f64);
    }
}

/// The processor's temperature in degrees Celsius, where the system tells it.
pub fn temperature() -> Option<f64> {
    let text = fs::read_to_string("/sys/class/thermal/thermal_zone0/temp").ok()?;
    text.trim().parse::<f64>().ok().map(|milli| milli / 1e3)
}

/// Resident memory of this program, bytes.
pub fn memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kb| kb * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_each_value_in_its_bucket_and_all_above() {
        let histogram = Histogram::default();
        for ms in [1, 3, 3, 700, 60_000] {
            histogram.add(Duration::from_millis(ms));
        }
        let mut text = String::new();
        histogram.write(&mut text, "x", "a=\"b\"");
        assert!(text.contains("x_bucket{a=\"b\",le=\"0.001\"} 1\n"), "{text}");
        assert!(text.contains("x_bucket{a=\"b\",le=\"0.005\"} 3\n"), "{text}");
        assert!(text.contains("x_bucket{a=\"b\",le=\"5\"} 4\n"), "{text}");
        assert!(text.contains("x_bucket{a=\"b\",le=\"+Inf\"} 5\n"), "{text}");
        assert!(text.contains("x_sum{a=\"b\"} 60.707\nx_count{a=\"b\"} 5\n"), "{text}");
    }
}
