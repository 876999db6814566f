//! Who may pass when: the rules as a form that loses nothing and asks twice before it does harm.

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use jiff::civil::Time;
use maud::{Markup, html};
use pawlatch_core::policy::{Day, Effect, Rule, Schedule, Way, Who};
use pawlatch_core::sight::Class;

use super::form::{Caller, Refusal, Sent};
use super::login::sentence;
use super::{Page, Shared, form, layout};
use crate::config::{OwnersWish, WishedPolicy};
use crate::owner::access::TicketIs;
use crate::owner::animals::Animals;
use crate::owner::words::called;

/// Most rules.
const MAX_RULES: usize = 24;
/// Longest name of a rule, characters.
const MAX_NAME: usize = 60;

const DAYS: [(Day, &str, &str); 7] = [
    (Day::Mon, "mon", "Mon"),
    (Day::Tue, "tue", "Tue"),
    (Day::Wed, "wed", "Wed"),
    (Day::Thu, "thu", "Thu"),
    (Day::Fri, "fri", "Fri"),
    (Day::Sat, "sat", "Sat"),
    (Day::Sun, "sun", "Sun"),
];

/// One row of the form, as it was typed.
#[derive(Debug, Clone, Default, PartialEq)]
struct Row {
    name: String,
    who: String,
    effect: String,
    ways: String,
    from: String,
    to: String,
    days: Vec<String>,
    /// What is wrong with it.
    wrong: Option<String>,
}

impl Row {
    fn of(rule: &Rule) -> Self {
        let way = match rule.ways[..] {
            [Way::In] => "in",
            [Way::Out] => "out",
            _ => "both",
        };
        let time = |time: Time| time.strftime("%H:%M").to_string();
        let day = |day: &Day| DAYS.iter().find(|(d, ..)| d == day).map(|(_, n, _)| (*n).to_owned());
        let when = rule.when.as_ref();
        Self {
            name: rule.name.clone(),
            who: rule.who.to_string(),
            effect: if rule.effect == Effect::Allow { "allow" } else { "deny" }.to_owned(),
            ways: way.to_owned(),
            from: when.map_or(String::new(), |when| time(when.from)),
            to: when.map_or(String::new(), |when| time(when.to)),
            days: when.map_or(Vec::new(), |when| when.days.iter().filter_map(day).collect()),
            wrong: None,
        }
    }

    /// The rule it describes; `None` for a row that was left empty.
    fn rule(&self) -> Result<Option<Rule>, String> {
        if self.name.is_empty() {
            let touched = !self.from.is_empty() || !self.to.is_empty() || !self.days.is_empty();
            return if touched {
                Err("Give the rule a name: it is shown as the reason.".to_owned())
            } else {
                Ok(None)
            };
        }
        if self.name.chars().count() > MAX_NAME || self.name.contains(char::is_control) {
            return Err(format!("A name has at most {MAX_NAME} characters on one line."));
        }
        let who = Who::try_from(self.who.clone())
            .ok()
            .filter(|who| *who != Who::Class(Class::Nothing))
            .ok_or("Choose whom the rule is about.")?;
        let effect = match self.effect.as_str() {
            "allow" => Effect::Allow,
            "deny" => Effect::Deny,
            _ => return Err("Choose whether the rule allows or denies.".to_owned()),
        };
        let ways = match self.ways.as_str() {
            "in" => vec![Way::In],
            "out" => vec![Way::Out],
            "both" => Vec::new(),
            _ => return Err("Choose in, out or both.".to_owned()),
        };
        let when = self.when()?;
        Ok(Some(Rule { name: self.name.clone(), who, ways, effect, when }))
    }

    fn when(&self) -> Result<Option<Schedule>, String> {
        let mut days = Vec::new();
        for day in &self.days {
            let known = DAYS.iter().find(|(_, name, _)| name == day);
            days.push(known.map(|(day, ..)| *day).ok_or("Choose days from Monday to Sunday.")?);
        }
        if self.from.is_empty() && self.to.is_empty() {
            if days.is_empty() {
                return Ok(None);
            }
            // Whole days: from midnight to midnight.
            return Ok(Some(Schedule { from: Time::midnight(), to: Time::midnight(), days }));
        }
        let time = |text: &str, end: &str| {
            text.parse::<Time>().map_err(|_| {
                format!("The {end} is “{text}”; expected a time such as 22:00, or leave both empty for always.")
            })
        };
        Ok(Some(Schedule {
            from: time(&self.from, "beginning")?,
            to: time(&self.to, "end")?,
            days,
        }))
    }
}

