//! The models directory: one directory per model, and `active.toml` that says which are in use.
//!
//! ```text
//! models/
//!   active.toml              classifier = "pet_classifier"
//!   pet_classifier/          model.toml, model.onnx
//!   yard@1.2.0/              added by `pawlatch model add`: NAME@VERSION
//! ```
//!
//! A model is called by the name of its directory, or by that of its manifest where only one has
//! it. Without an `active.toml` the only classifier and the only detector are in use; more than one
//! of a kind is an error, never a guess.

mod add;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, fs, io};

use pawlatch_core::frame::{Frame, PictureError};
use pawlatch_core::units::{Rect, Uptime};
use pawlatch_core::vision::fast::Ranges;
use pawlatch_core::vision::{
    Classifier, Detector, Framing, Manifest, ManifestError, Model, Precision, Task, Vision,
    VisionError,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use add::{AddError, Added, FETCHABLE, Fetchable, Permit, Step};

/// Name of the file that says which models are in use.
pub const ACTIVE_FILE: &str = "active.toml";
/// Name of a model's manifest in its directory.
pub const MANIFEST_FILE: &str = "model.toml";
/// Environment variable that names the models directory.
pub const ENVIRONMENT: &str = "PAWLATCH_MODELS_DIR";
/// Largest ONNX file that is read, bytes.
pub const MAX_ONNX_BYTES: u64 = 1 << 30;
/// Largest manifest that is read, bytes.
const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Where a package puts its models.
pub const INSTALLED_DIR: &str = "/usr/share/pawlatch/models";
/// How many directories above the program are searched for `models`.
const ANCESTORS: usize = 4;

/// Why the models cannot be used.
#[derive(Debug, Error)]
pub enum ModelsError {
    /// No directory was named and none is in a usual place.
    #[error("no models directory was found (looked for {looked}); name one with --models-dir")]
    NotFound {
        /// The places.
        looked: String,
    },
    /// The directory that was named is none.
    #[error("the models directory {} ({named_by}) is not a directory", path.display())]
    NotADirectory {
        /// Which.
        path: PathBuf,
        /// Who named it.
        named_by: &'static str,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any model.
    #[error("{} has {size} bytes; at most {limit} are read", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its size, bytes.
        size: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// A manifest is wrong.
    #[error("the manifest {} is wrong", path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// `active.toml` is wrong.
    #[error(
        "{} is wrong; it may hold `classifier = \"NAME\"` and `detector = \"NAME\"`; `pawlatch \
         model use NAME` writes it", path.display()
    )]
    Active {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: toml::de::Error,
    },
    /// There is no model of this name.
    #[error("there is no model `{name}` in {}; there is {known}", root.display())]
    Unknown {
        /// The name.
        name: String,
        /// The models directory.
        root: PathBuf,
        /// The names there are.
        known: String,
    },
    /// There is no model at all.
    #[error(
        "{} holds no model; each needs a directory with {MANIFEST_FILE} and its ONNX file",
        root.display()
    )]
    Empty {
        /// The models directory.
        root: PathBuf,
    },
    /// There is no model that does what is asked.
    #[error(
        "no {wanted} is in use, and this needs one; put it into the models directory and run \
         `pawlatch model use NAME`"
    )]
    Missing {
        /// What is needed.
        wanted: Task,
    },
    /// More than one model could be meant.
    #[error(
        "{} holds more than one {task} ({names}); say which with `pawlatch model use NAME`",
        root.display()
    )]
    Ambiguous {
        /// What they do.
        task: Task,
        /// Their names.
        names: String,
        /// The models directory.
        root: PathBuf,
    },
    /// A model is to be used for what it does not do.
    #[error("`{name}` in {} is to be the {wanted}, but it is a {is}", root.display())]
    WrongTask {
        /// The models directory.
        root: PathBuf,
        /// The model.
        name: String,
        /// What it is.
        is: Task,
        /// What it was to be.
        wanted: Task,
    },
    /// The model does not load or run.
    #[error("the model in {} cannot be used", dir.display())]
    Unusable {
        /// Its directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: VisionError,
    },
    /// The networks do not go together.
    #[error("the networks cannot be put together")]
    Vision(#[source] VisionError),
    /// The picture of the trial run cannot be made.
    #[error("the picture for the trial run cannot be made")]
    Trial(#[source] PictureError),
}

/// One model: where it is and what its manifest says.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its directory.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Entry {
    /// Reads the manifest in `dir`.
    ///
    /// # Errors
    /// If it cannot be read or is wrong.
    pub fn open(dir: &Path) -> Result<Self, ModelsError> {
        let path = dir.join(MANIFEST_FILE);
        let bytes = read_limited(&path, MAX_MANIFEST_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|e| ModelsError::Read {
            path: path.clone(),
            source: io::Error::new(io::ErrorKind::InvalidData, e),
        })?;
        let manifest =
            Manifest::parse(&text).map_err(|source| ModelsError::Manifest { path, source })?;
        Ok(Self { dir: dir.to_owned(), manifest })
    }

    /// What it is called in `active.toml`: the name of its directory.
    pub fn id(&self) -> String {
        let name = self.dir.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Reads the ONNX, verifies its SHA-256 and prepares the network.
    ///
    /// # Errors
    /// If the file cannot be read, is not the one the manifest describes, or cannot be prepared.
    pub fn load(&self) -> Result<Model, ModelsError> {
        self.load_in(Precision::Float)
    }

    /// As [`Entry::load`], to compute in `precision`.
    ///
    /// # Errors
    /// As [`Entry::load`].
    pub fn load_in(&self, precision: Precision) -> Result<Model, ModelsError> {
        let onnx = read_limited(&self.dir.join(&self.manifest.file), MAX_ONNX_BYTES)?;
        Model::in_precision(precision, self.manifest.clone(), &onnx)
            .map_err(|source| self.unusable(source))
    }

    /// As [`Entry::load`], to note the ranges of its values.
    ///
    /// # Errors
    /// As [`Entry::load`].
    pub fn load_watched(&self) -> Result<Model, ModelsError> {
        let onnx = read_limited(&self.dir.join(&self.manifest.file), MAX_ONNX_BYTES)?;
        Model::watched(self.manifest.clone(), &onnx).map_err(|source| self.unusable(source))
    }

    /// Replaces the ranges in the manifest, and nothing else of its text, in one step.
    ///
    /// # Errors
    /// If a range cannot be, or the file cannot be read or written.
    pub fn write_ranges(&self, ranges: &Ranges) -> Result<(), ModelsError> {
        let path = self.dir.join(MANIFEST_FILE);
        let old = String::from_utf8_lossy(&read_limited(&path, MAX_MANIFEST_BYTES)?).into_owned();
        let mut kept = true;
        let mut text = String::new();
        for line in old.lines() {
            if line.starts_with('[') {
                kept = line.trim_end() != "[quantised]";
            }
            if kept {
                text += &format!("{line}\n");
            }
        }
        text.truncate(text.trim_end().len());
        text += "\n\n[quantised]\n";
        for (name, range) in ranges {
            text += &format!("{name:?} = {range:?}\n");
        }
        Manifest::parse(&text)
            .map_err(|source| ModelsError::Manifest { path: path.clone(), source })?;
        replace_file(&path, text.as_bytes()).map_err(|source| ModelsError::Write { path, source })
    }

    /// Loads the model and runs it once on a made-up picture; gives how long that run took.
    ///
    /// # Errors
    /// If it does not load, does not run, or gives values that are not finite.
    pub fn verify(&self) -> Result<Duration, ModelsError> {
        let model = self.load()?;
        let frame = trial_picture()?;
        let failed = |source| self.unusable(source);
        match self.manifest.task {
            Task::Classifier => {
                let mut classifier = Classifier::new(model).map_err(failed)?;
                let began = Instant::now();
                classifier.classify(&frame, Rect::WHOLE, Framing::Whole).map_err(failed)?;
                Ok(began.elapsed())
            }
            Task::Detector => {
                let mut detector = Detector::new(model).map_err(failed)?;
                let began = Instant::now();
                detector.detect(&frame, Rect::WHOLE).map_err(failed)?;
                Ok(began.elapsed())
            }
        }
    }

    fn unusable(&self, source: VisionError) -> ModelsError {
        ModelsError::Unusable { dir: self.dir.clone(), source }
    }
}

/// The models in use.
#[derive(Debug, Clone, Default)]
pub struct InUse {
    /// Says what an animal is.
    pub classifier: Option<Entry>,
    /// Says where animals are.
    pub detector: Option<Entry>,
    /// What they compute with.
    pub precision: Precision,
}

impl InUse {
    /// Loads and verifies the models.
    ///
    /// # Errors
    /// If one cannot be loaded, or there is none.
    pub fn vision(&self) -> Result<Vision, ModelsError> {
        let load = |entry: &Option<Entry>| {
            entry.as_ref().map(|entry| entry.load_in(self.precision)).transpose()
        };
        Vision::new(load(&self.classifier)?, load(&self.detector)?).map_err(ModelsError::Vision)
    }

    /// The classifier.
    ///
    /// # Errors
    /// If none is in use.
    pub fn required_classifier(&self) -> Result<&Entry, ModelsError> {
        self.classifier.as_ref().ok_or(ModelsError::Missing { wanted: Task::Classifier })
    }

    /// The models in use, the classifier first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.classifier.iter().chain(&self.detector)
    }
}

