//! The kernel's ring, for real: sockets, files, timers, dropped operations.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::sim::World;
use super::*;

fn ring() -> Ring {
    Ring::of_kernel(&UringOptions::default(), 64 << 20).expect("these tests need io_uring")
}

#[test]
fn bytes_go_through_a_socket_and_a_file() {
    move_bytes(ring());
}

/// What a host refuses is said; what it grants moves the same bytes.
#[test]
fn bytes_go_through_whatever_the_ring_is_made_of() {
    let plain = UringOptions::default();
    for (options, refusal) in [
        (UringOptions { sqpoll: Some(SqPoll { idle_ms: 1, core: None }), ..plain }, "io_uring"),
        (UringOptions { sqpoll: Some(SqPoll { idle_ms: 1000, core: Some(0) }), ..plain }, "io_uring"),
        (UringOptions { registered_buffers: false, registered_files: false, ..plain }, ""),
        (UringOptions { pages: PageKind::Small, ..plain }, ""),
        (UringOptions { napi_busy_poll_micros: Some(50), ..plain }, "NAPI"),
    ] {
        match Ring::of_kernel(&options, 64 << 20) {
            Ok(ring) => {
                let polled = ring.capabilities().unwrap().setup.granted.contains(&"SQPOLL");
                assert_eq!(polled, options.sqpoll.is_some());
                move_bytes(ring.clone());
                let registered = ring.arena().usage().registered_bytes > 0;
                assert!(options.registered_buffers || !registered, "{options:?}");
            }
            Err(error) => {
                let words = error.to_string();
                assert!(!refusal.is_empty() && words.contains(refusal), "{options:?}: {words}");
                eprintln!("skipped: {words}");
            }
        }
    }
}

#[test]
fn reserved_huge_pages_are_had_or_the_error_names_the_cure() {
    let options = UringOptions { pages: PageKind::Reserved, ..UringOptions::default() };
    let ring = Ring::of_kernel(&options, 8 << 20).expect("these tests need io_uring");
    let main = ring.clone();
    ring.run(async move {
        match main.lease(4096).await {
            Ok(mut lease) => lease.fill(7),
            Err(error) => assert!(error.to_string().contains("vm.nr_hugepages"), "{error}"),
        }
    });
}

fn move_bytes(ring: Ring) {
    let main = ring.clone();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f");
    ring.run(async move {
        let ring = main;
        let listener = ring.listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let address = listener.address();
        let server = ring.clone();
        let received = Rc::new(Cell::new(0));
        let seen = received.clone();
        ring.spawn(async move {
            for _ in 0..2 {
                let socket = server.accept(&listener).await.unwrap();
                let into = server.lease(100_000).await.unwrap();
                let (result, into) = server.recv_all(&socket, into).await;
                let n = result.unwrap();
                assert!(into[..n].iter().all(|&b| b == 7));
                seen.set(seen.get() + n);
            }
        });
        for _ in 0..2 {
            let socket = ring.connect(address).await.unwrap();
            let mut from = ring.lease(60_000).await.unwrap();
            from.fill(7);
            let from = from.freeze();
            let mut gather = Gather::new();
            gather.push(from.slice(0..10)).ok().unwrap();
            gather.push(from.slice(50..60_000)).ok().unwrap();
            let (result, gather) = ring.send_gather(&socket, gather, false).await;
            assert_eq!(result.unwrap(), gather.bytes());
            // sendfile, on the same non-blocking socket.
            let file =
                ring.open(&path, OpenOptions { create: true, write: true, direct: false }).await.unwrap();
            let (result, _) = ring.write(&file, 0, from.slice(0..5000)).await;
            assert_eq!(result.unwrap(), 5000);
            ring.sync(&file).await.unwrap();
            assert!(ring.is_resident(&file, 0, 5000));
            assert_eq!(ring.sendfile(&socket, &file, 0, 5000).unwrap(), 5000);
            ring.writable(&socket).await.unwrap();
        }
        while received.get() < 2 * (59_960 + 5000) {
            ring.sleep(Duration::from_millis(1)).await;
        }
    });
    ring.shut_down();
}

