//! Whether everything is as it should be, and what to do where it is not.

use axum::extract::State;
use maud::html;
use pawlatch_core::door::{Position, ProofKind};
use pawlatch_core::frame::PictureHealth;

use super::form::Refusal;
use super::{Shared, layout};
use crate::owner::metrics;

/// `GET /health`
pub(super) async fn page(State(page): Shared) -> Result<layout::Answer, Refusal> {
    let house = &page.house;
    let glance = house.board.now();
    let gaps = page.read(|archive| archive.gaps()).await.unwrap_or_default();
    let mut lines: Vec<(&str, bool, String)> = Vec::new();
    match &glance {
        None => lines.push(("Door", false, "has not begun to run".to_owned())),
        Some(glance) => {
            let position = glance.position(house.silent_after());
            let sound =
                matches!(position, Position::Locked | Position::Unlocked | Position::Moving);
            lines.push(("Latch", sound, format!("{position:?}").to_lowercase()));
            let holds = |kind: ProofKind| glance.proofs.iter().find(|p| p.proof == kind);
            for (name, kind) in [
                ("Pictures come", ProofKind::FreshFrame),
                ("Networks", ProofKind::Vision),
                ("Journal", ProofKind::Journal),
            ] {
                if let Some(proof) = holds(kind) {
                    let words = proof.words.clone().unwrap_or_else(|| "as it should be".to_owned());
                    lines.push((name, proof.passed, words));
                }
            }
            if let Some(seen) = &glance.sightings {
                let good = seen.health == PictureHealth::Good;
                lines.push(("Picture", good, seen.health.describe().to_owned()));
            }
        }
    }
    let up = house.clock.now().as_millis() / 1_000;
    let memory = metrics::memory().map(|bytes| format!("{:.0} MB", bytes as f64 / 1e6));
    let temperature = metrics::temperature().map(|celsius| format!("{celsius:.0} °C"));
    Ok(layout::page(
        "/health",
        "Health",
        html! {
            h1 { "Health" }
            table {
                caption .sr { "Parts of the door" }
                thead { tr { th scope="col" { "Part" } th scope="col" { "State" } th scope="col" { "In words" } } }
                tbody {
                    @for (name, good, words) in &lines {
                        tr .missing[!good] {
                            th scope="row" { (name) }
                            td .mark { @if *good { "✓ well" } @else { "✗ not well" } }
                            td { (words) }
                        }
                    }
                }
            }
            dl .facts {
                div { dt { "Version" } dd { (env!("CARGO_PKG_VERSION")) } }
                div { dt { "Running for" } dd { (format!("{} d {} h {} min", up / 86_400, up / 3_600 % 24, up / 60 % 60)) } }
                @if let Some(memory) = memory { div { dt { "Memory" } dd { (memory) } } }
                @if let Some(temperature) = temperature { div { dt { "Processor" } dd { (temperature) } } }
                div { dt { "Events this page missed" } dd { (house.board.missed()) } }
            }
            @if !gaps.is_empty() {
                section .card {
                    h2 { "Gaps in the journal" }
                    ul { @for gap in gaps.iter().rev().take(10) { li { (gap.wall) ": " (gap.reason) } } }
                }
            }
        },
    ))
}
