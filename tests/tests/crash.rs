//! The journal against torn writes, full disks and sudden death: nothing acknowledged is lost,
//! and the daemon starts.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pawlatch::clock::Clock;
use pawlatch::journal::{Archive, Entry, Journal, JournalSettings, Recorder, Stamped, Store};
use pawlatch_core::event::{Event, What};
use pawlatch_core::frame::Frame;
use pawlatch_core::units::Uptime;

const CHILD: &str = "PAWLATCH_CRASH_CHILD";

fn settings(dir: &Path) -> JournalSettings {
    JournalSettings { dir: dir.to_owned(), budget_bytes: 64 << 20 }
}

/// The `n`-th event of a test; its time is its number.
fn numbered(n: u64) -> Entry {
    Entry::Event(Event { at: Uptime::from_millis(n), what: What::Ready })
}

fn stamped(entry: Entry) -> Stamped {
    Stamped { entry, wall: jiff::Timestamp::UNIX_EPOCH }
}

/// Numbers of the events that a newly started daemon finds in `dir`.
fn found_after_restart(dir: &Path) -> Vec<u64> {
    drop(Store::open(&settings(dir)).expect("the daemon starts"));
    let archive = Archive::open(dir).unwrap();
    assert_eq!(archive.gaps().unwrap(), [], "nothing was set aside");
    for approach in archive.approaches(usize::MAX).unwrap() {
        for picture in approach.pictures {
            let bytes = fs::metadata(&picture.path).map(|m| m.len()).ok();
            assert_eq!(bytes, Some(picture.bytes), "{}", picture.path.display());
        }
    }
    archive.events(usize::MAX).unwrap().iter().map(|e| e.event.at.as_millis()).collect()
}

/// The first `cut` bytes of `new`, then what was there before: a write that was torn.
fn torn(old: &[u8], new: &[u8], cut: usize) -> Vec<u8> {
    let mut mixed = new[..cut].to_vec();
    mixed.extend(old.iter().skip(cut));
    mixed
}

fn write_state(dir: &Path, database: &[u8], log: &[u8]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("journal.db"), database).unwrap();
    fs::write(dir.join("journal.db-wal"), log).unwrap();
}

#[test]
fn a_log_torn_at_any_place_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&settings(dir.path())).unwrap();
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap_or_default();
    let mut before = (read("journal.db"), read("journal.db-wal"));
    let mut states = 0;
    for n in 1..=12_u64 {
        store.append(&[stamped(numbered(n))]).unwrap();
        let after = (read("journal.db"), read("journal.db-wal"));
        let same = before.1.iter().zip(&after.1).take_while(|(a, b)| a == b).count();
        // Every place near the edges of frames, and a walk through their middles.
        let cuts = (same..=after.1.len())
            .filter(|cut| cut % 331 == 0 || (cut - 32) % 4_120 < 26)
            .chain([after.1.len()]);
        for cut in cuts {
            let crashed = dir.path().join("crashed");
            write_state(&crashed, &before.0, &torn(&before.1, &after.1, cut));
            let found = found_after_restart(&crashed);
            let acknowledged: Vec<u64> = (1..n).collect();
            let with_the_last: Vec<u64> = (1..=n).collect();
            assert!(found == acknowledged || found == with_the_last, "{n} at {cut}: {found:?}");
            if cut == after.1.len() {
                assert_eq!(found, with_the_last, "{n} was acknowledged");
            }
            fs::remove_dir_all(&crashed).unwrap();
            states += 1;
        }
        before = after;
    }
    assert!(states > 400, "only {states} states");
}

#[test]
fn a_database_torn_while_the_log_is_folded_in_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&settings(dir.path())).unwrap();
    for n in 1..=40 {
        store.append(&[stamped(numbered(n))]).unwrap();
    }
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    let (old, log) = (read("journal.db"), read("journal.db-wal"));
    // Closing folds the log into the database.
    drop(store);
    let new = read("journal.db");
    assert_ne!(old, new);
    for cut in (0..=new.len()).step_by(1_021) {
        let crashed = dir.path().join("crashed");
        write_state(&crashed, &torn(&old, &new, cut), &log);
        assert_eq!(found_after_restart(&crashed), (1..=40).collect::<Vec<u64>>(), "at {cut}");
        fs::remove_dir_all(&crashed).unwrap();
    }
}

