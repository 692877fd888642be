//! What a shard and a topic may be told.

use std::path::PathBuf;

use super::acks::Ack;
use crate::log::LogConfig;
use crate::transfer::{Egress, Ingress};

/// How one shard works.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Where everything lies.
    pub data_dir: PathBuf,
    /// How batches get to the segment files.
    pub ingress: Ingress,
    /// How they get to sockets, where a request does not say.
    pub egress: Egress,
    /// What topics get that are not told otherwise.
    pub topic_defaults: TopicConfig,
    /// Memory for receiving, staging, caching and sending.
    pub arena_bytes_max: u64,
    /// Of that, what the tail caches of all partitions may hold.
    pub tail_cache_bytes_max: usize,
    /// This node's number, where the data directory does not know one yet.
    pub node_id: i32,
    /// A mistake made on purpose, for the tests that must catch it.
    #[doc(hidden)]
    pub mutant: Mutant,
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
}

impl ShardConfig {
    /// The usual settings for a data directory.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> ShardConfig {
        ShardConfig {
            data_dir: data_dir.into(),
            ingress: Ingress::Copy,
            egress: Egress::Tail,
            topic_defaults: TopicConfig::default(),
            arena_bytes_max: 512 << 20,
            tail_cache_bytes_max: 64 << 20,
            node_id: 0,
            mutant: Mutant::None,
        }
    }
}

/// What one topic was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// What an append waits for unless it says otherwise, and what consumers may see.
    pub ack: Ack,
    /// Sizes and ages.
    pub log: LogConfig,
}

impl Default for TopicConfig {
    fn default() -> TopicConfig {
        TopicConfig { ack: Ack::Durable, log: LogConfig::default() }
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
            "segment.bytes" => self.log.segment_bytes_max = within(4096, i64::from(i32::MAX))? as u64,
            "segment.ms" => self.log.segment_age_ms_max = Some(within(1, i64::MAX)?),
            "retention.bytes" => self.log.retention_bytes = u64::try_from(within(-1, i64::MAX)?).ok(),
            "retention.ms" => self.log.retention_ms = Some(within(-1, i64::MAX)?).filter(|&ms| ms >= 0),
            "max.message.bytes" => self.log.batch_bytes_max = within(1024, 64 << 20)? as u32,
            "index.interval.bytes" => self.log.index_interval_bytes = within(0, i64::from(i32::MAX))? as u32,
            "cleanup.policy" => fixed(&["delete"])?,
            "compression.type" => fixed(&["producer"])?,
            "message.timestamp.type" => fixed(&["CreateTime"])?,
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

    /// What [`TopicConfig::from_pairs`] would need to make this from the built-in defaults.
    #[must_use]
    pub fn to_pairs(&self) -> Vec<(String, String)> {
        let mut pairs = vec![
            ("ringlog.ack".to_owned(), self.ack.to_string()),
            ("segment.bytes".to_owned(), self.log.segment_bytes_max.to_string()),
            ("index.interval.bytes".to_owned(), self.log.index_interval_bytes.to_string()),
            ("max.message.bytes".to_owned(), self.log.batch_bytes_max.to_string()),
        ];
        let optional = [
            ("segment.ms", self.log.segment_age_ms_max),
            ("retention.ms", self.log.retention_ms),
            ("retention.bytes", self.log.retention_bytes.map(|bytes| bytes as i64)),
        ];
        pairs.extend(optional.iter().filter_map(|(key, v)| v.map(|v| ((*key).to_owned(), v.to_string()))));
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_being_written_down() {
        let told = [
            ("ringlog.ack", "written"),
            ("segment.bytes", "65536"),
            ("retention.bytes", "-1"),
            ("segment.ms", "5"),
        ];
        let config = TopicConfig::from_pairs(&TopicConfig::default(), told).unwrap();
        let pairs = config.to_pairs();
        let again = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let defaults = TopicConfig {
            log: LogConfig { retention_ms: None, retention_bytes: None, ..LogConfig::default() },
            ..TopicConfig::default()
        };
        let mut expected = config.clone();
        if config.log.retention_ms.is_none() {
            expected.log.retention_ms = None;
        }
        assert_eq!(TopicConfig::from_pairs(&defaults, again).unwrap(), expected);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let refuse =
            |key, value| TopicConfig::from_pairs(&TopicConfig::default(), [(key, value)]).unwrap_err();
        assert!(refuse("segment.bytes", "7").contains("segment.bytes=7"));
        assert!(refuse("ringlog.ack", "maybe").contains("maybe"));
        assert!(refuse("cleanup.policy", "compact").contains("delete"));
        assert!(refuse("no.such", "1").contains("no.such"));
    }
}
