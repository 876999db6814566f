//! Shadow mode: a candidate model looks on beside the one in use and is compared with it. It
//! decides nothing and delays nothing.
//!
//! Perception shows each frame in which it saw an animal through a one-slot channel, which never
//! waits: a frame that the candidate has no time for is replaced by the next. The candidate runs
//! on a thread of its own that stands behind every other; should it fail or panic, it is given up
//! and the door goes on. Counts are kept in a file, disagreements with their picture in the
//! journal.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use pawlatch_core::frame::Frame;
use pawlatch_core::metrics::threshold_at;
use pawlatch_core::sight::{Class, Sighting};
use pawlatch_core::units::{Rect, Score, Uptime};
use pawlatch_core::vision::{CROP_PADDING, Classifier, Framing, Task, Vision, VisionError};
use serde::{Deserialize, Serialize};

use crate::journal::{Disagreement, Note, Scribe};
use crate::models::{Entry, InUse, ModelsError, read_limited};
use crate::slot::{self, Taken, slot};

/// File in the journal's directory with what was counted.
const FILE: &str = "shadow.json";
/// Largest such file that is read, bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Shortest time between two frames that the candidate is shown.
const EVERY: Duration = Duration::from_millis(500);
/// Shortest time between two disagreements that are kept.
const KEEP_EVERY: Duration = Duration::from_secs(2);
/// Shortest time between two writings of what was counted: cards wear out.
const WRITE_EVERY: Duration = Duration::from_secs(10);
/// Probabilities that are remembered of each kind, the newest.
const REMEMBERED: usize = 2_000;
/// Share of what the model in use takes for no dog that may be above the proposed threshold.
const WANTED: f64 = 0.005;
/// Fewest of them for a proposal.
const ENOUGH: usize = 200;
/// By how much the candidate stands back, in steps of nice(2): the most there is.
const NICENESS: i32 = 19;

/// What perception shows: a frame and what was seen in it.
#[derive(Debug)]
struct Case {
    frame: Frame,
    region: Rect,
    seen: Vec<Sighting>,
}

/// The end at which perception shows its frames.
#[derive(Debug)]
pub struct Shadow {
    cases: slot::Sender<Case>,
    region: Rect,
    shown_at: Option<Uptime>,
}

/// What was counted since the candidate began beside these models.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Hash of the candidate's ONNX.
    pub candidate: String,
    /// Hashes of the models in use, the classifier's first.
    pub in_use: Vec<String>,
    /// Frames on which both said the same: a dog, or none.
    pub agreed: u64,
    /// Frames on which the candidate saw a dog and the models in use none.
    pub more: u64,
    /// Frames on which it saw none and they did.
    pub less: u64,
    /// The candidate's probability of a dog where the models in use see one; the newest.
    dogs: Vec<Score>,
    /// The same where they see none.
    others: Vec<Score>,
}

/// A threshold for the candidate, taking the models in use for right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Proposal {
    /// Probability of a dog from which the candidate takes a frame for one of a dog.
    pub threshold: Score,
    /// Frames without a dog that are at or above it, and all there are.
    pub mistaken: (usize, usize),
    /// Frames of a dog that are below it, and all there are.
    pub missed: (usize, usize),
}

impl Counts {
    /// What was counted in the journal's directory `dir`; `None` if nothing was.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&read_limited(&dir.join(FILE), MAX_BYTES).ok()?).ok()
    }

    fn write(&self, dir: &Path) -> io::Result<()> {
        let path = dir.join(FILE);
        let part = path.with_extension("part");
        // Numbers and texts: JSON can always write them. A tally is worth no wait for the disk.
        fs::write(&part, serde_json::to_vec(self).unwrap_or_default())?;
        fs::rename(&part, &path)
    }

    /// Adds one frame's probabilities of a dog; whether they disagree.
    fn add(&mut self, in_use: Score, candidate: Score) -> bool {
        let (dog, also) = (is_dog(in_use), is_dog(candidate));
        match (dog, also) {
            (false, true) => self.more += 1,
            (true, false) => self.less += 1,
            _ => self.agreed += 1,
        }
        let kind = if dog { &mut self.dogs } else { &mut self.others };
        if kind.len() >= REMEMBERED {
            kind.remove(0);
        }
        kind.push(candidate);
        dog != also
    }

    /// The threshold at which the candidate would take as little for a dog that is none as is
    /// wanted, by the newest frames; `None` if they are too few.
    pub fn proposal(&self) -> Option<Proposal> {
        if self.others.len() < ENOUGH || self.dogs.is_empty() {
            return None;
        }
        let others: Vec<f32> = self.others.iter().map(|score| score.get()).collect();
        let threshold = Score::clamped(threshold_at(&others, WANTED).next_up());
        let mistaken = self.others.iter().filter(|score| **score >= threshold).count();
        let missed = self.dogs.iter().filter(|score| **score < threshold).count();
        Some(Proposal {
            threshold,
            mistaken: (mistaken, self.others.len()),
            missed: (missed, self.dogs.len()),
        })
    }
}

