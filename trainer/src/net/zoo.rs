//! Architectures that can be built from scratch or filled from published weights.

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::fold::BatchNorm;
use super::{Array, Net, Op};
use crate::weights::StateDict;

/// A kind of network that `net new` and `import` know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Architecture {
    /// EfficientNet-Lite0, 224 pixels, 0.4 GMAC (Tan and Le 2019; Lite: 2020).
    EfficientnetLite0,
    /// EfficientNet-Lite1, 240 pixels.
    EfficientnetLite1,
    /// EfficientNet-Lite2, 260 pixels.
    EfficientnetLite2,
    /// AlexNet as published: two groups, local response normalisation, 227 pixels
    /// (Krizhevsky et al. 2012).
    Alexnet,
    /// AlexNet in one column, as torchvision has it (Krizhevsky 2014), 224 pixels.
    AlexnetOneColumn,
    /// ResNet-18, 224 pixels (He et al. 2015).
    Resnet18,
    /// A residual network small enough to train from scratch on a laptop, 96 pixels.
    SmallResidual,
    /// A depthwise separable network for the same purpose, 96 pixels.
    SmallDepthwise,
}

impl Architecture {
    /// Side of the square input, pixels.
    pub const fn side(self) -> usize {
        match self {
            Self::EfficientnetLite0 | Self::AlexnetOneColumn | Self::Resnet18 => 224,
            Self::EfficientnetLite1 => 240,
            Self::EfficientnetLite2 => 260,
            Self::Alexnet => 227,
            Self::SmallResidual | Self::SmallDepthwise => 96,
        }
    }

    /// Mean and deviation per channel of 8-bit pixels that the published weights expect.
    pub const fn normalisation(self) -> ([f32; 3], [f32; 3]) {
        match self {
            Self::AlexnetOneColumn | Self::Resnet18 => {
                ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
            }
            _ => ([127.0; 3], [128.0; 3]),
        }
    }

    /// The network with fresh weights (He et al. 2015, normal, fan-in), the same for the same
    /// seed. `width` multiplies the hidden units of AlexNet's fully connected layers and the
    /// channels of the small networks.
    ///
    /// # Errors
    /// If `classes` is zero or `width` leaves no channel.
    pub fn fresh(self, classes: usize, width: f32, seed: u64) -> Result<Net> {
        self.fresh_at(self.side(), classes, width, seed)
    }

    /// The same for an input of another side: AlexNet's first dense layer and one-sided padding
    /// depend on it.
    ///
    /// # Errors
    /// If `classes` is zero, `width` leaves no channel, or too little is left of so small a picture.
    pub fn fresh_at(self, side: usize, classes: usize, width: f32, seed: u64) -> Result<Net> {
        self.build(side, classes, width, &mut Source::Fresh(Box::new(StdRng::seed_from_u64(seed))))
            .with_context(|| format!("{self:?} with {side} pixels"))
    }

    /// The network with the weights of a PyTorch state dict, batch normalisation folded.
    ///
    /// # Errors
    /// Naming the first tensor that is missing or has another shape.
    pub fn filled(self, dict: &StateDict) -> Result<Net> {
        let classifier = match self {
            Self::EfficientnetLite0 | Self::EfficientnetLite1 | Self::EfficientnetLite2 => {
                "_fc.bias"
            }
            Self::AlexnetOneColumn => "classifier.6.bias",
            Self::Resnet18 => "fc.bias",
            other => bail!("there are no published weights for {other:?}: train it from scratch"),
        };
        let classes = dict.get(classifier)?.shape[0];
        self.build(self.side(), classes, 1.0, &mut Source::Dict(dict))
    }

