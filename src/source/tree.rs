//! A tree of files that can only be read: a directory, or the members of an archive.

use super::limit::Limit;
use crate::pipeline::{self, Threads};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a name in a [`Tree`] stands for. Links are never followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A device, socket, pipe.
    Other,
}

/// One name in a directory.
#[derive(Debug, Clone)]
pub struct Child {
    /// Its name, as bytes on disk.
    pub name: OsString,
    /// What it stands for.
    pub kind: ChildKind,
    /// Length in bytes (files).
    pub len: u64,
    /// Time of last change of a file, ns since the epoch (0 where the source has none).
    pub modified: i64,
}

/// Damage of the container that bytes were read through (an archive's S2 frames), by offset in the
/// file that was read. Bytes there are zeros or unproven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadFault {
    /// Offset in the file read.
    pub offset: u64,
    /// What is wrong, with the place in the container.
    pub detail: String,
}

/// Why a file could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Over the ceiling for files of its kind.
    #[error("{len} bytes, over the ceiling of {ceiling}")]
    TooLarge {
        /// Its length.
        len: u64,
        /// What it may be at most.
        ceiling: u64,
    },
    /// The operating system's word.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ReadError {
    /// True when there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io(e) if e.kind() == io::ErrorKind::NotFound)
    }
}

/// A read-only tree of files. Paths are relative to its root; the empty path is the root.
pub trait Tree: Send + Sync + fmt::Debug {
    /// The names in `dir`, sorted.
    fn children(&self, dir: &Path) -> io::Result<Vec<Child>>;

    /// One name, links not followed.
    fn stat(&self, path: &Path) -> io::Result<Child>;

    /// Replaces `buf` by the whole file, unless it is over `ceiling`.
    fn read_into(
        &self,
        path: &Path,
        buf: &mut Vec<u8>,
        ceiling: u64,
    ) -> Result<Vec<ReadFault>, ReadError>;

    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, path: &Path, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Says that the file, up to `ceiling` bytes, will be read soon, so that the disk is busy while others are decoded.
    fn will_read(&self, _path: &Path, _ceiling: u64) {}

    /// True for a directory with nothing in it.
    fn is_empty_dir(&self, dir: &Path) -> bool {
        self.children(dir).is_ok_and(|c| c.is_empty())
    }

    /// Maps the file, where the tree is set up for that (see [`DirTree`](super::dir::DirTree)).
    fn map(&self, _path: &Path) -> Option<io::Result<memmap2::Mmap>> {
        None
    }

    /// True when files are best read in their order, one at a time (a gzip archive).
    fn sequential(&self) -> bool {
        false
    }

    /// What reading it is limited by.
    fn limit(&self) -> Option<Arc<Limit>> {
        None
    }

    /// A fingerprint of everything below `dir`: names, lengths, times. Two that differ mean that
    /// something was written in between. `None` where that cannot happen.
    fn fingerprint(&self, _dir: &Path, _threads: &Threads) -> Option<u64> {
        None
    }
}

/// What `of` says of `dir` and of each directory in it, down to `depth`, added up. `of` adds the directories that it finds to
/// the list it is given.
pub fn sum_below(
    dir: PathBuf,
    depth: usize,
    threads: &Threads,
    of: impl Fn(&Path, &mut Vec<PathBuf>) -> u64 + Sync,
    add: fn(u64, u64) -> u64,
) -> u64 {
    /// Directories that one thread takes at a time.
    const SHARE: usize = 64;
    let mut total = 0u64;
    let mut level = vec![dir];
    for _ in 0..=depth {
        let mut below = Vec::new();
        pipeline::ordered(
            threads,
            level.len().div_ceil(SHARE),
            || (),
            |i, ()| {
                let mut dirs = Vec::new();
                let share = level.chunks(SHARE).nth(i).unwrap_or_default();
                let sum = share
                    .iter()
                    .fold(0, |sum, dir| add(sum, of(dir, &mut dirs)));
                (sum, dirs)
            },
            |_, (sum, mut dirs)| {
                total = add(total, sum);
                below.append(&mut dirs);
                ControlFlow::Continue(())
            },
        );
        level = below;
    }
    total
}
