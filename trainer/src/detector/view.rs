//! What a detector sees in training: parts of scenes near and far, four scenes in one
//! (Bochkovskiy et al. 2020: mosaic), each with the boxes that are left.

use anyhow::Result;
use image::{RgbImage, imageops};
use pawlatch_core::units::Rect;
use rand::Rng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::loss::Truth;
use crate::data::augment::stretched;
use crate::data::{Scene, open};

/// Of a box that is cut, at least this share must be left for it to be found.
const LEFT_TO_FIND: f32 = 0.35;
/// Shortest side of a box that is to be found, pixels of the network's input.
const SMALLEST_SIDE: f32 = 5.0;

/// How likely the kinds of view are; what is left of 1 are parts of one scene.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Views {
    /// Four scenes.
    pub mosaic: f32,
    /// One scene, seen from further away.
    pub far: f32,
    /// One whole scene.
    pub whole: f32,
    /// Smallest share of a scene's sides that a part keeps.
    pub smallest_part: f32,
    /// Whatever the view is: over it something that is boxed in another scene, cut out with what is
    /// close round it (Ghiasi et al. 2021: copy and paste).
    pub paste: f32,
}

impl Default for Views {
    fn default() -> Self {
        Self { mosaic: 0.3, far: 0.15, whole: 0.15, smallest_part: 0.45, paste: 0.0 }
    }
}

/// A part of a scene, drawn into a part of the view.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Number of the scene.
    pub scene: usize,
    /// What of it is seen.
    pub part: Rect,
    /// Where it is seen.
    pub at: Rect,
    /// Left and right exchanged.
    pub flip: bool,
}

impl Views {
    /// A whole scene and nothing else.
    pub fn plain(scene: usize) -> Vec<Piece> {
        vec![Piece { scene, part: Rect::WHOLE, at: Rect::WHOLE, flip: false }]
    }

    /// A random view with `scene` in it; later pieces lie over earlier ones.
    pub fn draw(&self, scene: usize, scenes: &[&Scene], rng: &mut StdRng) -> Vec<Piece> {
        let mut pieces = self.below(scene, scenes, rng);
        if self.paste > 0.0 && rng.random::<f32>() < self.paste {
            pieces.extend(cut_out(scenes, rng));
        }
        pieces
    }

    fn below(&self, scene: usize, scenes: &[&Scene], rng: &mut StdRng) -> Vec<Piece> {
        let kind = rng.random::<f32>();
        let mut piece = |scene, part, at| Piece { scene, part, at, flip: rng.random() };
        if kind < self.whole {
            return vec![piece(scene, Rect::WHOLE, Rect::WHOLE)];
        }
        if kind < self.whole + self.far {
            let mut one = piece(scene, Rect::WHOLE, Rect::WHOLE);
            let size = rng.random_range(0.3..0.9_f32);
            let ratio = rng.random_range(0.8..1.25_f32).sqrt();
            one.at = placed((size * ratio).min(1.0), (size / ratio).min(1.0), rng);
            return vec![one];
        }
        if kind < self.whole + self.far + self.mosaic {
            let (x, y) = (rng.random_range(0.3..0.7_f32), rng.random_range(0.3..0.7_f32));
            let corners = [(0.0, 0.0, x, y), (x, 0.0, 1.0, y), (0.0, y, x, 1.0), (x, y, 1.0, 1.0)];
            let own = rng.random_range(0..4);
            let four = corners.into_iter().enumerate().filter_map(|(i, (x0, y0, x1, y1))| {
                let scene = if i == own { scene } else { rng.random_range(0..scenes.len()) };
                let part = self.part(scenes[scene], rng);
                Some(Piece { scene, part, at: Rect::clipped(x0, y0, x1, y1)?, flip: rng.random() })
            });
            return four.collect();
        }
        let part = self.part(scenes[scene], rng);
        vec![Piece { scene, part, at: Rect::WHOLE, flip: rng.random() }]
    }

