//! A scene that is composed: a background, actors that walk across it, and a camera's noise.
//! The same scene gives the same frames, bit for bit.

use std::time::Duration;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage, RgbaImage};
use pawlatch_core::frame::Frame;
use pawlatch_core::units::Uptime;

use super::{CameraError, FrameSource, frame_time};

/// Somebody who walks through the picture on a straight line.
#[derive(Debug, Clone)]
pub struct Actor {
    /// The cut-out, transparent around the outline.
    pub picture: RgbaImage,
    /// When it appears, from the start of the scene.
    pub enters: Duration,
    /// When it is gone.
    pub leaves: Duration,
    /// Where the middle of its feet is at first, in fractions of the picture.
    pub from: (f32, f32),
    /// Where they are at last.
    pub to: (f32, f32),
    /// Its height at first and at last, in fractions of the picture's height: who comes nearer
    /// grows.
    pub height: (f32, f32),
}

/// What the simulated camera films.
#[derive(Debug, Clone)]
pub struct Scene {
    /// The empty view; its size is that of the frames.
    pub background: RgbImage,
    /// Who walks through it, the nearest last.
    pub actors: Vec<Actor>,
    /// How long it lasts; `None`: for ever.
    pub length: Option<Duration>,
    /// Amplitude of the camera's noise, luma levels of 255.
    pub noise: u8,
    /// Seed of the noise.
    pub seed: u64,
}

impl Scene {
    /// An empty yard of 640 by 480: sky, lawn, a path and a fence.
    pub fn yard() -> Self {
        let background = RgbImage::from_fn(640, 480, |x, y| {
            let speckle = (hash(u64::from(y) << 32 | u64::from(x)) % 24) as u8;
            let on_path = (x as i32 - 320).unsigned_abs() < 40 + y.saturating_sub(180) / 3;
            if y < 140 {
                Rgb([150, 180, 210 - (y / 4) as u8])
            } else if y < 190 {
                let gap = x % 32 < 4;
                if gap { Rgb([60, 70, 60]) } else { Rgb([140 - speckle / 2, 110, 80]) }
            } else if on_path {
                Rgb([150 - speckle, 145 - speckle, 135 - speckle])
            } else {
                Rgb([60 + speckle / 2, 110 + speckle, 50 + speckle / 3])
            }
        });
        Self { background, actors: Vec::new(), length: None, noise: 2, seed: 1 }
    }

    /// The picture at `at` from the start, without the camera's noise.
    fn paint(&self, at: Duration) -> RgbImage {
        let mut picture = self.background.clone();
        for actor in &self.actors {
            actor.paint(at, &mut picture);
        }
        picture
    }
}

impl Actor {
    fn paint(&self, at: Duration, picture: &mut RgbImage) {
        if at < self.enters || at >= self.leaves {
            return;
        }
        let whole = (self.leaves - self.enters).as_secs_f32();
        let part = (at - self.enters).as_secs_f32() / whole;
        let between = |a: f32, b: f32| a + (b - a) * part;
        let (w, h) = (picture.width() as f32, picture.height() as f32);
        let (x, y) = (between(self.from.0, self.to.0) * w, between(self.from.1, self.to.1) * h);
        let tall = (between(self.height.0, self.height.1) * h).clamp(1.0, 4.0 * h);
        let aspect = self.picture.width() as f32 / self.picture.height().max(1) as f32;
        let wide = (tall * aspect).clamp(1.0, 4.0 * w);
        let sprite =
            imageops::resize(&self.picture, wide as u32, tall as u32, FilterType::Triangle);
        let (left, top) = ((x - wide / 2.0) as i64, (y - tall) as i64);
        for (sx, sy, pixel) in sprite.enumerate_pixels() {
            let (px, py) = (left + i64::from(sx), top + i64::from(sy));
            let inside = (0..i64::from(picture.width())).contains(&px)
                && (0..i64::from(picture.height())).contains(&py);
            if inside {
                let alpha = u16::from(pixel.0[3]);
                let under = picture.get_pixel_mut(px as u32, py as u32);
                for c in 0..3 {
                    let mixed =
                        u16::from(pixel.0[c]) * alpha + u16::from(under.0[c]) * (255 - alpha);
                    under.0[c] = (mixed / 255) as u8;
                }
            }
        }
    }
}

/// Films a [`Scene`].
#[derive(Debug, Clone)]
pub struct SimulatedSource {
    scene: Scene,
    fps: f32,
    played: u64,
}

impl SimulatedSource {
    /// Films `scene` at `fps` frames per second.
    pub const fn new(scene: Scene, fps: f32) -> Self {
        Self { scene, fps, played: 0 }
    }
}

impl FrameSource for SimulatedSource {
    fn next(&mut self) -> Result<Option<Frame>, CameraError> {
        let at = frame_time(self.played, self.fps);
        let since = at.since(Uptime::ZERO);
        if self.scene.length.is_some_and(|length| since >= length) {
            return Ok(None);
        }
        let picture = self.scene.paint(since);
        let (width, height) = picture.dimensions();
        let mut pixels = picture.into_raw();
        add_noise(&mut pixels, self.scene.noise, self.scene.seed, self.played);
        self.played += 1;
        let frame = Frame::from_rgb(pixels, width, height, at);
        frame
            .map(Some)
            .map_err(|e| CameraError::Video { path: "sim:".into(), problem: e.to_string() })
    }
}

/// Adds noise of up to ± `amplitude` to each channel: one draw serves eight bytes.
fn add_noise(pixels: &mut [u8], amplitude: u8, seed: u64, frame: u64) {
    if amplitude == 0 {
        return;
    }
    let span = 2 * u16::from(amplitude) + 1;
    let start = hash(seed ^ hash(frame));
    for (n, chunk) in pixels.chunks_mut(8).enumerate() {
        let mut draw = hash(start.wrapping_add(n as u64));
        for byte in chunk {
            let shift = ((draw as u16 & 0xff) * span) >> 8;
            *byte = (u16::from(*byte) + shift).saturating_sub(amplitude.into()).min(255) as u8;
            draw >>= 8;
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood, 2014): a well-mixed number for each number.
fn hash(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
