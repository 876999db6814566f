//! Which operators of a network work on bytes: 1x1 convolutions whose input's range is known, and
//! depthwise convolutions between two of them.
//!
//! Residuals, what the network gives, and everything else stay floats.

use std::collections::BTreeMap;

use tract_onnx::tract_core::internal::*;

use super::byte_depthwise::ByteDepthwise;
use super::byte_ops::ByteKernel;
use super::bytes::Coding;
use super::dot::{Dot, Pointwise};
use super::post::split_clamp;
use super::window::{Reduction, Window};

/// The least and the largest of each value of a network that may become bytes, by the name of the
/// operator that gives it.
pub type Ranges = BTreeMap<String, [f32; 2]>;

/// A network of [`Window`]s with the ranges of its values.
pub struct Coded<'a> {
    /// The instructions.
    pub dot: Dot,
    /// The ranges.
    pub ranges: &'a Ranges,
    /// The network, in planes.
    pub model: &'a TypedModel,
}

/// The filters of a convolution.
struct Filters<'a> {
    window: &'a Window,
    weights: &'a [f32],
    bias: &'a [f32],
}

impl Coded<'_> {
    /// How the bytes of `node`'s input are coded and what is done with them, if it works on bytes.
    pub fn kernel(&self, node: &TypedNode) -> Option<(Coding, ByteKernel)> {
        let from = self.coding(node.inputs[0])?;
        let to = self.coding(node.id.into()).filter(|_| self.is_read_as_bytes(node));
        if let Some(f) = self.pointwise(node) {
            let geometry = f.window.geometry.clone();
            let posts = f.window.posts.clone();
            let op = Pointwise::new(self.dot, geometry, from, to, f.weights, f.bias, posts);
            return Some((from, ByteKernel::Pointwise(op)));
        }
        let f = self.depthwise(node)?;
        let (clamp, geometry) = (split_clamp(&f.window.posts).0, f.window.geometry.clone());
        let op = ByteDepthwise::new(geometry, from, to?, f.weights, f.bias, clamp);
        Some((from, ByteKernel::Depthwise(op)))
    }

    fn coding(&self, outlet: OutletId) -> Option<Coding> {
        let [low, high] = *self.ranges.get(&self.model.node(outlet.node).name)?;
        Coding::of(low, high)
    }

    /// `node`, if it is a 1x1 convolution that reads bytes.
    fn pointwise<'n>(&self, node: &'n TypedNode) -> Option<Filters<'n>> {
        self.coding(node.inputs.first().copied()?)?;
        pointwise(self.model, node)
    }

    /// `node`, if it is a depthwise convolution from bytes that a 1x1 convolution gives to bytes
    /// that others read.
    fn depthwise<'n>(&self, node: &'n TypedNode) -> Option<Filters<'n>> {
        let filters = depthwise(self.model, node)?;
        let given = self.pointwise(self.model.node(node.inputs[0].node))?;
        let zero_is_zero = self.coding(node.inputs[0])?.zero == 0;
        self.coding(node.id.into())?;
        let mut readers = self.model.node(node.id).outputs[0].successors.iter();
        let read =
            readers.all(|r| r.slot == 0 && self.pointwise(self.model.node(r.node)).is_some());
        (zero_is_zero && read && is_clamped(given.window)).then_some(filters)
    }

    /// Whether whoever reads what `node` gives reads bytes, and it can give them.
    fn is_read_as_bytes(&self, node: &TypedNode) -> bool {
        let reads = |r: &InletId| {
            let reader = self.model.node(r.node);
            r.slot == 0 && (self.pointwise(reader).is_some() || self.depthwise(reader).is_some())
        };
        let readers = &node.outputs[0].successors;
        let clamped = node.op_as::<Window>().is_some_and(is_clamped);
        clamped && !gives_output(self.model, node) && readers.iter().all(reads)
    }
}

/// The values of a network whose ranges [`Coded`] asks for: the name of the operator that gives
/// each, and its channels.
pub fn candidates(model: &TypedModel) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for node in model.nodes() {
        let filters = pointwise(model, node).or_else(|| {
            let given = model.node(node.inputs.first()?.node);
            pointwise(model, given).and_then(|_| depthwise(model, node))
        });
        if let Some(filters) = filters {
            let name = model.node(node.inputs[0].node).name.clone();
            found.insert(name, filters.window.geometry.cin);
        }
    }
    found
}

/// `node`, if it is a 1x1 convolution within the network.
fn pointwise<'n>(model: &TypedModel, node: &'n TypedNode) -> Option<Filters<'n>> {
    let filters = filters(node)?;
    let g = &filters.window.geometry;
    (g.is_pointwise() && g.groups == 1 && !gives_output(model, node)).then_some(filters)
}

/// `node`, if it is a depthwise convolution within the network, followed by a clamp at most.
fn depthwise<'n>(model: &TypedModel, node: &'n TypedNode) -> Option<Filters<'n>> {
    let filters = filters(node)?;
    let (window, inner) = (filters.window, !gives_output(model, node));
    (window.geometry.is_depthwise() && is_clamped(window) && inner).then_some(filters)
}

/// The filters of `node`, if it is a convolution and they are finite.
fn filters(node: &TypedNode) -> Option<Filters<'_>> {
    let window = node.op_as::<Window>()?;
    let Reduction::Weigh { weights, bias } = &window.reduction else { return None };
    let finite = weights.iter().chain(bias.iter()).all(|w| w.is_finite());
    finite.then_some(Filters { window, weights, bias })
}

/// Whether a clamp is all that follows, if anything does.
fn is_clamped(window: &Window) -> bool {
    split_clamp(&window.posts).1.is_empty()
}

fn gives_output(model: &TypedModel, node: &TypedNode) -> bool {
    model.outputs.iter().any(|o| o.node == node.id)
}
