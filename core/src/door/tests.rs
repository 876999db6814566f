//! One test per transition through one `check`, and every state met with every kind of input.

mod animals;

use super::*;
use crate::event::What;
use crate::policy::{Effect, Rule, Schedule, Who};
use crate::track::Track;
use crate::units::Rect;

/// What one moment shows; everything sound and nothing there unless said otherwise.
#[derive(Clone)]
struct Moment {
    tracks: Vec<Track>,
    frame_age: Option<u64>,
    picture: PictureHealth,
    vision: VisionHealth,
    journal: JournalHealth,
    latch: Option<(Position, u64)>,
    passage: Option<bool>,
    request: Option<Request>,
    wall: Option<ZonedDateTime>,
}

fn calm() -> Moment {
    Moment {
        tracks: Vec::new(),
        frame_age: Some(50),
        picture: PictureHealth::Good,
        vision: VisionHealth::Ready,
        journal: JournalHealth::Writable,
        latch: Some((Position::Locked, 0)),
        passage: Some(false),
        request: None,
        wall: Some(at("2026-06-01T12:00[Europe/Berlin]")),
    }
}

fn at(text: &str) -> ZonedDateTime {
    text.parse().unwrap()
}

fn with(tracks: &[(Class, f32)]) -> Moment {
    Moment { tracks: tracks.iter().map(|&(class, e)| track(class, e)).collect(), ..calm() }
}

fn dog() -> Moment {
    with(&[(Class::Dog, 8.0)])
}

fn asked(request: Request) -> Moment {
    Moment { request: Some(request), ..calm() }
}

fn latch(position: Position, moment: Moment) -> Moment {
    Moment { latch: Some((position, 0)), ..moment }
}

fn passage(broken: bool, moment: Moment) -> Moment {
    Moment { passage: Some(broken), ..moment }
}

fn track(class: Class, evidence: f32) -> Track {
    let of = |c: Class| if c == class { evidence } else { -evidence };
    Track {
        id: class as u32 + 1,
        rect: Rect::WHOLE,
        first_seen: Uptime::ZERO,
        last_seen: Uptime::ZERO,
        frames: 5,
        dog: of(Class::Dog),
        cat: of(Class::Cat),
        person: of(Class::Person),
        other: of(Class::Other),
        doubt: 0.0,
        in_approach: true,
        likeness: Vec::new(),
        looks: 0.0,
    }
}

/// Steps `door` at `ms` through `moment`.
fn step(door: &mut Door, ms: u64, moment: &Moment) -> Decision {
    let now = Uptime::from_millis(ms);
    let ago = |age: u64| Uptime::from_millis(ms.saturating_sub(age));
    let mut tracks = moment.tracks.clone();
    for track in &mut tracks {
        track.last_seen = now;
    }
    door.step(
        now,
        &Observation {
            tracks: &tracks,
            frame_at: moment.frame_age.map(ago),
            picture: moment.picture,
            vision: moment.vision,
            journal: moment.journal,
            latch: moment.latch.map(|(position, age)| LatchReport { position, at: ago(age) }),
            passage: moment.passage,
            request: moment.request,
            wall: moment.wall.as_ref(),
        },
    )
}

fn door(policy: Policy) -> Door {
    Door::new(DoorSettings::default(), policy, false, Uptime::from_millis(0))
}

fn night_curfew() -> Policy {
    let rule = |name: &str, effect, when| Rule {
        name: name.to_owned(),
        who: Who::Class(Class::Dog),
        ways: Vec::new(),
        effect,
        when,
    };
    let night =
        Schedule { from: "22:00".parse().unwrap(), to: "06:00".parse().unwrap(), days: Vec::new() };
    Policy::new(vec![rule("dogs", Effect::Allow, None), rule("night", Effect::Deny, Some(night))])
}

fn at_night(moment: Moment) -> Moment {
    Moment { wall: Some(at("2026-06-01T23:00[Europe/Berlin]")), ..moment }
}

