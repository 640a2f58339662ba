//! Percentiles of a sample, and how sure they are.

use serde::Serialize;

/// The confidence of every interval.
const CONFIDENCE: f64 = 0.95;

/// A percentile with the interval that holds the true one in 95 of 100 runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentile {
    /// Linear between the neighbours, as numpy's default (type 7 of Hyndman and Fan, 1996).
    pub value: f64,
    /// The interval's lower end, a value of the sample; none where the sample is too small to have one.
    pub low: Option<f64>,
    /// Its upper end, likewise.
    pub high: Option<f64>,
}

/// A sample in order, without what is no number.
#[derive(Clone, Debug, Default)]
pub struct Sorted(Vec<f64>);

impl FromIterator<f64> for Sorted {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut values: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }
}

impl Sorted {
    /// The values, in rising order.
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// The `q`-quantile, 0 to 1, linear between neighbours; none of an empty sample.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let last = self.0.len().checked_sub(1)?;
        let h = q.clamp(0.0, 1.0) * last as f64;
        let below = h.floor() as usize;
        let (a, b) = (self.0[below], self.0[(below + 1).min(last)]);
        Some(a + (b - a) * (h - h.floor()))
    }

    /// The `q`-quantile with its interval by order statistics, which holds for any distribution of independent values (David and
    /// Nagaraja, Order Statistics, 2003, 7.1): with B binomial(n, q), P(x(l) <= quantile < x(u)) = P(l <= B < u). Each tail is
    /// given half of what may be missed. Requests that wait in one queue are not quite independent: a long test tells more.
    pub fn percentile(&self, q: f64) -> Option<Percentile> {
        let value = self.quantile(q)?;
        let (low, high) = ranks(self.0.len(), q);
        let at = |rank: Option<usize>| rank.map(|r| self.0[r - 1]);
        Some(Percentile { value, low: at(low), high: at(high) })
    }

    /// The mean; none of an empty sample.
    pub fn mean(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.iter().sum::<f64>() / self.0.len() as f64)
    }
}

/// The ranks, from 1, whose values bound the `q`-quantile of `n` values: the largest l with P(B < l) <= alpha/2, the smallest u
/// with P(B >= u) <= alpha/2.
pub(crate) fn ranks(n: usize, q: f64) -> (Option<usize>, Option<usize>) {
    let tail = (1.0 - CONFIDENCE) / 2.0;
    if n == 0 || !(0.0..1.0).contains(&q) || q == 0.0 {
        return (None, None);
    }
    let (mut low, mut high) = (None, None);
    let mut below = 0.0; // P(B < k)
    for (k, p) in binomial(n, q).into_iter().enumerate() {
        if k > 0 && below <= tail {
            low = Some(k);
        }
        if k > 0 && high.is_none() && 1.0 - below <= tail {
            high = Some(k);
        }
        below += p;
    }
    (low, high)
}

/// The probabilities of 0, 1, ... n successes. Computed from the most probable outwards, so that nothing underflows before it
/// is too small to matter.
fn binomial(n: usize, q: f64) -> Vec<f64> {
    let mode = (((n + 1) as f64 * q) as usize).min(n);
    let mut p = vec![0.0; n + 1];
    p[mode] = 1.0;
    // p(k+1) / p(k) = (n - k) q / ((k + 1) (1 - q))
    for k in mode..n {
        p[k + 1] = p[k] * (n - k) as f64 * q / ((k + 1) as f64 * (1.0 - q));
    }
    for k in (0..mode).rev() {
        p[k] = p[k + 1] * (k + 1) as f64 * (1.0 - q) / ((n - k) as f64 * q);
    }
    let whole: f64 = p.iter().sum();
    p.iter_mut().for_each(|x| *x /= whole);
    p
}

/// The interval of a share `k` of `n` (Wilson, 1927), 95 %.
pub(crate) fn wilson(k: usize, n: usize) -> Option<(f64, f64)> {
    if n == 0 {
        return None;
    }
    // The normal distribution's upper 2.5 % point.
    let z = 1.959_963_984_540_054_f64;
    let (n, p) = (n as f64, k as f64 / n as f64);
    let scale = 1.0 + z * z / n;
    let centre = (p + z * z / (2.0 * n)) / scale;
    let half = z / scale * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let low = if k == 0 { 0.0 } else { centre - half };
    let high = if k as f64 == n { 1.0 } else { centre + half };
    Some((low, high))
}
