//! S2: decoding, encoding and checksums of generated JSON-like lines, beside minlz.

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jetsam::format::s2::compress::{Table, compress};
use jetsam::format::s2::{
    Encoder, FRAME_SIZE, Frames, decode_block, decode_block_into, decode_frames, masked_crc,
};

/// JSON-like lines, `len` bytes of them.
fn text(len: usize) -> Vec<u8> {
    const WORDS: [&str; 10] = [
        "order", "customer", "shipment", "error", "retry", "eu-west", "us-east", "pending", "done",
        "payload",
    ];
    let mut state = 42u64;
    let mut next = |n: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let mut out = String::with_capacity(len + 200);
    let mut seq = 0;
    while out.len() < len {
        let ts = 1_700_000_000_000_000_000 + next(1 << 31) * 1000;
        let value = next(1_000_000);
        let mut word = || WORDS.get(next(10) as usize).copied().unwrap_or_default();
        let (kind, region, a, b) = (word(), word(), word(), word());
        let _ = writeln!(
            out,
            r#"{{"seq":{seq},"ts":{ts},"kind":"{kind}","region":"{region}","value":{value},"note":"{a} {b}"}}"#
        );
        seq += 1;
    }
    let mut out = out.into_bytes();
    out.truncate(len);
    out
}

fn s2(c: &mut Criterion) {
    let raw = text(FRAME_SIZE);
    let mut buf = vec![0; FRAME_SIZE];

    let mut decode = c.benchmark_group("decode-block");
    decode.throughput(Throughput::Bytes(raw.len() as u64));
    let mut backend = minlz::s2::Encoder::new();
    for (name, block) in [
        ("default", backend.encode(&raw)),
        ("better", backend.encode_better(&raw)),
        ("best", backend.encode_best(&raw)),
    ] {
        decode.bench_function(format!("{name}/into"), |b| {
            b.iter(|| decode_block_into(black_box(&block), &mut buf));
        });
        decode.bench_function(format!("{name}/append"), |b| {
            let mut out = Vec::new();
            b.iter(|| {
                out.clear();
                decode_block(black_box(&block), &mut out, FRAME_SIZE)
            });
        });
        decode.bench_function(format!("{name}/minlz"), |b| {
            b.iter(|| minlz::s2::decode_into(&mut buf, black_box(&block)).is_ok());
        });
    }
    decode.finish();

    let long = text(8 * FRAME_SIZE);
    let mut stream = Vec::new();
    let mut encoder = Encoder::new();
    let encoded = encoder.encode_stream(&long, &mut stream);
    assert!(encoded.is_ok());

    let mut streams = c.benchmark_group("stream");
    streams
        .sample_size(20)
        .throughput(Throughput::Bytes(long.len() as u64));
    streams.bench_function("decode", |b| {
        let mut out = Vec::new();
        b.iter(|| {
            let frames = Frames::new(black_box(&stream), 0);
            decode_frames(frames, &mut out, 0, usize::MAX, false).frames
        });
    });
    streams.bench_function("encode", |b| {
        let mut out = Vec::new();
        b.iter(|| {
            out.clear();
            encoder.encode_stream(black_box(&long), &mut out)
        });
    });
    streams.bench_function("encode/minlz blocks only", |b| {
        b.iter(|| {
            long.chunks(FRAME_SIZE)
                .map(|raw| backend.encode(raw).len())
                .sum::<usize>()
        });
    });
    streams.finish();

    // Words of hexadecimal digits in JSON, as many short matches as there can be.
    let mut words = Vec::new();
    let mut state = 7u64;
    while words.len() < FRAME_SIZE {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let word = (state >> 52).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
        let _ = std::io::Write::write_fmt(&mut words, format_args!("\"{word:x}\","));
    }
    words.truncate(FRAME_SIZE);
    let mut blocks = c.benchmark_group("encode-block");
    blocks.throughput(Throughput::Bytes(FRAME_SIZE as u64));
    for (name, raw) in [("text", &raw), ("words", &words)] {
        let mut table = Table::default();
        let mut out = Vec::new();
        compress(raw, &mut table, usize::MAX, &mut out);
        println!(
            "{name}: {} bytes, minlz {}",
            out.len(),
            backend.encode(raw).len()
        );
        blocks.bench_function(format!("{name}/own"), |b| {
            b.iter(|| {
                out.clear();
                compress(black_box(raw), &mut table, usize::MAX, &mut out)
            });
        });
        blocks.bench_function(format!("{name}/minlz"), |b| {
            b.iter(|| backend.encode(black_box(raw)).len());
        });
    }
    blocks.finish();

    let mut crc = c.benchmark_group("crc");
    crc.throughput(Throughput::Bytes(raw.len() as u64));
    crc.bench_function("masked", |b| b.iter(|| masked_crc(black_box(&raw))));
    crc.finish();
}

criterion_group!(benches, s2);
criterion_main!(benches);
