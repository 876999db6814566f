//! Sightings over time: one track per animal or person, with the evidence gathered for it.
//!
//! Evidence is a sequential probability ratio test (A. Wald, *Sequential Analysis*, 1947): the
//! sum of log-likelihood ratios "dog against not a dog" is held against two thresholds that
//! follow from the wanted error rates. Three things keep single frames from deciding: each
//! frame's ratio is capped, frames closer together than the correlation time count in
//! proportion, and in favour counts no more than what detector and classifier say together.
//!
//! What forbids opening may come at any moment, and what was seen before it must not hide it: a
//! box of leaves that a cat walks into is a cat from then on. Evidence for a cat, a person or
//! another animal is therefore never below zero (E. S. Page, *Continuous inspection schemes*, 1954).
//!
//! Which dog it is, if anybody asks, is the mean likeness to each animal over about the last
//! second, with the same weights; it counts once as much was seen as it takes to be a dog at all.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sight::{Class, Sighting, Sightings};
use crate::units::{Rect, Score, Uptime};

/// Most tracks held at once; the weakest newcomers beyond it are dropped.
pub const MAX_TRACKS: usize = 16;

/// Independent frames of a dog after which it is settled whom it is like. An unsure dog takes
/// as long.
pub const LOOKS_NEEDED: f32 = 3.0;
/// Independent frames of a dog that are remembered: what comes after outweighs what was, should
/// another dog take the first one's place.
const LOOKS_MOST: f32 = 5.0;

/// How often the door may be wrong, per approach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ErrorBudget {
    /// Wanted rate of opening for something that is not a dog, above 0 and below 0.5.
    pub false_accept: f32,
    /// Wanted rate of refusing a dog, above 0 and below 0.5.
    pub false_reject: f32,
}

impl ErrorBudget {
    /// Evidence at which something is taken for a dog: Wald's `ln((1 - β) / α)` with the
    /// false-reject rate β and the false-accept rate α.
    pub fn accept(self) -> f32 {
        ((1.0 - self.false_reject) / self.false_accept).ln()
    }
    /// Evidence at which something is taken not to be a dog: Wald's `ln(β / (1 - α))`, negative.
    pub fn reject(self) -> f32 {
        (self.false_reject / (1.0 - self.false_accept)).ln()
    }
}

/// How steeply evidence for a person rises with the log-odds of what both networks say together.
/// It lies between those of two logistic regressions, on the boxes of 56 pictures with persons (8 of
/// them beside a dog) against those of 138 of dogs alone (7.9, zero at 0.33) and of 330 without
/// persons (4.9, zero at 0.31), both sides weighted alike. Zero is at the default of
/// [`TrackSettings::believe_both`].
const PERSON_SLOPE: f32 = 6.0;

/// The same for a dog, of the 693 boxes for which the detector gives a dog any score, in 1841
/// validation pictures, plain, grey, dark, blurred, small, turned and in wrong colours. Most of
/// what the classifier alone takes for a dog wrongly, the detector does not.
const DOG_SLOPE: f32 = 3.3;
/// Where it crosses zero. (The fit says 0.47. A dog in two clips needs the rest, and no cat in any
/// clip, in whatever colours, comes near.)
const DOG_AGREED: Score = Score::clamped(0.45);

/// How tracks are made and how evidence counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrackSettings {
    /// The error budget the accept and reject thresholds follow from.
    pub budget: ErrorBudget,
    /// Cap on one frame's log-likelihood ratio, either way. With the default budget it takes at
    /// least three independent frames to open.
    pub frame_cap: f32,
    /// Frames closer together than this share one frame's weight.
    pub correlation: Duration,
    /// A track not seen for this long is forgotten.
    pub forget_after: Duration,
    /// Smallest overlap (IoU) that continues a track; below it, a box whose centre moved less
    /// than its own size still does.
    pub min_iou: f32,
    /// Detector score from which a person, or a contradiction, is believed.
    pub believe: Score,
    /// From which a person is believed whom the classifier has also looked at: the geometric mean
    /// of the detector's score and the classifier's probability.
    pub believe_both: Score,
    /// Where an animal must stand to be let in: a polygon in fractions of the picture; empty
    /// means anywhere.
    pub approach: Vec<(f32, f32)>,
}

