//! Labelled pictures: gathered from folders, tables and box files, checked, split and hashed.

pub mod augment;
pub mod boxes;
pub mod browse;
pub mod gather;
pub mod teach;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use pawlatch_core::frame::Frame;
use pawlatch_core::units::{Rect, Uptime};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What a picture is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Seen while training.
    Train,
    /// Never trained on: decides when to stop, and calibrates.
    #[default]
    Validate,
}

/// A whole picture or a part of it, with what it shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The picture, relative to the dataset's directory or absolute.
    pub file: PathBuf,
    /// The part that is meant.
    pub part: Rect,
    /// Name of the class.
    pub label: String,
    /// Where it was taken: pictures of one source never fall into both splits by chance.
    pub source: String,
    /// A slice to report on by itself.
    pub subset: String,
    /// Training or validation.
    pub split: Split,
}

impl Item {
    /// Whether the item is a part cut out round a box rather than a whole picture.
    pub fn is_crop(&self) -> bool {
        self.part != Rect::WHOLE
    }
}

/// A box of a detection picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelledBox {
    /// Where.
    pub rect: Rect,
    /// Name of the class.
    pub label: String,
}

/// A picture with all its boxes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scene {
    /// The picture.
    pub file: PathBuf,
    /// What is known to be in it.
    pub boxes: Vec<LabelledBox>,
    /// Where there may be something of a class: neither to be found nor background.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsure: Vec<LabelledBox>,
    /// Classes that are boxed wherever they occur in it; others may be there without a box.
    pub exhaustive_for: Vec<String>,
    /// Where it was taken.
    pub source: String,
    /// Training or validation.
    pub split: Split,
}

impl Scene {
    /// Whether something of this class is boxed in it.
    pub fn shows(&self, class: &str) -> bool {
        self.boxes.iter().any(|b| b.label == class)
    }
}

/// A checked dataset, as `dataset build` writes it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Dataset {
    /// Class names, in the order of the network's labels.
    pub classes: Vec<String>,
    /// SHA-256 over every item and the bytes of every picture.
    pub sha256: String,
    /// Pictures and parts for classifiers.
    pub items: Vec<Item>,
    /// Pictures with boxes for detectors.
    pub scenes: Vec<Scene>,
    /// What was left out or deserves a look.
    pub notes: Vec<String>,
}

