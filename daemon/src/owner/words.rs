//! A visit in words. Page, broker and messages all tell it by [`Visit::sentence`], which knows
//! nothing but the journal's record.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pawlatch_core::event::{Event, Fault, Relock, Verdict, What, Whom};
use pawlatch_core::sight::Class;
use pawlatch_core::units::Uptime;

use crate::journal::{Archive, JournalError, StoredApproach};

/// What the journal knows of one approach.
#[derive(Debug, Clone, PartialEq)]
pub struct Visit {
    /// When it began, by the wall clock.
    pub began: Timestamp,
    /// How it ended; `None`: the program ended first.
    pub verdict: Option<Verdict>,
    /// What happened in it, oldest first.
    pub events: Vec<Event>,
    /// Whether it goes on still.
    pub goes_on: bool,
}

impl Visit {
    /// The visit that the journal has as `approach`.
    ///
    /// # Errors
    /// If its events cannot be read.
    pub fn read(archive: &Archive, approach: &StoredApproach) -> Result<Self, JournalError> {
        let events = archive.events_of(approach.id)?.into_iter().map(|e| e.event).collect();
        Self::of(archive, approach, events)
    }

    /// The visit of `approach` in which `events` happened.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub fn of(
        archive: &Archive,
        approach: &StoredApproach,
        events: Vec<Event>,
    ) -> Result<Self, JournalError> {
        let goes_on = approach.ended.is_none() && archive.newest_run()? == Some(approach.run);
        // The journal writes it in this form itself; should it be damaged, the beginning of time
        // is seen to be wrong.
        let began = approach.began_wall.parse().unwrap_or(Timestamp::UNIX_EPOCH);
        Ok(Self { began, verdict: approach.verdict, events, goes_on })
    }

    /// The visit in one sentence, with the local time at which it began:
    /// "Kept shut at 07:42: cat, sure after 0.6 s; needed dog".
    pub fn sentence(&self, zone: &TimeZone) -> String {
        let at = self.began.to_zoned_datetime(zone.clone()).strftime("%H:%M").to_string();
        match self.verdict {
            Some(Verdict::LetIn) => {
                let (sure, came) = (self.sure(), self.came_through());
                format!("Let in at {at}: {}{sure}; {came}", self.dog())
            }
            Some(Verdict::KeptShut) => {
                let (class, sure) = (self.refused().unwrap_or(Class::Other), self.sure());
                match class {
                    Class::Dog => format!(
                        "Kept shut at {at}: {}{sure}; needed one that a rule lets in",
                        self.dog()
                    ),
                    _ => format!("Kept shut at {at}: {}{sure}; needed dog", called(class)),
                }
            }
            Some(Verdict::Nobody) => {
                let stayed = self.lasted().map_or(String::new(), |d| format!(" after {}", span(d)));
                format!("Stayed shut at {at}: gone{stayed} before it was certain")
            }
            Some(Verdict::Overruled) => {
                format!("Not decided by the camera at {at}: {}", self.overruled())
            }
            None if self.goes_on => format!("At the door since {at}: not decided yet"),
            None => format!("Broken off at {at}: the door was stopped meanwhile"),
        }
    }

    /// What was recognised, if the door was kept shut for it: the first that was.
    pub fn refused(&self) -> Option<Class> {
        self.events.iter().find_map(|event| match event.what {
            What::Refused { class } => Some(class),
            _ => None,
        })
    }

    /// Every animal that the dog may be that was let in or kept out first, where a rule depended
    /// on which it was; empty for an unknown dog.
    pub fn animals(&self) -> Option<&[String]> {
        let decided = |event: &Event| match self.verdict {
            Some(Verdict::LetIn) => matches!(event.what, What::Opened { whom: Whom::Dog }),
            Some(Verdict::KeptShut) => {
                matches!(event.what, What::Refused { .. }) && self.refused() == Some(Class::Dog)
            }
            _ => false,
        };
        let until = self.events.iter().position(decided)?;
        self.events[..until].iter().rev().find_map(|event| match &event.what {
            What::Recognised { animals, .. } => Some(&animals[..]),
            _ => None,
        })
    }

    /// Which dog it was, as far as that is known.
    fn dog(&self) -> String {
        match self.animals() {
            None => "dog".to_owned(),
            Some([]) => "unknown dog".to_owned(),
            Some(animals) => animals.join(" or "),
        }
    }

    /// How long it took from the beginning to the first opening for the dog, or the first
    /// refusal, whichever the verdict speaks of.
    pub fn sure_after(&self) -> Option<Duration> {
        let decided = |what: &What| match self.verdict {
            Some(Verdict::LetIn) => matches!(what, What::Opened { whom: Whom::Dog }),
            Some(Verdict::KeptShut) => matches!(what, What::Refused { .. }),
            _ => false,
        };
        let at = self.events.iter().find(|event| decided(&event.what))?.at;
        Some(at.since(self.first()?))
    }

    /// How long it lasted, as far as it is known.
    pub fn lasted(&self) -> Option<Duration> {
        Some(self.events.last()?.at.since(self.first()?))
    }

    fn first(&self) -> Option<Uptime> {
        self.events.first().map(|event| event.at)
    }

    fn sure(&self) -> String {
        self.sure_after().map_or(String::new(), |after| format!(", sure after {}", span(after)))
    }

    /// What became of the opening for the dog.
    fn came_through(&self) -> &'static str {
        let opened =
            self.events.iter().position(|e| matches!(e.what, What::Opened { whom: Whom::Dog }));
        let after = opened.map_or(&[][..], |n| &self.events[n..]);
        let why = after.iter().find_map(|event| match event.what {
            What::Relocking { why } => Some(why),
            _ => None,
        });
        if after.iter().any(|event| event.what == What::Passing) {
            return "went through";
        }
        match why {
            Some(Relock::TimeUp) => "nobody came through",
            Some(Relock::Veto) => "locked again, since a proof was lost",
            Some(Relock::Owner) => "locked again by the owner",
            Some(Relock::Schedule) => "locked again by a rule",
            Some(Relock::Fault) => "locked again, since something broke",
            Some(Relock::Passed) | None => "whether it went through is not known",
        }
    }

    /// Who or what decided in the camera's place: the first that did.
    fn overruled(&self) -> String {
        let told = self.events.iter().find_map(|event| match event.what {
            What::Opened { whom: Whom::Owner } => Some("the owner opened".to_owned()),
            What::Opened { whom: Whom::Leaving } => Some("somebody wanted out".to_owned()),
            What::HeldOpen { .. } => Some("the owner held the door open".to_owned()),
            What::HeldLocked => Some("the owner holds the door locked".to_owned()),
            What::ScheduleLocked => Some("a rule keeps the door locked".to_owned()),
            What::FaultRaised { cause } => Some(short(cause).to_owned()),
            _ => None,
        });
        // Whatever overruled it may have begun before the visit.
        told.unwrap_or_else(|| "the door was held, ruled shut or out of order before".to_owned())
    }
}

