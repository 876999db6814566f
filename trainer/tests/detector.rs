//! A detector trained from nothing on a few painted pictures must find what is painted on them.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "a test may be blunt")]

use std::path::Path;

use image::{Rgb, RgbImage};
use pawlatch_core::units::Rect;
use pawlatch_trainer::data::{Dataset, LabelledBox, Scene, Split};
use pawlatch_trainer::detector::score::{Mistake, score};
use pawlatch_trainer::detector::train::{Plan, export, record, train};
use pawlatch_trainer::engine::device;
use pawlatch_trainer::evaluate::load_model;
use pawlatch_trainer::export::Card;
use pawlatch_trainer::files::Work;
use pawlatch_trainer::net::Op;
use pawlatch_trainer::net::zoo::Architecture;
use pawlatch_trainer::report::detector_page;

const PLAN: &str = r#"
side = 64
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]
taps = ["b3.pw.act", "b5.pw.act", "deep"]
classes = ["dog", "cat"]
seed = 3
fair_share = 0.3
most_per_source = 100
[views]
mosaic = 0.0
far = 0.0
whole = 1.0
[augmentation]
colour = 0.0
grey = 0.0
dark = 0.0
blur = 0.0
jpeg = 0.0
small = 0.0
cut_out = 0.0
[[stage]]
cut = ["stem.act"]
variants = 6
backbone_pace = 1.0
[stage.recipe]
epochs = 150
batch = 4
rate = 3e-3
ema = 0.9
patience = 0
"#;

/// A picture with a red dog or a blue cat on noise, in two copies: one to train on, one to
/// validate. This is about remembering, not about generalising.
fn scenes(dir: &Path) -> Vec<Scene> {
    let boxes = [
        ("dog", [0.1, 0.2, 0.5, 0.7]),
        ("cat", [0.4, 0.3, 0.9, 0.8]),
        ("dog", [0.5, 0.1, 0.9, 0.5]),
        ("cat", [0.1, 0.5, 0.4, 0.9]),
    ];
    let mut scenes = Vec::new();
    for (i, (label, bounds)) in boxes.into_iter().enumerate() {
        let rect = Rect::try_from(bounds).unwrap();
        let [x0, y0, x1, y1] = rect.to_pixels(96, 96);
        let picture = RgbImage::from_fn(96, 96, |x, y| {
            let (fx, fy) = (x as f32, y as f32);
            let inside = fx >= x0 && fx < x1 && fy >= y0 && fy < y1;
            let noise = ((x * 7 + y * 13 + i as u32) % 40) as u8;
            match (inside, label) {
                (true, "dog") => Rgb([220, noise, noise]),
                (true, _) => Rgb([noise, noise, 220]),
                _ => Rgb([100 + noise; 3]),
            }
        });
        for split in [Split::Train, Split::Validate] {
            let file = dir.join(format!("{i}-{split:?}.png"));
            picture.save(&file).unwrap();
            scenes.push(Scene {
                file,
                boxes: vec![LabelledBox { rect, label: label.into() }],
                unsure: vec![],
                exhaustive_for: vec!["dog".into(), "cat".into()],
                source: String::new(),
                split,
            });
        }
    }
    scenes
}

#[test]
fn a_few_pictures_are_learnt_by_heart_and_written_for_the_door() {
    let dir = tempfile::tempdir().unwrap();
    let data = Dataset { scenes: scenes(dir.path()), sha256: "0".repeat(64), ..Dataset::default() };
    let mut base = Architecture::SmallDepthwise.fresh(2, 0.5, 1).unwrap();
    base.input_shape = [None, Some(3), Some(64), Some(64)];
    let pool = Op::AveragePool { kernel: [2; 2], stride: [2; 2], pads: [0; 4], count_pads: true };
    base.push("deep", pool, &["b5.pw.act"]);
    let plan: Plan = toml::from_str(PLAN).unwrap();
    let device = [device("cpu").unwrap()];
    let (net, history) = train(&base, &data, &plan, &Work::at(dir.path()), &device, false).unwrap();
    // Finished, it is what the epochs so far made of it; where there are none there is nothing.
    let again = |work: &Work| train(&base, &data, &plan, work, &device, true);
    assert_eq!(again(&Work::at(dir.path())).unwrap(), (net.clone(), history.clone()));
    let none = again(&Work::at(&dir.path().join("none"))).unwrap_err();
    assert!(format!("{none:#}").contains("nothing to finish"), "{none:#}");
    let losses: Vec<f32> = history[0].iter().map(|e| e.loss).collect();
    assert!(losses[149] < losses[0] / 3.0, "{losses:?}");
    let card = Card { name: "painted".into(), ..Card::nameless() };
    let out = dir.path().join("painted");
    export(&out, &net, &data, &plan, &history, &card, &device[0]).unwrap();
    let report = score(load_model(&out).unwrap(), &data, Split::Validate, None).unwrap();
    assert!(report.mean_ap50() > 0.95, "{}", report.text());
    assert_eq!((report.cat_called_dog.hits, report.single_over_50.hits), (0, 4));
    record(&out, &report).unwrap();
    let manifest = load_model(&out).unwrap().manifest;
    assert!(manifest.metrics.iter().any(|m| m.name == "ap50_cat" && m.value > 0.95));
    assert_eq!(report.missed, []);
    let dogs = &report.classes["dog"].curve;
    assert!(dogs.contains(&(1.0, 1.0)), "{dogs:?}");
    // What was labelled wrongly is found and is not what was said.
    let mut relabelled = data.clone();
    let scene = relabelled.scenes.iter_mut().find(|s| s.split == Split::Validate).unwrap();
    assert_eq!(scene.boxes[0].label, "dog");
    scene.boxes[0].label = "cat".into();
    let (file, rect) = (scene.file.clone(), scene.boxes[0].rect);
    let report = score(load_model(&out).unwrap(), &relabelled, Split::Validate, None).unwrap();
    let said = |m: &Mistake| m.file == file && m.label == "dog" && m.rect.iou(rect) > 0.5;
    assert!(report.false_alarms.iter().any(said), "{:?}", report.false_alarms);
    assert_eq!((report.missed.len(), report.missed[0].label.as_str()), (1, "cat"));
    assert_eq!((report.missed[0].rect, report.missed[0].score), (rect, 0.0));
    let page = detector_page(&report).unwrap();
    let pictures = report.false_alarms.len() + 1;
    assert_eq!(page.matches("<img").count(), pictures);
    assert_eq!(page.matches("class='true'").count(), pictures);
    assert_eq!(page.matches("class=''").count(), report.false_alarms.len());
    assert!(page.contains("dog (") && page.contains("no cat"), "{page}");
    assert_eq!(page.matches("<polyline").count(), 2);
}
