//! `--io-limit`, and `check` in parts, of a sample, and in several sittings.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use common::{Fixture, Jetsam, copy_tree};
use jetsam::format::index_db;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn check(f: &Fixture) -> Jetsam {
    f.jetsam().arg("check")
}

fn report(check: Jetsam, source: &Path) -> Value {
    check.arg(source).arg("--json").run().json()
}

/// With a limit the answer is the same, and takes at least the bytes divided by the rate.
#[test]
fn a_limit_is_kept() {
    let f = Fixture::open("2.14.5-basic");
    let store = &f.stores()[0];
    let archive = f.dir.join("snapshots/$G/BLOCKS.tar.s2");
    let v2 = Fixture::open("2.15.2-basic")
        .dir
        .join("snapshots/$G/BLOCKS.tar.s2");
    let in_store = report(check(&f), store)["summary"]["bytes"].as_u64();
    for (source, bytes) in [
        (store, in_store.unwrap()),
        (&archive, fs::metadata(&archive).unwrap().len()),
        (&v2, fs::metadata(&v2).unwrap().len()),
    ] {
        let whole = report(check(&f), source);
        assert_eq!(whole["summary"]["errors"], 0);
        let rate = bytes * 5 / 2;
        for threads in ["1", "4"] {
            let started = Instant::now();
            let j = check(&f).arg("--io-limit").arg(format!("{rate}/s"));
            let slow = report(j.args(["--threads", threads]), source);
            let took = started.elapsed();
            assert_eq!(slow, whole);
            let least = Duration::from_millis(400);
            assert!(took >= least, "{source:?}, {threads} threads: {took:?}");
        }
    }
}

#[test]
fn a_limit_that_is_none_is_refused() {
    let f = Fixture::open("2.14.5-basic");
    let store = &f.stores()[0];
    for options in [
        &["--io-limit", "0"][..],
        &["--io-limit", "fast"],
        &["--io-limit", "1M", "--mmap"],
    ] {
        let ran = f.jetsam().arg("ls").arg(store).args(options).run();
        assert!(ran.status(2).stdout.is_empty());
    }
    let block = blocks(store).join("1.blk");
    let inspect = |rate| {
        f.jetsam()
            .arg("inspect")
            .arg(&block)
            .args(["--io-limit", rate])
            .run()
    };
    let started = Instant::now();
    assert_eq!(inspect("60K").text(), inspect("1G").text());
    assert!(started.elapsed() >= Duration::from_millis(400));
}

/// The numbers of a summary that add up over the parts.
const COUNTS: [&str; 3] = ["blocks", "bytes", "records"];

fn number(report: &Value, name: &str) -> u64 {
    report["summary"][name].as_u64().unwrap()
}

/// A store of one's own.
fn copy(store: &Path) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("store");
    copy_tree(store, &own);
    (dir, own)
}

fn blocks(store: &Path) -> PathBuf {
    store.join("jetstream/$G/streams/BLOCKS/msgs")
}

/// Flips a bit; the file looks as old as before if `unseen`.
fn flip(file: &Path, at: usize, unseen: bool) {
    let modified = fs::metadata(file).unwrap().modified().unwrap();
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 4;
    fs::write(file, bytes).unwrap();
    let modified = if unseen {
        modified
    } else {
        modified + Duration::from_nanos(1)
    };
    let times = fs::FileTimes::new().set_modified(modified);
    let f = fs::File::options().write(true).open(file).unwrap();
    f.set_times(times).unwrap();
}

