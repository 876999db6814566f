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
    let picture = open(&scene.file)?;
    let mut html =
        format!("<figure class=b>{}", thumbnail(&resized(&picture, Rect::WHOLE, 2 * THUMB)?)?);
    for b in &scene.boxes {
        let (x, y, w, h) = (b.rect.x0(), b.rect.y0(), b.rect.width(), b.rect.height());
        let _ = write!(
            html,
            "<i style='left:{:.1}%;top:{:.1}%;width:{:.1}%;height:{:.1}%'>{}</i>",
            x * 100.0,
            y * 100.0,
            w * 100.0,
            h * 100.0,
            escape(&b.label)
        );
    }
    Ok(html + "</figure>")
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
         figure{{display:inline-block;margin:2px;position:relative}}figure img{{display:inline-block;vertical-align:top}}\
         i{{position:absolute;border:2px solid #e33;font-size:11px;color:#e33;box-sizing:border-box}}\
         svg{{background:#fafafa}}pre{{overflow-x:auto}}</style></head><body>",
        escape(title)
    )
}

/// Text made safe for HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&#39;").replace('"', "&quot;")
}
