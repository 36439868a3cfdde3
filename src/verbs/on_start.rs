//! What a start of a server on a store does to what a [`check`](super::check) has found there.
//!
//! Said is what 2.14 (from 2.14.4) and 2.15 do; where another release loses more or less that is named. The rules are
//! those of the servers' recovery (`recoverFullState`, `recoverMsgs`, `rebuildState`, `EnableJetStream`):
//!
//! * With a valid `index.db` no block is read at the start. A block whose lengths or sequences do not fit is rebuilt,
//!   and cut, when it is first read; a wrong hash alone makes one message unreadable.
//! * Otherwise every block is scanned and its *file* cut at the first record that does not prove itself; a block of
//!   which nothing is left is deleted. The offset is that in the decoded block, so a compressed file is cut in the
//!   wrong place, cannot be read again, and the store does not open.
//! * A store that does not open is removed, directory and all.
//! * A stream whose metadata is damaged is passed over; nothing of it is touched.

use super::render::{count, number_of};
use crate::finding::{Code, Finding, OnStart};
use crate::format::meta::MetaInf;
use crate::format::record::{Kind, OnDamage, Proof, Prover, Record, SERVER_MAX_LEN, Step, scan};
use crate::format::seqset::SeqSet;
use crate::format::{sched_db, thw_db};
use crate::source::Role;
use crate::state::{BlockState, StreamState};
use crate::stream::{BlockFile, INDEX_FILE, Index, Scratch, Stream};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;

fn keeps(text: impl Into<String>) -> OnStart {
    OnStart {
        text: text.into(),
        destroys: false,
    }
}

fn loses(text: impl Into<String>) -> OnStart {
    OnStart {
        text: text.into(),
        destroys: true,
    }
}

/// Ends with what servers of some releases do otherwise.
fn but(mut start: OnStart, others: &str) -> OnStart {
    start.text.push_str("; ");
    start.text.push_str(others);
    start
}

const NOTHING: &str = "nothing: keeps it";
const SKIPPED: &str = "skips the stream: all its files stay as they are";

fn name_of(f: &Finding) -> &str {
    let file = f.file.as_deref().unwrap_or_default();
    file.rsplit('/').next().unwrap_or_default()
}

/// Says it of what was found around the streams.
pub fn around(mut f: Finding) -> Finding {
    let file = f.file.clone().unwrap_or_default();
    let inside_stream = file.contains("/streams/");
    f.on_start = match (f.code, name_of(&f)) {
        (Code::Leftover, "__snapshots__" | ".snap-staging") => Some(loses("removes it")),
        (Code::Leftover, name) if inside_stream && name.starts_with('.') => {
            Some(loses("removes the directory with all that is in it"))
        }
        (Code::Leftover, _) => Some(keeps(NOTHING)),
        (Code::OddName, _) if f.detail.contains("deletes it at start") => {
            Some(keeps("a server with several accounts removes it"))
        }
        (Code::OddName, _) if f.detail.starts_with("an empty account") => Some(keeps(
            "a server with several accounts removes it: it is empty",
        )),
        (Code::OddName, _) => Some(keeps(NOTHING)),
        _ => None,
    };
    f
}

/// What goes with a block, or with a part of it.
#[derive(Debug, Default)]
struct Lost {
    /// Messages that prove themselves.
    intact: u64,
    /// Messages known to be there that do not.
    damaged: u64,
    /// There are damaged bytes of which nothing is known.
    more: bool,
    /// How many messages they can have held at most, judging by the sequences around them.
    most: Option<u64>,
    /// They are a last record that was cut off.
    torn: bool,
    /// Nothing of the block stays.
    all: bool,
    /// Messages that come back because the records of their removal go.
    back: u64,
    /// There may be such records in the damaged bytes.
    more_back: bool,
}

impl Lost {
    fn total(&self) -> u64 {
        self.intact.saturating_add(self.damaged)
    }

    /// After a scan tombstones that went are forgotten; an index knows what they said.
    fn text(&self, scanned: bool) -> String {
        let total = self.total();
        let are = |n| if n == 1 { "is" } else { "are" };
        let mut text = match (total, self.more, self.most) {
            (0, true, _) if self.torn => "only the record that was cut off is lost".to_owned(),
            (0, true, Some(m)) if m > 0 => {
                format!("up to {} {} lost", number_of(m, "message"), are(m))
            }
            (0, true, None) if self.all => "its messages are lost".to_owned(),
            (0, true, None) => "only what is damaged there is lost".to_owned(),
            (0, ..) => "no message is lost".to_owned(),
            (n, true, Some(m)) if m > 0 => {
                format!(
                    "{} to {} are lost",
                    count(n),
                    number_of(n.saturating_add(m), "message")
                )
            }
            (n, true, None) if !self.torn => {
                format!("at least {} {} lost", number_of(n, "message"), are(n))
            }
            (n, ..) => format!("{} {} lost", number_of(n, "message"), are(n)),
        };
        if self.damaged > 0 && self.intact > 0 {
            text.push_str(&format!(", {} of them damaged", count(self.damaged)));
        }
        if !scanned {
            return text;
        }
        if self.more_back {
            text.push_str(", and deleted ones may come back");
        } else if self.back > 0 {
            text.push_str(&format!(
                ", and up to {} may come back",
                number_of(self.back, "deleted message")
            ));
        }
        text
    }

    fn matters(&self) -> bool {
        self.total() > 0 || self.back > 0 || self.more && !self.torn && self.most != Some(0)
    }
}

