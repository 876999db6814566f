//! Models, perception as a whole, and what happens when either is broken.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use super::manifest::Resize;
use super::network::Network;
use super::testing::*;
use super::*;
use crate::units::Score;

/// Red on the left, blue on the right, green between.
fn two_colours() -> Frame {
    frame(64, 64, |x, y| match (x, y) {
        (0..16, 0..16) => [255, 0, 0],
        (48..64, 0..16) => [0, 0, 255],
        _ => [0, 255, 0],
    })
}

fn classifier() -> Model {
    let onnx = colour_classifier(8.0);
    Model::load(&classifier_text(&onnx), &onnx).unwrap()
}

fn detector() -> Model {
    let onnx = colour_detector();
    Model::load(&detector_text(COLOUR_DETECTOR, &onnx), &onnx).unwrap()
}

/// The whole chain of causes, as the owner sees it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

fn refusal(manifest: &str, onnx: &[u8]) -> String {
    chain(&Model::load(manifest, onnx).unwrap_err())
}

#[test]
fn a_classifier_tells_colours_apart_whole_or_in_crops() {
    let mut classifier = Classifier::new(classifier()).unwrap();
    let frame = two_colours();
    let left = Rect::try_from([0.0, 0.0, 0.25, 0.25]).unwrap();
    let right = Rect::try_from([0.75, 0.0, 1.0, 0.25]).unwrap();
    let dog = classifier.classify(&frame, left, Framing::Crop).unwrap();
    assert_eq!(dog.probs.best(), Class::Dog);
    assert!(dog.probs.of(Class::Dog).get() > 0.999);
    let cat = classifier.classify(&frame, right, Framing::Crop).unwrap();
    assert_eq!(cat.topk(1)[0].0, "cat");
    let whole = classifier.classify(&frame, Rect::WHOLE, Framing::Whole).unwrap();
    assert_eq!(whole.probs.best(), Class::Nothing);
    let (dog, cat) = (whole.probs.of(Class::Dog), whole.probs.of(Class::Cat));
    assert!((dog.get() - cat.get()).abs() < 1e-3, "{:?}", whole.probs);
    assert!(!whole.rejected);
}

#[test]
fn calibration_shifts_and_softens() {
    let onnx = colour_classifier(8.0);
    let text = classifier_text(&onnx);
    let red = frame(8, 8, |_, _| [255, 0, 0]);
    let dog = |extra: &str| {
        let model = Model::load(&text.replace("[labels]", &format!("{extra}\n[labels]")), &onnx);
        let mut classifier = Classifier::new(model.unwrap()).unwrap();
        classifier.classify(&red, Rect::WHOLE, Framing::Whole).unwrap()
    };
    let near = |a: Score, b: f32| assert!((a.get() - b).abs() < 1e-4, "{a:?} is not {b}");
    let odds = |dog: f32, cat: f32| dog / (dog + cat + 1.0);
    near(dog("").probs.of(Class::Dog), odds(8_f32.exp(), 1.0));
    let soft = dog("[calibration]\ntemperature = 8.0").probs;
    near(soft.of(Class::Dog), odds(1_f32.exp(), 1.0));
    let biased = dog("[calibration]\ntemperature = 8.0\nbias = { cat = 2.0 }").probs;
    near(biased.of(Class::Dog), odds(1_f32.exp(), 2_f32.exp()));
    assert!(dog("[open_set]\nmethod = 'energy'\nreject_below = 9.0").rejected);
    assert!(!dog("[open_set]\nmethod = 'energy'\nreject_below = 7.0").rejected);
}

#[test]
fn labels_that_may_hold_together_leave_room_for_nothing() {
    let (_, probs) =
        classify::probabilities(&[-20.0, -20.0], &[Class::Dog, Class::Cat], false, None).unwrap();
    assert!(probs.of(Class::Nothing).get() > 0.999);
    let (labels, probs) =
        classify::probabilities(&[20.0, -20.0], &[Class::Dog, Class::Cat], false, None).unwrap();
    assert!(probs.of(Class::Dog).get() > 0.999 && labels[0] > 0.999);
}

