//! Bringing one block to its logical content: read, decrypt, decompress.

use super::mends::{BlockMends, apply};
use super::{BLOCK_FILE, BlockFile, Stream};
use crate::finding::{Code, Finding, Severity};
use crate::format::block::{self, Container};
use crate::format::crypt::SealKey;
use crate::format::record::{Kind, OnDamage, Proof, Prover, Record, Step, scan};
use crate::format::s2::{self, StreamReport};
use crate::source::Body;
use crate::source::tree::ReadError;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Buffers that are used again for each block.
#[derive(Debug, Default)]
pub struct Scratch {
    raw: Vec<u8>,
    logical: Vec<u8>,
    map: Option<memmap2::Mmap>,
}

/// Buffers over this size are given back after a block that needed them.
const KEEP: usize = 24 << 20;

impl Scratch {
    /// The file that was read last, decrypted.
    pub(crate) fn decrypted(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&self.raw)
    }

    fn trim(&mut self) {
        self.raw.clear();
        self.raw.shrink_to(KEEP);
        // Not cleared: what a block decodes to goes over it.
        self.logical.truncate(KEEP);
        self.logical.shrink_to(KEEP);
        self.map = None;
    }
}

/// How reading a block went.
#[derive(Debug)]
pub(crate) struct Raw {
    /// What it was sealed with.
    pub key: Option<SealKey>,
    /// It was encrypted.
    pub encrypted: bool,
    /// Length of the file.
    pub file_len: u64,
    /// What was noticed.
    pub findings: Vec<Finding>,
}

/// A block's logical content.
#[derive(Debug)]
pub struct Loaded<'b> {
    /// The block's number.
    pub n: u64,
    /// The records.
    pub bytes: &'b [u8],
    /// How they were wrapped.
    pub container: Container,
    /// The file was encrypted.
    pub encrypted: bool,
    /// Length of the file.
    pub file_len: u64,
    /// What is wrong with the wrapping.
    pub findings: Vec<Finding>,
}

/// Whether these bytes look like a block's, by their first bytes alone.
fn plausible(bytes: &[u8], prover: &Prover) -> bool {
    match Container::detect(bytes, prover) {
        Container::S2 { .. } | Container::HeaderlessS2 | Container::Plain { lookalike: true } => {
            true
        }
        Container::Plain { .. } => {
            bytes.is_empty() || Record::decode(bytes, 0).is_ok_and(|r| r.proves(prover))
        }
    }
}

/// How many records prove themselves: the way to choose when the first bytes are damaged.
fn proven(bytes: &[u8], prover: &Prover) -> u64 {
    let mut count = 0;
    scan(bytes, 0, prover, OnDamage::Resync, |step| {
        count += u64::from(matches!(step, Step::Record(_, Proof::Proven)));
    });
    count
}

impl Stream {
    /// The prover of block `n`'s records.
    pub fn prover(&self, n: u64) -> Prover {
        Prover::for_block(self.name.as_bytes(), n)
    }

    /// Says that a block will be loaded when those before it are.
    pub(crate) fn will_load(&self, file: Option<&BlockFile>) {
        if let (Some(file), Body::Blocks { tree, .. }) = (file, &self.body) {
            let path = self.msgs_dir().join(format!("{}.blk", file.n));
            tree.will_read(&path, BLOCK_FILE);
        }
    }

