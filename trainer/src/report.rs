//! Reports as single HTML files: figures, curves and pictures, without a server or a script.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use pawlatch_core::sight::Class;
use pawlatch_core::units::Rect;

use crate::cache::Normalisation;
use crate::data::augment::{resized, stretched};
use crate::data::browse::{escape, frame, framed, head, thumbnail};
use crate::data::open;
use crate::detector::score;
use crate::evaluate::{Operating, Report, door_class, load_model};
use crate::inside;
use crate::localize::{Finder, Method};
use crate::metrics::{Bin, Rate};
use crate::net::Net;
use crate::recipe::bars;
use crate::train::Epoch;

/// Pictures whose layers' answers are measured.
const MEASURED: usize = 4;
/// Pictures of a row of the surest are this large, pixels; those of mistakes larger.
const SMALL: u32 = 96;
const LARGE: u32 = 144;

/// The page of an evaluation of the model in the directory `dir`.
///
/// # Errors
/// If the model or a picture cannot be read, or the network not be run.
pub fn page(report: &Report, dir: &Path) -> Result<String> {
    let mut html = head(&report.model);
    let _ = write!(html, "<h1>{}</h1><pre>{}</pre>", escape(&report.model), escape(&report.text()));
    html += "<h2>Confusion</h2>";
    html += &confusion(&report.all.confusion);
    html += "<h2>Letting in and keeping out</h2><p>A dog is let in above a threshold of its probability. \
             Shaded: 95 % bounds (Clopper and Pearson).</p>";
    html += &thresholds(&report.curve);
    html += &trade_off(&report.curve);
    html += &precision_recall(&report.curve);
    html += "<h2>Reliability</h2><p>How often it is right against how sure it is; on the diagonal it is as \
             often right as it says.</p>";
    if let Some((ece, bins)) = &report.uncalibrated {
        let _ = write!(html, "{}", reliability(&format!("uncalibrated, ECE {ece:.3}"), bins));
    }
    let name = format!("as the door uses it, ECE {:.3}", report.all.ece);
    html += &reliability(&name, &report.all.reliability);
    let model = load_model(dir)?;
    let input = model.manifest.input.clone();
    let onnx = dir.join(&model.manifest.file);
    // What the door runs may be outside the trainer's vocabulary: then there is no looking inside.
    let net = Net::load(&onnx).ok();
    // A network without a map of answers has no heat to show.
    let mut finder =
        Finder::new(Method::Fcn, model, || net.clone().context("outside the vocabulary")).ok();
    html += "<h2>Most confident mistakes</h2><p>With the heat of what was said.</p>";
    for m in &report.mistakes {
        let seen = resized(&open(&m.item.file)?, m.item.part, 2 * LARGE)?;
        let mut pictures = thumbnail(&resized(&seen, Rect::WHOLE, LARGE)?)?;
        let heat = finder.as_mut().map(|f| f.heat(&seen)).transpose()?.flatten();
        if let Some(heat) = heat {
            let over = heat.over(&seen, door_class(&m.said)?);
            pictures += &thumbnail(&resized(&over, Rect::WHOLE, LARGE)?)?;
        }
        let _ = write!(
            html,
            "<figure>{pictures}<figcaption>{} called {} ({:.0} %)</figcaption></figure>",
            escape(&m.item.label),
            escape(&m.said),
            m.probability * 100.0
        );
    }
    html += "<h2>Surest of each class</h2>";
    for class in Class::ALL {
        let _ = write!(html, "<h3>{class}</h3>");
        for s in report.surest.iter().filter(|s| s.said == class.name()) {
            let picture = resized(&open(&s.item.file)?, s.item.part, SMALL)?;
            let right = if s.item.label == s.said { "" } else { &escape(&s.item.label) };
            let _ = write!(
                html,
                "<figure>{}<figcaption>{:.1} % {right}</figcaption></figure>",
                thumbnail(&picture)?,
                s.probability * 100.0
            );
        }
    }
    let Some(net) = net else { return Ok(html + "</body></html>\n") };
    if let Some(filters) = inside::filters(&net) {
        let _ = write!(html, "<h2>First filters</h2>{}", thumbnail(&filters)?);
    }
    let normalisation = Normalisation { mean: input.mean, std: input.std };
    let [.., h, w] = net.shape_at(input.width());
    let pictures = report.surest.iter().step_by(report.surest.len().div_ceil(MEASURED).max(1));
    let planes = pictures.map(|s| {
        let seen = stretched(&open(&s.item.file)?, s.item.part, w as u32, h as u32)?;
        Ok(normalisation.planes(&seen))
    });
    let planes = planes.collect::<Result<Vec<_>>>()?;
    html += "<h2>Layers</h2><p>Weights, and what the layer says of some of the pictures above.</p><details>\
             <summary>Table</summary><table><tr><th>layer<th>weights: mean<th>deviation<th>largest\
             <th>output: mean<th>deviation<th>largest<th>nought</tr>";
    for layer in inside::layers(&net, &planes, [h, w])? {
        let three = |s: &inside::Spread| {
            format!("<td>{:.4}<td>{:.4}<td>{:.3}", s.mean, s.deviation, s.largest)
        };
        let weights = layer.weights.as_ref().map_or("<td><td><td>".into(), three);
        let _ = write!(
            html,
            "<tr><th>{}{weights}{}<td>{:.0} %</tr>",
            escape(&layer.name),
            three(&layer.output),
            layer.output.zeros * 100.0
        );
    }
    Ok(html + "</table></details></body></html>\n")
}

