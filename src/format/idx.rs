//! `<n>.idx`: a block's index, written by 2.2 to 2.9 and read by later servers once, at upgrade.
//!
//! | encoding | field |
//! |---|---|
//! | u8 × 2 | magic 22, version: 1; 2.10 and later also read 2, which no release writes |
//! | uvarint × 2 | messages, bytes |
//! | uvarint, varint | first sequence, its time |
//! | uvarint, varint | last sequence, its time |
//! | uvarint | number of deleted |
//! | 8 | hash of the block's last record |
//! | version 1: uvarint × deleted | sequence − first sequence, in no order; 0 ends the list |
//! | version 2: if any deleted | a [sequence set](crate::format::seqset) |
//!
//! Encrypted: the AEAD of the whole under the block's key and the key file's nonce, which is not
//! stored here.
//!
//! * Written over the old file without cutting it: bytes of an older, longer index may follow
//!   (until 2.9.0 nearly always, later if nothing is deleted).
//! * Announced is the number in memory; entries at or below the first sequence (below, from
//!   2.9.11) are dropped while writing. The list is then shorter than announced, and the reader
//!   runs into the stale bytes. So an entry counts only if it lies in first < sequence ≤ last.
//! * An entry equal to the first sequence (2.9.11 and later) is a 0 and ends the list for every
//!   reader.
//! * The server clears bit 63 of every unsigned number.
//! * Servers from 2.8.3 on use the file only if messages = last − first + 1 − deleted; older ones
//!   always. It is current if the hash is that at the end of the block (or both are missing).

use serde::Serialize;

use super::bytes::{Cursor, Fault, FaultKind, put_uvarint, put_varint};
use super::index_db::hex;
use super::seqset::{self, SeqSet};

const MAGIC: u8 = 22;
const EBIT: u64 = 1 << 63;

/// A decoded `<n>.idx`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Idx {
    /// 1, or 2 with a sequence set.
    pub version: u8,
    /// Messages in the block.
    pub msgs: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// First sequence; last + 1 in an empty block.
    pub first_seq: u64,
    /// Its time.
    pub first_ts: i64,
    /// Last sequence.
    pub last_seq: u64,
    /// Its time.
    pub last_ts: i64,
    /// Hash of the block's last record, zero without one.
    #[serde(serialize_with = "hex")]
    pub last_checksum: [u8; 8],
    /// The deleted sequences that lie between first and last.
    pub deleted: SeqSet,
    /// How many the header announces.
    pub announced_deleted: u64,
    /// Entries that lie outside first and last: mostly stale bytes taken for entries.
    pub outside: u64,
    /// Length without stale bytes; those that were taken for entries count as used.
    pub consumed: usize,
}

impl Idx {
    /// Whether the numbers add up, without which servers from 2.8.3 on discard the file.
    pub fn adds_up(&self) -> bool {
        let span = self.last_seq.wrapping_sub(self.first_seq).wrapping_add(1);
        self.msgs == span.wrapping_sub(self.announced_deleted)
    }
}

/// Decodes a plaintext `<n>.idx`.
pub fn decode(buf: &[u8], base: u64) -> Result<Idx, Fault> {
    let mut c = Cursor::new(buf, base);
    let [magic, version] = c.array()?;
    if magic != MAGIC {
        return Err(Fault::new(
            base,
            FaultKind::Magic {
                format: "block index",
            },
        ));
    }
    if !(1..=2).contains(&version) {
        let kind = FaultKind::Version {
            format: "block index",
            found: version.into(),
        };
        return Err(Fault::new(base.saturating_add(1), kind));
    }
    let number = |c: &mut Cursor<'_>| c.uvarint().map(|n| n & !EBIT);
    let mut idx = Idx {
        version,
        msgs: number(&mut c)?,
        bytes: number(&mut c)?,
        first_seq: number(&mut c)?,
        first_ts: c.varint()?,
        last_seq: number(&mut c)?,
        last_ts: c.varint()?,
        announced_deleted: number(&mut c)?,
        last_checksum: c.array()?,
        ..Idx::default()
    };
    if version == 2 {
        if idx.announced_deleted > 0 {
            let all = seqset::decode(&mut c)?;
            idx.deleted = all.clone();
            idx.deleted.remove_below(idx.first_seq.saturating_add(1));
            idx.deleted
                .remove_range(idx.last_seq.saturating_add(1), u64::MAX);
            idx.outside = all.len() - idx.deleted.len();
        }
    } else {
        // At most one entry a byte: the announced number is no bound to trust. A malformed entry
        // ends the list for the server too.
        for _ in 0..idx.announced_deleted.min(c.remaining() as u64) {
            let Ok(delta) = number(&mut c) else { break };
            if delta == 0 {
                break;
            }
            match idx.first_seq.checked_add(delta) {
                Some(seq) if seq <= idx.last_seq => {
                    idx.deleted.insert(seq);
                }
                _ => idx.outside += 1,
            }
        }
        idx.deleted.compact();
    }
    idx.consumed = c.consumed();
    Ok(idx)
}

