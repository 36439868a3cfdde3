//! `jetsam info`: configuration, state and consumers of each stream, as the JetStream API has them.

use super::{Context, Exit, Failure, Monitor, exit_for, render, warn_of};
use crate::finding::Finding;
use crate::format::meta::{self, MetaInf};
use crate::format::o_dat::SeqPair;
use crate::pipeline::{self, Threads};
use crate::source::tree::{ChildKind, Tree, sum_below};
use crate::source::{Body, StreamSource, text};
use crate::state::consumers::{pending, position};
use crate::state::{Depth, StreamState, claimed, survey};
use crate::stream::{Consumer, Index, Stream, Want};
use crate::time;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// What to add to the answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// List the deleted sequences.
    pub deleted: bool,
    /// List the subjects with their message counts.
    pub subjects: bool,
}

/// As many deleted sequences are listed one by one.
const LISTED: u64 = 1_000_000;

/// A stream with its state: what `info` and `ls` show.
pub struct Described {
    /// The stream.
    pub stream: Stream,
    /// Its state.
    pub state: StreamState,
    /// Messages that each consumer has before it.
    pub pending: Vec<u64>,
    /// Findings of opening and scanning it.
    pub findings: Vec<Finding>,
}

/// Opens a stream and finds out its state.
pub fn describe(ctx: &Context<'_>, source: &StreamSource, want: Want) -> Described {
    let stream = Stream::open_on(&ctx.threads, source, &ctx.keys, want);
    let needs_scan = !matches!(stream.index, Index::Valid(_));
    if needs_scan {
        let what = format!("Scanning {}", stream.name);
        ctx.monitor.begin(&what, stream.block_bytes());
    }
    let described = described(stream, want, &ctx.threads, ctx.monitor);
    if needs_scan {
        ctx.monitor.end();
    }
    described
}

fn described(stream: Stream, want: Want, threads: &Threads, monitor: &dyn Monitor) -> Described {
    let depth = Depth {
        subjects: want.subjects,
        prove: false,
    };
    let found = survey(&stream, threads, depth, &|n| monitor.advance(n));
    let pending = if want.consumers {
        pending(&stream, &found.state, threads)
    } else {
        Vec::new()
    };
    let mut findings = stream.findings.clone();
    findings.extend(found.findings);
    Described {
        stream,
        state: found.state,
        pending,
        findings,
    }
}

