//! Adding models, whole or not at all, and the way back.
//!
//! Everything happens in `.staging` beside the models: fetched, unpacked, verified, run and
//! examined there, then renamed to its place and only then named in `active.toml`. Whenever that
//! is cut short, what was in use stays in use, and the next time begins by sweeping up.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use pawlatch_core::vision::Task;
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

use super::{Active, Entry, InUse, MANIFEST_FILE, MAX_ONNX_BYTES, ModelsDir, ModelsError};
use crate::bundle::{self, BundleError, Kind, Trust, Version};
use crate::download::{self, DownloadError};
use crate::exam::{self, ExamError, Marks};

/// Directory of what is not whole yet.
const STAGING_DIR: &str = ".staging";
/// File that is locked while the directory is changed.
const LOCK_FILE: &str = ".lock";

/// Why a model was not added or put in use. What was in use still is.
#[derive(Debug, Error)]
pub enum AddError {
    /// It cannot be used, or the directory is wrong.
    #[error(transparent)]
    Models(#[from] ModelsError),
    /// The bundle is refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// It cannot be fetched.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The exam cannot be held.
    #[error(transparent)]
    Exam(#[from] ExamError),
    /// Somebody else is changing the directory.
    #[error("another pawlatch is changing {}; wait until it is done", root.display())]
    Busy {
        /// The models directory.
        root: PathBuf,
    },
    /// The bundle holds something else.
    #[error("the bundle holds a program, not a model; use `pawlatch update install`")]
    NotAModel,
    /// The bundle and the model in it disagree.
    #[error("the bundle says {bundle}, but the model in it is {model}")]
    Misnamed {
        /// What the bundle's manifest says.
        bundle: String,
        /// What the model's manifest says.
        model: String,
    },
    /// The model's version cannot be compared.
    #[error("the model's version cannot be compared: {0}")]
    Version(String),
    /// A newer one is there.
    #[error(
        "{name} {new} is older than {installed}, which is there; add --allow-downgrade if that is \
         meant"
    )]
    Downgrade {
        /// The model.
        name: String,
        /// The one to be added.
        new: Version,
        /// The newest that is there.
        installed: Version,
    },
    /// Another one of that version is there.
    #[error("another model {id} is there already; a changed model needs a new version")]
    Taken {
        /// Its name and version.
        id: String,
    },
    /// It does worse than what is in use.
    #[error("{id} does worse than what is in use: {how}; add --without-exam if that is meant")]
    Worse {
        /// Its name and version.
        id: String,
        /// In what.
        how: String,
    },
    /// There is nothing to go back to.
    #[error("nothing was in use before what is in use in {}", root.display())]
    NoPrevious {
        /// The models directory.
        root: PathBuf,
    },
}

/// What the owner says is meant.
#[derive(Debug, Clone, Copy, Default)]
pub struct Permit {
    /// A version older than one that is there.
    pub downgrade: bool,
    /// One that has not sat the exam.
    pub unexamined: bool,
}

/// What has been done, told as it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The file is there, whole, and of the wanted hash.
    Fetched,
    /// It is believed and unpacked in the staging directory.
    Unpacked,
    /// The network is the manifest's and runs.
    Verified,
    /// It does no worse than what is in use.
    Examined,
    /// It is in its place.
    Placed,
    /// It is in use.
    InUse,
}

/// A model that was added and is in use.
#[derive(Debug, Clone)]
pub struct Added {
    /// Its name and version, as `model use` takes it.
    pub id: String,
    /// What it does.
    pub task: Task,
    /// How it did in the exam, and how what was in use before did.
    pub marks: Option<(Marks, Marks)>,
}

/// A model of somebody else's that can be fetched from there.
#[derive(Debug)]
pub struct Fetchable {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Where its ONNX file is.
    pub url: &'static str,
    /// Its manifest, with the SHA-256 that the file must have.
    manifest: &'static str,
}

/// The models that `model fetch` knows.
pub const FETCHABLE: [Fetchable; 2] = [
    Fetchable {
        name: "yolox-nano",
        url: "https://github.com/Kazuhito00/YOLOX-ONNX-TFLite-Sample/raw/\
              3d4f1119d0694200671c08069ecb847aa0d8495a/model/yolox_nano.onnx",
        manifest: include_str!("../../../tests/manifests/yolox_nano.toml"),
    },
    Fetchable {
        name: "nanodet-plus",
        url: "https://github.com/RangiLyu/nanodet/releases/download/v1.0.0-alpha-1/\
              nanodet-plus-m_416.onnx",
        manifest: include_str!("../../assets/manifests/nanodet_plus_m_416.toml"),
    },
];

