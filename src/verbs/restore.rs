//! `jetsam restore`: streams out of any source into the store directory of a stopped server.
//!
//! Everything is looked at before anything is written; each stream is then staged beside `jetstream/` and
//! renamed into place, so it is there whole or not at all.

use super::backup::require_outside;
use super::info::{Described, describe, describe_to_copy};
use super::metrics::Metrics;
use super::refusal::{
    Refusal, go_on, require_consumers, require_sound, require_unchanged, tell_written,
};
use super::salvage::{self, How, Reports};
use super::{Context, Exit, Failure, Opened, render, warn_of};
use crate::format::crypt::{Cipher, KeyRing, ServerKey};
use crate::format::seqset::SeqSet;
use crate::pipeline::Threads;
use crate::salvage::{Report, lost};
use crate::sink::Written;
use crate::sink::outgoing::{Outgoing, is_plain_name};
use crate::sink::staged::{StagedDir, make_dirs, remove_empty, rename_new, swap, sync_dir};
use crate::sink::store::{self, DIR_MODE, Encryption, Target};
use crate::source::select::Selector;
use crate::source::{self, Body, OpenOptions, StreamSource, in_use, text};
use crate::state::subjects::collide;
use crate::state::visit::Pass;
use crate::stream::{Stream, Want};
use serde_json::{Map, Value, json};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What to restore as what.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// The account to restore into; else the one that the source tells, else `$G`.
    pub to_account: Option<String>,
    /// Another name, for one stream.
    pub rename: Option<String>,
    /// Another number of replicas.
    pub replicas: Option<i64>,
    /// Another configuration, for one stream.
    pub config: Option<Map<String, Value>>,
    /// Leave consumers out.
    pub no_consumers: bool,
    /// Set an existing stream aside.
    pub replace: bool,
    /// Limit for everything in the store directory, bytes.
    pub max_file: Option<u64>,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Put right and restore what can be proven of a damaged source.
    pub salvage: Option<How>,
    /// Key for the new store.
    pub out_key: Option<ServerKey>,
    /// Cipher for the new store.
    pub out_cipher: Option<Cipher>,
    /// Write plaintext even where the source is encrypted.
    pub decrypt: bool,
}

impl Options {
    /// With one replica where the stream has more: a server on its own starts no other.
    fn with_replicas(&self, source: &StreamSource, keys: &KeyRing) -> Self {
        let want = Want::NOTHING;
        let meta = Stream::open(source, keys, want).meta;
        let replicated = meta.is_some_and(|m| m.num_replicas() > 1);
        Self {
            replicas: self.replicas.or(replicated.then_some(1)),
            ..self.clone()
        }
    }
}

const DEFAULT_ACCOUNT: &str = "$G";

/// A stream that is about to be written.
struct Plan<'s> {
    source: &'s StreamSource,
    account: String,
    name: String,
    /// Its directory.
    target: PathBuf,
    /// Bytes that it will need at most.
    bytes: u64,
    /// The same, or what it reserves where that is more.
    reserved: u64,
}

/// What a restored stream came to.
struct Restored {
    written: Written,
    consumers: usize,
    aside: Option<PathBuf>,
    /// What a salvage could not bring back.
    lost: SeqSet,
}

fn usage<T>(why: String) -> Result<T, Failure> {
    Err(Failure::Usage(why))
}

/// Whether servers take this as a stream's name.
fn is_stream_name(name: &str) -> bool {
    is_plain_name(name) && !name.contains([' ', '\t', '\r', '\n', '\x0c', '.', '*', '>'])
}

/// The directory that holds `jetstream/`, given that or `jetstream/` itself.
fn store_root(dir: &Path) -> PathBuf {
    let is_jetstream = dir.file_name().is_some_and(|n| n == "jetstream")
        && fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
        && !dir.join("jetstream").exists();
    match dir.parent().filter(|_| is_jetstream) {
        Some(p) if p.as_os_str().is_empty() => PathBuf::from("."),
        Some(p) => p.to_owned(),
        None => dir.to_owned(),
    }
}

