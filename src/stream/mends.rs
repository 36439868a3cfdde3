//! What salvage has found out about a stream's blocks: applied whenever one is loaded,
//! so that everything behind that works on mended blocks without knowing of it.

use crate::format::hash::HashKey;
use crate::format::mend::Flip;
use crate::format::record::{HASH_LEN, Prover, Record};
use crate::format::seqset::SeqSet;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

/// What is to be done to a stream's blocks.
#[derive(Debug, Clone, Default)]
pub struct Mends {
    /// By the block's number.
    pub blocks: BTreeMap<u64, BlockMends>,
    /// An `index.db` that the server would reject still tells what is deleted.
    pub witness: bool,
    /// A valid `index.db` does not list all that is live.
    pub distrust: bool,
    /// Nothing is read but the messages that [`BlockMends::keep`] names.
    pub only_kept: bool,
}

/// What is to be done to a block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockMends {
    /// Bits that are wrong in the file.
    pub file: Vec<Flip>,
    /// The length of a compressed block's header, where it does not tell itself.
    pub header: Option<usize>,
    /// Where the chunks of a compressed block are, and their content, where they do not tell themselves.
    pub chunks: Vec<(Range<u64>, Range<usize>)>,
    /// Bits that are wrong in the logical block: it was damaged before it was compressed.
    pub logical: Vec<Flip>,
    /// Offsets of records to be taken although their hash does not prove them.
    pub unproven: Vec<u64>,
    /// The records are all there, but not in their order.
    pub unordered: bool,
    /// Other files that hold records of this block: copies that a server was making.
    pub copies: Vec<PathBuf>,
    /// Where only some messages are wanted: which.
    pub keep: SeqSet,
}

impl BlockMends {
    /// True where nothing is to be done.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Gives unproven records the hash of what they hold.
    pub(super) fn vouch(&self, key: HashKey, logical: &mut [u8]) {
        let prover = Prover::new(key);
        for offset in &self.unproven {
            let at = usize::try_from(*offset).unwrap_or(usize::MAX);
            let Some(rest) = logical.get_mut(at..) else {
                continue;
            };
            let Ok((len, sum)) =
                Record::decode(rest, *offset).map(|r| (r.raw.len(), prover.sum(&r)))
            else {
                continue;
            };
            if let Some(to) = rest.get_mut(len.saturating_sub(HASH_LEN)..len) {
                to.copy_from_slice(&sum);
            }
        }
    }
}

/// Puts the bits right; `bytes` are those from offset 0 on.
pub fn apply(flips: &[Flip], bytes: &mut [u8]) {
    for flip in flips {
        let at = usize::try_from(flip.offset).unwrap_or(usize::MAX);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << (flip.bit & 7);
        }
    }
}
