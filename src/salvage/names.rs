//! Names that are wrong: the stream's, which keys every hash, and the blocks' numbers, which key those of
//! their records.

use super::{Work, read};
use crate::format::block::{self, Container};
use crate::format::crypt::{self, open_key_file};
use crate::format::record::{Prover, Record};
use crate::format::{index_db, meta};
use crate::source::tree::{ChildKind, Tree as _};
use crate::source::{self, numbered};
use crate::stream::{BLOCK_FILE, INDEX_FILE, META_FILE, SMALL_FILE, Stream, Want};
use std::collections::BTreeMap;
use std::path::Path;

/// Numbers up to here are tried for a block that proves under none that is likely.
const NUMBERS: u64 = 1_000_000;
/// So many blocks get all of them; others only those up to the highest there is, and a few more.
const SEARCHED: usize = 16;
/// Numbers that are tried in all, for each second of search and at most; opening a key counts as so many.
const TRIES_A_SECOND: f64 = 500_000.0;
const TRIES: u64 = 4_000_000;
const KEY_TRY: u64 = 16;
/// Bytes of records that are hashed in the time that a try is to take.
const BYTES_A_TRY: u64 = 8192;
/// Records that are looked at to prove a block.
const RECORDS: usize = 8;

/// The name under which the stream's files prove themselves.
pub(super) fn stream_name(work: &mut Work<'_>, dir: &Path) {
    let own = work.source.name.clone();
    if !own.is_empty() && proofs(work, dir, &own, 1) > 0 {
        return;
    }
    let mut candidates: Vec<String> = work.ask.names.to_vec();
    if let Some(inf) = read(work, &dir.join("meta.inf"), META_FILE)
        && let Ok(inf) = meta::decode_stream(&inf)
    {
        candidates.extend(inf.name);
    }
    let best = candidates
        .into_iter()
        .map(|name| (proofs(work, dir, &name, usize::MAX), name))
        .max_by_key(|(n, _)| *n);
    if let Some((1.., name)) = best {
        work.report.note(format!(
            "the directory is named {own:?}, but everything in it proves itself as stream {name:?}: taken for that"
        ));
        work.source.name = name;
    }
}

/// How many files say that the stream's name is this; `enough` are enough.
fn proofs(work: &Work<'_>, dir: &Path, name: &str, enough: usize) -> usize {
    let mut found = 0;
    let inf = read(work, &dir.join("meta.inf"), META_FILE);
    let sum = read(work, &dir.join("meta.sum"), SMALL_FILE);
    if let (Some(inf), Some(sum)) = (inf, sum) {
        found += usize::from(meta::check_sum(name.as_bytes(), &inf, &sum).is_ok());
    }
    if let Some(key) = read(work, &dir.join("meta.key"), SMALL_FILE) {
        let context = crypt::Context::Stream {
            account: work.source.account.as_bytes(),
            stream: name.as_bytes(),
        };
        found += usize::from(open_key_file(&key, work.ask.keys, &context).is_ok());
    }
    if found >= enough {
        return found;
    }
    let stream = named(work, name);
    let msgs = stream.msgs_dir();
    if let Some(index) = read(work, &msgs.join("index.db"), INDEX_FILE) {
        found += usize::from(index_db::check_hash(&index, name.as_bytes()).is_ok());
    }
    for file in stream.blocks.iter().take(4) {
        found += usize::from(block_proves(work, &stream, &msgs, file.n));
    }
    found
}

/// The records of a block, decrypted and decompressed.
fn logical_start(work: &Work<'_>, path: &Path, key: Option<&crypt::SealKey>) -> Option<Vec<u8>> {
    let mut raw = read(work, path, BLOCK_FILE)?;
    if let Some(key) = key {
        key.apply_keystream(0, &mut raw);
    }
    // Nothing is known that could tell a lookalike: its first record proves itself, or it does not matter.
    let header = match Container::detect(&raw, &Prover::for_block("", 0)) {
        Container::Plain { .. } => return Some(raw),
        Container::S2 { header, .. } => header,
        Container::HeaderlessS2 => 0,
    };
    let mut out = Vec::new();
    block::decompress(&raw, header, &mut out, BLOCK_FILE as usize);
    if header == 0
        && let Some(key) = key
    {
        key.apply_keystream(0, &mut out);
    }
    Some(out)
}

/// Directories of other streams that are looked through for a stream's blocks.
const NEIGHBOURS: usize = 4096;

