//! The animals of the house: pictures of each, and who is in the pictures of a visit.
//!
//! Kept are pictures, and their embeddings with the hash of the network that made them; for
//! another network they do not count until the owner enrols the pictures again. Whether an answer
//! means anything is measured for each network (`identity.json` beside it); without that
//! measurement nobody is recognised. The door acts on it where a rule names an animal.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use pawlatch_core::frame::Frame;
use pawlatch_core::identity::{Embedding, Gallery, Threshold};
use pawlatch_core::policy::is_animal_name;
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
/// Embeddings of the pictures by one network, and by the one before, for a model that is gone
/// back to.
const EMBEDDINGS_FILES: [&str; 2] = ["embeddings.json", "embeddings-before.json"];
/// The threshold of a model, beside it.
pub const THRESHOLD_FILE: &str = "identity.json";
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

/// How an animal is marked beside its name (Okabe and Ito 2008: told apart by colour-blind eyes;
/// darkened where they would fade on white).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "colours speak for themselves")]
pub enum Colour {
    #[default]
    Blue,
    Orange,
    Green,
    Purple,
    Sky,
    Red,
    Yellow,
    Grey,
}

impl Colour {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Blue,
        Self::Orange,
        Self::Green,
        Self::Purple,
        Self::Sky,
        Self::Red,
        Self::Yellow,
        Self::Grey,
    ];

    /// As it is called and written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Orange => "orange",
            Self::Green => "green",
            Self::Purple => "purple",
            Self::Sky => "sky",
            Self::Red => "red",
            Self::Yellow => "yellow",
            Self::Grey => "grey",
        }
    }
}

/// One animal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Animal {
    /// Its name.
    pub name: String,
    /// Its colour on the page.
    #[serde(default)]
    pub colour: Colour,
    /// Names of its pictures in the directory.
    pub pictures: Vec<String>,
}

/// What a picture is worth for knowing an animal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worth {
    /// It shows something new.
    Good,
    /// Too dark.
    Dark,
    /// Too small or far away.
    Small,
    /// It shows nothing new; another side would.
    Alike,
    /// There are enough.
    Enough,
}

/// Whether an animal can be recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It can.
    Known,
    /// It has too few pictures.
    TooFew,
    /// Its pictures were enrolled with another network and must be enrolled again.
    Again,
    /// How well the network in use tells dogs apart was not measured.
    Unmeasured,
}

/// Whom the dog of a visit looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct Looks {
    /// Every animal it may be; none: an unknown dog.
    pub animals: Vec<String>,
    /// How like the likeliest it is.
    pub likeness: f32,
    /// What was applied.
    pub threshold: Threshold,
}

/// Embeddings of pictures, by their names, and the network that made them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Enrolled {
    sha256: String,
    of: BTreeMap<String, Embedding>,
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

impl Added {
    const fn count(&mut self, worth: Worth) {
        match worth {
            Worth::Good => self.good += 1,
            Worth::Dark => self.dark += 1,
            Worth::Small => self.small += 1,
            Worth::Alike => self.alike += 1,
            Worth::Enough => self.enough += 1,
        }
    }
}

