//! Mending a chunk of a compressed block.
//!
//! A chunk has a CRC-32C of what it decodes to, and nothing else: with the millions of bits that a
//! chunk has, one in some hundreds of damaged chunks has a wrong correction that fits the CRC. So a
//! correction counts as proven only when the records in the content, or more of them than before,
//! prove themselves ([`Proof::Records`]). The only one that fits and that no record speaks for is
//! given, too, but it is a guess ([`Proof::Checksum`]): ask [`Outcome::is_proven`].
//!
//! | damaged | found by |
//! |---|---|
//! | kind, length | decoding with each of the 32 bits flipped, and up to where the next chunk begins |
//! | checksum | content decodes and its CRC differs in one bit |
//! | length at the start of the block | decoding with each of its bits flipped |
//! | literal | CRC is linear: see below |
//! | offset of a copy | the same |
//! | tag, length, any bit that shifts what follows | walking the elements only: the changed walk must meet the old one or the end with exactly the claimed length. What passes is decoded, beginning with the first record that does not prove itself |
//!
//! Of several wrong bits in a chunk those that its records tell apart are found one after the other.
//!
//! **CRC and copies.** Let `W[q]` be what a flip of the highest bit of byte `q`, when it is produced,
//! does to the CRC at the end, through all copies that hand it on: `W` starts as the flip's own
//! effect and is summed up backwards over the copies. Bit `b` does `x^(7-b)·W[q]`. A literal's bit is
//! the culprit when that is just the difference of the two CRCs: one pass over the content tries all.
//! A changed offset (with the repeats that use it) injects the difference between what is copied now
//! and what would have been copied there, byte for byte with weight `W` again.

mod steps;

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::{Effort, Flip, Reach, Tried, differences, search, toggle};
use crate::format::block::TAIL_LEN;
use crate::format::crypt::SealKey;
use crate::format::record::{OnDamage, Proof as RecordProof, Prover, Step, scan};
use crate::format::s2::block::{Element, claimed_len, parse};
use crate::format::s2::{
    CHUNK_HEADER, Frame, FrameFaultKind, FrameKind, MAGIC, MAX_FRAME_BODY, MAX_FRAME_DECODED,
    decode_block_into, decode_frame, masked_crc, parse_chunk_header,
};

/// CRC-32C's polynomial, reflected.
const POLY: u32 = 0x82f6_3b78;
/// Bytes of a chunk before its block.
const BLOCK_AT: usize = CHUNK_HEADER + 4;

/// What the records say about a chunk's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Bytes of it that lie in proven records.
    pub proven: usize,
    /// Its first byte that does not.
    pub first: usize,
}

/// What vouches for a correction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The CRC, and more records prove themselves than before, or all do.
    Records,
    /// Unproven: the CRC only, no record speaking for it or against it; it is the only such
    /// correction there is. `tried / 2^32` is the chance of a coincidence.
    Checksum,
}

impl Proof {
    /// False for what only a checksum of 32 bits speaks for.
    pub fn is_proven(self) -> bool {
        self == Self::Records
    }
}

/// A chunk as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MendedChunk {
    /// The whole chunk.
    pub raw: Vec<u8>,
    /// What it decodes to.
    pub content: Vec<u8>,
    /// The bits that were wrong.
    pub flips: Vec<Flip>,
    /// What vouches for it.
    pub proof: Proof,
}

/// `x` times a polynomial.
#[inline]
fn times_x(r: u32) -> u32 {
    (r >> 1) ^ (POLY & 0u32.wrapping_sub(r & 1))
}

/// A polynomial over `x`.
#[inline]
fn over_x(r: u32) -> u32 {
    match r >> 31 {
        0 => r << 1,
        _ => ((r ^ POLY) << 1) | 1,
    }
}

/// One element as it was parsed.
#[derive(Debug, Clone, Copy)]
struct Elem {
    /// Where it starts in the block.
    s: u32,
    /// Size of tag and fields.
    size: u8,
    literal: bool,
    /// It uses the offset of the last copy.
    repeat: bool,
    /// Bytes it makes.
    len: u32,
    /// How far back it copies from.
    back: u32,
    /// Where in the content.
    d: u32,
}

/// The elements of a block as far as they can be walked.
struct Walk {
    elems: Vec<Elem>,
    /// The walk ended where the block ends.
    complete: bool,
    /// Bytes made.
    total: u64,
    /// The first element that copies from nowhere, and the one that says how far back.
    bad: Option<(usize, usize)>,
    /// For each copy, where in the content the last repeat that depends on its offset ends.
    reach: Vec<u32>,
}

/// A copy whose offset has a longer effect is decoded in full instead: in records of one size all
/// copies may be repeats of one.
const MAX_REACH: u32 = 4096;

impl Walk {
    /// How much content the offset of element `j` decides.
    fn span(&self, j: usize) -> u32 {
        match (self.elems.get(j), self.reach.get(j)) {
            (Some(elem), Some(end)) => end.saturating_sub(elem.d),
            _ => 0,
        }
    }
}

/// Eight bytes from `s` on, zeros behind the end.
#[inline]
fn word(src: &[u8], s: usize) -> u64 {
    let rest = src.get(s..).unwrap_or_default();
    if let Some(bytes) = rest.first_chunk::<8>() {
        return u64::from_le_bytes(*bytes);
    }
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(rest) {
        *to = *from;
    }
    u64::from_le_bytes(bytes)
}

/// The element at `s` with the bits `flip` of its word flipped: what it is, size of tag and fields,
/// bytes made, where the next one starts. `None` when it runs over the end.
#[inline]
fn element(src: &[u8], s: usize, flip: u64) -> Option<(Element, usize, u64, usize)> {
    let (what, size, len) = parse(word(src, s) ^ flip);
    let mut end = s.checked_add(size)?;
    if what == Element::Literal {
        end = end.checked_add(usize::try_from(len).ok()?)?;
    }
    (end <= src.len()).then_some((what, size, len, end))
}

fn walk(src: &[u8], header: usize) -> Walk {
    let mut w = Walk {
        elems: Vec::new(),
        complete: false,
        total: 0,
        bad: None,
        reach: Vec::new(),
    };
    let (mut s, mut back, mut source) = (header, 0u32, 0);
    while s < src.len() && w.total <= MAX_FRAME_DECODED as u64 {
        let Some((what, size, len, end)) = element(src, s, 0) else {
            return w;
        };
        if let Element::Copy(explicit) = what {
            (back, source) = (explicit, w.elems.len());
        }
        let literal = what == Element::Literal;
        if !literal && w.bad.is_none() && (back == 0 || u64::from(back) > w.total) {
            w.bad = Some((w.elems.len(), source));
        }
        w.elems.push(Elem {
            s: s as u32,
            size: size as u8,
            literal,
            repeat: what == Element::Repeat,
            len: len as u32,
            back,
            d: w.total as u32,
        });
        w.total += len;
        s = end;
    }
    w.complete = s == src.len();
    w.reach = vec![0; w.elems.len()];
    let mut reach = 0;
    for (elem, to) in w.elems.iter().zip(&mut w.reach).rev() {
        if !elem.literal {
            reach = reach.max(elem.d.saturating_add(elem.len));
            *to = reach;
            if !elem.repeat {
                reach = 0;
            }
        }
    }
    w
}

/// A damaged chunk under search.
struct Search<'a, J> {
    chunk: &'a [u8],
    offset: u64,
    judge: &'a J,
    now: Verdict,
    effort: &'a Effort<'a>,
    /// Corrections that fit the CRC and that no record speaks for.
    unsure: std::sync::Mutex<Vec<Vec<usize>>>,
    /// Corrections that fit the CRC.
    fits: AtomicUsize,
}

/// So many corrections that fit the CRC are judged: judging may cost far more than decoding, and
/// chance does not make so many.
const MAX_FITS: usize = 64;

