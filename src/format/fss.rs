//! `msgs/<n>.fss`: the subjects of one block, written by 2.3–2.9. Optional, never encrypted.
//!
//! | field | encoding |
//! |---|---|
//! | magic `22`, version `1` | u8, u8 |
//! | number of entries | uvarint |
//! | each: length, subject; messages, first sequence, last sequence | uvarint |
//! | HighwayHash-64 under the block's key over everything before | 8 |
//! | the last 8 bytes of the block | 8 |

use super::bytes::{Cursor, Fault, FaultKind, put_uvarint};
use super::hash::HashKey;
use bstr::ByteSlice as _;
use serde::Serialize;

/// A subject in the block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FssEntry {
    /// The subject.
    #[serde(serialize_with = "lossy")]
    pub subject: Box<[u8]>,
    /// Live messages.
    pub msgs: u64,
    /// First sequence.
    pub first: u64,
    /// Last sequence.
    pub last: u64,
}

fn lossy<S: serde::Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&bytes.to_str_lossy())
}

/// The subjects of a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fss {
    /// The entries.
    pub entries: Vec<FssEntry>,
    /// The last 8 bytes of the block that it describes.
    #[serde(serialize_with = "super::index_db::hex")]
    pub last_checksum: [u8; 8],
}

/// Checks the hash; gives what it covers.
pub fn check_hash<'a>(file: &'a [u8], block: &HashKey) -> Result<&'a [u8], Fault> {
    let short = || {
        Fault::new(
            0,
            FaultKind::Truncated {
                need: 19,
                have: file.len() as u64,
            },
        )
    };
    let at = file.len().checked_sub(16).ok_or_else(short)?;
    let (body, rest) = file.split_at_checked(at).ok_or_else(short)?;
    match rest.first_chunk::<8>() {
        Some(hash) if *hash == block.sum(body) => Ok(body),
        _ => Err(Fault::new(at as u64, FaultKind::Checksum { what: "fss" })),
    }
}

/// Decodes a file; its hash is not looked at.
pub fn decode(file: &[u8], base: u64) -> Result<Fss, Fault> {
    let mut c = Cursor::new(file, base);
    if c.u8()? != 22 {
        return Err(Fault::new(base, FaultKind::Magic { format: "fss" }));
    }
    let version = c.u8()?;
    if version != 1 {
        return Err(Fault::new(
            base + 1,
            FaultKind::Version {
                format: "fss",
                found: u64::from(version),
            },
        ));
    }
    let n = c.count("number of subjects", 4)?;
    let mut entries = Vec::new();
    for _ in 0..n {
        let len = c.uvarint()?;
        let subject = c
            .take_bounded("subject length", len, u64::from(u16::MAX))?
            .into();
        entries.push(FssEntry {
            subject,
            msgs: c.uvarint()?,
            first: c.uvarint()?,
            last: c.uvarint()?,
        });
    }
    c.take(8)?;
    Ok(Fss {
        entries,
        last_checksum: c.array()?,
    })
}

/// Encodes with the hash.
pub fn encode(fss: &Fss, block: &HashKey) -> Vec<u8> {
    let mut out = vec![22, 1];
    put_uvarint(&mut out, fss.entries.len() as u64);
    for e in &fss.entries {
        put_uvarint(&mut out, e.subject.len() as u64);
        out.extend_from_slice(&e.subject);
        for v in [e.msgs, e.first, e.last] {
            put_uvarint(&mut out, v);
        }
    }
    let hash = block.sum(&out);
    out.extend_from_slice(&hash);
    out.extend_from_slice(&fss.last_checksum);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let key = HashKey::block("S", 1);
        let fss = Fss {
            entries: vec![FssEntry {
                subject: b"a.b".as_slice().into(),
                msgs: 3,
                first: 1,
                last: 900,
            }],
            last_checksum: *b"checksum",
        };
        let file = encode(&fss, &key);
        check_hash(&file, &key).unwrap();
        assert_eq!(decode(&file, 0).unwrap(), fss);
        check_hash(&file, &HashKey::block("S", 2)).unwrap_err();
        for n in 0..file.len() {
            decode(&file[..n], 0).unwrap_err();
        }
    }
}
