//! The animals of the house: pictures of each, and who is in the pictures of a visit.
//!
//! Kept are pictures, not embeddings: with another model they are embedded anew, so nothing has
//! to be enrolled again. Whether an answer means anything is measured for each model
//! (`identity.json` beside it); without that measurement nobody is recognised. The answer is
//! shown; the door does not act on it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use pawlatch_core::frame::Frame;
use pawlatch_core::identity::{Answer, Embedding, Threshold, who};
use pawlatch_core::sight::{Class, Sightings};
use pawlatch_core::units::{Rect, Uptime};
use pawlatch_core::vision::{CROP_PADDING, Classifier, Framing};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::models::{Entry, ModelsDir, ModelsError, read_limited};
use crate::report::jpeg;

/// Directory in the state directory.
const DIR: &str = "animals";
/// The list of animals in it.
const FILE: &str = "animals.json";
/// The threshold of a model, beside it.
const THRESHOLD_FILE: &str = "identity.json";
/// Animals, and pictures of one.
pub const MAX_ANIMALS: usize = 12;
/// Pictures of one animal that are kept, and from how many on it is worth asking.
pub const MAX_PICTURES: usize = 30;
/// From how many pictures on an animal can be recognised.
pub const MIN_PICTURES: usize = 10;
/// Longest side of a kept picture, pixels.
const SIDE: u32 = 320;
/// Largest file that is read, bytes.
const MAX_BYTES: u64 = 16 << 20;
/// Mean luma below which a picture is too dark, `0..=255`.
const DARK: f32 = 35.0;
/// Shorter side below which a picture shows too little, pixels.
const SMALL: f32 = 48.0;
/// Cosine from which a picture shows nothing that another does not.
const ALIKE: f32 = 0.985;

/// Why animals cannot be kept or recognised.
#[derive(Debug, Error)]
pub enum AnimalsError {
    /// A file cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The list cannot be understood.
    #[error("{} is damaged; remove the directory it is in to begin anew", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The network cannot be used.
    #[error("the classifier cannot be used")]
    Model(#[from] ModelsError),
    /// The network fails.
    #[error("the classifier fails")]
    Vision(#[from] pawlatch_core::vision::VisionError),
    /// The model has no embedding.
    #[error("the classifier in use gives no embedding; use one whose manifest names it")]
    NoEmbedding,
    /// The name is no name, or there are too many animals.
    #[error("an animal needs a name of 1 to 30 characters; there may be {MAX_ANIMALS}")]
    Name,
}

/// One animal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Animal {
    /// Its name.
    pub name: String,
    /// Names of its pictures in the directory.
    pub pictures: Vec<String>,
}

/// What became of pictures that were to be added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Added {
    /// Taken.
    pub good: usize,
    /// Left out: too dark.
    pub dark: usize,
    /// Left out: too small or far away.
    pub small: usize,
    /// Left out: show nothing new; another side would.
    pub alike: usize,
    /// Left out: there are enough.
    pub enough: usize,
}

/// The network that embeds, loaded when it is first needed.
#[derive(Default)]
pub struct Recogniser {
    loaded: Option<(Entry, Classifier)>,
    known: BTreeMap<String, Embedding>,
}

impl std::fmt::Debug for Recogniser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recogniser")
    }
}

/// The animals kept in the state directory.
#[derive(Debug, Clone)]
pub struct Animals {
    dir: PathBuf,
    /// In the order in which they came.
    pub all: Vec<Animal>,
}

