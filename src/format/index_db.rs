//! `index.db`: the state of a stream (or raft group's log) as of its last clean stop or tick.
//!
//! | encoding | field |
//! |---|---|
//! | u8 | magic 11 |
//! | u8 | version: 1 = 2.10, 2 = 2.11, 3 = 2.12, 4 = 2.14 and 2.15 |
//! | uvarint × 3 | messages, bytes, first sequence |
//! | varint | time of the first message, 0 without one: the *base* of the times below |
//! | uvarint, varint | last sequence, its time |
//! | uvarint | number of subjects |
//! | per subject | uvarint length, bytes, uvarint total, uvarint first block, uvarint last block (that one in versions 1 to 3 only if total > 1). Nothing follows a length of 0 |
//! | uvarint | number of blocks |
//! | per block | uvarint index, uvarint bytes, uvarint first sequence, varint time − base, uvarint last sequence, varint time − base, uvarint number deleted, uvarint messages with TTL (from version 2), uvarint schedules (from version 3), [sequence set](crate::format::seqset) if any are deleted |
//! | uvarint | index of the last block |
//! | 8 | last 8 bytes of that block (decrypted): the hash of its last record |
//! | 8 | HighwayHash under the stream's name of everything before |
//!
//! Encrypted: `nonce ‖ AEAD(all but the hash) ‖ hash over nonce and ciphertext`.
//!
//! * A block's number of messages is not stored: last − first + 1 − deleted. An empty block has
//!   first = last + 1.
//! * Times wrap: a block without a first message says 0 − base.
//! * Bits of deleted sequences may lie outside a block's first and last.
//! * A subject's blocks are hints that the server corrects lazily; the last may be too high.
//! * Block numbers are 32 bits wide; a server drops what is above.
//! * 2.10 reads version 1 only, later ones 1 to their own: a downgrade deletes the file.
//! * The server ignores bytes between the block checksum and the hash.

use serde::ser::{SerializeSeq, SerializeStruct};
use serde::{Serialize, Serializer};

use super::bytes::{Cursor, Fault, FaultKind, put_uvarint, put_varint};
use super::hash::HashKey;
use super::seqset::{self, SeqSet};

/// First byte of the plaintext.
pub const MAGIC: u8 = 11;
/// Highest version known.
pub const MAX_VERSION: u8 = 4;
/// Shortest file that the server looks at.
pub const MIN_LEN: usize = 32;
const HASH_LEN: usize = 8;

/// What to keep of an `index.db`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Keep the subjects; without, they are checked and skipped.
    pub subjects: bool,
}

/// A decoded `index.db`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct IndexDb {
    /// Version of the format, 1 to 4.
    pub version: u8,
    /// Messages in the stream.
    pub msgs: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// First sequence; last + 1 in an empty stream, 0 in one that never had a message.
    pub first_seq: u64,
    /// Its time, 0 without one.
    pub first_ts: i64,
    /// Last sequence used.
    pub last_seq: u64,
    /// Its time, 0 without one.
    pub last_ts: i64,
    /// Number of subjects, also where they were not kept.
    pub num_subjects: u64,
    /// The subjects, in the file's order.
    pub subjects: Subjects,
    /// The blocks, in the file's order.
    pub blocks: Vec<BlockEntry>,
    /// Index of the last block.
    pub last_block: u64,
    /// Last 8 bytes of that block.
    #[serde(serialize_with = "hex")]
    pub last_checksum: [u8; 8],
    /// Bytes behind the checksum, which servers ignore and never write.
    #[serde(skip_serializing_if = "is_zero")]
    pub trailing: u64,
}

/// A block as `index.db` lists it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BlockEntry {
    /// Its number.
    pub index: u64,
    /// Bytes of its messages' records.
    pub bytes: u64,
    /// First sequence; last + 1 in an empty block.
    pub first: u64,
    /// Time of the first message, 0 without one.
    pub first_ts: i64,
    /// Last sequence.
    pub last: u64,
    /// Its time.
    pub last_ts: i64,
    /// How many are deleted, as announced: what the server counts with. Zero means that no set
    /// is stored.
    pub num_deleted: u64,
    /// The deleted sequences.
    pub deleted: SeqSet,
    /// Messages with a TTL. Only whether there are any is certain: after a reload of the block
    /// the server counts deleted messages and those that never expire, too.
    pub ttls: u64,
    /// Message schedules.
    pub schedules: u64,
}

