//! A stream directory that a server starts with: what a clean stop of a server would have left.
//!
//! Blocks hold live messages only (see [`block`](super::block)), sealed and compressed as the stream's
//! configuration and the key say. `index.db` is written in the oldest version that can express the
//! stream, so every server that knows `index.db` takes it and none has to scan; `thw.db`, `sched.db` and
//! `sources.db` are written where the server would warn without them.

use super::block::{Block, Layout, last_sequence};
use super::direct::{self, Aligned};
use super::outgoing::Outgoing;
use super::{Pool, SinkError, Written};
use crate::finding::Severity;
use crate::format::crypt::{Cipher, Context, SealKey, ServerKey, make_key_file};
use crate::format::index_db::{self, IndexDb, SubjectEntry};
use crate::format::s2::Encoder;
use crate::format::sched_db::{self, SchedDb, SchedEntry};
use crate::format::sources_db::{self, SourceEntry, SourcesDb};
use crate::format::thw_db::{self, ThwDb};
use crate::format::{block as block_format, meta, o_dat};
use crate::state::limits;
use crate::state::subjects::SubjectMap;
use crate::state::visit::Pass;
use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Permissions of files, as servers give them.
const FILE_MODE: u32 = 0o640;
/// Permissions of directories, as servers give them.
pub const DIR_MODE: u32 = 0o750;

/// How the new store is encrypted.
#[derive(Debug, Clone, Copy)]
pub struct Encryption<'a> {
    /// The server's key.
    pub key: &'a ServerKey,
    /// The cipher.
    pub cipher: Cipher,
}

/// Where and how a stream directory is written.
#[derive(Debug)]
pub struct Target<'a> {
    /// The directory, which exists and is empty.
    pub dir: &'a Path,
    /// The account that it will be in.
    pub account: &'a str,
    /// Its encryption.
    pub encryption: Option<Encryption<'a>>,
}

/// Makes a directory, and those above it, with a server's permissions.
fn make_dir(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(path)
}

struct Writer<'a> {
    out: &'a Outgoing<'a>,
    target: &'a Target<'a>,
    seal: Option<SealKey>,
    buffers: Pool<Aligned>,
}

