//! The whole network from planes (NCHW) into [blocks](super::blocks) of channels.
//!
//! One pass from inputs to outputs. Each value is held in planes, in blocks or both, and is
//! converted only where an operator asks for the form that is missing. A value in blocks is an
//! array of channels, each of them a lane of some tensor; concatenating, splitting, reshaping and
//! moving axes of channels only rearranges that array. A 1x1 convolution reads its channels from
//! wherever they are; whoever needs them in order gets them gathered, once.

use std::collections::BTreeMap;

use ndarray::{Array1, ArrayD, Axis, IxDyn};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::{Slice, TypedConcat};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::nn::resize::{NearestUpsample, Resize};
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};
use tract_onnx::tract_core::ops::source::TypedSource;

use super::blocks::runs;
use super::byte_ops::{ByteKernel, ByteOp};
use super::bytes::{Coding, ToBytes};
use super::coded::Coded;
use super::conv::{Channel, Conv};
use super::depthwise::Depthwise;
use super::dot::Dot;
use super::geometry::{Geometry, blocks};
use super::map;
use super::ops::{Fast, FromPlanes, Gather, ToPixels, ToPlanes};
use super::rules::{on_planes, post_of};
use super::simd::{Isa, LANES};
use super::window::{Reduction, Window};

/// `model` with every window and what lies between windows in blocks, and with what `coded` says in
/// bytes.
///
/// # Errors
/// If tract refuses a node it had accepted before.
pub fn into_blocks(isa: Isa, model: &TypedModel, coded: Option<Coded>) -> TractResult<TypedModel> {
    let mut target = TypedModel { symbols: model.symbols.clone(), ..TypedModel::default() };
    target.properties.clone_from(&model.properties);
    let mut layout = Layout { isa, model, coded, target, values: BTreeMap::new() };
    for id in model.eval_order()? {
        let node = model.node(id);
        layout.node(node).with_context(|| format!("laying out {node}"))?;
    }
    let inputs: TVec<_> =
        model.input_outlets()?.iter().map(|i| layout.planes(*i)).collect::<TractResult<_>>()?;
    let outputs: TVec<_> =
        model.output_outlets()?.iter().map(|o| layout.planes(*o)).collect::<TractResult<_>>()?;
    let mut target = layout.target;
    for (old, new) in model.output_outlets()?.iter().zip(&outputs) {
        if let Some(label) = model.outlet_label(*old) {
            target.set_outlet_label(*new, label.to_string())?;
        }
    }
    target.set_input_outlets(&inputs)?;
    target.select_output_outlets(&outputs)?;
    Ok(target)
}

struct Layout<'a> {
    isa: Isa,
    /// The network in planes.
    model: &'a TypedModel,
    /// What works on bytes.
    coded: Option<Coded<'a>>,
    /// The network being built.
    target: TypedModel,
    /// What has become of each outlet of `model`.
    values: BTreeMap<OutletId, Value>,
}

/// An outlet of the old network in the new one, in each form it already has.
#[derive(Clone, Default)]
struct Value {
    planes: Option<OutletId>,
    blocks: Option<Channels>,
    /// One tensor of blocks of bytes.
    bytes: Option<OutletId>,
    /// Pictures of equal channels, `[1, channels, pixels]` together: the pixels of each in turn.
    pixels: Option<Vec<Channels>>,
}

impl Value {
    fn in_planes(outlet: OutletId) -> Self {
        Self { planes: Some(outlet), ..Self::default() }
    }

    fn in_blocks(channels: Channels) -> Self {
        Self { blocks: Some(channels), ..Self::default() }
    }

    fn in_pixels(pictures: Vec<Channels>) -> Self {
        Self { pixels: Some(pictures), ..Self::default() }
    }
}

