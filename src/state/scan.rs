//! Scanning blocks: to prove what `index.db` says, or to do what a server's start does without it.
//!
//! Blocks are scanned in parallel. Without an index they are merged **from the last to the first**:
//! a tombstone always lies in the block of the message it deletes or in a later one, so when a
//! block is merged all that concerns it is known, and one pass over the data is enough.
//!
//! The rules (server function in brackets, as of 2.14) are those of `rebuildStateFromBufLocked`
//! (one block), `recoverMsgs` (all blocks, tombstones) and `enforce*Limit`:
//!
//! * The first record with a sequence counts, later ones with the same or a lower one do not.
//! * A sequence missing between two records of a block is deleted.
//! * A skip or erased record uses its sequence up without a message.
//! * The highest tombstone of a block without messages keeps the stream's last sequence.
//! * `<n>.idx` of 2.2–2.9: if its checksum is that of the block's end it is the block's state;
//!   otherwise its first sequence and deletes still are where the scan starts from.

use super::subjects::{SubjectMap, hash, seed};
use super::{
    BlockState, Depth, Earlier, Origin, Plan, Progress, Seen, Stamp, StreamState, Survey, Totals,
    limits,
};
use crate::finding::{Code, Finding, Severity};
use crate::format::hash::HashKey;
use crate::format::idx::{self, Idx};
use crate::format::index_db::{IndexDb, SubjectEntry};
use crate::format::record::{BorderDoubt, Kind, OnDamage, Proof, Record, Step, scan};
use crate::format::seqset::SeqSet;
use crate::pipeline::{self, Threads};
use crate::source::Role;
use crate::source::archive::V2;
use crate::stream::meanwhile::{Missing, Removes, judge, removes};
use crate::stream::{BlockFile, Index, Loaded, Scratch, Stream};
use std::ops::ControlFlow;

/// Findings of one kind that are listed for one block; the rest is counted.
const LISTED: usize = 100;

/// One live message of a block, as the merge needs it.
#[derive(Debug, Clone, Copy)]
struct Row {
    seq: u64,
    ts: i64,
    len: u32,
    subject: u32,
}

const NO_SUBJECT: u32 = u32::MAX;

/// What is known of a block before it is scanned.
enum Known<'a> {
    Nothing,
    /// A stale `.idx`.
    Preset(&'a Idx),
    /// A current `.idx`, or the entry in a valid `index.db`.
    Exactly(&'a BlockState),
}

/// One block, scanned.
struct BlockScan {
    state: BlockState,
    rows: Vec<Row>,
    subjects: SubjectMap,
    /// The hashes of the live messages' subjects, added up.
    subject_sum: u64,
    tombstones: Vec<u64>,
    findings: Vec<Finding>,
    records: u64,
    file_len: u64,
    /// `state` is the block's by an index of its own.
    exact: bool,
}

/// Collects findings of one block, with a limit on each kind.
struct Findings<'a> {
    stream: &'a Stream,
    place: String,
    decoded: &'static str,
    list: Vec<Finding>,
    counts: Vec<(Code, usize)>,
}

impl<'a> Findings<'a> {
    fn new(stream: &'a Stream, n: u64) -> Self {
        Self {
            stream,
            place: stream.block_place(n),
            decoded: "",
            list: Vec::new(),
            counts: Vec::new(),
        }
    }

    fn admit(&mut self, code: Code) -> bool {
        match self.counts.iter_mut().find(|(c, _)| *c == code) {
            Some((_, n)) => {
                *n += 1;
                *n <= LISTED
            }
            None => {
                self.counts.push((code, 1));
                true
            }
        }
    }

    fn add(&mut self, code: Code, offset: u64, seq: Option<u64>, detail: impl FnOnce() -> String) {
        self.add_as(code, code.severity(), offset, seq, detail);
    }

    fn add_as(
        &mut self,
        code: Code,
        severity: Severity,
        offset: u64,
        seq: Option<u64>,
        detail: impl FnOnce() -> String,
    ) {
        if self.admit(code) {
            let mut f = Finding::new(code, format!("{}{}", detail(), self.decoded))
                .severity(severity)
                .stream(&self.stream.account, &self.stream.name)
                .file(self.place.clone())
                .offset(offset);
            f.seq = seq;
            self.list.push(f);
        }
    }

    fn finish(mut self) -> Vec<Finding> {
        for (code, n) in self.counts {
            if n > LISTED {
                self.list.push(
                    Finding::new(code, format!("{} more of these in this block", n - LISTED))
                        .stream(&self.stream.account, &self.stream.name)
                        .file(self.place.clone()),
                );
            }
        }
        self.list
    }
}

/// What the scan of a block is asked for.
#[derive(Clone, Copy)]
struct Ask<'a> {
    rows: bool,
    subjects: bool,
    /// The subjects that a valid `index.db` lists.
    listed: Option<&'a SubjectMap>,
    /// Only their sum, hashed with this seed.
    summed: Option<u64>,
    last_block: bool,
}

