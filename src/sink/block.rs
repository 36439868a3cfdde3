//! Blocks of live messages only: what archives and restored stores are made of.
//!
//! A block of the source becomes a block with the same number that holds its live records and
//! nothing else. A deleted message is then a gap, which every release from 2.2 on reads as
//! deleted, whatever it knows of tombstones, and whatever became of `index.db`. Records are copied as
//! they are where neither the stream's name nor the number changes, and written anew otherwise.
//!
//! The stream's last sequence, if it is a deleted one, is kept by a *skip* record in a block of its
//! own, behind the others: that is how a server itself skips a sequence. Servers before 2.10 remove
//! a block without messages unless its `.idx` says what it is for, so that one block has an `.idx`.
//! Later servers look at it only when they scan, and then agree.

use crate::format::hash::HashKey;
use crate::format::idx::{self, Idx};
use crate::format::index_db::BlockEntry;
use crate::format::record::{ERASED_BIT, NewRecord, encode};
use crate::format::sched_db::SchedEntry;
use crate::format::thw_db::ThwEntry;
use crate::format::{Fault, headers};
use crate::state::StreamState;
use crate::state::subjects::SubjectMap;
use crate::state::visit::Message;
use crate::time::parse_rfc3339;
use std::collections::BTreeMap;

/// What to write, and what to note of it.
#[derive(Debug)]
pub struct Layout<'a> {
    /// The stream's name, which keys the records' hashes.
    pub name: &'a str,
    /// The source's blocks have that name: records can be copied.
    pub same_name: bool,
    /// Note the subjects, for `index.db`.
    pub subjects: bool,
    /// Note expiring messages, for `thw.db`.
    pub ttls: bool,
    /// Count schedules.
    pub schedules: bool,
    /// Note from where sourced messages come, for `sources.db`.
    pub sources: bool,
}

impl<'a> Layout<'a> {
    /// For the stream `name`, from a source whose records are hashed under `source`.
    pub fn new(name: &'a str, source: &str) -> Self {
        Self {
            name,
            same_name: name == source,
            subjects: false,
            ttls: false,
            schedules: false,
            sources: false,
        }
    }
}

/// A block in the making.
#[derive(Debug, Default)]
pub struct Block {
    /// What `index.db` says of it.
    pub entry: BlockEntry,
    /// The records.
    pub bytes: Vec<u8>,
    /// Live messages by subject.
    pub subjects: SubjectMap,
    /// Messages that expire.
    pub ttls: Vec<ThwEntry>,
    /// Schedules for a fixed time.
    pub fixed: Vec<SchedEntry>,
    /// The last message of each source: its sequence there and the source's identity.
    pub sources: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
    /// The first thing that could not be written.
    pub fault: Option<Fault>,
    /// Bytes of all its records.
    pub len: u64,
    /// Its last 8 bytes, once it is written.
    pub last_checksum: [u8; 8],
    key: Option<HashKey>,
}

impl Block {
    /// An empty one that writes to `bytes`.
    pub fn in_buffer(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            ..Self::default()
        }
    }

    /// True where nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds a live message.
    pub fn push(&mut self, layout: &Layout<'_>, m: &Message<'_>) {
        let key = match self.key {
            Some(key) => key,
            None => {
                self.entry.index = m.block;
                let key = HashKey::block(layout.name, self.entry.index);
                *self.key.insert(key)
            }
        };
        let before = self.bytes.len();
        if layout.same_name && !m.raw.is_empty() {
            self.bytes.extend_from_slice(m.raw);
        } else {
            let record = NewRecord {
                seq: m.seq,
                ts: m.ts,
                subject: m.subject,
                headers: m.headers,
                payload: m.payload,
            };
            if let Err(fault) = encode(&mut self.bytes, &key, &record) {
                self.fault.get_or_insert(fault);
                return;
            }
        }
        self.note(m);
        let e = &mut self.entry;
        e.bytes = e
            .bytes
            .saturating_add(self.bytes.len().saturating_sub(before) as u64);
        if layout.subjects && !m.subject.is_empty() {
            *self.subjects.value_mut(m.subject) += 1;
        }
        if !m.headers.is_empty() {
            self.note_headers(layout, m);
        }
    }

    /// Counts a message in, without its bytes.
    pub fn note(&mut self, m: &Message<'_>) {
        let e = &mut self.entry;
        if e.last == 0 {
            (e.first, e.first_ts) = (m.seq, m.ts);
        } else if m.seq > e.last.saturating_add(1) {
            e.deleted.insert_range(e.last + 1, m.seq - 1);
        }
        (e.last, e.last_ts) = (m.seq, m.ts);
    }

    fn note_headers(&mut self, layout: &Layout<'_>, m: &Message<'_>) {
        if layout.ttls
            && let Some(seconds) = headers::get(m.headers, b"Nats-TTL").and_then(headers::ttl)
        {
            self.entry.ttls = self.entry.ttls.saturating_add(1);
            self.ttls.push(ThwEntry {
                expires: m.ts.saturating_add(seconds.saturating_mul(1_000_000_000)),
                seq: m.seq,
            });
        }
        if layout.schedules
            && let Some(when) = headers::get(m.headers, b"Nats-Schedule")
        {
            self.entry.schedules = self.entry.schedules.saturating_add(1);
            let at = when.strip_prefix(b"@at ").map(std::str::from_utf8);
            let zone = headers::get(m.headers, b"Nats-Schedule-Time-Zone");
            if let (Some(Ok(at)), None) = (at, zone)
                && let Some(due) = parse_rfc3339(at)
            {
                let subject = m.subject.iter().copied().take(u16::MAX.into()).collect();
                self.fixed.push(SchedEntry {
                    subject,
                    due,
                    seq: m.seq,
                });
            }
        }
        if layout.sources
            && let Some(source) = headers::get(m.headers, b"Nats-Stream-Source")
            && let Some((index, seq, identity)) = headers::stream_source(source)
        {
            self.sources.insert(index, (seq, identity.to_vec()));
        }
    }

    /// The block is complete: its entry gets its deletes.
    pub fn close(&mut self) {
        let deleted = std::mem::take(&mut self.entry.deleted);
        self.entry.set_deleted(deleted);
    }
}

/// Body of the skip record: longer than any `.idx`. Servers before 2.10 seal an `.idx` with the same key
/// stream as its block; what shares it is then this record, which is no secret.
const SKIP_BODY: [u8; 96] = [0; 96];

/// The block with number `n` that keeps the last sequence of `state`, if its last message does not; and
/// its `.idx`, in plaintext.
pub fn last_sequence(
    state: &StreamState,
    last_live: u64,
    n: u64,
    name: &str,
) -> Option<(Block, Vec<u8>)> {
    if state.last_seq <= last_live {
        return None;
    }
    let key = HashKey::block(name, n);
    let record = NewRecord {
        seq: state.last_seq | ERASED_BIT,
        ts: state.last_ts,
        subject: b"",
        headers: b"",
        payload: &SKIP_BODY,
    };
    let mut block = Block {
        entry: BlockEntry {
            index: n,
            first: state.last_seq.saturating_add(1),
            last: state.last_seq,
            last_ts: state.last_ts,
            ..BlockEntry::default()
        },
        ..Block::default()
    };
    block.fault = encode(&mut block.bytes, &key, &record).err();
    let idx = idx::encode(&Idx {
        version: 1,
        first_seq: block.entry.first,
        last_seq: block.entry.last,
        last_ts: state.last_ts,
        last_checksum: block.bytes.last_chunk::<8>().copied().unwrap_or_default(),
        ..Idx::default()
    });
    Some((block, idx))
}
