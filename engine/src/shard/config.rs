//! What a shard and a topic may be told.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::acks::Ack;
use super::errors::OpenError;
use super::journal::JournalConfig;
use crate::log::LogConfig;
use crate::transfer::{Egress, Ingress};

/// How one shard works.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Where everything lies.
    pub data_dir: PathBuf,
    /// How batches get to the segment files.
    pub ingress: Ingress,
    /// Whether what producers send is what was checked before: an ingress that does not look at it is refused otherwise.
    pub trusted_producers: bool,
    /// How they get to sockets, where a request does not say.
    pub egress: Egress,
    /// What topics get that are not told otherwise.
    pub topic_defaults: TopicConfig,
    /// Memory for receiving, staging, caching and sending.
    pub arena_bytes_max: u64,
    /// Of that, what the tail caches of all partitions may hold.
    pub tail_cache_bytes_max: usize,
    /// Where appends that must be durable are safe first.
    pub commit: Commit,
    /// The journal's sizes.
    pub journal: JournalConfig,
    /// Every partition is walked at the start, and each of its bytes checked, whatever the manifests say.
    pub verify: bool,
    /// How long nobody has to do with a partition until it keeps no open file and no memory: once to twice that.
    pub sleep_after: Duration,
    /// How often retention is looked at.
    pub retention_interval: Duration,
    /// This node's number, where the data directory does not know one yet.
    pub node_id: i32,
    /// A mistake made on purpose, for the tests that must catch it.
    #[doc(hidden)]
    pub mutant: Mutant,
}

/// Where appends that must be durable are safe first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// Small ones in the shard's journal, one flush for all partitions; large ones in their segments.
    Journal,
    /// In their segments, one flush of the file system for all that wait.
    Device,
    /// In their segments, one flush for each.
    Files,
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Commit::Journal => "journal",
            Commit::Device => "device",
            Commit::Files => "files",
        })
    }
}

impl FromStr for Commit {
    type Err = String;

    fn from_str(text: &str) -> Result<Commit, String> {
        match text {
            "journal" => Ok(Commit::Journal),
            "device" => Ok(Commit::Device),
            "files" => Ok(Commit::Files),
            other => Err(format!("\"{other}\" is no way to commit; there are journal, device and files")),
        }
    }
}

/// A mistake made on purpose: tests that could not catch these would prove nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[doc(hidden)]
pub enum Mutant {
    /// No mistake.
    #[default]
    None,
    /// Calls durable what was never flushed.
    SkipFlush,
    /// Calls written what has only been submitted.
    EarlyWatermark,
    /// Writes over a journal file whose bytes are not in segments yet.
    EarlyReuse,
    /// Writes a large batch to its segment without what was journaled before it.
    CarryNothing,
    /// Replays frames of a journal again behind what they brought.
    ReplayTwice,
    /// Replays frames of logs that were cut since.
    ReplayVoid,
}

impl ShardConfig {
    /// The usual settings for a data directory.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> ShardConfig {
        ShardConfig {
            data_dir: data_dir.into(),
            ingress: Ingress::Copy,
            trusted_producers: false,
            egress: Egress::Tail,
            topic_defaults: TopicConfig::default(),
            arena_bytes_max: 512 << 20,
            tail_cache_bytes_max: 64 << 20,
            commit: Commit::Journal,
            journal: JournalConfig::default(),
            verify: false,
            sleep_after: Duration::from_secs(60),
            retention_interval: Duration::from_secs(300),
            node_id: 0,
            mutant: Mutant::None,
        }
    }

    /// Whether it may be as it is.
    pub(super) fn check(&self) -> Result<(), OpenError> {
        self.journal.check().map_err(OpenError::Refused)?;
        match self.ingress.checks_payload() || self.trusted_producers {
            true => Ok(()),
            false => Err(OpenError::Refused(format!(
                "ingress {} checks no checksum of what it takes, and producers are not said to be trusted",
                self.ingress
            ))),
        }
    }
}

/// What one topic was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// What an append waits for unless it says otherwise, and what consumers may see.
    pub ack: Ack,
    /// Whose time a record bears.
    pub timestamps: Timestamps,
    /// How its record bytes go out, if not as the shard's others do.
    pub egress: Option<Egress>,
    /// Sizes and ages.
    pub log: LogConfig,
}

/// Whose time the records of a topic bear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timestamps {
    /// The producer's.
    #[default]
    Create,
    /// Ours, when the batch was appended: the batch is stamped and gets a new checksum, one more pass over it.
    Append,
}

