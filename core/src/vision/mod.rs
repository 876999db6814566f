//! Pictures in, sightings out: model manifests, the only preprocessing, and the networks.
//!
//! The detector says *where*, the classifier says *what*. Without a detector the classifier's
//! heat map says where; without a classifier the sightings carry no classification, and the door
//! does not open on them.

mod classify;
pub mod decode;
mod detect;
pub mod fast;
mod localise;
pub mod manifest;
mod model;
pub mod network;
mod onnx;
mod prepare;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod validate;

use thiserror::Error;

pub use classify::{Classifier, ClassifierOutput, Framing, probabilities};
pub use detect::Detector;
pub use localise::{HeatMap, Localisation, Localiser};
pub use manifest::{Manifest, ManifestError, Task};
pub use model::{Model, Precision, sha256};
pub use network::NetworkError;

use self::decode::first_of_each;
use crate::frame::Frame;
use crate::identity::Gallery;
use crate::sight::{Class, Detection, Sighting};
use crate::units::{Rect, Score};

/// Boxes of animals that overlap more than this (IoU) are one animal, whatever their labels.
pub const SAME_ANIMAL_IOU: f32 = 0.6;
/// The box of an animal is grown by this share of its size on each side before it is classified.
pub const CROP_PADDING: f32 = 0.1;
/// Most animals classified in one frame, best detector score first. Those beyond stay without a
/// classification, so they never speak for opening.
pub const MAX_CROPS: usize = 4;
/// Most boxes of persons that the classifier looks at in one frame, best first.
const MAX_PERSONS: usize = 2;
/// A box is no person's below this, the geometric mean of the detector's score and the classifier's
/// probability.
const PERSON_FLOOR: Score = Score::clamped(0.2);
/// Lowest score of a box that [`Vision::describe`] looks into.
const DESCRIBED_FROM: Score = Score::clamped(0.05);
/// Share of the smaller of two boxes of one class, above which [`Vision::inventory`] takes them for
/// one animal or person.
const PART: f32 = 0.7;
/// Most boxes that [`Vision::inventory`] shows to the classifier.
pub const MAX_NAMED: usize = 32;

/// A stage of [`Vision::look`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Picture health and motion gate, before any network.
    Gate,
    /// Cutting, resizing and normalising; once per network and crop.
    Resize,
    /// The detector, or the heat map in its place, with decoding.
    Detect,
    /// The classifier; once per crop.
    Classify,
}

/// Why perception failed.
#[derive(Debug, Error)]
pub enum VisionError {
    /// A manifest that is wrong.
    #[error("the model's manifest is wrong")]
    Manifest(#[from] ManifestError),
    /// The file is not the one the manifest describes.
    #[error(
        "model {model}: the ONNX has sha256 {got}, the manifest says {expected}; fetch the file \
         again"
    )]
    Sha256 {
        /// The model.
        model: String,
        /// What the manifest says.
        expected: String,
        /// What the file has.
        got: String,
    },
    /// The network cannot be used.
    #[error("model {model} cannot be used")]
    Network {
        /// The model.
        model: String,
        /// Why.
        #[source]
        source: NetworkError,
    },
    /// A network outside a model.
    #[error("a network cannot be used")]
    Unnamed(#[from] NetworkError),
    /// A model used for what it does not do.
    #[error("model {model} is a {is}; a {wanted} is needed here")]
    Task {
        /// The model.
        model: String,
        /// What it is.
        is: Task,
        /// What it should be.
        wanted: Task,
    },
    /// NaN or infinity in a network's output.
    #[error("model {model} gave a value that is not a finite number; its answer is not used")]
    NotFinite {
        /// The model.
        model: String,
    },
    /// A label number without a name.
    #[error("model {model} reported label {label}, which its manifest does not name")]
    UnknownLabel {
        /// The model.
        model: String,
        /// The number.
        label: f32,
    },
    /// The resizer refused.
    #[error("the picture cannot be resized: {0}")]
    Resize(String),
    /// Neither a classifier nor a detector.
    #[error("no model is given; a classifier, a detector or both are needed")]
    NoModel,
}

/// The networks of a door.
pub struct Vision {
    classifier: Option<Classifier>,
    finder: Finder,
    gallery: Gallery,
}

/// What says where things are.
enum Finder {
    Detector(Box<Detector>),
    Localiser(Box<Localiser>),
}

