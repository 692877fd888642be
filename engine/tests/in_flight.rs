//! No byte changes while the kernel may still send it. Each hazard on a bare file and socket first, as this kernel has
//! it; then the engine doing what would lead there, with a reader that holds everything in its socket.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::sendfile::sendfile;
use ringlog::log::{BatchBuilder, BatchHeader, LogConfig, check_stored};
use ringlog::types::{Offset, PartitionId, Timestamp};
use ringlog::{Ack, Egress, Engine, EngineConfig, Ingress, TopicConfig, block_on};

const KIB: usize = 1 << 10;

fn home() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    (ours, peer)
}

// ---- on bare files ---------------------------------------------------------------------------------------------

/// 64 KiB of a file put into a socket by `sendfile`; then `change`; what the reader gets.
fn sent_then_changed(change: impl FnOnce(&File, &Path)) -> Vec<u8> {
    let home = home();
    let path = home.path().join("file");
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(&[b'A'; 64 * KIB]).unwrap();
    file.sync_all().unwrap();
    let (ours, mut peer) = pair();
    let mut at = 0;
    assert_eq!(sendfile(&ours, &file, Some(&mut at), 64 * KIB).unwrap(), 64 * KIB);
    change(&file, &path);
    drop(file);
    let mut received = vec![0; 64 * KIB];
    peer.read_exact(&mut received).unwrap();
    received
}

fn count(bytes: &[u8], value: u8) -> usize {
    bytes.iter().filter(|&&byte| byte == value).count()
}

#[test]
fn a_change_in_place_is_seen_by_who_was_sent_the_old_bytes() {
    let received = sent_then_changed(|file, _| file.write_all_at(&[b'B'; 64 * KIB], 0).unwrap());
    assert_eq!(count(&received, b'B'), 64 * KIB);
}

#[test]
fn truncation_zeroes_bytes_in_flight() {
    let received = sent_then_changed(|file, _| file.set_len(100).unwrap());
    assert_eq!(count(&received[..100], b'A'), 100);
    // At least the rest of the page; of all pages that the cache holds as one, where it does.
    assert_eq!(count(&received[100..4096], 0), 3996);
    assert!(count(&received, 0) >= 3996);
}

#[test]
fn a_hole_leaves_bytes_in_flight_alone() {
    let received = sent_then_changed(|file, _| {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(file, flags, 0, 64 * KIB as i64).unwrap();
    });
    assert_eq!(count(&received, b'A'), 64 * KIB);
}

#[test]
fn removal_and_a_new_file_in_its_place_leave_bytes_in_flight_alone() {
    // The last descriptor goes too: the file is gone from the disk while its pages are in the socket.
    let received = sent_then_changed(|_, path| std::fs::remove_file(path).unwrap());
    assert_eq!(count(&received, b'A'), 64 * KIB);
    let received = sent_then_changed(|_, path| {
        std::fs::write(path.with_extension("new"), [b'B'; 100]).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    });
    assert_eq!(count(&received, b'A'), 64 * KIB);
}

// ---- the engine ------------------------------------------------------------------------------------------------

const TOPIC: &str = "t";
const BATCHES: u8 = 30;

/// A topic of thirty batches of 10,000 bytes, ten to a segment.
struct Served {
    engine: Engine,
    home: tempfile::TempDir,
}

fn batch(number: u8) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Timestamp(1000));
    builder.push(Timestamp(1000), None, Some(&[number + 1; 10_000]), &[]);
    builder.finish().to_vec()
}

impl Served {
    fn new(egress: Egress) -> Served {
        let home = home();
        let mut config = EngineConfig::new(home.path().join("data"));
        (config.shard.ingress, config.shard.egress) = (Ingress::Buffered, egress);
        let engine = Engine::open(config).unwrap();
        let served = Served { engine, home };
        block_on(async {
            let log = LogConfig { segment_bytes_max: 105_000, ..LogConfig::default() };
            let topic = TopicConfig { log, ..TopicConfig::default() };
            served.engine.create_topic(TOPIC, 1, topic).await.unwrap();
            served.append(0..BATCHES).await;
            served.engine.on_shard(|shard| async move { shard.drop_tail_caches() }).await.unwrap();
        });
        served.wait_for_index(0);
        served.wait_for_index(10);
        served
    }

