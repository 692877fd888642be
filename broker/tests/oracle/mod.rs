//! What the tests against kafka-protocol share: random messages, its types made of ours, the check itself.
#![allow(dead_code, reason = "each test uses a part of it")]

use bytes::BytesMut;
use kafka_protocol::messages as theirs;
use kafka_protocol::protocol::{Encodable, Message as TheirMessage, StrBytes};
use proptest::prelude::*;
use ringlog_broker::wire::*;

pub const LONG: &str = "a-name-of-more-than-127-bytes-so-that-its-length-takes-two-bytes-as-a-varint-\
    0123456789-0123456789-0123456789-0123456789-0123456789-0123456789";
pub const TEXTS: [&str; 6] = ["", "a", "topic-0", "größe", "x.y_z", LONG];

/// Draws values from random bytes and zeros after them, so that a shorter input is a simpler message.
pub struct Draw<'b> {
    pub bytes: std::slice::Iter<'b, u8>,
    pub version: i16,
}

impl Draw<'_> {
    pub fn u8(&mut self) -> u8 {
        self.bytes.next().copied().unwrap_or(0)
    }
    pub fn bool(&mut self) -> bool {
        self.u8() % 2 == 1
    }
    /// Small, negative, or large.
    pub fn i64(&mut self) -> i64 {
        match self.u8() % 4 {
            0 => i64::from(self.u8() as i8),
            1 => i64::MAX - i64::from(self.u8()),
            2 => i64::MIN + i64::from(self.u8()),
            _ => i64::from_be_bytes(std::array::from_fn(|_| self.u8())),
        }
    }
    pub fn i32(&mut self) -> i32 {
        self.i64() as i32
    }
    pub fn i16(&mut self) -> i16 {
        self.i64() as i16
    }
    pub fn i8(&mut self) -> i8 {
        self.u8() as i8
    }
    pub fn text(&mut self) -> &'static str {
        TEXTS[usize::from(self.u8()) % TEXTS.len()]
    }
    pub fn text_or_null(&mut self) -> Option<&'static str> {
        self.bool().then(|| self.text())
    }
    pub fn uuid(&mut self) -> Uuid {
        if self.bool() { std::array::from_fn(|_| self.u8()) } else { [0; 16] }
    }
    pub fn error(&mut self) -> ErrorCode {
        ErrorCode::ALL[usize::from(self.u8()) % ErrorCode::ALL.len()]
    }
    pub fn list<T>(&mut self, mut element: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.u8() % 4;
        (0..count).map(|_| element(self)).collect()
    }
}

pub fn str_bytes(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

pub fn str_bytes_or_null(text: Option<&str>) -> Option<StrBytes> {
    text.map(str_bytes)
}

pub fn topic_name(text: &str) -> theirs::TopicName {
    str_bytes(text).into()
}

pub fn brokers(ids: &[i32]) -> Vec<theirs::BrokerId> {
    ids.iter().map(|id| (*id).into()).collect()
}

/// Their Uuid cannot be named from here, but parsed.
pub fn uuid<T: std::str::FromStr>(bytes: Uuid) -> T {
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.parse().ok().unwrap()
}

pub fn their_bytes(message: &impl Encodable, version: i16) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes, version).unwrap();
    bytes.to_vec()
}

/// Bytes of a random number and content, and a version of the message's API that kafka-protocol has too.
pub fn draws<Theirs: TheirMessage>() -> impl Strategy<Value = (Vec<u8>, i16)> {
    (proptest::collection::vec(any::<u8>(), 0..400), Theirs::VERSIONS.min..=Theirs::VERSIONS.max)
}

/// The whole of what a table-made message promises.
pub fn check_both_ways<'a, M>(message: M, bytes: &'a [u8], version: i16)
where
    M: Message + Encode + Decode<'a> + PartialEq + std::fmt::Debug,
{
    let mut ours = Vec::new();
    message.encode_to(&mut Encoder::growing(&mut ours), version).unwrap();
    assert_eq!(ours, bytes, "version {version}: {message:?}");
    assert_eq!(message.encoded_len(version), Ok(bytes.len()));
    let mut fixed = vec![0; bytes.len()];
    message.encode_to(&mut Encoder::fixed(&mut fixed), version).unwrap();
    assert_eq!(fixed, bytes);
    let mut decoder = Decoder::new(bytes);
    assert_eq!(M::decode_from(&mut decoder, version), Ok(message));
    decoder.finish().unwrap();
    check_truncations::<M>(bytes, version);
}

/// A message that ends early is an error: none of ours can be a prefix of itself.
pub fn check_truncations<'a, M: Message + Decode<'a>>(bytes: &'a [u8], version: i16) {
    for end in 0..bytes.len() {
        let cut = M::decode_from(&mut Decoder::new(&bytes[..end]), version);
        assert!(cut.is_err(), "version {version}: {end} of {} bytes were taken for a message", bytes.len());
    }
}
