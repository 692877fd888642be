//! Memory that a reader has not taken is not written again, whatever the shard needs meanwhile: tail caches that are emptied,
//! appends that want memory. On the kernel's ring and in the simulated world, where a driver that lets go too early is found.

mod pieces;

use std::cell::Cell;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use ringlog::log::{BatchBuilder, check_produced};
use ringlog::shard::{Ack, Partition, Shard, ShardConfig, TopicConfig};
use ringlog::sys::sim::World;
use ringlog::sys::{Ring, Socket, UringOptions};
use ringlog::transfer::{Egress, Ingress, Response, Transfers, send};
use ringlog::types::{Offset, Timestamp};

use pieces::read;

const ARENA: u64 = 20 << 20;
const BATCH_BYTES: usize = 100_000;
const SENT: i64 = 5;
const APPENDS_MIN: u32 = 60;
const WAYS: [Egress; 2] = [Egress::TailZc, Egress::DirectZc];

async fn append(ring: &Ring, partition: &Partition, number: u32) {
    let mut builder = BatchBuilder::new(Timestamp(1));
    let value: Vec<u8> = (0..BATCH_BYTES).map(|at| (at as u32 * 31 + number * 7) as u8).collect();
    builder.push(Timestamp(1), None, Some(&value), &[]);
    let batch = builder.finish().to_vec();
    let mut lease = ring.lease(batch.len()).await.unwrap();
    drop(lease.split_off(batch.len()));
    lease.copy_from_slice(&batch);
    let header = check_produced(&batch).unwrap();
    partition.append(lease, header, None, ring.now()).await.unwrap().reached().await.unwrap();
}

/// Writes over all memory that is free.
fn scribble(ring: &Ring) {
    let mut others = Vec::new();
    for bytes in [4 << 10, 64 << 10, 256 << 10, 1 << 20] {
        while let Some(mut other) = ring.try_lease(bytes) {
            other.fill(0xee);
            others.push(other);
        }
    }
}

/// What a scenario leaves: the bytes that were to be sent, and the counters.
struct Sent {
    expected: Vec<u8>,
    counters: Transfers,
    lent_at_least_once: bool,
}

/// Sends the first batches to a peer that does not read, appends until their memory has been wanted many times over, lets
/// the peer read, and goes on with appending until it has everything.
async fn send_under_pressure(
    ring: &Ring,
    directory: &Path,
    egress: Egress,
    socket: Socket,
    may_read: impl FnOnce(),
    has_read: impl Fn() -> bool,
) -> Sent {
    let config = ShardConfig {
        ingress: Ingress::Copy,
        egress,
        arena_bytes_max: ARENA,
        tail_cache_bytes_max: 4 << 20,
        ..ShardConfig::new(directory)
    };
    let shard = Shard::open(ring, config).await.unwrap();
    let topic = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
    let topic = shard.create_topic("t", 1, topic).await.unwrap();
    let partition = topic.here(0).unwrap().clone();
    for number in 0..SENT as u32 {
        append(ring, &partition, number).await;
    }
    let (mut found, mut response) = (Vec::new(), Response::default());
    partition.fetch(Offset(0), 1 << 20, egress, &mut found).await.unwrap();
    let expected = read(ring, found.clone()).await;
    found.into_iter().for_each(|piece| response.push_records(piece));
    let counters = Rc::new(Transfers::default());
    let (sender, counting, sending) = (ring.clone(), counters.clone(), socket.clone());
    let done = Rc::new(Cell::new(false));
    let tell = done.clone();
    ring.spawn(async move {
        send(&sender, &sending, egress, &mut response, &counting).await.unwrap();
        drop(response);
        tell.set(true);
    });
    let mut lent_at_least_once = false;
    let mut appends = 0;
    let mut may_read = Some(may_read);
    while !has_read() {
        append(ring, &partition, 1000 + appends).await;
        scribble(ring);
        ring.sleep(Duration::from_micros(100)).await;
        appends += 1;
        lent_at_least_once |= ring.arena().usage().lent_bytes > 0;
        assert!(ring.arena().usage().lent_bytes <= ARENA / 4);
        if appends >= APPENDS_MIN
            && let Some(may_read) = may_read.take()
        {
            may_read();
        }
    }
    while !done.get() {
        ring.sleep(Duration::from_millis(1)).await;
    }
    std::future::poll_fn(|cx| socket.poll_settled(cx)).await;
    let (usage, zero_copy) = (ring.arena().usage(), ring.zero_copy());
    assert_eq!((usage.lent_bytes, zero_copy.unreleased_bytes), (0, 0));
    assert!(zero_copy.sends > 0 && zero_copy.sent_bytes > 0, "{egress}: {zero_copy:?}");
    shard.close().await.unwrap();
    let counters = Rc::into_inner(counters).expect("the send is done");
    Sent { expected, counters, lent_at_least_once }
}