/// Plays a script of `(milliseconds, moment, name of the state afterwards)` from the start.
#[track_caller]
fn check(policy: Policy, script: &[(u64, Moment, &str)]) -> Vec<Decision> {
    let mut door = door(policy);
    let mut decisions = Vec::new();
    for (ms, moment, expected) in script {
        let decision = step(&mut door, *ms, moment);
        assert_eq!(decision.state.name(), *expected, "at {ms} ms: {decision:#?}");
        decisions.push(decision);
    }
    decisions
}

fn happened(decisions: &[Decision]) -> Vec<What> {
    decisions.iter().flat_map(|d| d.events.iter().map(|e| e.what.clone())).collect()
}

#[test]
fn a_dog_is_let_in_passes_and_the_door_locks_behind_it() {
    let decisions = check(
        Policy::default(),
        &[
            (100, calm(), "idle"),
            (200, with(&[(Class::Dog, 2.0)]), "watching"),
            (300, dog(), "open"),
            (400, latch(Position::Unlocked, dog()), "open"),
            (500, passage(true, latch(Position::Unlocked, calm())), "passing"),
            (900, passage(true, latch(Position::Unlocked, calm())), "passing"),
            (1_000, latch(Position::Unlocked, calm()), "passing"),
            (2_000, latch(Position::Unlocked, calm()), "relocking"),
            (2_100, latch(Position::Moving, calm()), "relocking"),
            (2_300, calm(), "idle"),
            (4_200, calm(), "idle"),
        ],
    );
    use What::*;
    assert_eq!(
        happened(&decisions),
        [
            Ready,
            ApproachBegan,
            Opened { whom: Whom::Dog },
            Passing,
            Relocking { why: Relock::Passed },
            Relocked,
            ApproachEnded { verdict: Verdict::LetIn },
        ]
    );
}

#[test]
fn a_cat_is_refused_and_remembered() {
    let decisions = check(
        Policy::default(),
        &[
            (100, calm(), "idle"),
            (200, with(&[(Class::Cat, 1.0)]), "watching"),
            (300, with(&[(Class::Cat, 8.0)]), "refused"),
            // The cat is gone and a dog is there, but the cat may be just beside it.
            (400, calm(), "refused"),
            (500, dog(), "refused"),
            (10_200, dog(), "refused"),
            (10_400, dog(), "open"),
        ],
    );
    assert!(decisions[4].missing().any(|why| why == "a cat was here a moment ago"));
}

#[test]
fn what_was_a_cat_does_not_become_a_dog_by_turning_round() {
    let opens_at = |script: &[(u64, Moment)]| {
        let mut door = door(Policy::default());
        step(&mut door, 100, &calm());
        step(&mut door, 300, &with(&[(Class::Cat, 8.0)]));
        let open = |(ms, moment): &(u64, Moment)| {
            step(&mut door, *ms, moment).state.wishes_unlocked().then_some(*ms)
        };
        script.iter().find_map(open)
    };
    // Nobody left and nobody came: for three times as long it is that cat.
    let every_second = |from: u64| (from..40_000).step_by(1_000).map(|ms| (ms, dog()));
    let stays: Vec<_> = every_second(400).collect();
    assert_eq!(opens_at(&stays), Some(30_400));
    // Once the view was empty, whoever comes is somebody else.
    let leaves: Vec<_> =
        [(400, dog()), (5_400, calm())].into_iter().chain(every_second(5_500)).collect();
    assert_eq!(opens_at(&leaves), Some(10_500));
}

#[test]
fn a_cat_or_person_beside_the_dog_is_a_veto() {
    for (other, words) in [(Class::Cat, "a cat is in view"), (Class::Person, "a person is in view")]
    {
        let pair = with(&[(Class::Dog, 8.0), (other, 3.0)]);
        let decisions = check(Policy::default(), &[(100, calm(), "idle"), (200, pair, "watching")]);
        assert_eq!(decisions[1].missing().collect::<Vec<_>>()[0], words);
    }
}

