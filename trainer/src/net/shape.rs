//! Shapes and costs of a network's values, computed without running it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::{Net, Node, Op};

/// Extents of a value, batch first.
pub type Shape = Vec<usize>;

/// One row of `net show`.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Node name.
    pub name: String,
    /// Operation, with its kernel where it has one, such as `conv 3x3/2`.
    pub kind: String,
    /// Shape of its output for a batch of one.
    pub shape: Shape,
    /// Trained numbers.
    pub params: usize,
    /// Multiply-adds for a batch of one; pooling and activations count as none.
    pub macs: u64,
}

impl Net {
    /// The shape of every value for an input of `shape` (batch, channels, rows, columns).
    ///
    /// # Errors
    /// Naming the node whose inputs do not fit it.
    pub fn shapes(&self, shape: [usize; 4]) -> Result<BTreeMap<String, Shape>> {
        let mut shapes: BTreeMap<String, Shape> =
            self.params.iter().map(|(k, p)| (k.clone(), p.shape.clone())).collect();
        shapes.insert(self.input.clone(), shape.to_vec());
        for node in &self.nodes {
            let inputs = node
                .inputs
                .iter()
                .map(|i| shapes.get(i).with_context(|| format!("'{i}' is not made before its use")))
                .collect::<Result<Vec<_>>>()
                .with_context(|| format!("node '{}'", node.name))?;
            let out =
                output_shape(node, &inputs).with_context(|| format!("node '{}'", node.name))?;
            shapes.insert(node.output.clone(), out);
        }
        Ok(shapes)
    }

    /// The input shape for one picture of `side` pixels where the network leaves it open.
    pub fn shape_at(&self, side: usize) -> [usize; 4] {
        let [_, c, h, w] = self.input_shape;
        [1, c.unwrap_or(3), h.unwrap_or(side), w.unwrap_or(side)]
    }

    /// Layers with shapes, parameters and multiply-adds, for a batch of one.
    ///
    /// # Errors
    /// As [`Net::shapes`].
    pub fn layers(&self, shape: [usize; 4]) -> Result<Vec<Layer>> {
        let shapes = self.shapes(shape)?;
        Ok(self
            .nodes
            .iter()
            .map(|node| {
                let out = shapes[&node.output].clone();
                let weight = |i: usize| node.inputs.get(i).and_then(|n| self.params.get(n));
                let params = (1..3).filter_map(weight).map(|p| p.data.len()).sum();
                let each = weight(1).map_or(0, |w| w.shape[1..].iter().product::<usize>());
                let macs =
                    if node.op.has_weights() { each * out.iter().product::<usize>() } else { 0 };
                Layer {
                    name: node.name.clone(),
                    kind: kind(&node.op, weight(1).map(|w| w.shape.as_slice())),
                    shape: out,
                    params,
                    macs: macs as u64,
                }
            })
            .collect())
    }
}

fn kind(op: &Op, weight: Option<&[usize]>) -> String {
    let by = |k: [usize; 2], s: [usize; 2]| match s {
        [1, 1] => format!("{}x{}", k[0], k[1]),
        [s, _] => format!("{}x{}/{s}", k[0], k[1]),
    };
    match (op, weight) {
        (Op::Conv { stride, groups, .. }, Some(&[_, per_group, kh, kw])) => {
            let style = match (groups, per_group) {
                (1, _) => "conv",
                (_, 1) => "depthwise",
                _ => "grouped",
            };
            format!("{style} {}", by([kh, kw], *stride))
        }
        (Op::MaxPool { kernel, stride, .. }, _) => format!("max {}", by(*kernel, *stride)),
        (Op::AveragePool { kernel, stride, .. }, _) => format!("mean {}", by(*kernel, *stride)),
        (Op::Clip { low, high }, _) => format!("clip {low}..{high}"),
        (op, _) => {
            let text = format!("{op:?}");
            let end = text.find([' ', '{']).unwrap_or(text.len());
            text[..end].to_lowercase()
        }
    }
}

