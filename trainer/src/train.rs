//! The training loop: batches of cached activations in, better parameters out.
//!
//! Everything random comes from the seed and the epoch, and a checkpoint holds all state, so a
//! run that was killed ends with the same numbers as one that was not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cache::hex;
use crate::engine::{Model, to_host};
use crate::files::write_whole;
use crate::net::{Array, Net};
use crate::recipe::{Anchor, Optimiser, Recipe};
use crate::weights::StateDict;
use crate::workers::bar;

const CHECKPOINT: &str = "checkpoint";

/// One line of a training's history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Counted from 1.
    pub epoch: usize,
    /// Mean training loss.
    pub loss: f32,
    /// Mean validation loss, without smoothing or class weights.
    pub validation_loss: f32,
    /// Share of validation pictures whose best class is right.
    pub accuracy: f32,
    /// Learning rate at its end.
    pub rate: f32,
    /// Seconds it took.
    pub seconds: f32,
}

/// What a training leaves.
pub struct Trained {
    /// The best network by validation loss.
    pub net: Net,
    /// One entry per epoch.
    pub history: Vec<Epoch>,
}

/// Gradients by parameter.
type Slopes = BTreeMap<String, Tensor<1>>;

/// What is trained for: a loss on training examples, and a judgement on others.
pub trait Objective: Sync {
    /// Number of training examples.
    fn len(&self) -> usize;
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Tells the examples and their treatment from any others: a training goes on only where it is
    /// the same.
    fn identity(&self) -> String;
    /// The mean loss of a batch of examples, on the model's device.
    ///
    /// # Errors
    /// If an example cannot be read or does not fit the network.
    fn loss(&self, model: &Model, batch: &[usize], rng: &mut StdRng) -> Result<Tensor<1>>;
    /// Factor of the learning rate for a parameter: less than 1 for what is already good, 0 for
    /// what is to stay.
    fn pace(&self, _param: &str) -> f32 {
        1.0
    }
    /// Validation loss, by which the best epoch is chosen, and a score from 0 to 1 for people.
    ///
    /// # Errors
    /// If an example cannot be read or does not fit the network.
    fn validate(&self, net: &Net, device: &Device) -> Result<(f32, f32)>;
}

/// A training under way.
pub struct Training<'a> {
    recipe: &'a Recipe,
    objective: &'a dyn Objective,
    dir: PathBuf,
}

/// State that a checkpoint keeps, but for `start`, which the caller gives again.
struct State {
    model: Model,
    /// The same network on the other devices.
    replicas: Vec<Model>,
    /// Where it is kept.
    checkpoint: PathBuf,
    /// Weights that decay pulls towards; empty if that is nought.
    start: BTreeMap<String, Tensor<1>>,
    moments: BTreeMap<String, [Tensor<1>; 2]>,
    mean: BTreeMap<String, Tensor<1>>,
    step: usize,
    best: Option<(f32, usize, Net)>,
    history: Vec<Epoch>,
}

impl<'a> Training<'a> {
    /// Prepares a training whose checkpoints and history go to `dir`.
    pub fn new(recipe: &'a Recipe, objective: &'a dyn Objective, dir: &Path) -> Self {
        Self { recipe, objective, dir: dir.into() }
    }

    /// Trains `net`, or goes on from the last checkpoint in the directory that is of the same network,
    /// examples and recipe; those of other trainings stay. Several devices share
    /// the pictures of each step; the first does everything else as well.
    ///
    /// # Errors
    /// If the loss is not a number, the disk is full or there is no device.
    pub fn run(&self, net: &Net, devices: &[Device]) -> Result<Trained> {
        self.run_until(net, devices, self.recipe.epochs)
    }

