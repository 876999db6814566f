use std::fs;
use std::path::PathBuf;

use super::*;

pub(super) fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pawlatch.toml");
    fs::write(&path, text).unwrap();
    Config::load_with(Some(&path), [])
}

/// The error of `text` must contain all of `parts`.
#[track_caller]
pub(super) fn refuses(text: &str, parts: &[&str]) {
    let error = load(text).expect_err(text);
    let mut told = error.to_string();
    if let Some(source) = std::error::Error::source(&error) {
        told = format!("{told}: {source}");
    }
    for part in parts {
        assert!(told.contains(part), "{part:?} is missing in {told:?}");
    }
}

fn kept_file(name: &str, made: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, made).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap();
    assert!(kept == made, "{name} is out of date: run the tests with UPDATE=1 set");
}

#[test]
fn the_sample_file_is_the_defaults() {
    kept_file("deploy/pawlatch.toml", &sample());
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/pawlatch.toml");
    let loaded = Config::load_with(Some(&path), []).unwrap();
    assert_eq!(loaded, Config::default());
    assert_eq!(Config::load_with(None, []).unwrap(), Config::default());
}

#[test]
fn the_documentation_is_made_from_the_keys() {
    kept_file("docs/configuration.md", &documentation());
}

#[test]
fn the_defaults_are_those_of_the_core() {
    let config = Config::default();
    assert_eq!(config.door, DoorSettings::default());
    assert_eq!(config.tracks, TrackSettings::default());
    assert_eq!(config.gate, GateSettings::default());
    assert_eq!(config.policy, Policy::default());
}

#[test]
fn the_networks_run_on_as_many_threads_as_asked_for_and_else_leave_a_core_free() {
    let pool = load("[models]\nthreads = 3").unwrap().models.pool().unwrap();
    assert_eq!(pool.current_num_threads(), 3);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = Config::default().models.pool().unwrap();
    assert_eq!(pool.current_num_threads(), (cores - 1).max(1));
}

#[test]
fn the_environment_beats_the_file_and_the_file_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pawlatch.toml");
    fs::write(&path, "[door]\nopen_for_ms = 9000\npass_for_ms = 9500\n").unwrap();
    let variables = [("PAWLATCH__DOOR__OPEN_FOR_MS", "7000"), ("PAWLATCH__MODELS__DETECTOR", "12")];
    let config = Config::load_with(Some(&path), variables).unwrap();
    assert_eq!(config.door.open_for, Duration::from_millis(7_000));
    assert_eq!(config.door.pass_for, Duration::from_millis(9_500));
    assert_eq!(config.door.lease, DoorSettings::default().lease);
    assert_eq!(config.models.detector.as_deref(), Some("12"));
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest() {
    refuses("[door]\nopn_for_ms = 1", &["pawlatch.toml", "door.opn_for_ms", "`open_for_ms`"]);
    refuses("[dor]\nopen_for_ms = 1", &["`dor`", "`door`"]);
    refuses("[camera]\nopen_for_ms = 1", &["camera.open_for_ms", "belongs in [door]"]);
    refuses("[camera]\nxyzzy = 1", &["there are:", "source"]);
    refuses("[policy]\nrules = [{ nam = \"x\" }]", &["policy.rules"]);
}

#[test]
fn a_wrong_unit_is_answered_with_the_right_one() {
    refuses("[door]\nopen_for_s = 8", &["door.open_for_s", "`open_for_ms`, in milliseconds"]);
    refuses("[door]\nopen_for = 8", &["`open_for_ms`, in milliseconds"]);
    refuses("[journal]\nbudget_gb = 8", &["`budget_mb`, in megabytes"]);
}

#[test]
fn a_wrong_kind_is_named() {
    refuses("[door]\nopen_for_ms = \"soon\"", &["door.open_for_ms", "\"soon\"", "whole number"]);
    refuses("[door]\nopen_for_ms = 8.5", &["8.5", "a whole number of milliseconds"]);
    refuses("[door]\nopen_for_ms = -1", &["-1", "whole number"]);
    refuses("[door]\nperson_vetoes = 1", &["true or false"]);
    refuses("door = 1", &["`door`", "a section"]);
    refuses("[evidence]\nfalse_accept = nan", &["evidence.false_accept"]);
    refuses("[door\n", &["pawlatch.toml", "not valid TOML", "line 1"]);
}

#[test]
fn values_out_of_range_or_at_odds_are_refused() {
    refuses("[evidence]\nfalse_accept = 0", &["evidence.false_accept", "is 0;", "below 0.5"]);
    refuses("[evidence]\nfalse_reject = 0.5", &["evidence.false_reject"]);
    refuses("[door]\nlease_ms = 60", &["door.lease_ms", "at least 100"]);
    refuses("[door]\nopen_for_ms = 1000", &["door.open_for_ms", "at least 1001"]);
    refuses("[door]\nrelock_within_ms = 100", &["door.relock_within_ms", "at least 270"]);
    refuses("[door]\nopen_for_ms = 86400001", &["a day"]);
    refuses("[camera]\nfps = 0", &["camera.fps"]);
    refuses("[camera]\nfps = 0.5", &["door.fresh_for_ms", "at least 2000"]);
    refuses("[camera]\nsource = \"ftp:x\"", &["camera.source", "no such kind"]);
    refuses("[journal]\nbudget_mb = 0", &["journal.budget_mb"]);
    refuses("[models]\nthreads = 65", &["models.threads", "is 65;", "up to 64"]);
    let precision = "[models]\nprecision = \"int4\"";
    refuses(precision, &["models.precision", "int4", "auto, float or int8"]);
    refuses("[log]\nfilter = \"a=b=c\"", &["log.filter"]);
    refuses("[policy]\ntime_zone = \"Mars/Base\"", &["policy.time_zone", "Mars/Base"]);
    refuses("[approach]\npolygon = [[0, 0], [1, 1]]", &["approach.polygon", "2 points"]);
    refuses("[approach]\npolygon = [[0, 0], [2, 1], [0, 1]]", &["approach.polygon", "between"]);
    refuses("[approach]\nmasks = [[]]", &["approach.masks[0]", "0 points"]);
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load_with(Some(Path::new("/nowhere/p.toml")), []).unwrap_err();
    assert!(error.to_string().contains("/nowhere/p.toml"), "{error}");
}

#[test]
fn rules_with_schedules_are_read() {
    let text = "[policy]\ntime_zone = \"Europe/Berlin\"\n\
                [[policy.rules]]\nname = \"dogs\"\nwho = \"dog\"\neffect = \"allow\"\n\
                [[policy.rules]]\nname = \"night\"\nwho = \"dog\"\nways = [\"in\"]\n\
                effect = \"deny\"\nwhen = { from = \"22:00\", to = \"06:30\", days = [\"mon\"] }\n";
    let config = load(text).unwrap();
    let shown = serde_json::to_string(&config.policy).unwrap();
    assert!(shown.contains("night") && shown.contains("22:00"), "{shown}");
}
