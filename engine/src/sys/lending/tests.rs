//! Memory that is lent is nobody else's until it is released: on the kernel's ring and in the simulated world.

use std::cell::Cell;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use super::UNRELEASED_SENDS_MAX;
use crate::sys::ring::OPS_IN_FLIGHT_MAX;
use crate::sys::sim::World;
use crate::sys::{Lease, Lending, Ring, Socket, UNRELEASED_BYTES_MAX, UringOptions};

const PIECE: usize = 64 << 10;

fn kernel_ring(arena_bytes: u64) -> Option<Ring> {
    let ring = Ring::of_kernel(&UringOptions::default(), arena_bytes).expect("these tests need io_uring");
    if !ring.sends_zero_copy() {
        eprintln!("SKIP: this kernel has no zero-copy sends");
        return None;
    }
    Some(ring)
}

/// A socket of the ring's, and a peer that reads only when it is told to.
fn pair(ring: &Ring) -> (Socket, std::net::TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (ring.adopt_stream(listener.accept().unwrap().0).unwrap(), peer)
}

fn byte_at(position: usize) -> u8 {
    (position / 7 % 251) as u8
}

async fn piece(ring: &Ring, number: usize) -> Lease {
    let mut lease = ring.lease(PIECE).await.unwrap();
    for (index, byte) in lease.iter_mut().enumerate() {
        *byte = byte_at(number * PIECE + index);
    }
    lease.freeze()
}

