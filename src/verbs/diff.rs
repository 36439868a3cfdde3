//! `diff`: what two sources hold, compared message by message, and their streams' configuration,
//! state and consumers.
//!
//! What differs by the form alone is no difference: how messages lie in blocks, ciphers,
//! compression, indexes; what one form cannot tell (a NATSARC1 archive has no configuration and no
//! times of creation, memory consumers leave no files); what an API adds (defaults, the server's
//! version).
//!
//! Both streams are read at once, in order, as rows of digests, and merged; neither is ever held.

use super::{Context, Exit, Failure, Opened, exit_for, render, warn_of};
use crate::finding::Finding;
use crate::format::hash::HashKey;
use crate::format::meta::MetaInf;
use crate::pipeline::Threads;
use crate::source::StreamSource;
use crate::state::visit::{Message, Pass, Select};
use crate::state::{self, Depth, StreamState};
use crate::stream::{Consumer, Stream, Want};
use crate::time::rfc3339;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Runs of differing messages that are held to name their subjects, and how many are named.
const RUNS: usize = 4096;
const NAMED: usize = 1000;
/// Sequences that are listed of a set that differs.
const LISTED: usize = 16;
/// Times of creation that replicas of one stream or consumer note lie less than this apart.
const REPLICAS_APART: u64 = 1_000_000_000;

/// How to compare.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {}

/// What kind of thing differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A stream is on one side only.
    Stream,
    /// The stream's configuration.
    Config,
    /// The stream's state.
    State,
    /// A consumer.
    Consumer,
    /// Messages.
    Message,
}

/// One difference. For messages a run of them: those from `seq` to `last_seq` that one or both
/// sides have; of a single one `a` and `b` hold the parts that differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Account, empty where neither side tells.
    pub account: String,
    /// Stream.
    pub stream: String,
    /// Consumer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// What kind of thing differs.
    pub what: What,
    /// First sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// Last sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<u64>,
    /// How many messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// What exactly: a field (of messages all parts that differ: `subject,time,headers,payload`), or
    /// `only in a`, `only in b`.
    pub key: String,
    /// In A.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub a: Value,
    /// In B.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub b: Value,
}

const ONLY_A: &str = "only in a";
const ONLY_B: &str = "only in b";

/// Compares two sources.
pub fn run(ctx: &mut Context<'_>, a: &Path, b: &Path, _: &Options) -> Result<Exit, Failure> {
    let (a, b) = (ctx.open(a)?, ctx.open(b)?);
    if ctx.require_match(&a).is_err() {
        ctx.require_match(&b)?;
    }
    let mut findings = Vec::new();
    for opened in [&a, &b] {
        let own = opened.findings(&ctx.selector).cloned();
        findings.extend(placed(opened, own));
    }
    let selector = ctx.selector.clone();
    let pairs = pair(
        a.streams(&selector).collect(),
        b.streams(&selector).collect(),
    );
    let mut report = Report::default();
    for (left, right) in pairs {
        match (left, right) {
            (Some(l), Some(r)) => {
                compare(ctx, (&a, l), (&b, r), &mut report, &mut findings)?;
            }
            (Some(s), None) | (None, Some(s)) => {
                let key = if left.is_some() { ONLY_A } else { ONLY_B };
                report.names = (s.account.clone(), s.name.clone());
                report.add(ctx, What::Stream, None, key, Value::Null, Value::Null)?;
            }
            (None, None) => {}
        }
    }
    if !ctx.json {
        report.summary(ctx, &a, &b)?;
    }
    ctx.out.flush()?;
    warn_of(ctx.monitor, &findings);
    let mut exit = exit_for(&findings);
    if exit == Exit::Clean && report.differences > 0 {
        exit = Exit::Found;
    }
    let exit = ctx.close(&a, exit);
    Ok(if exit == Exit::InUse {
        exit
    } else {
        ctx.close(&b, exit)
    })
}

type Pair<'a> = (Option<&'a StreamSource>, Option<&'a StreamSource>);

/// Which stream of A belongs to which of B: by account and name; by name where a side does not tell
/// the account; and the only one to the only one.
fn pair<'a>(a: Vec<&'a StreamSource>, b: Vec<&'a StreamSource>) -> Vec<Pair<'a>> {
    if let ([l], [r]) = (&a[..], &b[..]) {
        return vec![(Some(l), Some(r))];
    }
    let mut free: Vec<Option<&StreamSource>> = b.into_iter().map(Some).collect();
    let mut matched: Vec<Pair<'a>> = a.into_iter().map(|s| (Some(s), None)).collect();
    // The exact matches first: nobody else may take them.
    for exact in [true, false] {
        for (l, r) in &mut matched {
            let (Some(l), None) = (&*l, &*r) else {
                continue;
            };
            let fits = |s: &StreamSource| {
                let account = if exact {
                    s.account == l.account
                } else {
                    s.account.is_empty() || l.account.is_empty()
                };
                account && s.name == l.name
            };
            let mut fitting = free.iter_mut().filter(|s| s.is_some_and(fits));
            // Two candidates are none.
            if let (Some(slot), None) = (fitting.next(), fitting.next()) {
                *r = slot.take();
            }
        }
    }
    matched.extend(free.into_iter().flatten().map(|s| (None, Some(s))));
    matched
}

