//! Everything but the blocks: metadata, keys, `index.db`, consumers.

use super::{Correction, Proof, Work, read};
use crate::finding::Code;
use crate::format::backup_json::{BackupJson, StreamState};
use crate::format::crypt::{self, KeyError, SealKey, open_key_file};
use crate::format::index_db;
use crate::format::mend::small;
use crate::format::meta::{self, MetaInf};
use crate::source::tree::{ChildKind, Tree as _};
use crate::source::{Body, numbered};
use crate::stream::{CONSUMER_FILE, INDEX_FILE, META_FILE, SMALL_FILE, Want};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Configurations with more subjects than this get wildcards.
const LISTED_SUBJECTS: usize = 8;

impl Work<'_> {
    /// The name of a file for the report.
    pub(super) fn place(&self, path: &Path) -> String {
        self.opened.place(path)
    }

    pub(super) fn corrected(&mut self, path: &Path, fix: small::Fix, proof: Proof) {
        let place = self.place(path);
        self.report
            .corrections
            .push(Correction::new(place, &fix.flips, proof));
        self.overlay.put(path.to_owned(), fix.bytes);
    }

    /// Opens a key file, mended if need be. `Ok(None)`: there is none. `Err`: it stays shut.
    fn key(&mut self, path: &Path, context: &crypt::Context<'_>) -> Result<Option<SealKey>, ()> {
        let Some(bytes) = read(self, path, SMALL_FILE) else {
            return Ok(None);
        };
        let keys = self.ask.keys;
        match open_key_file(&bytes, keys, context) {
            Ok(key) => return Ok(Some(key)),
            Err(KeyError::NoKey) => return Err(()),
            Err(_) => {}
        }
        let effort = self.effort();
        let (fix, tried) = small::key_file(&bytes, keys, context, &effort);
        self.spend(tried.spent);
        let Some(fix) = fix else { return Err(()) };
        let opened = open_key_file(&fix.bytes, keys, context).map_err(|_| ())?;
        self.corrected(path, fix, Proof::Tag);
        Ok(Some(opened))
    }

    /// `meta.inf` and `meta.sum` in `dir`, each by the other, or by the tag.
    fn meta(
        &mut self,
        dir: &Path,
        hashed_as: &str,
        seal: Option<&SealKey>,
        decodes: impl Fn(&[u8]) -> bool,
    ) {
        let (inf_path, sum_path) = (dir.join("meta.inf"), dir.join("meta.sum"));
        let Some(inf) = read(self, &inf_path, META_FILE) else {
            return;
        };
        let effort = self.effort();
        let sum = read(self, &sum_path, SMALL_FILE);
        if let Some(sum) = &sum {
            let (fix, tried) = small::meta(hashed_as.as_bytes(), &inf, sum, &effort);
            self.spend(tried.spent);
            match fix {
                Some(small::MetaFix::Right) => return,
                Some(small::MetaFix::Meta(fix)) => {
                    self.corrected(&inf_path, fix, Proof::Hash);
                    return;
                }
                Some(small::MetaFix::Sum(fix)) => {
                    self.corrected(&sum_path, fix, Proof::Hash);
                    return;
                }
                None => {}
            }
        }
        // Without its sum, a sealed one still has a tag.
        let inf = match seal {
            Some(seal) if seal.open(&inf).is_err() && !decodes(&inf) => {
                let (fix, tried) = small::sealed(&inf, seal, &effort);
                self.spend(tried.spent);
                match fix {
                    Some(fix) => {
                        let mended = fix.bytes.clone();
                        self.corrected(&inf_path, fix, Proof::Tag);
                        mended
                    }
                    None => return,
                }
            }
            _ => inf,
        };
        let plain = match seal {
            Some(seal) => seal.open(&inf).unwrap_or_else(|_| inf.clone()),
            None => inf.clone(),
        };
        if decodes(&plain) {
            let place = self.place(&sum_path);
            self.report.note(match sum {
                Some(_) => format!("{place}: does not fit meta.inf, which is taken as it is"),
                None => format!("{place}: missing; meta.inf is taken as it is"),
            });
            let sum = meta::sum(hashed_as, &inf);
            self.overlay.put(sum_path, sum.into_bytes());
        }
    }

    fn consumer(&mut self, dir: &Path, name: &str, server_key_fits: bool) {
        let (account, stream) = (self.source.account.clone(), self.source.name.clone());
        let context = crypt::Context::Consumer {
            account: account.as_bytes(),
            stream: stream.as_bytes(),
            consumer: name.as_bytes(),
        };
        let seal = if server_key_fits {
            self.key(&dir.join("meta.key"), &context)
        } else {
            Ok(None)
        };
        let Ok(seal) = seal else { return };
        self.meta(dir, &format!("{stream}/{name}"), seal.as_ref(), |b| {
            meta::decode_consumer(b).is_ok()
        });
        let path = dir.join("o.dat");
        if let Some(seal) = seal
            && let Some(state) = read(self, &path, CONSUMER_FILE)
            && !state.is_empty()
            && seal.open(&state).is_err()
            // Not by its first byte: a nonce may begin like plaintext.
            && crate::format::o_dat::decode(&state, 0).is_err()
        {
            let effort = self.effort();
            let (fix, tried) = small::sealed(&state, &seal, &effort);
            self.spend(tried.spent);
            if let Some(fix) = fix {
                self.corrected(&path, fix, Proof::Tag);
            }
        }
    }
}