/// Scans the records of a loaded block.
fn scan_block(
    stream: &Stream,
    loaded: &mut Loaded<'_>,
    known: &Known<'_>,
    ask: Ask<'_>,
) -> BlockScan {
    let mut findings = Findings::new(stream, loaded.n);
    findings.list.append(&mut loaded.findings);
    findings.decoded = match (loaded.container.is_compressed(), loaded.encrypted) {
        (true, _) => " (offset in the decompressed block)",
        (false, _) => "",
    };
    let broken_container = findings.list.iter().any(|f| f.code == Code::Compression);
    let mut out = BlockScan {
        state: BlockState {
            n: loaded.n,
            ..BlockState::default()
        },
        rows: Vec::new(),
        subjects: SubjectMap::new(),
        subject_sum: 0,
        tombstones: Vec::new(),
        findings: Vec::new(),
        records: 0,
        file_len: loaded.file_len,
        exact: matches!(known, Known::Exactly(_)),
    };
    let s = &mut out.state;
    if let Known::Preset(idx) = known {
        s.first = idx.first_seq;
        s.first_ts = idx.first_ts;
        s.deleted = idx.deleted.clone();
    }
    // The server's `upd`: gaps between records are deletes.
    fn advance(s: &mut BlockState, seq: u64, ts: i64) {
        if seq <= s.last {
            return;
        }
        if s.last > 0 && s.msgs > 0 && seq - s.last > 1 {
            s.deleted.insert_range(s.last + 1, seq - 1);
        }
        s.last = seq;
        s.last_ts = ts;
    }
    let (mut max_tombstone, mut first_is_real): (Option<(u64, i64)>, bool) = (None, false);
    // In a block whose state is known: the last live sequence seen.
    let mut seen = 0u64;
    let prover = stream.prover(loaded.n);
    let mut visit = |r: &Record<'_>| {
        if let Some(doubt) = r.border_doubts() {
            let mended = r
                .better_header_len()
                .filter(|n| *n != r.headers.len() || !r.headers_fit);
            let (severity, detail) = match (doubt, mended) {
                (BorderDoubt::Headers(why), Some(n)) => (
                    Severity::Error,
                    format!("{why}; they would end well after {n} bytes"),
                ),
                (BorderDoubt::Headers(why), None) if !r.headers_fit => {
                    (Severity::Error, why.to_owned())
                }
                (d, _) => (Severity::Warning, d.reason().to_owned()),
            };
            findings.add_as(Code::RecordFields, severity, r.offset, Some(r.seq), || {
                detail
            });
        }
        match r.kind {
            Kind::Tombstone => {
                out.tombstones.push(r.seq);
                if max_tombstone.is_none_or(|(seq, _)| r.seq > seq) {
                    max_tombstone = Some((r.seq, r.ts));
                }
                return;
            }
            Kind::Skip | Kind::Erased => {
                if !out.exact && r.seq >= s.first {
                    advance(s, r.seq, r.ts);
                    if s.msgs == 0 {
                        s.first = r.seq.saturating_add(1);
                        s.first_ts = 0;
                    } else if r.seq != 0 {
                        s.deleted.insert(r.seq);
                    }
                }
                return;
            }
            Kind::Message => {}
        }
        let live = if let Known::Exactly(known) = known {
            let live = known.is_live(r.seq) && r.seq > seen;
            if live {
                seen = r.seq;
                s.msgs += 1;
                s.bytes = s.bytes.saturating_add(r.len());
            }
            live
        } else {
            if r.seq == 0 || r.seq < s.first {
                return;
            }
            if !first_is_real {
                s.first = r.seq;
                s.first_ts = r.ts;
                first_is_real = true;
            }
            if r.seq <= s.last {
                let last = s.last;
                findings.add(Code::RecordOrder, r.offset, Some(r.seq), || {
                    format!("after sequence {last}")
                });
                return;
            }
            let live = !s.deleted.contains(r.seq);
            if live {
                s.msgs += 1;
                s.bytes = s.bytes.saturating_add(r.len());
            }
            advance(s, r.seq, r.ts);
            live
        };
        if live && r.subject.is_empty() && stream.role == Role::Stream {
            findings.add(Code::RecordFields, r.offset, Some(r.seq), || {
                "a message without subject".into()
            });
        }
        if let Some(seed) = ask.summed.filter(|_| live && !r.subject.is_empty()) {
            out.subject_sum = out.subject_sum.wrapping_add(hash(seed, r.subject));
        }
        // The logs of raft groups have no subjects, and nothing counts them.
        let mut subject = NO_SUBJECT;
        if live && !r.subject.is_empty() && (ask.subjects || ask.listed.is_some()) {
            let id = out.subjects.id(r.subject);
            let count = out.subjects.value_of_mut(id);
            *count += 1;
            if *count == 1
                && let Some(listed) = ask.listed
                && listed.get(r.subject).is_none()
            {
                findings.add(Code::RecordFields, r.offset, Some(r.seq), || {
                    format!(
                        "subject {:?} is not one that index.db lists",
                        String::from_utf8_lossy(r.subject)
                    )
                });
            }
            subject = id;
        }
        if live && ask.rows {
            out.rows.push(Row {
                seq: r.seq,
                ts: r.ts,
                len: r.raw.len() as u32,
                subject,
            });
        }
    };
    let mut bad: Vec<(Code, u64, Option<u64>, String)> = Vec::new();
    let mut bad_count = 0u64;
    let mut records = 0u64;
    scan(
        loaded.bytes,
        0,
        &prover,
        OnDamage::Resync,
        |step| match step {
            Step::Record(r, Proof::Proven) => {
                records += 1;
                visit(&r);
            }
            Step::Record(r, Proof::HashMismatch) => {
                records += 1;
                bad_count += 1;
                if bad.len() < LISTED {
                    bad.push((
                        Code::RecordHash,
                        r.offset,
                        Some(r.seq),
                        format!(
                            "the hash of this {} does not match its {} bytes",
                            r.kind.as_str(),
                            r.raw.len()
                        ),
                    ));
                }
            }
            Step::Gap { from, to, torn } => {
                bad_count += 1;
                let code = match (torn && ask.last_block && !broken_container, from) {
                    (true, _) => Code::TornTail,
                    (false, _) => Code::RecordStructure,
                };
                if bad.len() < LISTED {
                    bad.push((
                        code,
                        from,
                        None,
                        format!(
                            "no record proves itself in the {} bytes up to {to}",
                            to - from
                        ),
                    ));
                }
            }
        },
    );
    out.records = records;
    let bad_listed = bad.len() as u64;
    for (code, offset, seq, detail) in bad {
        findings.add(code, offset, seq, || detail);
    }
    if bad_count > bad_listed {
        findings.add(Code::RecordHash, 0, None, || {
            format!(
                "{} more damaged places in this block",
                bad_count - bad_listed
            )
        });
    }
    if !out.exact && out.state.msgs == 0 {
        let s = &mut out.state;
        if s.first > 0 {
            s.last = s.first - 1;
        } else if let Some((seq, ts)) = max_tombstone {
            s.first = seq.saturating_add(1);
            s.first_ts = 0;
            if s.last == 0 {
                s.last = seq;
                s.last_ts = ts;
            }
        }
    }
    if let Known::Exactly(known) = known {
        missing_messages(loaded, known, &out.state, &prover, &mut findings);
        let counted = (out.state.msgs, out.state.bytes);
        out.state = BlockState {
            msgs: counted.0,
            bytes: counted.1,
            ..(*known).clone()
        };
    }
    out.findings = findings.finish();
    out
}

