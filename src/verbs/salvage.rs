//! `jetsam salvage`: everything that can be proven, out of whatever is left of a source, into a new store
//! directory or into archives. `backup --salvage` and `restore --salvage` go the same way.

use super::metrics::Metrics;
use super::refusal::Refusal;
use super::{Context, Exit, Failure, Opened, backup, render, restore};
use crate::finding::Severity;
use crate::format::seqset::SeqSet;
use crate::salvage::assignments::{self, Assignments};
use crate::salvage::{self, Ask, Mended, Report};
use crate::sink::Written;
use crate::sink::archive::Format;
use crate::sink::staged::{parent, write_synced};
use crate::source::{Role, Source, SourceKind, StreamSource, text};
use crate::state::{Depth, survey};
use crate::stream::{Stream, Want};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Lost ranges and corrections that are printed for a stream; the report has all.
const LISTED: usize = 8;

/// How hard to try.
#[derive(Debug, Clone)]
pub struct How {
    /// Seconds of search for each damaged file.
    pub seconds: f64,
    /// Take records that cannot be proven.
    pub unproven: bool,
}

impl Default for How {
    fn default() -> Self {
        Self {
            seconds: salvage::SECONDS,
            unproven: false,
        }
    }
}

/// What to write.
#[derive(Debug, Default)]
pub struct Options {
    /// Archives instead of a store directory.
    pub format: Option<Format>,
    /// How hard to try.
    pub how: How,
    /// Also deleted messages that are still on disk.
    pub deleted: bool,
    /// How the new store is made.
    pub store: restore::Options,
}

/// As [`mend`], for verbs whose result has no place for what was done: it becomes messages.
pub(super) fn mend_and_tell(
    ctx: &Context<'_>,
    opened: &mut Opened,
    how: &How,
    config: Option<&Map<String, Value>>,
) -> Reports {
    let reports = mend(ctx, opened, how, config);
    for ((_, stream), report) in &reports {
        let mut text = String::new();
        corrections(&mut text, report);
        for line in text.lines() {
            ctx.monitor
                .warn(&format!("{}: {}", render::safe(stream), line.trim_start()));
        }
    }
    reports
}

/// What there is beside a stream that helps to mend it.
#[derive(Clone, Copy)]
pub(super) struct Beside<'a> {
    /// A configuration that was given.
    pub config: Option<&'a Map<String, Value>>,
    /// The names of all streams.
    pub names: &'a [String],
    /// What a meta group holds.
    pub assigned: &'a Assignments,
}

/// What salvage did to the streams of a source, by account and name.
pub type Reports = BTreeMap<(String, String), Report>;

/// Puts right what can be put right about the selected streams; `opened` has them mended then.
pub fn mend(
    ctx: &Context<'_>,
    opened: &mut Opened,
    how: &How,
    config: Option<&Map<String, Value>>,
) -> Reports {
    let whole = &opened.source;
    let names: Vec<String> = whole.streams.iter().map(|s| s.name.clone()).collect();
    let assigned = assignments::read(&whole.groups, &ctx.keys, &ctx.threads);
    let beside = Beside {
        config,
        names: &names,
        assigned: &assigned,
    };
    let mut reports = Reports::new();
    let mut mended: Vec<StreamSource> = Vec::with_capacity(names.len());
    for s in &whole.streams {
        if !ctx.selector.stream(&s.account, &s.name) {
            mended.push(s.clone());
            continue;
        }
        let done = mend_one(ctx, whole, s, how, beside);
        let s = done.source;
        reports.insert((s.account.clone(), s.name.clone()), done.report);
        mended.push(s);
    }
    opened.source.streams = mended;
    reports
}

/// As [`mend`], for one stream of `whole`.
pub(super) fn mend_one(
    ctx: &Context<'_>,
    whole: &Source,
    source: &StreamSource,
    how: &How,
    beside: Beside<'_>,
) -> Mended {
    ctx.monitor
        .begin(&format!("Examining {}", source.name), size(source, ctx));
    let progress = |n| ctx.monitor.advance(n);
    let ask = Ask {
        keys: &ctx.keys,
        threads: &ctx.threads,
        seconds: how.seconds,
        unproven: how.unproven,
        config: beside.config,
        assigned: beside.assigned,
        names: beside.names,
        stop: &ctx.stop,
        progress: &progress,
    };
    let path = match whole.kind {
        SourceKind::Archive | SourceKind::File => whole.path.clone(),
        _ => whole.path.join(&source.path),
    };
    let mended = salvage::mend(source, &path, ask);
    ctx.monitor.end();
    mended
}

