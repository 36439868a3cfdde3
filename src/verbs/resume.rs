//! `check --state FILE`: what is done of a check that takes several sittings.
//!
//! The file is one JSON object: `kind` and `version` say what it is, `sum` is a hash of `check`, which holds what was
//! asked for and, stream by stream, what is done. Written under another name, synced and renamed, at most every two
//! seconds and at the end. A file that is not this, or not of this check, is refused and left alone.
//!
//! A unit is a block together with its entry in a valid `index.db`. Where the answer needs all blocks of a stream at
//! once (no valid `index.db`, and everything is read) or comes from one file (archives), the stream is the unit, with
//! the fingerprint of its directory.

use super::Failure;
use super::part::Choice;
use crate::finding::{Code, Finding, OnStart, Severity};
use crate::format::hash::HashKey;
use crate::pipeline::Threads;
use crate::sink::staged::{PREFIX, parent, sync_dir, write_synced};
use crate::source::select::Selector;
use crate::source::{Body, Source, StreamSource, text};
use crate::state::{BlockState, Seen};
use crate::stream::{BlockFile, Stream};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const KIND: &str = "state of jetsam check";
const VERSION: u64 = 1;
/// The file is written no more often.
const EVERY: Duration = Duration::from_secs(2);
/// Writing it takes no more than this share of the time.
const SHARE: u32 = 20;
/// Ceiling for the file: some five million blocks.
const CEILING: u64 = 1 << 30;

pub use crate::state::Stamp;

impl Stamp {
    /// The block as it is: its file, and what a valid `index.db` says of it.
    pub(super) fn of(
        stream: &Stream,
        file: &BlockFile,
        known: Option<&BlockState>,
    ) -> Option<Self> {
        let (tree, _) = stream.tree()?;
        let path = stream.msgs_dir().join(format!("{}.blk", file.n));
        let found = tree.stat(&path).ok()?;
        Some(Self {
            size: found.len,
            mtime: found.modified,
            entry: known.map(entry),
        })
    }
}

fn entry(b: &BlockState) -> u64 {
    let mut bytes = Vec::new();
    let mut put = |n: u64| bytes.extend_from_slice(&n.to_le_bytes());
    for n in [b.first, b.last, b.msgs, b.bytes, b.floor] {
        put(n);
    }
    for ts in [b.first_ts, b.last_ts] {
        put(ts.cast_unsigned());
    }
    for (from, to) in b.deleted.ranges() {
        put(from);
        put(to);
    }
    u64::from_le_bytes(HashKey::new("jetsam check").sum(&bytes))
}

/// What was asked for: a file of something else is of no use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    sources: Vec<String>,
    accounts: Vec<String>,
    streams: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<(u64, u64)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sample: Option<Sample>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Sample {
    /// As text: it has to come back the same to the last bit.
    percent: String,
    seed: u64,
}

/// A [`Finding`] that can be read back.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    code: String,
    severity: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_start: Option<(String, bool)>,
    detail: String,
    action: String,
}

const SEVERITIES: [(Severity, &str); 3] = [
    (Severity::Note, "note"),
    (Severity::Warning, "warning"),
    (Severity::Error, "error"),
];

impl Kept {
    fn of(f: &Finding) -> Self {
        let severity = SEVERITIES.iter().find(|(s, _)| *s == f.severity);
        let on_start = f.on_start.as_ref();
        Self {
            code: f.code.as_str().to_owned(),
            severity: severity.map_or("", |s| s.1).to_owned(),
            account: f.account.clone(),
            stream: f.stream.clone(),
            consumer: f.consumer.clone(),
            file: f.file.clone(),
            offset: f.offset,
            seq: f.seq,
            on_start: on_start.map(|s| (s.text.clone(), s.destroys)),
            detail: f.detail.clone(),
            action: f.action.clone(),
        }
    }