/// Takes the blocks of another stream's directory where those are this stream's, and its own are another's.
pub(super) fn elsewhere(work: &mut Work<'_>, dir: &Path, msgs: &Path) {
    let Some(streams) = dir.parent().filter(|p| !p.as_os_str().is_empty()) else {
        return;
    };
    let own = numbers(work, msgs);
    let name = work.source.name.clone();
    let stream = named(work, &name);
    let foreign = match own.first() {
        Some(_) => !own
            .iter()
            .take(4)
            .any(|n| block_proves(work, &stream, msgs, *n)),
        // Of a stream without messages the index tells.
        None => read(work, &msgs.join("index.db"), INDEX_FILE)
            .is_some_and(|index| index_db::check_hash(&index, name.as_bytes()).is_err()),
    };
    if !foreign {
        return;
    }
    let found = work.overlay.children(streams).unwrap_or_default();
    let mut others = found
        .iter()
        .filter(|c| c.kind == ChildKind::Dir)
        .map(|c| streams.join(&c.name))
        .filter(|other| other != dir)
        .map(|other| other.join("msgs"))
        .take(NEIGHBOURS);
    let there = others.find(|there| {
        let numbers = numbers(work, there);
        let ends = [numbers.first(), numbers.last()];
        ends.into_iter()
            .flatten()
            .any(|n| block_proves(work, &stream, there, *n))
    });
    let whose = work.ask.names.iter().find(|other| {
        let first = own.first().filter(|_| **other != name);
        first.is_some_and(|n| block_proves(work, &named(work, other), msgs, *n))
    });
    if there.is_none() && whose.is_none() {
        return;
    }
    for c in work.overlay.children(msgs).unwrap_or_default() {
        work.overlay.hide(msgs.join(&c.name));
    }
    let mut note = format!("{}: the blocks of another stream", source::text(msgs));
    if let Some(whose) = whose {
        note.push_str(&format!(", {whose:?}"));
    }
    if let Some(there) = &there {
        for c in work.overlay.children(there).unwrap_or_default() {
            if c.kind == ChildKind::File {
                let (to, from) = (msgs.join(&c.name), there.join(&c.name));
                work.overlay.put_file(to, from);
            }
        }
        let there = source::text(there);
        note.push_str(&format!("; this stream's are in {there}: taken from there"));
    }
    work.settle();
    work.report.note(note);
}

/// The numbers of the blocks in a directory that are not empty, ascending.
fn numbers(work: &Work<'_>, msgs: &Path) -> Vec<u64> {
    let children = work.overlay.children(msgs).unwrap_or_default();
    let files = children
        .iter()
        .filter(|c| c.kind == ChildKind::File && c.len > 0);
    let mut all: Vec<u64> = files.filter_map(|c| numbered(&c.name, "blk")).collect();
    all.sort_unstable();
    all
}

/// The stream as it would read under another name.
fn named(work: &Work<'_>, name: &str) -> Stream {
    let mut source = work.source.clone();
    name.clone_into(&mut source.name);
    Stream::open(&source, work.ask.keys, Want::NOTHING)
}

/// Whether block `n` in `msgs` proves itself as one of `stream`.
fn block_proves(work: &Work<'_>, stream: &Stream, msgs: &Path, n: u64) -> bool {
    let key = work.overlay.stat(&msgs.join(format!("{n}.key"))).is_ok();
    let key = key.then(|| stream.block_key(&work.overlay, msgs, n).ok());
    logical_start(work, &msgs.join(format!("{n}.blk")), key.flatten().as_ref())
        .is_some_and(|bytes| proves(&bytes, &stream.prover(n)))
}

/// Whether one of the first records proves itself.
fn proves(bytes: &[u8], prover: &Prover) -> bool {
    first_records(bytes).any(|r| r.proves(prover))
}

/// Where the first records are, going by their lengths alone.
fn first_records(bytes: &[u8]) -> impl Iterator<Item = Record<'_>> {
    let mut at = 0usize;
    std::iter::from_fn(move || {
        let record = Record::decode(bytes.get(at..)?, at as u64).ok()?;
        at = at.saturating_add(record.raw.len());
        Some(record)
    })
    .take(RECORDS)
}

