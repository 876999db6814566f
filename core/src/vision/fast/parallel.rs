//! Work split over the thread pool the caller runs in, if any.
//!
//! The core starts no thread. Whoever wants more than one runs the whole inference inside a rayon
//! pool (`pool.install(|| network.run(picture))`), so that an operator finds itself on a worker
//! and its pieces need no hop to another pool. Outside of a pool everything runs on the caller's
//! thread. Pieces are cut so that no output depends on how many there are.

use rayon::prelude::*;

/// Multiply-adds that are worth handing to another thread: some ten microseconds of work.
const GRAIN: usize = 500_000;

/// Threads that [`each`] may use here.
pub fn threads() -> usize {
    if rayon::current_thread_index().is_some() { rayon::current_num_threads() } else { 1 }
}

/// Pieces to cut work of `macs` multiply-adds into, at most `most`. More than threads, so that a
/// thread that is interrupted holds up one small piece and not its whole share.
pub fn pieces(macs: usize, most: usize) -> usize {
    match threads() {
        1 => 1,
        n => (macs / GRAIN).min(3 * n).min(most).max(1),
    }
}

/// The `i`th of `n` nearly equal parts of `0..len`.
pub fn part(len: usize, i: usize, n: usize) -> std::ops::Range<usize> {
    len * i / n..len * (i + 1) / n
}

/// Runs `work(0)` to `work(n - 1)`, in any order.
pub fn each(n: usize, work: impl Fn(usize) + Sync + Send) {
    // Outside of a pool, rayon would start its global one.
    if n <= 1 || threads() == 1 {
        (0..n).for_each(work);
    } else {
        (0..n).into_par_iter().with_max_len(1).for_each(work);
    }
}

/// An output that several pieces write, each its own places.
#[derive(Clone, Copy)]
pub struct Output {
    start: *mut f32,
    len: usize,
}

// SAFETY: a pointer may be sent and shared; writing through it is `unsafe` at its use.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// All of `y`.
    pub fn new(y: &mut [f32]) -> Self {
        Self { start: y.as_mut_ptr(), len: y.len() }
    }

    /// The place of float `at`, from where `floats` more may be written.
    ///
    /// # Panics
    /// If that is out of bounds.
    pub fn at(&self, at: usize, floats: usize) -> *mut f32 {
        assert!(at + floats <= self.len);
        self.start.wrapping_add(at)
    }
}