#[test]
fn a_person_does_not_matter_where_the_owner_says_so() {
    let settings = DoorSettings { person_vetoes: false, ..DoorSettings::default() };
    let mut door = Door::new(settings, Policy::default(), false, Uptime::ZERO);
    step(&mut door, 100, &calm());
    let pair = with(&[(Class::Dog, 8.0), (Class::Person, 8.0)]);
    assert_eq!(step(&mut door, 200, &pair).state.name(), "open");
}

#[test]
fn networks_that_contradict_each_other_are_a_veto() {
    let mut torn = dog();
    torn.tracks[0].doubt = 0.6;
    check(Policy::default(), &[(100, calm(), "idle"), (200, torn, "watching")]);
}

#[test]
fn a_veto_locks_an_open_door() {
    check(
        Policy::default(),
        &[
            (100, calm(), "idle"),
            (200, dog(), "open"),
            (300, latch(Position::Unlocked, with(&[(Class::Cat, 3.0)])), "relocking"),
        ],
    );
}

#[test]
fn a_cat_behind_the_dog_shuts_the_passage_as_soon_as_it_is_clear() {
    let follower = || latch(Position::Unlocked, with(&[(Class::Cat, 3.0)]));
    check(
        Policy::default(),
        &[
            (100, calm(), "idle"),
            (200, dog(), "open"),
            (300, passage(true, latch(Position::Unlocked, calm())), "passing"),
            (400, passage(true, follower()), "passing"),
            (500, follower(), "relocking"),
        ],
    );
}

#[test]
fn nobody_comes_through_and_time_is_up() {
    let waiting = || latch(Position::Unlocked, dog());
    check(
        Policy::default(),
        &[
            (100, calm(), "idle"),
            (200, dog(), "open"),
            (8_100, waiting(), "open"),
            (8_200, waiting(), "relocking"),
        ],
    );
}

#[test]
fn a_blocked_passage_is_not_kept_unlocked_for_ever() {
    let blocked = || passage(true, latch(Position::Unlocked, calm()));
    check(
        Policy::default(),
        &[
            (100, calm(), "idle"),
            (200, dog(), "open"),
            (300, blocked(), "passing"),
            (20_200, blocked(), "passing"),
            (20_300, blocked(), "relocking"),
        ],
    );
}

#[test]
fn two_failed_relocks_latch_a_fault_that_only_the_owner_ends() {
    let stuck = || latch(Position::Unlocked, calm());
    let decisions = check(
        Policy::default(),
        &[
            (100, calm(), "idle"),
            (200, dog(), "open"),
            (8_200, stuck(), "relocking"),
            (10_201, stuck(), "relocking"),
            (12_202, stuck(), "fault"),
            (13_000, calm(), "fault"),
            (99_000, calm(), "fault"),
            (99_100, asked(Request::Release), "idle"),
        ],
    );
    assert!(happened(&decisions).contains(&What::RelockFailed { attempt: 2 }));
}

#[test]
fn without_every_proof_the_door_stays_locked_and_says_which() {
    let cases: [(Moment, ProofKind); 6] = [
        (Moment { frame_age: Some(1_001), ..dog() }, ProofKind::FreshFrame),
        (Moment { frame_age: None, ..dog() }, ProofKind::FreshFrame),
        (Moment { picture: PictureHealth::Frozen, ..dog() }, ProofKind::Picture),
        (Moment { vision: VisionHealth::Failed, ..dog() }, ProofKind::Vision),
        (Moment { journal: JournalHealth::Failed, ..dog() }, ProofKind::Journal),
        (latch(Position::Unknown, dog()), ProofKind::Latch),
    ];
    for (moment, missing) in cases {
        let mut door = door(Policy::default());
        step(&mut door, 100, &calm());
        let decision = step(&mut door, 3_000, &moment);
        assert_eq!(decision.latch, DesiredLatch::Locked, "{missing:?}");
        let proof = decision.proofs.iter().find(|p| p.proof == missing).unwrap();
        assert!(!proof.passed && proof.words.is_some(), "{missing:?}");
    }
}

