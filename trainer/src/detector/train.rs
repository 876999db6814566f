//! Trains a detector on the taps of a frozen backbone and writes it as a model of the door.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Tensor};
use image::RgbImage;
use pawlatch_core::sight::Class;
use pawlatch_core::vision::manifest::{
    ClassLabels, Colour, FORMAT, Input, Kernel, LabelSet, Labels, Layout, Output, Resize,
    Thresholds, Training as Origin,
};
use pawlatch_core::vision::{Manifest, Task, sha256};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::{MAPS, STRIDES, Target, grow, loss, target, view};
use crate::cache::{Cache, Normalisation, View};
use crate::data::augment::{Augmentation, resized};
use crate::data::{Dataset, LabelledBox, Scene, Split};
use crate::engine::{Model, to_host};
use crate::evaluate::door_class;
use crate::export::Card;
use crate::net::Net;
use crate::net::onnx::Precision;
use crate::recipe::Recipe;
use crate::train::{Objective, Trained, Training, bar, batch_shape, write_whole};

/// A detector training as a TOML file describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Side of the square input, a multiple of 32 pixels.
    pub side: usize,
    /// Subtracted from each channel of 8-bit pixels.
    pub mean: [f32; 3],
    /// Divides each channel.
    pub std: [f32; 3],
    /// Values of the backbone at strides 8, 16 and 32.
    pub taps: [String; 3],
    /// Classes to find, in the order of the labels.
    pub classes: Vec<String>,
    /// Smallest share of a picture that a random view shows.
    pub smallest_view: f32,
    /// Variants of each picture.
    pub variants: usize,
    /// How it is trained; the seed is the recipe's.
    pub recipe: Recipe,
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// If the file cannot be read or has an unknown key.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is no detector plan", path.display()))
    }
}

/// Scenes seen through the frozen backbone.
struct Seen {
    cache: Cache,
    targets: Vec<Vec<Target>>,
}

struct Boxes<'a> {
    plan: &'a Plan,
    train: Seen,
    validate: Seen,
}

impl Boxes<'_> {
    fn batch_loss(
        &self,
        model: &Model,
        seen: &Seen,
        batch: &[(usize, usize)],
    ) -> Result<Tensor<1>> {
        let mut data = Vec::new();
        let mut targets = Vec::new();
        for &(i, variant) in batch {
            seen.cache.read(i, variant, &mut data)?;
            targets.push(seen.targets[i][variant].clone());
        }
        let x = model.batch(data, batch_shape(&seen.cache.shape, batch.len()))?;
        loss(model, &model.forward(x, None)?, &targets, self.plan.classes.len())
    }
}

impl Objective for Boxes<'_> {
    fn len(&self) -> usize {
        self.train.cache.len
    }

    fn loss(&self, model: &Model, batch: &[usize], rng: &mut StdRng) -> Result<Tensor<1>> {
        let drawn: Vec<_> =
            batch.iter().map(|&i| (i, rng.random_range(0..self.plan.variants))).collect();
        self.batch_loss(model, &self.train, &drawn)
    }

    fn validate(&self, net: &Net, device: &Device) -> Result<(f32, f32)> {
        let model = Model::new(net.clone(), device);
        let all: Vec<_> = (0..self.validate.cache.len).map(|i| (i, 0)).collect();
        let mut total = 0.0;
        for batch in all.chunks(self.plan.recipe.batch) {
            total +=
                to_host(self.batch_loss(&model, &self.validate, batch)?)?[0] * batch.len() as f32;
        }
        let mean = total / all.len() as f32;
        Ok((mean, 1.0 / (1.0 + mean)))
    }
}

/// Trains a detector on `backbone`, frozen.
///
/// # Errors
/// If the dataset has no boxes, a tap does not exist or has another stride, a picture cannot be
/// read, the loss is not a number or the disk is full.
pub fn train(
    backbone: &Net,
    data: &Dataset,
    plan: &Plan,
    work_dir: &Path,
    device: &Device,
) -> Result<(Net, Trained)> {
    ensure!(plan.side % 32 == 0, "the side {} is no multiple of 32", plan.side);
    let side = plan.side;
    let taps = [0, 1, 2].map(|i| plan.taps[i].as_str());
    let mut sized = backbone.clone();
    sized.input_shape = [None, Some(3), Some(side), Some(side)];
    let shapes = sized.shapes([1, 3, side, side])?;
    let mut channels = [0; 3];
    for i in 0..3 {
        let shape = shapes.get(taps[i]).with_context(|| format!("no node makes '{}'", taps[i]))?;
        ensure!(
            shape.len() == 4 && shape[2] == side / STRIDES[i],
            "'{}' has shape {shape:?}, not stride {}",
            taps[i],
            STRIDES[i]
        );
        channels[i] = shape[1];
    }
    let (front, back) = sized.tap(&taps, [1, 3, side, side])?;
    let back = grow(back, taps, channels, plan.classes.len(), plan.recipe.seed)?;
    let of = |split| data.scenes.iter().filter(|s| s.split == split).collect::<Vec<_>>();
    let (train, validate) = (of(Split::Train), of(Split::Validate));
    ensure!(
        !train.is_empty() && !validate.is_empty(),
        "the dataset has no boxed pictures in one of its splits"
    );
    let objective = Boxes {
        plan,
        train: look(&front, &train, plan, plan.variants, work_dir, "training scenes")?,
        validate: look(&front, &validate, plan, 1, work_dir, "validation scenes")?,
    };
    let trained =
        Training::new(&plan.recipe, &objective, &work_dir.join("detector")).run(&back, device)?;
    Ok((sized.untap(trained.net.clone())?, trained))
}