#[test]
fn the_parts_make_up_the_whole() {
    for name in [
        "2.14.5-basic",
        "2.14.5-chacha-compress",
        "2.14.5-cluster",
        "2.12.15-accounts",
        "2.11.17-kill-basic",
        "2.9.25-basic",
    ] {
        let f = Fixture::open(name);
        for store in f.stores() {
            let whole = report(check(&f), &store);
            assert!(whole["summary"].get("part").is_none());
            assert!(whole["summary"].get("blocks_total").is_none());
            for n in [1, 2, 7] {
                let parts: Vec<Value> = (1..=n)
                    .map(|k| {
                        let j = check(&f).args(["--threads", "2", "--part"]);
                        report(j.arg(format!("{k}/{n}")), &store)
                    })
                    .collect();
                for (k, part) in parts.iter().enumerate() {
                    let summary = &part["summary"];
                    assert_eq!(summary["part"], json!({ "k": k + 1, "n": n }));
                    assert_eq!(summary["blocks_total"], whole["summary"]["blocks"]);
                    assert_eq!(summary["streams"], whole["summary"]["streams"]);
                    assert_eq!(summary["consumers"], whole["summary"]["consumers"]);
                    // What is sound as a whole is sound in parts.
                    assert!(number(part, "errors") <= number(&whole, "errors"), "{name}");
                    assert!(number(part, "warnings") <= number(&whole, "warnings"));
                }
                for count in COUNTS {
                    let sum: u64 = parts.iter().map(|p| number(p, count)).sum();
                    assert_eq!(sum, number(&whole, count), "{name}: {count} of {n}");
                }
                let seen: u64 = parts.iter().map(|p| number(p, "messages")).sum();
                // Without an index nobody knows what a later block deletes.
                if ["2.14.5-basic", "2.14.5-chacha-compress", "2.12.15-accounts"].contains(&name) {
                    assert_eq!(seen, number(&whole, "messages"), "{name}");
                } else {
                    assert!(seen >= number(&whole, "messages"), "{name}");
                }
            }
        }
    }
}

#[test]
fn an_archive_is_in_one_part() {
    for name in ["2.14.5-basic", "2.15.2-basic"] {
        let f = Fixture::open(name);
        let mut archives: Vec<PathBuf> = fs::read_dir(f.dir.join("snapshots/$G"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "s2"))
            .collect();
        archives.sort();
        assert!(archives.len() > 5);
        let all = |j: Jetsam| j.args(&archives).arg("--json").run().json();
        let whole = all(check(&f));
        let parts: Vec<Value> = (1..=3)
            .map(|k| all(check(&f).arg("--part").arg(format!("{k}/3"))))
            .collect();
        for count in [&COUNTS[..], &["messages", "consumers"]].concat() {
            let sum: u64 = parts.iter().map(|p| number(p, count)).sum();
            assert_eq!(sum, number(&whole, count), "{name}: {count}");
        }
        for part in &parts {
            assert_eq!(part["summary"]["blocks_total"], whole["summary"]["blocks"]);
        }
    }
}

/// Where the errors are.
fn errors(report: &Value) -> Vec<Value> {
    let found = report["findings"].as_array().unwrap().iter();
    found
        .filter(|f| f["severity"] == "error")
        .map(|f| json!([f["code"], f["file"], f["offset"], f["seq"]]))
        .collect()
}

#[test]
fn a_flipped_bit_is_found_by_one_part() {
    for name in ["2.14.5-basic", "2.9.25-basic"] {
        let f = Fixture::open(name);
        let (_dir, store) = copy(&f.stores()[0]);
        for n in 1..=3 {
            flip(&blocks(&store).join(format!("{n}.blk")), 20_000, false);
            let sound = errors(&report(check(&f), &f.stores()[0]));
            assert!(sound.is_empty());
            let whole = errors(&report(check(&f), &store));
            let mut of: Vec<Vec<Value>> = (1..=7)
                .map(|k| {
                    let j = check(&f).arg("--part").arg(format!("{k}/7"));
                    let ran = j.arg(&store).arg("--json").run();
                    let found = errors(&ran.json());
                    assert_eq!(ran.status, Some(i32::from(!found.is_empty())));
                    found
                })
                .collect();
            of.retain(|found| !found.is_empty());
            // Each of these blocks is in a part of its own.
            assert_eq!(of.len(), n, "{name}: {of:?}");
            let mut union = of.concat();
            union.sort_by_key(Value::to_string);
            let mut whole_sorted = whole.clone();
            whole_sorted.sort_by_key(Value::to_string);
            assert_eq!(union, whole_sorted);
            let sample = report(check(&f).args(["--sample", "100%"]), &store);
            assert_eq!(errors(&sample), whole);
        }
    }
}