/// The page of an evaluation of a detector.
///
/// # Errors
/// If a picture cannot be read.
pub fn detector_page(report: &score::Report) -> Result<String> {
    let mut html = head(&report.model);
    let _ = write!(html, "<h1>{}</h1><pre>{}</pre>", escape(&report.model), escape(&report.text()));
    html += "<h2>Precision against recall</h2><p>Of what is there so much is found; of what is found so \
             much is there (IoU of at least 0.5). The area is AP50.</p>";
    let classes = report.classes.iter();
    let lines: Vec<Line<'_>> = classes.map(|(name, f)| (name.as_str(), f.curve.clone())).collect();
    html += &plot("", ["recall 0", "1", "0", "1"], &lines, &[]);
    html += "<table><tr><th>class<th>boxes<th>AP50<th>AP50:95";
    for (size, most) in score::SIZES {
        let _ = write!(html, "<th>{size}, to {:.0} % of the picture", most * 100.0);
    }
    for (name, f) in &report.classes {
        let (name, boxes) = (escape(name), f.boxes);
        let _ = write!(html, "<tr><th>{name}<td>{boxes}<td>{:.3}<td>{:.3}", f.ap50, f.ap50_95);
        for (boxes, ap) in score::SIZES.map(|(size, _)| f.sizes[size]) {
            let _ =
                write!(html, "<td>{}", if boxes == 0 { "-".into() } else { format!("{ap:.3}") });
        }
    }
    html += "</table>";
    for (title, mistakes) in [
        ("Surest boxes round nothing of the kind", &report.false_alarms),
        ("Largest that it did not find", &report.missed),
    ] {
        let _ = write!(html, "<h2>{title}</h2><p>Dashed: what is there.</p>");
        for m in mistakes {
            let truth = m.truth.iter().map(|b| frame(b.rect, &b.label, "true"));
            let mut frames: String = truth.collect();
            let mut caption = format!("no {}", m.label);
            if m.score > 0.0 {
                caption = format!("{} ({:.0} %)", m.label, m.score * 100.0);
                frames += &frame(m.rect, &caption, "");
            }
            html += &framed(&open(&m.file)?, &frames, &caption)?;
        }
    }
    Ok(html + "</body></html>\n")
}

fn confusion(counts: &[[usize; 5]; 5]) -> String {
    let mut html = String::from("<table><tr><th>is \\ said");
    for class in Class::ALL {
        let _ = write!(html, "<th>{class}");
    }
    html += "<th>recall</tr>";
    let share = |right: usize, of: usize| match of {
        0 => "<td>-".to_owned(),
        of => format!("<td>{:.1} %", right as f64 / of as f64 * 100.0),
    };
    for (class, row) in Class::ALL.iter().zip(counts) {
        let total = row.iter().sum::<usize>();
        let _ = write!(html, "<tr><th>{class}");
        for n in row {
            let _ = write!(
                html,
                "<td style='background:rgba(0,114,178,{:.2})'>{n}",
                0.6 * *n as f64 / total.max(1) as f64
            );
        }
        html += &share(row[*class as usize], total);
    }
    html += "<tr><th>precision";
    for class in Class::ALL.map(|c| c as usize) {
        html += &share(counts[class][class], counts.iter().map(|row| row[class]).sum());
    }
    html + "<td></table>"
}