/// A setting of a topic, by Kafka's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// What its values are.
    pub kind: SettingKind,
    /// What it does, in a sentence.
    pub words: &'static str,
}

/// What the values of a setting are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingKind {
    /// Words.
    Text,
    /// A list of words.
    List,
    /// A whole number of 32 bits.
    Int,
    /// A whole number of 64 bits.
    Long,
}

/// The value of `ringlog.egress` where a topic has none of its own.
const AS_THE_BROKER: &str = "broker";

/// Every setting that a topic has, in the order of the names.
pub const SETTINGS: &[Setting] = &[
    setting("cleanup.policy", SettingKind::List, "Old segments are deleted; compaction is not offered."),
    setting("compression.type", SettingKind::Text, "Batches stay as their producers compressed them."),
    setting(
        "index.interval.bytes",
        SettingKind::Int,
        "Bytes of log between two entries of the offset index.",
    ),
    setting(
        "max.message.bytes",
        SettingKind::Int,
        "The largest batch that is taken, compressed as it comes.",
    ),
    setting(
        "message.timestamp.type",
        SettingKind::Text,
        "Whose time records bear: CreateTime or LogAppendTime.",
    ),
    setting("min.insync.replicas", SettingKind::Int, "There is one replica."),
    setting(
        "retention.bytes",
        SettingKind::Long,
        "Beyond this size of a partition old segments go; -1 for never.",
    ),
    setting(
        "retention.ms",
        SettingKind::Long,
        "Segments go when their newest record is older; -1 for never.",
    ),
    setting(
        "ringlog.ack",
        SettingKind::Text,
        "What an answer to a producer promises: memory, written or durable.",
    ),
    setting(
        "ringlog.egress",
        SettingKind::Text,
        "How its records go to consumers: an egress strategy, or broker for the broker's.",
    ),
    setting("segment.bytes", SettingKind::Int, "A segment that would grow beyond this is sealed."),
    setting("segment.ms", SettingKind::Long, "A segment whose first append is older than this is sealed."),
];

const fn setting(name: &'static str, kind: SettingKind, words: &'static str) -> Setting {
    Setting { name, kind, words }
}

impl Default for TopicConfig {
    fn default() -> TopicConfig {
        TopicConfig {
            ack: Ack::Durable,
            timestamps: Timestamps::Create,
            egress: None,
            log: LogConfig::default(),
        }
    }
}

impl TopicConfig {
    /// `defaults` changed by Kafka's names for settings, and `ringlog.ack` (memory, written or durable).
    ///
    /// # Errors
    /// A sentence that names the setting and the value that makes no sense, or that is not offered.
    pub fn from_pairs<'a>(
        defaults: &TopicConfig,
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<TopicConfig, String> {
        let mut config = defaults.clone();
        for (key, value) in pairs {
            config.set(key, value)?;
        }
        Ok(config)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<i64>().map_err(|_| format!("{key}={value} is not a whole number"));
        let within = |low: i64, high: i64| match number()? {
            n if (low..=high).contains(&n) => Ok(n),
            n => Err(format!("{key}={n} is outside {low} to {high}")),
        };
        let fixed = |only: &[&str]| match only.contains(&value) {
            true => Ok(()),
            false => Err(format!("{key}={value} is not offered; only {}", only.join(" or "))),
        };
        match key {
            "ringlog.ack" => self.ack = value.parse().map_err(|e| format!("{key}: {e}"))?,
            "ringlog.egress" => {
                self.egress = match value {
                    AS_THE_BROKER => None,
                    name => match name
                        .parse::<Egress>()
                        .map_err(|e| format!("{key}: {e}, and {AS_THE_BROKER}"))?
                    {
                        egress if egress.delivers() => Some(egress),
                        egress => return Err(format!("{key}={egress} discards what consumers wait for")),
                    },
                };
            }
            "segment.bytes" => self.log.segment_bytes_max = within(4096, i64::from(i32::MAX))? as u64,
            "segment.ms" => {
                self.log.segment_age_ms_max = Some(within(1, i64::MAX)?).filter(|&ms| ms < i64::MAX);
            }
            "retention.bytes" => self.log.retention_bytes = u64::try_from(within(-1, i64::MAX)?).ok(),
            "retention.ms" => self.log.retention_ms = Some(within(-1, i64::MAX)?).filter(|&ms| ms >= 0),
            "max.message.bytes" => self.log.batch_bytes_max = within(1024, 64 << 20)? as u32,
            "index.interval.bytes" => self.log.index_interval_bytes = within(0, i64::from(i32::MAX))? as u32,
            "cleanup.policy" => fixed(&["delete"])?,
            "compression.type" => fixed(&["producer"])?,
            "message.timestamp.type" => {
                self.timestamps = match value {
                    "CreateTime" => Timestamps::Create,
                    "LogAppendTime" => Timestamps::Append,
                    _ => return Err(format!("{key}={value}: there are CreateTime and LogAppendTime")),
                }
            }
            "min.insync.replicas" => fixed(&["1"])?,
            "flush.messages"
            | "flush.ms"
            | "segment.index.bytes"
            | "segment.jitter.ms"
            | "file.delete.delay.ms"
            | "delete.retention.ms"
            | "min.compaction.lag.ms"
            | "max.compaction.lag.ms"
            | "min.cleanable.dirty.ratio" => {
                return Err(format!("{key} has no effect here; durability is set with ringlog.ack"));
            }
            _ => return Err(format!("there is no topic setting {key}")),
        }
        Ok(())
    }

