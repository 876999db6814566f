//! Convolutions with their bias and limits as one step on the CPU, forwards and backwards.
//!
//! The networks that are trained here consist mostly of 1x1 and depthwise convolutions with a ReLU6
//! behind. Taken apart these write and keep several arrays where one is enough, and burn's gradient
//! of a depthwise convolution is one general convolution per channel. Here only the output is kept:
//! it shows what was limited, where nothing passes back.
//!
//! Sums run in an order that does not depend on the number of threads.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Shape, Tensor, TensorData};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Planes that one thread takes at a time: at 7x7 a plane is too little to hand over.
const PLANES: usize = 8;
/// Lanes of a sum that is vectorised.
const LANES: usize = 16;

/// How to convolve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv {
    /// Rows, columns.
    pub stride: [usize; 2],
    /// Top, left, bottom, right.
    pub pads: [usize; 4],
    /// Lowest and highest output.
    pub limits: [f32; 2],
}

impl Conv {
    /// Limits that hold nothing back.
    pub const FREE: [f32; 2] = [f32::NEG_INFINITY, f32::INFINITY];
}

/// `x`, `[n, c, h, w]`, convolved with `weight`, `[out, c / groups, kh, kw]`; every output plus the
/// `bias` of its channel, then held within the limits. `None` where this is neither a 1x1 nor a
/// depthwise convolution, or not on the CPU.
///
/// # Panics
/// If the shapes disagree.
pub fn convolve(
    x: &Tensor<4>,
    weight: &Tensor<4>,
    bias: Option<&Tensor<1>>,
    conv: Conv,
) -> Option<Tensor<4>> {
    Kind::of(x.dims(), weight.dims(), conv)?;
    let bias = bias.cloned().unwrap_or_else(|| Tensor::zeros([weight.dims()[0]], &x.device()));
    let (x, weight) = (x.clone(), weight.clone());
    if let Ok(x) = x.clone().try_into_primitive::<Autodiff<Flex>>() {
        let weight = weight.try_into_primitive::<Autodiff<Flex>>().ok()?;
        let bias = bias.try_into_primitive::<Autodiff<Flex>>().ok()?;
        let ((x, a), (weight, b), (bias, c)) =
            (x.into_parts(), weight.into_parts(), bias.into_parts());
        let step = Convolution.prepare::<NoCheckpointing>([a, b, c]).compute_bound().stateful();
        let y = forward(&x, &weight, &bias, conv);
        return Some(Tensor::from_primitive::<Autodiff<Flex>>(match step {
            OpsKind::Tracked(step) => step.finish(Kept { x, weight, y: y.clone(), conv }, y),
            OpsKind::UnTracked(step) => step.finish(y),
        }));
    }
    let x = x.try_into_primitive::<Flex>().ok()?;
    let weight = weight.try_into_primitive::<Flex>().ok()?;
    let bias = bias.try_into_primitive::<Flex>().ok()?;
    Some(Tensor::from_primitive::<Flex>(forward(&x, &weight, &bias, conv)))
}

/// What is done here; anything else is burn's.
enum Kind {
    Pointwise,
    Depthwise(Plane),
}

impl Kind {
    fn of([_, c, h, w]: [usize; 4], weight: [usize; 4], conv: Conv) -> Option<Self> {
        let [out, per_group, kh, kw] = weight;
        if [kh, kw, per_group] == [1, 1, c] && conv.stride == [1, 1] && conv.pads == [0; 4] {
            return Some(Self::Pointwise);
        }
        let [top, left, bottom, right] = conv.pads;
        let rows = (h + top + bottom).checked_sub(kh)? / conv.stride[0] + 1;
        let columns = (w + left + right).checked_sub(kw)? / conv.stride[1] + 1;
        (per_group == 1 && out == c).then_some(Self::Depthwise(Plane {
            size: [h, w],
            kernel: [kh, kw],
            stride: conv.stride,
            before: [top, left],
            output: [rows, columns],
        }))
    }
}

/// What the way back needs.
#[derive(Clone, Debug)]
struct Kept {
    x: FlexTensor,
    weight: FlexTensor,
    y: FlexTensor,
    conv: Conv,
}