/// Why a server stops at a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// A wrong hash; all lengths and sequences fit.
    Hash,
    /// What is behind cannot be found by lengths, or the sequences are not those expected.
    Structure,
    /// It does not decompress.
    Undecodable,
    /// It cannot be read.
    Unreadable,
    /// Its key does not open.
    Key,
    /// Its key is missing, and it is not the plaintext that a server would encrypt then.
    NoKey,
    /// As a server decodes it nothing of it is a record.
    Foreign,
}

/// A block that servers do not take as it is.
#[derive(Debug)]
struct Fate {
    cause: Cause,
    /// The first bad record in the decoded block.
    at: u64,
    /// The highest sequence before.
    kept: u64,
    /// There are messages before.
    kept_messages: bool,
    compressed: bool,
    /// The highest sequence in it.
    last: u64,
    lost: Lost,
}

impl Fate {
    /// A scan ends with it: the store does not open.
    fn fatal(&self) -> bool {
        match self.cause {
            Cause::Undecodable | Cause::Unreadable | Cause::NoKey => true,
            Cause::Hash | Cause::Structure => self.compressed && self.at > 0 && self.kept_messages,
            Cause::Key | Cause::Foreign => false,
        }
    }

    /// What a scan does to it, unless it is fatal.
    fn scanned(&self, n: u64) -> OnStart {
        let lost = self.lost.text(true);
        let said = if self.cause == Cause::Key || self.at == 0 || self.cause == Cause::Foreign {
            format!("deletes {n}.blk: {lost}")
        } else if self.compressed {
            format!("cuts {n}.blk in the wrong place: {lost}")
        } else {
            format!("truncates {n}.blk at {}: {lost}", count(self.at))
        };
        let said = OnStart {
            text: said,
            destroys: self.lost.matters(),
        };
        match self.cause {
            Cause::Key => but(said, "2.14.0 to 2.14.3 remove the stream's directory"),
            _ => said,
        }
    }

    /// What a server does to it at the first read, if it does not scan at the start.
    fn read(&self, n: u64) -> Option<OnStart> {
        let lost = self.lost.text(false);
        let when = "when it is first read";
        match self.cause {
            Cause::Hash | Cause::Undecodable | Cause::Unreadable | Cause::Key => None,
            Cause::NoKey => Some(loses(format!(
                "makes a new {n}.key {when}, and so gives up {n}.blk: {lost}"
            ))),
            Cause::Foreign => Some(loses(format!("empties {n}.blk {when}: {lost}"))),
            Cause::Structure if self.at == 0 => {
                Some(loses(format!("empties {n}.blk {when}: {lost}")))
            }
            Cause::Structure if self.compressed => Some(loses(format!(
                "cuts {n}.blk in the wrong place {when}: {lost}"
            ))),
            Cause::Structure => Some(OnStart {
                text: format!("truncates {n}.blk at {} {when}: {lost}", count(self.at)),
                destroys: self.lost.matters(),
            }),
        }
    }
}

/// What happens to a stream as a whole.
enum Whole {
    /// Its metadata is not accepted.
    Skipped,
    /// Newer than the server, or with keys that it does not know.
    Offline,
    /// `__new_msgs__` takes the place of the messages.
    Replaced,
    /// A block because of which the store does not open.
    Removed(u64),
    Loaded,
}

struct Start<'a> {
    stream: &'a Stream,
    state: &'a StreamState,
    /// The blocks are scanned: there is no valid `index.db`.
    scans: bool,
    whole: Whole,
    fates: BTreeMap<u64, Fate>,
    /// The last sequence before and after, where it becomes lower: by a scan, and by reading.
    falls: [Option<(u64, u64)>; 2],
    /// Blocks of which the main thing has been said.
    told: BTreeSet<u64>,
}

/// Says of each finding of a stream what a start would do, where that is known. Archives are not started.
pub fn tell(stream: &Stream, state: &StreamState, findings: &mut Vec<Finding>) {
    let Some((_, dir)) = stream.tree() else {
        return;
    };
    if stream.in_archive() || stream.msgs_dir() == dir || stream.role == Role::Batch {
        return;
    }
    let mut start = Start {
        stream,
        state,
        scans: !matches!(stream.index, Index::Valid(_)),
        whole: Whole::Loaded,
        fates: BTreeMap::new(),
        falls: [None, None],
        told: BTreeSet::new(),
    };
    start.large_records(findings);
    if findings.is_empty() {
        return;
    }
    start.judge(findings);
    for f in findings.iter_mut() {
        f.on_start = match stream.role {
            Role::Deleted => Some(loses("removes the directory with all that is in it")),
            Role::RaftGroup => start.of_group(f),
            Role::Stream | Role::Batch => start.of_stream(f),
        };
    }
}

/// The numbers that servers read from a name that ends in `.blk`; they take what follows the number for nothing.
fn taken_for(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".blk")?;
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let (number, rest) = digits.split_at_checked(end)?;
    (rest.is_empty() || rest.starts_with(".blk")).then(|| number.parse().ok())?
}