/// A stream that is in the destination already.
struct Neighbour {
    account: String,
    name: String,
    subjects: Vec<String>,
    bytes: u64,
    encrypted: bool,
    readable: bool,
}

fn neighbours(root: &Path, keys: &KeyRing) -> Result<Vec<Neighbour>, Failure> {
    if !root.join("jetstream").is_dir() {
        return Ok(Vec::new());
    }
    let found = match source::open(&root.join("jetstream"), &OpenOptions::default()) {
        Ok(found) => found,
        // Nothing in it yet.
        Err(_) => return Ok(Vec::new()),
    };
    let want = Want::NOTHING;
    Ok(found
        .streams
        .iter()
        .map(|s| {
            let stream = Stream::open(s, keys, want);
            let reserved = stream.meta.as_ref().map_or(0, |m| m.max_bytes());
            let files = stream.block_bytes();
            Neighbour {
                account: s.account.clone(),
                name: s.name.clone(),
                subjects: stream.meta.as_ref().map_or_else(Vec::new, |m| {
                    m.subjects().iter().map(|s| (*s).to_owned()).collect()
                }),
                bytes: files.max(u64::try_from(reserved).unwrap_or(0)),
                encrypted: stream.cipher.is_some(),
                readable: stream.meta.is_some(),
            }
        })
        .collect())
}

/// Looks at everything that is to be restored, before anything is written.
fn plan<'s>(
    ctx: &Context<'_>,
    opened: &'s Opened,
    selector: &'s Selector,
    root: &Path,
    options: &Options,
) -> Result<Vec<Plan<'s>>, Failure> {
    let streams: Vec<&StreamSource> = opened.streams(selector).collect();
    let one_only = options.rename.is_some() || options.config.is_some();
    if streams.is_empty() {
        return usage(format!("{}: no stream", opened.source.path.display()));
    }
    if one_only && streams.len() > 1 {
        return usage(format!(
            "--rename and --config are for one stream, {} are selected: choose with -a and -s",
            streams.len()
        ));
    }
    let mut there = neighbours(root, &out_keys(ctx, options))?;
    let mut plans: Vec<Plan<'_>> = Vec::new();
    for source in streams {
        plans.push(plan_one(
            ctx, opened, source, root, options, &mut there, &plans,
        )?);
    }
    let total = plans
        .iter()
        .fold(0u64, |sum, p| sum.saturating_add(p.reserved));
    room(root, options, &there, &plans, total)?;
    let plaintext = options.out_key.is_none() && ctx.keys.current.is_none();
    if plaintext && let Some(n) = there.iter().find(|n| n.encrypted) {
        ctx.monitor.warn(&format!(
            "stream {} there is encrypted, what is restored will not be: a server with a key encrypts it as it goes; --out-key-file encrypts it now",
            render::safe(&n.name)
        ));
    }
    Ok(plans)
}

