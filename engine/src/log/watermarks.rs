//! The watermarks of a partition: how far it is readable, visible, written and safe.
//!
//! They move through one setter that asserts their order, and move back only through `truncate`. A watermark is a
//! [`LogPoint`]: an offset and the place where it lies, so that nobody has to look the place up again.

use crate::types::{Offset, Position};

/// A batch boundary: an offset and where it lies.
///
/// The derived order is by offset first; the end of a segment and the start of the next are the same offset, in
/// that order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPoint {
    /// The first offset that is not before this point.
    pub offset: Offset,
    /// The base offset of the segment.
    pub segment: Offset,
    /// The byte place in that segment.
    pub position: Position,
}

impl LogPoint {
    /// Beyond every log.
    pub const BEYOND: LogPoint =
        LogPoint { offset: Offset(i64::MAX), segment: Offset(i64::MAX), position: Position(u64::MAX) };
}

/// The values of all watermarks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The earliest readable offset.
    pub log_start: Offset,
    /// The end of what consumers may see.
    pub high_watermark: LogPoint,
    /// The end of what survives power loss.
    pub durable: LogPoint,
    /// The end of completed writes.
    pub written: LogPoint,
    /// Where the next batch goes.
    pub log_end: LogPoint,
}

/// The watermarks, in order: log start <= high watermark <= log end, durable <= written <= log end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks(Marks);

impl Watermarks {
    /// The watermarks of a log as found.
    ///
    /// # Panics
    /// When they are out of order.
    #[must_use]
    pub fn new(marks: Marks) -> Watermarks {
        marks.assert_order();
        Watermarks(marks)
    }

    /// Moves watermarks forward; those that stay are passed as they are.
    ///
    /// # Panics
    /// When one would move back, or the order break: a log with a broken invariant must not go on.
    pub fn set(&mut self, next: Marks) {
        next.assert_order();
        let now = &self.0;
        assert!(
            now.log_start <= next.log_start,
            "log start {} moves back to {}",
            now.log_start,
            next.log_start
        );
        assert_forward("high watermark", now.high_watermark, next.high_watermark);
        assert_forward("durable", now.durable, next.durable);
        assert_forward("written", now.written, next.written);
        assert_forward("log end", now.log_end, next.log_end);
        self.0 = next;
    }

    /// Moves every watermark that is beyond `at` back to it, and the log end exactly there.
    ///
    /// # Panics
    /// When `at` is beyond the log end or before the log start.
    pub fn truncate(&mut self, at: LogPoint) {
        let now = self.0;
        assert!(
            at.offset <= now.log_end.offset,
            "truncation to {at:?}, beyond the log end {:?}",
            now.log_end
        );
        assert!(at.offset >= now.log_start, "truncation to {at:?}, before the log start {}", now.log_start);
        // At the same offset a mark may name the start of a segment that the truncation removes.
        let back = |mark: LogPoint| if mark >= at { at } else { mark };
        let next = Marks {
            log_start: now.log_start,
            high_watermark: back(now.high_watermark),
            durable: back(now.durable),
            written: back(now.written),
            log_end: at,
        };
        next.assert_order();
        self.0 = next;
    }

    /// All values.
    #[must_use]
    pub fn marks(&self) -> Marks {
        self.0
    }

    /// The earliest readable offset.
    #[must_use]
    pub fn log_start(&self) -> Offset {
        self.0.log_start
    }

    /// The end of what consumers may see.
    #[must_use]
    pub fn high_watermark(&self) -> LogPoint {
        self.0.high_watermark
    }

    /// The end of what survives power loss.
    #[must_use]
    pub fn durable(&self) -> LogPoint {
        self.0.durable
    }

    /// The end of completed writes.
    #[must_use]
    pub fn written(&self) -> LogPoint {
        self.0.written
    }

    /// Where the next batch goes.
    #[must_use]
    pub fn log_end(&self) -> LogPoint {
        self.0.log_end
    }
}

impl Marks {
    fn assert_order(&self) {
        let (start, visible) = (self.log_start, self.high_watermark.offset);
        assert!(start <= visible, "log start {start} beyond the high watermark {visible}");
        assert_before("high watermark", self.high_watermark, "log end", self.log_end);
        assert_before("durable", self.durable, "written", self.written);
        assert_before("written", self.written, "log end", self.log_end);
    }
}

fn assert_before(name: &str, mark: LogPoint, later_name: &str, later: LogPoint) {
    assert!(mark.offset <= later.offset, "{name} {mark:?} beyond {later_name} {later:?}");
    if mark.segment == later.segment {
        assert!(mark.position <= later.position, "{name} {mark:?} beyond {later_name} {later:?}");
    } else if mark.offset < later.offset {
        assert!(
            mark.segment < later.segment,
            "{name} {mark:?} in a later segment than {later_name} {later:?}"
        );
    }
}

fn assert_forward(name: &str, from: LogPoint, to: LogPoint) {
    assert_before(name, from, "its next value", to);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(offset: i64, segment: i64, position: u64) -> LogPoint {
        LogPoint { offset: Offset(offset), segment: Offset(segment), position: Position(position) }
    }

    fn worked() -> Marks {
        Marks {
            log_start: Offset(10),
            high_watermark: point(31, 0, 3000),
            durable: point(31, 0, 3000),
            written: point(101, 101, 0),
            log_end: point(120, 101, 700),
        }
    }

    #[test]
    fn forward_is_allowed() {
        let mut watermarks = Watermarks::new(worked());
        watermarks.set(Marks { durable: point(101, 0, 9000), ..worked() });
        assert_eq!(watermarks.durable().offset, Offset(101));
    }

    #[test]
    fn truncation_moves_back_what_is_beyond() {
        let mut watermarks = Watermarks::new(worked());
        watermarks.truncate(point(101, 0, 9000));
        assert_eq!(watermarks.log_end(), point(101, 0, 9000));
        assert_eq!(watermarks.written(), point(101, 0, 9000), "its segment is gone");
        assert_eq!(watermarks.durable(), point(31, 0, 3000));
    }

    #[test]
    #[should_panic(expected = "moves back")]
    fn log_start_may_not_move_back() {
        Watermarks::new(worked()).set(Marks { log_start: Offset(9), ..worked() });
    }

    #[test]
    #[should_panic(expected = "durable")]
    fn durable_may_not_pass_written() {
        let _ = Watermarks::new(Marks { durable: point(102, 101, 10), ..worked() });
    }

    #[test]
    #[should_panic(expected = "its next value")]
    fn written_may_not_move_back() {
        Watermarks::new(worked()).set(Marks { written: point(90, 0, 8000), ..worked() });
    }

    #[test]
    #[should_panic(expected = "beyond log end")]
    fn positions_are_ordered_too() {
        let _ = Watermarks::new(Marks { written: point(110, 101, 701), ..worked() });
    }

    #[test]
    #[should_panic(expected = "before the log start")]
    fn truncation_stops_at_the_log_start() {
        Watermarks::new(worked()).truncate(point(5, 0, 100));
    }
}
