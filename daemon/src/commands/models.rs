//! `model list|verify|use|shadow|add|fetch|rollback|pack|quantise`.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context as _, Error, Result};
use clap::{Args, Subcommand};
use serde::Serialize;

use pawlatch::bundle;
use pawlatch::exam::Marks;
use pawlatch::models::{Added, Entry, FETCHABLE, MANIFEST_FILE, ModelsError, Permit, Step};
use pawlatch::owner::animals::THRESHOLD_FILE;
use pawlatch_core::units::Rect;
use pawlatch_core::vision::{Classifier, Detector, Framing, Task};

use super::{
    Common, Outcome, Usage, chain, pictures, readable_by_the_service, say, say_json, trust,
};

/// What to do with models.
#[derive(Subcommand)]
pub enum ModelCommand {
    /// List the models and say which are in use.
    List(ListArgs),
    /// Verify models: manifest, SHA-256 of the network, and one run on a made-up picture.
    Verify(VerifyArgs),
    /// Verify a model and use it from now on.
    ///
    /// It is refused if it does worse in the exam than what is in use, which then stays so.
    Use(UseArgs),
    /// Add a model from a signed bundle and use it from now on.
    ///
    /// It is refused if it is not signed by a trusted key, damaged, older than what is there, or
    /// does worse in the exam than what is in use, which then stays so.
    Add(AddArgs),
    /// Fetch a detector that is published elsewhere and use it from now on.
    ///
    /// The file must have the SHA-256 that this program knows.
    Fetch(FetchArgs),
    /// Have a model look on beside those in use: it is compared, and decides nothing.
    ///
    /// The page shows where they disagree. Without a name, none looks on any longer.
    Shadow {
        /// Which model.
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
    /// Go back to the models that were in use before.
    Rollback,
    /// Make a bundle of a model directory.
    ///
    /// Without a signature beside it, `bundle.toml` is written into the directory, for
    /// `minisign -Sm DIR/bundle.toml`; run this again then. Without one ever, the bundle can be
    /// added by its SHA-256, which is printed.
    Pack(PackArgs),
    /// Measure the ranges of a network's values on pictures and write them into its manifest, so
    /// that it can compute in 8 bits (`models.precision` in the configuration).
    ///
    /// The pictures should show what the door sees, and not be those that accuracy is measured on.
    Quantise(QuantiseArgs),
}

/// Options of `model quantise`.
#[derive(Args)]
pub struct QuantiseArgs {
    /// The model directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Pictures, or directories of pictures.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pictures: Vec<PathBuf>,
}

/// Options of `model add`.
#[derive(Args)]
pub struct AddArgs {
    /// A file, or an http or https address.
    #[arg(value_name = "BUNDLE")]
    from: String,
    /// SHA-256 of the bundle, from its maker: it must have it, and then needs no signature.
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    #[command(flatten)]
    permit: PermitArgs,
}

/// Options of `model fetch`.
#[derive(Args)]
pub struct FetchArgs {
    /// Which: yolox-nano or nanodet-plus.
    #[arg(value_name = "NAME")]
    name: String,
    /// Fetch the same file from elsewhere.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    permit: PermitArgs,
}

/// What is meant although it is usually a mistake.
#[derive(Args)]
struct PermitArgs {
    /// Add it even if a newer version is there.
    #[arg(long)]
    allow_downgrade: bool,
    /// Add it without the exam.
    #[arg(long)]
    without_exam: bool,
}

/// Options of `model pack`.
#[derive(Args)]
pub struct PackArgs {
    /// The model directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Where the bundle goes.
    #[arg(short, long, value_name = "FILE.tar.gz")]
    out: PathBuf,
}

/// Options of `model list`.
#[derive(Args)]
pub struct ListArgs {
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Options of `model verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Which models; all if none is named.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Options of `model use`.
#[derive(Args)]
pub struct UseArgs {
    /// Which model. It replaces the one in use that does the same: a classifier the classifier, a
    /// detector the detector.
    #[arg(value_name = "NAME")]
    name: String,
    /// Use nothing beside it.
    #[arg(long)]
    alone: bool,
    /// Use it without the exam.
    #[arg(long)]
    without_exam: bool,
}

#[derive(Serialize)]
struct ListLine<'a> {
    name: &'a str,
    version: &'a str,
    task: Task,
    in_use: bool,
    licence: &'a str,
    sha256: &'a str,
    dir: String,
}

/// `pawlatch model …`.
pub fn run(command: &ModelCommand, common: &Common) -> Result<Outcome> {
    readable_by_the_service();
    match command {
        ModelCommand::List(args) => list(args, common),
        ModelCommand::Verify(args) => verify(args, common),
        ModelCommand::Use(args) => {
            let dir = common.models()?;
            let (entry, marks) = dir.put_in_use(&args.name, args.alone, args.without_exam)?;
            tell_marks(marks.as_ref());
            say(&format!("{} is now the {} in use", args.name, entry.manifest.task))?;
            Ok(Outcome::Done)
        }
        ModelCommand::Add(args) => {
            let trust = trust(&common.config()?, args.sha256.as_deref())?;
            let dir = common.models()?;
            added(&dir.add(&args.from, &trust, args.permit.permit(), &mut tell_step)?, common)
        }
        ModelCommand::Fetch(args) => {
            let known = FETCHABLE.iter().find(|model| model.name == args.name);
            let model = known.ok_or_else(|| {
                let names: Vec<&str> = FETCHABLE.iter().map(|model| model.name).collect();
                Usage(format!("{} is not known; there is {}", args.name, names.join(", ")))
            })?;
            let (url, permit) = (args.url.as_deref(), args.permit.permit());
            added(&common.models()?.fetch(model, url, permit, &mut tell_step)?, common)
        }
        ModelCommand::Shadow { name } => {
            common.models()?.put_in_shadow(name.as_deref())?;
            say(&match name {
                Some(name) => format!("{name} looks on beside the models in use; restart the door"),
                None => "no model looks on; restart the door".to_owned(),
            })?;
            Ok(Outcome::Done)
        }
        ModelCommand::Rollback => {
            let in_use = common.models()?.roll_back()?;
            say(&format!("in use again: {in_use}; restart the door"))?;
            Ok(Outcome::Done)
        }
        ModelCommand::Pack(args) => pack(args),
        ModelCommand::Quantise(args) => quantise(args),
    }
}

impl PermitArgs {
    const fn permit(&self) -> Permit {
        Permit { downgrade: self.allow_downgrade, unexamined: self.without_exam }
    }
}

fn tell_step(step: Step) {
    let done = match step {
        Step::Fetched => "fetched",
        Step::Unpacked => "believed and unpacked",
        Step::Verified => "runs",
        Step::Examined => "may be used",
        Step::Placed => "in its place",
        Step::InUse => "in use",
    };
    eprintln!("{done}");
}

fn tell_marks(marks: Option<&(Marks, Marks)>) {
    if let Some((new, old)) = marks {
        eprintln!(
            "exam of {} pictures: {} mistaken, {} missed; before: {} mistaken, {} missed",
            new.pictures, new.mistaken, new.missed, old.mistaken, old.missed
        );
    }
}

fn added(added: &Added, common: &Common) -> Result<Outcome> {
    tell_marks(added.marks.as_ref());
    let Added { id, task, .. } = added;
    say(&format!("{id} is now the {task} in use; restart the door"))?;
    // The configuration has the last word, so it may hide what was just done.
    let used = common.in_use()?.entries().any(|entry| entry.id() == *id);
    if !used {
        eprintln!("note: the configuration names another {task} (models.{task})");
    }
    Ok(Outcome::Done)
}

fn pack(args: &PackArgs) -> Result<Outcome> {
    let model = Entry::open(&args.dir)?;
    model.verify()?;
    let mut names = vec![MANIFEST_FILE.to_owned(), model.manifest.file.clone()];
    for beside in ["README.md", THRESHOLD_FILE] {
        if args.dir.join(beside).is_file() {
            names.push(beside.to_owned());
        }
    }
    let manifest = bundle::Manifest {
        bundle: bundle::FORMAT,
        kind: bundle::Kind::Model,
        name: model.manifest.name.clone(),
        version: model.manifest.version.parse().map_err(Error::msg)?,
        arch: None,
        files: bundle::describe(&args.dir, &names)?,
    };
    let path = args.dir.join(bundle::MANIFEST_FILE);
    let text = toml::to_string(&manifest)?;
    // A signature is of these very bytes; what is signed already stays as it is.
    if std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
        let signature = args.dir.join(bundle::SIGNATURE_FILE);
        if signature.exists() {
            std::fs::remove_file(&signature)
                .with_context(|| format!("cannot remove the old {}", signature.display()))?;
        }
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let failed = || format!("cannot write {}", args.out.display());
    let mut out = File::create(&args.out).with_context(failed)?;
    bundle::pack(&args.dir, &mut out)?;
    let mut out = File::open(&args.out).with_context(failed)?;
    let (_, sha256) = bundle::copy_hashed(&mut out, &mut std::io::sink()).with_context(failed)?;
    let signed = args.dir.join(bundle::SIGNATURE_FILE).exists();
    say(&format!("{} {}", sha256, args.out.display()))?;
    if !signed {
        eprintln!("not signed; sign {} and pack again, or add it by its SHA-256", path.display());
    }
    Ok(Outcome::Done)
}

fn quantise(args: &QuantiseArgs) -> Result<Outcome> {
    let entry = Entry::open(&args.dir)?;
    let model = entry.load_watched()?;
    let (outcome, ranges) = match entry.manifest.task {
        Task::Classifier => {
            let mut network = Classifier::new(model)?;
            let outcome = pictures::for_each(&args.pictures, |_, frame| {
                network.classify(frame, Rect::WHOLE, Framing::Whole)?;
                Ok(())
            })?;
            (outcome, network.ranges().cloned())
        }
        Task::Detector => {
            let mut network = Detector::new(model)?;
            let outcome = pictures::for_each(&args.pictures, |_, frame| {
                network.detect(frame, Rect::WHOLE)?;
                Ok(())
            })?;
            (outcome, network.ranges().cloned())
        }
    };
    let ranges = ranges.filter(|ranges| !ranges.is_empty());
    let ranges = ranges.context("it has no value that could be held in 8 bits on this CPU")?;
    entry.write_ranges(&ranges)?;
    say(&format!("{}: ranges of {} values", entry.id(), ranges.len()))?;
    Ok(outcome)
}

fn list(args: &ListArgs, common: &Common) -> Result<Outcome> {
    let dir = common.models()?;
    let mut outcome = Outcome::Done;
    let in_use: Vec<String> = match common.in_use() {
        Ok(in_use) => in_use.entries().map(Entry::id).collect(),
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            outcome = Outcome::Failed;
            Vec::new()
        }
    };
    for entry in dir.entries()? {
        match entry {
            Ok(entry) => {
                let id = entry.id();
                let Entry { dir, manifest: m } = entry;
                let in_use = in_use.contains(&id);
                if args.json {
                    say_json(&ListLine {
                        name: &m.name,
                        version: &m.version,
                        task: m.task,
                        in_use,
                        licence: &m.licence,
                        sha256: &m.sha256,
                        dir: dir.display().to_string(),
                    })?;
                } else {
                    let mark = if in_use { "*" } else { " " };
                    let (version, task, licence) = (&m.version, m.task, &m.licence);
                    say(&format!(
                        "{mark} {id:<28} {version:<10} {:<10} {licence:<22} {}",
                        task.to_string(),
                        &m.sha256[..12]
                    ))?;
                }
            }
            Err(error) => {
                tell(error);
                outcome = Outcome::Failed;
            }
        }
    }
    Ok(outcome)
}

fn verify(args: &VerifyArgs, common: &Common) -> Result<Outcome> {
    let dir = common.models()?;
    let entries = if args.names.is_empty() {
        let all = dir.entries()?;
        if all.is_empty() {
            return Err(ModelsError::Empty { root: dir.root().to_owned() }.into());
        }
        all
    } else {
        args.names.iter().map(|name| dir.entry(name)).collect()
    };
    let mut outcome = Outcome::Done;
    for entry in entries {
        match entry.and_then(|entry| entry.verify().map(|took| (entry, took))) {
            Ok((entry, took)) => say(&format!(
                "{} {}: sound, ran in {:.1} ms",
                entry.manifest.name,
                entry.manifest.version,
                took.as_secs_f64() * 1e3
            ))?,
            Err(error) => {
                tell(error);
                outcome = Outcome::Failed;
            }
        }
    }
    Ok(outcome)
}

fn tell(error: ModelsError) {
    eprintln!("error: {}", chain(&error.into()));
}
