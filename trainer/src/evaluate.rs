//! Measures a model on a dataset exactly as the door runs it: through `pawlatch_core::vision`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use image::RgbImage;
use pawlatch_core::frame::Frame;
use pawlatch_core::sight::Class;
use pawlatch_core::units::Uptime;
use pawlatch_core::vision::manifest::Output;
use pawlatch_core::vision::{
    Classifier, ClassifierOutput, Framing, Manifest, Model, Vision, probabilities,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;

use crate::data::augment::Corruption;
use crate::data::{self, Dataset, Item, Split};
use crate::metrics::{Bin, Rate, auc, expected_calibration_error, reliability, threshold_at};
use crate::workers::bar;

/// What was measured on one set of pictures.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Pictures.
    pub pictures: usize,
    /// Share whose best of dog, cat and the rest is right.
    pub accuracy3: Rate,
    /// Mean `-ln` of the probability of what it is, of dog, cat and the rest: less is better, and unlike
    /// rates it does not hang on where the worst few pictures put a threshold.
    pub log_loss3: f32,
    /// Share whose best of the five classes is right.
    pub accuracy: Rate,
    /// Rows: what it is; columns: what was said; both in the order of the classes.
    pub confusion: [[usize; 5]; 5],
    /// Area under the curve of dogs against cats, by the probability of "dog".
    pub auc_dog_cat: f64,
    /// Expected calibration error of the five classes, 15 bins.
    pub ece: f32,
    /// Bins of the reliability diagram.
    pub reliability: Vec<Bin>,
    /// Error rates at thresholds of the probability of "dog".
    pub operating: Vec<Operating>,
}

/// Error rates at one threshold.
#[derive(Clone, Debug, Serialize)]
pub struct Operating {
    /// What fixed the threshold.
    pub rule: String,
    /// Probability of "dog" that has to be passed.
    pub threshold: f32,
    /// Dogs kept out.
    pub frr: Rate,
    /// Cats let in.
    pub far_cat: Rate,
    /// Persons, other animals and nothing let in.
    pub far_rest: Rate,
}

/// What one distortion does.
#[derive(Clone, Debug, Serialize)]
pub struct Distorted {
    /// Which.
    pub corruption: Corruption,
    /// As [`Figures::log_loss3`].
    pub log_loss3: f32,
    /// Error rates at the threshold that lets in half a percent of all non-dogs undistorted.
    pub operating: Operating,
}

/// A picture with the class that was said to be likeliest.
#[derive(Clone, Debug, Serialize)]
pub struct Said {
    /// The picture.
    pub item: Item,
    /// What was said.
    pub said: String,
    /// With which probability.
    pub probability: f32,
}

/// Everything `evaluate` reports.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Model name and version.
    pub model: String,
    /// Hash of the dataset.
    pub data_sha256: String,
    /// Whole pictures and crops together.
    pub all: Figures,
    /// Whole pictures only.
    pub whole: Option<Figures>,
    /// Crops only.
    pub crops: Option<Figures>,
    /// Share of right three-way answers per source and subset.
    pub subsets: BTreeMap<String, Rate>,
    /// The same pictures under each distortion.
    pub corruptions: Vec<Distorted>,
    /// Most confident mistakes, worst first.
    pub mistakes: Vec<Said>,
    /// Of each class the pictures that were most surely said to show it, rightly or not.
    pub surest: Vec<Said>,
    /// Error rates against the threshold, from the lowest to the highest.
    pub curve: Vec<Operating>,
    /// Calibration error and reliability without the model's calibration, if it has one and answers
    /// by a single view.
    pub uncalibrated: Option<(f32, Vec<Bin>)>,
    /// Median milliseconds per picture, decoding left out.
    pub median_ms: f64,
    /// What each picture is, and the probability of "dog" it got.
    #[serde(skip)]
    pub scores: Vec<(Class, f32)>,
}

/// A picture with what was said of it.
struct Answer<'a> {
    item: &'a Item,
    class: Class,
    probs: [f32; 5],
    /// The same without the model's calibration, if it has one and answers by a single view.
    uncalibrated: Option<[f32; 5]>,
    ms: f64,
}

/// Loads a model directory as the door does.
///
/// # Errors
/// If a file is missing or the manifest is wrong.
pub fn load_model(dir: &Path) -> Result<Model> {
    let path = dir.join("model.toml");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let manifest = Manifest::parse(&text).with_context(|| format!("in {}", path.display()))?;
    let onnx = dir.join(&manifest.file);
    let bytes = std::fs::read(&onnx).with_context(|| format!("cannot read {}", onnx.display()))?;
    Ok(Model::from_parts(manifest, &bytes)?)
}

