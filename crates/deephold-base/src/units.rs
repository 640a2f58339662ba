//! Numbers as people read them.

use std::time::Duration;

/// Bytes in binary units: `human_bytes(1536) == "1.5 KiB"`.
pub fn human_bytes(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// Counts in decimal units: `human_count(2_700_000) == "2.7 M"`.
pub fn human_count(count: u64) -> String {
    scaled(count as f64, 1000.0, &["", "K", "M", "B", "T", "Q"]).trim_end().to_owned()
}

/// A duration with three significant digits: `"1.23 s"`, `"45.6 ms"`.
pub fn human_duration(d: Duration) -> String {
    let s = d.as_secs_f64();
    let (value, unit) = match s {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s => (s * 1e6, "µs"),
    };
    format!(
        "{value:.*} {unit}",
        if value >= 100.0 {
            0
        } else if value >= 10.0 {
            1
        } else {
            2
        }
    )
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} {}", units[0]) } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_count(999), "999");
        assert_eq!(human_count(2_700_000), "2.7 M");
        assert_eq!(human_duration(Duration::from_micros(1234)), "1.23 ms");
    }
}