    /// Reads and decrypts a block, and says how it went; its bytes are [`Scratch::decrypted`] then. `Err` where
    /// nothing can be read of it.
    pub(crate) fn read(
        &self,
        file: &BlockFile,
        scratch: &mut Scratch,
    ) -> Result<Raw, Box<Finding>> {
        let Body::Blocks { tree, .. } = &self.body else {
            return Err(Box::new(Finding::new(
                Code::Unreadable,
                "this source has no blocks",
            )));
        };
        scratch.trim();
        let msgs = self.msgs_dir();
        let path = msgs.join(format!("{}.blk", file.n));
        let place = self.place(&path);
        let mut findings = Vec::new();
        let named = |f: Finding| f.stream(&self.account, &self.name).file(place.clone());
        let unreadable = |e: ReadError| {
            let code = match e {
                ReadError::TooLarge { .. } => Code::TooLarge,
                ReadError::Io(_) => Code::Unreadable,
            };
            Box::new(named(Finding::new(code, format!("cannot be read: {e}"))))
        };
        let mends = self.mends.blocks.get(&file.n);
        let mapped = if file.key || file.len == 0 || file.len > BLOCK_FILE || mends.is_some() {
            None
        } else {
            tree.map(&path)
        };
        match mapped {
            Some(map) => scratch.map = Some(map.map_err(|e| unreadable(e.into()))?),
            None => {
                for fault in tree
                    .read_into(&path, &mut scratch.raw, BLOCK_FILE)
                    .map_err(unreadable)?
                {
                    findings.push(named(
                        Finding::new(Code::ArchiveDamaged, fault.detail).offset(fault.offset),
                    ));
                }
            }
        }
        if let Some(mends) = mends {
            apply(&mends.file, &mut scratch.raw);
        }
        let file_len = scratch.map.as_ref().map_or(scratch.raw.len(), |m| m.len()) as u64;
        let prover = self.prover(file.n);
        let mut key: Option<SealKey> = None;
        if file.key {
            match self.block_key(&**tree, &msgs, file.n) {
                Ok(seal) => key = Some(seal),
                Err(f) => {
                    // Without its key a block may still be plaintext that was never encrypted.
                    if !plausible(&scratch.raw, &prover) {
                        return Err(Box::new(f.stream(&self.account, &self.name)));
                    }
                    findings.push(f.stream(&self.account, &self.name));
                }
            }
        } else if self.cipher.is_some() && file_len > 0 {
            findings.push(named(Finding::new(
                Code::Plaintext,
                "a plaintext block in an encrypted store",
            )));
        }
        let mut encrypted = key.is_some();
        // Ciphertext never looks like a block, so looking at it as it is costs nothing and finds
        // plaintext that a restore or a late change of configuration left behind.
        if let Some(seal) = &key {
            if is_headerless(&scratch.raw) {
                // Compressed after encryption: decrypted below.
            } else if plausible(&scratch.raw, &prover) && !scratch.raw.is_empty() {
                encrypted = false;
                let f = Finding::new(Code::Plaintext, "a plaintext block beside a key file");
                findings.push(named(f.action(crate::stream::AS_CIPHERTEXT)));
            } else {
                seal.apply_keystream(0, &mut scratch.raw);
                if !plausible(&scratch.raw, &prover) {
                    let as_decrypted = proven(&scratch.raw, &prover);
                    if as_decrypted == 0 {
                        seal.apply_keystream(0, &mut scratch.raw);
                        if proven(&scratch.raw, &prover) > 0 {
                            encrypted = false;
                        } else {
                            seal.apply_keystream(0, &mut scratch.raw);
                        }
                    }
                }
            }
        }
        Ok(Raw {
            key,
            encrypted,
            file_len,
            findings,
        })
    }

