//! Pages, blocks and files that are lost, moved, doubled or garbled.
//!
//! What is lost are messages whose bytes were touched, none is different, none that was deleted is back, and the
//! report names exactly those that are lost. Where `index.db` is gone with the rest, a deletion may be known by a
//! tombstone alone: then one whose tombstone was touched may be back, and what the report calls lost may have been
//! deleted before.

use super::bits::{contents, keys};
use super::common::{Fixture, copy_tree, fingerprint, stream_dirs};
use super::{Messages, salvage, sequences, view};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

const TOMBSTONE: u64 = 1 << 62;
const SEQ: u64 = TOMBSTONE - 1;

/// A block as it was.
struct Block {
    path: PathBuf,
    file: Vec<u8>,
    compressed: bool,
    /// Where each record is in the logical block, and its sequence with its flags.
    records: Vec<(Range<usize>, u64)>,
}

impl Block {
    fn records(logical: &[u8]) -> Vec<(Range<usize>, u64)> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < logical.len() {
            let word = u32::from_le_bytes(logical[at..at + 4].try_into().unwrap());
            let seq = u64::from_le_bytes(logical[at + 4..at + 12].try_into().unwrap());
            let end = at + (word & 0x7fff_ffff) as usize;
            out.push((at..end, seq));
            at = end;
        }
        out
    }

    /// The record that begins at or after this offset.
    fn border(&self, at: usize) -> usize {
        let starts = self.records.iter().map(|r| r.0.start);
        starts.filter(|s| *s >= at).min().unwrap()
    }
}

/// A store with one stream, to be damaged.
struct Case {
    what: String,
    fx: Fixture,
    work: tempfile::TempDir,
    store: PathBuf,
    dir: PathBuf,
    index: bool,
    live: Messages,
    blocks: BTreeMap<u64, Block>,
    /// Sequences with their flags that damage may have taken.
    touched: BTreeSet<u64>,
    /// What `salvage` is given besides.
    more: Vec<&'static str>,
    /// Something else is to be told: exit status 1 although nothing is lost.
    told: bool,
}

const STREAMS: &[(&str, &str)] = &[
    ("2.14.5-basic", "BLOCKS"),
    ("2.9.25-basic", "BLOCKS"),
    ("2.14.5-aes-basic", "BLOCKS"),
    ("2.12.15-compress", "S2"),
    ("2.15.2-chacha-compress", "S2"),
];

