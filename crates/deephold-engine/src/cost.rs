//! What a step will take, learnt from what steps took.
//!
//! A step's time is close to linear in three figures: one for reading the weights, the tokens computed (products), and the
//! positions that these attend to (attention). The three coefficients follow the last steps by least squares of relative
//! errors, older steps fading; where recent steps say nothing of a coefficient, it stays as it was.

/// The figures of a step that its time depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepWork {
    /// Tokens computed.
    pub tokens: usize,
    /// Positions that they attend to, summed over the tokens.
    pub positions: f64,
}

impl StepWork {
    /// `n` tokens of a sequence that has `context` computed before them.
    pub fn of(context: usize, n: usize) -> Self {
        let (c, n_) = (context as f64, n as f64);
        Self { tokens: n, positions: n_ * c + n_ * (n_ + 1.0) / 2.0 }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.positions += other.positions;
    }

    fn features(self) -> [f64; 3] {
        [1.0, self.tokens as f64, self.positions]
    }
}

/// Weight of a step against the one after it.
const FADE: f64 = 0.95;
/// How hard a coefficient holds to its last value, in steps.
const HOLD: f64 = 1e-2;

/// Coefficients in seconds: of a step, of a token, of a position attended to.
#[derive(Clone, Debug, Default)]
pub struct StepCostModel {
    coefficients: [f64; 3],
    /// Normal equations: features times features, features times time, each divided by the time's square.
    products: [[f64; 3]; 3],
    targets: [f64; 3],
    steps: u64,
}

impl StepCostModel {
    /// Whether any step was seen.
    pub fn is_known(&self) -> bool {
        self.steps > 0
    }

    /// Takes a step that was measured.
    pub fn learn(&mut self, work: StepWork, seconds: f64) {
        if work.tokens == 0 || !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        let x = work.features();
        if self.steps == 0 {
            // All for the tokens until more is known: so the next steps are rather too small.
            self.coefficients = [0.0, seconds / x[1], 0.0];
        }
        self.steps += 1;
        let weight = 1.0 / (seconds * seconds);
        for i in 0..3 {
            for j in 0..3 {
                self.products[i][j] = FADE * self.products[i][j] + weight * x[i] * x[j];
            }
            self.targets[i] = FADE * self.targets[i] + weight * x[i] * seconds;
        }
        let (mut a, mut b) = (self.products, self.targets);
        for i in 0..3 {
            let hold = HOLD * weight * x[i] * x[i];
            a[i][i] += hold;
            b[i] += hold * self.coefficients[i];
        }
        self.coefficients = non_negative_solution(a, b);
    }

    /// Expected seconds of a step; 0 before any was seen.
    pub fn predict(&self, work: StepWork) -> f64 {
        self.coefficients.iter().zip(work.features()).map(|(c, x)| c * x).sum()
    }

    /// Expected seconds of a step apart from its tokens: reading the weights.
    pub fn fixed(&self) -> f64 {
        self.coefficients[0]
    }

    /// Expected seconds that `work` adds to a step.
    pub fn marginal(&self, work: StepWork) -> f64 {
        self.predict(work) - self.coefficients[0]
    }

    /// How many tokens behind `context` computed ones fit into `seconds`, at most `most`.
    pub fn tokens_within(&self, seconds: f64, context: usize, most: usize) -> usize {
        if seconds <= 0.0 {
            return 0;
        }
        // seconds = a n^2 + b n, from the definition of `StepWork::of`.
        let [_, token, position] = self.coefficients;
        let a = position / 2.0;
        let b = token + position * (context as f64 + 0.5);
        let n = if a > 0.0 {
            2.0 * seconds / (b + (b * b + 4.0 * a * seconds).sqrt())
        } else if b > 0.0 {
            seconds / b
        } else {
            return most;
        };
        // A cast saturates; what is left of 1 above is less than a token.
        (n as usize).min(most)
    }
}

