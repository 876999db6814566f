//! Measures how well a model's embedding tells one dog from others, and chooses the threshold.
//!
//! `cargo run --release -p pawlatch-tests --bin identity -- MODELS_DIR DATA_DIR`
//!
//! There is no set of pictures of many dogs with several sessions each at hand. What is measured
//! instead, and what it shows:
//!
//! - *Strangers*: every dog picture of `classify/` is another animal. Held against an enrolled
//!   individual they give the false-match rate, in numbers that mean something.
//! - *Individuals*: each clip of one dog is split in time: the first 40 % is enrolled, the last
//!   40 % is asked about. Same day, same place, same camera: this says that the pictures of one
//!   visit hang together, not that the dog is known again in winter or at night. The same
//!   pictures darkened and without colour say a little more.
//!
//! Writes `identity.json` beside the model and prints the figures.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use pawlatch::models::{Entry, ModelsDir};
use pawlatch_core::frame::Frame;
use pawlatch_core::identity::{Embedding, Threshold, likeness};
use pawlatch_core::metrics::Rate;
use pawlatch_core::sight::Class;
use pawlatch_core::units::{Rect, Uptime};
use pawlatch_core::vision::{CROP_PADDING, Framing, Vision};

/// The wanted false-match rate.
const WANTED: f64 = 0.01;
/// Clips of one dog each.
const CLIPS: [&str; 2] = ["dog_field", "puppy_lawn"];

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let (Some(models), Some(data)) = (arguments.next(), arguments.next()) else {
        return Err("usage: identity MODELS_DIR DATA_DIR".into());
    };
    let in_use = ModelsDir::open(&models, "the command line")?.in_use()?;
    let entry = in_use.required_classifier()?.clone();
    let mut vision = in_use.vision()?;
    let mut strangers = Vec::new();
    for split in ["val", "train"] {
        for path in pictures(&data.join("classify").join(split).join("dog"))? {
            strangers.extend(embed(&mut vision, &decode(&path)?)?);
        }
    }
    let mut galleries = Vec::new();
    let mut genuine = Vec::new();
    let mut harder = Vec::new();
    for clip in CLIPS {
        let frames = pictures(&data.join("clips").join(clip))?;
        let early = &frames[..frames.len() * 2 / 5];
        let late = &frames[frames.len() * 3 / 5..];
        let mut enrolled = Vec::new();
        for path in early {
            enrolled.extend(embed(&mut vision, &decode(path)?)?);
        }
        for path in late {
            let frame = decode(path)?;
            genuine.extend(embed(&mut vision, &frame)?.map(|e| likeness(&e, &enrolled)));
            let night = embed(&mut vision, &dark_and_grey(&frame)?)?;
            harder.extend(night.map(|e| likeness(&e, &enrolled)));
        }
        println!("{clip}: {} of {} pictures enrolled", enrolled.len(), early.len());
        galleries.push(enrolled);
    }
    report(&entry, &strangers, &galleries, &genuine, &harder)
}

fn report(
    entry: &Entry,
    strangers: &[Embedding],
    galleries: &[Vec<Embedding>],
    genuine: &[f32],
    harder: &[f32],
) -> Outcome<()> {
    // Every other stranger chooses, the rest count.
    let against = |first: usize| -> Vec<f32> {
        let some = strangers.iter().skip(first).step_by(2);
        some.flat_map(|s| galleries.iter().map(|g| likeness(s, g))).collect()
    };
    let (chosen_on, counted_on) = (against(0), against(1));
    let sha256 = &entry.manifest.sha256;
    let threshold = Threshold::choose(sha256, &chosen_on, &counted_on, WANTED);
    let missed = |likenesses: &[f32]| {
        let missed = likenesses.iter().filter(|v| **v < threshold.likeness).count();
        Rate::new(missed, likenesses.len())
    };
    let false_matches = Rate::new(threshold.false_matches, threshold.comparisons);
    println!("strangers: {}; threshold {:.4}", strangers.len(), threshold.likeness);
    println!("false matches of the other strangers: {false_matches}");
    println!("the dog itself not known, same visit: {}", missed(genuine));
    println!("the dog itself not known, dark and grey: {}", missed(harder));
    let path = entry.dir.join("identity.json");
    fs::write(&path, serde_json::to_string_pretty(&threshold)? + "\n")?;
    println!("written: {}", path.display());
    Ok(())
}

fn pictures(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .map_err(|error| format!("cannot read {}: {error}", dir.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    found.retain(|path| path.extension().is_some_and(|e| e == "jpg"));
    found.sort();
    Ok(found)
}

fn decode(path: &Path) -> Outcome<Frame> {
    Ok(Frame::decode(fs::read(path)?, Uptime::ZERO)?)
}

/// The embedding of the likeliest dog in the picture, cut out as on the door; `None` if none is
/// seen.
fn embed(vision: &mut Vision, frame: &Frame) -> Outcome<Option<Embedding>> {
    let seen = vision.look(frame, Rect::WHOLE, &mut |_| {})?;
    let dog = seen
        .iter()
        .filter_map(|s| Some((s.classification.as_ref()?.probs.of(Class::Dog), s.detection.rect)))
        .max_by(|a, b| a.0.get().total_cmp(&b.0.get()));
    let Some((score, rect)) = dog else { return Ok(None) };
    if score.get() < 0.5 {
        return Ok(None);
    }
    let classifier = vision.classifier().ok_or("there is no classifier")?;
    let answer = classifier.classify(frame, rect.padded(CROP_PADDING), Framing::Crop)?;
    let features = answer.embedding.ok_or("the classifier has no embedding")?;
    Ok(Embedding::of(&features))
}

/// As an infra-red camera might see it: no colour, a third of the light.
fn dark_and_grey(frame: &Frame) -> Outcome<Frame> {
    let pixels: Vec<u8> = frame
        .pixels()
        .chunks_exact(3)
        .flat_map(|p| [((u16::from(p[0]) + u16::from(p[1]) + u16::from(p[2])) / 9) as u8; 3])
        .collect();
    Ok(Frame::from_rgb(pixels, frame.width(), frame.height(), Uptime::ZERO)?)
}
