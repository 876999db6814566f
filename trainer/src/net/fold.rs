//! Batch normalisation folded into the convolution before it.

use anyhow::{Result, ensure};

use super::Array;

/// Statistics of a batch normalisation at inference.
pub struct BatchNorm<'a> {
    /// Scale per channel.
    pub gamma: &'a [f32],
    /// Offset per channel.
    pub beta: &'a [f32],
    /// Running mean per channel.
    pub mean: &'a [f32],
    /// Running variance per channel.
    pub variance: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
}

impl BatchNorm<'_> {
    /// Weights and bias of the convolution that equals `weight`, `bias` followed by this:
    /// `w * gamma / sqrt(variance + epsilon)`, computed in double precision. Padding is untouched,
    /// since it comes before both.
    ///
    /// # Errors
    /// If the channel counts disagree.
    pub fn fold(&self, weight: &Array, bias: Option<&Array>) -> Result<(Array, Array)> {
        let n = self.gamma.len();
        let sizes = [
            self.beta.len(),
            self.mean.len(),
            self.variance.len(),
            weight.shape.first().copied().unwrap_or(0),
        ];
        ensure!(
            sizes == [n; 4],
            "batch norm over {n} channels does not fit weights {:?}",
            weight.shape
        );
        let each = weight.data.len() / n.max(1);
        let (mut w, mut b) = (weight.clone(), Array::zeros([n]));
        for c in 0..n {
            let scale =
                f64::from(self.gamma[c]) / f64::from(self.variance[c] + self.epsilon).sqrt();
            for v in &mut w.data[c * each..(c + 1) * each] {
                *v = (f64::from(*v) * scale) as f32;
            }
            let before = bias.map_or(0.0, |b| f64::from(b.data[c]));
            b.data[c] =
                (f64::from(self.beta[c]) + (before - f64::from(self.mean[c])) * scale) as f32;
        }
        Ok((w, b))
    }
}
