//! DescribeCluster: this broker is all there is.

use std::borrow::Cow;

use crate::errors::Fault;
use crate::wire::describe_cluster::{DescribeClusterBroker, DescribeClusterRequest, DescribeClusterResponse};
use crate::wire::{Decoder, ErrorCode, Message, RequestHeader};
use crate::writer::Writer;

/// The endpoint type of brokers.
const BROKERS: i8 = 1;
/// Of controllers, which have no endpoint here.
const CONTROLLERS: i8 = 2;

pub(crate) async fn answer(
    writer: &mut Writer<'_>,
    header: &RequestHeader<'_>,
    decoder: &mut Decoder<'_>,
) -> Result<(), Fault> {
    let request = DescribeClusterRequest::decode_from(decoder, header.version)?;
    let broker = writer.broker.clone();
    let identity = broker.shard.identity();
    let (host, port) = &broker.advertised;
    let refused = |error_code, words: &'static str| DescribeClusterResponse {
        error_code,
        error_message: Some(Cow::Borrowed(words)),
        ..DescribeClusterResponse::default()
    };
    let response = match request.endpoint_type {
        BROKERS => DescribeClusterResponse {
            cluster_id: &identity.cluster_id,
            controller_id: identity.node_id,
            brokers: vec![DescribeClusterBroker {
                broker_id: identity.node_id,
                host,
                port: i32::from(*port),
                ..DescribeClusterBroker::default()
            }],
            ..DescribeClusterResponse::default()
        },
        CONTROLLERS => refused(
            ErrorCode::MismatchedEndpointType,
            "this is a broker's endpoint; there is none of a controller",
        ),
        _ => {
            refused(ErrorCode::UnsupportedEndpointType, "endpoint types are 1 for brokers, 2 for controllers")
        }
    };
    writer.encode(header, header.version, &response)
}
