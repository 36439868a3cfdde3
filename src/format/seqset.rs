//! Sets of sequences: [`SeqSet`] as kept in memory, and the server's encoding of them
//! (`avl.SequenceSet`), which `index.db`, `<n>.idx` version 2 and stream snapshots of raft groups
//! hold.
//!
//! | size | field |
//! |---|---|
//! | 1 | magic 22 |
//! | 1 | version: 2; 1 only from builds before the release of 2.10 |
//! | 4 | number of nodes |
//! | 4 | number of members (truncated to 32 bits) |
//! | per node: 8 | base |
//! | 8 × 32 (version 1: × 64) | bits: member = base + 64 × word + bit |
//! | 2 | height of the node in the AVL tree |
//!
//! Nodes come in pre-order. Bases are multiples of 2048 as every release writes them, but the
//! server reads any base, so nodes may lie askew and overlap. It checks the number of members in
//! version 1 only. Where an announced number differs from the bits, the bits are what it looks
//! sequences up in. Holds for 2.10 to 2.15.

use std::collections::{BTreeMap, btree_map};
use std::fmt;

use serde::{Serialize, Serializer};

use super::bytes::{Cursor, Fault, FaultKind};

const MAGIC: u8 = 22;
const VERSION: u8 = 2;
const NODE_WORDS: usize = 32;
const NODE_SPAN: u64 = 64 * NODE_WORDS as u64;
const NODE_LEN: u64 = 8 + 8 * NODE_WORDS as u64 + 2;
const HEADER_LEN: u64 = 10;

const CHUNK_WORDS: usize = 1024;
const CHUNK_SPAN: u32 = 65_536;
/// Longest array: one more and the bitmap is smaller.
const ARRAY_MAX: usize = 4096;
/// Most runs: one more and the bitmap is smaller.
const RUNS_MAX: usize = 2048;

/// A set of sequences that stays small: chunks of 65,536 as runs, array or bitmap, whichever is
/// smallest, and spans of full chunks as one entry.
#[derive(Clone, Default)]
pub struct SeqSet {
    /// By the upper 48 bits of the members. A tree, so that sequences far apart and in no order,
    /// which damaged or hostile bytes may hold, cost no more than others.
    chunks: BTreeMap<u64, Body>,
    /// `u128`: the set of all sequences has one member more than `u64` counts.
    count: u128,
}

/// The lower 16 bits of a chunk's members. Never empty.
#[derive(Clone)]
enum Body {
    /// This chunk and all up to the key have all members.
    Full(u64),
    /// Sorted, apart by at least one.
    Runs(Vec<(u16, u16)>),
    Array(Vec<u16>),
    Bits(Box<Bits>),
}

#[derive(Clone)]
struct Bits {
    count: u32,
    words: [u64; CHUNK_WORDS],
}

fn run_len((lo, hi): (u16, u16)) -> u32 {
    u32::from(hi) - u32::from(lo) + 1
}

/// The words that `lo..=hi` touches, with the bits it covers in each.
fn masks(lo: u16, hi: u16) -> impl Iterator<Item = (usize, u64)> {
    let (first, last) = (usize::from(lo >> 6), usize::from(hi >> 6));
    (first..=last).map(move |i| {
        let mut mask = u64::MAX;
        if i == first {
            mask &= u64::MAX << (lo & 63);
        }
        if i == last {
            mask &= u64::MAX >> (63 - (hi & 63));
        }
        (i, mask)
    })
}

/// Makes room for one more, by an eighth instead of doubling.
fn grow<T>(v: &mut Vec<T>) {
    if v.len() == v.capacity() {
        v.reserve_exact((v.len() / 8).max(4));
    }
}

impl Bits {
    fn new() -> Box<Self> {
        Box::new(Self {
            count: 0,
            words: [0; CHUNK_WORDS],
        })
    }

    fn set(&mut self, lo: u16, hi: u16) -> u32 {
        let mut added = 0;
        for (i, mask) in masks(lo, hi) {
            if let Some(word) = self.words.get_mut(i) {
                added += (mask & !*word).count_ones();
                *word |= mask;
            }
        }
        self.count += added;
        added
    }

    fn clear(&mut self, lo: u16, hi: u16) -> u32 {
        let mut removed = 0;
        for (i, mask) in masks(lo, hi) {
            if let Some(word) = self.words.get_mut(i) {
                removed += (mask & *word).count_ones();
                *word &= !mask;
            }
        }
        self.count -= removed;
        removed
    }

    fn word(&self, i: usize) -> u64 {
        self.words.get(i).copied().unwrap_or(0)
    }

    fn or(&mut self, other: &Bits) {
        self.count = 0;
        for (word, add) in self.words.iter_mut().zip(&other.words) {
            *word |= add;
            self.count += word.count_ones();
        }
    }

    /// The first position from `pos` on whose bit, xor `flip`, is set; `CHUNK_SPAN` without any.
    fn find(&self, pos: u32, flip: u64) -> u32 {
        let mut skip = u64::MAX << (pos & 63);
        for (i, word) in self.words.iter().enumerate().skip((pos >> 6) as usize) {
            let word = (word ^ flip) & skip;
            if word != 0 {
                return (i as u32) * 64 + word.trailing_zeros();
            }
            skip = u64::MAX;
        }
        CHUNK_SPAN
    }

    fn next_run(&self, pos: &mut u32) -> Option<(u16, u16)> {
        let lo = self.find(*pos, 0);
        if lo >= CHUNK_SPAN {
            *pos = CHUNK_SPAN;
            return None;
        }
        *pos = self.find(lo, u64::MAX);
        Some((lo as u16, (*pos - 1) as u16))
    }
}

