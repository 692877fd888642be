//! What happened to the files while nobody looked: bits that flipped, tails that tore, files that went missing. On a real
//! file system. What was durable and can still be read is served; what cannot is named; nothing is invented.

use std::fs;
use std::path::{Path, PathBuf};

use ringlog::log::{BatchBuilder, BatchHeader, LogConfig, check_stored};
use ringlog::shard::{Commit, FetchError};
use ringlog::types::{Offset, Timestamp};
use ringlog::{Ack, Engine, EngineConfig, EngineError, PartitionHandle, TopicConfig, block_on};

const RECORDS_A_BATCH: i64 = 3;
const BATCHES: i64 = 40;
const SEGMENT_BYTES: u64 = 20_000;

struct Home(tempfile::TempDir);

impl Home {
    /// A directory with one partition of [`BATCHES`] batches over several segments, all durable; stopped cleanly, or not.
    fn filled(clean: bool) -> Home {
        let home = Home(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let engine = home.open();
        let log = LogConfig { segment_bytes_max: SEGMENT_BYTES, ..LogConfig::default() };
        block_on(engine.create_topic("t", 1, TopicConfig { log, ..TopicConfig::default() })).unwrap();
        let partition = block_on(engine.partition("t", 0)).unwrap();
        for number in 0..BATCHES {
            block_on(partition.append(&batch(number), Some(Ack::Durable))).unwrap();
        }
        if clean {
            engine.close().unwrap();
        }
        home
    }

    fn open(&self) -> Engine {
        let mut config = EngineConfig::new(self.0.path());
        config.shard.arena_bytes_max = 32 << 20;
        // The segments are all there is; `journal.rs` has what a journal mends.
        config.shard.commit = Commit::Files;
        // What happened to files while nobody had them open is found by who looks; `manifest.rs` has starts that do not.
        config.shard.verify = true;
        Engine::open(config).unwrap()
    }

    fn partition_dir(&self) -> PathBuf {
        self.0.path().join("t-0")
    }

    /// Segment files, oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        files(&self.partition_dir(), ".log")
    }
}

fn files(dir: &Path, end: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.to_string_lossy().ends_with(end));
    found.sort();
    found
}

fn batch(number: i64) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Timestamp(1000 + number));
    for _ in 0..RECORDS_A_BATCH {
        builder.push(Timestamp(1000 + number), None, Some(&vec![number as u8; 700]), &[]);
    }
    builder.finish().to_vec()
}

fn partition(engine: &Engine) -> PartitionHandle {
    block_on(engine.partition("t", 0)).unwrap()
}

/// Reads from `from` on until the end or an error; the base offsets of the batches, each checked.
fn read_from(partition: &PartitionHandle, from: i64) -> (Vec<i64>, Option<FetchError>) {
    let (mut next, mut found) = (Offset(from), Vec::new());
    loop {
        let bytes = match block_on(partition.fetch(next, 1 << 20)) {
            Ok((bytes, _)) if bytes.is_empty() => return (found, None),
            Ok((bytes, _)) => bytes,
            Err(EngineError::Fetch(error)) => return (found, Some(error)),
            Err(error) => panic!("{error}"),
        };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (one, behind) = rest.split_at(BatchHeader::parse(rest).unwrap().bytes as usize);
            let header = check_stored(one).unwrap();
            assert!(content(one) == content(&batch(header.base_offset.0 / RECORDS_A_BATCH)), "other bytes");
            found.push(header.base_offset.0);
            next = header.next_offset();
            rest = behind;
        }
    }
}

fn content(batch: &[u8]) -> &[u8] {
    &batch[16..]
}

fn all() -> Vec<i64> {
    (0..BATCHES).map(|number| number * RECORDS_A_BATCH).collect()
}

/// Everything is there, and the log goes on.
fn assert_whole(home: &Home) {
    let engine = home.open();
    let partition = partition(&engine);
    assert_eq!(read_from(&partition, 0), (all(), None));
    let appended = block_on(partition.append(&batch(BATCHES), None)).unwrap();
    assert_eq!(appended.offset, Offset(BATCHES * RECORDS_A_BATCH));
    let found = block_on(partition.offset_for_timestamp(Timestamp(1000 + BATCHES / 2))).unwrap();
    assert_eq!(found.map(|(offset, _)| offset), Some(Offset(BATCHES / 2 * RECORDS_A_BATCH)));
    engine.close().unwrap();
}

