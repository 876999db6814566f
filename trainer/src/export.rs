//! Writes a model directory that the door accepts, after proving that it says what was trained.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use image::RgbImage;
use pawlatch_core::sight::Class;
use pawlatch_core::units::Rect;
use pawlatch_core::vision::manifest::{
    Calibration, Colour, FORMAT, Input, Kernel, Layout, Metric, Output, PerClass, Resize,
    Thresholds, Training,
};
use pawlatch_core::vision::{Manifest, Task, sha256};

use crate::cache::{Frozen, Normalisation};
use crate::data::augment::stretched;
use crate::data::{Dataset, Split};
use crate::engine::Model;
use crate::evaluate::{Operating, Report, door_class};
use crate::files::write_whole;
use crate::net::Net;
use crate::net::onnx::Precision;
use crate::retrain::{Plan, Retrained};

/// Largest difference of a logit between burn and the exported file in tract.
pub const TOLERANCE: f32 = 1e-3;

/// What a model is called and where it comes from.
pub struct Card<'a> {
    /// Lower-case name.
    pub name: String,
    /// Version of the model, for people.
    pub version: &'a str,
    /// Licence of the weights, an SPDX expression.
    pub licence: &'a str,
    /// Where the weights come from.
    pub source: &'a str,
    /// Commit of the program that trained it.
    pub commit: Option<String>,
}

impl Card<'_> {
    /// Of a model that is only measured, never written.
    pub fn nameless() -> Self {
        Self { name: "unnamed".into(), version: "0", licence: "none", source: "none", commit: None }
    }
}

/// Writes `model.onnx` and `model.toml` into `dir`, the ONNX first, each in one step.
///
/// # Errors
/// If tract's answer differs from burn's by more than [`TOLERANCE`], a label is none of the
/// door's classes, or a file cannot be written.
pub fn classifier(
    dir: &Path,
    trained: &Retrained,
    data: &Dataset,
    plan: &Plan,
    card: &Card<'_>,
    device: &Device,
) -> Result<()> {
    let onnx = trained.net.encode(Precision::Half)?;
    prove(&trained.net, &onnx, plan.seen.side, device)?;
    let manifest = manifest(trained, &onnx, data, plan, card)?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // A door that reads in between sees a hash that does not fit and refuses: never half a model.
    write_whole(&dir.join("model.onnx"), &onnx)?;
    write_whole(&dir.join("model.toml"), manifest.to_toml()?.as_bytes())
}

/// Compares the first output of the file in tract with that of the rounded network in burn on a
/// patterned input.
///
/// # Errors
/// If they differ by more than [`TOLERANCE`].
pub fn prove(net: &Net, onnx: &[u8], side: usize, device: &Device) -> Result<()> {
    let rounded = Net::decode(onnx)?;
    let shape = rounded.shape_at(side);
    let input: Vec<f32> = (0..shape.iter().product())
        .map(|i| ((i % 251) as f32 / 125.0 - 1.0) * ((i / 997) % 3) as f32 / 2.0)
        .collect();
    let model = Model::new(rounded.clone(), device);
    let burn = model.forward(model.batch(input.clone(), shape)?, None)?.array(0)?;
    let tract = &Frozen::new(net, side)?.run(&input)?[0];
    let exported = &Frozen::new(&rounded, side)?.run(&input)?[0];
    let gap = difference(&burn.data, &exported.data);
    ensure!(
        gap <= TOLERANCE,
        "the exported network differs from the trained one by {gap}, more than {TOLERANCE}: not written"
    );
    let rounding = difference(&tract.data, &exported.data);
    println!(
        "burn and tract differ by {gap:.1e}; storing 16-bit weights changes logits by {rounding:.1e}"
    );
    Ok(())
}

