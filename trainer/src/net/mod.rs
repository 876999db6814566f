//! A network as data: a typed subset of ONNX that can be read, cut, edited, trained and written.
//!
//! Values are named, as in ONNX; a node's inputs name either the network's input, another node's
//! output or a parameter. Every layout is ONNX's: activations NCHW, convolution weights
//! `[out, in / groups, kh, kw]`, fully connected weights `[out, in]` (`transB = 1`).

pub mod fold;
pub mod onnx;
pub mod shape;
pub mod surgery;
pub mod zoo;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// Name of the row that [`Net::cut_many`] makes.
const ROW: &str = "row";

/// Numbers with a shape, rows last to first as in C.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Extent of each axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// `shape.product()` numbers.
    pub data: Vec<f32>,
}

impl Array {
    /// `data` seen as `shape`.
    ///
    /// # Errors
    /// If the lengths disagree.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Result<Self> {
        let shape = shape.into();
        let expected: usize = shape.iter().product();
        ensure!(
            expected == data.len(),
            "an array of shape {shape:?} has {expected} numbers, not {}",
            data.len()
        );
        Ok(Self { shape, data })
    }

    /// All zero.
    pub fn zeros(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let data = vec![0.0; shape.iter().product()];
        Self { shape, data }
    }
}

/// What a node computes. Inputs that are parameters follow the activations.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Cross-correlation; inputs `x, w` or `x, w, b`.
    Conv {
        /// Rows, columns.
        stride: [usize; 2],
        /// Top, left, bottom, right.
        pads: [usize; 4],
        /// Rows, columns.
        dilation: [usize; 2],
        /// Channels are split into this many independent groups.
        groups: usize,
    },
    /// `x * w^T + b` on `[n, features]`; inputs `x, w` or `x, w, b`.
    Gemm,
    /// `max(x, 0)`.
    Relu,
    /// `x` where positive, else `slope * x`.
    LeakyRelu {
        /// Slope on the negative side.
        slope: f32,
    },
    /// `x` limited to `low..=high`.
    Clip {
        /// Lower limit.
        low: f32,
        /// Upper limit.
        high: f32,
    },
    /// Logistic function.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `x * clip(x / 6 + 1 / 2, 0, 1)`.
    HardSwish,
    /// Normalised exponentials along an axis.
    Softmax {
        /// Axis, counted from the front.
        axis: usize,
    },
    /// Elementwise sum, broadcasting.
    Add,
    /// Elementwise difference, broadcasting.
    Sub,
    /// Elementwise product, broadcasting.
    Mul,
    /// Elementwise quotient, broadcasting.
    Div,
    /// Largest of each window.
    MaxPool {
        /// Rows, columns.
        kernel: [usize; 2],
        /// Rows, columns.
        stride: [usize; 2],
        /// Top, left, bottom, right.
        pads: [usize; 4],
        /// Whether the number of windows is rounded up: what is left over has one too.
        ceil: bool,
    },
    /// Mean of each window; padding counts as zero only if `count_pads`.
    AveragePool {
        /// Rows, columns.
        kernel: [usize; 2],
        /// Rows, columns.
        stride: [usize; 2],
        /// Top, left, bottom, right.
        pads: [usize; 4],
        /// Whether the divisor includes padding.
        count_pads: bool,
    },
    /// Mean over rows and columns, kept as `[n, c, 1, 1]`.
    GlobalAveragePool,
    /// Local response normalisation across channels (Krizhevsky et al. 2012, section 3.3, with
    /// ONNX's division of alpha by `size`).
    Lrn {
        /// Channels summed over.
        size: usize,
        /// Scale.
        alpha: f32,
        /// Exponent.
        beta: f32,
        /// Offset.
        bias: f32,
    },
    /// `[n, ...]` to `[n, features]`.
    Flatten,
    /// Another shape for the same numbers: 0 keeps an axis, -1 is inferred.
    Reshape {
        /// Target shape.
        shape: Vec<i64>,
    },
    /// Axes in another order.
    Transpose {
        /// Source axis of each target axis.
        perm: Vec<usize>,
    },
    /// Joined along an axis.
    Concat {
        /// Axis, counted from the front.
        axis: usize,
    },
    /// Every `step`-th element of `start..end` along one axis; `end` is cut to the extent.
    Slice {
        /// Axis, counted from the front.
        axis: usize,
        /// First index.
        start: usize,
        /// Index after the last.
        end: usize,
        /// Distance between indices.
        step: usize,
    },
    /// Each pixel repeated `factor` times in both directions (nearest neighbour).
    Upsample {
        /// Enlargement of rows and columns.
        factor: usize,
    },
    /// In training each number is dropped with probability `rate` and the rest scaled up
    /// (Srivastava et al. 2014); nothing at inference.
    Dropout {
        /// Share dropped, `0..1`.
        rate: f32,
    },
    /// Nothing.
    Identity,
}

