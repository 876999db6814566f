//! Pictures with boxes as others write them: COCO (one JSON file), Pascal VOC (an XML file per
//! picture), KITTI and YOLO (a text file per picture).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pawlatch_core::units::Rect;
use serde::Deserialize;
use serde_json::Value;

use super::LabelledBox;

/// Endings of pictures that a text file may belong to.
const PICTURES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// How boxes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `images`, `annotations` and `categories`; boxes are x, y, width, height in pixels.
    #[default]
    Coco,
    /// `object` with `name` and `bndbox`, whose pixels count from 1 and include the last.
    Voc,
    /// A line per object: type, three numbers, then left, top, right, bottom in pixels.
    Kitti,
    /// A line per object: class number, then centre x, y, width, height in fractions.
    Yolo,
}

/// One picture as its file describes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Boxed {
    /// File name within the directory of the pictures.
    pub name: String,
    /// Width by height.
    pub aspect: f32,
    /// What is in it.
    pub boxes: Vec<LabelledBox>,
    /// What is there but hard to see or a crowd: neither to be found nor background.
    pub unsure: Vec<LabelledBox>,
    /// Classes that are boxed completely, where the file says so.
    pub exhaustive_for: Option<Vec<String>>,
    /// Where it is from.
    pub source: String,
    /// Slice to report on.
    pub subset: String,
    /// `train` or anything else, where the file says so.
    pub split: Option<String>,
}

/// Reads all pictures in the order of their names or of the file.
///
/// # Errors
/// If a file cannot be read or is not in `format`, naming it.
pub fn read(format: Format, path: &Path, pictures: &Path, names: &[String]) -> Result<Vec<Boxed>> {
    if format == Format::Coco {
        return coco(path);
    }
    let ending = if format == Format::Voc { "xml" } else { "txt" };
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)
        .with_context(|| format!("cannot list {}", path.display()))?
        .map(|e| e.map(|e| e.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == ending));
    files.sort();
    ensure!(!files.is_empty(), "{} has no .{ending} file", path.display());
    let one = |file: &PathBuf| {
        let text = std::fs::read_to_string(file)?;
        match format {
            Format::Voc => voc(&text),
            _ => lines(format, &text, file, pictures, names),
        }
    };
    files.iter().map(|f| one(f).with_context(|| format!("in {}", f.display()))).collect()
}

/// A box from corners in fractions; none if nothing of it is within the picture.
fn boxed(label: &str, [x0, y0, x1, y1]: [f64; 4]) -> Option<LabelledBox> {
    let rect = Rect::clipped(x0 as f32, y0 as f32, x1 as f32, y1 as f32)?;
    Some(LabelledBox { rect, label: label.into() })
}

fn coco(path: &Path) -> Result<Vec<Boxed>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let coco: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let list = |k: &str| {
        coco[k].as_array().with_context(|| format!("{} has no list '{k}'", path.display()))
    };
    let names: BTreeMap<i64, &str> = list("categories")?
        .iter()
        .filter_map(|c| Some((c["id"].as_i64()?, c["name"].as_str()?)))
        .collect();
    // Label, left, top, width and height, and whether it is a crowd.
    type Drawn<'a> = (&'a str, [f64; 4], bool);
    let mut boxes: BTreeMap<i64, Vec<Drawn<'_>>> = BTreeMap::new();
    for a in list("annotations")? {
        let edge = |i: usize| a["bbox"][i].as_f64();
        let known = (|| {
            let name = *names.get(&a["category_id"].as_i64()?)?;
            let crowd = a["iscrowd"].as_i64() == Some(1);
            Some((a["image_id"].as_i64()?, name, [edge(0)?, edge(1)?, edge(2)?, edge(3)?], crowd))
        })();
        let (image, name, at, crowd) =
            known.with_context(|| format!("{}: bad annotation {a}", path.display()))?;
        boxes.entry(image).or_default().push((name, at, crowd));
    }
    let mut pictures = Vec::new();
    for image in list("images")? {
        let text = |k: &str| image[k].as_str().unwrap_or("").to_owned();
        let known = (|| {
            let size = (image["width"].as_f64()?, image["height"].as_f64()?);
            Some((image["id"].as_i64()?, image["file_name"].as_str()?, size))
        })();
        let (id, name, (w, h)) =
            known.with_context(|| format!("{}: bad image {image}", path.display()))?;
        let mut picture = Boxed {
            name: name.into(),
            aspect: (w / h) as f32,
            exhaustive_for: image["exhaustive_for"]
                .as_array()
                .map(|list| list.iter().filter_map(|v| Some(v.as_str()?.to_owned())).collect()),
            source: text("source"),
            subset: text("subset"),
            split: image["split"].as_str().map(str::to_owned),
            ..Boxed::default()
        };
        for (label, [x, y, bw, bh], crowd) in boxes.get(&id).into_iter().flatten() {
            let found = boxed(label, [x / w, y / h, (x + bw) / w, (y + bh) / h]);
            let list = if *crowd { &mut picture.unsure } else { &mut picture.boxes };
            list.extend(found);
        }
        pictures.push(picture);
    }
    Ok(pictures)
}

