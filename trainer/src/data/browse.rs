//! A dataset as one HTML page: contact sheets, counts and boxes, without a server or a script.

use std::fmt::Write as _;
use std::io::Cursor;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use pawlatch_core::units::Rect;
use rayon::prelude::*;

use super::augment::{Augmentation, resized};
use super::{Dataset, Item, Scene, Split, open};

/// Side of a thumbnail, pixels.
const THUMB: u32 = 96;

/// The page, with at most `most` pictures of each class and split, evenly spread. With
/// `augmentation`, each is followed by distorted variants as training sees them.
///
/// # Errors
/// If a picture cannot be read.
pub fn page(
    data: &Dataset,
    most: usize,
    augmentation: Option<(&Augmentation, u64)>,
) -> Result<String> {
    let mut html = head("Dataset");
    let _ = write!(
        html,
        "<h1>Dataset</h1><p>sha256 {}</p><table><tr><th>class<th>train<th>validate</tr>",
        data.sha256
    );
    let counts = (data.counts(Split::Train), data.counts(Split::Validate));
    for (i, class) in data.classes.iter().enumerate() {
        let _ =
            write!(html, "<tr><td>{}<td>{}<td>{}</tr>", escape(class), counts.0[i], counts.1[i]);
    }
    html += "</table>";
    for class in &data.classes {
        for split in [Split::Train, Split::Validate] {
            let of: Vec<&Item> =
                data.items.iter().filter(|i| &i.label == class && i.split == split).collect();
            let _ = write!(html, "<h2>{}, {split:?}: {}</h2>", escape(class), of.len());
            let step = of.len().div_ceil(most.max(1)).max(1);
            let chosen: Vec<&Item> = of.into_iter().step_by(step).collect();
            let figures: Result<Vec<String>> =
                chosen.par_iter().map(|item| figure(item, augmentation)).collect();
            html += &figures?.concat();
        }
    }
    if !data.scenes.is_empty() {
        let _ = write!(html, "<h2>Boxes: {} pictures</h2>", data.scenes.len());
        let step = data.scenes.len().div_ceil(most.max(1)).max(1);
        let chosen: Vec<&Scene> = data.scenes.iter().step_by(step).collect();
        let figures: Result<Vec<String>> = chosen.par_iter().map(|s| boxed(s)).collect();
        html += &figures?.concat();
    }
    if !data.notes.is_empty() {
        html += "<h2>Notes</h2><ul>";
        for note in &data.notes {
            let _ = write!(html, "<li>{}", escape(note));
        }
        html += "</ul>";
    }
    Ok(html + "</body></html>\n")
}

fn figure(item: &Item, augmentation: Option<(&Augmentation, u64)>) -> Result<String> {
    use rand::SeedableRng;
    let picture = open(&item.file)?;
    let mut images = thumbnail(&resized(&picture, item.part, THUMB)?)?;
    if let Some((augmentation, seed)) = augmentation {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        for _ in 0..4 {
            images += &thumbnail(&augmentation.apply(&picture, item.part, THUMB, &mut rng)?)?;
        }
    }
    let name = item.file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let size = format!("{}x{}", picture.width(), picture.height());
    Ok(format!(
        "<figure title='{} {size} {} {}'>{images}</figure>",
        escape(&name),
        escape(&item.source),
        escape(&item.subset)
    ))
}

fn boxed(scene: &Scene) -> Result<String> {
    let boxes = scene.boxes.iter().map(|b| frame(b.rect, &b.label, "")).collect::<String>();
    framed(&open(&scene.file)?, &boxes, "")
}

/// A picture with [`frame`]s on it and a text below.
///
/// # Errors
/// If the picture cannot be encoded.
pub fn framed(picture: &image::RgbImage, frames: &str, caption: &str) -> Result<String> {
    let picture = thumbnail(&resized(picture, Rect::WHOLE, 2 * THUMB)?)?;
    let caption = escape(caption);
    Ok(format!("<figure><b>{picture}{frames}</b><figcaption>{caption}</figcaption></figure>"))
}

/// A named frame over a picture; `kind` is a class of the page's style.
pub fn frame(rect: Rect, name: &str, kind: &str) -> String {
    let [x, y, w, h] = [rect.x0(), rect.y0(), rect.width(), rect.height()].map(|v| v * 100.0);
    format!(
        "<i class='{kind}' style='left:{x:.1}%;top:{y:.1}%;width:{w:.1}%;height:{h:.1}%'>{}</i>",
        escape(name)
    )
}

/// A picture inside a page.
///
/// # Errors
/// If it cannot be encoded.
pub fn thumbnail(picture: &image::RgbImage) -> Result<String> {
    let mut bytes = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut bytes, 80).encode_image(picture)?;
    Ok(format!("<img src='data:image/jpeg;base64,{}'>", STANDARD.encode(bytes.into_inner())))
}

/// The start of a page in the trainer's style.
pub fn head(title: &str) -> String {
    format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>{}</title><style>\
         body{{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em}}\
         table{{border-collapse:collapse}}td,th{{border:1px solid #bbb;padding:.2em .6em;text-align:right}}\
         figure{{display:inline-block;margin:2px;vertical-align:top}}figure img{{display:inline-block;vertical-align:top}}\
         figure b{{position:relative;display:inline-block;font-weight:400}}\
         i{{position:absolute;border:2px solid #d55e00;font-size:11px;color:#d55e00;box-sizing:border-box}}\
         i.true{{border:2px dashed #56b4e9;color:#56b4e9;text-align:right}}\
         svg{{background:#fafafa}}pre{{overflow-x:auto}}</style></head><body>",
        escape(title)
    )
}

/// Text made safe for HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&#39;").replace('"', "&quot;")
}