    fn build(
        self,
        side: usize,
        classes: usize,
        width: f32,
        source: &mut Source<'_>,
    ) -> Result<Net> {
        anyhow::ensure!(classes > 0, "a classifier needs at least one class");
        let net = Net {
            input: "image".into(),
            input_shape: [None, Some(3), Some(side), Some(side)],
            ..Net::default()
        };
        let mut b = Builder { net, source, side };
        match self {
            Self::EfficientnetLite0 => b.efficientnet(1.0, 1.0, classes)?,
            Self::EfficientnetLite1 => b.efficientnet(1.0, 1.1, classes)?,
            Self::EfficientnetLite2 => b.efficientnet(1.1, 1.2, classes)?,
            Self::Alexnet => b.alexnet(classes, width)?,
            Self::AlexnetOneColumn => b.alexnet_one_column(classes)?,
            Self::Resnet18 => b.resnet(&[(64, 2), (128, 2), (256, 2), (512, 2)], classes)?,
            Self::SmallResidual => {
                let c = |n: f32| (n * width) as usize;
                b.resnet(&[(c(16.0), 1), (c(32.0), 1), (c(64.0), 1), (c(96.0), 1)], classes)?;
            }
            Self::SmallDepthwise => b.small_depthwise(classes, width)?,
        }
        b.net.check()?;
        b.net.shapes(b.net.shape_at(side))?;
        Ok(b.net)
    }
}

/// Where weights come from.
enum Source<'a> {
    Fresh(Box<StdRng>),
    Dict(&'a StateDict),
}

impl Source<'_> {
    fn weight(&mut self, key: &str, shape: &[usize]) -> Result<Array> {
        match self {
            Self::Fresh(rng) => Ok(he_normal(shape, rng)),
            Self::Dict(dict) => dict.shaped(&format!("{key}.weight"), shape),
        }
    }

    fn bias(&mut self, key: &str, n: usize) -> Result<Array> {
        match self {
            Self::Fresh(_) => Ok(Array::zeros([n])),
            Self::Dict(dict) => dict.shaped(&format!("{key}.bias"), &[n]),
        }
    }

    /// Weights and bias of a convolution with the batch norm `bn` after it folded in.
    fn folded(
        &mut self,
        key: &str,
        bn: &str,
        epsilon: f32,
        shape: &[usize],
    ) -> Result<(Array, Array)> {
        let weight = self.weight(key, shape)?;
        let Self::Dict(dict) = self else { return Ok((weight, Array::zeros([shape[0]]))) };
        let part = |name: &str| dict.shaped(&format!("{bn}.{name}"), &shape[..1]);
        let (gamma, beta) = (part("weight")?, part("bias")?);
        let (mean, variance) = (part("running_mean")?, part("running_var")?);
        BatchNorm {
            gamma: &gamma.data,
            beta: &beta.data,
            mean: &mean.data,
            variance: &variance.data,
            epsilon,
        }
        .fold(&weight, None)
    }
}

/// Normal weights with variance `2 / fan-in`.
pub fn he_normal(shape: &[usize], rng: &mut StdRng) -> Array {
    let fan_in: usize = shape[1..].iter().product::<usize>().max(1);
    let deviation = (2.0 / fan_in as f32).sqrt();
    let data = (0..shape.iter().product()).map(|_| deviation * standard_normal(rng)).collect();
    Array { shape: shape.to_vec(), data }
}

/// Box and Muller's transform.
pub fn standard_normal(rng: &mut impl Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * rng.random::<f32>()).cos()
}

/// One convolution of a builder.
struct ConvSpec<'a> {
    key: &'a str,
    bn: &'a str,
    channels: (usize, usize),
    kernel: usize,
    stride: usize,
    groups: usize,
    epsilon: f32,
}

struct Builder<'a, 'b> {
    net: Net,
    source: &'a mut Source<'b>,
    side: usize,
}

impl Builder<'_, '_> {
    fn relu6(&mut self, name: &str, x: &str) -> String {
        self.net.push(&format!("{name}.act"), Op::Clip { low: 0.0, high: 6.0 }, &[x])
    }

    /// Convolution with folded batch norm and TensorFlow's "SAME" padding written out: on an even
    /// side with stride 2 it is one-sided, which no symmetric padding reproduces.
    fn conv_same(&mut self, name: &str, x: &str, s: &ConvSpec<'_>) -> Result<String> {
        let out = self.side.div_ceil(s.stride);
        let total = ((out - 1) * s.stride + s.kernel).saturating_sub(self.side);
        self.side = out;
        let (before, after) = (total / 2, total - total / 2);
        self.conv(name, x, s, [before, before, after, after])
    }

