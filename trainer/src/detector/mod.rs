//! A light anchor-free detector on the taps of a classifier's backbone: three strides, a top-down
//! pyramid of depthwise separable convolutions, one head shared by all strides.
//!
//! Each cell answers with its distances to the four sides of a box, in strides, and one logit per
//! class that is trained towards the overlap of that box with the truth (Li et al. 2020: quality
//! focal loss), so that the score says how good the box is. Overlap is trained by the generalised
//! IoU (Rezatofighi et al. 2019). The maps are what `core::vision` calls the `pawlatch` family.

pub mod score;
pub mod train;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Tensor, TensorData, activation};
use pawlatch_core::units::Rect;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::data::{LabelledBox, Scene};
use crate::engine::{Model, Values};
use crate::net::zoo::he_normal;
use crate::net::{Array, Net, Op};

/// Pixels per cell of each map.
pub const STRIDES: [usize; 3] = [8, 16, 32];
/// Names of the maps.
pub const MAPS: [&str; 3] = ["map8", "map16", "map32"];
/// Channels of the pyramid.
const WIDTH: usize = 64;

/// Grows pyramid and heads for `labels` classes on the values `taps` (at [`STRIDES`]) of `back`,
/// the second part of [`Net::tap`].
///
/// # Errors
/// If a tap has no shape.
pub fn grow(
    mut back: Net,
    taps: [&str; 3],
    channels: [usize; 3],
    labels: usize,
    seed: u64,
) -> Result<Net> {
    let mut grower = Grower { rng: StdRng::seed_from_u64(seed), net: &mut back };
    let mut levels = Vec::new();
    for (i, (tap, c)) in taps.into_iter().zip(channels).enumerate() {
        levels.push(grower.pointwise(&format!("lateral{i}"), tap, c, WIDTH, true));
    }
    for i in [1, 0] {
        let up = grower.net.push(
            &format!("up{i}"),
            Op::Upsample { factor: 2 },
            &[&levels[i + 1].clone()],
        );
        let sum = grower.net.push(&format!("sum{i}"), Op::Add, &[&levels[i].clone(), &up]);
        levels[i] = grower.separable(&format!("smooth{i}"), &sum, "");
    }
    for (i, level) in levels.into_iter().enumerate() {
        // The same weights at every stride: the second and third level only add nodes.
        let tag = format!("@{}", STRIDES[i]);
        let x = grower.separable("head0", &level, &tag);
        let x = grower.separable("head1", &x, &tag);
        let weight = he_normal(&[4 + labels, WIDTH, 1, 1], &mut StdRng::seed_from_u64(seed));
        let weight = Array { data: weight.data.iter().map(|w| w * 0.1).collect(), ..weight };
        // A box of four strides at first, and a prior of one object in a hundred cells.
        let bias = (0..4 + labels).map(|k| if k < 4 { 2.0 } else { -4.6 }).collect();
        grower.shared(
            MAPS[i],
            "head.out",
            Op::Conv { stride: [1; 2], pads: [0; 4], dilation: [1; 2], groups: 1 },
            &x,
            weight,
            bias,
        );
    }
    back.outputs = MAPS.map(String::from).to_vec();
    back.check()?;
    Ok(back)
}

struct Grower<'a> {
    rng: StdRng,
    net: &'a mut Net,
}

impl Grower<'_> {
    fn shared(
        &mut self,
        name: &str,
        params: &str,
        op: Op,
        x: &str,
        weight: Array,
        bias: Vec<f32>,
    ) -> String {
        let (w, b) = (format!("{params}.weight"), format!("{params}.bias"));
        self.net.params.entry(w.clone()).or_insert(weight);
        self.net.params.entry(b.clone()).or_insert(Array { shape: vec![bias.len()], data: bias });
        self.net.push(name, op, &[x, &w, &b])
    }

    fn pointwise(&mut self, name: &str, x: &str, from: usize, to: usize, act: bool) -> String {
        let weight = he_normal(&[to, from, 1, 1], &mut self.rng);
        let op = Op::Conv { stride: [1; 2], pads: [0; 4], dilation: [1; 2], groups: 1 };
        let y = self.shared(name, name, op, x, weight, vec![0.0; to]);
        if act {
            self.net.push(&format!("{name}.act"), Op::Clip { low: 0.0, high: 6.0 }, &[&y])
        } else {
            y
        }
    }

    /// Depthwise 3x3, then pointwise, with weights called `name` and nodes called `name + tag`.
    fn separable(&mut self, name: &str, x: &str, tag: &str) -> String {
        let weight = he_normal(&[WIDTH, 1, 3, 3], &mut self.rng);
        let op = Op::Conv { stride: [1; 2], pads: [1; 4], dilation: [1; 2], groups: WIDTH };
        let y = self.shared(
            &format!("{name}.dw{tag}"),
            &format!("{name}.dw"),
            op,
            x,
            weight,
            vec![0.0; WIDTH],
        );
        let y =
            self.net.push(&format!("{name}.dw{tag}.act"), Op::Clip { low: 0.0, high: 6.0 }, &[&y]);
        let weight = he_normal(&[WIDTH, WIDTH, 1, 1], &mut self.rng);
        let op = Op::Conv { stride: [1; 2], pads: [0; 4], dilation: [1; 2], groups: 1 };
        let y = self.shared(
            &format!("{name}.pw{tag}"),
            &format!("{name}.pw"),
            op,
            &y,
            weight,
            vec![0.0; WIDTH],
        );
        self.net.push(&format!("{name}.pw{tag}.act"), Op::Clip { low: 0.0, high: 6.0 }, &[&y])
    }
}

