//! How the networks err: answers measured on real pictures, drawn again at random.

use fastrand::Rng;
use pawlatch_core::frame::PictureHealth;
use pawlatch_core::sight::{Class, ClassProbs, Classification, Detection, Sighting, Sightings};
use pawlatch_core::units::{Rect, Score, Uptime};
use serde::{Deserialize, Serialize};

/// What both networks answered for one real picture.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// What the picture shows.
    pub truth: Class,
    /// The classifier's probabilities, in the order of [`Class::ALL`].
    pub probs: ClassProbs,
    /// The detector's class and score for its best box; `None` if it found nothing.
    pub found: Option<(Class, Score)>,
    /// The detector's score for a dog in that box.
    pub dog: Score,
}

/// Answers by what the picture shows.
#[derive(Debug, Clone)]
pub struct Perception {
    by_truth: [Vec<Answer>; 5],
}

/// The answers as they are stored, with the command that measured them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The command that made the file.
    pub command: String,
    /// Names and hashes of the networks.
    pub models: Vec<String>,
    /// One answer per picture.
    pub answers: Vec<Answer>,
}

impl Perception {
    /// The answers measured with the shipped models (`cargo xtask evaluate`).
    ///
    /// # Errors
    /// If the file is damaged or has no answer for a dog, a cat or something else.
    pub fn measured() -> Result<Self, String> {
        let measured: Measured = serde_json::from_str(include_str!("../perception.json"))
            .map_err(|e| format!("tests/perception.json: {e}; run cargo xtask evaluate"))?;
        let mut by_truth: [Vec<Answer>; 5] = Default::default();
        for answer in measured.answers {
            by_truth[answer.truth as usize].push(answer);
        }
        for class in [Class::Dog, Class::Cat, Class::Other] {
            if by_truth[class as usize].is_empty() {
                return Err(format!("tests/perception.json has no answer for {class}"));
            }
        }
        Ok(Self { by_truth })
    }

    /// The answers for pictures of `class`.
    pub fn answers(&self, class: Class) -> &[Answer] {
        &self.by_truth[class as usize]
    }

    fn draw(&self, rng: &mut Rng, class: Class) -> Option<&Answer> {
        let answers = self.answers(class);
        (!answers.is_empty()).then(|| &answers[rng.usize(..answers.len())])
    }
}

/// One creature before the camera, with how it looks to the networks at the moment.
#[derive(Debug, Clone)]
pub struct Looks {
    class: Class,
    /// How often it looks different from one frame to the next.
    changes: f64,
    answer: Option<Answer>,
    rect: Rect,
}

/// How often a creature looks different from one frame to the next. Errors of neighbouring
/// frames go together: a cat taken for a dog is taken for one for a while.
const CHANGES: f64 = 0.25;

impl Looks {
    /// A creature of `class`; where it stands is drawn.
    pub fn new(rng: &mut Rng, perception: &Perception, class: Class) -> Self {
        let x = rng.f32() * 0.6;
        let size = 0.15 + rng.f32() * 0.25;
        let rect = Rect::clipped(x, 0.5 - size, x + size, 0.6 + size).unwrap_or(Rect::WHOLE);
        let answer = perception.draw(rng, class).cloned();
        Self { class, changes: CHANGES, answer, rect }
    }

    /// A dog that both networks are certain of.
    pub fn plain_dog() -> Self {
        let answer = Answer {
            truth: Class::Dog,
            probs: ClassProbs::certain(Class::Dog),
            found: Some((Class::Dog, Score::ONE)),
            dog: Score::ONE,
        };
        Self { class: Class::Dog, changes: 0.0, answer: Some(answer), rect: Rect::WHOLE }
    }

    /// What the networks make of it in the next frame; `None` if they miss it.
    pub fn next(&mut self, rng: &mut Rng, perception: &Perception) -> Option<Sighting> {
        if rng.f64() < self.changes {
            self.answer = perception.draw(rng, self.class).cloned();
        }
        let person = self.class == Class::Person;
        let answer = self.answer.as_ref();
        let (class, score) = match answer {
            Some(answer) => answer.found?,
            // Nobody was measured as a person: the detector's own word stands for them.
            None if person => (Class::Person, Score::clamped(0.8)),
            None => return None,
        };
        let probs = answer.map(|a| a.probs);
        Some(Sighting {
            detection: Detection { rect: self.rect, class, label: String::new(), score },
            classification: probs.map(|probs| Classification { probs, rejected: false }),
            dog: answer.map_or(Score::ZERO, |a| a.dog),
            likeness: Vec::new(),
        })
    }
}

/// One frame's sightings.
pub fn frame(captured_at: Uptime, health: PictureHealth, seen: Vec<Sighting>) -> Sightings {
    let looked = health == PictureHealth::Good;
    let seen = if looked { seen } else { Vec::new() };
    Sightings { captured_at, health, motion: Score::ZERO, looked, seen }
}
