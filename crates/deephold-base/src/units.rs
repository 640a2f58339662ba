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

/// A time since 1970 as RFC 3339 in UTC with milliseconds: `"2026-11-24T06:30:00.123Z"`.
pub fn rfc3339(unix_time: Duration) -> String {
    let (seconds, millis) = (unix_time.as_secs(), unix_time.subsec_millis());
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z", utc_day(unix_time))
}

/// The UTC day of a time since 1970: `"2026-11-24"`.
pub fn utc_day(unix_time: Duration) -> String {
    // Days to a date of the Gregorian calendar, counted in eras of 400 years from 1 March 0000
    // (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let days = unix_time.as_secs() / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Days since 1970 of a date as [`utc_day`] writes it; none where it is no date, or one before 1970.
pub fn day_number(date: &str) -> Option<i64> {
    let mut parts = date.splitn(3, '-');
    let mut part = |digits: usize| {
        let text = parts.next().filter(|p| p.len() == digits && p.bytes().all(|b| b.is_ascii_digit()))?;
        text.parse::<u64>().ok()
    };
    let (year, month, day) = (part(4)?, part(2)?, part(2)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (year, shifted) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    // A day that its month does not have is written otherwise.
    (utc_day(Duration::from_secs(days * 86_400)) == date).then_some(days as i64)
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
    fn dates_are_the_calendar_s() {
        assert_eq!(rfc3339(Duration::ZERO), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(Duration::from_millis(1_795_501_800_123)), "2026-11-24T06:30:00.123Z");
        assert_eq!(utc_day(Duration::from_secs(951_782_400)), "2000-02-29");
        assert_eq!(utc_day(Duration::from_secs(4_107_542_400)), "2100-03-01");
    }

    #[test]
    fn dates_are_read_as_they_are_written() {
        for day in (0..60_000).step_by(7) {
            assert_eq!(day_number(&utc_day(Duration::from_secs(day * 86_400))), Some(day as i64));
        }
        for bad in [
            "1969-12-31",
            "2026-02-29",
            "2026-13-01",
            "2026-1-01",
            "2026-01-01T",
            "+026-01-01",
            "2026-01",
            "",
        ] {
            assert_eq!(day_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_count(999), "999");
        assert_eq!(human_count(2_700_000), "2.7 M");
        assert_eq!(human_duration(Duration::from_micros(1234)), "1.23 ms");
    }
}
