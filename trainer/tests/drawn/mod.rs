//! Drawn pictures, and the program as a person runs it.

// Each test program uses its own part.
#![allow(dead_code)]

use std::path::Path;
use std::process::{Command, Output};

use image::{Rgb, RgbImage};

/// Side of every drawn picture, pixels.
pub const SIDE: u32 = 96;

/// A drawn picture of a class: rings, bars, or nothing but a shade; within `[x0, y0, x1, y1]`, the
/// shade everywhere else.
pub fn picture(class: u32, i: u32, [x0, y0, x1, y1]: [u32; 4]) -> RgbImage {
    let seed = i.wrapping_mul(2_654_435_761) ^ class << 7;
    let draw = |k: u32| seed.wrapping_mul(2 * k + 1).wrapping_mul(2_246_822_519) >> 24;
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let (dx, dy) = (x as f32 - draw(1) as f32 / 3.0, y as f32 - draw(2) as f32 / 3.0);
        let inside = (x0..x1).contains(&x) && (y0..y1).contains(&y);
        let wave = match class {
            0 if inside => dx.hypot(dy),
            1 if inside => dx + dy * draw(3) as f32 / 255.0,
            2 if inside => dx * dy / 20.0,
            3 if inside => dx.abs() + dy.abs(),
            _ => 0.0,
        };
        let v = 120.0 + 80.0 * (wave / 5.0).sin();
        // A coarse pattern of its own, in brightness, so that no two look like duplicates.
        let cell = (x / 12).wrapping_mul(73) ^ (y / 12).wrapping_mul(151) ^ seed;
        let shade = (cell.wrapping_mul(2_246_822_519) >> 27) as f32;
        Rgb([(v + shade) as u8, (v + shade / 2.0) as u8, v as u8])
    })
}

/// `per_class` pictures of each of `classes` in folders of their names.
pub fn photos(dir: &Path, classes: &[&str], per_class: u32) {
    for (class, name) in classes.iter().enumerate() {
        // "nothing" is drawn as nothing wherever it stands.
        let class = if *name == "nothing" { 4 } else { class as u32 };
        std::fs::create_dir_all(dir.join(name)).unwrap();
        for i in 0..per_class {
            let path = dir.join(name).join(format!("{i}.png"));
            picture(class, i, [0, 0, SIDE, SIDE]).save(path).unwrap();
        }
    }
}

/// Pictures with one boxed animal each, cats and dogs in turn, as COCO has them:
/// `dir/annotations.json` and `dir/images`.
pub fn boxed(dir: &Path, count: u32) {
    std::fs::create_dir_all(dir.join("images")).unwrap();
    let (mut images, mut annotations) = (Vec::new(), Vec::new());
    for i in 0..count {
        let class = i % 2;
        let (x, y) = (4 + i * 7 % 40, 4 + i * 13 % 36);
        let name = format!("{i}.png");
        let drawn = picture(class, 500 + i, [x, y, x + 44, y + 50]);
        drawn.save(dir.join("images").join(&name)).unwrap();
        images.push(serde_json::json!({
            "id": i, "file_name": name, "width": SIDE, "height": SIDE,
            "exhaustive_for": ["cat", "dog"],
        }));
        annotations.push(serde_json::json!({
            "id": i, "image_id": i, "category_id": class, "bbox": [x, y, 44, 50],
        }));
    }
    let categories = serde_json::json!([{ "id": 0, "name": "cat" }, { "id": 1, "name": "dog" }]);
    let all = serde_json::json!({
        "images": images, "annotations": annotations, "categories": categories,
    });
    std::fs::write(dir.join("annotations.json"), all.to_string()).unwrap();
}

/// The program with the arguments of a command line, in `dir`. What it keeps of trainings stays there
/// too: none goes on with what another test left behind.
pub fn trainer(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pawlatch-trainer"));
    command.current_dir(dir).env("TMPDIR", dir).args(line.split_whitespace());
    command
}

/// Runs a command line that must succeed; returns what it printed.
pub fn run(dir: &Path, line: &str) -> String {
    let out = trainer(dir, line).output().unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Runs a command line that must fail; returns what it said.
pub fn refused(dir: &Path, line: &str) -> String {
    complaint(line, &trainer(dir, line).output().unwrap())
}

/// What a run that must have failed said.
pub fn complaint(line: &str, out: &Output) -> String {
    assert!(!out.status.success(), "{line} succeeded");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!said.contains("panicked"), "{line}: {said}");
    said
}
