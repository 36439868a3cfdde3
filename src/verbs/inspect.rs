//! `jetsam inspect`: what exactly is in a file of a store. Nothing is left out because it is damaged.
//!
//! A block is shown record by record, a line each in JSON; every other file as one value with all its
//! fields.

use super::{Context, Exit, Failure, render};
use crate::finding::{Finding, Severity};
use crate::format::crypt::{self, Cipher};
use crate::format::record::{OnDamage, Proof, Step, scan};
use crate::format::{
    Fault, FaultKind, backup_json, fss, hash::HashKey, idx, index_db, meta, o_dat, raft, sched_db,
    sources_db, thw_db,
};
use crate::source::dir::open_read_only;
use crate::source::{self, Body, OpenOptions, Role, StreamSource, numbered};
use crate::stream::{BlockFile, INDEX_FILE, Scratch, Stream, Want};
use crate::time;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::ffi::OsStr;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};

/// How to look at files.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Show the bytes as well.
    pub hexdump: bool,
    /// The block's number, where its name does not tell it.
    pub block: Option<u64>,
}

/// Runs the verb.
pub fn run(ctx: &mut Context<'_>, files: &[PathBuf], options: &Options) -> Result<Exit, Failure> {
    let mut exit = Exit::Clean;
    for path in files {
        let one = file(ctx, path, options)?;
        if exit == Exit::Clean || one == Exit::Key {
            exit = one;
        }
    }
    Ok(exit)
}

/// Where a file stands in a store, as its path tells: file name first.
struct Names {
    full: PathBuf,
    own: String,
    above: Vec<String>,
}

impl Names {
    fn of(path: &Path) -> Self {
        let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut names: Vec<String> = full
            .components()
            .map(|c| c.as_os_str().to_string_lossy().into_owned())
            .collect();
        names.reverse();
        let own = if names.is_empty() {
            String::new()
        } else {
            names.remove(0)
        };
        Self {
            full,
            own,
            above: names,
        }
    }

    fn above(&self, n: usize) -> &str {
        self.above.get(n).map_or("", String::as_str)
    }

    /// The stream whose directory is `skip` above the file's.
    fn stream(&self, skip: usize) -> String {
        let names = self.above.get(skip..).unwrap_or_default();
        self.full
            .ancestors()
            .nth(skip + 1)
            .and_then(|dir| source::moved_name(dir, names))
            .unwrap_or_else(|| self.above(skip).to_owned())
    }

    /// Account, stream and consumer of the directory that the file belongs to.
    fn owner(&self) -> Owner {
        let at = |skip: usize| Owner {
            group: self.above(skip + 1) == "_js_",
            account: if matches!(self.above(skip + 1), "streams" | "_js_") {
                self.above(skip + 2).to_owned()
            } else {
                String::new()
            },
            stream: self.stream(skip),
            consumer: None,
        };
        match (self.above(0), self.above(1)) {
            ("msgs" | "snapshots", _) => at(1),
            (consumer, "obs") => Owner {
                consumer: Some(consumer.to_owned()),
                ..at(2)
            },
            _ => at(0),
        }
    }
}

struct Owner {
    group: bool,
    account: String,
    stream: String,
    consumer: Option<String>,
}