    /// A part of a scene that shows most of one of its boxes.
    fn part(&self, scene: &Scene, rng: &mut StdRng) -> Rect {
        for _ in 0..8 {
            let size = rng.random_range(self.smallest_part..=1.0);
            let ratio = rng.random_range(0.7..1.4_f32).sqrt();
            let part = placed((size * ratio).min(1.0), (size / ratio).min(1.0), rng);
            let shown = |r: Rect| r.overlap(part) > 0.6 * r.area();
            if scene.boxes.is_empty() || scene.boxes.iter().any(|b| shown(b.rect)) {
                return part;
            }
        }
        Rect::WHOLE
    }
}

/// Something boxed in any of the scenes, somewhere in the view.
fn cut_out(scenes: &[&Scene], rng: &mut StdRng) -> Option<Piece> {
    let mut some = (0..8).map(|_| rng.random_range(0..scenes.len()));
    let scene = some.find(|&s| !scenes[s].boxes.is_empty())?;
    let boxes = &scenes[scene].boxes;
    let rect = boxes[rng.random_range(0..boxes.len())].rect;
    let (dx, dy) = (rect.width() * 0.1, rect.height() * 0.1);
    let part = Rect::clipped(rect.x0() - dx, rect.y0() - dy, rect.x1() + dx, rect.y1() + dy)?;
    let scale = rng.random_range(0.15..0.6_f32) / part.width().max(part.height());
    let ratio = rng.random_range(0.8..1.25_f32).sqrt();
    let (w, h) = (part.width() * scale * ratio, part.height() * scale / ratio);
    Some(Piece { scene, part, at: placed(w.min(1.0), h.min(1.0), rng), flip: rng.random() })
}

/// A rectangle of a given size anywhere in the picture.
fn placed(w: f32, h: f32, rng: &mut StdRng) -> Rect {
    let (x, y) = (rng.random_range(0.0..=1.0 - w), rng.random_range(0.0..=1.0 - h));
    Rect::clipped(x, y, x + w, y + h).unwrap_or(Rect::WHOLE)
}

/// Draws the view as a square of `side` pixels. `first` is the picture of the scene numbered
/// `number`; others are read.
///
/// # Errors
/// If a picture cannot be read.
pub fn paint(
    pieces: &[Piece],
    scenes: &[&Scene],
    (number, first): (usize, &RgbImage),
    side: u32,
) -> Result<RgbImage> {
    // The grey of a letterbox, so that a view from afar has no edge the door never sees.
    let mut view = RgbImage::from_pixel(side, side, image::Rgb([114; 3]));
    for piece in pieces {
        let read;
        let picture = if piece.scene == number {
            first
        } else {
            read = open(&scenes[piece.scene].file)?;
            &read
        };
        let [x0, y0, x1, y1] = piece.at.to_pixels(side, side).map(|v| v.round() as u32);
        if x0 >= x1 || y0 >= y1 {
            continue;
        }
        let mut seen = stretched(picture, piece.part, x1 - x0, y1 - y0)?;
        if piece.flip {
            imageops::flip_horizontal_in_place(&mut seen);
        }
        imageops::replace(&mut view, &seen, i64::from(x0), i64::from(y0));
    }
    Ok(view)
}

/// What is in the view, in pixels of a square of `side`.
///
/// # Errors
/// If a box has a label that is not in `classes`.
pub fn truth(
    pieces: &[Piece],
    scenes: &[&Scene],
    classes: &[String],
    side: usize,
) -> Result<Truth> {
    let mut truth = Truth::default();
    let number = |label: &str| {
        let known = classes.iter().position(|c| c == label);
        known.ok_or_else(|| anyhow::anyhow!("box of unknown class '{label}'"))
    };
    for (i, piece) in pieces.iter().enumerate() {
        let scene = scenes[piece.scene];
        let seen = |rect: Rect| {
            let (rect, left) = seen(rect, piece)?;
            // What lies over it hides it.
            let hidden = pieces[i + 1..].iter().map(|p| rect.overlap(p.at) / rect.area().max(1e-9));
            let left = left * (1.0 - hidden.fold(0.0, f32::max));
            Some((rect.to_pixels(side as u32, side as u32), left))
        };
        for (c, class) in classes.iter().enumerate() {
            if !scene.exhaustive_for.contains(class) {
                truth.blind.push((c, piece.at.to_pixels(side as u32, side as u32)));
            }
        }
        for b in &scene.unsure {
            let Some((bounds, _)) = seen(b.rect) else { continue };
            truth.blind.push((number(&b.label)?, bounds));
        }
        for b in &scene.boxes {
            let Some((bounds, left)) = seen(b.rect) else { continue };
            let shortest = (bounds[2] - bounds[0]).min(bounds[3] - bounds[1]);
            let found = left >= LEFT_TO_FIND && shortest >= SMALLEST_SIDE;
            let list = if found { &mut truth.boxes } else { &mut truth.blind };
            list.push((number(&b.label)?, bounds));
        }
    }
    Ok(truth)
}

