//! Where bytes come from: what a SOURCE argument is, and which streams it holds.

pub mod archive;
pub mod config_dir;
pub mod dir;
pub mod in_use;
pub mod limit;
pub mod overlay;
pub mod select;
pub mod tree;

use crate::finding::{Code, Finding, Severity};
use crate::format::backup_json::{self, BackupJson};
use crate::format::meta;
use crate::stream::mends::Mends;
use dir::{DirTree, FileTree};
use limit::Limit;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tree::{Child, ChildKind, Tree};

/// What a SOURCE turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A server's `store_dir`, or the `jetstream` directory inside it.
    Store,
    /// One account's directory.
    Account,
    /// One stream's directory (or a raft group's).
    Stream,
    /// `backup.json` and `stream.tar.s2`.
    Backup,
    /// Backup directories, one for each stream, perhaps below one for each account.
    AccountBackup,
    /// An archive file.
    Archive,
    /// One file of a stream.
    File,
    /// Configurations without messages.
    Config,
}

/// What a stream-like directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A stream.
    Stream,
    /// The write-ahead log of a raft group.
    RaftGroup,
    /// Messages of an atomic batch that was not committed yet.
    Batch,
    /// A stream directory that a server was deleting.
    Deleted,
}

/// Where a stream's messages are.
#[derive(Debug, Clone)]
pub enum Body {
    /// A stream directory in a tree: message blocks under `msgs/`.
    Blocks {
        /// The tree.
        tree: Arc<dyn Tree>,
        /// The stream directory in it.
        dir: PathBuf,
        /// The directory with the blocks, relative to `dir` (`msgs`; empty where only that is given).
        msgs: PathBuf,
    },
    /// A NATSARC1 archive.
    Entries(Arc<archive::V2>),
    /// Nowhere: a configuration without messages.
    Config(Arc<config_dir::ConfiguredStream>),
}

/// One stream in a source.
#[derive(Debug, Clone)]
pub struct StreamSource {
    /// Account; empty where the source does not tell.
    pub account: String,
    /// Name: the directory's, or the archive's.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Path of the stream's directory or archive, relative to the source.
    pub path: PathBuf,
    /// Where the messages are.
    pub body: Body,
    /// What `backup.json` beside an archive says.
    pub backup: Option<BackupJson>,
    /// What was noticed while finding it.
    pub findings: Vec<Finding>,
    /// What salvage puts right.
    pub mends: Arc<Mends>,
}

/// A source, opened.
#[derive(Debug)]
pub struct Source {
    /// As given.
    pub path: PathBuf,
    /// What it is.
    pub kind: SourceKind,
    /// The streams, by account and name.
    pub streams: Vec<StreamSource>,
    /// Raft groups and unfinished batches.
    pub groups: Vec<StreamSource>,
    /// What was noticed outside of any stream.
    pub findings: Vec<Finding>,
    /// The directory as a tree, where it is one.
    pub tree: Option<Arc<dyn Tree>>,
}

impl Source {
    /// The path of a finding's `file`, which is relative to the source: for a source that is a file
    /// itself, to its directory.
    pub fn full(&self, file: &str) -> String {
        match self.kind {
            _ if file.is_empty() => text(&self.path),
            SourceKind::Archive | SourceKind::File => text(&self.path.with_file_name(file)),
            _ => text(&self.path.join(file)),
        }
    }
}

/// How to open a source.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Map blocks instead of reading them.
    pub mmap: bool,
    /// The account to assume where the path does not tell (one `-a` without wildcards).
    pub account: Option<String>,
    /// The stream to assume where the path does not tell (one `-s` without wildcards).
    pub stream: Option<String>,
    /// Take a backup directory for one of configurations where it is that too: the old `nats backup --data` put an
    /// archive beside them.
    pub configurations: bool,
    /// Also list streams in left-overs: staging of restores and backups, directories outside of `streams/`.
    pub leftovers: bool,
    /// How fast it is read at most; nothing is mapped then.
    pub limit: Option<Arc<Limit>>,
}

/// Why a source could not be opened. Nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It can not be reached.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is nothing that jetsam knows.
    #[error("{}: {why}", path.display())]
    Unknown {
        /// The path.
        path: PathBuf,
        /// What was looked for.
        why: String,
    },
}