/// Runs `net` in burn and the ONNX file it was read from, or that of another program with the same
/// weights, in plain tract, both on `picture` squashed to the input's size: the largest difference
/// of each of the source's outputs, of values above 1 in proportion to the largest.
///
/// # Errors
/// If tract does not read the source, it wants an input of another shape, or its outputs have other
/// lengths than those of the network.
pub fn against_source(
    net: &Net,
    source: &Path,
    side: usize,
    picture: &RgbImage,
) -> Result<Vec<f32>> {
    let shape = net.shape_at(side);
    let square = stretched(picture, Rect::WHOLE, shape[3] as u32, shape[2] as u32)?;
    let input = Normalisation { mean: [127.0; 3], std: [128.0; 3] }.planes(&square);
    let said = Frozen::of_file(source, &shape)?.run(&input)?;
    let model = Model::new(net.clone(), &crate::engine::device("cpu")?);
    let values = model.forward(model.batch(input, shape)?, None)?;
    let gaps = said.iter().enumerate().map(|(i, said)| {
        let own = values.array(i)?;
        ensure!(
            own.data.len() == said.data.len(),
            "output {i} has shape {:?}, that of the source {:?}",
            own.shape,
            said.shape
        );
        let largest = said.data.iter().fold(1.0_f32, |most, v| most.max(v.abs()));
        Ok(difference(&own.data, &said.data) / largest)
    });
    gaps.collect()
}

/// The largest difference of two lists; not a number if any is not.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    let gaps = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    gaps.fold(0.0, |most, gap| if most >= gap || most.is_nan() { most } else { gap })
}

fn manifest(
    trained: &Retrained,
    onnx: &[u8],
    data: &Dataset,
    plan: &Plan,
    card: &Card<'_>,
) -> Result<Manifest> {
    let counts = data.counts(Split::Validate);
    let total = counts.iter().sum::<usize>().max(1) as f32;
    let mut prior = PerClass::default();
    for (label, &n) in data.classes.iter().zip(&counts) {
        let share = n as f32 / total;
        match door_class(label)? {
            Class::Dog => prior.dog += share,
            Class::Cat => prior.cat += share,
            Class::Person => prior.person += share,
            Class::Other => prior.other += share,
            Class::Nothing => prior.nothing += share,
        }
    }
    let embedding = trained.net.outputs.get(1).cloned();
    let stages: Vec<String> = plan
        .stage
        .iter()
        .map(|s| {
            format!(
                "{} epochs after '{}' ({} variants, rate {})",
                s.recipe.epochs, s.cut, s.variants, s.recipe.rate
            )
        })
        .collect();
    let figure = |name: &str, value: f64| Metric {
        name: name.into(),
        value,
        data: "validation split".into(),
        data_sha256: Some(data.sha256.clone()),
    };
    Ok(Manifest {
        manifest: FORMAT,
        name: card.name.clone(),
        version: card.version.into(),
        task: Task::Classifier,
        file: "model.onnx".into(),
        sha256: sha256(onnx),
        licence: card.licence.into(),
        source: card.source.into(),
        input: Input {
            name: trained.net.input.clone(),
            shape: trained.net.shape_at(plan.seen.side),
            layout: Layout::Nchw,
            colour: Colour::Rgb,
            mean: plan.seen.mean,
            std: plan.seen.std,
            resize: Resize::Crop { fraction: plan.fraction },
            kernel: Kernel::Bicubic,
        },
        output: Output::Softmax { name: trained.net.outputs[0].clone(), embedding },
        calibration: Some(Calibration {
            temperature: trained.temperature,
            bias: PerClass::default(),
            prior: Some(prior),
        }),
        thresholds: Thresholds::default(),
        open_set: None,
        quantised: None,
        metrics: vec![
            figure("ece_before", trained.ece.0.into()),
            figure("ece", trained.ece.1.into()),
        ],
        training: Some(Training {
            method: format!("pawlatch-trainer retrain: {}", stages.join("; ")),
            data: format!(
                "{} training and {total} validation pictures",
                data.counts(Split::Train).iter().sum::<usize>()
            ),
            data_sha256: Some(data.sha256.clone()),
            seed: Some(plan.seen.seed),
            commit: card.commit.clone(),
        }),
        labels: trained.labels.clone(),
    })
}

/// Writes the figures of a report into the manifest of the model they were measured on.
///
/// # Errors
/// If the manifest cannot be read or written.
pub fn record(dir: &Path, report: &Report) -> Result<()> {
    let f = &report.all;
    let mut figures = vec![
        ("accuracy_dog_cat_rest", f.accuracy3.share()),
        ("auc_dog_cat", f.auc_dog_cat),
        ("ece", f64::from(f.ece)),
    ];
    let names = [
        "frr_at_far_cat_0.001",
        "frr_at_far_cat_0.01",
        "frr_at_far_rest_0.01",
        "frr_at_far_nondog_0.005",
    ];
    figures.extend(names.into_iter().zip(f.operating.iter().map(|o| o.frr.share())));
    figures.extend(
        f.operating.last().map(|o| ("threshold_at_far_nondog_0.005", f64::from(o.threshold))),
    );
    let figures = figures.into_iter().map(|(name, value)| (name.to_owned(), value));
    record_figures(dir, figures, &report.data_sha256)
}

