//! Trains a detector on a classifier's backbone and writes it as a model of the door.
//!
//! As a classifier, it is trained in stages: what lies before a stage's cut is frozen, runs once
//! per view in tract and is kept on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Tensor};
use image::RgbImage;
use pawlatch_core::sight::Class;
use pawlatch_core::units::Rect;
use pawlatch_core::vision::manifest::{
    ClassLabels, Colour, FORMAT, Input, Kernel, LabelSet, Labels, Layout, Output, Resize,
    Thresholds, Training as Origin,
};
use pawlatch_core::vision::{Manifest, Model as DoorModel, Task, sha256};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::loss::{Truth, loss};
use super::score::{Report, score};
use super::view::{Views, paint, truth};
use super::{MAPS, STRIDES, grow};
use crate::cache::{Cache, View};
use crate::data::augment::Augmentation;
use crate::data::{Dataset, Scene, Split};
use crate::engine::Model;
use crate::evaluate::door_class;
use crate::export::Card;
use crate::files::{Work, write_whole};
use crate::net::Net;
use crate::net::onnx::Precision;
use crate::plan::{self, Seen};
use crate::recipe::Recipe;
use crate::train::{Epoch, Objective, Training, batch_shape};
use crate::workers::bar;

/// A picture is seen at most this many times in an epoch for the sake of a rare class.
const MOST_REPEATS: f32 = 4.0;

/// A detector training as a TOML file describes it. `side` is a multiple of 32, and distortions
/// are those of colour, sharpness and the like: geometry is the views'.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// How pictures are seen.
    #[serde(flatten)]
    pub seen: Seen,
    /// Values of the backbone at strides 8, 16 and 32; what follows the last is cut off.
    pub taps: [String; 3],
    /// Classes to find, in the order of the labels.
    pub classes: Vec<String>,
    /// A class in a smaller share of the pictures than this has its pictures repeated.
    pub fair_share: f32,
    /// Most training pictures of one source: one that abounds would be all there is to learn.
    pub most_per_source: usize,
    /// What is seen of the scenes.
    #[serde(default)]
    pub views: Views,
    /// Run in order, each on the result of the one before.
    pub stage: Vec<Stage>,
}

/// One stage of a training.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Values at which the network is cut: everything that makes them is frozen.
    pub cut: Vec<String>,
    /// Views of each picture.
    pub variants: usize,
    /// Factor of the rate for what the backbone had learnt before; at 0 it stays as it is.
    pub backbone_pace: f32,
    /// How it is trained.
    pub recipe: Recipe,
}

impl plan::Plan for Plan {
    const KIND: &'static str = "detector plan";

    fn stages(&self) -> impl Iterator<Item = (&Recipe, usize)> {
        self.stage.iter().map(|s| (&s.recipe, s.variants))
    }

    fn check_own(&self) -> Result<()> {
        for (n, stage) in self.stage.iter().enumerate() {
            stage.recipe.check_for_boxes().with_context(|| format!("stage {}", n + 1))?;
        }
        Ok(())
    }
}

/// Detection as something to train for, on views seen through the frozen part.
struct Detection<'a> {
    plan: &'a Plan,
    stage: &'a Stage,
    data: &'a Dataset,
    /// The whole network, with the parameters that are frozen.
    whole: &'a Net,
    /// Parameters that the backbone brought along.
    learnt: BTreeSet<String>,
    cache: Cache,
    truths: Vec<Vec<Truth>>,
}

impl Objective for Detection<'_> {
    fn len(&self) -> usize {
        self.cache.len
    }

    fn identity(&self) -> String {
        let (cache, data) = (self.cache.key(), &self.data.sha256);
        format!("{cache} {data} {:?} {}", self.plan.classes, self.stage.backbone_pace)
    }

    fn loss(&self, model: &Model, batch: &[usize], rng: &mut StdRng) -> Result<Tensor<1>> {
        let (mut data, mut truths) = (Vec::new(), Vec::new());
        for &i in batch {
            let variant = rng.random_range(0..self.stage.variants);
            self.cache.read(i, variant, &mut data)?;
            truths.push(self.truths[i][variant].clone());
        }
        let x = model.batch(data, batch_shape(&self.cache.shape, batch.len()))?;
        let values = model.forward(x, None)?;
        loss(model, &values, &truths, self.plan.classes.len(), self.plan.seen.side)
    }

    fn pace(&self, param: &str) -> f32 {
        if self.learnt.contains(param) { self.stage.backbone_pace } else { 1.0 }
    }

    /// By the mean AP50 of the classes, as the door finds them.
    fn validate(&self, net: &Net, _: &Device) -> Result<(f32, f32)> {
        let mut whole = self.whole.clone();
        whole.params.extend(net.params.clone());
        let onnx = whole.encode(Precision::Half)?;
        let manifest = manifest(&whole, &onnx, self.plan, &Card::nameless())?;
        let report =
            score(DoorModel::from_parts(manifest, &onnx)?, self.data, Split::Validate, None)?;
        print!("{}", report.text());
        let mean = report.mean_ap50() as f32;
        Ok((1.0 - mean, mean))
    }
}

