//! Our own small files and names: what is accepted says the same after having been written and read again.
//!
//! An input is one byte for the kind of file and a few numbers, then the file.

use std::fmt::Debug;

use ringlog::TopicConfig;
use ringlog::log::{
    EpochCache, FoundManifest, Frame, FrameKind, INDEX_ENTRY_BYTES, JOURNAL_BLOCK, JournalFile, JournalScan,
    Log, LogConfig, LogPoint, ManifestHead, MetaProperties, OffsetCheckpoint, OffsetIndex, PartitionEntry,
    PartitionMetadata, PartitionState, SegmentState, TIME_INDEX_ENTRY_BYTES, TimeIndex, TopicRegistry,
    UNIT_BYTES_MAX, UnitBuilder, UnitStamp, check_topic_name, encode_snapshot_end, parse_partition_dir_name,
    parse_segment_file_name, partition_dir_name, segment_file_name,
};
use ringlog::types::{Epoch, Offset, PartitionId, Position, ShardId, Timestamp, TopicId};

use crate::input::Input;

/// See the module's words.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.byte() % 11 {
        0 => meta_properties(&text(&mut input)),
        1 => {
            stays(&text(&mut input), PartitionMetadata::parse, PartitionMetadata::format);
        }
        2 => offsets(&text(&mut input)),
        3 => registry(&text(&mut input)),
        4 => epochs(&text(&mut input)),
        5 => offset_index(&mut input),
        6 => time_index(&mut input),
        7 => names(&text(&mut input)),
        8 => settings(&text(&mut input)),
        9 => manifest(&mut input),
        _ => journal(&mut input),
    }
}

/// A manifest of partitions with any numbers, then damaged as the input says: what it is read to say was written, and a log
/// can be made of it.
fn manifest(input: &mut Input<'_>) {
    let head =
        ManifestHead { directory: TopicId([3; 16]), start: 5, shard: ShardId(0), shards: 1, number: 1 };
    let (mut bytes, mut written) = (head.encode(), Vec::new());
    for index in 0..i32::from(input.byte() % 4) {
        let segments = (0..input.byte() % 4).map(|_| SegmentState {
            base: Offset(input.long()),
            next_offset: Offset(input.long()),
            end: Position(input.short() as u64),
            largest_timestamp: Timestamp(input.long()),
            largest_offset: Offset(input.long()),
            indexed: input.byte() % 2 == 0,
        });
        let segments = segments.collect();
        let epochs =
            (0..input.byte() % 3).map(|_| (Epoch(input.long() as i32), Offset(input.long()))).collect();
        let (awake, log_start) = (input.byte() % 2 == 0, Offset(input.long()));
        let entry = PartitionEntry {
            partition: PartitionId { topic: TopicId([1; 16]), index },
            state: (input.byte() % 4 > 0).then_some(PartitionState { awake, log_start, epochs, segments }),
        };
        entry.encode(&mut bytes);
        written.push(entry);
    }
    encode_snapshot_end(&mut bytes);
    if input.byte() % 2 == 0 {
        let at = input.below(bytes.len());
        bytes[at] = input.byte();
    }
    let Ok(found) = FoundManifest::decode(&bytes) else { return };
    assert!(written.starts_with(&found.entries), "{found:?} of {written:?}");
    for state in found.entries.iter().filter_map(|entry| entry.state.as_ref()) {
        let log = Log::recorded(LogConfig::default(), state, state.log_start);
        assert_eq!(log.log_end().offset, state.segments.last().expect("one at least").next_offset);
    }
}

