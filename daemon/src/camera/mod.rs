//! Where pictures come from: one trait, one file per kind of source.
//!
//! A recording gives frames stamped with its own time, counted from its first frame: the time of
//! the medium, not of the machine. Replay uses these times as they are, in virtual time; the live
//! capture thread waits until they are due and stamps each frame anew with the running time. A
//! camera's frames carry the running time from the start.

mod capture;
mod directory;
mod h264;
mod http;
mod live;
mod pipe;
mod rtsp;
mod shot;
mod simulated;
mod source;
#[cfg(feature = "hardware")]
mod v4l2;
mod video;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pawlatch_core::frame::{Frame, PictureError};
use pawlatch_core::units::Uptime;
use thiserror::Error;

use crate::clock::Clock;
use crate::demo::{DemoError, Endless};

pub use capture::capture;
pub use directory::DirectorySource;
pub use live::{LiveCamera, Measured, Opener, Patience, Reader, measure};
pub use shot::{Layout, Mounting, Shot, ShotError, turned};
pub use simulated::{Actor, Scene, SimulatedSource};
pub use source::{Address, Format, GRAMMAR, LiveSource, Setting, Source, Wish, documentation};
pub use video::VideoSource;

/// Gives one frame after another.
pub trait FrameSource: Send {
    /// The next frame, stamped with the source's own time, which never runs backwards; `None` at
    /// the end.
    ///
    /// # Errors
    /// If a frame cannot be had. The source is then of no further use.
    fn next(&mut self) -> Result<Option<Frame>, CameraError>;

    /// Whether frames come when they happen and carry the running time.
    fn is_live(&self) -> bool {
        false
    }

    /// Tells how to learn that nobody wants frames any more: a source that waits for a camera
    /// then ends.
    fn until(&mut self, _over: Over) {}
}

/// Says whether nobody wants frames any more.
pub type Over = Box<dyn Fn() -> bool + Send>;

/// How to get at pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct CameraSettings {
    /// Where from; `None` if the owner has not said.
    pub source: Option<Source>,
    /// A second camera for when the first gives nothing.
    pub fallback: Option<LiveSource>,
    /// How the camera is mounted.
    pub mounting: Mounting,
    /// The slowest rate, frames per second, at which frames are still fresh.
    pub slowest: f32,
    /// Frames per second of sources that have no time of their own.
    pub fps: f32,
    /// Whether to begin again at the end.
    pub repeat: bool,
}

/// Why there is no picture.
#[derive(Debug, Error)]
pub enum CameraError {
    /// The source is not of a known kind.
    #[error("\"{given}\" is no source of pictures: {problem}; expected {}", source::forms())]
    Source {
        /// What was given.
        given: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A camera cannot be used.
    #[error("the camera {camera} cannot be used: {problem}")]
    Camera {
        /// Which.
        camera: String,
        /// What is wrong, and what to do about it.
        problem: String,
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

/// Opens the configured source; frames of cameras are stamped with `clock`. A camera is not waited
/// for: one that is not there is asked for again and again.
///
/// # Errors
/// If none is configured, or a recording cannot be read.
pub fn open(settings: &CameraSettings, clock: Clock) -> Result<Box<dyn FrameSource>, CameraError> {
    let source = settings.source.as_ref().ok_or(CameraError::Unset)?;
    if let Source::Live(live) = source {
        let sources = [live].into_iter().chain(&settings.fallback).cloned().collect();
        let (opener, patience): (Arc<Opener>, _) = (Arc::new(open_camera), Patience::default());
        let mounting = settings.mounting;
        let camera = LiveCamera::new(sources, opener, mounting, patience, settings.slowest, clock);
        return Ok(Box::new(camera));
    }
    let once = open_source(source, settings.fps)?;
    let endless = matches!(source, Source::Simulated | Source::Demo);
    let played: Box<dyn FrameSource> = if settings.repeat && !endless {
        Box::new(Repeated {
            source: source.clone(),
            fps: settings.fps,
            current: once,
            offset: Duration::ZERO,
            last: None,
        })
    } else {
        once
    };
    if settings.mounting == Mounting::default() {
        return Ok(played);
    }
    Ok(Box::new(Turned { source: played, mounting: settings.mounting }))
}

/// Opens a camera and waits for what it first says of itself.
///
/// # Errors
/// If it is not there, refuses what is wished, or this program cannot read its kind.
pub fn open_camera(source: &LiveSource, clock: Clock) -> Result<Box<dyn Reader>, CameraError> {
    Ok(match source {
        #[cfg(feature = "hardware")]
        LiveSource::V4l2 { device, wish } => {
            Box::new(v4l2::V4l2Reader::open(source, device, wish, clock)?)
        }
        #[cfg(not(feature = "hardware"))]
        LiveSource::V4l2 { .. } => {
            let problem = "this program was built without the feature `hardware`".to_owned();
            return Err(CameraError::Camera { camera: source.to_string(), problem });
        }
        LiveSource::Rpicam { camera, wish } => {
            Box::new(pipe::rpicam(source, *camera, wish, clock)?)
        }
        LiveSource::Argus { sensor, wish } => Box::new(pipe::argus(source, *sensor, wish, clock)?),
        LiveSource::Rtsp(address) => Box::new(rtsp::RtspReader::open(address, clock)?),
        LiveSource::Http(address) => Box::new(http::HttpReader::open(address, clock)?),
    })
}

fn open_source(source: &Source, fps: f32) -> Result<Box<dyn FrameSource>, CameraError> {
    match source {
        Source::Directory(dir) => Ok(Box::new(DirectorySource::open(dir, fps)?)),
        Source::File(path) => open_file(path),
        Source::Simulated => Ok(Box::new(SimulatedSource::new(Scene::yard(), fps))),
        Source::Demo => Ok(Box::new(Endless::new()?)),
        Source::Path(path) if path.is_dir() => Ok(Box::new(DirectorySource::open(path, fps)?)),
        Source::Path(path) => open_file(path),
        Source::Live(live) => Err(CameraError::Camera {
            camera: live.to_string(),
            problem: "it is no recording".to_owned(),
        }),
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

/// A recording of a camera that was not mounted upright.
struct Turned {
    source: Box<dyn FrameSource>,
    mounting: Mounting,
}

impl FrameSource for Turned {
    fn next(&mut self) -> Result<Option<Frame>, CameraError> {
        let Some(frame) = self.source.next()? else { return Ok(None) };
        let path = PathBuf::from("camera.rotate");
        turned(frame, self.mounting)
            .map(Some)
            .map_err(|source| CameraError::Picture { path, source })
    }
}

#[cfg(test)]
mod tests;