#[test]
fn a_bit_that_flipped_below_the_durable_end_is_fenced_and_the_rest_is_served() {
    for clean in [true, false] {
        let home = Home::filled(clean);
        let segments = home.segments();
        assert!(segments.len() > 3, "{segments:?}");
        // In the middle of a sealed segment, and no index to lead around it.
        let path = &segments[1];
        let mut bytes = fs::read(path).unwrap();
        let first = BatchHeader::parse(&bytes).unwrap();
        let at = first.bytes as usize + 400;
        bytes[at] ^= 0x10;
        fs::write(path, &bytes).unwrap();
        files(&home.partition_dir(), "index").iter().for_each(|path| fs::remove_file(path).unwrap());
        fs::remove_file(home.0.path().join(".kafka_cleanshutdown")).ok();
        let engine = home.open();
        let partition = partition(&engine);
        let rotten = read_rotten(path);
        let (before, error) = read_from(&partition, 0);
        let words = error.as_ref().map(ToString::to_string).unwrap_or_default();
        let Some(FetchError::Corrupt { path: named, range }) = error else {
            panic!("{error:?} after {before:?}")
        };
        assert_eq!(named, *path);
        for part in ["t-0", &range.from.to_string(), &format!("positions {} to", range.from_position)] {
            assert!(words.contains(part), "\"{part}\" is missing in: {words}");
        }
        assert_eq!(before, all().into_iter().filter(|o| *o < range.from.0).collect::<Vec<_>>());
        assert!(range.from <= Offset(rotten) && Offset(rotten) < range.to, "{range:?} holds {rotten}");
        let (behind, error) = read_from(&partition, range.to.0);
        assert_eq!(error, None);
        assert_eq!(behind, all().into_iter().filter(|o| *o >= range.to.0).collect::<Vec<_>>());
        let lost = BATCHES as usize - before.len() - behind.len();
        assert_eq!(lost, 1, "one batch is rotten, one is fenced: {range:?}");
        assert_eq!(fs::read(path).unwrap(), bytes, "nothing is truncated");
        let end = block_on(partition.append(&batch(BATCHES), None)).unwrap().offset;
        assert_eq!(end, Offset(BATCHES * RECORDS_A_BATCH));
        engine.close().unwrap();
    }
}

/// The base offset of the batch whose checksum is wrong.
fn read_rotten(path: &Path) -> i64 {
    let bytes = fs::read(path).unwrap();
    let mut rest = &bytes[..];
    loop {
        let header = BatchHeader::parse(rest).unwrap();
        if check_stored(&rest[..header.bytes as usize]).is_err() {
            return header.base_offset.0;
        }
        rest = &rest[header.bytes as usize..];
    }
}

#[test]
fn a_torn_tail_above_the_durable_end_is_cut_and_kept_aside() {
    let home = Home::filled(false);
    let last = home.segments().pop().unwrap();
    let mut bytes = fs::read(&last).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    // Half of a batch that was never acknowledged.
    let torn = &batch(BATCHES)[..900];
    bytes.truncate(end);
    bytes.extend_from_slice(torn);
    bytes.resize(end + (64 << 10), 0);
    fs::write(&last, &bytes).unwrap();
    assert_whole(&home);
    let aside: Vec<String> = fs::read_dir(home.partition_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains(".torn-"))
        .collect();
    assert_eq!(aside.len(), 1, "what was cut is kept: {aside:?}");
}

#[test]
fn indexes_that_are_missing_stale_or_cut_short_are_made_again() {
    for clean in [true, false] {
        let home = Home::filled(clean);
        for path in files(&home.partition_dir(), "index") {
            fs::remove_file(path).unwrap();
        }
        assert_whole(&home);
        let home = Home::filled(clean);
        for path in files(&home.partition_dir(), "index") {
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2 + 1]).unwrap();
        }
        assert_whole(&home);
        let home = Home::filled(clean);
        let indexes = files(&home.partition_dir(), ".index");
        if let [first, .., last] = &indexes[..] {
            // Another segment's.
            fs::copy(first, last).unwrap();
            fs::write(first, [0xff; 64]).unwrap();
        }
        assert_whole(&home);
    }
}

