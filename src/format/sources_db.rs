//! `sources.db`: how far a stream has read its sources (2.15 and later). Lies in the stream's
//! directory, not in `msgs/`.
//!
//! | encoding | field |
//! |---|---|
//! | u8 | version 1 |
//! | u64 | number of entries |
//! | u64 | stamp: the last sequence + 1 at the time of writing |
//! | per entry | uvarint length, index name, uvarint sequence, uvarint length, identity |
//!
//! The index name is `<stream> <filter or ">"> <transform destination or ">">`, with
//! `<stream>:<hash of the API prefix>` for a stream elsewhere; the identity (8 characters, or
//! empty) tells apart origins that were made anew under the same name. Entries hold for sequences
//! below the stamp; otherwise the server goes by the `Nats-Stream-Source` headers of its messages.
//! The file outlives a purge and is then all that is left of the position. No checksum, never
//! encrypted, no order. Older servers ignore it. Bytes behind the entries are ignored.

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::bytes::{Cursor, Fault, put_uvarint};
use super::index_db::text_field;
use super::thw_db::{header, put_header};

const NAME: &str = "sources.db";

/// A decoded `sources.db`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SourcesDb {
    /// Entries hold for sequences below.
    pub stamp: u64,
    /// In the file's order.
    pub entries: Vec<SourceEntry>,
}

/// A source and how far it has been read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceEntry {
    /// Index name; any bytes.
    pub name: Vec<u8>,
    /// Last sequence taken from the origin.
    pub seq: u64,
    /// Identity of the origin, or empty; any bytes.
    pub ident: Vec<u8>,
}

impl Serialize for SourceEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("SourceEntry", 3)?;
        text_field::<S>(&mut s, "name", "name_base64", &self.name)?;
        s.serialize_field("seq", &self.seq)?;
        text_field::<S>(&mut s, "ident", "ident_base64", &self.ident)?;
        s.end()
    }
}

/// Decodes a `sources.db`, returns it and the length consumed.
pub fn decode(buf: &[u8], base: u64) -> Result<(SourcesDb, usize), Fault> {
    let mut c = Cursor::new(buf, base);
    let (count, stamp) = header(&mut c, NAME, 3)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let name = text(&mut c)?;
        let seq = c.uvarint()?;
        entries.push(SourceEntry {
            name,
            seq,
            ident: text(&mut c)?,
        });
    }
    Ok((SourcesDb { stamp, entries }, c.consumed()))
}

fn text(c: &mut Cursor<'_>) -> Result<Vec<u8>, Fault> {
    let len = c.count("length of a source's name", 1)?;
    Ok(c.take_bounded("length of a source's name", len, len)?
        .to_vec())
}

/// Encodes a `sources.db`.
pub fn encode(db: &SourcesDb) -> Vec<u8> {
    let mut out = put_header(db.entries.len(), db.stamp);
    for e in &db.entries {
        put_uvarint(&mut out, e.name.len() as u64);
        out.extend(&e.name);
        put_uvarint(&mut out, e.seq);
        put_uvarint(&mut out, e.ident.len() as u64);
        out.extend(&e.ident);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::index_db::vectors;
    use super::*;

    #[test]
    fn files_of_servers_hold_the_positions_of_the_messages() {
        for file in vectors::of("sources.db").into_iter().flatten() {
            let (db, consumed) = decode(&file.bytes, 0).unwrap();
            assert_eq!(consumed, file.bytes.len());
            assert_eq!(encode(&db), file.bytes);
            let text = |t: &[u8]| String::from_utf8(t.to_vec()).unwrap();
            let mut entries: Vec<_> = db
                .entries
                .iter()
                .map(|e| (text(&e.name), e.seq, text(&e.ident)))
                .collect();
            entries.sort_unstable();
            assert_eq!(json!(entries), file.truth["entries"], "{}", file.name);
            assert_eq!(json!(db.stamp - 1), file.state["last_seq"], "{}", file.name);
        }
    }

    #[test]
    fn damage_is_a_fault() {
        // As a 2.15 server wrote it.
        let bytes = b"\x01\x01\0\0\0\0\0\0\0\x0d\0\0\0\0\0\0\0\x0cORDERS o.2 >\x26\x08Tt63OhTB";
        let (db, consumed) = decode(bytes, 0).unwrap();
        assert_eq!(consumed, bytes.len());
        assert_eq!(
            json!(db),
            json!({"stamp": 13, "entries": [{"name": "ORDERS o.2 >", "seq": 38, "ident": "Tt63OhTB"}]})
        );
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len], 0).is_err(), "{len}");
        }
        let mut bad = bytes.to_vec();
        bad[8] = 1;
        assert_eq!(decode(&bad, 0).unwrap_err().offset, 1);
        let mut bad = bytes.to_vec();
        bad[31] = 9;
        assert_eq!(decode(&bad, 0).unwrap_err().offset, 31);
    }
}