#[test]
fn a_dropped_receive_keeps_its_memory_until_the_kernel_lets_go() {
    let ring = ring();
    let main = ring.clone();
    ring.run(async move {
        let ring = main;
        let listener = ring.listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let client = ring.connect(listener.address()).await.unwrap();
        let server = ring.accept(&listener).await.unwrap();
        let into = ring.lease(4096).await.unwrap();
        let leased = ring.arena().usage().leased_bytes;
        {
            let receive = ring.recv(&server, into);
            let mut receive = std::pin::pin!(receive);
            let never = std::future::poll_fn(|cx| {
                assert!(receive.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            });
            never.await;
        }
        assert_eq!(ring.arena().usage().leased_bytes, leased, "the kernel may still write there");
        while ring.arena().usage().leased_bytes == leased {
            ring.sleep(Duration::from_millis(1)).await;
        }
        drop(client);
    });
    ring.shut_down();
    assert_eq!(ring.operations_in_flight(), 0);
}

#[test]
fn direct_writes_use_registered_memory() {
    let ring = ring();
    let main = ring.clone();
    let directory = tempfile::tempdir_in(".").unwrap();
    let path = directory.path().join("d");
    ring.run(async move {
        let ring = main;
        let options = OpenOptions { create: true, write: true, direct: true };
        let Ok(file) = ring.open(&path, options).await else {
            eprintln!("SKIP: no O_DIRECT on this file system");
            return;
        };
        ring.prepare(&file, 0, 1 << 20).await.unwrap();
        assert_eq!(ring.size(&file).await.unwrap(), 1 << 20);
        let mut lease = ring.lease(64 << 10).await.unwrap();
        lease.fill(3);
        let (result, lease) = ring.write(&file, 8192, lease.freeze()).await;
        assert_eq!(result.unwrap(), lease.len());
        let (result, read) = ring.read(&file, 4096, ring.try_lease(64 << 10).unwrap()).await;
        assert_eq!(result.unwrap(), 64 << 10);
        assert!(read[..4096].iter().all(|&b| b == 0) && read[4096..].iter().all(|&b| b == 3));
        ring.trim(&file, 4096).await.unwrap();
        assert_eq!(ring.size(&file).await.unwrap(), 4096);
    });
    ring.shut_down();
}

#[test]
fn a_second_lock_names_the_holder() {
    let ring = ring();
    let main = ring.clone();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(".lock");
    ring.run(async move {
        let first = main.lock(&path).await.unwrap();
        let error = main.lock(&path).await.err().expect("the directory is taken").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        main.lock(&path).await.unwrap();
    });
}

#[test]
fn timers_fire_in_order_and_can_be_armed_again() {
    let ring = ring();
    let main = ring.clone();
    let started = ring.now();
    ring.run(async move {
        let timer = main.timer();
        timer.arm(main.now().plus(Duration::from_secs(100)));
        timer.arm(main.now().plus(Duration::from_millis(5)));
        std::future::poll_fn(|cx| timer.poll_expired(cx)).await;
        timer.arm(main.now().plus(Duration::from_millis(5)));
        std::future::poll_fn(|cx| timer.poll_expired(cx)).await;
    });
    let took = ring.now().nanos_since(started);
    assert!((10_000_000..50_000_000_000).contains(&took), "{took}");
}

#[test]
fn a_lost_path_is_an_error_that_names_it() {
    let ring = ring();
    let main = ring.clone();
    ring.run(async move {
        let path = std::path::Path::new("/nowhere/at/all");
        let error = main.open(path, OpenOptions::default()).await.err().unwrap();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
        assert!(main.read_file(path, 10).await.unwrap().is_none());
    });
}

/// Polls `future` once, which must not be ready then.
async fn begin<T>(mut future: Pin<&mut impl Future<Output = T>>) {
    std::future::poll_fn(|cx| {
        assert!(future.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
}

#[test]
fn who_waits_while_another_makes_the_arena_grow_is_patient_also_when_the_other_is_gone() {
    let world = World::new(1);
    let ring = world.ring(64 << 20);
    let main = ring.clone();
    world.run(&[&ring], async move {
        let grower = main.clone();
        let mut grows = Box::pin(async move { grower.lease(4096).await.map(drop) });
        begin(grows.as_mut()).await;
        // It is not polled any more, and then dropped: what it had begun is for others to do.
        let (waiter, served) = (main.clone(), Rc::new(Cell::new(false)));
        let seen = served.clone();
        main.spawn(async move {
            waiter.lease(64 << 10).await.expect("the budget has room");
            seen.set(true);
        });
        main.sleep(Duration::from_secs(5)).await;
        assert!(!served.get(), "one at a time makes the arena grow");
        assert!(!main.is_short_of_memory(), "the budget has room");
        drop(grows);
        main.sleep(Duration::from_millis(100)).await;
        assert!(served.get());
    });
}

#[test]
fn leases_are_given_in_the_order_of_coming_within_the_budget() {
    const BYTES: usize = 1 << 20;
    const BUDGET: u64 = 4 << 20;
    for seed in 0..20 {
        let world = World::new(seed);
        let ring = world.ring(BUDGET);
        let main = ring.clone();
        world.run(&[&ring], async move {
            let order = Rc::new(RefCell::new(Vec::new()));
            let held = Rc::new(RefCell::new(Vec::new()));
            for number in 0..20 {
                let (ring, order, held) = (main.clone(), order.clone(), held.clone());
                main.spawn(async move {
                    let lease = ring.lease(BYTES).await.unwrap();
                    order.borrow_mut().push(number);
                    held.borrow_mut().push(lease);
                });
            }
            while order.borrow().len() < 20 {
                main.sleep(Duration::from_millis(30)).await;
                let usage = main.arena().usage();
                assert!(usage.mapped_bytes <= BUDGET, "{usage:?}");
                // Another who comes now is not served before them.
                if held.borrow_mut().pop().is_some() && order.borrow().len() < 20 {
                    let mut late = Box::pin(main.lease(BYTES));
                    begin(late.as_mut()).await;
                }
            }
            assert_eq!(*order.borrow(), (0..20).collect::<Vec<_>>(), "seed {seed}");
            let started = main.now();
            let mut rest = Vec::new();
            let refused = loop {
                match main.lease(BYTES).await {
                    Ok(lease) => rest.push(lease),
                    Err(error) => break error,
                }
            };
            assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory);
            assert!(main.now().nanos_since(started) >= 2_000_000_000);
        });
    }
}

/// However many splices wait for the disk, the kernel starts no more workers for them than it was told.
#[test]
fn splices_that_wait_have_few_workers() {
    let ring = ring();
    let main = ring.clone();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f");
    std::fs::write(&path, vec![7; 64 << 20]).unwrap();
    let cold = std::fs::File::open(&path).unwrap();
    cold.sync_all().unwrap();
    // SAFETY: advice about an open file; no memory is involved.
    let advised = unsafe {
        use std::os::fd::AsRawFd;
        libc::posix_fadvise(cold.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED)
    };
    assert_eq!(advised, 0);
    // SAFETY: it only tells the calling thread's number.
    let own = format!("iou-wrk-{}\n", unsafe { libc::gettid() });
    let workers = move || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
        names.filter(|name| *name == own).count()
    };
    ring.run(async move {
        let ring = main;
        let file = ring.open(&path, OpenOptions::default()).await.unwrap();
        let (done, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        for number in 0..64 {
            let (ring, file, done) = (ring.clone(), file.clone(), done.clone());
            let (most, workers) = (most.clone(), workers.clone());
            ring.clone().spawn(async move {
                let (taken, pipe) =
                    ring.splice_in_waiting(&file, number << 20, 64 << 10, ring.pipe().unwrap()).await;
                assert_eq!(taken.unwrap(), pipe.held());
                most.set(workers().max(most.get()));
                done.set(done.get() + 1);
            });
        }
        while done.get() < 64 {
            ring.sleep(Duration::from_millis(1)).await;
        }
        assert!((1..=SPLICE_WORKERS_MAX as usize).contains(&most.get()), "{} workers", most.get());
    });
    ring.shut_down();
}

/// A socket without bytes is not waited for, its end is seen, and what comes lies in the file.
#[test]
fn bytes_go_from_a_socket_through_a_pipe_into_a_file() {
    let ring = ring();
    let main = ring.clone();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f");
    let inner = path.clone();
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    let expected = sent.clone();
    ring.run(async move {
        let ring = main;
        let options = OpenOptions { create: true, write: true, direct: false };
        let file = ring.open(&inner, options).await.unwrap();
        let (socket, mut stream) = pair(&ring).await;
        let mut pipe = ring.pipe().unwrap();
        let nothing = ring.splice_from_socket(&socket, 1000, &mut pipe).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        assert!(!ring.readable_unless(&socket, std::future::ready(())).await.unwrap(), "given up");
        let sender = std::thread::spawn(move || std::io::Write::write_all(&mut stream, &sent).unwrap());
        let mut at = 0;
        loop {
            assert!(ring.readable_unless(&socket, std::future::pending()).await.unwrap());
            match ring.splice_from_socket(&socket, 1 << 20, &mut pipe) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            while pipe.held() > 0 {
                let (written, rest) = ring.splice_to_file(&file, 10 + at, pipe).await;
                (at, pipe) = (at + written.unwrap() as u64, rest);
            }
        }
        sender.join().unwrap();
        assert_eq!(at, 3_000_000);
    });
    ring.shut_down();
    let found = std::fs::read(path).unwrap();
    assert!(found[..10] == [0; 10] && found[10..] == expected);
}

/// A connected pair: one end on the ring, the other an ordinary socket.
async fn pair(ring: &Ring) -> (Socket, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (ring.adopt_stream(listener.accept().unwrap().0).unwrap(), stream)
}

/// The value of byte `at` of a stream.
fn nth(at: usize) -> u8 {
    (at % 251) as u8
}

fn write_on_a_thread(mut stream: std::net::TcpStream, bytes: usize) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let all: Vec<u8> = (0..bytes).map(nth).collect();
        // Fails where the other end is given up.
        let _ = std::io::Write::write_all(&mut stream, &all);
    })
}