impl Body {
    fn contains(&self, v: u16) -> bool {
        match self {
            Self::Full(_) => true,
            Self::Runs(runs) => {
                let i = runs.partition_point(|r| r.1 < v);
                runs.get(i).is_some_and(|r| r.0 <= v)
            }
            Self::Array(items) => items.binary_search(&v).is_ok(),
            Self::Bits(bits) => bits.word(usize::from(v >> 6)) >> (v & 63) & 1 == 1,
        }
    }

    /// Adds `lo..=hi`, returns how many were new. Not for `Full`.
    fn insert(&mut self, lo: u16, hi: u16) -> u32 {
        match self {
            Self::Full(_) => 0,
            Self::Runs(runs) => {
                let before = runs.len();
                let start = runs.partition_point(|r| u32::from(r.1) + 1 < u32::from(lo));
                let end = runs.partition_point(|r| u32::from(r.0) <= u32::from(hi) + 1);
                let touched = runs.get(start..end).unwrap_or_default();
                let (Some(&first), Some(&last)) = (touched.first(), touched.last()) else {
                    grow(runs);
                    runs.insert(start, (lo, hi));
                    // Singles are smaller as an array; look now and then.
                    if before >= RUNS_MAX || (before >= 16 && before.is_power_of_two()) {
                        *self = self.smallest();
                    }
                    return run_len((lo, hi));
                };
                let merged = (first.0.min(lo), last.1.max(hi));
                let old: u32 = touched.iter().copied().map(run_len).sum();
                if let Some(slot) = runs.get_mut(start) {
                    *slot = merged;
                }
                runs.drain(start + 1..end);
                run_len(merged) - old
            }
            Self::Array(items) => {
                let start = items.partition_point(|v| *v < lo);
                let end = items.partition_point(|v| *v <= hi);
                let added = run_len((lo, hi)) - (end - start) as u32;
                if lo == hi && added == 1 {
                    grow(items);
                    items.insert(start, lo);
                } else if added > 0 {
                    items.splice(start..end, lo..=hi);
                }
                if items.len() > ARRAY_MAX {
                    *self = self.smallest();
                }
                added
            }
            Self::Bits(bits) => bits.set(lo, hi),
        }
    }

    /// Removes `lo..=hi`, returns how many there were. Not for `Full`.
    fn remove(&mut self, lo: u16, hi: u16) -> u32 {
        match self {
            Self::Full(_) => 0,
            Self::Runs(runs) => {
                let start = runs.partition_point(|r| r.1 < lo);
                let end = runs.partition_point(|r| r.0 <= hi);
                let touched = runs.get(start..end).unwrap_or_default();
                let (Some(&first), Some(&last)) = (touched.first(), touched.last()) else {
                    return 0;
                };
                let mut removed: u32 = touched.iter().copied().map(run_len).sum();
                let left = (first.0 < lo).then(|| (first.0, lo - 1));
                let right = (last.1 > hi).then(|| (hi + 1, last.1));
                for kept in left.iter().chain(&right) {
                    removed -= run_len(*kept);
                }
                runs.splice(start..end, left.into_iter().chain(right));
                removed
            }
            Self::Array(items) => {
                let start = items.partition_point(|v| *v < lo);
                let end = items.partition_point(|v| *v <= hi);
                items.drain(start..end).len() as u32
            }
            Self::Bits(bits) => bits.clear(lo, hi),
        }
    }

    fn count(&self, lo: u16, hi: u16) -> u32 {
        match self {
            Self::Full(_) => run_len((lo, hi)),
            Self::Runs(runs) => {
                let start = runs.partition_point(|r| r.1 < lo);
                let rest = runs.get(start..).unwrap_or_default();
                rest.iter()
                    .take_while(|r| r.0 <= hi)
                    .map(|r| run_len((r.0.max(lo), r.1.min(hi))))
                    .sum()
            }
            Self::Array(items) => {
                (items.partition_point(|v| *v <= hi) - items.partition_point(|v| *v < lo)) as u32
            }
            Self::Bits(bits) => masks(lo, hi)
                .map(|(i, mask)| (bits.word(i) & mask).count_ones())
                .sum(),
        }
    }

    /// The next maximal run; `pos` starts at 0 and belongs to the representation.
    fn next_run(&self, pos: &mut u32) -> Option<(u16, u16)> {
        match self {
            Self::Full(_) => {
                let fresh = *pos == 0;
                *pos = 1;
                fresh.then_some((0, u16::MAX))
            }
            Self::Runs(runs) => {
                let run = runs.get(*pos as usize).copied();
                *pos += 1;
                run
            }
            Self::Array(items) => {
                let mut rest = items
                    .get(*pos as usize..)
                    .unwrap_or_default()
                    .iter()
                    .copied();
                let lo = rest.next()?;
                let more = rest
                    .zip(1u32..)
                    .take_while(|(v, i)| u32::from(*v) == u32::from(lo) + i)
                    .count();
                *pos += 1 + more as u32;
                Some((lo, lo.saturating_add(more as u16)))
            }
            Self::Bits(bits) => bits.next_run(pos),
        }
    }

    fn runs(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        let mut pos = 0;
        std::iter::from_fn(move || self.next_run(&mut pos))
    }

    fn len(&self) -> u32 {
        match self {
            Self::Bits(bits) => bits.count,
            _ => self.count(0, u16::MAX),
        }
    }

