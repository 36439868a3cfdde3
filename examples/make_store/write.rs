//! Store directories: blocks made side by side, then the index over them.

use crate::args::{Args, CipherName};
use crate::shape::{BEGIN, Parts, Pool as Payloads, Shape};
use crate::truth;
use jetsam::format::crypt::{Cipher, Context, SealKey, ServerKey, make_key_file};
use jetsam::format::index_db::{self, BlockEntry, IndexDb, SubjectEntry};
use jetsam::format::meta::{self, MetaInf};
use jetsam::format::o_dat::{self, ConsumerState, Pending, SeqPair};
use jetsam::format::{block as block_format, s2};
use jetsam::pipeline::{self, Threads};
use jetsam::sink::Pool;
use jetsam::sink::block::{Block, Layout};
use jetsam::sink::direct::{self, Aligned};
use jetsam::sink::store::DIR_MODE;
use jetsam::state::visit::Message;
use jetsam::time::rfc3339;
use serde_json::{Map, Value, json};
use std::error::Error;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Permissions of files, as servers give them.
const FILE_MODE: u32 = 0o640;
/// From this many streams on they are made side by side, and the blocks of each one after the other.
const MANY: u64 = 8;

type Failure = Box<dyn Error + Send + Sync>;

/// What was made.
#[derive(Debug, Default)]
pub struct Made {
    pub streams: u64,
    pub messages: u64,
    pub bytes: u64,
    pub seconds: f64,
}

impl std::fmt::Display for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = self.bytes as f64 / 1e9 / self.seconds.max(1e-9);
        write!(
            f,
            "{} streams, {} messages, {} bytes, {:.2} s, {rate:.2} GB/s",
            self.streams, self.messages, self.bytes, self.seconds
        )
    }
}

/// Makes what the options say.
pub fn make(args: &Args) -> Result<Made, Failure> {
    let begin = Instant::now();
    let maker = Maker::new(args)?;
    let streams = args.streams.try_into()?;
    let threads = Threads::new(args.threads)?;
    let mut made = Made::default();
    let mut truth = Map::new();
    let mut error = None;
    let mut sink = |done: Result<Done, Failure>| match done {
        Ok(done) => {
            made.streams += 1;
            made.messages += done.state.msgs;
            made.bytes += done.state.bytes;
            if args.truth.is_some() {
                truth.insert(done.shape.name.clone(), truth::stream(&maker, &done));
            }
            ControlFlow::Continue(())
        }
        Err(e) => {
            error = Some(e);
            ControlFlow::Break(())
        }
    };
    if args.streams >= MANY {
        let one = Threads::new(1)?;
        let work = |k: usize, _: &mut ()| maker.stream(k as u64 + 1, &one);
        pipeline::ordered(&threads, streams, || (), work, |_, done| sink(done));
    } else {
        // One more than there are cores: one waits for the disk.
        let more = threads.and_one();
        let threads = more.as_ref().unwrap_or(&threads);
        for k in 1..=args.streams {
            if sink(maker.stream(k, threads)).is_break() {
                break;
            }
        }
    }
    if let Some(e) = error {
        return Err(e);
    }
    if let Some(path) = &args.truth {
        fs::write(path, json!({&args.account: truth}).to_string())
            .map_err(|e| format!("{}: {e}", path.display()))?;
    }
    made.seconds = begin.elapsed().as_secs_f64();
    Ok(made)
}

/// A stream that was made.
pub struct Done {
    pub shape: Shape,
    /// Without subjects and blocks.
    pub state: IndexDb,
    /// Messages by the subject's number, 0 for one that never came up; none of a key-value store.
    pub counts: Vec<u32>,
}

/// What all streams share.
pub struct Maker<'a> {
    pub args: &'a Args,
    root: PathBuf,
    block_size: u64,
    payloads: Arc<Payloads>,
    encryption: Option<(ServerKey, Cipher)>,
    buffers: Pool<Aligned>,
    blocks: Pool<Vec<u8>>,
    compressed: Pool<Vec<u8>>,
    encoders: Pool<s2::Encoder>,
    parts: Pool<Parts>,
}

/// Messages of one block.
struct Plan {
    n: u64,
    from: u64,
    to: u64,
}

/// Where a subject occurs.
#[derive(Clone, Copy, Default)]
struct Seen {
    total: u32,
    first: u32,
    last: u32,
}

