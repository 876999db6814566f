//! Depthwise convolution and max pooling over [blocks](super::blocks).
//!
//! Every channel is on its own, so sixteen of them are simply sixteen lanes: each output pixel is
//! a few multiply-adds of whole vectors, whatever the stride. The window is read where it lies.
//! Where it hangs over the border the taps outside are left out, so nothing is padded or copied.

use std::ops::Range;

use super::conv::{Line, lines_of};
use super::geometry::{Geometry, blocks};
use super::parallel::{self, Output};
use super::post::{Post, apply, split_clamp};
use super::simd::{Isa, LANES, Lanes, dispatch};

/// A depthwise convolution or a max pooling ready to run.
#[derive(Clone, Debug)]
pub struct Depthwise {
    geometry: Geometry,
    posts: Vec<Post>,
    /// `[block][tap]`; empty for max pooling.
    weights: Vec<Line>,
    /// `[block]`; minus infinity for max pooling.
    bias: Vec<Line>,
}

impl Depthwise {
    /// A convolution with `weights` `[channel][kernel]` and `bias` `[channel]`.
    ///
    /// # Panics
    /// If the geometry is not depthwise or a length does not match it.
    pub fn convolution(
        geometry: Geometry,
        weights: &[f32],
        bias: &[f32],
        posts: Vec<Post>,
    ) -> Self {
        let (channels, taps) = (geometry.cin, geometry.taps());
        assert!(geometry.cin == geometry.cout && geometry.groups == geometry.cin);
        assert!(weights.len() == channels * taps && bias.len() == channels);
        let weight = |line: usize, lane: usize| {
            let channel = line / taps * LANES + lane;
            if channel < channels { weights[channel * taps + line % taps] } else { 0.0 }
        };
        let weights = (0..blocks(channels) * taps)
            .map(|line| Line(std::array::from_fn(|lane| weight(line, lane))))
            .collect();
        Self { bias: lines_of(bias), geometry, posts, weights }
    }

    /// A max pooling; its padding never wins.
    pub fn max_pooling(geometry: Geometry, posts: Vec<Post>) -> Self {
        let bias = vec![Line([f32::NEG_INFINITY; LANES]); blocks(geometry.cin)];
        Self { geometry, posts, weights: Vec::new(), bias }
    }

    /// The steps done on its output.
    pub fn posts(&self) -> &[Post] {
        &self.posts
    }

    /// The shape it was built for.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Whether this is a max pooling.
    pub fn is_max(&self) -> bool {
        self.weights.is_empty()
    }

    /// Slides over `x` into `y`, both in blocks; `other` is the second input of a binary
    /// [`Post`].
    ///
    /// # Panics
    /// If a length does not match the geometry.
    pub fn run(&self, isa: Isa, x: &[f32], other: Option<&[f32]>, y: &mut [f32]) {
        let g = &self.geometry;
        assert_eq!(x.len(), blocks(g.cin) * g.input_pixels() * LANES);
        assert_eq!(y.len(), g.output_len());
        assert!(other.is_none_or(|o| o.len() == y.len()));
        assert!(other.is_some() || !self.posts.iter().any(|p| p.is_binary()));
        let y = Output::new(y);
        let rows = blocks(g.cin) * g.output[0];
        let pieces = parallel::pieces(4 * g.macs(), rows);
        parallel::each(pieces, |i| {
            // SAFETY: lengths were checked above; pieces write different rows.
            unsafe { rows_job(isa, isa, self, parallel::part(rows, i, pieces), x, other, y) }
        });
    }
}

/// Output columns whose whole window lies inside the picture.
pub fn inner_columns(g: &Geometry) -> Range<usize> {
    let reach = (g.kernel[1] - 1) * g.dilation[1];
    let from = g.pad[1].div_ceil(g.stride[1]).min(g.output[1]);
    let to = match (g.input[1] + g.pad[1]).checked_sub(reach + 1) {
        Some(last) => (last / g.stride[1] + 1).min(g.output[1]),
        None => 0,
    };
    from..to.max(from)
}

dispatch! {
    /// Computes the output rows `rows`, counted through all blocks.
    ///
    /// # Safety
    /// `x`, `other` and `y` must have the lengths of the geometry, and nobody else may write
    /// those rows.
    fn rows_job[](
        isa: Isa,
        op: &Depthwise,
        rows: Range<usize>,
        x: &[f32],
        other: Option<&[f32]>,
        y: Output,
    ) = rows_kernel
}

/// What one output row of numbers of kind `T` sees.
#[derive(Clone, Copy)]
pub(super) struct Row<T> {
    /// The input pixel (or where it would be) under tap 0 of the first column, in the first
    /// visible tap row.
    pub input: *const T,
    /// Weights of the first visible tap row; null for max pooling.
    pub weights: *const f32,
    /// Visible tap rows.
    pub height: usize,
    /// Numbers between tap rows of the input.
    pub pitch: usize,
    /// Numbers between taps within a row.
    pub step: usize,
    /// Numbers between the windows of neighbouring outputs.
    pub advance: usize,
    pub bias: *const f32,
    pub clamp: (f32, f32),
    pub out: *mut T,
}