#[test]
fn a_detector_finds_cells_and_maps_them_into_the_frame() {
    let mut detector = Detector::new(detector()).unwrap();
    let found = detector.detect(&two_colours(), Rect::WHOLE).unwrap();
    let [a, b] = &found[..] else { panic!("two boxes, not {found:?}") };
    assert_eq!((a.class, b.class), (Class::Dog, Class::Cat));
    let left = Rect::try_from([0.0, 0.0, 0.25, 0.25]).unwrap();
    assert!(a.rect.iou(left) > 0.99, "{:?}", a.rect);
    let lower = Rect::try_from([0.0, 0.5, 1.0, 1.0]).unwrap();
    assert_eq!(detector.detect(&two_colours(), lower).unwrap(), []);
}

#[test]
fn the_heat_map_finds_both_colours_at_any_proportions() {
    let mut localiser = Localiser::new(&classifier()).unwrap();
    let wide = frame(120, 60, |x, _| match x {
        0..30 => [255, 0, 0],
        90..120 => [0, 0, 255],
        _ => [0, 255, 0],
    });
    let answer = localiser.localise(&wide, Rect::WHOLE).unwrap();
    assert!(answer.heat.width > answer.heat.height);
    assert_eq!(answer.heat.of(Class::Dog).len(), answer.heat.width * answer.heat.height);
    let dog = answer.detections.iter().find(|d| d.class == Class::Dog).unwrap();
    let cat = answer.detections.iter().find(|d| d.class == Class::Cat).unwrap();
    assert!(dog.rect.x0() < 0.05 && (dog.rect.x1() - 0.25).abs() < 0.1, "{:?}", dog.rect);
    assert!((cat.rect.x0() - 0.75).abs() < 0.1 && cat.rect.x1() > 0.95, "{:?}", cat.rect);
    assert_eq!(answer.detections.len(), 2);
}

