//! The detector: what is where in a picture.

use super::decode;
use super::fast::Ranges;
use super::manifest::Task;
use super::model::Model;
use super::prepare::Preparer;
use super::{Stage, VisionError};
use crate::frame::Frame;
use crate::sight::{Class, Detection};
use crate::units::{Rect, Score};

/// A detector and its buffers.
pub struct Detector {
    model: Model,
    preparer: Preparer,
}

impl Detector {
    /// Takes `model` for a detector.
    ///
    /// # Errors
    /// If it is a classifier.
    pub fn new(model: Model) -> Result<Self, VisionError> {
        let model = model.doing(Task::Detector)?;
        let input = &model.manifest.input;
        let preparer = Preparer::new(input, input.width(), input.height());
        Ok(Self { model, preparer })
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

    /// Everything the network sees in `region` of `frame` with a score above the manifest's
    /// floor, best first. One thing may appear under several labels.
    ///
    /// # Errors
    /// If the network fails, gives a value that is not finite, or a label without a name.
    pub fn detect(&mut self, frame: &Frame, region: Rect) -> Result<Vec<Detection>, VisionError> {
        self.detect_above(frame, region, self.floor())
    }

    /// As [`Detector::detect`], with a floor other than the manifest's.
    ///
    /// # Errors
    /// As [`Detector::detect`].
    pub fn detect_above(
        &mut self,
        frame: &Frame,
        region: Rect,
        floor: Score,
    ) -> Result<Vec<Detection>, VisionError> {
        self.detect_timed(frame, region, floor, &mut |_| {})
    }

    /// The manifest's floor.
    fn floor(&self) -> Score {
        Score::clamped(self.model.manifest.thresholds.score_floor)
    }

    fn person_floor(&self) -> Score {
        Score::clamped(self.model.manifest.thresholds.person_floor)
    }

    /// What the door looks into: everything above the manifest's floor, and persons above theirs.
    pub(super) fn find_timed(
        &mut self,
        frame: &Frame,
        region: Rect,
        lap: &mut dyn FnMut(Stage),
    ) -> Result<Vec<Detection>, VisionError> {
        let (floor, persons) = (self.floor(), self.person_floor());
        let lower = if persons < floor { persons } else { floor };
        let mut found = self.detect_timed(frame, region, lower, lap)?;
        found.retain(|d| d.score > if d.class == Class::Person { persons } else { floor });
        Ok(found)
    }

    pub(super) fn detect_timed(
        &mut self,
        frame: &Frame,
        region: Rect,
        floor: Score,
        lap: &mut dyn FnMut(Stage),
    ) -> Result<Vec<Detection>, VisionError> {
        let resize = self.model.manifest.input.resize;
        let preparer = &mut self.preparer;
        let placed = self.model.network.fill(|out| preparer.prepare(frame, region, resize, out))?;
        lap(Stage::Resize);
        let values = self.model.run()?;
        let manifest = &self.model.manifest;
        let outputs = values.floats(&manifest.name)?;
        let found = decode::decode(manifest, floor.get(), &outputs).map_err(|unknown| {
            VisionError::UnknownLabel { model: manifest.name.clone(), label: unknown.0 }
        })?;
        let detections = found
            .into_iter()
            .filter_map(|found| {
                Some(Detection {
                    rect: placed.to_frame(found.bounds)?,
                    class: self.model.classes[found.label],
                    label: manifest.labels.names[found.label].clone(),
                    score: Score::clamped(found.score),
                })
            })
            .collect();
        lap(Stage::Detect);
        Ok(detections)
    }
}
