//! Sets of stream sequences: in memory as lean as they get, on disk as the server's AVL tree.
//!
//! On disk (inside `index.db`, `.idx` version 2 and raft snapshots), 2.10+:
//!
//! | size | field |
//! |---|---|
//! | 1 | magic `22` |
//! | 1 | version: `2`; `1` only in builds before 2.10.0 |
//! | 4 | number of nodes |
//! | 4 | number of members |
//! | … | nodes, the root first: `base` u64, 32 words of 64 bits (64 words in version 1), `height` u16 |
//!
//! A member is `base + 64 * word + bit`. The server inserts the nodes one by one, so their order and
//! heights do not matter to it. Members outside of the block's range may occur.

use super::bytes::{Cursor, Fault, FaultKind};
use serde::ser::SerializeSeq as _;

/// First byte of an encoded set.
pub const MAGIC: u8 = 22;
const WORDS_V1: usize = 64;
const WORDS_V2: usize = 32;

const CHUNK_BITS: u32 = 16;
const WORDS: usize = 1024;
/// More members than this are cheaper as bits.
const ARRAY_MAX: usize = 4096;
/// More runs than this are cheaper as bits.
const RUNS_MAX: usize = 2048;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Slots {
    /// Sorted members.
    Array(Vec<u16>),
    /// Sorted, disjoint, not adjacent, inclusive.
    Runs(Vec<(u16, u16)>),
    /// A bit each.
    Bits(Box<[u64; WORDS]>),
}

#[derive(Debug, Clone)]
struct Chunk {
    high: u64,
    len: u32,
    slots: Slots,
}

/// A set of sequences. Costs at most two bytes for a scattered member (plus some 50 for each window of
/// 65,536 sequences that has any), an eighth of a byte where they are dense, nothing where they run.
#[derive(Debug, Clone, Default)]
pub struct SeqSet {
    chunks: Vec<Chunk>,
}

fn split(seq: u64) -> (u64, u16) {
    (seq >> CHUNK_BITS, seq as u16)
}

fn word_mask(word: usize, from: u16, to: u16) -> u64 {
    let (lo, hi) = (word * 64, word * 64 + 63);
    let (from, to) = (usize::from(from).max(lo), usize::from(to).min(hi));
    if from > to {
        return 0;
    }
    let width = to - from + 1;
    let ones = if width == 64 {
        u64::MAX
    } else {
        (1u64 << width) - 1
    };
    ones << (from - lo)
}

impl Slots {
    fn to_bits(&self) -> Box<[u64; WORDS]> {
        let mut bits = Box::new([0u64; WORDS]);
        self.each_run(&mut |from, to| {
            for w in usize::from(from) / 64..=usize::from(to) / 64 {
                if let Some(word) = bits.get_mut(w) {
                    *word |= word_mask(w, from, to);
                }
            }
        });
        bits
    }

    /// Calls `f` with each maximal run, ascending.
    fn each_run(&self, f: &mut impl FnMut(u16, u16)) {
        match self {
            Self::Array(list) => {
                let mut run: Option<(u16, u16)> = None;
                for &v in list {
                    run = match run {
                        Some((from, to)) if to.checked_add(1) == Some(v) => Some((from, v)),
                        Some((from, to)) => {
                            f(from, to);
                            Some((v, v))
                        }
                        None => Some((v, v)),
                    };
                }
                if let Some((from, to)) = run {
                    f(from, to);
                }
            }
            Self::Runs(runs) => runs.iter().for_each(|&(a, b)| f(a, b)),
            Self::Bits(bits) => {
                let mut run: Option<(u16, u16)> = None;
                for (w, &word) in bits.iter().enumerate() {
                    let mut rest = word;
                    while rest != 0 {
                        let start = rest.trailing_zeros();
                        let len = (!(rest >> start)).trailing_zeros();
                        let from = (w * 64 + start as usize) as u16;
                        let to = (usize::from(from) + len as usize - 1) as u16;
                        run = match run {
                            Some((a, b)) if b.checked_add(1) == Some(from) => Some((a, to)),
                            Some((a, b)) => {
                                f(a, b);
                                Some((from, to))
                            }
                            None => Some((from, to)),
                        };
                        let used = start + len;
                        rest = if used >= 64 { 0 } else { rest >> used << used };
                    }
                }
                if let Some((a, b)) = run {
                    f(a, b);
                }
            }
        }
    }