/// `[1, ..., height, width]`, the axes between being an array of channels in blocks.
#[derive(Clone)]
struct Channels {
    /// Outlet of a tensor of blocks in the new network, and which of its channels.
    lanes: ArrayD<(OutletId, usize)>,
    size: [usize; 2],
}

impl Channels {
    /// All channels of one tensor of blocks.
    fn of(outlet: OutletId, channels: usize, size: [usize; 2]) -> Self {
        let lanes: Array1<_> = (0..channels).map(|c| (outlet, c)).collect();
        Self { lanes: lanes.into_dyn(), size }
    }

    /// The tensor of which these are all channels in order, if there is one.
    fn whole(&self, target: &TypedModel) -> Option<OutletId> {
        let (first, _) = *self.lanes.iter().next()?;
        let in_order = self.lanes.iter().enumerate().all(|(i, lane)| *lane == (first, i));
        let all =
            target.outlet_fact(first).ok()?.shape.as_concrete()?[1] == blocks(self.lanes.len());
        (in_order && all).then_some(first)
    }
}

/// The distinct tensors an operator reads, in order of appearance.
#[derive(Default)]
struct Tensors(Vec<OutletId>);

impl Tensors {
    /// Where each of `channels` lies in them; new ones are added.
    fn of(&mut self, channels: &Channels) -> Vec<Channel> {
        let place = |&(outlet, channel): &(OutletId, usize)| {
            let known = self.0.iter().position(|t| *t == outlet);
            let tensor = known.unwrap_or_else(|| {
                self.0.push(outlet);
                self.0.len() - 1
            });
            Channel { tensor, channel }
        };
        channels.lanes.iter().map(place).collect()
    }
}

