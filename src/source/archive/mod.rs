//! Archives of a stream as sources: the tar that servers up to 2.14 make (S2-framed; plain; gzip in
//! 2020) and the NATSARC1 archive of 2.15. What a file is, its bytes tell, never its name.

mod frames;
mod gzip;
mod mending;
mod tar_tree;
mod v2;

pub use mending::{MendedFrames, mend, mend_with};
pub use tar_tree::TarTree;
pub use v2::{V2, V2Consumer, V2End, V2Message};

use crate::finding::{Code, Finding};
use crate::format::mend::Flip;
use crate::format::{archive_v2, tar};
use crate::source::limit::{Input, Limit};
use frames::{Frames, Patched, pread};
use gzip::Gzip;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Findings of one kind that are listed one by one; the others are counted.
const MAX_FINDINGS: usize = 100;
/// A server restores nothing that needs more than this to tell what it is.
const HEAD: usize = tar::BLOCK;

/// An archive, opened.
#[derive(Debug, Clone)]
pub enum Opened {
    /// A tar archive: the files of a stream directory.
    Tar(Arc<TarTree>),
    /// A NATSARC1 archive: consumers and messages.
    V2(Arc<V2>),
}

/// Why a file cannot be read as an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The operating system's word.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("not an archive of a stream")]
    NotAnArchive,
    /// No bytes.
    #[error("empty: the backup was interrupted")]
    Empty,
    /// It ends before anything in it.
    #[error("ends before its first entry ({len} bytes): the backup was interrupted")]
    Truncated {
        /// Its length.
        len: u64,
    },
    /// A container that holds nothing known.
    #[error("{0}")]
    Damaged(String),
}

impl ArchiveError {
    /// The kind of finding that it is.
    pub fn code(&self) -> Code {
        match self {
            Self::Io(_) => Code::Unreadable,
            Self::Empty | Self::Truncated { .. } => Code::ArchiveTruncated,
            Self::NotAnArchive | Self::Damaged(_) => Code::ArchiveDamaged,
        }
    }
}

/// What the archive's bytes are wrapped in.
#[derive(Debug)]
enum Container {
    Plain { file: Input, len: u64 },
    S2(Frames),
    Gzip(Gzip),
}

impl Container {
    /// Length of the archive file.
    fn file_len(&self) -> u64 {
        match self {
            Self::Plain { len, .. } => *len,
            Self::S2(frames) => frames.len(),
            Self::Gzip(_) => 0,
        }
    }

    /// What reading it is limited by.
    fn limit(&self) -> Option<Arc<Limit>> {
        match self {
            Self::Plain { file, .. } => file.limit(),
            Self::S2(frames) => frames.limit(),
            Self::Gzip(gzip) => gzip.limit(),
        }
    }

    /// Reads unwrapped bytes; fewer than `out` only at the end. `fault` gets ranges of bytes that
    /// are not proven.
    fn read(
        &self,
        offset: u64,
        out: &mut [u8],
        fault: &mut dyn FnMut(Range<u64>, String),
    ) -> io::Result<usize> {
        match self {
            Self::Plain { file, .. } => pread(file, offset, out),
            Self::S2(frames) => frames.read(offset, out, fault),
            Self::Gzip(gzip) => gzip.read(offset, out),
        }
    }

    /// Unwrapped length; for gzip only once the end was read.
    fn end(&self) -> Option<u64> {
        match self {
            Self::Plain { len, .. } => Some(*len),
            Self::S2(frames) => Some(frames.decoded()),
            Self::Gzip(gzip) => gzip.end(),
        }
    }

    /// Where a read that begins at `offset` best ends.
    fn segment_end(&self, offset: u64) -> u64 {
        match self {
            Self::S2(frames) => frames.segment_end(offset),
            _ => offset
                .saturating_add(1 << 20)
                .min(self.end().unwrap_or(u64::MAX)),
        }
    }

    /// The place in the archive file of an unwrapped offset.
    fn place(&self, offset: u64) -> Option<u64> {
        match self {
            Self::Plain { .. } => Some(offset),
            Self::S2(frames) => frames.frame_at(offset).ok().flatten().map(|(at, _)| at),
            Self::Gzip(_) => None,
        }
    }

    /// Adds the place of an unwrapped offset to a finding.
    fn locate(&self, finding: Finding, offset: u64) -> Finding {
        match self.place(offset) {
            Some(at) => finding.offset(at),
            None => finding,
        }
    }
}

/// Opens an archive file.
pub fn open(path: &Path) -> Result<Opened, ArchiveError> {
    open_with(path, &[], None)
}

/// Opens an archive file whose S2 frames have these bits the wrong way round.
pub fn open_mended(path: &Path, flips: &[Flip]) -> Result<Opened, ArchiveError> {
    open_with(path, flips, None)
}

