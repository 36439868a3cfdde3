//! `msgs/thw.db` (2.11+): when messages with a TTL expire. No checksum, never encrypted.
//!
//! | field | encoding |
//! |---|---|
//! | version `1` | u8 |
//! | number of entries | u64 |
//! | stamp: the last sequence + 1 when it was written (2.11.0 and 2.11.1: the last sequence) | u64 |
//! | each: time of expiry, ns, varint; sequence uvarint | |
//!
//! Entries hold for sequences below the stamp; the server scans the rest for `Nats-TTL` headers.

use super::bytes::{Cursor, Fault, FaultKind, put_uvarint, put_varint};
use serde::Serialize;

/// A message that expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Expiry {
    /// When, ns since the epoch.
    pub expires: i64,
    /// Which.
    pub seq: u64,
}

/// The timer wheel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ThwDb {
    /// Sequences below are covered.
    pub stamp: u64,
    /// The entries.
    pub entries: Vec<Expiry>,
}

/// Decodes a file.
pub fn decode(buf: &[u8], base: u64) -> Result<(ThwDb, usize), Fault> {
    let mut c = Cursor::new(buf, base);
    let version = c.u8()?;
    if version != 1 {
        return Err(Fault::new(
            base,
            FaultKind::Version {
                format: "thw.db",
                found: u64::from(version),
            },
        ));
    }
    let at = c.clone();
    let (n, stamp) = (c.u64()?, c.u64()?);
    let ceiling = (c.remaining() / 2) as u64;
    if n > ceiling {
        return Err(at.fault(FaultKind::TooLarge {
            what: "number of entries",
            value: n,
            ceiling,
        }));
    }
    let mut entries = Vec::new();
    for _ in 0..n {
        entries.push(Expiry {
            expires: c.varint()?,
            seq: c.uvarint()?,
        });
    }
    Ok((ThwDb { stamp, entries }, c.consumed()))
}

/// Encodes a file.
pub fn encode(db: &ThwDb) -> Vec<u8> {
    let mut out = vec![1];
    out.extend_from_slice(&(db.entries.len() as u64).to_le_bytes());
    out.extend_from_slice(&db.stamp.to_le_bytes());
    for e in &db.entries {
        put_varint(&mut out, e.expires);
        put_uvarint(&mut out, e.seq);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_cuts() {
        let db = ThwDb {
            stamp: 9,
            entries: vec![
                Expiry {
                    expires: 1_700_000_000_000_000_000,
                    seq: 3,
                },
                Expiry {
                    expires: -1,
                    seq: 300,
                },
            ],
        };
        let file = encode(&db);
        assert_eq!(decode(&file, 0).unwrap(), (db, file.len()));
        for n in 0..file.len() {
            decode(&file[..n], 0).unwrap_err();
        }
        let mut lying = file;
        lying[7] = 0xff;
        assert!(matches!(
            decode(&lying, 0).unwrap_err().kind,
            FaultKind::TooLarge { .. }
        ));
    }
}
