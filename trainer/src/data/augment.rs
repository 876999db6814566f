//! Seeded distortions of training pictures: what a door camera does to an animal.
//!
//! Every draw comes from one generator, so a picture, a seed and an epoch give the same pixels on
//! every machine.

use std::io::Cursor;

use anyhow::Result;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage};
use pawlatch_core::units::Rect;
use rand::Rng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::net::zoo::standard_normal;

/// How likely and how strong each distortion is; probabilities are `0..=1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augmentation {
    /// Mirrored left to right.
    pub flip: f32,
    /// Smallest share of the picture's area that a random crop keeps.
    pub smallest_crop: f32,
    /// Largest change of a crop's aspect ratio, as a factor.
    pub stretch: f32,
    /// Brightness, contrast and saturation changed by up to this share.
    pub colour: f32,
    /// Turned grey, as under infra-red light.
    pub grey: f32,
    /// Darkened to between a tenth and a half, with sensor noise.
    pub dark: f32,
    /// Gaussian or motion blur of up to 9 pixels.
    pub blur: f32,
    /// Stored as JPEG of quality 10 to 60.
    pub jpeg: f32,
    /// Seen from so far that only 48 to 128 pixels are left.
    pub small: f32,
    /// A rectangle of up to a third of each side painted over.
    pub cut_out: f32,
    /// Up to half of the picture hidden behind an edge.
    pub half_hidden: f32,
    /// Turned by up to this many degrees.
    pub rotate_degrees: f32,
    /// An animal cut out of its picture laid on one of nothing.
    pub paste: f32,
}

impl Default for Augmentation {
    fn default() -> Self {
        Self {
            flip: 0.5,
            smallest_crop: 0.35,
            stretch: 1.33,
            colour: 0.35,
            grey: 0.2,
            dark: 0.15,
            blur: 0.15,
            jpeg: 0.15,
            small: 0.15,
            cut_out: 0.15,
            half_hidden: 0.15,
            rotate_degrees: 8.0,
            paste: 0.0,
        }
    }
}

impl Augmentation {
    /// Nothing changed: for validation.
    pub fn none() -> Self {
        Self {
            flip: 0.0,
            smallest_crop: 1.0,
            stretch: 1.0,
            colour: 0.0,
            grey: 0.0,
            dark: 0.0,
            blur: 0.0,
            jpeg: 0.0,
            small: 0.0,
            cut_out: 0.0,
            half_hidden: 0.0,
            rotate_degrees: 0.0,
            paste: 0.0,
        }
    }

    /// `part` of `picture`, distorted, as a square of `side` pixels.
    ///
    /// # Errors
    /// If the resizer or the JPEG codec fails.
    pub fn apply(
        &self,
        picture: &RgbImage,
        part: Rect,
        side: u32,
        rng: &mut StdRng,
    ) -> Result<RgbImage> {
        let part = self.crop(part, rng);
        let mut out = resized(picture, part, side)?;
        if rng.random::<f32>() < self.flip {
            image::imageops::flip_horizontal_in_place(&mut out);
        }
        if self.rotate_degrees > 0.0 && rng.random::<f32>() < 0.3 {
            out = rotated(&out, rng.random_range(-1.0..=1.0_f32) * self.rotate_degrees);
        }
        if rng.random::<f32>() < self.small {
            let few = rng.random_range(48..=128).min(side);
            let seen = resized(&out, Rect::WHOLE, few)?;
            out = resized(&seen, Rect::WHOLE, side)?;
        }
        if rng.random::<f32>() < self.blur {
            out = blurred(&out, rng);
        }
        self.light(&mut out, rng);
        if rng.random::<f32>() < self.half_hidden {
            hide_side(&mut out, rng);
        }
        if rng.random::<f32>() < self.cut_out {
            cut_out(&mut out, rng);
        }
        if rng.random::<f32>() < self.jpeg {
            let quality = rng.random_range(10..=60);
            out = recompressed(&out, quality)?;
        }
        Ok(out)
    }

    fn crop(&self, part: Rect, rng: &mut StdRng) -> Rect {
        if self.smallest_crop >= 1.0 {
            return part;
        }
        let area = rng.random_range(self.smallest_crop..=1.0);
        let ratio = self.stretch.powf(rng.random_range(-1.0..=1.0));
        let (w, h) = ((area * ratio).sqrt().min(1.0), (area / ratio).sqrt().min(1.0));
        let (x, y) = (rng.random_range(0.0..=1.0 - w), rng.random_range(0.0..=1.0 - h));
        Rect::clipped(x, y, x + w, y + h).map_or(part, |r| r.within(part))
    }