    fn is_full(&self) -> bool {
        match self {
            Body::Full(_) => true,
            Body::Runs(runs) => runs.first() == Some(&(0, u16::MAX)),
            Body::Array(_) => false,
            Body::Bits(bits) => bits.count == CHUNK_SPAN,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Full(_) => false,
            Self::Runs(runs) => runs.is_empty(),
            Self::Array(items) => items.is_empty(),
            Self::Bits(bits) => bits.count == 0,
        }
    }

    fn last(&self) -> Option<u16> {
        match self {
            Self::Full(_) => Some(u16::MAX),
            Self::Runs(runs) => runs.last().map(|r| r.1),
            Self::Array(items) => items.last().copied(),
            Self::Bits(bits) => {
                let (i, word) = bits
                    .words
                    .iter()
                    .enumerate()
                    .rev()
                    .find(|(_, w)| **w != 0)?;
                Some((i as u32 * 64 + 63 - word.leading_zeros()) as u16)
            }
        }
    }

    /// The same members in the smallest representation of one chunk, without spare capacity.
    fn smallest(&self) -> Self {
        let (mut runs, mut members) = (0, 0);
        for run in self.runs() {
            runs += 1;
            members += run_len(run) as usize;
        }
        if runs <= RUNS_MAX && 2 * runs <= members {
            let mut list = Vec::with_capacity(runs);
            list.extend(self.runs());
            Self::Runs(list)
        } else if members <= ARRAY_MAX {
            let mut list = Vec::with_capacity(members);
            list.extend(self.runs().flat_map(|(lo, hi)| lo..=hi));
            Self::Array(list)
        } else {
            Self::Bits(self.to_bits())
        }
    }

    fn to_bits(&self) -> Box<Bits> {
        if let Self::Bits(bits) = self {
            return bits.clone();
        }
        let mut bits = Bits::new();
        for (lo, hi) in self.runs() {
            bits.set(lo, hi);
        }
        bits
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::Full(_) => 0,
            Self::Runs(runs) => runs.capacity() * size_of::<(u16, u16)>(),
            Self::Array(items) => items.capacity() * size_of::<u16>(),
            Self::Bits(_) => size_of::<Bits>(),
        }
    }
}

/// The key of the last chunk that the body at `key` stands for.
fn last_key(key: u64, body: &Body) -> u64 {
    match body {
        Body::Full(last) => *last,
        _ => key,
    }
}

/// How many members the body at `key` stands for.
fn members(key: u64, body: &Body) -> u128 {
    match body {
        Body::Full(last) => (u128::from(last - key) + 1) << 16,
        _ => u128::from(body.len()),
    }
}

fn split(seq: u64) -> (u64, u16) {
    (seq >> 16, seq as u16)
}

