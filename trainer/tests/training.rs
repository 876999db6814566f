//! Training: from folders to a model the door takes, and what goes wrong on the way.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "a test may be blunt")]

use std::path::Path;

use image::{Rgb, RgbImage};
use pawlatch_trainer::cache::{Cache, Frozen, Normalisation, Plan as CachePlan};
use pawlatch_trainer::classification::{Classification, Examples, class_log_probs, judged, logits};
use pawlatch_trainer::data::augment::Augmentation;
use pawlatch_trainer::data::{Dataset, Item, Split};
use pawlatch_trainer::engine::{Model, device, to_host};
use pawlatch_trainer::export::{self, difference};
use pawlatch_trainer::files::Work;
use pawlatch_trainer::head::{Base, Head};
use pawlatch_trainer::metrics::softmax;
use pawlatch_trainer::net::Net;
use pawlatch_trainer::net::zoo::Architecture;
use pawlatch_trainer::plan::Seen;
use pawlatch_trainer::recipe::{Anchor, Form, Optimiser, Policy, Recipe};
use pawlatch_trainer::retrain::{Plan, Stage, retrain};
use pawlatch_trainer::train::{Objective, Training};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Stripes across, stripes down, or flat: three classes that a small network can learn.
fn picture(class: usize, i: u32) -> RgbImage {
    RgbImage::from_fn(64, 64, |x, y| {
        let phase = match class {
            0 => x + i,
            1 => y + i,
            _ => 0,
        };
        let v = if class < 2 && phase / 4 % 2 == 0 { 200 } else { 60 };
        let noise = (x.wrapping_mul(31) ^ y.wrapping_mul(17) ^ i.wrapping_mul(97)) % 23;
        Rgb([v as u8 + noise as u8, v as u8, (40 + i * 5 % 160) as u8])
    })
}

fn photos(dir: &Path, per_class: u32) {
    for (class, name) in ["dog", "cat", "nothing"].into_iter().enumerate() {
        std::fs::create_dir_all(dir.join(name)).unwrap();
        for i in 0..per_class {
            picture(class, i).save(dir.join(name).join(format!("{i}.png"))).unwrap();
        }
    }
}

/// The dataset of a folder without near-duplicate removal, which generated stripes would not pass.
fn dataset(dir: &Path, per_class: u32) -> Dataset {
    photos(dir, per_class);
    let mut items = Vec::new();
    for label in ["dog", "cat", "nothing"] {
        for i in 0..per_class {
            items.push(Item {
                file: dir.join(label).join(format!("{i}.png")),
                part: pawlatch_core::units::Rect::WHOLE,
                label: label.into(),
                source: String::new(),
                subset: String::new(),
                split: if i % 4 == 0 { Split::Validate } else { Split::Train },
            });
        }
    }
    Dataset {
        classes: ["dog", "cat", "nothing"].map(String::from).to_vec(),
        sha256: "0".repeat(64),
        items,
        ..Dataset::default()
    }
}

fn plan(epochs: usize) -> Plan {
    let recipe = Recipe {
        epochs,
        batch: 16,
        rate: 5e-3,
        patience: 0,
        ema: 0.9,
        mixup: 0.1,
        ..Recipe::default()
    };
    let augmentation =
        Augmentation { smallest_crop: 0.8, rotate_degrees: 0.0, ..Augmentation::none() };
    let stage = vec![Stage { cut: "image".into(), variants: 2, recipe }];
    Plan {
        seen: Seen { side: 32, mean: [127.0; 3], std: [64.0; 3], seed: 3, augmentation },
        fraction: 1.0,
        judged_variants: 1,
        head: Head::default(),
        stage,
    }
}

fn base() -> Base {
    Base { net: small_net(), manifest: None }
}

fn small_net() -> Net {
    let mut net = Architecture::SmallDepthwise.fresh(3, 0.5, 1).unwrap();
    net.input_shape = [None, Some(3), Some(32), Some(32)];
    net
}

#[test]
fn a_network_trained_from_scratch_learns_and_the_same_seed_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 40);
    let cpu = [device("cpu").unwrap()];
    let run = |work: &str| {
        retrain(&base(), &data, &plan(6), &Work::at(&dir.path().join(work)), &cpu).unwrap()
    };
    let first = run("a");
    let last = first.history[0].last().unwrap();
    assert!(last.accuracy > 0.9, "{:?}", first.history);
    assert!(first.history[0][0].loss > last.loss);
    assert_eq!(first.net, run("b").net);
}

