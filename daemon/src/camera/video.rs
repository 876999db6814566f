//! Files with pictures in them: H.264 in MP4, animated GIF and WebP, or one picture.

use std::collections::BTreeSet;
use std::fs;
use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use image::codecs::gif::GifDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, ImageDecoder, ImageError, Limits, RgbaImage};
use openh264::decoder::{DecodeOptions, DecodedYUV, Decoder, Flush};
use openh264::formats::YUVSource;
use pawlatch_core::frame::{Frame, MAX_DECODED_BYTES, MAX_SIDE, over_black};
use pawlatch_core::units::Uptime;
use re_mp4::{Mp4, StsdBoxContent};

use super::{CameraError, FrameSource};

/// Largest file that is played, bytes: it is held in memory.
pub const MAX_FILE_BYTES: u64 = 1 << 30;

/// Plays a file in the time that is written in it.
pub struct VideoSource {
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    Mp4(Box<Mp4Player>),
    Animation { frames: Receiver<Result<image::Frame, ImageError>>, at: u64 },
    Still(Option<Frame>),
}

impl VideoSource {
    /// Opens the file at `path`; what it is, its first bytes tell.
    ///
    /// # Errors
    /// If it cannot be read, is of no known kind, too large, or damaged at its beginning.
    pub fn open(path: &Path) -> Result<Self, CameraError> {
        let read = |source| CameraError::Read { path: path.to_owned(), source };
        let broken = |problem| CameraError::Video { path: path.to_owned(), problem };
        let length = fs::metadata(path).map_err(read)?.len();
        if length > MAX_FILE_BYTES {
            let problem = format!("it has {length} bytes; at most {MAX_FILE_BYTES} are played");
            return Err(broken(problem));
        }
        let bytes: Arc<[u8]> = fs::read(path).map_err(read)?.into();
        let kind = if bytes.get(4..8) == Some(b"ftyp") {
            Kind::Mp4(Box::new(Mp4Player::new(bytes).map_err(broken)?))
        } else if bytes.starts_with(b"GIF8") {
            let gif = GifDecoder::new(Cursor::new(bytes)).map_err(|e| broken(e.to_string()))?;
            animation(limited(gif).map_err(|e| broken(e.to_string()))?).map_err(read)?
        } else if bytes.get(8..12) == Some(b"WEBP") && bytes.get(12..16) == Some(b"VP8X") {
            let webp = WebPDecoder::new(Cursor::new(Arc::clone(&bytes)))
                .map_err(|e| broken(e.to_string()))?;
            if webp.has_animation() {
                animation(limited(webp).map_err(|e| broken(e.to_string()))?).map_err(read)?
            } else {
                still(path, bytes)?
            }
        } else {
            still(path, bytes)?
        };
        Ok(Self { path: path.to_owned(), kind })
    }
}

/// Decodes on a thread of its own, a picture or two ahead: the decoder's iterator cannot change
/// threads, a source must.
fn animation(decoder: impl AnimationDecoder<'static> + Send + 'static) -> std::io::Result<Kind> {
    let (sender, frames) = sync_channel(1);
    thread::Builder::new().name("animation".to_owned()).spawn(move || {
        for frame in decoder.into_frames() {
            let last = frame.is_err();
            if sender.send(frame).is_err() || last {
                return;
            }
        }
    })?;
    Ok(Kind::Animation { frames, at: 0 })
}

fn still(path: &Path, bytes: Arc<[u8]>) -> Result<Kind, CameraError> {
    let frame = Frame::decode(bytes, Uptime::ZERO)
        .map_err(|source| CameraError::Picture { path: path.to_owned(), source })?;
    Ok(Kind::Still(Some(frame)))
}

/// The decoder, if its pictures are not too large.
fn limited<D: ImageDecoder>(mut decoder: D) -> Result<D, ImageError> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    decoder.set_limits(limits)?;
    Ok(decoder)
}

impl FrameSource for VideoSource {
    fn next(&mut self) -> Result<Option<Frame>, CameraError> {
        let broken = |problem| CameraError::Video { path: self.path.clone(), problem };
        match &mut self.kind {
            Kind::Mp4(player) => player.next().map_err(broken),
            Kind::Animation { frames, at } => match frames.recv() {
                Err(_) => Ok(None),
                Ok(frame) => {
                    let frame = frame.map_err(|e| broken(format!("damaged or cut short: {e}")))?;
                    let (ms, parts) = frame.delay().numer_denom_ms();
                    let now = Uptime::from_millis(*at);
                    // Browsers play frames that ask for no delay at 10 a second; so do we.
                    let delay = u64::from(ms / parts.max(1));
                    *at += if delay < 20 { 100 } else { delay };
                    from_rgba(&frame.into_buffer(), now).map(Some).map_err(broken)
                }
            },
            Kind::Still(frame) => Ok(frame.take()),
        }
    }
}

fn from_rgba(rgba: &RgbaImage, at: Uptime) -> Result<Frame, String> {
    Frame::from_rgb(over_black(rgba).into_raw(), rgba.width(), rgba.height(), at)
        .map_err(|e| e.to_string())
}