fn voc(text: &str) -> Result<Boxed> {
    let xml = roxmltree::Document::parse(text).context("it is not XML")?;
    let find = |node: roxmltree::Node<'_, '_>, tag: &str| -> Result<String> {
        let found = node.descendants().find(|n| n.has_tag_name(tag)).and_then(|n| n.text());
        Ok(found.with_context(|| format!("it has no <{tag}>"))?.trim().to_owned())
    };
    let number = |node, tag: &str| -> Result<f64> {
        let text = find(node, tag)?;
        text.parse().with_context(|| format!("<{tag}> is '{text}', not a number"))
    };
    let root = xml.root_element();
    let (w, h) = (number(root, "width")?, number(root, "height")?);
    ensure!(w > 0.0 && h > 0.0, "its size is {w} by {h}");
    let mut picture =
        Boxed { name: find(root, "filename")?, aspect: (w / h) as f32, ..Boxed::default() };
    for object in root.descendants().filter(|n| n.has_tag_name("object")) {
        let label = find(object, "name")?;
        let corners = [
            (number(object, "xmin")? - 1.0) / w,
            (number(object, "ymin")? - 1.0) / h,
            number(object, "xmax")? / w,
            number(object, "ymax")? / h,
        ];
        let hard = find(object, "difficult").is_ok_and(|d| d == "1");
        let list = if hard { &mut picture.unsure } else { &mut picture.boxes };
        list.extend(boxed(&label, corners));
    }
    Ok(picture)
}