/// What has been found so far, written as it is found.
#[derive(Default)]
struct Report {
    names: (String, String),
    differences: u64,
    streams: u64,
    locked: u64,
    messages: u64,
    differing_messages: u64,
}

impl Report {
    fn add(
        &mut self,
        ctx: &mut Context<'_>,
        what: What,
        consumer: Option<&str>,
        key: impl Into<String>,
        a: Value,
        b: Value,
    ) -> io::Result<()> {
        let d = Difference {
            account: self.names.0.clone(),
            stream: self.names.1.clone(),
            consumer: consumer.map(str::to_owned),
            what,
            seq: None,
            last_seq: None,
            count: None,
            key: key.into(),
            a,
            b,
        };
        self.write(ctx, &d)
    }

    fn write(&mut self, ctx: &mut Context<'_>, d: &Difference) -> io::Result<()> {
        self.differences += 1;
        if ctx.json {
            serde_json::to_writer(&mut *ctx.out, d)?;
            ctx.out.write_all(b"\n")
        } else {
            writeln!(ctx.out, "{}", human(d))
        }
    }

    fn summary(&self, ctx: &mut Context<'_>, a: &Opened, b: &Opened) -> io::Result<()> {
        let compared = format!(
            "{} and {} compared",
            render::number_of(self.streams, "stream"),
            render::number_of(self.messages, "message")
        );
        let compared = match self.locked {
            0 => compared,
            n => format!(
                "{compared}, {} not for want of a key",
                render::number_of(n, "stream")
            ),
        };
        if self.differences == 0 {
            return writeln!(ctx.out, "no differences: {compared}");
        }
        writeln!(
            ctx.out,
            "\n{}, {} concerned; {compared}\nA: {}\nB: {}",
            render::number_of(self.differences, "difference"),
            render::number_of(self.differing_messages, "message"),
            render::safe(&a.source.path.to_string_lossy()),
            render::safe(&b.source.path.to_string_lossy()),
        )
    }
}

/// A difference in one line.
fn human(d: &Difference) -> String {
    let mut out = String::new();
    if !d.account.is_empty() {
        out.push_str(&d.account);
        out.push('/');
    }
    out.push_str(&d.stream);
    if let Some(c) = &d.consumer {
        out.push_str(" > ");
        out.push_str(c);
    }
    out.push_str(": ");
    match (d.what, d.seq, d.last_seq, d.count) {
        (What::Message, Some(seq), Some(last), Some(n)) if n > 1 => {
            out.push_str(&format!("messages {seq}-{last} ({}): ", render::count(n)));
        }
        (What::Message, Some(seq), ..) => out.push_str(&format!("message {seq}: ")),
        (What::Config, ..) => out.push_str("config "),
        (What::State, ..) => out.push_str("state "),
        (What::Stream | What::Consumer | What::Message, ..) => {}
    }
    let start = out.len();
    match d.key.as_str() {
        ONLY_A => out.push_str("only in A"),
        ONLY_B => out.push_str("only in B"),
        key => out.push_str(&key.replace(',', ", ")),
    }
    let side = |v: &Value| match v {
        Value::Null => "(none)".to_owned(),
        Value::String(s) => s.clone(),
        v => v.to_string(),
    };
    match (&d.a, &d.b) {
        (Value::Null, Value::Null) if d.what == What::Message && !d.key.starts_with("only") => {
            out.push_str(if d.key.contains(',') {
                " differ"
            } else {
                " differs"
            });
        }
        (Value::Null, Value::Null) => {}
        (Value::Object(a), Value::Object(b)) if d.what == What::Message => {
            let each = a.iter().map(|(k, v)| {
                let values = format!("{} | {}", side(v), b.get(k).map(side).unwrap_or_default());
                match k.as_str() {
                    "hdrs_bytes" => format!("headers ({values} bytes)"),
                    "data_bytes" => format!("payload ({values} bytes)"),
                    k => format!("{k} ({values})"),
                }
            });
            let verb = if a.len() > 1 { "differ" } else { "differs" };
            out.truncate(start);
            out.push_str(&format!("{} {verb}", each.collect::<Vec<_>>().join(", ")));
        }
        (a, b) => out.push_str(&format!(": {} | {}", side(a), side(b))),
    }
    render::safe(&out)
}

