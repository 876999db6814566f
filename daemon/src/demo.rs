//! The visits of the demonstration: photographs of animals (see assets/ATTRIBUTION.md) walking up
//! over a photograph of a yard, with the grain of a small sensor, so that no two frames are equal.
//!
//! Only the pictures are composed. What looks at them and decides is the system as it runs on the
//! door.

use image::{Rgb, RgbImage, RgbaImage, imageops};
use pawlatch_core::door::{LatchReport, Position};
use pawlatch_core::frame::Frame;
use pawlatch_core::units::Uptime;
use thiserror::Error;

use crate::camera::{CameraError, FrameSource};

/// Frames per second.
pub const FPS: u64 = 10;
/// How long the yard is empty between two visits of the endless film, milliseconds.
const PAUSE_MS: u64 = 8_000;
/// Strength of the grain, luma levels.
const GRAIN: i32 = 5;

/// Why the demonstration cannot begin.
#[derive(Debug, Error)]
pub enum DemoError {
    /// A picture in the program cannot be decoded.
    #[error("the bundled picture {name} is damaged; build the program again")]
    Picture {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: image::ImageError,
    },
}

/// An animal that can be put into the yard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Animal {
    Dog,
    Cat,
    Hedgehog,
}

/// Where an animal is at a time: the middle of its feet and its height, in pixels.
#[derive(Debug, Clone, Copy)]
struct Stand {
    ms: u64,
    x: f32,
    y: f32,
    height: f32,
}

const fn stand(ms: u64, x: f32, y: f32, height: f32) -> Stand {
    Stand { ms, x, y, height }
}

/// An animal and its way through the yard. It is there from its first stand to its last.
#[derive(Debug, Clone)]
struct Actor {
    animal: Animal,
    mirrored: bool,
    way: Vec<Stand>,
}

/// One visit.
#[derive(Debug, Clone)]
pub struct Visit {
    /// What the visit is called.
    pub title: &'static str,
    /// What happens in it.
    pub about: &'static str,
    actors: Vec<Actor>,
    length_ms: u64,
    /// When somebody stands in the passage, if the latch lets them.
    passes: Option<(u64, u64)>,
}

/// The visits, in order.
pub fn visits() -> Vec<Visit> {
    let dog = |way| Actor { animal: Animal::Dog, mirrored: false, way };
    let cat = |way| Actor { animal: Animal::Cat, mirrored: false, way };
    vec![
        Visit {
            title: "The dog comes home",
            about: "She crosses the yard, waits at the flap and goes in.",
            actors: vec![dog(vec![
                stand(1_000, 40.0, 330.0, 110.0),
                stand(3_600, 290.0, 440.0, 290.0),
                stand(5_000, 320.0, 462.0, 330.0),
                stand(5_800, 330.0, 560.0, 400.0),
            ])],
            length_ms: 9_000,
            passes: Some((5_200, 6_600)),
        },
        Visit {
            title: "The neighbour’s cat",
            about: "She looks right into the camera and would like to come in too.",
            actors: vec![cat(vec![
                stand(1_000, -330.0, 495.0, 500.0),
                stand(2_600, -20.0, 495.0, 500.0),
                stand(6_000, 90.0, 497.0, 506.0),
                stand(7_200, -330.0, 495.0, 500.0),
            ])],
            length_ms: 8_500,
            passes: None,
        },
        Visit {
            title: "The dog brings the cat along",
            about: "Opening for one would let in both.",
            actors: vec![
                dog(vec![
                    stand(2_000, 720.0, 390.0, 180.0),
                    stand(3_400, 500.0, 435.0, 240.0),
                    stand(7_000, 470.0, 442.0, 255.0),
                ]),
                cat(vec![
                    stand(600, -330.0, 495.0, 500.0),
                    stand(1_800, -60.0, 495.0, 500.0),
                    stand(7_000, 0.0, 495.0, 500.0),
                ]),
            ],
            length_ms: 8_000,
            passes: None,
        },
        Visit {
            title: "A hedgehog",
            about: "Neither dog nor cat, and not known to the rules.",
            actors: vec![Actor {
                animal: Animal::Hedgehog,
                mirrored: true,
                way: vec![
                    stand(800, 560.0, 420.0, 110.0),
                    stand(4_500, 330.0, 445.0, 190.0),
                    stand(6_500, 280.0, 450.0, 195.0),
                ],
            }],
            length_ms: 8_000,
            passes: None,
        },
    ]
}

impl Visit {
    /// Whether the dog comes alone, so that the door should open.
    pub fn is_of_the_dog(&self) -> bool {
        self.actors.iter().all(|actor| actor.animal == Animal::Dog)
    }

