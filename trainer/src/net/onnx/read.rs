//! From ONNX to [`Net`].

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;

use crate::net::fold::BatchNorm;
use crate::net::{Array, Net, Node, Op};

/// The network that `graph` describes.
pub(super) fn net(graph: &pb::GraphProto) -> Result<Net> {
    Reader::new(graph)?.read(graph)
}

/// Attributes of one node, with the node's name in every complaint.
struct Attributes<'a>(&'a pb::NodeProto);

impl Attributes<'_> {
    fn find(&self, name: &str) -> Option<&pb::AttributeProto> {
        self.0.attribute.iter().find(|a| a.name == name)
    }
    fn int(&self, name: &str, default: i64) -> i64 {
        self.find(name).map_or(default, |a| a.i)
    }
    fn float(&self, name: &str, default: f32) -> f32 {
        self.find(name).map_or(default, |a| a.f)
    }
    fn text(&self, name: &str) -> &str {
        self.find(name).and_then(|a| std::str::from_utf8(&a.s).ok()).unwrap_or("")
    }
    fn sizes<const N: usize>(&self, name: &str, default: usize) -> Result<[usize; N]> {
        let Some(a) = self.find(name) else { return Ok([default; N]) };
        let sizes: Vec<usize> = a
            .ints
            .iter()
            .map(|&v| usize::try_from(v).with_context(|| format!("{name} {v} is negative")))
            .collect::<Result<_>>()?;
        sizes.try_into().ok().with_context(|| format!("{name} must have {N} numbers"))
    }
    fn pads(&self) -> Result<[usize; 4]> {
        let auto = self.text("auto_pad");
        ensure!(
            matches!(auto, "" | "NOTSET" | "VALID"),
            "auto_pad {auto} is not supported: write explicit pads"
        );
        self.sizes("pads", 0)
    }
}

struct Reader {
    net: Net,
    /// Whole-number constants: shapes, axes.
    ints: BTreeMap<String, Vec<i64>>,
}

impl Reader {
    fn new(graph: &pb::GraphProto) -> Result<Self> {
        let mut reader = Self { net: Net::default(), ints: BTreeMap::new() };
        for tensor in &graph.initializer {
            reader.constant(&tensor.name, tensor)?;
        }
        Ok(reader)
    }

    fn read(mut self, graph: &pb::GraphProto) -> Result<Net> {
        let mut inputs = graph
            .input
            .iter()
            .filter(|i| !self.net.params.contains_key(&i.name) && !self.ints.contains_key(&i.name));
        let input = inputs.next().context("the graph has no input")?;
        if let Some(second) = inputs.next() {
            bail!("one input is supported; the graph also has '{}'", second.name);
        }
        self.net.input = input.name.clone();
        self.net.input_shape = input_shape(input);
        self.net.outputs = graph.output.iter().map(|o| o.name.clone()).collect();
        for (i, node) in graph.node.iter().enumerate() {
            let name = match node.name.as_str() {
                "" => format!("{}_{i}", node.op_type.to_lowercase()),
                name => name.to_owned(),
            };
            self.node(&name, node).with_context(|| format!("node '{name}' ({})", node.op_type))?;
        }
        self.net.prune();
        self.net.check()?;
        Ok(self.net)
    }

    fn constant(&mut self, name: &str, tensor: &pb::TensorProto) -> Result<()> {
        match DataType::try_from(tensor.data_type) {
            Ok(DataType::Int64 | DataType::Int32) => {
                self.ints.insert(name.into(), whole_numbers(tensor));
            }
            Ok(DataType::Float | DataType::Float16) => {
                let array = numbers(tensor).with_context(|| format!("initializer '{name}'"))?;
                self.net.params.insert(name.into(), array);
            }
            other => {
                bail!("initializer '{name}' has type {other:?}; f32, f16 and i64 are supported")
            }
        }
        Ok(())
    }