/// Names the messages that an index lists and that no proven record holds.
fn missing_messages(
    loaded: &Loaded<'_>,
    known: &BlockState,
    counted: &BlockState,
    prover: &crate::format::record::Prover,
    findings: &mut Findings<'_>,
) {
    if counted.msgs == known.msgs {
        if counted.bytes != known.bytes {
            findings.add(Code::IndexDisagrees, 0, None, || {
                format!(
                    "its messages have {} bytes, the index says {}",
                    counted.bytes, known.bytes
                )
            });
        }
        return;
    }
    let (mut present, mut damaged) = (SeqSet::new(), SeqSet::new());
    scan(loaded.bytes, 0, prover, OnDamage::Resync, |step| {
        if let Step::Record(r, proof) = step
            && r.kind == Kind::Message
            && known.is_live(r.seq)
        {
            let set = if proof == Proof::Proven {
                &mut present
            } else {
                &mut damaged
            };
            set.insert(r.seq);
        }
    });
    // Walk the complement run by run: a damaged index may claim any span.
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut total = 0u64;
    let mut note = |from: u64, to: u64| {
        let dead = known.deleted.count_range(from, to);
        let named = damaged.count_range(from, to);
        let lost = (to - from + 1).saturating_sub(dead).saturating_sub(named);
        if lost > 0 {
            total = total.saturating_add(lost);
            if runs.len() < 16 {
                runs.push((from, to));
            }
        }
    };
    let mut next = known.first.max(known.floor.saturating_add(1));
    for (from, to) in present.ranges() {
        if from > next {
            note(next, from - 1);
        }
        next = to.saturating_add(1);
    }
    if next <= known.last {
        note(next, known.last);
    }
    if total > 0 {
        let seq = runs.first().map(|r| r.0);
        findings.add(Code::MessagesMissing, 0, seq, || {
            format!(
                "{total} messages that the index lists are not in the block (within {})",
                ranges_text(&runs)
            )
        });
    } else if damaged.is_empty() {
        findings.add(Code::IndexDisagrees, 0, None, || {
            format!(
                "the block holds {} live messages, the index says {}",
                counted.msgs, known.msgs
            )
        });
    }
}

