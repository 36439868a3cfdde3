//! A directory on disk as a [`Tree`].

use super::limit::Limit;
use super::tree::{Child, ChildKind, ReadError, ReadFault, Tree, sum_below};
use crate::pipeline::Threads;
use std::fs::{self, File, Metadata};
use std::hash::{Hash as _, Hasher as _};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directories below this depth are not looked into: no store is deeper than eight.
const MAX_DEPTH: usize = 16;

/// A directory.
///
/// Files are opened read-only, without following links, and without updating their access time
/// where the system allows that.
#[derive(Debug)]
pub struct DirTree {
    root: PathBuf,
    mmap: bool,
    limit: Option<Arc<Limit>>,
}

impl DirTree {
    /// The tree below `root`. With `mmap`, blocks are mapped instead of read: faster on a warm
    /// cache, but a bad sector, or a file cut while it is mapped, kills the process (SIGBUS).
    pub fn new(root: impl Into<PathBuf>, mmap: bool) -> Self {
        Self {
            root: root.into(),
            mmap,
            limit: None,
        }
    }

    /// The same, read no faster than `limit` allows; nothing is mapped then.
    #[must_use]
    pub fn limited(mut self, limit: Option<Arc<Limit>>) -> Self {
        self.mmap &= limit.is_none();
        self.limit = limit;
        self
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn full(&self, path: &Path) -> PathBuf {
        if path.as_os_str().is_empty() {
            self.root.clone()
        } else {
            self.root.join(path)
        }
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        open_read_only(&self.full(path))
    }
}

/// Opens a regular file for reading: no link followed, nothing waited for, access time kept.
pub fn open_read_only(path: &Path) -> io::Result<File> {
    open_regular(path).map(|(file, _)| file)
}

fn open_regular(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let open = |flags: rustix::fs::OFlags| {
        fs::OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits() as i32)
            .open(path)
    };
    // Only the owner may ask not to touch the access time.
    #[cfg(target_os = "linux")]
    let file = open(flags | rustix::fs::OFlags::NOATIME).or_else(|e| {
        if e.kind() == io::ErrorKind::PermissionDenied {
            open(flags)
        } else {
            Err(e)
        }
    })?;
    #[cfg(not(target_os = "linux"))]
    let file = open(flags)?;
    let meta = file.metadata()?;
    if meta.is_file() {
        Ok((file, meta))
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ))
    }
}

#[cfg(target_os = "linux")]
fn will_need(file: &File, len: u64) {
    /// A kernel does not take in much more at a time.
    const STEP: u64 = 512 << 10;
    for at in (0..len).step_by(STEP as usize) {
        let step = std::num::NonZeroU64::new(STEP);
        let _ = rustix::fs::fadvise(file, at, step, rustix::fs::Advice::WillNeed);
    }
}

#[cfg(not(target_os = "linux"))]
fn will_need(_: &File, _: u64) {}

fn kind(meta: &Metadata) -> ChildKind {
    let t = meta.file_type();
    if t.is_file() {
        ChildKind::File
    } else if t.is_dir() {
        ChildKind::Dir
    } else if t.is_symlink() {
        ChildKind::Symlink
    } else {
        ChildKind::Other
    }
}

fn child(name: std::ffi::OsString, meta: &Metadata) -> Child {
    let modified = meta
        .mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(meta.mtime_nsec());
    Child {
        name,
        kind: kind(meta),
        len: if meta.is_file() { meta.len() } else { 0 },
        modified,
    }
}

impl Tree for DirTree {
    fn children(&self, dir: &Path) -> io::Result<Vec<Child>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(self.full(dir))? {
            let entry = entry?;
            // Of directories their names are all that is asked for.
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                out.push(Child {
                    name: entry.file_name(),
                    kind: ChildKind::Dir,
                    len: 0,
                    modified: 0,
                });
                continue;
            }
            match entry.metadata() {
                Ok(meta) => out.push(child(entry.file_name(), &meta)),
                // Gone since it was listed: a running server, which the fingerprint will show.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        out.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    fn stat(&self, path: &Path) -> io::Result<Child> {
        let full = self.full(path);
        let meta = fs::symlink_metadata(&full)?;
        Ok(child(
            full.file_name().unwrap_or_default().to_owned(),
            &meta,
        ))
    }

