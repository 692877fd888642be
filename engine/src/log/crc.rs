//! CRC-32C (Castagnoli), the checksum of Kafka's record batches.
//!
//! The work is done by `crc-fast`, which picks the carry-less multiply instructions of the machine; here it
//! only gets a name and a type. The one-shot form serves whole batches in memory, [`Crc32c`] serves batches
//! that arrive in pieces: a recovery walk never holds a batch larger than its chunk.

use crc_fast::{CrcAlgorithm, Digest};

/// The CRC-32C of `bytes`.
///
/// ```
/// assert_eq!(ringlog::log::crc32c(b"123456789"), 0xe306_9283);
/// ```
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// A CRC-32C computed piece by piece.
#[derive(Clone)]
pub struct Crc32c(Digest);

impl Crc32c {
    /// The checksum of nothing yet.
    #[must_use]
    pub fn new() -> Crc32c {
        Crc32c(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Takes the next bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes so far.
    #[must_use]
    pub fn value(&self) -> u32 {
        u32::try_from(self.0.finalize()).expect("a 32-bit CRC fits 32 bits")
    }
}

impl Default for Crc32c {
    fn default() -> Crc32c {
        Crc32c::new()
    }
}

impl std::fmt::Debug for Crc32c {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crc32c({:#010x})", self.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_another_implementation(bytes: Vec<u8>, cut in 0usize..4096) {
            let cut = cut.min(bytes.len());
            prop_assert_eq!(crc32c(&bytes), ::crc32c::crc32c(&bytes));
            let mut pieces = Crc32c::new();
            pieces.update(&bytes[..cut]);
            pieces.update(&bytes[cut..]);
            prop_assert_eq!(pieces.value(), crc32c(&bytes));
        }
    }
}