impl<J: Fn(&[u8]) -> Verdict + Sync> Search<'_, J> {
    /// Judges content that fits its CRC.
    fn accept(&self, content: &[u8], flips: &[usize]) -> bool {
        if self.fits.fetch_add(1, Ordering::Relaxed) >= MAX_FITS {
            return false;
        }
        let verdict = (self.judge)(content);
        let all = verdict.proven == content.len() && !content.is_empty();
        if all || verdict.proven > self.now.proven {
            return true;
        }
        if verdict.proven == self.now.proven
            && let Ok(mut unsure) = self.unsure.lock()
        {
            unsure.push(flips.to_vec());
        }
        false
    }

    /// Decodes the chunk with bits flipped. `copy` is the chunk, `content` space.
    fn decodes(&self, copy: &mut [u8], flips: &[usize], content: &mut Vec<u8>) -> bool {
        for &flip in flips {
            toggle(copy, flip);
        }
        let ok = (|| {
            let frame = frame_at(copy, self.offset)?;
            if frame.body.len() + CHUNK_HEADER != copy.len() || !frame.kind.is_data() {
                return None;
            }
            let len = frame.decoded_len().ok()?;
            let data = frame.body.get(4..)?;
            if frame.kind == FrameKind::Raw {
                content.clear();
                content.extend_from_slice(data);
            } else {
                content.resize(len, 0);
                decode_block_into(data, content).ok()?;
            }
            (Some(masked_crc(content)) == frame.stored_crc()).then_some(())
        })()
        .is_some();
        let accepted = ok && self.accept(content, flips);
        for &flip in flips {
            toggle(copy, flip);
        }
        accepted
    }

    /// Tries candidates that are to be decoded in full.
    fn decode_each(
        &self,
        all: &[Vec<usize>],
        cost: u64,
        tried: &mut Tried,
    ) -> (Option<Vec<usize>>, Reach) {
        const UNIT: usize = 8;
        let unit = |i: usize| all.get(i * UNIT..all.len().min((i + 1) * UNIT));
        search(
            self.effort,
            tried,
            all.len().div_ceil(UNIT),
            |i| {
                let n = unit(i).map_or(0, <[_]>::len) as u64;
                (n, cost.saturating_mul(n))
            },
            |i| {
                let (mut copy, mut content) = (self.chunk.to_vec(), Vec::new());
                unit(i)?
                    .iter()
                    .find(|flips| self.decodes(&mut copy, flips, &mut content))
                    .cloned()
            },
        )
    }

    /// All of it.
    fn run(&self, tried: &mut Tried) -> Option<Vec<usize>> {
        let frame = frame_at(self.chunk, self.offset)?;
        let src = frame.body.get(4..)?;
        let stored = frame.stored_crc()?;
        if frame.kind == FrameKind::Raw {
            tried.structure = Reach::All;
            return self.literals(src, None, stored, tried);
        }
        // The length in front: what does not decode costs little.
        let (claimed, header) = claimed_len(src).unwrap_or((0, 5));
        let front: Vec<_> = (0..header.min(src.len()) * 8)
            .map(|i| vec![BLOCK_AT * 8 + i])
            .collect();
        let cost = (claimed as usize).min(MAX_FRAME_DECODED) as u64 + src.len() as u64;
        let (hit, reach) = self.decode_each(&front, cost, tried);
        tried.structure = reach;
        if hit.is_some() || claimed as usize > MAX_FRAME_DECODED {
            return hit;
        }
        let walked = walk(src, header);
        let fits = walked.complete && walked.total == u64::from(claimed);
        if fits && walked.bad.is_none() {
            let mut content = vec![0; claimed as usize];
            decode_block_into(src, &mut content).ok()?;
            if let Some(flips) = self.literals(&content, Some((src, &walked)), stored, tried) {
                return Some(flips);
            }
        }
        let hit = self.structure(src, &walked, u64::from(claimed), cost, tried);
        if tried.single == Reach::None {
            tried.single = tried.structure;
        }
        hit
    }

    /// Flips that change no length: literals, and offsets of copies. Without elements, the content
    /// is one literal behind the checksum.
    fn literals(
        &self,
        content: &[u8],
        walked: Option<(&[u8], &Walk)>,
        stored: u32,
        tried: &mut Tried,
    ) -> Option<Vec<usize>> {
        let computed = masked_crc(content);
        let wrong = computed ^ stored;
        let near = self.effort.near();
        let in_crc = |i: u32| CHUNK_HEADER * 8 + i as usize;
        let (low, high) = (wrong.trailing_zeros(), 31 - wrong.leading_zeros().min(31));
        let of_crc = match wrong.count_ones() {
            0 => return None,
            1 => Some(vec![in_crc(low)]),
            2 if (high - low) as usize <= near => Some(vec![in_crc(low), in_crc(high)]),
            _ => None,
        };
        if let Some(flips) = of_crc
            && self.accept(content, &flips)
        {
            return Some(flips);
        }
        let passes = content.len() as u64 * 32;
        if passes > tried.left(self.effort) || self.effort.cancelled() {
            tried.single = Reach::Part;
            return None;
        }
        let target = unmask(computed) ^ unmask(stored);
        let single = |elem: Elem| [elem];
        let whole = single(Elem {
            s: 0,
            size: 0,
            literal: true,
            repeat: false,
            len: content.len() as u32,
            back: 0,
            d: 0,
        });
        let elems = walked.map_or(&whole[..], |(_, w)| &w.elems);
        let weights = weights(elems, content.len());
        // The weight that a byte must have for its bit b to be the culprit.
        let mut wanted = [target; 8];
        for b in (0..7).rev() {
            let above = wanted.get(b + 1).copied().unwrap_or(target);
            if let Some(w) = wanted.get_mut(b) {
                *w = over_x(above);
            }
        }
        tried.count(content.len() as u64 * 8, passes);
        let at =
            |elem: &Elem, i: usize| (BLOCK_AT + elem.s as usize + usize::from(elem.size) + i) * 8;
        let literals = || {
            elems.iter().filter(|e| e.literal).filter_map(|e| {
                let d = e.d as usize;
                Some((e, weights.get(d..d + e.len as usize)?))
            })
        };
        let mut hits = Vec::new();
        for (elem, weights) in literals() {
            for (i, weight) in weights.iter().enumerate() {
                if wanted.contains(weight) {
                    for (b, _) in wanted.iter().enumerate().filter(|(_, w)| *w == weight) {
                        hits.push(vec![at(elem, i) + b]);
                    }
                }
            }
        }
        let spans = |w: &Walk| -> u64 {
            let all = (0..w.elems.len()).map(|j| w.span(j));
            all.filter(|&n| n <= MAX_REACH).map(u64::from).sum()
        };
        if let Some((src, w)) = walked
            && spans(w) * 16 <= tried.left(self.effort)
        {
            tried.count(w.elems.len() as u64 * 16, spans(w) * 16);
            let offsets = |j: usize| offset_flips(src, w, j, content, &weights, target);
            let found: Vec<Vec<usize>> = if self.effort.parallel {
                (0..w.elems.len())
                    .into_par_iter()
                    .flat_map_iter(offsets)
                    .collect()
            } else {
                (0..w.elems.len()).flat_map(offsets).collect()
            };
            hits.extend(found);
        }
        let cost = (content.len() + self.chunk.len()) as u64;
        let (hit, reach) = self.decode_each(&hits, cost, tried);
        tried.single = reach;
        if hit.is_some() || reach != Reach::All || near == 0 {
            return hit;
        }
        // Two near bits of the same literal.
        let doubles = content.len() as u64 * 8 * near as u64;
        if doubles > tried.left(self.effort) {
            return None;
        }
        tried.count(doubles, doubles);
        let mut hits = Vec::new();
        for (elem, weights) in literals() {
            // Effects of the last bits, newest last, as far back as near.
            let mut window = std::collections::VecDeque::with_capacity(near + 1);
            for (i, &weight) in weights.iter().enumerate() {
                let mut effects = [weight; 8];
                let mut effect = weight;
                for e in effects.iter_mut().rev() {
                    *e = effect;
                    effect = times_x(effect);
                }
                for (b, effect) in effects.into_iter().enumerate() {
                    for (back, earlier) in window.iter().rev().enumerate() {
                        if effect ^ earlier == target {
                            let bit = at(elem, i) + b;
                            hits.push(vec![bit - 1 - back, bit]);
                        }
                    }
                    if window.len() == near {
                        window.pop_front();
                    }
                    window.push_back(effect);
                }
            }
        }
        let (hit, reach) = self.decode_each(&hits, cost, tried);
        tried.double = reach;
        hit
    }

    /// Flips that change what follows.
    fn structure(
        &self,
        src: &[u8],
        walked: &Walk,
        claimed: u64,
        cost: u64,
        tried: &mut Tried,
    ) -> Option<Vec<usize>> {
        const BATCH: usize = 1024;
        /// Elements that get as many steps as are left.
        const GROUP: usize = 16;
        /// Steps that the others get.
        const SHORT: u64 = 8192;
        // Which element starts where, counted from one.
        let mut starts = vec![0u32; src.len()];
        for (i, elem) in walked.elems.iter().enumerate() {
            if let Some(start) = starts.get_mut(elem.s as usize) {
                *start = i as u32 + 1;
            }
        }
        // A walk that failed did so in an element that is not in the list.
        let mut all: Vec<usize> = (0..walked.elems.len()).collect();
        let end = walked
            .elems
            .last()
            .and_then(|e| element(src, e.s as usize, 0))
            .map_or_else(|| claimed_len(src).map_or(0, |(_, n)| n), |(.., end)| end);
        // The first record that does not prove itself has the fault, or ends behind it.
        let first = walked
            .elems
            .partition_point(|e| u64::from(e.d) + u64::from(e.len) <= self.now.first as u64);
        all.rotate_left(first.min(walked.elems.len()));
        if let Some(passed) = all.len().checked_sub(first.min(all.len())) {
            // What lies before it comes last, nearest first.
            if let Some(before) = all.get_mut(passed..) {
                before.reverse();
            }
        }
        let failed = (end < src.len()).then_some(walked.elems.len());
        let mut order: Vec<usize> = failed.into_iter().collect();
        order.extend(all);
        tried.structure = Reach::Part;
        let each = |js: &[usize], steps: u64| -> Vec<Survivors> {
            let of = |&j: &usize| survivors(src, walked, &starts, claimed, j, end, steps);
            if self.effort.parallel {
                js.par_iter().map(of).collect()
            } else {
                js.iter().map(of).collect()
            }
        };
        let count = |found: &[Survivors], tried: &mut Tried| {
            let steps: u64 = found.iter().map(|f| f.steps).sum();
            tried.count(0, steps.saturating_mul(STEP_COST));
        };
        let mut whole = true;
        for batch in order.chunks(BATCH) {
            if self.effort.cancelled() || tried.left(self.effort) == 0 {
                return None;
            }
            let mut found = each(batch, SHORT);
            count(&found, tried);
            // In hostile blocks every walk may be long.
            let long: Vec<usize> = (0..found.len())
                .filter(|&i| found.get(i).is_some_and(|f| f.cut))
                .collect();
            for group in long.chunks(GROUP) {
                let left = tried.left(self.effort);
                if self.effort.cancelled() || left == 0 {
                    return None;
                }
                let js: Vec<usize> = group
                    .iter()
                    .filter_map(|&i| batch.get(i))
                    .copied()
                    .collect();
                let again = each(&js, left / STEP_COST / GROUP as u64);
                count(&again, tried);
                for (&i, new) in group.iter().zip(again) {
                    whole &= !new.cut;
                    if let Some(old) = found.get_mut(i) {
                        *old = new;
                    }
                }
            }
            let flips: Vec<_> = found
                .into_iter()
                .flat_map(|f| f.flips)
                .map(|flip| vec![flip])
                .collect();
            let (hit, reach) = self.decode_each(&flips, cost, tried);
            if hit.is_some() {
                tried.structure = Reach::All;
                return hit;
            }
            if reach != Reach::All {
                return None;
            }
        }
        if whole {
            tried.structure = Reach::All;
        }
        None
    }
}

