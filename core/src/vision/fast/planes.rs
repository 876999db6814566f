//! The few operators on plain tensors that our networks spend time in: softmax and grid sampling.

use super::simd::{Isa, LANES, Lanes, dispatch};

/// Softmax along the last axis.
#[derive(Clone, Debug)]
pub struct Softmax {
    /// Length of that axis.
    pub length: usize,
}

impl Softmax {
    /// Each row of `x` to exponentials that sum to one.
    ///
    /// # Panics
    /// If lengths differ or are no whole rows.
    pub fn run(&self, isa: Isa, x: &[f32], y: &mut [f32]) {
        assert!(x.len() == y.len() && y.len().is_multiple_of(self.length));
        // A row padded with what adds nothing to the sum.
        let mut row = vec![f32::NEG_INFINITY; self.length.next_multiple_of(LANES)];
        for (x, y) in x.chunks_exact(self.length).zip(y.chunks_exact_mut(self.length)) {
            row[..self.length].copy_from_slice(x);
            // SAFETY: the row is a whole number of sixteen floats.
            unsafe { softmax_row(isa, &mut row) }
            y.copy_from_slice(&row[..self.length]);
            row[self.length..].fill(f32::NEG_INFINITY);
        }
    }
}

dispatch! {
    /// # Safety
    /// The row's length must be a multiple of sixteen and not zero.
    fn softmax_row[](row: &mut [f32]) = softmax_kernel
}

/// # Safety
/// As [`softmax_row`].
#[inline(always)]
unsafe fn softmax_kernel<L: Lanes>(row: &mut [f32]) {
    // SAFETY: every access is within the row.
    unsafe {
        let (start, n) = (row.as_mut_ptr(), row.len() / LANES);
        let mut largest = L::load(start);
        for i in 1..n {
            largest = largest.max(L::load(start.add(i * LANES)));
        }
        let minus = L::splat(-fold(largest, f32::max));
        let mut sum = L::splat(0.0);
        for i in 0..n {
            let e = L::load(start.add(i * LANES)).add(minus).exp();
            e.store(start.add(i * LANES));
            sum = sum.add(e);
        }
        let scale = L::splat(1.0 / fold(sum, |a, b| a + b));
        for i in 0..n {
            L::load(start.add(i * LANES)).mul(scale).store(start.add(i * LANES));
        }
    }
}

/// All sixteen lanes combined.
///
/// # Safety
/// As for any of [`Lanes`]' methods.
#[inline(always)]
unsafe fn fold<L: Lanes>(lanes: L, combine: fn(f32, f32) -> f32) -> f32 {
    let mut floats = [0.0; LANES];
    // SAFETY: sixteen floats.
    unsafe { lanes.store(floats.as_mut_ptr()) }
    let mut all = floats[0];
    for float in &floats[1..] {
        all = combine(all, *float);
    }
    all
}

/// Bilinear sampling of `[n, channels, height, width]` at `[n, out_height, out_width, (x, y)]` in
/// `-1..=1`; zero outside (ONNX GridSample).
#[derive(Clone, Debug)]
pub struct GridSample {
    /// Pictures.
    pub n: usize,
    /// Channels.
    pub channels: usize,
    /// `[height, width]` of the input.
    pub input: [usize; 2],
    /// Places sampled in each picture.
    pub places: usize,
    /// Whether -1 and 1 are the centres of the outermost pixels, not their outer edges.
    pub align_corners: bool,
}

impl GridSample {
    /// Samples `x` at `grid`.
    ///
    /// # Panics
    /// If a length does not match.
    pub fn run(&self, x: &[f32], grid: &[f32], y: &mut [f32]) {
        let plane = self.input[0] * self.input[1];
        assert_eq!(x.len(), self.n * self.channels * plane);
        assert_eq!(y.len(), self.n * self.channels * self.places);
        let grids = grid.chunks_exact(2 * self.places);
        let pictures = x.chunks_exact(self.channels * plane);
        let outputs = y.chunks_exact_mut(self.channels * self.places);
        for ((grid, x), y) in grids.zip(pictures).zip(outputs) {
            let corners: Vec<[(usize, f32); 4]> =
                grid.chunks_exact(2).map(|place| self.corners(place[0], place[1])).collect();
            for (x, y) in x.chunks_exact(plane).zip(y.chunks_exact_mut(self.places)) {
                for (y, corners) in y.iter_mut().zip(&corners) {
                    *y = corners.iter().map(|(at, weight)| x[*at] * weight).sum();
                }
            }
        }
    }

    /// The four pixels around a place and their weights; zero for those outside.
    fn corners(&self, x: f32, y: f32) -> [(usize, f32); 4] {
        let [height, width] = self.input;
        let pixel = |v: f32, size: usize| match self.align_corners {
            true => (v + 1.0) / 2.0 * (size as f32 - 1.0),
            false => ((v + 1.0) * size as f32 - 1.0) / 2.0,
        };
        let (x, y) = (pixel(x, width), pixel(y, height));
        let (left, top) = (x.floor(), y.floor());
        std::array::from_fn(|i| {
            let (column, row) = (left + (i & 1) as f32, top + (i >> 1) as f32);
            let weight = (1.0 - (x - column).abs()) * (1.0 - (y - row).abs());
            let inside =
                (0.0..width as f32).contains(&column) && (0.0..height as f32).contains(&row);
            if inside { (row as usize * width + column as usize, weight) } else { (0, 0.0) }
        })
    }
}
