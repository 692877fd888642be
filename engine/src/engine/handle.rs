//! One partition, for any thread.

use std::net::TcpStream;
use std::sync::Arc;

use super::EngineError;
use super::calls::Outcome;
use super::lane::{Call, Lane};
use crate::log::{Marks, check_produced};
use crate::shard::{Ack, Acked, FetchError, Fetched, Partition, Shard};
use crate::transfer::{Egress, Piece, Response};
use crate::types::{Offset, PartitionId, Timestamp};

/// What an append reached; see [`Acked`].
pub type Appended = Acked;

/// A partition of an open engine. Cheap to clone; may be used from any thread.
#[derive(Clone)]
pub struct PartitionHandle {
    lane: Arc<Lane>,
    topic: Arc<str>,
    id: PartitionId,
}

impl PartitionHandle {
    pub(super) fn new(lane: Arc<Lane>, topic: &str, id: PartitionId) -> PartitionHandle {
        PartitionHandle { lane, topic: topic.into(), id }
    }

    fn find(&self, shard: &Shard) -> Result<Partition, EngineError> {
        let found = shard.find(self.id);
        found.ok_or_else(|| EngineError::Unknown(self.topic.to_string(), self.id.index))
    }

    /// Appends one record batch (Kafka's format v2, as [`crate::log::BatchBuilder`] makes them) and waits for `ack`, or
    /// for what the topic promises. It is checked on the calling thread, copied once to hand it over and once into the
    /// shard's memory; in the steady state nothing is allocated. Dropped before it is done, the batch may have been
    /// appended or not.
    ///
    /// # Errors
    /// The batch is malformed, or see [`crate::shard::AppendError`].
    pub async fn append(&self, batch: &[u8], ack: Option<Ack>) -> Result<Appended, EngineError> {
        let header = check_produced(batch)?;
        let (asked, answer) = self.lane.slots.append(self.id, header, ack, batch)?;
        self.lane.send(Call::Ask(asked))?;
        match answer.await {
            Outcome::Appended(appended) => Ok(appended),
            outcome => Err(self.failure(outcome)),
        }
    }

    /// Whole batches from `offset` on, as they lie on disk: about `bytes_max` of them.
    ///
    /// # Errors
    /// See [`crate::shard::FetchError`].
    pub async fn fetch(&self, offset: Offset, bytes_max: u64) -> Result<(Vec<u8>, Fetched), EngineError> {
        let mut bytes = Vec::new();
        let fetched = self.fetch_into(offset, bytes_max, &mut bytes).await?;
        Ok((bytes, fetched))
    }

    /// [`PartitionHandle::fetch`] into memory of the caller's, whose former content is dropped: with room enough in it
    /// nothing is allocated. After an error, or dropped before it is done, it leaves the vector empty, perhaps without
    /// the room that it had.
    ///
    /// # Errors
    /// See [`crate::shard::FetchError`].
    pub async fn fetch_into(
        &self,
        offset: Offset,
        bytes_max: u64,
        into: &mut Vec<u8>,
    ) -> Result<Fetched, EngineError> {
        let (asked, answer) = self.lane.slots.fetch(self.id, offset, bytes_max, into)?;
        self.lane.send(Call::Ask(asked))?;
        match answer.await {
            Outcome::Fetched(fetched) => Ok(fetched),
            outcome => Err(self.failure(outcome)),
        }
    }

    fn failure(&self, outcome: Outcome) -> EngineError {
        match outcome {
            Outcome::Gone => EngineError::Unknown(self.topic.to_string(), self.id.index),
            Outcome::Failed(error) => error,
            Outcome::Appended(_) | Outcome::Fetched(_) => unreachable!("an answer to another question"),
        }
    }

    /// Sends whole batches from `offset` on to `stream`, by `egress`, and gives the stream back.
    ///
    /// # Errors
    /// See [`crate::shard::FetchError`]; after an I/O error the stream is closed.
    pub async fn fetch_to(
        &self,
        offset: Offset,
        bytes_max: u64,
        egress: Egress,
        stream: &TcpStream,
    ) -> Result<Fetched, EngineError> {
        let (this, stream) = (self.clone(), stream.try_clone()?);
        self.lane
            .call(move |shard| async move {
                let partition = this.find(&shard)?;
                let mut pieces = Vec::new();
                let fetched = partition.fetch(offset, bytes_max, egress, &mut pieces).await?;
                let socket = shard.ring().adopt_stream(stream)?;
                let mut response = Response::default();
                pieces.into_iter().for_each(|piece| response.push_records(piece));
                crate::transfer::send(shard.ring(), &socket, egress, &mut response, shard.transfers())
                    .await?;
                Ok(fetched)
            })
            .await?
    }

    /// The first visible record whose timestamp is at least `timestamp`.
    ///
    /// # Errors
    /// See [`crate::shard::FetchError`].
    pub async fn offset_for_timestamp(
        &self,
        timestamp: Timestamp,
    ) -> Result<Option<(Offset, Timestamp)>, EngineError> {
        let this = self.clone();
        let find =
            move |shard: Shard| async move { Ok(this.find(&shard)?.offset_for_timestamp(timestamp).await?) };
        self.lane.call(find).await?
    }

    /// Its watermarks.
    ///
    /// # Errors
    /// [`EngineError::Unknown`] when it is gone.
    pub async fn marks(&self) -> Result<Marks, EngineError> {
        let this = self.clone();
        self.lane.call(move |shard| async move { Ok(this.find(&shard)?.marks()) }).await?
    }
}

pub(super) async fn read_piece(shard: &Shard, piece: &Piece, into: &mut Vec<u8>) -> Result<(), EngineError> {
    let (file, mut at, mut left) = match piece {
        Piece::Memory(lease) => {
            into.extend_from_slice(lease);
            return Ok(());
        }
        Piece::File { file, at, bytes } => (file, at.0, *bytes),
    };
    while left > 0 {
        let length = left.min(1 << 20) as usize;
        let mut lease = shard.ring().lease(length).await?;
        drop(lease.split_off(length));
        let (read, lease) = shard.ring().read(&file.file, at, lease).await;
        let n = read.map_err(|e| FetchError::Io(file.explain("reading", at, &e).to_string()))?;
        if n == 0 {
            return Err(FetchError::Io(file.ends_early(at, at + left).to_string()).into());
        }
        into.extend_from_slice(&lease[..n]);
        at += n as u64;
        left -= n as u64;
    }
    Ok(())
}