/// A class of the door by its name.
///
/// # Errors
/// If there is none of that name.
pub fn door_class(name: &str) -> Result<Class> {
    Class::ALL.into_iter().find(|c| c.name() == name).with_context(|| {
        let names: Vec<_> = Class::ALL.iter().map(|c| c.name()).collect();
        format!("label '{name}' is none of the door's classes: {}", names.join(", "))
    })
}

/// What a model is measured on, and how it answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setting<'a> {
    /// The pictures.
    pub split: Split,
    /// Also under each [`Corruption`].
    pub corruptions: bool,
    /// Directory of a detector. With it a picture is answered as `pawlatch classify` does, by the whole
    /// and by what this detector is surest of, each also mirrored; boxes of the dataset are left out.
    pub detector: Option<&'a Path>,
}

/// Who answers.
enum Judge {
    /// The classifier, by the one view that a picture of the dataset is.
    Alone(Box<Classifier>),
    /// Several views together.
    Together(Box<Vision>),
}

impl Judge {
    fn ask(&mut self, frame: &Frame, item: &Item) -> Result<ClassifierOutput> {
        match self {
            Self::Alone(classifier) => {
                let framing = if item.is_crop() { Framing::Crop } else { Framing::Whole };
                Ok(classifier.classify(frame, item.part, framing)?)
            }
            Self::Together(vision) => vision.describe(frame)?.context("there is no classifier"),
        }
    }
}

/// Measures the model in `dir` on `data`.
///
/// # Errors
/// If a model or a picture cannot be used, or there is no picture.
pub fn evaluate(dir: &Path, data: &Dataset, setting: Setting<'_>) -> Result<Report> {
    let model = load_model(dir)?;
    let name = format!("{} {}", model.manifest.name, model.manifest.version);
    let manifest = model.manifest.clone();
    let mut items = data.of(setting.split);
    let mut judge = match setting.detector {
        None => Judge::Alone(Box::new(Classifier::new(model)?)),
        Some(detector) => {
            items.retain(|i| !i.is_crop());
            Judge::Together(Box::new(Vision::new(Some(model), Some(load_model(detector)?))?))
        }
    };
    ensure!(!items.is_empty(), "the dataset has no picture in this split");
    let answers = classify(&mut judge, &manifest, &items, None)?;
    let all = figures(answers.iter());
    let part = |crop: bool| {
        let chosen: Vec<_> = answers.iter().filter(|a| a.item.is_crop() == crop).collect();
        (!chosen.is_empty()).then(|| figures(chosen.into_iter()))
    };
    let mut distorted = Vec::new();
    let threshold = all.operating.last().map_or(0.5, |o| o.threshold);
    for corruption in Corruption::ALL.into_iter().filter(|_| setting.corruptions) {
        let answers = classify(&mut judge, &manifest, &items, Some(corruption))?;
        let (rule, scores) = ("FAR(non-dog) 0.5 % undistorted", scores(answers.iter()));
        distorted.push(Distorted {
            corruption,
            log_loss3: log_loss3(answers.iter().map(|a| (a.class, a.probs))),
            operating: operating(rule, threshold, &scores),
        });
    }
    let uncalibrated: Option<Vec<Vec<f32>>> =
        answers.iter().map(|a| a.uncalibrated.map(Vec::from)).collect();
    let classes: Vec<usize> = answers.iter().map(|a| a.class as usize).collect();
    let uncalibrated = uncalibrated.map(|probs| {
        (expected_calibration_error(&probs, &classes), reliability(&probs, &classes).to_vec())
    });
    let mut ms: Vec<f64> = answers.iter().map(|a| a.ms).collect();
    ms.sort_by(f64::total_cmp);
    Ok(Report {
        model: name,
        data_sha256: data.sha256.clone(),
        whole: part(false),
        crops: part(true),
        subsets: subsets(&answers),
        corruptions: distorted,
        mistakes: surest(&answers, 24, |a| best(&a.probs) != a.class as usize),
        surest: Class::ALL
            .iter()
            .flat_map(|c| surest(&answers, 10, |a| best(&a.probs) == *c as usize))
            .collect(),
        curve: curve(&scores(answers.iter())),
        uncalibrated,
        median_ms: ms[ms.len() / 2],
        scores: scores(answers.iter()),
        all,
    })
}

