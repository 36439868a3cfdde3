//! A tree with some of its files replaced: what salvage reads, the source itself being left as it is.

use super::limit::Limit;
use super::tree::{Child, ChildKind, ReadError, ReadFault, Tree};
use crate::pipeline::Threads;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is read in a file's place.
#[derive(Debug, Clone)]
enum Instead {
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// Another file of the tree.
    File(PathBuf),
    /// Nothing: as if it were not there.
    Nothing,
}

/// The tree, and what differs from it.
#[derive(Debug, Clone)]
pub struct Overlay {
    base: Arc<dyn Tree>,
    files: BTreeMap<PathBuf, Instead>,
}

fn not_found() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl Overlay {
    /// The tree as it is.
    pub fn new(base: Arc<dyn Tree>) -> Self {
        Self {
            base,
            files: BTreeMap::new(),
        }
    }

    /// True where nothing is replaced.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Puts bytes in a file's place, which need not be there.
    pub fn put(&mut self, path: PathBuf, bytes: Vec<u8>) {
        self.files.insert(path, Instead::Bytes(bytes.into()));
    }

    /// Puts another file, of the tree as it was, in a file's place.
    pub fn put_file(&mut self, path: PathBuf, other: PathBuf) {
        self.files.insert(path, Instead::File(other));
    }

    /// Hides a file.
    pub fn hide(&mut self, path: PathBuf) {
        self.files.insert(path, Instead::Nothing);
    }

    /// Whether the tree below has the file.
    pub fn is_in_base(&self, path: &Path) -> bool {
        self.base.stat(path).is_ok()
    }

    fn child(&self, path: &Path, instead: &Instead) -> Option<Child> {
        let name = path.file_name().unwrap_or(OsStr::new("")).to_owned();
        match instead {
            Instead::Bytes(bytes) => Some(Child {
                name,
                kind: ChildKind::File,
                len: bytes.len() as u64,
                modified: 0,
            }),
            Instead::File(other) => {
                let there = self.base.stat(other).ok()?;
                Some(Child { name, ..there })
            }
            Instead::Nothing => None,
        }
    }
}

impl Tree for Overlay {
    fn children(&self, dir: &Path) -> io::Result<Vec<Child>> {
        let mut inside = self
            .files
            .iter()
            .filter(|(path, _)| path.parent() == Some(dir))
            .peekable();
        let mut children = match self.base.children(dir) {
            Ok(children) => children,
            Err(e) if e.kind() != io::ErrorKind::NotFound || inside.peek().is_none() => {
                return Err(e);
            }
            Err(_) => Vec::new(),
        };
        for (path, instead) in inside {
            let name = path.file_name().unwrap_or(OsStr::new(""));
            children.retain(|c| c.name != name);
            children.extend(self.child(path, instead));
        }
        children.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(children)
    }

    fn stat(&self, path: &Path) -> io::Result<Child> {
        match self.files.get(path) {
            Some(instead) => self.child(path, instead).ok_or_else(not_found),
            None => self.base.stat(path),
        }
    }

    fn read_into(
        &self,
        path: &Path,
        buf: &mut Vec<u8>,
        ceiling: u64,
    ) -> Result<Vec<ReadFault>, ReadError> {
        match self.files.get(path) {
            Some(Instead::Bytes(bytes)) => {
                let len = bytes.len() as u64;
                if len > ceiling {
                    return Err(ReadError::TooLarge { len, ceiling });
                }
                buf.clear();
                buf.extend_from_slice(bytes);
                Ok(Vec::new())
            }
            Some(Instead::File(other)) => self.base.read_into(other, buf, ceiling),
            Some(Instead::Nothing) => Err(not_found().into()),
            None => self.base.read_into(path, buf, ceiling),
        }
    }

    fn read_at(&self, path: &Path, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match self.files.get(path) {
            Some(Instead::Bytes(bytes)) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let rest = bytes.get(from..).unwrap_or_default();
                let n = rest.len().min(buf.len());
                if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
                    to.copy_from_slice(from);
                }
                Ok(n)
            }
            Some(Instead::File(other)) => self.base.read_at(other, offset, buf),
            Some(Instead::Nothing) => Err(not_found()),
            None => self.base.read_at(path, offset, buf),
        }
    }

    fn map(&self, path: &Path) -> Option<io::Result<memmap2::Mmap>> {
        match self.files.get(path) {
            Some(Instead::File(other)) => self.base.map(other),
            Some(_) => None,
            None => self.base.map(path),
        }
    }

    fn sequential(&self) -> bool {
        self.base.sequential()
    }

    fn limit(&self) -> Option<Arc<Limit>> {
        self.base.limit()
    }

    fn will_read(&self, path: &Path, ceiling: u64) {
        match self.files.get(path) {
            Some(Instead::File(other)) => self.base.will_read(other, ceiling),
            Some(_) => {}
            None => self.base.will_read(path, ceiling),
        }
    }

    fn fingerprint(&self, dir: &Path, threads: &Threads) -> Option<u64> {
        self.base.fingerprint(dir, threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::dir::DirTree;

    #[test]
    fn files_are_replaced_added_and_hidden() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let mut tree = Overlay::new(Arc::new(DirTree::new(dir.path(), false)));
        assert!(tree.is_empty());
        tree.put("a".into(), b"other".to_vec());
        tree.put_file("d".into(), "b".into());
        tree.put("new/e".into(), b"5".to_vec());
        tree.hide("c".into());
        let names = |dir: &str| {
            let children = tree.children(Path::new(dir));
            children.map(|all| {
                let all = all.into_iter();
                all.map(|c| (c.name.into_string().unwrap(), c.len))
                    .collect::<Vec<_>>()
            })
        };
        let want = [("a", 5), ("b", 1), ("d", 1)].map(|(n, len)| (n.to_owned(), len));
        assert_eq!(names("").unwrap(), want);
        assert_eq!(names("new").unwrap(), [("e".to_owned(), 1)]);
        names("none").unwrap_err();
        let read = |path: &str| {
            let mut buf = Vec::new();
            tree.read_into(Path::new(path), &mut buf, 4).map(|_| buf)
        };
        assert_eq!(read("d").unwrap(), b"b");
        assert!(matches!(
            read("a"),
            Err(ReadError::TooLarge { len: 5, ceiling: 4 })
        ));
        assert!(read("c").is_err_and(|e| e.is_not_found()));
        let mut two = [0; 2];
        assert_eq!(tree.read_at(Path::new("a"), 4, &mut two).unwrap(), 1);
        assert_eq!(two, *b"r\0");
        assert!(tree.stat(Path::new("c")).is_err());
        assert_eq!(tree.stat(Path::new("d")).unwrap().len, 1);
    }
}