    /// As [`Training::run`], but stops after `last` epochs as if killed there.
    ///
    /// # Errors
    /// As [`Training::run`].
    pub fn run_until(&self, net: &Net, devices: &[Device], last: usize) -> Result<Trained> {
        let [device, others @ ..] = devices else { bail!("there is no device to train on") };
        std::fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot make {}", self.dir.display()))?;
        let mut state = self.resume(net, device)?;
        for other in others {
            let mut replica = self.load(net.clone(), other);
            replica.follow(&state.model);
            state.replicas.push(replica);
        }
        let per_epoch = self.objective.len().div_ceil(self.recipe.batch);
        let steps = per_epoch * self.recipe.epochs;
        println!("{}", self.recipe.preview());
        for epoch in state.history.len()..last.min(self.recipe.epochs) {
            // Asked before an epoch, not after: a run that had stopped here and was started again
            // must not train one more.
            if let Some(since) = self.stalled(&state) {
                println!("no better for {since} epochs: stopping");
                break;
            }
            let began = std::time::Instant::now();
            let loss = self.epoch(&mut state, epoch, per_epoch, steps)?;
            let candidate = self.result(&state)?;
            let (validation_loss, accuracy) = self.objective.validate(&candidate, device)?;
            state.history.push(Epoch {
                epoch: epoch + 1,
                loss,
                validation_loss,
                accuracy,
                rate: self.recipe.rate_at(state.step.saturating_sub(1), steps),
                seconds: began.elapsed().as_secs_f32(),
            });
            println!("{}", crate::report::line(&state.history));
            if state.best.as_ref().is_none_or(|(best, ..)| validation_loss < *best) {
                state.best = Some((validation_loss, epoch, candidate));
            }
            self.save(&state)?;
        }
        let (_, _, mut best) = state.best.context("no epoch was trained")?;
        let share = self.recipe.blend;
        if share < 1.0 {
            best = best.blended(net, share);
            let (loss, accuracy) = self.objective.validate(&best, device)?;
            let score = accuracy * 100.0;
            println!("{share} of the way  validation {loss:.4}  score {score:.2} %");
        }
        Ok(Trained { net: best, history: state.history })
    }

    /// How many epochs ago the best one was, if that is more than patience allows.
    fn stalled(&self, state: &State) -> Option<usize> {
        let (_, best, _) = state.best.as_ref()?;
        let since = state.history.len() - 1 - best;
        (self.recipe.patience > 0 && since >= self.recipe.patience).then_some(since)
    }

    /// Whether any training in `dir` has finished an epoch.
    pub fn begun(dir: &Path) -> bool {
        let is = |f: std::fs::DirEntry| f.file_name().to_string_lossy().starts_with(CHECKPOINT);
        std::fs::read_dir(dir).is_ok_and(|files| files.flatten().any(is))
    }

    fn epoch(
        &self,
        state: &mut State,
        epoch: usize,
        per_epoch: usize,
        steps: usize,
    ) -> Result<f32> {
        let r = self.recipe;
        let mut rng = StdRng::seed_from_u64(r.seed ^ (epoch as u64 + 1) << 32);
        let mut order: Vec<usize> = (0..self.objective.len()).collect();
        order.shuffle(&mut rng);
        let bar = bar(per_epoch as u64, &format!("epoch {}/{}", epoch + 1, r.epochs));
        let (mut total, mut held): (f64, Option<Slopes>) = (0.0, None);
        for (i, batch) in order.chunks(r.batch).enumerate() {
            let (value, slopes) = self.slopes(state, batch, &mut rng)?;
            ensure!(
                value.is_finite(),
                "the loss is {value} in epoch {} at step {}: the learning rate {} is too high, or a picture's \
                 values are not numbers; lower `rate` or set `clip`",
                epoch + 1,
                state.step + 1,
                r.rate
            );
            total += f64::from(value);
            held = Some(match held.take() {
                Some(before) => sum(before, slopes, 1.0),
                None => slopes,
            });
            if ((i + 1) % r.accumulate == 0 || i + 1 == per_epoch)
                && let Some(sums) = held.take()
            {
                self.update(state, sums, r.rate_at(state.step, steps))?;
            }
            state.step += 1;
            bar.set_message(format!("loss {:.4}", total / (i + 1) as f64));
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok((total / per_epoch as f64) as f32)
    }

    /// The loss of a batch and its gradients. Every device answers for its share of the pictures,
    /// so what is random is drawn for each share: the number of devices decides it, not their
    /// pace.
    fn slopes(&self, state: &State, batch: &[usize], rng: &mut StdRng) -> Result<(f32, Slopes)> {
        let each = batch.len().div_ceil(1 + state.replicas.len());
        let (own, rest) = batch.split_at(each);
        let of = |model: &Model, share: &[usize], rng: &mut StdRng| -> Result<_> {
            let loss = self.objective.loss(model, share, rng)?;
            let value = to_host(loss.clone().inner())?[0];
            let grads = loss.backward();
            let slopes =
                model.params().filter_map(|(name, p)| Some((name.to_owned(), p.grad(&grads)?)));
            Ok((value, slopes.collect::<Slopes>()))
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = state
                .replicas
                .iter()
                .zip(rest.chunks(each))
                .map(|(replica, share)| {
                    let mut rng = StdRng::from_rng(rng);
                    (share.len(), scope.spawn(move || of(replica, share, &mut rng)))
                })
                .collect();
            let (mut loss, mut slopes) = of(&state.model, own, rng)?;
            // The mean over all pictures, whoever saw them.
            for (n, other) in others {
                let other = other.join().map_err(|_| anyhow!("a device's thread has failed"))?;
                let (other_loss, others) = other?;
                let ratio = n as f32 / own.len() as f32;
                loss += other_loss * ratio;
                slopes = sum(slopes, others, ratio);
            }
            let scale = own.len() as f32 / batch.len() as f32;
            if scale < 1.0 {
                slopes.values_mut().for_each(|s| *s = s.clone() * scale);
            }
            Ok((loss * scale, slopes))
        })
    }

