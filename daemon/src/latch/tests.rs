use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use proptest::prelude::*;

use super::lease::DUTY_WINDOW;
use super::*;

fn at(ms: u64) -> Uptime {
    Uptime::from_millis(ms)
}

fn settings() -> LeaseSettings {
    LeaseSettings {
        longest: Duration::from_millis(100),
        dwell: Duration::from_millis(30),
        max_unlocks_per_minute: 3,
    }
}

/// One thing that can happen to a lease.
#[derive(Debug, Clone, Copy)]
enum Happening {
    /// This much time passes (or, negative, the clock slips back).
    Wait(i64),
    Lock,
    /// A lease of this many milliseconds from now.
    Unlock(u64),
}

/// Runs `script` and holds every step against what must be so, computed from the script alone.
fn check(script: &[Happening]) {
    let limits = settings();
    let mut lease = Lease::new(limits.clone());
    let (mut now, mut latest) = (1_000_i64, 0_i64);
    let mut command: Option<(i64, u64)> = None;
    let mut bolt = Bolt::Locked;
    let mut locked_at = None;
    let mut unlocked_at: Vec<i64> = Vec::new();
    for happening in script {
        let told = match *happening {
            Happening::Wait(ms) => {
                now = (now + ms).max(0);
                None
            }
            Happening::Lock => {
                command = None;
                Some(DesiredLatch::Locked)
            }
            Happening::Unlock(ms) => {
                command = Some((now.max(latest), now as u64 + ms));
                Some(DesiredLatch::UnlockedUntil(at(now as u64 + ms)))
            }
        };
        latest = latest.max(now);
        let next = lease.step(at(now as u64), told);
        if next == Bolt::Unlocked {
            let (given, until) = command.expect("unlocked without a command");
            let end = until.min(given as u64 + limits.longest.as_millis() as u64);
            assert!(
                (latest as u64) < end,
                "unlocked at {latest}, lease ended at {end}: {script:?}"
            );
            assert!(lease.until().is_some_and(|until| until <= at(end)), "{script:?}");
        }
        match (bolt, next) {
            (Bolt::Locked, Bolt::Unlocked) => {
                let dwell = limits.dwell.as_millis() as i64;
                assert!(locked_at.is_none_or(|at| latest - at >= dwell), "{script:?}");
                unlocked_at.push(latest);
                let window = DUTY_WINDOW.as_millis() as i64;
                let lately = unlocked_at.iter().filter(|at| latest - **at < window).count();
                assert!(lately <= limits.max_unlocks_per_minute, "{script:?}");
            }
            (Bolt::Unlocked, Bolt::Locked) => locked_at = Some(latest),
            _ => {}
        }
        bolt = next;
    }
}

#[test]
fn never_unlocked_past_the_lease_in_any_interleaving() {
    use Happening::{Lock, Unlock, Wait};
    let happenings =
        [Wait(1), Wait(29), Wait(50), Wait(99), Wait(-40), Lock, Unlock(50), Unlock(10_000)];
    // Every script of up to six steps, then random ones that are longer.
    let mut script = Vec::new();
    fn each(happenings: &[Happening], script: &mut Vec<Happening>, left: usize) {
        check(script);
        if left > 0 {
            for happening in happenings {
                script.push(*happening);
                each(happenings, script, left - 1);
                script.pop();
            }
        }
    }
    each(&happenings, &mut script, 6);
}

proptest! {
    #[test]
    fn never_unlocked_past_the_lease_in_long_interleavings(
        script in proptest::collection::vec(prop_oneof![
            (-200_i64..20_000).prop_map(Happening::Wait),
            (0_i64..40).prop_map(Happening::Wait),
            Just(Happening::Lock),
            (0_u64..300).prop_map(Happening::Unlock),
        ], 0..200)
    ) {
        check(&script);
    }
}

