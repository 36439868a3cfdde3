//! Where messages go: archives and store directories.
//!
//! A sink is fed block by block from a [pass](crate::state::visit::Pass) over a stream's live messages. What
//! it makes is staged and renamed when it is complete: whatever interrupts it, nothing half-made is left that
//! looks whole.

pub mod archive;
pub mod block;
pub mod direct;
pub mod outgoing;
pub mod staged;
pub mod store;

use crate::finding::{Code, Finding, Severity};
use crate::format::index_db::BlockEntry;
use crate::format::seqset::SeqSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Why a stream was not written. What had been written of it is gone.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The operating system's word.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something that the format cannot say.
    #[error("{0}")]
    Format(String),
    /// The source is damaged.
    #[error("damaged: {read} of {expected} messages could be proven")]
    Damaged {
        /// What is wrong.
        findings: Vec<Finding>,
        /// Messages that were proven.
        read: u64,
        /// Messages that there should be.
        expected: u64,
    },
    /// Asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl SinkError {
    /// Names the file that an error is about.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// What was written of a stream.
#[derive(Debug, Default)]
pub struct Written {
    /// Messages.
    pub messages: u64,
    /// Bytes before compression.
    pub raw: u64,
    /// Bytes in files.
    pub compressed: u64,
    /// What was wrong with the source, where that was no reason to stop.
    pub findings: Vec<Finding>,
    /// The sequences of the messages, where the source may have lost some.
    pub held: SeqSet,
}

impl Written {
    /// Notes the sequences of a block's messages.
    fn hold(&mut self, entry: &BlockEntry) {
        if entry.last > 0 && entry.first <= entry.last {
            self.held.insert_range(entry.first, entry.last);
            self.held.difference_with(&entry.deleted);
        }
    }

    /// Of a source with these findings: keeps the errors, which were no reason to refuse it; of a `salvaged` one also
    /// sequences that are there twice, of which one was chosen.
    pub fn of_damaged(mut self, mut found: Vec<Finding>, salvaged: bool) -> Self {
        let twice = |f: &Finding| matches!(f.code, Code::RecordOrder | Code::BlockOverlap);
        found.append(&mut self.findings);
        found.retain(|f| f.severity == Severity::Error || (salvaged && twice(f)));
        self.findings = found;
        self
    }
}

/// Things that workers use in turn, and that cost to make.
#[derive(Debug)]
pub struct Pool<T>(Mutex<Vec<T>>);

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<T: Default> Pool<T> {
    /// One that is free, or a new one.
    pub fn take(&self) -> T {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.pop().unwrap_or_default()
    }

    /// Gives it back.
    pub fn give(&self, item: T) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(item);
    }
}