    fn update(&self, state: &mut State, sums: Slopes, rate: f32) -> Result<()> {
        let r = self.recipe;
        let mut scale = 1.0 / r.accumulate as f32;
        if r.clip > 0.0 {
            let mut square = 0.0;
            for g in sums.values() {
                square += to_host((g.clone() * g.clone()).sum())?[0];
            }
            scale *= (r.clip / (square.sqrt() * scale).max(1e-12)).min(1.0);
        }
        let t = (state.step + 1) as i32;
        let (moments, start) = (&mut state.moments, &state.start);
        state.model.update(&sums, |name, shape, old, grad| {
            let grad = grad * scale;
            let rate = rate * self.objective.pace(name);
            let decay = if shape.len() > 1 { rate * r.decay } else { 0.0 };
            let [m, v] =
                moments.remove(name).unwrap_or_else(|| [grad.zeros_like(), grad.zeros_like()]);
            let shrunk = match start.get(name) {
                Some(start) => old * (1.0 - decay) + start.clone() * decay,
                None => old * (1.0 - decay),
            };
            match r.optimiser {
                Optimiser::Sgd => {
                    let m = m * 0.9 + grad;
                    let new = shrunk - m.clone() * rate;
                    moments.insert(name.into(), [m, v]);
                    new
                }
                Optimiser::Adamw => {
                    let m = m * 0.9 + grad.clone() * 0.1;
                    let v = v * 0.999 + grad.clone() * grad * 0.001;
                    let step = m.clone() / (1.0 - 0.9_f32.powi(t));
                    let size = (v.clone() / (1.0 - 0.999_f32.powi(t))).sqrt() + 1e-8;
                    moments.insert(name.into(), [m, v]);
                    shrunk - step / size * rate
                }
            }
        });
        for replica in &mut state.replicas {
            replica.follow(&state.model);
        }
        if r.ema > 0.0 {
            // Early on the mean follows quickly, so that it does not remember the start.
            let keep = r.ema.min((1 + state.step) as f32 / (10 + state.step) as f32);
            for (name, param) in state.model.params() {
                let now = param.clone().inner();
                let mean = match state.mean.remove(name) {
                    Some(mean) => mean * keep + now * (1.0 - keep),
                    None => now,
                };
                state.mean.insert(name.into(), mean);
            }
        }
        Ok(())
    }

    /// The network as it would be kept: the running mean where there is one.
    fn result(&self, state: &State) -> Result<Net> {
        let mut net = state.model.export()?;
        for (name, mean) in &state.mean {
            if let Some(p) = net.params.get_mut(name) {
                p.data = to_host(mean.clone())?;
            }
        }
        Ok(net)
    }

    fn load(&self, net: Net, device: &Device) -> Model {
        Model::trainable_where(net, device, &|name| self.objective.pace(name) > 0.0)
    }

    /// Named after all that the outcome depends on but how much of it is taken, which is decided
    /// when it is over.
    fn checkpoint(&self, net: &Net) -> Result<PathBuf> {
        let recipe = Recipe { blend: 1.0, ..self.recipe.clone() };
        let mut hash = Sha256::new();
        hash.update(serde_json::to_vec(&(recipe, self.objective.identity()))?);
        hash.update(format!("{:?} {:?}", net.nodes, net.outputs));
        for (name, p) in &net.params {
            hash.update(format!("{name} {:?}", p.shape));
            p.data.iter().for_each(|v| hash.update(v.to_le_bytes()));
        }
        let name = hex(&hash.finalize());
        Ok(self.dir.join(format!("{CHECKPOINT}-{name}.safetensors")))
    }