impl Default for TrackSettings {
    fn default() -> Self {
        Self {
            budget: ErrorBudget { false_accept: 0.001, false_reject: 0.02 },
            frame_cap: 3.0,
            correlation: Duration::from_millis(200),
            forget_after: Duration::from_millis(1_000),
            min_iou: 0.2,
            believe: Score::clamped(0.5),
            believe_both: Score::clamped(0.33),
            approach: Vec::new(),
        }
    }
}

/// One animal or person followed over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Track {
    /// Number of the track since start.
    pub id: u32,
    /// Where it was last seen.
    pub rect: Rect,
    /// Capture time of the first frame it was seen in.
    pub first_seen: Uptime,
    /// Capture time of the last frame it was seen in.
    pub last_seen: Uptime,
    /// Number of frames it was seen in.
    pub frames: u32,
    /// Evidence (log-likelihood ratio) that it is a dog, against anything else.
    pub dog: f32,
    /// Evidence that it is a cat, against anything else; at least 0, as the next two.
    pub cat: f32,
    /// Evidence that it is a person, against anything else.
    pub person: f32,
    /// Evidence that it is another animal or something taken for one, against anything else.
    pub other: f32,
    /// Share of its last frames on which detector and classifier contradicted each other, or the
    /// classifier knew nothing like it: an exponential mean over about four frames.
    pub doubt: f32,
    /// Whether it stands in the approach.
    pub in_approach: bool,
    /// How like each animal of the roll it was over the last frames, their mean; empty if nobody
    /// asks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub likeness: Vec<f32>,
    /// How many independent frames that mean is of.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub looks: f32,
}

fn is_zero(looks: &f32) -> bool {
    *looks == 0.0
}

impl Track {
    /// Evidence for `class`.
    pub const fn evidence(&self, class: Class) -> f32 {
        match class {
            Class::Dog => self.dog,
            Class::Cat => self.cat,
            Class::Person => self.person,
            Class::Other | Class::Nothing => self.other,
        }
    }

    /// The class with the most evidence.
    pub fn best(&self) -> Class {
        let mut best = Class::Other;
        for class in [Class::Person, Class::Cat, Class::Dog] {
            if self.evidence(class) > self.evidence(best) {
                best = class;
            }
        }
        best
    }
}

/// Follows sightings from frame to frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tracker {
    settings: TrackSettings,
    tracks: Vec<Track>,
    next_id: u32,
    /// Nothing captured until then speaks for a dog any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spent_at: Option<Uptime>,
}

impl Tracker {
    /// A tracker that has seen nothing.
    pub const fn new(settings: TrackSettings) -> Self {
        Self { settings, tracks: Vec::new(), next_id: 1, spent_at: None }
    }

    /// The settings it was made with.
    pub const fn settings(&self) -> &TrackSettings {
        &self.settings
    }

    /// Tracks alive after the last step, oldest first.
    pub fn tracks(&self) -> &[Track] {
        &self.tracks
    }

    /// Forgets tracks that have not been seen for too long, then, if there is a new frame, joins
    /// its sightings to tracks (best overlap first, whatever the class) and adds its evidence.
    /// A frame that is not newer than a track's last one adds nothing to that track; a frame the
    /// networks did not look at, or whose picture is not good, adds nothing at all.
    pub fn step(&mut self, now: Uptime, sightings: Option<&Sightings>) {
        let forget_after = self.settings.forget_after;
        self.tracks.retain(|t| now.since(t.last_seen) <= forget_after);
        let Some(sightings) = sightings else { return };
        let trusted = sightings.health == crate::frame::PictureHealth::Good;
        if !sightings.looked || !trusted {
            return;
        }
        let pairs = self.pairs(&sightings.seen);
        for (index, sighting) in sightings.seen.iter().enumerate() {
            let joined = pairs.iter().find(|(seen, _)| *seen == index).map(|(_, track)| *track);
            if let Some(track) = joined {
                self.tracks[track].add(sighting, sightings.captured_at, &self.settings);
            } else if self.tracks.len() < MAX_TRACKS {
                self.begin(sighting, sightings.captured_at);
            }
        }
        if self.spent_at.is_some_and(|at| sightings.captured_at <= at) {
            self.tracks.iter_mut().for_each(Track::spend);
        }
    }

    /// Uses up whatever spoke for dogs, which dog included, in frames captured until `now`: the
    /// door has been open for it. What speaks against opening stays.
    pub fn spend(&mut self, now: Uptime) {
        self.spent_at = Some(now);
        self.tracks.iter_mut().for_each(Track::spend);
    }

