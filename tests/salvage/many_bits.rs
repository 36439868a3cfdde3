//! Many flipped bits at once, in every file of every store that a server left: all of it comes back.

use super::bits::{contents, fields, keys};
use super::common::{self, Differences, Fixture, copy_tree};
use super::{Random, info, salvage, view};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A bit: file relative to the store, offset, place in the byte.
type Place = (String, u64, u8);

/// What was done to a store.
#[derive(Default)]
struct Flipped {
    /// To be corrected, and to be reported so.
    wrong: BTreeSet<Place>,
    /// In files that salvage does not need.
    idle: usize,
}

struct Flipper<'a> {
    store: &'a Path,
    random: Random,
    done: Flipped,
}

impl Flipper<'_> {
    fn place(&self, file: &Path) -> String {
        let place = file.strip_prefix(self.store).unwrap();
        place.to_str().unwrap().to_owned()
    }

    fn flip(&mut self, file: &Path, offset: usize) {
        let bit = self.random.below(8) as u8;
        let mut bytes = fs::read(file).unwrap();
        bytes[offset] ^= 1 << bit;
        fs::write(file, bytes).unwrap();
        let place = (self.place(file), offset as u64, bit);
        assert!(self.done.wrong.insert(place), "flipped back");
    }

    fn anywhere(&mut self, file: &Path) {
        let len = fs::metadata(file).unwrap().len() as usize;
        let at = self.random.below(len);
        self.flip(file, at);
    }

    /// A file that nothing depends on.
    fn idle(&mut self, file: &Path) {
        let before = self.done.wrong.clone();
        self.anywhere(file);
        self.done.wrong = before;
        self.done.idle += 1;
    }

    /// One bit in every `every`th record.
    fn records(
        &mut self,
        file: &Path,
        logical: &[u8],
        every: usize,
        index: bool,
        live: &BTreeSet<u64>,
    ) {
        let fields = fields(logical);
        let mut from = 0;
        let mut nth = 0;
        while from < logical.len() {
            let word = u32::from_le_bytes(logical[from..from + 4].try_into().unwrap());
            let to = from + (word & 0x7fff_ffff) as usize;
            nth += 1;
            if nth % every == 0 {
                // The border between subject and payload is not proven by the hash; where no
                // index lists the subjects nothing tells.
                let told = |at: &usize| {
                    fields[*at].0 != "subject length" || index && live.contains(&fields[*at].1)
                };
                let bytes: Vec<usize> = (from..to).filter(told).collect();
                let at = bytes[self.random.below(bytes.len())];
                self.flip(file, at);
            }
            from = to;
        }
    }
}

/// Flips bits all over a store.
fn flip_all(fx: &Fixture, store: &Path, seed: u64) -> Flipped {
    let live: BTreeMap<_, BTreeSet<u64>> = view(fx, store)
        .into_iter()
        .map(|(name, messages)| (name, messages.keys().copied().collect()))
        .collect();
    let none = BTreeSet::new();
    let mut f = Flipper {
        store,
        random: Random(seed),
        done: Flipped::default(),
    };
    let sealed = fx.key().is_some();
    let source = jetsam::source::open(store, &Default::default()).unwrap();
    for s in &source.streams {
        let dir = store.join(&s.path);
        let live = live
            .get(&(s.account.clone(), s.name.clone()))
            .unwrap_or(&none);
        for (n, (logical, compressed)) in contents(s, &keys(fx)) {
            let file = dir.join(format!("msgs/{n}.blk"));
            if compressed {
                // One bit in its only chunk.
                let len = fs::metadata(&file).unwrap().len() as usize;
                let at = 16 + f.random.below(len - 16 - 8);
                f.flip(&file, at);
            } else if !logical.is_empty() {
                let index = dir.join("msgs/index.db").exists();
                f.records(&file, &logical, 5, index, live);
            }
        }
        let mut dirs = vec![dir.clone()];
        for consumer in fs::read_dir(dir.join("obs")).into_iter().flatten() {
            dirs.push(consumer.unwrap().path());
        }
        for (i, dir) in dirs.iter().enumerate() {
            // Each by the other.
            let which = ["meta.inf", "meta.sum"][f.random.below(2)];
            f.anywhere(&dir.join(which));
            if sealed {
                f.anywhere(&dir.join("meta.key"));
                let state = dir.join("o.dat");
                if i > 0 && fs::metadata(&state).is_ok_and(|m| m.len() > 0) {
                    f.anywhere(&state);
                }
            }
        }
        for entry in fs::read_dir(dir.join("msgs")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            match name.rsplit_once('.').unwrap() {
                (_, "blk" | "idx" | "tmp") => {}
                ("index", _) | (_, "key") => f.anywhere(&path),
                _ => f.idle(&path),
            }
        }
    }
    f.done
}

/// The bits that a report says were wrong.
fn reported(report: &Value) -> Vec<(Place, bool)> {
    let streams = report["streams"].as_array().unwrap();
    let corrections = streams
        .iter()
        .flat_map(|s| s["corrections"].as_array().unwrap());
    corrections
        .flat_map(|c| {
            let file = c["file"].as_str().unwrap().to_owned();
            let decompressed = c["decompressed"] == true;
            c["flips"].as_array().unwrap().iter().map(move |flip| {
                let place = (
                    file.clone(),
                    flip["offset"].as_u64().unwrap(),
                    flip["bit"].as_u64().unwrap() as u8,
                );
                (place, decompressed)
            })
        })
        .collect()
}