/// The probability of a dog in a frame: that of the likeliest one.
fn dog_in(seen: &[Sighting]) -> Score {
    let probability = |s: &Sighting| {
        let answer = s.classification.as_ref().filter(|c| !c.rejected);
        answer.map_or(0.0, |c| c.probs.of(Class::Dog).get())
    };
    Score::clamped(seen.iter().map(probability).fold(0.0, f32::max))
}

fn is_dog(probability: Score) -> bool {
    probability >= Score::clamped(0.5)
}

/// The candidate, loaded.
enum Network {
    /// Looks at the same crops.
    Classifier(Box<Classifier>),
    /// Looks at the same frames, before the classifier in use.
    Detector(Box<Vision>),
}

impl Network {
    fn load(candidate: &Entry, in_use: &InUse) -> Result<Self, ModelsError> {
        Ok(match candidate.manifest.task {
            Task::Classifier => {
                let classifier = Classifier::new(candidate.load()?).map_err(ModelsError::Vision)?;
                Self::Classifier(Box::new(classifier))
            }
            Task::Detector => {
                let then = InUse { detector: Some(candidate.clone()), ..in_use.clone() };
                Self::Detector(Box::new(then.vision()?))
            }
        })
    }

    /// The candidate's probability of a dog.
    fn dog(&mut self, case: &Case) -> Result<Score, VisionError> {
        let classifier = match self {
            Self::Detector(vision) => {
                return Ok(dog_in(&vision.look(&case.frame, case.region, &mut |_| {})?));
            }
            Self::Classifier(classifier) => classifier,
        };
        let mut best = 0.0_f32;
        for sighting in case.seen.iter().filter(|s| s.classification.is_some()) {
            let crop = sighting.detection.rect.padded(CROP_PADDING);
            let answer = classifier.classify(&case.frame, crop, Framing::Crop)?;
            if !answer.rejected {
                best = best.max(answer.probs.of(Class::Dog).get());
            }
        }
        Ok(Score::clamped(best))
    }
}

impl Shadow {
    /// Starts `candidate` beside `in_use`, whose eye looks at `region`. What it counts goes to
    /// `dir`, disagreements to the journal.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        candidate: Entry,
        in_use: InUse,
        region: Rect,
        dir: PathBuf,
        scribe: Scribe,
    ) -> io::Result<Self> {
        let (cases, taken) = slot();
        let look_on = move || {
            if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
                tracing::debug!(%error, "the candidate cannot stand back");
            }
            let name = candidate.id();
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                look_on(&candidate, &in_use, &taken, &dir, &scribe)
            }));
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, model = name, "the candidate is given up"),
                Err(_) => tracing::error!(model = name, "the candidate panicked and is given up"),
            }
        };
        thread::Builder::new().name("shadow".to_owned()).spawn(look_on)?;
        Ok(Self { cases, region, shown_at: None })
    }

    /// Shows what was seen in `frame`; never waits.
    pub fn show(&mut self, frame: &Frame, seen: &[Sighting]) {
        let now = frame.captured_at();
        let due = self.shown_at.is_none_or(|at| now.since(at) >= EVERY);
        if due && seen.iter().any(|sighting| sighting.classification.is_some()) {
            self.shown_at = Some(now);
            let (region, seen) = (self.region, seen.to_vec());
            self.cases.put(Case { frame: frame.clone(), region, seen });
        }
    }
}

