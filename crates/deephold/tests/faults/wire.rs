//! Clients that do harm: each fault on a server with nothing else to do, and what others notice of it.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::target::{Target, until_closed};
use crate::{Fault, rounds};

/// What others are answered within, on a small busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether it held, and what was seen.
type Seen = (bool, String);

/// Tries a fault on ours, where it must hold, and on the peer where there is one.
fn try_on_both(fault: &Fault, before: &str, observe: impl Fn(&Target) -> Seen) {
    let (held, seen) = observe(&Target::ours(before));
    fault.ours(&seen);
    assert!(held, "{}: {seen}", fault.name);
    if let Some(peer) = Target::peer(before) {
        let (_, seen) = observe(&peer);
        fault.seen(peer.name, &seen);
    }
}

/// What others got, in words.
fn others(answer: &Result<Duration, String>) -> String {
    match answer {
        Ok(took) => format!("others were answered in {:.2} s", took.as_secs_f64()),
        Err(problem) => format!("others were not answered: {problem}"),
    }
}

/// Sends a byte on each connection every second: how many are open after this time from `begun`, or once none is.
fn trickle(streams: &[TcpStream], byte: &[u8], begun: Instant, watched: Duration) -> usize {
    let mut open = streams.len();
    while open > 0 && begun.elapsed() < watched {
        std::thread::sleep(Duration::from_secs(1));
        // Writing to a connection that the server has closed fails, at the latest at the second try.
        open = streams.iter().filter(|stream| (&mut &**stream).write_all(byte).is_ok()).count();
    }
    open
}

#[test]
fn slow_heads() {
    let fault = Fault {
        name: "slowloris",
        done: "200 connections send a byte of their request's head each second",
        holds: "others are answered; each is closed after 10 s",
    };
    try_on_both(&fault, "", |target| {
        let begun = Instant::now();
        let streams: Vec<TcpStream> = (0..200).filter_map(|_| target.connect().ok()).collect();
        let opened = streams.len();
        for mut stream in &streams {
            let _ = stream.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nX-Slow: ");
        }
        let answer = target.answers(PATIENCE);
        let open = trickle(&streams, b"a", begun, Duration::from_secs(16));
        let closed = match open {
            0 => format!("all closed after {:.0} s", begun.elapsed().as_secs_f64()),
            n => format!("{n} of {opened} still open after 16 s"),
        };
        (answer.is_ok() && open == 0, format!("{}; {closed}", others(&answer)))
    });
}

#[test]
fn slow_bodies() {
    let fault = Fault {
        name: "slow bodies",
        done: "100 connections announce a body and send a byte of it each second",
        holds: "others are answered; each is refused or closed after 30 s",
    };
    let watched = Duration::from_secs(rounds(4, 40) as u64);
    try_on_both(&fault, "", |target| {
        let begun = Instant::now();
        let streams: Vec<TcpStream> = (0..100).filter_map(|_| target.connect().ok()).collect();
        let head = target.with_body(&" ".repeat(5000));
        for mut stream in &streams {
            let _ = stream.write_all(&head[..head.len() - 5000]);
        }
        let answer = target.answers(PATIENCE);
        let open = trickle(&streams, b" ", begun, watched);
        let closed = match open {
            0 => format!("all closed after {:.0} s", begun.elapsed().as_secs_f64()),
            n => format!("{n} of 100 still open after {:.0} s", watched.as_secs_f64()),
        };
        // Watched briefly, only the others count.
        let held = answer.is_ok() && (open == 0 || watched < Duration::from_secs(30));
        (held, format!("{}; {closed}", others(&answer)))
    });
}