/// A path as text for findings and JSON: bytes that are not UTF-8 are shown as U+FFFD.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn name_text(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

fn join(base: &Path, name: impl AsRef<Path>) -> PathBuf {
    if base.as_os_str().is_empty() {
        name.as_ref().to_owned()
    } else {
        base.join(name)
    }
}

/// `N.blk`, `N.idx` … : the number, if the name is one that a server gives.
pub fn numbered(name: &OsStr, extension: &str) -> Option<u64> {
    let stem = name.to_str()?.strip_suffix(extension)?.strip_suffix('.')?;
    (!stem.is_empty() && stem.bytes().all(|b| b.is_ascii_digit())).then(|| stem.parse().ok())?
}

/// What the names of directories in the making begin with: jetsam's own, left by a run that was
/// killed. Nothing in them is whole, so nothing in them is a stream or a backup. No server and no
/// CLI uses such a name.
pub const STAGING_PREFIX: &str = ".jetsam-";

struct Finder<'a> {
    tree: Arc<dyn Tree>,
    options: &'a OpenOptions,
    streams: Vec<StreamSource>,
    groups: Vec<StreamSource>,
    findings: Vec<Finding>,
}

fn has(children: &[Child], name: &str, kind: ChildKind) -> bool {
    children.iter().any(|c| c.kind == kind && c.name == name)
}

fn is_backup(children: &[Child]) -> bool {
    has(children, "backup.json", ChildKind::File) || has(children, "stream.tar.s2", ChildKind::File)
}

fn is_stream(children: &[Child]) -> bool {
    has(children, "msgs", ChildKind::Dir)
        || (has(children, "meta.inf", ChildKind::File) && !has(children, "o.dat", ChildKind::File))
}

fn is_group(children: &[Child]) -> bool {
    has(children, "tav.idx", ChildKind::File)
        || has(children, "peers.idx", ChildKind::File)
        || has(children, "snapshots", ChildKind::Dir)
}

fn has_blocks(children: &[Child]) -> bool {
    children
        .iter()
        .any(|c| c.kind == ChildKind::File && numbered(&c.name, "blk").is_some())
}

