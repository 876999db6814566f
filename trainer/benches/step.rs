//! Seconds of a full fine-tune step: `cargo bench --bench step -- NETWORK.onnx BATCH STEPS`.
//!
//! Every parameter of the network is trained on pictures of noise, for the cross-entropy of its
//! first output: reading, forward, backward, AdamW. Prints the median in seconds and the most
//! memory that the process had, in MB. `step.py` does the same in PyTorch, in turn with this.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor, TensorData, activation};
use pawlatch_trainer::engine::{self, Model};
use pawlatch_trainer::net::Net;
use pawlatch_trainer::recipe::Recipe;
use pawlatch_trainer::train::{Objective, Training};
use rand::Rng;
use rand::rngs::StdRng;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SIDE: usize = 224;

struct Noise {
    pictures: usize,
    /// When each step began.
    began: Mutex<Vec<Instant>>,
}

impl Noise {
    fn now(&self) {
        self.began.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
    }
}

impl Objective for Noise {
    fn len(&self) -> usize {
        self.pictures
    }

    fn identity(&self) -> String {
        format!("noise of {}", self.pictures)
    }

    fn loss(&self, model: &Model, batch: &[usize], rng: &mut StdRng) -> Result<Tensor<1>> {
        self.now();
        let n = batch.len();
        let data = (0..n * 3 * SIDE * SIDE).map(|_| rng.random_range(-1.0..1.0)).collect();
        let x = model.batch(data, [n, 3, SIDE, SIDE])?;
        let logits = model.forward(x, Some(rng))?.matrix(0)?;
        let labels = logits.dims()[1];
        let mut targets = vec![0.0_f32; n * labels];
        for row in 0..n {
            targets[row * labels + row % labels] = 1.0;
        }
        let targets = TensorData::new(targets, [n, labels]);
        let targets = Tensor::<2>::from_data(targets, model.device());
        Ok((targets * activation::log_softmax(logits, 1).neg()).sum() / n as f32)
    }

    fn validate(&self, _: &Net, _: &Device) -> Result<(f32, f32)> {
        self.now();
        Ok((1.0, 0.0))
    }
}

fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [network, batch, steps] = given.as_slice() else {
        anyhow::bail!("usage: cargo bench --bench step -- NETWORK.onnx BATCH STEPS")
    };
    let (batch, steps): (usize, usize) = (batch.parse()?, steps.parse()?);
    let net = Net::load(Path::new(network))?;
    let noise = Noise { pictures: batch * steps, began: Mutex::default() };
    let recipe = Recipe { epochs: 1, batch, rate: 1e-6, ema: 0.98, ..Recipe::default() };
    let dir = tempfile::tempdir()?;
    Training::new(&recipe, &noise, dir.path()).run(&net, &[engine::device("cpu")?])?;
    let began = noise.began.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut seconds: Vec<f64> = began.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect();
    seconds.sort_by(f64::total_cmp);
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let peak: f64 = peak.trim().trim_end_matches(" kB").parse()?;
    println!("{:.3} {:.0}", seconds[seconds.len() / 2], peak / 1e3);
    Ok(())
}
