//! `demo`: the whole system on bundled pictures, drawn in the terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use image::imageops;
use pawlatch_core::door::{DesiredLatch, ProofKind};
use pawlatch_core::eye::Eye;
use pawlatch_core::sight::Class;
use pawlatch_core::units::Uptime;

use pawlatch::config::Config;
use pawlatch::demo::{Visit, Yard, visits};
use pawlatch::overlay::Overlay;
use pawlatch::replay::{Moment, Player, Summary, in_words, value};
use pawlatch::report::{Chapter, Story};

use super::replay::{localiser, write_report};
use super::{Common, Outcome};

/// Size of the picture in the terminal, characters; each shows two pixels, one above the other.
const COLUMNS: u32 = 72;
const ROWS: u32 = 26;
/// Length of the evidence bar, characters.
const BAR: usize = 24;
/// Without a terminal one line is printed for this much time, and when something happens.
const LINE_EVERY: Duration = Duration::from_millis(500);

/// Play visits through the whole system: no configuration, network or hardware needed.
///
/// A dog, a cat, both together and a hedgehog come to the door: photographs in the public domain,
/// walking over a photograph of a yard. Picture health, motion gate, networks, evidence, decision,
/// dead-man and latch are those of the real door; only the latch is simulated. What happens is
/// drawn in the terminal; an HTML report of it is left behind.
#[derive(Args)]
pub struct DemoArgs {
    /// Where the report goes.
    #[arg(long, default_value = "pawlatch-demo.html", value_name = "FILE.html")]
    report: PathBuf,
    /// Do not wait between frames, as without a terminal.
    #[arg(long)]
    fast: bool,
    /// Print lines instead of pictures, as without a terminal.
    #[arg(long)]
    plain: bool,
}

/// `pawlatch demo`.
pub fn run(args: &DemoArgs, common: &Common) -> Result<Outcome> {
    // The demonstration is of the defaults, whatever this machine is configured to do.
    let config = Config::default();
    let in_use = common.models_of(&config.models)?.in_use()?;
    in_use.required_classifier()?;
    let mut heat = localiser(&in_use)?;
    let yard = Yard::load()?;
    let terminal = io::stdout().is_terminal();
    let mut screen = Screen {
        pictures: terminal && !args.plain,
        paced: terminal && !args.fast,
        drawn: 0,
        last_line: None,
        began: Instant::now(),
        accept: config.door.budget.accept(),
    };
    let mut chapters = Vec::new();
    for visit in visits() {
        screen.begin(&visit)?;
        // A door of its own for each visit: no memory of the one before.
        let eye = Eye::new(config.gate.clone(), in_use.vision()?);
        let mut player = Player::new(eye, &config, None);
        let mut chapter = Chapter::new(visit.title, visit.about, &config.door);
        let passage = |now, latch| visit.passage(now, latch);
        player.play(&mut yard.film(&visit), &passage, &mut |moment| -> Result<()> {
            chapter.add(moment)?;
            screen.show(moment)
        })?;
        if let Some(heat) = &mut heat {
            chapter.add_heat(heat)?;
        }
        screen.end(&chapter.summary())?;
        chapters.push(chapter);
    }
    write_report(&args.report, &Story::new("Demonstration", &in_use, chapters))?;
    Ok(Outcome::Done)
}

/// The terminal, or lines where there is none.
struct Screen {
    pictures: bool,
    paced: bool,
    /// Lines drawn that the next picture goes over.
    drawn: usize,
    last_line: Option<Uptime>,
    began: Instant,
    accept: f32,
}

impl Screen {
    fn begin(&mut self, visit: &Visit) -> Result<()> {
        self.drawn = 0;
        self.last_line = None;
        self.began = Instant::now();
        self.put(&format!("\n{}. {}\n\n", visit.title, visit.about))
    }

    fn end(&mut self, summary: &Summary) -> Result<()> {
        let mut text = format!("\n  {}\n", in_words(summary.verdict));
        for reason in &summary.reasons {
            let _ = writeln!(text, "    {reason}");
        }
        self.put(&text)
    }

    fn show(&mut self, moment: &Moment<'_>) -> Result<()> {
        let decision = moment.decision;
        if self.paced {
            let due = Duration::from_millis(decision.at.as_millis());
            std::thread::sleep(due.saturating_sub(self.began.elapsed()));
        }
        if self.pictures {
            return if moment.frame.is_some() { self.draw(moment) } else { Ok(()) };
        }
        for event in &decision.events {
            self.put(&format!("  {:>8}  * {event}\n", decision.at.to_string()))?;
        }
        let due = self.last_line.is_none_or(|last| decision.at.since(last) >= LINE_EVERY);
        if due && moment.frame.is_some() {
            self.last_line = Some(decision.at);
            self.put(&format!("  {}\n", self.line(moment)))?;
        }
        Ok(())
    }

    /// Draws the picture and the line below it over the ones before.
    fn draw(&mut self, moment: &Moment<'_>) -> Result<()> {
        let Some(frame) = moment.frame else { return Ok(()) };
        let mut overlay = Overlay::new(frame);
        for track in moment.tracks {
            overlay.boxed(track.rect, track.best(), "");
        }
        let size = (COLUMNS, 2 * ROWS);
        let small = imageops::resize(
            &overlay.into_picture(),
            size.0,
            size.1,
            imageops::FilterType::Triangle,
        );
        let mut text = String::new();
        if self.drawn > 0 {
            let _ = write!(text, "\x1b[{}A", self.drawn);
        }
        for row in 0..ROWS {
            for column in 0..COLUMNS {
                let [r, g, b] = small.get_pixel(column, 2 * row).0;
                let [r2, g2, b2] = small.get_pixel(column, 2 * row + 1).0;
                let _ = write!(text, "\x1b[38;2;{r};{g};{b}m\x1b[48;2;{r2};{g2};{b2}m▀");
            }
            text.push_str("\x1b[0m\n");
        }
        let missing: Vec<&str> = moment.decision.missing().take(2).collect();
        let missing = if missing.is_empty() {
            "every proof holds".to_owned()
        } else {
            format!("missing: {}", missing.join("; "))
        };
        let _ = write!(text, "\x1b[2K{}\n\x1b[2K{}\n", self.line(moment), clipped(&missing, 100));
        self.drawn = ROWS as usize + 2;
        self.put(&text)
    }

    /// One line: time, state, latch, evidence as a bar, who is followed.
    fn line(&self, moment: &Moment<'_>) -> String {
        let decision = moment.decision;
        let evidence = value(decision, ProofKind::Evidence);
        let full = ((evidence / self.accept).clamp(0.0, 1.0) * BAR as f32).round() as usize;
        let bar = format!("{}{}", "#".repeat(full), "-".repeat(BAR - full));
        let latch = match decision.latch {
            DesiredLatch::Locked => "locked",
            DesiredLatch::UnlockedUntil(_) => "OPEN",
        };
        let who: Vec<String> = moment
            .tracks
            .iter()
            .map(|track| {
                let class = track.best();
                let sure = track.evidence(class);
                if class == Class::Other && sure <= 0.0 {
                    format!("{}: ?", track.id)
                } else {
                    format!("{}: {class} {sure:+.1}", track.id)
                }
            })
            .collect();
        format!(
            "{:>8}  {:<9} {latch:<6} dog [{bar}] {evidence:4.1}/{:.1}  {}",
            decision.at.to_string(),
            decision.state.name(),
            self.accept,
            who.join(", ")
        )
    }

    fn put(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .context("cannot write to standard output")
    }
}

fn clipped(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}
