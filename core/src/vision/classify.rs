//! The classifier: what a picture, or a crop of it, shows.

use std::sync::Arc;

use super::decode::sigmoid;
use super::fast::Ranges;
use super::manifest::{Calibration, OpenSet, Output, PerClass, Resize, Task};
use super::model::Model;
use super::prepare::Preparer;
use super::{Stage, VisionError};
use crate::frame::Frame;
use crate::sight::{Class, ClassProbs, Classification};
use crate::units::{Rect, Score};

/// How a part of a frame is fitted into the classifier's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A scene: fitted as the manifest says, usually the middle square.
    Whole,
    /// The box of an animal: stretched, so that nothing of the animal is cut off.
    Crop,
}

/// The mean of several views is timid, since they seldom err together: this power of it had the
/// least log-loss on the labelled pictures (0.082 against 0.089).
const TOGETHER: f32 = 1.25;

/// A classifier and its buffers.
pub struct Classifier {
    model: Model,
    preparer: Preparer,
    labels: Arc<[String]>,
}

/// What a classifier said of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifierOutput {
    /// Calibrated probabilities of the door's classes.
    pub probs: ClassProbs,
    /// The picture is like nothing in training, by the manifest's `open_set`.
    pub rejected: bool,
    /// The network's embedding, if the manifest names one.
    pub embedding: Option<Vec<f32>>,
    labels: Arc<[String]>,
    label_probs: Vec<f32>,
}

impl ClassifierOutput {
    /// The `k` most probable labels, most probable first. Probabilities of labels have the
    /// calibration's temperature, not its bias, which is per class.
    pub fn topk(&self, k: usize) -> Vec<(&str, Score)> {
        let mut order: Vec<usize> = (0..self.label_probs.len()).collect();
        order.sort_by(|a, b| self.label_probs[*b].total_cmp(&self.label_probs[*a]));
        order
            .into_iter()
            .take(k)
            .map(|i| (self.labels[i].as_str(), Score::clamped(self.label_probs[i])))
            .collect()
    }

    /// The probability of each label, in the network's order.
    pub fn label_probs(&self) -> &[f32] {
        &self.label_probs
    }

    /// Several answers as one: the geometric mean of their probabilities, so that no single view
    /// decides alone, to the power of [`TOGETHER`]. Unlike anything in training is what every view
    /// says is. The embedding is that of `self`.
    fn joined(mut self, others: &[Self]) -> Self {
        let power = TOGETHER / (1.0 + others.len() as f32);
        let mean = |own: f32, of: &dyn Fn(&Self) -> f32| {
            let log = |p: f32| p.max(1e-6).ln();
            (power * (log(own) + others.iter().map(|o| log(of(o))).sum::<f32>())).exp()
        };
        let masses = Class::ALL.map(|c| mean(self.probs.of(c).get(), &|o| o.probs.of(c).get()));
        self.probs = ClassProbs::from_masses(masses).unwrap_or(self.probs);
        for (i, own) in self.label_probs.iter_mut().enumerate() {
            *own = mean(*own, &|o| o.label_probs[i]);
        }
        let total: f32 = self.label_probs.iter().sum();
        self.label_probs.iter_mut().for_each(|p| *p /= total);
        self.rejected &= others.iter().all(|o| o.rejected);
        self
    }

    /// What the door needs of it.
    pub const fn classification(&self) -> Classification {
        Classification { probs: self.probs, rejected: self.rejected }
    }
}

impl Classifier {
    /// Takes `model` for a classifier.
    ///
    /// # Errors
    /// If it is a detector.
    pub fn new(model: Model) -> Result<Self, VisionError> {
        let model = model.doing(Task::Classifier)?;
        let input = &model.manifest.input;
        let preparer = Preparer::new(input, input.width(), input.height());
        let labels = model.manifest.labels.names.clone().into();
        Ok(Self { model, preparer, labels })
    }

    /// The model.
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// What the values that could be held in 8 bits were so far, if the model is
    /// [watched](Model::watched).
    pub fn ranges(&self) -> Option<&Ranges> {
        self.model.network.ranges()
    }

    /// Whether it can say of a box that the detector took for `class` what is in it: of a person's
    /// only if one of its labels is a person's.
    pub fn can_judge(&self, class: Class) -> bool {
        class != Class::Person || self.model.classes.contains(&class)
    }

    /// Says what `part` of `frame` shows.
    ///
    /// # Errors
    /// If the network fails or gives a value that is not finite.
    pub fn classify(
        &mut self,
        frame: &Frame,
        part: Rect,
        framing: Framing,
    ) -> Result<ClassifierOutput, VisionError> {
        self.classify_timed(frame, part, framing, &mut |_| {})
    }

