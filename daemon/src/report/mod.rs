//! The report of a replay: one HTML file that needs nothing else, for a person to understand what
//! was decided and why.
//!
//! [`Chapter`] gathers one replay step by step and keeps only what is shown; [`Story`] puts
//! chapters and models together and writes the page. The same replay gives the same page, byte
//! for byte.

mod curve;
mod page;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder as _, RgbImage, imageops};
use pawlatch_core::door::{Decision, DoorSettings, ProofKind};
use pawlatch_core::event::{Event, What};
use pawlatch_core::frame::{Frame, PictureError};
use pawlatch_core::sight::{Class, Sighting, Sightings};
use pawlatch_core::units::{Rect, Uptime};
use pawlatch_core::vision::{Localiser, VisionError};
use thiserror::Error;

use crate::models::{InUse, ModelsError, read_limited};
use crate::overlay;
use crate::replay::{Moment, Summary, Tally, value};
pub use page::proof_row;

/// Longest side of the pictures in the report, pixels.
const SIDE: u32 = 480;
/// Quality of their JPEG.
const QUALITY: u8 = 80;
/// Most small pictures in one chapter.
const MAX_SHOTS: usize = 12;
/// Time between the small pictures, to begin with; doubled whenever there are too many.
const SHOT_EVERY: Duration = Duration::from_millis(400);
/// Largest picture of the journal that is read, bytes.
const MAX_STORED_BYTES: u64 = 64 << 20;

