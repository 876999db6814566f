//! Kernels of bytes as tract operators, as [`ops`](super::ops) are for floats.

use std::sync::Arc;

use tract_onnx::tract_core::internal::*;

use super::byte_depthwise::ByteDepthwise;
use super::bytes::ToBytes;
use super::dot::{Dot, Pointwise};
use super::simd::LANES;

/// What a [`ByteOp`] does.
#[derive(Clone, Debug)]
pub enum ByteKernel {
    /// From floats.
    ToBytes(ToBytes),
    /// From bytes, and a second operand of floats if there is one, to floats or bytes.
    Pointwise(Pointwise),
    /// From bytes to bytes.
    Depthwise(ByteDepthwise),
}

/// A kernel that reads or gives bytes.
#[derive(Clone, Debug)]
pub struct ByteOp {
    dot: Dot,
    kernel: Arc<ByteKernel>,
    shape: TVec<usize>,
}

impl ByteOp {
    /// `kernel`, whose output has `shape`.
    pub fn new(dot: Dot, kernel: ByteKernel, shape: &[usize]) -> Self {
        Self { dot, kernel: Arc::new(kernel), shape: shape.into() }
    }

    /// Multiply-adds of one run; zero where they are not what counts.
    pub fn macs(&self) -> usize {
        match &*self.kernel {
            ByteKernel::ToBytes(_) => 0,
            ByteKernel::Pointwise(op) => op.geometry().macs(),
            ByteKernel::Depthwise(op) => op.geometry().macs(),
        }
    }
}

impl ByteKernel {
    /// Whether it gives bytes.
    pub fn gives_bytes(&self) -> bool {
        !matches!(self, Self::Pointwise(op) if op.to().is_none())
    }
}

impl PartialEq for ByteOp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kernel, &other.kernel)
    }
}

impl Eq for ByteOp {}

impl Op for ByteOp {
    fn name(&self) -> StaticName {
        match &*self.kernel {
            ByteKernel::ToBytes(_) => "FastToBytes",
            ByteKernel::Pointwise(_) => "FastBytePointwise",
            ByteKernel::Depthwise(_) => "FastByteDepthwise",
        }
        .into()
    }
    op_as_typed_op!();
}

/// What a tensor holds.
fn slice<T: Datum>(tensor: &TValue) -> TractResult<&[T]> {
    tensor.try_as_plain_ram()?.as_slice()
}

impl EvalOp for ByteOp {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let kind = if self.kernel.gives_bytes() { DatumType::U8 } else { DatumType::F32 };
        // SAFETY: every kernel writes all of its output.
        let mut y = unsafe { Tensor::uninitialized_aligned_dt(kind, &self.shape, 4 * LANES)? };
        {
            let mut plain = y.try_as_plain_ram_mut()?;
            match &*self.kernel {
                ByteKernel::ToBytes(op) => {
                    op.run(self.dot.isa(), slice(&inputs[0])?, plain.as_slice_mut()?);
                }
                ByteKernel::Depthwise(op) => {
                    op.run(self.dot.isa(), slice(&inputs[0])?, plain.as_slice_mut()?);
                }
                ByteKernel::Pointwise(op) if op.to().is_some() => {
                    op.run_to_bytes(self.dot, slice(&inputs[0])?, plain.as_slice_mut()?);
                }
                ByteKernel::Pointwise(op) => {
                    let other = if op.has_operand() { inputs.get(1) } else { None };
                    let other = other.map(slice).transpose()?;
                    op.run(self.dot, slice(&inputs[0])?, other, plain.as_slice_mut()?);
                }
            }
        }
        Ok(tvec!(y.into_tvalue()))
    }
}

impl TypedOp for ByteOp {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let kind = if self.kernel.gives_bytes() { DatumType::U8 } else { DatumType::F32 };
        Ok(tvec!(kind.fact(&self.shape)))
    }
    as_op!();
}
