//! Bytes that nobody meant well: whatever comes, the answer is a message or an error, in little memory, and whatever
//! was accepted can be walked.

use proptest::prelude::*;
use ringlog_broker::wire::api_versions::*;
use ringlog_broker::wire::create_topics::*;
use ringlog_broker::wire::delete_records::*;
use ringlog_broker::wire::delete_topics::*;
use ringlog_broker::wire::describe_cluster::*;
use ringlog_broker::wire::describe_configs::*;
use ringlog_broker::wire::fetch::*;
use ringlog_broker::wire::list_offsets::*;
use ringlog_broker::wire::metadata::*;
use ringlog_broker::wire::offset_for_leader_epoch::*;
use ringlog_broker::wire::produce::*;
use ringlog_broker::wire::*;

/// Decodes as M in every version, and looks at all that was accepted: Debug walks every view to its end.
fn read_as<'a, M: Message + Decode<'a> + std::fmt::Debug>(bytes: &'a [u8]) {
    for version in M::API.facts().version_first..=M::API.facts().version_last {
        if let Ok(message) = M::decode_from(&mut Decoder::new(bytes), version) {
            assert!(!format!("{message:?}").is_empty());
        }
    }
}

/// What was accepted can be written again, in no more bytes.
fn read_and_measure<'a, M>(bytes: &'a [u8])
where
    M: Message + Decode<'a> + Encode + PartialEq + std::fmt::Debug,
{
    read_as::<M>(bytes);
    for version in M::API.facts().version_first..=M::API.facts().version_last {
        let mut decoder = Decoder::new(bytes);
        let Ok(message) = M::decode_from(&mut decoder, version) else { continue };
        // Unknown tagged fields are dropped and varints may have been padded, so it can only become shorter; a bool
        // or an error code of an odd value keeps its length.
        let length = message.encoded_len(version).unwrap();
        assert!(length <= decoder.position(), "{length} bytes from {}", decoder.position());
    }
}

fn read_as_everything(bytes: &[u8]) {
    if let Ok(header) = RequestHeader::decode(&mut Decoder::new(bytes)) {
        assert!(!format!("{header:?}").is_empty());
    }
    let _ = FrameLimits::default().peek_frame(bytes);
    read_and_measure::<ApiVersionsRequest<'_>>(bytes);
    read_and_measure::<ApiVersionsResponse<'_>>(bytes);
    read_and_measure::<MetadataRequest<'_>>(bytes);
    read_and_measure::<MetadataResponse<'_>>(bytes);
    read_and_measure::<ListOffsetsRequest<'_>>(bytes);
    read_and_measure::<ListOffsetsResponse<'_>>(bytes);
    read_and_measure::<CreateTopicsRequest<'_>>(bytes);
    read_and_measure::<CreateTopicsResponse<'_>>(bytes);
    read_and_measure::<DeleteTopicsRequest<'_>>(bytes);
    read_and_measure::<DeleteTopicsResponse<'_>>(bytes);
    read_and_measure::<DeleteRecordsRequest<'_>>(bytes);
    read_and_measure::<DeleteRecordsResponse<'_>>(bytes);
    read_and_measure::<OffsetForLeaderEpochRequest<'_>>(bytes);
    read_and_measure::<OffsetForLeaderEpochResponse<'_>>(bytes);
    read_and_measure::<DescribeConfigsRequest<'_>>(bytes);
    read_and_measure::<DescribeConfigsResponse<'_>>(bytes);
    read_and_measure::<DescribeClusterRequest>(bytes);
    read_and_measure::<DescribeClusterResponse<'_>>(bytes);
    read_as::<ProduceRequest<'_>>(bytes);
    read_as::<ProduceResponse<'_>>(bytes);
    read_as::<FetchRequest<'_>>(bytes);
    read_as::<FetchResponse<'_>>(bytes);
}