impl<'a> Maker<'a> {
    fn new(args: &'a Args) -> Result<Self, Failure> {
        if args.deleted_runs.0 > 0 && args.deleted_runs.0 >= args.messages {
            return Err(
                "runs of deletes lie between messages: there have to be more messages".into(),
            );
        }
        let cipher = args.cipher.map(|c| match c {
            CipherName::Chacha => Cipher::ChaCha,
            CipherName::Aes => Cipher::Aes,
        });
        let key = args.key.as_ref().map(|k| ServerKey::new(k.as_bytes()));
        let default = if cipher.is_some() { 2 << 20 } else { 8 << 20 };
        let payloads = Arc::new(Payloads::new(args.payload, args.seed));
        if Shape::new(args, 1, &payloads).last_seq() >= 1 << 62 {
            return Err("more deletes than there are sequences".into());
        }
        let root = args
            .dest
            .join("jetstream")
            .join(&args.account)
            .join("streams");
        make_dir(&root, true)?;
        Ok(Self {
            args,
            root,
            block_size: args.block_size.unwrap_or(default),
            payloads,
            encryption: key.zip(cipher),
            buffers: Pool::default(),
            blocks: Pool::default(),
            compressed: Pool::default(),
            encoders: Pool::default(),
            parts: Pool::default(),
        })
    }

    fn file(&self, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
        let mut buffer = self.buffers.take();
        let done = direct::write_file(path, FILE_MODE, bytes, &mut buffer);
        self.buffers.give(buffer);
        done.map_err(|e| told(path, e))
    }

    /// Makes a key file, if the store is encrypted.
    fn key(&self, path: &Path, context: &Context<'_>) -> Result<Option<SealKey>, Failure> {
        let Some((key, cipher)) = &self.encryption else {
            return Ok(None);
        };
        let (file, seal) = make_key_file(key, *cipher, context);
        self.file(path, &file)?;
        Ok(Some(seal))
    }

    /// `meta.inf` and `meta.sum`.
    fn meta(
        &self,
        dir: &Path,
        hashed_as: &str,
        inf: Vec<u8>,
        seal: Option<&SealKey>,
    ) -> Result<(), Failure> {
        let inf = sealed(seal, inf);
        self.file(&dir.join("meta.inf"), &inf)?;
        self.file(&dir.join("meta.sum"), meta::sum(hashed_as, &inf).as_bytes())
    }

    /// Makes the stream number `k`, from 1.
    fn stream(&self, k: u64, threads: &Threads) -> Result<Done, Failure> {
        let shape = Shape::new(self.args, k, &self.payloads);
        let (account, name) = (self.args.account.as_bytes(), shape.name.as_bytes());
        let dir = self.root.join(&shape.name);
        make_dir(&dir, false)?;
        let context = Context::Stream {
            account,
            stream: name,
        };
        let seal = self.key(&dir.join("meta.key"), &context)?;
        let inf = MetaInf::new_stream(self.stream_config(&shape), Some(rfc3339(BEGIN)));
        self.meta(&dir, &shape.name, meta::encode_stream(&inf), seal.as_ref())?;
        let msgs = dir.join("msgs");
        make_dir(&msgs, false)?;
        make_dir(&dir.join("obs"), false)?;

        let (mut db, counts) = self.blocks(&shape, &msgs, threads)?;
        if !self.args.no_index {
            let body = sealed(seal.as_ref(), index_db::encode_body(&db, 1));
            self.file(&msgs.join("index.db"), &index_db::with_hash(body, name))?;
        }
        self.consumers(&shape, &dir.join("obs"), threads)?;
        db.blocks = Vec::new();
        db.subjects = index_db::Subjects::default();
        Ok(Done {
            shape,
            state: db,
            counts,
        })
    }

