//! Who may pass when: rules with schedules in local time. Deny beats allow.

use std::fmt;
use std::time::Duration;

use jiff::civil::{Time, Weekday};
use jiff::{Timestamp, ZonedDateTime};
use serde::{Deserialize, Serialize};

use crate::sight::Class;
use crate::units::Uptime;

/// A way through the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// From outside into the house.
    In,
    /// Out of the house.
    Out,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// May pass, unless another rule denies it.
    Allow,
    /// May not pass, whatever other rules allow.
    Deny,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    const fn of(weekday: Weekday) -> Self {
        match weekday {
            Weekday::Monday => Self::Mon,
            Weekday::Tuesday => Self::Tue,
            Weekday::Wednesday => Self::Wed,
            Weekday::Thursday => Self::Thu,
            Weekday::Friday => Self::Fri,
            Weekday::Saturday => Self::Sat,
            Weekday::Sunday => Self::Sun,
        }
    }
}

/// When a rule holds, in local (civil) time: from `from` on, until before `to`.
///
/// When `to` is not later than `from` the range runs overnight into the next day and belongs to
/// the day it began on. Local time decides, so a range keeps its clock hours across changes to
/// and from daylight saving time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// First minute, such as `"22:00"`.
    pub from: Time,
    /// First minute no longer in it, such as `"06:30"`.
    pub to: Time,
    /// Days on which the range begins; empty means every day.
    #[serde(default)]
    pub days: Vec<Day>,
}

impl Schedule {
    /// Whether the range holds at `at`.
    pub fn holds(&self, at: &ZonedDateTime) -> bool {
        let (time, today) = (at.time(), at.weekday());
        let begins = |day| self.days.is_empty() || self.days.contains(&Day::of(day));
        if self.from < self.to {
            return begins(today) && self.from <= time && time < self.to;
        }
        let this_evening = begins(today) && time >= self.from;
        let since_yesterday = begins(today.previous()) && time < self.to;
        this_evening || since_yesterday
    }
}

/// Longest name of an animal, characters.
pub const MAX_ANIMAL_NAME: usize = 30;

/// Whom a rule is about: `dog` (whichever), `cat`, `person`, `other`, `dog:NAME` (one of the
/// animals of the house) or `unknown dog`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Who {
    /// Whoever is of this class.
    Class(Class),
    /// The dog of this name.
    Animal(String),
    /// A dog that is not recognised. The camera sees who wants in, so this is about coming in
    /// only, whatever the rule says.
    UnknownDog,
}

/// How a rule about an animal begins.
const ANIMAL: &str = "dog:";
const UNKNOWN_DOG: &str = "unknown dog";

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Class(class) => f.write_str(class.name()),
            Self::Animal(name) => write!(f, "{ANIMAL}{name}"),
            Self::UnknownDog => f.write_str(UNKNOWN_DOG),
        }
    }
}

impl From<Who> for String {
    fn from(who: Who) -> Self {
        who.to_string()
    }
}

impl TryFrom<String> for Who {
    type Error = String;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == UNKNOWN_DOG {
            return Ok(Self::UnknownDog);
        }
        if let Some(name) = text.strip_prefix(ANIMAL) {
            let sound = is_animal_name(name);
            return sound.then(|| Self::Animal(name.to_owned())).ok_or_else(|| {
                format!("`{text}` names no animal; expected dog:NAME, up to {MAX_ANIMAL_NAME} characters")
            });
        }
        let class = Class::ALL.into_iter().find(|class| class.name() == text);
        class.map(Self::Class).ok_or_else(|| {
            format!(
                "`{text}` is nobody a rule can be about; expected dog, dog:NAME, unknown dog, cat, \
                 person or other"
            )
        })
    }
}

/// Whether `name` can be an animal's: on one line, without spaces around it, not too long.
pub fn is_animal_name(name: &str) -> bool {
    let length = name.chars().count();
    (1..=MAX_ANIMAL_NAME).contains(&length)
        && name.trim() == name
        && !name.contains(char::is_control)
}

/// Who wants to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// Somebody of this class; which animal it is nobody asks, or nobody can tell.
    Any(Class),
    /// The dog of this name.
    Known(&'a str),
    /// A dog that is not recognised.
    Unknown,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What the owner calls it; it is shown as the reason.
    pub name: String,
    /// Whom it is about.
    pub who: Who,
    /// Which ways; empty means both.
    #[serde(default)]
    pub ways: Vec<Way>,
    /// What it does.
    pub effect: Effect,
    /// When; always if absent.
    pub when: Option<Schedule>,
}

