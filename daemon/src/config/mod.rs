//! The configuration: what the owner writes, checked and turned once into the settings of each
//! part. Defaults, then the file, then the environment.

mod hardware;
mod keys;
mod layers;
mod owner;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;
use pawlatch_core::door::DoorSettings;
use pawlatch_core::gate::GateSettings;
use pawlatch_core::policy::Policy;
use pawlatch_core::track::{ErrorBudget, TrackSettings};
use pawlatch_core::units::Score;
use pawlatch_core::vision::Precision;

pub use keys::{documentation, sample};
pub use layers::ConfigError;
pub use owner::{OWNER_FILE, OwnersWish, WishedApproach, WishedPolicy};

use crate::appliance::TICK;
use crate::camera::CameraSettings;
use crate::journal::JournalSettings;
use crate::latch::LatchSettings;
use crate::owner::OwnerSettings;
use crate::panel::PanelSettings;
use hardware::Hardware;
use keys::Keys;
use layers::Layers;

/// Everything that can be set, valid as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where pictures come from.
    pub camera: CameraSettings,
    /// Which networks look at them.
    pub models: ModelSettings,
    /// The motion gate.
    pub gate: GateSettings,
    /// Tracks and their evidence.
    pub tracks: TrackSettings,
    /// The decision.
    pub door: DoorSettings,
    /// The latch and its dead-man.
    pub latch: LatchSettings,
    /// Button, beam, light.
    pub panel: PanelSettings,
    /// Who may pass when.
    pub policy: Policy,
    /// The zone of the policy's schedules.
    pub time_zone: TimeZone,
    /// What is recorded, and where.
    pub journal: JournalSettings,
    /// The owner's surfaces: page, broker, messages.
    pub owner: OwnerSettings,
    /// How models and the program are replaced.
    pub update: UpdateSettings,
    /// Filter of the log in the notation of `tracing`.
    pub log_filter: String,
}

/// Which networks look at the pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    /// Directory with one directory per model.
    pub dir: PathBuf,
    /// Name of the classifier; `None` leaves it to `active.toml`.
    pub classifier: Option<String>,
    /// Name of the detector; `None` leaves it to `active.toml`.
    pub detector: Option<String>,
    /// Threads that the networks run on; `None`: one fewer than the processor has cores.
    pub threads: Option<NonZeroUsize>,
    /// What the networks compute with.
    pub precision: Precision,
}

impl ModelSettings {
    /// Starts the threads that the networks run on. Whole inferences belong inside
    /// ([`rayon::ThreadPool::install`]), so that no layer waits for a thread to hop to.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub fn pool(&self) -> Result<rayon::ThreadPool, rayon::ThreadPoolBuildError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.map_or((cores - 1).max(1), usize::from);
        let name = |n| format!("networks {n}");
        rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build()
    }
}

/// How models and the program are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateSettings {
    /// Directory of downloaded programs.
    pub dir: PathBuf,
    /// Minisign public keys that are believed.
    pub public_keys: Vec<String>,
}

