//! A picture as a camera gives it, and how it becomes a frame.

use image::{RgbImage, imageops};
use pawlatch_core::frame::{Frame, PictureError};
use pawlatch_core::units::Uptime;
use thiserror::Error;

/// How the bytes of a shot are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A JPEG file.
    Jpeg,
    /// Y U Y V for two pixels.
    Yuyv,
    /// A plane of Y, then one of U V for four pixels.
    Nv12,
    /// A plane of Y, then one of U and one of V for four pixels.
    I420,
    /// Y only.
    Grey,
    /// R G B.
    Rgb,
    /// B G R.
    Bgr,
}

/// One picture as the camera gave it.
#[derive(Debug, Clone)]
pub struct Shot {
    /// How `bytes` are laid out.
    pub layout: Layout,
    /// Width in pixels; not used for JPEG.
    pub width: u32,
    /// Height in pixels; not used for JPEG.
    pub height: u32,
    /// Bytes from one row of the first plane to the next; not used for JPEG.
    pub stride: usize,
    /// The pixels.
    pub bytes: Vec<u8>,
    /// When the camera took it.
    pub at: Uptime,
}

/// How a camera is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mounting {
    /// Clockwise quarter turns that bring the picture upright, 0 to 3.
    pub quarter_turns: u8,
    /// Whether left and right are then exchanged.
    pub mirrored: bool,
}

