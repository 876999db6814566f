//! Whose dog it is: embeddings of pictures held against those of known animals.
//!
//! Open-set verification: every known animal may be the answer, and so may nobody. A picture is
//! as like an animal as the mean cosine of its embedding with the nearest few of the animal's
//! own; from a threshold on it is taken for that animal. The threshold follows from a wanted
//! false-match rate, measured on animals that were never enrolled.
//!
//! At the door the eye holds every dog it sees against the [`Gallery`] and writes down how like
//! each animal it is; the track takes the mean over its frames, and the door, which knows only
//! the [`Roll`], decides. So a recording holds names and likenesses, not what an animal looks
//! like.

use serde::{Deserialize, Serialize};

use crate::metrics::{Rate, threshold_at};

/// How many of an animal's embeddings a picture is compared with, nearest first.
pub const NEAREST: usize = 3;

/// An embedding of length 1; cosines of two are between -1 and 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Embedding(Vec<f32>);

impl Embedding {
    /// The direction of a network's `features`; `None` if they have none: all zero, empty, or not
    /// finite.
    pub fn of(features: &[f32]) -> Option<Self> {
        let length = features.iter().map(|v| v * v).sum::<f32>().sqrt();
        let sound = length.is_finite() && length > 0.0;
        sound.then(|| Self(features.iter().map(|v| v / length).collect()))
    }

    /// The cosine of the angle between the two, `-1..=1`; 0 if they are of different networks.
    pub fn cosine(&self, other: &Self) -> f32 {
        if self.0.len() != other.0.len() {
            return 0.0;
        }
        self.0.iter().zip(&other.0).map(|(a, b)| a * b).sum()
    }
}

/// How like the animal with the embeddings `enrolled` a picture is, `-1..=1`: the mean of the
/// [`NEAREST`] greatest cosines; -1 if nothing is enrolled.
pub fn likeness(picture: &Embedding, enrolled: &[Embedding]) -> f32 {
    let mut cosines: Vec<f32> = enrolled.iter().map(|e| picture.cosine(e)).collect();
    cosines.sort_by(|a, b| b.total_cmp(a));
    cosines.truncate(NEAREST);
    if cosines.is_empty() {
        return -1.0;
    }
    cosines.iter().sum::<f32>() / cosines.len() as f32
}

/// The animals that can be recognised, in the order of the likenesses in a sighting, and what it
/// takes to be taken for one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Roll {
    /// Their names, no two alike.
    pub names: Vec<String>,
    /// Likeness from which a dog is taken for an animal, `-1..=1`.
    pub needed: f32,
}

impl Roll {
    /// Whether nobody can be recognised.
    pub const fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Every animal that a dog with these likenesses may be: none of them makes it an unknown
    /// dog, several leave open which it is. Likenesses to other animals than these say nothing.
    pub fn candidates(&self, likenesses: &[f32]) -> Vec<String> {
        if likenesses.len() != self.names.len() {
            return Vec::new();
        }
        let named = self.names.iter().zip(likenesses);
        named.filter(|(_, l)| **l >= self.needed).map(|(name, _)| name.clone()).collect()
    }

    /// The animal that these likenesses are nearest to, and how near; `None` without any.
    pub fn likeliest(&self, likenesses: &[f32]) -> Option<(&str, f32)> {
        let named = self.names.iter().zip(likenesses);
        let best = named.max_by(|a, b| a.1.total_cmp(b.1));
        best.map(|(name, likeness)| (name.as_str(), *likeness))
    }
}

/// What the animals of a [`Roll`] look like to one network.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gallery {
    roll: Roll,
    /// In the order of the roll's names.
    enrolled: Vec<Vec<Embedding>>,
}

impl Gallery {
    /// Animals with their embeddings; `needed` is the likeness from which a dog is taken for one.
    pub fn new(animals: impl IntoIterator<Item = (String, Vec<Embedding>)>, needed: f32) -> Self {
        let (names, enrolled) = animals.into_iter().unzip();
        Self { roll: Roll { names, needed }, enrolled }
    }

