//! Where the time of a network goes, operator by operator.

use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan;

use super::byte_ops::ByteOp;
use super::ops::Fast;
use super::parallel::together;

/// What one operator took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpTime {
    /// The node's name in the network.
    pub name: String,
    /// The operator, such as `FastPointwise` or tract's `OptMatMul`.
    pub op: String,
    /// Time, in the unit of the clock that was given.
    pub time: u64,
    /// Multiply-adds, where they are known and what counts; else 0.
    pub macs: usize,
}

/// Runs `network` once on `inputs` and times each operator with `clock`, in the order of
/// execution. The clock is the caller's: the core has none.
///
/// # Errors
/// Those of running the network.
pub fn profile(
    network: &Arc<TypedSimplePlan>,
    inputs: TVec<TValue>,
    clock: &mut dyn FnMut() -> u64,
) -> TractResult<Vec<OpTime>> {
    let mut times = Vec::new();
    let mut state = network.spawn()?;
    together(|| {
        state.run_plan_with_eval(inputs, |context, state, node, inputs| {
            let start = clock();
            let outputs = plan::eval(context, state, node, inputs);
            let time = clock().saturating_sub(start);
            let floats = node.op_as::<Fast>().map(Fast::macs);
            let bytes = node.op_as::<ByteOp>().map(ByteOp::macs);
            let macs = floats.or(bytes).unwrap_or(0);
            let (name, op) = (node.name.clone(), node.op.name().into_owned());
            times.push(OpTime { name, op, time, macs });
            outputs
        })
    })?;
    Ok(times)
}