#[test]
fn a_sample_tells_its_seed() {
    let f = Fixture::open("2.14.5-basic");
    let store = &f.stores()[0];
    let by_chance = report(check(&f).args(["--sample", "50%"]), store);
    assert_eq!(by_chance["summary"]["sample"]["percent"], 50);
    let seed = by_chance["summary"]["sample"]["seed"].to_string();
    let again = check(&f).args(["--sample", "50", "--seed", &seed]);
    assert_eq!(report(again, store), by_chance);
    let of = |seed: u64| {
        let j = check(&f).args(["--sample", "40%", "--seed"]);
        number(&report(j.arg(seed.to_string()), store), "bytes")
    };
    let seeds: BTreeSet<u64> = (1..=8).map(of).collect();
    assert!(seeds.len() > 3, "{seeds:?}");
    let whole = number(&report(check(&f), store), "bytes");
    assert!(seeds.iter().all(|b| *b < whole), "{seeds:?}");
    let human = check(&f).arg(store);
    let text = human.args(["--sample", "40%", "--seed", "7"]).run().text();
    assert!(
        text.contains("of 13 blocks (a sample of 40%, seed 7)"),
        "{text}"
    );
    let human = check(&f).arg(store).args(["--part", "2/3"]);
    let text = human.run().text();
    assert!(text.contains("of 13 blocks (part 2 of 3)"), "{text}");
    for bad in [
        &["--part", "0/3"][..],
        &["--part", "4/3"],
        &["--sample", "0"],
        &["--sample", "101%"],
        &["--seed", "1"],
        &["--part", "1/3", "--sample", "5%"],
    ] {
        let ran = check(&f).arg(store).args(bad).run();
        assert!(ran.status(2).stdout.is_empty());
    }
}

/// What a state file says is done, of whole streams and of blocks: path, number.
fn done(state: &Path) -> Vec<(String, Option<String>)> {
    let state = common::read_json(state);
    let mut out = Vec::new();
    for s in state["check"]["done"].as_array().unwrap() {
        let path = s["path"].as_str().unwrap().to_owned();
        if s.get("whole").is_some() {
            out.push((path.clone(), None));
        }
        for n in s
            .get("blocks")
            .into_iter()
            .flat_map(|b| b.as_object().unwrap().keys())
        {
            out.push((path.clone(), Some(n.clone())));
        }
    }
    out
}

/// Checks so slowly that there is time to interrupt it as soon as something is done, which is in the file after two
/// seconds.
fn interrupt(f: &Fixture, sources: &[PathBuf], state: &Path, options: &[&str], signal: &str) {
    let bytes = number(&in_one_go(f, sources, options), "bytes");
    let mut j = f.jetsam();
    let mut child = j
        .command
        .arg("check")
        .args(sources)
        .args(options)
        .args(["--io-limit", &(bytes / 4).to_string(), "--threads", "2"])
        .args(["--json", "--state"])
        .arg(state)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id().to_string();
    let started = Instant::now();
    while !state.exists() || done(state).is_empty() {
        assert!(started.elapsed() < Duration::from_secs(20));
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "it was too fast: {ended:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = Command::new("kill").args([signal, &pid]).status().unwrap();
    assert!(killed.success());
    let asked = Instant::now();
    let out = child.wait_with_output().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(3));
    assert!(out.stdout.is_empty());
    if signal == "-INT" {
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(130), "{stderr}");
        assert!(stderr.contains("goes on"), "{stderr}");
    }
    assert!(!done(state).is_empty());
}

