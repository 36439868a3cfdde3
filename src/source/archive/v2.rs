//! A NATSARC1 archive: the stream's state, its consumers, then message after message.
//!
//! It can only be read from its start, and nothing but the S2 frames' checksums proves it. Frames
//! are decoded in parallel; entries are taken from them in order. Where a frame is damaged the
//! messages in it are lost; reading goes on where entries make sense again.

use super::{ArchiveError, Container, Notes};
use crate::finding::{Code, Finding, Severity};
use crate::format::FaultKind;
use crate::format::archive_v2::{self, Header, MAX_NAME};
use crate::format::backup_json::StreamState;
use crate::format::o_dat::ConsumerState;
use crate::pipeline::{Threads, ordered};
use crate::source::limit::Limit;
use serde_json::{Map, Value};
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, PoisonError};

/// Longest headers and payload together; servers store up to 32 MiB, in memory up to 64.
const MAX_BODY: u64 = 64 << 20;
/// Longest JSON of one entry.
const MAX_JSON: u64 = 8 << 20;
/// What all consumers may take in memory, by a guess from their JSON.
const MAX_CONSUMERS: u64 = 64 << 20;
/// Five integers of ten bytes.
const MAX_HEADER: usize = 50;
/// Decoded bytes that are handed out at a time, and in how many pieces.
const BATCH: u64 = 32 << 20;
const PIECES: usize = 64;
/// How much is gathered before looking for an entry in it.
const SEARCH: usize = 2 << 20;
/// The end of what was gathered, in which an entry may begin that goes on after it.
const SEARCH_TAIL: usize = 64 << 10;
const HOUR: i64 = 3_600_000_000_000;
/// 2015-01-01, before any stream.
const EARLIEST: i64 = 1_420_070_400_000_000_000;

/// A consumer in the archive.
#[derive(Debug, Clone)]
pub struct V2Consumer {
    /// Its name.
    pub name: String,
    /// `ConsumerConfig`, as it is there.
    pub config: Map<String, Value>,
    /// Its state.
    pub state: ConsumerState,
}

/// A message in the archive.
#[derive(Debug, Clone, Copy)]
pub struct V2Message<'a> {
    /// Stream sequence.
    pub seq: u64,
    /// When it was stored, ns since the epoch.
    pub ts: i64,
    /// Subject.
    pub subject: &'a [u8],
    /// Header block.
    pub headers: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
    /// Where its entry begins in the decoded stream.
    pub offset: u64,
}

/// How reading the messages ended.
#[derive(Debug, Clone, Default)]
pub struct V2End {
    /// Messages handed out.
    pub messages: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Everything up to the end marker was read and proven.
    pub complete: bool,
}

/// A NATSARC1 archive.
#[derive(Debug)]
pub struct V2 {
    container: Container,
    state: StreamState,
    consumers: Vec<V2Consumer>,
    findings: Vec<Finding>,
    /// Where messages begin.
    first: u64,
    /// When the backup was made.
    made: i64,
    /// Entries before `first` are damaged, so that it is not sure where one begins.
    lost: bool,
}

/// An entry before the messages.
enum Early {
    Entry {
        header: Header,
        name: String,
        body: Vec<u8>,
        next: u64,
    },
    /// JSON too long to be read.
    Long {
        name: String,
        len: u64,
        next: u64,
    },
    /// A message or the end.
    Messages,
    Cut,
    Bad(String),
}

impl V2 {
    pub(super) fn open(container: Container) -> Result<Self, ArchiveError> {
        let findings = match &container {
            Container::S2(frames) => frames.findings.clone(),
            _ => vec![Finding::new(
                Code::RestoreHint,
                "a bare NATSARC1 archive: servers restore it only within an S2 stream (restore it with jetsam, or make a backup of it)",
            )],
        };
        let mut v2 = Self {
            container,
            state: StreamState::default(),
            consumers: Vec::new(),
            findings,
            first: archive_v2::MAGIC.len() as u64,
            made: 0,
            lost: false,
        };
        let mut notes = Notes::default();
        v2.entries(&mut notes)?;
        v2.findings.extend(notes.into_findings());
        Ok(v2)
    }