/// Looks for the right numbers of `suspects`, blocks of which nothing proves itself: the number is part of the records'
/// hash, and of the key. Says whether any was found.
pub(super) fn blocks(work: &mut Work<'_>, msgs: &Path, suspects: &[u64]) -> bool {
    let name = work.source.name.clone();
    let stream = work.open(Want::NOTHING);
    let info = stream.key_info().to_vec();
    let children = work.overlay.children(msgs).unwrap_or_default();
    let files: Vec<u64> = children
        .iter()
        .filter(|c| c.kind == ChildKind::File)
        .filter_map(|c| numbered(&c.name, "blk"))
        .collect();
    let highest = files.iter().copied().max().unwrap_or(0);
    let mut moved: BTreeMap<u64, u64> = BTreeMap::new();
    let mut searched = 0;
    let mut tries = (work.ask.seconds.max(0.0) * TRIES_A_SECOND) as u64;
    tries = tries.min(TRIES);
    for &n in suspects {
        let path = msgs.join(format!("{n}.blk"));
        let key_bytes = read(work, &msgs.join(format!("{n}.key")), SMALL_FILE);
        let open = |n: u64| {
            let context = crypt::Context::Block {
                info: &info,
                store: name.as_bytes(),
                n,
            };
            open_key_file(key_bytes.as_deref()?, work.ask.keys, &context).ok()
        };
        let own_key = open(n);
        if key_bytes.is_some() && own_key.is_some() {
            // A key opens under its own number only.
            continue;
        }
        if work.ask.keys.is_empty() && key_bytes.is_some() {
            continue;
        }
        let Some(bytes) = logical_start(work, &path, None) else {
            continue;
        };
        if key_bytes.is_none() && (bytes.is_empty() || proves(&bytes, &stream.prover(n))) {
            continue;
        }
        let top = if searched < SEARCHED {
            NUMBERS
        } else {
            highest.saturating_add(64)
        };
        searched += 1;
        let heads: Vec<Record<'_>> = first_records(&bytes).collect();
        let fits = |candidate: u64| {
            if key_bytes.is_some() {
                return open(candidate).is_some();
            }
            let prover = Prover::for_block(name.as_bytes(), candidate);
            heads.iter().any(|r| r.proves(&prover))
        };
        // Opening a key takes long, and it goes by the number alone.
        let top = if key_bytes.is_some() {
            top.min(highest.saturating_add(1024))
        } else {
            top
        };
        if heads.is_empty() && key_bytes.is_none() {
            continue;
        }
        let near = files.iter().copied().filter(|c| *c != n);
        // Of a try it is the hashing that takes time.
        let hashed = heads.iter().map(|r| r.raw.len() as u64 / BYTES_A_TRY).sum();
        let cost = match key_bytes {
            Some(_) => KEY_TRY,
            None => 1u64.max(hashed),
        };
        let affordable = usize::try_from(tries / cost).unwrap_or(usize::MAX);
        let mut tried = 0;
        let found = near.chain(1..=top).take(affordable).find(|c| {
            tried += cost;
            fits(*c)
        });
        tries = tries.saturating_sub(tried);
        if let Some(found) = found {
            moved.insert(n, found);
            continue;
        }
        let place = stream.block_place(n);
        let other = work.ask.names.iter().find(|other| {
            let prover = Prover::for_block(other.as_bytes(), n);
            **other != name && heads.iter().any(|r| r.proves(&prover))
        });
        if let Some(other) = other {
            work.report
                .note(format!("{place}: a block of stream {other:?}: left out"));
        }
    }
    if moved.is_empty() {
        return false;
    }
    let mut mends = (*work.source.mends).clone();
    for &n in moved.keys() {
        for ext in ["blk", "key", "idx", "fss"] {
            work.overlay.hide(msgs.join(format!("{n}.{ext}")));
        }
    }
    for (&n, &found) in &moved {
        let place = stream.block_place(n);
        let here = files.contains(&found) && !moved.contains_key(&found);
        let from = msgs.join(format!("{n}.blk"));
        if here {
            mends
                .blocks
                .entry(found)
                .or_default()
                .copies
                .push(work.aside(msgs, from));
            work.report.note(format!(
                "{place}: its records are those of block {found}, which is there, too: a copy"
            ));
        } else {
            work.overlay
                .put_file(msgs.join(format!("{found}.blk")), from);
            // Its index, where it has one of its own, tells what is deleted.
            for ext in ["key", "idx", "fss"] {
                let beside = msgs.join(format!("{n}.{ext}"));
                if work.overlay.is_in_base(&beside) {
                    work.overlay
                        .put_file(msgs.join(format!("{found}.{ext}")), beside);
                }
            }
            work.report.note(format!(
                "{place}: its records are those of block {found}: taken for that"
            ));
        }
    }
    super::set_mends(work, mends);
    work.settle();
    true
}