fn resumed(f: &Fixture, sources: &[PathBuf], state: &Path, options: &[&str]) -> Value {
    let j = check(f).args(sources).args(options);
    j.arg("--json").arg("--state").arg(state).run().json()
}

fn in_one_go(f: &Fixture, sources: &[PathBuf], options: &[&str]) -> Value {
    let j = check(f).args(sources).args(options);
    j.arg("--json").run().json()
}

/// Every kind of unit: blocks of streams with an index, streams without, archives.
#[test]
fn an_interrupted_check_goes_on_where_it_was() {
    for (name, options, signal) in [
        ("2.14.5-basic", &[][..], "-INT"),
        ("2.14.5-basic", &[], "-KILL"),
        ("2.9.25-basic", &[], "-INT"),
        ("2.9.25-basic", &["--part", "1/2"], "-INT"),
        ("2.14.5-basic", &["--sample", "80%", "--seed", "3"], "-INT"),
    ] {
        let f = Fixture::open(name);
        let (dir, store) = copy(&f.stores()[0]);
        flip(&blocks(&store).join("1.blk"), 20_000, false);
        flip(&blocks(&store).join("2.blk"), 20_000, false);
        let state = dir.path().join("state");
        let archive = Fixture::open("2.15.2-basic")
            .dir
            .join("snapshots/$G/BLOCKS.tar.s2");
        let sources = [archive, store.clone()];
        let want = in_one_go(&f, &sources, options);
        interrupt(&f, &sources, &state, options, signal);
        let before = done(&state);
        let complete = resumed(&f, &sources, &state, options);
        assert_eq!(complete, want, "{name} {options:?} {signal}");
        assert!(done(&state).is_empty());
        assert_eq!(common::read_json(&state)["check"]["complete"], true);
        // The next begins anew.
        assert_eq!(resumed(&f, &sources, &state, options), want);
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert!(left.len() == 2 || signal == "-KILL", "{left:?}");
        assert!(before.len() < 30, "{before:?}");
    }
}

#[test]
fn only_what_has_changed_is_read_again() {
    for name in ["2.14.5-basic", "2.9.25-basic"] {
        let f = Fixture::open(name);
        let (dir, store) = copy(&f.stores()[0]);
        let sources = [store.clone()];
        let state = dir.path().join("state");
        let sound = in_one_go(&f, &sources, &[]);
        assert!(errors(&sound).is_empty());
        interrupt(&f, &sources, &state, &[], "-INT");
        let noted = fs::read(&state).unwrap();
        let done = done(&state);
        let (path, n) = done
            .iter()
            .find(|(path, _)| path.ends_with("BLOCKS"))
            .unwrap_or_else(|| panic!("{done:?}"));
        let n = n.as_deref().unwrap_or("1");
        let block = store.join(path).join(format!("msgs/{n}.blk"));
        // A change that nothing tells of is not seen: the block is not read.
        flip(&block, 10_000, true);
        assert!(!errors(&in_one_go(&f, &sources, &[])).is_empty());
        assert_eq!(resumed(&f, &sources, &state, &[]), sound);
        // Any other is.
        fs::write(&state, &noted).unwrap();
        flip(&block, 10_000, false);
        flip(&block, 10_000, false);
        assert_eq!(
            resumed(&f, &sources, &state, &[]),
            in_one_go(&f, &sources, &[])
        );
        fs::write(&state, &noted).unwrap();
        let mut longer = fs::read(&block).unwrap();
        longer.extend([0; 40]);
        fs::write(&block, longer).unwrap();
        let changed = in_one_go(&f, &sources, &[]);
        assert_ne!(changed, sound);
        assert_eq!(resumed(&f, &sources, &state, &[]), changed);
    }
}