    fn contains(&self, v: u16) -> bool {
        match self {
            Self::Array(list) => list.binary_search(&v).is_ok(),
            Self::Runs(runs) => {
                let at = runs.partition_point(|r| r.1 < v);
                runs.get(at).is_some_and(|r| r.0 <= v)
            }
            Self::Bits(bits) => bits
                .get(usize::from(v) / 64)
                .is_some_and(|w| w >> (v % 64) & 1 == 1),
        }
    }

    fn count(&self, from: u16, to: u16) -> u64 {
        match self {
            Self::Array(list) => {
                (list.partition_point(|x| *x <= to) - list.partition_point(|x| *x < from)) as u64
            }
            Self::Bits(bits) => {
                let words = usize::from(from) / 64..=usize::from(to) / 64;
                let first = *words.start();
                bits.get(words)
                    .unwrap_or_default()
                    .iter()
                    .enumerate()
                    .map(|(i, w)| u64::from((w & word_mask(first + i, from, to)).count_ones()))
                    .sum()
            }
            Self::Runs(runs) => runs
                .iter()
                .map(|&(a, b)| (a.max(from), b.min(to)))
                .filter(|(a, b)| a <= b)
                .map(|(a, b)| u64::from(b - a) + 1)
                .sum(),
        }
    }
}

impl Chunk {
    /// The cheapest form for these members.
    fn from_bits(high: u64, bits: Box<[u64; WORDS]>) -> Option<Self> {
        let len: u32 = bits.iter().map(|w| w.count_ones()).sum();
        if len == 0 {
            return None;
        }
        let full = Slots::Bits(bits);
        let mut runs = 0usize;
        full.each_run(&mut |_, _| runs += 1);
        let (run_cost, array_cost) = (runs * 4, len as usize * 2);
        let slots = if run_cost <= array_cost.min(WORDS * 8) {
            let mut list = Vec::with_capacity(runs);
            full.each_run(&mut |a, b| list.push((a, b)));
            Slots::Runs(list)
        } else if array_cost < WORDS * 8 {
            let mut list = Vec::with_capacity(len as usize);
            full.each_run(&mut |a, b| list.extend(a..=b));
            Slots::Array(list)
        } else {
            full
        };
        Some(Self { high, len, slots })
    }

    fn insert(&mut self, v: u16) -> bool {
        let added = match &mut self.slots {
            Slots::Array(list) => match list.last() {
                Some(last) if *last >= v => match list.binary_search(&v) {
                    Ok(_) => false,
                    Err(at) => {
                        list.insert(at, v);
                        true
                    }
                },
                _ => {
                    if list.len() == list.capacity() {
                        // Vec would double: an eighth keeps to two bytes and a bit for each.
                        list.reserve_exact((list.len() / 8).max(4));
                    }
                    list.push(v);
                    true
                }
            },
            Slots::Runs(runs) => {
                let at = runs.partition_point(|r| r.1 < v);
                if runs.get(at).is_some_and(|r| r.0 <= v) {
                    false
                } else {
                    let joins_left = at
                        .checked_sub(1)
                        .and_then(|i| runs.get(i))
                        .is_some_and(|r| r.1.checked_add(1) == Some(v));
                    let joins_right = runs.get(at).is_some_and(|r| v.checked_add(1) == Some(r.0));
                    match (joins_left, joins_right) {
                        (true, true) => {
                            let (_, end) = runs.remove(at);
                            if let Some(r) = runs.get_mut(at - 1) {
                                r.1 = end;
                            }
                        }
                        (true, false) => {
                            if let Some(r) = runs.get_mut(at - 1) {
                                r.1 = v;
                            }
                        }
                        (false, true) => {
                            if let Some(r) = runs.get_mut(at) {
                                r.0 = v;
                            }
                        }
                        (false, false) => runs.insert(at, (v, v)),
                    }
                    true
                }
            }
            Slots::Bits(bits) => match bits.get_mut(usize::from(v) / 64) {
                Some(word) if *word >> (v % 64) & 1 == 0 => {
                    *word |= 1 << (v % 64);
                    true
                }
                _ => false,
            },
        };
        self.len += u32::from(added);
        self.settle();
        added
    }

