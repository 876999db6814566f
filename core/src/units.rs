//! Newtypes that cannot hold nonsense: time since start, probabilities, rectangles.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Monotonic time since the program started, in milliseconds.
///
/// The only clock the core knows. It is handed in, never read; it can be printed, stored and
/// replayed, and no change of the wall clock moves it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Uptime(u64);

impl Uptime {
    /// The moment the program started.
    pub const ZERO: Self = Self(0);

    /// `ms` milliseconds after start.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since start.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero if `earlier` is later than `self`.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Uptime {
    type Output = Self;
    /// Saturates at the end of time, some 584 million years after start.
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Uptime {
    type Output = Self;
    /// Saturates at zero.
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(rhs.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Uptime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s", self.0 / 1000, self.0 % 1000)
    }
}

/// A probability or network score in `0..=1`. Never NaN.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
#[serde(try_from = "f32", into = "f32")]
pub struct Score(f32);

impl Score {
    /// Zero.
    pub const ZERO: Self = Self(0.0);
    /// One.
    pub const ONE: Self = Self(1.0);

    /// `value` clamped into `0..=1`; NaN becomes zero, because unknown is never "dog".
    pub const fn clamped(value: f32) -> Self {
        Self(if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) })
    }

    /// The score as a plain number.
    pub const fn get(self) -> f32 {
        self.0
    }

    /// The geometric mean with `other`: what two networks say together.
    pub fn with(self, other: Self) -> Self {
        Self((self.0 * other.0).sqrt())
    }

    /// Natural logarithm of the odds `p / (1 - p)`, finite: `p` is first kept within
    /// `1e-6..=1 - 1e-6`, so the result lies within about ±13.8.
    pub fn logit(self) -> f32 {
        let p = self.0.clamp(1e-6, 1.0 - 1e-6);
        (p / (1.0 - p)).ln()
    }
}

impl TryFrom<f32> for Score {
    type Error = String;
    fn try_from(value: f32) -> Result<Self, Self::Error> {
        if (0.0..=1.0).contains(&value) {
            Ok(Self(value))
        } else {
            Err(format!("{value} is not between 0 and 1"))
        }
    }
}

impl From<Score> for f32 {
    fn from(value: Score) -> Self {
        value.0
    }
}

/// An axis-aligned rectangle in fractions of a picture: `x` to the right, `y` down, the whole
/// picture being `(0, 0)..(1, 1)`. Always finite, within the picture, `x0 <= x1`, `y0 <= y1`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "[f32; 4]", into = "[f32; 4]")]
pub struct Rect {
    x0: f32,
    y0: f32,
    x1: f32,
    y1: f32,
}

impl Rect {
    /// The whole picture.
    pub const WHOLE: Self = Self { x0: 0.0, y0: 0.0, x1: 1.0, y1: 1.0 };

    /// The part of `(x0, y0)..(x1, y1)` within the picture; `None` if a coordinate is not
    /// finite or nothing is left.
    pub fn clipped(x0: f32, y0: f32, x1: f32, y1: f32) -> Option<Self> {
        if ![x0, y0, x1, y1].iter().all(|v| v.is_finite()) {
            return None;
        }
        let [x0, y0, x1, y1] = [x0, y0, x1, y1].map(|v| v.clamp(0.0, 1.0));
        (x0 < x1 && y0 < y1).then_some(Self { x0, y0, x1, y1 })
    }

    /// Left edge.
    pub const fn x0(self) -> f32 {
        self.x0
    }
    /// Top edge.
    pub const fn y0(self) -> f32 {
        self.y0
    }
    /// Right edge.
    pub const fn x1(self) -> f32 {
        self.x1
    }
    /// Bottom edge.
    pub const fn y1(self) -> f32 {
        self.y1
    }
    /// Width as a fraction of the picture's width.
    pub fn width(self) -> f32 {
        self.x1 - self.x0
    }
    /// Height as a fraction of the picture's height.
    pub fn height(self) -> f32 {
        self.y1 - self.y0
    }
    /// Area as a fraction of the picture's area.
    pub fn area(self) -> f32 {
        self.width() * self.height()
    }
    /// Centre `(x, y)`.
    pub fn centre(self) -> (f32, f32) {
        (f32::midpoint(self.x0, self.x1), f32::midpoint(self.y0, self.y1))
    }
    /// Middle of the lower edge `(x, y)`: where an animal stands.
    pub fn foot(self) -> (f32, f32) {
        (f32::midpoint(self.x0, self.x1), self.y1)
    }

