//! Cameras that come and go: each is read on a thread of its own, opened again when it fails, and
//! given up when it blocks; the second camera steps in while the first gives nothing.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pawlatch_core::frame::{Frame, PictureHealth, PictureWatch};
use pawlatch_core::units::Uptime;

use super::shot::{Mounting, Shot};
use super::source::LiveSource;
use super::{CameraError, FrameSource, Over};
use crate::clock::Clock;
use crate::ordeal::panic_if_asked;
use crate::slot::{Receiver, Sender, Taken, slot};

/// Reads one camera, picture by picture.
pub trait Reader {
    /// Waits for the next picture, stamped with the clock the reader was opened with.
    ///
    /// # Errors
    /// If the camera gives no more. The reader is then of no further use.
    fn read(&mut self) -> Result<Shot, CameraError>;
}

/// Opens the camera of a source.
pub type Opener = dyn Fn(&LiveSource, Clock) -> Result<Box<dyn Reader>, CameraError> + Send + Sync;

/// Limits of patience with cameras.
#[derive(Debug, Clone)]
pub struct Patience {
    /// How long opening a camera and its first picture may take.
    pub opens: Duration,
    /// Without a picture for this long a camera has stalled.
    pub stalls: Duration,
    /// Without a picture of the first camera for this long, those of the second are taken.
    pub falls_back: Duration,
    /// First pause before a camera is opened again; doubled up to `longest_pause`.
    pub pause: Duration,
    /// Longest pause.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            opens: ms(15_000),
            stalls: ms(4_000),
            falls_back: ms(1_500),
            pause: ms(250),
            longest_pause: ms(10_000),
        }
    }
}

/// Most threads that may hang in reads that never return. Only ending the process frees them.
const MAX_STUCK: usize = 4;
/// How long is waited for a picture before the other camera and the time are looked at.
const GLANCE: Duration = Duration::from_millis(20);
/// Pictures over which the rate is measured.
const RATE_OVER: u32 = 10;

/// One or two cameras, read for ever.
pub struct LiveCamera {
    feeds: Vec<Feed>,
    patience: Patience,
    clock: Clock,
    /// The slowest rate, pictures a second, at which every picture is still fresh.
    slowest: f32,
    /// Which feed the last frame came from.
    shown: usize,
    /// Whether nobody wants frames any more.
    over: Over,
}

/// One camera and how it is doing.
struct Feed {
    source: LiveSource,
    opener: Arc<Opener>,
    mounting: Mounting,
    reading: Option<Reading>,
    stuck: Vec<JoinHandle<Result<(), CameraError>>>,
    /// When it may be opened again, and the pause after that.
    due: Uptime,
    pause: Duration,
    last_shot: Option<Uptime>,
    /// Whether its failing has been told.
    told: bool,
    /// Pictures since it was opened, and when the first came.
    rate: Option<(u32, Uptime)>,
}

/// A thread that reads.
struct Reading {
    shots: Receiver<Shot>,
    thread: JoinHandle<Result<(), CameraError>>,
    /// When it was begun, or gave its last picture.
    alive_at: Uptime,
    /// Whether it has given one.
    proven: bool,
}

impl LiveCamera {
    /// Cameras in order of preference, at least one. `slowest` is the rate below which the door
    /// could not use the pictures, which is told.
    pub fn new(
        sources: Vec<LiveSource>,
        opener: Arc<Opener>,
        mounting: Mounting,
        patience: Patience,
        slowest: f32,
        clock: Clock,
    ) -> Self {
        let feed = |source| Feed {
            source,
            opener: Arc::clone(&opener),
            mounting,
            reading: None,
            stuck: Vec::new(),
            due: Uptime::ZERO,
            pause: patience.pause,
            last_shot: None,
            told: false,
            rate: None,
        };
        let feeds = sources.into_iter().map(feed).collect();
        Self { feeds, patience, clock, slowest, shown: 0, over: Box::new(|| false) }
    }
}