/// One side of a comparison.
struct Side<'a> {
    opened: &'a Opened,
    stream: Stream,
    state: StreamState,
}

/// Findings with the source that they are of in their place.
fn placed(opened: &Opened, findings: impl IntoIterator<Item = Finding>) -> Vec<Finding> {
    let source = &opened.source;
    let of = |mut f: Finding| {
        f.file = f.file.map(|file| source.full(&file));
        f
    };
    findings.into_iter().map(of).collect()
}

fn open<'a>(
    ctx: &Context<'_>,
    (opened, source): (&'a Opened, &StreamSource),
    findings: &mut Vec<Finding>,
) -> Option<Side<'a>> {
    let want = Want::CONSUMERS;
    let mut stream = Stream::open(source, &ctx.keys, want);
    findings.extend(placed(opened, stream.findings.drain(..)));
    if stream.locked {
        return None;
    }
    ctx.monitor
        .begin(&format!("{}: state", stream.name), stream.block_bytes());
    let progress = |n: u64| ctx.monitor.advance(n);
    let survey = state::survey(&stream, &ctx.threads, Depth::default(), &progress);
    ctx.monitor.end();
    findings.extend(placed(opened, survey.findings));
    Some(Side {
        opened,
        stream,
        state: survey.state,
    })
}

fn replicated(a: &Side<'_>, b: &Side<'_>) -> bool {
    [a, b]
        .iter()
        .any(|s| s.stream.meta.as_ref().is_some_and(|m| m.num_replicas() > 1))
}

fn compare(
    ctx: &mut Context<'_>,
    a: (&Opened, &StreamSource),
    b: (&Opened, &StreamSource),
    report: &mut Report,
    findings: &mut Vec<Finding>,
) -> Result<(), Failure> {
    let account = if a.1.account.is_empty() {
        &b.1.account
    } else {
        &a.1.account
    };
    let (a, b) = (open(ctx, a, findings), open(ctx, b, findings));
    // A key is missing, which is said: nothing can be compared.
    let (Some(a), Some(b)) = (a, b) else {
        report.locked += 1;
        return Ok(());
    };
    report.streams += 1;
    let name = if a.stream.name.is_empty() {
        &b.stream.name
    } else {
        &a.stream.name
    };
    report.names = (account.clone(), name.clone());
    if let (Some(l), Some(r)) = (&a.stream.meta, &b.stream.meta) {
        for (key, l, r) in config_differences(l, r, replicated(&a, &b)) {
            report.add(ctx, What::Config, None, key, l, r)?;
        }
    }
    for (key, l, r) in state_differences(&a.state, &b.state) {
        report.add(ctx, What::State, None, key, l, r)?;
    }
    consumers(ctx, &a, &b, report)?;
    messages(ctx, &a, &b, report, findings)
}

/// A value that is as good as none.
fn is_nothing(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty() || s == crate::time::ZERO,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.values().all(is_nothing),
    }
}

/// A configuration with all that says no more than its absence left out.
fn plain(config: &Map<String, Value>, top: bool) -> BTreeMap<String, Value> {
    let default = |key: &str, v: &Value| match key {
        "retention" => v == "limits",
        "discard" => v == "old",
        "storage" => v == "file",
        "compression" => v == "none",
        "ack_policy" => v == "none",
        "deliver_policy" => v == "all" || v == "undefined",
        "replay_policy" => v == "instant",
        "priority_policy" => v == "none",
        "persist_mode" => v == "default",
        "num_replicas" => *v == json!(1),
        "max_consumers"
        | "max_msgs"
        | "max_bytes"
        | "max_msg_size"
        | "max_msgs_per_subject"
        | "max_deliver" => v.as_i64().is_some_and(|n| n <= 0),
        _ => false,
    };
    let mut out = BTreeMap::new();
    for (key, v) in config {
        let key = key.to_ascii_lowercase();
        if top && default(&key, v) {
            continue;
        }
        let v = match v {
            Value::Object(o) if top && key == "metadata" => {
                // The server that answers puts these in; they are never stored.
                let own = |k: &str| k == "_nats.ver" || k == "_nats.level";
                let kept = o.iter().filter(|(k, _)| !own(k));
                Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect())
            }
            v => slim(v),
        };
        if !is_nothing(&v) {
            out.insert(key, v);
        }
    }
    out
}

/// A value without the empty fields of objects in it. Settings are not nested deeply: an object in a
/// list in an object is as far as it goes.
fn slim(v: &Value) -> Value {
    fn at(v: &Value, depth: u8) -> Value {
        match v {
            Value::Object(o) if depth > 0 => {
                let kept = o.iter().filter(|(_, v)| !is_nothing(v));
                let mut kept: Vec<_> = kept.map(|(k, v)| (k.clone(), at(v, depth - 1))).collect();
                kept.sort_by(|a, b| a.0.cmp(&b.0));
                Value::Object(kept.into_iter().collect())
            }
            Value::Array(a) if depth > 0 => a.iter().map(|v| at(v, depth - 1)).collect(),
            v => v.clone(),
        }
    }
    at(v, 8)
}

