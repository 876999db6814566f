//! Convolution over [blocks](super::blocks): dense, 1x1 and grouped.
//!
//! One register tile does them all: [`Lanes::BLOCKS`] blocks of output channels by
//! [`Lanes::PIXELS`] pixels stay in registers while the inputs pass by, each input element
//! broadcast and multiplied with a vector of weights. Sixteen channels of a pixel lie together, so
//! neighbouring pixels are a constant 64 bytes apart and no input is ever packed for the tile;
//! weights are packed once, in the order in which they are read.
//!
//! A 1x1 convolution reads its inputs where they are, and they may lie in several tensors in any
//! order: concatenation, channel split and channel shuffle before it cost nothing. A larger window
//! reads a copy with its padding written out, one band of rows at a time; a stride cuts the copy
//! into phases, so that within a phase neighbouring outputs again read neighbouring pixels.

use std::ops::Range;

use super::geometry::{Geometry, blocks};
use super::parallel::{self, Output};
use super::post::{Post, UNCLAMPED, apply_all, split_clamp};
use super::simd::{Isa, LANES, Lanes, dispatch};

/// Sixteen floats on a cache line of their own.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Line(pub [f32; LANES]);

/// Floats of input (256 KiB) that stay in the second-level cache while all weights pass.
const NEAR: usize = 65_536;
/// Lines of weights (16 KiB) that stay in the first-level cache while all tiles of a group pass.
const DEPTH: usize = 256;

/// A convolution ready to run.
#[derive(Clone, Debug)]
pub struct Conv {
    geometry: Geometry,
    source: Source,
    posts: Vec<Post>,
    /// Lists of input places, shared by the panels that read the same channels.
    taps: Vec<Vec<Tap>>,
    panels: Vec<Panel>,
    weights: Vec<Line>,
    bias: Vec<Line>,
}

/// Where the input comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// Tensors of blocks, read in place.
    InPlace,
    /// One tensor of blocks, copied with padding.
    Blocks,
    /// One planar (NCHW) tensor, copied with padding, still in planes: for the few channels of a
    /// picture, blocks would be mostly air.
    Planes,
}

/// Where one input element lies for the first output pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tap {
    /// Which input tensor.
    tensor: u32,
    /// Floats from its start.
    offset: u32,
}

/// Up to [`Lanes::BLOCKS`] blocks of output channels.
#[derive(Clone, Debug)]
struct Panel {
    /// First block of output channels.
    block: usize,
    /// Number of blocks.
    count: usize,
    /// Index into `Conv::taps`.
    taps: usize,
    /// Where its weights start: `[tap][block][lane]`.
    weights: usize,
}

/// One channel of one of the input tensors of a 1x1 convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel {
    /// Which input tensor.
    pub tensor: usize,
    /// Which of its channels.
    pub channel: usize,
}

impl Conv {
    /// A 1x1 convolution whose input channel `i` is `inputs[i]`. `weights` are `[cout][cin /
    /// groups]`, `bias` `[cout]`.
    ///
    /// # Panics
    /// If the geometry is not pointwise or a length does not match it.
    pub fn pointwise(
        isa: Isa,
        geometry: Geometry,
        inputs: &[Channel],
        weights: &[f32],
        bias: &[f32],
        posts: Vec<Post>,
    ) -> Self {
        assert!(geometry.is_pointwise() && inputs.len() == geometry.cin);
        let pixels = geometry.input_pixels();
        let place = |channel: usize, _: usize| {
            let Channel { tensor, channel } = inputs[channel];
            let offset = channel / LANES * pixels * LANES + channel % LANES;
            Tap { tensor: tensor as u32, offset: offset as u32 }
        };
        Self::pack(isa, geometry, Source::InPlace, place, weights, bias, posts)
    }

    /// Any convolution of one tensor, of blocks or (`planar`) `[cin][height][width]`. `weights`
    /// are `[cout][cin / groups][kernel]`, `bias` `[cout]`.
    ///
    /// # Panics
    /// If a length does not match the geometry.
    pub fn windowed(
        isa: Isa,
        geometry: Geometry,
        planar: bool,
        weights: &[f32],
        bias: &[f32],
        posts: Vec<Post>,
    ) -> Self {
        let source = if planar { Source::Planes } else { Source::Blocks };
        let copy = Copied::new(&geometry, &source, 0..geometry.output[0]);
        let g = geometry.clone();
        let place = |channel: usize, tap: usize| {
            let y = tap / g.kernel[1] * g.dilation[0];
            let x = tap % g.kernel[1] * g.dilation[1];
            let slot = copy.slot(channel / copy.unit, [y % g.stride[0], x % g.stride[1]]);
            let pixel = y / g.stride[0] * copy.width + x / g.stride[1];
            // Bands differ in height, so slot and place within the slot are kept apart.
            let within = pixel * copy.unit + channel % copy.unit;
            Tap { tensor: slot as u32, offset: within as u32 }
        };
        Self::pack(isa, geometry, source, place, weights, bias, posts)
    }