#[test]
fn a_blind_door_is_locked_again() {
    check(
        Policy::default(),
        &[
            (100, calm(), "idle"),
            (200, dog(), "open"),
            (
                1_300,
                Moment { frame_age: Some(1_001), ..latch(Position::Unlocked, dog()) },
                "relocking",
            ),
        ],
    );
}

#[test]
fn a_lost_camera_is_a_fault_that_ends_by_itself() {
    let blind = || Moment { frame_age: Some(5_001), ..calm() };
    check(
        Policy::default(),
        &[(100, calm(), "idle"), (6_000, blind(), "fault"), (6_100, calm(), "idle")],
    );
}

#[test]
fn a_picture_that_stays_sick_is_a_fault() {
    let sick = |health| Moment { picture: health, ..calm() };
    check(
        Policy::default(),
        &[
            (100, calm(), "idle"),
            (200, sick(PictureHealth::Black), "idle"),
            (5_200, sick(PictureHealth::Covered), "idle"),
            (5_201, sick(PictureHealth::Covered), "fault"),
            (5_300, calm(), "idle"),
        ],
    );
}

#[test]
fn a_latch_that_opens_by_itself_is_a_fault() {
    let forced = || latch(Position::Unlocked, calm());
    check(
        Policy::default(),
        &[
            (100, calm(), "idle"),
            (200, forced(), "idle"),
            (2_201, forced(), "fault"),
            (2_300, calm(), "idle"),
        ],
    );
}

#[test]
fn a_silent_latch_is_a_fault() {
    let silent = Moment { latch: Some((Position::Locked, 2_001)), ..calm() };
    check(Policy::default(), &[(100, calm(), "idle"), (3_000, silent, "fault")]);
    let never = Moment { latch: None, ..calm() };
    check(Policy::default(), &[(100, never.clone(), "starting"), (2_001, never, "fault")]);
}

#[test]
fn a_schedule_locks_and_releases_and_a_clock_that_jumps_locks() {
    let decisions = check(
        night_curfew(),
        &[
            (100, calm(), "idle"),
            (200, at_night(dog()), "scheduled"),
            (300, dog(), "watching"),
            (400, dog(), "open"),
            (500, at_night(latch(Position::Unlocked, dog())), "relocking"),
            (600, calm(), "idle"),
            (700, Moment { wall: None, ..dog() }, "scheduled"),
        ],
    );
    let told: Vec<&str> = decisions[6].missing().collect();
    assert!(told[0].contains("clock cannot be trusted"), "{told:?}");
}

#[test]
fn the_owner_opens_once_holds_open_holds_locked_and_releases() {
    check(
        Policy::default(),
        &[
            (100, calm(), "idle"),
            (200, asked(Request::OpenOnce), "open"),
            // The owner's opening does not depend on what the camera sees.
            (300, latch(Position::Unlocked, with(&[(Class::Cat, 8.0)])), "open"),
            (400, latch(Position::Unlocked, asked(Request::HoldLocked)), "relocking"),
            (500, calm(), "held_locked"),
            (600, dog(), "held_locked"),
            (700, asked(Request::Leave), "held_locked"),
            (800, asked(Request::Release), "idle"),
            (900, asked(Request::HoldOpen), "held_open"),
            (600_800, latch(Position::Unlocked, calm()), "held_open"),
            (600_900, latch(Position::Unlocked, calm()), "relocking"),
        ],
    );
}

#[test]
fn who_is_inside_may_leave_even_when_the_camera_is_blind_but_not_against_a_rule() {
    let blind = |moment| Moment { frame_age: Some(6_000), ..moment };
    check(
        Policy::default(),
        &[
            (100, calm(), "idle"),
            (7_000, blind(calm()), "fault"),
            (7_100, blind(asked(Request::Leave)), "open"),
            (7_200, latch(Position::Unlocked, blind(calm())), "open"),
        ],
    );
    check(
        night_curfew(),
        &[
            (100, at_night(calm()), "scheduled"),
            (200, at_night(asked(Request::Leave)), "scheduled"),
            (300, asked(Request::Leave), "open"),
        ],
    );
}

