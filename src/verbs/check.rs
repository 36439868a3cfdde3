//! `jetsam check`: reads and proves everything, and says what it found.

use super::backup::require_outside;
use super::metrics::Metrics;
use super::part::{self, Choice, Sitting};
use super::restorable::{self, Contents};
use super::resume::{self, Counts, Notes, Resume};
use super::salvage::{Beside, How, mend_one};
use super::{Context, Exit, Failure, concerns, exit_for, on_start, render};
use crate::finding::{Code, Finding, Severity};
use crate::format::hash::HashKey;
use crate::format::{self, fss, idx, meta, raft, sched_db, sources_db, thw_db};
use crate::salvage::assignments::Assignments;
use crate::source::{Role, Source, StreamSource};
use crate::state::consumers::position;
use crate::state::{Depth, StreamState, Survey, Totals, prove, survey};
use crate::stream::{INDEX_FILE, Index, Stream, Want};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Seconds of search for each damaged file, to tell whether it can be mended: `salvage` takes more.
const SEARCH_SECONDS: f64 = 0.1;

/// What to check, and how.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which blocks.
    pub choice: Choice,
    /// Where to note what is done, so that another run can go on.
    pub state: Option<PathBuf>,
}

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
    /// Which blocks were read, where that are not all.
    #[serde(flatten)]
    pub choice: Choice,
    /// Blocks there are, where not all were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks_total: Option<u64>,
}

impl Summary {
    fn counts(&self) -> Counts {
        Counts {
            consumers: self.consumers,
            blocks: self.blocks,
            blocks_total: self.blocks_total.unwrap_or(0),
            records: self.records,
            messages: self.messages,
            bytes: self.bytes,
        }
    }

    fn add(&mut self, c: &Counts) {
        self.consumers += c.consumers;
        self.blocks += c.blocks;
        self.records += c.records;
        self.messages += c.messages;
        self.bytes += c.bytes;
        if let Some(total) = &mut self.blocks_total {
            *total += c.blocks_total;
        }
    }
}

/// The outcome of a check.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What was checked.
    pub summary: Summary,
}

impl Report {
    fn of(choice: Choice) -> Self {
        let mut report = Self::default();
        report.summary.choice = choice;
        report.summary.blocks_total = (!choice.is_all()).then_some(0);
        report
    }
}

/// Runs the verb.
pub fn run(ctx: &mut Context<'_>, sources: &[PathBuf], options: &Options) -> Result<Exit, Failure> {
    let paths: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
    Metrics::around("check", ctx, &paths, |ctx, metrics| {
        all(ctx, sources, options, metrics)
    })
}