#[test]
fn a_lease_that_is_renewed_stays_and_one_that_is_not_lapses() {
    let mut lease = Lease::new(settings());
    for ms in (0..1_000).step_by(50) {
        assert_eq!(
            lease.step(at(ms), Some(DesiredLatch::UnlockedUntil(at(ms + 100)))),
            Bolt::Unlocked
        );
    }
    assert_eq!(lease.step(at(1_049), None), Bolt::Unlocked);
    assert_eq!(lease.step(at(1_050), None), Bolt::Locked);
    assert_eq!(lease.step(at(1_000), None), Bolt::Locked, "time that runs back revives no lease");
}

#[test]
fn a_simulated_latch_takes_its_time_and_its_sensor_lags() {
    let mut latch = SimulatedLatch::new(SimulatedSettings::default());
    assert_eq!(latch.observe(at(1_000)).unwrap(), Position::Locked);
    latch.drive(at(1_000), Bolt::Unlocked).unwrap();
    assert_eq!(latch.observe(at(1_019)).unwrap(), Position::Locked);
    assert_eq!(latch.observe(at(1_100)).unwrap(), Position::Moving);
    assert_eq!(latch.truth(at(1_150)), Position::Unlocked);
    assert_eq!(latch.observe(at(1_150)).unwrap(), Position::Moving);
    assert_eq!(latch.observe(at(1_170)).unwrap(), Position::Unlocked);
    // Turned round half-way it needs half the time back.
    latch.drive(at(2_000), Bolt::Locked).unwrap();
    latch.drive(at(2_075), Bolt::Unlocked).unwrap();
    assert_eq!(latch.truth(at(2_150)), Position::Unlocked);
    latch.drive(at(2_200), Bolt::Unlocked).unwrap();
    assert_eq!(latch.wear(), 3, "driving it where it is wears nothing");
}

#[test]
fn a_stuck_bolt_is_seen_jammed_and_freed_by_another_try() {
    let jams = SimulatedSettings { jam_every: 2, ..SimulatedSettings::default() };
    let mut latch = SimulatedLatch::new(jams);
    latch.drive(at(0), Bolt::Unlocked).unwrap();
    latch.drive(at(1_000), Bolt::Locked).unwrap();
    assert_eq!(latch.observe(at(2_000)).unwrap(), Position::Jammed);
    latch.drive(at(2_000), Bolt::Locked).unwrap();
    assert_eq!(latch.observe(at(3_000)).unwrap(), Position::Locked);
}

#[test]
fn a_bolt_that_sticks_once_is_driven_again() {
    let jams = SimulatedSettings { jam_every: 2, ..SimulatedSettings::default() };
    let limits = LeaseSettings { longest: Duration::from_secs(1), ..settings() };
    let mut leased = Leased::new(Box::new(SimulatedLatch::new(jams)), limits);
    leased.step(at(0), None).unwrap();
    leased.step(at(10), Some(DesiredLatch::UnlockedUntil(at(500)))).unwrap();
    let mut seen = Vec::new();
    for ms in (300..2_000).step_by(20) {
        let report = leased.step(at(ms), None).unwrap();
        if seen.last() != Some(&report.position) {
            seen.push(report.position);
        }
    }
    use Position::{Jammed, Locked, Moving, Unlocked};
    assert_eq!(seen, [Unlocked, Moving, Jammed, Moving, Locked]);
}

#[test]
fn the_bolt_stays_where_it_is_when_the_program_ends() {
    let dir = tempfile::tempdir().unwrap();
    let state_path = Some(dir.path().join("bolt"));
    let settings = SimulatedSettings { state_path, ..SimulatedSettings::default() };
    SimulatedLatch::new(settings.clone()).drive(at(0), Bolt::Unlocked).unwrap();
    let mut again = SimulatedLatch::new(settings.clone());
    assert_eq!(again.observe(at(0)).unwrap(), Position::Unlocked);
    lock(&mut again, Duration::from_secs(5), Clock::start()).unwrap();
    assert_eq!(SimulatedLatch::new(settings.clone()).truth(at(0)), Position::Locked);
    std::fs::write(settings.state_path.as_ref().unwrap(), "lo").unwrap();
    assert_eq!(SimulatedLatch::new(settings).truth(at(0)), Position::Unlocked);
}