/// Why a report cannot be made.
#[derive(Debug, Error)]
pub enum ReportError {
    /// A picture cannot be put into it.
    #[error("a picture cannot be put into the report")]
    Encode(#[from] image::ImageError),
    /// A recorded picture cannot be read.
    #[error("a recorded picture cannot be read")]
    Stored(#[source] ModelsError),
    /// A recorded picture cannot be decoded.
    #[error("a recorded picture cannot be decoded")]
    Picture(#[from] PictureError),
    /// The heat map cannot be made.
    #[error("the heat map cannot be made")]
    Heat(#[from] VisionError),
}

/// The limits that evidence is held against.
#[derive(Debug, Clone, Copy)]
struct Limits {
    accept: f32,
    reject: f32,
    veto: f32,
}

/// Evidence for a track at one time.
#[derive(Debug, Clone, Copy)]
struct Point {
    at: Uptime,
    dog: f32,
    cat: f32,
}

/// One track over time.
#[derive(Debug, Clone, Default)]
struct Curve {
    points: Vec<Point>,
    /// What it was taken for at the end; `None` if that is not known.
    best: Option<Class>,
}

/// A picture with what was seen in it.
#[derive(Debug, Clone)]
struct Shot {
    at: Uptime,
    jpeg: Vec<u8>,
    width: u32,
    height: u32,
    boxes: Vec<Boxed>,
    state: &'static str,
    /// What happened then, in words.
    happened: Option<String>,
}

/// A box with its label.
#[derive(Debug, Clone)]
pub struct Boxed {
    /// Where.
    pub rect: Rect,
    /// What, in whose colour.
    pub class: Class,
    /// What is written on it.
    pub label: String,
}

/// The heat of a class as a transparent PNG over the decisive picture.
#[derive(Debug, Clone)]
struct HeatPicture {
    class: Class,
    png: Vec<u8>,
    region: Rect,
}

/// One replay on its way into the report.
#[derive(Debug)]
pub struct Chapter {
    title: String,
    about: String,
    limits: Limits,
    tally: Tally,
    curves: BTreeMap<u32, Curve>,
    /// When each state began.
    states: Vec<(Uptime, &'static str)>,
    events: Vec<Event>,
    shots: Vec<Shot>,
    shot_every: Duration,
    newest: Option<(Frame, Option<Sightings>)>,
    /// What was seen in frames of which only the journal may have a picture.
    recorded: Vec<(Uptime, Vec<Boxed>)>,
    decisive: Option<(Frame, Shot)>,
    heat: Option<HeatPicture>,
    ended: Uptime,
}

impl Chapter {
    /// An empty chapter of a door with these `settings`; `about` says what was played.
    pub fn new(title: &str, about: &str, settings: &DoorSettings) -> Self {
        let limits = Limits {
            accept: settings.budget.accept(),
            reject: settings.budget.reject(),
            veto: settings.veto,
        };
        Self {
            title: title.to_owned(),
            about: about.to_owned(),
            limits,
            tally: Tally::default(),
            curves: BTreeMap::new(),
            states: Vec::new(),
            events: Vec::new(),
            shots: Vec::new(),
            shot_every: SHOT_EVERY,
            newest: None,
            recorded: Vec::new(),
            decisive: None,
            heat: None,
            ended: Uptime::ZERO,
        }
    }

    /// Adds one step.
    ///
    /// # Errors
    /// If its picture cannot be encoded.
    pub fn add(&mut self, moment: &Moment<'_>) -> Result<(), ReportError> {
        let decision = moment.decision;
        let state = decision.state.name();
        self.ended = decision.at;
        if self.states.last().is_none_or(|(_, last)| *last != state) {
            self.states.push((decision.at, state));
        }
        self.events.extend(decision.events.iter().cloned());
        self.add_evidence(moment);
        if let Some(frame) = moment.frame {
            self.newest = Some((frame.clone(), moment.sightings.cloned()));
        } else if let Some(sightings) = moment.sightings {
            self.recorded.push((sightings.captured_at, boxes(sightings)));
        }
        if self.tally.add(decision, moment.sightings.is_some())
            && let Some((frame, sightings)) = &self.newest
        {
            let shot = shot(frame, sightings.as_ref(), decision)?;
            self.decisive = Some((frame.clone(), shot));
        }
        self.add_shot(decision)
    }

    /// Adds a picture that the journal kept. Boxes and evidence come from the recorded inputs.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn add_stored(&mut self, at: Uptime, path: &Path) -> Result<(), ReportError> {
        let bytes = read_limited(path, MAX_STORED_BYTES).map_err(ReportError::Stored)?;
        let frame = Frame::decode(bytes, at)?;
        let state = self.states.iter().rev().find(|(began, _)| *began <= at);
        let happened = self.events.iter().find(|e| e.at == at && tells(&e.what));
        let seen = self.recorded.iter().rev().find(|(taken, _)| *taken <= at);
        let (jpeg, width, height) = encode(&frame)?;
        let shot = Shot {
            at,
            jpeg,
            width,
            height,
            boxes: seen.map_or(Vec::new(), |(_, boxes)| boxes.clone()),
            state: state.map_or("", |(_, name)| name),
            happened: happened.map(ToString::to_string),
        };
        let decisive_at = self.tally.decisive().map(|d| d.at);
        if decisive_at.is_some_and(|decisive| at <= decisive) {
            self.decisive = Some((frame, shot.clone()));
        }
        self.shots.push(shot);
        self.thin_out();
        Ok(())
    }

    /// Lets `localiser` say where it sees what decided, in the picture at that moment.
    ///
    /// # Errors
    /// If the network fails.
    pub fn add_heat(&mut self, localiser: &mut Localiser) -> Result<(), ReportError> {
        let Some((frame, _)) = &self.decisive else { return Ok(()) };
        let heat = localiser.localise(frame, Rect::WHOLE)?.heat;
        let class = match self.tally.decisive() {
            Some(d) if value(d, ProofKind::NoCat) >= self.limits.veto => Class::Cat,
            Some(d) => refused(d).unwrap_or(Class::Dog),
            None => Class::Dog,
        };
        let (width, height) = fitted(frame.width() / 2, frame.height() / 2, SIDE);
        if let Some(alpha) = overlay::enlarged(&heat, class, width, height) {
            let picture = image::RgbaImage::from_fn(width, height, |x, y| {
                let heat = alpha.get_pixel(x, y).0[0].clamp(0.0, 1.0);
                let [r, g, b] = overlay::colour(class);
                image::Rgba([r, g, b, (heat * 200.0) as u8])
            });
            let mut png = Vec::new();
            picture.write_to(&mut io::Cursor::new(&mut png), image::ImageFormat::Png)?;
            self.heat = Some(HeatPicture { class, png, region: heat.region });
        }
        Ok(())
    }

    /// The evidence over time as a drawing (SVG).
    pub fn curve(&self) -> maud::Markup {
        curve::curve(self)
    }

    /// What came of it.
    pub fn summary(&self) -> Summary {
        self.tally.summary()
    }

    fn add_evidence(&mut self, moment: &Moment<'_>) {
        let decision = moment.decision;
        let at = decision.at;
        for track in moment.tracks {
            let curve = self.curves.entry(track.id).or_default();
            curve.points.push(Point { at, dog: track.dog, cat: track.cat });
            curve.best = Some(track.best());
        }
        // A recording holds no tracks, but every decision names its target and evidence.
        if let (true, Some(id)) = (moment.tracks.is_empty(), decision.target) {
            let dog = value(decision, ProofKind::Evidence);
            let cat = value(decision, ProofKind::NoCat);
            self.curves.entry(id).or_default().points.push(Point { at, dog, cat });
        }
    }

    fn add_shot(&mut self, decision: &Decision) -> Result<(), ReportError> {
        let Some((frame, sightings)) = &self.newest else { return Ok(()) };
        let last = self.shots.last().map(|s| s.at);
        let at = frame.captured_at();
        let due = last.is_none_or(|last| at.since(last) >= self.shot_every);
        let told = decision.events.iter().any(|e| tells(&e.what));
        if told || (due && last != Some(at)) {
            let shot = shot(frame, sightings.as_ref(), decision)?;
            self.shots.push(shot);
            self.thin_out();
        }
        Ok(())
    }

    /// Keeps the number of shots bounded: drops every other one in which nothing happened.
    fn thin_out(&mut self) {
        if self.shots.len() <= MAX_SHOTS {
            return;
        }
        self.shot_every *= 2;
        let mut kept = Vec::new();
        let mut dropped_last = true;
        for shot in self.shots.drain(..) {
            let drop = !dropped_last && shot.happened.is_none();
            if !drop {
                kept.push(shot);
            }
            dropped_last = drop;
        }
        kept.truncate(2 * MAX_SHOTS);
        self.shots = kept;
    }
}

/// What is shown of a model.
#[derive(Debug, Clone)]
struct ModelFacts {
    task: String,
    name: String,
    version: String,
    licence: String,
    sha256: String,
}

/// A whole report.
#[derive(Debug)]
pub struct Story {
    title: String,
    models: Vec<ModelFacts>,
    chapters: Vec<Chapter>,
}

impl Story {
    /// A report of `chapters`, decided with the models `in_use`.
    pub fn new(title: &str, in_use: &InUse, chapters: Vec<Chapter>) -> Self {
        let models = in_use
            .entries()
            .map(|entry| {
                let m = &entry.manifest;
                ModelFacts {
                    task: m.task.to_string(),
                    name: m.name.clone(),
                    version: m.version.clone(),
                    licence: m.licence.clone(),
                    sha256: m.sha256.clone(),
                }
            })
            .collect();
        Self { title: title.to_owned(), models, chapters }
    }

    /// The page.
    pub fn to_html(&self) -> String {
        page::page(self).into_string()
    }
}

/// Whether the owner wants to see the picture of it.
const fn tells(what: &What) -> bool {
    matches!(
        what,
        What::ApproachBegan
            | What::Opened { .. }
            | What::Refused { .. }
            | What::Passing
            | What::Relocking { .. }
            | What::FaultRaised { .. }
    )
}

fn refused(decision: &Decision) -> Option<Class> {
    decision.events.iter().find_map(|e| match e.what {
        What::Refused { class } => Some(class),
        _ => None,
    })
}

fn shot(
    frame: &Frame,
    sightings: Option<&Sightings>,
    decision: &Decision,
) -> Result<Shot, ReportError> {
    let (jpeg, width, height) = encode(frame)?;
    let boxes = sightings.map_or(Vec::new(), boxes);
    let happened = decision.events.iter().rfind(|e| tells(&e.what));
    Ok(Shot {
        at: frame.captured_at(),
        jpeg,
        width,
        height,
        boxes,
        state: decision.state.name(),
        happened: happened.map(ToString::to_string),
    })
}

/// The boxes around what was seen, with the classifier's word where there is one.
pub fn boxes(sightings: &Sightings) -> Vec<Boxed> {
    let boxed = |sighting: &Sighting| {
        let found = &sighting.detection;
        let (class, score) = match &sighting.classification {
            Some(c) => (c.probs.best(), c.probs.of(c.probs.best())),
            None => (found.class, found.score),
        };
        let label = format!("{class} {:.0} %", 100.0 * score.get());
        Boxed { rect: found.rect, class, label }
    };
    sightings.seen.iter().map(boxed).collect()
}

/// The frame as a JPEG of at most [`SIDE`] pixels, and its size.
fn encode(frame: &Frame) -> Result<(Vec<u8>, u32, u32), ReportError> {
    let whole = RgbImage::from_raw(frame.width(), frame.height(), frame.pixels().to_vec())
        .unwrap_or_else(|| RgbImage::new(frame.width(), frame.height()));
    Ok(jpeg(whole, SIDE)?)
}

/// The picture as a JPEG whose longest side is at most `side` pixels, and its size.
///
/// # Errors
/// If it cannot be encoded.
pub fn jpeg(picture: RgbImage, side: u32) -> Result<(Vec<u8>, u32, u32), image::ImageError> {
    let (width, height) = fitted(picture.width(), picture.height(), side);
    let small = if (width, height) == picture.dimensions() {
        picture
    } else {
        imageops::resize(&picture, width, height, imageops::FilterType::Triangle)
    };
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY).write_image(
        &small,
        width,
        height,
        ExtendedColorType::Rgb8,
    )?;
    Ok((jpeg, width, height))
}

/// The size of a picture of `width` by `height` scaled down to `side`, if it is larger.
fn fitted(width: u32, height: u32, side: u32) -> (u32, u32) {
    let longest = width.max(height).max(1);
    if longest <= side {
        return (width.max(1), height.max(1));
    }
    let scaled = |of: u32| (u64::from(of) * u64::from(side) / u64::from(longest)).max(1) as u32;
    (scaled(width), scaled(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_fit_and_keep_their_proportions() {
        assert_eq!(fitted(640, 480, SIDE), (480, 360));
        assert_eq!(fitted(100, 50, SIDE), (100, 50));
        assert_eq!(fitted(16_384, 1, SIDE), (480, 1));
        assert_eq!(fitted(0, 0, SIDE), (1, 1));
    }
}