/// The keys of two configurations that differ, with both values.
fn config_differences(a: &MetaInf, b: &MetaInf, replicated: bool) -> Vec<(String, Value, Value)> {
    let (mut l, mut r) = (plain(&a.config, true), plain(&b.config, true));
    let mut out = Vec::new();
    let keys: BTreeSet<String> = l.keys().chain(r.keys()).cloned().collect();
    for key in keys {
        let (l, r) = (l.remove(&key), r.remove(&key));
        if l != r {
            // What is left out as the default is shown all the same.
            let shown = |v: Option<Value>, m: &MetaInf| {
                v.or_else(|| m.get(&key).cloned()).unwrap_or_default()
            };
            let (l, r) = (shown(l, a), shown(r, b));
            out.push((key, l, r));
        }
    }
    // Only where both sides tell. Replicas each note the time of their own making (before 2.12).
    let slack = if replicated { REPLICAS_APART } else { 0 };
    if let (Some(l), Some(r)) = (a.created_ns, b.created_ns)
        && l.abs_diff(r) > slack
    {
        out.push(("created".into(), rfc3339(l).into(), rfc3339(r).into()));
    }
    out
}

fn state_differences(a: &StreamState, b: &StreamState) -> Vec<(&'static str, Value, Value)> {
    let mut out = Vec::new();
    let mut number = |key, l: u64, r: u64| {
        if l != r {
            out.push((key, l.into(), r.into()));
        }
    };
    number("messages", a.msgs, b.msgs);
    number("bytes", a.bytes, b.bytes);
    // A stream that was never written to begins at 0 or at 1.
    let first = |s: &StreamState| {
        if s.msgs == 0 {
            s.last_seq.saturating_add(1)
        } else {
            s.first_seq
        }
    };
    number("first_seq", first(a), first(b));
    number("last_seq", a.last_seq, b.last_seq);
    // The time of a last message that is gone is not kept by every form.
    let told = |s: &StreamState| {
        let held = s.blocks.iter().rev().find(|b| b.msgs > 0);
        s.last_ts != 0 && held.is_some_and(|b| b.last == s.last_seq && b.is_live(b.last))
    };
    if a.last_ts != b.last_ts && told(a) && told(b) {
        out.push((
            "last_ts",
            rfc3339(a.last_ts).into(),
            rfc3339(b.last_ts).into(),
        ));
    }
    out
}

fn consumers(
    ctx: &mut Context<'_>,
    a: &Side<'_>,
    b: &Side<'_>,
    report: &mut Report,
) -> Result<(), Failure> {
    let by_name = |s: &Side<'_>| -> BTreeMap<String, Consumer> {
        s.stream
            .consumers
            .iter()
            .filter(|c| ctx.selector.consumer(&c.name))
            .map(|c| (c.name.clone(), c.clone()))
            .collect()
    };
    let (mut left, mut right) = (by_name(a), by_name(b));
    let names: BTreeSet<String> = left.keys().chain(right.keys()).cloned().collect();
    for name in names {
        match (left.remove(&name), right.remove(&name)) {
            (Some(l), Some(r)) => {
                let states = (&a.state, &b.state);
                for (key, l, r) in consumer_differences(&l, &r, states, replicated(a, b)) {
                    report.add(ctx, What::Consumer, Some(&name), key, l, r)?;
                }
            }
            (l, r) => {
                let (key, it) = if l.is_some() {
                    (ONLY_A, l)
                } else {
                    (ONLY_B, r)
                };
                // A store has no files for consumers in memory; an archive has none that a mirror
                // or source made for itself.
                let passing = it
                    .and_then(|c| c.meta)
                    .is_some_and(|m| m.mem_storage() || m.direct());
                if !passing {
                    report.add(
                        ctx,
                        What::Consumer,
                        Some(&name),
                        key,
                        Value::Null,
                        Value::Null,
                    )?;
                }
            }
        }
    }
    Ok(())
}