    /// Whether the passage beam is broken at `now`: when somebody wants through and the latch,
    /// as last reported, is drawn.
    pub fn passage(&self, now: Uptime, latch: Option<LatchReport>) -> Option<bool> {
        let wants = self.passes.is_some_and(|(from, to)| (from..to).contains(&now.as_millis()));
        let open = latch.is_some_and(|report| report.position == Position::Unlocked);
        Some(wants && open)
    }
}

/// The yard and the animals, decoded.
pub struct Yard {
    ground: RgbImage,
    dog: RgbaImage,
    cat: RgbaImage,
    hedgehog: RgbaImage,
}

impl Yard {
    /// Decodes the bundled pictures.
    ///
    /// # Errors
    /// If one is damaged.
    pub fn load() -> Result<Self, DemoError> {
        let decode = |name, bytes: &[u8]| {
            image::load_from_memory(bytes).map_err(|source| DemoError::Picture { name, source })
        };
        Ok(Self {
            ground: decode("yard.jpg", include_bytes!("../assets/yard.jpg"))?.to_rgb8(),
            dog: decode("dog.webp", include_bytes!("../assets/dog.webp"))?.to_rgba8(),
            cat: decode("cat.webp", include_bytes!("../assets/cat.webp"))?.to_rgba8(),
            hedgehog: decode("hedgehog.webp", include_bytes!("../assets/hedgehog.webp"))?
                .to_rgba8(),
        })
    }

    /// The frames of `visit`.
    pub fn film<'a>(&'a self, visit: &'a Visit) -> Film<'a> {
        Film { yard: self, visit, number: 0 }
    }

    fn frame(&self, visit: &Visit, ms: u64, at: Uptime) -> Result<Frame, CameraError> {
        let picture = self.scene(visit, ms);
        let (width, height) = picture.dimensions();
        Frame::from_rgb(picture.into_raw(), width, height, at)
            .map_err(|source| CameraError::Picture { path: "yard.jpg".into(), source })
    }

    /// What the camera sees `ms` milliseconds into `visit`.
    pub fn scene(&self, visit: &Visit, ms: u64) -> RgbImage {
        let mut picture = self.ground.clone();
        let mut there: Vec<(&Actor, Stand)> =
            visit.actors.iter().filter_map(|a| Some((a, at(&a.way, ms)?))).collect();
        // Who stands lower is nearer and covers the others.
        there.sort_by(|a, b| a.1.y.total_cmp(&b.1.y));
        for (actor, stand) in there {
            self.put(&mut picture, actor, stand);
        }
        add_grain(&mut picture, ms);
        picture
    }

    fn put(&self, picture: &mut RgbImage, actor: &Actor, stand: Stand) {
        let cutout = match actor.animal {
            Animal::Dog => &self.dog,
            Animal::Cat => &self.cat,
            Animal::Hedgehog => &self.hedgehog,
        };
        let height = stand.height.round().max(1.0) as u32;
        let width = (height * cutout.width() / cutout.height()).max(1);
        let mut sized = imageops::resize(cutout, width, height, imageops::FilterType::Triangle);
        if actor.mirrored {
            imageops::flip_horizontal_in_place(&mut sized);
        }
        add_shadow(picture, stand, width as f32);
        let x = (stand.x - width as f32 / 2.0).round() as i64;
        let y = (stand.y - stand.height).round() as i64;
        for (dx, dy, pixel) in sized.enumerate_pixels() {
            let [r, g, b, a] = pixel.0;
            blend(picture, x + i64::from(dx), y + i64::from(dy), [r, g, b], f32::from(a) / 255.0);
        }
    }
}

/// The frames of a visit, one after another.
pub struct Film<'a> {
    yard: &'a Yard,
    visit: &'a Visit,
    number: u64,
}

impl FrameSource for Film<'_> {
    fn next(&mut self) -> Result<Option<Frame>, CameraError> {
        let ms = self.number * 1_000 / FPS;
        self.number += 1;
        if ms > self.visit.length_ms {
            return Ok(None);
        }
        self.yard.frame(self.visit, ms, Uptime::from_millis(ms)).map(Some)
    }
}

/// All visits, one after another and again from the beginning, without end: a camera for whoever
/// has none yet.
pub struct Endless {
    yard: Yard,
    visits: Vec<Visit>,
    current: usize,
    number: u64,
    offset_ms: u64,
}

impl Endless {
    /// Begins with the first visit.
    ///
    /// # Errors
    /// If a bundled picture is damaged.
    pub fn new() -> Result<Self, DemoError> {
        let (yard, visits) = (Yard::load()?, visits());
        Ok(Self { yard, visits, current: 0, number: 0, offset_ms: 0 })
    }
}

