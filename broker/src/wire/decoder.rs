//! Reading Kafka's primitive types out of a slice.
//!
//! The decoder trusts no length that the bytes present do not bear out: every read is held against what remains
//! before anything is sliced, and an array count against the least its elements could take before anything is
//! allocated. Positions are places in the slice it was made over, so a range it hands out can be used on the frame.

use std::ops::Range;

use super::WireError;

/// The longest string Kafka accepts, whatever the encoding of its length.
pub const STRING_BYTES_MAX: usize = i16::MAX as usize;

/// A place in a slice of bytes from outside. Cheap to copy: a copy is a second reader.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    position: usize,
    /// What is being read, for the error.
    pub(super) field: &'static str,
}

impl<'a> Decoder<'a> {
    /// Reads from the first byte of `bytes` to the last.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0, field: "message" }
    }

    /// How many bytes have been read.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// Holds the sender to its word: nothing may follow. Kafka itself tolerates bytes after a request, so this is
    /// the caller's choice.
    ///
    /// # Errors
    /// `TrailingBytes` if anything is left.
    pub fn finish(&self) -> Result<(), WireError> {
        match self.remaining() {
            0 => Ok(()),
            remaining => {
                Err(WireError::TrailingBytes { field: self.field, position: self.position, remaining })
            }
        }
    }

    /// The next `needed` bytes.
    #[inline]
    pub(super) fn take(&mut self, needed: usize) -> Result<&'a [u8], WireError> {
        let range = self.take_range(needed)?;
        Ok(&self.bytes[range])
    }

    #[inline]
    pub(super) fn take_range(&mut self, needed: usize) -> Result<Range<usize>, WireError> {
        let remaining = self.remaining();
        if needed > remaining {
            let (field, position) = (self.field, self.position);
            return Err(WireError::Truncated { field, position, needed, remaining });
        }
        let start = self.position;
        self.position += needed;
        Ok(start..self.position)
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("take gives exactly the bytes asked for"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn i16(&mut self) -> Result<i16, WireError> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    pub(super) fn i32(&mut self) -> Result<i32, WireError> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    /// An unsigned varint of at most 32 bits: seven bits a byte, lowest first.
    #[inline]
    pub(super) fn uvarint(&mut self) -> Result<u32, WireError> {
        let start = self.position;
        let mut value = 0u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return u32::try_from(value)
                    .map_err(|_| WireError::VarintTooLong { field: self.field, position: start });
            }
        }
        Err(WireError::VarintTooLong { field: self.field, position: start })
    }

    /// A length as written before bytes and arrays: i32 with -1 for null, or in flexible versions a varint of the
    /// length plus one with 0 for null. Not yet held against anything.
    #[inline]
    fn length(&mut self, flexible: bool) -> Result<Option<usize>, WireError> {
        let position = self.position;
        if flexible {
            let plus_one = self.uvarint()?;
            return Ok(plus_one.checked_sub(1).map(|length| length as usize));
        }
        let length = self.i32()?;
        self.signed_length(i64::from(length), position)
    }

    fn signed_length(&self, length: i64, position: usize) -> Result<Option<usize>, WireError> {
        match length {
            -1 => Ok(None),
            0.. => Ok(Some(length as usize)),
            _ => Err(WireError::BadLength { field: self.field, position, length }),
        }
    }

    pub(super) fn nullable_string(&mut self, flexible: bool) -> Result<Option<&'a str>, WireError> {
        let position = self.position;
        let length = if flexible {
            self.length(true)?
        } else {
            let length = self.i16()?;
            self.signed_length(i64::from(length), position)?
        };
        let Some(length) = length else { return Ok(None) };
        if length > STRING_BYTES_MAX {
            return Err(WireError::BadLength { field: self.field, position, length: length as i64 });
        }
        let position = self.position;
        let bytes = self.take(length)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(WireError::NotUtf8 { field: self.field, position }),
        }
    }

    pub(super) fn nullable_bytes(&mut self, flexible: bool) -> Result<Option<Range<usize>>, WireError> {
        match self.length(flexible)? {
            Some(length) => self.take_range(length).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn slice(&self, range: Range<usize>) -> &'a [u8] {
        &self.bytes[range]
    }

    /// An array's count, believed only as far as the remaining bytes could hold that many elements.
    pub(super) fn nullable_count(
        &mut self,
        flexible: bool,
        bytes_min: usize,
    ) -> Result<Option<usize>, WireError> {
        assert!(bytes_min > 0, "an element takes at least a byte");
        let Some(count) = self.length(flexible)? else { return Ok(None) };
        let remaining = self.remaining();
        if count > remaining / bytes_min {
            let (field, position) = (self.field, self.position);
            return Err(WireError::CountBeyondBytes { field, position, count, bytes_min, remaining });
        }
        Ok(Some(count))
    }

    /// One tagged field: its tag, and a decoder that ends where the field ends.
    pub(super) fn tagged_field(&mut self) -> Result<(u32, Decoder<'a>), WireError> {
        self.field = "tagged field";
        let tag = self.uvarint()?;
        let size = self.uvarint()? as usize;
        let range = self.take_range(size)?;
        let value = Decoder { bytes: &self.bytes[..range.end], position: range.start, field: self.field };
        Ok((tag, value))
    }

    /// Tagged fields of which none is known.
    pub(super) fn skip_tagged_fields(&mut self) -> Result<(), WireError> {
        self.field = "tagged fields";
        for _ in 0..self.uvarint()? {
            self.tagged_field()?;
        }
        Ok(())
    }

    pub(super) fn null_not_allowed(&self, version: i16) -> WireError {
        WireError::NullNotAllowed { field: self.field, position: self.position, version }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_end_at_32_bits() {
        assert_eq!(Decoder::new(&[0xff, 0xff, 0xff, 0xff, 0x0f]).uvarint(), Ok(u32::MAX));
        let too_long = Err(WireError::VarintTooLong { field: "message", position: 0 });
        assert_eq!(Decoder::new(&[0xff, 0xff, 0xff, 0xff, 0x1f]).uvarint(), too_long);
        assert_eq!(Decoder::new(&[0x80; 9]).uvarint(), too_long);
    }

    #[test]
    fn a_count_is_held_against_the_bytes_that_remain() {
        let bytes = [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        let refused = Decoder::new(&bytes).nullable_count(false, 2);
        assert!(matches!(refused, Err(WireError::CountBeyondBytes { count: 0x7fff_ffff, remaining: 4, .. })));
        assert_eq!(Decoder::new(&[0, 0, 0, 2, 0, 0, 0, 0]).nullable_count(false, 2), Ok(Some(2)));
        assert!(Decoder::new(&[0, 0, 0, 3, 0, 0, 0, 0]).nullable_count(false, 2).is_err());
        assert!(Decoder::new(&[0xff, 0xff, 0xff, 0xfe]).nullable_count(false, 1).is_err());
    }

    #[test]
    fn tagged_fields_end_where_they_say() {
        // Two fields: tag 5 of two bytes, tag 300 of none; then one byte that is not theirs.
        let mut decoder = Decoder::new(&[2, 5, 2, 0xaa, 0xbb, 0xac, 0x02, 0, 9]);
        decoder.skip_tagged_fields().unwrap();
        assert_eq!((decoder.position(), decoder.remaining()), (8, 1));
        assert!(decoder.finish().is_err());
        assert!(Decoder::new(&[1, 5, 3, 0xaa, 0xbb]).skip_tagged_fields().is_err());
    }
}