impl BlockEntry {
    /// Messages in the block as the server counts them. More deleted than there is room for
    /// leaves none.
    pub fn msgs(&self) -> u64 {
        let span = self.last.wrapping_sub(self.first).wrapping_add(1);
        match self.num_deleted {
            0 => span,
            n => span.saturating_sub(n),
        }
    }

    /// Replaces the deleted sequences.
    pub fn set_deleted(&mut self, deleted: SeqSet) {
        self.num_deleted = deleted.len();
        self.deleted = deleted;
    }
}

/// A subject with what `index.db` knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubjectEntry<'a> {
    /// The subject; any bytes.
    pub subject: &'a [u8],
    /// Its messages.
    pub total: u64,
    /// Block of its first message, or a lower one.
    pub fblk: u64,
    /// Block of its last message, or a higher one.
    pub lblk: u64,
}

/// Subjects in as many bytes as the file has them.
#[derive(Clone, Default)]
pub struct Subjects {
    /// As in version 4.
    raw: Vec<u8>,
    count: u64,
}

impl Subjects {
    /// Number of subjects.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The subjects in order.
    pub fn iter(&self) -> SubjectIter<'_> {
        SubjectIter {
            rest: Cursor::new(&self.raw, 0),
        }
    }

    /// Appends a subject.
    pub fn push(&mut self, entry: SubjectEntry<'_>) {
        put_subject(&mut self.raw, &entry, MAX_VERSION);
        self.count += 1;
    }

    /// The first that no server accepts (2.10.8 and later then discard the file).
    pub fn invalid(&self) -> Option<SubjectEntry<'_>> {
        self.iter()
            .find(|s| !s.subject.is_empty() && !is_valid_subject(s.subject))
    }
}

impl<'a> IntoIterator for &'a Subjects {
    type Item = SubjectEntry<'a>;
    type IntoIter = SubjectIter<'a>;

    fn into_iter(self) -> SubjectIter<'a> {
        self.iter()
    }
}

impl PartialEq for Subjects {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.iter().eq(other.iter())
    }
}

impl std::fmt::Debug for Subjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} subjects]", self.count)
    }
}

impl Serialize for Subjects {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        for entry in self {
            seq.serialize_element(&entry)?;
        }
        seq.end()
    }
}

/// The subjects of an `index.db`.
#[derive(Debug, Clone)]
pub struct SubjectIter<'a> {
    rest: Cursor<'a>,
}

impl<'a> Iterator for SubjectIter<'a> {
    type Item = SubjectEntry<'a>;

    fn next(&mut self) -> Option<SubjectEntry<'a>> {
        read_subject(&mut self.rest, MAX_VERSION).ok()
    }
}

impl Serialize for SubjectEntry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("SubjectEntry", 4)?;
        text_field::<S>(&mut s, "subject", "subject_base64", self.subject)?;
        s.serialize_field("total", &self.total)?;
        s.serialize_field("first_block", &self.fblk)?;
        s.serialize_field("last_block", &self.lblk)?;
        s.end()
    }
}

impl Serialize for BlockEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("BlockEntry", 11)?;
        s.serialize_field("index", &self.index)?;
        s.serialize_field("msgs", &self.msgs())?;
        s.serialize_field("bytes", &self.bytes)?;
        s.serialize_field("first_seq", &self.first)?;
        s.serialize_field("first_ts", &self.first_ts)?;
        s.serialize_field("last_seq", &self.last)?;
        s.serialize_field("last_ts", &self.last_ts)?;
        s.serialize_field("num_deleted", &self.num_deleted)?;
        s.serialize_field("deleted", &self.deleted)?;
        s.serialize_field("ttls", &self.ttls)?;
        s.serialize_field("schedules", &self.schedules)?;
        s.end()
    }
}

