//! What is recognised in a network: windows first, then what can be fused into them.
//!
//! Each rule looks at one node and returns a patch, or `None` for anything it does not fully
//! understand, which is then left to tract.

use std::sync::Arc;

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::model::Rewriter;
use tract_onnx::tract_core::ops::Downsample;
use tract_onnx::tract_core::ops::array::TypedConcat;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, MaxPool, PoolSpec};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::nn::{self, DataFormat, HardSwish, LeakyRelu};

use super::geometry::Geometry;
use super::ops::Fast;
use super::planes;
use super::post::{Post, UNCLAMPED};
use super::simd::Isa;
use super::window::{Reduction, Window};

type Patch = TractResult<Option<TypedModelPatch>>;
/// The one node that reads another, and what it adds to each output of that.
type Bias<'m> = (&'m TypedNode, Arc<[f32]>);

/// Before decluttering, which would turn 1x1 convolutions into matrix products.
pub fn recognise(model: &mut TypedModel) -> TractResult<()> {
    Rewriter::default()
        .with_rule_for("convolution", convolution)
        .with_rule_for("max pooling", max_pooling)
        .rewrite(&(), model)
}

/// After decluttering, which leaves activations in one form each.
pub fn fuse(model: &mut TypedModel) -> TractResult<()> {
    Rewriter::default()
        .with_rule_for("space to depth", space_to_depth)
        .with_rule_for("dense layer", dense)
        .with_rule_for("what follows", what_follows)
        .rewrite(&(), model)
}

/// The kernel on plain tensors that does what `node` does, if there is one.
pub fn on_planes(isa: Isa, model: &TypedModel, node: &TypedNode) -> Option<Fast> {
    let fact = &node.outputs[0].fact;
    let shape = fact.shape.as_concrete()?;
    if fact.datum_type != f32::datum_type() {
        return None;
    }
    if let Some(op) = node.op_as() {
        Some(Fast::new(isa, softmax(op, shape)?, shape))
    } else if let Some(op) = node.op_as() {
        Some(Fast::new(isa, grid_sample(model, node, op)?, shape))
    } else {
        None
    }
}

fn convolution(_: &(), model: &TypedModel, node: &TypedNode, name: &str, op: &Conv) -> Patch {
    if op.q_params.is_some() || op.kernel_fmt != KernelFormat::OIHW || node.inputs.len() != 3 {
        return Ok(None);
    }
    let Some(geometry) = geometry(model, node, &op.pool_spec, op.group) else { return Ok(None) };
    let (Some(weights), Some(bias)) =
        (constant(model, node.inputs[1]), constant(model, node.inputs[2]))
    else {
        return Ok(None);
    };
    if weights.datum_type() != f32::datum_type() {
        return Ok(None);
    }
    let bias = bias.cast_to::<f32>()?;
    let bias: Arc<[f32]> = match bias.try_as_plain_ram()?.as_slice::<f32>()? {
        [one] => vec![*one; geometry.cout].into(),
        all if all.len() == geometry.cout => all.into(),
        _ => return Ok(None),
    };
    let weights = weights.try_as_plain_ram()?.as_slice::<f32>()?.into();
    let reduction = Reduction::Weigh { weights, bias };
    replace(model, node, name, Window { geometry, reduction, posts: vec![] }, &node.inputs[..1])
}

fn max_pooling(_: &(), model: &TypedModel, node: &TypedNode, name: &str, op: &MaxPool) -> Patch {
    let channels = op.pool_spec.input_channels;
    match geometry(model, node, &op.pool_spec, channels) {
        Some(geometry) if op.with_index_outputs.is_none() && geometry.cin == geometry.cout => {
            let window = Window { geometry, reduction: Reduction::Max, posts: vec![] };
            replace(model, node, name, window, &node.inputs)
        }
        _ => Ok(None),
    }
}

