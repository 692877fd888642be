//! Bytes, rates and nanoseconds, as people write and read them.
//!
//! Parsing is for flags, formatting for tables and progress lines. KiB is 1024 bytes, MB is 10^6: the report says
//! MB/s and GB in powers of ten as network people do, batch sizes in powers of two as Kafka's defaults are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A rate the user asked for, in records or in bytes of record values.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rate {
    /// Records each second, over all producers.
    RecordsPerSecond(f64),
    /// Bytes of record values each second, over all producers.
    BytesPerSecond(f64),
}

/// How fast producers send: as fast as answers allow, or on a schedule.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// Closed loop: every window is kept full.
    Saturation,
    /// Open loop: requests leave when the schedule wants them, late ones are counted late.
    Rate(Rate),
}

impl Rate {
    /// The rate in records a second, when a record's value has so many bytes in the mean.
    #[must_use]
    pub fn records_per_second(self, value_bytes: f64) -> f64 {
        match self {
            Rate::RecordsPerSecond(records) => records,
            Rate::BytesPerSecond(bytes) => bytes / value_bytes.max(1.0),
        }
    }

    /// The bare number, whatever its unit.
    #[must_use]
    pub fn number(self) -> f64 {
        match self {
            Rate::RecordsPerSecond(number) | Rate::BytesPerSecond(number) => number,
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    /// `40MB/s`, `100000/s`, `100000records/s`.
    fn from_str(text: &str) -> Result<Rate, String> {
        let refuse = || format!("`{text}` is not a rate: write 40MB/s, 100000/s or 100000records/s");
        let per_second = text.trim().strip_suffix("/s").ok_or_else(refuse)?.trim();
        let split = per_second.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(per_second.len());
        let number: f64 = per_second[..split].parse().map_err(|_| refuse())?;
        match per_second[split..].trim() {
            "" | "records" => Ok(Rate::RecordsPerSecond(number)),
            unit => Ok(Rate::BytesPerSecond(number * bytes_in(unit).ok_or_else(refuse)? as f64)),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::RecordsPerSecond(records) => write!(f, "{records:.0} records/s"),
            Rate::BytesPerSecond(bytes) => write!(f, "{} MB/s", trimmed(bytes / 1e6)),
        }
    }
}

impl FromStr for Pace {
    type Err = String;

    /// `saturation` or a rate.
    fn from_str(text: &str) -> Result<Pace, String> {
        match text {
            "saturation" => Ok(Pace::Saturation),
            rate => rate.parse().map(Pace::Rate).map_err(|refusal| format!("{refusal}, or saturation")),
        }
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pace::Saturation => f.write_str("saturation"),
            Pace::Rate(rate) => rate.fmt(f),
        }
    }
}

/// Reads a number of bytes: `16384`, `16KiB`, `1MiB`, `1GB`.
///
/// # Errors
/// When the text is not a whole number with a known unit, or does not fit.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let refuse = || format!("`{text}` is not a size: write 16384, 16KiB, 1MiB or 1GB");
    let text_trimmed = text.trim();
    let split = text_trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(text_trimmed.len());
    let number: u64 = text_trimmed[..split].parse().map_err(|_| refuse())?;
    let unit = bytes_in(text_trimmed[split..].trim()).ok_or_else(refuse)?;
    number.checked_mul(unit).and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(refuse)
}

/// `16 KiB`, `1 MiB`, or plain bytes when the number is not round.
#[must_use]
pub fn binary_bytes(bytes: u64) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    format!("{bytes} B")
}

/// Nanoseconds with the unit that reads best: `850 ns`, `12.3 us`, `4.56 ms`, `1.20 s`.
#[must_use]
pub fn nanoseconds(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{} us", three_digits(ns as f64 / 1e3)),
        1_000_000..1_000_000_000 => format!("{} ms", three_digits(ns as f64 / 1e6)),
        _ => format!("{} s", three_digits(ns as f64 / 1e9)),
    }
}

/// A number with three significant digits, never in exponent form.
#[must_use]
pub fn three_digits(number: f64) -> String {
    match number.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        size if size >= 1.0 => format!("{number:.2}"),
        _ => format!("{number:.3}"),
    }
}

fn trimmed(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn bytes_in(unit: &str) -> Option<u64> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units_and_refused_with_the_text() {
        assert_eq!(parse_bytes("16KiB"), Ok(16384));
        assert_eq!(parse_bytes("16 kib"), Ok(16384));
        assert_eq!(parse_bytes("1MB"), Ok(1_000_000));
        assert_eq!(parse_bytes("77"), Ok(77));
        for bad in ["", "KiB", "-1", "1.5MiB", "3 parsecs", "99999999999999999999", "99999999999GiB"] {
            assert!(parse_bytes(bad).unwrap_err().contains(&format!("`{bad}`")), "{bad}");
        }
    }

    #[test]
    fn rates_are_records_or_bytes() {
        assert_eq!("40MB/s".parse(), Ok(Rate::BytesPerSecond(40e6)));
        assert_eq!("1.5 MiB/s".parse(), Ok(Rate::BytesPerSecond(1.5 * 1048576.0)));
        assert_eq!("100000/s".parse(), Ok(Rate::RecordsPerSecond(1e5)));
        assert_eq!("10 records/s".parse(), Ok(Rate::RecordsPerSecond(10.0)));
        for bad in ["40", "MB/s", "40 furlongs/s", "-3/s", "/s"] {
            assert!(bad.parse::<Rate>().unwrap_err().contains(bad), "{bad}");
        }
        assert_eq!("saturation".parse(), Ok(Pace::Saturation));
        assert!("fast".parse::<Pace>().unwrap_err().contains("saturation"));
        assert_eq!("40MB/s".parse::<Rate>().unwrap().to_string(), "40 MB/s");
        assert_eq!(Rate::BytesPerSecond(1e6).records_per_second(1000.0), 1000.0);
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(binary_bytes(16384), "16 KiB");
        assert_eq!(binary_bytes(1000), "1000 B");
        assert_eq!(nanoseconds(850), "850 ns");
        assert_eq!(nanoseconds(12_345), "12.3 us");
        assert_eq!(nanoseconds(4_560_000), "4.56 ms");
        assert_eq!(nanoseconds(61_000_000_000), "61.0 s");
        assert_eq!(three_digits(0.1234), "0.123");
        assert_eq!(three_digits(0.0), "0");
    }
}