impl Finder<'_> {
    /// Lists a directory; what cannot be listed is a finding, not the end.
    fn list(&mut self, dir: &Path) -> Vec<Child> {
        match self.tree.children(dir) {
            Ok(children) => {
                for c in &children {
                    let at = text(&join(dir, &c.name));
                    match c.kind {
                        ChildKind::Symlink => self.findings.push(
                            Finding::new(Code::NotAFile, "a symbolic link; not followed").file(at),
                        ),
                        ChildKind::Other => self.findings.push(
                            Finding::new(Code::NotAFile, "neither file nor directory").file(at),
                        ),
                        _ if c.name.to_str().is_none() => self
                            .findings
                            .push(Finding::new(Code::OddName, "a name that is not UTF-8").file(at)),
                        _ => {}
                    }
                }
                children
            }
            Err(e) => {
                self.findings.push(
                    Finding::new(Code::Unreadable, format!("cannot be listed: {e}"))
                        .file(text(dir)),
                );
                Vec::new()
            }
        }
    }

    fn dirs(children: &[Child]) -> impl Iterator<Item = &OsString> {
        children
            .iter()
            .filter(|c| c.kind == ChildKind::Dir)
            .map(|c| &c.name)
            .filter(|name| !name.as_bytes().starts_with(STAGING_PREFIX.as_bytes()))
    }

    fn leftover(&mut self, path: &Path, detail: &str) {
        self.findings
            .push(Finding::new(Code::Leftover, detail).file(text(path)));
    }

    fn store(&mut self, dir: &Path) {
        let children = self.list(dir);
        for c in &children {
            let at = join(dir, &c.name);
            match c.kind {
                ChildKind::Dir if c.name == ".snap-staging" => {
                    self.leftover(&at, "staging of a restore that was interrupted");
                    self.staged(&at, "");
                }
                ChildKind::Dir => self.account(&at, &name_text(&c.name)),
                ChildKind::File => self.findings.push(
                    Finding::new(Code::OddName, "a file where only account directories belong; a server with several accounts deletes it at start")
                        .file(text(&at)),
                ),
                _ => {}
            }
        }
    }

    fn account(&mut self, dir: &Path, account: &str) {
        let children = self.list(dir);
        if children.is_empty() {
            self.findings
                .push(Finding::new(Code::OddName, "an empty account directory").file(text(dir)));
        }
        for c in &children {
            let at = join(dir, &c.name);
            match (c.kind, c.name.to_str()) {
                (ChildKind::Dir, Some("streams")) => self.streams(&at, account),
                (ChildKind::Dir, Some("_js_")) => self.raft(&at, account),
                (ChildKind::Dir, Some("templates")) => {
                    let n = self.list(&at).len();
                    if n > 0 {
                        self.leftover(
                            &at,
                            &format!("{n} stream templates, which servers since 2.14 ignore"),
                        );
                    }
                }
                (ChildKind::Dir, Some("__snapshots__")) => {
                    self.leftover(
                        &at,
                        "scratch space of a backup or restore that was interrupted",
                    );
                    self.staged(&at, account);
                }
                (ChildKind::Dir, _) => {
                    let inside = self.list(&at);
                    if is_stream(&inside) {
                        self.leftover(&at, "a stream directory outside of streams/");
                        self.push_staged(account, &at);
                    }
                }
                (ChildKind::File, _) => self.findings.push(
                    Finding::new(Code::OddName, "a file that no server uses").file(text(&at)),
                ),
                _ => {}
            }
        }
    }

    /// Stream directories in the staging of something that was interrupted.
    fn staged(&mut self, dir: &Path, account: &str) {
        if !self.options.leftovers {
            return;
        }
        for name in Self::dirs(&self.list(dir)) {
            let at = join(dir, name);
            let inside = self.list(&at);
            if is_stream(&inside) {
                self.push_staged(account, &at);
            }
        }
    }

    /// A stream directory whose place does not tell its name: its `meta.inf` does.
    fn push_staged(&mut self, account: &str, at: &Path) {
        const CEILING: u64 = 16 << 20;
        if !self.options.leftovers {
            return;
        }
        let mut inf = Vec::new();
        let read = self.tree.read_into(&at.join("meta.inf"), &mut inf, CEILING);
        let named = read.ok().and_then(|_| meta::decode_stream(&inf).ok()?.name);
        let own = at.file_name().map(name_text).unwrap_or_default();
        self.push(account, &named.unwrap_or(own), Role::Deleted, at);
    }

    fn streams(&mut self, dir: &Path, account: &str) {
        let children = self.list(dir);
        for c in children.iter().filter(|c| c.kind == ChildKind::File) {
            self.findings.push(
                Finding::new(Code::OddName, "a file where only stream directories belong")
                    .file(text(&join(dir, &c.name))),
            );
        }
        for name in Self::dirs(&children) {
            let at = join(dir, name);
            let text = name_text(name);
            if let Some(was) = text.strip_prefix('.') {
                self.findings.push(
                    Finding::new(Code::Leftover, "a stream that a server was deleting")
                        .stream(account, was)
                        .file(self::text(&at)),
                );
                self.push(account, was, Role::Deleted, &at);
                continue;
            }
            // What is inside is noted when the stream is opened.
            if self.tree.is_empty_dir(&at) {
                self.findings.push(
                    Finding::new(Code::OddName, "an empty stream directory")
                        .stream(account, &text)
                        .file(self::text(&at)),
                );
            }
            self.push(account, &text, Role::Stream, &at);
            let batches = join(&at, "batches");
            if self
                .tree
                .stat(&batches)
                .is_ok_and(|c| c.kind == ChildKind::Dir)
            {
                let inside = self.list(&batches);
                for b in Self::dirs(&inside) {
                    self.push(account, &name_text(b), Role::Batch, &join(&batches, b));
                }
            }
        }
    }

    fn raft(&mut self, dir: &Path, account: &str) {
        let children = self.list(dir);
        for name in Self::dirs(&children) {
            self.push(account, &name_text(name), Role::RaftGroup, &join(dir, name));
        }
    }

    fn configurations(&mut self, path: &Path) -> Result<(), OpenError> {
        let found = config_dir::read_config_dir(path, self.options.limit.clone())?;
        self.findings.extend(found.findings);
        for mut s in found.streams {
            if s.account.is_empty() {
                s.account = self.options.account.clone().unwrap_or_default();
            }
            self.streams.push(StreamSource {
                account: s.account.clone(),
                name: s.name.clone(),
                role: Role::Stream,
                path: PathBuf::from(&s.name),
                body: Body::Config(Arc::new(s)),
                backup: None,
                findings: Vec::new(),
                mends: Default::default(),
            });
        }
        Ok(())
    }

    fn push(&mut self, account: &str, name: &str, role: Role, dir: &Path) {
        self.push_with(account, name, role, dir, Path::new("msgs"));
    }

    fn push_with(&mut self, account: &str, name: &str, role: Role, dir: &Path, msgs: &Path) {
        let found = StreamSource {
            account: account.to_owned(),
            name: name.to_owned(),
            role,
            path: dir.to_owned(),
            body: Body::Blocks {
                tree: self.tree.clone(),
                dir: dir.to_owned(),
                msgs: msgs.to_owned(),
            },
            backup: None,
            findings: Vec::new(),
            mends: Default::default(),
        };
        match role {
            Role::Stream => self.streams.push(found),
            Role::RaftGroup | Role::Batch | Role::Deleted => self.groups.push(found),
        }
    }
}

