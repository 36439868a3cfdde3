//! Blocks: flipped bits in records, chunks and headers, copies that a server was making, and what is missing.

use super::{Correction, EVERYTHING, Proof, Work};
use crate::finding::Code;
use crate::format::block::{Container, S2_MAGIC};
use crate::format::mend::record::{Border, Found, IsKnown, Known, Sureness, border, walk};
use crate::format::mend::{Flip, s2};
use crate::format::record::{HEADERS_BIT, Kind, OnDamage, Proof as RecordProof, Step, scan};
use crate::format::seqset::SeqSet;
use crate::pipeline;
use crate::source::tree::{ChildKind, Tree as _};
use crate::state::subjects::SubjectMap;
use crate::stream::mends::{BlockMends, Mends};
use crate::stream::{BLOCK_FILE, BlockFile, Index, Scratch, Stream, proven_messages};
use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// So many subjects are learned from the records at the most.
const LEARNED: usize = 1 << 20;

/// What the first look at a block brings.
struct Look {
    file: BlockFile,
    /// Something about it is not as it should be.
    damaged: bool,
    /// Something in it proves itself.
    proven: bool,
    /// Its records begin with later ones.
    unordered: bool,
    first: u64,
    last: u64,
    /// Its last message.
    last_message: u64,
    /// Subjects that it has once, where subjects are learned.
    once: Vec<Box<[u8]>>,
    tombstones: Vec<u64>,
    /// Why it cannot be read.
    shut: Option<String>,
}

/// What became of one block.
#[derive(Default)]
struct Outcome {
    mends: BlockMends,
    corrections: Vec<Correction>,
    corrected: u64,
    unproven: Vec<(u64, u64)>,
    /// Sequences around what is lost.
    gaps: Vec<(u64, u64)>,
    /// The highest sequence that damaged bytes at the end claim to be.
    claimed: u64,
    notes: Vec<String>,
    /// What the search has cost.
    spent: u64,
}

/// What is known of a stream's subjects.
struct Subjects<'s> {
    listed: HashSet<&'s [u8]>,
    /// All are listed.
    all: bool,
    /// How often each was seen, where none is listed.
    seen: Option<SubjectMap>,
    configured: Vec<&'s str>,
    raft: bool,
}

impl<'s> Subjects<'s> {
    fn of(stream: &'s Stream) -> Self {
        let (db, all) = match &stream.index {
            Index::Valid(db) => (Some(db), true),
            Index::Rejected { prior, .. } => (prior.as_ref(), false),
            Index::Missing => (None, false),
        };
        let listed = db.iter().flat_map(|db| &db.subjects).map(|s| s.subject);
        // What a stream takes by mirror, source or transformation need not match its own subjects.
        let meta = stream.meta.as_ref().filter(|m| {
            !m.has_mirror() && !m.has_sources() && m.get("subject_transform").is_none()
        });
        Self {
            listed: listed.collect(),
            all,
            seen: None,
            configured: meta.map_or_else(Vec::new, |m| m.subjects()),
            raft: stream.role == crate::source::Role::RaftGroup,
        }
    }

    fn with<R>(&self, ask: impl FnOnce(&Known<'_>) -> R) -> R {
        let is_listed = |s: &[u8]| self.listed.contains(s);
        // A flipped length makes a subject that is there once.
        let is_seen = |s: &[u8]| {
            let times = self.seen.as_ref().and_then(|seen| seen.get(s));
            times.is_some_and(|n| n > 1)
        };
        let subjects: Option<IsKnown<'_>> = match (self.listed.is_empty(), &self.seen) {
            (false, _) => Some(&is_listed),
            (true, Some(_)) => Some(&is_seen),
            (true, None) => None,
        };
        ask(&Known {
            subjects,
            all: self.all,
            filters: if self.listed.is_empty() {
                &self.configured
            } else {
                &[]
            },
            raft: self.raft,
        })
    }

    /// Whether other records have to tell what subjects there are.
    fn learns(&self) -> bool {
        self.listed.is_empty() && !self.raft
    }

