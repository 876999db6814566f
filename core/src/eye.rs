//! From a frame to sightings: picture health, motion gate, networks, in that order.

use crate::frame::{Frame, PictureHealth, PictureWatch};
use crate::gate::{Gate, GateSettings};
use crate::sight::Sightings;
use crate::units::Rect;
use crate::vision::{Stage, Vision, VisionError};

/// Margin around the approach that the networks see too, as a fraction of its size: an animal
/// in the polygon's corner is not cut in half, and a cat just beside it is a veto.
const MARGIN: f32 = 0.15;

/// Looks at one frame after another.
pub struct Eye {
    health: PictureWatch,
    gate: Gate,
    vision: Vision,
    region: Rect,
    followed: bool,
}

impl Eye {
    /// An eye that has seen nothing. The networks look at the bounding box of the gate's
    /// approach polygon with a margin; at everything if there is no polygon.
    pub fn new(gate: GateSettings, vision: Vision) -> Self {
        let region = bounds(&gate.approach).map_or(Rect::WHOLE, |r| r.padded(MARGIN));
        let gate = Gate::new(gate);
        Self { health: PictureWatch::default(), gate, vision, region, followed: false }
    }

    /// The part of the picture that the networks look at.
    pub const fn region(&self) -> Rect {
        self.region
    }

    /// The networks, for whoever wants to draw what they see.
    pub const fn vision(&mut self) -> &mut Vision {
        &mut self.vision
    }

    /// Something else, such as a motion sensor, noticed somebody: the networks look at the next
    /// frame even if the gate sees no motion in it.
    pub const fn wake(&mut self) {
        self.followed = true;
    }

    /// What is seen in `frame`. A picture that cannot be trusted is not looked at. `lap` is
    /// called as each stage ends, so that whoever owns a clock can time it.
    ///
    /// # Errors
    /// If a network fails; the frame then proves nothing.
    pub fn look(
        &mut self,
        frame: &Frame,
        lap: &mut dyn FnMut(Stage),
    ) -> Result<Sightings, VisionError> {
        let health = self.health.judge(frame);
        let glance = self.gate.step(frame, self.followed);
        lap(Stage::Gate);
        // A repeated frame is no new evidence, however long it takes to be called frozen.
        let news = health == PictureHealth::Good && !self.health.repeats();
        let looked = glance.look && news;
        let seen = if looked { self.vision.look(frame, self.region, lap)? } else { Vec::new() };
        if looked {
            self.followed = !seen.is_empty();
        }
        Ok(Sightings {
            captured_at: frame.captured_at(),
            health,
            motion: glance.motion,
            looked,
            seen,
        })
    }
}

/// The smallest rectangle around `polygon`; `None` if there is none.
fn bounds(polygon: &[(f32, f32)]) -> Option<Rect> {
    let (x0, y0, x1, y1) = polygon.iter().fold(
        (f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY),
        |(x0, y0, x1, y1), &(x, y)| (x0.min(x), y0.min(y), x1.max(x), y1.max(y)),
    );
    Rect::clipped(x0, y0, x1, y1)
}