/// A journal file with units and frames of sizes that the input gives, then damaged as it says: what is found sound is what
/// was written, and lies where it says.
fn journal(input: &mut Input<'_>) {
    let file = JournalFile { directory: TopicId([3; 16]), start: 5, shard: ShardId(1), number: 2 };
    let (mut bytes, mut written) = (file.encode().to_vec(), Vec::new());
    let mut buffer = vec![0; UNIT_BYTES_MAX];
    for sequence in 1..=u64::from(input.byte() % 5) {
        let mut unit = UnitBuilder::new(UnitStamp { start: file.start, number: file.number, sequence });
        for _ in 0..input.byte() % 4 {
            let batches = vec![input.byte(); usize::from(input.byte()) * 37];
            let place = written.len() as i64;
            let frame = Frame {
                kind: if input.byte() % 8 == 0 { FrameKind::Void } else { FrameKind::Batches },
                partition: PartitionId { topic: TopicId([input.byte(); 16]), index: i32::from(input.byte()) },
                epoch: Epoch(1),
                from: LogPoint {
                    offset: Offset(place),
                    segment: Offset(0),
                    position: Position(place as u64),
                },
                next_offset: Offset(place + 1),
                after: Offset(0),
                bytes: batches.len() as u32,
            };
            unit.begin(frame);
            unit.push(&mut buffer, &batches);
            unit.end(&mut buffer);
            written.push((frame, sequence, batches));
        }
        let whole = unit.seal(&mut buffer);
        bytes.extend_from_slice(&buffer[..whole]);
    }
    let whole = bytes.len();
    for chunk in input.rest().chunks_exact(4) {
        let at = usize::from(u16::from_be_bytes([chunk[0], chunk[1]])) * 7 % whole;
        bytes[at] ^= chunk[2];
        if chunk[3] == 0xff {
            bytes.truncate(at.max(JOURNAL_BLOCK));
            bytes.resize(whole, chunk[2]);
        }
    }
    let Some(found) = JournalFile::decode(&bytes) else { return };
    let mut scan = JournalScan::new(found, whole as u64);
    while let Some((at, length)) = scan.wants() {
        scan.feed(&bytes[at as usize..][..length]);
    }
    for found in scan.finish().frames.iter().filter(|found| found.sound) {
        let (frame, sequence, batches) = &written[found.frame.from.offset.0 as usize];
        assert_eq!((found.frame, found.sequence), (*frame, *sequence));
        assert_eq!(&bytes[found.at as usize..][..batches.len()], &batches[..]);
    }
}

/// As the engine reads it from the disk.
fn text(input: &mut Input<'_>) -> String {
    String::from_utf8_lossy(input.rest()).into_owned()
}

/// What can be read can be written, and is read as the same again.
fn stays<T: PartialEq + Debug, E: Debug + std::error::Error>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, E>,
    format: impl Fn(&T) -> String,
) -> Option<T> {
    match parse(text) {
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
        Ok(value) => {
            let written = format(&value);
            let again = parse(&written).unwrap_or_else(|error| panic!("{written:?} of {text:?}: {error}"));
            assert_eq!(again, value, "{written:?} of {text:?}");
            assert_eq!(format(&again), written);
            Some(value)
        }
    }
}

fn meta_properties(text: &str) {
    stays(text, MetaProperties::parse, MetaProperties::format);
}

fn offsets(text: &str) {
    let Some(checkpoint) = stays(text, OffsetCheckpoint::parse, OffsetCheckpoint::format) else { return };
    for entry in &checkpoint.entries {
        assert!(entry.partition >= 0 && entry.offset.0 >= 0, "{entry:?}");
        assert!(checkpoint.find(&entry.topic, entry.partition).is_some());
    }
}

fn registry(text: &str) {
    let Some(registry) = stays(text, TopicRegistry::parse, TopicRegistry::format) else { return };
    for topic in &registry.topics {
        let same = registry.topics.iter().filter(|other| other.name == topic.name).count();
        assert_eq!(same, 1, "two topics share the directories of {}", topic.name);
    }
}

fn epochs(text: &str) {
    let Some(epochs) = stays(text, EpochCache::parse, EpochCache::format) else { return };
    let starts = epochs.starts();
    assert!(starts.is_sorted_by(|one, next| one.0 < next.0 && one.1 < next.1), "{starts:?}");
    let end = starts.last().map_or(Offset(0), |last| last.1);
    for &(epoch, start) in starts {
        assert_eq!(epochs.epoch_at(start), epoch);
        let (known, ended) = epochs.end_offset_for(epoch, end);
        assert!(
            known == epoch && ended >= start && ended <= end,
            "{epoch}: {known} to {ended} of {starts:?}"
        );
    }
    for cut in starts.iter().map(|entry| entry.1) {
        let (mut head, mut tail) = (epochs.clone(), epochs.clone());
        head.truncate_from_end(cut);
        tail.truncate_from_start(cut);
        assert_eq!(head.starts().len() + tail.starts().len(), starts.len());
        assert_eq!(tail.epoch_at(cut), epochs.epoch_at(cut));
    }
    assert_eq!(epochs.epoch_at(Offset(-1)), Epoch::NONE);
}

