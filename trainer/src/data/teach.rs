//! Boxes from detectors that already know: they complete pictures in which only some classes are
//! boxed, and box pictures of which only the class is known (distillation by pseudo-labels).
//!
//! What several teachers agree on becomes a box; what only one says, or says weakly, is neither
//! to be found nor background. Where the class of a picture is known, it names the animal: a
//! teacher's dog on a picture of a cat is a cat's box.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pawlatch_core::sight::Class;
use pawlatch_core::units::{Rect, Score};
use pawlatch_core::vision::Detector;
use sha2::{Digest, Sha256};

use super::{Dataset, LabelledBox, Scene, Split, open};
use crate::evaluate::{frame, load_model};
use crate::workers::{self, bar};

/// Lowest score of a teacher that is looked at.
const FLOOR: Score = Score::clamped(0.1);
/// Boxes that overlap more than this (IoU) mean the same thing.
const SAME: f32 = 0.55;
/// A box agreed on has at least this mean score over all teachers.
const AGREED: f32 = 0.28;
/// The same where the class of the picture vouches for the animal.
const VOUCHED: f32 = 0.14;
/// Against what the picture's own boxes say, agreement must be this strong to cast doubt.
const STRONG: f32 = 0.45;
/// A box of a single teacher counts from this score where the class vouches for it.
const ALONE: f32 = 0.6;
/// A teacher's box with a lower score raises no doubt.
const DOUBT: f32 = 0.18;

/// What is known of a picture before the teachers look.
enum Known {
    /// The scene's own boxes, and for which classes they are complete.
    Boxes,
    /// What the picture shows.
    Label(Class),
}

/// What the teachers say together of one thing.
#[derive(Clone, Debug)]
struct Opinion {
    class: Class,
    rect: Rect,
    /// Score by teacher.
    scores: Vec<f32>,
}

impl Opinion {
    fn votes(&self) -> usize {
        self.scores.iter().filter(|s| **s > 0.0).count()
    }

    fn mean(&self) -> f32 {
        self.scores.iter().sum::<f32>() / self.scores.len() as f32
    }

    fn best(&self) -> f32 {
        self.scores.iter().copied().fold(0.0, f32::max)
    }
}

/// Lets the detectors in the model directories `teachers` complete the training scenes of `data`
/// and box its training pictures of a known class; pictures whose animal or person they do not
/// find are left out. Validation is untouched, and so are boxed pictures of the sources `except`,
/// of which unboxed ones are not used.
///
/// # Errors
/// If a teacher cannot be loaded, or a picture not be read.
pub fn teach(data: &mut Dataset, teachers: &[PathBuf], except: &[String]) -> Result<()> {
    ensure!(!teachers.is_empty(), "no teacher is given");
    let labels: Vec<String> = [Class::Dog, Class::Cat, Class::Person, Class::Other]
        .iter()
        .map(|c| c.name().to_owned())
        .collect();
    let mut work: Vec<(Scene, Option<Class>)> = Vec::new();
    let taken = |split, source: &String| split == Split::Train && !except.contains(source);
    for scene in data.scenes.iter().filter(|s| taken(s.split, &s.source)) {
        work.push((scene.clone(), None));
    }
    for item in data.items.iter().filter(|i| taken(i.split, &i.source) && !i.is_crop()) {
        let scene = Scene {
            file: item.file.clone(),
            boxes: Vec::new(),
            unsure: Vec::new(),
            exhaustive_for: Vec::new(),
            source: item.source.clone(),
            split: Split::Train,
        };
        if data.scenes.iter().all(|s| s.file != item.file) {
            work.push((scene, Some(crate::evaluate::door_class(&item.label)?)));
        }
    }
    let bar = bar(work.len() as u64, "teachers look");
    let start = || teachers.iter().map(|t| detector(t)).collect::<Result<Vec<_>>>();
    let taught: Vec<Option<Scene>> = workers::each(work.len(), &start, &|detectors, i| {
        let (scene, label) = &work[i];
        let said = look(detectors, &scene.file)?;
        bar.inc(1);
        let known = label.map_or(Known::Boxes, Known::Label);
        let mut taught = judged(known, &said, scene.clone());
        if let Some(taught) = &mut taught {
            taught.exhaustive_for.clone_from(&labels);
        }
        Ok(taught)
    })?;
    bar.finish_and_clear();
    let taught: Vec<Scene> = taught.into_iter().flatten().collect();
    data.notes.push(format!(
        "{} of {} pictures boxed by teachers; the rest shows what they did not find",
        taught.len(),
        work.len()
    ));
    data.scenes.retain(|s| !taken(s.split, &s.source));
    data.scenes.extend(taught);
    let mut hash = Sha256::new();
    hash.update(&data.sha256);
    hash.update(serde_json::to_vec(
        &data.scenes.iter().map(|s| (&s.boxes, &s.unsure)).collect::<Vec<_>>(),
    )?);
    data.sha256 = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(())
}

