//! The recording of one approach: where the keeper stood before it, every input since, and what
//! was decided. Played again it must give the same decisions, byte for byte.
//!
//! JSON lines. The first is `{"recording":1,"keeper":…}`; then two lines per step: the input,
//! `{"now":…,"input":…}`, and the decision.

use pawlatch_core::door::Decision;
use pawlatch_core::keeper::{Input, Keeper};
use pawlatch_core::units::Uptime;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Version of the format.
const VERSION: u32 = 1;
/// Most steps in one recording: ten minutes. What comes after is left out, and the last line
/// says so.
pub const MAX_STEPS: usize = 12_000;

#[derive(Serialize, Deserialize)]
struct Head<K> {
    recording: u32,
    keeper: K,
}

/// One step of a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step<I = Input> {
    /// When.
    pub now: Uptime,
    /// What the keeper was told.
    pub input: I,
}

/// A recording in the making.
#[derive(Debug, Clone)]
pub struct Recording {
    text: String,
    steps: usize,
}

impl Recording {
    /// Begins with the keeper as it was before the first step.
    pub fn begin(keeper: &Keeper) -> Self {
        let mut recording = Self { text: String::new(), steps: 0 };
        recording.line(&Head { recording: VERSION, keeper });
        recording
    }

    /// Adds a step and what was decided in it.
    pub fn push(&mut self, now: Uptime, input: &Input, decision: &Decision) {
        if self.steps < MAX_STEPS {
            self.line(&Step { now, input });
            self.line(decision);
        }
        self.steps += 1;
    }

    /// The recording as JSON lines.
    pub fn into_text(mut self) -> String {
        if self.steps > MAX_STEPS {
            self.text.push_str(&format!("{{\"left_out\":{}}}\n", self.steps - MAX_STEPS));
        }
        self.text
    }

    fn line(&mut self, value: &impl Serialize) {
        // These types hold only numbers, texts, lists and structs, which JSON can always write.
        // Should one ever not, the line stays empty and the replay names it.
        self.text.push_str(&serde_json::to_string(value).unwrap_or_default());
        self.text.push('\n');
    }
}

/// A recording played again.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// Every step with what was decided this time.
    pub steps: Vec<(Step, Decision)>,
    /// The first step whose decision is not what was recorded, from 0.
    pub differs_at: Option<usize>,
}

impl Replayed {
    /// Plays the recording `text` again.
    ///
    /// # Errors
    /// If it is of another version or a line cannot be understood.
    pub fn play(text: &str) -> Result<Self, RecordingError> {
        let mut lines = text.lines().zip(1..);
        let (head, number) = lines.next().ok_or(RecordingError::Empty)?;
        let head: Head<Keeper> = parse(head, number)?;
        if head.recording != VERSION {
            return Err(RecordingError::Version { found: head.recording });
        }
        let mut keeper = head.keeper;
        let mut steps = Vec::new();
        let mut differs_at = None;
        while let Some((line, number)) = lines.next() {
            if line.starts_with("{\"left_out\"") {
                break;
            }
            let step: Step = parse(line, number)?;
            let (recorded, number) =
                lines.next().ok_or(RecordingError::CutShort { line: number })?;
            let decision = keeper.step(step.now, &step.input);
            let same = serde_json::to_string(&decision).is_ok_and(|now| now == recorded);
            if !same {
                // What is no decision at all is damage, not a difference.
                parse::<Decision>(recorded, number)?;
                differs_at.get_or_insert(steps.len());
            }
            steps.push((step, decision));
        }
        Ok(Self { steps, differs_at })
    }
}

fn parse<T: for<'a> Deserialize<'a>>(line: &str, number: usize) -> Result<T, RecordingError> {
    serde_json::from_str(line).map_err(|source| RecordingError::Line { line: number, source })
}

/// Why a recording cannot be played.
#[derive(Debug, Error)]
pub enum RecordingError {
    /// There is nothing in it.
    #[error("the recording is empty")]
    Empty,
    /// It is of another version.
    #[error("the recording is of version {found}; this program plays version {VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// It ends in the middle of a step.
    #[error("the recording is cut short after line {line}")]
    CutShort {
        /// The last line.
        line: usize,
    },
    /// A line cannot be understood.
    #[error("line {line} of the recording cannot be understood")]
    Line {
        /// Which line.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
}