/// Trains a detector on `backbone`. Caches and checkpoints are kept in `work`, so that a run that
/// was stopped goes on where it was. With `finish` it trains no further: the best epoch so far of
/// each stage that has finished one is the result.
///
/// # Errors
/// If the dataset has no boxes, a tap or cut does not exist, a tap has another stride, a picture
/// cannot be read, the loss is not a number or the disk is full; with `finish`, if no epoch was
/// ever finished.
pub fn train(
    backbone: &Net,
    data: &Dataset,
    plan: &Plan,
    work: &Work,
    devices: &[Device],
    finish: bool,
) -> Result<(Net, Vec<Vec<Epoch>>)> {
    let taps = [0, 1, 2].map(|i| plan.taps[i].as_str());
    let mut net = grow(backbone, plan.seen.side, taps, plan.classes.len(), plan.seen.seed)?;
    let of = |split| data.scenes.iter().filter(|s| s.split == split).collect::<Vec<_>>();
    let (mut scenes, validate) = (of(Split::Train), of(Split::Validate));
    limit(&mut scenes, plan);
    ensure!(
        !scenes.is_empty() && !validate.is_empty(),
        "the dataset has no boxed pictures in one of its splits"
    );
    let order = repeated(&scenes, plan);
    let mut history = Vec::new();
    for (n, stage) in plan.stage.iter().enumerate() {
        let dir = work.run_dir.join(format!("stage{}", n + 1));
        if finish && !Training::begun(&dir) {
            break;
        }
        println!(
            "stage {} of {}: {} pictures, {} views each epoch; everything after {:?} is trained",
            n + 1,
            plan.stage.len(),
            scenes.len(),
            order.len(),
            stage.cut
        );
        let cut: Vec<&str> = stage.cut.iter().map(String::as_str).collect();
        let (front, back) = net.cut_many(&cut, [1, 3, plan.seen.side, plan.seen.side])?;
        let (cache, truths) = look(&front, &scenes, &order, plan, stage.variants, work)?;
        let objective = Detection {
            plan,
            stage,
            data,
            whole: &net,
            learnt: backbone.params.keys().cloned().collect(),
            cache,
            truths,
        };
        let training = Training::new(&stage.recipe, &objective, &dir);
        let trained =
            training.run_until(&back, devices, if finish { 0 } else { stage.recipe.epochs })?;
        net.params.extend(trained.net.params);
        history.push(trained.history);
    }
    ensure!(
        !history.is_empty(),
        "there is nothing to finish: {} holds no finished epoch",
        work.run_dir.display()
    );
    Ok((net, history))
}

/// Validation loss and score of the epoch that the last stage's result comes from.
pub fn best(history: &[Vec<Epoch>]) -> (f32, f32) {
    let epochs = history.last().into_iter().flatten();
    let best = epochs.min_by(|a, b| a.validation_loss.total_cmp(&b.validation_loss));
    best.map_or((f32::NAN, 0.0), |e| (e.validation_loss, e.accuracy))
}

/// Leaves out pictures of sources that have too many: a random choice, but first those that show no
/// rare class, since what is rare is repeated.
fn limit(scenes: &mut Vec<&Scene>, plan: &Plan) {
    let wanted = wanted(scenes, plan);
    let mut by_source: BTreeMap<&str, Vec<(bool, &Path)>> = BTreeMap::new();
    for scene in scenes.iter() {
        let common = repeats(scene, plan, &wanted) <= 1.0;
        by_source.entry(&scene.source).or_default().push((common, &scene.file));
    }
    let mut kept = BTreeSet::new();
    let mut rng = StdRng::seed_from_u64(plan.seen.seed);
    for mut files in by_source.into_values() {
        files.shuffle(&mut rng);
        files.sort_by_key(|(common, _)| *common);
        kept.extend(files.into_iter().take(plan.most_per_source).map(|(_, file)| file));
    }
    scenes.retain(|s| kept.contains(s.file.as_path()));
}

