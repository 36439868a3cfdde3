//! What it costs to find a flipped bit: the whole search, which finds nothing, and typical finds.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use jetsam::format::block;
use jetsam::format::hash::HashKey;
use jetsam::format::mend::record::{Known, mend};
use jetsam::format::mend::s2::{Records, container, decompress};
use jetsam::format::mend::{Effort, small};
use jetsam::format::record::{NewRecord, Prover, encode, resync};
use jetsam::format::s2::Encoder;

/// Bytes that neither compress nor look like a record.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) as u8
        })
        .collect()
}

fn record(seq: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let record = NewRecord {
        seq,
        ts: 1_763_685_393_000_000_000 + seq as i64 * 1_000_003,
        subject: b"perf.17",
        headers: b"",
        payload,
    };
    encode(&mut out, &HashKey::block("PERF", 1), &record).unwrap_or_else(|e| unreachable!("{e:?}"));
    out
}

const EVERYTHING: Effort<'_> = Effort {
    bytes: u64::MAX,
    near: 0,
    parallel: true,
    cancel: None,
};

fn flip(bytes: &mut [u8], at: usize) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 0x10;
    }
}

/// Two bytes far from each other are wrong: every single bit is tried in vain.
fn hopeless(mut bytes: Vec<u8>) -> Vec<u8> {
    let n = bytes.len();
    flip(&mut bytes, n / 4);
    flip(&mut bytes, n / 2);
    bytes
}

fn records(c: &mut Criterion) {
    let prover = Prover::for_block("PERF", 1);
    let mut group = c.benchmark_group("record");
    for size in [500, 16 << 10, 1 << 20] {
        group.sample_size(10);
        if size >= 1 << 20 {
            // Minutes on a core: one in 64 of the packets stands for all.
            group.measurement_time(Duration::from_secs(20));
        }
        let raw = hopeless(record(1, &noise(size)));
        let total = (size as u64).pow(2) * 4;
        for (name, near, parallel) in [
            ("one bit, 1 thread", 0, false),
            ("one bit", 0, true),
            ("two bits within 16", 16, true),
        ] {
            if near > 0 && size > 16 << 10 {
                continue;
            }
            let effort = Effort {
                bytes: if size >= 1 << 20 {
                    total / 64
                } else {
                    u64::MAX
                },
                near,
                parallel,
                cancel: None,
            };
            group.bench_function(format!("{size}/{name}"), |b| {
                b.iter(|| mend(black_box(&raw), 0, &prover, &Known::default(), &effort));
            });
        }
    }
    group.finish();
}

fn files(c: &mut Criterion) {
    let mut group = c.benchmark_group("file");
    group.sample_size(10);
    let key = HashKey::new("PERF");
    let mut index = noise(64 << 10);
    index.extend(key.sum(&index));
    let index = hopeless(index);
    group.bench_function("index.db/65536", |b| {
        b.iter(|| small::index_db(black_box(&index), b"PERF", &EVERYTHING));
    });
    group.finish();
}

fn chunks(c: &mut Criterion) {
    let prover = Prover::for_block("PERF", 1);
    let mut group = c.benchmark_group("s2");
    group.sample_size(10);
    // A chunk of 1 MiB with records of 500 bytes, half of them noise.
    let mut logical = Vec::new();
    for seq in 1.. {
        if logical.len() > (1 << 20) - 600 {
            break;
        }
        let payload = [
            format!("{{\"seq\":{seq},\"value\":").into_bytes(),
            noise(100 + (seq as usize * 7) % 200),
            b"\"something that comes again and again\",".repeat(5),
        ]
        .concat();
        logical.extend(record(seq, &payload));
    }
    let mut raw = Vec::new();
    block::compress(&logical, &mut Encoder::new(), &mut raw)
        .unwrap_or_else(|e| unreachable!("{e}"));
    let Some((header, _)) = container(&raw) else {
        return;
    };
    group.throughput(Throughput::Bytes(logical.len() as u64));
    let records = Records {
        prover: &prover,
        key: None,
    };
    let mut run = |name: String, raw: &[u8], effort: &Effort<'_>| {
        group.bench_function(name, |b| {
            b.iter_batched(
                Vec::new,
                |mut out| decompress(black_box(raw), header, &records, effort, &mut out, 8 << 20),
                BatchSize::LargeInput,
            );
        });
    };
    run("nothing to mend".into(), &raw, &EVERYTHING);
    for (i, share) in [3, 10, 30, 50, 70, 90].into_iter().enumerate() {
        let mut damaged = raw.clone();
        flip(&mut damaged, raw.len() * share / 100 + i);
        run(format!("a flip at {share} %"), &damaged, &EVERYTHING);
    }
    group.finish();
}

fn resyncs(c: &mut Criterion) {
    let prover = Prover::for_block("PERF", 1);
    let mut group = c.benchmark_group("resync");
    let n = 4 << 20;
    group.throughput(Throughput::Bytes(n as u64));
    for (name, mut garbage) in [
        ("noise", noise(n)),
        ("text", vec![b'x'; n]),
        ("zeros", vec![0; n]),
    ] {
        garbage.extend(record(1, b"there"));
        group.bench_function(name, |b| {
            b.iter(|| resync(black_box(&garbage), 0, &prover, &mut u64::MAX.clone()));
        });
    }
    group.finish();
}

criterion_group!(benches, resyncs, records, files, chunks);
criterion_main!(benches);
