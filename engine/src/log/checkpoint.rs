//! The small text files beside the segments, as texts: what they say and how they are spelled. Somebody else
//! writes them to a temporary name, syncs, renames and syncs the directory.
//!
//! The shapes are Kafka's (`CheckpointFile.java`, `PartitionMetadataFile.java`, `MetaProperties.java`) but for
//! the `topics` registry, which is ours. All of them are drawn in `FORMAT.md`.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::str::FromStr;

use super::names::check_topic_name;
use crate::types::{Offset, TopicId};

/// Why a text is not the file it should be.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum CheckpointError {
    /// A line that does not say what belongs there.
    #[error("line {line}: {what}; it reads \"{text}\"")]
    Line {
        /// Which line, from 1.
        line: usize,
        /// What belongs there.
        what: String,
        /// What it says.
        text: String,
    },
    /// Another version.
    #[error("version {0}, only 0 is known")]
    Version(String),
    /// A line is missing: the file was cut.
    #[error("the text ends where {0} belongs")]
    Ended(String),
    /// A key is missing.
    #[error("no line for {0}")]
    Missing(&'static str),
}

/// The lines of a checkpoint: a version, a count, and as many entries.
pub(super) struct Lines<'a> {
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
    expected: u64,
    read: u64,
}

/// One entry: fields between spaces.
pub(super) struct Line<'a> {
    number: usize,
    text: &'a str,
    fields: std::str::SplitWhitespace<'a>,
}

impl<'a> Lines<'a> {
    /// Reads version and count.
    pub(super) fn counted(text: &'a str) -> Result<Lines<'a>, CheckpointError> {
        Lines::counted_of_versions(text, &["0"]).map(|(lines, _)| lines)
    }

    /// The same where several versions can be read; which one it is comes back too.
    fn counted_of_versions(
        text: &'a str,
        versions: &[&'static str],
    ) -> Result<(Lines<'a>, &'static str), CheckpointError> {
        let mut lines = Lines { lines: text.lines().enumerate(), expected: 0, read: 0 };
        let version = lines.line("the version")?;
        let known = versions.iter().find(|&&known| known == version.text.trim());
        let known = *known.ok_or_else(|| CheckpointError::Version(version.text.to_owned()))?;
        let mut count = lines.line("the count of entries")?;
        lines.expected = count.number("a count of entries")?;
        count.end()?;
        Ok((lines, known))
    }

    /// The next entry, or `None` after the last.
    pub(super) fn entry(&mut self) -> Result<Option<Line<'a>>, CheckpointError> {
        if self.read == self.expected {
            let left = self.lines.find(|(_, text)| !text.trim().is_empty());
            let surplus =
                |(number, text)| Line::new(number, text).error("nothing follows the counted entries");
            return left.map_or(Ok(None), |left| Err(surplus(left)));
        }
        self.read += 1;
        self.line(&format!("entry {} of {}", self.read, self.expected)).map(Some)
    }

    fn line(&mut self, what: &str) -> Result<Line<'a>, CheckpointError> {
        let (number, text) = self.lines.next().ok_or_else(|| CheckpointError::Ended(what.to_owned()))?;
        Ok(Line::new(number, text))
    }
}

impl<'a> Line<'a> {
    fn new(index: usize, text: &'a str) -> Line<'a> {
        Line { number: index + 1, text, fields: text.split_whitespace() }
    }

    pub(super) fn word(&mut self, what: &str) -> Result<&'a str, CheckpointError> {
        self.fields.next().ok_or_else(|| self.error(&format!("{what} is missing")))
    }

    pub(super) fn number<T: FromStr>(&mut self, what: &str) -> Result<T, CheckpointError> {
        let word = self.word(what)?;
        word.parse().map_err(|_| self.error(&format!("{what} is wanted, not \"{word}\"")))
    }

    pub(super) fn end(&mut self) -> Result<(), CheckpointError> {
        match self.fields.next() {
            None => Ok(()),
            Some(word) => Err(self.error(&format!("\"{word}\" is too much"))),
        }
    }

    pub(super) fn error(&self, what: &str) -> CheckpointError {
        CheckpointError::Line { line: self.number, what: what.to_owned(), text: self.text.to_owned() }
    }
}

/// One line of `recovery-point-offset-checkpoint` or `log-start-offset-checkpoint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetEntry {
    /// The name of the topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Its offset.
    pub offset: Offset,
}

/// A file of offsets, one a partition: version 0, the count, then "topic partition offset".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetCheckpoint {
    /// The lines.
    pub entries: Vec<OffsetEntry>,
}

