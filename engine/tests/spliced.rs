//! Crashes under `spliced`, in the simulated world: producers send through pipes, pause and leave in the middle, over a
//! disk that writes short; the run is cut anywhere, and what is left is opened and appended to.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ringlog::log::{BatchBuilder, BatchHeader, LogConfig, Records, check_produced, check_stored};
use ringlog::shard::{Ack, Partition, Shard, ShardConfig, Ticket, TopicConfig};
use ringlog::sys::sim::{CutKind, DiskImage, Recording, World};
use ringlog::sys::{LeaseMut, Ring, Socket};
use ringlog::transfer::{Egress, Ingress, Passage, Piece};
use ringlog::types::{Offset, Timestamp};

const ARENA: u64 = 64 << 20;
/// Of a batch so much is received in memory.
const STATED: usize = 100;
const PRODUCERS: u64 = 3;
const SENDS: usize = 14;
const PATIENCE: Duration = Duration::from_millis(1);

/// A batch that has its offset, and when which promise was kept.
struct Accepted {
    offset: i64,
    value: Vec<u8>,
    acked: Option<(usize, Ack)>,
}

/// What of the run went how.
#[derive(Default)]
struct Seen {
    accepted: Vec<Accepted>,
    left: usize,
    given_up: usize,
}

fn config() -> ShardConfig {
    let mut config = ShardConfig::new("/data");
    (config.ingress, config.trusted_producers) = (Ingress::Spliced, true);
    config.arena_bytes_max = ARENA;
    config
}

fn batch(value: &[u8]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Timestamp(1));
    builder.push(Timestamp(1), None, Some(value), &[]);
    builder.finish().to_vec()
}

fn value_of(batch: &[u8]) -> Vec<u8> {
    let record = Records::new(batch).unwrap().next().unwrap().unwrap();
    record.value.unwrap().to_vec()
}

async fn lease(ring: &Ring, bytes: usize) -> LeaseMut {
    let mut lease = ring.lease(bytes).await.unwrap();
    drop(lease.split_off(bytes));
    lease
}

/// Takes one batch from `socket`. None when the peer has left.
async fn take(ring: &Ring, partition: &Partition, socket: &Socket, seen: &RefCell<Seen>) -> Option<Ticket> {
    let (read, mut stated) = ring.recv_all(socket, lease(ring, STATED).await).await;
    if read.unwrap() < STATED {
        return None;
    }
    let header = BatchHeader::parse(&stated).unwrap();
    let whole = header.bytes as usize;
    let reservation = partition.reserve(&header).await.unwrap();
    let mut passage = Passage::open(ring).unwrap();
    let timer = ring.timer();
    timer.arm(ring.now().plus(PATIENCE));
    let received = reservation.splice(socket, &mut passage, STATED, &timer).await.unwrap();
    if received.left {
        seen.borrow_mut().left += 1;
        return None;
    }
    if received.filled == whole {
        return Some(reservation.commit_spliced(&header, stated, None, ring.now()).unwrap());
    }
    seen.borrow_mut().given_up += 1;
    let mut all = lease(ring, whole).await;
    all[..STATED].copy_from_slice(&stated);
    let back = lease(ring, received.filled - STATED).await;
    let back = reservation.read_back(STATED, back).await.unwrap();
    all[STATED..received.filled].copy_from_slice(&back);
    drop((reservation, stated.split_off(0)));
    let (read, rest) = ring.recv_all(socket, all.split_off(received.filled)).await;
    if read.unwrap() < rest.len() {
        return None;
    }
    all.unsplit(rest);
    check_produced(&all).expect("what was read back is what was sent");
    Some(partition.append(all, header, None, ring.now()).await.unwrap())
}

async fn serve(ring: Ring, partition: Partition, socket: Socket, seen: Rc<RefCell<Seen>>, world: World) {
    while let Some(ticket) = take(&ring, &partition, &socket, &seen).await {
        let acked = ticket.reached().await.unwrap();
        let mut seen = seen.borrow_mut();
        let one = seen.accepted.iter_mut().find(|one| one.offset == acked.offset.0);
        let now = Some((world.disk_events(), acked.reached));
        match one {
            Some(one) => one.acked = now,
            None => seen.accepted.push(Accepted { offset: acked.offset.0, value: Vec::new(), acked: now }),
        }
    }
}

