use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use pawlatch_core::door::{DoorSettings, LatchReport, Position, VisionHealth};
use pawlatch_core::event::{Event, What};
use pawlatch_core::keeper::{Input, Keeper};
use pawlatch_core::policy::Policy;
use pawlatch_core::track::TrackSettings;

use super::*;
use crate::clock::Clock;

fn at(ms: u64) -> Uptime {
    Uptime::from_millis(ms)
}

fn settings(dir: &Path, budget_bytes: u64) -> JournalSettings {
    JournalSettings { dir: dir.to_owned(), budget_bytes }
}

fn event(ms: u64, what: What) -> Entry {
    Entry::Event(Event { at: at(ms), what })
}

fn picture(ms: u64) -> Entry {
    let pixels: Vec<u8> = (0..64 * 48 * 3).map(|i| (i * 7 % 251) as u8).collect();
    Entry::Picture(Frame::from_rgb(pixels, 64, 48, at(ms)).unwrap())
}

/// One whole approach of which the entries are `ms` milliseconds after the start.
fn approach(ms: u64) -> Vec<Entry> {
    let verdict = Verdict::KeptShut;
    vec![
        event(ms, What::ApproachBegan),
        picture(ms),
        event(ms + 900, What::ApproachEnded { verdict }),
        Entry::Recording { ended: at(ms + 900), verdict: Some(verdict), text: "x\n".to_owned() },
    ]
}

fn stamped(entries: Vec<Entry>) -> Vec<Stamped> {
    entries.into_iter().map(|entry| Stamped { entry, wall: Timestamp::UNIX_EPOCH }).collect()
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_approach_is_read_back_as_it_was_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&settings(dir.path(), 1 << 20)).unwrap();
    store.append(&stamped(vec![event(5, What::Ready)])).unwrap();
    store.append(&stamped(approach(1_000))).unwrap();
    store.append(&stamped(vec![event(9_000, What::HeldLocked)])).unwrap();
    // A reader beside the writer.
    let archive = Archive::open(dir.path()).unwrap();
    let events = archive.events(100).unwrap();
    assert_eq!(events.len(), 4);
    assert_eq!(events[0].event.what, What::Ready);
    assert_eq!([events[0].approach, events[1].approach, events[3].approach], [None, Some(1), None]);
    assert_eq!(archive.events(1).unwrap()[0].event.what, What::HeldLocked);
    let found = archive.approach_of_event(events[2].id).unwrap().unwrap();
    assert_eq!((found.began, found.ended), (at(1_000), Some(at(1_900))));
    assert_eq!(found.verdict, Some(Verdict::KeptShut));
    assert_eq!(fs::read_to_string(found.recording.unwrap()).unwrap(), "x\n");
    assert_eq!(found.pictures.len(), 1);
    let bytes = fs::read(&found.pictures[0].path).unwrap();
    assert_eq!(bytes.len() as u64, found.pictures[0].bytes);
    assert_eq!(Frame::decode(bytes, at(0)).unwrap().width(), 64);
    assert_eq!(archive.events_of(1).unwrap().len(), 2);
    assert_eq!(archive.approaches(9).unwrap().len(), 1);
    assert_eq!(archive.gaps().unwrap(), []);
}

#[test]
fn a_picture_keeps_the_very_bytes_it_came_in() {
    let mut png = std::io::Cursor::new(Vec::new());
    let grey = image::RgbImage::from_pixel(8, 8, image::Rgb([9; 3]));
    grey.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let png = png.into_inner();
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&settings(dir.path(), 1 << 20)).unwrap();
    let frame = Frame::decode(png.clone(), at(3)).unwrap();
    store.append(&stamped(vec![Entry::Picture(frame)])).unwrap();
    let found = Archive::open(dir.path()).unwrap().approach(1).unwrap().unwrap();
    assert_eq!(found.pictures[0].path.extension().unwrap(), "png");
    assert_eq!(fs::read(&found.pictures[0].path).unwrap(), png);
}

#[test]
fn the_oldest_files_go_when_the_budget_is_spent() {
    let dir = tempfile::tempdir().unwrap();
    let probe = stamped(approach(0));
    Store::open(&settings(dir.path(), u64::MAX)).unwrap().append(&probe).unwrap();
    let files = dir.path().join("files");
    let one: u64 =
        names_in(&files).iter().map(|n| fs::metadata(files.join(n)).unwrap().len()).sum();
    let mut store = Store::open(&settings(dir.path(), 3 * one)).unwrap();
    for n in 1..10 {
        store.append(&stamped(approach(n * 1_000))).unwrap();
        let total: u64 =
            names_in(&files).iter().map(|n| fs::metadata(files.join(n)).unwrap().len()).sum();
        assert!(total <= 3 * one, "{total} > {}", 3 * one);
    }
    let approaches = Archive::open(dir.path()).unwrap().approaches(100).unwrap();
    assert_eq!(approaches.len(), 10, "what happened stays known");
    let kept: Vec<bool> = approaches.iter().map(|a| a.recording.is_some()).collect();
    assert_eq!(kept, [false, false, false, false, false, false, false, true, true, true]);
    assert_eq!(names_in(&files).len(), 6);
}

#[test]
fn what_a_crash_left_half_done_is_cleaned_away() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), 1 << 20);
    Store::open(&settings).unwrap().append(&stamped(approach(0))).unwrap();
    let files = dir.path().join("files");
    let before = names_in(&files);
    fs::write(files.join("00000009-0000000001.jpg"), "no row").unwrap();
    fs::write(files.join("00000009-0000000002.jpg.part"), "half").unwrap();
    Store::open(&settings).unwrap();
    assert_eq!(names_in(&files), before);
}

