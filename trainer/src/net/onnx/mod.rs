//! ONNX files in and out of [`Net`].
//!
//! Reading resolves constants, folds batch normalisation into the convolution before it and
//! refuses, by name, every node outside the vocabulary. Writing makes opset 13, or 14
//! where HardSwish needs it.

mod read;
mod write;

use std::path::Path;

use anyhow::{Context, Result};
use prost::Message;
use tract_onnx::pb;

use super::{Net, Op};

/// How weights are stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Four bytes each: a network to train on, dropout and all.
    Single,
    /// Two bytes each, widened by a `Cast` when the file is loaded; biases stay at four. A model that
    /// is finished, without dropout.
    Half,
}

impl Net {
    /// Reads an ONNX file.
    ///
    /// # Errors
    /// If it cannot be read, is no ONNX, or has a node outside the vocabulary (named).
    pub fn load(path: &Path) -> Result<Self> {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::decode(&bytes).with_context(|| format!("cannot use the network {}", path.display()))
    }

    /// Reads an ONNX model held in memory.
    ///
    /// # Errors
    /// As [`Net::load`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let model = pb::ModelProto::decode(bytes).context("not an ONNX model")?;
        let graph = model.graph.context("the ONNX model holds no graph")?;
        read::net(&graph)
    }

    /// The network as the bytes of an ONNX file; the same network gives the same bytes.
    ///
    /// # Errors
    /// If the network is inconsistent.
    pub fn encode(&self, precision: Precision) -> Result<Vec<u8>> {
        self.check()?;
        let graph = write::graph(self, precision)?;
        // The oldest that has all its operations: more programs read it.
        let newer = self.nodes.iter().any(|n| n.op == Op::HardSwish);
        let opset = if newer { 14 } else { 13 };
        let model = pb::ModelProto {
            ir_version: 8,
            opset_import: vec![pb::OperatorSetIdProto { domain: String::new(), version: opset }],
            producer_name: "pawlatch-trainer".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(graph),
            ..Default::default()
        };
        Ok(model.encode_to_vec())
    }
}