/// What is at the door, in a sentence.
pub const fn called(class: Class) -> &'static str {
    match class {
        Class::Dog => "dog",
        Class::Cat => "cat",
        Class::Person => "person",
        Class::Other => "something else",
        Class::Nothing => "nothing known",
    }
}

/// A fault in a few words; the remedy is with [`Fault::describe`].
pub const fn short(cause: Fault) -> &'static str {
    match cause {
        Fault::RelockFailed => "the latch did not lock",
        Fault::ForcedOpen => "the latch was found unlocked",
        Fault::LatchJammed => "the latch is jammed",
        Fault::LatchSilent => "the latch does not answer",
        Fault::CameraLost => "no picture from the camera",
        Fault::PictureUseless => "the picture cannot be used",
        Fault::VisionFailed => "the networks cannot be run",
        Fault::JournalFailed => "nothing can be recorded",
    }
}

/// A duration to the tenth of a second.
pub fn span(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// A duration as a person would say it, never less than it is: "90 s", "2 min".
pub fn roughly(duration: Duration) -> String {
    match duration.as_secs_f64().ceil() as u64 {
        seconds @ 0..=90 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_duration_is_never_said_shorter_than_it_is() {
        for (millis, said) in
            [(0, "0 s"), (1, "1 s"), (90_000, "90 s"), (90_001, "2 min"), (600_000, "10 min")]
        {
            assert_eq!(roughly(Duration::from_millis(millis)), said);
        }
    }

    /// What a reader takes out of a sentence.
    #[derive(Debug, PartialEq)]
    struct Understood {
        verdict: Option<Verdict>,
        at: String,
        what: Option<String>,
        sure_after: Option<String>,
        came: Option<String>,
    }

    fn understand(sentence: &str) -> Understood {
        let (head, body) = sentence.split_once(": ").unwrap();
        let (verdict, at) = head.rsplit_once(" at ").unwrap();
        let verdict = match verdict {
            "Let in" => Some(Verdict::LetIn),
            "Kept shut" => Some(Verdict::KeptShut),
            "Stayed shut" => Some(Verdict::Nobody),
            "Not decided by the camera" => Some(Verdict::Overruled),
            "Broken off" => None,
            other => panic!("{other}"),
        };
        let told = matches!(verdict, Some(Verdict::LetIn | Verdict::KeptShut));
        let (seen, came) = body.split_once("; ").map_or((body, None), |(a, b)| (a, Some(b)));
        let (what, sure) =
            seen.split_once(", sure after ").map_or((seen, None), |(a, b)| (a, Some(b)));
        Understood {
            verdict,
            at: at.to_owned(),
            what: told.then(|| what.to_owned()),
            sure_after: sure.map(str::to_owned),
            came: came.map(str::to_owned),
        }
    }

    fn whats() -> impl Strategy<Value = What> {
        let class = prop::sample::select(Class::ALL.to_vec());
        let whom = prop::sample::select(vec![Whom::Dog, Whom::Owner, Whom::Leaving]);
        let why = prop::sample::select(vec![
            Relock::Passed,
            Relock::TimeUp,
            Relock::Veto,
            Relock::Owner,
            Relock::Schedule,
            Relock::Fault,
        ]);
        let cause = prop::sample::select(vec![Fault::CameraLost, Fault::LatchJammed]);
        let animals = prop::sample::select(vec![&[][..], &["Rex"], &["Rex", "Bella"]]);
        let recognised = animals.prop_map(|animals| What::Recognised {
            animals: animals.iter().map(|name| (*name).to_owned()).collect(),
            likeness: 0.5,
            needed: 0.4,
        });
        prop_oneof![
            recognised,
            class.prop_map(|class| What::Refused { class }),
            whom.prop_map(|whom| What::Opened { whom }),
            why.prop_map(|why| What::Relocking { why }),
            cause.prop_map(|cause| What::FaultRaised { cause }),
            Just(What::Passing),
            Just(What::Relocked),
            Just(What::HeldLocked),
            Just(What::ScheduleLocked),
        ]
    }

    fn visits() -> impl Strategy<Value = Visit> {
        let verdict = prop::option::of(prop::sample::select(vec![
            Verdict::LetIn,
            Verdict::KeptShut,
            Verdict::Nobody,
            Verdict::Overruled,
        ]));
        let events = prop::collection::vec((0_u64..9_000, whats()), 0..12);
        (0_i64..4_000_000_000, verdict, events, 0_u64..1_000_000).prop_map(
            |(second, verdict, gaps, start)| {
                let mut at = Uptime::from_millis(start);
                let mut events = vec![Event { at, what: What::ApproachBegan }];
                for (gap, what) in gaps {
                    at = at + Duration::from_millis(gap);
                    events.push(Event { at, what });
                }
                if let Some(verdict) = verdict {
                    events.push(Event { at, what: What::ApproachEnded { verdict } });
                }
                let began = Timestamp::from_second(second).unwrap();
                Visit { began, verdict, events, goes_on: false }
            },
        )
    }

    proptest! {
        /// Reading the sentence gives back what the journal has.
        #[test]
        fn a_sentence_agrees_with_the_record(visit in visits(), hours in -12_i8..=14) {
            let zone = TimeZone::fixed(jiff::tz::Offset::constant(hours));
            let said = understand(&visit.sentence(&zone));
            prop_assert_eq!(said.verdict, visit.verdict);
            let local = visit.began.as_second() + i64::from(hours) * 3_600;
            let minute = local.rem_euclid(86_400) / 60;
            prop_assert_eq!(said.at, format!("{:02}:{:02}", minute / 60, minute % 60));
            let of = |wanted: fn(&What) -> bool| {
                let began = visit.events[0].at;
                let event = visit.events.iter().find(|e| wanted(&e.what));
                event.map(|e| format!("{:.1} s", e.at.since(began).as_secs_f64()))
            };
            // The last that was recognised before the first such event.
            let who = |wanted: fn(&What) -> bool| {
                let mut who = "dog".to_owned();
                for event in &visit.events {
                    match &event.what {
                        what if wanted(what) => return who,
                        What::Recognised { animals, .. } => {
                            who = match animals.len() {
                                0 => "unknown dog".to_owned(),
                                1 => animals[0].clone(),
                                _ => format!("{} or {}", animals[0], animals[1]),
                            };
                        }
                        _ => {}
                    }
                }
                "dog".to_owned()
            };
            match visit.verdict {
                Some(Verdict::LetIn) => {
                    let who = who(|w| matches!(w, What::Opened { whom: Whom::Dog }));
                    prop_assert_eq!(said.what.as_deref(), Some(who.as_str()));
                    let opened = of(|w| matches!(w, What::Opened { whom: Whom::Dog }));
                    prop_assert_eq!(said.sure_after, opened);
                    let through = said.came.as_deref() == Some("went through");
                    let n = visit.events.iter().position(|e| e.what == What::Opened { whom: Whom::Dog });
                    let passed = n.is_some_and(|n| visit.events[n..].iter().any(|e| e.what == What::Passing));
                    prop_assert_eq!(through, passed);
                }
                Some(Verdict::KeptShut) => {
                    let first = visit.events.iter().find_map(|e| match e.what {
                        What::Refused { class } => Some(class),
                        _ => None,
                    });
                    let dog = first == Some(Class::Dog);
                    let shown = if dog {
                        who(|w| matches!(w, What::Refused { .. }))
                    } else {
                        called(first.unwrap_or(Class::Other)).to_owned()
                    };
                    prop_assert_eq!(said.what.as_deref(), Some(shown.as_str()));
                    prop_assert_eq!(said.sure_after, of(|w| matches!(w, What::Refused { .. })));
                    let needed = if dog { "needed one that a rule lets in" } else { "needed dog" };
                    prop_assert_eq!(said.came.as_deref(), Some(needed));
                }
                _ => prop_assert_eq!(said.sure_after, None),
            }
        }
    }

    #[test]
    fn the_owners_example() {
        let event = |ms, what| Event { at: Uptime::from_millis(ms), what };
        let visit = Visit {
            began: "2026-03-01T07:42:10Z".parse().unwrap(),
            verdict: Some(Verdict::KeptShut),
            events: vec![
                event(5_000, What::ApproachBegan),
                event(5_600, What::Refused { class: Class::Cat }),
                event(9_000, What::ApproachEnded { verdict: Verdict::KeptShut }),
            ],
            goes_on: false,
        };
        let said = visit.sentence(&TimeZone::UTC);
        assert_eq!(said, "Kept shut at 07:42: cat, sure after 0.6 s; needed dog");
    }
}
