//! Progress and messages on standard error.

use crate::verbs::{Monitor, render};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Bar,
    Lines,
    Nothing,
}

struct Work {
    what: String,
    total: u64,
    done: u64,
    started: Instant,
    said: Instant,
    bar: Option<ProgressBar>,
}

impl Work {
    /// What is read, never more than there is.
    fn read(&self) -> u64 {
        match self.total {
            0 => self.done,
            total => self.done.min(total),
        }
    }
}

/// The binary's [`Monitor`].
pub struct Stderr {
    mode: Mode,
    quiet: bool,
    work: Mutex<Option<Work>>,
}

/// Work that ends sooner shows no bar: `ls` of ten thousand streams would flicker.
const PATIENCE: Duration = Duration::from_millis(400);
const LINE_EVERY: Duration = Duration::from_secs(2);

impl Stderr {
    /// `no_progress` and `quiet` as typed.
    pub fn new(no_progress: bool, quiet: bool) -> Self {
        let mode = match (quiet, no_progress) {
            (true, _) => Mode::Nothing,
            (false, true) => Mode::Lines,
            (false, false) if std::io::stderr().is_terminal() => Mode::Bar,
            _ => Mode::Nothing,
        };
        Self {
            mode,
            quiet,
            work: Mutex::new(None),
        }
    }

    fn line(&self, text: &str) {
        // There is nobody to tell that standard error is gone.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

fn rate(done: u64, since: Instant) -> String {
    let seconds = since.elapsed().as_secs_f64().max(0.001);
    format!("{}/s", render::bytes((done as f64 / seconds) as u64))
}

impl Monitor for Stderr {
    fn begin(&self, what: &str, bytes: u64) {
        let now = Instant::now();
        let work = Work {
            what: what.to_owned(),
            total: bytes,
            done: 0,
            started: now,
            said: now,
            bar: None,
        };
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
    }

    fn advance(&self, bytes: u64) {
        if self.mode == Mode::Nothing {
            return;
        }
        let mut guard = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(work) = guard.as_mut() else { return };
        work.done = work.done.saturating_add(bytes);
        match self.mode {
            Mode::Bar => {
                if work.bar.is_none() && work.started.elapsed() > PATIENCE {
                    let total = Some(work.total).filter(|n| *n > 0);
                    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
                    let style = match total {
                        Some(_) => {
                            "{msg} {wide_bar} {binary_bytes} / {binary_total_bytes} {binary_bytes_per_sec} {eta}"
                        }
                        None => "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}",
                    };
                    if let Ok(style) = ProgressStyle::with_template(style) {
                        bar.set_style(style);
                    }
                    bar.set_message(work.what.clone());
                    work.bar = Some(bar);
                }
                if let Some(bar) = &work.bar {
                    bar.set_position(work.read());
                }
            }
            Mode::Lines if work.said.elapsed() > LINE_EVERY => {
                work.said = Instant::now();
                let of = match work.total {
                    0 => String::new(),
                    total => format!(" of {}", render::bytes(total)),
                };
                self.line(&format!(
                    "{}: {}{of}, {}",
                    work.what,
                    render::bytes(work.done),
                    rate(work.done, work.started)
                ));
            }
            _ => {}
        }
    }

    fn end(&self) {
        let work = self
            .work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(work) = work else { return };
        if let Some(bar) = &work.bar {
            bar.finish_and_clear();
        }
        let read = work.total.max(work.read());
        if self.mode == Mode::Lines && read > 0 {
            let seconds = work.started.elapsed().as_secs_f64();
            self.line(&format!(
                "{}: {} in {seconds:.1} s",
                work.what,
                render::bytes(read)
            ));
        }
    }

    fn warn(&self, message: &str) {
        if self.quiet {
            return;
        }
        let guard = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let text = format!("jetsam: warning: {message}");
        match guard.as_ref().and_then(|w| w.bar.as_ref()) {
            Some(bar) => bar.suspend(|| self.line(&text)),
            None => self.line(&text),
        }
    }
}
