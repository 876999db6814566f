//! The exam: pictures and visits composed from the bundled photographs, which a set of networks
//! must not do worse than the one in use, and which a new program must do as well as the old.
//!
//! It is a gate against broken or mistaken networks, not a measure of how good they are: the
//! pictures are few and not of this door (docs/evaluation.md is the measure).

use image::{RgbImage, imageops};
use pawlatch_core::event::What;
use pawlatch_core::eye::Eye;
use pawlatch_core::frame::{Frame, PictureError};
use pawlatch_core::sight::{Class, Sighting};
use pawlatch_core::units::{Rect, Uptime};
use pawlatch_core::vision::VisionError;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::camera::CameraError;
use crate::config::Config;
use crate::demo::{DemoError, Visit, Yard, visits};
use crate::models::{InUse, ModelsError};
use crate::replay::Player;

/// Probability of a dog from which a picture counts as one of a dog.
const SURE: f32 = 0.5;

/// Why the exam could not be held.
#[derive(Debug, Error)]
pub enum ExamError {
    /// The models cannot be loaded.
    #[error(transparent)]
    Models(#[from] ModelsError),
    /// The bundled pictures are damaged.
    #[error(transparent)]
    Pictures(#[from] DemoError),
    /// A composed picture cannot be used.
    #[error("a picture of the exam cannot be used")]
    Picture(#[from] PictureError),
    /// A network failed on a picture.
    #[error("the networks fail on a picture of the exam")]
    Vision(#[from] VisionError),
    /// The door failed on a visit.
    #[error("the door fails on a visit of the exam")]
    Visit(#[from] CameraError),
}

/// How an exam went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Marks {
    /// Pictures shown.
    pub pictures: u32,
    /// Pictures of something else that were taken for a dog.
    pub mistaken: u32,
    /// Pictures of the dog in which none was found.
    pub missed: u32,
    /// Visits of somebody else for whom the whole door opened.
    pub let_in: u32,
    /// Visits of the dog for whom it stayed shut.
    pub kept_out: u32,
}

impl Marks {
    /// What is worse than in `other`, in words.
    pub fn worse_than(&self, other: &Self) -> Vec<String> {
        let lines = [
            ("pictures of others are taken for a dog", self.mistaken, other.mistaken),
            ("pictures of the dog are missed", self.missed, other.missed),
            ("visits of others open the door", self.let_in, other.let_in),
            ("visits of the dog find it shut", self.kept_out, other.kept_out),
        ];
        lines
            .into_iter()
            .filter(|(_, new, old)| new > old)
            .map(|(what, new, old)| format!("{new} {what}, not {old}"))
            .collect()
    }
}

/// Puts `models` through the exam: the door's defaults, whatever this door is configured to do.
///
/// # Errors
/// If the models cannot be loaded or fail on a picture.
pub fn examine(models: &InUse) -> Result<Marks, ExamError> {
    let config = Config::default();
    let yard = Yard::load()?;
    let visits = visits();
    let mut marks = Marks::default();
    let mut vision = models.vision()?;
    for (visit, truth, times) in SUBJECTS {
        for ms in times {
            let scene = yard.scene(&visits[visit], ms);
            for light in LIGHTS {
                let picture = light(&scene);
                let (width, height) = picture.dimensions();
                let frame = Frame::from_rgb(picture.into_raw(), width, height, Uptime::ZERO)?;
                let dog = vision.look(&frame, Rect::WHOLE, &mut |_| {})?.iter().any(is_dog);
                marks.pictures += 1;
                marks.mistaken += u32::from(dog && truth != Class::Dog);
                marks.missed += u32::from(!dog && truth == Class::Dog);
            }
        }
    }
    for visit in &visits[..VISITS] {
        let opened = opens(models, &config, &yard, visit)?;
        marks.let_in += u32::from(opened && !visit.is_of_the_dog());
        marks.kept_out += u32::from(!opened && visit.is_of_the_dog());
    }
    Ok(marks)
}

/// Number of the visit, who comes in it, and when they are well in view, milliseconds.
const SUBJECTS: [(usize, Class, [u64; 3]); 3] = [
    (0, Class::Dog, [2_900, 3_800, 4_800]),
    (1, Class::Cat, [2_700, 4_300, 5_900]),
    (3, Class::Other, [2_500, 4_000, 6_000]),
];

/// The dog alone and the cat alone are also played through the whole door.
const VISITS: usize = 2;

/// How the same scene looks to other cameras and at other hours.
const LIGHTS: [fn(&RgbImage) -> RgbImage; 5] = [
    RgbImage::clone,
    imageops::flip_horizontal,
    // Dusk.
    |scene| shaded(scene, |[r, g, b]| [r, g, b].map(|v| (f32::from(v) * 0.4) as u8)),
    // Infra-red light gives no colour.
    |scene| shaded(scene, |rgb| [luma(rgb); 3]),
    // A lens with rain on it.
    |scene| imageops::blur(scene, 2.0),
];

fn shaded(scene: &RgbImage, shade: fn([u8; 3]) -> [u8; 3]) -> RgbImage {
    let mut scene = scene.clone();
    for pixel in scene.pixels_mut() {
        pixel.0 = shade(pixel.0);
    }
    scene
}

/// Luma as in ITU-R BT.601.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 299 + u32::from(g) * 587 + u32::from(b) * 114) / 1_000) as u8
}

fn is_dog(sighting: &Sighting) -> bool {
    sighting
        .classification
        .as_ref()
        .is_some_and(|c| !c.rejected && c.probs.of(Class::Dog).get() >= SURE)
}

/// Whether the door opens during `visit`.
fn opens(models: &InUse, config: &Config, yard: &Yard, visit: &Visit) -> Result<bool, ExamError> {
    let eye = Eye::new(config.gate.clone(), models.vision()?);
    let mut player = Player::new(eye, config, None);
    let passage = |now, latch| visit.passage(now, latch);
    let mut opened = false;
    player.play(&mut yard.film(visit), &passage, &mut |moment| -> Result<(), CameraError> {
        let events = &moment.decision.events;
        opened |= events.iter().any(|event| matches!(event.what, What::Opened { .. }));
        Ok(())
    })?;
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worse_is_worse_in_any_way() {
        let old = Marks { pictures: 45, mistaken: 1, missed: 2, let_in: 0, kept_out: 0 };
        assert!(old.worse_than(&old).is_empty());
        let better = Marks { mistaken: 0, missed: 0, ..old };
        assert!(better.worse_than(&old).is_empty());
        assert_eq!(old.worse_than(&better).len(), 2);
        let eager = Marks { missed: 0, mistaken: 2, ..old };
        assert_eq!(eager.worse_than(&old), ["2 pictures of others are taken for a dog, not 1"]);
    }
}
