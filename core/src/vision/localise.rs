//! Localisation without a detector: the classifier, made fully convolutional, says for every cell
//! of its last feature map what is there.
//!
//! The class map is the classifier's last linear layer applied to each cell before pooling (class
//! activation mapping, Zhou et al. 2016, for networks with global average pooling). It is not
//! calibrated: the calibration is of whole pictures, and with it boxes came out worse.
//!
//! Animals that touch are one box. A detector tells them apart.

use std::sync::Arc;

use super::classify::probabilities;
use super::decode::sigmoid;
use super::manifest::{Manifest, Output, Resize, Task};
use super::model::{Model, require_finite};
use super::network::Network;
use super::prepare::Preparer;
use super::{Stage, VisionError, onnx};
use crate::frame::Frame;
use crate::sight::{Class, Detection};
use crate::units::{Rect, Score};

/// The input's sides are multiples of this many pixels, the stride of usual classifiers.
const STRIDE: usize = 32;
/// The input has about this many pixels on a side, were it square. On single pets the box was
/// right (IoU over 0.5) in more cases at 320 than at the classifier's own 224.
const SIDE: usize = 320;
/// Shortest and longest side of the input in strides, whatever the region's proportions.
const CELLS: (usize, usize) = (4, 20);
/// Networks kept for different proportions of regions.
const KEPT: usize = 2;
/// The map is enlarged this many times before its outline is taken.
const ENLARGED: usize = 8;
/// Most connected parts of one map.
const MAX_BOXES: usize = 3;
/// An edge lies at least this far below its peak, in log-odds: of faint heat there is a box too.
const BELOW_PEAK: f32 = 1.0;
/// Probabilities nearer to 0 or 1 than this say no more than this.
const CERTAIN: f32 = 1e-9;
/// Of the heat of an animal so much lies outside its box on each side, so that a thin tail of it
/// (a shadow, a toy beside it) does not stretch the box. With the heat's whole extent the box was
/// right (IoU over 0.5) for 95 % of 1517 single pets and over 0.7 for 76 %, at its best edge, so for
/// 96 and 81 % (a sketch in Python, on the heat of `pet_classifier` 1.1.0).
const OUTSIDE: f32 = 0.02;
/// What is still missing on the left, above, on the right and below, as a share of the box's size:
/// medians over 1517 single pets (../shared/data/boxed_train). The network pads on the right and
/// below only, so its cells lie off their middles.
const MISSING: [f32; 4] = [-0.007, 0.028, 0.044, 0.084];

/// For every cell of a grid over a part of a frame, the probability of each class.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The part of the frame that the grid covers.
    pub region: Rect,
    maps: [Vec<f32>; 5],
}

impl HeatMap {
    /// The probability of `class` in each cell, row by row.
    pub fn of(&self, class: Class) -> &[f32] {
        &self.maps[class as usize]
    }

    /// The kind of animal with most heat in `part`, given in fractions of the region; each kind's
    /// heat counts by its calibration's bias.
    fn prevalent(&self, part: Rect, bias: [f32; 5]) -> Class {
        let inside = |i: usize| {
            let x = ((i % self.width) as f32 + 0.5) / self.width as f32;
            let y = ((i / self.width) as f32 + 0.5) / self.height as f32;
            (part.x0()..=part.x1()).contains(&x) && (part.y0()..=part.y1()).contains(&y)
        };
        let total = |class: Class| -> f32 {
            let cells = self.of(class).iter().enumerate();
            let heat: f32 = cells.filter(|(i, _)| inside(*i)).map(|(_, p)| p).sum();
            heat * bias[class as usize].exp()
        };
        // On a tie the one that keeps the door shut.
        [Class::Dog, Class::Cat, Class::Other]
            .into_iter()
            .max_by(|a, b| total(*a).total_cmp(&total(*b)))
            .unwrap_or(Class::Other)
    }
}

/// What a [`Localiser`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Localisation {
    /// What is where, cell by cell.
    pub heat: HeatMap,
    /// Boxes around the dogs, cats and other animals, best first.
    pub detections: Vec<Detection>,
}

/// A classifier in its fully convolutional form, for any proportions of the picture.
pub struct Localiser {
    manifest: Manifest,
    classes: Vec<Class>,
    onnx: Arc<[u8]>,
    sized: Vec<Sized>,
}

/// The network for one size of input, the most recently used last.
struct Sized {
    size: [usize; 2],
    network: Network,
    preparer: Preparer,
}

