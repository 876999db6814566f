//! Work split over the thread pool the caller runs in, if any.
//!
//! The core starts no thread. Whoever wants more than one runs the whole inference inside a rayon
//! pool (`pool.install(|| network.run())`). Its other threads are then called together once for the
//! whole inference ([`together`]) and wait for pieces awake: an operator lasts some ten
//! microseconds, and waking a sleeping thread for each takes as long. Outside of a pool everything
//! runs on the caller's thread. Pieces are cut so that no output depends on how many there are.

use std::cell::Cell;
use std::hint::spin_loop;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// Multiply-adds that are worth handing to another thread: some microseconds of work.
const GRAIN: usize = 250_000;
/// Looks for a piece before a waiting thread lets others have its core for a moment.
const PATIENCE: u32 = 1 << 9;

thread_local! {
    /// The threads that wait for pieces of what this one does.
    static CREW: Cell<Option<*const Crew>> = const { Cell::new(None) };
}

/// Threads that wait for pieces, and what they look at.
struct Crew {
    threads: usize,
    /// What is to be done, on the leader's stack; null between operators.
    job: AtomicPtr<Job<'static>>,
    /// Counts the jobs: the next one may lie at the same place.
    round: AtomicUsize,
    /// Helpers that may hold a reference to the job.
    inside: AtomicUsize,
    over: AtomicBool,
}

/// Pieces of one operator.
struct Job<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    pieces: usize,
    next: AtomicUsize,
    /// A helper panicked: its piece is not done.
    failed: AtomicBool,
}

impl Job<'_> {
    fn help(&self) {
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.pieces {
                return;
            }
            (self.work)(piece);
        }
    }
}

/// Counts a helper out, also when a piece panicked.
struct Inside<'a>(&'a Crew, *const Job<'static>);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // SAFETY: still counted in, so the job is still there.
            if let Some(job) = unsafe { self.1.as_ref() } {
                job.failed.store(true, Ordering::Relaxed);
            }
        }
        self.0.inside.fetch_sub(1, Ordering::Release);
    }
}

impl Crew {
    fn wait_for_pieces(&self) {
        let (mut looks, mut done) = (0, 0);
        while !self.over.load(Ordering::Acquire) {
            let round = self.round.load(Ordering::Relaxed);
            if round == done {
                wait(&mut looks);
                continue;
            }
            (looks, done) = (0, round);
            self.inside.fetch_add(1, Ordering::SeqCst);
            let job = self.job.load(Ordering::SeqCst);
            let _inside = Inside(self, job);
            // SAFETY: the leader keeps the job until it has taken it away and then seen nobody
            // inside. We counted ourselves in before we saw it, in one order with both.
            if let Some(job) = unsafe { job.as_ref() } {
                job.help();
            }
        }
    }

    fn share(&self, pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        /// Takes the job away and waits until nobody is inside, also when a piece panicked.
        struct Away<'a>(&'a Crew);
        impl Drop for Away<'_> {
            fn drop(&mut self) {
                self.0.job.store(ptr::null_mut(), Ordering::SeqCst);
                let mut looks = 0;
                while self.0.inside.load(Ordering::SeqCst) != 0 {
                    wait(&mut looks);
                }
            }
        }
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let job = Job { work, pieces, next, failed };
        let away = Away(self);
        // The lifetime is lifted while `away` lives; it ends before `job` does.
        self.job.store(ptr::from_ref(&job).cast_mut().cast(), Ordering::SeqCst);
        self.round.fetch_add(1, Ordering::Release);
        job.help();
        drop(away);
        assert!(!job.failed.load(Ordering::Relaxed), "an operator failed on another thread");
    }
}

fn wait(looks: &mut u32) {
    *looks += 1;
    if (*looks).is_multiple_of(PATIENCE) {
        std::thread::yield_now();
    } else {
        spin_loop();
    }
}

