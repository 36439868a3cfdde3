//! `jetsam config backup` and `jetsam config show`: configurations of streams and consumers, without messages.

use super::backup::{DIR_MODE, require_free, require_outside};
use super::{Context, Exit, Failure, Opened, exit_for, info, render, warn_of};
use crate::finding::{Code, Finding, Severity};
use crate::format::cli_json::indented;
use crate::format::config_backup::{self, ConfigBackup, Configuration};
use crate::format::meta::MetaInf;
use crate::sink::outgoing::{is_plain_name, sanitise};
use crate::sink::staged::{StagedDir, parent, write_synced};
use crate::source::config_dir::{ConfiguredConsumer, ConfiguredStream};
use crate::source::{Role, SourceKind, text};
use crate::stream::{Stream, Want};
use crate::time;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// The configurations in a source.
struct Configs {
    streams: Vec<ConfiguredStream>,
    /// What is wrong with these; of everything else in the source nothing is said.
    findings: Vec<Finding>,
    encrypted: bool,
    opened: Opened,
}

/// Whether a finding says anything about configurations. Blocks are not looked at here, their indexes are.
fn concerns(f: &Finding) -> bool {
    let other = matches!(f.code, Code::IndexDamaged | Code::ConsumerState);
    f.severity == Severity::Error && !other
}

/// Reads the selected configurations of any source.
fn read(ctx: &mut Context<'_>, path: &Path) -> Result<Configs, Failure> {
    ctx.open.configurations = true;
    let mut configs = read_source(ctx, path)?;
    let selected = |f: &Finding| {
        let account = f.account.as_deref().unwrap_or_default();
        let stream = f.stream.as_deref();
        stream.is_none_or(|s| ctx.selector.stream(account, s))
            && f.consumer
                .as_deref()
                .is_none_or(|c| ctx.selector.consumer(c))
    };
    configs.findings.retain(selected);
    for s in &mut configs.streams {
        s.consumers.retain(|c| ctx.selector.consumer(&c.name));
    }
    Ok(configs)
}

fn read_source(ctx: &Context<'_>, path: &Path) -> Result<Configs, Failure> {
    let opened = ctx.open(path)?;
    ctx.require_match(&opened)?;
    let mut findings = opened.source.findings.clone();
    if opened.source.kind == SourceKind::Config {
        let warnings = findings.iter().filter(|f| f.severity == Severity::Warning);
        for f in warnings {
            ctx.monitor.warn(&render::finding_line(f));
        }
    }
    let (mut streams, mut encrypted) = (Vec::new(), false);
    let want = Want::CONSUMERS;
    for source in opened.streams(&ctx.selector) {
        if !matches!(source.role, Role::Stream | Role::Deleted) {
            continue;
        }
        let stream = Stream::open(source, &ctx.keys, want);
        let told = findings.len();
        findings.extend(stream.findings.iter().filter(|f| concerns(f)).cloned());
        if stream.meta.is_none() && findings.len() == told && stream.entries().is_some() {
            let detail =
                "no configuration in this source: this kind of archive has it in its backup.json";
            let f = Finding::new(Code::MetaMissing, detail);
            findings.push(f.stream(&stream.account, &stream.name));
        }
        encrypted |= stream.cipher.is_some();
        let consumers = stream.consumers.iter().filter_map(|c| {
            Some(ConfiguredConsumer {
                name: c.name.clone(),
                config: c.meta.as_ref()?.config.clone(),
            })
        });
        streams.push(ConfiguredStream {
            account: stream.account.clone(),
            name: stream.name.clone(),
            config: stream.meta.as_ref().map(|m| m.config.clone()),
            consumers: consumers.collect(),
        });
    }
    Ok(Configs {
        streams,
        findings,
        encrypted,
        opened,
    })
}

/// Runs `config show`.
pub fn show(ctx: &mut Context<'_>, path: &Path) -> Result<Exit, Failure> {
    let configs = read(ctx, path)?;
    if ctx.json {
        let all: Vec<Value> = configs.streams.iter().map(as_json).collect();
        serde_json::to_writer_pretty(&mut *ctx.out, &all).map_err(io::Error::from)?;
        writeln!(ctx.out)?;
    } else {
        for s in &configs.streams {
            human(ctx, s)?;
        }
    }
    warn_of(ctx.monitor, &configs.findings);
    let exit = exit_for(&configs.findings);
    Ok(ctx.close(&configs.opened, exit))
}