/// YOLOX's "focus": a convolution of the four phases of a picture, stacked as channels, is a
/// convolution of the picture with a window twice as large and a stride of two.
fn space_to_depth(_: &(), model: &TypedModel, node: &TypedNode, name: &str, op: &Window) -> Patch {
    let g = &op.geometry;
    let Reduction::Weigh { weights, bias } = &op.reduction else { return Ok(None) };
    if g.groups != 1 || g.stride != [1, 1] || g.dilation != [1, 1] {
        return Ok(None);
    }
    let stack = model.node(node.inputs[0].node);
    if stack.op_as::<TypedConcat>().is_none_or(|c| c.axis != 1) || stack.inputs.len() != 4 {
        return Ok(None);
    }
    let phases: Option<Vec<_>> = stack.inputs.iter().map(|i| phase_of(model, *i)).collect();
    let Some(phases) = phases else { return Ok(None) };
    let picture = phases[0].0;
    let mut seen: Vec<[usize; 2]> = phases.iter().map(|p| p.1).collect();
    seen.sort_unstable();
    let even = [g.cin / 4, g.input[0] * 2, g.input[1] * 2];
    let fact = model.outlet_fact(picture)?;
    if phases.iter().any(|p| p.0 != picture)
        || seen != [[0, 0], [0, 1], [1, 0], [1, 1]]
        || fact.shape.as_concrete().is_none_or(|s| s.get(1..) != Some(&even))
    {
        return Ok(None);
    }
    let kernel = g.kernel.map(|k| 2 * k);
    let larger = Geometry {
        cin: g.cin / 4,
        input: g.input.map(|i| 2 * i),
        kernel,
        stride: [2, 2],
        pad: g.pad.map(|p| 2 * p),
        ..g.clone()
    };
    let mut spread = vec![0.0; weights.len()];
    for (i, weight) in weights.iter().enumerate() {
        let (x, y) = (i % g.kernel[1], i / g.kernel[1] % g.kernel[0]);
        let (channel, out) = (i / g.taps() % g.cin, i / g.taps() / g.cin);
        let [dy, dx] = phases[channel / larger.cin].1;
        let row = (out * larger.cin + channel % larger.cin) * kernel[0] + 2 * y + dy;
        spread[row * kernel[1] + 2 * x + dx] = *weight;
    }
    let reduction = Reduction::Weigh { weights: spread.into(), bias: bias.clone() };
    let window = Window { geometry: larger, reduction, posts: op.posts.clone() };
    let mut inputs = node.inputs.clone();
    inputs[0] = picture;
    replace(model, node, name, window, &inputs)
}

/// A row times a constant matrix, as at the end of a classifier: a 1x1 convolution of one pixel,
/// which threads can share.
fn dense(_: &(), model: &TypedModel, node: &TypedNode, name: &str, op: &EinSum) -> Patch {
    let Some((x, weights)) = row_by_matrix(model, node, op)? else { return Ok(None) };
    let out = &node.outputs[0].fact.shape;
    let (Some(length), Some(shape)) = (volume(model, x), out.as_concrete()) else {
        return Ok(None);
    };
    let cout = weights.len() / length;
    let (last, bias) = match bias_of(model, node, cout)? {
        Some((next, bias)) => (next, bias),
        None => (node, vec![0.0; cout].into()),
    };
    let one = [1, 1];
    let (input, output, kernel, stride, dilation) = (one, one, one, one, one);
    let (cin, groups, pad) = (length, 1, [0, 0]);
    let geometry = Geometry { cin, cout, groups, input, output, kernel, stride, dilation, pad };
    let reduction = Reduction::Weigh { weights, bias };
    let window = Window { geometry, reduction, posts: vec![] };
    let dims = |shape: &[usize]| shape.iter().map(|d| d.to_dim()).collect::<TVec<TDim>>();
    let row = model.outlet_fact(x)?.shape.to_tvec();
    let as_pixel = AxisOp::Reshape(0, row, dims(&[1, length, 1, 1]));
    let as_row = AxisOp::Reshape(0, dims(&[1, cout, 1, 1]), dims(shape));
    let mut patch = TypedModelPatch::default();
    let taps = patch.taps(model, &[x])?;
    let wire = patch.wire_node(format!("{name}.pixel"), as_pixel, &taps)?;
    let wire = patch.wire_node(format!("{name}.dense"), window, &wire)?;
    let wire = patch.wire_node(&last.name, as_row, &wire)?;
    patch.shunt_outside(model, last.id.into(), wire[0])?;
    Ok(Some(patch))
}

