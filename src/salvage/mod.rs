//! Salvage: what can be put right about a stream before it is read.
//!
//! [`mend`] looks at every file of a stream, searches for the flipped bits where a hash, a tag or a checksum
//! says that there are some, finds files under wrong names and copies that were left behind, and gives a source
//! that reads as if all that were right: the tree through an [`Overlay`], the blocks through
//! [`Mends`]. The files themselves stay as they are. Every verb reads the result like any other source.

pub mod assignments;
mod blocks;
pub mod deleted;
mod files;
mod idx;
mod names;

use crate::format::crypt::KeyRing;
use crate::format::mend::{Effort, Flip};
use crate::format::seqset::SeqSet;
use crate::pipeline::Threads;
use crate::source::archive;
use crate::source::overlay::Overlay;
use crate::source::{Body, StreamSource};
use crate::state::{Progress, StreamState};
use crate::stream::mends::Mends;
use crate::stream::{Index, Stream, Want};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What a core searches in a second, roughly, in the unit of [`Effort::bytes`]: what [`Ask::seconds`] buys. Counted,
/// not timed, so that the same damage gives the same result on every machine.
const BYTES_A_SECOND: u64 = 16 << 30;

/// Seconds of search for each damaged file, unless asked otherwise: all single bits of a record of 400 kB on
/// two cores.
pub const SECONDS: f64 = 20.0;

/// A stream gets so many times that in all.
const FILES: u64 = 30;

/// What to do.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// Server keys.
    pub keys: &'a KeyRing,
    /// Who works.
    pub threads: &'a Threads,
    /// Seconds of search for each damaged file, on all threads.
    pub seconds: f64,
    /// Take records that cannot be proven.
    pub unproven: bool,
    /// The stream's configuration, where its own is lost.
    pub config: Option<&'a Map<String, Value>>,
    /// Configurations that a cluster's meta group holds.
    pub assigned: &'a assignments::Assignments,
    /// Names that the stream may have had.
    pub names: &'a [String],
    /// Ends the search once it is set.
    pub stop: &'a AtomicBool,
    /// Told of the bytes read.
    pub progress: Progress<'a>,
}

impl<'a> Ask<'a> {
    /// What may be searched in one file.
    fn share(&self) -> u64 {
        let second = BYTES_A_SECOND.saturating_mul(self.threads.count() as u64);
        (self.seconds.max(0.0) * second as f64) as u64
    }
}

/// What vouches for a correction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The keyed 64-bit hash of a record or file.
    Hash,
    /// The 128-bit tag of a sealed file.
    Tag,
    /// The 32-bit checksum of a compressed chunk, whose content no record proves.
    Checksum,
    /// Nothing: the only place, or one of few, that makes sense.
    Likely,
}

/// Bits that were put right.
#[derive(Debug, Clone, Serialize)]
pub struct Correction {
    /// The file, relative to the source.
    pub file: String,
    /// The bits, by offset in the file; in the decompressed block where `decompressed` says so.
    pub flips: Vec<Place>,
    /// The offsets are in the decompressed block.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub decompressed: bool,
    /// The message, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// What vouches for it.
    pub proof: Proof,
}

/// A bit.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Place {
    /// Offset of its byte.
    pub offset: u64,
    /// Its place in the byte, 0 being the lowest.
    pub bit: u8,
}

impl Correction {
    fn new(file: String, flips: &[Flip], proof: Proof) -> Self {
        Self {
            file,
            flips: flips
                .iter()
                .map(|f| Place {
                    offset: f.offset,
                    bit: f.bit,
                })
                .collect(),
            decompressed: false,
            seq: None,
            proof,
        }
    }
}

/// What salvage did to a stream.
#[derive(Debug, Default)]
pub struct Report {
    /// Bits that were put right.
    pub corrections: Vec<Correction>,
    /// Messages whose own bytes were put right.
    pub corrected: u64,
    /// Records that were taken unproven: file, offset, sequence.
    pub unproven: Vec<(String, u64, u64)>,
    /// Messages that were found in copies only.
    pub from_leftovers: u64,
    /// Decisions and what they rest on.
    pub notes: Vec<String>,
    /// Sequences that damage may have taken.
    pub doubtful: SeqSet,
    /// Sequences that were deleted, as far as that is known.
    pub dead: SeqSet,
    /// The configuration is not the stream's own.
    pub reconstructed: bool,
}

impl Report {
    fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

/// What was found out about a stream.
#[derive(Debug)]
pub struct Mended {
    /// The source, mended.
    pub source: StreamSource,
    /// How.
    pub report: Report,
}

/// The work on one stream.
struct Work<'a> {
    ask: Ask<'a>,
    source: StreamSource,
    overlay: Overlay,
    report: Report,
    /// The stream as it is, to name places in it.
    opened: Stream,
    /// Files given names of their own.
    copies: usize,
    /// Search that the whole stream has left.
    left: u64,
}

