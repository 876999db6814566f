//! Figures of an evaluation and the page that tells them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use pawlatch_core::metrics::{Rate, auc, expected_calibration_error, reliability, threshold_at};
use pawlatch_core::sight::{Class, ClassProbs, Detection};
use pawlatch_core::units::Rect;
use serde_json::{Value, json};

/// Everything that was measured.
pub struct Pictures {
    /// What made them.
    pub command: String,
    /// Name, version and hash of each model.
    pub models: Vec<String>,
    /// Single pictures.
    pub labelled: Vec<Labelled>,
    /// Pictures with boxes.
    pub detected: Vec<Detected>,
    /// Clips through the whole door.
    pub clips: Vec<Clip>,
}

/// A picture with its label and what was said of it.
pub struct Labelled {
    /// Where it comes from.
    pub subset: String,
    /// What it shows.
    pub truth: Class,
    /// What `classify` says of the picture.
    pub picture: ClassProbs,
    /// The classifier on the best box found, if one was.
    pub crop: Option<ClassProbs>,
    /// Whether a box that the door finds speaks for a person.
    pub person: bool,
}

/// A picture with boxes and what was found.
pub struct Detected {
    /// Where it comes from.
    pub subset: String,
    /// The classes whose boxes are complete.
    pub exhaustive: Vec<Class>,
    /// The boxes drawn by people.
    pub truths: Vec<Truth>,
    /// The boxes found, as `detect` reports them.
    pub found: Vec<Detection>,
    /// Whether a box that the door finds speaks for a person.
    pub person: bool,
}

/// A box drawn by people.
pub struct Truth {
    /// What is in it.
    pub class: Class,
    /// Where.
    pub rect: Rect,
}

/// A clip and how its replay ended.
pub struct Clip {
    /// Its name.
    pub name: String,
    /// What walks in it.
    pub truth: String,
    /// The last line of `replay --json`.
    pub summary: Value,
}

