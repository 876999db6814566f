//! 1x1 convolutions of [bytes](super::bytes): exact sums of products of 8-bit numbers.
//!
//! Weights are coded per output channel, symmetric, small enough that AVX2, which adds four
//! products in sixteen bits before it widens them, never overflows; so every instruction set gives
//! the same sums. Register tiles are those of the convolution of floats: a block of output
//! channels by a few pixels, eight input channels at a time.

use super::bytes::{Bytes, Coding};
use super::conv::{Line, lines_of};
use super::geometry::{Geometry, blocks};
use super::parallel::{self, Output};
use super::post::{Post, apply_all, split_clamp};
use super::simd::{Isa, Kind, LANES, Lanes};

/// Input channels that are multiplied at once.
const DEEP: usize = 8;
/// What weights of one sign may sum to where four products are added in sixteen bits: 255 times as
/// much fits.
const MOST: f32 = 128.0;
/// Bytes of input that stay in the second-level cache while all weights pass.
const NEAR: usize = 131_072;

/// An instruction set with dot products of bytes, which this CPU is known to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dot(Isa);

impl Dot {
    /// The dot products of `isa`, if this CPU has them.
    pub fn of(isa: Isa) -> Option<Self> {
        let has = match isa.kind() {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => true,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => std::arch::is_aarch64_feature_detected!("dotprod"),
            Kind::Portable => true,
        };
        has.then_some(Self(isa))
    }

    /// Whether it was measured to be faster than floats on a CPU that has this and nothing better:
    /// not on an Arm, none having been at hand.
    pub fn pays(self) -> bool {
        matches!(self.0.name(), "avx2" | "avx512")
    }

    /// The instruction set.
    pub fn isa(self) -> Isa {
        self.0
    }
}

/// Weights of [`DEEP`] input channels for a block of output channels, in the order
/// `[half][output][input]`, four inputs to a half.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Weights([i8; DEEP * LANES]);

/// A 1x1 convolution of bytes ready to run.
#[derive(Clone, Debug)]
pub struct Pointwise {
    geometry: Geometry,
    posts: Vec<Post>,
    to: Option<Coding>,
    clamp: (f32, f32),
    /// `[block][input channels / DEEP]`.
    weights: Vec<Weights>,
    /// Where the sums of each block begin: the input's zero is not 0.
    start: Vec<[i32; LANES]>,
    /// From sums to floats, or to what is rounded to bytes.
    scale: Vec<Line>,
    bias: Vec<Line>,
}

/// Weights of one output channel as integers, and what they are to be multiplied with.
pub fn coded(weights: &[f32]) -> (f32, Vec<i8>) {
    // Inputs whose products AVX2 adds in sixteen bits: two neighbours of each four, of eight.
    let shared = |sign: f32, chunk: &[f32], pair: usize| -> f32 {
        let part = |w: (usize, &f32)| if w.0 % 4 / 2 == pair { (sign * w.1).max(0.0) } else { 0.0 };
        chunk.iter().enumerate().map(part).sum()
    };
    let sums = weights.chunks(DEEP).flat_map(|chunk| {
        [(1.0, 0), (1.0, 1), (-1.0, 0), (-1.0, 1)].map(|(sign, pair)| shared(sign, chunk, pair))
    });
    // Rounding adds at most one half to each of the four.
    let step = sums.fold(0.0, f32::max) / (MOST - 2.0);
    if step == 0.0 {
        return (0.0, vec![0; weights.len()]);
    }
    (step, weights.iter().map(|w| (w / step).round_ties_even() as i8).collect())
}

