//! `replay`: deciding again, in virtual time.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use jiff::ZonedDateTime;
use pawlatch_core::door::Decision;
use pawlatch_core::eye::Eye;
use pawlatch_core::vision::Localiser;

use pawlatch::camera::{self, CameraSettings, Source};
use pawlatch::clock::Clock;
use pawlatch::journal::{Archive, Replayed};
use pawlatch::models::InUse;
use pawlatch::replay::{Moment, Player, Summary, Tally, in_words};
use pawlatch::report::{Chapter, Story};

use super::door::gallery;
use super::{Common, Outcome, Usage, say, say_json};

/// Decide on recorded frames in virtual time, the same way every time
///
/// SOURCE is a directory of pictures, played in order of name at --fps, or a video (H.264 in MP4,
/// animated GIF or WebP), played at its own pace. The frames go through the whole system: picture
/// health, motion gate, networks, evidence, decision, dead-man and a simulated latch. There is a
/// step for every frame, one every 50 ms between them, and more until the door is at rest.
///
/// EVENT is the number of an approach in the journal (`pawlatch events list`). Its recorded
/// inputs are decided on again and the decisions compared byte for byte with the recorded ones;
/// a difference is shown and ends with exit code 3.
///
/// With --json, one line a decision and at last {"opened","verdict","reasons":[…]}.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct ReplayArgs {
    /// A directory of pictures, a video, or the number of a recorded approach.
    #[arg(value_name = "SOURCE|EVENT")]
    source: String,
    /// Frames per second at which a directory is played.
    #[arg(long, default_value_t = 10.0, value_name = "FPS")]
    fps: f32,
    /// Local time of the first frame, such as 2026-11-24T22:30[Europe/Berlin]. Without it, rules
    /// with a schedule count as unknown.
    #[arg(long, value_name = "TIME")]
    at: Option<ZonedDateTime>,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
    /// Write a report: one HTML file that needs nothing else.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// `pawlatch replay`.
pub fn run(args: &ReplayArgs, common: &Common) -> Result<Outcome> {
    let is_number = args.source.bytes().all(|b| b.is_ascii_digit());
    match args.source.parse::<i64>() {
        Ok(number) if is_number && !Path::new(&args.source).exists() => {
            replay_event(number, args, common)
        }
        _ => replay_source(args, common),
    }
}

fn replay_source(args: &ReplayArgs, common: &Common) -> Result<Outcome> {
    if !(0.1..=240.0).contains(&args.fps) {
        return Err(Usage(format!("--fps {} should be 0.1 to 240", args.fps)).into());
    }
    let source: Source = args.source.parse()?;
    if matches!(source, Source::Live(_)) {
        let told = format!("{source} is a camera; replay plays recordings");
        return Err(Usage(told).into());
    }
    let config = common.config()?;
    let settings = CameraSettings {
        source: Some(source),
        fallback: None,
        fps: args.fps,
        repeat: false,
        ..config.camera.clone()
    };
    let mut source = camera::open(&settings, Clock::start())?;
    let in_use = common.in_use_of(&config.models)?;
    let gallery = gallery(&config, &in_use);
    let roll = gallery.roll().clone();
    let eye = Eye::new(config.gate.clone(), in_use.vision()?.knowing(gallery));
    let mut player = Player::new(eye, &config, args.at.clone()).knowing(roll);
    let mut chapter =
        args.report.as_ref().map(|_| Chapter::new(&args.source, &about(args), &config.door));
    let mut tally = Tally::default();
    let mut told_failure = false;
    player.play(source.as_mut(), &|_, _| None, &mut |moment: &Moment<'_>| -> Result<()> {
        if let Some(failure) = moment.failure.filter(|_| !told_failure) {
            eprintln!("error: at {}: {failure}", moment.decision.at);
            told_failure = true;
        }
        tally.add(moment.decision, moment.frame.is_some());
        if let Some(chapter) = &mut chapter {
            chapter.add(moment)?;
        }
        tell(args, moment.decision)
    })?;
    let summary = tally.summary();
    if let (Some(path), Some(mut chapter)) = (&args.report, chapter) {
        if let Some(mut localiser) = localiser(&in_use)? {
            chapter.add_heat(&mut localiser)?;
        }
        write_report(path, &Story::new("Replay", &in_use, vec![chapter]))?;
    }
    conclude(args, &summary)?;
    Ok(if told_failure { Outcome::Failed } else { Outcome::Done })
}

