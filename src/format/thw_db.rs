//! `thw.db`: when messages with a TTL expire (2.11 and later, streams that allow message TTLs).
//!
//! | encoding | field |
//! |---|---|
//! | u8 | version 1 |
//! | u64 | number of entries |
//! | u64 | stamp: the last sequence + 1 at the time of writing (2.11.0 and 2.11.1: the last sequence) |
//! | per entry | varint expiry (nanoseconds), uvarint sequence |
//!
//! Entries hold for sequences below the stamp; the server reads later messages' `Nats-TTL` headers
//! itself, and all of them if the file is missing or malformed. No checksum, never encrypted, no
//! order. Bytes behind the entries are ignored.

use serde::Serialize;

use super::bytes::{Cursor, Fault, FaultKind, put_uvarint, put_varint};

const VERSION: u8 = 1;
const NAME: &str = "thw.db";

/// A decoded `thw.db`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ThwDb {
    /// Entries hold for sequences below.
    pub stamp: u64,
    /// In the file's order.
    pub entries: Vec<ThwEntry>,
}

/// A message that expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ThwEntry {
    /// When, in nanoseconds.
    pub expires: i64,
    /// Its sequence.
    pub seq: u64,
}

/// Decodes a `thw.db`, returns it and the length consumed.
pub fn decode(buf: &[u8], base: u64) -> Result<(ThwDb, usize), Fault> {
    let mut c = Cursor::new(buf, base);
    let (count, stamp) = header(&mut c, NAME, 2)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(ThwEntry {
            expires: c.varint()?,
            seq: c.uvarint()?,
        });
    }
    Ok((ThwDb { stamp, entries }, c.consumed()))
}

/// Encodes a `thw.db`.
pub fn encode(db: &ThwDb) -> Vec<u8> {
    let mut out = put_header(db.entries.len(), db.stamp);
    for e in &db.entries {
        put_varint(&mut out, e.expires);
        put_uvarint(&mut out, e.seq);
    }
    out
}

/// The header that `thw.db`, `sched.db` and `sources.db` share: number of entries of at least
/// `min_size` bytes, and stamp.
pub(super) fn header(
    c: &mut Cursor<'_>,
    format: &'static str,
    min_size: u64,
) -> Result<(u64, u64), Fault> {
    let start = c.clone();
    let found = c.u8()?;
    if found != VERSION {
        return Err(start.fault(FaultKind::Version {
            format,
            found: found.into(),
        }));
    }
    let at = c.clone();
    let (count, stamp) = (c.u64()?, c.u64()?);
    let ceiling = c.remaining() as u64 / min_size;
    if count > ceiling {
        return Err(at.fault(FaultKind::TooLarge {
            what: "number of entries",
            value: count,
            ceiling,
        }));
    }
    Ok((count, stamp))
}

pub(super) fn put_header(count: usize, stamp: u64) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend((count as u64).to_le_bytes());
    out.extend(stamp.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::index_db::vectors;
    use super::*;

    #[test]
    fn files_of_servers_hold_the_expiries_of_the_messages() {
        for file in vectors::of("thw.db").into_iter().flatten() {
            let (db, consumed) = decode(&file.bytes, 0).unwrap();
            assert_eq!(consumed, file.bytes.len());
            assert_eq!(encode(&db), file.bytes);
            let mut entries: Vec<_> = db.entries.iter().map(|e| (e.expires, e.seq)).collect();
            entries.sort_unstable();
            assert_eq!(json!(entries), file.truth["entries"], "{}", file.name);
            assert_eq!(json!(db.stamp - 1), file.state["last_seq"], "{}", file.name);
        }
    }

    #[test]
    fn counts_are_bounded_and_the_rest_is_left() {
        let mut bytes = encode(&ThwDb {
            stamp: 9,
            entries: vec![ThwEntry {
                expires: -5,
                seq: 3,
            }],
        });
        let len = bytes.len();
        bytes.push(0xff);
        let (db, consumed) = decode(&bytes, 0).unwrap();
        assert_eq!(
            (db.entries[0], consumed),
            (
                ThwEntry {
                    expires: -5,
                    seq: 3
                },
                len
            )
        );
        bytes[1] = 2;
        let kind = FaultKind::TooLarge {
            what: "number of entries",
            value: 2,
            ceiling: 1,
        };
        assert_eq!(decode(&bytes, 10).unwrap_err(), Fault::new(11, kind));
        bytes[0] = 2;
        assert_eq!(decode(&bytes, 10).unwrap_err().offset, 10);
        assert!(decode(&bytes[..16], 0).is_err());
    }
}
