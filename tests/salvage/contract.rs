//! Options, exit status, report; `backup --salvage` and `restore --salvage`.

use super::common::{Fixture, Jetsam, copy_tree, fingerprint, read_json, stream_dirs};
use super::helpers::{Tmpfs, make_store};
use super::{Messages, info, salvage, sequences, view};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const STORE: &str = "2.14.5-basic";

/// A copy of the store in which ORDERS has a flipped bit, and BLOCKS a hole.
struct Damaged {
    fx: Fixture,
    work: TempDir,
    store: PathBuf,
}

fn flip(file: &Path, offset: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[offset] ^= 8;
    fs::write(file, bytes).unwrap();
}

impl Damaged {
    fn new() -> Self {
        let fx = Fixture::open(STORE);
        let work = tempfile::tempdir().unwrap();
        let store = work.path().join("store");
        copy_tree(&fx.stores()[0], &store);
        let d = Damaged { fx, work, store };
        // In the payload of a live message.
        flip(&d.file("ORDERS", "1.blk"), 20_100);
        let path = d.file("BLOCKS", "2.blk");
        let mut bytes = fs::read(&path).unwrap();
        bytes[8192..12288].fill(0);
        fs::write(path, bytes).unwrap();
        d
    }

    fn file(&self, stream: &str, name: &str) -> PathBuf {
        let dir = self.store.join("jetstream/$G/streams").join(stream);
        dir.join("msgs").join(name)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn truth(&self, stream: &str) -> Messages {
        let all = &self.fx.truth["accounts"]["$G"][stream]["messages"];
        all.as_array()
            .unwrap()
            .iter()
            .map(|m| (m["seq"].as_u64().unwrap(), m.clone()))
            .collect()
    }

    /// All that is served is true; the sequences of a stream that are missing.
    fn missing(&self, source: &Path, stream: &str) -> BTreeSet<u64> {
        let served = view(&self.fx, source);
        let got = served
            .iter()
            .find(|((_, name), _)| name == stream)
            .map_or_else(Messages::new, |(_, m)| m.clone());
        let truth = self.truth(stream);
        for (seq, m) in &got {
            assert_eq!(Some(m), truth.get(seq), "{stream} {seq}");
        }
        let held = |s: &&u64| !got.contains_key(s);
        truth.keys().filter(held).copied().collect()
    }
}

/// The row of a stream.
fn row<'r>(report: &'r Value, stream: &str) -> &'r Value {
    let rows = report["streams"].as_array().unwrap();
    rows.iter().find(|r| r["stream"] == stream).unwrap()
}

#[test]
fn the_report_and_the_exit_status() {
    let d = Damaged::new();
    let before = fingerprint(&d.store);
    let (ran, report) = salvage(&d.fx, &d.store, &d.at("new"), &[]);
    ran.status(1);
    assert_eq!(before, fingerprint(&d.store), "the source as it was");
    assert_eq!(report, read_json(&d.at("new.report.json")));
    let mut left: Vec<_> = fs::read_dir(d.work.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["new", "new.report.json", "store"]);
    for r in report["streams"].as_array().unwrap() {
        for (key, is) in [
            ("account", r["account"].is_string()),
            ("stream", r["stream"].is_string()),
            ("messages", r["messages"].is_u64()),
            ("corrected", r["corrected"].is_u64()),
            ("unverified", r["unverified"].is_u64()),
            ("lost", r["lost"].is_array()),
            ("lost_messages", r["lost_messages"].is_u64()),
            ("from_leftovers", r["from_leftovers"].is_u64()),
        ] {
            assert!(is, "{key}: {r:#}");
        }
        assert_eq!(
            r["corrected"],
            json!(u64::from(r["stream"] == "ORDERS")),
            "{r:#}"
        );
    }
    let lost = d.missing(&d.at("new"), "BLOCKS");
    assert!(!lost.is_empty());
    assert_eq!(sequences(&row(&report, "BLOCKS")["lost"]), lost);
    for (_, stream) in d.fx.stream_names() {
        if stream != "BLOCKS" {
            assert!(d.missing(&d.at("new"), &stream).is_empty());
        }
    }
    let places = &row(&report, "ORDERS")["corrections"];
    assert_eq!(
        places[0]["flips"],
        json!([{ "offset": 20_100, "bit": 3 }]),
        "{places:#}"
    );
    // Of the streams that are chosen alone; without loss the status is 0.
    let (ran, report) = salvage(&d.fx, &d.store, &d.at("one"), &["-s", "ORDERS"]);
    ran.status(0);
    assert_eq!(report["streams"].as_array().unwrap().len(), 1);
    assert_eq!(stream_dirs(&d.at("one")).len(), 1);
    // The same for people.
    let ran = d.fx.jetsam().arg("salvage").arg(&d.store).arg(d.at("text"));
    let text = ran.run().status(1).text();
    assert!(
        text.contains("ORDERS") && text.contains("20100.3"),
        "{text}"
    );
}