/// As [`open_mended`], read no faster than `limit` allows.
pub fn open_with(
    path: &Path,
    flips: &[Flip],
    limit: Option<Arc<Limit>>,
) -> Result<Opened, ArchiveError> {
    // The path is the user's own: a link in it is followed, a device is not opened.
    let file = super::dir::open_read_only(&std::fs::canonicalize(path)?)?;
    let file = Input::new(file, limit);
    let len = file.size()?;
    let mut head = [0; HEAD];
    let n = pread(&file, 0, &mut head)?;
    let head = head.get(..n).unwrap_or_default();
    if head.is_empty() {
        return Err(ArchiveError::Empty);
    }
    if !flips.is_empty()
        || frames::is_framed(head)
        || frames::lost_identifier(file.try_clone()?, len, head)?
    {
        return open_frames(Patched::new(file, flips), len);
    }
    if frames::is_cut_identifier(head) {
        return Err(ArchiveError::Truncated { len });
    }
    if head.starts_with(&[0x1f, 0x8b, 8]) {
        let container = Container::Gzip(Gzip::new(file));
        let mut inner = [0; HEAD];
        let n = container.read(0, &mut inner, &mut |_, _| {})?;
        return match inner.get(..n) {
            Some(inner) if is_tar(inner) => {
                Ok(Opened::Tar(Arc::new(TarTree::open(container, len)?)))
            }
            Some(inner) if inner.len() < HEAD => Err(ArchiveError::Truncated { len }),
            _ => Err(ArchiveError::NotAnArchive),
        };
    }
    if head.starts_with(archive_v2::MAGIC) {
        return Ok(Opened::V2(Arc::new(V2::open(Container::Plain {
            file,
            len,
        })?)));
    }
    if is_tar(head) {
        return Ok(Opened::Tar(Arc::new(TarTree::open(
            Container::Plain { file, len },
            len,
        )?)));
    }
    Err(ArchiveError::NotAnArchive)
}

fn open_frames(file: Patched, len: u64) -> Result<Opened, ArchiveError> {
    let frames = Frames::open(file, len)?;
    let mut doubts = !frames.findings.is_empty();
    // The file ends within its first frame, and that is all that is wrong.
    let cut = doubts
        && frames
            .findings
            .iter()
            .all(|f| f.code == Code::ArchiveTruncated)
        && frames.frame_at(0)?.is_none_or(|(_, end)| end >= len);
    let mut head = [0; HEAD];
    let n = frames.read(0, &mut head, &mut |_, _| doubts = true)?;
    let head = head.get(..n).unwrap_or_default();
    let container = Container::S2(frames);
    if head.starts_with(archive_v2::MAGIC) {
        return Ok(Opened::V2(Arc::new(V2::open(container)?)));
    }
    if is_tar(head) {
        return Ok(Opened::Tar(Arc::new(TarTree::open(container, len)?)));
    }
    if head.len() < HEAD {
        return Err(ArchiveError::Truncated { len });
    }
    if !doubts {
        return Err(ArchiveError::Damaged(
            "an S2 stream that holds neither a tar archive nor NATSARC1".to_owned(),
        ));
    }
    // The first frame is damaged: a tar shows itself by headers further on.
    let tree = TarTree::open(container, len)?;
    if !tree.is_empty() {
        return Ok(Opened::Tar(Arc::new(tree)));
    }
    if cut {
        return Err(ArchiveError::Truncated { len });
    }
    Ok(Opened::V2(Arc::new(V2::open(tree.into_container())?)))
}

/// Whether a tar begins like this, its first header perhaps damaged.
fn is_tar(head: &[u8]) -> bool {
    head.len() == HEAD && (head.get(257..262) == Some(b"ustar") || tar::is_header(head))
}

/// Findings of which there may be millions: some of each kind are kept, the others counted.
#[derive(Debug, Default)]
struct Notes {
    found: Vec<Finding>,
    kinds: Vec<(&'static str, Code, u64)>,
}

impl Notes {
    /// Adds a finding, unless there are many that begin with `kind` already.
    fn add(&mut self, kind: &'static str, finding: impl FnOnce() -> Finding) {
        let i = match self.kinds.iter().position(|(k, _, _)| *k == kind) {
            Some(i) => i,
            None => {
                self.kinds.push((kind, Code::ArchiveDamaged, 0));
                self.kinds.len().saturating_sub(1)
            }
        };
        let Some((_, code, count)) = self.kinds.get_mut(i) else {
            return;
        };
        *count = count.saturating_add(1);
        if *count <= MAX_FINDINGS as u64 {
            let finding = finding();
            *code = finding.code;
            self.found.push(finding);
        }
    }

    fn into_findings(mut self) -> Vec<Finding> {
        for (kind, code, count) in self.kinds {
            let more = count.saturating_sub(MAX_FINDINGS as u64);
            if more > 0 {
                self.found
                    .push(Finding::new(code, format!("{kind}: {more} more")));
            }
        }
        self.found
    }
}

#[cfg(test)]
mod tests;