fn file(ctx: &mut Context<'_>, path: &Path, options: &Options) -> Result<Exit, Failure> {
    let io = |source| {
        Failure::Open(source::OpenError::Io {
            path: path.to_owned(),
            source,
        })
    };
    let meta = std::fs::metadata(path).map_err(io)?;
    if meta.is_dir() {
        return Err(Failure::Usage(format!(
            "{}: a directory; `inspect` takes files (for a whole stream use `info`, `view` or `check`)",
            path.display()
        )));
    }
    // The path is the user's own: a link in it is followed, a device is not opened.
    let real = std::fs::canonicalize(path).map_err(io)?;
    let opened = open_read_only(&real).map_err(io)?;
    let names = Names::of(path);
    let mut owner = names.owner();
    if let Some(s) = ctx.selector.exact_stream() {
        owner.stream = s;
    }
    if let Some(a) = ctx.selector.exact_account() {
        owner.account = a;
    }
    let block = options.block.or_else(|| {
        let stem = names.own.trim_end_matches(".tmp");
        ["blk", "new"]
            .iter()
            .find_map(|ext| numbered(OsStr::new(stem), ext))
    });
    let is_block = names.own.ends_with(".blk")
        || names.own.ends_with(".new")
        || names.own.ends_with(".blk.tmp");
    if is_block || (options.block.is_some() && !names.own.contains('.')) {
        return records(ctx, path, &real, &owner, block, options);
    }
    let mut raw = Vec::new();
    let len = meta.len();
    if len > INDEX_FILE {
        return Err(Failure::Usage(format!(
            "{}: {len} bytes, over the ceiling of {INDEX_FILE}",
            path.display()
        )));
    }
    match &ctx.open.limit {
        None => opened.take(INDEX_FILE).read_to_end(&mut raw).map(|_| ()),
        Some(limit) => limit.read_to_end(&opened, INDEX_FILE, &mut raw),
    }
    .map_err(io)?;
    let shown = decode(ctx, path, &names, &owner, block, &raw);
    let bad = shown.get("fault").is_some() || shown.get("hash").is_some_and(|h| h == "bad");
    let locked = shown.get("locked").is_some();
    if ctx.json {
        serde_json::to_writer(&mut *ctx.out, &shown).map_err(std::io::Error::from)?;
        ctx.out.write_all(b"\n")?;
    } else {
        let mut text = String::new();
        text.push_str(&render::paint(
            ctx.style,
            &path.display().to_string(),
            render::Color::Bold,
        ));
        text.push('\n');
        tree(&mut text, &Value::Object(shown), 1);
        ctx.out.write_all(text.as_bytes())?;
    }
    if options.hexdump {
        hexdump(ctx.out, 0, &raw)?;
    }
    Ok(if locked {
        Exit::Key
    } else if bad {
        Exit::Found
    } else {
        Exit::Clean
    })
}

/// Nested values as indented `name: value` lines.
fn tree(out: &mut String, value: &Value, depth: usize) {
    // No format nests deeper, and a configuration is shown as it is from there on.
    const DEEPEST: usize = 6;
    let pad = "  ".repeat(depth);
    let scalar = |v: &Value| match v {
        Value::String(s) => render::safe(s),
        other => other.to_string(),
    };
    let small = |v: &Value| {
        !v.is_object() && !v.is_array()
            || v.as_array()
                .is_some_and(|a| a.iter().all(|x| !x.is_object()))
    };
    match value {
        Value::Object(map) => {
            for (k, v) in map {
                if small(v) || depth >= DEEPEST {
                    out.push_str(&format!("{pad}{}: {}\n", render::safe(k), scalar(v)));
                } else {
                    out.push_str(&format!("{pad}{}:\n", render::safe(k)));
                    tree(out, v, depth + 1);
                }
            }
        }
        Value::Array(list) => {
            for v in list {
                match v {
                    Value::Object(map) => {
                        let line: Vec<String> = map
                            .iter()
                            .map(|(k, v)| format!("{} {}", render::safe(k), scalar(v)))
                            .collect();
                        out.push_str(&format!("{pad}- {}\n", line.join(", ")));
                    }
                    v => out.push_str(&format!("{pad}- {}\n", scalar(v))),
                }
            }
        }
        v => out.push_str(&format!("{pad}{}\n", scalar(v))),
    }
}

/// Sixteen bytes a line, with their offsets and as text.
fn hexdump(out: &mut (dyn Write + Send), base: u64, bytes: &[u8]) -> Result<(), Failure> {
    for (i, line) in bytes.chunks(16).enumerate() {
        let hex: Vec<String> = line.iter().map(|b| format!("{b:02x}")).collect();
        let text: String = line
            .iter()
            .map(|b| {
                if (0x20..0x7f).contains(b) {
                    char::from(*b)
                } else {
                    '.'
                }
            })
            .collect();
        writeln!(
            out,
            "    {:08x}  {:<47}  |{text}|",
            base + i as u64 * 16,
            hex.join(" ")
        )?;
    }
    Ok(())
}

#[derive(Serialize)]
struct RecordLine<'a> {
    offset: u64,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    doubt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<Value>,
}

