//! What a connection wants: to write, or one stretch of one partition.

use anyhow::{Context, Result, bail, ensure};
use ringlog_broker::wire::fetch::{FetchOutcome, FetchRequest, FetchResponseTerms, FetchResponseWriter};
use ringlog_broker::wire::{ApiKey, Decoder, GappedFrame, Message, PREFIX_BYTES, RequestHeader, Uuid};

use super::UNIT_BYTES;

/// A first look at what a connection wants, and all that a reader ever sends.
pub(crate) const REQUEST_BYTES_MAX: usize = 4 << 10;

/// What a connection is for; its first request says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asks {
    /// Produce, and nothing else from here on.
    ToWrite,
    /// Fetch.
    ToRead,
}

impl Asks {
    /// By the first bytes of a connection; `None` while they are too few.
    pub(crate) fn of(first: &[u8]) -> Result<Option<Asks>> {
        let Some(&[high, low]) = first.get(PREFIX_BYTES..PREFIX_BYTES + 2) else { return Ok(None) };
        match i16::from_be_bytes([high, low]) {
            api if api == ApiKey::Produce.number() => Ok(Some(Asks::ToWrite)),
            api if api == ApiKey::Fetch.number() => Ok(Some(Asks::ToRead)),
            api => bail!("a request of API {api} at the floor, which knows Produce and Fetch"),
        }
    }
}

/// What a reader wants: one partition, from an offset on.
pub(crate) struct Asked {
    header: (i16, i32),
    pub(crate) topic: String,
    pub(crate) partition: u32,
    pub(crate) offset: i64,
    pub(crate) bytes_max: usize,
}

impl Asked {
    /// From all that has come since the last answer; `None` while it is not a whole request.
    pub(crate) fn whole(bytes: &[u8]) -> Result<Option<Asked>> {
        let Some(prefix) = bytes.first_chunk() else { return Ok(None) };
        let length = i32::from_be_bytes(*prefix);
        let fits = usize::try_from(length).is_ok_and(|length| PREFIX_BYTES + length <= REQUEST_BYTES_MAX);
        ensure!(fits, "a reader's request of {length} bytes, where at most {REQUEST_BYTES_MAX} are taken");
        let end = PREFIX_BYTES + length as usize;
        bytes.get(PREFIX_BYTES..end).map(Asked::read).transpose()
    }

    fn read(frame: &[u8]) -> Result<Asked> {
        let mut decoder = Decoder::new(frame);
        let header = RequestHeader::decode(&mut decoder)?;
        ensure!(header.api == ApiKey::Fetch, "a reader that asks for {}", header.api.name());
        let request = FetchRequest::decode_from(&mut decoder, header.version)?;
        let topic = request.topics.iter().next().context("a Fetch without a topic")?;
        let partition = topic.partitions.iter().next().context("a Fetch without a partition")?;
        Ok(Asked {
            header: (header.version, header.correlation_id),
            topic: topic.name.to_owned(),
            partition: partition.index as u32,
            offset: partition.fetch_offset,
            bytes_max: (partition.partition_max_bytes as usize).min(UNIT_BYTES),
        })
    }

    /// Encodes an answer with room for `record_bytes`: the bytes before and behind them.
    pub(crate) fn encode_answer<'a>(
        &self,
        frame: &'a mut GappedFrame,
        end: i64,
        record_bytes: u64,
    ) -> Result<(&'a [u8], &'a [u8])> {
        frame.clear();
        let (version, correlation_id) = self.header;
        let terms = FetchResponseTerms::default();
        let mut writer = FetchResponseWriter::begin(frame, correlation_id, version, &terms, 1)?;
        writer.topic(&self.topic, &Uuid::default(), 1);
        writer.partition(&FetchOutcome::read(self.partition as i32, end, 0, record_bytes));
        writer.finish(&[])?;
        let middle = frame.gaps.first().map_or(frame.bytes.len(), |gap| gap.position);
        Ok(frame.bytes.split_at(middle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_no_reader_sends_are_refused_with_the_number() {
        let refused = |length: i32| Asked::whole(&length.to_be_bytes()).map(drop).unwrap_err().to_string();
        assert!(refused(-1).contains("-1 bytes"), "{}", refused(-1));
        assert!(refused(5000).contains("5000 bytes") && refused(5000).contains("4096"), "{}", refused(5000));
        assert!(refused(i32::MIN).contains("-2147483648"));
        assert!(
            Asked::whole(&4092i32.to_be_bytes()).unwrap().is_none() && Asked::whole(&[0]).unwrap().is_none()
        );
    }

    #[test]
    fn the_first_request_says_what_a_connection_is_for() {
        assert_eq!(Asks::of(&[0, 0, 0, 9, 0]).unwrap(), None);
        assert_eq!(Asks::of(&[0, 0, 0, 9, 0, 0]).unwrap(), Some(Asks::ToWrite));
        assert_eq!(Asks::of(&[0, 0, 0, 9, 0, 1]).unwrap(), Some(Asks::ToRead));
        assert!(Asks::of(&[0, 0, 0, 9, 0, 3]).unwrap_err().to_string().contains("API 3"));
    }
}