/// The row and, `[out][in]`, the matrix of a product that sums over all of the row.
fn row_by_matrix(
    model: &TypedModel,
    node: &TypedNode,
    op: &EinSum,
) -> TractResult<Option<(OutletId, Arc<[f32]>)>> {
    let float = op.q_params.is_none() && op.operating_dt == f32::datum_type();
    if !float || node.inputs.len() != 2 || node.outputs[0].fact.datum_type != f32::datum_type() {
        return Ok(None);
    }
    for (row, matrix) in [(0, 1), (1, 0)] {
        let Some(weights) = constant(model, node.inputs[matrix]) else { continue };
        let (x, shape) = (node.inputs[row], weights.shape());
        let axes: Vec<_> = op.axes.axes(InOut::In(matrix)).collect();
        let &[a, b] = &axes[..] else { continue };
        let is_summed = |axis: &Axis| axis.inputs[row].len() == 1 && axis.outputs[0].is_empty();
        let is_kept = |axis: &Axis| axis.inputs[row].is_empty() && axis.outputs[0].len() == 1;
        let transposed = is_summed(a) && is_kept(b);
        let fits = transposed || is_kept(a) && is_summed(b);
        let (cout, cin) = if transposed { (shape[1], shape[0]) } else { (shape[0], shape[1]) };
        let given = node.outputs[0].fact.shape.volume();
        let float = model.outlet_fact(x)?.datum_type == f32::datum_type();
        if !fits || !float || volume(model, x) != Some(cin) || given != cout.to_dim() {
            continue;
        }
        let weights = weights.cast_to::<f32>()?;
        let plain = weights.try_as_plain_ram()?;
        let values = plain.as_slice::<f32>()?;
        let weights = match transposed {
            true => (0..cout * cin).map(|i| values[i % cin * cout + i / cin]).collect(),
            false => values.into(),
        };
        return Ok(Some((x, weights)));
    }
    Ok(None)
}

/// What is added to the `cout` outputs of `node`, if that is all that reads them.
fn bias_of<'m>(
    model: &'m TypedModel,
    node: &TypedNode,
    cout: usize,
) -> TractResult<Option<Bias<'m>>> {
    let outlet = OutletId::new(node.id, 0);
    let [reader] = &node.outputs[0].successors[..] else { return Ok(None) };
    let next = model.node(reader.node);
    let adds = next.op_as::<TypedBinOp>().is_some_and(|op| op.0.name() == "Add");
    let same = next.outputs[0].fact.shape == node.outputs[0].fact.shape;
    if !adds || !same || model.output_outlets()?.contains(&outlet) {
        return Ok(None);
    }
    let Some(bias) = constant(model, next.inputs[1 - reader.slot]) else { return Ok(None) };
    if bias.len() != cout {
        return Ok(None);
    }
    let bias = bias.cast_to::<f32>()?;
    Ok(Some((next, bias.try_as_plain_ram()?.as_slice::<f32>()?.into())))
}

/// How many values an outlet of fixed shape has.
fn volume(model: &TypedModel, outlet: OutletId) -> Option<usize> {
    Some(model.outlet_fact(outlet).ok()?.shape.as_concrete()?.iter().product())
}

