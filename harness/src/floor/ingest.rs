//! Produce requests taken apart as they come, where they lie.
//!
//! ```text
//! unit of memory:  ..batch tail ] [ prefix | head | batch ............ | tags ] [ prefix | head | bat
//!                                 ^ copied: HEAD_BYTES, the first of the batch among them
//! ```

use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result, bail, ensure};
use ringlog::log::Crc32c;
use ringlog::sys::{Lease, Socket};
use ringlog::transfer::join;
use ringlog_broker::wire::produce::{ProduceOutcome, ProduceResponseWriter};
use ringlog_broker::wire::{Encoder, ProduceHead, Uuid};

use super::{Floor, UNIT_BYTES};
use crate::batch::BATCH_HEAD_BYTES;

/// So much of a request is copied, to be looked at: all before the batch, and the batch's own head.
pub const HEAD_BYTES: usize = 192;
const CRC_AT: usize = 17;
const CRC_FROM: usize = 21;
const LAST_OFFSET_DELTA_AT: usize = 23;

/// A batch that has come whole, its CRC right.
pub(crate) struct Batch {
    pub correlation_id: i32,
    pub version: i16,
    pub partition: u32,
    pub records: i64,
    pub bytes: usize,
    /// The first bytes of it, copied.
    pub head: Vec<u8>,
    /// The rest, where it was received; nothing when nobody reads.
    pub pieces: Vec<Lease>,
}

/// A stream of requests, cut anywhere.
#[derive(Default)]
pub(crate) struct Requests {
    start: Vec<u8>,
    open: Option<Open>,
    pub topic: String,
}

struct Open {
    batch: Batch,
    crc: Crc32c,
    crc_wanted: u32,
    /// Where the batch ends and where the request does, in the request.
    batch_end: usize,
    end: usize,
    at: usize,
}

impl Requests {
    /// Takes the next bytes. `keep` is told where among them a batch goes on; `whole` gets every batch that is whole with
    /// them.
    pub(crate) fn take(
        &mut self,
        part: &[u8],
        mut keep: impl FnMut(&mut Batch, Range<usize>),
        mut whole: impl FnMut(Batch),
    ) -> Result<()> {
        let mut at = 0;
        while at < part.len() {
            if self.open.is_none() {
                at += self.take_start(&part[at..])?;
            }
            let Some(open) = &mut self.open else { continue };
            let bytes = (open.end - open.at).min(part.len() - at);
            let of_batch = open.batch_end.saturating_sub(open.at).min(bytes);
            if of_batch > 0 {
                open.crc.update(&part[at..at + of_batch]);
                keep(&mut open.batch, at..at + of_batch);
            }
            open.at += bytes;
            at += bytes;
            if open.at == open.end {
                let Open { batch, crc, crc_wanted, .. } = self.open.take().expect("it is open");
                let crc = crc.value();
                ensure!(crc == crc_wanted, "a batch with CRC {crc:#x} that says {crc_wanted:#x}");
                whole(batch);
            }
        }
        Ok(())
    }