/// Sends all of `lease`: lent where possible, going on after a short send.
async fn send_all(ring: &Ring, socket: &Socket, mut lease: Lease) -> io::Result<()> {
    while !lease.is_empty() {
        match ring.send_zero_copy(socket, &lease, false).await? {
            Lending::Sent(sent) => lease = lease.slice(sent..lease.len()),
            Lending::NotLent => {
                let length = lease.len();
                assert_eq!(ring.send(socket, lease, false).await.0?, length);
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Takes all memory that can be had, writes over it, and gives it back.
fn scribble(ring: &Ring) {
    let mut others = Vec::new();
    while let Some(mut other) = ring.try_lease(PIECE) {
        other.fill(0xee);
        others.push(other);
    }
}

#[test]
fn what_a_stalled_peer_has_not_taken_is_not_used_again() {
    let Some(ring) = kernel_ring(16 << 20) else { return };
    let main = ring.clone();
    ring.run(async move {
        let ring = main;
        let (socket, mut peer) = pair(&ring);
        let sent = Rc::new(Cell::new(0));
        let (sender, count) = (ring.clone(), sent.clone());
        let sending = socket.clone();
        ring.spawn(async move {
            for number in 0..200 {
                let lease = piece(&sender, number).await;
                if send_all(&sender, &sending, lease).await.is_err() {
                    return;
                }
                count.set(number + 1);
            }
        });
        // The socket is full when nothing moves any more.
        let mut before = usize::MAX;
        while before != sent.get() || sent.get() == 0 {
            before = sent.get();
            ring.sleep(Duration::from_millis(50)).await;
            scribble(&ring);
        }
        assert!(sent.get() < 200, "the peer's kernel took everything");
        let (unreleased, _) =
            socket.unreleased().expect("sends have completed, and their memory is not free");
        assert!(unreleased <= UNRELEASED_BYTES_MAX);
        let lent = ring.arena().usage().lent_bytes;
        assert!(lent > 0 && lent <= 4 << 20, "{lent} bytes are lent of 16 MiB");
        assert_eq!(ring.zero_copy().unreleased_bytes, unreleased);
        let reading = std::thread::spawn(move || {
            let mut bytes = vec![0; 200 * PIECE];
            io::Read::read_exact(&mut peer, &mut bytes).map(|()| (bytes, peer))
        });
        while !reading.is_finished() {
            scribble(&ring);
            ring.sleep(Duration::from_millis(1)).await;
        }
        let (bytes, _peer) = reading.join().unwrap().unwrap();
        let wrong = bytes.iter().enumerate().position(|(at, byte)| *byte != byte_at(at));
        assert_eq!(wrong, None, "a byte is another than was sent");
        std::future::poll_fn(|cx| socket.poll_settled(cx)).await;
        // The task that sent lets go of its last piece when it has its turn.
        for _ in 0..1000 {
            if ring.arena().usage().leased_bytes == 0 {
                break;
            }
            ring.sleep(Duration::from_millis(2)).await;
        }
        let (usage, counted) = (ring.arena().usage(), ring.zero_copy());
        assert_eq!((usage.lent_bytes, usage.leased_bytes, counted.unreleased_bytes), (0, 0, 0));
        assert!(counted.sends > 0 && counted.unreleased_bytes_most >= unreleased, "{counted:?}");
        assert!(counted.copied_sends <= counted.sends && counted.copied_bytes <= counted.sent_bytes);
    });
    ring.shut_down();
    assert_eq!(ring.operations_in_flight(), 0);
}

#[test]
fn a_dropped_zero_copy_send_keeps_its_memory_until_the_kernel_lets_go() {
    let Some(ring) = kernel_ring(16 << 20) else { return };
    let main = ring.clone();
    ring.run(async move {
        let ring = main;
        let (socket, peer) = pair(&ring);
        let lease = piece(&ring, 0).await;
        {
            let mut sending = std::pin::pin!(ring.send_zero_copy(&socket, &lease, false));
            std::future::poll_fn(|cx| {
                assert!(sending.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
        }
        drop(lease);
        assert_eq!(ring.arena().usage().leased_bytes, PIECE as u64, "the kernel may still read there");
        socket.abort();
        drop((socket, peer));
        while ring.arena().usage().leased_bytes > 0 {
            ring.sleep(Duration::from_millis(1)).await;
        }
    });
    ring.shut_down();
    assert_eq!(ring.operations_in_flight(), 0);
}

/// What the kernel keeps for a peer that takes nothing it would keep for minutes.
#[test]
fn a_ring_that_ends_does_not_wait_for_ever_for_a_peer_that_takes_nothing() {
    let Some(ring) = kernel_ring(16 << 20) else { return };
    let main = ring.clone();
    let peer = ring.run(async move {
        let ring = main;
        let (socket, peer) = pair(&ring);
        let sender = ring.clone();
        ring.spawn(async move {
            for number in 0.. {
                let lease = piece(&sender, number).await;
                send_all(&sender, &socket, lease).await.unwrap();
            }
        });
        let mut before = 0;
        while before == 0 || before != ring.zero_copy().sends {
            before = ring.zero_copy().sends;
            ring.sleep(Duration::from_millis(50)).await;
        }
        peer
    });
    assert!(ring.zero_copy().unreleased_bytes > 0);
    ring.shut_down();
    assert_eq!((ring.operations_in_flight(), ring.zero_copy().unreleased_bytes), (0, 0));
    drop(peer);
}

/// How often it was lent and not, of so many sends; whether the right bytes came.
fn sends_in_the_simulated_world(seed: u64, pieces: usize, prepare: impl FnOnce(&World)) -> (bool, Ring) {
    let world = World::new(seed);
    prepare(&world);
    let (ring, peer) = (world.ring(4 << 20), world.ring(64 << 20));
    let listener = peer.listen("127.0.0.1:9092".parse().unwrap(), false).unwrap();
    let (address, receiver) = (listener.address(), peer.clone());
    let right = Rc::new(Cell::new(None));
    let seen = right.clone();
    peer.spawn(async move {
        let socket = receiver.accept(&listener).await.unwrap();
        // It stalls for a while.
        receiver.sleep(Duration::from_millis(5)).await;
        let mut into = receiver.lease(pieces * PIECE).await.unwrap();
        drop(into.split_off(pieces * PIECE));
        let (received, into) = receiver.recv_all(&socket, into).await;
        assert_eq!(received.unwrap(), into.len());
        seen.set(Some(into.iter().enumerate().all(|(at, byte)| *byte == byte_at(at))));
        receiver.sleep(Duration::from_secs(1)).await;
    });
    let (main, outcome) = (ring.clone(), right.clone());
    world.run(&[&ring, &peer], async move {
        let socket = main.connect(address).await.unwrap();
        let (sender, sending) = (main.clone(), socket.clone());
        main.spawn(async move {
            for number in 0..pieces {
                let lease = piece(&sender, number).await;
                send_all(&sender, &sending, lease).await.unwrap();
            }
        });
        while outcome.get().is_none() {
            scribble(&main);
            main.sleep(Duration::from_micros(150)).await;
        }
        std::future::poll_fn(|cx| socket.poll_settled(cx)).await;
    });
    (right.get().unwrap(), ring)
}

#[test]
fn lent_memory_is_looked_at_late_and_a_driver_that_frees_it_early_is_found_out() {
    for seed in 0..60 {
        // The world itself asserts at each release that the memory is as it was.
        let (right, ring) = sends_in_the_simulated_world(seed, 8, |_| {});
        assert!(right, "seed {seed}: other bytes came than were sent");
        let (counted, usage) = (ring.zero_copy(), ring.arena().usage());
        assert!(counted.sends >= 8 && counted.sent_bytes == 8 * PIECE as u64, "seed {seed}: {counted:?}");
        assert_eq!(
            (counted.unreleased_bytes, usage.lent_bytes, usage.leased_bytes),
            (0, 0, 0),
            "seed {seed}"
        );
    }
    let mutant = |world: &World| world.faults().release_early(true);
    let found = (0..60).filter(|&seed| !sends_in_the_simulated_world(seed, 8, mutant).0).count();
    assert!(found > 10, "{found} of 60 seeds show memory that was let go of too early");
}

#[test]
fn short_zero_copy_sends_go_on_where_they_ended() {
    let more = |seed| sends_in_the_simulated_world(seed, 8, |_| {}).1.zero_copy().sends > 8;
    assert!((0..60).any(more), "some sends are short");
}

#[test]
fn a_kernel_without_zero_copy_sends_copies_and_it_is_counted() {
    let (right, ring) = sends_in_the_simulated_world(3, 8, |world| world.faults().refuse_zero_copy(true));
    let counted = ring.zero_copy();
    assert!(right);
    assert_eq!((counted.sends, counted.refused_sends, counted.unreleased_bytes_most), (0, 8, 0));
}

#[test]
fn beyond_the_bounds_nothing_is_lent_and_it_is_counted() {
    let world = World::new(9);
    let (ring, peer) = (world.ring(16 << 20), world.ring(16 << 20));
    let listener = peer.listen("127.0.0.1:9092".parse().unwrap(), false).unwrap();
    let (main, accepting, address) = (ring.clone(), peer.clone(), listener.address());
    world.run(&[&ring, &peer], async move {
        let socket = main.connect(address).await.unwrap();
        let stalled = accepting.accept(&listener).await.unwrap();
        // Nobody reads, so each lasts. A quarter of the arena is as much as a connection may have.
        let mut under_way = Vec::new();
        for _ in 0..UNRELEASED_BYTES_MAX / (1 << 20) {
            let lease = main.lease(1 << 20).await.unwrap().freeze();
            let (sender, sending) = (main.clone(), socket.clone());
            under_way.push(Rc::new(Cell::new(false)));
            let ended = under_way.last().unwrap().clone();
            main.spawn(async move {
                let _ = sender.send_zero_copy(&sending, &lease, false).await;
                ended.set(true);
            });
        }
        main.sleep(Duration::from_millis(1)).await;
        let lease = main.lease(PIECE).await.unwrap().freeze();
        let refused = main.send_zero_copy(&socket, &lease, false).await.unwrap();
        assert_eq!((refused, main.zero_copy().full_sends), (Lending::NotLent, 1), "the connection's bound");
        let other = main.connect(address).await.unwrap();
        let refused = main.send_zero_copy(&other, &lease, false).await.unwrap();
        assert_eq!((refused, main.zero_copy().full_sends), (Lending::NotLent, 2), "the arena's bound");
        assert_eq!(main.zero_copy().unreleased_bytes_most, UNRELEASED_BYTES_MAX);
        // It ends, and with it the loans.
        socket.abort();
        drop(stalled);
        while under_way.iter().any(|ended| !ended.get()) || main.arena().usage().lent_bytes > 0 {
            main.sleep(Duration::from_millis(1)).await;
        }
        assert!(matches!(main.send_zero_copy(&other, &lease, false).await.unwrap(), Lending::Sent(_)));
    });
    ring.shut_down();
}

/// Small sends would take every operation of the ring long before they came to the bounds in bytes.
#[test]
fn small_loans_leave_operations_for_everybody_else() {
    let world = World::new(11);
    let (ring, peer) = (world.ring(16 << 20), world.ring(16 << 20));
    let listener = peer.listen("127.0.0.1:9092".parse().unwrap(), false).unwrap();
    let (main, accepting, address) = (ring.clone(), peer.clone(), listener.address());
    world.run(&[&ring, &peer], async move {
        let socket = main.connect(address).await.unwrap();
        let stalled = accepting.accept(&listener).await.unwrap();
        let lease = piece(&main, 0).await;
        let ended = Rc::new(Cell::new(0));
        for _ in 0..UNRELEASED_SENDS_MAX {
            let (sender, sending, part, count) =
                (main.clone(), socket.clone(), lease.slice(0..64), ended.clone());
            main.spawn(async move {
                let _ = sender.send_zero_copy(&sending, &part, false).await;
                count.set(count.get() + 1);
            });
        }
        // All are submitted before any is released.
        while main.zero_copy().unreleased_sends < UNRELEASED_SENDS_MAX {
            assert_eq!((main.zero_copy().full_sends, ended.get()), (0, 0));
            poll_once().await;
        }
        assert_eq!(main.zero_copy().unreleased_sends, UNRELEASED_SENDS_MAX);
        let refused = main.send_zero_copy(&socket, &lease.slice(0..64), false).await.unwrap();
        assert_eq!((refused, main.zero_copy().full_sends), (Lending::NotLent, 1));
        assert!(main.operations_in_flight() < OPS_IN_FLIGHT_MAX / 2);
        socket.abort();
        drop(stalled);
        while ended.get() < UNRELEASED_SENDS_MAX || main.zero_copy().unreleased_sends > 0 {
            main.sleep(Duration::from_millis(1)).await;
        }
    });
    ring.shut_down();
}

/// Lets every other task that is ready run.
async fn poll_once() {
    let mut first = true;
    std::future::poll_fn(|cx| {
        if std::mem::take(&mut first) {
            cx.waker().wake_by_ref();
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(())
    })
    .await;
}

/// The sender goes while its bytes travel: what was lent stays as it was until they have arrived.
#[test]
fn a_connection_that_ends_leaves_its_loans_to_the_world() {
    for seed in 0..40 {
        let world = World::new(seed);
        let (ring, peer) = (world.ring(4 << 20), world.ring(4 << 20));
        let listener = peer.listen("127.0.0.1:9092".parse().unwrap(), false).unwrap();
        let (main, accepting, address) = (ring.clone(), peer.clone(), listener.address());
        world.run(&[&ring, &peer], async move {
            let socket = main.connect(address).await.unwrap();
            let stalled = accepting.accept(&listener).await.unwrap();
            let lease = piece(&main, 0).await;
            let (sender, sending) = (main.clone(), socket.clone());
            main.spawn(async move {
                let _ = send_all(&sender, &sending, lease).await;
            });
            main.sleep(Duration::from_millis(seed % 4)).await;
            if seed % 2 == 0 {
                socket.abort();
            } else {
                socket.shutdown();
            }
            if seed % 3 == 0 {
                drop(stalled);
            } else {
                accepting.sleep(Duration::from_millis(3)).await;
                stalled.shutdown();
            }
            drop(socket);
            while main.arena().usage().lent_bytes > 0 {
                scribble(&main);
                main.sleep(Duration::from_micros(50)).await;
            }
        });
        ring.shut_down();
        assert_eq!((ring.operations_in_flight(), ring.arena().usage().leased_bytes), (0, 0), "seed {seed}");
    }
}