impl Pointwise {
    /// A convolution of inputs coded as `from`, with `weights` `[cout][cin]` and `bias` `[cout]`;
    /// the output is coded as `to`, or floats. Only floats can have more `posts` than a clamp.
    ///
    /// # Panics
    /// If the geometry is not pointwise, in one group, or a length does not match it.
    pub fn new(
        dot: Dot,
        geometry: Geometry,
        from: Coding,
        to: Option<Coding>,
        weights: &[f32],
        bias: &[f32],
        posts: Vec<Post>,
    ) -> Self {
        let g = &geometry;
        assert!(g.is_pointwise() && g.groups == 1);
        assert!(weights.len() == g.cout * g.cin && bias.len() == g.cout);
        let ((low, high), rest) = split_clamp(&posts);
        assert!(to.is_none() || rest.is_empty());
        // Floats, or what is rounded to a byte.
        let (gain, shift) = to.map_or((1.0, 0.0), |to| (to.step.recip(), f32::from(to.zero)));
        let code = |v: f32| (v * gain + shift).clamp(0.0, 255.0);
        let clamp = if to.is_some() { (code(low), code(high)) } else { (low, high) };
        let rows: Vec<(f32, Vec<i8>)> = weights.chunks_exact(g.cin).map(coded).collect();
        let start = rows.iter().map(|(_, row)| {
            let sum: i32 = row.iter().map(|w| i32::from(*w)).sum();
            sum * (dot.taken_off() - i32::from(from.zero))
        });
        let start: Vec<i32> = start.collect();
        let start = start.chunks(LANES).map(|c| std::array::from_fn(|i| *c.get(i).unwrap_or(&0)));
        let scale: Vec<f32> = rows.iter().map(|(step, _)| step * from.step * gain).collect();
        let bias: Vec<f32> = bias.iter().map(|b| b * gain + shift).collect();
        let mut packed = Vec::new();
        for block in 0..blocks(g.cout) {
            for group in 0..g.cin.div_ceil(DEEP) {
                packed.push(Weights(std::array::from_fn(|i| {
                    let output = block * LANES + i / 4 % LANES;
                    let input = group * DEEP + i / (4 * LANES) * 4 + i % 4;
                    rows.get(output).and_then(|(_, row)| row.get(input)).copied().unwrap_or(0)
                })));
            }
        }
        Self {
            start: start.collect(),
            scale: lines_of(&scale),
            bias: lines_of(&bias),
            weights: packed,
            to,
            clamp,
            posts: rest.to_vec(),
            geometry,
        }
    }

    /// The shape it was built for.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// How its output is coded; `None` if it is floats.
    pub fn to(&self) -> Option<Coding> {
        self.to
    }

    /// Whether a step reads a second input.
    pub fn has_operand(&self) -> bool {
        self.posts.iter().any(|p| p.is_binary())
    }

    /// Convolves `x` into `y`; `other` is the second input of a binary [`Post`].
    ///
    /// # Panics
    /// If a length does not match the geometry, or the output is coded.
    pub fn run(&self, dot: Dot, x: &[u8], other: Option<&[f32]>, y: &mut [f32]) {
        assert!(self.to.is_none() && other.is_none_or(|o| o.len() == y.len()));
        assert!(other.is_some() || !self.has_operand());
        self.run_into::<FLOATS, f32>(dot, x, other, y);
    }

    /// Convolves `x` into `y`.
    ///
    /// # Panics
    /// If a length does not match the geometry, or the output is not coded.
    pub fn run_to_bytes(&self, dot: Dot, x: &[u8], y: &mut [u8]) {
        assert!(self.to.is_some());
        self.run_into::<BYTES, u8>(dot, x, None, y);
    }

    fn run_into<const TO: usize, T: Send>(
        &self,
        dot: Dot,
        x: &[u8],
        other: Option<&[f32]>,
        y: &mut [T],
    ) {
        let g = &self.geometry;
        let (pixels, outputs) = (g.output_pixels(), blocks(g.cout));
        assert!(x.len() == blocks(g.cin) * pixels * LANES && y.len() == g.output_len());
        let y = Output::new(y);
        parallel::each_share(g.macs() / 2, pixels, outputs, |all, blocks| {
            // Pixels whose inputs stay near while all weights pass.
            let groups = all.len().div_ceil((NEAR / g.cin).max(48)).max(1);
            for part in 0..groups {
                let part = parallel::part(all.len(), part, groups);
                for block in blocks.clone() {
                    let first = all.start + part.start;
                    let at = (block * pixels + first) * LANES;
                    let job = Job {
                        op: self,
                        block,
                        x: x[first * LANES..].as_ptr(),
                        pitch: pixels * LANES,
                        out: y.at(at, part.len() * LANES).cast(),
                        other: other.map_or(std::ptr::null(), |o| o[at..].as_ptr()),
                        pixels: part.len(),
                    };
                    // SAFETY: `x` has the geometry's length, and `at`'s bound check covers the
                    // output, which is of the kind `TO` says; pieces write different pixels or
                    // different blocks.
                    unsafe { block_job::<TO>(dot, &job) }
                }
            }
        });
    }
}