    fn read_into(
        &self,
        path: &Path,
        buf: &mut Vec<u8>,
        ceiling: u64,
    ) -> Result<Vec<ReadFault>, ReadError> {
        buf.clear();
        let (file, meta) = open_regular(&self.full(path))?;
        let len = meta.len();
        if len > ceiling {
            return Err(ReadError::TooLarge { len, ceiling });
        }
        // A length that no memory is there for is the file's fault, not a reason to abort.
        buf.try_reserve(usize::try_from(len).unwrap_or(usize::MAX).saturating_add(1))
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // Of a file that grows meanwhile, what it was when it was opened.
        match &self.limit {
            None => {
                file.take(len).read_to_end(buf)?;
            }
            Some(limit) => limit.read_to_end(&file, len, buf)?,
        }
        Ok(Vec::new())
    }

    fn read_at(&self, path: &Path, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let file = self.open(path)?;
        let mut done = 0usize;
        while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            let at = offset.saturating_add(done as u64);
            let read = match &self.limit {
                None => file.read_at(rest, at),
                Some(limit) => limit.read_at(&file, rest, at),
            };
            match read {
                Ok(0) => break,
                Ok(n) => done = done.saturating_add(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn map(&self, path: &Path) -> Option<io::Result<memmap2::Mmap>> {
        if !self.mmap {
            return None;
        }
        Some(self.open(path).and_then(|file| {
            #[expect(
                unsafe_code,
                reason = "the user asked for --mmap, whose help says that a file cut meanwhile or a bad sector kills the process; \
                          the bytes may change under us, which every decoder tolerates"
            )]
            unsafe {
                memmap2::Mmap::map(&file)
            }
        }))
    }

    fn limit(&self) -> Option<Arc<Limit>> {
        self.limit.clone()
    }

    fn will_read(&self, path: &Path, ceiling: u64) {
        if self.mmap || self.limit.is_some() {
            return;
        }
        // Nothing is lost where this fails; a larger file is not read at all.
        if let Ok((file, meta)) = open_regular(&self.full(path))
            && meta.len() <= ceiling
        {
            will_need(&file, meta.len());
        }
    }

    fn is_empty_dir(&self, dir: &Path) -> bool {
        fs::read_dir(self.full(dir)).is_ok_and(|mut entries| entries.next().is_none())
    }

    fn fingerprint(&self, dir: &Path, threads: &Threads) -> Option<u64> {
        let total = sum_below(
            self.full(dir),
            MAX_DEPTH,
            threads,
            names_and_times,
            // In what order directories and names are listed does not matter.
            u64::wrapping_add,
        );
        Some(total)
    }
}

/// The share of one directory in a fingerprint; the directories in it are added to `dirs`.
fn names_and_times(dir: &Path, dirs: &mut Vec<PathBuf>) -> u64 {
    let mut total = 0u64;
    let Ok(entries) = fs::read_dir(dir) else {
        return total;
    };
    let mut above = std::hash::DefaultHasher::new();
    dir.as_os_str().as_bytes().hash(&mut above);
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let mut h = above.clone();
        entry.file_name().as_bytes().hash(&mut h);
        kind.is_dir().hash(&mut h);
        if kind.is_dir() {
            dirs.push(entry.path());
        } else if let Ok(meta) = entry.metadata() {
            (meta.ino(), meta.len()).hash(&mut h);
            (meta.mtime(), meta.mtime_nsec()).hash(&mut h);
        } else {
            continue;
        }
        total = total.wrapping_add(h.finish());
    }
    total
}

/// A single file as a tree of one.
#[derive(Debug)]
pub struct FileTree {
    dir: DirTree,
    name: std::ffi::OsString,
}

impl FileTree {
    /// `path` must have a file name.
    pub fn new(path: &Path, mmap: bool) -> Option<Self> {
        let name = path.file_name()?.to_owned();
        let parent = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        Some(Self {
            dir: DirTree::new(parent, mmap),
            name,
        })
    }

    /// The same, read no faster than `limit` allows; it is not mapped then.
    #[must_use]
    pub fn limited(mut self, limit: Option<Arc<Limit>>) -> Self {
        self.dir = self.dir.limited(limit);
        self
    }
}

impl Tree for FileTree {
    fn children(&self, dir: &Path) -> io::Result<Vec<Child>> {
        if dir.as_os_str().is_empty() {
            Ok(vec![self.dir.stat(Path::new(&self.name))?])
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    fn stat(&self, path: &Path) -> io::Result<Child> {
        self.dir.stat(path)
    }

    fn read_into(
        &self,
        path: &Path,
        buf: &mut Vec<u8>,
        ceiling: u64,
    ) -> Result<Vec<ReadFault>, ReadError> {
        self.dir.read_into(path, buf, ceiling)
    }

    fn read_at(&self, path: &Path, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.dir.read_at(path, offset, buf)
    }

    fn map(&self, path: &Path) -> Option<io::Result<memmap2::Mmap>> {
        self.dir.map(path)
    }

    fn limit(&self) -> Option<Arc<Limit>> {
        self.dir.limit()
    }
}
