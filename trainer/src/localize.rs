//! Where the animal is, found in different ways and compared: a classifier slid over the picture,
//! the same classifier made fully convolutional, a detector.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use image::{Rgb, RgbImage};
use pawlatch_core::sight::Class;
use pawlatch_core::units::Rect;
use pawlatch_core::vision::{Classifier, Detector, Framing, Localiser, Manifest, Model};
use serde::Serialize;

use crate::cache::{Frozen, Normalisation};
use crate::classification::class_log_probs;
use crate::data::augment::stretched;
use crate::data::{self, Dataset, Scene, Split};
use crate::detector::score::{FLOOR, best_animal};
use crate::evaluate::frame;
use crate::net::Net;
use crate::workers::bar;

/// Sides of the windows that are slid, as shares of the picture's shorter side.
const WINDOWS: [f32; 4] = [1.0, 0.7, 0.5, 0.35];
/// From one window to the next, as a share of its side.
const STRIDE: f32 = 0.5;
/// Sides of the inputs of a network that answers with a map of windows, in its own sides.
const ENLARGED: [usize; 2] = [2, 3];
/// Cells on a side of the grid that windows vote on.
const GRID: usize = 32;
/// A cell belongs to the box from this share of the way between the weakest and the best cell.
const SHARE: f32 = 0.5;
/// The box that costs nothing: this share of the picture's sides, in its middle.
const MIDDLE: f32 = 0.8;

/// A way to find an animal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// The classifier on many windows, one after another.
    Sliding,
    /// The classifier made fully convolutional: all windows in one run.
    Fcn,
    /// A detector.
    Detector,
}

/// How probable each class is in each cell of a grid over the picture.
pub struct Heat {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// For each cell, row by row, the probability of each class.
    pub cells: Vec<[f32; 5]>,
}

/// Finds an animal in one way.
pub struct Finder {
    kind: Kind,
}

enum Kind {
    /// The same box in every picture.
    Middle,
    Sliding(Box<Classifier>),
    /// As the door does it: cells of the last feature map before the global mean.
    Cells(Box<Localiser>),
    Windows(Box<WindowMap>),
    Detector(Box<Detector>),
}

/// A network whose dense layers have become convolutions: every cell of its answer is what the
/// classifier says of one window.
struct WindowMap {
    /// Each for one size of input.
    nets: Vec<(usize, Frozen)>,
    manifest: Manifest,
    class_of_label: Vec<usize>,
    side: usize,
}

impl Finder {
    /// `method` with the classifier or detector `model`, whose network is `net`.
    ///
    /// # Errors
    /// If the model is no classifier or no detector, as the method needs it, or has no fully
    /// convolutional form.
    pub fn new(method: Method, model: Model, net: impl FnOnce() -> Result<Net>) -> Result<Self> {
        let kind = match method {
            Method::Sliding => Kind::Sliding(Box::new(Classifier::new(model)?)),
            Method::Detector => Kind::Detector(Box::new(Detector::new(model)?)),
            // The door's own way where the network has one, else the way of its dense layers.
            Method::Fcn => match Localiser::new(&model) {
                Ok(localiser) => Kind::Cells(Box::new(localiser)),
                Err(pawlatch_core::vision::VisionError::Network { .. }) => {
                    Kind::Windows(Box::new(WindowMap::new(model.manifest, &net()?)?))
                }
                Err(error) => bail!(error),
            },
        };
        Ok(Self { kind })
    }

    /// Looks at nothing: what any other way has to beat.
    pub const fn middle() -> Self {
        Self { kind: Kind::Middle }
    }

    /// The box of the animal, if any.
    ///
    /// # Errors
    /// If the network fails.
    pub fn find(&mut self, picture: &RgbImage) -> Result<Option<Rect>> {
        match &mut self.kind {
            Kind::Middle => {
                let edge = (1.0 - MIDDLE) / 2.0;
                Ok(Rect::clipped(edge, edge, 1.0 - edge, 1.0 - edge))
            }
            Kind::Cells(localiser) => {
                let found = localiser.localise(&frame(picture.clone())?, Rect::WHOLE)?;
                Ok(found.detections.first().map(|d| d.rect))
            }
            Kind::Detector(detector) => {
                let frame = frame(picture.clone())?;
                let found = detector.detect_above(&frame, Rect::WHOLE, FLOOR)?;
                Ok(best_animal(&found, |_| true).map(|d| d.rect))
            }
            Kind::Sliding(_) | Kind::Windows(_) => {
                Ok(self.heat(picture)?.and_then(|heat| heat.animal()))
            }
        }
    }