impl Localiser {
    /// Takes the network of the classifier `model` to pieces.
    ///
    /// # Errors
    /// If it is a detector, or does not end in global average pooling and one linear layer.
    pub fn new(model: &Model) -> Result<Self, VisionError> {
        let manifest = model.manifest.clone();
        if manifest.task != Task::Classifier {
            let (model, is) = (manifest.name, manifest.task);
            return Err(VisionError::Task { model, is, wanted: Task::Classifier });
        }
        let mut localiser = Self {
            manifest,
            classes: model.classes.clone(),
            onnx: Arc::clone(&model.onnx),
            sized: Vec::new(),
        };
        localiser.prepared([SIDE, SIDE])?;
        Ok(localiser)
    }

    /// Says what is where in `region` of `frame`.
    ///
    /// The first region of new proportions takes as long as loading the model.
    ///
    /// # Errors
    /// If the network fails or gives a value that is not finite.
    pub fn localise(&mut self, frame: &Frame, region: Rect) -> Result<Localisation, VisionError> {
        self.localise_timed(frame, region, &mut |_| {})
    }

    pub(super) fn localise_timed(
        &mut self,
        frame: &Frame,
        region: Rect,
        lap: &mut dyn FnMut(Stage),
    ) -> Result<Localisation, VisionError> {
        let heat = self.heat(frame, region, lap)?;
        let detections = self.animals(&heat);
        lap(Stage::Detect);
        Ok(Localisation { heat, detections })
    }

    fn heat(
        &mut self,
        frame: &Frame,
        region: Rect,
        lap: &mut dyn FnMut(Stage),
    ) -> Result<HeatMap, VisionError> {
        let name = self.manifest.name.clone();
        let size = input_size(frame, region);
        let sized = self.prepared(size)?;
        let preparer = &mut sized.preparer;
        sized
            .network
            .fill(|out| preparer.prepare(frame, region, Resize::Stretch, out).map(drop))?;
        lap(Stage::Resize);
        let failed = |source| VisionError::Network { model: name.clone(), source };
        let outputs = sized.network.run().map_err(failed)?;
        let (height, width) = match sized.network.outputs() {
            [(_, shape)] if shape.len() == 4 => (shape[2], shape[3]),
            _ => (0, 0),
        };
        let logits = outputs.floats(0).map_err(failed)?;
        require_finite(&name, &logits)?;
        let exclusive = matches!(self.manifest.output, Output::Softmax { .. });
        let (cells, mut cell) = (width * height, vec![0.0; self.classes.len()]);
        let mut maps: [Vec<f32>; 5] = std::array::from_fn(|_| Vec::with_capacity(cells));
        for i in 0..cells {
            for (value, plane) in cell.iter_mut().zip(logits.chunks_exact(cells)) {
                *value = plane[i];
            }
            let (_, probs) = probabilities(&cell, &self.classes, exclusive, None)
                .ok_or_else(|| VisionError::NotFinite { model: name.clone() })?;
            for (map, p) in maps.iter_mut().zip(<[f32; 5]>::from(probs)) {
                map.push(p);
            }
        }
        Ok(HeatMap { width, height, region, maps })
    }

    /// The network for inputs of `size`.
    fn prepared(&mut self, size: [usize; 2]) -> Result<&mut Sized, VisionError> {
        let at = match self.sized.iter().position(|s| s.size == size) {
            Some(at) => at,
            None => {
                let sized = self.prepare(size)?;
                if self.sized.len() == KEPT {
                    self.sized.remove(0);
                }
                self.sized.push(sized);
                self.sized.len() - 1
            }
        };
        let last = self.sized.len() - 1;
        self.sized[at..].rotate_left(1);
        Ok(&mut self.sized[last])
    }

    fn prepare(&self, size: [usize; 2]) -> Result<Sized, VisionError> {
        let [width, height] = size;
        let failed = |source| VisionError::Network { model: self.manifest.name.clone(), source };
        let (Output::Softmax { name: logits, .. } | Output::Sigmoid { name: logits, .. }) =
            &self.manifest.output
        else {
            return Err(failed(super::NetworkError::NotConvolutional));
        };
        let input = &self.manifest.input;
        let network = onnx::read(&self.onnx)
            .and_then(|proto| onnx::fully_convolutional(proto, logits))
            .and_then(|proto| Network::load(&proto, &input.name, [1, 3, height, width]))
            .map_err(failed)?;
        Ok(Sized { size, network, preparer: Preparer::new(input, width, height) })
    }