#[test]
fn what_is_in_the_way_is_left_alone() {
    let d = Damaged::new();
    let refused = |dest: &Path| {
        let before = fingerprint(d.work.path());
        let (ran, _) = salvage(&d.fx, &d.store, dest, &[]);
        ran.status(2);
        assert_eq!(before, fingerprint(d.work.path()));
    };
    fs::create_dir(d.at("full")).unwrap();
    fs::write(d.at("full/x"), "x").unwrap();
    refused(&d.at("full"));
    fs::write(d.at("again.report.json"), "{}").unwrap();
    refused(&d.at("again"));
    refused(&d.store);
    refused(&d.store.join("jetstream"));
    refused(&d.store.join("inside"));
    fs::write(d.at("file"), "x").unwrap();
    refused(&d.at("file"));
    let (ran, _) = salvage(&d.fx, &d.at("nowhere"), &d.at("new"), &[]);
    ran.status(2);
    let (ran, _) = salvage(&d.fx, &d.store, &d.at("new"), &["-s", "NOSUCH"]);
    ran.status(2);
    assert!(!d.at("new").exists() && !d.at("new.report.json").exists());
    // An empty one is not in the way.
    fs::create_dir(d.at("empty")).unwrap();
    let (ran, _) = salvage(&d.fx, &d.store, &d.at("empty"), &["-s", "ORDERS"]);
    ran.status(0);
}

#[test]
fn a_key_that_is_missing_or_wrong() {
    let fx = Fixture::open("2.14.5-aes-basic");
    let work = tempfile::tempdir().unwrap();
    let dest = work.path().join("dest");
    for key in [None, Some("not the key")] {
        let mut j = Jetsam::new().args(["salvage", "--json", "-q"]);
        if let Some(key) = key {
            j.command.env("JETSAM_KEY", key);
        }
        let ran = j.arg(&fx.stores()[0]).arg(&dest).run().no_panic();
        ran.status(4);
        assert!(!dest.join("jetstream").exists(), "nothing is made up");
        let _ = fs::remove_file(work.path().join("dest.report.json"));
        let _ = fs::remove_dir_all(&dest);
    }
}

#[test]
fn archives_instead_of_a_store() {
    let d = Damaged::new();
    for format in ["v1", "v2"] {
        let dest = d.at(format);
        let (ran, report) = salvage(&d.fx, &d.store, &dest, &["--format", format]);
        ran.status(1);
        let lost = d.missing(&dest, "BLOCKS");
        assert!(!lost.is_empty());
        assert_eq!(sequences(&row(&report, "BLOCKS")["lost"]), lost, "{format}");
        for (_, stream) in d.fx.stream_names() {
            if stream != "BLOCKS" {
                assert!(d.missing(&dest, &stream).is_empty(), "{format} {stream}");
            }
        }
        d.fx.jetsam().arg("check").arg(&dest).run().status(0);
        // And from an archive.
        let (ran, _) = salvage(&d.fx, &dest, &d.at(&format!("{format}-store")), &[]);
        ran.status(0);
        let (a, b) = (
            view(&d.fx, &dest),
            view(&d.fx, &d.at(&format!("{format}-store"))),
        );
        let all =
            |v: &std::collections::BTreeMap<super::Name, Messages>| -> Vec<(String, Messages)> {
                v.iter().map(|((_, s), m)| (s.clone(), m.clone())).collect()
            };
        assert_eq!(all(&a), all(&b), "{format}");
    }
}