/// Writes figures of the validation split into a manifest, in place of those of the same name.
///
/// # Errors
/// If the manifest cannot be read or written.
pub fn record_figures(
    dir: &Path,
    figures: impl Iterator<Item = (String, f64)>,
    data_sha256: &str,
) -> Result<()> {
    let path = dir.join("model.toml");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let mut manifest = Manifest::parse(&text)?;
    for (name, value) in figures {
        manifest.metrics.retain(|m| m.name != name);
        manifest.metrics.push(Metric {
            name,
            value,
            data: "validation split".into(),
            data_sha256: Some(data_sha256.to_owned()),
        });
    }
    write_whole(&path, manifest.to_toml()?.as_bytes())
}

/// Writes down at which threshold a classifier lets in at most the share `far` of all that is no
/// dog, and how sure that is: the upper 95 % bound of what it really lets in.
///
/// # Errors
/// If the manifest cannot be read or written.
pub fn record_operating(dir: &Path, report: &Report, far: f64) -> Result<Operating> {
    let chosen = report.operating_at(far);
    let let_in = chosen.far_non_dog();
    let figures = [
        ("operating_threshold", f64::from(chosen.threshold)),
        ("operating_far_nondog", let_in.share()),
        ("operating_far_nondog_upper95", let_in.high),
        ("operating_frr", chosen.frr.share()),
        ("operating_frr_upper95", chosen.frr.high),
    ];
    let figures = figures.into_iter().map(|(name, value)| (name.to_owned(), value));
    record_figures(dir, figures, &report.data_sha256)?;
    Ok(chosen)
}

/// Writes a model card, `README.md`, unless somebody has written one already.
///
/// # Errors
/// If the manifest cannot be read or the card cannot be written.
pub fn card(dir: &Path, figures: &str) -> Result<()> {
    let path = dir.join("README.md");
    if path.exists() {
        return Ok(());
    }
    let m = crate::evaluate::load_model(dir)?.manifest;
    let [_, _, h, w] = m.input.shape;
    let mut text = format!(
        "# {}\n\n| | |\n|---|---|\n| Version | {} |\n| Task | {} |\n| Weights | {}, {} |\n\
         | Input | {w} by {h} pixels |\n| Labels | {} |\n",
        m.name,
        m.version,
        m.task,
        m.source,
        m.licence,
        m.labels.names.len()
    );
    if let Some(t) = &m.training {
        let seed = t.seed.map_or("unknown".into(), |s| s.to_string());
        text += &format!("| Trained | {} |\n| Data | {} |\n| Seed | {seed} |\n", t.method, t.data);
    }
    text += &format!(
        "\n## Figures\n\n```\n{figures}```\n\n## Limits\n\nMeasured on pictures of the same sources \
         as those it was trained on, unless the dataset holds sources out.\nNever let it decide on \
         one picture.\n"
    );
    write_whole(&path, text.as_bytes())
}

/// The fully convolutional form of a classifier, with the largest difference between the mean of
/// its map and the classifier's logits at the classifier's own size.
///
/// # Errors
/// If there is no such form, or the difference is above `1e-4` of the largest logit.
pub fn fully_convolutional(net: &Net, side: usize) -> Result<(Net, f32)> {
    let map = net.fully_convolutional(side)?;
    let shape = net.shape_at(side);
    let side = shape[2];
    let input: Vec<f32> =
        (0..shape.iter().product()).map(|i| ((i % 255) as f32 - 127.0) / 128.0).collect();
    let logits = &Frozen::new(net, side)?.run(&input)?[0];
    let cells = &Frozen::new(&map, side)?.run(&input)?[0];
    let area = cells.data.len() / logits.data.len();
    let means: Vec<f32> =
        cells.data.chunks(area).map(|c| c.iter().sum::<f32>() / area as f32).collect();
    let gap = difference(&means, &logits.data);
    let largest = logits.data.iter().fold(1.0, |m: f32, v| m.max(v.abs()));
    ensure!(
        gap <= 1e-4 * largest,
        "the map's mean differs from the classifier by {gap}: not the same function"
    );
    Ok((map, gap))
}