/// The rows as they were sent: fields are called `name-0`, `who-0`, `name-1`, …
fn rows(sent: &Sent) -> Vec<Row> {
    let mut rows = Vec::new();
    for n in 0..MAX_RULES {
        let field = |name: &str| sent.get(&format!("{name}-{n}")).to_owned();
        if !sent.fields.iter().any(|(name, _)| *name == format!("name-{n}")) {
            break;
        }
        if !field("remove").is_empty() {
            continue;
        }
        let days = sent.fields.iter().filter(|(name, _)| *name == format!("days-{n}"));
        rows.push(Row {
            name: field("name"),
            who: field("who"),
            effect: field("effect"),
            ways: field("ways"),
            from: field("from"),
            to: field("to"),
            days: days.map(|(_, day)| day.clone()).collect(),
            wrong: None,
        });
    }
    rows
}

/// What could harm somebody in going from the rules `before` to those `after`.
/// `known` are the animals that have pictures.
fn risks(before: &[Rule], after: &[Rule], known: &[String]) -> Vec<String> {
    let mut risks = Vec::new();
    for rule in before.iter().filter(|rule| rule.effect == Effect::Deny) {
        if !after.contains(rule) {
            risks.push(format!("“{}” no longer forbids what it forbade.", rule.name));
        }
    }
    let is_in = |rule: &&Rule| rule.ways.is_empty() || rule.ways.contains(&Way::In);
    let is_out = |rule: &&Rule| rule.ways.is_empty() || rule.ways.contains(&Way::Out);
    let of_dogs = |rule: &Rule| !matches!(rule.who, Who::Class(class) if class != Class::Dog);
    let dogs_in = |rules: &[Rule]| {
        rules.iter().filter(is_in).any(|r| of_dogs(r) && r.effect == Effect::Allow)
    };
    let every_dog_in = |rules: &[Rule]| {
        let dogs = |r: &Rule| r.who == Who::Class(Class::Dog) && r.effect == Effect::Allow;
        rules.iter().filter(is_in).any(dogs)
    };
    if dogs_in(before) && !dogs_in(after) {
        risks.push("No rule lets dogs in any more: your dog would stay outside.".to_owned());
    }
    if dogs_in(after) && every_dog_in(before) && !every_dog_in(after) {
        risks.push(
            "Only animals that are recognised come in: in bad light, or from an odd side, yours \
             would wait outside."
                .to_owned(),
        );
    }
    for rule in after.iter().filter(|rule| !before.contains(rule)) {
        let name = &rule.name;
        match (&rule.who, rule.effect) {
            (Who::Class(Class::Dog), Effect::Deny) if is_in(&rule) && rule.when.is_none() => {
                risks.push(format!(
                    "“{name}” keeps every dog out at all times: your dog would stay outside."
                ));
            }
            (Who::Class(Class::Dog), Effect::Deny) if is_out(&rule) => {
                risks.push(format!("“{name}” keeps dogs from going out: yours could be shut in."));
            }
            (Who::Animal(_), Effect::Deny) if is_out(&rule) => {
                risks.push(format!(
                    "“{name}” keeps everybody inside while it holds: who is inside is not seen."
                ));
            }
            (Who::Animal(_), Effect::Deny) => {
                risks.push(format!(
                    "“{name}” also keeps out every dog that is not recognised: it could be that one."
                ));
            }
            (Who::UnknownDog, Effect::Deny) if is_in(&rule) => {
                risks.push(format!("“{name}” keeps yours out too, whenever it is not recognised."));
            }
            (Who::Class(who), Effect::Allow) if *who != Class::Dog => {
                risks.push(format!(
                    "“{name}” allows {}; the camera opens for dogs only, whatever it says.",
                    called(*who)
                ));
            }
            _ => {}
        }
        if let Who::Animal(animal) = &rule.who
            && !known.contains(animal)
        {
            risks.push(format!(
                "“{name}” is about {animal}, of whom there are no pictures: see Animals."
            ));
        }
    }
    risks
}

