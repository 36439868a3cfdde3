//! What the server would serve: the state of a stream at its stop.
//!
//! Where `index.db` is valid it *is* that state, and nothing is scanned. Otherwise the blocks are
//! scanned and the rules of a server's start applied (see [`scan`]), except those that depend on the
//! wall clock: nothing expires here.

pub mod consumers;
pub mod limits;
pub mod scan;
pub mod subjects;
pub mod visit;

use crate::finding::Finding;
use crate::format::index_db::{BlockEntry, IndexDb};
use crate::format::seqset::SeqSet;
use crate::pipeline::Threads;
use crate::stream::{BlockFile, Index, Stream};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use subjects::SubjectMap;

/// A block's share of the state.
#[derive(Debug, Clone, Default)]
pub struct BlockState {
    /// Its number.
    pub n: u64,
    /// First live sequence; `last + 1` without any.
    pub first: u64,
    /// Its time.
    pub first_ts: i64,
    /// Last sequence that the block has used.
    pub last: u64,
    /// Its time.
    pub last_ts: i64,
    /// Live messages.
    pub msgs: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// Sequences between first and last that are not live.
    pub deleted: SeqSet,
    /// Sequences up to here belong to a lower block.
    pub floor: u64,
}

impl BlockState {
    /// Whether `seq` is served from this block (if it holds it).
    pub fn is_live(&self, seq: u64) -> bool {
        seq > self.floor
            && self.msgs > 0
            && self.first <= seq
            && seq <= self.last
            && !self.deleted.contains(seq)
    }

    /// Live messages with sequences from `from` on.
    pub fn live_from(&self, from: u64) -> u64 {
        let from = from.max(self.first).max(self.floor.saturating_add(1));
        if self.msgs == 0 || from > self.last {
            return 0;
        }
        (self.last - from + 1).saturating_sub(self.deleted.count_range(from, self.last))
    }

    fn from_entry(e: &BlockEntry) -> Self {
        Self {
            n: e.index,
            first: e.first,
            first_ts: e.first_ts,
            last: e.last,
            last_ts: e.last_ts,
            msgs: e.msgs(),
            bytes: e.bytes,
            deleted: e.deleted.clone(),
            floor: 0,
        }
    }
}

/// Where a state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A valid `index.db`.
    Index,
    /// A scan of the blocks.
    Scan,
    /// The archive's own `state.json`, compared with what it holds.
    Archive,
    /// What the archive says of itself, unread the rest: its blocks, if it has any, hold live messages only.
    Claimed,
}

/// The state of a stream, in the API's terms.
#[derive(Debug)]
pub struct StreamState {
    /// Where it comes from.
    pub origin: Origin,
    /// Live messages.
    pub msgs: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// First sequence; `last_seq + 1` in a stream that has become empty.
    pub first_seq: u64,
    /// Its time, 0 for none.
    pub first_ts: i64,
    /// Last sequence ever used.
    pub last_seq: u64,
    /// Its time, 0 for none.
    pub last_ts: i64,
    /// Distinct subjects of live messages, where they were counted.
    pub num_subjects: Option<u64>,
    /// The subjects and how many live messages each has, where asked for.
    pub subjects: Option<SubjectMap>,
    /// Block by block, ascending.
    pub blocks: Vec<BlockState>,
}

impl StreamState {
    /// True where the blocks are only claimed to hold nothing but live messages.
    pub fn is_claim_of_blocks(&self) -> bool {
        self.origin == Origin::Claimed && !self.blocks.is_empty()
    }

    /// How many sequences between first and last hold no message.
    pub fn num_deleted(&self) -> u64 {
        if self.last_seq > self.first_seq {
            (self.last_seq - self.first_seq)
                .saturating_add(1)
                .saturating_sub(self.msgs)
        } else {
            0
        }
    }

    /// Runs of sequences from first to last that hold no message, ascending, inclusive.
    pub fn deleted(&self) -> Vec<(u64, u64)> {
        let mut out: Vec<(u64, u64)> = Vec::new();
        let mut add = |from: u64, to: u64| match out.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(from) => *end = to,
            _ if from <= to => out.push((from, to)),
            _ => {}
        };
        let mut next = self.first_seq.max(1);
        for b in self.blocks.iter().filter(|b| b.msgs > 0) {
            let first = b.first.max(b.floor.saturating_add(1));
            if first > next {
                add(next, first - 1);
            }
            for (from, to) in b.deleted.ranges() {
                let (from, to) = (from.max(next).max(first), to.min(b.last));
                if from <= to {
                    add(from, to);
                }
            }
            next = next.max(b.last.saturating_add(1));
        }
        if next <= self.last_seq && self.msgs > 0 {
            add(next, self.last_seq);
        }
        out
    }

    /// The state of block `n`.
    pub fn block(&self, n: u64) -> Option<&BlockState> {
        self.blocks
            .binary_search_by_key(&n, |b| b.n)
            .ok()
            .and_then(|i| self.blocks.get(i))
    }

    fn set_floors(&mut self) {
        let mut floor = 0;
        for b in &mut self.blocks {
            b.floor = floor;
            if b.msgs > 0 {
                floor = floor.max(b.last);
            }
        }
    }

    fn from_index(db: &IndexDb, keep_subjects: bool) -> Self {
        let mut subjects = keep_subjects.then(SubjectMap::new);
        if let Some(map) = &mut subjects {
            for s in &db.subjects {
                *map.value_mut(s.subject) = s.total;
            }
        }
        let mut state = Self {
            origin: Origin::Index,
            msgs: db.msgs,
            bytes: db.bytes,
            first_seq: db.first_seq,
            first_ts: db.first_ts,
            last_seq: db.last_seq,
            last_ts: db.last_ts,
            num_subjects: Some(db.num_subjects),
            subjects,
            blocks: db.blocks.iter().map(BlockState::from_entry).collect(),
        };
        state.blocks.sort_by_key(|b| b.n);
        state.set_floors();
        state
    }
}