#[test]
fn a_stalled_reader_gets_the_bytes_as_they_were() {
    for egress in WAYS {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().to_owned();
        let ring = Ring::of_kernel(&UringOptions::default(), ARENA).unwrap();
        if !ring.sends_zero_copy() {
            eprintln!("SKIP: this kernel has no zero-copy sends");
            return;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = ring.adopt_stream(listener.accept().unwrap().0).unwrap();
        let (start, wait) = std::sync::mpsc::channel::<()>();
        let reading = std::thread::spawn(move || {
            wait.recv().unwrap();
            let mut received = vec![0; SENT as usize * BATCH_BYTES];
            peer.read_exact(&mut received).unwrap();
            (received, peer)
        });
        let main = ring.clone();
        let (sent, (received, _peer)) = ring.run(async move {
            let may_read = move || start.send(()).unwrap();
            let sent =
                send_under_pressure(&main, &path, egress, socket, may_read, || reading.is_finished()).await;
            (sent, reading.join().unwrap())
        });
        ring.shut_down();
        assert!(sent.lent_at_least_once);
        assert!(received == sent.expected[..received.len()], "{egress}: other bytes came than were sent");
        let counted = sent.counters.egress(egress);
        // The block that the log ends in is memory, and a small piece goes by copying.
        assert!(
            counted.bytes >= 4 * BATCH_BYTES as u64 && counted.sends > counted.plain_sends,
            "{counted:?}"
        );
    }
}

/// Whether the peer got the bytes that were to be sent.
fn sends_right_bytes(seed: u64, egress: Egress, prepare: impl FnOnce(&World)) -> bool {
    let world = World::new(seed);
    prepare(&world);
    let (ring, peer) = (world.ring(ARENA), world.ring(ARENA));
    let listener = peer.listen("127.0.0.1:9092".parse().unwrap(), false).unwrap();
    let address = listener.address();
    let (started, received) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(None)));
    let (may_start, result) = (started.clone(), received.clone());
    let (receiver, main) = (peer.clone(), ring.clone());
    peer.spawn(async move {
        let socket = receiver.accept(&listener).await.unwrap();
        while !may_start.get() {
            receiver.sleep(Duration::from_millis(1)).await;
        }
        let mut into = receiver.lease(SENT as usize * BATCH_BYTES).await.unwrap();
        drop(into.split_off(SENT as usize * BATCH_BYTES));
        let (read, into) = receiver.recv_all(&socket, into).await;
        assert_eq!(read.unwrap(), into.len());
        result.set(Some(into.to_vec()));
        // What follows the batches.
        while receiver.recv(&socket, receiver.lease(4096).await.unwrap()).await.0.unwrap() > 0 {}
    });
    let arrived = Rc::new(Cell::new(false));
    let (seen, told) = (received.clone(), arrived.clone());
    let expected = world.run(&[&ring, &peer], async move {
        let socket = main.connect(address).await.unwrap();
        let has_read = || {
            let bytes = seen.take();
            told.set(told.get() || bytes.is_some());
            seen.set(bytes);
            told.get()
        };
        let may_read = || started.set(true);
        send_under_pressure(&main, Path::new("/data"), egress, socket, may_read, has_read).await.expected
    });
    let received = received.take().unwrap();
    received == expected[..received.len()]
}

#[test]
fn memory_lent_under_pressure_is_not_used_again_and_a_driver_that_does_is_found_out() {
    for egress in WAYS {
        for seed in 0..20 {
            assert!(sends_right_bytes(seed, egress, |_| {}), "{egress}, seed {seed}");
        }
        let mutant = |world: &World| world.faults().release_early(true);
        let found = (0..20).filter(|&seed| !sends_right_bytes(seed, egress, mutant)).count();
        assert!(found > 0, "{egress}: no seed shows memory that was let go of too early");
    }
}

#[test]
fn a_kernel_without_zero_copy_sends_is_served_by_copying_and_that_is_counted() {
    let world = World::new(1);
    world.faults().refuse_zero_copy(true);
    let (ring, peer) = (world.ring(ARENA), world.ring(ARENA));
    let listener = peer.listen("127.0.0.1:9092".parse().unwrap(), false).unwrap();
    let (main, accepting, address) = (ring.clone(), peer.clone(), listener.address());
    world.run(&[&ring, &peer], async move {
        let socket = main.connect(address).await.unwrap();
        let other = accepting.accept(&listener).await.unwrap();
        let lease = main.lease(64 << 10).await.unwrap().freeze();
        let bytes = lease.len() as u64;
        let mut response = Response::default();
        response.push_records(ringlog::transfer::Piece::Memory(lease));
        let counters = Transfers::default();
        let receiving = async {
            let (received, _) = accepting.recv_all(&other, accepting.lease(64 << 10).await.unwrap()).await;
            assert_eq!(received.unwrap() as u64, bytes);
        };
        let sending = send(&main, &socket, Egress::TailZc, &mut response, &counters);
        ringlog::transfer::join(sending, receiving).await.0.unwrap();
        let (wanted, carrier) = (counters.egress(Egress::TailZc), counters.egress(Egress::Tail));
        assert_eq!((wanted.bytes, wanted.fallback_bytes, carrier.bytes), (0, bytes, bytes));
        assert_eq!(main.zero_copy().unreleased_bytes_most, 0);
    });
}
