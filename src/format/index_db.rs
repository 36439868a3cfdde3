//! `msgs/index.db` (2.10+): the whole state of a stream at its last clean stop (or some two minutes ago).
//!
//! | field | encoding |
//! |---|---|
//! | magic `11` | u8 |
//! | version: 1 = 2.10, 2 = 2.11, 3 = 2.12, 4 = 2.14 and 2.15 | u8 |
//! | messages, bytes, first sequence | uvarint |
//! | first time (`base`; 0 without messages) | varint |
//! | last sequence | uvarint |
//! | last time | varint |
//! | number of subjects | uvarint |
//! | each: length uvarint, subject, total uvarint, first block uvarint, last block uvarint (the last only if total > 1, or always since version 4); an empty subject ends after its length | |
//! | number of blocks | uvarint |
//! | each: index, bytes, first uvarint; first time − `base` varint; last uvarint; last time − `base` varint; deleted uvarint; TTLs uvarint (2+); schedules uvarint (3+); the deletes as a sequence set if there are any | |
//! | index of the last block | uvarint |
//! | the last 8 bytes of that block, decrypted | 8 |
//! | HighwayHash-64 under the stream's name over everything before | 8 |
//!
//! In an encrypted store everything but the hash is `nonce ++ sealed`, and the hash is over that.
//! The blocks of a subject are hints, not facts. Servers accept versions up to their own.

use super::bytes::{Cursor, Fault, FaultKind, put_uvarint, put_varint};
use super::hash::HashKey;
use super::seqset::{self, SeqSet};
use bstr::ByteSlice as _;
use serde::{Serialize, Serializer};

/// First byte.
pub const MAGIC: u8 = 11;
/// The newest version.
pub const VERSION: u8 = 4;
const HASH_LEN: usize = 8;

fn lossy<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&bytes.to_str_lossy())
}

pub(super) fn hex<S: Serializer>(bytes: &[u8; 8], s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())
}

/// A subject of live messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SubjectEntry {
    /// The subject.
    #[serde(serialize_with = "lossy")]
    pub subject: Box<[u8]>,
    /// Live messages.
    pub total: u64,
    /// The first block with one; a hint that may be too low.
    pub first_block: u64,
    /// The last block with one; a hint.
    pub last_block: u64,
}

/// A message block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct BlockEntry {
    /// Its number.
    pub index: u64,
    /// Bytes of its live messages' records.
    pub bytes: u64,
    /// First live sequence; `last + 1` without any.
    pub first: u64,
    /// Its time, ns; 0 for none.
    pub first_ts: i64,
    /// Last sequence.
    pub last: u64,
    /// Its time, ns.
    pub last_ts: i64,
    /// How many deletes the entry announces.
    pub num_deleted: u64,
    /// Messages with a TTL (version 2+).
    pub ttls: u64,
    /// Message schedules (version 3+).
    pub schedules: u64,
    /// Deleted sequences.
    pub deleted: SeqSet,
}

impl BlockEntry {
    /// Live messages, as the server counts them: not stored, but what the deletes leave.
    pub fn msgs(&self) -> u64 {
        self.last
            .wrapping_sub(self.first)
            .wrapping_add(1)
            .saturating_sub(self.num_deleted)
    }
}

/// `index.db`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct IndexDb {
    /// Version.
    pub version: u8,
    /// Live messages.
    pub msgs: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// First sequence.
    pub first_seq: u64,
    /// Its time, ns; 0 for none.
    pub first_ts: i64,
    /// Last sequence.
    pub last_seq: u64,
    /// Its time, ns; 0 for none.
    pub last_ts: i64,
    /// Distinct subjects.
    pub num_subjects: u64,
    /// The subjects, if they were asked for.
    pub subjects: Vec<SubjectEntry>,
    /// The blocks.
    pub blocks: Vec<BlockEntry>,
    /// Number of the last block.
    pub last_block: u64,
    /// The hash of the last record in it.
    #[serde(serialize_with = "hex")]
    pub last_checksum: [u8; 8],
}

/// What to keep.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The subjects.
    pub subjects: bool,
}

