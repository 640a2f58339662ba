//! Plans, traces, percentiles, reports and pictures; the client against servers is tested with the program.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use deephold_testkit::{TempDir, shared, skip_without_shared};
use proptest::prelude::*;
use serde_json::Value;

use crate::client::Lines;
use crate::statistics::{ranks, wilson};
use crate::*;

const LENGTHS: Lengths =
    Lengths { prompt: Length { mean: 100.0, spread: 20.0 }, output: Length { mean: 30.0, spread: 0.0 } };

fn plan(arrivals: Arrivals, count: usize, seed: u64) -> Plan {
    Plan::new(arrivals, LENGTHS, Some(count), None, seed).expect("a plan")
}

#[test]
fn quantiles_are_numpy_s() {
    if skip_without_shared() {
        return;
    }
    let text = std::fs::read_to_string(shared("golden/stats/quantiles.json")).expect("a file");
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    let mut checked = 0;
    for case in golden["by_value"]["cases"].as_array().expect("cases") {
        let sorted: Sorted =
            case["in"]["x"].as_array().expect("values").iter().filter_map(Value::as_f64).collect();
        for want in case["out"].as_array().expect("quantiles") {
            let q = want["q"].as_f64().expect("q");
            let (got, want) =
                (sorted.quantile(q).expect("a value"), want["linear"].as_f64().expect("linear"));
            // The reference states 1e-12 of the value.
            assert!((got - want).abs() <= 1e-12 * want.abs(), "{}, {q}: {got}, {want}", case["name"]);
            checked += 1;
        }
    }
    assert!(checked >= 25, "{checked}");
}

#[test]
fn intervals_of_quantiles_are_those_of_the_binomial() {
    // scipy.stats.binom for n = 100, q = .5: P(B < 40) = 0.0176, P(B < 41) = 0.0284; P(B >= 61) = 0.0176, P(B >= 60) = 0.0284.
    assert_eq!(ranks(100, 0.5), (Some(40), Some(61)));
    // P(B < 1) = 0.5^6 = 0.0156 <= 0.025: six values bound their median by the least and the largest; five do not.
    assert_eq!(ranks(6, 0.5), (Some(1), Some(6)));
    assert_eq!(ranks(5, 0.5), (None, None));
    // 0.99^368 = 0.0248: so many values bound the 99th percentile from above by their largest, one fewer do not.
    assert_eq!(ranks(368, 0.99).1, Some(368));
    assert_eq!(ranks(367, 0.99).1, None);
    // Far beyond what a product of probabilities holds before it is zero.
    let (low, high) = ranks(100_000, 0.5);
    assert_eq!((low.expect("low"), high.expect("high")), (49_690, 50_311));
    assert_eq!(ranks(0, 0.5), (None, None));
    let sorted: Sorted = (1..=100).map(f64::from).collect();
    let p50 = sorted.percentile(0.5).expect("a value");
    assert_eq!((p50.value, p50.low, p50.high), (50.5, Some(40.0), Some(61.0)));
}

#[test]
fn intervals_hold_the_true_quantile_in_95_of_100_samples() {
    let samples = 2000;
    for (n, q) in [(60, 0.5f64), (400, 0.9), (1000, 0.99)] {
        let mut within = 0;
        for seed in 0..samples {
            let plan = plan(Arrivals::Poisson(1.0), n + 1, seed);
            // Gaps of Poisson arrivals are exponential: the quantile is -ln(1 - q).
            let gaps: Sorted = plan.requests.windows(2).map(|w| (w[1].at - w[0].at).as_secs_f64()).collect();
            let p = gaps.percentile(q).expect("a value");
            let truth = -(1.0 - q).ln();
            within += usize::from(p.low.expect("low") <= truth && truth <= p.high.expect("high"));
        }
        // At least 95 % are promised; the share of 2,000 samples spreads by 0.5 %, and discrete ranks promise a little more.
        let share = within as f64 / samples as f64;
        assert!((0.935..=0.985).contains(&share), "{n}, {q}: {share}");
    }
}