/// Describes streams, makes of each what `show` does with the given threads, and hands that to `sink` in their order, with
/// the place for the result. Many streams are described side by side, one thread each, unless `one_by_one`: for what may be
/// too large to hold it for several streams.
pub fn describe_all<T: Send>(
    ctx: &mut Context<'_>,
    sources: &[&StreamSource],
    want: Want,
    one_by_one: bool,
    show: impl Fn(Described, &Threads) -> T + Sync,
    mut sink: impl FnMut(&mut dyn Write, T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    /// Streams that are worth it.
    const MANY: usize = 64;
    /// Streams between two writes.
    const BATCH: usize = 1024;
    /// Bytes of blocks from which on a stream has all threads to itself: a scan, or a consumer's filter, may read them all.
    const LARGE: u64 = 64 << 20;
    if sources.len() < MANY || one_by_one {
        for source in sources {
            let d = describe(ctx, source, want);
            let shown = show(d, &ctx.threads);
            sink(ctx.out, shown)?;
        }
        return Ok(());
    }
    let (keys, threads, monitor) = (&ctx.keys, &ctx.threads, ctx.monitor);
    let alone = |source: &StreamSource| {
        let stream = Stream::open(source, keys, want);
        let size = stream.entries().map(|v2| v2.file_len());
        if size.unwrap_or_else(|| stream.block_bytes()) > LARGE {
            return Err(());
        }
        let one = Threads::one();
        Ok(show(described(stream, want, &one, monitor), &one))
    };
    for batch in sources.chunks(BATCH) {
        // What a thread takes at a time: not so few that they wait for each other, not so many that some have none.
        let share = (batch.len() / threads.count() / 4).clamp(1, 16);
        let mut all = Vec::new();
        monitor.begin(&format!("Reading {} streams", batch.len()), 0);
        pipeline::ordered(
            threads,
            batch.len().div_ceil(share),
            || (),
            |i, ()| {
                let share = batch.chunks(share).nth(i).unwrap_or_default();
                share.iter().map(|s| alone(s)).collect::<Vec<_>>()
            },
            |_, mut share| {
                all.append(&mut share);
                ControlFlow::Continue(())
            },
        );
        monitor.end();
        for (one, source) in all.into_iter().zip(batch) {
            let all_threads = |()| {
                let d = describe(ctx, source, want);
                show(d, threads)
            };
            let shown = one.unwrap_or_else(all_threads);
            sink(ctx.out, shown)?;
        }
    }
    Ok(())
}

/// As [`describe`], for a pass that reads all messages and compares: an archive that says what it holds is not read
/// twice.
pub fn describe_to_copy(ctx: &Context<'_>, source: &StreamSource) -> Described {
    if !matches!(source.body, Body::Entries(_)) && source.backup.is_none() {
        return describe(ctx, source, Want::CONSUMERS);
    }
    let stream = Stream::open(source, &ctx.keys, Want::CONSUMERS);
    match claimed(&stream) {
        Some(state) => Described {
            findings: stream.findings.clone(),
            stream,
            state,
            pending: Vec::new(),
        },
        None => describe(ctx, source, Want::CONSUMERS),
    }
}

/// Bytes of all files below `dir`.
fn tree_bytes(tree: &dyn Tree, dir: &Path, threads: &Threads) -> u64 {
    let of = |dir: &Path, dirs: &mut Vec<PathBuf>| {
        let mut total = 0u64;
        for c in tree.children(dir).unwrap_or_default() {
            match c.kind {
                ChildKind::File => total = total.saturating_add(c.len),
                ChildKind::Dir => dirs.push(dir.join(&c.name)),
                _ => {}
            }
        }
        total
    };
    sum_below(dir.to_owned(), 8, threads, of, u64::saturating_add)
}

/// The releases that can have written what is on disk, by its formats alone.
pub fn written_by(stream: &Stream) -> String {
    if stream.entries().is_some() {
        return "2.15+".into();
    }
    if stream
        .tree()
        .is_some_and(|(tree, dir)| tree.stat(&dir.join("sources.db")).is_ok())
    {
        return "2.15+".into();
    }
    let version = match &stream.index {
        Index::Valid(db) => Some(db.version),
        Index::Rejected {
            prior: Some(db), ..
        } => Some(db.version),
        _ => None,
    };
    match version {
        Some(1) => return "2.10".into(),
        Some(2) => return "2.11".into(),
        Some(3) => return "2.12".into(),
        Some(_) => return "2.14–2.15".into(),
        None => {}
    }
    if stream.blocks.iter().any(|b| b.fss) {
        return "2.3–2.9".into();
    }
    if stream.blocks.iter().any(|b| b.idx) {
        return "2.2–2.9".into();
    }
    stream.meta.as_ref().map_or_else(
        || "unknown".into(),
        |m| format!("{}+", meta::oldest_writer(m)),
    )
}

fn pair(p: SeqPair) -> Value {
    json!({ "consumer_seq": p.consumer, "stream_seq": p.stream })
}

/// A consumer in the shape of the API's consumer info.
pub fn consumer_json(
    stream: &Stream,
    consumer: &Consumer,
    state: &StreamState,
    pending: u64,
) -> Value {
    let at = position(consumer, state);
    let redelivered = consumer.state.as_ref().map_or(0, |s| s.redelivered.len());
    let redelivered = match &consumer.meta {
        // The server does not report redeliveries where it makes none.
        Some(m) if m.max_deliver() == 1 => 0,
        _ => redelivered,
    };
    let mut out = Map::new();
    out.insert("stream_name".into(), json!(stream.name));
    out.insert("name".into(), json!(consumer.name));
    if let Some(created) = consumer.meta.as_ref().and_then(|m| m.created.clone()) {
        out.insert("created".into(), json!(created));
    }
    let config = consumer
        .meta
        .as_ref()
        .map(|m| m.config.clone())
        .unwrap_or_default();
    out.insert("config".into(), Value::Object(config));
    out.insert("delivered".into(), pair(at.delivered));
    out.insert("ack_floor".into(), pair(at.ack_floor));
    out.insert(
        "num_ack_pending".into(),
        json!(consumer.state.as_ref().map_or(0, |s| s.pending.len())),
    );
    out.insert("num_redelivered".into(), json!(redelivered));
    out.insert("num_pending".into(), json!(pending));
    Value::Object(out)
}

/// A state in the shape of the API's stream state.
pub fn state_json(state: &StreamState, consumers: usize, options: &Options) -> Value {
    let mut out = Map::new();
    out.insert("messages".into(), json!(state.msgs));
    out.insert("bytes".into(), json!(state.bytes));
    out.insert("first_seq".into(), json!(state.first_seq));
    out.insert(
        "first_ts".into(),
        json!(time::rfc3339_or_zero(state.first_ts)),
    );
    out.insert("last_seq".into(), json!(state.last_seq));
    out.insert(
        "last_ts".into(),
        json!(time::rfc3339_or_zero(state.last_ts)),
    );
    out.insert(
        "num_subjects".into(),
        json!(state.num_subjects.unwrap_or(0)),
    );
    out.insert("num_deleted".into(), json!(state.num_deleted()));
    out.insert("consumer_count".into(), json!(consumers));
    if options.deleted {
        let runs = state.deleted();
        let count = runs.iter().fold(0u64, |n, (from, to)| {
            n.saturating_add(to - from).saturating_add(1)
        });
        // Two messages can be 2^63 sequences apart: such a gap is told by its ends.
        if count > LISTED {
            out.insert("deleted_ranges".into(), json!(runs));
        } else {
            let all = runs.into_iter().flat_map(|(from, to)| from..=to);
            out.insert(
                "deleted".into(),
                Value::Array(all.map(Value::from).collect()),
            );
        }
    }
    if let (true, Some(subjects)) = (options.subjects, &state.subjects) {
        let mut sorted: Vec<_> = subjects.iter().filter(|(_, n)| *n > 0).collect();
        sorted.sort_unstable();
        let map: Map<String, Value> = sorted
            .into_iter()
            .map(|(s, n)| (String::from_utf8_lossy(s).into_owned(), json!(n)))
            .collect();
        out.insert("subjects".into(), Value::Object(map));
    }
    Value::Object(out)
}

/// The cipher's name for people and scripts.
pub fn cipher_name(stream: &Stream) -> &'static str {
    stream.cipher.map_or("none", |c| c.as_str())
}