/// Solves a x = b for a symmetric positive a; coefficients that come out negative are set to zero and the rest solved again.
fn non_negative_solution(a: [[f64; 3]; 3], b: [f64; 3]) -> [f64; 3] {
    let mut free = [true; 3];
    loop {
        let x = solve(a, b, free);
        let worst = (0..3).filter(|i| free[*i] && x[*i] < 0.0).min_by(|i, j| x[*i].total_cmp(&x[*j]));
        match worst {
            Some(i) => free[i] = false,
            None => return x,
        }
    }
}

/// Gauss elimination over the free unknowns; the others are zero.
#[allow(clippy::needless_range_loop, reason = "rows and columns of a matrix, by the textbook's indices")]
fn solve(mut a: [[f64; 3]; 3], mut b: [f64; 3], free: [bool; 3]) -> [f64; 3] {
    for i in (0..3).filter(|i| !free[*i]) {
        for j in 0..3 {
            (a[i][j], a[j][i]) = (0.0, 0.0);
        }
        (a[i][i], b[i]) = (1.0, 0.0);
    }
    for i in 0..3 {
        // Positive definite with a diagonal that was added to, so pivots are positive; a guard against underflow.
        if a[i][i] <= 0.0 {
            (a[i], b[i]) = ([0.0; 3], 0.0);
            a[i][i] = 1.0;
        }
        for j in i + 1..3 {
            let factor = a[j][i] / a[i][i];
            for k in i..3 {
                a[j][k] -= factor * a[i][k];
            }
            b[j] -= factor * b[i];
        }
    }
    let mut x = [0.0; 3];
    for i in (0..3).rev() {
        let known: f64 = (i + 1..3).map(|k| a[i][k] * x[k]).sum();
        x[i] = (b[i] - known) / a[i][i];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(w: StepWork) -> f64 {
        0.010 + 0.0004 * w.tokens as f64 + 3e-8 * w.positions
    }

    #[test]
    fn steps_of_a_known_machine_are_foretold() {
        let mut model = StepCostModel::default();
        let mut context = 0;
        for i in 0..40 {
            let mut work = StepWork::of(context, 20 + i % 7);
            context += work.tokens;
            work.add(StepWork::of(500 + i, 1));
            model.learn(work, truth(work));
        }
        for (context, n) in [(0, 64), (1000, 200), (30_000, 100)] {
            let work = StepWork::of(context, n);
            let (got, expected) = (model.predict(work), truth(work));
            assert!((got / expected - 1.0).abs() < 0.1, "{context} {n}: {got} for {expected}");
            let left = expected - 0.010;
            let fits = model.tokens_within(left, context, 10_000);
            assert!(fits.abs_diff(n) <= n / 8, "{context}: {fits} tokens for {n}");
        }
    }

    #[test]
    fn a_long_time_of_decoding_does_not_forget_what_a_prompt_costs() {
        let mut model = StepCostModel::default();
        for i in 0..20 {
            let work = StepWork::of(i * 64, 64);
            model.learn(work, truth(work));
        }
        for i in 0..5000 {
            let work = StepWork::of(1280 + i, 1);
            model.learn(work, truth(work));
        }
        let work = StepWork::of(0, 100);
        assert!(
            (model.predict(work) / truth(work) - 1.0).abs() < 0.3,
            "{} {}",
            model.predict(work),
            truth(work)
        );
    }

    #[test]
    fn odd_measurements_leave_it_sane() {
        let mut model = StepCostModel::default();
        assert_eq!((model.is_known(), model.predict(StepWork::of(0, 5))), (false, 0.0));
        for seconds in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e-12, 1e9, 1e-9, 5.0] {
            model.learn(StepWork::of(3, 4), seconds);
            let p = model.predict(StepWork::of(100, 100));
            assert!(p.is_finite() && p >= 0.0, "{p}");
        }
        assert_eq!(model.tokens_within(-1.0, 0, 9), 0);
        assert!(model.tokens_within(1e300, 0, 9) <= 9);
    }
}
