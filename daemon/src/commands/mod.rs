//! One file per group of subcommands.
//!
//! Standard output carries results only; everything else goes to standard error.

mod bench;
mod models;
mod perceive;
mod pictures;

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Error, Result};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use pawlatch::models::{InUse, ModelsDir};

/// Exit code: something failed, and standard error says what.
pub const EXIT_FAILED: u8 = 1;
/// Exit code: the command line or the configuration is wrong. Also what clap uses.
pub const EXIT_USAGE: u8 = 2;
/// Exit code: a replay decided otherwise than was recorded.
pub const EXIT_DIFFERS: u8 = 3;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  something failed; standard error says what, and what to do about it
  2  the command line or the configuration is wrong
  3  replay: the decisions differ from the recorded ones

Standard output carries results only, with --json one JSON object a line. Progress and logs go to
standard error; PAWLATCH_LOG sets what is logged, such as PAWLATCH_LOG=debug.";

/// A smart dog door: lets the dog through and keeps the neighbour's cats outside.
#[derive(Parser)]
#[command(name = "pawlatch", version, about, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args)]
struct Common {
    /// Directory with one directory per model.
    ///
    /// Without it: the configuration, then PAWLATCH_MODELS_DIR, then the first of these that
    /// holds a model: ./models, models or share/pawlatch/models beside or above the program,
    /// /usr/share/pawlatch/models.
    #[arg(long, global = true, value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// Configuration file.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Say what pictures show.
    Classify(perceive::ClassifyArgs),
    /// Find the animals and persons in pictures.
    Detect(perceive::DetectArgs),
    /// Show where the classifier sees a class, as a heat map and boxes.
    Localize(perceive::LocalizeArgs),
    /// List, verify or choose models.
    #[command(subcommand)]
    Model(models::ModelCommand),
    /// Measure how long a network takes.
    Bench(bench::BenchArgs),
}

/// How a command ended that was not stopped by an error.
pub enum Outcome {
    /// Everything was done.
    Done,
    /// Some of it failed; each failure has been told on standard error.
    Failed,
    /// A replay decided otherwise than was recorded.
    Differs,
}

/// Runs the command.
pub fn run(cli: Cli) -> Result<Outcome> {
    let common = &cli.common;
    match cli.command {
        Command::Classify(args) => perceive::classify(&args, common),
        Command::Detect(args) => perceive::detect(&args, common),
        Command::Localize(args) => perceive::localize(&args, common),
        Command::Model(command) => models::run(&command, common),
        Command::Bench(args) => bench::run(&args),
    }
}

/// Sends logs to standard error: what `PAWLATCH_LOG` says, otherwise what a person at a terminal
/// needs to know.
pub fn log_to_stderr(cli: &Cli) {
    let usual = match cli.command {
        _ => "warn,tract=error,tract_core=error,tract_onnx=error",
    };
    let filter = std::env::var("PAWLATCH_LOG").unwrap_or_else(|_| usual.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(io::stderr)
        .init();
}

/// An error with all its causes on one line each.
pub fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut said = text.clone();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some libraries repeat their cause in their own message.
        if !said.contains(&cause) {
            text.push_str("\n  because: ");
            text.push_str(&cause);
            said = cause;
        }
    }
    text
}

/// The exit code for an error that stopped a command.
pub fn exit_code(error: &Error) -> u8 {
    if error.is::<Usage>() { EXIT_USAGE } else { EXIT_FAILED }
}

/// Whether the reader of standard output went away.
pub fn is_broken_pipe(error: &Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// A command line that is understood but makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

impl Common {
    fn models(&self) -> Result<ModelsDir> {
        Ok(ModelsDir::find(self.models_dir.as_deref(), None)?)
    }

    fn in_use(&self) -> Result<InUse> {
        Ok(self.models()?.in_use()?)
    }
}

/// Writes one line to standard output.
fn say(line: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{line}").context("cannot write to standard output")
}

/// Writes `value` as one line of JSON to standard output.
fn say_json(value: &impl Serialize) -> Result<()> {
    say(&serde_json::to_string(value)?)
}