impl Animals {
    /// Those kept in `state_dir`.
    ///
    /// # Errors
    /// If the list cannot be read or understood.
    pub fn open(state_dir: &Path) -> Result<Self, AnimalsError> {
        let dir = state_dir.join(DIR);
        let path = dir.join(FILE);
        let all = match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map_err(|source| AnimalsError::Damaged { path, source })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(AnimalsError::File { action: "read", path, source }),
        };
        Ok(Self { dir, all })
    }

    fn save(&self) -> Result<(), AnimalsError> {
        // Texts and lists of texts: JSON can always write them.
        let text = serde_json::to_string_pretty(&self.all).unwrap_or_default();
        replace(&self.dir.join(FILE), text.as_bytes())
    }

    /// Adds the dogs of these pictures to the animal called `name`, which may be new.
    ///
    /// # Errors
    /// If the name is no name, the network fails, or something cannot be written.
    pub fn add(
        &mut self,
        name: &str,
        pictures: &[(Frame, Rect)],
        recogniser: &mut Recogniser,
        models: &ModelsDir,
    ) -> Result<Added, AnimalsError> {
        let name = name.trim();
        let sound = (1..=30).contains(&name.chars().count()) && !name.contains(char::is_control);
        let known = self.all.iter().position(|animal| animal.name == name);
        if !sound || (known.is_none() && self.all.len() >= MAX_ANIMALS) {
            return Err(AnimalsError::Name);
        }
        let n = known.unwrap_or_else(|| {
            self.all.push(Animal { name: name.to_owned(), pictures: Vec::new() });
            self.all.len() - 1
        });
        recogniser.load(models)?;
        let mut enrolled = self.embeddings(n, recogniser)?;
        let mut added = Added::default();
        for (frame, rect) in pictures {
            let crop = rect.padded(CROP_PADDING);
            let [x0, y0, x1, y1] = crop.to_pixels(frame.width(), frame.height());
            let embedding = recogniser.embed(frame, crop)?;
            if self.all[n].pictures.len() >= MAX_PICTURES {
                added.enough += 1;
            } else if (x1 - x0).min(y1 - y0) < SMALL {
                added.small += 1;
            } else if brightness(frame, [x0, y0, x1, y1]) < DARK {
                added.dark += 1;
            } else if let Some(embedding) = embedding
                && enrolled.iter().all(|known| embedding.cosine(known) < ALIKE)
            {
                let file = format!("{:016x}.jpg", unique(&self.all, frame.captured_at()));
                replace(&self.dir.join(&file), &cut(frame, [x0, y0, x1, y1]))?;
                self.all[n].pictures.push(file);
                enrolled.push(embedding);
                added.good += 1;
            } else {
                added.alike += 1;
            }
        }
        if self.all[n].pictures.is_empty() {
            self.all.remove(n);
        } else {
            self.save()?;
        }
        Ok(added)
    }

    /// Forgets an animal and its pictures; whether there was one.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn remove(&mut self, name: &str) -> Result<bool, AnimalsError> {
        let Some(n) = self.all.iter().position(|animal| animal.name == name) else {
            return Ok(false);
        };
        let gone = self.all.remove(n);
        self.save()?;
        for file in gone.pictures {
            let _ = fs::remove_file(self.dir.join(file));
        }
        Ok(true)
    }

    /// The picture called `file`, if it is one of an animal's.
    pub fn picture(&self, file: &str) -> Option<Vec<u8>> {
        let known = self.all.iter().any(|animal| animal.pictures.iter().any(|p| p == file));
        known.then(|| read_limited(&self.dir.join(file), MAX_BYTES).ok()).flatten()
    }

    fn embeddings(
        &self,
        n: usize,
        recogniser: &mut Recogniser,
    ) -> Result<Vec<Embedding>, AnimalsError> {
        let mut found = Vec::new();
        for file in &self.all[n].pictures {
            if !recogniser.known.contains_key(file) {
                let Ok(bytes) = read_limited(&self.dir.join(file), MAX_BYTES) else { continue };
                let Ok(frame) = Frame::decode(bytes, Uptime::ZERO) else { continue };
                let Some(embedding) = recogniser.embed(&frame, Rect::WHOLE)? else { continue };
                recogniser.known.insert(file.clone(), embedding);
            }
            found.extend(recogniser.known.get(file).cloned());
        }
        Ok(found)
    }

    /// Who is in these pictures, and the threshold that was applied. `None` if nobody has enough
    /// pictures, no dog is in them, or the threshold was not measured for the model in use.
    ///
    /// # Errors
    /// If the network fails.
    pub fn recognise(
        &self,
        pictures: &[(Frame, Rect)],
        recogniser: &mut Recogniser,
        models: &ModelsDir,
    ) -> Result<Option<(Answer, Threshold)>, AnimalsError> {
        recogniser.load(models)?;
        let Some(threshold) = recogniser.threshold() else { return Ok(None) };
        let mut animals = Vec::new();
        for (n, animal) in self.all.iter().enumerate() {
            let enough = animal.pictures.len() >= MIN_PICTURES;
            animals.push(if enough { self.embeddings(n, recogniser)? } else { Vec::new() });
        }
        if animals.iter().all(Vec::is_empty) {
            return Ok(None);
        }
        let mut seen = Vec::new();
        for (frame, rect) in pictures {
            seen.extend(recogniser.embed(frame, rect.padded(CROP_PADDING))?);
        }
        Ok(who(&seen, &animals, threshold.likeness).map(|answer| (answer, threshold)))
    }
}