    fn light(&self, out: &mut RgbImage, rng: &mut StdRng) {
        let mut around = |spread: f32| 1.0 + rng.random_range(-1.0..=1.0_f32) * spread;
        let (gain, contrast, mut saturation) =
            (around(self.colour), around(self.colour), around(self.colour));
        let tint: [f32; 3] = std::array::from_fn(|_| around(self.colour * 0.3));
        let gamma = around(self.colour);
        if rng.random::<f32>() < self.grey {
            saturation = 0.0;
        }
        let dark = (rng.random::<f32>() < self.dark)
            .then(|| (rng.random_range(0.1..0.5_f32), rng.random_range(2.0..12.0_f32)));
        let plain = self.colour == 0.0 && saturation == 1.0 && dark.is_none();
        if plain {
            return;
        }
        let mean =
            out.as_raw().iter().map(|&v| f32::from(v)).sum::<f32>() / out.as_raw().len() as f32;
        for pixel in out.pixels_mut() {
            let [r, g, b] = pixel.0.map(f32::from);
            let luma = 0.299 * r + 0.587 * g + 0.114 * b;
            let noise = dark.map_or(0.0, |(_, sigma)| standard_normal(rng) * sigma);
            for (c, v) in [r, g, b].into_iter().enumerate() {
                let mut v = luma + (v - luma) * saturation;
                if saturation != 0.0 {
                    v *= tint[c];
                }
                v = ((v - mean) * contrast + mean) * gain;
                v = 255.0 * (v.clamp(0.0, 255.0) / 255.0).powf(gamma);
                if let Some((level, _)) = dark {
                    v = v * level + noise;
                }
                pixel.0[c] = v.clamp(0.0, 255.0) as u8;
            }
        }
    }
}

/// `part` of `picture` as a square of `side` pixels, with the same convolution as on the door.
///
/// # Errors
/// If the resizer refuses the sizes.
pub fn resized(picture: &RgbImage, part: Rect, side: u32) -> Result<RgbImage> {
    stretched(picture, part, side, side)
}

/// As [`resized`], of any size.
///
/// # Errors
/// If the resizer refuses the sizes.
pub fn stretched(picture: &RgbImage, part: Rect, width: u32, height: u32) -> Result<RgbImage> {
    let (w, h) = picture.dimensions();
    let [x0, y0, x1, y1] = part.to_pixels(w, h).map(f64::from);
    let source = ImageRef::new(w, h, picture.as_raw(), PixelType::U8x3)?;
    let mut target = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .use_alpha(false)
        .crop(
            x0,
            y0,
            (x1 - x0).max(1.0).min(f64::from(w) - x0),
            (y1 - y0).max(1.0).min(f64::from(h) - y0),
        );
    Resizer::new().resize(&source, &mut target, &options)?;
    RgbImage::from_raw(width, height, target.into_vec())
        .ok_or_else(|| anyhow::anyhow!("the resizer returned another size"))
}

/// Lays `part` of `picture` on `ground`: its longer side becomes 0.4 to 0.9 of the shorter side of
/// that, its place is drawn.
///
/// # Errors
/// If the resizer refuses the sizes.
pub fn laid_on(
    ground: &mut RgbImage,
    picture: &RgbImage,
    part: Rect,
    rng: &mut StdRng,
) -> Result<()> {
    let (gw, gh) = ground.dimensions();
    let [x0, y0, x1, y1] = part.to_pixels(picture.width(), picture.height());
    let scale = rng.random_range(0.4..0.9_f32) * gw.min(gh) as f32 / (x1 - x0).max(y1 - y0);
    let [w, h] = [x1 - x0, y1 - y0].map(|v| ((v * scale) as u32).max(1));
    let laid = stretched(picture, part, w, h)?;
    let (x, y) = (rng.random_range(0..=gw - w), rng.random_range(0..=gh - h));
    image::imageops::replace(ground, &laid, i64::from(x), i64::from(y));
    Ok(())
}