impl Start<'_> {
    fn entry(&self, n: u64) -> Option<BlockState> {
        let db = match &self.stream.index {
            Index::Valid(db) => Some(db),
            Index::Rejected { prior, .. } => prior.as_ref(),
            Index::Missing => None,
        }?;
        let entry = db.blocks.iter().find(|b| b.index == n)?;
        Some(BlockState {
            n,
            first: entry.first,
            last: entry.last,
            msgs: entry.msgs(),
            deleted: entry.deleted.clone(),
            ..BlockState::default()
        })
    }

    /// Records that are whole, and too long for servers to believe it. A block of ordinary size has none.
    fn large_records(&self, findings: &mut Vec<Finding>) {
        let max = SERVER_MAX_LEN as u64;
        let mut scratch = Scratch::default();
        for file in &self.stream.blocks {
            let bytes = self.state.block(file.n).map_or(0, |b| b.bytes);
            if file.len <= max && bytes <= max {
                continue;
            }
            let Ok(loaded) = self.stream.load(file, &mut scratch) else {
                continue;
            };
            let prover = self.stream.prover(file.n);
            scan(loaded.bytes, 0, &prover, OnDamage::Resync, |step| {
                if let Step::Record(r, Proof::Proven) = step
                    && r.len() > max
                {
                    let detail = format!(
                        "a record of {} bytes; servers take more than {} for damage",
                        count(r.len()),
                        count(max)
                    );
                    findings.push(
                        Finding::new(Code::RecordLarge, detail)
                            .stream(&self.stream.account, &self.stream.name)
                            .file(self.stream.block_place(file.n))
                            .offset(r.offset)
                            .seq(r.seq),
                    );
                }
            });
        }
    }

    fn judge(&mut self, findings: &[Finding]) {
        self.whole = self.metadata(findings);
        if !matches!(self.whole, Whole::Loaded) || self.stream.role == Role::Deleted {
            return;
        }
        let (mut places, mut plain) = (BTreeSet::new(), BTreeSet::new());
        for f in findings.iter().filter(|f| is_damage(f.code)) {
            match f.code {
                // Plaintext without a key is encrypted, if nothing else is wrong.
                Code::Plaintext => plain.extend(f.file.as_deref()),
                _ => places.extend(f.file.as_deref()),
            }
        }
        let stream = self.stream;
        let mut scratch = Scratch::default();
        for file in &stream.blocks {
            let key = stream.place(&stream.msgs_dir().join(format!("{}.key", file.n)));
            let place = stream.block_place(file.n);
            if places.contains(&*place)
                || places.contains(&*key)
                || file.key && plain.contains(&*place)
            {
                let fate = self.fate(file, &mut scratch);
                self.fates.extend(fate.map(|f| (file.n, f)));
            }
        }
        self.falls = [self.falls_back(true), self.falls_back(false)];
        if !self.scans || stream.role != Role::Stream {
            return;
        }
        // In their order, as the server comes to them.
        let blocks = self.fates.iter().filter(|(_, fate)| fate.fatal());
        let names = findings.iter().filter_map(|f| match f.code {
            Code::OddName if f.detail.starts_with("a directory among") => taken_for(name_of(f)),
            _ => None,
        });
        let missing = names.chain(blocks.map(|(n, _)| *n)).min();
        if let Some(n) = missing {
            self.whole = Whole::Removed(n);
        }
    }

    /// Whether the stream is loaded at all.
    fn metadata(&self, findings: &[Finding]) -> Whole {
        if self.stream.role != Role::Stream {
            return Whole::Loaded;
        }
        let skipped = |f: &&Finding| match f.code {
            Code::MetaMissing
            | Code::MetaInvalid
            | Code::SumMissing
            | Code::SumMismatch
            | Code::NameMismatch => true,
            Code::KeyWrong
            | Code::KeyFile
            | Code::Unreadable
            | Code::TooLarge
            | Code::Plaintext => {
                matches!(name_of(f), "meta.inf" | "meta.sum" | "meta.key")
            }
            Code::ConfigUnsupported => true,
            _ => false,
        };
        let own = |f: &&Finding| f.consumer.is_none();
        if findings.iter().filter(own).any(|f| skipped(&f)) {
            return Whole::Skipped;
        }
        let unknown = |f: &Finding| f.code == Code::ConfigUnknownKey;
        if findings.iter().filter(own).any(unknown) {
            return Whole::Offline;
        }
        if self.purged_to().is_some_and(|(blocks, _)| blocks) {
            return Whole::Replaced;
        }
        Whole::Loaded
    }

    /// `__new_msgs__`: whether there are blocks in it, and the blocks whose keys are.
    fn purged_to(&self) -> Option<(bool, Vec<u64>)> {
        let (tree, dir) = self.stream.tree()?;
        let children = tree.children(&dir.join("__new_msgs__")).ok()?;
        let name = |c: &crate::source::tree::Child| c.name.clone();
        let keys = children
            .iter()
            .map(name)
            .filter_map(|n| numbered(&n, "key"));
        let blocks = children
            .iter()
            .any(|c| c.name.to_string_lossy().ends_with(".blk"));
        Some((blocks, keys.collect()))
    }

    fn fate(&self, file: &BlockFile, scratch: &mut Scratch) -> Option<Fate> {
        let stream = self.stream;
        let entry = self.entry(file.n);
        let all = |cause| {
            let msgs = entry.as_ref().map(|e| e.live_from(0));
            Fate {
                cause,
                at: 0,
                kept: 0,
                kept_messages: false,
                compressed: false,
                last: 0,
                lost: Lost {
                    damaged: msgs.unwrap_or(0),
                    more: msgs.is_none(),
                    most: self.room(file.n, 0),
                    all: true,
                    more_back: true,
                    ..Lost::default()
                },
            }
        };
        let loaded = match stream.load(file, scratch) {
            Ok(loaded) => loaded,
            Err(f) => {
                return match f.code {
                    Code::KeyFile | Code::KeyWrong => Some(all(Cause::Key)),
                    Code::Unreadable => Some(all(Cause::Unreadable)),
                    _ => None,
                };
            }
        };
        let prover = stream.prover(file.n);
        let has = |code| {
            loaded
                .findings
                .iter()
                .any(|f| f.code == code && f.severity > crate::finding::Severity::Warning)
        };
        let key_fails = has(Code::KeyFile) || has(Code::KeyWrong);
        let compressed = loaded.container.is_compressed();
        let headerless = loaded.findings.iter().any(|f| f.code == Code::HeaderlessS2);
        let cut = Cut::find(loaded.bytes, &prover, entry.as_ref(), self.scans);
        let cause = if key_fails {
            Cause::Key
        } else if stream.cipher.is_some() && !file.key && (has(Code::Compression) || cut.is_some())
        {
            Cause::NoKey
        } else if headerless || file.key && !loaded.encrypted && file.len > 0 {
            Cause::Foreign
        } else if has(Code::Compression) {
            Cause::Undecodable
        } else {
            cut.as_ref()?.cause
        };
        // To see whether index.db is current a server makes a key for the last block, which it then takes for that of
        // the block.
        let tried = matches!(&stream.index, Index::Rejected { prior: Some(p), .. } if p.last_block == file.n);
        let cause = match cause {
            Cause::NoKey if tried => Cause::Foreign,
            cause => cause,
        };
        let whole = Cut::default();
        let cut = match cause {
            Cause::Hash | Cause::Structure => cut.unwrap_or(whole),
            _ => whole,
        };
        // A compressed file that is cut in the wrong place loses all it holds.
        let from = if compressed { &Cut::default() } else { &cut };
        let (lost, last) = self.lost(file.n, loaded.bytes, &prover, entry.as_ref(), from);
        Some(Fate {
            cause,
            at: cut.at,
            kept: cut.kept,
            kept_messages: cut.messages > 0,
            compressed,
            last,
            lost,
        })
    }

    /// What goes when the block ends at `cut`.
    fn lost(
        &self,
        n: u64,
        bytes: &[u8],
        prover: &Prover,
        entry: Option<&BlockState>,
        cut: &Cut,
    ) -> (Lost, u64) {
        let empty = BlockState::default();
        let state = self.state.block(n).unwrap_or(&empty);
        let mut lost = Lost::default();
        let (mut present, mut doubtful, mut removed) =
            (SeqSet::new(), SeqSet::new(), SeqSet::new());
        let rest = usize::try_from(cut.at)
            .ok()
            .and_then(|at| bytes.get(at..))
            .unwrap_or_default();
        let (mut low, mut last) = (u64::MAX, cut.kept);
        // Damaged records since the last that proves itself; they count if their sequences fit between.
        let mut waiting: Vec<u64> = Vec::new();
        let (mut gap, mut zeros) = (false, true);
        let mut most = Some(0u64);
        let next = cut.kept.saturating_add(1);
        scan(rest, cut.at, prover, OnDamage::Resync, |step| match step {
            Step::Record(r, Proof::Proven) => {
                if r.kind == Kind::Tombstone {
                    removed.insert(r.seq);
                    return;
                }
                let mut fit = 0u64;
                for seq in waiting.drain(..) {
                    fit += u64::from(seq > last && seq < r.seq && doubtful.insert(seq));
                }
                if std::mem::take(&mut gap) && r.seq > last {
                    let between = r.seq.saturating_sub(last).saturating_sub(1);
                    most = match last {
                        0 => self.room(n, r.seq),
                        _ => Some(between),
                    }
                    .map(|m| m.saturating_sub(fit))
                    .and_then(|m| most.map(|sum| sum.saturating_add(m)));
                }
                last = last.max(r.seq);
                if r.kind == Kind::Message {
                    low = low.min(r.seq);
                    if present.insert(r.seq) && (state.is_live(r.seq) || self.group()) {
                        lost.intact = lost.intact.saturating_add(1);
                    }
                }
            }
            Step::Record(r, Proof::HashMismatch) => {
                if r.kind == Kind::Message {
                    waiting.push(r.seq);
                }
            }
            Step::Gap { from, to, torn } => {
                lost.more = true;
                zeros &= is_zero(bytes, from, to);
                lost.torn = torn && cut.at > 0;
                gap = true;
            }
        });
        let limit = last.saturating_add(waiting.len() as u64);
        for seq in waiting {
            if seq > last && (last == 0 || seq <= limit) {
                doubtful.insert(seq);
            }
        }
        if gap {
            most = self
                .room(n, 0)
                .map(|m| m.saturating_sub(last.saturating_sub(self.before(n).unwrap_or(0))))
                .and_then(|m| most.map(|sum| sum.saturating_add(m)));
        }
        lost.most = most;
        lost.all = cut.at == 0;
        lost.more_back = lost.more && !lost.torn && (!zeros || lost.all);
        let mut known = 0;
        if let Some(e) = entry {
            // Of the messages that the index knows, those that nothing proves.
            let seen: u64 = present
                .ranges()
                .map(|(from, to)| {
                    let (from, to) = (from.max(e.first).max(next), to.min(e.last));
                    if from > to || e.msgs == 0 {
                        return 0;
                    }
                    (to - from + 1).saturating_sub(e.deleted.count_range(from, to))
                })
                .sum();
            lost.damaged = e.live_from(next).saturating_sub(seen);
            // It may be of a time before the end of the block.
            if lost.more && (!self.scans || e.last >= last.max(limit)) && !lost.torn {
                lost.most = Some(0);
            }
            known = e.last;
        }
        for (from, to) in doubtful.ranges() {
            let from = from.max(next).max(known.saturating_add(1));
            if from <= to {
                let proven = present.count_range(from, to);
                let damaged = (to - from + 1).saturating_sub(proven);
                lost.damaged = lost.damaged.saturating_add(damaged);
            }
        }
        for seq in removed.iter() {
            if cut.seen.contains(seq) && !cut.removed.contains(seq) || seq < cut.first.min(low) {
                lost.back = lost.back.saturating_add(1);
            }
        }
        (lost, last.max(doubtful.max().unwrap_or(0)))
    }

    /// The last sequence of the blocks before.
    fn before(&self, n: u64) -> Option<u64> {
        let lower = self.state.blocks.iter().filter(|b| b.n < n && b.last > 0);
        lower.map(|b| b.last).max()
    }

    /// How many messages there can be in a block, up to the sequence `to` (0: up to those of the next block).
    fn room(&self, n: u64, to: u64) -> Option<u64> {
        let mut later = self.state.blocks.iter().filter(|b| b.n > n && b.msgs > 0);
        let to = match to {
            0 => later.next()?.first,
            to => to,
        };
        to.checked_sub(self.before(n)?)?.checked_sub(1)
    }

    fn group(&self) -> bool {
        self.stream.role == Role::RaftGroup
    }

    /// The last sequence before and after, if it becomes lower.
    fn falls_back(&self, scanned: bool) -> Option<(u64, u64)> {
        let mut after = 0;
        let mut before = self.state.last_seq;
        for b in &self.state.blocks {
            let fate = self
                .fates
                .get(&b.n)
                .filter(|f| scanned || f.read(b.n).is_some());
            after = after.max(match fate {
                Some(fate) if fate.at > 0 && !fate.compressed => fate.kept,
                Some(_) if scanned => 0,
                Some(_) => b.first.saturating_sub(1),
                None => b.last,
            });
            before = before.max(fate.map_or(0, |f| f.last));
        }
        let background = self.stream.meta.as_ref().is_some_and(in_background);
        if let Index::Rejected {
            prior: Some(prior), ..
        } = &self.stream.index
            && !background
        {
            after = after.max(prior.last_seq);
        }
        (after < before).then_some((before, after))
    }

    fn block_of(&self, f: &Finding) -> Option<u64> {
        let name = OsStr::new(name_of(f));
        let n = numbered(name, "blk").or_else(|| numbered(name, "key"))?;
        let place = self.stream.block_place(n);
        let key = self
            .stream
            .place(&self.stream.msgs_dir().join(format!("{n}.key")));
        let file = f.file.as_deref()?;
        (file == place || file == key).then_some(n)
    }

    fn of_stream(&mut self, f: &Finding) -> Option<OnStart> {
        let file = name_of(f);
        let key_missing = f.code == Code::KeyMissing;
        if key_missing && f.consumer.is_none() {
            return Some(keeps(format!(
                "nothing on a server that has the key; one without it {SKIPPED}"
            )));
        }
        match self.whole {
            Whole::Skipped => {
                return Some(match f.code {
                    Code::MetaMissing
                    | Code::MetaInvalid
                    | Code::SumMissing
                    | Code::SumMismatch
                    | Code::ConfigUnsupported => keeps(SKIPPED),
                    Code::KeyWrong if f.consumer.is_none() => {
                        keeps(format!("a server without the right key {SKIPPED}"))
                    }
                    Code::NameMismatch if !self.sum_fails() => keeps(
                        "makes an empty stream of the name in meta.inf beside this directory, which stays as it is",
                    ),
                    _ if f.consumer.is_none() && file.starts_with("meta.") => keeps(SKIPPED),
                    _ => keeps("nothing: the stream is skipped"),
                });
            }
            Whole::Offline => {
                return Some(keeps(match f.code {
                    Code::ConfigUnknownKey if f.consumer.is_none() => {
                        "takes the stream offline: all its files stay as they are"
                    }
                    _ => "nothing: the stream is offline",
                }));
            }
            Whole::Replaced if self.in_messages(f) => {
                return Some(keeps("goes with msgs/, which __new_msgs__ replaces"));
            }
            Whole::Removed(n) => return Some(self.removed(n, f)),
            Whole::Replaced | Whole::Loaded => {}
        }
        if f.consumer.is_some() {
            return self.of_consumer(f);
        }
        if let Some(n) = self.block_of(f)
            && self.fates.contains_key(&n)
            && is_damage(f.code)
        {
            return self.of_block(n, f);
        }
        match f.code {
            Code::IndexDamaged | Code::IndexOutdated | Code::IndexMissing => {
                let lossy = self.fates.values().any(|f| f.lost.matters());
                let more = if lossy {
                    ", and cuts or deletes those that are damaged"
                } else {
                    ""
                };
                Some(keeps(format!(
                    "ignores index.db and scans the blocks{more}"
                )))
            }
            Code::BlockMissing => Some(keeps(
                "nothing more is lost: scans the blocks that are there",
            )),
            Code::MessagesMissing if !self.fates.is_empty() => {
                Some(keeps("as said of the damaged blocks"))
            }
            Code::MessagesMissing => Some(keeps("nothing more is lost: they are gone already")),
            Code::IndexDisagrees => Some(keeps("nothing: believes index.db")),
            Code::RecordOrder | Code::BlockOverlap | Code::RecordFields => {
                Some(keeps("nothing: keeps the records as they are"))
            }
            Code::CmpLookalike => Some(but(
                loses("nothing: takes it for what it is"),
                "servers up to 2.14.6 delete the block, or remove the stream's directory",
            )),
            Code::Compression => Some(keeps("nothing: no server reads this")),
            Code::Plaintext => Some(keeps("encrypts it")),
            Code::Leftover => self.of_leftover(f),
            Code::SideFile => Some(keeps(match file {
                "thw.db" | "sched.db" | "sources.db" => {
                    "makes it anew from the messages: nothing is lost"
                }
                _ => "removes it, and scans the block where index.db is not valid",
            })),
            Code::OddName => Some(self.of_odd_name(f)),
            Code::NotAFile => Some(match taken_for(file) {
                Some(n) if self.in_messages(f) => loses(format!(
                    "reads and writes what it leads to as {n}.blk; where that cannot be read and index.db is not valid, removes the stream's directory"
                )),
                _ => keeps(NOTHING),
            }),
            Code::ConfigUnknownKey => Some(keeps(
                "takes the stream offline: all its files stay as they are",
            )),
            _ => None,
        }
    }

    fn sum_fails(&self) -> bool {
        let codes = [Code::SumMismatch, Code::SumMissing, Code::MetaInvalid];
        self.stream.findings.iter().any(|f| codes.contains(&f.code))
    }

    fn in_messages(&self, f: &Finding) -> bool {
        let msgs = self.stream.place(&self.stream.msgs_dir());
        let file = f.file.as_deref().unwrap_or_default();
        file.strip_prefix(&*msgs)
            .is_some_and(|rest| rest.starts_with('/'))
    }

    fn all_of_it(&self) -> String {
        let consumers = match self.stream.consumers.len() as u64 {
            0 => String::new(),
            n => format!(" and {}", number_of(n, "consumer")),
        };
        format!(
            "removes the stream's directory: the stream is gone, {}{consumers} with it",
            number_of(self.state.msgs, "readable message")
        )
    }

    fn removed(&mut self, n: u64, f: &Finding) -> OnStart {
        let about = taken_for(name_of(f)).is_some_and(|of| of == n) && self.in_messages(f)
            || self.block_of(f) == Some(n) && is_damage(f.code);
        if !about || !self.told.insert(n) {
            return keeps(format!(
                "goes with the stream's directory, which is removed because of {n}.blk"
            ));
        }
        let said = loses(self.all_of_it());
        match self.fates.get(&n).map(|f| f.cause) {
            Some(Cause::Undecodable) => but(said, &format!("2.10 to 2.12 delete {n}.blk alone")),
            Some(Cause::Hash | Cause::Structure) => but(
                said,
                &format!("2.10 to 2.12 cut {n}.blk in the wrong place"),
            ),
            _ => said,
        }
    }

    fn of_block(&mut self, n: u64, f: &Finding) -> Option<OnStart> {
        let first = !self.told.contains(&n);
        let [scanned, read] = self.falls;
        let removes = self.all_of_it();
        let fate = self.fates.get(&n)?;
        let at = f.offset.unwrap_or(fate.at);
        let of_record = matches!(
            f.code,
            Code::RecordHash | Code::RecordStructure | Code::TornTail
        );
        let main = first && (at >= fate.at || fate.compressed || !of_record);
        let last = self.fates.keys().next_back() == Some(&n);
        let falls = |mut said: OnStart, back: Option<(u64, u64)>| {
            if let Some((from, to)) = back.filter(|_| last) {
                said.text.push_str(&format!(
                    "; the last sequence falls back from {} to {}",
                    count(from),
                    count(to)
                ));
                said.destroys = true;
            }
            said
        };
        let mut said = if self.scans {
            falls(fate.scanned(n), scanned)
        } else if let Some(said) = fate.read(n) {
            falls(said, read)
        } else {
            let lost = match fate.cause {
                Cause::Hash => fate.lost.damaged,
                _ => fate.lost.total(),
            };
            let then = if fate.fatal() {
                loses(removes)
            } else {
                falls(fate.scanned(n), scanned)
            };
            OnStart {
                text: format!(
                    "nothing while index.db is valid: {} cannot be read; without it {}",
                    if lost == 0 {
                        "this".to_owned()
                    } else {
                        number_of(lost, "message")
                    },
                    then.text
                ),
                destroys: then.destroys,
            }
        };
        if !self.scans && self.stops_servers(n, fate) {
            said = loses(format!(
                "2.15.0 to 2.15.2 end at each start, because thw.db or sched.db is missing or old; other releases: {}",
                said.text
            ));
        }
        if main {
            self.told.insert(n);
            return Some(said);
        }
        Some(keeps(if at < fate.at && of_record {
            "nothing: keeps the records as they are".to_owned()
        } else {
            format!("as said of the first damage in {n}.blk")
        }))
    }

    /// Message TTLs or schedules that have to be read again from a block of which a message cannot be read: a fault of
    /// servers ends them then.
    fn stops_servers(&self, n: u64, fate: &Fate) -> bool {
        let (Some(meta), Index::Valid(db), Some((tree, _))) =
            (&self.stream.meta, &self.stream.index, self.stream.tree())
        else {
            return false;
        };
        let Some(entry) = db.blocks.iter().find(|b| b.index == n) else {
            return false;
        };
        if !matches!(fate.cause, Cause::Hash | Cause::Undecodable | Cause::Key) {
            return false;
        }
        let stamp = |name: &str, decode: &dyn Fn(&[u8]) -> Option<u64>| {
            let mut buf = Vec::new();
            let path = self.stream.msgs_dir().join(name);
            tree.read_into(&path, &mut buf, INDEX_FILE).ok()?;
            decode(&buf)
        };
        let thw = |b: &[u8]| thw_db::decode(b, 0).ok().map(|d| d.0.stamp);
        let sched = |b: &[u8]| sched_db::decode(b, 0).ok().map(|d| d.0.stamp);
        meta.allow_msg_ttl() && entry.ttls > 0 && stamp("thw.db", &thw).unwrap_or(0) <= entry.last
            || meta.allow_msg_schedules()
                && entry.schedules > 0
                && stamp("sched.db", &sched).unwrap_or(0) <= entry.last
    }

    fn of_leftover(&self, f: &Finding) -> Option<OnStart> {
        let file = name_of(f);
        let name = OsStr::new(file);
        Some(match file {
            "__msgs__" => loses("removes it, with what was purged"),
            "__new_msgs__" => match self.purged_to() {
                Some((true, _)) => loses(format!(
                    "replaces msgs/ by it: {} {} lost",
                    number_of(self.state.msgs, "message"),
                    if self.state.msgs == 1 { "is" } else { "are" }
                )),
                Some((false, keys)) if !keys.is_empty() => {
                    let blocks: Vec<&BlockState> =
                        keys.iter().filter_map(|n| self.state.block(*n)).collect();
                    let msgs = blocks.iter().map(|b| b.msgs).sum();
                    loses(format!(
                        "removes it, and the {} whose keys are in it: {} are lost",
                        number_of(blocks.len() as u64, "block"),
                        number_of(msgs, "message")
                    ))
                }
                _ => keeps("removes it"),
            },
            "batches" => match &self.stream.meta {
                Some(m)
                    if m.get("allow_atomic").is_some_and(|v| v == true)
                        && m.num_replicas() <= 1 =>
                {
                    loses(
                        "removes it; if the stream ends within one of its batches, stores the rest of that first",
                    )
                }
                _ => keeps(NOTHING),
            },
            _ if !self.in_messages(f) => keeps(NOTHING),
            _ if numbered(name, "idx").is_some() || numbered(name, "fss").is_some() => {
                keeps("removes it")
            }
            _ if numbered(name, "key").is_some() && self.scans => keeps("removes it"),
            _ => keeps(NOTHING),
        })
    }

    fn of_odd_name(&self, f: &Finding) -> OnStart {
        let file = name_of(f);
        match taken_for(file) {
            Some(n) if self.in_messages(f) && f.detail.starts_with("a directory") => {
                loses(format!(
                    "nothing while index.db is valid; without it {}, because it takes this for {n}.blk",
                    self.all_of_it()
                ))
            }
            Some(n) if self.in_messages(f) && self.scans => loses(format!(
                "takes it for {n}.blk and counts that block's messages twice, so that limits may remove others"
            )),
            _ => keeps(NOTHING),
        }
    }

    fn of_consumer(&self, f: &Finding) -> Option<OnStart> {
        let name = f.consumer.as_deref().unwrap_or_default();
        let interest = self
            .stream
            .meta
            .as_ref()
            .is_some_and(|m| m.retention() == "interest")
            && self.stream.consumers.iter().any(|c| c.name != name);
        let skips = || {
            let said = keeps("skips the consumer: its files stay as they are");
            if interest {
                let mut said = but(
                    said,
                    "messages that the others have acknowledged are removed, although it has not",
                );
                said.destroys = true;
                said
            } else {
                said
            }
        };
        Some(match (f.code, name_of(f)) {
            (Code::ConsumerState, _) if f.severity < crate::finding::Severity::Warning => {
                keeps("nothing: ignores what follows the state")
            }
            (Code::ConsumerState, _) => {
                let removed = if interest {
                    "2.14.5 and earlier remove its directory, and the messages kept for it"
                } else {
                    "2.14.5 and earlier remove its directory"
                };
                let mut said = but(skips(), removed);
                said.destroys = true;
                said
            }
            (Code::ConsumerMeta, _) => skips(),
            (Code::KeyMissing, _) => {
                keeps("nothing on a server that has the key; one without it skips the stream")
            }
            (Code::KeyWrong | Code::KeyFile, _) => skips(),
            (Code::Plaintext, "meta.inf") => skips(),
            (Code::ConsumerSum, _) => keeps("nothing: takes the configuration as it is"),
            (Code::ConsumerAhead, _) => {
                keeps("nothing is lost: sets the consumer back where the stream ends")
            }
            (Code::ConfigUnknownKey, _) => {
                keeps("stops the whole stream: all its files stay as they are")
            }
            (Code::ConfigUnsupported, _) => skips(),
            (Code::Unreadable, "meta.inf" | "meta.sum" | "meta.key") => skips(),
            _ => return None,
        })
    }

    /// Of a raft group: only clustered servers read it. The log is cut at the first entry that cannot be read, and the
    /// rest fetched from the other nodes.
    fn of_group(&mut self, f: &Finding) -> Option<OnStart> {
        let file = name_of(f);
        let refused = || keeps("the group does not start: its files stay as they are");
        Some(match (f.code, file) {
            (Code::Raft, "peers.idx") => keeps("writes it anew from the cluster's assignment"),
            (Code::Raft, "tav.idx") => {
                keeps("forgets its vote, and its term if that cannot be read")
            }
            (Code::Raft, "commit.idx") => keeps("ignores it"),
            (Code::Raft, name) if self.latest_snapshot().as_deref() == Some(name) => refused(),
            (Code::Raft, _) => keeps("removes it: it is not the latest"),
            (Code::KeyWrong | Code::KeyFile, "meta.key") => refused(),
            (
                Code::MetaMissing
                | Code::MetaInvalid
                | Code::SumMissing
                | Code::SumMismatch
                | Code::NameMismatch,
                _,
            ) => keeps("nothing: servers do not read it"),
            (Code::IndexDamaged | Code::IndexOutdated, _) => {
                keeps("ignores index.db and scans the blocks")
            }
            _ => {
                let n = self.block_of(f).filter(|_| is_damage(f.code))?;
                let fate = self.fates.get(&n)?;
                if self.scans && fate.fatal() {
                    return Some(refused());
                }
                if !self.told.insert(n) {
                    return Some(keeps("goes with the cut before it"));
                }
                // All that follows goes, in later blocks, too.
                let later = self.state.blocks.iter().filter(|b| b.n > n);
                let later: u64 = later.map(|b| b.msgs).sum();
                let lost = fate.lost.total().saturating_add(later);
                if lost == 0 {
                    return Some(keeps("cuts the log there: no entry is lost"));
                }
                loses(format!(
                    "cuts the log at entry {} and fetches what follows from the other nodes: {} {} lost here",
                    count(fate.kept.saturating_add(1)),
                    count(lost),
                    if lost == 1 { "entry is" } else { "entries are" }
                ))
            }
        })
    }

    fn latest_snapshot(&self) -> Option<String> {
        let (tree, dir) = self.stream.tree()?;
        let numbers = |name: &str| -> Option<(u64, u64)> {
            let (term, index) = name.strip_prefix("snap.")?.split_once('.')?;
            Some((term.parse().ok()?, index.parse().ok()?))
        };
        let children = tree.children(&dir.join("snapshots")).ok()?;
        let names = children.iter().filter_map(|c| c.name.to_str());
        names
            .filter_map(|n| Some((numbers(n)?, n)))
            .max()
            .map(|(_, n)| n.to_owned())
    }
}