#[test]
fn the_mean_of_the_map_is_the_logits() {
    let onnx = colour_classifier(8.0);
    let proto = onnx::read(&onnx).unwrap();
    let map = onnx::fully_convolutional(proto.clone(), "logits").unwrap();
    let mut whole = Network::load(&proto, "images", [1, 3, 32, 32]).unwrap();
    let mut cells = Network::load(&map, "images", [1, 3, 32, 32]).unwrap();
    let ramp = |out: &mut [f32]| {
        out.iter_mut().enumerate().for_each(|(i, v)| *v = (i * 37 % 101) as f32 / 101.0);
        Ok::<_, NetworkError>(())
    };
    whole.fill(ramp).unwrap();
    cells.fill(ramp).unwrap();
    let (logits, map) = (whole.run().unwrap(), cells.run().unwrap());
    assert_eq!(cells.outputs(), [("class_map".into(), vec![1, 3, 4, 4])]);
    for (logit, plane) in logits.floats(0).unwrap().iter().zip(map.floats(0).unwrap().chunks(16)) {
        let mean = plane.iter().sum::<f32>() / 16.0;
        assert!((logit - mean).abs() < 1e-5, "{logit} is not {mean}");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test may read the model it tests")]
fn the_mean_of_efficientnet_s_map_is_its_logits() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/efficientnet_lite0/");
    let onnx = std::fs::read(format!("{dir}efficientnet_lite0.onnx")).unwrap();
    let proto = onnx::read(&onnx).unwrap();
    let map = onnx::fully_convolutional(proto.clone(), "logits").unwrap();
    let mut whole = Network::load(&proto, "images", [1, 3, 224, 224]).unwrap();
    let mut cells = Network::load(&map, "images", [1, 3, 224, 224]).unwrap();
    let waves = |out: &mut [f32]| {
        out.iter_mut().enumerate().for_each(|(i, v)| *v = (i as f32 * 0.013).sin());
        Ok::<_, NetworkError>(())
    };
    whole.fill(waves).unwrap();
    cells.fill(waves).unwrap();
    let (logits, map) = (whole.run().unwrap(), cells.run().unwrap());
    let (logits, map) = (logits.floats(0).unwrap(), map.floats(0).unwrap());
    assert_eq!((logits.len(), map.len()), (1000, 49_000));
    for (logit, plane) in logits.iter().zip(map.chunks(49)) {
        let mean = plane.iter().sum::<f32>() / 49.0;
        assert!((logit - mean).abs() < 1e-4, "{logit} is not {mean}");
    }
    let map = onnx::fully_convolutional(proto, "logits").unwrap();
    let wide = Network::load(&map, "images", [1, 3, 288, 448]).unwrap();
    assert_eq!(wide.outputs(), [("class_map".into(), vec![1, 1000, 9, 14])]);
}

#[test]
fn other_spellings_of_the_head_are_known_and_other_heads_refused() {
    let net = || {
        Net::new(32).floats("w", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).floats(
            "b",
            &[2],
            &[0.5, -0.5],
        )
    };
    let mean = net()
        .node("ReduceMean", &["images"], "pool", &[("axes*", &[2, 3]), ("keepdims", &[0])])
        .node("MatMul", &["pool", "w"], "linear", &[])
        .node("Add", &["linear", "b"], "logits", &[])
        .onnx(&["logits"]);
    let map = onnx::fully_convolutional(onnx::read(&mean).unwrap(), "logits").unwrap();
    let mut network = Network::load(&map, "images", [1, 3, 2, 2]).unwrap();
    let ones = |out: &mut [f32]| {
        out.fill(1.0);
        Ok::<_, NetworkError>(())
    };
    network.fill(ones).unwrap();
    assert_eq!(network.run().unwrap().floats(0).unwrap()[..5], [9.5, 9.5, 9.5, 9.5, 11.5]);

    let max = Net::new(32)
        .floats("w", &[3, 3], &[1.0; 9])
        .floats("b", &[3], &[0.0; 3])
        .node("GlobalMaxPool", &["images"], "pool", &[])
        .node("Flatten", &["pool"], "flat", &[])
        .node("Gemm", &["flat", "w", "b"], "logits", &[])
        .onnx(&["logits"]);
    let model = Model::load(&classifier_text(&max), &max).unwrap();
    let error = chain(&Vision::new(Some(model), None).err().unwrap());
    assert!(error.contains("use a detector beside it"), "{error}");
}

#[test]
fn weights_stored_as_f16_are_widened() {
    let weights = [0.5, -1.0, 2.0, 1.5, 0.25, -0.125, 1.0, 2.0, -3.0];
    let net = |half: bool| {
        let net = Net::new(32);
        let net = if half {
            net.halves("w", &[3, 3], &weights)
        } else {
            net.floats("w", &[3, 3], &weights)
        };
        net.node("GlobalAveragePool", &["images"], "pool", &[])
            .node("Flatten", &["pool"], "flat", &[])
            .node("Gemm", &["flat", "w"], "logits", &[("transB", &[1])])
            .onnx(&["logits"])
    };
    let answer = |onnx: &[u8]| {
        let model = Model::load(&classifier_text(onnx), onnx).unwrap();
        let mut classifier = Classifier::new(model).unwrap();
        classifier.classify(&two_colours(), Rect::WHOLE, Framing::Whole).unwrap()
    };
    assert_eq!(answer(&net(true)), answer(&net(false)));
    let proto = onnx::read(&net(true)).unwrap().graph.unwrap();
    assert!(proto.node.iter().all(|n| n.op_type != "Cast"));
    assert!(proto.initializer.iter().all(|t| !t.name.ends_with(".f16")));
}

#[test]
fn looking_asks_the_classifier_about_every_animal() {
    let frame = two_colours();
    let both = |c: bool, d: bool| {
        let mut vision = Vision::new(c.then(classifier), d.then(detector)).unwrap();
        let mut stages = Vec::new();
        let seen = vision.look(&frame, Rect::WHOLE, &mut |s| stages.push(s)).unwrap();
        (seen, stages)
    };
    let (seen, stages) = both(true, true);
    let classes = |seen: &[Sighting]| -> Vec<Option<Class>> {
        seen.iter().map(|s| s.classification.as_ref().map(|c| c.probs.best())).collect()
    };
    assert_eq!(classes(&seen), [Some(Class::Dog), Some(Class::Cat)]);
    use Stage::{Classify, Detect, Resize};
    assert_eq!(stages, [Resize, Detect, Resize, Classify, Resize, Classify]);
    assert_eq!(classes(&both(false, true).0), [None, None], "a detector alone decides nothing");
    assert!(classes(&both(true, false).0).contains(&Some(Class::Dog)), "the heat map finds it");
    assert!(matches!(Vision::new(None, None), Err(VisionError::NoModel)));
    assert!(matches!(Vision::new(Some(detector()), None), Err(VisionError::Task { .. })));
    assert!(matches!(Vision::new(None, Some(classifier())), Err(VisionError::Task { .. })));
}

#[test]
fn one_animal_is_one_box_and_persons_stand_apart() {
    let at = |x: f32, class, score: f32| Detection {
        rect: Rect::clipped(x, 0.0, x + 0.4, 0.4).unwrap(),
        class,
        label: String::new(),
        score: Score::clamped(score),
    };
    let found = vec![
        at(0.0, Class::Dog, 0.9),
        at(0.02, Class::Cat, 0.8),
        at(0.0, Class::Person, 0.7),
        at(0.0, Class::Nothing, 0.6),
        at(0.3, Class::Cat, 0.5),
    ];
    let kept: Vec<(Class, f32)> =
        one_box_each(&found).iter().map(|d| (d.class, d.score.get())).collect();
    assert_eq!(kept, [(Class::Dog, 0.9), (Class::Person, 0.7), (Class::Cat, 0.5)]);
}

#[test]
fn what_a_picture_shows_is_said_of_the_whole_and_of_the_surest_box_together() {
    // Red is a dog; the whole picture alone is mostly green, which is nothing.
    let mut both = Vision::new(Some(classifier()), Some(detector())).unwrap();
    let told = both.describe(&two_colours()).unwrap().unwrap();
    let mut alone = Vision::new(Some(classifier()), None).unwrap();
    let whole = alone.describe(&two_colours()).unwrap().unwrap();
    assert_eq!(whole.probs.best(), Class::Nothing);
    assert!(told.probs.of(Class::Dog).get() > 10.0 * whole.probs.of(Class::Dog).get());
    let total: f32 = told.label_probs().iter().sum();
    assert!((total - 1.0).abs() < 1e-4, "{total}");
    assert!(
        Vision::new(None, Some(detector())).unwrap().describe(&two_colours()).unwrap().is_none()
    );
}

#[test]
fn a_mirrored_picture_is_described_alike() {
    let mut planes = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    super::classify::mirror(&mut planes, 3);
    assert_eq!(planes, [3.0, 2.0, 1.0, 6.0, 5.0, 4.0]);
    let mut vision = Vision::new(Some(classifier()), Some(detector())).unwrap();
    let mut of = |left: bool| {
        let red = frame(64, 64, |x, y| {
            if y < 16 && (x < 16) == left && (left || x >= 48) { [255, 0, 0] } else { [0, 255, 0] }
        });
        <[f32; 5]>::from(vision.describe(&red).unwrap().unwrap().probs)
    };
    let (left, right) = (of(true), of(false));
    for (l, r) in left.iter().zip(right) {
        assert!((l - r).abs() < 1e-4, "{left:?} {right:?}");
    }
}

#[test]
fn an_inventory_names_by_both_networks_and_goes_down_to_its_own_floor() {
    let mut vision = Vision::new(Some(classifier()), Some(detector())).unwrap();
    let seen = vision.inventory(&two_colours(), Score::clamped(0.05)).unwrap();
    assert_eq!(seen.iter().map(|d| d.class).collect::<Vec<_>>(), [Class::Dog, Class::Cat]);
    let mut alone = Detector::new(detector()).unwrap();
    for d in &seen {
        let own = alone.detect(&two_colours(), Rect::WHOLE).unwrap();
        let own = own.iter().find(|o| o.class == d.class).unwrap();
        assert!((d.score.get() - own.score.get().sqrt()).abs() < 1e-2, "the classifier is certain");
    }
    // Some red is too dim for the door's floor, and still reported to those who ask for less.
    let reported = (1..=255).find(|red| {
        let dim = frame(64, 64, |x, y| if x < 16 && y < 16 { [*red, 0, 0] } else { [0, 255, 0] });
        !vision.inventory(&dim, Score::clamped(0.02)).unwrap().is_empty()
            && vision.look(&dim, Rect::WHOLE, &mut |_| {}).unwrap().is_empty()
    });
    assert!(reported.is_some());
}

#[test]
fn a_part_of_an_animal_is_not_a_second_one_but_a_herd_is_many() {
    let of = |class, rect: [f32; 4], score| Detection {
        rect: Rect::try_from(rect).unwrap(),
        class,
        label: String::new(),
        score: Score::clamped(score),
    };
    let (whole, head) = ([0.1, 0.1, 0.9, 0.9], [0.1, 0.1, 0.5, 0.5]);
    let beside = [0.8, 0.1, 1.0, 0.9];
    let left = |class, other| {
        let named = vec![of(class, whole, 0.8), of(class, head, 0.5), of(other, head, 0.4)];
        without_parts(named).len()
    };
    assert_eq!(left(Class::Dog, Class::Dog), 1);
    assert_eq!(left(Class::Dog, Class::Cat), 2, "a cat before a dog");
    assert_eq!(left(Class::Person, Class::Dog), 2, "a dog before its master");
    assert_eq!(left(Class::Other, Class::Other), 3);
    let pair = vec![of(Class::Dog, whole, 0.8), of(Class::Dog, beside, 0.7)];
    assert_eq!(without_parts(pair).len(), 2, "half of it is its own");
}

#[test]
fn a_person_is_believed_by_both_networks_or_left_out() {
    // Blue is a cat to the classifier, and its detector's label is now a person's.
    let onnx = colour_detector();
    let persons = detector_text(COLOUR_DETECTOR, &onnx).replace("classes.cat", "classes.person");
    let finds_persons = || Some(Model::load(&persons, &onnx).unwrap());
    let frame = two_colours();
    let mut unaware = Vision::new(Some(classifier()), finds_persons()).unwrap();
    let seen = unaware.look(&frame, Rect::WHOLE, &mut |_| {}).unwrap();
    let person = seen.iter().find(|s| s.detection.class == Class::Person).unwrap();
    assert_eq!(person.classification, None, "a classifier that knows no persons is not asked");
    let onnx = colour_classifier(8.0);
    let aware = classifier_text(&onnx).replace("rest = 'nothing'", "rest = 'person'");
    let aware = Model::load(&aware, &onnx).unwrap();
    let mut vision = Vision::new(Some(aware), finds_persons()).unwrap();
    let seen = vision.look(&frame, Rect::WHOLE, &mut |_| {}).unwrap();
    assert!(seen.iter().all(|s| s.detection.class != Class::Person), "blue is no person: {seen:?}");
}

#[test]
fn the_door_looks_for_persons_from_a_floor_of_their_own() {
    let onnx = colour_detector();
    let persons = detector_text(COLOUR_DETECTOR, &onnx).replace("classes.cat", "classes.person");
    let seen = |thresholds: &str| {
        let text = persons.replace("[labels]", &format!("[thresholds]\n{thresholds}\n[labels]"));
        let detector = Some(Model::load(&text, &onnx).unwrap());
        let mut vision = Vision::new(Some(classifier()), detector).unwrap();
        // A dim red and a dim blue cell: 0.22 and 0.21.
        let dim = frame(64, 64, |x, y| match (x, y) {
            (0..16, 0..16) => [115, 0, 0],
            (48..64, 0..16) => [0, 0, 114],
            _ => [0, 255, 0],
        });
        let seen = vision.look(&dim, Rect::WHOLE, &mut |_| {}).unwrap();
        seen.iter().map(|s| s.detection.class).collect::<Vec<_>>()
    };
    assert_eq!(seen(""), []);
    assert_eq!(seen("person_floor = 0.18"), [Class::Person]);
    assert_eq!(seen("score_floor = 0.2"), [Class::Dog], "what forbids keeps its own floor");
    assert_eq!(seen("score_floor = 0.2\nperson_floor = 0.2"), [Class::Dog, Class::Person]);
}

#[test]
fn no_more_crops_than_the_limit_are_classified() {
    let red = frame(64, 64, |_, _| [255, 0, 0]);
    let mut vision = Vision::new(Some(classifier()), Some(detector())).unwrap();
    let seen = vision.look(&red, Rect::WHOLE, &mut |_| {}).unwrap();
    assert_eq!(seen.len(), 16);
    assert_eq!(seen.iter().filter(|s| s.classification.is_some()).count(), MAX_CROPS);
}

#[test]
fn a_network_that_gives_nan_is_an_error_and_never_a_result() {
    let frame = two_colours();
    for poison in [f32::NAN, f32::INFINITY] {
        let onnx = colour_classifier(poison);
        let model = || Model::load(&classifier_text(&onnx), &onnx).unwrap();
        let answer =
            Classifier::new(model()).unwrap().classify(&frame, Rect::WHOLE, Framing::Whole);
        assert!(matches!(answer, Err(VisionError::NotFinite { model }) if model == "tiny"));
        let mut vision = Vision::new(Some(model()), None).unwrap();
        let answer = vision.look(&frame, Rect::WHOLE, &mut |_| {});
        assert!(matches!(answer, Err(VisionError::NotFinite { .. })));
    }
    let onnx = Net::new(32)
        .floats("w", &[7, 3, 8, 8], &vec![f32::NAN; 7 * 3 * 64])
        .node("Conv", &["images", "w"], "p8", &[("strides*", &[8, 8])])
        .onnx(&["p8"]);
    let model = Model::load(&detector_text(COLOUR_DETECTOR, &onnx), &onnx).unwrap();
    let answer = Detector::new(model).unwrap().detect(&frame, Rect::WHOLE);
    assert!(matches!(answer, Err(VisionError::NotFinite { .. })));
}

#[test]
fn one_value_that_is_not_finite_is_found_anywhere() {
    for len in [1, 15, 16, 17, 100] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..len {
                let mut values = vec![1e30; len];
                assert!(model::require_finite("m", &values).is_ok());
                values[at] = bad;
                assert!(model::require_finite("m", &values).is_err(), "{bad} at {at} of {len}");
            }
        }
    }
}

