//! Where the camera looks: approach and masks drawn on the live picture, and whether the picture
//! is any good.

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use pawlatch_core::frame::Frame;

use super::form::{Caller, Refusal, Sent};
use super::login::sentence;
use super::{Page, Shared, form, layout};
use crate::config::{OwnersWish, WishedApproach};

/// Most points of one polygon, and most masks.
const MAX_POINTS: usize = 32;
const MAX_MASKS: usize = 8;

/// Points as they are typed and drawn: `0.10,0.95 0.90,0.95 …`, in fractions of the picture.
fn as_text(points: &[(f32, f32)]) -> String {
    let point = |(x, y): &(f32, f32)| format!("{x:.3},{y:.3}");
    points.iter().map(point).collect::<Vec<_>>().join(" ")
}

/// The points in `text`.
fn points(text: &str) -> Result<Vec<[f64; 2]>, String> {
    let wrong = |part: &str| {
        format!("“{part}” is no point; expected two numbers between 0 and 1, such as 0.25,0.9")
    };
    let mut points = Vec::new();
    for part in text.split_whitespace() {
        let (x, y) = part.split_once(',').ok_or_else(|| wrong(part))?;
        let number = |text: &str| {
            text.parse::<f64>().ok().filter(|v| (0.0..=1.0).contains(v)).ok_or_else(|| wrong(part))
        };
        points.push([number(x)?, number(y)?]);
    }
    if !points.is_empty() && points.len() < 3 {
        return Err("An area needs at least three points.".to_owned());
    }
    if points.len() > MAX_POINTS {
        return Err(format!("An area has at most {MAX_POINTS} points."));
    }
    Ok(points)
}

struct Typed {
    approach: String,
    masks: String,
}

/// `GET /camera`
pub(super) async fn page(
    State(page): Shared,
    Extension(caller): Extension<Caller>,
) -> Result<layout::Answer, Refusal> {
    let link = page.house.linked();
    let typed = link.map_or(Typed { approach: String::new(), masks: String::new() }, |link| {
        let gate = &link.config.gate;
        let masks: Vec<String> = gate.masks.iter().map(|mask| as_text(mask)).collect();
        Typed { approach: as_text(&gate.approach), masks: masks.join("\n") }
    });
    show(&page, &caller, &typed, html! {}).await
}

async fn show(
    page: &Page,
    caller: &Caller,
    typed: &Typed,
    told: Markup,
) -> Result<layout::Answer, Refusal> {
    let ticket = form::ticket(page, caller)?;
    let frame = page.house.board.now().and_then(|glance| glance.frame.clone());
    let aids = match frame {
        Some(frame) => Some(page.aside(move || Aids::of(&frame)).await?),
        None => None,
    };
    Ok(layout::page(
        "/camera",
        "Camera",
        html! {
            h1 { "Camera" }
            div .draw data-draw {
                img #live src="/live.jpg?large=1" width="640" height="480" alt="The newest picture from the camera";
                svg #drawing viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true" {}
            }
            @match &aids {
                None => p .hint { "No picture has come from the camera yet." },
                Some(aids) => (measured(aids)),
            }
            (told)
            form .card method="post" action="/camera" data-fresh {
                (layout::ticket(&ticket))
                h2 { "The approach" }
                p #approach-help {
                    "Where an animal must stand to be let in, and where motion counts. Tap its corners "
                    "on the picture, or type them: across, down, in fractions of the picture. Empty: "
                    "everywhere."
                }
                label for="approach" { "Corners of the approach" }
                input #approach type="text" name="approach" value=(typed.approach) aria-describedby="approach-help" autocomplete="off";
                h2 { "Masks" }
                p #masks-help { "Areas in which motion never counts: a road, a bush in the wind. One a line." }
                label for="masks" { "Corners of the masks" }
                textarea #masks name="masks" rows="3" aria-describedby="masks-help" { (typed.masks) }
                p .buttons.draw-buttons hidden {
                    button type="button" data-draw-on="approach" { "Draw the approach" }
                    button type="button" data-draw-on="masks" { "Draw another mask" }
                    button type="button" data-draw-clear { "Clear" }
                }
                p .buttons { button .primary type="submit" { "Save" } }
                p .hint { "The door locks, starts anew and is back within seconds." }
            }
        },
    ))
}