/// The training pictures as they are, seen through the first layer of the small network, and the
/// rest of it.
fn seen(dir: &Path, data: &Dataset) -> (Cache, Net) {
    seen_in(dir, data, 1)
}

/// The same in several variants, all but the first half hidden.
fn seen_in(dir: &Path, data: &Dataset, variants: usize) -> (Cache, Net) {
    let items = data.of(Split::Train);
    let (front, back) = small_net().cut("stem.act").unwrap();
    let augmentation = Augmentation { half_hidden: 1.0, ..Augmentation::none() };
    let caches = CachePlan {
        front: &front,
        side: 32,
        normalisation: Normalisation { mean: [127.0; 3], std: [64.0; 3] },
        augmentation: &augmentation,
        variants,
        seed: 1,
        fraction: 1.0,
    };
    let cache =
        Cache::of(&caches, &items, &dir.join("cache"), &indicatif::ProgressBar::hidden()).unwrap();
    (cache, back)
}

fn examples<'a>(cache: &'a Cache, data: &Dataset) -> Examples<'a> {
    let classes = data.of(Split::Train).iter().map(|i| data.class(&i.label).unwrap()).collect();
    Examples { cache, classes }
}

#[test]
fn what_was_said_of_a_plain_picture_is_remembered_of_a_distorted_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 12);
    let (cache, back) = seen_in(dir.path(), &data, 2);
    let cpu = device("cpu").unwrap().autodiff();
    let model = Model::new(back.clone(), &cpu);
    let classes: Vec<usize> = examples(&cache, &data).classes;
    let batch: Vec<usize> = (0..classes.len()).collect();
    let loss = |remember: f32, remember_of: Form| {
        let recipe = Recipe { remember, remember_of, ..Recipe::default() };
        let both = || examples(&cache, &data);
        let objective = Classification::new(&recipe, both(), both(), &[0, 1, 2]).unwrap();
        let objective = objective.remembering(&back, &cpu);
        let loss = objective.loss(&model, &batch, &mut StdRng::seed_from_u64(5)).unwrap();
        to_host(loss.inner()).unwrap()[0]
    };
    let forgets = loss(0.0, Form::Seen);
    // It still says what it said, so of the same picture there is nothing to remember.
    assert!((loss(2.0, Form::Seen) - forgets).abs() < 1e-5);
    // Of the plain one by definition: the divergence, as far as the right class was known.
    let said = |variant| logits(&back, &cache, variant, &cpu, 8).unwrap();
    let rows = [said(0), said(1)];
    let mut rng = StdRng::seed_from_u64(5);
    let mut apart = 0.0;
    for (i, class) in classes.iter().enumerate() {
        let [p, q] = [0, rng.random_range(0..2)].map(|v: usize| softmax(&rows[v][i], 1.0));
        let divergence: f32 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        apart += p[*class] * divergence / classes.len() as f32;
    }
    assert!(apart > 1e-4, "{apart}");
    let plain = loss(2.0, Form::Plain);
    assert!((plain - forgets - 2.0 * apart).abs() < 1e-4, "{plain} {forgets} {apart}");
    // The epoch is judged by every variant.
    let recipe = Recipe::default();
    let both = || examples(&cache, &data);
    let objective = Classification::new(&recipe, both(), both(), &[0, 1, 2]).unwrap();
    let (validation, _) = objective.validate(&back, &cpu).unwrap();
    let [plain, hidden] = rows.map(|r| judged(&r, &classes, &[0, 1, 2]).0);
    assert!((plain - hidden).abs() > 1e-4);
    assert!((validation - (plain + hidden) / 2.0).abs() < 1e-5);
}

