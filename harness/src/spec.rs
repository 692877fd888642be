//! What the user asked for: the flags of `ringlog-harness compare`, judged before anything starts.
//!
//! A spec is plain data and is kept in the run record, so that a run can be repeated from it. What follows from it
//! (cells, their order and length) is [`crate::schedule::Plan`]. Settings that make no sense are refused here, with
//! the names and numbers of the flags.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::arrivals::Spread;
use crate::batch::{Shape, batch_bytes_of_one};
use crate::environment::time_name;
use crate::keys::{KEY_BYTES, KeyDistribution};
use crate::payload::{HEAD_BYTES, HEADER_NAME};
use crate::units::{Pace, Rate, parse_bytes};

/// One run, as asked for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, clap::Args)]
pub struct RunSpec {
    /// Ways of moving bytes to compare, as ingress+egress
    #[arg(long, value_delimiter = ',', default_values = ["buffered+copy", "buffered+sendfile", "copy+tail"])]
    pub rows: Vec<Pair>,
    /// Loads to compare them on: consumers at the tail, catching up from disk, many on the same range, both at once, or
    /// producers alone
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["tail", "catch-up"])]
    pub loads: Vec<Load>,
    /// Partitions of the topic
    #[arg(long, default_value_t = 8)]
    pub partitions: u32,
    /// Producer connections
    #[arg(long, default_value_t = 4)]
    pub producers: u32,
    /// Consumers that read each partition, each the whole of it
    #[arg(long, default_value_t = 1)]
    pub consumers: u32,
    /// Requests in flight on each producer connection
    #[arg(long, default_value_t = 5)]
    pub window: u32,
    /// Bytes of a record's value (ignored with --payload)
    #[arg(long, value_parser = parse_bytes, default_value = "1KiB")]
    pub record_bytes: usize,
    /// Largest batch, whole, head included; several are compared
    #[arg(long, value_parser = parse_bytes, value_delimiter = ',', default_values = ["16KiB", "256KiB"])]
    pub batch_bytes: Vec<usize>,
    /// Keys: none, uniform:N or zipf:N
    #[arg(long, default_value = "none")]
    pub keys: KeyDistribution,
    /// Pace of the throughput cells: saturation, or a rate such as 200MB/s or 100000/s
    #[arg(long, default_value = "saturation")]
    pub rate: Pace,
    /// Rate of the latency cells, the same for all rows
    #[arg(long, default_value = "40MB/s")]
    pub fixed_rate: Rate,
    /// How arrivals are spread where there is a rate
    #[arg(long, value_enum, default_value = "poisson")]
    pub arrivals: Spread,
    /// What an answer to a producer promises
    #[arg(long, value_enum, default_value = "written")]
    pub ack: Ack,
    /// Measured seconds of each tail cell [default: what makes the whole run take about 90 s]
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Every pair of strategies that makes sense, cells of 3 s, 8 blocks: half an hour and more
    #[arg(long)]
    #[serde(default)]
    pub full: bool,
    /// Blocks: each runs every cell once, in an order of its own [default: 8, fewer when there are many cells]
    #[arg(long)]
    pub blocks: Option<u32>,
    /// Bytes written before each catch-up cell, and read in it from disk
    #[arg(long, value_parser = parse_bytes, default_value = "256MB")]
    pub catch_up_bytes: usize,
    /// Lines of this file are the records' values, their identity goes into record headers
    #[arg(long)]
    pub payload: Option<PathBuf>,
    /// Seed of everything random [default: from the clock, and printed]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where the servers keep their logs, in a directory of their own that is removed at the end [default: OUT/data]
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Where the record and the page go [default: results/local/TIME]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Core of the server [default: the first this process may use]
    #[arg(long)]
    pub server_core: Option<usize>,
    /// Core of the load [default: the second this process may use]
    #[arg(long)]
    pub client_core: Option<usize>,
}

/// A row: how bytes come in, and how they go out.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Pair {
    /// Name of the ingress strategy.
    pub ingress: String,
    /// Name of the egress strategy.
    pub egress: String,
}

/// Where consumers read.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// Behind the producers, at the end of the log.
    Tail,
    /// From the beginning, out of files dropped from the page cache, with no producer.
    CatchUp,
    /// The same by eight times as many consumers, all from the beginning at once.
    FanOut,
    /// Some catch up while others follow producers of another topic, which go on at the fixed rate.
    Mixed,
    /// Not while it is measured: producers alone, and everything is read back and verified afterwards.
    Produce,
}

