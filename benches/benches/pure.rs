//! What the pure rules cost, each beside its floor: the same bytes through the bare operation underneath.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringlog::Ingress;
use ringlog::log::{BatchBuilder, LogPoint, OffsetIndex, check_produced, crc32c};
use ringlog::sys::sim::World;
use ringlog::sys::{LeaseMut, Moment, Ring};
use ringlog::transfer::{Need, Staged};
use ringlog::types::{Offset, Position, Timestamp};

fn batch(bytes: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Timestamp(1));
    while builder.bytes() + 1100 < bytes {
        builder.push(Timestamp(1), None, Some(&[7; 1024]), &[]);
    }
    builder.push(Timestamp(1), None, Some(&[7; 16]), &[]);
    builder.finish().to_vec()
}

/// Checking a batch is one CRC pass and a look at the header.
fn check(c: &mut Criterion) {
    let mut group = c.benchmark_group("check");
    for bytes in [1 << 10, 16 << 10, 256 << 10] {
        let batch = batch(bytes);
        group.throughput(Throughput::Bytes(batch.len() as u64));
        group.bench_with_input(BenchmarkId::new("batch", bytes), &batch, |b, batch| {
            b.iter(|| check_produced(black_box(batch)).unwrap());
        });
        group.bench_with_input(BenchmarkId::new("floor: crc", bytes), &batch, |b, batch| {
            b.iter(|| crc32c(black_box(batch)));
        });
    }
    group.finish();
}

/// Looking an offset up in the index of a full segment, beside a binary search in as many numbers.
fn index(c: &mut Criterion) {
    const ENTRIES: i64 = 262_144;
    let mut index = OffsetIndex::new(Offset(0), 4096);
    for number in 0..ENTRIES {
        let (base, last) = (Offset(number * 16), Offset(number * 16 + 15));
        index.note_batch(base, last, Position(number as u64 * 4096), 4096);
    }
    let numbers: Vec<i64> = (0..ENTRIES).map(|number| number * 16).collect();
    let mut at = 0i64;
    let mut next = move || {
        at = (at + 1_234_567) % (ENTRIES * 16);
        at
    };
    let mut group = c.benchmark_group("index");
    group.bench_function("look-up", |b| b.iter(|| index.floor(black_box(Offset(next())))));
    group.bench_function("floor: binary search", |b| {
        b.iter(|| numbers.partition_point(|number| *number <= black_box(next())));
    });
    group.finish();
}

/// Accepting batches into staging and taking them as a unit, beside copying the same bytes.
fn staging(c: &mut Criterion) {
    const BATCHES: usize = 32;
    let world = World::new(1);
    let ring = world.ring(256 << 20);
    let mut group = c.benchmark_group("staging");
    for bytes in [4 << 10, 16 << 10] {
        let source = batch(bytes);
        group.throughput(Throughput::Bytes((source.len() * BATCHES) as u64));
        let mut target = vec![0u8; source.len() * BATCHES];
        group.bench_function(BenchmarkId::new("floor: copy", bytes), |b| {
            b.iter(|| {
                target.chunks_mut(source.len()).for_each(|part| part.copy_from_slice(black_box(&source)));
                black_box(&target);
            });
        });
        for ingress in [Ingress::Copy, Ingress::Buffered] {
            group.bench_function(BenchmarkId::new(ingress.name(), bytes), |b| {
                b.iter(|| stage(&ring, &world, ingress, &source, BATCHES));
            });
        }
    }
    group.finish();
    ring.shut_down();
}

fn lease(ring: &Ring, world: &World, bytes: usize) -> LeaseMut {
    ring.try_lease(bytes).unwrap_or_else(|| {
        let inner = ring.clone();
        world.run(&[ring], async move { inner.lease(bytes).await.unwrap() })
    })
}

fn stage(ring: &Ring, world: &World, ingress: Ingress, source: &[u8], batches: usize) {
    let place = |position| LogPoint { offset: Offset(0), segment: Offset(0), position: Position(position) };
    let mut staged = Staged::new(ingress, place(0));
    let mut end = place(0);
    for number in 0..batches {
        let mut batch = lease(ring, world, source.len());
        drop(batch.split_off(source.len()));
        batch.copy_from_slice(source);
        while let Need::Memory(bytes) = staged.need(end, source.len()) {
            staged.supply(lease(ring, world, bytes));
        }
        let next = LogPoint {
            offset: Offset(number as i64 + 1),
            segment: Offset(0),
            position: end.position.plus(source.len() as u64),
        };
        staged.accept(batch.freeze(), end, next, Moment(0));
        end = next;
    }
    let unit = staged.take_unit(LogPoint::BEYOND).expect("something is staged");
    staged.finish_unit(black_box(unit));
}

criterion_group!(benches, check, index, staging);
criterion_main!(benches);