impl Rule {
    /// Whether it says something of `who` going `way`. What is denied to one animal is denied to
    /// whoever may be that one: a dog that is not recognised, and everybody inside, whom the
    /// camera does not see.
    fn is_about(&self, who: Subject<'_>, way: Way) -> bool {
        let wanted = self.ways.is_empty() || self.ways.contains(&way);
        wanted
            && match (&self.who, who) {
                (Who::Class(class), Subject::Any(asked)) => *class == asked,
                (Who::Class(class), Subject::Known(_) | Subject::Unknown) => *class == Class::Dog,
                (Who::Animal(name), Subject::Known(known)) => name == known,
                (Who::Animal(_), Subject::Unknown | Subject::Any(Class::Dog)) => {
                    self.effect == Effect::Deny
                }
                (Who::UnknownDog, Subject::Unknown) => way == Way::In,
                (Who::Animal(_) | Who::UnknownDog, _) => false,
            }
    }
}

/// What the rules say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ruling", rename_all = "snake_case")]
pub enum Ruling {
    /// May pass.
    Allowed,
    /// May not pass, because this rule says so.
    Denied {
        /// The rule's name.
        rule: String,
    },
    /// This rule depends on the time of day, and the clock cannot be trusted.
    ClockNeeded {
        /// The rule's name.
        rule: String,
    },
    /// No rule allows it now.
    NotAllowed,
}

/// The rules of the house.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Policy {
    rules: Vec<Rule>,
}

impl Default for Policy {
    /// Dogs may come and go at any time.
    fn default() -> Self {
        let rule = Rule {
            name: "dogs".to_owned(),
            who: Who::Class(Class::Dog),
            ways: Vec::new(),
            effect: Effect::Allow,
            when: None,
        };
        Self { rules: vec![rule] }
    }
}

impl Policy {
    /// A policy of these rules. Their order does not matter.
    pub const fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What the rules say about `who` going `way` at `wall`, the local time, or `None` if the
    /// clock cannot be trusted. Leaving is free unless a rule denies it; coming in needs a rule
    /// that allows it. A deny that would need the clock counts as unknown, never as absent.
    pub fn ruling(&self, who: Subject<'_>, way: Way, wall: Option<&ZonedDateTime>) -> Ruling {
        let about = |rule: &&Rule| rule.is_about(who, way);
        let holds = |rule: &Rule| match (&rule.when, wall) {
            (None, _) => Some(true),
            (Some(schedule), Some(wall)) => Some(schedule.holds(wall)),
            (Some(_), None) => None,
        };
        let mut allowed = way == Way::Out;
        let mut unknown = None;
        for rule in self.rules.iter().filter(about) {
            match (rule.effect, holds(rule)) {
                (Effect::Deny, Some(true)) => return Ruling::Denied { rule: rule.name.clone() },
                (Effect::Allow, Some(true)) => allowed = true,
                (Effect::Deny, None) => unknown = Some((Effect::Deny, rule)),
                (Effect::Allow, None) if unknown.is_none() => {
                    unknown = Some((Effect::Allow, rule));
                }
                (_, Some(false) | None) => {}
            }
        }
        match unknown {
            Some((Effect::Deny, rule)) => Ruling::ClockNeeded { rule: rule.name.clone() },
            Some((Effect::Allow, rule)) if !allowed => {
                Ruling::ClockNeeded { rule: rule.name.clone() }
            }
            _ if allowed => Ruling::Allowed,
            _ => Ruling::NotAllowed,
        }
    }
}

impl Policy {
    /// Whether it matters which dog it is.
    pub fn tells_dogs_apart(&self) -> bool {
        self.rules.iter().any(|rule| matches!(rule.who, Who::Animal(_) | Who::UnknownDog))
    }

    /// What the rules say about a dog that may be any of `candidates`, or is unknown if there are
    /// none: it may pass only if each of them may.
    pub fn ruling_for_dog(
        &self,
        candidates: &[String],
        way: Way,
        wall: Option<&ZonedDateTime>,
    ) -> Ruling {
        if candidates.is_empty() {
            return self.ruling(Subject::Unknown, way, wall);
        }
        let rulings = candidates.iter().map(|name| self.ruling(Subject::Known(name), way, wall));
        rulings.fold(Ruling::Allowed, |so_far, next| match so_far {
            Ruling::Allowed => next,
            worse => worse,
        })
    }