/// What an answer to a producer promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    /// In memory: lost with the process.
    Memory,
    /// The kernel completed the write: survives `kill -9`.
    Written,
    /// Flushed: survives power loss.
    Durable,
}

/// What the system under test can do: the strategies it lists, the largest batch it takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// Names of its ingress strategies.
    pub ingress: &'a [&'a str],
    /// Names of its egress strategies.
    pub egress: &'a [&'a str],
    /// Its largest batch.
    pub batch_bytes_max: usize,
}

/// A setting that makes no sense, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// The ingress of rows that are no rows: what the machine does without a log ([`crate::floor`]).
pub const FLOOR: &str = "floor";
/// The egress of the floor where bytes go to readers from the memory they came into, or to nobody.
pub const FLOOR_MEMORY: &str = "memory";

impl Pair {
    /// Whether this is a floor, not a row.
    #[must_use]
    pub fn is_floor(&self) -> bool {
        self.ingress == FLOOR
    }

    /// The floor that this row is held against on a load.
    #[must_use]
    pub fn floor(&self, load: Load) -> Pair {
        let egress = match load {
            Load::Tail | Load::Produce => FLOOR_MEMORY,
            // What sends memory catches up past the page cache.
            Load::CatchUp | Load::FanOut | Load::Mixed => match &self.egress[..] {
                "tail" => "direct",
                "tail_zc" => "direct_zc",
                // What it chooses there.
                "auto" if load == Load::FanOut => "sendfile",
                "auto" => "direct",
                egress => egress,
            },
        };
        Pair { ingress: FLOOR.to_owned(), egress: egress.to_owned() }
    }
}

impl Load {
    /// Whether producers run while it is measured.
    #[must_use]
    pub fn produces(self) -> bool {
        matches!(self, Load::Tail | Load::Produce | Load::Mixed)
    }

    /// Whether it lasts as long as it is told to; the others, until everything is read.
    #[must_use]
    pub fn is_timed(self) -> bool {
        matches!(self, Load::Tail | Load::Produce)
    }

    /// Whether there are consumers that begin at the beginning, out of files.
    #[must_use]
    pub fn catches_up(self) -> bool {
        !self.is_timed()
    }

    /// Consumers of each partition that catch up, when `consumers` are asked for.
    #[must_use]
    pub fn behind(self, consumers: u32) -> u32 {
        match self {
            Load::Tail | Load::Produce => 0,
            Load::CatchUp | Load::Mixed => consumers,
            Load::FanOut => consumers * FAN_OUT,
        }
    }

    /// Consumers of each partition that follow the producers, when `consumers` are asked for.
    #[must_use]
    pub fn following(self, consumers: u32) -> u32 {
        if matches!(self, Load::Tail | Load::Mixed) { consumers } else { 0 }
    }
}

/// How many times `--consumers` read each partition at once in the fan-out load.
pub const FAN_OUT: u32 = 8;
/// More connections than this do not fit a process's usual limit of descriptors, server's and load's.
pub const CONNECTIONS_MAX: u32 = 4096;
/// Partitions of producers alone that are read back at once: a reader has a connection and 1 MiB.
pub const READ_BACK_AT_ONCE: u32 = 64;
/// More requests in flight on a connection than any Kafka client has.
pub const WINDOW_MAX: u32 = 1024;

impl RunSpec {
    /// Refuses what makes no sense, naming flags and numbers.
    ///
    /// # Errors
    /// The first [`Refusal`].
    pub fn validate(&self, limits: &Limits<'_>) -> Result<(), Refusal> {
        self.validate_rows(limits)?;
        self.validate_connections()?;
        self.validate_bytes(limits)?;
        self.validate_time()
    }

    /// The record shape of this spec, without a key's bytes: what batch limits are judged by.
    #[must_use]
    pub fn smallest_batch_bytes(&self) -> usize {
        let key = [0; KEY_BYTES];
        let key = self.keys.count().map(|_| &key[..]);
        let head = [0; HEAD_BYTES];
        match self.payload {
            Some(_) => batch_bytes_of_one(&Shape { key, value_bytes: 0, header: Some((HEADER_NAME, &head)) }),
            None => batch_bytes_of_one(&Shape { key, value_bytes: self.record_bytes, header: None }),
        }
    }