/// The CRC behind the mask.
fn unmask(stored: u32) -> u32 {
    stored.wrapping_sub(0xa282_ead8).rotate_left(15)
}

/// `W` of the module's introduction.
fn weights(elems: &[Elem], len: usize) -> Vec<u32> {
    let mut w = vec![0u32; len];
    let mut own = POLY;
    for weight in w.iter_mut().rev() {
        *weight = own;
        for _ in 0..8 {
            own = times_x(own);
        }
    }
    for elem in elems.iter().rev().filter(|e| !e.literal) {
        let (d, back) = (elem.d as usize, elem.back as usize);
        for to in (d..d + elem.len as usize).rev() {
            let effect = w.get(to).copied().unwrap_or(0);
            if let Some(from) = to.checked_sub(back).and_then(|from| w.get_mut(from)) {
                *from ^= effect;
            }
        }
    }
    w
}

/// Flips in element `j` that change where it copies from and nothing else, and give `target`.
fn offset_flips(
    src: &[u8],
    walked: &Walk,
    j: usize,
    content: &[u8],
    weights: &[u32],
    target: u32,
) -> Vec<Vec<usize>> {
    let mut hits = Vec::new();
    let span = walked.span(j);
    let Some(elem) = walked
        .elems
        .get(j)
        .filter(|_| (1..=MAX_REACH).contains(&span))
    else {
        return hits;
    };
    let s = elem.s as usize;
    let inherited = j
        .checked_sub(1)
        .and_then(|i| walked.elems.get(i))
        .map_or(0, |e| e.back);
    // This element and the repeats of it.
    let group = walked.elems.get(j..).unwrap_or_default();
    let group = || group.iter().take_while(|e| e.d - elem.d < span);
    let from = elem.d as usize;
    let mut changed: Vec<u8> = Vec::new();
    for bit in 0..usize::from(elem.size) * 8 {
        let Some(back) = same_but_offset(src, elem, bit, inherited) else {
            continue;
        };
        if back == 0 || back > elem.d || back == elem.back {
            continue;
        }
        changed.clear();
        let mut syndrome = 0;
        for e in group() {
            let range = e.d as usize..e.d as usize + e.len as usize;
            if e.literal {
                changed.extend_from_slice(content.get(range).unwrap_or_default());
                continue;
            }
            for x in range {
                let at = |back: u32| {
                    let y = x.checked_sub(back as usize)?;
                    match y.checked_sub(from) {
                        None => content.get(y),
                        Some(y) => changed.get(y),
                    }
                    .copied()
                };
                let (Some(new), Some(old)) = (at(back), at(e.back)) else {
                    continue;
                };
                changed.push(new);
                let injected = new ^ old;
                if injected != 0 {
                    let mut effect = weights.get(x).copied().unwrap_or(0);
                    for b in (0..8).rev() {
                        if (injected >> b) & 1 == 1 {
                            syndrome ^= effect;
                        }
                        effect = times_x(effect);
                    }
                }
            }
        }
        if syndrome == target {
            hits.push(vec![(BLOCK_AT + s) * 8 + bit]);
        }
    }
    hits
}

/// The offset of a copy after a flip that leaves it a copy of the same size and length.
fn same_but_offset(src: &[u8], elem: &Elem, bit: usize, inherited: u32) -> Option<u32> {
    let (what, size, len, _) = element(src, elem.s as usize, 1 << bit)?;
    if elem.literal || size != usize::from(elem.size) || len != u64::from(elem.len) {
        return None;
    }
    match what {
        Element::Literal => None,
        Element::Copy(back) => Some(back),
        Element::Repeat => Some(inherited),
    }
}

/// What an element's step counts for, in bytes.
const STEP_COST: u64 = 16;

/// What [`survivors`] gives.
struct Survivors {
    flips: Vec<usize>,
    /// Elements that were walked.
    steps: u64,
    /// There were more to walk.
    cut: bool,
}

