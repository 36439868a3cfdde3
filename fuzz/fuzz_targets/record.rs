//! Records: scan, resync, proof, encoder. Input: flags, block number, name, block.
#![no_main]

use jetsam::format::hash::HashKey;
use jetsam::format::record::{
    ERASED_BIT, Kind, NewRecord, OnDamage, Proof, Prover, Record, Step, TOMBSTONE_BIT, encode,
    encoded_len, resync, scan,
};
use jetsam_fuzz::{Input, reseal};
use libfuzzer_sys::fuzz_target;

/// The bits of a step: what it is, from where, to where.
fn shape(step: &Step<'_>) -> (u8, u64, u64) {
    match step {
        Step::Record(r, Proof::Proven) => (0, r.offset, r.offset + r.len()),
        Step::Record(r, Proof::HashMismatch) => (1, r.offset, r.offset + r.len()),
        Step::Gap { from, to, torn } => (2 + u8::from(*torn), *from, *to),
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (flags, n) = (input.u8(), input.u8());
    let name = input.short();
    let mut block = input.rest().to_vec();
    let (prover, key) = (
        Prover::for_block(name, n.into()),
        HashKey::block(name, n.into()),
    );
    if flags & 1 != 0 {
        reseal(&mut block, &prover);
    }
    let base = if flags & 2 != 0 { u64::MAX / 2 } else { 0 };

    // The steps cover the block without gap or overlap, and tell the truth.
    let mut steps = Vec::new();
    let end = scan(&block, base, &prover, OnDamage::Resync, |s| steps.push(s));
    assert_eq!(end, base + block.len() as u64);
    let mut at = base;
    for step in &steps {
        let (_, from, to) = shape(step);
        assert_eq!(from, at);
        assert!(to > from);
        at = to;
        if let Step::Record(r, proof) = step {
            let start = (r.offset - base) as usize;
            assert_eq!(r.raw, &block[start..start + r.raw.len()]);
            assert_eq!(r.proves(&prover), *proof == Proof::Proven);
            let _ = (r.border_doubts(), r.better_header_len());
            if *proof == Proof::Proven {
                again(r, &key);
            }
        }
    }
    assert_eq!(at, end);

    // Stopping at damage shows the proven records before it, and nothing else.
    let mut before = Vec::new();
    let stop = scan(&block, base, &prover, OnDamage::Stop, |s| {
        before.push(shape(&s))
    });
    assert!(stop <= end);
    let proven = before.iter().take_while(|s| s.0 == 0).count();
    let whole: Vec<_> = steps.iter().map(shape).take(proven).collect();
    assert_eq!(&before[..proven], &whole[..]);

    let mut budget = 1 << 20;
    if let Some(at) = resync(&block, 0, &prover, &mut budget) {
        assert!(Record::decode(&block[at..], 0).unwrap().proves(&prover));
    }

    // Any parts make a record that reads back.
    let mut parts = Input(data);
    let seq = parts.u64();
    let ts = parts.u64() as i64;
    let (subject, headers) = (parts.short(), parts.short());
    let record = NewRecord {
        seq,
        ts,
        subject,
        headers,
        payload: parts.rest(),
    };
    let mut out = vec![7];
    encode(&mut out, &key, &record).unwrap();
    let len = encoded_len(subject.len(), headers.len(), record.payload.len());
    assert_eq!(out.len() as u64, 1 + len);
    let back = Record::decode(&out[1..], 1).unwrap();
    assert!(back.proves(&prover) && back.headers_fit);
    assert_eq!(
        (back.seq, back.ts, back.subject, back.headers, back.payload),
        (
            seq & !(ERASED_BIT | TOMBSTONE_BIT),
            ts,
            subject,
            headers,
            record.payload
        )
    );
});

/// A proven record encodes to its own bytes, apart from ways to write it that no encoder takes.
fn again(r: &Record<'_>, key: &HashKey) {
    if !r.headers_fit || r.has_headers != !r.headers.is_empty() {
        return;
    }
    let stored = u64::from_le_bytes(r.raw[4..12].try_into().unwrap());
    assert_eq!(
        r.kind == Kind::Tombstone,
        stored & TOMBSTONE_BIT != 0,
        "{r:?}"
    );
    let mut out = Vec::new();
    let new = NewRecord {
        seq: stored,
        ts: r.ts,
        subject: r.subject,
        headers: r.headers,
        payload: r.payload,
    };
    encode(&mut out, key, &new).unwrap();
    assert_eq!(out, r.raw);
}