    /// Gathers the head of the next request; opens it when it is there.
    fn take_start(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut taken = 0;
        loop {
            let wanted = match self.start.first_chunk() {
                None => 4,
                Some(prefix) => {
                    let length = usize::try_from(i32::from_be_bytes(*prefix)).context("a negative length")?;
                    (4 + length).min(HEAD_BYTES)
                }
            };
            let more = (wanted - self.start.len()).min(bytes.len() - taken);
            self.start.extend_from_slice(&bytes[taken..taken + more]);
            taken += more;
            if self.start.len() < wanted {
                return Ok(taken);
            }
            if wanted > 4 {
                break;
            }
        }
        let end = 4 + i32::from_be_bytes(*self.start.first_chunk().expect("four bytes")) as usize;
        let Some(head) = ProduceHead::look(&self.start[4..]) else {
            bail!("not a Produce request of one batch: {:02x?}", &self.start[..self.start.len().min(64)])
        };
        let batch_at = 4 + head.records_at;
        let batch_end = batch_at + head.record_bytes;
        ensure!(batch_end <= end, "a batch of {} bytes in a request of {end}", head.record_bytes);
        let start = self.start.len();
        ensure!(
            start >= batch_at + BATCH_HEAD_BYTES.min(head.record_bytes)
                && head.record_bytes >= BATCH_HEAD_BYTES,
            "the head of a batch of {} bytes is not within {HEAD_BYTES} bytes",
            head.record_bytes
        );
        let first = &self.start[batch_at..start.min(batch_end)];
        let number = |at: usize| u32::from_be_bytes(*first[at..].first_chunk().expect("a whole batch head"));
        let mut crc = Crc32c::new();
        crc.update(&first[CRC_FROM..]);
        if self.topic != head.topic {
            head.topic.clone_into(&mut self.topic);
        }
        let batch = Batch {
            correlation_id: head.header.correlation_id,
            version: head.header.version,
            partition: head.partition as u32,
            records: i64::from(number(LAST_OFFSET_DELTA_AT)) + 1,
            bytes: head.record_bytes,
            head: first.to_vec(),
            pieces: Vec::new(),
        };
        self.open = Some(Open { batch, crc, crc_wanted: number(CRC_AT), batch_end, end, at: start });
        self.start.clear();
        Ok(taken)
    }
}

/// Puts the answer to a producer's request behind those that wait to be sent.
pub(crate) fn acknowledge(
    answers: &mut Vec<u8>,
    topic: &str,
    (correlation_id, version): (i32, i16),
    partition: u32,
    offset: i64,
) -> Result<()> {
    let mut writer = ProduceResponseWriter::begin(Encoder::growing(answers), correlation_id, version, 1)?;
    writer.topic(topic, &Uuid::default(), 1);
    writer.partition(&ProduceOutcome::appended(partition as i32, offset, -1, 0));
    writer.finish(0, &[])?;
    Ok(())
}