/// Looks at one stream that is to be restored, beside what is `there` and what is planned.
fn plan_one<'s>(
    ctx: &Context<'_>,
    opened: &Opened,
    source: &'s StreamSource,
    root: &Path,
    options: &Options,
    there: &mut Vec<Neighbour>,
    plans: &[Plan<'_>],
) -> Result<Plan<'s>, Failure> {
    let want = Want::NOTHING;
    let stream = Stream::open(source, &ctx.keys, want);
    let account = match (&options.to_account, source.account.as_str()) {
        (Some(account), _) => account.clone(),
        (None, "") => DEFAULT_ACCOUNT.to_owned(),
        (None, account) => account.to_owned(),
    };
    let own_name = stream
        .meta
        .as_ref()
        .and_then(|m| m.name.clone())
        .unwrap_or_else(|| source.name.clone());
    let name = options.rename.clone().unwrap_or(own_name);
    let shown = render::safe(&name);
    if !is_stream_name(&name) {
        return usage(format!(
            "{shown:?} is no name that servers take for a stream"
        ));
    }
    if !is_plain_name(&account) || account.starts_with('.') {
        return usage(format!(
            "{:?} is no name for an account's directory; give one with --to-account",
            render::safe(&account)
        ));
    }
    let target = root
        .join("jetstream")
        .join(&account)
        .join("streams")
        .join(&name);
    if plans.iter().any(|p| p.account == account && p.name == name) {
        return usage(format!(
            "two streams {shown} would go to account {account}: choose with -a"
        ));
    }
    // The source is never moved, not even aside.
    require_outside(&opened.source.path, &target)?;
    if fs::symlink_metadata(&target).is_ok() {
        if !options.replace {
            return usage(format!(
                "stream {shown} already exists in account {account} ({}); --replace sets it aside, --rename gives the new one another name",
                target.display()
            ));
        }
        there.retain(|n| n.account != account || n.name != name);
    }
    let config = options
        .config
        .clone()
        .or_else(|| stream.meta.as_ref().map(|m| m.config.clone()));
    let meta = config.map(|c| crate::format::meta::MetaInf::new_stream(c, None));
    // Without a configuration the reason is told when the stream's turn comes.
    if let Some(meta) = &meta {
        if let Some(configured) = meta
            .name
            .as_deref()
            .filter(|n| options.config.is_some() && options.rename.is_none() && *n != name)
        {
            return usage(format!(
                "the configuration is for stream {}, this is {shown}: use --rename {}",
                render::safe(configured),
                render::safe(configured)
            ));
        }
        let replicas = options.replicas.unwrap_or(meta.num_replicas());
        if replicas > 1 && options.replicas.is_none() {
            return usage(format!(
                "stream {shown} has {replicas} replicas: a standalone server does not start it, and a clustered one deletes what it did not assign; give --replicas 1"
            ));
        }
        if meta.storage() == "memory" {
            return usage(format!(
                "stream {shown} is kept in memory; give --config with \"storage\": \"file\" to have it on disk"
            ));
        }
        let subjects = meta.subjects();
        for n in there.iter().filter(|n| n.account == account) {
            if !n.readable {
                ctx.monitor.warn(&format!(
                    "the configuration of stream {} cannot be read: whether its subjects overlap is not known",
                    render::safe(&n.name)
                ));
            }
            for (a, b) in subjects
                .iter()
                .flat_map(|a| n.subjects.iter().map(move |b| (a, b)))
            {
                if collide(a.as_bytes(), b.as_bytes()) {
                    return usage(format!(
                        "subject {a} of stream {shown} overlaps {b} of stream {} in account {account}: servers refuse that",
                        render::safe(&n.name)
                    ));
                }
            }
        }
        there.push(Neighbour {
            account: account.clone(),
            name: name.clone(),
            subjects: subjects.iter().map(|s| (*s).to_owned()).collect(),
            bytes: 0,
            encrypted: false,
            readable: true,
        });
    }
    let bytes = size_of(&stream, source);
    let reserved = meta.as_ref().map_or(0, |m| m.max_bytes());
    Ok(Plan {
        source,
        account,
        name,
        target,
        bytes,
        reserved: bytes.max(u64::try_from(reserved).unwrap_or(0)),
    })
}

/// Bytes that a stream's messages need, as far as is known before they are read.
fn size_of(stream: &Stream, source: &StreamSource) -> u64 {
    let files = stream.block_bytes();
    let claimed = stream
        .claimed
        .as_ref()
        .or_else(|| source.backup.as_ref().map(|b| &b.state));
    files.max(claimed.map_or(0, |s| s.bytes))
}

