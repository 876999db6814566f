//! What decides how a training goes: learning rates, rules of the steps, regularisation.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// How the learning rate changes over a training; `t` runs from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Always the base rate.
    Fixed,
    /// A tenth after each third.
    Step,
    /// A tenth after each of the recipe's `milestones`.
    Multistep,
    /// `0.01 ^ t`.
    Exponential,
    /// `1 - t`, to the power of one half (as DIGITS has it).
    Polynomial,
    /// Half a cosine down to zero.
    Cosine,
}

/// Rule by which gradients change parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Optimiser {
    /// Stochastic gradient descent with momentum 0.9.
    Sgd,
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019), betas 0.9 and 0.999.
    Adamw,
}

/// What weights shrink towards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    /// Nought, as usual.
    Zero,
    /// The weights the training began with: little data cannot wash out what a large set taught
    /// (L2-SP, Li et al. 2018).
    Start,
}

/// A form of a training picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As the step shows it.
    Seen,
    /// Undistorted: what was known of it there is to be known of it in the dark as well
    /// (distillation from clean pictures, Xie et al. 2020).
    Plain,
}

/// Everything that decides how a training goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Passes over the data.
    pub epochs: usize,
    /// Pictures per step.
    pub batch: usize,
    /// Base learning rate.
    pub rate: f32,
    /// How it changes.
    pub policy: Policy,
    /// For `multistep`: shares of the training after which the rate is a tenth of what it was.
    pub milestones: Vec<f32>,
    /// Share of all steps over which the rate rises from zero.
    pub warm_up: f32,
    /// Rule of the steps.
    pub optimiser: Optimiser,
    /// Weights (not biases) shrink by this times the rate each step.
    pub decay: f32,
    /// What they shrink towards.
    pub decay_towards: Anchor,
    /// Gradients are scaled down to this length; 0 leaves them.
    pub clip: f32,
    /// Probability taken from the right class and spread over all (Szegedy et al. 2016).
    pub smoothing: f32,
    /// Exponent of the focal loss (Lin et al. 2017); 0 is plain cross-entropy.
    pub focal: f32,
    /// Weight of staying with what the network said of each label when the training began, on
    /// pictures whose class it knew (learning without forgetting, Li and Hoiem 2016); 0 is off.
    pub remember: f32,
    /// Of which form of a picture that is.
    pub remember_of: Form,
    /// Pictures are mixed in pairs by up to this share (Zhang et al. 2018); 0 is off.
    pub mixup: f32,
    /// Decay of the running mean of the parameters that is kept as the result; 0 is off.
    pub ema: f32,
    /// Steps whose gradients are added up before parameters change.
    pub accumulate: usize,
    /// Epochs without a better validation loss after which training stops; 0 is never.
    pub patience: usize,
    /// Share of the trained weights in the result; the rest are the weights it began with (WiSE-FT,
    /// Wortsman et al. 2022). Less is safer on pictures unlike those trained on.
    pub blend: f32,
    /// Seed of order, dropout and mixing.
    pub seed: u64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            epochs: 10,
            batch: 32,
            rate: 1e-3,
            policy: Policy::Cosine,
            milestones: Vec::new(),
            warm_up: 0.05,
            optimiser: Optimiser::Adamw,
            decay: 0.01,
            decay_towards: Anchor::Zero,
            clip: 5.0,
            smoothing: 0.02,
            focal: 0.0,
            remember: 0.0,
            remember_of: Form::Seen,
            mixup: 0.0,
            ema: 0.0,
            accumulate: 1,
            patience: 5,
            blend: 1.0,
            seed: 7,
        }
    }
}

/// Height of the bars of [`Recipe::preview`].
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

impl Recipe {
    /// Whether a training can follow it.
    ///
    /// # Errors
    /// Naming the key with an impossible value.
    pub fn check(&self) -> Result<()> {
        ensure!(self.epochs > 0 && self.batch > 0, "`epochs` and `batch` must be above 0");
        ensure!(self.accumulate > 0, "`accumulate` must be above 0");
        ensure!(self.rate > 0.0, "`rate` is {}; it must be above 0", self.rate);
        ensure!((0.0..1.0).contains(&self.warm_up), "`warm_up` is no share of 1");
        ensure!(
            self.remember_of == Form::Seen || self.mixup == 0.0,
            "`mixup` mixes pictures, of which there is no plain form: leave it out, or `remember_of = \"plain\"`"
        );
        ensure!(
            self.blend > 0.0 && self.blend <= 1.0,
            "`blend` is {}; it must be above 0 and at most 1",
            self.blend
        );
        let rising = self.milestones.windows(2).all(|w| w[0] < w[1]);
        let shares = self.milestones.iter().all(|m| *m > 0.0 && *m < 1.0);
        ensure!(rising && shares, "`milestones` must be shares of the training, rising");
        ensure!(
            (self.policy == Policy::Multistep) != self.milestones.is_empty(),
            "`milestones` and `policy = \"multistep\"` belong together"
        );
        Ok(())
    }

    /// Whether it asks of a detector only what a detector's training does.
    ///
    /// # Errors
    /// If a key is given that is about classes of whole pictures.
    pub fn check_for_boxes(&self) -> Result<()> {
        let Self { smoothing, focal, remember, remember_of, mixup, .. } = Self::default();
        let without = Self { smoothing, focal, remember, remember_of, mixup, ..self.clone() };
        ensure!(
            *self == without,
            "`smoothing`, `focal`, `remember`, `remember_of` and `mixup` are for classifiers: leave them out of a \
             detector's recipe"
        );
        Ok(())
    }