/// What every cell of one picture should answer, all strides in one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Distances to left, top, right, bottom of the box, in strides; four planes of cells.
    pub sides: Vec<f32>,
    /// 1 where a cell answers for a box of the class; a plane of cells per class.
    pub owners: Vec<f32>,
    /// 1 where the class's answer counts; 0 where the truth is not known.
    pub known: Vec<f32>,
}

/// The number of cells of all strides at `side`.
pub fn cells(side: usize) -> usize {
    STRIDES.iter().map(|s| (side / s) * (side / s)).sum()
}

/// Assigns boxes to cells: by size to one or two strides, there to the cells within one and a
/// half strides of the centre that lie inside (as FCOS samples centres; Tian et al. 2019). The
/// smaller of two boxes wins a cell.
///
/// # Errors
/// If a box has a label that is not in `classes`.
pub fn target(
    scene_boxes: &[LabelledBox],
    exhaustive_for: &[String],
    classes: &[String],
    side: usize,
) -> Result<Target> {
    let n = cells(side);
    let mut t = Target {
        sides: vec![0.0; 4 * n],
        owners: vec![0.0; classes.len() * n],
        known: vec![0.0; classes.len() * n],
    };
    for (c, class) in classes.iter().enumerate() {
        if exhaustive_for.contains(class) {
            t.known[c * n..(c + 1) * n].fill(1.0);
        }
    }
    let mut boxes: Vec<(usize, [f32; 4])> = scene_boxes
        .iter()
        .map(|b| {
            let class = classes
                .iter()
                .position(|c| *c == b.label)
                .with_context(|| format!("box of unknown class '{}'", b.label))?;
            Ok((class, b.rect.to_pixels(side as u32, side as u32)))
        })
        .collect::<Result<_>>()?;
    let area = |b: &[f32; 4]| (b[2] - b[0]) * (b[3] - b[1]);
    boxes.sort_by(|a, b| area(&b.1).total_cmp(&area(&a.1)));
    for (class, b) in boxes {
        let long = (b[2] - b[0]).max(b[3] - b[1]);
        let mut first = 0;
        for stride in STRIDES {
            let (s, columns) = (stride as f32, side / stride);
            // A box of 8 strides is the middle of a level's range; neighbours overlap.
            let fits = long / s;
            let wanted =
                (fits > 3.0 || stride == STRIDES[0]) && (fits < 10.0 || stride == STRIDES[2]);
            for i in 0..columns * columns {
                let (x, y) = (((i % columns) as f32 + 0.5) * s, ((i / columns) as f32 + 0.5) * s);
                let near =
                    (x - (b[0] + b[2]) / 2.0).abs().max((y - (b[1] + b[3]) / 2.0).abs()) < 1.5 * s;
                let inside = x > b[0] && x < b[2] && y > b[1] && y < b[3];
                if !(wanted && near && inside) {
                    continue;
                }
                let cell = first + i;
                for (k, d) in [x - b[0], y - b[1], b[2] - x, b[3] - y].into_iter().enumerate() {
                    t.sides[k * n + cell] = d / s;
                }
                for c in 0..classes.len() {
                    t.owners[c * n + cell] = f32::from(c == class);
                    t.known[c * n + cell] = 1.0;
                }
            }
            first += columns * columns;
        }
    }
    Ok(t)
}

