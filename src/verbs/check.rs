//! `jetsam check`: reads and proves everything, and says what it found.

use super::metrics::Metrics;
use super::restorable::{self, Contents};
use super::salvage::{Beside, How, mend_one};
use super::{Context, Exit, Failure, concerns, exit_for, on_start, render};
use crate::finding::{Code, Finding, Severity};
use crate::format::hash::HashKey;
use crate::format::{self, fss, idx, meta, raft, sched_db, sources_db, thw_db};
use crate::salvage::assignments::Assignments;
use crate::source::{Role, Source, StreamSource};
use crate::state::consumers::position;
use crate::state::{Depth, StreamState, Survey, Totals, survey};
use crate::stream::{INDEX_FILE, Index, Stream, Want};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Seconds of search for each damaged file, to tell whether it can be mended: `salvage` takes more.
const SEARCH_SECONDS: f64 = 0.1;

/// What was checked.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Summary {
    /// Streams.
    pub streams: u64,
    /// Consumers.
    pub consumers: u64,
    /// Blocks, those of raft groups included.
    pub blocks: u64,
    /// Records of all kinds.
    pub records: u64,
    /// Live messages.
    pub messages: u64,
    /// Bytes of files read.
    pub bytes: u64,
    /// Findings that are errors.
    pub errors: u64,
    /// Findings that are warnings.
    pub warnings: u64,
}

/// The outcome of a check.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What was checked.
    pub summary: Summary,
}

/// Runs the verb.
pub fn run(ctx: &mut Context<'_>, sources: &[PathBuf]) -> Result<Exit, Failure> {
    let paths: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
    Metrics::around("check", ctx, &paths, |ctx, metrics| {
        all(ctx, sources, metrics)
    })
}

fn all(ctx: &mut Context<'_>, sources: &[PathBuf], metrics: &mut Metrics) -> Result<Exit, Failure> {
    let started = Instant::now();
    let mut report = Report::default();
    let mut exit = Exit::Clean;
    for path in sources {
        let opened = ctx.open(path)?;
        ctx.require_match(&opened)?;
        let mut one = check(ctx, &opened.source);
        repairable(ctx, &opened.source, &mut one.findings);
        if sources.len() > 1 {
            // `file` is relative to its source; with several sources that alone would be ambiguous.
            for f in &mut one.findings {
                let file = f.file.take().unwrap_or_default();
                f.file = Some(opened.source.full(&file));
            }
        }
        if ctx.close(&opened, Exit::Clean) == Exit::InUse {
            exit = Exit::InUse;
        }
        metrics.count(&one.findings);
        report.findings.append(&mut one.findings);
        let (s, o) = (&mut report.summary, one.summary);
        s.streams += o.streams;
        s.consumers += o.consumers;
        s.blocks += o.blocks;
        s.records += o.records;
        s.messages += o.messages;
        s.bytes += o.bytes;
        (metrics.streams, metrics.bytes) = (s.streams, s.bytes);
    }
    let count = |severity| {
        report
            .findings
            .iter()
            .filter(|f| f.severity == severity)
            .count() as u64
    };
    report.summary.errors = count(Severity::Error);
    report.summary.warnings = count(Severity::Warning);
    if ctx.json {
        let value = json!({ "findings": report.findings, "summary": report.summary });
        serde_json::to_writer_pretty(&mut *ctx.out, &value).map_err(std::io::Error::from)?;
        ctx.out.write_all(b"\n")?;
    } else {
        human(ctx, &report, started)?;
    }
    Ok(if exit == Exit::Clean {
        exit_for(&report.findings)
    } else {
        exit
    })
}

/// Checks the selected streams (and raft groups) of a source.
pub fn check(ctx: &Context<'_>, source: &Source) -> Report {
    let mut report = Report {
        findings: source
            .findings
            .iter()
            .filter(|f| concerns(&ctx.selector, f))
            .cloned()
            .map(on_start::around)
            .collect(),
        ..Report::default()
    };
    let selected = |s: &&StreamSource| ctx.selector.stream(&s.account, &s.name);
    for s in source.streams.iter().filter(selected) {
        report.summary.streams += 1;
        stream(ctx, s, &mut report);
    }
    for s in source.groups.iter().filter(selected) {
        stream(ctx, s, &mut report);
    }
    report
}

fn stream(ctx: &Context<'_>, source: &StreamSource, report: &mut Report) {
    let (stream, state, totals, mut all) = examine(ctx, source);
    on_start::tell(&stream, &state, &mut all);
    report.findings.append(&mut all);
    let s = &mut report.summary;
    s.consumers += stream.consumers.len() as u64;
    s.blocks += totals.blocks;
    s.records += totals.records;
    s.bytes += totals.file_bytes;
    if stream.role == Role::Stream {
        s.messages += state.msgs;
    }
}

