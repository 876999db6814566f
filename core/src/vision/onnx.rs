//! Work on the ONNX graph itself, before tract sees it: weights stored as f16 become f32, and a
//! classifier becomes fully convolutional.

use std::collections::{BTreeMap, BTreeSet};

use half::f16;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use tract_onnx::pb::{attribute_proto::AttributeType, tensor_proto::DataType, type_proto};
use tract_onnx::prelude::Framework;

use super::network::NetworkError;

/// Most values one constant of a network may have.
const MAX_CONSTANT: usize = 1 << 28;

/// Name of the output of [`fully_convolutional`].
pub(super) const MAP: &str = "class_map";

/// Reads an ONNX file and turns f16 constants that are cast to f32 into f32 constants.
///
/// # Errors
/// If the bytes are not ONNX, the graph refers to what it does not have, or a constant's size and
/// shape disagree or lie in another file.
pub(super) fn read(bytes: &[u8]) -> Result<ModelProto, NetworkError> {
    let mut model = tract_onnx::onnx()
        .proto_model_for_read(&mut &*bytes)
        .map_err(|e| NetworkError::Parse(e.into()))?;
    let graph = model.graph.as_mut().ok_or(NetworkError::Graph("it holds no graph".into()))?;
    check(graph)?;
    widen(graph)?;
    // Shapes noted by the exporter: tract finds them itself, and they are wrong at other sizes.
    graph.value_info.clear();
    Ok(model)
}

/// Refuses graphs that tract would panic on.
fn check(graph: &GraphProto) -> Result<(), NetworkError> {
    for constant in &graph.initializer {
        constant_len(constant)?;
    }
    let mut known: BTreeSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    known.extend(graph.input.iter().map(|i| i.name.as_str()));
    for node in &graph.node {
        if let Some(missing) = node.input.iter().find(|i| !i.is_empty() && !known.contains(&***i)) {
            let node = describe(node);
            return Err(NetworkError::Graph(format!(
                "{node} reads `{missing}`, which nothing made"
            )));
        }
        known.extend(node.output.iter().map(String::as_str));
    }
    match graph.output.iter().find(|o| !known.contains(&*o.name)) {
        Some(lost) => Err(NetworkError::Graph(format!("nothing makes its output `{}`", lost.name))),
        None => Ok(()),
    }
}

/// Number of values in a constant, checked against the bytes that are there.
fn constant_len(constant: &TensorProto) -> Result<usize, NetworkError> {
    let wrong = |what: &str| NetworkError::Graph(format!("constant `{}` {what}", constant.name));
    if constant.data_location == Some(1) || !constant.external_data.is_empty() {
        return Err(wrong("lies in another file; export the network as one file"));
    }
    let len = constant
        .dims
        .iter()
        .try_fold(1_usize, |n, d| usize::try_from(*d).ok().and_then(|d| n.checked_mul(d)))
        .filter(|n| *n <= MAX_CONSTANT)
        .ok_or_else(|| wrong("has an impossible shape"))?;
    let width = match DataType::try_from(constant.data_type) {
        Ok(DataType::Float | DataType::Int32 | DataType::Uint32) => 4,
        Ok(DataType::Float16 | DataType::Int16 | DataType::Uint16) => 2,
        Ok(DataType::Int64 | DataType::Double | DataType::Uint64) => 8,
        Ok(DataType::Int8 | DataType::Uint8 | DataType::Bool) => 1,
        _ => return Err(wrong("is of a kind no network of the door has")),
    };
    let listed = constant.float_data.len()
        + constant.int32_data.len()
        + constant.int64_data.len()
        + constant.double_data.len()
        + constant.uint64_data.len();
    if constant.raw_data.len() == len * width && listed == 0
        || constant.raw_data.is_empty() && listed == len
    {
        Ok(len)
    } else {
        Err(wrong("has fewer or more values than its shape says"))
    }
}