    /// Where the record and the page go; the start time names the directory where the user did not.
    #[must_use]
    pub fn out_directory(&self, start_unix_seconds: u64) -> PathBuf {
        let named = || PathBuf::from("results/local").join(time_name(start_unix_seconds));
        self.out.clone().unwrap_or_else(named)
    }

    /// Cores of server and load, out of those this process may use. With one core they share it, and the page warns.
    ///
    /// # Errors
    /// When a core was asked for that this process may not use, or none is left.
    pub fn cores(&self, allowed: &[usize]) -> Result<(usize, usize), Refusal> {
        for (flag, core) in [("--server-core", self.server_core), ("--client-core", self.client_core)] {
            let Some(core) = core else { continue };
            refuse_when(!allowed.contains(&core), || {
                format!("{flag} {core}: this process may use {allowed:?}; see taskset or the cgroup's cpuset")
            })?;
        }
        let first_but = |other: Option<usize>| {
            let free = allowed.iter().copied().find(|&core| Some(core) != other);
            free.or(other).ok_or_else(|| Refusal("no core is allowed to this process".into()))
        };
        let server = match self.server_core {
            Some(core) => core,
            None => first_but(self.client_core)?,
        };
        let client = match self.client_core {
            Some(core) => core,
            None => first_but(Some(server))?,
        };
        Ok((server, client))
    }

    fn validate_rows(&self, limits: &Limits<'_>) -> Result<(), Refusal> {
        refuse_when(self.rows.is_empty(), || {
            "--rows is empty: name at least one pair, such as copy+tail".into()
        })?;
        refuse_when(self.loads.is_empty(), || "--loads is empty: tail, catch-up or both".into())?;
        refuse_when(self.batch_bytes.is_empty(), || "--batch-bytes is empty: name at least one size".into())?;
        for pair in &self.rows {
            for (kind, name, known) in
                [("ingress", &pair.ingress, limits.ingress), ("egress", &pair.egress, limits.egress)]
            {
                refuse_when(!known.contains(&name.as_str()), || {
                    format!(
                        "--rows {pair}: there is no {kind} strategy `{name}`; there are: {}",
                        known.join(", ")
                    )
                })?;
            }
        }
        refuse_repeats("--rows", &self.rows)?;
        refuse_repeats("--loads", &self.loads)?;
        refuse_repeats("--batch-bytes", &self.batch_bytes)
    }

    fn validate_connections(&self) -> Result<(), Refusal> {
        for (flag, number) in
            [("--partitions", self.partitions), ("--producers", self.producers), ("--window", self.window)]
        {
            refuse_when(number == 0, || format!("{flag} 0: at least 1 is needed for anything to move"))?;
        }
        refuse_when(self.consumers == 0, || {
            let load = self.loads[0];
            format!("--consumers 0: the {load} load reads every record to verify it")
        })?;
        refuse_when(self.window > WINDOW_MAX, || {
            format!("--window {}: at most {WINDOW_MAX} requests are in flight on a connection", self.window)
        })?;
        for load in &self.loads {
            let RunSpec { producers, partitions, consumers, .. } = self;
            let readers = load.behind(*consumers) + load.following(*consumers).max(1);
            let read =
                if *load == Load::Produce { (*partitions).min(READ_BACK_AT_ONCE) } else { *partitions };
            let connections = u64::from(*producers) + u64::from(read) * u64::from(readers);
            refuse_when(connections > u64::from(CONNECTIONS_MAX), || {
                format!(
                    "--producers {producers} and --partitions {partitions} x --consumers {consumers} are {connections} \
                     connections in the {load} load, more than {CONNECTIONS_MAX}"
                )
            })?;
        }
        if let Some(keys) = self.keys.count() {
            refuse_when(keys < u64::from(self.partitions), || {
                let RunSpec { keys, partitions, .. } = self;
                format!("--keys {keys} cannot cover --partitions {partitions}: some would never get a record")
            })?;
        }
        refuse_when(self.server_core.is_some() && self.server_core == self.client_core, || {
            let core = self.server_core.unwrap_or_default();
            format!(
                "--server-core {core} and --client-core {core} are one core: each would be measured with the other"
            )
        })
    }

