//! What hangs at the door beside the latch: button, passage beam, motion sensor, light, buzzer.
//!
//! A thread of its own reads and drives them, so that the light beats steadily whatever the
//! control loop does, and the control loop never waits for a wire.

mod button;
mod light;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pawlatch_core::door::State;
use pawlatch_core::units::Uptime;

use crate::appliance::Asker;
use crate::clock::Clock;
use crate::lines::{Board, Debounce, Input, Line, LineError, Output};
use crate::ordeal::panic_if_asked;
pub use button::{Button, ButtonSettings, Gesture, request};
pub use light::{Pattern, Sign, documentation};

/// How often the wires are looked at.
const POLL: Duration = Duration::from_millis(10);

/// Which wires there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PanelSettings {
    /// The button.
    pub button: Option<Line>,
    /// How long it must be pressed for what.
    pub gestures: ButtonSettings,
    /// The passage beam; active while it is broken.
    pub beam: Option<Line>,
    /// The motion sensor; active while something moves.
    pub motion: Option<Line>,
    /// Red, green and blue of the light.
    pub light: [Option<Line>; 3],
    /// The buzzer.
    pub buzzer: Option<Line>,
    /// How long a contact must hold a level.
    pub debounce: Duration,
}

impl PanelSettings {
    /// Every line there is, with the configuration's key for it.
    pub fn lines(&self) -> Vec<(&'static str, &Line)> {
        let [red, green, blue] = &self.light;
        [
            ("panel.button_line", &self.button),
            ("panel.beam_line", &self.beam),
            ("panel.motion_line", &self.motion),
            ("panel.red_line", red),
            ("panel.green_line", green),
            ("panel.blue_line", blue),
            ("panel.buzzer_line", &self.buzzer),
        ]
        .into_iter()
        .filter_map(|(key, line)| Some((key, line.as_ref()?)))
        .collect()
    }
}

/// What the panel and the control loop tell each other.
#[derive(Debug)]
struct Shared {
    /// What to show, and what a gesture means.
    state: Mutex<State>,
    beam: AtomicBool,
    motion: AtomicBool,
    stop: AtomicBool,
}

/// The panel on its thread. Dropped, the light goes out.
#[derive(Debug)]
pub struct Panel {
    shared: Arc<Shared>,
    has_beam: bool,
    thread: Option<JoinHandle<Result<(), LineError>>>,
}

/// Tells whether something moves, to whoever looks at pictures.
#[derive(Debug, Clone)]
pub struct MotionSensor(Arc<Shared>);

impl MotionSensor {
    /// Whether the sensor sees something move.
    pub fn is_active(&self) -> bool {
        self.0.motion.load(Ordering::Relaxed)
    }
}

/// The wires, open.
struct Wires {
    button: Option<(Box<dyn Input>, Debounce, Button)>,
    beam: Option<(Box<dyn Input>, Debounce)>,
    motion: Option<Box<dyn Input>>,
    lamp: Lamp,
}

impl Panel {
    /// A panel without wires: nothing is shown, nobody asks.
    pub fn none() -> Self {
        Self { shared: Shared::new(), has_beam: false, thread: None }
    }

    /// Takes the wires over, and asks the door what the button says.
    ///
    /// # Errors
    /// If a line cannot be had or the thread not be started.
    pub fn start(
        board: &dyn Board,
        settings: &PanelSettings,
        asker: Asker,
        clock: Clock,
    ) -> Result<Self, LineError> {
        let contact = |active| Debounce::new(settings.debounce, active);
        let input = |line: &Option<Line>| line.as_ref().map(|line| board.input(line)).transpose();
        let wires = Wires {
            // Until it is seen let go it counts as pressed, which means nothing.
            button: input(&settings.button)?
                .map(|wire| (wire, contact(true), Button::new(settings.gestures.clone()))),
            // Until it is seen whole it counts as broken: somebody may lie in the passage.
            beam: input(&settings.beam)?.map(|wire| (wire, contact(true))),
            motion: input(&settings.motion)?,
            lamp: Lamp::open(board, settings)?,
        };
        let shared = Shared::new();
        let (has_beam, theirs) = (wires.beam.is_some(), Arc::clone(&shared));
        shared.beam.store(has_beam, Ordering::Relaxed);
        let thread = thread::Builder::new()
            .name("panel".to_owned())
            .spawn(move || keep(wires, &theirs, &asker, clock))
            .map_err(|e| LineError::Fails { line: "panel".to_owned(), problem: e.to_string() })?;
        Ok(Self { shared, has_beam, thread: Some(thread) })
    }