    /// The whole numbers in input `i`, or in attribute `attribute` as older opsets have it.
    fn list(&self, node: &pb::NodeProto, i: usize, attribute: &str) -> Option<Vec<i64>> {
        let constant = node.input.get(i).and_then(|n| self.ints.get(n)).cloned();
        constant.or_else(|| Attributes(node).find(attribute).map(|a| a.ints.clone()))
    }

    fn scalar(&self, node: &pb::NodeProto, i: usize, attribute: &str, default: f32) -> Result<f32> {
        match node.input.get(i).filter(|n| !n.is_empty()) {
            Some(name) => {
                let array = self.net.param(name)?;
                array.data.first().copied().with_context(|| format!("'{name}' is empty"))
            }
            None => Ok(Attributes(node).float(attribute, default)),
        }
    }

    fn rank_axis(&self, axis: i64, rank: usize) -> Result<usize> {
        let wrapped = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(wrapped).with_context(|| format!("axis {axis}"))
    }

    fn knows(&self, name: &str) -> bool {
        name == self.net.input
            || self.net.params.contains_key(name)
            || self.ints.contains_key(name)
            || self.net.maker(name).is_some()
    }

    /// The rank of a value: enough to turn a negative axis round. Images unless known otherwise.
    fn rank(&self, value: &str) -> usize {
        match self.net.maker(value).map(|(_, n)| &n.op) {
            Some(Op::Flatten | Op::Gemm) => 2,
            Some(Op::Reshape { shape }) => shape.len(),
            Some(Op::Transpose { perm }) => perm.len(),
            Some(Op::Conv { .. }) | None => 4,
            Some(_) => {
                let input = self.net.maker(value).and_then(|(_, n)| n.inputs.first());
                input.map_or(4, |i| self.rank(i))
            }
        }
    }

    fn node(&mut self, name: &str, node: &pb::NodeProto) -> Result<()> {
        let output = node.output.first().context("has no output")?.clone();
        // Order and uniqueness hold from here on, so that no walk through the graph can circle.
        for input in node.input.iter().filter(|i| !i.is_empty()) {
            ensure!(self.knows(input), "uses '{input}', which nothing before it makes");
        }
        ensure!(!self.knows(&output), "makes '{output}', which exists already");
        let a = Attributes(node);
        let x = node.input.first().cloned().unwrap_or_default();
        let op = match node.op_type.as_str() {
            "Constant" => {
                let tensor = a.find("value").and_then(|v| v.t.as_ref());
                return self
                    .constant(&output, tensor.context("only tensor constants are supported")?);
            }
            "Identity" | "Dropout" | "Cast" if self.net.params.contains_key(&x) => {
                let array = self.net.param(&x)?.clone();
                self.net.params.insert(output, array);
                return Ok(());
            }
            "BatchNormalization" => return self.batch_norm(name, node, output),
            "Conv" => Op::Conv {
                stride: a.sizes("strides", 1)?,
                pads: a.pads()?,
                dilation: a.sizes("dilations", 1)?,
                groups: usize::try_from(a.int("group", 1))?,
            },
            "Gemm" => return self.gemm(name, node, output),
            "MatMul" => return self.matmul(name, node, output),
            "Slice" => return self.slices(name, node, output),
            "ReduceMean" => return self.mean(name, node, output),
            _ => self.simple(node)?,
        };
        // Inputs that were consumed as constants above are attributes here.
        let arity = match &op {
            Op::Conv { .. } => 3,
            Op::Add | Op::Sub | Op::Mul | Op::Div => 2,
            Op::Concat { .. } => usize::MAX,
            _ => 1,
        };
        let inputs = node.input.iter().take(arity).filter(|i| !i.is_empty()).cloned().collect();
        self.net.nodes.push(Node { name: name.into(), op, inputs, output });
        Ok(())
    }

