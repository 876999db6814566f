//! Many approaches in many worlds: no invariant is ever violated, and the door lives again when
//! all is well. `cargo xtask simulate` plays a million.

use pawlatch_tests::perception::Perception;
use pawlatch_tests::world::{Tally, World};

fn play(seeds: std::ops::Range<u64>, approaches: u64) -> Tally {
    let perception = Perception::measured().unwrap();
    let mut tally = Tally::default();
    for seed in seeds {
        match World::new(seed, &perception).play(approaches) {
            Ok(one) => tally.add(&one),
            Err(why) => panic!("{why}"),
        }
    }
    tally
}

#[test]
fn twenty_thousand_approaches_end_without_a_violated_invariant() {
    let tally = play(0..200, 100);
    assert_eq!(tally.approaches, 20_000);
    // The worlds are rough enough to mean something.
    assert!(tally.faults > 500, "{tally:?}");
    assert!(tally.restarts > 100, "{tally:?}");
    assert!(tally.dogs > 2_000, "{tally:?}");
    // And the door is a door: most dogs come in, hardly any stranger does.
    assert!(tally.dogs_kept_out * 4 < tally.dogs, "{tally:?}");
    assert!(tally.strangers_let_in * 50 < tally.strangers, "{tally:?}");
}

#[test]
fn the_same_seed_gives_the_same_world() {
    assert_eq!(play(7..9, 50), play(7..9, 50));
}
