//! How each Rust type stands on the wire: the two traits that every field of a message table has.
//!
//! Encoding follows the version: lengths are varints and structures end in tagged fields where it is flexible.
//! Null is the business of `Option<T>`, and only types that Kafka can write as null are `Nullable`.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use super::{ApiKey, Decoder, Encoder, ErrorCode, WireError};

/// A topic id, directory id or the like: sixteen bytes, zeros when there is none.
pub type Uuid = [u8; 16];

/// How many times its least bytes on the wire an array element may take in memory: what bounds the memory that a
/// hostile frame can claim, for each level of arrays.
pub const EXPANSION_MAX: usize = 32;

/// A version that is known to be served: only `ApiKey::version` makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub(super) number: i16,
    pub(super) flexible: bool,
}

impl Version {
    /// The number as it stands in the request header.
    pub fn number(self) -> i16 {
        self.number
    }

    /// Whether lengths are varints and structures carry tagged fields.
    pub fn is_flexible(self) -> bool {
        self.flexible
    }
}

/// A value that can be read. Strings, bytes and views borrow from the frame.
pub trait Decode<'a>: Sized {
    /// The least bytes any such value takes in this version; never zero.
    fn bytes_min(version: Version) -> usize;
    /// Reads one value.
    ///
    /// # Errors
    /// Whatever is wrong with the bytes, with the field and position.
    fn decode(decoder: &mut Decoder<'a>, version: Version) -> Result<Self, WireError>;
}

/// A readable value that has a null on the wire.
pub trait DecodeNullable<'a>: Decode<'a> {
    /// The least bytes, null included.
    fn nullable_bytes_min(version: Version) -> usize;
    /// Reads one value or null.
    ///
    /// # Errors
    /// As `decode`.
    fn decode_nullable(decoder: &mut Decoder<'a>, version: Version) -> Result<Option<Self>, WireError>;
}

/// A value that can be written.
pub trait Encode {
    /// Writes one value; what goes wrong is kept by the encoder.
    fn encode(&self, encoder: &mut Encoder<'_>, version: Version);
    /// Puts the default into every field that the version does not carry: what the peer will read.
    fn prune(&mut self, _version: Version) {}
}

/// A writable value that has a null on the wire.
pub trait EncodeNullable: Encode + Sized {
    /// Writes one value or null.
    fn encode_nullable(value: Option<&Self>, encoder: &mut Encoder<'_>, version: Version);
}

/// A whole request or response body.
pub trait Message: Sized {
    /// The API it belongs to, which knows the versions.
    const API: ApiKey;

    /// Reads a body. Bytes may follow; `Decoder::finish` refuses them.
    ///
    /// # Errors
    /// `UnsupportedVersion`, or what is wrong with the bytes.
    fn decode_from<'a>(decoder: &mut Decoder<'a>, version: i16) -> Result<Self, WireError>
    where
        Self: Decode<'a>,
    {
        Self::decode(decoder, Self::API.version(version)?)
    }

