//! A fetch: from an offset to pieces of memory and file, read by nobody on the way.

use std::cmp::Ordering;
use std::path::Path;

use super::errors::FetchError;
use super::partition::{Partition, State};
use crate::log::{Ext, Extent, HeaderWalk, LogPoint, Lookup, Marks, ReadError, Records, WalkStep};
use crate::sys::{File, Lease, OpenOptions};
use crate::transfer::{Egress, Piece, SegmentFile};
use crate::types::{Offset, Position, Timestamp};

/// Read at a time when headers are looked for.
const WALK_BYTES: u64 = 64 << 10;

/// What a fetch found, beside its pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes in the pieces it added.
    pub bytes: u64,
    /// The end of what is visible.
    pub high_watermark: Offset,
    /// The first offset there is.
    pub log_start: Offset,
}

impl Partition {
    /// Adds to `pieces` where whole batches from `offset` on lie: about `bytes_max` of them, the first one whole in any
    /// case. Where a range lies both in memory and in the file, the one that `egress` carries is chosen.
    ///
    /// # Errors
    /// See [`FetchError`]; nothing was added.
    pub async fn fetch(
        &self,
        offset: Offset,
        bytes_max: u64,
        egress: Egress,
        pieces: &mut Vec<Piece>,
    ) -> Result<Fetched, FetchError> {
        loop {
            self.check_readable()?;
            let marks = self.marks();
            let found = |bytes| Fetched {
                bytes,
                high_watermark: marks.high_watermark.offset,
                log_start: marks.log_start,
            };
            let generation = self.generation();
            if self.ready_index(offset).await? {
                continue; // The log may have moved meanwhile.
            }
            let lookup = self.locate(offset, bytes_max)?;
            let extent = match lookup {
                Lookup::AtEnd => return Ok(found(0)),
                Lookup::Extent(extent) => extent,
                Lookup::Walk { segment, from, to } => {
                    let walk = HeaderWalk::to_offset(offset, from, to);
                    let Some(batch) = self.walk(segment, to, walk).await? else {
                        return Err(FetchError::Io(format!(
                            "{self}: no batch holds offset {offset} in segment {segment} between {from} and {to}"
                        )));
                    };
                    let mut log = self.0.log.borrow_mut();
                    if self.generation() != generation || log.segment(segment).is_none() {
                        continue; // Truncated or removed while we looked.
                    }
                    // The batch begins before `offset` when that lies within it: looking `offset` up again would lead
                    // here again.
                    let point = LogPoint { offset: batch.base_offset, segment, position: batch.position };
                    log.note_boundary(point);
                    log.extent_from(point, bytes_max, marks.high_watermark)
                }
            };
            if self.ready_reader(extent, egress).await? {
                continue; // The log may have moved meanwhile.
            }
            self.add_pieces(extent, egress, pieces);
            return Ok(found(extent.to.since(extent.from)));
        }
    }

    fn locate(&self, offset: Offset, bytes_max: u64) -> Result<Lookup, FetchError> {
        let log = self.0.log.borrow();
        let marks = log.watermarks().marks();
        log.locate(offset, bytes_max, marks.high_watermark).map_err(|error| self.explain(error, &marks))
    }

    fn explain(&self, error: ReadError, marks: &Marks) -> FetchError {
        match error {
            ReadError::BelowLogStart { offset, .. } | ReadError::AboveEnd { offset, .. } => {
                FetchError::OutOfRange { offset, log_start: marks.log_start, end: marks.log_end.offset }
            }
            ReadError::Fenced(range) => {
                FetchError::Corrupt { path: self.0.files.borrow().path(range.segment, Ext::Log), range }
            }
        }
    }

    /// How many bytes a fetch at `offset` would find, at least: 0 at the end of what is visible.
    ///
    /// # Errors
    /// As [`Partition::fetch`].
    pub fn readable_bytes(&self, offset: Offset) -> Result<u64, FetchError> {
        self.check_readable()?;
        let visible = self.marks().high_watermark;
        Ok(match self.locate(offset, u64::MAX)? {
            Lookup::AtEnd => 0,
            Lookup::Extent(extent) => extent.to.since(extent.from),
            Lookup::Walk { segment, from, to } if segment == visible.segment => {
                visible.position.0.saturating_sub(from.0).max(to.0 - from.0).max(1)
            }
            Lookup::Walk { from, to, .. } => to.since(from).max(1),
        })
    }

    /// The largest timestamp of any batch, or `None` in an empty log.
    #[must_use]
    pub fn largest_timestamp(&self) -> Option<Timestamp> {
        let log = self.0.log.borrow();
        log.segments().iter().map(|s| s.largest_timestamp).max().filter(|&t| t > Timestamp::NONE)
    }