    fn save(&self, state: &State) -> Result<()> {
        let mut tensors = BTreeMap::new();
        let mut put = |prefix: &str, name: &str, data: Vec<f32>| {
            tensors.insert(format!("{prefix}/{name}"), Array { shape: vec![data.len()], data });
        };
        for (name, p) in state.model.params() {
            put("param", name, to_host(p.clone().inner())?);
        }
        for (name, [m, v]) in &state.moments {
            put("first", name, to_host(m.clone())?);
            put("second", name, to_host(v.clone())?);
        }
        for (name, mean) in &state.mean {
            put("mean", name, to_host(mean.clone())?);
        }
        let mut best_at = None;
        if let Some((loss, epoch, net)) = &state.best {
            best_at = Some((*loss, *epoch));
            for (name, p) in &net.params {
                put("best", name, p.data.clone());
            }
        }
        let note = serde_json::to_string(&(state.step, best_at, &state.history))?;
        write_whole(&state.checkpoint, &crate::weights::safetensors(&tensors, &note)?)?;
        let lines =
            state.history.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        write_whole(&self.dir.join("history.jsonl"), (lines.join("\n") + "\n").as_bytes())?;
        let page = crate::report::live(&state.history);
        write_whole(&self.dir.join("history.html"), page.as_bytes())
    }

    fn resume(&self, net: &Net, device: &Device) -> Result<State> {
        let mut state = State {
            model: self.load(net.clone(), device),
            replicas: Vec::new(),
            checkpoint: self.checkpoint(net)?,
            start: BTreeMap::new(),
            moments: BTreeMap::new(),
            mean: BTreeMap::new(),
            step: 0,
            best: None,
            history: Vec::new(),
        };
        let tensor = |data: Vec<f32>| {
            let n = data.len();
            Tensor::<1>::from_data(TensorData::new(data, [n]), device)
        };
        if self.recipe.decay_towards == Anchor::Start {
            state.start =
                net.params.iter().map(|(k, p)| (k.clone(), tensor(p.data.clone()))).collect();
        }
        if !state.checkpoint.exists() {
            if Self::begun(&self.dir) {
                println!(
                    "from the beginning: what {} holds is of other pictures, another network or \
                     another recipe",
                    self.dir.display()
                );
            }
            return Ok(state);
        }
        let dict = StateDict::load(&state.checkpoint)?;
        let note = dict.note().context("the checkpoint holds no state")?;
        let (step, best_at, history): (usize, Option<(f32, usize)>, Vec<Epoch>) =
            serde_json::from_str(note)?;
        let fill = |prefix: &str| -> Result<Net> {
            let mut net = net.clone();
            for (name, p) in &mut net.params {
                p.data = dict.shaped(&format!("{prefix}/{name}"), &[p.data.len()])?.data;
            }
            Ok(net)
        };
        for name in net.params.keys() {
            if let (Ok(m), Ok(v)) =
                (dict.get(&format!("first/{name}")), dict.get(&format!("second/{name}")))
            {
                state
                    .moments
                    .insert(name.clone(), [tensor(m.data.clone()), tensor(v.data.clone())]);
            }
            if let Ok(mean) = dict.get(&format!("mean/{name}")) {
                state.mean.insert(name.clone(), tensor(mean.data.clone()));
            }
        }
        state.model = self.load(fill("param")?, device);
        state.best = best_at
            .map(|(loss, epoch)| Ok::<_, anyhow::Error>((loss, epoch, fill("best")?)))
            .transpose()?;
        println!("going on after epoch {} of {}", history.len(), self.recipe.epochs);
        (state.step, state.history) = (step, history);
        Ok(state)
    }
}

/// `a + share * b`, where `a` is.
fn sum(mut a: Slopes, b: Slopes, share: f32) -> Slopes {
    for (name, slope) in b {
        let sum = match a.remove(&name) {
            Some(before) => {
                let slope = slope.to_device(&before.device());
                before + if share == 1.0 { slope } else { slope * share }
            }
            None => slope * share,
        };
        a.insert(name, sum);
    }
    a
}

/// `shape` of one picture, as rank 4, for `n` pictures.
pub fn batch_shape(shape: &[usize], n: usize) -> [usize; 4] {
    let mut out = [1; 4];
    out[..shape.len()].copy_from_slice(shape);
    out[0] = n;
    out
}
