//! Measures the door on real pictures: classification, detection, clips. Writes
//! `docs/evaluation.md`, `.json` and plots, and `tests/perception.json` for the simulation.
//! Run it as `cargo xtask evaluate`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use pawlatch::models::{InUse, ModelsDir};
use pawlatch_core::frame::Frame;
use pawlatch_core::sight::{Class, Sighting};
use pawlatch_core::track::{TrackSettings, speaks_for_a_person};
use pawlatch_core::units::{Rect, Score, Uptime};
use pawlatch_core::vision::{Precision, Vision};
use pawlatch_tests::perception::{Answer, Measured};
use pawlatch_tests::report::{self, Clip, Detected, Labelled, Pictures, Truth};
use serde::Deserialize;

/// Lowest score of the detector that counts in average precision.
const REPORTED: f32 = 0.02;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("evaluate: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let data = root.join("../shared/data");
    if !data.is_dir() {
        return Err(format!("the pictures are not there: {}", data.display()).into());
    }
    let models_dir = env::args_os().nth(1).map_or_else(|| root.join("models"), PathBuf::from);
    let precision = env::args().nth(2).unwrap_or_else(|| "float".to_owned());
    let mut in_use = ModelsDir::find(Some(&models_dir), None)?.in_use()?;
    in_use.precision =
        precision.parse().map_err(|names| format!("{precision} is none of {names}"))?;
    let mut vision = in_use.vision()?;
    let models: Vec<String> = in_use
        .entries()
        .map(|e| format!("{} {} ({})", e.manifest.name, e.manifest.version, e.manifest.sha256))
        .collect();

    let (labelled, answers) = classify(&data, &mut vision)?;
    let detected = detect(&data, &mut vision, &kept_out(&models_dir, &in_use)?)?;
    let clips = clips(&data, &models_dir, &precision)?;
    let floats = in_use.precision == Precision::Float;
    let (mut docs, mut command) = (root.join("docs"), "cargo xtask evaluate".to_owned());
    if !floats {
        docs.push(&precision);
        command = format!("{command} --precision {precision}");
    }
    let pictures =
        Pictures { command: command.clone(), models: models.clone(), labelled, detected, clips };
    report::write(&docs, &pictures)?;
    // The simulation draws from the answers of what the door ships with.
    if floats {
        let measured = Measured { command, models, answers };
        fs::write(root.join("tests/perception.json"), lines(&measured)?)?;
    }
    Ok(())
}

/// JSON with one answer a line, so that a change can be read.
fn lines(measured: &Measured) -> Result<String, Failure> {
    let text = serde_json::to_string(measured)?;
    Ok(text.replace("{\"truth\"", "\n{\"truth\"") + "\n")
}

fn open(path: &Path) -> Result<Frame, Failure> {
    let bytes = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(Frame::decode(bytes, Uptime::ZERO).map_err(|e| format!("{}: {e}", path.display()))?)
}

/// Path below the data directory and subset of each picture of a split.
fn manifest(data: &Path, split: &str) -> Result<Vec<(String, String, String)>, Failure> {
    let text = fs::read_to_string(data.join("MANIFEST.csv"))?;
    let rows = text.lines().skip(1).filter_map(|line| {
        let mut cells = line.split(',');
        let (file, label) = (cells.next()?, cells.next()?);
        let (which, subset) = (cells.next()?, cells.next()?);
        (which == split).then(|| (file.to_owned(), label.to_owned(), subset.to_owned()))
    });
    Ok(rows.collect())
}

fn classify(data: &Path, vision: &mut Vision) -> Result<(Vec<Labelled>, Vec<Answer>), Failure> {
    let (mut labelled, mut answers) = (Vec::new(), Vec::new());
    let rows: Vec<_> = manifest(data, "val")?;
    for (done, (file, label, subset)) in rows.iter().enumerate() {
        if done % 50 == 0 {
            eprintln!("classify: {done} of {}", rows.len());
        }
        let frame = open(&data.join(file))?;
        let picture = vision.describe(&frame)?.ok_or("no classifier is in use")?.probs;
        let truth = match label.as_str() {
            "dog" => Class::Dog,
            "cat" => Class::Cat,
            _ if subset.contains("person") => Class::Person,
            _ if subset.contains("empty") || subset.contains("no_animal") => Class::Nothing,
            _ => Class::Other,
        };
        let seen = vision.look(&frame, Rect::WHOLE, &mut |_| ())?;
        // A person matters beside a dog: of a person's picture the person is what is seen.
        let person = seen.iter().find(|s| s.detection.class == Class::Person);
        let best = person.filter(|_| truth == Class::Person).or(seen.first());
        let crop = best.and_then(|s| s.classification.as_ref()).map(|c| c.probs);
        answers.push(Answer {
            truth,
            probs: crop.unwrap_or(picture),
            found: best.map(|s| (s.detection.class, s.detection.score)),
            dog: best.map_or(Score::ZERO, |s| s.dog),
        });
        // Of a source with a subset per species, one row.
        let subset = subset.split(':').next().unwrap_or_default().to_owned();
        labelled.push(Labelled { subset, truth, picture, crop, person: person_in(&seen) });
    }
    Ok((labelled, answers))
}