/// Every record of a block.
fn records(
    ctx: &mut Context<'_>,
    path: &Path,
    real: &Path,
    owner: &Owner,
    block: Option<u64>,
    options: &Options,
) -> Result<Exit, Failure> {
    let Some(n) = block else {
        return Err(Failure::Usage(format!(
            "{}: the name does not tell the block's number; give it with --block",
            path.display()
        )));
    };
    if owner.stream.is_empty() {
        return Err(Failure::Usage(format!(
            "{}: the path does not tell the stream; give it with --stream",
            path.display()
        )));
    }
    let dir = real.parent().unwrap_or(Path::new("/"));
    let name = real.file_name().unwrap_or_default();
    // Findings name the file as it was typed; a key beside it stands in the same directory.
    let typed = |mut f: Finding| {
        f.file = f.file.map(|file| {
            if file == format!("{n}.blk") {
                source::text(path)
            } else {
                source::text(&path.with_file_name(file))
            }
        });
        f
    };
    let tree: std::sync::Arc<dyn source::tree::Tree> = std::sync::Arc::new(OneBlock {
        dir: source::dir::DirTree::new(dir, false).limited(ctx.open.limit.clone()),
        name: name.into(),
        n,
    });
    let role = if owner.group {
        Role::RaftGroup
    } else {
        Role::Stream
    };
    let source = StreamSource {
        account: owner.account.clone(),
        name: owner.stream.clone(),
        role,
        path: PathBuf::new(),
        body: Body::Blocks {
            tree: tree.clone(),
            dir: PathBuf::new(),
            msgs: PathBuf::new(),
        },
        backup: None,
        findings: Vec::new(),
        mends: Default::default(),
    };
    let stream = Stream::open(&source, &ctx.keys, Want::NOTHING);
    let len = std::fs::metadata(path).map_or(0, |m| m.len());
    let key = tree.stat(Path::new(&format!("{n}.key"))).is_ok();
    let file = BlockFile {
        n,
        len,
        key,
        idx: false,
        fss: false,
    };
    let mut scratch = Scratch::default();
    let loaded = match stream.load(&file, &mut scratch) {
        Ok(loaded) => loaded,
        Err(finding) => {
            ctx.monitor
                .warn(&render::finding_line(&typed((*finding).clone())));
            return Ok(super::exit_for(&[*finding]).max_found());
        }
    };
    for f in &loaded.findings {
        ctx.monitor.warn(&render::finding_line(&typed(f.clone())));
    }
    let mut bad = loaded
        .findings
        .iter()
        .any(|f: &Finding| f.severity == Severity::Error);
    if !ctx.json {
        let form = match loaded.container {
            crate::format::block::Container::Plain { .. } => "plain".to_owned(),
            c => format!("{c:?}"),
        };
        let sealed = if loaded.encrypted { ", encrypted" } else { "" };
        writeln!(
            ctx.out,
            "{}: block {n} of {}, {} bytes on disk, {} bytes of records, {form}{sealed}",
            path.display(),
            render::safe(&owner.stream),
            loaded.file_len,
            loaded.bytes.len()
        )?;
        writeln!(
            ctx.out,
            "{:>10} {:>8} {:>10}  {:<9} {:<4} {:<30} {:>5} {:>8}  subject",
            "offset", "length", "seq", "kind", "hash", "time", "hdr", "data"
        )?;
    }
    let mut failed: Option<std::io::Error> = None;
    let prover = stream.prover(n);
    let (json_out, out) = (ctx.json, &mut *ctx.out);
    scan(loaded.bytes, 0, &prover, OnDamage::Resync, |step| {
        if failed.is_some() {
            return;
        }
        let (line, bytes) = match step {
            Step::Record(r, proof) => {
                bad |= proof != Proof::Proven;
                let entry = (owner.group && r.kind == crate::format::record::Kind::Message)
                    .then(|| append_entry(r.payload))
                    .flatten();
                let line = RecordLine {
                    offset: r.offset,
                    length: r.len(),
                    seq: Some(r.seq),
                    kind: r.kind.as_str(),
                    time: Some(if r.ts == 0 {
                        time::ZERO.to_owned()
                    } else {
                        time::rfc3339(r.ts)
                    }),
                    subject: Some(String::from_utf8_lossy(r.subject).into_owned()),
                    header_length: Some(r.headers.len() as u64),
                    data_length: Some(r.payload.len() as u64),
                    hash: Some(if proof == Proof::Proven { "ok" } else { "bad" }),
                    doubt: r
                        .border_doubts()
                        .filter(|_| !owner.group)
                        .map(|d| d.reason()),
                    entry,
                };
                (line, r.raw)
            }
            Step::Gap { from, to, torn } => {
                bad = true;
                let line = RecordLine {
                    offset: from,
                    length: to - from,
                    seq: None,
                    kind: if torn { "torn" } else { "garbage" },
                    time: None,
                    subject: None,
                    header_length: None,
                    data_length: None,
                    hash: None,
                    doubt: None,
                    entry: None,
                };
                let range = usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(0);
                (line, loaded.bytes.get(range).unwrap_or_default())
            }
        };
        let wrote = if json_out {
            serde_json::to_writer(&mut *out, &line)
                .map_err(std::io::Error::from)
                .and_then(|()| out.write_all(b"\n"))
        } else {
            write_line(out, &line)
        };
        let wrote = wrote.and_then(|()| {
            if options.hexdump && !json_out {
                hexdump(out, line.offset, bytes).map_err(std::io::Error::other)
            } else {
                Ok(())
            }
        });
        if let Err(e) = wrote {
            failed = Some(e);
        }
    });
    match failed {
        Some(e) => Err(e.into()),
        None => Ok(if bad { Exit::Found } else { Exit::Clean }),
    }
}

