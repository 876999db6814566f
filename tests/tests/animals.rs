//! Animals are enrolled by pictures, through the classifier that is shipped.

use std::path::Path;

use pawlatch::models::ModelsDir;
use pawlatch::owner::animals::{Animals, AnimalsError, MAX_ANIMALS, Recogniser};
use pawlatch_core::frame::Frame;
use pawlatch_core::identity::Threshold;
use pawlatch_core::units::{Rect, Uptime};

/// The shipped classifier in a directory of its own, so that a threshold can be put beside it.
fn models(dir: &Path) -> ModelsDir {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let shipped = ModelsDir::open(&shipped, "the test").unwrap();
    let entry = shipped.in_use().unwrap().classifier.unwrap();
    let own = dir.join("models").join(&entry.manifest.name);
    std::fs::create_dir_all(&own).unwrap();
    for name in ["model.toml", entry.manifest.file.as_str()] {
        std::fs::copy(entry.dir.join(name), own.join(name)).unwrap();
    }
    ModelsDir::open(&dir.join("models"), "the test").unwrap()
}

/// Patches of a colour, different for each `seed`; not a dog, but a picture the network embeds.
fn picture(seed: u32, light: u32) -> (Frame, Rect) {
    let (width, height) = (160_u32, 120_u32);
    let pixels: Vec<u8> = (0..width * height)
        .flat_map(|i| {
            let (x, y) = (i % width, i / width);
            let cell = (x / (8 + seed % 24) + y / (8 + seed * 3 % 20)) % 2;
            [seed * 37 % 200, seed * 91 % 200, seed * 53 % 200]
                .map(|c| ((c + 55 * cell) * light / 255) as u8)
        })
        .collect();
    let frame = Frame::from_rgb(pixels, width, height, Uptime::from_millis(u64::from(seed)));
    (frame.unwrap(), Rect::clipped(0.1, 0.1, 0.9, 0.9).unwrap())
}

#[test]
fn what_is_enrolled_is_known_again_and_what_is_useless_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let models = models(dir.path());
    let mut network = Recogniser::default();
    let mut animals = Animals::open(dir.path()).unwrap();
    let views: Vec<_> = (1..=14).map(|seed| picture(seed, 255)).collect();
    let mut given = views.clone();
    given.push(views[0].clone());
    given.push(picture(3, 20));
    let added = animals.add("Rex", &given, &mut network, &models).unwrap();
    assert!(added.good >= 10, "{added:?}");
    assert!(added.alike >= 1, "the same picture again: {added:?}");
    assert_eq!(added.dark, 1, "{added:?}");
    // Kept, and read again.
    let animals = Animals::open(dir.path()).unwrap();
    assert_eq!(animals.all[0].pictures.len(), added.good);
    assert!(animals.picture(&animals.all[0].pictures[0]).is_some());
    assert_eq!(animals.picture("../access.json"), None);
    // Without a measured threshold there is no answer; with one of another model neither.
    let asked = [views[2].clone()];
    assert_eq!(animals.recognise(&asked, &mut network, &models).unwrap(), None);
    let entry = models.in_use().unwrap().classifier.unwrap();
    let measured = |sha256: &str| {
        let threshold = Threshold::choose(sha256, &[0.9], &[0.5; 100], 0.01);
        let text = serde_json::to_string(&threshold).unwrap();
        std::fs::write(entry.dir.join("identity.json"), text).unwrap();
    };
    measured("of another");
    assert_eq!(animals.recognise(&asked, &mut network, &models).unwrap(), None);
    measured(&entry.manifest.sha256);
    let (answer, threshold) = animals.recognise(&asked, &mut network, &models).unwrap().unwrap();
    assert!(answer.likeness > 0.0 && threshold.comparisons == 100, "{answer:?}");
    // Forgotten, with its pictures.
    let mut animals = animals;
    assert!(animals.remove("Rex").unwrap() && !animals.remove("Rex").unwrap());
    let left = std::fs::read_dir(dir.path().join("animals")).unwrap().count();
    assert_eq!(left, 1, "only the list");
}

#[test]
fn names_have_limits() {
    let dir = tempfile::tempdir().unwrap();
    let models = models(dir.path());
    let mut network = Recogniser::default();
    let mut animals = Animals::open(dir.path()).unwrap();
    for name in ["", "  ", "a\nb", "a name that is longer than thirty letters"] {
        let refused = animals.add(name, &[], &mut network, &models);
        assert!(matches!(refused, Err(AnimalsError::Name)), "{name}");
    }
    for n in 0..MAX_ANIMALS as u32 {
        let view = [picture(n + 1, 255)];
        animals.add(&format!("dog {n}"), &view, &mut network, &models).unwrap();
    }
    let one_more = animals.add("one more", &[picture(50, 255)], &mut network, &models);
    assert!(matches!(one_more, Err(AnimalsError::Name)));
}
