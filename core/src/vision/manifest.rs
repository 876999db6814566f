//! The manifest of a model, `model.toml`: everything about a network that its ONNX file does not
//! say. It is the contract between the trainer and the door; docs/models.md describes every key.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::fast::Ranges;
use crate::sight::Class;

/// The version of the manifest format this program reads and writes.
pub const FORMAT: u32 = 1;
/// Longest side of a network's input, pixels.
pub const MAX_INPUT_SIDE: usize = 2048;
/// Most labels a network may tell apart.
pub const MAX_LABELS: usize = 20_000;

/// A validated manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format, [`FORMAT`].
    pub manifest: u32,
    /// Name of the model: lower-case letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// Version of the model, for people.
    pub version: String,
    /// What the network does.
    pub task: Task,
    /// File name of the ONNX, in the directory of the manifest.
    pub file: String,
    /// SHA-256 of the ONNX, 64 hexadecimal digits.
    pub sha256: String,
    /// Licence of the weights, an SPDX expression.
    pub licence: String,
    /// Where the weights come from.
    pub source: String,
    /// How a picture becomes the network's input.
    pub input: Input,
    /// How the network's outputs are read.
    pub output: Output,
    /// What probabilities are corrected by. Classifiers only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Scores below which nothing is reported.
    #[serde(default)]
    pub thresholds: Thresholds,
    /// When a crop counts as unlike anything in training. Classifiers only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_set: Option<OpenSet>,
    /// The least and the largest of each value that may be held in 8 bits, by the name of the
    /// operator that gives it. `pawlatch model quantise` measures them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantised: Option<Ranges>,
    /// What was measured, and on which data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
    /// How the network was trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// What the network's labels mean.
    pub labels: Labels,
}

/// What a network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Says what a picture shows.
    Classifier,
    /// Says what is where in a picture.
    Detector,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Classifier => "classifier",
            Self::Detector => "detector",
        })
    }
}

/// How a picture becomes the network's input: cut and resized as 8-bit RGB, then
/// `(value - mean) / std` per channel, values 0 to 255.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Name of the input in the ONNX.
    pub name: String,
    /// Shape in the order of `layout`: one picture, three channels, height, width.
    pub shape: [usize; 4],
    /// Order of the axes.
    pub layout: Layout,
    /// Order of the channels.
    pub colour: Colour,
    /// Subtracted from each channel, in the order of `colour`.
    pub mean: [f32; 3],
    /// Divides each channel, in the order of `colour`.
    pub std: [f32; 3],
    /// How the picture is fitted into the input.
    pub resize: Resize,
    /// Kernel of the resize.
    pub kernel: Kernel,
}

impl Input {
    /// Width of the input, pixels.
    pub const fn width(&self) -> usize {
        self.shape[3]
    }
    /// Height of the input, pixels.
    pub const fn height(&self) -> usize {
        self.shape[2]
    }
}

/// Order of the input's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Batch, channel, row, column.
    Nchw,
}

/// Order of the input's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// Red first.
    Rgb,
    /// Blue first.
    Bgr,
}

/// How a picture is fitted into the network's input.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase", deny_unknown_fields)]
pub enum Resize {
    /// The middle square whose side is `fraction` of the picture's shorter side. A crop that a
    /// detector found is stretched instead. Classifiers only.
    Crop {
        /// Above 0, at most 1.
        fraction: f32,
    },
    /// The whole picture, its proportions given up.
    Stretch,
    /// The whole picture, its proportions kept, in the top left corner; the rest is `fill`.
    /// Detectors only.
    Letterbox {
        /// Value of all three channels before mean and std, 0 to 255.
        fill: u8,
    },
}

/// Kernel of the resize: a convolution whose support grows with the scale, so that a smaller
/// picture has no aliasing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// Triangle.
    Bilinear,
    /// Keys' cubic with a = -0.5 (Catmull-Rom).
    Bicubic,
}

