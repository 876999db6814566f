//! The appliance as a whole, in virtual time: what must hold of it whatever goes wrong.

mod support;

use std::time::Duration;

use jiff::ZonedDateTime;
use jiff::civil::date;
use pawlatch::appliance::Sample;
use pawlatch::config::Config;
use pawlatch::journal::{Entry, Replayed};
use pawlatch::latch::{LatchPort, Leased, SimulatedLatch, SimulatedSettings};
use pawlatch_core::door::{DesiredLatch, JournalHealth, Position, Request, VisionHealth};
use pawlatch_core::event::{Fault, What};
use pawlatch_core::frame::{Frame, PictureHealth, PictureWatch};
use pawlatch_core::sight::{Class, Sightings};
use pawlatch_core::units::{Score, Uptime};
use support::{World, frame_with, seeing, sure};

const SECOND: Duration = Duration::from_secs(1);

fn dog() -> Vec<pawlatch_core::sight::Sighting> {
    vec![sure(Class::Dog, false)]
}

#[test]
fn a_dog_is_let_in_and_the_door_locks_behind_it() {
    let mut world = World::idle();
    world.play(2 * SECOND, |now| seeing(now, dog()));
    assert_eq!((world.openings(), world.state()), (1, "open"));
    assert_eq!(world.bolt(), Some(Position::Unlocked));
    world.play(20 * SECOND, |now| seeing(now, Vec::new()));
    assert_eq!((world.openings(), world.state()), (1, "idle"));
    assert_eq!(world.bolt(), Some(Position::Locked));
}

#[test]
fn a_stale_frame_keeps_it_locked() {
    let mut world = World::idle();
    // Frames come, but each is older than its limit when it arrives.
    world.play(4 * SECOND, |now| {
        let old = frame_with(now - Duration::from_millis(1_500), dog());
        Sample { sightings: Some(old), ..Sample::default() }
    });
    world.kept_shut_because("no fresh frame");
    world.play(6 * SECOND, |_| Sample::default());
    assert_eq!(world.fault(), Some(Fault::CameraLost));
    // A frame from the future is no frame either.
    let mut world = World::idle();
    world.play(4 * SECOND, |now| Sample {
        sightings: Some(frame_with(now + SECOND, dog())),
        ..Sample::default()
    });
    world.kept_shut_because("no fresh frame");
}

/// Judges `paint`ed frames at 10 a second for `span`; a dog is claimed to be in each.
fn with_pictures(world: &mut World, span: Duration, paint: impl Fn(u64, usize) -> u8) {
    let mut watch = PictureWatch::default();
    let mut n = 0;
    world.play(span, |now| {
        if !now.as_millis().is_multiple_of(100) {
            return Sample::default();
        }
        n += 1;
        let pixels: Vec<u8> = (0..160 * 120 * 3).map(|i| paint(n, i)).collect();
        let health = watch.judge(&Frame::from_rgb(pixels, 160, 120, now).unwrap());
        let looked = health == PictureHealth::Good;
        let seen = if looked { dog() } else { Vec::new() };
        let sightings = Sightings { captured_at: now, health, motion: Score::ONE, looked, seen };
        Sample { sightings: Some(sightings), ..Sample::default() }
    });
}

/// Sharp blocks, as a scene has.
fn scene(i: usize) -> u8 {
    let (x, y) = (i / 3 % 160, i / 480);
    (40 + x / 20 * 15 + y / 30 * 20 + x / 8) as u8
}

fn noise(n: u64, i: usize) -> u8 {
    let mut v = (i as u32 / 3).wrapping_mul(0x9e37_79b9) ^ (n as u32).wrapping_mul(0x85eb_ca6b);
    v ^= v >> 15;
    v = v.wrapping_mul(0x2c1b_3c6d);
    (v >> 13) as u8
}

#[test]
fn a_black_white_noisy_or_covered_picture_keeps_it_locked_and_becomes_a_fault() {
    type Paint = fn(u64, usize) -> u8;
    let pictures: [(Paint, &str); 4] = [
        (|n, i| u8::from(i as u64 % 50 == n), "black"),
        (|n, i| 255 - u8::from(i as u64 % 50 == n), "burnt out"),
        (noise, "only noise"),
        (|n, i| 120 + u8::from(i as u64 % 50 == n), "shows nothing"),
    ];
    for (paint, reason) in pictures {
        let mut world = World::idle();
        with_pictures(&mut world, 3 * SECOND, paint);
        world.kept_shut_because(reason);
        with_pictures(&mut world, 4 * SECOND, paint);
        assert_eq!(world.fault(), Some(Fault::PictureUseless), "{reason}");
        // The lens is cleaned: decisions go on.
        with_pictures(&mut world, 3 * SECOND, |n, i| scene(i).wrapping_add((n % 3) as u8));
        assert_eq!(world.openings(), 1, "{reason}");
    }
}

