//! Cameras that only a program of the system can read: its pictures come through a pipe. The
//! programs are fixed, their arguments numbers; nothing the owner writes is ever run.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::CameraError;
use super::live::Reader;
use super::shot::{Layout, Shot};
use super::source::{Format, LiveSource, Wish};
use crate::clock::Clock;

/// Programs that read a Raspberry Pi's camera modules, the newer first.
const RPICAM: [&str; 2] = ["/usr/bin/rpicam-vid", "/usr/bin/libcamera-vid"];
/// The program that reads a Jetson's CSI sensors.
const GSTREAMER: &str = "/usr/bin/gst-launch-1.0";
/// Size and rate if none are wished.
const USUAL: (u32, u32, u32) = (640, 480, 10);
/// How long the program may take to its first picture, and between two.
const WITHIN: (Duration, Duration) = (Duration::from_secs(12), Duration::from_secs(3));
/// Largest JPEG that is waited for, bytes.
const MAX_JPEG: usize = 16 << 20;

/// Reads pictures from a program's output.
pub(super) struct PipeReader {
    camera: String,
    program: Arc<Program>,
    output: ChildStdout,
    kind: Kind,
    clock: Clock,
}

/// The program, and until when it must give the next picture. A pipe can be waited for only for
/// ever; so a program that gives nothing is ended, which ends the waiting.
struct Program(Mutex<(Child, Instant)>);

enum Kind {
    /// Pictures of a fixed number of bytes.
    Raw { width: u32, height: u32 },
    /// JPEGs, one behind the other; what has been read and not given out.
    Jpegs(Vec<u8>),
}

/// Starts the program for a Raspberry Pi's camera module.
pub(super) fn rpicam(
    source: &LiveSource,
    camera: u8,
    wish: &Wish,
    clock: Clock,
) -> Result<PipeReader, CameraError> {
    let program = RPICAM.into_iter().find(|path| Path::new(path).is_file());
    let program = program.ok_or_else(|| missing(source, "rpicam-vid", "rpicam-apps-lite"))?;
    let (width, height, rate) = shape(wish);
    let jpeg = wish.format == Some(Format::Mjpeg);
    let mut command = Command::new(program);
    command
        .args(["--nopreview", "--timeout", "0", "--flush", "--output", "-"])
        .args(["--codec", if jpeg { "mjpeg" } else { "yuv420" }])
        .args(["--camera", &camera.to_string()])
        .args(["--width", &width.to_string(), "--height", &height.to_string()])
        .args(["--framerate", &rate.to_string()]);
    let kind = if jpeg { Kind::Jpegs(Vec::new()) } else { Kind::Raw { width, height } };
    PipeReader::start(source, command, kind, clock)
}

/// Starts the pipeline for a Jetson's CSI sensor.
pub(super) fn argus(
    source: &LiveSource,
    sensor: u8,
    wish: &Wish,
    clock: Clock,
) -> Result<PipeReader, CameraError> {
    if !Path::new(GSTREAMER).is_file() {
        return Err(missing(
            source,
            "gst-launch-1.0",
            "gstreamer1.0-tools and nvidia-l4t-gstreamer",
        ));
    }
    let (width, height, rate) = shape(wish);
    let sensed = format!(
        "video/x-raw(memory:NVMM),width={width},height={height},framerate={rate}/1,format=NV12"
    );
    let given = format!("video/x-raw,width={width},height={height},format=I420");
    let mut command = Command::new(GSTREAMER);
    command
        .args(["--quiet", "nvarguscamerasrc", &format!("sensor-id={sensor}")])
        .args(["!", &sensed, "!", "nvvidconv", "!", &given])
        .args(["!", "fdsink", "fd=1", "sync=false"]);
    PipeReader::start(source, command, Kind::Raw { width, height }, clock)
}

fn shape(wish: &Wish) -> (u32, u32, u32) {
    let (width, height) = wish.size.unwrap_or((USUAL.0, USUAL.1));
    (width, height, wish.rate.unwrap_or(USUAL.2))
}

