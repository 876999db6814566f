//! Reports as single HTML files: figures, curves and pictures, without a server or a script.

use std::fmt::Write as _;

use anyhow::Result;
use pawlatch_core::sight::Class;

use crate::data::augment::resized;
use crate::data::browse::{escape, head, thumbnail};
use crate::data::open;
use crate::evaluate::Report;
use crate::metrics::Bin;
use crate::train::Epoch;

/// The page of an evaluation.
///
/// # Errors
/// If a picture of a mistake cannot be read.
pub fn page(report: &Report) -> Result<String> {
    let mut html = head(&report.model);
    let _ = write!(html, "<h1>{}</h1><pre>{}</pre>", escape(&report.model), escape(&report.text()));
    html += "<h2>Confusion</h2><table><tr><th>is \\ said";
    for class in Class::ALL {
        let _ = write!(html, "<th>{class}");
    }
    html += "<th>recall</tr>";
    for (class, row) in Class::ALL.iter().zip(&report.all.confusion) {
        let total = row.iter().sum::<usize>().max(1);
        let _ = write!(html, "<tr><th>{class}");
        for n in row {
            let _ = write!(
                html,
                "<td style='background:rgba(200,60,20,{:.2})'>{n}",
                0.8 * *n as f64 / total as f64
            );
        }
        let _ =
            write!(html, "<td>{:.1} %</tr>", row[*class as usize] as f64 / total as f64 * 100.0);
    }
    html += "</table><h2>Reliability</h2>";
    html += &reliability(&report.all.reliability);
    html += "<h2>Most confident mistakes</h2>";
    for m in &report.mistakes {
        let picture = resized(&open(&m.item.file)?, m.item.part, 144)?;
        let _ = write!(
            html,
            "<figure>{}<figcaption>{} called {} ({:.0} %)</figcaption></figure>",
            thumbnail(&picture)?,
            escape(&m.item.label),
            escape(&m.said),
            m.probability * 100.0
        );
    }
    Ok(html + "</body></html>\n")
}

/// Accuracy against confidence; the diagonal is a network that is right as often as it says.
fn reliability(bins: &[Bin]) -> String {
    let mut svg = String::from(
        "<svg viewBox='0 0 220 220' width=330><path d='M10 210L210 10' stroke='#999' fill='none'/>",
    );
    for bin in bins.iter().filter(|b| b.count > 0) {
        let (x, y) = (10.0 + bin.confidence * 200.0, 210.0 - bin.accuracy * 200.0);
        let r = 2.0 + (bin.count as f32).ln();
        let _ = write!(
            svg,
            "<circle cx={x:.1} cy={y:.1} r={r:.1} fill='#c63'><title>{} pictures: {:.3} sure, {:.3} right</title></circle>",
            bin.count, bin.confidence, bin.accuracy
        );
    }
    svg + "</svg>"
}

/// The same page of a stage under way, which a browser reads again every few seconds.
pub fn live(epochs: &[Epoch]) -> String {
    let page = history(&[epochs.to_vec()]);
    page.replacen("<title>", "<meta http-equiv=refresh content=5><title>", 1)
}

/// Curves of a training: loss of each stage on training (grey) and validation pictures (red).
pub fn history(stages: &[Vec<Epoch>]) -> String {
    let mut html = head("Training");
    for (n, epochs) in stages.iter().enumerate() {
        let _ = write!(html, "<h2>Stage {}</h2>", n + 1);
        let most = epochs.iter().map(|e| e.loss.max(e.validation_loss)).fold(1e-6, f32::max);
        let line = |of: fn(&Epoch) -> f32| {
            let at = |(i, e): (usize, &Epoch)| {
                format!(
                    "{:.1},{:.1}",
                    10.0 + 480.0 * i as f32 / epochs.len().max(2) as f32,
                    190.0 - 180.0 * of(e) / most
                )
            };
            epochs.iter().enumerate().map(at).collect::<Vec<_>>().join(" ")
        };
        let _ = write!(
            html,
            "<svg viewBox='0 0 500 200' width=750><polyline points='{}' fill='none' stroke='#888'/>\
             <polyline points='{}' fill='none' stroke='#c33'/></svg><table><tr><th>epoch<th>loss<th>validation<th>accuracy<th>rate<th>s</tr>",
            line(|e| e.loss),
            line(|e| e.validation_loss)
        );
        for e in epochs {
            let _ = write!(
                html,
                "<tr><td>{}<td>{:.4}<td>{:.4}<td>{:.2} %<td>{:.1e}<td>{:.0}</tr>",
                e.epoch,
                e.loss,
                e.validation_loss,
                e.accuracy * 100.0,
                e.rate,
                e.seconds
            );
        }
        html += "</table>";
    }
    html + "</body></html>\n"
}