    /// Pairs `(sighting, track)`, each index at most once, nearest first.
    fn pairs(&self, seen: &[Sighting]) -> Vec<(usize, usize)> {
        let mut candidates: Vec<(f32, usize, usize)> = Vec::new();
        for (s, sighting) in seen.iter().enumerate() {
            for (t, track) in self.tracks.iter().enumerate() {
                let near = nearness(track.rect, sighting.detection.rect, self.settings.min_iou);
                candidates.extend(near.map(|near| (near, s, t)));
            }
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        let mut pairs: Vec<(usize, usize)> = Vec::new();
        for (_, s, t) in candidates {
            if pairs.iter().all(|(ps, pt)| *ps != s && *pt != t) {
                pairs.push((s, t));
            }
        }
        pairs
    }

    fn begin(&mut self, sighting: &Sighting, at: Uptime) {
        let mut track = Track {
            id: self.next_id,
            rect: sighting.detection.rect,
            first_seen: at,
            last_seen: at,
            frames: 0,
            dog: 0.0,
            cat: 0.0,
            person: 0.0,
            other: 0.0,
            doubt: 0.0,
            in_approach: false,
            likeness: Vec::new(),
            looks: 0.0,
        };
        self.next_id = self.next_id.wrapping_add(1);
        track.add(sighting, at, &self.settings);
        self.tracks.push(track);
    }
}

impl Track {
    /// Adds the evidence of one more frame.
    fn add(&mut self, sighting: &Sighting, at: Uptime, settings: &TrackSettings) {
        if self.frames > 0 && at <= self.last_seen {
            return;
        }
        let weight = if self.frames == 0 || settings.correlation.is_zero() {
            1.0
        } else {
            (at.since(self.last_seen).as_secs_f32() / settings.correlation.as_secs_f32()).min(1.0)
        };
        let ratio = FrameEvidence::of(sighting, settings);
        // Bounded on both sides, so that a long stay can still be outweighed by what comes.
        let (low, high) = (1.5 * settings.budget.reject(), 1.5 * settings.budget.accept());
        let sum = |evidence: f32, ratio: f32, least: f32| {
            let ratio = ratio.clamp(-settings.frame_cap, settings.frame_cap);
            (evidence + weight * ratio).clamp(least, high)
        };
        self.dog = sum(self.dog, ratio.dog, low);
        self.cat = sum(self.cat, ratio.cat, 0.0);
        self.person = sum(self.person, ratio.person, 0.0);
        self.other = sum(self.other, ratio.other, 0.0);
        let doubted = if ratio.doubtful { 1.0 } else { 0.0 };
        self.doubt = if self.frames == 0 { doubted } else { 0.75 * self.doubt + 0.25 * doubted };
        // A second look at the same moment has no weight, and a mean of nothing is no number.
        if !sighting.likeness.is_empty() && weight > 0.0 {
            self.compare(&sighting.likeness, weight);
        }
        self.rect = sighting.detection.rect;
        self.in_approach = stands_in(self.rect, &settings.approach);
        self.last_seen = at;
        self.frames += 1;
    }

    fn spend(&mut self) {
        self.dog = self.dog.min(0.0);
        self.likeness.clear();
        self.looks = 0.0;
    }

