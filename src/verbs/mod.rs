//! What the commands do. Each verb takes a [`Context`] and its own options, writes its result to
//! [`Context::out`], and says by its [`Exit`] what was found. Nothing here knows the command line.

pub mod backup;
pub mod check;
pub mod config;
pub mod diff;
pub mod info;
pub mod inspect;
pub mod ls;
pub mod metrics;
pub mod on_start;
pub mod part;
pub mod refusal;
pub mod render;
mod restorable;
pub mod restore;
pub mod resume;
pub mod salvage;
pub mod view;

use crate::finding::{Code, Finding, Severity};
use crate::format::crypt::KeyRing;
use crate::pipeline::Threads;
use crate::source::select::Selector;
use crate::source::{self, OpenError, OpenOptions, Source, StreamSource};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How a verb ended, for scripts. The numbers are part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; nothing wrong found.
    Clean = 0,
    /// Done, and damage, loss or a difference was found.
    Found = 1,
    /// Usage or I/O error.
    Failed = 2,
    /// The store is in use by a running server, or changed while it was read.
    InUse = 3,
    /// A key is missing or wrong.
    Key = 4,
    /// Interrupted.
    Interrupted = 130,
}

impl Exit {
    /// Of two, the one that says more: interrupted, failed, in use, key, found, clean.
    pub fn worse(self, other: Self) -> Self {
        let rank = |e: Self| match e {
            Self::Clean => 0,
            Self::Found => 1,
            Self::Key => 2,
            Self::InUse => 3,
            Self::Failed => 4,
            Self::Interrupted => 5,
        };
        if rank(other) > rank(self) {
            other
        } else {
            self
        }
    }
}

/// Why a verb stopped before its end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The source cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The source is in use.
    #[error("{0}")]
    InUse(String),
    /// What was asked for does not make sense or is not there.
    #[error("{0}")]
    Usage(String),
    /// The result could not be written.
    #[error("writing the result: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// The exit status.
    pub fn exit(&self) -> Exit {
        match self {
            Self::InUse(_) => Exit::InUse,
            _ => Exit::Failed,
        }
    }
}

/// Where progress and messages go: standard error, in the binary.
pub trait Monitor: Sync {
    /// A long piece of work begins; `bytes` is how much there is to read, 0 where that is not known.
    fn begin(&self, what: &str, bytes: u64);
    /// `bytes` more are done.
    fn advance(&self, bytes: u64);
    /// The work begun last is over.
    fn end(&self);
    /// Something the user should know that is not part of the result.
    fn warn(&self, message: &str);
}

/// A monitor that says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
    fn warn(&self, _: &str) {}
}

/// What every verb is given.
pub struct Context<'a> {
    /// How many threads may work.
    pub threads: Threads,
    /// Server keys.
    pub keys: KeyRing,
    /// `-a`, `-s`, `-c`.
    pub selector: Selector,
    /// How sources are opened.
    pub open: OpenOptions,
    /// Read a store that a running server has open.
    pub live: bool,
    /// Machine-readable output.
    pub json: bool,
    /// How human output looks.
    pub style: render::Style,
    /// Where to note how a run of `backup`, `check` or `restore` went.
    pub metrics: Option<PathBuf>,
    /// Set when the user wants it to stop: verbs that write clean up then.
    pub stop: Arc<AtomicBool>,
    /// Where the result goes.
    pub out: &'a mut (dyn Write + Send),
    /// Where progress and messages go.
    pub monitor: &'a dyn Monitor,
}

/// A source in the hands of a verb: notices when something writes to it meanwhile.
#[derive(Debug)]
pub struct Opened {
    /// The source.
    pub source: Source,
    fingerprint: Option<u64>,
    /// When the whole source was last looked at, how long that takes, and whether it is due.
    looked: Mutex<Looked>,
}

#[derive(Debug)]
struct Looked {
    at: Instant,
    took: Duration,
    due: bool,
}

impl Opened {
    /// The selected streams.
    pub fn streams<'s>(&'s self, selector: &'s Selector) -> impl Iterator<Item = &'s StreamSource> {
        self.source
            .streams
            .iter()
            .filter(|s| selector.stream(&s.account, &s.name))
    }

    /// The selected raft groups and unfinished batches.
    pub fn groups<'s>(&'s self, selector: &'s Selector) -> impl Iterator<Item = &'s StreamSource> {
        self.source
            .groups
            .iter()
            .filter(|s| selector.stream(&s.account, &s.name))
    }

    /// What was noticed while opening it, except what concerns streams that are not selected.
    pub fn findings<'s>(&'s self, selector: &'s Selector) -> impl Iterator<Item = &'s Finding> {
        self.source
            .findings
            .iter()
            .filter(|f| concerns(selector, f))
    }

    /// The files of a stream as they are now, for [`changed_since`](Self::changed_since).
    pub fn files_of(&self, stream: &StreamSource) -> Option<u64> {
        resume::fingerprint(&self.source, stream)
    }