fn as_json(s: &ConfiguredStream) -> Value {
    let consumers = s.consumers.iter();
    let consumers: Vec<_> = consumers
        .map(|c| json!({ "name": c.name, "config": c.config }))
        .collect();
    let mut out = json!({ "account": s.account, "stream": s.name });
    if let Some(out) = out.as_object_mut() {
        if let Some(config) = &s.config {
            out.insert("config".into(), config.clone().into());
        }
        out.insert("consumers".into(), consumers.into());
    }
    out
}

fn human(ctx: &mut Context<'_>, s: &ConfiguredStream) -> Result<(), Failure> {
    let account = match s.account.as_str() {
        "" => String::new(),
        account => format!(" in account {}", render::safe(account)),
    };
    writeln!(ctx.out, "Stream {}{account}\n", render::safe(&s.name))?;
    let config = match &s.config {
        Some(config) => info::configuration(&MetaInf::new_stream(config.clone(), None)),
        None => "Configuration: unknown\n\n".into(),
    };
    ctx.out.write_all(config.as_bytes())?;
    if s.consumers.is_empty() {
        return Ok(());
    }
    let header = [
        "Consumer",
        "Mode",
        "Ack Policy",
        ">Ack Wait",
        "Deliver Policy",
        ">Max Deliver",
        ">Max Ack Pending",
        "Filter",
        "Description",
    ];
    let rows = s.consumers.iter().map(|c| {
        let m = MetaInf::new_consumer(c.config.clone(), None, c.name.clone());
        let value = |key: &str| m.get(key).map(info::short).unwrap_or_default();
        let ack_wait = m.get("ack_wait").and_then(Value::as_i64).unwrap_or(0);
        let start = [value("opt_start_seq"), value("opt_start_time")].concat();
        let limit = |key: &str| match value(key).as_str() {
            "-1" => "unlimited".to_owned(),
            n => n.to_owned(),
        };
        vec![
            c.name.clone(),
            match value("deliver_subject").as_str() {
                "" => "pull".into(),
                subject => format!("push to {subject}"),
            },
            m.ack_policy().to_owned(),
            match ack_wait {
                0 => String::new(),
                ns => info::duration(ns),
            },
            [m.deliver_policy(), &start].join(" ").trim_end().to_owned(),
            limit("max_deliver"),
            limit("max_ack_pending"),
            m.filters().join(", "),
            value("description"),
        ]
    });
    let table = render::table(ctx.style, &header, rows);
    writeln!(ctx.out, "Consumers:\n\n{table}\n")?;
    Ok(())
}

/// A file to be written, and what it is of.
struct Out {
    consumer: Option<String>,
    name: String,
    bytes: Vec<u8>,
}