fn classify<'a>(
    judge: &mut Judge,
    manifest: &Manifest,
    items: &[&'a Item],
    corruption: Option<Corruption>,
) -> Result<Vec<Answer<'a>>> {
    let labels = manifest.labels.class_of_each()?;
    let bar = bar(items.len() as u64, &corruption.map_or("pictures".into(), |c| format!("{c:?}")));
    let answers = items
        .iter()
        .enumerate()
        .map(|(i, item)| {
            let picture = data::open(&item.file)?;
            let picture = match corruption {
                Some(c) => c.apply(&picture, &mut StdRng::seed_from_u64(i as u64))?,
                None => picture,
            };
            let frame = frame(picture)?;
            let began = Instant::now();
            let answer =
                judge.ask(&frame, item).with_context(|| item.file.display().to_string())?;
            let ms = began.elapsed().as_secs_f64() * 1e3;
            bar.inc(1);
            let uncalibrated = match judge {
                Judge::Alone(_) => uncalibrated(answer.label_probs(), manifest, &labels),
                Judge::Together(_) => None,
            };
            let (class, probs) = (door_class(&item.label)?, answer.probs.into());
            Ok(Answer { item, class, probs, uncalibrated, ms })
        })
        .collect();
    bar.finish_and_clear();
    answers
}

/// What the network would have said without the calibration of its manifest: a label's probability
/// gives its logit again, but for a constant that the softmax takes away.
fn uncalibrated(label_probs: &[f32], manifest: &Manifest, labels: &[Class]) -> Option<[f32; 5]> {
    let temperature = manifest.calibration.as_ref()?.temperature;
    let exclusive = matches!(manifest.output, Output::Softmax { .. });
    let odds = |p: f32| if exclusive { p } else { p / (1.0 - p) };
    let logits: Vec<f32> = label_probs.iter().map(|p| odds(*p).ln() * temperature).collect();
    Some(probabilities(&logits, labels, exclusive, None)?.1.into())
}

/// A picture as a frame of the door.
///
/// # Errors
/// If its size is out of range.
pub fn frame(picture: RgbImage) -> Result<Frame> {
    let (w, h) = picture.dimensions();
    Frame::from_rgb(picture.into_raw(), w, h, Uptime::ZERO).map_err(|e| anyhow!(e))
}

fn figures<'a>(answers: impl Iterator<Item = &'a Answer<'a>>) -> Figures {
    let answers: Vec<&Answer<'_>> = answers.collect();
    let mut confusion = [[0; 5]; 5];
    let mut right3 = 0;
    for a in &answers {
        confusion[a.class as usize][best(&a.probs)] += 1;
        right3 += usize::from(best3(&a.probs) == (a.class as usize).min(2));
    }
    let right = (0..5).map(|i| confusion[i][i]).sum();
    let n = answers.len();
    let probs: Vec<Vec<f32>> = answers.iter().map(|a| a.probs.to_vec()).collect();
    let classes: Vec<usize> = answers.iter().map(|a| a.class as usize).collect();
    let scores = scores(answers.iter().copied());
    let (dogs, cats, rest) =
        (dog_scores(&scores, is_dog), dog_scores(&scores, is_cat), dog_scores(&scores, is_rest));
    let not_dogs: Vec<f32> = cats.iter().chain(&rest).copied().collect();
    let rules = [
        ("FAR(cat) 0.1 %", &cats, 0.001),
        ("FAR(cat) 1 %", &cats, 0.01),
        ("FAR(rest) 1 %", &rest, 0.01),
        ("FAR(non-dog) 0.5 %", &not_dogs, 0.005),
    ];
    Figures {
        pictures: n,
        accuracy3: Rate::new(right3, n),
        log_loss3: log_loss3(answers.iter().map(|a| (a.class, a.probs))),
        accuracy: Rate::new(right, n),
        confusion,
        auc_dog_cat: auc(&dogs, &cats),
        ece: expected_calibration_error(&probs, &classes),
        reliability: reliability(&probs, &classes).to_vec(),
        operating: rules
            .into_iter()
            .map(|(rule, negatives, far)| operating(rule, threshold_at(negatives, far), &scores))
            .collect(),
    }
}

fn is_dog(c: Class) -> bool {
    c == Class::Dog
}
fn is_cat(c: Class) -> bool {
    c == Class::Cat
}
fn is_rest(c: Class) -> bool {
    !is_dog(c) && !is_cat(c)
}