/// Writes bytes as text where they are UTF-8, else as base64 under another name.
pub(crate) fn text_field<S: Serializer>(
    s: &mut S::SerializeStruct,
    text: &'static str,
    base64: &'static str,
    bytes: &[u8],
) -> Result<(), S::Error> {
    use base64::Engine;
    match std::str::from_utf8(bytes) {
        Ok(value) => s.serialize_field(text, value),
        Err(_) => {
            let value = base64::engine::general_purpose::STANDARD.encode(bytes);
            s.serialize_field(base64, &value)
        }
    }
}

/// Writes a checksum as hex digits.
pub(crate) fn hex<S: Serializer>(bytes: &[u8; 8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{:016x}", u64::from_be_bytes(*bytes)))
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The server's test of a subject read back: tokens without blanks, `>` last only, no NUL, UTF-8
/// without replacement characters.
fn is_valid_subject(subject: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(subject) else {
        return false;
    };
    if text.contains(['\0', '\u{fffd}']) {
        return false;
    }
    let mut tokens = text.split('.').peekable();
    while let Some(token) = tokens.next() {
        let blank = token.contains([' ', '\t', '\n', '\r', '\u{c}']);
        if token.is_empty() || blank || (token == ">" && tokens.peek().is_some()) {
            return false;
        }
    }
    true
}

/// Checks the hash at the end of an `index.db` of `stream` (or raft group) and returns what it
/// covers: the plaintext, or `nonce ‖ ciphertext` to open first.
pub fn check_hash<'a>(file: &'a [u8], stream: &[u8]) -> Result<&'a [u8], Fault> {
    let have = file.len() as u64;
    if file.len() < MIN_LEN {
        return Err(Fault::new(
            0,
            FaultKind::Truncated {
                need: MIN_LEN as u64,
                have,
            },
        ));
    }
    let (body, hash) = file.split_at(file.len() - HASH_LEN);
    if HashKey::new(stream).sum(body) != hash {
        return Err(Fault::new(
            body.len() as u64,
            FaultKind::Checksum { what: "index.db" },
        ));
    }
    Ok(body)
}

/// Decodes the plaintext of an `index.db`, without the hash.
pub fn decode(buf: &[u8], base: u64, opts: Options) -> Result<IndexDb, Fault> {
    let mut c = Cursor::new(buf, base);
    let [magic, version] = c.array()?;
    if magic != MAGIC {
        return Err(Fault::new(base, FaultKind::Magic { format: "index.db" }));
    }
    if !(1..=MAX_VERSION).contains(&version) {
        let kind = FaultKind::Version {
            format: "index.db",
            found: version.into(),
        };
        return Err(Fault::new(base.saturating_add(1), kind));
    }
    let (msgs, bytes, first_seq) = (c.uvarint()?, c.uvarint()?, c.uvarint()?);
    let first_ts = c.varint()?;
    let (last_seq, last_ts) = (c.uvarint()?, c.varint()?);

    let num_subjects = c.count("number of subjects", 1)?;
    let subjects = read_subjects(&mut c, version, num_subjects, opts)?;

    let num_blocks = c.count("number of blocks", 7)?;
    let mut blocks = Vec::new();
    for _ in 0..num_blocks {
        blocks.push(read_block(&mut c, version, first_ts)?);
    }
    blocks.shrink_to_fit();
    let last_block = c.uvarint()?;
    let last_checksum = c.array()?;
    let trailing = c.remaining() as u64;
    Ok(IndexDb {
        version,
        msgs,
        bytes,
        first_seq,
        first_ts,
        last_seq,
        last_ts,
        num_subjects,
        subjects,
        blocks,
        last_block,
        last_checksum,
        trailing,
    })
}

