use crate::{ReasoningSplitter, Segment, StopMatcher};

/// All segments of a text cut at every place and fed in two parts, and letter by letter.
fn split(prompt: &str, text: &str) -> (String, String) {
    let run = |parts: &[&str]| {
        let mut s = ReasoningSplitter::after_prompt(prompt);
        let (mut reasoning, mut content) = (String::new(), String::new());
        let mut take = |segment: Segment| match segment {
            Segment::Reasoning(t) => reasoning.push_str(&t),
            Segment::Content(t) => content.push_str(&t),
        };
        parts.iter().for_each(|p| s.push(p).into_iter().for_each(&mut take));
        s.finish().into_iter().for_each(&mut take);
        (reasoning, content)
    };
    let whole = run(&[text]);
    for (at, _) in text.char_indices() {
        assert_eq!(run(&[&text[..at], &text[at..]]), whole, "{text:?} cut at {at}");
    }
    let letters: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(run(&letters.iter().map(String::as_str).collect::<Vec<_>>()), whole);
    whole
}

#[test]
fn reasoning_and_answer_are_told_apart_wherever_the_stream_is_cut() {
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(split("", "<think>\nhm <b\n\n</think>\n\nyes\n"), pair("hm <b", "yes\n"));
    assert_eq!(split("…<think>\n", "hm\n</think>yes"), pair("hm", "yes"));
    assert_eq!(split("…</think>", "<think>yes"), pair("", "<think>yes"));
    assert_eq!(split("", "plain <think>"), pair("", "plain <think>"));
    assert_eq!(split("", "<think></think>yes"), pair("", "yes"));
    assert_eq!(split("<think>", "never closed</thi"), pair("never closed</thi", ""));
    assert_eq!(split("", " <thin"), pair("", " <thin"));
    assert_eq!(split("", ""), pair("", ""));
}

#[test]
fn a_stop_string_is_never_shown_in_part() {
    let run = |stops: &[&str], parts: &[&str]| {
        let mut m = StopMatcher::new(stops.iter().map(|s| (*s).to_owned()));
        let mut out = String::new();
        for p in parts {
            let found = m.push(p);
            out.push_str(&found.text);
            if found.stop.is_some() {
                return (out, found.stop);
            }
        }
        out.push_str(&m.finish());
        (out, None)
    };
    let text = "one 二END three ENENDS";
    for (at, _) in text.char_indices() {
        let found = run(&["END", ""], &[&text[..at], &text[at..]]);
        assert_eq!(found, ("one 二".to_owned(), Some("END".to_owned())), "cut at {at}");
        assert_eq!(run(&["absent"], &[&text[..at], &text[at..]]), (text.to_owned(), None));
    }
    assert_eq!(run(&["ab", "abc"], &["xabc"]), ("x".to_owned(), Some("abc".to_owned())));
    assert_eq!(run(&[], &["x"]), ("x".to_owned(), None));
}
