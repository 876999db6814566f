//! From [`Net`] to ONNX.

use std::collections::BTreeSet;

use anyhow::Result;
use half::f16;
use tract_onnx::pb;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;

use super::Precision;
use crate::net::{Array, Net, Node, Op};

/// Weights smaller than this stay at full precision: they save nothing.
const HALF_FROM: usize = 16_384;

/// The graph that describes `net`.
pub(super) fn graph(net: &Net, precision: Precision) -> Result<pb::GraphProto> {
    Writer { net, precision, graph: pb::GraphProto::default() }.write()
}

struct Writer<'a> {
    net: &'a Net,
    precision: Precision,
    graph: pb::GraphProto,
}

impl Writer<'_> {
    fn write(mut self) -> Result<pb::GraphProto> {
        self.graph.name = "net".into();
        let mut sizes = self.net.input_shape;
        sizes[0] = Some(1);
        self.graph.input.push(value_info(&self.net.input, &sizes));
        let open = sizes.contains(&None);
        let shapes = self.net.shapes(self.net.shape_at(224))?;
        for output in &self.net.outputs {
            let shape = &shapes[output];
            // With an open input only the batch and channel extents are certain.
            let dims: Vec<_> =
                shape.iter().enumerate().map(|(i, &e)| (!open || i < 2).then_some(e)).collect();
            self.graph.output.push(value_info(output, &dims));
        }
        for (name, array) in &self.net.params {
            self.parameter(name, array);
        }
        let mut clips = BTreeSet::new();
        for node in &self.net.nodes {
            let proto = self.node(node, &mut clips)?;
            self.graph.node.push(proto);
        }
        Ok(self.graph)
    }

    fn parameter(&mut self, name: &str, array: &Array) {
        let halved = self.precision == Precision::Half && array.data.len() >= HALF_FROM;
        if !halved {
            self.graph.initializer.push(floats(name, array));
            return;
        }
        let stored = format!("{name}.f16");
        let raw = array.data.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        self.graph.initializer.push(pb::TensorProto {
            name: stored.clone(),
            dims: array.shape.iter().map(|&d| d as i64).collect(),
            data_type: DataType::Float16 as i32,
            raw_data: raw,
            ..Default::default()
        });
        self.graph.node.push(pb::NodeProto {
            name: format!("{name}.widen"),
            op_type: "Cast".into(),
            input: vec![stored],
            output: vec![name.into()],
            attribute: vec![int("to", DataType::Float as i64)],
            ..Default::default()
        });
    }

    fn whole(&mut self, name: String, values: &[i64]) -> String {
        self.graph.initializer.push(pb::TensorProto {
            name: name.clone(),
            dims: vec![values.len() as i64],
            data_type: DataType::Int64 as i32,
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ..Default::default()
        });
        name
    }

    fn node(&mut self, node: &Node, clips: &mut BTreeSet<String>) -> Result<pb::NodeProto> {
        let mut extra = Vec::new();
        let (kind, attribute) = match &node.op {
            Op::Conv { stride, pads, dilation, groups } => (
                "Conv",
                vec![
                    ints("kernel_shape", &self.net.param(&node.inputs[1])?.shape[2..]),
                    ints("strides", stride),
                    ints("pads", pads),
                    ints("dilations", dilation),
                    int("group", *groups as i64),
                ],
            ),
            Op::Gemm => ("Gemm", vec![int("transB", 1)]),
            Op::Relu => ("Relu", vec![]),
            Op::LeakyRelu { slope } => ("LeakyRelu", vec![float("alpha", *slope)]),
            Op::Clip { low, high } => {
                for limit in [low, high] {
                    let name = format!("limit_{limit}");
                    if clips.insert(name.clone()) {
                        let scalar = Array { shape: vec![], data: vec![*limit] };
                        self.graph.initializer.push(floats(&name, &scalar));
                    }
                    extra.push(name);
                }
                ("Clip", vec![])
            }
            Op::Sigmoid => ("Sigmoid", vec![]),
            Op::Tanh => ("Tanh", vec![]),
            Op::HardSwish => ("HardSwish", vec![]),
            Op::Softmax { axis } => ("Softmax", vec![int("axis", *axis as i64)]),
            Op::Add => ("Add", vec![]),
            Op::Sub => ("Sub", vec![]),
            Op::Mul => ("Mul", vec![]),
            Op::Div => ("Div", vec![]),
            Op::MaxPool { kernel, stride, pads, ceil } => (
                "MaxPool",
                vec![
                    ints("kernel_shape", kernel),
                    ints("strides", stride),
                    ints("pads", pads),
                    int("ceil_mode", i64::from(*ceil)),
                ],
            ),
            Op::AveragePool { kernel, stride, pads, count_pads } => (
                "AveragePool",
                vec![
                    ints("kernel_shape", kernel),
                    ints("strides", stride),
                    ints("pads", pads),
                    int("count_include_pad", i64::from(*count_pads)),
                ],
            ),
            Op::GlobalAveragePool => ("GlobalAveragePool", vec![]),
            Op::Lrn { size, alpha, beta, bias } => (
                "LRN",
                vec![
                    int("size", *size as i64),
                    float("alpha", *alpha),
                    float("beta", *beta),
                    float("bias", *bias),
                ],
            ),
            Op::Flatten => ("Flatten", vec![int("axis", 1)]),
            Op::Reshape { shape } => {
                extra.push(self.whole(format!("{}.shape", node.name), shape));
                ("Reshape", vec![])
            }
            Op::Transpose { perm } => ("Transpose", vec![ints("perm", perm)]),
            Op::Concat { axis } => ("Concat", vec![int("axis", *axis as i64)]),
            Op::Slice { axis, start, end, step } => {
                for (what, v) in [("start", start), ("end", end), ("axis", axis), ("step", step)] {
                    extra.push(self.whole(format!("{}.{what}", node.name), &[*v as i64]));
                }
                ("Slice", vec![])
            }
            Op::Upsample { factor } => {
                let scales = format!("{}.scales", node.name);
                let f = *factor as f32;
                self.graph
                    .initializer
                    .push(floats(&scales, &Array { shape: vec![4], data: vec![1.0, 1.0, f, f] }));
                extra.extend([String::new(), scales]);
                (
                    "Resize",
                    vec![
                        text("mode", "nearest"),
                        text("coordinate_transformation_mode", "asymmetric"),
                        text("nearest_mode", "floor"),
                    ],
                )
            }
            Op::Dropout { rate } if self.precision == Precision::Single => {
                let ratio = format!("{}.ratio", node.output);
                let rate = Array { shape: vec![], data: vec![*rate] };
                self.graph.initializer.push(floats(&ratio, &rate));
                extra.push(ratio);
                ("Dropout", vec![])
            }
            // It does nothing in a model that is finished.
            Op::Dropout { .. } | Op::Identity => ("Identity", vec![]),
        };
        Ok(pb::NodeProto {
            name: node.name.clone(),
            op_type: kind.into(),
            input: node.inputs.iter().cloned().chain(extra).collect(),
            output: vec![node.output.clone()],
            attribute,
            ..Default::default()
        })
    }
}

