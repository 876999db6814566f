//! What a detector is trained for.
//!
//! Which cells answer for a box is decided anew in every step, by what the network says: those
//! whose score and overlap with it are best together (Feng et al. 2021: task-aligned assignment).
//! Their class is trained towards that quality (Li et al. 2020: quality focal loss), so that the
//! score says how good the box is; their box by the generalised IoU (Rezatofighi et al. 2019).

use anyhow::{Result, ensure};
use burn::tensor::{Tensor, TensorData, activation};

use super::{MAPS, STRIDES, cells};
use crate::engine::{Model, Values, to_host};

/// Most cells that answer for one box.
const CELLS_PER_BOX: usize = 10;
/// Exponent of the overlap against the score when cells are ranked.
const OVERLAP_POWER: i32 = 6;
/// Weight of the boxes' loss against that of the classes.
const BOX_WEIGHT: f32 = 2.0;

/// What is in a view, in pixels of the network's input: `[x0, y0, x1, y1]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Truth {
    /// Class number and box of everything to find.
    pub boxes: Vec<(usize, [f32; 4])>,
    /// Where it is not known whether there is something of a class: nothing is learnt there.
    pub blind: Vec<(usize, [f32; 4])>,
}

/// What every cell of one picture should answer, all strides in one row.
#[derive(Clone, Debug, PartialEq)]
struct Target {
    /// Distances to left, top, right, bottom of the box, in strides; four planes of cells.
    sides: Vec<f32>,
    /// The score to reach, 0 to 1; a plane of cells per class.
    quality: Vec<f32>,
    /// 1 where the class's answer counts; 0 where the truth is not known.
    known: Vec<f32>,
}

/// Middle of every cell in pixels, and its stride.
fn middles(side: usize) -> impl Iterator<Item = (f32, f32, f32)> {
    STRIDES.into_iter().flat_map(move |s| {
        let columns = side / s;
        (0..columns * columns).map(move |i| {
            let (x, y) = ((i % columns) as f32 + 0.5, (i / columns) as f32 + 0.5);
            (x * s as f32, y * s as f32, s as f32)
        })
    })
}

/// Targets of one picture for which the network has just said `said`: planes of cells, four sides
/// and then a logit per class.
fn assign(said: &[f32], truth: &Truth, labels: usize, side: usize) -> Target {
    let n = cells(side);
    let middles: Vec<_> = middles(side).collect();
    let inside = |b: &[f32; 4], x: f32, y: f32| x > b[0] && x < b[2] && y > b[1] && y < b[3];
    let mut t = Target {
        sides: vec![0.0; 4 * n],
        quality: vec![0.0; labels * n],
        known: vec![1.0; labels * n],
    };
    for (class, b) in &truth.blind {
        for (i, (x, y, _)) in middles.iter().enumerate() {
            if inside(b, *x, *y) {
                t.known[class * n + i] = 0.0;
            }
        }
    }
    // For each cell the box it answers for: index, overlap, alignment.
    let mut owner: Vec<Option<(usize, f32, f32)>> = vec![None; n];
    for (k, (class, b)) in truth.boxes.iter().enumerate() {
        let mut ranked: Vec<(usize, f32, f32)> = Vec::new();
        for (i, (x, y, s)) in middles.iter().enumerate().filter(|(_, m)| inside(b, m.0, m.1)) {
            let d = |k: usize| said[k * n + i].max(0.0) * s;
            let overlap = iou(&[x - d(0), y - d(1), x + d(2), y + d(3)], b);
            let score = 1.0 / (1.0 + (-said[(4 + class) * n + i]).exp());
            ranked.push((i, overlap, score * overlap.powi(OVERLAP_POWER)));
        }
        ranked.sort_by(|a, b| b.2.total_cmp(&a.2));
        ranked.truncate(CELLS_PER_BOX);
        ranked.retain(|r| r.2 > 1e-9);
        if ranked.is_empty() {
            ranked.push((nearest(&middles, b), 0.1, 1e-9));
        }
        for (i, overlap, aligned) in ranked {
            if owner[i].is_none_or(|(_, before, _)| overlap > before) {
                owner[i] = Some((k, overlap, aligned));
            }
        }
    }
    // The best cell of a box should reach its overlap, the others in proportion.
    let mut best = vec![(0.0_f32, 0.0_f32); truth.boxes.len()];
    for (k, overlap, aligned) in owner.iter().flatten() {
        best[*k] = (best[*k].0.max(*overlap), best[*k].1.max(*aligned));
    }
    for (i, owned) in owner.iter().enumerate() {
        let Some((k, _, aligned)) = owned else { continue };
        let (class, b) = &truth.boxes[*k];
        let (x, y, s) = middles[i];
        for (side, d) in [x - b[0], y - b[1], b[2] - x, b[3] - y].into_iter().enumerate() {
            t.sides[side * n + i] = d / s;
        }
        for c in 0..labels {
            t.known[c * n + i] = 1.0;
        }
        t.quality[class * n + i] = aligned / best[*k].1.max(1e-12) * best[*k].0;
    }
    t
}