    /// The first record whose timestamp is at least `timestamp`, among those that are visible. Inside a compressed
    /// batch the batch's own first offset and largest timestamp are given: records are not unpacked here.
    ///
    /// # Errors
    /// As [`Partition::fetch`].
    pub async fn offset_for_timestamp(
        &self,
        timestamp: Timestamp,
    ) -> Result<Option<(Offset, Timestamp)>, FetchError> {
        let end = self.marks().high_watermark;
        let log_start = self.marks().log_start;
        self.touch();
        let unloaded = self.0.log.borrow().unloaded_for(timestamp);
        if let Some(base) = unloaded {
            self.load_indexes(base).await.map_err(|error| FetchError::Io(format!("{self}: {error}")))?;
        }
        let mut lookup = self.0.log.borrow().offset_for_timestamp(timestamp, end);
        while let Some(place) = lookup {
            let walk = HeaderWalk::to_timestamp(timestamp, log_start, place.from, place.to);
            let Some(batch) = self.walk(place.segment, place.to, walk).await? else {
                let log = self.0.log.borrow();
                lookup = log.offset_for_timestamp_after(timestamp, place.segment, place.to, end);
                continue;
            };
            let bytes = self.read_span(place.segment, batch.position, u64::from(batch.bytes)).await?;
            let mut found = None;
            if let Ok(records) = Records::new(&bytes) {
                found = records.flatten().find(|r| r.timestamp >= timestamp && r.offset >= log_start);
            }
            let whole = (batch.base_offset.max(log_start), batch.max_timestamp);
            return Ok(Some(found.map_or(whole, |r| (r.offset, r.timestamp))));
        }
        Ok(None)
    }

    /// The batch boundary at or below `to`.
    pub(super) async fn boundary_at(&self, to: Offset, end: LogPoint) -> Result<LogPoint, FetchError> {
        self.ready_index(to).await?;
        let marks = self.marks();
        let lookup = self.0.log.borrow().locate(to, 1, end).map_err(|error| self.explain(error, &marks))?;
        match lookup {
            Lookup::AtEnd => Ok(end),
            Lookup::Extent(Extent { segment, from, .. }) => {
                let header = self.read_span(segment, from, crate::log::BATCH_HEADER_BYTES as u64).await?;
                let header = crate::log::BatchHeader::parse(&header)
                    .map_err(|e| FetchError::Io(format!("{self}: segment {segment} at {from}: {e}")))?;
                Ok(LogPoint { offset: header.base_offset, segment, position: from })
            }
            Lookup::Walk { segment, from, to: limit } => {
                let walk = HeaderWalk::to_offset(to, from, limit);
                let batch = self.walk(segment, limit, walk).await?;
                let batch =
                    batch.ok_or_else(|| FetchError::Io(format!("{self}: no batch holds offset {to}")))?;
                Ok(LogPoint { offset: batch.base_offset, segment, position: batch.position })
            }
        }
    }

    /// Reads headers until the walk has what it looks for; `None` when it is not there.
    async fn walk(
        &self,
        segment: Offset,
        to: Position,
        mut walk: HeaderWalk,
    ) -> Result<Option<crate::log::FoundBatch>, FetchError> {
        loop {
            let at = walk.position();
            if at >= to {
                return Ok(None);
            }
            let bytes = self.read_span(segment, at, to.since(at).min(WALK_BYTES)).await?;
            match walk.feed(at, &bytes) {
                WalkStep::Found(batch) => return Ok(Some(batch)),
                WalkStep::NeedMore { .. } => {}
                WalkStep::Exhausted => return Ok(None),
                WalkStep::Bad { position, why } => {
                    return Err(FetchError::Io(format!("{self}: segment {segment} at {position}: {why}")));
                }
            }
        }
    }

    /// Reads `bytes` at `at`, from memory or file, into one lease.
    pub(super) async fn read_span(
        &self,
        segment: Offset,
        at: Position,
        bytes: u64,
    ) -> Result<Lease, FetchError> {
        let io = |e: &std::io::Error| FetchError::Io(format!("{self}: {e}"));
        let extent = Extent { segment, from: at, to: at.plus(bytes) };
        while self.needs_file(extent, Egress::Tail) && self.reader_if_open(segment).is_none() {
            self.open_reader(segment).await?;
        }
        let mut pieces = Vec::new();
        self.add_pieces(extent, Egress::Tail, &mut pieces);
        let ring = &self.0.common.ring;
        let mut into = ring.lease(bytes as usize).await.map_err(|e| io(&e))?;
        drop(into.split_off(bytes as usize));
        let mut filled = into.split_to(0);
        for piece in pieces {
            match piece {
                Piece::Memory(lease) => {
                    let mut part = into.split_to(lease.len());
                    part.copy_from_slice(&lease);
                    filled.unsplit(part);
                }
                Piece::File { file, at, bytes } => {
                    let mut left = into.split_to(bytes as usize);
                    let mut position = at.0;
                    while !left.is_empty() {
                        let (read, rest) = ring.read(&file.file, position, left).await;
                        left = rest;
                        let n = read.map_err(|e| io(&file.explain("reading", position, &e)))?;
                        if n == 0 {
                            return Err(io(&file.ends_early(position, at.0 + bytes)));
                        }
                        filled.unsplit(left.split_to(n));
                        position += n as u64;
                    }
                }
            }
        }
        Ok(filled.freeze())
    }