impl Vision {
    /// With a classifier only, its heat map says where things are.
    ///
    /// # Errors
    /// If neither is given, a model is of the other kind, or a classifier alone cannot be made
    /// fully convolutional.
    pub fn new(classifier: Option<Model>, detector: Option<Model>) -> Result<Self, VisionError> {
        let finder = match (&classifier, detector) {
            (_, Some(model)) => Finder::Detector(Box::new(Detector::new(model)?)),
            (Some(model), None) => Finder::Localiser(Box::new(Localiser::new(model)?)),
            (None, None) => return Err(VisionError::NoModel),
        };
        let classifier = classifier.map(Classifier::new).transpose()?;
        Ok(Self { classifier, finder, gallery: Gallery::default() })
    }

    /// With animals to recognise: every dog is held against them. Their embeddings must be of
    /// this classifier.
    #[must_use]
    pub fn knowing(self, gallery: Gallery) -> Self {
        Self { gallery, ..self }
    }

    /// The classifier, if there is one.
    pub const fn classifier(&mut self) -> Option<&mut Classifier> {
        self.classifier.as_mut()
    }

    /// The detector, if there is one.
    pub fn detector(&mut self) -> Option<&mut Detector> {
        match &mut self.finder {
            Finder::Detector(detector) => Some(detector),
            Finder::Localiser(_) => None,
        }
    }

    /// The localiser, if it stands in for a detector.
    pub fn localiser(&mut self) -> Option<&mut Localiser> {
        match &mut self.finder {
            Finder::Detector(_) => None,
            Finder::Localiser(localiser) => Some(localiser),
        }
    }

    /// Finds the animals and persons in `region` of `frame` and says what the animals are, best
    /// detector score first. A box of the heat map that the classifier calls nothing is left out.
    /// One animal is one sighting. `lap` is called as each stage ends, so that the caller can time
    /// them.
    ///
    /// # Errors
    /// If a network fails or gives values that are not finite.
    pub fn look(
        &mut self,
        frame: &Frame,
        region: Rect,
        lap: &mut dyn FnMut(Stage),
    ) -> Result<Vec<Sighting>, VisionError> {
        let found = match &mut self.finder {
            Finder::Detector(detector) => detector.find_timed(frame, region, lap)?,
            Finder::Localiser(localiser) => {
                localiser.localise_timed(frame, region, lap)?.detections
            }
        };
        let by_heat = matches!(self.finder, Finder::Localiser(_));
        let (mut animals, mut persons) = (0, 0);
        let mut seen = Vec::new();
        for detection in one_box_each(&found) {
            let person = detection.class == Class::Person;
            let (asked, most) =
                if person { (&mut persons, MAX_PERSONS) } else { (&mut animals, MAX_CROPS) };
            let asks = |c: &&mut Classifier| *asked < most && c.can_judge(detection.class);
            let mut likeness = Vec::new();
            let classification = match self.classifier.as_mut().filter(asks) {
                Some(classifier) => {
                    *asked += 1;
                    let crop = detection.rect.padded(CROP_PADDING);
                    let answer = classifier.classify_timed(frame, crop, Framing::Crop, lap)?;
                    // Heat only proposes. What the same network, looking closer, calls nothing
                    // is nothing; otherwise an empty yard would be an animal for ever.
                    if by_heat && answer.probs.best() == Class::Nothing {
                        continue;
                    }
                    let dog = !person && !answer.rejected && answer.probs.best() == Class::Dog;
                    if let Some(features) = answer.embedding.as_ref().filter(|_| dog) {
                        likeness = self.gallery.likenesses(features);
                    }
                    Some(answer.classification())
                }
                None => None,
            };
            let dog = Score::clamped(said(&found, detection.rect, Class::Dog).unwrap_or(0.0));
            let sighting = Sighting { detection, classification, dog, likeness };
            if person && sighting.joint() < PERSON_FLOOR {
                continue;
            }
            seen.push(sighting);
        }
        Ok(seen)
    }

    /// What `frame` as a whole shows: the classifier's answer to the whole picture and to the
    /// animal that the detector is surest of, each also mirrored, together. `None` without a
    /// classifier.
    ///
    /// # Errors
    /// If a network fails or gives values that are not finite.
    pub fn describe(&mut self, frame: &Frame) -> Result<Option<ClassifierOutput>, VisionError> {
        let Some(classifier) = &mut self.classifier else { return Ok(None) };
        let found = match &mut self.finder {
            Finder::Detector(detector) => {
                detector.detect_above(frame, Rect::WHOLE, DESCRIBED_FROM)?
            }
            Finder::Localiser(_) => Vec::new(),
        };
        let animal = found.iter().find(|d| !matches!(d.class, Class::Person | Class::Nothing));
        let part = animal.map(|d| d.rect.padded(CROP_PADDING));
        classifier.classify_together(frame, part).map(Some)
    }

