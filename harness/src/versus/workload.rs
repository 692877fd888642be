//! The workload file: one load in TOML, small for now.
//!
//! ```toml
//! partitions = 64           # of the topic
//! record_bytes = "1KiB"     # of a record's value
//! batch_bytes = "16KiB"     # largest batch, whole, head included; one a request
//! connections = 4           # producers
//! window = 5                # requests in flight on each
//! rate = "saturation"       # or a rate over all connections: "8MB/s", "1000/s"
//! arrivals = "poisson"      # or "uniform": how they are spread where there is a rate
//! ack = "durable"           # what an answer promises, from a broker of ours: memory, written, durable
//! ```
//!
//! Units are those of the flags ([`crate::units`]). All keys have a value when they are absent: the one above, but for
//! `partitions`, 1. A key that is not here is an error: a misspelt one would measure something else.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::arrivals::Spread;
use crate::batch::{Shape, batch_bytes_of_one};
use crate::payload::HEAD_BYTES;
use crate::spec::{Ack, CONNECTIONS_MAX, WINDOW_MAX};
use crate::target::BATCH_BYTES_MAX;
use crate::units::{Pace, binary_bytes, parse_bytes};

/// More partitions than a topic can be made with in one request.
pub const PARTITIONS_MAX: u32 = 10_000;
/// Batches in flight over all connections: the load has memory for each.
pub const IN_FLIGHT_BYTES_MAX: u64 = 1 << 30;

/// One load.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Workload {
    /// Partitions of the topic.
    pub partitions: u32,
    /// Bytes of a record's value.
    pub record_bytes: usize,
    /// Largest batch, one a request.
    pub batch_bytes: usize,
    /// Producer connections.
    pub connections: u32,
    /// Requests in flight on each.
    pub window: u32,
    /// How fast they send.
    pub rate: Pace,
    /// How arrivals are spread where there is a rate.
    pub arrivals: Spread,
    /// What an answer promises, where the broker is told.
    pub ack: Ack,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    partitions: u32,
    record_bytes: Bytes,
    batch_bytes: Bytes,
    connections: u32,
    window: u32,
    rate: String,
    arrivals: Spread,
    ack: Ack,
}

/// `16384` or `"16KiB"`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a size is a whole number of bytes, or a text such as \"16KiB\"")]
enum Bytes {
    Number(usize),
    Text(String),
}

impl Default for Written {
    fn default() -> Written {
        Written {
            partitions: 1,
            record_bytes: Bytes::Number(1 << 10),
            batch_bytes: Bytes::Number(16 << 10),
            connections: 4,
            window: 5,
            rate: "saturation".to_owned(),
            arrivals: Spread::Poisson,
            ack: Ack::Durable,
        }
    }
}

impl Bytes {
    fn parse(&self, key: &str) -> Result<usize> {
        match self {
            Bytes::Number(bytes) => Ok(*bytes),
            Bytes::Text(text) => parse_bytes(text).map_err(|why| anyhow!("{key}: {why}")),
        }
    }
}

