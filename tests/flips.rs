//! No flipped bit goes unseen: `check` has to report at least a warning for each.
//!
//! Every bit of every file that has a checksum, in a tiny store of each on-disk form; random bits in larger stores.
//! Left out, because nothing on disk could tell: `o.dat` of a store that is not encrypted, `.idx` (both have no
//! checksum, only contents that have to make sense) and the fields named in [`cannot_be_seen`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use common::{Fixture, copy_tree};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What these tests need to know of a finding.
#[derive(Debug)]
struct Found {
    severity: String,
    code: String,
}

// ---------------------------------------------------------------------------------------------------------------
// In this process every bit is tried; with a process for each, which takes hours, only some are.
const IN_PROCESS: bool = true;

fn check_dir(path: &Path, keys: Option<&str>) -> Vec<Found> {
    let mut out = std::io::sink();
    let ctx = jetsam::verbs::Context {
        threads: jetsam::pipeline::Threads::new(1).unwrap(),
        keys: jetsam::format::crypt::KeyRing {
            current: keys.map(jetsam::format::crypt::ServerKey::new),
            previous: None,
        },
        selector: Default::default(),
        open: Default::default(),
        live: false,
        json: false,
        style: Default::default(),
        metrics: None,
        stop: Default::default(),
        out: &mut out,
        monitor: &jetsam::verbs::Silent,
    };
    let source = jetsam::source::open(path, &ctx.open).unwrap();
    jetsam::verbs::check::check(&ctx, &source)
        .findings
        .iter()
        .map(|f| Found {
            severity: format!("{:?}", f.severity).to_lowercase(),
            code: f.code.as_str().to_owned(),
        })
        .collect()
}
// ---------------------------------------------------------------------------------------------------------------

/// The logical content of every block of every stream, by the block's file.
fn contents(store: &Path, key: Option<&str>) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let keys = jetsam::format::crypt::KeyRing {
        current: key.map(jetsam::format::crypt::ServerKey::new),
        previous: None,
    };
    let source = jetsam::source::open(store, &Default::default()).unwrap();
    let want = jetsam::stream::Want {
        subjects: false,
        consumers: false,
    };
    let mut scratch = jetsam::stream::Scratch::default();
    let mut out = std::collections::BTreeMap::new();
    for s in &source.streams {
        let stream = jetsam::stream::Stream::open(s, &keys, want);
        for block in &stream.blocks {
            let bytes = stream.load(block, &mut scratch).map(|l| l.bytes.to_vec());
            out.insert(
                store.join(stream.block_place(block.n)),
                bytes.unwrap_or_default(),
            );
        }
    }
    out
}

fn is_bad(found: &[Found]) -> bool {
    found
        .iter()
        .any(|f| f.severity == "error" || f.severity == "warning")
}

