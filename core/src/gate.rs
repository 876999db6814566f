//! The cheap motion gate: which frames are worth the networks' time.
//!
//! A picture is averaged down to a grid of luma cells and compared with a slowly following
//! background. A change of the light as a whole is no motion. The gate only ever saves work: it
//! lets a frame through when in doubt, and one now and then in any case, so that an animal that
//! sits still is found too.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::frame::{Frame, luma_256};
use crate::track::contains;
use crate::units::{Score, Uptime};

/// Cells in a row of the grid.
const COLUMNS: usize = 64;
/// Rows of the grid.
const ROWS: usize = 48;
/// Share of a cell's difference the background takes over with each frame.
const FOLLOW: f32 = 0.1;

/// What the gate lets through.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateSettings {
    /// Polygon in fractions of the picture in which motion counts; empty means everywhere.
    pub approach: Vec<(f32, f32)>,
    /// Polygons in which motion never counts: a road, a bush in the wind.
    pub masks: Vec<Vec<(f32, f32)>>,
    /// Difference from the background, in luma levels of 255, from which a cell has changed.
    pub cell_change: f32,
    /// Share of the watched cells that must have changed to be motion.
    pub min_motion: Score,
    /// How long the networks go on looking after the last motion.
    pub linger: Duration,
    /// How long the networks may go without looking at all.
    pub patrol: Duration,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self {
            approach: Vec::new(),
            masks: Vec::new(),
            cell_change: 10.0,
            min_motion: Score::clamped(0.004),
            linger: Duration::from_millis(2_000),
            patrol: Duration::from_millis(5_000),
        }
    }
}

/// What the gate says of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Glance {
    /// Share of the watched cells that changed.
    pub motion: Score,
    /// Whether the networks shall look.
    pub look: bool,
}

/// Compares each frame with what the scene usually looks like.
#[derive(Debug, Clone)]
pub struct Gate {
    settings: GateSettings,
    watched: Vec<bool>,
    background: Option<Vec<f32>>,
    last_motion: Option<Uptime>,
    last_look: Option<Uptime>,
}

impl Gate {
    /// A gate that has seen nothing.
    pub fn new(settings: GateSettings) -> Self {
        let inside = |cell: usize| {
            let x = (cell % COLUMNS) as f32 + 0.5;
            let y = (cell / COLUMNS) as f32 + 0.5;
            let point = (x / COLUMNS as f32, y / ROWS as f32);
            (settings.approach.is_empty() || contains(&settings.approach, point))
                && !settings.masks.iter().any(|mask| contains(mask, point))
        };
        let watched = (0..COLUMNS * ROWS).map(inside).collect();
        Self { settings, watched, background: None, last_motion: None, last_look: None }
    }

    /// Judges `frame`; `followed` says whether something is being followed that must be kept in
    /// sight. The first frame is always looked at.
    pub fn step(&mut self, frame: &Frame, followed: bool) -> Glance {
        let now = frame.captured_at();
        let cells = luma_cells(frame);
        let motion = match &mut self.background {
            None => {
                self.background = Some(cells);
                Score::ZERO
            }
            Some(background) => {
                let change = self.settings.cell_change;
                compare(background, &cells, &self.watched, change)
            }
        };
        if motion >= self.settings.min_motion {
            self.last_motion = Some(now);
        }
        let within = |at: Option<Uptime>, span| at.is_some_and(|at| now.since(at) < span);
        let look = followed
            || within(self.last_motion, self.settings.linger)
            || !within(self.last_look, self.settings.patrol);
        if look {
            self.last_look = Some(now);
        }
        Glance { motion, look }
    }
}

/// Share of the watched cells that differ from the background by more than `change` after the
/// mean difference is taken out; the background then follows.
fn compare(background: &mut [f32], cells: &[f32], watched: &[bool], change: f32) -> Score {
    let triples = || background.iter().zip(cells).zip(watched).filter(|(_, w)| **w);
    let total = triples().count();
    if total == 0 {
        return Score::ZERO;
    }
    let shift = triples().map(|((b, c), _)| c - b).sum::<f32>() / total as f32;
    let changed = triples().filter(|((b, c), _)| (*c - *b - shift).abs() > change).count();
    for (b, c) in background.iter_mut().zip(cells) {
        *b += FOLLOW * (c - *b);
    }
    Score::clamped(changed as f32 / total as f32)
}