    fn entries(&mut self, notes: &mut Notes) -> Result<(), ArchiveError> {
        let mut at = self.first;
        let mut total = 0u64;
        let mut count = 0i64;
        let mut seen_state = false;
        loop {
            match self.early(at)? {
                Early::Messages => {
                    self.first = at;
                    if !seen_state {
                        notes.add("state.json", || {
                            Finding::new(Code::ArchiveDamaged, "no state.json at the start")
                        });
                    } else if count != self.state.consumer_count {
                        let detail = format!(
                            "state.json announces {} consumers, {count} are there",
                            self.state.consumer_count
                        );
                        notes.add("consumers", || Finding::new(Code::ArchiveDamaged, detail));
                    }
                    return Ok(());
                }
                Early::Cut => {
                    self.first = at;
                    // Said once more, and better, when the messages are read.
                    return Ok(());
                }
                Early::Bad(why) => {
                    self.first = at;
                    self.lost = true;
                    let detail = format!(
                        "damaged before the first message (at {at} of the decoded stream): {why}; consumers may be missing"
                    );
                    notes.add("start", || {
                        self.container
                            .locate(Finding::new(Code::ArchiveDamaged, detail), at)
                    });
                    return Ok(());
                }
                Early::Long { name, len, next } => {
                    count = count.saturating_add(1);
                    let detail = format!(
                        "{name}: {len} bytes of JSON, over the ceiling of {MAX_JSON}; not read"
                    );
                    notes.add("JSON", || Finding::new(Code::TooLarge, detail));
                    at = next;
                }
                Early::Entry {
                    header,
                    name,
                    body,
                    next,
                } => {
                    total = total
                        .saturating_add(body.len() as u64 * 4)
                        .saturating_add(512);
                    if total > MAX_CONSUMERS {
                        count = count.saturating_add(1);
                        notes.add("JSON", || {
                            Finding::new(
                                Code::TooLarge,
                                "more consumers than any stream has; the rest was not read",
                            )
                        });
                    } else if !seen_state && name == archive_v2::STATE {
                        self.made = header.timestamp;
                        match serde_json::from_slice(&body) {
                            Ok(state) => self.state = state,
                            Err(e) => notes.add("state.json", || {
                                Finding::new(Code::ArchiveDamaged, format!("state.json: {e}"))
                            }),
                        }
                    } else if let Some(consumer) = name.strip_prefix(archive_v2::CONSUMERS) {
                        count = count.saturating_add(1);
                        match consumer_of(consumer, &body) {
                            Ok(c) => self.consumers.push(c),
                            Err(why) => notes.add("consumer", || {
                                Finding::new(Code::ConsumerState, why)
                                    .consumer(consumer)
                                    .action("servers refuse to restore this archive")
                            }),
                        }
                    } else if name == archive_v2::CONSUMERS.trim_end_matches('/') {
                        count = count.saturating_add(1);
                        notes.add("no name", || {
                            Finding::new(
                                Code::ArchiveMember,
                                "a consumer without a name, as clusters of 2.15.0 write ephemeral ones; left out",
                            )
                            .action("servers refuse to restore this archive; make another with `jetsam backup`")
                        });
                    } else {
                        notes.add("entry", || {
                            let name: String = name
                                .chars()
                                .take(100)
                                .flat_map(char::escape_debug)
                                .collect();
                            Finding::new(
                                Code::ArchiveMember,
                                format!("an unexpected entry: {name}"),
                            )
                        });
                    }
                    seen_state = true;
                    at = next;
                }
            }
        }
    }

    /// Reads the entry at `at`, unless it is a message.
    fn early(&self, at: u64) -> Result<Early, ArchiveError> {
        let mut bad = None;
        let mut head = [0; MAX_HEADER];
        let n = self
            .container
            .read(at, &mut head, &mut |_, why| bad = Some(why))?;
        if let Some(why) = bad {
            return Ok(Early::Bad(why));
        }
        let (header, taken) = match archive_v2::header(head.get(..n).unwrap_or_default(), at) {
            Ok(h) => h,
            Err(f) if matches!(f.kind, FaultKind::Truncated { .. }) => return Ok(Early::Cut),
            Err(f) => return Ok(Early::Bad(f.kind.to_string())),
        };
        if header.sequence != 0 || header == Header::default() {
            return Ok(Early::Messages);
        }
        let body_at = at.saturating_add(taken as u64).saturating_add(header.name);
        let len = header.headers.saturating_add(header.payload);
        let next = body_at.checked_add(len).filter(|_| header.name <= MAX_NAME);
        let Some(next) = next.filter(|next| *next < 1 << 62) else {
            return Ok(Early::Bad("an impossible length".to_owned()));
        };
        if self.container.end().is_some_and(|end| next > end) {
            return Ok(Early::Cut);
        }
        let read = |at, len| -> Result<Result<Vec<u8>, String>, ArchiveError> {
            let mut bad = None;
            let mut out = vec![0; usize::try_from(len).unwrap_or(0)];
            self.container
                .read(at, &mut out, &mut |_, why| bad = Some(why))?;
            Ok(bad.map_or(Ok(out), Err))
        };
        let name = match read(at.saturating_add(taken as u64), header.name)? {
            Ok(name) => String::from_utf8_lossy(&name).into_owned(),
            Err(why) => return Ok(Early::Bad(why)),
        };
        if len > MAX_JSON {
            return Ok(Early::Long { name, len, next });
        }
        Ok(match read(body_at, len)? {
            Ok(body) => Early::Entry {
                header,
                name,
                body,
                next,
            },
            Err(why) => Early::Bad(why),
        })
    }

