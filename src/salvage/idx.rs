//! `<n>.idx` of 2.2–2.9: the only record of most deletions there. It has no checksum, but hardly a number in it that
//! its block does not tell as well: one flipped bit away from an index that fits its block in all of them, it is
//! put right. Sealed ones have a tag.

use super::{Correction, EVERYTHING, Proof, Work, read};
use crate::format::idx::{self, Idx};
use crate::format::mend::Flip;
use crate::format::mend::small;
use crate::format::record::{Kind, OnDamage, Proof as RecordProof, Step, scan};
use crate::stream::{BlockFile, INDEX_FILE, Scratch, Stream};
use std::collections::BTreeMap;
use std::path::Path;

/// Longer ones are left alone: each bit takes decoding it and going through its block's records.
const LONGEST: usize = 64 << 10;

/// What a block tells of its index.
struct Facts {
    /// Time and length of each message.
    messages: BTreeMap<u64, (i64, u64)>,
    /// The last sequence used, and its time.
    last: (u64, i64),
    checksum: [u8; 8],
}

impl Facts {
    fn of(stream: &Stream, file: &BlockFile, scratch: &mut Scratch) -> Option<Self> {
        let bytes = stream.load(file, scratch).ok()?.bytes;
        let mut facts = Self {
            messages: BTreeMap::new(),
            last: (0, 0),
            checksum: *bytes.last_chunk()?,
        };
        let mut whole = true;
        let prover = stream.prover(file.n);
        scan(bytes, 0, &prover, OnDamage::Resync, |step| {
            let Step::Record(r, RecordProof::Proven) = step else {
                whole = false;
                return;
            };
            if r.kind == Kind::Tombstone || r.seq <= facts.last.0 {
                return;
            }
            facts.last = (r.seq, r.ts);
            if r.kind == Kind::Message {
                facts.messages.insert(r.seq, (r.ts, r.len()));
            }
        });
        (whole && !facts.messages.is_empty()).then_some(facts)
    }

    /// Whether an index says the same of all that both tell.
    fn fit(&self, idx: &Idx) -> bool {
        let first = self.messages.get(&idx.first_seq);
        let ends = idx.version == 1
            && idx.adds_up()
            && idx.outside == 0
            && idx.deleted.len() == idx.announced_deleted
            && idx.last_checksum == self.checksum
            && (idx.last_seq, idx.last_ts) == self.last
            && first.is_some_and(|(ts, _)| *ts == idx.first_ts);
        if !ends {
            return false;
        }
        let live = self.messages.range(idx.first_seq..);
        let live = live.filter(|(seq, _)| !idx.deleted.contains(**seq));
        let (count, bytes) = live.fold((0u64, 0u64), |(n, sum), (_, (_, len))| {
            (n.saturating_add(1), sum.saturating_add(*len))
        });
        (count, bytes) == (idx.msgs, idx.bytes)
    }
}

/// Mends the indexes of all blocks that have one. The blocks are mended by now.
pub(super) fn mend(work: &mut Work<'_>, msgs: &Path) {
    let stream = work.open(EVERYTHING);
    let mut scratch = Scratch::default();
    for file in stream.blocks.iter().filter(|b| b.idx) {
        let path = msgs.join(format!("{}.idx", file.n));
        let Some(raw) = read(work, &path, INDEX_FILE).filter(|raw| raw.len() <= LONGEST) else {
            continue;
        };
        let key = stream
            .tree()
            .filter(|_| file.key)
            .and_then(|(tree, _)| stream.block_key(tree, msgs, file.n).ok());
        if let Some(key) = key
            && idx::decode(&raw, 0).is_err()
        {
            let effort = work.effort();
            let opens = |bytes: &[u8]| key.open_with_own_nonce(bytes).is_ok();
            let (fix, tried) = small::by_predicate(&raw, opens, &effort);
            work.spend(tried.spent);
            if let Some(fix) = fix.filter(|f| !f.flips.is_empty()) {
                work.corrected(&path, fix, Proof::Tag);
            }
            continue;
        }
        let Some(facts) = Facts::of(&stream, file, &mut scratch) else {
            continue;
        };
        let fits = |bytes: &[u8]| idx::decode(bytes, 0).is_ok_and(|idx| facts.fit(&idx));
        if fits(&raw) {
            continue;
        }
        // Two that fit: either may be right.
        let mut found: Option<(Vec<u8>, Flip)> = None;
        let mut copy = raw.clone();
        let mut several = false;
        for at in 0..raw.len() {
            for bit in 0..8u8 {
                let toggle = |copy: &mut Vec<u8>| {
                    if let Some(byte) = copy.get_mut(at) {
                        *byte ^= 1 << bit;
                    }
                };
                toggle(&mut copy);
                if fits(&copy) {
                    several |= found.is_some();
                    let offset = at as u64;
                    found = Some((copy.clone(), Flip { offset, bit }));
                }
                toggle(&mut copy);
            }
        }
        if let Some((bytes, flip)) = found.filter(|_| !several) {
            let place = work.place(&path);
            work.report
                .corrections
                .push(Correction::new(place, &[flip], Proof::Likely));
            work.overlay.put(path, bytes);
        }
    }
    work.settle();
}