    fn validate_bytes(&self, limits: &Limits<'_>) -> Result<(), Refusal> {
        if self.payload.is_none() {
            refuse_when(self.record_bytes < HEAD_BYTES, || {
                format!(
                    "--record-bytes {}: a record carries {HEAD_BYTES} bytes of identity (producer, sequence, intended \
                     time, checksum), so at least that",
                    self.record_bytes
                )
            })?;
        }
        let smallest = self.smallest_batch_bytes();
        for &batch_bytes in &self.batch_bytes {
            refuse_when(batch_bytes < smallest, || match &self.payload {
                Some(_) => format!(
                    "--batch-bytes {batch_bytes}: even an empty line makes a batch of {smallest} bytes"
                ),
                None => format!(
                    "--record-bytes {} does not fit --batch-bytes {batch_bytes}: a batch with one such record has \
                     {smallest} bytes",
                    self.record_bytes
                ),
            })?;
            refuse_when(batch_bytes > limits.batch_bytes_max, || {
                format!(
                    "--batch-bytes {batch_bytes}: the broker takes batches of at most {}",
                    limits.batch_bytes_max
                )
            })?;
            let catches_up = self.loads.iter().any(|load| load.catches_up());
            refuse_when(catches_up && self.catch_up_bytes < batch_bytes, || {
                format!(
                    "--catch-up-bytes {} holds no batch of --batch-bytes {batch_bytes}",
                    self.catch_up_bytes
                )
            })?;
        }
        Ok(())
    }

    fn validate_time(&self) -> Result<(), Refusal> {
        for (flag, rate) in [("--rate", self.rate), ("--fixed-rate", Pace::Rate(self.fixed_rate))] {
            let Pace::Rate(rate) = rate else { continue };
            refuse_when(!(rate.number().is_finite() && rate.number() > 0.0), || {
                format!("{flag} {rate}: a rate is above 0; for as fast as possible write saturation")
            })?;
        }
        if let Some(seconds) = self.seconds {
            refuse_when(!(seconds.is_finite() && seconds > 0.0), || {
                format!("--seconds {seconds}: a cell needs some time above 0")
            })?;
            refuse_when(seconds > 86_400.0, || format!("--seconds {seconds}: a cell of more than a day"))?;
        }
        refuse_when(self.blocks == Some(0), || "--blocks 0: nothing would run".into())
    }
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Pair, String> {
        match text.split_once('+') {
            Some((ingress, egress)) if !ingress.is_empty() && !egress.is_empty() && !egress.contains('+') => {
                Ok(Pair { ingress: ingress.to_owned(), egress: egress.to_owned() })
            }
            _ => Err(format!("`{text}` is not a pair: write ingress+egress, such as copy+tail")),
        }
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.ingress, self.egress)
    }
}

impl Serialize for Pair {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pair {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Pair, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Load::Tail => "tail",
            Load::CatchUp => "catch-up",
            Load::FanOut => "fan-out",
            Load::Mixed => "mixed",
            Load::Produce => "produce",
        })
    }
}

impl fmt::Display for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ack::Memory => "memory",
            Ack::Written => "written",
            Ack::Durable => "durable",
        })
    }
}

fn refuse_when(refused: bool, why: impl FnOnce() -> String) -> Result<(), Refusal> {
    if refused { Err(Refusal(why())) } else { Ok(()) }
}