/// Flips in element `j` (or, behind the last one, where the walk failed) after which the elements
/// make just the claimed length. Ends after `most` steps.
fn survivors(
    src: &[u8],
    walked: &Walk,
    starts: &[u32],
    claimed: u64,
    j: usize,
    end: usize,
    most: u64,
) -> Survivors {
    let (mut flips, mut steps, mut cut) = (Vec::new(), 0, false);
    let fits = walked.complete && walked.total == claimed;
    let elem = walked.elems.get(j);
    let (s, d) = match elem {
        Some(elem) => (elem.s as usize, u64::from(elem.d)),
        None => (end, walked.total),
    };
    let size = elem.map_or_else(|| parse(word(src, s)).1, |e| usize::from(e.size));
    let inherited = j
        .checked_sub(1)
        .and_then(|i| walked.elems.get(i))
        .map_or(0, |e| e.back);
    for bit in 0..size * 8 {
        steps += 1;
        if let Some(elem) = elem
            && same_but_offset(src, elem, bit, inherited).is_some()
        {
            // Only a walk that is right but for copies from nowhere is mended by an offset; where
            // there are none, the CRC has told already, unless that was too much.
            let may = match walked.bad {
                Some((bad, source)) => j == bad || j == source,
                None => walked.span(j) > MAX_REACH,
            };
            if fits && may {
                flips.push((BLOCK_AT + s) * 8 + bit);
            }
            continue;
        }
        let Some((_, _, len, mut at)) = element(src, s, 1 << bit) else {
            continue;
        };
        let mut made = d + len;
        let good = loop {
            if steps >= most {
                cut = true;
                break false;
            }
            if made > claimed {
                break false;
            }
            if at == src.len() {
                break made == claimed;
            }
            let old = starts.get(at).copied().unwrap_or(0);
            if let Some(old) = (old as usize)
                .checked_sub(1)
                .and_then(|i| walked.elems.get(i))
                && old.s as usize > s
            {
                break walked.complete && made + walked.total - u64::from(old.d) == claimed;
            }
            let Some((_, _, len, next)) = element(src, at, 0) else {
                break false;
            };
            steps += 1;
            made += len;
            at = next;
        };
        if good {
            flips.push((BLOCK_AT + s) * 8 + bit);
        }
        if cut {
            break;
        }
    }
    Survivors { flips, steps, cut }
}

/// The chunk at the start of `buf`, as long as its header says.
fn frame_at(buf: &[u8], offset: u64) -> Option<Frame<'_>> {
    let (header, rest) = buf.split_first_chunk::<CHUNK_HEADER>()?;
    let (kind, len) = parse_chunk_header(*header);
    Some(Frame {
        offset,
        kind: FrameKind::of(kind),
        body: rest.get(..len as usize)?,
    })
}

/// True when `buf` starts with a chunk that decodes to what its checksum says.
fn is_good(buf: &[u8], content: &mut Vec<u8>) -> bool {
    frame_at(buf, 0)
        .filter(|f| f.kind.is_data() && f.body.len() <= MAX_FRAME_BODY)
        .is_some_and(|f| {
            content.clear();
            decode_frame(&f, content, true).is_ok()
        })
}

/// True when a chunk of content could start here, by its header alone.
fn may_start(buf: &[u8]) -> bool {
    frame_at(buf, 0)
        .is_some_and(|f| f.kind.is_data() && (5..=MAX_FRAME_BODY).contains(&f.body.len()))
}

/// The first offset from `from` on where a chunk starts that decodes to what its checksum says.
/// `budget` is what may still be decoded.
pub fn resync(buf: &[u8], from: usize, budget: &mut u64) -> Option<usize> {
    let mut content = Vec::new();
    (from..buf.len().saturating_sub(BLOCK_AT)).find(|&at| {
        let rest = buf.get(at..).unwrap_or_default();
        let Some(frame) = frame_at(rest, 0).filter(|_| may_start(rest)) else {
            return false;
        };
        // What follows is another chunk or the end.
        let next = rest.get(frame.length() as usize..).unwrap_or_default();
        let Ok(len) = frame.decoded_len() else {
            return false;
        };
        if !(next.is_empty() || may_start(next) || next.starts_with(&MAGIC)) || len == 0 {
            return false;
        }
        let cost = (frame.body.len() + len) as u64;
        if *budget < cost {
            *budget = 0;
            return false;
        }
        *budget -= cost;
        is_good(rest, &mut content)
    })
}

/// How far the chunk at `buf[0]` reaches, and whether that is what its header says. `budget` is what
/// may be decoded to find the next one.
fn extent(buf: &[u8], budget: &mut u64) -> (usize, bool) {
    match says(buf).filter(|&len| follows(buf, len)) {
        Some(len) => (len, true),
        None => (resync(buf, BLOCK_AT, budget).unwrap_or(buf.len()), false),
    }
}

/// The length of a chunk as its header has it.
fn says(buf: &[u8]) -> Option<usize> {
    let header = buf.first_chunk::<CHUNK_HEADER>()?;
    Some(parse_chunk_header(*header).1 as usize + CHUNK_HEADER)
}

/// Whether the stream could go on, or end, `len` bytes further.
fn follows(buf: &[u8], len: usize) -> bool {
    buf.get(len..)
        .is_some_and(|next| next.is_empty() || may_start(next) || next.starts_with(&MAGIC))
}

/// Tries to mend the chunk at `buf[0]`, which lies at `offset` in the file and does not decode to
/// what its checksum says. `buf` goes on to the end of the stream. `judge` looks at a candidate's
/// content. Gives the length of the chunk as found as well.
pub fn mend(
    buf: &[u8],
    offset: u64,
    judge: &(impl Fn(&[u8]) -> Verdict + Sync),
    effort: &Effort<'_>,
) -> (Option<MendedChunk>, usize, Tried) {
    let mut tried = Tried::default();
    let mut budget = effort.bytes / 4;
    let extent = extent(buf, &mut budget);
    tried.count(0, effort.bytes / 4 - budget);
    let mended = mend_within(buf, extent, offset, judge, effort, &mut tried);
    let len = mended.as_ref().map_or(extent.0, |m| m.raw.len());
    (mended, len, tried)
}

/// [`mend`] for a chunk whose [`extent`] is known.
fn mend_within(
    buf: &[u8],
    extent: (usize, bool),
    offset: u64,
    judge: &(impl Fn(&[u8]) -> Verdict + Sync),
    effort: &Effort<'_>,
    tried: &mut Tried,
) -> Option<MendedChunk> {
    if let Some(mended) = mend_header(buf, extent, offset, judge, effort, tried) {
        return Some(mended);
    }
    let chunk = buf.get(..extent.0).unwrap_or_default();
    if tried.left(effort) < chunk.len() as u64 || effort.cancelled() {
        return None;
    }
    let mut content = Vec::new();
    if let Some(frame) = frame_at(chunk, offset) {
        let _ = decode_frame(&frame, &mut content, false);
    }
    tried.count(0, (chunk.len() + content.len()) as u64);
    let search = Search {
        chunk,
        offset,
        now: judge(&content),
        judge,
        effort,
        unsure: std::sync::Mutex::default(),
        fits: AtomicUsize::new(0),
    };
    drop(content);
    let found = search.run(tried).map(|flips| (flips, Proof::Records));
    if search.fits.load(Ordering::Relaxed) > MAX_FITS && found.is_none() {
        tried.structure = Reach::Part;
    }
    let (flips, proof) = found.or_else(|| {
        let mut unsure = std::mem::take(&mut *search.unsure.lock().ok()?);
        unsure.sort();
        unsure.dedup();
        let whole = tried.single == Reach::All && tried.structure == Reach::All;
        let only = unsure.pop().filter(|_| unsure.is_empty() && whole)?;
        Some((only, Proof::Checksum))
    })?;
    let mut raw = chunk.to_vec();
    for &flip in &flips {
        toggle(&mut raw, flip);
    }
    finished(chunk, raw, offset, proof)
}

fn finished(old: &[u8], raw: Vec<u8>, offset: u64, proof: Proof) -> Option<MendedChunk> {
    let mut content = Vec::new();
    is_good(&raw, &mut content).then(|| MendedChunk {
        flips: differences(old, &raw, offset),
        raw,
        content,
        proof,
    })
}

/// Tries the header's bits, and where the next chunk begins.
fn mend_header(
    buf: &[u8],
    (end, believed): (usize, bool),
    offset: u64,
    judge: &(impl Fn(&[u8]) -> Verdict + Sync),
    effort: &Effort<'_>,
    tried: &mut Tried,
) -> Option<MendedChunk> {
    let stored = u32::from_le_bytes(*buf.first_chunk::<CHUNK_HEADER>()?);
    let mut words: Vec<u32> = (0..32).map(|bit| stored ^ (1 << bit)).collect();
    if !believed {
        let body = end.saturating_sub(CHUNK_HEADER) as u32;
        words.extend([body << 8, body << 8 | 1]);
    }
    let mut content = Vec::new();
    for word in words {
        let len = (word >> 8) as usize + CHUNK_HEADER;
        if (word & 0xff) > 1
            || !(BLOCK_AT..=CHUNK_HEADER + MAX_FRAME_BODY).contains(&len)
            || !follows(buf, len)
            || tried.left(effort) < len as u64
        {
            continue;
        }
        let Some(mut raw) = buf.get(..len).map(<[u8]>::to_vec) else {
            continue;
        };
        if let Some(to) = raw.first_chunk_mut::<CHUNK_HEADER>() {
            *to = word.to_le_bytes();
        }
        content.clear();
        let good = is_good(&raw, &mut content);
        tried.count(1, (len + content.len()) as u64);
        if good {
            // With some dozen candidates the CRC would do; the records say how good it is.
            let proof = match judge(&content).proven {
                0 => Proof::Checksum,
                _ => Proof::Records,
            };
            return finished(buf.get(..len).unwrap_or_default(), raw, offset, proof);
        }
    }
    None
}

