//! The live loop with its threads, in real time: whatever ends it, the latch is locked.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pawlatch::appliance::{self, Ended, Live, LookError, RunError, run, stop_on_signals};
use pawlatch::camera::{CameraError, FrameSource, Scene, SimulatedSource};
use pawlatch::clock::Clock;
use pawlatch::config::Config;
use pawlatch::journal::{Archive, Journal};
use pawlatch::latch::{self, LatchThread};
use pawlatch::panel::Panel;
use pawlatch_core::door::State;
use pawlatch_core::event::Fault;
use pawlatch_core::frame::Frame;
use pawlatch_core::sight::{Class, Sightings};
use support::{frame_with, sure};

const CHILD: &str = "PAWLATCH_LIVE_CHILD";

/// A configuration whose bolt and journal are in `dir`.
fn config(dir: &Path) -> Config {
    let path = |name: &str| dir.join(name).display().to_string();
    let (bolt, journal) = (path("bolt"), path("journal"));
    Config::load_with(
        None,
        [
            ("PAWLATCH__LATCH__STATE_PATH", bolt.as_str()),
            ("PAWLATCH__JOURNAL__DIR", journal.as_str()),
            ("PAWLATCH__DOOR__CAMERA_LOST_AFTER_MS", "1000"),
        ],
    )
    .unwrap()
}

fn bolt(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("bolt")).unwrap_or_default()
}

/// Sees a dog in every frame.
fn a_dog(frame: &Frame) -> Result<Sightings, LookError> {
    Ok(frame_with(frame.captured_at(), vec![sure(Class::Dog, false)]))
}

fn live<F>(dir: &Path, source: Box<dyn FrameSource>, look: F) -> Live<F> {
    let config = config(dir);
    let clock = Clock::start();
    let latch = latch::open(&config.latch).unwrap();
    let latch = LatchThread::spawn(latch, config.latch.lease.clone(), clock).unwrap();
    Live {
        latch,
        keeper: appliance::keeper(&config, false, clock.now()),
        source,
        look,
        journal: Journal::start(config.journal.clone(), clock).unwrap(),
        intent_path: None,
        requests: appliance::requests().1,
        panel: Panel::none(),
        time_zone: config.time_zone,
        clock,
    }
}

fn yard(seconds: Option<u64>) -> Box<dyn FrameSource> {
    let scene = Scene { length: seconds.map(Duration::from_secs), ..Scene::yard() };
    Box::new(SimulatedSource::new(scene, 20.0))
}

#[test]
fn a_source_that_is_over_ends_the_run_in_good_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = false;
    let ended = run(live(dir.path(), yard(Some(3)), a_dog), &AtomicBool::new(false), |moment| {
        opened |= matches!(moment.decision.state, State::Open { .. });
    });
    assert_eq!(ended.unwrap(), Ended::SourceEnded);
    assert!(opened, "the dog was let in");
    assert_eq!(bolt(dir.path()), "locked");
    let archive = Archive::open(&dir.path().join("journal")).unwrap();
    let approaches = archive.approaches(9).unwrap();
    assert_eq!(approaches.len(), 1);
    assert!(approaches[0].recording.is_some(), "kept as far as it got");
    assert!(!approaches[0].pictures.is_empty());
}

#[test]
fn a_thread_that_panics_ends_the_run_locked() {
    let dir = tempfile::tempdir().unwrap();
    let mut looks = 0;
    let look = move |frame: &Frame| {
        looks += 1;
        if looks > 30 {
            std::panic::resume_unwind(Box::new("the networks panic"));
        }
        a_dog(frame)
    };
    let mut opened = false;
    let ended = run(live(dir.path(), yard(None), look), &AtomicBool::new(false), |moment| {
        opened |= matches!(moment.decision.state, State::Open { .. });
    });
    assert!(matches!(ended, Err(RunError::Thread { thread: "perception" })), "{ended:?}");
    assert!(opened);
    assert_eq!(bolt(dir.path()), "locked");
}