    /// The value of a setting, as [`TopicConfig::from_pairs`] reads it; `None` when there is no such setting.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<String> {
        let or_never = |value: Option<i64>| value.unwrap_or(-1).to_string();
        Some(match name {
            "cleanup.policy" => "delete".to_owned(),
            "compression.type" => "producer".to_owned(),
            "index.interval.bytes" => self.log.index_interval_bytes.to_string(),
            "max.message.bytes" => self.log.batch_bytes_max.to_string(),
            "message.timestamp.type" => match self.timestamps {
                Timestamps::Create => "CreateTime".to_owned(),
                Timestamps::Append => "LogAppendTime".to_owned(),
            },
            "min.insync.replicas" => "1".to_owned(),
            "retention.bytes" => or_never(self.log.retention_bytes.map(|bytes| bytes as i64)),
            "retention.ms" => or_never(self.log.retention_ms),
            "ringlog.ack" => self.ack.to_string(),
            "ringlog.egress" => self.egress.map_or(AS_THE_BROKER, Egress::name).to_owned(),
            "segment.bytes" => self.log.segment_bytes_max.to_string(),
            "segment.ms" => self.log.segment_age_ms_max.unwrap_or(i64::MAX).to_string(),
            _ => return None,
        })
    }

    /// Every setting with its value: [`TopicConfig::from_pairs`] makes this again from them, whatever the defaults.
    #[must_use]
    pub fn to_pairs(&self) -> Vec<(String, String)> {
        let pair =
            |s: &Setting| (s.name.to_owned(), self.value(s.name).expect("every setting has its value"));
        SETTINGS.iter().map(pair).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_being_written_down_whatever_the_defaults() {
        let told = [
            ("ringlog.ack", "written"),
            ("ringlog.egress", "sendfile"),
            ("segment.bytes", "65536"),
            ("retention.bytes", "-1"),
            ("segment.ms", "5"),
            ("message.timestamp.type", "LogAppendTime"),
        ];
        let other = [("retention.ms", "7"), ("retention.bytes", "9"), ("segment.ms", "8")];
        let other = TopicConfig::from_pairs(&TopicConfig::default(), other).unwrap();
        for config in [
            TopicConfig::from_pairs(&TopicConfig::default(), told).unwrap(),
            TopicConfig::default(),
            other.clone(),
        ] {
            let pairs = config.to_pairs();
            let again = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()));
            assert_eq!(TopicConfig::from_pairs(&other, again).unwrap(), config);
        }
        assert!(SETTINGS.is_sorted_by_key(|setting| setting.name));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let refuse =
            |key, value| TopicConfig::from_pairs(&TopicConfig::default(), [(key, value)]).unwrap_err();
        assert!(refuse("segment.bytes", "7").contains("segment.bytes=7"));
        assert!(refuse("ringlog.ack", "maybe").contains("maybe"));
        assert!(refuse("ringlog.egress", "magic").contains("magic"));
        assert!(refuse("ringlog.egress", "null").contains("discards"));
        assert!(refuse("cleanup.policy", "compact").contains("delete"));
        assert!(refuse("message.timestamp.type", "Mine").contains("LogAppendTime"));
        assert!(refuse("no.such", "1").contains("no.such"));
    }
}