    fn finding(&self) -> Option<Finding> {
        let code = Code::ALL.iter().find(|c| c.as_str() == self.code)?;
        let severity = SEVERITIES.iter().find(|(_, t)| *t == self.severity)?.0;
        let mut f = Finding::new(*code, self.detail.clone())
            .severity(severity)
            .action(self.action.clone());
        f.account.clone_from(&self.account);
        f.stream.clone_from(&self.stream);
        f.consumer.clone_from(&self.consumer);
        f.file.clone_from(&self.file);
        (f.offset, f.seq) = (self.offset, self.seq);
        f.on_start = self
            .on_start
            .clone()
            .map(|(text, destroys)| OnStart { text, destroys });
        Some(f)
    }
}

fn findings(kept: &[Kept]) -> Option<Vec<Finding>> {
    kept.iter().map(Kept::finding).collect()
}

/// Whether what was found says that it was read: what a key, or a permission, stood in the way of is tried again.
fn was_read(findings: &[Finding]) -> bool {
    let closed = [Code::KeyMissing, Code::KeyWrong, Code::Unreadable];
    !findings.iter().any(|f| closed.contains(&f.code))
}

/// A block that is done.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Block {
    #[serde(flatten)]
    stamp: Stamp,
    records: u64,
    messages: u64,
    last: u64,
    bytes: u64,
    subjects: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    findings: Vec<Kept>,
}

/// What the check of a stream has brought, for the summary.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Consumers.
    pub consumers: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Blocks there are.
    pub blocks_total: u64,
    /// Records of all kinds.
    pub records: u64,
    /// Live messages.
    pub messages: u64,
    /// Bytes of files read.
    pub bytes: u64,
}

/// A stream that is done as a whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Whole {
    fingerprint: u64,
    counts: Counts,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    findings: Vec<Kept>,
}

/// What is done of a stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct OfStream {
    /// Which of the sources it is in.
    source: usize,
    path: String,
    account: String,
    stream: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    whole: Option<Whole>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    blocks: BTreeMap<u64, Block>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Check {
    complete: bool,
    asked: Asked,
    done: Vec<OfStream>,
}

impl Check {
    /// Whether every finding in it can be read back.
    fn makes_sense(&self) -> bool {
        self.done.iter().all(|s| {
            let whole = s.whole.iter().map(|w| &w.findings);
            let mut all = whole.chain(s.blocks.values().map(|b| &b.findings));
            all.all(|f| findings(f).is_some())
        })
    }

    fn sum(text: &str) -> String {
        HashKey::new(KIND).sum_hex(text.as_bytes())
    }

    fn text(&self) -> io::Result<String> {
        let check = serde_json::to_string(self)?;
        let sum = Self::sum(&check);
        Ok(format!(
            "{{\"kind\":\"{KIND}\",\"version\":{VERSION},\"sum\":\"{sum}\",\"check\":{check}}}\n"
        ))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            kind: String,
            version: u64,
        }
        #[derive(Deserialize)]
        struct Body {
            sum: String,
            check: Check,
        }
        let foreign = || "no state of `jetsam check`".to_owned();
        let head: Head = serde_json::from_slice(bytes).map_err(|_| foreign())?;
        if head.kind != KIND {
            return Err(foreign());
        }
        if head.version != VERSION {
            return Err(format!(
                "of version {}, and this release knows version {VERSION}",
                head.version
            ));
        }
        let damaged = || "damaged".to_owned();
        let body: Body = serde_json::from_slice(bytes).map_err(|_| damaged())?;
        let again = serde_json::to_string(&body.check).map_err(|_| damaged())?;
        if Self::sum(&again) != body.sum || !body.check.makes_sense() {
            return Err(damaged());
        }
        Ok(body.check)
    }
}

struct Inner {
    check: Check,
    /// Where in `check.done` a stream is.
    places: BTreeMap<(usize, String), usize>,
    saved: Instant,
    pause: Duration,
    failed: Option<io::Error>,
}

/// The file, and what is in it.
pub struct Resume {
    path: PathBuf,
    inner: Mutex<Inner>,
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    if !meta.is_file() {
        return Err("not a file".into());
    }
    if meta.len() > CEILING {
        return Err("no state of `jetsam check`".into());
    }
    fs::read(path).map(Some).map_err(|e| e.to_string())
}

