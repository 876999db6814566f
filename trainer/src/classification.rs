//! Exclusive classes: what is trained for, what is said of pictures, and how right it is.

use anyhow::{Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData, activation};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::cache::Cache;
use crate::engine::Model;
use crate::net::Net;
use crate::recipe::{Form, Recipe};
use crate::train::{Objective, batch_shape};

/// Pictures with their classes.
pub struct Examples<'a> {
    /// Activations.
    pub cache: &'a Cache,
    /// Class of each picture.
    pub classes: Vec<usize>,
}

/// Exclusive classes, by cross-entropy.
///
/// A class may have many labels of the network, each with a row of the last layer: its
/// probability is the sum of theirs. So a network that tells breeds apart can be trained to tell
/// dogs from cats without forgetting the breeds.
pub struct Classification<'a> {
    recipe: &'a Recipe,
    train: Examples<'a>,
    validate: Examples<'a>,
    class_of_label: &'a [usize],
    class_weights: Vec<f32>,
    /// The network as the training began, where the recipe wants it remembered.
    teacher: Option<Model>,
}

impl<'a> Classification<'a> {
    /// Classes weighted against their imbalance. `class_of_label` names the class of each of the
    /// network's labels.
    ///
    /// # Errors
    /// If a class has no picture.
    pub fn new(
        recipe: &'a Recipe,
        train: Examples<'a>,
        validate: Examples<'a>,
        class_of_label: &'a [usize],
    ) -> Result<Self> {
        let classes = class_of_label.iter().max().map_or(0, |c| c + 1);
        let mut counts = vec![0_usize; classes];
        train.classes.iter().for_each(|&c| counts[c] += 1);
        if let Some(empty) = counts.iter().position(|&c| c == 0) {
            bail!("class number {empty} has no training picture");
        }
        ensure!(!validate.classes.is_empty(), "there is no validation picture");
        // Square root: rare classes count more, without their few pictures ruling everything.
        let raw: Vec<f32> = counts.iter().map(|&c| 1.0 / (c as f32).sqrt()).collect();
        let mean: f32 =
            train.classes.iter().map(|&c| raw[c]).sum::<f32>() / train.classes.len() as f32;
        let class_weights = raw.iter().map(|w| w / mean).collect();
        Ok(Self { recipe, train, validate, class_of_label, class_weights, teacher: None })
    }
}

impl Classification<'_> {
    /// Makes `start` the teacher of what is to be remembered, if the recipe wants any.
    #[must_use]
    pub fn remembering(mut self, start: &Net, device: &Device) -> Self {
        if self.recipe.remember > 0.0 {
            self.teacher = Some(Model::new(start.clone(), device));
        }
        self
    }

    /// What the teacher said of each label, times how much of it was right: `[n, labels]`, and
    /// the entropy of it all, so that a network that says the same has no loss.
    fn remembered(
        &self,
        teacher: &Model,
        data: Vec<f32>,
        shape: [usize; 4],
        batch: &[usize],
    ) -> Result<(Vec<f32>, f32)> {
        let said = teacher.forward(teacher.batch(data, shape)?, None)?.array(0)?.data;
        let (labels, mut entropy) = (self.class_of_label.len(), 0.0);
        let mut kept = Vec::with_capacity(said.len());
        for (row, &i) in said.chunks(labels).zip(batch) {
            let probs = crate::metrics::softmax(row, 1.0);
            let own = probs.iter().zip(self.class_of_label);
            let known: f32 =
                own.filter(|(_, c)| **c == self.train.classes[i]).map(|(p, _)| p).sum();
            entropy -= known * probs.iter().map(|p| p * p.max(1e-12).ln()).sum::<f32>();
            kept.extend(probs.iter().map(|p| p * known));
        }
        Ok((kept, entropy))
    }
}

