//! One connection of the load, over the harness's own ring, in our own codec.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow};
use ringlog::sys::{Lease, LeaseMut, Ring, Socket};
use ringlog_broker::wire::create_topics::{CreatableTopic, CreateTopicsRequest, CreateTopicsResponse};
use ringlog_broker::wire::{
    ApiKey, Decoder, Encoder, ErrorCode, FrameLimits, Message, PREFIX_BYTES, RequestHeader, decode_response,
    decode_response_header, encode_request,
};

/// What the load calls itself.
pub const CLIENT_ID: &str = "ringlog-harness";
/// Produce and Fetch in the last versions whose frames are of fixed shape: what is sent is patched, not made anew.
pub const PRODUCE_VERSION: i16 = 8;
/// See [`PRODUCE_VERSION`].
pub const FETCH_VERSION: i16 = 11;
const CREATE_TOPICS_VERSION: i16 = 5;

/// A connection with what was received and not yet read.
pub struct Connection {
    pub ring: Ring,
    pub socket: Socket,
    buffer: LeaseMut,
    filled: usize,
}

impl Connection {
    /// Connects; answers are received into leases of `buffer_bytes`.
    pub async fn open(ring: &Ring, address: SocketAddr, buffer_bytes: usize) -> Result<Connection> {
        let socket = ring.connect(address).await.with_context(|| format!("connecting to {address}"))?;
        let buffer = ring.lease(buffer_bytes).await?;
        Ok(Connection { ring: ring.clone(), socket, buffer, filled: 0 })
    }

    /// The next answer without its length prefix.
    pub async fn next_frame(&mut self) -> Result<Lease> {
        let limits = FrameLimits::default();
        loop {
            let total = limits.peek_frame(&self.buffer[..self.filled])?;
            if let Some(total) = total
                && total <= self.filled
            {
                drop(self.buffer.split_to(PREFIX_BYTES));
                self.filled -= total;
                return Ok(self.buffer.split_to(total - PREFIX_BYTES).freeze());
            }
            let wanted = total.unwrap_or(self.filled + PREFIX_BYTES).max(self.filled + 1024);
            if wanted > self.buffer.len() {
                let mut next = self.ring.lease(wanted.max(64 << 10)).await?;
                next[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
                self.buffer = next;
            }
            let into = self.buffer.split_off(self.filled);
            let (result, into) = self.ring.recv(&self.socket, into).await;
            self.buffer.unsplit(into);
            match result? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                n => self.filled += n,
            }
        }
    }

    /// Sends bytes that were encoded elsewhere.
    pub async fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        let mut lease = self.ring.lease(bytes.len()).await?;
        lease[..bytes.len()].copy_from_slice(bytes);
        let (result, _) = self.ring.send(&self.socket, lease.freeze().slice(0..bytes.len()), false).await;
        result.map(drop).map_err(Into::into)
    }

    /// Creates a topic with `partitions`.
    pub async fn create_topic(&mut self, name: &str, partitions: u32) -> Result<()> {
        let request = CreateTopicsRequest {
            topics: vec![CreatableTopic {
                name,
                num_partitions: partitions as i32,
                replication_factor: 1,
                ..CreatableTopic::default()
            }],
            ..CreateTopicsRequest::default()
        };
        let header = header(ApiKey::CreateTopics, CREATE_TOPICS_VERSION, 1);
        let mut bytes = Vec::new();
        encode_request(&mut Encoder::growing(&mut bytes), &header, &request)?;
        self.send_bytes(&bytes).await?;
        let frame = self.next_frame().await?;
        let (_, response) = decode_response::<CreateTopicsResponse<'_>>(&frame, CREATE_TOPICS_VERSION)?;
        let topic = response.topics.first().ok_or_else(|| anyhow!("no answer for topic {name}"))?;
        match topic.error_code {
            ErrorCode::None => Ok(()),
            code => Err(anyhow!("topic {name} was not created: {code:?} {:?}", topic.error_message)),
        }
    }
}

/// The header of a request of the load.
pub fn header(api: ApiKey, version: i16, correlation_id: i32) -> RequestHeader<'static> {
    RequestHeader { api, version, correlation_id, client_id: Some(CLIENT_ID) }
}

/// Correlation id and body of an answer; the body borrows from the frame.
pub fn read<'a, M>(frame: &'a [u8], api: ApiKey, version: i16) -> Result<(i32, M)>
where
    M: Message + ringlog_broker::wire::Decode<'a>,
{
    let mut decoder = Decoder::new(frame);
    let correlation_id = decode_response_header(&mut decoder, api, version)?;
    Ok((correlation_id, M::decode_from(&mut decoder, version)?))
}