/// `3, 7-9, …` for messages.
pub fn ranges_text(runs: &[(u64, u64)]) -> String {
    let mut out = String::new();
    for (from, to) in runs {
        if !out.is_empty() {
            out.push_str(", ");
        }
        if from == to {
            out.push_str(&from.to_string())
        } else {
            out.push_str(&format!("{from}-{to}"))
        }
    }
    out
}

/// A block that could not be loaded.
fn unreadable(n: u64, len: u64, finding: Finding) -> BlockScan {
    BlockScan {
        state: BlockState {
            n,
            ..BlockState::default()
        },
        rows: Vec::new(),
        subjects: SubjectMap::new(),
        subject_sum: 0,
        tombstones: Vec::new(),
        findings: vec![finding],
        records: 0,
        file_len: len,
        exact: false,
    }
}

/// The subjects with their counts as one number, so that those of blocks can be added up.
fn subject_hash(subjects: &SubjectMap) -> u64 {
    let key = HashKey::new("subjects");
    let hash = |(subject, n): (&[u8], u64)| u64::from_le_bytes(key.sum(subject)).wrapping_mul(n);
    subjects.iter().map(hash).fold(0, u64::wrapping_add)
}

/// A block as a plan knows it.
enum Share {
    /// Scanned; to be noted with this stamp and hash of its subjects.
    Now(Box<BlockScan>, Option<(Stamp, u64)>),
    Before(Seen),
}

/// The blocks that a plan wants, each with a valid index's word on it.
struct Planned<'a> {
    stream: &'a Stream,
    plan: Option<&'a dyn Plan>,
    /// What is known from before does not count.
    anew: bool,
}

impl Planned<'_> {
    fn files(&self) -> Vec<&BlockFile> {
        let takes = |f: &&BlockFile| self.plan.is_none_or(|p| p.takes(f.n));
        self.stream.blocks.iter().filter(takes).collect()
    }

    fn share(
        &self,
        file: &BlockFile,
        known: Option<&BlockState>,
        scan: impl FnOnce() -> BlockScan,
    ) -> Share {
        let Some(plan) = self.plan else {
            return Share::Now(Box::new(scan()), None);
        };
        let stamp = match plan.earlier(file, known) {
            Earlier::Seen(seen) if !self.anew => return Share::Before(seen),
            Earlier::Unseen(stamp) => Some(stamp),
            Earlier::Seen(_) | Earlier::NotKept => None,
        };
        let scan = Box::new(scan());
        let kept = stamp.map(|stamp| (stamp, subject_hash(&scan.subjects)));
        Share::Now(scan, kept)
    }

    /// Notes what was scanned just now; gives its part in the summary.
    fn note(&self, n: u64, share: Share, totals: &mut Totals) -> (Seen, Option<Box<BlockScan>>) {
        let (seen, scan) = match share {
            Share::Before(seen) => (seen, None),
            Share::Now(mut scan, kept) => {
                let seen = Seen {
                    records: scan.records,
                    messages: scan.state.msgs,
                    last: scan.state.last,
                    bytes: scan.file_len,
                    subjects: kept.map_or(0, |(_, hash)| hash),
                    findings: std::mem::take(&mut scan.findings),
                };
                if let (Some(plan), Some((stamp, _))) = (self.plan, kept) {
                    plan.seen(n, stamp, &seen);
                }
                (seen, Some(scan))
            }
        };
        totals.blocks += 1;
        totals.records += seen.records;
        totals.messages += seen.messages;
        totals.file_bytes += seen.bytes;
        (seen, scan)
    }

    fn go_on(&self) -> ControlFlow<()> {
        self.plan.map_or(ControlFlow::Continue(()), Plan::go_on)
    }
}

/// From so many subjects on, maps of them take longer and more memory than all else: their hashes are added up first.
const SUMMED: u64 = 1 << 16;

/// Proves every record, and that the blocks hold what a valid `index.db` says.
pub(super) fn prove_against_index(
    stream: &Stream,
    db: &IndexDb,
    threads: &Threads,
    plan: Option<&dyn Plan>,
    progress: Progress<'_>,
) -> Survey {
    let mut planned = Planned {
        stream,
        plan,
        anew: false,
    };
    if plan.is_none() && db.num_subjects >= SUMMED {
        let state = StreamState::from_index(db, false);
        if let Ok(survey) = prove_planned(&planned, state, threads, progress) {
            return survey;
        }
        // Which of them disagree, only maps tell.
    }
    let state = StreamState::from_index(db, true);
    match prove_planned(&planned, state, threads, progress) {
        Ok(survey) => survey,
        // The subjects disagree, and only a pass over all blocks can tell which.
        Err(state) => {
            planned.anew = true;
            match prove_planned(&planned, state, threads, progress) {
                Ok(survey) => survey,
                Err(state) => Survey {
                    state,
                    findings: Vec::new(),
                    totals: Totals::default(),
                },
            }
        }
    }
}

