//! Where items come from: a folder per label, tables (CSV, JSON lines) and boxes, as one TOML file
//! describes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use pawlatch_core::units::Rect;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;

use super::boxes::{self, Format};
use super::{Dataset, Item, Scene, Split, by_hash};

/// How many pictures a class may have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Fewest for training; 0 means 1.
    pub fewest_per_class: usize,
    /// Most per split; the rest is left out.
    pub most_per_class: Option<usize>,
}

/// A dataset description.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    /// In the order of the network's labels.
    classes: Vec<String>,
    #[serde(default)]
    limits: Limits,
    /// Share of the groups that validates where nothing else says so.
    #[serde(default = "tenth")]
    validate_share: f32,
    /// Sources kept out of training altogether.
    #[serde(default)]
    validate_sources: Vec<String>,
    #[serde(default)]
    folder: Vec<FolderSpec>,
    #[serde(default)]
    table: Vec<TableSpec>,
    #[serde(default)]
    boxes: Vec<BoxSpec>,
    /// The first rule that fits names the class.
    #[serde(default)]
    relabel: Vec<Relabel>,
}

fn tenth() -> f32 {
    0.1
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FolderSpec {
    path: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableSpec {
    /// CSV with a header, or one JSON object a line: `file`, `label`, and if known `source`,
    /// `subset`, `split` (`train`, or anything else for validation).
    path: PathBuf,
    /// Only rows whose file starts with this.
    #[serde(default)]
    prefix: String,
    /// Column of the source.
    #[serde(default = "source_column")]
    source: String,
}

fn source_column() -> String {
    "source".into()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BoxSpec {
    /// How the boxes are written.
    #[serde(default)]
    format: Format,
    /// COCO: the annotations. VOC, KITTI, YOLO: the directory of the annotations.
    path: PathBuf,
    /// Directory of the pictures.
    pictures: PathBuf,
    /// YOLO: names of the class numbers.
    #[serde(default)]
    names: Vec<String>,
    /// Classes of which every one is boxed; if absent, what each picture says (COCO with
    /// `exhaustive_for`), else all.
    exhaustive_for: Option<Vec<String>>,
    /// Also take every box, padded, as a picture for the classifier.
    #[serde(default)]
    crops: bool,
    /// Also take a part without any box as "nothing".
    #[serde(default)]
    background: Option<String>,
    /// Also take whole pictures that show one class.
    #[serde(default)]
    whole: bool,
    /// Share of the pictures that validates; the description's own if absent.
    validate_share: Option<f32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Relabel {
    /// Label as given; any if absent.
    label: Option<String>,
    /// Part of the subset's name; any if absent.
    subset: Option<String>,
    /// The class.
    to: String,
}

/// A folder with one sub-folder per label; pictures of one sub-sub-folder are one group.
pub(super) fn folder(path: &Path) -> Result<Dataset> {
    let mut data = Dataset::default();
    for (label, dir) in sorted(path)?.into_iter().filter(|(_, p)| p.is_dir()) {
        data.classes.push(label.clone());
        take_folder(&mut data, &label, &dir, &dir, 0.1)?;
    }
    ensure!(
        !data.classes.is_empty(),
        "{} has no sub-folders: put the pictures of each class into a folder of its name",
        path.display()
    );
    Ok(data)
}

fn take_folder(data: &mut Dataset, label: &str, top: &Path, dir: &Path, share: f32) -> Result<()> {
    for (name, file) in sorted(dir)? {
        if file.is_dir() {
            take_folder(data, label, top, &file, share)?;
            continue;
        }
        if name.starts_with('.') {
            continue;
        }
        let group = if dir == top { format!("{label}/{name}") } else { dir.display().to_string() };
        let source = dir.strip_prefix(top).unwrap_or(dir).display().to_string();
        data.items.push(Item {
            part: Rect::WHOLE,
            label: label.into(),
            subset: source.clone(),
            source,
            split: by_hash(&group, share),
            file,
        });
    }
    Ok(())
}

fn sorted(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut all = entries
        .map(|e| e.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path())))
        .collect::<std::io::Result<Vec<_>>>()?;
    all.sort();
    Ok(all)
}

/// Gathers what a TOML description names; paths in it are relative to the file.
pub(super) fn specified(path: &Path) -> Result<Dataset> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let spec: Spec = toml::from_str(&text)
        .with_context(|| format!("{} is no dataset description", path.display()))?;
    let base = path.parent().unwrap_or(Path::new(""));
    let mut data = Dataset { classes: spec.classes.clone(), ..Dataset::default() };
    for f in &spec.folder {
        let dir = base.join(&f.path);
        for (label, sub) in sorted(&dir)?.into_iter().filter(|(_, p)| p.is_dir()) {
            take_folder(&mut data, &label, &sub, &sub, spec.validate_share)?;
        }
    }
    for t in &spec.table {
        take_table(&mut data, &base.join(&t.path), t, spec.validate_share)?;
    }
    for b in &spec.boxes {
        take_boxes(&mut data, base, b, &spec)?;
    }
    for item in &mut data.items {
        item.label = relabelled(&spec.relabel, &item.label, &item.subset);
        if spec.validate_sources.contains(&item.source) {
            item.split = Split::Validate;
        }
    }
    for scene in &mut data.scenes {
        for b in scene.boxes.iter_mut().chain(&mut scene.unsure) {
            b.label = relabelled(&spec.relabel, &b.label, "");
        }
        for label in &mut scene.exhaustive_for {
            *label = relabelled(&spec.relabel, label, "");
        }
        if spec.validate_sources.contains(&scene.source) {
            scene.split = Split::Validate;
        }
    }
    let unknown = data.items.iter().find(|i| !spec.classes.contains(&i.label));
    if let Some(item) = unknown {
        data.class(&item.label)
            .with_context(|| format!("{} in {}", item.file.display(), path.display()))?;
    }
    data.finish(&spec.limits)
}

fn relabelled(rules: &[Relabel], label: &str, subset: &str) -> String {
    let fits = |r: &&Relabel| {
        r.label.as_deref().is_none_or(|l| l == label)
            && r.subset.as_deref().is_none_or(|s| subset.contains(s))
    };
    rules.iter().find(fits).map_or(label, |r| r.to.as_str()).to_owned()
}

fn take_table(data: &mut Dataset, path: &Path, spec: &TableSpec, share: f32) -> Result<()> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let base = path.parent().unwrap_or(Path::new(""));
    let rows: Vec<BTreeMap<String, String>> = if path.extension().is_some_and(|e| e == "csv") {
        csv(&text)
    } else {
        let lines = text.lines().filter(|l| !l.trim().is_empty()).enumerate();
        lines
            .map(|(i, l)| {
                serde_json::from_str(l)
                    .with_context(|| format!("{} line {}", path.display(), i + 1))
            })
            .collect::<Result<_>>()?
    };
    for (i, row) in rows.iter().enumerate() {
        let get = |k: &str| row.get(k).map_or("", String::as_str);
        let file = get("file");
        ensure!(
            !file.is_empty() && !get("label").is_empty(),
            "{} row {}: 'file' and 'label' are needed",
            path.display(),
            i + 2
        );
        if !file.starts_with(&spec.prefix) {
            continue;
        }
        data.items.push(Item {
            file: base.join(file),
            part: Rect::WHOLE,
            label: get("label").into(),
            source: get(&spec.source).into(),
            subset: get("subset").into(),
            split: match get("split") {
                "train" => Split::Train,
                "" => by_hash(
                    if get(&spec.source).is_empty() { file } else { get(&spec.source) },
                    share,
                ),
                _ => Split::Validate,
            },
        });
    }
    Ok(())
}