/// `GET /rules`
pub(super) async fn page(
    State(page): Shared,
    Extension(caller): Extension<Caller>,
) -> Result<layout::Answer, Refusal> {
    let rows: Vec<Row> = current(&page).iter().map(Row::of).collect();
    let known = known(&page).await?;
    show(&page, &caller, &rows, &known, &[], html! {})
}

/// The names of the animals that have pictures.
async fn known(page: &Page) -> Result<Vec<String>, Refusal> {
    let dir = page.house.state_dir.clone();
    let animals = page.aside(move || Animals::open(&dir)).await?;
    Ok(animals.map_or(Vec::new(), |a| a.all.into_iter().map(|animal| animal.name).collect()))
}

fn current(page: &Page) -> Vec<Rule> {
    page.house.linked().map_or(Vec::new(), |link| link.config.policy.rules().to_vec())
}

/// `POST /rules`
pub(super) async fn save(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    if sent.caller.session.is_none() {
        return Err(Refusal::Unknown);
    }
    let mut rows = rows(&sent);
    let mut rules = Vec::new();
    for row in &mut rows {
        match row.rule() {
            Ok(rule) => rules.extend(rule),
            Err(wrong) => row.wrong = Some(wrong),
        }
    }
    // A row that was left empty is offered anew.
    rows.retain(|row| row.wrong.is_some() || !row.name.is_empty());
    let known = known(&page).await?;
    let again = |rows: &[Row], risks: &[String], told| {
        let shown = show(&page, &sent.caller, rows, &known, risks, told)?;
        Ok((StatusCode::UNPROCESSABLE_ENTITY, shown).into_response())
    };
    if rows.iter().any(|row| row.wrong.is_some()) {
        let told =
            layout::notice("bad", "Nothing was changed yet: something needs your attention below.");
        return again(&rows, &[], told);
    }
    if sent.ticket != TicketIs::Good {
        // What was typed is kept; only the tap has to be repeated.
        let told = layout::notice(
            "bad",
            "This page had been open for too long. Nothing was changed yet: save again.",
        );
        return again(&rows, &[], told);
    }
    let risks = risks(&current(&page), &rules, &known);
    if !risks.is_empty() && sent.get("confirmed") != "yes" {
        return again(&rows, &risks, html! {});
    }
    let house = std::sync::Arc::clone(&page.house);
    let saved = page.aside(move || {
        let mut wish = OwnersWish::load(&house.state_dir)?;
        wish.policy = Some(WishedPolicy { rules });
        wish.save(&house.state_dir, house.config_path.as_deref())
    });
    if let Err(error) = saved.await? {
        page.house.audit(&sent.caller.who, "change the rules", "refused");
        let told = layout::notice("bad", &sentence(&error.to_string()));
        return again(&rows, &[], told);
    }
    let outcome = if risks.is_empty() { "done" } else { "done, confirmed" };
    page.house.audit(&sent.caller.who, "change the rules", outcome);
    page.house.restart_door();
    Ok(Redirect::to("/rules").into_response())
}

