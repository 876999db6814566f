//! Sixteen floats at once, on whatever the CPU has: the only vector type the kernels know.
//!
//! Sixteen is the width of a [block](super::blocks) of channels on every CPU: one AVX-512
//! register, two AVX registers or four NEON registers. Kernels are written once over [`Lanes`]
//! and compiled per instruction set by [`dispatch!`].
//!
//! Kernels and `Lanes` methods are `#[inline(always)]` and take no closures: a call that is not
//! inlined into its `#[target_feature]` function falls back to baseline code, twenty times slower.

/// Floats in a [`Lanes`].
pub const LANES: usize = 16;

/// Coefficients of [`Lanes::exp2_of_product`], constant first: minimax, near those of `2^x`.
#[allow(clippy::approx_constant, clippy::excessive_precision)]
const POW2: [f32; 6] = [1.0, 0.693147, 0.24022247, 0.05550711, 0.009671292, 0.0013269535];

/// Sixteen `f32`.
///
/// # Safety
/// The methods may only run on a CPU with the instruction set of the implementing type, which an
/// [`Isa`] proves. Pointers must be valid for sixteen `f32`; they need no alignment.
pub unsafe trait Lanes: Copy {
    /// Pixels of a convolution's register tile.
    const PIXELS: usize;
    /// Blocks of output channels of a convolution's register tile.
    const BLOCKS: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn add(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    /// The smaller; a NaN in `self` stays.
    unsafe fn min(self, o: Self) -> Self;
    /// The larger; a NaN in `self` stays.
    unsafe fn max(self, o: Self) -> Self;
    /// `self + a * b`.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    /// `1 / self` within 2 ulp, for normal values.
    unsafe fn recip(self) -> Self;
    /// `2^n`, given the bit pattern of `n + 127 + 1.5 * 2^23` for an integer `n` in `-126..=127`.
    unsafe fn pow2(self) -> Self;

    /// `e^self` within `1e-6` of itself; saturates outside `-87..=87`.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the caller has proved the instruction set; only registers are touched.
        unsafe {
            let x = self.min(Self::splat(87.0)).max(Self::splat(-87.0));
            x.exp2_of_product(Self::splat(std::f32::consts::LOG2_E))
        }
    }

    /// `2^(self * scale)` for products in `-126..=127`.
    #[inline(always)]
    unsafe fn exp2_of_product(self, scale: Self) -> Self {
        // SAFETY: as above.
        unsafe {
            // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits; 127 more makes
            // it an exponent. What is left lies in -0.5..=0.5.
            let round = Self::splat(12_582_912.0 + 127.0);
            let biased = round.fma(self, scale);
            let minus_n = round.add(biased.mul(Self::splat(-1.0)));
            let r = minus_n.fma(self, scale);
            // Minimax polynomial of 2^r, relative error below 2e-7.
            let p = Self::splat(POW2[4]).fma(r, Self::splat(POW2[5]));
            let p = Self::splat(POW2[3]).fma(r, p);
            let p = Self::splat(POW2[2]).fma(r, p);
            let p = Self::splat(POW2[1]).fma(r, p);
            let p = Self::splat(POW2[0]).fma(r, p);
            p.mul(biased.pow2())
        }
    }

    /// The logistic function `1 / (1 + e^-self)`, within `2e-7`.
    #[inline(always)]
    unsafe fn sigmoid(self) -> Self {
        // SAFETY: as above.
        unsafe {
            let x = self.min(Self::splat(87.0)).max(Self::splat(-87.0));
            let e = x.exp2_of_product(Self::splat(-std::f32::consts::LOG2_E));
            e.add(Self::splat(1.0)).recip()
        }
    }
}

/// An instruction set this CPU is known to have: holding one is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

impl Isa {
    /// Plain Rust: correct everywhere (and under Miri), but slower than plain tract. For tests.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// The best one of this CPU; `None` if it has none for which kernels are written.
    pub fn detect() -> Option<Self> {
        Self::available().into_iter().find(|isa| *isa != Self::PORTABLE)
    }