/// The output is floats.
const FLOATS: usize = 4;
/// The output is bytes.
const BYTES: usize = 1;

/// One block of output channels over some pixels.
struct Job<'a> {
    op: &'a Pointwise,
    block: usize,
    x: *const u8,
    /// Bytes between blocks of the input.
    pitch: usize,
    /// Floats or bytes.
    out: *mut u8,
    other: *const f32,
    pixels: usize,
}

/// # Safety
/// The pointers of `job` must be valid for its pixels and the operator's channels, `out` for
/// numbers of `TO` bytes.
unsafe fn block_job<const TO: usize>(dot: Dot, job: &Job) {
    // Nearly equal tiles, as for floats.
    let tiles = job.pixels.div_ceil(dot.tile_pixels()).max(1);
    let (narrow, wider) = (job.pixels / tiles, job.pixels % tiles);
    macro_rules! tiles {
        ($pixels:expr, $($p:literal)*) => {
            match $pixels {
                $($p => tile_run::<$p, TO>,)*
                _ => return,
            }
        };
    }
    for (pixels, count, first) in
        [(narrow + 1, wider, 0), (narrow, tiles - wider, wider * (narrow + 1))]
    {
        if count > 0 && pixels > 0 {
            let run = tiles!(pixels, 1 2 3 4 5 6 7 8 9 10 11 12);
            // SAFETY: the two runs of tiles cover exactly the job's pixels.
            unsafe { run(dot, job, first, count) }
        }
    }
}