#[test]
fn backup_and_restore_with_salvage_bring_back_the_same() {
    let d = Damaged::new();
    for index in [true, false] {
        if !index {
            for (_, _, dir) in stream_dirs(&d.store) {
                fs::remove_file(dir.join("msgs/index.db")).unwrap();
            }
        }
        let name = |what: &str| d.at(&format!("{what}-{index}"));
        let (ran, _) = salvage(&d.fx, &d.store, &name("salvaged"), &[]);
        ran.status(1);
        let want = view(&d.fx, &name("salvaged"));
        assert!(want.len() >= 8);
        let run = |args: &[&str], dest: &Path| {
            let j = d.fx.jetsam().args(args).arg(&d.store).arg(dest);
            j.run().no_panic()
        };
        run(&["backup"], &name("refused")).status(1);
        run(&["backup", "--salvage"], &name("backup")).status(1);
        assert_eq!(view(&d.fx, &name("backup")), want, "backup, index {index}");
        run(&["restore"], &name("not-restored")).status(1);
        run(&["restore", "--salvage"], &name("restored")).status(1);
        assert_eq!(
            view(&d.fx, &name("restored")),
            want,
            "restore, index {index}"
        );
        assert_eq!(
            info(&d.fx, &name("restored")),
            info(&d.fx, &name("salvaged")),
            "restore, index {index}"
        );
    }
}

#[test]
fn unverified_records_are_kept_when_asked_for() {
    let d = Damaged::new();
    // Two bits far from each other in the payload of one message.
    let (name, stream) = ("$G".to_owned(), "MIRROR".to_owned());
    let path = d.file(&stream, "1.blk");
    let truth = d.truth(&stream);
    let bytes = fs::read(&path).unwrap();
    let (mut at, mut found) = (0, None);
    while found.is_none() {
        let len = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) & 0x7fff_ffff;
        let seq = u64::from_le_bytes(bytes[at + 4..at + 12].try_into().unwrap());
        if len > 200 && at > 1000 && truth.contains_key(&seq) {
            found = Some((seq, at, at + len as usize));
        }
        at += len as usize;
    }
    let (seq, offset, end) = found.unwrap();
    flip(&path, end - 20);
    flip(&path, end - 60);
    let (ran, report) = salvage(&d.fx, &d.store, &d.at("proven"), &["-s", &stream]);
    ran.status(1);
    assert_eq!(row(&report, &stream)["lost"], json!([[seq, seq]]));
    assert_eq!(row(&report, &stream)["unverified"], 0);
    assert_eq!(d.missing(&d.at("proven"), &stream), BTreeSet::from([seq]));
    let more = ["-s", &stream, "--unverified"];
    let (ran, report) = salvage(&d.fx, &d.store, &d.at("kept"), &more);
    ran.status(1);
    let r = row(&report, &stream);
    assert_eq!((&r["lost"], &r["unverified"]), (&json!([]), &json!(1)));
    let file = "jetstream/$G/streams/MIRROR/msgs/1.blk";
    assert_eq!(
        r["unverified_records"],
        json!([{ "file": file, "offset": offset, "seq": seq }])
    );
    let served = view(&d.fx, &d.at("kept"));
    let got = &served[&(name, stream)];
    assert_eq!(got.len(), truth.len());
    for (other, m) in got.iter().filter(|(s, _)| **s != seq) {
        assert_eq!(m, &truth[other]);
    }
    assert_eq!(got[&seq]["subject"], truth[&seq]["subject"]);
    assert_ne!(got[&seq]["data"], truth[&seq]["data"]);
    d.fx.jetsam().arg("check").arg(d.at("kept")).run().status(0);
}