/// `POST /camera`
pub(super) async fn save(State(page): Shared, sent: Sent) -> Result<Response, Refusal> {
    let typed =
        Typed { approach: sent.get("approach").to_owned(), masks: sent.get("masks").to_owned() };
    let sent = sent.checked()?;
    let wished = || -> Result<WishedApproach, String> {
        let masks = typed.masks.lines().filter(|line| !line.trim().is_empty());
        let masks = masks.map(points).collect::<Result<Vec<_>, _>>()?;
        if masks.len() > MAX_MASKS {
            return Err(format!("There may be {MAX_MASKS} masks."));
        }
        Ok(WishedApproach { polygon: points(&typed.approach)?, masks })
    };
    let saved = match wished() {
        Err(wrong) => Err(wrong),
        Ok(approach) => {
            let house = std::sync::Arc::clone(&page.house);
            let saving = page.aside(move || {
                let mut wish = OwnersWish::load(&house.state_dir)?;
                wish.approach = Some(approach);
                wish.save(&house.state_dir, house.config_path.as_deref())
            });
            saving.await?.map_err(|error| sentence(&error.to_string()))
        }
    };
    match saved {
        Err(wrong) => {
            let told = layout::notice("bad", &format!("Nothing was changed. {wrong}"));
            let shown = show(&page, &sent.caller, &typed, told).await?;
            Ok((StatusCode::UNPROCESSABLE_ENTITY, shown).into_response())
        }
        Ok(_) => {
            page.house.audit(&sent.caller.who, "change the approach", "done");
            page.house.restart_door();
            Ok(Redirect::to("/camera").into_response())
        }
    }
}

/// What helps to set a camera up.
struct Aids {
    /// Mean luma, `0..=255`.
    brightness: f32,
    /// Share of pixels that are black, and white.
    clipped: (f32, f32),
    /// Mean absolute Laplacian of luma: higher is sharper, for the same scene.
    sharpness: f32,
}

impl Aids {
    fn of(frame: &Frame) -> Self {
        let (width, height) = (frame.width() as usize, frame.height() as usize);
        let luma: Vec<f32> = frame
            .pixels()
            .chunks_exact(3)
            .map(|p| 0.299 * f32::from(p[0]) + 0.587 * f32::from(p[1]) + 0.114 * f32::from(p[2]))
            .collect();
        let n = luma.len().max(1) as f32;
        let share = |count: usize| count as f32 / n;
        let mut sum = 0.0_f64;
        for y in 1..height.saturating_sub(1) {
            for x in 1..width.saturating_sub(1) {
                let at = |dx: usize, dy: usize| luma[(y + dy - 1) * width + x + dx - 1];
                sum +=
                    f64::from((at(0, 1) + at(2, 1) + at(1, 0) + at(1, 2) - 4.0 * at(1, 1)).abs());
            }
        }
        Self {
            brightness: luma.iter().sum::<f32>() / n,
            clipped: (
                share(luma.iter().filter(|v| **v < 4.0).count()),
                share(luma.iter().filter(|v| **v > 251.0).count()),
            ),
            sharpness: (sum / f64::from(n)) as f32,
        }
    }
}

fn measured(aids: &Aids) -> Markup {
    let (dark, bright) = aids.clipped;
    let exposure = match aids.brightness {
        b if b < 40.0 => "too dark: more light, or a longer exposure",
        b if b > 215.0 => "too bright: less light, or a shorter exposure",
        _ if dark > 0.4 => "much of it is black: light the approach",
        _ if bright > 0.2 => "much of it is white: turn it away from the light",
        _ => "good",
    };
    html! {
        dl .facts {
            div { dt { "Exposure" } dd { (exposure) } }
            div { dt { "Brightness" } dd { (format!("{:.0} of 255", aids.brightness)) } }
            div { dt { "Black / white" } dd { (format!("{:.0} % / {:.0} %", 100.0 * dark, 100.0 * bright)) } }
            div { dt { "Sharpness" } dd { (format!("{:.1}", aids.sharpness)) } }
        }
        p .hint { "To focus, turn the lens and reload until the sharpness is highest: it compares pictures of the same scene only." }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pawlatch_core::units::Uptime;

    #[test]
    fn corners_are_read_back_as_they_are_written() {
        let text = as_text(&[(0.1, 0.2), (0.9, 0.2), (0.5, 1.0)]);
        assert_eq!(text, "0.100,0.200 0.900,0.200 0.500,1.000");
        assert_eq!(points(&text).unwrap(), [[0.1, 0.2], [0.9, 0.2], [0.5, 1.0]]);
        assert_eq!(points("  ").unwrap(), [] as [[f64; 2]; 0]);
        for wrong in ["0.1,0.2", "0,0 1,1 2,2", "a,b 0,0 1,1", "0.1", "NaN,0 0,0 1,1"] {
            assert!(points(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_sharp_picture_is_sharper_than_a_blurred_one() {
        let picture = |step: u32| {
            let pixels: Vec<u8> = (0..64_u32 * 48)
                .flat_map(|i| [if ((i % 64) / step).is_multiple_of(2) { 0 } else { 200 }; 3])
                .collect();
            Aids::of(&Frame::from_rgb(pixels, 64, 48, Uptime::ZERO).unwrap())
        };
        assert!(picture(1).sharpness > picture(16).sharpness);
        let tiny = Frame::from_rgb(vec![9; 3], 1, 1, Uptime::ZERO).unwrap();
        assert_eq!(Aids::of(&tiny).sharpness, 0.0);
    }
}
