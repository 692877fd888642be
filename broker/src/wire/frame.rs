//! Framing: every request and response is preceded by its length, four bytes, big-endian, itself not counted.

use super::{ApiKey, Decode, Encode, Encoder, Message, RequestHeader, WireError};

/// The bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// Kafka's `socket.request.max.bytes`.
pub const FRAME_BYTES_MAX: usize = 100 * 1024 * 1024;

/// The largest frame of an API that carries no records. Decoded, a hostile one takes up to `EXPANSION_MAX` times its
/// bytes for each level of arrays; a Metadata request naming forty thousand topics of a hundred bytes still fits.
pub const COLD_FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a peer may send at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Any frame, without its prefix.
    pub frame_bytes_max: usize,
    /// A frame of any API but Produce, the only one whose requests carry records.
    pub cold_frame_bytes_max: usize,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self { frame_bytes_max: FRAME_BYTES_MAX, cold_frame_bytes_max: COLD_FRAME_BYTES_MAX }
    }
}

impl FrameLimits {
    /// How long the frame at the start of `bytes` is, prefix included; nothing while the prefix is incomplete. The
    /// rest of the frame need not be there.
    ///
    /// # Errors
    /// `FrameNegative` and `FrameTooLarge`: the stream cannot be read further.
    pub fn peek_frame(&self, bytes: &[u8]) -> Result<Option<usize>, WireError> {
        let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let length = i32::from_be_bytes(*prefix);
        let Ok(length_bytes) = usize::try_from(length) else {
            return Err(WireError::FrameNegative { length });
        };
        if length_bytes > self.frame_bytes_max {
            return Err(WireError::FrameTooLarge { length: length_bytes, max: self.frame_bytes_max });
        }
        Ok(Some(PREFIX_BYTES + length_bytes))
    }

    /// Whether a frame of that length (without prefix) may belong to that API. Ask before receiving the rest.
    ///
    /// # Errors
    /// `FrameTooLarge`.
    pub fn check_api(&self, api: ApiKey, length: usize) -> Result<(), WireError> {
        let max = match api {
            ApiKey::Produce => self.frame_bytes_max,
            _ => self.cold_frame_bytes_max.min(self.frame_bytes_max),
        };
        if length <= max { Ok(()) } else { Err(WireError::FrameTooLarge { length, max }) }
    }
}

/// A frame being written: remembers where its prefix lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameStart(usize);

impl FrameStart {
    pub(super) fn begin(encoder: &mut Encoder<'_>) -> Self {
        let start = Self(encoder.position());
        encoder.i32(0);
        start
    }

    /// Fills in the prefix; `gap_bytes` belong to the frame but lie elsewhere. Returns the frame's length with its
    /// prefix.
    pub(super) fn end(self, encoder: &mut Encoder<'_>, gap_bytes: u64) -> Result<u64, WireError> {
        let end = encoder.finish()?;
        let length = (end - self.0 - PREFIX_BYTES) as u64 + gap_bytes;
        match i32::try_from(length) {
            Ok(length) => encoder.patch_i32(self.0, length),
            Err(_) => return Err(WireError::TooLong { field: "frame", length, max: i32::MAX as u64 }),
        }
        Ok(length + PREFIX_BYTES as u64)
    }
}

/// Writes a whole response frame: prefix, header, body. Returns the frame's length.
///
/// # Errors
/// What `Message::encode_to` refuses; a partly written frame is then left at the end.
pub fn encode_response<M: Message + Encode>(
    encoder: &mut Encoder<'_>,
    correlation_id: i32,
    version: i16,
    body: &M,
) -> Result<u64, WireError> {
    let frame = FrameStart::begin(encoder);
    super::header::encode_response_header(encoder, M::API, version, correlation_id)?;
    body.encode_to(encoder, version)?;
    frame.end(encoder, 0)
}

/// Writes a whole request frame: prefix, header, body. The header's version is that of the body.
///
/// # Errors
/// As [`encode_response`].
///
/// # Panics
/// If the header names another API than the body's.
pub fn encode_request<M: Message + Encode>(
    encoder: &mut Encoder<'_>,
    header: &RequestHeader<'_>,
    body: &M,
) -> Result<u64, WireError> {
    assert_eq!(header.api, M::API, "header and body are of one API");
    let frame = FrameStart::begin(encoder);
    header.encode(encoder)?;
    body.encode_to(encoder, header.version)?;
    frame.end(encoder, 0)
}

/// Reads the body of a response after its header, and the correlation id.
///
/// # Errors
/// What is wrong with the bytes. Bytes after the body are an error here: a broker sends none.
pub fn decode_response<'a, M: Message + Decode<'a>>(
    frame: &'a [u8],
    version: i16,
) -> Result<(i32, M), WireError> {
    let mut decoder = super::Decoder::new(frame);
    let correlation_id = super::header::decode_response_header(&mut decoder, M::API, version)?;
    let body = M::decode_from(&mut decoder, version)?;
    decoder.finish()?;
    Ok((correlation_id, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_measured_before_it_is_whole() {
        let limits = FrameLimits { frame_bytes_max: 1000, cold_frame_bytes_max: 100 };
        assert_eq!(limits.peek_frame(&[0, 0, 3]), Ok(None));
        assert_eq!(limits.peek_frame(&[0, 0, 3, 0xe8]), Ok(Some(1004)));
        assert_eq!(limits.peek_frame(&[0, 0, 0, 0, 9]), Ok(Some(4)));
        let too_large = WireError::FrameTooLarge { length: 1001, max: 1000 };
        assert_eq!(limits.peek_frame(&[0, 0, 3, 0xe9]), Err(too_large));
        assert_eq!(limits.peek_frame(&[0xff; 4]), Err(WireError::FrameNegative { length: -1 }));
        assert!(limits.check_api(ApiKey::Produce, 1000).is_ok());
        assert!(limits.check_api(ApiKey::Metadata, 101).is_err());
        assert!(limits.check_api(ApiKey::Fetch, 101).is_err(), "a fetch asks for records and carries none");
    }
}