/// Average precision at IoU 0.5 (all-point interpolation, PASCAL VOC 2010 and later), over the
/// pictures in which `class` is completely boxed; `None` if it is nowhere.
pub fn ap50(pictures: &[Detected], class: Class) -> Option<f64> {
    let scored: Vec<&Detected> =
        pictures.iter().filter(|p| p.exhaustive.contains(&class)).collect();
    let total: usize =
        scored.iter().map(|p| p.truths.iter().filter(|t| t.class == class).count()).sum();
    if total == 0 {
        return None;
    }
    let mut found: Vec<(f32, usize, Rect)> = Vec::new();
    for (index, picture) in scored.iter().enumerate() {
        let of_class = picture.found.iter().filter(|d| d.class == class);
        found.extend(of_class.map(|d| (d.score.get(), index, d.rect)));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut taken: Vec<Vec<bool>> = scored.iter().map(|p| vec![false; p.truths.len()]).collect();
    let mut curve = Vec::new();
    let mut hits = 0;
    for (rank, (_, index, rect)) in found.iter().enumerate() {
        let best = scored[*index]
            .truths
            .iter()
            .enumerate()
            .filter(|(_, t)| t.class == class)
            .map(|(i, t)| (t.rect.iou(*rect), i))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((iou, i)) = best
            && iou >= 0.5
            && !taken[*index][i]
        {
            taken[*index][i] = true;
            hits += 1;
        }
        curve.push((f64::from(hits) / total as f64, f64::from(hits) / (rank + 1) as f64));
    }
    let (mut area, mut recall) = (0.0, 0.0);
    for i in 0..curve.len() {
        if curve[i].0 > recall {
            let precision = curve[i..].iter().map(|p| p.1).fold(0.0, f64::max);
            area += (curve[i].0 - recall) * precision;
            recall = curve[i].0;
        }
    }
    Some(area)
}

/// Boxes of animals from this score on are shown to people.
const SHOWN: f32 = 0.25;

/// How boxes of dogs and cats are named and placed: of those that a shown box of an animal fits (IoU
/// 0.5; the surest counts) how many are named as the other, and in pictures with one such box and
/// no other how well the surest box of an animal fits.
fn pets(pictures: &[Detected]) -> Value {
    let (mut named, mut overlaps) = (Vec::new(), Vec::new());
    for picture in pictures {
        let animal = |d: &&Detection| d.class != Class::Person;
        let mut found: Vec<&Detection> = picture.found.iter().filter(animal).collect();
        found.sort_by(|a, b| b.score.get().total_cmp(&a.score.get()));
        let pet = |t: &&Truth| matches!(t.class, Class::Dog | Class::Cat);
        for truth in picture.truths.iter().filter(pet) {
            let fits = |d: &&&Detection| d.score.get() >= SHOWN && d.rect.iou(truth.rect) >= 0.5;
            named.extend(found.iter().find(fits).map(|d| (truth.class, d.class)));
            if picture.truths.len() == 1 {
                overlaps.push(found.first().map_or(0.0, |d| d.rect.iou(truth.rect)));
            }
        }
    }
    let called = |is: Class, said: Class| {
        let of: Vec<_> = named.iter().filter(|n| n.0 == is).collect();
        Rate::new(of.iter().filter(|n| n.1 == said).count(), of.len())
    };
    let over = |iou| Rate::new(overlaps.iter().filter(|v| **v > iou).count(), overlaps.len());
    json!([
        ["cats named dog", called(Class::Cat, Class::Dog)],
        ["dogs named cat", called(Class::Dog, Class::Cat)],
        ["a single dog or cat: IoU over 0.5", over(0.5)],
        ["a single dog or cat: IoU over 0.7", over(0.7)],
    ])
}

/// The rate of letting in what is no dog at which subsets are compared.
const SUBSET_FAR: f64 = 0.005;

/// Counts of one subset at one threshold.
#[derive(Default)]
struct Subset {
    right: usize,
    dogs: usize,
    kept_out: usize,
    strangers: usize,
    let_in: usize,
}

/// The threshold on P(dog) that lets in no more than `far` of the non-dogs.
fn threshold_of(labelled: &[Labelled], far: f64, of: impl Fn(&Labelled) -> ClassProbs) -> f32 {
    let rest = labelled.iter().filter(|l| l.truth != Class::Dog);
    let rest: Vec<f32> = rest.map(|l| of(l).of(Class::Dog).get()).collect();
    threshold_at(&rest, far)
}

/// The detection error trade-off (Martin et al. 1997): pairs of the rate of letting in what is no
/// dog and of keeping dogs out, a pair for each threshold at which the former changes.
fn det(labelled: &[Labelled], of: impl Fn(&Labelled) -> ClassProbs) -> Vec<[f64; 2]> {
    let p = |l: &Labelled| of(l).of(Class::Dog).get();
    let (dogs, rest): (Vec<&Labelled>, Vec<&Labelled>) =
        labelled.iter().partition(|l| l.truth == Class::Dog);
    let mut rest: Vec<f32> = rest.into_iter().map(p).collect();
    rest.sort_by(|a, b| b.total_cmp(a));
    let share = |n: usize, of: usize| n as f64 / of.max(1) as f64;
    let point = |(let_in, threshold): (usize, &f32)| {
        let kept_out = dogs.iter().filter(|l| p(l) <= *threshold).count();
        [share(let_in, rest.len()), share(kept_out, dogs.len())]
    };
    rest.iter().enumerate().map(point).collect()
}

/// Error rates where the threshold on P(dog) lets in no more than `far` of the non-dogs.
fn operating(labelled: &[Labelled], far: f64, of: impl Fn(&Labelled) -> ClassProbs) -> Value {
    let p = |l: &Labelled| of(l).of(Class::Dog).get();
    let of_class =
        |want: fn(Class) -> bool| labelled.iter().filter(|l| want(l.truth)).collect::<Vec<_>>();
    let threshold = threshold_of(labelled, far, &of);
    let rate = |pictures: Vec<&Labelled>, in_: bool| {
        let hits = pictures.iter().filter(|l| (p(l) > threshold) == in_).count();
        Rate::new(hits, pictures.len())
    };
    json!({
        "far_wanted": far,
        "threshold": threshold,
        "frr": rate(of_class(|c| c == Class::Dog), false),
        "far_cat": rate(of_class(|c| c == Class::Cat), true),
        "far_other": rate(of_class(|c| c != Class::Dog && c != Class::Cat), true),
    })
}

fn classification(labelled: &[Labelled], of: impl Fn(&Labelled) -> ClassProbs + Copy) -> Value {
    let three = |c: Class| match c {
        Class::Dog => 0,
        Class::Cat => 1,
        Class::Person | Class::Other | Class::Nothing => 2,
    };
    let three_probs = |l: &Labelled| {
        let p = of(l);
        let (dog, cat) = (p.of(Class::Dog).get(), p.of(Class::Cat).get());
        vec![dog, cat, (1.0 - dog - cat).max(0.0)]
    };
    let probs: Vec<Vec<f32>> = labelled.iter().map(three_probs).collect();
    let truths: Vec<usize> = labelled.iter().map(|l| three(l.truth)).collect();
    let said = |p: &[f32]| (0..3).fold(0, |best, i| if p[i] > p[best] { i } else { best });
    let mut confusion = [[0_usize; 3]; 3];
    let mut subsets: BTreeMap<&str, Subset> = BTreeMap::new();
    let threshold = threshold_of(labelled, SUBSET_FAR, of);
    for ((l, p), &truth) in labelled.iter().zip(&probs).zip(&truths) {
        confusion[truth][said(p)] += 1;
        let subset = subsets.entry(&l.subset).or_default();
        subset.right += usize::from(said(p) == truth);
        let let_in = p[0] > threshold;
        if l.truth == Class::Dog {
            subset.dogs += 1;
            subset.kept_out += usize::from(!let_in);
        } else {
            subset.strangers += 1;
            subset.let_in += usize::from(let_in);
        }
    }
    let right = (0..3).map(|i| confusion[i][i]).sum();
    let dogs = |class: Class| -> Vec<f32> {
        let of_class = labelled.iter().filter(|l| l.truth == class);
        of_class.map(|l| of(l).of(Class::Dog).get()).collect()
    };
    let points = [0.01, 0.005, 0.001].map(|far| operating(labelled, far, of));
    let subsets: serde_json::Map<String, Value> = subsets
        .into_iter()
        .map(|(name, s)| {
            let figures = json!({
                "right": Rate::new(s.right, s.dogs + s.strangers),
                "frr": (s.dogs > 0).then(|| Rate::new(s.kept_out, s.dogs)),
                "far": (s.strangers > 0).then(|| Rate::new(s.let_in, s.strangers)),
            });
            (name.to_owned(), figures)
        })
        .collect();
    json!({
        "accuracy": Rate::new(right, labelled.len()),
        "confusion": confusion,
        "auc_dog_cat": auc(&dogs(Class::Dog), &dogs(Class::Cat)),
        "ece": expected_calibration_error(&probs, &truths),
        "reliability": reliability(&probs, &truths),
        "operating": points,
        "det": det(labelled, of),
        "subsets": subsets,
    })
}

/// Pictures in which the door believes a person, by what they show.
fn persons(pictures: &Pictures) -> Value {
    let share = |of: Vec<bool>| {
        let hits = of.iter().filter(|believed| **believed).count();
        Rate::new(hits, of.len())
    };
    let labelled = |class| {
        let such = pictures.labelled.iter().filter(|l| l.truth == class);
        share(such.map(|l| l.person).collect())
    };
    let boxed =
        pictures.detected.iter().filter(|d| d.truths.iter().any(|t| t.class == Class::Person));
    json!([
        ["persons", labelled(Class::Person)],
        ["boxed, one of the boxes a person's", share(boxed.map(|d| d.person).collect())],
        ["dogs", labelled(Class::Dog)],
        ["cats", labelled(Class::Cat)],
        ["other animals", labelled(Class::Other)],
        ["nobody", labelled(Class::Nothing)],
    ])
}

/// Writes `evaluation.md`, `evaluation.json` and the reliability plot into `docs`.
///
/// # Errors
/// If a file cannot be written.
pub fn write(docs: &Path, pictures: &Pictures) -> io::Result<()> {
    let picture = classification(&pictures.labelled, |l| l.picture);
    let door = classification(&pictures.labelled, |l| l.crop.unwrap_or(l.picture));
    let boxes: serde_json::Map<String, Value> =
        [Class::Dog, Class::Cat, Class::Person, Class::Other]
            .into_iter()
            .map(|class| (class.name().to_owned(), json!(ap50(&pictures.detected, class))))
            .collect();
    let clips: Vec<Value> = pictures
        .clips
        .iter()
        .map(|c| json!({ "clip": c.name, "truth": c.truth, "outcome": c.summary }))
        .collect();
    let all = json!({
        "command": pictures.command,
        "models": pictures.models,
        "pictures": pictures.labelled.len(),
        "boxed_pictures": pictures.detected.len(),
        "picture": picture,
        "crop": door,
        "ap50": boxes,
        "pets": pets(&pictures.detected),
        "persons": persons(pictures),
        "clips": clips,
    });
    fs::create_dir_all(docs)?;
    fs::write(docs.join("evaluation.json"), serde_json::to_string_pretty(&all)? + "\n")?;
    fs::write(docs.join("evaluation.svg"), reliability_plot(&all["picture"], &all["crop"]))?;
    fs::write(docs.join("evaluation-det.svg"), det_plot(&all["picture"], &all["crop"]))?;
    fs::write(docs.join("evaluation.md"), page(&all))
}

fn rate(value: &Value) -> String {
    let (hits, of) = (value["hits"].as_f64().unwrap_or(0.0), value["of"].as_f64().unwrap_or(0.0));
    let share = if of > 0.0 { hits / of * 100.0 } else { 0.0 };
    let high = value["high"].as_f64().unwrap_or(1.0) * 100.0;
    let low = value["low"].as_f64().unwrap_or(0.0) * 100.0;
    format!("{share:.1} % ({hits:.0} of {of:.0}; {low:.1} to {high:.1})")
}

fn page(all: &Value) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "# Evaluation\n\nMade by `{}`; all figures as JSON in \
         [evaluation.json](evaluation.json). Brackets hold exact 95 % bounds (Clopper and \
         Pearson). The pictures are not part of the project: {} labelled ones, {} with boxes, \
         and clips. A model with a `validation.txt` is judged by boxes of the pictures listed there only: \
         it was trained on the others.\n\nModels:",
        all["command"].as_str().unwrap_or_default(),
        all["pictures"],
        all["boxed_pictures"]
    );
    for model in all["models"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "- {}", model.as_str().unwrap_or_default());
    }
    let _ = writeln!(out, "\n## Clips through the whole door\n");
    let _ = writeln!(out, "| clip | shows | openings | verdict | reasons |\n|---|---|---|---|---|");
    for clip in all["clips"].as_array().into_iter().flatten() {
        let outcome = &clip["outcome"];
        let reasons: Vec<&str> =
            outcome["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} |",
            text(&clip["clip"]),
            text(&clip["truth"]),
            outcome["opened"],
            text(&outcome["verdict"]),
            reasons.join("; ")
        );
    }
    for (title, key) in [
        ("Single pictures, as `classify` answers", "picture"),
        ("Single pictures, the box that the door finds (as above where it finds none)", "crop"),
    ] {
        classification_page(&mut out, title, &all[key]);
    }
    let _ = writeln!(
        out,
        "\n![Reliability diagram](evaluation.svg)\n\n![Dogs kept out against others let in](evaluation-det.svg)\n\n\
         ## Boxes, AP50\n"
    );
    let _ = writeln!(out, "| class | AP50 |\n|---|---|");
    for (class, ap) in all["ap50"].as_object().into_iter().flatten() {
        let text = ap.as_f64().map_or("-".to_owned(), |ap| format!("{ap:.3}"));
        let _ = writeln!(out, "| {class} | {text} |");
    }
    let _ = writeln!(out, "\n| boxes of dogs and cats | |\n|---|---|");
    let rows = |out: &mut String, key: &str| {
        for row in all[key].as_array().into_iter().flatten() {
            let _ =
                writeln!(out, "| {} | {} |", row[0].as_str().unwrap_or_default(), rate(&row[1]));
        }
    };
    rows(&mut out, "pets");
    let _ = writeln!(
        out,
        "\n## Persons\n\nPictures with a box that speaks for a person, found and weighed as on the \
         door, which adds up what several frames say.\n\n| pictures of | believed to show one |\n|---|---|"
    );
    rows(&mut out, "persons");
    out
}

