//! What every black-box test needs: fixtures unpacked, the binary run, trees compared, JSON compared.
#![allow(
    dead_code,
    reason = "each test binary uses its own part of this module"
)]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Gives a macro every fixture of `stores`, as `module = "name",`.
#[allow(unused_macros, reason = "as above")]
macro_rules! every_store {
    ($with:ident) => {
        $with! {
            v2_2_6_basic = "2.2.6-basic",
            v2_7_4_chacha_basic = "2.7.4-chacha-basic",
            v2_7_4_kv = "2.7.4-kv",
            v2_9_25_accounts = "2.9.25-accounts",
            v2_9_25_basic = "2.9.25-basic",
            v2_9_25_cluster = "2.9.25-cluster",
            v2_9_25_kill_basic = "2.9.25-kill-basic",
            v2_10_29_basic = "2.10.29-basic",
            v2_10_29_chacha_compress = "2.10.29-chacha-compress",
            v2_10_29_compress = "2.10.29-compress",
            v2_11_17_kill_basic = "2.11.17-kill-basic",
            v2_11_17_new = "2.11.17-new",
            v2_12_15_accounts = "2.12.15-accounts",
            v2_12_15_basic = "2.12.15-basic",
            v2_12_15_compress = "2.12.15-compress",
            v2_12_15_kv = "2.12.15-kv",
            v2_12_15_new = "2.12.15-new",
            v2_14_5_aes_basic = "2.14.5-aes-basic",
            v2_14_5_aes_cluster = "2.14.5-aes-cluster",
            v2_14_5_basic = "2.14.5-basic",
            v2_14_5_chacha_compress = "2.14.5-chacha-compress",
            v2_14_5_cluster = "2.14.5-cluster",
            v2_14_5_compress = "2.14.5-compress",
            v2_14_5_kill_basic = "2.14.5-kill-basic",
            v2_14_5_kv = "2.14.5-kv",
            v2_14_5_new = "2.14.5-new",
            v2_15_2_accounts = "2.15.2-accounts",
            v2_15_2_basic = "2.15.2-basic",
            v2_15_2_chacha_compress = "2.15.2-chacha-compress",
            v2_15_2_compress = "2.15.2-compress",
            v2_15_2_kv = "2.15.2-kv",
            v2_15_2_new = "2.15.2-new",
        }
    };
}