fn output_shape(node: &Node, inputs: &[&Shape]) -> Result<Shape> {
    let x = *inputs.first().context("has no input")?;
    let image = || -> Result<[usize; 4]> {
        x.as_slice().try_into().ok().with_context(|| format!("needs an image, got shape {x:?}"))
    };
    Ok(match &node.op {
        Op::Conv { stride, pads, dilation, groups } => {
            let [n, c, h, w] = image()?;
            let &[out, per_group, kh, kw] = inputs.get(1).context("has no weights")?.as_slice()
            else {
                bail!("needs weights [out, in, rows, columns], got {:?}", inputs[1]);
            };
            ensure!(kh > 0 && kw > 0 && *groups > 0, "an empty kernel or no group");
            ensure!(
                per_group * groups == c && out % groups == 0,
                "weights {:?} in {groups} group(s) do not fit {c} channels",
                inputs[1]
            );
            let span = [(kh - 1) * dilation[0] + 1, (kw - 1) * dilation[1] + 1];
            let [oh, ow] = window(h, w, span, *stride, *pads)?;
            vec![n, out, oh, ow]
        }
        Op::Gemm => {
            let w = inputs.get(1).context("has no weights")?;
            // Trailing axes of one are none: what was cut off behind a flatten starts so.
            let flat = x.len() >= 2 && x[2..].iter().all(|&e| e == 1);
            ensure!(
                flat && w.len() == 2 && w[1] == x[1],
                "weights {w:?} do not fit an input of shape {x:?}"
            );
            vec![x[0], w[0]]
        }
        Op::MaxPool { kernel, stride, pads, ceil } => {
            let [n, c, h, w] = image()?;
            let [oh, ow] = window(h, w, *kernel, *stride, *pads)?;
            // One more where something is left that no window has seen, unless it is all padding.
            let more = |out: usize, size: usize, axis: usize| {
                let next = out * stride[axis];
                let left = next - stride[axis] + kernel[axis] < size + pads[axis] + pads[axis + 2];
                out + usize::from(*ceil && left && next < size + pads[axis])
            };
            vec![n, c, more(oh, h, 0), more(ow, w, 1)]
        }
        Op::AveragePool { kernel, stride, pads, .. } => {
            let [n, c, h, w] = image()?;
            let [oh, ow] = window(h, w, *kernel, *stride, *pads)?;
            vec![n, c, oh, ow]
        }
        Op::GlobalAveragePool => {
            let [n, c, ..] = image()?;
            vec![n, c, 1, 1]
        }
        Op::Flatten => vec![x[0], x[1..].iter().product()],
        Op::Upsample { factor } => {
            let [n, c, h, w] = image()?;
            vec![n, c, h * factor, w * factor]
        }
        Op::Add | Op::Sub | Op::Mul | Op::Div => {
            broadcast(x, inputs.get(1).context("needs two inputs")?)?
        }
        Op::Reshape { shape } => reshaped(x, shape)?,
        Op::Transpose { perm } => {
            ensure!(perm.len() == x.len(), "permutation {perm:?} does not fit shape {x:?}");
            perm.iter()
                .map(|&p| x.get(p).copied().context("no such axis"))
                .collect::<Result<_>>()?
        }
        Op::Concat { axis } => {
            let mut out = x.clone();
            ensure!(*axis < x.len(), "axis {axis} of shape {x:?}");
            for other in &inputs[1..] {
                let fits =
                    other.len() == x.len() && (0..x.len()).all(|i| i == *axis || other[i] == x[i]);
                ensure!(fits, "cannot join shapes {x:?} and {other:?} along axis {axis}");
                out[*axis] += other[*axis];
            }
            out
        }
        Op::Slice { axis, start, end, step } => {
            ensure!(*axis < x.len() && *start < x[*axis], "slice outside shape {x:?}");
            let mut out = x.clone();
            out[*axis] = (end.min(&x[*axis]) - start).div_ceil(*step);
            out
        }
        _ => x.clone(),
    })
}

fn window(
    h: usize,
    w: usize,
    span: [usize; 2],
    s: [usize; 2],
    p: [usize; 4],
) -> Result<[usize; 2]> {
    ensure!(s.iter().chain(&span).all(|v| *v > 0), "a window or stride of zero");
    let one = |size: usize, pad: usize, span: usize, stride: usize| {
        (size + pad).checked_sub(span).map(|room| room / stride + 1).with_context(|| {
            format!("the window of {span} is larger than the padded input of {}", size + pad)
        })
    };
    Ok([one(h, p[0] + p[2], span[0], s[0])?, one(w, p[1] + p[3], span[1], s[1])?])
}

/// NumPy's rule: shapes are aligned at their last axes, and an extent of one stretches.
fn broadcast(a: &[usize], b: &[usize]) -> Result<Shape> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y || y == 1 => Ok(x),
            (1, y) => Ok(y),
            _ => bail!("shapes {a:?} and {b:?} do not combine"),
        })
        .collect()
}

fn reshaped(x: &[usize], target: &[i64]) -> Result<Shape> {
    let total: usize = x.iter().product();
    let mut out = Vec::with_capacity(target.len());
    for (i, &t) in target.iter().enumerate() {
        out.push(match t {
            0 => *x.get(i).with_context(|| format!("axis {i} of shape {x:?}"))?,
            -1 => 0,
            t => usize::try_from(t).context("negative extent")?,
        });
    }
    let known: usize = out.iter().filter(|&&e| e != 0).product();
    for extent in out.iter_mut().filter(|e| **e == 0) {
        *extent = total / known.max(1);
    }
    ensure!(out.iter().product::<usize>() == total, "shape {x:?} cannot become {target:?}");
    Ok(out)
}