fn consumer_differences(
    a: &Consumer,
    b: &Consumer,
    states: (&StreamState, &StreamState),
    replicated: bool,
) -> Vec<(String, Value, Value)> {
    let mut out = Vec::new();
    if let (Some(l), Some(r)) = (&a.meta, &b.meta) {
        out.extend(
            config_differences(l, r, replicated)
                .into_iter()
                .map(|(key, l, r)| {
                    (
                        if key == "created" {
                            key
                        } else {
                            format!("config.{key}")
                        },
                        l,
                        r,
                    )
                }),
        );
    }
    if a.state_damaged || b.state_damaged {
        return out;
    }
    let unused = |c: &Consumer| c.state.as_ref().is_none_or(|s| s.delivered.consumer == 0);
    if !(unused(a) && unused(b)) {
        let (l, r) = (
            state::consumers::position(a, states.0),
            state::consumers::position(b, states.1),
        );
        for (key, l, r) in [
            ("delivered", l.delivered, r.delivered),
            ("ack_floor", l.ack_floor, r.ack_floor),
        ] {
            if l != r {
                let value = |p: crate::format::o_dat::SeqPair| json!({"consumer_seq": p.consumer, "stream_seq": p.stream});
                out.push((key.into(), value(l), value(r)));
            }
        }
    }
    let pending = |c: &Consumer| -> BTreeMap<u64, u64> {
        let pending = c.state.as_ref().map(|s| &s.pending);
        pending
            .into_iter()
            .flatten()
            .map(|(seq, p)| (*seq, p.consumer_seq))
            .collect()
    };
    // Sequence 0: the oldest form does not tell the consumer's.
    let same = |l: u64, r: u64| l == r || l == 0 || r == 0;
    out.extend(map_difference("pending", &pending(a), &pending(b), same));
    let redelivered = |c: &Consumer| {
        c.state
            .as_ref()
            .map(|s| s.redelivered.clone())
            .unwrap_or_default()
    };
    out.extend(map_difference(
        "redelivered",
        &redelivered(a),
        &redelivered(b),
        |l, r| l == r,
    ));
    out
}

/// How two sets of sequences differ: their sizes, and the first that the other side has not (so).
fn map_difference(
    key: &str,
    a: &BTreeMap<u64, u64>,
    b: &BTreeMap<u64, u64>,
    same: impl Fn(u64, u64) -> bool,
) -> Option<(String, Value, Value)> {
    let own = |a: &BTreeMap<u64, u64>, b: &BTreeMap<u64, u64>| -> Vec<u64> {
        let differs = a
            .iter()
            .filter(|(seq, v)| b.get(seq).is_none_or(|w| !same(**v, *w)));
        differs.map(|(seq, _)| *seq).take(LISTED).collect()
    };
    let (l, r) = (own(a, b), own(b, a));
    let value = |map: &BTreeMap<u64, u64>, own| json!({"count": map.len(), "differing": own});
    (!l.is_empty() || !r.is_empty()).then(|| (key.to_owned(), value(a, l), value(b, r)))
}

/// A message as it is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Row {
    seq: u64,
    ts: i64,
    subject: u64,
    headers: u64,
    payload: u64,
    headers_len: u32,
    payload_len: u32,
}

const SUBJECT: u8 = 1;
const TIME: u8 = 2;
const HEADERS: u8 = 4;
const PAYLOAD: u8 = 8;

impl Row {
    fn new(key: &HashKey, m: &Message<'_>) -> Self {
        let sum = |bytes: &[u8]| {
            if bytes.is_empty() {
                0
            } else {
                u64::from_le_bytes(key.sum(bytes))
            }
        };
        Self {
            seq: m.seq,
            ts: m.ts,
            subject: sum(m.subject),
            headers: sum(m.headers),
            payload: sum(m.payload),
            headers_len: m.headers.len() as u32,
            payload_len: m.payload.len() as u32,
        }
    }

    /// In which parts two messages differ.
    fn parts(&self, other: &Self) -> u8 {
        let mut out = 0;
        if self.subject != other.subject {
            out |= SUBJECT;
        }
        if self.ts != other.ts {
            out |= TIME;
        }
        if (self.headers, self.headers_len) != (other.headers, other.headers_len) {
            out |= HEADERS;
        }
        if (self.payload, self.payload_len) != (other.payload, other.payload_len) {
            out |= PAYLOAD;
        }
        out
    }
}

/// How messages of a run differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    OnlyA,
    OnlyB,
    Parts(u8),
}

/// Messages next to each other that differ in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    kind: Kind,
    first: u64,
    last: u64,
    count: u64,
    /// The first message, on both sides.
    rows: (Row, Row),
}

