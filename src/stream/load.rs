//! Bringing one block to its logical content: read, decrypt, decompress.

use super::{BLOCK_FILE, BlockFile, Stream};
use crate::finding::{Code, Finding, Severity};
use crate::format::block::{self, Container};
use crate::format::crypt::SealKey;
use crate::format::record::{OnDamage, Proof, Prover, Record, Step, scan};
use crate::source::Body;
use crate::source::tree::ReadError;

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
    fn trim(&mut self) {
        for b in [&mut self.raw, &mut self.logical] {
            b.clear();
            b.shrink_to(KEEP);
        }
        self.map = None;
    }
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

    /// Reads, decrypts and decompresses a block. `Err` where nothing can be read of it.
    pub fn load<'b>(
        &self,
        file: &BlockFile,
        scratch: &'b mut Scratch,
    ) -> Result<Loaded<'b>, Box<Finding>> {
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
        let mapped = if file.key || file.len == 0 || file.len > BLOCK_FILE {
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
                findings.push(named(Finding::new(
                    Code::Plaintext,
                    "a plaintext block beside a key file",
                )));
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
        let Scratch { raw, logical, map } = scratch;
        let raw: &[u8] = map.as_deref().unwrap_or(raw);
        let container = Container::detect(raw, &prover);
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
            Container::S2 { header, .. } => header,
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
        let report = block::decompress(raw, header, logical, BLOCK_FILE as usize);
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
        if container == Container::HeaderlessS2
            && let Some(seal) = &key
            && !plausible(logical, &prover)
        {
            seal.apply_keystream(0, logical);
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

fn is_headerless(raw: &[u8]) -> bool {
    raw.starts_with(&crate::format::s2::MAGIC)
}
