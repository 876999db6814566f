//! Edits that keep a network a network: a new head, and dense layers turned into convolutions.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::zoo::he_normal;
use super::{Array, Net, Op};

impl Net {
    /// The same network with its last dense layer made anew for `classes` labels: small random
    /// weights, no bias. Every other output stays.
    ///
    /// # Errors
    /// If the first output is not made by a dense layer.
    pub fn swap_head(mut self, classes: usize, seed: u64) -> Result<Self> {
        ensure!(classes >= 2, "a classifier needs at least two classes, not {classes}");
        let (at, weight) = self.last_dense()?;
        let features = self.param(&weight)?.shape[1];
        let mut fresh = he_normal(&[classes, features], &mut StdRng::seed_from_u64(seed));
        fresh.data.iter_mut().for_each(|w| *w *= 0.1);
        self.params.insert(weight, fresh);
        let bias = format!("{}.bias", self.nodes[at].name);
        self.nodes[at].inputs.truncate(2);
        self.nodes[at].inputs.push(bias.clone());
        self.params.insert(bias, Array::zeros([classes]));
        self.prune();
        Ok(self)
    }

    /// The network with `rows` added to its last dense layer: weights as long as its input, and a
    /// bias each. What it answered stays, the new labels follow.
    ///
    /// # Errors
    /// If the first output is not made by a dense layer, or a row has another length.
    pub fn grow_head(mut self, rows: &[(Vec<f32>, f32)]) -> Result<Self> {
        let (at, weight) = self.last_dense()?;
        let [labels, features] = self.param(&weight)?.shape[..] else {
            bail!("'{weight}' is no matrix");
        };
        let bias = match self.nodes[at].inputs.get(2) {
            Some(name) => name.clone(),
            None => {
                let name = format!("{}.bias", self.nodes[at].name);
                self.nodes[at].inputs.push(name.clone());
                self.params.insert(name.clone(), Array::zeros([labels]));
                name
            }
        };
        for (row, offset) in rows {
            ensure!(row.len() == features, "a row has {} numbers, not {features}", row.len());
            for (name, numbers) in [(&weight, &row[..]), (&bias, &[*offset])] {
                let array = self.params.get_mut(name).context("the head has no weights")?;
                array.data.extend(numbers);
                array.shape[0] += 1;
            }
        }
        Ok(self)
    }

    /// The dense layer that makes the first output: its place, and the name of its weights.
    ///
    /// # Errors
    /// If something else makes it.
    pub fn last_dense(&self) -> Result<(usize, String)> {
        let output = self.outputs.first().context("the network has no output")?;
        let (at, node) = self.maker(output).context("nothing makes the output")?;
        ensure!(
            node.op == Op::Gemm,
            "the head '{}' is {:?}, not a dense layer",
            node.name,
            node.op
        );
        Ok((at, node.inputs[1].clone()))
    }

    /// The network as a fully convolutional one that runs at any size and answers with a map:
    /// dense layers become convolutions (a layer on a flattened `c x h x w` value becomes an
    /// `h x w` convolution, one after a global mean a 1x1), and the mean itself moves behind
    /// them. At its own size the mean of the map equals the dense answer (Long et al. 2015).
    ///
    /// # Errors
    /// If a value is flattened and then used by anything but dense layers and activations.
    pub fn fully_convolutional(&self, side: usize) -> Result<Self> {
        let shapes = self.shapes(self.shape_at(side))?;
        let mut net = Self {
            input: self.input.clone(),
            input_shape: [None, self.input_shape[1], None, None],
            outputs: vec![self.outputs.first().context("the network has no output")?.clone()],
            ..Self::default()
        };
        // Values that now stand for another: what a mean or a flatten was applied to.
        let mut stands_for: BTreeMap<String, String> = BTreeMap::new();
        let mut flat: BTreeSet<String> = BTreeSet::new();
        // Spatial extent that the next dense layer must cover.
        let mut window: BTreeMap<String, [usize; 2]> = BTreeMap::new();
        for node in &self.nodes {
            let mut node = node.clone();
            let x = node.inputs[0].clone();
            match &node.op {
                Op::GlobalAveragePool => {
                    let source = stands_for.get(&x).cloned().unwrap_or(x);
                    window.insert(source.clone(), [1, 1]);
                    stands_for.insert(node.output, source);
                    continue;
                }
                Op::Flatten => {
                    let source = stands_for.get(&x).cloned().unwrap_or_else(|| x.clone());
                    let shape = &shapes[&x];
                    let [h, w] =
                        [shape.get(2).copied().unwrap_or(1), shape.get(3).copied().unwrap_or(1)];
                    window.entry(source.clone()).or_insert([h, w]);
                    flat.insert(source.clone());
                    stands_for.insert(node.output, source);
                    continue;
                }
                Op::Gemm => {
                    let source = stands_for.get(&x).cloned().unwrap_or(x);
                    let [h, w] = window.get(&source).copied().unwrap_or([1, 1]);
                    let weight = self.param(&node.inputs[1])?;
                    let (out, features) = (weight.shape[0], weight.shape[1]);
                    ensure!(
                        features % (h * w) == 0,
                        "node '{}': {features} inputs do not cover {h}x{w} cells",
                        node.name
                    );
                    let kernel = Array::new([out, features / (h * w), h, w], weight.data.clone())?;
                    net.params.insert(node.inputs[1].clone(), kernel);
                    node.inputs[0] = source;
                    node.op =
                        Op::Conv { stride: [1; 2], pads: [0; 4], dilation: [1; 2], groups: 1 };
                    flat.insert(node.output.clone());
                }
                Op::Relu
                | Op::LeakyRelu { .. }
                | Op::Clip { .. }
                | Op::Dropout { .. }
                | Op::Identity
                | Op::Sigmoid
                | Op::Tanh => {
                    let source = stands_for.get(&x).cloned().unwrap_or_else(|| x.clone());
                    if flat.contains(&source) {
                        flat.insert(node.output.clone());
                        if let Some(w) = window.get(&source).copied() {
                            window.insert(node.output.clone(), w);
                        }
                    }
                    node.inputs[0] = source;
                }
                other
                    if node
                        .inputs
                        .iter()
                        .any(|i| flat.contains(stands_for.get(i).unwrap_or(i))) =>
                {
                    bail!(
                        "node '{}': {other:?} on flattened values has no convolutional form",
                        node.name
                    )
                }
                _ => {}
            }
            for input in node.inputs.iter().skip(1) {
                if let Some(p) = self.params.get(input) {
                    net.params.entry(input.clone()).or_insert_with(|| p.clone());
                }
            }
            net.nodes.push(node);
        }
        net.prune();
        net.check()?;
        Ok(net)
    }
}