#[test]
fn the_same_frame_repeated_for_two_seconds_shuts_it() {
    let mut world = World::idle();
    with_pictures(&mut world, 4 * SECOND, |_, i| scene(i));
    let last = world.decisions.last().unwrap();
    assert_eq!(last.latch, DesiredLatch::Locked);
    assert!(last.missing().any(|m| m.contains("stands still")), "{last:?}");
}

#[test]
fn a_cat_before_the_dog_or_beside_it_keeps_it_locked() {
    let mut world = World::idle();
    world.play(SECOND, |now| seeing(now, vec![sure(Class::Cat, true)]));
    world
        .play(3 * SECOND, |now| seeing(now, vec![sure(Class::Cat, true), sure(Class::Dog, false)]));
    world.kept_shut_because("a cat is in view");
    // The cat has gone behind the bush; it is remembered.
    world.play(3 * SECOND, |now| seeing(now, dog()));
    world.kept_shut_because("a cat was here");
    assert_eq!(world.state(), "refused");
    world.play(12 * SECOND, |now| seeing(now, dog()));
    assert_eq!(world.openings(), 0, "it has been in view ever since, and may be that cat");
    world.play(18 * SECOND, |now| seeing(now, dog()));
    assert_eq!(world.openings(), 1, "the memory ends");
}

#[test]
fn a_dog_with_a_person_stays_outside() {
    let mut world = World::idle();
    let both = || vec![sure(Class::Person, true), sure(Class::Dog, false)];
    world.play(4 * SECOND, |now| seeing(now, both()));
    world.kept_shut_because("a person is in view");
    let config = Config::load_with(None, [("PAWLATCH__DOOR__PERSON_VETOES", "false")]).unwrap();
    let mut world = World::starting(&config, JournalHealth::Writable);
    world.play(4 * SECOND, |now| seeing(now, both()));
    assert_eq!(world.openings(), 1, "unless the owner wants otherwise");
}

#[test]
fn a_clock_jump_of_a_year_either_way_suspends_only_what_needs_the_clock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pawlatch.toml");
    let rules = "[[policy.rules]]\nname = \"dogs by day\"\nwho = \"dog\"\neffect = \"allow\"\n\
                 when = { from = \"06:00\", to = \"22:00\" }\n";
    std::fs::write(&path, rules).unwrap();
    let by_day = Config::load_with(Some(&path), []).unwrap();
    let noon = date(2026, 11, 24).at(12, 0, 0, 0).in_tz("Europe/Berlin").unwrap();
    let wall = |now: Uptime, years: i64| -> ZonedDateTime {
        let at = noon.checked_add(now.since(Uptime::ZERO)).unwrap();
        at.checked_add(jiff::Span::new().years(years)).unwrap()
    };
    let clocked = |now: Uptime, years: i64, seen| Sample {
        wall: Some(wall(now, years)),
        ..seeing(now, seen)
    };
    for years in [-1, 1] {
        let mut world = World::starting(&by_day, JournalHealth::Writable);
        world.play(3 * SECOND, |now| clocked(now, 0, Vec::new()));
        assert_eq!(world.state(), "idle");
        world.play(4 * SECOND, |now| clocked(now, years, dog()));
        world.kept_shut_because("the clock cannot be trusted");
        // After it has run evenly for ten minutes it is trusted again.
        world.play(Duration::from_secs(601), |now| clocked(now, years, Vec::new()));
        world.play(3 * SECOND, |now| clocked(now, years, dog()));
        assert_eq!(world.openings(), 1);
        // Rules that need no clock go on through a jump.
        let mut world = World::idle();
        world.play(3 * SECOND, |now| {
            let jumped = if now > Uptime::from_millis(1_500) { years } else { 0 };
            clocked(now, jumped, dog())
        });
        assert_eq!(world.openings(), 1);
    }
}

