//! What can be wrong with bytes that claim to be a Kafka message, or with a value that is to become one.
//!
//! Every variant carries the field, the position in the slice given to the decoder and the numbers that disagree,
//! so that the line in the log is enough to find the client at fault.

/// Why bytes were refused, or why a value could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end inside a value.
    #[error("{field}: {needed} bytes wanted at position {position}, {remaining} remain")]
    Truncated { field: &'static str, position: usize, needed: usize, remaining: usize },
    /// A length or count is negative where only -1 (null) may be.
    #[error("{field}: length {length} at position {position}")]
    BadLength { field: &'static str, position: usize, length: i64 },
    /// An array claims more elements than the bytes that remain could hold.
    #[error(
        "{field}: {count} elements of at least {bytes_min} bytes at position {position}, {remaining} remain"
    )]
    CountBeyondBytes {
        field: &'static str,
        position: usize,
        count: usize,
        bytes_min: usize,
        remaining: usize,
    },
    /// A null where this version has none, read or about to be written.
    #[error("{field}: null is not allowed in version {version} (position {position})")]
    NullNotAllowed { field: &'static str, position: usize, version: i16 },
    /// A string that is not UTF-8.
    #[error("{field}: not UTF-8 at position {position}")]
    NotUtf8 { field: &'static str, position: usize },
    /// A varint of more than 32 bits.
    #[error("{field}: varint longer than 32 bits at position {position}")]
    VarintTooLong { field: &'static str, position: usize },
    /// Bytes left over where the value should have ended.
    #[error("{field}: {remaining} bytes left over at position {position}")]
    TrailingBytes { field: &'static str, position: usize, remaining: usize },
    /// A request for an API that is not served.
    #[error("API key {key} (version {version}) is not served")]
    UnknownApi { key: i16, version: i16 },
    /// A version of a served API outside its range.
    #[error("{api} version {version} is not served, only {min} to {max}")]
    UnsupportedVersion { api: &'static str, version: i16, min: i16, max: i16 },
    /// A frame whose length prefix is negative.
    #[error("frame length {length} is negative")]
    FrameNegative { length: i32 },
    /// A frame longer than the limit.
    #[error("frame of {length} bytes, at most {max} are accepted")]
    FrameTooLarge { length: usize, max: usize },
    /// A value too long for its length prefix or for the protocol.
    #[error("{field}: {length} bytes or elements, at most {max} can be written")]
    TooLong { field: &'static str, length: u64, max: u64 },
    /// A value that means something, in a field which the version does not have.
    #[error("{field}: set, but version {version} cannot carry it")]
    NotInVersion { field: &'static str, version: i16 },
    /// A fixed buffer that is full.
    #[error("{field}: {needed} bytes to write at position {position}, the buffer holds {capacity}")]
    NoRoom { field: &'static str, position: usize, needed: usize, capacity: usize },
}
