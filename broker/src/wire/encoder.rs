//! Writing Kafka's primitive types, into a growing vector, a fixed slice, or nothing at all (to learn the length).
//!
//! Writing does not fail halfway: the first error is kept, later writes are dropped, and `finish` tells. That keeps
//! a hot writer a straight line of puts. One path of code serves all three sinks, so a counted length cannot drift
//! from the bytes.

use super::WireError;
use super::decoder::STRING_BYTES_MAX;

/// Where the bytes go, and the first thing that went wrong.
#[derive(Debug)]
pub struct Encoder<'a> {
    sink: Sink<'a>,
    error: Option<WireError>,
    /// What is being written, for the error.
    pub(super) field: &'static str,
}

#[derive(Debug)]
enum Sink<'a> {
    Growing(&'a mut Vec<u8>),
    Fixed { bytes: &'a mut [u8], filled: usize },
    Counting(usize),
}

impl<'a> Encoder<'a> {
    /// Appends to `bytes`. Positions count from the vector's start, whatever it already held.
    pub fn growing(bytes: &'a mut Vec<u8>) -> Self {
        Self::over(Sink::Growing(bytes))
    }

    /// Fills `bytes` from its start; one byte too many is `NoRoom`.
    pub fn fixed(bytes: &'a mut [u8]) -> Self {
        Self::over(Sink::Fixed { bytes, filled: 0 })
    }

    /// Writes nothing and counts.
    pub fn counting() -> Encoder<'static> {
        Encoder::over(Sink::Counting(0))
    }

    fn over(sink: Sink<'a>) -> Self {
        Self { sink, error: None, field: "message" }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> usize {
        match &self.sink {
            Sink::Growing(bytes) => bytes.len(),
            Sink::Fixed { filled, .. } => *filled,
            Sink::Counting(count) => *count,
        }
    }

    /// The end position, if everything fitted.
    ///
    /// # Errors
    /// The first thing that went wrong; what was written is then of no use.
    pub fn finish(&self) -> Result<usize, WireError> {
        match self.error {
            None => Ok(self.position()),
            Some(error) => Err(error),
        }
    }

    pub(super) fn fail(&mut self, error: WireError) {
        self.error.get_or_insert(error);
    }

    pub(super) fn not_in_version(&mut self, version: i16) {
        self.fail(WireError::NotInVersion { field: self.field, version });
    }

    pub(super) fn null_not_allowed(&mut self, version: i16) {
        let position = self.position();
        self.fail(WireError::NullNotAllowed { field: self.field, position, version });
    }

    #[inline]
    pub(super) fn put(&mut self, new: &[u8]) {
        let position = self.position();
        match &mut self.sink {
            Sink::Growing(bytes) => bytes.extend_from_slice(new),
            Sink::Counting(count) => *count += new.len(),
            Sink::Fixed { bytes, filled } => match bytes.get_mut(position..position + new.len()) {
                Some(room) if self.error.is_none() => {
                    room.copy_from_slice(new);
                    *filled += new.len();
                }
                _ => {
                    let (needed, capacity) = (new.len(), bytes.len());
                    self.fail(WireError::NoRoom { field: self.field, position, needed, capacity });
                }
            },
        }
    }

    /// Overwrites four bytes written earlier.
    pub(super) fn patch_i32(&mut self, position: usize, value: i32) {
        let place = match &mut self.sink {
            Sink::Growing(bytes) => bytes.get_mut(position..position + 4),
            Sink::Fixed { bytes, filled } => bytes[..*filled].get_mut(position..position + 4),
            Sink::Counting(_) => return,
        };
        match place {
            Some(place) => place.copy_from_slice(&value.to_be_bytes()),
            // A fixed sink that was full at the placeholder has kept its error.
            None => assert!(self.error.is_some(), "patched bytes were written"),
        }
    }

    pub(super) fn i16(&mut self, value: i16) {
        self.put(&value.to_be_bytes());
    }

    pub(super) fn i32(&mut self, value: i32) {
        self.put(&value.to_be_bytes());
    }

    pub(super) fn i64(&mut self, value: i64) {
        self.put(&value.to_be_bytes());
    }

    pub(super) fn uvarint(&mut self, mut value: u32) {
        let mut bytes = [0u8; 5];
        let mut length = 0;
        while value >= 0x80 {
            bytes[length] = (value as u8) | 0x80;
            value >>= 7;
            length += 1;
        }
        bytes[length] = value as u8;
        self.put(&bytes[..=length]);
    }

    /// The length before bytes or an array: i32, or varint of the length plus one.
    pub(super) fn length(&mut self, flexible: bool, length: u64) {
        match i32::try_from(length) {
            Ok(length) if flexible => self.uvarint(length as u32 + 1),
            Ok(length) => self.i32(length),
            Err(_) => self.fail(WireError::TooLong { field: self.field, length, max: i32::MAX as u64 }),
        }
    }

    pub(super) fn null_length(&mut self, flexible: bool) {
        if flexible { self.uvarint(0) } else { self.i32(-1) }
    }

    pub(super) fn string(&mut self, flexible: bool, text: &str) {
        if text.len() > STRING_BYTES_MAX {
            let (length, max) = (text.len() as u64, STRING_BYTES_MAX as u64);
            return self.fail(WireError::TooLong { field: self.field, length, max });
        }
        if flexible {
            self.uvarint(text.len() as u32 + 1)
        } else {
            self.i16(text.len() as i16)
        }
        self.put(text.as_bytes());
    }

    pub(super) fn nullable_string(&mut self, flexible: bool, text: Option<&str>) {
        match text {
            Some(text) => self.string(flexible, text),
            None if flexible => self.uvarint(0),
            None => self.i16(-1),
        }
    }

    /// The end of a structure that has no tagged field to say: in flexible versions, a count of none.
    pub(super) fn no_tagged_fields(&mut self, flexible: bool) {
        if flexible {
            self.uvarint(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_sinks_agree_and_a_full_slice_says_so() {
        let write = |encoder: &mut Encoder<'_>| {
            encoder.i32(0);
            encoder.string(true, "topic");
            encoder.uvarint(300);
            encoder.patch_i32(0, 77);
            encoder.finish()
        };
        let mut vector = Vec::new();
        assert_eq!(write(&mut Encoder::growing(&mut vector)), Ok(12));
        assert_eq!(vector, b"\0\0\0\x4d\x06topic\xac\x02");
        assert_eq!(write(&mut Encoder::counting()), Ok(12));
        let mut slice = [0; 12];
        assert_eq!(write(&mut Encoder::fixed(&mut slice)), Ok(12));
        assert_eq!(slice, *vector);
        for capacity in 0..12 {
            let refused = write(&mut Encoder::fixed(&mut slice[..capacity]));
            assert!(matches!(refused, Err(WireError::NoRoom { .. })), "{capacity}: {refused:?}");
        }
    }

    #[test]
    fn what_no_prefix_can_hold_is_an_error() {
        let mut vector = Vec::new();
        let mut encoder = Encoder::growing(&mut vector);
        encoder.string(false, &"x".repeat(STRING_BYTES_MAX + 1));
        assert!(matches!(encoder.finish(), Err(WireError::TooLong { length: 32768, max: 32767, .. })));
        let mut encoder = Encoder::growing(&mut vector);
        encoder.length(true, 1 << 31);
        assert!(matches!(encoder.finish(), Err(WireError::TooLong { .. })));
    }
}
