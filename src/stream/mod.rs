//! One stream, opened: configuration, keys, list of blocks, index, consumers — everything but the
//! messages themselves, which [`load`](Stream::load) brings block by block.
//!
//! Nothing here stops at damage: what is wrong becomes a [`Finding`], the rest is read.

mod consumer;
mod load;
pub mod meanwhile;
pub mod mends;

pub use consumer::Consumer;
pub(crate) use load::proven_messages;
pub use load::{Loaded, Scratch};

use crate::finding::{Code, Finding, Severity};
use crate::format::crypt::{self, Cipher, KeyError, KeyRing, SealKey};
use crate::format::index_db::{self, IndexDb};
use crate::format::meta::{self, MetaInf};
use crate::format::{Fault, FaultKind};
use crate::pipeline::{self, Threads};
use crate::source::archive::V2;
use crate::source::config_dir::ConfiguredStream;
use crate::source::tree::{Child, ChildKind, ReadError, Tree};
use crate::source::{Body, Role, StreamSource, numbered, text};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Ceiling for key files, checksums and the like.
pub(crate) const SMALL_FILE: u64 = 64 << 10;
/// Ceiling for `meta.inf`.
pub(crate) const META_FILE: u64 = 16 << 20;
/// Ceiling for `index.db`, `.idx`, `.fss`, `thw.db` and their kind: ten million subjects of 100
/// bytes fit.
pub const INDEX_FILE: u64 = 1 << 30;
/// Ceiling for `o.dat`: some ten million pending acknowledgements.
pub const CONSUMER_FILE: u64 = 1 << 30;
/// Ceiling for one block, as a file and decompressed. The largest that a server can have written is
/// one block size (16 MiB) plus one record (64 MiB).
pub const BLOCK_FILE: u64 = 256 << 20;

/// A message block's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockFile {
    /// Its number: the file's name, and part of the key of its records' hashes.
    pub n: u64,
    /// Length of the file.
    pub len: u64,
    /// `<n>.key` is there: it is encrypted.
    pub key: bool,
    /// `<n>.idx` is there.
    pub idx: bool,
    /// `<n>.fss` is there.
    pub fss: bool,
}

/// `index.db`, as far as it can be used.
#[derive(Debug)]
pub enum Index {
    /// There is none.
    Missing,
    /// The server would accept it: it is the state at the stop.
    Valid(Box<IndexDb>),
    /// The server would scan the blocks instead.
    Rejected {
        /// Why.
        why: String,
        /// The file itself is whole, only older than the blocks.
        outdated: bool,
        /// What it says, where it could be decoded: still a witness of the last sequence.
        prior: Option<Box<IndexDb>>,
    },
}

/// What to do about plaintext that has a key file beside it.
const AS_CIPHERTEXT: &str =
    "a server takes it for ciphertext and loses it; jetsam salvage or restore writes it anew";

/// What to read when a stream is opened.
#[derive(Debug, Clone, Copy)]
pub struct Want {
    /// The subjects in `index.db`.
    pub subjects: bool,
    /// Consumers.
    pub consumers: bool,
}

impl Want {
    /// Where the blocks are, and nothing else.
    pub const NOTHING: Self = Self {
        subjects: false,
        consumers: false,
    };
    /// Consumers, without the subjects.
    pub const CONSUMERS: Self = Self {
        subjects: false,
        consumers: true,
    };
}

/// A stream, opened.
#[derive(Debug)]
pub struct Stream {
    /// Account; empty where the source does not tell.
    pub account: String,
    /// Name, as the hashes and keys use it: the directory's.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Path of its directory or archive, relative to the source.
    pub path: PathBuf,
    /// `meta.inf`, or what stands in for it in a backup.
    pub meta: Option<MetaInf>,
    /// The cipher its files are sealed with.
    pub cipher: Option<Cipher>,
    /// Message blocks by number.
    pub blocks: Vec<BlockFile>,
    /// `index.db`.
    pub index: Index,
    /// Consumers by name.
    pub consumers: Vec<Consumer>,
    /// What was found while opening.
    pub findings: Vec<Finding>,
    /// A key is missing or wrong: messages may be unreadable for that reason alone.
    pub locked: bool,
    /// The state that `backup.json` or the archive itself claims.
    pub claimed: Option<crate::format::backup_json::StreamState>,
    pub(crate) mends: Arc<mends::Mends>,
    seal: Option<SealKey>,
    body: Body,
    keys: KeyRing,
}