fn all(
    ctx: &mut Context<'_>,
    sources: &[PathBuf],
    options: &Options,
    metrics: &mut Metrics,
) -> Result<Exit, Failure> {
    let started = Instant::now();
    let (state, choice) = match &options.state {
        None => (None, options.choice.seeded(None)),
        Some(file) => {
            for source in sources {
                require_outside(around(source), file)?;
            }
            let (state, choice) = Resume::open(file, sources, &ctx.selector, options.choice)?;
            (Some(state), choice)
        }
    };
    let mut report = Report::of(choice);
    let mut exit = Exit::Clean;
    for (i, path) in sources.iter().enumerate() {
        let opened = ctx.open(path)?;
        ctx.require_match(&opened)?;
        let mut one = check_some(ctx, &opened.source, choice, state.as_ref().map(|s| (s, i)));
        if let Some(state) = state.as_ref().filter(|_| is_stopped(ctx)) {
            return Ok(interrupted(ctx, state));
        }
        // Whether an error can be put right takes a look at the whole stream.
        if choice.is_all() {
            repairable(ctx, &opened.source, &mut one.findings);
        }
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
        s.add(&o.counts());
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
    if let Some(state) = &state {
        // Told first: a report that nobody could read is made again from what is noted.
        ctx.out.flush()?;
        // What was written to meanwhile is checked again.
        if !note(ctx, state, exit == Exit::Clean) {
            exit = exit.worse(Exit::Failed);
        }
    }
    Ok(if exit == Exit::Clean {
        exit_for(&report.findings)
    } else {
        exit
    })
}

/// What must hold no state file: a store's directory for a block in it, a backup for its `backup.json`.
fn around(source: &Path) -> &Path {
    let is_part = source
        .file_name()
        .is_some_and(|n| n == "backup.json" || n.as_bytes().ends_with(b".blk"));
    let parent = source.parent().filter(|_| is_part);
    match parent {
        Some(p) if p.as_os_str().is_empty() => Path::new("."),
        Some(p) => p,
        None => source,
    }
}

fn is_stopped(ctx: &Context<'_>) -> bool {
    ctx.stop.load(Ordering::Relaxed)
}

/// Writes the state; whether that succeeded.
fn note(ctx: &Context<'_>, state: &Resume, complete: bool) -> bool {
    let written = state.close(complete);
    if let Err(e) = &written {
        ctx.monitor.warn(&format!("state file: {e}"));
    }
    written.is_ok()
}

fn interrupted(ctx: &Context<'_>, state: &Resume) -> Exit {
    if note(ctx, state, false) {
        ctx.monitor
            .warn("interrupted; the same command goes on with what is left");
    }
    Exit::Interrupted
}

/// Checks the selected streams (and raft groups) of a source.
pub fn check(ctx: &Context<'_>, source: &Source) -> Report {
    check_some(ctx, source, Choice::All, None)
}

/// As [`check`], of chosen blocks. `state` has what is done of the source with this number.
fn check_some(
    ctx: &Context<'_>,
    source: &Source,
    choice: Choice,
    state: Option<(&Resume, usize)>,
) -> Report {
    let mut report = Report::of(choice);
    let found = source.findings.iter();
    report.findings = found
        .filter(|f| concerns(&ctx.selector, f))
        .cloned()
        .map(on_start::around)
        .collect();
    let selected = |s: &&StreamSource| ctx.selector.stream(&s.account, &s.name);
    let streams = source.streams.iter().filter(selected);
    report.summary.streams = streams.clone().count() as u64;
    for s in streams.chain(source.groups.iter().filter(selected)) {
        let notes = state.and_then(|(state, i)| state.of(i, s));
        let (counts, mut found) = match notes {
            Some(notes) => noted(ctx, source, s, choice, notes),
            None => stream(ctx, s, choice, None).0,
        };
        report.summary.add(&counts);
        report.findings.append(&mut found);
        if let Some((state, _)) = state {
            if is_stopped(ctx) {
                break;
            }
            if let Some(e) = state.complaint() {
                ctx.monitor.warn(&format!("state file: {e}"));
            }
        }
    }
    report
}

/// A stream, or what is noted of it where nothing of it has changed.
fn noted(
    ctx: &Context<'_>,
    whole: &Source,
    source: &StreamSource,
    choice: Choice,
    notes: Notes<'_>,
) -> (Counts, Vec<Finding>) {
    // Before anything is read: what changes meanwhile is read again the next time.
    let fingerprint = resume::fingerprint(whole, source);
    if let Some(done) = fingerprint.and_then(|f| notes.whole(f)) {
        return done;
    }
    let (found, in_blocks) = stream(ctx, source, choice, Some(notes));
    if let Some(f) = fingerprint.filter(|_| !in_blocks && !is_stopped(ctx)) {
        notes.add_whole(f, found.0, &found.1);
    }
    found
}

/// What the check of a stream brings, and whether that was noted block by block.
fn stream(
    ctx: &Context<'_>,
    source: &StreamSource,
    choice: Choice,
    notes: Option<Notes<'_>>,
) -> ((Counts, Vec<Finding>), bool) {
    let in_archive = source.in_archive();
    // Read whole or not at all; to open it was to read its structure, and what is wrong with that is told.
    if in_archive
        && !choice
            .of(&source.account, &source.name)
            .takes(part::ARCHIVE)
    {
        let counts = Counts {
            blocks_total: part::count(source),
            ..Counts::default()
        };
        let found = source.findings.iter().cloned();
        let found = found.map(|f| f.stream(&source.account, &source.name));
        return ((counts, found.collect()), false);
    }
    let choice = if in_archive { Choice::All } else { choice };
    let Examined {
        mut stream,
        state,
        totals,
        mut findings,
        has_state,
    } = examine(ctx, source, choice, notes);
    let counts = Counts {
        consumers: stream.consumers.len() as u64,
        blocks: totals.blocks,
        blocks_total: if in_archive {
            totals.blocks
        } else {
            stream.blocks.len() as u64
        },
        records: totals.records,
        messages: match stream.role {
            Role::Stream if choice.is_all() => state.msgs,
            Role::Stream => totals.messages,
            _ => 0,
        },
        bytes: totals.file_bytes,
    };
    if has_state {
        // It looks into blocks, too.
        let chosen = choice.of(&source.account, &source.name);
        stream.blocks.retain(|b| chosen.takes(b.n));
        on_start::tell(&stream, &state, &mut findings);
    }
    let is_valid = matches!(stream.index, Index::Valid(_));
    let in_blocks = !in_archive && (is_valid || !choice.is_all());
    ((counts, findings), in_blocks)
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
        let left = examine(ctx, &mended.source, Choice::All, None).findings;
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

/// A stream that was read.
struct Examined {
    stream: Stream,
    state: StreamState,
    totals: Totals,
    findings: Vec<Finding>,
    /// The state is that of the stream, not only of the blocks that were read.
    has_state: bool,
}

/// Reads and proves a stream, or chosen blocks of it.
fn examine(
    ctx: &Context<'_>,
    source: &StreamSource,
    choice: Choice,
    notes: Option<Notes<'_>>,
) -> Examined {
    let want = Want {
        subjects: true,
        consumers: true,
    };
    let stream = Stream::open_on(&ctx.threads, source, &ctx.keys, want);
    let plan = Sitting {
        chosen: choice.of(&source.account, &source.name),
        notes: notes.filter(|_| !source.in_archive()),
        stream: &stream,
        stop: &ctx.stop,
    };
    let files = stream.blocks.iter().filter(|b| plan.chosen.takes(b.n));
    ctx.monitor.begin(
        &format!("Checking {}", stream.name),
        files.map(|b| b.len).sum(),
    );
    let progress = |n| ctx.monitor.advance(n);
    let found = if choice.is_all() && notes.is_none() {
        let depth = Depth {
            subjects: false,
            prove: true,
        };
        survey(&stream, &ctx.threads, depth, &progress)
    } else {
        prove(&stream, &ctx.threads, &plan, &progress)
    };
    ctx.monitor.end();
    let has_state = choice.is_all() || matches!(stream.index, Index::Valid(_));
    let Survey {
        state,
        findings,
        totals,
    } = found;
    let mut all = stream.findings.clone();
    all.extend(findings);
    let mut extra = Vec::new();
    config(&stream, &mut extra);
    if has_state {
        consumers(&stream, &state, &mut extra);
        index_ahead(&stream, &state, &mut extra);
    }
    side_files(&stream, &state, has_state, &mut extra);
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
    Examined {
        stream,
        state,
        totals,
        findings: all,
        has_state,
    }
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
fn side_files(stream: &Stream, state: &StreamState, has_state: bool, out: &mut Vec<Finding>) {
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
                    Ok(idx) if idx.msgs > 0 && (has_state || state.block(b.n).is_some()) => {
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
    let blocks = match (s.choice.words(), s.blocks_total) {
        (Some(words), Some(total)) => format!(
            "{} of {} ({words})",
            render::count(s.blocks),
            render::number_of(total, "block")
        ),
        _ => render::number_of(s.blocks, "block"),
    };
    writeln!(
        ctx.out,
        "Checked {}, {}, {}, {}, {}, {} in {}: {verdict}",
        render::number_of(s.streams, "stream"),
        render::number_of(s.consumers, "consumer"),
        blocks,
        render::number_of(s.records, "record"),
        render::number_of(s.messages, "message"),
        render::bytes(s.bytes),
        render::took(started.elapsed()),
    )?;
    Ok(())
}
