//! The Kafka protocol as bytes: frames, headers, messages, in both directions.
//!
//! It relies on nothing but slices, and leaves to others what a message means. A codec of our own, because a length
//! from the network is believed only as far as the bytes present bear it out, and because record bytes are neither
//! copied nor looked at: requests say where they lie, responses leave a gap for them.
//!
//! - `api` the table of what is served; `header`, `frame`, `error` around every message
//! - `table` one table per message makes structure, decoder, encoder; `codec` how each field type is written
//! - `decoder`, `encoder` the primitive types; `wire_error` what can be wrong with them
//! - one file per API; Produce and Fetch are read in place and written by streaming writers, `gapped` frames that
//!   leave room for records, `nesting` their topics and partitions

mod api;
mod codec;
mod decoder;
mod encoder;
mod error;
mod frame;
mod gapped;
mod header;
mod nesting;
mod table;
mod wire_error;

pub mod api_versions;
pub mod create_topics;
pub mod delete_records;
pub mod delete_topics;
pub mod describe_cluster;
pub mod describe_configs;
pub mod fetch;
pub mod leader;
pub mod list_offsets;
pub mod metadata;
pub mod offset_for_leader_epoch;
pub mod produce;
mod produce_head;

pub use api::{APIS, Api, ApiKey};
pub use codec::{
    Decode, DecodeNullable, EXPANSION_MAX, Encode, EncodeNullable, Message, Uuid, Version, View, ViewIter,
};
pub use decoder::{Decoder, STRING_BYTES_MAX};
pub use encoder::Encoder;
pub use error::ErrorCode;
pub use frame::{
    COLD_FRAME_BYTES_MAX, FRAME_BYTES_MAX, FrameLimits, PREFIX_BYTES, decode_response, encode_request,
    encode_response,
};
pub use gapped::{Gap, GappedFrame, Segment};
pub use header::{RequestHeader, decode_response_header, encode_response_header};
pub use produce_head::ProduceHead;
pub use wire_error::WireError;
