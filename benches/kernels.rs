//! What `check` spends its time in: proving records, key streams, `index.db`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jetsam::format::crypt::{Cipher, Context, ServerKey, make_key_file};
use jetsam::format::hash::HashKey;
use jetsam::format::index_db::{self, BlockEntry, IndexDb, Options, SubjectEntry};
use jetsam::format::record::{NewRecord, OnDamage, Prover, encode, resync, scan};
use jetsam::format::seqset::SeqSet;

/// A block of 8 MiB with messages of this size.
fn block(payload: usize) -> Vec<u8> {
    let key = HashKey::block("PERF", 1);
    let payload = vec![b'x'; payload];
    let mut out = Vec::new();
    for seq in 1.. {
        if out.len() + payload.len() + 64 > 8 << 20 {
            break;
        }
        let record = NewRecord {
            seq,
            ts: 1_763_685_393_000_000_000,
            subject: b"perf.17",
            headers: b"",
            payload: &payload,
        };
        encode(&mut out, &key, &record).unwrap_or_else(|e| unreachable!("{e:?}"));
    }
    out
}

fn records(c: &mut Criterion) {
    let prover = Prover::for_block("PERF", 1);
    let mut group = c.benchmark_group("records");
    group.sample_size(30);
    for size in [64, 500, 16_384] {
        let block = block(size);
        group.throughput(Throughput::Bytes(block.len() as u64));
        group.bench_function(format!("scan/{size}"), |b| {
            b.iter(|| {
                let mut n = 0u64;
                scan(black_box(&block), 0, &prover, OnDamage::Resync, |_| n += 1);
                n
            });
        });
    }
    // From behind the first byte every offset has to be tried up to the next record.
    let block = block(16_384);
    group.throughput(Throughput::Bytes(16_384));
    group.bench_function("resync/16384", |b| {
        b.iter(|| resync(black_box(&block), 1, &prover, &mut u64::MAX.clone()));
    });
    group.finish();
}

fn ciphers(c: &mut Criterion) {
    let mut group = c.benchmark_group("key-stream");
    let mut buf = vec![0; 2 << 20];
    group.throughput(Throughput::Bytes(buf.len() as u64));
    for cipher in [Cipher::ChaCha, Cipher::Aes] {
        let context = Context::Block {
            info: b"$G",
            store: b"PERF",
            n: 1,
        };
        let (_, key) = make_key_file(&ServerKey::new(*b"key"), cipher, &context);
        group.bench_function(cipher.as_str(), |b| {
            b.iter(|| key.apply_keystream(0, black_box(&mut buf)));
        });
    }
    group.finish();
}

fn index(c: &mut Criterion) {
    let mut db = IndexDb {
        version: 4,
        ..IndexDb::default()
    };
    for n in 0..100_000u64 {
        db.subjects.push(SubjectEntry {
            subject: format!("$KV.bucket.some.key.{n}").as_bytes(),
            total: 2,
            fblk: n / 100,
            lblk: n / 50,
        });
    }
    for index in 1..=1000u64 {
        let first = index * 10_000;
        let mut deleted = SeqSet::new();
        for k in 0..2_000 {
            deleted.insert(first + 1 + k * 4);
        }
        let mut entry = BlockEntry {
            index,
            first,
            last: first + 9_999,
            ..BlockEntry::default()
        };
        entry.set_deleted(deleted);
        db.blocks.push(entry);
    }
    let body = index_db::encode_body(&db, 4);
    let mut group = c.benchmark_group("index.db");
    group.throughput(Throughput::Bytes(body.len() as u64));
    for subjects in [false, true] {
        group.bench_function(format!("decode/subjects={subjects}"), |b| {
            b.iter(|| index_db::decode(black_box(&body), 0, Options { subjects }));
        });
    }
    group.finish();
}

criterion_group!(benches, records, ciphers, index);
criterion_main!(benches);
