//! The live loop: capture, perception and control on their threads, in real time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pawlatch_core::door::{Request, VisionHealth};
use pawlatch_core::frame::{Frame, PictureHealth};
use pawlatch_core::keeper::Keeper;
use pawlatch_core::sight::Sightings;
use pawlatch_core::units::{Score, Uptime};
use thiserror::Error;

use super::{Appliance, Moment, Sample, TICK};
use crate::camera::{CameraError, FrameSource, capture};
use crate::clock::Clock;
use crate::journal::Journal;
use crate::latch::{LatchPort, LatchThread};
use crate::ordeal::panic_if_asked;
use crate::panel::Panel;
use crate::slot::{Receiver, Sender, Taken, slot};
use crate::{intent, systemd};

/// Whatever keeps the networks from looking at a frame.
pub type LookError = Box<dyn std::error::Error + Send + Sync>;

/// A latch report younger than this shows that the latch thread takes commands; only then is the
/// watchdog fed.
const LATCH_ANSWERS: Duration = Duration::from_secs(2);

/// How long the start waits for the journal to be opened; the latch is locked meanwhile.
const JOURNAL_OPENS: Duration = Duration::from_secs(2);

/// Requests that may wait for the control loop; more are refused, since whoever asks so often is
/// not a person.
const MAX_REQUESTS: usize = 8;

/// The end at which somebody asks something of the door; everybody who may ask has a clone.
#[derive(Debug, Clone)]
pub struct Asker(SyncSender<Request>);

/// The end at which the control loop is asked.
#[derive(Debug)]
pub struct Requests(mpsc::Receiver<Request>);

/// A way to ask the door.
pub fn requests() -> (Asker, Requests) {
    let (asker, requests) = mpsc::sync_channel(MAX_REQUESTS);
    (Asker(asker), Requests(requests))
}

impl Asker {
    /// Asks; never waits. Returns whether the door will hear of it: not while too many requests
    /// wait, nor after the control loop has ended.
    pub fn ask(&self, request: Request) -> bool {
        self.0.try_send(request).is_ok()
    }
}

impl Requests {
    /// What was asked first and not taken yet.
    pub fn take(&self) -> Option<Request> {
        self.0.try_recv().ok()
    }
}

/// The parts of a live appliance.
pub struct Live<F> {
    /// The latch; made first of all, so that it is locked before anything else can fail.
    pub latch: LatchThread,
    /// The keeper of a door that is starting.
    pub keeper: Keeper,
    /// The camera.
    pub source: Box<dyn FrameSource>,
    /// Looks at one frame: gate, networks and all.
    pub look: F,
    /// Where it is recorded.
    pub journal: Journal,
    /// Where the owner's intent is kept; `None`: nowhere.
    pub intent_path: Option<PathBuf>,
    /// What is asked of the door, by whoever may ask: button, page, broker.
    pub requests: Requests,
    /// Beam and light.
    pub panel: Panel,
    /// The zone of the schedules.
    pub time_zone: TimeZone,
    /// The running time; the latch and the journal use the same.
    pub clock: Clock,
}

/// How an orderly run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Somebody asked for it.
    Stopped,
    /// The recording that served as camera is over.
    SourceEnded,
}

