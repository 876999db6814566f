//! What the networks saw in one picture: the vocabulary between `vision`, `track` and `door`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::frame::PictureHealth;
use crate::units::{Rect, Score, Uptime};

/// What the door tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A domestic dog.
    Dog,
    /// A domestic cat.
    Cat,
    /// A human being.
    Person,
    /// Any other animal, and any object taken for one.
    Other,
    /// No animal and no person.
    Nothing,
}

impl Class {
    /// All classes, in the order of [`ClassProbs`].
    pub const ALL: [Self; 5] = [Self::Dog, Self::Cat, Self::Person, Self::Other, Self::Nothing];

    /// The lower-case name used in manifests, configuration and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dog => "dog",
            Self::Cat => "cat",
            Self::Person => "person",
            Self::Other => "other",
            Self::Nothing => "nothing",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A probability for each class of [`Class::ALL`], in that order: finite, not negative, summing
/// to 1 within 1e-3.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "[f32; 5]", into = "[f32; 5]")]
pub struct ClassProbs([f32; 5]);

impl ClassProbs {
    /// Masses scaled to sum to 1; `None` if one is negative or not finite, or all are zero.
    pub fn from_masses(masses: [f32; 5]) -> Option<Self> {
        let total: f32 = masses.iter().sum();
        let sound = masses.iter().all(|m| m.is_finite() && *m >= 0.0);
        (sound && total.is_finite() && total > 0.0).then(|| Self(masses.map(|m| m / total)))
    }

    /// All certainty on one class.
    pub fn certain(class: Class) -> Self {
        Self(Class::ALL.map(|c| if c == class { 1.0 } else { 0.0 }))
    }

    /// The probability of `class`.
    pub fn of(&self, class: Class) -> Score {
        Score::clamped(self.0[class as usize])
    }

    /// The most probable class; the earlier one of [`Class::ALL`] on a tie.
    pub fn best(&self) -> Class {
        Class::ALL
            .into_iter()
            .rev()
            .max_by(|a, b| self.0[*a as usize].total_cmp(&self.0[*b as usize]))
            .unwrap_or(Class::Nothing)
    }
}

impl TryFrom<[f32; 5]> for ClassProbs {
    type Error = String;
    fn try_from(masses: [f32; 5]) -> Result<Self, Self::Error> {
        let total: f32 = masses.iter().sum();
        if masses.iter().all(|m| m.is_finite() && *m >= 0.0) && (total - 1.0).abs() < 1e-3 {
            Ok(Self(masses))
        } else {
            Err(format!("{masses:?} are not five probabilities that sum to 1"))
        }
    }
}

impl From<ClassProbs> for [f32; 5] {
    fn from(p: ClassProbs) -> Self {
        p.0
    }
}

/// What the detector (or the heat map) said of a box, before the classifier looked at it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// Where, in fractions of the whole frame.
    pub rect: Rect,
    /// The door's class for the detector's label.
    pub class: Class,
    /// The detector's own label, such as `"golden retriever"` or `"horse"`.
    pub label: String,
    /// The detector's score for that label.
    pub score: Score,
}

/// The classifier's answer for one crop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Classification {
    /// Calibrated probabilities.
    pub probs: ClassProbs,
    /// Open-set distance where the model has one: the crop is like nothing in training.
    /// `true` means reject: whatever the probabilities say, this is not known to be a dog.
    pub rejected: bool,
}

/// One animal or person in one frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sighting {
    /// Where, and what the detector thought it was.
    pub detection: Detection,
    /// What the classifier thought of the padded crop. `None`: not asked (a person, of a
    /// classifier that knows none), or there is no classifier.
    pub classification: Option<Classification>,
    /// The detector's score for a dog in this box, whatever it thinks likelier; 0 if it is below
    /// its floor.
    #[serde(default)]
    pub dog: Score,
    /// How like each animal of the [`Roll`](crate::identity::Roll) it is, `-1..=1`. Empty: nobody
    /// asks, or it is not taken for a dog.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub likeness: Vec<f32>,
}

impl Sighting {
    /// What both networks together say of the detector's class being right: the geometric mean of
    /// the detector's score and the classifier's probability; without a classification the
    /// detector's score.
    pub fn joint(&self) -> Score {
        let Detection { class, score, .. } = &self.detection;
        self.classification.as_ref().map_or(*score, |c| score.with(c.probs.of(*class)))
    }

    /// What both networks together say of its being a dog, as [`Self::joint`]; without a
    /// classification 0, since no label of a detector alone ever opens.
    pub fn as_dog(&self) -> Score {
        let classification = self.classification.as_ref();
        classification.map_or(Score::ZERO, |c| self.dog.with(c.probs.of(Class::Dog)))
    }
}

/// Everything perceived in one frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sightings {
    /// When the camera took the frame.
    pub captured_at: Uptime,
    /// Whether the picture can be trusted at all.
    pub health: PictureHealth,
    /// Share of the approach region that moved, `0..=1`.
    pub motion: Score,
    /// Whether the networks looked at this frame (`false`: the gate kept it back).
    pub looked: bool,
    /// The animals and persons found, best detector score first; empty if not looked.
    pub seen: Vec<Sighting>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_refuse_nonsense() {
        assert!(ClassProbs::from_masses([0.0; 5]).is_none());
        assert!(ClassProbs::from_masses([f32::NAN, 1.0, 0.0, 0.0, 0.0]).is_none());
        assert!(ClassProbs::from_masses([-0.1, 1.0, 0.0, 0.0, 0.0]).is_none());
        assert!(ClassProbs::try_from([0.5, 0.2, 0.1, 0.1, 0.0]).is_err());
        let p = ClassProbs::from_masses([3.0, 1.0, 0.0, 0.0, 0.0]).unwrap();
        assert_eq!(p.of(Class::Dog), Score::clamped(0.75));
        assert_eq!(p.best(), Class::Dog);
    }

    #[test]
    fn a_tie_goes_to_the_earlier_class() {
        let p = ClassProbs::from_masses([0.0, 1.0, 1.0, 0.0, 0.0]).unwrap();
        assert_eq!(p.best(), Class::Cat);
    }

    #[test]
    fn names_match_serde() {
        for class in Class::ALL {
            assert_eq!(serde_json::to_string(&class).unwrap(), format!("\"{}\"", class.name()));
        }
    }
}