impl SeqSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `seq`; false if it was a member.
    pub fn insert(&mut self, seq: u64) -> bool {
        let (key, low) = split(seq);
        self.insert_in(key, low, low) > 0
    }

    /// Adds `first..=last`; nothing if `first > last`.
    pub fn insert_range(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let ((mut a, lo), (mut b, hi)) = (split(first), split(last));
        if a == b {
            self.insert_in(a, lo, hi);
            return;
        }
        if lo != 0 {
            self.insert_in(a, lo, u16::MAX);
            a += 1;
        }
        if hi != u16::MAX {
            self.insert_in(b, 0, hi);
            b -= 1;
        }
        if a <= b {
            self.insert_full(a, b);
        }
    }

    /// Removes `seq`; false if it was no member.
    pub fn remove(&mut self, seq: u64) -> bool {
        let (key, low) = split(seq);
        self.remove_in(key, low, low) > 0
    }

    /// Removes `first..=last`; nothing if `first > last`.
    pub fn remove_range(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let ((mut a, lo), (mut b, hi)) = (split(first), split(last));
        if a == b {
            self.remove_in(a, lo, hi);
            return;
        }
        if lo != 0 {
            self.remove_in(a, lo, u16::MAX);
            a += 1;
        }
        if hi != u16::MAX {
            self.remove_in(b, 0, hi);
            b -= 1;
        }
        if a <= b {
            self.split_before(a);
            self.split_before(b + 1);
            while let Some((&key, _)) = self.chunks.range(a..=b).next() {
                if let Some(body) = self.chunks.remove(&key) {
                    self.count -= members(key, &body);
                }
            }
        }
    }

    /// Removes everything below `seq`.
    pub fn remove_below(&mut self, seq: u64) {
        if let Some(last) = seq.checked_sub(1) {
            self.remove_range(0, last);
        }
    }

    /// Whether `seq` is a member.
    pub fn contains(&self, seq: u64) -> bool {
        let (key, low) = split(seq);
        self.find(key).is_some_and(|(_, body)| body.contains(low))
    }

    /// Number of members; `u64::MAX` also for one more.
    pub fn len(&self) -> u64 {
        u64::try_from(self.count).unwrap_or(u64::MAX)
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The lowest member.
    pub fn min(&self) -> Option<u64> {
        self.ranges().next().map(|r| r.0)
    }

    /// The highest member.
    pub fn max(&self) -> Option<u64> {
        let (key, body) = self.chunks.last_key_value()?;
        Some(last_key(*key, body) << 16 | u64::from(body.last()?))
    }

    /// The members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges().flat_map(|(first, last)| first..=last)
    }

    /// The maximal runs of members, ascending, both ends inclusive.
    pub fn ranges(&self) -> Ranges<'_> {
        Ranges {
            chunks: self.chunks.iter(),
            current: None,
            pos: 0,
            pending: None,
        }
    }

    /// Adds all members of `other`.
    pub fn union_with(&mut self, other: &SeqSet) {
        for (key, body) in &other.chunks {
            match body {
                Body::Full(last) => self.insert_full(*key, *last),
                _ => self.merge(*key, body),
            }
        }
    }

    /// Removes all members of `other`.
    pub fn difference_with(&mut self, other: &SeqSet) {
        for (first, last) in other.ranges() {
            self.remove_range(first, last);
        }
    }

    /// The members that `other` lacks.
    pub fn difference(&self, other: &SeqSet) -> SeqSet {
        let mut out = self.clone();
        out.difference_with(other);
        out
    }

    /// Number of members in `first..=last`.
    pub fn count_range(&self, first: u64, last: u64) -> u64 {
        if first > last {
            return 0;
        }
        let start = self.find(first >> 16).map_or(first >> 16, |(key, _)| key);
        let mut count = 0u128;
        for (&key, body) in self.chunks.range(start..=last >> 16) {
            let from = first.max(key << 16);
            let to = last.min(last_key(key, body) << 16 | 0xffff);
            count += match body {
                Body::Full(_) => u128::from(to - from) + 1,
                _ => u128::from(body.count(from as u16, to as u16)),
            };
        }
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// Gives back spare memory and brings every chunk to its smallest form: for sets that are
    /// complete and stay.
    pub fn compact(&mut self) {
        for body in self.chunks.values_mut() {
            if !matches!(body, Body::Full(_)) {
                *body = body.smallest();
            }
        }
    }

    /// Bytes of memory held, without what the allocator and the tree's spare places add.
    pub fn heap_bytes(&self) -> usize {
        self.chunks.len() * size_of::<(u64, Body)>()
            + self.chunks.values().map(|b| b.heap_bytes()).sum::<usize>()
    }

    /// The chunk that holds `key`, and its own key, which is lower within a span of full ones.
    fn find(&self, key: u64) -> Option<(u64, &Body)> {
        let (&first, body) = self.chunks.range(..=key).next_back()?;
        (key <= last_key(first, body)).then_some((first, body))
    }

    fn find_mut(&mut self, key: u64) -> Option<(u64, &mut Body)> {
        // Sequences mostly come in ascending order.
        let (&end, _) = self.chunks.last_key_value()?;
        let (first, body) = if end <= key {
            (end, self.chunks.last_entry()?.into_mut())
        } else {
            let (&first, body) = self.chunks.range_mut(..=key).next_back()?;
            (first, body)
        };
        (key <= last_key(first, body)).then_some((first, body))
    }

    fn insert_in(&mut self, key: u64, lo: u16, hi: u16) -> u32 {
        let (added, full) = match self.find_mut(key) {
            Some((_, body)) => (body.insert(lo, hi), body.is_full()),
            None => {
                self.chunks.insert(key, Body::Runs(vec![(lo, hi)]));
                (run_len((lo, hi)), (lo, hi) == (0, u16::MAX))
            }
        };
        self.count += u128::from(added);
        if added > 0 && full {
            self.join(key);
        }
        added
    }

    fn insert_full(&mut self, mut a: u64, mut b: u64) {
        let (first, end) = (self.find(a).map_or(a, |(key, _)| key), b);
        while let Some((&key, _)) = self.chunks.range(first..=end).next() {
            if let Some(body) = self.chunks.remove(&key) {
                a = a.min(key);
                b = b.max(last_key(key, &body));
                self.count -= members(key, &body);
            }
        }
        let full = Body::Full(b);
        self.count += members(a, &full);
        self.chunks.insert(a, full);
        self.join(a);
    }

    /// Joins the chunk `key`, if it is full, with full neighbours.
    fn join(&mut self, key: u64) {
        if !self.chunks.get(&key).is_some_and(Body::is_full) {
            return;
        }
        let mut first = key;
        let mut last = self.chunks.get(&key).map_or(key, |b| last_key(key, b));
        if let Some(next) = last.checked_add(1)
            && let Some(Body::Full(end)) = self.chunks.get(&next)
        {
            last = *end;
            self.chunks.remove(&next);
        }
        if let Some((&before, Body::Full(end))) = self.chunks.range(..key).next_back()
            && *end + 1 == key
        {
            first = before;
            self.chunks.remove(&key);
        }
        self.chunks.insert(first, Body::Full(last));
    }

    /// Splits a span of full chunks so that none reaches over the lower border of `key`.
    fn split_before(&mut self, key: u64) {
        if let Some((first, Body::Full(last))) = self.find_mut(key)
            && first < key
        {
            let upper = Body::Full(*last);
            *last = key - 1;
            self.chunks.insert(key, upper);
        }
    }

    fn remove_in(&mut self, key: u64, lo: u16, hi: u16) -> u32 {
        if matches!(self.find(key), Some((_, Body::Full(_)))) {
            self.split_before(key);
            self.split_before(key + 1);
            self.chunks.insert(key, Body::Runs(vec![(0, u16::MAX)]));
        }
        let Some(body) = self.chunks.get_mut(&key) else {
            return 0;
        };
        let removed = body.remove(lo, hi);
        if body.is_empty() {
            self.chunks.remove(&key);
        }
        self.count -= u128::from(removed);
        removed
    }

    /// Adds the members `body` to the chunk `key`. Not for `Full`.
    fn merge(&mut self, key: u64, body: &Body) {
        if body.is_empty() {
            return;
        }
        let added = match self.find_mut(key) {
            None => {
                self.chunks.insert(key, body.smallest());
                body.len()
            }
            Some((_, Body::Full(_))) => return,
            Some((_, own)) => {
                let before = own.len();
                match body {
                    Body::Runs(runs) if runs.len() <= 64 => {
                        for (lo, hi) in runs {
                            own.insert(*lo, *hi);
                        }
                    }
                    _ => {
                        let mut bits = own.to_bits();
                        bits.or(&body.to_bits());
                        *own = Body::Bits(bits).smallest();
                    }
                }
                own.len() - before
            }
        };
        self.count += u128::from(added);
        self.join(key);
    }

    /// The bits of the node at `base`, a multiple of [`NODE_SPAN`].
    fn node(&self, base: u64) -> [u64; NODE_WORDS] {
        let mut out = [0; NODE_WORDS];
        let (key, lo) = split(base);
        let body = self.find(key).map(|(_, body)| body);
        let hi = lo.saturating_add((NODE_SPAN - 1) as u16);
        let mut set = |from: u16, to: u16| {
            for (i, mask) in masks(from - lo, to - lo) {
                if let Some(word) = out.get_mut(i) {
                    *word |= mask;
                }
            }
        };
        match body {
            None => {}
            Some(Body::Full(_)) => set(lo, hi),
            Some(Body::Runs(runs)) => {
                let start = runs.partition_point(|r| r.1 < lo);
                for r in runs.iter().skip(start).take_while(|r| r.0 <= hi) {
                    set(r.0.max(lo), r.1.min(hi));
                }
            }
            Some(Body::Array(items)) => {
                let start = items.partition_point(|v| *v < lo);
                for v in items.iter().skip(start).take_while(|v| **v <= hi) {
                    set(*v, *v);
                }
            }
            Some(Body::Bits(bits)) => {
                for (word, i) in out.iter_mut().zip(usize::from(lo >> 6)..) {
                    *word = bits.word(i);
                }
            }
        }
        out
    }

    /// Numbers (base / 2048) of the nodes that its encoding has, ascending.
    fn node_numbers(&self) -> impl Iterator<Item = u64> + '_ {
        let mut next = 0;
        self.ranges().flat_map(move |(first, last)| {
            let from = (first / NODE_SPAN).max(next);
            next = last / NODE_SPAN + 1;
            from..next
        })
    }
}