/// Replaces every f16 constant with a Cast to f32 behind it by the f32 constant.
fn widen(graph: &mut GraphProto) -> Result<(), NetworkError> {
    let halves: BTreeMap<String, usize> = (graph.initializer.iter().enumerate())
        .filter(|(_, t)| t.data_type == DataType::Float16 as i32)
        .map(|(i, t)| (t.name.clone(), i))
        .collect();
    let mut wide = Vec::new();
    let mut nodes = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node) {
        let source = node.input.first().and_then(|name| halves.get(name));
        match (source, node.output.as_slice()) {
            (Some(i), [output]) if node.op_type == "Cast" && int(&node, "to") == Some(1) => {
                wide.push(to_f32(&graph.initializer[*i], output)?);
            }
            _ => nodes.push(node),
        }
    }
    graph.node = nodes;
    let used: BTreeSet<&String> = graph.node.iter().flat_map(|n| &n.input).collect();
    let stale = |name: &String| halves.contains_key(name) && !used.contains(name);
    graph.initializer.retain(|t| !stale(&t.name));
    graph.input.retain(|i| !stale(&i.name));
    graph.initializer.append(&mut wide);
    Ok(())
}

fn to_f32(half: &TensorProto, name: &str) -> Result<TensorProto, NetworkError> {
    constant_len(half)?;
    let bytes = |bits: u16| f16::from_bits(bits).to_f32().to_le_bytes();
    let raw_data = if half.raw_data.is_empty() {
        half.int32_data.iter().flat_map(|v| bytes(*v as u16)).collect()
    } else {
        let (pairs, _) = half.raw_data.as_chunks::<2>();
        pairs.iter().flat_map(|pair| bytes(u16::from_le_bytes(*pair))).collect()
    };
    Ok(float_tensor(name, half.dims.clone(), raw_data))
}

/// Turns a classifier that ends in global average pooling and one linear layer into a network
/// with one output, [`MAP`] `[1, labels, rows, columns]`: the linear layer applied to every cell
/// of the last feature map. Pooling and the linear layer commute, so the mean of the map over its
/// cells is the logits, and the network takes an input of any size.
///
/// # Errors
/// If the network does not end so.
pub(super) fn fully_convolutional(
    mut model: ModelProto,
    logits: &str,
) -> Result<ModelProto, NetworkError> {
    let graph = model.graph.as_mut().ok_or(NetworkError::Graph("it holds no graph".into()))?;
    let (features, weight, bias) = head(graph, logits)?;
    let labels = weight.dims[0];
    let mut conv = NodeProto {
        name: MAP.into(),
        op_type: "Conv".into(),
        input: vec![features, weight.name.clone()],
        output: vec![MAP.into()],
        ..NodeProto::default()
    };
    conv.attribute.push(AttributeProto {
        name: "kernel_shape".into(),
        r#type: AttributeType::Ints as i32,
        ints: vec![1, 1],
        ..AttributeProto::default()
    });
    graph.initializer.push(weight);
    if let Some(bias) = bias {
        if bias.dims.iter().product::<i64>() != labels {
            return Err(NetworkError::NotConvolutional);
        }
        conv.input.push(bias.name.clone());
        graph.initializer.push(bias);
    }
    graph.node.push(conv);
    let mut output = graph.output.first().cloned().unwrap_or_default();
    output.name = MAP.into();
    output.r#type = None;
    graph.output = vec![output];
    drop_unused(graph);
    free_the_size(graph);
    Ok(model)
}

/// The feature map's name, and the last linear layer as the weight `[labels, features, 1, 1]` and
/// bias `[labels]` of a convolution.
fn head(
    graph: &GraphProto,
    logits: &str,
) -> Result<(String, TensorProto, Option<TensorProto>), NetworkError> {
    let no = || NetworkError::NotConvolutional;
    let maker = |name: &str| graph.node.iter().find(|n| n.output.iter().any(|o| o == name));
    let constant = |name: &str| graph.initializer.iter().find(|t| t.name == name);
    let input = |node: &NodeProto, i: usize| node.input.get(i).cloned().ok_or_else(no);

    let mut node = maker(logits).ok_or_else(no)?;
    let mut bias = None;
    if node.op_type == "Add" {
        let (a, b) = (input(node, 0)?, input(node, 1)?);
        let (linear, term) = if constant(&b).is_some() { (a, b) } else { (b, a) };
        bias = constant(&term);
        node = maker(&linear).ok_or_else(no)?;
    }
    let weight = constant(&input(node, 1)?).ok_or_else(no)?;
    let rows_are_labels = match node.op_type.as_str() {
        "MatMul" => false,
        "Gemm" if int(node, "transA").unwrap_or(0) == 0 && unscaled(node) => {
            bias = node.input.get(2).and_then(|name| constant(name)).or(bias);
            int(node, "transB") == Some(1)
        }
        _ => return Err(no()),
    };
    let weight = as_kernel(weight, rows_are_labels)?;
    let bias = bias.map(as_bias).transpose()?;

    let mut x = input(node, 0)?;
    loop {
        let node = maker(&x).ok_or_else(no)?;
        x = input(node, 0)?;
        match node.op_type.as_str() {
            "Flatten" | "Reshape" | "Squeeze" | "Identity" | "Dropout" => {}
            "GlobalAveragePool" => return Ok((x, weight, bias)),
            "ReduceMean" if pools_the_map(graph, node) => return Ok((x, weight, bias)),
            _ => return Err(no()),
        }
    }
}