impl Writer<'_> {
    fn file(&self, path: &Path, bytes: &[u8]) -> Result<(), SinkError> {
        let mut buffer = self.buffers.take();
        let done = direct::write_file(path, FILE_MODE, bytes, &mut buffer);
        self.buffers.give(buffer);
        done.map_err(SinkError::io(path))
    }

    fn small(&self, name: &str, bytes: &[u8]) -> Result<(), SinkError> {
        self.file(&self.target.dir.join(name), bytes)
    }

    fn dir(&self, name: &str) -> Result<(), SinkError> {
        let path = self.target.dir.join(name);
        make_dir(&path).map_err(SinkError::io(&path))
    }

    /// Makes the key file `name`, if the store is encrypted; gives its nonce, too.
    fn key(
        &self,
        name: &str,
        context: &Context<'_>,
    ) -> Result<Option<(SealKey, Vec<u8>)>, SinkError> {
        let Some(e) = self.target.encryption else {
            return Ok(None);
        };
        let (mut file, seal) = make_key_file(e.key, e.cipher, context);
        self.small(name, &file)?;
        file.truncate(e.cipher.nonce_len());
        Ok(Some((seal, file)))
    }

    /// `meta.inf` and `meta.sum` in directory `dir`.
    fn meta(
        &self,
        dir: &str,
        hashed_as: &str,
        inf: Vec<u8>,
        seal: Option<&SealKey>,
    ) -> Result<(), SinkError> {
        let inf = sealed(seal, inf);
        self.small(&format!("{dir}meta.inf"), &inf)?;
        self.small(
            &format!("{dir}meta.sum"),
            meta::sum(hashed_as, &inf).as_bytes(),
        )
    }

    /// Writes a block, and its `.idx` if there is one; gives the length of its file.
    fn block(
        &self,
        block: &mut Block,
        mut idx: Option<Vec<u8>>,
        encoder: &mut Encoder,
    ) -> Result<u64, SinkError> {
        let n = block.entry.index;
        // The server appends to the last block, so that one stays plain.
        let compress = self.out.meta.compression() == Some("s2")
            && block.entry.last != self.out.state.last_seq;
        let mut compressed = Vec::new();
        let bytes = if compress {
            block_format::compress(&block.bytes, encoder, &mut compressed)
                .map_err(|e| SinkError::Format(e.to_string()))?;
            &mut compressed
        } else {
            &mut block.bytes
        };
        let checksum = bytes.last_chunk::<8>().copied();
        let context = Context::Block {
            info: self.target.account.as_bytes(),
            store: self.out.name.as_bytes(),
            n,
        };
        if let Some((seal, nonce)) = self.key(&format!("msgs/{n}.key"), &context)? {
            seal.apply_keystream(0, bytes);
            // An `.idx` is sealed with the key file's nonce and does not repeat it.
            idx = idx.map(|plain| seal.seal(&plain, &nonce).split_off(nonce.len()));
        }
        if let Some(idx) = idx {
            self.small(&format!("msgs/{n}.idx"), &idx)?;
        }
        let path = self.target.dir.join(format!("msgs/{n}.blk"));
        let len = bytes.len() as u64;
        self.file(&path, bytes)?;
        block.last_checksum = checksum.unwrap_or_default();
        Ok(len)
    }

    fn consumers(&self) -> Result<(), SinkError> {
        for c in &self.out.consumers {
            let dir = format!("obs/{}", c.name);
            self.dir(&dir)?;
            let context = Context::Consumer {
                account: self.target.account.as_bytes(),
                stream: self.out.name.as_bytes(),
                consumer: c.name.as_bytes(),
            };
            let seal = self.key(&format!("{dir}/meta.key"), &context)?.map(|k| k.0);
            let (inf, _) = self.out.consumer_meta(c);
            let hashed_as = self.out.consumer_key(c);
            self.meta(&format!("{dir}/"), &hashed_as, inf, seal.as_ref())?;
            if let Some(state) = &c.state {
                let bytes = sealed(seal.as_ref(), o_dat::encode(state));
                self.small(&format!("{dir}/o.dat"), &bytes)?;
            }
        }
        Ok(())
    }
}

fn sealed(seal: Option<&SealKey>, plain: Vec<u8>) -> Vec<u8> {
    match seal {
        Some(seal) => seal.seal(&plain, &seal.random_nonce()),
        None => plain,
    }
}

/// What the blocks add up to.
#[derive(Default)]
struct Index {
    db: IndexDb,
    subjects: SubjectMap,
    /// First and last block, by the subject's id.
    spans: Vec<(u64, u64)>,
    ttls: ThwDb,
    schedules: u64,
    fixed: Vec<SchedEntry>,
    sources: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
}

impl Index {
    fn add(&mut self, block: &mut Block) {
        let n = block.entry.index;
        for (subject, count) in block.subjects.iter() {
            let id = self.subjects.id(subject);
            let total = self.subjects.value_of_mut(id);
            *total = total.saturating_add(count);
            match self.spans.get_mut(id as usize) {
                Some(span) => span.1 = n,
                None => self.spans.push((n, n)),
            }
        }
        self.ttls.entries.append(&mut block.ttls);
        self.schedules = self.schedules.saturating_add(block.entry.schedules);
        self.fixed.append(&mut block.fixed);
        self.sources.append(&mut block.sources);
        let db = &mut self.db;
        let msgs = block.entry.msgs();
        if db.msgs == 0 && msgs > 0 {
            (db.first_seq, db.first_ts) = (block.entry.first, block.entry.first_ts);
        }
        db.msgs = db.msgs.saturating_add(msgs);
        db.bytes = db.bytes.saturating_add(block.entry.bytes);
        (db.last_seq, db.last_ts) = (block.entry.last, block.entry.last_ts);
        db.last_block = n;
        db.last_checksum = block.last_checksum;
        db.blocks.push(std::mem::take(&mut block.entry));
    }

