//! HighwayHash-64, the only checksum of the file store, and the keys it is used with.
//!
//! The 32-byte key is the SHA-256 of a name, taken as four little-endian `u64` lanes; the digest is
//! written as eight little-endian bytes (`meta.sum` holds the same bytes as lowercase hex).
//!
//! | what | key string | covers |
//! |---|---|---|
//! | record in block `n` | `<stream>-<n>` | see [`record`](crate::format::record) |
//! | stream `meta.sum` | `<stream>` (the directory's name) | `meta.inf` as on disk |
//! | consumer `meta.sum` | `<stream>/<consumer>` | `meta.inf` as on disk |
//! | template `meta.sum` | `templates` | `meta.inf` as on disk |
//! | raft group `meta.sum`, snapshots | `<group>` | `meta.inf`; everything before the hash |
//! | `index.db` | `<stream>` | everything before the hash |
//! | `<n>.fss` | `<stream>-<n>` | everything before the hash |
//!
//! Holds for every release from 2.2 to 2.15.

use highway::{HighwayHash, HighwayHasher, Key};
use sha2::{Digest, Sha256};

/// A HighwayHash key derived from a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKey([u64; 4]);

impl HashKey {
    /// The key for `name`: its SHA-256.
    pub fn new(name: impl AsRef<[u8]>) -> Self {
        let digest: [u8; 32] = Sha256::digest(name.as_ref()).into();
        let mut lanes = [0u64; 4];
        for (lane, bytes) in lanes.iter_mut().zip(digest.chunks_exact(8)) {
            let mut word = [0u8; 8];
            word.copy_from_slice(bytes);
            *lane = u64::from_le_bytes(word);
        }
        Self(lanes)
    }

    /// The key of the records in block `n` of the stream (or raft group) `name`.
    pub fn block(name: impl AsRef<[u8]>, n: u64) -> Self {
        let mut text = name.as_ref().to_vec();
        text.extend_from_slice(format!("-{n}").as_bytes());
        Self::new(text)
    }

    pub(crate) fn lanes(&self) -> [u64; 4] {
        self.0
    }

    /// The digest of `data`.
    pub fn sum(&self, data: &[u8]) -> [u8; 8] {
        self.sum_parts(&[data])
    }

    /// The digest of the concatenation of `parts`.
    pub fn sum_parts(&self, parts: &[&[u8]]) -> [u8; 8] {
        let mut hasher = HighwayHasher::new(Key(self.0));
        for part in parts {
            hasher.append(part);
        }
        hasher.finalize64().to_le_bytes()
    }

    /// The digest of `data` as `meta.sum` writes it: 16 lowercase hex digits.
    pub fn sum_hex(&self, data: &[u8]) -> String {
        self.sum(data).iter().map(|b| format!("{b:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_vector() {
        // Computed by the server's own hash library for key "ORDERS", data "foo".
        assert_eq!(HashKey::new("ORDERS").sum_hex(b"foo"), "30049b78f61ef3ed");
        assert_eq!(HashKey::block("ORDERS", 17), HashKey::new("ORDERS-17"));
        assert_eq!(
            HashKey::new("ORDERS").sum_parts(&[b"f", b"", b"oo"]),
            HashKey::new("ORDERS").sum(b"foo")
        );
    }
}
