//! What is inside a network: its first filters, and what every layer holds and says.

use anyhow::Result;
use image::{Rgb, RgbImage};
use serde::Serialize;

use crate::engine::Model;
use crate::net::{Net, Op};

/// Side of one filter's picture, pixels.
const TILE: u32 = 40;
/// Filters in a row.
const ROW: u32 = 16;

/// A list of numbers in four.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f32,
    /// Standard deviation.
    pub deviation: f32,
    /// Largest, sign left out.
    pub largest: f32,
    /// Share that is exactly nought.
    pub zeros: f32,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// Of its weights, if it has any.
    pub weights: Option<Spread>,
    /// Of what it says of the pictures.
    pub output: Spread,
}

impl Spread {
    fn of(values: &[f32]) -> Self {
        let n = values.len().max(1) as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let square = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        Self {
            mean: mean as f32,
            deviation: square.sqrt() as f32,
            largest: values.iter().fold(0.0, |m, v| m.max(v.abs())),
            zeros: (values.iter().filter(|v| **v == 0.0).count() as f64 / n) as f32,
        }
    }
}

/// Every node of `net`, on `pictures` as planes of `[3, height, width]`.
///
/// # Errors
/// If the pictures do not fit the network.
pub fn layers(net: &Net, pictures: &[Vec<f32>], [h, w]: [usize; 2]) -> Result<Vec<Layer>> {
    let mut all = net.clone();
    all.outputs = all.nodes.iter().map(|n| n.output.clone()).collect();
    let model = Model::new(all, &crate::engine::device("cpu")?);
    let values = model.forward(model.batch(pictures.concat(), [pictures.len(), 3, h, w])?, None)?;
    let layer = |(i, node): (usize, &crate::net::Node)| {
        let weights = node.inputs.get(1).and_then(|name| net.params.get(name));
        Ok(Layer {
            name: node.name.clone(),
            weights: weights.map(|p| Spread::of(&p.data)),
            output: Spread::of(&values.array(i)?.data),
        })
    };
    net.nodes.iter().enumerate().map(layer).collect()
}

/// The filters of the first convolution that looks at colours, each as a small picture: grey is
/// nought, the strongest weight of all is fully on. None if the network begins otherwise.
pub fn filters(net: &Net) -> Option<RgbImage> {
    let first = net.nodes.iter().find(|n| matches!(n.op, Op::Conv { .. }))?;
    let weight = net.params.get(first.inputs.get(1)?)?;
    let &[count, 3, kh, kw] = weight.shape.as_slice() else { return None };
    let most = weight.data.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let (columns, rows) = ((count as u32).min(ROW), (count as u32).div_ceil(ROW));
    let step = TILE + 2;
    Some(RgbImage::from_fn(columns * step, rows * step, |x, y| {
        let (filter, dx, dy) = (y / step * ROW + x / step, x % step, y % step);
        if filter as usize >= count || dx >= TILE || dy >= TILE {
            return Rgb([255; 3]);
        }
        let (row, column) = (dy as usize * kh / TILE as usize, dx as usize * kw / TILE as usize);
        Rgb([0, 1, 2].map(|c| {
            let w = weight.data[((filter as usize * 3 + c) * kh + row) * kw + column];
            (127.5 + 127.5 * w / most) as u8
        }))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Array;
    use crate::net::zoo::Architecture;

    #[test]
    fn every_layer_is_told_and_a_filter_is_the_colour_of_its_weights() {
        let mut net = Architecture::SmallDepthwise.fresh(3, 0.5, 1).unwrap();
        let name = net.nodes[0].inputs[1].clone();
        let shape = net.params[&name].shape.clone();
        let (each, n) = (shape[1] * shape[2] * shape[3], shape.iter().product());
        // The first filter is all red, the others are nothing.
        let red = |i: usize| if i < each / 3 { 0.5 } else { 0.0 };
        net.params.insert(name, Array::new(shape, (0..n).map(red).collect()).unwrap());
        let drawn = filters(&net).unwrap();
        assert_eq!(drawn.get_pixel(TILE / 2, TILE / 2).0, [255, 127, 127]);
        assert_eq!(drawn.get_pixel(TILE + 2 + TILE / 2, TILE / 2).0, [127; 3]);
        let [_, _, h, w] = net.shape_at(96);
        let picture = vec![0.5; 3 * h * w];
        let layers = layers(&net, &[picture.clone(), picture], [h, w]).unwrap();
        assert_eq!(layers.len(), net.nodes.len());
        let stem = layers[0].weights.unwrap();
        assert!((stem.mean - 0.5 * (each / 3) as f32 / n as f32).abs() < 1e-6, "{stem:?}");
        assert!((stem.zeros - (1.0 - (each / 3) as f32 / n as f32)).abs() < 1e-6, "{stem:?}");
        assert!(layers[0].output.largest > 0.0 && layers[1].weights.is_none());
        assert_eq!(Spread::of(&[1.0, -3.0, 0.0, 2.0]).largest, 3.0);
    }
}