impl Workload {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or says what makes no sense; the message names the file, the key, and the numbers.
    pub fn read(path: &Path) -> Result<Workload> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        text.parse().with_context(|| format!("the workload of {}", path.display()))
    }

    fn check(self) -> Result<Workload> {
        let Workload { partitions, record_bytes, batch_bytes, connections, window, .. } = self;
        for (key, number, most) in [
            ("partitions", partitions, PARTITIONS_MAX),
            ("connections", connections, CONNECTIONS_MAX),
            ("window", window, WINDOW_MAX),
        ] {
            ensure!((1..=most).contains(&number), "{key} = {number}: 1 to {most} make sense");
        }
        ensure!(
            record_bytes >= HEAD_BYTES,
            "record_bytes = {record_bytes}: a record carries {HEAD_BYTES} bytes of identity, so at least that"
        );
        ensure!(
            batch_bytes <= BATCH_BYTES_MAX,
            "batch_bytes = {batch_bytes}: a broker of ours takes {BATCH_BYTES_MAX} at most here"
        );
        // Judged before the sum: it could be too large to be one.
        ensure!(
            record_bytes < batch_bytes,
            "record_bytes = {record_bytes} does not fit batch_bytes = {batch_bytes}"
        );
        let smallest = batch_bytes_of_one(&Shape { key: None, value_bytes: record_bytes, header: None });
        ensure!(
            smallest <= batch_bytes,
            "batch_bytes = {batch_bytes}: with record_bytes = {record_bytes} one record makes a batch of {smallest}"
        );
        let in_flight = u64::from(connections) * u64::from(window) * batch_bytes as u64;
        ensure!(
            in_flight <= IN_FLIGHT_BYTES_MAX,
            "connections = {connections} x window = {window} x batch_bytes = {batch_bytes} are {in_flight} bytes in \
             flight, more than {IN_FLIGHT_BYTES_MAX}"
        );
        if let Pace::Rate(rate) = self.rate {
            ensure!(
                rate.number() > 0.0 && rate.number().is_finite(),
                "rate = \"{rate}\": nothing would ever be sent"
            );
        }
        Ok(self)
    }
}