/// The cell whose middle is nearest to that of the box, of the stride that fits its size: a box of
/// four strides is said by the distances a fresh network gives.
fn nearest(middles: &[(f32, f32, f32)], b: &[f32; 4]) -> usize {
    let size = ((b[2] - b[0]) * (b[3] - b[1])).sqrt();
    let away = |&(x, y, s): &(f32, f32, f32)| {
        let off = (x - (b[0] + b[2]) / 2.0).abs().max((y - (b[1] + b[3]) / 2.0).abs()) / s;
        off + (size / s / 4.0).ln().abs() * 4.0
    };
    (0..middles.len()).min_by(|a, b| away(&middles[*a]).total_cmp(&away(&middles[*b]))).unwrap_or(0)
}

fn iou(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let area = |r: &[f32; 4]| (r[2] - r[0]).max(0.0) * (r[3] - r[1]).max(0.0);
    let w = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let h = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    w * h / (area(a) + area(b) - w * h).max(1e-9)
}

/// The loss of a batch, per cell that answers for a box, weighted by quality.
///
/// # Errors
/// If the network's maps do not fit the pictures.
pub fn loss(
    model: &Model,
    values: &Values,
    truths: &[Truth],
    labels: usize,
    side: usize,
) -> Result<Tensor<1>> {
    let batch = truths.len();
    let mut rows = Vec::new();
    for i in 0..MAPS.len() {
        let map = values.output(i)?;
        let [n, c, h, w] = map.dims();
        ensure!(n == batch && c == 4 + labels, "map {i} has shape {:?}", map.dims());
        rows.push(map.reshape([n, c, h * w]));
    }
    let rows = Tensor::cat(rows, 2);
    let cells = rows.dims()[2];
    let said = to_host(rows.clone().inner())?;
    let targets: Vec<Target> = said
        .chunks(said.len() / batch)
        .zip(truths)
        .map(|(said, truth)| assign(said, truth, labels, side))
        .collect();
    let put = |planes: usize, of: &dyn Fn(&Target) -> &[f32]| {
        let data: Vec<f32> = targets.iter().flat_map(|t| of(t).iter().copied()).collect();
        Tensor::<3>::from_data(TensorData::new(data, [batch, planes, cells]), model.device())
    };
    let (sides, quality, known) =
        (put(4, &|t| &t.sides), put(labels, &|t| &t.quality), put(labels, &|t| &t.known));
    let weight = quality.clone().sum_dim(1);
    let count = weight.clone().sum().clamp_min(1.0);
    let overlap = generalised_iou(positive(rows.clone().narrow(1, 0, 4)), sides);
    let boxes = (weight * (overlap.neg() + 1.0)).sum();
    let classes = quality_focal(rows.narrow(1, 4, labels), quality, known);
    Ok((classes + boxes * BOX_WEIGHT) / count)
}

/// Distances as the door reads them, not below 0; gradients pass as if they were left alone, so
/// that a negative distance can grow.
fn positive(x: Tensor<3>) -> Tensor<3> {
    let lift = (x.clone().clamp_min(0.01) - x.clone()).detach();
    x + lift
}