pub(crate) fn read_small(tree: &dyn Tree, path: &Path, ceiling: u64) -> Result<Vec<u8>, ReadError> {
    let mut buf = Vec::new();
    tree.read_into(path, &mut buf, ceiling)?;
    Ok(buf)
}

/// The findings' side of reading a file that may be missing: `Ok(None)` when it is.
fn read_optional(tree: &dyn Tree, path: &Path, ceiling: u64) -> Result<Option<Vec<u8>>, Finding> {
    match read_small(tree, path, ceiling) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e @ ReadError::TooLarge { .. }) => Err(Finding::new(Code::TooLarge, e.to_string())),
        Err(e) => Err(Finding::new(
            Code::Unreadable,
            format!("cannot be read: {e}"),
        )),
    }
}

impl Stream {
    /// Opens a stream. Never fails: what cannot be read is in [`Stream::findings`].
    pub fn open(source: &StreamSource, keys: &KeyRing, want: Want) -> Self {
        Self::open_on(&Threads::one(), source, keys, want)
    }

    /// As [`open`](Self::open), with threads that share the reading of consumers.
    pub fn open_on(threads: &Threads, source: &StreamSource, keys: &KeyRing, want: Want) -> Self {
        let mut stream = Self {
            account: source.account.clone(),
            name: source.name.clone(),
            role: source.role,
            path: source.path.clone(),
            meta: None,
            cipher: None,
            blocks: Vec::new(),
            index: Index::Missing,
            consumers: Vec::new(),
            findings: Vec::new(),
            locked: false,
            claimed: source.backup.as_ref().map(|b| b.state.clone()),
            mends: source.mends.clone(),
            seal: None,
            body: source.body.clone(),
            keys: keys.clone(),
        };
        for f in &source.findings {
            stream.push(f.clone());
        }
        match source.body.clone() {
            Body::Blocks { tree, dir, msgs } => {
                // A `msgs` directory or a lone block has nothing around it.
                let whole = !msgs.as_os_str().is_empty();
                if whole {
                    stream.open_meta(&*tree, &dir);
                }
                stream.list_blocks(&*tree, &dir.join(&msgs));
                stream.open_index(&*tree, &dir.join(&msgs), want);
                if source.mends.distrust {
                    stream.distrust_index();
                }
                if whole {
                    stream.list_leftovers(&*tree, &dir);
                }
                if want.consumers && whole {
                    stream.open_consumers(&*tree, &dir, threads);
                }
            }
            Body::Entries(v2) => stream.open_entries(&v2, want),
            Body::Config(configured) => stream.open_config(&configured, want),
        }
        if stream.meta.is_none()
            && let Some(backup) = &source.backup
        {
            stream.meta = Some(MetaInf::new_stream(backup.config.clone(), None));
        }
        if stream.name.is_empty() {
            stream.name = stream
                .meta
                .as_ref()
                .and_then(|m| m.name.clone())
                .unwrap_or_default();
        }
        stream
    }

    fn open_config(&mut self, configured: &ConfiguredStream, want: Want) {
        match &configured.config {
            Some(config) => self.meta = Some(MetaInf::new_stream(config.clone(), None)),
            None => self.push(Finding::new(
                Code::MetaMissing,
                "only configurations of its consumers are here, not its own",
            )),
        }
        if want.consumers {
            let consumers = configured.consumers.iter();
            self.consumers = consumers
                .map(|c| Consumer::configured(&c.name, &c.config))
                .collect();
        }
    }

    /// Length of all block files.
    pub fn block_bytes(&self) -> u64 {
        self.blocks.iter().map(|b| b.len).sum()
    }