/// The eight bytes that abort a process whose codec allocates what an array's count claims.
#[test]
fn eight_bytes_of_metadata_do_not_claim_gigabytes() {
    let bytes = [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    for version in 0..=8 {
        let refused = MetadataRequest::decode_from(&mut Decoder::new(&bytes), version);
        let wanted = WireError::CountBeyondBytes {
            field: "MetadataRequest.topics",
            position: 4,
            count: 0x7fff_ffff,
            bytes_min: 2,
            remaining: 4,
        };
        assert_eq!(refused, Err(wanted), "version {version}");
    }
    let compact = [0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0];
    for version in 9..=13 {
        let refused = MetadataRequest::decode_from(&mut Decoder::new(&compact), version);
        assert!(
            matches!(refused, Err(WireError::CountBeyondBytes { count: 0xffff_fffe, .. })),
            "{refused:?}"
        );
    }
}

/// A count that fits the bytes which remain claims no more than they can hold.
#[test]
fn the_most_that_a_frame_can_claim_is_a_small_multiple_of_it() {
    // Version 9: a compact array of empty names, two bytes each with their tagged fields.
    let elements = 1000u32;
    let mut bytes = vec![0xe9, 0x07];
    bytes.extend((0..elements).flat_map(|_| [1, 0]));
    bytes.extend([1, 1, 1, 0]);
    let request = MetadataRequest::decode_from(&mut Decoder::new(&bytes), 9).unwrap();
    let topics = request.topics.unwrap();
    assert_eq!(topics.len(), 1000);
    assert!(topics.capacity() * size_of::<MetadataRequestTopic<'_>>() <= EXPANSION_MAX * bytes.len());
}

#[test]
fn unknown_tagged_fields_are_skipped_and_known_ones_must_fill_their_size() {
    // ApiVersionsResponse 3: no error, no keys, no throttling, then tagged fields.
    let read = |tags: &[u8]| {
        let bytes = [&[0, 0, 1, 0, 0, 0, 0][..], tags].concat();
        let mut decoder = Decoder::new(&bytes);
        let response = ApiVersionsResponse::decode_from(&mut decoder, 3)?;
        decoder.finish()?;
        Ok((response.finalized_features_epoch, response.zk_migration_ready))
    };
    assert_eq!(read(&[0]), Ok((-1, false)));
    assert_eq!(read(&[2, 3, 1, 1, 99, 2, 0xaa, 0xbb]), Ok((-1, true)));
    assert_eq!(read(&[1, 1, 8, 0, 0, 0, 0, 0, 0, 0, 5]), Ok((5, false)));
    assert!(matches!(read(&[1, 3, 2, 1, 1]), Err(WireError::TrailingBytes { remaining: 1, .. })));
    assert!(matches!(read(&[1, 1, 7, 0, 0, 0, 0, 0, 0, 0]), Err(WireError::Truncated { .. })));
    assert!(matches!(read(&[0, 7]), Err(WireError::TrailingBytes { remaining: 1, .. })));
}

/// Reused, the writers find all the room they need.
#[test]
fn a_reused_frame_keeps_its_memory() {
    let mut frame = GappedFrame::default();
    let mut seen = Vec::new();
    for round in 0..100 {
        frame.clear();
        for correlation_id in 0..2 {
            let terms = FetchResponseTerms::default();
            let mut writer =
                FetchResponseWriter::begin(&mut frame, correlation_id, 12 + round % 7, &terms, 1).unwrap();
            writer.topic("topic", &[7; 16], 2);
            writer.partition(&FetchOutcome::read(0, 100, 0, 4096));
            writer.partition(&FetchOutcome::failed(1, ErrorCode::OffsetOutOfRange));
            writer.finish(&[]).unwrap();
        }
        assert_eq!(frame.gaps.len(), 2);
        if round >= 7 {
            seen.push((
                frame.bytes.as_ptr(),
                frame.bytes.capacity(),
                frame.gaps.as_ptr(),
                frame.gaps.capacity(),
            ));
        }
    }
    assert!(seen.iter().all(|memory| *memory == seen[0]));
}

/// Several answers leave in one send: the second frame begins where the first one ends, its gaps included.
#[test]
fn frames_follow_one_another_in_one_buffer() {
    let mut frame = GappedFrame::default();
    let mut totals = 0;
    for correlation_id in [1, 2] {
        let header = RequestHeader { api: ApiKey::Produce, version: 9, correlation_id, client_id: None };
        let terms = ProduceTerms { transactional_id: None, acks: -1, timeout_ms: 1000 };
        let topic = ("topic", &[0; 16]);
        totals +=
            encode_produce_prefix(&mut frame, &header, &terms, topic, &[(0, 10), (1, 0), (2, 20)]).unwrap();
    }
    assert_eq!((frame.total_bytes(), frame.gaps.len()), (totals, 4));
    let mut stream = Vec::new();
    for segment in frame.segments() {
        match segment {
            Segment::Bytes(bytes) => stream.extend_from_slice(bytes),
            Segment::Records { record_bytes, .. } => {
                stream.resize(stream.len() + record_bytes as usize, 0xee)
            }
        }
    }
    for correlation_id in [1, 2] {
        let end = FrameLimits::default().peek_frame(&stream).unwrap().unwrap();
        let body = &stream[PREFIX_BYTES..end];
        let mut decoder = Decoder::new(body);
        assert_eq!(RequestHeader::decode(&mut decoder).unwrap().correlation_id, correlation_id);
        let request = ProduceRequest::decode_from(&mut decoder, 9).unwrap();
        decoder.finish().unwrap();
        let topic = request.topics.iter().next().unwrap();
        let lengths: Vec<_> = topic.partitions.iter().map(|it| it.records.unwrap().len()).collect();
        assert_eq!(lengths, [10, 0, 20]);
        stream.drain(..end);
    }
    assert!(stream.is_empty());
}

/// The frame's length is four signed bytes: two partitions of 2 GiB less one do not fit.
#[test]
fn a_response_too_long_for_its_prefix_is_refused() {
    let mut frame = GappedFrame::default();
    let mut writer =
        FetchResponseWriter::begin(&mut frame, 1, 11, &FetchResponseTerms::default(), 1).unwrap();
    writer.topic("topic", &[0; 16], 2);
    writer.partition(&FetchOutcome::read(0, 0, 0, i32::MAX as u64));
    writer.partition(&FetchOutcome::read(1, 0, 0, i32::MAX as u64));
    assert!(matches!(writer.finish(&[]), Err(WireError::TooLong { field: "frame", .. })));
}

#[test]
#[should_panic(expected = "1 topics and 1 partitions are missing")]
fn a_response_that_says_less_than_it_announced_is_our_own_mistake() {
    let mut bytes = Vec::new();
    let mut writer = ProduceResponseWriter::begin(Encoder::growing(&mut bytes), 1, 9, 2).unwrap();
    writer.topic("topic", &[0; 16], 2);
    writer.partition(&ProduceOutcome::appended(0, 0, -1, 0));
    let _ = writer.finish(0, &[]);
}

#[test]
fn a_produce_response_fits_a_fixed_buffer_or_says_so() {
    let mut buffer = [0; 64];
    let write = |room: &mut [u8]| {
        let mut writer = ProduceResponseWriter::begin(Encoder::fixed(room), 1, 9, 1).unwrap();
        writer.topic("topic", &[0; 16], 1);
        writer.partition(&ProduceOutcome::appended(0, 77, -1, 0));
        writer.finish(0, &[])
    };
    let length = write(&mut buffer).unwrap() as usize;
    for room in 0..length {
        assert!(matches!(write(&mut buffer[..room]), Err(WireError::NoRoom { .. })));
    }
    assert_eq!(write(&mut buffer[..length]), Ok(length as u64));
    let (_, response) = decode_response::<ProduceResponse<'_>>(&buffer[PREFIX_BYTES..length], 9).unwrap();
    let topic = response.topics.iter().next().unwrap();
    assert_eq!(topic.partitions.iter().next().unwrap().base_offset, 77);
}

/// Bytes that look like a message more often than even ones do: small numbers, nulls, ends of ranges.
fn odd_bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        6 => Just(0u8),
        6 => 1u8..8,
        2 => Just(0xffu8),
        1 => Just(0x7fu8),
        2 => any::<u8>(),
    ];
    proptest::collection::vec(byte, 0..200)
}

