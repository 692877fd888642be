use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::log::BatchBuilder;
use crate::shard::{Shard, ShardConfig, TopicConfig};
use crate::sys::{OpenOptions, Ring};
use crate::transfer::{Egress, Piece};
use crate::types::{Offset, Timestamp};

const ARENA: u64 = 256 << 20;

async fn open_shard(ring: &Ring) -> Shard {
    Shard::open(ring, ShardConfig::new("/data")).await.unwrap()
}

/// Appends batches to a new topic, waits until each is durable, and closes. Gives the final disk.
fn produce(seed: u64) -> (World, DiskImage, u64) {
    let world = World::new(seed);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    world.run(&[&ring], async move {
        let shard = open_shard(&main).await;
        let topic = shard.create_topic("events", 2, TopicConfig::default()).await.unwrap();
        let partition = topic.here(0).unwrap();
        let mut tickets = Vec::new();
        for number in 0..20 {
            let mut builder = BatchBuilder::new(Timestamp(1000));
            builder.push(Timestamp(1000), None, Some(format!("value {number}").as_bytes()), &[]);
            let batch = builder.finish();
            let mut lease = main.lease(batch.len()).await.unwrap();
            lease[..batch.len()].copy_from_slice(batch);
            drop(lease.split_off(batch.len()));
            let header = crate::log::check_produced(&lease).unwrap();
            let ticket = partition.append(lease, header, None, main.now()).await.unwrap();
            if number % 3 == 0 {
                ticket.reached().await.unwrap();
            } else {
                tickets.push(ticket);
            }
        }
        for ticket in tickets {
            ticket.reached().await.unwrap();
        }
        drop(topic);
        shard.close().await.unwrap();
    });
    ring.shut_down();
    let now = ring.now().0;
    let recording = world.recording();
    let image = recording.cursor().image_at(recording.events(), CutKind::PowerLoss, seed);
    (world, image, now)
}

