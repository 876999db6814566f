//! Decoding of detectors: output tensors become boxes with labels and scores.
//!
//! Everything here is total: whatever the numbers are, there is no panic, every loop ends, and
//! no more than [`MAX_DETECTIONS`] boxes come out. Boxes are in pixels of the network's input.

use std::borrow::Cow;

use thiserror::Error;

use super::manifest::{Manifest, OpenSet, Output};
use super::network::NetworkError;

/// Most boxes considered in one picture, best first.
pub const MAX_CANDIDATES: usize = 1000;
/// Most boxes reported in one picture.
pub const MAX_DETECTIONS: usize = 100;
/// Largest exponent of a box's side: beyond it a side is wider than any input.
const MAX_EXPONENT: f32 = 10.0;

/// A box that a network reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// `[x0, y0, x1, y1]` in pixels of the input; may reach beyond it.
    pub bounds: [f32; 4],
    /// Index of the label.
    pub label: usize,
    /// The network's score, above the floor.
    pub score: f32,
}

/// A label number that the manifest has no name for.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
#[error("label {0} has no name in the manifest")]
pub struct UnknownLabel(pub f32);

/// The boxes in `outputs`, which are in the order of [`Output::names`] and of the shapes that
/// docs/models.md describes, with a score above `floor`; best first.
///
/// # Errors
/// If a set-prediction network reports a label that `manifest` does not name.
pub fn decode(
    manifest: &Manifest,
    floor: f32,
    outputs: &[Cow<'_, [f32]>],
) -> Result<Vec<Found>, UnknownLabel> {
    let size = [manifest.input.width(), manifest.input.height()];
    let labels = manifest.labels.names.len();
    let mut found = match (&manifest.output, outputs) {
        (Output::Yolox { strides, .. }, [rows]) => yolox(rows, strides, size, labels, floor),
        (Output::NanodetPlus { strides, .. }, [rows]) => {
            nanodet_plus(rows, strides, size, labels, floor)
        }
        (Output::Deim { .. }, [numbers, boxes, scores]) => {
            deim(numbers, boxes, scores, size, labels, floor)?
        }
        (Output::Pawlatch { strides, .. }, maps) => pawlatch(maps, strides, size, labels, floor),
        _ => Vec::new(),
    };
    best_first(&mut found);
    if let Some((_, nms_iou)) = manifest.grids() {
        found = suppress(&found, nms_iou);
    }
    found.truncate(MAX_DETECTIONS);
    Ok(found)
}

/// Where in `outputs` of the ONNX each output of the manifest is, in the order of
/// [`Output::names`], then the open-set distance where there is one.
///
/// # Errors
/// If one is missing or its shape does not fit the manifest.
pub(super) fn locate(
    manifest: &Manifest,
    outputs: &[(String, Vec<usize>)],
) -> Result<Vec<usize>, NetworkError> {
    let mut places = Vec::new();
    let mut find = |name: &str, expected: String, fits: &dyn Fn(&[usize]) -> bool| {
        let wrong = |got| NetworkError::Output { name: name.into(), expected, got };
        match outputs.iter().position(|(n, _)| n == name) {
            Some(place) if fits(&outputs[place].1) => {
                places.push(place);
                Ok(())
            }
            Some(place) => Err(wrong(format!("{:?}", outputs[place].1))),
            None => {
                let names: Vec<_> = outputs.iter().map(|(n, _)| n.as_str()).collect();
                Err(wrong(format!("missing (it has {})", names.join(", "))))
            }
        }
    };
    let labels = manifest.labels.names.len();
    let size = [manifest.input.width(), manifest.input.height()];
    match &manifest.output {
        Output::Softmax { name, embedding } | Output::Sigmoid { name, embedding } => {
            find(name, format!("[1, {labels}]"), &|s| s == [1, labels])?;
            if let Some(name) = embedding {
                let fits =
                    |s: &[usize]| s.len() >= 2 && s[0] == 1 && s[2..].iter().all(|d| *d == 1);
                find(name, "[1, length of the embedding]".into(), &fits)?;
            }
        }
        Output::Yolox { name, strides, .. } => {
            let shape = [1, cells(strides, size).count(), 5 + labels];
            find(name, format!("{shape:?}"), &|s| s == shape)?;
        }
        Output::NanodetPlus { name, strides, .. } => {
            let rows = cells(strides, size).count();
            let expected = format!("[1, {rows}, {labels} + 4 times at least 2 bins]");
            let sides = |columns: usize| columns.saturating_sub(labels);
            let bins = |columns| sides(columns) >= 8 && sides(columns).is_multiple_of(4);
            find(name, expected, &|s| s.len() == 3 && s[..2] == [1, rows] && bins(s[2]))?;
        }
        Output::Deim { labels: numbers, boxes, scores } => {
            let queries = outputs
                .iter()
                .find(|(n, _)| n == scores)
                .map_or(0, |(_, s)| s.last().copied().unwrap_or(0));
            find(numbers, format!("[1, {queries}]"), &|s| s == [1, queries])?;
            find(boxes, format!("[1, {queries}, 4]"), &|s| s == [1, queries, 4])?;
            find(scores, "[1, queries]".into(), &|s| s == [1, queries])?;
        }
        Output::Pawlatch { names, strides, .. } => {
            for (name, stride) in names.iter().zip(strides) {
                let shape = [1, 4 + labels, size[1] / stride, size[0] / stride];
                find(name, format!("{shape:?}"), &|s| s == shape)?;
            }
        }
    }
    if let Some(OpenSet::Distance { output, .. }) = &manifest.open_set {
        find(output, "one value".into(), &|s| s.iter().product::<usize>() == 1)?;
    }
    Ok(places)
}

/// The cells of grids of `strides` over an input of `size` (width, height), in the order of the
/// rows of an output: column, row, stride. A grid that the input is no multiple of is rounded up.
fn cells(strides: &[usize], [w, h]: [usize; 2]) -> impl Iterator<Item = (f32, f32, f32)> {
    strides.iter().flat_map(move |s| {
        let (columns, rows) = (w.div_ceil(*s), h.div_ceil(*s));
        (0..rows).flat_map(move |y| (0..columns).map(move |x| (x as f32, y as f32, *s as f32)))
    })
}

/// YOLOX (Ge et al. 2021): a row is x, y, ln w, ln h in strides, relative to the cell's corner,
/// then objectness, then a probability per label; score = objectness * probability.
fn yolox(
    rows: &[f32],
    strides: &[usize],
    size: [usize; 2],
    labels: usize,
    floor: f32,
) -> Vec<Found> {
    let mut found = Vec::new();
    for ((gx, gy, s), row) in cells(strides, size).zip(rows.chunks_exact(5 + labels)) {
        let objectness = row[4];
        if objectness <= floor {
            continue;
        }
        let side = |ln: f32| ln.min(MAX_EXPONENT).exp() * s / 2.0;
        let (cx, cy) = ((row[0] + gx) * s, (row[1] + gy) * s);
        let (w, h) = (side(row[2]), side(row[3]));
        for (label, probability) in row[5..].iter().enumerate() {
            let score = objectness * probability;
            if score > floor {
                found.push(Found { bounds: [cx - w, cy - h, cx + w, cy + h], label, score });
            }
        }
    }
    found
}

/// NanoDet-Plus: a row is a score per label, then four sides (left, top, right, bottom) of bins
/// each; a side is the mean of a softmax over its bins (Generalized Focal Loss, Li et al. 2020)
/// in strides, from the cell's corner. Boxes are cut to the input.
fn nanodet_plus(
    rows: &[f32],
    strides: &[usize],
    size: [usize; 2],
    labels: usize,
    floor: f32,
) -> Vec<Found> {
    let count = cells(strides, size).count().max(1);
    let columns = rows.len() / count;
    let bins = columns.saturating_sub(labels) / 4;
    if bins == 0 {
        return Vec::new();
    }
    let (w, h) = (size[0] as f32, size[1] as f32);
    let mut found = Vec::new();
    for ((gx, gy, s), row) in cells(strides, size).zip(rows.chunks_exact(columns)) {
        let (scores, sides) = row.split_at(labels);
        let mut bounds = None;
        for (label, score) in scores.iter().enumerate().filter(|(_, score)| **score > floor) {
            let bounds = *bounds.get_or_insert_with(|| {
                let side = |i: usize| s * softmax_mean(&sides[i * bins..(i + 1) * bins]);
                let (cx, cy) = (gx * s, gy * s);
                [
                    (cx - side(0)).clamp(0.0, w),
                    (cy - side(1)).clamp(0.0, h),
                    (cx + side(2)).clamp(0.0, w),
                    (cy + side(3)).clamp(0.0, h),
                ]
            });
            found.push(Found { bounds, label, score: *score });
        }
    }
    found
}

/// The mean index under the softmax of `logits`.
fn softmax_mean(logits: &[f32]) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut sum, mut weighted) = (0.0, 0.0);
    for (k, logit) in logits.iter().enumerate() {
        let e = (logit - top).exp();
        sum += e;
        weighted += e * k as f32;
    }
    weighted / sum
}