    /// Boxes around the animals, best first: the connected parts of the heat of all animals
    /// together, since parts of a dog alone may look like any animal.
    fn animals(&self, heat: &HeatMap) -> Vec<Detection> {
        let sum = |classes: &[Class], cell: usize| -> f32 {
            classes.iter().map(|c| heat.of(*c)[cell]).sum::<f32>().max(CERTAIN)
        };
        // In probabilities a dog is 1 all over and its rim falls between two cells; the odds still
        // tell its middle from its rim.
        let odds: Vec<f32> = (0..heat.width * heat.height)
            .map(|cell| {
                sum(&[Class::Dog, Class::Cat, Class::Other], cell).ln()
                    - sum(&[Class::Person, Class::Nothing], cell).ln()
            })
            .collect();
        let calibration = self.manifest.calibration.as_ref();
        let bias = calibration.map_or([0.0; 5], |c| c.bias.to_array());
        self.boxes(heat, &odds)
            .into_iter()
            .map(|(rect, peak)| {
                let class = heat.prevalent(rect, bias);
                Detection {
                    rect: rect.within(heat.region),
                    class,
                    label: class.name().into(),
                    score: Score::clamped(sigmoid(peak)),
                }
            })
            .collect()
    }

    /// Boxes, in fractions of the region, around the connected parts of `odds` (their logarithms)
    /// that reach the manifest's edge, with the peak of each, which reaches its floor.
    fn boxes(&self, heat: &HeatMap, odds: &[f32]) -> Vec<(Rect, f32)> {
        let thresholds = &self.manifest.thresholds;
        let rim = Score::clamped(thresholds.heat_edge).logit();
        let wide = heat.width * ENLARGED;
        let mut fine = enlarge(odds, heat.width, heat.height);
        let mut found: Vec<(Rect, f32)> = Vec::new();
        let mut floor = Score::clamped(thresholds.heat_floor).logit();
        while found.len() < MAX_BOXES {
            let Some((seed, peak)) = highest(&fine) else { break };
            if peak < floor {
                break;
            }
            let edge = rim.min(peak - BELOW_PEAK);
            // What is left around a part is its rim, not another animal.
            floor = floor.max(edge);
            let [columns, rows] = flood(&mut fine, wide, seed, edge);
            let ((x0, x1), (y0, y1)) = (within(&columns), within(&rows));
            let (w, h) = (x1 - x0, y1 - y0);
            let [left, above, right, below] = MISSING;
            let rect = Rect::clipped(x0 - left * w, y0 - above * h, x1 + right * w, y1 + below * h);
            found.extend(rect.map(|rect| (rect, peak)));
        }
        found
    }
}

/// Width and height of the input for `region` of `frame`: its proportions, about [`SIDE`] squared
/// pixels, in whole strides.
fn input_size(frame: &Frame, region: Rect) -> [usize; 2] {
    let aspect = f64::from(region.width() * frame.width() as f32)
        / f64::from(region.height() * frame.height() as f32);
    let cells = (SIDE / STRIDE) as f64;
    let side = |cells: f64| (cells.round() as usize).clamp(CELLS.0, CELLS.1) * STRIDE;
    [side(cells * aspect.sqrt()), side(cells / aspect.sqrt())]
}

/// `map` enlarged [`ENLARGED`] times, bilinear between the middles of cells.
fn enlarge(map: &[f32], width: usize, height: usize) -> Vec<f32> {
    let steps = |size: usize| {
        (0..size * ENLARGED).map(move |i| {
            let at = ((i as f32 + 0.5) / ENLARGED as f32 - 0.5).clamp(0.0, (size - 1) as f32);
            let low = at as usize;
            (low, (low + 1).min(size - 1), at - low as f32)
        })
    };
    let mut fine = Vec::with_capacity(width * height * ENLARGED * ENLARGED);
    for (y0, y1, fy) in steps(height) {
        for (x0, x1, fx) in steps(width) {
            let at = |x: usize, y: usize| map[y * width + x];
            let upper = at(x0, y0) + (at(x1, y0) - at(x0, y0)) * fx;
            let lower = at(x0, y1) + (at(x1, y1) - at(x0, y1)) * fx;
            fine.push(upper + (lower - upper) * fy);
        }
    }
    fine
}

fn highest(map: &[f32]) -> Option<(usize, f32)> {
    map.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
}