fn read_subjects(
    c: &mut Cursor<'_>,
    version: u8,
    count: u64,
    opts: Options,
) -> Result<Subjects, Fault> {
    let from = c.clone();
    for _ in 0..count {
        read_subject(c, version)?;
    }
    if !opts.subjects {
        return Ok(Subjects::default());
    }
    let len = c.consumed() - from.consumed();
    let mut again = from;
    if version == MAX_VERSION {
        return Ok(Subjects {
            raw: again.take(len)?.to_vec(),
            count,
        });
    }
    let mut subjects = Subjects {
        raw: Vec::with_capacity(len),
        count: 0,
    };
    for _ in 0..count {
        subjects.push(read_subject(&mut again, version)?);
    }
    subjects.raw.shrink_to_fit();
    Ok(subjects)
}

fn read_subject<'a>(c: &mut Cursor<'a>, version: u8) -> Result<SubjectEntry<'a>, Fault> {
    let at = c.clone();
    let len = c.uvarint()?;
    let ceiling = c.remaining() as u64;
    if len > ceiling {
        return Err(at.fault(FaultKind::TooLarge {
            what: "length of a subject",
            value: len,
            ceiling,
        }));
    }
    let subject = c.take_bounded("length of a subject", len, ceiling)?;
    let mut entry = SubjectEntry {
        subject,
        total: 0,
        fblk: 0,
        lblk: 0,
    };
    if len > 0 {
        entry.total = c.uvarint()?;
        entry.fblk = c.uvarint()?;
        entry.lblk = if has_last_block(version, entry.total) {
            c.uvarint()?
        } else {
            entry.fblk
        };
    }
    Ok(entry)
}

fn has_last_block(version: u8, total: u64) -> bool {
    total > 1 || version >= 4
}

fn read_block(c: &mut Cursor<'_>, version: u8, base_ts: i64) -> Result<BlockEntry, Fault> {
    let (index, bytes) = (c.uvarint()?, c.uvarint()?);
    let (first, first_ts) = (c.uvarint()?, c.varint()?.wrapping_add(base_ts));
    let (last, last_ts) = (c.uvarint()?, c.varint()?.wrapping_add(base_ts));
    let num_deleted = c.uvarint()?;
    let ttls = if version >= 2 { c.uvarint()? } else { 0 };
    let schedules = if version >= 3 { c.uvarint()? } else { 0 };
    let deleted = if num_deleted > 0 {
        seqset::decode(c)?
    } else {
        SeqSet::new()
    };
    Ok(BlockEntry {
        index,
        bytes,
        first,
        first_ts,
        last,
        last_ts,
        num_deleted,
        deleted,
        ttls,
        schedules,
    })
}

/// The server's last test: what the blocks add up to must be the stream's state.
///
/// It goes without blocks that have no messages, apart from the last one; the last that stays
/// must be the one that the file names as last (else: no last block); first sequences of 0 and 1
/// count as equal.
pub fn totals_agree(db: &IndexDb) -> Result<(), Fault> {
    let disagree = |what| Err(Fault::new(0, FaultKind::Invalid(what)));
    let end = db.blocks.len();
    let (mut msgs, mut bytes, mut first, mut last) = (0u64, 0u64, 0u64, 0u64);
    for (i, b) in db.blocks.iter().enumerate() {
        if b.msgs() == 0 && i + 1 != end {
            continue;
        }
        if first == 0 || (b.first < first && b.first_ts != 0) {
            first = b.first;
        }
        last = last.max(b.last);
        msgs = msgs.wrapping_add(b.msgs());
        bytes = bytes.wrapping_add(b.bytes);
    }
    if db.blocks.last().map(|b| b.index as u32) != Some(db.last_block as u32) {
        return disagree("last block: not the last one listed");
    }
    if msgs != db.msgs {
        return disagree("totals: messages of the blocks are not those of the stream");
    }
    if bytes != db.bytes {
        return disagree("totals: bytes of the blocks are not those of the stream");
    }
    if last != db.last_seq {
        return disagree("totals: last sequence of the blocks is not that of the stream");
    }
    if first > 1 && first != db.first_seq {
        return disagree("totals: first sequence of the blocks is not that of the stream");
    }
    Ok(())
}