/// `Err` where the subjects disagree, and it is not known which, because some blocks were not read now.
fn prove_planned(
    planned: &Planned<'_>,
    state: StreamState,
    threads: &Threads,
    progress: Progress<'_>,
) -> Result<Survey, StreamState> {
    let stream = planned.stream;
    let is_whole = planned.plan.is_none_or(Plan::is_whole);
    let files = planned.files();
    let mut totals = Totals::default();
    let mut findings = Vec::new();
    let listed = state.subjects.as_ref();
    let summed = listed.is_none().then(seed);
    let mut counted = SubjectMap::new();
    let mut sum = 0u64;
    let (mut readable, mut all_now, mut seen_sum) = (true, true, 0u64);
    let last = stream.blocks.last().map(|b| b.n);
    let empty = BlockState::default();
    pipeline::ordered(
        stream.readers(threads),
        files.len(),
        Scratch::default,
        |i, scratch| {
            let file = *files.get(i)?;
            let known = state.block(file.n).unwrap_or(&empty);
            let ask = Ask {
                rows: false,
                subjects: summed.is_none(),
                listed,
                summed,
                last_block: Some(file.n) == last,
            };
            let share = planned.share(file, Some(known), || {
                stream.will_load(files.get(i + threads.count()).copied());
                match stream.load(file, scratch) {
                    Ok(mut loaded) => scan_block(stream, &mut loaded, &Known::Exactly(known), ask),
                    Err(f) => unreadable(file.n, file.len, *f),
                }
            });
            progress(match &share {
                Share::Now(scan, _) => scan.file_len,
                Share::Before(seen) => seen.bytes,
            });
            Some((file.n, share))
        },
        |_, result| {
            let Some((n, share)) = result else {
                return ControlFlow::Break(());
            };
            let (mut seen, scan) = planned.note(n, share, &mut totals);
            seen_sum = seen_sum.wrapping_add(seen.subjects);
            findings.append(&mut seen.findings);
            match scan {
                Some(scan) => {
                    readable &= scan.exact;
                    sum = sum.wrapping_add(scan.subject_sum);
                    for (subject, n) in scan.subjects.iter() {
                        *counted.value_mut(subject) += n;
                    }
                }
                None => all_now = false,
            }
            planned.go_on()
        },
    );
    for file in files {
        if state.block(file.n).is_none() && file.len > 0 {
            findings.push(
                Finding::new(
                    Code::Leftover,
                    "a block that index.db does not list: servers ignore it",
                )
                .stream(&stream.account, &stream.name)
                .file(stream.block_place(file.n)),
            );
        }
    }
    let damaged = findings.iter().any(|f| f.severity == Severity::Error) || !readable;
    if let (Some(seed), Index::Valid(db)) = (summed, &stream.index) {
        let of = |s: SubjectEntry<'_>| hash(seed, s.subject).wrapping_mul(s.total);
        let said = db.subjects.iter().map(of).fold(0, u64::wrapping_add);
        if planned.go_on().is_continue() && (damaged || said != sum) {
            return Err(state);
        }
    }
    if let (Some(listed), false, false) = (listed, damaged, all_now)
        && is_whole
        && planned.go_on().is_continue()
        && subject_hash(listed) != seen_sum
    {
        return Err(state);
    }
    if let (Some(listed), false, true) = (listed, damaged, all_now && is_whole) {
        let place = stream.place(&stream.msgs_dir().join("index.db"));
        let mut wrong = 0u64;
        let mut compare = |subject: &[u8], index: u64, blocks: u64| {
            if index == blocks {
                return;
            }
            wrong += 1;
            if wrong <= LISTED as u64 {
                findings.push(
                    Finding::new(
                        Code::IndexDisagrees,
                        format!("subject {:?}: index.db says {index} messages, the blocks hold {blocks}", String::from_utf8_lossy(subject)),
                    )
                    .stream(&stream.account, &stream.name)
                    .file(place.clone()),
                );
            }
        };
        for (subject, n) in listed.iter() {
            compare(subject, n, counted.get(subject).unwrap_or(0));
        }
        for (subject, n) in counted.iter() {
            if listed.get(subject).is_none() {
                compare(subject, 0, n);
            }
        }
    }
    Ok(Survey {
        state,
        findings,
        totals,
    })
}