/// The outlet of which `outlet` is every second row and column, and from which `[row, column]`.
fn phase_of(model: &TypedModel, outlet: OutletId) -> Option<(OutletId, [usize; 2])> {
    let (mut outlet, mut phase) = (outlet, [None, None]);
    while let Some(down) = model.node(outlet.node).op_as::<Downsample>() {
        let axis = down.axis.checked_sub(2).filter(|a| *a < 2)?;
        if down.stride != 2 || phase[axis].replace(down.modulo).is_some() {
            return None;
        }
        outlet = model.node(outlet.node).inputs[0];
    }
    Some((outlet, [phase[0]?, phase[1]?]))
}

/// Moves the one node that reads a window's output into the window.
fn what_follows(_: &(), model: &TypedModel, node: &TypedNode, _: &str, op: &Window) -> Patch {
    let outlet = OutletId::new(node.id, 0);
    if node.outputs[0].successors.len() != 1 || model.output_outlets()?.contains(&outlet) {
        return Ok(None);
    }
    let next = model.node(node.outputs[0].successors[0].node);
    let Some((post, operand)) = post_of(model, next, outlet) else { return Ok(None) };
    if post.is_binary() && op.has_operand() {
        return Ok(None);
    }
    let mut window = op.clone();
    push(&mut window.posts, post);
    let inputs: Vec<_> = node.inputs.iter().copied().chain(operand).collect();
    let mut patch = TypedModelPatch::default();
    let taps = patch.taps(model, &inputs)?;
    let wire = patch.wire_node(&next.name, window, &taps)?;
    patch.shunt_outside(model, next.id.into(), wire[0])?;
    Ok(Some(patch))
}

fn softmax(op: &nn::Softmax, shape: &[usize]) -> Option<planes::Softmax> {
    let plain = op.quant_output_dt.is_none() && op.kind == nn::SoftmaxKind::Softmax;
    let length = *shape.last()?;
    (plain && *op.axes == [shape.len() - 1]).then_some(planes::Softmax { length })
}

fn grid_sample(
    model: &TypedModel,
    node: &TypedNode,
    op: &nn::GridSample,
) -> Option<planes::GridSample> {
    let (x, grid) =
        (model.outlet_fact(node.inputs[0]).ok()?, model.outlet_fact(node.inputs[1]).ok()?);
    let &[n, channels, height, width] = x.shape.as_concrete()? else { return None };
    let &[_, out_height, out_width, 2] = grid.shape.as_concrete()? else { return None };
    let bilinear = matches!(op.mode, nn::InterpolationMode::Bilinear)
        && matches!(op.padding_mode, nn::PaddingMode::Zeros);
    bilinear.then_some(planes::GridSample {
        n,
        channels,
        input: [height, width],
        places: out_height * out_width,
        align_corners: op.align_corners,
    })
}

/// What `node` does to its input `x`, if that is a [`Post`], and its second operand.
pub fn post_of(
    model: &TypedModel,
    node: &TypedNode,
    x: OutletId,
) -> Option<(Post, Option<OutletId>)> {
    let out = &node.outputs[0].fact;
    if out.datum_type != f32::datum_type() || out.shape != model.outlet_fact(x).ok()?.shape {
        return None;
    }
    if let Some(op) = node.op_as::<ElementWiseOp>() {
        if let Some(leaky) = op.0.downcast_ref::<LeakyRelu>() {
            return Some((Post::Leaky(leaky.alpha), None));
        }
        if op.0.downcast_ref::<HardSwish>().is_some() {
            return Some((Post::HardSwish(1.0 / 6.0, 0.5), None));
        }
        return match op.0.name().as_str() {
            "Silu" => Some((Post::Silu, None)),
            "Sigmoid" => Some((Post::Sigmoid, None)),
            _ => None,
        };
    }
    let op = node.op_as::<TypedBinOp>()?;
    if node.inputs.len() != 2 || node.inputs[0] == node.inputs[1] {
        return None;
    }
    let x_first = node.inputs[0] == x;
    let other = node.inputs[usize::from(x_first)];
    let operation = op.0.name();
    if let Some(c) = scalar(model, other) {
        return match operation {
            "Max" => Some((Post::Clamp(c, UNCLAMPED.1), None)),
            "Min" => Some((Post::Clamp(UNCLAMPED.0, c), None)),
            "Add" => Some((Post::Affine(1.0, c), None)),
            "Mul" => Some((Post::Affine(c, 0.0), None)),
            "Sub" if x_first => Some((Post::Affine(1.0, -c), None)),
            _ => None,
        };
    }
    let fact = model.outlet_fact(other).ok()?;
    if fact.konst.is_some() || fact.shape != out.shape || fact.datum_type != out.datum_type {
        return None;
    }
    match operation {
        "Add" => Some((Post::Residual, Some(other))),
        "Mul" => Some((Post::Product, Some(other))),
        _ => None,
    }
}