/// Encodes a plaintext `index.db` of `stream` in `version` (clamped to 1 to 4), with its hash.
///
/// Needs the subjects: decode with [`Options::subjects`].
pub fn encode(db: &IndexDb, version: u8, stream: &[u8]) -> Vec<u8> {
    with_hash(encode_body(db, version), stream)
}

/// Appends the hash to a body: [`encode_body`]'s, or that sealed as `nonce ‖ ciphertext`.
pub fn with_hash(mut body: Vec<u8>, stream: &[u8]) -> Vec<u8> {
    let hash = HashKey::new(stream).sum(&body);
    body.extend(hash);
    body
}

/// [`encode`] without the hash: what is sealed in an encrypted store.
pub fn encode_body(db: &IndexDb, version: u8) -> Vec<u8> {
    let version = version.clamp(1, MAX_VERSION);
    let mut out = vec![MAGIC, version];
    put_uvarint(&mut out, db.msgs);
    put_uvarint(&mut out, db.bytes);
    put_uvarint(&mut out, db.first_seq);
    put_varint(&mut out, db.first_ts);
    put_uvarint(&mut out, db.last_seq);
    put_varint(&mut out, db.last_ts);
    put_uvarint(&mut out, db.subjects.len());
    for entry in &db.subjects {
        put_subject(&mut out, &entry, version);
    }
    put_uvarint(&mut out, db.blocks.len() as u64);
    for b in &db.blocks {
        put_uvarint(&mut out, b.index);
        put_uvarint(&mut out, b.bytes);
        put_uvarint(&mut out, b.first);
        put_varint(&mut out, b.first_ts.wrapping_sub(db.first_ts));
        put_uvarint(&mut out, b.last);
        put_varint(&mut out, b.last_ts.wrapping_sub(db.first_ts));
        put_uvarint(&mut out, b.num_deleted);
        if version >= 2 {
            put_uvarint(&mut out, b.ttls);
        }
        if version >= 3 {
            put_uvarint(&mut out, b.schedules);
        }
        if b.num_deleted > 0 {
            seqset::encode(&b.deleted, &mut out);
        }
    }
    put_uvarint(&mut out, db.last_block);
    out.extend(db.last_checksum);
    out
}

fn put_subject(out: &mut Vec<u8>, entry: &SubjectEntry<'_>, version: u8) {
    put_uvarint(out, entry.subject.len() as u64);
    if entry.subject.is_empty() {
        return;
    }
    out.extend(entry.subject);
    put_uvarint(out, entry.total);
    put_uvarint(out, entry.fblk);
    if has_last_block(version, entry.total) {
        put_uvarint(out, entry.lblk);
    }
}

/// Files of real servers with what clients were told about the stream (fixtures/vectors/index).
#[cfg(test)]
pub(super) mod vectors {
    use std::path::PathBuf;

    use serde_json::Value;

    use super::SeqSet;

    pub struct File {
        /// `<release>-…`
        pub name: String,
        pub bytes: Vec<u8>,
        pub stream: String,
        pub truth: Value,
        /// Null where the client's view is not that of this directory.
        pub state: Value,
    }

    /// All files of `kind`, one list per stream.
    pub fn of(kind: &str) -> Vec<Vec<File>> {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/vectors/index");
        let text = std::fs::read(dir.join("truth.json")).unwrap();
        let streams: Value = serde_json::from_slice(&text).unwrap();
        let mut out = Vec::new();
        for stream in streams.as_array().unwrap() {
            let files = stream["files"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|f| f["kind"] == kind);
            let files: Vec<File> = files
                .map(|f| File {
                    name: f["file"].as_str().unwrap().into(),
                    bytes: std::fs::read(dir.join(f["file"].as_str().unwrap())).unwrap(),
                    stream: stream["stream"].as_str().unwrap().into(),
                    truth: f.clone(),
                    state: stream["state"].clone(),
                })
                .collect();
            if !files.is_empty() {
                out.push(files);
            }
        }
        assert!(!out.is_empty(), "no vectors of {kind}");
        out
    }