    /// Packs weights into panels; `place(channel, tap)` says where an input element lies.
    fn pack(
        isa: Isa,
        geometry: Geometry,
        source: Source,
        place: impl Fn(usize, usize) -> Tap,
        weights: &[f32],
        bias: &[f32],
        posts: Vec<Post>,
    ) -> Self {
        let g = &geometry;
        let (cg, og, taps) = (g.cin / g.groups, g.cout / g.groups, g.taps());
        assert!(weights.len() == g.cout * cg * taps && bias.len() == g.cout);
        let mut lines = Vec::new();
        let mut panels: Vec<Panel> = Vec::new();
        let mut tap_lists: Vec<Vec<Tap>> = Vec::new();
        let mut block = 0;
        while block < blocks(g.cout) {
            let count = isa.tile_blocks().min(blocks(g.cout) - block);
            let outputs = block * LANES..((block + count) * LANES).min(g.cout);
            // A panel reads the channels of every group it touches; weights between groups are 0.
            let groups = outputs.start / og..(outputs.end - 1) / og + 1;
            let mut list: Vec<(Tap, usize, usize)> = (groups.start * cg..groups.end * cg)
                .flat_map(|c| (0..taps).map(move |t| (c, t)))
                .map(|(c, t)| (place(c, t), c, t))
                .collect();
            list.sort_by_key(|(tap, ..)| (tap.tensor, tap.offset));
            panels.push(Panel { block, count, taps: tap_lists.len(), weights: lines.len() });
            for (_, channel, tap) in &list {
                for b in 0..count {
                    lines.push(Line(std::array::from_fn(|lane| {
                        let out = (block + b) * LANES + lane;
                        if out < g.cout && out / og == channel / cg {
                            weights[(out * cg + channel % cg) * taps + tap]
                        } else {
                            0.0
                        }
                    })));
                }
            }
            let list: Vec<Tap> = list.into_iter().map(|(tap, ..)| tap).collect();
            if tap_lists.last() == Some(&list) {
                panels.last_mut().into_iter().for_each(|p| p.taps -= 1);
            } else {
                tap_lists.push(list);
            }
            block += count;
        }
        let bias = lines_of(bias);
        Self { source, posts, taps: tap_lists, panels, weights: lines, bias, geometry }
    }

    /// The shape it was built for.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The steps done on its output.
    pub fn posts(&self) -> &[Post] {
        &self.posts
    }

    /// Convolves `inputs` into `y`; `other` is the second input of a binary [`Post`].
    ///
    /// # Panics
    /// If a length does not match the geometry.
    pub fn run(&self, isa: Isa, inputs: &[&[f32]], other: Option<&[f32]>, y: &mut [f32]) {
        let g = &self.geometry;
        assert_eq!(y.len(), g.output_len());
        assert!(other.is_none_or(|o| o.len() == y.len()));
        assert!(other.is_some() || !self.posts.iter().any(|p| p.is_binary()));
        let y = Output::new(y);
        if self.source == Source::InPlace {
            self.run_in_place(isa, inputs, other, y);
        } else {
            assert_eq!(inputs.len(), 1);
            self.run_copied(isa, inputs[0], other, y);
        }
    }

    /// 1x1: every input is read where it lies.
    fn run_in_place(&self, isa: Isa, inputs: &[&[f32]], other: Option<&[f32]>, y: Output) {
        let pixels = self.geometry.output_pixels();
        for tap in self.taps.iter().flatten() {
            let end = tap.offset as usize + (pixels - 1) * LANES + 1;
            assert!(inputs[tap.tensor as usize].len() >= end);
        }
        let place = |tap: &Tap| inputs[tap.tensor as usize][tap.offset as usize..].as_ptr();
        let places: Vec<Vec<*const f32>> =
            self.taps.iter().map(|taps| taps.iter().map(place).collect()).collect();
        let places = Places(places);
        parallel::each_share(self.geometry.macs(), pixels, self.panels.len(), |pixels, panels| {
            let rows = Rows { count: 1, length: pixels.len(), pitch: 0, first: pixels.start };
            // SAFETY: every tap was checked above for all pixels; pieces write different pixels
            // or different blocks of `y`, which has the geometry's length.
            unsafe { self.multiply(isa, &places, rows, panels, pixels.start, other, y) }
        });
    }