fn classification_page(out: &mut String, title: &str, figures: &Value) {
    let number = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
    let _ = writeln!(
        out,
        "\n## {title}\n\nThree classes: {}. Area under the curve, dogs against cats: {:.4}. \
         Expected calibration error: {:.3}.\n",
        rate(&figures["accuracy"]),
        number(&figures["auc_dog_cat"]),
        number(&figures["ece"])
    );
    let _ = writeln!(out, "| is \\ said | dog | cat | rest |\n|---|---|---|---|");
    for (row, name) in ["dog", "cat", "rest"].iter().enumerate() {
        let cells = &figures["confusion"][row];
        let _ = writeln!(out, "| {name} | {} | {} | {} |", cells[0], cells[1], cells[2]);
    }
    let _ = writeln!(
        out,
        "\nA single picture at a threshold on P(dog); the door itself needs several frames:\n\n\
         | wanted FAR | threshold | dogs kept out (FRR) | cats let in | others let in |\n\
         |---|---|---|---|---|"
    );
    for point in figures["operating"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "| {:.1} % | {:.4} | {} | {} | {} |",
            number(&point["far_wanted"]) * 100.0,
            number(&point["threshold"]),
            rate(&point["frr"]),
            rate(&point["far_cat"]),
            rate(&point["far_other"])
        );
    }
    let _ = writeln!(
        out,
        "\nBy subset, the last two columns at the threshold for a FAR of {:.1} %:\n\n\
         | subset | right | dogs kept out | others let in |\n|---|---|---|---|",
        SUBSET_FAR * 100.0
    );
    let some = |value: &Value| if value.is_null() { "-".to_owned() } else { rate(value) };
    for (name, value) in figures["subsets"].as_object().into_iter().flatten() {
        let (right, frr, far) = (rate(&value["right"]), some(&value["frr"]), some(&value["far"]));
        let _ = writeln!(out, "| {name} | {right} | {frr} | {far} |");
    }
}

