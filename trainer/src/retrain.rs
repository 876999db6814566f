//! Retraining in stages: a new head on cached features, then the last blocks on activations
//! cached further up, each stage a cut of the network with everything before it frozen.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use pawlatch_core::vision::manifest::Labels;
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, Plan as CachePlan};
use crate::classification::{Classification, Examples, class_log_probs, judged, logits};
use crate::data::augment::Augmentation;
use crate::data::{Dataset, Item, Split};
use crate::files::Work;
use crate::head::{Base, Head, Headed};
use crate::metrics;
use crate::net::Net;
use crate::plan::{self, Seen};
use crate::recipe::Recipe;
use crate::train::{Epoch, Training};
use crate::workers::bar;

/// A retraining as a TOML file describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// How pictures are seen.
    #[serde(flatten)]
    pub seen: Seen,
    /// Middle square of a whole picture, as a fraction of its shorter side.
    pub fraction: f32,
    /// Variants of each validation picture by which the best epoch is chosen, the plain one included.
    #[serde(default = "one")]
    pub judged_variants: usize,
    /// What becomes of the last layer.
    #[serde(default)]
    pub head: Head,
    /// Run in order, each on the result of the one before.
    pub stage: Vec<Stage>,
}

const fn one() -> usize {
    1
}

/// One stage of a retraining.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Value at which the network is cut: everything that makes it is frozen.
    pub cut: String,
    /// Distorted variants of each picture, the plain one included.
    pub variants: usize,
    /// How it is trained.
    #[serde(default)]
    pub recipe: Recipe,
}

impl Plan {
    /// A plan for a network whose embedding is called `features`: only a new head.
    pub fn head_only(side: usize, mean: [f32; 3], std: [f32; 3], seed: u64) -> Self {
        let recipe = Recipe { epochs: 30, batch: 64, rate: 2e-3, seed, ..Recipe::default() };
        let stage = vec![Stage { cut: "features".into(), variants: 4, recipe }];
        let augmentation = Augmentation::default();
        Self {
            seen: Seen { side, mean, std, seed, augmentation },
            fraction: 0.875,
            judged_variants: 1,
            head: Head::default(),
            stage,
        }
    }
}

impl plan::Plan for Plan {
    const KIND: &'static str = "training plan";

    fn stages(&self) -> impl Iterator<Item = (&Recipe, usize)> {
        self.stage.iter().map(|s| (&s.recipe, s.variants))
    }

    fn check_own(&self) -> Result<()> {
        ensure!(self.judged_variants > 0, "`judged_variants` must be above 0");
        Ok(())
    }
}

/// What a retraining leaves.
pub struct Retrained {
    /// The network, `logits` first.
    pub net: Net,
    /// What its labels mean.
    pub labels: Labels,
    /// Divides the logits so that probabilities mean what they say.
    pub temperature: f32,
    /// History of each stage.
    pub history: Vec<Vec<Epoch>>,
    /// Expected calibration error on the validation pictures before and after.
    pub ece: (f32, f32),
    /// Mean validation loss of the network as it is kept, uncalibrated, and its accuracy.
    pub validation: (f32, f32),
}

