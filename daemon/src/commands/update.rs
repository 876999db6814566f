//! `update install|status|rollback|retry`, and `exam`.

use anyhow::Result;
use clap::{Args, Subcommand};

use pawlatch::exam;
use pawlatch::releases::{self, MAX_ATTEMPTS, Releases, Step, version_of};

use super::{Common, Outcome, readable_by_the_service, say, say_json, trust};

/// What to do with releases.
#[derive(Subcommand)]
pub enum UpdateCommand {
    /// Install a release from a signed bundle; the next start of the door tries it.
    ///
    /// It is refused if it is not signed by a trusted key, damaged, for another processor, not
    /// newer, or fails its trial run on this door. Started, it must be healthy within five
    /// minutes, or the one before is started again.
    Install(InstallArgs),
    /// Show which releases there are, and how often the door has failed to start.
    Status,
    /// Give up the trial, or else go back to the release before, or to the packaged program.
    Rollback,
    /// Forget the failed starts, so that the next one begins anew.
    Retry,
}

/// Options of `update install`.
#[derive(Args)]
pub struct InstallArgs {
    /// A file, or an http or https address.
    #[arg(value_name = "BUNDLE")]
    from: String,
    /// SHA-256 of the bundle, from its maker: it must have it, and then needs no signature.
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Install it even if a newer release is in use.
    #[arg(long)]
    allow_downgrade: bool,
}

/// Put the models in use through the exam: bundled pictures and visits.
///
/// A gate against broken or mistaken networks and programs, not a measure of how good they are.
#[derive(Args)]
pub struct ExamArgs {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// `pawlatch update …`.
pub fn run(command: &UpdateCommand, common: &Common) -> Result<Outcome> {
    readable_by_the_service();
    let config = common.config()?;
    let releases = Releases::at(config.update.dir.clone());
    match command {
        UpdateCommand::Install(args) => {
            let trust = trust(&config, args.sha256.as_deref())?;
            let now = exam::examine(&common.in_use_of(&config.models)?)?;
            let arguments = common.arguments();
            let version = releases.install(
                &args.from,
                &trust,
                args.allow_downgrade,
                &|program, version| releases::exercise(program, version, &arguments, &now),
                &mut tell_step,
            )?;
            say(&format!("{version} is tried at the next start of the door; restart it"))?;
        }
        UpdateCommand::Status => {
            say(&format!("packaged  {}", env!("CARGO_PKG_VERSION")))?;
            for name in ["current", "trial", "previous"] {
                if let Some(version) = releases.link(name).as_deref().and_then(version_of) {
                    say(&format!("{name:<9} {version}"))?;
                }
            }
            let attempts = releases.attempts();
            if attempts > 0 {
                say(&format!("starts since the door was healthy: {attempts} of {MAX_ATTEMPTS}"))?;
            }
        }
        UpdateCommand::Rollback => match releases.roll_back()? {
            Some(version) => say(&format!("{version} is in use; restart the door"))?,
            None => say("the packaged program is in use; restart the door")?,
        },
        UpdateCommand::Retry => {
            releases.forget_failures()?;
            say("the next start begins anew; restart the door")?;
        }
    }
    Ok(Outcome::Done)
}

fn tell_step(step: Step) {
    let done = match step {
        Step::Fetched => "fetched",
        Step::Unpacked => "believed and unpacked; being tried out",
        Step::Tried => "does on this door what it must",
        Step::Placed => "in its place",
        Step::Staged => "next to be started",
    };
    eprintln!("{done}");
}

/// `pawlatch exam`.
pub fn exam(args: &ExamArgs, common: &Common) -> Result<Outcome> {
    let marks = exam::examine(&common.in_use()?)?;
    if args.json {
        say_json(&marks)?;
    } else {
        say(&format!(
            "{} pictures: {} of others taken for a dog, {} of the dog missed; visits: {} of others \
             let in, {} of the dog kept out",
            marks.pictures, marks.mistaken, marks.missed, marks.let_in, marks.kept_out
        ))?;
    }
    Ok(Outcome::Done)
}
