//! The command line: arguments in, exit status out.

mod args;
mod progress;

use crate::format::crypt::{KeyRing, ServerKey};
use crate::pipeline::Threads;
use crate::source::OpenOptions;
use crate::source::limit::Limit;
use crate::source::select::Selector;
use crate::verbs::{self, Context, Exit, Failure, render::Style};
use args::{Cli, ConfigAction, Global, Verb, When};
use clap::{CommandFactory as _, Parser as _};
use serde_json::{Map, Value};
use std::ffi::OsStr;
use std::io::{self, BufWriter, IsTerminal as _, Read as _, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const KEY_ENV: &str = "JETSAM_KEY";
const PREV_KEY_ENV: &str = "JETSAM_PREV_KEY";
/// Ceiling for a configuration file.
const CONFIG_CEILING: u64 = 16 << 20;
/// No server key is longer.
const KEY_CEILING: u64 = 64 << 10;

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are results, everything else is a usage error.
            let code = if e.use_stderr() {
                Exit::Failed
            } else {
                Exit::Clean
            };
            let _ = e.print();
            return ExitCode::from(code as u8);
        }
    };
    let mut out = BufWriter::with_capacity(256 << 10, io::stdout());
    let result = run(cli, &mut out);
    let result = match (result, out.flush()) {
        (Ok(_), Err(e)) => Err(Failure::Output(e).into()),
        (result, _) => result,
    };
    let code = match result {
        Ok(exit) => exit,
        // `| head`: the reader has what it wanted.
        Err(Stop::Failure(Failure::Output(e))) if e.kind() == io::ErrorKind::BrokenPipe => {
            Exit::Clean
        }
        Err(stop) => {
            let _ = writeln!(io::stderr(), "jetsam: {stop}");
            stop.exit()
        }
    };
    ExitCode::from(code as u8)
}

/// Why the command ended early.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error(transparent)]
    Failure(#[from] Failure),
    #[error("{0}")]
    Key(String),
}

impl Stop {
    fn exit(&self) -> Exit {
        match self {
            Self::Failure(f) => f.exit(),
            Self::Key(_) => Exit::Key,
        }
    }
}