/// The picture after a JPEG encoder of `quality` (1 to 100).
///
/// # Errors
/// If the codec fails.
pub fn recompressed(picture: &RgbImage, quality: u8) -> Result<RgbImage> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(picture)?;
    Ok(image::load(Cursor::new(bytes), ImageFormat::Jpeg)?.to_rgb8())
}

/// Nearest pixels, edges repeated: a few degrees need no better.
fn rotated(picture: &RgbImage, degrees: f32) -> RgbImage {
    let (w, h) = picture.dimensions();
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (cx, cy) = (w as f32 / 2.0, h as f32 / 2.0);
    RgbImage::from_fn(w, h, |x, y| {
        let (dx, dy) = (x as f32 - cx, y as f32 - cy);
        let sx = (cx + dx * cos - dy * sin).clamp(0.0, (w - 1) as f32);
        let sy = (cy + dx * sin + dy * cos).clamp(0.0, (h - 1) as f32);
        *picture.get_pixel(sx as u32, sy as u32)
    })
}

/// A box blur twice (near Gaussian), or once in one direction (motion).
fn blurred(picture: &RgbImage, rng: &mut StdRng) -> RgbImage {
    let radius = rng.random_range(1..=4);
    match rng.random_range(0..3) {
        0 => box_blur(picture, radius, true),
        1 => box_blur(picture, radius, false),
        _ => gaussian(picture, radius),
    }
}

/// A near Gaussian blur of `2 * radius + 1` pixels.
pub fn gaussian(picture: &RgbImage, radius: u32) -> RgbImage {
    let once = box_blur(&box_blur(picture, radius, true), radius, false);
    let small = radius.div_ceil(2);
    box_blur(&box_blur(&once, small, true), small, false)
}

fn box_blur(picture: &RgbImage, radius: u32, across: bool) -> RgbImage {
    let (w, h) = picture.dimensions();
    let r = i64::from(radius);
    let reach = |v: u32, d: i64, size: u32| (i64::from(v) + d).clamp(0, i64::from(size) - 1) as u32;
    RgbImage::from_fn(w, h, |x, y| {
        let mut sum = [0_u32; 3];
        for d in -r..=r {
            let p = if across {
                picture.get_pixel(reach(x, d, w), y)
            } else {
                picture.get_pixel(x, reach(y, d, h))
            };
            for (sum, value) in sum.iter_mut().zip(p.0) {
                *sum += u32::from(value);
            }
        }
        image::Rgb(sum.map(|s| (s / (2 * radius + 1)) as u8))
    })
}

/// Paints one side of the picture, up to half, in one colour: an animal coming round a corner.
fn hide_side(picture: &mut RgbImage, rng: &mut StdRng) {
    let (w, h) = picture.dimensions();
    let share = rng.random_range(0.2..0.5_f32);
    let (cw, ch) = ((w as f32 * share) as u32, (h as f32 * share) as u32);
    let (x, y, pw, ph) = match rng.random_range(0..4) {
        0 => (0, 0, cw, h),
        1 => (w - cw, 0, cw, h),
        2 => (0, 0, w, ch),
        _ => (0, h - ch, w, ch),
    };
    paint(picture, [x, y, pw, ph], rng);
}

fn cut_out(picture: &mut RgbImage, rng: &mut StdRng) {
    let (w, h) = picture.dimensions();
    let (pw, ph) = (rng.random_range(w / 8..=w / 3), rng.random_range(h / 8..=h / 3));
    let (x, y) = (rng.random_range(0..=w - pw), rng.random_range(0..=h - ph));
    paint(picture, [x, y, pw, ph], rng);
}

fn paint(picture: &mut RgbImage, [x, y, w, h]: [u32; 4], rng: &mut StdRng) {
    let level: u8 = rng.random_range(0..=255);
    let colour: [u8; 3] = std::array::from_fn(|_| level.saturating_add(rng.random_range(0..=40)));
    for py in y..y + h {
        for px in x..x + w {
            picture.put_pixel(px, py, image::Rgb(colour));
        }
    }
}

/// One fixed distortion, for measuring what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Corruption {
    /// Without colour.
    Grey,
    /// A quarter of the light, with noise of 8 levels.
    Dark,
    /// A near Gaussian blur of 9 pixels.
    Blur,
    /// JPEG of quality 20.
    Jpeg,
    /// The right half hidden.
    HalfHidden,
    /// 96 pixels on the longer side.
    Small,
}

