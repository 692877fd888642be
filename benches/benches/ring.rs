//! What a round costs on a ring of the kernel's, each beside its floor: an append beside the bare write of as many bytes, a
//! fetch plan beside parsing one header, a wake-up beside a task that polls itself. On the file system of the build
//! directory.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringlog::log::{BatchBuilder, BatchHeader, check_produced};
use ringlog::shard::{Ack, Shard, ShardConfig, TopicConfig};
use ringlog::sys::{OpenOptions, Ring, UringOptions};
use ringlog::transfer::Egress;
use ringlog::types::{Offset, Timestamp};

fn ring() -> Ring {
    Ring::of_kernel(&UringOptions::default(), 256 << 20).expect("this host has io_uring")
}

/// Runs `rounds` of `one` on the ring; the time they took.
fn timed<F: Future<Output = ()>>(ring: &Ring, rounds: u64, one: impl Fn() -> F + 'static) -> Duration {
    let run = async move {
        let begun = Instant::now();
        for _ in 0..rounds {
            one().await;
        }
        begun.elapsed()
    };
    ring.run(run)
}

fn wake(c: &mut Criterion) {
    let mut group = c.benchmark_group("executor");
    let ring = ring();
    group.bench_function("two tasks wake each other", |b| {
        b.iter_custom(|rounds| {
            let (inner, turns) = (ring.clone(), Rc::new(Cell::new(0u64)));
            ring.run(async move {
                let (wakers, begun) = (Rc::new(Cell::new([None, None])), Instant::now());
                for side in 0..2usize {
                    let (turns, wakers) = (turns.clone(), wakers.clone());
                    inner.spawn(poll_fn(move |cx| {
                        let mut known: [Option<std::task::Waker>; 2] = wakers.take();
                        known[side].get_or_insert_with(|| cx.waker().clone());
                        if turns.get() % 2 == side as u64 {
                            turns.set(turns.get() + 1);
                            if let Some(other) = &known[1 - side] {
                                other.wake_by_ref();
                            }
                        }
                        wakers.set(known);
                        if turns.get() >= rounds { Poll::Ready(()) } else { Poll::Pending }
                    }));
                }
                while turns.get() < rounds {
                    poll_fn(|cx| {
                        cx.waker().wake_by_ref();
                        if turns.get() >= rounds { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                }
                begun.elapsed()
            })
        });
    });
    group.bench_function("floor: a task polls itself", |b| {
        b.iter_custom(|rounds| {
            timed(&ring, rounds, || {
                let mut polled = false;
                poll_fn(move |cx| match std::mem::replace(&mut polled, true) {
                    true => Poll::Ready(()),
                    false => {
                        cx.waker().wake_by_ref();
                        Poll::Pending
                    }
                })
            })
        });
    });
    group.finish();
    ring.shut_down();
}

fn append_and_fetch(c: &mut Criterion) {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let ring = ring();
    let (inner, config) = (ring.clone(), ShardConfig::new(home.path().join("data")));
    let shard = ring.run(async move { Shard::open(&inner, config).await.unwrap() });
    let making = shard.clone();
    let topic = ring.run(async move {
        let config = TopicConfig { ack: Ack::Written, ..TopicConfig::default() };
        making.create_topic("bench", 1, config).await.unwrap()
    });
    let path = home.path().join("floor");
    let (inner, opened) = (ring.clone(), path.clone());
    let floor = ring.run(async move {
        let options = OpenOptions { create: true, write: true, direct: true };
        let file = inner.open(&opened, options).await.unwrap();
        inner.prepare(&file, 0, 1 << 20).await.unwrap();
        let lease = inner.lease(1 << 20).await.unwrap().freeze();
        inner.write(&file, 0, lease).await.0.unwrap();
        file
    });
    for bytes in [16 << 10, 256 << 10] {
        let mut builder = BatchBuilder::new(Timestamp(1));
        builder.push(Timestamp(1), None, Some(&vec![7; bytes - 100]), &[]);
        let batch = builder.finish().to_vec();
        let header = check_produced(&batch).unwrap();
        let mut group = c.benchmark_group("append");
        group.throughput(Throughput::Bytes(bytes as u64));
        let (inner, appended) = (ring.clone(), topic.clone());
        group.bench_function(BenchmarkId::new("written", bytes), |b| {
            b.iter_custom(|rounds| {
                let (inner, topic, batch) = (inner.clone(), appended.clone(), batch.clone());
                timed(&ring, rounds, move || {
                    let (ring, topic) = (inner.clone(), topic.clone());
                    let batch = batch.clone();
                    async move {
                        let mut lease = ring.lease(batch.len()).await.unwrap();
                        drop(lease.split_off(batch.len()));
                        lease.copy_from_slice(&batch);
                        let partition = topic.here(0).unwrap();
                        let ticket = partition.append(lease, header, None, ring.now()).await.unwrap();
                        ticket.reached().await.unwrap();
                    }
                })
            });
        });
        let (inner, file) = (ring.clone(), floor.clone());
        group.bench_function(BenchmarkId::new("floor: write", bytes), |b| {
            b.iter_custom(|rounds| {
                let (inner, file) = (inner.clone(), file.clone());
                timed(&ring, rounds, move || {
                    let (ring, file) = (inner.clone(), file.clone());
                    async move {
                        let mut lease = ring.lease(bytes).await.unwrap();
                        drop(lease.split_off(bytes));
                        assert_eq!(ring.write(&file, 0, lease.freeze()).await.0.unwrap(), bytes);
                    }
                })
            });
        });
        group.finish();
    }
    fetch(c, &ring, &topic);
    let closing = shard.clone();
    ring.run(async move { closing.close().await.unwrap() });
    drop((shard, topic, floor));
    ring.shut_down();
}

/// A plan from the tail cache, beside a header parsed from memory: no byte moves in either.
fn fetch(c: &mut Criterion, ring: &Ring, topic: &Rc<ringlog::shard::Topic>) {
    let mut group = c.benchmark_group("fetch");
    let topic = topic.clone();
    let last = topic.here(0).unwrap().marks().log_end.offset.0 - 1;
    group.bench_function("plan at the tail", |b| {
        b.iter_custom(|rounds| {
            let topic = topic.clone();
            timed(ring, rounds, move || {
                let topic = topic.clone();
                async move {
                    let mut pieces = Vec::with_capacity(4);
                    let partition = topic.here(0).unwrap();
                    partition.fetch(Offset(last), 1 << 20, Egress::Tail, &mut pieces).await.unwrap();
                    assert!(!pieces.is_empty());
                }
            })
        });
    });
    let mut builder = BatchBuilder::new(Timestamp(1));
    builder.push(Timestamp(1), None, Some(b"x"), &[]);
    let bytes = builder.finish().to_vec();
    group.bench_function("floor: one header parsed", |b| {
        b.iter(|| BatchHeader::parse(std::hint::black_box(&bytes)).unwrap());
    });
    group.finish();
}

criterion_group!(benches, wake, append_and_fetch);
criterion_main!(benches);
