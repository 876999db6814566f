//! Whose dog it is: embeddings of pictures held against those of known animals.
//!
//! Open-set verification: every known animal may be the answer, and so may nobody. A picture is
//! as like an animal as the mean cosine of its embedding with the nearest few of the animal's
//! own; from a threshold on it is taken for that animal. The threshold follows from a wanted
//! false-match rate, measured on animals that were never enrolled.

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

/// Who it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Number of the animal; `None`: none of them.
    pub animal: Option<usize>,
    /// How like the likeliest animal the pictures are, their mean.
    pub likeness: f32,
}

/// Who is in `pictures` of one visit, given each animal's embeddings: the likeliest animal, if it
/// is likely enough. `None` without pictures or animals.
pub fn who(pictures: &[Embedding], animals: &[Vec<Embedding>], threshold: f32) -> Option<Answer> {
    if pictures.is_empty() {
        return None;
    }
    let mean = |enrolled: &Vec<Embedding>| {
        pictures.iter().map(|p| likeness(p, enrolled)).sum::<f32>() / pictures.len() as f32
    };
    let likenesses = animals.iter().map(mean).enumerate();
    let (best, likeness) = likenesses.max_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(Answer { animal: (likeness >= threshold).then_some(best), likeness })
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
    fn the_likeliest_animal_is_the_answer_only_if_it_is_like_enough() {
        let rex = vec![embedding([1.0, 0.0, 0.0]), embedding([0.9, 0.1, 0.0])];
        let bella = vec![embedding([0.0, 1.0, 0.0])];
        let animals = [rex, bella];
        let seen = [embedding([0.1, 1.0, 0.0])];
        assert_eq!(who(&seen, &animals, 0.9).unwrap().animal, Some(1));
        assert_eq!(who(&[embedding([0.0, 0.0, 1.0])], &animals, 0.9).unwrap().animal, None);
        assert_eq!(who(&[], &animals, 0.9), None);
        assert_eq!(who(&seen, &[], 0.9), None);
        assert_eq!(who(&seen, &[Vec::new()], 0.0).unwrap().animal, None, "nothing enrolled");
    }

    #[test]
    fn a_threshold_keeps_the_wanted_rate_on_what_it_was_chosen_on() {
        let strangers: Vec<f32> = (0..1_000).map(|n| n as f32 / 1_000.0).collect();
        let threshold = Threshold::choose("x", &strangers, &strangers, 0.01);
        assert!(threshold.false_matches <= 10, "{threshold:?}");
        assert!(threshold.false_match_at_most > 0.01 && threshold.false_match_at_most < 0.02);
    }
}
