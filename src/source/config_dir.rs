//! A directory of configurations, one file each: what `jetsam config backup` and the old `nats backup`
//! write, in either form, perhaps below one directory for each account.
//!
//! | form | content of `stream_S.json` | of `stream_S_consumer_C.json` |
//! |---|---|---|
//! | checksummed | see [`config_backup`] | likewise |
//! | plain | the stream's configuration | the consumer's |
//!
//! A plain file's name must agree with the name in it: what a consumer's file says does not include
//! its stream, and names may contain `_consumer_`.

use super::dir::DirTree;
use super::limit::Limit;
use super::tree::{Child, ChildKind, Tree};
use super::{OpenError, join, text};
use crate::finding::{Code, Finding, Severity};
use crate::format::config_backup::{self, Configuration};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A consumer's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfiguredConsumer {
    /// Its name.
    pub name: String,
    /// Its configuration.
    pub config: Map<String, Value>,
}

/// A stream's configuration and those of its consumers.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfiguredStream {
    /// Account; empty where the source does not tell.
    pub account: String,
    /// Its name.
    pub name: String,
    /// Its configuration; `None` where only consumers are left, or where it could not be read.
    pub config: Option<Map<String, Value>>,
    /// Its consumers by name.
    pub consumers: Vec<ConfiguredConsumer>,
}

/// What a directory of configurations holds.
#[derive(Debug, Default)]
pub struct ConfigDir {
    /// Streams by account and name.
    pub streams: Vec<ConfiguredStream>,
    /// What is wrong with it: an error for each file that could not be taken.
    pub findings: Vec<Finding>,
}

/// A file's content.
enum Entry {
    Stream {
        name: String,
        config: Map<String, Value>,
    },
    Consumer {
        stream: String,
        name: String,
        config: Map<String, Value>,
    },
    Template,
}

/// The part of the name that tells what is in it.
fn stem(c: &Child) -> Option<&str> {
    c.name
        .to_str()?
        .strip_prefix("stream_")?
        .strip_suffix(".json")
}

fn has_configs(children: &[Child]) -> bool {
    children
        .iter()
        .any(|c| c.kind == ChildKind::File && stem(c).is_some())
}

/// The directories in `tree` with configurations: account (empty for the root) and path.
fn places(tree: &dyn Tree) -> io::Result<Vec<(String, PathBuf, Vec<Child>)>> {
    let root = Path::new("");
    let children = tree.children(root)?;
    let mut found = Vec::new();
    for c in children.iter().filter(|c| c.kind == ChildKind::Dir) {
        let path = PathBuf::from(&c.name);
        if let Some(inside) = tree.children(&path).ok().filter(|c| has_configs(c)) {
            found.push((c.name.to_string_lossy().into_owned(), path, inside));
        }
    }
    if has_configs(&children) {
        found.insert(0, (String::new(), root.to_owned(), children));
    }
    Ok(found)
}

/// Whether `path` is a directory of configurations.
pub fn is_config_dir(path: &Path) -> bool {
    path.is_dir() && places(&DirTree::new(path, false)).is_ok_and(|p| !p.is_empty())
}

/// Reads a directory of configurations; checksums are verified.
pub fn read_config_dir(path: &Path, limit: Option<Arc<Limit>>) -> Result<ConfigDir, OpenError> {
    let tree = DirTree::new(path, false).limited(limit);
    let places = places(&tree).map_err(|source| OpenError::Io {
        path: path.to_owned(),
        source,
    })?;
    if places.is_empty() {
        return Err(OpenError::Unknown {
            path: path.to_owned(),
            why: "no configurations here (stream_*.json)".into(),
        });
    }
    let mut all = BTreeMap::new();
    let mut findings = Vec::new();
    for (account, dir, children) in places {
        for c in &children {
            let Some(stem) = stem(c) else { continue };
            let at = join(&dir, &c.name);
            let entry = read(&tree, c, &at, stem).and_then(|(entry, renamed)| {
                if let Some(detail) = renamed {
                    let f = Finding::new(Code::ConfigBackup, detail);
                    findings.push(f.severity(Severity::Warning).file(text(&at)));
                }
                add(&mut all, &account, entry)
            });
            if let Err(finding) = entry {
                findings.push(finding.file(text(&at)));
            }
        }
    }
    for s in all.values().filter(|s| s.config.is_none()) {
        let detail = "consumers without the configuration of their stream";
        findings.push(Finding::new(Code::ConfigBackup, detail).stream(&s.account, &s.name));
    }
    let mut streams: Vec<_> = all.into_values().collect();
    for s in &mut streams {
        s.consumers.sort_by(|a, b| a.name.cmp(&b.name));
    }
    Ok(ConfigDir { streams, findings })
}