    /// What the rules say about dogs before one is there: allowed if any may pass, one of the
    /// animals in `names`, one that a rule names, or an unknown one.
    pub fn ruling_for_dogs(
        &self,
        names: &[String],
        way: Way,
        wall: Option<&ZonedDateTime>,
    ) -> Ruling {
        if !self.tells_dogs_apart() {
            return self.ruling(Subject::Any(Class::Dog), way, wall);
        }
        let named = self.rules.iter().filter_map(|rule| match &rule.who {
            Who::Animal(name) => Some(name),
            Who::Class(_) | Who::UnknownDog => None,
        });
        let rulings = named.chain(names).map(|name| self.ruling(Subject::Known(name), way, wall));
        // Of what keeps everybody out, what may change with the clock tells more.
        let weight = |ruling: &Ruling| match ruling {
            Ruling::Allowed => 3,
            Ruling::ClockNeeded { .. } => 2,
            Ruling::Denied { .. } => 1,
            Ruling::NotAllowed => 0,
        };
        let unknown = self.ruling(Subject::Unknown, way, wall);
        rulings.fold(unknown, |best, next| if weight(&next) > weight(&best) { next } else { best })
    }
}

/// The wall clock may differ from the running time by this much before it counts as a jump.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);
/// How long the clock must run evenly after a jump to be trusted again.
pub const CLOCK_SETTLES: Duration = Duration::from_secs(600);
/// 2025-01-01T00:00:00Z: a clock before this was never set.
const NEVER_SET: i64 = 1_735_689_600;

/// Notices a wall clock that was never set, or that jumps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClockWatch {
    /// A pair of readings taken together, and since when the clock has run evenly with it.
    anchor: Option<(Timestamp, Uptime, Option<Uptime>)>,
}

