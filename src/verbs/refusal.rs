//! Why a verb that writes did not write a stream, and what it asks of each before it does.

use super::info::Described;
use super::metrics::Metrics;
use super::{Context, Exit, Opened, render, warn_of};
use crate::finding::{Code, Finding, Severity};
use crate::sink::outgoing::Outgoing;
use crate::sink::{SinkError, Written};
use crate::source::StreamSource;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Why a stream was not written. Nothing is left of it.
#[derive(Debug)]
pub enum Refusal {
    /// The source is damaged.
    Damaged(Vec<Finding>),
    /// A key is missing or wrong.
    Key(Vec<Finding>),
    /// A server runs on the source or on the destination.
    InUse(String),
    /// Anything else.
    Failed(String),
    /// The user has stopped it.
    Interrupted,
}

impl From<SinkError> for Refusal {
    fn from(e: SinkError) -> Self {
        match e {
            SinkError::Damaged { findings, .. } => Self::Damaged(findings),
            SinkError::Interrupted => Self::Interrupted,
            e => Self::Failed(e.to_string()),
        }
    }
}

impl Refusal {
    /// An error of the operating system, with the path it is about.
    pub fn io(e: &io::Error, path: &Path) -> Self {
        Self::Failed(format!("{}: {e}", path.display()))
    }

    /// The exit status that it amounts to.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Damaged(_) => Exit::Found,
            Self::Key(_) => Exit::Key,
            Self::InUse(_) => Exit::InUse,
            Self::Failed(_) => Exit::Failed,
            Self::Interrupted => Exit::Interrupted,
        }
    }

    /// In words; `does` is what `--salvage` makes the verb do.
    pub fn reason(&self, does: &str) -> String {
        match self {
            Self::Damaged(findings) => {
                let errors = findings.iter().filter(|f| f.severity == Severity::Error);
                format!(
                    "the source is damaged ({}): refused; `jetsam check` lists the damage, --salvage {does} what can be proven",
                    render::number_of(errors.count() as u64, "error")
                )
            }
            Self::Key(_) => "a key is missing or wrong".into(),
            Self::InUse(why) | Self::Failed(why) => why.clone(),
            Self::Interrupted => "interrupted".into(),
        }
    }

    /// Repeats what is wrong as messages, and counts it.
    pub fn tell(&self, ctx: &Context<'_>, metrics: &mut Metrics) {
        if let Self::Damaged(findings) | Self::Key(findings) = self {
            warn_of(ctx.monitor, findings);
            metrics.count(findings);
        }
    }
}

/// Fails once the user has stopped it.
pub fn go_on(ctx: &Context<'_>) -> Result<(), Refusal> {
    if ctx.stop.load(Ordering::Relaxed) {
        Err(Refusal::Interrupted)
    } else {
        Ok(())
    }
}

/// Fails where a stream cannot be read, or is damaged and `salvage` is not wanted.
pub fn require_sound(
    ctx: &Context<'_>,
    described: &mut Described,
    salvage: bool,
) -> Result<(), Refusal> {
    let is_key = |f: &Finding| matches!(f.code, Code::KeyMissing | Code::KeyWrong);
    let findings = &mut described.findings;
    if described.stream.locked || findings.iter().any(is_key) {
        findings.retain(is_key);
        return Err(Refusal::Key(std::mem::take(findings)));
    }
    if !salvage && findings.iter().any(|f| f.severity == Severity::Error) {
        return Err(Refusal::Damaged(std::mem::take(findings)));
    }
    go_on(ctx)
}

/// Fails where a consumer cannot be written, and says what is left out of configurations.
pub fn require_consumers(ctx: &Context<'_>, out: &Outgoing<'_>) -> Result<(), Refusal> {
    if let Some(name) = out.bad_consumer() {
        return Err(Refusal::Failed(format!(
            "consumer {:?}: two of that name, or no name for a directory; --no-consumers leaves consumers out",
            render::safe(name)
        )));
    }
    for dropped in &out.dropped {
        ctx.monitor
            .warn(&format!("{dropped}: left out, servers refuse it"));
    }
    Ok(())
}

/// Counts a stream that was written, and says what was wrong with it all the same.
pub fn tell_written(ctx: &Context<'_>, metrics: &mut Metrics, written: &Written) -> Exit {
    metrics.streams += 1;
    metrics.bytes += written.compressed;
    metrics.count(&written.findings);
    warn_of(ctx.monitor, &written.findings);
    if written.findings.is_empty() {
        Exit::Clean
    } else {
        Exit::Found
    }
}

/// Fails where something has written to the source since it was opened.
pub fn require_unchanged(
    ctx: &Context<'_>,
    opened: &Opened,
    stream: &StreamSource,
    before: Option<u64>,
) -> Result<(), Refusal> {
    if opened.changed_since(stream, before, &ctx.threads) && !ctx.live {
        let why = "the source changed while it was read: a server is running on it";
        return Err(Refusal::InUse(why.into()));
    }
    Ok(())
}
