//! "My own dog": rules about one animal, from pictures to the latch, and recorded.

mod support;

use std::path::Path;
use std::time::Duration;

use pawlatch::camera::CameraError;
use pawlatch::config::Config;
use pawlatch::demo::{Visit, Yard, visits};
use pawlatch::journal::{Entry, Replayed};
use pawlatch::models::{InUse, ModelsDir};
use pawlatch::owner::animals::{Animals, MIN_PICTURES, Recogniser, Standing, Worth, dog};
use pawlatch::replay::{Moment, Player, Tally};
use pawlatch_core::door::JournalHealth;
use pawlatch_core::event::{Verdict, What};
use pawlatch_core::eye::Eye;
use pawlatch_core::frame::Frame;
use pawlatch_core::identity::{Gallery, Roll};
use pawlatch_core::policy::{Effect, Policy, Rule};
use pawlatch_core::sight::{Class, Sighting};
use pawlatch_core::units::Rect;
use support::{World, seeing, sure};

/// Rex may come in, and nobody else.
fn only_rex() -> Config {
    let who = "dog:Rex".to_owned().try_into().unwrap();
    let rule =
        Rule { name: "Rex".to_owned(), who, ways: Vec::new(), effect: Effect::Allow, when: None };
    Config { policy: Policy::new(vec![rule]), ..Config::default() }
}

#[test]
fn a_visit_is_recorded_with_who_it_was_and_decided_again_byte_for_byte() {
    for (likeness, verdict, animals) in [
        (vec![0.812_345_6, 0.1], Verdict::LetIn, vec!["Rex".to_owned()]),
        (vec![0.3, 0.699_999_9], Verdict::KeptShut, Vec::new()),
    ] {
        let mut world = World::starting(&only_rex(), JournalHealth::Writable);
        let roll = Roll { names: vec!["Rex".to_owned(), "Bella".to_owned()], needed: 0.7 };
        world.appliance = world.appliance.knowing(roll);
        world.play(Duration::from_secs(1), |now| seeing(now, Vec::new()));
        let there = Sighting { likeness, ..sure(Class::Dog, false) };
        world.play(Duration::from_secs(2), |now| seeing(now, vec![there.clone()]));
        world.play(Duration::from_secs(20), |now| seeing(now, Vec::new()));
        let entries = &world.appliance.recorder().entries;
        let recognised = entries.iter().find_map(|entry| match entry {
            Entry::Event(event) => match &event.what {
                What::Recognised { animals, .. } => Some(animals.clone()),
                _ => None,
            },
            _ => None,
        });
        assert_eq!(recognised, Some(animals));
        let text = entries.iter().find_map(|entry| match entry {
            Entry::Recording { text, verdict: ended, .. } => {
                assert_eq!(*ended, Some(verdict));
                Some(text)
            }
            _ => None,
        });
        let replayed = Replayed::play(text.unwrap()).unwrap();
        assert!(replayed.steps.len() > 40 && replayed.differs_at.is_none());
        // What an animal looks like is not in it.
        assert!(text.unwrap().len() < 2_000 * replayed.steps.len());
    }
}

/// The pictures of `visit` in which a dog is seen (whatever is seen, if `anybody`), with where.
fn pictures(in_use: &InUse, yard: &Yard, visit: &Visit, anybody: bool) -> Vec<(Frame, Rect)> {
    let mut vision = in_use.vision().unwrap();
    let mut film = yard.film(visit);
    let mut found = Vec::new();
    while let Some(frame) = pawlatch::camera::FrameSource::next(&mut film).unwrap() {
        if frame.captured_at().as_millis() % 200 != 0 {
            continue;
        }
        let seen = vision.look(&frame, Rect::WHOLE, &mut |_| {}).unwrap();
        let seen = support::frame_with(frame.captured_at(), seen);
        let rect = dog(&seen).or(seen.seen.first().filter(|_| anybody).map(|s| s.detection.rect));
        found.extend(rect.map(|rect| (frame, rect)));
    }
    found
}