/// DEIM (D-FINE, RT-DETR and kin): label number, box in fractions of the picture, score.
fn deim(
    numbers: &[f32],
    boxes: &[f32],
    scores: &[f32],
    [w, h]: [usize; 2],
    labels: usize,
    floor: f32,
) -> Result<Vec<Found>, UnknownLabel> {
    let (w, h) = (w as f32, h as f32);
    let mut found = Vec::new();
    for ((number, bounds), score) in numbers.iter().zip(boxes.chunks_exact(4)).zip(scores) {
        if *score <= floor || score.is_nan() {
            continue;
        }
        if !(0.0..labels as f32).contains(number) {
            return Err(UnknownLabel(*number));
        }
        let bounds = [bounds[0] * w, bounds[1] * h, bounds[2] * w, bounds[3] * h];
        found.push(Found { bounds, label: *number as usize, score: *score });
    }
    Ok(found)
}

/// Our own family: per stride a map of planes, left, top, right, bottom in strides from the
/// cell's middle (below 0 counts as 0), then a logit per label; score = sigmoid(logit).
fn pawlatch(
    maps: &[Cow<'_, [f32]>],
    strides: &[usize],
    [w, h]: [usize; 2],
    labels: usize,
    floor: f32,
) -> Vec<Found> {
    // The logit of the floor: most cells are passed over without an exponential.
    let threshold = (floor / (1.0 - floor)).ln();
    let mut found = Vec::new();
    for (map, stride) in maps.iter().zip(strides) {
        let (columns, rows) = (w / stride, h / stride);
        let area = columns * rows;
        if map.len() != area * (4 + labels) {
            continue;
        }
        let s = *stride as f32;
        for (label, plane) in map[4 * area..].chunks_exact(area.max(1)).enumerate() {
            for (cell, logit) in plane.iter().enumerate().filter(|(_, l)| **l > threshold) {
                let side = |i: usize| map[i * area + cell].max(0.0) * s;
                let cx = ((cell % columns) as f32 + 0.5) * s;
                let cy = ((cell / columns) as f32 + 0.5) * s;
                let bounds = [cx - side(0), cy - side(1), cx + side(2), cy + side(3)];
                found.push(Found { bounds, label, score: sigmoid(*logit) });
            }
        }
    }
    found
}

pub(super) fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// Keeps the best [`MAX_CANDIDATES`], best first; equal scores in the order of the output.
fn best_first(found: &mut Vec<Found>) {
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.truncate(MAX_CANDIDATES);
}

/// Greedy non-maximum suppression per label: of boxes of one label that overlap more than
/// `nms_iou`, only the best stays. `found` is best first.
pub(super) fn suppress(found: &[Found], nms_iou: f32) -> Vec<Found> {
    first_of_each(found.iter().copied(), |a, b| {
        a.label == b.label && iou(&a.bounds, &b.bounds) > nms_iou
    })
}

/// Of those that are the `same` only the first; the order stays.
pub(super) fn first_of_each<T>(
    all: impl IntoIterator<Item = T>,
    same: impl Fn(&T, &T) -> bool,
) -> Vec<T> {
    let mut kept = Vec::new();
    for candidate in all {
        if !kept.iter().any(|k| same(k, &candidate)) {
            kept.push(candidate);
        }
    }
    kept
}

/// Intersection over union of two boxes; 0 if either is empty or not a number.
fn iou(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let area = |r: &[f32; 4]| (r[2] - r[0]).max(0.0) * (r[3] - r[1]).max(0.0);
    let w = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let h = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let union = area(a) + area(b) - w * h;
    if union > 0.0 { w * h / union } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::vision::testing;

    const SIZE: [usize; 2] = [16, 8];

    fn near(found: &Found, bounds: [f32; 4], label: usize, score: f32) {
        let off = found.bounds.iter().zip(bounds).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-4, "{:?} is not {bounds:?}", found.bounds);
        assert_eq!(found.label, label);
        assert!((found.score - score).abs() < 1e-5, "{} is not {score}", found.score);
    }

    #[test]
    fn yolox_boxes_are_exponentials_around_the_cell() {
        // Two cells of stride 8 in a row; the second: x 0.5, y 0.25, width e^ln2, height e^0.
        let mut rows = vec![0.0; 14];
        rows[7..].copy_from_slice(&[0.5, 0.25, 2.0_f32.ln(), 0.0, 0.8, 0.1, 0.9]);
        let found = yolox(&rows, &[8], SIZE, 2, 0.3);
        assert_eq!(found.len(), 1);
        near(&found[0], [4.0, -2.0, 20.0, 6.0], 1, 0.72);
    }

    #[test]
    fn yolox_lists_one_box_under_every_label_above_the_floor() {
        let mut rows = vec![0.0; 14];
        rows[..7].copy_from_slice(&[0.0, 0.0, 0.0, 0.0, 1.0, 0.6, 0.5]);
        assert_eq!(yolox(&rows, &[8], SIZE, 2, 0.3).len(), 2);
        assert_eq!(yolox(&rows, &[8], SIZE, 2, 0.55).len(), 1);
    }

    #[test]
    fn nanodet_sides_are_means_over_bins_from_the_corner_of_the_cell() {
        // One label, two bins a side: equal logits mean half a stride, far apart 0 or 1.
        let mut rows = vec![0.0; 18];
        rows[9..].copy_from_slice(&[0.7, 0.0, 0.0, 50.0, 0.0, 0.0, 50.0, 0.0, 0.0]);
        let found = nanodet_plus(&rows, &[8], SIZE, 1, 0.3);
        assert_eq!(found.len(), 1);
        near(&found[0], [4.0, 0.0, 16.0, 4.0], 0, 0.7);
    }

    #[test]
    fn grids_that_do_not_divide_the_input_are_rounded_up() {
        assert_eq!(cells(&[8, 16, 32, 64], [416, 416]).count(), 3598);
        assert_eq!(cells(&[8, 16, 32], [416, 416]).count(), 3549);
    }

    #[test]
    fn deim_takes_boxes_as_they_are_and_refuses_labels_without_a_name() {
        let (numbers, scores) = ([1.0, 5.0], [0.9, 0.1]);
        let boxes = [0.25, 0.5, 0.5, 1.0, 0.0, 0.0, 1.0, 1.0];
        let found = deim(&numbers, &boxes, &scores, SIZE, 2, 0.3).unwrap();
        assert_eq!(found.len(), 1);
        near(&found[0], [4.0, 4.0, 8.0, 8.0], 1, 0.9);
        assert_eq!(deim(&numbers, &boxes, &[0.9, 0.8], SIZE, 2, 0.3), Err(UnknownLabel(5.0)));
        assert_eq!(deim(&[-1.0], &boxes, &[0.9], SIZE, 2, 0.3), Err(UnknownLabel(-1.0)));
    }

    #[test]
    fn pawlatch_boxes_are_distances_from_the_middle_of_the_cell() {
        // Planes of two cells: left, top, right, bottom, then the logits of two labels.
        let map = [0.0, 1.0, 0.0, 0.25, 0.0, 0.5, 0.0, -3.0, -9.0, -9.0, -9.0, 2.0];
        let found = pawlatch(&[Cow::Borrowed(&map)], &[8], SIZE, 2, 0.3);
        assert_eq!(found.len(), 1);
        near(&found[0], [4.0, 2.0, 16.0, 4.0], 1, 0.880_797);
    }

    #[test]
    fn suppression_is_per_label_and_keeps_the_best() {
        let at = |x: f32, label, score| Found { bounds: [x, 0.0, x + 10.0, 10.0], label, score };
        // 10 wide, shifted by 2: IoU 8 / 12 = 0.667.
        let found = [at(0.0, 0, 0.9), at(2.0, 0, 0.8), at(2.0, 1, 0.7), at(9.0, 0, 0.6)];
        let kept = suppress(&found, 0.6);
        assert_eq!(kept, [found[0], found[2], found[3]]);
        assert_eq!(suppress(&found, 0.7).len(), 4);
    }

    #[test]
    fn ties_keep_the_order_of_the_output_and_the_list_is_bounded() {
        let one = |label| Found { bounds: [0.0; 4], label, score: 0.5 };
        let mut found: Vec<Found> = (0..MAX_CANDIDATES + 7).map(one).collect();
        best_first(&mut found);
        assert_eq!(found.len(), MAX_CANDIDATES);
        assert!(found.windows(2).all(|pair| pair[0].label < pair[1].label));
    }

    /// Any 32 bits, and numbers that networks really give.
    fn value() -> impl Strategy<Value = f32> {
        prop_oneof![any::<u32>().prop_map(f32::from_bits), -20.0_f32..20.0, 0.0_f32..1.0]
    }

    proptest! {
        #[test]
        fn decoding_never_panics_and_never_leaves_the_frame(
            family in 0..testing::FAMILIES.len(),
            values in vec(value(), 0..900),
            floor in 0.01_f32..0.9,
        ) {
            let manifest = testing::detector(testing::FAMILIES[family]);
            let third = values.len() / 3;
            let outputs: Vec<Cow<'_, [f32]>> = match manifest.output.names().len() {
                1 => vec![Cow::Borrowed(&values)],
                2 => vec![Cow::Borrowed(&values[..third]), Cow::Borrowed(&values[third..])],
                _ => values.chunks(third.max(1)).take(3).map(Cow::Borrowed).collect(),
            };
            let Ok(found) = decode(&manifest, floor, &outputs) else { return Ok(()) };
            prop_assert!(found.len() <= MAX_DETECTIONS);
            let placed = testing::placement(640, 480);
            for found in found {
                prop_assert!(found.label < manifest.labels.names.len());
                prop_assert!(found.score > floor);
                if let Some(rect) = placed.to_frame(found.bounds) {
                    let r: [f32; 4] = rect.into();
                    prop_assert!(r.iter().all(|v| (0.0..=1.0).contains(v)));
                    prop_assert!(r[0] < r[2] && r[1] < r[3]);
                }
            }
        }
    }
}