/// The maximal runs of a [`SeqSet`].
#[derive(Clone)]
pub struct Ranges<'a> {
    chunks: btree_map::Iter<'a, u64, Body>,
    current: Option<(u64, &'a Body)>,
    pos: u32,
    pending: Option<(u64, u64)>,
}

impl Iterator for Ranges<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        loop {
            let (key, body) = match self.current {
                Some(current) => current,
                None => match self.chunks.next() {
                    Some((key, body)) => *self.current.insert((*key, body)),
                    None => return self.pending.take(),
                },
            };
            let Some((lo, hi)) = body.next_run(&mut self.pos) else {
                (self.current, self.pos) = (None, 0);
                continue;
            };
            let run = (
                key << 16 | u64::from(lo),
                last_key(key, body) << 16 | u64::from(hi),
            );
            match self.pending {
                // Runs go on across chunks.
                Some((first, last)) if last.checked_add(1) == Some(run.0) => {
                    self.pending = Some((first, run.1));
                }
                Some(done) => {
                    self.pending = Some(run);
                    return Some(done);
                }
                None => self.pending = Some(run),
            }
        }
    }
}

impl PartialEq for SeqSet {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.ranges().eq(other.ranges())
    }
}

impl Eq for SeqSet {}

impl fmt::Debug for SeqSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 32;
        let mut list = f.debug_list();
        for (first, last) in self.ranges().take(SHOWN) {
            list.entry(&(first..=last));
        }
        if self.ranges().nth(SHOWN).is_some() {
            list.finish_non_exhaustive()
        } else {
            list.finish()
        }
    }
}

impl FromIterator<u64> for SeqSet {
    fn from_iter<I: IntoIterator<Item = u64>>(iter: I) -> Self {
        let mut set = Self::new();
        set.extend(iter);
        set
    }
}

impl Extend<u64> for SeqSet {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, iter: I) {
        for seq in iter {
            self.insert(seq);
        }
    }
}

/// As an array of `[first, last]`.
impl Serialize for SeqSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.ranges())
    }
}

/// Decodes the server's encoding, version 1 or 2.
///
/// A version 1 set whose bits are not as many as announced is refused, as the server does; in
/// version 2 it looks at the bits only (see [`decode_counted`] for what it announces).
pub fn decode(c: &mut Cursor<'_>) -> Result<SeqSet, Fault> {
    decode_counted(c).map(|(set, _)| set)
}

