//! Finding the flipped bits in what a hash, a checksum or a tag says is damaged.
//!
//! | module | mends | proof |
//! |---|---|---|
//! | [`record`] | a record of a block: its bytes, its lengths, its stored hash | the record's keyed hash |
//! | [`s2`] | a chunk of a compressed block | CRC-32C, and the records in it |
//! | [`small`] | `meta.inf` and `meta.sum`, `index.db`, sealed files, key files, any file with a hash | hash or tag |
//!
//! A correction is taken only when a 64-bit keyed hash (or a 128-bit tag) proves it; where an outcome
//! may be less than proven it says so ([`s2::Outcome::is_proven`], [`record::Sureness`]). Every outcome
//! says how far the search went, what it cost, and how many candidates were tried: of `n`, the
//! chance that one fits by accident is `n / 2^64`.
//!
//! Block ciphers XOR, so a bit flipped in an encrypted block is the same bit of the decrypted one:
//! mend what is decrypted, the offsets hold for the file. That goes for the bytes of plain blocks
//! and, because compression comes before encryption, for the chunks of compressed ones.
//!
//! Searches are bounded by [`Effort::bytes`], run on all cores where [`Effort::parallel`] says so,
//! and give the same answer for the same input whether parallel or not.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::hash::HashKey;
use super::record::simd;

pub(in crate::format) mod lanes;
pub mod record;
pub mod s2;
pub mod small;

/// One bit that was the wrong way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flip {
    /// Offset of its byte.
    pub offset: u64,
    /// Its place in the byte, 0 being the lowest bit.
    pub bit: u8,
}

impl Flip {
    /// Bit `index` of the bytes that start at `base`.
    fn at(base: u64, index: usize) -> Self {
        Self {
            offset: base.saturating_add(index as u64 / 8),
            bit: (index % 8) as u8,
        }
    }
}

/// The bits in which two byte strings of the same length differ; `base` is the offset of the first.
fn differences(old: &[u8], new: &[u8], base: u64) -> Vec<Flip> {
    let mut flips = Vec::new();
    for (i, (a, b)) in old.iter().zip(new).enumerate() {
        for bit in (0..8u8).filter(|bit| ((a ^ b) >> bit) & 1 == 1) {
            flips.push(Flip {
                offset: base.saturating_add(i as u64),
                bit,
            });
        }
    }
    flips
}

/// Flips bit `index` of `bytes`.
fn toggle(bytes: &mut [u8], index: usize) {
    if let Some(byte) = bytes.get_mut(index / 8) {
        *byte ^= 1 << (index % 8);
    }
}

/// How much a search may do.
#[derive(Debug, Clone, Copy)]
pub struct Effort<'a> {
    /// Bytes that may be hashed, opened or decoded. A core does some gigabytes of it a second.
    pub bytes: u64,
    /// Two flipped bits are looked for when they are at most this many bits apart; 0: only one bit.
    /// More than [`MAX_NEAR`] is taken for that.
    pub near: u32,
    /// Use all threads of the current rayon pool.
    pub parallel: bool,
    /// Ends the search soon after it becomes true: for deadlines and interrupts.
    pub cancel: Option<&'a AtomicBool>,
}

/// Farthest that two flipped bits may lie apart.
pub const MAX_NEAR: u32 = 64;

impl Default for Effort<'_> {
    /// 64 GiB of hashing, two bits up to 16 bits apart, parallel.
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            near: 16,
            parallel: true,
            cancel: None,
        }
    }
}

impl Effort<'_> {
    fn cancelled(&self) -> bool {
        self.cancel.is_some_and(|c| c.load(Ordering::Relaxed))
    }

    fn near(&self) -> usize {
        self.near.min(MAX_NEAR) as usize
    }
}

/// How far one part of a search went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// Not begun: not asked for, not applicable, no budget left, or found before.
    #[default]
    None,
    /// Stopped by the budget or the cancel flag.
    Part,
    /// To its end, or to what it found.
    All,
}

/// What a search did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tried {
    /// Lengths and flags that lie outside the hash (or structure outside the checksum).
    pub structure: Reach,
    /// Every single bit.
    pub single: Reach,
    /// Every two bits near each other.
    pub double: Reach,
    /// Candidates that were put to the proof.
    pub candidates: u64,
    /// Bytes hashed, opened or decoded, to be taken off [`Effort::bytes`] of the next search.
    pub spent: u64,
}

impl Tried {
    /// True when nothing within the search's scope was left out.
    pub fn is_complete(&self, near: u32) -> bool {
        self.structure != Reach::Part
            && self.single == Reach::All
            && (near == 0 || self.double == Reach::All)
    }

    /// The chance that a candidate passed a 64-bit proof by accident.
    pub fn chance_of_coincidence(&self) -> f64 {
        self.candidates as f64 / 2f64.powi(64)
    }

    fn count(&mut self, candidates: u64, bytes: u64) {
        self.candidates = self.candidates.saturating_add(candidates);
        self.spent = self.spent.saturating_add(bytes);
    }

    fn left(&self, effort: &Effort<'_>) -> u64 {
        effort.bytes.saturating_sub(self.spent)
    }
}

