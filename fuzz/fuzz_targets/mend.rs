//! Mending: blocks, compressed blocks, small files. Input: flags, bytes.
#![no_main]

use jetsam::format::crypt::Context;
use jetsam::format::hash::HashKey;
use jetsam::format::mend::record::{Found, Known, Sureness, walk};
use jetsam::format::mend::s2::{self, Outcome, Records};
use jetsam::format::mend::small::{self, Fix, MetaFix};
use jetsam::format::mend::{Effort, Flip, Tried};
use jetsam::format::record::{Prover, Record};
use jetsam::format::s2::{Frames, MAGIC, decode_frame};
use jetsam_fuzz::{Input, keys, reseal};
use libfuzzer_sys::fuzz_target;

const EFFORT: Effort<'_> = Effort {
    bytes: 4 << 20,
    near: 4,
    parallel: false,
    cancel: None,
};

/// What a search may do over its budget: parts of it are counted when they are done.
const OVER: u64 = 4 << 20;

const CEILING: usize = 1 << 20;

fn apply(bytes: &mut [u8], base: u64, flips: &[Flip]) {
    for flip in flips {
        bytes[(flip.offset - base) as usize] ^= 1 << flip.bit;
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let flags = input.u8();
    let bytes = input.rest();
    match flags & 7 {
        0..3 => records(flags, bytes),
        3..5 => chunks(bytes),
        _ => files(flags, bytes),
    }
});

fn records(flags: u8, bytes: &[u8]) {
    let prover = Prover::for_block("TINY", 1);
    let mut block = bytes.to_vec();
    if flags & 8 != 0 {
        // Everything that looks like a record is one, but for a bit.
        reseal(&mut block, &prover);
        if let (Some(at), n @ 1..) = (bytes.last(), block.len()) {
            block[usize::from(*at) * 16 % n] ^= 1 << (at % 8);
        }
    }
    let base = if flags & 16 != 0 { 1 << 40 } else { 0 };
    let is_known = |s: &[u8]| s.starts_with(b"tiny.");
    let known = Known {
        subjects: (flags & 32 != 0).then_some(&is_known),
        all: flags & 64 != 0,
        filters: if flags & 128 != 0 { &["tiny.>"] } else { &[] },
        raft: flags & 7 == 2,
    };
    let mut at = base;
    let tried = walk(&block, base, &prover, &known, &EFFORT, |found| {
        let here = |from: u64, len: usize| {
            let from = (from - base) as usize;
            block[from..from + len].to_vec()
        };
        let (from, to) = match found {
            Found::Proven(r, border) => {
                let mut raw = here(r.offset, r.raw.len());
                assert!(raw == r.raw && r.proves(&prover));
                if let Some(border) = border.filter(|b| b.sure > Sureness::Open) {
                    assert!(!border.flips.is_empty());
                    apply(&mut raw, r.offset, &border.flips);
                    let mut same = r.raw.to_vec();
                    border.apply(&mut same);
                    assert_eq!(same, raw);
                    assert!(Record::decode(&raw, r.offset).unwrap().proves(&prover));
                }
                (r.offset, r.offset + r.len())
            }
            Found::Mended(m, tried) => {
                assert!(tried.candidates > 0 && !m.flips.is_empty());
                assert!(m.record().unwrap().proves(&prover));
                let mut raw = here(m.offset, m.raw.len());
                apply(&mut raw, m.offset, &m.flips);
                assert_eq!(raw, m.raw);
                (m.offset, m.offset + raw.len() as u64)
            }
            Found::Unproven(r, _) => {
                assert!(here(r.offset, r.raw.len()) == r.raw && !r.proves(&prover));
                (r.offset, r.offset + r.len())
            }
            Found::Gap { from, to, torn, .. } => {
                assert!(!torn || to == base + block.len() as u64);
                (from, to)
            }
        };
        assert!(from == at && to > from);
        at = to;
    });
    assert_eq!(at, base + block.len() as u64);
    assert!(tried.spent <= EFFORT.bytes + OVER, "{tried:?}");
}