impl Layout<'_> {
    fn node(&mut self, node: &TypedNode) -> TractResult<()> {
        let done = if let Some(window) = node.op_as::<Window>() {
            Some(self.window(node, window)?)
        } else if let Some(axis) = node.op_as::<AxisOp>() {
            match self.pixels(node, axis)? {
                None => self.axis(node, axis),
                done => done,
            }
        } else if let Some(slice) = node.op_as::<Slice>() {
            self.slice(node, slice)
        } else if let Some(concat) = node.op_as::<TypedConcat>() {
            self.concat(node, concat)?
        } else if node.op_is::<ElementWiseOp>() || node.op_is::<TypedBinOp>() {
            self.map(node)?
        } else if node.op_is::<Resize>() || node.op_is::<NearestUpsample>() {
            self.resize(node)?
        } else if let Some(reduce) = node.op_as::<Reduce>() {
            self.reduce(node, reduce)?
        } else {
            None
        };
        match done {
            Some(value) => {
                self.values.insert(node.id.into(), value);
                Ok(())
            }
            None => self.in_planes(node),
        }
    }

    /// Anything else stays in planes, most of it as it is.
    fn in_planes(&mut self, node: &TypedNode) -> TractResult<()> {
        let inputs: TVec<OutletId> =
            node.inputs.iter().map(|i| self.planes(*i)).collect::<TractResult<_>>()?;
        let outlets = if node.op_is::<TypedSource>() {
            tvec!(self.target.add_source(&node.name, node.outputs[0].fact.clone())?)
        } else if let Some(fast) = on_planes(self.isa, self.model, node) {
            self.target.wire_node(&node.name, fast, &inputs)?
        } else {
            self.target.wire_node(&node.name, node.op.clone(), &inputs)?
        };
        for (slot, outlet) in outlets.into_iter().enumerate() {
            let value = Value::in_planes(outlet);
            self.values.insert(OutletId::new(node.id, slot), value);
        }
        Ok(())
    }

    fn window(&mut self, node: &TypedNode, window: &Window) -> TractResult<Value> {
        let on_bytes = self.coded.as_ref().and_then(|c| Some((c.dot, c.kernel(node)?)));
        if let Some((dot, (from, kernel))) = on_bytes {
            return self.byte_window(node, window, dot, from, kernel);
        }
        let (g, posts) = (window.geometry.clone(), window.posts.clone());
        let mut inputs = vec![];
        let kernel = match &window.reduction {
            Reduction::Max => {
                inputs.push(self.blocks(node.inputs[0])?);
                Fast::new(self.isa, Depthwise::max_pooling(g.clone(), posts), &shape(&g))
            }
            Reduction::Weigh { weights, bias } if g.is_depthwise() => {
                inputs.push(self.blocks(node.inputs[0])?);
                let op = Depthwise::convolution(g.clone(), weights, bias, posts);
                Fast::new(self.isa, op, &shape(&g))
            }
            Reduction::Weigh { weights, bias } => {
                let value = self.value(node.inputs[0])?;
                let op = match value.blocks {
                    Some(channels) if g.is_pointwise() => {
                        let mut tensors = Tensors::default();
                        let channels = tensors.of(&channels);
                        inputs.extend(tensors.0);
                        Conv::pointwise(self.isa, g.clone(), &channels, weights, bias, posts)
                    }
                    Some(_) => {
                        inputs.push(self.blocks(node.inputs[0])?);
                        Conv::windowed(self.isa, g.clone(), false, weights, bias, posts)
                    }
                    None => {
                        inputs.push(self.planes(node.inputs[0])?);
                        Conv::windowed(self.isa, g.clone(), true, weights, bias, posts)
                    }
                };
                Fast::new(self.isa, op, &shape(&g))
            }
        };
        if let Some(operand) = node.inputs.get(1) {
            inputs.push(self.blocks(*operand)?);
        }
        self.wire(&node.name, kernel, &inputs, g.cout, g.output)
    }

    fn byte_window(
        &mut self,
        node: &TypedNode,
        window: &Window,
        dot: Dot,
        from: Coding,
        kernel: ByteKernel,
    ) -> TractResult<Value> {
        let g = &window.geometry;
        let mut inputs = vec![self.bytes(node.inputs[0], dot, from)?];
        if let Some(operand) = node.inputs.get(1) {
            inputs.push(self.blocks(*operand)?);
        }
        let gives_bytes = kernel.gives_bytes();
        let op = ByteOp::new(dot, kernel, &shape(g));
        let outlet = self.target.wire_node(&node.name, op, &inputs)?[0];
        Ok(match gives_bytes {
            true => Value { bytes: Some(outlet), ..Value::default() },
            false => Value::in_blocks(Channels::of(outlet, g.cout, g.output)),
        })
    }

    /// Heads of detectors: pictures flattened, stacked and turned so that a pixel's channels lie
    /// together, which in blocks they nearly do.
    fn pixels(&mut self, node: &TypedNode, op: &AxisOp) -> TractResult<Option<Value>> {
        let Some(value) = self.values.get(&node.inputs[0]) else { return Ok(None) };
        match (op, &value.blocks, &value.pixels) {
            (AxisOp::Reshape(2, from, to), Some(picture), _)
                if from.len() == 2 && to.len() == 1 && picture.lanes.ndim() == 1 =>
            {
                Ok(Some(Value::in_pixels(vec![picture.clone()])))
            }
            (AxisOp::Move(1, 2) | AxisOp::Move(2, 1), _, Some(pictures)) => {
                let mut tensors = Tensors::default();
                let mut parts = Vec::new();
                for picture in pictures {
                    let pixels = picture.size[0] * picture.size[1];
                    parts.push((pixels, runs(&tensors.of(picture), pixels)));
                }
                let shape = node.outputs[0].fact.shape.as_concrete();
                let shape = shape.context("a size is not fixed")?;
                let kernel = ToPixels { channels: shape[2], pictures: parts };
                let op = Fast::new(self.isa, kernel, shape);
                let outlet = self.target.wire_node(&node.name, op, &tensors.0)?[0];
                Ok(Some(Value::in_planes(outlet)))
            }
            _ => Ok(None),
        }
    }

    /// Reshaping and moving axes of channels costs nothing.
    fn axis(&mut self, node: &TypedNode, op: &AxisOp) -> Option<Value> {
        let Channels { lanes, size } = self.values.get(&node.inputs[0])?.blocks.clone()?;
        let rank = lanes.ndim();
        let lanes = match op {
            AxisOp::Add(axis) if (1..=rank + 1).contains(axis) => lanes.insert_axis(Axis(axis - 1)),
            AxisOp::Rm(axis) if (1..=rank).contains(axis) && rank > 1 => {
                lanes.index_axis_move(Axis(axis - 1), 0)
            }
            AxisOp::Move(from, to) if (1..=rank).contains(from) && (1..=rank).contains(to) => {
                let mut order: Vec<usize> = (0..rank).collect();
                let axis = order.remove(from - 1);
                order.insert(to - 1, axis);
                lanes.permuted_axes(order)
            }
            AxisOp::Reshape(at, from, to) if *at >= 1 && at - 1 + from.len() <= rank => {
                let to: Vec<usize> =
                    to.iter().map(TDim::to_usize).collect::<Result<_, _>>().ok()?;
                let mut dims = lanes.shape().to_vec();
                dims.splice(at - 1..at - 1 + from.len(), to);
                ArrayD::from_shape_vec(IxDyn(&dims), lanes.iter().copied().collect()).ok()?
            }
            _ => return None,
        };
        Some(Value::in_blocks(Channels { lanes, size }))
    }

    fn slice(&mut self, node: &TypedNode, op: &Slice) -> Option<Value> {
        let Channels { lanes, size } = self.values.get(&node.inputs[0])?.blocks.clone()?;
        let axis = op.axis.checked_sub(1).filter(|a| *a < lanes.ndim())?;
        let (start, end) = (op.start.to_usize().ok()?, op.end.to_usize().ok()?);
        let lanes = lanes.slice_axis(Axis(axis), (start..end).into()).to_owned();
        Some(Value::in_blocks(Channels { lanes, size }))
    }

    /// Of channels: free, if at least one part is in blocks already.
    fn concat(&mut self, node: &TypedNode, op: &TypedConcat) -> TractResult<Option<Value>> {
        let pixels = |i: &OutletId| self.values.get(i)?.pixels.clone();
        let pixels: Option<Vec<_>> = node.inputs.iter().map(pixels).collect();
        if let (2, Some(pixels)) = (op.axis, pixels) {
            return Ok(Some(Value::in_pixels(pixels.concat())));
        }
        let in_blocks = |i: &OutletId| self.values.get(i).is_some_and(|v| v.blocks.is_some());
        let pictures = node.inputs.iter().all(|i| self.is_picture(*i));
        if op.axis != 1 || !pictures || !node.inputs.iter().any(in_blocks) {
            return Ok(None);
        }
        let mut lanes = Vec::new();
        let mut size = [0, 0];
        for input in &node.inputs {
            let channels = self.channels(*input)?;
            size = channels.size;
            lanes.extend(channels.lanes.iter().copied());
        }
        let lanes = Array1::from_vec(lanes).into_dyn();
        Ok(Some(Value::in_blocks(Channels { lanes, size })))
    }

    /// Element-wise steps on a picture that is in blocks.
    fn map(&mut self, node: &TypedNode) -> TractResult<Option<Value>> {
        let in_blocks = |i: &&OutletId| self.values.get(i).is_some_and(|v| v.blocks.is_some());
        let Some(&x) = node.inputs.iter().find(in_blocks) else { return Ok(None) };
        let Some((post, operand)) = post_of(self.model, node, x) else { return Ok(None) };
        if !self.is_picture(x) {
            return Ok(None);
        }
        let mut inputs = vec![self.blocks(x)?];
        if let Some(operand) = operand {
            inputs.push(self.blocks(operand)?);
        }
        let (channels, size) = picture(&node.outputs[0].fact)?;
        let op = Fast::new(self.isa, map::Map(vec![post]), &block_shape(channels, size));
        self.wire(&node.name, op, &inputs, channels, size).map(Some)
    }

    fn resize(&mut self, node: &TypedNode) -> TractResult<Option<Value>> {
        let x = node.inputs[0];
        let is_blocked = self.values.get(&x).is_some_and(|v| v.blocks.is_some());
        let Some(resize) = super::resize::recognise(self.model, node) else { return Ok(None) };
        if !is_blocked || !self.is_picture(x) {
            return Ok(None);
        }
        let (channels, size) = picture(&node.outputs[0].fact)?;
        let input = self.blocks(x)?;
        let op = Fast::new(self.isa, resize, &block_shape(channels, size));
        self.wire(&node.name, op, &[input], channels, size).map(Some)
    }

    /// The sum over a whole picture.
    fn reduce(&mut self, node: &TypedNode, op: &Reduce) -> TractResult<Option<Value>> {
        let x = node.inputs[0];
        let is_blocked = self.values.get(&x).is_some_and(|v| v.blocks.is_some());
        if op.reducer != Reducer::Sum || *op.axes != [2, 3] || !is_blocked || !self.is_picture(x) {
            return Ok(None);
        }
        let (channels, [height, width]) = picture(self.model.outlet_fact(x)?)?;
        let input = self.blocks(x)?;
        let sum = map::GlobalSum { channels, pixels: height * width };
        let op = Fast::new(self.isa, sum, &[1, channels, 1, 1]);
        let outlet = self.target.wire_node(&node.name, op, &[input])?[0];
        Ok(Some(Value::in_planes(outlet)))
    }

    /// Wires a kernel whose output is a whole tensor of blocks.
    fn wire(
        &mut self,
        name: &str,
        op: Fast,
        inputs: &[OutletId],
        channels: usize,
        size: [usize; 2],
    ) -> TractResult<Value> {
        let outlet = self.target.wire_node(name, op, inputs)?[0];
        Ok(Value::in_blocks(Channels::of(outlet, channels, size)))
    }

    fn value(&self, outlet: OutletId) -> TractResult<Value> {
        self.values.get(&outlet).cloned().with_context(|| format!("{outlet:?} comes too late"))
    }

    /// Whether `outlet` is one `f32` picture of fixed size in NCHW.
    fn is_picture(&self, outlet: OutletId) -> bool {
        self.model.outlet_fact(outlet).is_ok_and(|f| picture(f).is_ok())
    }

    /// `outlet` in planes.
    fn planes(&mut self, outlet: OutletId) -> TractResult<OutletId> {
        let value = self.value(outlet)?;
        if let Some(planes) = value.planes {
            return Ok(planes);
        }
        let fact = self.model.outlet_fact(outlet)?;
        let mut shape: TVec<usize> =
            fact.shape.as_concrete().context("a size is not fixed")?.into();
        let name = self.name(outlet, "planes");
        let planes = match value.pixels {
            Some(pictures) => {
                let mut parts: TVec<OutletId> = tvec!();
                for (i, picture) in pictures.iter().enumerate() {
                    let name = format!("{name}.{i}");
                    shape[2] = picture.size[0] * picture.size[1];
                    let tensor = self.gather(&name, picture)?;
                    let op = Fast::new(self.isa, ToPlanes { channels: shape[1] }, &shape);
                    parts.push(self.target.wire_node(name, op, &[tensor])?[0]);
                }
                self.target.wire_node(name, TypedConcat { axis: 2 }, &parts)?[0]
            }
            None => {
                let input = self.blocks(outlet)?;
                let channels = shape[1..shape.len() - 2].iter().product();
                let op = Fast::new(self.isa, ToPlanes { channels }, &shape);
                self.target.wire_node(name, op, &[input])?[0]
            }
        };
        self.values.entry(outlet).or_default().planes = Some(planes);
        Ok(planes)
    }

    /// `outlet` as channels in blocks, wherever they lie.
    fn channels(&mut self, outlet: OutletId) -> TractResult<Channels> {
        let value = self.value(outlet)?;
        if let Some(channels) = value.blocks {
            return Ok(channels);
        }
        let (channels, size) = picture(self.model.outlet_fact(outlet)?)?;
        let input = self.planes(outlet)?;
        let op = Fast::new(self.isa, FromPlanes { channels }, &block_shape(channels, size));
        let name = self.name(outlet, "blocks");
        let blocks = self.wire(&name, op, &[input], channels, size)?.blocks;
        let blocks = blocks.context("a kernel gives blocks")?;
        self.values.entry(outlet).or_default().blocks = Some(blocks.clone());
        Ok(blocks)
    }

    /// `outlet` as one tensor of blocks, its channels in order.
    fn blocks(&mut self, outlet: OutletId) -> TractResult<OutletId> {
        let channels = self.channels(outlet)?;
        let tensor = self.gather(&self.name(outlet, "blocks"), &channels)?;
        let mut gathered = Channels::of(tensor, channels.lanes.len(), channels.size);
        gathered.lanes = gathered.lanes.into_shape_with_order(channels.lanes.raw_dim())?;
        self.values.entry(outlet).or_default().blocks = Some(gathered);
        Ok(tensor)
    }

    /// `outlet` as one tensor of blocks of bytes, its channels in order.
    fn bytes(&mut self, outlet: OutletId, dot: Dot, coding: Coding) -> TractResult<OutletId> {
        if let Some(bytes) = self.value(outlet)?.bytes {
            return Ok(bytes);
        }
        let (channels, size) = picture(self.model.outlet_fact(outlet)?)?;
        let input = self.blocks(outlet)?;
        let kernel = ByteKernel::ToBytes(ToBytes(coding));
        let op = ByteOp::new(dot, kernel, &block_shape(channels, size));
        let bytes = self.target.wire_node(self.name(outlet, "bytes"), op, &[input])?[0];
        self.values.entry(outlet).or_default().bytes = Some(bytes);
        Ok(bytes)
    }

    /// `channels` as one tensor of blocks, in order: itself, if it is one already.
    fn gather(&mut self, name: &str, channels: &Channels) -> TractResult<OutletId> {
        if let Some(tensor) = channels.whole(&self.target) {
            return Ok(tensor);
        }
        let mut tensors = Tensors::default();
        let (list, size) = (tensors.of(channels), channels.size);
        let shape = block_shape(list.len(), size);
        let gather = Gather { channels: list, pixels: size[0] * size[1] };
        let op = Fast::new(self.isa, gather, &shape);
        Ok(self.target.wire_node(format!("{name}.gather"), op, &tensors.0)?[0])
    }

    /// A name for the conversion of `outlet` to another `form`.
    fn name(&self, outlet: OutletId, form: &str) -> String {
        format!("{}.{}.{form}", self.model.node(outlet.node).name, outlet.slot)
    }
}

/// Channels and `[height, width]` of one `f32` picture of fixed size in NCHW.
fn picture(fact: &TypedFact) -> TractResult<(usize, [usize; 2])> {
    match fact.shape.as_concrete() {
        Some(&[1, channels, height, width])
            if fact.datum_type == f32::datum_type() && fact.konst.is_none() =>
        {
            Ok((channels, [height, width]))
        }
        _ => bail!("{fact:?} is not one picture"),
    }
}

/// The shape of a tensor of blocks.
fn block_shape(channels: usize, [height, width]: [usize; 2]) -> [usize; 5] {
    [1, blocks(channels), height, width, LANES]
}

fn shape(g: &Geometry) -> [usize; 5] {
    block_shape(g.cout, g.output)
}