/// Runs `work` with the other threads of the rayon pool it is called in, if any, waiting for the
/// pieces of its operators.
///
/// # Panics
/// If a piece does.
pub fn together<R>(work: impl FnOnce() -> R) -> R {
    let Some(leader) = rayon::current_thread_index() else { return work() };
    let threads = rayon::current_num_threads();
    if threads == 1 || CREW.get().is_some() {
        return work();
    }
    let crew = Crew {
        threads,
        job: AtomicPtr::new(ptr::null_mut()),
        round: AtomicUsize::new(0),
        inside: AtomicUsize::new(0),
        over: AtomicBool::new(false),
    };
    /// Sends the crew home, also when the work panicked.
    struct Over<'a>(&'a Crew);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            CREW.set(None);
            self.0.over.store(true, Ordering::Release);
        }
    }
    rayon::in_place_scope(|scope| {
        let over = Over(&crew);
        scope.spawn_broadcast(|_, context| {
            if context.index() != leader {
                crew.wait_for_pieces();
            }
        });
        CREW.set(Some(&raw const crew));
        let result = work();
        drop(over);
        result
    })
}

/// Threads that [`each`] may use here.
pub fn threads() -> usize {
    // SAFETY: the crew outlives its entry, which `together` takes away.
    CREW.get().map_or(1, |crew| unsafe { (*crew).threads })
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
pub fn part(len: usize, i: usize, n: usize) -> Range<usize> {
    len * i / n..len * (i + 1) / n
}

/// Shares a 1x1 layer of `macs` multiply-adds: runs `work(pixels, blocks)` for pieces that together
/// are all of both. Each has every block of some pixels while those are many, or where the blocks
/// are too few to be equal shares; else every pixel of some blocks.
pub fn each_share(
    macs: usize,
    pixels: usize,
    blocks: usize,
    work: impl Fn(Range<usize>, Range<usize>) + Sync + Send,
) {
    let threads = threads();
    let few_blocks = blocks < 3 * threads && pixels >= 48 * threads;
    let by_pixels = few_blocks || pixels >= 256 * threads;
    let pieces = pieces(macs, if by_pixels { pixels / 48 } else { blocks });
    each(pieces, |i| {
        if by_pixels {
            work(part(pixels, i, pieces), 0..blocks);
        } else {
            work(0..pixels, part(blocks, i, pieces));
        }
    });
}

/// Runs `work(0)` to `work(n - 1)`, in any order.
pub fn each(n: usize, work: impl Fn(usize) + Sync + Send) {
    match CREW.get() {
        // SAFETY: as in `threads`.
        Some(crew) if n > 1 => unsafe { (*crew).share(n, &work) },
        _ => (0..n).for_each(work),
    }
}

/// An output that several pieces write, each its own places.
#[derive(Clone, Copy)]
pub struct Output<T = f32> {
    start: *mut T,
    len: usize,
}

// SAFETY: a pointer may be sent and shared; writing through it is `unsafe` at its use.
unsafe impl<T: Send> Send for Output<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Output<T> {}

impl<T> Output<T> {
    /// All of `y`.
    pub fn new(y: &mut [T]) -> Self {
        Self { start: y.as_mut_ptr(), len: y.len() }
    }

    /// The place of number `at`, from where `count` may be written.
    ///
    /// # Panics
    /// If that is out of bounds.
    pub fn at(&self, at: usize, count: usize) -> *mut T {
        assert!(at + count <= self.len);
        self.start.wrapping_add(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn every_piece_is_done_once_and_before_the_next_operator() {
        for threads in [1, 2, 4] {
            pool(threads).install(|| {
                together(|| {
                    let counts: Vec<AtomicUsize> = (0..7).map(|_| AtomicUsize::new(0)).collect();
                    for round in 1..=20_000 {
                        each(7, |i| {
                            counts[i].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == round));
                    }
                });
            });
        }
        assert_eq!(together(threads), 1, "outside of a pool there is nobody else");
    }

    #[test]
    fn the_others_really_help() {
        // Both pieces wait for each other: alone this would never end.
        let met = AtomicUsize::new(0);
        pool(2).install(|| {
            together(|| {
                each(2, |_| {
                    met.fetch_add(1, Ordering::SeqCst);
                    while met.load(Ordering::SeqCst) < 2 {
                        std::thread::yield_now();
                    }
                });
            });
        });
    }

    #[test]
    fn a_panic_in_any_piece_ends_the_work_and_leaves_the_pool_usable() {
        let pool = pool(3);
        for bad in 0..3 {
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.install(|| together(|| each(3, |i| assert_ne!(i, bad, "meant to fail"))));
            }));
            assert!(ended.is_err());
        }
        assert_eq!(pool.install(|| together(|| 5)), 5);
    }
}