/// The compression that the configuration asks for.
pub fn compression_name(stream: &Stream) -> &str {
    stream
        .meta
        .as_ref()
        .and_then(|m| m.compression())
        .unwrap_or("none")
}

fn storage_json(stream: &Stream, threads: &Threads) -> Value {
    let files = match stream.tree() {
        Some((tree, dir)) => tree_bytes(tree, dir, threads),
        None => stream.entries().map_or(0, |v2| v2.file_len()),
    };
    json!({
        "blocks": stream.blocks.len(),
        "files_bytes": files,
        "cipher": cipher_name(stream),
        "compression": compression_name(stream),
        "written_by": written_by(stream),
    })
}

fn stream_json(d: &Described, options: &Options, threads: &Threads) -> Value {
    let s = &d.stream;
    let mut out = Map::new();
    out.insert("account".into(), json!(s.account));
    out.insert("path".into(), json!(text(&s.path)));
    let config = s
        .meta
        .as_ref()
        .map(|m| m.config.clone())
        .unwrap_or_default();
    out.insert("config".into(), Value::Object(config));
    if let Some(created) = s.meta.as_ref().and_then(|m| m.created.clone()) {
        out.insert("created".into(), json!(created));
    }
    out.insert(
        "state".into(),
        state_json(&d.state, s.consumers.len(), options),
    );
    let consumers: Vec<Value> = s
        .consumers
        .iter()
        .zip(&d.pending)
        .map(|(c, pending)| consumer_json(s, c, &d.state, *pending))
        .collect();
    out.insert("consumers".into(), Value::Array(consumers));
    out.insert("storage".into(), storage_json(s, threads));
    Value::Object(out)
}

