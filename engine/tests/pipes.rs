//! The ways that lead through pipes, on bare files: every byte, in the simulated world and on the kernel's ring; what
//! becomes of readers that stall, of pipes that are refused, of files that are cut, removed or unreadable.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use ringlog::log::{BatchBuilder, check_produced};
use ringlog::shard::{Commit, Partition, Shard, ShardConfig, TopicConfig};
use ringlog::sys::sim::World;
use ringlog::sys::{OpenOptions, PIPES_KEPT_MAX, Ring, Socket, UringOptions};
use ringlog::transfer::{Egress, Piece, Response, SegmentFile, Transfers, send};
use ringlog::types::{Offset, Position, Timestamp};

mod pieces;

const ARENA: u64 = 64 << 20;
const MIB: usize = 1 << 20;
const KIB: usize = 1 << 10;
/// What a master pipe of `tee` holds.
const UNIT: usize = 256 << 10;
const PIPED: [Egress; 4] = [Egress::Splice, Egress::RingSplice, Egress::Tee, Egress::Vmsplice];

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// A file of [`pattern`] under `path`, in whole blocks, open in every way.
async fn segment(ring: &Ring, path: &Path, bytes: usize) -> Rc<SegmentFile> {
    assert!(bytes.is_multiple_of(4096));
    let options = OpenOptions { create: true, write: true, direct: false };
    let writer = ring.open(path, options).await.unwrap();
    let content = pattern(bytes);
    for (number, part) in content.chunks(MIB).enumerate() {
        let mut lease = ring.lease(part.len()).await.unwrap();
        drop(lease.split_off(part.len()));
        lease.copy_from_slice(part);
        let (written, _) = ring.write(&writer, (number * MIB) as u64, lease.freeze()).await;
        assert_eq!(written.unwrap(), part.len());
    }
    ring.sync(&writer).await.unwrap();
    opened(ring, path).await
}

/// The end of a piece that is held back until the file is known to be unchanged, and goes out from memory.
const HELD: u64 = 64;

async fn opened(ring: &Ring, path: &Path) -> Rc<SegmentFile> {
    let file = ring.open(path, OpenOptions::default()).await.unwrap();
    let direct = ring.open(path, OpenOptions { direct: true, ..OpenOptions::default() }).await.unwrap();
    Rc::new(SegmentFile::new(Offset(0), file, Some(direct), path.into()))
}

fn piece(file: &Rc<SegmentFile>, at: usize, bytes: usize) -> Piece {
    Piece::File { file: file.clone(), at: Position(at as u64), bytes: bytes as u64 }
}

async fn send_piece(
    ring: &Ring,
    socket: &Socket,
    egress: Egress,
    piece: Piece,
    transfers: &Transfers,
) -> io::Result<()> {
    let mut response = Response::default();
    response.push_records(piece);
    send(ring, socket, egress, &mut response, transfers).await
}

async fn connected(ring: &Ring, address: &str) -> (Socket, Socket) {
    let listener = ring.listen(address.parse().unwrap(), false).unwrap();
    let client = ring.connect(listener.address()).await.unwrap();
    (client, ring.accept(&listener).await.unwrap())
}

/// Receives `bytes`, a little at a time with a pause before each when `slow`.
async fn receive(ring: &Ring, socket: &Socket, bytes: usize, slow: bool) -> Vec<u8> {
    let mut received = Vec::with_capacity(bytes);
    while received.len() < bytes {
        if slow {
            ring.sleep(Duration::from_micros(300)).await;
        }
        let mut into = ring.lease((bytes - received.len()).min(16 * KIB)).await.unwrap();
        drop(into.split_off((bytes - received.len()).min(into.len())));
        let (got, into) = ring.recv(socket, into).await;
        match got.unwrap() {
            0 => break,
            got => received.extend_from_slice(&into[..got]),
        }
    }
    received
}