    /// Whether this message was written.
    fn holds(&self, seq: u64) -> bool {
        let blocks = &self.db.blocks;
        let i = blocks.partition_point(|b| b.last < seq);
        let block = blocks.get(i);
        block.is_some_and(|b| b.first <= seq && b.msgs() > 0 && !b.deleted.contains(seq))
    }

    fn finish(&mut self) -> u8 {
        let db = &mut self.db;
        // A stream that never had a message says 0, not 1.
        if db.msgs == 0 && db.last_seq > 0 {
            db.first_seq = db.last_seq.saturating_add(1);
        }
        for ((subject, total), (fblk, lblk)) in self.subjects.iter().zip(&self.spans) {
            db.subjects.push(SubjectEntry {
                subject,
                total,
                fblk: *fblk,
                lblk: *lblk,
            });
        }
        db.num_subjects = self.spans.len() as u64;
        self.ttls.stamp = db.last_seq.saturating_add(1);
        db.version = match (self.schedules, self.ttls.entries.is_empty()) {
            (0, true) => 1,
            (0, false) => 2,
            _ => 3,
        };
        db.version
    }
}

/// Writes the stream directory of the messages of `pass`. Refuses damage unless `salvage`: then it holds
/// what could be proven.
pub fn write(
    out: &Outgoing<'_>,
    pass: &Pass<'_>,
    salvage: bool,
    target: &Target<'_>,
    stop: &AtomicBool,
) -> Result<Written, SinkError> {
    let mut writer = Writer {
        out,
        target,
        seal: None,
        buffers: Pool::default(),
    };
    let context = Context::Stream {
        account: target.account.as_bytes(),
        stream: out.name.as_bytes(),
    };
    writer.seal = writer.key("meta.key", &context)?.map(|k| k.0);
    writer.meta("", &out.name, out.stream_meta().0, writer.seal.as_ref())?;
    writer.dir("msgs")?;
    writer.dir("obs")?;

    let (mut index, mut written) = blocks(&writer, pass, salvage, stop)?;

    let version = index.finish();
    let body = index_db::encode_body(&index.db, version);
    let body = sealed(writer.seal.as_ref(), body);
    let file = index_db::with_hash(body, out.name.as_bytes());
    writer.small("msgs/index.db", &file)?;
    written.compressed = written.compressed.saturating_add(file.len() as u64);
    if out.meta.allow_msg_ttl() {
        writer.small("msgs/thw.db", &thw_db::encode(&index.ttls))?;
    }
    let stamp = out.state.last_seq.saturating_add(1);
    if out.meta.allow_msg_schedules() {
        let stored = side_file(out, "msgs/sched.db", sched_db::decode).filter(|d| d.stamp == stamp);
        let db = match stored {
            Some(mut db) => {
                db.entries.retain(|e| index.holds(e.seq));
                Some(db)
            }
            // When one that repeats is due next is the server's to say: it then reads the headers.
            None => (index.fixed.len() as u64 == index.schedules).then(|| SchedDb {
                stamp,
                entries: std::mem::take(&mut index.fixed),
            }),
        };
        if let Some(db) = db {
            writer.small("msgs/sched.db", &sched_db::encode(&db))?;
        }
    }
    if out.meta.has_sources() {
        let found = side_file(out, "sources.db", sources_db::decode).filter(|db| db.stamp == stamp);
        let db = found.unwrap_or_else(|| SourcesDb {
            stamp,
            entries: std::mem::take(&mut index.sources)
                .into_iter()
                .map(|(name, (seq, ident))| SourceEntry { name, seq, ident })
                .collect(),
        });
        let configured = out
            .meta
            .get("sources")
            .and_then(|s| s.as_array())
            .map_or(0, Vec::len);
        // With a source missing the server goes by the messages' headers anyway.
        if db.entries.len() >= configured {
            writer.small("sources.db", &sources_db::encode(&db))?;
        }
    }
    writer.consumers()?;
    Ok(written)
}