    /// Reads, decrypts and decompresses a block. `Err` where nothing can be read of it.
    pub fn load<'b>(
        &self,
        file: &BlockFile,
        scratch: &'b mut Scratch,
    ) -> Result<Loaded<'b>, Box<Finding>> {
        if self.mends.only_kept && !self.mends.blocks.contains_key(&file.n) {
            scratch.trim();
            return Ok(Loaded {
                n: file.n,
                bytes: &[],
                container: Container::Plain { lookalike: false },
                encrypted: false,
                file_len: file.len,
                findings: Vec::new(),
            });
        }
        let Raw {
            key,
            encrypted,
            file_len,
            mut findings,
        } = self.read(file, scratch)?;
        let place = self.block_place(file.n);
        let named = |f: Finding| f.stream(&self.account, &self.name).file(place.clone());
        let prover = self.prover(file.n);
        let mends = self.mends.blocks.get(&file.n);
        let header = mends.and_then(|m| m.header);
        let container = match header {
            Some(header) => Container::S2 {
                header,
                original: 0,
            },
            None => Container::detect(scratch.decrypted(), &prover),
        };
        if let (Some(mends), Container::Plain { .. }) = (mends, container) {
            let mut records = std::mem::take(&mut scratch.raw);
            self.mend(file.n, mends, key.as_ref(), &mut records);
            scratch.raw = records;
        }
        let Scratch { raw, logical, map } = scratch;
        let raw: &[u8] = map.as_deref().unwrap_or(raw);
        let mut claimed = None;
        let header = match container {
            Container::Plain { lookalike } => {
                if lookalike {
                    findings.push(named(Finding::new(
                        Code::CmpLookalike,
                        "starts with \"cmp\" by chance",
                    )));
                }
                return Ok(Loaded {
                    n: file.n,
                    bytes: raw,
                    container,
                    encrypted,
                    file_len,
                    findings,
                });
            }
            Container::S2 { header, original } => {
                claimed = Some(original).filter(|_| mends.is_none());
                header
            }
            Container::HeaderlessS2 => {
                findings.push(named(
                    Finding::new(
                        Code::HeaderlessS2,
                        "compressed without a header (a fault of servers up to 2.12.11 and 2.14.2)",
                    )
                    .severity(Severity::Warning),
                ));
                0
            }
        };
        let report = match mends {
            Some(mends) if !mends.chunks.is_empty() => chunks(raw, &mends.chunks, logical),
            _ => block::decompress(raw, header, logical, BLOCK_FILE as usize),
        };
        for fault in &report.faults {
            findings.push(named(
                Finding::new(
                    Code::Compression,
                    format!("{} (offset in the compressed file)", fault.kind),
                )
                .offset(fault.offset),
            ));
        }
        if report.truncated && report.faults.is_empty() {
            findings.push(named(
                Finding::new(Code::Compression, "the compressed stream is cut off")
                    .offset(report.consumed),
            ));
        }
        // Servers 2.11.7–2.11.17 and 2.12.0–2.12.4 note the compressed size instead; none reads it.
        if let Some(claimed) = claimed
            && findings.is_empty()
            && claimed != logical.len() as u64
            && claimed != (raw.len() - header) as u64
        {
            let detail = format!("its header says {claimed} bytes, it has {}", logical.len());
            findings.push(named(
                Finding::new(Code::Compression, detail)
                    .severity(Severity::Warning)
                    .offset(4)
                    .action("no server reads this number; the block itself is proven"),
            ));
        }
        if container == Container::HeaderlessS2
            && let Some(seal) = &key
            && !plausible(logical, &prover)
        {
            seal.apply_keystream(0, logical);
        }
        if let Some(mends) = mends {
            self.mend(file.n, mends, key.as_ref(), logical);
        }
        Ok(Loaded {
            n: file.n,
            bytes: logical,
            container,
            encrypted,
            file_len,
            findings,
        })
    }
}

/// Decodes the chunks that salvage found, each on its own.
fn chunks(
    raw: &[u8],
    chunks: &[(Range<u64>, Range<usize>)],
    logical: &mut Vec<u8>,
) -> StreamReport {
    let mut all = StreamReport::default();
    logical.clear();
    for (place, content) in chunks {
        logical.resize(content.start.min(BLOCK_FILE as usize), 0);
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = raw.get(at(place.start)..at(place.end)).unwrap_or_default();
        let frames = s2::Frames::resume(bytes, place.start);
        let end = logical.len();
        let mut report = s2::decode_frames(frames, logical, end, BLOCK_FILE as usize, true);
        all.faults.append(&mut report.faults);
        all.frames = all.frames.saturating_add(report.frames);
        logical.resize(content.end.min(BLOCK_FILE as usize), 0);
    }
    let tail = raw.len().saturating_sub(block::TAIL_LEN);
    logical.extend_from_slice(raw.get(tail..).unwrap_or_default());
    all
}

