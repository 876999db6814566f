//! Values as bytes: sixteen at once, and how a byte stands for a number.

use super::parallel::{self, Output};
use super::simd::{Isa, LANES, Lanes, Portable, dispatch};

/// How bytes stand for numbers: `step * (byte - zero)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coding {
    /// Between neighbouring bytes.
    pub step: f32,
    /// The byte that stands for 0.
    pub zero: u8,
}

impl Coding {
    /// For numbers from `low` to `high`; others are taken for the nearer end. Zero, which is what
    /// padding holds, is exact. `None` if there is nothing between the two.
    pub fn of(low: f32, high: f32) -> Option<Self> {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let step = (high - low) / 255.0;
        let sound = step.is_normal() && step.recip().is_normal();
        sound.then(|| Self { step, zero: (-low / step).round_ties_even() as u8 })
    }
}

/// Floats to and from bytes, sixteen at once.
///
/// # Safety
/// As [`Lanes`]; pointers must be valid for sixteen bytes.
pub unsafe trait Bytes: Lanes {
    /// Sixteen bytes as floats.
    unsafe fn load_bytes(p: *const u8) -> Self;
    /// Rounded to the nearest integer, halves to the even one. Outside of `0..=255` it depends on
    /// the CPU.
    unsafe fn store_bytes(self, p: *mut u8);
}

/// Floats in [blocks](super::blocks) into bytes in blocks.
#[derive(Clone, Debug)]
pub struct ToBytes(pub Coding);

impl ToBytes {
    /// Turns `x` into bytes.
    ///
    /// # Panics
    /// If lengths differ or are no multiple of sixteen.
    pub fn run(&self, isa: Isa, x: &[f32], y: &mut [u8]) {
        assert!(x.len() == y.len() && y.len().is_multiple_of(LANES));
        let n = y.len() / LANES;
        let pieces = parallel::pieces(x.len() * 4, n);
        let y = Output::new(y);
        parallel::each(pieces, |i| {
            let part = parallel::part(n, i, pieces);
            let count = part.len() * LANES;
            let (x, y) = (&x[part.start * LANES..][..count], y.at(part.start * LANES, count));
            // SAFETY: both are `part` long; pieces write different parts.
            unsafe { to_bytes(isa, self.0, x.as_ptr(), y, part.len()) }
        });
    }
}

dispatch! {
    /// # Safety
    /// `x` and `y` must be valid for `16 * n` numbers, and nobody else may write `y`.
    fn to_bytes[](coding: Coding, x: *const f32, y: *mut u8, n: usize) = to_bytes_kernel
}

#[inline(always)]
unsafe fn to_bytes_kernel<L: Bytes>(coding: Coding, x: *const f32, y: *mut u8, n: usize) {
    // SAFETY: the caller's.
    unsafe {
        let (scale, zero) = (L::splat(coding.step.recip()), L::splat(f32::from(coding.zero)));
        let (low, high) = (L::splat(0.0), L::splat(255.0));
        for i in 0..n {
            let v = zero.fma(L::load(x.add(i * LANES)), scale);
            v.max(low).min(high).store_bytes(y.add(i * LANES));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Bytes;
    use crate::vision::fast::simd::{Avx2, Avx512};

    // SAFETY: the trait's contract gives the instructions and the pointers.
    unsafe impl Bytes for Avx512 {
        #[inline(always)]
        unsafe fn load_bytes(p: *const u8) -> Self {
            // SAFETY: the caller's.
            unsafe { Self([_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())))]) }
        }
        #[inline(always)]
        unsafe fn store_bytes(self, p: *mut u8) {
            // SAFETY: the caller's.
            unsafe {
                let integers = _mm512_cvtps_epi32(self.0[0]);
                // What is not a number has become the least integer.
                let integers = _mm512_max_epi32(integers, _mm512_setzero_si512());
                _mm_storeu_si128(p.cast(), _mm512_cvtusepi32_epi8(integers));
            }
        }
    }

    // SAFETY: as above.
    unsafe impl Bytes for Avx2 {
        #[inline(always)]
        unsafe fn load_bytes(p: *const u8) -> Self {
            // SAFETY: the caller's.
            unsafe {
                let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
                let high = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8).cast()));
                Self([_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)])
            }
        }
        #[inline(always)]
        unsafe fn store_bytes(self, p: *mut u8) {
            // SAFETY: the caller's.
            unsafe {
                let [low, high] = self.0.map(|v| _mm256_cvtps_epi32(v));
                // Both packings work within halves: four of each at a time.
                let shorts = _mm256_packus_epi32(low, high);
                let bytes = _mm256_packus_epi16(shorts, shorts);
                let (first, second) =
                    (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
                _mm_storeu_si128(p.cast(), _mm_unpacklo_epi32(first, second));
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::Bytes;
    use crate::vision::fast::simd::Neon;

    // SAFETY: NEON is part of the baseline; the trait's contract gives the pointers.
    unsafe impl Bytes for Neon {
        #[inline(always)]
        unsafe fn load_bytes(p: *const u8) -> Self {
            // SAFETY: the caller's.
            unsafe {
                let bytes = vld1q_u8(p);
                let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
                Self([
                    vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
                    vcvtq_f32_u32(vmovl_high_u16(low)),
                    vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
                    vcvtq_f32_u32(vmovl_high_u16(high)),
                ])
            }
        }
        #[inline(always)]
        unsafe fn store_bytes(self, p: *mut u8) {
            // SAFETY: the caller's.
            unsafe {
                let [a, b, c, d] = self.0;
                let short = |v| vqmovun_s32(vcvtnq_s32_f32(v));
                let low = vcombine_u16(short(a), short(b));
                let high = vcombine_u16(short(c), short(d));
                vst1q_u8(p, vcombine_u8(vqmovn_u16(low), vqmovn_u16(high)));
            }
        }
    }
}

// SAFETY: the trait's contract gives the pointers.
unsafe impl Bytes for Portable {
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self {
        // SAFETY: sixteen bytes.
        Self(std::array::from_fn(|i| unsafe { f32::from(*p.add(i)) }))
    }
    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8) {
        for (i, v) in self.0.iter().enumerate() {
            // SAFETY: sixteen bytes.
            unsafe { *p.add(i) = v.round_ties_even() as u8 }
        }
    }
}