    /// Who is in it.
    pub const fn roll(&self) -> &Roll {
        &self.roll
    }

    /// How like each animal something with these `features` is; empty if nobody is enrolled or
    /// the features are none.
    pub fn likenesses(&self, features: &[f32]) -> Vec<f32> {
        let Some(picture) = Embedding::of(features) else { return Vec::new() };
        self.enrolled.iter().map(|enrolled| likeness(&picture, enrolled)).collect()
    }
}

/// A threshold and what it is worth, measured with one network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// Hash of the network's ONNX; with another network it means nothing.
    pub sha256: String,
    /// Likeness from which a picture is taken for an animal.
    pub likeness: f32,
    /// False matches of animals that the threshold was not chosen on.
    pub false_matches: usize,
    /// Comparisons they were counted in.
    pub comparisons: usize,
    /// Upper bound of the false-match rate, 95 % (Clopper and Pearson), as if comparisons were
    /// independent.
    pub false_match_at_most: f64,
}

impl Threshold {
    /// The threshold at which at most `rate` of `chosen_on`, likenesses of strangers, would be
    /// matched; counted on `counted_on`, those of other strangers.
    pub fn choose(sha256: &str, chosen_on: &[f32], counted_on: &[f32], rate: f64) -> Self {
        let likeness = threshold_at(chosen_on, rate).next_up();
        let false_matches = counted_on.iter().filter(|v| **v >= likeness).count();
        let counted = Rate::new(false_matches, counted_on.len());
        Self {
            sha256: sha256.to_owned(),
            likeness,
            false_matches,
            comparisons: counted_on.len(),
            false_match_at_most: counted.high,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedding(values: [f32; 3]) -> Embedding {
        Embedding::of(&values).unwrap()
    }

    #[test]
    fn nonsense_is_no_embedding() {
        for wrong in [&[][..], &[0.0, 0.0], &[f32::NAN, 1.0], &[f32::INFINITY, 1.0]] {
            assert_eq!(Embedding::of(wrong), None);
        }
        let e = Embedding::of(&[3.0, 4.0]).unwrap();
        assert!((e.cosine(&e) - 1.0).abs() < 1e-6);
        assert_eq!(e.cosine(&embedding([1.0, 0.0, 0.0])), 0.0, "of another network");
    }

    #[test]
    fn whoever_is_like_enough_may_be_it_and_whoever_is_like_nobody_is_unknown() {
        let gallery = Gallery::new(
            [
                ("Rex".to_owned(), vec![embedding([1.0, 0.0, 0.0])]),
                ("Bella".to_owned(), vec![embedding([0.9, 0.4, 0.0])]),
                ("Nobody's".to_owned(), Vec::new()),
            ],
            0.9,
        );
        let roll = gallery.roll();
        let seen = |features: [f32; 3]| roll.candidates(&gallery.likenesses(&features));
        assert_eq!(seen([0.9, -0.2, 0.0]), ["Rex"]);
        assert_eq!(seen([1.0, 0.2, 0.0]), ["Rex", "Bella"], "which of them is not said");
        assert!(seen([0.0, 0.0, 1.0]).is_empty());
        assert_eq!(gallery.likenesses(&[f32::NAN; 3]), [0.0; 0]);
        assert!(roll.candidates(&[1.0]).is_empty(), "likenesses to other animals");
        let (name, likeness) = roll.likeliest(&gallery.likenesses(&[0.0, 1.0, 1.0])).unwrap();
        assert!(name == "Bella" && likeness < 0.9);
        assert_eq!(Roll::default().likeliest(&[]), None);
    }

    #[test]
    fn a_threshold_keeps_the_wanted_rate_on_what_it_was_chosen_on() {
        let strangers: Vec<f32> = (0..1_000).map(|n| n as f32 / 1_000.0).collect();
        let threshold = Threshold::choose("x", &strangers, &strangers, 0.01);
        assert!(threshold.false_matches <= 10, "{threshold:?}");
        assert!(threshold.false_match_at_most > 0.01 && threshold.false_match_at_most < 0.02);
    }
}