/// For each class how often its pictures are to be seen in an epoch: as often as would give it its
/// fair share (as Gupta et al. 2019, without the square root).
fn wanted(scenes: &[&Scene], plan: &Plan) -> Vec<f32> {
    let share = |class: &String| {
        scenes.iter().filter(|s| s.shows(class)).count() as f32 / scenes.len() as f32
    };
    let times = |class| (plan.fair_share / share(class).max(1e-6)).clamp(1.0, MOST_REPEATS);
    plan.classes.iter().map(times).collect()
}

/// How often a picture is seen for the sake of its rarest class.
fn repeats(scene: &Scene, plan: &Plan, wanted: &[f32]) -> f32 {
    let classes = plan.classes.iter().zip(wanted);
    classes.filter(|(c, _)| scene.shows(c)).map(|(_, w)| *w).fold(1.0, f32::max)
}

/// Numbers of the scenes of one epoch: those with a rare class come several times.
fn repeated(scenes: &[&Scene], plan: &Plan) -> Vec<usize> {
    let wanted = wanted(scenes, plan);
    let mut rng = StdRng::seed_from_u64(plan.seen.seed);
    let mut order = Vec::new();
    for (i, scene) in scenes.iter().enumerate() {
        let most = repeats(scene, plan, &wanted);
        let times = most as usize + usize::from(rng.random::<f32>() < most.fract());
        order.extend(std::iter::repeat_n(i, times));
    }
    order
}

/// Draws the views, runs them through the frozen part, and says what is in them.
fn look(
    front: &Net,
    scenes: &[&Scene],
    order: &[usize],
    plan: &Plan,
    variants: usize,
    work: &Work,
) -> Result<(Cache, Vec<Vec<Truth>>)> {
    let drawn = |i: usize, variant: usize| {
        let mut rng = StdRng::seed_from_u64(plan.seen.seed ^ (i as u64) << 20 ^ variant as u64);
        (plan.views.draw(order[i], scenes, &mut rng), rng)
    };
    let distortion = Augmentation {
        flip: 0.0,
        smallest_crop: 1.0,
        rotate_degrees: 0.0,
        half_hidden: 0.0,
        ..plan.seen.augmentation.clone()
    };
    let side = plan.seen.side as u32;
    let render = |i: usize, variant: usize, picture: &RgbImage| {
        let (pieces, mut rng) = drawn(i, variant);
        let view = paint(&pieces, scenes, (order[i], picture), side)?;
        distortion.apply(&view, Rect::WHOLE, side, &mut rng)
    };
    let view = View { front, side: plan.seen.side, normalisation: plan.seen.normalisation() };
    let files: Vec<&Path> = order.iter().map(|&i| scenes[i].file.as_path()).collect();
    let key = serde_json::to_vec(&(scenes, &plan.views, &distortion, plan.seen.seed))?;
    let bar = bar(0, "views");
    let cache = Cache::rendered(&view, &files, variants, &key, &render, &work.cache_dir, &bar);
    bar.finish_and_clear();
    let truths = (0..order.len()).map(|i| {
        (0..variants)
            .map(|v| truth(&drawn(i, v).0, scenes, &plan.classes, plan.seen.side))
            .collect::<Result<Vec<_>>>()
            .with_context(|| scenes[order[i]].file.display().to_string())
    });
    Ok((cache?, truths.collect::<Result<_>>()?))
}

fn manifest(net: &Net, onnx: &[u8], plan: &Plan, card: &Card<'_>) -> Result<Manifest> {
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
    Ok(Manifest {
        manifest: FORMAT,
        name: card.name.clone(),
        version: card.version.into(),
        task: Task::Detector,
        file: "model.onnx".into(),
        sha256: sha256(onnx),
        licence: card.licence.into(),
        source: card.source.into(),
        input: Input {
            name: net.input.clone(),
            shape: [1, 3, plan.seen.side, plan.seen.side],
            layout: Layout::Nchw,
            colour: Colour::Rgb,
            mean: plan.seen.mean,
            std: plan.seen.std,
            resize: Resize::Stretch,
            kernel: Kernel::Bicubic,
        },
        output: Output::Pawlatch {
            names: MAPS.map(String::from).to_vec(),
            strides: STRIDES.to_vec(),
            nms_iou: 0.45,
        },
        calibration: None,
        thresholds: Thresholds::default(),
        open_set: None,
        quantised: None,
        metrics: Vec::new(),
        training: None,
        labels: Labels { rest: Class::Other, classes, names: plan.classes.clone() },
    })
}