/// Looks for the flipped bits in `data` and `stored`, its hash under `key`, which do not fit.
///
/// Gives the indexes of the bits, those of the hash counted on behind the data's; the packets with
/// the bytes `prefer` come first. Fills in `single` and `double` of `tried`.
fn by_hash(
    key: HashKey,
    data: &[u8],
    stored: [u8; 8],
    prefer: &Range<usize>,
    effort: &Effort<'_>,
    tried: &mut Tried,
) -> Option<Vec<usize>> {
    let end = data.len() * 8;
    let stored = u64::from_le_bytes(stored);
    tried.count(1, data.len() as u64);
    let wrong = u64::from_le_bytes(key.sum(data)) ^ stored;
    let (low, high) = (
        wrong.trailing_zeros() as usize,
        63 - wrong.leading_zeros().min(63) as usize,
    );
    match wrong.count_ones() {
        0 => return Some(Vec::new()),
        1 => return Some(vec![end + low]),
        2 if high - low <= effort.near() => return Some(vec![end + low, end + high]),
        _ => {}
    }
    for near in [Some(0), Some(effort.near()).filter(|&n| n > 0)]
        .into_iter()
        .flatten()
    {
        let job = lanes::Job {
            key: key.lanes(),
            data,
            stored,
            near,
        };
        let n = job.packets();
        // Units of some milliseconds.
        let step = ((1 << 22) / (256 * n.max(1) * (near + 1))).clamp(1, 64);
        let mut parts: Vec<_> = (0..n)
            .step_by(step)
            .map(|k| lanes::Part::Packets(k, (k + step).min(n)))
            .collect();
        parts.push(lanes::Part::Tail);
        let range = |part: &lanes::Part| match *part {
            lanes::Part::Packets(from, to) => from * lanes::PACKET_LEN..to * lanes::PACKET_LEN,
            lanes::Part::Tail => n * lanes::PACKET_LEN..data.len(),
        };
        parts.sort_by_key(|part| {
            let range = range(part);
            !(range.start < prefer.end && prefer.start < range.end)
        });
        let cost = |i: usize| match parts.get(i) {
            Some(&lanes::Part::Packets(from, to)) => (from..to)
                .map(|k| job.cost(k))
                .fold((0, 0), |(a, b), (c, d)| (a + c, b + d)),
            _ => job.tail_cost(),
        };
        let (hit, reach) = search(effort, tried, parts.len(), cost, |i| {
            simd::find_flips(&job, *parts.get(i)?)
        });
        if near == 0 {
            tried.single = reach;
        } else {
            tried.double = reach;
        }
        match hit {
            Some(lanes::Hit::One(a)) => return Some(vec![a]),
            Some(lanes::Hit::Two(a, b)) => return Some(vec![a, b]),
            Some(lanes::Hit::WithHash(a, b)) => return Some(vec![a, end + b as usize]),
            None if reach != Reach::All => return None,
            None => {}
        }
    }
    None
}

/// Runs `work` on units `0..n`, whose costs are in `cost`, and gives the first unit that finds
/// something. Units beyond the budget are not run. Counts the units up to the one that found.
fn search<T: Send>(
    effort: &Effort<'_>,
    tried: &mut Tried,
    n: usize,
    cost: impl Fn(usize) -> (u64, u64),
    work: impl Fn(usize) -> Option<T> + Sync,
) -> (Option<T>, Reach) {
    use rayon::prelude::*;
    let mut left = tried.left(effort);
    let mut affordable = 0;
    while affordable < n {
        let Some(rest) = left.checked_sub(cost(affordable).1) else {
            break;
        };
        left = rest;
        affordable += 1;
    }
    let skipped = AtomicUsize::new(0);
    let unit = |i: usize| {
        if effort.cancelled() {
            skipped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        work(i).map(|found| (i, found))
    };
    let found = if effort.parallel && affordable > 1 {
        (0..affordable).into_par_iter().find_map_first(unit)
    } else {
        (0..affordable).find_map(unit)
    };
    let skipped = skipped.into_inner();
    let done = match &found {
        Some((i, _)) => i + 1,
        None => affordable.saturating_sub(skipped),
    };
    for i in 0..done {
        let (candidates, bytes) = cost(i);
        tried.count(candidates, bytes);
    }
    let reach = match &found {
        Some(_) => Reach::All,
        None if n == 0 => Reach::All,
        None if affordable == 0 => Reach::None,
        None if affordable < n || skipped > 0 => Reach::Part,
        None => Reach::All,
    };
    (found.map(|(_, found)| found), reach)
}

#[cfg(test)]
mod tests {
    use super::Effort;
    use std::io::Read as _;

    /// One flip a place, and all the search that it takes.
    pub(super) const ONE: Effort<'_> = Effort {
        bytes: 1 << 36,
        near: 0,
        parallel: false,
        cancel: None,
    };

    /// A file of the stream in a tiny store that a server made.
    pub(super) fn tiny(fixture: &str, name: &str) -> Vec<u8> {
        let path = format!(
            "{}/fixtures/tiny/{fixture}.tar.xz",
            env!("CARGO_MANIFEST_DIR")
        );
        let file = xz2::read::XzDecoder::new(std::fs::File::open(path).unwrap());
        let want = match name.strip_prefix("../../../../../") {
            Some(outside) => outside.to_owned(),
            None => format!("store/jetstream/$G/streams/TINY/{name}"),
        };
        for entry in ::tar::Archive::new(file).entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.path().unwrap().to_str().unwrap() == want {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                return bytes;
            }
        }
        panic!("{fixture} has no {want}");
    }

    /// Repeatable noise.
    pub(super) struct Noise(u64);

    impl Noise {
        pub(super) fn new(seed: u64) -> Self {
            Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
        }

        pub(super) fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        pub(super) fn below(&mut self, n: usize) -> usize {
            (self.next() >> 11) as usize % n
        }

        pub(super) fn bytes(&mut self, n: usize) -> Vec<u8> {
            (0..n).map(|_| (self.next() >> 32) as u8).collect()
        }
    }
}
