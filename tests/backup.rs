//! `jetsam backup`: what it leaves in DEST, what it refuses, and what is left when it cannot go on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;
#[path = "common/backup.rs"]
mod helpers;

use common::{Fixture, Jetsam, Ran, copy_tree, fingerprint, read_json};
use helpers::*;
use jetsam::format::hash::HashKey;
use jetsam::format::meta;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const BACKUP: [&str; 2] = ["backup.json", "stream.tar.s2"];

fn backup(fx: &Fixture, source: &Path, dest: &Path, more: &[&str]) -> Ran {
    fx.jetsam()
        .arg("backup")
        .args([source, dest])
        .args(more)
        .run()
}

fn temp() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A copy of a fixture's store that may be changed.
fn copy_of(fx: &Fixture, to: &Path) -> PathBuf {
    let store = to.join("store");
    copy_tree(&fx.stores()[0], &store);
    store
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

// --- what DEST gets

#[test]
fn one_stream_an_account_a_store() {
    let fx = Fixture::open("2.12.15-accounts");
    let (work, store) = (temp(), &fx.stores()[0]);
    let before = fingerprint(store);
    let dest = |name: &str| work.path().join(name);

    // With one stream: DEST itself, given by -s or by its directory.
    backup(&fx, store, &dest("s"), &["-a", "ACME", "-s", "EVENTS"]).status(0);
    assert_eq!(names(&dest("s")), BACKUP);
    backup(&fx, store, &dest("only"), &["-s", "ONLY_A"]).status(0);
    assert_eq!(names(&dest("only")), BACKUP);
    let dir = store.join("jetstream/BETA/streams/EVENTS");
    backup(&fx, &dir, &dest("dir"), &[]).status(0);
    assert_eq!(names(&dest("dir")), BACKUP);
    // In two accounts: -s alone does not choose.
    let ran = backup(&fx, store, &dest("two"), &["-s", "EVENTS"]).status(2);
    says(&ran, &["EVENTS", "-a"]);
    assert!(!dest("two").exists());

    // With an account: DEST/STREAM.
    let of_acme = [
        "EVENTS/",
        "EVENTS/backup.json",
        "EVENTS/stream.tar.s2",
        "ONLY_A/",
        "ONLY_A/backup.json",
        "ONLY_A/stream.tar.s2",
    ];
    backup(&fx, store, &dest("a"), &["-a", "ACME"]).status(0);
    assert_eq!(names(&dest("a")), of_acme);
    backup(&fx, &store.join("jetstream/ACME"), &dest("adir"), &[]).status(0);
    assert_eq!(names(&dest("adir")), of_acme);

    // With neither: DEST/ACCOUNT/STREAM, above a directory that has to be made.
    backup(&fx, store, &dest("x/y/all"), &[]).status(0);
    let all = names(&dest("x/y/all"));
    assert_eq!(all.len(), 2 + 3 * 3, "{all:?}");
    for (account, stream) in on_disk(&fx) {
        for file in BACKUP {
            assert!(
                all.contains(&format!("{account}/{stream}/{file}")),
                "{all:?}"
            );
        }
    }
    // A glob is several streams, however many match.
    backup(&fx, store, &dest("glob"), &["-s", "ONLY*"]).status(0);
    assert!(dest("glob/ACME/ONLY_A/backup.json").is_file());

    assert_eq!(before, fingerprint(store), "the source was touched");
    // Plaintext of what the server keeps to itself is not for everybody.
    for dir in [dest("s"), dest("x/y/all/ACME"), dest("x/y/all/ACME/EVENTS")] {
        assert_eq!(
            fs::metadata(&dir).unwrap().mode() & 0o777,
            0o700,
            "{}",
            dir.display()
        );
    }
}

/// Everything that is in a backup, against what the server said.
fn all_of_it(name: &str, format: &str) {
    let fx = Fixture::open(name);
    let (work, store) = (temp(), &fx.stores()[0]);
    let dest = work.path().join("all");
    let before = fingerprint(store);
    let ran = backup(&fx, store, &dest, &["--format", format]).status(0);
    assert_eq!(before, fingerprint(store), "the source was touched");
    let encrypted = fx.key().is_some();
    assert_eq!(
        ran.stderr.matches("plaintext").count(),
        usize::from(encrypted),
        "told once: {}",
        ran.stderr
    );

    for (account, stream) in on_disk(&fx) {
        let dir = dest.join(&account).join(&stream);
        let mut want = truth(&fx, &account, &stream);
        let json = read_json(&dir.join("backup.json"));
        let mut d = common::Differences::default();
        let mut config = json["config"].clone();
        with_what_is_off(&mut config);
        d.json("config", &config, &want["config"]);
        let mut state = json["state"].clone();
        assert_eq!(
            state["consumer_count"],
            want["consumers"].as_array().unwrap().len()
        );
        state.as_object_mut().unwrap().remove("consumer_count");
        for key in ["num_deleted", "num_subjects"] {
            if state.get(key).is_none() {
                state[key] = json!(0);
            }
        }
        if state["last_seq"] == 0 {
            state["first_seq"] = json!(1);
        }
        d.json("state", &state, &want["state"]);
        d.none(&format!("{name}/{stream} backup.json"));

        if format == "v1" {
            archive_v1(&fx, &account, &stream, &dir.join("stream.tar.s2"), &want);
        } else {
            assert!(unframe(&dir.join("stream.tar.s2")).starts_with(b"NATSARC1"));
            // NATSARC1 has no times of creation.
            for c in want["consumers"].as_array_mut().unwrap() {
                c.as_object_mut().unwrap().remove("created");
            }
            want["created"] = Value::Null;
        }
        // No account: a backup directory does not tell.
        let mut got = found(&fx, &dir, "", &stream);
        if format == "v2" {
            got["created"] = Value::Null;
            with_what_is_off(&mut got["config"]);
            for c in got["consumers"].as_array_mut().unwrap() {
                c.as_object_mut().unwrap().remove("created");
            }
        }
        same(&format!("{name}/{stream}"), &got, &want);
    }
    fx.jetsam().arg("check").arg(&dest).run().status(0);
    if format == "v1" {
        no_difference(&fx, store, &dest, &[]);
    }
}

/// The nats CLI leaves these out of `backup.json` where they are off.
fn with_what_is_off(config: &mut Value) {
    let config = config.as_object_mut().unwrap();
    config.entry("compression").or_insert(json!("none"));
    config.entry("allow_msg_ttl").or_insert(json!(false));
}

fn archive_v1(fx: &Fixture, account: &str, stream: &str, archive: &Path, want: &Value) {
    let all = members(archive);
    let get = |name: &str| {
        let mut found = all.iter().filter(|(n, _)| n == name);
        let (_, body) = found
            .next()
            .unwrap_or_else(|| panic!("{stream}: no {name}"));
        assert!(found.next().is_none(), "{stream}: {name} twice");
        body
    };
    assert_eq!(all[0].0, "meta.inf");
    assert_eq!(all[1].0, "meta.sum");
    let sum = |key: &str, inf: &[u8]| HashKey::new(key).sum_hex(inf).into_bytes();
    assert_eq!(get("meta.sum"), &sum(stream, get("meta.inf")));
    let inf: Value = serde_json::from_slice(get("meta.inf")).unwrap();
    // To the nanosecond: a 2.15 server that sources it takes another time for another stream.
    assert!(
        same_time(&inf["created"], &want["created"])
            || same_time(&inf["Created"], &want["created"]),
        "{stream}: {inf}"
    );
    let mut consumers = Vec::new();
    for (name, body) in &all {
        let parts: Vec<&str> = name.split('/').collect();
        match parts.as_slice() {
            ["meta.inf" | "meta.sum"] => {}
            ["msgs", block] => {
                // The block that only keeps a deleted last sequence has an index for servers to 2.9.
                let number = block
                    .strip_suffix(".blk")
                    .or_else(|| block.strip_suffix(".idx"))
                    .unwrap_or_else(|| panic!("{stream}: {name}: index.db and its kind stay out"));
                number.parse::<u64>().unwrap();
            }
            ["obs", consumer, "meta.inf"] => {
                consumers.push((*consumer).to_owned());
                let key = format!("{stream}/{consumer}");
                assert_eq!(get(&format!("obs/{consumer}/meta.sum")), &sum(&key, body));
            }
            ["obs", _, "meta.sum" | "o.dat"] => {}
            _ => panic!("{stream}: {name}"),
        }
    }
    let want: Vec<&str> = want["consumers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(consumers, want, "{stream}");
    // Nothing of a deleted message goes out of the house.
    let deleted = fx
        .jetsam()
        .args(["view", "--deleted", "--json", "-a", account, "-s", stream])
        .arg(&fx.stores()[0])
        .run()
        .status(0)
        .json_lines();
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    let body = |m: &Value| engine.decode(m["data"].as_str().unwrap_or("")).unwrap();
    let live: Vec<Vec<u8>> = deleted
        .iter()
        .filter(|m| m.get("deleted").is_none())
        .map(body)
        .collect();
    for m in deleted.iter().filter(|m| m.get("deleted").is_some()) {
        let body = body(m);
        if body.len() < 12 || live.iter().any(|l| contains(l, &body)) {
            continue;
        }
        for (name, bytes) in &all {
            assert!(
                !contains(bytes, &body),
                "{stream}: {name} has message {}",
                m["seq"]
            );
        }
        DELETED_SEEN.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

static DELETED_SEEN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|w| w == needle)
}

#[test]
fn all_of_a_plain_store() {
    all_of_it("2.14.5-basic", "v1");
    assert!(
        DELETED_SEEN.load(std::sync::atomic::Ordering::Relaxed),
        "the fixture has no deleted message that could have leaked"
    );
}

#[test]
fn all_of_a_plain_store_in_the_new_format() {
    all_of_it("2.15.2-basic", "v2");
}

#[test]
fn all_of_encrypted_and_compressed_stores() {
    all_of_it("2.14.5-aes-basic", "v1");
    all_of_it("2.15.2-chacha-compress", "v1");
    all_of_it("2.14.5-chacha-compress", "v2");
}

#[test]
fn all_of_a_store_with_everything_new() {
    all_of_it("2.14.5-new", "v1");
    all_of_it("2.12.15-accounts", "v2");
}

#[test]
fn backups_of_old_stores_hold_the_same_messages() {
    for name in ["2.2.6-basic", "2.9.25-kill-basic", "2.7.4-chacha-basic"] {
        let fx = Fixture::open(name);
        let (work, store) = (temp(), &fx.stores()[0]);
        let dest = work.path().join("all");
        backup(&fx, store, &dest, &[]).status(0);
        no_difference(&fx, store, &dest, &[]);
        for (account, stream) in on_disk(&fx) {
            let view = fx
                .jetsam()
                .args(["view", "--json"])
                .arg(dest.join(&account).join(&stream))
                .run()
                .status(0);
            let seqs: Vec<Value> = view.json_lines().iter().map(|m| m["seq"].clone()).collect();
            let want = truth(&fx, &account, &stream);
            let want: Vec<Value> = want["messages"]
                .as_array()
                .unwrap()
                .iter()
                .map(|m| m["seq"].clone())
                .collect();
            assert_eq!(seqs, want, "{name}/{stream}");
        }
    }
}

#[test]
fn consumers_can_stay_out() {
    let fx = Fixture::open("2.14.5-basic");
    let work = temp();
    for format in ["v1", "v2"] {
        let dest = work.path().join(format);
        let args = ["-s", "ORDERS", "--no-consumers", "--format", format];
        backup(&fx, &fx.stores()[0], &dest, &args).status(0);
        assert_eq!(
            read_json(&dest.join("backup.json"))["state"]["consumer_count"],
            0
        );
        let raw = unframe(&dest.join("stream.tar.s2"));
        assert!(!contains(&raw, b"durable_name") && !contains(&raw, b"obs/"));
        let got = found(&fx, &dest, "", "ORDERS");
        assert_eq!(got["consumers"], json!([]));
        assert_eq!(got["messages"], truth(&fx, "$G", "ORDERS")["messages"]);
        fx.jetsam().arg("check").arg(&dest).run().status(0);
    }
}

#[test]
fn keys_that_servers_refuse_are_dropped_and_named() {
    let fx = Fixture::open("2.12.15-basic");
    let work = temp();
    let store = copy_of(&fx, work.path());
    let dir = store.join("jetstream/$G/streams/ORDERS");
    let mut inf: Value = serde_json::from_slice(&fs::read(dir.join("meta.inf")).unwrap()).unwrap();
    inf["template_owner"] = json!("TPL");
    inf["no_such_option"] = json!(7);
    let inf = serde_json::to_vec(&inf).unwrap();
    fs::write(dir.join("meta.sum"), meta::sum("ORDERS", &inf)).unwrap();
    fs::write(dir.join("meta.inf"), inf).unwrap();
    let dest = work.path().join("d");
    let ran = backup(&fx, &store, &dest, &["-s", "ORDERS"]).status(0);
    says(&ran, &["template_owner", "no_such_option"]);
    for text in [
        fs::read(dest.join("backup.json")).unwrap(),
        members(&dest.join("stream.tar.s2"))[0].1.clone(),
    ] {
        assert!(!contains(&text, b"template_owner") && !contains(&text, b"no_such_option"));
    }
    same(
        "ORDERS",
        &found(&fx, &dest, "", "ORDERS"),
        &truth(&fx, "$G", "ORDERS"),
    );
}

#[test]
fn what_it_says_at_the_end() {
    let fx = Fixture::open("2.12.15-accounts");
    let work = temp();
    let ran = backup(&fx, &fx.stores()[0], &work.path().join("a"), &[]).status(0);
    let text = String::from_utf8(ran.stdout).unwrap();
    let last = text.lines().last().unwrap();
    for word in [
        "3 of 3 streams",
        "51 messages",
        "uncompressed",
        "compressed",
        "in ",
    ] {
        assert!(last.contains(word), "{last}");
    }
    let ran = backup(&fx, &fx.stores()[0], &work.path().join("j"), &["--json"]).status(0);
    let rows = ran.json();
    assert_eq!(rows.as_array().unwrap().len(), 3);
    for row in rows.as_array().unwrap() {
        let (a, s) = (
            row["account"].as_str().unwrap(),
            row["stream"].as_str().unwrap(),
        );
        let want = truth(&fx, a, s);
        assert_eq!(row["messages"], want["state"]["messages"]);
        assert_eq!(
            row["consumers"],
            want["consumers"].as_array().unwrap().len()
        );
        let file = Path::new(row["path"].as_str().unwrap()).join("stream.tar.s2");
        assert_eq!(row["compressed_bytes"], fs::metadata(&file).unwrap().len());
        assert_eq!(row["bytes"], unframe(&file).len());
        assert!(row["seconds"].as_f64().unwrap() > 0.0);
    }
}

// --- what it refuses

#[test]
fn a_damaged_stream_is_refused_and_the_others_go_on() {
    let fx = Fixture::open("2.14.5-basic");
    let work = temp();
    let store = copy_of(&fx, work.path());
    // In the payload of a live message: only its hash can tell.
    let block = store.join("jetstream/$G/streams/ORDERS/msgs/1.blk");
    let middle = fs::metadata(&block).unwrap().len() as usize / 2;
    flip(&block, middle);
    let dest = work.path().join("d");
    let ran = backup(&fx, &store, &dest, &[]).status(1);
    says(&ran, &["ORDERS", "damaged", "--salvage", "1.blk"]);
    let there = finished(&dest.join("$G"));
    assert_eq!(there.len(), on_disk(&fx).len() - 1);
    assert!(!there.contains(&"ORDERS".to_owned()));
    assert!(
        !names(&dest).iter().any(|n| n.contains(".jetsam-")),
        "{:?}",
        names(&dest)
    );
    for stream in &there {
        same(
            stream,
            &found(&fx, &dest.join("$G").join(stream), "", stream),
            &truth(&fx, "$G", stream),
        );
    }
    let rows = backup(&fx, &store, &work.path().join("j"), &["--json"])
        .status(1)
        .json();
    let row = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["stream"] == "ORDERS")
        .unwrap();
    assert!(row["error"].as_str().unwrap().contains("damaged"), "{row}");
    // Alone: nothing at all is left, not even the directory for it.
    let ran = backup(&fx, &store, &work.path().join("x/one"), &["-s", "ORDERS"]).status(1);
    says(&ran, &["--salvage"]);
    assert!(!work.path().join("x").exists());

    // Salvaged: all of it, a single bit being found, and told.
    let want = truth(&fx, "$G", "ORDERS");
    let dest = work.path().join("corrected");
    let ran = backup(&fx, &store, &dest, &["-s", "ORDERS", "--salvage"]).status(0);
    says(&ran, &["ORDERS", "1 bit", "1.blk"]);
    same("ORDERS", &found(&fx, &dest, "", "ORDERS"), &want);

    // Destroyed beyond that: all but what is damaged, told, and the archive is in itself sound.
    for at in middle..middle + 8 {
        flip(&block, at);
    }
    let before = fingerprint(&store);
    for format in ["v1", "v2"] {
        let dest = work.path().join(format);
        let args = ["-s", "ORDERS", "--salvage", "--format", format];
        let ran = backup(&fx, &store, &dest, &args).status(1);
        says(&ran, &["1.blk"]);
        let got = found(&fx, &dest, "", "ORDERS");
        let lost: Vec<&Value> = want["messages"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|m| !got["messages"].as_array().unwrap().contains(m))
            .collect();
        assert_eq!(lost.len(), 1, "{lost:?}");
        assert_eq!(got["messages"].as_array().unwrap().len(), 279);
        assert_eq!(got["state"]["last_seq"], 300);
        let state = &read_json(&dest.join("backup.json"))["state"];
        assert_eq!(state["messages"], 279, "{state}");
        assert_eq!(state["num_deleted"], 21, "{state}");
        fx.jetsam().arg("check").arg(&dest).run().status(0);
    }
    assert_eq!(before, fingerprint(&store), "the source was touched");
}

#[test]
fn a_destination_that_is_in_use_is_left_alone() {
    let fx = Fixture::open("2.12.15-accounts");
    let (work, store) = (temp(), &fx.stores()[0]);
    for (name, args) in [
        ("one", &["-s", "ONLY_A"][..]),
        ("account", &["-a", "ACME"]),
        ("all", &[]),
    ] {
        let dest = work.path().join(name);
        fs::create_dir(&dest).unwrap();
        fs::write(dest.join("notes.txt"), "mine").unwrap();
        let before = fingerprint(&dest);
        let ran = backup(&fx, store, &dest, args).status(2);
        says(&ran, &["not empty", name]);
        assert_eq!(before, fingerprint(&dest));
    }
    // An empty one is taken.
    let dest = work.path().join("empty");
    fs::create_dir(&dest).unwrap();
    backup(&fx, store, &dest, &["-s", "ONLY_A"]).status(0);
    assert_eq!(names(&dest), BACKUP);
    // A second run over the first changes nothing.
    let before = fingerprint(&dest);
    backup(&fx, store, &dest, &["-s", "ONLY_A"]).status(2);
    assert_eq!(before, fingerprint(&dest));
    assert_eq!(finished(work.path()).len(), 4);
    // A file in the way.
    let file = work.path().join("file");
    fs::write(&file, "x").unwrap();
    says(&backup(&fx, store, &file, &[]).status(2), &["file"]);
    says(
        &backup(&fx, store, &file.join("below"), &["-s", "ONLY_A"]).status(2),
        &["file"],
    );
}

#[test]
fn never_into_the_source() {
    let fx = Fixture::open("2.12.15-accounts");
    let work = temp();
    let store = copy_of(&fx, work.path());
    std::os::unix::fs::symlink(&store, work.path().join("link")).unwrap();
    let before = fingerprint(work.path());
    for dest in [
        store.clone(),
        store.join("backup"),
        store.join("jetstream/ACME/x"),
        work.path().join("link/backup"),
        work.path().join("store/../store/b"),
    ] {
        let ran = backup(&fx, &store, &dest, &[]).status(2);
        says(&ran, &["inside of the source"]);
    }
    assert_eq!(before, fingerprint(work.path()));
    // Beside it is not inside, even with the same beginning.
    backup(&fx, &store, &work.path().join("store-backup"), &[]).status(0);
}

#[test]
fn keys_missing_or_wrong() {
    let fx = Fixture::open("2.14.5-chacha-compress");
    let (work, store) = (temp(), &fx.stores()[0]);
    for key in [None, Some("wrong")] {
        let dest = work.path().join("d");
        let mut j = Jetsam::new().arg("backup").args([store, &dest]);
        if let Some(key) = key {
            j.command.env("JETSAM_KEY", key);
        }
        says(&j.run().status(4), &["key"]);
        assert!(!dest.exists() || finished(&dest).is_empty(), "{key:?}");
    }
}

// --- what is left when it cannot go on

/// Every stream is there whole or not at all, and what else is there shows what it is.
fn whole_or_absent(store: &Path, dest: &Path) -> usize {
    let mut whole = 0;
    for account in finished(dest) {
        assert_eq!(account, "$G");
        for stream in finished(&dest.join(&account)) {
            let dir = dest.join(&account).join(&stream);
            assert_eq!(names(&dir), BACKUP, "{}", dir.display());
            let ran = Jetsam::new()
                .args(["diff", "-q", "-s", &stream])
                .args([&store.join("jetstream/$G"), &dir])
                .run();
            assert_eq!(ran.status, Some(0), "{}: {}", ran.line, ran.stderr);
            whole += 1;
        }
    }
    if dest.is_dir() {
        let ran = Jetsam::new().args(["ls", "--json"]).arg(dest).run();
        match ran.status {
            Some(0) => assert_eq!(
                ran.json().as_array().unwrap().len(),
                whole,
                "{}",
                ran.stderr
            ),
            other => assert_eq!((other, whole), (Some(2), 0), "{}", ran.stderr),
        }
    }
    whole
}

#[test]
fn killed_at_any_time() {
    let work = temp();
    let store = work.path().join("store");
    make_store(&store, 12);
    let before = fingerprint(&store);
    let run = |dest: &Path| Jetsam::new().arg("backup").args([&store, dest]);
    let begun = Instant::now();
    run(&work.path().join("timed")).run().status(0);
    let whole_run = begun.elapsed();
    assert_eq!(whole_or_absent(&store, &work.path().join("timed")), 2);

    let (mut cut, mut left) = (0, 0);
    for i in 0..24u32 {
        let dest = work.path().join(format!("d{i}"));
        let mut child = run(&dest).spawn();
        std::thread::sleep(whole_run * i / 20);
        child.kill().unwrap();
        let ran = wait(child, "backup, killed");
        cut += usize::from(ran.status.is_none());
        let whole = whole_or_absent(&store, &dest);
        assert!(ran.status.is_none() || whole == 2);
        left += usize::from(dest.is_dir() && names(&dest).iter().any(|n| n.contains(".jetsam-")));
        // Over what was left, if nothing was finished; else that has to go first.
        if whole > 0 {
            fs::remove_dir_all(&dest).unwrap();
        }
        if i % 4 == 0 {
            run(&dest).run().status(0);
            assert_eq!(whole_or_absent(&store, &dest), 2);
        }
        let _ = fs::remove_dir_all(&dest);
    }
    assert!(cut > 5, "only {cut} runs were killed before their end");
    assert!(left > 0, "none was killed at work");
    assert_eq!(before, fingerprint(&store), "the source was touched");
}

#[test]
fn interrupted() {
    let work = temp();
    let store = work.path().join("store");
    make_store(&store, 12);
    let run = |dest: &Path| Jetsam::new().arg("backup").args([&store, dest]);
    let begun = Instant::now();
    run(&work.path().join("timed")).run().status(0);
    let whole_run = begun.elapsed();
    let mut interrupted = 0;
    for i in 0..16u32 {
        let dest = work.path().join(format!("d{i}"));
        let child = run(&dest).spawn();
        std::thread::sleep(whole_run * i / 16);
        signal(&child, if i % 2 == 0 { "INT" } else { "TERM" });
        let ran = wait(child, "backup, interrupted");
        match ran.status {
            Some(130) => {
                interrupted += 1;
                says(&ran, &["interrupted"]);
                assert!(whole_or_absent(&store, &dest) < 2);
                let at_all = if dest.exists() {
                    names(&dest)
                } else {
                    Vec::new()
                };
                assert!(!at_all.iter().any(|n| n.contains(".jetsam-")), "{at_all:?}");
            }
            Some(0) => assert_eq!(whole_or_absent(&store, &dest), 2),
            // Before it listens to signals.
            None => assert_eq!(whole_or_absent(&store, &dest), 0),
            other => panic!("{other:?}: {}", ran.stderr),
        }
    }
    assert!(
        interrupted > 3,
        "only {interrupted} runs were interrupted at work"
    );
}

#[test]
fn a_full_disk() {
    let work = temp();
    let store = work.path().join("store");
    make_store(&store, 3);
    let before = fingerprint(&store);
    let fs_at = work.path().join("small");
    if let Some(small) = Tmpfs::new(&fs_at, "4m") {
        // A fits, B does not.
        let dest = fs_at.join("d");
        let ran = Jetsam::new()
            .arg("backup")
            .args([&store, &dest])
            .run()
            .status(2);
        says(&ran, &["No space left", "small/d", "B: not backed up"]);
        assert_eq!(whole_or_absent(&store, &dest), 1);
        assert_eq!(names(&dest).len(), 4, "{:?}", names(&dest));
        drop(small);
    }
    // The same by a limit on the size of files, 512 bytes each.
    let dest = work.path().join("limited");
    let ran = Jetsam::new()
        .arg("backup")
        .args([&store, &dest])
        .limited("ulimit -f 4000")
        .run()
        .status(2);
    says(&ran, &["too large", "limited", "stream.tar.s2"]);
    assert!(!dest.exists(), "{:?}", names(&dest));
    assert_eq!(before, fingerprint(&store), "the source was touched");
}

#[test]
fn a_file_that_cannot_be_read() {
    let fx = Fixture::open("2.14.5-basic");
    let work = temp();
    // Not below a directory that only root may enter.
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let store = copy_of(&fx, work.path());
    let out = work.path().join("out");
    fs::create_dir(&out).unwrap();
    let root = rustix_uid() == 0;
    let bin = work.path().join("jetsam");
    fs::copy(assert_cmd::cargo::cargo_bin!("jetsam"), &bin).unwrap();
    if root {
        for path in fingerprint(work.path()).keys() {
            std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
        }
    }
    let block = store.join("jetstream/$G/streams/WORK/msgs/1.blk");
    fs::set_permissions(&block, fs::Permissions::from_mode(0o000)).unwrap();
    let before = fingerprint(&store);
    let dest = out.join("d");
    let mut command = std::process::Command::new(&bin);
    command.arg("backup").args([&store, &dest]);
    if root {
        command.uid(65534).gid(65534);
    }
    let ran = Jetsam { command }.run();
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    says(&ran, &["WORK", "1.blk", "ermission denied"]);
    assert!(!dest.join("$G/WORK").exists());
    assert_eq!(finished(&dest.join("$G")).len(), on_disk(&fx).len() - 1);

    // And a destination that cannot be written to.
    fs::set_permissions(&out, fs::Permissions::from_mode(0o555)).unwrap();
    let mut command = std::process::Command::new(&bin);
    command
        .arg("backup")
        .args([&store, &out.join("e")])
        .args(["-s", "EMPTY"]);
    if root {
        command.uid(65534).gid(65534);
    }
    let ran = Jetsam { command }.run().status(2);
    says(&ran, &["out", "ermission denied"]);
    assert!(!out.join("e").exists());
    assert_eq!(before, fingerprint(&store), "the source was touched");
}

fn rustix_uid() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

#[test]
fn a_destination_where_nothing_can_be_made() {
    let fx = Fixture::open("2.12.15-accounts");
    for dest in ["/proc/jetsam", "/dev/null/x", "/proc/self/nowhere/x"] {
        let ran = backup(&fx, &fx.stores()[0], Path::new(dest), &[]).status(2);
        says(&ran, &[dest.split('/').nth(1).unwrap()]);
    }
}

#[test]
fn a_source_that_changes_meanwhile_is_not_archived() {
    let work = temp();
    let store = work.path().join("store");
    make_store(&store, 12);
    let block = store.join("jetstream/$G/streams/A/msgs/12.blk");
    let dest = work.path().join("d");
    let child = Jetsam::new()
        .arg("backup")
        .args([&store.join("jetstream/$G/streams/A"), &dest])
        .spawn();
    let begun = Instant::now();
    // As soon as it is at work, something is appended.
    while finished(work.path()) == names_of(work.path()) && begun.elapsed() < Duration::from_secs(5)
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut bytes = fs::read(&block).unwrap();
    bytes.extend_from_slice(&jetsam_block_tail());
    fs::write(&block, bytes).unwrap();
    let ran = wait(child, "backup of a store that changes");
    assert!(
        matches!(ran.status, Some(1 | 3)),
        "{:?} {}",
        ran.status,
        ran.stderr
    );
    assert!(!dest.exists());
}

fn jetsam_block_tail() -> Vec<u8> {
    block("A", 12, 12 * 64 + 1, 1, 100)
}

fn names_of(dir: &Path) -> Vec<String> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    all.sort();
    all
}