    /// Operations whose extra inputs and attributes all become fields.
    fn simple(&self, node: &pb::NodeProto) -> Result<Op> {
        let a = Attributes(node);
        let x = node.input.first().map_or("", String::as_str);
        Ok(match node.op_type.as_str() {
            "Relu" => Op::Relu,
            "LeakyRelu" => Op::LeakyRelu { slope: a.float("alpha", 0.01) },
            "Clip" => Op::Clip {
                low: self.scalar(node, 1, "min", f32::MIN)?,
                high: self.scalar(node, 2, "max", f32::MAX)?,
            },
            "Sigmoid" => Op::Sigmoid,
            "Tanh" => Op::Tanh,
            "HardSwish" => Op::HardSwish,
            "Softmax" => Op::Softmax { axis: self.rank_axis(a.int("axis", -1), self.rank(x))? },
            "Add" => Op::Add,
            "Sub" => Op::Sub,
            "Mul" => Op::Mul,
            "Div" => Op::Div,
            "MaxPool" | "AveragePool" => {
                let ceil = a.int("ceil_mode", 0) == 1;
                let (kernel, stride, pads) =
                    (a.sizes("kernel_shape", 1)?, a.sizes("strides", 1)?, a.pads()?);
                match node.op_type.as_str() {
                    "MaxPool" => Op::MaxPool { kernel, stride, pads, ceil },
                    _ if ceil => bail!("ceil_mode is not supported"),
                    _ => Op::AveragePool {
                        kernel,
                        stride,
                        pads,
                        count_pads: a.int("count_include_pad", 0) == 1,
                    },
                }
            }
            "GlobalAveragePool" => Op::GlobalAveragePool,
            "LRN" => Op::Lrn {
                size: usize::try_from(a.int("size", 1))?,
                alpha: a.float("alpha", 1e-4),
                beta: a.float("beta", 0.75),
                bias: a.float("bias", 1.0),
            },
            "Flatten" => {
                ensure!(a.int("axis", 1) == 1, "only axis 1 is supported");
                Op::Flatten
            }
            "Reshape" => {
                let shape = self.list(node, 1, "shape").context("the shape must be a constant")?;
                match shape.as_slice() {
                    [-1..=1, n] if *n == -1 || shape[0] != -1 => Op::Flatten,
                    _ => Op::Reshape { shape },
                }
            }
            "Transpose" => Op::Transpose {
                perm: self
                    .list(node, usize::MAX, "perm")
                    .context("needs a permutation")?
                    .into_iter()
                    .map(|p| Ok(usize::try_from(p)?))
                    .collect::<Result<_>>()?,
            },
            "Concat" => Op::Concat { axis: self.rank_axis(a.int("axis", 1), self.rank(x))? },
            "Resize" | "Upsample" => self.upsample(node)?,
            "Identity" => Op::Identity,
            "Dropout" => Op::Dropout { rate: self.scalar(node, 1, "ratio", 0.5)? },
            other => bail!(
                "operation {other} is outside the vocabulary of the trainer; see docs/training.md"
            ),
        })
    }

    fn upsample(&self, node: &pb::NodeProto) -> Result<Op> {
        let a = Attributes(node);
        ensure!(
            matches!(a.text("mode"), "" | "nearest"),
            "only nearest-neighbour resizing is supported"
        );
        let scales = node
            .input
            .iter()
            .skip(1)
            .filter_map(|n| self.net.params.get(n))
            .find(|p| p.data.len() == 4);
        let scales = scales.context("the scales must be four constants")?;
        match scales.data.as_slice() {
            [1.0, 1.0, h, w] if h == w && h.fract() == 0.0 && *h >= 1.0 => {
                Ok(Op::Upsample { factor: *h as usize })
            }
            other => {
                bail!("only whole enlargements of rows and columns are supported, not {other:?}")
            }
        }
    }

