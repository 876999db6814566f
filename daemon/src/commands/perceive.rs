//! `classify`, `detect` and `localize`: what the networks see in single pictures.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

use pawlatch::overlay::Overlay;
use pawlatch_core::frame::Frame;
use pawlatch_core::sight::{Class, ClassProbs, Detection};
use pawlatch_core::units::{Rect, Score};
use pawlatch_core::vision::manifest::Labels;
use pawlatch_core::vision::{ClassifierOutput, HeatMap, Localiser, Manifest};

use super::{Common, Outcome, Usage, pictures, say, say_json};

/// What `classify`, `detect` and `localize` have in common.
#[derive(Args)]
pub struct PictureArgs {
    /// Pictures (JPEG, PNG, GIF, BMP, WebP), or directories of them.
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
    /// Draw what was seen into this picture; a directory, if there are several pictures.
    #[arg(short, long, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
}

/// Say what pictures show
///
/// The classifier in use looks at the middle of each picture, framed as its manifest says, and at
/// the animal that the detector, if there is one, is surest of; at both also in the mirror. All
/// views together give a probability for dog, cat, person, other (any other animal or thing) and
/// nothing; they sum to 1. With --json, one line a picture:
///
/// {"file","classes":{"dog","cat","person","other","nothing"},
///  "topk":[{"label","class","score"}, …],"model"}
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct ClassifyArgs {
    #[command(flatten)]
    pictures: PictureArgs,
    /// How many of the classifier's own labels to give.
    #[arg(long, default_value_t = 5, value_name = "K")]
    topk: usize,
}

/// Find the animals and persons in pictures
///
/// What is reported depends on the models in use:
///
/// detector and classifier  The detector says where. Each animal's box, somewhat enlarged, also
///                          goes to the classifier, and both together say what: a class scores
///                          the geometric mean of the detector's score and the classifier's
///                          probability, and `class` is the one of dog, cat and other that
///                          scores most. `label` is the classifier's own most probable label.
///                          A person's box stays a person's, with a score of both.
/// detector only            Its own classes, labels and scores.
/// classifier only          Boxes around the heat of each class in the classifier's heat map,
///                          then as with a detector. Such a classifier finds no persons.
///
/// Boxes are in pixels of the picture, upright. With --json, one line a picture, best score
/// first:
///
/// {"file","detections":[{"class","label","score","box":[x0,y0,x1,y1]}, …],"model"}
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct DetectArgs {
    #[command(flatten)]
    pictures: PictureArgs,
    /// Lowest score that is reported: 0.25, with --json 0.05 of the detector.
    #[arg(long, value_name = "SCORE")]
    min_score: Option<f32>,
}

/// Show where the classifier sees a class, as a heat map and boxes
///
/// The classifier is made fully convolutional and looks at the whole picture, cell by cell. With
/// --json, one line a picture; `heat` has the probability of the class in each cell, row by row:
///
/// {"file","class","boxes":[{"score","box":[x0,y0,x1,y1]}, …],
///  "heat":{"width","height","values":[…]},"model"}
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct LocalizeArgs {
    #[command(flatten)]
    pictures: PictureArgs,
    /// The class to show.
    #[arg(long, value_enum, default_value_t = Shown::Dog)]
    class: Shown,
}

/// A class that can be shown.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shown {
    Dog,
    Cat,
    Person,
    Other,
    Nothing,
}

impl From<Shown> for Class {
    fn from(shown: Shown) -> Self {
        match shown {
            Shown::Dog => Self::Dog,
            Shown::Cat => Self::Cat,
            Shown::Person => Self::Person,
            Shown::Other => Self::Other,
            Shown::Nothing => Self::Nothing,
        }
    }
}

#[derive(Serialize)]
struct ClassifyLine<'a> {
    file: &'a str,
    classes: Classes,
    topk: Vec<Label<'a>>,
    model: &'a str,
}

#[derive(Serialize)]
struct Classes {
    dog: Score,
    cat: Score,
    person: Score,
    other: Score,
    nothing: Score,
}

impl From<&ClassProbs> for Classes {
    fn from(probs: &ClassProbs) -> Self {
        Self {
            dog: probs.of(Class::Dog),
            cat: probs.of(Class::Cat),
            person: probs.of(Class::Person),
            other: probs.of(Class::Other),
            nothing: probs.of(Class::Nothing),
        }
    }
}

#[derive(Serialize)]
struct Label<'a> {
    label: &'a str,
    class: Class,
    score: Score,
}

#[derive(Serialize)]
struct DetectLine<'a> {
    file: &'a str,
    detections: Vec<Found>,
    model: &'a str,
}