/// Of one stream: its own file, then those of its consumers. `None` where it must not be written.
fn files(
    ctx: &Context<'_>,
    s: &ConfiguredStream,
    findings: &[Finding],
    plain: bool,
) -> Option<Vec<Out>> {
    let wrong = |consumer: Option<&str>| {
        let of = |f: &&Finding| {
            f.severity == Severity::Error
                && f.stream.as_deref() == Some(&s.name)
                && f.account.as_deref().unwrap_or_default() == s.account
                && f.consumer.as_deref() == consumer
        };
        let code = findings.iter().find(of)?.code;
        Some(match code {
            Code::KeyMissing | Code::KeyWrong => "a key is missing or wrong",
            _ => "it cannot be proven; `jetsam config show` shows what can be read",
        })
    };
    let refuse = |whose: &str, why: &str| {
        let message = format!("{}: not backed up: {why}", render::safe(whose));
        ctx.monitor.warn(&message);
    };
    let named = |config: &&Map<String, Value>| config.get("name") == Some(&s.name.clone().into());
    let config = match (wrong(None), s.config.as_ref().filter(named)) {
        (None, Some(config)) => config,
        (why, _) => {
            let why = why.unwrap_or("its configuration is missing, or another's");
            refuse(&format!("stream {}", s.name), why);
            return None;
        }
    };
    let time = time::now();
    let time = time::rfc3339(time - time.rem_euclid(1_000_000_000));
    let make = |configuration: Configuration, mut meta: MetaInf, whose: String| {
        let mut lost = Vec::new();
        let file_name = configuration.file_name();
        let bytes = if plain {
            sanitise(&mut meta, &whose, &mut lost);
            let mut text = indented(&meta.config.into());
            text.push(b'\n');
            text
        } else {
            lost = not_in_form(&configuration, &meta.config, &whose);
            config_backup::encode(&ConfigBackup {
                time: time.clone(),
                configuration,
            })
        };
        for key in lost {
            let why = if plain {
                "servers refuse it"
            } else {
                "the form has no place for it; --plain has"
            };
            ctx.monitor
                .warn(&format!("{}: left out, {why}", render::safe(&key)));
        }
        (file_name, bytes)
    };
    let (file_name, bytes) = make(
        Configuration::stream(config),
        MetaInf::new_stream(config.clone(), None),
        format!("stream {}", s.name),
    );
    let mut out = vec![Out {
        consumer: None,
        name: file_name,
        bytes,
    }];
    for c in &s.consumers {
        let whose = format!("consumer {} > {}", s.name, c.name);
        let meta = MetaInf::new_consumer(c.config.clone(), None, String::new());
        if let Some(why) = wrong(Some(&c.name)) {
            refuse(&whose, why);
            continue;
        }
        // The CLI left out every ephemeral one; those with a name of their own can be made again.
        if meta.name.is_none() || meta.direct() || meta.get("sourcing") == Some(&Value::Bool(true))
        {
            let why = match meta.name {
                None => "it is ephemeral",
                Some(_) => "servers make it themselves",
            };
            refuse(&whose, why);
            continue;
        }
        let configuration = Configuration::consumer(&s.name, &c.name, &c.config);
        let (name, bytes) = make(configuration, meta, whose);
        out.push(Out {
            consumer: Some(c.name.clone()),
            name,
            bytes,
        });
    }
    Some(out)
}

/// The keys that are set and that the checksummed form drops: it is that of a certain time.
fn not_in_form(made: &Configuration, config: &Map<String, Value>, whose: &str) -> Vec<String> {
    let kept = match made {
        Configuration::Stream(map) => Some(map),
        Configuration::Consumer(map) | Configuration::Template(map) => {
            map.get("config").and_then(Value::as_object)
        }
    };
    let is_set = |v: &Value| match v {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !matches!(s.as_str(), "" | "none" | "default" | time::ZERO),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    };
    let lost = |key: &String| kept.is_none_or(|kept| !kept.contains_key(key));
    let config = config.iter();
    config
        .filter(|(key, value)| is_set(value) && lost(key))
        .map(|(key, _)| format!("{whose}: {key}"))
        .collect()
}

/// Runs `config backup`.
pub fn backup(
    ctx: &mut Context<'_>,
    path: &Path,
    dest: &Path,
    plain: bool,
) -> Result<Exit, Failure> {
    let configs = read(ctx, path)?;
    require_outside(path, dest)?;
    require_free(dest, 0)?;
    if configs.streams.is_empty() && configs.findings.is_empty() {
        return Err(Failure::Usage(format!("{}: no stream", path.display())));
    }
    warn_of(ctx.monitor, &configs.findings);
    let exit = exit_for(&configs.findings);
    let accounts: BTreeSet<&str> = configs.streams.iter().map(|s| s.account.as_str()).collect();
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for s in &configs.streams {
        let Some(files) = files(ctx, s, &configs.findings, plain) else {
            continue;
        };
        let base = if accounts.len() > 1 {
            PathBuf::from(&s.account)
        } else {
            PathBuf::new()
        };
        require_names(s, &files, accounts.len() > 1)?;
        for f in &files {
            if !seen.insert(base.join(&f.name)) {
                return Err(Failure::Usage(format!(
                    "{}: two configurations would be in this file; choose one with -s and -c; nothing was written",
                    render::safe(&f.name)
                )));
            }
        }
        all.push((s, base, files));
    }
    if ctx.close(&configs.opened, Exit::Clean) == Exit::InUse {
        return Ok(Exit::InUse);
    }
    if all.is_empty() {
        if ctx.json {
            writeln!(ctx.out, "[]")?;
        }
        // Nothing was there to be taken, so nothing is left.
        return Ok(exit.worse(Exit::Found));
    }
    if ctx.stop.load(Ordering::Relaxed) {
        return Ok(Exit::Interrupted);
    }
    write(dest, &all).map_err(|(path, e)| {
        Failure::Usage(format!("{}: {e}; nothing was written", path.display()))
    })?;
    if configs.encrypted {
        ctx.monitor
            .warn("the source is encrypted; the configurations are written in plaintext");
    }
    tell(ctx, dest, &all)?;
    Ok(exit)
}

