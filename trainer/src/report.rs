//! Reports as single HTML files: figures, curves and pictures, without a server or a script.

use std::fmt::Write as _;

use anyhow::Result;
use pawlatch_core::sight::Class;

use crate::data::augment::resized;
use crate::data::browse::{escape, head, thumbnail};
use crate::data::open;
use crate::evaluate::Report;
use crate::metrics::Bin;
use crate::recipe::bars;
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

/// An epoch that has ended, for the terminal: figures, and bars of how they came about.
pub fn line(epochs: &[Epoch]) -> String {
    let Some(last) = epochs.last() else { return String::new() };
    let curve = |of: fn(&Epoch) -> f32| {
        let values: Vec<f32> = epochs.iter().map(of).collect();
        let low = values.iter().copied().fold(f32::MAX, f32::min);
        bars(&values, low, values.iter().copied().fold(f32::MIN, f32::max))
    };
    format!(
        "epoch {:>3}  loss {:.4} {}  validation {:.4} {}  score {:.2} % {}  {:.0} s",
        last.epoch,
        last.loss,
        curve(|e| e.loss),
        last.validation_loss,
        curve(|e| e.validation_loss),
        last.accuracy * 100.0,
        curve(|e| e.accuracy),
        last.seconds
    )
}

/// What a line of the page's curves is called, its stroke, and what it shows of an epoch.
type Curve = (&'static str, &'static str, fn(&Epoch) -> f32);

/// Colours of Okabe and Ito and dashes: told apart without colour too.
const CURVES: [Curve; 4] = [
    ("loss", "stroke='#666'", |e| e.loss),
    ("validation loss", "stroke='#d55e00' stroke-width=2", |e| e.validation_loss),
    ("accuracy", "stroke='#0072b2' stroke-dasharray='6 3'", |e| e.accuracy),
    ("rate", "stroke='#009e73' stroke-dasharray='1 3'", |e| e.rate),
];

/// Curves of a training, stage by stage: losses from 0 to the largest of them, accuracy from 0 to 1,
/// the learning rate from 0 to its largest.
pub fn history(stages: &[Vec<Epoch>]) -> String {
    let mut html = head("Training");
    for (n, epochs) in stages.iter().enumerate() {
        let _ = write!(html, "<h2>Stage {}</h2>", n + 1);
        let largest = |of: fn(&Epoch) -> f32| epochs.iter().map(of).fold(1e-9, f32::max);
        let tops = [
            largest(|e| e.loss.max(e.validation_loss)),
            largest(|e| e.loss.max(e.validation_loss)),
            1.0,
            largest(|e| e.rate),
        ];
        html += "<svg viewBox='0 0 620 200' width=930>";
        for (i, ((name, stroke, of), top)) in CURVES.iter().zip(tops).enumerate() {
            let at = |(i, e): (usize, &Epoch)| {
                let x = 10.0 + 480.0 * i as f32 / (epochs.len().max(2) - 1) as f32;
                format!("{x:.1},{:.1}", 190.0 - 180.0 * of(e) / top)
            };
            let points: Vec<_> = epochs.iter().enumerate().map(at).collect();
            let y = 20 + 20 * i;
            let _ = write!(
                html,
                "<polyline points='{}' fill='none' {stroke}/><path d='M500 {y}h24' fill='none' {stroke}/>\
                 <text x=530 y={} font-size=12>{name}</text>",
                points.join(" "),
                y + 4
            );
        }
        html += "</svg><table><tr><th>epoch<th>loss<th>validation<th>accuracy<th>rate<th>s</tr>";
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_is_drawn_whole_in_the_terminal_and_on_its_page() {
        let epochs: Vec<Epoch> = [(2.0, 2.0, 0.2), (1.0, 1.4, 0.43), (0.6, 1.3, 0.6)]
            .into_iter()
            .zip(1..)
            .map(|((loss, validation_loss, accuracy), epoch)| Epoch {
                epoch,
                loss,
                validation_loss,
                accuracy,
                rate: 1e-3,
                seconds: 7.4,
            })
            .collect();
        let said = line(&epochs);
        assert_eq!(
            said,
            "epoch   3  loss 0.6000 █▃▁  validation 1.3000 █▂▁  score 60.00 % ▁▅█  7 s"
        );
        let page = live(&epochs);
        for (name, stroke, _) in CURVES {
            assert!(page.contains(name) && page.matches(stroke).count() == 2, "{name}");
        }
        // The accuracy of the last epoch, on its own scale.
        assert!(page.contains("490.0,82.0"), "{page}");
        assert!(page.contains("http-equiv=refresh"));
    }
}