/// `fixtures/` in the repository.
pub fn fixtures_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Names (without `.tar.xz`) of the archives in `fixtures/<kind>`.
pub fn fixture_names(kind: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(fixtures_dir().join(kind))
        .unwrap()
        .filter_map(|e| {
            e.unwrap()
                .file_name()
                .to_str()?
                .strip_suffix(".tar.xz")
                .map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

/// A fixture's tree, unpacked once per version of the archive below `target/fixtures/`.
///
/// Test processes run side by side, so the tree is unpacked beside its place and renamed into it: whoever
/// comes second finds the rename refused and uses what is there. Nobody may write below it; use [`copy_tree`].
pub fn fixture(kind: &str, name: &str) -> PathBuf {
    let packed = fs::read(fixtures_dir().join(kind).join(format!("{name}.tar.xz")))
        .unwrap_or_else(|e| panic!("fixture {kind}/{name}: {e}"));
    let digest: String = Sha256::digest(&packed)
        .iter()
        .take(4)
        .fold(String::new(), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        });
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .unwrap()
        .join("fixtures");
    let ready = root.join(format!("{name}-{digest}"));
    if ready.is_dir() {
        return ready;
    }
    fs::create_dir_all(&root).unwrap();
    let staging = tempfile::Builder::new()
        .prefix(".unpack-")
        .tempdir_in(&root)
        .unwrap();
    let tree = staging.path().join("tree");
    fs::create_dir(&tree).unwrap();
    tar::Archive::new(xz2::read::XzDecoder::new(packed.as_slice()))
        .unpack(&tree)
        .unwrap();
    match fs::rename(&tree, &ready) {
        Ok(()) => ready,
        Err(_) if ready.is_dir() => ready,
        Err(e) => panic!(
            "cannot move the unpacked fixture to {}: {e}",
            ready.display()
        ),
    }
}

/// A real server's data directories with the truth about them: see `fixtures/README.md`.
pub struct Fixture {
    pub name: String,
    pub dir: PathBuf,
    pub truth: Value,
}

impl Fixture {
    pub fn open(name: &str) -> Self {
        Self::open_kind("stores", name)
    }

    pub fn open_kind(kind: &str, name: &str) -> Self {
        let dir = fixture(kind, name);
        let truth = read_json(&dir.join("truth.json"));
        Fixture {
            name: name.to_owned(),
            dir,
            truth,
        }
    }

    /// The server that wrote it, e.g. `(2, 9, 25)`.
    pub fn version(&self) -> (u32, u32, u32) {
        let mut parts = self.truth["server"]
            .as_str()
            .unwrap()
            .split('.')
            .map(|p| p.parse().unwrap());
        (
            parts.next().unwrap(),
            parts.next().unwrap(),
            parts.next().unwrap(),
        )
    }

    pub fn key(&self) -> Option<&str> {
        self.truth["key"].as_str()
    }

    pub fn killed(&self) -> bool {
        self.truth["killed"] == true || self.is_cluster()
    }

    pub fn is_cluster(&self) -> bool {
        self.dir.join("n0").is_dir()
    }

    /// The store directories: one, or one per node of a cluster.
    pub fn stores(&self) -> Vec<PathBuf> {
        if self.is_cluster() {
            ["n0", "n1", "n2"]
                .iter()
                .map(|n| self.dir.join(n).join("store"))
                .collect()
        } else {
            vec![self.dir.join("store")]
        }
    }

    /// What `-kill` fixtures were read back as by the server that wrote them.
    pub fn recovered(&self) -> Option<Value> {
        let path = self.dir.join("recovered.json");
        path.exists().then(|| read_json(&path))
    }

    /// `jetsam` with this fixture's key, if it has one, in the environment.
    pub fn jetsam(&self) -> Jetsam {
        let mut j = Jetsam::new();
        if let Some(key) = self.key() {
            j.command.env("JETSAM_KEY", key);
        }
        j
    }
}

pub fn read_json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// One call of the binary.
pub struct Jetsam {
    pub command: Command,
}

/// How a call ended.
pub struct Ran {
    pub line: String,
    pub status: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Jetsam {
    pub fn new() -> Self {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("jetsam"));
        command.env_remove("JETSAM_KEY").env("NO_COLOR", "1");
        Jetsam { command }
    }

    pub fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    pub fn run(mut self) -> Ran {
        let line = format!("{:?}", self.command);
        let mut output = || {
            self.command
                .output()
                .unwrap_or_else(|e| panic!("{line}: {e}"))
        };
        let mut out = output();
        // A process that another test is just starting holds, until it runs its program, what this test has
        // open: for that moment a file that was written looks as if it were in use.
        for _ in 0..4 {
            if out.status.code() != Some(3) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            out = output();
        }
        Ran {
            line,
            status: out.status.code(),
            stdout: out.stdout,
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Fails unless it ended with this status.
    #[track_caller]
    pub fn status(self, want: i32) -> Self {
        assert_eq!(
            self.status,
            Some(want),
            "{}\nstdout: {}\nstderr: {}",
            self.line,
            String::from_utf8_lossy(&self.stdout)
                .chars()
                .take(4000)
                .collect::<String>(),
            self.stderr
        );
        self
    }

    /// The whole of stdout as one JSON value.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| {
            panic!(
                "{}: not JSON: {e}\nstdout: {}\nstderr: {}",
                self.line,
                String::from_utf8_lossy(&self.stdout),
                self.stderr
            )
        })
    }

    /// Stdout as one JSON value per line.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        self.stdout
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| {
                serde_json::from_slice(l).unwrap_or_else(|e| {
                    panic!(
                        "{}: not JSON: {e}: {}",
                        self.line,
                        String::from_utf8_lossy(l)
                    )
                })
            })
            .collect()
    }
}

/// Collects differences, so that a failing test shows all of them at once.
#[derive(Default)]
pub struct Differences {
    found: Vec<String>,
}