/// `|q - sigmoid(l)|^2` times the cross-entropy of the logit `l` with the soft target `q`, summed
/// where `known`.
fn quality_focal(logits: Tensor<3>, quality: Tensor<3>, known: Tensor<3>) -> Tensor<1> {
    // From logits: max(l, 0) - l q + ln(1 + e^-|l|).
    let entropy = activation::relu(logits.clone()) - logits.clone() * quality.clone()
        + (logits.clone().abs().neg().exp() + 1.0).log();
    let off = activation::sigmoid(logits) - quality;
    (entropy * off.clone() * off * known).sum()
}

/// Generalised IoU of boxes given by their distances from the same cell, `[n, 1, cells]`.
fn generalised_iou(a: Tensor<3>, b: Tensor<3>) -> Tensor<3> {
    let side = |t: &Tensor<3>, k: usize| t.clone().narrow(1, k, 1);
    let both = |k: usize, far: bool| {
        let (x, y) = (side(&a, k), side(&b, k));
        if far { x.max_pair(y) } else { x.min_pair(y) }
    };
    let area = |t: &Tensor<3>| (side(t, 0) + side(t, 2)) * (side(t, 1) + side(t, 3));
    let shared = (both(0, false) + both(2, false)) * (both(1, false) + both(3, false));
    let union = area(&a) + area(&b) - shared.clone() + 1e-6;
    let hull = (both(0, true) + both(2, true)) * (both(1, true) + both(3, true)) + 1e-6;
    shared / union.clone() - (hull.clone() - union) / hull
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE: usize = 320;
    /// Where the maps of strides 16 and 32 begin.
    const MIDDLE: usize = 40 * 40;
    const COARSEST: usize = MIDDLE + 20 * 20;

    /// What a fresh network says: boxes of four strides, every score the same.
    fn fresh(labels: usize) -> Vec<f32> {
        let n = cells(SIDE);
        (0..(4 + labels) * n).map(|i| if i < 4 * n { 2.0 } else { -4.6 }).collect()
    }

    #[test]
    fn a_box_is_owned_by_cells_that_can_say_it() {
        // 130 pixels: about four strides of 32.
        let truth = Truth { boxes: vec![(1, [80.0, 80.0, 210.0, 210.0])], blind: vec![] };
        let t = assign(&fresh(2), &truth, 2, SIDE);
        let n = cells(SIDE);
        assert!(t.quality[..n].iter().all(|q| *q == 0.0));
        let owners: Vec<usize> = (0..n).filter(|i| t.quality[n + i] > 0.0).collect();
        assert!(!owners.is_empty() && owners.len() <= CELLS_PER_BOX);
        let best = owners.iter().max_by(|a, b| t.quality[n + **a].total_cmp(&t.quality[n + **b]));
        assert!(*best.unwrap() >= COARSEST, "the coarsest map fits best");
        for i in owners {
            // Left plus right is the width, from every cell.
            let s = [8.0, 16.0, 32.0][usize::from(i >= MIDDLE) + usize::from(i >= COARSEST)];
            assert!(((t.sides[i] + t.sides[2 * n + i]) * s - 130.0).abs() < 1e-2);
        }
    }

    #[test]
    fn a_box_too_small_for_any_cell_still_has_one() {
        let truth = Truth { boxes: vec![(0, [101.0, 101.0, 103.0, 103.0])], blind: vec![] };
        let t = assign(&fresh(1), &truth, 1, SIDE);
        assert_eq!(t.quality.iter().filter(|q| **q > 0.0).count(), 1);
    }

    #[test]
    fn nothing_is_learnt_where_the_truth_is_not_known() {
        let truth = Truth {
            boxes: vec![(1, [80.0, 80.0, 210.0, 210.0])],
            blind: vec![(0, [0.0, 0.0, 320.0, 320.0])],
        };
        let t = assign(&fresh(2), &truth, 2, SIDE);
        let n = cells(SIDE);
        for i in 0..n {
            // Where a cat is known, no dog is known too; elsewhere nothing is known of dogs.
            assert_eq!(t.known[i] > 0.0, t.quality[n + i] > 0.0);
            assert_eq!(t.known[n + i], 1.0);
        }
    }

    #[test]
    fn of_two_boxes_the_better_said_one_owns_a_cell() {
        let near = [90.0, 90.0, 230.0, 230.0];
        let truth = Truth { boxes: vec![(0, [0.0, 0.0, 320.0, 320.0]), (0, near)], blind: vec![] };
        let t = assign(&fresh(1), &truth, 1, SIDE);
        let n = cells(SIDE);
        // The cell in the middle of the small box, stride 32.
        let middle = COARSEST + 4 * 10 + 4;
        assert!((t.sides[middle] - (144.0 - 90.0) / 32.0).abs() < 1e-4);
        assert!((0..n).any(|i| t.quality[i] > 0.0 && t.sides[i] > 3.0), "the large one has others");
    }

    fn row(v: &[f32], planes: usize) -> Tensor<3> {
        let device = crate::engine::device("cpu").unwrap().autodiff();
        Tensor::from_data(TensorData::new(v.to_vec(), [1, planes, v.len() / planes]), &device)
    }

    #[test]
    fn overlap_of_known_boxes() {
        let giou = |a: [f32; 4], b: [f32; 4]| {
            to_host(generalised_iou(row(&a, 4), row(&b, 4)).inner()).unwrap()[0]
        };
        assert!((giou([1.0; 4], [1.0; 4]) - 1.0).abs() < 1e-5);
        // A 2x2 box against its left half: IoU 1/2, hull is the box itself.
        assert!((giou([1.0; 4], [1.0, 1.0, 0.0, 1.0]) - 0.5).abs() < 1e-5);
        // Against a box of 1x1 in its corner beyond: hull 9, union 5 - 1 = 4, IoU 1/4.
        let cross = giou([1.0; 4], [0.0, 0.0, 2.0, 2.0]);
        assert!((cross - (1.0 / 7.0 - 2.0 / 9.0)).abs() < 1e-5, "{cross}");
    }

    /// The gradient of `f` at `x` against central differences of f64-accurate steps.
    fn check_gradient(f: &dyn Fn(Tensor<3>) -> Tensor<1>, x: &[f32], planes: usize) {
        let leaf = row(x, planes).require_grad();
        let grads = f(leaf.clone()).backward();
        let slope = to_host(leaf.grad(&grads).unwrap()).unwrap();
        for i in 0..x.len() {
            let at = |d: f32| {
                let mut moved = x.to_vec();
                moved[i] += d;
                f64::from(to_host(f(row(&moved, planes)).inner()).unwrap()[0])
            };
            let expected = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!(
                (f64::from(slope[i]) - expected).abs() < 2e-3 * expected.abs().max(1.0),
                "{i}: {} is not {expected}",
                slope[i]
            );
        }
    }

    #[test]
    fn gradients_of_the_losses_agree_with_differences() {
        let truth = row(&[1.0, 2.0, 1.5, 0.7, 0.9, 1.2, 2.0, 0.4], 4);
        check_gradient(
            &|x| generalised_iou(positive(x), truth.clone()).sum(),
            &[1.4, 0.8, 1.1, 1.3, 0.5, 2.1, 1.6, 0.9],
            4,
        );
        let quality = row(&[0.0, 0.8, 0.3, 0.0], 2);
        let known = row(&[1.0, 1.0, 1.0, 0.0], 2);
        check_gradient(
            &|l| quality_focal(l, quality.clone(), known.clone()),
            &[-2.0, 0.5, 1.5, 3.0],
            2,
        );
    }

    #[test]
    fn a_negative_distance_can_grow_again() {
        let leaf = row(&[-0.5, 1.0, 1.0, 1.0], 4).require_grad();
        let loss = generalised_iou(positive(leaf.clone()), row(&[1.0; 4], 4)).neg().sum();
        let slope = to_host(leaf.grad(&loss.backward()).unwrap()).unwrap();
        assert!(slope[0] < 0.0, "{}", slope[0]);
    }
}