impl Objective for Classification<'_> {
    fn len(&self) -> usize {
        self.train.classes.len()
    }

    fn identity(&self) -> String {
        let of = |e: &Examples<'_>| format!("{} {:?}", e.cache.key(), e.classes);
        format!("{} {} {:?}", of(&self.train), of(&self.validate), self.class_of_label)
    }

    fn loss(&self, model: &Model, batch: &[usize], rng: &mut StdRng) -> Result<Tensor<1>> {
        let r = self.recipe;
        let classes = self.class_weights.len();
        let (mut data, mut targets) = (Vec::new(), vec![0.0; batch.len() * classes]);
        for (row, &i) in batch.iter().enumerate() {
            let class = self.train.classes[i];
            self.train.cache.read(i, rng.random_range(0..self.train.cache.variants), &mut data)?;
            let weight = self.class_weights[class];
            for (c, t) in targets[row * classes..][..classes].iter_mut().enumerate() {
                let right = if c == class { 1.0 - r.smoothing } else { 0.0 };
                *t = (right + r.smoothing / classes as f32) * weight;
            }
        }
        let shape = batch_shape(&self.train.cache.shape, batch.len());
        if r.mixup > 0.0 {
            mix(&mut data, &mut targets, batch.len(), r.mixup, rng);
        }
        let remembered = match (&self.teacher, r.remember_of) {
            (None, _) => None,
            (Some(teacher), Form::Seen) => {
                Some(self.remembered(teacher, data.clone(), shape, batch)?)
            }
            (Some(teacher), Form::Plain) => {
                let mut plain = Vec::with_capacity(data.len());
                for &i in batch {
                    self.train.cache.read(i, 0, &mut plain)?;
                }
                Some(self.remembered(teacher, plain, shape, batch)?)
            }
        };
        let x = model.batch(data, shape)?;
        let logits = model.forward(x, Some(rng))?.matrix(0)?;
        let targets = Tensor::<2>::from_data(
            TensorData::new(targets, [batch.len(), classes]),
            model.device(),
        );
        let logs = class_logs(logits.clone(), self.class_of_label, classes);
        let mut each = targets * logs.clone().neg();
        if r.focal > 0.0 {
            each = each * (logs.exp().neg() + 1.0).powf_scalar(r.focal);
        }
        let mut loss = each.sum();
        if let Some((kept, entropy)) = remembered {
            let shape = [batch.len(), self.class_of_label.len()];
            let kept = Tensor::<2>::from_data(TensorData::new(kept, shape), model.device());
            let apart = (kept * activation::log_softmax(logits, 1)).sum().neg() - entropy;
            loss = loss + apart * r.remember;
        }
        Ok(loss / batch.len() as f32)
    }

    fn validate(&self, net: &Net, device: &Device) -> Result<(f32, f32)> {
        let variants = self.validate.cache.variants;
        let (mut loss, mut right) = (0.0, 0.0);
        for variant in 0..variants {
            let rows = logits(net, self.validate.cache, variant, device, self.recipe.batch)?;
            let (each, share) = judged(&rows, &self.validate.classes, self.class_of_label);
            loss += each;
            right += share;
        }
        Ok((loss / variants as f32, right / variants as f32))
    }
}

/// Mean negative log-likelihood of the right classes, and the share of rows whose best class is
/// right.
pub fn judged(logits: &[Vec<f32>], classes: &[usize], class_of_label: &[usize]) -> (f32, f32) {
    let (mut loss, mut right) = (0.0, 0);
    for (row, &class) in logits.iter().zip(classes) {
        let logs = class_log_probs(row, class_of_label, 1.0);
        loss -= logs[class];
        right += usize::from(logs.iter().all(|l| *l <= logs[class]));
    }
    let n = classes.len() as f32;
    (loss / n, right as f32 / n)
}

/// Logarithms of the classes' probabilities, `[n, classes]`, from logits `[n, labels]`.
fn class_logs(logits: Tensor<2>, class_of_label: &[usize], classes: usize) -> Tensor<2> {
    let logs = activation::log_softmax(logits, 1);
    let labels = class_of_label.len();
    if class_of_label.iter().copied().eq(0..classes) {
        return logs;
    }
    let mut members = vec![0.0; labels * classes];
    for (label, class) in class_of_label.iter().enumerate() {
        members[label * classes + class] = 1.0;
    }
    let members =
        Tensor::<2>::from_data(TensorData::new(members, [labels, classes]), &logs.device());
    // What underflows would have no gradient anyway.
    logs.exp().matmul(members).clamp_min(1e-30).log()
}

/// Logarithms of the classes' probabilities from one picture's logits, as the door sums them:
/// softmax of `logits / temperature`, then the sum of each class's labels.
pub fn class_log_probs(logits: &[f32], class_of_label: &[usize], temperature: f32) -> Vec<f32> {
    let classes = class_of_label.iter().max().map_or(0, |c| c + 1);
    let mut sums = vec![0.0_f64; classes];
    let top = logits.iter().copied().fold(f32::MIN, f32::max);
    for (logit, class) in logits.iter().zip(class_of_label) {
        sums[*class] += f64::from((logit - top) / temperature).exp();
    }
    let total: f64 = sums.iter().sum();
    sums.iter().map(|s| (s / total).max(1e-30).ln() as f32).collect()
}

/// Mixes each row with another by a random share up to `most`.
fn mix(data: &mut [f32], targets: &mut [f32], rows: usize, most: f32, rng: &mut StdRng) {
    let mut partner: Vec<usize> = (0..rows).collect();
    partner.shuffle(rng);
    let shares: Vec<f32> = (0..rows).map(|_| rng.random_range(0.0..most)).collect();
    for values in [data, targets] {
        let (each, before) = (values.len() / rows, values.to_vec());
        for (row, (&other, &share)) in partner.iter().zip(&shares).enumerate() {
            for k in 0..each {
                values[row * each + k] =
                    before[row * each + k] * (1.0 - share) + before[other * each + k] * share;
            }
        }
    }
}

/// The first output of `net` for every picture of a cache in `variant`; 0 is the plain one.
///
/// # Errors
/// If the cache cannot be read or does not fit the network.
pub fn logits(
    net: &Net,
    cache: &Cache,
    variant: usize,
    device: &Device,
    batch: usize,
) -> Result<Vec<Vec<f32>>> {
    let model = Model::new(net.clone(), device);
    let mut rows = Vec::with_capacity(cache.len);
    for start in (0..cache.len).step_by(batch) {
        let n = batch.min(cache.len - start);
        let mut data = Vec::new();
        for i in start..start + n {
            cache.read(i, variant, &mut data)?;
        }
        let out =
            model.forward(model.batch(data, batch_shape(&cache.shape, n))?, None)?.array(0)?;
        rows.extend(out.data.chunks(out.data.len() / n).map(<[f32]>::to_vec));
    }
    Ok(rows)
}