impl FromStr for Workload {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Workload> {
        let written: Written = toml::from_str(text)?;
        let workload = Workload {
            partitions: written.partitions,
            record_bytes: written.record_bytes.parse("record_bytes")?,
            batch_bytes: written.batch_bytes.parse("batch_bytes")?,
            connections: written.connections,
            window: written.window,
            rate: written.rate.parse().map_err(|why| anyhow!("rate: {why}"))?,
            arrivals: written.arrivals,
            ack: written.ack,
        };
        workload.check()
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Workload { partitions, record_bytes, batch_bytes, connections, window, rate, ack, .. } = self;
        let (record, batch) = (binary_bytes(*record_bytes as u64), binary_bytes(*batch_bytes as u64));
        let plural = if *partitions == 1 { "" } else { "s" };
        write!(
            f,
            "{partitions} partition{plural}, batches up to {batch} of {record} records, {connections} connections x \
             {window} in flight, {rate}, ack {ack}"
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::Rate;

    fn refused(text: &str) -> String {
        format!("{:#}", text.parse::<Workload>().unwrap_err())
    }

    #[test]
    fn what_is_absent_has_the_value_that_is_documented() {
        let text = "partitions = 64\nrecord_bytes = \"1KiB\"\nbatch_bytes = \"16KiB\"\nconnections = 4\nwindow = 5\n\
                    rate = \"saturation\"\narrivals = \"poisson\"\nack = \"durable\"\n";
        let whole: Workload = text.parse().unwrap();
        assert_eq!(Workload { partitions: 1, ..whole }, "".parse().unwrap());
        assert_eq!((whole.record_bytes, whole.batch_bytes, whole.rate), (1024, 16_384, Pace::Saturation));
        let said = whole.to_string();
        assert!(
            said.contains("64 partitions") && said.contains("16 KiB of 1 KiB records, 4 connections x 5"),
            "{said}"
        );
    }

    #[test]
    fn a_key_that_is_not_known_is_refused_by_its_name_and_line() {
        let words = refused("partitions = 2\nbatch_byte = 4096\n");
        assert!(words.contains("unknown field `batch_byte`") && words.contains("`batch_bytes`"), "{words}");
        assert!(words.contains("line 2"), "{words}");
        assert!(refused("partitions = 2\npartitions = 3").contains("duplicate key"));
        assert!(refused("[load]\npartitions = 2").contains("unknown field `load`"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_key_and_the_numbers() {
        for (text, words) in [
            ("partitions = 0", "partitions = 0: 1 to 10000"),
            ("partitions = 10001", "partitions = 10001"),
            ("connections = 0", "connections = 0"),
            ("window = 1025", "window = 1025: 1 to 1024"),
            ("window = -1", "window"),
            ("record_bytes = 4", "record_bytes = 4"),
            ("record_bytes = \"16KiB\"", "record_bytes = 16384 does not fit batch_bytes = 16384"),
            ("record_bytes = \"16380\"", "one record makes a batch of"),
            ("batch_bytes = \"1GiB\"", "batch_bytes = 1073741824"),
            ("batch_bytes = \"16 kilos\"", "batch_bytes: `16 kilos` is not a size"),
            ("batch_bytes = 1.5", "a size is a whole number of bytes"),
            ("connections = 4096\nwindow = 1024", "are 68719476736 bytes in flight, more than 1073741824"),
            ("rate = \"fast\"", "rate: `fast` is not a rate"),
            ("rate = \"0MB/s\"", "nothing would ever be sent"),
            ("rate = 8", "rate"),
            ("ack = \"fsynced\"", "unknown variant `fsynced`"),
            ("arrivals = \"often\"", "unknown variant `often`"),
        ] {
            let said = refused(text);
            assert!(said.contains(words), "{text}: {said}");
        }
    }

    #[test]
    fn the_files_that_come_with_the_harness_are_workloads() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
        let mut seen = 0;
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let workload = Workload::read(&path).unwrap_or_else(|error| panic!("{error:#}"));
            let name = path.file_stem().unwrap().to_str().unwrap();
            let ack = workload.ack.to_string();
            assert!(name.starts_with(&ack), "{name} has ack {ack}");
            if let Some(rate) = name.split('-').find(|part| part.ends_with("MBps")) {
                let rate: f64 = rate.trim_end_matches("MBps").parse().unwrap();
                assert_eq!(workload.rate, Pace::Rate(Rate::BytesPerSecond(rate * 1e6)), "{name}");
            }
            seen += 1;
        }
        assert!(seen >= 4, "{seen} files");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let words = format!("{:#}", Workload::read(Path::new("no/such.toml")).unwrap_err());
        assert!(words.contains("no/such.toml"), "{words}");
    }

    proptest! {
        #[test]
        fn what_was_written_is_what_is_read(
            partitions in 1..=PARTITIONS_MAX,
            connections in 1u32..=256,
            window in 1u32..=32,
            kib in 2usize..=256,
            record_bytes in HEAD_BYTES..=1024,
            megabytes in proptest::option::of(1u32..10_000),
            ack in prop_oneof![Just(Ack::Memory), Just(Ack::Written), Just(Ack::Durable)],
        ) {
            prop_assume!(u64::from(connections) * u64::from(window) * ((kib as u64) << 10) <= IN_FLIGHT_BYTES_MAX);
            let rate = megabytes.map_or("saturation".to_owned(), |megabytes| format!("{megabytes}MB/s"));
            let text = format!(
                "window = {window}\nack = \"{ack}\"\nrate = \"{rate}\"\nbatch_bytes = \"{kib}KiB\"\n\
                 record_bytes = {record_bytes}\nconnections = {connections}\npartitions = {partitions}\n"
            );
            let read: Workload = text.parse().unwrap();
            let rate = megabytes.map_or(Pace::Saturation, |megabytes| {
                Pace::Rate(Rate::BytesPerSecond(f64::from(megabytes) * 1e6))
            });
            let batch_bytes = kib << 10;
            let arrivals = Spread::Poisson;
            let wanted =
                Workload { partitions, record_bytes, batch_bytes, connections, window, rate, arrivals, ack };
            prop_assert_eq!(read, wanted);
        }

        #[test]
        fn no_text_is_a_panic(text in "[a-z_ =\"0-9.\\[\\]\n/KMBi-]{0,120}") {
            let _ = text.parse::<Workload>();
        }

        #[test]
        fn no_number_of_a_known_key_is_a_panic(
            key in prop_oneof![Just("partitions"), Just("record_bytes"), Just("batch_bytes"), Just("connections"), Just("window")],
            number in any::<i64>(),
        ) {
            let _ = format!("{key} = {number}").parse::<Workload>();
        }
    }
}
