//! What every training plan says, how plans are read, and how `--sweep` varies them.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::cache::Normalisation;
use crate::data::augment::Augmentation;
use crate::recipe::Recipe;
use crate::train::Epoch;

/// Most plans that one sweep may try.
const MOST_POINTS: usize = 100;

/// How a network sees pictures. In a plan its keys stand beside the plan's own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// Side of the square input, pixels.
    pub side: usize,
    /// Subtracted from each channel of 8-bit pixels.
    pub mean: [f32; 3],
    /// Divides each channel.
    pub std: [f32; 3],
    /// Seed of everything but the steps of a stage, which have their recipe's.
    pub seed: u64,
    /// Distortions of training pictures.
    #[serde(default)]
    pub augmentation: Augmentation,
}

impl Seen {
    /// Pixels to numbers.
    pub const fn normalisation(&self) -> Normalisation {
        Normalisation { mean: self.mean, std: self.std }
    }
}

/// A plan of several stages, each with a recipe.
pub trait Plan: Serialize + DeserializeOwned {
    /// What such a plan is called in a message.
    const KIND: &'static str;

    /// The recipe of each stage, and how many variants of a picture it shows.
    fn stages(&self) -> impl Iterator<Item = (&Recipe, usize)>;

    /// Whether what only this kind of plan says can be trained.
    ///
    /// # Errors
    /// Naming the key with an impossible value.
    fn check_own(&self) -> Result<()>;

    /// Reads a plan.
    ///
    /// # Errors
    /// If the file cannot be read, has an unknown key or a wrong value, or no stage.
    fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let plan: Self = toml::from_str(&text)
            .with_context(|| format!("{} is no {}", path.display(), Self::KIND))?;
        plan.check().with_context(|| path.display().to_string())?;
        Ok(plan)
    }

    /// Whether every stage can be trained.
    ///
    /// # Errors
    /// If there is no stage, one shows nothing, or a recipe contradicts itself.
    fn check(&self) -> Result<()> {
        ensure!(self.stages().next().is_some(), "the plan has no stage");
        for (n, (recipe, variants)) in self.stages().enumerate() {
            let n = n + 1;
            ensure!(variants > 0, "stage {n}: `variants` must be above 0");
            recipe.check().with_context(|| format!("stage {n}"))?;
        }
        self.check_own()
    }
}

/// The recipes of any kind of plan, whatever else it says.
///
/// # Errors
/// If the file cannot be read or a stage has no recipe.
pub fn recipes(path: &Path) -> Result<Vec<Recipe>> {
    #[derive(Deserialize)]
    struct Stage {
        recipe: Recipe,
    }
    #[derive(Deserialize)]
    struct Stages {
        stage: Vec<Stage>,
    }
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let stages: Stages =
        toml::from_str(&text).with_context(|| format!("{} is no plan", path.display()))?;
    Ok(stages.stage.into_iter().map(|s| s.recipe).collect())
}

/// A key of a plan with the values to try: `stage.1.recipe.rate=1e-3,3e-3`. Stages count from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    key: String,
    values: Vec<Value>,
}

impl std::str::FromStr for Axis {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (key, values) =
            text.split_once('=').with_context(|| format!("'{text}' is no KEY=VALUE,VALUE"))?;
        // As TOML if it is TOML, so that numbers are numbers and arrays may be values.
        let parsed = format!("v = [{values}]").parse::<Table>().ok();
        let values = match parsed.as_ref().and_then(|t| t["v"].as_array()) {
            Some(array) => array.clone(),
            None => values.split(',').map(|v| Value::String(v.trim().to_owned())).collect(),
        };
        ensure!(!key.is_empty() && !values.is_empty(), "'{text}' has no key or no value");
        Ok(Self { key: key.to_owned(), values })
    }
}

/// Every combination of the axes' values: what was changed, and the changed plan.
///
/// # Errors
/// If a key is no key of the plan or takes no such value, or there are more than a hundred.
pub fn grid<P: Plan>(plan: &P, axes: &[Axis]) -> Result<Vec<(String, P)>> {
    let count = axes.iter().try_fold(1_usize, |n, a| n.checked_mul(a.values.len()));
    let count = count.filter(|n| *n <= MOST_POINTS);
    ensure!(count.is_some(), "a sweep tries at most {MOST_POINTS} plans");
    let mut points = vec![(Vec::new(), Table::try_from(plan)?)];
    for axis in axes {
        let mut next = Vec::new();
        for (name, table) in &points {
            for value in &axis.values {
                let (mut name, mut table): (Vec<String>, Table) = (name.clone(), table.clone());
                set(&mut table, &axis.key, value.clone())?;
                name.push(format!("{}={value}", axis.key));
                next.push((name, table));
            }
        }
        points = next;
    }
    let plan = |(name, table): (Vec<String>, Table)| {
        let name = name.join(" ");
        let plan: P = table.try_into().with_context(|| format!("with {name}"))?;
        plan.check().with_context(|| format!("with {name}"))?;
        Ok((name, plan))
    };
    points.into_iter().map(plan).collect()
}

