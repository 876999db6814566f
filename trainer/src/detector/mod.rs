//! A light anchor-free detector on the taps of a classifier's backbone: a pyramid of depthwise
//! separable convolutions that goes up and down again (Liu et al. 2018), and one head shared by
//! its strides.
//!
//! Each cell answers with its distances to the four sides of a box, in strides, and one logit per
//! class. The maps are what `core::vision` calls the `pawlatch` family. [`loss`] says what they
//! are trained for, [`view`] on what.

pub mod loss;
pub mod score;
pub mod train;
pub mod view;

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::net::zoo::he_normal;
use crate::net::{Array, Net, Op};

/// Pixels per cell of each map.
pub const STRIDES: [usize; 3] = [8, 16, 32];
/// Names of the maps.
pub const MAPS: [&str; 3] = ["map8", "map16", "map32"];
/// Channels of the pyramid.
const WIDTH: usize = 128;

/// The number of cells of all strides at `side`.
pub fn cells(side: usize) -> usize {
    STRIDES.iter().map(|s| (side / s) * (side / s)).sum()
}

/// `backbone` for a square input of `side` pixels, with pyramid and head for `labels` classes on
/// its values `taps` at [`STRIDES`]; what they do not need is cut off. Of a backbone that is such a
/// detector already, pyramid and head keep what they have learnt.
///
/// # Errors
/// If a tap does not exist or has another stride.
pub fn grow(backbone: &Net, side: usize, taps: [&str; 3], labels: usize, seed: u64) -> Result<Net> {
    ensure!(side.is_multiple_of(32), "the side {side} is no multiple of 32");
    let mut net = backbone.clone();
    net.input_shape = [None, Some(3), Some(side), Some(side)];
    let shapes = net.shapes([1, 3, side, side])?;
    let mut channels = [0; 3];
    for ((tap, stride), channels) in taps.iter().zip(STRIDES).zip(&mut channels) {
        let shape = shapes.get(*tap).with_context(|| format!("no node makes '{tap}'"))?;
        ensure!(
            shape.len() == 4 && shape[2] == side / stride,
            "'{tap}' has shape {shape:?}, not stride {stride}"
        );
        *channels = shape[1];
    }
    net.outputs = taps.map(String::from).to_vec();
    net.prune();
    net.params = backbone.params.clone();
    let mut g = Grower { rng: StdRng::seed_from_u64(seed), net: &mut net };
    let fine = g.pointwise("lateral8", taps[0], channels[0]);
    let middle = g.pointwise("lateral16", taps[1], channels[1]);
    let coarse = g.pointwise("lateral32", taps[2], channels[2]);
    let middle = g.raised("middle.up", &middle, &coarse);
    let middle = g.separable("middle", &middle, "", 1);
    let fine = g.raised("fine.up", &fine, &middle);
    let fine = g.separable("fine", &fine, "", 1);
    let middle = g.lowered("middle.down", &middle, &fine);
    let coarse = g.lowered("coarse.down", &coarse, &middle);
    let coarse = g.separable("coarse", &coarse, "", 1);
    for ((map, stride), level) in MAPS.iter().zip(STRIDES).zip([fine, middle, coarse]) {
        // The same weights at every stride: later levels only add nodes.
        let tag = format!("@{stride}");
        let x = g.separable("head0", &level, &tag, 1);
        let x = g.separable("head1", &x, &tag, 1);
        let weight = he_normal(&[4 + labels, WIDTH, 1, 1], &mut g.rng);
        let weight = Array { data: weight.data.iter().map(|w| w * 0.1).collect(), ..weight };
        // A box of four strides at first, and a prior of one object in a hundred cells.
        let bias = (0..4 + labels).map(|k| if k < 4 { 2.0 } else { -4.6 }).collect();
        g.conv(map, "head.out", &x, weight, bias, 1);
    }
    net.outputs = MAPS.map(String::from).to_vec();
    net.prune();
    net.check()?;
    Ok(net)
}

struct Grower<'a> {
    rng: StdRng,
    net: &'a mut Net,
}

