//! `events list|show|export`: what the journal recorded.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use pawlatch_core::event::Event;
use serde::Serialize;

use pawlatch::journal::{Archive, StoredApproach, StoredEvent};
use pawlatch::replay::in_words;

use super::{Common, Outcome, say, say_json};

/// What to do with the journal.
#[derive(Subcommand)]
pub enum EventsCommand {
    /// List the approaches, newest last; with --all every event.
    List(ListArgs),
    /// Show one approach: its events, pictures and recording.
    Show(ShowArgs),
    /// Copy one approach with its pictures and recording into a directory.
    Export(ExportArgs),
}

/// Options of `events list`.
#[derive(Args)]
pub struct ListArgs {
    /// How many.
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: usize,
    /// Every event instead of whole approaches.
    #[arg(long)]
    all: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Options of `events show`.
#[derive(Args)]
pub struct ShowArgs {
    /// Number of the approach.
    #[arg(value_name = "APPROACH")]
    approach: i64,
    /// Print one JSON object a line: the approach, then its events.
    #[arg(long)]
    json: bool,
}

/// Options of `events export`.
#[derive(Args)]
pub struct ExportArgs {
    /// Number of the approach.
    #[arg(value_name = "APPROACH")]
    approach: i64,
    /// Directory to make; it must not exist.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Serialize)]
struct ApproachLine<'a> {
    approach: i64,
    run: i64,
    began: &'a str,
    seconds: Option<f64>,
    verdict: Option<pawlatch_core::event::Verdict>,
    pictures: Vec<String>,
    recording: Option<String>,
}

impl<'a> From<&'a StoredApproach> for ApproachLine<'a> {
    fn from(a: &'a StoredApproach) -> Self {
        Self {
            approach: a.id,
            run: a.run,
            began: &a.began_wall,
            seconds: a.ended.map(|ended| ended.since(a.began).as_secs_f64()),
            verdict: a.verdict,
            pictures: a.pictures.iter().map(|p| p.path.display().to_string()).collect(),
            recording: a.recording.as_ref().map(|p| p.display().to_string()),
        }
    }
}

#[derive(Serialize)]
struct EventLine<'a> {
    id: i64,
    run: i64,
    approach: Option<i64>,
    wall: &'a str,
    words: String,
    event: &'a Event,
}

impl<'a> From<&'a StoredEvent> for EventLine<'a> {
    fn from(e: &'a StoredEvent) -> Self {
        let (id, run, approach) = (e.id, e.run, e.approach);
        Self { id, run, approach, wall: &e.wall, words: e.event.to_string(), event: &e.event }
    }
}

/// `pawlatch events …`.
pub fn run(command: &EventsCommand, common: &Common) -> Result<Outcome> {
    let dir = common.config()?.journal.dir;
    let archive = Archive::open(&dir).context("the journal cannot be read; has the door run?")?;
    match command {
        EventsCommand::List(args) if args.all => {
            for event in archive.events(args.limit)? {
                say_event(&event, args.json)?;
            }
        }
        EventsCommand::List(args) => {
            for approach in archive.approaches(args.limit)? {
                say_approach(&approach, args.json)?;
            }
        }
        EventsCommand::Show(args) => {
            let approach = find(&archive, args.approach, &dir)?;
            say_approach(&approach, args.json)?;
            for event in archive.events_of(approach.id)? {
                say_event(&event, args.json)?;
            }
            if !args.json {
                let files = approach.pictures.iter().map(|p| &p.path);
                for path in files.chain(&approach.recording) {
                    say(&format!("  {}", path.display()))?;
                }
            }
        }
        EventsCommand::Export(args) => export(&archive, args, &dir)?,
    }
    Ok(Outcome::Done)
}

fn find(archive: &Archive, id: i64, dir: &Path) -> Result<StoredApproach> {
    archive.approach(id)?.with_context(|| {
        format!("there is no approach {id} in {}; `pawlatch events list` shows them", dir.display())
    })
}

fn export(archive: &Archive, args: &ExportArgs, dir: &Path) -> Result<()> {
    let approach = find(archive, args.approach, dir)?;
    let to = &args.output;
    std::fs::create_dir(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut lines = vec![serde_json::to_string(&ApproachLine::from(&approach))?];
    for event in archive.events_of(approach.id)? {
        lines.push(serde_json::to_string(&EventLine::from(&event))?);
    }
    let listing = to.join("events.jsonl");
    std::fs::write(&listing, lines.join("\n") + "\n")
        .with_context(|| format!("cannot write {}", listing.display()))?;
    let files = approach.pictures.iter().map(|p| &p.path);
    for path in files.chain(&approach.recording) {
        let Some(name) = path.file_name() else { continue };
        std::fs::copy(path, to.join(name))
            .with_context(|| format!("cannot copy {}", path.display()))?;
    }
    say(&to.display().to_string())
}

fn say_approach(approach: &StoredApproach, json: bool) -> Result<()> {
    if json {
        return say_json(&ApproachLine::from(approach));
    }
    let how = approach.verdict.map_or("It was broken off.", in_words);
    say(&format!(
        "{:>6}  {}  {how}  {} pictures{}",
        approach.id,
        approach.began_wall,
        approach.pictures.len(),
        if approach.recording.is_some() { ", can be replayed" } else { "" }
    ))
}

fn say_event(event: &StoredEvent, json: bool) -> Result<()> {
    if json {
        return say_json(&EventLine::from(event));
    }
    let approach = event.approach.map_or(String::new(), |id| format!("approach {id}"));
    say(&format!("{}  {:<14} {}", event.wall, approach, event.event))
}
