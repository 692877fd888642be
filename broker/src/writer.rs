//! The writer of a connection: answers in the order of the requests, and what is ready together leaves together.

use std::rc::Rc;

use ringlog::Shard;
use ringlog::sys::{Lease, Timer};
use ringlog::transfer::{Egress, Piece, Response, send};

use crate::connection::{Broker, Connection, Entry};
use crate::errors::Fault;
use crate::fetch::Wanted;
use crate::guard::{self, Hold};
use crate::wire::api_versions::{ApiVersionsRequest, ApiVersionsResponse};
use crate::wire::{
    ApiKey, Decoder, Encode, Encoder, GappedFrame, Message, RequestHeader, Segment, encode_response,
};
use crate::{
    create_topics, delete_records, delete_topics, describe_cluster, describe_configs, fetch, list_offsets,
    metadata, offset_for_leader_epoch, produce,
};

/// Answers gather up to here before they are sent.
const GATHER_BYTES_MAX: usize = 64 << 10;
/// A larger answer is sent from several leases.
const ANSWER_LEASE_BYTES: usize = 1 << 20;
/// Room for answers that a connection keeps.
const KEPT_BYTES_MAX: usize = 2 * GATHER_BYTES_MAX;

pub(crate) async fn run(broker: Rc<Broker>, connection: Rc<Connection>) {
    let timer = broker.shard.ring().timer();
    let mut writer = Writer {
        broker: &broker,
        connection: &connection,
        timer,
        answers: Vec::with_capacity(4096),
        frame: GappedFrame::with_capacity(1024, 16),
        pieces: Vec::with_capacity(16),
        carriers: Vec::with_capacity(16),
        wanted: Vec::with_capacity(16),
        response: Response::default(),
    };
    if let Err(fault) = writer.run().await {
        broker.note_fault(&connection, &fault);
    }
    connection.end_output();
    guard::settle(broker.shard.ring(), &connection).await;
}

pub(crate) struct Writer<'a> {
    pub broker: &'a Rc<Broker>,
    pub connection: &'a Rc<Connection>,
    /// For long polls.
    pub timer: Timer,
    /// Encoded answers that wait for the next send.
    pub answers: Vec<u8>,
    /// The fetch response under way, and the pieces for its gaps.
    pub frame: GappedFrame,
    pub pieces: Vec<Piece>,
    /// Who carries each of them.
    pub carriers: Vec<Egress>,
    /// What a fetch asks for, while it is answered.
    pub wanted: Vec<Wanted>,
    response: Response,
}