#[test]
fn a_damaged_database_is_set_aside_and_a_new_one_begun() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), 1 << 20);
    Store::open(&settings).unwrap().append(&stamped(approach(0))).unwrap();
    let database = dir.path().join("journal.db");
    for damage in ["not a database at all, but long enough to be taken for one", "pages"] {
        let sound = fs::read(&database).unwrap();
        let broken = if damage == "pages" {
            let mut bytes = sound.clone();
            bytes[4_096..].fill(0xa5);
            bytes
        } else {
            damage.as_bytes().to_vec()
        };
        fs::write(&database, &broken).unwrap();
        let mut store = Store::open(&settings).unwrap();
        store.append(&stamped(approach(5))).unwrap();
        let archive = Archive::open(dir.path()).unwrap();
        assert!(archive.gaps().unwrap()[0].reason.contains("damaged"), "{damage}");
        assert_eq!(archive.approaches(9).unwrap().len(), 1);
        let kept: Vec<String> = names_in(dir.path());
        let aside = kept.iter().filter(|n| n.starts_with("damaged") && n.ends_with(".db"));
        let aside: Vec<_> = aside.map(|n| fs::read(dir.path().join(n)).unwrap()).collect();
        assert_eq!(aside, [broken], "{damage}: only the last one is kept, as it was: {kept:?}");
    }
}

#[test]
fn a_later_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), 1 << 20);
    drop(Store::open(&settings).unwrap());
    let database = dir.path().join("journal.db");
    let connection = rusqlite::Connection::open(&database).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Store::open(&settings).unwrap_err();
    assert!(matches!(error, JournalError::TooNew { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("journal.dir"));
}

/// Waits until the journal is as `wanted`.
fn wait_for(journal: &Journal, wanted: JournalHealth) {
    let started = Instant::now();
    while journal.health() != wanted {
        assert!(started.elapsed() < Duration::from_secs(10), "never {wanted:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_unwritable_journal_is_told_and_is_written_as_soon_as_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("journal");
    // A file where the directory should be: not even root can write there.
    fs::write(&place, "in the way").unwrap();
    let mut journal = Journal::start(settings(&place, 1 << 20), Clock::start()).unwrap();
    journal.record(event(1, What::Ready));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(journal.health(), JournalHealth::Failed);
    assert_eq!(journal.acknowledged(), 0);
    fs::remove_file(&place).unwrap();
    wait_for(&journal, JournalHealth::Writable);
    assert!(journal.flush(Duration::from_secs(10)));
    assert_eq!(journal.acknowledged(), 1);
    assert_eq!(Archive::open(&place).unwrap().events(9).unwrap().len(), 1);
}

#[test]
fn a_full_queue_never_blocks_and_what_is_lost_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("journal");
    fs::write(&place, "in the way").unwrap();
    let mut journal = Journal::start(settings(&place, 1 << 20), Clock::start()).unwrap();
    let sent = QUEUE as u64 + 500;
    let started = Instant::now();
    for ms in 0..sent {
        journal.record(event(ms, What::Ready));
    }
    assert!(started.elapsed() < Duration::from_secs(2));
    fs::remove_file(&place).unwrap();
    wait_for(&journal, JournalHealth::Writable);
    assert!(journal.flush(Duration::from_secs(20)));
    let archive = Archive::open(&place).unwrap();
    let lost: u64 = archive.gaps().unwrap().iter().map(|gap| gap.lost).sum();
    let kept = archive.events(usize::MAX).unwrap().len() as u64;
    assert!(lost > 0);
    assert_eq!(kept + lost, sent);
}

#[test]
fn dropping_the_journal_writes_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::start(settings(dir.path(), 1 << 20), Clock::start()).unwrap();
    for ms in 0..200 {
        journal.record(event(ms, What::Ready));
    }
    drop(journal);
    assert_eq!(Archive::open(dir.path()).unwrap().events(999).unwrap().len(), 200);
}

#[test]
fn a_recording_gives_the_same_decisions_and_a_changed_one_is_found_out() {
    let now = Uptime::ZERO;
    let mut keeper = Keeper::new(
        TrackSettings::default(),
        DoorSettings::default(),
        Policy::default(),
        false,
        now,
    );
    let mut recording = Recording::begin(&keeper);
    for n in 1..=20 {
        let now = at(n * 50);
        let input = Input {
            sightings: None,
            vision: VisionHealth::Ready,
            journal: JournalHealth::Writable,
            latch: Some(LatchReport { position: Position::Locked, at: now }),
            passage: None,
            request: None,
            wall: Some("2026-11-24T20:00:00+01:00[Europe/Berlin]".parse().unwrap()),
        };
        let decision = keeper.step(now, &input);
        recording.push(now, &input, &decision);
    }
    let text = recording.into_text();
    let replayed = Replayed::play(&text).unwrap();
    assert_eq!((replayed.steps.len(), replayed.differs_at), (20, None));
    let tampered = text.replacen("\"latch\":\"locked\"", "\"latch\": \"locked\"", 3);
    assert_ne!(tampered, text);
    assert_eq!(Replayed::play(&tampered).unwrap().differs_at, Some(0));
    let lines: Vec<&str> = text.lines().collect();
    assert!(matches!(Replayed::play(""), Err(RecordingError::Empty)));
    let cut = lines[..2].join("\n");
    assert!(matches!(Replayed::play(&cut), Err(RecordingError::CutShort { line: 2 })));
    let torn = &text[..text.trim_end().len() - 2];
    assert!(Replayed::play(torn).is_err());
}