/// Mean luma (BT.601) of each cell, from every second pixel of every second row; of fewer rows in
/// pictures so tall that [`ByteSums`] could not hold them.
fn luma_cells(frame: &Frame) -> Vec<f32> {
    let (w, h) = (frame.width() as usize, frame.height() as usize);
    // Small pictures are read whole, so that no cell stays empty for want of samples.
    let step = if w >= 2 * COLUMNS && h >= 2 * ROWS { 2 } else { 1 };
    let sampled = |from: usize, to: usize, step| (from.next_multiple_of(step)..to).step_by(step);
    let fewer = step.max(h.div_ceil(ROWS).div_ceil(ByteSums::MOST));
    let mut cells = vec![0.0; COLUMNS * ROWS];
    let mut sums = ByteSums(vec![[0; 2]; (3 * w).div_ceil(8)]);
    for (row, cells) in cells.chunks_exact_mut(COLUMNS).enumerate() {
        let rows = sampled((row * h).div_ceil(ROWS), ((row + 1) * h).div_ceil(ROWS), fewer);
        let count = rows.len();
        sums.0.fill([0; 2]);
        rows.for_each(|y| sums.add(&frame.pixels()[y * w * 3..(y + 1) * w * 3]));
        for (column, cell) in cells.iter_mut().enumerate() {
            let (from, to) = (column * w, (column + 1) * w);
            let columns = sampled(from.div_ceil(COLUMNS), to.div_ceil(COLUMNS), step);
            let n = (count * columns.len()) as f32;
            let luma = |x| luma_256([3 * x, 3 * x + 1, 3 * x + 2].map(|i| sums.of(i)));
            let sum: u32 = columns.map(luma).sum();
            *cell = if n == 0.0 { 0.0 } else { sum as f32 / n / 256.0 };
        }
    }
    cells
}

/// Rows of bytes added up, eight at a time: the even and the odd bytes of a word are each four sums
/// of sixteen bits, which whole-program optimisation for size would not make by itself.
struct ByteSums(Vec<[u64; 2]>);

impl ByteSums {
    /// How many rows fit.
    const MOST: usize = 257;
    /// The even bytes of a word.
    const EVEN: u64 = 0x00ff_00ff_00ff_00ff;

    fn add(&mut self, row: &[u8]) {
        let (whole, rest) = row.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        for (sums, bytes) in self.0.iter_mut().zip(whole.iter().chain([&last])) {
            let word = u64::from_le_bytes(*bytes);
            sums[0] += word & Self::EVEN;
            sums[1] += word >> 8 & Self::EVEN;
        }
    }