    /// Takes what was seen for known; blocks with subjects that are there once have to be looked at again.
    fn learn(&mut self, seen: Option<SubjectMap>, looks: &mut [Look]) {
        let often = |seen: &SubjectMap| seen.iter().any(|(_, n)| n > 1);
        let Some(seen) = seen.filter(often) else {
            return;
        };
        for look in looks {
            let once = std::mem::take(&mut look.once);
            look.damaged |= once.iter().any(|s| seen.get(s) == Some(1));
        }
        self.seen = Some(seen);
    }
}

/// Looks at all blocks, and mends those that need it.
pub(super) fn mend(work: &mut Work<'_>, msgs: &Path) {
    copies(work, msgs);
    let mut renamed = false;
    loop {
        let stream = work.open(EVERYTHING);
        let mut subjects = Subjects::of(&stream);
        let learns = subjects.learns();
        let (mut looks, seen) = subjects.with(|known| look(work, &stream, known, learns));
        subjects.learn(seen, &mut looks);
        // Of a block under a wrong number nothing proves itself, and its key does not open.
        let is_suspect = |l: &&Look| l.file.len > 0 && (l.shut.is_some() || !l.proven);
        let suspects: Vec<u64> = looks.iter().filter(is_suspect).map(|l| l.file.n).collect();
        if renamed || suspects.is_empty() || !super::names::blocks(work, msgs, &suspects) {
            subjects.with(|known| repair(work, &stream, known, &looks));
            return;
        }
        renamed = true;
    }
}

/// Mends the blocks that need it, and notes what is missing between them.
fn repair(work: &mut Work<'_>, stream: &Stream, known: &Known<'_>, looks: &[Look]) {
    let mut mends = (*stream.mends).clone();
    behind_the_end(work, stream, looks, &mut mends);
    let mut last: Option<&Look> = None;
    for (i, l) in looks.iter().enumerate() {
        for seq in &l.tombstones {
            work.report.dead.insert(*seq);
        }
        if let Some(why) = &l.shut {
            work.report.note(why.clone());
        }
        // Not what a lower block has already.
        let unordered = l.unordered && l.first > last.map_or(0, |l| l.last);
        if unordered {
            mends.blocks.entry(l.file.n).or_default().unordered = true;
            let place = stream.block_place(l.file.n);
            work.report
                .note(format!("{place}: its records are out of order: sorted"));
        }
        let next = || looks.iter().skip(i + 1).find(|l| l.last > 0);
        if l.damaged {
            let bounds = (
                last.map_or(0, |l| l.last),
                next().map_or(u64::MAX, |l| l.first),
            );
            let found = one(work, stream, &l.file, known);
            add(work, stream, &mut mends, l, found, bounds);
        } else if l.last == 0
            && l.file.len > 0
            && l.shut.is_some()
            && let (Some(a), Some(b)) = (last, next())
        {
            work.report
                .doubtful
                .insert_range(a.last.saturating_add(1), b.first.saturating_sub(1));
        }
        // A number that is missing may be a block that is.
        if let Some(before) = last
            && l.last > 0
            && l.file.n > before.file.n.saturating_add(1)
            && l.first > before.last.saturating_add(1)
        {
            work.report
                .doubtful
                .insert_range(before.last + 1, l.first - 1);
        }
        if l.last > 0 {
            last = Some(l);
        }
    }
    super::set_mends(work, mends);
}

/// Messages behind the end that a valid `index.db` gives their block: deletes do not move it, so a server has cut the
/// block there and written its index anew.
fn behind_the_end(work: &mut Work<'_>, stream: &Stream, looks: &[Look], mends: &mut Mends) {
    let Index::Valid(db) = &stream.index else {
        return;
    };
    let entries: BTreeMap<u64, _> = db.blocks.iter().map(|b| (b.index, b)).collect();
    // With the lowest first sequence of all that follow: an index written by hand need not be in order.
    let mut next = u64::MAX;
    let mut following = BTreeMap::new();
    for (n, entry) in entries.iter().rev() {
        following.insert(*n, next);
        next = next.min(entry.first);
    }
    for l in looks {
        let (Some(entry), Some(&next)) = (entries.get(&l.file.n), following.get(&l.file.n)) else {
            continue;
        };
        if l.last_message > entry.last && l.last_message < next {
            mends.distrust = true;
            let place = stream.block_place(l.file.n);
            work.report.note(format!(
                "{place}: holds messages up to {}, index.db says {}: a server has cut the block; what is behind is taken, too",
                l.last_message, entry.last
            ));
        }
    }
}