/// Looks on until perception ends.
fn look_on(
    candidate: &Entry,
    in_use: &InUse,
    cases: &slot::Receiver<Case>,
    dir: &Path,
    scribe: &Scribe,
) -> Result<(), Box<dyn std::error::Error>> {
    let sha256 = candidate.manifest.sha256.clone();
    let hashes: Vec<String> = in_use.entries().map(|e| e.manifest.sha256.clone()).collect();
    // What was counted beside other models is another comparison.
    let known = Counts::read(dir).filter(|c| c.candidate == sha256 && c.in_use == hashes);
    let mut counts =
        known.unwrap_or_else(|| Counts { candidate: sha256, in_use: hashes, ..Counts::default() });
    counts.write(dir)?;
    let mut network = Network::load(candidate, in_use)?;
    let mut kept_at: Option<Uptime> = None;
    let (mut written_at, mut unwritten) = (Instant::now(), false);
    loop {
        match cases.take(WRITE_EVERY) {
            Taken::Value(case) => {
                let (said, says) = (dog_in(&case.seen), network.dog(&case)?);
                let at = case.frame.captured_at();
                let disagree = counts.add(said, says);
                unwritten = true;
                if disagree && kept_at.is_none_or(|kept| at.since(kept) >= KEEP_EVERY) {
                    let note = Disagreement {
                        candidate: counts.candidate.clone(),
                        in_use_says: said,
                        candidate_says: says,
                        frame: case.frame,
                    };
                    if scribe.record(Note::Disagreement(note)) {
                        kept_at = Some(at);
                    }
                }
            }
            Taken::Nothing => {}
            Taken::Closed if unwritten => return Ok(counts.write(dir)?),
            Taken::Closed => return Ok(()),
        }
        if unwritten && written_at.elapsed() >= WRITE_EVERY {
            counts.write(dir)?;
            (written_at, unwritten) = (Instant::now(), false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pawlatch_core::sight::{ClassProbs, Classification, Detection};

    #[test]
    fn what_both_say_is_counted_and_the_threshold_follows_from_what_is_no_dog() {
        let mut counts = Counts::default();
        let score = Score::clamped;
        assert!(!counts.add(score(0.9), score(0.8)));
        assert!(counts.add(score(0.9), score(0.3)));
        assert!(counts.add(score(0.1), score(0.6)));
        assert_eq!((counts.agreed, counts.more, counts.less), (1, 1, 1));
        assert_eq!(counts.proposal(), None, "too few");
        for n in 0..399_u16 {
            counts.add(score(0.1), score(f32::from(n) / 1_000.0));
        }
        let proposal = counts.proposal().unwrap();
        assert_eq!((proposal.mistaken.1, proposal.missed), (400, (1, 2)));
        assert!(proposal.mistaken.0 <= 2, "{proposal:?}");
        assert!((0.39..0.4).contains(&proposal.threshold.get()), "{proposal:?}");
        for _ in 0..REMEMBERED + 10 {
            counts.add(score(0.1), score(0.2));
        }
        assert_eq!(counts.others.len(), REMEMBERED);
        let dir = tempfile::tempdir().unwrap();
        counts.write(dir.path()).unwrap();
        assert_eq!(Counts::read(dir.path()), Some(counts));
    }

    #[test]
    fn showing_never_waits_and_what_there_is_no_time_for_is_dropped() {
        let (cases, taken) = slot();
        let mut shadow = Shadow { cases, region: Rect::WHOLE, shown_at: None };
        let frame = |ms| Frame::from_rgb(vec![0; 3], 1, 1, Uptime::from_millis(ms)).unwrap();
        let detection = Detection {
            rect: Rect::WHOLE,
            class: Class::Dog,
            label: "dog".to_owned(),
            score: Score::ONE,
        };
        let certain = Classification { probs: ClassProbs::certain(Class::Dog), rejected: false };
        let classification = Some(certain);
        let dog = Sighting { detection, classification, dog: Score::ONE, likeness: Vec::new() };
        shadow.show(&frame(0), &[]);
        assert!(matches!(taken.take(Duration::ZERO), Taken::Nothing), "nothing to compare");
        for ms in (0..2_000).step_by(100) {
            shadow.show(&frame(ms), std::slice::from_ref(&dog));
        }
        let Taken::Value(case) = taken.take(Duration::ZERO) else { panic!("nothing shown") };
        assert_eq!(case.frame.captured_at(), Uptime::from_millis(1_500), "the newest that was due");
        assert!(matches!(taken.take(Duration::ZERO), Taken::Nothing));
        // Given up, it disturbs nobody.
        drop(taken);
        shadow.show(&frame(9_000), &[dog]);
    }
}