#[test]
fn locking_a_stuck_latch_says_so() {
    let quick = SimulatedSettings { travel: Duration::ZERO, ..SimulatedSettings::default() };
    let mut latch = SimulatedLatch::new(quick);
    latch.drive(at(0), Bolt::Unlocked).unwrap();
    latch.set_stuck(true);
    let error = lock(&mut latch, Duration::from_millis(300), Clock::start()).unwrap_err();
    assert!(error.to_string().contains("Jammed"), "{error}");
    latch.set_silent(true);
    assert!(lock(&mut latch, Duration::ZERO, Clock::start()).is_err());
}

/// A latch that remembers what it was driven to, and can be made to panic.
#[derive(Clone, Default)]
struct Probe {
    bolt: Arc<Mutex<Option<Bolt>>>,
    panics: Arc<AtomicBool>,
    refusals: Arc<AtomicUsize>,
}

impl Probe {
    fn bolt(&self) -> Option<Bolt> {
        *self.bolt.lock().unwrap()
    }

    /// Waits until the bolt is `bolt`; how long that took.
    fn wait_for(&self, bolt: Bolt) -> Duration {
        let started = Instant::now();
        while self.bolt() != Some(bolt) {
            assert!(started.elapsed() < Duration::from_secs(10), "never {bolt:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        started.elapsed()
    }
}

impl Latch for Probe {
    fn drive(&mut self, _now: Uptime, to: Bolt) -> Result<(), LatchError> {
        let refused = self
            .refusals
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if refused.is_ok() {
            return Err(LatchError::Silent("refused".to_owned()));
        }
        *self.bolt.lock().unwrap() = Some(to);
        Ok(())
    }

    fn observe(&mut self, _now: Uptime) -> Result<Position, LatchError> {
        if self.panics.load(Ordering::SeqCst) {
            std::panic::resume_unwind(Box::new("the backend panics"));
        }
        Ok(Position::Unknown)
    }
}

fn thread_with(probe: &Probe) -> (LatchThread, Clock) {
    let clock = Clock::start();
    let limits = LeaseSettings { longest: Duration::from_secs(60), ..settings() };
    let thread = LatchThread::spawn(Box::new(probe.clone()), limits, clock).unwrap();
    probe.wait_for(Bolt::Locked);
    (thread, clock)
}

#[test]
fn the_latch_thread_relocks_when_whoever_commands_has_hung() {
    let probe = Probe::default();
    let (mut thread, clock) = thread_with(&probe);
    let now = clock.now();
    thread.command(now, DesiredLatch::UnlockedUntil(now + Duration::from_millis(200)));
    probe.wait_for(Bolt::Unlocked);
    let late = {
        probe.wait_for(Bolt::Locked);
        clock.now().since(now)
    };
    assert!(late >= Duration::from_millis(195), "locked too early: {late:?}");
    assert!(thread.report().is_some() && thread.is_alive());
}

#[test]
fn the_latch_thread_locks_when_it_is_dropped() {
    let probe = Probe::default();
    let (mut thread, clock) = thread_with(&probe);
    thread.command(clock.now(), DesiredLatch::UnlockedUntil(clock.now() + Duration::from_secs(50)));
    probe.wait_for(Bolt::Unlocked);
    probe.refusals.store(2, Ordering::SeqCst);
    drop(thread);
    assert_eq!(probe.bolt(), Some(Bolt::Locked));
}

#[test]
fn the_latch_thread_locks_when_its_backend_panics_and_is_then_dead() {
    let probe = Probe::default();
    let (mut thread, clock) = thread_with(&probe);
    thread.command(clock.now(), DesiredLatch::UnlockedUntil(clock.now() + Duration::from_secs(50)));
    probe.wait_for(Bolt::Unlocked);
    probe.panics.store(true, Ordering::SeqCst);
    probe.wait_for(Bolt::Locked);
    let started = Instant::now();
    while thread.is_alive() {
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