/// Reads every block once, and says which need more than that. Counts the subjects if asked to `learn` them, unless
/// they are too many.
fn look(
    work: &Work<'_>,
    stream: &Stream,
    known: &Known<'_>,
    learn: bool,
) -> (Vec<Look>, Option<SubjectMap>) {
    let mut looks: Vec<Look> = Vec::new();
    let mut seen = learn.then(SubjectMap::new);
    let too_many = AtomicBool::new(!learn);
    pipeline::ordered(
        stream.readers(work.ask.threads),
        stream.blocks.len(),
        Scratch::default,
        |i, scratch| {
            let file = *stream.blocks.get(i)?;
            stream.will_load(stream.blocks.get(i + work.ask.threads.count()));
            let mut look = Look {
                file,
                damaged: false,
                proven: false,
                unordered: false,
                first: 0,
                last: 0,
                last_message: 0,
                once: Vec::new(),
                tombstones: Vec::new(),
                shut: None,
            };
            match stream.load(&file, scratch) {
                Ok(loaded) => {
                    look.damaged = loaded.findings.iter().any(|f| f.code == Code::Compression);
                    let prover = stream.prover(file.n);
                    let mut after = Kind::Skip;
                    let mut counts = SubjectMap::new();
                    let counting = !too_many.load(Ordering::Relaxed);
                    scan(loaded.bytes, 0, &prover, OnDamage::Resync, |step| {
                        let Step::Record(r, RecordProof::Proven) = step else {
                            look.damaged = true;
                            return;
                        };
                        look.proven = true;
                        look.damaged |= border(&r, known).is_some();
                        if r.kind == Kind::Tombstone {
                            look.tombstones.push(r.seq);
                            return;
                        }
                        if r.seq == 0 {
                            return;
                        }
                        // Behind a skipped sequence, which some servers write over the start of a
                        // block, older records are leftovers.
                        let below = look.first > 0 && r.seq < look.first;
                        if below && after == Kind::Message {
                            look.unordered = true;
                        }
                        if look.first == 0 || (look.unordered && below) {
                            look.first = r.seq;
                        }
                        after = r.kind;
                        look.last = look.last.max(r.seq);
                        if r.kind == Kind::Message {
                            look.last_message = look.last_message.max(r.seq);
                            if counting {
                                *counts.value_mut(r.subject) += 1;
                            }
                        }
                    });
                    let once = counts.iter().filter(|(_, n)| *n == 1);
                    look.once = once.map(|(s, _)| s.into()).collect();
                    return Some((look, counts));
                }
                Err(f) => {
                    look.shut = Some(format!("{}: {}", f.file.as_deref().unwrap_or(""), f.detail));
                }
            }
            Some((look, SubjectMap::new()))
        },
        |_, look| match look {
            Some((mut look, counts)) => {
                (work.ask.progress)(look.file.len);
                if let Some(all) = &mut seen {
                    for (subject, n) in counts.iter() {
                        *all.value_mut(subject) += n;
                    }
                    if all.len() > LEARNED {
                        too_many.store(true, Ordering::Relaxed);
                        seen = None;
                        looks.iter_mut().for_each(|l| l.once = Vec::new());
                    }
                }
                if seen.is_none() {
                    look.once = Vec::new();
                }
                looks.push(look);
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(()),
        },
    );
    (looks, seen)
}

fn add(
    work: &mut Work<'_>,
    stream: &Stream,
    mends: &mut Mends,
    look: &Look,
    found: Outcome,
    bounds: (u64, u64),
) {
    work.spend(found.spent);
    let n = look.file.n;
    let place = stream.block_place(n);
    let report = &mut work.report;
    report.corrected = report.corrected.saturating_add(found.corrected);
    report.corrections.extend(found.corrections);
    for note in found.notes {
        report.note(format!("{place}: {note}"));
    }
    for (offset, seq) in found.unproven {
        report.unproven.push((place.clone(), offset, seq));
    }
    for (after, before) in found.gaps {
        // At either end of the block, its neighbours say how far.
        let after = if after == 0 { bounds.0 } else { after };
        let mut before = before.min(bounds.1);
        if before == u64::MAX {
            // Nothing follows: what is there itself has to tell.
            before = found.claimed.saturating_add(1);
            if !matches!(stream.index, Index::Valid(_)) {
                report.note(format!(
                    "{place}: what follows sequence {after} is damaged, and is the end of the stream: more may be lost"
                ));
            }
        }
        if before != u64::MAX && before > after.saturating_add(1) {
            report.doubtful.insert_range(after + 1, before - 1);
        }
    }
    if !found.mends.is_empty() {
        let mut new = found.mends;
        if let Some(old) = mends.blocks.remove(&n) {
            new.unordered = old.unordered;
            new.copies = old.copies;
        }
        mends.blocks.insert(n, new);
    }
}

/// Mends one block.
fn one(work: &Work<'_>, stream: &Stream, file: &BlockFile, known: &Known<'_>) -> Outcome {
    let mut out = Outcome::default();
    let place = stream.block_place(file.n);
    let mut scratch = Scratch::default();
    let Ok(raw) = stream.read(file, &mut scratch) else {
        return out;
    };
    let effort = work.effort();
    let prover = stream.prover(file.n);
    let bytes = scratch.decrypted();
    let mut header = match Container::detect(bytes, &prover) {
        Container::Plain { .. } => None,
        Container::S2 { header, .. } => Some(header),
        Container::HeaderlessS2 => Some(0),
    };
    if header != Some(0)
        && let Some((found, mut flips)) = s2::container(bytes)
        && (header != Some(found) || !flips.is_empty())
        // A plain block may look like one by chance, not one with an S2 stream inside.
        && header.map_or_else(|| !starts_proven(bytes, &prover), |_| true)
    {
        header = Some(found);
        // Those of the identifier come again with its chunk.
        flips.retain(|f| f.offset < S2_MAGIC.len() as u64);
        if !flips.is_empty() {
            out.corrections
                .push(Correction::new(place.clone(), &flips, Proof::Likely));
            out.mends.file.extend(&flips);
        }
        let mut mended = bytes.get(..found).unwrap_or_default().to_vec();
        crate::stream::mends::apply(&flips, &mut mended);
        mended.extend_from_slice(&crate::format::s2::MAGIC);
        let detected = match Container::detect(&mended, &prover) {
            Container::S2 { header, .. } => Some(header),
            _ => None,
        };
        if detected != Some(found) {
            out.mends.header = Some(found);
            out.notes
                .push("the size in its header is damaged; nothing needs it".into());
        }
    }
    let mut logical = Vec::new();
    let mut spent = 0;
    if let Some(header) = header {
        let inner = raw
            .key
            .as_ref()
            .filter(|_| header == 0 && !bytes.starts_with(&S2_MAGIC));
        let records = s2::Records {
            prover: &prover,
            key: inner,
        };
        let ceiling = usize::try_from(BLOCK_FILE).unwrap_or(usize::MAX);
        let (chunks, tried) =
            s2::decompress(bytes, header, &records, &effort, &mut logical, ceiling);
        spent = tried.spent;
        let (mut broken, mut mended) = (0, Vec::new());
        for c in &chunks {
            match &c.outcome {
                s2::Outcome::Good => {}
                s2::Outcome::Mended { flips, proof } => {
                    let proof = match proof {
                        s2::Proof::Checksum => Proof::Checksum,
                        _ => Proof::Hash,
                    };
                    out.corrections
                        .push(Correction::new(place.clone(), flips, proof));
                    out.mends.file.extend(flips);
                    mended.push(c.content.clone());
                }
                s2::Outcome::Broken { flips, .. } => {
                    broken += 1;
                    if !flips.is_empty() {
                        out.corrections
                            .push(Correction::new(place.clone(), flips, Proof::Hash));
                        out.mends.file.extend(flips);
                        mended.push(c.content.clone());
                    }
                }
            }
        }
        if broken > 0 {
            out.notes.push(format!(
                "{broken} of its {} compressed chunks could not be corrected; what is before and after their damage is read",
                chunks.len()
            ));
            out.mends.chunks = chunks
                .iter()
                .filter(|c| c.content.start < c.content.end)
                .map(|c| {
                    let end = c.offset.saturating_add(c.length);
                    (c.offset..end, c.content.clone())
                })
                .collect();
        }
        if let Some(key) = inner {
            key.apply_keystream(0, &mut logical);
        }
        out.corrected = messages_in(&logical, &mended, &prover);
    } else {
        logical.extend_from_slice(bytes);
    }
    let compressed = header.is_some();
    let left = crate::format::mend::Effort {
        bytes: effort.bytes.saturating_sub(spent),
        ..effort
    };
    let mut flips: Vec<Flip> = Vec::new();
    let mut after = 0u64;
    let mut open: Vec<u64> = Vec::new();
    let close = |open: &mut Vec<u64>, before: u64, gaps: &mut Vec<(u64, u64)>| {
        gaps.extend(open.drain(..).map(|after| (after, before)));
    };
    let note_border =
        |b: &Border, (offset, seq): (u64, u64), out: &mut Outcome, flips: &mut Vec<Flip>| {
            if b.sure == Sureness::Open {
                out.notes
                    .push(format!("sequence {seq}: {}; left as it is", b.reason));
                out.unproven.push((offset, seq));
                return;
            }
            let mut c = Correction::new(place.clone(), &b.flips, Proof::Likely);
            (c.seq, c.decompressed) = (Some(seq), compressed);
            out.corrections.push(c);
            out.corrected += 1;
            flips.extend(&b.flips);
        };
    let tried = walk(&logical, 0, &prover, known, &left, |found| match found {
        Found::Proven(r, border) => {
            if r.kind != Kind::Tombstone {
                close(&mut open, r.seq, &mut out.gaps);
                after = after.max(r.seq);
            }
            if let Some(b) = border {
                note_border(&b, (r.offset, r.seq), &mut out, &mut flips);
            }
        }
        Found::Mended(m, _) => {
            let record = m.record();
            let seq = record.as_ref().map_or(0, |r| r.seq);
            if record.as_ref().is_some_and(|r| r.kind != Kind::Tombstone) {
                close(&mut open, seq, &mut out.gaps);
                after = after.max(seq);
            }
            // One that a wrong length before it had hidden is as it should be.
            if m.flips.is_empty() {
                return;
            }
            let mut c = Correction::new(place.clone(), &m.flips, Proof::Hash);
            (c.seq, c.decompressed) = (Some(seq), compressed);
            out.corrections.push(c);
            out.corrected += u64::from(record.is_some_and(|r| r.kind == Kind::Message));
            flips.extend(&m.flips);
        }
        Found::Unproven(r, _) => {
            if work.ask.unproven {
                out.mends.unproven.push(r.offset);
                out.unproven.push((r.offset, r.seq));
                close(&mut open, r.seq, &mut out.gaps);
                after = after.max(r.seq);
            } else {
                open.push(after);
                out.claimed = out.claimed.max(r.seq);
            }
        }
        Found::Gap { from, to, .. } => {
            let bytes = usize::try_from(from).ok().zip(usize::try_from(to).ok());
            let bytes = bytes
                .and_then(|(from, to)| logical.get(from..to))
                .unwrap_or_default();
            // Zeros were never a record.
            if bytes.iter().any(|b| *b != 0) {
                open.push(after);
                out.claimed = out.claimed.max(claimed(bytes, after));
            }
        }
    });
    close(&mut open, u64::MAX, &mut out.gaps);
    out.spent = spent.saturating_add(tried.spent);
    if compressed {
        out.mends.logical = flips;
    } else {
        out.mends.file.extend(flips);
    }
    out
}

/// The last of the sequences that damaged bytes claim to be, as far as they follow `after`.
fn claimed(mut bytes: &[u8], mut after: u64) -> u64 {
    /// Deleted messages between two that are there.
    const NEAR: u64 = 1000;
    while let (Some(len), Some(seq)) = (
        bytes.first_chunk().map(|b| u32::from_le_bytes(*b)),
        bytes.get(4..).and_then(|b| b.first_chunk()),
    ) {
        let seq = u64::from_le_bytes(*seq);
        if seq <= after || seq - after > NEAR {
            break;
        }
        after = seq;
        let len = usize::try_from(len & !HEADERS_BIT).unwrap_or(usize::MAX);
        bytes = bytes.get(len.max(1)..).unwrap_or_default();
    }
    after
}

fn starts_proven(bytes: &[u8], prover: &crate::format::record::Prover) -> bool {
    crate::format::record::Record::decode(bytes, 0).is_ok_and(|r| r.proves(prover))
}

/// Proven messages that reach into one of these parts of a block, ascending.
fn messages_in(
    logical: &[u8],
    parts: &[std::ops::Range<usize>],
    prover: &crate::format::record::Prover,
) -> u64 {
    let mut count = 0;
    if parts.is_empty() {
        return 0;
    }
    proven_messages(logical, prover, |r| {
        let (from, to) = (r.offset, r.offset.saturating_add(r.len()));
        let in_part = parts
            .iter()
            .any(|p| from < p.end as u64 && to > p.start as u64);
        count += u64::from(in_part);
    });
    count
}

/// Copies of blocks that a server was making: the same records, under the same number.
fn copies(work: &mut Work<'_>, msgs: &Path) {
    let stream = work.open(EVERYTHING);
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for c in work.overlay.children(msgs).unwrap_or_default() {
        if c.kind != ChildKind::File || c.len == 0 {
            continue;
        }
        let name = c.name.to_string_lossy();
        let number = name
            .strip_suffix(".blk.tmp")
            .or_else(|| name.strip_suffix(".new"))
            .and_then(|n| n.parse::<u64>().ok());
        if let Some(n) = number {
            found.push((n, msgs.join(&c.name)));
        }
    }
    if found.is_empty() {
        return;
    }
    let mut mends = (*stream.mends).clone();
    for (n, path) in found {
        let place = stream.place(&path);
        let key = stream
            .tree()
            .and_then(|(tree, _)| stream.block_key(tree, msgs, n).ok());
        let prover = stream.prover(n);
        let bytes = stream.load_copy(&path, &prover, key.as_ref());
        let mut there = SeqSet::new();
        if let Some(bytes) = &bytes {
            proven_messages(bytes, &prover, |r| {
                there.insert(r.seq);
            });
        }
        if there.is_empty() {
            continue;
        }
        match stream.blocks.iter().find(|b| b.n == n) {
            None => {
                work.overlay.put_file(msgs.join(format!("{n}.blk")), path);
                work.report.from_leftovers = work.report.from_leftovers.saturating_add(there.len());
                work.report.note(format!(
                    "{place}: block {n} is gone; this copy of it, which a server was making, is taken"
                ));
            }
            Some(file) => {
                let mut scratch = Scratch::default();
                let mut held = SeqSet::new();
                if let Ok(loaded) = stream.load(file, &mut scratch) {
                    proven_messages(loaded.bytes, &prover, |r| {
                        held.insert(r.seq);
                    });
                }
                let more = there.difference(&held);
                if more.is_empty() {
                    continue;
                }
                work.report.from_leftovers = work.report.from_leftovers.saturating_add(more.len());
                work.report.note(format!(
                    "{place}: {} messages that {n}.blk has lost",
                    more.len()
                ));
                mends.blocks.entry(n).or_default().copies.push(path);
            }
        }
    }
    super::set_mends(work, mends);
    work.settle();
}