/// Transfers `ranges` of a file, all at once over a connection each; what each reader got.
async fn fan_out(
    ring: &Ring,
    egress: Egress,
    file: &Rc<SegmentFile>,
    ranges: &[(usize, usize)],
    transfers: &Rc<Transfers>,
    slow: bool,
) -> Vec<Vec<u8>> {
    let (left, got) =
        (Rc::new(Cell::new(ranges.len())), Rc::new(RefCell::new(vec![Vec::new(); ranges.len()])));
    for (number, &(at, bytes)) in ranges.iter().enumerate() {
        let (client, server) = connected(ring, "127.0.0.1:0").await;
        let (sender, file, transfers) = (ring.clone(), file.clone(), transfers.clone());
        ring.spawn(async move {
            send_piece(&sender, &server, egress, piece(&file, at, bytes), &transfers).await.unwrap();
        });
        let (receiver, left, got) = (ring.clone(), left.clone(), got.clone());
        ring.spawn(async move {
            let received = receive(&receiver, &client, bytes, slow).await;
            got.borrow_mut()[number] = received;
            left.set(left.get() - 1);
        });
    }
    while left.get() > 0 {
        ring.sleep(Duration::from_millis(1)).await;
    }
    got.take()
}

fn on_kernel<T: 'static>(body: impl AsyncFnOnce(Ring) -> T + 'static) -> T {
    let ring = Ring::of_kernel(&UringOptions::default(), ARENA).expect("these tests need io_uring");
    let main = ring.clone();
    let result = ring.run(async move { body(main).await });
    ring.shut_down();
    result
}