/// Writes the detector as a model directory.
///
/// # Errors
/// If tract's answer differs from burn's by more than [`crate::export::TOLERANCE`], a class is
/// none of the door's, or a file cannot be written.
pub fn export(
    dir: &Path,
    net: &Net,
    data: &Dataset,
    plan: &Plan,
    history: &[Vec<Epoch>],
    card: &Card<'_>,
    device: &Device,
) -> Result<()> {
    let onnx = net.encode(Precision::Half)?;
    crate::export::prove(net, &onnx, plan.seen.side, device)?;
    let stages: Vec<String> = plan
        .stage
        .iter()
        .zip(history)
        .map(|(s, h)| format!("{} epochs after {:?} (rate {})", h.len(), s.cut, s.recipe.rate))
        .collect();
    let boxed = |split| data.scenes.iter().filter(|s| s.split == split).count();
    let mut manifest = manifest(net, &onnx, plan, card)?;
    manifest.training = Some(Origin {
        method: format!("pawlatch-trainer detector: {}", stages.join("; ")),
        data: format!(
            "{} training and {} validation pictures with boxes",
            boxed(Split::Train),
            boxed(Split::Validate)
        ),
        data_sha256: Some(data.sha256.clone()),
        seed: Some(plan.seen.seed),
        commit: card.commit.clone(),
    });
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    write_whole(&dir.join("model.onnx"), &onnx)?;
    write_whole(&dir.join("model.toml"), manifest.to_toml()?.as_bytes())
}

/// Writes the figures of a report into the manifest of the model they were measured on.
///
/// # Errors
/// If the manifest cannot be read or written.
pub fn record(dir: &Path, report: &Report) -> Result<()> {
    let mut figures = vec![
        ("cat_called_dog".to_owned(), report.cat_called_dog.share()),
        ("single_pet_iou_over_0.5".to_owned(), report.single_over_50.share()),
        ("single_pet_iou_over_0.7".to_owned(), report.single_over_70.share()),
    ];
    for (class, f) in &report.classes {
        figures.push((format!("ap50_{class}"), f.ap50));
        figures.push((format!("ap50_95_{class}"), f.ap50_95));
    }
    crate::export::record_figures(dir, figures.into_iter(), &report.data_sha256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::LabelledBox;

    #[test]
    fn of_a_source_with_too_many_pictures_the_rare_classes_stay() {
        let scene = |i: usize| Scene {
            file: i.to_string().into(),
            boxes: vec![LabelledBox {
                rect: Rect::WHOLE,
                label: if i.is_multiple_of(10) { "person" } else { "dog" }.into(),
            }],
            unsure: vec![],
            exhaustive_for: vec![],
            source: "one".into(),
            split: Split::Train,
        };
        let all: Vec<Scene> = (0..100).map(scene).collect();
        let text = include_str!("../../../models/pet_detector/plan.toml");
        let plan = Plan { most_per_source: 20, ..toml::from_str(text).unwrap() };
        let mut kept: Vec<&Scene> = all.iter().collect();
        limit(&mut kept, &plan);
        let persons = |scenes: &[&Scene]| scenes.iter().filter(|s| s.shows("person")).count();
        assert_eq!((kept.len(), persons(&kept)), (20, 10));
        // A tenth of all, of which three tenths is the fair share, thrice; half of those kept, once.
        let all: Vec<&Scene> = all.iter().collect();
        assert_eq!(repeated(&all, &plan).len(), 90 + 30);
        assert_eq!(repeated(&kept, &plan).len(), 20);
    }

    #[test]
    fn a_plan_that_asks_for_what_is_not_done_is_refused() {
        let shipped = include_str!("../../../models/pet_detector/plan.toml");
        let plan: Plan = toml::from_str(shipped).unwrap();
        plan::Plan::check(&plan).unwrap();
        let refused = |change: &dyn Fn(&mut Stage)| {
            let mut plan = plan.clone();
            change(&mut plan.stage[0]);
            format!("{:#}", plan::Plan::check(&plan).unwrap_err())
        };
        let said = refused(&|s| s.recipe.remember = 1.0);
        assert!(said.contains("stage 1") && said.contains("for classifiers"), "{said}");
        assert!(refused(&|s| s.variants = 0).contains("`variants`"));
    }
}