/// Appends `post`, merged with the last one where two make one.
fn push(posts: &mut Vec<Post>, post: Post) {
    match (posts.last_mut(), post) {
        (Some(Post::Clamp(low, high)), Post::Clamp(min, max)) => {
            (*low, *high) = (low.max(min).min(max), high.max(min).min(max));
        }
        (Some(Post::Affine(scale, offset)), Post::Affine(a, b)) => {
            (*scale, *offset) = (*scale * a, *offset * a + b);
        }
        _ => posts.push(post),
    }
}

/// The shape of a window over one `f32` picture of fixed size in NCHW.
fn geometry(
    model: &TypedModel,
    node: &TypedNode,
    spec: &PoolSpec,
    groups: usize,
) -> Option<Geometry> {
    let x = model.outlet_fact(node.inputs[0]).ok()?;
    let &[1, cin, height, width] = x.shape.as_concrete()? else { return None };
    let &[1, cout, out_height, out_width] = node.outputs[0].fact.shape.as_concrete()? else {
        return None;
    };
    let planar = spec.data_format == DataFormat::NCHW && spec.rank() == 2;
    if !planar || x.datum_type != f32::datum_type() || out_height * out_width == 0 {
        return None;
    }
    let padding = spec.computed_padding(&[height, width]);
    Some(Geometry {
        cin,
        cout,
        groups,
        input: [height, width],
        output: [out_height, out_width],
        kernel: [spec.kernel_shape[0], spec.kernel_shape[1]],
        stride: [spec.stride(0), spec.stride(1)],
        dilation: [spec.dilation(0), spec.dilation(1)],
        pad: [padding[0].pad_before, padding[1].pad_before],
    })
}

/// The constant behind an outlet, through a cast to `f32`.
fn constant(model: &TypedModel, outlet: OutletId) -> Option<Arc<Tensor>> {
    if let Some(tensor) = &model.outlet_fact(outlet).ok()?.konst {
        return Some(tensor.clone());
    }
    let node = model.node(outlet.node);
    let is_cast = node.op.name() == "Cast" && node.outputs[0].fact.datum_type == f32::datum_type();
    if is_cast { constant(model, node.inputs[0]) } else { None }
}

/// The one number behind an outlet.
fn scalar(model: &TypedModel, outlet: OutletId) -> Option<f32> {
    let tensor = constant(model, outlet)?;
    if tensor.len() == 1 { tensor.cast_to_scalar::<f32>().ok() } else { None }
}

fn replace(
    model: &TypedModel,
    node: &TypedNode,
    name: &str,
    window: Window,
    inputs: &[OutletId],
) -> Patch {
    let mut patch = TypedModelPatch::default();
    let taps = patch.taps(model, inputs)?;
    let wire = patch.wire_node(name, window, &taps)?;
    patch.shunt_outside(model, node.id.into(), wire[0])?;
    Ok(Some(patch))
}