impl ModelsDir {
    /// Adds the model in the bundle at `from`, a path or URL, and puts it in use. `each` is told
    /// every step. Of added models only those in use and those before them are kept.
    ///
    /// # Errors
    /// If the bundle or the model is refused, or a file cannot be written; what was in use still
    /// is.
    pub fn add(
        &self,
        from: &str,
        trust: &Trust,
        permit: Permit,
        each: &mut dyn FnMut(Step),
    ) -> Result<Added, AddError> {
        let staging = Staging::begin(&self.root)?;
        let part = staging.dir.join("bundle.part");
        let file = download::bring(from, &part, bundle::MAX_BYTES, trust.pinned.as_deref())?;
        each(Step::Fetched);
        let staged = staging.model_dir()?;
        let manifest = bundle::unpack(file, trust, &staged)?;
        if manifest.kind != Kind::Model {
            return Err(AddError::NotAModel);
        }
        let entry = Entry::open(&staged)?;
        let inside = (entry.manifest.name.clone(), version_of(&entry)?);
        if inside != (manifest.name.clone(), manifest.version) {
            return Err(AddError::Misnamed {
                bundle: format!("{} {}", manifest.name, manifest.version),
                model: format!("{} {}", inside.0, inside.1),
            });
        }
        each(Step::Unpacked);
        self.finish(entry, permit, each)
    }

    /// Fetches somebody else's model, from `url` if it is not where it usually is, and puts it in
    /// use, as [`ModelsDir::add`] does.
    ///
    /// # Errors
    /// If it cannot be fetched, is not the known file, or as [`ModelsDir::add`].
    pub fn fetch(
        &self,
        model: &Fetchable,
        url: Option<&str>,
        permit: Permit,
        each: &mut dyn FnMut(Step),
    ) -> Result<Added, AddError> {
        let staging = Staging::begin(&self.root)?;
        let staged = staging.model_dir()?;
        let path = staged.join(MANIFEST_FILE);
        let write = |source| ModelsError::Write { path: path.clone(), source };
        super::replace_file(&path, model.manifest.as_bytes()).map_err(write)?;
        let entry = Entry::open(&staged)?;
        let onnx = staged.join(&entry.manifest.file);
        let from = url.unwrap_or(model.url);
        let sha256 = Some(entry.manifest.sha256.as_str());
        let part = staging.dir.join("onnx.part");
        let mut file = download::bring(from, &part, MAX_ONNX_BYTES, sha256)?;
        let write = |source| ModelsError::Write { path: onnx.clone(), source };
        let mut copy = File::create(&onnx).map_err(write)?;
        io::copy(&mut file, &mut copy).and_then(|_| copy.sync_all()).map_err(write)?;
        bundle::sync_dir(&staged)?;
        each(Step::Fetched);
        self.finish(entry, permit, each)
    }

    /// Uses the model called `name` for what it does, after it was verified and, unless
    /// `unexamined`, did no worse in the exam than what is in use; the model of the other kind
    /// stays in use unless `alone`. `active.toml` is replaced in one step: a crash leaves the old
    /// or the new one.
    ///
    /// # Errors
    /// If the model cannot be used, does worse, or the file cannot be written; what was in use
    /// still is.
    pub fn put_in_use(
        &self,
        name: &str,
        alone: bool,
        unexamined: bool,
    ) -> Result<(Entry, Option<(Marks, Marks)>), AddError> {
        let _staging = Staging::begin(&self.root)?;
        let entry = self.entry(name)?;
        entry.verify()?;
        let before = match self.active() {
            Err(_) if alone => None,
            active => active?,
        };
        let beside = if alone { InUse::default() } else { self.in_use().unwrap_or_default() };
        // As a whole it must load, or the door could not start.
        let then = with(&beside, &entry);
        then.vision()?;
        let marks = if unexamined { None } else { self.examine(&then, &entry.id())? };
        self.choose(&entry, before, alone)?;
        Ok((entry, marks))
    }

    /// Whether there is something to go back to.
    pub fn has_previous(&self) -> bool {
        self.active().ok().flatten().is_some_and(|active| active.previous.is_some())
    }

    /// Goes back to what was in use before; what is in use now can be gone back to in turn.
    /// Gives what is in use then.
    ///
    /// # Errors
    /// If nothing was in use before, or it cannot be used any more.
    pub fn roll_back(&self) -> Result<InUse, AddError> {
        let _staging = Staging::begin(&self.root)?;
        let none = || AddError::NoPrevious { root: self.root.clone() };
        let mut now = self.active()?.ok_or_else(none)?;
        let mut before = *now.previous.take().ok_or_else(none)?;
        let in_use = InUse {
            classifier: self.named(before.classifier.clone(), Task::Classifier)?,
            detector: self.named(before.detector.clone(), Task::Detector)?,
            ..InUse::default()
        };
        in_use.entries().try_for_each(|entry| entry.verify().map(|_| ()))?;
        in_use.vision()?;
        now.shadow = None;
        before.previous = Some(Box::new(now));
        self.write_active(&before)?;
        Ok(in_use)
    }

