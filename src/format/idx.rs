//! `msgs/<n>.idx`: the state of one block, written by 2.2–2.9, read by 2.10+ once at an upgrade.
//!
//! | field | encoding |
//! |---|---|
//! | magic `22`, version `1` (`2`: read by 2.10+, written by no release) | u8, u8 |
//! | messages, bytes, first sequence | uvarint |
//! | first time | varint |
//! | last sequence | uvarint |
//! | last time | varint |
//! | number of deletes | uvarint |
//! | the last 8 bytes of the block | 8 |
//! | version 1: each delete as uvarint (sequence − first), unsorted, 0 ends; version 2: a sequence set | |
//!
//! * Written in place and (until 2.9.15) not shortened: bytes of an older, longer state may follow.
//! * The number of deletes may count entries that were left out, so that stale bytes look like deletes:
//!   only sequences between first and last are taken.
//! * Current if its checksum is the block's last 8 bytes. A stale one still counts: the server starts its
//!   scan from its first sequence and deletes.
//! * Encrypted with the block's key and nonce, the nonce not repeated in the file.
//! * In 2.2–2.9 it is the only record of deletes that did not overwrite the message.

use super::bytes::{Cursor, Fault, FaultKind, put_uvarint, put_varint};
use super::seqset::{self, SeqSet};
use serde::Serialize;

/// First byte.
pub const MAGIC: u8 = 22;

/// The state of a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Idx {
    /// Version.
    pub version: u8,
    /// Live messages.
    pub msgs: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// First live sequence.
    pub first_seq: u64,
    /// Its time, ns.
    pub first_ts: i64,
    /// Last sequence.
    pub last_seq: u64,
    /// Its time, ns.
    pub last_ts: i64,
    /// The last 8 bytes of the block that it describes.
    #[serde(serialize_with = "super::index_db::hex")]
    pub last_checksum: [u8; 8],
    /// How many deletes it announces.
    pub announced_deleted: u64,
    /// The deletes that make sense.
    pub deleted: SeqSet,
    /// Length of the state; what follows is stale.
    pub consumed: usize,
}

impl Idx {
    /// Whether the message count is what the range and the deletes leave (2.8.3+ insist on it).
    pub fn adds_up(&self) -> bool {
        self.msgs
            == self
                .last_seq
                .wrapping_sub(self.first_seq)
                .wrapping_add(1)
                .wrapping_sub(self.deleted.len())
    }
}

/// Decodes a (decrypted) file.
pub fn decode(buf: &[u8], base: u64) -> Result<Idx, Fault> {
    let mut c = Cursor::new(buf, base);
    if c.u8()? != MAGIC {
        return Err(Fault::new(base, FaultKind::Magic { format: "idx" }));
    }
    let version = c.u8()?;
    if !(1..=2).contains(&version) {
        return Err(Fault::new(
            base + 1,
            FaultKind::Version {
                format: "idx",
                found: u64::from(version),
            },
        ));
    }
    let mut idx = Idx {
        version,
        msgs: c.uvarint()?,
        bytes: c.uvarint()?,
        first_seq: c.uvarint()?,
        first_ts: c.varint()?,
        last_seq: c.uvarint()?,
        last_ts: c.varint()?,
        announced_deleted: c.uvarint()?,
        last_checksum: [0; 8],
        ..Idx::default()
    };
    // An empty block's file may end before its checksum.
    if c.is_empty() {
        idx.consumed = c.consumed();
        return Ok(idx);
    }
    idx.last_checksum = c.array()?;
    if version == 2 && idx.announced_deleted > 0 {
        idx.deleted = seqset::decode(&mut c)?;
    } else {
        for _ in 0..idx.announced_deleted {
            // The list may be shorter than announced; the server stops where it ends, too.
            let Ok(delta) = c.uvarint() else { break };
            if delta == 0 {
                break;
            }
            match idx.first_seq.checked_add(delta) {
                Some(seq) if seq <= idx.last_seq => {
                    idx.deleted.insert(seq);
                }
                _ => {}
            }
        }
    }
    idx.consumed = c.consumed();
    Ok(idx)
}

/// Encodes as 2.2–2.9 do.
pub fn encode(idx: &Idx) -> Vec<u8> {
    let mut out = vec![MAGIC, 1];
    for v in [idx.msgs, idx.bytes, idx.first_seq] {
        put_uvarint(&mut out, v);
    }
    put_varint(&mut out, idx.first_ts);
    put_uvarint(&mut out, idx.last_seq);
    put_varint(&mut out, idx.last_ts);
    put_uvarint(&mut out, idx.deleted.len());
    out.extend_from_slice(&idx.last_checksum);
    for seq in idx.deleted.iter() {
        put_uvarint(&mut out, seq.wrapping_sub(idx.first_seq));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_tails_are_not_taken_for_deletes() {
        let idx = Idx {
            version: 1,
            msgs: 8,
            bytes: 400,
            first_seq: 10,
            first_ts: 5,
            last_seq: 19,
            last_ts: 9,
            last_checksum: *b"checksum",
            announced_deleted: 2,
            deleted: [12u64, 15].into_iter().collect(),
            consumed: 0,
        };
        let mut file = encode(&idx);
        let len = file.len();
        assert_eq!(
            decode(&file, 0).unwrap(),
            Idx {
                consumed: len,
                ..idx.clone()
            }
        );
        assert!(idx.adds_up());
        file.extend_from_slice(&[3, 200, 1, 7]);
        assert_eq!(decode(&file, 0).unwrap().deleted, idx.deleted);
        // Announced five, two written, then stale bytes: one inside the range, one outside, an end.
        let at = len - 2 - 8 - 1;
        file[at] = 5;
        let got = decode(&file, 0).unwrap();
        assert_eq!(got.deleted.iter().collect::<Vec<_>>(), [12, 13, 15, 17]);
        for n in 0..at {
            decode(&file[..n], 0).unwrap_err();
        }
    }
}