impl Resume {
    /// Opens the file, or begins a new one; the choice comes back with the seed that it had.
    pub fn open(
        path: &Path,
        sources: &[PathBuf],
        selector: &Selector,
        choice: Choice,
    ) -> Result<(Self, Choice), Failure> {
        let refused = |why: &str| {
            let text = format!(
                "{}: {why}; it was left alone: name another file, or remove it to begin anew",
                path.display()
            );
            Failure::Usage(text)
        };
        let before = match read(path).map_err(|why| refused(&why))? {
            Some(bytes) => Some(Check::parse(&bytes).map_err(|why| refused(&why))?),
            None => None,
        };
        // A run that ended before it did anything, say because of a wrong path, leaves nothing to go on with.
        let before = before.filter(|b| b.complete || !b.done.is_empty());
        let open = before.as_ref().filter(|b| !b.complete);
        let seed = open.and_then(|b| b.asked.sample.as_ref()).map(|s| s.seed);
        let choice = choice.seeded(seed);
        let real = |p: &PathBuf| text(&p.canonicalize().unwrap_or_else(|_| p.clone()));
        let asked = Asked {
            sources: sources.iter().map(real).collect(),
            accounts: selector.accounts.clone(),
            streams: selector.streams.clone(),
            part: match choice {
                Choice::Part { k, n } => Some((k, n)),
                _ => None,
            },
            sample: match choice {
                Choice::Sample { percent, seed } => Some(Sample {
                    percent: percent.to_string(),
                    seed: seed.unwrap_or(0),
                }),
                _ => None,
            },
        };
        let check = match before {
            Some(before) if before.asked.sources != asked.sources => {
                let of = before.asked.sources.join(", ");
                return Err(refused(&format!("of a check of {of}")));
            }
            Some(before) if !before.complete && before.asked != asked => {
                return Err(refused(
                    "of a check that was interrupted and had another --part, --sample, --seed, -a or -s",
                ));
            }
            Some(before) if !before.complete => before,
            // One that is complete has nothing more to say.
            _ => Check {
                complete: false,
                asked,
                done: Vec::new(),
            },
        };
        let places = check.done.iter().enumerate();
        let resume = Self {
            path: path.to_owned(),
            inner: Mutex::new(Inner {
                places: places
                    .map(|(i, s)| ((s.source, s.path.clone()), i))
                    .collect(),
                check,
                saved: Instant::now(),
                pause: EVERY,
                failed: None,
            }),
        };
        // Better now than after a night's work.
        resume
            .save(&mut resume.lock())
            .map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))?;
        Ok((resume, choice))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a stream of the `source`-th source; a path that is no text is not kept.
    pub fn of<'a>(&'a self, source: usize, stream: &'a StreamSource) -> Option<Notes<'a>> {
        Some(Notes {
            resume: self,
            source,
            path: stream.path.to_str()?,
            stream,
        })
    }

    fn save(&self, inner: &mut Inner) -> io::Result<()> {
        let started = Instant::now();
        let name = self.path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut temporary = OsString::from(format!("{PREFIX}{}-", std::process::id()));
        temporary.push(name);
        temporary.push(".tmp");
        let temporary = self.path.with_file_name(temporary);
        let written = inner
            .check
            .text()
            .and_then(|text| write_synced(&temporary, text.as_bytes()))
            .and_then(|()| fs::rename(&temporary, &self.path))
            .and_then(|()| sync_dir(parent(&self.path)));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        inner.saved = Instant::now();
        inner.pause = EVERY.max(started.elapsed().saturating_mul(SHARE));
        written
    }

    /// Writes the file if it was not written for a while.
    fn save_soon(&self, inner: &mut Inner) {
        if inner.saved.elapsed() >= inner.pause
            && let Err(e) = self.save(inner)
        {
            inner.failed = Some(e);
        }
    }

    /// Writes the file, for the last time if it is complete; says what kept it from being written.
    pub fn close(&self, complete: bool) -> io::Result<()> {
        let inner = &mut *self.lock();
        inner.check.complete = complete;
        if complete {
            inner.check.done.clear();
            inner.places.clear();
        }
        self.save(inner)
    }

    /// Why it could not be written meanwhile, once.
    pub fn complaint(&self) -> Option<io::Error> {
        self.lock().failed.take()
    }
}