impl FrameSource for Endless {
    fn next(&mut self) -> Result<Option<Frame>, CameraError> {
        let visit = &self.visits[self.current];
        let ms = self.number * 1_000 / FPS;
        if ms > visit.length_ms + PAUSE_MS {
            self.offset_ms += ms;
            self.current = (self.current + 1) % self.visits.len();
            self.number = 0;
            return self.next();
        }
        self.number += 1;
        self.yard.frame(visit, ms, Uptime::from_millis(self.offset_ms + ms)).map(Some)
    }
}

/// Where somebody on `way` is at `ms`, with the slight bob of a walk; `None` before and after.
fn at(way: &[Stand], ms: u64) -> Option<Stand> {
    let (from, to) = way.windows(2).find_map(|pair| match pair {
        [from, to] if (from.ms..to.ms).contains(&ms) => Some((*from, *to)),
        _ => None,
    })?;
    let share = (ms - from.ms) as f32 / (to.ms - from.ms) as f32;
    let between = |a: f32, b: f32| a + share * (b - a);
    let bob = (ms as f32 / 1_000.0 * 9.0).sin() * 0.006 * to.height;
    Some(Stand {
        ms,
        x: between(from.x, to.x),
        y: between(from.y, to.y) + bob,
        height: between(from.height, to.height),
    })
}

/// A soft dark ellipse under the feet.
fn add_shadow(picture: &mut RgbImage, stand: Stand, width: f32) {
    let (rx, ry) = (0.46 * width, 0.07 * stand.height);
    let cy = stand.y - 0.02 * stand.height;
    let (x0, x1) = ((stand.x - rx) as i64, (stand.x + rx) as i64);
    for y in (cy - ry) as i64..=(cy + ry) as i64 {
        for x in x0..=x1 {
            let d = ((x as f32 - stand.x) / rx).powi(2) + ((y as f32 - cy) / ry).powi(2);
            if d < 1.0 {
                blend(picture, x, y, [12, 18, 8], 0.45 * (1.0 - d));
            }
        }
    }
}

fn blend(picture: &mut RgbImage, x: i64, y: i64, ink: [u8; 3], alpha: f32) {
    let inside = (0..i64::from(picture.width())).contains(&x)
        && (0..i64::from(picture.height())).contains(&y);
    if inside && alpha > 0.0 {
        let Rgb(pixel) = picture.get_pixel_mut(x as u32, y as u32);
        for (value, ink) in pixel.iter_mut().zip(ink) {
            *value = (f32::from(*value) * (1.0 - alpha) + f32::from(ink) * alpha) as u8;
        }
    }
}

/// Grain that differs from frame to frame, the same every time: SplitMix64 (Steele and others,
/// 2014) seeded with the time.
fn add_grain(picture: &mut RgbImage, ms: u64) {
    let mut state = ms.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for pixel in picture.pixels_mut() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let level = ((z >> 40) % (2 * GRAIN as u64 + 1)) as i32 - GRAIN;
        for value in &mut pixel.0 {
            *value = (i32::from(*value) + level).clamp(0, 255) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pictures_decode_and_no_two_frames_are_equal() {
        let yard = Yard::load().unwrap();
        for visit in visits() {
            let mut film = yard.film(&visit);
            let first = film.next().unwrap().unwrap();
            let second = film.next().unwrap().unwrap();
            assert_ne!(first.pixels(), second.pixels());
            assert_eq!(second.captured_at(), Uptime::from_millis(100));
            let again = yard.film(&visit).next().unwrap().unwrap();
            assert_eq!(first.pixels(), again.pixels());
        }
    }

    #[test]
    fn the_endless_film_goes_on_and_its_time_never_runs_back() {
        let mut film = Endless::new().unwrap();
        let mut last = None;
        for round in 0..5 {
            assert_eq!(film.current, round % film.visits.len());
            // The last frame of this visit's yard, and the first of the next.
            film.number = (film.visits[film.current].length_ms + PAUSE_MS) / (1_000 / FPS);
            for _ in 0..2 {
                let at = film.next().unwrap().unwrap().captured_at();
                assert!(last.is_none_or(|last| at > last), "{at}");
                last = Some(at);
            }
        }
    }

    #[test]
    fn nobody_passes_a_locked_door() {
        let visits = visits();
        let report = |position| Some(LatchReport { position, at: Uptime::ZERO });
        let now = Uptime::from_millis(5_500);
        assert_eq!(visits[0].passage(now, report(Position::Unlocked)), Some(true));
        assert_eq!(visits[0].passage(now, report(Position::Locked)), Some(false));
        assert_eq!(visits[0].passage(now, None), Some(false));
        assert_eq!(visits[1].passage(now, report(Position::Unlocked)), Some(false));
    }
}
