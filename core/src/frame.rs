//! One picture with its time, how it is decoded, and whether it can be trusted.

use std::fmt;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::units::Uptime;

/// Longest side of a picture that is accepted, pixels.
pub const MAX_SIDE: u32 = 16_384;
/// Most memory one picture may take while it is decoded, bytes.
pub const MAX_DECODED_BYTES: u64 = 512 << 20;

/// One picture: 8-bit RGB, rows from the top, `width * height * 3` bytes, no padding.
///
/// Cheap to clone: the pixels are shared.
#[derive(Clone)]
pub struct Frame {
    pixels: Arc<[u8]>,
    width: u32,
    height: u32,
    captured_at: Uptime,
    encoded: Option<Arc<[u8]>>,
}

impl Frame {
    /// A frame of packed RGB rows.
    ///
    /// # Errors
    /// If a side is zero or above [`MAX_SIDE`], or `pixels` is not `width * height * 3` long.
    pub fn from_rgb(
        pixels: impl Into<Arc<[u8]>>,
        width: u32,
        height: u32,
        captured_at: Uptime,
    ) -> Result<Self, PictureError> {
        let pixels = pixels.into();
        if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
            return Err(PictureError::Size { width, height });
        }
        let expected = width as usize * height as usize * 3;
        if pixels.len() != expected {
            return Err(PictureError::Length { width, height, expected, got: pixels.len() });
        }
        Ok(Self { pixels, width, height, captured_at, encoded: None })
    }

    /// Decodes a JPEG, PNG, GIF (first picture), BMP or WebP file held in memory, turning it
    /// upright where its EXIF data says how. 16-bit, grey, CMYK and transparent pictures become
    /// 8-bit RGB (transparent over black). The encoded bytes are kept beside the pixels, so that
    /// an event can be recorded exactly as it was seen.
    ///
    /// # Errors
    /// If the bytes are no picture of these kinds, are damaged or cut short, or the picture is
    /// larger than [`MAX_SIDE`] or [`MAX_DECODED_BYTES`].
    pub fn decode(
        encoded: impl Into<Arc<[u8]>>,
        captured_at: Uptime,
    ) -> Result<Self, PictureError> {
        let encoded = encoded.into();
        let rgb = decode_rgb(&encoded)?;
        let (width, height) = rgb.dimensions();
        let mut frame = Self::from_rgb(rgb.into_raw(), width, height, captured_at)?;
        frame.encoded = Some(encoded);
        Ok(frame)
    }

    /// Packed RGB rows from the top.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }
    /// Width in pixels, at least 1.
    pub const fn width(&self) -> u32 {
        self.width
    }
    /// Height in pixels, at least 1.
    pub const fn height(&self) -> u32 {
        self.height
    }
    /// When the camera took it.
    pub const fn captured_at(&self) -> Uptime {
        self.captured_at
    }
    /// The file the picture was decoded from, if it was.
    pub const fn encoded(&self) -> Option<&Arc<[u8]>> {
        self.encoded.as_ref()
    }

    /// The same picture taken at another time.
    #[must_use]
    pub fn at(mut self, captured_at: Uptime) -> Self {
        self.captured_at = captured_at;
        self
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({}x{} at {})", self.width, self.height, self.captured_at)
    }
}

/// Why bytes are not a usable picture. The caller adds which file or camera it was.
#[derive(Debug, Error)]
pub enum PictureError {
    /// Not a picture file of a known kind.
    #[error("not a JPEG, PNG, GIF, BMP or WebP picture")]
    Unknown,
    /// A picture file that cannot be read.
    #[error("the picture is damaged, cut short or of an unsupported kind; export it again")]
    Damaged(#[source] image::ImageError),
    /// A JPEG without its end; decoders would fill the rest with grey.
    #[error("the picture is cut short; copy or export it again")]
    CutShort,
    /// A side is zero or too large.
    #[error("the picture is {width}x{height}; each side must be 1 to {MAX_SIDE} pixels")]
    Size {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// Pixels and size disagree.
    #[error("a {width}x{height} RGB picture has {expected} bytes, not {got}")]
    Length {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Bytes expected.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
}

fn decode_rgb(bytes: &[u8]) -> Result<image::RgbImage, PictureError> {
    let reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| PictureError::Damaged(e.into()))?;
    if reader.format().is_none() {
        return Err(PictureError::Unknown);
    }
    if reader.format() == Some(ImageFormat::Jpeg) && is_cut_short(bytes) {
        return Err(PictureError::CutShort);
    }
    let mut decoder = reader.into_decoder().map_err(PictureError::Damaged)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
        return Err(PictureError::Size { width, height });
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    decoder.set_limits(limits).map_err(PictureError::Damaged)?;
    let upright = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(PictureError::Damaged)?;
    picture.apply_orientation(upright);
    Ok(match picture {
        DynamicImage::ImageRgb8(rgb) => rgb,
        other if other.color().has_alpha() => over_black(&other.to_rgba8()),
        other => other.to_rgb8(),
    })
}

/// Whether a JPEG has no end-of-image marker after its first scan began. A marker before that may
/// belong to a preview.
fn is_cut_short(jpeg: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = jpeg.get(at..at + 4) {
        if marker == START_OF_SCAN {
            return !jpeg[at..].windows(2).any(|pair| pair == END_OF_IMAGE);
        }
        // A fill byte before the marker proper; otherwise a segment with its length.
        at += if marker == 0xff { 1 } else { 2 + usize::from(u16::from_be_bytes([high, low])) };
    }
    true
}

/// A picture with transparency laid over black, as everywhere in the program.
pub fn over_black(rgba: &image::RgbaImage) -> image::RgbImage {
    image::RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0;
        image::Rgb([r, g, b].map(|v| (u16::from(v) * u16::from(a) / 255) as u8))
    })
}