#[test]
fn shares_have_wilson_s_interval() {
    if skip_without_shared() {
        return;
    }
    let text = std::fs::read_to_string(shared("golden/stats/intervals.json")).expect("a file");
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    let mut checked = 0;
    for case in golden["wilson"]["cases"].as_array().expect("cases") {
        let (input, out) = (&case["in"], &case["out"]);
        if input["confidence"].as_f64() != Some(0.95) {
            continue;
        }
        let count = |name: &str| input[name].as_u64().expect("a count") as usize;
        let (low, high) = wilson(count("k"), count("n")).expect("an interval");
        for (got, name) in [(low, "low"), (high, "high")] {
            let want = out[name].as_f64().expect("an end");
            assert!((got - want).abs() <= 1e-12 + 1e-10 * want, "{input}: {got}, {want}");
        }
        checked += 1;
    }
    assert!(checked >= 5, "{checked}");
}

#[test]
fn arrivals_are_as_asked_and_follow_from_the_seed() {
    let poisson = plan(Arrivals::Poisson(50.0), 20_000, 3);
    assert_eq!(poisson, plan(Arrivals::Poisson(50.0), 20_000, 3));
    assert_ne!(poisson.requests[5].at, plan(Arrivals::Poisson(50.0), 20_000, 4).requests[5].at);
    // 20,000 gaps of standard deviation 1/50 s: their mean spreads by 0.7 %.
    let rate = poisson.rate().expect("a rate");
    assert!((rate / 50.0 - 1.0).abs() < 0.03, "{rate}");
    let gaps: Sorted = poisson.requests.windows(2).map(|w| (w[1].at - w[0].at).as_secs_f64()).collect();
    assert!((gaps.quantile(0.5).expect("a median") / (2f64.ln() / 50.0) - 1.0).abs() < 0.04);
    let lengths: Sorted = poisson.requests.iter().map(|r| r.prompt_tokens as f64).collect();
    assert!((lengths.mean().expect("a mean") - 100.0).abs() < 1.0);
    assert!(poisson.requests.iter().all(|r| r.output_tokens == 30));
    let fixed =
        Plan::new(Arrivals::Fixed(4.0), LENGTHS, None, Some(Duration::from_secs(2)), 1).expect("a plan");
    let at: Vec<f64> = fixed.requests.iter().map(|r| r.at.as_secs_f64()).collect();
    assert_eq!(at, [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]);
    let at_once = plan(Arrivals::AtOnce, 5, 1);
    assert!(at_once.requests.iter().all(|r| r.at.is_zero()) && at_once.rate().is_none());
    for bad in [Arrivals::Poisson(0.0), Arrivals::Fixed(f64::NAN), Arrivals::Poisson(f64::INFINITY)] {
        assert!(Plan::new(bad, LENGTHS, Some(1), None, 1).is_err());
    }
    assert!(Plan::new(Arrivals::Fixed(1.0), LENGTHS, None, None, 1).is_err());
}

#[test]
fn lengths_are_read_from_words() {
    assert_eq!("256".parse(), Ok(Length { mean: 256.0, spread: 0.0 }));
    assert_eq!("256:64".parse(), Ok(Length { mean: 256.0, spread: 64.0 }));
    for bad in ["", "0", "-1", "x", "1:x", "1:-1", "1e99", "nan", "1:inf"] {
        assert!(bad.parse::<Length>().is_err(), "{bad}");
    }
}

fn trace(text: &str, options: &TraceOptions) -> Result<Plan, LoadError> {
    let dir = TempDir::new("trace");
    let path: PathBuf = dir.join("trace");
    std::fs::File::create(&path).and_then(|mut f| f.write_all(text.as_bytes())).expect("a file");
    read_trace(&path, options)
}

const WHOLE: TraceOptions = TraceOptions { speed: 1.0, count: None, duration: None, is_day: false, seed: 1 };

