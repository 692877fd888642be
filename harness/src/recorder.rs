//! Latency histograms, merged by addition and kept as `.hlog`.
//!
//! One recorder per worker, no lock; merged when the cell is over, for quantiles cannot be averaged. Response time
//! counts from the intended time, service time from the actual send: their difference is what a closed loop would
//! have hidden. Three digits, nanoseconds. Histograms are kept whole, in the run record and in interval logs that
//! the HdrHistogram tools of any language read.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, LogEntry, Tag,
};
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

const DIGITS: u8 = 3;
/// Counts up to here are allocated at once, so that recording a usual latency never allocates; above, it grows.
const READY_NS: u64 = 2_000_000_000;

/// A histogram of nanoseconds; in the run record a base64 text, as in an interval log.
#[derive(Clone, PartialEq)]
pub struct Latencies(Histogram<u64>);

/// One worker's latencies.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Recorder {
    /// From the intended time.
    pub response: Latencies,
    /// From the actual send.
    pub service: Latencies,
    /// Times that ran backwards (the answer before the send): counted, recorded as zero.
    pub negative: u64,
}

/// What a table shows of a histogram.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Quantiles {
    /// How many values it rests on.
    pub count: u64,
    /// Half are at or below.
    pub p50_ns: u64,
    /// 99 % are at or below.
    pub p99_ns: u64,
    /// 99.9 % are at or below.
    pub p999_ns: u64,
    /// The largest.
    pub max_ns: u64,
}

impl Recorder {
    /// Records one request.
    #[inline]
    pub fn record(&mut self, intended_ns: u64, sent_ns: u64, done_ns: u64) {
        self.negative += u64::from(done_ns < intended_ns || done_ns < sent_ns);
        self.response.record(done_ns.saturating_sub(intended_ns));
        self.service.record(done_ns.saturating_sub(sent_ns));
    }

    /// Adds another worker's.
    pub fn add(&mut self, other: &Recorder) {
        self.response.add(&other.response);
        self.service.add(&other.service);
        self.negative += other.negative;
    }
}

/// Of a histogram in nanoseconds, whatever its precision.
impl From<Histogram<u64>> for Latencies {
    fn from(histogram: Histogram<u64>) -> Latencies {
        Latencies(histogram)
    }
}

/// Its quantiles: thirty thousand counts help nobody.
impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.quantiles().fmt(f)
    }
}

impl Default for Latencies {
    fn default() -> Latencies {
        let mut histogram = Histogram::new_with_max(READY_NS, DIGITS).expect("bounds that the crate allows");
        histogram.auto(true);
        Latencies(histogram)
    }
}

impl Latencies {
    /// Records one value; a histogram that grows by itself takes any.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.record(ns).expect("a histogram that resizes takes every value");
    }

    /// Adds every count of another.
    pub fn add(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("a histogram that resizes takes every other");
    }

    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Half, 99 %, 99.9 %, the largest, and how many.
    #[must_use]
    pub fn quantiles(&self) -> Quantiles {
        Quantiles {
            count: self.0.len(),
            p50_ns: self.at(0.5),
            p99_ns: self.at(0.99),
            p999_ns: self.at(0.999),
            max_ns: self.0.max(),
        }
    }

    /// The value that this fraction is at or below.
    #[must_use]
    pub fn at(&self, quantile: f64) -> u64 {
        // The bucket's upper end may lie above the largest value recorded; nobody waited that long.
        self.0.value_at_quantile(quantile).min(self.0.max())
    }

    fn encoded(&self) -> Result<String> {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new().serialize(&self.0, &mut bytes).map_err(|error| anyhow!("{error:?}"))?;
        Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
    }

    fn decoded(text: &str) -> Result<Latencies> {
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(text).context("histogram is not base64")?;
        let mut histogram = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| anyhow!("histogram: {error:?}"))?;
        histogram.auto(true);
        Ok(Latencies(histogram))
    }
}