/// What salvage did to a stream.
pub(super) fn report_of<'r>(reports: &'r Reports, source: &StreamSource) -> Option<&'r Report> {
    reports.get(&(source.account.clone(), source.name.clone()))
}

fn size(source: &StreamSource, ctx: &Context<'_>) -> u64 {
    let want = Want::NOTHING;
    let stream = Stream::open(source, &ctx.keys, want);
    stream.block_bytes()
}

/// How one stream went.
pub struct Outcome<'r> {
    /// Account.
    pub account: String,
    /// Stream.
    pub stream: String,
    /// Where it is now.
    pub path: PathBuf,
    /// What was written and what is lost, or why nothing was.
    pub result: Result<(&'r Written, &'r SeqSet), String>,
}

/// Runs the verb.
pub fn run(
    ctx: &mut Context<'_>,
    path: &Path,
    dest: &Path,
    options: &Options,
) -> Result<Exit, Failure> {
    Metrics::around("salvage", ctx, &[path], |ctx, metrics| {
        all(ctx, path, dest, options, metrics)
    })
}

fn all(
    ctx: &mut Context<'_>,
    path: &Path,
    dest: &Path,
    options: &Options,
    metrics: &mut Metrics,
) -> Result<Exit, Failure> {
    ctx.open.leftovers = options.deleted;
    let mut opened = ctx.open(path)?;
    ctx.require_match(&opened)?;
    backup::require_outside(path, dest)?;
    backup::require_free(dest, 0)?;
    let report_path = report_path(dest);
    if report_path.exists() {
        return Err(Failure::Usage(format!(
            "{}: already there, from an earlier run; nothing was written",
            report_path.display()
        )));
    }
    if options.deleted {
        let groups = std::mem::take(&mut opened.source.groups);
        let (gone, groups) = groups
            .into_iter()
            .partition::<Vec<_>, _>(|g| g.role == Role::Deleted);
        opened.source.groups = groups;
        opened.source.streams.extend(gone);
    }
    let reports = mend(
        ctx,
        &mut opened,
        &options.how,
        options.store.config.as_ref(),
    );
    let selector = ctx.selector.clone();
    let mut rows: Vec<Value> = Vec::new();
    let mut deleted_rows: Vec<Value> = Vec::new();
    let mut text = String::new();
    let none = Report::default();
    let report = |s: &StreamSource| report_of(&reports, s).unwrap_or(&none);
    let exit = match options.format {
        Some(format) => {
            let how = backup::Options {
                format,
                no_consumers: options.store.no_consumers,
                salvage: Some(options.how.clone()),
            };
            let mut tell = |source: &StreamSource, o: &Outcome<'_>| {
                rows.push(row(o, report(source)));
                lines(&mut text, o, report(source));
                incomplete(o, report(source))
            };
            backup::salvaged(ctx, &opened, dest, &how, &reports, metrics, &mut tell)?
        }
        None => {
            let found = if options.deleted {
                find_deleted(ctx, &opened)
            } else {
                Vec::new()
            };
            let mut taken: Vec<(&str, String)> = Vec::new();
            let mut jobs: Vec<restore::Job<'_>> = Vec::new();
            for source in opened.streams(&selector) {
                let was_deleted = source.role == Role::Deleted;
                let there = |(account, name): &(&str, String)| {
                    *account == source.account && *name == source.name
                };
                let rename = (was_deleted && taken.iter().any(there))
                    .then(|| format!("{}_removed", source.name));
                taken.push((
                    &source.account,
                    rename.as_ref().unwrap_or(&source.name).clone(),
                ));
                jobs.push(restore::Job {
                    source,
                    options: restore::Options {
                        rename,
                        ..options.store.clone()
                    },
                    report: report(source),
                    deleted_from: None,
                });
            }
            for d in &found {
                let name = free_name(&taken, &d.source.account, &d.of, d.suffix);
                taken.push((&d.source.account, name.clone()));
                jobs.push(restore::Job {
                    options: restore::Options {
                        config: Some(salvage::deleted::configuration(&name, &d.of)),
                        rename: Some(name),
                        no_consumers: true,
                        ..options.store.clone()
                    },
                    source: &d.source,
                    report: &none,
                    deleted_from: Some(&d.of),
                });
            }
            let mut next = found.iter();
            let mut tell = |job: &restore::Job<'_>, o: &Outcome<'_>| {
                if let Some(of) = job.deleted_from {
                    let why = next.next().map(|d| &d.why);
                    deleted_rows.push(deleted_row(o, of, why));
                    deleted_line(&mut text, o, of, why);
                    return false;
                }
                rows.push(row(o, job.report));
                lines(&mut text, o, job.report);
                incomplete(o, job.report)
            };
            restore::salvaged(ctx, &opened, dest, jobs, metrics, &mut tell)?
        }
    };
    if exit == Exit::Interrupted {
        return Ok(exit);
    }
    let mut whole = json!({ "streams": rows });
    if options.deleted
        && let Some(whole) = whole.as_object_mut()
    {
        whole.insert("deleted".into(), deleted_rows.into());
    }
    let mut bytes = serde_json::to_vec_pretty(&whole).map_err(std::io::Error::from)?;
    bytes.push(b'\n');
    write_synced(&report_path, &bytes)?;
    if ctx.json {
        ctx.out.write_all(&bytes)?;
    } else {
        ctx.out.write_all(text.as_bytes())?;
        writeln!(ctx.out, "The report is {}", report_path.display())?;
    }
    Ok(exit)
}