fn detector(dir: &Path) -> Result<Detector> {
    Detector::new(load_model(dir)?).with_context(|| format!("{} is no teacher", dir.display()))
}

/// What each teacher finds: class, score, box.
fn look(detectors: &mut [Detector], file: &Path) -> Result<Vec<Vec<(Class, f32, Rect)>>> {
    let frame = frame(open(file)?)?;
    let found = detectors.iter_mut().map(|d| {
        let found = d.detect_above(&frame, Rect::WHOLE, FLOOR)?;
        Ok(found.iter().map(|f| (f.class, f.score.get(), f.rect)).collect())
    });
    found.collect::<Result<_>>().with_context(|| file.display().to_string())
}

const fn is_animal(class: Class) -> bool {
    matches!(class, Class::Dog | Class::Cat | Class::Other)
}

/// Opinions of all teachers, best first. With a `label`, every animal is of that class.
fn opinions(said: &[Vec<(Class, f32, Rect)>], label: Option<Class>) -> Vec<Opinion> {
    let mut all: Vec<(usize, Class, f32, Rect)> = Vec::new();
    for (teacher, found) in said.iter().enumerate() {
        for &(class, score, rect) in found.iter().filter(|f| f.0 != Class::Nothing) {
            let class = label.filter(|_| is_animal(class)).unwrap_or(class);
            all.push((teacher, class, score, rect));
        }
    }
    all.sort_by(|a, b| b.2.total_cmp(&a.2));
    let mut opinions: Vec<Opinion> = Vec::new();
    for (teacher, class, score, rect) in all {
        let same = opinions.iter_mut().find(|o| o.class == class && o.rect.iou(rect) > SAME);
        match same {
            // A second box of the same teacher on the same thing adds nothing.
            Some(o) if o.scores[teacher] > 0.0 => {}
            Some(o) => {
                let share = score / (score + o.scores.iter().sum::<f32>());
                o.rect = between(o.rect, rect, share);
                o.scores[teacher] = score;
            }
            None => {
                let mut scores = vec![0.0; said.len()];
                scores[teacher] = score;
                opinions.push(Opinion { class, rect, scores });
            }
        }
    }
    opinions.sort_by(|a, b| b.mean().total_cmp(&a.mean()));
    opinions
}

fn between(a: Rect, b: Rect, share: f32) -> Rect {
    let (a, b) = (<[f32; 4]>::from(a), <[f32; 4]>::from(b));
    let [x0, y0, x1, y1] = std::array::from_fn(|i| a[i] + (b[i] - a[i]) * share);
    Rect::clipped(x0, y0, x1, y1).unwrap_or(Rect::WHOLE)
}

