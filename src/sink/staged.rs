//! Files and directories that appear whole or not at all: written under another name, synced, renamed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// What temporary names begin with. No server and no CLI uses such a name.
pub const PREFIX: &str = ".jetsam-";

/// A directory in the making. Dropped before [`commit`](Self::commit) it is removed.
#[derive(Debug)]
pub struct StagedDir {
    path: PathBuf,
    kept: bool,
}

impl StagedDir {
    /// Makes a new directory in `parent` (which may have to be made, too), named after `what`.
    pub fn new(parent: &Path, what: &str) -> io::Result<Self> {
        fs::create_dir_all(parent)?;
        let mut n = 0u32;
        loop {
            let mut name = OsString::from(PREFIX);
            name.push(format!("{}-{n}-", std::process::id()));
            name.push(what);
            let path = parent.join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path, kept: false }),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && n < 1000 => n += 1,
                Err(e) => return Err(e),
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
        sync_dir(target.parent().unwrap_or(Path::new("")))
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.path);
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

/// Syncs one directory's entries.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)?.sync_all()
}

/// Brings a tree to the disk: with one call where there is one, which for many small files is a
/// thousand times faster than one each.
#[cfg(target_os = "linux")]
fn sync_tree(root: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(root)?)?)
}

/// Brings a tree to the disk.
#[cfg(not(target_os = "linux"))]
fn sync_tree(root: &Path) -> io::Result<()> {
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                todo.push(entry.path());
            } else {
                File::open(entry.path())?.sync_all()?;
            }
        }
        sync_dir(&dir)?;
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
        let staged = StagedDir::new(dir.path(), "x").unwrap();
        write_synced(&staged.path().join("f"), b"1").unwrap();
        drop(staged);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // Over nothing, over an empty directory, not over anything else.
        for make in [false, true] {
            if make {
                fs::remove_dir_all(&target).unwrap();
                fs::create_dir(&target).unwrap();
            }
            let staged = StagedDir::new(dir.path(), "x").unwrap();
            write_synced(&staged.path().join("f"), b"2").unwrap();
            staged.commit(&target).unwrap();
            assert_eq!(fs::read(target.join("f")).unwrap(), b"2");
        }
        let staged = StagedDir::new(dir.path(), "x").unwrap();
        let e = staged.commit(&target).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