/// The network that embeds, loaded when it is first needed.
#[derive(Default)]
pub struct Recogniser {
    loaded: Option<(Entry, Classifier)>,
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
        let known = self.all.iter().position(|animal| animal.name == name);
        if !is_animal_name(name) || (known.is_none() && self.all.len() >= MAX_ANIMALS) {
            return Err(AnimalsError::Name);
        }
        let n = known.unwrap_or_else(|| {
            let colour = self.next_colour();
            self.all.push(Animal { name: name.to_owned(), colour, pictures: Vec::new() });
            self.all.len() - 1
        });
        let mut enrolled = self.stored(&recogniser.load(models)?.manifest.sha256);
        // What was enrolled with another network is enrolled again along with what is new.
        self.embed_all(&self.all[n], &mut enrolled, recogniser)?;
        let mut added = Added::default();
        for (frame, rect) in pictures {
            let crop = rect.padded(CROP_PADDING);
            let (worth, embedding) = self.judge(name, frame, *rect, &enrolled, recogniser)?;
            added.count(worth);
            if let (Worth::Good, Some(embedding)) = (worth, embedding) {
                let file = format!("{:016x}.jpg", unique(&self.all, frame.captured_at()));
                let pixels = crop.to_pixels(frame.width(), frame.height());
                replace(&self.dir.join(&file), &cut(frame, pixels))?;
                self.all[n].pictures.push(file.clone());
                enrolled.of.insert(file, embedding);
            }
        }
        if self.all[n].pictures.is_empty() {
            self.all.remove(n);
        } else {
            self.save()?;
            self.keep(enrolled)?;
        }
        Ok(added)
    }

    /// What the dog at `rect` in `frame` would be worth for knowing the animal called `name`.
    ///
    /// # Errors
    /// If the network fails.
    pub fn worth(
        &self,
        name: &str,
        frame: &Frame,
        rect: Rect,
        recogniser: &mut Recogniser,
        models: &ModelsDir,
    ) -> Result<Worth, AnimalsError> {
        let enrolled = self.stored(&recogniser.load(models)?.manifest.sha256);
        Ok(self.judge(name, frame, rect, &enrolled, recogniser)?.0)
    }

    fn judge(
        &self,
        name: &str,
        frame: &Frame,
        rect: Rect,
        enrolled: &Enrolled,
        recogniser: &mut Recogniser,
    ) -> Result<(Worth, Option<Embedding>), AnimalsError> {
        let pictures =
            self.all.iter().find(|a| a.name == name).map_or(&[][..], |animal| &animal.pictures);
        let crop = rect.padded(CROP_PADDING);
        let [x0, y0, x1, y1] = crop.to_pixels(frame.width(), frame.height());
        let plain = if pictures.len() >= MAX_PICTURES {
            Some(Worth::Enough)
        } else if (x1 - x0).min(y1 - y0) < SMALL {
            Some(Worth::Small)
        } else if brightness(frame, [x0, y0, x1, y1]) < DARK {
            Some(Worth::Dark)
        } else {
            None
        };
        if let Some(worth) = plain {
            return Ok((worth, None));
        }
        let embedding = Embedding::of(&recogniser.features(frame, crop)?);
        let known = || pictures.iter().filter_map(|file| enrolled.of.get(file));
        let new = embedding.as_ref().is_some_and(|e| known().all(|k| e.cosine(k) < ALIKE));
        Ok((if new { Worth::Good } else { Worth::Alike }, embedding))
    }

    /// Enrols the pictures of every animal with the classifier in use.
    ///
    /// # Errors
    /// If the network fails or something cannot be written.
    pub fn enrol_again(
        &self,
        recogniser: &mut Recogniser,
        models: &ModelsDir,
    ) -> Result<(), AnimalsError> {
        let mut enrolled = self.stored(&recogniser.load(models)?.manifest.sha256);
        for animal in &self.all {
            self.embed_all(animal, &mut enrolled, recogniser)?;
        }
        self.keep(enrolled)
    }

    /// A colour that no animal has yet, while there is one.
    fn next_colour(&self) -> Colour {
        let free = |colour: &Colour| self.all.iter().all(|animal| animal.colour != *colour);
        let turn = Colour::ALL[self.all.len() % Colour::ALL.len()];
        Colour::ALL.into_iter().find(free).unwrap_or(turn)
    }

    /// The colour of the animal called `name`.
    pub fn colour(&self, name: &str) -> Option<Colour> {
        self.all.iter().find(|animal| animal.name == name).map(|animal| animal.colour)
    }

    /// Gives an animal another colour; whether there was one.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn paint(&mut self, name: &str, colour: Colour) -> Result<bool, AnimalsError> {
        let Some(animal) = self.all.iter_mut().find(|animal| animal.name == name) else {
            return Ok(false);
        };
        animal.colour = colour;
        self.save()?;
        Ok(true)
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

    /// What was enrolled with the network `sha256`; empty if nothing was.
    fn stored(&self, sha256: &str) -> Enrolled {
        let read = |file: &&str| -> Option<Enrolled> {
            let bytes = read_limited(&self.dir.join(file), MAX_BYTES).ok()?;
            // One that is damaged is enrolled again, as if it were another network's.
            serde_json::from_slice(&bytes).ok()
        };
        let found = EMBEDDINGS_FILES.iter().filter_map(read).find(|e| e.sha256 == sha256);
        found.unwrap_or_else(|| Enrolled { sha256: sha256.to_owned(), of: BTreeMap::new() })
    }

    /// Keeps the embeddings of pictures that there still are; those of the network before stay.
    fn keep(&self, mut enrolled: Enrolled) -> Result<(), AnimalsError> {
        enrolled.of.retain(|file, _| self.all.iter().any(|animal| animal.pictures.contains(file)));
        let [path, before] = EMBEDDINGS_FILES.map(|file| self.dir.join(file));
        let there = read_limited(&path, MAX_BYTES).ok();
        let there: Option<Enrolled> = there.and_then(|b| serde_json::from_slice(&b).ok());
        if there.is_some_and(|there| there.sha256 != enrolled.sha256) {
            fs::rename(&path, &before).map_err(|source| AnimalsError::File {
                action: "rename",
                path: path.clone(),
                source,
            })?;
        }
        // Texts and numbers: JSON can always write them.
        let text = serde_json::to_string(&enrolled).unwrap_or_default();
        replace(&path, text.as_bytes())
    }

    fn embed_all(
        &self,
        animal: &Animal,
        enrolled: &mut Enrolled,
        recogniser: &mut Recogniser,
    ) -> Result<(), AnimalsError> {
        for file in &animal.pictures {
            if enrolled.of.contains_key(file) {
                continue;
            }
            let Ok(bytes) = read_limited(&self.dir.join(file), MAX_BYTES) else { continue };
            let Ok(frame) = Frame::decode(bytes, Uptime::ZERO) else { continue };
            let features = recogniser.features(&frame, Rect::WHOLE)?;
            enrolled.of.extend(Embedding::of(&features).map(|e| (file.clone(), e)));
        }
        Ok(())
    }

    /// The animals that can be recognised with `classifier`: those enrolled with it by enough
    /// pictures, if its threshold was measured.
    pub fn gallery(&self, classifier: &Entry) -> Gallery {
        let Some(threshold) = threshold(classifier) else { return Gallery::default() };
        let enrolled = self.stored(&classifier.manifest.sha256);
        let known = self.all.iter().map(|a| (a.name.clone(), embeddings(a, &enrolled)));
        let known = known.filter(|(_, embeddings)| embeddings.len() >= MIN_PICTURES);
        Gallery::new(known, threshold.likeness)
    }

    /// Whether each animal can be recognised with `classifier`.
    pub fn standings(&self, classifier: &Entry) -> Vec<Standing> {
        let (measured, enrolled) =
            (threshold(classifier), self.stored(&classifier.manifest.sha256));
        let standing = |animal: &Animal| {
            if animal.pictures.len() < MIN_PICTURES {
                Standing::TooFew
            } else if measured.is_none() {
                Standing::Unmeasured
            } else if embeddings(animal, &enrolled).len() < MIN_PICTURES {
                Standing::Again
            } else {
                Standing::Known
            }
        };
        self.all.iter().map(standing).collect()
    }

    /// Whom the dog in these pictures looks like. `None` if nobody can be recognised or no dog is
    /// in them.
    ///
    /// # Errors
    /// If the network fails.
    pub fn recognise(
        &self,
        pictures: &[(Frame, Rect)],
        recogniser: &mut Recogniser,
        models: &ModelsDir,
    ) -> Result<Option<Looks>, AnimalsError> {
        let entry = recogniser.load(models)?;
        let (gallery, Some(threshold)) = (self.gallery(&entry), threshold(&entry)) else {
            return Ok(None);
        };
        let mut mean = vec![0.0; gallery.roll().names.len()];
        for (frame, rect) in pictures {
            let features = recogniser.features(frame, rect.padded(CROP_PADDING))?;
            for (mean, likeness) in mean.iter_mut().zip(gallery.likenesses(&features)) {
                *mean += likeness / pictures.len() as f32;
            }
        }
        let Some((_, likeness)) = gallery.roll().likeliest(&mean).filter(|_| !pictures.is_empty())
        else {
            return Ok(None);
        };
        Ok(Some(Looks { animals: gallery.roll().candidates(&mean), likeness, threshold }))
    }
}