/// Whether a picture can be trusted. Anything but `Good` is evidence against deciding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PictureHealth {
    /// Nothing wrong.
    Good,
    /// Too dark to see anything.
    Black,
    /// Burnt out: too bright to see anything.
    Overexposed,
    /// Hardly any structure: something covers the lens, or it is fogged.
    Covered,
    /// No sharp edge anywhere.
    Blurred,
    /// Noise without a picture behind it.
    Noise,
    /// The same picture, byte for byte, for longer than a living camera gives.
    Frozen,
}

impl PictureHealth {
    /// What the owner is told.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Good => "the picture is good",
            Self::Black => "the picture is black: is there light, is the lens covered?",
            Self::Overexposed => "the picture is burnt out: does the sun shine into the lens?",
            Self::Covered => "the picture shows nothing: is the lens covered or fogged?",
            Self::Blurred => "the picture is blurred: clean or focus the lens",
            Self::Noise => "the picture is only noise: is the camera broken?",
            Self::Frozen => "the picture stands still: the camera repeats the same frame",
        }
    }
}

/// How long the same bytes may repeat before the picture counts as frozen.
pub const FROZEN_AFTER: Duration = Duration::from_secs(2);

/// Judges one picture after another; remembers only what it needs to notice repetition.
#[derive(Debug, Clone, Default)]
pub struct PictureWatch {
    same_since: Option<(u64, Uptime)>,
    repeats: bool,
}

impl PictureWatch {
    /// The health of `frame`, given the frames before it.
    pub fn judge(&mut self, frame: &Frame) -> PictureHealth {
        let fingerprint = fingerprint(frame.pixels());
        let since = match self.same_since {
            Some((seen, since)) if seen == fingerprint => since,
            _ => frame.captured_at(),
        };
        self.repeats = self.same_since.is_some_and(|(seen, _)| seen == fingerprint);
        self.same_since = Some((fingerprint, since));
        if frame.captured_at().since(since) >= FROZEN_AFTER {
            return PictureHealth::Frozen;
        }
        judge_still(frame)
    }
}

impl PictureWatch {
    /// Whether the frame judged last is, byte for byte, the one before it: no news.
    pub const fn repeats(&self) -> bool {
        self.repeats
    }
}

/// FNV-1a over eight bytes at a time, four of them side by side, since each waits for the one before
/// it: only to notice a frame that repeats, not for security.
fn fingerprint(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| {
        let hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        hash ^ hash >> 29
    };
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut lanes = [0xcbf2_9ce4_8422_2325_u64; 4];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = mix(*lane, u64::from_le_bytes(*word));
        }
    }
    let rest = rest.iter().map(|byte| u64::from(*byte));
    lanes.into_iter().chain(rest).fold(bytes.len() as u64, mix)
}

/// 256 times the luma of a colour, or of a sum of colours: BT.601 weights in 8-bit fixed point.
pub(crate) const fn luma_256([r, g, b]: [u32; 3]) -> u32 {
    77 * r + 150 * g + 29 * b
}

/// Rows a still picture is judged on.
const ROWS: u32 = 48;