fn floats(name: &str, array: &Array) -> pb::TensorProto {
    pb::TensorProto {
        name: name.into(),
        dims: array.shape.iter().map(|&d| d as i64).collect(),
        data_type: DataType::Float as i32,
        raw_data: array.data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ..Default::default()
    }
}

fn attribute(name: &str, kind: AttributeType) -> pb::AttributeProto {
    pb::AttributeProto { name: name.into(), r#type: kind as i32, ..Default::default() }
}
fn int(name: &str, i: i64) -> pb::AttributeProto {
    pb::AttributeProto { i, ..attribute(name, AttributeType::Int) }
}
fn float(name: &str, f: f32) -> pb::AttributeProto {
    pb::AttributeProto { f, ..attribute(name, AttributeType::Float) }
}
fn text(name: &str, s: &str) -> pb::AttributeProto {
    pb::AttributeProto { s: s.into(), ..attribute(name, AttributeType::String) }
}
fn ints(name: &str, values: &[usize]) -> pb::AttributeProto {
    let ints = values.iter().map(|&v| v as i64).collect();
    pb::AttributeProto { ints, ..attribute(name, AttributeType::Ints) }
}

fn value_info(name: &str, dims: &[Option<usize>]) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension::Value};
    let dim = dims
        .iter()
        .enumerate()
        .map(|(i, d)| Dimension {
            value: Some(match d {
                Some(v) => Value::DimValue(*v as i64),
                None => Value::DimParam(format!("{name}_{i}")),
            }),
            ..Default::default()
        })
        .collect();
    let tensor = pb::type_proto::Tensor {
        elem_type: DataType::Float as i32,
        shape: Some(pb::TensorShapeProto { dim }),
    };
    pb::ValueInfoProto {
        name: name.into(),
        r#type: Some(pb::TypeProto {
            value: Some(pb::type_proto::Value::TensorType(tensor)),
            ..Default::default()
        }),
        ..Default::default()
    }
}