fn write_line(out: &mut (dyn Write + Send), l: &RecordLine<'_>) -> std::io::Result<()> {
    let number = |n: Option<u64>| n.map_or_else(String::new, |n| n.to_string());
    write!(
        out,
        "{:>10} {:>8} {:>10}  {:<9} {:<4} {:<30} {:>5} {:>8}  {}",
        l.offset,
        l.length,
        number(l.seq),
        l.kind,
        l.hash.unwrap_or(""),
        l.time.as_deref().unwrap_or(""),
        number(l.header_length),
        number(l.data_length),
        render::safe(l.subject.as_deref().unwrap_or("")),
    )?;
    if let Some(doubt) = l.doubt {
        write!(out, "  ({doubt})")?;
    }
    if let Some(entry) = &l.entry {
        write!(out, "  {}", render::safe(&entry.to_string()))?;
    }
    writeln!(out)
}

/// A record of a raft group's log: the frame of its append entry.
fn append_entry(payload: &[u8]) -> Option<Value> {
    let e = raft::decode_append_entry(payload, 0).ok()?;
    let entries: Vec<Value> = e
        .entries
        .iter()
        .map(|x| {
            let mut v = json!({ "type": x.kind, "length": x.data.len() });
            if let (Some(map), raft::EntryType::Normal, Some(op)) =
                (v.as_object_mut(), x.kind, raft::op_name(x.data))
            {
                map.insert("op".into(), json!(op));
            }
            v
        })
        .collect();
    Some(json!({
        "leader": e.leader, "term": e.term, "commit": e.commit,
        "previous_term": e.previous_term, "previous_index": e.previous_index, "entries": entries,
    }))
}

impl Exit {
    /// An unreadable file is never "nothing wrong".
    fn max_found(self) -> Self {
        if self == Self::Clean {
            Self::Found
        } else {
            self
        }
    }
}

/// A block under whatever name, as the only block of a directory; its key file beside it.
#[derive(Debug)]
struct OneBlock {
    dir: source::dir::DirTree,
    name: PathBuf,
    n: u64,
}

impl OneBlock {
    fn real<'a>(&'a self, path: &'a Path) -> &'a Path {
        if path == Path::new(&format!("{}.blk", self.n)) {
            &self.name
        } else {
            path
        }
    }
}

impl source::tree::Tree for OneBlock {
    fn children(&self, _: &Path) -> std::io::Result<Vec<source::tree::Child>> {
        Ok(Vec::new())
    }

    fn stat(&self, path: &Path) -> std::io::Result<source::tree::Child> {
        self.dir.stat(self.real(path))
    }