/// The header of a compressed block with bits flipped: its length, by where the stream's
/// identifier is, and the flipped bits of what is known. The size in between is not looked at.
///
/// At most two bits may be wrong in the magic numbers together.
pub fn container(raw: &[u8]) -> Option<(usize, Vec<Flip>)> {
    (5..=14).find_map(|header| {
        let cmp = differences(raw.get(..4)?, b"cmp\x01", 0);
        let magic = differences(
            raw.get(header..header + MAGIC.len())?,
            &MAGIC,
            header as u64,
        );
        (cmp.len() + magic.len() <= 2)
            .then(|| [cmp, magic].concat())
            .map(|flips| (header, flips))
    })
}

/// What became of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it should be.
    Good,
    /// It was mended.
    Mended {
        /// The bits that were wrong.
        flips: Vec<Flip>,
        /// What vouches for it.
        proof: Proof,
    },
    /// It could not be mended. `decoded` bytes come before the fault and are likely right; zeros
    /// fill it up to the length it claims. With `checksum` all of it decoded, to something else.
    Broken {
        /// Bytes before the fault.
        decoded: usize,
        /// Only the checksum is wrong.
        checksum: bool,
        /// Wrong bits that were found all the same, and put right: records prove it.
        flips: Vec<Flip>,
    },
}

impl Outcome {
    /// True for content as it was written: what came out right, and what was mended with records to
    /// prove it. A chunk mended by its checksum alone is not, though its content is in the output.
    pub fn is_proven(&self) -> bool {
        match self {
            Self::Good => true,
            Self::Mended { proof, .. } => proof.is_proven(),
            Self::Broken { .. } => false,
        }
    }
}

/// One chunk of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where it starts in the file.
    pub offset: u64,
    /// Its length there.
    pub length: u64,
    /// Where its content is in what was decompressed.
    pub content: std::ops::Range<usize>,
    /// What became of it.
    pub outcome: Outcome,
    /// What was tried.
    pub tried: Tried,
}

/// How a block's records are proven.
#[derive(Debug, Clone, Copy)]
pub struct Records<'a> {
    /// The block's prover.
    pub prover: &'a Prover,
    /// For a block that was encrypted before it was compressed: what decrypts its content.
    pub key: Option<&'a SealKey>,
}

impl Records<'_> {
    /// Judges `content`, which comes after `before` (the beginning of an unfinished record, which
    /// starts at `offset` of the block) and before `after`.
    pub fn judge(&self, offset: u64, before: &[u8], content: &[u8], after: &[u8]) -> Verdict {
        let mut all = [before, content, after].concat();
        if let Some(key) = self.key {
            key.apply_keystream(offset, &mut all);
        }
        let (from, to) = (before.len() as u64, (before.len() + content.len()) as u64);
        let mut verdict = Verdict::default();
        let mut gap = false;
        scan(&all, 0, self.prover, OnDamage::Resync, |step| match step {
            Step::Record(r, RecordProof::Proven) => {
                let (start, end) = (r.offset.max(from), (r.offset + r.len()).min(to));
                verdict.proven += end.saturating_sub(start) as usize;
                if !gap {
                    verdict.first = end.saturating_sub(from) as usize;
                }
            }
            _ => gap = true,
        });
        verdict
    }
}

/// Decompresses a block like [`block::decompress`](crate::format::block::decompress), mending its
/// chunks. `raw` is the (decrypted) file, `header` the length of what comes before the stream. `out`
/// grows to at most `ceiling` bytes and the tail.
///
/// Offsets of chunks and flips are those of the file; what they hold is given by its place in `out`.
/// Content that only a checksum speaks for is in `out` as well: see [`Outcome::is_proven`]. Records
/// are proven by their own hashes in any case.
pub fn decompress(
    raw: &[u8],
    header: usize,
    records: &Records<'_>,
    effort: &Effort<'_>,
    out: &mut Vec<u8>,
    ceiling: usize,
) -> (Vec<Chunk>, Tried) {
    let end = raw
        .len()
        .saturating_sub(TAIL_LEN)
        .max(header.min(raw.len()));
    let stream = raw.get(..end).unwrap_or_default();
    let tail = raw.get(end..).unwrap_or_default();
    let (mut chunks, mut total) = (Vec::new(), Tried::default());
    let mut pos = header.min(end);
    // The identifier is always the same.
    if let Some(magic) = stream.get(pos..pos + MAGIC.len()) {
        let flips = differences(magic, &MAGIC, pos as u64);
        if flips.len() <= 8 {
            if !flips.is_empty() {
                chunks.push(Chunk {
                    offset: pos as u64,
                    length: MAGIC.len() as u64,
                    content: out.len()..out.len(),
                    outcome: Outcome::Mended {
                        flips,
                        proof: Proof::Checksum,
                    },
                    tried: Tried::default(),
                });
            }
            pos += MAGIC.len();
        }
    }
    let base = out.len();
    let mut content = Vec::new();
    // Where the proven records end; what may be decoded to find the next chunk.
    let mut from = base;
    let mut looks = (raw.len() as u64)
        .saturating_mul(16)
        .saturating_add(64 << 20);
    while let Some(rest) = stream.get(pos..).filter(|r| !r.is_empty()) {
        let start = out.len();
        let (length, outcome, tried) = if is_good(rest, &mut content) {
            let length = says(rest).unwrap_or(rest.len());
            (length, Outcome::Good, Tried::default())
        } else if rest.starts_with(&MAGIC) {
            content.clear();
            (MAGIC.len(), Outcome::Good, Tried::default())
        } else {
            let extent = extent(rest, &mut looks);
            let mut tried = Tried::default();
            let share = Effort {
                bytes: total.left(effort) / 2,
                ..*effort
            };
            let done = (out.len() - from) as u64;
            let mut now = std::borrow::Cow::Borrowed(rest);
            let mended = if share.bytes > done.saturating_mul(JUDGE_COST) && !effort.cancelled() {
                tried.count(0, done.saturating_mul(JUDGE_COST));
                from += unfinished(out.get(from..).unwrap_or_default(), from - base, records);
                let before = out.get(from..).unwrap_or_default();
                // What follows helps to prove the last record.
                let mut next = Vec::new();
                match rest.get(extent.0..).filter(|r| !r.is_empty()) {
                    None => next.extend_from_slice(tail),
                    Some(r) if is_good(r, &mut next) => {}
                    Some(_) => next.clear(),
                }
                tried.count(0, (next.len() as u64).saturating_mul(JUDGE_COST));
                let start = (from - base) as u64;
                let judge = |content: &[u8]| records.judge(start, before, content, &next);
                // What was encrypted before is not compressed by it: nothing shifts there.
                if extent.1 && records.key.is_none() {
                    let around = steps::Around {
                        prover: records.prover,
                        before,
                        after: &next,
                    };
                    let share = Effort {
                        bytes: share.bytes / 4,
                        ..share
                    };
                    let chunk = rest.get(..extent.0).unwrap_or_default();
                    for bit in steps::mend(chunk, pos as u64, &around, &share, &mut tried) {
                        toggle(now.to_mut(), bit);
                    }
                }
                let stepped = matches!(now, std::borrow::Cow::Owned(_));
                if stepped && is_good(&now, &mut content) {
                    let raw = now.get(..extent.0).unwrap_or_default().to_vec();
                    finished(rest, raw, pos as u64, Proof::Records)
                } else {
                    let mut search =
                        |buf| mend_within(buf, extent, pos as u64, &judge, &share, &mut tried);
                    search(rest).or_else(|| stepped.then(|| search(&now)).flatten())
                }
            } else {
                None
            };
            match mended {
                Some(m) => {
                    content = m.content;
                    let (flips, proof) = (differences(rest, &m.raw, pos as u64), m.proof);
                    (m.raw.len(), Outcome::Mended { flips, proof }, tried)
                }
                None => {
                    content.clear();
                    let chunk = now.get(..extent.0).unwrap_or_default();
                    let mut outcome = broken(chunk, &mut content);
                    if let Outcome::Broken { flips, .. } = &mut outcome {
                        *flips = differences(rest, chunk, pos as u64);
                    }
                    (extent.0, outcome, tried)
                }
            }
        };
        total.count(tried.candidates, tried.spent);
        if out.len().saturating_add(content.len()) > ceiling {
            break;
        }
        out.extend_from_slice(&content);
        chunks.push(Chunk {
            offset: pos as u64,
            length: length as u64,
            content: start..out.len(),
            outcome,
            tried,
        });
        pos += length.max(1);
    }
    out.extend_from_slice(tail);
    (chunks, total)
}