    /// True when a stream's files are not as they were, or anything else in the source. All of a source with many
    /// streams is not looked at for each of them: a twentieth of the time is spent on that.
    pub fn changed_since(
        &self,
        stream: &StreamSource,
        before: Option<u64>,
        threads: &Threads,
    ) -> bool {
        if self.files_of(stream) != before {
            return true;
        }
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.at.elapsed() < looked.took.saturating_mul(20) {
            looked.due = true;
            return false;
        }
        let begun = Instant::now();
        let changed = self.changed(threads);
        *looked = Looked {
            at: Instant::now(),
            took: begun.elapsed(),
            due: false,
        };
        changed
    }

    /// Whether the last look at the whole source is not the last word.
    fn is_due(&self) -> bool {
        let looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        looked.due
    }

    /// True when the source was written to since it was opened.
    pub fn changed(&self, threads: &Threads) -> bool {
        fingerprint(&self.source, threads) != self.fingerprint
    }
}

fn fingerprint(source: &Source, threads: &Threads) -> Option<u64> {
    let tree = source.tree.as_ref()?;
    tree.fingerprint(Path::new(""), threads)
}

impl Context<'_> {
    /// Opens a source. One that a running server has open is refused, unless asked for.
    pub fn open(&self, path: &Path) -> Result<Opened, Failure> {
        if let Some(user) = source::in_use::find_user(path) {
            let message = format!("{}: in use by {user}", path.display());
            if !self.live {
                return Err(Failure::InUse(format!(
                    "{message}; stop it, read a snapshot of the disk, or use --live to read all the same"
                )));
            }
            self.monitor.warn(&format!(
                "{message}; reading all the same: what is shown may be torn"
            ));
        }
        let mut options = self.open.clone();
        options.account = options.account.or_else(|| self.selector.exact_account());
        options.stream = options.stream.or_else(|| self.selector.exact_stream());
        let source = source::open(path, &options)?;
        let begun = Instant::now();
        let fingerprint = fingerprint(&source, &self.threads);
        let looked = Looked {
            at: begun,
            took: begun.elapsed(),
            due: false,
        };
        Ok(Opened {
            source,
            fingerprint,
            looked: looked.into(),
        })
    }

    /// Ends a verb that has written stream by stream and looked at each: the rest of the source has to be as it was, too.
    pub fn close_written(&self, opened: &Opened, exit: Exit) -> Exit {
        if opened.is_due() {
            exit.worse(self.close(opened, Exit::Clean))
        } else {
            exit
        }
    }

    /// Ends a reading verb: a source that changed meanwhile overrules what was found.
    pub fn close(&self, opened: &Opened, exit: Exit) -> Exit {
        if !opened.changed(&self.threads) {
            return exit;
        }
        self.monitor.warn(&format!(
            "{}: changed while it was read: a server is running on it; the result may be wrong",
            opened.source.path.display()
        ));
        if self.live { exit } else { Exit::InUse }
    }

    /// Fails where `-s`, `-a` select nothing although the source has streams.
    pub fn require_match(&self, opened: &Opened) -> Result<(), Failure> {
        let asked = !self.selector.streams.is_empty() || !self.selector.accounts.is_empty();
        if asked
            && opened.streams(&self.selector).next().is_none()
            && opened.groups(&self.selector).next().is_none()
        {
            return Err(Failure::Usage(format!(
                "{}: no stream matches the given -a/-s",
                opened.source.path.display()
            )));
        }
        Ok(())
    }
}

/// Whether a finding is about something selected. One that names no stream always is.
pub fn concerns(selector: &Selector, f: &Finding) -> bool {
    f.stream
        .as_deref()
        .is_none_or(|s| selector.stream(f.account.as_deref().unwrap_or_default(), s))
}

/// The exit status that findings amount to.
pub fn exit_for(findings: &[Finding]) -> Exit {
    let is_key = |f: &&Finding| matches!(f.code, Code::KeyMissing | Code::KeyWrong);
    if findings.iter().any(|f| is_key(&f)) {
        return Exit::Key;
    }
    if findings.iter().any(|f| f.severity == Severity::Error) {
        return Exit::Found;
    }
    Exit::Clean
}

/// Repeats errors among `findings` as messages, and warnings about what belongs to no stream (an
/// account directory that is a link): for verbs whose result has no place for them.
pub fn warn_of(monitor: &dyn Monitor, findings: &[Finding]) {
    const LISTED: usize = 20;
    let errors: Vec<&Finding> = findings
        .iter()
        .filter(|f| {
            f.severity >= Severity::Error || (f.severity == Severity::Warning && f.stream.is_none())
        })
        .collect();
    for f in errors.iter().take(LISTED) {
        monitor.warn(&render::finding_line(f));
    }
    if errors.len() > LISTED {
        monitor.warn(&format!(
            "{} more problems; `jetsam check` lists all",
            errors.len() - LISTED
        ));
    }
}
