//! Figures: calibration, error rates against a threshold, and how sure one can be of them.

/// Probabilities of logits divided by `temperature`.
pub fn softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::MIN, f32::max);
    let masses: Vec<f32> = logits.iter().map(|l| ((l - top) / temperature).exp()).collect();
    let total: f32 = masses.iter().sum();
    masses.iter().map(|m| m / total).collect()
}

/// The temperature in 0.25 to 8 with the least mean negative log-likelihood (Guo et al. 2017), by
/// golden-section search of its logarithm.
pub fn temperature(rows: &[Vec<f32>], classes: &[usize]) -> f32 {
    let loss = |log_t: f64| -> f64 {
        let t = log_t.exp() as f32;
        rows.iter().zip(classes).map(|(r, &c)| -f64::from(softmax(r, t)[c].max(1e-12)).ln()).sum()
    };
    let ratio = (5_f64.sqrt() - 1.0) / 2.0;
    let (mut a, mut b) = (0.25_f64.ln(), 8_f64.ln());
    for _ in 0..40 {
        let (x, y) = (b - ratio * (b - a), a + ratio * (b - a));
        if loss(x) < loss(y) { b = y } else { a = x }
    }
    f64::midpoint(a, b).exp() as f32
}

/// Expected calibration error over 15 equal bins of the best class's probability (Guo et al.
/// 2017), `0..=1`.
pub fn calibration_error(rows: &[Vec<f32>], classes: &[usize], temperature: f32) -> f32 {
    let probs: Vec<Vec<f32>> = rows.iter().map(|r| softmax(r, temperature)).collect();
    expected_calibration_error(&probs, classes)
}

/// The same for probabilities.
pub fn expected_calibration_error(probs: &[Vec<f32>], classes: &[usize]) -> f32 {
    let bins = reliability(probs, classes);
    let n = classes.len().max(1) as f32;
    bins.iter().map(|b| b.count as f32 / n * (b.confidence - b.accuracy).abs()).sum()
}

/// One bin of a reliability diagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Bin {
    /// Pictures in it.
    pub count: usize,
    /// Mean probability of the best class.
    pub confidence: f32,
    /// Share whose best class is right.
    pub accuracy: f32,
}

/// Fifteen equal bins of the best class's probability.
pub fn reliability(probs: &[Vec<f32>], classes: &[usize]) -> [Bin; 15] {
    let mut bins = [Bin::default(); 15];
    for (p, &class) in probs.iter().zip(classes) {
        let (best, top) =
            p.iter().copied().enumerate().fold((0, f32::MIN), |m, v| if v.1 > m.1 { v } else { m });
        let bin = &mut bins[((top * 15.0) as usize).min(14)];
        bin.count += 1;
        bin.confidence += top;
        bin.accuracy += f32::from(best == class);
    }
    for bin in bins.iter_mut().filter(|b| b.count > 0) {
        bin.confidence /= bin.count as f32;
        bin.accuracy /= bin.count as f32;
    }
    bins
}

/// A share with the bounds within which the true one lies with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Rate {
    /// Cases counted.
    pub hits: usize,
    /// Cases looked at.
    pub of: usize,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl Rate {
    /// Exact bounds of Clopper and Pearson (1934).
    pub fn new(hits: usize, of: usize) -> Self {
        let tail = |p: f64, k: usize| binomial_tail(of, k, p);
        let low = if hits == 0 { 0.0 } else { bisect(|p| tail(p, hits) - 0.025) };
        let high = if hits == of { 1.0 } else { bisect(|p| tail(p, hits + 1) - 0.975) };
        Self { hits, of, low, high }
    }

    /// The share itself; 0 of 0 is 0.
    pub fn share(&self) -> f64 {
        if self.of == 0 { 0.0 } else { self.hits as f64 / self.of as f64 }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} % ({} of {}, at most {:.2} %)",
            self.share() * 100.0,
            self.hits,
            self.of,
            self.high * 100.0
        )
    }
}

/// Probability of at least `k` successes of `n` at `p`, summed in logarithms.
fn binomial_tail(n: usize, k: usize, p: f64) -> f64 {
    if k == 0 {
        return 1.0;
    }
    if p <= 0.0 || p >= 1.0 {
        return f64::from(p >= 1.0);
    }
    let mut log_choose = 0.0;
    let mut sum = 0.0;
    for i in 0..=n {
        if i > 0 {
            log_choose += ((n - i + 1) as f64).ln() - (i as f64).ln();
        }
        if i >= k {
            sum += (log_choose + i as f64 * p.ln() + (n - i) as f64 * (-p).ln_1p()).exp();
        }
    }
    sum
}

/// The root of a rising function in 0 to 1.
fn bisect(f: impl Fn(f64) -> f64) -> f64 {
    let (mut a, mut b) = (0.0, 1.0);
    for _ in 0..60 {
        let m = f64::midpoint(a, b);
        if f(m) < 0.0 { a = m } else { b = m }
    }
    f64::midpoint(a, b)
}

/// The lowest threshold whose share of `negatives` above it is at most `far`.
pub fn threshold_at(negatives: &[f32], far: f64) -> f32 {
    let mut sorted = negatives.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let allowed = (far * sorted.len() as f64) as usize;
    sorted.get(allowed).copied().unwrap_or(0.0)
}

/// Area under the receiver operating characteristic: the share of pairs in order, ties half.
pub fn auc(positives: &[f32], negatives: &[f32]) -> f64 {
    let mut all: Vec<(f32, bool)> =
        positives.iter().map(|&v| (v, true)).chain(negatives.iter().map(|&v| (v, false))).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut i, mut below, mut pairs) = (0, 0.0, 0.0);
    while i < all.len() {
        let ties = all[i..].iter().take_while(|v| v.0 == all[i].0).count();
        let up = all[i..i + ties].iter().filter(|v| v.1).count() as f64;
        let down = ties as f64 - up;
        pairs += up * (below + down / 2.0);
        below += down;
        i += ties;
    }
    pairs / (positives.len() * negatives.len()).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clopper_pearson_matches_published_values() {
        // "Rule of three": nothing in 898 shows less than 0.41 %.
        assert!((Rate::new(0, 898).high - 0.0041).abs() < 1e-4);
        let r = Rate::new(5, 100);
        assert!((r.low - 0.01643).abs() < 1e-4 && (r.high - 0.11284).abs() < 1e-4, "{r:?}");
    }

    #[test]
    fn temperature_cools_an_overconfident_network() {
        // Right in 3 of 4 cases, sure in all: the best temperature gives 75 %.
        let rows = vec![vec![4.0, 0.0]; 4];
        let t = temperature(&rows, &[0, 0, 0, 1]);
        assert!((softmax(&rows[0], t)[0] - 0.75).abs() < 1e-3, "{t}");
        assert!(calibration_error(&rows, &[0, 0, 0, 1], t) < 1e-3);
        assert!(calibration_error(&rows, &[0, 0, 0, 1], 1.0) > 0.2);
    }

    #[test]
    fn a_threshold_lets_no_more_through_than_allowed() {
        let negatives: Vec<f32> = (0..100).map(|i| i as f32 / 100.0).collect();
        let t = threshold_at(&negatives, 0.05);
        assert_eq!(negatives.iter().filter(|&&v| v > t).count(), 5);
    }

    #[test]
    fn auc_of_separate_equal_and_reversed_scores() {
        assert_eq!(auc(&[0.9, 0.8], &[0.1, 0.2]), 1.0);
        assert_eq!(auc(&[0.5], &[0.5]), 0.5);
        assert_eq!(auc(&[0.1], &[0.9]), 0.0);
    }
}