/// Written in the background: what the index knows beyond the blocks is not believed.
fn in_background(meta: &MetaInf) -> bool {
    meta.num_replicas() > 1 || meta.get("persist_mode").is_some_and(|v| v == "async")
}

fn numbered(name: &OsStr, extension: &str) -> Option<u64> {
    crate::source::numbered(name, extension)
}

/// What makes a server cut, delete or refuse a block.
fn is_damage(code: Code) -> bool {
    matches!(
        code,
        Code::RecordHash
            | Code::RecordStructure
            | Code::RecordLarge
            | Code::Garbage
            | Code::TornTail
            | Code::Compression
            | Code::HeaderlessS2
            | Code::BlockForeign
            | Code::Plaintext
            | Code::KeyFile
            | Code::KeyWrong
            | Code::Unreadable
            | Code::MessagesMissing
    )
}

/// Where a server's scan of a block ends before the block does.
#[derive(Debug)]
struct Cut {
    cause: Cause,
    at: u64,
    /// Highest sequence before.
    kept: u64,
    /// Lowest sequence of a message before.
    first: u64,
    /// Messages before.
    messages: u64,
    /// Their sequences.
    seen: SeqSet,
    /// Tombstones before.
    removed: SeqSet,
}

impl Default for Cut {
    fn default() -> Self {
        Self {
            cause: Cause::Structure,
            at: 0,
            kept: 0,
            first: u64::MAX,
            messages: 0,
            seen: SeqSet::new(),
            removed: SeqSet::new(),
        }
    }
}