fn missing(source: &LiveSource, program: &str, package: &str) -> CameraError {
    let problem = format!("the program {program} is not installed; install {package}");
    CameraError::Camera { camera: source.to_string(), problem }
}

impl PipeReader {
    fn start(
        source: &LiveSource,
        mut command: Command,
        kind: Kind,
        clock: Clock,
    ) -> Result<Self, CameraError> {
        let camera = source.to_string();
        let program = command.get_program().to_owned();
        let failed = |e: io::Error| CameraError::Camera {
            camera: camera.clone(),
            problem: format!("cannot start {}: {e}", program.display()),
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(failed)?;
        let Some(output) = child.stdout.take() else {
            return Err(failed(io::Error::other("it has no output")));
        };
        let program = Arc::new(Program(Mutex::new((child, Instant::now() + WITHIN.0))));
        let watched = Arc::downgrade(&program);
        let watch = move || {
            while let Some(program) = watched.upgrade() {
                program.end_if_late();
                drop(program);
                thread::sleep(Duration::from_millis(100));
            }
        };
        thread::Builder::new().name("pipe".to_owned()).spawn(watch).map_err(failed)?;
        Ok(Self { camera, program, output, kind, clock })
    }

    fn ended(&mut self, error: &io::Error) -> CameraError {
        let how = match self.program.lock().0.try_wait() {
            Ok(Some(status)) => status.to_string(),
            _ => error.to_string(),
        };
        let problem = format!(
            "its program ended ({how}): is the camera connected, and does nothing else use it? \
             `rpicam-hello --list-cameras` or `v4l2-ctl --list-devices` tell"
        );
        CameraError::Camera { camera: self.camera.clone(), problem }
    }

    fn read_shot(&mut self) -> io::Result<Shot> {
        match &mut self.kind {
            Kind::Raw { width, height } => {
                let (width, height) = (*width, *height);
                let mut bytes = vec![0; width as usize * height as usize * 3 / 2];
                self.output.read_exact(&mut bytes)?;
                let stride = width as usize;
                let at = self.clock.now();
                Ok(Shot { layout: Layout::I420, width, height, stride, bytes, at })
            }
            Kind::Jpegs(held) => {
                let bytes = next_jpeg(&mut self.output, held)?;
                Ok(Shot {
                    layout: Layout::Jpeg,
                    width: 0,
                    height: 0,
                    stride: 0,
                    bytes,
                    at: self.clock.now(),
                })
            }
        }
    }
}

impl Reader for PipeReader {
    fn read(&mut self) -> Result<Shot, CameraError> {
        let shot = self.read_shot().map_err(|error| self.ended(&error))?;
        self.program.lock().1 = Instant::now() + WITHIN.1;
        Ok(shot)
    }
}

impl Program {
    fn lock(&self) -> MutexGuard<'_, (Child, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_if_late(&self) {
        let mut program = self.lock();
        if Instant::now() >= program.1 {
            // It may have ended already.
            let _ = program.0.kill();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let mut program = self.lock();
        let _ = program.0.kill();
        let _ = program.0.wait();
    }
}

/// The next JPEG of a stream of them; `held` keeps what lies behind it.
pub(super) fn next_jpeg(stream: &mut dyn Read, held: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 16 << 10];
    let mut searched = 0;
    loop {
        // A picture ends where the next begins; or, so that none waits for the next, at its own
        // end marker, which a preview inside it may hold too: so the start is counted.
        if let Some(end) = complete(held, &mut searched) {
            let rest = held.split_off(end);
            return Ok(std::mem::replace(held, rest));
        }
        if held.len() > MAX_JPEG {
            return Err(io::Error::other("no end of a picture in 16 MB"));
        }
        let got = stream.read(&mut buffer)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        held.extend_from_slice(&buffer[..got]);
    }
}