/// One animal or person, as `detect` reports it.
#[derive(Serialize)]
struct Found {
    class: Class,
    label: String,
    score: Score,
    #[serde(rename = "box")]
    pixels: [f32; 4],
    #[serde(skip)]
    rect: Rect,
}

#[derive(Serialize)]
struct LocalizeLine<'a> {
    file: &'a str,
    class: Class,
    boxes: Vec<HeatBox>,
    heat: Heat<'a>,
    model: &'a str,
}

#[derive(Serialize)]
struct HeatBox {
    score: Score,
    #[serde(rename = "box")]
    pixels: [f32; 4],
}

#[derive(Serialize)]
struct Heat<'a> {
    width: usize,
    height: usize,
    values: &'a [f32],
}

/// `pawlatch classify`.
pub fn classify(args: &ClassifyArgs, common: &Common) -> Result<Outcome> {
    let in_use = common.in_use()?;
    let entry = in_use.required_classifier()?;
    let classes = entry.manifest.labels.class_of_each()?;
    let Manifest { name, labels, .. } = &entry.manifest;
    let mut vision = in_use.vision()?;
    let target = Target::new(&args.pictures)?;
    pictures::for_each(&args.pictures.paths, |path, frame| {
        let answer = vision.describe(frame)?.context("the classifier in use was not loaded")?;
        let file = path.to_string_lossy();
        if args.pictures.json {
            let topk = most_probable(&answer, args.topk, labels, &classes);
            let classes = Classes::from(&answer.probs);
            say_json(&ClassifyLine { file: &file, classes, topk, model: name })?;
        } else {
            say(&classified_in_words(&file, &answer, args.topk))?;
        }
        target.draw(path, frame, |overlay| {
            for (row, class) in Class::ALL.into_iter().enumerate() {
                let share = 100.0 * answer.probs.of(class).get();
                let text = format!("{:<7} {share:5.1} %", class.name());
                overlay.line(row, &text, class);
            }
        })
    })
}

/// The `k` most probable labels. By number, since two labels may have the same name.
fn most_probable<'a>(
    answer: &ClassifierOutput,
    k: usize,
    labels: &'a Labels,
    classes: &[Class],
) -> Vec<Label<'a>> {
    let probs = answer.label_probs();
    let mut order: Vec<usize> = (0..probs.len()).collect();
    order.sort_by(|a, b| probs[*b].total_cmp(&probs[*a]));
    let label = |i: usize| Label {
        label: &labels.names[i],
        class: classes[i],
        score: Score::clamped(probs[i]),
    };
    order.into_iter().take(k).map(label).collect()
}

fn classified_in_words(file: &str, answer: &ClassifierOutput, k: usize) -> String {
    let best = answer.probs.best();
    let mut text = format!("{file}\n  {best}");
    if answer.rejected {
        text.push_str(", but unlike anything in training");
    }
    for class in Class::ALL {
        text.push_str(&format!("  {class} {:.1} %", 100.0 * answer.probs.of(class).get()));
    }
    for (label, score) in answer.topk(k) {
        text.push_str(&format!("\n  {:5.1} %  {label}", 100.0 * score.get()));
    }
    text
}

/// Lowest score of what people are shown.
const SHOWN: f32 = 0.25;
/// Lowest score of the detector for programs, which rank for themselves.
const RANKED: f32 = 0.05;

/// `pawlatch detect`.
pub fn detect(args: &DetectArgs, common: &Common) -> Result<Outcome> {
    let in_use = common.in_use()?;
    let name = in_use.to_string();
    let mut vision = in_use.vision()?;
    let target = Target::new(&args.pictures)?;
    let json = args.pictures.json;
    let shown = Score::clamped(args.min_score.unwrap_or(SHOWN));
    let floor = if json { Score::clamped(args.min_score.unwrap_or(RANKED)) } else { shown };
    pictures::for_each(&args.pictures.paths, |path, frame| {
        let seen = vision.inventory(frame, floor)?;
        let detections: Vec<Found> = seen
            .into_iter()
            .filter(|d| json || d.score >= shown)
            .map(|Detection { rect, class, label, score }| {
                let pixels = rect.to_pixels(frame.width(), frame.height());
                Found { class, label, score, pixels, rect }
            })
            .collect();
        target.draw(path, frame, |overlay| {
            for d in detections.iter().filter(|d| d.score >= shown).rev() {
                let label = format!("{} {:.0} %", d.class, 100.0 * d.score.get());
                overlay.boxed(d.rect, d.class, &label);
            }
        })?;
        let file = path.to_string_lossy();
        if args.pictures.json {
            return say_json(&DetectLine { file: &file, detections, model: &name });
        }
        let mut text = file.into_owned();
        if detections.is_empty() {
            text.push_str("\n  nothing found");
        }
        for d in &detections {
            let [x0, y0, x1, y1] = d.pixels;
            text.push_str(&format!(
                "\n  {:5.1} %  {:<7} ({})  at {x0:.0},{y0:.0} to {x1:.0},{y1:.0}",
                100.0 * d.score.get(),
                d.class.name(),
                d.label,
            ));
        }
        say(&text)
    })
}