    fn read_into(
        &self,
        path: &Path,
        buf: &mut Vec<u8>,
        ceiling: u64,
    ) -> Result<Vec<source::tree::ReadFault>, source::tree::ReadError> {
        self.dir.read_into(self.real(path), buf, ceiling)
    }

    fn read_at(&self, path: &Path, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        self.dir.read_at(self.real(path), offset, buf)
    }
}

/// A small file's fields.
struct Shown(Map<String, Value>);

impl Shown {
    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    fn fault(&mut self, f: &Fault) {
        self.set("fault", f.kind.to_string());
        self.set("fault_offset", f.offset);
    }

    fn fields(&mut self, value: &impl Serialize) {
        match serde_json::to_value(value) {
            Ok(Value::Object(map)) => self.0.extend(map),
            Ok(other) => self.set("value", other),
            Err(e) => self.set("fault", e.to_string()),
        }
    }

    fn take<T: Serialize>(&mut self, result: Result<T, Fault>) {
        match result {
            Ok(v) => self.fields(&v),
            Err(f) => self.fault(&f),
        }
    }
}

/// Decodes any file but a block.
fn decode(
    ctx: &Context<'_>,
    path: &Path,
    names: &Names,
    owner: &Owner,
    block: Option<u64>,
    raw: &[u8],
) -> Map<String, Value> {
    let mut out = Shown(Map::new());
    out.set("file", path.to_string_lossy().into_owned());
    out.set("length", raw.len());
    let dir = path.parent().unwrap_or(Path::new("."));
    let own = names.own.trim_end_matches(".tmp");
    let stream = owner.stream.as_bytes();
    let kind = |out: &mut Shown, k: &str| out.set("kind", k);
    let numbered_as = |ext: &str| numbered(OsStr::new(own), ext);
    match own {
        "meta.inf" => {
            kind(&mut out, "meta.inf");
            let sum_name = match &owner.consumer {
                Some(c) => format!("{}/{c}", owner.stream),
                None => owner.stream.clone(),
            };
            if let Ok(sum) = std::fs::read(dir.join("meta.sum")) {
                let ok = meta::check_sum(sum_name.as_bytes(), raw, &sum);
                out.set("hash", if ok.is_ok() { "ok" } else { "bad" });
            }
            match unseal(ctx, dir, owner, raw, &mut out) {
                None => {}
                Some(plain) => {
                    let decoded = if owner.consumer.is_some() {
                        meta::decode_consumer(&plain)
                    } else {
                        meta::decode_stream(&plain)
                    };
                    match decoded {
                        Ok(m) => {
                            if let Some(c) = &m.created {
                                out.set("created", c.clone());
                            }
                            if let Some(n) = &m.consumer_name {
                                out.set("name", n.clone());
                            }
                            out.set("config", Value::Object(m.config));
                        }
                        Err(f) => out.fault(&f),
                    }
                }
            }
        }
        "meta.sum" => {
            kind(&mut out, "meta.sum");
            out.set(
                "sum",
                String::from_utf8_lossy(raw.get(..64).unwrap_or(raw)).into_owned(),
            );
            let sum_name = match &owner.consumer {
                Some(c) => format!("{}/{c}", owner.stream),
                None => owner.stream.clone(),
            };
            if let Ok(inf) = std::fs::read(dir.join("meta.inf")) {
                let ok = meta::check_sum(sum_name.as_bytes(), &inf, raw);
                out.set("hash", if ok.is_ok() { "ok" } else { "bad" });
            }
        }
        "o.dat" => {
            kind(&mut out, "o.dat");
            if let Some(plain) = unseal(ctx, dir, owner, raw, &mut out) {
                match o_dat::decode_partial(&plain, 0) {
                    Ok((state, used, fault)) => {
                        out.set("state", state.to_json());
                        if let Some(f) = fault {
                            out.fault(&f);
                        } else if used < plain.len() {
                            out.set("trailing_bytes", plain.len() - used);
                        }
                        let problems: Vec<Value> = o_dat::validate(&state)
                            .iter()
                            .map(|p| json!(p.to_string()))
                            .collect();
                        if !problems.is_empty() {
                            out.set("problems", problems);
                        }
                    }
                    Err(f) => out.fault(&f),
                }
            }
        }
        "index.db" => {
            kind(&mut out, "index.db");
            match index_db::check_hash(raw, stream) {
                Ok(_) => out.set("hash", "ok"),
                Err(f) => {
                    out.set("hash", "bad");
                    out.set("hash_fault", f.kind.to_string());
                }
            }
            let body = raw.get(..raw.len().saturating_sub(8)).unwrap_or_default();
            let up = if names.above(0) == "msgs" {
                dir.parent().unwrap_or(dir)
            } else {
                dir
            };
            if let Some(plain) = unseal(ctx, up, owner, body, &mut out) {
                match index_db::decode(&plain, 0, index_db::Options { subjects: true }) {
                    Ok(db) => {
                        if let Err(f) = index_db::totals_agree(&db) {
                            out.set("totals", f.kind.to_string());
                        }
                        out.fields(&db);
                    }
                    Err(f) => out.fault(&f),
                }
            }
        }
        "thw.db" => {
            kind(&mut out, "thw.db");
            out.take(thw_db::decode(raw, 0).map(|d| d.0));
        }
        "sched.db" => {
            kind(&mut out, "sched.db");
            out.take(sched_db::decode(raw, 0).map(|d| d.0));
        }
        "sources.db" => {
            kind(&mut out, "sources.db");
            out.take(sources_db::decode(raw, 0).map(|d| d.0));
        }
        "peers.idx" => {
            kind(&mut out, "peers.idx");
            out.take(raft::decode_peers(raw, 0));
        }
        "tav.idx" => {
            kind(&mut out, "tav.idx");
            out.take(raft::decode_vote(raw, 0));
        }
        "commit.idx" => {
            kind(&mut out, "commit.idx");
            out.take(raft::decode_commit(raw, 0, stream).map(|c| json!({ "commit": c })));
        }
        "backup.json" => {
            kind(&mut out, "backup.json");
            out.take(
                backup_json::decode(raw).map(|b| json!({ "config": b.config, "state": b.state })),
            );
        }
        _ if own.ends_with(".key") => {
            kind(&mut out, "key file");
            key_file(ctx, own, owner, raw, &mut out);
        }
        _ if numbered_as("idx").is_some() => {
            kind(&mut out, "idx");
            let n = numbered_as("idx").unwrap_or(0);
            let mut plain = raw.to_vec();
            if let Ok(key) = std::fs::read(dir.join(format!("{n}.key"))) {
                let context = crypt::Context::Block {
                    info: info(owner),
                    store: stream,
                    n,
                };
                match crypt::open_key_file(&key, &ctx.keys, &context)
                    .map(|seal| seal.open_with_own_nonce(raw))
                {
                    Ok(Ok((opened, used))) => {
                        out.set("sealed_bytes", used);
                        plain = opened;
                    }
                    Ok(Err(f)) => out.fault(&f),
                    Err(e) => locked(&mut out, &e),
                }
            }
            out.take(idx::decode(&plain, 0));
        }
        _ if numbered_as("fss").is_some() => {
            kind(&mut out, "fss");
            let key = HashKey::block(stream, numbered_as("fss").or(block).unwrap_or(0));
            out.set(
                "hash",
                if fss::check_hash(raw, &key).is_ok() {
                    "ok"
                } else {
                    "bad"
                },
            );
            out.take(fss::decode(raw, 0).map(|d| d.0));
        }
        _ if own.starts_with("snap.") => {
            kind(&mut out, "raft snapshot");
            match raft::decode_snapshot(raw, 0, stream) {
                Ok(s) => {
                    out.set("hash", "ok");
                    out.set("last_term", s.last_term);
                    out.set("last_index", s.last_index);
                    out.set("peers", json!(s.peers));
                    out.set("data_length", s.data.len());
                }
                Err(f) => {
                    if matches!(f.kind, FaultKind::Checksum { .. }) {
                        out.set("hash", "bad");
                    }
                    out.fault(&f);
                }
            }
        }
        _ => unknown(ctx, path, &mut out),
    }
    out.0
}