    /// Adds how like each animal it is in one more frame.
    fn compare(&mut self, likeness: &[f32], weight: f32) {
        if self.likeness.len() != likeness.len() {
            (self.likeness, self.looks) = (vec![0.0; likeness.len()], 0.0);
        }
        let share = weight / (self.looks + weight);
        for (mean, new) in self.likeness.iter_mut().zip(likeness) {
            *mean += share * (new - *mean);
        }
        self.looks = (self.looks + weight).min(LOOKS_MOST);
    }
}

/// Whether `sighting` by itself speaks for a person; a track adds up what its frames say.
pub fn speaks_for_a_person(sighting: &Sighting, settings: &TrackSettings) -> bool {
    FrameEvidence::of(sighting, settings).person > 0.0
}

/// One frame's log-likelihood ratios, before cap and weight.
struct FrameEvidence {
    dog: f32,
    cat: f32,
    person: f32,
    other: f32,
    doubtful: bool,
}

impl FrameEvidence {
    fn of(sighting: &Sighting, settings: &TrackSettings) -> Self {
        let Sighting { detection, classification, .. } = sighting;
        let believed = detection.score >= settings.believe;
        let Some(classification) = classification else {
            // A detector's label alone may speak against opening, never for it.
            let said = |class| {
                if detection.class == class {
                    detection.score.logit() - settings.believe.logit()
                } else {
                    -1.0
                }
            };
            return Self {
                dog: if detection.class == Class::Dog { 0.0 } else { -1.0 },
                cat: said(Class::Cat),
                person: said(Class::Person),
                other: said(Class::Other),
                doubtful: false,
            };
        };
        let probs = &classification.probs;
        let of = |class| probs.of(class).logit();
        if detection.class == Class::Person {
            // Where the detector sees a person, nothing speaks for a dog; the dog has its own box.
            return Self {
                dog: of(Class::Dog).min(0.0),
                cat: of(Class::Cat),
                person: PERSON_SLOPE * (sighting.joint().logit() - settings.believe_both.logit()),
                other: of(Class::Other),
                doubtful: false,
            };
        }
        let contradicted = believed && probs.best() == Class::Dog && detection.class != Class::Dog;
        let doubtful = contradicted || classification.rejected;
        let agreed = if doubtful {
            0.0
        } else {
            DOG_SLOPE * (sighting.as_dog().logit() - DOG_AGREED.logit())
        };
        Self {
            // In favour counts no more than what both say together.
            dog: of(Class::Dog).min(agreed.max(0.0)),
            cat: of(Class::Cat),
            person: of(Class::Person),
            other: of(Class::Other),
            doubtful,
        }
    }
}

/// How well a box continues a track, higher is nearer: its overlap, or, for something small and
/// quick that no longer overlaps, how little its centre moved against its size (below 0).
fn nearness(old: Rect, new: Rect, min_iou: f32) -> Option<f32> {
    let iou = old.iou(new);
    if iou >= min_iou {
        return Some(iou);
    }
    let ((ox, oy), (nx, ny)) = (old.centre(), new.centre());
    let size = old.width().max(old.height()).max(new.width()).max(new.height());
    let moved = (ox - nx).hypot(oy - ny) / size;
    (moved < 0.75).then_some(-moved)
}

/// Whether the middle or the foot of `rect` lies in the polygon; an empty polygon is everywhere.
fn stands_in(rect: Rect, polygon: &[(f32, f32)]) -> bool {
    polygon.is_empty() || contains(polygon, rect.centre()) || contains(polygon, rect.foot())
}

/// Even-odd rule: a point is inside when a ray from it crosses the outline an odd number of times.
pub(crate) fn contains(polygon: &[(f32, f32)], (x, y): (f32, f32)) -> bool {
    let mut inside = false;
    let mut previous = polygon.len().saturating_sub(1);
    for (current, &(cx, cy)) in polygon.iter().enumerate() {
        let (px, py) = polygon[previous];
        if (cy > y) != (py > y) && x < (px - cx) * (y - cy) / (py - cy) + cx {
            inside = !inside;
        }
        previous = current;
    }
    inside
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::PictureHealth;
    use crate::sight::{ClassProbs, Classification, Detection};

    fn sighting(class: Class, detector: Class) -> Sighting {
        seen_at([0.3, 0.3, 0.6, 0.9], class, detector)
    }

    fn seen_at(rect: [f32; 4], class: Class, detector: Class) -> Sighting {
        let masses = Class::ALL.map(|c| if c == class { 0.96 } else { 0.01 });
        Sighting {
            detection: Detection {
                rect: rect.try_into().unwrap(),
                class: detector,
                label: detector.name().to_owned(),
                score: Score::clamped(0.8),
            },
            classification: Some(Classification {
                probs: ClassProbs::from_masses(masses).unwrap(),
                rejected: false,
            }),
            dog: Score::clamped(if detector == Class::Dog { 0.8 } else { 0.0 }),
            likeness: Vec::new(),
        }
    }

    fn frame(ms: u64, seen: Vec<Sighting>) -> Sightings {
        Sightings {
            captured_at: Uptime::from_millis(ms),
            health: PictureHealth::Good,
            motion: Score::ONE,
            looked: true,
            seen,
        }
    }

    fn feed(frames: impl IntoIterator<Item = Sightings>) -> Tracker {
        let mut tracker = Tracker::new(TrackSettings::default());
        for frame in frames {
            tracker.step(frame.captured_at, Some(&frame));
        }
        tracker
    }

    #[test]
    fn thresholds_follow_from_the_error_budget() {
        let budget = ErrorBudget { false_accept: 0.001, false_reject: 0.02 };
        assert!((budget.accept() - 980f32.ln()).abs() < 1e-5);
        assert!((budget.reject() - (0.02f32 / 0.999).ln()).abs() < 1e-5);
    }

    #[test]
    fn a_sighting_speaks_for_a_person_when_the_networks_see_one_and_not_for_a_pet() {
        let speaks = |class, detector| {
            speaks_for_a_person(&sighting(class, detector), &TrackSettings::default())
        };
        assert!(speaks(Class::Person, Class::Person));
        for pet in [Class::Dog, Class::Cat, Class::Other] {
            assert!(!speaks(pet, pet), "{pet:?}");
        }
    }

    #[test]
    fn one_frame_never_decides_and_a_steady_dog_does_within_half_a_second() {
        let accept = TrackSettings::default().budget.accept();
        let dogs =
            |n: u64| feed((0..n).map(|i| frame(100 * i, vec![sighting(Class::Dog, Class::Dog)])));
        assert!(dogs(1).tracks()[0].dog < accept / 2.0);
        assert!(dogs(3).tracks()[0].dog < accept);
        let steady = dogs(5);
        assert_eq!(steady.tracks().len(), 1);
        assert!(steady.tracks()[0].dog >= accept);
    }

    #[test]
    fn the_same_frame_twice_counts_once() {
        let once = feed([frame(0, vec![sighting(Class::Dog, Class::Dog)])]);
        let twice = feed([
            frame(0, vec![sighting(Class::Dog, Class::Dog)]),
            frame(0, vec![sighting(Class::Dog, Class::Dog)]),
        ]);
        assert_eq!(once, twice);
    }

    #[test]
    fn a_contradicted_dog_gathers_doubt_and_no_evidence() {
        let tracker = feed((0..20).map(|i| frame(100 * i, vec![sighting(Class::Dog, Class::Cat)])));
        let track = &tracker.tracks()[0];
        assert!(track.dog <= 0.0);
        assert!(track.doubt > 0.9);
    }

    #[test]
    fn a_dog_is_evidence_as_far_as_the_detector_sees_one_too() {
        let settings = TrackSettings::default();
        let of = |dog: f32, class| {
            let mut s = sighting(class, Class::Other);
            (s.detection.score, s.dog) = (Score::clamped(0.45), Score::clamped(dog));
            FrameEvidence::of(&s, &settings).dog
        };
        assert_eq!(of(0.0, Class::Dog), 0.0, "a second opinion that is missing is none");
        assert_eq!(of(0.2, Class::Dog), 0.0);
        assert!(of(0.4, Class::Dog) > 1.0 && of(0.4, Class::Dog) < of(0.5, Class::Dog));
        // However sure the detector is, the classifier has to be as well.
        assert!((of(1.0, Class::Dog) - Score::clamped(0.96).logit()).abs() < 1e-3);
        assert!(of(1.0, Class::Cat) < -3.0);
    }

    #[test]
    fn a_person_is_evidence_as_both_networks_see_it_and_never_for_a_dog() {
        let settings = TrackSettings::default();
        let of = |score: f32, class| {
            let mut s = sighting(class, Class::Person);
            s.detection.score = Score::clamped(score);
            FrameEvidence::of(&s, &settings)
        };
        let (seen, taken_for_a_dog) = (of(0.3, Class::Person), of(0.3, Class::Dog));
        assert!(seen.person > 2.0, "{}", seen.person);
        assert!(taken_for_a_dog.person < -2.0, "{}", taken_for_a_dog.person);
        assert_eq!(taken_for_a_dog.dog, 0.0);
        assert!(of(0.6, Class::Person).person > seen.person);
    }

    #[test]
    fn a_detectors_label_alone_is_never_evidence_for_a_dog() {
        let mut alone = sighting(Class::Dog, Class::Dog);
        alone.classification = None;
        let tracker = feed((0..50).map(|i| frame(100 * i, vec![alone.clone()])));
        assert!(tracker.tracks()[0].dog <= 0.0);
    }

    #[test]
    fn a_class_change_stays_the_same_track() {
        let first = frame(0, vec![sighting(Class::Dog, Class::Dog)]);
        let before = feed([first.clone()]).tracks()[0].clone();
        let after = feed([first, frame(100, vec![sighting(Class::Cat, Class::Cat)])]);
        let [after] = after.tracks() else { panic!("not one track: {after:?}") };
        assert_eq!(after.id, before.id);
        assert!(after.dog < before.dog && after.cat > before.cat);
    }

    #[test]
    fn a_cat_or_a_person_where_long_something_else_was_is_one_at_once() {
        let long =
            |class, detector| (0..40).map(move |i| frame(100 * i, vec![sighting(class, detector)]));
        for before in [Class::Other, Class::Dog] {
            let cat = (40..42).map(|i| frame(100 * i, vec![sighting(Class::Cat, Class::Cat)]));
            let tracker = feed(long(before, before).chain(cat));
            assert_eq!(tracker.tracks().len(), 1);
            assert!(tracker.tracks()[0].cat > 2.5, "{before}: {:?}", tracker.tracks()[0]);
        }
        let person = (40..42).map(|i| frame(100 * i, vec![sighting(Class::Person, Class::Person)]));
        let tracker = feed(long(Class::Other, Class::Other).chain(person));
        assert!(tracker.tracks()[0].person > 2.5, "{:?}", tracker.tracks()[0]);
    }

    #[test]
    fn two_animals_are_two_tracks_and_each_keeps_its_own() {
        let pair = || {
            vec![
                seen_at([0.05, 0.4, 0.3, 0.9], Class::Cat, Class::Cat),
                seen_at([0.5, 0.3, 0.95, 0.9], Class::Dog, Class::Dog),
            ]
        };
        let tracker = feed((0..8).map(|i| frame(100 * i, pair())));
        let kinds: Vec<Class> = tracker.tracks().iter().map(Track::best).collect();
        assert_eq!(kinds, [Class::Cat, Class::Dog]);
    }

    #[test]
    fn a_track_is_forgotten_and_sick_pictures_add_nothing() {
        let mut tracker = feed([frame(0, vec![sighting(Class::Dog, Class::Dog)])]);
        let mut sick = frame(100, vec![sighting(Class::Dog, Class::Dog)]);
        sick.health = PictureHealth::Frozen;
        let before = tracker.clone();
        tracker.step(Uptime::from_millis(100), Some(&sick));
        assert_eq!(tracker, before);
        tracker.step(Uptime::from_millis(1_001), None);
        assert!(tracker.tracks().is_empty());
    }

    #[test]
    fn only_who_stands_in_the_polygon_is_in_the_approach() {
        let left = [(0.0, 0.0), (0.4, 0.0), (0.4, 1.0), (0.0, 1.0)];
        let rect = |r: [f32; 4]| Rect::try_from(r).unwrap();
        assert!(stands_in(rect([0.1, 0.2, 0.3, 0.9]), &left));
        assert!(!stands_in(rect([0.6, 0.2, 0.9, 0.9]), &left));
        assert!(stands_in(rect([0.6, 0.2, 0.9, 0.9]), &[]));
    }

    #[test]
    fn whom_a_dog_is_like_is_the_mean_of_its_last_second_and_takes_a_while_to_settle() {
        let like = |n: u64, likeness: &[f32]| {
            let dog = Sighting { likeness: likeness.to_vec(), ..sighting(Class::Dog, Class::Dog) };
            frame(100 * n, vec![dog])
        };
        let mut tracker = feed([like(0, &[0.9, 0.1]), like(1, &[0.6, 0.1])]);
        let track = &tracker.tracks()[0];
        assert!(track.looks < LOOKS_NEEDED, "two frames settle nothing");
        assert!((track.likeness[0] - 0.8).abs() < 1e-6, "the second weighs half: {track:?}");
        for n in 2..6 {
            tracker.step(Uptime::from_millis(100 * n), Some(&like(n, &[0.9, 0.1])));
        }
        assert!(tracker.tracks()[0].looks >= LOOKS_NEEDED);
        // Another dog in its place outweighs it within two seconds.
        for n in 6..26 {
            tracker.step(Uptime::from_millis(100 * n), Some(&like(n, &[0.1, 0.9])));
        }
        let track = &tracker.tracks()[0];
        assert!(track.likeness[0] < 0.3 && track.likeness[1] > 0.7, "{track:?}");
        // A frame in which it is not taken for a dog says nothing.
        let before = track.likeness.clone();
        tracker.step(Uptime::from_millis(2_600), Some(&like(26, &[])));
        assert_eq!(tracker.tracks()[0].likeness, before);
    }

    #[test]
    fn the_number_of_tracks_is_bounded() {
        let crowd = (0..40)
            .map(|i| {
                let x = f32::from(i as u8) / 40.0;
                seen_at([x, 0.1, x + 0.01, 0.11], Class::Other, Class::Other)
            })
            .collect();
        assert_eq!(feed([frame(0, crowd)]).tracks().len(), MAX_TRACKS);
    }
}
