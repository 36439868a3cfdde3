//! Finding out whether a running server uses a store.
//!
//! nats-server takes no lock, and a server that has been idle since its start keeps no file of its store
//! open. So two kinds of evidence are looked for, on Linux: a process that has a file below the path
//! open for writing, and a nats-server whose command line or configuration names the store.

use std::fmt;
use std::path::{Path, PathBuf};

/// A process that uses a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its id.
    pub pid: u32,
    /// How that is known.
    pub evidence: String,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {}: {})", self.name, self.pid, self.evidence)
    }
}

/// Finds a process that uses the store in, around or below `path`. `None` also where that cannot be
/// found out (another system than Linux, processes of other users).
#[expect(unexpected_cfgs, reason = "cargo-fuzz sets `fuzzing`")]
pub fn find_user(path: &Path) -> Option<User> {
    // Other processes come and go: what a fuzzer sees must depend on its input alone.
    if cfg!(fuzzing) {
        return None;
    }
    let path = path.canonicalize().ok()?;
    std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            if pid == std::process::id() {
                return None;
            }
            let proc = entry.path();
            let user = |evidence| {
                Some(User {
                    name: name(&proc),
                    pid,
                    evidence,
                })
            };
            if let Some(file) = open_for_writing(&proc, &path) {
                return user(format!("has {} open", file.display()));
            }
            let store = configured_store(&proc)?;
            let touches = store.starts_with(&path) || path.starts_with(store.join("jetstream"));
            if touches || path == store {
                user(format!("store directory {}", store.display()))
            } else {
                None
            }
        })
}

fn name(proc: &Path) -> String {
    std::fs::read_to_string(proc.join("comm"))
        .map_or_else(|_| "a process".into(), |s| s.trim().to_owned())
}

/// A file below `path` that the process may write to.
fn open_for_writing(proc: &Path, path: &Path) -> Option<PathBuf> {
    std::fs::read_dir(proc.join("fd"))
        .ok()?
        .flatten()
        .find_map(|fd| {
            let target = std::fs::read_link(fd.path()).ok()?;
            if !target.starts_with(path) || !target.is_absolute() {
                return None;
            }
            let info = std::fs::read_to_string(proc.join("fdinfo").join(fd.file_name())).ok()?;
            let flags = info.lines().find_map(|l| l.strip_prefix("flags:"))?.trim();
            // O_WRONLY and O_RDWR; a directory cannot be opened so.
            let writes = u32::from_str_radix(flags, 8).ok()? & 0o3 != 0;
            (writes && target.is_file()).then_some(target)
        })
}

/// The store directory of a nats-server process, from its command line or configuration file.
fn configured_store(proc: &Path) -> Option<PathBuf> {
    let raw = std::fs::read(proc.join("cmdline")).ok()?;
    let args: Vec<String> = raw
        .split(|b| *b == 0)
        .filter(|a| !a.is_empty())
        .map(|a| String::from_utf8_lossy(a).into_owned())
        .collect();
    let program = Path::new(args.first()?).file_name()?.to_str()?.to_owned();
    if !program.contains("nats-server") && !name(proc).starts_with("nats-server") {
        return None;
    }
    let cwd = std::fs::read_link(proc.join("cwd")).unwrap_or_default();
    let value = |names: &[&str]| {
        args.iter().enumerate().skip(1).find_map(|(i, arg)| {
            let arg = arg.trim_start_matches('-');
            match arg.split_once('=') {
                Some((name, v)) if names.contains(&name) => Some(v.to_owned()),
                None if names.contains(&arg) => args.get(i + 1).cloned(),
                _ => None,
            }
        })
    };
    let found = value(&["sd", "store_dir"])
        .or_else(|| value(&["c", "config"]).and_then(|c| store_in_config(&cwd.join(c), true)))
        .or_else(|| {
            // The server's default.
            args.iter()
                .any(|a| matches!(a.trim_start_matches('-'), "js" | "jetstream"))
                .then(|| {
                    std::env::temp_dir()
                        .join("nats")
                        .join("jetstream")
                        .to_string_lossy()
                        .into_owned()
                })
        })?;
    cwd.join(found).canonicalize().ok()
}

/// The value of `store_dir` in a configuration file, or in a file that it includes.
fn store_in_config(file: &Path, follow: bool) -> Option<String> {
    const CEILING: u64 = 4 << 20;
    if std::fs::metadata(file).ok()?.len() > CEILING {
        return None;
    }
    let text = std::fs::read_to_string(file).ok()?;
    let clean = |v: &str| {
        let v = v.trim_start_matches(|c: char| c.is_whitespace() || c == ':' || c == '=');
        let quoted = v
            .strip_prefix('"')
            .map(|v| (v, '"'))
            .or_else(|| v.strip_prefix('\'').map(|v| (v, '\'')));
        match quoted {
            Some((v, q)) => v.split(q).next().map(str::to_owned),
            None => v
                .split(|c: char| c.is_whitespace() || ",;}#".contains(c))
                .next()
                .map(str::to_owned),
        }
        .filter(|v| !v.is_empty())
    };
    for line in text.lines().map(str::trim) {
        if line.starts_with('#') || line.starts_with("//") {
            continue;
        }
        let lower = line.to_ascii_lowercase();
        for key in ["store_dir", "storedir", "store"] {
            if let Some(at) = lower.find(key) {
                let rest = line.get(at + key.len()..).unwrap_or_default();
                if rest.trim_start().starts_with([':', '=', ' ', '"'])
                    || rest.starts_with(char::is_whitespace)
                {
                    return clean(rest.trim_start_matches(['"', '\'']));
                }
            }
        }
        if follow
            && let Some(included) = line.strip_prefix("include").and_then(clean)
            && let Some(found) = store_in_config(&file.parent()?.join(included), false)
        {
            return Some(found);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_dir_in_every_spelling() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s.conf");
        for (text, want) in [
            ("jetstream { store_dir: \"/data/a b\" }", Some("/data/a b")),
            (
                "jetstream {\n  store_dir = /data/x, max_file: 1G\n}",
                Some("/data/x"),
            ),
            ("jetstream: {\n  storedir '/q'\n}", Some("/q")),
            ("# store_dir: /no\nlisten: 1", None),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(store_in_config(&file, true).as_deref(), want, "{text}");
        }
        std::fs::write(&file, "include ./js.conf\n").unwrap();
        std::fs::write(dir.path().join("js.conf"), "jetstream { store_dir: /inc }").unwrap();
        assert_eq!(store_in_config(&file, true).as_deref(), Some("/inc"));
    }

    #[test]
    fn a_writer_is_found_and_a_reader_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("1.blk");
        std::fs::write(&file, b"x").unwrap();
        assert_eq!(find_user(dir.path()), None);
        let run = |redirect: &str| {
            std::process::Command::new("sh")
                .args([
                    "-c",
                    &format!(
                        "exec 9{redirect}'{}'; echo ready; exec sleep 60",
                        file.display()
                    ),
                ])
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        };
        for (redirect, found) in [(">>", true), ("<", false)] {
            let mut child = run(redirect);
            let mut line = [0u8; 5];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
            let user = find_user(dir.path());
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(user.is_some(), found, "{user:?}");
        }
    }
}
