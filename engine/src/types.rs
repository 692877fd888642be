//! The kinds of number this project counts with, each a type of its own.
//!
//! *Offset* counts records, *position* counts bytes; confusing the two is the classic bug of a log, so
//! neither converts into the other. No logic lives here beyond arithmetic that cannot be misread.

use std::fmt;

/// A count of records from the beginning of a partition: the name of one record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Offset(pub i64);

/// A byte place in one segment file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Position(pub u64);

/// A leader epoch: which reign of the partition's owner assigned an offset. Identity is (offset, epoch).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Epoch(pub i32);

/// Milliseconds since the Unix epoch, as Kafka counts them; -1 means "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Timestamp(pub i64);

/// The 16 bytes that name a topic for life; a topic made again under the same name gets another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TopicId(pub [u8; 16]);

/// One partition of one topic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PartitionId {
    /// The topic it belongs to.
    pub topic: TopicId,
    /// Its number within the topic, from 0.
    pub index: i32,
}

/// One core's worth of the engine: a pinned thread and everything it owns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct ShardId(pub u16);

impl Offset {
    /// The offset `records` further on.
    #[must_use]
    pub fn plus(self, records: i64) -> Offset {
        Offset(self.0 + records)
    }

    /// How many records lie between `earlier` and this offset (negative when `earlier` is later).
    #[must_use]
    pub fn since(self, earlier: Offset) -> i64 {
        self.0 - earlier.0
    }
}

impl Position {
    /// The position `bytes` further on.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Position {
        Position(self.0 + bytes)
    }

    /// How many bytes lie between `earlier` and this position.
    ///
    /// # Panics
    /// When `earlier` is later: a negative extent is our own mistake.
    #[must_use]
    pub fn since(self, earlier: Position) -> u64 {
        assert!(earlier <= self, "position {} is before {}", self.0, earlier.0);
        self.0 - earlier.0
    }
}

impl Epoch {
    /// "No epoch known", Kafka's -1.
    pub const NONE: Epoch = Epoch(-1);
}

impl Timestamp {
    /// "No timestamp", Kafka's -1.
    pub const NONE: Timestamp = Timestamp(-1);
}

impl TopicId {
    /// The id of no topic: sixteen zero bytes.
    pub const ZERO: TopicId = TopicId([0; 16]);
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Kafka's own spelling: URL-safe base64 of the sixteen bytes, without padding (22 characters).
impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use base64::Engine as _;
        f.write_str(&base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({self})")
    }
}

/// A text that is not a topic id.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is not a topic id: 22 characters of URL-safe base64 are wanted")]
pub struct TopicIdError(String);

impl std::str::FromStr for TopicId {
    type Err = TopicIdError;

    fn from_str(text: &str) -> Result<TopicId, TopicIdError> {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text);
        bytes.ok().and_then(|b| b.try_into().ok()).map(TopicId).ok_or_else(|| TopicIdError(text.to_owned()))
    }
}