#[test]
fn without_effort_nothing_is_searched() {
    let d = Damaged::new();
    let more = ["-s", "ORDERS", "--effort", "0"];
    let (ran, report) = salvage(&d.fx, &d.store, &d.at("new"), &more);
    ran.status(1);
    let r = row(&report, "ORDERS");
    let missing = d.missing(&d.at("new"), "ORDERS");
    assert_eq!(missing.len(), 1);
    assert_eq!(sequences(&r["lost"]), missing);
    assert_eq!(r["corrections"], json!([]));
}

#[test]
fn consumers_and_configuration() {
    let d = Damaged::new();
    let (ran, _) = salvage(
        &d.fx,
        &d.store,
        &d.at("bare"),
        &["-s", "ORDERS", "--no-consumers"],
    );
    ran.status(0);
    let bare = info(&d.fx, &d.at("bare"));
    assert_eq!(
        bare[&("$G".to_owned(), "ORDERS".to_owned())]["consumers"],
        json!([])
    );
    // Its own is lost: with what the messages tell, or what the user gives.
    let dir = d.store.join("jetstream/$G/streams/ORDERS");
    fs::remove_file(dir.join("meta.inf")).unwrap();
    fs::remove_file(dir.join("meta.sum")).unwrap();
    let (ran, report) = salvage(&d.fx, &d.store, &d.at("guessed"), &["-s", "ORDERS"]);
    ran.status(1);
    assert_eq!(row(&report, "ORDERS")["reconstructed"], true);
    assert!(d.missing(&d.at("guessed"), "ORDERS").is_empty());
    let mut config = d.fx.truth["accounts"]["$G"]["ORDERS"]["config"].clone();
    config["description"] = "by hand".into();
    fs::write(d.at("config.json"), config.to_string()).unwrap();
    let file = d.at("config.json");
    let more = ["-s", "ORDERS", "--config", file.to_str().unwrap()];
    let (ran, report) = salvage(&d.fx, &d.store, &d.at("given"), &more);
    ran.status(0);
    assert_eq!(row(&report, "ORDERS")["reconstructed"], false);
    assert!(d.missing(&d.at("given"), "ORDERS").is_empty());
    let given = info(&d.fx, &d.at("given"));
    let given = &given[&("$G".to_owned(), "ORDERS".to_owned())];
    assert_eq!(given["config"]["description"], "by hand");
    assert_eq!(given["config"]["subjects"], config["subjects"]);
    assert_eq!(given["consumers"].as_array().unwrap().len(), 5);
}

#[test]
fn one_block_alone() {
    let d = Damaged::new();
    let block = d.file("ORDERS", "1.blk");
    let (ran, report) = salvage(&d.fx, &block, &d.at("guessed"), &["-s", "ORDERS"]);
    ran.status(1);
    assert_eq!(row(&report, "ORDERS")["reconstructed"], true);
    assert!(d.missing(&d.at("guessed"), "ORDERS").is_empty());
    let config = &d.fx.truth["accounts"]["$G"]["ORDERS"]["config"];
    fs::write(d.at("config.json"), config.to_string()).unwrap();
    let file = d.at("config.json");
    let more = ["-s", "ORDERS", "--config", file.to_str().unwrap()];
    let (ran, _) = salvage(&d.fx, &block, &d.at("given"), &more);
    ran.status(0);
    assert!(d.missing(&d.at("given"), "ORDERS").is_empty());
    let given = info(&d.fx, &d.at("given"));
    let given = &given[&("$G".to_owned(), "ORDERS".to_owned())];
    assert_eq!(given["config"]["subjects"], config["subjects"]);
}