impl<'a> Work<'a> {
    /// What may be searched in one file.
    fn effort(&self) -> Effort<'a> {
        Effort {
            bytes: self.ask.share().min(self.left),
            parallel: self.ask.threads.count() > 1,
            cancel: Some(self.ask.stop),
            ..Effort::default()
        }
    }

    /// Takes off what a search has cost.
    fn spend(&mut self, bytes: u64) {
        if self.left > 0 && self.left <= bytes {
            self.report.note(
                "the time for searching flipped bits is used up; --effort gives more".to_owned(),
            );
        }
        self.left = self.left.saturating_sub(bytes);
    }

    /// The stream as it reads by now.
    fn open(&self, want: Want) -> Stream {
        Stream::open(&self.source, self.ask.keys, want)
    }

    /// Gives a file a name of its own that no listing shows, for a copy of a block.
    fn aside(&mut self, msgs: &Path, file: PathBuf) -> PathBuf {
        let name = format!(
            "{}-{}",
            self.copies,
            file.file_name().unwrap_or_default().display()
        );
        self.copies += 1;
        let path = msgs.join(".copies").join(name);
        self.overlay.put_file(path.clone(), file);
        path
    }

    /// Makes what was put into the overlay part of the source.
    fn settle(&mut self) {
        if let Body::Blocks { tree, .. } = &mut self.source.body {
            *tree = Arc::new(self.overlay.clone());
        }
    }
}

/// Looks for everything about `source` that can be put right. `path` is that of its directory or archive.
pub fn mend(source: &StreamSource, path: &Path, ask: Ask<'_>) -> Mended {
    let mut report = Report::default();
    let source = &archive(source, path, &ask, &mut report);
    let Body::Blocks { tree, dir, msgs } = &source.body else {
        return Mended {
            source: source.clone(),
            report,
        };
    };
    let (dir, msgs) = (dir.clone(), dir.join(msgs));
    let places = Want::NOTHING;
    let mut work = Work {
        opened: Stream::open(source, ask.keys, places),
        ask,
        source: source.clone(),
        overlay: Overlay::new(tree.clone()),
        report,
        copies: 0,
        left: ask.share().saturating_mul(FILES),
    };
    set_mends(
        &mut work,
        Mends {
            witness: true,
            ..Mends::default()
        },
    );
    names::stream_name(&mut work, &dir);
    names::elsewhere(&mut work, &dir, &msgs);
    files::stream(&mut work, &dir, &msgs);
    blocks::mend(&mut work, &msgs);
    idx::mend(&mut work, &msgs);
    files::configuration(&mut work);
    Mended {
        source: work.source,
        report: work.report,
    }
}

/// An archive's frames, put right.
fn archive(source: &StreamSource, path: &Path, ask: &Ask<'_>, report: &mut Report) -> StreamSource {
    let in_archive = match &source.body {
        Body::Blocks { dir, .. } => dir.as_os_str().is_empty() && path.is_file(),
        Body::Entries(_) => true,
        Body::Config(_) => false,
    };
    if !in_archive {
        return source.clone();
    }
    let effort = Effort {
        bytes: ask.share().saturating_mul(FILES),
        parallel: ask.threads.count() > 1,
        cancel: Some(ask.stop),
        ..Effort::default()
    };
    let found = match archive::mend_with(path, &effort, source.limit()) {
        Ok(found) => found,
        Err(e) => {
            report.note(format!("{}: {e}", path.display()));
            return source.clone();
        }
    };
    let place = crate::source::text(&source.path);
    for flips in &found.frames {
        report
            .corrections
            .push(Correction::new(place.clone(), flips, Proof::Checksum));
    }
    if found.broken > 0 {
        report.note(format!(
            "{place}: {} of its S2 frames could not be corrected; what is before and after them is read",
            found.broken
        ));
    }
    let flips = found.frames.concat();
    if flips.is_empty() {
        return source.clone();
    }
    match archive::open_with(path, &flips, source.limit()) {
        Ok(opened) => source.reopened(opened),
        Err(e) => {
            report.note(format!("{place}: {e}"));
            source.clone()
        }
    }
}

/// The sequences that were live and are not in `state`, whose pass held `held`: by an index what it lists, else
/// what damage may have taken and nothing says was deleted.
pub fn lost(report: &Report, stream: &Stream, state: &StreamState, held: &SeqSet) -> SeqSet {
    let mut lost = SeqSet::new();
    let witness = match &stream.index {
        Index::Valid(db) => Some(db),
        Index::Rejected { prior, .. } => prior.as_ref(),
        Index::Missing => None,
    };
    let mut known_to = 0;
    if let Some(db) = witness {
        // One that does not list everything says nothing about the rest.
        known_to = if stream.mends.distrust {
            0
        } else {
            db.last_seq
        };
        for b in &db.blocks {
            if b.msgs() == 0 {
                continue;
            }
            lost.insert_range(b.first, b.last);
            lost.difference_with(&b.deleted);
        }
    }
    for (from, to) in report.doubtful.ranges() {
        let from = from.max(known_to.saturating_add(1));
        if from <= to {
            lost.insert_range(from, to);
        }
    }
    lost.difference_with(&report.dead);
    if state.first_seq > 1 && witness.is_none() {
        lost.remove_below(state.first_seq);
    }
    lost.difference_with(held);
    lost
}

/// Bytes of a file of the tree as it reads by now.
fn read(work: &Work<'_>, path: &Path, ceiling: u64) -> Option<Vec<u8>> {
    use crate::source::tree::Tree as _;
    let mut buf = Vec::new();
    work.overlay.read_into(path, &mut buf, ceiling).ok()?;
    Some(buf)
}

/// What a pass with all of it would need.
const EVERYTHING: Want = Want {
    subjects: true,
    consumers: false,
};

/// Puts mends in the source's place.
fn set_mends(work: &mut Work<'_>, mends: Mends) {
    work.source.mends = Arc::new(mends);
}

/// A configuration as a server gives a stream of which nothing but the subjects is asked.
fn unlimited(name: &str, subjects: Value) -> Map<String, Value> {
    let config = json!({
        "name": name,
        "subjects": subjects,
        "retention": "limits",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "discard": "old",
        "storage": "file",
        "num_replicas": 1,
        "allow_direct": true,
    });
    match config {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
