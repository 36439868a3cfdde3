//! Mending the small files: whatever a hash or a tag proves as a whole.
//!
//! | file | proof |
//! |---|---|
//! | `meta.inf`, plain or sealed | `meta.sum` beside it |
//! | `meta.sum` | that it is one bit away from the sum of `meta.inf` |
//! | `index.db`, raft snapshot | the hash in its last 8 bytes; sealed ones too, it covers the ciphertext |
//! | `<n>.fss` | the hash before its last 8 bytes, which it does not cover |
//! | `o.dat`, `meta.inf`, sealed | the tag of the AEAD |
//! | key file | the tag of the AEAD |
//!
//! Nothing can be proven of a plain `o.dat`, of `thw.db`, `sched.db`, `sources.db`, `tav.idx` and
//! `peers.idx`: they have no checksum.

use std::ops::Range;

use super::{Effort, Flip, Reach, Tried, by_hash, search, toggle};
use crate::format::crypt::{Cipher, Context, KeyRing, SealKey, open_key_file};
use crate::format::hash::HashKey;
use crate::format::index_db;

/// A file as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fix {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The bits that were wrong; none when the file was right as it is.
    pub flips: Vec<Flip>,
}

impl Fix {
    fn new(file: &[u8], bits: &[usize]) -> Self {
        let mut bytes = file.to_vec();
        for &bit in bits {
            toggle(&mut bytes, bit);
        }
        Self {
            bytes,
            flips: bits.iter().map(|&bit| Flip::at(0, bit)).collect(),
        }
    }
}

/// Mends a file whose first `covered` bytes are proven by the 8 behind them. Bytes in `prefer` are
/// tried first.
pub fn hashed(
    file: &[u8],
    covered: usize,
    key: HashKey,
    prefer: Range<usize>,
    effort: &Effort<'_>,
) -> (Option<Fix>, Tried) {
    let mut tried = Tried::default();
    let fix = file.split_at_checked(covered).and_then(|(data, rest)| {
        let hash = *rest.first_chunk::<8>()?;
        let bits = by_hash(key, data, hash, &prefer, effort, &mut tried)?;
        Some(Fix::new(file, &bits))
    });
    (fix, tried)
}

/// Mends an `index.db` of a stream (or raft group), plain or sealed. Where the plain one does not
/// decode, what lies before that place is tried first.
pub fn index_db(file: &[u8], stream: &[u8], effort: &Effort<'_>) -> (Option<Fix>, Tried) {
    let covered = file.len().saturating_sub(8);
    let opts = index_db::Options { subjects: false };
    let plain = file.get(..covered).unwrap_or_default();
    let prefer = match index_db::decode(plain, 0, opts) {
        Err(fault) if fault.offset > 0 => {
            let at = fault.offset as usize;
            at.saturating_sub(512)..at.saturating_add(16)
        }
        _ => 0..0,
    };
    hashed(file, covered, HashKey::new(stream), prefer, effort)
}

/// Mends an `<n>.fss` of block `n`. Its last 8 bytes are not covered.
pub fn fss(file: &[u8], stream: &[u8], n: u64, effort: &Effort<'_>) -> (Option<Fix>, Tried) {
    let covered = file.len().saturating_sub(16);
    hashed(file, covered, HashKey::block(stream, n), 0..0, effort)
}

/// `meta.inf` or `meta.sum`, mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaFix {
    /// They fit as they are.
    Right,
    /// `meta.inf`.
    Meta(Fix),
    /// `meta.sum`.
    Sum(Fix),
}