/// How the network's outputs are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case", deny_unknown_fields)]
pub enum Output {
    /// Classifier over exclusive labels: logits `[1, labels]`.
    Softmax {
        /// Name of the output with the logits.
        name: String,
        /// Name of the output with the embedding, `[1, anything]`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        embedding: Option<String>,
    },
    /// Classifier over labels that may hold together: logits `[1, labels]`.
    Sigmoid {
        /// Name of the output with the logits.
        name: String,
        /// Name of the output with the embedding, `[1, anything]`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        embedding: Option<String>,
    },
    /// YOLOX: `[1, cells, 5 + labels]`.
    Yolox {
        /// Name of the output.
        name: String,
        /// Pixels per cell of each grid, in the order of the rows.
        strides: Vec<usize>,
        /// Boxes of one label that overlap more than this are one.
        nms_iou: f32,
    },
    /// NanoDet-Plus: `[1, cells, labels + 4 * bins]`.
    NanodetPlus {
        /// Name of the output.
        name: String,
        /// Pixels per cell of each grid, in the order of the rows.
        strides: Vec<usize>,
        /// Boxes of one label that overlap more than this are one.
        nms_iou: f32,
    },
    /// DEIM and its kin: a set of boxes, each found once; no suppression.
    Deim {
        /// Name of the output with the label numbers, i64 `[1, queries]`.
        labels: String,
        /// Name of the output with the boxes, `[1, queries, 4]`.
        boxes: String,
        /// Name of the output with the scores, `[1, queries]`.
        scores: String,
    },
    /// Our own anchor-free family: one map per stride, `[1, 4 + labels, rows, columns]`.
    Pawlatch {
        /// Name of the output of each stride.
        names: Vec<String>,
        /// Pixels per cell of each map, in the order of `names`.
        strides: Vec<usize>,
        /// Boxes of one label that overlap more than this are one.
        nms_iou: f32,
    },
}

impl Output {
    /// What a network with such outputs does.
    pub const fn task(&self) -> Task {
        match self {
            Self::Softmax { .. } | Self::Sigmoid { .. } => Task::Classifier,
            _ => Task::Detector,
        }
    }

    /// The outputs the ONNX must have, in the order they are decoded in.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::Softmax { name, embedding } | Self::Sigmoid { name, embedding } => {
                std::iter::once(name.as_str()).chain(embedding.as_deref()).collect()
            }
            Self::Yolox { name, .. } | Self::NanodetPlus { name, .. } => vec![name],
            Self::Deim { labels, boxes, scores } => vec![labels, boxes, scores],
            Self::Pawlatch { names, .. } => names.iter().map(String::as_str).collect(),
        }
    }

    fn strides(&self) -> Option<(&[usize], f32)> {
        match self {
            Self::Yolox { strides, nms_iou, .. }
            | Self::NanodetPlus { strides, nms_iou, .. }
            | Self::Pawlatch { strides, nms_iou, .. } => Some((strides, *nms_iou)),
            _ => None,
        }
    }
}

/// Corrections that turn a classifier's logits into probabilities one can count on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Divides the logits; above 0.
    pub temperature: f32,
    /// Added to the logarithm of each class's probability before they are scaled to sum to 1.
    #[serde(default)]
    pub bias: PerClass,
    /// Share of each class in the data the correction was fitted on, summing to 1. Evidence over
    /// time divides it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prior: Option<PerClass>,
}

/// A number for each of the door's classes; 0 where not given.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PerClass {
    /// For [`Class::Dog`].
    pub dog: f32,
    /// For [`Class::Cat`].
    pub cat: f32,
    /// For [`Class::Person`].
    pub person: f32,
    /// For [`Class::Other`].
    pub other: f32,
    /// For [`Class::Nothing`].
    pub nothing: f32,
}

impl PerClass {
    /// In the order of [`Class::ALL`].
    pub const fn to_array(self) -> [f32; 5] {
        [self.dog, self.cat, self.person, self.other, self.nothing]
    }
}

/// Scores below which nothing is reported.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Lowest score of a detection.
    pub score_floor: f32,
    /// Lowest score of a box that the door holds to be a person's, if the classifier agrees.
    pub person_floor: f32,
    /// Lowest probability that the best cell of a heat map must have to make a box.
    pub heat_floor: f32,
    /// Probability at the edge of a box of heat.
    pub heat_edge: f32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { score_floor: 0.25, person_floor: 0.25, heat_floor: 0.35, heat_edge: 0.5 }
    }
}

/// When a crop counts as unlike anything in training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
pub enum OpenSet {
    /// By the logarithm of the summed exponentials of the logits (the negative free energy).
    Energy {
        /// Lower values are rejected.
        reject_below: f32,
    },
    /// By a distance that the network computes itself.
    Distance {
        /// Name of the output, one value.
        output: String,
        /// Higher values are rejected.
        reject_above: f32,
    },
}

/// A measured figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// What was measured, such as `"frr_at_far_cat_0.01"`.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// On which data.
    pub data: String,
    /// SHA-256 of that data's listing, where there is one: 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_sha256: Option<String>,
}

/// How the network was trained, so that it can be done again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// In words.
    pub method: String,
    /// What the data was.
    pub data: String,
    /// SHA-256 of that data's listing: 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_sha256: Option<String>,
    /// Seed of all randomness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Commit of the program that trained it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