/// An index may omit, never mislead: it leads to a place in the segment, and never past what is asked for.
fn offset_index(input: &mut Input<'_>) {
    let base = Offset(input.long() & i64::MAX);
    let (segment_bytes, file) = (input.long() as u32, input.rest());
    let Ok(index) = OffsetIndex::decode(base, 4096, file, u64::from(segment_bytes)) else { return };
    assert_eq!(index.encode(), file);
    assert_eq!(index.entries(), file.len() / INDEX_ENTRY_BYTES);
    let (entries, _) = file.as_chunks::<INDEX_ENTRY_BYTES>();
    for entry in entries {
        let [a, b, c, d, e, f, g, h] = *entry;
        let (last, at) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        let Some(last) = base.0.checked_add(i64::from(last)).map(Offset) else { continue };
        let at = Position(u64::from(at));
        assert_eq!(index.floor(last), (at, true));
        if last > base {
            assert!(index.floor(Offset(last.0 - 1)).0 < at, "an entry knows only where its batch ends");
        }
        let mut cut = index.clone();
        cut.truncate(at);
        assert!(cut.floor(last).0 < at);
    }
    let (mut from, mut seen) = (Position(0), 0);
    while let Some(next) = index.boundary_within(from, from) {
        assert!(next > from && next.0 < u64::from(segment_bytes));
        (from, seen) = (next, seen + 1);
    }
    assert_eq!(seen, index.entries());
}

fn time_index(input: &mut Input<'_>) {
    let base = Offset(input.long() & i64::MAX);
    let next = Offset(base.0.saturating_add(input.long() & 0x7fff_ffff));
    let file = input.rest();
    let Ok(index) = TimeIndex::decode(base, file, next) else { return };
    assert_eq!(index.encode(), file);
    assert_eq!(index.entries(), file.len() / TIME_INDEX_ENTRY_BYTES);
    let mut before = base;
    for entry in file.as_chunks::<TIME_INDEX_ENTRY_BYTES>().0 {
        let timestamp = Timestamp(i64::from_be_bytes(*entry.first_chunk().expect("8 of 12 bytes")));
        let floor = index.floor(timestamp);
        assert!((base..next).contains(&floor), "{floor} is outside {base}..{next}");
        assert!(index.floor(Timestamp(timestamp.0 - 1)) <= floor && before <= floor);
        before = floor;
    }
    assert_eq!(index.last().map_or(base, |last| last.1), before);
}

fn names(text: &str) {
    if let Some((base, ext)) = parse_segment_file_name(text) {
        assert_eq!(segment_file_name(base, ext), text);
        assert!(base.0 >= 0);
    }
    if let Some((topic, index)) = parse_partition_dir_name(text) {
        assert_eq!(partition_dir_name(topic, index), text);
        assert!(index >= 0 && check_topic_name(topic).is_ok());
    }
    if check_topic_name(text).is_ok() {
        // The last of as many partitions as there can be.
        let directory = partition_dir_name(text, 99_999);
        assert_eq!(parse_partition_dir_name(&directory), Some((text, 99_999)));
        assert!(directory.len() < 256 && !directory.contains(['/', '\0']), "{directory:?} is no file name");
    }
}

/// Words in pairs: settings and their values.
fn settings(text: &str) {
    let pairs = text.split_whitespace().filter_map(|word| word.split_once('='));
    let Ok(config) = TopicConfig::from_pairs(&TopicConfig::default(), pairs) else { return };
    let written = config.to_pairs();
    let again = written.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    assert_eq!(TopicConfig::from_pairs(&TopicConfig::default(), again), Ok(config));
}