    /// Says what `frame` shows, by the whole of it and by `part`, each as it is and mirrored.
    ///
    /// # Errors
    /// As [`Classifier::classify`].
    pub(super) fn classify_together(
        &mut self,
        frame: &Frame,
        part: Option<Rect>,
    ) -> Result<ClassifierOutput, VisionError> {
        let mut view = |part, framing, mirrored| {
            self.see(frame, part, framing, mirrored)?;
            self.interpret()
        };
        let first = view(Rect::WHOLE, Framing::Whole, false)?;
        let mut others = vec![view(Rect::WHOLE, Framing::Whole, true)?];
        if let Some(part) = part {
            others.push(view(part, Framing::Crop, false)?);
            others.push(view(part, Framing::Crop, true)?);
        }
        Ok(first.joined(&others))
    }

    pub(super) fn classify_timed(
        &mut self,
        frame: &Frame,
        part: Rect,
        framing: Framing,
        lap: &mut dyn FnMut(Stage),
    ) -> Result<ClassifierOutput, VisionError> {
        self.see(frame, part, framing, false)?;
        lap(Stage::Resize);
        let answer = self.interpret()?;
        lap(Stage::Classify);
        Ok(answer)
    }

    /// Prepares the network's input.
    fn see(
        &mut self,
        frame: &Frame,
        part: Rect,
        framing: Framing,
        mirrored: bool,
    ) -> Result<(), VisionError> {
        let resize = match framing {
            Framing::Whole => self.model.manifest.input.resize,
            Framing::Crop => Resize::Stretch,
        };
        let (preparer, width) = (&mut self.preparer, self.model.manifest.input.width());
        self.model.network.fill(|out| {
            preparer.prepare(frame, part, resize, out)?;
            if mirrored {
                mirror(out, width);
            }
            Ok(())
        })
    }

    fn interpret(&mut self) -> Result<ClassifierOutput, VisionError> {
        let values = self.model.run()?;
        let manifest = &self.model.manifest;
        let outputs = values.floats(&manifest.name)?;
        let mut outputs = outputs.iter();
        let not_finite = || VisionError::NotFinite { model: manifest.name.clone() };
        let logits = outputs.next().ok_or_else(not_finite)?;
        let embedding = match &manifest.output {
            Output::Softmax { embedding: Some(_), .. }
            | Output::Sigmoid { embedding: Some(_), .. } => outputs.next().map(|e| e.to_vec()),
            _ => None,
        };
        let rejected = match manifest.open_set {
            None => false,
            Some(OpenSet::Energy { reject_below }) => log_sum_exp(logits) < reject_below,
            // Without its distance nothing is known to be familiar.
            Some(OpenSet::Distance { reject_above, .. }) => outputs
                .next()
                .and_then(|d| d.first())
                .is_none_or(|distance| *distance > reject_above),
        };
        let exclusive = matches!(manifest.output, Output::Softmax { .. });
        let calibration = manifest.calibration.as_ref();
        let (label_probs, probs) =
            probabilities(logits, &self.model.classes, exclusive, calibration)
                .ok_or_else(not_finite)?;
        let labels = Arc::clone(&self.labels);
        Ok(ClassifierOutput { probs, rejected, embedding, labels, label_probs })
    }
}

/// Exchanges left and right of planes with rows of `width`.
pub(super) fn mirror(planes: &mut [f32], width: usize) {
    planes.chunks_exact_mut(width).for_each(<[f32]>::reverse);
}

/// Probabilities of labels and of the door's classes.
///
/// Exclusive labels: softmax of `logits / temperature`, summed by class. Labels that may hold
/// together: the sigmoid of each; a class has its best label's, and "nothing" also has what is
/// left when no class holds, the product of `1 - p`. Then each class's logarithm gets its bias,
/// and the five are scaled to sum to 1. `None` if nothing finite comes of it.
pub fn probabilities(
    logits: &[f32],
    classes: &[Class],
    exclusive: bool,
    calibration: Option<&Calibration>,
) -> Option<(Vec<f32>, ClassProbs)> {
    let temperature = calibration.map_or(1.0, |c| c.temperature);
    let bias = calibration.map_or(PerClass::default(), |c| c.bias).to_array();
    let mut masses = [0.0_f32; 5];
    let labels: Vec<f32>;
    if exclusive {
        labels = softmax(logits, temperature);
        for (p, class) in labels.iter().zip(classes) {
            masses[*class as usize] += p;
        }
    } else {
        labels = logits.iter().map(|l| sigmoid(l / temperature)).collect();
        for (p, class) in labels.iter().zip(classes) {
            masses[*class as usize] = masses[*class as usize].max(*p);
        }
        masses[Class::Nothing as usize] += masses.iter().map(|p| 1.0 - p).product::<f32>();
    }
    for (mass, bias) in masses.iter_mut().zip(bias) {
        *mass *= bias.exp();
    }
    Some((labels, ClassProbs::from_masses(masses)?))
}

/// Softmax of `logits / temperature`.
pub(super) fn softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut masses: Vec<f32> = logits.iter().map(|l| ((l - top) / temperature).exp()).collect();
    let total: f32 = masses.iter().sum();
    masses.iter_mut().for_each(|m| *m /= total);
    masses
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    top + logits.iter().map(|l| (l - top).exp()).sum::<f32>().ln()
}