/// Checks the hash at the end of the file; gives what it covers.
pub fn check_hash<'a>(file: &'a [u8], stream: &[u8]) -> Result<&'a [u8], Fault> {
    let short = || {
        Fault::new(
            0,
            FaultKind::Truncated {
                need: 32,
                have: file.len() as u64,
            },
        )
    };
    // Servers refuse anything shorter unseen.
    if file.len() < 32 {
        return Err(short());
    }
    let (body, hash) = file
        .split_at_checked(file.len() - HASH_LEN)
        .ok_or_else(short)?;
    if HashKey::new(stream).sum(body) != hash {
        return Err(Fault::new(
            body.len() as u64,
            FaultKind::Checksum { what: "index.db" },
        ));
    }
    Ok(body)
}

/// Decodes the plain content, without the hash at the end.
pub fn decode(body: &[u8], base: u64, options: Options) -> Result<IndexDb, Fault> {
    let mut c = Cursor::new(body, base);
    if c.u8()? != MAGIC {
        return Err(Fault::new(base, FaultKind::Magic { format: "index.db" }));
    }
    let version = c.u8()?;
    if !(1..=VERSION).contains(&version) {
        return Err(Fault::new(
            base + 1,
            FaultKind::Version {
                format: "index.db",
                found: u64::from(version),
            },
        ));
    }
    let mut db = IndexDb {
        version,
        msgs: c.uvarint()?,
        bytes: c.uvarint()?,
        first_seq: c.uvarint()?,
        first_ts: c.varint()?,
        last_seq: c.uvarint()?,
        last_ts: c.varint()?,
        ..IndexDb::default()
    };
    db.num_subjects = c.count("number of subjects", 1)?;
    for _ in 0..db.num_subjects {
        let len = c.uvarint()?;
        if len == 0 {
            continue;
        }
        let subject = c.take_bounded("subject length", len, u64::from(u16::MAX))?;
        let (total, first_block) = (c.uvarint()?, c.uvarint()?);
        let last_block = if total > 1 || version >= 4 {
            c.uvarint()?
        } else {
            first_block
        };
        if options.subjects {
            db.subjects.push(SubjectEntry {
                subject: subject.into(),
                total,
                first_block,
                last_block,
            });
        }
    }
    let blocks = c.count("number of blocks", 7)?;
    for _ in 0..blocks {
        let (index, bytes, first) = (c.uvarint()?, c.uvarint()?, c.uvarint()?);
        let first_ts = c.varint()?.wrapping_add(db.first_ts);
        let last = c.uvarint()?;
        let last_ts = c.varint()?.wrapping_add(db.first_ts);
        let num_deleted = c.uvarint()?;
        let ttls = if version >= 2 { c.uvarint()? } else { 0 };
        let schedules = if version >= 3 { c.uvarint()? } else { 0 };
        let deleted = if num_deleted > 0 {
            seqset::decode(&mut c)?
        } else {
            SeqSet::new()
        };
        db.blocks.push(BlockEntry {
            index,
            bytes,
            first,
            first_ts,
            last,
            last_ts,
            num_deleted,
            ttls,
            schedules,
            deleted,
        });
    }
    db.last_block = c.uvarint()?;
    db.last_checksum = c.array()?;
    // The server does not look behind the checksum, and neither version writes anything there.
    if !c.is_empty() {
        return Err(c.fault(FaultKind::Trailing {
            bytes: c.remaining() as u64,
        }));
    }
    Ok(db)
}

/// Whether the header says what the blocks add up to: the server's own last test.
pub fn totals_agree(db: &IndexDb) -> Result<(), Fault> {
    let (mut msgs, mut bytes, mut first, mut last) = (0u64, 0u64, 0u64, 0u64);
    let n = db.blocks.len();
    for (i, b) in db.blocks.iter().enumerate() {
        if b.msgs() == 0 && i + 1 != n {
            continue;
        }
        msgs = msgs.wrapping_add(b.msgs());
        bytes = bytes.wrapping_add(b.bytes);
        if first == 0 || (b.first < first && b.first_ts != 0) {
            first = b.first;
        }
        last = last.max(b.last);
    }
    let same = msgs == db.msgs
        && bytes == db.bytes
        && last == db.last_seq
        && (first <= 1 || first == db.first_seq);
    if same {
        Ok(())
    } else {
        Err(Fault::new(
            2,
            FaultKind::Invalid("totals (they are not those of its blocks)"),
        ))
    }
}