    /// Larger windows: a band of output rows at a time, from a padded copy of what it sees.
    fn run_copied(&self, isa: Isa, x: &[f32], other: Option<&[f32]>, y: Output) {
        let g = &self.geometry;
        let whole = Copied::new(g, &self.source, 0..g.output[0]);
        let fits = (NEAR / (whole.len() / whole.height).max(1)).max(g.kernel[0] * g.dilation[0]);
        let bands = g.output[0].div_ceil(fits);
        let bands = bands.max(parallel::pieces(g.macs(), g.output[0])).min(g.output[0]);
        parallel::each(bands, |i| {
            let rows = parallel::part(g.output[0], i, bands);
            let copy = Copied::new(g, &self.source, rows.clone());
            let padded = copy.fill(g, x);
            let slot_len = copy.height * copy.width * copy.unit;
            let place = |tap: &Tap| {
                let at = tap.tensor as usize * slot_len + tap.offset as usize;
                let last = (rows.len() - 1) * copy.width + g.output[1] - 1;
                assert!(at + last * copy.unit < padded.len());
                padded.as_ptr().wrapping_add(at)
            };
            let places: Vec<Vec<*const f32>> =
                self.taps.iter().map(|taps| taps.iter().map(place).collect()).collect();
            let first = rows.start * g.output[1];
            let rows = Rows { count: rows.len(), length: g.output[1], pitch: copy.width, first: 0 };
            let panels = 0..self.panels.len();
            // SAFETY: every tap was checked for the band's last pixel; bands write different rows.
            unsafe { self.multiply(isa, &Places(places), rows, panels, first, other, y) }
        });
    }

    /// # Safety
    /// `places[list][tap]` must be readable for every pixel of `rows`. Nobody else may write the
    /// output pixels from `first_out` on, in the blocks of `panels`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn multiply(
        &self,
        isa: Isa,
        places: &Places,
        rows: Rows,
        panels: Range<usize>,
        first_out: usize,
        other: Option<&[f32]>,
        y: Output,
    ) {
        let (clamp, posts) = split_clamp(&self.posts);
        let out_pixels = self.geometry.output_pixels();
        let deepest = self.taps.iter().map(Vec::len).max().unwrap_or(1);
        // Pixels whose inputs stay near while all panels pass; bands are near already.
        let group = if rows.count > 1 { rows.length } else { (NEAR / deepest).max(48) };
        let groups = rows.length.div_ceil(group).max(1);
        for g in 0..groups {
            let columns = parallel::part(rows.length, g, groups);
            for panel in &self.panels[panels.clone()] {
                let taps = &places.0[panel.taps];
                let at = (panel.block * out_pixels + first_out + columns.start) * LANES;
                let last = ((panel.count - 1) * out_pixels
                    + (rows.count - 1) * rows.length
                    + columns.len())
                    * LANES;
                // Weights that outgrow the nearest cache take turns; sums wait in the output.
                let turns = (taps.len() * panel.count).div_ceil(DEPTH);
                for turn in 0..turns {
                    let depth = parallel::part(taps.len(), turn, turns);
                    let is_last = turn + 1 == turns;
                    let weights = panel.weights + depth.start * panel.count;
                    let job = Job {
                        taps: &taps[depth],
                        weights: self.weights[weights..].as_ptr().cast(),
                        bias: match turn {
                            0 => self.bias[panel.block..].as_ptr().cast(),
                            _ => std::ptr::null(),
                        },
                        clamp: if is_last { clamp } else { UNCLAMPED },
                        posts: if is_last { posts } else { &[] },
                        blocks: panel.count,
                        rows: rows.count,
                        columns: columns.len(),
                        step: if self.source == Source::Planes { 1 } else { LANES },
                        first_in: rows.first + columns.start,
                        in_pitch: rows.pitch,
                        out: y.at(at, last),
                        other: other.map_or(std::ptr::null(), |o| o[at..at + last].as_ptr()),
                        out_pitch: rows.length * LANES,
                        block_pitch: out_pixels * LANES,
                    };
                    // SAFETY: the panel's weights hold `taps * count` lines, its bias `count`; the
                    // caller vouches for the taps, and `at`'s bound check covers the output, of
                    // which a later turn reads what the one before wrote.
                    unsafe { panel_job(isa, &job) }
                }
            }
        }
    }
}