/// Mends a `meta.inf`, as on disk, by its `meta.sum` or the other way round. `key_name` is that of
/// [`meta::check_sum`](crate::format::meta::check_sum).
pub fn meta(
    key_name: &[u8],
    inf: &[u8],
    sum_file: &[u8],
    effort: &Effort<'_>,
) -> (Option<MetaFix>, Tried) {
    let mut tried = Tried::default();
    let key = HashKey::new(key_name);
    let computed = key.sum_hex(inf);
    tried.count(1, inf.len() as u64);
    if computed.as_bytes() == sum_file {
        return (Some(MetaFix::Right), tried);
    }
    if computed.len() == sum_file.len() {
        let wrong = super::differences(sum_file, computed.as_bytes(), 0);
        let index = |f: &Flip| f.offset as usize * 8 + usize::from(f.bit);
        let sum_damaged = match wrong.as_slice() {
            [_] => true,
            [a, b] => index(b) - index(a) <= effort.near(),
            _ => false,
        };
        if sum_damaged {
            let fix = Fix {
                bytes: computed.into_bytes(),
                flips: wrong,
            };
            return (Some(MetaFix::Sum(fix)), tried);
        }
    }
    let fix = unhex(sum_file)
        .and_then(|hash| by_hash(key, inf, hash, &(0..0), effort, &mut tried))
        // A bit of the hash is more than a bit of its digits: found above, or not mended.
        .filter(|bits| bits.iter().all(|&bit| bit < inf.len() * 8))
        .map(|bits| MetaFix::Meta(Fix::new(inf, &bits)));
    (fix, tried)
}

/// Sixteen lowercase hex digits.
fn unhex(digits: &[u8]) -> Option<[u8; 8]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut out = [0; 8];
    let (pairs, []) = digits.as_chunks::<2>() else {
        return None;
    };
    if pairs.len() != out.len() {
        return None;
    }
    for (to, [high, low]) in out.iter_mut().zip(pairs) {
        *to = digit(*high)? << 4 | digit(*low)?;
    }
    Some(out)
}

/// Mends `nonce ‖ AEAD`: a sealed `meta.inf` or `o.dat`. Gives the file, still sealed.
pub fn sealed(file: &[u8], key: &SealKey, effort: &Effort<'_>) -> (Option<Fix>, Tried) {
    by_predicate(file, |candidate| key.open(candidate).is_ok(), effort)
}

/// Mends a key file.
pub fn key_file(
    file: &[u8],
    keys: &KeyRing,
    context: &Context<'_>,
    effort: &Effort<'_>,
) -> (Option<Fix>, Tried) {
    let whole = Cipher::from_key_file_len(file.len()).is_some();
    let opens = |candidate: &[u8]| {
        open_key_file(candidate, keys, context).is_ok_and(|k| !whole || k.excess == 0)
    };
    by_predicate(file, opens, effort)
}