fn scores<'a>(answers: impl Iterator<Item = &'a Answer<'a>>) -> Vec<(Class, f32)> {
    answers.map(|a| (a.class, a.probs[Class::Dog as usize])).collect()
}

fn dog_scores(scores: &[(Class, f32)], of: fn(Class) -> bool) -> Vec<f32> {
    scores.iter().filter(|s| of(s.0)).map(|s| s.1).collect()
}

fn operating(rule: &str, threshold: f32, scores: &[(Class, f32)]) -> Operating {
    let passes = |of: fn(Class) -> bool| {
        let scores = dog_scores(scores, of);
        (scores.iter().filter(|&&p| p > threshold).count(), scores.len())
    };
    let ((dogs_in, dogs), (cats_in, cats), (rest_in, rest)) =
        (passes(is_dog), passes(is_cat), passes(is_rest));
    Operating {
        rule: rule.into(),
        threshold,
        frr: Rate::new(dogs - dogs_in, dogs),
        far_cat: Rate::new(cats_in, cats),
        far_rest: Rate::new(rest_in, rest),
    }
}

impl Operating {
    /// Everything that is no dog, let in.
    pub fn far_non_dog(&self) -> Rate {
        let (cat, rest) = (&self.far_cat, &self.far_rest);
        Rate::new(cat.hits + rest.hits, cat.of + rest.of)
    }
}

/// Mean `-ln` of what each picture's class, of dog, cat and the rest, was given of the five.
fn log_loss3(said: impl Iterator<Item = (Class, [f32; 5])>) -> f32 {
    let (mut loss, mut count) = (0.0, 0.0);
    for (class, [dog, cat, rest @ ..]) in said {
        let said = match class {
            Class::Dog => dog,
            Class::Cat => cat,
            _ => rest.iter().sum(),
        };
        loss -= said.max(1e-6).ln();
        count += 1.0;
    }
    loss / count
}

fn best(probs: &[f32]) -> usize {
    probs.iter().enumerate().fold(0, |b, (i, p)| if *p > probs[b] { i } else { b })
}

fn best3(probs: &[f32; 5]) -> usize {
    best(&[probs[0], probs[1], probs[2] + probs[3] + probs[4]])
}