/// Demuxes an MP4 held in memory and decodes its first H.264 track.
struct Mp4Player {
    bytes: Arc<[u8]>,
    samples: std::vec::IntoIter<Range<usize>>,
    /// Bytes of the length before each unit within a sample, 1 to 4.
    length_bytes: usize,
    /// Times at which pictures are shown that have not been given out, milliseconds. The decoder
    /// gives pictures in the order they are shown, which need not be that of the samples.
    times: BTreeSet<(u64, usize)>,
    decoder: Decoder,
    flushed: Option<std::vec::IntoIter<Frame>>,
}

impl Mp4Player {
    fn new(bytes: Arc<[u8]>) -> Result<Self, String> {
        let mp4 = Mp4::read_bytes(&bytes).map_err(|e| format!("not a sound MP4 file: {e}"))?;
        let track = mp4.tracks().values().find_map(|track| {
            match &track.trak(&mp4).mdia.minf.stbl.stsd.contents {
                StsdBoxContent::Avc1(avc) => Some((track, &avc.avcc.contents)),
                _ => None,
            }
        });
        let Some((track, avc)) = track else {
            let codecs: Vec<String> =
                mp4.tracks().values().filter_map(|t| t.codec_string(&mp4)).collect();
            return Err(format!(
                "it has no H.264 video (found: {}); convert it to H.264",
                if codecs.is_empty() { "nothing known".to_owned() } else { codecs.join(", ") }
            ));
        };
        let mut samples = Vec::new();
        let mut times = BTreeSet::new();
        for (n, sample) in track.samples.iter().enumerate() {
            let start = usize::try_from(sample.offset).unwrap_or(usize::MAX);
            let end = start.saturating_add(usize::try_from(sample.size).unwrap_or(usize::MAX));
            if end > bytes.len() {
                return Err(format!("the file is cut short: picture {n} lies beyond its end"));
            }
            samples.push(start..end);
            let shown = u64::try_from(sample.composition_timestamp).unwrap_or(0);
            times.insert((shown.saturating_mul(1_000) / sample.timescale.max(1), n));
        }
        let mut decoder = Decoder::new().map_err(|e| format!("no H.264 decoder: {e}"))?;
        let mut parameters = Vec::new();
        for unit in avc.sequence_parameter_sets.iter().chain(&avc.picture_parameter_sets) {
            push_unit(&mut parameters, &unit.bytes);
        }
        decoder
            .decode_with_options(
                &parameters,
                DecodeOptions::new().flush_after_decode(Flush::NoFlush),
            )
            .map_err(|e| format!("unusable H.264 parameters: {e}"))?;
        let length_bytes = usize::from(avc.length_size_minus_one & 3) + 1;
        let samples = samples.into_iter();
        Ok(Self { bytes, samples, length_bytes, times, decoder, flushed: None })
    }

    fn next(&mut self) -> Result<Option<Frame>, String> {
        if let Some(flushed) = &mut self.flushed {
            return Ok(flushed.next());
        }
        for sample in self.samples.by_ref() {
            let packet = annex_b(&self.bytes[sample], self.length_bytes)
                .ok_or("damaged: a unit is longer than its picture")?;
            let options = DecodeOptions::new().flush_after_decode(Flush::NoFlush);
            let decoded = self
                .decoder
                .decode_with_options(&packet, options)
                .map_err(|e| format!("damaged or unsupported H.264 (convert it again): {e}"))?;
            if let Some(picture) = decoded {
                return rgb(&picture, pop_time(&mut self.times)).map(Some);
            }
        }
        let rest = self.decoder.flush_remaining().map_err(|e| format!("damaged H.264: {e}"))?;
        let rest: Result<Vec<Frame>, String> =
            rest.iter().map(|picture| rgb(picture, pop_time(&mut self.times))).collect();
        Ok(self.flushed.insert(rest?.into_iter()).next())
    }
}

fn pop_time(times: &mut BTreeSet<(u64, usize)>) -> Uptime {
    Uptime::from_millis(times.pop_first().map_or(0, |(ms, _)| ms))
}

/// A sample's units, each behind its length, as a byte stream (H.264 annex B).
fn annex_b(mut sample: &[u8], length_bytes: usize) -> Option<Vec<u8>> {
    let mut stream = Vec::with_capacity(sample.len() + 16);
    while !sample.is_empty() {
        let (length, rest) = sample.split_at_checked(length_bytes)?;
        let length = length.iter().fold(0_usize, |n, byte| (n << 8) | usize::from(*byte));
        let (unit, rest) = rest.split_at_checked(length)?;
        push_unit(&mut stream, unit);
        sample = rest;
    }
    Some(stream)
}

fn push_unit(stream: &mut Vec<u8>, unit: &[u8]) {
    stream.extend([0, 0, 0, 1]);
    stream.extend(unit);
}

fn rgb(picture: &DecodedYUV<'_>, at: Uptime) -> Result<Frame, String> {
    let (width, height) = picture.dimensions();
    let mut pixels = vec![0; picture.rgb8_len()];
    picture.write_rgb8(&mut pixels);
    Frame::from_rgb(pixels, width as u32, height as u32, at).map_err(|e| e.to_string())
}
