//! Depthwise convolution of [bytes](super::bytes).
//!
//! It is bound by memory, not by arithmetic, and bytes are a quarter of it: they become floats in
//! registers, once for all outputs of a tile that see them, and weights stay floats. Like the one
//! of floats it leaves out taps outside of the picture, so the byte that stands for 0 must be 0.

use std::ops::Range;

use super::bytes::{Bytes, Coding};
use super::conv::{Line, lines_of};
use super::depthwise::{Row, inner_columns};
use super::geometry::{Geometry, blocks};
use super::parallel::{self, Output};
use super::simd::{Isa, LANES, dispatch};

/// A depthwise convolution of bytes ready to run.
#[derive(Clone, Debug)]
pub struct ByteDepthwise {
    geometry: Geometry,
    /// What outputs are kept within before they are rounded.
    clamp: (f32, f32),
    /// `[block][tap]`.
    weights: Vec<Line>,
    /// `[block]`.
    bias: Vec<Line>,
}

impl ByteDepthwise {
    /// From bytes coded as `from` to bytes coded as `to`, with `weights` `[channel][kernel]` and
    /// `bias` `[channel]`, kept within `clamp`.
    ///
    /// # Panics
    /// If the geometry is not depthwise, a length does not match it, or 0 is not coded as 0.
    pub fn new(
        geometry: Geometry,
        from: Coding,
        to: Coding,
        weights: &[f32],
        bias: &[f32],
        clamp: (f32, f32),
    ) -> Self {
        let (channels, taps) = (geometry.cin, geometry.taps());
        assert!(geometry.is_depthwise() && from.zero == 0);
        assert!(weights.len() == channels * taps && bias.len() == channels);
        let (gain, shift) = (to.step.recip(), f32::from(to.zero));
        let code = |v: f32| v * gain + shift;
        let weight = |line: usize, lane: usize| {
            let channel = line / taps * LANES + lane;
            let weight = weights.get(channel * taps + line % taps);
            weight.map_or(0.0, |w| w * from.step * gain)
        };
        let lines = (0..blocks(channels) * taps)
            .map(|line| Line(std::array::from_fn(|lane| weight(line, lane))));
        let bias: Vec<f32> = bias.iter().map(|b| code(*b)).collect();
        let clamp = (code(clamp.0).clamp(0.0, 255.0), code(clamp.1).clamp(0.0, 255.0));
        Self { weights: lines.collect(), bias: lines_of(&bias), clamp, geometry }
    }

    /// The shape it was built for.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Slides over `x` into `y`, both in blocks.
    ///
    /// # Panics
    /// If a length does not match the geometry.
    pub fn run(&self, isa: Isa, x: &[u8], y: &mut [u8]) {
        let g = &self.geometry;
        assert_eq!(x.len(), blocks(g.cin) * g.input_pixels() * LANES);
        assert_eq!(y.len(), g.output_len());
        let y = Output::new(y);
        let rows = blocks(g.cin) * g.output[0];
        let pieces = parallel::pieces(4 * g.macs(), rows);
        parallel::each(pieces, |i| {
            // SAFETY: lengths were checked above; pieces write different rows.
            unsafe { rows_job(isa, isa, self, parallel::part(rows, i, pieces), x, y) }
        });
    }
}

dispatch! {
    /// Computes the output rows `rows`, counted through all blocks.
    ///
    /// # Safety
    /// `x` and `y` must have the lengths of the geometry, and nobody else may write those rows.
    fn rows_job[](isa: Isa, op: &ByteDepthwise, rows: Range<usize>, x: &[u8], y: Output<u8>)
        = rows_kernel
}

