//! The head of a Produce request of one batch, read before the batch has come: where it belongs, and how long it is.

use super::{ApiKey, Decode, Decoder, RequestHeader, Uuid, WireError};
use crate::wire::produce::TOPIC_IDS_FROM;

/// What the head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceHead<'a> {
    /// Who asks.
    pub header: RequestHeader<'a>,
    /// As in [`super::produce::ProduceRequest`].
    pub acks: i16,
    /// The topic's name, before topics go by their ids.
    pub topic: &'a str,
    /// Its id, since then.
    pub topic_id: Uuid,
    /// The partition.
    pub partition: i32,
    /// Where in the frame, behind its prefix, the batch begins.
    pub records_at: usize,
    /// Its length.
    pub record_bytes: usize,
}

impl<'a> ProduceHead<'a> {
    /// Reads the head from the first bytes of a frame, prefix excluded. `None` when it is not all there, or the request
    /// is not one Produce of one batch.
    #[must_use]
    pub fn look(bytes: &'a [u8]) -> Option<ProduceHead<'a>> {
        ProduceHead::read(&mut Decoder::new(bytes)).ok().flatten()
    }

    fn read(decoder: &mut Decoder<'a>) -> Result<Option<ProduceHead<'a>>, WireError> {
        let header = RequestHeader::decode(decoder)?;
        if header.api != ApiKey::Produce {
            return Ok(None);
        }
        let version = ApiKey::Produce.version(header.version)?;
        // The counts are looked at, not believed: a batch is taken only where both are one.
        let one = |decoder: &mut Decoder<'a>| match version.flexible {
            true => decoder.uvarint().map(|count| count == 2),
            false => decoder.i32().map(|count| count == 1),
        };
        decoder.nullable_string(version.flexible)?;
        let acks = decoder.i16()?;
        decoder.i32()?;
        if !one(decoder)? {
            return Ok(None);
        }
        let (mut topic, mut topic_id) = ("", [0; 16]);
        if header.version >= TOPIC_IDS_FROM {
            topic_id = Uuid::decode(decoder, version)?;
        } else {
            topic = decoder.nullable_string(version.flexible)?.unwrap_or_default();
        }
        if !one(decoder)? {
            return Ok(None);
        }
        let partition = decoder.i32()?;
        let record_bytes = match version.flexible {
            true => i64::from(decoder.uvarint()?) - 1,
            false => i64::from(decoder.i32()?),
        };
        let Ok(record_bytes) = usize::try_from(record_bytes) else { return Ok(None) };
        let records_at = decoder.position();
        Ok(Some(ProduceHead { header, acks, topic, topic_id, partition, records_at, record_bytes }))
    }
}