impl Stream {
    /// Does to a logical block what is known to be wrong with it.
    fn mend(&self, n: u64, mends: &BlockMends, key: Option<&SealKey>, logical: &mut Vec<u8>) {
        let prover = self.prover(n);
        apply(&mends.logical, logical);
        mends.vouch(prover.key(), logical);
        if mends.unordered {
            order(logical, &prover);
        }
        if !mends.copies.is_empty() {
            self.merge(mends, &prover, key, logical);
        }
        if self.mends.only_kept {
            let mut left = mends.keep.clone();
            let mut kept = Vec::new();
            proven_messages(logical, &prover, |r| {
                if left.remove(r.seq) {
                    kept.extend_from_slice(r.raw);
                }
            });
            *logical = kept;
        }
    }

    /// Puts records of a block's copies where the block has lost them.
    fn merge(
        &self,
        mends: &BlockMends,
        prover: &Prover,
        key: Option<&SealKey>,
        logical: &mut Vec<u8>,
    ) {
        let mut others: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for copy in &mends.copies {
            let bytes = self.load_copy(copy, prover, key).unwrap_or_default();
            proven_messages(&bytes, prover, |r| {
                others.entry(r.seq).or_insert_with(|| r.raw.to_vec());
            });
        }
        proven_messages(logical, prover, |r| {
            others.remove(&r.seq);
        });
        if others.is_empty() {
            return;
        }
        let mut merged = Vec::with_capacity(logical.len());
        scan(logical, 0, prover, OnDamage::Resync, |step| {
            let Step::Record(r, Proof::Proven) = step else {
                return;
            };
            if r.kind == Kind::Message {
                let rest = others.split_off(&r.seq);
                for raw in std::mem::replace(&mut others, rest).values() {
                    merged.extend_from_slice(raw);
                }
            }
            merged.extend_from_slice(r.raw);
        });
        for raw in others.values() {
            merged.extend_from_slice(raw);
        }
        *logical = merged;
    }

    /// The records of a copy of a block.
    pub(crate) fn load_copy(
        &self,
        path: &Path,
        prover: &Prover,
        key: Option<&SealKey>,
    ) -> Option<Vec<u8>> {
        let (tree, _) = self.tree()?;
        let mut raw = Vec::new();
        tree.read_into(path, &mut raw, BLOCK_FILE).ok()?;
        if let Some(key) = key
            && !plausible(&raw, prover)
        {
            key.apply_keystream(0, &mut raw);
        }
        let header = match Container::detect(&raw, prover) {
            Container::Plain { .. } => return Some(raw),
            Container::S2 { header, .. } => header,
            Container::HeaderlessS2 => 0,
        };
        let mut logical = Vec::new();
        block::decompress(&raw, header, &mut logical, BLOCK_FILE as usize);
        Some(logical)
    }
}

/// Calls `visit` for each proven message.
pub(crate) fn proven_messages(bytes: &[u8], prover: &Prover, mut visit: impl FnMut(&Record<'_>)) {
    scan(bytes, 0, prover, OnDamage::Resync, |step| {
        if let Step::Record(r, Proof::Proven) = step
            && r.kind == Kind::Message
        {
            visit(&r);
        }
    });
}

/// Puts the proven records into the order of their sequences, tombstones behind them.
fn order(logical: &mut Vec<u8>, prover: &Prover) {
    let mut records: Vec<(u64, &[u8])> = Vec::new();
    scan(logical, 0, prover, OnDamage::Resync, |step| {
        if let Step::Record(r, Proof::Proven) = step {
            let tombstone = r.kind == Kind::Tombstone;
            records.push((if tombstone { u64::MAX } else { r.seq }, r.raw));
        }
    });
    // Stable: of two with the same sequence the first counts, as for servers.
    records.sort_by_key(|(seq, _)| *seq);
    *logical = records.iter().flat_map(|(_, raw)| *raw).copied().collect();
}

fn is_headerless(raw: &[u8]) -> bool {
    raw.starts_with(&crate::format::s2::MAGIC)
}
