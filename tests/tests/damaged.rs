//! The properties that libFuzzer attacks (`cargo xtask fuzz`), tried on damaged seeds.

use std::fs;
use std::path::Path;

use fastrand::Rng;

#[path = "../../fuzz/src/lib.rs"]
mod properties;

/// Damaged copies of each seed.
const COPIES: u64 = 2_000;

/// The files of a directory of seeds.
fn seeds(of: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(of);
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// `seed` with some of its bytes changed, taken out, repeated or cut off.
fn damaged(seed: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.usize(1..6) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.usize(..bytes.len());
        let end = at + rng.usize(..=(bytes.len() - at).min(32));
        match rng.u8(..6) {
            0 => bytes[at] ^= 1 << rng.u8(..8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.usize(..5)],
            2 => drop(bytes.drain(at..end)),
            3 => {
                let part = bytes[at..end].to_vec();
                let to = rng.usize(..=bytes.len());
                bytes.splice(to..to, part);
            }
            4 => bytes.truncate(at),
            _ => bytes[at..end].iter_mut().for_each(|byte| *byte = rng.u8(..)),
        }
    }
    bytes
}

/// Gives every damaged seed to `holds`, and says which of them breaks it.
fn attack(of: &str, holds: impl Fn(&[u8]) + std::panic::RefUnwindSafe) {
    for (n, seed) in seeds(of).iter().enumerate() {
        holds(seed);
        for copy in 0..COPIES {
            let bytes = damaged(seed, &mut Rng::with_seed(copy));
            let outcome = std::panic::catch_unwind(|| holds(&bytes));
            assert!(outcome.is_ok(), "seed {n} of {of}, copy {copy}: {bytes:?}");
        }
    }
}

#[test]
fn damaged_pictures_are_pictures_or_errors() {
    attack("picture", properties::picture);
}

#[test]
fn damaged_manifests_are_manifests_or_errors() {
    attack("manifest", |bytes| properties::manifest(&String::from_utf8_lossy(bytes)));
}

#[test]
fn damaged_configurations_are_configurations_or_errors() {
    attack("config", |bytes| properties::configuration(&String::from_utf8_lossy(bytes)));
}

#[test]
fn any_numbers_of_a_detector_are_boxes_or_errors() {
    for seed in 0..4_000 {
        let mut rng = Rng::with_seed(seed);
        let special = [f32::NAN, f32::INFINITY, -f32::INFINITY, 0.0, -0.0, f32::MAX, 1e-40, 0.9];
        let number = |rng: &mut Rng| match rng.u8(..4) {
            0 => special[rng.usize(..special.len())].to_bits(),
            1 => rng.u32(..),
            _ => (rng.f32() * 20.0 - 10.0).to_bits(),
        };
        // As many as two classes on the grids of 32 by 32 pixels need, or any other.
        let count = [140, 680, 96, rng.usize(..2_000)][rng.usize(..4)];
        let bits: Vec<u32> = (0..count).map(|_| number(&mut rng)).collect();
        properties::detections(seed as u8, &bits);
    }
}