    fn conv(&mut self, name: &str, x: &str, s: &ConvSpec<'_>, pads: [usize; 4]) -> Result<String> {
        let (input, output) = s.channels;
        let shape = [output, input / s.groups, s.kernel, s.kernel];
        let (w, b) = self.source.folded(s.key, s.bn, s.epsilon, &shape)?;
        let op = Op::Conv { stride: [s.stride; 2], pads, dilation: [1; 2], groups: s.groups };
        Ok(self.net.push_weighted(name, op, x, w, Some(b)))
    }

    /// A convolution with its own bias and no batch norm.
    fn plain(&mut self, name: &str, x: &str, s: &ConvSpec<'_>, pad: usize) -> Result<String> {
        let (input, output) = s.channels;
        let w = self.source.weight(s.key, &[output, input / s.groups, s.kernel, s.kernel])?;
        let b = self.source.bias(s.key, output)?;
        let op =
            Op::Conv { stride: [s.stride; 2], pads: [pad; 4], dilation: [1; 2], groups: s.groups };
        let y = self.net.push_weighted(name, op, x, w, Some(b));
        Ok(self.net.push(&format!("{name}.act"), Op::Relu, &[&y]))
    }

    fn dense(&mut self, name: &str, key: &str, x: &str, sizes: (usize, usize)) -> Result<String> {
        let w = self.source.weight(key, &[sizes.1, sizes.0])?;
        let b = self.source.bias(key, sizes.1)?;
        Ok(self.net.push_weighted(name, Op::Gemm, x, w, Some(b)))
    }

    fn pooled_head(&mut self, x: &str, channels: usize, key: &str, classes: usize) -> Result<()> {
        let pooled = self.net.push("pool", Op::GlobalAveragePool, &[x]);
        let features = self.net.push("features", Op::Flatten, &[&pooled]);
        let logits = self.dense("logits", key, &features, (channels, classes))?;
        self.net.outputs = vec![logits, features];
        Ok(())
    }