#[test]
fn traces_of_both_formats_are_read() {
    let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 23:59:59.9000000,4808,10\n2023-11-17 00:00:00.4,3180,0\n";
    let plan = trace(azure, &TraceOptions { speed: 2.0, ..WHOLE }).expect("a plan");
    let second = &plan.requests[1];
    assert!((second.at.as_secs_f64() - 0.25).abs() < 1e-6, "{second:?}");
    assert_eq!((second.prompt_tokens, second.output_tokens), (3180, 1));
    let mooncake = "{\"timestamp\": 1000, \"input_length\": 600, \"output_length\": 6, \"hash_ids\": [7, 8]}\n\n\
                    {\"timestamp\": 4000, \"input_length\": 700, \"output_length\": 9, \"hash_ids\": [7, 9]}";
    let plan = trace(mooncake, &WHOLE).expect("a plan");
    assert_eq!((plan.block_tokens, plan.requests.len()), (512, 2));
    assert_eq!(plan.requests[1].at, Duration::from_secs(3));
    // What shares a block shares its text, and no more.
    let texts = Texts::new(Calibration { fixed: 10.0, per_word: 1.25 }, plan.block_tokens);
    let (a, b) = (texts.prompt(&plan.requests[0]), texts.prompt(&plan.requests[1]));
    let common = a.split(' ').zip(b.split(' ')).take_while(|(x, y)| x == y).count();
    assert!((410..415).contains(&common), "{common}");
    assert_eq!(a.split(' ').count(), 472);
    let short = trace(mooncake, &TraceOptions { count: Some(1), ..WHOLE }).expect("a plan");
    assert_eq!(short.requests.len(), 1);
    let brief = TraceOptions { duration: Some(Duration::from_secs(1)), ..WHOLE };
    assert_eq!(trace(mooncake, &brief).expect("a plan").requests.len(), 1);
}

#[test]
fn a_trace_becomes_a_day() {
    let lines: String = (0..600)
        .map(|i| format!("2023-11-16 18:00:{:02}.{:03},{},2\n", i / 10, i % 10 * 100, 100 + i))
        .collect();
    let text = format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{lines}");
    let day = TraceOptions { is_day: true, ..WHOLE };
    let plan = trace(&text, &day).expect("a day");
    assert_eq!(plan, trace(&text, &day).expect("a day"));
    assert!(plan.requests.is_sorted_by_key(|r| r.at));
    let last = plan.requests.last().expect("a request").at.as_secs_f64();
    assert!((86_390.0..86_400.0).contains(&last), "{last}");
    // Ten a second at the busiest hour, a quarter at the quietest, each a sixth more or less.
    let in_hour = |hour: u64| plan.requests.iter().filter(|r| r.at.as_secs() / 3600 == hour).count() as f64;
    assert!((36_000.0 * 5.0 / 6.0..36_000.0 * 7.0 / 6.0).contains(&in_hour(14)), "{}", in_hour(14));
    assert!((9_000.0 * 5.0 / 6.0..9_000.0 * 7.0 / 6.0).contains(&in_hour(2)), "{}", in_hour(2));
    // Lengths come in the trace's order, time after time; texts are new.
    let (a, b) = (&plan.requests[5], &plan.requests[605]);
    assert_eq!((a.prompt_tokens, b.prompt_tokens), (105, 105));
    assert_ne!(a.seed, b.seed);
    let fast = TraceOptions { speed: 24.0, duration: Some(Duration::from_secs(1800)), ..day };
    let half = trace(&text, &fast).expect("half a day");
    let of_half = plan.requests.iter().filter(|r| r.at.as_secs_f64() <= 43_200.0).count();
    assert_eq!(half.requests.len(), of_half);
    let at_once = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,1,1\n";
    assert!(trace(at_once, &day).is_err());
}