    /// Of `threads` those that may read its files: one where going back is dear.
    pub(crate) fn readers<'t>(&self, threads: &'t Threads) -> &'t Threads {
        static ONE: Threads = Threads::one();
        match self.tree() {
            Some((tree, _)) if tree.sequential() => &ONE,
            _ => threads,
        }
    }

    /// Whether it is in an archive, of either kind.
    pub fn in_archive(&self) -> bool {
        match &self.body {
            Body::Blocks { dir, .. } => dir.as_os_str().is_empty() && *dir != self.path,
            Body::Entries(_) => true,
            Body::Config(_) => false,
        }
    }

    /// The tree and directory of the stream's files; `None` for a NATSARC1 archive.
    pub fn tree(&self) -> Option<(&dyn Tree, &Path)> {
        match &self.body {
            Body::Blocks { tree, dir, .. } => Some((&**tree, dir)),
            Body::Entries(_) | Body::Config(_) => None,
        }
    }

    /// The NATSARC1 archive that the messages are in.
    pub fn entries(&self) -> Option<&Arc<V2>> {
        match &self.body {
            Body::Entries(v2) => Some(v2),
            Body::Blocks { .. } | Body::Config(_) => None,
        }
    }

    /// The directory of the blocks in the tree.
    pub fn msgs_dir(&self) -> PathBuf {
        match &self.body {
            Body::Blocks { dir, msgs, .. } if msgs.as_os_str().is_empty() => dir.clone(),
            Body::Blocks { dir, msgs, .. } => dir.join(msgs),
            Body::Entries(_) | Body::Config(_) => PathBuf::new(),
        }
    }

    /// A path below the stream, relative to the source, for findings.
    ///
    /// In an archive the member is named after the archive: `stream.tar.s2:msgs/1.blk`.
    pub fn place(&self, file: &Path) -> String {
        let Body::Blocks { dir, .. } = &self.body else {
            return text(&self.path);
        };
        let inside = file.strip_prefix(dir).unwrap_or(file);
        match (dir == &self.path, self.path.as_os_str().is_empty()) {
            (true, true) => text(inside),
            (true, false) => text(&self.path.join(inside)),
            (false, true) => text(inside),
            (false, false) => format!("{}:{}", text(&self.path), text(inside)),
        }
    }

    /// Adds a finding with this stream's name on it.
    pub fn push(&mut self, finding: Finding) {
        let finding = finding.stream(&self.account, &self.name);
        self.findings.push(finding);
    }

    /// The name that is hashed and the info of key derivation: the account for streams and batches,
    /// the group's own name for raft groups.
    pub(crate) fn key_info(&self) -> &[u8] {
        match self.role {
            Role::RaftGroup => self.name.as_bytes(),
            Role::Stream | Role::Batch | Role::Deleted => self.account.as_bytes(),
        }
    }

    pub(crate) fn key_context(&self) -> crypt::Context<'_> {
        match self.role {
            Role::RaftGroup => crypt::Context::Group {
                group: self.name.as_bytes(),
            },
            _ => crypt::Context::Stream {
                account: self.account.as_bytes(),
                stream: self.name.as_bytes(),
            },
        }
    }

    /// A finding for a key file that does not open.
    fn key_finding(&self, error: &KeyError) -> Finding {
        let (code, mut detail) = match error {
            KeyError::NoKey => (
                Code::KeyMissing,
                "encrypted, and no key was given".to_owned(),
            ),
            KeyError::Length { found } => (
                Code::KeyFile,
                format!("a key file has 72 or 64 bytes, this one {found}"),
            ),
            // With the stream's own key file opened the server key is right.
            KeyError::Wrong if self.seal.is_some() => (
                Code::KeyFile,
                "does not open with the key that opens the stream's meta.key: damaged".to_owned(),
            ),
            KeyError::Wrong => (Code::KeyWrong, "no given key opens it".to_owned()),
        };
        if self.account.is_empty() && code == Code::KeyWrong {
            detail.push_str(
                "; the account is part of the key and the path does not tell it: give it with -a (and the stream's name with -s, if the directory has another)",
            );
        }
        Finding::new(code, detail)
    }

    fn open_meta(&mut self, tree: &dyn Tree, dir: &Path) {
        let key_path = dir.join("meta.key");
        let mut key_failed = false;
        match read_optional(tree, &key_path, SMALL_FILE) {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                match crypt::open_key_file(&bytes, &self.keys, &self.key_context()) {
                    Ok(seal) => {
                        self.cipher = Some(seal.cipher);
                        self.seal = Some(seal);
                    }
                    Err(e) => {
                        key_failed = true;
                        self.cipher = Cipher::from_key_file_len(bytes.len());
                        self.locked = true;
                        let f = self.key_finding(&e).file(self.place(&key_path));
                        self.push(f);
                    }
                }
            }
            Err(f) => {
                key_failed = true;
                let f = f.file(self.place(&key_path));
                self.push(f);
            }
        }
        let inf_path = dir.join("meta.inf");
        let inf_place = self.place(&inf_path);
        let raw = match read_optional(tree, &inf_path, META_FILE) {
            Ok(Some(raw)) => raw,
            Ok(None) => {
                // A directory that is being deleted has lost its meta.inf already; batches have one.
                if self.role != Role::Deleted {
                    let detail = if self.path.as_os_str().is_empty() {
                        "no meta.inf; the stream's name is taken from the path: give it with -s if it is another"
                    } else {
                        "no meta.inf"
                    };
                    self.push(Finding::new(Code::MetaMissing, detail).file(inf_place));
                }
                return;
            }
            Err(f) => {
                self.push(f.file(inf_place));
                return;
            }
        };
        let sum_path = dir.join("meta.sum");
        let sum_place = self.place(&sum_path);
        match read_optional(tree, &sum_path, SMALL_FILE) {
            Ok(Some(sum)) => {
                if let Err(e) = meta::check_sum(self.name.as_bytes(), &raw, &sum) {
                    self.push(Finding::new(Code::SumMismatch, e.to_string()).file(sum_place));
                }
            }
            Ok(None) => self.push(Finding::new(Code::SumMissing, "no meta.sum").file(sum_place)),
            Err(f) => self.push(f.file(sum_place)),
        }
        let plain = match &self.seal {
            Some(seal) => match seal.open(&raw) {
                Ok(plain) => plain,
                Err(_) if raw.starts_with(b"{") => {
                    self.push(
                        Finding::new(Code::Plaintext, "meta.inf is plaintext beside a meta.key")
                            .action(AS_CIPHERTEXT)
                            .file(inf_place.clone()),
                    );
                    raw
                }
                Err(fault) => {
                    self.push(
                        Finding::new(Code::MetaInvalid, fault.kind.to_string())
                            .file(inf_place)
                            .offset(fault.offset),
                    );
                    return;
                }
            },
            None if key_failed => return,
            None => raw,
        };
        match meta::decode_stream(&plain) {
            Ok(found) => {
                if found.name.as_deref().is_some_and(|n| n != self.name) {
                    let detail = format!(
                        "meta.inf is of {:?}, the directory is {:?}",
                        found.name.as_deref().unwrap_or_default(),
                        self.name
                    );
                    self.push(Finding::new(Code::NameMismatch, detail).file(inf_place));
                }
                self.meta = Some(found);
            }
            Err(fault) => self.push(
                Finding::new(Code::MetaInvalid, fault.kind.to_string())
                    .file(inf_place)
                    .offset(fault.offset),
            ),
        }
    }

    fn list_blocks(&mut self, tree: &dyn Tree, msgs: &Path) {
        let children = match tree.children(msgs) {
            Ok(children) => children,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            Err(e) => {
                let place = self.place(msgs);
                self.push(
                    Finding::new(Code::Unreadable, format!("cannot be listed: {e}")).file(place),
                );
                return;
            }
        };
        let mut found: std::collections::BTreeMap<u64, BlockFile> = Default::default();
        for c in children.iter().filter(|c| c.kind == ChildKind::File) {
            if let Some(n) = numbered(&c.name, "blk") {
                found.insert(
                    n,
                    BlockFile {
                        n,
                        len: c.len,
                        key: false,
                        idx: false,
                        fss: false,
                    },
                );
            }
        }
        for c in &children {
            let place = || self.place(&msgs.join(&c.name));
            let Some(extra) = self.side_file(c, &mut found) else {
                continue;
            };
            let extra = extra.file(place());
            self.push(extra);
        }
        self.blocks = found.into_values().collect();
    }

    /// Notes a file beside the blocks; a finding for one that should not be there.
    fn side_file(
        &self,
        c: &Child,
        blocks: &mut std::collections::BTreeMap<u64, BlockFile>,
    ) -> Option<Finding> {
        match c.kind {
            ChildKind::File => {}
            ChildKind::Dir => {
                return Some(Finding::new(Code::OddName, "a directory among the blocks"));
            }
            _ => {
                return Some(Finding::new(
                    Code::NotAFile,
                    "a link or device among the blocks; not followed",
                ));
            }
        }
        for (ext, set) in [
            ("key", (|b| b.key = true) as fn(&mut BlockFile)),
            ("idx", |b| b.idx = true),
            ("fss", |b| b.fss = true),
        ] {
            if let Some(n) = numbered(&c.name, ext) {
                return match blocks.get_mut(&n) {
                    Some(b) => {
                        set(b);
                        None
                    }
                    None => Some(Finding::new(
                        Code::Leftover,
                        format!("{n}.{ext} without its block {n}.blk"),
                    )),
                };
            }
        }
        let name = c.name.to_string_lossy();
        if numbered(&c.name, "blk").is_some()
            || matches!(&*name, "index.db" | "thw.db" | "sched.db")
        {
            return None;
        }
        if name.ends_with(".tmp") || name.ends_with(".new") {
            return Some(Finding::new(
                Code::Leftover,
                "staging of a write that did not finish",
            ));
        }
        Some(Finding::new(
            Code::OddName,
            "a name that no server gives a file here",
        ))
    }

    /// The last 8 bytes of a block's logical content: the hash of its last record.
    fn last_checksum(&self, tree: &dyn Tree, msgs: &Path, block: &BlockFile) -> Option<[u8; 8]> {
        let at = block.len.checked_sub(8)?;
        let mut tail = [0u8; 8];
        let path = msgs.join(format!("{}.blk", block.n));
        if tree.read_at(&path, at, &mut tail).ok()? != 8 {
            return None;
        }
        // Compression leaves the last 8 bytes raw, encryption is a keystream over the file.
        if block.key
            && let Ok(seal) = self.block_key(tree, msgs, block.n)
        {
            seal.apply_keystream(at, &mut tail);
        }
        Some(tail)
    }

    pub(crate) fn block_key(
        &self,
        tree: &dyn Tree,
        msgs: &Path,
        n: u64,
    ) -> Result<SealKey, Finding> {
        let path = msgs.join(format!("{n}.key"));
        let place = || self.place(&path);
        match read_optional(tree, &path, SMALL_FILE) {
            Ok(Some(bytes)) => {
                let context = crypt::Context::Block {
                    info: self.key_info(),
                    store: self.name.as_bytes(),
                    n,
                };
                crypt::open_key_file(&bytes, &self.keys, &context)
                    .map_err(|e| self.key_finding(&e).file(place()))
            }
            Ok(None) => Err(Finding::new(Code::KeyFile, "gone since it was listed").file(place())),
            Err(f) => Err(f.file(place())),
        }
    }

    /// `<n>.idx`, decrypted; `None` where it is missing or unreadable (it is optional for everybody).
    pub fn read_idx(&self, n: u64) -> Option<Vec<u8>> {
        let (tree, _) = self.tree()?;
        let msgs = self.msgs_dir();
        let raw = read_small(tree, &msgs.join(format!("{n}.idx")), INDEX_FILE).ok()?;
        if self.blocks.iter().any(|b| b.n == n && b.key) {
            let seal = self.block_key(tree, &msgs, n).ok()?;
            return match seal.open_with_own_nonce(&raw) {
                Ok((plain, _)) => Some(plain),
                Err(_) => Some(raw),
            };
        }
        Some(raw)
    }

    fn open_index(&mut self, tree: &dyn Tree, msgs: &Path, want: Want) {
        let path = msgs.join("index.db");
        let place = self.place(&path);
        let raw = match read_optional(tree, &path, INDEX_FILE) {
            Ok(Some(raw)) => raw,
            Ok(None) => return,
            Err(f) => {
                self.index = Index::Rejected {
                    why: f.detail.clone(),
                    outdated: false,
                    prior: None,
                };
                self.push(f.file(place));
                return;
            }
        };
        self.index = match self.judge_index(tree, msgs, &raw, want) {
            Ok(index) => index,
            Err(fault) => {
                // A store that cannot be unlocked says nothing about damage.
                if !(self.locked && fault.kind == FaultKind::Sealed) {
                    self.push(
                        Finding::new(Code::IndexDamaged, fault.kind.to_string())
                            .file(place)
                            .offset(fault.offset),
                    );
                }
                Index::Rejected {
                    why: fault.kind.to_string(),
                    outdated: false,
                    prior: None,
                }
            }
        };
    }

    /// The server's own tests of `index.db`, in its order.
    fn judge_index(
        &mut self,
        tree: &dyn Tree,
        msgs: &Path,
        raw: &[u8],
        want: Want,
    ) -> Result<Index, Fault> {
        let body = index_db::check_hash(raw, self.name.as_bytes())?;
        let options = index_db::Options {
            subjects: want.subjects,
        };
        let mut opened = Vec::new();
        let body = match (&self.seal, self.cipher) {
            (Some(seal), _) => match seal.open(body) {
                Ok(plain) => {
                    opened = plain;
                    &opened
                }
                // A restored archive leaves a plaintext index.db in an encrypted store.
                Err(_) if body.first() == Some(&index_db::MAGIC) => body,
                Err(fault) => return Err(fault),
            },
            (None, Some(_)) => return Err(Fault::new(0, FaultKind::Sealed)),
            (None, None) => body,
        };
        let db = index_db::decode(body, 0, options);
        drop(opened);
        let db = Box::new(db?);
        let reject = |why: String, outdated, db| {
            Ok(Index::Rejected {
                why,
                outdated,
                prior: Some(db),
            })
        };
        index_db::totals_agree(&db)?;
        if let Some(n) = self
            .blocks
            .last()
            .map(|b| b.n)
            .filter(|n| *n > db.last_block)
        {
            return reject(
                format!("it ends with block {}, there is a block {n}", db.last_block),
                true,
                db,
            );
        }
        let Some(last) = self.blocks.iter().find(|b| b.n == db.last_block).copied() else {
            if db.blocks.is_empty() && self.blocks.is_empty() {
                return Ok(Index::Valid(db));
            }
            if self.in_archive() && !self.blocks.is_empty() {
                // Servers write it once they have read the blocks: those with higher numbers began meanwhile.
                return reject(
                    format!(
                        "it has a block {}, made after the others were read",
                        db.last_block
                    ),
                    true,
                    db,
                );
            }
            let place = self.place(&msgs.join(format!("{}.blk", db.last_block)));
            self.push(
                Finding::new(
                    Code::BlockMissing,
                    "the last block that index.db lists is missing",
                )
                .file(place),
            );
            return reject(
                format!("its last block {} is missing", db.last_block),
                false,
                db,
            );
        };
        if !self.locked {
            // An empty last block has no checksum; the server then keeps what it read before.
            let checksum = if last.len == 0 {
                Some([0; 8])
            } else {
                self.last_checksum(tree, msgs, &last)
            };
            if checksum != Some(db.last_checksum) {
                return reject(
                    format!("written before the last change of block {}", last.n),
                    true,
                    db,
                );
            }
        }
        // The server passes over entries without messages, the last one aside: their files may be gone.
        let missing: Vec<u64> = db
            .blocks
            .iter()
            .filter(|b| b.msgs() > 0 || b.index == db.last_block)
            .map(|b| b.index)
            .filter(|n| self.blocks.binary_search_by_key(n, |b| b.n).is_err())
            .collect();
        if !missing.is_empty() {
            for n in missing.iter().take(64) {
                let place = self.place(&msgs.join(format!("{n}.blk")));
                let entry = db.blocks.iter().find(|b| b.index == *n);
                let detail = entry.map_or_else(String::new, |e| {
                    format!(": {} messages between {} and {}", e.msgs(), e.first, e.last)
                });
                self.push(
                    Finding::new(
                        Code::BlockMissing,
                        format!("listed in index.db, but not there{detail}"),
                    )
                    .file(place),
                );
            }
            return reject(
                format!("{} of its blocks are missing", missing.len()),
                false,
                db,
            );
        }
        Ok(Index::Valid(db))
    }

    /// Takes a valid `index.db` for what it is where blocks hold more than it lists: a witness of deletes.
    fn distrust_index(&mut self) {
        self.index = match std::mem::replace(&mut self.index, Index::Missing) {
            Index::Valid(db) => Index::Rejected {
                why: "blocks hold messages behind the end that it gives them".into(),
                outdated: false,
                prior: Some(db),
            },
            other => other,
        };
    }

    fn list_leftovers(&mut self, tree: &dyn Tree, dir: &Path) {
        let Ok(children) = tree.children(dir) else {
            return;
        };
        for c in children {
            let at = dir.join(&c.name);
            let place = self.place(&at);
            let name = c.name.to_string_lossy();
            let known_file = matches!(&*name, "meta.inf" | "meta.sum" | "meta.key" | "sources.db");
            let group_file = matches!(&*name, "peers.idx" | "tav.idx" | "commit.idx" | "snapshots")
                && self.role == Role::RaftGroup;
            let finding = match (c.kind, &*name) {
                (ChildKind::Dir, "msgs" | "obs") => continue,
                _ if group_file => continue,
                (ChildKind::File, _) if known_file => continue,
                (ChildKind::Dir, "__msgs__") => {
                    Finding::new(Code::Leftover, "messages of a purge, being deleted")
                }
                (ChildKind::Dir, "__new_msgs__") => Finding::new(
                    Code::Leftover,
                    "a purge that was interrupted: servers since 2.14 replace msgs/ by it at start",
                )
                .severity(Severity::Warning),
                (ChildKind::Dir, "batches") => {
                    Finding::new(Code::Leftover, "atomic batches that were not committed")
                }
                (ChildKind::File, "errors.txt") => continue,
                (ChildKind::File, n) if n.ends_with(".tmp") || n.starts_with("_test_") => {
                    Finding::new(Code::Leftover, "staging of a write that did not finish")
                }
                (ChildKind::Symlink | ChildKind::Other, _) => {
                    Finding::new(Code::NotAFile, "a link or device; not followed")
                }
                _ => Finding::new(Code::OddName, "a name that no server gives here"),
            };
            self.push(finding.file(place));
        }
    }

    fn open_consumers(&mut self, tree: &dyn Tree, dir: &Path, threads: &Threads) {
        /// Consumers that a thread takes at a time.
        const SHARE: usize = 32;
        let obs = dir.join("obs");
        let children = match tree.children(&obs) {
            Ok(children) => children,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            Err(e) => {
                let place = self.place(&obs);
                self.push(
                    Finding::new(Code::Unreadable, format!("cannot be listed: {e}")).file(place),
                );
                return;
            }
        };
        let mut consumers = Vec::new();
        let mut findings = Vec::new();
        let one = |c: &Child| {
            let at = obs.join(&c.name);
            let code = match c.kind {
                ChildKind::Dir => return self.open_consumer(tree, &at, &c.name),
                ChildKind::File => Code::OddName,
                ChildKind::Symlink | ChildKind::Other => Code::NotAFile,
            };
            let finding = Finding::new(code, "not a consumer's directory");
            (None, vec![finding.file(self.place(&at))])
        };
        pipeline::ordered(
            self.readers(threads),
            children.len().div_ceil(SHARE),
            || (),
            |i, ()| {
                let share = children.chunks(SHARE).nth(i).unwrap_or_default();
                share.iter().map(one).collect::<Vec<_>>()
            },
            |_, share| {
                for (consumer, mut found) in share {
                    consumers.extend(consumer);
                    findings.append(&mut found);
                }
                ControlFlow::Continue(())
            },
        );
        self.locked |= self.seal.is_none() && consumers.iter().any(|c| c.locked);
        self.consumers = consumers;
        for f in findings {
            self.push(f);
        }
    }

    fn open_entries(&mut self, v2: &Arc<V2>, want: Want) {
        if want.consumers {
            for c in v2.consumers() {
                self.consumers.push(Consumer::from_entry(c));
            }
            // As a directory lists them; the archive has them in no order.
            self.consumers.sort_by(|a, b| a.name.cmp(&b.name));
        }
    }

    /// The names of the blocks' files, for messages.
    pub fn block_place(&self, n: u64) -> String {
        self.place(&self.msgs_dir().join(format!("{n}.blk")))
    }
}