    /// Changes to bits where that has become cheaper.
    fn settle(&mut self) {
        let to_bits = match &self.slots {
            Slots::Array(list) => list.len() > ARRAY_MAX,
            // Scattered members are cheaper listed than as runs.
            Slots::Runs(runs) => {
                runs.len() > RUNS_MAX || (runs.len() > 64 && runs.len() * 4 > self.len as usize * 2)
            }
            Slots::Bits(_) => false,
        };
        if to_bits && let Some(chunk) = Self::from_bits(self.high, self.slots.to_bits()) {
            *self = chunk;
        }
    }
}

impl SeqSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    fn find(&self, high: u64) -> Result<usize, usize> {
        match self.chunks.last() {
            Some(c) if c.high == high => Ok(self.chunks.len() - 1),
            Some(c) if c.high < high => Err(self.chunks.len()),
            None => Err(0),
            _ => self.chunks.binary_search_by_key(&high, |c| c.high),
        }
    }

    /// Adds a sequence; false if it was there.
    pub fn insert(&mut self, seq: u64) -> bool {
        let (high, low) = split(seq);
        match self.find(high) {
            Ok(at) => self.chunks.get_mut(at).is_some_and(|c| c.insert(low)),
            Err(at) => {
                self.chunks.insert(
                    at,
                    Chunk {
                        high,
                        len: 1,
                        slots: Slots::Array(vec![low]),
                    },
                );
                true
            }
        }
    }

    /// Adds all sequences from `first` to `last`. Takes time and memory by windows of 65,536: not for
    /// unchecked input, see [`SeqSet::insert_range_bounded`].
    pub fn insert_range(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let (from_high, to_high) = (first >> CHUNK_BITS, last >> CHUNK_BITS);
        for high in from_high..=to_high {
            let from = if high == from_high { first as u16 } else { 0 };
            let to = if high == to_high {
                last as u16
            } else {
                u16::MAX
            };
            match self.find(high) {
                Ok(at) => {
                    let Some(c) = self.chunks.get_mut(at) else {
                        continue;
                    };
                    if from == to {
                        c.insert(from);
                        continue;
                    }
                    let mut bits = c.slots.to_bits();
                    for w in usize::from(from) / 64..=usize::from(to) / 64 {
                        if let Some(word) = bits.get_mut(w) {
                            *word |= word_mask(w, from, to);
                        }
                    }
                    if let Some(chunk) = Chunk::from_bits(high, bits) {
                        *c = chunk;
                    }
                }
                Err(at) => {
                    let len = u32::from(to - from) + 1;
                    let slots = if len == 1 {
                        Slots::Array(vec![from])
                    } else {
                        Slots::Runs(vec![(from, to)])
                    };
                    self.chunks.insert(at, Chunk { high, len, slots });
                }
            }
        }
    }

    /// [`SeqSet::insert_range`] for spans that come from input: false, and nothing added, where the span
    /// is over 2^40.
    pub fn insert_range_bounded(&mut self, first: u64, last: u64) -> bool {
        if first <= last && last - first >= 1 << 40 {
            return false;
        }
        self.insert_range(first, last);
        true
    }

    /// Takes a sequence away; false if it was not there.
    pub fn remove(&mut self, seq: u64) -> bool {
        let (high, low) = split(seq);
        let Ok(at) = self.find(high) else {
            return false;
        };
        let Some(c) = self.chunks.get_mut(at).filter(|c| c.slots.contains(low)) else {
            return false;
        };
        let mut bits = c.slots.to_bits();
        if let Some(word) = bits.get_mut(usize::from(low) / 64) {
            *word &= !(1 << (low % 64));
        }
        match Chunk::from_bits(high, bits) {
            Some(chunk) => *c = chunk,
            None => drop(self.chunks.remove(at)),
        }
        true
    }

    /// Takes everything below `seq` away.
    pub fn remove_below(&mut self, seq: u64) {
        let (high, low) = split(seq);
        let keep = self.chunks.partition_point(|c| c.high < high);
        self.chunks.drain(..keep);
        if low == 0 {
            return;
        }
        let Some(c) = self.chunks.first_mut().filter(|c| c.high == high) else {
            return;
        };
        let mut bits = c.slots.to_bits();
        for (w, word) in bits.iter_mut().enumerate() {
            *word &= !word_mask(w, 0, low - 1);
        }
        match Chunk::from_bits(high, bits) {
            Some(chunk) => *c = chunk,
            None => drop(self.chunks.remove(0)),
        }
    }

    /// Whether `seq` is a member.
    pub fn contains(&self, seq: u64) -> bool {
        let (high, low) = split(seq);
        self.find(high)
            .ok()
            .and_then(|at| self.chunks.get(at))
            .is_some_and(|c| c.slots.contains(low))
    }

    /// Number of members.
    pub fn len(&self) -> u64 {
        self.chunks.iter().map(|c| u64::from(c.len)).sum()
    }

    /// True without members.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The lowest member.
    pub fn min(&self) -> Option<u64> {
        self.ranges().next().map(|r| r.0)
    }

    /// The highest member.
    pub fn max(&self) -> Option<u64> {
        let c = self.chunks.last()?;
        let mut last = 0;
        c.slots.each_run(&mut |_, to| last = to);
        Some(c.high << CHUNK_BITS | u64::from(last))
    }

    /// Maximal runs, ascending, inclusive.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut pending: Option<(u64, u64)> = None;
        let mut queue: std::collections::VecDeque<(u64, u64)> = Default::default();
        let mut chunks = self.chunks.iter();
        std::iter::from_fn(move || {
            loop {
                if let Some((from, to)) = queue.pop_front() {
                    match pending {
                        Some((a, b)) if b.checked_add(1) == Some(from) => pending = Some((a, to)),
                        Some(done) => {
                            pending = Some((from, to));
                            return Some(done);
                        }
                        None => pending = Some((from, to)),
                    }
                    continue;
                }
                let Some(c) = chunks.next() else {
                    return pending.take();
                };
                let base = c.high << CHUNK_BITS;
                c.slots.each_run(&mut |a, b| {
                    queue.push_back((base | u64::from(a), base | u64::from(b)))
                });
            }
        })
    }

    /// Members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.ranges().flat_map(|(a, b)| a..=b)
    }

    /// Adds all members of `other`.
    pub fn union_with(&mut self, other: &Self) {
        for c in &other.chunks {
            match self.find(c.high) {
                Err(at) => self.chunks.insert(at, c.clone()),
                Ok(at) => {
                    let Some(mine) = self.chunks.get_mut(at) else {
                        continue;
                    };
                    let (mut bits, more) = (mine.slots.to_bits(), c.slots.to_bits());
                    for (a, b) in bits.iter_mut().zip(more.iter()) {
                        *a |= b;
                    }
                    if let Some(chunk) = Chunk::from_bits(c.high, bits) {
                        *mine = chunk;
                    }
                }
            }
        }
    }

    /// How many members lie between `first` and `last`, both included.
    pub fn count_range(&self, first: u64, last: u64) -> u64 {
        if first > last {
            return 0;
        }
        let (from_high, to_high) = (first >> CHUNK_BITS, last >> CHUNK_BITS);
        let start = self.chunks.partition_point(|c| c.high < from_high);
        self.chunks
            .get(start..)
            .unwrap_or_default()
            .iter()
            .take_while(|c| c.high <= to_high)
            .map(|c| {
                let from = if c.high == from_high { first as u16 } else { 0 };
                let to = if c.high == to_high {
                    last as u16
                } else {
                    u16::MAX
                };
                if from == 0 && to == u16::MAX {
                    u64::from(c.len)
                } else {
                    c.slots.count(from, to)
                }
            })
            .sum()
    }

    /// Bytes of memory that the set takes.
    pub fn memory(&self) -> usize {
        let inside = |c: &Chunk| match &c.slots {
            Slots::Array(v) => v.capacity() * 2,
            Slots::Runs(v) => v.capacity() * 4,
            Slots::Bits(_) => WORDS * 8,
        };
        self.chunks.capacity() * size_of::<Chunk>() + self.chunks.iter().map(inside).sum::<usize>()
    }
}