async fn produce(ring: Ring, address: SocketAddr, seed: u64, left: Rc<RefCell<u64>>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut connected: Option<Socket> = None;
    for number in 0..SENDS {
        let socket = match connected.take() {
            Some(socket) => socket,
            None => ring.connect(address).await.unwrap(),
        };
        let mut value = format!("{seed}/{number} ").into_bytes();
        let bytes = if random.u8(..) < 60 { 20_000 } else { 2000 };
        let filler = random.usize(100..bytes);
        value.extend(std::iter::repeat_with(|| random.u8(..)).take(filler));
        let bytes = batch(&value);
        let (cut, leaves) = (random.usize(1..bytes.len()), random.u8(..) < 80);
        for part in [&bytes[..cut], &bytes[cut..]] {
            let mut from = lease(&ring, part.len()).await;
            from.copy_from_slice(part);
            let (sent, _) = ring.send(&socket, from.freeze(), false).await;
            sent.unwrap();
            if part.len() == cut && random.bool() {
                ring.sleep(Duration::from_micros(random.u64(..4000))).await;
            }
            if leaves {
                break;
            }
        }
        connected = (!leaves).then_some(socket);
    }
    *left.borrow_mut() -= 1;
    if let Some(socket) = connected {
        // Until what was sent is taken.
        ring.sleep(Duration::from_millis(200)).await;
        drop(socket);
    }
}

fn record(seed: u64) -> (Recording, Seen) {
    let world = World::new(seed);
    world.faults().short_writes(0.05);
    let (server, client) = (world.ring(ARENA), world.ring(ARENA));
    let seen: Rc<RefCell<Seen>> = Rc::default();
    let (ring, clients, list, clock) = (server.clone(), client.clone(), seen.clone(), world.clone());
    world.run(&[&server, &client], async move {
        let shard = Shard::open(&ring, config()).await.unwrap();
        let ack = if seed.is_multiple_of(2) { Ack::Durable } else { Ack::Written };
        let log = LogConfig { segment_bytes_max: 64 << 10, ..LogConfig::default() };
        let topic = TopicConfig { ack, log, ..TopicConfig::default() };
        let topic = shard.create_topic("t", 1, topic).await.unwrap();
        let partition = topic.here(0).unwrap().clone();
        let address: SocketAddr = "10.0.0.1:9092".parse().unwrap();
        let listener = ring.listen(address, false).unwrap();
        let (acceptor, to, into) = (ring.clone(), partition.clone(), list.clone());
        ring.spawn(async move {
            while let Ok(socket) = acceptor.accept(&listener).await {
                let (ring, partition) = (acceptor.clone(), to.clone());
                acceptor.spawn(serve(ring, partition, socket, into.clone(), clock.clone()));
            }
        });
        let left = Rc::new(RefCell::new(PRODUCERS));
        for producer in 0..PRODUCERS {
            clients.spawn(produce(clients.clone(), address, seed << 8 | producer, left.clone()));
        }
        while *left.borrow() > 0 {
            ring.sleep(Duration::from_millis(1)).await;
        }
        ring.sleep(Duration::from_millis(100)).await;
        // What lies where, as it was told.
        let all = read_all(&ring, &partition).await;
        for (header, bytes) in batches(&all) {
            let offset = header.base_offset.0;
            let mut list = list.borrow_mut();
            match list.accepted.iter_mut().find(|one| one.offset == offset) {
                Some(one) => one.value = value_of(bytes),
                None => list.accepted.push(Accepted { offset, value: value_of(bytes), acked: None }),
            }
        }
    });
    let recording = world.recording();
    server.shut_down();
    client.shut_down();
    (recording, seen.take())
}

fn batches(mut rest: &[u8]) -> Vec<(BatchHeader, &[u8])> {
    let mut all = Vec::new();
    while !rest.is_empty() {
        let whole = BatchHeader::parse(rest).unwrap().bytes as usize;
        all.push((check_stored(&rest[..whole]).unwrap(), &rest[..whole]));
        rest = &rest[whole..];
    }
    all
}

