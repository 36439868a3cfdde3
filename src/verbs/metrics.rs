//! `--metrics FILE`: how the last run went, for the textfile collector of Prometheus's node_exporter.
//!
//! The file is written under another name and renamed, so that a scrape never sees half of it, and whether
//! the run went well or not: a run that fails must not leave the numbers of the last good one.

use super::backup::require_outside;
use super::{Context, Exit, Failure};
use crate::finding::{Finding, Severity};
use crate::sink::staged::{PREFIX, write_synced};
use crate::source::text;
use crate::time;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// What one run did.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// The verb.
    pub verb: &'static str,
    /// The source, or the sources with spaces between them.
    pub source: String,
    /// Exit status 0.
    pub success: bool,
    /// How long it took.
    pub duration: Duration,
    /// Bytes of files read, or written where the verb writes.
    pub bytes: u64,
    /// Streams read or written.
    pub streams: u64,
    /// Errors and warnings among the findings.
    pub findings: u64,
}

/// A label's value as the text format wants it.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out
}

impl Metrics {
    /// Runs a verb and notes how it went in the file that `--metrics` names, if it does.
    pub fn around(
        verb: &'static str,
        ctx: &mut Context<'_>,
        sources: &[&Path],
        run: impl FnOnce(&mut Context<'_>, &mut Self) -> Result<Exit, Failure>,
    ) -> Result<Exit, Failure> {
        let file = ctx.metrics.clone();
        if let Some(file) = &file {
            for source in sources {
                require_outside(source, file)?;
            }
        }
        let names: Vec<String> = sources.iter().map(|s| text(s)).collect();
        let mut metrics = Self {
            verb,
            source: names.join(" "),
            ..Self::default()
        };
        let started = Instant::now();
        let result = run(ctx, &mut metrics);
        metrics.duration = started.elapsed();
        metrics.success = matches!(result, Ok(Exit::Clean));
        let Some(file) = file else { return result };
        match (metrics.write(&file), result) {
            (Ok(()), result) => result,
            (Err(e), result) => {
                ctx.monitor
                    .warn(&format!("metrics file {}: {e}", file.display()));
                result.map(|exit| exit.worse(Exit::Failed))
            }
        }
    }

    /// Adds findings to the count.
    pub fn count(&mut self, findings: &[Finding]) {
        let counted = findings.iter().filter(|f| f.severity > Severity::Note);
        self.findings = self.findings.saturating_add(counted.count() as u64);
    }

    /// The file's content. `end` is the time at which the run ended, ns since the epoch.
    pub fn text(&self, end: i64) -> String {
        let labels = format!(
            "{{verb=\"{}\",source=\"{}\"}}",
            escaped(self.verb),
            escaped(&self.source)
        );
        let mut out = String::new();
        // The help texts are the same in every file: node_exporter refuses two for one name.
        for (name, help, value) in [
            (
                "success",
                "Whether the last run ended with exit status 0: done, and nothing wrong found.",
                u64::from(self.success).to_string(),
            ),
            (
                "duration_seconds",
                "How long the last run took.",
                self.duration.as_secs_f64().to_string(),
            ),
            (
                "bytes",
                "Bytes of files that the last run read, or wrote if its verb writes.",
                self.bytes.to_string(),
            ),
            (
                "streams",
                "Streams that the last run read, or wrote if its verb writes.",
                self.streams.to_string(),
            ),
            (
                "findings",
                "Errors and warnings that the last run found.",
                self.findings.to_string(),
            ),
            (
                "end_time_seconds",
                "When the last run ended, seconds since the epoch.",
                end.div_euclid(1_000_000_000).to_string(),
            ),
        ] {
            let name = format!("jetsam_last_run_{name}");
            out.push_str(&format!(
                "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{labels} {value}\n"
            ));
        }
        out
    }

    /// Writes the file, whole or not at all.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        // The collector reads `*.prom` only.
        let mut temporary = OsString::from(format!("{PREFIX}{}-", std::process::id()));
        temporary.push(name);
        temporary.push(".tmp");
        let temporary = path.with_file_name(temporary);
        let written = write_synced(&temporary, self.text(time::now()).as_bytes())
            .and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let metrics = Metrics {
            verb: "check",
            source: "a\\b \"c\"\nd".into(),
            duration: Duration::from_millis(1500),
            ..Metrics::default()
        };
        let text = metrics.text(1_763_685_393_999_999_999);
        let labels = r#"{verb="check",source="a\\b \"c\"\nd"}"#;
        let samples: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
        let want = [
            "success",
            "duration_seconds",
            "bytes",
            "streams",
            "findings",
            "end_time_seconds",
        ]
        .into_iter()
        .zip(["0", "1.5", "0", "0", "0", "1763685393"])
        .map(|(name, value)| format!("jetsam_last_run_{name}{labels} {value}"));
        assert_eq!(samples, want.collect::<Vec<_>>());
    }
}