/// Why a run ended that should not have.
#[derive(Debug, Error)]
pub enum RunError {
    /// A thread could not be started.
    #[error("cannot start the {thread} thread")]
    Start {
        /// Which.
        thread: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The camera failed.
    #[error("the camera failed; the door is locked")]
    Camera(#[from] CameraError),
    /// A thread ended that should not have.
    #[error("the {thread} thread has ended; the door is locked")]
    Thread {
        /// Which.
        thread: &'static str,
    },
}

/// What perception makes of one frame.
struct Look {
    frame: Frame,
    outcome: Result<Sightings, LookError>,
}

/// Runs until `stop` is set, the source is over, or something breaks. In every case the latch is
/// locked and the journal written before this returns. `each` is shown every cycle; it must
/// not wait.
///
/// # Errors
/// If a thread cannot be started, ends unasked, or the camera fails.
pub fn run<F>(
    live: Live<F>,
    stop: &AtomicBool,
    each: impl FnMut(&Moment<'_>),
) -> Result<Ended, RunError>
where
    F: FnMut(&Frame) -> Result<Sightings, LookError> + Send + 'static,
{
    let Live {
        latch,
        keeper,
        source,
        look,
        journal,
        intent_path,
        requests,
        panel,
        time_zone,
        clock,
    } = live;
    // Opening takes the journal a moment, which is no fault; one that cannot be opened is.
    journal.flush(JOURNAL_OPENS);
    let mut appliance = Appliance::new(keeper, latch, journal);
    let started = Threads::start(source, look, clock);
    let outcome = started.and_then(|threads| {
        let panel = &panel;
        let control = Control { clock, time_zone, intent_path, requests, panel, vision_was: true };
        control.run(&mut appliance, threads, stop, each)
    });
    let (latch, journal) = appliance.finish(clock.now());
    // In this order: locking must not wait for the disk, nor for the light.
    drop(latch);
    drop(panel);
    drop(journal);
    outcome
}

struct Threads {
    looks: Receiver<Look>,
    capture: JoinHandle<Result<(), CameraError>>,
    perception: JoinHandle<()>,
}

impl Threads {
    fn start<F>(source: Box<dyn FrameSource>, look: F, clock: Clock) -> Result<Self, RunError>
    where
        F: FnMut(&Frame) -> Result<Sightings, LookError> + Send + 'static,
    {
        let failed = |thread| move |source| RunError::Start { thread, source };
        let (shutter, frames) = slot();
        let (seen, looks) = slot();
        let perception = thread::Builder::new()
            .name("perception".to_owned())
            .spawn(move || perceive(look, &frames, &seen))
            .map_err(failed("perception"))?;
        let capture = capture(source, clock, shutter).map_err(failed("capture"))?;
        Ok(Self { looks, capture, perception })
    }

    /// What made the threads end. The camera's end comes first, so perception's follows from it.
    fn why_ended(self) -> Result<Ended, RunError> {
        if self.perception.join().is_err() {
            return Err(RunError::Thread { thread: "perception" });
        }
        drop(self.looks);
        match self.capture.join() {
            Ok(Ok(())) => Ok(Ended::SourceEnded),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(RunError::Thread { thread: "capture" }),
        }
    }
}

/// Looks at the newest frame, again and again, until there are no more.
fn perceive<F>(mut look: F, frames: &Receiver<Frame>, seen: &Sender<Look>)
where
    F: FnMut(&Frame) -> Result<Sightings, LookError>,
{
    loop {
        panic_if_asked("perception");
        match frames.take(Duration::from_secs(1)) {
            Taken::Value(frame) => {
                let outcome = look(&frame);
                if !seen.put(Look { frame, outcome }) {
                    return;
                }
            }
            Taken::Nothing => {}
            Taken::Closed => return,
        }
    }
}

/// The control loop's own memory.
struct Control<'a> {
    clock: Clock,
    time_zone: TimeZone,
    intent_path: Option<PathBuf>,
    requests: Requests,
    panel: &'a Panel,
    vision_was: bool,
}

impl Control<'_> {
    fn run(
        mut self,
        appliance: &mut Appliance<LatchThread, Journal>,
        threads: Threads,
        stop: &AtomicBool,
        mut each: impl FnMut(&Moment<'_>),
    ) -> Result<Ended, RunError> {
        let mut due = self.clock.now();
        let mut hold_locked = appliance.keeper().door().hold_locked();
        let mut ready = false;
        while !stop.load(Ordering::SeqCst) {
            panic_if_asked("control");
            let look = match threads.looks.take(Duration::ZERO) {
                Taken::Value(look) => Some(look),
                Taken::Nothing => None,
                Taken::Closed => return threads.why_ended(),
            };
            let failure =
                look.as_ref().and_then(|l| l.outcome.as_ref().err()).map(|e| e.to_string());
            let sample = self.sample(look);
            let (sightings, frame) = (sample.sightings.clone(), sample.frame.clone());
            let latch = appliance.latch().report();
            let now = self.clock.now();
            let decision = appliance.tick(now, sample);
            each(&Moment {
                decision: &decision,
                frame: frame.as_ref(),
                sightings: sightings.as_ref(),
                failure: failure.as_deref(),
                tracks: appliance.keeper().tracks(),
                latch,
            });
            self.panel.show(&decision.state);
            for event in &decision.events {
                tracing::info!(at = %event.at, "{event}");
            }
            if !appliance.latch().is_alive() {
                return Err(RunError::Thread { thread: "latch" });
            }
            if !self.panel.is_alive() {
                return Err(RunError::Thread { thread: "panel" });
            }
            if !appliance.recorder().is_alive() {
                return Err(RunError::Thread { thread: "journal" });
            }
            let wish = appliance.keeper().door().hold_locked();
            if wish != hold_locked {
                hold_locked = wish;
                self.keep_intent(wish);
            }
            let report = appliance.latch().report();
            if report.is_some_and(|report| now.since(report.at) <= LATCH_ANSWERS) {
                let _ = match ready {
                    true => systemd::notify("WATCHDOG=1"),
                    false => systemd::notify(&systemd::ready()),
                };
                ready = true;
            }
            due = self.sleep(due);
        }
        Ok(Ended::Stopped)
    }

    fn sample(&mut self, look: Option<Look>) -> Sample {
        // One a cycle, so that each is decided on and recorded by itself.
        let request = self.requests.take();
        let (mut sightings, mut frame) = (None, None);
        if let Some(look) = look {
            let well = look.outcome.is_ok();
            if well != self.vision_was {
                self.vision_was = well;
                match &look.outcome {
                    Ok(_) => tracing::info!("the networks look again"),
                    Err(error) => tracing::warn!(%error, "the networks cannot look"),
                }
            }
            // The camera lives even if nobody could look: the reason must not become "camera
            // lost". Nothing is claimed about the picture that the failure would not outweigh.
            sightings = Some(look.outcome.unwrap_or_else(|_| unseen(look.frame.captured_at())));
            frame = Some(look.frame);
        }
        Sample {
            sightings,
            frame,
            vision: if self.vision_was { VisionHealth::Ready } else { VisionHealth::Failed },
            passage: self.panel.passage(),
            request,
            wall: Some(Timestamp::now().to_zoned_datetime(self.time_zone.clone())),
        }
    }

    /// Rare, and asked for by a person: may take a moment. If the disk hangs, the lease lapses.
    fn keep_intent(&self, hold_locked: bool) {
        if let Some(path) = &self.intent_path
            && let Err(error) = intent::save(path, hold_locked)
        {
            tracing::warn!(%error, path = %path.display(), "the owner's wish cannot be kept");
        }
    }

    /// Sleeps until the next cycle is due; returns when that is. Cycles that were missed are not
    /// made up for.
    fn sleep(&self, due: Uptime) -> Uptime {
        let next = due + TICK;
        let now = self.clock.now();
        if next <= now {
            return now;
        }
        thread::sleep(next.since(now));
        next
    }
}

/// A frame that nobody looked at.
fn unseen(captured_at: Uptime) -> Sightings {
    Sightings {
        captured_at,
        health: PictureHealth::Good,
        motion: Score::ZERO,
        looked: false,
        seen: Vec::new(),
    }
}

/// A flag that SIGTERM or SIGINT sets.
///
/// # Errors
/// If the signals cannot be listened to.
pub fn stop_on_signals() -> std::io::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut term, mut int) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        });
        flag.store(true, Ordering::SeqCst);
    })?;
    Ok(stop)
}