    /// What was noticed before the messages.
    pub fn findings(&self) -> Vec<Finding> {
        self.findings.clone()
    }

    /// Length of the archive file.
    pub fn file_len(&self) -> u64 {
        self.container.file_len()
    }

    /// What reading it is limited by.
    pub fn limit(&self) -> Option<Arc<Limit>> {
        self.container.limit()
    }

    /// `state.json`.
    pub fn state(&self) -> &StreamState {
        &self.state
    }

    /// The consumers.
    pub fn consumers(&self) -> &[V2Consumer] {
        &self.consumers
    }

    /// Reads the messages once, in order. `sink` ends it early by `Break`.
    pub fn visit(
        &self,
        threads: &Threads,
        sink: &mut dyn FnMut(V2Message<'_>) -> ControlFlow<()>,
    ) -> Result<V2End, ArchiveError> {
        let end = self.container.end().unwrap_or(0);
        let mut parser = Parser::new(self, end, sink);
        let pool: Mutex<Vec<Vec<u8>>> = Mutex::default();
        let lock = || pool.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = self.first;
        while at < end && !parser.stop {
            let mut pieces: Vec<Range<u64>> = Vec::new();
            let from = at;
            while at < end && pieces.len() < PIECES && at.saturating_sub(from) < BATCH {
                let next = self
                    .container
                    .segment_end(at)
                    .clamp(at.saturating_add(1), end);
                pieces.push(at..next);
                at = next;
            }
            ordered(
                threads,
                pieces.len(),
                || (),
                |i, ()| {
                    let piece = pieces.get(i).cloned().unwrap_or_default();
                    let mut buf = lock().pop().unwrap_or_default();
                    let len = piece.end.saturating_sub(piece.start);
                    buf.resize(usize::try_from(len).unwrap_or(0), 0);
                    let mut bad = Vec::new();
                    let read = self
                        .container
                        .read(piece.start, &mut buf, &mut |range, why| {
                            bad.push((range, why));
                        });
                    match read {
                        Ok(n) if n < buf.len() => {
                            let start = piece.start.saturating_add(n as u64);
                            bad.push((start..piece.end, "it ends early".to_owned()));
                        }
                        Ok(_) => {}
                        Err(e) => bad = vec![(piece.clone(), format!("cannot be read: {e}"))],
                    }
                    (piece.start, buf, bad)
                },
                |_, (start, buf, bad)| {
                    parser.piece(start, &buf, &bad);
                    lock().push(buf);
                    if parser.stop {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                },
            );
        }
        Ok(parser.finish())
    }
}

fn consumer_of(name: &str, body: &[u8]) -> Result<V2Consumer, String> {
    let (config, state) = archive_v2::consumer(body).map_err(|f| f.kind.to_string())?;
    // The configuration's own name wins in a restore.
    let own = ["name", "durable_name"]
        .iter()
        .find_map(|k| config.get(*k)?.as_str().filter(|n| !n.is_empty()));
    Ok(V2Consumer {
        name: own.unwrap_or(name).to_owned(),
        config,
        state,
    })
}

/// What came of looking at an entry.
enum Parsed {
    /// So many bytes of it have to be there.
    Need(usize),
    /// It took so many.
    Took(usize),
    /// It is left out, and so long.
    Pass(u64),
    /// The end marker, of so many bytes.
    End(usize),
    Bad(&'static str),
}

struct Parser<'a> {
    archive: &'a V2,
    end: u64,
    sink: &'a mut dyn FnMut(V2Message<'_>) -> ControlFlow<()>,
    /// An entry that began and is not complete, or what is searched; and where it begins.
    carry: Vec<u8>,
    carry_at: u64,
    /// Bytes to pass over.
    skip: u64,
    searching: bool,
    last_seq: u64,
    last_ts: i64,
    messages: u64,
    damaged: bool,
    ended: Option<u64>,
    /// No more is wanted.
    stop: bool,
    notes: Notes,
}

impl<'a> Parser<'a> {
    fn new(
        archive: &'a V2,
        end: u64,
        sink: &'a mut dyn FnMut(V2Message<'_>) -> ControlFlow<()>,
    ) -> Self {
        Self {
            archive,
            end,
            sink,
            carry: Vec::new(),
            carry_at: archive.first,
            skip: 0,
            searching: archive.lost,
            last_seq: 0,
            last_ts: EARLIEST,
            messages: 0,
            damaged: archive.lost,
            ended: None,
            stop: false,
            notes: Notes::default(),
        }
    }