/// Rows of a CSV file by column name; fields may be quoted, a doubled quote is a quote.
fn csv(text: &str) -> Vec<BTreeMap<String, String>> {
    let fields = |line: &str| {
        let (mut out, mut field, mut quoted) = (Vec::new(), String::new(), false);
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '"' if quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
                '"' => quoted = !quoted,
                ',' if !quoted => out.push(std::mem::take(&mut field)),
                c => field.push(c),
            }
        }
        out.push(field);
        out
    };
    let mut lines = text.lines().filter(|l| !l.trim().is_empty());
    let header = lines.next().map(fields).unwrap_or_default();
    lines.map(|l| header.iter().cloned().zip(fields(l)).collect()).collect()
}

fn take_boxes(data: &mut Dataset, base: &Path, spec: &BoxSpec, all: &Spec) -> Result<()> {
    let path = base.join(&spec.path);
    let pictures = base.join(&spec.pictures);
    let share = spec.validate_share.unwrap_or(all.validate_share);
    let mut rng = StdRng::seed_from_u64(0);
    for picture in boxes::read(spec.format, &path, &pictures, &spec.names)? {
        let split = match picture.split.as_deref() {
            Some("train") => Split::Train,
            Some(_) => Split::Validate,
            None => by_hash(&picture.name, share),
        };
        let exhaustive = spec.exhaustive_for.clone().or(picture.exhaustive_for);
        let scene = Scene {
            file: pictures.join(&picture.name),
            boxes: picture.boxes,
            unsure: picture.unsure,
            exhaustive_for: exhaustive.unwrap_or_else(|| all.classes.clone()),
            source: picture.source,
            split,
        };
        take_parts(data, &scene, &picture.subset, spec, &mut rng, picture.aspect);
        data.scenes.push(scene);
    }
    Ok(())
}

/// Pictures for the classifier out of a picture with boxes. `aspect` is width by height.
fn take_parts(
    data: &mut Dataset,
    scene: &Scene,
    subset: &str,
    spec: &BoxSpec,
    rng: &mut StdRng,
    aspect: f32,
) {
    let mut push = |part: Rect, label: &str| {
        data.items.push(Item {
            file: scene.file.clone(),
            part,
            label: label.into(),
            source: scene.source.clone(),
            subset: subset.into(),
            split: scene.split,
        });
    };
    let first = scene.boxes.first().map(|b| b.label.as_str());
    if let Some(label) = first.filter(|l| spec.whole && scene.boxes.iter().all(|b| b.label == *l)) {
        push(Rect::WHOLE, label);
    }
    for b in scene.boxes.iter().filter(|b| spec.crops && b.rect.area() > 0.004) {
        push(b.rect.padded(0.08), &b.label);
    }
    let Some(label) = &spec.background else { return };
    // A square part without a box, if twenty tries find one.
    for _ in 0..20 {
        let height = rng.random_range(0.25..0.6_f32);
        let width = (height / aspect).min(1.0);
        let (x, y) = (rng.random_range(0.0..=1.0 - width), rng.random_range(0.0..=1.0 - height));
        let Some(part) = Rect::clipped(x, y, x + width, y + height) else { continue };
        if scene.boxes.iter().all(|b| b.rect.overlap(part) == 0.0) {
            push(part, label);
            return;
        }
    }
}
