//! The visits one after another, filtered, and who came when.

use std::collections::BTreeSet;

use axum::extract::{Query, State};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use maud::{Markup, html};
use pawlatch_core::event::Verdict;
use pawlatch_core::sight::Class;
use serde::Deserialize;

use super::animals::coat;
use super::form::Refusal;
use super::{Shared, layout};
use crate::journal::{Archive, JournalError};
use crate::owner::animals::Animals;
use crate::owner::words::{Visit, called};

/// Visits on one page.
const A_PAGE: usize = 30;
/// Visits that are read at most, for filter and charts.
const MAX_READ: usize = 2_000;
/// Days in the chart of days.
const DAYS: i64 = 14;

/// What of the visits is wanted.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Wanted {
    /// Verdict, as in the journal.
    #[serde(default)]
    verdict: String,
    /// What was recognised.
    #[serde(default)]
    class: String,
    /// Only visits before this one.
    #[serde(default)]
    before: Option<i64>,
}

struct Listed {
    id: i64,
    visit: Visit,
    picture: bool,
    label: Option<Class>,
}

impl Listed {
    /// Which of [`WHO`] came.
    fn who(&self) -> (&'static str, &'static str) {
        WHO[match self.visit.verdict {
            Some(Verdict::LetIn) => 0,
            Some(Verdict::KeptShut) => match self.visit.refused() {
                Some(Class::Dog) => 0,
                Some(Class::Cat) => 1,
                Some(Class::Person) => 2,
                _ => 3,
            },
            Some(Verdict::Nobody | Verdict::Overruled) | None => 4,
        }]
    }

    /// Which dog came, if that was told.
    fn dog(&self) -> Option<&str> {
        Some(match self.visit.animals()? {
            [name] => name,
            _ => UNSURE,
        })
    }
}

const VERDICTS: [(&str, &str); 4] = [
    ("let_in", "let in"),
    ("kept_shut", "kept shut"),
    ("nobody", "nobody"),
    ("overruled", "not decided by the camera"),
];

fn list(archive: &Archive, wanted: &Wanted) -> Result<Vec<Listed>, JournalError> {
    let mut found = Vec::new();
    for approach in archive.approaches_before(wanted.before, MAX_READ)? {
        let visit = Visit::read(archive, &approach)?;
        let (id, label) = (approach.id, approach.label);
        found.push(Listed { id, visit, picture: !approach.pictures.is_empty(), label });
    }
    Ok(found)
}

fn fits(listed: &Listed, wanted: &Wanted) -> bool {
    let verdict = serde_json::to_value(listed.visit.verdict).unwrap_or_default();
    let verdict_fits = wanted.verdict.is_empty() || verdict == wanted.verdict.as_str();
    verdict_fits && (wanted.class.is_empty() || listed.who().0 == wanted.class)
}

