//! What serde cannot say of a manifest: values that cannot be.

use super::manifest::{
    FORMAT, MAX_INPUT_SIDE, MAX_LABELS, Manifest, ManifestError, OpenSet, Output, Resize, Task,
};

type Checked = Result<(), ManifestError>;

/// Checks every value of `manifest`.
///
/// # Errors
/// [`ManifestError::Key`] with the first value that cannot be.
pub(super) fn check(manifest: &Manifest) -> Checked {
    header(manifest)?;
    input(manifest)?;
    output(manifest)?;
    labels(manifest)?;
    calibration(manifest)?;
    thresholds(manifest)?;
    quantised(manifest)?;
    provenance(manifest)
}

fn header(m: &Manifest) -> Checked {
    must(m.manifest == FORMAT, "manifest", format!("{FORMAT}"), m.manifest)?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c);
    must(
        !m.name.is_empty() && m.name.len() <= 64 && m.name.chars().all(plain),
        "name",
        "1 to 64 lower-case letters, digits, `_`, `-` or `.`",
        quoted(&m.name),
    )?;
    let bare = |name: &str| !name.is_empty() && !name.contains(['/', '\\']) && name != "..";
    must(
        bare(&m.file) && m.file.ends_with(".onnx"),
        "file",
        "the name of an .onnx file beside the manifest, without a directory",
        quoted(&m.file),
    )?;
    sha256("sha256", &m.sha256)?;
    for (key, text) in [("version", &m.version), ("licence", &m.licence), ("source", &m.source)] {
        must(!text.trim().is_empty(), key, "not empty", quoted(text))?;
    }
    must(
        m.task == m.output.task(),
        "output.family",
        match m.task {
            Task::Classifier => "softmax or sigmoid, as `task` is classifier",
            Task::Detector => "yolox, nanodet_plus, deim or pawlatch, as `task` is detector",
        },
        format!("the family of a {}", m.output.task()),
    )
}

fn input(m: &Manifest) -> Checked {
    let input = &m.input;
    let [n, c, h, w] = input.shape;
    must(
        n == 1 && c == 3 && (1..=MAX_INPUT_SIDE).contains(&h) && (1..=MAX_INPUT_SIDE).contains(&w),
        "input.shape",
        format!("[1, 3, height, width] with sides of 1 to {MAX_INPUT_SIDE}"),
        format!("{:?}", input.shape),
    )?;
    must(!input.name.is_empty(), "input.name", "not empty", quoted(&input.name))?;
    let finite = |v: &[f32; 3]| v.iter().all(|v| v.is_finite());
    must(finite(&input.mean), "input.mean", "three numbers", format!("{:?}", input.mean))?;
    must(
        finite(&input.std) && input.std.iter().all(|v| *v > 0.0),
        "input.std",
        "three numbers above 0",
        format!("{:?}", input.std),
    )?;
    match (input.resize, m.task) {
        (Resize::Crop { fraction }, Task::Classifier) => {
            let sound = fraction > 0.0 && fraction <= 1.0;
            must(sound, "input.resize.fraction", "above 0 and at most 1", fraction)
        }
        (Resize::Stretch, _) | (Resize::Letterbox { .. }, Task::Detector) => Ok(()),
        (Resize::Crop { .. }, Task::Detector) => {
            wrong("input.resize.mode", "stretch or letterbox for a detector", "crop")
        }
        (Resize::Letterbox { .. }, Task::Classifier) => {
            wrong("input.resize.mode", "crop or stretch for a classifier", "letterbox")
        }
    }
}

fn output(m: &Manifest) -> Checked {
    let names = m.output.names();
    let distinct = (1..names.len()).all(|i| !names[..i].contains(&names[i]));
    must(
        !names.is_empty() && distinct && names.iter().all(|n| !n.is_empty()),
        "output",
        "distinct, non-empty names of outputs",
        format!("{names:?}"),
    )?;
    let Some((strides, nms_iou)) = m.grids() else { return Ok(()) };
    let (h, w) = (m.input.height(), m.input.width());
    let fits = |s: &usize| *s > 0 && h.is_multiple_of(*s) && w.is_multiple_of(*s);
    // NanoDet-Plus has a last grid that the input is not always a multiple of; its cells are
    // counted rounded up.
    let rounded_up = matches!(m.output, Output::NanodetPlus { .. });
    must(
        (1..=8).contains(&strides.len())
            && strides.iter().all(|s| fits(s) || (rounded_up && (1..=h.max(w)).contains(s))),
        "output.strides",
        format!("1 to 8 numbers that divide the input's {w}x{h} pixels"),
        format!("{strides:?}"),
    )?;
    must(nms_iou > 0.0 && nms_iou <= 1.0, "output.nms_iou", "above 0 and at most 1", nms_iou)?;
    if let Output::Pawlatch { names, strides, .. } = &m.output {
        let expected = format!("one for each of the {} strides", strides.len());
        must(names.len() == strides.len(), "output.names", expected, format!("{names:?}"))?;
    }
    Ok(())
}

