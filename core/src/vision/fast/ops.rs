//! Kernels as tract operators. The wrapper knows shapes and tensors, the kernels arithmetic.

use std::fmt::Debug;
use std::sync::Arc;

use tract_onnx::tract_core::internal::*;

use super::blocks::{self, Run};
use super::conv::{Channel, Conv};
use super::depthwise::Depthwise;
use super::geometry::Geometry;
use super::map::{GlobalSum, Map, Resize};
use super::planes::{GridSample, Softmax};
use super::post::Post;
use super::simd::{Isa, LANES};

/// Something that computes one tensor from others, all of fixed size and `f32`.
pub trait Kernel: Debug + Send + Sync {
    /// Name for profiles, in tract's style.
    fn name(&self) -> &'static str;
    /// Multiply-adds of one run; zero where they are not what counts.
    fn macs(&self) -> usize {
        0
    }
    /// Computes `y`, of which every float is written.
    fn run(&self, isa: Isa, inputs: &[&[f32]], y: &mut [f32]);
}

/// A [`Kernel`] as a tract operator.
#[derive(Clone, Debug)]
pub struct Fast {
    isa: Isa,
    kernel: Arc<dyn Kernel>,
    shape: TVec<usize>,
}

impl Fast {
    /// `kernel`, whose output has `shape`.
    pub fn new(isa: Isa, kernel: impl Kernel + 'static, shape: &[usize]) -> Self {
        Self { isa, kernel: Arc::new(kernel), shape: shape.into() }
    }

    /// Multiply-adds of one run.
    pub fn macs(&self) -> usize {
        self.kernel.macs()
    }
}

impl PartialEq for Fast {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kernel, &other.kernel)
    }
}

impl Eq for Fast {}

impl Op for Fast {
    fn name(&self) -> StaticName {
        self.kernel.name().into()
    }
    op_as_typed_op!();
}

impl EvalOp for Fast {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        // SAFETY: the kernel writes every float, by the contract of `Kernel::run`.
        let mut y = unsafe { Tensor::uninitialized_aligned::<f32>(&self.shape, 4 * LANES)? };
        {
            let views: TVec<&[f32]> = inputs
                .iter()
                .map(|i| i.try_as_plain_ram()?.as_slice())
                .collect::<TractResult<_>>()?;
            let mut plain = y.try_as_plain_ram_mut()?;
            self.kernel.run(self.isa, &views, plain.as_slice_mut()?);
        }
        Ok(tvec!(y.into_tvalue()))
    }
}

impl TypedOp for Fast {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(&self.shape)))
    }
    as_op!();
}

/// The last input, if `posts` ask for a second operand, and the others.
fn with_other<'a>(posts: &[Post], inputs: &'a [&'a [f32]]) -> (&'a [&'a [f32]], Option<&'a [f32]>) {
    match inputs.split_last() {
        Some((other, rest)) if posts.iter().any(|p| p.is_binary()) => (rest, Some(other)),
        _ => (inputs, None),
    }
}

impl Kernel for Conv {
    fn name(&self) -> &'static str {
        let g: &Geometry = self.geometry();
        if g.is_pointwise() { "FastPointwise" } else { "FastConv" }
    }
    fn macs(&self) -> usize {
        self.geometry().macs()
    }
    fn run(&self, isa: Isa, inputs: &[&[f32]], y: &mut [f32]) {
        let (inputs, other) = with_other(self.posts(), inputs);
        Conv::run(self, isa, inputs, other, y);
    }
}

impl Kernel for Depthwise {
    fn name(&self) -> &'static str {
        if self.is_max() { "FastMaxPool" } else { "FastDepthwise" }
    }
    fn macs(&self) -> usize {
        if self.is_max() { 0 } else { self.geometry().macs() }
    }
    fn run(&self, isa: Isa, inputs: &[&[f32]], y: &mut [f32]) {
        let (inputs, other) = with_other(self.posts(), inputs);
        Depthwise::run(self, isa, inputs[0], other, y);
    }
}

impl Kernel for Map {
    fn name(&self) -> &'static str {
        "FastMap"
    }
    fn run(&self, isa: Isa, inputs: &[&[f32]], y: &mut [f32]) {
        let (inputs, other) = with_other(&self.0, inputs);
        Map::run(self, isa, inputs[0], other, y);
    }
}

impl Kernel for Resize {
    fn name(&self) -> &'static str {
        "FastResize"
    }
    fn run(&self, isa: Isa, inputs: &[&[f32]], y: &mut [f32]) {
        Resize::run(self, isa, inputs[0], y);
    }
}

impl Kernel for GlobalSum {
    fn name(&self) -> &'static str {
        "FastGlobalSum"
    }
    fn run(&self, _: Isa, inputs: &[&[f32]], y: &mut [f32]) {
        GlobalSum::run(self, inputs[0], y);
    }
}

impl Kernel for Softmax {
    fn name(&self) -> &'static str {
        "FastSoftmax"
    }
    fn run(&self, isa: Isa, inputs: &[&[f32]], y: &mut [f32]) {
        Softmax::run(self, isa, inputs[0], y);
    }
}

impl Kernel for GridSample {
    fn name(&self) -> &'static str {
        "FastGridSample"
    }
    fn run(&self, _: Isa, inputs: &[&[f32]], y: &mut [f32]) {
        GridSample::run(self, inputs[0], inputs[1], y);
    }
}

/// Planes into [blocks].
#[derive(Debug)]
pub struct FromPlanes {
    /// Channels.
    pub channels: usize,
}

impl Kernel for FromPlanes {
    fn name(&self) -> &'static str {
        "FastFromPlanes"
    }
    fn run(&self, _: Isa, inputs: &[&[f32]], y: &mut [f32]) {
        blocks::from_planes(self.channels, inputs[0], y);
    }
}

/// [Blocks](blocks) into planes.
#[derive(Debug)]
pub struct ToPlanes {
    /// Channels.
    pub channels: usize,
}

impl Kernel for ToPlanes {
    fn name(&self) -> &'static str {
        "FastToPlanes"
    }
    fn run(&self, _: Isa, inputs: &[&[f32]], y: &mut [f32]) {
        blocks::to_planes(self.channels, inputs[0], y);
    }
}

/// Chosen channels of several tensors, as one.
#[derive(Debug)]
pub struct Gather {
    /// Where each channel comes from.
    pub channels: Vec<Channel>,
    /// Pixels of each channel.
    pub pixels: usize,
}

impl Kernel for Gather {
    fn name(&self) -> &'static str {
        "FastGather"
    }
    fn run(&self, _: Isa, inputs: &[&[f32]], y: &mut [f32]) {
        blocks::gather(inputs, &self.channels, self.pixels, y);
    }
}

/// Pictures, one after the other, as pixels with their channels together.
#[derive(Debug)]
pub struct ToPixels {
    /// Channels of every picture.
    pub channels: usize,
    /// Pixels of each picture, and where its channels come from.
    pub pictures: Vec<(usize, Vec<Run>)>,
}

impl Kernel for ToPixels {
    fn name(&self) -> &'static str {
        "FastToPixels"
    }
    fn run(&self, _: Isa, inputs: &[&[f32]], mut y: &mut [f32]) {
        for (pixels, runs) in &self.pictures {
            let (picture, rest) = y.split_at_mut(pixels * self.channels);
            blocks::to_pixels(inputs, runs, picture);
            y = rest;
        }
    }
}