/// Fails where there is no room.
fn room(
    root: &Path,
    options: &Options,
    there: &[Neighbour],
    plans: &[Plan<'_>],
    total: u64,
) -> Result<(), Failure> {
    if let Some(max) = options.max_file {
        let used: u64 = there.iter().map(|n| n.bytes).sum();
        if used.saturating_add(total) > max {
            return usage(format!(
                "{} are in use or reserved and {} would be added: over --max-file {}",
                render::bytes(used),
                render::bytes(total),
                render::bytes(max)
            ));
        }
    }
    let need: u64 = plans.iter().map(|p| p.bytes).sum();
    let mut at = root.to_owned();
    while !at.exists() && at.pop() {}
    if at.as_os_str().is_empty() {
        at.push(".");
    }
    if let Ok(fs) = rustix::fs::statvfs(&at) {
        let free = fs.f_bavail.saturating_mul(fs.f_frsize);
        if need > free {
            return usage(format!(
                "{} are needed, {} are free at {}",
                render::bytes(need),
                render::bytes(free),
                at.display()
            ));
        }
    }
    Ok(())
}

/// The keys to try on what is in the destination.
fn out_keys(ctx: &Context<'_>, options: &Options) -> KeyRing {
    KeyRing {
        current: options.out_key.clone().or_else(|| ctx.keys.current.clone()),
        previous: ctx.keys.current.clone(),
    }
}

/// Fails where a server uses the destination.
fn require_stopped(root: &Path) -> Result<(), String> {
    match in_use::find_user(root) {
        Some(user) => Err(format!(
            "{}: in use by {user}: stop it first",
            root.display()
        )),
        None => Ok(()),
    }
}

/// Runs the verb.
pub fn run(
    ctx: &mut Context<'_>,
    path: &Path,
    dest: &Path,
    options: &Options,
) -> Result<Exit, Failure> {
    Metrics::around("restore", ctx, &[path], |ctx, metrics| {
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
    let root = store_root(dest);
    let mut opened = ctx.open(path)?;
    ctx.require_match(&opened)?;
    require_outside(path, &root)?;
    match fs::metadata(&root) {
        Ok(m) if !m.is_dir() => return usage(format!("{}: not a directory", root.display())),
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return usage(format!("{}: {e}", root.display()));
        }
        _ => {}
    }
    require_stopped(&root).map_err(Failure::InUse)?;
    warn_of(ctx.monitor, &opened.source.findings);
    metrics.count(&opened.source.findings);
    let reports = match &options.salvage {
        Some(how) => salvage::mend_and_tell(ctx, &mut opened, how, options.config.as_ref()),
        None => Reports::new(),
    };
    let selector = ctx.selector.clone();
    let plans = plan(ctx, &opened, &selector, &root, options)?;
    let (mut exit, mut rows) = (Exit::Clean, Vec::new());
    let (started, count) = (Instant::now(), plans.len());
    let (mut done, mut messages, mut bytes) = (0u64, 0u64, 0u64);
    for plan in plans {
        if options.dry_run {
            would(ctx, &plan, &mut rows)?;
            continue;
        }
        let begun = Instant::now();
        let result = one(
            ctx,
            &opened,
            &root,
            &plan,
            options,
            salvage::report_of(&reports, plan.source),
        );
        let interrupted = matches!(result, Err(Refusal::Interrupted));
        match &result {
            Ok(r) => {
                exit = exit.worse(tell_written(ctx, metrics, &r.written));
                done += 1;
                messages = messages.saturating_add(r.written.messages);
                bytes = bytes.saturating_add(r.written.compressed);
            }
            Err(refusal) => {
                refusal.tell(ctx, metrics);
                exit = exit.worse(refusal.exit());
            }
        }
        report(ctx, &plan, &result, begun.elapsed(), &mut rows)?;
        if interrupted {
            break;
        }
    }
    if ctx.json {
        serde_json::to_writer_pretty(&mut ctx.out, &rows).map_err(io::Error::from)?;
        writeln!(ctx.out)?;
    } else if count > 1 && !options.dry_run {
        writeln!(
            ctx.out,
            "Restored {done} of {}: {}, {}, in {}",
            render::number_of(count as u64, "stream"),
            render::number_of(messages, "message"),
            render::bytes(bytes),
            render::took(started.elapsed())
        )?;
    }
    Ok(ctx.close_written(&opened, exit))
}

/// A stream that salvage writes.
pub(super) struct Job<'s> {
    /// The source, mended.
    pub source: &'s StreamSource,
    /// How it is written.
    pub options: Options,
    /// What was done to it.
    pub report: &'s Report,
    /// For deleted messages: the stream that they were deleted from.
    pub deleted_from: Option<&'s str>,
}

/// Writes streams that salvage has mended into the new store directory `root`; one that cannot be
/// written does not keep the others from it.
pub(super) fn salvaged(
    ctx: &Context<'_>,
    opened: &Opened,
    root: &Path,
    jobs: Vec<Job<'_>>,
    metrics: &mut Metrics,
    tell: &mut dyn FnMut(&Job<'_>, &salvage::Outcome<'_>) -> bool,
) -> Result<Exit, Failure> {
    let (mut there, mut plans): (Vec<Neighbour>, Vec<Plan<'_>>) = (Vec::new(), Vec::new());
    let mut exit = Exit::Clean;
    for job in &jobs {
        let mut options = job.options.with_replicas(job.source, &ctx.keys);
        let planned = plan_one(ctx, opened, job.source, root, &options, &mut there, &plans);
        let name = options.rename.as_ref().unwrap_or(&job.source.name).clone();
        let outcome = |path: PathBuf, result| salvage::Outcome {
            account: job.source.account.clone(),
            stream: name.clone(),
            path,
            result,
        };
        let left = match planned {
            Ok(plan) => {
                // One that has lost its own has it by now; others keep theirs.
                if job.deleted_from.is_none() {
                    options.config = None;
                }
                let done = one(ctx, opened, root, &plan, &options, Some(job.report));
                let target = plan.target.clone();
                plans.push(plan);
                match &done {
                    Ok(r) => {
                        metrics.streams += 1;
                        metrics.bytes += r.written.compressed;
                        metrics.count(&r.written.findings);
                        tell(job, &outcome(target, Ok((&r.written, &r.lost))))
                    }
                    Err(Refusal::Interrupted) => return Ok(Exit::Interrupted),
                    Err(refusal) => {
                        exit = exit.worse(refusal.exit());
                        tell(job, &outcome(target, Err(salvage::reason(refusal))))
                    }
                }
            }
            Err(failure) => tell(job, &outcome(PathBuf::new(), Err(failure.to_string()))),
        };
        if left {
            exit = exit.worse(Exit::Found);
        }
    }
    Ok(ctx.close_written(opened, exit))
}

/// What a dry run says of a stream.
fn would(ctx: &mut Context<'_>, plan: &Plan<'_>, rows: &mut Vec<Value>) -> Result<(), Failure> {
    if ctx.json {
        rows.push(json!({
            "account": plan.account,
            "stream": plan.name,
            "path": text(&plan.target),
            "bytes": plan.bytes,
            "dry_run": true,
        }));
    } else {
        writeln!(
            ctx.out,
            "{}: up to {} would go to {}",
            render::safe(&plan.name),
            render::bytes(plan.bytes),
            plan.target.display()
        )?;
    }
    Ok(())
}

fn report(
    ctx: &mut Context<'_>,
    plan: &Plan<'_>,
    result: &Result<Restored, Refusal>,
    time: Duration,
    rows: &mut Vec<Value>,
) -> Result<(), Failure> {
    if ctx.json {
        let mut row = json!({
            "account": plan.account,
            "stream": plan.name,
            "path": text(&plan.target),
        });
        let more = match result {
            Ok(r) => json!({
                "messages": r.written.messages,
                "consumers": r.consumers,
                "bytes": r.written.compressed,
                "seconds": time.as_secs_f64(),
                "errors": r.written.findings.len(),
                "replaced": r.aside.as_deref().map(text),
            }),
            Err(refusal) => json!({ "error": refusal.reason("restores") }),
        };
        if let (Some(row), Value::Object(mut more)) = (row.as_object_mut(), more) {
            more.retain(|_, v| !v.is_null());
            row.extend(more);
        }
        rows.push(row);
        return Ok(());
    }
    let name = render::safe(&plan.name);
    match result {
        Ok(r) => {
            writeln!(
                ctx.out,
                "{name}: {}, {}, {} in {}, to {}",
                render::number_of(r.written.messages, "message"),
                render::number_of(r.consumers as u64, "consumer"),
                render::bytes(r.written.compressed),
                render::took(time),
                plan.target.display()
            )?;
            if let Some(aside) = &r.aside {
                writeln!(ctx.out, "{name}: the old one is at {}", aside.display())?;
            }
        }
        Err(refusal) => ctx.monitor.warn(&format!(
            "{name}: not restored: {}",
            refusal.reason("restores")
        )),
    }
    Ok(())
}

/// Bytes of a block from which on one is written at a time.
const LARGE: u64 = 16 << 20;

/// Restores one stream.
fn one(
    ctx: &Context<'_>,
    opened: &Opened,
    root: &Path,
    plan: &Plan<'_>,
    options: &Options,
    report: Option<&Report>,
) -> Result<Restored, Refusal> {
    let before = opened.files_of(plan.source);
    let scanned = || describe(ctx, plan.source, Want::CONSUMERS);
    let all = |d| described(ctx, opened, root, plan, options, (report, before), d);
    let d = match plan.source.body {
        // What is lost is told by a scan.
        Body::Blocks { .. } if report.is_some() => scanned(),
        _ => describe_to_copy(ctx, plan.source),
    };
    let by_claim = d.state.is_claim_of_blocks();
    match all(d) {
        // It is not what the archive says: what it is instead takes a scan.
        Err(Refusal::Damaged(_)) if by_claim => all(scanned()),
        done => done,
    }
}

/// Restores a stream whose state is known.
fn described(
    ctx: &Context<'_>,
    opened: &Opened,
    root: &Path,
    plan: &Plan<'_>,
    options: &Options,
    (report, before): (Option<&Report>, Option<u64>),
    mut d: Described,
) -> Result<Restored, Refusal> {
    let salvage = report.is_some();
    require_sound(ctx, &mut d, salvage)?;
    if d.stream.meta.is_none()
        && let Some(config) = &options.config
    {
        d.stream.meta = Some(crate::format::meta::MetaInf::new_stream(
            config.clone(),
            None,
        ));
    }
    let Some(mut out) = Outgoing::new(&d.stream, &d.state) else {
        return Err(Refusal::Failed(
            "no configuration is left: give one with --config".into(),
        ));
    };
    if options.no_consumers {
        out.consumers.clear();
    }
    out.consumers.retain(|c| ctx.selector.consumer(&c.name));
    if let Some(config) = &options.config {
        out.reconfigure(config.clone());
    }
    if out.name != plan.name {
        out.rename(&plan.name);
    }
    if let Some(replicas) = options.replicas {
        out.set_replicas(replicas);
    }
    if salvage {
        out.fit_consumers();
    }
    let in_memory = out.consumers.iter().filter(|c| c.meta.mem_storage());
    for c in in_memory {
        ctx.monitor.warn(&format!(
            "consumer {} of stream {} is kept in memory: left out",
            render::safe(&c.name),
            render::safe(&out.name)
        ));
    }
    out.consumers.retain(|c| !c.meta.mem_storage());
    require_consumers(ctx, &out)?;

    let encryption = if options.decrypt {
        None
    } else {
        let cipher = options.out_cipher.or(d.stream.cipher);
        let own = cipher.and(ctx.keys.current.as_ref().or(ctx.keys.previous.as_ref()));
        let key = options.out_key.as_ref().or(own);
        key.map(|key| Encryption {
            key,
            cipher: cipher.unwrap_or(Cipher::ChaCha),
        })
    };

    let staged = StagedDir::new(root, DIR_MODE).map_err(|e| Refusal::io(&e, root))?;
    let progress = |n| ctx.monitor.advance(n);
    // Each worker holds a block, as it was and as it is to be: of very large ones no more than needed.
    let large = d.stream.blocks.iter().any(|b| b.len > LARGE);
    let more = match large {
        true => Some(Threads::one()),
        false => ctx.threads.and_one(),
    };
    let threads = more.as_ref().unwrap_or(&ctx.threads);
    let pass = Pass::new(&d.stream, &d.state, threads, &progress);
    ctx.monitor
        .begin(&format!("Restoring {}", plan.name), pass.file_bytes());
    let target = Target {
        dir: staged.path(),
        account: &plan.account,
        encryption,
    };
    let written = store::write(&out, &pass, salvage, &target, &ctx.stop);
    ctx.monitor.end();
    let written = written?;
    require_unchanged(ctx, opened, plan.source, before)?;
    require_stopped(root).map_err(Refusal::InUse)?;
    go_on(ctx)?;
    let parent = plan.target.parent().unwrap_or(root);
    // What is new belongs to whoever owns the directory that it is made in.
    let there = parent.ancestors().find(|p| p.exists()).unwrap_or(root);
    let owner = fs::metadata(there).map_err(|e| Refusal::io(&e, there))?;
    own(staged.path(), &owner).map_err(|e| Refusal::io(&e, staged.path()))?;
    let made = make_dirs(parent, DIR_MODE).map_err(|e| Refusal::io(&e, parent))?;
    for dir in &made {
        own_one(dir, &owner).map_err(|e| Refusal::io(&e, dir))?;
    }
    let consumers = out.consumers.len();
    let done = if options.replace && plan.target.exists() {
        replace(staged, root, plan).map(Some)
    } else {
        staged.commit(&plan.target).map(|()| None)
    };
    let aside = done.map_err(|e| {
        remove_empty(&made);
        Refusal::io(&e, &plan.target)
    })?;
    let lost = report.map_or_else(SeqSet::new, |report| {
        lost(report, &d.stream, &d.state, &written.held)
    });
    Ok(Restored {
        written: written.of_damaged(d.findings, salvage),
        consumers,
        aside,
        lost,
    })
}

/// Puts the new stream in the old one's place in one step, and the old one beside `jetstream/`, where no
/// server looks.
fn replace(staged: StagedDir, root: &Path, plan: &Plan<'_>) -> io::Result<PathBuf> {
    let stamp = crate::time::rfc3339(crate::time::now()).replace(':', "");
    let aside = root.join(aside_name(&stamp, &plan.account, &plan.name));
    let was = staged.keep()?;
    // The new one takes the name that the old one gets by the swap: at no time is the old one under
    // a name of things that can be thrown away.
    let done = rename_new(&was, &aside).and_then(|()| match swap(&aside, &plan.target) {
        Ok(()) => Ok(()),
        // A file system that cannot swap: the old one goes first.
        Err(e) if e.kind() == io::ErrorKind::Unsupported || e.raw_os_error() == Some(22) => {
            rename_new(&aside, &was)?;
            rename_new(&plan.target, &aside)?;
            rename_new(&was, &plan.target)
        }
        Err(e) => {
            rename_new(&aside, &was)?;
            Err(e)
        }
    });
    if let Err(e) = done {
        let _ = fs::remove_dir_all(&was);
        return Err(e);
    }
    sync_dir(plan.target.parent().unwrap_or(root))?;
    sync_dir(root)?;
    Ok(aside)
}

/// The name of a stream that is set aside: as much of it as a file's name can hold.
fn aside_name(stamp: &str, account: &str, name: &str) -> String {
    let mut aside = format!("replaced-{stamp}-{account}-{name}");
    while aside.len() > 255 {
        aside.pop();
    }
    aside
}

/// Gives everything below `dir` to the owner of the store, where root restores for another user.
fn own(dir: &Path, owner: &fs::Metadata) -> io::Result<()> {
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        if !own_one(&at, owner)? {
            return Ok(());
        }
        if fs::symlink_metadata(&at)?.is_dir() {
            for entry in fs::read_dir(&at)? {
                todo.push(entry?.path());
            }
        }
    }
    Ok(())
}

/// False where nothing has to be done.
fn own_one(path: &Path, owner: &fs::Metadata) -> io::Result<bool> {
    let now = fs::symlink_metadata(path)?;
    if (now.uid(), now.gid()) == (owner.uid(), owner.gid()) {
        return Ok(false);
    }
    std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()))?;
    Ok(true)
}