/// Starts this very test program again as a child that runs only `test`. `limit` is the size
/// beyond which no file of it can grow, in blocks of the shell's `ulimit -f`.
fn child(test: &str, dir: &Path, limit: Option<u32>) -> Child {
    let program = std::env::current_exe().unwrap();
    let limit = limit.map_or_else(|| "unlimited".to_owned(), |blocks| blocks.to_string());
    // Without the signal a write beyond the limit fails with "file too large", as on a full disk.
    let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"");
    Command::new("sh")
        .args(["-c", &script])
        .arg(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Numbers in the lines "acknowledged N" that a child prints.
fn acknowledged(child: &mut Child) -> Vec<u64> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // A killed child may leave half a line, which acknowledges nothing.
    lines
        .map_while(Result::ok)
        .filter_map(|line| line.split_once("acknowledged ")?.1.strip_suffix('.')?.parse().ok())
        .collect()
}

fn noisy_picture(n: u64) -> Entry {
    let pixels: Vec<u8> = (0..64 * 64 * 3_u64).map(|i| (i * i * (n + 3) % 251) as u8).collect();
    Entry::Picture(Frame::from_rgb(pixels, 64, 64, Uptime::from_millis(n)).unwrap())
}

/// Not a test by itself: writes directly, one acknowledged event after another.
#[test]
fn child_writes_until_the_disk_is_full() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let mut store = None;
    let mut failures = 0;
    for n in 1..=60 {
        if store.is_none() {
            store = Store::open(&settings(Path::new(&dir))).ok();
        }
        let batch = [stamped(numbered(n)), stamped(noisy_picture(n))];
        match store.as_mut().map(|store| store.append(&batch)) {
            Some(Ok(())) => println!("acknowledged {n}."),
            Some(Err(_)) | None => {
                store = None;
                failures += 1;
            }
        }
    }
    println!("failures {failures}");
}

#[test]
fn a_disk_that_is_full_at_any_point_loses_nothing_acknowledged() {
    let (mut failed_early, mut failed_late, mut never) = (0, 0, 0);
    for limit in (2..60).step_by(3).chain((60..1_200).step_by(60)) {
        let dir = tempfile::tempdir().unwrap();
        let mut child = child("child_writes_until_the_disk_is_full", dir.path(), Some(limit));
        let acknowledged = acknowledged(&mut child);
        child.wait().unwrap();
        let found = found_after_restart(dir.path());
        for n in &acknowledged {
            assert!(found.contains(n), "limit {limit}: {n} is lost; found {found:?}");
        }
        match acknowledged.len() {
            0 => failed_early += 1,
            60 => never += 1,
            _ => failed_late += 1,
        }
    }
    assert!(
        failed_early > 0 && failed_late > 5 && never > 0,
        "{failed_early} {failed_late} {never}"
    );
}

/// Not a test by itself: records through the journal's thread until it is killed.
#[test]
fn child_records_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = Path::new(&dir);
    let first = Archive::open(dir)
        .and_then(|archive| archive.events(1))
        .ok()
        .and_then(|events| events.last().map(|e| e.event.at.as_millis()))
        .unwrap_or(0);
    let mut journal = Journal::start(settings(dir), Clock::start()).unwrap();
    for n in first + 1.. {
        journal.record(numbered(n));
        journal.record(noisy_picture(n));
        if journal.flush(Duration::from_secs(30)) {
            println!("acknowledged {n}.");
        }
    }
}

#[test]
fn sigkill_at_any_point_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 0..12_u64 {
        let mut child = child("child_records_until_it_is_killed", dir.path(), None);
        std::thread::sleep(Duration::from_millis(150 + round * round * 37 % 400));
        child.kill().unwrap();
        let acknowledged = acknowledged(&mut child);
        child.wait().unwrap();
        let found = found_after_restart(dir.path());
        last = acknowledged.last().copied().unwrap_or(last).max(last);
        let newest = found.last().copied().unwrap_or(0);
        assert!(newest >= last, "round {round}: {last} was acknowledged, {newest} is the newest");
        assert_eq!(found, (1..=newest).collect::<Vec<u64>>(), "round {round}: no gaps");
    }
    assert!(last > 10, "only {last} were written in all rounds");
}

#[test]
fn a_hung_disk_does_not_hold_up_whoever_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::start(settings(dir.path()), Clock::start()).unwrap();
    assert!(journal.flush(Duration::from_secs(10)));
    // Another program that holds the database: to the writer it is a disk that does not answer.
    let other = rusqlite::Connection::open(dir.path().join("journal.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let started = Instant::now();
    for n in 1..=500 {
        journal.record(numbered(n));
    }
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    other.execute_batch("COMMIT").unwrap();
    assert!(journal.flush(Duration::from_secs(20)));
    assert_eq!(journal.acknowledged(), 500);
}