#[test]
fn a_tampered_truncated_or_foreign_file_is_refused_by_name() {
    let onnx = colour_classifier(8.0);
    let text = classifier_text(&onnx);
    let mut tampered = onnx.clone();
    tampered[100] ^= 1;
    for bad in [&tampered[..], &onnx[..onnx.len() / 2], b"", b"not a network"] {
        let error = refusal(&text, bad);
        assert!(error.contains("model tiny: the ONNX has sha256"), "{error}");
    }
    // Even with the sum of the damaged file in the manifest.
    for cut in (0..onnx.len()).step_by(97) {
        let error = refusal(&classifier_text(&onnx[..cut]), &onnx[..cut]);
        assert!(error.contains("model tiny cannot be used"), "{error}");
    }
}

#[test]
fn damaged_bytes_never_panic() {
    let onnx = colour_classifier(8.0);
    for at in (0..onnx.len()).step_by(3) {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = onnx.clone();
            bad[at] ^= flip;
            // Either a working model or an error; both are fine, a panic is not.
            let _ = Model::load(&classifier_text(&bad), &bad);
        }
    }
}

#[test]
fn a_wrong_shape_is_named_at_load() {
    let small = Net::new(16)
        .node("GlobalAveragePool", &["images"], "pool", &[])
        .node("Flatten", &["pool"], "logits", &[])
        .onnx(&["logits"]);
    let error = refusal(&classifier_text(&small), &small);
    assert!(error.contains("its input is `images` of shape [1, 3, 16, 16]"), "{error}");
    assert!(error.contains("the manifest says `images` of shape [1, 3, 32, 32]"), "{error}");

    let three = Net::new(32)
        .node("GlobalAveragePool", &["images"], "pool", &[])
        .node("Flatten", &["pool"], "logits", &[])
        .onnx(&["logits"]);
    let two = classifier_text(&three).replace(", 'lawn'", "");
    let error = refusal(&two, &three);
    assert!(error.contains("its output `logits` is [1, 3], the manifest needs [1, 2]"), "{error}");
    let text = classifier_text(&three).replace("name = 'logits'", "name = 'scores'");
    let error = refusal(&text, &three);
    assert!(error.contains("its output `scores` is missing (it has logits)"), "{error}");
}