impl Differences {
    pub fn add(&mut self, what: impl Into<String>) {
        self.found.push(what.into());
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Notes a difference between two scalars, objects or arrays; objects are walked, so that the path is exact.
    pub fn json(&mut self, path: &str, got: &Value, want: &Value) {
        match (got, want) {
            (Value::Object(g), Value::Object(w)) => {
                for (k, gv) in g {
                    match w.get(k) {
                        Some(wv) => self.json(&format!("{path}.{k}"), gv, wv),
                        None => self.add(format!(
                            "{path}.{k}: {} where the truth has none",
                            short(gv)
                        )),
                    }
                }
                for (k, wv) in w {
                    if !g.contains_key(k) {
                        self.add(format!("{path}.{k}: missing, the truth is {}", short(wv)));
                    }
                }
            }
            _ if got == want => {}
            _ if same_instant(got, want) => {}
            _ => self.add(format!(
                "{path}: {} but the truth is {}",
                short(got),
                short(want)
            )),
        }
    }

    #[track_caller]
    pub fn none(self, what: &str) {
        let n = self.found.len();
        let shown: Vec<_> = self.found.into_iter().take(40).collect();
        assert!(n == 0, "{what}: {n} differences\n  {}", shown.join("\n  "));
    }
}

/// RFC 3339 allows trailing zeros in the fraction, and Go leaves them out.
fn same_instant(a: &Value, b: &Value) -> bool {
    match (instant(a), instant(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

pub fn instant(v: &Value) -> Option<jiff::Timestamp> {
    v.as_str()
        .filter(|s| s.contains('T'))
        .and_then(|s| s.parse().ok())
}

fn short(v: &Value) -> String {
    let s = v.to_string();
    if s.chars().count() > 160 {
        format!("{}…", s.chars().take(160).collect::<String>())
    } else {
        s
    }
}

/// Copies a tree: files, directories, symbolic links, modes and modification times.
pub fn copy_tree(from: &Path, to: &Path) {
    let meta = fs::symlink_metadata(from).unwrap();
    if meta.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from).unwrap(), to).unwrap();
        return;
    }
    if meta.is_dir() {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy_tree(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
    fs::set_permissions(to, meta.permissions()).unwrap();
    let times = fs::FileTimes::new().set_modified(meta.modified().unwrap());
    if let Ok(f) = fs::File::open(to) {
        f.set_times(times).unwrap();
    }
}

/// Everything about a tree that a reader must leave alone: names, kinds, modes, sizes, bytes, and the times of
/// change of content and of inode (not of access).
pub fn fingerprint(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_dir() {
            let entries: io::Result<Vec<_>> = fs::read_dir(&path).unwrap().collect();
            todo.extend(entries.unwrap().into_iter().map(|e| e.path()));
            "dir".to_owned()
        } else if meta.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if meta.is_file() {
            format!("{:?}", Sha256::digest(fs::read(&path).unwrap()).as_slice())
        } else {
            format!("{:?}", meta.file_type())
        };
        let what = format!(
            "mode {:o} size {} mtime {}.{:09} ctime {}.{:09} inode {} {content}",
            meta.mode(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
            meta.ino(),
        );
        all.insert(path, what);
    }
    all
}

/// The directories `jetstream/ACCOUNT/streams/STREAM` of a store: (account, stream, path).
pub fn stream_dirs(store: &Path) -> Vec<(String, String, PathBuf)> {
    let mut found = Vec::new();
    for account in fs::read_dir(store.join("jetstream")).unwrap() {
        let account = account.unwrap();
        let Ok(streams) = fs::read_dir(account.path().join("streams")) else {
            continue;
        };
        for stream in streams {
            let stream = stream.unwrap();
            found.push((
                account.file_name().into_string().unwrap(),
                stream.file_name().into_string().unwrap(),
                stream.path(),
            ));
        }
    }
    found.sort();
    found
}

impl Fixture {
    /// The messages of a stream as `view --json` has to show them, by the truth.
    pub fn view_lines(&self, account: &str, stream: &str) -> Vec<Value> {
        self.truth["accounts"][account][stream]["messages"]
            .as_array()
            .unwrap_or_else(|| panic!("{}: no stream {account}/{stream}", self.name))
            .iter()
            .map(|m| {
                let mut m = m.clone();
                m["account"] = account.into();
                m["stream"] = stream.into();
                m
            })
            .collect()
    }

    /// Accounts and streams that leave files: those with memory storage do not.
    pub fn stream_names(&self) -> Vec<(String, String)> {
        let mut names = Vec::new();
        for (account, streams) in self.truth["accounts"].as_object().unwrap() {
            for (stream, truth) in streams.as_object().unwrap() {
                if truth["config"]["storage"] == "file" {
                    names.push((account.clone(), stream.clone()));
                }
            }
        }
        names.sort();
        names
    }
}

impl Differences {
    /// Notes where two lists of JSON lines differ.
    pub fn lines(&mut self, what: &str, got: &[Value], want: &[Value]) {
        if got.len() != want.len() {
            self.add(format!("{what}: {} lines, not {}", got.len(), want.len()));
        }
        for (g, w) in got.iter().zip(want) {
            self.json(&format!("{what} {}", w["seq"]), g, w);
        }
    }
}

impl Ran {
    /// Fails if it panicked.
    #[track_caller]
    pub fn no_panic(self) -> Self {
        assert!(
            !self.stderr.contains("panicked") && self.status.is_some() && self.status != Some(101),
            "{}: {:?}\n{}",
            self.line,
            self.status,
            self.stderr
        );
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}