    /// Plans the blocks, makes them on all threads, and adds them up.
    fn blocks(
        &self,
        shape: &Shape,
        dir: &Path,
        threads: &Threads,
    ) -> Result<(IndexDb, Vec<u32>), Failure> {
        let mut db = IndexDb::default();
        if shape.messages == 0 {
            // A server, too, has an empty block then.
            let (mut entry, checksum) = self.block(
                shape,
                dir,
                &Plan {
                    n: 1,
                    from: 0,
                    to: 0,
                },
            )?;
            entry.first = 1;
            add(&mut db, entry, checksum);
            return Ok((db, Vec::new()));
        }
        let mut error = None;
        let mut seen = match shape.kv {
            true => Vec::new(),
            false => vec![Seen::default(); usize::try_from(shape.subjects)?],
        };
        let mut subjects = index_db::Subjects::default();
        let mut subject = Vec::new();
        pipeline::fed(
            threads,
            |plan: Plan| self.block(shape, dir, &plan),
            |done: Result<(BlockEntry, [u8; 8]), Failure>| match done {
                Ok((entry, checksum)) => {
                    add(&mut db, entry, checksum);
                    ControlFlow::Continue(())
                }
                Err(e) => {
                    error = Some(e);
                    ControlFlow::Break(())
                }
            },
            |feed| {
                let (mut from, mut bytes, mut n) = (0, 0, 1u32);
                for i in 0..shape.messages {
                    let id = shape.subject(i);
                    let len = shape.record_len(i, id);
                    if bytes > 0 && (bytes + len > self.block_size || shape.begins_block(i)) {
                        let plan = Plan {
                            n: n.into(),
                            from,
                            to: i,
                        };
                        if feed(plan).is_break() {
                            return;
                        }
                        (from, bytes, n) = (i, 0, n + 1);
                    }
                    bytes += len;
                    if shape.kv {
                        shape.put_subject(&mut subject, id);
                        let (total, fblk, lblk) = (1, n.into(), n.into());
                        subjects.push(SubjectEntry {
                            subject: &subject,
                            total,
                            fblk,
                            lblk,
                        });
                    } else if let Some(seen) = seen.get_mut(id as usize) {
                        if seen.total == 0 {
                            seen.first = n;
                        }
                        seen.total += 1;
                        seen.last = n;
                    }
                }
                let _ = feed(Plan {
                    n: n.into(),
                    from,
                    to: shape.messages,
                });
            },
        );
        if let Some(e) = error {
            return Err(e);
        }
        for (id, seen) in (0u64..).zip(&seen).filter(|(_, seen)| seen.total > 0) {
            shape.put_subject(&mut subject, id);
            let (total, fblk, lblk) = (seen.total.into(), seen.first.into(), seen.last.into());
            subjects.push(SubjectEntry {
                subject: &subject,
                total,
                fblk,
                lblk,
            });
        }
        db.num_subjects = subjects.len();
        db.subjects = subjects;
        Ok((db, seen.iter().map(|s| s.total).collect()))
    }

    /// Makes one block. Gives what the index says of it, and its last eight bytes.
    fn block(
        &self,
        shape: &Shape,
        dir: &Path,
        plan: &Plan,
    ) -> Result<(BlockEntry, [u8; 8]), Failure> {
        let mut parts = self.parts.take();
        let mut block = Block::in_buffer(self.blocks.take());
        block.entry.index = plan.n;
        // Records are made anew, and subjects are counted where the blocks are planned.
        let layout = Layout::new(&shape.name, "");
        for i in plan.from..plan.to {
            shape.message(i, &mut parts);
            let seq = shape.seq(i);
            block.push(
                &layout,
                &Message {
                    seq,
                    ts: shape.ts(seq),
                    subject: &parts.subject,
                    headers: &parts.headers,
                    payload: &parts.payload,
                    deleted: None,
                    raw: &[],
                    block: plan.n,
                },
            );
        }
        self.parts.give(parts);
        if let Some(fault) = block.fault {
            return Err(fault.into());
        }
        block.close();
        let checksum = block.bytes.last_chunk().copied().unwrap_or_default();
        let mut compressed = self.compressed.take();
        // The server appends to the last block, so that one stays plain.
        let bytes = if self.args.s2 && plan.to < shape.messages {
            let mut encoder = self.encoders.take();
            block_format::compress(&block.bytes, &mut encoder, &mut compressed)?;
            self.encoders.give(encoder);
            &mut compressed
        } else {
            &mut block.bytes
        };
        let context = Context::Block {
            info: self.args.account.as_bytes(),
            store: shape.name.as_bytes(),
            n: plan.n,
        };
        if let Some(seal) = self.key(&dir.join(format!("{}.key", plan.n)), &context)? {
            seal.apply_keystream(0, bytes);
        }
        self.file(&dir.join(format!("{}.blk", plan.n)), bytes)?;
        compressed.clear();
        self.compressed.give(compressed);
        block.bytes.clear();
        self.blocks.give(block.bytes);
        Ok((block.entry, checksum))
    }