async fn assert_comes(incoming: &mut Incoming, bytes: usize) {
    let mut at = 0;
    while let Some(arrived) = incoming.next().await.unwrap() {
        let expected: Vec<u8> = (at..at + arrived.bytes().len()).map(nth).collect();
        assert!(arrived.bytes() == expected, "bytes from {at} on");
        at += expected.len();
    }
    assert_eq!(at, bytes);
}

#[test]
fn streams_come_whole_in_provided_buffers_also_when_there_are_fewer_buffers_than_streams() {
    const BYTES: usize = 5_000_000;
    // Room for 16 buffers in all: half of what the table holds, and fewer than there are streams.
    let ring = Ring::of_kernel(&UringOptions::default(), 16 * PROVIDED_BYTES as u64).unwrap();
    ring.prepare_incoming().unwrap();
    let (main, left) = (ring.clone(), Rc::new(Cell::new(24)));
    ring.run(async move {
        for _ in 0..left.get() {
            let (socket, stream) = pair(&main).await;
            write_on_a_thread(stream, BYTES);
            let (mut incoming, left) = (main.incoming(&socket), left.clone());
            main.spawn(async move {
                assert_comes(&mut incoming, BYTES).await;
                left.set(left.get() - 1);
            });
        }
        while left.get() > 0 {
            main.sleep(Duration::from_millis(1)).await;
        }
    });
    ring.shut_down();
    let usage = ring.arena().usage();
    assert!(usage.leased_bytes <= 16 * PROVIDED_BYTES as u64, "{usage:?}");
}