/// What is known of one stream.
#[derive(Clone, Copy)]
pub struct Notes<'a> {
    resume: &'a Resume,
    source: usize,
    path: &'a str,
    stream: &'a StreamSource,
}

impl Notes<'_> {
    fn known<T>(&self, get: impl FnOnce(&OfStream) -> Option<T>) -> Option<T> {
        let inner = self.resume.lock();
        let at = *inner.places.get(&(self.source, self.path.to_owned()))?;
        get(inner.check.done.get(at)?)
    }

    fn note(&self, put: impl FnOnce(&mut OfStream)) {
        let inner = &mut *self.resume.lock();
        let end = inner.check.done.len();
        let key = (self.source, self.path.to_owned());
        let at = *inner.places.entry(key).or_insert(end);
        if at == end {
            inner.check.done.push(OfStream {
                source: self.source,
                path: self.path.to_owned(),
                account: self.stream.account.clone(),
                stream: self.stream.name.clone(),
                whole: None,
                blocks: BTreeMap::new(),
            });
        }
        if let Some(stream) = inner.check.done.get_mut(at) {
            put(stream);
        }
        self.resume.save_soon(inner);
    }

    /// What was found out about a block, if it is still the same.
    pub fn block(&self, n: u64, stamp: &Stamp) -> Option<Seen> {
        let block = self.known(|s| {
            let block = s.blocks.get(&n).filter(|b| b.stamp == *stamp)?;
            Some(block.clone())
        })?;
        Some(Seen {
            findings: findings(&block.findings)?,
            records: block.records,
            messages: block.messages,
            last: block.last,
            bytes: block.bytes,
            subjects: block.subjects,
        })
    }

    /// Notes a block that is done.
    pub fn add_block(&self, n: u64, stamp: Stamp, seen: &Seen) {
        if !was_read(&seen.findings) {
            return;
        }
        let block = Block {
            stamp,
            records: seen.records,
            messages: seen.messages,
            last: seen.last,
            bytes: seen.bytes,
            subjects: seen.subjects,
            findings: seen.findings.iter().map(Kept::of).collect(),
        };
        self.note(|s| {
            s.blocks.insert(n, block);
        });
    }

    /// What was found out about the stream, if nothing of it has changed.
    pub fn whole(&self, fingerprint: u64) -> Option<(Counts, Vec<Finding>)> {
        self.known(|s| {
            let whole = s.whole.as_ref()?;
            let same = whole.fingerprint == fingerprint;
            Some((whole.counts, findings(&whole.findings).filter(|_| same)?))
        })
    }

    /// Notes a stream that is done.
    pub fn add_whole(&self, fingerprint: u64, counts: Counts, findings: &[Finding]) {
        if !was_read(findings) {
            return;
        }
        let whole = Whole {
            fingerprint,
            counts,
            findings: findings.iter().map(Kept::of).collect(),
        };
        self.note(|s| s.whole = Some(whole));
    }
}