impl FrameSource for LiveCamera {
    /// Waits until somebody stops wanting frames: what a door without pictures does is not for the
    /// camera to decide.
    fn next(&mut self) -> Result<Option<Frame>, CameraError> {
        while !(self.over)() {
            for n in 0..self.feeds.len() {
                // The second camera is read at all times, so that it is there when it is needed.
                let wait = if n == 0 { GLANCE } else { Duration::ZERO };
                let frame = self.feeds[n].poll(wait, &self.patience, self.slowest, self.clock)?;
                let now = self.clock.now();
                let preferred = self.feeds[..n].iter().all(|better| {
                    let quiet = |at| now.since(at) >= self.patience.falls_back;
                    better.last_shot.is_none_or(quiet)
                });
                let Some(frame) = frame.filter(|_| preferred) else { continue };
                if n != self.shown {
                    self.shown = n;
                    tracing::info!(camera = %self.feeds[n].source, "pictures come from this camera");
                }
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    fn is_live(&self) -> bool {
        true
    }

    fn until(&mut self, over: Over) {
        self.over = over;
    }
}

impl Feed {
    /// Takes the newest picture, waiting at most `wait`; opens and gives up the camera as needed.
    fn poll(
        &mut self,
        wait: Duration,
        patience: &Patience,
        slowest: f32,
        clock: Clock,
    ) -> Result<Option<Frame>, CameraError> {
        self.stuck.retain(|thread| !thread.is_finished());
        let Some(reading) = &mut self.reading else {
            if clock.now() < self.due {
                thread::sleep(wait.min(self.due.since(clock.now())));
            } else {
                self.begin(clock)?;
            }
            return Ok(None);
        };
        match reading.shots.take(wait) {
            Taken::Value(shot) => {
                let now = clock.now();
                reading.alive_at = now;
                reading.proven = true;
                Ok(self.develop(now, shot, slowest, patience))
            }
            Taken::Nothing => {
                let limit = if reading.proven { patience.stalls } else { patience.opens };
                if clock.now().since(reading.alive_at) >= limit {
                    self.give_up(limit, patience, clock)?;
                }
                Ok(None)
            }
            Taken::Closed => {
                if let Some(reading) = self.reading.take() {
                    let ended = reading.thread.join().unwrap_or_else(|_| {
                        Err(self.broken("the program that reads it panicked".to_owned()))
                    });
                    self.fail(ended.err(), patience, clock);
                }
                Ok(None)
            }
        }
    }

    fn begin(&mut self, clock: Clock) -> Result<(), CameraError> {
        let (shutter, shots) = slot();
        let (source, opener) = (self.source.clone(), Arc::clone(&self.opener));
        let thread = thread::Builder::new()
            .name("camera".to_owned())
            .spawn(move || read(&source, &opener, clock, &shutter))
            .map_err(|e| self.broken(format!("cannot start its thread: {e}")))?;
        self.reading = Some(Reading { shots, thread, alive_at: clock.now(), proven: false });
        self.rate = None;
        Ok(())
    }

    /// Makes a frame of a picture. One that is damaged is lost; the next may be sound.
    fn develop(
        &mut self,
        now: Uptime,
        shot: Shot,
        slowest: f32,
        patience: &Patience,
    ) -> Option<Frame> {
        match shot.into_frame(self.mounting) {
            Ok(frame) => {
                self.last_shot = Some(now);
                self.pause = patience.pause;
                if self.told {
                    self.told = false;
                    tracing::info!(camera = %self.source, "the camera is back");
                }
                self.count(frame.captured_at(), slowest);
                Some(frame)
            }
            Err(error) => {
                tracing::debug!(camera = %self.source, %error, "a damaged picture");
                None
            }
        }
    }

    /// Tells once per opening when the pictures come too slowly to be of use.
    fn count(&mut self, at: Uptime, slowest: f32) {
        let (count, first) = self.rate.unwrap_or((0, at));
        self.rate = Some((count.saturating_add(1), first));
        if count == RATE_OVER {
            let rate = RATE_OVER as f32 / at.since(first).as_secs_f32().max(1e-3);
            if rate < slowest {
                tracing::warn!(camera = %self.source, rate, slowest,
                    "the camera is too slow: raise its rate, or door.fresh_for_ms");
            } else {
                tracing::debug!(camera = %self.source, rate, "pictures a second");
            }
        }
    }

    /// Leaves a thread behind that hangs in a read.
    fn give_up(
        &mut self,
        after: Duration,
        patience: &Patience,
        clock: Clock,
    ) -> Result<(), CameraError> {
        let problem = format!("it has given nothing for {} s", after.as_secs());
        if let Some(reading) = self.reading.take() {
            // Its slot is closed with this, so it ends as soon as the read returns.
            self.stuck.push(reading.thread);
        }
        if self.stuck.len() >= MAX_STUCK {
            return Err(self.broken(format!("{problem}, {MAX_STUCK} times over")));
        }
        let error = self.broken(problem);
        self.fail(Some(error), patience, clock);
        Ok(())
    }

    fn fail(&mut self, error: Option<CameraError>, patience: &Patience, clock: Clock) {
        let error = error.unwrap_or_else(|| self.broken("it has ended".to_owned()));
        if self.told {
            tracing::debug!(%error, "the camera is still not there");
        } else {
            self.told = true;
            tracing::warn!(%error, "no pictures; trying again");
        }
        self.due = clock.now() + self.pause;
        self.pause = (self.pause * 2).min(patience.longest_pause);
    }

    fn broken(&self, problem: String) -> CameraError {
        CameraError::Camera { camera: self.source.to_string(), problem }
    }
}

/// Reads until nobody takes the pictures, or the camera fails.
fn read(
    source: &LiveSource,
    opener: &Arc<Opener>,
    clock: Clock,
    shutter: &Sender<Shot>,
) -> Result<(), CameraError> {
    let mut reader = opener(source, clock)?;
    loop {
        panic_if_asked("camera");
        let shot = reader.read()?;
        if !shutter.put(shot) {
            return Ok(());
        }
    }
}

/// What a camera gave while it was tried out.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The last frame, upright.
    pub frame: Frame,
    /// Its health, given those before it.
    pub health: PictureHealth,
    /// How many frames came.
    pub frames: u32,
    /// Frames per second between the first and the last; zero if there was only one.
    pub rate: f32,
    /// From asking for the camera to its first frame.
    pub first_after: Duration,
}

/// Reads a camera for `span` after its first frame. Every frame is decoded, as by the door.
///
/// # Errors
/// If it cannot be opened, fails, or gives no picture within [`Patience::opens`].
pub fn measure(
    source: &LiveSource,
    mounting: Mounting,
    span: Duration,
    clock: Clock,
) -> Result<Measured, CameraError> {
    let broken = |problem: String| CameraError::Camera { camera: source.to_string(), problem };
    let patience = Patience::default();
    let (shutter, shots) = slot();
    let (asked, opener): (_, Arc<Opener>) = (source.clone(), Arc::new(super::open_camera));
    let thread = thread::Builder::new()
        .name("camera".to_owned())
        .spawn(move || read(&asked, &opener, clock, &shutter))
        .map_err(|e| broken(e.to_string()))?;
    let began = clock.now();
    let mut watch = PictureWatch::default();
    let mut so_far: Option<(Measured, Uptime)> = None;
    loop {
        let limit = if so_far.is_some() { patience.stalls } else { patience.opens };
        match shots.take(limit) {
            Taken::Nothing => {
                return Err(broken(format!("it gave nothing for {} s", limit.as_secs())));
            }
            Taken::Closed => {
                return Err(match thread.join() {
                    Ok(Err(error)) => error,
                    Ok(Ok(())) | Err(_) => broken("it ended".to_owned()),
                });
            }
            Taken::Value(shot) => {
                let frame = shot.into_frame(mounting).map_err(|e| broken(e.to_string()))?;
                let health = watch.judge(&frame);
                let at = frame.captured_at();
                let (frames, first) =
                    so_far.as_ref().map_or((0, at), |(m, first)| (m.frames, *first));
                let gone = at.since(first);
                let rate =
                    if frames == 0 { 0.0 } else { frames as f32 / gone.as_secs_f32().max(1e-3) };
                let first_after = first.since(began);
                let measured = Measured { frame, health, frames: frames + 1, rate, first_after };
                if gone >= span {
                    return Ok(measured);
                }
                so_far = Some((measured, first));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::shot::Layout;
    use super::*;

    /// What a scripted camera does next.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Act {
        Give(u8),
        Fail,
        Hang,
        Damaged,
        Panic,
    }

    /// Cameras by script: each opening of the device takes the next line.
    #[derive(Clone)]
    struct Scripted {
        lines: Arc<Mutex<Vec<Vec<Act>>>>,
        opened: Arc<AtomicU32>,
    }

    struct ScriptedReader(std::vec::IntoIter<Act>, Clock);

    impl Reader for ScriptedReader {
        fn read(&mut self) -> Result<Shot, CameraError> {
            thread::sleep(Duration::from_millis(5));
            let shot = |bytes| Shot {
                layout: Layout::Grey,
                width: 2,
                height: 2,
                stride: 2,
                bytes,
                at: self.1.now(),
            };
            match self.0.next() {
                Some(Act::Give(level)) => Ok(shot(vec![level; 4])),
                Some(Act::Damaged) => Ok(shot(vec![1; 3])),
                Some(Act::Panic) => std::panic::resume_unwind(Box::new("the driver panics")),
                Some(Act::Hang) => {
                    thread::sleep(Duration::from_secs(20));
                    Err(CameraError::Unset)
                }
                Some(Act::Fail) | None => Err(CameraError::Unset),
            }
        }
    }

    impl Scripted {
        fn new(lines: Vec<Vec<Act>>) -> Self {
            let lines = lines.into_iter().rev().collect();
            Self { lines: Arc::new(Mutex::new(lines)), opened: Arc::default() }
        }

        fn opener(&self) -> Arc<Opener> {
            let this = self.clone();
            Arc::new(move |_: &LiveSource, clock: Clock| -> Result<Box<dyn Reader>, CameraError> {
                this.opened.fetch_add(1, Ordering::SeqCst);
                let line = this.lines.lock().unwrap().pop().ok_or(CameraError::Unset)?;
                Ok(Box::new(ScriptedReader(line.into_iter(), clock)))
            })
        }
    }

    fn quick() -> Patience {
        let ms = Duration::from_millis;
        Patience {
            opens: ms(400),
            stalls: ms(200),
            falls_back: ms(100),
            pause: ms(10),
            longest_pause: ms(40),
        }
    }

    fn camera(opener: Arc<Opener>, sources: &[&str]) -> LiveCamera {
        let sources = sources
            .iter()
            .map(|text| match text.parse().unwrap() {
                super::super::Source::Live(live) => live,
                other => panic!("{other} is no camera"),
            })
            .collect();
        LiveCamera::new(sources, opener, Mounting::default(), quick(), 1.0, Clock::start())
    }

    fn level(camera: &mut LiveCamera) -> u8 {
        camera.next().unwrap().unwrap().pixels()[0]
    }

    #[test]
    fn a_camera_that_fails_hangs_panics_or_stumbles_comes_back() {
        use Act::{Damaged, Fail, Give, Hang, Panic};
        let script = Scripted::new(vec![
            vec![Fail],
            vec![Give(1), Fail],
            vec![Give(2), Hang],
            vec![Damaged, Give(3), Panic],
            vec![Hang],
            vec![Give(4), Give(4)],
        ]);
        let mut camera = camera(script.opener(), &["v4l2:/dev/video0"]);
        for wanted in 1..=4 {
            assert_eq!(level(&mut camera), wanted);
        }
        assert_eq!(script.opened.load(Ordering::SeqCst), 6);
    }

    #[test]
    fn a_camera_that_hangs_again_and_again_is_given_up_with_the_process() {
        let script = Scripted::new(vec![vec![Act::Hang]; 9]);
        let mut camera = camera(script.opener(), &["v4l2:/dev/video0"]);
        let error = camera.next().unwrap_err().to_string();
        assert!(error.contains("/dev/video0") && error.contains("4 times"), "{error}");
    }

    #[test]
    fn a_capture_that_nobody_wants_ends_although_no_picture_comes() {
        let script = Scripted::new(Vec::new());
        let camera = camera(script.opener(), &["v4l2:/dev/video0"]);
        let (shutter, frames) = slot();
        let thread = super::super::capture(Box::new(camera), Clock::start(), shutter).unwrap();
        thread::sleep(Duration::from_millis(50));
        assert!(!thread.is_finished());
        drop(frames);
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_camera_that_is_not_there_is_not_asked_without_pause() {
        let script = Scripted::new(Vec::new());
        let mut camera = camera(script.opener(), &["v4l2:/dev/video0"]);
        let opened = Arc::clone(&script.opened);
        thread::spawn(move || camera.next().map(|_| ()));
        thread::sleep(Duration::from_millis(500));
        let opened = opened.load(Ordering::SeqCst);
        assert!((3..=20).contains(&opened), "opened {opened} times in half a second");
    }

    #[test]
    fn the_second_camera_steps_in_and_out_again() {
        let first_back = Arc::new(AtomicU32::new(0));
        let back = Arc::clone(&first_back);
        struct Steady(u8, Clock, Arc<AtomicU32>);
        impl Reader for Steady {
            fn read(&mut self) -> Result<Shot, CameraError> {
                thread::sleep(Duration::from_millis(5));
                if self.0 == 1 && self.2.load(Ordering::SeqCst) == 1 {
                    return Err(CameraError::Unset);
                }
                let (bytes, at) = (vec![self.0; 4], self.1.now());
                Ok(Shot { layout: Layout::Grey, width: 2, height: 2, stride: 2, bytes, at })
            }
        }
        let opener: Arc<Opener> = Arc::new(
            move |source: &LiveSource, clock: Clock| -> Result<Box<dyn Reader>, CameraError> {
                let level = if matches!(source, LiveSource::V4l2 { .. }) { 1 } else { 2 };
                Ok(Box::new(Steady(level, clock, Arc::clone(&back))))
            },
        );
        let mut camera = camera(opener, &["v4l2:/dev/video0", "http://192.0.2.1/snap.jpg"]);
        let mut seen = Vec::new();
        let mut latest = Uptime::ZERO;
        for n in 0..300 {
            first_back.store(u32::from((100..200).contains(&n)), Ordering::SeqCst);
            let frame = camera.next().unwrap().unwrap();
            assert!(frame.captured_at() >= latest, "time runs backwards");
            latest = frame.captured_at();
            if seen.last() != Some(&frame.pixels()[0]) {
                seen.push(frame.pixels()[0]);
            }
        }
        assert!(seen.ends_with(&[1, 2, 1]), "{seen:?}");
    }
}