    /// Verifies and examines the model in the staging directory, then puts it in its place and
    /// in use.
    fn finish(
        &self,
        staged: Entry,
        permit: Permit,
        each: &mut dyn FnMut(Step),
    ) -> Result<Added, AddError> {
        let new = version_of(&staged)?;
        let (name, task) = (staged.manifest.name.clone(), staged.manifest.task);
        let of_that_name = |e: &Entry| e.manifest.name == name;
        let installed = self.entries()?.into_iter().flatten().filter(of_that_name);
        let newest = installed.filter_map(|e| version_of(&e).ok()).max();
        if let Some(installed) = newest.filter(|newest| new < *newest && !permit.downgrade) {
            return Err(AddError::Downgrade { name, new, installed });
        }
        staged.verify()?;
        each(Step::Verified);
        let id = format!("{name}@{new}");
        let marks = if permit.unexamined {
            None
        } else {
            self.examine(&with(&self.in_use().unwrap_or_default(), &staged), &id)?
        };
        each(Step::Examined);
        let before = self.active()?.or_else(|| self.the_only_ones().ok().as_ref().map(Active::of));
        if let Some(before) = &before {
            // Otherwise a crash after the next step would leave two of a kind and no choice.
            self.write_active(before)?;
        }
        let entry = self.place(&staged, &id)?;
        each(Step::Placed);
        self.choose(&entry, before, false)?;
        each(Step::InUse);
        self.prune()?;
        Ok(Added { id, task, marks })
    }

    /// The marks of `then`, the models in use with the new one called `id` among them, and of
    /// those in use now; `None` if nothing is in use that could be compared.
    fn examine(&self, then: &InUse, id: &str) -> Result<Option<(Marks, Marks)>, AddError> {
        let Ok(now) = self.in_use() else { return Ok(None) };
        // What is in use may be broken, which is a good reason to use another.
        let Ok(now) = exam::examine(&now) else { return Ok(None) };
        let then = exam::examine(then)?;
        let worse = then.worse_than(&now);
        if worse.is_empty() {
            return Ok(Some((then, now)));
        }
        Err(AddError::Worse { id: id.to_owned(), how: worse.join("; ") })
    }

    fn place(&self, staged: &Entry, id: &str) -> Result<Entry, AddError> {
        let place = self.root.join(id);
        match Entry::open(&place) {
            // Left from a time that was cut short, or used before; the hash says it is the same.
            Ok(there) if there.manifest == staged.manifest => {
                there.verify()?;
                return Ok(there);
            }
            Ok(_) => return Err(AddError::Taken { id: id.to_owned() }),
            Err(_) => {}
        }
        let write = |source| ModelsError::Write { path: place.clone(), source };
        if place.exists() {
            fs::remove_dir_all(&place).map_err(write)?;
        }
        fs::rename(&staged.dir, &place).map_err(write)?;
        bundle::sync_dir(&self.root)?;
        Ok(Entry::open(&place)?)
    }

    /// Removes added models that are neither in use nor what can be gone back to.
    fn prune(&self) -> Result<(), AddError> {
        let active = self.active()?.unwrap_or_default();
        let previous = active.previous.as_deref().cloned().unwrap_or_default();
        let Active { classifier, detector, shadow, .. } = active;
        let kept = [classifier, detector, shadow, previous.classifier, previous.detector];
        for entry in self.entries()?.into_iter().flatten() {
            let id = entry.id();
            if id.contains('@') && !kept.iter().flatten().any(|kept| *kept == id) {
                // In one step, so that no half of a model is ever seen.
                let dying = self.root.join(STAGING_DIR).join(&id);
                let write = |source| ModelsError::Write { path: entry.dir.clone(), source };
                fs::rename(&entry.dir, &dying).map_err(write)?;
            }
        }
        Ok(())
    }
}

/// `models` with `entry` among them.
fn with(models: &InUse, entry: &Entry) -> InUse {
    let mut models = models.clone();
    match entry.manifest.task {
        Task::Classifier => models.classifier = Some(entry.clone()),
        Task::Detector => models.detector = Some(entry.clone()),
    }
    models
}

fn version_of(entry: &Entry) -> Result<Version, AddError> {
    entry.manifest.version.parse().map_err(AddError::Version)
}

/// The staging directory, empty, and the lock on the models; both end when it is dropped.
struct Staging {
    dir: PathBuf,
    _lock: File,
}

impl Staging {
    fn begin(root: &Path) -> Result<Self, AddError> {
        let path = root.join(LOCK_FILE);
        let lock = File::create(&path).map_err(|source| ModelsError::Write { path, source })?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(AddError::Busy { root: root.to_owned() });
        }
        let dir = root.join(STAGING_DIR);
        let write = |source| ModelsError::Write { path: dir.clone(), source };
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(write)?;
        }
        fs::create_dir(&dir).map_err(write)?;
        Ok(Self { dir, _lock: lock })
    }

    fn model_dir(&self) -> Result<PathBuf, AddError> {
        let dir = self.dir.join("model");
        let write = |source| ModelsError::Write { path: dir.clone(), source };
        fs::create_dir(&dir).map_err(write)?;
        Ok(dir)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // If it stays, the next one sweeps it up.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