/// Why a shot is no frame.
#[derive(Debug, Error)]
pub enum ShotError {
    /// Too few bytes for its size.
    #[error("a picture of {width}x{height} was cut short: {got} bytes instead of {expected}")]
    Short {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Bytes expected.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// Not a picture.
    #[error("a picture cannot be used")]
    Picture(#[from] PictureError),
}

impl Shot {
    /// The frame it shows, upright. YUV is taken as BT.601 with limited range, which is what
    /// webcams and Raspberry Pi cameras give at these sizes.
    ///
    /// # Errors
    /// If it is cut short or no picture.
    pub fn into_frame(self, mounting: Mounting) -> Result<Frame, ShotError> {
        let at = self.at;
        if self.layout == Layout::Jpeg {
            let mut bytes = self.bytes;
            if let Some(end) = jpeg_end(&bytes) {
                bytes.truncate(end);
            }
            return Ok(turned(Frame::decode(bytes, at)?, mounting)?);
        }
        let (width, height) = (self.width, self.height);
        let expected = self.expected();
        let short = ShotError::Short { width, height, expected, got: self.bytes.len() };
        let pixels = self.rgb().filter(|_| self.bytes.len() >= expected).ok_or(short)?;
        Ok(turned(Frame::from_rgb(pixels, width, height, at)?, mounting)?)
    }

    /// Bytes that a whole picture has.
    fn expected(&self) -> usize {
        let (w, h) = (self.width as usize, self.height as usize);
        let rows = |row: usize, n: usize| self.stride * n.saturating_sub(1) + row;
        match self.layout {
            Layout::Jpeg => 1,
            Layout::Yuyv => rows(w * 2, h),
            Layout::Grey => rows(w, h),
            Layout::Rgb | Layout::Bgr => rows(w * 3, h),
            Layout::Nv12 => self.stride * h + rows(w, h / 2),
            Layout::I420 => self.stride * h + self.stride / 2 * h - (self.stride - w) / 2,
        }
    }

    /// Packed RGB; `None` if the bytes do not suffice.
    fn rgb(&self) -> Option<Vec<u8>> {
        let (w, h, stride) = (self.width as usize, self.height as usize, self.stride);
        let mut out = Vec::with_capacity(w * h * 3);
        for y in 0..h {
            let row = self.bytes.get(y * stride..)?;
            match self.layout {
                Layout::Jpeg => return None,
                Layout::Rgb => out.extend_from_slice(row.get(..w * 3)?),
                Layout::Bgr => {
                    for [b, g, r] in row.get(..w * 3)?.as_chunks::<3>().0 {
                        out.extend([r, g, b]);
                    }
                }
                Layout::Grey => out.extend(row.get(..w)?.iter().flat_map(|luma| [*luma; 3])),
                Layout::Yuyv => {
                    for [y0, u, y1, v] in row.get(..w * 2)?.as_chunks::<4>().0 {
                        let chroma = Chroma::new(*u, *v);
                        out.extend(chroma.rgb(*y0));
                        out.extend(chroma.rgb(*y1));
                    }
                }
                Layout::Nv12 => {
                    let uv = self.bytes.get(stride * h + y / 2 * stride..)?.get(..w)?;
                    for ([y0, y1], [u, v]) in
                        row.get(..w)?.as_chunks::<2>().0.iter().zip(uv.as_chunks::<2>().0)
                    {
                        let chroma = Chroma::new(*u, *v);
                        out.extend(chroma.rgb(*y0));
                        out.extend(chroma.rgb(*y1));
                    }
                }
                Layout::I420 => {
                    let half = stride / 2;
                    let at = stride * h + y / 2 * half;
                    let u = self.bytes.get(at..)?.get(..w / 2)?;
                    let v = self.bytes.get(at + half * (h / 2)..)?.get(..w / 2)?;
                    for (([y0, y1], u), v) in row.get(..w)?.as_chunks::<2>().0.iter().zip(u).zip(v)
                    {
                        let chroma = Chroma::new(*u, *v);
                        out.extend(chroma.rgb(*y0));
                        out.extend(chroma.rgb(*y1));
                    }
                }
            }
        }
        Some(out)
    }
}

/// What U and V add to each channel, BT.601 in 8-bit fixed point.
struct Chroma {
    r: i32,
    g: i32,
    b: i32,
}

impl Chroma {
    fn new(u: u8, v: u8) -> Self {
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        Self { r: 409 * v + 128, g: 128 - 100 * u - 208 * v, b: 516 * u + 128 }
    }

    fn rgb(&self, y: u8) -> [u8; 3] {
        let luma = 298 * (i32::from(y) - 16);
        [self.r, self.g, self.b].map(|c| ((luma + c) >> 8).clamp(0, 255) as u8)
    }
}

/// Where a JPEG ends: behind its first end-of-image marker after the scan began. Cameras hand out
/// whole buffers, with what was in them before.
fn jpeg_end(jpeg: &[u8]) -> Option<usize> {
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = jpeg.get(at..at + 4) {
        if marker == 0xda {
            let scan = jpeg.get(at..)?;
            return scan.windows(2).position(|pair| pair == [0xff, 0xd9]).map(|n| at + n + 2);
        }
        at += if marker == 0xff { 1 } else { 2 + usize::from(u16::from_be_bytes([high, low])) };
    }
    None
}

/// `frame` turned upright.
///
/// # Errors
/// Never in fact: turning changes no size beyond what a frame may have.
pub fn turned(frame: Frame, mounting: Mounting) -> Result<Frame, PictureError> {
    if mounting == Mounting::default() {
        return Ok(frame);
    }
    let (width, height, at) = (frame.width(), frame.height(), frame.captured_at());
    let wrong = || PictureError::Size { width, height };
    let picture = RgbImage::from_raw(width, height, frame.pixels().to_vec()).ok_or_else(wrong)?;
    let picture = match mounting.quarter_turns % 4 {
        1 => imageops::rotate90(&picture),
        2 => imageops::rotate180(&picture),
        3 => imageops::rotate270(&picture),
        _ => picture,
    };
    let picture = if mounting.mirrored { imageops::flip_horizontal(&picture) } else { picture };
    let (width, height) = picture.dimensions();
    Frame::from_rgb(picture.into_raw(), width, height, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BT.601 with limited range, from its definition in real numbers.
    fn yuv([r, g, b]: [u8; 3]) -> [u8; 3] {
        let [r, g, b] = [r, g, b].map(|v| f64::from(v) / 255.0);
        let y = 0.299 * r + 0.587 * g + 0.114 * b;
        let (u, v) = ((b - y) / 1.772, (r - y) / 1.402);
        [16.0 + 219.0 * y, 128.0 + 224.0 * u, 128.0 + 224.0 * v].map(|v| v.round() as u8)
    }

    /// 6 by 4 pixels, every two by two of one colour.
    fn colours() -> [[u8; 3]; 6] {
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [250, 200, 30], [12, 70, 90], [128, 128, 128]]
    }

    fn picture() -> Vec<[u8; 3]> {
        (0..24).map(|n| colours()[n / 12 * 3 + n % 6 / 2]).collect()
    }

    fn shot(layout: Layout, stride: usize, bytes: Vec<u8>) -> Shot {
        Shot { layout, width: 6, height: 4, stride, bytes, at: Uptime::from_millis(7) }
    }

    #[test]
    fn every_layout_gives_the_colours_that_went_in() {
        // Rows are padded, as drivers do.
        let at = |x: usize, y: usize| yuv(picture()[y * 6 + x]);
        let mut yuyv = Vec::new();
        for y in 0..4 {
            for x in (0..6).step_by(2) {
                let [luma, u, v] = at(x, y);
                yuyv.extend([luma, u, at(x + 1, y)[0], v]);
            }
            yuyv.extend([9; 4]);
        }
        let luma = |pad: usize| -> Vec<u8> {
            (0..4).flat_map(|y| (0..6).map(move |x| at(x, y)[0]).chain(vec![9; pad])).collect()
        };
        let plane = |channel: usize, pad: usize| -> Vec<u8> {
            (0..2)
                .flat_map(|y| (0..3).map(move |x| at(2 * x, 2 * y)[channel]).chain(vec![9; pad]))
                .collect()
        };
        let mut nv12 = luma(2);
        for y in 0..2 {
            nv12.extend((0..3).flat_map(|x| [at(2 * x, 2 * y)[1], at(2 * x, 2 * y)[2]]));
            nv12.extend([9; 2]);
        }
        let i420 = [luma(2), plane(1, 1), plane(2, 1)].concat();
        let rgb: Vec<u8> = picture().concat();
        let bgr: Vec<u8> = picture().iter().flat_map(|[r, g, b]| [*b, *g, *r]).collect();
        for shot in [
            shot(Layout::Yuyv, 16, yuyv),
            shot(Layout::Nv12, 8, nv12),
            shot(Layout::I420, 8, i420),
            shot(Layout::Rgb, 18, rgb),
            shot(Layout::Bgr, 18, bgr),
        ] {
            let layout = shot.layout;
            let frame = shot.into_frame(Mounting::default()).unwrap();
            assert_eq!(frame.captured_at(), Uptime::from_millis(7));
            for (told, wanted) in frame.pixels().iter().zip(picture().concat()) {
                assert!(told.abs_diff(wanted) <= 3, "{layout:?}: {told} instead of {wanted}");
            }
        }
        let grey = shot(Layout::Grey, 6, (0..24).collect()).into_frame(Mounting::default());
        assert_eq!(grey.unwrap().pixels()[3..6], [1, 1, 1]);
    }

    #[test]
    fn a_picture_that_is_cut_short_at_any_byte_is_refused() {
        for (layout, stride, whole) in [
            (Layout::Yuyv, 12, 48),
            (Layout::Nv12, 6, 36),
            (Layout::I420, 6, 36),
            (Layout::Grey, 6, 24),
            (Layout::Rgb, 18, 72),
        ] {
            for length in 0..whole {
                let cut = shot(layout, stride, vec![100; length]);
                let told = cut.into_frame(Mounting::default()).unwrap_err().to_string();
                assert!(told.contains("cut short"), "{layout:?} of {length} bytes: {told}");
            }
            assert!(shot(layout, stride, vec![100; whole]).into_frame(Mounting::default()).is_ok());
        }
    }

    #[test]
    fn a_jpeg_loses_what_was_in_the_buffer_behind_it() {
        let mut jpeg = Vec::new();
        let picture = RgbImage::from_fn(16, 16, |x, y| image::Rgb([x as u8 * 9, y as u8 * 9, 77]));
        let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 90);
        encoder.encode_image(&picture).unwrap();
        let whole = jpeg.len();
        jpeg.extend([0xab; 5_000]);
        let frame = shot(Layout::Jpeg, 0, jpeg.clone()).into_frame(Mounting::default()).unwrap();
        assert_eq!((frame.width(), frame.encoded().unwrap().len()), (16, whole));
        jpeg.truncate(whole / 2);
        assert!(shot(Layout::Jpeg, 0, jpeg).into_frame(Mounting::default()).is_err());
    }

    #[test]
    fn a_camera_on_its_side_or_in_a_mirror_is_put_right() {
        // 2 by 1: A B.
        let frame = || Frame::from_rgb(vec![1, 1, 1, 2, 2, 2], 2, 1, Uptime::ZERO).unwrap();
        let look = |quarter_turns, mirrored| {
            let frame = turned(frame(), Mounting { quarter_turns, mirrored }).unwrap();
            (frame.width(), frame.pixels().iter().step_by(3).copied().collect::<Vec<u8>>())
        };
        assert_eq!(look(0, false), (2, vec![1, 2]));
        assert_eq!(look(0, true), (2, vec![2, 1]));
        assert_eq!(look(1, false), (1, vec![1, 2]));
        assert_eq!(look(2, false), (2, vec![2, 1]));
        assert_eq!(look(3, false), (1, vec![2, 1]));
        assert_eq!(look(2, true), (2, vec![1, 2]));
    }
}
