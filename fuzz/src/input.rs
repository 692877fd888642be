//! An input of the fuzzer, read from front to back as numbers and pieces.
//!
//! It never ends in an error: where nothing is left, numbers are zero and pieces are empty. So each prefix of an input
//! is an input, which is what lets the fuzzer make them smaller.

/// What is left of an input.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.piece(1).first().copied().unwrap_or(0)
    }

    /// Two bytes, the higher one first.
    pub fn short(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    /// A number below `limit`, from two bytes.
    pub fn below(&mut self, limit: usize) -> usize {
        self.short() % limit.max(1)
    }

    /// Eight bytes, the highest first.
    pub fn long(&mut self) -> i64 {
        (0..8).fold(0, |number, _| number << 8 | i64::from(self.byte()))
    }

    /// The next `bytes` of them, or as many as are left.
    pub fn piece(&mut self, bytes: usize) -> &'a [u8] {
        let (piece, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        piece
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.piece(usize::MAX)
    }
}