impl Serialize for Latencies {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.encoded().map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Latencies {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Latencies, D::Error> {
        Latencies::decoded(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// One line of an interval log.
#[derive(Clone, PartialEq, Debug)]
pub struct Interval {
    /// What was measured: `response`, `service`, `end_to_end`. No commas or blanks.
    pub tag: String,
    /// When it began, from the log's start.
    pub start: Duration,
    /// How long it was.
    pub duration: Duration,
    /// What was counted.
    pub latencies: Latencies,
}

/// Writes an interval log: StartTime and BaseTime are `start`, maxima are shown in milliseconds.
///
/// # Errors
/// When the file cannot be written or a tag has characters the format cannot hold.
pub fn write_hlog(path: &Path, comment: &str, start: SystemTime, intervals: &[Interval]) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut writer = BufWriter::new(file);
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(comment)
        .with_start_time(start)
        .with_base_time(start)
        .with_max_value_divisor(1e6)
        .begin_log_with(&mut writer, &mut serializer)
        .with_context(|| format!("writing {}", path.display()))?;
    for interval in intervals {
        let tag = Tag::new(&interval.tag).ok_or_else(|| anyhow!("`{}` is no tag", interval.tag))?;
        log.write_histogram(&interval.latencies.0, interval.start, interval.duration, Some(tag))
            .map_err(|error| anyhow!("writing {}: {error:?}", path.display()))?;
    }
    io::Write::flush(&mut writer).with_context(|| format!("writing {}", path.display()))
}

/// Reads the intervals of a log back.
///
/// # Errors
/// When the file cannot be read or a line is not one of an interval log.
pub fn read_hlog(path: &Path) -> Result<Vec<Interval>> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    BufReader::new(file).read_to_end(&mut bytes)?;
    let mut intervals = Vec::new();
    for entry in IntervalLogIterator::new(&bytes) {
        match entry.map_err(|error| anyhow!("{}: {error:?}", path.display()))? {
            LogEntry::Interval(line) => intervals.push(Interval {
                tag: line.tag().map_or_else(String::new, |tag| tag.as_str().to_owned()),
                start: line.start_timestamp(),
                duration: line.duration(),
                latencies: Latencies::decoded(line.encoded_histogram())?,
            }),
            LogEntry::StartTime(_) | LogEntry::BaseTime(_) => {}
        }
    }
    Ok(intervals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(values: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::default();
        values.into_iter().for_each(|value| latencies.record(value));
        latencies
    }

    #[test]
    fn quantiles_come_with_their_count_and_maximum() {
        let quantiles = latencies(1..=1000).quantiles();
        assert_eq!(
            quantiles,
            Quantiles { count: 1000, p50_ns: 500, p99_ns: 990, p999_ns: 999, max_ns: 1000 }
        );
        assert_eq!(latencies([]).quantiles(), Quantiles::default());
        assert_eq!(
            latencies([5_000_001]).at(0.5),
            5_000_001 / 4096 * 4096 + 4095,
            "three digits, never above max"
        )
    }

    #[test]
    fn response_counts_from_the_intended_time() {
        let mut recorder = Recorder::default();
        recorder.record(1_000, 1_400, 1_500);
        recorder.record(9_000, 9_000, 8_000);
        assert_eq!((recorder.response.quantiles().max_ns, recorder.service.quantiles().max_ns), (500, 100));
        assert_eq!((recorder.negative, recorder.response.count()), (1, 2));
    }

    #[test]
    fn merging_is_adding() {
        let (mut left, right) = (latencies(1..=500), latencies(501..=1000));
        left.add(&right);
        assert_eq!(left, latencies(1..=1000));
        let minutes = 180_000_000_000;
        let mut small = latencies([7]);
        small.add(&latencies([minutes]));
        assert!(small.quantiles().max_ns.abs_diff(minutes) <= minutes / 1000, "grows to minutes");
    }

    #[test]
    fn an_interval_log_is_read_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cell.hlog");
        let intervals: Vec<Interval> = ["response", "service"]
            .iter()
            .enumerate()
            .map(|(index, tag)| Interval {
                tag: (*tag).to_owned(),
                start: Duration::from_millis(1500 * index as u64),
                duration: Duration::from_millis(1500),
                latencies: latencies((1..100).map(|value| value * value * (index as u64 + 1))),
            })
            .collect();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        write_hlog(&path, "copy+tail", start, &intervals).unwrap();
        assert_eq!(read_hlog(&path).unwrap(), intervals);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("#copy+tail\n#[StartTime: 1700000000.000 (seconds since epoch)]\n"),
            "{text}"
        );
        assert!(text.contains("\nTag=service,1.500,1.500,"), "{text}");
        let bad = Interval { tag: "a b,c".into(), ..intervals[0].clone() };
        assert!(write_hlog(&path, "", start, &[bad]).is_err());
        assert!(read_hlog(Path::new("/no/such.hlog")).unwrap_err().to_string().contains("/no/such.hlog"));
    }

    #[test]
    fn a_histogram_survives_the_run_record() {
        let mut recorder = Recorder::default();
        (0..1000).for_each(|index| recorder.record(index, index * 2, index * 1000));
        let text = serde_json::to_string(&recorder).unwrap();
        assert_eq!(serde_json::from_str::<Recorder>(&text).unwrap(), recorder);
        assert!(serde_json::from_str::<Latencies>("\"bm9wZQ==\"").is_err());
    }
}
