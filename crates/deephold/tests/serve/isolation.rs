//! Whether one tenant can tell from the time to his first token what another has asked: a statistical test, with a control that it finds
//! what there is.

use std::time::{Duration, Instant};

use deephold_testkit::TempDir;
use serde_json::json as object;

use crate::common::{json, text};
use crate::service::{Response, Service};

/// Pairs of probes of each kind.
const PROBES: usize = 40;
/// The chance of a false alarm: once in ten thousand runs.
const ALPHA: f64 = 1e-4;

/// Seconds until a whole answer of one token to this prompt, and how much of it was cached.
fn probe(service: &Service, key: &str, prompt: &str) -> (f64, u64) {
    let body = object!({ "model": "guide", "prompt": prompt, "max_tokens": 1, "temperature": 0 }).to_string();
    let begun = Instant::now();
    let answer: Response = service.post_as(key, "/v1/completions", &body);
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(answer.status, 200, "{}", answer.body);
    (took, answer.json()["usage"]["prompt_cache_hit_tokens"].as_u64().unwrap_or(0))
}

/// The one-sided p-value of Mann and Whitney's test that values of `a` are smaller than those of `b`: normal approximation with
/// continuity correction, for samples of dozens (Mann and Whitney, Annals of Mathematical Statistics 18, 1947).
fn p_value(a: &[f64], b: &[f64]) -> f64 {
    let wins: f64 = a.iter().map(|x| b.iter().filter(|y| x < y).count() as f64).sum();
    let ties: f64 = a.iter().map(|x| b.iter().filter(|y| x == *y).count() as f64).sum();
    let (n, m) = (a.len() as f64, b.len() as f64);
    let u = wins + ties / 2.0;
    let z = (u - n * m / 2.0 - 0.5) / (n * m * (n + m + 1.0) / 12.0).sqrt();
    // The upper tail of the normal distribution by Abramowitz and Stegun 26.2.17, within 7.5e-8.
    let t = 1.0 / (1.0 + 0.231_641_9 * z.abs());
    let poly = t
        * (0.319_381_530
            + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let tail = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * poly;
    if z >= 0.0 { tail } else { 1.0 - tail }
}

#[test]
fn the_statistic_is_right() {
    let low: Vec<f64> = (0..20).map(f64::from).collect();
    let high: Vec<f64> = (0..20).map(|i| f64::from(i) + 100.0).collect();
    assert!(p_value(&low, &high) < 1e-7 && p_value(&high, &low) > 0.999);
    let odd: Vec<f64> = (0..20).map(|i| f64::from(2 * i + 1)).collect();
    let even: Vec<f64> = (0..20).map(|i| f64::from(2 * i)).collect();
    // U = 190 of 400, z = (190 - 200 - 0.5) / 36.97 = -0.284.
    assert!((p_value(&odd, &even) - 0.611_8).abs() < 1e-3, "{}", p_value(&odd, &even));
}

#[test]
fn a_thief_learns_nothing_from_the_time_of_his_first_token() {
    let dir = TempDir::new("serve");
    let state = dir.join("state");
    let service = Service::start(&state, &[]);
    let key = |tenant: &str| {
        let args = ["key", "create", "--owner", "x", "--tenant", tenant, "--json", "--state", text(&state)];
        json(&args)["secret"].as_str().expect("a secret").to_owned()
    };
    let (victim, thief) = (key("victim"), key("thief"));
    // A long beginning, different in each round, so that a hit would show; guesses differ in the last word as a thief's would.
    let prompt =
        |round: usize, kind: &str| format!("{round} {kind} {}", "a secret of the house, ".repeat(45));
    let (mut sent, mut unsent, mut own, mut fresh) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..PROBES {
        // Each word is as often the one that was sent, and each probe as often the first of its pair: what words and turns cost falls on
        // both alike.
        let words = if round % 2 == 0 { ["left", "right"] } else { ["right", "left"] };
        probe(&service, &victim, &prompt(round, words[0]));
        let mut pair = [(words[0], &mut sent), (words[1], &mut unsent)];
        if round / 2 % 2 == 1 {
            pair.reverse();
        }
        for (word, times) in pair {
            let (took, cached) = probe(&service, &thief, &prompt(round, word));
            assert_eq!(cached, 0, "the usage tells it outright");
            times.push(took);
        }
        // The control: what the thief himself has sent is faster.
        own.push(probe(&service, &thief, &prompt(round, words[0])).0);
        fresh.push(probe(&service, &thief, &prompt(round, "new")).0);
        std::thread::sleep(Duration::from_millis(1));
    }
    let (control, leak) = (p_value(&own, &fresh), p_value(&sent, &unsent));
    assert!(control < 1e-6, "the test would see a hit: p = {control:.2e}");
    assert!(leak > ALPHA, "prompts that the victim sent are faster: p = {leak:.2e}");
}