    fn efficientnet(&mut self, width: f32, depth: f32, classes: usize) -> Result<()> {
        const EPSILON: f32 = 1e-3;
        // Repeats, kernel, stride, expansion, channels in and out of Lite0.
        const STAGES: [(usize, usize, usize, usize, usize, usize); 7] = [
            (1, 3, 1, 1, 32, 16),
            (2, 3, 2, 6, 16, 24),
            (2, 5, 2, 6, 24, 40),
            (3, 3, 2, 6, 40, 80),
            (3, 5, 1, 6, 80, 112),
            (4, 5, 2, 6, 112, 192),
            (1, 3, 1, 6, 192, 320),
        ];
        fn spec<'k>(
            key: &'k str,
            bn: &'k str,
            channels: (usize, usize),
            kernel: usize,
            stride: usize,
            groups: usize,
        ) -> ConvSpec<'k> {
            ConvSpec { key, bn, channels, kernel, stride, groups, epsilon: EPSILON }
        }
        let x = self.conv_same("stem", "image", &spec("_conv_stem", "_bn0", (3, 32), 3, 2, 1))?;
        let mut x = self.relu6("stem", &x);
        let mut block = 0;
        for (stage, &(repeats, kernel, stride, expansion, input, output)) in
            STAGES.iter().enumerate()
        {
            // Lite keeps the repeats of the first and last stage and the stem's channels.
            let fixed = stage == 0 || stage == STAGES.len() - 1;
            let repeats = if fixed { repeats } else { (depth * repeats as f32).ceil() as usize };
            let input = if stage == 0 { input } else { scaled(input, width) };
            let output = scaled(output, width);
            for r in 0..repeats {
                let (input, stride) = if r == 0 { (input, stride) } else { (output, 1) };
                let hidden = input * expansion;
                let (name, key) = (format!("b{block}"), format!("_blocks.{block}"));
                let before = x.clone();
                if expansion != 1 {
                    let (k, bn) = (format!("{key}._expand_conv"), format!("{key}._bn0"));
                    let expand = format!("{name}.expand");
                    x = self.conv_same(&expand, &x, &spec(&k, &bn, (input, hidden), 1, 1, 1))?;
                    x = self.relu6(&expand, &x);
                }
                let (k, bn, dw) =
                    (format!("{key}._depthwise_conv"), format!("{key}._bn1"), format!("{name}.dw"));
                x = self.conv_same(
                    &dw,
                    &x,
                    &spec(&k, &bn, (hidden, hidden), kernel, stride, hidden),
                )?;
                x = self.relu6(&dw, &x);
                let (k, bn) = (format!("{key}._project_conv"), format!("{key}._bn2"));
                x = self.conv_same(
                    &format!("{name}.project"),
                    &x,
                    &spec(&k, &bn, (hidden, output), 1, 1, 1),
                )?;
                if stride == 1 && input == output {
                    x = self.net.push(&format!("{name}.add"), Op::Add, &[&x, &before]);
                }
                block += 1;
            }
        }
        let last = scaled(320, width);
        x = self.conv_same("head", &x, &spec("_conv_head", "_bn1", (last, 1280), 1, 1, 1))?;
        x = self.relu6("head", &x);
        self.pooled_head(&x, 1280, "_fc", classes)
    }

    fn alexnet(&mut self, classes: usize, width: f32) -> Result<()> {
        let lrn = Op::Lrn { size: 5, alpha: 1e-4 * 5.0, beta: 0.75, bias: 2.0 };
        let pool = Op::MaxPool { kernel: [3; 2], stride: [2; 2], pads: [0; 4], ceil: false };
        // Channels in and out, kernel, stride, padding, groups, normalised and pooled, pooled.
        let layers = [
            (3, 96, 11, 4, 0, 1, true, true),
            (96, 256, 5, 1, 2, 2, true, true),
            (256, 384, 3, 1, 1, 1, false, false),
            (384, 384, 3, 1, 1, 2, false, false),
            (384, 256, 3, 1, 1, 2, false, true),
        ];
        let mut x = "image".to_owned();
        for (i, (input, output, kernel, stride, pad, groups, normed, pooled)) in
            layers.into_iter().enumerate()
        {
            let n = i + 1;
            let s = ConvSpec {
                key: "",
                bn: "",
                channels: (input, output),
                kernel,
                stride,
                groups,
                epsilon: 0.0,
            };
            x = self.plain(&format!("conv{n}"), &x, &s, pad)?;
            if normed {
                x = self.net.push(&format!("norm{n}"), lrn.clone(), &[&x]);
            }
            if pooled {
                x = self.net.push(&format!("pool{n}"), pool.clone(), &[&x]);
            }
        }
        let hidden = (4096.0 * width) as usize;
        self.two_hidden(&x, hidden, ["fc6", "fc7", "fc8"], classes)
    }

    fn alexnet_one_column(&mut self, classes: usize) -> Result<()> {
        let layers = [
            ("features.0", 3, 64, 11, 4, 2, true),
            ("features.3", 64, 192, 5, 1, 2, true),
            ("features.6", 192, 384, 3, 1, 1, false),
            ("features.8", 384, 256, 3, 1, 1, false),
            ("features.10", 256, 256, 3, 1, 1, true),
        ];
        let mut x = "image".to_owned();
        for (i, (key, input, output, kernel, stride, pad, pooled)) in layers.into_iter().enumerate()
        {
            let n = i + 1;
            let s = ConvSpec {
                key,
                bn: "",
                channels: (input, output),
                kernel,
                stride,
                groups: 1,
                epsilon: 0.0,
            };
            x = self.plain(&format!("conv{n}"), &x, &s, pad)?;
            if pooled {
                let pool =
                    Op::MaxPool { kernel: [3; 2], stride: [2; 2], pads: [0; 4], ceil: false };
                x = self.net.push(&format!("pool{n}"), pool, &[&x]);
            }
        }
        let keys = ["classifier.1", "classifier.4", "classifier.6"];
        self.two_hidden(&x, 4096, keys, classes)
    }

    /// AlexNet's classifier: two hidden layers with dropout, then the logits.
    fn two_hidden(
        &mut self,
        x: &str,
        hidden: usize,
        keys: [&str; 3],
        classes: usize,
    ) -> Result<()> {
        // 256 channels of 6x6 cells at the original's side.
        let mut size = self.net.shapes([1, 3, self.side, self.side])?[x][1..].iter().product();
        let mut x = self.net.push("flat", Op::Flatten, &[x]);
        for (name, key) in ["fc6", "fc7"].into_iter().zip(keys) {
            x = self.net.push(&format!("{name}.drop"), Op::Dropout { rate: 0.5 }, &[&x]);
            x = self.dense(name, key, &x, (size, hidden))?;
            x = self.net.push(&format!("{name}.act"), Op::Relu, &[&x]);
            size = hidden;
        }
        let features = self.net.push("features", Op::Identity, &[&x]);
        let logits = self.dense("logits", keys[2], &features, (hidden, classes))?;
        self.net.outputs = vec![logits, features];
        Ok(())
    }

    fn resnet(&mut self, stages: &[(usize, usize)], classes: usize) -> Result<()> {
        const EPSILON: f32 = 1e-5;
        let first = stages.first().context("a residual network needs a stage")?.0;
        fn spec<'k>(
            key: &'k str,
            bn: &'k str,
            channels: (usize, usize),
            kernel: usize,
            stride: usize,
        ) -> ConvSpec<'k> {
            ConvSpec { key, bn, channels, kernel, stride, groups: 1, epsilon: EPSILON }
        }
        let x = self.conv("conv1", "image", &spec("conv1", "bn1", (3, first), 7, 2), [3; 4])?;
        let x = self.net.push("conv1.act", Op::Relu, &[&x]);
        let pool = Op::MaxPool { kernel: [3; 2], stride: [2; 2], pads: [1; 4], ceil: false };
        let mut x = self.net.push("pool1", pool, &[&x]);
        let mut input = first;
        for (stage, &(output, blocks)) in stages.iter().enumerate() {
            for block in 0..blocks {
                let name = format!("layer{}.{block}", stage + 1);
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let keys = |c: &str, b: &str| (format!("{name}.{c}"), format!("{name}.{b}"));
                let (c1, b1) = keys("conv1", "bn1");
                let (c2, b2) = keys("conv2", "bn2");
                let mut y =
                    self.conv(&c1, &x, &spec(&c1, &b1, (input, output), 3, stride), [1; 4])?;
                y = self.net.push(&format!("{c1}.act"), Op::Relu, &[&y]);
                y = self.conv(&c2, &y, &spec(&c2, &b2, (output, output), 3, 1), [1; 4])?;
                let shortcut = if stride != 1 || input != output {
                    let (c, b) = keys("downsample.0", "downsample.1");
                    self.conv(&c, &x, &spec(&c, &b, (input, output), 1, stride), [0; 4])?
                } else {
                    x.clone()
                };
                y = self.net.push(&format!("{name}.add"), Op::Add, &[&y, &shortcut]);
                x = self.net.push(&format!("{name}.act"), Op::Relu, &[&y]);
                input = output;
            }
        }
        self.pooled_head(&x, input, "fc", classes)
    }

    fn small_depthwise(&mut self, classes: usize, width: f32) -> Result<()> {
        let c = |n: f32| ((n * width) as usize).max(1);
        let spec = |channels, kernel, stride, groups| ConvSpec {
            key: "",
            bn: "",
            channels,
            kernel,
            stride,
            groups,
            epsilon: 0.0,
        };
        let mut x = self.conv_same("stem", "image", &spec((3, c(16.0)), 3, 2, 1))?;
        x = self.relu6("stem", &x);
        let mut input = c(16.0);
        for (i, (output, stride)) in
            [(32.0, 1), (64.0, 2), (64.0, 1), (128.0, 2), (128.0, 1), (192.0, 2)]
                .into_iter()
                .enumerate()
        {
            let output = c(output);
            let (dw, pw) = (format!("b{i}.dw"), format!("b{i}.pw"));
            x = self.conv_same(&dw, &x, &spec((input, input), 3, stride, input))?;
            x = self.relu6(&dw, &x);
            x = self.conv_same(&pw, &x, &spec((input, output), 1, 1, 1))?;
            x = self.relu6(&pw, &x);
            input = output;
        }
        self.pooled_head(&x, input, "fc", classes)
    }
}

/// Channels times `width`, to a multiple of 8, never down by more than a tenth.
fn scaled(channels: usize, width: f32) -> usize {
    let wanted = channels as f32 * width;
    let rounded = ((wanted + 4.0) as usize / 8 * 8).max(8);
    if (rounded as f32) < 0.9 * wanted { rounded + 8 } else { rounded }
}