/// A fingerprint of all that is in a stream: of its directory, of its archive and what is beside that in the backup.
pub fn fingerprint(whole: &Source, stream: &StreamSource) -> Option<u64> {
    if !stream.in_archive() {
        return match &stream.body {
            Body::Blocks { tree, dir, .. } => tree.fingerprint(dir, &Threads::one()),
            _ => None,
        };
    }
    if let Some(tree) = &whole.tree {
        return tree.fingerprint(stream.path.parent()?, &Threads::one());
    }
    let meta = fs::metadata(&whole.path).ok()?;
    let mut h = std::hash::DefaultHasher::new();
    (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()).hash(&mut h);
    Some(h.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, source: &str, choice: Choice) -> Result<(Resume, Choice), Failure> {
        Resume::open(path, &[source.into()], &Selector::default(), choice)
    }

    fn source(dir: &Path) -> StreamSource {
        StreamSource {
            account: "A".into(),
            name: "S".into(),
            role: crate::source::Role::Stream,
            path: "s".into(),
            body: Body::Blocks {
                tree: std::sync::Arc::new(crate::source::dir::DirTree::new(dir, false)),
                dir: "s".into(),
                msgs: "msgs".into(),
            },
            backup: None,
            findings: Vec::new(),
            mends: Default::default(),
        }
    }

    fn finding() -> Finding {
        let mut f = Finding::new(Code::RecordHash, "detail \"x\"")
            .severity(Severity::Warning)
            .stream("A", "S")
            .consumer("C")
            .file("f")
            .offset(u64::MAX)
            .seq(7)
            .action("act");
        f.on_start = Some(OnStart {
            text: "t".into(),
            destroys: true,
        });
        f
    }

    #[test]
    fn findings_come_back_as_they_were() {
        for f in [finding(), Finding::new(Code::Leftover, "")] {
            let text = serde_json::to_string(&Kept::of(&f)).unwrap();
            let back: Kept = serde_json::from_str(&text).unwrap();
            assert_eq!(back.finding(), Some(f));
        }
    }

    #[test]
    fn a_file_is_of_one_check_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let part = Choice::Part { k: 1, n: 2 };
        let (resume, _) = open(&path, "/a", part).unwrap();
        let stream = source(dir.path());
        let stamp = Stamp {
            size: 1,
            mtime: -2,
            entry: Some(u64::MAX),
        };
        let seen = Seen {
            records: 3,
            findings: vec![finding()],
            ..Seen::default()
        };
        let notes = resume.of(0, &stream).unwrap();
        notes.add_block(5, stamp, &seen);
        // What could not be read is not done.
        let closed = Seen {
            findings: vec![Finding::new(Code::KeyMissing, "")],
            ..Seen::default()
        };
        notes.add_block(6, stamp, &closed);
        resume.close(false).unwrap();
        let (resume, _) = open(&path, "/a", part).unwrap();
        let notes = resume.of(0, &stream).unwrap();
        let back = notes.block(5, &stamp).unwrap();
        assert_eq!((back.records, back.findings), (3, seen.findings));
        assert!(notes.block(6, &stamp).is_none());
        assert!(resume.of(1, &stream).unwrap().block(5, &stamp).is_none());
        for other in [
            Stamp { size: 2, ..stamp },
            Stamp { mtime: 2, ..stamp },
            Stamp {
                entry: None,
                ..stamp
            },
        ] {
            assert!(notes.block(5, &other).is_none());
        }
        let bytes = fs::read(&path).unwrap();
        // Of another check.
        for (source, choice) in [("/a", Choice::All), ("/b", part)] {
            assert!(matches!(
                open(&path, source, choice),
                Err(Failure::Usage(_))
            ));
        }
        assert!(fs::read(&path).unwrap() == bytes);
        // Not one byte of it may be another.
        for i in 0..bytes.len() - 1 {
            let mut bad = bytes.clone();
            bad[i] ^= 1;
            assert!(Check::parse(&bad).is_err(), "{i}");
            assert!(Check::parse(&bytes[..i]).is_err(), "{i}");
        }
        // Complete, it is used again for another part, and knows nothing.
        resume.close(true).unwrap();
        let (resume, _) = open(&path, "/a", Choice::All).unwrap();
        assert!(resume.of(0, &stream).unwrap().block(5, &stamp).is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_sample_goes_on_with_its_seed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let sample = |seed| Choice::Sample { percent: 0.3, seed };
        let stream = source(dir.path());
        open(&path, "/a", sample(None)).unwrap();
        // With nothing done it is anybody's.
        open(&path, "/b", Choice::All).unwrap();
        let (resume, first) = open(&path, "/a", sample(None)).unwrap();
        let notes = resume.of(0, &stream).unwrap();
        notes.add_whole(1, Counts::default(), &[]);
        resume.close(false).unwrap();
        let (_, second) = open(&path, "/a", sample(None)).unwrap();
        assert_eq!(first, second);
        assert!(open(&path, "/a", sample(Some(u64::MAX))).is_err());
        resume.close(true).unwrap();
        let (_, third) = open(&path, "/a", sample(Some(u64::MAX))).unwrap();
        assert_eq!(third, sample(Some(u64::MAX)));
    }
}