impl Case {
    fn new(what: &str, fixture: &str, stream: &str, index: bool) -> Self {
        let fx = Fixture::open(fixture);
        let work = tempfile::tempdir().unwrap();
        let store = work.path().join("store");
        let dir = store.join("jetstream/$G/streams").join(stream);
        fs::create_dir_all(dir.parent().unwrap()).unwrap();
        copy_tree(
            &fx.stores()[0].join("jetstream/$G/streams").join(stream),
            &dir,
        );
        if !index {
            let _ = fs::remove_file(dir.join("msgs/index.db"));
        }
        let live = view(&fx, &store)
            .remove(&("$G".to_owned(), stream.to_owned()))
            .unwrap();
        let source = jetsam::source::open(&store, &Default::default()).unwrap();
        let blocks = contents(&source.streams[0], &keys(&fx))
            .into_iter()
            .map(|(n, (logical, compressed))| {
                let path = dir.join(format!("msgs/{n}.blk"));
                let block = Block {
                    file: fs::read(&path).unwrap(),
                    path,
                    compressed,
                    records: Block::records(&logical),
                };
                (n, block)
            })
            .collect();
        Case {
            what: format!("{what}, {fixture} {stream}, index {index}"),
            index: dir.join("msgs/index.db").exists(),
            fx,
            work,
            store,
            dir,
            live,
            blocks,
            touched: BTreeSet::new(),
            more: Vec::new(),
            told: false,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join("msgs").join(name)
    }

    /// The numbers of the blocks: first, one in the middle, last.
    fn numbers(&self) -> [u64; 3] {
        let all: Vec<u64> = self.blocks.keys().copied().collect();
        [all[0], all[all.len() / 2], all[all.len() - 1]]
    }

    /// Notes that these bytes of a block are touched.
    fn touch(&mut self, n: u64, range: Range<usize>) {
        let b = &self.blocks[&n];
        let hit = b
            .records
            .iter()
            .filter(|(r, _)| b.compressed || r.start < range.end && range.start < r.end);
        self.touched.extend(hit.map(|(_, seq)| *seq));
    }

    fn touch_block(&mut self, n: u64) {
        self.touch(n, 0..usize::MAX);
    }

    /// Changes a block's bytes; those in `range` are touched.
    fn edit(&mut self, n: u64, range: Range<usize>, change: impl FnOnce(&mut Vec<u8>)) {
        self.touch(n, range);
        let path = &self.blocks[&n].path;
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    fn zero(&mut self, n: u64, range: Range<usize>) {
        self.edit(n, range.clone(), |b| b[range].fill(0));
    }

    fn remove_block(&mut self, n: u64) {
        self.touch_block(n);
        for ext in ["blk", "key", "idx", "fss"] {
            let _ = fs::remove_file(self.file(&format!("{n}.{ext}")));
        }
    }

    /// Salvages, and compares; the sequences that are lost.
    fn check(self) -> BTreeSet<u64> {
        let what = &self.what;
        let before = fingerprint(&self.store);
        let dest = self.work.path().join("dest");
        let (ran, report) = salvage(&self.fx, &self.store, &dest, &self.more);
        let explain = || format!("{what}\n{report:#}\n{}", ran.stderr);
        assert_eq!(before, fingerprint(&self.store), "{what}: source");
        let rows = report["streams"]
            .as_array()
            .unwrap_or_else(|| panic!("{}", explain()));
        assert_eq!(rows.len(), 1, "{}", explain());
        let mut served = view(&self.fx, &dest);
        let stream = rows[0]["stream"].as_str().unwrap();
        let name = ("$G".to_owned(), stream.to_owned());
        let got = served.remove(&name).unwrap_or_default();
        assert!(served.is_empty(), "{}", explain());
        let mut back = BTreeSet::new();
        for (seq, message) in &got {
            match self.live.get(seq) {
                Some(want) => assert_eq!(message, want, "{}", explain()),
                None => {
                    back.insert(*seq);
                }
            }
        }
        let seqs = |flags: u64| {
            let of = self.touched.iter().filter(move |s| *s & !SEQ == flags);
            of.map(|s| s & SEQ).collect::<BTreeSet<u64>>()
        };
        let missing: BTreeSet<u64> = self
            .live
            .keys()
            .filter(|s| !got.contains_key(s))
            .copied()
            .collect();
        // What comes back for want of its tombstone takes room, and limits remove the oldest instead.
        let oldest: BTreeSet<u64> = self.live.keys().take(back.len()).copied().collect();
        let without_need: Vec<&u64> = missing
            .iter()
            .filter(|s| !self.touched.contains(s) && !oldest.contains(s))
            .collect();
        assert!(
            without_need.is_empty(),
            "{}\nlost without need: {without_need:?}",
            explain()
        );
        let lost = sequences(&rows[0]["lost"]);
        assert_eq!(
            rows[0]["lost_messages"].as_u64(),
            Some(lost.len() as u64),
            "{}",
            explain()
        );
        assert_eq!(rows[0]["messages"], json!(got.len()), "{}", explain());
        if self.index {
            assert_eq!(back, BTreeSet::new(), "{}: back from the dead", explain());
            assert_eq!(lost, missing, "{}: lost", explain());
        } else {
            assert!(
                back.is_subset(&seqs(TOMBSTONE)),
                "{}: back from the dead {back:?}",
                explain()
            );
            // That there was something before what is left, or behind it, nothing tells then.
            let ends = got.keys().next().zip(got.keys().next_back()).unwrap();
            let untold: Vec<&u64> = missing
                .difference(&lost)
                .filter(|s| ends.0 < s && s < &ends.1)
                .collect();
            assert!(untold.is_empty(), "{}: not told: {untold:?}", explain());
            let more: BTreeSet<u64> = lost.difference(&missing).copied().collect();
            assert!(
                more.iter().all(|s| !self.live.contains_key(s)),
                "{}: {more:?}",
                explain()
            );
        }
        // Damage that could not be put right is told by the exit status even where it hit nothing that lived.
        let left = rows[0]["findings"].as_array().unwrap();
        let left = left.iter().any(|f| f["severity"] == "error");
        let found = !lost.is_empty() || self.told || left;
        assert_eq!(ran.status, Some(i32::from(found)), "{}", explain());
        let check = self.fx.jetsam().arg("check").arg(&dest).run();
        assert_eq!(check.status, Some(0), "{}\n{}", explain(), check.text());
        println!("{what}: {} lost", lost.len());
        missing
    }
}

/// Runs a case on each stream, with and without `index.db`.
fn each(what: &str, run: impl Fn(Case)) {
    for (fixture, stream) in STREAMS {
        for index in [true, false] {
            let old = fixture.starts_with("2.9");
            if !old || index {
                run(Case::new(what, fixture, stream, index));
            }
        }
    }
}

#[test]
fn a_zeroed_page() {
    each("zeroed page", |mut case| {
        let n = case.numbers()[1];
        let page = 8192..(8192 + 4096).min(case.blocks[&n].file.len());
        case.zero(n, page);
        case.check();
    });
}

#[test]
fn a_zeroed_start() {
    each("zeroed start", |mut case| {
        let n = case.numbers()[0];
        case.zero(n, 0..512);
        case.check();
    });
}

#[test]
fn a_cut_tail() {
    for which in 0..3 {
        each("cut tail", |mut case| {
            let n = case.numbers()[which];
            let len = case.blocks[&n].file.len();
            case.edit(n, len - 1000..len, |b| b.truncate(len - 1000));
            case.check();
        });
    }
}

#[test]
fn a_missing_block() {
    for which in 0..3 {
        each("missing block", |mut case| {
            let n = case.numbers()[which];
            case.remove_block(n);
            let live = case.live.clone();
            let touched = case.touched.clone();
            let missing = case.check();
            let gone = live.keys().filter(|s| touched.contains(s)).count();
            assert_eq!(missing.len(), gone, "nothing is made up");
        });
    }
}

#[test]
fn inserted_and_removed_bytes() {
    each("inserted bytes", |mut case| {
        let n = case.numbers()[1];
        // A stream cipher goes by the place: everything behind is in another one.
        let touched = 5000..if case.fx.key().is_some() {
            usize::MAX
        } else {
            5001
        };
        case.edit(n, touched, |b| {
            b.splice(5000..5000, [0xa5; 77]);
        });
        case.check();
    });
    each("removed bytes", |mut case| {
        let n = case.numbers()[1];
        let touched = 5000..if case.fx.key().is_some() {
            usize::MAX
        } else {
            5100
        };
        case.edit(n, touched, |b| {
            b.drain(5000..5100);
        });
        case.check();
    });
    each("inserted between records", |mut case| {
        let n = case.numbers()[1];
        if case.blocks[&n].compressed || case.fx.key().is_some() {
            return;
        }
        let at = case.blocks[&n].border(5000);
        case.edit(n, at..at, |b| {
            b.splice(at..at, [0; 40]);
        });
        assert_eq!(case.check().len(), 0);
    });
    each("a removed record", |mut case| {
        let n = case.numbers()[1];
        // Without an index it looks as if it had been deleted, and the block compacted since.
        if case.blocks[&n].compressed || case.fx.key().is_some() || !case.index {
            return;
        }
        let record = case.blocks[&n].border(5000);
        let record = record..case.blocks[&n].border(record + 1);
        case.edit(n, record.clone(), |b| {
            b.drain(record);
        });
        case.check();
    });
}

#[test]
fn a_block_under_another_number() {
    for which in 0..3 {
        each("renamed block", |case| {
            let n = case.numbers()[which];
            for ext in ["blk", "key", "idx", "fss"] {
                let file = case.file(&format!("{n}.{ext}"));
                if file.exists() {
                    fs::rename(file, case.file(&format!("77.{ext}"))).unwrap();
                }
            }
            assert_eq!(case.check().len(), 0);
        });
    }
}

#[test]
fn two_blocks_names_swapped() {
    each("swapped blocks", |case| {
        let [a, b, _] = case.numbers();
        for ext in ["blk", "key", "idx", "fss"] {
            let (a, b) = (
                case.file(&format!("{a}.{ext}")),
                case.file(&format!("{b}.{ext}")),
            );
            if a.exists() && b.exists() {
                let t = case.file("t");
                fs::rename(&a, &t).unwrap();
                fs::rename(&b, &a).unwrap();
                fs::rename(&t, &b).unwrap();
            }
        }
        assert_eq!(case.check().len(), 0);
    });
}

#[test]
fn the_streams_directory_under_another_name() {
    // A stream's keys open under its own name only, so that an encrypted one has to be told it.
    each("renamed directory", |case| {
        if case.fx.key().is_none() {
            let other = case.dir.with_file_name("other");
            fs::rename(&case.dir, other).unwrap();
            assert_eq!(case.check().len(), 0);
        }
    });
    // Alone, and its name given.
    each("renamed directory, name given", |mut case| {
        let name = case.dir.file_name().unwrap().to_str().unwrap().to_owned();
        let other = case.dir.with_file_name("other");
        fs::rename(&case.dir, &other).unwrap();
        case.more = vec!["-a", "$G", "-s", if name == "S2" { "S2" } else { "BLOCKS" }];
        case.store = other;
        assert_eq!(case.check().len(), 0);
    });
}

#[test]
fn meta_files_garbled_or_gone() {
    each("meta.sum gone", |case| {
        fs::remove_file(case.dir.join("meta.sum")).unwrap();
        assert_eq!(case.check().len(), 0);
    });
    each("meta.sum garbled", |case| {
        fs::write(case.dir.join("meta.sum"), [0; 16]).unwrap();
        assert_eq!(case.check().len(), 0);
    });
    each("meta.inf gone", |mut case| {
        fs::remove_file(case.dir.join("meta.inf")).unwrap();
        case.told = true;
        assert_eq!(case.check().len(), 0);
    });
    each("meta.inf garbled", |mut case| {
        fs::write(case.dir.join("meta.inf"), [0xff; 300]).unwrap();
        case.told = true;
        assert_eq!(case.check().len(), 0);
    });
}

#[test]
fn halves_of_a_block_swapped() {
    each("swapped halves", |mut case| {
        let n = case.numbers()[1];
        // A stream cipher goes by the place.
        if case.blocks[&n].compressed || case.fx.key().is_some() {
            return;
        }
        let half = case.blocks[&n].file.len() / 2;
        case.edit(n, half - 1..half + 1, |b| b.rotate_left(half));
        case.check();
    });
}

#[test]
fn copies_that_a_server_was_making() {
    for copy in ["blk.tmp", "new"] {
        each("copy instead of the block", |case| {
            let n = case.numbers()[1];
            fs::rename(
                case.file(&format!("{n}.blk")),
                case.file(&format!("{n}.{copy}")),
            )
            .unwrap();
            assert_eq!(case.check().len(), 0);
        });
        each("copy beside the damaged block", |mut case| {
            let n = case.numbers()[1];
            fs::copy(
                case.file(&format!("{n}.blk")),
                case.file(&format!("{n}.{copy}")),
            )
            .unwrap();
            case.zero(n, 4096..8192);
            assert_eq!(case.check().len(), 0);
        });
        each("torn copy beside the block", |case| {
            let n = case.numbers()[1];
            let half = case.blocks[&n].file.len() / 2;
            let bytes = &case.blocks[&n].file[..half];
            fs::write(case.file(&format!("{n}.{copy}")), bytes).unwrap();
            assert_eq!(case.check().len(), 0);
        });
    }
}

/// An index that servers would discard still tells what was deleted: here by limits, which leave no tombstones.
#[test]
fn a_stale_index_is_a_witness() {
    for (fixture, stream) in [
        ("2.14.5-basic", "LIMITED"),
        ("2.14.5-basic", "LASTONLY"),
        ("2.14.5-basic", "ORDERS"),
        ("2.10.29-basic", "LIMITED"),
        ("2.14.5-aes-basic", "LIMITED"),
        ("2.14.5-basic", "BLOCKS"),
        ("2.12.15-compress", "S2"),
    ] {
        // Without its tail the last block does not fit the index; what was lost makes room for what limits had
        // removed.
        let mut case = Case::new("stale index, cut tail", fixture, stream, true);
        let n = case.numbers()[2];
        let len = case.blocks[&n].file.len();
        case.edit(n, len - 700..len, |b| b.truncate(len - 700));
        case.check();
        // With messages behind it, as after a kill: the index is older than the block.
        let mut case = Case::new("stale index, hole", fixture, stream, true);
        let n = case.numbers()[2];
        case.edit(n, len..len, |b| b.extend([0; 64]));
        case.zero(n, 600..1200);
        case.check();
    }
}

#[test]
fn several_at_once() {
    each("several", |mut case| {
        let [first, middle, last] = case.numbers();
        case.zero(first, 4096..8192);
        case.remove_block(middle);
        let len = case.blocks[&last].file.len();
        case.edit(last, len - 900..len, |b| b.truncate(len - 900));
        case.edit(first, 12..13, |b| b[12] ^= 0x40);
        fs::remove_file(case.dir.join("meta.sum")).unwrap();
        case.check();
    });
    each("several names", |mut case| {
        let [first, middle, last] = case.numbers();
        for (n, to) in [(first, 50), (last, 60)] {
            for ext in ["blk", "key", "idx", "fss"] {
                let file = case.file(&format!("{n}.{ext}"));
                if file.exists() {
                    fs::rename(file, case.file(&format!("{to}.{ext}"))).unwrap();
                }
            }
        }
        case.zero(middle, 4096..8192);
        case.check();
    });
}

/// Each has the other's messages: the hashes tell whose they are.
#[test]
fn two_streams_messages_swapped() {
    for name in ["2.14.5-basic", "2.12.15-compress", "2.15.2-chacha-compress"] {
        let fx = Fixture::open(name);
        let work = tempfile::tempdir().unwrap();
        let (store, dest) = (work.path().join("store"), work.path().join("new"));
        copy_tree(&fx.stores()[0], &store);
        let want = view(&fx, &store);
        let dirs: Vec<PathBuf> = stream_dirs(&store)
            .into_iter()
            .map(|(_, _, dir)| dir)
            .filter(|dir| fs::read_dir(dir.join("msgs")).unwrap().count() > 1)
            .take(2)
            .collect();
        let [a, b] = dirs.as_slice() else {
            panic!("{name}: {dirs:?}")
        };
        fs::rename(a.join("msgs"), work.path().join("a")).unwrap();
        fs::rename(b.join("msgs"), a.join("msgs")).unwrap();
        fs::rename(work.path().join("a"), b.join("msgs")).unwrap();
        let (ran, report) = salvage(&fx, &store, &dest, &[]);
        assert_eq!(ran.status, Some(0), "{name}: {report:#}");
        assert_eq!(view(&fx, &dest), want, "{name}");
        let notes = report.to_string();
        assert_eq!(notes.matches("of another stream").count(), 2, "{name}");
    }
}
