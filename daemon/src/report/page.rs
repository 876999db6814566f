//! The page: HTML and style.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use pawlatch_core::door::{Proof, ProofKind};
use pawlatch_core::event::Verdict;
use pawlatch_core::units::Rect;

use super::{Boxed, Chapter, HeatPicture, Shot, Story, curve};
use crate::replay::in_words;

const STYLE: &str = include_str!("style.css");

/// Nothing may be fetched: everything is in the file.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";

/// The whole page.
pub(super) fn page(story: &Story) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { "Pawlatch: " (story.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    p .brand { "Pawlatch" }
                    h1 { (story.title) }
                    @if story.chapters.len() > 1 { (contents(story)) }
                }
                main {
                    @for (number, chapter) in (1..).zip(&story.chapters) { (section(number, chapter)) }
                    (models(story))
                }
                footer {
                    p {
                        "Made by pawlatch " (env!("CARGO_PKG_VERSION"))
                        ". This file is complete: it fetches nothing and sends nothing."
                    }
                }
            }
        }
    }
}

fn contents(story: &Story) -> Markup {
    html! {
        nav { ol .contents {
            @for (number, chapter) in (1..).zip(&story.chapters) {
                @let verdict = chapter.summary().verdict;
                li class=(tone(verdict)) {
                    a href={ "#visit-" (number) } {
                        (lock(verdict)) span { strong { (chapter.title) } (short(verdict)) }
                    }
                }
            }
        } }
    }
}

fn section(number: usize, chapter: &Chapter) -> Markup {
    let summary = chapter.summary();
    html! {
        section #{ "visit-" (number) } {
            h2 { (chapter.title) }
            @if !chapter.about.is_empty() { p .about { (chapter.about) } }
            div class={ "verdict " (tone(summary.verdict)) } {
                (lock(summary.verdict))
                div {
                    p .said { (in_words(summary.verdict)) }
                    ul { @for reason in &summary.reasons { li { (reason) } } }
                }
            }
            (decisive(chapter))
            h3 { "Evidence" }
            p .hint {
                "Each solid line is one animal, its evidence for being a dog, coloured by what it "
                "was taken for at the end. Above the upper line the door may open, if every proof "
                "holds; below the lower one it is taken not to be a dog. "
                span .cat { "Dashed" } ": evidence for a cat. The band shows the door's state."
            }
            (curve::curve(chapter))
            h3 { "What happened" }
            ol .events {
                @for event in &chapter.events {
                    li { span .time { (format!("{:.2} s", event.at.as_millis() as f64 / 1e3)) }
                        span { (event.to_string()) } }
                }
            }
            h3 { "Pictures" }
            div .strip { @for shot in &chapter.shots { (small(shot)) } }
        }
    }
}

/// The picture of the decisive moment, the heat map, and the proofs.
fn decisive(chapter: &Chapter) -> Markup {
    let Some(decision) = chapter.tally.decisive() else { return html! {} };
    let at = format!("{:.2} s", decision.at.as_millis() as f64 / 1e3);
    html! {
        h3 { "The decisive moment, at " (at) }
        @if let Some((_, shot)) = &chapter.decisive {
            div .pair {
                figure {
                    (picture(shot, &shot.boxes, None))
                    figcaption { "What was seen" }
                }
                @if let Some(heat) = &chapter.heat {
                    figure {
                        (picture(shot, &[], Some(heat)))
                        figcaption {
                            "Where the classifier sees "
                            span class=(heat.class.name()) { "“" (heat.class) "”" }
                        }
                    }
                }
            }
        }
        table .proofs {
            thead { tr { th { "Proof" } th .number { "Value" } th .number { "Limit" } th {} } }
            tbody { @for proof in &decision.proofs { (proof_row(proof)) } }
        }
    }
}

/// A proof as a row of a table: name, value, limit, whether it holds.
pub fn proof_row(proof: &Proof) -> Markup {
    let (name, relation, unit) = described(proof.proof);
    let number = |value: Option<f32>| {
        value.map_or(String::new(), |v| match unit {
            "%" => format!("{:.0} %", 100.0 * v),
            "s" => format!("{v:.2} s"),
            _ => format!("{v:.1}"),
        })
    };
    let limit =
        proof.limit.map_or(String::new(), |_| format!("{relation} {}", number(proof.limit)));
    html! {
        tr .missing[!proof.passed] {
            td { (name) @if let Some(words) = &proof.words { span .words { (words) } } }
            td .number { (number(proof.value)) }
            td .number { (limit) }
            td .mark { @if proof.passed { "✓ holds" } @else { "✗ missing" } }
        }
    }
}

