//! One pass over the messages of a stream, in order, in parallel, in little memory.
//!
//! A worker loads a block and walks it; what it makes of the block's messages goes to the sink in
//! the blocks' order, ascending or descending. A NATSARC1 archive, which has no blocks and can only
//! be read from its start, comes through the same interface.
//!
//! Live messages and, if asked for, records that are still on disk but not live, with the reason.
//! Records that do not prove themselves are never handed out; they become findings.

use super::{BlockState, Origin, Progress, StreamState};
use crate::finding::{Code, Finding};
use crate::format::record::{Kind, OnDamage, Proof, Record, Step, scan};
use crate::format::seqset::SeqSet;
use crate::pipeline::{self, Threads};
use crate::source::archive::{V2, V2Message};
use crate::stream::{BlockFile, Scratch, Stream};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Damaged places that are listed for one block; the rest is counted.
const LISTED: usize = 100;
/// How far a message's time may be off the times at the borders of its block and the blocks beside
/// it before a search by time misses it: clocks are set back, by little.
const CLOCK_SLACK: i64 = 3_600_000_000_000;
/// Content of an archive that goes to the sink in one piece.
const BATCH: usize = 4 << 20;
/// Content of an archive that is held to hand it out backwards.
const WINDOW: usize = 64 << 20;

/// Why a record on disk is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deleted {
    /// A tombstone names it.
    Tombstone,
    /// The delete map of `index.db` or `.idx` holds it.
    Map,
    /// It lies below the stream's first sequence.
    BelowFirst,
    /// It was overwritten.
    Erased,
    /// Another record has its sequence.
    Superseded,
    /// Its block is none of the state's.
    Unlisted,
}

impl Deleted {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tombstone => "tombstone",
            Self::Map => "deleted",
            Self::BelowFirst => "below first sequence (purged or limits)",
            Self::Erased => "erased (content overwritten)",
            Self::Superseded => "superseded",
            Self::Unlisted => "in a block that the index does not list",
        }
    }
}

/// A message.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Stream sequence.
    pub seq: u64,
    /// Time, ns.
    pub ts: i64,
    /// Subject.
    pub subject: &'a [u8],
    /// Header block.
    pub headers: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
    /// Why it is not live.
    pub deleted: Option<Deleted>,
    /// The record as it lies in its block, proven; empty where the source has no blocks.
    pub raw: &'a [u8],
    /// The block's number; where the source has no blocks, that of a piece of some megabytes.
    pub block: u64,
}

impl<'a> Message<'a> {
    fn of_record(r: &Record<'a>, block: u64, deleted: Option<Deleted>) -> Self {
        let erased = deleted == Some(Deleted::Erased);
        let part = |bytes: &'a [u8]| if erased { &[][..] } else { bytes };
        Self {
            seq: r.seq,
            ts: r.ts,
            subject: part(r.subject),
            headers: part(r.headers),
            payload: part(r.payload),
            deleted,
            raw: r.raw,
            block,
        }
    }
}

/// Which messages a pass is about. Ranges are inclusive.
#[derive(Debug, Clone, Copy)]
pub struct Select<'a> {
    /// Sequences.
    pub seq: (u64, u64),
    /// Times, ns.
    pub time: (i64, i64),
    /// These sequences alone, ascending.
    pub only: Option<&'a [u64]>,
}

impl Default for Select<'_> {
    fn default() -> Self {
        Self {
            seq: (0, u64::MAX),
            time: (i64::MIN, i64::MAX),
            only: None,
        }
    }
}

impl Select<'_> {
    fn holds(&self, seq: u64, ts: i64) -> bool {
        self.seq.0 <= seq
            && seq <= self.seq.1
            && self.time.0 <= ts
            && ts <= self.time.1
            && self
                .only
                .is_none_or(|only| only.binary_search(&seq).is_ok())
    }

    /// Whether any selected sequence is in `from..=to`.
    fn reaches(&self, from: u64, to: u64) -> bool {
        let (from, to) = (from.max(self.seq.0), to.min(self.seq.1));
        from <= to
            && self.only.is_none_or(|only| {
                let next = only.partition_point(|s| *s < from);
                only.get(next).is_some_and(|s| *s <= to)
            })
    }
}

/// A block of a pass.
struct Planned<'a> {
    file: &'a BlockFile,
    /// `None` for a block that the state does not list.
    block: Option<&'a BlockState>,
}