#[derive(Debug)]
struct Convolution;

impl Backward<Flex, 3> for Convolution {
    type State = Kept;

    fn backward(self, ops: Ops<Kept, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let mut grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let Kept { x, weight, y, conv } = ops.state;
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let [n, out, rows, columns] = dims(&y);
        let sums = hold_back(&mut grad, &y, conv.limits, rows * columns);
        let [at_x, at_weight, at_bias] = ops.parents;
        if let Some(node) = at_bias {
            grads.register::<Flex>(node.id, tensor(summed(&sums, n), [out]));
        }
        match Kind::of(dims(&x), dims(&weight), conv) {
            Some(Kind::Pointwise) => {
                let [_, c, h, w] = dims(&x);
                let grad = grad.reshape(Shape::from([n, out, h * w]));
                if let Some(node) = at_weight {
                    let seen = x.reshape(Shape::from([n, c, h * w])).transpose(1, 2);
                    let each = Flex::float_matmul(grad.clone(), seen).to_contiguous();
                    let sum = summed(each.storage::<f32>(), n);
                    grads.register::<Flex>(node.id, tensor(sum, [out, c, 1, 1]));
                }
                if let Some(node) = at_x {
                    let back = weight.reshape(Shape::from([1, out, c])).transpose(1, 2);
                    let dx = Flex::float_matmul(back, grad);
                    grads.register::<Flex>(node.id, dx.reshape(Shape::from([n, c, h, w])));
                }
            }
            Some(Kind::Depthwise(plane)) => {
                let (dx, each) = plane.backward(&x, &weight, &grad);
                if let Some(node) = at_weight {
                    grads.register::<Flex>(node.id, tensor(summed(&each, n), dims(&weight)));
                }
                if let Some(node) = at_x {
                    grads.register::<Flex>(node.id, tensor(dx, dims(&x)));
                }
            }
            None => unreachable!("was convolved here"),
        }
    }
}

fn forward(x: &FlexTensor, weight: &FlexTensor, bias: &FlexTensor, conv: Conv) -> FlexTensor {
    let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
    let [low, high] = conv.limits;
    let bias = bias.storage::<f32>();
    match Kind::of(dims(&x), dims(&weight), conv) {
        Some(Kind::Pointwise) => {
            let ([n, c, h, w], out) = (dims(&x), bias.len());
            let weight = weight.reshape(Shape::from([1, out, c]));
            let x = x.reshape(Shape::from([n, c, h * w]));
            let mut y = Flex::float_matmul(weight, x).to_contiguous();
            let planes = y.storage_mut::<f32>().par_chunks_mut(h * w).enumerate();
            planes.with_min_len(PLANES).for_each(|(i, plane)| {
                Arch::new().dispatch(Limit { plane, bias: bias[i % out], low, high });
            });
            y.reshape(Shape::from([n, out, h, w]))
        }
        Some(Kind::Depthwise(plane)) => {
            let [n, c, ..] = dims(&x);
            let [rows, columns] = plane.output;
            let mut y = vec![0.0; n * c * rows * columns];
            let (x, weight) = (x.storage::<f32>(), weight.storage::<f32>());
            let planes = y.par_chunks_mut(rows * columns).enumerate().with_min_len(PLANES);
            planes.for_each_init(Vec::new, |room, (i, y)| {
                let (x, weight) = (plane.input(x, i), plane.weights(weight, i % c));
                Arch::new().dispatch(Forward { plane, x, weight, y, room });
                Arch::new().dispatch(Limit { plane: y, bias: bias[i % c], low, high });
            });
            tensor(y, [n, c, rows, columns])
        }
        None => unreachable!("was looked at before"),
    }
}

/// Sets gradients to zero where the output was held at a limit; the sum of each plane of what is
/// left.
fn hold_back(grad: &mut FlexTensor, y: &FlexTensor, [low, high]: [f32; 2], len: usize) -> Vec<f32> {
    let y = y.to_contiguous();
    let planes =
        grad.storage_mut::<f32>().par_chunks_mut(len).zip(y.storage::<f32>().par_chunks(len));
    let sums = planes
        .with_min_len(PLANES)
        .map(|(grad, y)| Arch::new().dispatch(HoldBack { grad, y, low, high }));
    sums.collect()
}