/// The loss of a batch, and nothing else: quality focal loss of the classes plus twice the
/// generalised IoU loss of the boxes, both per box.
///
/// # Errors
/// If the network's maps do not fit the targets.
pub fn loss(
    model: &Model,
    values: &Values,
    targets: &[Target],
    labels: usize,
) -> Result<Tensor<1>> {
    let batch = targets.len();
    let mut rows = Vec::new();
    for i in 0..MAPS.len() {
        let map = values.output(i)?;
        let [n, c, h, w] = map.dims();
        ensure!(n == batch && c == 4 + labels, "map {i} has shape {:?}", map.dims());
        rows.push(map.reshape([n, c, h * w]));
    }
    let rows = Tensor::cat(rows, 2);
    let cells = rows.dims()[2];
    let put = |planes: usize, of: &dyn Fn(&Target) -> &[f32]| {
        let data: Vec<f32> = targets.iter().flat_map(|t| of(t).iter().copied()).collect();
        Tensor::<3>::from_data(TensorData::new(data, [batch, planes, cells]), model.device())
    };
    let (sides, owners, known) =
        (put(4, &|t| &t.sides), put(labels, &|t| &t.owners), put(labels, &|t| &t.known));
    let own = owners.clone().sum_dim(1);
    let count = own.clone().sum().clamp_min(1.0);
    let said = rows.clone().narrow(1, 0, 4).clamp_min(0.01);
    let (overlap, gap) = overlaps(said, sides);
    let boxes = (own * (gap.neg() + 1.0)).sum();
    let quality = owners * overlap.detach();
    let logits = rows.narrow(1, 4, labels);
    // Cross-entropy with a soft target, from logits: max(l, 0) - l q + ln(1 + e^-|l|).
    let entropy = activation::relu(logits.clone()) - logits.clone() * quality.clone()
        + (logits.clone().abs().neg().exp() + 1.0).log();
    let off = (activation::sigmoid(logits) - quality).abs();
    let classes = (entropy * off.clone() * off * known).sum();
    Ok((classes + boxes * 2.0) / count)
}

/// IoU and generalised IoU of boxes given by their distances from the same cell, `[n, 1, cells]`.
fn overlaps(a: Tensor<3>, b: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let side = |t: &Tensor<3>, k: usize| t.clone().narrow(1, k, 1);
    let both = |k: usize, far: bool| {
        let (x, y) = (side(&a, k), side(&b, k));
        if far { x.max_pair(y) } else { x.min_pair(y) }
    };
    let area = |t: &Tensor<3>| (side(t, 0) + side(t, 2)) * (side(t, 1) + side(t, 3));
    let shared = (both(0, false) + both(2, false)) * (both(1, false) + both(3, false));
    let union = area(&a) + area(&b) - shared.clone() + 1e-6;
    let hull = (both(0, true) + both(2, true)) * (both(1, true) + both(3, true)) + 1e-6;
    let iou = shared / union.clone();
    let gap = iou.clone() - (hull.clone() - union) / hull;
    (iou, gap)
}

