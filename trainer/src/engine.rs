//! Runs and differentiates any [`Net`] with burn: every parameter of the graph becomes a tensor
//! that gradients reach, whatever the architecture.
//!
//! Values of rank up to 4 are held as rank-4 tensors with trailing axes of one, so that one map
//! holds them all; parameters are held flat and shaped at use, so that one optimiser fits all.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::module::{avg_pool2d, conv2d, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions};
use burn::tensor::{Device, Tensor, TensorData, activation};
use rand::Rng;
use rand::rngs::StdRng;

use crate::conv::{Conv, convolve};
use crate::net::shape::Shape;
use crate::net::{Array, Net, Node, Op};

/// A device by the name `--device` takes: a back end that was built in, and after a colon which of
/// its devices, `cuda:1`.
///
/// # Errors
/// If the name is unknown or the back end was not built in.
pub fn device(name: &str) -> Result<Device> {
    let (kind, number) = match name.split_once(':') {
        Some((kind, number)) => (kind, Some(number)),
        None => (name, None),
    };
    let number: Option<usize> = number
        .map(str::parse)
        .transpose()
        .with_context(|| format!("'{name}': after the colon comes the number of a device"))?;
    match (kind, number) {
        ("cpu", None) => Ok(Device::flex()),
        #[cfg(feature = "vulkan")]
        ("vulkan", None) => Ok(Device::vulkan(burn::tensor::DeviceKind::default())),
        #[cfg(feature = "vulkan")]
        ("vulkan", Some(n)) => Ok(Device::vulkan(burn::tensor::DeviceKind::DiscreteGpu(n))),
        #[cfg(feature = "wgpu")]
        ("wgpu", None) => Ok(Device::wgpu(burn::tensor::DeviceKind::default())),
        #[cfg(feature = "wgpu")]
        ("wgpu", Some(n)) => Ok(Device::wgpu(burn::tensor::DeviceKind::DiscreteGpu(n))),
        #[cfg(feature = "cuda")]
        ("cuda", n) => Ok(Device::cuda(n.unwrap_or(0))),
        #[allow(unreachable_patterns, reason = "for those that were built in")]
        ("vulkan" | "wgpu" | "cuda", _) => {
            bail!("this trainer was built without {kind}: build it with --features {kind}")
        }
        _ => bail!(
            "device '{name}' is unknown; cpu, vulkan, wgpu and cuda are, and cuda:1 and the like"
        ),
    }
}

/// A network on a device, with its parameters as tensors.
pub struct Model {
    net: Net,
    device: Device,
    params: BTreeMap<String, Tensor<1>>,
    training: bool,
}

/// What one run of a network computed, by value name, each with its true shape.
pub struct Values {
    outputs: Vec<Tensor<4>>,
    shapes: Vec<Shape>,
}

impl Values {
    /// Output `i` as a rank-4 tensor with trailing axes of one.
    ///
    /// # Errors
    /// If there is no such output.
    pub fn output(&self, i: usize) -> Result<Tensor<4>> {
        self.outputs.get(i).cloned().with_context(|| format!("the network has no output {i}"))
    }

    /// Output `i` as `[n, features]`.
    ///
    /// # Errors
    /// If there is no such output.
    pub fn matrix(&self, i: usize) -> Result<Tensor<2>> {
        let y = self.output(i)?;
        let n = y.dims()[0];
        Ok(y.reshape([n as i32, -1]))
    }

    /// Output `i` on the host.
    ///
    /// # Errors
    /// If there is no such output, or the device failed.
    pub fn array(&self, i: usize) -> Result<Array> {
        let values = to_host(self.output(i)?)?;
        Array::new(self.shapes[i].clone(), values)
    }
}

impl Model {
    /// Puts `net` on `device` to be run only.
    pub fn new(net: Net, device: &Device) -> Self {
        Self::load(net, device.clone(), false, &|_| false)
    }

    /// Puts `net` on `device` so that gradients of every parameter can be had, dropout active.
    pub fn trainable(net: Net, device: &Device) -> Self {
        Self::trainable_where(net, device, &|_| true)
    }

    /// As [`Model::trainable`], but gradients reach only the parameters that `train` names; what
    /// lies before all of them is not even recorded.
    pub fn trainable_where(net: Net, device: &Device, train: &dyn Fn(&str) -> bool) -> Self {
        Self::load(net, device.clone().autodiff(), true, train)
    }

    fn load(net: Net, device: Device, training: bool, train: &dyn Fn(&str) -> bool) -> Self {
        let params = net
            .params
            .iter()
            .map(|(name, p)| {
                let flat = TensorData::new(p.data.clone(), [p.data.len()]);
                let tensor = Tensor::<1>::from_data(flat, &device);
                (name.clone(), if train(name) { tensor.require_grad() } else { tensor })
            })
            .collect();
        Self { net, device, params, training }
    }