/// How the first visit of the demonstration, the dog's, goes where only Rex may come in.
fn the_dog_comes(in_use: &InUse, yard: &Yard, visit: &Visit, gallery: Gallery) -> Tally {
    let config = only_rex();
    let roll = gallery.roll().clone();
    let eye = Eye::new(config.gate.clone(), in_use.vision().unwrap().knowing(gallery));
    let mut player = Player::new(eye, &config, None).knowing(roll);
    let mut tally = Tally::default();
    let passage = |now, latch| visit.passage(now, latch);
    let mut each = |moment: &Moment<'_>| -> Result<(), CameraError> {
        tally.add(moment.decision, moment.frame.is_some());
        Ok(())
    };
    player.play(&mut yard.film(visit), &passage, &mut each).unwrap();
    tally
}

#[test]
fn an_enrolled_dog_is_let_in_by_name_and_a_strange_one_is_not() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models");
    let models = ModelsDir::open(&root, "the test").unwrap();
    let in_use = models.in_use().unwrap();
    let classifier = in_use.required_classifier().unwrap();
    let (yard, visits) = (Yard::load().unwrap(), visits());
    let dir = tempfile::tempdir().unwrap();
    let mut recogniser = Recogniser::default();
    let home = pictures(&in_use, &yard, &visits[0], false);
    let mut animals = Animals::open(dir.path()).unwrap();
    let added = animals.add("Rex", &home, &mut recogniser, &models).unwrap();
    assert!(added.good >= MIN_PICTURES, "{added:?}");
    assert_eq!(animals.standings(classifier), [Standing::Known]);
    let (frame, rect) = &home[home.len() / 2];
    let worth = animals.worth("Rex", frame, *rect, &mut recogniser, &models).unwrap();
    assert_eq!(worth, Worth::Alike, "this side is known");
    let small = Rect::clipped(0.4, 0.4, 0.42, 0.42).unwrap();
    let worth = animals.worth("Ace", frame, small, &mut recogniser, &models).unwrap();
    assert_eq!(worth, Worth::Small);

    // As the next start finds it.
    let gallery = Animals::open(dir.path()).unwrap().gallery(classifier);
    assert_eq!(gallery.roll().names, ["Rex"]);
    let tally = the_dog_comes(&in_use, &yard, &visits[0], gallery);
    let summary = tally.summary();
    assert_eq!(summary.verdict, Verdict::LetIn, "{summary:?}");
    assert!(summary.reasons[0].contains("looks like Rex"), "{summary:?}");

    // With another network what was enrolled does not count, until it is enrolled again.
    let file = dir.path().join("animals/embeddings.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(&classifier.manifest.sha256, "another")).unwrap();
    let animals = Animals::open(dir.path()).unwrap();
    assert_eq!(animals.standings(classifier), [Standing::Again]);
    let tally = the_dog_comes(&in_use, &yard, &visits[0], animals.gallery(classifier));
    let summary = tally.summary();
    assert_eq!(summary.verdict, Verdict::KeptShut, "{summary:?}");
    animals.enrol_again(&mut recogniser, &models).unwrap();
    assert_eq!(animals.standings(classifier), [Standing::Known]);

    // Where somebody else is called Rex, this dog is a strange one.
    let dir = tempfile::tempdir().unwrap();
    let mut animals = Animals::open(dir.path()).unwrap();
    let others = pictures(&in_use, &yard, &visits[1], true);
    let added = animals.add("Rex", &others, &mut recogniser, &models).unwrap();
    assert!(added.good >= MIN_PICTURES, "{added:?}");
    let tally = the_dog_comes(&in_use, &yard, &visits[0], animals.gallery(classifier));
    let summary = tally.summary();
    assert_eq!(summary.verdict, Verdict::KeptShut, "{summary:?}");
    assert!(summary.reasons.iter().all(|reason| !reason.contains("looks like")), "{summary:?}");
}