#[test]
fn several_devices_train_as_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 15);
    let (cache, back) = seen(dir.path(), &data);
    // The last batch of an epoch has one picture for three devices.
    let pictures = data.of(Split::Train).len();
    let batch = 8;
    assert_eq!(pictures % batch, 1);
    let recipe = Recipe { epochs: 3, batch, ema: 0.9, ..Recipe::default() };
    let both = || examples(&cache, &data);
    let objective = Classification::new(&recipe, both(), both(), &[0, 1, 2]).unwrap();
    let run = |devices: usize, name: &str| {
        let devices = vec![device("cpu").unwrap(); devices];
        Training::new(&recipe, &objective, &dir.path().join(name)).run(&back, &devices).unwrap()
    };
    let (one, three) = (run(1, "one"), run(3, "three"));
    for (name, p) in &one.net.params {
        let moved = export::difference(&p.data, &back.params[name].data);
        let apart = export::difference(&p.data, &three.net.params[name].data);
        assert!(apart < 1e-3 * moved.max(0.1), "{name}: {apart}, moved {moved}");
    }
    for (a, b) in one.history.iter().zip(&three.history) {
        assert!((a.loss - b.loss).abs() < 1e-4, "{} {}", a.loss, b.loss);
    }
    assert_eq!(three.net, run(3, "again").net);
    assert!(Training::new(&recipe, &objective, dir.path()).run(&back, &[]).is_err());
}

#[test]
fn a_directory_of_another_training_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 16);
    let (cache, back) = seen(dir.path(), &data);
    let cpu = [device("cpu").unwrap()];
    let recipe = Recipe { epochs: 2, batch: 8, ..Recipe::default() };
    let other = Recipe { rate: recipe.rate / 2.0, ..recipe.clone() };
    let relabelled = || {
        let mut examples = examples(&cache, &data);
        examples.classes.iter_mut().for_each(|c| *c = (*c + 1) % 3);
        examples
    };
    let mut moved = back.clone();
    moved.params.values_mut().next().unwrap().data[0] += 0.5;
    let run = |recipe: &Recipe, net: &Net, swapped: bool, work: &str| {
        let set = || if swapped { relabelled() } else { examples(&cache, &data) };
        let objective = Classification::new(recipe, set(), set(), &[0, 1, 2]).unwrap();
        Training::new(recipe, &objective, &dir.path().join(work)).run(net, &cpu).unwrap().net
    };
    let first = run(&recipe, &back, false, "one");
    // Other pictures, another recipe, another network: each as in a directory of its own.
    let others = [(&recipe, &back, true), (&other, &back, false), (&recipe, &moved, false)];
    for (i, (recipe, net, swapped)) in others.into_iter().enumerate() {
        let beside = run(recipe, net, swapped, "one");
        assert_ne!(beside, first, "{i}");
        assert_eq!(beside, run(recipe, net, swapped, &format!("alone {i}")), "{i}");
    }
    // The first is still there, finished.
    let still = || -> Vec<_> {
        let files = std::fs::read_dir(dir.path().join("one")).unwrap();
        files
            .map(|f| f.unwrap().path())
            .filter(|p| p.extension().unwrap() == "safetensors")
            .collect()
    };
    let before = still();
    assert_eq!(before.len(), 4);
    assert_eq!(run(&recipe, &back, false, "one"), first);
    assert_eq!(still().len(), 4);
}

#[test]
fn a_run_that_was_stopped_ends_as_one_that_was_not() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 16);
    let (cache, back) = seen(dir.path(), &data);
    let cpu = [device("cpu").unwrap()];
    let recipe = Recipe { epochs: 4, batch: 8, ema: 0.9, ..Recipe::default() };
    let both = || examples(&cache, &data);
    let objective = Classification::new(&recipe, both(), both(), &[0, 1, 2]).unwrap();
    let whole =
        Training::new(&recipe, &objective, &dir.path().join("whole")).run(&back, &cpu).unwrap();
    // Killed after each epoch: the state on disk is all that is left.
    let work = dir.path().join("pieces");
    for epochs in 1..4 {
        let stop =
            Training::new(&recipe, &objective, &work).run_until(&back, &cpu, epochs).unwrap();
        assert_eq!(stop.history.len(), epochs);
    }
    let pieces = Training::new(&recipe, &objective, &work).run(&back, &cpu).unwrap();
    assert_eq!(whole.net, pieces.net);
    let loss =
        |t: &pawlatch_trainer::train::Trained| t.history.iter().map(|e| e.loss).collect::<Vec<_>>();
    assert_eq!(loss(&whole), loss(&pieces));
    // One that gave up gives up at once when it is started again.
    let still = Recipe { epochs: 9, rate: 1e-30, patience: 2, ema: 0.0, ..recipe.clone() };
    let work = dir.path().join("still");
    let gave_up = || Training::new(&still, &objective, &work).run(&back, &cpu).unwrap();
    let first = gave_up();
    assert_eq!(first.history.len(), 3);
    assert_eq!(gave_up().history, first.history);
}