/// Fails where a name cannot be part of a file's.
fn require_names(s: &ConfiguredStream, files: &[Out], account: bool) -> Result<(), Failure> {
    let refused = |what: String| {
        Err(Failure::Usage(format!(
            "{what} cannot be part of a file's name; choose others with -a, -s and -c; nothing was written"
        )))
    };
    let fit = |name: &str| is_plain_name(name) && !name.contains(char::is_control);
    if account && !fit(&s.account) {
        return refused(format!("the name of account {:?}", s.account));
    }
    for f in files {
        match &f.consumer {
            Some(c) if !fit(&f.name) => {
                return refused(format!("the name of consumer {c:?} of stream {:?}", s.name));
            }
            None if !fit(&f.name) => return refused(format!("the name of stream {:?}", s.name)),
            _ => {}
        }
    }
    Ok(())
}

type Planned<'s> = (&'s ConfiguredStream, PathBuf, Vec<Out>);

/// Writes all of it or nothing.
fn write(dest: &Path, all: &[Planned<'_>]) -> Result<(), (PathBuf, io::Error)> {
    let parent = parent(dest);
    let staged = StagedDir::new(parent, DIR_MODE).map_err(|e| (parent.to_owned(), e))?;
    for (_, base, files) in all {
        let dir = staged.path().join(base);
        fs::create_dir_all(&dir).map_err(|e| (dest.join(base), e))?;
        for f in files {
            write_synced(&dir.join(&f.name), &f.bytes)
                .map_err(|e| (dest.join(base).join(&f.name), e))?;
        }
    }
    staged.commit(dest).map_err(|e| (dest.to_owned(), e))
}

fn tell(ctx: &mut Context<'_>, dest: &Path, all: &[Planned<'_>]) -> Result<(), Failure> {
    if ctx.json {
        let all: Vec<Value> = all.iter().map(|planned| written(dest, planned)).collect();
        serde_json::to_writer_pretty(&mut *ctx.out, &all).map_err(io::Error::from)?;
        writeln!(ctx.out)?;
        return Ok(());
    }
    let mut consumers = 0u64;
    for (s, base, files) in all {
        for f in files {
            let what = match &f.consumer {
                Some(c) => format!("Consumer {} > {c}", s.name),
                None => format!("Stream {}", s.name),
            };
            consumers += u64::from(f.consumer.is_some());
            let path = dest.join(base).join(&f.name);
            let (what, path) = (render::safe(&what), render::safe(&text(&path)));
            writeln!(ctx.out, "{what} to {path}")?;
        }
    }
    writeln!(
        ctx.out,
        "Configuration of {} and {} backed up",
        render::number_of(all.len() as u64, "stream"),
        render::number_of(consumers, "consumer")
    )?;
    Ok(())
}

fn written(dest: &Path, (s, base, files): &Planned<'_>) -> Value {
    let path = |f: &Out| text(&dest.join(base).join(&f.name));
    let consumers = files.iter().filter_map(|f| {
        let name = f.consumer.as_ref()?;
        Some(json!({ "name": name, "path": path(f) }))
    });
    json!({
        "account": s.account,
        "stream": s.name,
        "path": files.first().map(path),
        "consumers": consumers.collect::<Vec<_>>(),
    })
}