    /// Everything in `frame` that a person may want to know of, best first, each animal or person
    /// once: what `look` is for the door, this is for people and for evaluation. A box is reported
    /// from a detector score of `floor` on, whatever the manifest's floor is.
    ///
    /// What an animal is, detector and classifier say together: the score of a class is the
    /// geometric mean of the detector's score for it in this box and the classifier's probability,
    /// and the class is the one with the highest. A person's box stays a person's. What is beyond
    /// the first [`MAX_NAMED`] is the detector's alone. A box that mostly shares its area with a
    /// better one of a dog, a cat or a person is a part of that one, and left out.
    ///
    /// # Errors
    /// If a network fails or gives values that are not finite.
    pub fn inventory(
        &mut self,
        frame: &Frame,
        floor: Score,
    ) -> Result<Vec<Detection>, VisionError> {
        let found = match &mut self.finder {
            Finder::Detector(detector) => detector.detect_above(frame, Rect::WHOLE, floor)?,
            Finder::Localiser(localiser) => localiser.localise(frame, Rect::WHOLE)?.detections,
        };
        let mut named = Vec::new();
        let mut asked = 0;
        for mut thing in one_box_each(&found) {
            let asks = |c: &&mut Classifier| asked < MAX_NAMED && c.can_judge(thing.class);
            if let Some(classifier) = self.classifier.as_mut().filter(asks) {
                asked += 1;
                let crop = thing.rect.padded(CROP_PADDING);
                let answer = classifier.classify(frame, crop, Framing::Crop)?;
                let by_both = |class: Class| {
                    // What is not reported was below the floor, not impossible.
                    let detector = said(&found, thing.rect, class).unwrap_or(floor.get() / 2.0);
                    Score::clamped(detector).with(answer.probs.of(class))
                };
                let classes = match thing.class {
                    Class::Person => &[Class::Person][..],
                    _ => &[Class::Other, Class::Cat, Class::Dog],
                };
                let best = classes.iter().map(|c| (*c, by_both(*c)));
                if let Some((class, score)) = best.max_by(|a, b| a.1.get().total_cmp(&b.1.get())) {
                    (thing.class, thing.score) = (class, score);
                }
                if let Some((label, _)) = answer.topk(1).first()
                    && answer.probs.best() == thing.class
                {
                    thing.label = (*label).to_owned();
                }
            }
            named.push(thing);
        }
        named.sort_by(|a, b| b.score.get().total_cmp(&a.score.get()));
        Ok(without_parts(named))
    }
}

/// The best score that `found` has for `class` where `rect` is; `None` if it has none.
fn said(found: &[Detection], rect: Rect, class: Class) -> Option<f32> {
    let same = |d: &&Detection| d.class == class && d.rect.iou(rect) > SAME_ANIMAL_IOU;
    found.iter().filter(same).map(|d| d.score.get()).reduce(f32::max)
}

/// Leaves out of `named`, which is best first, whatever shares more than [`PART`] of the smaller
/// one's area with a better one of the same class. Other animals come in herds, one behind the
/// other, and stay. (On the boxed pictures held out: AP50 of the detector alone for dogs 0.77 with
/// parts and 0.82 without, persons 0.24 and 0.28, cats 0.93; other animals would fall from 0.50 to
/// 0.44.)
fn without_parts(named: Vec<Detection>) -> Vec<Detection> {
    first_of_each(named, |whole, part| {
        let smaller = whole.rect.area().min(part.rect.area());
        part.class != Class::Other
            && whole.class == part.class
            && whole.rect.overlap(part.rect) > PART * smaller
    })
}

/// The animals and persons among `found`, which is best first: of animals that overlap more than
/// [`SAME_ANIMAL_IOU`] only the best, whatever their labels; persons apart from animals.
fn one_box_each(found: &[Detection]) -> Vec<Detection> {
    let something = found.iter().filter(|d| d.class != Class::Nothing).cloned();
    first_of_each(something, |a, b| {
        (a.class == Class::Person) == (b.class == Class::Person)
            && a.rect.iou(b.rect) > SAME_ANIMAL_IOU
    })
}