/// Proves every record of some blocks, each by itself: there is no valid `index.db`, and nothing is said of the stream.
pub(super) fn prove_alone(
    stream: &Stream,
    threads: &Threads,
    plan: &dyn Plan,
    progress: Progress<'_>,
) -> Survey {
    let planned = Planned {
        stream,
        plan: Some(plan),
        anew: false,
    };
    let files = planned.files();
    let mut totals = Totals::default();
    let (mut findings, mut blocks) = (Vec::new(), Vec::new());
    let last = stream.blocks.last().map(|b| b.n);
    pipeline::ordered(
        stream.readers(threads),
        files.len(),
        Scratch::default,
        |i, scratch| {
            let file = *files.get(i)?;
            let ask = Ask {
                rows: false,
                subjects: false,
                listed: None,
                summed: None,
                last_block: Some(file.n) == last,
            };
            let share = planned.share(file, None, || {
                stream.will_load(files.get(i + threads.count()).copied());
                scan_alone(stream, file, scratch, ask)
            });
            progress(file.len);
            Some((file.n, share))
        },
        |_, result| {
            let Some((n, share)) = result else {
                return ControlFlow::Break(());
            };
            let (mut seen, _) = planned.note(n, share, &mut totals);
            findings.append(&mut seen.findings);
            blocks.push(BlockState {
                n,
                last: seen.last,
                ..BlockState::default()
            });
            planned.go_on()
        },
    );
    Survey {
        state: combine(blocks, SubjectMap::new()),
        findings,
        totals,
    }
}

/// Reads `<n>.idx`, where there is one.
fn read_idx(stream: &Stream, file: &BlockFile) -> Option<Idx> {
    if !file.idx {
        return None;
    }
    let raw = stream.read_idx(file.n)?;
    idx::decode(&raw, 0).ok()
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    bytes.last_chunk::<8>().copied().unwrap_or_default()
}

/// Scans one block without an `index.db`.
fn scan_alone(stream: &Stream, file: &BlockFile, scratch: &mut Scratch, ask: Ask<'_>) -> BlockScan {
    let idx = read_idx(stream, file);
    let mut loaded = match stream.load(file, scratch) {
        Ok(loaded) => loaded,
        Err(f) => return unreadable(file.n, file.len, *f),
    };
    match &idx {
        Some(idx) if idx.last_checksum == checksum(loaded.bytes) => {
            let exact = BlockState {
                n: file.n,
                first: idx.first_seq,
                first_ts: idx.first_ts,
                last: idx.last_seq,
                last_ts: idx.last_ts,
                msgs: idx.msgs,
                bytes: idx.bytes,
                deleted: idx.deleted.clone(),
                floor: 0,
            };
            scan_block(stream, &mut loaded, &Known::Exactly(&exact), ask)
        }
        Some(idx) => scan_block(stream, &mut loaded, &Known::Preset(idx), ask),
        None => scan_block(stream, &mut loaded, &Known::Nothing, ask),
    }
}

/// Takes away what tombstones delete. `dead` holds those of this and all later blocks.
fn apply_tombstones(scan: &mut BlockScan, dead: &SeqSet) {
    let s = &mut scan.state;
    if !dead.is_empty() && s.msgs > 0 {
        for row in &scan.rows {
            if !dead.contains(row.seq) {
                continue;
            }
            s.msgs = s.msgs.saturating_sub(1);
            s.bytes = s.bytes.saturating_sub(u64::from(row.len));
            s.deleted.insert(row.seq);
            if row.subject != NO_SUBJECT {
                let n = scan.subjects.value_of_mut(row.subject);
                *n = n.saturating_sub(1);
            }
        }
    }
    // The head moves to the first message that is left.
    if let Some(head) = scan.rows.iter().find(|r| !s.deleted.contains(r.seq)) {
        if head.seq > s.first {
            s.first = head.seq;
            s.first_ts = head.ts;
            s.deleted.remove_below(head.seq);
        }
    } else if !scan.rows.is_empty() {
        s.first = s.last.saturating_add(1);
        s.first_ts = 0;
        s.deleted = SeqSet::new();
    }
}

/// What an `index.db` that the server rejects says is deleted. The server does not listen to it, salvage does:
/// what was deleted once stays so.
fn witnessed(stream: &Stream) -> SeqSet {
    let mut dead = SeqSet::new();
    if let Index::Rejected {
        prior: Some(prior), ..
    } = &stream.index
        && stream.mends.witness
        && prior.last_seq > 0
    {
        // What lies between its blocks it does not know: a server that has cut a block wrote it anew.
        if prior.first_seq > 1 {
            dead.insert_range(1, prior.first_seq - 1);
        }
        for b in prior.blocks.iter().filter(|b| b.msgs() > 0) {
            dead.union_with(&b.deleted);
        }
    }
    dead
}