    /// Takes a piece of the decoded stream, of which some ranges are not proven.
    fn piece(&mut self, start: u64, bytes: &[u8], bad: &[(Range<u64>, String)]) {
        let end = start.saturating_add(bytes.len() as u64);
        let part = |from: u64, to: u64| {
            let from = usize::try_from(from.saturating_sub(start)).unwrap_or(usize::MAX);
            let to = usize::try_from(to.saturating_sub(start)).unwrap_or(usize::MAX);
            bytes.get(from..to).unwrap_or_default()
        };
        let mut at = start;
        for (range, why) in bad {
            self.feed(at, part(at, range.start));
            self.gap(range, why);
            at = range.end;
        }
        self.feed(at, part(at, end));
    }

    fn note(&mut self, kind: &'static str, code: Code, at: u64, seq: u64, detail: String) {
        let container = &self.archive.container;
        self.notes.add(kind, || {
            let finding = container.locate(Finding::new(code, detail), at);
            if seq > 0 { finding.seq(seq) } else { finding }
        });
    }

    fn gap(&mut self, range: &Range<u64>, why: &str) {
        if self.stop {
            return;
        }
        self.damaged = true;
        let detail = format!(
            "{why}; messages there are lost ({} bytes of the decoded stream)",
            range.end.saturating_sub(range.start)
        );
        self.note("damage", Code::ArchiveDamaged, range.start, 0, detail);
        if self.searching {
            self.search(true);
            // What was found may go on in the gap.
        }
        let known = if self.skip > 0 {
            Some(range.start.saturating_add(self.skip))
        } else if self.searching || self.carry.is_empty() {
            None
        } else {
            self.entry_end()
        };
        self.carry.clear();
        self.skip = 0;
        match known.and_then(|end| end.checked_sub(range.end)) {
            Some(rest) => self.skip = rest,
            None => {
                self.searching = true;
                self.carry_at = range.end;
            }
        }
    }

    /// Where the entry that was begun ends, if that much is known of it.
    fn entry_end(&self) -> Option<u64> {
        let (header, n) = archive_v2::header(&self.carry, self.carry_at).ok()?;
        let len = [header.name, header.headers, header.payload]
            .iter()
            .try_fold(n as u64, |sum, part| sum.checked_add(*part))?;
        self.carry_at
            .checked_add(len)
            .filter(|end| *end <= self.end)
    }

    fn feed(&mut self, mut at: u64, mut bytes: &[u8]) {
        if self.skip > 0 {
            let n = usize::try_from(self.skip).unwrap_or(usize::MAX);
            let (passed, rest) = bytes.split_at_checked(n).unwrap_or((bytes, &[]));
            self.skip = self.skip.saturating_sub(passed.len() as u64);
            at = at.saturating_add(passed.len() as u64);
            bytes = rest;
        }
        if self.searching {
            if self.carry.is_empty() {
                self.carry_at = at;
            }
            self.carry.extend_from_slice(bytes);
            if self.carry.len() >= SEARCH {
                self.search(false);
            }
            return;
        }
        // The entry that was begun.
        while !self.carry.is_empty() && !self.stop {
            let mut carry = std::mem::take(&mut self.carry);
            match self.entry(&carry, self.carry_at) {
                Parsed::Need(n) => {
                    let want = n.saturating_sub(carry.len());
                    let (more, rest) = bytes.split_at_checked(want).unwrap_or((bytes, &[]));
                    carry.extend_from_slice(more);
                    self.carry = carry;
                    at = at.saturating_add(more.len() as u64);
                    bytes = rest;
                    if more.len() < want {
                        return;
                    }
                }
                // No byte more was taken than it needs.
                Parsed::Took(_) => {}
                Parsed::Pass(n) => {
                    self.skip = n.saturating_sub(carry.len() as u64);
                    return self.feed(at, bytes);
                }
                Parsed::End(n) => self.ended(self.carry_at.saturating_add(n as u64)),
                Parsed::Bad(why) => {
                    self.bad(self.carry_at, why);
                    self.carry_at = self.carry_at.saturating_add(1);
                    self.carry
                        .extend_from_slice(carry.get(1..).unwrap_or_default());
                    return self.feed(at, bytes);
                }
            }
        }
        let taken = self.entries(at, bytes);
        if !self.stop {
            self.carry_at = at.saturating_add(taken as u64);
            self.carry
                .extend_from_slice(bytes.get(taken..).unwrap_or_default());
        }
    }

