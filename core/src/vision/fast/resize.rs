//! Which resizings of tract's are [`Resize`] kernels.

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::nn::resize::{
    CoordTransformer, Interpolator, NearestUpsample, Resize as TractResize,
};

use super::map::{Between, Resize};

/// `node` as a kernel, if it resizes the last two axes, linearly between pixel centres or by
/// repeating pixels.
pub fn recognise(model: &TypedModel, node: &TypedNode) -> Option<Resize> {
    let input = model.outlet_fact(node.inputs[0]).ok()?.shape.as_concrete()?;
    let output = node.outputs[0].fact.shape.as_concrete()?;
    let (&[n, c, height, width], &[m, d, out_height, out_width]) = (input, output) else {
        return None;
    };
    if (n, c) != (m, d) {
        return None;
    }
    let axis: fn(usize, usize) -> Vec<Between> = if node.op_is::<NearestUpsample>() {
        repeated
    } else {
        let op = node.op_as::<TractResize>()?;
        let centred = op.coord_transformer == CoordTransformer::HalfPixel;
        if !centred || op.interpolator != Interpolator::Linear {
            return None;
        }
        linear
    };
    Some(Resize {
        input: [height, width],
        rows: axis(height, out_height),
        columns: axis(width, out_width),
    })
}

/// Every pixel `to / from` times.
fn repeated(from: usize, to: usize) -> Vec<Between> {
    let at = |i: usize| Between { low: i * from / to, high: i * from / to, share: 0.0 };
    (0..to).map(at).collect()
}

/// Linear, with pixel centres at half coordinates (ONNX `half_pixel`), edges repeated.
fn linear(from: usize, to: usize) -> Vec<Between> {
    let scale = to as f32 / from as f32;
    let at = |i: usize| {
        let x = ((i as f32 + 0.5) / scale - 0.5).clamp(0.0, from as f32 - 1.0);
        let low = x as usize;
        Between { low, high: (low + 1).min(from - 1), share: x - low as f32 }
    };
    (0..to).map(at).collect()
}
