//! Average precision of a detector, measured through `pawlatch_core::vision` as on the door.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use pawlatch_core::units::Rect;
use pawlatch_core::vision::Detector;
use serde::Serialize;

use crate::data::{self, Dataset, Scene, Split};
use crate::evaluate::{door_class, frame, load_model};
use crate::train::bar;

/// Figures of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassFigures {
    /// Boxes to find.
    pub boxes: usize,
    /// Average precision at IoU 0.5, over all points of the curve.
    pub ap50: f64,
    /// Mean over IoU 0.5 to 0.95 in steps of 0.05.
    pub ap50_95: f64,
}

/// Scored boxes of one class in one picture, and the true ones.
struct Picture {
    found: Vec<(f32, Rect)>,
    truth: Vec<Rect>,
}

/// Measures the detector in `dir` on `split`; detections of a class are judged only in pictures
/// in which all of it is boxed.
///
/// # Errors
/// If the model or a picture cannot be used, or there is no boxed picture.
pub fn score(dir: &Path, data: &Dataset, split: Split) -> Result<BTreeMap<String, ClassFigures>> {
    let mut model = load_model(dir)?;
    // The curve needs the whole range of scores.
    model.manifest.thresholds.score_floor = 0.02;
    let mut detector = Detector::new(model)?;
    let scenes: Vec<&Scene> = data.scenes.iter().filter(|s| s.split == split).collect();
    ensure!(!scenes.is_empty(), "the dataset has no boxed picture in this split");
    let bar = bar(scenes.len() as u64, "boxed pictures");
    let mut classes: BTreeMap<String, Vec<Picture>> = BTreeMap::new();
    for scene in scenes {
        let frame = frame(data::open(&scene.file)?)?;
        let found = detector.detect(&frame, Rect::WHOLE)?;
        for label in &scene.exhaustive_for {
            let class = door_class(label)?;
            classes.entry(label.clone()).or_default().push(Picture {
                found: found
                    .iter()
                    .filter(|d| d.class == class)
                    .map(|d| (d.score.get(), d.rect))
                    .collect(),
                truth: scene.boxes.iter().filter(|b| &b.label == label).map(|b| b.rect).collect(),
            });
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(classes
        .into_iter()
        .map(|(label, pictures)| {
            let at = |iou: f32| average_precision(&pictures, iou);
            let steps: Vec<f64> = (0..10).map(|i| at(0.5 + 0.05 * i as f32)).collect();
            let boxes = pictures.iter().map(|p| p.truth.len()).sum();
            (
                label,
                ClassFigures { boxes, ap50: steps[0], ap50_95: steps.iter().sum::<f64>() / 10.0 },
            )
        })
        .collect())
}

/// Area under precision against recall, precision made falling (VOC 2010 and COCO).
fn average_precision(pictures: &[Picture], iou: f32) -> f64 {
    let total: usize = pictures.iter().map(|p| p.truth.len()).sum();
    let mut hits: Vec<(f32, bool)> = Vec::new();
    for p in pictures {
        let mut taken = vec![false; p.truth.len()];
        let mut order: Vec<_> = p.found.iter().collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (score, rect) in order {
            let best = (0..p.truth.len())
                .filter(|&i| !taken[i])
                .max_by(|&a, &b| p.truth[a].iou(*rect).total_cmp(&p.truth[b].iou(*rect)));
            let hit = best.filter(|&i| p.truth[i].iou(*rect) >= iou);
            if let Some(i) = hit {
                taken[i] = true;
            }
            hits.push((*score, hit.is_some()));
        }
    }
    hits.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut right, mut points) = (0, Vec::new());
    for (n, (_, hit)) in hits.iter().enumerate() {
        right += usize::from(*hit);
        points.push((right as f64 / total.max(1) as f64, right as f64 / (n + 1) as f64));
    }
    let (mut area, mut best, mut last) = (0.0, 0.0_f64, None);
    for (recall, precision) in points.into_iter().rev() {
        if let Some(after) = last {
            area += (after - recall) * best;
        }
        best = best.max(precision);
        last = Some(recall);
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
            average_precision(&[Picture { found, truth: truth.clone() }], 0.5)
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
}