/// Where a plot's square begins, and its side.
const PLOT: (f64, f64, f64) = (60.0, 20.0, 320.0);
/// Okabe and Ito's blue and vermilion, and two shapes: told apart without colour.
const SERIES: [(&str, &str); 2] = [("#0072B2", "classify"), ("#D55E00", "the door's box")];

/// A square frame with the names of its axes.
fn axes(x: &str, y: &str) -> String {
    let (x0, y0, side) = PLOT;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 420 400\" font-family=\"sans-serif\" \
         font-size=\"13\"><rect width=\"420\" height=\"400\" fill=\"#fff\"/>\
         <rect x=\"{x0}\" y=\"{y0}\" width=\"{side}\" height=\"{side}\" fill=\"none\" stroke=\"#999\"/>\
         <text x=\"220\" y=\"384\" text-anchor=\"middle\">{x}</text>\
         <text transform=\"translate(18 180) rotate(-90)\" text-anchor=\"middle\">{y}</text>"
    )
}

/// A mark of a series: circles and squares.
fn mark(series: usize, x: f64, y: f64) -> String {
    let colour = SERIES[series].0;
    if series == 0 {
        format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>")
    } else {
        let (left, top) = (x - 4.0, y - 4.0);
        format!("<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"8\" height=\"8\" fill=\"{colour}\"/>")
    }
}