/// Where a box of a scene is seen in the view, and which share of it.
fn seen(rect: Rect, piece: &Piece) -> Option<(Rect, f32)> {
    let part = piece.part;
    let left = rect.overlap(part) / rect.area().max(1e-9);
    let x = |v: f32| (v - part.x0()) / part.width();
    let y = |v: f32| (v - part.y0()) / part.height();
    let (mut x0, mut x1) = (x(rect.x0()), x(rect.x1()));
    if piece.flip {
        (x0, x1) = (1.0 - x1, 1.0 - x0);
    }
    let inner = Rect::clipped(x0, y(rect.y0()), x1, y(rect.y1()))?;
    Some((inner.within(piece.at), left))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::data::{LabelledBox, Split};

    fn boxed(bounds: [f32; 4], label: &str) -> LabelledBox {
        LabelledBox { rect: Rect::try_from(bounds).unwrap(), label: label.into() }
    }

    fn scene(bounds: [f32; 4], label: &str) -> Scene {
        Scene {
            file: "x".into(),
            boxes: vec![boxed(bounds, label)],
            unsure: vec![],
            exhaustive_for: vec![label.into()],
            source: String::new(),
            split: Split::Train,
        }
    }

    fn classes() -> Vec<String> {
        ["dog", "cat"].map(String::from).to_vec()
    }

    /// A picture that is red where the box is.
    fn picture(scene: &Scene) -> RgbImage {
        RgbImage::from_fn(128, 128, |x, y| {
            let [x0, y0, x1, y1] = scene.boxes[0].rect.to_pixels(128, 128);
            let (x, y) = (x as f32, y as f32);
            let inside = x >= x0 && x < x1 && y >= y0 && y < y1;
            image::Rgb(if inside { [255, 0, 0] } else { [0, 0, 0] })
        })
    }

    #[test]
    fn boxes_stay_on_their_animals_in_every_view() {
        let scene = scene([0.25, 0.375, 0.5, 0.75], "dog");
        let picture = picture(&scene);
        let mut rng = StdRng::seed_from_u64(2);
        let views = Views { mosaic: 0.0, far: 0.3, ..Views::default() };
        let mut found = 0;
        for _ in 0..60 {
            let pieces = views.draw(0, &[&scene], &mut rng);
            let view = paint(&pieces, &[&scene], (0, &picture), 64).unwrap();
            let truth = truth(&pieces, &[&scene], &classes(), 64).unwrap();
            let Some((0, [x0, y0, x1, y1])) = truth.boxes.first() else { continue };
            found += 1;
            let is_red = |p: &image::Rgb<u8>| p.0[0] > 128 && p.0[1] < 64;
            let (mut inside, mut outside) = (0, 0);
            for (x, y, _) in view.enumerate_pixels().filter(|(.., p)| is_red(p)) {
                let (x, y) = (x as f32 + 0.5, y as f32 + 0.5);
                let at = x > x0 - 1.0 && x < x1 + 1.0 && y > y0 - 1.0 && y < y1 + 1.0;
                if at { inside += 1 } else { outside += 1 }
            }
            assert_eq!(outside, 0);
            assert!(inside as f32 > 0.7 * (x1 - x0 - 1.0) * (y1 - y0 - 1.0));
        }
        assert!(found > 50, "{found}");
    }

    #[test]
    fn a_mosaic_keeps_what_is_not_known_in_its_own_quarter() {
        let scenes = [scene([0.1, 0.1, 0.9, 0.9], "dog"), scene([0.1, 0.1, 0.9, 0.9], "cat")];
        let scenes: Vec<&Scene> = scenes.iter().collect();
        let mut rng = StdRng::seed_from_u64(5);
        let views = Views { mosaic: 1.0, far: 0.0, whole: 0.0, ..Views::default() };
        let pieces = views.draw(1, &scenes, &mut rng);
        assert_eq!(pieces.len(), 4);
        let area: f32 = pieces.iter().map(|p| p.at.area()).sum();
        assert!((area - 1.0).abs() < 1e-5);
        let truth = truth(&pieces, &scenes, &classes(), 64).unwrap();
        for (piece, (class, bounds)) in pieces.iter().zip(&truth.blind) {
            // Of a dog's scene cats are not known, and the other way round.
            assert_eq!(*class, 1 - piece.scene);
            assert_eq!(*bounds, piece.at.to_pixels(64, 64));
        }
    }

    #[test]
    fn what_is_laid_over_a_view_is_found_and_what_it_hides_is_not() {
        let scenes = [scene([0.25, 0.375, 0.5, 0.75], "dog"), scene([0.4, 0.4, 0.6, 0.6], "cat")];
        let pictures = [picture(&scenes[0]), picture(&scenes[1])];
        let dir = tempfile::tempdir().unwrap();
        let scenes = [0, 1].map(|i| {
            let file = dir.path().join(format!("{i}.png"));
            pictures[i].save(&file).unwrap();
            Scene { file, ..scenes[i].clone() }
        });
        let scenes: Vec<&Scene> = scenes.iter().collect();
        let mut rng = StdRng::seed_from_u64(4);
        let views = Views { mosaic: 0.0, far: 0.0, whole: 1.0, paste: 1.0, ..Views::default() };
        let (mut found, mut hidden) = (0, 0);
        for _ in 0..60 {
            let pieces = views.draw(0, &scenes, &mut rng);
            assert_eq!(pieces.len(), 2);
            let over = &pieces[1];
            let view = paint(&pieces, &scenes, (0, &pictures[0]), 128).unwrap();
            let truth = truth(&pieces, &scenes, &classes(), 128).unwrap();
            let class = over.scene;
            let [x0, y0, x1, y1] = truth.boxes.last().filter(|b| b.0 == class).unwrap().1;
            let middle = view.get_pixel(((x0 + x1) / 2.0) as u32, ((y0 + y1) / 2.0) as u32);
            found += usize::from(middle.0[0] > 128 && middle.0[1] < 64);
            let below = Views::plain(0)[0].clone();
            let dog = seen(scenes[0].boxes[0].rect, &Piece { flip: pieces[0].flip, ..below });
            let dog = dog.unwrap().0;
            if dog.overlap(over.at) > 0.7 * dog.area() {
                hidden += 1;
                assert_eq!(
                    (truth.boxes.len(), truth.blind.iter().filter(|b| b.0 == 0).count()),
                    (1, 1 + class)
                );
            }
        }
        assert_eq!(found, 60);
        assert!(hidden > 0);
    }

    #[test]
    fn what_is_cut_or_too_small_is_neither_found_nor_background() {
        let scene = scene([0.0, 0.0, 0.5, 0.5], "dog");
        let cut = Piece {
            scene: 0,
            part: Rect::try_from([0.4, 0.0, 1.0, 1.0]).unwrap(),
            at: Rect::WHOLE,
            flip: false,
        };
        let t = truth(&[cut], &[&scene], &classes()[..1], 64).unwrap();
        assert_eq!((t.boxes.len(), t.blind.len()), (0, 1));
        let far = Piece {
            at: Rect::try_from([0.0, 0.0, 0.1, 0.1]).unwrap(),
            ..Views::plain(0)[0].clone()
        };
        let t = truth(&[far], &[&scene], &classes()[..1], 64).unwrap();
        assert_eq!((t.boxes.len(), t.blind.len()), (0, 1));
        assert!(truth(&Views::plain(0), &[&scene], &["wolf".into()], 64).is_err());
    }
}