/// Whether a Gemm is plain: both factors 1.
fn unscaled(node: &NodeProto) -> bool {
    node.attribute.iter().all(|a| !matches!(&*a.name, "alpha" | "beta") || a.f == 1.0)
}

/// Whether a ReduceMean is over rows and columns. Opset 18 moved the axes into an input.
fn pools_the_map(graph: &GraphProto, node: &NodeProto) -> bool {
    let listed = node.attribute.iter().find(|a| a.name == "axes").map(|a| a.ints.clone());
    let input = node.input.get(1).and_then(|n| graph.initializer.iter().find(|t| t.name == *n));
    let axes = listed.or_else(|| {
        input.map(|t| {
            let (raw, _) = t.raw_data.as_chunks::<8>();
            let raw = raw.iter().map(|b| i64::from_le_bytes(*b));
            raw.chain(t.int64_data.iter().copied()).collect()
        })
    });
    matches!(axes.as_deref(), Some([2, 3] | [-2, -1]))
}

fn as_kernel(weight: &TensorProto, rows_are_labels: bool) -> Result<TensorProto, NetworkError> {
    let [rows, columns] = weight.dims[..] else { return Err(NetworkError::NotConvolutional) };
    let values = floats(weight)?;
    let (labels, features, values) = if rows_are_labels {
        (rows, columns, values)
    } else {
        let (r, c) = (rows as usize, columns as usize);
        let turned = (0..r * c).map(|i| values[i % r * c + i / r]).collect();
        (columns, rows, turned)
    };
    let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Ok(float_tensor("class_map.weight", vec![labels, features, 1, 1], raw))
}

fn as_bias(bias: &TensorProto) -> Result<TensorProto, NetworkError> {
    let values = floats(bias)?;
    let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Ok(float_tensor("class_map.bias", vec![values.len() as i64], raw))
}

fn floats(tensor: &TensorProto) -> Result<Vec<f32>, NetworkError> {
    let len = constant_len(tensor)?;
    if tensor.data_type != DataType::Float as i32 || len == 0 {
        return Err(NetworkError::NotConvolutional);
    }
    if tensor.raw_data.is_empty() {
        return Ok(tensor.float_data.clone());
    }
    let (raw, _) = tensor.raw_data.as_chunks::<4>();
    Ok(raw.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// Drops nodes and constants that no output needs. Nodes are in order of use.
fn drop_unused(graph: &mut GraphProto) {
    let mut needed: BTreeSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    let mut nodes = std::mem::take(&mut graph.node);
    nodes.reverse();
    nodes.retain(|node| {
        let used = node.output.iter().any(|o| needed.contains(o));
        if used {
            needed.extend(node.input.iter().cloned());
        }
        used
    });
    nodes.reverse();
    graph.node = nodes;
    graph.initializer.retain(|t| needed.contains(&t.name));
}

/// Forgets the height and width that the input was exported with.
fn free_the_size(graph: &mut GraphProto) {
    let types = graph.input.iter_mut().filter_map(|i| i.r#type.as_mut()?.value.as_mut());
    for type_proto::Value::TensorType(tensor) in types {
        for dim in tensor.shape.iter_mut().flat_map(|s| &mut s.dim).skip(2) {
            dim.value = None;
        }
    }
}

fn float_tensor(name: &str, dims: Vec<i64>, raw_data: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims,
        data_type: DataType::Float as i32,
        raw_data,
        ..TensorProto::default()
    }
}

fn int(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|a| a.name == name).map(|a| a.i)
}

fn describe(node: &NodeProto) -> String {
    format!("node `{}` ({})", node.name, node.op_type)
}