/// The plain content, without the hash.
pub fn encode_body(db: &IndexDb, version: u8) -> Vec<u8> {
    let mut out = vec![MAGIC, version];
    for v in [db.msgs, db.bytes, db.first_seq] {
        put_uvarint(&mut out, v);
    }
    put_varint(&mut out, db.first_ts);
    put_uvarint(&mut out, db.last_seq);
    put_varint(&mut out, db.last_ts);
    put_uvarint(&mut out, db.subjects.len() as u64);
    for s in &db.subjects {
        put_uvarint(&mut out, s.subject.len() as u64);
        if s.subject.is_empty() {
            continue;
        }
        out.extend_from_slice(&s.subject);
        put_uvarint(&mut out, s.total);
        put_uvarint(&mut out, s.first_block);
        if s.total > 1 || version >= 4 {
            put_uvarint(&mut out, s.last_block);
        }
    }
    put_uvarint(&mut out, db.blocks.len() as u64);
    for b in &db.blocks {
        for v in [b.index, b.bytes, b.first] {
            put_uvarint(&mut out, v);
        }
        put_varint(&mut out, b.first_ts.wrapping_sub(db.first_ts));
        put_uvarint(&mut out, b.last);
        put_varint(&mut out, b.last_ts.wrapping_sub(db.first_ts));
        put_uvarint(&mut out, b.deleted.len());
        if version >= 2 {
            put_uvarint(&mut out, b.ttls);
        }
        if version >= 3 {
            put_uvarint(&mut out, b.schedules);
        }
        if !b.deleted.is_empty() {
            seqset::encode(&b.deleted, &mut out);
        }
    }
    put_uvarint(&mut out, db.last_block);
    out.extend_from_slice(&db.last_checksum);
    out
}

/// The whole plaintext file.
pub fn encode(db: &IndexDb, version: u8, stream: &[u8]) -> Vec<u8> {
    let mut out = encode_body(db, version);
    let hash = HashKey::new(stream).sum(&out);
    out.extend_from_slice(&hash);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> IndexDb {
        IndexDb {
            version: 4,
            msgs: 3,
            bytes: 120,
            first_seq: 2,
            first_ts: 1_700_000_000_000_000_000,
            last_seq: 6,
            last_ts: 1_700_000_000_000_000_009,
            num_subjects: 2,
            subjects: vec![
                SubjectEntry {
                    subject: b"a".as_slice().into(),
                    total: 2,
                    first_block: 1,
                    last_block: 1,
                },
                SubjectEntry {
                    subject: b"b.c".as_slice().into(),
                    total: 1,
                    first_block: 1,
                    last_block: 1,
                },
            ],
            blocks: vec![BlockEntry {
                index: 1,
                bytes: 120,
                first: 2,
                first_ts: 1_700_000_000_000_000_000,
                last: 6,
                last_ts: 1_700_000_000_000_000_009,
                num_deleted: 2,
                ttls: 1,
                schedules: 0,
                deleted: [3u64, 5].into_iter().collect(),
            }],
            last_block: 1,
            last_checksum: *b"8 bytes!",
        }
    }

    #[test]
    fn round_trip_and_every_flip_of_a_bit_is_found() {
        let file = encode(&sample(), 4, b"S");
        let body = check_hash(&file, b"S").unwrap();
        assert_eq!(
            decode(body, 0, Options { subjects: true }).unwrap(),
            sample()
        );
        assert_eq!(
            decode(body, 0, Options { subjects: false })
                .unwrap()
                .num_subjects,
            2
        );
        totals_agree(&sample()).unwrap();
        for bit in 0..file.len() * 8 {
            let mut bad = file.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            check_hash(&bad, b"S").unwrap_err();
        }
        check_hash(&file, b"T").unwrap_err();
    }

    #[test]
    fn cut_or_lying_bytes_never_panic() {
        let body = encode_body(&sample(), 4);
        for n in 0..body.len() {
            decode(&body[..n], 0, Options { subjects: true }).unwrap_err();
        }
        for i in 0..body.len() {
            for v in [0u8, 0x7f, 0x80, 0xff] {
                let mut bad = body.clone();
                bad[i] = v;
                let _ = decode(&bad, 0, Options { subjects: true }).map(|db| totals_agree(&db));
            }
        }
    }
}