    /// The sequences that a client could read.
    pub fn live(state: &Value) -> SeqSet {
        let mut set = SeqSet::new();
        set.insert_range(
            state["first_seq"].as_u64().unwrap(),
            state["last_seq"].as_u64().unwrap(),
        );
        set.remove(0);
        for seq in state["deleted"].as_array().unwrap() {
            set.remove(seq.as_u64().unwrap());
        }
        assert_eq!(set.len(), state["messages"].as_u64().unwrap());
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const ALL: Options = Options { subjects: true };

    #[test]
    fn files_of_servers_say_what_clients_were_told() {
        let mut compared = 0;
        for file in vectors::of("index.db").into_iter().flatten() {
            let name = &file.name;
            let body = check_hash(&file.bytes, file.stream.as_bytes()).unwrap();
            if file.truth["sealed"] == true {
                assert!(decode(body, 0, ALL).is_err(), "{name}");
                continue;
            }
            let db = decode(body, 0, ALL).unwrap();
            totals_agree(&db).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(db.trailing, 0);
            let version = match name.get(..4).unwrap() {
                "2.10" => 1,
                "2.11" => 2,
                "2.12" => 3,
                _ => 4,
            };
            assert_eq!(db.version, version, "{name}");
            assert_eq!(db.subjects.invalid(), None);

            let again = encode(&db, version, file.stream.as_bytes());
            // A tree that grew by random deletes has another shape than ours, of the same size.
            let grown = name.contains("-tree_");
            assert_eq!(again != file.bytes, grown, "{name} written again");
            assert_eq!(again.len(), file.bytes.len());
            for other in 1..=MAX_VERSION {
                let mut back = decode(&encode_body(&db, other), 0, ALL).unwrap();
                assert_eq!(
                    back.subjects
                        .iter()
                        .map(|s| (s.subject, s.total))
                        .collect::<Vec<_>>(),
                    db.subjects
                        .iter()
                        .map(|s| (s.subject, s.total))
                        .collect::<Vec<_>>()
                );
                assert_eq!(back.version, other);
                if other >= version {
                    back.version = version;
                    assert_eq!(back, db, "{name} as version {other}");
                }
            }
            let lean = decode(body, 0, Options { subjects: false }).unwrap();
            assert_eq!(
                (lean.subjects.len(), lean.num_subjects),
                (0, db.subjects.len())
            );
            assert_eq!(lean.blocks, db.blocks);

            if file.state.is_null() {
                continue;
            }
            compared += 1;
            let state = &file.state;
            assert_eq!(
                json!({
                    "messages": db.msgs, "bytes": db.bytes, "first_seq": db.first_seq, "last_seq": db.last_seq,
                    "first_ts": db.first_ts, "last_ts": db.last_ts, "deleted": state["deleted"],
                    "subjects": db.subjects.iter().map(|s| (String::from_utf8(s.subject.to_vec()).unwrap(), s.total.into()))
                        .collect::<serde_json::Map<_, _>>(),
                }),
                *state,
                "{name}"
            );
            let mut live = SeqSet::new();
            for b in &db.blocks {
                if b.msgs() > 0 {
                    live.insert_range(b.first, b.last);
                    live.difference_with(&b.deleted);
                }
                assert_eq!(b.num_deleted, b.deleted.len());
            }
            assert_eq!(live, vectors::live(state), "{name}");
            assert_eq!(
                db.blocks
                    .iter()
                    .find(|b| b.msgs() > 0)
                    .map_or(0, |b| b.first_ts),
                db.first_ts
            );
            assert_eq!(db.blocks.last().map(|b| b.index), Some(db.last_block));
            let blocks = db.blocks.iter().map(|b| b.index);
            for s in &db.subjects {
                assert!(
                    blocks.clone().any(|n| n == s.fblk) && s.fblk <= s.lblk,
                    "{name}"
                );
            }
        }
        assert!(compared >= 12, "{compared}");
    }

    #[test]
    fn counts_ttls_and_schedules() {
        for file in vectors::of("index.db").into_iter().flatten() {
            let (mut ttls, schedules) = match file.name.as_str() {
                n if n.ends_with("-new_G_TTL.index.db") => (14, 0),
                n if n.ends_with("-new_G_SCHED.index.db") => (0, 5),
                _ => continue,
            };
            if file.name.starts_with("2.11") {
                // Had reloaded the block, and then counts those that never expire, too.
                ttls += 13;
            }
            let db = decode(
                check_hash(&file.bytes, file.stream.as_bytes()).unwrap(),
                0,
                ALL,
            )
            .unwrap();
            let sum = |f: fn(&BlockEntry) -> u64| db.blocks.iter().map(f).sum::<u64>();
            assert_eq!(
                (sum(|b| b.ttls), sum(|b| b.schedules)),
                (ttls, schedules),
                "{}",
                file.name
            );
        }
    }

    fn sample() -> IndexDb {
        let mut subjects = Subjects::default();
        subjects.push(SubjectEntry {
            subject: b"a.b",
            total: 3,
            fblk: 1,
            lblk: 2,
        });
        subjects.push(SubjectEntry {
            subject: b"a.\xff",
            total: 1,
            fblk: 2,
            lblk: 2,
        });
        let block = |index, first, last, deleted: &[u64]| {
            let mut b = BlockEntry {
                index,
                bytes: 100,
                first,
                first_ts: 50,
                last,
                last_ts: 70,
                ..BlockEntry::default()
            };
            b.set_deleted(deleted.iter().copied().collect());
            b
        };
        IndexDb {
            version: 4,
            msgs: 4,
            bytes: 200,
            first_seq: 10,
            first_ts: 50,
            last_seq: 16,
            last_ts: 70,
            num_subjects: 2,
            subjects,
            blocks: vec![block(1, 10, 12, &[11]), block(2, 13, 16, &[14, 15])],
            last_block: 2,
            last_checksum: [1, 2, 3, 4, 5, 6, 7, 0xf8],
            trailing: 0,
        }
    }

    #[test]
    fn totals_are_the_servers() {
        let good = sample();
        assert_eq!(totals_agree(&good), Ok(()));
        let wrong = |change: fn(&mut IndexDb)| {
            let mut db = good.clone();
            change(&mut db);
            totals_agree(&db).unwrap_err().to_string()
        };
        assert!(wrong(|d| d.msgs += 1).contains("messages"));
        assert!(wrong(|d| d.bytes += 1).contains("bytes"));
        assert!(wrong(|d| d.last_seq += 1).contains("last sequence"));
        assert!(wrong(|d| d.first_seq += 1).contains("first sequence"));
        assert!(wrong(|d| d.last_block += 1).contains("last block"));
        assert!(wrong(|d| d.blocks.clear()).contains("last block"));

        // An emptied block does not count, not even its bytes; as the last one it does.
        let mut db = good.clone();
        db.blocks.insert(
            1,
            BlockEntry {
                index: 7,
                bytes: 5,
                first: 13,
                last: 12,
                ..BlockEntry::default()
            },
        );
        assert_eq!(totals_agree(&db), Ok(()));
        let mut db = good.clone();
        db.blocks.push(BlockEntry {
            index: 3,
            bytes: 0,
            first: 17,
            last: 16,
            ..BlockEntry::default()
        });
        db.last_block = 3;
        assert_eq!(totals_agree(&db), Ok(()));
        // More deleted than room: none left, not a huge number.
        db.blocks[2].set_deleted([1, 2].into_iter().collect());
        assert_eq!(db.blocks[2].msgs(), 0);
        assert_eq!(totals_agree(&db), Ok(()));
        // Deleted bits outside the block still count against it.
        let mut db = good.clone();
        db.blocks[0].set_deleted([3, 11].into_iter().collect());
        assert_eq!(db.blocks[0].msgs(), 1);
        assert!(totals_agree(&db).is_err());
        // First sequences 0 and 1 are the same.
        let mut db = IndexDb {
            last_block: 1,
            ..IndexDb::default()
        };
        db.blocks.push(BlockEntry {
            index: 1,
            first: 1,
            ..BlockEntry::default()
        });
        assert_eq!(totals_agree(&db), Ok(()));
    }

    #[test]
    fn json_form() {
        let value = serde_json::to_value(sample()).unwrap();
        assert_eq!(value["last_checksum"], "01020304050607f8");
        assert_eq!(
            value["subjects"],
            json!([
                {"subject": "a.b", "total": 3, "first_block": 1, "last_block": 2},
                {"subject_base64": "YS7/", "total": 1, "first_block": 2, "last_block": 2},
            ])
        );
        assert_eq!(value["blocks"][1]["deleted"], json!([[14, 15]]));
        assert_eq!(value["blocks"][1]["msgs"], 2);
        assert_eq!(value.get("trailing"), None);
    }

    #[test]
    fn subjects_that_servers_refuse() {
        for good in ["a", "a.b", "a.*.>", ">", "a>", "*b", "ä.ö"] {
            assert!(is_valid_subject(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ".a", "a.", "a..b", "a b", "a.\t.b", ">.a", "a\0", "\u{fffd}",
        ] {
            assert!(!is_valid_subject(bad.as_bytes()), "{bad}");
        }
        assert_eq!(sample().subjects.invalid().unwrap().subject, b"a.\xff");
    }

    #[test]
    fn damage_is_a_fault_where_it_is() {
        let file = encode(&sample(), 4, b"S");
        assert_eq!(check_hash(&file, b"S").unwrap().len(), file.len() - 8);
        assert!(matches!(
            check_hash(&file, b"T").unwrap_err().kind,
            FaultKind::Checksum { .. }
        ));
        assert!(matches!(
            check_hash(&file[..31], b"S").unwrap_err().kind,
            FaultKind::Truncated { need: 32, have: 31 }
        ));
        for i in 0..file.len() {
            let mut bad = file.clone();
            bad[i] ^= 0x10;
            assert!(check_hash(&bad, b"S").is_err());
        }
        let body = &file[..file.len() - 8];
        for len in 0..body.len() {
            let fault = decode(&body[..len], 1000, ALL).unwrap_err();
            assert!(
                fault.offset >= 1000 && fault.offset <= 1000 + len as u64,
                "{len}: {fault}"
            );
        }
        let mut longer = body.to_vec();
        longer.extend([0; 3]);
        assert_eq!(decode(&longer, 0, ALL).unwrap().trailing, 3);
        // Version 5, and the count of subjects (at 10) blown up.
        let mut bad = body.to_vec();
        bad[1] = 5;
        assert_eq!(
            decode(&bad, 0, ALL).unwrap_err().kind,
            FaultKind::Version {
                format: "index.db",
                found: 5
            }
        );
        let mut bad = body[..10].to_vec();
        bad.extend([0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0]);
        let fault = decode(&bad, 0, ALL).unwrap_err();
        assert!(
            matches!(
                fault.kind,
                FaultKind::TooLarge {
                    what: "number of subjects",
                    ..
                }
            ),
            "{fault}"
        );
        let mut bad = body[..10].to_vec();
        bad.extend([
            1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0,
        ]);
        let fault = decode(&bad, 0, ALL).unwrap_err();
        assert!(
            matches!(
                fault.kind,
                FaultKind::TooLarge {
                    what: "length of a subject",
                    ..
                }
            ),
            "{fault}"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fault(bytes in prop::collection::vec(any::<u8>(), 0..400), flips in prop::collection::vec((any::<u16>(), any::<u8>()), 0..4)) {
            let _ = decode(&bytes, 0, ALL);
            let mut body = encode_body(&sample(), 4);
            for (at, bits) in flips {
                let at = usize::from(at) % body.len();
                body[at] ^= bits;
            }
            if let Ok(db) = decode(&body, 0, ALL) {
                let _ = totals_agree(&db);
                prop_assert_eq!(db.subjects.iter().count() as u64, db.num_subjects);
                let _ = serde_json::to_string(&db).unwrap();
            }
        }
    }
}