/// Encodes an index in its version (2 as that, all else as 1), with the announced number as is.
pub fn encode(idx: &Idx) -> Vec<u8> {
    let version = if idx.version == 2 { 2 } else { 1 };
    let mut out = vec![MAGIC, version];
    put_uvarint(&mut out, idx.msgs);
    put_uvarint(&mut out, idx.bytes);
    put_uvarint(&mut out, idx.first_seq);
    put_varint(&mut out, idx.first_ts);
    put_uvarint(&mut out, idx.last_seq);
    put_varint(&mut out, idx.last_ts);
    put_uvarint(&mut out, idx.announced_deleted);
    out.extend(idx.last_checksum);
    if version == 1 {
        for seq in idx.deleted.iter() {
            put_uvarint(&mut out, seq.wrapping_sub(idx.first_seq));
        }
    } else if idx.announced_deleted > 0 {
        seqset::encode(&idx.deleted, &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::index_db::vectors;
    use super::*;

    #[test]
    fn files_of_servers_say_what_clients_were_told() {
        let mut compared = 0;
        for files in vectors::of("idx") {
            if files[0].truth["sealed"] == true {
                assert!(files.iter().all(|f| decode(&f.bytes, 0).is_err()));
                continue;
            }
            let (mut msgs, mut bytes, mut last, mut live) = (0, 0, 0, SeqSet::new());
            let mut current = true;
            for file in &files {
                let name = &file.name;
                let idx = decode(&file.bytes, 0).unwrap();
                assert!(idx.adds_up(), "{name}");
                assert_eq!(idx.deleted.len(), idx.announced_deleted, "{name}");
                assert_eq!((idx.outside, idx.version), (0, 1), "{name}");
                // The list is in no order, so only its length can be compared.
                let again = encode(&idx);
                assert_eq!(again.len(), idx.consumed, "{name}");
                let head = again.len()
                    - idx
                        .deleted
                        .iter()
                        .map(|s| 1 + usize::from(s - idx.first_seq > 127))
                        .sum::<usize>();
                assert_eq!(again[..head], file.bytes[..head], "{name}");
                let mut back = decode(&again, 0).unwrap();
                back.consumed = idx.consumed;
                assert_eq!(back, idx, "{name}");
                let tail = &serde_json::to_value(&idx).unwrap()["last_checksum"];
                current &= file.truth["tail"] == *tail
                    || (file.truth["tail"] == "" && tail == "0000000000000000");
                msgs += idx.msgs;
                bytes += idx.bytes;
                last = last.max(idx.last_seq);
                if idx.msgs > 0 {
                    live.insert_range(idx.first_seq, idx.last_seq);
                    live.difference_with(&idx.deleted);
                }
            }
            let state = &files[0].state;
            if state.is_null() {
                continue;
            }
            let name = &files[0].name;
            if !current {
                // 2.9 does not always write it at the stop.
                assert!(
                    name.starts_with("2.9") && msgs < state["messages"].as_u64().unwrap(),
                    "{name}"
                );
                continue;
            }
            compared += 1;
            assert_eq!(state["messages"], msgs, "{name}");
            assert_eq!(state["bytes"], bytes, "{name}");
            assert_eq!(state["last_seq"], last, "{name}");
            assert_eq!(live, vectors::live(state), "{name}");
        }
        assert!(compared >= 4, "{compared}");
    }

    fn header(deleted: u64) -> Vec<u8> {
        let mut out = vec![MAGIC, 1];
        for n in [10 - deleted, 900, 100] {
            put_uvarint(&mut out, n);
        }
        put_varint(&mut out, 5);
        put_uvarint(&mut out, 109);
        put_varint(&mut out, 6);
        put_uvarint(&mut out, deleted);
        out.extend([9; 8]);
        out
    }

    #[test]
    fn the_list_of_deleted_ends_where_it_must() {
        let with = |deleted: u64, list: &[u8]| {
            let mut bytes = header(deleted);
            let head = bytes.len();
            bytes.extend(list);
            let idx = decode(&bytes, 0).unwrap();
            assert_eq!(idx.announced_deleted, deleted);
            (
                idx.deleted.iter().collect::<Vec<_>>(),
                idx.outside,
                idx.consumed - head,
            )
        };
        // As announced, in any order, with a stale tail behind.
        assert_eq!(with(2, &[8, 3, 5, 5]), (vec![103, 108], 0, 2));
        // A zero ends it, and is used up.
        assert_eq!(with(3, &[2, 0, 5]), (vec![102], 0, 2));
        // End of file, or an entry cut off.
        assert_eq!(with(3, &[2]), (vec![102], 0, 1));
        assert_eq!(with(3, &[2, 0x80]), (vec![102], 0, 1));
        // Stale bytes taken for entries: outside first < seq <= last.
        assert_eq!(with(3, &[9, 10, 1]), (vec![101, 109], 1, 3));
        // None announced: nothing is read.
        assert_eq!(with(0, &[1, 2, 3]), (vec![], 0, 0));
        // Bit 63 does not count.
        assert_eq!(
            with(
                1,
                &[0x84, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1]
            ),
            (vec![104], 0, 10)
        );
        // A claim beyond all bounds costs nothing.
        let mut huge = header(0);
        huge.truncate(huge.len() - 9);
        put_uvarint(&mut huge, u64::MAX);
        huge.extend([9; 8]);
        huge.extend([1, 2]);
        let idx = decode(&huge, 0).unwrap();
        assert_eq!((idx.deleted.len(), idx.adds_up()), (2, false));
    }

    #[test]
    fn version_2_holds_a_sequence_set() {
        let mut idx = decode(&header(3), 0).unwrap();
        idx.version = 2;
        idx.deleted = [100, 102, 105, 110].into_iter().collect();
        let bytes = encode(&idx);
        let back = decode(&bytes, 0).unwrap();
        assert_eq!(back.deleted.iter().collect::<Vec<_>>(), [102, 105]);
        assert_eq!((back.outside, back.consumed), (2, bytes.len()));
        assert!(decode(&bytes[..bytes.len() - 1], 0).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fault(tail in prop::collection::vec(any::<u8>(), 0..200), version in 1u8..3) {
            let mut bytes = vec![MAGIC, version];
            bytes.extend(&tail);
            if let Ok(idx) = decode(&bytes, 0) {
                prop_assert!(idx.consumed <= bytes.len());
                prop_assert!(idx.deleted.min().is_none_or(|s| s > idx.first_seq));
                prop_assert!(idx.deleted.max().is_none_or(|s| s <= idx.last_seq));
            }
        }
    }

    /// Entries in no order, each far from the others, take no longer than as many in order.
    #[test]
    fn scattered_entries_cost_no_time() {
        const ENTRIES: u64 = 1 << 18;
        let head = Idx {
            version: 1,
            msgs: 1,
            first_seq: 1,
            last_seq: 1 << 40,
            announced_deleted: ENTRIES,
            ..Idx::default()
        };
        let mut file = encode(&head);
        for i in (1..=ENTRIES).rev() {
            put_uvarint(&mut file, i << 20);
        }
        let start = std::time::Instant::now();
        let idx = decode(&file, 0).unwrap();
        assert_eq!(idx.deleted.len(), ENTRIES);
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }
}