    /// All that this CPU has, best first, [`Isa::PORTABLE`] last.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                found.push(Self(Kind::Avx512));
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Self(Kind::Avx2));
            }
        }
        // NEON is part of the aarch64 baseline.
        #[cfg(target_arch = "aarch64")]
        found.push(Self(Kind::Neon));
        found.push(Self::PORTABLE);
        found
    }

    /// Name for people: `avx512`, `avx2`, `neon` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
            Kind::Portable => "portable",
        }
    }

    /// [`Lanes::PIXELS`].
    pub fn tile_pixels(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => Avx512::PIXELS,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => Avx2::PIXELS,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => Neon::PIXELS,
            Kind::Portable => Portable::PIXELS,
        }
    }

    /// [`Lanes::BLOCKS`].
    pub fn tile_blocks(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => Avx512::BLOCKS,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => Avx2::BLOCKS,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => Neon::BLOCKS,
            Kind::Portable => Portable::BLOCKS,
        }
    }

    pub(super) fn kind(self) -> Kind {
        self.0
    }
}

/// `dispatch! { fn name[A, B](args) = kernel }` defines `name::<A, B>(isa, args)`, which runs
/// `unsafe fn kernel<L: Lanes, const A: usize, const B: usize>(args)` compiled for `isa`.
macro_rules! dispatch {
    ($(#[$attr:meta])* $vis:vis fn $name:ident[$($n:ident),*]($($arg:ident: $ty:ty),* $(,)?)
        = $kernel:ident) => {
        $(#[$attr])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name<$(const $n: usize),*>(
            isa: $crate::vision::fast::simd::Isa, $($arg: $ty),*
        ) {
            use $crate::vision::fast::simd::Kind;
            #[cfg(target_arch = "x86_64")]
            use $crate::vision::fast::simd::{Avx2, Avx512};
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512<$(const $n: usize),*>($($arg: $ty),*) {
                // SAFETY: passed on to the caller; the instruction set is enabled here.
                unsafe { $kernel::<Avx512, $($n),*>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2<$(const $n: usize),*>($($arg: $ty),*) {
                // SAFETY: as above.
                unsafe { $kernel::<Avx2, $($n),*>($($arg),*) }
            }
            // SAFETY: `isa` proves that the CPU has the instructions; the rest is the caller's.
            unsafe {
                match isa.kind() {
                    #[cfg(target_arch = "x86_64")]
                    Kind::Avx512 => avx512::<$($n),*>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Kind::Avx2 => avx2::<$($n),*>($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    Kind::Neon => {
                        $kernel::<$crate::vision::fast::simd::Neon, $($n),*>($($arg),*)
                    }
                    Kind::Portable => {
                        $kernel::<$crate::vision::fast::simd::Portable, $($n),*>($($arg),*)
                    }
                }
            }
        }
    };
}
pub(super) use dispatch;

/// Implements [`Lanes`] for an array of registers from the instructions for one of them.
macro_rules! lanes {
    ($(#[$attr:meta])* $name:ident: [$register:ty; $count:literal] of $width:literal,
     tile $pixels:literal x $blocks:literal,
     $splat:ident $load:ident $store:ident $add:ident $mul:ident $min:ident $max:ident,
     |$c:ident, $a:ident, $b:ident| $fma:expr, |$x:ident| $recip:expr, |$t:ident| $pow2:expr) => {
        $(#[$attr])*
        #[derive(Clone, Copy)]
        pub struct $name(pub(in crate::vision::fast) [$register; $count]);

        #[allow(unused_unsafe)] // some of the operations are safe functions
        // SAFETY (all methods): the trait's contract gives the instruction set and the pointers;
        // register `i` covers the floats `i * width..(i + 1) * width`, sixteen in all.
        unsafe impl Lanes for $name {
            const PIXELS: usize = $pixels;
            const BLOCKS: usize = $blocks;
            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                Self([unsafe { $splat(x) }; $count])
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> Self {
                let mut r = unsafe { [$splat(0.0); $count] };
                for i in 0..$count {
                    r[i] = unsafe { $load(p.add(i * $width)) };
                }
                Self(r)
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut f32) {
                for i in 0..$count {
                    unsafe { $store(p.add(i * $width), self.0[i]) };
                }
            }
            // Of a pair with a NaN, x86 takes the second.
            lanes!(@binary $count add $add, mul $mul, min $min, max $max);
            #[inline(always)]
            unsafe fn fma(mut self, a: Self, b: Self) -> Self {
                for i in 0..$count {
                    let ($c, $a, $b) = (self.0[i], a.0[i], b.0[i]);
                    self.0[i] = unsafe { $fma };
                }
                self
            }
            #[inline(always)]
            unsafe fn recip(mut self) -> Self {
                for i in 0..$count {
                    let $x = self.0[i];
                    self.0[i] = unsafe { $recip };
                }
                self
            }
            #[inline(always)]
            unsafe fn pow2(mut self) -> Self {
                for i in 0..$count {
                    let $t = self.0[i];
                    self.0[i] = unsafe { $pow2 };
                }
                self
            }
        }
    };
    (@binary $count:literal $($method:ident $op:ident),*) => {
        $(#[inline(always)]
        unsafe fn $method(mut self, o: Self) -> Self {
            for i in 0..$count {
                self.0[i] = unsafe { $op(o.0[i], self.0[i]) };
            }
            self
        })*
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    lanes! {
        /// AVX-512F: 32 registers, 24 of them accumulators.
        Avx512: [__m512; 1] of 16, tile 12 x 2,
        _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps
        _mm512_add_ps _mm512_mul_ps _mm512_min_ps _mm512_max_ps,
        |c, a, b| _mm512_fmadd_ps(a, b, c),
        // One Newton step on the 14-bit estimate.
        |x| {
            let r = _mm512_rcp14_ps(x);
            _mm512_mul_ps(r, _mm512_fnmadd_ps(x, r, _mm512_set1_ps(2.0)))
        },
        |t| _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(t)))
    }

    lanes! {
        /// AVX2 with FMA: 16 registers, 12 of them accumulators.
        Avx2: [__m256; 2] of 8, tile 6 x 1,
        _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps
        _mm256_add_ps _mm256_mul_ps _mm256_min_ps _mm256_max_ps,
        |c, a, b| _mm256_fmadd_ps(a, b, c),
        |x| _mm256_div_ps(_mm256_set1_ps(1.0), x),
        |t| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(t)))
    }
}
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::Lanes;

    lanes! {
        /// NEON: 32 registers, 24 of them accumulators.
        Neon: [float32x4_t; 4] of 4, tile 6 x 1,
        vdupq_n_f32 vld1q_f32 vst1q_f32
        vaddq_f32 vmulq_f32 vminq_f32 vmaxq_f32,
        |c, a, b| vfmaq_f32(c, a, b),
        // Two Newton steps on the 8-bit estimate.
        |x| {
            let r = vrecpeq_f32(x);
            let r = vmulq_f32(r, vrecpsq_f32(x, r));
            vmulq_f32(r, vrecpsq_f32(x, r))
        },
        |t| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vreinterpretq_s32_f32(t)))
    }
}
#[cfg(target_arch = "aarch64")]
pub use arm::Neon;

mod portable {
    use super::Lanes;

    unsafe fn load(p: *const f32) -> f32 {
        // SAFETY: the caller's.
        unsafe { *p }
    }
    unsafe fn store(p: *mut f32, x: f32) {
        // SAFETY: the caller's.
        unsafe { *p = x }
    }
    fn splat(x: f32) -> f32 {
        x
    }
    fn add(a: f32, b: f32) -> f32 {
        a + b
    }
    fn mul(a: f32, b: f32) -> f32 {
        a * b
    }
    fn min(a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    fn max(a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }

    lanes! {
        /// Plain Rust.
        Portable: [f32; 16] of 1, tile 4 x 1,
        splat load store add mul min max,
        |c, a, b| f32::mul_add(a, b, c),
        |x| 1.0 / x,
        |t| f32::from_bits(t.to_bits() << 23)
    }
}
pub use portable::Portable;