#[test]
fn a_cache_that_was_cut_short_is_finished_and_a_damaged_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 12);
    let (front, _) = small_net().cut("stem.act").unwrap();
    let items = data.of(Split::Train);
    let augmentation = Augmentation::default();
    let plan = CachePlan {
        front: &front,
        side: 32,
        normalisation: Normalisation { mean: [127.0; 3], std: [64.0; 3] },
        augmentation: &augmentation,
        variants: 2,
        seed: 1,
        fraction: 1.0,
    };
    let work = dir.path().join("cache");
    let fill = || Cache::of(&plan, &items, &work, &indicatif::ProgressBar::hidden());
    fill().unwrap();
    let path = std::fs::read_dir(&work).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&path).unwrap();
    // Killed in the middle of a row.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(path.with_extension("part"), &whole[..whole.len() / 3 + 5]).unwrap();
    fill().unwrap();
    assert!(whole == std::fs::read(&path).unwrap());
    std::fs::write(&path, &whole[1..]).unwrap();
    assert!(format!("{:#}", fill().err().unwrap()).contains("damaged"));
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_says_what_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 8);
    let mut plan = plan(3);
    plan.stage[0].recipe = Recipe {
        rate: 1e30,
        optimiser: Optimiser::Sgd,
        policy: Policy::Fixed,
        clip: 0.0,
        warm_up: 0.0,
        ..Recipe::default()
    };
    let error =
        retrain(&base(), &data, &plan, &Work::at(&dir.path().join("w")), &[device("cpu").unwrap()])
            .err()
            .unwrap();
    assert!(format!("{error:#}").contains("learning rate"), "{error:#}");
}

#[test]
fn bad_data_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let empty = Dataset::load(dir.path()).unwrap_err();
    assert!(format!("{empty:#}").contains("sub-folders"));
    std::fs::create_dir(dir.path().join("dog")).unwrap();
    picture(0, 1).save(dir.path().join("dog/1.png")).unwrap();
    let one = Dataset::load(dir.path()).unwrap_err();
    assert!(format!("{one:#}").contains("at least two classes"), "{one:#}");
    std::fs::create_dir(dir.path().join("cat")).unwrap();
    std::fs::write(dir.path().join("cat/1.png"), b"\x89PNG broken").unwrap();
    let broken = Dataset::load(dir.path()).unwrap_err();
    assert!(format!("{broken:#}").contains("1.png"), "{broken:#}");
    let table = dir.path().join("t.csv");
    std::fs::write(&table, "file,label\ndog/1.png,wolf\n").unwrap();
    let spec = dir.path().join("d.toml");
    std::fs::write(&spec, "classes = ['dog', 'cat']\n[[table]]\npath = 't.csv'\n").unwrap();
    let label = Dataset::load(&spec).unwrap_err();
    assert!(format!("{label:#}").contains("wolf"), "{label:#}");
}

#[test]
fn a_duplicate_never_stays_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    for label in ["dog", "cat"] {
        std::fs::create_dir(dir.path().join(label)).unwrap();
    }
    let noise = |seed: u32| {
        RgbImage::from_fn(90, 80, |x, y| {
            Rgb([((x / 10 * 7919) ^ (y / 10 * 104_729) ^ seed.wrapping_mul(2_654_435_761))
                .wrapping_mul(2_246_822_519)
                .to_be_bytes()[0]; 3])
        })
    };
    for i in 0..6 {
        noise(i).save(dir.path().join(format!("dog/{i}.png"))).unwrap();
        noise(100 + i).save(dir.path().join(format!("cat/{i}.png"))).unwrap();
    }
    // The same photo, stored smaller under another name and with another label.
    let twin = image::imageops::thumbnail(&noise(3), 45, 40);
    twin.save(dir.path().join("cat/twin.png")).unwrap();
    let data = Dataset::load(dir.path()).unwrap();
    assert_eq!(data.items.len(), 12, "{:?}", data.notes);
    assert!(
        data.notes.iter().any(|n| n.contains("looks like") && n.contains("labelled")),
        "{:?}",
        data.notes
    );
}