impl Op {
    /// How many parameters may follow the activations: weights and bias.
    pub const fn has_weights(&self) -> bool {
        matches!(self, Self::Conv { .. } | Self::Gemm)
    }
}

/// One step of the computation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Unique name, for messages and edits.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Names of values and parameters.
    pub inputs: Vec<String>,
    /// Name of the value it makes.
    pub output: String,
}

/// A whole network: nodes in an order in which they can run.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Net {
    /// Name of the one input.
    pub input: String,
    /// Batch, channels, rows, columns; `None` where any extent will do.
    pub input_shape: [Option<usize>; 4],
    /// Names of the outputs, most important first.
    pub outputs: Vec<String>,
    /// In running order.
    pub nodes: Vec<Node>,
    /// Weights, biases and constants by name.
    pub params: BTreeMap<String, Array>,
}

impl Net {
    /// The node that makes `value`, and its place in the order.
    pub fn maker(&self, value: &str) -> Option<(usize, &Node)> {
        self.nodes.iter().enumerate().find(|(_, n)| n.output == value)
    }

    /// A parameter by name.
    ///
    /// # Errors
    /// If there is none.
    pub fn param(&self, name: &str) -> Result<&Array> {
        self.params.get(name).with_context(|| format!("the network has no parameter '{name}'"))
    }

    /// How many numbers are trained.
    pub fn param_count(&self) -> usize {
        self.params.values().map(|p| p.data.len()).sum()
    }

    /// Adds a node named `name` whose output carries the same name; returns that name.
    pub fn push(&mut self, name: &str, op: Op, inputs: &[&str]) -> String {
        self.nodes.push(Node {
            name: name.into(),
            op,
            inputs: inputs.iter().map(|s| (*s).into()).collect(),
            output: name.into(),
        });
        name.into()
    }

    /// Adds a node with weights, stored as `name.weight` and `name.bias`; returns its output.
    pub fn push_weighted(
        &mut self,
        name: &str,
        op: Op,
        input: &str,
        weight: Array,
        bias: Option<Array>,
    ) -> String {
        let (w, b) = (format!("{name}.weight"), format!("{name}.bias"));
        self.params.insert(w.clone(), weight);
        let mut inputs = vec![input, w.as_str()];
        if let Some(bias) = bias {
            self.params.insert(b.clone(), bias);
            inputs.push(b.as_str());
        }
        self.push(name, op, &inputs)
    }

    /// Checks that every input exists before it is used, names are unique and outputs are made.
    ///
    /// # Errors
    /// Naming the first node or output at fault.
    pub fn check(&self) -> Result<()> {
        let mut known: BTreeSet<&str> = self.params.keys().map(String::as_str).collect();
        known.insert(&self.input);
        let mut names = BTreeSet::new();
        for node in &self.nodes {
            ensure!(names.insert(&node.name), "two nodes are named '{}'", node.name);
            for input in &node.inputs {
                ensure!(
                    known.contains(input.as_str()),
                    "node '{}' uses '{input}', which nothing before it makes",
                    node.name
                );
            }
            ensure!(known.insert(&node.output), "'{}' is made twice", node.output);
        }
        for output in &self.outputs {
            ensure!(known.contains(output.as_str()), "nothing makes the output '{output}'");
        }
        ensure!(!self.outputs.is_empty(), "the network has no output");
        Ok(())
    }

    /// Drops nodes and parameters that no output needs.
    pub fn prune(&mut self) {
        let mut needed: BTreeSet<String> = self.outputs.iter().cloned().collect();
        for node in self.nodes.iter().rev() {
            if needed.contains(&node.output) {
                needed.extend(node.inputs.iter().cloned());
            }
        }
        self.nodes.retain(|n| needed.contains(&n.output));
        self.params.retain(|name, _| needed.contains(name));
    }