/// Retrains `base` for the classes of `data`. Caches and checkpoints are kept in `work`, so that a
/// run that was stopped goes on where it was.
///
/// # Errors
/// If the network has no cut of that name, a picture cannot be read, a class is empty, the loss
/// is not a number or the disk is full.
pub fn retrain(
    base: &Base,
    data: &Dataset,
    plan: &Plan,
    work: &Work,
    devices: &[Device],
) -> Result<Retrained> {
    let device = devices.first().context("there is no device to train on")?;
    let Headed { mut net, labels, class_of_label } =
        base.headed(&data.classes, &plan.head, plan.seen.seed)?;
    let side = plan.seen.side;
    let [_, _, h, w] = net.shape_at(side);
    ensure!(
        [h, w] == [side, side],
        "the plan's side is {side} pixels, but the network takes {w} by {h}: change the plan, or \
         make the network with `--side {side}`"
    );
    let (train, validate) = (data.of(Split::Train), data.of(Split::Validate));
    ensure!(
        !validate.is_empty(),
        "the dataset has no validation picture: add some, or name `validate_sources`"
    );
    let number =
        |items: &[&Item]| items.iter().map(|i| data.class(&i.label)).collect::<Result<Vec<_>>>();
    let (train_classes, validate_classes) = (number(&train)?, number(&validate)?);
    let deepest = plan.stage.last().context("the plan has no stage")?;
    let variants = plan.stage.iter().map(|s| s.variants).max().unwrap_or(1);
    let (front, mut rest) =
        net.cut(&deepest.cut).context("the last stage must cut closest to the input")?;
    let caches = Caches::new(plan, &front, &work.cache_dir)?;
    let (train_cache, validate_cache) = (
        caches.of(&train, variants, "training pictures")?,
        caches.of(&validate, plan.judged_variants, "validation pictures")?,
    );
    let mut history = Vec::new();
    let mut rows = Vec::new();
    for (n, stage) in plan.stage.iter().enumerate() {
        println!(
            "stage {} of {}: training everything after '{}'",
            n + 1,
            plan.stage.len(),
            stage.cut
        );
        let (between, back) = rest.cut(&stage.cut)?;
        let (train_cut, validate_cut) =
            (caches.derived(&train_cache, &between)?, caches.derived(&validate_cache, &between)?);
        let (train_cut, validate_cut) = (
            train_cut.as_ref().unwrap_or(&train_cache),
            validate_cut.as_ref().unwrap_or(&validate_cache),
        );
        let examples = |cache, classes: &[usize]| Examples { cache, classes: classes.to_vec() };
        let dir = work.run_dir.join(format!("stage{}", n + 1));
        let (train_set, validate_set) =
            (examples(train_cut, &train_classes), examples(validate_cut, &validate_classes));
        let objective =
            Classification::new(&stage.recipe, train_set, validate_set, &class_of_label)?
                .remembering(&back, device);
        let trained = Training::new(&stage.recipe, &objective, &dir).run(&back, devices)?;
        rows = logits(&trained.net, validate_cut, 0, device, stage.recipe.batch)?;
        rest = between.join(trained.net)?;
        history.push(trained.history);
    }
    net = front.join(rest)?;
    let (temperature, ece) = calibrate(&rows, &validate_classes, &class_of_label);
    let validation = judged(&rows, &validate_classes, &class_of_label);
    Ok(Retrained { net, labels, temperature, history, ece, validation })
}

/// The temperature in 0.25 to 4 with the least mean negative log-likelihood of the classes, by
/// golden-section search of its logarithm, and the calibration error without and with it.
fn calibrate(rows: &[Vec<f32>], classes: &[usize], class_of_label: &[usize]) -> (f32, (f32, f32)) {
    let logs = |t: f32| rows.iter().map(move |r| class_log_probs(r, class_of_label, t));
    let loss = |log_t: f32| -> f64 {
        logs(log_t.exp()).zip(classes).map(|(l, &c)| -f64::from(l[c])).sum()
    };
    let ratio = (5_f32.sqrt() - 1.0) / 2.0;
    let (mut a, mut b) = (0.25_f32.ln(), 4_f32.ln());
    for _ in 0..30 {
        let (x, y) = (b - ratio * (b - a), a + ratio * (b - a));
        if loss(x) < loss(y) { b = y } else { a = x }
    }
    let temperature = f32::midpoint(a, b).exp();
    let error = |t: f32| {
        let probs: Vec<Vec<f32>> = logs(t).map(|l| l.into_iter().map(f32::exp).collect()).collect();
        metrics::expected_calibration_error(&probs, classes)
    };
    (temperature, (error(1.0), error(temperature)))
}

/// Where activations of a retraining are kept.
struct Caches<'a> {
    plan: &'a Plan,
    front: &'a Net,
    dir: &'a Path,
}

impl<'a> Caches<'a> {
    fn new(plan: &'a Plan, front: &'a Net, dir: &'a Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { plan, front, dir })
    }

    fn of(&self, items: &[&Item], variants: usize, what: &str) -> Result<Cache> {
        let plan = CachePlan {
            front: self.front,
            side: self.plan.seen.side,
            normalisation: self.plan.seen.normalisation(),
            augmentation: &self.plan.seen.augmentation,
            variants,
            seed: self.plan.seen.seed,
            fraction: self.plan.fraction,
        };
        let bar = bar(0, what);
        let cache = Cache::of(&plan, items, self.dir, &bar);
        bar.finish_and_clear();
        cache
    }

    /// The cache behind `between`; none if there is nothing between.
    fn derived(&self, cache: &Cache, between: &Net) -> Result<Option<Cache>> {
        if between.nodes.is_empty() {
            return Ok(None);
        }
        let bar = bar(0, "deeper cut");
        let derived = cache.derive(between, self.dir, &bar);
        bar.finish_and_clear();
        derived.map(Some)
    }
}

/// Where `retrain` keeps its caches and checkpoints when not told otherwise.
pub fn default_work_dir(out: &Path) -> PathBuf {
    let name = out.file_name().map_or("model".into(), |n| n.to_string_lossy().into_owned());
    std::env::temp_dir().join(format!("pawlatch-train-{name}"))
}