impl Writer<'_> {
    async fn run(&mut self) -> Result<(), Fault> {
        loop {
            let entry = match self.connection.try_next() {
                Some(entry) => entry,
                None => {
                    self.flush().await?;
                    self.connection.answering.set(false);
                    match self.connection.next().await {
                        Some(entry) => entry,
                        None => return Ok(()),
                    }
                }
            };
            self.connection.answering.set(true);
            self.answer(entry).await?;
            if self.answers.len() >= GATHER_BYTES_MAX {
                self.flush().await?;
            }
            self.connection.answering.set(!self.answers.is_empty());
        }
    }

    async fn answer(&mut self, entry: Entry) -> Result<(), Fault> {
        match entry {
            Entry::Produced(mut produced) => {
                if !produced.is_ready() {
                    self.flush().await?;
                }
                produced.settle().await;
                produced.encode(&mut self.answers)?;
                produce::answered(self.broker, self.connection, produced);
                Ok(())
            }
            Entry::Request(frame) => self.dispatch(&frame).await,
        }
    }

    /// The table of `wire::ApiKey` with its handlers.
    async fn dispatch(&mut self, frame: &Lease) -> Result<(), Fault> {
        let mut decoder = Decoder::new(frame);
        let header = RequestHeader::decode(&mut decoder)?;
        let (api, version) = (header.api, header.version);
        if let Err(unsupported) = api.version(version) {
            if api != ApiKey::ApiVersions {
                return Err(unsupported.into());
            }
            // KIP-511: the answer is of version 0 whatever was asked, and names the versions to ask in.
            return self.encode(&header, 0, &ApiVersionsResponse::unsupported_version());
        }
        let answered = match api {
            ApiKey::Produce => unreachable!("the reader takes Produce itself"),
            ApiKey::Fetch => {
                self.flush().await?;
                fetch::answer(self, &header, &mut decoder).await
            }
            ApiKey::ApiVersions => match ApiVersionsRequest::decode_from(&mut decoder, version) {
                Ok(_) => self.encode(&header, version, &ApiVersionsResponse::of_table()),
                Err(error) => Err(error.into()),
            },
            ApiKey::Metadata => metadata::answer(self, &header, &mut decoder).await,
            ApiKey::ListOffsets => list_offsets::answer(self, &header, &mut decoder).await,
            ApiKey::CreateTopics => create_topics::answer(self, &header, &mut decoder).await,
            ApiKey::DeleteTopics => delete_topics::answer(self, &header, &mut decoder).await,
            ApiKey::DeleteRecords => delete_records::answer(self, &header, &mut decoder).await,
            ApiKey::OffsetForLeaderEpoch => {
                offset_for_leader_epoch::answer(self, &header, &mut decoder).await
            }
            ApiKey::DescribeConfigs => describe_configs::answer(self, &header, &mut decoder).await,
            ApiKey::DescribeCluster => describe_cluster::answer(self, &header, &mut decoder).await,
        };
        answered.map_err(|fault| fault.in_request(&header))
    }

    pub(crate) fn encode<M: Message + Encode>(
        &mut self,
        header: &RequestHeader<'_>,
        version: i16,
        body: &M,
    ) -> Result<(), Fault> {
        let mut encoder = Encoder::growing(&mut self.answers);
        encode_response(&mut encoder, header.correlation_id, version, body)?;
        Ok(())
    }

    /// Sends the answers that have gathered.
    async fn flush(&mut self) -> Result<(), Fault> {
        if self.answers.is_empty() {
            return Ok(());
        }
        // A description of everything there is may be larger than any lease.
        for part in self.answers.chunks(ANSWER_LEASE_BYTES) {
            let lease = lease_of(&self.broker.shard, part).await?;
            self.response.push_protocol(lease);
        }
        self.answers.clear();
        self.answers.shrink_to(KEPT_BYTES_MAX);
        self.send().await
    }

    /// Sends the fetch response: protocol bytes and pieces in turn.
    pub(crate) async fn send_frame(&mut self) -> Result<(), Fault> {
        let bytes = lease_of(&self.broker.shard, &self.frame.bytes).await?;
        let mut at = 0;
        let mut pieces = self.pieces.drain(..).zip(self.carriers.drain(..));
        for segment in self.frame.segments() {
            match segment {
                Segment::Bytes(part) => {
                    self.response.push_protocol(bytes.slice(at..at + part.len()));
                    at += part.len();
                }
                Segment::Records { record_bytes, .. } => {
                    let mut left = record_bytes;
                    while left > 0 {
                        let (piece, egress) = pieces.next().expect("every gap has its pieces");
                        assert!(
                            piece.bytes() <= left,
                            "pieces of {} bytes for a gap of {left}",
                            piece.bytes()
                        );
                        left -= piece.bytes();
                        self.response.push_pinned(piece, egress);
                    }
                }
            }
        }
        drop(pieces);
        self.frame.clear();
        self.send().await
    }

    async fn send(&mut self) -> Result<(), Fault> {
        let shard = &self.broker.shard;
        let egress = shard.config().egress;
        let hold = Hold { bytes: self.response.memory_bytes(), since: shard.ring().now() };
        self.connection.sending.set(Some(hold));
        let sent = send(shard.ring(), &self.connection.socket, egress, &mut self.response, shard.transfers());
        let sent = sent.await;
        self.connection.sending.set(None);
        Ok(sent?)
    }
}

async fn lease_of(shard: &Shard, bytes: &[u8]) -> Result<Lease, Fault> {
    let mut lease = shard.ring().lease(bytes.len()).await?;
    lease[..bytes.len()].copy_from_slice(bytes);
    Ok(lease.freeze().slice(0..bytes.len()))
}