#[test]
fn what_has_no_room_on_disk_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    pawlatch_trainer::files::write_whole(&path, b"good").unwrap();
    // A directory that cannot take a temporary file stands for a full disk.
    let missing = dir.path().join("gone/model.onnx");
    assert!(pawlatch_trainer::files::write_whole(&missing, b"x").is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"good");
}

/// A model directory made from scratch, whose labels are dog, cat and nothing.
fn model(dir: &Path, data: &Dataset) -> std::path::PathBuf {
    let (cpu, plan) = ([device("cpu").unwrap()], plan(1));
    let trained = retrain(&base(), data, &plan, &Work::at(&dir.join("work")), &cpu).unwrap();
    let card = export::Card {
        name: "striped".into(),
        version: "1",
        licence: "MIT",
        source: "made in a test",
        commit: None,
    };
    let out = dir.join("striped");
    export::classifier(&out, &trained, data, &plan, &card, &cpu[0]).unwrap();
    out
}

#[test]
fn a_kept_head_says_what_its_model_said_and_added_labels_follow() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 12);
    let base = Base::load(&model(dir.path(), &data)).unwrap();
    let input = |net: &Net| {
        let pixels: Vec<f32> = (0..3 * 32 * 32).map(|i| (i % 37) as f32 / 18.0 - 1.0).collect();
        Frozen::new(net, 32).unwrap().run(&pixels).unwrap()[0].data.clone()
    };
    let kept = |added: &[(&str, usize)], classes: &[String]| {
        let added = added.iter().map(|(c, n)| ((*c).into(), *n)).collect();
        base.headed(classes, &Head { keep: true, added }, 5)
    };
    let same = kept(&[], &data.classes).unwrap();
    let temperature = base.manifest.as_ref().unwrap().calibration.as_ref().unwrap().temperature;
    let before = class_log_probs(&input(&base.net), &[0, 1, 2], temperature);
    let after = class_log_probs(&input(&same.net), &same.class_of_label, 1.0);
    assert!(difference(&before, &after) < 1e-4, "{before:?} {after:?}");
    let grown = kept(&[("cat", 2)], &data.classes).unwrap();
    assert_eq!(grown.class_of_label, [0, 1, 2, 1, 1]);
    assert_eq!(grown.labels.names.len(), 5);
    assert_eq!(grown.labels.class_of_each().unwrap()[3].name(), "cat");
    assert_eq!(input(&grown.net)[..3], input(&same.net)[..]);
    // What no class takes is no silent loss.
    let lacking = kept(&[], &data.classes[..2]).unwrap_err();
    assert!(format!("{lacking:#}").contains("nothing"), "{lacking:#}");
    let unknown = Base { net: small_net(), manifest: None }
        .headed(&data.classes, &Head { keep: true, ..Head::default() }, 5)
        .unwrap_err();
    assert!(format!("{unknown:#}").contains("model directory"), "{unknown:#}");
}

#[test]
fn a_kept_head_is_retrained_and_exported_with_its_labels() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path(), 24);
    let base = Base::load(&model(dir.path(), &data)).unwrap();
    let mut plan = plan(3);
    plan.head = Head { keep: true, added: [("nothing".into(), 2)].into() };
    let run = |plan: &Plan, work: &str| {
        retrain(&base, &data, plan, &Work::at(&dir.path().join(work)), &[device("cpu").unwrap()])
            .unwrap()
    };
    let free = run(&plan, "free");
    assert_eq!(free.labels.names.len(), 5);
    let start = base.headed(&data.classes, &plan.head, plan.seen.seed).unwrap().net;
    let moved = |net: &Net| {
        // Decay leaves biases alone.
        let weights = net.params.iter().filter(|(_, p)| p.shape.len() > 1);
        weights.map(|(k, p)| difference(&p.data, &start.params[k].data)).fold(0.0, f32::max)
    };
    // Half of the way of the training that is over, and one held back by decay towards the start.
    plan.stage[0].recipe.blend = 0.5;
    let half = run(&plan, "free");
    assert_eq!(half.history, free.history);
    assert!((moved(&half.net) - moved(&free.net) / 2.0).abs() < 1e-5);
    plan.stage[0].recipe.blend = 1.0;
    plan.stage[0].recipe.decay = 100.0;
    plan.stage[0].recipe.decay_towards = Anchor::Start;
    assert!(moved(&run(&plan, "held").net) < moved(&free.net) / 2.0);
}
