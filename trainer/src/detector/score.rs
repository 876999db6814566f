//! How good a detector is, measured through `pawlatch_core::vision` as on the door.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use pawlatch_core::metrics::Rate;
use pawlatch_core::sight::{Class, Detection};
use pawlatch_core::units::{Rect, Score};
use pawlatch_core::vision::{Detector, Model};
use serde::Serialize;

use crate::data::{self, Dataset, LabelledBox, Scene, Split};
use crate::evaluate::{door_class, frame};
use crate::workers::bar;

/// The curve of precision against recall needs the whole range of scores.
pub(crate) const FLOOR: Score = Score::clamped(0.02);
/// Sizes reported apart: name, and up to which share of the picture's area.
pub(crate) const SIZES: [(&str, f32); 3] = [("small", 0.05), ("medium", 0.25), ("large", 1.0)];
/// Most mistakes of a kind that are kept to be looked at.
const MISTAKES: usize = 24;

/// Figures of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassFigures {
    /// Boxes to find.
    pub boxes: usize,
    /// Average precision at IoU 0.5, over all points of the curve.
    pub ap50: f64,
    /// Mean over IoU 0.5 to 0.95 in steps of 0.05.
    pub ap50_95: f64,
    /// Boxes and AP50 of those below a twentieth of the picture, a quarter, and the rest.
    pub sizes: BTreeMap<String, (usize, f64)>,
    /// Recall and precision at IoU 0.5, from the surest box to the least sure.
    pub curve: Vec<(f64, f64)>,
}

/// A box that was said where nothing of its class is, or not said where something is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mistake {
    /// The picture.
    pub file: PathBuf,
    /// The class.
    pub label: String,
    /// The box.
    pub rect: Rect,
    /// How sure it was said; 0 if it was not.
    pub score: f32,
    /// All that is boxed in the picture.
    pub truth: Vec<LabelledBox>,
}

/// Everything that is measured of a detector.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Model name and version.
    pub model: String,
    /// Hash of the dataset.
    pub data_sha256: String,
    /// By class.
    pub classes: BTreeMap<String, ClassFigures>,
    /// Of the cats that are found (IoU 0.5, score above the model's floor), those whose best box
    /// says dog.
    pub cat_called_dog: Rate,
    /// The same the other way round.
    pub dog_called_cat: Rate,
    /// Of pictures with one dog or cat and nothing else boxed, those whose best animal box overlaps it by more
    /// than 0.5 (IoU).
    pub single_over_50: Rate,
    /// By more than 0.7.
    pub single_over_70: Rate,
    /// The surest boxes above the model's floor that fit nothing (IoU 0.5), surest first.
    pub false_alarms: Vec<Mistake>,
    /// The largest things that no box above it fits, largest first.
    pub missed: Vec<Mistake>,
    /// Median milliseconds per picture, decoding left out.
    pub median_ms: f64,
}

impl Report {
    /// Mean AP50 of the classes.
    pub fn mean_ap50(&self) -> f64 {
        self.classes.values().map(|c| c.ap50).sum::<f64>() / self.classes.len().max(1) as f64
    }

    /// For the terminal.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n", self.model);
        for (class, f) in &self.classes {
            out += &format!(
                "  {class:<8} {:>4} boxes  AP50 {:.3}  AP50:95 {:.3}  ",
                f.boxes, f.ap50, f.ap50_95
            );
            for (size, _) in SIZES {
                let (n, ap) = f.sizes[size];
                out += &format!("  {size} ({n}) {ap:.3}");
            }
            out += "\n";
        }
        out += &format!("  mean AP50 {:.3}\n", self.mean_ap50());
        out += &format!(
            "  cats called dog {}; dogs called cat {}\n",
            self.cat_called_dog, self.dog_called_cat
        );
        out += &format!(
            "  single pets: IoU over 0.5 {}; over 0.7 {}\n",
            self.single_over_50, self.single_over_70
        );
        out + &format!("  median {:.1} ms per picture\n", self.median_ms)
    }
}

/// Scored boxes of one class in one picture, and the true ones.
struct Picture {
    found: Vec<(f32, Rect)>,
    truth: Vec<Rect>,
}