/// Names of the directories above `path`, nearest first.
fn ancestors(path: &Path) -> Vec<String> {
    let full = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut names: Vec<String> = full
        .components()
        .map(|c| name_text(c.as_os_str()))
        .collect();
    names.reverse();
    names
}

/// The account and stream that a path inside of a store tells, for a directory whose own name is
/// `names[0]`.
fn account_above(names: &[String]) -> Option<String> {
    match names {
        [_, streams, account, ..] if streams == "streams" || streams == "_js_" => {
            Some(account.clone())
        }
        _ => None,
    }
}

/// The name of the stream in the directory `dir`, if its `meta.inf` has to be asked for it: records are
/// hashed with a stream's name, and moved out of its store the directory may have another.
pub fn moved_name(dir: &Path, names: &[String]) -> Option<String> {
    name_inside(&DirTree::new(dir, false), names)
}

fn name_inside(dir: &DirTree, names: &[String]) -> Option<String> {
    const CEILING: u64 = 16 << 20;
    let in_store = |above: &String| matches!(above.as_str(), "streams" | "_js_" | "batches");
    if names.get(1).is_some_and(in_store) {
        return None;
    }
    let mut raw = Vec::new();
    dir.read_into(Path::new("meta.inf"), &mut raw, CEILING)
        .ok()?;
    // Encrypted, it does not parse.
    meta::decode_stream(&raw).ok()?.name
}

/// Opens whatever `path` is.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Source, OpenError> {
    let io_error = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let meta = std::fs::metadata(path).map_err(io_error)?;
    if meta.is_file() {
        return open_file(path, options);
    }
    if !meta.is_dir() {
        return Err(OpenError::Unknown {
            path: path.to_owned(),
            why: "neither a file nor a directory".into(),
        });
    }
    let tree = DirTree::new(path, options.mmap).limited(options.limit.clone());
    let tree: Arc<dyn Tree> = Arc::new(tree);
    let root = Path::new("");
    let children = tree.children(root).map_err(io_error)?;
    let mut finder = Finder {
        tree: tree.clone(),
        options,
        streams: Vec::new(),
        groups: Vec::new(),
        findings: Vec::new(),
    };
    // Only what is nothing else is a directory of configurations: such a file beside a store must not hide it.
    let is_config = || config_dir::is_config_dir(path);
    let kind = match finder.detect(path, &children) {
        Ok(SourceKind::Backup | SourceKind::AccountBackup)
            if options.configurations && is_config() =>
        {
            None
        }
        Err(_) if is_config() => None,
        found => Some(found?),
    };
    let kind = match kind {
        Some(kind) => kind,
        None => {
            finder.streams.clear();
            finder.findings.clear();
            finder.configurations(path)?;
            SourceKind::Config
        }
    };
    let Finder {
        mut streams,
        mut groups,
        findings,
        ..
    } = finder;
    let by_name = |s: &StreamSource| (s.account.clone(), s.name.clone());
    streams.sort_by_key(by_name);
    groups.sort_by_key(by_name);
    Ok(Source {
        path: path.to_owned(),
        kind,
        streams,
        groups,
        findings,
        tree: Some(tree),
    })
}