fn embeddings(animal: &Animal, enrolled: &Enrolled) -> Vec<Embedding> {
    animal.pictures.iter().filter_map(|file| enrolled.of.get(file).cloned()).collect()
}

/// The threshold measured for a classifier, if it was.
fn threshold(classifier: &Entry) -> Option<Threshold> {
    let text = fs::read_to_string(classifier.dir.join(THRESHOLD_FILE)).ok()?;
    let threshold: Threshold = serde_json::from_str(&text).ok()?;
    (threshold.sha256 == classifier.manifest.sha256).then_some(threshold)
}

impl Recogniser {
    /// Loads the classifier in use, unless it is loaded already.
    fn load(&mut self, models: &ModelsDir) -> Result<Entry, AnimalsError> {
        let entry = models.in_use()?.required_classifier()?.clone();
        let sha256 = &entry.manifest.sha256;
        if self.loaded.as_ref().is_none_or(|(known, _)| known.manifest.sha256 != *sha256) {
            let classifier = Classifier::new(entry.load()?)?;
            self.loaded = Some((entry.clone(), classifier));
        }
        Ok(entry)
    }

    fn features(&mut self, frame: &Frame, part: Rect) -> Result<Vec<f32>, AnimalsError> {
        let (_, classifier) = self.loaded.as_mut().ok_or(AnimalsError::NoEmbedding)?;
        let answer = classifier.classify(frame, part, Framing::Crop)?;
        answer.embedding.ok_or(AnimalsError::NoEmbedding)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn animals_get_colours_of_their_own_while_there_are_any() {
        let mut animals = Animals { dir: PathBuf::new(), all: Vec::new() };
        for n in 0..MAX_ANIMALS {
            let colour = animals.next_colour();
            assert_eq!(animals.all.iter().any(|a| a.colour == colour), n >= Colour::ALL.len());
            animals.all.push(Animal { name: n.to_string(), colour, pictures: Vec::new() });
        }
        animals.all.remove(3);
        let text = serde_json::to_string(&animals.all[..7]).unwrap();
        animals.all = serde_json::from_str(&text).unwrap();
        assert_eq!(animals.next_colour(), Colour::Purple, "the one that has become free");
    }
}