/// What is compiled for each instruction set. (A closure would not be: it is not inlined into what
/// has the instructions.)
struct Limit<'a> {
    plane: &'a mut [f32],
    bias: f32,
    low: f32,
    high: f32,
}

impl NullaryFnOnce for Limit<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for v in self.plane {
            // Not `max` and `min`, which make a number of what is none.
            *v = (*v + self.bias).clamp(self.low, self.high);
        }
    }
}

struct HoldBack<'a> {
    grad: &'a mut [f32],
    y: &'a [f32],
    low: f32,
    high: f32,
}

impl NullaryFnOnce for HoldBack<'_> {
    type Output = f32;

    #[inline(always)]
    fn call(self) -> f32 {
        for (g, y) in self.grad.iter_mut().zip(self.y) {
            *g = if *y > self.low && *y < self.high { *g } else { 0.0 };
        }
        sum(self.grad)
    }
}

struct Forward<'a> {
    plane: Plane,
    x: &'a [f32],
    weight: &'a [f32],
    y: &'a mut [f32],
    room: &'a mut Vec<f32>,
}

impl NullaryFnOnce for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.plane.convolve(self.x, self.weight, self.y, self.room);
    }
}

struct Back<'a> {
    plane: Plane,
    x: &'a [f32],
    weight: &'a [f32],
    grad: &'a [f32],
    dx: &'a mut [f32],
    dw: &'a mut [f32],
    room: &'a mut Vec<f32>,
}

impl NullaryFnOnce for Back<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.plane.copy(self.x, self.room);
        self.plane.weigh(self.grad, self.dw, self.room);
        self.plane.spread(self.weight, self.grad, self.dx, self.room);
    }
}

#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    whole.iter().for_each(|v| lanes.iter_mut().zip(v).for_each(|(lane, v)| *lane += v));
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// The sum of products.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += a * b);
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// The sum of `n` arrays that lie one after the other.
fn summed(arrays: &[f32], n: usize) -> Vec<f32> {
    let len = arrays.len() / n;
    let mut sum = arrays[..len].to_vec();
    for array in arrays.chunks(len).skip(1) {
        sum.iter_mut().zip(array).for_each(|(sum, v)| *sum += v);
    }
    sum
}

fn tensor<const D: usize>(data: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(data, shape))
}

fn dims(tensor: &FlexTensor) -> [usize; 4] {
    std::array::from_fn(|i| tensor.layout().shape()[i])
}

/// One channel of one picture under a depthwise convolution: rows, columns of each.
///
/// It is worked on in a padded copy, in which columns a stride apart are neighbours, so that every
/// tap meets a whole row of outputs in one piece.
#[derive(Clone, Copy, Debug)]
struct Plane {
    size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    /// Padding at the top and at the left.
    before: [usize; 2],
    output: [usize; 2],
}