/// An archive, or nothing that is known.
fn unknown(ctx: &Context<'_>, path: &Path, out: &mut Shown) {
    match source::archive::open_with(path, &[], ctx.open.limit.clone()) {
        Ok(source::archive::Opened::Tar(tree)) => {
            out.set("kind", "tar archive");
            out.set("stream", json!(tree.stream_name()));
            let found: Vec<Value> = tree.findings().iter().map(|f| json!(f)).collect();
            out.set("findings", found);
            let source = source::open(
                path,
                &OpenOptions {
                    limit: ctx.open.limit.clone(),
                    ..OpenOptions::default()
                },
            );
            let mut members = Vec::new();
            if source.is_ok() {
                list(&*tree, &mut members);
            }
            out.set("members", members);
        }
        Ok(source::archive::Opened::V2(v2)) => {
            out.set("kind", "NATSARC1 archive");
            out.set("state", json!({
                "messages": v2.state().messages, "first_seq": v2.state().first_seq, "last_seq": v2.state().last_seq,
            }));
            let names: Vec<Value> = v2.consumers().iter().map(|c| json!(c.name)).collect();
            out.set("consumers", names);
            let found: Vec<Value> = v2.findings().iter().map(|f| json!(f)).collect();
            out.set("findings", found);
        }
        Err(e) => out.set("fault", format!("no file of a store: {e}")),
    }
}