#[test]
fn huge_heads_and_bodies() {
    let fault = Fault {
        name: "huge heads and bodies",
        done: "a head of 8 MiB; a body of 1 GiB announced and not sent; one of 256 MiB sent in chunks without end",
        holds: "each is refused or closed, the announced one at once with 413; memory grows by less than 64 MiB",
    };
    try_on_both(&fault, "", |target| {
        let before = target.memory();
        let mut seen = Vec::new();
        let mut held = true;
        let first = String::from_utf8(target.with_body("")).expect("text");
        let begin = first.split_once("\r\nContent-Length").expect("a length").0.to_owned();
        let announced = format!("{begin}\r\nContent-Length: 1073741824\r\n\r\n").into_bytes();
        let chunked = format!("{begin}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
        let chunk = [b"100000\r\n".as_slice(), &[b' '; 1 << 20], b"\r\n"].concat();
        let header = [b"\r\nX-Long: ".as_slice(), &[b'a'; 8 << 20], b"\r\n\r\n"].concat();
        for (name, head, piece, pieces) in [
            ("head", begin.as_bytes(), header.as_slice(), 1),
            ("announced", &announced, &[], 0),
            ("chunked", &chunked, chunk.as_slice(), 256),
        ] {
            let Ok(mut stream) = target.connect() else { return (false, "no connection".to_owned()) };
            let _ = stream.set_write_timeout(Some(Duration::from_secs(10)));
            let mut sent = head.len();
            let _ = stream.write_all(head);
            for _ in 0..pieces {
                if stream.write_all(piece).is_err() {
                    break;
                }
                sent += piece.len();
            }
            let status = until_closed(stream, Duration::from_secs(5));
            held &= status.is_some_and(|s| s != 200) && sent < 200 << 20;
            held &= name != "announced" || status == Some(413);
            let answer = match status {
                Some(0) => "closed".to_owned(),
                Some(status) => format!("status {status}"),
                None => "still waits".to_owned(),
            };
            seen.push(format!("{name}: {answer} after {:.1} MiB", sent as f64 / f64::from(1 << 20)));
        }
        let answer = target.answers(PATIENCE);
        let grown = target.memory().saturating_sub(before);
        seen.push(format!("memory grew by {:.0} MiB", grown as f64 / f64::from(1 << 20)));
        seen.push(others(&answer));
        (held && answer.is_ok() && grown < 64 << 20, seen.join("; "))
    });
}

#[test]
fn deep_json() {
    let fault = Fault {
        name: "JSON nesting",
        done: "bodies of 100,000 open lists, of 100,000 open objects, and within a tool's schema",
        holds: "each is refused with 400; the process lives",
    };
    try_on_both(&fault, "", |target| {
        let (lists, objects) = ("[".repeat(100_000), "{\"a\":".repeat(100_000));
        let schema = format!(
            "{{\"model\": \"guide\", \"messages\": [], \"response_format\": {{\"type\": \"json_schema\", \"json_schema\": {}1{}}}}}",
            "{\"items\":".repeat(20_000),
            "}".repeat(20_000)
        );
        let statuses: Vec<String> = [lists, objects, schema]
            .iter()
            .map(|body| {
                let Ok(mut stream) = target.connect() else { return "no connection".to_owned() };
                let _ = stream.write_all(&target.with_body(body));
                until_closed(stream, PATIENCE).map_or("no answer".to_owned(), |s| s.to_string())
            })
            .collect();
        let answer = target.answers(PATIENCE);
        let held = statuses.iter().all(|s| s == "400") && answer.is_ok();
        (held, format!("statuses {}; {}", statuses.join(", "), others(&answer)))
    });
}

#[test]
fn half_closed_sockets() {
    let fault = Fault {
        name: "half-closed sockets",
        done: "50 clients ask, and close their sending half before the answer",
        holds: "each is answered or ended within 20 s; no descriptor stays",
    };
    try_on_both(&fault, "", |target| {
        assert!(target.answers(PATIENCE).is_ok());
        let before = target.descriptors();
        let streams: Vec<TcpStream> = (0..50)
            .filter_map(|_| {
                let mut stream = target.connect().ok()?;
                stream.write_all(&target.question()).ok()?;
                stream.shutdown(Shutdown::Write).ok()?;
                Some(stream)
            })
            .collect();
        let asked = streams.len();
        let ends: Vec<Option<u16>> = streams.into_iter().map(|s| until_closed(s, PATIENCE)).collect();
        let answered = ends.iter().filter(|e| **e == Some(200)).count();
        let ended = ends.iter().filter(|e| e.is_some()).count();
        let left = settles(target, before);
        let held = ended == asked && left <= before;
        (
            held,
            format!(
                "{answered} of {asked} answered, {ended} ended; descriptors {before} before, {left} after"
            ),
        )
    });
}

/// How long a connection may stay whose client went without the server seeing it, as happens where a queue of connections runs
/// over: the time that a request may take to arrive, and some more on a small busy machine.
const UNSEEN: Duration = Duration::from_secs(45);

/// Descriptors once they have had time to go. A server that writes its usage has one more for a moment, so none is counted again.
fn settles(target: &Target, before: usize) -> usize {
    let begun = Instant::now();
    loop {
        let now = target.descriptors();
        if now <= before || begun.elapsed() > UNSEEN {
            return now;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn storms_of_connections() {
    let fault = Fault {
        name: "connection storms",
        done: "8 clients open and drop connections as fast as they can, half of them in the middle of a request",
        holds: "others are answered meanwhile; no descriptor stays",
    };
    let duration = Duration::from_secs(rounds(2, 10) as u64);
    try_on_both(&fault, "", |target| {
        assert!(target.answers(PATIENCE).is_ok());
        let before = target.descriptors();
        let question = target.question();
        let (made, answers) = std::thread::scope(|scope| {
            let storms: Vec<_> = (0..8)
                .map(|i| {
                    let (target, question) = (&target, &question);
                    scope.spawn(move || {
                        let (begun, mut made) = (Instant::now(), 0usize);
                        while begun.elapsed() < duration {
                            if let Ok(mut stream) = target.connect() {
                                made += 1;
                                if i % 2 == 0 {
                                    let _ = stream.write_all(&question[..question.len() - 1]);
                                }
                            }
                        }
                        made
                    })
                })
                .collect();
            let answers: Vec<_> = (0..3).map(|_| target.answers(PATIENCE)).collect();
            let made: usize = storms.into_iter().map(|s| s.join().expect("a storm")).sum();
            (made, answers)
        });
        let slowest = answers.iter().filter_map(|a| a.as_ref().ok()).max().copied().unwrap_or_default();
        let failed = answers.iter().filter(|a| a.is_err()).count();
        let left = settles(target, before);
        let per_second = made as f64 / duration.as_secs_f64();
        let seen = format!(
            "{per_second:.0} connections a second; others: slowest {:.2} s, {failed} of 3 failed; descriptors {before} before, {left} after",
            slowest.as_secs_f64()
        );
        (failed == 0 && left <= before, seen)
    });
}

#[test]
fn no_descriptors_left() {
    let fault = Fault {
        name: "descriptors exhausted",
        done: "a limit of 96 descriptors; 200 connections stay open and silent",
        holds: "the process lives; when they go, others are answered again and all is recorded",
    };
    try_on_both(&fault, "ulimit -n 96", |target| {
        let streams: Vec<TcpStream> = (0..200).map_while(|_| target.connect().ok()).collect();
        std::thread::sleep(Duration::from_millis(300));
        let meanwhile = target.answers(Duration::from_secs(2));
        let opened = streams.len();
        drop(streams);
        let begun = Instant::now();
        let mut after = target.answers(PATIENCE);
        while after.is_err() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(200));
            after = target.answers(PATIENCE);
        }
        let seen = format!(
            "{opened} opened; meanwhile {}; afterwards {} ({:.1} s later)",
            others(&meanwhile),
            others(&after),
            begun.elapsed().as_secs_f64()
        );
        (after.is_ok(), seen)
    });
}
