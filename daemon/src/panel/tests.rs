use std::time::Instant;

use pawlatch_core::door::Request;

use super::*;
use crate::appliance;
use crate::lines::SimulatedBoard;

fn settings() -> PanelSettings {
    let line = |text: &str| Some(text.parse().unwrap());
    let ms = Duration::from_millis;
    PanelSettings {
        button: line("27 pull-up active-low"),
        gestures: ButtonSettings { hold: ms(300), long: ms(700), stuck: ms(3_000) },
        beam: line("23"),
        motion: line("24"),
        light: [line("5"), line("6"), line("13")],
        buzzer: line("19"),
        debounce: ms(20),
    }
}

#[track_caller]
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_button_asks_and_the_beam_tells_and_the_light_shows() {
    let board = SimulatedBoard::default();
    board.set_level("23", true);
    let (asker, requests) = appliance::requests();
    let panel = Panel::start(&board, &settings(), asker, Clock::start()).unwrap();
    assert_eq!(panel.passage(), Some(true), "broken until seen whole");
    board.set_level("23", false);
    wait_for("the passage is clear", || panel.passage() == Some(false));
    panel.show(&State::Idle { since: Uptime::ZERO });
    thread::sleep(Duration::from_millis(100));
    board.set_level("27", false);
    thread::sleep(Duration::from_millis(100));
    board.set_level("27", true);
    let mut asked = None;
    wait_for("a tap", || {
        asked = requests.take();
        asked.is_some()
    });
    assert_eq!(asked, Some(Request::OpenOnce));
    board.set_level("24", true);
    let motion = panel.motion();
    wait_for("motion", || motion.is_active());
    panel.show(&State::Open {
        since: Uptime::ZERO,
        until: Uptime::ZERO,
        whom: pawlatch_core::event::Whom::Dog,
    });
    wait_for("green", || {
        [board.level("5"), board.level("6"), board.level("13")]
            == [Some(false), Some(true), Some(false)]
    });
    assert!(panel.is_alive());
    drop(panel);
    assert_eq!(board.level("6"), Some(false), "dark at the end");
}

#[test]
fn a_lamp_of_one_colour_shows_every_rhythm() {
    let board = SimulatedBoard::default();
    let one = PanelSettings { light: [None, "6".parse().ok(), None], ..settings() };
    for sign in Sign::ALL {
        let mut lamp = Lamp::open(&board, &one).unwrap();
        for ms in (0..10_000).step_by(50) {
            lamp.show(Uptime::from_millis(ms), sign);
            assert_eq!(board.level("6"), Some(sign.pattern().lit(ms)), "{sign:?} at {ms} ms");
        }
    }
}

#[test]
fn a_wire_that_fails_ends_the_panel() {
    let dir = tempfile::tempdir().unwrap();
    let board = SimulatedBoard::new(Some(dir.path().to_owned()));
    let panel = Panel::start(&board, &settings(), appliance::requests().0, Clock::start()).unwrap();
    assert!(panel.is_alive());
    std::fs::write(dir.path().join("23"), "burnt").unwrap();
    wait_for("the panel ends", || !panel.is_alive());
}