impl Finder<'_> {
    fn moved_name(&self, dir: &Path, names: &[String]) -> Option<String> {
        let dir = DirTree::new(dir, false).limited(self.options.limit.clone());
        name_inside(&dir, names)
    }

    fn detect(&mut self, path: &Path, children: &[Child]) -> Result<SourceKind, OpenError> {
        let root = Path::new("");
        let names = ancestors(path);
        let own = names.first().cloned().unwrap_or_default();
        let stream_hint = self.options.stream.clone();
        let account_hint = self.options.account.clone();
        if is_backup(children) {
            self.backup(path, root, &own, "");
            return Ok(SourceKind::Backup);
        }
        if is_stream(children) {
            let account = account_above(&names).or(account_hint).unwrap_or_default();
            let name = stream_hint
                .or_else(|| self.moved_name(path, &names))
                .unwrap_or_else(|| own.trim_start_matches('.').to_owned());
            let role = if is_group(children) {
                Role::RaftGroup
            } else if names.get(1).is_some_and(|n| n == "batches") {
                Role::Batch
            } else {
                Role::Stream
            };
            // Asked for by name: it is what the verb works on, whatever its role.
            self.push(&account, &name, Role::Stream, root);
            if let Some(s) = self.streams.last_mut() {
                s.role = role;
            }
            return Ok(SourceKind::Stream);
        }
        if has_blocks(children) {
            let above = names.get(1..).unwrap_or_default();
            let name = stream_hint
                .or_else(|| {
                    if own != "msgs" {
                        return None;
                    }
                    self.moved_name(&path.join(".."), above)
                        .or_else(|| above.first().cloned())
                })
                .unwrap_or_else(|| own.clone());
            let account = account_above(above).or(account_hint).unwrap_or_default();
            self.push_with(&account, &name, Role::Stream, root, root);
            return Ok(SourceKind::Stream);
        }
        if has(children, "jetstream", ChildKind::Dir) {
            self.store(Path::new("jetstream"));
            for c in children {
                if c.name != "jetstream" && c.kind != ChildKind::Dir {
                    self.findings.push(
                        Finding::new(Code::OddName, "beside jetstream/: not part of the store")
                            .file(name_text(&c.name))
                            .severity(Severity::Note),
                    );
                }
            }
            return Ok(SourceKind::Store);
        }
        if has(children, "streams", ChildKind::Dir) || has(children, "_js_", ChildKind::Dir) {
            self.account(root, &own);
            return Ok(SourceKind::Account);
        }
        let inside =
            |finder: &Self, dir: &OsStr| finder.tree.children(Path::new(dir)).unwrap_or_default();
        let dirs: Vec<(OsString, Vec<Child>)> = Self::dirs(children)
            .map(|d| (d.clone(), inside(self, d)))
            .collect();
        if dirs
            .iter()
            .any(|(_, c)| has(c, "streams", ChildKind::Dir) || has(c, "_js_", ChildKind::Dir))
        {
            self.store(root);
            return Ok(SourceKind::Store);
        }
        if dirs.iter().any(|(_, c)| is_stream(c)) {
            let account = names
                .get(1)
                .filter(|_| own == "streams" || own == "_js_")
                .cloned();
            let account = account.or(account_hint).unwrap_or_default();
            if own == "_js_" {
                self.raft(root, &account)
            } else {
                self.streams(root, &account)
            }
            return Ok(SourceKind::Account);
        }
        if dirs.iter().any(|(_, c)| is_backup(c)) {
            self.backups(path, root, "");
            return Ok(SourceKind::AccountBackup);
        }
        let deeper = dirs.iter().any(|(d, c)| {
            Self::dirs(c).any(|s| {
                is_backup(
                    &self
                        .tree
                        .children(&Path::new(d).join(s))
                        .unwrap_or_default(),
                )
            })
        });
        if deeper {
            for (d, _) in &dirs {
                self.backups(path, Path::new(d), &name_text(d));
            }
            return Ok(SourceKind::AccountBackup);
        }
        if has(children, "jetstream", ChildKind::Symlink) {
            return Err(OpenError::Unknown {
                path: path.to_owned(),
                why: "jetstream is a symbolic link here, and links inside of a store are not followed: give the directory that it leads to".into(),
            });
        }
        if own == "jetstream" && children.is_empty() {
            return Ok(SourceKind::Store);
        }
        Err(OpenError::Unknown {
            path: path.to_owned(),
            why: "no store here: neither jetstream/, streams/, msgs/, message blocks, backup.json nor directories that hold them".into(),
        })
    }

    fn backups(&mut self, path: &Path, dir: &Path, account: &str) {
        let children = self.list(dir);
        for name in Self::dirs(&children) {
            let at = join(dir, name);
            if is_backup(&self.list(&at)) {
                self.backup(path, &at, &name_text(name), account);
            } else {
                self.findings.push(
                    Finding::new(
                        Code::BackupJson,
                        "no backup.json here: `nats account restore` stops at such a directory",
                    )
                    .severity(Severity::Warning)
                    .stream(account, &name_text(name))
                    .file(text(&at)),
                );
            }
        }
    }

    /// A backup directory: the archive beside its `backup.json`.
    fn backup(&mut self, path: &Path, dir: &Path, own: &str, account: &str) {
        let mut findings = Vec::new();
        let json_path = join(dir, "backup.json");
        let mut buf = Vec::new();
        let backup = match self
            .tree
            .read_into(&json_path, &mut buf, backup_json::MAX_LEN)
        {
            Ok(_) => match backup_json::decode(&buf) {
                Ok(json) => Some(json),
                Err(fault) => {
                    let empty = buf.is_empty();
                    findings.push(
                        Finding::new(
                            Code::BackupJson,
                            if empty {
                                "empty: the backup was interrupted".to_owned()
                            } else {
                                fault.kind.to_string()
                            },
                        )
                        .file(text(&json_path))
                        .offset(fault.offset),
                    );
                    None
                }
            },
            Err(e) => {
                findings.push(
                    Finding::new(Code::BackupJson, format!("cannot be read: {e}"))
                        .file(text(&json_path)),
                );
                None
            }
        };
        let account = if account.is_empty() {
            self.options.account.as_deref().unwrap_or("")
        } else {
            account
        };
        let archive_path = join(dir, "stream.tar.s2");
        let name = backup
            .as_ref()
            .and_then(|b| b.name())
            .map_or_else(|| own.to_owned(), str::to_owned);
        let limit = self.options.limit.clone();
        match archive::open_with(&path.join(&archive_path), &[], limit) {
            Ok(opened) => {
                let mut stream = archive_stream(opened, account, &name, archive_path);
                stream.findings.append(&mut findings);
                stream.backup = backup;
                self.streams.push(stream);
            }
            Err(e) => {
                self.findings
                    .extend(findings.into_iter().map(|f| f.stream(account, &name)));
                self.findings.push(
                    Finding::new(e.code(), e.to_string())
                        .stream(account, &name)
                        .file(text(&archive_path)),
                );
            }
        }
    }
}