/// An index whose subjects are not those of the blocks: that takes all of them, also of those read the night before.
#[test]
fn subjects_are_compared_over_all_sittings() {
    let f = Fixture::open("2.14.5-basic");
    let (dir, store) = copy(&f.stores()[0]);
    let path = blocks(&store).join("index.db");
    let raw = fs::read(&path).unwrap();
    let body = index_db::check_hash(&raw, b"BLOCKS").unwrap();
    let mut db = index_db::decode(body, 0, index_db::Options { subjects: true }).unwrap();
    let mut subjects = index_db::Subjects::default();
    for (i, mut s) in db.subjects.iter().enumerate() {
        match i {
            0 => s.total += 1,
            1 => s.total -= 1,
            _ => {}
        }
        subjects.push(s);
    }
    db.subjects = subjects;
    let version = db.version;
    fs::write(&path, index_db::encode(&db, version, b"BLOCKS")).unwrap();
    let sources = [store];
    let state = dir.path().join("state");
    let want = in_one_go(&f, &sources, &[]);
    let codes: Vec<&Value> = want["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| &f["code"])
        .collect();
    assert_eq!(codes, ["index_disagrees", "index_disagrees"]);
    interrupt(&f, &sources, &state, &[], "-INT");
    assert!(
        done(&state)
            .iter()
            .any(|(p, n)| p.ends_with("BLOCKS") && n.is_some())
    );
    assert_eq!(resumed(&f, &sources, &state, &[]), want);
    // Of one part of the blocks nobody can tell.
    assert!(errors(&in_one_go(&f, &sources, &["--part", "1/2"])).is_empty());
}

#[test]
fn a_state_file_that_is_not_of_this_check_is_refused() {
    let f = Fixture::open("2.14.5-basic");
    let (dir, store) = copy(&f.stores()[0]);
    let sources = [store.clone()];
    let state = dir.path().join("state");
    interrupt(&f, &sources, &state, &["--part", "1/2"], "-INT");
    let noted = fs::read(&state).unwrap();
    let refused = |sources: &[PathBuf], state: &Path, options: &[&str]| {
        let before = fs::read(state).ok();
        let j = check(&f).args(sources).args(options);
        let ran = j.arg("--state").arg(state).run().status(2);
        assert!(ran.stdout.is_empty());
        assert_eq!(fs::read(state).ok(), before);
        ran.stderr
    };
    assert!(refused(&sources, &state, &[]).contains("another --part"));
    refused(&sources, &state, &["--part", "2/2"]);
    refused(&sources, &state, &["--part", "1/2", "-s", "BLOCKS"]);
    let other = f.dir.join("snapshots/$G/BLOCKS.tar.s2");
    let said = refused(&[other], &state, &["--part", "1/2"]);
    assert!(said.contains("of a check of"), "{said}");
    // Damaged, or something else.
    let text = String::from_utf8(noted.clone()).unwrap();
    for (bad, word) in [
        (text.replace("\"records\":", "\"records\":1"), "damaged"),
        (text[..text.len() / 2].to_owned(), "no state"),
        (text.replace("\"version\":1", "\"version\":2"), "version 2"),
        ("{}".to_owned(), "no state"),
        (String::new(), "no state"),
    ] {
        fs::write(&state, bad).unwrap();
        let said = refused(&sources, &state, &["--part", "1/2"]);
        assert!(said.contains(word), "{word}: {said}");
    }
    // Never in a source.
    let inside = blocks(&store).join("state");
    refused(&sources, &inside, &[]);
    refused(&[blocks(&store).join("1.blk")], &inside, &["-s", "BLOCKS"]);
    refused(&sources, &dir.path().join("no/such/dir"), &[]);
    assert!(!inside.exists());
    fs::write(&state, noted).unwrap();
    let want = in_one_go(&f, &sources, &["--part", "1/2"]);
    assert_eq!(resumed(&f, &sources, &state, &["--part", "1/2"]), want);
    // Complete, it serves for the next part.
    let want = in_one_go(&f, &sources, &["--part", "2/2"]);
    assert_eq!(resumed(&f, &sources, &state, &["--part", "2/2"]), want);
}