/// The names of the series, from (`x`, `y`) down.
fn legend(x: f64, y: f64) -> String {
    let mut svg = String::new();
    for (series, (_, name)) in SERIES.iter().enumerate() {
        let y = (series as f64).mul_add(20.0, y);
        svg += &mark(series, x, y);
        let _ = write!(svg, "<text x=\"{}\" y=\"{}\">{name}</text>", x + 12.0, y + 4.0);
    }
    svg
}

/// Confidence against accuracy of both classifications; on the diagonal is perfect.
fn reliability_plot(picture: &Value, crop: &Value) -> String {
    let (x0, y0, side) = PLOT;
    let mut svg = axes("confidence", "accuracy");
    let _ = write!(
        svg,
        "<path d=\"M{x0} {} L{} {y0}\" stroke=\"#999\" stroke-dasharray=\"4\"/>",
        y0 + side,
        x0 + side
    );
    for (series, figures) in [picture, crop].into_iter().enumerate() {
        for bin in figures["reliability"].as_array().into_iter().flatten() {
            if bin["count"].as_u64().unwrap_or(0) > 0 {
                let at = |key: &str| bin[key].as_f64().unwrap_or(0.0);
                let x = at("confidence").mul_add(side, x0);
                svg += &mark(series, x, (1.0 - at("accuracy")).mul_add(side, y0));
            }
        }
    }
    svg + &legend(x0 + 20.0, y0 + 20.0) + "</svg>\n"
}