impl Config {
    /// The configuration in the file at `path` (defaults if `None`) and the environment.
    ///
    /// # Errors
    /// If the file cannot be read or parsed, a key is unknown, or a value is of the wrong kind,
    /// out of range or at odds with another. The error names the file, the key, what was given
    /// and what was expected.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::from_layers(&Layers::read_all(path, None)?)
    }

    /// As [`Config::load`], with these variables instead of the environment's.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_with<'a>(
        path: Option<&Path>,
        variables: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, ConfigError> {
        let variables = variables.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        Self::from_layers(&Layers::read_all(path, Some(variables))?)
    }

    /// As [`Config::load`], without what the owner changed on the page: it is about rules and
    /// approach only, and whoever locks the latch may not be allowed to read it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_without_wishes(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::from_layers(&Layers::read(path, None, None)?)
    }

    /// The latch alone, of a configuration whose other sections may be wrong: what must be locked
    /// does not depend on them.
    ///
    /// # Errors
    /// If the sections `latch` and `lines` cannot be used either.
    pub fn load_latch(path: Option<&Path>) -> Result<LatchSettings, ConfigError> {
        hardware::latch_alone(&Layers::read_only(path, &["latch", "lines"])?)
    }

    fn from_layers(layers: &Layers) -> Result<Self, ConfigError> {
        let keys = layers.keys()?;
        check_ranges(&keys, layers)?;
        check_together(&keys, layers)?;
        let hardware = Hardware::parse(&keys, layers)?;
        let time_zone = match keys.policy.time_zone.as_str() {
            "" => TimeZone::system(),
            name => TimeZone::get(name).map_err(|_| {
                layers.wrong("policy.time_zone", name, "a zone such as Europe/Berlin")
            })?,
        };
        let owner = owner::settings(&keys, layers)?;
        Ok(Self { time_zone, owner, ..Self::from_keys(keys, &hardware) })
    }

    /// The settings that follow from valid keys.
    fn from_keys(keys: Keys, hardware: &Hardware) -> Self {
        let budget = ErrorBudget {
            false_accept: keys.evidence.false_accept as f32,
            false_reject: keys.evidence.false_reject as f32,
        };
        let approach = polygon(&keys.approach.polygon);
        let optional = |name: String| (!name.is_empty()).then_some(name);
        let door = door_settings(&keys, budget);
        Self {
            camera: hardware.camera(&keys),
            panel: hardware.panel(&keys),
            latch: hardware.latch(&keys.latch, door.lease),
            models: ModelSettings {
                dir: keys.models.dir.into(),
                classifier: optional(keys.models.classifier),
                detector: optional(keys.models.detector),
                threads: NonZeroUsize::new(keys.models.threads as usize),
                precision: keys.models.precision.parse().unwrap_or_default(),
            },
            gate: GateSettings {
                approach: approach.clone(),
                masks: keys.approach.masks.iter().map(|mask| polygon(mask)).collect(),
                cell_change: keys.gate.cell_change as f32,
                min_motion: Score::clamped(keys.gate.min_motion as f32),
                linger: ms(keys.gate.linger_ms),
                patrol: ms(keys.gate.patrol_ms),
            },
            tracks: TrackSettings {
                budget,
                frame_cap: keys.evidence.frame_cap as f32,
                correlation: ms(keys.evidence.correlation_ms),
                forget_after: ms(keys.evidence.forget_after_ms),
                min_iou: keys.evidence.min_iou as f32,
                believe: Score::clamped(keys.evidence.believe as f32),
                believe_both: Score::clamped(keys.evidence.believe_both as f32),
                approach,
            },
            door,
            policy: Policy::new(keys.policy.rules),
            time_zone: TimeZone::system(),
            journal: JournalSettings {
                dir: keys.journal.dir.into(),
                budget_bytes: keys.journal.budget_mb * 1_000_000,
            },
            owner: OwnerSettings::default(),
            update: UpdateSettings {
                dir: keys.update.dir.into(),
                public_keys: keys.update.public_keys,
            },
            log_filter: keys.log.filter,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::from_keys(Keys::default(), &Hardware::default())
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn polygon(points: &[[f64; 2]]) -> Vec<(f32, f32)> {
    points.iter().map(|[x, y]| (*x as f32, *y as f32)).collect()
}

fn door_settings(keys: &Keys, budget: ErrorBudget) -> DoorSettings {
    let door = &keys.door;
    DoorSettings {
        budget,
        veto: door.veto as f32,
        doubt: door.doubt as f32,
        person_vetoes: door.person_vetoes,
        feedback: keys.latch.feedback,
        journal_required: keys.journal.required,
        fresh_for: ms(door.fresh_for_ms),
        camera_lost_after: ms(door.camera_lost_after_ms),
        picture_fault_after: ms(door.picture_fault_after_ms),
        latch_silent_after: ms(door.latch_silent_after_ms),
        lease: ms(door.lease_ms),
        open_for: ms(door.open_for_ms),
        pass_for: ms(door.pass_for_ms),
        clear_for: ms(door.clear_for_ms),
        relock_within: ms(door.relock_within_ms),
        refuse_for: ms(door.refuse_for_ms),
        calm_for: ms(door.calm_for_ms),
        hold_open_for: ms(door.hold_open_for_ms),
    }
}

/// Longest a duration may be: a day. Anything longer is a slip of the keyboard.
const LONGEST_MS: u64 = 86_400_000;

/// Each value by itself.
fn check_ranges(keys: &Keys, layers: &Layers) -> Result<(), ConfigError> {
    let wanted = |ok: bool, key: &str, given: &dyn ToString, expected: &str| {
        if ok { Ok(()) } else { Err(layers.wrong(key, &given.to_string(), expected)) }
    };
    let share = |key, value: f64| {
        wanted((0.0..=1.0).contains(&value), key, &value, "a share between 0 and 1")
    };
    let rate = |key, value: f64| {
        let ok = (1e-6..0.5).contains(&value);
        wanted(ok, key, &value, "a rate above 0 (at least 0.000001) and below 0.5")
    };
    let evidence = |key, value: f64| {
        wanted(
            value > 0.0 && value <= 20.0,
            key,
            &value,
            "a log-likelihood ratio above 0, up to 20",
        )
    };
    rate("evidence.false_accept", keys.evidence.false_accept)?;
    rate("evidence.false_reject", keys.evidence.false_reject)?;
    evidence("evidence.frame_cap", keys.evidence.frame_cap)?;
    evidence("door.veto", keys.door.veto)?;
    share("evidence.min_iou", keys.evidence.min_iou)?;
    share("evidence.believe", keys.evidence.believe)?;
    share("evidence.believe_both", keys.evidence.believe_both)?;
    share("door.doubt", keys.door.doubt)?;
    share("gate.min_motion", keys.gate.min_motion)?;
    let change = keys.gate.cell_change;
    wanted(change > 0.0 && change <= 255.0, "gate.cell_change", &change, "above 0, up to 255")?;
    let fps = keys.camera.fps;
    wanted((0.1..=120.0).contains(&fps), "camera.fps", &fps, "frames per second, 0.1 to 120")?;
    let budget = keys.journal.budget_mb;
    let expected = "megabytes, 1 to 1000000";
    wanted((1..=1_000_000).contains(&budget), "journal.budget_mb", &budget, expected)?;
    let unlocks = keys.latch.max_unlocks_per_minute;
    wanted((1..=600).contains(&unlocks), "latch.max_unlocks_per_minute", &unlocks, "1 to 600")?;
    let threads = keys.models.threads;
    wanted(threads <= 64, "models.threads", &threads, "a number of threads up to 64; 0 to choose")?;
    let name = &keys.models.precision;
    if let Err(names) = name.parse::<Precision>() {
        wanted(false, "models.precision", name, &names)?;
    }
    wanted(!keys.models.dir.is_empty(), "models.dir", &"nothing", "a directory")?;
    wanted(!keys.journal.dir.is_empty(), "journal.dir", &"nothing", "a directory")?;
    wanted(!keys.update.dir.is_empty(), "update.dir", &"nothing", "a directory")?;
    for (n, key) in keys.update.public_keys.iter().enumerate() {
        let ok = minisign_verify::PublicKey::from_base64(key).is_ok();
        let expected = "the second line of a minisign .pub file";
        wanted(ok, &format!("update.public_keys[{n}]"), key, expected)?;
    }
    let filter = &keys.log.filter;
    let known = filter.parse::<tracing_subscriber::filter::Targets>().is_ok();
    let expected = "error, warn, info, debug or trace; also module=level, separated by commas";
    wanted(known, "log.filter", filter, expected)?;
    check_polygon("approach.polygon", &keys.approach.polygon, true, layers)?;
    for (n, mask) in keys.approach.masks.iter().enumerate() {
        check_polygon(&format!("approach.masks[{n}]"), mask, false, layers)?;
    }
    for (key, value) in layers.durations() {
        wanted(value <= LONGEST_MS, &key, &value, "at most 86400000 (a day)")?;
    }
    Ok(())
}

fn check_polygon(
    key: &str,
    points: &[[f64; 2]],
    may_be_empty: bool,
    layers: &Layers,
) -> Result<(), ConfigError> {
    if points.is_empty() && may_be_empty {
        return Ok(());
    }
    if points.len() < 3 {
        let given = format!("{} points", points.len());
        return Err(layers.wrong(key, &given, "a polygon of at least 3 points [x, y]"));
    }
    let outside = points.iter().find(|p| !p.iter().all(|v| (0.0..=1.0).contains(v)));
    match outside {
        Some(point) => {
            let expected = "points in fractions of the picture, each between 0 and 1";
            Err(layers.wrong(key, &format!("the point {point:?}"), expected))
        }
        None => Ok(()),
    }
}

/// Values against each other.
fn check_together(keys: &Keys, layers: &Layers) -> Result<(), ConfigError> {
    let door = &keys.door;
    let least = |key: &str, value: u64, least: u64, why: &str| {
        if value >= least {
            Ok(())
        } else {
            Err(layers.wrong(key, &value.to_string(), &format!("at least {least} ({why})")))
        }
    };
    let tick = TICK.as_millis() as u64;
    least("door.lease_ms", door.lease_ms, 2 * tick, "two control periods")?;
    least("door.open_for_ms", door.open_for_ms, door.lease_ms + 1, "longer than door.lease_ms")?;
    least("door.pass_for_ms", door.pass_for_ms, door.lease_ms + 1, "longer than door.lease_ms")?;
    least("door.fresh_for_ms", door.fresh_for_ms, 2 * tick, "two control periods")?;
    let silent = door.latch_silent_after_ms;
    least("door.latch_silent_after_ms", silent, 4 * tick, "four control periods")?;
    if keys.latch.kind == "simulated" {
        let travel = keys.latch.travel_ms + keys.latch.feedback_delay_ms + 2 * tick;
        let why = "as long as the latch travels";
        least("door.relock_within_ms", door.relock_within_ms, travel, why)?;
    }
    let lost = door.camera_lost_after_ms;
    least("door.camera_lost_after_ms", lost, door.fresh_for_ms, "door.fresh_for_ms")?;
    least("door.hold_open_for_ms", door.hold_open_for_ms, door.lease_ms + 1, "the lease")?;
    let frame = (1_000.0 / keys.camera.fps).ceil() as u64;
    least("door.fresh_for_ms", door.fresh_for_ms, frame, "the time between frames at camera.fps")
}

#[cfg(test)]
mod tests;
