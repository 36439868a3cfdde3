//! `jetsam ls`: the streams of a source, a line each.

use super::info::{Described, cipher_name, compression_name, describe_all};
use super::{Context, Exit, Failure, exit_for, render, warn_of};
use crate::finding::{Finding, Severity};
use crate::pipeline::Threads;
use crate::source::{Role, StreamSource, text};
use crate::state::consumers::position;
use crate::stream::Want;
use serde_json::{Value, json};
use std::path::Path;

/// What to list besides streams.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Consumers.
    pub consumers: bool,
    /// Raft groups and batches.
    pub raft: bool,
}

/// Runs the verb.
pub fn run(ctx: &mut Context<'_>, path: &Path, options: &Options) -> Result<Exit, Failure> {
    let opened = ctx.open(path)?;
    ctx.require_match(&opened)?;
    let selector = ctx.selector.clone();
    let mut findings: Vec<Finding> = opened.findings(&selector).cloned().collect();
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    let groups = opened.groups(&selector).filter(|_| options.raft);
    let sources: Vec<&StreamSource> = opened.streams(&selector).chain(groups).collect();
    let json = ctx.json;
    let want = Want {
        subjects: false,
        consumers: options.consumers || json,
    };
    let show = |d: Described, _: &Threads| {
        let shown = if json {
            (Some(line(&d, options)), Vec::new())
        } else {
            (None, rows_of(&d, options))
        };
        (shown, d.findings)
    };
    describe_all(
        ctx,
        &sources,
        want,
        false,
        show,
        |_, ((line, mut more), mut found)| {
            lines.extend(line);
            rows.append(&mut more);
            findings.append(&mut found);
            Ok(())
        },
    )?;
    if ctx.json {
        serde_json::to_writer_pretty(&mut *ctx.out, &lines).map_err(std::io::Error::from)?;
        ctx.out.write_all(b"\n")?;
    } else if rows.is_empty() {
        writeln!(ctx.out, "No streams")?;
    } else {
        let header = [
            "Account",
            "Stream",
            ">Messages",
            ">Size",
            ">First",
            ">Last",
            "Last Message",
            ">Consumers",
            "Stored As",
            "Problems",
        ];
        writeln!(ctx.out, "{}", render::table(ctx.style, &header, rows))?;
        if options.consumers {
            writeln!(
                ctx.out,
                "\nConsumers (>): messages not delivered yet; First = ack floor, Last = delivered"
            )?;
        }
    }
    warn_of(ctx.monitor, &findings);
    Ok(ctx.close(&opened, exit_for(&findings)))
}

/// Errors and warnings of a stream.
fn problems(d: &Described) -> (u64, u64) {
    let of = |severity| d.findings.iter().filter(|f| f.severity == severity).count() as u64;
    (of(Severity::Error), of(Severity::Warning))
}

fn line(d: &Described, options: &Options) -> Value {
    let s = &d.stream;
    let (errors, warnings) = problems(d);
    let mut line = json!({
        "account": s.account,
        "stream": s.name,
        "path": text(&s.path),
        "messages": d.state.msgs,
        "bytes": d.state.bytes,
        "first_seq": d.state.first_seq,
        "last_seq": d.state.last_seq,
        "consumers": s.consumers.len(),
        "blocks": s.blocks.len(),
        "cipher": cipher_name(s),
        "compression": compression_name(s),
    });
    if let Some(map) = line.as_object_mut() {
        if d.state.last_ts != 0 {
            map.insert(
                "last_ts".into(),
                json!(crate::time::rfc3339(d.state.last_ts)),
            );
        }
        if options.consumers {
            let names: Vec<_> = s.consumers.iter().map(|c| json!(c.name)).collect();
            map.insert("consumer_names".into(), json!(names));
        }
        map.insert("problems".into(), json!(errors + warnings));
    }
    line
}

/// The stream's row, and those of its consumers.
fn rows_of(d: &Described, options: &Options) -> Vec<Vec<String>> {
    let s = &d.stream;
    let (errors, warnings) = problems(d);
    let problems = match (errors, warnings) {
        (0, 0) => String::new(),
        (0, w) => render::number_of(w, "warning"),
        (e, 0) => render::number_of(e, "error"),
        (e, w) => format!(
            "{}, {}",
            render::number_of(e, "error"),
            render::number_of(w, "warning")
        ),
    };
    let kind = match s.role {
        Role::Stream => "",
        Role::RaftGroup => "raft group",
        Role::Batch => "unfinished batch",
        Role::Deleted => "being deleted",
    };
    let mut form = vec![cipher_name(s), compression_name(s), kind];
    form.retain(|f| !f.is_empty() && *f != "none");
    let mut rows = vec![vec![
        s.account.clone(),
        s.name.clone(),
        render::count(d.state.msgs),
        render::bytes(d.state.bytes),
        d.state.first_seq.to_string(),
        d.state.last_seq.to_string(),
        render::time(d.state.last_ts),
        count_consumers(s).to_string(),
        form.join(", "),
        problems,
    ]];
    if options.consumers {
        for (c, pending) in s.consumers.iter().zip(&d.pending) {
            let at = position(c, &d.state);
            rows.push(vec![
                String::new(),
                format!("> {}", c.name),
                render::count(*pending),
                String::new(),
                at.ack_floor.stream.to_string(),
                at.delivered.stream.to_string(),
                String::new(),
                String::new(),
                c.meta
                    .as_ref()
                    .map(|m| m.filters().join(", "))
                    .unwrap_or_default(),
                String::new(),
            ]);
        }
    }
    rows
}

/// Consumers on disk, without opening them.
fn count_consumers(stream: &crate::stream::Stream) -> usize {
    if !stream.consumers.is_empty() {
        return stream.consumers.len();
    }
    match stream.tree() {
        Some((tree, dir)) => tree
            .children(&dir.join("obs"))
            .unwrap_or_default()
            .iter()
            .filter(|c| c.kind == crate::source::tree::ChildKind::Dir)
            .count(),
        None => stream.entries().map_or(0, |v2| v2.consumers().len()),
    }
}
