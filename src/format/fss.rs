//! `<n>.fss`: a block's subjects, written by 2.3 to 2.9, never encrypted.
//!
//! | encoding | field |
//! |---|---|
//! | u8 × 2 | magic 22, version 1 |
//! | uvarint | number of subjects |
//! | per subject | uvarint length, bytes, uvarint messages, uvarint first sequence, uvarint last sequence |
//! | 8 | HighwayHash under the block's key of everything before |
//! | 8 | hash of the block's last record when this was written: tells whether it is current |
//!
//! The order is random (Go map). Optional: the server rebuilds a missing or stale one, and 2.10
//! and later only delete it. It still names the subjects of a block that is lost.

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::bytes::{Cursor, Fault, FaultKind, put_uvarint};
use super::hash::HashKey;
use super::index_db::{hex, text_field};

const MAGIC: u8 = 22;
const VERSION: u8 = 1;
const MIN_LEN: usize = 24;
const TAIL_LEN: usize = 16;

/// A decoded `<n>.fss`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Fss {
    /// 1.
    pub version: u8,
    /// The subjects, in the file's order.
    pub entries: Vec<FssEntry>,
    /// Hash of the block's last record.
    #[serde(serialize_with = "hex")]
    pub last_checksum: [u8; 8],
}

/// A subject of a block.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FssEntry {
    /// The subject; any bytes.
    pub subject: Vec<u8>,
    /// Its messages in the block.
    pub msgs: u64,
    /// First sequence.
    pub first: u64,
    /// Last sequence.
    pub last: u64,
}

impl Serialize for FssEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("FssEntry", 4)?;
        text_field::<S>(&mut s, "subject", "subject_base64", &self.subject)?;
        s.serialize_field("msgs", &self.msgs)?;
        s.serialize_field("first_seq", &self.first)?;
        s.serialize_field("last_seq", &self.last)?;
        s.end()
    }
}

fn split(file: &[u8], base: u64) -> Result<(&[u8], &[u8]), Fault> {
    if file.len() < MIN_LEN {
        let kind = FaultKind::Truncated {
            need: MIN_LEN as u64,
            have: file.len() as u64,
        };
        return Err(Fault::new(base, kind));
    }
    Ok(file.split_at(file.len() - TAIL_LEN))
}

/// Checks the hash with the key of the block ([`HashKey::block`]).
pub fn check_hash(file: &[u8], key: &HashKey) -> Result<(), Fault> {
    let (body, tail) = split(file, 0)?;
    if !tail.starts_with(&key.sum(body)) {
        return Err(Fault::new(
            body.len() as u64,
            FaultKind::Checksum { what: "fss" },
        ));
    }
    Ok(())
}

/// Decodes a whole `<n>.fss`, returns it and the length consumed: less than all if bytes lie
/// between the entries and the hash. The hash is not checked here.
pub fn decode(buf: &[u8], base: u64) -> Result<(Fss, usize), Fault> {
    let (body, tail) = split(buf, base)?;
    let mut c = Cursor::new(body, base);
    let [magic, version] = c.array()?;
    if magic != MAGIC {
        return Err(Fault::new(
            base,
            FaultKind::Magic {
                format: "block subject index",
            },
        ));
    }
    if version != VERSION {
        let kind = FaultKind::Version {
            format: "block subject index",
            found: version.into(),
        };
        return Err(Fault::new(base.saturating_add(1), kind));
    }
    let count = c.count("number of subjects", 4)?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let len = c.count("length of a subject", 1)?;
        let subject = c.take_bounded("length of a subject", len, len)?.to_vec();
        entries.push(FssEntry {
            subject,
            msgs: c.uvarint()?,
            first: c.uvarint()?,
            last: c.uvarint()?,
        });
    }
    let consumed = c.consumed() + TAIL_LEN;
    let mut tail = Cursor::new(tail, 0);
    let _hash: [u8; 8] = tail.array()?;
    Ok((
        Fss {
            version,
            entries,
            last_checksum: tail.array()?,
        },
        consumed,
    ))
}

/// Encodes a `<n>.fss` under the key of its block.
pub fn encode(fss: &Fss, key: &HashKey) -> Vec<u8> {
    let mut out = vec![MAGIC, VERSION];
    put_uvarint(&mut out, fss.entries.len() as u64);
    for e in &fss.entries {
        put_uvarint(&mut out, e.subject.len() as u64);
        out.extend(&e.subject);
        put_uvarint(&mut out, e.msgs);
        put_uvarint(&mut out, e.first);
        put_uvarint(&mut out, e.last);
    }
    let hash = key.sum(&out);
    out.extend(hash);
    out.extend(fss.last_checksum);
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::index_db::vectors;
    use super::*;

    #[test]
    fn files_of_servers_say_what_clients_were_told() {
        let mut compared = 0;
        for files in vectors::of("fss") {
            let mut subjects: BTreeMap<String, u64> = BTreeMap::new();
            for file in &files {
                let key = HashKey::block(&file.stream, file.truth["block"].as_u64().unwrap());
                check_hash(&file.bytes, &key).unwrap();
                assert!(check_hash(&file.bytes, &HashKey::block(&file.stream, 99)).is_err());
                let (fss, consumed) = decode(&file.bytes, 0).unwrap();
                assert_eq!(consumed, file.bytes.len());
                assert_eq!(encode(&fss, &key), file.bytes);
                for e in fss.entries {
                    assert!(e.first <= e.last && e.msgs <= e.last - e.first + 1);
                    *subjects
                        .entry(String::from_utf8(e.subject).unwrap())
                        .or_default() += e.msgs;
                }
            }
            if !files[0].state.is_null() {
                compared += 1;
                assert_eq!(
                    json!(subjects),
                    files[0].state["subjects"],
                    "{}",
                    files[0].name
                );
            }
        }
        assert!(compared >= 2, "{compared}");
    }

    #[test]
    fn damage_is_a_fault() {
        let fss = Fss {
            version: 1,
            entries: vec![FssEntry {
                subject: b"a".to_vec(),
                msgs: 2,
                first: 1,
                last: 9,
            }],
            last_checksum: [7; 8],
        };
        let key = HashKey::block("S", 1);
        let file = encode(&fss, &key);
        assert_eq!(decode(&file, 0).unwrap(), (fss, file.len()));
        // The checksum of the block is not covered.
        for i in 0..file.len() - 8 {
            let mut bad = file.clone();
            bad[i] ^= 1;
            assert!(check_hash(&bad, &key).is_err(), "{i}");
        }
        let mut bad = file.clone();
        bad[2] = 9;
        assert_eq!(
            decode(&bad, 100).unwrap_err(),
            Fault::new(
                102,
                FaultKind::TooLarge {
                    what: "number of subjects",
                    value: 9,
                    ceiling: 1
                }
            )
        );
        let mut bad = file.clone();
        bad[3] = 200;
        assert!(decode(&bad, 0).is_err());
        assert!(decode(&file[..file.len() - 1], 0).is_err());
        assert!(decode(&file[..20], 0).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fault(tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = vec![MAGIC, VERSION];
            bytes.extend(&tail);
            if let Ok((_, consumed)) = decode(&bytes, 0) {
                prop_assert!(consumed <= bytes.len());
            }
        }
    }
}