impl Plane {
    fn input<'a>(&self, x: &'a [f32], plane: usize) -> &'a [f32] {
        let len = self.size[0] * self.size[1];
        &x[plane * len..][..len]
    }

    fn weights<'a>(&self, weight: &'a [f32], channel: usize) -> &'a [f32] {
        let len = self.kernel[0] * self.kernel[1];
        &weight[channel * len..][..len]
    }

    /// Columns of the copy that lie a stride apart.
    const fn run(&self) -> usize {
        self.output[1] + (self.kernel[1] - 1) / self.stride[1]
    }

    /// Length of a row of the copy.
    const fn pitch(&self) -> usize {
        self.stride[1] * self.run()
    }

    /// Rows of the copy.
    const fn height(&self) -> usize {
        (self.output[0] - 1) * self.stride[0] + self.kernel[0]
    }

    /// Rows of the copy that the picture lies in, each with its row of the picture.
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        let top = self.before[0];
        (top..self.height().min(top + self.size[0])).map(move |row| (row, row - top))
    }

    /// Places in a row of the copy, one for each column of the picture that any tap meets.
    #[inline(always)]
    fn places(&self) -> impl Iterator<Item = usize> {
        let (stride, run, left) = (self.stride[1], self.run(), self.before[1]);
        let met = (stride * run - left).min(self.size[1]);
        (left..left + met).map(move |column| column % stride * run + column / stride)
    }

    /// Where the inputs of output row `row` lie that a tap meets.
    #[inline(always)]
    fn met(&self, row: usize, tap: usize) -> std::ops::Range<usize> {
        let (ky, kx) = (tap / self.kernel[1], tap % self.kernel[1]);
        let start = (row * self.stride[0] + ky) * self.pitch()
            + kx % self.stride[1] * self.run()
            + kx / self.stride[1];
        start..start + self.output[1]
    }

    #[inline(always)]
    fn clear(&self, room: &mut Vec<f32>) {
        room.clear();
        room.resize(self.height() * self.pitch(), 0.0);
    }

    #[inline(always)]
    fn copy(&self, x: &[f32], room: &mut Vec<f32>) {
        self.clear(room);
        for (row, from) in self.rows() {
            let (room, x) = (&mut room[row * self.pitch()..], &x[from * self.size[1]..]);
            if self.stride[1] == 1 {
                let met = (self.run() - self.before[1]).min(self.size[1]);
                room[self.before[1]..][..met].copy_from_slice(&x[..met]);
            } else {
                self.places().zip(x).for_each(|(place, x)| room[place] = *x);
            }
        }
    }

    #[inline(always)]
    fn convolve(&self, x: &[f32], weight: &[f32], y: &mut [f32], room: &mut Vec<f32>) {
        self.copy(x, room);
        for (row, y) in y.chunks_mut(self.output[1]).enumerate() {
            for (tap, weight) in weight.iter().enumerate() {
                let met = &room[self.met(row, tap)];
                y.iter_mut().zip(met).for_each(|(y, x)| *y += weight * x);
            }
        }
    }

    /// Gradients of the input, and of the weights for each plane.
    fn backward(&self, x: &FlexTensor, w: &FlexTensor, grad: &FlexTensor) -> (Vec<f32>, Vec<f32>) {
        let [n, c, h, width] = dims(x);
        let taps = self.kernel[0] * self.kernel[1];
        let (mut dx, mut dw) = (vec![0.0; n * c * h * width], vec![0.0; n * c * taps]);
        let (x, w, grad) = (x.storage::<f32>(), w.storage::<f32>(), grad.storage::<f32>());
        let planes = dx.par_chunks_mut(h * width).zip(dw.par_chunks_mut(taps));
        let planes = planes.zip(grad.par_chunks(self.output[0] * self.output[1])).enumerate();
        planes.with_min_len(PLANES).for_each_init(Vec::new, |room, (i, ((dx, dw), grad))| {
            let (x, w) = (self.input(x, i), self.weights(w, i % c));
            Arch::new().dispatch(Back { plane: *self, x, weight: w, grad, dx, dw, room });
        });
        (dx, dw)
    }

    /// Gradients of the weights, from the copy of the input in `room`.
    #[inline(always)]
    fn weigh(&self, grad: &[f32], dw: &mut [f32], room: &[f32]) {
        for (tap, dw) in dw.iter_mut().enumerate() {
            for (row, grad) in grad.chunks(self.output[1]).enumerate() {
                let met = &room[self.met(row, tap)];
                *dw += dot(grad, met);
            }
        }
    }

    /// Gradients of the input.
    #[inline(always)]
    fn spread(&self, weight: &[f32], grad: &[f32], dx: &mut [f32], room: &mut Vec<f32>) {
        self.clear(room);
        for (row, grad) in grad.chunks(self.output[1]).enumerate() {
            for (tap, weight) in weight.iter().enumerate() {
                let met = self.met(row, tap);
                room[met].iter_mut().zip(grad).for_each(|(x, g)| *x += weight * g);
            }
        }
        for (row, to) in self.rows() {
            let (room, dx) = (&room[row * self.pitch()..], &mut dx[to * self.size[1]..]);
            self.places().zip(dx).for_each(|(place, dx)| *dx = room[place]);
        }
    }
}
