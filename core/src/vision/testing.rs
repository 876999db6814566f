//! Small manifests and networks made by hand, for the tests of vision.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use prost::Message;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_proto::DataType, tensor_shape_proto, type_proto,
};

use super::manifest::{Layout, Manifest, Resize};
use super::prepare::{Placement, Preparer};
use super::sha256;
use crate::frame::Frame;
use crate::units::{Rect, Uptime};

/// The detector families.
pub(super) const FAMILIES: [&str; 4] = [
    "family = 'yolox'\nname = 'out'\nstrides = [8, 16]\nnms_iou = 0.5",
    "family = 'nanodet_plus'\nname = 'out'\nstrides = [8, 16]\nnms_iou = 0.5",
    "family = 'deim'\nlabels = 'l'\nboxes = 'b'\nscores = 's'",
    "family = 'pawlatch'\nnames = ['p8', 'p16']\nstrides = [8, 16]\nnms_iou = 0.5",
];

/// The text of a manifest for an input of 32 by 32 pixels and three labels.
pub(super) fn manifest_text(task: &str, output: &str, resize: &str, onnx: &[u8]) -> String {
    let sha256 = sha256(onnx);
    format!(
        "manifest = 1\nname = 'tiny'\nversion = '1'\ntask = '{task}'\nfile = 'tiny.onnx'\n\
         sha256 = '{sha256}'\nlicence = 'CC0-1.0'\nsource = 'made by hand'\n\
         [input]\nname = 'images'\nshape = [1, 3, 32, 32]\nlayout = 'nchw'\ncolour = 'rgb'\n\
         mean = [0.0, 0.0, 0.0]\nstd = [255.0, 255.0, 255.0]\nresize = {resize}\n\
         kernel = 'bilinear'\n[output]\n{output}\n\
         [labels]\nrest = 'nothing'\nclasses.dog = ['dog']\nclasses.cat = [[1, 1]]\n\
         names = ['dog', 'cat', 'lawn']\n"
    )
}

pub(super) const CLASSIFIER: &str = "family = 'softmax'\nname = 'logits'";

pub(super) fn classifier_text(onnx: &[u8]) -> String {
    manifest_text("classifier", CLASSIFIER, "{ mode = 'crop', fraction = 1.0 }", onnx)
}

pub(super) fn detector_text(output: &str, onnx: &[u8]) -> String {
    manifest_text("detector", output, "{ mode = 'stretch' }", onnx)
}

pub(super) fn detector(output: &str) -> Manifest {
    let manifest = Manifest::parse(&detector_text(output, b"")).unwrap();
    assert_eq!(manifest.input.layout, Layout::Nchw);
    manifest
}