fn set(table: &mut Table, key: &str, value: Value) -> Result<()> {
    let (parents, last) = key.rsplit_once('.').unwrap_or(("", key));
    let mut at = table;
    let mut parents = parents.split('.').filter(|p| !p.is_empty());
    while let Some(name) = parents.next() {
        let inner = at.get_mut(name).with_context(|| format!("'{key}': there is no '{name}'"))?;
        at = match inner {
            Value::Table(inner) => inner,
            Value::Array(stages) => {
                let number: usize = parents
                    .next()
                    .and_then(|n| n.parse().ok())
                    .with_context(|| format!("'{key}': '{name}' needs a number, as {name}.1"))?;
                number
                    .checked_sub(1)
                    .and_then(|n| stages.get_mut(n))
                    .and_then(Value::as_table_mut)
                    .with_context(|| format!("'{key}': there is no {name} {number}"))?
            }
            _ => bail!("'{key}': '{name}' has no keys below it"),
        };
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

/// How one plan of a sweep did.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What was changed.
    pub name: String,
    /// Validation loss of what came out.
    pub loss: f32,
    /// Its score, `0..=1`.
    pub score: f32,
    /// Epochs of all stages.
    pub epochs: usize,
    /// Seconds of all epochs.
    pub seconds: f32,
}

/// Best first; a loss that is no number comes last.
fn ranked(mut outcomes: Vec<Outcome>) -> Vec<Outcome> {
    outcomes.sort_by(|a, b| a.loss.total_cmp(&b.loss));
    outcomes
}

/// What one training of a sweep left.
pub struct Tried<T> {
    /// What is kept of it if it is the best.
    pub result: T,
    /// Validation loss and score of what came out.
    pub validation: (f32, f32),
    /// History of each stage.
    pub history: Vec<Vec<Epoch>>,
}

/// Tries every point of a grid and keeps the best. A training that fails, say because its rate is
/// too high, comes last in the ranking and does not end the others.
///
/// # Errors
/// If all fail.
pub fn sweep<P, T>(
    points: Vec<(String, P)>,
    mut run: impl FnMut(&str, &P) -> Result<Tried<T>>,
) -> Result<(Vec<Outcome>, P, T)> {
    let (mut outcomes, mut best) = (Vec::new(), None::<(f32, P, T)>);
    let (count, mut first_error) = (points.len(), None);
    for (n, (name, plan)) in points.into_iter().enumerate() {
        println!("\nplan {} of {count}: {name}", n + 1);
        let mut outcome = Outcome { name, loss: f32::NAN, score: 0.0, epochs: 0, seconds: 0.0 };
        match run(&outcome.name, &plan) {
            Ok(tried) => {
                let epochs = || tried.history.iter().flatten();
                outcome.epochs = epochs().count();
                outcome.seconds = epochs().map(|e| e.seconds).sum();
                (outcome.loss, outcome.score) = tried.validation;
                if best.as_ref().is_none_or(|(loss, ..)| outcome.loss < *loss) {
                    best = Some((outcome.loss, plan, tried.result));
                }
            }
            Err(error) => {
                eprintln!("{}: {error:#}", outcome.name);
                first_error.get_or_insert(error);
            }
        }
        outcomes.push(outcome);
    }
    let none = || first_error.unwrap_or_else(|| anyhow!("the sweep is empty"));
    let (_, plan, result) = best.ok_or_else(none).context("no plan of the sweep succeeded")?;
    Ok((ranked(outcomes), plan, result))
}

/// Ranked outcomes as a table.
pub fn table(ranked: &[Outcome]) -> String {
    let width = ranked.iter().map(|o| o.name.len()).max().unwrap_or(0).max(7);
    let mut out = format!(
        "rank  {:<width$}  {:>10}  {:>8}  {:>6}  {:>7}\n",
        "changed", "validation", "score", "epochs", "seconds"
    );
    for (n, o) in ranked.iter().enumerate() {
        out += &format!(
            "{:>4}  {:<width$}  {:>10.4}  {:>6.2} %  {:>6}  {:>7.1}\n",
            n + 1,
            o.name,
            o.loss,
            o.score * 100.0,
            o.epochs,
            o.seconds
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retrain;

    fn plan() -> retrain::Plan {
        retrain::Plan::head_only(96, [127.0; 3], [128.0; 3], 7)
    }

    fn points(axes: &[&str]) -> Result<Vec<(String, retrain::Plan)>> {
        let axes: Result<Vec<Axis>> = axes.iter().map(|a| a.parse()).collect();
        grid(&plan(), &axes?)
    }

    #[test]
    fn every_combination_is_tried_once() {
        let points = points(&[
            "stage.1.recipe.rate=1e-3,0.1",
            "stage.1.recipe.policy=step,cosine",
            "seed=3",
        ])
        .unwrap();
        let names: Vec<_> = points.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names.len(), 4);
        assert_eq!(names[1], "stage.1.recipe.rate=0.001 stage.1.recipe.policy=\"cosine\" seed=3");
        let (_, last) = &points[3];
        assert_eq!((last.stage[0].recipe.rate, last.seen.seed), (0.1, 3));
        let arrays = points_of("mean=[1.0,1.0,1.0],[1.0,2.0,3.0]");
        assert_eq!(arrays[1].1.seen.mean, [1.0, 2.0, 3.0]);
    }

    fn points_of(axis: &str) -> Vec<(String, retrain::Plan)> {
        points(&[axis]).unwrap()
    }

    #[test]
    fn a_key_that_is_none_and_a_value_that_does_not_fit_are_named() {
        for (axis, said) in [
            ("stage.1.recipe.speed=1", "speed"),
            ("sped=1", "sped"),
            ("stage.2.recipe.rate=1", "no stage 2"),
            ("stage.recipe.rate=1", "stage.1"),
            ("seed.x=1", "no keys below"),
            ("stage.1.recipe.policy=up", "up"),
            ("seed", "KEY=VALUE"),
            ("stage.1.recipe.rate=-1", "rate"),
            ("stage.1.variants=0", "variants"),
            ("judged_variants=0", "judged_variants"),
        ] {
            let error = format!("{:#}", points(&[axis]).unwrap_err());
            assert!(error.contains(said), "{axis}: {error}");
        }
        let many = (0..11).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let (a, b) = (format!("seed={many}"), format!("stage.1.variants={many}"));
        assert!(points(&[&a, &b]).is_err());
    }

    #[test]
    fn a_plan_with_an_unknown_key_is_refused_although_its_keys_are_shared() {
        let text = toml::to_string(&plan()).unwrap();
        assert!(toml::from_str::<retrain::Plan>(&text).is_ok());
        let error = toml::from_str::<retrain::Plan>(&format!("sied = 3\n{text}")).unwrap_err();
        assert!(error.to_string().contains("sied"), "{error}");
    }

    #[test]
    fn a_training_that_fails_does_not_end_the_sweep_and_the_best_is_kept() {
        let points = || points(&["seed=1,2,3"]).unwrap();
        let run = |_: &str, plan: &retrain::Plan| match plan.seen.seed {
            1 => bail!("the loss is NaN"),
            seed => Ok(Tried {
                result: seed,
                validation: (1.0 / seed as f32, 0.5),
                history: Vec::new(),
            }),
        };
        let (outcomes, plan, kept) = sweep(points(), run).unwrap();
        assert_eq!((kept, plan.seen.seed), (3, 3));
        let names: Vec<_> = outcomes.iter().map(|o| o.name.as_str()).collect();
        assert_eq!(names, ["seed=3", "seed=2", "seed=1"]);
        let none = sweep(points(), |_, _| bail!("full disk") as Result<Tried<()>>);
        assert!(format!("{:#}", none.unwrap_err()).contains("full disk"));
    }

    #[test]
    fn the_best_comes_first_and_what_failed_last() {
        let outcome = |name: &str, loss| Outcome {
            name: name.into(),
            loss,
            score: 0.5,
            epochs: 3,
            seconds: 1.0,
        };
        let ranked = ranked(vec![outcome("b", 0.4), outcome("nan", f32::NAN), outcome("a", 0.3)]);
        let names: Vec<_> = ranked.iter().map(|o| o.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "nan"]);
        assert!(table(&ranked).lines().nth(1).unwrap().starts_with("   1  a"));
    }
}
