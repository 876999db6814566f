//! Named tensors from PyTorch (`.pth`, zip and legacy) and safetensors files.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::store::pytorch_reader::PytorchReader;
use half::{bf16, f16};

use crate::net::Array;

/// Tensors by name, as f32.
#[derive(Clone, Debug, Default)]
pub struct StateDict {
    tensors: BTreeMap<String, Array>,
    note: Option<String>,
}

impl StateDict {
    /// Reads a `.pth`, `.pt` or `.safetensors` file. Only tensors are read; no code in a pickle
    /// is ever run.
    ///
    /// # Errors
    /// If the file cannot be read, is of another kind, or holds a tensor of an unknown type.
    pub fn load(path: &Path) -> Result<Self> {
        let kind = path.extension().and_then(|e| e.to_str()).unwrap_or("");
        let read = match kind {
            "pth" | "pt" | "bin" => Self::pytorch(path),
            "safetensors" => Self::safetensors(path),
            other => bail!(
                "{}: weights come as .pth, .pt or .safetensors, not '{other}'",
                path.display()
            ),
        };
        read.with_context(|| format!("cannot read the weights in {}", path.display()))
    }

    fn pytorch(path: &Path) -> Result<Self> {
        let nested = ["state_dict", "model"];
        let reader = PytorchReader::new(path).map_err(|e| anyhow!("{e}"))?;
        let reader = match nested
            .iter()
            .find(|k| reader.keys().iter().any(|n| n.starts_with(&format!("{k}."))))
        {
            Some(key) => {
                PytorchReader::with_top_level_key(path, key).map_err(|e| anyhow!("{e}"))?
            }
            None => reader,
        };
        let mut dict = BTreeMap::new();
        for (name, tensor) in reader.tensors() {
            // Counters of batch norm are whole numbers and of no use here.
            let kind = format!("{:?}", tensor.dtype());
            if kind.starts_with('I')
                || kind.starts_with('U')
                || kind.starts_with('B') && kind != "BF16"
            {
                continue;
            }
            let bytes = tensor.read().with_context(|| format!("tensor '{name}'"))?;
            let data = floats(&kind, &bytes).with_context(|| format!("tensor '{name}'"))?;
            dict.insert(name.clone(), Array::new(tensor.shape(), data)?);
        }
        Ok(Self { tensors: dict, note: None })
    }

    /// The format is a length, a JSON header and the bytes; see the safetensors specification.
    fn safetensors(path: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Entry {
            dtype: String,
            shape: Vec<usize>,
            data_offsets: [usize; 2],
        }
        let bytes = std::fs::read(path)?;
        let (length, rest) = bytes.split_first_chunk::<8>().context("too short")?;
        let length = usize::try_from(u64::from_le_bytes(*length))?;
        let header = rest.get(..length).context("the header is cut short")?;
        let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header)?;
        let note = header.get("__metadata__").and_then(|m| m["note"].as_str()).map(str::to_owned);
        let mut dict = BTreeMap::new();
        for (name, value) in header.into_iter().filter(|(n, _)| n != "__metadata__") {
            let entry: Entry =
                serde_json::from_value(value).with_context(|| format!("tensor '{name}'"))?;
            let [from, to] = entry.data_offsets;
            let raw = rest[length..]
                .get(from..to)
                .with_context(|| format!("tensor '{name}' is cut short"))?;
            let data = floats(&entry.dtype, raw).with_context(|| format!("tensor '{name}'"))?;
            dict.insert(name, Array::new(entry.shape, data)?);
        }
        Ok(Self { tensors: dict, note })
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// If there is none, naming one that looks alike.
    pub fn get(&self, name: &str) -> Result<&Array> {
        self.tensors.get(name).with_context(|| {
            let some: Vec<_> = self.tensors.keys().take(3).map(String::as_str).collect();
            format!(
                "there is no tensor '{name}' (the file has {} tensors, such as {})",
                self.tensors.len(),
                some.join(", ")
            )
        })
    }

    /// What [`safetensors`] was given as a note.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// A tensor by name, of exactly `shape`.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn shaped(&self, name: &str, shape: &[usize]) -> Result<Array> {
        let array = self.get(name)?;
        ensure!(
            array.shape == shape,
            "tensor '{name}' has shape {:?}; {shape:?} was expected",
            array.shape
        );
        Ok(array.clone())
    }
}

/// Tensors and a note as the bytes of a safetensors file.
///
/// # Errors
/// If the header cannot be written, which JSON of names and numbers always can.
pub fn safetensors(tensors: &BTreeMap<String, Array>, note: &str) -> Result<Vec<u8>> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({ "note": note }));
    let mut at = 0;
    for (name, t) in tensors {
        let end = at + t.data.len() * 4;
        let entry =
            serde_json::json!({ "dtype": "F32", "shape": t.shape, "data_offsets": [at, end] });
        header.insert(name.clone(), entry);
        at = end;
    }
    let header = serde_json::to_vec(&header)?;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(tensors.values().flat_map(|t| &t.data).flat_map(|v| v.to_le_bytes()));
    Ok(bytes)
}

fn floats(kind: &str, bytes: &[u8]) -> Result<Vec<f32>> {
    Ok(match kind {
        "F32" => bytes.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect(),
        "F64" => bytes.as_chunks().0.iter().map(|c| f64::from_le_bytes(*c) as f32).collect(),
        "F16" => bytes.as_chunks().0.iter().map(|c| f16::from_le_bytes(*c).to_f32()).collect(),
        "BF16" => bytes.as_chunks().0.iter().map(|c| bf16::from_le_bytes(*c).to_f32()).collect(),
        other => bail!("type {other} is not supported (f32, f64, f16 and bf16 are)"),
    })
}
