//! A whole store directory, changed and then read by every verb. Input: which store and flags, then
//! changes of six bytes each: what, which file, where (two bytes), two arguments.
//!
//! | change | meaning |
//! |---|---|
//! | 0, 1 | a byte XOR an argument |
//! | 2 | the file ends there |
//! | 3 | up to 16 kB of one value are appended |
//! | 4 | a run of zeros |
//! | 5 | a run is inserted |
//! | 6 | a run is removed |
//! | 7 | a run is copied from another file |
//! | 8 | the file is removed |
//! | 9 | the file gets the content of another |
//! | 10 | eight bytes become a number at the edge of some type |
//!
//! With the flag 0x80 the hashes of plain records, `index.db` and `meta.inf` are put right afterwards,
//! so that the change gets past them.
#![no_main]

use jetsam::format::index_db;
use jetsam::format::meta;
use jetsam::format::record::Prover;
use jetsam::verbs::{inspect, ls};
use jetsam_fuzz::{Input, read_all, reseal, run, scratch_dir};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const PACKED: [&[u8]; 7] = [
    include_bytes!("../../fixtures/tiny/2.14.9-plain.tar.xz"),
    include_bytes!("../../fixtures/tiny/2.9.25-plain.tar.xz"),
    include_bytes!("../../fixtures/tiny/2.2.6-plain.tar.xz"),
    include_bytes!("../../fixtures/tiny/2.15.2-s2.tar.xz"),
    include_bytes!("../../fixtures/tiny/2.14.9-chacha.tar.xz"),
    include_bytes!("../../fixtures/tiny/2.14.9-aes.tar.xz"),
    include_bytes!("../../fixtures/tiny/2.15.2-s2-chacha.tar.xz"),
];
const LONGEST: usize = 64 << 10;

struct Store {
    dir: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
    encrypted: bool,
}

static STORES: LazyLock<Vec<Store>> = LazyLock::new(|| {
    let root = scratch_dir();
    let unpack = |(i, packed): (usize, &&[u8])| {
        let dir = root.join(format!("{i}"));
        let mut archive = tar::Archive::new(xz2::read::XzDecoder::new(*packed));
        let mut files = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().into_owned();
            if !entry.header().entry_type().is_file() || !path.starts_with("store") {
                continue;
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &bytes).unwrap();
            files.push((path, bytes));
        }
        files.sort();
        let encrypted = files.iter().any(|f| f.0.ends_with("meta.key"));
        Store {
            dir: dir.join("store"),
            files,
            encrypted,
        }
    };
    PACKED.iter().enumerate().map(unpack).collect()
});

fn change(input: &mut Input<'_>, store: &Store, now: &mut BTreeMap<usize, Option<Vec<u8>>>) {
    let (what, which, at, a, b) = (
        input.u8(),
        usize::from(input.u8()) % store.files.len(),
        usize::from(input.u16()),
        input.u8(),
        input.u8(),
    );
    let content = |now: &BTreeMap<usize, Option<Vec<u8>>>, i: usize| {
        now.get(&i)
            .cloned()
            .unwrap_or_else(|| Some(store.files[i].1.clone()))
            .unwrap_or_default()
    };
    let mut bytes = content(now, which);
    let other = content(now, usize::from(a) % store.files.len());
    let at = at % (bytes.len() + 1);
    let to = (at + usize::from(b)).min(bytes.len());
    match what % 11 {
        0 | 1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= a.max(1);
            }
        }
        2 => bytes.truncate(at),
        3 => bytes.resize(bytes.len() + (usize::from(b) << 6), a),
        4 => bytes[at..to].fill(0),
        5 => drop(bytes.splice(at..at, vec![a; b.into()])),
        6 => drop(bytes.drain(at..to)),
        7 => {
            let from = at.min(other.len());
            let end = (from + usize::from(b)).min(other.len());
            bytes.splice(at..to, other[from..end].iter().copied());
        }
        8 => {
            now.insert(which, None);
            return;
        }
        9 => bytes = other,
        _ => {
            let edge = 1u64.checked_shl(a.into()).unwrap_or(0);
            let value = edge.wrapping_add(u64::from(b)).wrapping_sub(128);
            let end = (at + 8).min(bytes.len());
            let n = end - at;
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..n]);
        }
    }
    bytes.truncate(LONGEST);
    now.insert(which, Some(bytes));
}

/// The name of the directory that a file's hash is keyed with.
fn named(path: &Path, up: usize) -> &[u8] {
    path.ancestors()
        .nth(up)
        .and_then(Path::file_name)
        .map_or(b"", |n| n.as_encoded_bytes())
}

fn put_right(store: &Store, now: &mut BTreeMap<usize, Option<Vec<u8>>>) {
    let mut sums = Vec::new();
    for (i, content) in now.iter_mut() {
        let path = &store.files[*i].0;
        let Some(bytes) = content else { continue };
        let file = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if file == "index.db" && bytes.len() > 8 {
            let body = bytes[..bytes.len() - 8].to_vec();
            *bytes = index_db::with_hash(body, named(path, 2));
        } else if file == "meta.inf" {
            let sum = meta::sum(&String::from_utf8_lossy(named(path, 1)), bytes);
            sums.push((path.with_file_name("meta.sum"), sum));
        } else if let Some(n) = file.strip_suffix(".blk").and_then(|n| n.parse().ok())
            && !store.encrypted
        {
            reseal(bytes, &Prover::for_block(named(path, 2), n));
        }
    }
    for (path, sum) in sums {
        if let Some(i) = store.files.iter().position(|f| f.0 == path) {
            now.insert(i, Some(sum.into_bytes()));
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let flags = input.u8();
    let store = &STORES[usize::from(flags & 0x7f) % STORES.len()];
    let mut now = BTreeMap::new();
    for _ in 0..16 {
        if input.0.is_empty() {
            break;
        }
        change(&mut input, store, &mut now);
    }
    if flags & 0x80 != 0 {
        put_right(store, &mut now);
    }
    for (i, content) in &now {
        let path = &store.files[*i].0;
        match content {
            Some(bytes) => fs::write(path, bytes).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
    }

    read_all(&store.dir);
    let options = ls::Options {
        consumers: true,
        raft: true,
    };
    let _ = run(false, |ctx| ls::run(ctx, &store.dir, &options));
    for (i, content) in &now {
        if content.is_some() {
            let file = [store.files[*i].0.clone()];
            let (exit, out) = run(true, |ctx| {
                inspect::run(ctx, &file, &inspect::Options::default())
            });
            exit.expect("inspect takes every file");
            for line in out.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                serde_json::from_slice::<serde_json::Value>(line).expect("inspect writes JSON");
            }
        }
    }

    for i in now.keys() {
        let (path, bytes) = &store.files[*i];
        fs::write(path, bytes).unwrap();
    }
});
