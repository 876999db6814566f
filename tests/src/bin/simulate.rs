//! Plays many simulated approaches on all cores and says what came of them, as one JSON object.

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use pawlatch_tests::perception::Perception;
use pawlatch_tests::world::{Tally, World};

/// Approaches played in one world before the next seed.
const PER_WORLD: u64 = 200;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("simulate: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut args = std::env::args().skip(1);
    let mut number = |name: &str, default: u64| match args.next() {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| format!("{name} must be a number, not `{text}`")),
    };
    let approaches = number("the number of approaches", 1_000_000)?;
    let seed = number("the first seed", 1)?;
    let perception = Perception::measured()?;
    let worlds = approaches.div_ceil(PER_WORLD);
    let next = AtomicU64::new(0);
    let began = Instant::now();
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let play = || {
        let mut tally = Tally::default();
        loop {
            let world = next.fetch_add(1, Ordering::Relaxed);
            if world >= worlds {
                return Ok::<_, String>(tally);
            }
            tally.add(&World::new(seed + world, &perception).play(PER_WORLD)?);
        }
    };
    let total = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(play)).collect();
        let mut total = Tally::default();
        for thread in running {
            total.add(&thread.join().map_err(|_| "a thread panicked".to_owned())??);
        }
        Ok::<_, String>(total)
    })?;
    let report = serde_json::json!({
        "approaches": total.approaches,
        "first_seed": seed,
        "seconds": began.elapsed().as_secs_f64(),
        "moments": total.moments,
        "violations": 0,
        "dogs": total.dogs,
        "dogs_kept_out": total.dogs_kept_out,
        "strangers": total.strangers,
        "strangers_let_in": total.strangers_let_in,
        "dogs_with_cat": total.with_cat,
        "dogs_with_cat_let_in": total.with_cat_let_in,
        "dogs_with_person": total.with_person,
        "dogs_with_person_let_in": total.with_person_let_in,
        "faults": total.faults,
        "restarts": total.restarts,
    });
    println!("{report}");
    Ok(())
}
