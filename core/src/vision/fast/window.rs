//! Convolutions and poolings as the rules see them: planar (NCHW), with what follows collected.
//!
//! These operators only exist between [`rules`](super::rules) and [`layout`](super::layout),
//! which turns every one of them into a kernel; they cannot run.

use std::sync::Arc;

use tract_onnx::tract_core::internal::*;

use super::geometry::Geometry;
use super::post::Post;

/// A window that slides over one picture `[1, cin, height, width]`.
///
/// Inputs: the picture and, if a post is binary, its second operand in the output's shape.
#[derive(Clone, Debug)]
pub struct Window {
    /// Its shape.
    pub geometry: Geometry,
    /// What it does with what it sees.
    pub reduction: Reduction,
    /// What follows.
    pub posts: Vec<Post>,
}

/// What a [`Window`] does with the pixels under it.
#[derive(Clone, Debug)]
pub enum Reduction {
    /// Convolution with weights `[cout][cin / groups][kernel]` and bias `[cout]`.
    Weigh {
        /// The filters.
        weights: Arc<[f32]>,
        /// Added to each output channel.
        bias: Arc<[f32]>,
    },
    /// The largest.
    Max,
}

impl Window {
    /// Whether a post reads the second input.
    pub fn has_operand(&self) -> bool {
        self.posts.iter().any(|p| p.is_binary())
    }
}

impl PartialEq for Window {
    /// Equal if they share their weights; two poolings are never taken for one.
    fn eq(&self, other: &Self) -> bool {
        use Reduction::Weigh;
        let same = match (&self.reduction, &other.reduction) {
            (Weigh { weights: a, .. }, Weigh { weights: b, .. }) => Arc::ptr_eq(a, b),
            _ => false,
        };
        same && self.geometry == other.geometry && self.posts == other.posts
    }
}

impl Eq for Window {}

impl Op for Window {
    fn name(&self) -> StaticName {
        "Window".into()
    }
    op_as_typed_op!();
}

impl EvalOp for Window {
    not_out_of_plan!();
}

impl TypedOp for Window {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let g = &self.geometry;
        Ok(tvec!(f32::fact([1, g.cout, g.output[0], g.output[1]])))
    }
    as_op!();
}