#[test]
fn the_owners_lock_outlives_a_fault_and_a_restart() {
    let silent = Moment { latch: Some((Position::Locked, 3_000)), ..calm() };
    check(
        Policy::default(),
        &[
            (100, calm(), "idle"),
            (200, asked(Request::HoldLocked), "held_locked"),
            (4_000, silent, "fault"),
            (4_100, calm(), "held_locked"),
        ],
    );
    let mut restarted = Door::new(DoorSettings::default(), Policy::default(), true, Uptime::ZERO);
    assert_eq!(step(&mut restarted, 100, &calm()).state.name(), "held_locked");
}

#[test]
fn without_a_sensor_the_latch_is_given_its_time() {
    let settings = DoorSettings { feedback: false, ..DoorSettings::default() };
    let mut door = Door::new(settings, Policy::default(), false, Uptime::ZERO);
    let unseen = |moment| latch(Position::Unknown, moment);
    assert_eq!(step(&mut door, 100, &unseen(calm())).state.name(), "starting");
    assert_eq!(step(&mut door, 2_000, &unseen(calm())).state.name(), "idle");
    assert_eq!(step(&mut door, 2_100, &unseen(dog())).state.name(), "open");
}

/// Every state, with data old and new, met with every combination of kinds of input: after one
/// step nothing is unlocked without cause, without end or beyond its lease.
#[test]
fn every_state_meets_every_kind_of_observation() {
    let mut met = 0_u32;
    for state in every_state() {
        for moment in every_moment() {
            met += 1;
            let mut door = door(night_curfew());
            door.state = state;
            let decision = step(&mut door, NOW, &moment);
            hold_invariants(&state, &moment, &decision);
        }
    }
    assert!(met > 500_000, "only {met} combinations");
}

const NOW: u64 = 1_000_000;

fn every_state() -> Vec<State> {
    let mut states = Vec::new();
    for since in [NOW - 100_000, NOW - 50].map(Uptime::from_millis) {
        for until in [NOW - 1, NOW + 500, NOW + 900_000].map(Uptime::from_millis) {
            for whom in [Whom::Dog, Whom::Owner, Whom::Leaving] {
                states.push(State::Open { since, until, whom });
                for clear in [None, Some(since)] {
                    states.push(State::Passing { since, until, whom, clear });
                }
            }
            states.push(State::HeldOpen { since, until });
            states.push(State::Refused { since, class: Class::Cat, until });
        }
        states.extend([
            State::Starting { since },
            State::Idle { since },
            State::Watching { since },
            State::Scheduled { since },
            State::HeldLocked { since },
            State::Relocking { since, attempt: 1, why: Relock::Passed },
            State::Relocking { since, attempt: 2, why: Relock::Veto },
        ]);
        for cause in [Fault::RelockFailed, Fault::CameraLost, Fault::LatchSilent] {
            states.push(State::Fault { since, cause, acknowledged: false });
        }
    }
    states
}