#[test]
fn a_camera_that_fails_ends_the_run_locked() {
    struct Failing(Box<dyn FrameSource>, u32);
    impl FrameSource for Failing {
        fn next(&mut self) -> Result<Option<Frame>, CameraError> {
            self.1 += 1;
            if self.1 > 30 { Err(CameraError::Unset) } else { self.0.next() }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let source = Box::new(Failing(yard(None), 0));
    let ended = run(live(dir.path(), source, a_dog), &AtomicBool::new(false), |_| {});
    assert!(matches!(ended, Err(RunError::Camera(_))), "{ended:?}");
    assert_eq!(bolt(dir.path()), "locked");
}

#[test]
fn networks_that_hang_or_fail_lock_the_door_with_their_reason() {
    for hang in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut looks = 0;
        let look = move |frame: &Frame| {
            looks += 1;
            match looks {
                0..=30 => a_dog(frame),
                _ if hang => {
                    std::thread::sleep(Duration::from_secs(4));
                    a_dog(frame)
                }
                _ => Err("the network gives NaN".into()),
            }
        };
        let stop = AtomicBool::new(false);
        let started = Instant::now();
        let mut causes = Vec::new();
        let ended = run(live(dir.path(), yard(None), look), &stop, |moment| {
            if let State::Fault { cause, .. } = moment.decision.state
                && causes.last() != Some(&cause)
            {
                causes.push(cause);
            }
            let over = !causes.is_empty() || started.elapsed() > Duration::from_secs(15);
            stop.store(over, Ordering::SeqCst);
        });
        assert_eq!(ended.unwrap(), Ended::Stopped);
        let wanted = if hang { Fault::CameraLost } else { Fault::VisionFailed };
        assert_eq!(causes, [wanted]);
        assert_eq!(bolt(dir.path()), "locked");
    }
}

/// Not a test by itself: the door with a dog before it, until a signal ends it.
#[test]
fn child_lets_the_dog_in_until_it_is_ended() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let stop = stop_on_signals().unwrap();
    let ended = run(live(&dir, yard(None), a_dog), &stop, |_| {}).unwrap();
    std::fs::write(dir.join("ended"), format!("{ended:?}")).unwrap();
}

fn child(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_lets_the_dog_in_until_it_is_ended", "--test-threads=1"])
        .env(CHILD, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn wait_for_bolt(dir: &Path, wanted: &str) {
    let started = Instant::now();
    while bolt(dir) != wanted {
        assert!(started.elapsed() < Duration::from_secs(20), "the bolt is never {wanted}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn sigterm_locks_and_ends_well() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path());
    wait_for_bolt(dir.path(), "unlocked");
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    assert_eq!(bolt(dir.path()), "locked");
    assert_eq!(std::fs::read_to_string(dir.path().join("ended")).unwrap(), "Stopped");
}

#[test]
fn sigkill_at_any_point_leaves_the_next_start_locked() {
    let dir = tempfile::tempdir().unwrap();
    let mut found_unlocked = 0;
    for round in 0..6_u64 {
        let mut child = child(dir.path());
        if round % 2 == 0 {
            // At the worst moment there is.
            wait_for_bolt(dir.path(), "unlocked");
        } else {
            std::thread::sleep(Duration::from_millis(round * 173 % 900));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        found_unlocked += u32::from(bolt(dir.path()) == "unlocked");
        // The next start: the latch is the first thing that is touched.
        let config = config(dir.path());
        let clock = Clock::start();
        let latch = latch::open(&config.latch).unwrap();
        let thread = LatchThread::spawn(latch, config.latch.lease.clone(), clock).unwrap();
        wait_for_bolt(dir.path(), "locked");
        let keeper = appliance::keeper(&config, false, clock.now());
        assert_eq!(keeper.door().state().name(), "starting");
        drop(thread);
        // And what systemd runs when the program has died.
        std::fs::write(dir.path().join("bolt"), "unlocked").unwrap();
        let mut latch = latch::open(&config.latch).unwrap();
        latch::lock(latch.as_mut(), config.door.relock_within, clock).unwrap();
        assert_eq!(bolt(dir.path()), "locked");
    }
    assert!(found_unlocked >= 3, "the kill never came at the worst moment");
}