/// Reads a file. The text is for a warning that its name is another's.
fn read(
    tree: &DirTree,
    c: &Child,
    at: &Path,
    stem: &str,
) -> Result<(Entry, Option<String>), Finding> {
    if c.kind != ChildKind::File {
        let f = Finding::new(Code::NotAFile, "no regular file; not read");
        return Err(f.severity(Severity::Error));
    }
    let mut buf = Vec::new();
    tree.read_into(at, &mut buf, config_backup::MAX_LEN)
        .map_err(|e| Finding::new(Code::Unreadable, format!("cannot be read: {e}")))?;
    let wrong = |what: String| Finding::new(Code::ConfigBackup, what);
    let not_json = |e| wrong(format!("not a JSON object: {e}"));
    let map: Map<String, Value> = serde_json::from_slice(&buf).map_err(not_json)?;
    if !map.contains_key("checksum") && !map.contains_key("configuration") {
        return plain(stem, map).map(|entry| (entry, None));
    }
    let backup = config_backup::decode(&buf).map_err(|f| wrong(f.kind.to_string()))?;
    let file_name = backup.configuration.file_name();
    let renamed = (c.name.to_str() != Some(&file_name))
        .then(|| format!("renamed: it holds what belongs into {file_name}"));
    let name = backup.configuration.name().to_owned();
    let entry = match backup.configuration {
        Configuration::Template(_) => Entry::Template,
        _ if name.is_empty() => return Err(wrong("no name in it".into())),
        Configuration::Stream(config) => Entry::Stream { name, config },
        Configuration::Consumer(mut map) => {
            let (stream, config) = (map.shift_remove("stream"), map.shift_remove("config"));
            match (stream, config) {
                (Some(Value::String(stream)), Some(Value::Object(config)))
                    if !stream.is_empty() =>
                {
                    Entry::Consumer {
                        stream,
                        name,
                        config,
                    }
                }
                _ => return Err(wrong("no configuration of a consumer in it".into())),
            }
        }
    };
    Ok((entry, renamed))
}

/// A plain file's content, by its name and the name in it.
fn plain(stem: &str, config: Map<String, Value>) -> Result<Entry, Finding> {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    if text("name") == Some(stem) {
        let name = stem.to_owned();
        return Ok(Entry::Stream { name, config });
    }
    let names = [text("durable_name"), text("name")];
    let found = names.into_iter().flatten().find_map(|name| {
        let stream = stem.strip_suffix(name)?.strip_suffix("_consumer_")?;
        (!name.is_empty() && !stream.is_empty()).then(|| (stream.to_owned(), name.to_owned()))
    });
    match found {
        Some((stream, name)) => Ok(Entry::Consumer {
            stream,
            name,
            config,
        }),
        None => Err(Finding::new(
            Code::ConfigBackup,
            "neither a checksummed configuration nor a plain one of the stream or consumer that the file is named after",
        )),
    }
}

type Streams = BTreeMap<(String, String), ConfiguredStream>;

fn slot<'s>(all: &'s mut Streams, account: &str, name: &str) -> &'s mut ConfiguredStream {
    let key = (account.to_owned(), name.to_owned());
    all.entry(key).or_insert_with(|| ConfiguredStream {
        account: account.to_owned(),
        name: name.to_owned(),
        config: None,
        consumers: Vec::new(),
    })
}

fn add(all: &mut Streams, account: &str, entry: Entry) -> Result<(), Finding> {
    let twice = |stream: &str| {
        Finding::new(Code::ConfigBackup, "a second configuration of the same")
            .stream(account, stream)
    };
    match entry {
        Entry::Stream { name, config } => {
            let slot = slot(all, account, &name);
            if slot.config.is_some() {
                return Err(twice(&name));
            }
            slot.config = Some(config);
        }
        Entry::Consumer {
            stream,
            name,
            config,
        } => {
            let slot = slot(all, account, &stream);
            if slot.consumers.iter().any(|c| c.name == name) {
                return Err(twice(&stream).consumer(&name));
            }
            slot.consumers.push(ConfiguredConsumer { name, config });
        }
        Entry::Template => {
            let detail = "a stream template; servers since 2.14 do not know it: left out";
            return Err(Finding::new(Code::ConfigUnsupported, detail));
        }
    }
    Ok(())
}