/// Says of each error in a stream whether `salvage` puts it right: whether it is still there once it has.
fn repairable(ctx: &Context<'_>, whole: &Source, found: &mut [Finding]) {
    let how = How {
        seconds: SEARCH_SECONDS,
        unproven: false,
    };
    let names: Vec<String> = whole.streams.iter().map(|s| s.name.clone()).collect();
    let assigned = Assignments::new();
    let beside = Beside {
        config: None,
        names: &names,
        assigned: &assigned,
    };
    for source in &whole.streams {
        let account = Some(source.account.as_str()).filter(|a| !a.is_empty());
        let mut errors: Vec<&mut Finding> = found
            .iter_mut()
            .filter(|f| f.severity == Severity::Error)
            .filter(|f| f.stream.as_deref() == Some(&*source.name))
            .filter(|f| f.account.as_deref() == account)
            .collect();
        let locked = |f: &&mut Finding| matches!(f.code, Code::KeyMissing | Code::KeyWrong);
        if errors.is_empty() || errors.iter().any(locked) {
            continue;
        }
        let mended = mend_one(ctx, whole, source, &how, beside);
        let (_, _, _, left) = examine(ctx, &mended.source);
        type Place<'f> = (Code, &'f Option<String>, Option<u64>, Option<u64>);
        let left: BTreeSet<Place<'_>> = left
            .iter()
            .map(|l| (l.code, &l.file, l.offset, l.seq))
            .collect();
        for f in &mut errors {
            let is_left = left.contains(&(f.code, &f.file, f.offset, f.seq));
            // What stands in for a lost configuration is not the one that was lost.
            let replaced = mended.report.reconstructed
                && matches!(f.code, Code::MetaMissing | Code::MetaInvalid);
            f.repairable = Some(!replaced && !is_left);
        }
    }
}

/// Reads and proves a stream.
fn examine(
    ctx: &Context<'_>,
    source: &StreamSource,
) -> (Stream, StreamState, Totals, Vec<Finding>) {
    let stream = Stream::open(
        source,
        &ctx.keys,
        Want {
            subjects: true,
            consumers: true,
        },
    );
    let total: u64 = stream.blocks.iter().map(|b| b.len).sum();
    ctx.monitor
        .begin(&format!("Checking {}", stream.name), total);
    let found = survey(
        &stream,
        &ctx.threads,
        Depth {
            subjects: false,
            prove: true,
        },
        &|n| ctx.monitor.advance(n),
    );
    ctx.monitor.end();
    let Survey {
        state,
        findings,
        totals,
    } = found;
    let mut all = stream.findings.clone();
    all.extend(findings);
    let mut extra = Vec::new();
    config(&stream, &mut extra);
    consumers(&stream, &state, &mut extra);
    side_files(&stream, &state, &mut extra);
    index_ahead(&stream, &state, &mut extra);
    if stream.role == Role::RaftGroup {
        raft_files(&stream, &mut extra);
    }
    if stream.in_archive() {
        let contents = Contents {
            state: &state,
            largest: totals.largest,
            damaged: damaged_records(&all, &stream),
        };
        restorable::check(&stream, source.backup.as_ref(), &contents, &mut extra);
    }
    all.extend(
        extra
            .into_iter()
            .map(|f| f.stream(&stream.account, &stream.name)),
    );
    (stream, state, totals, all)
}

/// Whether a record of the stream does not prove itself.
fn damaged_records(findings: &[Finding], stream: &Stream) -> bool {
    let kinds = [Code::RecordHash, Code::RecordStructure, Code::Garbage];
    findings
        .iter()
        .any(|f| kinds.contains(&f.code) && f.stream.as_deref() == Some(&*stream.name))
}

/// The configuration: keys that some servers refuse.
fn config(stream: &Stream, out: &mut Vec<Finding>) {
    let Some((_, dir)) = stream.tree() else {
        return;
    };
    let mut look = |m: &meta::MetaInf, place: String, consumer: Option<&str>| {
        let named = |f: Finding| match consumer {
            Some(c) => f.file(place.clone()).consumer(c),
            None => f.file(place.clone()),
        };
        for key in meta::unknown_keys(m) {
            out.push(named(Finding::new(
                Code::ConfigUnknownKey,
                format!("unknown key {key:?}"),
            )));
        }
        if m.template_owner().is_some() {
            out.push(named(
                Finding::new(
                    Code::ConfigUnknownKey,
                    "template_owner: servers since 2.14 refuse it, 2.12 misses the template",
                )
                .severity(Severity::Note),
            ));
        }
        for value in meta::unknown_values(m) {
            out.push(named(
                Finding::new(Code::ConfigUnsupported, value).severity(Severity::Warning),
            ));
        }
    };
    if let Some(m) = &stream.meta {
        look(m, stream.place(&dir.join("meta.inf")), None);
    }
    for c in &stream.consumers {
        if let Some(m) = &c.meta {
            look(m, stream.place(&c.dir.join("meta.inf")), Some(&c.name));
        }
    }
}