/// What looking at a byte for records counts for: where little proves itself it may be hashed more
/// than once.
const JUDGE_COST: u64 = 4;

/// What there is of a chunk that can not be mended, filled up with zeros unless it is torn.
fn broken(chunk: &[u8], content: &mut Vec<u8>) -> Outcome {
    let whole = frame_at(chunk, 0);
    let torn = || {
        let (header, body) = chunk.split_first_chunk::<CHUNK_HEADER>()?;
        let kind = FrameKind::of(parse_chunk_header(*header).0);
        let offset = 0;
        Some(Frame { offset, kind, body })
    };
    let padded = whole.is_some();
    let Some(frame) = whole.or_else(torn).filter(|f| f.kind.is_data()) else {
        return Outcome::Broken {
            decoded: 0,
            checksum: false,
            flips: Vec::new(),
        };
    };
    let claimed = frame.decoded_len().unwrap_or(0);
    match decode_frame(&frame, content, padded) {
        Ok(decoded) => Outcome::Broken {
            decoded,
            checksum: false,
            flips: Vec::new(),
        },
        Err(fault) => {
            if padded {
                content.resize(claimed.max(content.len()), 0);
            }
            Outcome::Broken {
                decoded: fault.decoded,
                checksum: matches!(fault.kind, FrameFaultKind::Crc { .. }),
                flips: Vec::new(),
            }
        }
    }
}