#[test]
fn graphs_whose_parts_do_not_fit_are_refused() {
    let cases = [
        (Net::new(32).node("Relu", &["ghost"], "logits", &[]).onnx(&["logits"]), "ghost"),
        (Net::new(32).node("Relu", &["images"], "x", &[]).onnx(&["logits"]), "`logits`"),
        (Net::new(32).node("Wobble", &["images"], "logits", &[]).onnx(&["logits"]), "prepared"),
        (Net::new(32).floats("c", &[7], &[1.0]).onnx(&["c"]), "fewer or more values"),
        (Net::new(32).floats("c", &[-1], &[]).onnx(&["c"]), "impossible shape"),
    ];
    for (onnx, expected) in cases {
        let error = refusal(&classifier_text(&onnx), &onnx);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn manifests_are_refused_with_the_key_and_what_it_must_be() {
    let good = classifier_text(b"");
    let bad = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        chain(&Manifest::parse(&good.replacen(from, to, 1)).unwrap_err())
    };
    for (from, to, expected) in [
        ("manifest = 1", "manifest = 2", "`manifest` must be 1, not 2"),
        ("manifest = 1\n", "", "missing field `manifest`"),
        ("name = 'tiny'", "name = 'Tiny Dog'", "`name` must be 1 to 64 lower-case letters"),
        ("version = '1'", "version = ''", "`version` must be not empty"),
        ("version = '1'", "version = '1'\ncolor = 'x'", "unknown field `color`"),
        ("task = 'classifier'", "task = 'detector'", "`output.family` must be yolox"),
        ("file = 'tiny.onnx'", "file = '../tiny.onnx'", "`file` must be the name of an .onnx"),
        ("sha256 = '", "sha256 = 'X", "`sha256` must be 64 lower-case hexadecimal digits"),
        ("[1, 3, 32, 32]", "[2, 3, 32, 32]", "`input.shape` must be [1, 3, height, width]"),
        ("[1, 3, 32, 32]", "[1, 3, 32, 9999]", "sides of 1 to 2048"),
        ("[1, 3, 32, 32]", "[3, 32, 32]", "invalid length 3"),
        ("layout = 'nchw'", "layout = 'nhwc'", "unknown variant `nhwc`, expected `nchw`"),
        ("colour = 'rgb'", "colour = 'rbg'", "expected `rgb` or `bgr`"),
        ("std = [255.0,", "std = [0.0,", "`input.std` must be three numbers above 0"),
        ("std = [255.0,", "std = [nan,", "`input.std` must be three numbers above 0"),
        ("fraction = 1.0", "fraction = 1.5", "`input.resize.fraction` must be above 0"),
        ("mode = 'crop', fraction = 1.0", "mode = 'crop'", "missing field `fraction`"),
        ("mode = 'crop', fraction = 1.0", "mode = 'letterbox', fill = 0", "crop or stretch"),
        ("mode = 'crop', fraction = 1.0", "mode = 'letterbox', fill = 300", "expected u8"),
        ("family = 'softmax'", "family = 'yolov5'", "unknown variant `yolov5`"),
        ("name = 'logits'", "name = 'logits'\nnms = 1", "unknown field `nms`"),
        ("rest = 'nothing'", "rest = 'bird'", "unknown variant `bird`"),
        ("['dog']\n", "['wolf']\n", "`labels.classes.dog` must be names from labels.names"),
        ("[[1, 1]]", "[[1, 3]]", "ranges [first, last] within 0 to 2"),
        ("[[1, 1]]", "[[1, 0]]", "ranges [first, last] within 0 to 2"),
        ("[[1, 1]]", "[[0, 1]]", "`dog` has one too"),
        ("names = ['dog', 'cat', 'lawn']", "names = []", "`labels.names` must be 1 to 20000 names"),
        (
            "[labels]",
            "[calibration]\ntemperature = 0.0\n[labels]",
            "`calibration.temperature` must be a number above 0, not 0",
        ),
        (
            "[labels]",
            "[calibration]\ntemperature = 1.0\nprior = { dog = 0.4 }\n[labels]",
            "`calibration.prior` must be shares that sum to 1",
        ),
        (
            "[labels]",
            "[thresholds]\nscore_floor = 1.0\n[labels]",
            "`thresholds.score_floor` must be above 0 and below 1, not 1",
        ),
        (
            "[labels]",
            "[open_set]\nmethod = 'distance'\noutput = 'logits'\nreject_above = 1.0\n[labels]",
            "`open_set.output` must be the name of an output that has no other use",
        ),
        (
            "[labels]",
            "[[metrics]]\nname = 'a'\nvalue = 1.0\ndata = 'b'\ndata_sha256 = '0'\n[labels]",
            "`metrics.data_sha256` must be 64",
        ),
    ] {
        let error = bad(from, to);
        assert!(error.contains(expected), "{to}: {error}");
    }
    let detector = detector_text(COLOUR_DETECTOR, b"");
    for (from, to, expected) in [
        ("strides = [8]", "strides = [7]", "`output.strides` must be 1 to 8 numbers that divide"),
        ("strides = [8]", "strides = [0]", "`output.strides` must be"),
        ("strides = [8]", "strides = [8, 16]", "`output.names` must be one for each of the 2"),
        ("nms_iou = 0.5", "nms_iou = 0.0", "`output.nms_iou` must be above 0"),
        ("mode = 'stretch'", "mode = 'crop', fraction = 1.0", "stretch or letterbox"),
        ("[labels]", "[calibration]\ntemperature = 1.0\n[labels]", "left out for a detector"),
    ] {
        let error = chain(&Manifest::parse(&detector.replacen(from, to, 1)).unwrap_err());
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn manifests_survive_writing_and_reading() {
    let classifier = classifier_text(b"").replace(
        "[labels]",
        "[calibration]\ntemperature = 1.5\nbias = { cat = -0.5 }\n\
         prior = { dog = 0.5, cat = 0.25, other = 0.25 }\n\
         [open_set]\nmethod = 'energy'\nreject_below = 2.0\n\
         [[metrics]]\nname = 'accuracy'\nvalue = 0.9\ndata = 'val'\n\
         [training]\nmethod = 'by hand'\ndata = 'none'\nseed = 7\n[labels]",
    );
    let texts = FAMILIES.iter().map(|f| detector_text(f, b"")).chain([classifier]);
    for text in texts {
        let manifest = Manifest::parse(&text).unwrap();
        let written = manifest.to_toml().unwrap();
        assert_eq!(Manifest::parse(&written).unwrap(), manifest, "{written}");
    }
}

#[test]
fn the_shipped_manifest_of_the_classifier_is_sound() {
    let manifest =
        Manifest::parse(include_str!("../../../models/efficientnet_lite0/model.toml")).unwrap();
    let classes = manifest.labels.class_of_each().unwrap();
    assert_eq!(classes.len(), 1000);
    let count = |class| classes.iter().filter(|c| **c == class).count();
    assert_eq!(count(Class::Dog), 118);
    assert_eq!(count(Class::Cat), 5);
    assert_eq!(count(Class::Person), 3);
    assert_eq!(count(Class::Other), 398 - 118 - 5);
    assert!(matches!(manifest.input.resize, Resize::Crop { .. }));
}