/// A pass over a stream's messages.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// The stream.
    pub stream: &'a Stream,
    /// Its state.
    pub state: &'a StreamState,
    /// Who works.
    pub threads: &'a Threads,
    /// Which messages.
    pub select: Select<'a>,
    /// From the last to the first.
    pub reverse: bool,
    /// Also records that are on disk and not live.
    pub deleted: bool,
    /// Told of each block.
    pub progress: Progress<'a>,
}

/// Calls `visit` for each live message of a loaded block, in order.
pub fn live_records<'b>(
    stream: &Stream,
    n: u64,
    bytes: &'b [u8],
    state: &BlockState,
    mut visit: impl FnMut(Record<'b>),
) {
    let mut live = Live::new(state);
    scan(bytes, 0, &stream.prover(n), OnDamage::Resync, |step| {
        if let Step::Record(r, Proof::Proven) = step
            && live.is(&r)
        {
            visit(r);
        }
    });
}

/// Tells the live records of a block from the others, walking it in order.
struct Live<'a> {
    block: &'a BlockState,
    seen: u64,
}

impl<'a> Live<'a> {
    fn new(block: &'a BlockState) -> Self {
        Self { block, seen: 0 }
    }

    fn is(&mut self, r: &Record<'_>) -> bool {
        let live = r.kind == Kind::Message && r.seq > self.seen && self.block.is_live(r.seq);
        if live {
            self.seen = r.seq;
        }
        live
    }
}

/// A record to be visited after the whole block was walked.
struct Found {
    seq: u64,
    deleted: Option<Deleted>,
    at: usize,
}

/// What was wrong with a block.
#[derive(Default)]
struct Damage {
    findings: Vec<Finding>,
    places: u64,
    records: u64,
}

impl Damage {
    fn add(&mut self, make: impl FnOnce() -> Finding) {
        self.places += 1;
        if self.places <= LISTED as u64 {
            self.findings.push(make());
        }
    }

    fn step(&mut self, step: &Step<'_>, last_block: bool) {
        match step {
            Step::Record(r, Proof::HashMismatch) => {
                self.records += 1;
                self.add(|| {
                    let detail = format!(
                        "the hash of this {} does not match its {} bytes",
                        r.kind.as_str(),
                        r.raw.len()
                    );
                    Finding::new(Code::RecordHash, detail)
                        .offset(r.offset)
                        .seq(r.seq)
                });
            }
            Step::Gap { from, to, torn } => {
                let code = if *torn && last_block {
                    Code::TornTail
                } else {
                    Code::RecordStructure
                };
                self.add(|| {
                    let detail = format!(
                        "no record proves itself in the {} bytes up to {to}",
                        to.saturating_sub(*from)
                    );
                    Finding::new(code, detail).offset(*from)
                });
            }
            Step::Record(_, Proof::Proven) => {}
        }
    }
}

impl<'a> Pass<'a> {
    /// A pass over all live messages, in order.
    pub fn new(
        stream: &'a Stream,
        state: &'a StreamState,
        threads: &'a Threads,
        progress: Progress<'a>,
    ) -> Self {
        Self {
            stream,
            state,
            threads,
            select: Select::default(),
            reverse: false,
            deleted: false,
            progress,
        }
    }

    /// Bytes of the files that the pass reads.
    pub fn file_bytes(&self) -> u64 {
        self.plan().iter().map(|p| p.file.len).sum()
    }