impl StreamSource {
    /// Whether it is in an archive, of either kind.
    pub fn in_archive(&self) -> bool {
        match &self.body {
            Body::Blocks { dir, .. } => dir.as_os_str().is_empty() && *dir != self.path,
            Body::Entries(_) => true,
            Body::Config(_) => false,
        }
    }

    /// What reading it is limited by.
    pub fn limit(&self) -> Option<Arc<Limit>> {
        match &self.body {
            Body::Blocks { tree, .. } => tree.limit(),
            Body::Entries(v2) => v2.limit(),
            Body::Config(_) => None,
        }
    }

    /// The same stream, its archive opened anew.
    pub fn reopened(&self, opened: archive::Opened) -> Self {
        let mut stream = archive_stream(opened, &self.account, &self.name, self.path.clone());
        stream.backup.clone_from(&self.backup);
        stream
    }
}

/// The stream inside an opened archive.
fn archive_stream(
    opened: archive::Opened,
    account: &str,
    name: &str,
    path: PathBuf,
) -> StreamSource {
    let (body, inner, findings) = match opened {
        archive::Opened::Tar(tree) => {
            let (inner, findings) = (tree.stream_name(), tree.findings());
            (
                Body::Blocks {
                    tree,
                    dir: PathBuf::new(),
                    msgs: "msgs".into(),
                },
                inner,
                findings,
            )
        }
        archive::Opened::V2(v2) => {
            let findings = v2.findings();
            (Body::Entries(v2), None, findings)
        }
    };
    StreamSource {
        account: account.to_owned(),
        // The hashes inside a tar archive are keyed with the name in its meta.inf.
        name: inner.unwrap_or_else(|| name.to_owned()),
        role: Role::Stream,
        path: path.clone(),
        body,
        backup: None,
        findings: findings.into_iter().map(|f| f.file(text(&path))).collect(),
        mends: Default::default(),
    }
}