    /// What is where, cell by cell; nothing from a detector.
    ///
    /// # Errors
    /// If the network fails.
    pub fn heat(&mut self, picture: &RgbImage) -> Result<Option<Heat>> {
        Ok(match &mut self.kind {
            Kind::Middle | Kind::Detector(_) => None,
            Kind::Cells(localiser) => {
                let heat = localiser.localise(&frame(picture.clone())?, Rect::WHOLE)?.heat;
                let of = Class::ALL.map(|c| heat.of(c));
                let cells = (0..heat.width * heat.height).map(|i| of.map(|map| map[i])).collect();
                Some(Heat { width: heat.width, height: heat.height, cells })
            }
            Kind::Sliding(classifier) => {
                let frame = frame(picture.clone())?;
                let mut said = Vec::new();
                for window in windows(picture.width() as f32, picture.height() as f32) {
                    let answer = classifier.classify(&frame, window, Framing::Crop)?;
                    said.push((window, <[f32; 5]>::from(answer.probs)));
                }
                Some(Heat::voted(&said))
            }
            Kind::Windows(map) => Some(Heat::voted(&map.run(picture)?)),
        })
    }
}

/// Square windows of several sizes that together cover a picture of `w` by `h` pixels.
fn windows(w: f32, h: f32) -> Vec<Rect> {
    let mut all = Vec::new();
    for share in WINDOWS {
        let side = w.min(h) * share;
        let starts = |length: f32| {
            let steps = ((length - side) / (side * STRIDE)).ceil() as usize;
            (0..=steps).map(move |i| (length - side) * i as f32 / steps.max(1) as f32)
        };
        for y in starts(h) {
            let row = starts(w)
                .filter_map(|x| Rect::clipped(x / w, y / h, (x + side) / w, (y + side) / h));
            all.extend(row);
        }
    }
    all
}

impl WindowMap {
    fn new(manifest: Manifest, net: &Net) -> Result<Self> {
        let side = manifest.input.shape[2];
        let (map, _) = crate::export::fully_convolutional(net, side)
            .context("the classifier has no fully convolutional form")?;
        let nets = ENLARGED
            .into_iter()
            .map(|times| {
                Ok((side * times, Frozen::shaped(&map, &[1, 3, side * times, side * times])?))
            })
            .collect::<Result<_>>()?;
        let class_of_label =
            manifest.labels.class_of_each()?.into_iter().map(|c| c as usize).collect();
        Ok(Self { nets, manifest, class_of_label, side })
    }

    /// Every window with what the network says of it.
    fn run(&self, picture: &RgbImage) -> Result<Vec<(Rect, [f32; 5])>> {
        let input = &self.manifest.input;
        let normalisation = Normalisation { mean: input.mean, std: input.std };
        let temperature = self.manifest.calibration.as_ref().map_or(1.0, |c| c.temperature);
        let mut said = Vec::new();
        for (side, net) in &self.nets {
            let seen = stretched(picture, Rect::WHOLE, *side as u32, *side as u32)?;
            let map = net.run(&normalisation.planes(&seen))?.remove(0);
            let &[_, labels, rows, columns] = map.shape.as_slice() else {
                bail!("the network answers with shape {:?}, no map", map.shape);
            };
            let own = self.side as f32 / *side as f32;
            let start = |i: usize, n: usize| (1.0 - own) * i as f32 / (n - 1).max(1) as f32;
            for y in 0..rows {
                for x in 0..columns {
                    let at = |l: usize| map.data[(l * rows + y) * columns + x];
                    let logits: Vec<f32> = (0..labels).map(at).collect();
                    let logs = class_log_probs(&logits, &self.class_of_label, temperature);
                    let mut probs = [0.0; 5];
                    for (p, log) in probs.iter_mut().zip(&logs) {
                        *p = log.exp();
                    }
                    let (x0, y0) = (start(x, columns), start(y, rows));
                    let window = Rect::clipped(x0, y0, x0 + own, y0 + own);
                    said.extend(window.map(|w| (w, probs)));
                }
            }
        }
        Ok(said)
    }
}