/// `pawlatch localize`.
pub fn localize(args: &LocalizeArgs, common: &Common) -> Result<Outcome> {
    let in_use = common.in_use()?;
    let entry = in_use.required_classifier()?;
    let name = entry.manifest.name.clone();
    let mut localiser = Localiser::new(&entry.load()?)?;
    let class = Class::from(args.class);
    let target = Target::new(&args.pictures)?;
    pictures::for_each(&args.pictures.paths, |path, frame| {
        let answer = localiser.localise(frame, Rect::WHOLE)?;
        let of_class: Vec<&Detection> =
            answer.detections.iter().filter(|d| d.class == class).collect();
        let file = path.to_string_lossy();
        if args.pictures.json {
            let HeatMap { width, height, .. } = answer.heat;
            let heat = Heat { width, height, values: answer.heat.of(class) };
            let boxes = of_class
                .iter()
                .map(|d| HeatBox {
                    score: d.score,
                    pixels: d.rect.to_pixels(frame.width(), frame.height()),
                })
                .collect();
            say_json(&LocalizeLine { file: &file, class, boxes, heat, model: &name })?;
        } else {
            say(&localised_in_words(&file, class, &of_class, frame))?;
        }
        target.draw(path, frame, |overlay| {
            overlay.heat(&answer.heat, class);
            for d in &of_class {
                overlay.boxed(d.rect, class, &format!("{class} {:.0} %", 100.0 * d.score.get()));
            }
        })
    })
}

fn localised_in_words(file: &str, class: Class, boxes: &[&Detection], frame: &Frame) -> String {
    if boxes.is_empty() {
        return format!("{file}\n  no {class}");
    }
    boxes.iter().fold(file.to_owned(), |text, d| {
        let [x0, y0, x1, y1] = d.rect.to_pixels(frame.width(), frame.height());
        let score = 100.0 * d.score.get();
        format!("{text}\n  {score:5.1} %  {class} at {x0:.0},{y0:.0} to {x1:.0},{y1:.0}")
    })
}

/// Where drawings go.
enum Target {
    Nowhere,
    File(PathBuf),
    Dir(PathBuf),
}

impl Target {
    /// # Errors
    /// If one file is to hold several drawings, or a directory cannot be made.
    fn new(args: &PictureArgs) -> Result<Self> {
        let Some(output) = &args.output else { return Ok(Self::Nowhere) };
        let single = matches!(&args.paths[..], [only] if !only.is_dir());
        if single && !output.is_dir() {
            return match output.extension().and_then(|e| e.to_str()) {
                Some("png" | "jpg" | "jpeg") => Ok(Self::File(output.clone())),
                _ => Err(Usage(format!(
                    "-o {} should end in .png or .jpg, or be a directory",
                    output.display()
                ))
                .into()),
            };
        }
        if output.is_file() {
            return Err(Usage(format!(
                "-o {} is a file, but several pictures are given; name a directory",
                output.display()
            ))
            .into());
        }
        std::fs::create_dir_all(output)
            .with_context(|| format!("cannot make the directory {}", output.display()))?;
        Ok(Self::Dir(output.clone()))
    }

    /// Draws onto a copy of `frame` and saves it.
    fn draw(&self, path: &Path, frame: &Frame, draw: impl FnOnce(&mut Overlay)) -> Result<()> {
        let to = match self {
            Self::Nowhere => return Ok(()),
            Self::File(file) => file.clone(),
            Self::Dir(dir) => {
                // The whole path goes into the name, so that a/1.jpg and b/1.jpg both stay.
                let name: Vec<String> = path
                    .with_extension("")
                    .components()
                    .filter_map(|c| match c {
                        std::path::Component::Normal(part) => {
                            Some(part.to_string_lossy().into_owned())
                        }
                        _ => None,
                    })
                    .collect();
                dir.join(format!("{}.png", name.join("_")))
            }
        };
        let mut overlay = Overlay::new(frame);
        draw(&mut overlay);
        overlay
            .into_picture()
            .save(&to)
            .with_context(|| format!("cannot write the picture {}", to.display()))
    }
}