    /// Takes entries off a piece that begins with one; gives the bytes that are done with.
    fn entries(&mut self, start: u64, bytes: &[u8]) -> usize {
        let mut taken = 0usize;
        while !self.stop
            && let Some(rest) = bytes.get(taken..).filter(|r| !r.is_empty())
        {
            let at = start.saturating_add(taken as u64);
            match self.entry(rest, at) {
                Parsed::Need(_) => break,
                Parsed::Took(n) => taken = taken.saturating_add(n),
                Parsed::Pass(n) => {
                    self.skip = n.saturating_sub(rest.len() as u64);
                    let n = usize::try_from(n).unwrap_or(usize::MAX).min(rest.len());
                    taken = taken.saturating_add(n);
                }
                Parsed::End(n) => self.ended(at.saturating_add(n as u64)),
                Parsed::Bad(why) => {
                    self.bad(at, why);
                    return taken.saturating_add(1);
                }
            }
        }
        taken
    }

    fn bad(&mut self, at: u64, why: &str) {
        self.damaged = true;
        self.searching = true;
        let detail = format!("{why} (at {at} of the decoded stream); searching the next message");
        self.note("entry", Code::ArchiveDamaged, at, 0, detail);
    }

    fn ended(&mut self, at: u64) {
        self.ended = Some(at);
        self.stop = true;
    }

    /// Looks at the entry at the start of `buf` and hands it out if it is complete.
    fn entry(&mut self, buf: &[u8], at: u64) -> Parsed {
        let (header, n) = match archive_v2::header(buf, at) {
            Ok(h) => h,
            Err(f) if matches!(f.kind, FaultKind::Truncated { .. }) => {
                return Parsed::Need(buf.len().saturating_add(1));
            }
            Err(_) => return Parsed::Bad("not an entry"),
        };
        if header == Header::default() {
            return Parsed::End(n);
        }
        let body = header
            .headers
            .checked_add(header.payload)
            .filter(|b| *b < 1 << 62);
        let Some(body) = body.filter(|_| header.name <= MAX_NAME) else {
            return Parsed::Bad("an entry of an impossible length");
        };
        let total = (n as u64).saturating_add(header.name).saturating_add(body);
        let seq = header.sequence;
        if body > MAX_BODY {
            self.damaged = true;
            let detail =
                format!("a message of {body} bytes, over the ceiling of {MAX_BODY}; left out");
            self.note("size", Code::TooLarge, at, seq, detail);
            return Parsed::Pass(total);
        }
        let total = usize::try_from(total).unwrap_or(usize::MAX);
        let Some(entry) = buf.get(n..total) else {
            return Parsed::Need(total);
        };
        let rest = usize::try_from(header.name)
            .ok()
            .and_then(|n| entry.split_at_checked(n));
        let parts = rest.and_then(|(name, rest)| {
            Some((
                name,
                rest.split_at_checked(usize::try_from(header.headers).ok()?)?,
            ))
        });
        let Some((subject, (headers, payload))) = parts else {
            return Parsed::Bad("not an entry");
        };
        if seq == 0 {
            self.note(
                "no message",
                Code::ArchiveMember,
                at,
                0,
                "an entry without a sequence among the messages".to_owned(),
            );
            return Parsed::Took(total);
        }
        if seq <= self.last_seq {
            let detail = format!(
                "sequence {seq} after {}: out of order; left out (servers refuse to restore this archive)",
                self.last_seq
            );
            self.damaged = true;
            self.note("order", Code::ArchiveDamaged, at, seq, detail);
            return Parsed::Took(total);
        }
        if seq < self.archive.state.first_seq {
            let detail = format!(
                "sequence {seq} is before state.json's first, {}: servers refuse to restore this archive",
                self.archive.state.first_seq
            );
            self.note("before the first", Code::ArchiveDamaged, at, seq, detail);
        }
        self.last_seq = seq;
        self.last_ts = header.timestamp;
        self.messages = self.messages.saturating_add(1);
        let message = V2Message {
            seq,
            ts: header.timestamp,
            subject,
            headers,
            payload,
            offset: at,
        };
        if (self.sink)(message).is_break() {
            self.stop = true;
        }
        Parsed::Took(total)
    }