/// Name, relation to the limit, and unit of a proof.
const fn described(kind: ProofKind) -> (&'static str, &'static str, &'static str) {
    match kind {
        ProofKind::FreshFrame => ("The frame is fresh", "at most", "s"),
        ProofKind::Picture => ("The picture is good", "", ""),
        ProofKind::Vision => ("The networks answer", "", ""),
        ProofKind::Latch => ("The latch is locked", "", ""),
        ProofKind::Journal => ("It can be recorded", "", ""),
        ProofKind::Rule => ("A rule allows it", "", ""),
        ProofKind::Evidence => ("Evidence for a dog", "at least", ""),
        ProofKind::NoCat => ("No cat in view", "below", ""),
        ProofKind::NoPerson => ("No person in view", "at most", ""),
        ProofKind::Agreement => ("The networks agree (doubt)", "at most", "%"),
        ProofKind::NoRefusal => ("No cat a moment ago", "at most", "s"),
        ProofKind::Identity => ("Which dog it is (likeness)", "known from", ""),
        ProofKind::NoOtherDog => ("No other dog that may not come in", "", ""),
    }
}

fn small(shot: &Shot) -> Markup {
    html! {
        figure .told[shot.happened.is_some()] {
            (picture(shot, &shot.boxes, None))
            figcaption {
                span .time { (format!("{:.1} s", shot.at.as_millis() as f64 / 1e3)) } " "
                @match &shot.happened {
                    Some(words) => strong { (words) },
                    None => span class={ "state-name" } { (shot.state.replace('_', " ")) },
                }
            }
        }
    }
}

fn picture(shot: &Shot, boxes: &[Boxed], heat: Option<&HeatPicture>) -> Markup {
    html! {
        div .picture {
            img src=(data_uri("image/jpeg", &shot.jpeg)) width=(shot.width) height=(shot.height)
                alt={ "The picture at " (shot.at) };
            @if let Some(heat) = heat {
                img .heat style=(place(heat.region)) src=(data_uri("image/png", &heat.png)) alt="";
            }
            @for b in boxes {
                div class={ "box " (b.class.name()) } style=(place(b.rect)) {
                    span .inside[b.rect.y0() < 0.12] { (b.label) }
                }
            }
        }
    }
}

fn place(rect: Rect) -> String {
    format!(
        "left:{:.2}%;top:{:.2}%;width:{:.2}%;height:{:.2}%",
        100.0 * rect.x0(),
        100.0 * rect.y0(),
        100.0 * rect.width(),
        100.0 * rect.height()
    )
}

fn models(story: &Story) -> Markup {
    html! {
        section .models {
            h2 { "Models" }
            @for m in &story.models {
                dl {
                    dt { (m.task) } dd { (m.name) " " (m.version) " (" (m.licence) ")" }
                    dt { "sha256" } dd .hash { (m.sha256) }
                }
            }
            @if story.models.is_empty() { p { "Decided from a recording; no network ran." } }
        }
    }
}

fn data_uri(kind: &str, bytes: &[u8]) -> String {
    format!("data:{kind};base64,{}", STANDARD.encode(bytes))
}

const fn tone(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::LetIn => "open",
        Verdict::KeptShut => "shut",
        Verdict::Nobody | Verdict::Overruled => "quiet",
    }
}

const fn short(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::LetIn => "let in",
        Verdict::KeptShut => "kept shut",
        Verdict::Nobody => "nobody",
        Verdict::Overruled => "overruled",
    }
}

/// A padlock, open or shut.
fn lock(verdict: Verdict) -> Markup {
    let shackle = if verdict == Verdict::LetIn {
        "M8 11V7a4 4 0 0 1 7.6-1.7"
    } else {
        "M8 11V7a4 4 0 0 1 8 0v4"
    };
    html! {
        svg .lock viewBox="0 0 24 24" aria-hidden="true" {
            path d=(shackle) {}
            rect x="5" y="11" width="14" height="10" rx="2.5" {}
        }
    }
}