/// What the network's labels mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    /// The class of each label that `classes` does not list.
    pub rest: Class,
    /// The labels of each of the door's classes.
    pub classes: ClassLabels,
    /// The name of each label, in the network's order.
    pub names: Vec<String>,
}

/// The labels of each of the door's classes: names, or ranges `[first, last]` of label numbers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassLabels {
    /// Labels of [`Class::Dog`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dog: Vec<LabelSet>,
    /// Labels of [`Class::Cat`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cat: Vec<LabelSet>,
    /// Labels of [`Class::Person`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub person: Vec<LabelSet>,
    /// Labels of [`Class::Other`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other: Vec<LabelSet>,
    /// Labels of [`Class::Nothing`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nothing: Vec<LabelSet>,
}

impl ClassLabels {
    fn of(&self, class: Class) -> &[LabelSet] {
        match class {
            Class::Dog => &self.dog,
            Class::Cat => &self.cat,
            Class::Person => &self.person,
            Class::Other => &self.other,
            Class::Nothing => &self.nothing,
        }
    }
}

/// One or several labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LabelSet {
    /// All labels of this name.
    Name(String),
    /// The labels numbered first to last, both included, counted from 0.
    Range([usize; 2]),
}

impl Labels {
    /// The door's class of each label, in the network's order.
    ///
    /// # Errors
    /// If `classes` names a label that does not exist, or one label twice.
    pub fn class_of_each(&self) -> Result<Vec<Class>, ManifestError> {
        let mut classes: Vec<Option<Class>> = vec![None; self.names.len()];
        for class in Class::ALL {
            for set in self.classes.of(class) {
                for label in self.members(class, set)? {
                    if let Some(earlier) = classes[label].replace(class) {
                        return Err(ManifestError::key(
                            format!("labels.classes.{class}"),
                            format!("labels that no other class has, but `{earlier}` has one too"),
                            format!("{label} (\"{}\")", self.names[label]),
                        ));
                    }
                }
            }
        }
        Ok(classes.into_iter().map(|class| class.unwrap_or(self.rest)).collect())
    }

    fn members(&self, class: Class, set: &LabelSet) -> Result<Vec<usize>, ManifestError> {
        let count = self.names.len();
        let (members, got): (Vec<usize>, _) = match set {
            LabelSet::Name(name) => {
                ((0..count).filter(|i| self.names[*i] == *name).collect(), format!("\"{name}\""))
            }
            LabelSet::Range([first, last]) if last < &count => {
                ((*first..=*last).collect(), format!("[{first}, {last}]"))
            }
            LabelSet::Range([first, last]) => (Vec::new(), format!("[{first}, {last}]")),
        };
        if members.is_empty() {
            return Err(ManifestError::key(
                format!("labels.classes.{class}"),
                format!(
                    "names from labels.names, or ranges [first, last] within 0 to {}",
                    count.saturating_sub(1)
                ),
                got,
            ));
        }
        Ok(members)
    }
}

/// Why a text is not a manifest. The caller adds which file it was.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Not TOML, or a key is missing, unknown or of the wrong kind. The cause shows the line.
    #[error("the manifest cannot be read; docs/models.md describes every key")]
    Syntax(#[source] Box<toml::de::Error>),
    /// A value that cannot be.
    #[error("`{key}` must be {expected}, not {got}")]
    Key {
        /// The key, with its tables.
        key: String,
        /// What it must be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// It cannot be written as TOML.
    #[error("the manifest cannot be written")]
    Write(#[source] toml::ser::Error),
}

impl ManifestError {
    pub(super) fn key(key: impl Into<String>, expected: impl Into<String>, got: String) -> Self {
        Self::Key { key: key.into(), expected: expected.into(), got }
    }
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// If it is not TOML, has a missing, unknown or mistyped key, or a value that cannot be; the
    /// error names the key and what was expected.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let manifest: Self =
            toml::from_str(text).map_err(|e| ManifestError::Syntax(Box::new(e)))?;
        super::validate::check(&manifest)?;
        Ok(manifest)
    }

    /// Writes the manifest as TOML that [`Manifest::parse`] reads back.
    ///
    /// # Errors
    /// If a value cannot be: the checks of `parse` are made here too.
    pub fn to_toml(&self) -> Result<String, ManifestError> {
        super::validate::check(self)?;
        toml::to_string(self).map_err(ManifestError::Write)
    }

    /// Pixels per cell of each grid and the overlap that counts as one box, where the family has
    /// grids.
    pub fn grids(&self) -> Option<(&[usize], f32)> {
        self.output.strides()
    }
}