fn subsets(answers: &[Answer<'_>]) -> BTreeMap<String, Rate> {
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for a in answers {
        let subset = a.item.subset.split(':').next().unwrap_or("");
        let (right, of) =
            counts.entry(format!("{} {} {}", a.item.label, subset, a.item.source)).or_default();
        *right += usize::from(best3(&a.probs) == (a.class as usize).min(2));
        *of += 1;
    }
    counts.into_iter().map(|(k, (right, of))| (k, Rate::new(right, of))).collect()
}

/// Rates at thresholds evenly spread over the logit of "dog", from 0.2 % to 99.8 %.
fn curve(scores: &[(Class, f32)]) -> Vec<Operating> {
    let at = |i: i32| 1.0 / (1.0 + (-0.25 * i as f32).exp());
    (-25..=25).map(|i| operating("", at(i), scores)).collect()
}

/// Of the answers of a kind the surest, best first.
fn surest(answers: &[Answer<'_>], most: usize, of: impl Fn(&&Answer<'_>) -> bool) -> Vec<Said> {
    let mut said: Vec<Said> = answers
        .iter()
        .filter(of)
        .map(|a| Said {
            item: a.item.clone(),
            said: Class::ALL[best(&a.probs)].name().into(),
            probability: a.probs[best(&a.probs)],
        })
        .collect();
    said.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    said.truncate(most);
    said
}

impl Report {
    /// The rates at the threshold that lets in at most the share `far` of all that is no dog.
    pub fn operating_at(&self, far: f64) -> Operating {
        let negatives = dog_scores(&self.scores, |c| !is_dog(c));
        let rule = format!("FAR(non-dog) {} %", far * 100.0);
        operating(&rule, threshold_at(&negatives, far), &self.scores)
    }

    /// In what this model does worse than `other` on the same pictures, if in anything: right
    /// answers, and dogs kept out or cats let in where at most `far` of all non-dogs are let in.
    pub fn worse_than(&self, other: &Self, far: f64) -> Option<String> {
        let (own, others) = (self.operating_at(far), other.operating_at(far));
        let more = |what: &str, own: usize, others: usize| {
            (own > others).then(|| format!("{what}: {own}, not {others}"))
        };
        let wrong = |r: &Self| r.all.accuracy3.of - r.all.accuracy3.hits;
        more("wrong among dog, cat and the rest", wrong(self), wrong(other))
            .or_else(|| more("dogs kept out", own.frr.hits, others.frr.hits))
            .or_else(|| more("cats let in", own.far_cat.hits, others.far_cat.hits))
    }

    /// The figures as text for a terminal or a model card.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{} on data {}\n",
            self.model,
            &self.data_sha256[..12.min(self.data_sha256.len())]
        );
        let parts = [
            ("all", Some(&self.all)),
            ("whole pictures", self.whole.as_ref()),
            ("crops", self.crops.as_ref()),
        ];
        for (what, figures) in parts.into_iter().filter_map(|(w, f)| Some((w, f?))) {
            out += &format!(
                "\n{what}: {} pictures\n  right of dog, cat, rest  {:.2} %\n  \
                 log loss of these three  {:.4}\n  right of five classes    {:.2} %\n  AUC dog/cat              {:.5}\n  \
                 calibration error        {:.4}\n",
                figures.pictures,
                figures.accuracy3.share() * 100.0,
                figures.log_loss3,
                figures.accuracy.share() * 100.0,
                figures.auc_dog_cat,
                figures.ece
            );
            for o in &figures.operating {
                out += &format!(
                    "  at {:<19} p > {:.3}  FRR {}  FAR cat {}  FAR rest {}\n",
                    o.rule, o.threshold, o.frr, o.far_cat, o.far_rest
                );
            }
        }
        out += "\nconfusion (rows: is; columns: said)";
        out += &Class::ALL.iter().map(|c| format!("{:>9}", c.name())).collect::<String>();
        for (class, row) in Class::ALL.iter().zip(&self.all.confusion) {
            out += &format!("\n{:>36}", class.name());
            out += &row.iter().map(|n| format!("{n:>9}")).collect::<String>();
        }
        out += "\n\nright of dog, cat, rest by subset\n";
        for (subset, rate) in &self.subsets {
            out += &format!("  {subset:<60} {:>4}/{}\n", rate.hits, rate.of);
        }
        if let Some(Distorted { operating, .. }) = self.corruptions.first() {
            out += &format!("\ndistorted, at p > {:.3}\n", operating.threshold);
        }
        for Distorted { corruption, log_loss3, operating: o } in &self.corruptions {
            let name = format!("{corruption:?}");
            out += &format!(
                "  {name:<12} log loss {log_loss3:.4}  FRR {}  FAR cat {}  FAR rest {}\n",
                o.frr, o.far_cat, o.far_rest
            );
        }
        out + &format!("\nmedian {:.1} ms per picture\n", self.median_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_loss_is_of_dog_cat_and_the_rest_together() {
        let said = [
            (Class::Dog, [0.5, 0.5, 0.0, 0.0, 0.0]),
            (Class::Cat, [0.75, 0.25, 0.0, 0.0, 0.0]),
            (Class::Person, [0.0, 0.875, 0.0625, 0.0, 0.0625]),
        ];
        // Halves: one, two and three of them.
        assert!((log_loss3(said.into_iter()) - 2.0 * 2.0_f32.ln()).abs() < 1e-6);
        assert!(log_loss3([(Class::Dog, [0.0, 1.0, 0.0, 0.0, 0.0])].into_iter()) > 13.0);
    }

    #[test]
    fn without_calibration_is_what_the_logits_alone_say() {
        let logits = [2.0, -1.5, 0.25, -0.5];
        let labels = [Class::Dog, Class::Cat, Class::Dog, Class::Person];
        let shipped = include_str!("../../models/pet_classifier/model.toml");
        for (family, exclusive) in [("softmax", true), ("sigmoid", false)] {
            let text = shipped.replace("family = \"softmax\"", &format!("family = \"{family}\""));
            let mut manifest = Manifest::parse(&text).unwrap();
            manifest.calibration.as_mut().unwrap().temperature = 2.0;
            let said = |c| probabilities(&logits, &labels, exclusive, c).unwrap();
            let (shown, calibrated) = said(manifest.calibration.as_ref());
            let (alone, of_alone): ([f32; 5], [f32; 5]) =
                (uncalibrated(&shown, &manifest, &labels).unwrap(), said(None).1.into());
            let apart = |other: [f32; 5]| {
                alone.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
            };
            assert!(apart(of_alone) < 1e-6, "{family}: {alone:?}, not {of_alone:?}");
            assert!(apart(calibrated.into()) > 0.02, "{family}: the calibration does nothing");
        }
    }
}