impl OffsetCheckpoint {
    /// The text of the file.
    #[must_use]
    pub fn format(&self) -> String {
        let mut text = format!("0\n{}\n", self.entries.len());
        for OffsetEntry { topic, partition, offset } in &self.entries {
            writeln!(text, "{topic} {partition} {offset}").expect("a String takes everything");
        }
        text
    }

    /// Reads the text of the file.
    ///
    /// # Errors
    /// Another version or count, names that are none, numbers below zero.
    pub fn parse(text: &str) -> Result<OffsetCheckpoint, CheckpointError> {
        let mut lines = Lines::counted(text)?;
        let mut entries = Vec::new();
        while let Some(mut line) = lines.entry()? {
            let topic = line.word("a topic")?;
            let (partition, offset) = (line.number("a partition")?, Offset(line.number("an offset")?));
            line.end()?;
            check_topic_name(topic).map_err(|error| line.error(&error.to_string()))?;
            if partition < 0 || offset.0 < 0 {
                return Err(line.error("partition and offset are zero or more"));
            }
            entries.push(OffsetEntry { topic: topic.to_owned(), partition, offset });
        }
        Ok(OffsetCheckpoint { entries })
    }

    /// The offset of one partition.
    #[must_use]
    pub fn find(&self, topic: &str, partition: i32) -> Option<Offset> {
        let found = self.entries.iter().find(|entry| entry.topic == topic && entry.partition == partition);
        found.map(|entry| entry.offset)
    }
}

/// `partition.metadata`: which topic a directory belongs to, for life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// The topic.
    pub topic_id: TopicId,
}

impl PartitionMetadata {
    /// The text of the file.
    #[must_use]
    pub fn format(&self) -> String {
        format!("version: 0\ntopic_id: {}\n", self.topic_id)
    }

    /// Reads the text of the file.
    ///
    /// # Errors
    /// Another version, no topic id or none at all (zeros).
    pub fn parse(text: &str) -> Result<PartitionMetadata, CheckpointError> {
        let mut lines = Lines { lines: text.lines().enumerate(), expected: 0, read: 0 };
        let version = lines.line("version: 0")?;
        match version.text.strip_prefix("version:").map(str::trim) {
            Some("0") => {}
            Some(other) => return Err(CheckpointError::Version(other.to_owned())),
            None => return Err(version.error("\"version: 0\" is wanted")),
        }
        let line = lines.line("topic_id")?;
        let id =
            line.text.strip_prefix("topic_id:").ok_or_else(|| line.error("\"topic_id: ...\" is wanted"))?;
        let topic_id: TopicId = id.trim().parse().map_err(|error| line.error(&format!("{error}")))?;
        if topic_id == TopicId::ZERO {
            return Err(line.error("a topic id is not zero"));
        }
        lines.entry()?;
        Ok(PartitionMetadata { topic_id })
    }
}

/// `meta.properties`: whose data directory this is. A Java properties file; keys we do not know are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaProperties {
    /// `cluster.id`.
    pub cluster_id: String,
    /// `node.id`.
    pub node_id: i32,
    /// `directory.id`, which lives and dies with the data: the same 16 bytes and spelling as a topic id.
    pub directory_id: Option<TopicId>,
    /// Everything else, in order.
    pub others: Vec<(String, String)>,
}

impl MetaProperties {
    /// The text of the file.
    #[must_use]
    pub fn format(&self) -> String {
        let mut text = format!("version=1\ncluster.id={}\nnode.id={}\n", self.cluster_id, self.node_id);
        if let Some(id) = self.directory_id {
            writeln!(text, "directory.id={id}").expect("a String takes everything");
        }
        for (key, value) in &self.others {
            writeln!(text, "{key}={value}").expect("a String takes everything");
        }
        text
    }

    /// Reads the text of the file.
    ///
    /// # Errors
    /// Another version, lines that are no properties, cluster or node missing.
    pub fn parse(text: &str) -> Result<MetaProperties, CheckpointError> {
        let (mut version, mut cluster_id, mut node_id, mut directory_id) = (None, None, None, None);
        let mut others = Vec::new();
        for (index, text) in text.lines().enumerate() {
            let line = Line::new(index, text);
            if text.trim().is_empty() || text.trim_start().starts_with(['#', '!']) {
                continue;
            }
            let (key, value) = text.split_once('=').ok_or_else(|| line.error("key=value is wanted"))?;
            let (key, value) = (key.trim(), value.trim());
            match key {
                "version" => version = Some(value),
                "cluster.id" => cluster_id = Some(value.to_owned()),
                "node.id" => node_id = Some(value.parse().map_err(|_| line.error("node.id is a number"))?),
                "directory.id" => {
                    directory_id = Some(value.parse().map_err(|error| line.error(&format!("{error}")))?);
                }
                _ => others.push((key.to_owned(), value.to_owned())),
            }
        }
        match version {
            Some("1") => {}
            Some(other) => return Err(CheckpointError::Version(other.to_owned())),
            None => return Err(CheckpointError::Missing("version")),
        }
        Ok(MetaProperties {
            cluster_id: cluster_id.ok_or(CheckpointError::Missing("cluster.id"))?,
            node_id: node_id.ok_or(CheckpointError::Missing("node.id"))?,
            directory_id,
            others,
        })
    }
}