/// Consumers against their stream.
fn consumers(stream: &Stream, state: &StreamState, out: &mut Vec<Finding>) {
    for c in &stream.consumers {
        if c.state.is_none() {
            continue;
        }
        let place = stream.place(&c.dir.join("o.dat"));
        let at = position(c, state);
        let ahead = |what: &str, seq: u64| {
            Finding::new(
                Code::ConsumerAhead,
                format!(
                    "{what} is stream sequence {seq}, the stream ends at {}",
                    state.last_seq
                ),
            )
            .consumer(&c.name)
            .file(place.clone())
            .seq(seq)
        };
        if at.delivered.stream > state.last_seq {
            out.push(ahead("delivered", at.delivered.stream));
        }
        if at.ack_floor.stream > state.last_seq.max(at.delivered.stream) {
            out.push(ahead("ack floor", at.ack_floor.stream));
        }
    }
}

/// `thw.db`, `sched.db`, `sources.db`, `<n>.idx`, `<n>.fss`.
fn side_files(stream: &Stream, state: &StreamState, out: &mut Vec<Finding>) {
    let Some((tree, dir)) = stream.tree() else {
        return;
    };
    let msgs = stream.msgs_dir();
    type Decode = fn(&[u8]) -> Result<usize, format::Fault>;
    let files: [(PathBuf, Decode); 3] = [
        (msgs.join("thw.db"), |b| thw_db::decode(b, 0).map(|d| d.1)),
        (msgs.join("sched.db"), |b| {
            sched_db::decode(b, 0).map(|d| d.1)
        }),
        (dir.join("sources.db"), |b| {
            sources_db::decode(b, 0).map(|d| d.1)
        }),
    ];
    let mut buf = Vec::new();
    for (path, decode) in files {
        if tree.read_into(&path, &mut buf, INDEX_FILE).is_err() {
            continue;
        }
        let place = stream.place(&path);
        match decode(&buf) {
            Ok(used) if used == buf.len() => {}
            Ok(used) => out.push(
                Finding::new(
                    Code::SideFile,
                    format!("{} bytes after the end", buf.len() - used),
                )
                .file(place)
                .offset(used as u64),
            ),
            Err(fault) => out.push(
                Finding::new(Code::SideFile, fault.kind.to_string())
                    .file(place)
                    .offset(fault.offset),
            ),
        }
    }
    for b in &stream.blocks {
        if b.idx {
            let path = msgs.join(format!("{}.idx", b.n));
            // Servers leave an empty one beside an empty block.
            if let Some(raw) = stream.read_idx(b.n)
                && !raw.is_empty()
            {
                let finding = match idx::decode(&raw, 0) {
                    Err(fault) => Some(
                        Finding::new(Code::SideFile, fault.kind.to_string()).offset(fault.offset),
                    ),
                    // Servers write the block first.
                    Ok(idx) if idx.msgs > 0 => {
                        let end = state.block(b.n).map_or(0, |s| s.last);
                        (idx.last_seq > end).then(|| {
                            Finding::new(
                                Code::SideFile,
                                format!(
                                    "knows of messages up to sequence {}, the block ends at {end}",
                                    idx.last_seq
                                ),
                            )
                            .action("messages at the end of the block are gone; look for another copy or a backup")
                        })
                    }
                    Ok(_) => None,
                };
                out.extend(finding.map(|f| f.file(stream.place(&path))));
            }
        }
        if b.fss {
            let path = msgs.join(format!("{}.fss", b.n));
            if tree.read_into(&path, &mut buf, INDEX_FILE).is_ok() {
                let key = HashKey::block(stream.name.as_bytes(), b.n);
                if let Err(fault) =
                    fss::check_hash(&buf, &key).and_then(|_| fss::decode(&buf, 0).map(|_| ()))
                {
                    out.push(
                        Finding::new(Code::SideFile, fault.kind.to_string())
                            .file(stream.place(&path))
                            .offset(fault.offset),
                    );
                }
            }
        }
    }
}