fn show(
    page: &Page,
    caller: &Caller,
    rows: &[Row],
    known: &[String],
    risks: &[String],
    told: Markup,
) -> Result<layout::Answer, Refusal> {
    let ticket = form::ticket(page, caller)?;
    let zone = page.house.time_zone();
    let zone = zone.iana_name().unwrap_or("the system’s zone").to_owned();
    let blank = Row {
        effect: "allow".to_owned(),
        who: "dog".to_owned(),
        ways: "both".to_owned(),
        ..Row::default()
    };
    let offered = (rows.len() < MAX_RULES).then_some(&blank);
    Ok(layout::page(
        "/rules",
        "Rules",
        html! {
            h1 { "Rules" }
            p {
                "What denies beats what allows, in whatever order. Coming in needs a rule that allows "
                "it; going out is free unless a rule denies it. Times are local (" (zone) ")."
            }
            @if known.is_empty() {
                p .hint { "Rules can also be about one of your animals, once it is known: " a href="/animals" { "Animals" } "." }
            }
            (told)
            form method="post" action="/rules" data-fresh {
                (layout::ticket(&ticket))
                @if !risks.is_empty() {
                    div .notice .bad role="alert" {
                        p { strong { "This is risky. Nothing was changed yet." } }
                        ul { @for risk in risks { li { (risk) } } }
                        label .check { input type="checkbox" name="confirmed" value="yes"; " I know; save it all the same." }
                    }
                }
                @for (n, row) in rows.iter().chain(offered).enumerate() { (fields(n, row, known, n >= rows.len())) }
                p .buttons { button .primary type="submit" { "Save the rules" } }
                p .hint { "The door locks, starts anew with these rules and is back within seconds." }
            }
        },
    ))
}

/// Whom a rule can be about, as it is sent and as it is read: classes, the animals that are
/// known, and whoever `given` names.
fn subjects(known: &[String], given: &str) -> Vec<(String, String)> {
    let named = |(value, words): (&str, &str)| (value.to_owned(), words.to_owned());
    let mut subjects = vec![named(("dog", "dogs"))];
    for name in known {
        subjects.push((Who::Animal(name.clone()).to_string(), format!("{name} (dog)")));
    }
    if let Ok(Who::Animal(name)) = Who::try_from(given.to_owned())
        && !known.contains(&name)
    {
        subjects.push((given.to_owned(), format!("{name} (no pictures)")));
    }
    let rest = [
        ("unknown dog", "unknown dogs"),
        ("cat", "cats"),
        ("person", "persons"),
        ("other", "others"),
    ];
    subjects.extend(rest.map(named));
    subjects
}