fn remove_indexes(store: &Path) {
    for (_, _, dir) in common::stream_dirs(store) {
        let _ = fs::remove_file(dir.join("msgs/index.db"));
    }
}

fn many_bits(name: &str, index: bool) {
    let fx = Fixture::open(name);
    let work = tempfile::tempdir().unwrap();
    let (good, bad) = (work.path().join("good"), work.path().join("bad"));
    copy_tree(&fx.stores()[0], &good);
    if !index {
        remove_indexes(&good);
    }
    copy_tree(&good, &bad);

    // As the server had it: where it was stopped orderly the truth, else what salvage makes of it undamaged.
    let sound = work.path().join("sound");
    let (ran, report) = salvage(&fx, &good, &sound, &[]);
    ran.status(0);
    assert_eq!(reported(&report), [], "{name}: nothing to correct");
    let (want, want_info) = (view(&fx, &sound), info(&fx, &sound));
    if !fx.killed() {
        assert_eq!(want, view(&fx, &good));
        let mut differences = Differences::default();
        for (name, v) in info(&fx, &good) {
            differences.json(&format!("{name:?}"), &want_info[&name], &v);
        }
        differences.none("salvaged undamaged");
    }
    if !fx.killed() && index {
        for (account, stream) in fx.stream_names() {
            let truth = &fx.truth["accounts"][&account][&stream]["messages"];
            let truth: Vec<&Value> = truth.as_array().unwrap().iter().collect();
            let got = want.get(&(account, stream));
            let got: Vec<&Value> = got.into_iter().flat_map(|m| m.values()).collect();
            let mut differences = Differences::default();
            for (g, t) in got.iter().zip(&truth) {
                differences.json(&t["seq"].to_string(), g, t);
            }
            differences.none("the truth");
            assert_eq!(got.len(), truth.len());
        }
    }

    let flipped = flip_all(&fx, &bad, name.len() as u64 + u64::from(index));
    let before = common::fingerprint(&bad);
    let dest = work.path().join("dest");
    let (ran, report) = salvage(&fx, &bad, &dest, &[]);
    assert_eq!(before, common::fingerprint(&bad), "the source as it was");
    let mut differences = Differences::default();
    let got = view(&fx, &dest);
    for (name, want) in &want {
        let got = &got.get(name).cloned().unwrap_or_default();
        for (seq, message) in want {
            let got = got.get(seq).cloned().unwrap_or(Value::Null);
            differences.json(&format!("{name:?} {seq}"), &got, message);
        }
        for seq in got.keys().filter(|s| !want.contains_key(s)) {
            differences.add(format!("{name:?} {seq}: back from the dead"));
        }
    }
    let got = info(&fx, &dest);
    for (name, want) in &want_info {
        let got = got.get(name).unwrap_or(&Value::Null);
        differences.json(&format!("{name:?}"), got, want);
    }
    // Exactly these bits. One in a copy that S2 takes from elsewhere, to the same effect, is no damage: told by
    // reading the damaged file.
    let found = reported(&report);
    let mut right: BTreeSet<Place> = BTreeSet::new();
    for (place, decompressed) in &found {
        if *decompressed || !flipped.wrong.contains(place) {
            differences.add(format!("corrected {place:?} that was not wrong"));
        }
        if !right.insert(place.clone()) {
            differences.add(format!("corrected {place:?} twice"));
        }
    }
    for place in flipped.wrong.difference(&right) {
        if !harmless(&fx, &good, place) {
            differences.add(format!("did not name {place:?}"));
        }
    }
    for s in report["streams"].as_array().unwrap() {
        if s["lost"] != json!([]) || s["lost_messages"] != 0 || s["unverified"] != 0 {
            differences.add(format!("{}: {}", s["stream"], s));
        }
    }
    println!(
        "{name} index {index}: {} bits corrected, {} in files that do not matter",
        flipped.wrong.len(),
        flipped.idle
    );
    differences.none(name);
    ran.status(0);
    fx.jetsam().arg("check").arg(&dest).run().status(0);
}

/// Whether a compressed block, damaged like this, reads as it did: `store` is the undamaged one.
fn harmless(fx: &Fixture, store: &Path, place: &Place) -> bool {
    let file = PathBuf::from(&place.0);
    let (Some(n), Some("blk")) = (
        file.file_stem()
            .and_then(|n| n.to_str()?.parse::<u64>().ok()),
        file.extension().and_then(|e| e.to_str()),
    ) else {
        return false;
    };
    let dir = file.parent().unwrap().parent().unwrap();
    let read = || {
        let source = jetsam::source::open(store, &Default::default()).unwrap();
        let stream = source.streams.iter().find(|s| s.path == dir).unwrap();
        contents(stream, &keys(fx)).remove(&n).unwrap()
    };
    let before = read();
    let bytes = fs::read(store.join(&file)).unwrap();
    let mut bad = bytes.clone();
    bad[place.1 as usize] ^= 1 << place.2;
    fs::write(store.join(&file), bad).unwrap();
    let after = read();
    fs::write(store.join(&file), bytes).unwrap();
    before.1 && before == after
}

macro_rules! many_bits {
    ($($module:ident = $name:literal,)*) => {
        $(mod $module {
            #[test]
            fn with_index() { super::many_bits($name, true); }
            #[test]
            fn without_index() { super::many_bits($name, false); }
        })*
    };
}

every_store!(many_bits);