/// An `index.db` that is not of the last moment. Servers write messages to the block before they count
/// them, so it may be behind the blocks and never ahead: then the end of the blocks is gone. Only replicas,
/// raft logs and streams with asynchronous persistence are written in the background.
fn index_ahead(stream: &Stream, state: &StreamState, out: &mut Vec<Finding>) {
    let Index::Rejected {
        why,
        outdated: true,
        prior: Some(prior),
    } = &stream.index
    else {
        return;
    };
    let place = stream.place(&stream.msgs_dir().join("index.db"));
    let end = state.blocks.iter().map(|b| b.last).max().unwrap_or(0);
    let background = stream.role != Role::Stream
        || stream.meta.as_ref().is_some_and(|m| {
            m.num_replicas() > 1 || m.get("persist_mode").is_some_and(|v| v == "async")
        });
    out.push(if prior.last_seq > end && stream.in_archive() {
        // Servers write it when they have read the blocks: messages that came meanwhile are in neither.
        Finding::new(
            Code::BackupMeanwhile,
            format!(
                "index.db knows of messages up to sequence {}, stored after the blocks were read, which end at {end}",
                prior.last_seq
            ),
        )
        .file(place)
    } else if prior.last_seq > end {
        let finding = Finding::new(
            Code::MessagesMissing,
            format!(
                "index.db knows of messages up to sequence {}, the blocks end at {end}",
                prior.last_seq
            ),
        )
        .file(place)
        .seq(end.saturating_add(1));
        if background {
            finding.severity(Severity::Warning)
        } else {
            finding
        }
    } else {
        Finding::new(Code::IndexOutdated, why.as_str()).file(place)
    });
}

/// The files of a raft group beside its log.
fn raft_files(stream: &Stream, out: &mut Vec<Finding>) {
    let Some((tree, dir)) = stream.tree() else {
        return;
    };
    let mut buf = Vec::new();
    let mut check = |path: PathBuf, decode: &dyn Fn(&[u8]) -> Result<(), format::Fault>| {
        if tree.read_into(&path, &mut buf, INDEX_FILE).is_ok()
            && let Err(fault) = decode(&buf)
        {
            out.push(
                Finding::new(Code::Raft, fault.kind.to_string())
                    .file(stream.place(&path))
                    .offset(fault.offset),
            );
        }
    };
    check(dir.join("peers.idx"), &|b| {
        raft::decode_peers(b, 0).map(|_| ())
    });
    check(dir.join("tav.idx"), &|b| {
        raft::decode_vote(b, 0).map(|_| ())
    });
    check(dir.join("commit.idx"), &|b| {
        raft::decode_commit(b, 0, stream.name.as_bytes()).map(|_| ())
    });
    let snapshots = dir.join("snapshots");
    for c in tree.children(&snapshots).unwrap_or_default() {
        check(snapshots.join(&c.name), &|b| {
            raft::decode_snapshot(b, 0, stream.name.as_bytes()).map(|_| ())
        });
    }
}

fn human(ctx: &mut Context<'_>, report: &Report, started: Instant) -> Result<(), Failure> {
    let mut sorted: Vec<&Finding> = report.findings.iter().collect();
    sorted.sort_by_key(|f| std::cmp::Reverse(f.severity));
    for f in sorted {
        let label = render::severity(ctx.style, f.severity);
        writeln!(
            ctx.out,
            "{label}: {} [{}]",
            render::place(f),
            f.code.as_str()
        )?;
        writeln!(ctx.out, "    {}", render::safe(&f.detail))?;
        if let Some(start) = f.on_start.as_ref().filter(|s| s.destroys) {
            writeln!(ctx.out, "    on start: {}", render::safe(&start.text))?;
        }
        if f.repairable == Some(true) {
            writeln!(ctx.out, "    salvage: puts it right")?;
        }
        writeln!(ctx.out, "    → {}", f.action)?;
    }
    let s = &report.summary;
    let verdict = match (s.errors, s.warnings) {
        (0, 0) => render::paint(ctx.style, "sound", render::Color::Green),
        (e, w) => {
            let text = format!(
                "{}, {}",
                render::number_of(e, "error"),
                render::number_of(w, "warning")
            );
            render::paint(
                ctx.style,
                &text,
                if e > 0 {
                    render::Color::Red
                } else {
                    render::Color::Yellow
                },
            )
        }
    };
    writeln!(
        ctx.out,
        "Checked {}, {}, {}, {}, {}, {} in {}: {verdict}",
        render::number_of(s.streams, "stream"),
        render::number_of(s.consumers, "consumer"),
        render::number_of(s.blocks, "block"),
        render::number_of(s.records, "record"),
        render::number_of(s.messages, "message"),
        render::bytes(s.bytes),
        render::took(started.elapsed()),
    )?;
    Ok(())
}