    fn reader_if_open(&self, base: Offset) -> Option<std::rc::Rc<SegmentFile>> {
        self.0.files.borrow().get(base).and_then(|f| f.reader.clone())
    }

    /// Makes the segment of `extent` ready to be sent by `egress`: open, and, once it is sealed, known to be what it was,
    /// and mapped where that is wanted. True when that took time.
    async fn ready_reader(&self, extent: Extent, egress: Egress) -> Result<bool, FetchError> {
        if !self.needs_file(extent, egress) {
            return Ok(false); // Perhaps there is none yet: what is new may be in memory and the journal only.
        }
        let Extent { segment, from, to } = extent;
        let Some(reader) = self.reader_if_open(segment) else {
            self.open_reader(segment).await?;
            return Ok(true);
        };
        if !self.0.files.borrow().get(segment).is_some_and(|f| f.finished) {
            return Ok(false);
        }
        let common = &self.0.common;
        let checked = match reader.is_sealed() {
            true => reader.check_unchanged(&common.ring, from.0, to.0),
            false => match self.0.log.borrow().segment(segment).map(|s| s.end) {
                Some(end) => reader.seal(&common.ring, end),
                None => return Ok(true),
            },
        };
        checked.map_err(|e| FetchError::Io(format!("{self}: {e}")))?;
        match egress {
            Egress::Mmap => Ok(common.maps.ready(&common.ring, &reader).await),
            _ => Ok(false),
        }
    }

    async fn open_reader(&self, base: Offset) -> Result<(), FetchError> {
        let generation = self.generation();
        let opened = self.open_segment(base).await.map_err(|e| FetchError::Io(format!("{self}: {e}")))?;
        if self.generation() != generation {
            return Ok(()); // It may be the file that another one has taken the place of.
        }
        let mut files = self.0.files.borrow_mut();
        let entry = files.get_mut(base).ok_or(FetchError::Closed)?;
        entry.reader.get_or_insert_with(|| opened.into());
        Ok(())
    }

    /// Opens a segment for reading, in every way that somebody here reads.
    pub(super) async fn open_segment(&self, base: Offset) -> std::io::Result<SegmentFile> {
        let ring = &self.0.common.ring;
        let path = self.0.files.borrow().path(base, Ext::Log);
        let file = ring.open(&path, OpenOptions::default()).await?;
        self.check_size(&file, base, &path).await?;
        let direct = match self.0.common.direct_reads(self.0.config.egress) {
            true => Some(ring.open(&path, OpenOptions { direct: true, ..OpenOptions::default() }).await?),
            false => None,
        };
        Ok(SegmentFile::new(base, file, direct, path.into()))
    }

    /// Nobody looked at the file when it was last opened: what the manifest said of it was believed.
    async fn check_size(&self, file: &File, base: Offset, path: &Path) -> std::io::Result<()> {
        let stored = self.0.reach.borrow().stored();
        let end = match stored.segment.cmp(&base) {
            Ordering::Greater => self.0.log.borrow().segment(base).map_or(Position(0), |segment| segment.end),
            Ordering::Equal => stored.position,
            Ordering::Less => Position(0),
        };
        let wanted = self.0.files.borrow().get(base).is_some_and(|f| f.recorded);
        let bytes = if wanted { self.0.common.ring.size(file).await? } else { end.0 };
        match bytes >= end.0 {
            true => Ok(()),
            false => Err(std::io::Error::other(format!(
                "{} ends at position {bytes} and held {end} bytes when it was last closed: somebody cut it. A start that \
                 verifies everything fences what is lost",
                path.display()
            ))),
        }
    }

    /// Up to where of a range the file is taken: memory holds the rest, the end of what there is.
    fn file_part(&self, extent: Extent, egress: Egress) -> Position {
        let Extent { segment, from, to } = extent;
        let staged = self.0.staged.borrow();
        let mut from_file = to.min(staged.file_limit(segment));
        if egress.carries().memory {
            from_file = from_file.min(staged.memory(segment, from, to, &mut drop).max(from));
        }
        from_file.max(from)
    }

    fn needs_file(&self, extent: Extent, egress: Egress) -> bool {
        self.file_part(extent, egress) > extent.from
    }

    /// File pieces first, memory behind.
    fn add_pieces(&self, extent: Extent, egress: Egress, pieces: &mut Vec<Piece>) {
        let Extent { segment, from, to } = extent;
        let from_file = self.file_part(extent, egress);
        let staged = self.0.staged.borrow();
        if from < from_file {
            let file = self.reader_if_open(segment).expect("opened before the pieces are made");
            pieces.push(Piece::File { file, at: from, bytes: from_file.since(from) });
        }
        if from_file < to {
            let began = staged.memory(segment, from_file, to, &mut |lease| pieces.push(Piece::Memory(lease)));
            assert_eq!(began, from_file, "{self}: what the file does not hold for good is in memory");
        }
    }

    fn check_readable(&self) -> Result<(), FetchError> {
        match self.0.state.get() {
            State::Closed => Err(FetchError::Closed),
            State::Open | State::Draining => Ok(()),
        }
    }
}