/// A producer's connection, to its end. What has come and is not answered goes with what is received next.
pub(super) async fn receive(floor: &Rc<Floor>, socket: &Socket, first: &[u8]) -> Result<()> {
    let ring = &floor.ring;
    let mut requests = Requests::default();
    let mut answers: Vec<u8> = Vec::with_capacity(4096);
    let mut rest = ring.lease(UNIT_BYTES).await?;
    rest[..first.len()].copy_from_slice(first);
    let mut part = Some(rest.split_to(first.len()).freeze());
    let mut unit: Option<Lease> = None;
    let mut batches = Vec::new();
    loop {
        if let Some(part) = part.take() {
            let keep = |batch: &mut Batch, range| {
                if floor.memory.is_read() {
                    batch.pieces.push(part.slice(range));
                }
            };
            requests.take(&part, keep, |batch| batches.push(batch))?;
            for batch in batches.drain(..) {
                let (request, partition) = ((batch.correlation_id, batch.version), batch.partition);
                floor.moved.fetch_add(batch.bytes as u64, Relaxed);
                let offset = floor.memory.append(batch)?;
                acknowledge(&mut answers, &requests.topic, request, partition, offset)?;
            }
            match &mut unit {
                None => unit = Some(part),
                Some(unit) => unit.try_join(part).ok().context("parts of one unit are neighbours")?,
            }
        }
        if rest.is_empty() {
            floor.memory.has_room().await;
            floor.disk.write(unit.take().expect("a full unit has parts")).await?;
            rest = ring.lease(UNIT_BYTES).await?;
        }
        let answering = async {
            if answers.is_empty() {
                return Ok(());
            }
            let mut lease = ring.lease(answers.len()).await?;
            lease[..answers.len()].copy_from_slice(&answers);
            let answer = lease.freeze().slice(0..answers.len());
            answers.clear();
            ring.send(socket, answer, false).await.0.map(drop)
        };
        let (answered, (received, mut filled)) = join(answering, ring.recv(socket, rest)).await;
        answered?;
        match received? {
            0 => return Ok(()),
            bytes => part = Some(filled.split_to(bytes).freeze()),
        }
        rest = filled;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringlog::sys::{Ring, UringOptions};
    use ringlog_broker::wire::produce::{ProduceTerms, encode_produce_prefix};
    use ringlog_broker::wire::{ApiKey, GappedFrame, RequestHeader};

    use super::*;
    use crate::batch::{BatchWriter, Batches, Shape};

    fn request(correlation_id: i32, value_bytes: usize) -> (Vec<u8>, Vec<u8>) {
        let mut batch = vec![0; value_bytes + 200];
        let mut writer = BatchWriter::begin(&mut batch, 5);
        let shape = Shape { key: None, value_bytes, header: None };
        assert!(writer.push(&shape, |value| value.fill(correlation_id as u8)));
        let length = writer.finish();
        batch.truncate(length);
        let mut frame = GappedFrame::default();
        let header =
            RequestHeader { api: ApiKey::Produce, version: 12, correlation_id, client_id: Some("me") };
        let terms = ProduceTerms { transactional_id: None, acks: -1, timeout_ms: 1 };
        let topic = ("cell-00001", &Uuid::default());
        encode_produce_prefix(&mut frame, &header, &terms, topic, &[(correlation_id, length as u64)])
            .unwrap();
        let (before, behind) = frame.bytes.split_at(frame.gaps[0].position);
        ([before, &batch, behind].concat(), batch)
    }

    /// Parts as they come, each in a lease that follows the one before it.
    fn take(stream: &[u8], cuts: &[usize]) -> Result<Vec<(i32, Vec<u8>)>> {
        let ring = Ring::of_kernel(&UringOptions::default(), 16 << 20).unwrap();
        let (stream, cuts) = (stream.to_vec(), cuts.to_vec());
        ring.clone().run(async move {
            let mut requests = Requests::default();
            let mut found = Vec::new();
            let mut rest = ring.lease(UNIT_BYTES).await?;
            rest[..stream.len()].copy_from_slice(&stream);
            let mut at = 0;
            for cut in cuts.into_iter().chain([stream.len()]) {
                let part = rest.split_to(cut - at).freeze();
                at = cut;
                let keep = |batch: &mut Batch, range| batch.pieces.push(part.slice(range));
                requests.take(&part, keep, |batch| {
                    let pieces = batch.pieces.iter().map(|piece| &piece[..]);
                    let bytes = std::iter::once(&batch.head[..]).chain(pieces).collect::<Vec<_>>().concat();
                    assert_eq!(bytes.len(), batch.bytes);
                    found.push((batch.correlation_id, bytes));
                })?;
            }
            Ok(found)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn batches_are_found_wherever_the_stream_is_cut(
            sizes in prop::collection::vec(0usize..3000, 1..12),
            cuts in prop::collection::vec(0.0f64..1.0, 0..40),
        ) {
            let requests: Vec<_> = sizes.iter().zip(1..).map(|(&bytes, id)| request(id, bytes)).collect();
            let stream: Vec<u8> = requests.iter().flat_map(|(request, _)| request.clone()).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| (cut * stream.len() as f64) as usize).collect();
            cuts.sort_unstable();
            let found = take(&stream, &cuts).unwrap();
            prop_assert_eq!(found.len(), requests.len());
            for ((id, bytes), (wanted_id, (_, batch))) in found.iter().zip((1..).zip(&requests)) {
                prop_assert_eq!((id, bytes), (&wanted_id, batch));
                prop_assert!(Batches::new(bytes).next().unwrap().unwrap().crc_is_good());
            }
        }
    }

    #[test]
    fn a_wrong_byte_is_no_floor() {
        let (mut stream, _) = request(1, 500);
        let at = stream.len() - 100;
        stream[at] ^= 1;
        assert!(take(&stream, &[]).unwrap_err().to_string().contains("a batch with CRC"));
        let (mut stream, _) = request(1, 500);
        stream[5] = 9; // another API
        assert!(take(&stream, &[]).unwrap_err().to_string().contains("not a Produce request"));
    }
}