impl Heat {
    /// The mean of what all windows over a cell say; small windows say it of few cells, so they
    /// draw the outline.
    fn voted(said: &[(Rect, [f32; 5])]) -> Self {
        let mut cells = vec![[0.0; 5]; GRID * GRID];
        for (i, cell) in cells.iter_mut().enumerate() {
            let x = ((i % GRID) as f32 + 0.5) / GRID as f32;
            let y = ((i / GRID) as f32 + 0.5) / GRID as f32;
            let mut total = 0.0;
            for (r, probs) in said {
                if (r.x0()..=r.x1()).contains(&x) && (r.y0()..=r.y1()).contains(&y) {
                    // Each size of window has the same say.
                    let weight = 1.0 / r.area();
                    total += weight;
                    cell.iter_mut().zip(probs).for_each(|(c, p)| *c += weight * p);
                }
            }
            cell.iter_mut().for_each(|c| *c /= f32::max(total, 1e-9));
        }
        Self { width: GRID, height: GRID, cells }
    }

    /// The box round the cells that look most like an animal.
    fn animal(&self) -> Option<Rect> {
        let heat: Vec<f32> = self.cells.iter().map(|c| c[0] + c[1] + c[3]).collect();
        let (low, high) =
            heat.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        let enough = low + (high - low) * SHARE;
        let (mut x, mut y) = ((self.width, 0), (self.height, 0));
        for (i, _) in heat.iter().enumerate().filter(|(_, v)| **v >= enough) {
            let (column, row) = (i % self.width, i / self.width);
            x = (x.0.min(column), x.1.max(column + 1));
            y = (y.0.min(row), y.1.max(row + 1));
        }
        let (w, h) = (self.width as f32, self.height as f32);
        Rect::clipped(x.0 as f32 / w, y.0 as f32 / h, x.1 as f32 / w, y.1 as f32 / h)
    }

    /// The lowest and the highest probability of `class` in any cell.
    pub fn range(&self, class: Class) -> (f32, f32) {
        let of = self.cells.iter().map(|c| c[class as usize]);
        of.fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(v), high.max(v)))
    }

    /// Spreads the probabilities of `class` from nought to one: where it is likeliest shows even if
    /// it is likely nowhere.
    pub fn spread(&mut self, class: Class) {
        let (low, high) = self.range(class);
        for cell in &mut self.cells {
            cell[class as usize] = (cell[class as usize] - low) / (high - low).max(1e-9);
        }
    }

    /// The picture in grey with the probability of `class` over it, from clear to red.
    pub fn over(&self, picture: &RgbImage, class: Class) -> RgbImage {
        let (w, h) = picture.dimensions();
        // Between the middles of cells, so that the picture shows no more edges than the network.
        let at = |x: f32, y: f32| {
            let axis = |v: f32, n: usize| {
                let v = (v * n as f32 - 0.5).clamp(0.0, (n - 1) as f32);
                (v as usize, (v as usize + 1).min(n - 1), v.fract())
            };
            let ((x0, x1, fx), (y0, y1, fy)) = (axis(x, self.width), axis(y, self.height));
            let cell = |x: usize, y: usize| self.cells[y * self.width + x][class as usize];
            let upper = cell(x0, y0) + (cell(x1, y0) - cell(x0, y0)) * fx;
            let lower = cell(x0, y1) + (cell(x1, y1) - cell(x0, y1)) * fx;
            upper + (lower - upper) * fy
        };
        RgbImage::from_fn(w, h, |x, y| {
            let [r, g, b] = picture.get_pixel(x, y).0.map(f32::from);
            let grey = 0.3 * r + 0.59 * g + 0.11 * b;
            let heat = at((x as f32 + 0.5) / w as f32, (y as f32 + 0.5) / h as f32) * 0.75;
            let mixed = |colour: f32| (grey + (colour - grey) * heat) as u8;
            Rgb([mixed(230.0), mixed(40.0), mixed(20.0)])
        })
    }
}

/// How well one way found the animals.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What it is called.
    pub method: String,
    /// Pictures looked at.
    pub pictures: usize,
    /// Mean IoU of the box with the true one; no box counts 0.
    pub mean_iou: f64,
    /// Share of pictures with an IoU over 0.5.
    pub over_50: f64,
    /// Over 0.7.
    pub over_70: f64,
    /// Median milliseconds per picture, decoding left out.
    pub median_ms: f64,
}