    /// The graph, with the parameters it was loaded with; see [`Model::export`] for the present ones.
    pub const fn net(&self) -> &Net {
        &self.net
    }

    /// The device values must be on.
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// Names and sizes of the parameters.
    pub fn params(&self) -> impl Iterator<Item = (&str, &Tensor<1>)> {
        self.params.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Replaces each parameter that has a gradient by `update(name, shape, old value, gradient)`,
    /// all without history.
    pub fn update(
        &mut self,
        grads: &BTreeMap<String, Tensor<1>>,
        mut update: impl FnMut(&str, &[usize], Tensor<1>, Tensor<1>) -> Tensor<1>,
    ) {
        for (name, param) in &mut self.params {
            let Some(grad) = grads.get(name) else { continue };
            let shape = &self.net.params[name].shape;
            let new = update(name, shape, param.clone().inner(), grad.clone());
            *param = Tensor::from_inner(new).require_grad();
        }
    }

    /// Takes the parameters of another model of the same network, on whatever device.
    pub fn follow(&mut self, other: &Self) {
        for (name, param) in &mut self.params {
            if param.is_require_grad() {
                let here = param.clone().inner().device();
                let new = other.params[name].clone().inner().to_device(&here);
                *param = Tensor::from_inner(new).require_grad();
            }
        }
    }

    /// The network with the present parameters.
    ///
    /// # Errors
    /// If the device failed.
    pub fn export(&self) -> Result<Net> {
        let mut net = self.net.clone();
        for (name, param) in &self.params {
            if let Some(array) = net.params.get_mut(name) {
                array.data = to_host(param.clone())?;
            }
        }
        Ok(net)
    }

    /// A batch of host numbers as the network's input.
    ///
    /// # Errors
    /// If the length does not fit the shape.
    pub fn batch(&self, data: Vec<f32>, shape: [usize; 4]) -> Result<Tensor<4>> {
        ensure!(
            data.len() == shape.iter().product::<usize>(),
            "a batch of shape {shape:?} has another length than {}",
            data.len()
        );
        Ok(Tensor::from_data(TensorData::new(data, shape), &self.device))
    }

    /// Runs the network. `rng` draws what dropout drops; without it, or on a model that is only
    /// run, nothing is dropped.
    ///
    /// # Errors
    /// If the input does not fit, naming the node.
    pub fn forward(&self, input: Tensor<4>, mut rng: Option<&mut StdRng>) -> Result<Values> {
        let shapes = self.net.shapes(input.dims())?;
        let mut values: HashMap<&str, Tensor<4>> = HashMap::new();
        values.insert(&self.net.input, input);
        for node in &self.net.nodes {
            if values.contains_key(node.output.as_str()) {
                continue;
            }
            let run = Step { model: self, shapes: &shapes, values: &values, node };
            if let Some((reader, limits)) = self.limiter(node)
                && let Some(y) = run.convolved(limits)?
            {
                values.insert(&reader.output, y);
                continue;
            }
            let dropout = if self.training { rng.as_deref_mut() } else { None };
            let y = run.output(dropout).with_context(|| format!("node '{}'", node.name))?;
            values.insert(&node.output, y);
        }
        let outputs = self.net.outputs.iter().map(|o| {
            values.get(o.as_str()).cloned().with_context(|| format!("output '{o}' is not computed"))
        });
        Ok(Values {
            outputs: outputs.collect::<Result<_>>()?,
            shapes: self.net.outputs.iter().map(|o| shapes[o].clone()).collect(),
        })
    }

    /// What alone reads a convolution and only holds it within limits, and those.
    fn limiter(&self, node: &Node) -> Option<(&Node, [f32; 2])> {
        let read = |n: &&Node| n.inputs.contains(&node.output);
        let mut readers = self.net.nodes.iter().filter(read);
        let reader = readers.next()?;
        let alone = readers.next().is_none() && !self.net.outputs.contains(&node.output);
        let limits = match (&node.op, &reader.op) {
            (Op::Conv { .. }, Op::Clip { low, high }) => [*low, *high],
            (Op::Conv { .. }, Op::Relu) => [0.0, f32::INFINITY],
            _ => return None,
        };
        alone.then_some((reader, limits))
    }
}

/// Numbers of a tensor on the host.
///
/// # Errors
/// If the device failed.
pub fn to_host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data =
        tensor.try_into_data().map_err(|e| anyhow!("reading from the device failed: {e:?}"))?;
    data.try_to_vec().map_err(|e| anyhow!("reading from the device failed: {e:?}"))
}