pub(super) fn frame(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Frame {
    let pixels: Vec<u8> = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .flat_map(|(x, y)| pixel(x, y))
        .collect();
    Frame::from_rgb(pixels, width, height, Uptime::ZERO).unwrap()
}

/// Where a whole picture of this size lies in the input of [`detector`].
pub(super) fn placement(width: u32, height: u32) -> Placement {
    let manifest = detector(FAMILIES[0]);
    let mut out = vec![0.0; 3 * 32 * 32];
    Preparer::new(&manifest.input, 32, 32)
        .prepare(&frame(width, height, |_, _| [0; 3]), Rect::WHOLE, Resize::Stretch, &mut out)
        .unwrap()
}

/// A network under construction.
#[derive(Default)]
pub(super) struct Net(GraphProto);

impl Net {
    /// With one input, `images` f32 `[1, 3, side, side]`.
    pub(super) fn new(side: i64) -> Self {
        let dim = |v| tensor_shape_proto::Dimension {
            value: Some(tensor_shape_proto::dimension::Value::DimValue(v)),
            ..Default::default()
        };
        let tensor = type_proto::Tensor {
            elem_type: DataType::Float as i32,
            shape: Some(TensorShapeProto { dim: [1, 3, side, side].map(dim).to_vec() }),
        };
        let kind =
            TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
        let input =
            ValueInfoProto { name: "images".into(), r#type: Some(kind), ..Default::default() };
        Self(GraphProto { name: "tiny".into(), input: vec![input], ..Default::default() })
    }

    pub(super) fn floats(mut self, name: &str, dims: &[i64], values: &[f32]) -> Self {
        self.0.initializer.push(TensorProto {
            name: name.into(),
            dims: dims.to_vec(),
            data_type: DataType::Float as i32,
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ..Default::default()
        });
        self
    }

    /// A constant stored as f16, with the Cast that widens it to f32 as `name`.
    pub(super) fn halves(mut self, name: &str, dims: &[i64], values: &[f32]) -> Self {
        let half = format!("{name}.f16");
        self.0.initializer.push(TensorProto {
            name: half.clone(),
            dims: dims.to_vec(),
            data_type: DataType::Float16 as i32,
            raw_data: values
                .iter()
                .flat_map(|v| half::f16::from_f32(*v).to_bits().to_le_bytes())
                .collect(),
            ..Default::default()
        });
        self.node("Cast", &[&half], name, &[("to", &[1])])
    }

    /// A node; an attribute named with a trailing `*` is a list.
    pub(super) fn node(
        mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attributes: &[(&str, &[i64])],
    ) -> Self {
        let attribute = |(name, values): &(&str, &[i64])| match name.strip_suffix('*') {
            Some(name) => AttributeProto {
                name: name.into(),
                r#type: AttributeType::Ints as i32,
                ints: values.to_vec(),
                ..Default::default()
            },
            None => AttributeProto {
                name: (*name).into(),
                r#type: AttributeType::Int as i32,
                i: values[0],
                ..Default::default()
            },
        };
        self.0.node.push(NodeProto {
            name: output.into(),
            op_type: op.into(),
            input: inputs.iter().map(|i| (*i).into()).collect(),
            output: vec![output.into()],
            attribute: attributes.iter().map(attribute).collect(),
            ..Default::default()
        });
        self
    }

    pub(super) fn onnx(mut self, outputs: &[&str]) -> Vec<u8> {
        let value = |name: &&str| ValueInfoProto { name: (*name).into(), ..Default::default() };
        self.0.output = outputs.iter().map(value).collect();
        let model = ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 13 }],
            graph: Some(self.0),
            ..Default::default()
        };
        model.encode_to_vec()
    }
}

/// A classifier of 32 by 32 pixels: red is dog, blue is cat, green is lawn.
pub(super) fn colour_classifier(scale: f32) -> Vec<u8> {
    Net::new(32)
        .floats("conv.w", &[3, 3, 8, 8], &eye_of_blocks(3, 8))
        .floats("fc.w", &[3, 3], &[scale, 0.0, 0.0, 0.0, 0.0, scale, 0.0, scale, 0.0])
        .floats("fc.b", &[3], &[0.0; 3])
        .node("Conv", &["images", "conv.w"], "map", &[("strides*", &[8, 8])])
        .node("GlobalAveragePool", &["map"], "pool", &[])
        .node("Flatten", &["pool"], "features", &[("axis", &[1])])
        .node("Gemm", &["features", "fc.w", "fc.b"], "logits", &[("transB", &[1])])
        .onnx(&["logits"])
}

/// A `pawlatch` detector of 32 by 32 pixels with one map of stride 8: a red cell is a dog, a blue
/// one a cat, each box its own cell.
pub(super) fn colour_detector() -> Vec<u8> {
    let mut weight = vec![0.0; 7 * 3 * 64];
    let block = |o: usize, i: usize| (o * 3 + i) * 64..(o * 3 + i + 1) * 64;
    weight[block(4, 0)].fill(20.0 / 64.0);
    weight[block(5, 2)].fill(20.0 / 64.0);
    Net::new(32)
        .floats("w", &[7, 3, 8, 8], &weight)
        .floats("b", &[7], &[0.5, 0.5, 0.5, 0.5, -10.0, -10.0, -10.0])
        .node("Conv", &["images", "w", "b"], "p8", &[("strides*", &[8, 8])])
        .onnx(&["p8"])
}

pub(super) const COLOUR_DETECTOR: &str =
    "family = 'pawlatch'\nnames = ['p8']\nstrides = [8]\nnms_iou = 0.5";

/// The mean of each channel over blocks of `side` by `side` pixels, as a convolution.
fn eye_of_blocks(channels: usize, side: usize) -> Vec<f32> {
    let area = side * side;
    let mut weight = vec![0.0; channels * channels * area];
    for c in 0..channels {
        weight[(c * channels + c) * area..][..area].fill(1.0 / area as f32);
    }
    weight
}