/// Metadata, keys and `index.db` of the stream in `dir`, and its consumers.
pub(super) fn stream(work: &mut Work<'_>, dir: &Path, msgs: &Path) {
    let whole =
        matches!(&work.source.body, Body::Blocks { msgs, .. } if !msgs.as_os_str().is_empty());
    let none = Want::NOTHING;
    let (name, account) = (work.source.name.clone(), work.source.account.clone());
    let stream = work.open(none);
    let info = stream.key_info().to_vec();
    let mut seal = None;
    if whole {
        seal = work
            .key(&dir.join("meta.key"), &stream.key_context())
            .unwrap_or(None);
        work.meta(dir, &name, seal.as_ref(), |b| {
            meta::decode_stream(b).is_ok()
        });
    }
    // A wrong server key opens nothing, and searching for it in every file takes long.
    let fits = seal.is_some();
    let children = work.overlay.children(msgs).unwrap_or_default();
    if fits {
        for c in children.iter().filter(|c| c.kind == ChildKind::File) {
            if let Some(n) = numbered(&c.name, "key") {
                let context = crypt::Context::Block {
                    info: &info,
                    store: name.as_bytes(),
                    n,
                };
                let _ = work.key(&msgs.join(&c.name), &context);
            }
        }
    }
    let path = msgs.join("index.db");
    if let Some(file) = read(work, &path, INDEX_FILE)
        && index_db::check_hash(&file, name.as_bytes()).is_err()
    {
        let effort = work.effort();
        let (fix, tried) = small::index_db(&file, name.as_bytes(), &effort);
        work.spend(tried.spent);
        match fix {
            Some(fix) => work.corrected(&path, fix, Proof::Hash),
            None => {
                let place = work.place(&path);
                work.report.note(format!(
                    "{place}: damaged beyond what could be corrected; the blocks are scanned"
                ));
            }
        }
    }
    if whole {
        let obs = dir.join("obs");
        for c in work.overlay.children(&obs).unwrap_or_default() {
            if c.kind == ChildKind::Dir {
                let name = c.name.to_string_lossy().into_owned();
                work.consumer(&obs.join(&c.name), &name, fits || account.is_empty());
            }
        }
    }
    work.settle();
}

