//! What a peer says to a server, as bytes: batches, requests to produce and to fetch, on a plain blocking socket.
//!
//! One request at a time, and every byte on the wire counted: what is not record bytes is control bytes, and the ledger
//! accounts for both. The load of comparisons is another one (`producers`, `consumers`): it is made for speed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringlog_broker::wire::fetch::{FetchPartition, FetchRequestWriter, FetchResponse, FetchTerms};
use ringlog_broker::wire::produce::{ProduceResponse, ProduceTerms, encode_produce_prefix};
use ringlog_broker::wire::{
    ApiKey, Encoder, ErrorCode, GappedFrame, PREFIX_BYTES, RequestHeader, Uuid, decode_response,
};
use serde::{Deserialize, Serialize};

use crate::batch::{BatchWriter, Shape};
use crate::client::CLIENT_ID;

/// The last version of both in which topics go by name.
const VERSION: i16 = 12;
/// How long a server may take for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
const TIMESTAMP_MS: i64 = 1_700_000_000_000;
/// The head of a batch, and of its one record at its longest.
const AROUND_VALUE_BYTES: usize = 61 + 24;
const FETCH_REQUEST_BYTES_MAX: usize = 1024;

/// What went over one connection, as the peer saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Exchange {
    /// Sent by the peer, all of it.
    pub sent_bytes: u64,
    /// Received by it.
    pub received_bytes: u64,
    /// Of what was sent, record batches.
    pub produced_bytes: u64,
    /// Of what was received, record batches.
    pub fetched_bytes: u64,
}

/// A batch of about `bytes`, one record in it, different for every `number`.
pub(super) fn batch(bytes: usize, number: u64) -> Vec<u8> {
    let mut memory = vec![0; bytes];
    let value_bytes = bytes.saturating_sub(AROUND_VALUE_BYTES);
    let shape = Shape { key: None, value_bytes, header: None };
    let mut writer = BatchWriter::begin(&mut memory, TIMESTAMP_MS);
    let pushed = writer.push(&shape, |value| {
        for (at, byte) in value.iter_mut().enumerate() {
            *byte = (at as u64 ^ (at as u64 >> 8) ^ number.wrapping_mul(37)) as u8 & 0x7f;
        }
    });
    assert!(pushed, "a batch of {bytes} bytes has no room for its record");
    let length = writer.finish();
    memory.truncate(length);
    memory
}

/// A connection to a server.
pub(super) struct Client {
    stream: TcpStream,
    exchanged: Exchange,
    correlation_id: i32,
}

impl Client {
    pub(super) fn open(address: SocketAddr) -> Result<Client> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("connecting to the server at {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Client { stream, exchanged: Exchange::default(), correlation_id: 0 })
    }

    pub(super) fn exchanged(&self) -> Exchange {
        self.exchanged
    }

    /// Sends one batch to partition 0 of `topic` and waits until it is acknowledged; its offset.
    pub(super) fn produce(&mut self, topic: &str, batch: &[u8]) -> Result<i64> {
        let mut frame = GappedFrame::default();
        let header = self.header(ApiKey::Produce);
        let terms = ProduceTerms { transactional_id: None, acks: -1, timeout_ms: 60_000 };
        encode_produce_prefix(
            &mut frame,
            &header,
            &terms,
            (topic, &Uuid::default()),
            &[(0, batch.len() as u64)],
        )?;
        let (before, behind) = frame.bytes.split_at(frame.gaps[0].position);
        let request = [before, batch, behind].concat();
        self.exchanged.produced_bytes += batch.len() as u64;
        let answer = self.ask(&request)?;
        let (_, answer): (_, ProduceResponse<'_>) = decode_response(&answer, VERSION)?;
        let outcome = answer.topics.iter().flat_map(|topic| topic.partitions.iter()).next();
        let outcome = outcome.context("an answer to Produce without a partition")?;
        ensure!(outcome.error_code == ErrorCode::None, "producing to {topic}: {}", outcome.error_code.name());
        Ok(outcome.base_offset)
    }

    /// Fetches from partition 0 of `topic` from `offset` on; the bytes of batches that came.
    pub(super) fn fetch(&mut self, topic: &str, offset: i64, bytes_max: usize) -> Result<u64> {
        let mut request = [0; FETCH_REQUEST_BYTES_MAX];
        let header = self.header(ApiKey::Fetch);
        let bytes_max = i32::try_from(bytes_max)?;
        let terms =
            FetchTerms { max_wait_ms: 10_000, min_bytes: 1, max_bytes: bytes_max, ..FetchTerms::default() };
        let mut writer = FetchRequestWriter::begin(Encoder::fixed(&mut request), &header, &terms, 1)?;
        writer.topic(topic, &Uuid::default(), 1);
        writer.partition(&FetchPartition {
            index: 0,
            fetch_offset: offset,
            partition_max_bytes: bytes_max,
            ..FetchPartition::default()
        });
        let bytes = writer.finish(&[])? as usize;
        let answer = self.ask(&request[..bytes])?;
        let (_, answer): (_, FetchResponse<'_>) = decode_response(&answer, VERSION)?;
        let partition = answer.topics.iter().flat_map(|topic| topic.partitions.iter()).next();
        let partition = partition.context("an answer to Fetch without a partition")?;
        ensure!(
            answer.error_code == ErrorCode::None && partition.error_code == ErrorCode::None,
            "fetching {topic} from {offset}: {} {}",
            answer.error_code.name(),
            partition.error_code.name()
        );
        let bytes = partition.records.map_or(0, |range| range.len() as u64);
        self.exchanged.fetched_bytes += bytes;
        Ok(bytes)
    }

    fn header(&mut self, api: ApiKey) -> RequestHeader<'static> {
        self.correlation_id += 1;
        RequestHeader {
            api,
            version: VERSION,
            correlation_id: self.correlation_id,
            client_id: Some(CLIENT_ID),
        }
    }

    fn ask(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        self.stream.write_all(request).context("sending a request")?;
        let mut prefix = [0; PREFIX_BYTES];
        self.stream.read_exact(&mut prefix).context("waiting for an answer")?;
        let mut answer = vec![0; usize::try_from(i32::from_be_bytes(prefix))?];
        self.stream.read_exact(&mut answer).context("receiving an answer")?;
        self.exchanged.sent_bytes += request.len() as u64;
        self.exchanged.received_bytes += (PREFIX_BYTES + answer.len()) as u64;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_of_the_size_asked_for_and_the_engine_takes_them() {
        for bytes in [1000, 64 << 10, 256 << 10] {
            let batch = batch(bytes, 3);
            assert!((bytes - 24..=bytes).contains(&batch.len()), "{} of {bytes} bytes", batch.len());
            ringlog::log::check_produced(&batch).unwrap();
            assert_ne!(batch, super::batch(bytes, 4));
        }
    }
}
