//! The visits one after another, filtered, and who came when.

use std::collections::BTreeMap;

use axum::extract::{Query, State};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use maud::{Markup, html};
use pawlatch_core::event::Verdict;
use pawlatch_core::sight::Class;
use serde::Deserialize;

use super::form::Refusal;
use super::{Shared, layout};
use crate::journal::{Archive, JournalError};
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
    /// Which row of the charts it belongs to.
    fn who(&self) -> &'static str {
        match self.visit.verdict {
            Some(Verdict::LetIn) => "dog",
            Some(Verdict::KeptShut) => match self.visit.refused() {
                Some(Class::Cat) => "cat",
                Some(Class::Person) => "person",
                _ => "other",
            },
            Some(Verdict::Nobody | Verdict::Overruled) | None => "nothing",
        }
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
    let class_fits = match wanted.class.as_str() {
        "" => true,
        "dog" => listed.visit.verdict == Some(Verdict::LetIn),
        name => listed.visit.refused().is_some_and(|class| class.name() == name),
    };
    verdict_fits && class_fits
}

/// `GET /visits`
pub(super) async fn page(
    State(page): Shared,
    Query(wanted): Query<Wanted>,
) -> Result<layout::Answer, Refusal> {
    let zone = page.house.time_zone();
    let asked = wanted.clone();
    let all = page.read(move |archive| list(archive, &asked)).await?;
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
                        li .(listed.who()) {
                            a href={ "/visits/" (listed.id) } {
                                @if listed.picture {
                                    img src={ "/visits/" (listed.id) "/pictures/decisive" } width="160" height="120" loading="lazy" alt="";
                                }
                                span {
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
                    (hours(&all, &zone))
                    (days(&all, &zone))
                    (legend())
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

/// The rows of the charts, bottom to top.
const WHO: [&str; 5] = ["dog", "cat", "person", "other", "nothing"];

type Counts = [u32; WHO.len()];

fn count(counts: &mut Counts, who: &str) {
    if let Some(n) = WHO.iter().position(|known| *known == who) {
        counts[n] += 1;
    }
}

/// Visits by the hour of the day.
fn hours(all: &[Listed], zone: &TimeZone) -> Markup {
    let mut bars = [Counts::default(); 24];
    for listed in all {
        let hour = listed.visit.began.to_zoned_datetime(zone.clone()).hour();
        count(&mut bars[usize::from(hour.unsigned_abs()).min(23)], listed.who());
    }
    let names: Vec<String> =
        (0..24).map(|h| if h % 6 == 0 { format!("{h}:00") } else { String::new() }).collect();
    chart("Visits by hour of the day", &bars, &names)
}

/// Visits of each of the last days.
fn days(all: &[Listed], zone: &TimeZone) -> Markup {
    let day = |at: Timestamp| at.to_zoned_datetime(zone.clone()).date();
    let today = Timestamp::now();
    let mut bars: BTreeMap<jiff::civil::Date, Counts> = (0..DAYS)
        .filter_map(|back| today.checked_sub(SignedDuration::from_hours(24 * back)).ok())
        .map(|at| (day(at), Counts::default()))
        .collect();
    for listed in all {
        if let Some(counts) = bars.get_mut(&day(listed.visit.began)) {
            count(counts, listed.who());
        }
    }
    let names: Vec<String> = bars.keys().map(|date| date.strftime("%a").to_string()).collect();
    let counts: Vec<Counts> = bars.into_values().collect();
    chart("Visits of the last two weeks", &counts, &names)
}

/// Stacked bars, with a table for whoever cannot see them.
fn chart(title: &str, bars: &[Counts], names: &[String]) -> Markup {
    let most = bars.iter().map(|bar| bar.iter().sum::<u32>()).max().unwrap_or(0).max(1);
    let width = 480.0 / bars.len() as f32;
    let unit = 100.0 / most as f32;
    html! {
        figure .chart {
            figcaption { (title) "; the highest bar: " (most) }
            svg viewBox="0 0 480 122" role="img" aria-label=(title) {
                line .axis x1="0" x2="480" y1="104" y2="104" {}
                @for (n, bar) in bars.iter().enumerate() {
                    @let x = n as f32 * width;
                    @for (row, who) in WHO.iter().enumerate() {
                        @let below: u32 = bar[..row].iter().sum();
                        @if bar[row] > 0 {
                            rect .(who) x=(format!("{:.1}", x + 1.0)) width=(format!("{:.1}", width - 2.0))
                                y=(format!("{:.1}", 104.0 - unit * (below + bar[row]) as f32))
                                height=(format!("{:.1}", unit * bar[row] as f32)) {}
                        }
                    }
                    text x=(format!("{:.1}", x + width / 2.0)) y="118" text-anchor="middle" { (names[n]) }
                }
            }
        }
    }
}

fn legend() -> Markup {
    let names = ["dog", "cat", "person", "something else", "nobody, or not decided"];
    html! {
        ul .legend { @for (who, name) in WHO.iter().zip(names) { li .(who) { (name) } } }
    }
}