/// What a server's start makes of the blocks alone.
pub(super) fn rebuild(
    stream: &Stream,
    threads: &Threads,
    depth: Depth,
    plan: Option<&dyn Plan>,
    progress: Progress<'_>,
) -> Survey {
    let mut totals = Totals::default();
    let mut findings: Vec<Vec<Finding>> = Vec::new();
    let mut blocks: Vec<BlockState> = Vec::new();
    let mut counted = SubjectMap::new();
    let mut dead = witnessed(stream);
    let last = stream.blocks.last().map(|b| b.n);
    let has_subjects = stream.role == Role::Stream;
    pipeline::ordered(
        stream.readers(threads),
        stream.blocks.len(),
        Scratch::default,
        |i, scratch| {
            let file = stream.blocks.iter().rev().nth(i)?;
            let ask = Ask {
                rows: true,
                subjects: has_subjects,
                listed: None,
                summed: None,
                last_block: Some(file.n) == last,
            };
            stream.will_load(stream.blocks.iter().rev().nth(i + threads.count()));
            let result = scan_alone(stream, file, scratch, ask);
            progress(result.file_len);
            Some(result)
        },
        |_, result| {
            let Some(mut scan) = result else {
                return ControlFlow::Break(());
            };
            totals.blocks += 1;
            totals.records += scan.records;
            totals.file_bytes += scan.file_len;
            for seq in &scan.tombstones {
                dead.insert(*seq);
            }
            apply_tombstones(&mut scan, &dead);
            for (subject, n) in scan.subjects.iter() {
                if n > 0 {
                    *counted.value_mut(subject) += n;
                }
            }
            findings.push(std::mem::take(&mut scan.findings));
            blocks.push(scan.state);
            plan.map_or(ControlFlow::Continue(()), Plan::go_on)
        },
    );
    blocks.reverse();
    findings.reverse();
    let mut findings: Vec<Finding> = findings.into_iter().flatten().collect();
    overlaps(stream, &blocks, &mut findings);
    let mut state = combine(blocks, counted);
    if let Index::Rejected {
        prior: Some(prior), ..
    } = &stream.index
        && prior.last_seq > state.last_seq
    {
        state.last_seq = prior.last_seq;
        state.last_ts = prior.last_ts;
        if state.msgs == 0 {
            state.first_seq = state.last_seq.saturating_add(1);
        }
    }
    limits::enforce(stream, &mut state);
    state.num_subjects =
        has_subjects.then(|| state.subjects.as_ref().map_or(0, SubjectMap::count_live));
    if !depth.subjects {
        state.subjects = None;
    }
    Survey {
        state,
        findings,
        totals,
    }
}

fn overlaps(stream: &Stream, blocks: &[BlockState], findings: &mut Vec<Finding>) {
    let mut last = 0u64;
    for b in blocks.iter().filter(|b| b.msgs > 0) {
        if b.first <= last {
            findings.push(
                Finding::new(
                    Code::BlockOverlap,
                    format!("starts at {}, a lower block reaches {last}", b.first),
                )
                .stream(&stream.account, &stream.name)
                .file(stream.block_place(b.n))
                .seq(b.first),
            );
        }
        last = last.max(b.last);
    }
}

/// Puts the blocks' states together, in their order.
fn combine(blocks: Vec<BlockState>, subjects: SubjectMap) -> StreamState {
    let mut s = StreamState {
        origin: Origin::Scan,
        msgs: 0,
        bytes: 0,
        first_seq: 0,
        first_ts: 0,
        last_seq: 0,
        last_ts: 0,
        num_subjects: None,
        subjects: Some(subjects),
        blocks: Vec::new(),
    };
    for b in &blocks {
        // Neither a record nor a tombstone: the server drops the block.
        if b.first == 0 && b.last == 0 {
            continue;
        }
        if s.msgs == 0 {
            (s.first_seq, s.first_ts) = (0, 0);
        }
        if s.first_seq == 0 || (b.first < s.first_seq && b.first_ts != 0) {
            s.first_seq = b.first;
            s.first_ts = b.first_ts;
        }
        if b.last >= s.last_seq {
            s.last_seq = b.last;
            s.last_ts = b.last_ts;
        }
        s.msgs += b.msgs;
        s.bytes = s.bytes.saturating_add(b.bytes);
    }
    if s.msgs == 0 {
        s.first_seq = if s.last_seq > 0 {
            s.last_seq.saturating_add(1)
        } else {
            s.first_seq
        };
        s.first_ts = 0;
    }
    s.blocks = blocks;
    s.set_floors();
    s
}

/// What `state.json` or `backup.json` says.
pub(super) fn claimed(claimed: &crate::format::backup_json::StreamState) -> StreamState {
    StreamState {
        origin: Origin::Claimed,
        msgs: claimed.messages,
        bytes: claimed.bytes,
        first_seq: claimed.first_seq,
        first_ts: claimed.first_ns(),
        last_seq: claimed.last_seq,
        last_ts: claimed.last_ns(),
        num_subjects: claimed.num_subjects,
        subjects: None,
        blocks: Vec::new(),
    }
}