/// A file beside the source's blocks, decoded.
fn side_file<T>(
    out: &Outgoing<'_>,
    name: &str,
    decode: impl Fn(&[u8], u64) -> Result<(T, usize), crate::format::Fault>,
) -> Option<T> {
    let (tree, dir) = out.stream.tree()?;
    let mut bytes = Vec::new();
    tree.read_into(&dir.join(name), &mut bytes, crate::stream::INDEX_FILE)
        .ok()?;
    decode(&bytes, 0).ok().map(|(value, _)| value)
}

fn blocks(
    writer: &Writer<'_>,
    pass: &Pass<'_>,
    salvage: bool,
    stop: &AtomicBool,
) -> Result<(Index, Written), SinkError> {
    let out = writer.out;
    let mut layout = Layout::new(&out.name, &out.stream.name);
    layout.subjects = true;
    layout.ttls = out.meta.allow_msg_ttl();
    layout.schedules = out.meta.allow_msg_schedules();
    layout.sources = out.meta.has_sources();
    let (mut index, mut written) = (Index::default(), Written::default());
    let (encoders, buffers) = (Pool::default(), Pool::default());
    let finish = |mut block: Block| -> Result<(Block, u64), SinkError> {
        if let Some(fault) = &block.fault {
            return Err(SinkError::Format(fault.kind.to_string()));
        }
        let mut len = 0;
        if !block.is_empty() {
            block.close();
            block.len = block.bytes.len() as u64;
            let mut encoder: Encoder = encoders.take();
            let done = writer.block(&mut block, None, &mut encoder);
            encoders.give(encoder);
            len = done?;
        }
        block.bytes.clear();
        buffers.give(std::mem::take(&mut block.bytes));
        Ok((block, len))
    };
    let (mut error, mut last_live, mut last_number) = (None, 0, 0);
    let mut in_order = true;
    let findings = pass.run_with(
        || Block::in_buffer(buffers.take()),
        |block, m| {
            block.push(&layout, m);
            ControlFlow::Continue(())
        },
        finish,
        |done| match done {
            Ok((mut block, len)) => {
                if len > 0 {
                    written.messages = written.messages.saturating_add(block.entry.msgs());
                    written.raw = written.raw.saturating_add(block.len);
                    written.compressed = written.compressed.saturating_add(len);
                    in_order &= block.entry.first > last_live;
                    last_live = block.entry.last.max(last_live);
                    last_number = block.entry.index.max(last_number);
                    if salvage {
                        written.hold(&block.entry);
                    }
                    index.add(&mut block);
                }
                if stop.load(Ordering::Relaxed) {
                    error = Some(SinkError::Interrupted);
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            }
            Err(e) => {
                error = Some(e);
                ControlFlow::Break(())
            }
        },
    );
    if let Some(e) = error {
        return Err(e);
    }
    let state = out.state;
    let first = index.db.first_seq;
    let misplaced =
        written.messages > 0 && (last_live > state.last_seq || first != state.first_seq);
    let unlike = state.is_claim_of_blocks() && {
        let most = out
            .stream
            .meta
            .as_ref()
            .map_or(u64::MAX, limits::per_subject);
        !in_order
            || last_live != state.last_seq
            || index.db.bytes != state.bytes
            || index.subjects.iter().any(|(_, n)| n > most)
    };
    let damaged = misplaced || unlike || findings.iter().any(|f| f.severity == Severity::Error);
    if (damaged || written.messages != out.state.msgs) && !salvage {
        return Err(SinkError::Damaged {
            findings,
            read: written.messages,
            expected: out.state.msgs,
        });
    }
    written.findings = findings;
    let n = last_number.saturating_add(1);
    if let Some((mut block, idx)) = last_sequence(out.state, last_live, n, &out.name) {
        let len = writer.block(&mut block, Some(idx), &mut Encoder::new())?;
        written.compressed = written.compressed.saturating_add(len);
        index.add(&mut block);
    }
    if index.db.blocks.is_empty() {
        // A server, too, has an empty block then, and an index.db. 2.10 and 2.12.0 read an encrypted stream's
        // key only together with that: without it they make a new key, and lose the stream.
        let mut block = Block::default();
        (block.entry.index, block.entry.first) = (1, 1);
        writer.block(&mut block, None, &mut Encoder::new())?;
        index.add(&mut block);
    }
    Ok((index, written))
}