/// Merges two ascending series of rows. Returns how many sequences there are in all.
fn merge(
    a: impl Iterator<Item = Row>,
    b: impl Iterator<Item = Row>,
    mut emit: impl FnMut(Run) -> ControlFlow<()>,
) -> u64 {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    let mut open: Option<Run> = None;
    let mut total = 0u64;
    loop {
        let (kind, rows) = match (a.peek().copied(), b.peek().copied()) {
            (None, None) => break,
            (Some(l), Some(r)) if l.seq == r.seq => {
                a.next();
                b.next();
                (Kind::Parts(l.parts(&r)), (l, r))
            }
            (Some(l), r) if r.is_none_or(|r| l.seq < r.seq) => {
                a.next();
                (Kind::OnlyA, (l, Row::default()))
            }
            (_, Some(r)) => {
                b.next();
                (Kind::OnlyB, (Row::default(), r))
            }
            (Some(_), None) => break,
        };
        total += 1;
        let seq = rows.0.seq.max(rows.1.seq);
        if let Some(run) = &mut open
            && run.kind == kind
        {
            run.last = seq;
            run.count += 1;
            continue;
        }
        let next = (kind != Kind::Parts(0)).then_some(Run {
            kind,
            first: seq,
            last: seq,
            count: 1,
            rows,
        });
        if let Some(done) = std::mem::replace(&mut open, next)
            && emit(done).is_break()
        {
            return total;
        }
    }
    if let Some(done) = open {
        let _ = emit(done);
    }
    total
}

/// Reads one side's rows and sends them, until nobody takes them.
fn rows(
    side: &Side<'_>,
    threads: &Threads,
    key: &HashKey,
    progress: state::Progress<'_>,
    to: &SyncSender<Vec<Row>>,
) -> Vec<Finding> {
    Pass::new(&side.stream, &side.state, threads, progress).run(
        Vec::new,
        |rows, m| {
            rows.push(Row::new(key, m));
            ControlFlow::Continue(())
        },
        |rows| match to.send(rows) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        },
    )
}

