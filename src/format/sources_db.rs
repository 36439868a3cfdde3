//! `sources.db` (2.15+, beside `meta.inf`): how far a stream has copied each of its sources. No checksum,
//! never encrypted.
//!
//! | field | encoding |
//! |---|---|
//! | version `1` | u8 |
//! | number of entries | u64 |
//! | stamp: the last sequence + 1 when it was written | u64 |
//! | each: length uvarint, name of the source; origin's sequence uvarint; length uvarint, identity of the origin | |
//!
//! The name is `<stream> <filter or ">"> <transform or ">">`; the identity has 8 characters or none.
//! Servers before 2.15 ignore the file.

use super::bytes::{Cursor, Fault, FaultKind, put_uvarint};
use serde::Serialize;

const MAX_TEXT: u64 = 1 << 20;

/// How far one source was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceEntry {
    /// Name of the source.
    pub name: String,
    /// Last sequence of the origin that was taken.
    pub seq: u64,
    /// Identity of the origin stream.
    pub ident: String,
}

/// The positions of all sources.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SourcesDb {
    /// Sequences below are covered.
    pub stamp: u64,
    /// The entries.
    pub entries: Vec<SourceEntry>,
}

fn text(c: &mut Cursor<'_>, what: &'static str) -> Result<String, Fault> {
    let len = c.uvarint()?;
    let bytes = c.take_bounded(what, len, MAX_TEXT)?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// Decodes a file.
pub fn decode(buf: &[u8], base: u64) -> Result<(SourcesDb, usize), Fault> {
    let mut c = Cursor::new(buf, base);
    let version = c.u8()?;
    if version != 1 {
        return Err(Fault::new(
            base,
            FaultKind::Version {
                format: "sources.db",
                found: u64::from(version),
            },
        ));
    }
    let at = c.clone();
    let (n, stamp) = (c.u64()?, c.u64()?);
    let ceiling = (c.remaining() / 3) as u64;
    if n > ceiling {
        return Err(at.fault(FaultKind::TooLarge {
            what: "number of entries",
            value: n,
            ceiling,
        }));
    }
    let mut entries = Vec::new();
    for _ in 0..n {
        let name = text(&mut c, "name length")?;
        let seq = c.uvarint()?;
        entries.push(SourceEntry {
            name,
            seq,
            ident: text(&mut c, "identity length")?,
        });
    }
    Ok((SourcesDb { stamp, entries }, c.consumed()))
}

/// Encodes a file.
pub fn encode(db: &SourcesDb) -> Vec<u8> {
    let mut out = vec![1];
    out.extend_from_slice(&(db.entries.len() as u64).to_le_bytes());
    out.extend_from_slice(&db.stamp.to_le_bytes());
    for e in &db.entries {
        put_uvarint(&mut out, e.name.len() as u64);
        out.extend_from_slice(e.name.as_bytes());
        put_uvarint(&mut out, e.seq);
        put_uvarint(&mut out, e.ident.len() as u64);
        out.extend_from_slice(e.ident.as_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_server() {
        // Written by 2.15.2 for a stream that sources ORDERS with filter o.2.
        let mut file = vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0x0d, 0, 0, 0, 0, 0, 0, 0, 0x0c];
        file.extend_from_slice(b"ORDERS o.2 >\x26\x08Tt63OhTB");
        let (db, used) = decode(&file, 0).unwrap();
        assert_eq!(used, file.len());
        assert_eq!(db.stamp, 13);
        assert_eq!(
            db.entries,
            [SourceEntry {
                name: "ORDERS o.2 >".into(),
                seq: 38,
                ident: "Tt63OhTB".into()
            }]
        );
        assert_eq!(encode(&db), file);
        for n in 0..file.len() {
            decode(&file[..n], 0).unwrap_err();
        }
    }
}