#[test]
fn checkpoints_that_are_cut_short_or_gone_are_done_without() {
    for name in [
        "recovery-point-offset-checkpoint",
        "log-start-offset-checkpoint",
        "t-0/leader-epoch-checkpoint",
        "t-0/partition.metadata",
    ] {
        for keep in [0, 5] {
            for clean in [true, false] {
                let home = Home::filled(clean);
                let path = home.0.path().join(name);
                if let Ok(bytes) = fs::read(&path)
                    && name != "t-0/partition.metadata"
                {
                    fs::write(&path, &bytes[..bytes.len().min(keep)]).unwrap();
                } else {
                    fs::remove_file(&path).ok();
                }
                assert_whole(&home);
            }
        }
    }
}

#[test]
fn what_is_no_registry_or_no_identity_is_refused_with_its_path() {
    for name in ["ringlog-topics", "meta.properties"] {
        let home = Home::filled(true);
        fs::write(home.0.path().join(name), "7\nnonsense").unwrap();
        let mut config = EngineConfig::new(home.0.path());
        config.shard.arena_bytes_max = 32 << 20;
        let error = Engine::open(config).err().unwrap().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn a_segment_that_was_deleted_by_hand_is_missed_by_name_and_what_is_behind_it_is_kept() {
    let home = Home::filled(false);
    let segments = home.segments();
    fs::remove_file(&segments[1]).unwrap();
    let engine = home.open();
    let partition = partition(&engine);
    let base = |path: &Path| path.file_stem().unwrap().to_string_lossy().parse::<i64>().unwrap();
    let (gone, next) = (base(&segments[1]), base(&segments[2]));
    let (before, error) = read_from(&partition, 0);
    assert_eq!(before, all().into_iter().filter(|o| *o < gone).collect::<Vec<_>>());
    let words = error.expect("the gap is no end").to_string();
    assert!(words.contains(&gone.to_string()), "{words}");
    assert_eq!(read_from(&partition, next), (all().into_iter().filter(|o| *o >= next).collect(), None));
    let end = block_on(partition.append(&batch(BATCHES), None)).unwrap().offset;
    assert_eq!(end, Offset(BATCHES * RECORDS_A_BATCH), "no offset is assigned twice");
    engine.close().unwrap();
}

#[test]
fn where_the_offsets_end_appends_are_refused_and_the_rest_goes_on() {
    // A stray file with the last name there is: the log ends where no record can be.
    let home = Home::filled(true);
    let last = home.partition_dir().join(format!("{:0>20}.log", i64::MAX));
    home.segments().iter().for_each(|path| fs::remove_file(path).unwrap());
    fs::write(&last, []).unwrap();
    for _ in 0..2 {
        let engine = home.open();
        let partition = partition(&engine);
        let refused = block_on(partition.append(&batch(0), None)).unwrap_err();
        assert!(refused.to_string().contains("offsets end"), "{refused}");
        assert_eq!(read_from(&partition, i64::MAX), (vec![], None));
        engine.close().unwrap();
    }
}

#[test]
fn a_fence_is_still_there_after_a_clean_stop() {
    let home = Home::filled(true);
    let path = &home.segments()[1];
    let mut bytes = fs::read(path).unwrap();
    bytes[400] ^= 0x10;
    fs::write(path, &bytes).unwrap();
    files(&home.partition_dir(), "index").iter().for_each(|path| fs::remove_file(path).unwrap());
    let mut found = Vec::new();
    for _ in 0..3 {
        let engine = home.open();
        let partition = partition(&engine);
        let (before, error) = read_from(&partition, 0);
        let Some(FetchError::Corrupt { range, .. }) = error else {
            panic!("{error:?} after {before:?}, {found:?}")
        };
        found.push((before, range, read_from(&partition, range.to.0)));
        engine.close().unwrap();
    }
    assert!(found.iter().all(|one| *one == found[0]), "{found:?}");
    assert_eq!(found[0].0.len() + found[0].2.0.len(), BATCHES as usize - 1, "one batch is rotten");
}

#[test]
fn partitions_beyond_all_measure_are_refused_by_name_not_made() {
    let home = Home::filled(true);
    let path = home.0.path().join("ringlog-topics");
    let registry = fs::read_to_string(&path).unwrap();
    fs::write(&path, registry.replace(" 1 ", " 2147483647 ")).unwrap();
    let opened = Engine::open(EngineConfig::new(home.0.path()));
    let refused = opened.err().expect("refused").to_string();
    assert!(refused.contains("2147483647 partitions"), "{refused}");
    // Without a registry directories count, and not all of them are partitions.
    for name in ["backup-20260101", "backup-2147483647"] {
        let home = Home(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        fs::create_dir(home.0.path().join(name)).unwrap();
        let refused = Engine::open(EngineConfig::new(home.0.path())).err().expect("refused").to_string();
        assert!(refused.contains("topic backup would have"), "{refused}");
    }
}

/// Where the last batch lies: its file, its position, and its bytes.
fn last_batch(home: &Home) -> (PathBuf, usize, usize) {
    let path = home.segments().pop().unwrap();
    let bytes = fs::read(&path).unwrap();
    let (mut at, mut last) = (0, (0, 0));
    while let Ok(header) = BatchHeader::parse(&bytes[at..]) {
        last = (at, header.bytes as usize);
        at += header.bytes as usize;
    }
    (path, last.0, last.1)
}

fn kept_aside(home: &Home) -> Vec<String> {
    let names = fs::read_dir(home.partition_dir()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains(".torn-")).collect()
}

#[test]
fn a_bit_that_flipped_in_the_last_batch_is_rot_after_a_clean_stop_and_a_torn_tail_after_power_loss() {
    for clean in [true, false] {
        let home = Home::filled(clean);
        let (path, at, length) = last_batch(&home);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at + 400] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        let engine = home.open();
        let partition = partition(&engine);
        let (before, error) = read_from(&partition, 0);
        let next = block_on(partition.append(&batch(BATCHES), None)).unwrap().offset;
        if clean {
            // It cannot be told from here whether the batch is needed: nobody writes over it.
            let words = error.expect("what is rotten is no end").to_string();
            assert!(words.contains("t-0") && words.contains(&format!("positions {at} to")), "{words}");
            assert_eq!(next, Offset(BATCHES * RECORDS_A_BATCH), "no offset is assigned twice");
            assert_eq!(kept_aside(&home), Vec::<String>::new(), "nothing is truncated");
            let kept = at + length;
            assert_eq!(fs::read(&path).unwrap()[..kept], bytes[..kept], "nothing is truncated");
        } else {
            assert_eq!(error, None);
            assert_eq!(before.len() as i64, BATCHES - 1);
            assert_eq!(next, Offset((BATCHES - 1) * RECORDS_A_BATCH));
            assert!(kept_aside(&home)[0].ends_with(&format!(".torn-{at}")), "{:?}", kept_aside(&home));
        }
        engine.close().unwrap();
    }
}

#[test]
fn a_segment_that_was_deleted_by_hand_while_open_is_missed_by_its_readers_only() {
    let home = Home::filled(true);
    let engine = home.open();
    let partition = partition(&engine);
    let segments = home.segments();
    let base = |path: &Path| path.file_stem().unwrap().to_string_lossy().parse::<i64>().unwrap();
    fs::remove_file(&segments[1]).unwrap();
    let (before, error) = read_from(&partition, 0);
    assert_eq!(before, all().into_iter().filter(|o| *o < base(&segments[1])).collect::<Vec<_>>());
    let words = error.expect("the gap is no end").to_string();
    assert!(words.contains("t-0") && words.contains(segments[1].to_str().unwrap()), "{words}");
    let (behind, error) = read_from(&partition, base(&segments[2]));
    assert_eq!((behind.last(), error), (all().last(), None));
    block_on(partition.append(&batch(BATCHES), None)).unwrap();
    engine.close().unwrap();
    assert!(!segments[1].exists(), "no empty file is put in its place");
}