impl Cut {
    /// `None` where the whole block is accepted.
    fn find(
        bytes: &[u8],
        prover: &Prover,
        entry: Option<&BlockState>,
        scans: bool,
    ) -> Option<Self> {
        let mut cut = Self::default();
        let mut pos = 0usize;
        while let Some(rest) = bytes.get(pos..).filter(|r| !r.is_empty()) {
            let Some(r) = believable(rest, pos).filter(|r| r.proves(prover)) else {
                break;
            };
            pos = pos.saturating_add(r.raw.len());
            match r.kind {
                Kind::Tombstone => {
                    cut.removed.insert(r.seq);
                    continue;
                }
                Kind::Message => {
                    cut.messages = cut.messages.saturating_add(1);
                    cut.first = cut.first.min(r.seq);
                    cut.seen.insert(r.seq);
                }
                Kind::Skip | Kind::Erased => {}
            }
            cut.kept = cut.kept.max(r.seq);
        }
        cut.at = pos as u64;
        let indexed = |e: &BlockState| index_fits(bytes, e);
        if pos == bytes.len() {
            // Whole; but with an index that expects other sequences it is rebuilt when it is read, to no harm.
            return None;
        }
        if cut.messages == 0 && cut.kept == 0 {
            cut.kept = cut.removed.max().unwrap_or(0);
        }
        if !scans && entry.is_some_and(indexed) || scans && lengths_fit(bytes, pos) {
            cut.cause = Cause::Hash;
        }
        Some(cut)
    }
}