/// Whether something could not be brought back, or not for sure.
fn incomplete(o: &Outcome<'_>, report: &Report) -> bool {
    let Ok((written, lost)) = &o.result else {
        return true;
    };
    let residue = written
        .findings
        .iter()
        .any(|f| f.severity == Severity::Error);
    !lost.is_empty() || !report.unproven.is_empty() || report.reconstructed || residue
}

/// Deleted messages of a stream.
struct DeletedMessages {
    source: StreamSource,
    why: BTreeMap<&'static str, SeqSet>,
    /// The stream that they were deleted from.
    of: String,
    suffix: &'static str,
}

fn find_deleted(ctx: &Context<'_>, opened: &Opened) -> Vec<DeletedMessages> {
    let mut out = Vec::new();
    let want = Want::NOTHING;
    for source in opened.streams(&ctx.selector) {
        let stream = Stream::open(source, &ctx.keys, want);
        let found = survey(&stream, &ctx.threads, Depth::default(), &|_| {});
        let threads = &ctx.threads;
        if let Some(d) = salvage::deleted::in_blocks(source, &stream, &found.state, threads) {
            out.push(DeletedMessages {
                source: d.source,
                why: d.why,
                of: stream.name.clone(),
                suffix: "deleted",
            });
        }
        if let Some(source) = salvage::deleted::purged(source, &stream) {
            out.push(DeletedMessages {
                source,
                why: BTreeMap::new(),
                of: stream.name.clone(),
                suffix: "purged",
            });
        }
    }
    for group in opened.groups(&ctx.selector) {
        if group.role != Role::Batch {
            continue;
        }
        let stream = Stream::open(group, &ctx.keys, want);
        // `STREAM/batches/BATCH`.
        let above = group.path.parent().and_then(Path::parent);
        let of = above.and_then(Path::file_name).unwrap_or_default();
        if let Some(source) = salvage::deleted::batch(group, &stream) {
            out.push(DeletedMessages {
                source,
                why: BTreeMap::new(),
                of: of.to_string_lossy().into_owned(),
                suffix: "batch",
            });
        }
    }
    out
}

/// `NAME_deleted`, or with a number behind it where another stream has that name.
fn free_name(taken: &[(&str, String)], account: &str, of: &str, suffix: &str) -> String {
    let is_free = |name: &String| {
        !taken
            .iter()
            .any(|(a, other)| *a == account && other == name)
    };
    let plain = format!("{of}_{suffix}");
    if is_free(&plain) {
        return plain;
    }
    (2u32..)
        .map(|n| format!("{plain}_{n}"))
        .find(is_free)
        .unwrap_or(plain)
}

fn deleted_row(o: &Outcome<'_>, of: &str, why: Option<&BTreeMap<&'static str, SeqSet>>) -> Value {
    let ranges = |set: &SeqSet| set.ranges().map(|(a, b)| json!([a, b])).collect::<Vec<_>>();
    let why: Map<String, Value> = why
        .into_iter()
        .flatten()
        .map(|(reason, set)| {
            let row = json!({ "messages": set.len(), "sequences": ranges(set) });
            ((*reason).to_owned(), row)
        })
        .collect();
    match &o.result {
        Ok((written, _)) => json!({
            "account": o.account,
            "stream": o.stream,
            "path": text(&o.path),
            "deleted_from": of,
            "messages": written.messages,
            "why": why,
        }),
        Err(error) => json!({
            "account": o.account,
            "stream": o.stream,
            "deleted_from": of,
            "messages": 0,
            "error": error,
        }),
    }
}