impl<T> Row<T> {
    /// The output row `row`, counted through all blocks, that starts at `out`, of `x` in blocks.
    /// `weights` are `[block][tap]`, or none for max pooling; `bias` is `[block]`.
    #[inline(always)]
    pub fn new(
        g: &Geometry,
        row: usize,
        x: &[T],
        weights: &[Line],
        bias: &[Line],
        clamp: (f32, f32),
        out: *mut T,
    ) -> Self {
        let (block, oy) = (row / g.output[0], row % g.output[0]);
        let (ky, top) = g.visible(0, oy);
        let first = (top + (ky.start * g.dilation[0]) as isize) * g.input[1] as isize;
        let plane = x[block * g.input_pixels() * LANES..].as_ptr();
        let first_weights = block * g.taps() + ky.start * g.kernel[1];
        Self {
            input: plane.wrapping_offset((first - g.pad[1] as isize) * LANES as isize),
            weights: match weights {
                [] => std::ptr::null(),
                _ => weights.as_ptr().wrapping_add(first_weights).cast(),
            },
            height: ky.len(),
            pitch: g.dilation[0] * g.input[1] * LANES,
            step: g.dilation[1] * LANES,
            advance: g.stride[1] * LANES,
            bias: bias[block].0.as_ptr(),
            clamp,
            out,
        }
    }
}

/// # Safety
/// As [`rows_job`].
#[inline(always)]
unsafe fn rows_kernel<L: Lanes>(
    isa: Isa,
    op: &Depthwise,
    rows: Range<usize>,
    x: &[f32],
    other: Option<&[f32]>,
    y: Output,
) {
    let g = &op.geometry;
    let inner = inner_columns(g);
    let (clamp, posts) = split_clamp(&op.posts);
    for row in rows {
        let at = row * g.output[1] * LANES;
        let out = y.at(at, g.output[1] * LANES);
        let weights = if op.is_max() { &[] } else { &op.weights[..] };
        let this = Row::new(g, row, x, weights, &op.bias, clamp, out);
        // SAFETY: `visible` and `inner_columns` keep every read inside the block's plane.
        unsafe {
            for ox in (0..inner.start).chain(inner.end..g.output[1]) {
                border::<L>(g, this, ox);
            }
            let specialised = !op.is_max() && g.dilation[1] == 1;
            match (g.kernel[1], g.stride[1]) {
                (3, 1) if specialised => inner_row::<3, 1>(isa, &this, inner.clone()),
                (3, 2) if specialised => inner_row::<3, 2>(isa, &this, inner.clone()),
                (5, 1) if specialised => inner_row::<5, 1>(isa, &this, inner.clone()),
                (5, 2) if specialised => inner_row::<5, 2>(isa, &this, inner.clone()),
                _ => any_row::<L>(this, g.kernel[1], inner.clone()),
            }
            if !posts.is_empty() {
                let other = other.map_or(std::ptr::null(), |o| o[at..].as_ptr());
                apply::<L>(posts, out, other, g.output[1]);
            }
        }
    }
}

/// One output whose window hangs over the left or right border.
///
/// # Safety
/// As [`rows_job`].
#[inline(always)]
unsafe fn border<L: Lanes>(g: &Geometry, row: Row<f32>, ox: usize) {
    let (kx, _) = g.visible(1, ox);
    // SAFETY: only taps inside the picture are read.
    unsafe { window::<L>(row, ox, kx, g.kernel[1]) }
}

/// One output from the taps `kx` of each visible tap row.
///
/// # Safety
/// Those taps must lie inside the picture.
#[inline(always)]
unsafe fn window<L: Lanes>(row: Row<f32>, ox: usize, kx: Range<usize>, width: usize) {
    // SAFETY: the caller's.
    unsafe {
        let mut sum = L::load(row.bias);
        for y in 0..row.height {
            for x in kx.clone() {
                let at = y * row.pitch + ox * row.advance + x * row.step;
                let v = L::load(row.input.wrapping_add(at));
                sum = if row.weights.is_null() {
                    sum.max(v)
                } else {
                    sum.fma(L::load(row.weights.add((y * width + x) * LANES)), v)
                };
            }
        }
        sum.max(L::splat(row.clamp.0)).min(L::splat(row.clamp.1)).store(row.out.add(ox * LANES));
    }
}

/// Inner outputs of any window.
///
/// # Safety
/// As [`window`], for all of `columns` and all taps.
#[inline(always)]
unsafe fn any_row<L: Lanes>(row: Row<f32>, width: usize, columns: Range<usize>) {
    for ox in columns {
        // SAFETY: the caller's.
        unsafe { window::<L>(row, ox, 0..width, width) }
    }
}

dispatch! {
    /// Inner outputs of a window `W` wide with stride `S`: a function of its own for each shape,
    /// for the sake of the register allocator.
    ///
    /// # Safety
    /// As [`any_row`].
    fn inner_row[W, S](row: &Row<f32>, columns: Range<usize>) = inner_row_kernel
}

/// # Safety
/// As [`any_row`].
#[inline(always)]
unsafe fn inner_row_kernel<L: Lanes, const W: usize, const S: usize>(
    row: &Row<f32>,
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
    tiles!(8 4 2 1);
}

/// `P` neighbouring outputs.
///
/// # Safety
/// As [`any_row`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // unrolled: registers, not memory
unsafe fn inner_tile<L: Lanes, const W: usize, const S: usize, const P: usize>(
    row: &Row<f32>,
    ox: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sum = [L::load(row.bias); P];
        for y in 0..row.height {
            let input = row.input.wrapping_add(y * row.pitch + ox * S * LANES);
            for x in 0..W {
                let w = L::load(row.weights.add((y * W + x) * LANES));
                for p in 0..P {
                    let v = L::load(input.wrapping_add((p * S + x) * LANES));
                    sum[p] = sum[p].fma(w, v);
                }
            }
        }
        let (low, high) = (L::splat(row.clamp.0), L::splat(row.clamp.1));
        for p in 0..P {
            sum[p].max(low).min(high).store(row.out.add((ox + p) * LANES));
        }
    }
}