fn chunks(raw: &[u8]) {
    let prover = Prover::for_block("TINY", 1);
    let header = s2::container(raw).map_or(0, |(header, flips)| {
        let mut right = raw.to_vec();
        apply(&mut right, 0, &flips);
        assert!(right.starts_with(b"cmp\x01") && right[header..].starts_with(&MAGIC));
        header
    });
    let records = Records {
        prover: &prover,
        key: None,
    };
    let mut out = vec![9; 3];
    let (chunks, tried) = s2::decompress(raw, header, &records, &EFFORT, &mut out, CEILING);
    assert!(tried.spent <= EFFORT.bytes + OVER, "{tried:?}");
    assert_eq!(out[..3], [9; 3]);
    assert!(out.len() <= CEILING + 8);
    let mut at = 3;
    let mut end = header as u64;
    for chunk in &chunks {
        assert_eq!(chunk.content.start, at);
        at = chunk.content.end;
        assert!(chunk.offset >= end);
        end = chunk.offset + chunk.length;
        let from = chunk.offset as usize;
        let mut own = raw[from..from + chunk.length as usize].to_vec();
        let content = &out[chunk.content.clone()];
        match &chunk.outcome {
            Outcome::Good => {}
            Outcome::Mended { flips, proof } => {
                assert!(!flips.is_empty());
                assert!(!proof.is_proven() || !content.is_empty());
                apply(&mut own, chunk.offset, flips);
            }
            Outcome::Broken { decoded, .. } => {
                assert!(*decoded <= content.len() && !chunk.outcome.is_proven());
                continue;
            }
        }
        let mut frames = Frames::resume(&own, 0);
        let frame = frames.next().unwrap().unwrap();
        let mut same = Vec::new();
        decode_frame(&frame, &mut same, true).unwrap();
        assert!(same == content && frames.next().is_none());
    }
    assert!(at <= out.len());
}

fn files(flags: u8, bytes: &[u8]) {
    let right = |file: &[u8], fix: Option<Fix>| {
        let fix = fix?;
        let mut same = file.to_vec();
        apply(&mut same, 0, &fix.flips);
        assert_eq!(same, fix.bytes);
        Some(same)
    };
    let key = HashKey::new("TINY");
    let proves = |file: &[u8]| match file.split_last_chunk() {
        Some((data, hash)) => key.sum(data) == *hash,
        None => false,
    };
    if flags & 8 != 0 && bytes.len() <= 256 {
        // A file that is right but for a bit is mended.
        let mut file = bytes.to_vec();
        file.extend(key.sum(bytes));
        let bit = usize::from(flags >> 4) * 129 % (file.len() * 8);
        let damaged = {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            damaged
        };
        let (fix, tried) = small::index_db(&damaged, b"TINY", &EFFORT);
        assert_eq!(right(&damaged, fix), Some(file.clone()), "{tried:?}");
        let (fix, tried) = small::by_predicate(&damaged, proves, &EFFORT);
        assert_eq!(right(&damaged, fix), Some(file), "{tried:?}");
    }
    let spent = |tried: Tried| assert!(tried.spent <= EFFORT.bytes + OVER, "{tried:?}");
    match flags & 7 {
        5 => {
            let (fix, tried) = small::index_db(bytes, b"TINY", &EFFORT);
            spent(tried);
            assert!(right(bytes, fix).is_none_or(|file| proves(&file)));
        }
        6 => {
            let (fix, tried) = small::fss(bytes, b"TINY", 1, &EFFORT);
            spent(tried);
            if let Some(file) = right(bytes, fix) {
                let data = &file[..file.len() - 16];
                assert_eq!(HashKey::block("TINY", 1).sum(data), file[data.len()..][..8]);
            }
            let context = Context::Stream {
                account: b"$G",
                stream: b"TINY",
            };
            let (fix, tried) = small::key_file(bytes, &keys(), &context, &EFFORT);
            spent(tried);
            right(bytes, fix);
        }
        _ => {
            let (sum, inf) = bytes.split_at(bytes.len().min(16));
            let (fix, tried) = small::meta(b"TINY", inf, sum, &EFFORT);
            spent(tried);
            let (inf, sum) = match fix {
                None => return,
                Some(MetaFix::Right) => (Some(inf.to_vec()), Some(sum.to_vec())),
                Some(MetaFix::Meta(fix)) => (right(inf, Some(fix)), Some(sum.to_vec())),
                Some(MetaFix::Sum(fix)) => (Some(inf.to_vec()), right(sum, Some(fix))),
            };
            assert_eq!(key.sum_hex(&inf.unwrap()).as_bytes(), sum.unwrap());
        }
    }
}