impl Grower<'_> {
    /// A convolution named `name` with the parameters `params`, made if there are none yet.
    fn conv(
        &mut self,
        name: &str,
        params: &str,
        x: &str,
        weight: Array,
        bias: Vec<f32>,
        stride: usize,
    ) -> String {
        let pad = weight.shape[2] / 2;
        let groups = if weight.shape[1] == 1 { weight.shape[0] } else { 1 };
        let op = Op::Conv { stride: [stride; 2], pads: [pad; 4], dilation: [1; 2], groups };
        let (w, b) = (format!("{params}.weight"), format!("{params}.bias"));
        self.net.params.entry(w.clone()).or_insert(weight);
        self.net.params.entry(b.clone()).or_insert(Array { shape: vec![bias.len()], data: bias });
        self.net.push(name, op, &[x, &w, &b])
    }

    fn relu6(&mut self, x: &str) -> String {
        self.net.push(&format!("{x}.act"), Op::Clip { low: 0.0, high: 6.0 }, &[x])
    }

    fn pointwise(&mut self, name: &str, x: &str, from: usize) -> String {
        let weight = he_normal(&[WIDTH, from, 1, 1], &mut self.rng);
        let y = self.conv(name, name, x, weight, vec![0.0; WIDTH], 1);
        self.relu6(&y)
    }

    /// Depthwise 3x3, then pointwise, with weights called `name` and nodes called `name + tag`.
    fn separable(&mut self, name: &str, x: &str, tag: &str, stride: usize) -> String {
        let mut y = x.to_owned();
        for (part, shape, stride) in
            [("dw", [WIDTH, 1, 3, 3], stride), ("pw", [WIDTH, WIDTH, 1, 1], 1)]
        {
            let weight = he_normal(&shape, &mut self.rng);
            let params = format!("{name}.{part}");
            let node = format!("{params}{tag}");
            y = self.conv(&node, &params, &y, weight, vec![0.0; shape[0]], stride);
            y = self.relu6(&y);
        }
        y
    }

    /// `fine` and, over it, `coarse` at twice its size.
    fn raised(&mut self, name: &str, fine: &str, coarse: &str) -> String {
        let large = self.net.push(&format!("{name}.large"), Op::Upsample { factor: 2 }, &[coarse]);
        self.net.push(name, Op::Add, &[fine, &large])
    }

    /// `coarse` and `fine`, looked at with a stride of two.
    fn lowered(&mut self, name: &str, coarse: &str, fine: &str) -> String {
        let small = self.separable(name, fine, "", 2);
        self.net.push(&format!("{name}.sum"), Op::Add, &[coarse, &small])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Frozen;
    use crate::net::zoo::Architecture;

    /// A small network with values at the strides 8, 16 and 32.
    fn backbone(side: usize) -> (Net, [&'static str; 3]) {
        let mut base = Architecture::SmallDepthwise.fresh(2, 0.5, 1).unwrap();
        base.input_shape = [None, Some(3), Some(side), Some(side)];
        // This network ends at stride 16; the tap of stride 32 is its mean over pairs of cells.
        let pool =
            Op::AveragePool { kernel: [2; 2], stride: [2; 2], pads: [0; 4], count_pads: true };
        base.push("deep", pool, &["b5.pw.act"]);
        (base, ["b3.pw.act", "b5.pw.act", "deep"])
    }

    #[test]
    fn a_detector_cut_in_two_says_the_same_as_the_whole() {
        let side = 64;
        let (base, taps) = backbone(side);
        let whole = grow(&base, side, taps, 2, 5).unwrap();
        let (front, back) =
            whole.cut_many(&["b2.pw.act", "b3.pw.act"], [1, 3, side, side]).unwrap();
        let input: Vec<f32> = (0..3 * side * side).map(|i| (i % 17) as f32 / 9.0 - 1.0).collect();
        let row = Frozen::new(&front, side).unwrap().run(&input).unwrap().remove(0);
        let apart = Frozen::shaped(&back, &row.shape).unwrap().run(&row.data).unwrap();
        let whole = Frozen::new(&whole, side).unwrap().run(&input).unwrap();
        assert_eq!(apart.len(), MAPS.len());
        for (a, w) in apart.iter().zip(&whole) {
            assert_eq!(a.shape, w.shape);
            assert!(crate::export::difference(&a.data, &w.data) < 1e-4);
        }
    }

    #[test]
    fn a_tap_of_another_stride_is_refused() {
        let (base, [a, b, c]) = backbone(64);
        assert!(grow(&base, 64, [b, a, c], 2, 5).is_err());
        assert!(grow(&base, 64, [a, b, "nowhere"], 2, 5).is_err());
        assert!(grow(&base, 72, [a, b, c], 2, 5).is_err());
    }
}