/// Runs the verb.
pub fn run(ctx: &mut Context<'_>, path: &Path, options: &Options) -> Result<Exit, Failure> {
    let opened = ctx.open(path)?;
    ctx.require_match(&opened)?;
    let selector = ctx.selector.clone();
    let mut findings: Vec<Finding> = opened.findings(&selector).cloned().collect();
    if ctx.json {
        ctx.out.write_all(b"[")?;
    }
    let sources: Vec<&StreamSource> = opened.streams(&selector).collect();
    let want = Want {
        subjects: options.subjects,
        consumers: true,
    };
    let (json, style) = (ctx.json, ctx.style);
    let mut between: &[u8] = if json { b"\n" } else { b"" };
    let show = |mut d: Described, threads: &Threads| {
        retain_consumers(&mut d, |name| selector.consumer(name));
        let text = if json {
            stream_json(&d, options, threads).to_string()
        } else {
            human(style, &d, options, threads)
        };
        (text, d.findings)
    };
    let large = options.subjects || options.deleted;
    describe_all(
        ctx,
        &sources,
        want,
        large,
        show,
        |out, (text, mut found)| {
            out.write_all(between)?;
            out.write_all(text.as_bytes())?;
            if json {
                between = b",\n";
            }
            findings.append(&mut found);
            Ok(())
        },
    )?;
    if ctx.json {
        ctx.out.write_all(b"\n]\n")?;
    }
    warn_of(ctx.monitor, &findings);
    Ok(ctx.close(&opened, exit_for(&findings)))
}

fn retain_consumers(d: &mut Described, keep: impl Fn(&str) -> bool) {
    let keep: Vec<bool> = d.stream.consumers.iter().map(|c| keep(&c.name)).collect();
    let mut flags = keep.iter();
    d.stream
        .consumers
        .retain(|_| *flags.next().unwrap_or(&true));
    let mut flags = keep.iter();
    d.pending.retain(|_| *flags.next().unwrap_or(&true));
}

/// `name: value` lines with the names aligned to the right, as the `nats` CLI prints them.
fn fields(out: &mut String, title: &str, rows: &[(&str, String)]) {
    let rows: Vec<_> = rows.iter().filter(|(_, v)| !v.is_empty()).collect();
    if rows.is_empty() {
        return;
    }
    out.push_str(title);
    out.push_str("\n\n");
    let width = rows.iter().map(|(n, _)| n.len()).max().unwrap_or(0) + 2;
    for (name, value) in rows {
        out.push_str(&format!("{name:>width$}: {}\n", render::safe(value)));
    }
    out.push('\n');
}

/// A stream's configuration for people.
pub fn configuration(m: &MetaInf) -> String {
    let text_of = |key: &str| m.get(key).map(short).unwrap_or_default();
    let limit = |n: i64, f: fn(u64) -> String| {
        u64::try_from(n)
            .ok()
            .filter(|n| *n > 0)
            .map_or("unlimited".to_owned(), f)
    };
    let age = match m.max_age() {
        0 => "unlimited".to_owned(),
        ns => duration(ns),
    };
    let rows = [
        ("Created", m.created.clone().unwrap_or_default()),
        ("Description", text_of("description")),
        ("Subjects", m.subjects().join(", ")),
        ("Mirror", text_of("mirror")),
        ("Sources", text_of("sources")),
        ("Storage", m.storage().to_owned()),
        ("Replicas", m.num_replicas().to_string()),
        ("Retention", m.retention().to_owned()),
        ("Discard", m.discard().to_owned()),
        ("Compression", m.compression().unwrap_or("none").to_owned()),
        ("Maximum Messages", limit(m.max_msgs(), render::count)),
        (
            "Maximum Per Subject",
            limit(m.max_msgs_per_subject(), render::count),
        ),
        ("Maximum Bytes", limit(m.max_bytes(), render::bytes)),
        ("Maximum Age", age),
        ("Metadata", text_of("metadata")),
    ];
    let mut out = String::new();
    fields(&mut out, "Configuration:", &rows);
    out
}