/// `count` neighbouring tiles of `P` pixels from `first` on.
///
/// # Safety
/// As [`block_job`].
unsafe fn tile_run<const P: usize, const TO: usize>(
    dot: Dot,
    job: &Job,
    first: usize,
    count: usize,
) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn vnni<const P: usize, const TO: usize>(isa: Isa, job: &Job, first: usize, n: usize) {
        // SAFETY: passed on to the caller; the instruction set is enabled here.
        unsafe { tiles::<x86::Vnni, P, TO>(isa, job, first, n) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const P: usize, const TO: usize>(isa: Isa, job: &Job, first: usize, n: usize) {
        // SAFETY: as above.
        unsafe { tiles::<x86::Avx2, P, TO>(isa, job, first, n) }
    }
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn neon<const P: usize, const TO: usize>(isa: Isa, job: &Job, first: usize, n: usize) {
        // SAFETY: as above.
        unsafe { tiles::<arm::Neon, P, TO>(isa, job, first, n) }
    }
    // SAFETY: `dot` proves that the CPU has the instructions; the rest is the caller's.
    unsafe {
        match dot.0.kind() {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => vnni::<P, TO>(dot.0, job, first, count),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => avx2::<P, TO>(dot.0, job, first, count),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => neon::<P, TO>(dot.0, job, first, count),
            Kind::Portable => tiles::<Portable, P, TO>(dot.0, job, first, count),
        }
    }
}

impl Dot {
    /// Pixels of a register tile.
    fn tile_pixels(self) -> usize {
        match self.0.kind() {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => x86::Vnni::PIXELS,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => x86::Avx2::PIXELS,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => arm::Neon::PIXELS,
            Kind::Portable => Portable::PIXELS,
        }
    }

    /// What the instructions take off each byte of the input.
    fn taken_off(self) -> i32 {
        match self.0.kind() {
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => arm::TAKEN_OFF,
            _ => 0,
        }
    }
}

/// # Safety
/// As [`block_job`].
#[inline(always)]
unsafe fn tiles<S: Sums, const P: usize, const TO: usize>(
    isa: Isa,
    job: &Job,
    first: usize,
    count: usize,
) {
    if P > S::PIXELS {
        return; // never asked for: no code for tiles that do not fit the registers
    }
    for index in 0..count {
        let at = (first + index * P) * LANES;
        // SAFETY: the caller's.
        unsafe { tile::<S, P, TO>(job, at) }
        if TO == FLOATS && !job.op.posts.is_empty() {
            let (out, other) = (job.out.cast::<f32>(), job.other.wrapping_add(at));
            // SAFETY: the tile just written; `other` matches it, and null is not read.
            unsafe { apply_all(isa, &job.op.posts, out.add(at), other, P) }
        }
    }
}

/// # Safety
/// As [`block_job`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // unrolled: registers, not memory
unsafe fn tile<S: Sums, const P: usize, const TO: usize>(job: &Job, at: usize) {
    let groups = job.op.geometry.cin.div_ceil(DEEP);
    // SAFETY: inputs and outputs are the caller's; the rest has a line for each block.
    unsafe {
        let mut sum = [S::load(job.op.start.as_ptr().add(job.block).cast()); P];
        let mut weights = job.op.weights.as_ptr().add(job.block * groups).cast::<i8>();
        for group in 0..groups {
            let x = job.x.add(group / 2 * job.pitch + group % 2 * DEEP + at);
            let w = S::weights(weights);
            for p in 0..P {
                sum[p] = sum[p].add(x.add(p * LANES), w);
            }
            weights = weights.add(DEEP * LANES);
        }
        let scale = S::Floats::load(job.op.scale.as_ptr().add(job.block).cast());
        let bias = S::Floats::load(job.op.bias.as_ptr().add(job.block).cast());
        let (low, high) = (S::Floats::splat(job.op.clamp.0), S::Floats::splat(job.op.clamp.1));
        for p in 0..P {
            let y = bias.fma(sum[p].floats(), scale).max(low).min(high);
            let at = at + p * LANES;
            if TO == FLOATS {
                y.store(job.out.cast::<f32>().add(at));
            } else {
                y.store_bytes(job.out.add(at));
            }
        }
    }
}

/// Sixteen exact sums of products, one for each output channel of a block.
///
/// # Safety
/// The methods may only run on a CPU with the instructions, which a [`Dot`] proves.
unsafe trait Sums: Copy {
    /// Pixels of a register tile.
    const PIXELS: usize;
    type Weights: Copy;
    type Floats: Bytes;

    /// From sixteen integers.
    unsafe fn load(start: *const i32) -> Self;
    /// From [`DEEP`] times sixteen weights.
    unsafe fn weights(w: *const i8) -> Self::Weights;
    /// Adds the products of [`DEEP`] inputs.
    unsafe fn add(self, x: *const u8, w: Self::Weights) -> Self;
    /// Rounded to the nearest floats.
    unsafe fn floats(self) -> Self::Floats;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Sums;
    use crate::vision::fast::simd;

    /// AVX-512 VNNI: four products and their sum in one instruction.
    #[derive(Clone, Copy)]
    pub struct Vnni(__m512i);

    // SAFETY (all methods): the trait's contract gives the instructions and the pointers.
    unsafe impl Sums for Vnni {
        const PIXELS: usize = 12;
        type Weights = [__m512i; 2];
        type Floats = simd::Avx512;

        #[inline(always)]
        unsafe fn load(start: *const i32) -> Self {
            unsafe { Self(_mm512_loadu_si512(start.cast())) }
        }
        #[inline(always)]
        unsafe fn weights(w: *const i8) -> Self::Weights {
            unsafe { [_mm512_loadu_si512(w.cast()), _mm512_loadu_si512(w.add(64).cast())] }
        }
        #[inline(always)]
        unsafe fn add(self, x: *const u8, w: Self::Weights) -> Self {
            unsafe {
                let first = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
                let second = _mm512_set1_epi32(x.add(4).cast::<i32>().read_unaligned());
                let sum = _mm512_dpbusd_epi32(self.0, first, w[0]);
                Self(_mm512_dpbusd_epi32(sum, second, w[1]))
            }
        }
        #[inline(always)]
        unsafe fn floats(self) -> Self::Floats {
            unsafe { simd::Avx512([_mm512_cvtepi32_ps(self.0)]) }
        }
    }

    /// AVX2: pairs of products, which fit sixteen bits, and so do the sums of two pairs.
    #[derive(Clone, Copy)]
    pub struct Avx2([__m256i; 2]);

    // SAFETY (all methods): as above.
    unsafe impl Sums for Avx2 {
        const PIXELS: usize = 4;
        type Weights = [__m256i; 4];
        type Floats = simd::Avx2;

        #[inline(always)]
        unsafe fn load(start: *const i32) -> Self {
            let part = |i| unsafe { _mm256_loadu_si256(start.add(i).cast()) };
            Self([part(0), part(8)])
        }
        #[inline(always)]
        unsafe fn weights(w: *const i8) -> Self::Weights {
            unsafe {
                [
                    _mm256_loadu_si256(w.cast()),
                    _mm256_loadu_si256(w.add(32).cast()),
                    _mm256_loadu_si256(w.add(64).cast()),
                    _mm256_loadu_si256(w.add(96).cast()),
                ]
            }
        }
        #[inline(always)]
        unsafe fn add(mut self, x: *const u8, w: Self::Weights) -> Self {
            unsafe {
                let first = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                let second = _mm256_set1_epi32(x.add(4).cast::<i32>().read_unaligned());
                for half in 0..2 {
                    let pairs = _mm256_add_epi16(
                        _mm256_maddubs_epi16(first, w[half]),
                        _mm256_maddubs_epi16(second, w[2 + half]),
                    );
                    let four = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                    self.0[half] = _mm256_add_epi32(self.0[half], four);
                }
                self
            }
        }
        #[inline(always)]
        unsafe fn floats(self) -> Self::Floats {
            unsafe { simd::Avx2([_mm256_cvtepi32_ps(self.0[0]), _mm256_cvtepi32_ps(self.0[1])]) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::arch::asm;

    use super::Sums;
    use crate::vision::fast::simd;

    /// NEON multiplies signed bytes only, so inputs are taken from -128 on.
    pub const TAKEN_OFF: i32 = 128;

    /// NEON with dot products: four products and their sum, for four channels at a time.
    #[derive(Clone, Copy)]
    pub struct Neon([int32x4_t; 4]);

    // SAFETY (all methods): the trait's contract gives the instructions and the pointers.
    unsafe impl Sums for Neon {
        const PIXELS: usize = 5;
        type Weights = [int8x16_t; 8];
        type Floats = simd::Neon;

        #[inline(always)]
        unsafe fn load(start: *const i32) -> Self {
            unsafe {
                Self([
                    vld1q_s32(start),
                    vld1q_s32(start.add(4)),
                    vld1q_s32(start.add(8)),
                    vld1q_s32(start.add(12)),
                ])
            }
        }
        #[inline(always)]
        unsafe fn weights(w: *const i8) -> Self::Weights {
            unsafe {
                let mut all = [vdupq_n_s8(0); 8];
                for i in 0..8 {
                    all[i] = vld1q_s8(w.add(16 * i));
                }
                all
            }
        }
        #[inline(always)]
        unsafe fn add(mut self, x: *const u8, w: Self::Weights) -> Self {
            unsafe {
                let x = vreinterpret_s8_u8(veor_u8(vld1_u8(x), vdup_n_u8(128)));
                // The intrinsic for this instruction is not stable yet.
                for i in 0..4 {
                    asm!(
                        "sdot {sum:v}.4s, {first:v}.16b, {x:v}.4b[0]",
                        "sdot {sum:v}.4s, {second:v}.16b, {x:v}.4b[1]",
                        sum = inout(vreg) self.0[i],
                        first = in(vreg) w[i],
                        second = in(vreg) w[4 + i],
                        x = in(vreg) x,
                        options(pure, nomem, nostack, preserves_flags)
                    );
                }
                self
            }
        }
        #[inline(always)]
        unsafe fn floats(self) -> Self::Floats {
            unsafe { simd::Neon(self.0.map(|v| vcvtq_f32_s32(v))) }
        }
    }
}

/// Plain Rust.
#[derive(Clone, Copy)]
struct Portable([i32; LANES]);

// SAFETY: the trait's contract gives the pointers.
unsafe impl Sums for Portable {
    const PIXELS: usize = 4;
    type Weights = *const i8;
    type Floats = super::simd::Portable;

    #[inline(always)]
    unsafe fn load(start: *const i32) -> Self {
        // SAFETY: sixteen integers.
        Self(std::array::from_fn(|i| unsafe { *start.add(i) }))
    }
    #[inline(always)]
    unsafe fn weights(w: *const i8) -> Self::Weights {
        w
    }
    #[inline(always)]
    unsafe fn add(mut self, x: *const u8, w: Self::Weights) -> Self {
        for (i, sum) in self.0.iter_mut().enumerate() {
            for k in 0..DEEP {
                // SAFETY: `DEEP` inputs, and for each of them sixteen weights.
                let (x, w) = unsafe { (*x.add(k), *w.add(k / 4 * 4 * LANES + 4 * i + k % 4)) };
                *sum += i32::from(x) * i32::from(w);
            }
        }
        self
    }
    #[inline(always)]
    unsafe fn floats(self) -> Self::Floats {
        super::simd::Portable(self.0.map(|v| v as f32))
    }
}
