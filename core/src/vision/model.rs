//! A model: a manifest and the network it describes, checked against each other.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::VisionError;
use super::fast::{Arithmetic, Dot, Isa};
use super::manifest::{Manifest, Task};
use super::network::{Mode, Network, Outputs};
use super::{decode, onnx};
use crate::sight::Class;

/// What networks compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// [`Precision::Int8`] where that was measured to be faster, else floats.
    Auto,
    /// 32-bit floats.
    #[default]
    Float,
    /// 8-bit integers where the manifest has ranges and the CPU has instructions; else floats.
    Int8,
}

impl FromStr for Precision {
    type Err = String;

    /// `auto`, `float` or `int8`; the error says so.
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "float" => Ok(Self::Float),
            "int8" => Ok(Self::Int8),
            _ => Err("auto, float or int8".to_owned()),
        }
    }
}

impl Precision {
    fn is_int8(self) -> bool {
        match self {
            Self::Auto => Isa::detect().and_then(Dot::of).is_some_and(Dot::pays),
            Self::Float => false,
            Self::Int8 => true,
        }
    }
}

/// A manifest with its network, ready to run.
pub struct Model {
    /// What the network is.
    pub manifest: Manifest,
    /// The door's class of each label.
    pub(super) classes: Vec<Class>,
    pub(super) network: Network,
    /// Where the ONNX has each output of the manifest.
    places: Vec<usize>,
    /// The file, kept to build the fully convolutional form from.
    pub(super) onnx: Arc<[u8]>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({} {})", self.manifest.name, self.manifest.version)
    }
}

impl Model {
    /// Reads a manifest, checks that `onnx` is the file it describes, and prepares the network.
    ///
    /// # Errors
    /// If the manifest is wrong, the ONNX has another SHA-256, cannot be loaded, or has other
    /// inputs and outputs than the manifest says.
    pub fn load(manifest: &str, onnx: &[u8]) -> Result<Self, VisionError> {
        Self::from_parts(Manifest::parse(manifest)?, onnx)
    }

    /// As [`Model::load`], with a manifest already parsed.
    ///
    /// # Errors
    /// As [`Model::load`], except for the manifest's own.
    pub fn from_parts(manifest: Manifest, onnx: &[u8]) -> Result<Self, VisionError> {
        Self::in_precision(Precision::Float, manifest, onnx)
    }

    /// As [`Model::from_parts`], with floats or 8-bit numbers.
    ///
    /// # Errors
    /// As [`Model::from_parts`].
    pub fn in_precision(
        precision: Precision,
        manifest: Manifest,
        onnx: &[u8],
    ) -> Result<Self, VisionError> {
        let ranges = if precision.is_int8() { manifest.quantised.clone() } else { None };
        let arithmetic = ranges.as_ref().map_or(Arithmetic::Floats, Arithmetic::Bytes);
        Self::prepare(Mode::With(arithmetic), manifest, onnx)
    }

    /// As [`Model::from_parts`], but slower: it notes the ranges of its values while it runs
    /// ([`Classifier::ranges`](super::Classifier::ranges) and
    /// [`Detector::ranges`](super::Detector::ranges)).
    ///
    /// # Errors
    /// As [`Model::from_parts`].
    pub fn watched(manifest: Manifest, onnx: &[u8]) -> Result<Self, VisionError> {
        Self::prepare(Mode::Watched, manifest, onnx)
    }

    fn prepare(mode: Mode, manifest: Manifest, onnx: &[u8]) -> Result<Self, VisionError> {
        let got = sha256(onnx);
        if got != manifest.sha256 {
            return Err(VisionError::Sha256 {
                model: manifest.name,
                expected: manifest.sha256,
                got,
            });
        }
        let model = manifest.name.clone();
        let named = |source| VisionError::Network { model: model.clone(), source };
        let proto = onnx::read(onnx).map_err(named)?;
        let network = Network::load_in(mode, &proto, &manifest.input.name, manifest.input.shape)
            .map_err(named)?;
        let places = decode::locate(&manifest, network.outputs()).map_err(named)?;
        let classes = manifest.labels.class_of_each()?;
        Ok(Self { manifest, classes, network, places, onnx: onnx.into() })
    }

    /// This model, if it does `task`.
    pub(super) fn doing(self, task: Task) -> Result<Self, VisionError> {
        if self.manifest.task == task {
            return Ok(self);
        }
        let (model, is) = (self.manifest.name, self.manifest.task);
        Err(VisionError::Task { model, is, wanted: task })
    }
}

/// What `network` gives for its input, in the order of the manifest's outputs, each value finite.
pub(super) struct Values {
    outputs: Outputs,
    places: Vec<usize>,
}

impl Model {
    /// Runs the network on the input it was filled with.
    ///
    /// # Errors
    /// If the network fails or gives a value that is not finite.
    pub(super) fn run(&mut self) -> Result<Values, VisionError> {
        let model = &self.manifest.name;
        let outputs = self
            .network
            .run()
            .map_err(|source| VisionError::Network { model: model.clone(), source })?;
        Ok(Values { outputs, places: self.places.clone() })
    }
}

impl Values {
    /// All outputs.
    ///
    /// # Errors
    /// If a value of `model`'s is not finite.
    pub(super) fn floats(&self, model: &str) -> Result<Vec<Cow<'_, [f32]>>, VisionError> {
        self.places
            .iter()
            .map(|place| {
                let values = self
                    .outputs
                    .floats(*place)
                    .map_err(|source| VisionError::Network { model: model.into(), source })?;
                require_finite(model, &values)?;
                Ok(values)
            })
            .collect()
    }
}

/// # Errors
/// If one of `values` is NaN or infinite: such a network knows nothing.
pub(super) fn require_finite(model: &str, values: &[f32]) -> Result<(), VisionError> {
    // Zero times a number is zero; times NaN or infinity it is NaN. The sum vectorises.
    let mut sums = [0.0_f32; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value * 0.0;
        }
    }
    let finite = sums.iter().all(|s| *s == 0.0) && rest.iter().all(|v| v.is_finite());
    if finite { Ok(()) } else { Err(VisionError::NotFinite { model: model.into() }) }
}

/// SHA-256 of `bytes` as 64 lower-case hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing into a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