/// A line of a plot: what it is called and its points, 0 to 1 from left to right and from below.
type Line<'a> = (&'a str, Vec<(f64, f64)>);

/// Colours of Okabe and Ito, and dashes: told apart without colour too.
const STROKES: [(&str, &str); 4] =
    [("#0072b2", "none"), ("#d55e00", "7 3"), ("#009e73", "2 3"), ("#666", "none")];

fn stroke((colour, dashes): (&str, &str)) -> String {
    format!("fill='none' stroke-width='2' stroke='{colour}' stroke-dasharray='{dashes}'")
}

/// Lines with what lies between their bounds, over a frame whose ends are named.
fn plot(title: &str, ends: [&str; 4], lines: &[Line<'_>], bounds: &[Line<'_>]) -> String {
    let at = |points: &[(f64, f64)]| {
        let one = |(x, y): &(f64, f64)| format!("{:.1},{:.1}", 40.0 + 260.0 * x, 230.0 - 200.0 * y);
        points.iter().map(one).collect::<Vec<_>>().join(" ")
    };
    let mut svg = format!(
        "<svg viewBox='0 0 450 260' width=600 font-size=11><text x=40 y=18 font-size=13>{title}</text>\
         <path d='M40 30V230H300' fill='none' stroke='#999'/>"
    );
    let [left, right, bottom, top] = ends;
    for (x, y, end, text) in [
        (40, 246, "start", left),
        (300, 246, "end", right),
        (36, 230, "end", bottom),
        (36, 38, "end", top),
    ] {
        let _ = write!(svg, "<text x={x} y={y} text-anchor={end}>{text}</text>");
    }
    for ((_, points), (colour, _)) in bounds.iter().zip(STROKES) {
        let _ = write!(svg, "<polygon points='{}' fill='{colour}' opacity=.15 />", at(points));
    }
    for (i, ((name, points), stroke)) in lines.iter().zip(STROKES.map(stroke)).enumerate() {
        let y = 50 + 20 * i;
        let _ = write!(
            svg,
            "<polyline points='{}' {stroke}/><path d='M308 {y}h20' {stroke}/>\
             <text x=332 y={}>{name}</text>",
            at(points),
            y + 4
        );
    }
    svg + "</svg>"
}