/// [`decode`], and the number of members that the header announces.
pub fn decode_counted(c: &mut Cursor<'_>) -> Result<(SeqSet, u32), Fault> {
    let start = c.clone();
    if c.u8()? != MAGIC {
        return Err(start.fault(FaultKind::Magic {
            format: "sequence set",
        }));
    }
    let words = match c.u8()? {
        1 => 2 * NODE_WORDS,
        VERSION => NODE_WORDS,
        found => {
            let kind = FaultKind::Version {
                format: "sequence set",
                found: found.into(),
            };
            return Err(start.fault(kind));
        }
    };
    let v1 = words != NODE_WORDS;
    let (nodes, announced) = (c.u32()?, c.u32()?);
    let ceiling = c.remaining() as u64 / (8 + 8 * words as u64 + 2);
    if u64::from(nodes) > ceiling {
        let kind = FaultKind::TooLarge {
            what: "number of sequence set nodes",
            value: nodes.into(),
            ceiling,
        };
        return Err(start.fault(kind));
    }
    // By base instead of tree order: chunks then fill one after the other.
    let mut order = Vec::with_capacity(nodes as usize);
    for _ in 0..nodes {
        let at = c.clone();
        let base = c.u64()?;
        if base.checked_add(64 * words as u64 - 1).is_none() {
            return Err(at.fault(FaultKind::Invalid("base of a sequence set node")));
        }
        order.push((base, c.take(8 * words)?));
        c.u16()?;
    }
    order.sort_unstable_by_key(|(base, _)| *base);

    let mut filler = Filler {
        set: SeqSet::new(),
        key: 0,
        bits: Bits::new(),
    };
    for (base, bytes) in order {
        for (i, word) in bytes.chunks_exact(8).enumerate() {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            if word != 0 {
                filler.add(base + 64 * i as u64, word);
            }
        }
    }
    let set = filler.finish();
    if v1 && set.len() != u64::from(announced) {
        return Err(start.fault(FaultKind::Invalid("number of members of a sequence set")));
    }
    Ok((set, announced))
}

/// Collects words into one chunk until the next begins.
struct Filler {
    set: SeqSet,
    key: u64,
    bits: Box<Bits>,
}

impl Filler {
    /// Adds `word`, whose bit 0 stands for `seq`.
    fn add(&mut self, seq: u64, word: u64) {
        let askew = (seq % 64) as u32;
        self.add_aligned(seq / 64, word << askew);
        if askew > 0 {
            self.add_aligned(seq / 64 + 1, word >> (64 - askew));
        }
    }

    fn add_aligned(&mut self, number: u64, word: u64) {
        if word == 0 {
            return;
        }
        let key = number / CHUNK_WORDS as u64;
        if key != self.key {
            self.flush();
            self.key = key;
        }
        if let Some(slot) = self.bits.words.get_mut(number as usize % CHUNK_WORDS) {
            self.bits.count += (word & !*slot).count_ones();
            *slot |= word;
        }
    }

    fn flush(&mut self) {
        if self.bits.count > 0 {
            let bits = std::mem::replace(&mut self.bits, Bits::new());
            self.set.merge(self.key, &Body::Bits(bits));
        }
    }

    fn finish(mut self) -> SeqSet {
        self.flush();
        self.set
    }
}

/// Length of what [`encode`] appends: about 266 bytes for every 2048 sequences with a member.
pub fn encoded_len(set: &SeqSet) -> u64 {
    let mut next = 0;
    let mut nodes = 0u64;
    for (first, last) in set.ranges() {
        let end = last / NODE_SPAN + 1;
        nodes += end - (first / NODE_SPAN).max(next);
        next = end;
    }
    HEADER_LEN.saturating_add(nodes.saturating_mul(NODE_LEN))
}