/// What to find out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Depth {
    /// The subjects and their counts.
    pub subjects: bool,
    /// Read and prove every record, even where `index.db` is valid.
    pub prove: bool,
}

/// What reading the blocks cost and brought, for the summary.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Blocks read.
    pub blocks: u64,
    /// Records seen, of all kinds.
    pub records: u64,
    /// Bytes of files read.
    pub file_bytes: u64,
    /// Live messages seen in these blocks, which prove themselves.
    pub messages: u64,
    /// The largest message of a NATSARC1 archive: its sequence, and bytes of headers and payload.
    pub largest: (u64, u64),
}

/// A stream's state and what was found on the way.
#[derive(Debug)]
pub struct Survey {
    /// The state.
    pub state: StreamState,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What was read.
    pub totals: Totals,
}

/// Told about each block that has been read: bytes of its file.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// Finds out the state of a stream.
///
/// Open the stream with its index's subjects if `depth` asks for subjects or proof.
pub fn survey(stream: &Stream, threads: &Threads, depth: Depth, progress: Progress<'_>) -> Survey {
    if let Some(v2) = stream.entries() {
        return scan::survey_entries(stream, v2, threads, depth, None, progress);
    }
    match &stream.index {
        Index::Valid(db) if !depth.prove => Survey {
            state: StreamState::from_index(db, depth.subjects),
            findings: Vec::new(),
            totals: Totals::default(),
        },
        Index::Valid(db) => scan::prove_against_index(stream, db, threads, None, progress),
        Index::Missing | Index::Rejected { .. } => {
            scan::rebuild(stream, threads, depth, None, progress)
        }
    }
}

/// What a block was when it was read: what was found out about it holds as long as this is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Length of its file.
    pub size: u64,
    /// Time of its last change, ns since the epoch.
    pub mtime: i64,
    /// A hash of what a valid `index.db` says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<u64>,
}

/// What a block has brought.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Records of all kinds.
    pub records: u64,
    /// Live messages.
    pub messages: u64,
    /// The last sequence.
    pub last: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// A hash of its subjects with their counts. That of a stream is the sum of its blocks'.
    pub subjects: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// What a [`Plan`] knows of a block from before.
#[derive(Debug)]
pub enum Earlier {
    /// It was read, and is still the same.
    Seen(Seen),
    /// It has to be read, and noted.
    Unseen(Stamp),
    /// It has to be read.
    NotKept,
}

/// Proof of some of the blocks, or in several sittings.
pub trait Plan: Sync {
    /// Whether all blocks are proven: what needs all of them is told then.
    fn is_whole(&self) -> bool;
    /// Whether block `n` is proven.
    fn takes(&self, n: u64) -> bool;
    /// What is known of a block, of which a valid `index.db` says `known`.
    fn earlier(&self, file: &BlockFile, known: Option<&BlockState>) -> Earlier;
    /// Block `n` was read.
    fn seen(&self, n: u64, stamp: Stamp, seen: &Seen);
    /// Asked after each block; after a `Break` the result is of no use.
    fn go_on(&self) -> ControlFlow<()>;
}

/// Proves a stream by a plan. Without a valid `index.db`, and with blocks left out, the state is no more than a list
/// of the blocks that were proven.
pub fn prove(
    stream: &Stream,
    threads: &Threads,
    plan: &dyn Plan,
    progress: Progress<'_>,
) -> Survey {
    let depth = Depth {
        subjects: false,
        prove: true,
    };
    if let Some(v2) = stream.entries() {
        return scan::survey_entries(stream, v2, threads, depth, Some(plan), progress);
    }
    match &stream.index {
        Index::Valid(db) => scan::prove_against_index(stream, db, threads, Some(plan), progress),
        _ if plan.is_whole() => scan::rebuild(stream, threads, depth, Some(plan), progress),
        _ => scan::prove_alone(stream, threads, plan, progress),
    }
}

/// The state that an archive claims to hold, without reading it: for a pass that reads it all anyway, and has to
/// compare then. `None` for anything else, and where something besides the claim has a say in what is live.
pub fn claimed(stream: &Stream) -> Option<StreamState> {
    if let Some(v2) = stream.entries() {
        return Some(scan::claimed(v2.state()));
    }
    let mut state = scan::claimed(stream.claimed.as_ref()?);
    let bare = |b: &BlockFile| !b.key && !b.idx && !b.fss && b.len > 0;
    let plain = matches!(stream.index, Index::Missing)
        && stream.meta.is_some()
        && !stream.blocks.is_empty()
        && stream.blocks.iter().all(bare);
    if !plain || !limits::allow(stream, &state) {
        return None;
    }
    state.blocks = stream
        .blocks
        .iter()
        .map(|b| BlockState {
            n: b.n,
            first: state.first_seq,
            last: state.last_seq,
            msgs: 1,
            ..BlockState::default()
        })
        .collect();
    Some(state)
}

/// The blocks that a state refers to, with their files: what a visit of all messages reads.
pub fn blocks_to_read<'a>(
    stream: &'a Stream,
    state: &'a StreamState,
) -> Vec<(&'a BlockFile, &'a BlockState)> {
    let files: BTreeMap<u64, &BlockFile> = stream.blocks.iter().map(|f| (f.n, f)).collect();
    state
        .blocks
        .iter()
        .filter_map(|b| files.get(&b.n).map(|f| (*f, b)))
        .collect()
}