    /// The sum of the bytes at `i`.
    fn of(&self, i: usize) -> u32 {
        (self.0[i / 8][i % 2] >> (i % 8 / 2 * 16) & 0xffff) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::MAX_SIDE;

    /// A grey scene with a bright square of `side` pixels at `(x, y)`.
    fn scene(ms: u64, light: u8, square: Option<(u32, u32, u32)>) -> Frame {
        let (w, h) = (320, 240);
        let mut pixels = Vec::with_capacity(w as usize * h as usize * 3);
        for y in 0..h {
            for x in 0..w {
                let inside = square.is_some_and(|(sx, sy, side)| {
                    (sx..sx + side).contains(&x) && (sy..sy + side).contains(&y)
                });
                pixels.extend([if inside { 220 } else { light + (x / 16) as u8 }; 3]);
            }
        }
        Frame::from_rgb(pixels, w, h, Uptime::from_millis(ms)).unwrap()
    }

    fn settled(settings: GateSettings) -> Gate {
        let mut gate = Gate::new(settings);
        for i in 0..10 {
            gate.step(&scene(i * 100, 80, None), false);
        }
        gate
    }

    #[test]
    fn a_still_scene_is_looked_at_only_on_patrol() {
        let mut gate = Gate::new(GateSettings::default());
        let looked = (0..100).filter(|i| gate.step(&scene(i * 100, 80, None), false).look);
        assert_eq!(looked.collect::<Vec<_>>(), [0, 50]);
    }

    #[test]
    fn something_small_that_moves_is_looked_at_and_lingers() {
        let mut gate = settled(GateSettings::default());
        let glance = gate.step(&scene(1_000, 80, Some((100, 100, 30))), false);
        assert!(glance.look && glance.motion.get() > 0.004);
        assert!(gate.step(&scene(1_100, 80, None), false).look);
    }

    #[test]
    fn a_change_of_light_is_no_motion() {
        let mut gate = settled(GateSettings::default());
        assert_eq!(gate.step(&scene(1_000, 120, None), false).motion, Score::ZERO);
    }

    #[test]
    fn motion_in_a_mask_or_outside_the_approach_does_not_count() {
        let square = Some((20, 20, 40));
        let corner = vec![(0.0, 0.0), (0.4, 0.0), (0.4, 0.4), (0.0, 0.4)];
        let masked = GateSettings { masks: vec![corner], ..GateSettings::default() };
        assert_eq!(settled(masked).step(&scene(1_000, 80, square), false).motion, Score::ZERO);
        let right = vec![(0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0)];
        let elsewhere = GateSettings { approach: right, ..GateSettings::default() };
        assert_eq!(settled(elsewhere).step(&scene(1_000, 80, square), false).motion, Score::ZERO);
    }

    #[test]
    fn what_is_followed_is_always_looked_at() {
        let mut gate = Gate::new(GateSettings::default());
        assert!((0..50).all(|i| gate.step(&scene(i * 100, 80, None), true).look));
    }

    #[test]
    fn cells_are_the_means_of_their_pixels_at_any_size() {
        for (w, h) in
            [(1, 1), (63, 200), (128, 96), (131, 97), (640, 480), (641, 479), (9, MAX_SIDE)]
        {
            // The tall one is white, so that its sums are the largest that there can be.
            let tall = h == MAX_SIDE;
            let byte = |i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8;
            let pixels: Vec<u8> =
                (0..w * h * 3).map(|i| if tall { 255 } else { byte(i) }).collect();
            let frame = Frame::from_rgb(pixels.clone(), w, h, Uptime::ZERO).unwrap();
            let step = if w >= 128 && h >= 96 { 2 } else { 1 };
            let fewer = if tall { 2 } else { step };
            let mut cells = vec![(0.0, 0.0); COLUMNS * ROWS];
            for (y, x) in
                (0..h).step_by(fewer).flat_map(|y| (0..w).step_by(step).map(move |x| (y, x)))
            {
                let p = &pixels[((y * w + x) * 3) as usize..][..3];
                let cell =
                    y as usize * ROWS / h as usize * COLUMNS + x as usize * COLUMNS / w as usize;
                let [r, g, b] = [p[0], p[1], p[2]].map(f64::from);
                cells[cell].0 += (77.0 * r + 150.0 * g + 29.0 * b) / 256.0;
                cells[cell].1 += 1.0;
            }
            for (n, (got, (sum, count))) in luma_cells(&frame).iter().zip(cells).enumerate() {
                let wanted = if count == 0.0 { 0.0 } else { sum / count };
                assert!(
                    (f64::from(*got) - wanted).abs() < 1e-3,
                    "{w}x{h}, cell {n}: {got}, {wanted}"
                );
            }
        }
    }

    #[test]
    fn tiny_pictures_are_fine() {
        let tiny = Frame::from_rgb(vec![7; 3], 1, 1, Uptime::ZERO).unwrap();
        assert_eq!(Gate::new(GateSettings::default()).step(&tiny, false).motion, Score::ZERO);
    }
}
