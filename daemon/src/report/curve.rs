//! The evidence over time as an inline SVG.

use maud::{Markup, html};
use pawlatch_core::sight::Class;
use pawlatch_core::units::Uptime;

use super::{Chapter, Curve, Point};

/// Size of the drawing in its own units; the page scales it.
const WIDTH: f32 = 520.0;
const HEIGHT: f32 = 268.0;
/// The plot within it: left, top, right, bottom.
const PLOT: [f32; 4] = [30.0, 10.0, 440.0, 214.0];
/// The band of states below the plot: top and height.
const BAND: (f32, f32) = (222.0, 14.0);

/// Where times and evidence lie in the drawing.
struct Axes {
    end: f32,
    low: f32,
    high: f32,
}

impl Axes {
    fn x(&self, at: Uptime) -> f32 {
        PLOT[0] + (PLOT[2] - PLOT[0]) * (at.as_millis() as f32 / self.end)
    }

    fn y(&self, evidence: f32) -> f32 {
        let share = (evidence - self.low) / (self.high - self.low);
        PLOT[3] - (PLOT[3] - PLOT[1]) * share.clamp(0.0, 1.0)
    }
}

/// Draws the evidence of every track against the thresholds, with the states below.
pub(super) fn curve(chapter: &Chapter) -> Markup {
    let limits = chapter.limits;
    let axes = Axes {
        end: (chapter.ended.as_millis() as f32).max(1_000.0),
        low: 1.6 * limits.reject,
        high: 1.6 * limits.accept,
    };
    let seconds = (axes.end / 1_000.0).ceil() as usize;
    let step = [1, 2, 5, 10, 20, 60, 300].into_iter().find(|s| seconds / s <= 8).unwrap_or(600);
    html! {
        svg .curve viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img"
            aria-label="Evidence over time against the thresholds" {
            rect .accepted x=(PLOT[0]) y=(PLOT[1]) width=(PLOT[2] - PLOT[0])
                height=(axes.y(limits.accept) - PLOT[1]) {}
            rect .rejected x=(PLOT[0]) y=(axes.y(limits.reject)) width=(PLOT[2] - PLOT[0])
                height=(PLOT[3] - axes.y(limits.reject)) {}
            @for second in (0..=seconds).step_by(step) {
                @let x = axes.x(Uptime::from_millis(1_000 * second as u64));
                @if x <= PLOT[2] + 0.5 {
                    line .grid x1=(x) x2=(x) y1=(PLOT[1]) y2=(PLOT[3]) {}
                    text .tick x=(x) y=(HEIGHT - 6.0) text-anchor="middle" { (second) " s" }
                }
            }
            (threshold(&axes, limits.accept, "opens"))
            (threshold(&axes, limits.reject, "not a dog"))
            line .zero x1=(PLOT[0]) x2=(PLOT[2]) y1=(axes.y(0.0)) y2=(axes.y(0.0)) {}
            @for value in [limits.reject, 0.0, limits.accept] {
                text .tick x=(PLOT[0] - 4.0) y=(axes.y(value) + 3.5) text-anchor="end" {
                    (format!("{value:.0}"))
                }
            }
            (tracks(chapter, &axes))
            (states(chapter, &axes))
        }
    }
}

fn threshold(axes: &Axes, at: f32, words: &str) -> Markup {
    let y = axes.y(at);
    html! {
        line .threshold x1=(PLOT[0]) x2=(PLOT[2]) y1=(y) y2=(y) {}
        text .note x=(PLOT[2] - 4.0) y=(y - 4.0) text-anchor="end" { (words) }
    }
}

fn tracks(chapter: &Chapter, axes: &Axes) -> Markup {
    // Labels stand at the ends of the lines, pushed apart where those are close together.
    let mut labels: Vec<(f32, f32, String, Class)> = Vec::new();
    for (id, curve) in &chapter.curves {
        let Some(last) = curve.points.last() else { continue };
        let class = curve.best.unwrap_or(Class::Nothing);
        let what = curve.best.map_or("evidence".to_owned(), |class| class.to_string());
        // A glimpse of a few frames needs no name.
        if curve.points.len() > 6 {
            labels.push((axes.x(last.at), axes.y(last.dog), format!("{id}: {what}"), class));
        }
    }
    labels.sort_by(|a, b| a.1.total_cmp(&b.1));
    for i in 1..labels.len() {
        let least = labels[i - 1].1 + 12.0;
        labels[i].1 = labels[i].1.max(least);
    }
    html! {
        @for curve in chapter.curves.values() {
            @let class = curve.best.unwrap_or(Class::Nothing).name();
            @if curve.points.iter().any(|p| p.cat > 0.0) {
                path class="line cat dashed" d=(path(axes, curve, |p| p.cat)) {}
            }
            path class={ "line " (class) } d=(path(axes, curve, |p| p.dog)) {}
        }
        @for (x, y, label, class) in &labels {
            text class={ "name " (class.name()) } x=(format!("{:.1}", x + 5.0))
                y=(format!("{:.1}", y + 3.5)) { (label) }
        }
    }
}

/// The line of `value` over time, broken where the track was away.
fn path(axes: &Axes, curve: &Curve, value: fn(&Point) -> f32) -> String {
    let mut d = String::new();
    let mut before: Option<Uptime> = None;
    for point in &curve.points {
        let goes_on = before.is_some_and(|b| point.at.since(b).as_millis() < 500);
        let pen = if goes_on { 'L' } else { 'M' };
        d.push_str(&format!("{pen}{:.1} {:.1}", axes.x(point.at), axes.y(value(point))));
        before = Some(point.at);
    }
    d
}

/// The band that says in which state the door was.
fn states(chapter: &Chapter, axes: &Axes) -> Markup {
    let ends = chapter.states.iter().skip(1).map(|(at, _)| *at).chain([chapter.ended]);
    let spans: Vec<(f32, f32, &str)> = chapter
        .states
        .iter()
        .zip(ends)
        .map(|((at, name), end)| (axes.x(*at), axes.x(end), *name))
        .collect();
    let (top, height) = BAND;
    html! {
        @for (from, to, name) in &spans {
            rect class={ "state " (name) } x=(format!("{from:.1}")) y=(top)
                width=(format!("{:.1}", (to - from).max(0.5))) height=(height) {
                title { (name) }
            }
            @if to - from > 7.0 * name.len() as f32 {
                text class={ "within " (name) } x=(format!("{:.1}", from + 4.0))
                    y=(top + height - 3.5) { (name.replace('_', " ")) }
            }
        }
    }
}
