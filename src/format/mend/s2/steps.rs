//! Mending a chunk with several wrong bits: one record after the other.
//!
//! What comes out of a chunk is right up to the first wrong bit that counts, so the first record that does
//! not prove itself has it, or the element before. A record is small: each bit of the elements that make it
//! is tried, and the record's own hash tells. Then the next one is looked for. A record with more than one
//! wrong bit stays as it is, with what hangs on it.

use super::{BLOCK_AT, JUDGE_COST, Walk, element, frame_at, is_good, toggle, walk};
use crate::format::mend::{Effort, Tried, search};
use crate::format::record::{
    MIN_LEN, OnDamage, Proof as RecordProof, Prover, Record, Step, record_len, scan,
};
use crate::format::s2::block::{Element, claimed_len};
use crate::format::s2::{FrameKind, MAX_FRAME_DECODED};

/// So many bits are mended in a chunk.
const MOST: usize = 256;
/// So many records that cannot be mended are passed over.
const PASSED: usize = 8;
/// A record whose length cannot be right is taken for this long: the fault is at its start.
const UNKNOWN: usize = 1024;
/// Corrections of one record that are compared: in a row of copies several bits can do the same.
const ALIKE: usize = 8;

/// What stands before and after a chunk's content.
pub(super) struct Around<'a> {
    /// Proves the block's records.
    pub prover: &'a Prover,
    /// The record that the chunk before has begun.
    pub before: &'a [u8],
    /// The content of the next chunk.
    pub after: &'a [u8],
}

/// The bits of `chunk`, which lies at `offset`, that make more of its records prove themselves. Empty where
/// there are none.
pub(super) fn mend(
    chunk: &[u8],
    offset: u64,
    around: &Around<'_>,
    effort: &Effort<'_>,
    tried: &mut Tried,
) -> Vec<usize> {
    let mut flips: Vec<usize> = Vec::new();
    let mut raw = chunk.to_vec();
    let mut content = Vec::new();
    let (mut passed, mut from) = (0, 0);
    while flips.len() < MOST && passed < PASSED && !effort.cancelled() {
        let Some(now) = Content::of(&raw, offset, around) else {
            break;
        };
        let Some(gap) = now.gaps.iter().copied().find(|at| *at >= from) else {
            break;
        };
        let cost = (now.all.len() as u64).saturating_mul(JUDGE_COST);
        tried.count(0, cost);
        let found = now.candidates(gap, effort, tried);
        tried.count(0, cost.saturating_mul(found.len() as u64));
        let mut best = (now.proven, None);
        for bit in found {
            toggle(&mut raw, bit);
            // Several may do the same for one record: what fits the checksum is right.
            let proven = match is_good(&raw, &mut content) {
                true => u64::MAX,
                false => Content::of(&raw, offset, around).map_or(0, |c| c.proven),
            };
            toggle(&mut raw, bit);
            if proven > best.0 {
                best = (proven, Some(bit));
            }
        }
        let Some(bit) = best.1 else {
            (passed, from) = (passed + 1, gap + 1);
            continue;
        };
        toggle(&mut raw, bit);
        // What is flipped twice was not wrong.
        match flips.iter().position(|b| *b == bit) {
            Some(i) => {
                flips.remove(i);
            }
            None => flips.push(bit),
        }
    }
    flips
}

/// What a chunk decodes to, wrong bits and all.
struct Content<'a> {
    around: &'a Around<'a>,
    /// The block in the chunk.
    src: &'a [u8],
    walked: Walk,
    /// What it should decode to, in bytes.
    claimed: usize,
    /// The content, with what is around it.
    all: Vec<u8>,
    /// Bytes in proven records.
    proven: u64,
    /// Where records in the content do not prove themselves.
    gaps: Vec<usize>,
}