/// Dogs kept out against others let in, both on logarithmic axes from 0.1 % to 100 %.
fn det_plot(picture: &Value, crop: &Value) -> String {
    let (x0, y0, side) = PLOT;
    let place = |share: f64| (share.max(0.001).log10() / 3.0 + 1.0) * side;
    let mut svg = axes("others let in", "dogs kept out");
    for (share, name) in [(0.001, "0.1 %"), (0.01, "1 %"), (0.1, "10 %"), (1.0, "100 %")] {
        let (x, y) = (x0 + place(share), y0 + side - place(share));
        let _ = write!(
            svg,
            "<path d=\"M{x:.1} {y0} V{} M{x0} {y:.1} H{}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" font-size=\"11\">{name}</text>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"11\">{name}</text>",
            y0 + side,
            x0 + side,
            y0 + side + 16.0,
            x0 - 4.0,
            y + 4.0
        );
    }
    for (series, figures) in [picture, crop].into_iter().enumerate() {
        let mut path = String::new();
        for point in figures["det"].as_array().into_iter().flatten() {
            let at = |i: usize| place(point[i].as_f64().unwrap_or(1.0));
            let (x, y) = (x0 + at(0), y0 + side - at(1));
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { " L" });
        }
        let (colour, dash) = (SERIES[series].0, ["", " stroke-dasharray=\"6 3\""][series]);
        let _ = write!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>"
        );
    }
    svg + &legend(x0 + side - 110.0, y0 + 20.0) + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use pawlatch_core::units::Score;

    use super::*;

    fn picture(truths: &[[f32; 4]], found: &[([f32; 4], f32)]) -> Detected {
        Detected {
            subset: String::new(),
            exhaustive: vec![Class::Dog],
            truths: truths
                .iter()
                .map(|r| Truth { class: Class::Dog, rect: (*r).try_into().unwrap() })
                .collect(),
            found: found
                .iter()
                .map(|(rect, score)| Detection {
                    rect: (*rect).try_into().unwrap(),
                    class: Class::Dog,
                    label: "dog".to_owned(),
                    score: Score::clamped(*score),
                })
                .collect(),
            person: false,
        }
    }

    fn labelled(truth: Class, p: f32) -> Labelled {
        let picture = ClassProbs::from_masses([p, 1.0 - p, 0.0, 0.0, 0.0]).unwrap();
        Labelled { subset: "yard".to_owned(), truth, picture, crop: None, person: false }
    }

    #[test]
    fn the_trade_off_counts_who_is_kept_out_at_each_stranger_let_in() {
        let pictures = [
            labelled(Class::Dog, 0.9),
            labelled(Class::Dog, 0.4),
            labelled(Class::Cat, 0.6),
            labelled(Class::Other, 0.1),
        ];
        assert_eq!(det(&pictures, |l| l.picture), [[0.0, 0.5], [0.5, 0.0]]);
        let figures = classification(&pictures, |l| l.picture);
        let yard = &figures["subsets"]["yard"];
        assert_eq!((yard["frr"]["hits"].as_u64(), yard["frr"]["of"].as_u64()), (Some(1), Some(2)));
        assert_eq!((yard["far"]["hits"].as_u64(), yard["far"]["of"].as_u64()), (Some(0), Some(2)));
    }

    #[test]
    fn boxes_of_pets_are_named_and_placed() {
        let a = [0.1, 0.1, 0.5, 0.5];
        // Nearly three quarters of it, and a surer box elsewhere.
        let near = [0.1, 0.1, 0.5, 0.39];
        let mut called_cat = picture(&[a], &[(near, 0.8)]);
        called_cat.found[0].class = Class::Cat;
        let elsewhere = picture(&[a], &[([0.6, 0.6, 0.9, 0.9], 0.9), (a, 0.5)]);
        let faint = picture(&[a], &[(a, 0.1)]);
        let two = picture(&[a, [0.6, 0.6, 0.9, 0.9]], &[(a, 0.9)]);
        let rows = pets(&[called_cat, elsewhere, faint, two]);
        let counts = |row: usize| (rows[row][1]["hits"].as_u64(), rows[row][1]["of"].as_u64());
        assert_eq!(counts(0), (Some(0), Some(0)));
        assert_eq!(counts(1), (Some(1), Some(3)));
        assert_eq!(counts(2), (Some(2), Some(3)));
        assert_eq!(counts(3), (Some(2), Some(3)));
    }

    #[test]
    fn average_precision_of_perfect_missed_and_half_right() {
        let a = [0.1, 0.1, 0.5, 0.5];
        let b = [0.6, 0.6, 0.9, 0.9];
        let perfect = picture(&[a, b], &[(a, 0.9), (b, 0.8)]);
        assert_eq!(ap50(&[perfect], Class::Dog), Some(1.0));
        assert_eq!(ap50(&[picture(&[a], &[])], Class::Dog), Some(0.0));
        // Best score on a wrong place, then a right one: precision 1/2 at full recall.
        let wrong_first = picture(&[a], &[(b, 0.9), (a, 0.8)]);
        assert_eq!(ap50(&[wrong_first], Class::Dog), Some(0.5));
        // The same box twice counts once.
        let twice = picture(&[a, b], &[(a, 0.9), (a, 0.8)]);
        assert_eq!(ap50(&[twice], Class::Dog), Some(0.5));
        assert_eq!(ap50(&[], Class::Dog), None);
    }
}