impl PartialEq for SeqSet {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.ranges().eq(other.ranges())
    }
}

impl Eq for SeqSet {}

impl Extend<u64> for SeqSet {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, iter: I) {
        for seq in iter {
            self.insert(seq);
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

/// As an array of `[first, last]` runs.
impl serde::Serialize for SeqSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        for (a, b) in self.ranges() {
            seq.serialize_element(&[a, b])?;
        }
        seq.end()
    }
}

/// Decodes a set in the server's form.
pub fn decode(c: &mut Cursor<'_>) -> Result<SeqSet, Fault> {
    let start = c.clone();
    if c.u8()? != MAGIC {
        return Err(start.fault(FaultKind::Magic {
            format: "sequence set",
        }));
    }
    let words = match c.u8()? {
        1 => WORDS_V1,
        2 => WORDS_V2,
        v => {
            return Err(start.fault(FaultKind::Version {
                format: "sequence set",
                found: u64::from(v),
            }));
        }
    };
    let (nodes, members) = (u64::from(c.u32()?), u64::from(c.u32()?));
    let ceiling = (c.remaining() / (words * 8 + 10)) as u64;
    if nodes > ceiling {
        return Err(start.fault(FaultKind::TooLarge {
            what: "number of nodes",
            value: nodes,
            ceiling,
        }));
    }
    let mut set = SeqSet::new();
    for _ in 0..nodes {
        let base = c.u64()?;
        for w in 0..words as u64 {
            let mut word = c.u64()?;
            while word != 0 {
                let bit = u64::from(word.trailing_zeros());
                let run = u64::from((!(word >> bit)).trailing_zeros());
                let first = base.wrapping_add(w * 64 + bit);
                // A run that would leave 64 bits is no sequence of any stream.
                if let Some(last) = first.checked_add(run - 1) {
                    set.insert_range(first, last);
                }
                let used = bit + run;
                word = if used >= 64 { 0 } else { word >> used << used };
            }
        }
        c.u16()?;
    }
    // Version 2 of the server's decoder takes the count on trust; a set that says one thing and holds
    // another is damaged all the same.
    if set.len() != members {
        return Err(start.fault(FaultKind::Invalid(
            "sequence set (its count is not that of its bits)",
        )));
    }
    Ok(set)
}