    /// Cuts the network at `value`: the part that computes it, and the part that starts from it.
    ///
    /// Training the second part on stored values of the cut is training the whole with the first
    /// part frozen, at a fraction of the cost; [`Net::join`] puts them together again.
    ///
    /// Cutting at the input freezes nothing.
    ///
    /// # Errors
    /// If nothing makes `value`, or the rest also needs something made before it.
    pub fn cut(&self, value: &str) -> Result<(Self, Self)> {
        if value == self.input {
            let front = Self {
                outputs: vec![value.into()],
                nodes: Vec::new(),
                params: BTreeMap::new(),
                ..self.clone()
            };
            return Ok((front, self.clone()));
        }
        let (at, _) = self.maker(value).with_context(|| {
            format!("cannot cut at '{value}': no node makes it (see `net show` for names)")
        })?;
        let mut front =
            Self { outputs: vec![value.into()], nodes: self.nodes[..=at].to_vec(), ..self.clone() };
        front.prune();
        let mut back = Self {
            input: value.into(),
            input_shape: [None; 4],
            outputs: self.outputs.clone(),
            nodes: self.nodes.clone(),
            params: self.params.clone(),
        };
        back.nodes.retain(|n| !front.nodes.iter().any(|f| f.output == n.output));
        back.prune();
        if let Err(e) = back.check() {
            bail!("cannot cut at '{value}': a branch runs past it ({e})");
        }
        Ok((front, back))
    }

    /// As [`Net::cut`], at several values at once. The second part starts from all of them in one
    /// row, `[n, numbers]`, which it takes apart again first; so a cache of the cut is one row.
    /// Its parameters carry the names they have here.
    ///
    /// `shape` is the shape of the network's input that the row is made for.
    ///
    /// # Errors
    /// If nothing makes one of the values, or the rest also needs something made before them.
    pub fn cut_many(&self, values: &[&str], shape: [usize; 4]) -> Result<(Self, Self)> {
        let shapes = self.shapes(shape)?;
        let mut front = Self {
            outputs: vec![ROW.into()],
            input_shape: [None, Some(shape[1]), Some(shape[2]), Some(shape[3])],
            ..self.clone()
        };
        let mut back = Self {
            input: ROW.into(),
            outputs: self.outputs.clone(),
            params: self.params.clone(),
            ..Self::default()
        };
        let (mut flat, mut start) = (Vec::new(), 0);
        for value in values {
            let extent = &shapes
                .get(*value)
                .with_context(|| format!("cannot cut at '{value}': no node makes it"))?[1..];
            let end = start + extent.iter().product::<usize>();
            flat.push(front.push(&format!("{ROW}.{value}"), Op::Flatten, &[value]));
            let part = back.push(
                &format!("{ROW}.{value}"),
                Op::Slice { axis: 1, start, end, step: 1 },
                &[ROW],
            );
            let target = std::iter::once(0).chain(extent.iter().map(|&e| e as i64)).collect();
            back.push(value, Op::Reshape { shape: target }, &[&part]);
            start = end;
        }
        let flat: Vec<&str> = flat.iter().map(String::as_str).collect();
        front.push(ROW, Op::Concat { axis: 1 }, &flat);
        front.prune();
        let rest = self.nodes.iter().filter(|n| !values.contains(&n.output.as_str()));
        back.nodes.extend(rest.cloned());
        back.prune();
        if let Err(e) = back.check() {
            bail!("cannot cut at {values:?}: a branch runs past them ({e})");
        }
        Ok((front, back))
    }

    /// `start` moved by `share` of the way to this network, which was trained from it.
    #[must_use]
    pub fn blended(mut self, start: &Self, share: f32) -> Self {
        for (name, param) in &mut self.params {
            let Some(start) = start.params.get(name) else { continue };
            for (w, s) in param.data.iter_mut().zip(&start.data) {
                *w = s + (*w - s) * share;
            }
        }
        self
    }

    /// The inverse of [`Net::cut`].
    ///
    /// # Errors
    /// If `back` does not start from what `front` makes.
    pub fn join(mut self, back: Self) -> Result<Self> {
        ensure!(
            self.outputs.contains(&back.input),
            "'{}' is not an output of the first part",
            back.input
        );
        self.nodes.extend(back.nodes);
        self.params.extend(back.params);
        self.outputs = back.outputs;
        self.check()?;
        Ok(self)
    }
}