/// Values padded with zeros to whole lines.
pub fn lines_of(values: &[f32]) -> Vec<Line> {
    let line =
        |chunk: &[f32]| Line(std::array::from_fn(|i| chunk.get(i).copied().unwrap_or_default()));
    values.chunks(LANES).map(line).collect()
}

/// Addresses of inputs, shared between pieces that only read them.
struct Places(Vec<Vec<*const f32>>);
// SAFETY: only read through, and the inputs outlive the pieces.
unsafe impl Sync for Places {}

/// Which pixels the taps are applied at: `count` rows of `length`, `pitch` apart, after `first`.
#[derive(Clone, Copy)]
struct Rows {
    count: usize,
    length: usize,
    pitch: usize,
    first: usize,
}

/// The padded copy of what a band of output rows sees: `slots` planes of `height * width` pixels
/// of `unit` channels each. A stride cuts it into phases, each a slot of its own.
struct Copied {
    slots: usize,
    height: usize,
    width: usize,
    /// Channels that lie together: a block, or one of planes.
    unit: usize,
    /// First row of the copy, counted within each phase from the padded top.
    top: usize,
    stride: [usize; 2],
}

impl Copied {
    fn new(g: &Geometry, source: &Source, rows: Range<usize>) -> Self {
        let unit = if *source == Source::Planes { 1 } else { LANES };
        let reach = |axis: usize| (g.kernel[axis] - 1) * g.dilation[axis] / g.stride[axis];
        Self {
            slots: g.cin.div_ceil(unit) * g.stride[0] * g.stride[1],
            height: rows.len() + reach(0),
            width: g.output[1] + reach(1),
            unit,
            top: rows.start,
            stride: g.stride,
        }
    }

    /// Floats of the copy.
    fn len(&self) -> usize {
        self.slots * self.height * self.width * self.unit
    }

    /// The slot of a unit of channels in a phase.
    fn slot(&self, unit: usize, phase: [usize; 2]) -> usize {
        (unit * self.stride[0] + phase[0]) * self.stride[1] + phase[1]
    }

    /// Copies `x`, in planes or in blocks.
    fn fill(&self, g: &Geometry, x: &[f32]) -> Vec<f32> {
        let mut copy = vec![0.0; self.len()];
        let plane_len = g.input_pixels() * self.unit;
        let row_len = self.width * self.unit;
        for (slot, copy) in copy.chunks_exact_mut(self.height * row_len).enumerate() {
            let phase_x = slot % g.stride[1];
            let phase_y = slot / g.stride[1] % g.stride[0];
            let plane = &x[slot / g.stride[1] / g.stride[0] * plane_len..][..plane_len];
            for (row, to) in copy.chunks_exact_mut(row_len).enumerate() {
                let y = (self.top + row) * g.stride[0] + phase_y;
                if let Some(y) = y.checked_sub(g.pad[0]).filter(|y| *y < g.input[0]) {
                    let from = &plane[y * g.input[1] * self.unit..][..g.input[1] * self.unit];
                    copy_row(from, to, self.unit, g.stride[1], g.pad[1], phase_x);
                }
            }
        }
        copy
    }
}

/// Copies the pixels of one phase of a row, after its padding.
fn copy_row(from: &[f32], to: &mut [f32], unit: usize, stride: usize, pad: usize, phase: usize) {
    // The first place of the phase that lies inside the picture, and the pixel there.
    let start = pad.saturating_sub(phase).div_ceil(stride);
    let pixel = start * stride + phase - pad;
    let Some(to) = to.get_mut(start * unit..) else { return };
    let Some(from) = from.get(pixel * unit..) else { return };
    match (unit, stride) {
        (_, 1) => {
            let n = from.len().min(to.len());
            to[..n].copy_from_slice(&from[..n]);
        }
        (1, 2) => {
            let pairs = from.chunks_exact(2);
            let last = pairs.remainder().first();
            let n = pairs.len();
            to.iter_mut().zip(pairs).for_each(|(to, from)| *to = from[0]);
            if let (Some(to), Some(last)) = (to.get_mut(n), last) {
                *to = *last;
            }
        }
        _ => {
            for (to, from) in to.chunks_exact_mut(unit).zip(from.chunks(unit * stride)) {
                to.copy_from_slice(&from[..unit]);
            }
        }
    }
}

/// One panel over one group of pixels. Output pitches in floats, input ones in pixels.
struct Job<'a> {
    taps: &'a [*const f32],
    weights: *const f32,
    /// What the sums begin with; null where they go on from what the output holds.
    bias: *const f32,
    clamp: (f32, f32),
    posts: &'a [Post],
    blocks: usize,
    rows: usize,
    columns: usize,
    /// Floats between neighbouring input pixels.
    step: usize,
    first_in: usize,
    in_pitch: usize,
    out: *mut f32,
    other: *const f32,
    out_pitch: usize,
    block_pitch: usize,
}