/// Mends any file for which `proves` is a proof of at least 64 bits: each single bit, then each two
/// near ones. A candidate costs its length.
pub fn by_predicate(
    file: &[u8],
    proves: impl Fn(&[u8]) -> bool + Sync,
    effort: &Effort<'_>,
) -> (Option<Fix>, Tried) {
    let mut tried = Tried::default();
    let (bits, len) = (file.len() * 8, file.len() as u64);
    tried.count(1, len);
    if proves(file) {
        return (Some(Fix::new(file, &[])), tried);
    }
    // One unit: the bits of some bytes, so that one copy serves many candidates.
    let unit = if file.len() > 4096 { 8 } else { 64 };
    let (hit, reach) = search(
        effort,
        &mut tried,
        bits.div_ceil(unit),
        |_| (unit as u64, len * unit as u64),
        |i| {
            let mut copy = file.to_vec();
            (i * unit..bits.min((i + 1) * unit)).find(|&bit| {
                toggle(&mut copy, bit);
                let found = proves(&copy);
                toggle(&mut copy, bit);
                found
            })
        },
    );
    tried.single = reach;
    if let Some(bit) = hit {
        return (Some(Fix::new(file, &[bit])), tried);
    }
    let near = effort.near();
    if near == 0 || reach != Reach::All {
        return (None, tried);
    }
    let (hit, reach) = search(
        effort,
        &mut tried,
        bits,
        |_| (near as u64, len * near as u64),
        |a| {
            let mut copy = file.to_vec();
            toggle(&mut copy, a);
            (a + 1..bits.min(a + near + 1))
                .find(|&b| {
                    toggle(&mut copy, b);
                    let found = proves(&copy);
                    toggle(&mut copy, b);
                    found
                })
                .map(|b| [a, b])
        },
    );
    tried.double = reach;
    (hit.map(|bits| Fix::new(file, &bits)), tried)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Noise, tiny};
    use super::*;
    use crate::format::crypt::ServerKey;
    use crate::format::meta as meta_inf;

    /// Every bit of `file` in turn, and some pairs: `mend` gives back the file.
    fn every_bit(file: &[u8], mend: impl Fn(&[u8]) -> Option<Fix>) {
        assert_eq!(mend(file), Some(Fix::new(file, &[])));
        let mut damaged = file.to_vec();
        for bit in 0..file.len() * 8 {
            toggle(&mut damaged, bit);
            let fix = mend(&damaged).unwrap_or_else(|| panic!("bit {bit}"));
            assert_eq!(fix.bytes, file);
            assert_eq!(fix.flips, [Flip::at(0, bit)]);
            toggle(&mut damaged, bit);
        }
    }

    fn near_pairs(file: &[u8], n: usize, mend: impl Fn(&[u8]) -> Option<Fix>) {
        let mut noise = Noise::new(file.len() as u64);
        for _ in 0..n {
            let a = noise.below(file.len() * 8);
            let b = a + 1 + noise.below(16);
            if b < file.len() * 8 {
                let mut damaged = file.to_vec();
                toggle(&mut damaged, a);
                toggle(&mut damaged, b);
                let fix = mend(&damaged).unwrap_or_else(|| panic!("bits {a} and {b}"));
                assert_eq!((fix.bytes.as_slice(), fix.flips.len()), (file, 2));
            }
        }
    }

    const ONE: Effort<'_> = Effort {
        bytes: 1 << 40,
        near: 0,
        parallel: false,
        cancel: None,
    };
    const TWO: Effort<'_> = Effort { near: 16, ..ONE };

    #[test]
    fn every_bit_of_meta_inf_and_meta_sum() {
        for (fixture, key_name, dir) in [
            ("2.14.9-plain", "TINY", ""),
            ("2.2.6-plain", "TINY/C", "obs/C/"),
            ("2.14.9-aes", "TINY/C", "obs/C/"),
        ] {
            let inf = tiny(fixture, &format!("{dir}meta.inf"));
            let sum = tiny(fixture, &format!("{dir}meta.sum"));
            assert!(meta_inf::check_sum(key_name.as_bytes(), &inf, &sum).is_ok());
            let both = |inf: &[u8], sum: &[u8], effort: &Effort<'_>| {
                meta(key_name.as_bytes(), inf, sum, effort).0
            };
            assert_eq!(both(&inf, &sum, &ONE), Some(MetaFix::Right));
            let by_sum = |effort| {
                let (sum, inf) = (sum.clone(), inf.clone());
                move |damaged: &[u8]| match both(damaged, &sum, &effort)? {
                    MetaFix::Meta(fix) => Some(fix),
                    MetaFix::Right => Some(Fix::new(&inf, &[])),
                    MetaFix::Sum(_) => None,
                }
            };
            every_bit(&inf, by_sum(ONE));
            near_pairs(&inf, 20, by_sum(TWO));
            every_bit(&sum, |damaged| match both(&inf, damaged, &ONE)? {
                MetaFix::Sum(fix) => Some(fix),
                MetaFix::Right => Some(Fix::new(&sum, &[])),
                MetaFix::Meta(_) => None,
            });
            // Of another stream's files nothing fits.
            let (none, tried) = meta(b"OTHER", &inf, &sum, &TWO);
            assert!(none.is_none() && tried.is_complete(16) && tried.candidates > 25_000);
        }
    }

    #[test]
    fn every_bit_of_index_db() {
        for fixture in ["2.14.9-plain", "2.14.9-chacha"] {
            let file = tiny(fixture, "msgs/index.db");
            every_bit(&file, |damaged| index_db(damaged, b"TINY", &ONE).0);
            near_pairs(&file, 50, |damaged| index_db(damaged, b"TINY", &TWO).0);
        }
        let file = tiny("2.9.25-plain", "msgs/1.fss");
        let covered = file.len() - 8;
        for bit in 0..file.len() * 8 {
            let mut damaged = file.clone();
            toggle(&mut damaged, bit);
            let fix = fss(&damaged, b"TINY", 1, &ONE).0.unwrap();
            let want = if bit < covered * 8 { &file } else { &damaged };
            assert_eq!(&fix.bytes, want);
        }
    }

    #[test]
    fn every_bit_of_sealed_files_and_key_files() {
        for (fixture, cipher) in [
            ("2.14.9-aes", Cipher::Aes),
            ("2.14.9-chacha", Cipher::ChaCha),
        ] {
            let truth: serde_json::Value =
                serde_json::from_slice(&tiny(fixture, "../../../../../truth.json")).unwrap();
            let keys = KeyRing {
                current: Some(ServerKey::new(truth["key"].as_str().unwrap())),
                previous: Some(ServerKey::new("older")),
            };
            let context = Context::Consumer {
                account: b"$G",
                stream: b"TINY",
                consumer: b"C",
            };
            let file = tiny(fixture, "obs/C/meta.key");
            let mend = |effort: Effort<'static>| {
                let keys = keys.clone();
                move |damaged: &[u8]| key_file(damaged, &keys, &context, &effort).0
            };
            every_bit(&file, mend(ONE));
            near_pairs(&file, 3, mend(TWO));
            let key = open_key_file(&file, &keys, &context).unwrap();
            assert_eq!(key.cipher, cipher);
            let file = tiny(fixture, "obs/C/o.dat");
            every_bit(&file, |damaged| sealed(damaged, &key, &ONE).0);
            near_pairs(&file, 20, |damaged| sealed(damaged, &key, &TWO).0);
            let file = tiny(fixture, "obs/C/meta.inf");
            every_bit(&file, |damaged| sealed(damaged, &key, &ONE).0);
        }
    }

    #[test]
    fn the_budget_and_the_flag_stop_a_search() {
        let file = Noise::new(1).bytes(100_000);
        let small = Effort {
            bytes: 200_000_000,
            ..TWO
        };
        let (none, tried) = index_db(&file, b"S", &small);
        assert!(none.is_none() && tried.single == Reach::Part && tried.double == Reach::None);
        assert!(tried.spent <= small.bytes && !tried.is_complete(0));
        let (none, tried) = by_predicate(&file, |_| false, &small);
        assert!(none.is_none() && tried.spent <= small.bytes && tried.single == Reach::Part);
        let stop = std::sync::atomic::AtomicBool::new(true);
        let stopped = Effort {
            cancel: Some(&stop),
            parallel: true,
            ..TWO
        };
        let (none, tried) = by_predicate(
            &file,
            |_| false,
            &Effort {
                bytes: 1 << 60,
                ..stopped
            },
        );
        assert!(none.is_none() && tried.single == Reach::Part && tried.candidates == 1);
    }

    #[test]
    fn parallel_or_not_is_the_same() {
        let file = tiny("2.14.9-plain", "msgs/index.db");
        for bit in (0..file.len() * 8).step_by(97) {
            let mut damaged = file.clone();
            toggle(&mut damaged, bit);
            let parallel = Effort {
                parallel: true,
                ..TWO
            };
            assert_eq!(
                index_db(&damaged, b"TINY", &TWO),
                index_db(&damaged, b"TINY", &parallel)
            );
        }
    }
}
