//! When requests arrive and how long they are, decided before the run.

use std::f64::consts::TAU;
use std::time::Duration;

use rand_distr::{Distribution, Exp1, StandardNormal, StandardUniform};
use rand_pcg::Pcg64;

use crate::LoadError;

/// Requests of a plan at most.
const REQUESTS_MAX: usize = 5_000_000;

/// Seconds of a day.
const DAY_S: f64 = 86_400.0;

/// The hour of a day in which most requests arrive.
const BUSIEST_HOUR: i32 = 14;

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// Independent of one another, so many a second on average: the gaps are exponential.
    Poisson(f64),
    /// Evenly, so many a second.
    Fixed(f64),
    /// All at once.
    AtOnce,
}

/// A length in tokens that is drawn for each request: normal around a mean, at least 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Length {
    /// In tokens.
    pub mean: f64,
    /// The standard deviation, in tokens.
    pub spread: f64,
}

impl std::str::FromStr for Length {
    type Err = String;

    /// `MEAN` or `MEAN:SPREAD`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (mean, spread) = text.split_once(':').unwrap_or((text, "0"));
        let number = |t: &str, low: f64| {
            let x: Option<f64> = t.trim().parse().ok();
            x.filter(|x| (low..=1e7).contains(x))
        };
        match (number(mean, 1.0), number(spread, 0.0)) {
            (Some(mean), Some(spread)) => Ok(Self { mean, spread }),
            _ => Err("is a mean, or MEAN:SPREAD, in tokens, as 256 or 256:64".to_owned()),
        }
    }
}

impl Length {
    fn draw(self, rng: &mut Pcg64) -> usize {
        let normal: f64 = StandardNormal.sample(rng);
        (self.mean + self.spread * normal).round().max(1.0) as usize
    }
}

/// Lengths of prompts and answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    /// Of prompts.
    pub prompt: Length,
    /// Of answers.
    pub output: Length,
}

/// A request of the plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// When it arrives, from the run's start.
    pub at: Duration,
    /// Tokens of its prompt, as near as words can be.
    pub prompt_tokens: usize,
    /// Tokens of its answer.
    pub output_tokens: usize,
    /// Blocks that its prompt begins with: equal numbers are equal text, so that prefixes are shared as in the trace.
    pub blocks: Vec<u64>,
    /// What the rest of its prompt is drawn from; no two are alike.
    pub seed: u64,
}

/// All requests, in the order of their arrival.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Sorted by `at`.
    pub requests: Vec<Planned>,
    /// Tokens of a block of [`Planned::blocks`].
    pub block_tokens: usize,
}

impl Plan {
    /// `count` requests, or all that arrive within `duration`, whichever is fewer.
    ///
    /// # Errors
    /// A rate that is none; neither a count nor a duration; more requests than a plan holds.
    pub fn new(
        arrivals: Arrivals,
        lengths: Lengths,
        count: Option<usize>,
        duration: Option<Duration>,
        seed: u64,
    ) -> Result<Self, LoadError> {
        if let Arrivals::Poisson(rate) | Arrivals::Fixed(rate) = arrivals
            && !(rate > 0.0 && rate.is_finite())
        {
            return Err(LoadError::Plan(format!("a rate of {rate} requests a second is none")));
        }
        if count.is_none() && (duration.is_none() || arrivals == Arrivals::AtOnce) {
            return Err(LoadError::Plan("say how many requests there are to be".to_owned()));
        }
        let mut rng = Pcg64::new(u128::from(seed), 0xda3e_39cb_94b9_5bdb);
        let mut requests = Vec::new();
        let mut at = 0.0;
        while count.is_none_or(|n| requests.len() < n) {
            if duration.is_some_and(|d| at > d.as_secs_f64()) {
                break;
            }
            if requests.len() == REQUESTS_MAX {
                return Err(too_many());
            }
            requests.push(Planned {
                at: Duration::from_secs_f64(at),
                prompt_tokens: lengths.prompt.draw(&mut rng),
                output_tokens: lengths.output.draw(&mut rng),
                blocks: Vec::new(),
                seed: seed.wrapping_add(requests.len() as u64),
            });
            at += match arrivals {
                Arrivals::Poisson(rate) => {
                    let gap: f64 = Exp1.sample(&mut rng);
                    gap / rate
                }
                Arrivals::Fixed(rate) => 1.0 / rate,
                Arrivals::AtOnce => 0.0,
            };
        }
        Ok(Self { requests, block_tokens: 0 })
    }

    /// Repeats the plan over 24 hours as a site's day has it: at its own pace in the busiest hour, at a quarter of that in the quietest, 12
    /// hours apart, each hour up to a sixth more or less by `seed`. Prompts that were equal are equal each time.
    ///
    /// # Errors
    /// A plan that takes no time; more requests than a plan holds.
    pub fn over_a_day(&self, seed: u64) -> Result<Self, LoadError> {
        let last = self.requests.last().map_or(Duration::ZERO, |r| r.at);
        let Some(rate) = self.rate() else {
            return Err(LoadError::Plan("requests that come at once have no day".to_owned()));
        };
        let mut rng = Pcg64::new(u128::from(seed), 0x9e37_79b9_7f4a_7c15);
        let pace: Vec<f64> = (0..24)
            .map(|hour| {
                let from_busiest = f64::from(hour - BUSIEST_HOUR) / 24.0 * TAU;
                let uneven: f64 = StandardUniform.sample(&mut rng);
                (0.625 + 0.375 * from_busiest.cos()) * (1.0 + (2.0 * uneven - 1.0) / 6.0)
            })
            .collect();
        // From the last request of one time to the first of the next it is as long as between others on average.
        let whole = last.as_secs_f64() + 1.0 / rate;
        let mut requests = Vec::new();
        let (mut at, mut before) = (0.0, 0.0);
        for round in 0.. {
            for r in &self.requests {
                let now = f64::from(round) * whole + r.at.as_secs_f64();
                at += (now - before) / pace[(at / 3600.0) as usize % 24];
                before = now;
                if at >= DAY_S {
                    return Ok(Self { requests, block_tokens: self.block_tokens });
                }
                if is_full(requests.len()) {
                    return Err(too_many());
                }
                let seed = seed.wrapping_add(requests.len() as u64);
                requests.push(Planned { at: Duration::from_secs_f64(at), seed, ..r.clone() });
            }
        }
        Err(too_many())
    }

    /// Requests a second that the plan asks for; none where all come at once.
    pub fn rate(&self) -> Option<f64> {
        let last = self.requests.last()?.at.as_secs_f64();
        (last > 0.0).then(|| (self.requests.len() - 1) as f64 / last)
    }

    /// Shortens what is longer than a server's context holds; how many requests were shortened.
    pub fn shorten(&mut self, prompt_max: Option<usize>, output_max: Option<usize>) -> usize {
        let mut shortened = 0;
        for r in &mut self.requests {
            let before = (r.prompt_tokens, r.output_tokens);
            r.prompt_tokens = r.prompt_tokens.min(prompt_max.unwrap_or(usize::MAX));
            r.output_tokens = r.output_tokens.min(output_max.unwrap_or(usize::MAX));
            shortened += usize::from(before != (r.prompt_tokens, r.output_tokens));
        }
        shortened
    }
}

pub(crate) fn too_many() -> LoadError {
    LoadError::Plan(format!("more than {REQUESTS_MAX} requests; a plan holds no more"))
}

/// Whether a plan of `n` requests is full.
pub(crate) fn is_full(n: usize) -> bool {
    n >= REQUESTS_MAX
}