/// What a file system leaves where a write did not come to an end.
fn is_zero(bytes: &[u8], from: u64, to: u64) -> bool {
    let at = |n| usize::try_from(n).unwrap_or(usize::MAX);
    let range = bytes.get(at(from)..at(to));
    range.is_some_and(|r| r.iter().all(|b| *b == 0))
}

/// A record whose lengths a server accepts.
fn believable(rest: &[u8], pos: usize) -> Option<Record<'_>> {
    Record::decode(rest, pos as u64)
        .ok()
        .filter(|r| r.raw.len() <= SERVER_MAX_LEN)
}

fn lengths_fit(bytes: &[u8], from: usize) -> bool {
    let mut pos = from;
    while let Some(rest) = bytes.get(pos..).filter(|r| !r.is_empty()) {
        let Some(r) = believable(rest, pos) else {
            return false;
        };
        pos = pos.saturating_add(r.raw.len());
    }
    true
}

/// Whether a server that reads the block finds the sequences there that its index lists; hashes aside.
fn index_fits(bytes: &[u8], entry: &BlockState) -> bool {
    let (mut pos, mut first, mut last) = (0usize, 0u64, 0u64);
    while let Some(rest) = bytes.get(pos..).filter(|r| !r.is_empty()) {
        let Some(r) = believable(rest, pos) else {
            return false;
        };
        pos = pos.saturating_add(r.raw.len());
        if r.kind == Kind::Tombstone || r.seq <= last {
            continue;
        }
        if r.seq >= entry.first {
            last = r.seq;
            if first == 0 {
                first = last;
            }
            if r.kind == Kind::Erased && !entry.deleted.contains(r.seq) {
                return false;
            }
        }
    }
    first == entry.first && last == entry.last
}