/// Judges one picture by itself, from the luma along 48 rows.
fn judge_still(frame: &Frame) -> PictureHealth {
    let (w, h) = (frame.width() as usize, frame.height());
    let [mut sum, mut squares, mut steps, mut burnt] = [0_u64; 4];
    let mut steepest = 0;
    for row in 0..ROWS {
        let y = ((2 * row + 1) * h / (2 * ROWS)) as usize;
        let mut before = None;
        for p in frame.pixels()[y * w * 3..(y + 1) * w * 3].as_chunks::<3>().0 {
            let luma = luma_256(p.map(u32::from));
            let step = luma.abs_diff(before.unwrap_or(luma));
            sum += u64::from(luma);
            squares += u64::from(luma).pow(2);
            burnt += u64::from(luma >= 250 * 256);
            steps += u64::from(step).pow(2);
            steepest = steepest.max(step);
            before = Some(luma);
        }
    }
    let n = (ROWS as usize * w) as f64;
    let [mean, steepest] = [sum as f64 / n, f64::from(steepest)].map(|v| v / 256.0);
    let [squares, steps] = [squares, steps].map(|v| v as f64 / n / (256.0 * 256.0));
    let variance = (squares - mean * mean).max(0.0);
    // For white noise the expected squared step is twice the variance; neighbours in a
    // photograph resemble each other, so there it is a small part of it.
    let roughness = if variance > 0.0 { steps / (2.0 * variance) } else { 0.0 };
    if mean < 14.0 && variance < 60.0 {
        PictureHealth::Black
    } else if burnt as f64 / n > 0.9 {
        PictureHealth::Overexposed
    } else if variance < 20.0 {
        PictureHealth::Covered
    } else if roughness > 0.8 {
        PictureHealth::Noise
    } else if steepest < 3.0 {
        PictureHealth::Blurred
    } else {
        PictureHealth::Good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture whose luma follows `f(x, y)`, 160 by 120.
    fn grey(f: impl Fn(u32, u32) -> u8) -> Frame {
        let pixels: Vec<u8> = (0..120)
            .flat_map(|y| (0..160).map(move |x| (x, y)))
            .flat_map(|(x, y)| [f(x, y); 3])
            .collect();
        Frame::from_rgb(pixels, 160, 120, Uptime::ZERO).unwrap()
    }

    fn noise(x: u32, y: u32) -> u8 {
        let mut v = (x.wrapping_mul(0x9e37_79b9)) ^ y.wrapping_mul(0x85eb_ca6b);
        v ^= v >> 15;
        v = v.wrapping_mul(0x2c1b_3c6d);
        (v >> 13) as u8
    }

    /// Blocks with a slope: sharp edges and flat parts, as a scene has.
    fn scene(x: u32, y: u32) -> u8 {
        (40 + (x / 20) * 15 + (y / 30) * 20 + x / 8) as u8
    }

    #[test]
    fn each_sick_picture_is_named() {
        let still = |f: fn(u32, u32) -> u8| PictureWatch::default().judge(&grey(f));
        assert_eq!(still(|_, _| 2), PictureHealth::Black);
        assert_eq!(still(|_, _| 255), PictureHealth::Overexposed);
        assert_eq!(still(|_, _| 120), PictureHealth::Covered);
        assert_eq!(still(noise), PictureHealth::Noise);
        assert_eq!(still(|x, y| (60 + x / 2 + y / 3) as u8), PictureHealth::Blurred);
        assert_eq!(still(scene), PictureHealth::Good);
    }

    #[test]
    fn a_fingerprint_changes_with_every_byte_and_with_their_order() {
        let bytes: Vec<u8> = (0..101).map(|i| (i * 37) as u8).collect();
        let before = fingerprint(&bytes);
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            assert_ne!(fingerprint(&changed), before, "byte {i}");
        }
        for (a, b) in [(0, 8), (0, 32), (8, 16), (96, 100)] {
            let mut swapped = bytes.clone();
            swapped.swap(a, b);
            assert_ne!(fingerprint(&swapped), before, "bytes {a} and {b}");
        }
        assert_ne!(fingerprint(&[0; 64]), fingerprint(&[0; 96]));
    }

    #[test]
    fn a_repeated_frame_is_frozen_after_two_seconds_and_a_new_one_is_not() {
        let mut watch = PictureWatch::default();
        let frame = grey(scene);
        let at = |ms| frame.clone().at(Uptime::from_millis(ms));
        assert_eq!(watch.judge(&at(0)), PictureHealth::Good);
        assert_eq!(watch.judge(&at(1_999)), PictureHealth::Good);
        assert_eq!(watch.judge(&at(2_000)), PictureHealth::Frozen);
        let other = grey(|x, y| scene(x, y).wrapping_add(u8::from(x == 3 && y == 3)));
        assert_eq!(watch.judge(&other.at(Uptime::from_millis(2_100))), PictureHealth::Good);
    }

    #[test]
    fn wrong_sizes_are_refused() {
        assert!(matches!(
            Frame::from_rgb(vec![0; 3], 0, 1, Uptime::ZERO),
            Err(PictureError::Size { .. })
        ));
        assert!(matches!(
            Frame::from_rgb(vec![0; 4], 1, 1, Uptime::ZERO),
            Err(PictureError::Length { expected: 3, got: 4, .. })
        ));
        assert!(Frame::from_rgb(vec![0; 3], 1, 1, Uptime::ZERO).is_ok());
    }
}
