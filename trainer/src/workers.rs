//! Long work: many pictures through networks on several threads, each picture on one, and how far
//! it is.
//!
//! Not rayon: a network that runs inside a rayon pool splits its own operators over the pool, and a
//! worker that waits for such a piece takes up the next picture meanwhile, on top of the one it
//! has. Each then holds its activations, and the more pictures there are the deeper it goes.
//! Outside of a pool an operator stays on its thread, and no thread waits for another.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// `one(state, i)` for every `i` below `count`, in order. Each thread makes its own state, such as
/// a network, once, with `start`.
///
/// # Errors
/// One of those that `start` or `one` gave; the rest is not begun then.
pub fn each<S, T: Send>(
    count: usize,
    start: &(dyn Fn() -> Result<S> + Sync),
    one: &(dyn Fn(&mut S, usize) -> Result<T> + Sync),
) -> Result<Vec<T>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count).max(1);
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || -> Result<Vec<(usize, T)>> {
        let (mut state, mut done) = (start()?, Vec::new());
        while !failed.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                break;
            }
            done.push((i, one(&mut state, i)?));
        }
        Ok(done)
    };
    let flagged = || work().inspect_err(|_| failed.store(true, Ordering::Relaxed));
    let parts: Vec<Result<Vec<(usize, T)>>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(flagged)).collect();
        let joined = running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect()
    });
    let mut all = Vec::with_capacity(count);
    for part in parts {
        all.extend(part?);
    }
    all.sort_by_key(|(i, _)| *i);
    Ok(all.into_iter().map(|(_, value)| value).collect())
}

/// A progress bar in the trainer's style.
pub fn bar(length: u64, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {eta} {msg}");
    let bar = ProgressBar::new(length).with_prefix(what.to_owned());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_each_thread_starts_once() {
        let starts = AtomicUsize::new(0);
        let start = || Ok(starts.fetch_add(1, Ordering::Relaxed));
        let squares = each(50, &start, &|_, i| Ok(i * i)).unwrap();
        assert_eq!(squares, (0..50).map(|i| i * i).collect::<Vec<_>>());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        assert!(starts.load(Ordering::Relaxed) <= threads);
        assert!(each(0, &|| Ok(()), &|(), i| Ok(i)).unwrap().is_empty());
    }

    #[test]
    fn nothing_runs_in_a_pool_where_operators_would_split() {
        let inside = each(4, &|| Ok(()), &|(), _| Ok(rayon::current_thread_index())).unwrap();
        assert_eq!(inside, [None; 4]);
    }

    #[test]
    fn an_error_stops_the_rest() {
        let tried = AtomicUsize::new(0);
        let one = |(): &mut (), i: usize| {
            tried.fetch_add(1, Ordering::Relaxed);
            anyhow::ensure!(i != 3, "picture {i}");
            // Longer than it takes to make an error, however busy the machine is.
            std::thread::sleep(std::time::Duration::from_millis(1));
            Ok(())
        };
        let error = each(10_000, &|| Ok(()), &one).unwrap_err();
        assert_eq!(error.to_string(), "picture 3");
        assert!(tried.load(Ordering::Relaxed) < 10_000);
    }
}