/// # Safety
/// The pointers of `job` must be valid for all its pixels, blocks and taps.
unsafe fn panel_job(isa: Isa, job: &Job) {
    // Nearly equal tiles: none is left with too few pixels to hide the latency of an addition.
    let tiles = job.columns.div_ceil(isa.tile_pixels()).max(1);
    let (narrow, wider) = (job.columns / tiles, job.columns % tiles);
    macro_rules! tiles {
        ($pixels:expr, $($p:literal)*) => {
            match (job.blocks, $pixels, job.step) {
                $((1, $p, LANES) => tile_run::<1, $p, LANES>,)*
                $((2, $p, LANES) => tile_run::<2, $p, LANES>,)*
                $((1, $p, 1) => tile_run::<1, $p, 1>,)*
                $((2, $p, 1) => tile_run::<2, $p, 1>,)*
                _ => return,
            }
        };
    }
    for (pixels, count, column) in
        [(narrow + 1, wider, 0), (narrow, tiles - wider, wider * (narrow + 1))]
    {
        if count > 0 && pixels > 0 {
            let run = tiles!(pixels, 1 2 3 4 5 6 7 8 9 10 11 12);
            // SAFETY: the two runs of tiles cover exactly the job's columns.
            unsafe { run(isa, isa, job, column, count) }
        }
    }
}

dispatch! {
    /// `count` neighbouring tiles from `column` on, in each row.
    ///
    /// A function of its own for each shape of tile: inlined into one, the register allocator
    /// spills the accumulators.
    ///
    /// # Safety
    /// As [`panel_job`].
    fn tile_run[B, P, S](isa: Isa, job: &Job, column: usize, count: usize) = tile_run_kernel
}

/// # Safety
/// As [`panel_job`].
#[inline(always)]
unsafe fn tile_run_kernel<L: Lanes, const B: usize, const P: usize, const S: usize>(
    isa: Isa,
    job: &Job,
    column: usize,
    count: usize,
) {
    if P > L::PIXELS || B > L::BLOCKS {
        return; // never asked for: no code for tiles that do not fit the registers
    }
    for row in 0..job.rows {
        for tile_index in 0..count {
            let column = column + tile_index * P;
            let input = (job.first_in + row * job.in_pitch + column) * S;
            let output = row * job.out_pitch + column * LANES;
            // SAFETY: the caller's.
            unsafe { tile::<L, B, P, S>(job, input, output) }
            if !job.posts.is_empty() {
                for b in 0..B {
                    let at = output + b * job.block_pitch;
                    let other = job.other.wrapping_add(at);
                    // SAFETY: the tile just written; `other` matches it, and null is not read.
                    unsafe { apply_all(isa, job.posts, job.out.add(at), other, P) }
                }
            }
        }
    }
}

/// The register tile: `B` blocks of output channels by `P` pixels, which are `S` floats apart.
///
/// # Safety
/// As [`panel_job`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // unrolled: registers, not memory
unsafe fn tile<L: Lanes, const B: usize, const P: usize, const S: usize>(
    job: &Job,
    input: usize,
    output: usize,
) {
    // SAFETY: taps, weights and outputs are the caller's.
    unsafe {
        let mut sum = [[L::splat(0.0); P]; B];
        for b in 0..B {
            if job.bias.is_null() {
                for p in 0..P {
                    sum[b][p] = L::load(job.out.add(output + b * job.block_pitch + p * LANES));
                }
            } else {
                sum[b] = [L::load(job.bias.add(b * LANES)); P];
            }
        }
        let mut weights = job.weights;
        for &tap in job.taps {
            let tap = tap.add(input);
            let mut w = [L::splat(0.0); B];
            for b in 0..B {
                w[b] = L::load(weights.add(b * LANES));
            }
            for p in 0..P {
                let x = L::splat(*tap.add(p * S));
                for b in 0..B {
                    sum[b][p] = sum[b][p].fma(w[b], x);
                }
            }
            weights = weights.add(B * LANES);
        }
        let (low, high) = (L::splat(job.clamp.0), L::splat(job.clamp.1));
        for b in 0..B {
            for p in 0..P {
                let at = output + b * job.block_pitch + p * LANES;
                sum[b][p].max(low).min(high).store(job.out.add(at));
            }
        }
    }
}
