//! `sched.db`: when scheduled messages are due (2.12 and later, streams that allow schedules).
//!
//! | encoding | field |
//! |---|---|
//! | u8 | version 1 |
//! | u64 | number of entries |
//! | u64 | stamp: the last sequence + 1 at the time of writing |
//! | per entry | u16 length, subject, varint due time (nanoseconds), uvarint sequence of the schedule |
//!
//! The subject is that of the schedule's own message, cut at 65,535 bytes. Entries hold for
//! sequences below the stamp; the server reads later messages' `Nats-Schedule` headers itself, and
//! all of them if the file is missing or malformed. No checksum, never encrypted, no order. Bytes
//! behind the entries are ignored.

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::bytes::{Cursor, Fault, put_uvarint, put_varint};
use super::index_db::text_field;
use super::thw_db::{header, put_header};

const NAME: &str = "sched.db";

/// A decoded `sched.db`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SchedDb {
    /// Entries hold for sequences below.
    pub stamp: u64,
    /// In the file's order.
    pub entries: Vec<SchedEntry>,
}

/// A schedule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SchedEntry {
    /// Subject of the message that holds it; any bytes.
    pub subject: Vec<u8>,
    /// When it is due next, in nanoseconds.
    pub due: i64,
    /// Sequence of that message.
    pub seq: u64,
}

impl Serialize for SchedEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("SchedEntry", 3)?;
        text_field::<S>(&mut s, "subject", "subject_base64", &self.subject)?;
        s.serialize_field("due", &self.due)?;
        s.serialize_field("seq", &self.seq)?;
        s.end()
    }
}

/// Decodes a `sched.db`, returns it and the length consumed.
pub fn decode(buf: &[u8], base: u64) -> Result<(SchedDb, usize), Fault> {
    let mut c = Cursor::new(buf, base);
    let (count, stamp) = header(&mut c, NAME, 4)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let len = c.u16()?;
        let subject = c.take(len.into())?.to_vec();
        entries.push(SchedEntry {
            subject,
            due: c.varint()?,
            seq: c.uvarint()?,
        });
    }
    Ok((SchedDb { stamp, entries }, c.consumed()))
}

/// Encodes a `sched.db`; subjects are cut at 65,535 bytes, as the server does.
pub fn encode(db: &SchedDb) -> Vec<u8> {
    let mut out = put_header(db.entries.len(), db.stamp);
    for e in &db.entries {
        let len = u16::try_from(e.subject.len()).unwrap_or(u16::MAX);
        out.extend(len.to_le_bytes());
        out.extend(e.subject.iter().take(len.into()));
        put_varint(&mut out, e.due);
        put_uvarint(&mut out, e.seq);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::index_db::vectors;
    use super::*;

    #[test]
    fn files_of_servers_hold_the_schedules_of_the_messages() {
        for file in vectors::of("sched.db").into_iter().flatten() {
            let (db, consumed) = decode(&file.bytes, 0).unwrap();
            assert_eq!(consumed, file.bytes.len());
            assert_eq!(encode(&db), file.bytes);
            let text = |e: &SchedEntry| String::from_utf8(e.subject.clone()).unwrap();
            let mut entries: Vec<_> = db.entries.iter().map(|e| (text(e), e.due, e.seq)).collect();
            entries.sort_unstable();
            assert_eq!(json!(entries), file.truth["entries"], "{}", file.name);
            assert_eq!(json!(db.stamp - 1), file.state["last_seq"], "{}", file.name);
        }
    }

    #[test]
    fn damage_is_a_fault() {
        let entry = SchedEntry {
            subject: b"a.\xff".to_vec(),
            due: 1 << 60,
            seq: 4,
        };
        let db = SchedDb {
            stamp: 5,
            entries: vec![entry],
        };
        let mut bytes = encode(&db);
        assert_eq!(decode(&bytes, 0).unwrap(), (db.clone(), bytes.len()));
        assert_eq!(json!(db)["entries"][0]["subject_base64"], "YS7/");
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len], 0).is_err(), "{len}");
        }
        bytes[17] = 0xff;
        assert_eq!(decode(&bytes, 0).unwrap_err().offset, 19);
        let long = SchedEntry {
            subject: vec![b'x'; 70_000],
            due: 0,
            seq: 0,
        };
        let (back, _) = decode(
            &encode(&SchedDb {
                stamp: 1,
                entries: vec![long],
            }),
            0,
        )
        .unwrap();
        assert_eq!(back.entries[0].subject.len(), 65_535);
    }
}
