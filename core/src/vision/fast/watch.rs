//! What range each value of a network takes that could become bytes.

use std::collections::BTreeMap;

use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan;

use super::coded::{self, Ranges};
use super::geometry::blocks;
use super::parallel::together;
use super::simd::{Isa, LANES};

/// The values that could become bytes, and what they were so far.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    channels: BTreeMap<String, usize>,
    ranges: Ranges,
}

impl Watch {
    /// A network of floats ready to run, as [`optimise`](super::optimise) makes it, and what to
    /// watch in it: nothing on a CPU without kernels.
    ///
    /// # Errors
    /// Those of tract's own optimisation.
    pub fn over(model: InferenceModel) -> TractResult<(TypedModel, Self)> {
        let Some(isa) = Isa::detect() else {
            return Ok((model.into_optimized()?, Self::default()));
        };
        let windows = super::windows(model)?;
        let channels = coded::candidates(&windows);
        let fast = super::layout::into_blocks(isa, &windows, None)?.into_optimized()?;
        Ok((fast, Self { channels, ranges: Ranges::new() }))
    }

    /// Runs `network` on `inputs` and takes note of its values.
    ///
    /// # Errors
    /// Those of running the network.
    pub fn run(
        &mut self,
        network: &Arc<TypedSimplePlan>,
        inputs: TVec<TValue>,
    ) -> TractResult<TVec<TValue>> {
        let mut state = network.spawn()?;
        together(|| {
            state.run_plan_with_eval(inputs, |context, state, node, inputs| {
                let outputs = plan::eval(context, state, node, inputs)?;
                if let Some(channels) = self.channels.get(&node.name)
                    && let Some(seen) = extremes(&outputs[0], *channels)?
                {
                    let range = self.ranges.entry(node.name.clone()).or_insert(seen);
                    *range = [range[0].min(seen[0]), range[1].max(seen[1])];
                }
                TractResult::Ok(outputs)
            })
        })
    }

    /// The least and the largest of each value so far.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }
}

/// The least and the largest of a tensor of blocks; `None` if it is something else.
fn extremes(tensor: &Tensor, channels: usize) -> TractResult<Option<[f32; 2]>> {
    let is_blocks = tensor.rank() == 5 && tensor.shape()[1] == blocks(channels);
    if tensor.datum_type() != DatumType::F32 || !is_blocks {
        return Ok(None);
    }
    let pixels = tensor.shape()[2] * tensor.shape()[3];
    let plain = tensor.try_as_plain_ram()?;
    let values = plain.as_slice::<f32>()?;
    let mut seen = [f32::INFINITY, f32::NEG_INFINITY];
    for (block, values) in values.chunks_exact(pixels * LANES).enumerate() {
        let lanes = (channels - block * LANES).min(LANES);
        for value in values.chunks_exact(LANES).flat_map(|v| &v[..lanes]) {
            seen = [seen[0].min(*value), seen[1].max(*value)];
        }
    }
    Ok(Some(seen))
}