/// Appends the server's encoding, version 2: the nodes of a balanced tree in pre-order.
///
/// The size follows the span that members cover, not their memory here: [`encoded_len`].
pub fn encode(set: &SeqSet, out: &mut Vec<u8>) {
    let nodes: Vec<u64> = set.node_numbers().collect();
    out.extend([MAGIC, VERSION]);
    out.extend((nodes.len() as u32).to_le_bytes());
    out.extend((set.len() as u32).to_le_bytes());
    let mut stack = vec![nodes.as_slice()];
    while let Some(part) = stack.pop() {
        let (left, rest) = part.split_at(part.len().saturating_sub(1) / 2);
        let Some((number, right)) = rest.split_first() else {
            continue;
        };
        let base = number * NODE_SPAN;
        out.extend(base.to_le_bytes());
        for word in set.node(base) {
            out.extend(word.to_le_bytes());
        }
        // Halving makes a tree of n nodes floor(log2 n) + 1 high.
        let height = part.len().ilog2() as u16 + 1;
        out.extend(height.to_le_bytes());
        stack.push(right);
        stack.push(left);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Insert(u64),
        Range(u64, u64),
        Remove(u64),
        RemoveRange(u64, u64),
        Below(u64),
        Union(Vec<(u64, u64)>),
        Difference(Vec<(u64, u64)>),
        /// Every n-th from here, so that arrays and bitmaps come up.
        Comb(u64, u64, u64),
        Compact,
    }

    /// Around chunk borders, and in a few chunks only, so that operations meet.
    fn seq() -> impl Strategy<Value = u64> {
        prop_oneof![
            0u64..200,
            (1u64..4, 0u64..6).prop_map(|(chunk, d)| chunk * 65_536 + d - 3),
            0u64..262_144,
        ]
    }

    fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((seq(), 0u64..3000), 0..80)
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => seq().prop_map(Op::Insert),
            3 => (seq(), 0u64..140_000).prop_map(|(a, n)| Op::Range(a, a + n)),
            3 => (seq(), 0u64..40).prop_map(|(a, n)| Op::Range(a, a + n)),
            3 => seq().prop_map(Op::Remove),
            2 => (seq(), 0u64..90_000).prop_map(|(a, n)| Op::RemoveRange(a, a + n)),
            1 => seq().prop_map(Op::Below),
            1 => ranges().prop_map(Op::Union),
            1 => ranges().prop_map(Op::Difference),
            3 => (seq(), 1u64..5000, 2u64..40).prop_map(|(a, n, step)| Op::Comb(a, n, step)),
            1 => Just(Op::Compact),
        ]
    }

    fn apply(set: &mut SeqSet, model: &mut BTreeSet<u64>, op: &Op) {
        match op {
            Op::Insert(s) => assert_eq!(set.insert(*s), model.insert(*s)),
            Op::Remove(s) => assert_eq!(set.remove(*s), model.remove(s)),
            Op::Range(a, b) => {
                set.insert_range(*a, *b);
                model.extend(*a..=*b);
            }
            Op::RemoveRange(a, b) => {
                set.remove_range(*a, *b);
                model.retain(|s| s < a || s > b);
            }
            Op::Below(s) => {
                set.remove_below(*s);
                model.retain(|m| m >= s);
            }
            Op::Union(ranges) => {
                let mut other = SeqSet::new();
                for (a, n) in ranges {
                    other.insert_range(*a, a + n);
                    model.extend(*a..=a + n);
                }
                set.union_with(&other);
            }
            Op::Difference(ranges) => {
                let mut other = SeqSet::new();
                for (a, n) in ranges {
                    other.insert_range(*a, a + n);
                    model.retain(|s| s < a || *s > a + n);
                }
                *set = set.difference(&other);
            }
            Op::Comb(a, n, step) => {
                let comb = (0..*n).map(|i| a + i * step);
                set.extend(comb.clone());
                model.extend(comb);
            }
            Op::Compact => set.compact(),
        }
    }

    fn runs_of(model: &BTreeSet<u64>) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for &s in model {
            match runs.last_mut() {
                Some(run) if run.1 + 1 == s => run.1 = s,
                _ => runs.push((s, s)),
            }
        }
        runs
    }

    fn check(set: &SeqSet, model: &BTreeSet<u64>) {
        assert_eq!(set.len(), model.len() as u64);
        assert_eq!(set.is_empty(), model.is_empty());
        assert_eq!(set.min(), model.first().copied());
        assert_eq!(set.max(), model.last().copied());
        assert_eq!(set.ranges().collect::<Vec<_>>(), runs_of(model));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn behaves_as_a_btreeset(ops in prop::collection::vec(op(), 1..24), probes in prop::collection::vec((seq(), seq()), 8)) {
            let (mut set, mut model) = (SeqSet::new(), BTreeSet::new());
            for op in &ops {
                apply(&mut set, &mut model, op);
                check(&set, &model);
            }
            for (a, b) in probes {
                prop_assert_eq!(set.contains(a), model.contains(&a));
                let (a, b) = (a.min(b), a.max(b));
                prop_assert_eq!(set.count_range(a, b), model.range(a..=b).count() as u64);
            }
            prop_assert!(set.iter().eq(model.iter().copied()));
            // Equality does not depend on how the set came about.
            let mut other: SeqSet = model.iter().rev().copied().collect();
            prop_assert_eq!(&set, &other);
            if let Some(&last) = model.last() {
                other.remove(last);
                prop_assert_ne!(&set, &other);
            }
            let mut bytes = Vec::new();
            encode(&set, &mut bytes);
            prop_assert_eq!(bytes.len() as u64, encoded_len(&set));
            prop_assert_eq!(go_decode(&bytes), model);
            let mut c = Cursor::new(&bytes, 0);
            let (back, announced) = decode_counted(&mut c).unwrap();
            prop_assert!(c.is_empty());
            prop_assert_eq!(u64::from(announced), set.len());
            prop_assert_eq!(back, set);
        }

        #[test]
        fn any_bytes_decode_or_fault(mut bytes in prop::collection::vec(any::<u8>(), 0..1200), shape in any::<bool>()) {
            if shape && bytes.len() > 10 {
                bytes.splice(..6, [22, 1 + bytes[0] % 2, bytes[1] % 5, 0, 0, 0]);
            }
            let mut c = Cursor::new(&bytes, 0);
            if let Ok(set) = decode(&mut c) {
                prop_assert!(set.len() <= 8 * bytes.len() as u64);
                prop_assert_eq!(set.iter().count() as u64, set.len());
            }
        }
    }

    /// The reader of the server, step by step: nodes hang into a search tree in file order, and a
    /// lookup walks it. Every member must be found so, heights and balance must be an AVL tree's.
    fn go_decode(bytes: &[u8]) -> BTreeSet<u64> {
        #[derive(Clone)]
        struct Node {
            base: u64,
            bits: Vec<u64>,
            height: u16,
            children: [Option<usize>; 2],
        }
        assert_eq!(bytes[..2], [22, 2]);
        let count = u32::from_le_bytes(bytes[2..6].try_into().unwrap()) as usize;
        assert_eq!(bytes.len(), 10 + 266 * count);
        let mut tree: Vec<Node> = Vec::new();
        for record in bytes[10..].chunks(266) {
            let word = |i: usize| u64::from_le_bytes(record[i..i + 8].try_into().unwrap());
            let base = word(0);
            assert_eq!(base % 2048, 0);
            let new = tree.len();
            let bits: Vec<u64> = (1..33).map(|i| word(8 * i)).collect();
            assert!(bits.iter().any(|w| *w != 0));
            let height = u16::from_le_bytes(record[264..].try_into().unwrap());
            tree.push(Node {
                base,
                bits,
                height,
                children: [None; 2],
            });
            let mut at = 0;
            while at != new {
                let side = usize::from(base >= tree[at].base);
                at = *tree[at].children[side].get_or_insert(new);
            }
        }
        // Children come behind their parents.
        let mut heights = vec![0u16; tree.len()];
        for (i, node) in tree.iter().enumerate().rev() {
            let [l, r] = node.children.map(|c| c.map_or(0, |c| heights[c]));
            assert!(l.abs_diff(r) <= 1, "unbalanced");
            heights[i] = l.max(r) + 1;
            assert_eq!(heights[i], node.height);
        }
        let mut members = BTreeSet::new();
        for node in &tree {
            for (i, w) in node.bits.iter().enumerate() {
                members.extend(
                    (0..64)
                        .filter(|b| w >> b & 1 == 1)
                        .map(|b| node.base + 64 * i as u64 + b),
                );
            }
        }
        let total = u32::from_le_bytes(bytes[6..10].try_into().unwrap()) as usize;
        assert_eq!(members.len(), total);
        members
    }

    fn node(out: &mut Vec<u8>, words: usize, base: u64, members: &[u64]) {
        out.extend(base.to_le_bytes());
        let mut bits = vec![0u64; words];
        for m in members {
            bits[((m - base) / 64) as usize] |= 1 << ((m - base) % 64);
        }
        bits.iter().for_each(|w| out.extend(w.to_le_bytes()));
        out.extend(1u16.to_le_bytes());
    }

    fn header(version: u8, nodes: u32, members: u32) -> Vec<u8> {
        let mut out = vec![22, version];
        out.extend(nodes.to_le_bytes());
        out.extend(members.to_le_bytes());
        out
    }

    #[test]
    fn version_1_counts_its_members() {
        let mut bytes = header(1, 1, 3);
        node(&mut bytes, 64, 4096, &[4096, 4100, 8191]);
        let set = decode(&mut Cursor::new(&bytes, 0)).unwrap();
        assert_eq!(
            set.ranges().collect::<Vec<_>>(),
            [(4096, 4096), (4100, 4100), (8191, 8191)]
        );
        bytes[6] = 4;
        assert!(matches!(
            decode(&mut Cursor::new(&bytes, 0)).unwrap_err().kind,
            FaultKind::Invalid(_)
        ));
    }

    #[test]
    fn askew_overlapping_and_unordered_nodes() {
        let mut bytes = header(2, 3, 9);
        node(&mut bytes, 32, 65_500, &[65_500, 65_535, 65_536, 65_600]);
        node(&mut bytes, 32, 2048, &[2048, 4095]);
        node(&mut bytes, 32, 64_000, &[64_000, 65_535, 66_047]);
        let (set, announced) = decode_counted(&mut Cursor::new(&bytes, 0)).unwrap();
        assert_eq!(
            set.iter().collect::<Vec<_>>(),
            [2048, 4095, 64_000, 65_500, 65_535, 65_536, 65_600, 66_047]
        );
        assert_eq!((set.len(), announced), (8, 9));
    }

    #[test]
    fn claims_are_bounded_by_bytes() {
        let bytes = header(2, u32::MAX, u32::MAX);
        assert_eq!(
            decode(&mut Cursor::new(&bytes, 7)).unwrap_err(),
            Fault::new(
                7,
                FaultKind::TooLarge {
                    what: "number of sequence set nodes",
                    value: 0xffff_ffff,
                    ceiling: 0
                }
            )
        );
        let mut bytes = header(2, 1, 1);
        node(&mut bytes, 32, u64::MAX - 2046, &[u64::MAX - 3]);
        assert_eq!(decode(&mut Cursor::new(&bytes, 0)).unwrap_err().offset, 10);
        let mut bytes = header(2, 1, 2);
        node(&mut bytes, 32, u64::MAX - 2047, &[u64::MAX - 1, u64::MAX]);
        let set = decode(&mut Cursor::new(&bytes, 0)).unwrap();
        assert_eq!(set.ranges().collect::<Vec<_>>(), [(u64::MAX - 1, u64::MAX)]);
    }

    #[test]
    fn the_whole_of_u64() {
        let mut set = SeqSet::new();
        set.insert_range(5, u64::MAX);
        set.insert_range(0, 7);
        assert_eq!(set.ranges().collect::<Vec<_>>(), [(0, u64::MAX)]);
        assert_eq!(set.len(), u64::MAX);
        assert_eq!(set.count_range(1, u64::MAX), u64::MAX);
        assert!(!set.insert(u64::MAX));
        assert!(set.remove(u64::MAX));
        assert_eq!((set.len(), set.max()), (u64::MAX, Some(u64::MAX - 1)));
        assert!(set.remove(1 << 40));
        assert_eq!(
            set.ranges().collect::<Vec<_>>(),
            [(0, (1 << 40) - 1), ((1 << 40) + 1, u64::MAX - 1)]
        );
        assert!(set.insert(1 << 40));
        set.insert(u64::MAX);
        assert_eq!(set.chunks.len(), 1);
        set.remove_below(u64::MAX);
        assert_eq!(set.iter().collect::<Vec<_>>(), [u64::MAX]);
        set.remove_range(0, u64::MAX);
        assert!(set.is_empty());
    }

    #[test]
    fn memory_follows_the_pattern() {
        // A billion in 1000 runs.
        let mut set = SeqSet::new();
        for i in 0..1000 {
            set.insert_range(i * 1_100_000 + 17, i * 1_100_000 + 1_000_016);
        }
        assert_eq!(set.len(), 1_000_000_000);
        assert!(set.heap_bytes() < 200_000, "{}", set.heap_bytes());
        // Scattered, at several densities, inserted one by one.
        for step in [2u64, 3, 10, 16, 40, 300] {
            let mut x = 1u64;
            let mut set = SeqSet::new();
            for i in 0..500_000u64 {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                set.insert(i * step + (x >> 33) % step);
            }
            set.compact();
            let each = set.heap_bytes() as f64 / set.len() as f64;
            assert!(each <= 2.25, "{each} bytes each at one in {step}");
        }
    }
}
