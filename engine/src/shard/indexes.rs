//! Indexes that are not in memory: read from their files when somebody looks something up, or made again by a walk over the
//! headers where the files are not there or do not hold together.

use std::io;

use super::errors::FetchError;
use super::partition::Partition;
use crate::log::{BATCH_HEADER_BYTES, BatchHeader, Ext, LogConfig, OffsetIndex, Segment, TimeIndex};
use crate::sys::is_passing;
use crate::types::{Offset, Position};

const INDEX_BYTES_MAX: u64 = 1 << 30;
/// Read at a time when headers are looked for.
const WALK_BYTES: u64 = 256 << 10;

impl Partition {
    /// Brings the indexes of the segment that holds `offset` to memory. True when that took time: the log may have moved.
    pub(super) async fn ready_index(&self, offset: Offset) -> Result<bool, FetchError> {
        self.touch();
        let Some(base) = self.0.log.borrow().unloaded_at(offset) else { return Ok(false) };
        // Rare, and large: fetches that find all in memory have no room for it.
        let loaded = Box::pin(self.load_indexes(base)).await;
        loaded.map_err(|error| FetchError::Io(format!("{self}: {error}")))?;
        Ok(true)
    }

    /// Brings the indexes of a segment to memory.
    ///
    /// # Errors
    /// The log cannot be read, or what was asked for is short at the moment.
    pub(super) async fn load_indexes(&self, base: Offset) -> io::Result<()> {
        let Some(below) = self.0.log.borrow().segment(base).and_then(Segment::unloaded) else {
            return Ok(());
        };
        let stored = self.0.files.borrow().get(base).is_some_and(|file| file.indexed);
        let mut found = match stored {
            true => self.stored_indexes(base, below).await?,
            false => None,
        };
        if found.is_none() {
            found = Some(self.walk_headers(base, below).await?);
        }
        if let Some((index, time_index)) = found {
            self.0.log.borrow_mut().load_indexes(base, below, index, time_index);
        }
        Ok(())
    }

    async fn stored_indexes(
        &self,
        base: Offset,
        below: (Offset, Position),
    ) -> io::Result<Option<(OffsetIndex, TimeIndex)>> {
        let path = |ext| self.0.files.borrow().path(base, ext);
        let mut found = [None, None];
        for (slot, ext) in found.iter_mut().zip([Ext::Index, Ext::TimeIndex]) {
            match self.0.common.ring.read_file(&path(ext), INDEX_BYTES_MAX).await {
                Ok(bytes) => *slot = bytes,
                Err(error) if is_passing(&error) => return Err(error),
                // Derived: what cannot be read is made again.
                Err(error) => tracing::warn!("{error}; made again from the log"),
            }
        }
        let [Some(index), Some(time_index)] = found else {
            tracing::warn!("{}: it is not there; made again from the log", path(Ext::Index).display());
            return Ok(None);
        };
        let interval = self.config().index_interval_bytes;
        let decoded = OffsetIndex::decode(base, interval, &index, below.1.0)
            .and_then(|index| Ok((index, TimeIndex::decode(base, &time_index, below.0)?)));
        Ok(match decoded {
            Ok(decoded) if decoded.0.ends_below(below.0) && self.fits(base, &decoded.1) => Some(decoded),
            Ok(_) => {
                let path = path(Ext::Index);
                tracing::warn!(
                    "{}: it, or its time index, goes beyond the log; made again from that",
                    path.display()
                );
                None
            }
            Err(error) => {
                tracing::warn!("{}: {error}; made again from the log", path(Ext::Index).display());
                None
            }
        })
    }

    /// Whether the last word of a time index does not contradict what is known of its segment.
    fn fits(&self, base: Offset, time_index: &TimeIndex) -> bool {
        let log = self.0.log.borrow();
        let Some((segment, last)) = log.segment(base).zip(time_index.last()) else { return true };
        segment.bounds(last)
    }

    fn config(&self) -> &LogConfig {
        &self.0.config.log
    }

    /// Makes the indexes of a segment from its batches' headers, up to a place. What comes behind a header that is none is
    /// left out: an index may omit.
    async fn walk_headers(
        &self,
        base: Offset,
        below: (Offset, Position),
    ) -> io::Result<(OffsetIndex, TimeIndex)> {
        let mut segment = Segment::new(base, self.config());
        let mut at = Position(0);
        'segment: while at < below.1 {
            let wanted = below.1.since(at).min(WALK_BYTES);
            let bytes = self.read_span(base, at, wanted).await.map_err(io::Error::other)?;
            let began = at;
            while let Some(rest) = bytes.get(at.since(began) as usize..)
                && (rest.len() >= BATCH_HEADER_BYTES || at.0 + rest.len() as u64 == below.1.0)
                && at < below.1
            {
                let header = BatchHeader::parse(rest).ok().filter(|header| {
                    let fits = header.base_offset >= segment.next_offset && header.next_offset() <= below.0;
                    header.check_offsets().is_ok() && fits && header.bytes > 0
                });
                let Some(header) = header else { break 'segment };
                segment.note_batch(&header, at);
                at = at.plus(u64::from(header.bytes));
            }
        }
        Ok((segment.index, segment.time_index))
    }
}
