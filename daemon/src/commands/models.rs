//! `model list|verify|use`.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;

use pawlatch::models::{Entry, ModelsError};
use pawlatch_core::vision::Task;

use super::{Common, Outcome, chain, say, say_json};

/// What to do with models.
#[derive(Subcommand)]
pub enum ModelCommand {
    /// List the models and say which are in use.
    List(ListArgs),
    /// Verify models: manifest, SHA-256 of the network, and one run on a made-up picture.
    Verify(VerifyArgs),
    /// Verify a model and use it from now on.
    Use(UseArgs),
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
    match command {
        ModelCommand::List(args) => list(args, common),
        ModelCommand::Verify(args) => verify(args, common),
        ModelCommand::Use(args) => {
            let dir = common.models()?;
            let entry = dir.put_in_use(&args.name, args.alone)?;
            say(&format!("{} is now the {} in use", args.name, entry.manifest.task))?;
            Ok(Outcome::Done)
        }
    }
}

fn list(args: &ListArgs, common: &Common) -> Result<Outcome> {
    let dir = common.models()?;
    let mut outcome = Outcome::Done;
    let in_use: Vec<String> = match common.in_use() {
        Ok(in_use) => in_use.entries().map(|e| e.manifest.name.clone()).collect(),
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            outcome = Outcome::Failed;
            Vec::new()
        }
    };
    for entry in dir.entries()? {
        match entry {
            Ok(Entry { dir, manifest: m }) => {
                let in_use = in_use.contains(&m.name);
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
                    let (name, version, task, licence) = (&m.name, &m.version, m.task, &m.licence);
                    say(&format!(
                        "{mark} {name:<28} {version:<10} {:<10} {licence:<22} {}",
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