    /// The factor of the base rate at `t`, warm-up left out.
    pub fn factor(&self, t: f32) -> f32 {
        match self.policy {
            Policy::Fixed => 1.0,
            Policy::Step => 0.1_f32.powf((t * 3.0).floor().min(2.0)),
            Policy::Multistep => {
                self.milestones.iter().filter(|m| t >= **m).map(|_| 0.1_f32).product()
            }
            Policy::Exponential => 0.01_f32.powf(t),
            Policy::Polynomial => (1.0 - t).max(0.0).sqrt(),
            Policy::Cosine => 0.5 * (1.0 + (std::f32::consts::PI * t.min(1.0)).cos()),
        }
    }

    /// The learning rate of each step of `steps`.
    pub fn rate_at(&self, step: usize, steps: usize) -> f32 {
        let t = step as f32 / steps.max(1) as f32;
        let warm = if t < self.warm_up {
            (step + 1) as f32 / (self.warm_up * steps as f32).max(1.0)
        } else {
            1.0
        };
        self.rate * self.factor(t) * warm.min(1.0)
    }

    /// The rate over the whole training as one line of bars.
    pub fn preview(&self) -> String {
        let rates: Vec<f32> = (0..COLUMNS).map(|i| self.rate_at(i, COLUMNS)).collect();
        format!("rate {:.1e} {}", self.rate, bars(&rates, 0.0, self.rate))
    }
}

/// Most bars in a line.
pub const COLUMNS: usize = 40;

/// The last [`COLUMNS`] values as bars, from lowest at `low` to highest at `high`.
pub fn bars(values: &[f32], low: f32, high: f32) -> String {
    let bar = |v: &f32| {
        let share = (v - low) / (high - low).max(f32::MIN_POSITIVE);
        BARS[((share * BARS.len() as f32) as usize).min(BARS.len() - 1)]
    };
    values[values.len().saturating_sub(COLUMNS)..].iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(policy: Policy) -> Recipe {
        let milestones = if policy == Policy::Multistep { vec![0.5, 0.75] } else { vec![] };
        Recipe { policy, milestones, warm_up: 0.0, rate: 1.0, ..Recipe::default() }
    }

    #[test]
    fn every_policy_starts_at_the_base_rate_and_never_rises() {
        for &policy in <Policy as clap::ValueEnum>::value_variants() {
            let recipe = with(policy);
            recipe.check().unwrap();
            let factors: Vec<f32> = (0..=100).map(|i| recipe.factor(i as f32 / 100.0)).collect();
            assert!((factors[0] - 1.0).abs() < 1e-6, "{policy:?}");
            assert!(factors.windows(2).all(|w| w[1] <= w[0] + 1e-6), "{policy:?}");
            assert!(factors.iter().all(|f| *f >= -1e-6), "{policy:?}");
        }
    }

    #[test]
    fn multistep_falls_to_a_tenth_at_each_milestone_and_nowhere_else() {
        let rates: Vec<f32> = (0..100).map(|i| with(Policy::Multistep).rate_at(i, 100)).collect();
        assert_eq!((rates[49], rates[50], rates[74]), (1.0, 0.1, 0.1));
        assert!((rates[75] - 0.01).abs() < 1e-9 && (rates[99] - 0.01).abs() < 1e-9);
        for milestones in [vec![], vec![0.5, 0.5], vec![0.5, 1.5]] {
            assert!(Recipe { milestones, ..with(Policy::Multistep) }.check().is_err());
        }
        let stray = Recipe { milestones: vec![0.5], ..with(Policy::Cosine) };
        assert!(format!("{}", stray.check().unwrap_err()).contains("multistep"));
    }

    #[test]
    fn a_detectors_recipe_asks_nothing_of_whole_pictures() {
        let shared = Recipe { epochs: 3, ema: 0.9, blend: 0.5, ..Recipe::default() };
        shared.check_for_boxes().unwrap();
        for foreign in [
            Recipe { smoothing: 0.1, ..shared.clone() },
            Recipe { focal: 2.0, ..shared.clone() },
            Recipe { remember: 1.0, ..shared.clone() },
            Recipe { remember_of: Form::Plain, ..shared.clone() },
            Recipe { mixup: 0.2, ..shared.clone() },
        ] {
            let error = foreign.check_for_boxes().unwrap_err().to_string();
            assert!(error.contains("for classifiers"), "{error}");
        }
    }

    #[test]
    fn a_preview_shows_where_the_rate_is() {
        let line = with(Policy::Step).preview();
        assert!(line.starts_with("rate 1.0e0 █") && line.ends_with('▁'), "{line}");
    }

    #[test]
    fn bars_show_the_last_values_within_their_range() {
        assert_eq!(bars(&[0.0, 1.0, 2.0], 0.0, 2.0), "▁▅█");
        assert_eq!(bars(&[0.5, f32::NAN, 0.5], 0.5, 0.5), "▁▁▁");
        let rising: Vec<f32> = (0..100).map(|i| i as f32).collect();
        let shown = bars(&rising, 0.0, 99.0);
        assert!(shown.chars().count() == COLUMNS && !shown.contains('▁'), "{shown}");
    }

    #[test]
    fn warm_up_rises_from_almost_nothing_to_the_policy() {
        let recipe = Recipe { warm_up: 0.1, ..with(Policy::Fixed) };
        assert!((recipe.rate_at(0, 100) - 0.1).abs() < 1e-6);
        assert!((recipe.rate_at(4, 100) - 0.5).abs() < 1e-6);
        assert_eq!(recipe.rate_at(10, 100), 1.0);
    }
}
