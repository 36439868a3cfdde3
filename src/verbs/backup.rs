//! `jetsam backup`: archives of a stopped server's streams, one directory each, as the `nats` CLI leaves them.

use super::info::describe;
use super::metrics::Metrics;
use super::refusal::{
    Refusal, go_on, require_consumers, require_sound, require_unchanged, tell_written,
};
use super::salvage::{self, How, Reports};
use super::{Context, Exit, Failure, Opened, render, warn_of};
use crate::format::backup_json::{self, BackupJson};
use crate::format::seqset::SeqSet;
use crate::salvage::{Report, lost};
use crate::sink::Written;
use crate::sink::archive::{self, Format};
use crate::sink::outgoing::{OutConsumer, Outgoing, is_plain_name};
use crate::sink::staged::{PREFIX, StagedDir, parent, write_synced};
use crate::source::{SourceKind, StreamSource, text};
use crate::state::visit::Pass;
use crate::stream::Want;
use serde_json::{Value, json};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Archives are for their owner alone, as with the `nats` CLI.
pub const DIR_MODE: u32 = 0o700;

/// What to write, and how.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which archive.
    pub format: Format,
    /// Leave consumers out.
    pub no_consumers: bool,
    /// Put right and archive what can be proven of a damaged stream.
    pub salvage: Option<How>,
}

/// How one stream went.
struct Outcome {
    account: String,
    stream: String,
    path: PathBuf,
    result: Result<Archived, Refusal>,
    time: Duration,
}

/// What an archived stream came to.
struct Archived {
    written: Written,
    consumers: usize,
    /// What a salvage could not bring back.
    lost: SeqSet,
}

/// Where each stream goes.
fn targets<'s>(
    ctx: &Context<'_>,
    opened: &Opened,
    streams: &[&'s StreamSource],
    dest: &Path,
) -> Result<Vec<(&'s StreamSource, PathBuf)>, Failure> {
    let usage = |why: String| Err(Failure::Usage(why));
    let single = ctx.selector.exact_stream().is_some()
        || matches!(
            opened.source.kind,
            SourceKind::Stream | SourceKind::Backup | SourceKind::Archive | SourceKind::File
        );
    let one_account =
        ctx.selector.exact_account().is_some() || matches!(opened.source.kind, SourceKind::Account);
    if single {
        return match streams {
            [one] => Ok(vec![(one, dest.to_owned())]),
            [] => usage(format!("{}: no stream", opened.source.path.display())),
            [one, ..] => usage(format!(
                "stream {} is in more than one account: choose with -a",
                one.name
            )),
        };
    }
    let mut out = Vec::new();
    for s in streams {
        if !is_plain_name(&s.name) || !(one_account || is_plain_name(&s.account)) {
            return usage(format!(
                "{}: cannot be a directory's name; choose it with -s and give it a directory of its own",
                render::safe(&s.name)
            ));
        }
        let base = if one_account {
            dest.to_owned()
        } else {
            dest.join(&s.account)
        };
        out.push((*s, base.join(&s.name)));
    }
    Ok(out)
}

/// Fails where something is in the way. `levels` of empty directories are not, and nor is there what a
/// killed run left.
pub fn require_free(dir: &Path, levels: u32) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::Usage(format!("{}: {e}", dir.display()));
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if levels > 0 && entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        if levels > 0 && entry.file_type().map_err(failed)?.is_dir() {
            require_free(&entry.path(), levels - 1)?;
            continue;
        }
        return Err(Failure::Usage(format!(
            "{}: not empty; nothing was written",
            dir.display()
        )));
    }
    Ok(())
}

/// Fails where `dest` is inside of the source: jetsam never writes there.
pub fn require_outside(source: &Path, dest: &Path) -> Result<(), Failure> {
    let Ok(source) = source.canonicalize() else {
        return Ok(());
    };
    let mut at = std::path::absolute(dest).unwrap_or_else(|_| dest.to_owned());
    let there = loop {
        if let Ok(found) = at.canonicalize() {
            break found;
        }
        if !at.pop() {
            return Ok(());
        }
    };
    if there.starts_with(&source) {
        return Err(Failure::Usage(format!(
            "{}: inside of the source, which is never written to",
            dest.display()
        )));
    }
    Ok(())
}