#[test]
fn a_bad_trace_is_named_by_its_line() {
    let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
    for (text, line) in [
        (format!("{azure}2023-11-16 18:17:03.97,1,2\nnever,1,2\n"), 3),
        (format!("{azure}2023-11-16 18:17:03.97,-1,2\n"), 2),
        (format!("{azure}2023-11-16 24:17:03.97,1,2\n"), 2),
        (format!("{azure}2023-02-30 18:17:03.97,1,2\n"), 2),
        (format!("{azure}2023-11-16 18:17:03.97,1,99999999999\n"), 2),
        (format!("{azure}2023-11-16 18:17:03.97,1\n"), 2),
        ("a,b,c\n1,2,3\n".to_owned(), 1),
        ("{\"timestamp\": 0}\n".to_owned(), 1),
        ("{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1}\n[]".to_owned(), 2),
        (format!("{{{}", " ".repeat(2 << 20)), 1),
        ("{\"timestamp\": 1e300, \"input_length\": 1, \"output_length\": 1}\n{\"timestamp\": 1.7e308, \"input_length\": 1, \"output_length\": 1}".to_owned(), 2),
    ] {
        match trace(&text, &WHOLE) {
            Err(LoadError::Trace { line: at, .. }) => assert_eq!(at, line, "{}", &text[..text.len().min(99)]),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(trace("", &WHOLE), Err(LoadError::Trace { .. })));
    assert!(matches!(trace(azure, &WHOLE), Err(LoadError::Plan(_))));
}

#[test]
fn the_field_s_traces_are_read_whole() {
    if skip_without_shared() {
        return;
    }
    let azure = read_trace(&shared("data/traces/AzureLLMInferenceTrace_code.csv"), &WHOLE).expect("a plan");
    assert_eq!(azure.requests.len(), 8819);
    let hour = azure.requests.last().expect("a request").at.as_secs_f64();
    assert!((3000.0..3700.0).contains(&hour), "{hour}");
    let mooncake = read_trace(&shared("data/traces/mooncake_synthetic.jsonl"), &WHOLE).expect("a plan");
    assert_eq!(mooncake.requests.len(), 3993);
}

#[test]
fn prompts_have_the_length_that_a_server_will_count() {
    let calibration = Calibration::measured((8, 21), (48, 71)).expect("a calibration");
    assert_eq!(calibration, Calibration { fixed: 11.0, per_word: 1.25 });
    let texts = Texts::new(calibration, 0);
    let request = &plan(Arrivals::AtOnce, 2, 9).requests[1];
    let words = texts.prompt(request).split(' ').count() as f64;
    assert!((11.0 + 1.25 * words - request.prompt_tokens as f64).abs() < 1.0);
    for bad in [((8, 21), (8, 30)), ((8, 21), (48, 20)), ((8, 21), (48, 21))] {
        assert_eq!(Calibration::measured(bad.0, bad.1), None);
    }
}

fn measured(place: usize, first_ms: u64, whole_ms: u64, tokens: u64) -> Measured {
    Measured {
        place,
        sent: Duration::from_millis(place as u64 * 10),
        first: Some(Duration::from_millis(first_ms)),
        whole: Duration::from_millis(whole_ms),
        gaps: vec![1000; tokens.saturating_sub(1) as usize],
        events: tokens as u32,
        prompt_tokens: Some(5),
        output_tokens: Some(tokens),
        ..Measured::default()
    }
}

#[test]
fn reports_count_what_was_within_the_objective() {
    let plan = plan(Arrivals::Fixed(100.0), 12, 1);
    let mut requests: Vec<Measured> = (0..10).map(|i| measured(i, 10 * (i as u64 + 1), 200, 11)).collect();
    requests.push(Measured { place: 10, error: Some("status 429: slow down".into()), ..Measured::default() });
    let outcome = Outcome { requests, wall: Duration::from_secs(2), at_once_max: 7, is_stopped: true };
    let objective = Objective { ttft_s: Some(0.050), tpot_s: Some(0.0171), e2e_s: None };
    let report = Report::new(&plan, &outcome, objective);
    assert_eq!((report.planned, report.succeeded, report.failed, report.left_out), (12, 10, 1, 1));
    assert_eq!(report.errors.get("status 429: slow down"), Some(&1));
    assert_eq!((report.rate_reached, report.output_tokens_per_s), (5.0, 55.0));
    let ttft = report.ttft_s.as_ref().expect("a summary");
    assert!((ttft.p50.value - 0.055).abs() < 1e-12 && ttft.max == 0.1);
    let tpot = report.tpot_s.as_ref().expect("a summary");
    assert!((tpot.max - 0.019).abs() < 1e-12, "(200 - 10) / 10 ms: {}", tpot.max);
    // First tokens up to 50 ms: five; (200 - t) / 10 <= 17.1 ms: from 30 ms on, so three.
    let goodput = report.goodput.as_ref().expect("a goodput");
    assert!((goodput.share - 3.0 / 11.0).abs() < 1e-12 && goodput.requests_per_s == 1.5);
    assert!(goodput.share_low < goodput.share && goodput.share < goodput.share_high);
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["ttft_s"]["count"], 10);
    assert!(json["itl_s"]["p50"]["low"].is_null());
    assert!(Report::new(&plan, &outcome, Objective::default()).goodput.is_none());
    let nothing = Report::new(&plan, &Outcome::default(), objective);
    assert_eq!((nothing.succeeded, nothing.left_out), (0, 12));
    assert!(nothing.ttft_s.is_none() && nothing.goodput.is_none());
}