/// How far the four-connected cells of at least `least` around `seed` lie above it, summed for each
/// column and for each row; the cells are set below every threshold as they are visited.
fn flood(map: &mut [f32], width: usize, seed: usize, least: f32) -> [Vec<f32>; 2] {
    let height = map.len() / width;
    let (mut columns, mut rows) = (vec![0.0; width], vec![0.0; height]);
    // So that a part without a slope has a place as well.
    let mut visit = |map: &mut [f32], cell: usize| {
        let above = (map[cell] - least).max(1e-3);
        columns[cell % width] += above;
        rows[cell / width] += above;
        map[cell] = f32::NEG_INFINITY;
    };
    let mut open = vec![seed];
    visit(map, seed);
    while let Some(cell) = open.pop() {
        let (x, y) = (cell % width, cell / width);
        let beside = [
            (x > 0).then(|| cell - 1),
            (x + 1 < width).then(|| cell + 1),
            (y > 0).then(|| cell - width),
            (y + 1 < height).then(|| cell + width),
        ];
        for next in beside.into_iter().flatten() {
            if map[next] >= least {
                visit(map, next);
                open.push(next);
            }
        }
    }
    [columns, rows]
}

/// Between which two points, as shares of the length, all of `heat` lies but for [`OUTSIDE`] at each
/// end.
fn within(heat: &[f32]) -> (f32, f32) {
    let outside = heat.iter().sum::<f32>() * OUTSIDE;
    let from_start = |heat: &mut dyn Iterator<Item = &f32>| {
        let mut before = 0.0;
        let mut cells = 0.0;
        for cell in heat {
            if before + cell > outside {
                return cells + (outside - before) / cell;
            }
            before += cell;
            cells += 1.0;
        }
        cells
    };
    let length = heat.len() as f32;
    let first = from_start(&mut heat.iter());
    let last = length - from_start(&mut heat.iter().rev());
    (first / length, last / length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Uptime;

    #[test]
    fn the_input_keeps_the_proportions_within_limits() {
        let size = |w: u32, h: u32| {
            let frame = Frame::from_rgb(vec![0; (w * h * 3) as usize], w, h, Uptime::ZERO).unwrap();
            input_size(&frame, Rect::WHOLE)
        };
        assert_eq!(size(200, 200), [320, 320]);
        assert_eq!(size(640, 480), [384, 288]);
        assert_eq!(size(480, 640), [288, 384]);
        assert_eq!(size(3000, 1), [640, 128]);
    }

    #[test]
    fn separate_parts_are_flooded_one_by_one() {
        #[rustfmt::skip]
        let mut map = vec![
            0.9, 0.8, 0.0, 0.0,
            0.5, 0.1, 0.0, 0.6,
            0.0, 0.0, 0.0, 0.7,
        ];
        let (seed, peak) = highest(&map).unwrap();
        assert_eq!((seed, peak), (0, 0.9));
        let same = |found: &[f32], want: &[f32]| {
            found.len() == want.len() && found.iter().zip(want).all(|(f, w)| (f - w).abs() < 1e-6)
        };
        let [columns, rows] = flood(&mut map, 4, seed, 0.45);
        assert!(same(&columns, &[0.5, 0.35, 0.0, 0.0]), "{columns:?}");
        assert!(same(&rows, &[0.8, 0.05, 0.0]), "{rows:?}");
        let (seed, peak) = highest(&map).unwrap();
        assert_eq!((seed, peak), (11, 0.7));
        let [columns, rows] = flood(&mut map, 4, seed, 0.35);
        assert!(same(&columns, &[0.0, 0.0, 0.0, 0.6]), "{columns:?}");
        assert!(same(&rows, &[0.0, 0.25, 0.35]), "{rows:?}");
    }

    #[test]
    fn a_thin_tail_of_heat_does_not_stretch_the_box() {
        let (first, last) = within(&[0.0, 1.0, 1.0, 1.0, 1.0, 0.01, 0.01, 0.01]);
        assert!((first - 1.0806 / 8.0).abs() < 1e-4, "{first}");
        assert!((last - 4.9494 / 8.0).abs() < 1e-4, "{last}");
        // Of even heat two hundredths lie outside at each end.
        let (first, last) = within(&[2.0; 4]);
        assert!((first - OUTSIDE).abs() < 1e-6 && (last - 1.0 + OUTSIDE).abs() < 1e-6);
    }

    #[test]
    fn enlarging_keeps_constants_and_peaks() {
        assert!(enlarge(&[0.3; 6], 3, 2).iter().all(|v| (*v - 0.3).abs() < 1e-6));
        let fine = enlarge(&[0.0, 1.0], 2, 1);
        assert_eq!(fine.len(), 2 * ENLARGED * ENLARGED);
        assert_eq!((fine[0], fine[2 * ENLARGED - 1]), (0.0, 1.0));
    }
}
