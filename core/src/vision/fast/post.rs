//! What follows a convolution element by element, done while its output is still in the cache.

use super::simd::{LANES, Lanes, dispatch};

/// One step on each output element `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Post {
    /// `x` kept within `low..=high`.
    Clamp(f32, f32),
    /// `scale * x + offset`.
    Affine(f32, f32),
    /// `x / (1 + e^-x)`.
    Silu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `x` where positive, else `slope * x`.
    Leaky(f32),
    /// `x * (scale * x + offset)` with the bracket clamped to `0..=1`.
    HardSwish(f32, f32),
    /// Plus the element at the same place of a second input.
    Residual,
    /// Times the element at the same place of a second input.
    Product,
}

impl Post {
    /// Whether the step reads a second input.
    pub fn is_binary(self) -> bool {
        matches!(self, Self::Residual | Self::Product)
    }
}

/// A [`Post::Clamp`] that changes nothing.
pub const UNCLAMPED: (f32, f32) = (f32::NEG_INFINITY, f32::INFINITY);

/// The clamp that comes first, which kernels do in registers, and what is left after it.
pub fn split_clamp(posts: &[Post]) -> ((f32, f32), &[Post]) {
    match posts {
        [Post::Clamp(low, high), rest @ ..] => ((*low, *high), rest),
        _ => (UNCLAMPED, posts),
    }
}

/// Runs `posts` over the `16 * n` floats at `y`; `other` is the second input's place that
/// matches `y`.
///
/// # Safety
/// `y` must be valid for `16 * n` floats, and so must `other` if a step is binary.
#[inline(always)]
pub unsafe fn apply<L: Lanes>(posts: &[Post], y: *mut f32, other: *const f32, n: usize) {
    /// The loop over all lanes, written out per step so that each is one straight kernel.
    macro_rules! each {
        (|$v:ident, $at:ident| $body:expr) => {
            for i in 0..n {
                let $at = i * LANES;
                let $v = L::load(y.add($at));
                $body.store(y.add($at));
            }
        };
    }
    for post in posts {
        // SAFETY: `i < n` in every loop, and the caller vouches for `n` blocks.
        unsafe {
            let (zero, one) = (L::splat(0.0), L::splat(1.0));
            match *post {
                Post::Clamp(low, high) => {
                    let (low, high) = (L::splat(low), L::splat(high));
                    each!(|v, _at| v.max(low).min(high));
                }
                Post::Affine(scale, offset) => {
                    let (scale, offset) = (L::splat(scale), L::splat(offset));
                    each!(|v, _at| offset.fma(v, scale));
                }
                Post::Silu => each!(|v, _at| v.mul(v.sigmoid())),
                Post::Sigmoid => each!(|v, _at| v.sigmoid()),
                Post::Leaky(slope) => {
                    let slope = L::splat(slope);
                    each!(|v, _at| v.max(zero).fma(v.min(zero), slope));
                }
                Post::HardSwish(scale, offset) => {
                    let (scale, offset) = (L::splat(scale), L::splat(offset));
                    each!(|v, _at| v.mul(offset.fma(v, scale).max(zero).min(one)));
                }
                Post::Residual => each!(|v, at| v.add(L::load(other.add(at)))),
                Post::Product => each!(|v, at| v.mul(L::load(other.add(at)))),
            }
        }
    }
}

#[inline(always)]
unsafe fn apply_kernel<L: Lanes>(posts: &[Post], y: *mut f32, other: *const f32, n: usize) {
    // SAFETY: the caller's.
    unsafe { apply::<L>(posts, y, other, n) }
}

dispatch! {
    /// [`apply`] for a given instruction set.
    ///
    /// # Safety
    /// As [`apply`].
    pub fn apply_all[](posts: &[Post], y: *mut f32, other: *const f32, n: usize) = apply_kernel
}