fn person_in(seen: &[Sighting]) -> bool {
    seen.iter().any(|sighting| speaks_for_a_person(sighting, &TrackSettings::default()))
}

#[derive(Deserialize)]
struct Coco {
    images: Vec<CocoImage>,
    annotations: Vec<CocoBox>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: u64,
    file_name: String,
    width: f32,
    height: f32,
    subset: String,
    exhaustive_for: Vec<String>,
}

#[derive(Deserialize)]
struct CocoBox {
    image_id: u64,
    category_id: usize,
    bbox: [f32; 4],
}

fn coco_class(name: &str) -> Class {
    match name {
        "cat" => Class::Cat,
        "dog" => Class::Dog,
        "person" => Class::Person,
        _ => Class::Other,
    }
}

/// Names of the pictures that the models in use were not trained on, as the file
/// `validation.txt` beside a manifest lists them; `None` if no model has such a file.
fn kept_out(models_dir: &Path, in_use: &InUse) -> Result<Option<BTreeSet<String>>, Failure> {
    let mut kept: Option<BTreeSet<String>> = None;
    for entry in in_use.entries() {
        let path = models_dir.join(&entry.manifest.name).join("validation.txt");
        if !path.is_file() {
            continue;
        }
        let names: BTreeSet<String> = fs::read_to_string(&path)?.lines().map(Into::into).collect();
        kept = Some(match kept {
            Some(others) => &others & &names,
            None => names,
        });
    }
    Ok(kept)
}

fn detect(
    data: &Path,
    vision: &mut Vision,
    kept_out: &Option<BTreeSet<String>>,
) -> Result<Vec<Detected>, Failure> {
    let text = fs::read_to_string(data.join("detect/annotations.json"))?;
    let coco: Coco = serde_json::from_str(&text)?;
    let categories = [Class::Cat, Class::Dog, Class::Person, Class::Other];
    let mut all = Vec::new();
    let judged =
        |image: &&CocoImage| kept_out.as_ref().is_none_or(|names| names.contains(&image.file_name));
    for (done, image) in coco.images.iter().filter(judged).enumerate() {
        if done % 50 == 0 {
            eprintln!("detect: {done} of {}", coco.images.len());
        }
        let frame = open(&data.join("detect/images").join(&image.file_name))?;
        let truths = coco.annotations.iter().filter(|a| a.image_id == image.id).filter_map(|a| {
            let [x, y, w, h] = a.bbox;
            let (iw, ih) = (image.width, image.height);
            let rect = Rect::clipped(x / iw, y / ih, (x + w) / iw, (y + h) / ih)?;
            Some(Truth { class: *categories.get(a.category_id.checked_sub(1)?)?, rect })
        });
        all.push(Detected {
            subset: image.subset.clone(),
            exhaustive: image.exhaustive_for.iter().map(|n| coco_class(n)).collect(),
            truths: truths.collect(),
            found: vision.inventory(&frame, Score::clamped(REPORTED))?,
            person: person_in(&vision.look(&frame, Rect::WHOLE, &mut |_| ())?),
        });
    }
    Ok(all)
}

fn clips(data: &Path, models_dir: &Path, precision: &str) -> Result<Vec<Clip>, Failure> {
    let program = env::current_exe()?.with_file_name("pawlatch");
    let mut clips = Vec::new();
    let mut dirs: Vec<PathBuf> = fs::read_dir(data.join("clips"))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.is_dir())
        .collect();
    dirs.sort();
    for dir in dirs {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        eprintln!("replay: {name}");
        let output = Command::new(&program)
            .args(["replay", "--json", "--models-dir"])
            .arg(models_dir)
            .arg(&dir)
            .env("PAWLATCH__MODELS__PRECISION", precision)
            .output()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = text.lines().last().unwrap_or("null");
        let summary: serde_json::Value = serde_json::from_str(last)?;
        if summary["opened"].is_null() {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("replay of {name} failed: {why}").into());
        }
        let truth = fs::read_to_string(data.join("MANIFEST.csv"))?
            .lines()
            .find(|line| line.starts_with(&format!("clips/{name}/")))
            .and_then(|line| line.split(',').nth(1).map(str::to_owned))
            .unwrap_or_default();
        clips.push(Clip { name, truth, summary });
    }
    Ok(clips)
}