fn refuse_repeats<T: PartialEq + fmt::Display>(flag: &str, list: &[T]) -> Result<(), Refusal> {
    let repeated = list.iter().enumerate().find(|(index, item)| list[..*index].contains(item));
    match repeated {
        Some((_, item)) => Err(Refusal(format!("{flag} names {item} twice"))),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        spec: RunSpec,
    }

    pub(crate) const LIMITS: Limits<'_> = Limits {
        ingress: &["buffered", "copy"],
        egress: &["copy", "sendfile", "tail"],
        batch_bytes_max: 1 << 20,
    };

    pub(crate) fn spec(flags: &str) -> RunSpec {
        let words = std::iter::once("compare").chain(flags.split_whitespace());
        Command::try_parse_from(words).unwrap_or_else(|error| panic!("{flags}: {error}")).spec
    }

    fn refusal(flags: &str) -> String {
        match spec(flags).validate(&LIMITS) {
            Ok(()) => panic!("{flags} was not refused"),
            Err(Refusal(why)) => why,
        }
    }

    #[test]
    fn defaults_make_sense_and_survive_the_run_record() {
        let spec = spec("");
        spec.validate(&LIMITS).unwrap();
        assert_eq!(spec.rows.len(), 3);
        assert_eq!(spec.batch_bytes, [16384, 262_144]);
        assert_eq!(spec.ack, Ack::Written);
        assert_eq!(spec.rate, Pace::Saturation);
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<RunSpec>(&text).unwrap(), spec);
        assert!(text.contains("\"copy+tail\"") && text.contains("\"catch-up\""), "{text}");
    }

    #[test]
    fn refusals_name_the_flag_and_the_numbers() {
        for (flags, words) in [
            ("--partitions 0", &["--partitions 0"][..]),
            ("--producers 0", &["--producers 0"]),
            ("--window 0", &["--window 0"]),
            ("--window 5000", &["--window 5000", "1024"]),
            ("--consumers 0 --loads tail", &["--consumers 0", "tail"]),
            ("--consumers 0 --loads catch-up", &["--consumers 0", "catch-up"]),
            ("--record-bytes 39", &["--record-bytes 39", "40"]),
            ("--record-bytes 0", &["--record-bytes 0"]),
            ("--record-bytes 16KiB", &["16384", "--batch-bytes 16384", "16456"]),
            ("--batch-bytes 0", &["--batch-bytes 0"]),
            ("--batch-bytes 2MiB", &["2097152", "1048576"]),
            ("--batch-bytes 16KiB,16384", &["--batch-bytes", "16384 twice"]),
            ("--payload f --batch-bytes 60", &["60", "empty line"]),
            ("--rate 0MB/s", &["--rate 0 MB/s", "saturation"]),
            ("--fixed-rate 0/s", &["--fixed-rate 0 records/s"]),
            ("--seconds 0", &["--seconds 0"]),
            ("--seconds NaN", &["--seconds NaN"]),
            ("--blocks 0", &["--blocks 0"]),
            ("--rows copy+teleport", &["copy+teleport", "egress", "`teleport`", "copy, sendfile, tail"]),
            ("--rows osmosis+tail", &["ingress", "`osmosis`"]),
            ("--rows copy+tail,copy+tail", &["copy+tail twice"]),
            ("--keys uniform:7", &["uniform:7", "--partitions 8"]),
            ("--keys zipf:0", &["zipf:0"]),
            ("--partitions 4000 --consumers 2", &["4000", "8004", "4096"]),
            ("--server-core 1 --client-core 1", &["--server-core 1", "--client-core 1"]),
            ("--catch-up-bytes 100", &["--catch-up-bytes 100", "16384"]),
        ] {
            let why = refusal(flags);
            for word in words {
                assert!(why.contains(word), "{flags}: `{word}` is missing in: {why}");
            }
        }
    }

    #[test]
    fn the_largest_record_that_fits_is_taken() {
        let overhead = spec("").smallest_batch_bytes() - 1024;
        let largest = 16384 - overhead - 2; // its two length varints are a byte longer each
        assert!(spec(&format!("--record-bytes {largest}")).validate(&LIMITS).is_ok());
        let why = refusal(&format!("--record-bytes {}", largest + 3));
        assert!(why.contains("does not fit"), "{why}");
    }

    #[test]
    fn cores_are_the_first_allowed_ones_and_never_shared_without_need() {
        assert_eq!(spec("").cores(&[2, 3]), Ok((2, 3)));
        assert_eq!(spec("--client-core 2").cores(&[2, 3]), Ok((3, 2)));
        assert_eq!(spec("--server-core 3").cores(&[2, 3]), Ok((3, 2)));
        assert_eq!(spec("").cores(&[5]), Ok((5, 5)));
        let Refusal(why) = spec("--server-core 7").cores(&[2, 3]).unwrap_err();
        assert!(why.contains("--server-core 7") && why.contains("[2, 3]"), "{why}");
        assert!(spec("").cores(&[]).is_err());
        assert_eq!(spec("").out_directory(0), PathBuf::from("results/local/19700101-000000"));
        assert_eq!(spec("--out here").out_directory(0), PathBuf::from("here"));
    }

    #[test]
    fn words_that_are_no_settings_are_refused_by_the_parser() {
        for flags in ["--rows tail", "--rows +", "--rate fast", "--keys 5", "--ack never", "--record-bytes x"]
        {
            let words = std::iter::once("compare").chain(flags.split_whitespace());
            assert!(Command::try_parse_from(words).is_err(), "{flags}");
        }
    }
}