impl fmt::Display for InUse {
    /// The names, joined by `+`, the detector first: it looks first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self
            .detector
            .iter()
            .chain(&self.classifier)
            .map(|entry| entry.manifest.name.as_str())
            .collect();
        f.write_str(&names.join("+"))
    }
}

/// `active.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Active {
    #[serde(skip_serializing_if = "Option::is_none")]
    classifier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detector: Option<String>,
    /// A candidate that looks on beside those in use; not part of the way back.
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<String>,
    /// What was in use before, for the way back. It has no `previous` of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<Box<Self>>,
}

impl Active {
    fn of(in_use: &InUse) -> Self {
        Self {
            classifier: in_use.classifier.as_ref().map(Entry::id),
            detector: in_use.detector.as_ref().map(Entry::id),
            shadow: None,
            previous: None,
        }
    }
}

/// A directory of models.
#[derive(Debug, Clone)]
pub struct ModelsDir {
    root: PathBuf,
}

impl ModelsDir {
    /// Finds the models directory. The first of these that is given is taken, and must exist:
    /// `flag`, `configured`, the environment variable [`ENVIRONMENT`]. Otherwise the first of
    /// these that holds a model: `./models`, `models` or `share/pawlatch/models` beside or above
    /// the program, and the place of the installed package.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(flag: Option<&Path>, configured: Option<&Path>) -> Result<Self, ModelsError> {
        let environment = std::env::var_os(ENVIRONMENT).map(PathBuf::from);
        let named = [
            (flag, "named by --models-dir"),
            (configured, "named by the configuration"),
            (environment.as_deref(), "named by PAWLATCH_MODELS_DIR"),
        ];
        for (path, named_by) in named {
            if let Some(path) = path {
                return Self::open(path, named_by);
            }
        }
        let places = usual_places();
        let holds_model = |dir: &Path| {
            subdirectories(dir)
                .is_ok_and(|dirs| dirs.iter().any(|d| d.join(MANIFEST_FILE).is_file()))
        };
        match places.iter().find(|place| holds_model(place)) {
            Some(root) => Ok(Self { root: root.clone() }),
            None => {
                let looked: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
                Err(ModelsError::NotFound { looked: looked.join(", ") })
            }
        }
    }

    /// The models directory at `path`.
    ///
    /// # Errors
    /// If it is not a directory.
    pub fn open(path: &Path, named_by: &'static str) -> Result<Self, ModelsError> {
        if path.is_dir() {
            Ok(Self { root: path.to_owned() })
        } else {
            Err(ModelsError::NotADirectory { path: path.to_owned(), named_by })
        }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every model directory in order of name, with its manifest or what is wrong with it.
    ///
    /// # Errors
    /// If the models directory cannot be read.
    pub fn entries(&self) -> Result<Vec<Result<Entry, ModelsError>>, ModelsError> {
        let dirs = subdirectories(&self.root)
            .map_err(|source| ModelsError::Read { path: self.root.clone(), source })?;
        Ok(dirs
            .iter()
            .filter(|dir| dir.join(MANIFEST_FILE).exists())
            .map(|dir| Entry::open(dir))
            .collect())
    }

    /// The model called `name`.
    ///
    /// # Errors
    /// If there is none, or its manifest is wrong.
    pub fn entry(&self, name: &str) -> Result<Entry, ModelsError> {
        let (mut known, mut called) = (Vec::new(), Vec::new());
        for entry in self.entries()? {
            match entry {
                Ok(entry) if entry.id() == name => return Ok(entry),
                Ok(entry) => {
                    known.push(entry.id());
                    if entry.manifest.name == name {
                        called.push(entry);
                    }
                }
                // The directory of a broken manifest is the best guess at its name.
                Err(e @ ModelsError::Manifest { .. }) => {
                    let ModelsError::Manifest { path, .. } = &e else { continue };
                    if path.parent().and_then(Path::file_name).is_some_and(|d| d == name) {
                        return Err(e);
                    }
                }
                Err(_) => {}
            }
        }
        if let Some(first) = called.first() {
            let task = first.manifest.task;
            return self.only(called, task)?.ok_or(ModelsError::Missing { wanted: task });
        }
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(ModelsError::Unknown { name: name.to_owned(), root: self.root.clone(), known })
    }

    /// The models in use.
    ///
    /// # Errors
    /// If `active.toml` is wrong or names what is not there; without it, if a manifest is wrong,
    /// there is no model, or more than one of a kind.
    pub fn in_use(&self) -> Result<InUse, ModelsError> {
        match self.active()? {
            Some(active) => Ok(InUse {
                classifier: self.named(active.classifier, Task::Classifier)?,
                detector: self.named(active.detector, Task::Detector)?,
                ..InUse::default()
            }),
            None => self.the_only_ones(),
        }
    }

    /// The models called `classifier` and `detector`; for one that is not named, the one in use.
    ///
    /// # Errors
    /// As [`ModelsDir::in_use`], or if there is no model of that name that does that.
    pub fn chosen(
        &self,
        classifier: Option<&str>,
        detector: Option<&str>,
    ) -> Result<InUse, ModelsError> {
        let by_name = |name: &str, wanted| self.named(Some(name.to_owned()), wanted);
        match (classifier, detector) {
            (None, None) => self.in_use(),
            (Some(classifier), Some(detector)) => Ok(InUse {
                classifier: by_name(classifier, Task::Classifier)?,
                detector: by_name(detector, Task::Detector)?,
                ..InUse::default()
            }),
            (Some(classifier), None) => {
                Ok(InUse { classifier: by_name(classifier, Task::Classifier)?, ..self.in_use()? })
            }
            (None, Some(detector)) => {
                Ok(InUse { detector: by_name(detector, Task::Detector)?, ..self.in_use()? })
            }
        }
    }

    /// Writes `active.toml` so that `entry` is used for what it does, and remembers what was in
    /// use `before`.
    fn choose(
        &self,
        entry: &Entry,
        before: Option<Active>,
        alone: bool,
    ) -> Result<(), ModelsError> {
        // Nothing was said so far: what was in use without saying stays so.
        let before = before.or_else(|| self.the_only_ones().ok().as_ref().map(Active::of));
        let mut active = match &before {
            Some(before) if !alone => before.clone(),
            _ => Active::default(),
        };
        match entry.manifest.task {
            Task::Classifier => active.classifier = Some(entry.id()),
            Task::Detector => active.detector = Some(entry.id()),
        }
        // A candidate has reached its end; another one would be beside other models.
        active.shadow = None;
        let names = |a: &Active| (a.classifier.clone(), a.detector.clone());
        // Choosing the same again must not forget the way back.
        active.previous = match before {
            Some(before) if names(&before) == names(&active) => before.previous,
            Some(before) => Some(Box::new(Active { previous: None, shadow: None, ..before })),
            None => None,
        };
        self.write_active(&active)
    }

    /// The candidate that looks on beside the models in use.
    ///
    /// # Errors
    /// If `active.toml` is wrong, or names what is not there.
    pub fn shadow(&self) -> Result<Option<Entry>, ModelsError> {
        let name = self.active()?.and_then(|active| active.shadow);
        name.map(|name| self.entry(&name)).transpose()
    }

    /// Verifies the model called `name` and has it look on beside those in use; `None` ends that.
    ///
    /// # Errors
    /// If it cannot be used or the file cannot be written.
    pub fn put_in_shadow(&self, name: Option<&str>) -> Result<(), ModelsError> {
        let shadow = name.map(|name| self.entry(name)).transpose()?;
        if let Some(entry) = &shadow {
            entry.verify()?;
        }
        let in_use = || self.in_use().map(|in_use| Active::of(&in_use));
        let mut active = self.active()?.map_or_else(in_use, Ok)?;
        active.shadow = shadow.as_ref().map(Entry::id);
        self.write_active(&active)
    }

    fn write_active(&self, active: &Active) -> Result<(), ModelsError> {
        let path = self.root.join(ACTIVE_FILE);
        // Names and a table of names: this cannot fail.
        let keys = toml::to_string(active).unwrap_or_default();
        let text = format!("# The models in use; `pawlatch model use NAME` writes this.\n{keys}");
        replace_file(&path, text.as_bytes()).map_err(|source| ModelsError::Write { path, source })
    }

    fn active(&self) -> Result<Option<Active>, ModelsError> {
        let path = self.root.join(ACTIVE_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text)
                .map(Some)
                .map_err(|source| ModelsError::Active { path, source }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ModelsError::Read { path, source }),
        }
    }

    fn named(&self, name: Option<String>, wanted: Task) -> Result<Option<Entry>, ModelsError> {
        let Some(name) = name else { return Ok(None) };
        let entry = self.entry(&name)?;
        if entry.manifest.task == wanted {
            return Ok(Some(entry));
        }
        let root = self.root.clone();
        Err(ModelsError::WrongTask { root, name, is: entry.manifest.task, wanted })
    }

    fn the_only_ones(&self) -> Result<InUse, ModelsError> {
        let entries = self.entries()?.into_iter().collect::<Result<Vec<_>, _>>()?;
        if entries.is_empty() {
            return Err(ModelsError::Empty { root: self.root.clone() });
        }
        let (classifiers, detectors) =
            entries.into_iter().partition(|e| e.manifest.task == Task::Classifier);
        Ok(InUse {
            classifier: self.only(classifiers, Task::Classifier)?,
            detector: self.only(detectors, Task::Detector)?,
            ..InUse::default()
        })
    }

    fn only(&self, mut all: Vec<Entry>, task: Task) -> Result<Option<Entry>, ModelsError> {
        if all.len() > 1 {
            let names: Vec<String> = all.iter().map(Entry::id).collect();
            let (names, root) = (names.join(", "), self.root.clone());
            return Err(ModelsError::Ambiguous { task, names, root });
        }
        Ok(all.pop())
    }
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// If it cannot be read or is larger.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, ModelsError> {
    let failed = |source| ModelsError::Read { path: path.to_owned(), source };
    let meta = fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    if meta.len() > limit {
        return Err(ModelsError::TooLarge { path: path.to_owned(), size: meta.len(), limit });
    }
    fs::read(path).map_err(failed)
}

fn usual_places() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("models")];
    if let Ok(program) = std::env::current_exe() {
        for above in program.ancestors().skip(1).take(ANCESTORS) {
            places.push(above.join("models"));
            places.push(above.join("share/pawlatch/models"));
        }
    }
    places.push(PathBuf::from(INSTALLED_DIR));
    places
}

fn subdirectories(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut dirs = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if path.is_dir() {
            dirs.push(path);
        }
    }
    dirs.sort();
    Ok(dirs)
}

fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("toml.new");
    let mut file = fs::File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The rename itself is only durable once the directory is.
    path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
}

/// Slopes and an edge: something a network gives finite values for.
fn trial_picture() -> Result<Frame, ModelsError> {
    let (width, height) = (320_u32, 240_u32);
    let pixels: Vec<u8> = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .flat_map(|(x, y)| {
            let edge = if (x / 40 + y / 40) % 2 == 0 { 0 } else { 60 };
            [x * 160 / width + edge, y * 160 / height + edge, 90 + edge].map(|v| v as u8)
        })
        .collect();
    Frame::from_rgb(pixels, width, height, Uptime::ZERO).map_err(ModelsError::Trial)
}