/// Appends a set as the server's decoder takes it: version 2, nodes in the order of a balanced tree.
pub fn encode(set: &SeqSet, out: &mut Vec<u8>) {
    const SPAN: u64 = WORDS_V2 as u64 * 64;
    let mut nodes: Vec<(u64, [u64; WORDS_V2])> = Vec::new();
    for (from, to) in set.ranges() {
        let mut base = from / SPAN * SPAN;
        loop {
            if nodes.last().is_none_or(|n| n.0 != base) {
                nodes.push((base, [0; WORDS_V2]));
            }
            let (a, b) = (
                from.max(base) - base,
                to.min(base.saturating_add(SPAN - 1)) - base,
            );
            if let Some((_, words)) = nodes.last_mut() {
                for (w, word) in words.iter_mut().enumerate() {
                    *word |= word_mask(w, a as u16, b as u16);
                }
            }
            match base.checked_add(SPAN) {
                Some(next) if next <= to => base = next,
                _ => break,
            }
        }
    }
    out.extend_from_slice(&[MAGIC, 2]);
    out.extend_from_slice(&(nodes.len() as u32).to_le_bytes());
    out.extend_from_slice(&(set.len() as u32).to_le_bytes());
    // Pre-order of the tree that halving a sorted list gives: heights differ by one at most.
    let mut stack = vec![(0usize, nodes.len())];
    while let Some((from, to)) = stack.pop() {
        if from >= to {
            continue;
        }
        let mid = from + (to - from) / 2;
        if let Some((base, words)) = nodes.get(mid) {
            out.extend_from_slice(&base.to_le_bytes());
            for w in words {
                out.extend_from_slice(&w.to_le_bytes());
            }
            let height = usize::BITS - (to - from).leading_zeros();
            out.extend_from_slice(&(height as u16).to_le_bytes());
        }
        stack.push((mid + 1, to));
        stack.push((from, mid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Debug, Clone)]
    enum Op {
        Insert(u64),
        Range(u64, u64),
        Remove(u64),
        Below(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let seq = prop_oneof![0..300u64, 65_400..65_700u64, 190_000..200_000u64];
        prop_oneof![
            4 => seq.clone().prop_map(Op::Insert),
            2 => (seq.clone(), 0..3000u64).prop_map(|(a, n)| Op::Range(a, a + n)),
            2 => seq.clone().prop_map(Op::Remove),
            1 => (0..70_000u64).prop_map(Op::Below),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_tree_set(ops in prop::collection::vec(op(), 1..60)) {
            let (mut set, mut model) = (SeqSet::new(), BTreeSet::new());
            for op in ops {
                match op {
                    Op::Insert(s) => prop_assert_eq!(set.insert(s), model.insert(s)),
                    Op::Range(a, b) => { set.insert_range(a, b); model.extend(a..=b); }
                    Op::Remove(s) => prop_assert_eq!(set.remove(s), model.remove(&s)),
                    Op::Below(s) => { set.remove_below(s); model.retain(|x| *x >= s); }
                }
            }
            prop_assert_eq!(set.len(), model.len() as u64);
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!((set.min(), set.max()), (model.first().copied(), model.last().copied()));
            for (a, b) in [(0, 100), (200, 65_500), (65_536, 199_000)] {
                prop_assert_eq!(set.count_range(a, b), model.range(a..=b).count() as u64);
            }
            let mut out = Vec::new();
            encode(&set, &mut out);
            let mut c = Cursor::new(&out, 0);
            prop_assert_eq!(decode(&mut c).unwrap(), set);
            prop_assert!(c.is_empty());
        }
    }

    #[test]
    fn memory_is_lean() {
        let mut few_runs = SeqSet::new();
        for i in 0..10u64 {
            few_runs.insert_range(i * 200_000_000, i * 200_000_000 + 99_999_999);
        }
        assert_eq!(few_runs.len(), 1_000_000_000);
        assert!(few_runs.memory() < 2 << 20, "{}", few_runs.memory());
        let scattered: SeqSet = (0..2_000_000u64).map(|i| i * 40 + (i * i) % 17).collect();
        assert!(
            scattered.memory() as u64 <= scattered.len() * 5 / 2,
            "{}",
            scattered.memory()
        );
        let dense: SeqSet = (0..3_000_000u64).map(|i| i * 3).collect();
        assert!(
            dense.memory() as u64 <= dense.len() / 2,
            "{}",
            dense.memory()
        );
    }

    #[test]
    fn lying_counts_are_refused_without_allocating() {
        let mut bytes = vec![22, 2];
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        let fault = decode(&mut Cursor::new(&bytes, 7)).unwrap_err();
        assert_eq!(fault.offset, 7);
        assert!(matches!(fault.kind, FaultKind::TooLarge { .. }));
    }
}