/// Where the JPEG at the front of `held` ends, if it is there as a whole. `searched` is how far
/// it has been looked through.
fn complete(held: &mut Vec<u8>, searched: &mut usize) -> Option<usize> {
    // Whatever is before the first picture is none.
    let start = held.windows(2).position(|pair| pair == [0xff, 0xd8])?;
    if start > 0 {
        held.drain(..start);
        *searched = 0;
    }
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = held.get(at..at + 4) {
        if marker == 0xda {
            let from = (*searched).max(at);
            let end = held[from..].windows(2).position(|pair| pair == [0xff, 0xd9]);
            *searched = held.len().saturating_sub(1);
            return end.map(|n| from + n + 2);
        }
        at += if marker == 0xff { 1 } else { 2 + usize::from(u16::from_be_bytes([high, low])) };
    }
    // Not even its header is there, or it is damaged: then the next start ends it.
    let damaged = held.get(at).is_some_and(|byte| *byte != 0xff);
    let next = held[2..].windows(2).position(|pair| pair == [0xff, 0xd8]);
    next.filter(|_| damaged).map(|n| n + 2)
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::*;

    fn source(text: &str) -> LiveSource {
        match text.parse().unwrap() {
            Source::Live(live) => live,
            other => panic!("{other} is no camera"),
        }
    }

    fn jpeg(level: u8) -> Vec<u8> {
        let mut jpeg = Vec::new();
        let picture = image::RgbImage::from_pixel(8, 8, image::Rgb([level; 3]));
        image::codecs::jpeg::JpegEncoder::new(&mut jpeg).encode_image(&picture).unwrap();
        jpeg
    }

    #[test]
    fn jpegs_are_told_apart_however_the_stream_is_cut() {
        let pictures: Vec<Vec<u8>> = [10, 120, 250].map(jpeg).into();
        let mut stream = b"noise".to_vec();
        for picture in &pictures {
            stream.extend(picture);
        }
        for piece in [1, 2, 3, 7, 100, 100_000] {
            struct Pieces<'a>(&'a [u8], usize);
            impl Read for Pieces<'_> {
                fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                    let n = self.1.min(self.0.len()).min(buffer.len());
                    let (now, later) = self.0.split_at(n);
                    buffer[..n].copy_from_slice(now);
                    self.0 = later;
                    Ok(n)
                }
            }
            let mut held = Vec::new();
            let mut pieces = Pieces(&stream, piece);
            for picture in &pictures {
                assert_eq!(&next_jpeg(&mut pieces, &mut held).unwrap(), picture, "by {piece}");
            }
            assert!(next_jpeg(&mut pieces, &mut held).is_err(), "the stream has ended");
        }
    }

    #[test]
    fn a_program_gives_raw_pictures_and_its_end_is_told() {
        let mut command = Command::new("/bin/sh");
        // Two pictures of 4 by 2, and half of a third.
        command.args(["-c", "printf 'AAAAAAAAuuvvBBBBBBBBuuvvCCCC'; exit 3"]);
        let kind = Kind::Raw { width: 4, height: 2 };
        let source = source("rpicam:0");
        let mut reader = PipeReader::start(&source, command, kind, Clock::start()).unwrap();
        assert_eq!(reader.read().unwrap().bytes, b"AAAAAAAAuuvv");
        assert_eq!(reader.read().unwrap().bytes, b"BBBBBBBBuuvv");
        let error = reader.read().unwrap_err().to_string();
        assert!(error.contains("rpicam:0") && error.contains("connected"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_its_package() {
        let told = |text: &str| match source(text) {
            LiveSource::Argus { sensor, ref wish } => {
                argus(&source(text), sensor, wish, Clock::start()).map(|_| ())
            }
            LiveSource::Rpicam { camera, ref wish } => {
                rpicam(&source(text), camera, wish, Clock::start()).map(|_| ())
            }
            _ => unreachable!(),
        };
        for (text, path, package) in
            [("rpicam:0", RPICAM[0], "rpicam-apps"), ("argus:0", GSTREAMER, "gstreamer1.0-tools")]
        {
            if Path::new(path).exists() {
                continue;
            }
            let error = told(text).unwrap_err().to_string();
            assert!(error.contains(package), "{error}");
        }
    }
}