/// A duration in a configuration, for people.
pub fn duration(ns: i64) -> String {
    format!("{:.0?}", std::time::Duration::from_nanos(ns.unsigned_abs()))
}

fn human(style: render::Style, d: &Described, options: &Options, threads: &Threads) -> String {
    let s = &d.stream;
    let mut out = String::new();
    let account = if s.account.is_empty() {
        String::new()
    } else {
        format!(" in account {}", s.account)
    };
    out.push_str(&format!(
        "Information for Stream {}{account}\n\n",
        render::safe(&s.name)
    ));
    match &s.meta {
        Some(m) => out.push_str(&configuration(m)),
        None => out.push_str("Configuration: unknown\n\n"),
    }
    let st = &d.state;
    let at = |seq: u64, ts: i64| {
        if ts == 0 {
            render::count(seq)
        } else {
            format!("{} @ {}", render::count(seq), render::time(ts))
        }
    };
    let rows = [
        ("Messages", render::count(st.msgs)),
        ("Bytes", render::bytes(st.bytes)),
        ("First Sequence", at(st.first_seq, st.first_ts)),
        ("Last Sequence", at(st.last_seq, st.last_ts)),
        ("Deleted Messages", render::count(st.num_deleted())),
        (
            "Subjects",
            st.num_subjects.map(render::count).unwrap_or_default(),
        ),
        ("Active Consumers", s.consumers.len().to_string()),
    ];
    fields(&mut out, "State:", &rows);
    let storage = storage_json(s, threads);
    let get = |k: &str| storage.get(k).map(short).unwrap_or_default();
    let rows = [
        ("Path", text(&s.path)),
        ("Blocks", get("blocks")),
        (
            "Files",
            storage
                .get("files_bytes")
                .and_then(Value::as_u64)
                .map(render::bytes)
                .unwrap_or_default(),
        ),
        ("Cipher", get("cipher")),
        ("Written By", get("written_by")),
        (
            "State From",
            match st.origin {
                crate::state::Origin::Index => "index.db".into(),
                crate::state::Origin::Scan => "a scan of the blocks".into(),
                crate::state::Origin::Archive | crate::state::Origin::Claimed => {
                    "the archive".into()
                }
            },
        ),
    ];
    fields(&mut out, "Storage:", &rows);
    if !s.consumers.is_empty() {
        let rows = s.consumers.iter().zip(&d.pending).map(|(c, pending)| {
            let at = position(c, st);
            vec![
                c.name.clone(),
                at.delivered.stream.to_string(),
                at.ack_floor.stream.to_string(),
                c.state.as_ref().map_or(0, |s| s.pending.len()).to_string(),
                c.state
                    .as_ref()
                    .map_or(0, |s| s.redelivered.len())
                    .to_string(),
                render::count(*pending),
                c.meta
                    .as_ref()
                    .map(|m| m.filters().join(", "))
                    .unwrap_or_default(),
            ]
        });
        out.push_str("Consumers:\n\n");
        let header = [
            "Consumer",
            ">Delivered",
            ">Ack Floor",
            ">Ack Pending",
            ">Redelivered",
            ">Unprocessed",
            "Filter",
        ];
        out.push_str(&render::table(style, &header, rows));
        out.push_str("\n\n");
    }
    if options.deleted {
        let runs = st.deleted();
        out.push_str(&format!(
            "Deleted: {}\n\n",
            crate::state::scan::ranges_text(&runs)
        ));
    }
    if let (true, Some(subjects)) = (options.subjects, &st.subjects) {
        let mut rows: Vec<_> = subjects.iter().filter(|(_, n)| *n > 0).collect();
        rows.sort_unstable();
        let rows = rows
            .into_iter()
            .map(|(s, n)| vec![String::from_utf8_lossy(s).into_owned(), render::count(n)]);
        out.push_str(&render::table(style, &["Subject", ">Messages"], rows));
        out.push_str("\n\n");
    }
    out
}

/// A value in one piece of text.
pub fn short(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