impl Picture {
    /// What was found, surest first, each with the thing it fits (IoU of at least `iou`), of which
    /// each is fitted once.
    fn fitted(&self, iou: f32) -> Vec<(f32, Rect, Option<usize>)> {
        let mut taken = vec![false; self.truth.len()];
        let mut order = self.found.clone();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        let fit = |(score, rect): (f32, Rect)| {
            let overlap = |i: usize| self.truth[i].iou(rect);
            let best = (0..self.truth.len())
                .filter(|&i| !taken[i])
                .max_by(|&a, &b| overlap(a).total_cmp(&overlap(b)))
                .filter(|&i| overlap(i) >= iou);
            best.into_iter().for_each(|i| taken[i] = true);
            (score, rect, best)
        };
        order.into_iter().map(fit).collect()
    }
}

/// Measures a detector on `split`; detections of a class are judged only in pictures in which all
/// of it is boxed. With a `source`, only on its pictures.
///
/// # Errors
/// If a picture cannot be used, or there is no boxed picture.
pub fn score(model: Model, data: &Dataset, split: Split, source: Option<&str>) -> Result<Report> {
    let name = format!("{} {}", model.manifest.name, model.manifest.version);
    let floor = model.manifest.thresholds.score_floor;
    let mut detector = Detector::new(model)?;
    let of = |s: &&Scene| s.split == split && source.is_none_or(|name| s.source == name);
    let scenes: Vec<&Scene> = data.scenes.iter().filter(of).collect();
    ensure!(!scenes.is_empty(), "the dataset has no boxed picture in this split");
    let bar = bar(scenes.len() as u64, "boxed pictures");
    let mut classes: BTreeMap<String, Vec<Picture>> = BTreeMap::new();
    let (mut called, mut single, mut times) = (Vec::new(), Vec::new(), Vec::new());
    let (mut false_alarms, mut missed) = (Vec::new(), Vec::new());
    for scene in scenes {
        let frame = frame(data::open(&scene.file)?)?;
        let began = Instant::now();
        let found = detector.detect_above(&frame, Rect::WHOLE, FLOOR)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        for label in &scene.exhaustive_for {
            let class = door_class(label)?;
            let found = found.iter().filter(|d| d.class == class);
            let picture = Picture {
                found: found.map(|d| (d.score.get(), d.rect)).collect(),
                truth: scene.boxes.iter().filter(|b| &b.label == label).map(|b| b.rect).collect(),
            };
            let mistake = |rect, score| Mistake {
                file: scene.file.clone(),
                label: label.clone(),
                rect,
                score,
                truth: scene.boxes.clone(),
            };
            let mut unseen = vec![true; picture.truth.len()];
            for (score, rect, fits) in picture.fitted(0.5) {
                match fits {
                    _ if score <= floor => {}
                    Some(i) => unseen[i] = false,
                    None => false_alarms.push(mistake(rect, score)),
                }
            }
            let unseen = picture.truth.iter().zip(unseen).filter(|(_, unseen)| *unseen);
            missed.extend(unseen.map(|(rect, _)| mistake(*rect, 0.0)));
            classes.entry(label.clone()).or_default().push(picture);
        }
        let pets = scene.boxes.iter().filter(|b| ["dog", "cat"].contains(&b.label.as_str()));
        for b in pets {
            let best = best_animal(&found, |d| d.rect.iou(b.rect) >= 0.5 && d.score.get() > floor);
            called.extend(best.map(|d| (b.label.clone(), d.class)));
            if scene.boxes.len() == 1 {
                single.push(best_animal(&found, |_| true).map_or(0.0, |d| d.rect.iou(b.rect)));
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let rate = |label: &str, class: Class| {
        let of: Vec<_> = called.iter().filter(|c| c.0 == label).collect();
        Rate::new(of.iter().filter(|c| c.1 == class).count(), of.len())
    };
    let over = |iou: f32| Rate::new(single.iter().filter(|v| **v > iou).count(), single.len());
    times.sort_by(f64::total_cmp);
    false_alarms.sort_by(|a: &Mistake, b| b.score.total_cmp(&a.score));
    missed.sort_by(|a: &Mistake, b| b.rect.area().total_cmp(&a.rect.area()));
    false_alarms.truncate(MISTAKES);
    missed.truncate(MISTAKES);
    Ok(Report {
        model: name,
        data_sha256: data.sha256.clone(),
        classes: classes.into_iter().map(|(c, pictures)| (c, figures(&pictures))).collect(),
        cat_called_dog: rate("cat", Class::Dog),
        dog_called_cat: rate("dog", Class::Cat),
        single_over_50: over(0.5),
        single_over_70: over(0.7),
        false_alarms,
        missed,
        median_ms: times[times.len() / 2],
    })
}

/// The animal's box of the highest score that `fits`; detections come best first.
pub(crate) fn best_animal(
    found: &[Detection],
    fits: impl Fn(&Detection) -> bool,
) -> Option<&Detection> {
    let animal = |d: &&Detection| matches!(d.class, Class::Dog | Class::Cat | Class::Other);
    found.iter().filter(animal).find(|d| fits(d))
}

fn figures(pictures: &[Picture]) -> ClassFigures {
    let all = |_: Rect| true;
    let step = |i: u8| curve(pictures, 0.5 + 0.05 * f32::from(i), all);
    let curve_50 = step(0);
    let ap50 = average_precision(&curve_50);
    let rest: f64 = (1..10).map(|i| average_precision(&step(i))).sum();
    let mut sizes = BTreeMap::new();
    let mut least = 0.0;
    for (size, most) in SIZES {
        let within = |r: Rect| r.area() > least && r.area() <= most;
        let boxes = pictures.iter().flat_map(|p| &p.truth).filter(|r| within(**r)).count();
        sizes.insert(size.to_owned(), (boxes, average_precision(&curve(pictures, 0.5, within))));
        least = most;
    }
    ClassFigures {
        boxes: pictures.iter().map(|p| p.truth.len()).sum(),
        ap50,
        ap50_95: (ap50 + rest) / 10.0,
        sizes,
        curve: curve_50,
    }
}

/// Recall and precision from the surest box to the least sure. Boxes that do not count are neither
/// to be found nor wrong to find.
fn curve(pictures: &[Picture], iou: f32, counts: impl Fn(Rect) -> bool) -> Vec<(f64, f64)> {
    let total = pictures.iter().flat_map(|p| &p.truth).filter(|r| counts(**r)).count();
    let mut hits: Vec<(f32, bool)> = Vec::new();
    for p in pictures {
        for (score, rect, fits) in p.fitted(iou) {
            if counts(fits.map_or(rect, |i| p.truth[i])) {
                hits.push((score, fits.is_some()));
            }
        }
    }
    hits.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut right = 0;
    let point = |(n, (_, hit)): (usize, &(f32, bool))| {
        right += usize::from(*hit);
        (right as f64 / total.max(1) as f64, right as f64 / (n + 1) as f64)
    };
    hits.iter().enumerate().map(point).collect()
}

/// Area under a curve of precision against recall, precision made falling (VOC 2010 and COCO).
fn average_precision(curve: &[(f64, f64)]) -> f64 {
    let (mut area, mut best, mut last) = (0.0, 0.0_f64, None);
    for (recall, precision) in curve.iter().rev() {
        if let Some(after) = last {
            area += (after - recall) * best;
        }
        best = best.max(*precision);
        last = Some(*recall);
    }
    area + last.unwrap_or(0.0) * best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rect(x: f32) -> Rect {
        Rect::clipped(x, 0.0, x + 0.2, 0.2).unwrap()
    }

    #[test]
    fn average_precision_of_known_curves() {
        let truth = vec![rect(0.0), rect(0.5)];
        let ap = |found: Vec<(f32, Rect)>| {
            let picture = Picture { found, truth: truth.clone() };
            average_precision(&curve(&[picture], 0.5, |_| true))
        };
        assert_eq!(ap(vec![(0.9, rect(0.0)), (0.8, rect(0.5))]), 1.0);
        assert_eq!(ap(vec![(0.9, rect(0.0))]), 0.5);
        assert_eq!(ap(vec![]), 0.0);
        // A false one first: precision 1/2 at recall 1/2, 2/3 at recall 1.
        let late = ap(vec![(0.9, rect(0.79)), (0.8, rect(0.0)), (0.7, rect(0.5))]);
        assert!((late - 2.0 / 3.0).abs() < 1e-9, "{late}");
        // The second box on the same animal is wrong.
        let twice = ap(vec![(0.9, rect(0.0)), (0.8, rect(0.01)), (0.7, rect(0.5))]);
        assert!((twice - (0.5 + 0.5 * 2.0 / 3.0)).abs() < 1e-9, "{twice}");
    }

    #[test]
    fn boxes_of_another_size_are_neither_missed_nor_wrong() {
        let large = Rect::clipped(0.0, 0.4, 0.9, 1.0).unwrap();
        let found = vec![(0.9, large), (0.8, rect(0.0)), (0.7, Rect::WHOLE)];
        let picture = Picture { found, truth: vec![rect(0.0), large] };
        assert_eq!(average_precision(&curve(&[picture], 0.5, |r| r.area() < 0.05)), 1.0);
    }
}
