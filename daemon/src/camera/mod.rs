//! Where pictures come from: one trait, one file per kind of source.
//!
//! A source gives frames stamped with its own time, counted from its first frame: the time of
//! the medium, not of the machine. Replay uses these times as they are, in virtual time; the
//! live capture thread waits until they are due and stamps each frame anew with the running
//! time.

mod capture;
mod directory;
mod simulated;
mod video;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use pawlatch_core::frame::{Frame, PictureError};
use pawlatch_core::units::Uptime;
use thiserror::Error;

use crate::demo::{DemoError, Endless};

pub use capture::capture;
pub use directory::DirectorySource;
pub use simulated::{Actor, Scene, SimulatedSource};
pub use video::VideoSource;

/// Gives one frame after another.
pub trait FrameSource: Send {
    /// The next frame, stamped with the source's own time, which never runs backwards; `None` at
    /// the end.
    ///
    /// # Errors
    /// If a frame cannot be had. The source is then of no further use.
    fn next(&mut self) -> Result<Option<Frame>, CameraError>;
}

/// Where pictures come from, as the owner writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `dir:PATH`: pictures in name order.
    Directory(PathBuf),
    /// `file:PATH`: a video, an animation or one picture.
    File(PathBuf),
    /// `sim:`: a simulated yard with nobody in it.
    Simulated,
    /// `demo:`: the visits of the demonstration, without end.
    Demo,
    /// A bare path: a directory or a file, whichever it is when opened.
    Path(PathBuf),
}

impl FromStr for Source {
    type Err = CameraError;
    fn from_str(text: &str) -> Result<Self, CameraError> {
        let wrong = || CameraError::Source { given: text.to_owned() };
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Directory(path.into())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("sim", "")) => Ok(Self::Simulated),
            Some(("demo", "")) => Ok(Self::Demo),
            // A path may hold a colon, but a scheme we do not know is no path.
            Some((scheme, _)) if !scheme.contains('/') => Err(wrong()),
            _ if text.is_empty() => Err(wrong()),
            _ => Ok(Self::Path(text.into())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Simulated => f.write_str("sim:"),
            Self::Demo => f.write_str("demo:"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How to get at pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct CameraSettings {
    /// Where from; `None` if the owner has not said.
    pub source: Option<Source>,
    /// Frames per second of sources that have no time of their own.
    pub fps: f32,
    /// Whether to begin again at the end.
    pub repeat: bool,
}

/// Why there is no picture.
#[derive(Debug, Error)]
pub enum CameraError {
    /// The source is not of a known kind.
    #[error(
        "\"{given}\" is no source of pictures; expected dir:PATH, file:PATH, sim:, demo: or a path"
    )]
    Source {
        /// What was given.
        given: String,
    },
    /// No source is configured.
    #[error("no camera is configured; set `camera.source`")]
    Unset,
    /// The file or directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The demonstration cannot be shown.
    #[error("the demonstration cannot be shown")]
    Demo(#[from] DemoError),
    /// A directory without pictures.
    #[error("{} holds no picture (JPEG, PNG, GIF, BMP, WebP)", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// A picture cannot be decoded.
    #[error("cannot use the picture {}", path.display())]
    Picture {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: PictureError,
    },
    /// A video or animation cannot be decoded.
    #[error("cannot play {}: {problem}", path.display())]
    Video {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// Opens the configured source.
///
/// # Errors
/// If none is configured, or it cannot be read.
pub fn open(settings: &CameraSettings) -> Result<Box<dyn FrameSource>, CameraError> {
    let source = settings.source.as_ref().ok_or(CameraError::Unset)?;
    let once = open_source(source, settings.fps)?;
    if !settings.repeat || matches!(source, Source::Simulated | Source::Demo) {
        return Ok(once);
    }
    Ok(Box::new(Repeated {
        source: source.clone(),
        fps: settings.fps,
        current: once,
        offset: Duration::ZERO,
        last: None,
    }))
}

fn open_source(source: &Source, fps: f32) -> Result<Box<dyn FrameSource>, CameraError> {
    match source {
        Source::Directory(dir) => Ok(Box::new(DirectorySource::open(dir, fps)?)),
        Source::File(path) => open_file(path),
        Source::Simulated => Ok(Box::new(SimulatedSource::new(Scene::yard(), fps))),
        Source::Demo => Ok(Box::new(Endless::new()?)),
        Source::Path(path) if path.is_dir() => Ok(Box::new(DirectorySource::open(path, fps)?)),
        Source::Path(path) => open_file(path),
    }
}

fn open_file(path: &Path) -> Result<Box<dyn FrameSource>, CameraError> {
    Ok(Box::new(VideoSource::open(path)?))
}

/// The time of frame `n` at `fps` frames per second. Counted from the start, so that rounding
/// does not add up.
fn frame_time(n: u64, fps: f32) -> Uptime {
    Uptime::from_millis((n as f64 * 1_000.0 / f64::from(fps)).round() as u64)
}

/// A source that begins again at its end.
struct Repeated {
    source: Source,
    fps: f32,
    current: Box<dyn FrameSource>,
    offset: Duration,
    last: Option<Uptime>,
}

impl FrameSource for Repeated {
    fn next(&mut self) -> Result<Option<Frame>, CameraError> {
        let frame = match self.current.next()? {
            Some(frame) => frame,
            None => {
                let pause = Duration::from_secs_f32(1.0 / self.fps);
                self.offset = self.last.map_or(pause, |last| last.since(Uptime::ZERO) + pause);
                self.current = open_source(&self.source, self.fps)?;
                let Some(frame) = self.current.next()? else { return Ok(None) };
                frame
            }
        };
        let at = frame.captured_at() + self.offset;
        self.last = Some(at);
        Ok(Some(frame.at(at)))
    }
}

#[cfg(test)]
mod tests;