fn every_moment() -> Vec<Moment> {
    let scenes = [
        with(&[]),
        with(&[(Class::Dog, 8.0)]),
        with(&[(Class::Dog, 3.0)]),
        with(&[(Class::Cat, 8.0)]),
        with(&[(Class::Dog, 8.0), (Class::Cat, 8.0)]),
        with(&[(Class::Dog, 8.0), (Class::Person, 8.0)]),
        with(&[(Class::Other, 8.0)]),
    ];
    let latches = [
        None,
        Some((Position::Locked, 0)),
        Some((Position::Locked, 9_000)),
        Some((Position::Unlocked, 0)),
        Some((Position::Jammed, 0)),
        Some((Position::Unknown, 0)),
    ];
    let requests = [
        None,
        Some(Request::OpenOnce),
        Some(Request::HoldLocked),
        Some(Request::HoldOpen),
        Some(Request::Release),
        Some(Request::Leave),
    ];
    let day = calm().wall;
    let night = at_night(calm()).wall;
    let mut moments = Vec::new();
    for scene in scenes {
        for frame_age in [None, Some(50), Some(2_000), Some(9_000)] {
            for latch in latches {
                for request in requests {
                    for (picture, vision, journal, passage, wall) in [
                        (PictureHealth::Good, true, true, Some(false), &day),
                        (PictureHealth::Good, true, true, Some(true), &day),
                        (PictureHealth::Good, true, true, None, &day),
                        (PictureHealth::Frozen, true, true, Some(false), &day),
                        (PictureHealth::Good, false, true, Some(false), &day),
                        (PictureHealth::Good, true, false, Some(true), &day),
                        (PictureHealth::Good, true, true, Some(false), &night),
                        (PictureHealth::Good, true, true, Some(false), &None),
                    ] {
                        moments.push(Moment {
                            frame_age,
                            latch,
                            request,
                            picture,
                            passage,
                            vision: if vision { VisionHealth::Ready } else { VisionHealth::Failed },
                            journal: if journal {
                                JournalHealth::Writable
                            } else {
                                JournalHealth::Failed
                            },
                            wall: wall.clone(),
                            ..scene.clone()
                        });
                    }
                }
            }
        }
    }
    moments
}

#[track_caller]
fn hold_invariants(before: &State, moment: &Moment, decision: &Decision) {
    let context = || format!("from {before:?}\nwith {:?}\nto {decision:#?}", moment.request);
    let lease_end = Uptime::from_millis(NOW) + DoorSettings::default().lease;
    if let DesiredLatch::UnlockedUntil(until) = decision.latch {
        assert!(until <= lease_end, "beyond the lease: {}", context());
        assert!(decision.state.wishes_unlocked(), "{}", context());
    }
    let opened = decision.events.iter().find_map(|e| match e.what {
        What::Opened { whom } => Some(whom),
        _ => None,
    });
    match opened {
        Some(Whom::Dog) => {
            assert!(decision.proofs.iter().all(|p| p.passed), "a proof is missing: {}", context());
        }
        Some(Whom::Owner) => assert_eq!(moment.request, Some(Request::OpenOnce), "{}", context()),
        Some(Whom::Leaving) => assert_eq!(moment.request, Some(Request::Leave), "{}", context()),
        None => assert!(
            before.wishes_unlocked()
                || !decision.state.wishes_unlocked()
                || moment.request == Some(Request::HoldOpen),
            "unlocked without an event: {}",
            context()
        ),
    }
    let latch_sound = matches!(
        moment.latch,
        Some((Position::Locked | Position::Unlocked, age)) if age <= 2_000
    );
    if decision.state.wishes_unlocked() && !before.wishes_unlocked() {
        assert!(latch_sound, "opened with an unsound latch: {}", context());
    }
    if matches!(moment.latch, None | Some((Position::Jammed, _))) {
        assert!(!decision.state.wishes_unlocked(), "{}", context());
    }
    if moment.request == Some(Request::HoldLocked) {
        assert!(!decision.state.wishes_unlocked(), "{}", context());
    }
    let blind = moment.frame_age.is_none_or(|age| age > 1_000);
    if blind && matches!(decision.state, State::Open { whom: Whom::Dog, .. }) {
        panic!("open for a dog nobody sees: {}", context());
    }
    if !decision.state.wishes_unlocked() {
        assert_eq!(decision.latch, DesiredLatch::Locked, "{}", context());
    }
}

#[test]
fn every_state_but_the_leases_is_locked() {
    for state in every_state() {
        let latch = state.desired_latch(Uptime::from_millis(NOW), Duration::from_secs(1));
        assert_eq!(latch == DesiredLatch::Locked, !state.wishes_unlocked());
    }
}