fn list(tree: &dyn source::tree::Tree, out: &mut Vec<Value>) {
    let mut stack = vec![PathBuf::new()];
    while let Some(dir) = stack.pop() {
        for c in tree.children(&dir).unwrap_or_default() {
            let at = if dir.as_os_str().is_empty() {
                PathBuf::from(&c.name)
            } else {
                dir.join(&c.name)
            };
            match c.kind {
                source::tree::ChildKind::Dir => stack.push(at),
                _ => out.push(json!({ "name": at.to_string_lossy(), "length": c.len })),
            }
        }
    }
}

fn info(owner: &Owner) -> &[u8] {
    if owner.group {
        owner.stream.as_bytes()
    } else {
        owner.account.as_bytes()
    }
}

fn locked(out: &mut Shown, e: &crypt::KeyError) {
    out.set("locked", e.to_string());
}

/// The plaintext of a sealed file: opened with the `meta.key` in `dir`, where there is one.
fn unseal(
    ctx: &Context<'_>,
    dir: &Path,
    owner: &Owner,
    raw: &[u8],
    out: &mut Shown,
) -> Option<Vec<u8>> {
    let Ok(key) = std::fs::read(dir.join("meta.key")) else {
        return Some(raw.to_vec());
    };
    let context = context(owner);
    match crypt::open_key_file(&key, &ctx.keys, &context) {
        Ok(seal) => {
            out.set("cipher", seal.cipher.as_str());
            match seal.open(raw) {
                Ok(plain) => Some(plain),
                Err(f) => {
                    out.fault(&f);
                    None
                }
            }
        }
        Err(e) => {
            locked(out, &e);
            None
        }
    }
}

fn context(owner: &Owner) -> crypt::Context<'_> {
    let (account, stream) = (owner.account.as_bytes(), owner.stream.as_bytes());
    match (&owner.consumer, owner.group) {
        (Some(c), _) => crypt::Context::Consumer {
            account,
            stream,
            consumer: c.as_bytes(),
        },
        (None, true) => crypt::Context::Group { group: stream },
        (None, false) => crypt::Context::Stream { account, stream },
    }
}

fn key_file(ctx: &Context<'_>, own: &str, owner: &Owner, raw: &[u8], out: &mut Shown) {
    if let Some(c) = Cipher::from_key_file_len(raw.len()) {
        out.set("cipher_by_size", c.as_str());
    }
    let context = match numbered(OsStr::new(own), "key") {
        Some(n) => crypt::Context::Block {
            info: info(owner),
            store: owner.stream.as_bytes(),
            n,
        },
        None => context(owner),
    };
    match crypt::open_key_file(raw, &ctx.keys, &context) {
        Ok(seal) => {
            out.set("opens", true);
            out.set("cipher", seal.cipher.as_str());
            out.set("with", format!("{:?}", seal.which).to_lowercase());
            if seal.excess > 0 {
                out.set("trailing_bytes", seal.excess);
            }
        }
        Err(crypt::KeyError::NoKey) => out.set("opens", "no key given"),
        Err(e) => {
            out.set("opens", false);
            locked(out, &e);
        }
    }
}