    /// Writes a body.
    ///
    /// # Errors
    /// `UnsupportedVersion`, or the first value that cannot be written; the bytes are then of no use.
    fn encode_to(&self, encoder: &mut Encoder<'_>, version: i16) -> Result<(), WireError>
    where
        Self: Encode,
    {
        self.encode(encoder, Self::API.version(version)?);
        encoder.finish().map(|_| ())
    }

    /// How many bytes `encode_to` will write.
    ///
    /// # Errors
    /// As `encode_to`.
    fn encoded_len(&self, version: i16) -> Result<usize, WireError>
    where
        Self: Encode,
    {
        let mut encoder = Encoder::counting();
        self.encode_to(&mut encoder, version)?;
        encoder.finish()
    }

    /// The message as a peer of that version reads it.
    ///
    /// # Errors
    /// `UnsupportedVersion`.
    fn pruned(mut self, version: i16) -> Result<Self, WireError>
    where
        Self: Encode,
    {
        self.prune(Self::API.version(version)?);
        Ok(self)
    }
}

macro_rules! numbers {
    ($($number:ty),*) => { $(
        impl<'a> Decode<'a> for $number {
            fn bytes_min(_: Version) -> usize {
                size_of::<$number>()
            }
            #[inline]
            fn decode(decoder: &mut Decoder<'a>, _: Version) -> Result<Self, WireError> {
                Ok(<$number>::from_be_bytes(decoder.array()?))
            }
        }
        impl Encode for $number {
            #[inline]
            fn encode(&self, encoder: &mut Encoder<'_>, _: Version) {
                encoder.put(&self.to_be_bytes());
            }
        }
    )* };
}
numbers!(i8, i16, u16, i32, u32, i64, f64);

impl<'a> Decode<'a> for bool {
    fn bytes_min(_: Version) -> usize {
        1
    }
    fn decode(decoder: &mut Decoder<'a>, _: Version) -> Result<Self, WireError> {
        Ok(decoder.u8()? != 0)
    }
}

impl Encode for bool {
    fn encode(&self, encoder: &mut Encoder<'_>, _: Version) {
        encoder.put(&[u8::from(*self)]);
    }
}

impl<'a> Decode<'a> for Uuid {
    fn bytes_min(_: Version) -> usize {
        16
    }
    fn decode(decoder: &mut Decoder<'a>, _: Version) -> Result<Self, WireError> {
        decoder.array()
    }
}

impl Encode for Uuid {
    fn encode(&self, encoder: &mut Encoder<'_>, _: Version) {
        encoder.put(self);
    }
}

/// A number that we do not know is read as UNKNOWN_SERVER_ERROR, as Kafka's own clients do.
impl<'a> Decode<'a> for ErrorCode {
    fn bytes_min(_: Version) -> usize {
        2
    }
    fn decode(decoder: &mut Decoder<'a>, _: Version) -> Result<Self, WireError> {
        Ok(ErrorCode::from_code(decoder.i16()?).unwrap_or(ErrorCode::UnknownServerError))
    }
}

impl Encode for ErrorCode {
    fn encode(&self, encoder: &mut Encoder<'_>, _: Version) {
        encoder.i16(self.code());
    }
}

fn string_bytes_min(version: Version) -> usize {
    if version.flexible { 1 } else { 2 }
}

fn length_bytes_min(version: Version) -> usize {
    if version.flexible { 1 } else { 4 }
}

/// Reads what may not be null, by way of its nullable form.
fn decode_present<'a, T: DecodeNullable<'a>>(
    decoder: &mut Decoder<'a>,
    version: Version,
) -> Result<T, WireError> {
    T::decode_nullable(decoder, version)?.ok_or_else(|| decoder.null_not_allowed(version.number))
}

macro_rules! strings {
    ($($text:ty),*) => { $(
        impl<'a> Decode<'a> for $text {
            fn bytes_min(version: Version) -> usize {
                string_bytes_min(version)
            }
            fn decode(decoder: &mut Decoder<'a>, version: Version) -> Result<Self, WireError> {
                decode_present(decoder, version)
            }
        }
        impl<'a> DecodeNullable<'a> for $text {
            fn nullable_bytes_min(version: Version) -> usize {
                string_bytes_min(version)
            }
            fn decode_nullable(
                decoder: &mut Decoder<'a>,
                version: Version,
            ) -> Result<Option<Self>, WireError> {
                Ok(decoder.nullable_string(version.flexible)?.map(Into::into))
            }
        }
        impl<'a> Encode for $text {
            fn encode(&self, encoder: &mut Encoder<'_>, version: Version) {
                encoder.string(version.flexible, self);
            }
        }
        impl<'a> EncodeNullable for $text {
            fn encode_nullable(value: Option<&Self>, encoder: &mut Encoder<'_>, version: Version) {
                encoder.nullable_string(version.flexible, value.map(|text| &**text));
            }
        }
    )* };
}
strings!(&'a str, Cow<'a, str>, String);

impl<'a> Decode<'a> for &'a [u8] {
    fn bytes_min(version: Version) -> usize {
        length_bytes_min(version)
    }
    fn decode(decoder: &mut Decoder<'a>, version: Version) -> Result<Self, WireError> {
        decode_present(decoder, version)
    }
}

impl<'a> DecodeNullable<'a> for &'a [u8] {
    fn nullable_bytes_min(version: Version) -> usize {
        length_bytes_min(version)
    }
    fn decode_nullable(decoder: &mut Decoder<'a>, version: Version) -> Result<Option<Self>, WireError> {
        let range = decoder.nullable_bytes(version.flexible)?;
        Ok(range.map(|range| decoder.slice(range)))
    }
}

impl Encode for &[u8] {
    fn encode(&self, encoder: &mut Encoder<'_>, version: Version) {
        encoder.length(version.flexible, self.len() as u64);
        encoder.put(self);
    }
}

impl EncodeNullable for &[u8] {
    fn encode_nullable(value: Option<&Self>, encoder: &mut Encoder<'_>, version: Version) {
        match value {
            Some(bytes) => bytes.encode(encoder, version),
            None => encoder.null_length(version.flexible),
        }
    }
}

/// Records: not the bytes but the place where they lie in the slice that is being decoded.
impl<'a> Decode<'a> for Range<usize> {
    fn bytes_min(version: Version) -> usize {
        length_bytes_min(version)
    }
    fn decode(decoder: &mut Decoder<'a>, version: Version) -> Result<Self, WireError> {
        decode_present(decoder, version)
    }
}

impl<'a> DecodeNullable<'a> for Range<usize> {
    fn nullable_bytes_min(version: Version) -> usize {
        length_bytes_min(version)
    }
    fn decode_nullable(decoder: &mut Decoder<'a>, version: Version) -> Result<Option<Self>, WireError> {
        decoder.nullable_bytes(version.flexible)
    }
}

impl<'a, T: DecodeNullable<'a>> Decode<'a> for Option<T> {
    fn bytes_min(version: Version) -> usize {
        T::nullable_bytes_min(version)
    }
    fn decode(decoder: &mut Decoder<'a>, version: Version) -> Result<Self, WireError> {
        T::decode_nullable(decoder, version)
    }
}