impl Dataset {
    /// Reads a dataset file, or gathers a folder with one sub-folder per label.
    ///
    /// # Errors
    /// If it cannot be read or holds nothing usable.
    pub fn load(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return gather::folder(path)?.finish(&gather::Limits::default());
        }
        let text =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        if path.extension().is_some_and(|e| e == "toml") {
            return gather::specified(path);
        }
        serde_json::from_slice(&text).with_context(|| {
            format!("{} is no dataset; make one with `dataset build`", path.display())
        })
    }

    /// The number of a class.
    ///
    /// # Errors
    /// If there is no such class.
    pub fn class(&self, label: &str) -> Result<usize> {
        self.classes
            .iter()
            .position(|c| c == label)
            .with_context(|| format!("label '{label}' is not one of {}", self.classes.join(", ")))
    }

    /// The items of a split, in order.
    pub fn of(&self, split: Split) -> Vec<&Item> {
        self.items.iter().filter(|i| i.split == split).collect()
    }

    /// How many items each class has in `split`, in the order of the classes.
    pub fn counts(&self, split: Split) -> Vec<usize> {
        let of = self.of(split);
        self.classes.iter().map(|c| of.iter().filter(|i| &i.label == c).count()).collect()
    }

    /// Checks every file, drops damaged and duplicate ones, limits classes and hashes the rest.
    ///
    /// # Errors
    /// If fewer than two classes are left, a class is empty, or more than a tenth of the files
    /// cannot be read.
    pub fn finish(mut self, limits: &gather::Limits) -> Result<Self> {
        let files: BTreeSet<PathBuf> = self
            .items
            .iter()
            .map(|i| &i.file)
            .chain(self.scenes.iter().map(|s| &s.file))
            .cloned()
            .collect();
        let looks: Vec<(PathBuf, Result<Fingerprint>)> = files
            .into_par_iter()
            .map(|f| {
                let look = Fingerprint::of(&f);
                (f, look)
            })
            .collect();
        let mut sound = BTreeMap::new();
        let total = looks.len();
        for (file, look) in looks {
            match look {
                Ok(print) => drop(sound.insert(file, print)),
                Err(e) => self.notes.push(format!("left out {}: {e:#}", file.display())),
            }
        }
        ensure!(
            sound.len() * 10 >= total * 9,
            "{} of {total} pictures cannot be read; first: {}",
            total - sound.len(),
            self.notes.first().map_or("", String::as_str)
        );
        self.drop_duplicates(&mut sound);
        self.items.retain(|i| sound.contains_key(&i.file));
        self.scenes.retain(|s| sound.contains_key(&s.file));
        self.limit(limits)?;
        let mut hash = Sha256::new();
        for item in &self.items {
            hash.update(serde_json::to_vec(&(&item.label, item.part, item.split))?);
            hash.update(sound[&item.file].bytes);
        }
        for scene in &self.scenes {
            hash.update(serde_json::to_vec(&(&scene.boxes, scene.split))?);
            hash.update(sound[&scene.file].bytes);
        }
        self.sha256 = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Ok(self)
    }

    /// Of pictures that look the same, the first stays; those with two labels are reported. A
    /// duplicate across splits is dropped from training, so that validation stays unseen.
    fn drop_duplicates(&mut self, sound: &mut BTreeMap<PathBuf, Fingerprint>) {
        let whole = |i: &&Item| !i.is_crop();
        let used: BTreeMap<&Path, (&str, Split)> = self
            .items
            .iter()
            .filter(whole)
            .map(|i| (i.file.as_path(), (i.label.as_str(), i.split)))
            .collect();
        let scenes: BTreeMap<&Path, Split> =
            self.scenes.iter().map(|s| (s.file.as_path(), s.split)).collect();
        let split = |f: &Path| {
            let of = [used.get(f).map(|u| u.1), scenes.get(f).copied()];
            of.into_iter().flatten().max().unwrap_or(Split::Train)
        };
        let mut kept: Vec<(&Path, u64)> = Vec::new();
        let mut dropped = BTreeSet::new();
        let mut order: Vec<_> = sound.iter().collect();
        // Validation first, then boxes: that copy is the one that stays.
        order.sort_by_key(|(f, _)| {
            (split(f) == Split::Train, !scenes.contains_key(f.as_path()), *f)
        });
        for (file, print) in order {
            let twin = kept.iter().find(|(_, look)| (look ^ print.look).count_ones() <= 2);
            let Some((twin, _)) = twin else {
                kept.push((file, print.look));
                continue;
            };
            let differ = used.get(file.as_path()).zip(used.get(twin)).filter(|(a, b)| a.0 != b.0);
            let labels = differ.map_or(String::new(), |(a, b)| {
                format!(" but is labelled {} and not {}", a.0, b.0)
            });
            self.notes.push(format!(
                "left out {}: looks like {}{labels}",
                file.display(),
                twin.display()
            ));
            dropped.insert(file.clone());
        }
        sound.retain(|f, _| !dropped.contains(f));
    }

    fn limit(&mut self, limits: &gather::Limits) -> Result<()> {
        if let Some(most) = limits.most_per_class {
            let mut seen: BTreeMap<(Split, String), usize> = BTreeMap::new();
            self.items.retain(|i| {
                let n = seen.entry((i.split, i.label.clone())).or_default();
                *n += 1;
                *n <= most
            });
        }
        if self.items.is_empty() && !self.scenes.is_empty() {
            return Ok(());
        }
        ensure!(
            self.classes.len() >= 2,
            "a classifier needs at least two classes; found {:?}",
            self.classes
        );
        let counts = self.counts(Split::Train);
        for (class, &n) in self.classes.iter().zip(&counts) {
            ensure!(
                n >= limits.fewest_per_class.max(1),
                "class '{class}' has {n} training pictures; at least {} are needed",
                limits.fewest_per_class.max(1)
            );
        }
        let (low, high) = (counts.iter().min(), counts.iter().max());
        if let (Some(low), Some(high)) = (low, high)
            && *high > low * 5
        {
            self.notes.push(format!(
                "classes are uneven ({low} to {high} pictures): class weights even them out"
            ));
        }
        Ok(())
    }
}

/// What a file holds and looks like.
struct Fingerprint {
    bytes: [u8; 32],
    /// Sixty-four signs of horizontal brightness steps on an 8 by 9 grid (a difference hash).
    look: u64,
}

impl Fingerprint {
    fn of(file: &Path) -> Result<Self> {
        let bytes = std::fs::read(file)?;
        let hash = Sha256::digest(&bytes);
        let picture = decode(bytes)?;
        let small = image::imageops::thumbnail(&picture, 9, 8);
        let luma = |x, y| small.get_pixel(x, y).0.iter().map(|&v| u32::from(v)).sum::<u32>();
        let mut look = 0;
        for y in 0..8 {
            for x in 0..8 {
                look = look << 1 | u64::from(luma(x, y) > luma(x + 1, y));
            }
        }
        Ok(Self { bytes: hash.into(), look })
    }
}

/// Reads a picture exactly as the door does.
///
/// # Errors
/// If it cannot be read or is no picture, naming the file.
pub fn open(file: &Path) -> Result<RgbImage> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    decode(bytes).with_context(|| format!("cannot use {}", file.display()))
}

fn decode(bytes: Vec<u8>) -> Result<RgbImage> {
    let frame = Frame::decode(Arc::<[u8]>::from(bytes), Uptime::ZERO)?;
    RgbImage::from_raw(frame.width(), frame.height(), frame.pixels().to_vec())
        .context("the picture has another size than it says")
}

/// Puts every item of `source` that a rule leaves open into a split by a hash of its group.
pub(crate) fn by_hash(group: &str, share: f32) -> Split {
    let digest = Sha256::digest(group.as_bytes());
    let draw = f32::from(u16::from_le_bytes([digest[0], digest[1]])) / 65536.0;
    if draw < share { Split::Validate } else { Split::Train }
}

/// Fails if any class of `want` is missing in `have`.
///
/// # Errors
/// Naming the first missing class.
pub fn same_classes(want: &[String], have: &[String]) -> Result<()> {
    if want != have {
        bail!("the dataset has classes {have:?}, the model {want:?}");
    }
    Ok(())
}