    /// Grown by `fraction` of its own size on each side, kept within the picture.
    pub fn padded(self, fraction: f32) -> Self {
        let (dx, dy) = (self.width() * fraction, self.height() * fraction);
        Self::clipped(self.x0 - dx, self.y0 - dy, self.x1 + dx, self.y1 + dy).unwrap_or(self)
    }

    /// This rectangle, given in fractions of `outer`, in fractions of the picture `outer` is in.
    pub fn within(self, outer: Self) -> Self {
        Self {
            x0: outer.x0 + self.x0 * outer.width(),
            y0: outer.y0 + self.y0 * outer.height(),
            x1: outer.x0 + self.x1 * outer.width(),
            y1: outer.y0 + self.y1 * outer.height(),
        }
    }

    /// Intersection over union (Jaccard index), `0..=1`.
    pub fn iou(self, other: Self) -> f32 {
        let overlap = self.overlap(other);
        let union = self.area() + other.area() - overlap;
        if union > 0.0 { overlap / union } else { 0.0 }
    }

    /// Area shared with `other`, as a fraction of the picture's area.
    pub fn overlap(self, other: Self) -> f32 {
        let w = self.x1.min(other.x1) - self.x0.max(other.x0);
        let h = self.y1.min(other.y1) - self.y0.max(other.y0);
        w.max(0.0) * h.max(0.0)
    }

    /// `[x0, y0, x1, y1]` in pixels of a picture of `width` by `height` pixels.
    pub fn to_pixels(self, width: u32, height: u32) -> [f32; 4] {
        let (w, h) = (width as f32, height as f32);
        [self.x0 * w, self.y0 * h, self.x1 * w, self.y1 * h]
    }
}

impl TryFrom<[f32; 4]> for Rect {
    type Error = String;
    fn try_from([x0, y0, x1, y1]: [f32; 4]) -> Result<Self, Self::Error> {
        let inside = [x0, y0, x1, y1].iter().all(|v| (0.0..=1.0).contains(v));
        if inside && x0 <= x1 && y0 <= y1 {
            Ok(Self { x0, y0, x1, y1 })
        } else {
            Err(format!(
                "[{x0}, {y0}, {x1}, {y1}] is not a rectangle [x0, y0, x1, y1] in fractions of \
                 the picture (each between 0 and 1, x0 <= x1, y0 <= y1)"
            ))
        }
    }
}

impl From<Rect> for [f32; 4] {
    fn from(r: Rect) -> Self {
        [r.x0, r.y0, r.x1, r.y1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_saturates_instead_of_wrapping() {
        let end = Uptime::from_millis(u64::MAX);
        assert_eq!(end + Duration::from_secs(1), end);
        assert_eq!(Uptime::ZERO - Duration::from_secs(1), Uptime::ZERO);
        assert_eq!(Uptime::ZERO.since(end), Duration::ZERO);
    }

    #[test]
    fn a_score_never_holds_nonsense() {
        assert_eq!(Score::clamped(f32::NAN), Score::ZERO);
        assert_eq!(Score::clamped(f32::INFINITY), Score::ONE);
        assert!(Score::try_from(1.01).is_err());
        assert!(Score::try_from(f32::NAN).is_err());
        assert!(Score::ONE.logit().is_finite() && Score::ZERO.logit().is_finite());
    }

    #[test]
    fn rectangles_stay_within_the_picture() {
        assert_eq!(Rect::clipped(-1.0, -1.0, 2.0, 2.0), Some(Rect::WHOLE));
        assert_eq!(Rect::clipped(f32::NAN, 0.0, 1.0, 1.0), None);
        assert_eq!(Rect::clipped(0.5, 0.5, 0.5, 0.6), None);
        assert!(Rect::try_from([0.5, 0.0, 0.4, 1.0]).is_err());
    }

    #[test]
    fn iou_of_a_half_overlap_is_a_third() {
        let left = Rect::try_from([0.0, 0.0, 0.5, 1.0]).unwrap();
        let middle = Rect::try_from([0.25, 0.0, 0.75, 1.0]).unwrap();
        assert!((left.iou(middle) - 1.0 / 3.0).abs() < 1e-6);
        assert!((left.iou(left) - 1.0).abs() < 1e-6);
    }
}