/// One good frame body of every hot message, to be damaged.
fn good_bodies() -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    for version in ApiKey::Fetch.facts().version_first..=ApiKey::Fetch.facts().version_last {
        let mut frame = GappedFrame::default();
        let terms = FetchResponseTerms::default();
        let mut writer = FetchResponseWriter::begin(&mut frame, 0, version, &terms, 1).unwrap();
        writer.topic("t", &[1; 16], 2);
        writer.partition(&FetchOutcome::read(0, 5, 0, 3));
        writer.partition(&FetchOutcome::failed(1, ErrorCode::OffsetOutOfRange));
        writer.finish(&[]).unwrap();
        frame.bytes.splice(frame.gaps[0].position..frame.gaps[0].position, [9, 9, 9]);
        bodies.push(frame.bytes.split_off(8 + usize::from(version >= 12)));

        let mut bytes = Vec::new();
        let header = RequestHeader { api: ApiKey::Fetch, version, correlation_id: 0, client_id: None };
        let terms = FetchTerms::default();
        let mut writer = FetchRequestWriter::begin(Encoder::growing(&mut bytes), &header, &terms, 1).unwrap();
        writer.topic("t", &[1; 16], 1);
        writer.partition(&FetchPartition::default());
        writer.finish(&[]).unwrap();
        bodies.push(bytes.split_off(14 + usize::from(version >= 12)));
    }
    for version in ApiKey::Produce.facts().version_first..=ApiKey::Produce.facts().version_last {
        let mut frame = GappedFrame::default();
        let header = RequestHeader { api: ApiKey::Produce, version, correlation_id: 0, client_id: None };
        let terms = ProduceTerms { transactional_id: None, acks: 1, timeout_ms: 1 };
        encode_produce_prefix(&mut frame, &header, &terms, ("t", &[1; 16]), &[(0, 2), (1, 0)]).unwrap();
        frame.bytes.splice(frame.gaps[0].position..frame.gaps[0].position, [9, 9]);
        bodies.push(frame.bytes.split_off(14 + usize::from(version >= 9)));
    }
    bodies
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn odd_bytes_are_a_message_or_an_error(bytes in odd_bytes()) {
        read_as_everything(&bytes);
    }

    #[test]
    fn damaged_messages_are_a_message_or_an_error(
        which in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bodies = good_bodies();
        let mut body = bodies.swap_remove(which.index(bodies.len()));
        for (place, byte) in damage {
            let place = place.index(body.len());
            body[place] = byte;
        }
        read_as_everything(&body);
    }
}

#[test]
fn the_undamaged_bodies_are_messages() {
    let bodies = good_bodies();
    let fetches = ApiKey::Fetch.facts().version_first..=ApiKey::Fetch.facts().version_last;
    let mut next = bodies.iter();
    for version in fetches {
        let mut decoder = Decoder::new(next.next().unwrap());
        FetchResponse::decode_from(&mut decoder, version).unwrap();
        decoder.finish().unwrap();
        let mut decoder = Decoder::new(next.next().unwrap());
        FetchRequest::decode_from(&mut decoder, version).unwrap();
        decoder.finish().unwrap();
    }
    for version in ApiKey::Produce.facts().version_first..=ApiKey::Produce.facts().version_last {
        let mut decoder = Decoder::new(next.next().unwrap());
        ProduceRequest::decode_from(&mut decoder, version).unwrap();
        decoder.finish().unwrap();
    }
    assert!(next.next().is_none());
}