impl<T: EncodeNullable> Encode for Option<T> {
    fn encode(&self, encoder: &mut Encoder<'_>, version: Version) {
        T::encode_nullable(self.as_ref(), encoder, version);
    }
    fn prune(&mut self, version: Version) {
        if let Some(value) = self {
            value.prune(version);
        }
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Vec<T> {
    fn bytes_min(version: Version) -> usize {
        length_bytes_min(version)
    }
    fn decode(decoder: &mut Decoder<'a>, version: Version) -> Result<Self, WireError> {
        decode_present(decoder, version)
    }
}

impl<'a, T: Decode<'a>> DecodeNullable<'a> for Vec<T> {
    fn nullable_bytes_min(version: Version) -> usize {
        length_bytes_min(version)
    }
    fn decode_nullable(decoder: &mut Decoder<'a>, version: Version) -> Result<Option<Self>, WireError> {
        let bytes_min = T::bytes_min(version);
        assert!(size_of::<T>() <= EXPANSION_MAX * bytes_min, "an element that grows too much when decoded");
        let Some(count) = decoder.nullable_count(version.flexible, bytes_min)? else { return Ok(None) };
        // The count fits the bytes that remain, so this is a small multiple of them.
        let mut elements = Vec::with_capacity(count);
        let field = decoder.field;
        for _ in 0..count {
            decoder.field = field;
            elements.push(T::decode(decoder, version)?);
        }
        Ok(Some(elements))
    }
}

impl<T: Encode> Encode for Vec<T> {
    fn encode(&self, encoder: &mut Encoder<'_>, version: Version) {
        encode_elements(self, encoder, version);
    }
    fn prune(&mut self, version: Version) {
        for element in self {
            element.prune(version);
        }
    }
}

impl<T: Encode> EncodeNullable for Vec<T> {
    fn encode_nullable(value: Option<&Self>, encoder: &mut Encoder<'_>, version: Version) {
        match value {
            Some(elements) => elements.encode(encoder, version),
            None => encoder.null_length(version.flexible),
        }
    }
}

/// Writes an array from a slice.
pub(super) fn encode_elements<T: Encode>(elements: &[T], encoder: &mut Encoder<'_>, version: Version) {
    let field = encoder.field;
    encoder.length(version.flexible, elements.len() as u64);
    for element in elements {
        encoder.field = field;
        element.encode(encoder, version);
    }
}

/// An array left where it lies: walked once when it is decoded, so that walking it again cannot fail. It allocates
/// nothing; each pass reads the elements anew.
pub struct View<'a, T> {
    /// Stands at the first element.
    start: Decoder<'a>,
    count: usize,
    version: Version,
    element: PhantomData<fn() -> T>,
}

impl<'a, T: Decode<'a>> View<'a, T> {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The elements in their order.
    pub fn iter(&self) -> ViewIter<'a, T> {
        ViewIter { rest: *self }
    }
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<T> Default for View<'_, T> {
    fn default() -> Self {
        let version = Version { number: 0, flexible: false };
        Self { start: Decoder::new(&[]), count: 0, version, element: PhantomData }
    }
}

impl<'a, T: Decode<'a> + fmt::Debug> fmt::Debug for View<'a, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a, T: Decode<'a>> IntoIterator for View<'a, T> {
    type Item = T;
    type IntoIter = ViewIter<'a, T>;
    fn into_iter(self) -> ViewIter<'a, T> {
        self.iter()
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for View<'a, T> {
    fn bytes_min(version: Version) -> usize {
        length_bytes_min(version)
    }
    fn decode(decoder: &mut Decoder<'a>, version: Version) -> Result<Self, WireError> {
        decode_present(decoder, version)
    }
}

impl<'a, T: Decode<'a>> DecodeNullable<'a> for View<'a, T> {
    fn nullable_bytes_min(version: Version) -> usize {
        length_bytes_min(version)
    }
    fn decode_nullable(decoder: &mut Decoder<'a>, version: Version) -> Result<Option<Self>, WireError> {
        let Some(count) = decoder.nullable_count(version.flexible, T::bytes_min(version))? else {
            return Ok(None);
        };
        let view = Self { start: *decoder, count, version, element: PhantomData };
        let field = decoder.field;
        for _ in 0..count {
            decoder.field = field;
            T::decode(decoder, version)?;
        }
        Ok(Some(view))
    }
}

/// The elements of a [`View`].
#[derive(Clone)]
pub struct ViewIter<'a, T> {
    /// What is still to come.
    rest: View<'a, T>,
}

impl<'a, T: Decode<'a>> Iterator for ViewIter<'a, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.rest.count = self.rest.count.checked_sub(1)?;
        let element = T::decode(&mut self.rest.start, self.rest.version);
        Some(element.expect("the same bytes were read without error when the view was made"))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.rest.count, Some(self.rest.count))
    }
}

impl<'a, T: Decode<'a>> ExactSizeIterator for ViewIter<'a, T> {}