/// A server leaves out of NATSARC1 what it cannot read, its hash being wrong, and says nothing: the count alone tells.
/// What is removed from the stream meanwhile is left out as well.
fn left_out(
    stream: &Stream,
    claimed: &StreamState,
    live: &BlockState,
    missing: u64,
    finding: Finding,
) -> Finding {
    let held = if live.msgs > 0 {
        live.first
    } else {
        claimed.last_seq.saturating_add(1)
    };
    let front = held.saturating_sub(claimed.first_seq);
    // A lone archive does not tell what its stream removes.
    let removes = stream.meta.as_ref().map_or(Removes::Nothing, |m| {
        removes(m, claimed.msgs, claimed.bytes)
    });
    let (severity, action) = match judge(removes, missing, front) {
        Missing::Lost => return finding,
        Missing::Trimmed => (
            Severity::Note,
            "the oldest are missing, as if limits had removed them while the backup was made; if nobody used the stream then, the server could not read them: check its store",
        ),
        Missing::Removed => (
            Severity::Warning,
            "in a stream that was in use they may have been removed while the backup was made; if nobody used it, the server could not read them: check its store",
        ),
    };
    finding.severity(severity).action(action)
}

/// The state of a NATSARC1 archive: what it holds, compared with what it says of itself.
pub(super) fn survey_entries(
    stream: &Stream,
    v2: &V2,
    threads: &Threads,
    depth: Depth,
    plan: Option<&dyn Plan>,
    progress: Progress<'_>,
) -> Survey {
    let mut state = StreamState {
        origin: Origin::Archive,
        ..claimed(v2.state())
    };
    let mut totals = Totals::default();
    let mut findings = Vec::new();
    // What is deleted is told by gaps alone, so the entries have to be read.
    let mut live = BlockState::default();
    let mut subjects = SubjectMap::new();
    let place = stream.place(std::path::Path::new(""));
    let named = |f: Finding| f.stream(&stream.account, &stream.name).file(place.clone());
    let mut doubts = 0usize;
    let end = v2.visit(threads, &mut |m| {
        totals.records += 1;
        let body = (m.headers.len() as u64).saturating_add(m.payload.len() as u64);
        if body > totals.largest.1 {
            totals.largest = (m.seq, body);
        }
        if live.msgs == 0 {
            live.first = m.seq;
            live.first_ts = m.ts;
        } else if m.seq > live.last.saturating_add(1) {
            live.deleted.insert_range(live.last + 1, m.seq - 1);
        }
        live.msgs += 1;
        live.last = m.seq;
        live.last_ts = m.ts;
        let len =
            crate::format::record::encoded_len(m.subject.len(), m.headers.len(), m.payload.len());
        live.bytes = live.bytes.saturating_add(len);
        *subjects.value_mut(m.subject) += 1;
        if depth.prove
            && doubts < LISTED
            && let Some(why) = crate::format::record::subject_doubt(m.subject)
        {
            doubts += 1;
            findings.push(named(
                Finding::new(Code::RecordFields, why)
                    .severity(Severity::Warning)
                    .offset(m.offset)
                    .seq(m.seq),
            ));
        }
        plan.map_or(ControlFlow::Continue(()), Plan::go_on)
    });
    let complete = end.as_ref().is_ok_and(|end| end.complete);
    match end {
        Ok(end) => findings.extend(end.findings.into_iter().map(&named)),
        Err(e) => findings.push(named(Finding::new(e.code(), e.to_string()))),
    }
    progress(0);
    totals.blocks = 1;
    if live.msgs != state.msgs {
        let finding = Finding::new(
            Code::ArchiveIncomplete,
            format!(
                "state.json says {} messages, the archive holds {}",
                state.msgs, live.msgs
            ),
        );
        findings.push(named(match state.msgs.checked_sub(live.msgs) {
            Some(missing) if complete => left_out(stream, &state, &live, missing, finding),
            // Where the archive ends early or is damaged, that is why; more than there were no server writes.
            _ => finding.action("the archive is not what the server wrote; take another backup"),
        }));
        state.msgs = live.msgs;
    }
    if live.msgs > 0 && (live.first < state.first_seq || live.last > state.last_seq) {
        findings.push(named(Finding::new(
            Code::ArchiveIncomplete,
            format!(
                "state.json says sequences {} to {}, the archive holds {} to {}",
                state.first_seq, state.last_seq, live.first, live.last
            ),
        )));
    }
    // The archive's own byte count may be 0.
    state.bytes = live.bytes;
    state.num_subjects = Some(subjects.len() as u64);
    if depth.subjects {
        state.subjects = Some(subjects);
    }
    state.blocks = vec![live];
    Survey {
        state,
        findings,
        totals,
    }
}