fn replay_event(number: i64, args: &ReplayArgs, common: &Common) -> Result<Outcome> {
    let config = common.config()?;
    let archive = Archive::open(&config.journal.dir)?;
    let approach = archive.approach(number)?.with_context(|| {
        format!(
            "there is no approach {number} in the journal {}; `pawlatch events list` shows them",
            config.journal.dir.display()
        )
    })?;
    let path = approach.recording.with_context(|| {
        format!("approach {number} has no recording: it was broken off, or evicted to save space")
    })?;
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read the recording {}", path.display()))?;
    let replayed = Replayed::play(&text)
        .with_context(|| format!("cannot play the recording {}", path.display()))?;
    let mut tally = Tally::default();
    let title = format!("Approach {number}");
    let about = format!("Recorded from {}, decided again.", approach.began_wall);
    let mut chapter = args.report.as_ref().map(|_| Chapter::new(&title, &about, &config.door));
    for (step, decision) in &replayed.steps {
        tally.add(decision, step.input.sightings.is_some());
        if let Some(chapter) = &mut chapter {
            chapter.add(&Moment {
                decision,
                frame: None,
                sightings: step.input.sightings.as_ref(),
                failure: None,
                tracks: &[],
                latch: step.input.latch,
            })?;
        }
        tell(args, decision)?;
    }
    if let (Some(path), Some(mut chapter)) = (&args.report, chapter) {
        for picture in &approach.pictures {
            chapter.add_stored(picture.at, &picture.path)?;
        }
        write_report(path, &Story::new("Replay", &InUse::default(), vec![chapter]))?;
    }
    conclude(args, &tally.summary())?;
    let steps = replayed.steps.len();
    let Some(at) = replayed.differs_at else {
        eprintln!("equal: all {steps} decisions are those recorded, byte for byte");
        return Ok(Outcome::Done);
    };
    eprintln!("different: decision {} of {steps} is not the recorded one", at + 1);
    // Two lines a step after the head: the input, then the decision.
    if let Some(recorded) = text.lines().nth(2 + 2 * at) {
        eprintln!("  recorded: {recorded}");
    }
    if let Some((_, decision)) = replayed.steps.get(at) {
        eprintln!("  decided:  {}", serde_json::to_string(decision)?);
    }
    Ok(Outcome::Differs)
}

/// Shows a decision: as JSON every one, otherwise those in which something happened.
fn tell(args: &ReplayArgs, decision: &Decision) -> Result<()> {
    if args.json {
        return say_json(decision);
    }
    decision
        .events
        .iter()
        .try_for_each(|event| say(&format!("{:>10}  {event}", event.at.to_string())))
}

fn conclude(args: &ReplayArgs, summary: &Summary) -> Result<()> {
    if args.json {
        return say_json(summary);
    }
    say(in_words(summary.verdict))?;
    summary.reasons.iter().try_for_each(|reason| say(&format!("  {reason}")))
}

fn about(args: &ReplayArgs) -> String {
    let at = args.at.as_ref().map_or(String::new(), |at| format!(", from {at} on"));
    format!("Played in virtual time; a directory at {} pictures a second{at}.", args.fps)
}

/// The classifier in its fully convolutional form, for heat maps in reports. `None` if there is
/// none or it has no such form.
pub fn localiser(in_use: &InUse) -> Result<Option<Localiser>> {
    let Some(entry) = &in_use.classifier else { return Ok(None) };
    Ok(Localiser::new(&entry.load()?).ok())
}

/// Writes the report and says so on standard error.
pub fn write_report(path: &Path, story: &Story) -> Result<()> {
    std::fs::write(path, story.to_html())
        .with_context(|| format!("cannot write the report {}", path.display()))?;
    eprintln!("report: {}", path.display());
    Ok(())
}