/// `scene` with the boxes and doubts that follow; nothing if nobody found what it
/// shows.
fn judged(known: Known, said: &[Vec<(Class, f32, Rect)>], mut scene: Scene) -> Option<Scene> {
    let label = match known {
        Known::Label(label) if is_animal(label) => Some(label),
        // A person or a scene holds no cat and no dog; any other animal may be there.
        Known::Label(_) => Some(Class::Other),
        Known::Boxes => None,
    };
    for o in opinions(said, label) {
        let boxed = LabelledBox { rect: o.rect, label: o.class.name().into() };
        let covered = |list: &[LabelledBox], same: &dyn Fn(&LabelledBox) -> bool| {
            let most = |b: &&LabelledBox| b.rect.overlap(o.rect) > 0.7 * o.rect.area();
            list.iter().filter(|b| same(b)).any(|b| most(&b) || b.rect.iou(o.rect) > SAME)
        };
        let kind = |b: &LabelledBox| (b.label == "person") == (o.class == Class::Person);
        if covered(&scene.boxes, &kind) {
            continue;
        }
        let vouched = match known {
            Known::Label(label) => label == o.class && is_animal(o.class),
            Known::Boxes => false,
        };
        let complete = scene.exhaustive_for.contains(&boxed.label);
        let contested = match known {
            Known::Boxes => is_animal(o.class),
            Known::Label(label) => !is_animal(label) && is_animal(o.class),
        };
        let enough = if vouched {
            VOUCHED
        } else if contested {
            STRONG
        } else {
            AGREED
        };
        let agreed = o.votes() * 2 > said.len() && o.mean() >= enough;
        if (agreed || (vouched && o.best() >= ALONE)) && !complete {
            scene.boxes.push(boxed);
        } else if o.best() >= DOUBT && (!complete || (agreed && o.mean() >= STRONG)) {
            scene.unsure.push(boxed);
        }
    }
    let found = match known {
        Known::Label(Class::Nothing) | Known::Boxes => true,
        Known::Label(label) => scene.shows(label.name()),
    };
    found.then_some(scene)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rect(x: f32) -> Rect {
        Rect::clipped(x, 0.2, x + 0.3, 0.7).unwrap()
    }

    fn scene(exhaustive_for: &[&str], boxes: Vec<LabelledBox>) -> Scene {
        Scene {
            file: "x".into(),
            boxes,
            unsure: vec![],
            exhaustive_for: exhaustive_for.iter().map(|s| (*s).to_owned()).collect(),
            source: String::new(),
            split: Split::Train,
        }
    }

    fn labels(boxes: &[LabelledBox]) -> Vec<&str> {
        boxes.iter().map(|b| b.label.as_str()).collect()
    }

    #[test]
    fn a_teachers_dog_on_a_picture_of_a_cat_is_a_cat() {
        let said = [
            vec![(Class::Dog, 0.5, rect(0.1)), (Class::Cat, 0.3, rect(0.12))],
            vec![(Class::Cat, 0.6, rect(0.11))],
        ];
        let s = judged(Known::Label(Class::Cat), &said, scene(&[], vec![])).unwrap();
        assert_eq!((labels(&s.boxes), s.unsure.len()), (vec!["cat"], 0));
        assert!(s.boxes[0].rect.iou(rect(0.105)) > 0.9);
    }

    #[test]
    fn what_only_one_teacher_sees_is_doubtful() {
        let said = [vec![(Class::Person, 0.5, rect(0.5))], vec![]];
        let s = judged(Known::Label(Class::Nothing), &said, scene(&[], vec![])).unwrap();
        assert_eq!((s.boxes.len(), labels(&s.unsure)), (0, vec!["person"]));
    }

    #[test]
    fn boxes_drawn_by_hand_are_not_repeated_and_persons_are_added() {
        let hand = LabelledBox { rect: rect(0.1), label: "cat".into() };
        let said = vec![
            vec![(Class::Dog, 0.7, rect(0.1)), (Class::Person, 0.6, rect(0.6))],
            vec![(Class::Dog, 0.7, rect(0.12)), (Class::Person, 0.4, rect(0.61))],
        ];
        let own = scene(&["cat"], vec![hand.clone()]);
        let s = judged(Known::Boxes, &said, own.clone()).unwrap();
        assert_eq!(s.boxes[0], hand);
        assert_eq!((labels(&s.boxes), s.unsure.len()), (vec!["cat", "person"], 0));
        // A strong second cat where all cats are said to be boxed: not sure any more.
        let said = vec![vec![(Class::Cat, 0.9, rect(0.6))]; 2];
        let s = judged(Known::Boxes, &said, own.clone()).unwrap();
        assert_eq!((s.boxes.len(), labels(&s.unsure)), (1, vec!["cat"]));
    }

    #[test]
    fn an_animal_nobody_finds_leaves_its_picture_out() {
        let said = [vec![(Class::Person, 0.9, rect(0.1))], vec![(Class::Person, 0.9, rect(0.1))]];
        assert!(judged(Known::Label(Class::Other), &said, scene(&[], vec![])).is_none());
        let s = judged(Known::Label(Class::Nothing), &said, scene(&[], vec![])).unwrap();
        assert_eq!(labels(&s.boxes), ["person"]);
    }
}