impl<'a> Content<'a> {
    fn of(chunk: &'a [u8], offset: u64, around: &'a Around<'a>) -> Option<Self> {
        let frame = frame_at(chunk, offset).filter(|f| f.kind == FrameKind::Compressed)?;
        let src = frame.body.get(4..)?;
        let (claimed, header) = claimed_len(src).ok()?;
        let claimed = claimed as usize;
        if claimed > MAX_FRAME_DECODED {
            return None;
        }
        let walked = walk(src, header);
        let mut made = Made {
            before: around.before,
            start: around.before.len(),
            new: Vec::with_capacity(claimed + around.after.len()),
        };
        for e in &walked.elems {
            let len = (e.len as usize).min(claimed.saturating_sub(made.new.len()));
            if e.literal {
                let from = e.s as usize + usize::from(e.size);
                let bytes = src.get(from..from + len).unwrap_or_default();
                made.new.extend_from_slice(bytes);
            } else if !made.copy(e.back as usize, len) {
                // From nowhere: what follows keeps its place.
                made.new.resize(made.new.len() + len, 0);
            }
        }
        made.new.resize(claimed, 0);
        let all = [around.before, &made.new, around.after].concat();
        let end = all.len() - around.after.len();
        let (mut proven, mut gaps) = (0u64, Vec::new());
        scan(&all, 0, around.prover, OnDamage::Resync, |step| {
            let at = match step {
                Step::Record(r, RecordProof::Proven) => {
                    proven = proven.saturating_add(r.len());
                    return;
                }
                Step::Record(r, _) => r.offset,
                Step::Gap { from, .. } => from,
            };
            gaps.extend(usize::try_from(at).ok().filter(|at| *at < end));
        });
        Some(Self {
            around,
            src,
            walked,
            claimed,
            all,
            proven,
            gaps,
        })
    }

    /// Where the content begins in `all`.
    fn start(&self) -> usize {
        self.around.before.len()
    }

    /// The bits that make the record at `gap` prove itself.
    fn candidates(&self, gap: usize, effort: &Effort<'_>, tried: &mut Tried) -> Vec<usize> {
        // Where its part of the content begins, and how long it may be.
        let first = gap.saturating_sub(self.start());
        let known = self.all.get(gap..).and_then(record_len);
        let len = known
            .map(|(len, _)| len)
            .filter(|len| (MIN_LEN..=self.all.len() - gap).contains(len))
            .unwrap_or(UNKNOWN);
        let last = (gap + len).saturating_sub(self.start()).min(self.claimed);
        let elems = &self.walked.elems;
        let begin = elems
            .partition_point(|e| (e.d as usize).saturating_add(e.len as usize) <= first)
            .saturating_sub(1);
        let end = elems.partition_point(|e| (e.d as usize) < last);
        // Where the walk has failed it did so in an element that is not in the list.
        let end = end + usize::from(end == elems.len());
        // Those of an element's tag and fields, and those of a literal's bytes.
        let bits = |j: usize| {
            let elem = elems.get(j);
            let fields = elem.map_or(5, |e| usize::from(e.size)) * 8;
            let literal = elem.filter(|e| e.literal).map_or(0, |e| {
                let (from, to) = (e.d as usize, e.d as usize + e.len as usize);
                to.min(last).saturating_sub(from.max(first)) * 8
            });
            (fields, literal)
        };
        let mut found: Vec<usize> = Vec::new();
        let mut next = begin;
        while found.len() < ALIKE {
            let cost = |i: usize| {
                let (fields, literal) = bits(next + i);
                let n = (fields + literal) as u64;
                (n, n.saturating_mul(2 * len as u64))
            };
            let n = end.saturating_sub(next);
            let (hit, _) = search(effort, tried, n, cost, |i| {
                let j = next + i;
                let hits = self.of_element(j, bits(j), gap);
                (!hits.is_empty()).then_some((j, hits))
            });
            let Some((j, hits)) = hit else { break };
            found.extend(hits);
            next = j + 1;
        }
        found.truncate(ALIKE);
        found
    }