impl Recogniser {
    /// Loads the classifier in use, unless it is loaded already.
    fn load(&mut self, models: &ModelsDir) -> Result<(), AnimalsError> {
        let entry = models.in_use()?.required_classifier()?.clone();
        let sha256 = &entry.manifest.sha256;
        if self.loaded.as_ref().is_none_or(|(known, _)| known.manifest.sha256 != *sha256) {
            let classifier = Classifier::new(entry.load()?)?;
            self.known.clear();
            self.loaded = Some((entry, classifier));
        }
        Ok(())
    }

    fn embed(&mut self, frame: &Frame, part: Rect) -> Result<Option<Embedding>, AnimalsError> {
        let (_, classifier) = self.loaded.as_mut().ok_or(AnimalsError::NoEmbedding)?;
        let features = classifier.classify(frame, part, Framing::Crop)?.embedding;
        Ok(Embedding::of(&features.ok_or(AnimalsError::NoEmbedding)?))
    }

    /// The threshold measured for the loaded model.
    fn threshold(&self) -> Option<Threshold> {
        let (entry, _) = self.loaded.as_ref()?;
        let text = fs::read_to_string(entry.dir.join(THRESHOLD_FILE)).ok()?;
        let threshold: Threshold = serde_json::from_str(&text).ok()?;
        (threshold.sha256 == entry.manifest.sha256).then_some(threshold)
    }
}

/// The likeliest dog in what was seen.
pub fn dog(seen: &Sightings) -> Option<Rect> {
    seen.seen
        .iter()
        .filter_map(|s| {
            let probs = &s.classification.as_ref()?.probs;
            (probs.best() == Class::Dog).then(|| (probs.of(Class::Dog), s.detection.rect))
        })
        .max_by(|a, b| a.0.get().total_cmp(&b.0.get()))
        .map(|(_, rect)| rect)
}

fn brightness(frame: &Frame, [x0, y0, x1, y1]: [f32; 4]) -> f32 {
    let (mut sum, mut count) = (0.0_f64, 0_u32);
    for y in (y0 as u32..(y1 as u32).min(frame.height())).step_by(2) {
        for x in (x0 as u32..(x1 as u32).min(frame.width())).step_by(2) {
            let at = 3 * (y as usize * frame.width() as usize + x as usize);
            let [r, g, b] = [0, 1, 2].map(|c| f64::from(frame.pixels()[at + c]));
            sum += 0.299 * r + 0.587 * g + 0.114 * b;
            count += 1;
        }
    }
    (sum / f64::from(count.max(1))) as f32
}

fn cut(frame: &Frame, [x0, y0, x1, y1]: [f32; 4]) -> Vec<u8> {
    let pixels = frame.pixels().to_vec();
    let whole = image::RgbImage::from_raw(frame.width(), frame.height(), pixels);
    let part = whole.map(|whole| {
        let (w, h) = ((x1 - x0).max(1.0) as u32, (y1 - y0).max(1.0) as u32);
        image::imageops::crop_imm(&whole, x0 as u32, y0 as u32, w, h).to_image()
    });
    part.and_then(|part| jpeg(part, SIDE).ok()).map(|(bytes, ..)| bytes).unwrap_or_default()
}

/// A number that no picture has yet.
fn unique(all: &[Animal], at: Uptime) -> u64 {
    let taken = |n: u64| {
        let file = format!("{n:016x}.jpg");
        all.iter().any(|animal| animal.pictures.contains(&file))
    };
    (at.as_millis()..).find(|n| !taken(*n)).unwrap_or_default()
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), AnimalsError> {
    let write = || {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let part = path.with_extension("part");
        let mut file = fs::File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().map_err(|source| AnimalsError::File { action: "write", path: path.to_owned(), source })
}
