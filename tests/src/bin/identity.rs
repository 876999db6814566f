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
//!   pictures darkened and without colour say a little more, and so do the pictures of the other
//!   clip: two dogs, once each way.
//! - *Every stranger enrolled*: by its one picture in a few views. Held against all others this
//!   says how much the false-match rate depends on which dog is enrolled: one of a common breed
//!   and colour has many doubles.
//!
//! The threshold is the stricter of the two that half of the strangers ask for, against the clips
//! and against each other; the other half counts what it is worth.
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
            let frame = decode(&path)?;
            let Some(plain) = embed(&mut vision, &frame)? else { continue };
            let mut views = vec![plain];
            for view in [mirrored(&frame)?, dark_and_grey(&frame)?, nearer(&frame)?] {
                views.extend(embed(&mut vision, &view)?);
            }
            strangers.push(views);
        }
    }
    let mut galleries: Vec<Vec<Embedding>> = Vec::new();
    let mut late_ones = Vec::new();
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
        let mut asked = Vec::new();
        for path in late {
            let frame = decode(path)?;
            let seen = embed(&mut vision, &frame)?;
            genuine.extend(seen.iter().map(|e| likeness(e, &enrolled)));
            asked.extend(seen);
            let night = embed(&mut vision, &dark_and_grey(&frame)?)?;
            harder.extend(night.map(|e| likeness(&e, &enrolled)));
        }
        println!("{clip}: {} of {} pictures enrolled", enrolled.len(), early.len());
        galleries.push(enrolled);
        late_ones.push(asked);
    }
    let other = |n: usize| late_ones[1 - n].iter().map(move |e| (e, n));
    let crossed: Vec<f32> =
        (0..2).flat_map(other).map(|(e, n)| likeness(e, &galleries[n])).collect();
    let measured = Measured { strangers, galleries, genuine, harder, crossed };
    report(&entry, &measured)
}

struct Measured {
    /// One picture of each stranger: as it is, then in other views.
    strangers: Vec<Vec<Embedding>>,
    galleries: Vec<Vec<Embedding>>,
    genuine: Vec<f32>,
    harder: Vec<f32>,
    /// Each clip's late pictures against the other clip's dog.
    crossed: Vec<f32>,
}

fn report(entry: &Entry, measured: &Measured) -> Outcome<()> {
    let Measured { strangers, galleries, genuine, harder, crossed } = measured;
    // Every other stranger chooses, the rest count.
    let half = |first: usize| strangers.iter().skip(first).step_by(2).collect::<Vec<_>>();
    let (choosing, counting) = (half(0), half(1));
    let of_clips = |some: &[&Vec<Embedding>]| -> Vec<f32> {
        some.iter().flat_map(|s| galleries.iter().map(|g| likeness(&s[0], g))).collect()
    };
    // For each enrolled stranger, what all others of its half are like it.
    let of_each = |some: &[&Vec<Embedding>]| -> Vec<Vec<f32>> {
        let others = |n: usize| some.iter().enumerate().filter(move |(m, _)| *m != n);
        let of_one = |n: usize| others(n).map(|(_, s)| likeness(&s[0], some[n])).collect();
        (0..some.len()).map(of_one).collect()
    };
    let sha256 = &entry.manifest.sha256;
    let by_clips = Threshold::choose(sha256, &of_clips(&choosing), &of_clips(&counting), WANTED);
    let counted = of_each(&counting);
    let by_each =
        Threshold::choose(sha256, &of_each(&choosing).concat(), &counted.concat(), WANTED);
    println!("strangers: {}", strangers.len());
    for (what, threshold) in [("the clips", &by_clips), ("each other", &by_each)] {
        let rate = Rate::new(threshold.false_matches, threshold.comparisons);
        println!("against {what}: threshold {:.4}, false matches {rate}", threshold.likeness);
    }
    let threshold = if by_each.likeness > by_clips.likeness { by_each } else { by_clips };
    let needed = threshold.likeness;
    let reached = |likenesses: &[f32]| {
        let reached = likenesses.iter().filter(|v| **v >= needed).count();
        Rate::new(reached, likenesses.len())
    };
    println!("threshold {needed:.4}");
    println!("strangers taken for the dog of a clip: {}", reached(&of_clips(&counting)));
    let share = |rate: Rate| rate.hits as f64 / rate.of.max(1) as f64;
    let mut each: Vec<f64> = counted.iter().map(|one| share(reached(one))).collect();
    each.sort_by(f64::total_cmp);
    let at = |share: f64| 100.0 * each[((each.len() - 1) as f64 * share) as usize];
    println!(
        "strangers taken for an enrolled stranger, by whom is enrolled: median {:.2} %, 90th \
         percentile {:.2} %, worst {:.2} %",
        at(0.5),
        at(0.9),
        at(1.0)
    );
    println!("the dog itself known, same visit: {}", reached(genuine));
    println!("the dog itself known, dark and grey: {}", reached(harder));
    println!("the dog of one clip taken for that of the other: {}", reached(crossed));
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

fn mirrored(frame: &Frame) -> Outcome<Frame> {
    let row = 3 * frame.width() as usize;
    let rows = frame.pixels().chunks_exact(row);
    let pixels: Vec<u8> = rows.flat_map(|row| row.rchunks_exact(3).flatten().copied()).collect();
    Ok(Frame::from_rgb(pixels, frame.width(), frame.height(), Uptime::ZERO)?)
}

/// The middle nine tenths, each way.
fn nearer(frame: &Frame) -> Outcome<Frame> {
    let (width, height) = (frame.width() as usize, frame.height() as usize);
    let (x, y) = (width / 20, height / 20);
    let (w, h) = (width - 2 * x, height - 2 * y);
    let rows = frame.pixels().chunks_exact(3 * width).skip(y).take(h);
    let pixels: Vec<u8> = rows.flat_map(|row| row[3 * x..3 * (x + w)].iter().copied()).collect();
    Ok(Frame::from_rgb(pixels, w as u32, h as u32, Uptime::ZERO)?)
}