/// `GET /visits`
pub(super) async fn page(
    State(page): Shared,
    Query(wanted): Query<Wanted>,
) -> Result<layout::Answer, Refusal> {
    let zone = page.house.time_zone();
    let asked = wanted.clone();
    let all = page.read(move |archive| list(archive, &asked)).await?;
    let dir = page.house.state_dir.clone();
    // A list that cannot be read is told of on the page of the animals.
    let animals = page.aside(move || Animals::open(&dir).ok()).await?;
    let mut shown: Vec<&Listed> = all.iter().filter(|l| fits(l, &wanted)).collect();
    let more = shown.len() > A_PAGE;
    shown.truncate(A_PAGE);
    let last = shown.last().map(|listed| listed.id);
    Ok(layout::page(
        "/visits",
        "Visits",
        html! {
            h1 { "Visits" }
            (filter(&wanted))
            @if shown.is_empty() { p .hint { "No visit fits." } }
            @for (day, visits) in by_day(&shown, &zone) {
                h2 { (day) }
                ul .timeline {
                    @for listed in visits {
                        li .(listed.who().0) {
                            a href={ "/visits/" (listed.id) } {
                                @if listed.picture {
                                    img src={ "/visits/" (listed.id) "/pictures/decisive" } width="160" height="120" loading="lazy" alt="";
                                }
                                span {
                                    @for name in listed.visit.animals().unwrap_or_default() {
                                        @if let Some(colour) = animals.as_ref().and_then(|a| a.colour(name)) { (coat(colour)) }
                                    }
                                    (listed.visit.sentence(&zone))
                                    @if let Some(label) = listed.label {
                                        span .hint { "You say: " (called(label)) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
            @if let (true, Some(last)) = (more, last) {
                p { a rel="next" href=(format!("/visits?verdict={}&class={}&before={last}", wanted.verdict, wanted.class)) { "Earlier visits" } }
            }
            @if wanted.before.is_none() {
                section .card {
                    h2 { "Who comes when" }
                    (hours("Visits by hour of the day", &all, &WHO.map(Row::of), &|listed| Some(listed.who().1), &zone))
                    (days("Visits of the last two weeks", &all, &WHO.map(Row::of), &|listed| Some(listed.who().1), &zone))
                }
                @if let Some(dogs) = dogs(&all, animals.as_ref()) {
                    section .card {
                        h2 { "Which dog comes when" }
                        (hours("Dogs by hour of the day", &all, &dogs, &Listed::dog, &zone))
                        (days("Dogs of the last two weeks", &all, &dogs, &Listed::dog, &zone))
                    }
                }
            }
        },
    ))
}

fn filter(wanted: &Wanted) -> Markup {
    html! {
        form .filter method="get" action="/visits" {
            span {
                label for="verdict" { "Ended" }
                select #verdict name="verdict" {
                    option value="" { "in any way" }
                    @for (value, name) in VERDICTS { option value=(value) selected[wanted.verdict == value] { (name) } }
                }
            }
            span {
                label for="class" { "Who" }
                select #class name="class" {
                    option value="" { "anybody" }
                    @for class in [Class::Dog, Class::Cat, Class::Person, Class::Other] {
                        option value=(class.name()) selected[wanted.class == class.name()] { (called(class)) }
                    }
                }
            }
            button type="submit" { "Show" }
        }
    }
}

fn by_day<'a>(shown: &[&'a Listed], zone: &TimeZone) -> Vec<(String, Vec<&'a Listed>)> {
    let mut days: Vec<(String, Vec<&Listed>)> = Vec::new();
    for listed in shown {
        let local = listed.visit.began.to_zoned_datetime(zone.clone());
        let day = local.strftime("%A, %-d %B").to_string();
        match days.last_mut() {
            Some((last, visits)) if *last == day => visits.push(listed),
            _ => days.push((day, vec![listed])),
        }
    }
    days
}

/// Classes of the style sheet and names of who comes, bottom to top.
const WHO: [(&str, &str); 5] = [
    ("dog", "dog"),
    ("cat", "cat"),
    ("person", "person"),
    ("other", "something else"),
    ("nothing", "nobody, or not decided"),
];
/// The name of a dog that is not certainly one animal of the house.
const UNSURE: &str = "unknown dog, or one of several";

/// One of those who are counted: a class of the style sheet, and what it is called.
struct Row {
    class: &'static str,
    name: String,
}

impl Row {
    fn of((class, name): (&'static str, &str)) -> Self {
        Self { class, name: name.to_owned() }
    }
}

/// The rows of the dogs, if a visit was told by which dog it was.
fn dogs(all: &[Listed], animals: Option<&Animals>) -> Option<Vec<Row>> {
    let told: BTreeSet<&str> = all.iter().filter_map(Listed::dog).collect();
    let known = animals.map_or(&[][..], |animals| &animals.all);
    let mut rows: Vec<Row> =
        known.iter().map(|animal| Row::of((animal.colour.name(), &animal.name))).collect();
    // Those that are forgotten since, too.
    let rest = told.iter().filter(|name| known.iter().all(|animal| animal.name != **name));
    rows.extend(rest.map(|name| Row::of(("nothing", name))));
    (!told.is_empty()).then_some(rows)
}

/// Whom a visit counts for: the name of a row.
type Who<'a> = &'a dyn Fn(&Listed) -> Option<&str>;
/// A bar of a chart: its name, and how many belong to each row.
type Bar = (String, Vec<usize>);

/// Visits by the hour of the day.
fn hours(title: &str, all: &[Listed], rows: &[Row], who: Who, zone: &TimeZone) -> Markup {
    let name = |h| if h % 6 == 0 { format!("{h}:00") } else { String::new() };
    let hour = |listed: &Listed| {
        let hour = listed.visit.began.to_zoned_datetime(zone.clone()).hour();
        usize::try_from(hour).ok()
    };
    chart(title, rows, &bars(all, rows, who, (0..24).map(name), &hour))
}

/// Visits of each of the last days.
fn days(title: &str, all: &[Listed], rows: &[Row], who: Who, zone: &TimeZone) -> Markup {
    let day = |at: Timestamp| at.to_zoned_datetime(zone.clone()).date();
    let today = day(Timestamp::now());
    let dates: Vec<_> =
        (0..DAYS).rev().filter_map(|back| today.checked_sub(back.days()).ok()).collect();
    let names = dates.iter().map(|date| date.strftime("%a").to_string());
    let which = |listed: &Listed| {
        let date = day(listed.visit.began);
        dates.iter().position(|known| *known == date)
    };
    chart(title, rows, &bars(all, rows, who, names, &which))
}

/// The visits as bars with these names, of which `which` gives the number.
fn bars(
    all: &[Listed],
    rows: &[Row],
    who: Who,
    names: impl Iterator<Item = String>,
    which: &dyn Fn(&Listed) -> Option<usize>,
) -> Vec<Bar> {
    let mut bars: Vec<Bar> = names.map(|name| (name, vec![0; rows.len()])).collect();
    for listed in all {
        let row = who(listed).and_then(|who| rows.iter().position(|row| row.name == who));
        if let (Some(row), Some(bar)) = (row, which(listed).and_then(|n| bars.get_mut(n))) {
            bar.1[row] += 1;
        }
    }
    bars
}

/// Stacked bars with their legend; whoever cannot see them is told the sums.
fn chart(title: &str, rows: &[Row], bars: &[Bar]) -> Markup {
    let most = bars.iter().map(|(_, bar)| bar.iter().sum::<usize>()).max().unwrap_or(0).max(1);
    let width = 480.0 / bars.len() as f32;
    let unit = 100.0 / most as f32;
    let sums: Vec<String> = (0..rows.len())
        .map(|row| (row, bars.iter().map(|(_, bar)| bar[row]).sum::<usize>()))
        .filter(|(_, sum)| *sum > 0)
        .map(|(row, sum)| format!("{} {sum}", rows[row].name))
        .collect();
    html! {
        figure .chart {
            figcaption { (title) "; the highest bar: " (most) }
            svg viewBox="-6 0 486 122" role="img" aria-label={ (title) ": " (sums.join(", ")) } {
                line .axis x1="0" x2="480" y1="104" y2="104" {}
                @for (n, (name, bar)) in bars.iter().enumerate() {
                    @let x = n as f32 * width;
                    @for (row, &count) in bar.iter().enumerate() {
                        @let below: usize = bar[..row].iter().sum();
                        @if count > 0 {
                            rect .(rows[row].class) x=(format!("{:.1}", x + 1.0)) width=(format!("{:.1}", width - 2.0))
                                y=(format!("{:.1}", 104.0 - unit * (below + count) as f32))
                                height=(format!("{:.1}", unit * count as f32)) {}
                        }
                    }
                    text x=(format!("{:.1}", x + width / 2.0)) y="118" text-anchor="middle" { (name) }
                }
            }
            ul .legend { @for row in rows { li .(row.class) { (row.name) } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pawlatch_core::event::{Event, What, Whom};
    use pawlatch_core::units::Uptime;

    use super::*;

    fn let_in(id: i64, animals: Option<&[&str]>) -> Listed {
        let recognised = animals.map(|animals| What::Recognised {
            animals: animals.iter().map(|name| (*name).to_owned()).collect(),
            likeness: 0.8,
            needed: 0.7,
        });
        let opened = What::Opened { whom: Whom::Dog };
        let whats = [What::ApproachBegan].into_iter().chain(recognised).chain([opened]);
        let events = (0..).zip(whats);
        let events =
            events.map(|(n, what)| Event { at: Uptime::ZERO + Duration::from_millis(n), what });
        let visit = Visit {
            began: Timestamp::now(),
            verdict: Some(Verdict::LetIn),
            events: events.collect(),
            goes_on: false,
        };
        Listed { id, visit, picture: false, label: None }
    }

    #[test]
    fn dogs_that_were_told_apart_are_counted_one_by_one() {
        assert!(dogs(&[let_in(1, None)], None).is_none(), "no rule asked which dog it was");
        let all = [
            let_in(1, Some(&["Rex"])),
            let_in(2, Some(&["Rex"])),
            let_in(3, Some(&["Rex", "Bella"])),
            let_in(4, Some(&[])),
            let_in(5, Some(&["Ace"])),
            let_in(6, None),
        ];
        let known = r#"[{"name": "Bella", "colour": "sky", "pictures": []},
            {"name": "Rex", "colour": "red", "pictures": []}]"#;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("animals")).unwrap();
        std::fs::write(dir.path().join("animals/animals.json"), known).unwrap();
        let rows = dogs(&all, Animals::open(dir.path()).ok().as_ref()).unwrap();
        let told: Vec<_> = rows.iter().map(|row| (row.class, row.name.as_str())).collect();
        let expected = [("sky", "Bella"), ("red", "Rex"), ("nothing", "Ace"), ("nothing", UNSURE)];
        assert_eq!(told, expected);
        let one = bars(&all, &rows, &Listed::dog, ["all".to_owned()].into_iter(), &|_| Some(0));
        assert_eq!(one, [("all".to_owned(), vec![0, 2, 1, 2])]);
        let drawn = days("Dogs", &all, &rows, &Listed::dog, &TimeZone::UTC).into_string();
        assert!(drawn.contains("aria-label=\"Dogs: Rex 2, Ace 1, unknown dog"), "{drawn}");
        assert_eq!(drawn.matches("<rect class=\"red\"").count(), 1);
        assert_eq!(drawn.matches("<rect class=\"sky\"").count(), 0);
    }
}