/// A configuration for a stream that has lost its own.
pub(super) fn configuration(work: &mut Work<'_>) {
    let stream = work.open(super::EVERYTHING);
    if stream.meta.is_some() || !matches!(work.source.body, Body::Blocks { .. }) {
        return;
    }
    let Body::Blocks { dir, .. } = work.source.body.clone() else {
        return;
    };
    let damaged = |f: &crate::finding::Finding| matches!(f.code, Code::KeyMissing | Code::KeyWrong);
    if stream.locked && stream.findings.iter().any(damaged) {
        return;
    }
    if !matches!(
        stream.role,
        crate::source::Role::Stream | crate::source::Role::Deleted
    ) {
        return;
    }
    let key = (stream.account.clone(), stream.name.clone());
    let (config, created, whence) = match (work.ask.config, work.ask.assigned.get(&key)) {
        (Some(config), _) => (config.clone(), None, "the one that was given"),
        (None, Some(found)) => (
            found.config.clone(),
            found.created.clone(),
            "that of the cluster's meta group",
        ),
        (None, None) => {
            work.report.reconstructed = true;
            (
                reconstruct(&stream, work),
                None,
                "reconstructed from the messages: subjects as seen, everything else as servers default it; compare it with what you expect",
            )
        }
    };
    work.report.note(format!(
        "the stream's configuration is lost; in its place: {whence}"
    ));
    let mut config = config;
    config.insert("name".into(), stream.name.clone().into());
    let whole =
        matches!(&work.source.body, Body::Blocks { msgs, .. } if !msgs.as_os_str().is_empty());
    if !whole {
        // Beside blocks alone there is no place for a meta.inf.
        work.source.backup = Some(BackupJson {
            config,
            state: StreamState::default(),
        });
        return;
    }
    let inf = MetaInf::new_stream(config, created);
    let inf = meta::encode_stream(&inf);
    let sum = meta::sum(&stream.name, &inf);
    work.overlay.put(dir.join("meta.inf"), inf);
    work.overlay.put(dir.join("meta.sum"), sum.into_bytes());
    work.settle();
}

/// What the messages tell of a stream's configuration.
fn reconstruct(stream: &crate::stream::Stream, work: &Work<'_>) -> Map<String, Value> {
    let depth = crate::state::Depth {
        subjects: true,
        prove: false,
    };
    let found = crate::state::survey(stream, work.ask.threads, depth, &|_| {});
    let mut seen = BTreeSet::new();
    if let Some(subjects) = &found.state.subjects {
        for (subject, count) in subjects.iter() {
            if count > 0
                && let Ok(subject) = std::str::from_utf8(subject)
            {
                seen.insert(subject.to_owned());
            }
        }
    }
    let compressed = |n: u64| {
        let mut magic = [0; 4];
        let path = stream.msgs_dir().join(format!("{n}.blk"));
        stream
            .tree()
            .is_some_and(|(tree, _)| tree.read_at(&path, 0, &mut magic).is_ok())
            && magic == crate::format::block::S2_MAGIC
    };
    let s2 = stream.blocks.iter().any(|b| compressed(b.n));
    let subjects = generalise(&seen, &stream.name);
    let mut config = super::unlimited(&stream.name, subjects.into());
    let compression = if s2 { "s2" } else { "none" };
    config.insert("compression".into(), compression.into());
    config
}

/// Subjects that take all of `seen`: as they are where they are few, else by their first tokens.
fn generalise(seen: &BTreeSet<String>, name: &str) -> Vec<String> {
    for (stream, subject) in [("KV_", "$KV."), ("OBJ_", "$O.")] {
        if let Some(bucket) = name.strip_prefix(stream)
            && seen
                .iter()
                .all(|s| s.starts_with(&format!("{subject}{bucket}.")))
        {
            return match subject {
                "$KV." => vec![format!("$KV.{bucket}.>")],
                _ => vec![format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")],
            };
        }
    }
    if seen.is_empty() {
        return vec![name.to_owned()];
    }
    if seen.len() <= LISTED_SUBJECTS {
        return seen.iter().cloned().collect();
    }
    // By first token: `orders.>` for everything below, `orders` where that itself was seen.
    let mut first: BTreeMap<&str, bool> = BTreeMap::new();
    for s in seen {
        match s.split_once('.') {
            Some((token, _)) => {
                first.insert(token, true);
            }
            None => {
                first.entry(s).or_insert(false);
            }
        }
    }
    let mut out: Vec<String> = seen.iter().filter(|s| !s.contains('.')).cloned().collect();
    out.extend(
        first
            .iter()
            .filter(|(_, more)| **more)
            .map(|(t, _)| format!("{t}.>")),
    );
    out
}