#[test]
fn who_does_not_ask_holds_few_buffers_and_loses_nothing() {
    const BYTES: usize = 60_000_000;
    let ring = ring();
    ring.prepare_incoming().unwrap();
    let main = ring.clone();
    ring.run(async move {
        let (slow, slow_stream) = pair(&main).await;
        write_on_a_thread(slow_stream, BYTES);
        let mut slow = main.incoming(&slow);
        let first = slow.next().await.unwrap().unwrap();
        assert_eq!(first.bytes()[0], nth(0));
        let mut at = first.bytes().len();
        drop(first);
        main.sleep(Duration::from_millis(200)).await;
        // Its backlog, what one go of the kernel adds to it, and what waits in the ring for others.
        let most = (incoming::BACKLOG_MAX + 32 + PROVIDED_BUFFERS) * PROVIDED_BYTES;
        let leased = main.arena().usage().leased_bytes;
        assert!(leased <= most as u64, "{leased} bytes are held for one who does not ask");
        // Others go on meanwhile.
        let (other, other_stream) = pair(&main).await;
        write_on_a_thread(other_stream, 3_000_000);
        assert_comes(&mut main.incoming(&other), 3_000_000).await;
        while let Some(arrived) = slow.next().await.unwrap() {
            assert_eq!(arrived.bytes()[0], nth(at));
            at += arrived.bytes().len();
        }
        assert_eq!(at, BYTES);
    });
    ring.shut_down();
}

#[test]
fn a_stream_that_is_given_up_lets_go_of_its_buffers_and_of_its_number() {
    let ring = ring();
    ring.prepare_incoming().unwrap();
    let main = ring.clone();
    ring.run(async move {
        for round in 0..50 {
            let (socket, stream) = pair(&main).await;
            let writer = write_on_a_thread(stream, 2_000_000);
            let mut incoming = main.incoming(&socket);
            for _ in 0..round % 3 {
                drop(incoming.next().await.unwrap());
            }
            drop(incoming);
            socket.shutdown();
            drop(socket);
            while !writer.is_finished() {
                main.sleep(Duration::from_millis(1)).await;
            }
        }
        let leased = main.arena().usage().leased_bytes;
        assert!(leased <= (PROVIDED_BUFFERS * PROVIDED_BYTES) as u64, "{leased} bytes are held for nobody");
    });
    ring.shut_down();
    assert_eq!(ring.operations_in_flight(), 0);
}
