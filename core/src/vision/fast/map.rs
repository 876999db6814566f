//! The small operators between convolutions, over [blocks](super::blocks).

use super::parallel::{self, Output};
use super::post::{Post, apply_all};
use super::simd::{Isa, LANES, Lanes, dispatch};

/// Element-wise steps.
#[derive(Clone, Debug)]
pub struct Map(pub Vec<Post>);

impl Map {
    /// Runs the steps on `x`; `other` is the second input of a binary step.
    ///
    /// # Panics
    /// If lengths differ or are no multiple of sixteen.
    pub fn run(&self, isa: Isa, x: &[f32], other: Option<&[f32]>, y: &mut [f32]) {
        assert!(x.len() == y.len() && y.len().is_multiple_of(LANES));
        assert!(other.is_none_or(|o| o.len() == y.len()));
        assert!(other.is_some() || !self.0.iter().any(|p| p.is_binary()));
        let n = y.len() / LANES;
        let y = Output::new(y);
        let pieces = parallel::pieces(x.len() * 8, n);
        parallel::each(pieces, |i| {
            // 16 KiB at a time, so that several steps meet the same cache lines.
            for chunk in parallel::part(n, i, pieces).step_by(256) {
                let n = (n - chunk).min(256).min(parallel::part(n, i, pieces).end - chunk);
                let at = chunk * LANES;
                let out = y.at(at, n * LANES);
                let other = other.map_or(std::ptr::null(), |o| o[at..].as_ptr());
                // SAFETY: `n` blocks of `y` belong to this piece, `other` is as long as `y`, and
                // it is there if a step is binary.
                unsafe {
                    std::ptr::copy_nonoverlapping(x[at..].as_ptr(), out, n * LANES);
                    apply_all(isa, &self.0, out, other, n);
                }
            }
        });
    }
}

/// A change of size by interpolation between two rows and two columns.
#[derive(Clone, Debug)]
pub struct Resize {
    /// Size of the input, `[height, width]`.
    pub input: [usize; 2],
    /// Where each output row lies between input rows.
    pub rows: Vec<Between>,
    /// Where each output column lies between input columns.
    pub columns: Vec<Between>,
}

/// A place between two indices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Between {
    /// The index before.
    pub low: usize,
    /// The index after.
    pub high: usize,
    /// How far from `low` to `high`, `0..=1`.
    pub share: f32,
}

impl Resize {
    /// Resizes blocks of any number of channels.
    ///
    /// # Panics
    /// If a length does not match.
    pub fn run(&self, isa: Isa, x: &[f32], y: &mut [f32]) {
        let (plane, out) = (self.input[0] * self.input[1], self.rows.len() * self.columns.len());
        assert_eq!(x.len() / (plane * LANES), y.len() / (out * LANES));
        assert!(self.rows.iter().all(|r| r.low.max(r.high) < self.input[0]));
        assert!(self.columns.iter().all(|c| c.low.max(c.high) < self.input[1]));
        let rows = y.len() / LANES / self.columns.len();
        assert_eq!(x.len(), rows / self.rows.len() * plane * LANES);
        let pieces = parallel::pieces(y.len() * 4, rows);
        let y = Output::new(y);
        parallel::each(pieces, |i| {
            // SAFETY: all indices lie within the input; pieces write different rows.
            unsafe { resize_rows(isa, self, parallel::part(rows, i, pieces), x, y) }
        });
    }
}

dispatch! {
    /// # Safety
    /// `op`'s indices must lie within `x`, and nobody else may write `rows` of `y`.
    fn resize_rows[](op: &Resize, rows: std::ops::Range<usize>, x: &[f32], y: Output)
        = resize_kernel
}

#[inline(always)]
unsafe fn resize_kernel<L: Lanes>(op: &Resize, rows: std::ops::Range<usize>, x: &[f32], y: Output) {
    let width = op.columns.len();
    for row in rows {
        let (block, at) = (row / op.rows.len(), op.rows[row % op.rows.len()]);
        let plane = &x[block * op.input[0] * op.input[1] * LANES..];
        let (above, below) = (at.low * op.input[1], at.high * op.input[1]);
        let out = y.at(row * width * LANES, width * LANES);
        for (i, c) in op.columns.iter().enumerate() {
            // SAFETY: the caller's.
            unsafe {
                let pixel = |index: usize| plane.as_ptr().add(index * LANES);
                let down = L::splat(at.share);
                let left = mix::<L>(pixel(above + c.low), pixel(below + c.low), down);
                let right = mix::<L>(pixel(above + c.high), pixel(below + c.high), down);
                let across = L::splat(c.share);
                let minus = L::splat(-1.0).mul(left);
                left.fma(right.add(minus), across).store(out.add(i * LANES));
            }
        }
    }
}

/// `a + (b - a) * share`.
///
/// # Safety
/// `a` and `b` must be valid for sixteen floats.
#[inline(always)]
unsafe fn mix<L: Lanes>(a: *const f32, b: *const f32, share: L) -> L {
    // SAFETY: the caller's.
    unsafe {
        let a = L::load(a);
        a.fma(L::load(b).add(L::splat(-1.0).mul(a)), share)
    }
}

/// The sum over all pixels, from blocks to `[channels]`.
#[derive(Clone, Debug)]
pub struct GlobalSum {
    /// Channels.
    pub channels: usize,
    /// Pixels.
    pub pixels: usize,
}

impl GlobalSum {
    /// Sums each channel.
    ///
    /// # Panics
    /// If a length does not match.
    pub fn run(&self, x: &[f32], y: &mut [f32]) {
        assert!(
            y.len() == self.channels && x.len() == super::blocks::len(self.channels, self.pixels)
        );
        for (x, y) in x.chunks_exact(self.pixels * LANES).zip(y.chunks_mut(LANES)) {
            let mut sum = [0.0; LANES];
            for x in x.chunks_exact(LANES) {
                for (sum, x) in sum.iter_mut().zip(x) {
                    *sum += x;
                }
            }
            y.copy_from_slice(&sum[..y.len()]);
        }
    }
}