/// Whether a topic is there, or on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicState {
    /// In use.
    Live,
    /// Being deleted: its files go, its name is free when they are gone.
    Deleting,
}

/// One topic of the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicEntry {
    /// Its name.
    pub name: String,
    /// Its id, for life.
    pub id: TopicId,
    /// How many partitions it has.
    pub partitions: i32,
    /// The virtual shard of its partition 0; partition `p` belongs to the `p`-th one after it, round and round.
    pub first_virtual: u8,
    /// Whether it is in use.
    pub state: TopicState,
    /// What was configured for it: keys and values of visible ASCII without spaces, no '=' in keys.
    pub config: Vec<(String, String)>,
}

/// The `topics` file: version 1, the count, then "name id partitions first-virtual-shard state key=value ...". Version 0
/// had no virtual shards: theirs begin at 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicRegistry {
    /// The topics.
    pub topics: Vec<TopicEntry>,
}

impl TopicRegistry {
    /// The text of the file.
    ///
    /// # Panics
    /// When a configured key or value could not be read back: such are refused at the edge.
    #[must_use]
    pub fn format(&self) -> String {
        let mut text = format!("1\n{}\n", self.topics.len());
        for TopicEntry { name, id, partitions, first_virtual, state, config } in &self.topics {
            let state = if *state == TopicState::Live { "live" } else { "deleting" };
            write!(text, "{name} {id} {partitions} {first_virtual} {state}")
                .expect("a String takes everything");
            for (key, value) in config {
                let visible = |word: &str| word.bytes().all(|byte| byte.is_ascii_graphic());
                let sound = !key.is_empty() && visible(key) && visible(value) && !key.contains('=');
                assert!(sound, "config {key:?}={value:?} of topic {name}");
                write!(text, " {key}={value}").expect("a String takes everything");
            }
            text.push('\n');
        }
        text
    }

    /// Reads the text of the file.
    ///
    /// # Errors
    /// Another version or count, names or ids that are none or come twice, no partitions, unknown states.
    pub fn parse(text: &str) -> Result<TopicRegistry, CheckpointError> {
        let (mut lines, version) = Lines::counted_of_versions(text, &["0", "1"])?;
        let mut topics: Vec<TopicEntry> = Vec::new();
        let (mut ids, mut names) = (HashSet::new(), HashSet::new());
        while let Some(mut line) = lines.entry()? {
            let name = line.word("a topic")?.to_owned();
            check_topic_name(&name).map_err(|error| line.error(&error.to_string()))?;
            let id: TopicId = line.number("a topic id")?;
            let partitions = line.number("a count of partitions")?;
            if partitions < 1 {
                return Err(line.error("a topic has at least one partition"));
            }
            let first_virtual = if version == "0" { 0 } else { line.number("a virtual shard")? };
            let state = match line.word("a state")? {
                "live" => TopicState::Live,
                "deleting" => TopicState::Deleting,
                _ => return Err(line.error("a state is \"live\" or \"deleting\"")),
            };
            let mut config = Vec::new();
            while let Some(word) = line.fields.next() {
                let (key, value) = word.split_once('=').ok_or_else(|| line.error("key=value is wanted"))?;
                if key.is_empty() || !word.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(line.error("keys and values are visible ASCII"));
                }
                config.push((key.to_owned(), value.to_owned()));
            }
            if !ids.insert(id) {
                return Err(line.error("this id comes twice"));
            }
            // Two of one name would share its directories; one of them on its way out would take the other's along.
            if !names.insert(name.clone()) {
                return Err(line.error("this name comes twice"));
            }
            topics.push(TopicEntry { name, id, partitions, first_virtual, state, config });
        }
        Ok(TopicRegistry { topics })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TopicId = TopicId([7; 16]);