    /// Whether the passage beam is broken; `None` without a beam.
    pub fn passage(&self) -> Option<bool> {
        self.has_beam.then(|| self.shared.beam.load(Ordering::Relaxed))
    }

    /// The motion sensor; never active if there is none.
    pub fn motion(&self) -> MotionSensor {
        MotionSensor(Arc::clone(&self.shared))
    }

    /// From now on shows this state.
    pub fn show(&self, state: &State) {
        *self.shared.state.lock().unwrap_or_else(PoisonError::into_inner) = *state;
    }

    /// Whether the wires are still looked at; a panel without wires always is.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_none_or(|thread| !thread.is_finished())
    }
}

impl Drop for Panel {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => tracing::error!(%error, "the panel ended"),
            Some(Err(_)) => tracing::error!("the panel panicked"),
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::Starting { since: Uptime::ZERO }),
            beam: AtomicBool::new(false),
            motion: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        })
    }
}

/// Looks and shows until told to stop or a wire fails.
fn keep(mut wires: Wires, shared: &Shared, asker: &Asker, clock: Clock) -> Result<(), LineError> {
    while !shared.stop.load(Ordering::Relaxed) {
        panic_if_asked("panel");
        let now = clock.now();
        let state = *shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((wire, contact, button)) = &mut wires.button {
            let down = contact.step(now, wire.is_active()?);
            if let Some(gesture) = button.step(now, down) {
                tracing::info!(?gesture, "button");
                asker.ask(request(gesture, &state));
            }
        }
        if let Some((wire, contact)) = &mut wires.beam {
            let broken = contact.step(now, wire.is_active()?);
            shared.beam.store(broken, Ordering::Relaxed);
        }
        if let Some(wire) = &mut wires.motion {
            shared.motion.store(wire.is_active()?, Ordering::Relaxed);
        }
        wires.lamp.show(now, Sign::of(&state));
        thread::sleep(POLL);
    }
    Ok(())
}

/// The light and the buzzer.
pub struct Lamp {
    colours: [Option<Box<dyn Output>>; 3],
    buzzer: Option<Box<dyn Output>>,
    /// The sign shown, and since when.
    sign: Option<(Sign, Uptime)>,
    /// What the wires were set to last: red, green, blue, buzzer.
    set: [bool; 4],
    failed: bool,
}

impl Lamp {
    /// A dark lamp.
    ///
    /// # Errors
    /// If a line cannot be had.
    pub fn open(board: &dyn Board, settings: &PanelSettings) -> Result<Self, LineError> {
        let output =
            |line: &Option<Line>| line.as_ref().map(|line| board.output(line, false)).transpose();
        let [red, green, blue] = &settings.light;
        Ok(Self {
            colours: [output(red)?, output(green)?, output(blue)?],
            buzzer: output(&settings.buzzer)?,
            sign: None,
            set: [false; 4],
            failed: false,
        })
    }

    /// Shows `sign` as it is at `now`. A lamp that fails is told of once: it must not lock out a
    /// dog.
    pub fn show(&mut self, now: Uptime, sign: Sign) {
        let since = match self.sign {
            Some((shown, since)) if shown == sign => since,
            _ => now,
        };
        self.sign = Some((sign, since));
        let (pattern, ms) = (sign.pattern(), now.since(since).as_millis() as u64);
        let lit = pattern.lit(ms);
        let mut rgb = pattern.colour.rgb.map(|on| on && lit);
        // A lamp without the sign's colour shows the rhythm in those it has.
        if lit && !rgb.iter().zip(&self.colours).any(|(on, wire)| *on && wire.is_some()) {
            rgb = [true; 3];
        }
        self.set(&[rgb[0], rgb[1], rgb[2], pattern.sounds(ms)]);
    }

    fn set(&mut self, wanted: &[bool; 4]) {
        let wires = self.colours.iter_mut().chain([&mut self.buzzer]);
        for ((wire, wanted), set) in wires.zip(wanted).zip(&mut self.set) {
            let Some(wire) = wire else { continue };
            if wanted != set {
                match wire.set(*wanted) {
                    Ok(()) => *set = *wanted,
                    Err(error) if !self.failed => {
                        self.failed = true;
                        tracing::warn!(%error, "the light cannot be shown");
                    }
                    Err(_) => {}
                }
            }
        }
    }
}

impl Drop for Lamp {
    /// A light that is left on would claim something about a door nobody keeps.
    fn drop(&mut self) {
        self.set(&[false; 4]);
    }
}

#[cfg(test)]
mod tests;