#[test]
fn kinds_of_errors_are_bounded() {
    let plan = plan(Arrivals::AtOnce, 100, 1);
    let one = |i: usize| Measured { place: i, error: Some(format!("error {i}")), ..Measured::default() };
    let outcome = Outcome { requests: (0..100).map(one).collect(), ..Outcome::default() };
    let report = Report::new(&plan, &outcome, Objective::default());
    assert_eq!(report.errors.len(), 17);
    assert_eq!(report.errors["others"], 84);
}

#[test]
fn pictures_are_well_formed() {
    let requests = (0..50).map(|i| measured(i, 3 + i as u64, 40 + i as u64, 12)).collect();
    let outcome = Outcome { requests, wall: Duration::from_secs(1), at_once_max: 9, is_stopped: false };
    let objective = Objective { ttft_s: Some(0.02), ..Objective::default() };
    for outcome in [outcome, Outcome::default()] {
        let svg = picture("a <server> & \"model\"", &outcome, &objective);
        assert!(svg.contains("a &lt;server&gt; &amp; &quot;model&quot;") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(svg.matches("<svg").count(), 1);
    }
}

#[test]
fn addresses_are_held_to_a_form() {
    for (given, kept) in [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://a.b/", "https://a.b"),
        ("http://a:1/v1", "http://a:1"),
        ("http://a:1/prefix/v1/", "http://a:1/prefix"),
    ] {
        assert_eq!(given.parse::<Url>().expect("an address").to_string(), kept);
    }
    for bad in
        ["", "127.0.0.1:8000", "ftp://a", "http://", "http://user:secret@a", "http://a/?q=1", "http://a b"]
    {
        assert!(bad.parse::<Url>().is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn lines_are_the_same_however_bytes_come(text in "[a-z\r\né]{0,60}", cut in 0usize..60) {
        let whole: Vec<String> = {
            let mut lines = Lines::default();
            lines.push(text.as_bytes()).expect("short");
            std::iter::from_fn(|| lines.next_line()).collect()
        };
        let mut lines = Lines::default();
        let (a, b) = text.as_bytes().split_at(cut.min(text.len()));
        let mut got = Vec::new();
        for part in [a, b] {
            lines.push(part).expect("short");
            got.extend(std::iter::from_fn(|| lines.next_line()));
        }
        prop_assert_eq!(got, whole);
    }
}

#[test]
fn an_endless_line_is_refused() {
    let mut lines = Lines::default();
    let refused = (0..100).find_map(|_| lines.push(&[b'x'; 1 << 20]).err());
    assert!(refused.expect("a refusal").contains("4194304 bytes"));
}