    async fn append(&self, numbers: std::ops::Range<u8>) {
        let partition = self.engine.partition(TOPIC, 0).await.unwrap();
        for number in numbers.clone() {
            let ack = if number + 1 == numbers.end { Ack::Durable } else { Ack::Written };
            partition.append(&batch(number), Some(ack)).await.unwrap();
        }
    }

    fn segment(&self, base: i64) -> std::path::PathBuf {
        self.home.path().join(format!("data/{TOPIC}-0/{base:020}.log"))
    }

    /// Its index is written last: then it is finished.
    fn wait_for_index(&self, base: i64) {
        let (index, began) = (self.segment(base).with_extension("index"), Instant::now());
        while !index.exists() {
            assert!(began.elapsed() < Duration::from_secs(20), "{} is never finished", index.display());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Has everything from `offset` to the end of its segment sent to a reader that does not read.
    async fn sent(&self, egress: Egress, offset: i64) -> (TcpStream, u64) {
        let partition = self.engine.partition(TOPIC, 0).await.unwrap();
        let (ours, peer) = pair();
        let fetched = partition.fetch_to(Offset(offset), 1 << 20, egress, &ours).await.unwrap();
        (peer, fetched.bytes)
    }

    /// Runs `work` with the partition on its shard.
    async fn on_partition<T, F>(
        &self,
        work: impl FnOnce(ringlog::shard::Partition) -> F + Send + 'static,
    ) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let work = |shard: ringlog::Shard| async move {
            let id = shard.topic(TOPIC).unwrap().id;
            let owner = shard.topic(TOPIC).unwrap().owner(0);
            let find = move |shard: ringlog::Shard| async move {
                work(shard.find(PartitionId { topic: id, index: 0 }).unwrap()).await
            };
            shard.on(owner, find).await
        };
        self.engine.on_shard(work).await.unwrap()
    }
}

/// What a reader of batches from `first` on takes for right.
fn check(mut peer: TcpStream, bytes: u64, first: u8, what: &str) {
    let mut received = vec![0; bytes as usize];
    peer.read_exact(&mut received).unwrap();
    let (mut rest, mut number) = (&received[..], first);
    while !rest.is_empty() {
        let header = check_stored(rest.get(..BatchHeader::parse(rest).unwrap().bytes as usize).unwrap());
        let header = header.unwrap_or_else(|error| panic!("{what}, batch {number}: {error}"));
        assert_eq!(header.base_offset, Offset(i64::from(number)), "{what}");
        assert!(rest[61 + 20..61 + 9020].iter().all(|&byte| byte == number + 1), "{what}, batch {number}");
        rest = &rest[header.bytes as usize..];
        number += 1;
    }
    assert!(number > first, "{what}");
}

fn strategies() -> impl Iterator<Item = Egress> {
    Egress::ALL.iter().copied().filter(|egress| egress.delivers())
}

#[test]
fn a_cut_log_leaves_what_readers_were_sent_of_it_alone() {
    for egress in strategies() {
        // Within the first segment, within the active one, and at the very beginning.
        for to in [3i64, 27, 0] {
            let served = Served::new(egress);
            let what = format!("{egress}, cut to {to}");
            block_on(async {
                let (whole, whole_bytes) = served.sent(egress, 0).await;
                let (active, active_bytes) = served.sent(egress, 20).await;
                let cut = served.on_partition(move |p| async move { p.truncate_to(Offset(to)).await }).await;
                assert_eq!(cut.unwrap(), Offset(to), "{what}");
                // Others in the place of those that were cut, in the same files.
                served.append(100..100 + BATCHES).await;
                check(whole, whole_bytes, 0, &what);
                check(active, active_bytes, 20, &what);
                let partition = served.engine.partition(TOPIC, 0).await.unwrap();
                let (mut next, mut seen) = (0, Vec::new());
                while next < to + i64::from(BATCHES) {
                    let (bytes, _) = partition.fetch(Offset(next), 1).await.unwrap();
                    seen.push(bytes[61 + 20]);
                    next = check_stored(&bytes).unwrap().next_offset().0;
                }
                let expected: Vec<u8> = (1..=to as u8).chain(101..101 + BATCHES).collect();
                assert_eq!(seen, expected, "{what}");
            });
            // Cut segments are sealed again, with indexes of their own: a start believes them.
            let Served { engine, home } = served;
            engine.close().unwrap();
            let engine = Engine::open(EngineConfig::new(home.path().join("data"))).unwrap();
            block_on(async {
                let partition = engine.partition(TOPIC, 0).await.unwrap();
                for next in 0..to + i64::from(BATCHES) {
                    let (bytes, _) = partition.fetch(Offset(next), 1).await.unwrap();
                    let number = if next < to { next + 1 } else { next - to + 101 };
                    assert_eq!(bytes[61 + 20], number as u8, "{what}, offset {next} after a restart");
                }
            });
            engine.close().unwrap();
        }
    }
}

#[test]
fn removed_segments_leave_what_readers_were_sent_of_them_alone() {
    for egress in strategies() {
        for how in ["records", "topic"] {
            let served = Served::new(egress);
            let what = format!("{egress}, {how} deleted");
            block_on(async {
                let (first, first_bytes) = served.sent(egress, 0).await;
                let (second, second_bytes) = served.sent(egress, 10).await;
                match how {
                    "records" => {
                        let advance = |p: ringlog::shard::Partition| async move {
                            p.advance_log_start(Offset(25)).await
                        };
                        served.on_partition(advance).await.unwrap();
                    }
                    _ => served.engine.delete_topic(TOPIC).await.unwrap(),
                }
                assert!(!served.segment(0).exists() && !served.segment(10).exists(), "{what}");
                check(first, first_bytes, 0, &what);
                check(second, second_bytes, 10, &what);
            });
            served.engine.close().unwrap();
        }
    }
}

/// Sealing cuts a file to its size, behind the last batch: in the page that holds the end of it.
#[test]
fn trimming_a_sealed_segment_leaves_what_readers_were_sent_of_it_alone() {
    for egress in strategies() {
        let home = home();
        let mut config = EngineConfig::new(home.path().join("data"));
        (config.shard.ingress, config.shard.egress) = (Ingress::Buffered, egress);
        let served = Served { engine: Engine::open(config).unwrap(), home };
        block_on(async {
            let log = LogConfig { segment_bytes_max: 105_000, ..LogConfig::default() };
            let topic = TopicConfig { log, ..TopicConfig::default() };
            served.engine.create_topic(TOPIC, 1, topic).await.unwrap();
            served.append(0..10).await;
            served.engine.on_shard(|shard| async move { shard.drop_tail_caches() }).await.unwrap();
            // Room is prepared ahead, by and by.
            let begun = std::time::Instant::now();
            while std::fs::metadata(served.segment(0)).unwrap().len() <= 105_000 {
                assert!(begun.elapsed() < Duration::from_secs(20), "no room is prepared ahead");
                std::thread::sleep(Duration::from_millis(1));
            }
            let (peer, bytes) = served.sent(egress, 0).await;
            served.append(10..11).await;
            served.wait_for_index(0);
            assert_eq!(std::fs::metadata(served.segment(0)).unwrap().len(), bytes);
            check(peer, bytes, 0, egress.name());
        });
        served.engine.close().unwrap();
    }
}

/// The active segment is never mapped, nor is one beyond the bound.
#[test]
fn only_sealed_segments_are_mapped() {
    let served = Served::new(Egress::Mmap);
    let moved = || {
        let counters = block_on(served.engine.counters()).unwrap();
        let sum = |egress: Egress| {
            let of = counters.iter().map(|c| c.egress[egress as usize].1);
            of.fold((0, 0), |sum, one| (sum.0 + one.bytes, sum.1 + one.fallback_bytes))
        };
        (sum(Egress::Mmap), sum(Egress::Copy))
    };
    block_on(async {
        let (peer, sealed) = served.sent(Egress::Mmap, 0).await;
        check(peer, sealed, 0, "sealed");
        assert_eq!(moved(), ((sealed, 0), (0, 0)));
        let (peer, active) = served.sent(Egress::Mmap, 20).await;
        check(peer, active, 20, "active");
        let ((own, fallback), (by_copy, _)) = moved();
        assert_eq!(own, sealed);
        assert!(fallback > 0 && by_copy == fallback, "{fallback} of {active} by copy, {by_copy}");
    });
    served.engine.close().unwrap();
}