#[test]
fn an_unwritable_journal_keeps_it_locked_unless_the_owner_does_not_mind() {
    let mut world = World::starting(&Config::default(), JournalHealth::Failed);
    world.play(4 * SECOND, |now| seeing(now, dog()));
    world.kept_shut_because("nothing can be recorded");
    assert_eq!(world.fault(), Some(Fault::JournalFailed));
    world.play(SECOND, |now| {
        let request = (now.as_millis() % 1_000 == 50).then_some(Request::OpenOnce);
        Sample { request, ..seeing(now, Vec::new()) }
    });
    assert_eq!(world.openings(), 1, "the owner may still pass");
    let config = Config::load_with(None, [("PAWLATCH__JOURNAL__REQUIRED", "false")]).unwrap();
    let mut world = World::starting(&config, JournalHealth::Failed);
    world.play(4 * SECOND, |now| seeing(now, dog()));
    assert_eq!(world.openings(), 1);
}

#[test]
fn networks_that_fail_keep_it_locked() {
    let mut world = World::idle();
    world.play(4 * SECOND, |now| Sample { vision: VisionHealth::Failed, ..seeing(now, dog()) });
    world.kept_shut_because("the networks cannot be run");
    assert_eq!(world.fault(), Some(Fault::VisionFailed));
}

#[test]
fn two_failed_relocks_latch_a_fault_that_only_the_owner_ends() {
    let mut world = World::idle();
    world.play(2 * SECOND, |now| seeing(now, dog()));
    assert_eq!(world.state(), "open");
    // Something is in the bolt's way from now on.
    world.latch.0.lock().unwrap().set_stuck(true);
    world.play(30 * SECOND, |now| seeing(now, Vec::new()));
    assert_eq!(world.fault(), Some(Fault::RelockFailed));
    let failed = |e: &&pawlatch_core::event::Event| matches!(e.what, What::RelockFailed { .. });
    let failures = world.decisions.iter().flat_map(|d| &d.events).filter(failed).count();
    assert_eq!(failures, 2);
    assert_eq!(world.decisions.last().unwrap().latch, DesiredLatch::Locked);
    // Freed, the bolt goes home; but it may stick again, so the fault stays.
    world.latch.0.lock().unwrap().set_stuck(false);
    world.play(15 * SECOND, |now| seeing(now, dog()));
    assert_eq!(world.bolt(), Some(Position::Locked));
    assert_eq!((world.fault(), world.openings()), (Some(Fault::RelockFailed), 1));
    let mut asked = false;
    world.play(3 * SECOND, |now| {
        let request = (!asked).then_some(Request::Release);
        asked = true;
        Sample { request, ..seeing(now, dog()) }
    });
    assert_eq!(world.openings(), 2);
}

#[test]
fn an_appliance_that_is_no_longer_stepped_is_locked_when_the_lease_is_over() {
    let config = Config::default();
    let mut leased = Leased::new(
        Box::new(SimulatedLatch::new(SimulatedSettings::default())),
        config.latch.lease,
    );
    let mut world = World::idle();
    world.play(2 * SECOND, |now| seeing(now, dog()));
    let last = world.decisions.last().unwrap().clone();
    let DesiredLatch::UnlockedUntil(until) = last.latch else { panic!("not open: {last:?}") };
    assert!(until.since(last.at) <= config.door.lease);
    leased.command(last.at, last.latch);
    // From here on nobody says anything; only the dead-man steps.
    let mut now = last.at;
    while now < until + SECOND {
        now = now + Duration::from_millis(20);
        let report = leased.step(now, None).unwrap();
        let home = until + Duration::from_millis(150 + 20 + 20);
        assert!(now < home || report.position == Position::Locked, "{now}: {report:?}");
    }
}

#[test]
fn a_recorded_approach_replays_to_byte_identical_decisions() {
    let mut world = World::idle();
    world.play(SECOND, |now| seeing(now, vec![sure(Class::Other, true)]));
    world.play(2 * SECOND, |now| seeing(now, dog()));
    world.play(20 * SECOND, |now| seeing(now, Vec::new()));
    let entries = &world.appliance.recorder().entries;
    let recordings: Vec<&String> = entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Recording { text, .. } => Some(text),
            _ => None,
        })
        .collect();
    assert_eq!(recordings.len(), 1);
    let replayed = Replayed::play(recordings[0]).unwrap();
    assert_eq!(replayed.differs_at, None);
    let first = replayed.steps[0].1.at;
    let from = world.decisions.iter().position(|d| d.at == first).unwrap();
    let lived = &world.decisions[from..from + replayed.steps.len()];
    for ((_, again), lived) in replayed.steps.iter().zip(lived) {
        assert_eq!(serde_json::to_string(again).unwrap(), serde_json::to_string(lived).unwrap());
    }
    let opened = |d: &pawlatch_core::door::Decision| {
        d.events.iter().any(|e| matches!(e.what, What::Opened { .. }))
    };
    assert_eq!(replayed.steps.iter().filter(|(_, d)| opened(d)).count(), 1);
}
