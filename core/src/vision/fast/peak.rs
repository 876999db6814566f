//! What one core can do at most: the yardstick for kernels.

use std::hint::black_box;

use super::simd::{Isa, LANES, Lanes, dispatch};

/// Multiply-adds of each chain in one [`multiply_adds`].
const ROUNDS: usize = 1 << 15;

/// Multiplies and adds in registers, touching no memory, and returns how many multiply-adds that
/// were. Whoever has a clock divides: no kernel can be faster.
pub fn multiply_adds(isa: Isa) -> usize {
    // Independent chains hide the latency of a multiply-add (four cycles, two or more at a time)
    // and must fit into the registers: as many as a convolution's tile.
    match isa.tile_pixels() * isa.tile_blocks() {
        12.. => burst::<12>(isa),
        _ => burst::<6>(isa),
    }
}

fn burst<const CHAINS: usize>(isa: Isa) -> usize {
    let mut sums = [0.0_f32; LANES];
    // SAFETY: `isa` proves the instruction set; `sums` holds one `Lanes`.
    unsafe { chains::<CHAINS>(isa, black_box(1e-9), black_box(0.5), sums.as_mut_ptr()) };
    black_box(sums);
    CHAINS * ROUNDS * LANES
}

dispatch! {
    /// # Safety
    /// `isa` must be this CPU's; `sums` must be valid for a `Lanes`.
    fn chains[CHAINS](a: f32, b: f32, sums: *mut f32) = chains_of
}

#[inline(always)]
unsafe fn chains_of<L: Lanes, const CHAINS: usize>(a: f32, b: f32, sums: *mut f32) {
    // SAFETY: the caller's.
    unsafe {
        let (a, b) = (L::splat(a), L::splat(b));
        let mut chain = [L::splat(0.0); CHAINS];
        // Chains that begin alike would be computed once.
        for (start, sum) in chain.iter_mut().enumerate() {
            *sum = L::splat(black_box(start as f32));
        }
        for _ in 0..ROUNDS {
            for sum in &mut chain {
                *sum = sum.fma(a, b);
            }
        }
        let mut total = L::splat(0.0);
        for sum in chain {
            total = total.add(sum);
        }
        total.store(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_multiplies_and_adds() {
        for isa in Isa::available() {
            let done = multiply_adds(isa);
            assert!(done >= 4 * ROUNDS * LANES, "{}", isa.name());
        }
    }
}