    /// Searches the first entry in what was gathered. `last` says that nothing follows it.
    fn search(&mut self, last: bool) {
        let carry = std::mem::take(&mut self.carry);
        let start = self.carry_at;
        let limit = if last {
            carry.len()
        } else {
            carry.len().saturating_sub(SEARCH_TAIL)
        };
        let place = |i: usize| start.saturating_add(i as u64);
        let rest = |i: usize| carry.get(i..).unwrap_or_default();
        let mut at = 0usize;
        while self.searching && !self.stop && at < limit {
            let found = (at..limit).find(|i| self.makes_sense(rest(*i), place(*i)));
            at = found.unwrap_or(limit);
            if found.is_some() {
                self.searching = false;
                at = at.saturating_add(self.entries(place(at), rest(at)));
            }
        }
        self.carry_at = place(at);
        self.carry.extend_from_slice(rest(at));
    }

    /// Whether entries follow one another here: three of them, or as many as there is room for.
    fn makes_sense(&self, mut buf: &[u8], mut at: u64) -> bool {
        let highest = match self.archive.state.last_seq {
            0 => u64::MAX,
            n => n.max(self.last_seq),
        };
        let latest = match self.archive.made {
            0 => i64::MAX,
            n => n.saturating_add(HOUR),
        };
        let earliest = self.last_ts.saturating_sub(HOUR);
        let mut last = self.last_seq;
        for count in 0..3 {
            let Ok((header, n)) = archive_v2::header(buf, at) else {
                return count > 0 && buf.len() < MAX_HEADER;
            };
            if header == Header::default() {
                // The end marker proves itself by its place.
                return count > 0 || at.saturating_add(n as u64) == self.end;
            }
            let len = header
                .headers
                .checked_add(header.payload)
                .filter(|len| *len <= MAX_BODY);
            let (Some(len), true) = (
                len,
                header.sequence > last
                    && header.sequence <= highest
                    && (earliest..=latest).contains(&header.timestamp)
                    && (1..=512).contains(&header.name),
            ) else {
                return false;
            };
            let total = (n as u64).saturating_add(header.name).saturating_add(len);
            if at.saturating_add(total) > self.end {
                return false;
            }
            let part = |from: u64, len: u64| {
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                let rest = buf.get(from..).unwrap_or_default();
                rest.get(..usize::try_from(len).unwrap_or(usize::MAX))
                    .unwrap_or(rest)
            };
            let name = part(n as u64, header.name);
            let head = part(
                (n as u64).saturating_add(header.name),
                header.headers.min(5),
            );
            if name.iter().any(|b| *b <= b' ' || *b == 0x7f) || !b"NATS/".starts_with(head) {
                return false;
            }
            last = header.sequence;
            match usize::try_from(total).ok().and_then(|t| buf.get(t..)) {
                Some(rest) => buf = rest,
                None => return true,
            }
            at = at.saturating_add(total);
        }
        true
    }

    fn finish(mut self) -> V2End {
        if self.searching && !self.stop {
            self.search(true);
        }
        let state = &self.archive.state;
        if let Some(at) = self.ended {
            let more = self.end.saturating_sub(at);
            if more > 0 {
                let detail = format!("{more} bytes after the end marker");
                let place = self.archive.container.place(at);
                self.notes.add("after the end", || {
                    let f = Finding::new(Code::ArchiveTrailing, detail)
                        .severity(Severity::Note)
                        .action("servers pass over them");
                    place.into_iter().fold(f, Finding::offset)
                });
            }
        } else if !self.stop {
            let detail = format!(
                "it ends without the end marker, after {} of {} messages",
                self.messages, state.messages
            );
            let end = self.end;
            self.note(
                "end",
                Code::ArchiveTruncated,
                end.saturating_sub(1),
                0,
                detail,
            );
        }
        V2End {
            messages: self.messages,
            complete: self.ended.is_some() && !self.damaged,
            findings: self.notes.into_findings(),
        }
    }
}