/// KITTI and YOLO, whose text files carry the name of their picture but not its size.
fn lines(
    format: Format,
    text: &str,
    file: &Path,
    pictures: &Path,
    names: &[String],
) -> Result<Boxed> {
    let stem = file.file_stem().context("it has no name")?.to_string_lossy();
    let name = PICTURES
        .iter()
        .map(|ending| format!("{stem}.{ending}"))
        .find(|name| pictures.join(name).exists())
        .with_context(|| format!("there is no picture '{stem}' in {}", pictures.display()))?;
    let (w, h) = image::image_dimensions(pictures.join(&name))
        .with_context(|| format!("cannot use {name}"))?;
    let (w, h) = (f64::from(w), f64::from(h));
    let mut picture = Boxed { name, aspect: (w / h) as f32, ..Boxed::default() };
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let at = |from: usize| -> Option<[f64; 4]> {
            let mut out = [0.0; 4];
            for (o, f) in out.iter_mut().zip(fields.get(from..from + 4)?) {
                *o = f.parse().ok()?;
            }
            Some(out)
        };
        let bad = || format!("line {}: '{line}' is no {format:?} object", i + 1);
        if format == Format::Kitti {
            let [x0, y0, x1, y1] = at(4).with_context(bad)?;
            let corners = [x0 / w, y0 / h, x1 / w, y1 / h];
            if fields[0] == "DontCare" {
                picture.unsure.extend(names.iter().filter_map(|n| boxed(n, corners)));
            } else {
                picture.boxes.extend(boxed(fields[0], corners));
            }
            continue;
        }
        let number: usize = fields[0].parse().ok().with_context(bad)?;
        let label = names.get(number).with_context(|| {
            format!("line {}: class {number} has no name; `names` has {}", i + 1, names.len())
        })?;
        let [x, y, bw, bh] = at(1).with_context(bad)?;
        let corners = [x - bw / 2.0, y - bh / 2.0, x + bw / 2.0, y + bh / 2.0];
        picture.boxes.extend(boxed(label, corners));
    }
    Ok(picture)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One picture of 200 by 100 pixels with a dog at 20, 10 to 120, 60, in each format.
    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        image::RgbImage::new(200, 100).save(dir.path().join("a.png")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn check(picture: &Boxed) {
        assert_eq!((picture.name.as_str(), picture.aspect), ("a.png", 2.0));
        assert_eq!(picture.boxes.len(), 1);
        assert_eq!(picture.boxes[0].label, "dog");
        let got = <[f32; 4]>::from(picture.boxes[0].rect);
        let off = got.iter().zip([0.1, 0.1, 0.6, 0.6]).map(|(a, b)| (a - b).abs());
        assert!(off.fold(0.0, f32::max) < 1e-6, "{got:?}");
    }

    fn names() -> Vec<String> {
        ["cat", "dog"].map(String::from).to_vec()
    }

    #[test]
    fn coco_boxes_are_corner_and_size() {
        let text = r#"{"categories": [{"id": 3, "name": "dog"}],
            "images": [{"id": 7, "file_name": "a.png", "width": 200, "height": 100,
                        "exhaustive_for": ["dog"], "source": "garden"}],
            "annotations": [
                {"image_id": 7, "category_id": 3, "bbox": [20, 10, 100, 50]},
                {"image_id": 7, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1}]}"#;
        let dir = folder(&[("boxes.json", text)]);
        let all = read(Format::Coco, &dir.path().join("boxes.json"), dir.path(), &[]).unwrap();
        check(&all[0]);
        assert_eq!(all[0].unsure.len(), 1);
        assert_eq!(all[0].exhaustive_for.as_deref(), Some(&["dog".to_owned()][..]));
        assert_eq!(all[0].source, "garden");
    }

    #[test]
    fn voc_pixels_count_from_one_and_include_the_last() {
        let object = |name: &str, hard: u8| {
            format!(
                "<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>21</xmin>\
                 <ymin>11</ymin><xmax>120</xmax><ymax>60</ymax></bndbox></object>"
            )
        };
        let text = format!(
            "<annotation><filename>a.png</filename><size><width>200</width>\
             <height>100</height></size>{}{}</annotation>",
            object("dog", 0),
            object("cat", 1)
        );
        let dir = folder(&[("a.xml", &text)]);
        let all = read(Format::Voc, dir.path(), dir.path(), &[]).unwrap();
        check(&all[0]);
        assert_eq!(all[0].unsure[0].label, "cat");
        let dir = folder(&[("a.xml", "<annotation></annotation>")]);
        let error = read(Format::Voc, dir.path(), dir.path(), &[]).unwrap_err();
        assert!(format!("{error:#}").contains("a.xml: it has no <width>"), "{error:#}");
    }

    #[test]
    fn kitti_boxes_are_pixels_and_dont_care_is_not_background() {
        let text = "dog 0.00 0 -1.57 20.0 10.0 120.0 60.0 0 0 0 0 0 0 0\n\
                    DontCare -1 -1 -10 0 0 50 50 -1 -1 -1 -1000 -1000 -1000 -10\n";
        let dir = folder(&[("a.txt", text)]);
        let all = read(Format::Kitti, dir.path(), dir.path(), &names()).unwrap();
        check(&all[0]);
        assert_eq!(all[0].unsure.len(), 2);
        let dir = folder(&[("a.txt", "dog 0 0\n")]);
        assert!(read(Format::Kitti, dir.path(), dir.path(), &names()).is_err());
    }

    #[test]
    fn yolo_boxes_are_centre_and_size_in_fractions() {
        let dir = folder(&[("a.txt", "1 0.35 0.35 0.5 0.5\n")]);
        let all = read(Format::Yolo, dir.path(), dir.path(), &names()).unwrap();
        check(&all[0]);
        let error = read(Format::Yolo, dir.path(), dir.path(), &names()[..1]).unwrap_err();
        assert!(format!("{error:#}").contains("class 1 has no name"), "{error:#}");
        let dir = folder(&[("b.txt", "1 0.35 0.35 0.5 0.5\n")]);
        let error = read(Format::Yolo, dir.path(), dir.path(), &names()).unwrap_err();
        assert!(format!("{error:#}").contains("no picture 'b'"), "{error:#}");
    }
}
