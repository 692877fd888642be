//! Frames whose record bytes lie elsewhere: in a file, in the arena, in the load generator's batch.
//!
//! ```text
//! bytes:  [ length | header | topic .. records length ][ tags | partition .. records length ][ tags ]
//! gaps:                                               ^ 4096 bytes                         ^ 700 bytes
//! ```
//!
//! The frame's length prefix counts the gaps. Several frames may follow one another, to leave in one send.

/// Bytes to be sent and the places where records go between them. Reused, it does not allocate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GappedFrame {
    /// Everything but the records.
    pub bytes: Vec<u8>,
    /// In the order of their positions; none is of zero bytes.
    pub gaps: Vec<Gap>,
}

/// Records that belong between two bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// How many of the frame's own bytes come before.
    pub position: usize,
    /// How many bytes of records belong here.
    pub record_bytes: u64,
}

/// A stretch of what goes to the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// The frame's own bytes, never empty.
    Bytes(&'a [u8]),
    /// Bytes that the sender has elsewhere: the records of the gap with that index.
    Records {
        /// Which gap, from 0.
        gap: usize,
        /// How many bytes.
        record_bytes: u64,
    },
}

impl GappedFrame {
    /// Room for a frame of that size without another allocation.
    pub fn with_capacity(bytes: usize, gaps: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), gaps: Vec::with_capacity(gaps) }
    }

    /// Forgets the frames, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.gaps.clear();
    }

    /// How many bytes the receiver will see.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.len() as u64 + self.gaps.iter().map(|gap| gap.record_bytes).sum::<u64>()
    }

    /// What to send, in order.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        let end = Gap { position: self.bytes.len(), record_bytes: 0 };
        let mut sent = 0;
        self.gaps.iter().copied().chain([end]).enumerate().flat_map(move |(index, gap)| {
            let bytes = &self.bytes[sent..gap.position];
            sent = gap.position;
            let before = (!bytes.is_empty()).then_some(Segment::Bytes(bytes));
            let record_bytes = gap.record_bytes;
            let records = (record_bytes > 0).then_some(Segment::Records { gap: index, record_bytes });
            before.into_iter().chain(records)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_alternate_and_leave_nothing_out() {
        let gap = |position, record_bytes| Gap { position, record_bytes };
        let frame = GappedFrame { bytes: b"abcdef".to_vec(), gaps: vec![gap(2, 10), gap(2, 5), gap(6, 7)] };
        let records = |gap, record_bytes| Segment::Records { gap, record_bytes };
        let wanted =
            [Segment::Bytes(b"ab"), records(0, 10), records(1, 5), Segment::Bytes(b"cdef"), records(2, 7)];
        assert!(frame.segments().eq(wanted));
        assert_eq!(frame.total_bytes(), 28);
        assert_eq!(GappedFrame::default().segments().count(), 0);
    }
}