impl ClockWatch {
    /// Whether the wall clock's reading at `now` can be trusted. Changing the time zone is no
    /// jump. After a jump it is trusted again when it has run evenly for [`CLOCK_SETTLES`].
    pub fn trusts(&mut self, now: Uptime, wall: Timestamp) -> bool {
        let jumped_at = match self.anchor {
            None => None,
            Some((anchor, then, jumped_at)) => {
                let expected = i128::from(anchor.as_millisecond()) + i128::from(now.as_millis())
                    - i128::from(then.as_millis());
                let off = (i128::from(wall.as_millisecond()) - expected).unsigned_abs();
                if off > CLOCK_TOLERANCE.as_millis() {
                    Some(now)
                } else {
                    jumped_at.filter(|at| now.since(*at) < CLOCK_SETTLES)
                }
            }
        };
        self.anchor = Some((wall, now, jumped_at));
        jumped_at.is_none() && wall.as_second() >= NEVER_SET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> ZonedDateTime {
        text.parse().unwrap()
    }

    fn rule(effect: Effect, ways: &[Way], when: Option<(&str, &str, &[Day])>) -> Rule {
        Rule {
            name: "rule".to_owned(),
            who: Who::Class(Class::Dog),
            ways: ways.to_vec(),
            effect,
            when: when.map(|(from, to, days)| Schedule {
                from: from.parse().unwrap(),
                to: to.parse().unwrap(),
                days: days.to_vec(),
            }),
        }
    }

    fn with_curfew(ways: &[Way], from: &str, to: &str, days: &[Day]) -> Policy {
        Policy::new(vec![
            rule(Effect::Allow, &[], None),
            rule(Effect::Deny, ways, Some((from, to, days))),
        ])
    }

    #[test]
    fn deny_beats_allow_in_any_order() {
        let mut rules = vec![rule(Effect::Deny, &[], None), rule(Effect::Allow, &[], None)];
        for _ in 0..2 {
            let ruling = Policy::new(rules.clone()).ruling(Subject::Any(Class::Dog), Way::In, None);
            assert!(matches!(ruling, Ruling::Denied { .. }));
            rules.reverse();
        }
    }

    #[test]
    fn what_no_rule_allows_may_leave_but_not_come_in() {
        let policy = Policy::default();
        for class in [Class::Cat, Class::Person, Class::Other, Class::Nothing] {
            assert_eq!(policy.ruling(Subject::Any(class), Way::In, None), Ruling::NotAllowed);
            assert_eq!(policy.ruling(Subject::Any(class), Way::Out, None), Ruling::Allowed);
        }
        assert_eq!(policy.ruling(Subject::Any(Class::Dog), Way::In, None), Ruling::Allowed);
    }

    fn about(who: &str, effect: Effect, ways: &[Way]) -> Rule {
        let who = who.to_owned().try_into().unwrap();
        Rule { who, ..rule(effect, ways, None) }
    }

    #[test]
    fn whom_a_rule_is_about_is_read_as_it_is_written() {
        for text in ["dog", "cat", "person", "other", "unknown dog", "dog:Rex", "dog:Ben & Jo"] {
            let who: Who = serde_json::from_value(text.into()).unwrap();
            assert_eq!(serde_json::to_value(&who).unwrap(), text);
        }
        let long = format!("dog:{}", "x".repeat(31));
        for wrong in ["", "Dog", "dog:", "dog: Rex", "dog:a\nb", "unknown cat", &long] {
            let told = Who::try_from(wrong.to_owned()).unwrap_err();
            assert!(told.contains(wrong), "{told}");
        }
    }

    #[test]
    fn rules_about_an_animal_are_about_that_one_and_unknown_dogs_are_nobodys() {
        use Subject::{Known, Unknown};
        // "Rex may go in always; unknown dogs never; Bella only in."
        let policy = Policy::new(vec![
            about("dog:Rex", Effect::Allow, &[]),
            about("dog:Bella", Effect::Allow, &[Way::In]),
            about("unknown dog", Effect::Deny, &[]),
        ]);
        let comes = |who| policy.ruling(who, Way::In, None);
        assert_eq!(comes(Known("Rex")), Ruling::Allowed);
        assert_eq!(comes(Known("Bella")), Ruling::Allowed);
        assert_eq!(comes(Known("Ace")), Ruling::NotAllowed);
        assert!(matches!(comes(Unknown), Ruling::Denied { .. }));
        assert_eq!(comes(Subject::Any(Class::Cat)), Ruling::NotAllowed);
        // Nobody inside is shut in by a rule about strangers.
        assert_eq!(policy.ruling(Subject::Any(Class::Dog), Way::Out, None), Ruling::Allowed);
        assert!(policy.tells_dogs_apart() && !Policy::default().tells_dogs_apart());
    }

    #[test]
    fn what_is_denied_to_one_is_denied_to_whoever_may_be_that_one() {
        let policy = Policy::new(vec![
            about("dog", Effect::Allow, &[]),
            about("dog:Rex", Effect::Deny, &[]),
        ]);
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let comes = |who: &[&str]| policy.ruling_for_dog(&names(who), Way::In, None);
        assert_eq!(comes(&["Bella"]), Ruling::Allowed);
        for doubtful in [&[][..], &["Rex"], &["Bella", "Rex"], &["Rex", "Bella"]] {
            assert!(matches!(comes(doubtful), Ruling::Denied { .. }), "{doubtful:?}");
        }
        let leaving = policy.ruling(Subject::Any(Class::Dog), Way::Out, None);
        assert!(matches!(leaving, Ruling::Denied { .. }), "who is inside may be Rex");
    }

    #[test]
    fn the_door_is_in_service_as_long_as_some_dog_may_come_in() {
        let comes = |rules: Vec<Rule>, names: &[String]| {
            Policy::new(rules).ruling_for_dogs(names, Way::In, None)
        };
        let bella = ["Bella".to_owned()];
        let only_rex = || vec![about("dog:Rex", Effect::Allow, &[])];
        assert_eq!(comes(only_rex(), &[]), Ruling::Allowed);
        let none_but_bella =
            || vec![about("dog", Effect::Allow, &[]), about("unknown dog", Effect::Deny, &[])];
        assert!(matches!(comes(none_but_bella(), &[]), Ruling::Denied { .. }));
        assert_eq!(comes(none_but_bella(), &bella), Ruling::Allowed);
        let mut by_day = only_rex();
        by_day[0].when = rule(Effect::Allow, &[], Some(("08:00", "20:00", &[]))).when;
        assert!(matches!(comes(by_day, &bella), Ruling::ClockNeeded { .. }));
        assert_eq!(comes(Vec::new(), &bella), Ruling::NotAllowed);
    }

    #[test]
    fn an_in_only_curfew_keeps_the_dog_in_overnight() {
        let policy = with_curfew(&[Way::Out], "22:00", "06:00", &[]);
        let night = at("2026-01-10T23:30[Europe/Berlin]");
        let morning = at("2026-01-11T05:59[Europe/Berlin]");
        let day = at("2026-01-11T06:00[Europe/Berlin]");
        for dark in [&night, &morning] {
            assert!(matches!(
                policy.ruling(Subject::Any(Class::Dog), Way::Out, Some(dark)),
                Ruling::Denied { .. }
            ));
            assert_eq!(
                policy.ruling(Subject::Any(Class::Dog), Way::In, Some(dark)),
                Ruling::Allowed
            );
        }
        assert_eq!(policy.ruling(Subject::Any(Class::Dog), Way::Out, Some(&day)), Ruling::Allowed);
    }

    #[test]
    fn an_overnight_range_belongs_to_the_day_it_began_on() {
        let policy = with_curfew(&[], "22:00", "06:00", &[Day::Fri]);
        let denied = |text: &str| {
            matches!(
                policy.ruling(Subject::Any(Class::Dog), Way::In, Some(&at(text))),
                Ruling::Denied { .. }
            )
        };
        // 2026-01-09 is a Friday.
        assert!(!denied("2026-01-09T05:00[Europe/Berlin]"));
        assert!(denied("2026-01-09T22:00[Europe/Berlin]"));
        assert!(denied("2026-01-10T05:59[Europe/Berlin]"));
        assert!(!denied("2026-01-10T22:00[Europe/Berlin]"));
    }

    #[test]
    fn clock_hours_hold_across_daylight_saving_changes() {
        let policy = with_curfew(&[], "01:30", "03:30", &[]);
        let denied = |text: &str| {
            matches!(
                policy.ruling(Subject::Any(Class::Dog), Way::In, Some(&at(text))),
                Ruling::Denied { .. }
            )
        };
        // In Berlin 2026-03-29 02:00 becomes 03:00; 2026-10-25 03:00 becomes 02:00.
        assert!(denied("2026-03-29T01:59+01:00[Europe/Berlin]"));
        assert!(denied("2026-03-29T03:15+02:00[Europe/Berlin]"));
        assert!(!denied("2026-03-29T03:30+02:00[Europe/Berlin]"));
        assert!(denied("2026-10-25T02:30+02:00[Europe/Berlin]"));
        assert!(denied("2026-10-25T02:30+01:00[Europe/Berlin]"));
        assert!(!denied("2026-10-25T03:30+01:00[Europe/Berlin]"));
    }

    #[test]
    fn without_a_clock_a_scheduled_deny_is_unknown_and_an_unscheduled_allow_stands() {
        let policy = with_curfew(&[], "22:00", "06:00", &[]);
        assert!(matches!(
            policy.ruling(Subject::Any(Class::Dog), Way::In, None),
            Ruling::ClockNeeded { .. }
        ));
        assert_eq!(
            Policy::default().ruling(Subject::Any(Class::Dog), Way::In, None),
            Ruling::Allowed
        );
        let by_day = Policy::new(vec![rule(Effect::Allow, &[], Some(("08:00", "20:00", &[])))]);
        assert!(matches!(
            by_day.ruling(Subject::Any(Class::Dog), Way::In, None),
            Ruling::ClockNeeded { .. }
        ));
    }

    #[test]
    fn a_jump_of_a_year_either_way_is_not_trusted_until_it_settles() {
        let start: Timestamp = "2026-11-01T12:00:00Z".parse().unwrap();
        let year = jiff::SignedDuration::from_hours(24 * 365);
        for jumped in [start + year, start - year] {
            let mut clock = ClockWatch::default();
            assert!(clock.trusts(Uptime::from_millis(0), start));
            assert!(!clock.trusts(Uptime::from_millis(100), jumped));
            let later = |ms: u64| jumped + jiff::SignedDuration::from_millis(ms as i64);
            for ms in (1_000..600_000).step_by(1_000) {
                assert!(!clock.trusts(Uptime::from_millis(100 + ms), later(ms)));
            }
            assert!(clock.trusts(Uptime::from_millis(100 + 600_000), later(600_000)));
        }
    }

    #[test]
    fn a_clock_that_was_never_set_is_not_trusted() {
        let unset: Timestamp = "1970-01-01T00:01:00Z".parse().unwrap();
        assert!(!ClockWatch::default().trusts(Uptime::ZERO, unset));
    }
}