fn read_key(path: &Path) -> Result<ServerKey, Stop> {
    let failed = |why: String| Stop::Key(format!("key file {}: {why}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| failed(e.to_string()))?;
    let mut key = Vec::new();
    file.take(KEY_CEILING + 1)
        .read_to_end(&mut key)
        .map_err(|e| failed(e.to_string()))?;
    if key.len() as u64 > KEY_CEILING {
        return Err(failed(format!("over {KEY_CEILING} bytes: not a key")));
    }
    if key.last() == Some(&b'\n') {
        key.pop();
        if key.last() == Some(&b'\r') {
            key.pop();
        }
    }
    if key.is_empty() {
        return Err(failed("empty".into()));
    }
    Ok(ServerKey::new(key))
}

fn key(file: Option<&Path>, env: Option<&str>, default: &str) -> Result<Option<ServerKey>, Stop> {
    use std::os::unix::ffi::OsStringExt as _;
    if let Some(file) = file {
        return read_key(file).map(Some);
    }
    let value =
        std::env::var_os(env.unwrap_or(default)).filter(|v| v.as_os_str() != OsStr::new(""));
    match (value, env) {
        (Some(v), _) => Ok(Some(ServerKey::new(v.into_vec()))),
        (None, Some(name)) => Err(Stop::Key(format!(
            "the environment variable {name} is not set"
        ))),
        (None, None) => Ok(None),
    }
}

fn style(global: &Global) -> Style {
    let color = match global.color {
        When::Always => true,
        When::Never => false,
        When::Auto => {
            io::stdout().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
                && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
        }
    };
    Style { color, width: 0 }
}

fn run(cli: Cli, out: &mut (dyn Write + Send)) -> Result<Exit, Stop> {
    let g = cli.global;
    match &cli.verb {
        Verb::Completions { shell } => {
            // The generator panics on a write error, so it gets memory to write to.
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "jetsam", &mut text);
            out.write_all(&text).map_err(Failure::Output)?;
            return Ok(Exit::Clean);
        }
        Verb::Man { verb } => {
            man(verb.as_deref(), out)?;
            return Ok(Exit::Clean);
        }
        _ => {}
    }
    let measured = matches!(
        cli.verb,
        Verb::Backup(_) | Verb::Check(_) | Verb::Restore(_) | Verb::Salvage(_)
    );
    if g.metrics.is_some() && !measured {
        return Err(
            Failure::Usage("--metrics is for backup, check, restore and salvage".into()).into(),
        );
    }
    let keys = KeyRing {
        current: key(g.key_file.as_deref(), g.key_env.as_deref(), KEY_ENV)?,
        previous: key(
            g.prev_key_file.as_deref(),
            g.prev_key_env.as_deref(),
            PREV_KEY_ENV,
        )?,
    };
    let threads = Threads::new(g.threads).map_err(|e| Failure::Usage(format!("threads: {e}")))?;
    let monitor = progress::Stderr::new(g.no_progress, g.quiet);
    let style = style(&g);
    let stop: Arc<AtomicBool> = Arc::default();
    let limit = g
        .io_limit
        .map(|rate| Arc::new(Limit::new(rate, stop.clone())));
    let mut ctx = Context {
        threads,
        keys,
        selector: Selector {
            accounts: g.accounts,
            streams: g.streams,
            consumers: g.consumers,
        },
        open: OpenOptions {
            mmap: g.mmap,
            limit,
            ..OpenOptions::default()
        },
        live: g.live,
        json: g.json,
        style,
        metrics: g.metrics,
        stop,
        out,
        monitor: &monitor,
    };
    let ctx = &mut ctx;
    let exit = match cli.verb {
        Verb::Ls {
            source,
            consumers,
            raft,
        } => verbs::ls::run(ctx, &source, &verbs::ls::Options { consumers, raft }),
        Verb::Info {
            source,
            deleted,
            subjects,
        } => verbs::info::run(ctx, &source, &verbs::info::Options { deleted, subjects }),
        Verb::View(v) => {
            let output = match (v.raw, v.out_dir) {
                (true, _) => verbs::view::Output::Raw,
                (false, Some(dir)) => verbs::view::Output::Dir(dir),
                (false, None) => verbs::view::Output::Human,
            };
            let options = verbs::view::Options {
                subjects: v.subjects,
                seq: v.seq,
                since: v.since,
                until: v.until,
                headers: v.headers,
                last_per_subject: v.last_per_subject,
                limit: v.limit,
                reverse: v.reverse,
                deleted: v.deleted,
                output,
            };
            verbs::view::run(ctx, &v.source, &options)
        }
        Verb::Inspect {
            files,
            hexdump,
            block,
        } => verbs::inspect::run(ctx, &files, &verbs::inspect::Options { hexdump, block }),
        Verb::Check(c) => {
            if c.state.is_some() {
                stop_on_signals(&ctx.stop)?;
            }
            let options = verbs::check::Options {
                choice: c.choice(),
                state: c.state,
            };
            verbs::check::run(ctx, &c.sources, &options)
        }
        Verb::Diff { a, b } => verbs::diff::run(ctx, &a, &b, &verbs::diff::Options {}),
        Verb::Backup(b) => {
            stop_on_signals(&ctx.stop)?;
            let options = verbs::backup::Options {
                format: b.format.into(),
                no_consumers: b.no_consumers,
                salvage: b.salvage.then(Default::default),
            };
            verbs::backup::run(ctx, &b.source, &b.dest, &options)
        }
        Verb::Restore(r) => {
            stop_on_signals(&ctx.stop)?;
            let out_key = out_key(&r.out, ctx)?;
            let options = verbs::restore::Options {
                to_account: r.to_account,
                rename: r.rename,
                replicas: r.replicas,
                config: r.config.as_deref().map(stream_config).transpose()?,
                no_consumers: r.no_consumers,
                replace: r.replace,
                max_file: r.max_file,
                dry_run: r.dry_run,
                salvage: r.salvage.then(Default::default),
                out_key,
                out_cipher: r.out.out_cipher.map(Into::into),
                decrypt: r.out.decrypt,
            };
            verbs::restore::run(ctx, &r.source, &r.dest, &options)
        }
        Verb::Salvage(s) => {
            stop_on_signals(&ctx.stop)?;
            let store = verbs::restore::Options {
                config: s.config.as_deref().map(stream_config).transpose()?,
                no_consumers: s.no_consumers,
                out_key: out_key(&s.out, ctx)?,
                out_cipher: s.out.out_cipher.map(Into::into),
                decrypt: s.out.decrypt,
                ..verbs::restore::Options::default()
            };
            let options = verbs::salvage::Options {
                format: s.format.map(Into::into),
                how: verbs::salvage::How {
                    seconds: s.effort,
                    unproven: s.unverified,
                },
                deleted: s.deleted,
                store,
            };
            verbs::salvage::run(ctx, &s.source, &s.dest, &options)
        }
        Verb::Config {
            action: ConfigAction::Show { source },
        } => verbs::config::show(ctx, &source),
        Verb::Config {
            action: ConfigAction::Backup { source, dir, plain },
        } => {
            stop_on_signals(&ctx.stop)?;
            verbs::config::backup(ctx, &source, &dir, plain)
        }
        Verb::Completions { .. } | Verb::Man { .. } => Ok(Exit::Clean),
    }?;
    Ok(exit)
}

/// The key for a store that is written.
fn out_key(out: &args::OutKey, ctx: &Context<'_>) -> Result<Option<ServerKey>, Stop> {
    let found = match (&out.out_key_file, &out.out_key_env) {
        (None, None) => None,
        (file, env) => key(file.as_deref(), env.as_deref(), "")?,
    };
    if out.out_cipher.is_some() && found.is_none() && ctx.keys.is_empty() {
        let why = "--out-cipher needs --out-key-file or --out-key-env";
        return Err(Failure::Usage(why.into()).into());
    }
    Ok(found)
}

/// A stream's configuration from a file: a StreamConfig, or an object that has one as `config`, as
/// `nats stream info --json` and `backup.json` do.
fn stream_config(path: &Path) -> Result<Map<String, Value>, Stop> {
    let failed = |why: String| Stop::Failure(Failure::Usage(format!("{}: {why}", path.display())));
    let file = std::fs::File::open(path).map_err(|e| failed(e.to_string()))?;
    let mut bytes = Vec::new();
    file.take(CONFIG_CEILING)
        .read_to_end(&mut bytes)
        .map_err(|e| failed(e.to_string()))?;
    let mut config: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))?;
    if let Some(Value::Object(inner)) = config.remove("config") {
        config = inner;
    }
    Ok(config)
}

/// Interrupted, a verb that writes cleans up and ends; interrupted again, it ends at once.
fn stop_on_signals(stop: &Arc<AtomicBool>) -> Result<(), Stop> {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
    // A file over the limit is then an error of the write, which is told and cleaned up after.
    signal_hook::flag::register(SIGXFSZ, Arc::default())
        .map_err(|e| Failure::Usage(format!("signals: {e}")))?;
    for signal in [SIGINT, SIGTERM] {
        let interrupted = i32::from(Exit::Interrupted as u8);
        signal_hook::flag::register_conditional_shutdown(signal, interrupted, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|e| Failure::Usage(format!("signals: {e}")))?;
    }
    Ok(())
}

fn man(verb: Option<&str>, out: &mut dyn Write) -> Result<(), Stop> {
    let mut command = Cli::command();
    command.build();
    let page = match verb {
        None => command,
        Some(name) => command
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| Failure::Usage(format!("no such verb: {name}")))?,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page)
        .render(&mut text)
        .map_err(Failure::Output)?;
    out.write_all(&text).map_err(Failure::Output)?;
    Ok(())
}