/// # Safety
/// As [`rows_job`].
#[inline(always)]
unsafe fn rows_kernel<L: Bytes>(
    isa: Isa,
    op: &ByteDepthwise,
    rows: Range<usize>,
    x: &[u8],
    y: Output<u8>,
) {
    let g = &op.geometry;
    let inner = inner_columns(g);
    for row in rows {
        let out = y.at(row * g.output[1] * LANES, g.output[1] * LANES);
        let this = Row::new(g, row, x, &op.weights, &op.bias, op.clamp, out);
        // SAFETY: `visible` and `inner_columns` keep every read inside the block's plane.
        unsafe {
            for ox in (0..inner.start).chain(inner.end..g.output[1]) {
                let (kx, _) = g.visible(1, ox);
                window::<L>(this, ox, kx, g.kernel[1]);
            }
            match (g.kernel[1], g.stride[1]) {
                (3, 1) if g.dilation[1] == 1 => inner_row::<3, 1>(isa, &this, inner.clone()),
                (3, 2) if g.dilation[1] == 1 => inner_row::<3, 2>(isa, &this, inner.clone()),
                (5, 1) if g.dilation[1] == 1 => inner_row::<5, 1>(isa, &this, inner.clone()),
                (5, 2) if g.dilation[1] == 1 => inner_row::<5, 2>(isa, &this, inner.clone()),
                _ => {
                    for ox in inner.clone() {
                        window::<L>(this, ox, 0..g.kernel[1], g.kernel[1]);
                    }
                }
            }
        }
    }
}

/// One output from the taps `kx` of each visible tap row.
///
/// # Safety
/// Those taps must lie inside the picture.
#[inline(always)]
unsafe fn window<L: Bytes>(row: Row<u8>, ox: usize, kx: Range<usize>, width: usize) {
    // SAFETY: the caller's.
    unsafe {
        let mut sum = L::load(row.bias);
        for y in 0..row.height {
            for x in kx.clone() {
                let at = y * row.pitch + ox * row.advance + x * row.step;
                let v = L::load_bytes(row.input.wrapping_add(at));
                sum = sum.fma(L::load(row.weights.add((y * width + x) * LANES)), v);
            }
        }
        let (low, high) = (L::splat(row.clamp.0), L::splat(row.clamp.1));
        sum.max(low).min(high).store_bytes(row.out.add(ox * LANES));
    }
}

dispatch! {
    /// Inner outputs of a window `W` wide with stride `S`: a function of its own for each shape,
    /// for the sake of the register allocator.
    ///
    /// # Safety
    /// As [`window`], for all of `columns` and all taps.
    fn inner_row[W, S](row: &Row<u8>, columns: Range<usize>) = inner_row_kernel
}

/// # Safety
/// As [`inner_row`].
#[inline(always)]
unsafe fn inner_row_kernel<L: Bytes, const W: usize, const S: usize>(
    row: &Row<u8>,
    columns: Range<usize>,
) {
    let mut ox = columns.start;
    macro_rules! tiles {
        ($($p:literal)*) => {
            $(while $p <= L::PIXELS && columns.end - ox >= $p {
                // SAFETY: the caller's.
                unsafe { inner_tile::<L, W, S, $p>(row, ox) };
                ox += $p;
            })*
        };
    }
    tiles!(6 4 2 1);
}

/// `P` neighbouring outputs.
///
/// # Safety
/// As [`inner_row`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // unrolled: registers, not memory
unsafe fn inner_tile<L: Bytes, const W: usize, const S: usize, const P: usize>(
    row: &Row<u8>,
    ox: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sum = [L::load(row.bias); P];
        for y in 0..row.height {
            let input = row.input.wrapping_add(y * row.pitch + ox * S * LANES);
            let weights = row.weights.add(y * W * LANES);
            for x in 0..(P - 1) * S + W {
                let v = L::load_bytes(input.wrapping_add(x * LANES));
                for p in 0..P {
                    if x >= p * S && x < p * S + W {
                        sum[p] = sum[p].fma(L::load(weights.add((x - p * S) * LANES)), v);
                    }
                }
            }
        }
        let (low, high) = (L::splat(row.clamp.0), L::splat(row.clamp.1));
        for p in 0..P {
            sum[p].max(low).min(high).store_bytes(row.out.add((ox + p) * LANES));
        }
    }
}