fn messages(
    ctx: &mut Context<'_>,
    a: &Side<'_>,
    b: &Side<'_>,
    report: &mut Report,
    findings: &mut Vec<Finding>,
) -> Result<(), Failure> {
    let monitor = ctx.monitor;
    let progress = |n: u64| monitor.advance(n);
    // Each side has workers of its own: those of one side may have to wait for the other's.
    let half = || Threads::new((ctx.threads.count() / 2).max(1)).map_err(io::Error::other);
    let pools = (half()?, half()?);
    let random = RandomState::new();
    let key = HashKey::new(
        [random.hash_one(0u8), random.hash_one(1u8)]
            .map(u64::to_le_bytes)
            .concat(),
    );
    let bytes = |s: &Side<'_>| s.stream.block_bytes();
    monitor.begin(
        &format!("{}: messages", a.stream.name),
        bytes(a).saturating_add(bytes(b)),
    );
    let ((to_a, from_a), (to_b, from_b)) = (sync_channel(2), sync_channel(2));
    let mut failed = None;
    let mut held: Vec<Run> = Vec::new();
    let (total, damage) = std::thread::scope(|scope| {
        let reader = |side, pool, to: SyncSender<Vec<Row>>| {
            let (key, progress) = (&key, &progress);
            scope.spawn(move || rows(side, pool, key, progress, &to))
        };
        let readers = [reader(a, &pools.0, to_a), reader(b, &pools.1, to_b)];
        let flat = |from: Receiver<Vec<Row>>| from.into_iter().flatten();
        let total = merge(flat(from_a), flat(from_b), |run| {
            held.push(run);
            if held.len() >= RUNS
                && let Err(e) = write_runs(ctx, (a, b), &mut held, report)
            {
                failed = Some(e);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        let mut damage = Vec::new();
        for (r, side) in readers.into_iter().zip([a, b]) {
            match r.join() {
                Ok(found) => damage.extend(placed(side.opened, found)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        (total, damage)
    });
    monitor.end();
    report.messages += total;
    findings.extend(damage);
    match failed {
        Some(e) => Err(e.into()),
        None => Ok(write_runs(ctx, (a, b), &mut held, report)?),
    }
}

/// The subjects of these messages.
fn subjects(ctx: &Context<'_>, side: &Side<'_>, seqs: &[u64]) -> BTreeMap<u64, String> {
    let mut out = BTreeMap::new();
    if seqs.is_empty() {
        return out;
    }
    let mut pass = Pass::new(&side.stream, &side.state, &ctx.threads, &|_| ());
    pass.select = Select {
        only: Some(seqs),
        ..Select::default()
    };
    pass.run(
        Vec::new,
        |list, m| {
            list.push((m.seq, String::from_utf8_lossy(m.subject).into_owned()));
            ControlFlow::Continue(())
        },
        |list: Vec<(u64, String)>| {
            out.extend(list);
            ControlFlow::Continue(())
        },
    );
    out
}

/// Writes runs of differing messages; of single ones with what is on each side.
fn write_runs(
    ctx: &mut Context<'_>,
    sides: (&Side<'_>, &Side<'_>),
    runs: &mut Vec<Run>,
    report: &mut Report,
) -> io::Result<()> {
    let single = |r: &&Run| r.count == 1 && matches!(r.kind, Kind::Parts(p) if p & SUBJECT != 0);
    let seqs: Vec<u64> = runs
        .iter()
        .filter(single)
        .map(|r| r.first)
        .take(NAMED)
        .collect();
    let names = (subjects(ctx, sides.0, &seqs), subjects(ctx, sides.1, &seqs));
    for run in runs.drain(..) {
        report.differing_messages = report.differing_messages.saturating_add(run.count);
        let mut d = Difference {
            account: report.names.0.clone(),
            stream: report.names.1.clone(),
            consumer: None,
            what: What::Message,
            seq: Some(run.first),
            last_seq: Some(run.last),
            count: Some(run.count),
            key: String::new(),
            a: Value::Null,
            b: Value::Null,
        };
        let (l, r) = run.rows;
        let subject = |names: &BTreeMap<u64, String>| {
            let name = names.get(&run.first);
            name.map_or(Value::Null, |s| s.as_str().into())
        };
        match run.kind {
            Kind::OnlyA => d.key = ONLY_A.into(),
            Kind::OnlyB => d.key = ONLY_B.into(),
            Kind::Parts(parts) => {
                let (mut a, mut b, mut keys) = (Map::new(), Map::new(), Vec::new());
                for (part, name, field, left, right) in [
                    (
                        SUBJECT,
                        "subject",
                        "subject",
                        subject(&names.0),
                        subject(&names.1),
                    ),
                    (
                        TIME,
                        "time",
                        "time",
                        rfc3339(l.ts).into(),
                        rfc3339(r.ts).into(),
                    ),
                    (
                        HEADERS,
                        "headers",
                        "hdrs_bytes",
                        l.headers_len.into(),
                        r.headers_len.into(),
                    ),
                    (
                        PAYLOAD,
                        "payload",
                        "data_bytes",
                        l.payload_len.into(),
                        r.payload_len.into(),
                    ),
                ] {
                    if parts & part != 0 {
                        keys.push(name);
                        a.insert(field.into(), left);
                        b.insert(field.into(), right);
                    }
                }
                d.key = keys.join(",");
                // Of a run the values would be the first message's alone.
                if run.count == 1 {
                    (d.a, d.b) = (a.into(), b.into());
                }
            }
        }
        report.write(ctx, &d)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Body, Role};
    use std::sync::Arc;

    fn row(seq: u64, v: u64) -> Row {
        Row {
            seq,
            payload: v,
            ..Row::default()
        }
    }

    fn merged(a: &[(u64, u64)], b: &[(u64, u64)]) -> (u64, Vec<(Kind, u64, u64, u64)>) {
        let mut out = Vec::new();
        let rows = |r: &[(u64, u64)]| {
            r.iter()
                .map(|(s, v)| row(*s, *v))
                .collect::<Vec<_>>()
                .into_iter()
        };
        let total = merge(rows(a), rows(b), |r| {
            out.push((r.kind, r.first, r.last, r.count));
            ControlFlow::Continue(())
        });
        (total, out)
    }

    #[test]
    fn merging_names_runs() {
        assert_eq!(merged(&[], &[]), (0, vec![]));
        assert_eq!(merged(&[(1, 1), (5, 5)], &[(1, 1), (5, 5)]), (2, vec![]));
        assert_eq!(
            merged(&[(1, 0), (3, 0), (4, 0), (7, 0)], &[(3, 0), (5, 0), (6, 0)]),
            (
                6,
                vec![
                    (Kind::OnlyA, 1, 1, 1),
                    (Kind::OnlyA, 4, 4, 1),
                    (Kind::OnlyB, 5, 6, 2),
                    (Kind::OnlyA, 7, 7, 1)
                ]
            )
        );
        assert_eq!(
            merged(
                &[(1, 1), (2, 1), (3, 1), (4, 1)],
                &[(1, 1), (2, 2), (3, 2), (4, 1), (9, 0), (11, 0)]
            ),
            (
                6,
                vec![(Kind::Parts(PAYLOAD), 2, 3, 2), (Kind::OnlyB, 9, 11, 2)]
            )
        );
        // A run only ends where the other side has something.
        assert_eq!(
            merged(&[(1, 0), (100, 0)], &[]),
            (2, vec![(Kind::OnlyA, 1, 100, 2)])
        );
        assert_eq!(
            merged(&[], &[(u64::MAX, 0)]),
            (1, vec![(Kind::OnlyB, u64::MAX, u64::MAX, 1)])
        );
    }

    #[test]
    fn rows_tell_which_part_differs() {
        let key = HashKey::new("k");
        let base = Message {
            seq: 1,
            ts: 5,
            subject: b"a",
            headers: b"h",
            payload: b"p",
            deleted: None,
            raw: &[],
            block: 0,
        };
        let r = |m: Message<'_>| Row::new(&key, &m);
        for (m, want) in [
            (base, 0),
            (
                Message {
                    subject: b"b",
                    ..base
                },
                SUBJECT,
            ),
            (Message { ts: 6, ..base }, TIME),
            (
                Message {
                    headers: b"",
                    ..base
                },
                HEADERS,
            ),
            (
                Message {
                    payload: b"",
                    ..base
                },
                PAYLOAD,
            ),
            // The border between two parts counts.
            (
                Message {
                    subject: b"ah",
                    headers: b"",
                    ..base
                },
                SUBJECT | HEADERS,
            ),
            (
                Message {
                    headers: b"hp",
                    payload: b"",
                    ..base
                },
                HEADERS | PAYLOAD,
            ),
        ] {
            assert_eq!(r(base).parts(&r(m)), want);
        }
    }

    fn meta(config: Value) -> MetaInf {
        MetaInf::new_stream(config.as_object().unwrap().clone(), None)
    }

    #[test]
    fn configurations_differ_only_where_both_tell() {
        let stored = json!({
            "name": "S", "subjects": ["a"], "retention": "limits", "max_consumers": -1, "max_msgs": -1,
            "max_age": 0, "discard": "old", "storage": "file", "num_replicas": 1, "sealed": false,
            "compression": "none", "metadata": {"owner": "me"}, "consumer_limits": {},
            "mirror": {"name": "M", "filter_subject": ""},
        });
        let api = json!({
            "name": "S", "subjects": ["a"], "max_msgs": 0,
            "metadata": {"owner": "me", "_nats.ver": "2.14.9", "_nats.level": "4"},
            "mirror": {"name": "M"},
        });
        assert_eq!(
            config_differences(&meta(stored.clone()), &meta(api), false),
            vec![]
        );
        let mut other = stored.clone();
        other["max_age"] = json!(5);
        other["subjects"] = json!(["a", "b"]);
        other["metadata"]["_nats.req.level"] = json!("1");
        other["num_replicas"] = json!(3);
        let keys: Vec<_> = config_differences(&meta(stored), &meta(other), false)
            .into_iter()
            .map(|d| d.0)
            .collect();
        assert_eq!(keys, ["max_age", "metadata", "num_replicas", "subjects"]);
    }

    #[test]
    fn sets_that_differ_name_the_first() {
        let map = |v: &[(u64, u64)]| v.iter().copied().collect::<BTreeMap<_, _>>();
        let eq = |l, r| l == r;
        assert_eq!(
            map_difference("p", &map(&[(1, 2)]), &map(&[(1, 2)]), eq),
            None
        );
        let (_, a, b) = map_difference("p", &map(&[(1, 2), (3, 3)]), &map(&[(1, 9)]), eq).unwrap();
        assert_eq!(
            (a, b),
            (
                json!({"count": 2, "differing": [1, 3]}),
                json!({"count": 1, "differing": [1]})
            )
        );
    }

    fn source(account: &str, name: &str) -> StreamSource {
        StreamSource {
            account: account.into(),
            name: name.into(),
            role: Role::Stream,
            path: "".into(),
            body: Body::Blocks {
                tree: Arc::new(crate::source::dir::DirTree::new("/", false)),
                dir: "".into(),
                msgs: "".into(),
            },
            backup: None,
            findings: Vec::new(),
            mends: Default::default(),
        }
    }

    fn paired(a: &[(&str, &str)], b: &[(&str, &str)]) -> Vec<String> {
        let make = |v: &[(&str, &str)]| v.iter().map(|(a, n)| source(a, n)).collect::<Vec<_>>();
        let (a, b) = (make(a), make(b));
        let text = |s: Option<&StreamSource>| {
            s.map_or("-".into(), |s| format!("{}/{}", s.account, s.name))
        };
        pair(a.iter().collect(), b.iter().collect())
            .into_iter()
            .map(|(l, r)| format!("{} {}", text(l), text(r)))
            .collect()
    }

    #[test]
    fn streams_find_their_like() {
        assert_eq!(paired(&[("$G", "S")], &[("X", "T")]), ["$G/S X/T"]);
        assert_eq!(
            paired(
                &[("A", "S"), ("B", "S")],
                &[("A", "S"), ("B", "S"), ("B", "T")]
            ),
            ["A/S A/S", "B/S B/S", "- B/T"]
        );
        assert_eq!(
            paired(&[("A", "S"), ("A", "T")], &[("", "T"), ("", "S")]),
            ["A/S /S", "A/T /T"]
        );
        // Which of the two it is cannot be known.
        assert_eq!(
            paired(&[("", "S")], &[("A", "S"), ("B", "S")]),
            ["/S -", "- A/S", "- B/S"]
        );
        assert_eq!(
            paired(&[("A", "S"), ("B", "S")], &[("B", "S")]),
            ["A/S -", "B/S B/S"]
        );
        assert_eq!(paired(&[], &[("A", "S")]), ["- A/S"]);
    }
}