fn open_file(path: &Path, options: &OpenOptions) -> Result<Source, OpenError> {
    let unknown = |why: String| OpenError::Unknown {
        path: path.to_owned(),
        why,
    };
    let names = ancestors(path);
    let own = names.first().cloned().unwrap_or_default();
    let account_hint = options.account.clone().unwrap_or_default();
    if own == "backup.json" {
        let parent = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        return open(parent, options);
    }
    let mut source = Source {
        path: path.to_owned(),
        kind: SourceKind::File,
        streams: Vec::new(),
        groups: Vec::new(),
        findings: Vec::new(),
        tree: None,
    };
    if numbered(OsStr::new(&own), "blk").is_some() {
        let above = names.get(1..).unwrap_or_default();
        // A link that the user names is followed.
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let tree =
            FileTree::new(&real, options.mmap).ok_or_else(|| unknown("no file name".into()))?;
        let tree = tree.limited(options.limit.clone());
        let in_msgs = above.first().is_some_and(|n| n == "msgs");
        let account = if in_msgs {
            above.get(1..).and_then(account_above)
        } else {
            None
        };
        let name = options.stream.clone().or_else(|| {
            if !in_msgs {
                return None;
            }
            let inside = above.get(1..).unwrap_or_default();
            let full = std::fs::canonicalize(path).ok();
            full.as_deref()
                .and_then(|p| moved_name(p.parent()?.parent()?, inside))
                .or_else(|| inside.first().cloned())
        });
        source.streams.push(StreamSource {
            account: account.unwrap_or(account_hint),
            name: name.unwrap_or_default(),
            role: Role::Stream,
            path: PathBuf::new(),
            body: Body::Blocks {
                tree: Arc::new(tree),
                dir: PathBuf::new(),
                msgs: PathBuf::new(),
            },
            backup: None,
            findings: Vec::new(),
            mends: Default::default(),
        });
        return Ok(source);
    }
    match archive::open_with(path, &[], options.limit.clone()) {
        Ok(opened) => {
            let stem = own
                .trim_end_matches(".s2")
                .trim_end_matches(".tar")
                .trim_end_matches(".tgz");
            // A lone archive of the new kind says nothing about its stream's name.
            let name = match (&options.stream, stem) {
                (Some(s), _) => s.clone(),
                (None, "stream") => names.get(1).cloned().unwrap_or_default(),
                (None, stem) => stem.to_owned(),
            };
            source.kind = SourceKind::Archive;
            source
                .streams
                .push(archive_stream(opened, &account_hint, &name, own.into()));
            Ok(source)
        }
        Err(archive::ArchiveError::Io(source)) => Err(OpenError::Io {
            path: path.to_owned(),
            source,
        }),
        Err(archive::ArchiveError::NotAnArchive) => Err(unknown(
            "not a store or an archive (for a single file of a store try `jetsam inspect`)".into(),
        )),
        Err(e) => {
            source.kind = SourceKind::Archive;
            source
                .findings
                .push(Finding::new(e.code(), e.to_string()).file(own));
            Ok(source)
        }
    }
}