    #[test]
    fn offsets() {
        let entry = OffsetEntry { topic: "a-b".to_owned(), partition: 3, offset: Offset(101) };
        let checkpoint = OffsetCheckpoint { entries: vec![entry] };
        assert_eq!(checkpoint.format(), "0\n1\na-b 3 101\n");
        assert_eq!(OffsetCheckpoint::parse("0\n1\na-b 3 101\n"), Ok(checkpoint.clone()));
        assert_eq!(checkpoint.find("a-b", 3), Some(Offset(101)));
        assert_eq!(OffsetCheckpoint::parse("1\n0\n"), Err(CheckpointError::Version("1".to_owned())));
        assert_eq!(
            OffsetCheckpoint::parse("0\n2\na 3 101\n").unwrap_err().to_string(),
            "the text ends where entry 2 of 2 belongs"
        );
        assert_eq!(
            OffsetCheckpoint::parse("0\n1\na 3 x\n").unwrap_err().to_string(),
            "line 3: an offset is wanted, not \"x\"; it reads \"a 3 x\""
        );
        for bad in [
            "",
            "0",
            "0\nx",
            "0\n1\na 3 -1\n",
            "0\n1\na -3 1\n",
            "0\n1\na/b 3 1\n",
            "0\n1\na 3\n",
            "0\n1\na 3 1 4\n",
            "0\n1\na 3 1\nb 3 1\n",
        ] {
            assert!(OffsetCheckpoint::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn partition_metadata() {
        let metadata = PartitionMetadata { topic_id: ID };
        assert_eq!(metadata.format(), "version: 0\ntopic_id: BwcHBwcHBwcHBwcHBwcHBw\n");
        assert_eq!(PartitionMetadata::parse(&metadata.format()), Ok(metadata));
        for bad in [
            "",
            "version: 1\ntopic_id: BwcHBwcHBwcHBwcHBwcHBw",
            "version: 0\n",
            "version: 0\ntopic_id: x",
            "version: 0\ntopic_id: AAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert!(PartitionMetadata::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn meta_properties_keep_what_they_do_not_know() {
        let text = "#Mon Jan 01 00:00:00 UTC 2026\nnode.id=4\ndirectory.id=BwcHBwcHBwcHBwcHBwcHBw\nversion=1\nnew=x=y\ncluster.id=abc\n";
        let properties = MetaProperties::parse(text).unwrap();
        assert_eq!((properties.node_id, properties.directory_id), (4, Some(ID)));
        assert_eq!(properties.others, [("new".to_owned(), "x=y".to_owned())]);
        assert_eq!(MetaProperties::parse(&properties.format()), Ok(properties));
        for bad in [
            "",
            "version=0\ncluster.id=a\nnode.id=1",
            "version=1\nnode.id=1",
            "version=1\ncluster.id=a",
            "version=1\ncluster.id=a\nnode.id=x",
            "version=1\ncluster.id=a\nnode.id=1\nwhat",
        ] {
            assert!(MetaProperties::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_registry_of_topics() {
        let topic = TopicEntry {
            name: "orders".to_owned(),
            id: ID,
            partitions: 12,
            first_virtual: 250,
            state: TopicState::Live,
            config: vec![("retention.ms".to_owned(), "1000".to_owned()), ("empty".to_owned(), String::new())],
        };
        let registry = TopicRegistry { topics: vec![topic] };
        let text = "1\n1\norders BwcHBwcHBwcHBwcHBwcHBw 12 250 live retention.ms=1000 empty=\n";
        assert_eq!(registry.format(), text);
        assert_eq!(TopicRegistry::parse(text), Ok(registry));
        let older = TopicRegistry::parse("0\n1\norders BwcHBwcHBwcHBwcHBwcHBw 12 live\n").unwrap();
        assert_eq!((older.topics[0].partitions, older.topics[0].first_virtual), (12, 0));
        for (from, to) in [
            (" 12 ", " 0 "),
            ("250", "256"),
            ("live", "dead"),
            ("orders", "or/ders"),
            ("empty=", "empty"),
            ("empty=", "=x"),
            ("empty=", "em\0pty="),
            ("Bwc", "Bw"),
        ] {
            assert!(TopicRegistry::parse(&text.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn a_registry_with_a_name_or_an_id_twice_is_refused() {
        let parse = |second: &str| {
            TopicRegistry::parse(&format!("1\n2\nt0 BwcHBwcHBwcHBwcHBwcHBw 1 0 live\n{second}\n"))
        };
        assert_eq!(parse("t1 CAgICAgICAgICAgICAgICA 1 0 live").unwrap().topics.len(), 2);
        for second in [
            "t1 BwcHBwcHBwcHBwcHBwcHBw 1 0 live",
            "t0 CAgICAgICAgICAgICAgICA 1 0 live",
            "t0 CAgICAgICAgICAgICAgICA 1 0 deleting",
        ] {
            assert!(parse(second).unwrap_err().to_string().contains("twice"), "{second}");
        }
    }
}
