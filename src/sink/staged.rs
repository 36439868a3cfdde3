//! Files and directories that appear whole or not at all: written under another name, synced, renamed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

pub use crate::source::STAGING_PREFIX as PREFIX;

/// A directory in the making. Dropped before [`commit`](Self::commit) it is removed.
#[derive(Debug)]
pub struct StagedDir {
    path: PathBuf,
    /// Directories above it that were made for it, the highest first.
    made: Vec<PathBuf>,
    kept: bool,
}

/// Makes a directory and those above it that are missing; gives the ones made, the highest first.
pub fn make_dirs(path: &Path, mode: u32) -> io::Result<Vec<PathBuf>> {
    let mut missing: Vec<&Path> = path
        .ancestors()
        .take_while(|p| !p.as_os_str().is_empty() && !p.exists())
        .collect();
    missing.reverse();
    let mut made = Vec::new();
    for dir in missing {
        match fs::DirBuilder::new().mode(mode).create(dir) {
            Ok(()) => made.push(dir.to_owned()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(e) => {
                remove_empty(&made);
                return Err(e);
            }
        }
    }
    Ok(made)
}

/// Removes directories that are still empty, the last first.
pub fn remove_empty(dirs: &[PathBuf]) {
    for dir in dirs.iter().rev() {
        if fs::remove_dir(dir).is_err() {
            return;
        }
    }
}

impl StagedDir {
    /// Makes a new directory in `parent` (which may have to be made, too) with these permissions.
    ///
    /// A stream's name is no part of its name: that may be as long as a file's name can be, or be
    /// no file's name at all.
    pub fn new(parent: &Path, mode: u32) -> io::Result<Self> {
        let made = make_dirs(parent, mode)?;
        let mut n = 0u32;
        loop {
            let path = parent.join(format!("{PREFIX}{}-{n}", std::process::id()));
            match fs::DirBuilder::new().mode(mode).create(&path) {
                Ok(()) => {
                    return Ok(Self {
                        path,
                        made,
                        kept: false,
                    });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && n < 1000 => n += 1,
                Err(e) => {
                    remove_empty(&made);
                    return Err(e);
                }
            }
        }
    }

    /// Where it is for now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs it and leaves it where it is, for the caller to rename.
    pub fn keep(mut self) -> io::Result<PathBuf> {
        sync_tree(&self.path)?;
        self.kept = true;
        Ok(self.path.clone())
    }

    /// Renames it to `target`, which must not exist or be an empty directory.
    ///
    /// Everything in it is synced first.
    pub fn commit(mut self, target: &Path) -> io::Result<()> {
        sync_tree(&self.path)?;
        rename_new(&self.path, target)?;
        self.kept = true;
        sync_dir(parent(target))
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.path);
            remove_empty(&self.made);
        }
    }
}

/// Renames a directory unless that would replace something.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with, rmdir};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // An empty directory may be replaced: rmdir refuses any other.
        Err(rustix::io::Errno::EXIST) => {
            rmdir(to).map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))?;
            Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
        }
        // File systems without that flag: the check and the rename are two steps.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::rename(from, to),
        Err(e) => Err(e.into()),
    }
}

/// The directory that `path` is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Syncs one directory's entries.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// With more entries than this one call for the whole file system is cheaper than one each, though it
/// also waits for what others have written.
#[cfg(target_os = "linux")]
const SYNC_EACH: usize = 512;

/// Brings a tree to the disk.
fn sync_tree(root: &Path) -> io::Result<()> {
    let (mut files, mut dirs) = (Vec::new(), vec![root.to_owned()]);
    let mut next = 0;
    while let Some(dir) = dirs.get(next).cloned() {
        next += 1;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let list = if entry.file_type()?.is_dir() {
                &mut dirs
            } else {
                &mut files
            };
            list.push(entry.path());
        }
        #[cfg(target_os = "linux")]
        if files.len().saturating_add(dirs.len()) > SYNC_EACH {
            return Ok(rustix::fs::syncfs(File::open(root)?)?);
        }
    }
    for path in files.iter().chain(&dirs) {
        File::open(path)?.sync_all()?;
    }
    Ok(())
}

/// Puts two directories in each other's place, in one step.
pub fn swap(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// Writes a file and syncs it.
pub fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        let staged = StagedDir::new(dir.path(), 0o750).unwrap();
        write_synced(&staged.path().join("f"), b"1").unwrap();
        drop(staged);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // What had to be made above it goes with it, what was there stays.
        drop(StagedDir::new(&dir.path().join("a/b"), 0o700).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // Over nothing, over an empty directory, not over anything else.
        for make in [false, true] {
            if make {
                fs::remove_dir_all(&target).unwrap();
                fs::create_dir(&target).unwrap();
            }
            let staged = StagedDir::new(dir.path(), 0o750).unwrap();
            write_synced(&staged.path().join("f"), b"2").unwrap();
            staged.commit(&target).unwrap();
            assert_eq!(fs::read(target.join("f")).unwrap(), b"2");
        }
        let staged = StagedDir::new(dir.path(), 0o750).unwrap();
        let e = staged.commit(&target).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