/// What is asked of an operating point.
type Asked = (&'static str, fn(&Operating) -> Rate);

const RATES: [Asked; 3] = [
    ("dogs kept out", |o| o.frr),
    ("cats let in", |o| o.far_cat),
    ("others let in", |o| o.far_rest),
];

fn thresholds(curve: &[Operating]) -> String {
    let x = |i: usize| i as f64 / (curve.len() - 1).max(1) as f64;
    let line = |of: &dyn Fn(&Operating) -> f64| -> Vec<(f64, f64)> {
        curve.iter().enumerate().map(|(i, o)| (x(i), of(o))).collect()
    };
    let lines = RATES.map(|(name, rate)| (name, line(&|o| rate(o).share())));
    let bounds = RATES.map(|(name, rate)| {
        let mut round = line(&|o| rate(o).low);
        round.extend(line(&|o| rate(o).high).into_iter().rev());
        (name, round)
    });
    let end =
        |o: Option<&Operating>| o.map_or(String::new(), |o| format!("p > {:.3}", o.threshold));
    let (left, right) = (end(curve.first()), end(curve.last()));
    plot("Error rates by threshold (even in logits)", [&left, &right, "0", "1"], &lines, &bounds)
}

/// Dogs kept out against who is let in, both logarithmic (Martin et al. 1997: DET).
fn trade_off(curve: &[Operating]) -> String {
    // From 0.1 % on: fewer than that the pictures cannot tell.
    let log = |v: f64| (v.max(1e-3).log10() + 3.0) / 3.0;
    let line = |far: &dyn Fn(&Operating) -> Rate| -> Vec<(f64, f64)> {
        curve.iter().map(|o| (log(far(o).share()), log(o.frr.share()))).collect()
    };
    let lines =
        [("cats", line(&|o| o.far_cat)), ("all that is no dog", line(&|o| o.far_non_dog()))];
    let ends = ["0.1 % let in", "all", "0.1 %", "all"];
    plot("Dogs kept out against others let in (DET)", ends, &lines, &[])
}

fn precision_recall(curve: &[Operating]) -> String {
    let points = curve.iter().filter_map(|o| {
        let dogs = o.frr.of - o.frr.hits;
        let all = dogs + o.far_non_dog().hits;
        (all > 0).then(|| (1.0 - o.frr.share(), dogs as f64 / all as f64))
    });
    let lines = [("dog", points.collect())];
    plot("Precision against recall", ["recall 0", "1", "0", "1"], &lines, &[])
}

/// Accuracy against confidence; the diagonal is a network that is right as often as it says.
fn reliability(name: &str, bins: &[Bin]) -> String {
    let mut svg = format!(
        "<svg viewBox='0 0 220 236' width=330><path d='M10 210L210 10' stroke='#999' fill='none'/>\
         <text x=10 y=230 font-size=11>{name}</text>"
    );
    for bin in bins.iter().filter(|b| b.count > 0) {
        let (x, y) = (10.0 + bin.confidence * 200.0, 210.0 - bin.accuracy * 200.0);
        let r = 2.0 + (bin.count as f32).ln();
        let _ = write!(
            svg,
            "<circle cx={x:.1} cy={y:.1} r={r:.1} fill='#d55e00'><title>{} pictures: {:.3} sure, {:.3} right</title></circle>",
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

/// What a line of the page's curves is called and what it shows of an epoch.
type Curve = (&'static str, fn(&Epoch) -> f32);

const CURVES: [Curve; 4] = [
    ("validation loss", |e| e.validation_loss),
    ("accuracy", |e| e.accuracy),
    ("rate", |e| e.rate),
    ("loss", |e| e.loss),
];

/// Curves of a training, stage by stage: losses from 0 to the largest of them, accuracy from 0 to 1,
/// the learning rate from 0 to its largest.
pub fn history(stages: &[Vec<Epoch>]) -> String {
    let mut html = head("Training");
    for (n, epochs) in stages.iter().enumerate() {
        let _ = write!(html, "<h2>Stage {}</h2>", n + 1);
        let largest = |of: fn(&Epoch) -> f32| epochs.iter().map(of).fold(1e-9, f32::max);
        let loss = largest(|e| e.loss.max(e.validation_loss));
        let tops = [loss, 1.0, largest(|e| e.rate), loss];
        let line = |((name, of), top): (Curve, f32)| {
            let at = |(i, e): (usize, &Epoch)| {
                (i as f64 / (epochs.len().max(2) - 1) as f64, f64::from(of(e) / top))
            };
            (name, epochs.iter().enumerate().map(at).collect())
        };
        let lines: Vec<Line<'_>> = CURVES.into_iter().zip(tops).map(line).collect();
        let (last, top) = (format!("epoch {}", epochs.len()), format!("{loss:.2}"));
        html += &plot("Losses, accuracy (to 1) and rate", ["1", &last, "0", &top], &lines, &[]);
        html += "<table><tr><th>epoch<th>loss<th>validation<th>accuracy<th>rate<th>s</tr>";
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
        for ((name, _), stroke) in CURVES.iter().zip(STROKES.map(stroke)) {
            assert!(page.contains(name) && page.matches(&stroke).count() == 2, "{name}");
        }
        // The accuracy of the last epoch, on its own scale.
        assert!(page.contains("300.0,110.0"), "{page}");
        // A bare value would take the slash with it, and what follows would be inside.
        let ends = page.match_indices("/>").map(|(i, _)| page.as_bytes()[i - 1]);
        assert!(ends.into_iter().all(|before| before == b'\'' || before == b' '), "{page}");
        assert!(page.contains("http-equiv=refresh"));
    }
}