/// Where in `done`, the block's content from `offset` on, the record starts that its end does not
/// finish: where the last proven one ends.
fn unfinished(done: &[u8], offset: usize, records: &Records<'_>) -> usize {
    let mut plain = std::borrow::Cow::Borrowed(done);
    if let Some(key) = records.key {
        key.apply_keystream(offset as u64, plain.to_mut());
    }
    let mut end = 0;
    scan(&plain, 0, records.prover, OnDamage::Resync, |step| {
        if let Step::Record(r, RecordProof::Proven) = step {
            end = (r.offset + r.len()) as usize;
        }
    });
    end
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Noise, ONE, tiny};
    use super::*;
    use crate::format::block;

    fn decompressed(
        raw: &[u8],
        header: usize,
        prover: &Prover,
        effort: &Effort<'_>,
    ) -> (Vec<u8>, Vec<Chunk>) {
        let mut out = Vec::new();
        let records = Records { prover, key: None };
        let (chunks, _) = decompress(raw, header, &records, effort, &mut out, 64 << 20);
        (out, chunks)
    }

    fn flips(chunks: &[Chunk]) -> Vec<Flip> {
        chunks
            .iter()
            .flat_map(|c| match &c.outcome {
                Outcome::Mended { flips, .. } => flips.clone(),
                _ => Vec::new(),
            })
            .collect()
    }

    /// Every `step`th bit of a block that a server compressed.
    fn every_bit(raw: &[u8], prover: &Prover, step: usize) {
        let header = match block::Container::detect(raw, prover) {
            block::Container::S2 { header, .. } => header,
            other => panic!("{other:?}"),
        };
        assert_eq!(container(raw), Some((header, Vec::new())));
        let mut logical = Vec::new();
        assert!(block::decompress(raw, header, &mut logical, 64 << 20).is_clean());
        let (out, chunks) = decompressed(raw, header, prover, &ONE);
        assert_eq!((&out, flips(&chunks)), (&logical, Vec::new()));
        let mut others = 0;
        for bit in (0..(raw.len() - TAIL_LEN) * 8).step_by(step) {
            let mut damaged = raw.to_vec();
            toggle(&mut damaged, bit);
            if bit < header * 8 {
                // The size in it is not looked at.
                let (found, bits) = container(&damaged).unwrap();
                assert_eq!(found, header);
                assert_eq!(bits.is_empty(), (32..header * 8).contains(&bit));
            }
            let (out, chunks) = decompressed(&damaged, header, prover, &ONE);
            assert_eq!(out, logical, "bit {bit}: {chunks:?}");
            if bit >= header * 8 {
                // In runs, a bit of one element's length can do what that of another does.
                // Or it does nothing at all.
                let unharmed = chunks.iter().all(|c| c.outcome == Outcome::Good);
                let n = flips(&chunks).len();
                assert_eq!(n, usize::from(!unharmed), "bit {bit}: {chunks:?}");
                others += usize::from(flips(&chunks) != [Flip::at(0, bit)]);
            }
        }
        assert!(others * step * 30 < raw.len() * 8, "{others}");
    }

    #[test]
    fn every_bit_of_a_block_that_a_server_compressed() {
        let raw = tiny("2.15.2-s2", "msgs/1.blk");
        every_bit(&raw, &Prover::for_block("TINY", 1), 1);
    }

    #[test]
    fn bits_of_larger_blocks_that_servers_compressed() {
        let raw = from_store("2.14.5-compress", "S2", 1);
        every_bit(&raw, &Prover::for_block("S2", 1), 61);
        let raw = from_store("2.10.29-compress", "S2", 2);
        every_bit(&raw, &Prover::for_block("S2", 2), 97);
    }

    /// A block out of a larger fixture.
    fn from_store(fixture: &str, stream: &str, n: u64) -> Vec<u8> {
        use std::io::Read as _;
        let path = format!(
            "{}/fixtures/stores/{fixture}.tar.xz",
            env!("CARGO_MANIFEST_DIR")
        );
        let file = xz2::read::XzDecoder::new(std::fs::File::open(path).unwrap());
        let want = format!("/$G/streams/{stream}/msgs/{n}.blk");
        for entry in ::tar::Archive::new(file).entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.path().unwrap().to_str().unwrap().ends_with(&want) {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                return bytes;
            }
        }
        panic!("{fixture} has no {want}");
    }

    #[test]
    fn chunks_of_the_reference_writer_without_records() {
        // Nothing speaks for the records: what the checksum alone says is marked so, and right.
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/vectors/s2/");
        let mut noise = Noise::new(3);
        for name in ["best", "better", "default", "64k", "uncompressed", "copyn"] {
            let stream = std::fs::read(format!("{dir}{name}.s2")).unwrap();
            let first = &stream[MAGIC.len()..];
            let len = frame_at(first, 0).unwrap().length() as usize;
            let chunk = &first[..len];
            let mut content = Vec::new();
            assert!(is_good(chunk, &mut content));
            // Too long for all of it here.
            let effort = Effort {
                bytes: 300 << 20,
                ..ONE
            };
            let judge = |_: &[u8]| Verdict::default();
            let (mut mended, mut tries) = (0, 0);
            for _ in 0..12 {
                let mut damaged = chunk.to_vec();
                let bit = noise.below(len * 8);
                toggle(&mut damaged, bit);
                let (found, _, _) = mend(&damaged, 0, &judge, &effort);
                tries += 1;
                if let Some(found) = found {
                    assert_eq!(
                        (found.raw.as_slice(), found.proof),
                        (chunk, Proof::Checksum)
                    );
                    assert_eq!(found.content, content);
                    mended += 1;
                }
            }
            assert!(
                name != "uncompressed" || mended == tries,
                "{name}: {mended} of {tries}"
            );
        }
    }

    #[test]
    fn two_bits_of_a_literal_and_of_the_checksum() {
        let raw = tiny("2.15.2-s2", "msgs/1.blk");
        let prover = Prover::for_block("TINY", 1);
        let header = container(&raw).unwrap().0;
        let (logical, _) = decompressed(&raw, header, &prover, &ONE);
        let src = header + MAGIC.len() + BLOCK_AT;
        let body = &raw[src..raw.len() - TAIL_LEN];
        let walked = walk(body, claimed_len(body).unwrap().1);
        assert!(walked.complete && walked.bad.is_none());
        let effort = Effort { near: 16, ..ONE };
        for elem in walked.elems.iter().filter(|e| e.literal && e.len > 4) {
            let at = (src + elem.s as usize + usize::from(elem.size)) * 8 + 3;
            for apart in [1, 7, 16] {
                let mut damaged = raw.clone();
                toggle(&mut damaged, at);
                toggle(&mut damaged, at + apart);
                let (out, chunks) = decompressed(&damaged, header, &prover, &effort);
                assert_eq!(out, logical);
                assert_eq!(flips(&chunks), [Flip::at(0, at), Flip::at(0, at + apart)]);
            }
        }
        let crc = (src - 4) * 8;
        let mut damaged = raw.clone();
        toggle(&mut damaged, crc + 5);
        toggle(&mut damaged, crc + 14);
        let (out, chunks) = decompressed(&damaged, header, &prover, &effort);
        assert_eq!((out, flips(&chunks).len()), (logical, 2));
    }

    /// A block of several chunks.
    fn three_chunks(one_size: bool) -> (Vec<u8>, Vec<u8>, Prover) {
        use crate::format::hash::HashKey;
        use crate::format::record::{NewRecord, encode};
        let mut logical = Vec::new();
        let mut noise = Noise::new(9);
        for seq in 1.. {
            if logical.len() > 2_500_000 {
                break;
            }
            let text = format!("{{\"n\":{seq},\"at\":{},\"v\":\"", noise.next() % 1000);
            let mut payload = [text.into_bytes(), noise.bytes(20), b"\"}".repeat(30)].concat();
            if one_size {
                payload.resize(130, b'.');
            }
            let record = NewRecord {
                seq,
                ts: 1_763_685_393_000_000_000 + seq as i64 * 1000,
                subject: b"orders.new",
                headers: b"",
                payload: &payload,
            };
            encode(&mut logical, &HashKey::block("S", 1), &record).unwrap();
        }
        let mut raw = Vec::new();
        block::compress(&logical, &mut crate::format::s2::Encoder::new(), &mut raw).unwrap();
        (raw, logical, Prover::for_block("S", 1))
    }

    #[test]
    fn chunks_of_a_mebibyte() {
        for one_size in [false, true] {
            bits_of_three_chunks(one_size);
        }
    }

    /// One wrong bit in each of many records, of whatever kind: all come back.
    #[test]
    fn many_bits_of_a_chunk() {
        let (raw, logical, prover) = three_chunks(false);
        let header = container(&raw).unwrap().0;
        let mut noise = Noise::new(5);
        for n in [2, 5, 20] {
            let mut damaged = raw.clone();
            let mut from = header + MAGIC.len() + BLOCK_AT + 8;
            // A record takes some 60 to 80 bytes.
            let apart = (raw.len() - from - 300) / n;
            let mut bits = Vec::new();
            for _ in 0..n {
                bits.push((from + noise.below(apart.min(2000))) * 8 + noise.below(8));
                from += apart;
            }
            for &bit in &bits {
                toggle(&mut damaged, bit);
            }
            let (out, chunks) = decompressed(&damaged, header, &prover, &ONE);
            assert!(out == logical, "{n} bits");
            let found = flips(&chunks);
            assert_eq!(found.len(), n);
            let exact = bits
                .iter()
                .filter(|b| found.contains(&Flip::at(0, **b)))
                .count();
            assert!(exact * 10 >= n * 8, "{exact} of {n}");
        }
    }

    fn bits_of_three_chunks(one_size: bool) {
        let (raw, logical, prover) = three_chunks(one_size);
        let header = container(&raw).unwrap().0;
        let mut noise = Noise::new(21);
        for i in 0..25 {
            let mut damaged = raw.clone();
            let bit = (header + 10) * 8 + noise.below((raw.len() - header - 18) * 8);
            toggle(&mut damaged, bit);
            let effort = Effort {
                parallel: i % 2 == 0,
                ..ONE
            };
            let (out, chunks) = decompressed(&damaged, header, &prover, &effort);
            assert_eq!(flips(&chunks), [Flip::at(0, bit)], "bit {bit}");
            assert!(out == logical, "bit {bit}");
        }
    }

    #[test]
    fn encrypted_before_it_was_compressed() {
        use crate::format::crypt::{Cipher, Context, ServerKey, make_key_file};
        let (_, mut logical, prover) = three_chunks(false);
        logical.truncate(unfinished(
            &logical[..300_000],
            0,
            &Records {
                prover: &prover,
                key: None,
            },
        ));
        let context = Context::Block {
            info: b"A",
            store: b"S",
            n: 1,
        };
        let (_, key) = make_key_file(&ServerKey::new(*b"key"), Cipher::ChaCha, &context);
        key.apply_keystream(0, &mut logical);
        let (body, tail) = logical.split_at(logical.len() - TAIL_LEN);
        let mut raw = Vec::new();
        crate::format::s2::Encoder::new()
            .encode_stream(body, &mut raw)
            .unwrap();
        raw.extend_from_slice(tail);
        let records = Records {
            prover: &prover,
            key: Some(&key),
        };
        for bit in [14 * 8, 17 * 8 + 3, 20 * 8, 100_000, 1_234_567] {
            let mut damaged = raw.clone();
            toggle(&mut damaged, bit);
            let mut out = Vec::new();
            let (chunks, _) = decompress(&damaged, 0, &records, &ONE, &mut out, 64 << 20);
            let want = Outcome::Mended {
                flips: vec![Flip::at(0, bit)],
                proof: Proof::Records,
            };
            assert!(out == logical && chunks[0].outcome == want, "bit {bit}");
        }
    }

    #[test]
    fn what_can_not_be_mended_keeps_the_rest() {
        let (raw, logical, prover) = three_chunks(false);
        let header = container(&raw).unwrap().0;
        let (_, good) = decompressed(&raw, header, &prover, &ONE);
        assert_eq!(good.len(), 3);
        let effort = Effort {
            bytes: 200 << 20,
            ..ONE
        };
        // Garbage in the middle of the second chunk; then its header as well.
        let at = good[1].offset as usize;
        let mut damaged = raw.clone();
        damaged[at + 50_000..at + 50_100].fill(0x55);
        for _ in 0..2 {
            let (out, chunks) = decompressed(&damaged, header, &prover, &effort);
            assert_eq!(chunks.len(), 3);
            assert_eq!(
                (chunks[0].outcome.clone(), chunks[2].outcome.clone()),
                (Outcome::Good, Outcome::Good)
            );
            let Outcome::Broken { decoded, .. } = chunks[1].outcome else {
                panic!("{:?}", chunks[1]);
            };
            let mid = good[1].content.clone();
            assert!(damaged[at] != 0 || decoded > 50_000);
            let kept = mid.start + decoded.min(60_000);
            assert!(out[..kept.min(mid.start + 50_000)] == logical[..kept.min(mid.start + 50_000)]);
            let last = chunks[2].content.clone();
            assert!(out[last.start..] == logical[good[2].content.start..]);
            damaged[at..at + 4].fill(0x7e);
        }
    }

    #[test]
    fn weights_are_what_a_flip_does() {
        let raw = tiny("2.15.2-s2", "msgs/1.blk");
        let header = container(&raw).unwrap().0 + MAGIC.len() + BLOCK_AT;
        let src = &raw[header..raw.len() - TAIL_LEN];
        let (claimed, n) = claimed_len(src).unwrap();
        let walked = walk(src, n);
        let decode = |src: &[u8]| {
            let mut out = vec![0; claimed as usize];
            decode_block_into(src, &mut out).unwrap();
            crc32c::crc32c(&out)
        };
        let good = decode(src);
        let weights = weights(&walked.elems, claimed as usize);
        for elem in walked.elems.iter().filter(|e| e.literal) {
            for i in 0..elem.len as usize {
                let mut effect = weights[elem.d as usize + i];
                for b in (0..8).rev() {
                    let mut flipped = src.to_vec();
                    flipped[elem.s as usize + usize::from(elem.size) + i] ^= 1 << b;
                    assert_eq!(decode(&flipped) ^ good, effect);
                    assert_eq!(over_x(times_x(effect)), effect);
                    effect = times_x(effect);
                }
            }
        }
        assert_eq!(unmask(masked_crc(b"abc")), crc32c::crc32c(b"abc"));
    }

    fn chunk(kind: u8, crc: u32, body: &[u8]) -> Vec<u8> {
        let [a, b, c, _] = (body.len() as u32 + 4).to_le_bytes();
        [&[kind, a, b, c], &crc.to_le_bytes()[..], body].concat()
    }

    /// A literal, and copies of five bytes made of twos: a flip of a tag's lowest bit puts the walk
    /// out of step for good.
    fn out_of_step(n: usize) -> Vec<u8> {
        let made = 8 + 5 * n as u64;
        let mut body = Vec::new();
        crate::format::bytes::put_uvarint(&mut body, made);
        body.push(7 << 2);
        body.extend(b"abcdefgh");
        body.extend(std::iter::repeat_n(0x05, 2 * n));
        body
    }

    #[test]
    fn walks_out_of_step_end_with_the_budget() {
        let body = out_of_step(800_000);
        let damaged = chunk(0, 0x1234_5678, &body);
        let mut content = Vec::new();
        let claimed = decode_frame(&frame_at(&damaged, 0).unwrap(), &mut content, false).unwrap();
        assert_eq!(claimed, content.len());
        let effort = Effort {
            bytes: 64 << 20,
            ..ONE
        };
        let started = std::time::Instant::now();
        let (found, _, tried) = mend(&damaged, 0, &|_: &[u8]| Verdict::default(), &effort);
        assert!(found.is_none() && !tried.is_complete(0));
        assert!(tried.spent < effort.bytes + (256 << 20), "{}", tried.spent);
        assert!(started.elapsed().as_secs() < 30);
    }

    /// Which of `parts` make `sum` together; they are independent.
    fn solve(parts: &[u32; 32], sum: u32) -> u32 {
        let mut rows: Vec<(u32, u32)> = Vec::new();
        let reduce = |rows: &[(u32, u32)], mut value: u32, mut which: u32| {
            for &(r, w) in rows {
                if value & (1 << (31 - r.leading_zeros())) != 0 {
                    (value, which) = (value ^ r, which ^ w);
                }
            }
            (value, which)
        };
        for (i, &part) in parts.iter().enumerate() {
            let row = reduce(&rows, part, 1 << i);
            assert_ne!(row.0, 0);
            rows.push(row);
        }
        let (rest, which) = reduce(&rows, sum, 0);
        assert_eq!(rest, 0);
        which
    }

    #[test]
    fn fits_by_design_end_with_the_budget() {
        // Groups of a word and 32 words behind it, some of which copy it, so that a flip of its
        // lowest bit makes the same difference in each group.
        const GROUPS: usize = 4000;
        let len = GROUPS * 33 * 4;
        let own = weights(&[], len);
        let difference = 0x1357_9bdf;
        let mut body = Vec::new();
        crate::format::bytes::put_uvarint(&mut body, len as u64);
        for group in 0..GROUPS {
            let word = |i: usize| own[(group * 33 + i) * 4];
            let parts = std::array::from_fn(|i| word(i + 1));
            // The weight is that of the highest bit.
            let copies = solve(&parts, difference ^ word(0));
            body.extend([3 << 2, b'w', b'o', b'r', b'd']);
            for i in 0..32u8 {
                match (copies >> i) & 1 {
                    1 => body.extend([1, (i + 1) * 4]),
                    _ => body.extend([3 << 2, b'l', b'i', b'n', b'e']),
                }
            }
        }
        let mut content = vec![0; len];
        assert_eq!(decode_block_into(&body, &mut content), Ok(len));
        let wrong = unmask(masked_crc(&content)) ^ difference;
        let stored = wrong.rotate_right(15).wrapping_add(0xa282_ead8);
        let damaged = chunk(0, stored, &body);
        let judged = std::sync::atomic::AtomicUsize::new(0);
        let judge = |_: &[u8]| {
            judged.fetch_add(1, Ordering::Relaxed);
            Verdict::default()
        };
        let (found, _, tried) = mend(&damaged, 0, &judge, &ONE);
        assert!(found.is_none() && !tried.is_complete(0));
        assert!((2..=MAX_FITS + 1).contains(&judged.load(Ordering::Relaxed)));
        // Each fit is decoded, which counts.
        assert!(tried.spent > (GROUPS * len) as u64);
        let effort = Effort {
            bytes: 64 << 20,
            ..ONE
        };
        let (_, _, tried) = mend(&damaged, 0, &judge, &effort);
        assert!(tried.spent <= effort.bytes && tried.single == Reach::Part);
    }

    #[test]
    fn thousands_of_broken_chunks_end_with_the_budget() {
        let mut raw = MAGIC.to_vec();
        let noise = Noise::new(31).bytes(4 << 20);
        raw.extend(chunk(1, masked_crc(&noise), &noise));
        let start = raw.len();
        let n = 20_000;
        for _ in 0..n {
            raw.extend(chunk(0, 0, &[3]));
        }
        raw.extend(b"the tail");
        let prover = Prover::for_block("S", 1);
        for bytes in [0, 1 << 20, 1 << 28] {
            let effort = Effort { bytes, ..ONE };
            let started = std::time::Instant::now();
            let (out, chunks) = decompressed(&raw, 0, &prover, &effort);
            assert!(started.elapsed().as_secs() < 20, "{bytes}");
            assert_eq!(chunks.len(), 1 + n);
            assert_eq!(chunks[n].offset as usize, start + (n - 1) * 9);
            assert!(!chunks[n].outcome.is_proven() && chunks[0].outcome.is_proven());
            assert_eq!(out.len(), noise.len() + 3 * n + TAIL_LEN);
        }
    }

    #[test]
    fn without_effort_it_is_what_decompressing_gives() {
        let (raw, logical, prover) = three_chunks(false);
        let header = container(&raw).unwrap().0;
        let none = Effort { bytes: 0, ..ONE };
        let (_, good) = decompressed(&raw, header, &prover, &none);
        let second = good[1].offset as usize;
        // Content, a kind that is to be skipped, an identifier in between, a torn end.
        for i in 0..5 {
            let mut damaged = raw.clone();
            match i {
                0 => damaged[second + 70_000] ^= 4,
                1 => damaged[second] = 0x99,
                2 => drop(damaged.splice(second..second, MAGIC)),
                3 => damaged.truncate(second + 90_000),
                _ => damaged.truncate(second + 2),
            }
            let mut want = Vec::new();
            block::decompress(&damaged, header, &mut want, 64 << 20);
            let (out, chunks) = decompressed(&damaged, header, &prover, &none);
            assert!(out == want, "{i}: {} {}", out.len(), want.len());
            assert_eq!(flips(&chunks), []);
            let all_proven = chunks.iter().all(|c| c.outcome.is_proven());
            assert_eq!(all_proven, i == 2, "{i}");
            assert_eq!(out == logical, all_proven);
        }
    }

    #[test]
    fn guesses_are_not_called_proven() {
        // Content without any record, and none at all.
        let content = b"no record at all";
        let mut raw = chunk(1, masked_crc(content), content);
        raw[12] ^= 1;
        let empty = chunk(0, masked_crc(b""), &[1]);
        for (damaged, bit) in [(&raw, 12 * 8), (&empty, 8 * 8)] {
            let prover = Prover::for_block("S", 1);
            let stream = [&MAGIC, damaged.as_slice(), b"the tail"].concat();
            let (_, chunks) = decompressed(&stream, 0, &prover, &ONE);
            let want = Outcome::Mended {
                flips: vec![Flip::at(MAGIC.len() as u64, bit)],
                proof: Proof::Checksum,
            };
            assert_eq!(chunks[0].outcome, want);
            assert!(!chunks[0].outcome.is_proven());
        }
    }
}