async fn read_all(ring: &Ring, partition: &Partition) -> Vec<u8> {
    let (mut all, mut next) = (Vec::new(), Offset(0));
    loop {
        let mut pieces = Vec::new();
        let fetched = partition.fetch(next, 1 << 20, Egress::Sendfile, &mut pieces).await.unwrap();
        if fetched.bytes == 0 {
            return all;
        }
        let from = all.len();
        for piece in pieces {
            let Piece::File { file, at, bytes } = piece else { panic!("there is no tail cache") };
            let mut at = at.0;
            let end = at + bytes;
            while at < end {
                let into = lease(ring, (end - at).min(64 << 10) as usize).await;
                let (read, into) = ring.read(&file.file, at, into).await;
                all.extend_from_slice(&into[..read.unwrap()]);
                at += into.len() as u64;
            }
        }
        next = batches(&all[from..]).last().unwrap().0.next_offset();
    }
}

/// Opens what a cut left, appends a small batch where something larger may have been under way, and reads everything.
fn reopen(image: DiskImage, seed: u64, appends: bool) -> (Recording, Vec<u8>) {
    let world = World::boot(seed, image);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    let found = world.run(&[&ring], async move {
        let shard = Shard::open(&main, config()).await.unwrap();
        let Some(topic) = shard.topic("t") else { return Vec::new() };
        let partition = topic.here(0).unwrap().clone();
        let found = read_all(&main, &partition).await;
        if appends {
            let bytes = batch(b"after");
            let mut one = lease(&main, bytes.len()).await;
            one.copy_from_slice(&bytes);
            let header = check_produced(&bytes).unwrap();
            let ticket = partition.append(one, header, Some(Ack::Written), main.now()).await.unwrap();
            ticket.reached().await.unwrap();
        }
        found
    });
    let recording = world.recording();
    ring.shut_down();
    (recording, found)
}

fn judge(seen: &Seen, found: &[u8], cut: usize, kind: CutKind) {
    let needed = match kind {
        CutKind::PowerLoss => Ack::Durable,
        CutKind::ProcessDeath => Ack::Written,
    };
    let found = batches(found);
    for (number, (header, bytes)) in found.iter().enumerate() {
        assert_eq!(header.base_offset.0, number as i64);
        let accepted = seen.accepted.iter().find(|one| one.offset == number as i64);
        let accepted = accepted.unwrap_or_else(|| panic!("offset {number} was never accepted"));
        assert!(accepted.value == value_of(bytes), "offset {number} holds other bytes");
    }
    for one in &seen.accepted {
        let promised = one.acked.is_some_and(|(event, reached)| event <= cut && reached >= needed);
        assert!(!promised || one.offset < found.len() as i64, "offset {} is lost", one.offset);
    }
}

#[test]
fn wherever_a_run_is_cut_the_log_is_a_prefix_of_what_was_accepted() {
    let first = std::env::var("RINGLOG_SEED").ok().and_then(|text| text.parse().ok());
    let first = first.unwrap_or_else(|| fastrand::u64(..1 << 40));
    println!("RINGLOG_SEED={first}");
    let (mut left, mut given_up, mut appended) = (0, 0, 0);
    for seed in first..first + 12 {
        let (recording, seen) = record(seed);
        (left, given_up, appended) =
            (left + seen.left, given_up + seen.given_up, appended + seen.accepted.len());
        let mut random = fastrand::Rng::with_seed(seed);
        let mut points: Vec<usize> = (0..60).map(|_| random.usize(..=recording.events())).collect();
        points.sort_unstable();
        let mut cursor = recording.cursor();
        for point in points {
            let kind = if random.bool() { CutKind::PowerLoss } else { CutKind::ProcessDeath };
            println!("seed {seed}, {kind:?} at {point} of {}", recording.events());
            let image = cursor.image_at(point, kind, random.u64(..));
            let (again, found) = reopen(image, random.u64(..), true);
            judge(&seen, &found, point, kind);
            // Killed with the small batch in the place of what was under way.
            let image = again.cursor().image_at(again.events(), CutKind::ProcessDeath, 1);
            let (_, after) = reopen(image, random.u64(..), false);
            if found.is_empty() && after.is_empty() {
                continue; // The topic was not there yet.
            }
            let after = batches(&after);
            assert_eq!(after.len(), batches(&found).len() + 1);
            assert_eq!(value_of(after.last().unwrap().1), b"after");
        }
    }
    println!("{appended} batches accepted, {given_up} given up, {left} whose producer left");
    assert!(left > 20 && given_up > 0 && appended > 100, "the runs show little");
}