impl Corruption {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Grey, Self::Dark, Self::Blur, Self::Jpeg, Self::HalfHidden, Self::Small];

    /// The distorted picture; noise is drawn from `rng`.
    ///
    /// # Errors
    /// If a codec fails.
    pub fn apply(self, picture: &RgbImage, rng: &mut StdRng) -> Result<RgbImage> {
        let (w, h) = picture.dimensions();
        Ok(match self {
            Self::Grey => {
                let mut out = picture.clone();
                for p in out.pixels_mut() {
                    let [r, g, b] = p.0.map(f32::from);
                    p.0 = [(0.299 * r + 0.587 * g + 0.114 * b) as u8; 3];
                }
                out
            }
            Self::Dark => {
                let mut out = picture.clone();
                for p in out.pixels_mut() {
                    p.0 = p.0.map(|v| {
                        (f32::from(v) * 0.25 + standard_normal(rng) * 8.0).clamp(0.0, 255.0) as u8
                    });
                }
                out
            }
            Self::Blur => gaussian(picture, 4),
            Self::Jpeg => recompressed(picture, 20)?,
            Self::HalfHidden => {
                let mut out = picture.clone();
                for (x, _, p) in out.enumerate_pixels_mut() {
                    if x >= w / 2 {
                        p.0 = [127; 3];
                    }
                }
                out
            }
            Self::Small => {
                let scale = 96.0 / w.max(h) as f32;
                let to = |v: u32| ((v as f32 * scale) as u32).max(1);
                image::imageops::resize(
                    picture,
                    to(w),
                    to(h),
                    image::imageops::FilterType::Triangle,
                )
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn picture() -> RgbImage {
        RgbImage::from_fn(80, 60, |x, y| image::Rgb([(x * 3) as u8, (y * 4) as u8, (x + y) as u8]))
    }

    #[test]
    fn the_same_seed_gives_the_same_pixels_and_another_does_not() {
        let distort = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            Augmentation::default().apply(&picture(), Rect::WHOLE, 64, &mut rng).unwrap()
        };
        assert_eq!(distort(3), distort(3));
        assert_ne!(distort(3), distort(4));
    }

    #[test]
    fn what_is_laid_on_a_picture_keeps_its_shape_and_is_all_there() {
        let red = RgbImage::from_pixel(80, 60, image::Rgb([255, 0, 0]));
        let part = Rect::try_from([0.0, 0.0, 0.5, 1.0]).unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..20 {
            let mut ground = RgbImage::from_pixel(64, 64, image::Rgb([90; 3]));
            laid_on(&mut ground, &red, part, &mut rng).unwrap();
            let red: Vec<_> = ground.enumerate_pixels().filter(|(.., p)| p.0[0] == 255).collect();
            let span = |at: &dyn Fn(u32, u32) -> u32| {
                let all = || red.iter().map(|(x, y, _)| at(*x, *y));
                all().max().unwrap() - all().min().unwrap() + 1
            };
            let (w, h) = (span(&|x, _| x), span(&|_, y| y));
            assert_eq!(red.len() as u32, w * h);
            assert!((25..=58).contains(&h) && (w * 60).abs_diff(h * 40) <= 60, "{w} by {h}");
        }
    }

    #[test]
    fn without_augmentation_the_picture_is_only_resized() {
        let mut rng = StdRng::seed_from_u64(1);
        let plain = Augmentation::none().apply(&picture(), Rect::WHOLE, 64, &mut rng).unwrap();
        assert_eq!(plain, resized(&picture(), Rect::WHOLE, 64).unwrap());
    }

    #[test]
    fn corruptions_do_what_they_say() {
        let mut rng = StdRng::seed_from_u64(1);
        let p = picture();
        let grey = Corruption::Grey.apply(&p, &mut rng).unwrap();
        assert!(grey.pixels().all(|p| p.0[0] == p.0[1] && p.0[1] == p.0[2]));
        let dark = Corruption::Dark.apply(&p, &mut rng).unwrap();
        let sum = |p: &RgbImage| p.as_raw().iter().map(|&v| u64::from(v)).sum::<u64>();
        assert!(sum(&dark) * 3 < sum(&p));
        let hidden = Corruption::HalfHidden.apply(&p, &mut rng).unwrap();
        assert_eq!(hidden.get_pixel(79, 0).0, [127; 3]);
        assert_eq!(hidden.get_pixel(0, 0), p.get_pixel(0, 0));
    }
}
