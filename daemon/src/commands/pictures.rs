//! Pictures given on the command line: files, and directories of files.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

use pawlatch::models::read_limited;
use pawlatch_core::frame::Frame;
use pawlatch_core::units::Uptime;

use super::{Outcome, Usage, chain, is_broken_pipe};

/// Largest picture file that is read, bytes.
const MAX_PICTURE_BYTES: u64 = 256 << 20;
/// Endings of the picture files that are taken from a directory.
const ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "gif", "bmp", "webp"];
/// How deep directories are searched.
const MAX_DEPTH: usize = 8;

/// Reads and decodes one picture.
///
/// # Errors
/// If it cannot be read or is no picture; names the file and the remedy.
pub fn read(path: &Path) -> Result<Frame> {
    let bytes = read_limited(path, MAX_PICTURE_BYTES)?;
    Frame::decode(bytes, Uptime::ZERO)
        .with_context(|| format!("{} cannot be used as a picture", path.display()))
}

/// The picture files that `paths` name: a file is itself, a directory all pictures in it and
/// below it, in order of name.
///
/// # Errors
/// If a directory cannot be read or holds no picture.
fn gather(path: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        found.push(path.to_owned());
        return Ok(());
    }
    let mut inside = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
        .with_context(|| format!("cannot read the directory {}", path.display()))?;
    inside.sort();
    let before = found.len();
    for entry in inside {
        if entry.is_dir() {
            if depth < MAX_DEPTH {
                // An empty directory among others is no fault.
                let _ = gather(&entry, depth + 1, found);
            }
        } else if is_picture(&entry) {
            found.push(entry);
        }
    }
    if found.len() == before {
        let endings = ENDINGS.join(", .");
        return Err(Usage(format!("{} holds no picture (.{endings})", path.display())).into());
    }
    Ok(())
}

/// Whether the name of `path` ends like a picture's.
pub fn is_picture(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    ending.is_some_and(|e| ENDINGS.contains(&e.as_str()))
}

/// Calls `each` for every picture that `paths` name. A picture that cannot be used is told on
/// standard error, and the others are still processed.
///
/// # Errors
/// Only if standard output is gone.
pub fn for_each(
    paths: &[PathBuf],
    mut each: impl FnMut(&Path, &Frame) -> Result<()>,
) -> Result<Outcome> {
    let mut outcome = Outcome::Done;
    let mut files = Vec::new();
    for path in paths {
        if let Err(error) = gather(path, 0, &mut files) {
            eprintln!("error: {}", chain(&error));
            outcome = Outcome::Failed;
        }
    }
    let bar = progress(files.len() as u64);
    for file in &files {
        let done = read(file)
            .and_then(|frame| each(file, &frame).with_context(|| format!("{}", file.display())));
        match done {
            Ok(()) => {}
            Err(error) if is_broken_pipe(&error) => return Err(error),
            Err(error) => {
                bar.suspend(|| tell(&error));
                outcome = Outcome::Failed;
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(outcome)
}

fn tell(error: &Error) {
    eprintln!("error: {}", chain(error));
}

/// A bar on standard error if that is a terminal and there is more than one thing to do.
pub fn progress(count: u64) -> ProgressBar {
    if count < 2 || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(count);
    if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len}  {eta} left") {
        bar.set_style(style);
    }
    bar
}