/// A random view of a scene: a part of the picture with the boxes that lie in it.
pub fn view(scene: &Scene, smallest: f32, rng: &mut StdRng) -> (Rect, bool, Vec<LabelledBox>) {
    let share = rng.random_range(smallest..=1.0_f32).sqrt();
    let (x, y) = (rng.random_range(0.0..=1.0 - share), rng.random_range(0.0..=1.0 - share));
    let part = Rect::clipped(x, y, x + share, y + share).unwrap_or(Rect::WHOLE);
    let flip = rng.random::<bool>();
    let boxes = scene
        .boxes
        .iter()
        .filter_map(|b| {
            // A box of which less than a third is seen is no longer one to find.
            let seen = b.rect.overlap(part) / b.rect.area().max(1e-9);
            let [x0, y0, x1, y1] = <[f32; 4]>::from(b.rect);
            let to = |v: f32, from: f32, extent: f32| (v - from) / extent;
            let (mut x0, mut x1) =
                (to(x0, part.x0(), part.width()), to(x1, part.x0(), part.width()));
            let (y0, y1) = (to(y0, part.y0(), part.height()), to(y1, part.y0(), part.height()));
            if flip {
                (x0, x1) = (1.0 - x1, 1.0 - x0);
            }
            let rect = Rect::clipped(x0, y0, x1, y1)?;
            (seen > 0.33).then(|| LabelledBox { rect, label: b.label.clone() })
        })
        .collect();
    (part, flip, boxes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Frozen;
    use crate::net::zoo::Architecture;

    fn boxed(bounds: [f32; 4], label: &str) -> LabelledBox {
        LabelledBox { rect: Rect::try_from(bounds).unwrap(), label: label.into() }
    }

    fn classes() -> Vec<String> {
        ["dog", "cat"].map(String::from).to_vec()
    }

    #[test]
    fn a_box_is_owned_by_cells_that_can_say_it() {
        // 160 pixels of 320: five strides of 32, ten of 16.
        let boxes = [boxed([0.25, 0.25, 0.75, 0.75], "cat")];
        let t = target(&boxes, &["cat".into()], &classes(), 320).unwrap();
        let n = cells(320);
        let dogs = t.owners[..n].iter().filter(|v| **v > 0.0).count();
        let owners: Vec<usize> = (0..n).filter(|i| t.owners[n + i] > 0.0).collect();
        assert_eq!(dogs, 0);
        assert!(!owners.is_empty() && owners.iter().all(|i| *i >= 40 * 40 + 20 * 20));
        for i in owners {
            // Left plus right is the width in strides, from every cell.
            assert!((t.sides[i] + t.sides[2 * n + i] - 5.0).abs() < 1e-4);
            assert_eq!(t.known[i], 1.0, "where a cat is known, no dog is known too");
        }
        // Dogs may be there unboxed: elsewhere nothing is known of them, but of cats.
        assert_eq!((t.known[0], t.known[n]), (0.0, 1.0));
        assert!(target(&[boxed([0.0, 0.0, 1.0, 1.0], "wolf")], &[], &classes(), 320).is_err());
    }

    #[test]
    fn overlap_of_known_boxes() {
        let device = crate::engine::device("cpu").unwrap();
        let row =
            |v: [f32; 4]| Tensor::<3>::from_data(TensorData::new(v.to_vec(), [1, 4, 1]), &device);
        let (iou, gap) = overlaps(row([1.0, 1.0, 1.0, 1.0]), row([1.0, 1.0, 1.0, 1.0]));
        let host = |t: Tensor<3>| crate::engine::to_host(t).unwrap()[0];
        assert!((host(iou) - 1.0).abs() < 1e-5 && (host(gap) - 1.0).abs() < 1e-5);
        // A 2x2 box against its left half: IoU 1/2, hull is the box itself.
        let (iou, gap) = overlaps(row([1.0, 1.0, 1.0, 1.0]), row([1.0, 1.0, 0.0, 1.0]));
        assert!((host(iou) - 0.5).abs() < 1e-5 && (host(gap) - 0.5).abs() < 1e-5);
    }

    #[test]
    fn what_grew_on_taps_says_the_same_on_the_whole_network() {
        let side = 64;
        let mut base = Architecture::SmallDepthwise.fresh(2, 0.5, 1).unwrap();
        base.input_shape = [None, Some(3), Some(side), Some(side)];
        // This network ends at stride 16; the tap of stride 32 is its mean over pairs of cells.
        let pool =
            Op::AveragePool { kernel: [2; 2], stride: [2; 2], pads: [0; 4], count_pads: true };
        base.push("deep", pool, &["b5.pw.act"]);
        let taps = ["b3.pw.act", "b5.pw.act", "deep"];
        let shapes = base.shapes([1, 3, side, side]).unwrap();
        let channels = taps.map(|t| shapes[t][1]);
        let (front, back) = base.tap(&taps, [1, 3, side, side]).unwrap();
        let back = grow(back, taps, channels, 2, 5).unwrap();
        let input: Vec<f32> = (0..3 * side * side).map(|i| (i % 17) as f32 / 9.0 - 1.0).collect();
        let row = Frozen::new(&front, side).unwrap().run(&input).unwrap().remove(0);
        let apart = Frozen::shaped(&back, &row.shape).unwrap().run(&row.data).unwrap();
        let whole = Frozen::new(&base.untap(back).unwrap(), side).unwrap().run(&input).unwrap();
        assert_eq!(apart.len(), 3);
        for (a, w) in apart.iter().zip(&whole) {
            assert_eq!(a.shape, w.shape);
            assert!(crate::export::difference(&a.data, &w.data) < 1e-4);
        }
    }

    #[test]
    fn a_view_keeps_boxes_on_their_animals() {
        let scene = Scene {
            file: "x".into(),
            boxes: vec![boxed([0.4, 0.4, 0.6, 0.6], "dog")],
            exhaustive_for: vec![],
            source: String::new(),
            split: crate::data::Split::Train,
        };
        let mut rng = StdRng::seed_from_u64(2);
        for _ in 0..50 {
            let (part, flip, boxes) = view(&scene, 0.3, &mut rng);
            for b in boxes {
                let seen = if flip {
                    Rect::clipped(1.0 - b.rect.x1(), b.rect.y0(), 1.0 - b.rect.x0(), b.rect.y1())
                } else {
                    Some(b.rect)
                };
                let back = seen.unwrap().within(part);
                assert!(back.overlap(scene.boxes[0].rect) > back.area() * 0.99);
            }
        }
    }
}