fn in_world<T: 'static>(seed: u64, body: impl AsyncFnOnce(World, Ring) -> T + 'static) -> T {
    let world = World::new(seed);
    let ring = world.ring(ARENA);
    let (main, outer) = (ring.clone(), world.clone());
    let result = world.run(&[&ring], async move { body(outer, main).await });
    ring.shut_down();
    result
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn every_byte_arrives_in_a_world_of_short_splices_and_full_sockets() {
    for seed in 0..30 {
        in_world(seed, async move |_, ring| {
            let content = pattern(2 * MIB);
            let file = segment(&ring, Path::new("/segment"), content.len()).await;
            let mut random = fastrand::Rng::with_seed(seed);
            let transfers = Rc::new(Transfers::default());
            for egress in PIPED {
                let ranges: Vec<(usize, usize)> = (0..6)
                    .map(|_| {
                        let at = random.usize(0..content.len());
                        (at, random.usize(1..=content.len() - at))
                    })
                    .collect();
                let got = fan_out(&ring, egress, &file, &ranges, &transfers, false).await;
                for (&(at, bytes), got) in ranges.iter().zip(&got) {
                    assert!(got[..] == content[at..at + bytes], "seed {seed}, {egress}: [{at}, +{bytes})");
                }
                assert_eq!(transfers.egress(egress).fallback_bytes, 0, "seed {seed}, {egress}");
            }
        });
    }
}

#[test]
fn pipes_that_are_refused_or_small_are_no_reason_to_fail_and_are_counted() {
    // Nothing at all; too small for anything; large enough for a reader, too small for a unit and what lies before it.
    for (small, carriers) in [
        (None, [Egress::Sendfile, Egress::Sendfile, Egress::Sendfile, Egress::Direct]),
        (Some(8 * KIB), [Egress::Sendfile, Egress::Sendfile, Egress::Sendfile, Egress::Direct]),
        (Some(128 * KIB), [Egress::Splice, Egress::RingSplice, Egress::Splice, Egress::Vmsplice]),
    ] {
        for (egress, carrier) in PIPED.into_iter().zip(carriers) {
            in_world(3, async move |world, ring| {
                let file = segment(&ring, Path::new("/segment"), MIB).await;
                world.faults().exhaust_descriptors(small.is_none());
                world.faults().shrink_pipes(small);
                let transfers = Rc::new(Transfers::default());
                let got = fan_out(&ring, egress, &file, &[(5000, 900_000)], &transfers, false).await;
                assert!(got[0][..] == pattern(MIB)[5000..905_000], "{egress} by {carrier}");
                let fell_back = if egress == carrier { 0 } else { 900_000 - HELD };
                assert_eq!(transfers.egress(egress).fallback_bytes, fell_back, "{egress} by {carrier}");
                let held = if egress == carrier { 0 } else { HELD };
                assert_eq!(transfers.egress(carrier).bytes, 900_000 - held, "{egress} by {carrier}");
            });
        }
    }
}

#[test]
fn masters_that_cannot_be_had_leave_readers_to_themselves() {
    in_world(5, async |world, ring| {
        let file = segment(&ring, Path::new("/segment"), MIB).await;
        let transfers = Rc::new(Transfers::default());
        // The reader's pipe is there, kept from the first; a master's is not to be had. One that is there serves on.
        let got = fan_out(&ring, Egress::Splice, &file, &[(0, 10)], &transfers, false).await;
        assert_eq!(got[0], pattern(4096)[..10]);
        world.faults().exhaust_descriptors(true);
        let got = fan_out(&ring, Egress::Tee, &file, &[(0, MIB)], &transfers, false).await;
        assert!(got[0] == pattern(MIB));
        assert_eq!(transfers.egress(Egress::Tee).fallback_bytes, MIB as u64 - HELD);
        world.faults().exhaust_descriptors(false);
        fan_out(&ring, Egress::Tee, &file, &[(0, 100)], &transfers, false).await;
        world.faults().exhaust_descriptors(true);
        let got = fan_out(&ring, Egress::Tee, &file, &[(0, MIB)], &transfers, false).await;
        assert!(got[0] == pattern(MIB));
        assert_eq!(transfers.egress(Egress::Tee).fallback_bytes, MIB as u64 - HELD, "nothing more");
        assert_eq!(transfers.masters().0, 1);
    });
}

#[test]
fn what_cannot_be_read_is_an_error_with_its_place_and_the_next_reader_is_served() {
    for seed in 0..10 {
        in_world(seed, async move |world, ring| {
            let file = segment(&ring, Path::new("/segment"), MIB).await;
            let transfers = Rc::new(Transfers::default());
            for egress in PIPED {
                let (_client, server) = connected(&ring, "127.0.0.1:0").await;
                world.faults().fail_reads("segment", 1);
                let sent = send_piece(&ring, &server, egress, piece(&file, 4096, 9000), &transfers).await;
                let words = sent.unwrap_err().to_string();
                assert!(
                    words.contains("/segment at position") && words.contains("os error 5"),
                    "{egress}: {words}"
                );
                // Shorter than the plan says: somebody cut it.
                let sent =
                    send_piece(&ring, &server, egress, piece(&file, MIB - 4096, 8192), &transfers).await;
                let words = sent.unwrap_err().to_string();
                assert!(words.contains("ends at position 1048576"), "{egress}: {words}");
                let got = fan_out(&ring, egress, &file, &[(100, MIB - 100)], &transfers, false).await;
                assert!(got[0][..] == pattern(MIB)[100..], "seed {seed}, {egress}");
            }
        });
    }
}

#[test]
fn readers_that_stall_and_come_back_get_every_byte() {
    on_kernel(async |ring| {
        let directory = directory();
        let file = segment(&ring, &directory.path().join("segment"), 6 * MIB).await;
        let content = pattern(6 * MIB);
        // More than sockets hold; two beside each other, of which neither begins at a block.
        let ranges = [(4097, 6 * MIB - 5000), (300_001, 5 * MIB)];
        for egress in PIPED {
            let transfers = Rc::new(Transfers::default());
            let got = fan_out(&ring, egress, &file, &ranges, &transfers, true).await;
            for (&(at, bytes), got) in ranges.iter().zip(&got) {
                assert!(got[..] == content[at..at + bytes], "{egress}: [{at}, +{bytes})");
            }
            assert_eq!(transfers.egress(egress).fallback_bytes, 0, "{egress}");
        }
    });
}

#[test]
fn a_range_that_many_read_is_read_once() {
    on_kernel(async |ring| {
        let directory = directory();
        let file = segment(&ring, &directory.path().join("segment"), 4 * MIB).await;
        let (content, transfers) = (pattern(4 * MIB), Rc::new(Transfers::default()));
        let range = (100_000, 2 * MIB);
        let units = (range.0 + range.1).div_ceil(UNIT) - range.0 / UNIT;
        for readers in 1..=8 {
            let got = fan_out(&ring, Egress::Tee, &file, &[range], &transfers, false).await;
            assert!(got[0][..] == content[range.0..range.0 + range.1]);
            let shared = transfers.egress(Egress::Tee).shared_reads;
            assert_eq!(shared, ((readers - 1) * units) as u64, "{readers} readers of {units} units");
        }
        // Of the last unit only what was wanted is there; who wants more extends it, and it is no less shared then.
        let (masters, held) = transfers.masters();
        assert_eq!((masters, held), (units, (range.0 + range.1) as u64 - HELD));
        let got = fan_out(&ring, Egress::Tee, &file, &[(range.0, 3 * MIB)], &transfers, false).await;
        assert!(got[0][..] == content[range.0..range.0 + 3 * MIB]);
        // Piece by piece, as a log grows, none of them at a page: places for pages in parts run out and it is taken anew.
        for end in (0..200).map(|step| 3 * MIB + 500_000 + step * 1111) {
            let got = fan_out(
                &ring,
                Egress::Tee,
                &file,
                &[(3 * MIB + 400_000, end - 3 * MIB - 400_000)],
                &transfers,
                false,
            )
            .await;
            assert!(got[0][..] == content[3 * MIB + 400_000..end], "up to {end}");
        }
        assert_eq!(transfers.egress(Egress::Tee).fallback_bytes, 0);
    });
}

#[test]
fn masters_are_few_and_go_with_their_files() {
    on_kernel(async |ring| {
        let directory = directory();
        let path = directory.path().join("segment");
        let file = segment(&ring, &path, 24 * MIB).await;
        let transfers = Rc::new(Transfers::default());
        let got = fan_out(&ring, Egress::Tee, &file, &[(0, 24 * MIB)], &transfers, false).await;
        assert!(got[0] == pattern(24 * MIB));
        assert_eq!(transfers.masters(), (64, 64 * UNIT as u64 - HELD), "of 96 units");
        // The last ones are there, the first ones have gone.
        let shared = || transfers.egress(Egress::Tee).shared_reads;
        fan_out(&ring, Egress::Tee, &file, &[(20 * MIB, 4 * MIB)], &transfers, false).await;
        assert_eq!(shared(), 16);
        fan_out(&ring, Egress::Tee, &file, &[(0, MIB)], &transfers, false).await;
        assert_eq!(shared(), 16);
        // The same path, opened anew, is another file: nothing of the old one is taken for it.
        let again = opened(&ring, &path).await;
        fan_out(&ring, Egress::Tee, &again, &[(20 * MIB, MIB)], &transfers, false).await;
        assert_eq!((shared(), transfers.masters().0), (16, 64));
        drop(file);
        fan_out(&ring, Egress::Tee, &again, &[(21 * MIB, MIB)], &transfers, false).await;
        assert_eq!(
            transfers.masters().0,
            8,
            "whoever misses one finds that nobody has the others' file open"
        );
    });
}

#[test]
fn memory_for_one_use_is_bounded_and_given_back() {
    on_kernel(async |ring| {
        let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        let directory = directory();
        let file = segment(&ring, &directory.path().join("segment"), 8 * MIB).await;
        let transfers = Rc::new(Transfers::default());
        fan_out(&ring, Egress::Vmsplice, &file, &[(0, MIB)], &transfers, false).await;
        let before = maps();
        let stalled: Vec<(usize, usize)> = (0..40).map(|n| (n * 5000, 7 * MIB)).collect();
        let got = fan_out(&ring, Egress::Vmsplice, &file, &stalled, &transfers, true).await;
        let content = pattern(8 * MIB);
        assert!(got.iter().zip(&stalled).all(|(got, (at, bytes))| got[..] == content[*at..at + bytes]));
        let counted = transfers.egress(Egress::Vmsplice);
        let direct = transfers.egress(Egress::Direct).bytes;
        // 96 MiB in shares of 3 MiB.
        assert_eq!(
            (counted.bytes, counted.fallback_bytes),
            ((7 * 32 + 1) * MIB as u64 + 8 * HELD, 8 * (7 * MIB as u64 - HELD))
        );
        assert_eq!(direct, counted.fallback_bytes);
        let mut looks = 0;
        // Arena memory that `direct` was the first to ask for stays.
        while maps() > before + 40 {
            looks += 1;
            assert!(looks < 1000, "{} mappings, {before} before", maps());
            ring.sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn a_transfer_that_is_dropped_takes_its_pipes_along() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    on_kernel(async move |ring| {
        let directory = directory();
        let file = segment(&ring, &directory.path().join("segment"), 4 * MIB).await;
        let before = descriptors();
        for egress in PIPED {
            for patience in [0, 20, 200, 2000] {
                let (client, server) = connected(&ring, "127.0.0.1:0").await;
                let transfers = Transfers::default();
                let sending = send_piece(&ring, &server, egress, piece(&file, 0, 4 * MIB), &transfers);
                let waiting = ring.sleep(Duration::from_micros(patience));
                let mut sending = Box::pin(sending);
                let mut waiting = Box::pin(waiting);
                std::future::poll_fn(|cx| match waiting.as_mut().poll(cx) {
                    std::task::Poll::Pending => sending.as_mut().poll(cx).map(drop),
                    ready => ready,
                })
                .await;
                drop(sending);
                drop((client, server));
            }
        }
        // Operations end in their own time.
        let mut looks = 0;
        while descriptors() > before + 2 * PIPES_KEPT_MAX {
            looks += 1;
            assert!(looks < 1000, "{} descriptors, {before} before", descriptors());
            ring.sleep(Duration::from_millis(5)).await;
        }
    });
}

async fn append(ring: &Ring, partition: &Partition, value: &[u8]) {
    let mut builder = BatchBuilder::new(Timestamp(1));
    builder.push(Timestamp(1), None, Some(value), &[]);
    let batch = builder.finish();
    let mut lease = ring.lease(batch.len()).await.unwrap();
    drop(lease.split_off(batch.len()));
    lease.copy_from_slice(batch);
    let header = check_produced(batch).unwrap();
    partition.append(lease, header, None, ring.now()).await.unwrap().reached().await.unwrap();
}

/// Once a master of `tee` would have gone on serving what was cut: the file is the same, its bytes are others.
#[test]
fn what_was_cut_off_and_written_anew_is_read_anew() {
    for seed in 0..10 {
        in_world(seed, async move |_, ring| {
            let config =
                ShardConfig { egress: Egress::Tee, commit: Commit::Files, ..ShardConfig::new("/data") };
            let shard = Shard::open(&ring, config).await.unwrap();
            let topic = shard.create_topic("t", 1, TopicConfig::default()).await.unwrap();
            let partition = topic.here(0).unwrap();
            let mut expected = Vec::new();
            for value in [1, 2] {
                for _ in 0..5 {
                    append(&ring, partition, &[value; 40_000]).await;
                }
                let mut wanted = Vec::new();
                partition.fetch(Offset(0), 1 << 20, Egress::Copy, &mut wanted).await.unwrap();
                expected = pieces::read(&ring, wanted).await;
                let mut found = Vec::new();
                partition.fetch(Offset(0), 1 << 20, Egress::Tee, &mut found).await.unwrap();
                let (client, server) = connected(&ring, "127.0.0.1:0").await;
                let mut response = Response::default();
                found.into_iter().for_each(|piece| response.push_records(piece));
                let (sender, sending) = (ring.clone(), shard.clone());
                ring.spawn(async move {
                    send(&sender, &server, Egress::Tee, &mut response, sending.transfers()).await.unwrap();
                });
                let got = receive(&ring, &client, expected.len(), false).await;
                assert!(got == expected, "seed {seed}, value {value}");
                assert_eq!(shard.transfers().masters().0, 1, "seed {seed}");
                if value == 1 {
                    partition.truncate_to(Offset(1)).await.unwrap();
                }
            }
            assert_eq!(expected.iter().filter(|&&byte| byte == 2).count() / 40_000, 5, "seed {seed}");
            // And with the segment goes its master.
            partition.reset_to(Offset(100)).await.unwrap();
            assert_eq!(shard.transfers().masters().0, 0, "seed {seed}");
            shard.close().await.unwrap();
        });
    }
}

/// On a ring's thread, beside a reader on another: allocations and system calls of so many transfers.
#[test]
fn transfers_in_the_steady_state_do_not_allocate_and_make_few_calls() {
    use std::io::Read;
    const TRANSFERS: usize = 100;
    // System calls of the shard's thread for a mebibyte, sockets that fill up now and then included.
    for (egress, calls_max) in
        [(Egress::Splice, 24.0), (Egress::RingSplice, 20.0), (Egress::Tee, 30.0), (Egress::Vmsplice, 24.0)]
    {
        let directory = directory();
        let ring = Ring::of_kernel(&UringOptions::default(), ARENA).unwrap();
        let (main, path) = (ring.clone(), directory.path().join("segment"));
        let (file, socket, reader) = ring.run(async move {
            let file = segment(&main, &path, 8 * MIB).await;
            let listener = main.listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
            let mut peer = std::net::TcpStream::connect(listener.address()).unwrap();
            let reader = std::thread::spawn(move || {
                let mut into = vec![0; MIB];
                while peer.read(&mut into).unwrap() > 0 {}
            });
            (file, main.accept(&listener).await.unwrap(), reader)
        });
        let transfers = Rc::new(Transfers::default());
        let measured = Rc::new(Cell::new(Some(Response::default())));
        let run = |transfers_wanted: usize| {
            let (ring, file, socket) = (ring.clone(), file.clone(), socket.clone());
            let (transfers, response) = (transfers.clone(), measured.clone());
            let main = ring.clone();
            ring.run(async move {
                let mut kept = response.take().unwrap();
                for number in 0..transfers_wanted {
                    kept.push_records(piece(&file, number % 7 * MIB + 300_000, MIB));
                    send(&main, &socket, egress, &mut kept, &transfers).await.unwrap();
                }
                response.set(Some(kept));
            });
        };
        run(20);
        let before = ring.counters();
        let allocations = allocation_counter::measure(|| run(TRANSFERS)).count_total;
        let calls = (ring.counters().system_calls - before.system_calls) as f64 / TRANSFERS as f64;
        println!(
            "{egress}: {allocations} allocations in {TRANSFERS} transfers, {calls:.1} system calls a MiB"
        );
        // The task itself and what it reports by.
        assert!(allocations <= 16, "{egress}: {allocations} allocations in {TRANSFERS} transfers");
        assert!(calls <= calls_max, "{egress}: {calls:.1} system calls a MiB");
        assert_eq!(transfers.egress(egress).fallback_bytes, 0, "{egress}");
        socket.shutdown();
        ring.shut_down();
        reader.join().unwrap();
    }
}