/// One node about to run.
struct Step<'a> {
    model: &'a Model,
    shapes: &'a BTreeMap<String, Shape>,
    values: &'a HashMap<&'a str, Tensor<4>>,
    node: &'a Node,
}

impl Step<'_> {
    fn output(&self, rng: Option<&mut StdRng>) -> Result<Tensor<4>> {
        let x = || self.value(0);
        Ok(match &self.node.op {
            Op::Conv { stride, pads, dilation, groups } => {
                if let Some(y) = self.convolved(Conv::FREE)? {
                    return Ok(y);
                }
                if (*stride, *pads, *groups) == ([1, 1], [0; 4], 1) && self.is_pointwise() {
                    return self.pointwise(x()?);
                }
                let options =
                    ConvOptions::new_with_padding(*stride, sides(*pads), *dilation, *groups);
                conv2d(x()?, self.weight()?, self.bias(), options)
            }
            Op::Gemm => self.gemm(x()?)?,
            Op::Relu => activation::relu(x()?),
            Op::LeakyRelu { slope } => activation::leaky_relu(x()?, f64::from(*slope)),
            Op::Clip { low, high } => x()?.clamp(*low, *high),
            Op::Sigmoid => activation::sigmoid(x()?),
            Op::Tanh => x()?.tanh(),
            Op::HardSwish => {
                let x = x()?;
                x.clone() * (x / 6.0 + 0.5).clamp(0.0, 1.0)
            }
            Op::Softmax { axis } => activation::softmax(x()?, *axis),
            Op::Add => self.operand(0)? + self.operand(1)?,
            Op::Sub => self.operand(0)? - self.operand(1)?,
            Op::Mul => self.operand(0)? * self.operand(1)?,
            Op::Div => self.operand(0)? / self.operand(1)?,
            Op::MaxPool { kernel, stride, pads, .. } => {
                let mut options = MaxPoolOptions::new(*kernel);
                options.stride = *stride;
                // Rounded up, the last windows reach further than the padding.
                let (x, y, mut pads) = (x()?, self.padded(&self.node.output), *pads);
                for axis in [0, 1] {
                    let reach = (y[2 + axis] - 1) * stride[axis] + kernel[axis];
                    let end = reach.saturating_sub(x.dims()[2 + axis] + pads[axis]);
                    pads[2 + axis] = pads[2 + axis].max(end);
                }
                options.padding = sides(pads);
                max_pool2d(x, options)
            }
            Op::AveragePool { kernel, stride, pads, count_pads } => {
                let mut options = AvgPoolOptions::new(*kernel);
                options.stride = *stride;
                options.padding = sides(*pads);
                options.count_include_pad = *count_pads;
                avg_pool2d(x()?, options)
            }
            Op::GlobalAveragePool => x()?.mean_dim(3).mean_dim(2),
            Op::Lrn { size, alpha, beta, bias } => lrn(x()?, *size, *alpha, *beta, *bias),
            Op::Flatten | Op::Reshape { .. } => x()?.reshape(self.padded(&self.node.output)),
            Op::Transpose { perm } => {
                let mut axes = [0, 1, 2, 3];
                axes[..perm.len()].copy_from_slice(perm);
                x()?.permute(axes)
            }
            Op::Concat { axis } => {
                let parts = (0..self.node.inputs.len()).map(|i| self.operand(i));
                Tensor::cat(parts.collect::<Result<_>>()?, *axis)
            }
            Op::Slice { axis, start, end, step } => {
                let extent = self.shapes[&self.node.inputs[0]][*axis];
                let picked: Vec<i32> =
                    (*start..(*end).min(extent)).step_by(*step).map(|i| i as i32).collect();
                let n = picked.len();
                let x = x()?;
                let index = Tensor::<1, burn::tensor::Int>::from_data(
                    TensorData::new(picked, [n]),
                    &x.device(),
                );
                x.select(*axis, index)
            }
            Op::Upsample { factor } => {
                let x = x()?;
                let [n, c, h, w] = x.dims();
                // Nearest neighbour by broadcasting: its gradient is a plain sum.
                let wide = x.reshape([n, c, h, 1, w, 1]).expand([n, c, h, *factor, w, *factor]);
                wide.reshape([n, c, h * factor, w * factor])
            }
            Op::Dropout { rate } => dropout(x()?, *rate, rng),
            Op::Identity => x()?,
        })
    }

    fn value(&self, i: usize) -> Result<Tensor<4>> {
        let name = self.node.inputs.get(i).context("has too few inputs")?;
        self.values.get(name.as_str()).cloned().with_context(|| format!("'{name}' is not a value"))
    }

    /// Shape of a value with trailing ones up to rank 4.
    fn padded(&self, name: &str) -> [usize; 4] {
        let mut out = [1; 4];
        let shape = &self.shapes[name];
        out[..shape.len()].copy_from_slice(shape);
        out
    }

    /// Input `i`, value or parameter, aligned at the last true axis with the output.
    fn operand(&self, i: usize) -> Result<Tensor<4>> {
        let name = self.node.inputs.get(i).context("has too few inputs")?;
        let (rank, own) = (self.shapes[&self.node.output].len(), self.shapes[name].len());
        let mut shape = [1; 4];
        shape[rank - own..rank].copy_from_slice(&self.shapes[name]);
        Ok(match self.model.params.get(name) {
            Some(param) => param.clone().reshape(shape),
            None if rank == own => self.value(i)?,
            None => self.value(i)?.reshape(shape),
        })
    }

    fn weight(&self) -> Result<Tensor<4>> {
        let name = self.node.inputs.get(1).context("has no weights")?;
        let flat = self.model.params.get(name).context("weights must be constants")?;
        Ok(flat.clone().reshape(self.padded(name)))
    }

    fn bias(&self) -> Option<Tensor<1>> {
        self.node.inputs.get(2).and_then(|n| self.model.params.get(n)).cloned()
    }

    /// A convolution held within `limits`, where it can be done in one step.
    fn convolved(&self, limits: [f32; 2]) -> Result<Option<Tensor<4>>> {
        let Op::Conv { stride, pads, dilation: [1, 1], .. } = self.node.op else { return Ok(None) };
        let conv = Conv { stride, pads, limits };
        Ok(convolve(&self.value(0)?, &self.weight()?, self.bias().as_ref(), conv))
    }

    fn is_pointwise(&self) -> bool {
        self.node.inputs.get(1).is_some_and(|w| self.shapes[w][2..] == [1, 1])
    }

    /// A convolution of one pixel as a product of matrices: burn's own takes the way through
    /// transposed convolutions to its gradients.
    fn pointwise(&self, x: Tensor<4>) -> Result<Tensor<4>> {
        let [n, c, h, w] = x.dims();
        let weight = self.weight()?;
        let out = weight.dims()[0];
        let y = weight.reshape([1, out, c]).matmul(x.reshape([n, c, h * w]));
        let y = match self.bias() {
            Some(bias) => y + bias.reshape([1, out, 1]),
            None => y,
        };
        Ok(y.reshape([n, out, h, w]))
    }

    fn gemm(&self, x: Tensor<4>) -> Result<Tensor<4>> {
        let [n, k, ..] = x.dims();
        let weight = self.weight()?;
        let out = weight.dims()[0];
        let y = x.reshape([n, k]).matmul(weight.reshape([out, k]).transpose());
        let y = match self.bias() {
            Some(bias) => y + bias.reshape([1, out]),
            None => y,
        };
        Ok(y.reshape([n, out, 1, 1]))
    }
}