    fn gemm(&mut self, name: &str, node: &pb::NodeProto, output: String) -> Result<()> {
        let a = Attributes(node);
        ensure!(
            a.float("alpha", 1.0) == 1.0 && a.float("beta", 1.0) == 1.0 && a.int("transA", 0) == 0,
            "only y = x w + b is supported"
        );
        let weight = node.input.get(1).context("has no weights")?;
        if a.int("transB", 0) == 0 {
            let turned = transposed(self.net.param(weight)?)?;
            self.net.params.insert(weight.clone(), turned);
        }
        let inputs = node.input.iter().filter(|i| !i.is_empty()).cloned().collect();
        self.net.nodes.push(Node { name: name.into(), op: Op::Gemm, inputs, output });
        Ok(())
    }

    fn matmul(&mut self, name: &str, node: &pb::NodeProto, output: String) -> Result<()> {
        let [x, w] = node.input.as_slice() else { bail!("needs two inputs") };
        let weight = self.net.params.get(w).context("the right side must be a constant")?;
        let turned = transposed(weight)?;
        self.net.params.insert(w.clone(), turned);
        let inputs = vec![x.clone(), w.clone()];
        self.net.nodes.push(Node { name: name.into(), op: Op::Gemm, inputs, output });
        Ok(())
    }

    /// One node per axis: `Slice` may cut several at once.
    fn slices(&mut self, name: &str, node: &pb::NodeProto, output: String) -> Result<()> {
        let mut value = node.input.first().context("has no input")?.clone();
        let starts = self.list(node, 1, "starts").context("starts must be constants")?;
        let ends = self.list(node, 2, "ends").context("ends must be constants")?;
        let axes = self.list(node, 3, "axes").unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = self.list(node, 4, "steps").unwrap_or_else(|| vec![1; starts.len()]);
        ensure!(
            starts.len() == ends.len() && starts.len() == axes.len(),
            "starts, ends and axes differ"
        );
        for i in 0..starts.len() {
            ensure!(
                starts[i] >= 0 && ends[i] > starts[i] && steps[i] > 0,
                "only forward slices are supported"
            );
            let last = i + 1 == starts.len();
            let op = Op::Slice {
                axis: self.rank_axis(axes[i], self.rank(&value))?,
                start: usize::try_from(starts[i])?,
                end: usize::try_from(ends[i])?,
                step: usize::try_from(steps[i])?,
            };
            let (part, made) = if last {
                (name.to_owned(), output.clone())
            } else {
                (format!("{name}.{i}"), format!("{output}.{i}"))
            };
            self.net.nodes.push(Node { name: part, op, inputs: vec![value], output: made.clone() });
            value = made;
        }
        Ok(())
    }

    fn mean(&mut self, name: &str, node: &pb::NodeProto, output: String) -> Result<()> {
        let axes = self.list(node, 1, "axes").unwrap_or_default();
        let axes = axes.into_iter().map(|axis| self.rank_axis(axis, 4));
        let mut axes = axes.collect::<Result<Vec<_>>>()?;
        axes.sort_unstable();
        ensure!(axes == [2, 3], "only a mean over rows and columns is supported");
        let mut x = node.input.first().cloned().unwrap_or_default();
        let mut op = Op::GlobalAveragePool;
        if Attributes(node).int("keepdims", 1) == 0 {
            x = self.net.push(&format!("{output}.mean"), op, &[&x]);
            op = Op::Flatten;
        }
        self.net.nodes.push(Node { name: name.into(), op, inputs: vec![x], output });
        Ok(())
    }

