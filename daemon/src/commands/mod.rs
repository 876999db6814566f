//! One file per group of subcommands.
//!
//! Standard output carries results only; everything else goes to standard error.

mod bench;
mod boot;
mod check;
mod demo;
mod doctor;
mod door;
mod events;
mod hardware;
mod models;
mod perceive;
mod pictures;
mod replay;
mod update;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Error, Result};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use pawlatch::bundle::Trust;
use pawlatch::config::{Config, ConfigError, ModelSettings};
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

// Commands without a line here are described at their options.
#[derive(Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    /// Run the door.
    Run,
    /// Start the door: count the start, and run the release or the packaged program, whichever is
    /// next on the ladder of docs/updates.md. This is what the service does.
    ///
    /// After ten starts without a healthy door it stays locked for ten minutes before the next.
    Boot,
    /// Drive the latch to locked and exit, whatever else is wrong.
    ///
    /// Needs no model and no camera. If the configuration cannot be used, what its sections
    /// `latch` and `lines` say is locked; if those cannot be used either, the latch of the default
    /// configuration. The exit code is then 2.
    Lock,
    /// Set the password of the owner's page, read from standard input.
    ///
    /// Ends all sessions. This is also the way to log in again when it was forgotten.
    Password,
    /// Check configuration, models, camera, lines and limits, without touching the latch.
    ///
    /// Every model in use is verified by its SHA-256 and run once on a made-up picture.
    Check,
    Doctor(doctor::DoctorArgs),
    /// Try the latch out on wiring day.
    #[command(subcommand)]
    Latch(hardware::LatchCommand),
    /// Try the light out.
    #[command(subcommand)]
    Led(hardware::LedCommand),
    /// Try button, beam and motion sensor out.
    #[command(subcommand)]
    Button(hardware::ButtonCommand),
    /// Try a camera out.
    #[command(subcommand)]
    Camera(hardware::CameraCommand),
    Classify(perceive::ClassifyArgs),
    Detect(perceive::DetectArgs),
    Localize(perceive::LocalizeArgs),
    Replay(replay::ReplayArgs),
    /// List, show or export what the journal recorded.
    #[command(subcommand)]
    Events(events::EventsCommand),
    /// List, verify, choose, add or pack models, or go back to those before.
    #[command(subcommand)]
    Model(models::ModelCommand),
    /// Install a release of this program, go back to the one before, or show which is in use.
    #[command(subcommand)]
    Update(update::UpdateCommand),
    Exam(update::ExamArgs),
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
    /// Done as far as it can be with a configuration that is wrong.
    Misused,
}

/// Runs the command.
pub fn run(cli: Cli) -> Result<Outcome> {
    let common = &cli.common;
    match cli.command {
        Command::Demo(args) => demo::run(&args, common),
        Command::Run => door::run(common),
        Command::Boot => boot::run(common),
        Command::Lock => door::lock(common),
        Command::Password => door::password(common),
        Command::Check => check::run(common),
        Command::Doctor(args) => doctor::run(&args, common),
        Command::Latch(command) => hardware::latch(&command, common),
        Command::Led(command) => hardware::led(&command, common),
        Command::Button(command) => hardware::button(&command, common),
        Command::Camera(command) => hardware::camera(&command, common),
        Command::Replay(args) => replay::run(&args, common),
        Command::Events(command) => events::run(&command, common),
        Command::Classify(args) => perceive::classify(&args, common),
        Command::Detect(args) => perceive::detect(&args, common),
        Command::Localize(args) => perceive::localize(&args, common),
        Command::Model(command) => models::run(&command, common),
        Command::Update(command) => update::run(&command, common),
        Command::Exam(args) => update::exam(&args, common),
        Command::Bench(args) => bench::run(&args, common),
    }
}

/// Sends logs to standard error: what `PAWLATCH_LOG` says; otherwise for `run` what the
/// configuration says, and for all else warnings.
pub fn log_to_stderr(cli: &Cli) {
    let usual = match cli.command {
        Command::Run | Command::Boot => {
            cli.common.config().map_or("info".to_owned(), |c| c.log_filter)
        }
        _ => "warn".to_owned(),
    };
    let filter = std::env::var("PAWLATCH_LOG").unwrap_or(usual);
    let (told, misread) = match filter.parse::<Targets>() {
        Ok(told) => (told, None),
        Err(error) => (Targets::new().with_default(LevelFilter::WARN), Some(error)),
    };
    // Other people's networks make tract warn; what is wrong with one is told by its error.
    let tract = ["tract_core", "tract_onnx", "tract_hir"].map(|t| (t, LevelFilter::ERROR));
    let targets = told.with_targets(tract);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines.with_filter(targets)).init();
    if let Some(error) = misread {
        tracing::warn!("PAWLATCH_LOG={filter} is not understood, only warnings are told: {error}");
    }
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
    let usage = error.is::<Usage>() || error.is::<ConfigError>();
    if usage { EXIT_USAGE } else { EXIT_FAILED }
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
    fn config(&self) -> Result<Config> {
        Ok(Config::load(self.config.as_deref())?)
    }

    /// These options as arguments, for another program.
    fn arguments(&self) -> Vec<String> {
        let options = [("--config", &self.config), ("--models-dir", &self.models_dir)];
        options
            .into_iter()
            .filter_map(|(name, path)| {
                Some([name.to_owned(), path.as_ref()?.display().to_string()])
            })
            .flatten()
            .collect()
    }

    fn models(&self) -> Result<ModelsDir> {
        self.models_of(&self.config()?.models)
    }

    fn models_of(&self, settings: &ModelSettings) -> Result<ModelsDir> {
        // The default is only one of the usual places, not the owner's word.
        let usual = Config::default().models.dir;
        let configured = (settings.dir != usual).then_some(settings.dir.as_path());
        Ok(ModelsDir::find(self.models_dir.as_deref(), configured)?)
    }

    fn in_use(&self) -> Result<InUse> {
        self.in_use_of(&self.config()?.models)
    }

    fn in_use_of(&self, settings: &ModelSettings) -> Result<InUse> {
        let (classifier, detector) = (settings.classifier.as_deref(), settings.detector.as_deref());
        let chosen = self.models_of(settings)?.chosen(classifier, detector)?;
        Ok(InUse { precision: settings.precision, ..chosen })
    }
}

/// Whom to believe: the configured keys, that of this build, and who knows the hash.
fn trust(config: &Config, sha256: Option<&str>) -> Result<Trust> {
    let mut keys = config.update.public_keys.clone();
    keys.extend(option_env!("PAWLATCH_RELEASE_KEY").map(str::to_owned));
    let mut trust = Trust::in_keys(&keys)?;
    if let Some(hash) = sha256 {
        if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Usage(format!("--sha256 {hash}: expected 64 hexadecimal digits")).into());
        }
        trust.pinned = Some(hash.to_ascii_lowercase());
    }
    Ok(trust)
}

/// Whatever the mask of the shell: what root puts there is read by the service's own user.
fn readable_by_the_service() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
}

/// Writes one line to standard output.
fn say(line: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{line}").context("cannot write to standard output")
}

/// Writes `value` as one line of JSON to standard output.
fn say_json(value: &impl Serialize) -> Result<()> {
    say(&serde_json::to_string(value)?)
}