/// Lets each finder loose on the pictures of `split` with one dog or cat and nothing else boxed.
///
/// # Errors
/// If there is no such picture, one cannot be read, or a network fails.
pub fn compare(finders: &mut [(String, Finder)], data: &Dataset, split: Split) -> Result<Vec<Row>> {
    let single = |s: &&Scene| {
        s.split == split
            && matches!(s.boxes.as_slice(), [b] if ["dog", "cat"].contains(&b.label.as_str()))
    };
    let scenes: Vec<&Scene> = data.scenes.iter().filter(single).collect();
    ensure!(!scenes.is_empty(), "no picture of this split has exactly one box, of a dog or a cat");
    let mut found = vec![Vec::new(); finders.len()];
    let bar = bar(scenes.len() as u64, "pictures");
    for scene in scenes {
        let picture = data::open(&scene.file)?;
        for ((_, finder), found) in finders.iter_mut().zip(&mut found) {
            let began = Instant::now();
            let rect = finder.find(&picture).with_context(|| scene.file.display().to_string())?;
            let ms = began.elapsed().as_secs_f64() * 1e3;
            found.push((rect.map_or(0.0, |r| f64::from(r.iou(scene.boxes[0].rect))), ms));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let row = |((name, _), found): (&(String, Finder), &Vec<(f64, f64)>)| {
        let n = found.len() as f64;
        let over = |iou: f64| found.iter().filter(|f| f.0 > iou).count() as f64 / n;
        let mut times: Vec<f64> = found.iter().map(|f| f.1).collect();
        times.sort_by(f64::total_cmp);
        Row {
            method: name.clone(),
            pictures: found.len(),
            mean_iou: found.iter().map(|f| f.0).sum::<f64>() / n,
            over_50: over(0.5),
            over_70: over(0.7),
            median_ms: times[times.len() / 2],
        }
    };
    Ok(finders.iter().zip(&found).map(row).collect())
}

/// The rows as a table.
pub fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|r| r.method.len()).max().unwrap_or(0).max(6);
    let mut out = format!(
        "{:<width$}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}\n",
        "method", "pictures", "mean IoU", "over 0.5", "over 0.7", "ms"
    );
    for r in rows {
        out += &format!(
            "{:<width$}  {:>8}  {:>8.3}  {:>6.1} %  {:>6.1} %  {:>8.1}\n",
            r.method,
            r.pictures,
            r.mean_iou,
            r.over_50 * 100.0,
            r.over_70 * 100.0,
            r.median_ms
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_picture_and_stay_in_it() {
        for (w, h) in [(300.0, 200.0), (200.0, 300.0), (64.0, 64.0)] {
            let all = windows(w, h);
            for at in [(0.01, 0.01), (0.99, 0.5), (0.5, 0.99)] {
                let over = |r: &&Rect| {
                    r.x0() <= at.0 && at.0 <= r.x1() && r.y0() <= at.1 && at.1 <= r.y1()
                };
                assert!(all.iter().filter(over).count() >= WINDOWS.len(), "{w}x{h} {at:?}");
            }
            assert!(all.iter().all(|r| (r.width() * w - r.height() * h).abs() < 0.5));
        }
    }

    #[test]
    fn windows_that_say_dog_draw_its_box() {
        let dog = Rect::clipped(0.5, 0.25, 1.0, 0.75).unwrap();
        let said: Vec<_> = windows(100.0, 100.0)
            .into_iter()
            .map(|r| (r, [r.overlap(dog) / r.area(), 0.0, 0.0, 0.0, 0.0]))
            .collect();
        let heat = Heat::voted(&said);
        let found = heat.animal().unwrap();
        assert!(found.iou(dog) > 0.6, "{found:?}");
        let grey = RgbImage::from_pixel(64, 64, Rgb([90; 3]));
        let shown = heat.over(&grey, Class::Dog);
        let red =
            |x, y| i32::from(shown.get_pixel(x, y).0[0]) - i32::from(shown.get_pixel(x, y).0[2]);
        let (low, high) = heat.range(Class::Dog);
        assert!(low < high, "{low} to {high}");
        let mut faint = Heat { cells: heat.cells.clone(), ..heat };
        faint.cells.iter_mut().for_each(|c| c[0] = 0.3 + c[0] / 10.0);
        faint.spread(Class::Dog);
        assert_eq!(faint.range(Class::Dog), (0.0, 1.0));
        assert!(red(48, 32) > red(4, 4) + 60, "{} {}", red(48, 32), red(4, 4));
    }
}