    /// Folds into the convolution before it where that has no other user; otherwise becomes a
    /// depthwise 1x1 convolution, which is the same function.
    fn batch_norm(&mut self, name: &str, node: &pb::NodeProto, output: String) -> Result<()> {
        let stat = |i: usize| -> Result<&Array> {
            self.net.param(node.input.get(i).context("needs five inputs")?)
        };
        let bn = BatchNorm {
            gamma: &stat(1)?.data,
            beta: &stat(2)?.data,
            mean: &stat(3)?.data,
            variance: &stat(4)?.data,
            epsilon: Attributes(node).float("epsilon", 1e-5),
        };
        let x = node.input.first().context("has no input")?.clone();
        let channels = bn.gamma.len();
        let before =
            self.net.nodes.iter().rposition(|n| n.output == x && matches!(n.op, Op::Conv { .. }));
        if let Some(at) = before {
            let conv = &self.net.nodes[at];
            let weight =
                self.net.param(conv.inputs.get(1).context("the convolution has no weights")?)?;
            let bias = conv.inputs.get(2).map(|b| self.net.param(b)).transpose()?;
            let (w, b) = bn.fold(weight, bias)?;
            let (wn, bn) = (format!("{name}.folded.weight"), format!("{name}.folded.bias"));
            self.net.params.extend([(wn.clone(), w), (bn.clone(), b)]);
            let mut folded = conv.clone();
            folded.inputs = vec![conv.inputs[0].clone(), wn, bn];
            folded.output = output;
            // If something else still reads the plain convolution, both stay.
            folded.name = format!("{}.folded", conv.name);
            self.net.nodes.push(folded);
            return Ok(());
        }
        let (w, b) =
            bn.fold(&Array { shape: vec![channels, 1, 1, 1], data: vec![1.0; channels] }, None)?;
        let op = Op::Conv { stride: [1; 2], pads: [0; 4], dilation: [1; 2], groups: channels };
        self.net.push_weighted(name, op, &x, w, Some(b));
        if let Some(node) = self.net.nodes.last_mut() {
            node.output = output;
        }
        Ok(())
    }
}

fn transposed(array: &Array) -> Result<Array> {
    let [rows, columns] = array.shape[..] else { bail!("weights {:?} are no matrix", array.shape) };
    let data = (0..rows * columns).map(|i| array.data[i % rows * columns + i / rows]).collect();
    Array::new([columns, rows], data)
}

fn input_shape(input: &pb::ValueInfoProto) -> [Option<usize>; 4] {
    use pb::tensor_shape_proto::dimension::Value::DimValue;
    let Some(pb::type_proto::Value::TensorType(tensor)) =
        input.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        return [None; 4];
    };
    let dims = tensor.shape.iter().flat_map(|s| &s.dim);
    let mut shape = [None; 4];
    for (slot, dim) in shape.iter_mut().zip(dims) {
        *slot = match dim.value {
            Some(DimValue(v)) => usize::try_from(v).ok().filter(|&v| v > 0),
            _ => None,
        };
    }
    shape[0] = None;
    shape
}

fn whole_numbers(tensor: &pb::TensorProto) -> Vec<i64> {
    if tensor.data_type == DataType::Int32 as i32 {
        if tensor.raw_data.is_empty() {
            return tensor.int32_data.iter().map(|&v| v.into()).collect();
        }
        return tensor
            .raw_data
            .as_chunks()
            .0
            .iter()
            .map(|c| i32::from_le_bytes(*c).into())
            .collect();
    }
    if tensor.raw_data.is_empty() {
        return tensor.int64_data.clone();
    }
    tensor.raw_data.as_chunks().0.iter().map(|c| i64::from_le_bytes(*c)).collect()
}

fn numbers(tensor: &pb::TensorProto) -> Result<Array> {
    let shape: Vec<usize> =
        tensor.dims.iter().map(|&d| Ok(usize::try_from(d)?)).collect::<Result<_>>()?;
    let raw = &tensor.raw_data;
    let data = match (tensor.data_type == DataType::Float16 as i32, raw.is_empty()) {
        (true, true) => {
            tensor.int32_data.iter().map(|&v| f16::from_bits(v as u16).to_f32()).collect()
        }
        (true, false) => {
            raw.as_chunks().0.iter().map(|c| f16::from_le_bytes(*c).to_f32()).collect()
        }
        (false, true) => tensor.float_data.clone(),
        (false, false) => raw.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect(),
    };
    Array::new(shape, data)
}