/// Rows and columns of `[top, left, bottom, right]`, each `(before, after)`.
const fn sides(pads: [usize; 4]) -> [(usize, usize); 2] {
    [(pads[0], pads[2]), (pads[1], pads[3])]
}

/// `x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ^ beta`.
fn lrn(x: Tensor<4>, size: usize, alpha: f32, beta: f32, bias: f32) -> Tensor<4> {
    let [n, c, h, w] = x.dims();
    let (before, after) = ((size - 1) / 2, size - 1 - (size - 1) / 2);
    let zeros = |k: usize| Tensor::<4>::zeros([n, k, h, w], &x.device());
    let squares = Tensor::cat(vec![zeros(before), x.clone() * x.clone(), zeros(after)], 1);
    let windows = (0..size).map(|k| squares.clone().narrow(1, k, c));
    let sum = windows.reduce(|a, b| a + b).unwrap_or_else(|| squares.clone());
    x / (sum * (alpha / size as f32) + bias).powf_scalar(beta)
}

fn dropout(x: Tensor<4>, rate: f32, rng: Option<&mut StdRng>) -> Tensor<4> {
    let Some(rng) = rng.filter(|_| rate > 0.0) else { return x };
    let keep = 1.0 / (1.0 - rate);
    let dims = x.dims();
    let count = dims.iter().product();
    // Drawn on the host: the same seed drops the same numbers on every device.
    let mask = (0..count).map(|_| if rng.random::<f32>() < rate { 0.0 } else { keep });
    let mask = TensorData::new(mask.collect::<Vec<f32>>(), dims);
    let device = x.device();
    x * Tensor::<4>::from_data(mask, &device)
}