/// Runs the verb.
pub fn run(
    ctx: &mut Context<'_>,
    path: &Path,
    dest: &Path,
    options: &Options,
) -> Result<Exit, Failure> {
    Metrics::around("backup", ctx, &[path], |ctx, metrics| {
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
    let mut opened = ctx.open(path)?;
    ctx.require_match(&opened)?;
    require_outside(path, dest)?;
    let reports = match &options.salvage {
        Some(how) => salvage::mend_and_tell(ctx, &mut opened, how, None),
        None => Reports::new(),
    };
    let selector = ctx.selector.clone();
    let streams: Vec<&StreamSource> = opened.streams(&selector).collect();
    let targets = targets(ctx, &opened, &streams, dest)?;
    if targets.is_empty() {
        return Err(Failure::Usage(format!("{}: no stream", path.display())));
    }
    // DEST itself; DEST/STREAM; DEST/ACCOUNT/STREAM.
    let levels = targets.iter().map(|(_, target)| {
        let below = target.strip_prefix(dest).map_or(0, |p| p.iter().count());
        u32::try_from(below).unwrap_or(0)
    });
    require_free(dest, levels.max().unwrap_or(0))?;
    warn_of(ctx.monitor, &opened.source.findings);
    metrics.count(&opened.source.findings);
    let (mut outcomes, started) = (Vec::new(), Instant::now());
    let mut exit = Exit::Clean;
    let mut told_plaintext = false;
    for (source, target) in targets {
        let begun = Instant::now();
        let report = salvage::report_of(&reports, source);
        let result = one(
            ctx,
            &opened,
            source,
            &target,
            options,
            report,
            &mut told_plaintext,
        );
        let interrupted = matches!(result, Err(Refusal::Interrupted));
        match &result {
            Ok(a) => exit = exit.worse(tell_written(ctx, metrics, &a.written)),
            Err(refusal) => {
                refusal.tell(ctx, metrics);
                exit = exit.worse(refusal.exit());
            }
        }
        let outcome = Outcome {
            account: source.account.clone(),
            stream: source.name.clone(),
            path: target,
            result,
            time: begun.elapsed(),
        };
        if !ctx.json {
            line(ctx, &outcome)?;
        }
        outcomes.push(outcome);
        if interrupted {
            break;
        }
    }
    if ctx.json {
        let all: Vec<Value> = outcomes.iter().map(as_json).collect();
        serde_json::to_writer_pretty(&mut ctx.out, &all).map_err(std::io::Error::from)?;
        writeln!(ctx.out)?;
    } else if outcomes.len() > 1 {
        total(ctx, &outcomes, started.elapsed())?;
    }
    Ok(ctx.close_written(&opened, exit))
}

/// Archives one stream.
fn one(
    ctx: &Context<'_>,
    opened: &Opened,
    source: &StreamSource,
    target: &Path,
    options: &Options,
    report: Option<&Report>,
    told_plaintext: &mut bool,
) -> Result<Archived, Refusal> {
    let salvage = report.is_some();
    let before = opened.files_of(source);
    let mut d = describe(ctx, source, Want::CONSUMERS);
    require_sound(ctx, &mut d, salvage)?;
    let Some(mut out) = Outgoing::new(&d.stream, &d.state) else {
        return Err(Refusal::Damaged(d.findings));
    };
    if options.no_consumers {
        out.consumers.clear();
    }
    out.consumers.retain(|c| ctx.selector.consumer(&c.name));
    if options.format == Format::V1 {
        // What a server makes for a stream of 2.14 and later that sources a work queue or interest stream.
        let new = |c: &&OutConsumer<'_>| c.meta.get("ack_policy") == Some(&"flow_control".into());
        for c in out.consumers.iter().filter(new) {
            ctx.monitor.warn(&format!(
                "stream {}: servers before 2.14 will refuse it because of consumer {}; for those choose the others with -c, or --no-consumers",
                render::safe(&out.name),
                render::safe(&c.name)
            ));
        }
    }
    require_consumers(ctx, &out)?;
    if d.stream.cipher.is_some() && !*told_plaintext {
        *told_plaintext = true;
        ctx.monitor
            .warn("the source is encrypted; archives are plaintext, as the server's are");
    }
    let parent = parent(target);
    let staged = StagedDir::new(parent, DIR_MODE).map_err(|e| Refusal::io(&e, parent))?;
    let data = staged.path().join("stream.tar.s2.part");
    let pass_progress = |n| ctx.monitor.advance(n);
    let pass = Pass::new(&d.stream, &d.state, &ctx.threads, &pass_progress);
    ctx.monitor
        .begin(&format!("Backing up {}", source.name), pass.file_bytes());
    if salvage {
        out.fit_consumers();
    }
    let claim = if salvage {
        archive::proven_state(&out, &Pass::new(&d.stream, &d.state, &ctx.threads, &|_| {}))
    } else {
        archive::api_state(&out)
    };
    let written = archive::write(
        options.format,
        &out,
        &claim,
        &pass,
        salvage,
        &data,
        &ctx.stop,
    );
    ctx.monitor.end();
    let written = written?;
    let meta = backup_json::encode(&BackupJson {
        config: out.meta.config.clone(),
        state: claim,
    });
    let name = staged.path().join("backup.json");
    write_synced(&name, &meta).map_err(|e| Refusal::io(&e, &name))?;
    let whole = staged.path().join("stream.tar.s2");
    std::fs::rename(&data, &whole).map_err(|e| Refusal::io(&e, &whole))?;
    require_unchanged(ctx, opened, source, before)?;
    go_on(ctx)?;
    staged.commit(target).map_err(|e| Refusal::io(&e, target))?;
    let consumers = out.consumers.len();
    let lost = report.map_or_else(SeqSet::new, |report| {
        lost(report, &d.stream, &d.state, &written.held)
    });
    Ok(Archived {
        written: written.of_damaged(d.findings, salvage),
        consumers,
        lost,
    })
}

/// Archives the selected streams, which salvage has mended, below `dest`.
pub(super) fn salvaged(
    ctx: &Context<'_>,
    opened: &Opened,
    dest: &Path,
    options: &Options,
    reports: &Reports,
    metrics: &mut Metrics,
    tell: &mut dyn FnMut(&StreamSource, &salvage::Outcome<'_>) -> bool,
) -> Result<Exit, Failure> {
    let selector = ctx.selector.clone();
    let streams: Vec<&StreamSource> = opened.streams(&selector).collect();
    let (mut exit, mut told_plaintext) = (Exit::Clean, false);
    for (source, target) in targets(ctx, opened, &streams, dest)? {
        let report = salvage::report_of(reports, source);
        let done = one(
            ctx,
            opened,
            source,
            &target,
            options,
            report,
            &mut told_plaintext,
        );
        let result = match &done {
            Ok(a) => {
                metrics.streams += 1;
                metrics.bytes += a.written.compressed;
                metrics.count(&a.written.findings);
                Ok((&a.written, &a.lost))
            }
            Err(Refusal::Interrupted) => return Ok(Exit::Interrupted),
            Err(refusal) => {
                exit = exit.worse(refusal.exit());
                Err(salvage::reason(refusal))
            }
        };
        let outcome = salvage::Outcome {
            account: source.account.clone(),
            stream: source.name.clone(),
            path: target,
            result,
        };
        if tell(source, &outcome) {
            exit = exit.worse(Exit::Found);
        }
    }
    Ok(ctx.close_written(opened, exit))
}

fn line(ctx: &mut Context<'_>, o: &Outcome) -> Result<(), Failure> {
    let name = render::safe(&o.stream);
    match &o.result {
        Ok(Archived {
            written: w,
            consumers,
            ..
        }) => writeln!(
            ctx.out,
            "{name}: {}, {}: {} uncompressed, {} compressed, in {}",
            render::number_of(w.messages, "message"),
            render::number_of(*consumers as u64, "consumer"),
            render::bytes(w.raw),
            render::bytes(w.compressed),
            render::took(o.time)
        )?,
        Err(refusal) => ctx.monitor.warn(&format!(
            "{name}: not backed up: {}",
            refusal.reason("archives")
        )),
    }
    Ok(())
}

fn total(ctx: &mut Context<'_>, outcomes: &[Outcome], time: Duration) -> Result<(), Failure> {
    let done: Vec<&Written> = outcomes
        .iter()
        .filter_map(|o| o.result.as_ref().ok().map(|a| &a.written))
        .collect();
    let sum = |of: fn(&Written) -> u64| done.iter().map(|w| of(w)).sum::<u64>();
    writeln!(
        ctx.out,
        "Backed up {} of {}: {}, {} uncompressed, {} compressed, in {}",
        done.len(),
        render::number_of(outcomes.len() as u64, "stream"),
        render::number_of(sum(|w| w.messages), "message"),
        render::bytes(sum(|w| w.raw)),
        render::bytes(sum(|w| w.compressed)),
        render::took(time)
    )?;
    Ok(())
}

fn as_json(o: &Outcome) -> Value {
    let v = json!({
        "account": o.account,
        "stream": o.stream,
        "path": text(&o.path),
    });
    let more = match &o.result {
        Ok(Archived {
            written: w,
            consumers,
            ..
        }) => json!({
            "messages": w.messages,
            "consumers": consumers,
            "bytes": w.raw,
            "compressed_bytes": w.compressed,
            "seconds": o.time.as_secs_f64(),
            "errors": w.findings.len(),
        }),
        Err(refusal) => json!({ "error": refusal.reason("archives") }),
    };
    render::joined(v, more)
}