fn labels(m: &Manifest) -> Checked {
    let count = m.labels.names.len();
    let expected = format!("1 to {MAX_LABELS} names");
    must((1..=MAX_LABELS).contains(&count), "labels.names", expected, count)?;
    let empty = m.labels.names.iter().position(|n| n.trim().is_empty());
    must(empty.is_none(), "labels.names", "without an empty name", empty.unwrap_or(0))?;
    m.labels.class_of_each().map(drop)
}

fn calibration(m: &Manifest) -> Checked {
    let classifier = m.task == Task::Classifier;
    must(
        classifier || m.calibration.is_none(),
        "calibration",
        "left out for a detector",
        "present",
    )?;
    must(classifier || m.open_set.is_none(), "open_set", "left out for a detector", "present")?;
    if let Some(c) = &m.calibration {
        let sound = c.temperature.is_finite() && c.temperature > 0.0;
        must(sound, "calibration.temperature", "a number above 0", c.temperature)?;
        // Beyond e^20 a bias is a typing error, not a correction.
        let bias = c.bias.to_array();
        let sound = bias.iter().all(|v| v.abs() <= 20.0);
        must(sound, "calibration.bias", "numbers within -20 to 20", format!("{bias:?}"))?;
        if let Some(prior) = c.prior {
            let prior = prior.to_array();
            let total: f32 = prior.iter().sum();
            let sound = prior.iter().all(|v| *v >= 0.0) && (total - 1.0).abs() < 1e-3;
            must(sound, "calibration.prior", "shares that sum to 1", format!("{prior:?}"))?;
        }
    }
    match &m.open_set {
        Some(OpenSet::Energy { reject_below: limit }) => {
            must(limit.is_finite(), "open_set.reject_below", "a number", limit)
        }
        Some(OpenSet::Distance { output, reject_above: limit }) => {
            must(limit.is_finite(), "open_set.reject_above", "a number", limit)?;
            let taken = m.output.names().contains(&output.as_str());
            must(
                !taken && !output.is_empty(),
                "open_set.output",
                "the name of an output that has no other use",
                quoted(output),
            )
        }
        None => Ok(()),
    }
}

fn thresholds(m: &Manifest) -> Checked {
    let t = &m.thresholds;
    for (key, value) in [
        ("thresholds.score_floor", t.score_floor),
        ("thresholds.person_floor", t.person_floor),
        ("thresholds.heat_floor", t.heat_floor),
        ("thresholds.heat_edge", t.heat_edge),
    ] {
        must(value > 0.0 && value < 1.0, key, "above 0 and below 1", value)?;
    }
    Ok(())
}

fn quantised(m: &Manifest) -> Checked {
    for (name, [low, high]) in m.quantised.iter().flatten() {
        let sound = low.is_finite() && high.is_finite() && low <= high;
        let expected = "two numbers, the least and the largest";
        must(sound, &format!("quantised.{name:?}"), expected, format!("{:?}", [low, high]))?;
    }
    Ok(())
}

fn provenance(m: &Manifest) -> Checked {
    for metric in &m.metrics {
        must(metric.value.is_finite(), "metrics.value", "a number", metric.value)?;
        metric.data_sha256.as_deref().map_or(Ok(()), |v| sha256("metrics.data_sha256", v))?;
    }
    let data = m.training.as_ref().and_then(|t| t.data_sha256.as_deref());
    data.map_or(Ok(()), |v| sha256("training.data_sha256", v))
}

fn sha256(key: &str, value: &str) -> Checked {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    must(
        value.len() == 64 && value.bytes().all(hex),
        key,
        "64 lower-case hexadecimal digits",
        quoted(value),
    )
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn must(sound: bool, key: &str, expected: impl Into<String>, got: impl ToString) -> Checked {
    if sound { Ok(()) } else { wrong(key, expected, got) }
}

fn wrong(key: &str, expected: impl Into<String>, got: impl ToString) -> Checked {
    Err(ManifestError::key(key, expected, got.to_string()))
}