#[test]
fn a_shard_finds_after_a_restart_what_it_acknowledged() {
    for seed in 0..20 {
        let (_, image, _) = produce(seed);
        let world = World::boot(seed + 1, image);
        let ring = world.ring(ARENA);
        let main = ring.clone();
        let bytes = world.run(&[&ring], async move {
            let shard = open_shard(&main).await;
            let topic = shard.topic("events").unwrap();
            let mut pieces = Vec::new();
            let fetched =
                topic.here(0).unwrap().fetch(Offset(0), 1 << 20, Egress::Tail, &mut pieces).await.unwrap();
            assert_eq!(fetched.high_watermark, Offset(20));
            let mut all = Vec::new();
            for piece in pieces {
                match piece {
                    Piece::Memory(lease) => all.extend_from_slice(&lease),
                    Piece::File { file, at, bytes } => {
                        let into = main.lease(bytes as usize).await.unwrap();
                        let (read, into) = main.read(&file.file, at.0, into).await;
                        assert!(read.unwrap() as u64 >= bytes);
                        all.extend_from_slice(&into[..bytes as usize]);
                    }
                }
            }
            drop(topic);
            shard.close().await.unwrap();
            all
        });
        let text = String::from_utf8_lossy(&bytes);
        for number in 0..20 {
            assert!(text.contains(&format!("value {number}")), "seed {seed}: value {number}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let contents = |image: &DiskImage| -> Vec<_> {
        image.paths().into_iter().map(|path| (image.read(&path), path)).collect()
    };
    let (first_world, first, first_now) = produce(7);
    let (second_world, second, second_now) = produce(7);
    assert_eq!(first_now, second_now);
    assert_eq!(first_world.disk_events(), second_world.disk_events());
    assert_eq!(contents(&first), contents(&second));
    assert_ne!(produce(8).2, first_now);
}

#[test]
fn direct_operations_are_aligned() {
    let world = World::new(1);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    ring.run(async move {
        let options = OpenOptions { create: true, write: true, direct: true };
        let file = main.open(Path::new("/file"), options).await.unwrap();
        let lease = main.lease(4096).await.unwrap().freeze();
        assert_eq!(main.write(&file, 4096, lease.clone()).await.0.unwrap(), 4096);
        assert_eq!(main.write(&file, 512, lease.clone()).await.0.unwrap_err().raw_os_error(), Some(22));
        assert_eq!(main.write(&file, 0, lease.slice(0..512)).await.0.unwrap_err().raw_os_error(), Some(22));
        assert_eq!(main.size(&file).await.unwrap(), 8192);
        assert!(main.open(Path::new("/no/file"), options).await.is_err());
    });
}

const BLOCK: usize = 4096;
const BLOCKS: u64 = 16;

/// What a test knows about one block of its file: each written value, with the disk's event index when the write
/// was submitted, when it was seen to be complete, and when a sync that covers it was.
#[derive(Clone, Copy)]
struct Written {
    value: u8,
    submitted: usize,
    completed: usize,
    synced: usize,
}

/// Writes and syncs blocks of one file by four tasks, each with blocks of its own.
fn write_at_random(seed: u64, direct: bool, rounds: u32) -> (Recording, Vec<Vec<Written>>) {
    let world = World::new(seed);
    let ring = world.ring(ARENA);
    let (main, outer) = (ring.clone(), world.clone());
    let known = world.run(&[&ring], async move {
        let options = OpenOptions { create: true, write: true, direct };
        let file = main.open(Path::new("/file"), options).await.unwrap();
        main.sync_dir(Path::new("/")).await.unwrap();
        let known = Rc::new(RefCell::new(vec![Vec::<Written>::new(); BLOCKS as usize]));
        let running = Rc::new(Cell::new(4));
        for task in 0..4u64 {
            let (main, world, file) = (main.clone(), outer.clone(), file.clone());
            let (known, running) = (known.clone(), running.clone());
            main.clone().spawn(async move {
                let mut random = fastrand::Rng::with_seed(seed * 4 + task);
                let mut unsynced = Vec::new();
                for _ in 0..rounds {
                    let block = random.u64(..BLOCKS / 4) * 4 + task;
                    let value = known.borrow()[block as usize].len() as u8 + 1;
                    let mut lease = main.lease(BLOCK).await.unwrap();
                    lease.fill(value);
                    let submitted = world.disk_events();
                    let entry = Written { value, submitted, completed: usize::MAX, synced: usize::MAX };
                    known.borrow_mut()[block as usize].push(entry);
                    let written = main.write(&file, block * BLOCK as u64, lease.freeze()).await.0;
                    assert_eq!(written.unwrap(), BLOCK);
                    known.borrow_mut()[block as usize].last_mut().unwrap().completed = world.disk_events();
                    unsynced.push((block, value));
                    if random.u8(..3) == 0 {
                        main.sync(&file).await.unwrap();
                        for (block, value) in unsynced.drain(..) {
                            known.borrow_mut()[block as usize][value as usize - 1].synced =
                                world.disk_events();
                        }
                    }
                }
                running.set(running.get() - 1);
            });
        }
        while running.get() > 0 {
            main.sleep(Duration::from_millis(1)).await;
        }
        known.take()
    });
    ring.shut_down();
    (world.recording(), known)
}

/// Checks every cut of a recording against what was promised; says what is wrong with the first that is bad.
fn check_cuts(recording: &Recording, known: &[Vec<Written>], kind: CutKind) -> Result<(), String> {
    let mut cursor = recording.cursor();
    for cut in 0..=recording.events() {
        let image = cursor.image_at(cut, kind, cut as u64);
        let content = image.read(Path::new("/file")).unwrap_or_default();
        for (block, writes) in known.iter().enumerate() {
            let promised = |write: &Written| match kind {
                CutKind::PowerLoss => write.synced <= cut,
                CutKind::ProcessDeath => write.completed <= cut,
            };
            let least = writes.iter().filter(|w| promised(w)).map(|w| w.value).max().unwrap_or(0);
            let most = writes.iter().filter(|w| w.submitted <= cut).map(|w| w.value).max().unwrap_or(0);
            let start = (block * BLOCK).min(content.len());
            let bytes = &content[start..(start + BLOCK).min(content.len())];
            if least > 0 && bytes.len() < BLOCK {
                return Err(format!("cut {cut}: block {block} is missing"));
            }
            for sector in bytes.chunks(512) {
                let same = sector.iter().all(|byte| *byte == sector[0]);
                if !same || !(least..=most).contains(&sector[0]) {
                    return Err(format!(
                        "cut {cut}: block {block} has {} outside {least}..={most}",
                        sector[0]
                    ));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn every_cut_has_what_was_promised_and_nothing_else() {
    for seed in 0..30 {
        let (recording, known) = write_at_random(seed, seed % 2 == 0, 12);
        for kind in [CutKind::PowerLoss, CutKind::ProcessDeath] {
            check_cuts(&recording, &known, kind).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        }
    }
}

#[test]
fn power_loss_loses_what_was_not_synced_at_some_cut() {
    let (recording, known) = write_at_random(3, false, 12);
    let end = recording.events();
    let mut known = known;
    // To call written what is only promised after a sync must be found out.
    for write in known.iter_mut().flatten() {
        write.synced = write.completed;
    }
    assert!(check_cuts(&recording, &known, CutKind::PowerLoss).is_err(), "{end} events");
}

#[test]
fn ten_thousand_cuts_take_seconds() {
    let (recording, _) = write_at_random(5, true, 64);
    let mut cursor = recording.cursor();
    let events = recording.events();
    let started = std::time::Instant::now();
    let mut bytes = 0;
    for cut in 0..10_000 {
        let image = cursor.image_at(cut * events / 10_000, CutKind::PowerLoss, cut as u64);
        bytes += image.paths().len();
    }
    assert!(bytes > 0);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn names_survive_in_the_order_of_their_changes() {
    let world = World::new(11);
    let ring = world.ring(ARENA);
    let (main, outer) = (ring.clone(), world.clone());
    let (made, replaced) = ring.run(async move {
        let options = OpenOptions { create: true, write: true, direct: false };
        main.make_dir(Path::new("/dir")).await.unwrap();
        for name in ["/dir/a", "/dir/b", "/dir/c"] {
            main.open(Path::new(name), options).await.unwrap();
        }
        let made = outer.disk_events();
        main.replace(Path::new("/dir/a"), b"new".to_vec()).await.unwrap();
        let replaced = outer.disk_events();
        main.rename(Path::new("/dir"), Path::new("/moved")).await.unwrap();
        (made, replaced)
    });
    let recording = world.recording();
    let mut cursor = recording.cursor();
    let mut counts = BTreeSet::new();
    for seed in 0..100 {
        let count = cursor.image_at(made, CutKind::PowerLoss, seed).paths().len();
        counts.insert(count);
    }
    assert_eq!(counts, BTreeSet::from([0, 1, 2, 3]));
    for seed in 0..100 {
        let image = cursor.image_at(replaced, CutKind::PowerLoss, seed);
        assert_eq!((image.paths().len(), image.read(Path::new("/dir/a"))), (3, Some(b"new".to_vec())));
    }
    let image = cursor.image_at(recording.events(), CutKind::PowerLoss, 0);
    assert_eq!(image.read(Path::new("/moved/a")), Some(b"new".to_vec()));
}

/// Writes a block and takes new memory at once. True when the file holds what was to be written.
fn write_and_reuse(seed: u64, mutant: bool) -> bool {
    let world = World::new(seed);
    world.faults().reuse_memory_in_flight(mutant);
    let ring = world.ring(2 << 20);
    let main = ring.clone();
    ring.run(async move {
        let options = OpenOptions { create: true, write: true, direct: true };
        let file = main.open(Path::new("/file"), options).await.unwrap();
        let mut lease = main.lease(BLOCK).await.unwrap();
        lease.fill(1);
        let (writer, written) = (main.clone(), Rc::new(Cell::new(false)));
        let flag = written.clone();
        main.spawn(async move {
            assert_eq!(writer.write(&file, 0, lease.freeze()).await.0.unwrap(), BLOCK);
            flag.set(true);
        });
        while !written.get() {
            let mut others = Vec::new();
            while let Some(mut other) = main.try_lease(BLOCK) {
                other.fill(2);
                others.push(other);
            }
            main.sleep(Duration::from_micros(1)).await;
        }
    });
    let recording = world.recording();
    let image = recording.cursor().image_at(recording.events(), CutKind::ProcessDeath, 0);
    image.read(Path::new("/file")).unwrap().iter().all(|byte| *byte == 1)
}

#[test]
fn memory_reused_in_flight_is_seen_with_the_broken_driver_only() {
    assert!((0..20).all(|seed| write_and_reuse(seed, false)));
    assert!((0..20).any(|seed| !write_and_reuse(seed, true)));
}

#[test]
fn faults_strike_where_they_were_told_to() {
    let world = World::new(2);
    let ring = world.ring(ARENA);
    let (main, faults) = (ring.clone(), world.faults());
    ring.run(async move {
        let options = OpenOptions { create: true, write: true, direct: false };
        let file = main.open(Path::new("/struck"), options).await.unwrap();
        let other = main.open(Path::new("/other"), options).await.unwrap();
        let lease = main.lease(BLOCK).await.unwrap().freeze();
        faults.fail_writes("struck", 1);
        faults.fail_syncs("struck", 1);
        assert!(main.write(&other, 0, lease.clone()).await.0.is_ok());
        assert!(main.write(&file, 0, lease.clone()).await.0.is_err());
        assert!(main.write(&file, 0, lease.clone()).await.0.is_ok());
        assert!(main.sync(&file).await.is_err());
        assert!(main.sync(&file).await.is_ok());
        faults.short_writes(1.0);
        assert!(main.write(&file, 0, lease.clone()).await.0.unwrap() < BLOCK);
        faults.short_writes(0.0);
        faults.ignore_syncs(true);
        let ignored = main.open(Path::new("/ignored"), options).await.unwrap();
        assert!(main.write(&ignored, 0, lease.clone()).await.0.is_ok());
        assert!(main.sync(&ignored).await.is_ok());
    });
    let counters = ring.counters();
    assert_eq!((counters.writes, counters.syncs, counters.write_bytes), (5, 3, 5 * BLOCK as u64));
    let recording = world.recording();
    let mut cursor = recording.cursor();
    // The failed sync covered the only whole write; the later one that succeeded proves nothing.
    let mut lost = |path: &str| {
        (0..50).any(|seed| {
            let image = cursor.image_at(recording.events(), CutKind::PowerLoss, seed);
            image.read(Path::new(path)).is_some_and(|bytes| bytes.is_empty())
        })
    };
    assert!(lost("/struck") && lost("/ignored"));
}

#[test]
fn an_echo_between_two_rings() {
    for seed in 0..20 {
        let world = World::new(seed);
        let (server, client) = (world.ring(ARENA), world.ring(ARENA));
        let listener = server.listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let address = listener.address();
        let serving = server.clone();
        server.spawn(async move {
            let socket = serving.accept(&listener).await.unwrap();
            loop {
                let (received, mut lease) = serving.recv(&socket, serving.lease(3000).await.unwrap()).await;
                let received = received.unwrap();
                if received == 0 {
                    return;
                }
                drop(lease.split_off(received));
                let (sent, _) = serving.send(&socket, lease.freeze(), false).await;
                assert_eq!(sent.unwrap(), received);
            }
        });
        let main = client.clone();
        world.run(&[&client, &server], async move {
            const BYTES: usize = 600_000;
            let socket = main.connect(address).await.unwrap();
            let mut bytes = main.lease(BYTES).await.unwrap();
            drop(bytes.split_off(BYTES));
            for (index, byte) in bytes.iter_mut().enumerate() {
                *byte = (index % 251) as u8;
            }
            let bytes = bytes.freeze();
            let (sender, sending, whole) = (main.clone(), socket.clone(), bytes.clone());
            main.spawn(async move {
                let mut gather = crate::sys::Gather::new();
                assert!(gather.push(whole.slice(0..100)).is_ok());
                assert!(gather.push(whole.slice(200..300)).is_ok());
                assert_eq!(sender.send_gather(&sending, gather, true).await.0.unwrap(), 200);
                assert_eq!(sender.send(&sending, whole, false).await.0.unwrap(), BYTES);
            });
            let mut into = main.lease(BYTES + 200).await.unwrap();
            drop(into.split_off(BYTES + 200));
            let (received, into) = main.recv_all(&socket, into).await;
            assert_eq!(received.unwrap(), BYTES + 200);
            assert!(
                into[..100] == bytes[..100] && into[100..200] == bytes[200..300] && into[200..] == bytes[..]
            );
            socket.shutdown();
            assert_eq!(main.recv(&socket, into).await.0.unwrap(), 0);
            main.sleep(Duration::from_secs(1)).await;
        });
        assert_eq!(server.executor().live_tasks(), 0, "the server sees the end");
        let main = client.clone();
        world.run(&[&client], async move {
            let refused = main.connect(address).await.err().unwrap();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        });
    }
}

#[test]
fn a_file_is_sent_as_the_peer_makes_room() {
    let world = World::new(4);
    let ring = world.ring(ARENA);
    let main = ring.clone();
    ring.run(async move {
        let options = OpenOptions { create: true, write: true, direct: false };
        let file = main.open(Path::new("/file"), options).await.unwrap();
        let mut lease = main.lease(1 << 20).await.unwrap();
        lease.fill(9);
        let (written, lease) = main.write(&file, 0, lease.freeze()).await;
        assert_eq!(written.unwrap(), 1 << 20);
        let listener = main.listen("127.0.0.1:9092".parse().unwrap(), false).unwrap();
        let there = main.connect(listener.address()).await.unwrap();
        let here = main.accept(&listener).await.unwrap();
        let sender = main.clone();
        main.spawn(async move {
            let (mut at, mut waits) = (0, 0);
            while at < 1 << 20 {
                match sender.sendfile(&here, &file, at, (1 << 20) - at) {
                    Ok(sent) => at += sent as u64,
                    Err(error) => {
                        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                        waits += 1;
                        sender.writable(&here).await.unwrap();
                    }
                }
            }
            assert!(waits > 0);
        });
        let (received, into) = main.recv_all(&there, main.lease(1 << 20).await.unwrap()).await;
        assert_eq!((received.unwrap(), &into[..]), (1 << 20, &lease[..]));
        assert_eq!(main.recv(&there, into).await.0.unwrap(), 0);
    });
}

#[test]
#[should_panic(expected = "the world of seed 77")]
fn waiting_for_nothing_names_the_seed() {
    World::new(77).ring(ARENA).run(std::future::pending::<()>());
}

#[test]
fn recordings_may_be_cut_on_any_thread() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send + Clone>() {}
    shared::<Recording>();
    sent::<Recording>();
    sent::<DiskImage>();
}
