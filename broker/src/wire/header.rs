//! The headers before every body. Request: api key, version, correlation id, client id, and from header version 2 on
//! tagged fields. Response: correlation id, and from header version 1 on tagged fields.

use super::{ApiKey, Decoder, Encoder, WireError};

/// Who asks what, in which version, and how the answer is to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader<'a> {
    /// What is asked.
    pub api: ApiKey,
    /// As the client wrote it: `ApiKey::version` takes or refuses it.
    pub version: i16,
    /// Comes back in the response.
    pub correlation_id: i32,
    /// The client's name for itself.
    pub client_id: Option<&'a str>,
}

impl<'a> RequestHeader<'a> {
    /// Reads the header and leaves the decoder at the body. The version is not checked here, because an ApiVersions
    /// request in a version from the future is answered, by its correlation id.
    ///
    /// # Errors
    /// `UnknownApi`, or what is wrong with the bytes.
    pub fn decode(decoder: &mut Decoder<'a>) -> Result<Self, WireError> {
        decoder.field = "RequestHeader.request_api_key";
        let key = decoder.i16()?;
        decoder.field = "RequestHeader.request_api_version";
        let version = decoder.i16()?;
        let Some(api) = ApiKey::from_number(key) else { return Err(WireError::UnknownApi { key, version }) };
        decoder.field = "RequestHeader.correlation_id";
        let correlation_id = decoder.i32()?;
        decoder.field = "RequestHeader.client_id";
        // Never compact, so that a broker can read it whatever the version.
        let client_id = decoder.nullable_string(false)?;
        if api.request_header_version(version) >= 2 {
            decoder.skip_tagged_fields()?;
        }
        Ok(Self { api, version, correlation_id, client_id })
    }

    /// Writes the header.
    ///
    /// # Errors
    /// A client id that is too long, or no room.
    pub fn encode(&self, encoder: &mut Encoder<'_>) -> Result<(), WireError> {
        encoder.field = "RequestHeader";
        encoder.i16(self.api.number());
        encoder.i16(self.version);
        encoder.i32(self.correlation_id);
        encoder.nullable_string(false, self.client_id);
        encoder.no_tagged_fields(self.api.request_header_version(self.version) >= 2);
        encoder.finish().map(|_| ())
    }
}

/// Writes the header of a response.
///
/// # Errors
/// No room.
pub fn encode_response_header(
    encoder: &mut Encoder<'_>,
    api: ApiKey,
    version: i16,
    correlation_id: i32,
) -> Result<(), WireError> {
    encoder.field = "ResponseHeader";
    encoder.i32(correlation_id);
    encoder.no_tagged_fields(api.response_header_version(version) >= 1);
    encoder.finish().map(|_| ())
}

/// Reads the header of a response to a request in that version, and returns its correlation id.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode_response_header(
    decoder: &mut Decoder<'_>,
    api: ApiKey,
    version: i16,
) -> Result<i32, WireError> {
    decoder.field = "ResponseHeader.correlation_id";
    let correlation_id = decoder.i32()?;
    if api.response_header_version(version) >= 1 {
        decoder.skip_tagged_fields()?;
    }
    Ok(correlation_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_every_truncation_is_refused() {
        for (version, client_id) in [(8, Some("a client")), (9, None), (99, Some(""))] {
            let header = RequestHeader { api: ApiKey::Metadata, version, correlation_id: 7, client_id };
            let mut bytes = Vec::new();
            header.encode(&mut Encoder::growing(&mut bytes)).unwrap();
            let mut decoder = Decoder::new(&bytes);
            assert_eq!(RequestHeader::decode(&mut decoder), Ok(header));
            decoder.finish().unwrap();
            for end in 0..bytes.len() {
                assert!(RequestHeader::decode(&mut Decoder::new(&bytes[..end])).is_err());
            }
        }
    }

    #[test]
    fn an_api_that_is_not_served_is_named() {
        let bytes = [0, 77, 0, 1, 0, 0, 0, 5, 0xff, 0xff];
        let refused = RequestHeader::decode(&mut Decoder::new(&bytes));
        assert_eq!(refused, Err(WireError::UnknownApi { key: 77, version: 1 }));
    }
}