#[test]
fn threads_make_no_difference() {
    let d = Damaged::new();
    for (_, _, dir) in stream_dirs(&d.store) {
        fs::remove_file(dir.join("msgs/index.db")).unwrap();
    }
    let run = |n: &str| {
        let dest = d.at(&format!("t{n}"));
        let (ran, report) = salvage(&d.fx, &d.store, &dest, &["--threads", n]);
        ran.status(1);
        let mut files = std::collections::BTreeMap::new();
        for path in fingerprint(&dest).into_keys().filter(|p| p.is_file()) {
            let name = path.strip_prefix(&dest).unwrap().to_owned();
            files.insert(name, fs::read(&path).unwrap());
        }
        let report = report.to_string().replace(dest.to_str().unwrap(), "");
        (report, files)
    };
    let (one, two) = (run("1"), run("2"));
    assert_eq!(one.0, two.0);
    assert!(one.1.len() > 30);
    assert!(one.1 == two.1, "the same files");
}

/// Interrupted at some time: no stream is there in part, and there is no report.
#[test]
fn an_interruption_leaves_nothing_that_looks_whole() {
    let d = Damaged::new();
    let mut interrupted = 0;
    for (i, ms) in [0u64, 3, 6, 10, 15, 25, 40, 60].into_iter().enumerate() {
        let dest = d.at(&format!("i{i}"));
        let mut j = d.fx.jetsam().args(["salvage", "-q", "--json"]);
        let mut child = j
            .command
            .arg(&d.store)
            .arg(&dest)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(ms));
        let kill = std::process::Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        let status = child.wait().unwrap();
        let report = d.at(&format!("i{i}.report.json"));
        if status.code() == Some(1) {
            assert!(report.exists());
            continue;
        }
        interrupted += 1;
        assert!(!report.exists());
        // By the signal itself, before it was being caught.
        assert!(matches!(status.code(), Some(130) | None), "{status}");
        if dest.join("jetstream").exists() {
            for (_, stream, _) in stream_dirs(&dest) {
                if stream != "BLOCKS" {
                    assert!(d.missing(&dest, &stream).is_empty(), "{stream}");
                }
            }
            for entry in fs::read_dir(&dest).unwrap() {
                assert_eq!(entry.unwrap().file_name(), "jetstream");
            }
        }
    }
    assert!(interrupted > 0);
}

/// What does not fit leaves nothing that looks whole, and the source as it was.
#[test]
fn a_full_disk() {
    let work = tempfile::tempdir().unwrap();
    let from = work.path().join("from");
    make_store(&from, 6);
    let before = fingerprint(&from);
    let Some(small) = Tmpfs::new(&work.path().join("small"), "4m") else {
        eprintln!("not allowed to mount: not tested");
        return;
    };
    let dest = small.0.join("new");
    let run = |more: &[&str]| {
        let ran = Jetsam::new().arg("salvage").args([&from, &dest]).args(more);
        ran.run().no_panic()
    };
    for more in [&[][..], &["--format", "v1"]] {
        let ran = run(more);
        assert!(matches!(ran.status, Some(1 | 2)), "{}", ran.stderr);
        let said = format!("{}{}", ran.text(), ran.stderr);
        assert!(
            said.contains("space") || said.contains("are needed"),
            "{said}"
        );
        let left: Vec<PathBuf> = stream_dirs_below(&dest);
        assert!(left.is_empty(), "{left:?}");
        let _ = fs::remove_dir_all(&dest);
        let _ = fs::remove_file(small.0.join("new.report.json"));
    }
    assert_eq!(before, fingerprint(&from));
}

/// Files that a server or `nats` would take for a stream or an archive.
fn stream_dirs_below(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if matches!(name, "meta.inf" | "stream.tar.s2" | "backup.json") {
                found.push(path);
            } else if path.is_dir() {
                todo.push(path);
            }
        }
    }
    found
}
