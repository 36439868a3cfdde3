//! `msgs/sched.db` (2.12+): when message schedules fire. No checksum, never encrypted.
//!
//! | field | encoding |
//! |---|---|
//! | version `1` | u8 |
//! | number of entries | u64 |
//! | stamp: the last sequence + 1 when it was written | u64 |
//! | each: subject length u16, subject; time ns varint; sequence uvarint | |

use super::bytes::{Cursor, Fault, FaultKind, put_uvarint, put_varint};
use bstr::ByteSlice as _;
use serde::Serialize;

/// A schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// The subject of the message that holds it.
    #[serde(serialize_with = "lossy")]
    pub subject: Box<[u8]>,
    /// When it fires next, ns since the epoch.
    pub fires: i64,
    /// The message that holds it.
    pub seq: u64,
}

fn lossy<S: serde::Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&bytes.to_str_lossy())
}

/// All schedules of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SchedDb {
    /// Sequences below are covered.
    pub stamp: u64,
    /// The entries.
    pub entries: Vec<Schedule>,
}

/// Decodes a file.
pub fn decode(buf: &[u8], base: u64) -> Result<(SchedDb, usize), Fault> {
    let mut c = Cursor::new(buf, base);
    let version = c.u8()?;
    if version != 1 {
        return Err(Fault::new(
            base,
            FaultKind::Version {
                format: "sched.db",
                found: u64::from(version),
            },
        ));
    }
    let at = c.clone();
    let (n, stamp) = (c.u64()?, c.u64()?);
    let ceiling = (c.remaining() / 4) as u64;
    if n > ceiling {
        return Err(at.fault(FaultKind::TooLarge {
            what: "number of entries",
            value: n,
            ceiling,
        }));
    }
    let mut entries = Vec::new();
    for _ in 0..n {
        let len = usize::from(c.u16()?);
        let subject = c.take(len)?.into();
        entries.push(Schedule {
            subject,
            fires: c.varint()?,
            seq: c.uvarint()?,
        });
    }
    Ok((SchedDb { stamp, entries }, c.consumed()))
}

/// Encodes a file. Subjects over 65,535 bytes, which no server stores, are cut.
pub fn encode(db: &SchedDb) -> Vec<u8> {
    let mut out = vec![1];
    out.extend_from_slice(&(db.entries.len() as u64).to_le_bytes());
    out.extend_from_slice(&db.stamp.to_le_bytes());
    for e in &db.entries {
        let len = u16::try_from(e.subject.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(e.subject.get(..usize::from(len)).unwrap_or_default());
        put_varint(&mut out, e.fires);
        put_uvarint(&mut out, e.seq);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_cuts() {
        let db = SchedDb {
            stamp: 9,
            entries: vec![Schedule {
                subject: b"a.b".as_slice().into(),
                fires: 4_070_908_800_000_000_000,
                seq: 3,
            }],
        };
        let file = encode(&db);
        assert_eq!(decode(&file, 0).unwrap(), (db, file.len()));
        for n in 0..file.len() {
            decode(&file[..n], 0).unwrap_err();
        }
    }
}