fn fields(n: usize, row: &Row, known: &[String], new: bool) -> Markup {
    let id = |name: &str| format!("{name}-{n}");
    let choice = |name: &str, about: &str, given: &str, options: &[(&str, &str)]| {
        html! {
            div {
                label for=(id(name)) { (about) }
                select id=(id(name)) name=(id(name)) {
                    @for (value, words) in options { option value=(value) selected[*value == given] { (words) } }
                }
            }
        }
    };
    let subjects = subjects(known, &row.who);
    let subjects: Vec<(&str, &str)> =
        subjects.iter().map(|(value, words)| (value.as_str(), words.as_str())).collect();
    let wrong = id("wrong");
    html! {
        fieldset .card {
            legend { @if new { "A new rule" } @else { "Rule " (n + 1) } }
            @if let Some(text) = &row.wrong { p .wrong id=(wrong) { (text) } }
            div .row {
                div .wide {
                    label for=(id("name")) { "Name" }
                    input type="text" id=(id("name")) name=(id("name")) value=(row.name) maxlength=(MAX_NAME)
                        aria-describedby=[row.wrong.as_ref().map(|_| wrong.as_str())] aria-invalid=[row.wrong.as_ref().map(|_| "true")];
                }
                (choice("effect", "Effect", &row.effect, &[("allow", "allows"), ("deny", "denies")]))
                (choice("who", "Whom", &row.who, &subjects))
                (choice("ways", "Way", &row.ways, &[("both", "in and out"), ("in", "in"), ("out", "out")]))
            }
            div .row {
                div { label for=(id("from")) { "From" } input type="time" id=(id("from")) name=(id("from")) value=(row.from); }
                div { label for=(id("to")) { "Until before" } input type="time" id=(id("to")) name=(id("to")) value=(row.to); }
                fieldset .days {
                    legend { "Days; none: every day" }
                    @for (_, value, words) in DAYS {
                        label .check { input type="checkbox" name=(id("days")) value=(value) checked[row.days.iter().any(|d| d == value)]; " " (words) }
                    }
                }
            }
            @if !new { label .check { input type="checkbox" name=(id("remove")) value="yes"; " Remove this rule" } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> Row {
        let text = str::to_owned;
        Row {
            name: text(name),
            who: text("dog"),
            effect: text("deny"),
            ways: text("both"),
            ..Row::default()
        }
    }

    #[test]
    fn a_row_gives_its_rule_and_the_rule_its_row() {
        let night = Row {
            from: "22:00".to_owned(),
            to: "06:30".to_owned(),
            days: vec!["fri".to_owned()],
            ..row("night")
        };
        let rule = night.rule().unwrap().unwrap();
        assert_eq!(Row::of(&rule), night);
        assert_eq!(rule.when.unwrap().days, [Day::Fri]);
        assert_eq!(row("").rule(), Ok(None));
    }

    #[test]
    fn what_is_wrong_is_said_and_nothing_panics() {
        assert!(Row { from: "25:99".to_owned(), ..row("x") }.rule().unwrap_err().contains("25:99"));
        assert!(Row { to: "06:00".to_owned(), ..row("x") }.rule().is_err(), "half a range");
        assert!(Row { who: "fox".to_owned(), ..row("x") }.rule().is_err());
        assert!(Row { days: vec!["xyz".to_owned()], ..row("x") }.rule().is_err());
        assert!(Row { from: "10:00".to_owned(), ..row("") }.rule().is_err(), "no name");
    }

    #[test]
    fn what_could_harm_is_asked_again() {
        let rule = |row: Row| row.rule().unwrap().unwrap();
        let dogs = rule(Row { effect: "allow".to_owned(), ..row("dogs") });
        let night = rule(Row {
            from: "22:00".to_owned(),
            to: "06:00".to_owned(),
            ways: "in".to_owned(),
            ..row("night")
        });
        let known = ["Rex".to_owned()];
        let before = [dogs.clone(), night.clone()];
        assert!(risks(&before, &before, &known).is_empty());
        assert_eq!(
            risks(&before, std::slice::from_ref(&dogs), &known).len(),
            1,
            "a denial is gone"
        );
        assert_eq!(
            risks(&before, std::slice::from_ref(&night), &known).len(),
            1,
            "nobody comes in"
        );
        assert_eq!(
            risks(std::slice::from_ref(&dogs), &before, &known).len(),
            0,
            "a curfew for coming in is no risk"
        );
        let shut_in = rule(Row { ways: "out".to_owned(), ..row("stay") });
        assert_eq!(risks(std::slice::from_ref(&dogs), &[dogs.clone(), shut_in], &known).len(), 1);
    }

    #[test]
    fn rules_about_animals_say_what_comes_of_not_being_recognised() {
        let rule = |who: &str, effect: &str, ways: &str| {
            let (who, effect, ways) = (who.to_owned(), effect.to_owned(), ways.to_owned());
            let row = Row { who, effect, ways, ..row("new") };
            let rule = row.rule().unwrap().unwrap();
            assert_eq!(Row::of(&rule), row);
            rule
        };
        let dogs = rule("dog", "allow", "both");
        let with = |rule: Rule| {
            risks(std::slice::from_ref(&dogs), &[dogs.clone(), rule], &["Rex".to_owned()])
        };
        let only = |after: Rule| {
            risks(std::slice::from_ref(&dogs), &[after], &["Rex".to_owned()]).join(" ")
        };
        assert!(only(rule("dog:Rex", "allow", "in")).contains("recognised"));
        assert!(only(rule("dog:Ace", "allow", "in")).contains("no pictures"));
        assert!(with(rule("dog:Rex", "allow", "in")).is_empty());
        assert!(with(rule("dog:Rex", "deny", "in"))[0].contains("every dog that is not"));
        assert!(with(rule("dog:Rex", "deny", "out"))[0].contains("everybody inside"));
        assert!(with(rule("unknown dog", "deny", "in"))[0].contains("yours out too"));
        assert!(with(rule("unknown dog", "deny", "out")).is_empty());
        let shown = subjects(&["Rex".to_owned()], "dog:Ace");
        let values: Vec<&str> = shown.iter().map(|(value, _)| value.as_str()).collect();
        let all = ["dog", "dog:Rex", "dog:Ace", "unknown dog", "cat", "person", "other"];
        assert_eq!(values, all);
    }
}