/// The files of a store whose every bit is covered by something.
fn covered_files(store: &Path, encrypted: bool) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut todo = vec![store.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                todo.push(path);
            } else if name.ends_with(".blk")
                || name.ends_with(".key")
                || ["meta.inf", "meta.sum", "index.db"].contains(&name)
                || (name == "o.dat" && encrypted)
            {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Bytes of a plain block that a record's hash does not cover, where nothing else on disk could tell either.
///
/// The hash is over sequence, time and then subject and payload as one run of bytes, so that the border between these
/// two (the subject's length, bytes 20 and 21) may move unseen. For a live message `index.db` lists the subjects and
/// how many messages each has; nothing does for a deleted message, nor in stores before 2.10.
fn cannot_be_seen(block: &[u8], has_index: bool, live: &BTreeSet<u64>) -> BTreeSet<usize> {
    let mut unseen = BTreeSet::new();
    let mut at = 0;
    while let Some(head) = block.get(at..at + 22) {
        let len = (u32::from_le_bytes(head[..4].try_into().unwrap()) & 0x7fff_ffff) as usize;
        let seq = u64::from_le_bytes(head[4..12].try_into().unwrap());
        assert!(len >= 30 && at + len <= block.len(), "not a plain block");
        if !has_index || !live.contains(&seq) {
            unseen.extend([at + 20, at + 21]);
        }
        at += len;
    }
    assert_eq!(at, block.len(), "not a plain block");
    unseen
}

/// A small generator of numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Flips bits of a copy of the store, one at a time; `sample` of them, or all.
fn flip(fx: &Fixture, sample: Option<usize>) {
    let work = tempfile::tempdir().unwrap();
    let store = work.path().join("store");
    copy_tree(&fx.stores()[0], &store);
    assert!(
        !is_bad(&check_dir(&store, fx.key())),
        "{} is not healthy to begin with",
        fx.name
    );

    let encrypted = fx.key().is_some();
    let good_contents = contents(&store, fx.key());
    let mut bits: Vec<(PathBuf, usize, u8)> = Vec::new();
    for file in covered_files(&store, encrypted) {
        let bytes = fs::read(&file).unwrap();
        let mut unseen = BTreeSet::new();
        // A stream cipher leaves every byte where it is; compression does not.
        if let Some(logical) = good_contents.get(&file).filter(|l| l.len() == bytes.len()) {
            let dir = file.parent().unwrap();
            let live = live(fx, &file);
            unseen = cannot_be_seen(logical, dir.join("index.db").exists(), &live);
        }
        for offset in (0..bytes.len()).filter(|o| !unseen.contains(o)) {
            bits.extend((0..8).map(|bit| (file.clone(), offset, bit)));
        }
    }
    assert!(bits.len() > 5_000, "{}: only {} bits", fx.name, bits.len());
    if let Some(n) = sample {
        let mut random = Random(n as u64);
        bits = (0..n)
            .map(|_| bits[random.below(bits.len())].clone())
            .collect();
    }

    let mut missed = Vec::new();
    let tried = bits.len();
    for (file, offset, bit) in bits {
        let good = fs::read(&file).unwrap();
        let mut bad = good.clone();
        bad[offset] ^= 1 << bit;
        fs::write(&file, &bad).unwrap();
        let found = check_dir(&store, fx.key());
        // In a run of equal bytes, S2 may copy from another place and still give the same block: then
        // nothing is damaged, and nothing can be seen.
        let harmless = !is_bad(&found)
            && file.extension().is_some_and(|e| e == "blk")
            && bad.len() != good_contents.get(&file).map_or(0, Vec::len)
            && contents(&store, fx.key()) == good_contents;
        fs::write(&file, &good).unwrap();
        if !is_bad(&found) && !harmless {
            let codes: Vec<_> = found.iter().map(|f| f.code.as_str()).collect();
            missed.push(format!(
                "{} byte {offset} bit {bit}: {codes:?}",
                file.strip_prefix(&store).unwrap().display()
            ));
        }
    }
    assert!(
        missed.is_empty(),
        "{}: {} of {tried} flips unseen\n  {}",
        fx.name,
        missed.len(),
        missed
            .iter()
            .take(60)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n  ")
    );
}

/// Sequences of the messages that the stream of this block file still has.
fn live(fx: &Fixture, file: &Path) -> BTreeSet<u64> {
    let stream_dir = file.parent().unwrap().parent().unwrap();
    let stream = stream_dir.file_name().unwrap().to_str().unwrap();
    let account = stream_dir
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap();
    let messages = &fx.truth["accounts"][account][stream]["messages"];
    messages
        .as_array()
        .into_iter()
        .flatten()
        .map(|m| m["seq"].as_u64().unwrap())
        .collect()
}

fn every_bit(name: &str) {
    let fx = Fixture::open_kind("tiny", name);
    flip(&fx, if IN_PROCESS { None } else { Some(80) });
}

macro_rules! every_bit {
    ($($test:ident = $name:literal,)*) => {
        const TINY: &[&str] = &[$($name),*];
        $(#[test] fn $test() { every_bit($name); })*
    };
}

every_bit! {
    plain_with_idx_2_2 = "2.2.6-plain",
    plain_with_idx_and_fss_2_9 = "2.9.25-plain",
    plain_2_14 = "2.14.9-plain",
    s2_2_15 = "2.15.2-s2",
    chacha_2_14 = "2.14.9-chacha",
    aes_2_14 = "2.14.9-aes",
    s2_chacha_2_15 = "2.15.2-s2-chacha",
}

#[test]
fn no_tiny_store_is_forgotten() {
    let mut all = TINY.to_vec();
    all.sort_unstable();
    assert_eq!(all, common::fixture_names("tiny"));
}

macro_rules! some_bits {
    ($($test:ident = $name:literal,)*) => {
        $(#[test] fn $test() { flip(&Fixture::open($name), Some(if IN_PROCESS { 400 } else { 25 })); })*
    };
}

some_bits! {
    some_of_basic_2_9 = "2.9.25-basic",
    some_of_basic_2_12 = "2.12.15-basic",
    some_of_basic_2_15 = "2.15.2-basic",
    some_of_aes_basic_2_14 = "2.14.5-aes-basic",
    some_of_compress_2_10 = "2.10.29-compress",
    some_of_chacha_compress_2_15 = "2.15.2-chacha-compress",
    some_of_kv_2_14 = "2.14.5-kv",
    some_of_new_2_15 = "2.15.2-new",
}