    fn consumers(&self, shape: &Shape, obs: &Path, threads: &Threads) -> Result<(), Failure> {
        let count = usize::try_from(self.args.consumers)?;
        let mut error = None;
        let work = |c: usize, _: &mut ()| self.consumer(shape, obs, c as u64 + 1);
        pipeline::ordered(
            threads,
            count,
            || (),
            work,
            |_, done| match done {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    error = Some(e);
                    ControlFlow::Break(())
                }
            },
        );
        error.map_or(Ok(()), Err)
    }

    fn consumer(&self, shape: &Shape, obs: &Path, c: u64) -> Result<(), Failure> {
        let name = format!("C{c}");
        let dir = obs.join(&name);
        make_dir(&dir, false)?;
        let context = Context::Consumer {
            account: self.args.account.as_bytes(),
            stream: shape.name.as_bytes(),
            consumer: name.as_bytes(),
        };
        let seal = self.key(&dir.join("meta.key"), &context)?;
        let inf =
            MetaInf::new_consumer(consumer_config(&name), Some(rfc3339(BEGIN)), name.as_str());
        let hashed_as = format!("{}/{name}", shape.name);
        self.meta(&dir, &hashed_as, meta::encode_consumer(&inf), seal.as_ref())?;
        let state = sealed(seal.as_ref(), o_dat::encode(&consumer_state(shape, c)));
        self.file(&dir.join("o.dat"), &state)
    }

    /// The keys that 2.10 knows, so that every server since takes them.
    pub fn stream_config(&self, shape: &Shape) -> Map<String, Value> {
        object(json!({
            "name": shape.name,
            "subjects": [format!("{}*", shape.prefix)],
            "retention": "limits",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 0,
            "max_msgs_per_subject": if shape.kv { 1 } else { -1 },
            "max_msg_size": -1,
            "discard": "old",
            "storage": "file",
            "num_replicas": 1,
            "duplicate_window": 120_000_000_000u64,
            "compression": if self.args.s2 { "s2" } else { "none" },
            "allow_direct": false,
            "mirror_direct": false,
            "sealed": false,
            "deny_delete": false,
            "deny_purge": false,
            "allow_rollup_hdrs": false,
            "consumer_limits": {},
        }))
    }
}

/// Counts a block in.
fn add(db: &mut IndexDb, entry: BlockEntry, checksum: [u8; 8]) {
    let msgs = entry.msgs();
    if db.msgs == 0 && msgs > 0 {
        (db.first_seq, db.first_ts) = (entry.first, entry.first_ts);
    }
    db.msgs += msgs;
    db.bytes += entry.bytes;
    (db.last_seq, db.last_ts) = (entry.last, entry.last_ts);
    (db.last_block, db.last_checksum) = (entry.index, checksum);
    db.blocks.push(entry);
}

pub fn consumer_config(name: &str) -> Map<String, Value> {
    object(json!({
        "durable_name": name,
        "name": name,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": 3_600_000_000_000u64,
        "max_deliver": -1,
        "replay_policy": "instant",
        "max_waiting": 512,
        "max_ack_pending": 1000,
        "num_replicas": 0,
    }))
}

/// Some messages were delivered; of the last of them, every second is not acknowledged yet. Every third consumer got
/// the first of those twice.
pub fn consumer_state(shape: &Shape, c: u64) -> ConsumerState {
    let Some(last) = shape.messages.checked_sub(1) else {
        return ConsumerState::default();
    };
    let last = shape.of_consumer(c, last + 1);
    let pending = 1 + (c % 10).min(last / 2);
    let first = last - 2 * (pending - 1);
    let seqs = (first..=last).step_by(2).map(|i| {
        let seq = shape.seq(i);
        let state = Pending {
            consumer_seq: i + 1,
            timestamp: shape.ts(seq),
        };
        (seq, state)
    });
    let mut state = ConsumerState {
        delivered: SeqPair {
            consumer: last + 1,
            stream: shape.seq(last),
        },
        ack_floor: SeqPair {
            consumer: first,
            stream: shape.seq(first) - 1,
        },
        pending: seqs.collect(),
        ..ConsumerState::default()
    };
    if c.is_multiple_of(3) {
        state.redelivered.insert(shape.seq(first), 1);
        state.delivered.consumer += 1;
    }
    state
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn sealed(seal: Option<&SealKey>, plain: Vec<u8>) -> Vec<u8> {
    match seal {
        Some(seal) => seal.seal(&plain, &seal.random_nonce()),
        None => plain,
    }
}

/// Makes a directory with a server's permissions.
fn make_dir(path: &Path, above: bool) -> Result<(), Failure> {
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(above)
        .mode(DIR_MODE)
        .create(path)
        .map_err(|e| told(path, e))
}

fn told(path: &Path, e: io::Error) -> Failure {
    format!("{}: {e}", path.display()).into()
}
