//! Quantities as text, and the median.

use std::time::Duration;

use jiff::Timestamp;

/// `4.25 GiB`; three significant digits.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{} {}", three_digits(value), UNITS[unit]) }
}

/// `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 row`, `2 rows`.
pub fn counted(number: usize, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{} {many}", count(number as u64)) }
}

/// `48 s`, `12 m 05 s`, `3 h 20 m`, `2 d 4 h`.
pub fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} m {:02} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {:02} m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// `4 m ago`; `just now` below a minute and where the clock went backwards.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    let passed = Duration::try_from(now.duration_since(then)).unwrap_or_default().as_secs();
    match passed {
        0..60 => "just now".to_owned(),
        60..3600 => format!("{} m ago", passed / 60),
        3600..86400 => format!("{} h ago", passed / 3600),
        _ => format!("{} d ago", passed / 86400),
    }
}

/// A loss or score in four significant digits; `NaN` and infinity as such.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "NaN".to_owned()
        } else {
            format!("{}Infinity", if value < 0.0 { "-" } else { "" })
        };
    }
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        format!("{value:.2e}")
    } else if size >= 1000.0 {
        format!("{value:.0}")
    } else if size >= 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

/// `38 %`, from a share between 0 and 1.
pub fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.0} %", share * 100.0) } else { "–".to_owned() }
}

/// The median; the mean of the middle two of an even number of values; NaN of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.as_slice() {
        [] => f64::NAN,
        values if values.len().is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        values => values[middle],
    }
}

fn three_digits(value: f64) -> String {
    if value >= 99.95 {
        format!("{value:.0}")
    } else if value >= 9.995 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    #[test]
    fn bytes_have_three_significant_digits() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (98_362_432, "93.8 MiB"),
            (1 << 30, "1.00 GiB"),
            (150 << 30, "150 GiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
        assert!(bytes(u64::MAX).ends_with("TiB"));
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!(
            [count(7), count(999), count(1000), count(134_515_008)],
            ["7", "999", "1,000", "134,515,008"]
        );
        assert_eq!(counted(1, "row", "rows"), "1 row");
    }

    #[test]
    fn durations_name_two_units() {
        let text = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!(
            [text(5), text(65), text(3_660), text(90_000)],
            ["5 s", "1 m 05 s", "1 h 01 m", "1 d 1 h"]
        );
    }

    #[test]
    fn numbers_do_not_hide_what_they_are() {
        let cases = [
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
            (0.0, "0.000"),
            (2e-4, "2.00e-4"),
            (1.23456, "1.235"),
            (123.456, "123.5"),
            (4321.0, "4321"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_clock_that_went_backwards_is_now() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let then = |seconds: i64| Timestamp::from_second(1_000_000 - seconds).unwrap();
        assert_eq!([ago(then(-50), now), ago(then(240), now)], ["just now", "4 m ago"]);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert!(
            (median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12
                && (median([4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12
        );
        assert!(median([]).is_nan());
    }
}