fn deleted_line(
    out: &mut String,
    o: &Outcome<'_>,
    of: &str,
    why: Option<&BTreeMap<&'static str, SeqSet>>,
) {
    let name = render::safe(&o.stream);
    match &o.result {
        Ok((written, _)) => {
            out.push_str(&format!(
                "{name}: {} deleted from {}\n",
                render::number_of(written.messages, "message"),
                render::safe(of)
            ));
            for (reason, set) in why.into_iter().flatten() {
                out.push_str(&format!("  {reason}: {}\n", render::count(set.len())));
            }
        }
        Err(error) => out.push_str(&format!("{name}: not recovered: {error}\n")),
    }
}

/// `DEST.report.json`.
fn report_path(dest: &Path) -> PathBuf {
    let name = dest.file_name().unwrap_or_default().to_string_lossy();
    parent(dest).join(format!("{name}.report.json"))
}

fn row(o: &Outcome<'_>, report: &Report) -> Value {
    let v = json!({
        "account": o.account,
        "stream": o.stream,
        "path": text(&o.path),
    });
    let more = match &o.result {
        Ok((written, lost)) => json!({
            "messages": written.messages,
            "corrected": report.corrected,
            "unverified": report.unproven.len(),
            "lost": lost.ranges().map(|(a, b)| json!([a, b])).collect::<Vec<_>>(),
            "lost_messages": lost.len(),
            "from_leftovers": report.from_leftovers,
            "reconstructed": report.reconstructed,
            "corrections": report.corrections,
            "unverified_records": report.unproven.iter().map(|(file, offset, seq)| json!({
                "file": file, "offset": offset, "seq": seq,
            })).collect::<Vec<_>>(),
            "findings": written.findings,
            "notes": report.notes,
        }),
        Err(why) => json!({
            "messages": 0,
            "error": why,
            "corrections": report.corrections,
            "notes": report.notes,
        }),
    };
    render::joined(v, more)
}

fn lines(out: &mut String, o: &Outcome<'_>, report: &Report) {
    let name = render::safe(&o.stream);
    match &o.result {
        Ok((written, lost)) => {
            out.push_str(&format!(
                "{name}: {} recovered, {} lost\n",
                render::number_of(written.messages, "message"),
                render::count(lost.len())
            ));
            if !lost.is_empty() {
                let ranges: Vec<(u64, u64)> = lost.ranges().take(LISTED).collect();
                let more = lost.ranges().count().saturating_sub(LISTED);
                out.push_str(&format!(
                    "  lost: {}{}\n",
                    crate::state::scan::ranges_text(&ranges),
                    if more > 0 {
                        format!(" and {more} more ranges")
                    } else {
                        String::new()
                    }
                ));
            }
        }
        Err(why) => out.push_str(&format!("{name}: not recovered: {why}\n")),
    }
    corrections(out, report);
}

/// What was put right, and the decisions.
fn corrections(out: &mut String, report: &Report) {
    if !report.corrections.is_empty() {
        let bits: usize = report.corrections.iter().map(|c| c.flips.len()).sum();
        out.push_str(&format!(
            "  corrected: {} in {} ({})\n",
            render::number_of(bits as u64, "bit"),
            render::number_of(report.corrections.len() as u64, "place"),
            render::number_of(report.corrected, "message"),
        ));
        for c in report.corrections.iter().take(LISTED) {
            let at: Vec<String> = c
                .flips
                .iter()
                .map(|f| format!("{}.{}", f.offset, f.bit))
                .collect();
            let what = match c.proof {
                salvage::Proof::Hash => "proven by its hash",
                salvage::Proof::Tag => "proven by its tag",
                salvage::Proof::Checksum => "by its checksum",
                salvage::Proof::Likely => "likely",
            };
            out.push_str(&format!(
                "    {}: byte.bit {}, {what}\n",
                c.file,
                at.join(" ")
            ));
        }
        let more = report.corrections.len().saturating_sub(LISTED);
        if more > 0 {
            out.push_str(&format!("    … {more} more in the report\n"));
        }
    }
    if report.from_leftovers > 0 {
        out.push_str(&format!(
            "  {} from left-overs\n",
            render::number_of(report.from_leftovers, "message")
        ));
    }
    for (file, offset, seq) in report.unproven.iter().take(LISTED) {
        out.push_str(&format!(
            "  unverified: sequence {seq} ({file}, offset {offset})\n"
        ));
    }
    for note in &report.notes {
        out.push_str(&format!("  {note}\n"));
    }
}

/// The reason why a stream was not written.
pub fn reason(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Key(_) => "a key is missing or wrong".into(),
        Refusal::Damaged(_) => "nothing of it could be proven".into(),
        other => other.reason("salvages"),
    }
}