/// What variant `v` of scene `i` shows: the whole, or a random view.
fn drawn(
    scene: &Scene,
    plan: &Plan,
    i: usize,
    variant: usize,
) -> (pawlatch_core::units::Rect, bool, Vec<LabelledBox>, StdRng) {
    let mut rng = StdRng::seed_from_u64(plan.recipe.seed ^ (i as u64) << 20 ^ variant as u64);
    if variant == 0 {
        return (pawlatch_core::units::Rect::WHOLE, false, scene.boxes.clone(), rng);
    }
    let (part, flip, boxes) = view(scene, plan.smallest_view, &mut rng);
    (part, flip, boxes, rng)
}

fn look(
    front: &Net,
    scenes: &[&Scene],
    plan: &Plan,
    variants: usize,
    work_dir: &Path,
    what: &str,
) -> Result<Seen> {
    let augmentation = Augmentation {
        flip: 0.0,
        smallest_crop: 1.0,
        rotate_degrees: 0.0,
        half_hidden: 0.0,
        ..Augmentation::default()
    };
    let render = |i: usize, variant: usize, picture: &RgbImage| {
        let (part, flip, _, mut rng) = drawn(scenes[i], plan, i, variant);
        if variant == 0 {
            return resized(picture, part, plan.side as u32);
        }
        let mut seen = augmentation.apply(picture, part, plan.side as u32, &mut rng)?;
        if flip {
            image::imageops::flip_horizontal_in_place(&mut seen);
        }
        Ok(seen)
    };
    let view = View {
        front,
        side: plan.side,
        normalisation: Normalisation { mean: plan.mean, std: plan.std },
    };
    let files: Vec<&Path> = scenes.iter().map(|s| s.file.as_path()).collect();
    let key = serde_json::to_vec(&(scenes, &plan.smallest_view, plan.recipe.seed))?;
    let bar = bar(0, what);
    let cache =
        Cache::rendered(&view, &files, variants, &key, &render, &work_dir.join("cache"), &bar);
    bar.finish_and_clear();
    let targets = scenes.iter().enumerate().map(|(i, scene)| {
        (0..variants)
            .map(|v| {
                target(&drawn(scene, plan, i, v).2, &scene.exhaustive_for, &plan.classes, plan.side)
            })
            .collect::<Result<Vec<_>>>()
            .with_context(|| scene.file.display().to_string())
    });
    Ok(Seen { cache: cache?, targets: targets.collect::<Result<_>>()? })
}

/// Writes the detector as a model directory.
///
/// # Errors
/// If a class is none of the door's, or a file cannot be written.
pub fn export(dir: &Path, net: &Net, data: &Dataset, plan: &Plan, card: &Card<'_>) -> Result<()> {
    let onnx = net.encode(Precision::Half)?;
    let mut classes = ClassLabels::default();
    for label in &plan.classes {
        let set = LabelSet::Name(label.clone());
        match door_class(label)? {
            Class::Dog => classes.dog.push(set),
            Class::Cat => classes.cat.push(set),
            Class::Person => classes.person.push(set),
            Class::Other => classes.other.push(set),
            Class::Nothing => classes.nothing.push(set),
        }
    }
    let manifest = Manifest {
        manifest: FORMAT,
        name: card.name.clone(),
        version: card.version.into(),
        task: Task::Detector,
        file: "model.onnx".into(),
        sha256: sha256(&onnx),
        licence: card.licence.into(),
        source: card.source.into(),
        input: Input {
            name: net.input.clone(),
            shape: [1, 3, plan.side, plan.side],
            layout: Layout::Nchw,
            colour: Colour::Rgb,
            mean: plan.mean,
            std: plan.std,
            resize: Resize::Stretch,
            kernel: Kernel::Bicubic,
        },
        output: Output::Pawlatch {
            names: MAPS.map(String::from).to_vec(),
            strides: STRIDES.to_vec(),
            nms_iou: 0.5,
        },
        calibration: None,
        thresholds: Thresholds::default(),
        open_set: None,
        metrics: Vec::new(),
        training: Some(Origin {
            method: format!(
                "pawlatch-trainer detector: {} epochs on frozen taps {:?}",
                plan.recipe.epochs, plan.taps
            ),
            data: format!("{} pictures with boxes", data.scenes.len()),
            data_sha256: Some(data.sha256.clone()),
            seed: Some(plan.recipe.seed),
            commit: card.commit.clone(),
        }),
        labels: Labels { rest: Class::Other, classes, names: plan.classes.clone() },
    };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    write_whole(&dir.join("model.onnx"), &onnx)?;
    write_whole(&dir.join("model.toml"), manifest.to_toml()?.as_bytes())
}