    /// As [`candidates`](Self::candidates), of one element: bits of its `fields`, and of the bytes of a literal that
    /// are the record's.
    fn of_element(&self, j: usize, (fields, literal): (usize, usize), gap: usize) -> Vec<usize> {
        let elems = &self.walked.elems;
        let (s, d) = match (elems.get(j), elems.last()) {
            (Some(e), _) => (e.s as usize, e.d as usize),
            (None, Some(e)) => match element(self.src, e.s as usize, 0) {
                Some((.., end)) => (end, e.d as usize + e.len as usize),
                None => return Vec::new(),
            },
            (None, None) => (claimed_len(self.src).map_or(0, |(_, n)| n), 0),
        };
        let from = self.start() + d;
        let at = gap.min(from);
        let (Some(before), Some(known)) = (self.all.get(..at), self.all.get(at..from)) else {
            return Vec::new();
        };
        let mut made = Made {
            before,
            start: self.start(),
            new: known.to_vec(),
        };
        let inherited = j.checked_sub(1).and_then(|i| elems.get(i));
        let back = inherited.map_or(0, |e| e.back);
        let mut proves = |wrong| {
            made.new.truncate(known.len());
            self.proves(&mut made, (s, back), gap, wrong)
        };
        let size = elems.get(j).map_or(0, |e| usize::from(e.size));
        let skip = gap.saturating_sub(from);
        let mut hits = Vec::new();
        for bit in 0..fields {
            if proves(Wrong::Field(bit)) {
                hits.push((BLOCK_AT + s) * 8 + bit);
            }
        }
        for bit in skip * 8..skip * 8 + literal {
            if proves(Wrong::Literal(bit)) {
                hits.push((BLOCK_AT + s + size) * 8 + bit);
            }
        }
        hits
    }

    /// Whether the record at `gap` proves itself with the elements from `s` on, the first of them being `wrong`.
    fn proves(
        &self,
        made: &mut Made<'_>,
        (mut s, mut back): (usize, u32),
        gap: usize,
        wrong: Wrong,
    ) -> bool {
        let whole = self.start() + self.claimed;
        let mut wrong = Some(wrong);
        loop {
            let have = made.from(gap);
            let len = record_len(have).map(|(len, _)| len);
            let wanted = gap.saturating_add(len.unwrap_or(4));
            if wanted > self.all.len() {
                return false;
            }
            if len.is_some() && wanted <= made.len() && wrong.is_none() {
                return Record::decode(have, 0).is_ok_and(|r| r.proves(self.around.prover));
            }
            if made.len() >= whole {
                // It ends in the next chunk.
                if made.len() > whole || s != self.src.len() || self.around.after.is_empty() {
                    return false;
                }
                made.new.extend_from_slice(self.around.after);
                continue;
            }
            let wrong = wrong.take();
            let flip = match wrong {
                Some(Wrong::Field(bit)) => 1 << bit,
                _ => 0,
            };
            let Some((what, size, len, next)) = element(self.src, s, flip) else {
                return false;
            };
            if (made.content() as u64).saturating_add(len) > self.claimed as u64 {
                return false;
            }
            if let Element::Copy(explicit) = what {
                back = explicit;
            }
            if what == Element::Literal {
                let at = made.new.len();
                let bytes = self.src.get(s + size..next).unwrap_or_default();
                made.new.extend_from_slice(bytes);
                if let Some(Wrong::Literal(bit)) = wrong {
                    toggle(&mut made.new, at * 8 + bit);
                }
            } else if !made.copy(back as usize, len as usize) {
                return false;
            }
            s = next;
        }
    }
}

/// A wrong bit of an element.
#[derive(Clone, Copy)]
enum Wrong {
    /// In its tag or what belongs to it.
    Field(usize),
    /// In the bytes of a literal.
    Literal(usize),
}

/// What is being decoded, behind what it may copy from.
struct Made<'a> {
    before: &'a [u8],
    /// Where the content begins.
    start: usize,
    new: Vec<u8>,
}

impl Made<'_> {
    fn len(&self) -> usize {
        self.before.len() + self.new.len()
    }

    /// Bytes of content.
    fn content(&self) -> usize {
        self.len().saturating_sub(self.start)
    }

    /// What there is from `at` on, which does not lie in `before`.
    fn from(&self, at: usize) -> &[u8] {
        let at = at.saturating_sub(self.before.len());
        self.new.get(at..).unwrap_or_default()
    }

    /// False where it would copy from before the content.
    fn copy(&mut self, back: usize, len: usize) -> bool {
        if back == 0 || back > self.content() {
            return false;
        }
        let end = self.new.len() + len;
        while self.new.len() < end {
            let left = end - self.new.len();
            let from = self.len() - back;
            match self.before.get(from..).filter(|rest| !rest.is_empty()) {
                Some(rest) => {
                    let bytes = rest.get(..left.min(rest.len())).unwrap_or_default();
                    self.new.extend_from_slice(bytes);
                }
                None => {
                    let from = from - self.before.len();
                    self.new.extend_from_within(from..from + left.min(back));
                }
            }
        }
        true
    }
}