    /// The blocks that can hold selected messages, ascending.
    fn plan(&self) -> Vec<Planned<'a>> {
        let files: BTreeMap<u64, &BlockFile> =
            self.stream.blocks.iter().map(|f| (f.n, f)).collect();
        let states: BTreeMap<u64, (usize, &BlockState)> = self
            .state
            .blocks
            .iter()
            .enumerate()
            .map(|(i, b)| (b.n, (i, b)))
            .collect();
        if self.deleted {
            return files
                .values()
                .filter_map(|file| {
                    let block = states.get(&file.n).map(|(_, b)| *b);
                    // A deleted record may lie before the block's first live one, not before the
                    // end of the block below.
                    let read = block.is_none_or(|b| {
                        let from = b.floor.saturating_add(1).min(b.first);
                        self.select.reaches(from, b.last.max(b.first))
                    });
                    read.then_some(Planned { file, block })
                })
                .collect();
        }
        states
            .values()
            .filter(|(i, b)| b.msgs > 0 && self.select.reaches(b.first, b.last) && self.timely(*i))
            .filter_map(|(_, b)| {
                files.get(&b.n).map(|file| Planned {
                    file,
                    block: Some(b),
                })
            })
            .collect()
    }

    /// Whether block `i` may hold messages of the selected time. Times ascend as a rule, not by
    /// law, so the blocks beside it and an hour's slack have a say.
    fn timely(&self, i: usize) -> bool {
        let from = self.select.time.0.saturating_sub(CLOCK_SLACK);
        let to = self.select.time.1.saturating_add(CLOCK_SLACK);
        let around = self
            .state
            .blocks
            .get(i.saturating_sub(1)..)
            .unwrap_or_default()
            .iter()
            .take(3)
            .filter(|b| b.msgs > 0);
        let (mut before, mut after) = (true, true);
        for ts in around.flat_map(|b| [b.first_ts, b.last_ts]) {
            before &= ts != 0 && ts < from;
            after &= ts != 0 && ts > to;
        }
        !before && !after
    }

    /// Visits the messages. `make` begins a result, `visit` adds a message to it (`Break`: no more of
    /// this piece), `sink` takes the results in order (`Break`: no more at all).
    ///
    /// Returns damage that was met, unless the state's own survey has read every record already.
    pub fn run<T: Send>(
        &self,
        make: impl Fn() -> T + Sync,
        visit: impl Fn(&mut T, &Message<'_>) -> ControlFlow<()> + Sync,
        sink: impl FnMut(T) -> ControlFlow<()>,
    ) -> Vec<Finding> {
        self.run_with(make, visit, |result| result, sink)
    }

    /// As [`run`](Self::run); `finish` makes of a result what the sink takes, still in parallel.
    pub fn run_with<T, U: Send>(
        &self,
        make: impl Fn() -> T + Sync,
        visit: impl Fn(&mut T, &Message<'_>) -> ControlFlow<()> + Sync,
        finish: impl Fn(T) -> U + Sync,
        mut sink: impl FnMut(U) -> ControlFlow<()>,
    ) -> Vec<Finding> {
        if let Some(v2) = self.stream.entries() {
            if self.reverse {
                let mut sink = |result| sink(finish(result));
                self.entries_reversed(v2, &make, &visit, &mut sink);
                return Vec::new();
            }
            let findings = self.entries(v2, &make, &visit, &finish, &mut sink);
            return match self.state.origin {
                Origin::Claimed => findings,
                // The survey has read the archive to its end.
                _ => Vec::new(),
            };
        }
        let mut plan = self.plan();
        let dead = if self.deleted {
            self.tombstones(plan.first().map_or(0, |p| p.file.n))
        } else {
            SeqSet::new()
        };
        if self.reverse {
            plan.reverse();
        }
        let mut findings = Vec::new();
        pipeline::ordered(
            self.stream.readers(self.threads),
            plan.len(),
            || (Scratch::default(), Vec::new()),
            |i, (scratch, found)| {
                let planned = plan.get(i)?;
                let mut result = make();
                let ahead = plan.get(i + self.threads.count());
                self.stream.will_load(ahead.map(|p| p.file));
                let damage = self.block(planned, &dead, scratch, found, &mut |m| {
                    visit(&mut result, m)
                });
                (self.progress)(planned.file.len);
                Some((finish(result), damage))
            },
            |_, done| {
                let Some((result, mut damage)) = done else {
                    return ControlFlow::Break(());
                };
                findings.append(&mut damage);
                sink(result)
            },
        );
        // A scan has reported the same already.
        if self.state.origin == Origin::Scan {
            findings.clear();
        }
        findings
    }

    /// The sequences that tombstones name, from block `lowest` on: a tombstone lies in the block of
    /// the message it deletes or in a later one.
    fn tombstones(&self, lowest: u64) -> SeqSet {
        let mut dead = SeqSet::new();
        let files: Vec<&BlockFile> = self
            .stream
            .blocks
            .iter()
            .filter(|f| f.n >= lowest)
            .collect();
        pipeline::ordered(
            self.stream.readers(self.threads),
            files.len(),
            Scratch::default,
            |i, scratch| {
                let mut out = Vec::new();
                self.stream
                    .will_load(files.get(i + self.threads.count()).copied());
                if let Some(file) = files.get(i)
                    && let Ok(loaded) = self.stream.load(file, scratch)
                {
                    let prover = self.stream.prover(file.n);
                    scan(loaded.bytes, 0, &prover, OnDamage::Resync, |step| {
                        if let Step::Record(r, Proof::Proven) = step
                            && r.kind == Kind::Tombstone
                            && self.select.reaches(r.seq, r.seq)
                        {
                            out.push(r.seq);
                        }
                    });
                }
                out
            },
            |_, seqs| {
                for seq in seqs {
                    dead.insert(seq);
                }
                ControlFlow::Continue(())
            },
        );
        dead
    }

    /// Visits one block; returns what is wrong with it.
    fn block(
        &self,
        planned: &Planned<'_>,
        dead: &SeqSet,
        scratch: &mut Scratch,
        found: &mut Vec<Found>,
        visit: &mut dyn FnMut(&Message<'_>) -> ControlFlow<()>,
    ) -> Vec<Finding> {
        let file = planned.file;
        let named = |f: Finding| {
            f.stream(&self.stream.account, &self.stream.name)
                .file(self.stream.block_place(file.n))
        };
        let mut loaded = match self.stream.load(file, scratch) {
            Ok(loaded) => loaded,
            Err(f) => return vec![*f],
        };
        let mut findings = std::mem::take(&mut loaded.findings);
        let last_block = self.stream.blocks.last().map(|b| b.n) == Some(file.n);
        let none = BlockState::default();
        let block = planned.block.unwrap_or(&none);
        let mut live = Live::new(block);
        let mut live_found = 0u64;
        let mut damage = Damage::default();
        let mut highest = 0u64;
        let direct = !self.reverse && !self.deleted;
        let (mut enough, mut unclaimed) = (false, false);
        found.clear();
        let prover = self.stream.prover(file.n);
        scan(loaded.bytes, 0, &prover, OnDamage::Resync, |step| {
            let Step::Record(r, Proof::Proven) = step else {
                damage.step(&step, last_block);
                return;
            };
            let deleted = if live.is(&r) {
                live_found += 1;
                None
            } else if !self.deleted {
                unclaimed |= self.state.origin == Origin::Claimed;
                return;
            } else {
                match self.why_deleted(&r, planned.block, dead, highest) {
                    Some(why) => Some(why),
                    None => return,
                }
            };
            highest = highest.max(r.seq);
            if enough || !self.select.holds(r.seq, r.ts) {
                return;
            }
            if direct {
                enough = visit(&Message::of_record(&r, file.n, None)).is_break();
            } else {
                let at = usize::try_from(r.offset).unwrap_or(usize::MAX);
                found.push(Found {
                    seq: r.seq,
                    deleted,
                    at,
                });
            }
        });
        if self.deleted {
            found.sort_by_key(|f| (f.seq, f.deleted.is_some(), f.at));
        }
        let mut visit_found = |f: &Found| {
            let bytes = loaded.bytes.get(f.at..).unwrap_or_default();
            match Record::decode(bytes, f.at as u64) {
                Ok(r) => visit(&Message::of_record(&r, file.n, f.deleted)),
                Err(_) => ControlFlow::Continue(()),
            }
        };
        let _ = if self.reverse {
            found.iter().rev().try_for_each(&mut visit_found)
        } else {
            found.iter().try_for_each(&mut visit_found)
        };
        if unclaimed {
            damage.add(|| {
                let detail = "holds more than the live messages that the archive claims to hold";
                Finding::new(Code::ArchiveIncomplete, detail)
            });
        }
        let expected = block.msgs.min(block.live_from(0));
        if live_found.saturating_add(damage.records) < expected && damage.places == damage.records {
            damage.add(|| {
                Finding::new(
                    Code::MessagesMissing,
                    format!("{live_found} of the {expected} messages that the index lists are in the block"),
                )
            });
        }
        let more = damage.places.saturating_sub(LISTED as u64);
        if more > 0 {
            damage.findings.push(Finding::new(
                Code::RecordHash,
                format!("{more} more damaged places in this block"),
            ));
        }
        findings.extend(damage.findings.into_iter().map(named));
        findings
    }

    /// Why a proven record of a block is not live; `None` for one that is no message.
    fn why_deleted(
        &self,
        r: &Record<'_>,
        block: Option<&BlockState>,
        dead: &SeqSet,
        highest: u64,
    ) -> Option<Deleted> {
        match r.kind {
            Kind::Skip | Kind::Tombstone => return None,
            Kind::Erased => return Some(Deleted::Erased),
            Kind::Message => {}
        }
        Some(
            if block.is_some_and(|b| r.seq <= b.floor) || r.seq <= highest {
                Deleted::Superseded
            } else if dead.contains(r.seq) {
                Deleted::Tombstone
            } else if r.seq < self.state.first_seq {
                Deleted::BelowFirst
            } else if block.is_none() {
                Deleted::Unlisted
            } else {
                Deleted::Map
            },
        )
    }

    /// An archive, forwards: divided into pieces that are visited in parallel.
    fn entries<T, U: Send>(
        &self,
        v2: &V2,
        make: &(impl Fn() -> T + Sync),
        visit: &(impl Fn(&mut T, &Message<'_>) -> ControlFlow<()> + Sync),
        finish: &(impl Fn(T) -> U + Sync),
        sink: &mut impl FnMut(U) -> ControlFlow<()>,
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        let visit_piece = |piece: Held| {
            let mut result = make();
            for m in piece.messages() {
                if visit(&mut result, &m).is_break() {
                    break;
                }
            }
            finish(result)
        };
        pipeline::fed(self.threads, visit_piece, sink, |feed| {
            let mut piece = Held::new(1);
            let mut over = false;
            let end = v2.visit(self.threads, &mut |m| {
                if m.seq > self.select.seq.1 {
                    return ControlFlow::Break(());
                }
                if !self.select.holds(m.seq, m.ts) {
                    return ControlFlow::Continue(());
                }
                piece.push(&m);
                if piece.bytes.len() >= BATCH {
                    let next = Held::new(piece.number.saturating_add(1));
                    over = feed(std::mem::replace(&mut piece, next)).is_break();
                }
                if over {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            if !over {
                let _ = feed(piece);
            }
            match end {
                Ok(end) => findings.extend(end.findings),
                Err(e) => findings.push(Finding::new(e.code(), e.to_string())),
            }
        });
        let place = self.stream.place(std::path::Path::new(""));
        findings
            .into_iter()
            .map(|f| {
                f.stream(&self.stream.account, &self.stream.name)
                    .file(place.clone())
            })
            .collect()
    }

    /// An archive, backwards: read from its start once to divide it into windows, then up to the end
    /// of each window, the last one first.
    fn entries_reversed<T>(
        &self,
        v2: &V2,
        make: &impl Fn() -> T,
        visit: &impl Fn(&mut T, &Message<'_>) -> ControlFlow<()>,
        sink: &mut impl FnMut(T) -> ControlFlow<()>,
    ) {
        let mut windows: Vec<(u64, u64)> = Vec::new();
        let mut size = WINDOW;
        let _ = v2.visit(self.threads, &mut |m| {
            if m.seq > self.select.seq.1 {
                return ControlFlow::Break(());
            }
            if self.select.holds(m.seq, m.ts) {
                if size >= WINDOW {
                    windows.push((m.seq, m.seq));
                    size = 0;
                }
                size = size.saturating_add(weight(&m));
                if let Some(w) = windows.last_mut() {
                    w.1 = m.seq;
                }
            }
            ControlFlow::Continue(())
        });
        for (from, to) in windows.into_iter().rev() {
            let mut held = Held::new(0);
            let _ = v2.visit(self.threads, &mut |m| {
                if m.seq > to {
                    return ControlFlow::Break(());
                }
                if m.seq >= from && self.select.holds(m.seq, m.ts) {
                    held.push(&m);
                }
                ControlFlow::Continue(())
            });
            let mut batch = make();
            for m in held.messages().rev() {
                if visit(&mut batch, &m).is_break() {
                    break;
                }
            }
            if sink(batch).is_break() {
                return;
            }
        }
    }
}

/// Messages of an archive, copied out of it.
struct Held {
    number: u64,
    bytes: Vec<u8>,
    rows: Vec<Row>,
}

/// Sequence, time, and where subject, headers and payload end.
struct Row {
    seq: u64,
    ts: i64,
    start: usize,
    ends: [usize; 3],
}

impl Held {
    fn new(number: u64) -> Self {
        Self {
            number,
            bytes: Vec::new(),
            rows: Vec::new(),
        }
    }

    fn push(&mut self, m: &V2Message<'_>) {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(BATCH.saturating_add(BATCH / 8));
        }
        let start = self.bytes.len();
        let ends = [m.subject, m.headers, m.payload].map(|part| {
            self.bytes.extend_from_slice(part);
            self.bytes.len()
        });
        self.rows.push(Row {
            seq: m.seq,
            ts: m.ts,
            start,
            ends,
        });
    }

    fn messages(&self) -> impl DoubleEndedIterator<Item = Message<'_>> {
        let part = |from: usize, to: usize| self.bytes.get(from..to).unwrap_or_default();
        self.rows.iter().map(move |r| {
            let [subject, headers, payload] = r.ends;
            Message {
                seq: r.seq,
                ts: r.ts,
                subject: part(r.start, subject),
                headers: part(subject, headers),
                payload: part(headers, payload),
                deleted: None,
                raw: &[],
                block: self.number,
            }
        })
    }
}

fn weight(m: &V2Message<'_>) -> usize {
    m.subject
        .len()
        .saturating_add(m.headers.len())
        .saturating_add(m.payload.len())
        .saturating_add(64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::crypt::KeyRing;
    use crate::format::hash::HashKey;
    use crate::format::record::{ERASED_BIT, NewRecord, TOMBSTONE_BIT, encode};
    use crate::source::{self, OpenOptions};
    use crate::state::{Depth, survey};
    use crate::stream::Want;
    use std::sync::Mutex;

    /// Records as (sequence with flags, subject, payload).
    type Rows<'a> = &'a [(u64, &'a str, &'a str)];

    /// A stream directory of blocks.
    fn store(blocks: &[(u64, Rows<'_>)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let msgs = dir.path().join("S/msgs");
        std::fs::create_dir_all(&msgs).unwrap();
        for (n, records) in blocks {
            let mut out = Vec::new();
            for (seq, subject, payload) in *records {
                let ts = ((seq & !(ERASED_BIT | TOMBSTONE_BIT)) * 10_000_000_000_000) as i64;
                let record = NewRecord {
                    seq: *seq,
                    ts,
                    subject: subject.as_bytes(),
                    headers: b"",
                    payload: payload.as_bytes(),
                };
                encode(&mut out, &HashKey::block("S", *n), &record).unwrap();
            }
            std::fs::write(msgs.join(format!("{n}.blk")), out).unwrap();
        }
        dir
    }

    fn open(dir: &tempfile::TempDir) -> Stream {
        let source = source::open(&dir.path().join("S"), &OpenOptions::default()).unwrap();
        let want = Want::NOTHING;
        Stream::open(source.streams.first().unwrap(), &KeyRing::default(), want)
    }

    type Seen = Vec<(u64, String, Option<Deleted>)>;

    fn visit(pass: &Pass<'_>) -> (Seen, Vec<Finding>) {
        let mut out = Vec::new();
        let findings = pass.run(
            Vec::new,
            |list, m| {
                let payload = String::from_utf8_lossy(m.payload).into_owned();
                list.push((m.seq, payload, m.deleted));
                ControlFlow::Continue(())
            },
            |mut list| {
                out.append(&mut list);
                ControlFlow::Continue(())
            },
        );
        (out, findings)
    }

    fn seqs(seen: &Seen) -> Vec<u64> {
        seen.iter().map(|s| s.0).collect()
    }

    const T: u64 = TOMBSTONE_BIT;
    const E: u64 = ERASED_BIT;

    #[test]
    fn messages_come_in_order_with_the_reason_they_are_not_live() {
        let dir = store(&[
            (
                1,
                &[
                    (1, "a", "one"),
                    (2, "a", "two"),
                    (3, "a", "three"),
                    (3, "a", "again"),
                ],
            ),
            (
                2,
                &[
                    (4, "a", "four"),
                    (E | 5, "", "random"),
                    (T | 2, "", ""),
                    (6, "a", "six"),
                    (3, "a", "late"),
                ],
            ),
            (
                4,
                &[
                    (7, "a", "seven"),
                    (E | 8, "", ""),
                    (T | 6, "", ""),
                    (9, "a", "nine"),
                ],
            ),
        ]);
        let stream = open(&dir);
        for n in [1, 3] {
            let threads = Threads::new(n).unwrap();
            let found = survey(&stream, &threads, Depth::default(), &|_| ());
            let mut pass = Pass::new(&stream, &found.state, &threads, &|_| ());
            let (live, _) = visit(&pass);
            assert_eq!(seqs(&live), [1, 3, 4, 7, 9]);
            assert!(live.iter().all(|m| m.2.is_none()));
            assert_eq!(live[1].1, "three");
            pass.deleted = true;
            let (all, _) = visit(&pass);
            let told: Vec<_> = all.iter().map(|m| (m.0, m.1.as_str(), m.2)).collect();
            use Deleted::{Erased, Superseded, Tombstone};
            assert_eq!(
                told,
                [
                    (1, "one", None),
                    (2, "two", Some(Tombstone)),
                    (3, "three", None),
                    (3, "again", Some(Superseded)),
                    (3, "late", Some(Superseded)),
                    (4, "four", None),
                    (5, "", Some(Erased)),
                    (6, "six", Some(Tombstone)),
                    (7, "seven", None),
                    (9, "nine", None),
                ]
            );
            for deleted in [false, true] {
                pass.deleted = deleted;
                pass.reverse = false;
                let (mut forward, _) = visit(&pass);
                pass.reverse = true;
                forward.reverse();
                assert_eq!(visit(&pass).0, forward);
            }
        }
    }

    #[test]
    fn only_blocks_that_can_hold_the_selected_are_read() {
        let dir = store(&[
            (1, &[(1, "a", ""), (2, "a", ""), (3, "a", "")]),
            (2, &[(4, "a", ""), (5, "a", ""), (6, "a", "")]),
            (3, &[(7, "a", ""), (8, "a", "")]),
            (4, &[(9, "a", ""), (10, "a", "")]),
        ]);
        let stream = open(&dir);
        let threads = Threads::new(2).unwrap();
        let state = survey(&stream, &threads, Depth::default(), &|_| ()).state;
        let read = Mutex::new(0);
        let progress = |_| *read.lock().unwrap() += 1;
        let mut pass = Pass::new(&stream, &state, &threads, &progress);
        let hour = 10_000_000_000_000i64;
        for (select, want, blocks) in [
            (
                Select {
                    seq: (5, 5),
                    ..Select::default()
                },
                vec![5],
                1,
            ),
            (
                Select {
                    seq: (6, 7),
                    ..Select::default()
                },
                vec![6, 7],
                2,
            ),
            (
                Select {
                    seq: (11, 20),
                    ..Select::default()
                },
                vec![],
                0,
            ),
            (
                Select {
                    only: Some(&[3, 9]),
                    ..Select::default()
                },
                vec![3, 9],
                2,
            ),
            // By time the block beside is read as well.
            (
                Select {
                    time: (9 * hour, i64::MAX),
                    ..Select::default()
                },
                vec![9, 10],
                2,
            ),
            (
                Select {
                    time: (i64::MIN, 2 * hour),
                    ..Select::default()
                },
                vec![1, 2],
                2,
            ),
        ] {
            pass.select = select;
            *read.lock().unwrap() = 0;
            assert_eq!(seqs(&visit(&pass).0), want, "{select:?}");
            assert_eq!(*read.lock().unwrap(), blocks, "{select:?}");
        }
    }

    #[test]
    fn damage_is_not_shown_and_is_told() {
        let dir = store(&[(1, &[(1, "a", "one"), (2, "a", "two"), (3, "a", "three")])]);
        let stream = open(&dir);
        let threads = Threads::one();
        let mut state = survey(&stream, &threads, Depth::default(), &|_| ()).state;
        let path = dir.path().join("S/msgs/1.blk");
        let good = std::fs::read(&path).unwrap();
        let run = |state: &StreamState, bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            visit(&Pass::new(&stream, state, &threads, &|_| ()))
        };
        state.origin = Origin::Index;
        assert!(run(&state, &good).1.is_empty());
        // A byte of the second payload.
        let mut bad = good.clone();
        bad[34 + 23] ^= 1;
        let (seen, findings) = run(&state, &bad);
        assert_eq!(seqs(&seen), [1, 3]);
        assert_eq!(findings.len(), 1);
        assert_eq!(
            (findings[0].code, findings[0].seq, findings[0].offset),
            (Code::RecordHash, Some(2), Some(34))
        );
        // A record that is not there at all.
        let mut short = good.clone();
        short.drain(34..68);
        let (seen, findings) = run(&state, &short);
        assert_eq!(seqs(&seen), [1, 3]);
        assert_eq!(
            findings.iter().map(|f| f.code).collect::<Vec<_>>(),
            [Code::MessagesMissing]
        );
        // After a scan the survey has said it already.
        state.origin = Origin::Scan;
        assert!(run(&state, &bad).1.is_empty());
    }
}
