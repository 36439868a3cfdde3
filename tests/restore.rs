//! `jetsam restore`: what every option does, what is refused, what is left when it cannot go on, and what hostile
//! archives come to.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;
#[path = "common/backup.rs"]
mod helpers;

use common::{Fixture, Jetsam, Ran, copy_tree, fingerprint};
use helpers::*;
use jetsam::format::meta;
use jetsam::format::s2::Encoder;
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tempfile::TempDir;

fn restore(fx: &Fixture, source: &Path, dest: &Path, more: &[&str]) -> Ran {
    fx.jetsam()
        .arg("restore")
        .args([source, dest])
        .args(more)
        .run()
}

fn temp() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn stream_dir(store: &Path, account: &str, stream: &str) -> PathBuf {
    store
        .join("jetstream")
        .join(account)
        .join("streams")
        .join(stream)
}

/// Beside `jetstream/` there is nothing.
fn alone(store: &Path) {
    let mut there = names(store);
    there.retain(|n| !n.contains("jetstream/"));
    assert_eq!(there, Vec::<String>::new());
}

// --- whole sources

fn all_of_it(name: &str) {
    let fx = Fixture::open(name);
    let (work, from) = (temp(), &fx.stores()[0]);
    let before = fingerprint(from);
    let store = work.path().join("new/store");
    let ran = restore(&fx, from, &store, &[]).status(0);
    assert!(!ran.stderr.contains("plaintext"), "{}", ran.stderr);
    assert_eq!(before, fingerprint(from), "the source was touched");
    alone(&store);
    no_difference(&fx, from, &store, &[]);
    fx.jetsam().arg("check").arg(&store).run().status(0);
    for (account, stream) in on_disk(&fx) {
        let what = format!("{name} {account}/{stream}");
        same(
            &what,
            &found(&fx, &store, &account, &stream),
            &truth(&fx, &account, &stream),
        );
        let dir = stream_dir(&store, &account, &stream);
        assert_eq!(fx.key().is_some(), dir.join("meta.key").exists(), "{what}");
        if let Some(cipher) = fx.truth["cipher"].as_str() {
            let len = if cipher == "aes" { 64 } else { 72 };
            assert_eq!(
                fs::metadata(dir.join("meta.key")).unwrap().len(),
                len,
                "{what}"
            );
            let inf = fs::read(dir.join("meta.inf")).unwrap();
            assert!(serde_json::from_slice::<Value>(&inf).is_err(), "{what}");
        }
    }
    for name in names(&store) {
        let mode = fs::metadata(store.join(&name)).unwrap().mode() & 0o7777;
        let want = if name.ends_with('/') { 0o750 } else { 0o640 };
        assert_eq!(mode, want, "{name}: {mode:o}");
    }
}

#[test]
fn a_plain_store() {
    all_of_it("2.14.5-basic");
    all_of_it("2.12.15-accounts");
}

#[test]
fn encrypted_stores_stay_encrypted() {
    all_of_it("2.14.5-aes-basic");
    all_of_it("2.15.2-chacha-compress");
}

#[test]
fn a_store_with_everything_new() {
    all_of_it("2.15.2-new");
}

#[test]
fn archives_that_servers_made() {
    for name in ["2.14.5-basic", "2.12.15-accounts", "2.14.5-chacha-compress"] {
        let fx = Fixture::open(name);
        let work = temp();
        let store = work.path().join("store");
        for (account, stream) in on_disk(&fx) {
            let archive = fx.dir.join(format!("snapshots/{account}/{stream}.tar.s2"));
            restore(&fx, &archive, &store, &["--to-account", &account]).status(0);
            let mut want = truth(&fx, &account, &stream);
            let mut got = found(&fx, &store, &account, &stream);
            // Up to 2.14.5 a server's own archive may say when the server started, not when it was made.
            for v in [&mut want, &mut got] {
                v["created"] = Value::Null;
                for c in v["consumers"].as_array_mut().unwrap() {
                    c["created"] = Value::Null;
                }
            }
            same(&format!("{name} {account}/{stream}"), &got, &want);
        }
        fx.jetsam().arg("check").arg(&store).run().status(0);
    }
}

#[test]
fn backups_in_every_layout_and_format() {
    let fx = Fixture::open("2.12.15-accounts");
    let (work, from) = (temp(), &fx.stores()[0]);
    for format in ["v1", "v2"] {
        let at = |name: &str| work.path().join(format).join(name);
        let backup = |dest: &str, args: &[&str]| {
            fx.jetsam()
                .arg("backup")
                .args([from, &at(dest)])
                .args(["--format", format])
                .args(args)
                .run()
                .status(0)
        };
        backup("all", &[]);
        backup("acme", &["-a", "ACME"]);
        backup("one", &["-a", "BETA", "-s", "EVENTS"]);
        restore(&fx, &at("all"), &at("of-all"), &[]).status(0);
        no_difference(&fx, &at("all"), &at("of-all"), &[]);
        assert_eq!(finished(&at("of-all/jetstream")), ["ACME", "BETA"]);
        // An account's backup does not tell which: $G, or what one is told.
        restore(&fx, &at("acme"), &at("of-acme"), &[]).status(0);
        assert_eq!(
            finished(&at("of-acme/jetstream/$G/streams")),
            ["EVENTS", "ONLY_A"]
        );
        restore(&fx, &at("one"), &at("of-one"), &["--to-account", "XY"]).status(0);
        let got = found(&fx, &at("of-one"), "XY", "EVENTS");
        assert_eq!(got["messages"], truth(&fx, "BETA", "EVENTS")["messages"]);
    }
}

// --- options

#[test]
fn accounts_streams_and_other_names() {
    let fx = Fixture::open("2.12.15-accounts");
    let (work, from) = (temp(), &fx.stores()[0]);
    let store = work.path().join("store");
    restore(&fx, from, &store, &["-a", "ACME", "-s", "ONLY*"]).status(0);
    assert_eq!(finished(&store.join("jetstream")), ["ACME"]);
    assert_eq!(finished(&store.join("jetstream/ACME/streams")), ["ONLY_A"]);
    // Two of one name into one account.
    let before = fingerprint(&store);
    let ran = restore(&fx, from, &store, &["-s", "EVENTS", "--to-account", "Z"]).status(2);
    says(&ran, &["EVENTS", "-a"]);
    assert_eq!(before, fingerprint(&store));
    // Into another account, under another name.
    let args = [
        "-a",
        "ACME",
        "-s",
        "EVENTS",
        "--to-account",
        "Z",
        "--rename",
        "MOVED",
    ];
    restore(&fx, from, &store, &args).status(0);
    let mut want = truth(&fx, "ACME", "EVENTS");
    want["config"]["name"] = json!("MOVED");
    same("renamed", &found(&fx, &store, "Z", "MOVED"), &want);
    fx.jetsam().arg("check").arg(&store).run().status(0);
    // Several cannot have one new name.
    says(
        &restore(&fx, from, &store, &["--rename", "X"]).status(2),
        &["--rename", "3"],
    );
    // -s that matches nothing.
    says(
        &restore(&fx, from, &store, &["-s", "NONE"]).status(2),
        &["no stream matches"],
    );
}

#[test]
fn names_that_servers_do_not_take() {
    let fx = Fixture::open("2.12.15-accounts");
    let (work, from) = (temp(), &fx.stores()[0]);
    let store = work.path().join("store");
    let one = ["-a", "ACME", "-s", "ONLY_A"];
    let long = "x".repeat(256);
    for name in [
        "", ".", "..", "a.b", "a b", "a*", "a>", "a/b", "a\\b", "../x", "a\tb", &long,
    ] {
        let ran = restore(&fx, from, &store, &[&one[..], &["--rename", name]].concat()).status(2);
        says(&ran, &["name"]);
    }
    for account in ["", ".", "..", ".x", "a/b", "../x", "a\\b", &long] {
        let ran = restore(
            &fx,
            from,
            &store,
            &[&one[..], &["--to-account", account]].concat(),
        )
        .status(2);
        says(&ran, &["--to-account"]);
    }
    assert_eq!(finished(work.path()), Vec::<String>::new());
    // The longest that fits.
    let long = "x".repeat(255);
    for args in [&["--rename", &long][..], &["--rename", &long, "--replace"]] {
        restore(&fx, from, &store, &[&one[..], args].concat()).status(0);
    }
    let mut want = truth(&fx, "ACME", "ONLY_A");
    want["config"]["name"] = json!(long);
    same("a long name", &found(&fx, &store, "ACME", &long), &want);
}

#[test]
fn replicas() {
    let fx = Fixture::open("2.14.5-cluster");
    let (work, from) = (temp(), &fx.stores()[0]);
    let store = work.path().join("store");
    let ran = restore(&fx, from, &store, &["-s", "ORDERS"]).status(2);
    says(&ran, &["ORDERS", "3 replicas", "--replicas 1"]);
    assert!(!store.exists());
    restore(&fx, from, &store, &["-s", "ORDERS", "--replicas", "1"]).status(0);
    let got = found(&fx, &store, "$G", "ORDERS");
    assert_eq!(got["config"]["num_replicas"], 1);
    for c in got["consumers"].as_array().unwrap() {
        assert!(c["config"]["num_replicas"].as_i64().unwrap() <= 1, "{c}");
    }
    assert_eq!(got["messages"], truth(&fx, "$G", "ORDERS")["messages"]);
    for bad in ["0", "6", "-1", "x"] {
        restore(&fx, from, &store, &["-s", "WORK", "--replicas", bad]).status(2);
    }
}

#[test]
fn another_configuration() {
    let fx = Fixture::open("2.14.5-basic");
    let (work, from) = (temp(), &fx.stores()[0]);
    let file = work.path().join("config.json");
    let mut want = truth(&fx, "$G", "ORDERS");
    want["config"]["description"] = json!("changed");
    want["config"]["max_msgs"] = json!(100_000);
    want["config"]["compression"] = json!("s2");
    let path = file.to_str().unwrap();
    let args = ["-s", "ORDERS", "--config", path];
    // As it is, and wrapped as `nats stream info --json` has it.
    for (i, text) in [
        want["config"].clone(),
        json!({"config": want["config"], "state": {}}),
    ]
    .iter()
    .enumerate()
    {
        fs::write(&file, text.to_string()).unwrap();
        let store = work.path().join(format!("store{i}"));
        restore(&fx, from, &store, &args).status(0);
        same(
            "another configuration",
            &found(&fx, &store, "$G", "ORDERS"),
            &want,
        );
        fx.jetsam().arg("check").arg(&store).run().status(0);
    }
    let store = work.path().join("none");
    want["config"]["name"] = json!("OTHER");
    fs::write(&file, want["config"].to_string()).unwrap();
    says(
        &restore(&fx, from, &store, &args).status(2),
        &["OTHER", "--rename"],
    );
    restore(
        &fx,
        from,
        &store,
        &[&args[..], &["--rename", "OTHER"]].concat(),
    )
    .status(0);
    same("renamed", &found(&fx, &store, "$G", "OTHER"), &want);
    for (text, word) in [
        ("{", "config.json"),
        ("[]", "config.json"),
        ("", "config.json"),
    ] {
        fs::write(&file, text).unwrap();
        says(
            &restore(&fx, from, &work.path().join("x"), &args).status(2),
            &[word],
        );
    }
    let ran = restore(
        &fx,
        from,
        &work.path().join("x"),
        &["-s", "ORDERS", "--config", "/nowhere"],
    )
    .status(2);
    says(&ran, &["/nowhere"]);
    assert!(!work.path().join("x").exists());
    // What servers refuse is left out, and told.
    want["config"]["name"] = json!("ORDERS");
    let mut odd = want["config"].clone();
    odd["no_such_option"] = json!(1);
    fs::write(&file, odd.to_string()).unwrap();
    let store = work.path().join("odd");
    says(
        &restore(&fx, from, &store, &args).status(0),
        &["no_such_option"],
    );
    same("without it", &found(&fx, &store, "$G", "ORDERS"), &want);
}

#[test]
fn without_consumers() {
    let fx = Fixture::open("2.14.5-basic");
    let work = temp();
    restore(
        &fx,
        &fx.stores()[0],
        work.path(),
        &["-s", "ORDERS", "--no-consumers"],
    )
    .status(0);
    let mut want = truth(&fx, "$G", "ORDERS");
    want["consumers"] = json!([]);
    same(
        "without consumers",
        &found(&fx, work.path(), "$G", "ORDERS"),
        &want,
    );
    assert_eq!(
        finished(&stream_dir(work.path(), "$G", "ORDERS").join("obs")),
        Vec::<String>::new()
    );
}

#[test]
fn an_existing_stream_is_set_aside() {
    let fx = Fixture::open("2.14.5-basic");
    let (work, from) = (temp(), &fx.stores()[0]);
    let store = work.path().join("store");
    restore(&fx, from, &store, &["-s", "ORDERS"]).status(0);
    let before = fingerprint(&store);
    let ran = restore(&fx, from, &store, &["-s", "ORDERS"]).status(2);
    says(&ran, &["already exists", "ORDERS", "--replace"]);
    // One that exists stops all of them: nothing is written.
    restore(&fx, from, &store, &[]).status(2);
    assert_eq!(before, fingerprint(&store));

    let old = contents(&stream_dir(&store, "$G", "ORDERS"));
    let other = ["-s", "WORK", "--rename", "ORDERS", "--replace"];
    let ran = restore(&fx, from, &store, &[&other[..], &["--json"]].concat()).status(0);
    let row = &ran.json()[0];
    let aside = PathBuf::from(row["replaced"].as_str().unwrap());
    assert_eq!(aside.parent().unwrap(), store);
    assert_eq!(contents(&aside), old, "the old one is not complete");
    let mut want = truth(&fx, "$G", "WORK");
    want["config"]["name"] = json!("ORDERS");
    same("the new one", &found(&fx, &store, "$G", "ORDERS"), &want);
    assert_eq!(finished(&store).len(), 2);
    // The server's view is one stream.
    assert_eq!(
        fx.jetsam()
            .args(["ls", "--json"])
            .arg(&store)
            .run()
            .status(0)
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );

    // A damaged replacement replaces nothing.
    let broken = work.path().join("broken");
    copy_tree(from, &broken);
    let block = stream_dir(&broken, "$G", "ORDERS").join("msgs/1.blk");
    let mut bytes = fs::read(&block).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&block, bytes).unwrap();
    let before = fingerprint(&store);
    restore(&fx, &broken, &store, &["-s", "ORDERS", "--replace"]).status(1);
    let mut after = fingerprint(&store);
    // A directory was staged in it and removed.
    after.insert(store.clone(), before[&store].clone());
    assert_eq!(before, after);

    // The source is never set aside.
    let before = fingerprint(&store);
    let itself = stream_dir(&store, "$G", "ORDERS");
    let ran = restore(&fx, &itself, &store, &["--replace"]).status(2);
    says(&ran, &["inside of the source"]);
    assert_eq!(before, fingerprint(&store));
}

#[test]
fn what_does_not_fit() {
    let fx = Fixture::open("2.14.5-basic");
    let (work, from) = (temp(), &fx.stores()[0]);
    let store = work.path().join("store");
    let ran = restore(&fx, from, &store, &["-s", "ORDERS", "--max-file", "10K"]).status(2);
    says(&ran, &["--max-file"]);
    restore(&fx, from, &store, &["-s", "ORDERS", "--max-file", "1M"]).status(0);
    // What is there counts.
    let ran = restore(&fx, from, &store, &["-s", "MIRROR", "--max-file", "100K"]).status(2);
    says(&ran, &["--max-file"]);
    for bad in ["x", "-1", "1X", "99999999999T"] {
        restore(&fx, from, &store, &["-s", "WORK", "--max-file", bad]).status(2);
    }
    // Nor where the reservation of its configuration does not.
    let file = work.path().join("c.json");
    let mut config = truth(&fx, "$G", "WORK")["config"].clone();
    config["max_bytes"] = json!(10_000_000);
    fs::write(&file, config.to_string()).unwrap();
    let args = [
        "-s",
        "WORK",
        "--config",
        file.to_str().unwrap(),
        "--max-file",
        "5M",
    ];
    says(
        &restore(&fx, from, &store, &args).status(2),
        &["--max-file"],
    );
    assert_eq!(finished(&store.join("jetstream/$G/streams")), ["ORDERS"]);
}

#[test]
fn a_dry_run_writes_nothing() {
    let fx = Fixture::open("2.14.5-aes-basic");
    let (work, from) = (temp(), &fx.stores()[0]);
    let store = work.path().join("store");
    let ran = restore(&fx, from, &store, &["--dry-run", "--json"]).status(0);
    let rows = ran.json();
    let names: Vec<_> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["stream"].as_str().unwrap())
        .collect();
    let want = on_disk(&fx);
    assert_eq!(
        names,
        want.iter().map(|(_, s)| s.as_str()).collect::<Vec<_>>()
    );
    assert!(!store.exists());
    restore(&fx, from, &store, &["-s", "WORK"]).status(0);
    let before = fingerprint(work.path());
    // What would be refused is refused.
    restore(&fx, from, &store, &["--dry-run"]).status(2);
    let ran = restore(&fx, from, &store, &["--dry-run", "-s", "ORDERS"]).status(0);
    let text = String::from_utf8(ran.stdout).unwrap();
    assert!(
        text.contains("ORDERS")
            && text.contains(stream_dir(&store, "$G", "ORDERS").to_str().unwrap()),
        "{text}"
    );
    restore(&fx, from, &store, &["--dry-run", "--replace", "-s", "WORK"]).status(0);
    assert_eq!(before, fingerprint(work.path()));
}

#[test]
fn keys_and_ciphers() {
    let fx = Fixture::open("2.14.5-chacha-compress");
    let (work, from) = (temp(), &fx.stores()[0]);
    let file = work.path().join("new.key");
    fs::write(&file, "another key\n").unwrap();
    let file = file.to_str().unwrap();
    let len = |store: &Path| {
        let key = stream_dir(store, "$G", "S2META").join("meta.key");
        fs::metadata(key).map(|m| m.len()).ok()
    };
    #[allow(clippy::type_complexity, reason = "one table")]
    let cases: [(&str, &[&str], Option<u64>, Option<&str>); 6] = [
        (
            "file",
            &["--out-key-file", file],
            Some(72),
            Some("another key"),
        ),
        (
            "env",
            &["--out-key-env", "OUT_KEY", "--out-cipher", "aes"],
            Some(64),
            Some("from env"),
        ),
        (
            "chacha",
            &["--out-key-file", file, "--out-cipher", "chacha"],
            Some(72),
            Some("another key"),
        ),
        ("cipher", &["--out-cipher", "aes"], Some(64), Some(ENC_KEY)),
        ("same", &[], Some(72), Some(ENC_KEY)),
        ("plain", &["--decrypt"], None, None),
    ];
    for (name, args, key_len, key) in cases {
        let store = work.path().join(name);
        let mut j = fx.jetsam().arg("restore").args([from, &store]).args(args);
        j.command.env("OUT_KEY", "from env");
        j.run().status(0);
        assert_eq!(len(&store), key_len, "{name}");
        // With that key and no other.
        let check = |key: Option<&str>| {
            let mut j = Jetsam::new().args(["check", "-q"]).arg(&store);
            if let Some(key) = key {
                j.command.env("JETSAM_KEY", key);
            }
            j.run()
        };
        check(key).status(0);
        if key_len.is_some() {
            check(Some("wrong")).status(4);
            check(None).status(4);
        }
        let mut as_key = Fixture::open("2.14.5-chacha-compress");
        as_key.truth["key"] = key.map_or(Value::Null, Value::from);
        for (account, stream) in on_disk(&fx) {
            same(
                name,
                &found(&as_key, &store, &account, &stream),
                &truth(&fx, &account, &stream),
            );
        }
        if key_len.is_some() {
            for (file, bytes) in contents(&store) {
                let clear = bytes.windows(3).any(|w| w == b"s2.") && bytes.len() > 400;
                assert!(
                    !clear || file.ends_with("thw.db"),
                    "{name}: {file} has subjects in clear"
                );
            }
        }
    }
    // Only the previous key opens it: not a reason to write plaintext.
    let store = work.path().join("prev");
    let mut j = Jetsam::new().arg("restore").args([from, &store]);
    j.command.env("JETSAM_PREV_KEY", ENC_KEY);
    j.run().status(0);
    assert_eq!(len(&store), Some(72));
    // A plaintext source gets a key, and a cipher alone is no key.
    let plain = Fixture::open("2.14.5-basic");
    let store = work.path().join("sealed");
    restore(
        &plain,
        &plain.stores()[0],
        &store,
        &[
            "-s",
            "ORDERS",
            "--out-key-file",
            file,
            "--out-cipher",
            "aes",
        ],
    )
    .status(0);
    let mut sealed = Fixture::open("2.14.5-basic");
    sealed.truth["key"] = json!("another key");
    same(
        "sealed",
        &found(&sealed, &store, "$G", "ORDERS"),
        &truth(&plain, "$G", "ORDERS"),
    );
    let none = work.path().join("none");
    for args in [
        &["--out-cipher", "aes"][..],
        &["--out-key-env", "NOT_SET_ANYWHERE"],
        &["--out-key-file", "/nowhere"],
        &["--decrypt", "--out-cipher", "aes"],
    ] {
        let ran = restore(&plain, &plain.stores()[0], &none, args);
        assert!(
            matches!(ran.status, Some(2 | 4)),
            "{args:?}: {:?}",
            ran.status
        );
    }
    // No key, or another: refused, nothing written.
    for key in [None, Some("wrong")] {
        let mut j = Jetsam::new().arg("restore").args([from, &none]);
        if let Some(key) = key {
            j.command.env("JETSAM_KEY", key);
        }
        says(&j.run().status(4), &["key"]);
        assert!(!none.exists());
    }
}

#[test]
fn an_archive_with_findings() {
    let fx = Fixture::open("2.14.5-basic");
    let work = temp();
    for format in ["v1", "v2"] {
        let backup = work.path().join(format);
        fx.jetsam()
            .arg("backup")
            .args([&fx.stores()[0], &backup])
            .args(["-s", "ORDERS", "--format", format])
            .run()
            .status(0);
        let archive = backup.join("stream.tar.s2");
        let whole = fs::read(&archive).unwrap();
        let store = work.path().join("store");
        let mut cut = whole.clone();
        cut.truncate(whole.len() * 2 / 3);
        let mut destroyed = whole.clone();
        let middle = whole.len() / 2;
        destroyed[middle..middle + 64]
            .iter_mut()
            .for_each(|b| *b ^= 0xff);
        let mut flipped = whole.clone();
        flipped[middle] ^= 1;
        // A single bit can be found: with --salvage all is there.
        fs::write(&archive, flipped).unwrap();
        let ran = restore(&fx, &backup, &store, &[]).status(1);
        says(&ran, &["ORDERS", "damaged", "--salvage"]);
        let ran = restore(&fx, &backup, &store, &["--salvage"]).status(0);
        says(&ran, &["ORDERS", "1 bit"]);
        assert!(
            found(&fx, &store, "$G", "ORDERS")["messages"]
                == truth(&fx, "$G", "ORDERS")["messages"]
        );
        fs::remove_dir_all(&store).unwrap();
        for bytes in [cut, destroyed] {
            fs::write(&archive, bytes).unwrap();
            let ran = restore(&fx, &backup, &store, &[]).status(1);
            says(&ran, &["ORDERS", "damaged", "--salvage"]);
            assert!(!store.exists());
            // What can be proven: part of the truth, in order, and a store in itself sound.
            let ran = restore(&fx, &backup, &store, &["--salvage"]).status(1);
            says(&ran, &["stream.tar.s2"]);
            let got = found(&fx, &store, "$G", "ORDERS");
            let want = truth(&fx, "$G", "ORDERS");
            let (got, want) = (
                got["messages"].as_array().unwrap(),
                want["messages"].as_array().unwrap(),
            );
            assert!(got.len() < want.len());
            assert!(got.iter().all(|m| want.contains(m)));
            fx.jetsam().arg("check").arg(&store).run().status(0);
            fs::remove_dir_all(&store).unwrap();
        }
    }
}

/// An archive that says what it holds is read once, and what it says is compared: where it is wrong, or tells half
/// of what there is, the messages decide.
#[test]
fn what_an_archive_says_of_itself_is_compared() {
    let fx = Fixture::open("2.14.5-basic");
    let work = temp();
    let backup = work.path().join("backup");
    fx.jetsam()
        .arg("backup")
        .args([&fx.stores()[0], &backup])
        .args(["-s", "ORDERS"])
        .run()
        .status(0);
    let (archive, claim) = (backup.join("stream.tar.s2"), backup.join("backup.json"));
    let said: Value = serde_json::from_slice(&fs::read(&claim).unwrap()).unwrap();
    let mut want = truth(&fx, "$G", "ORDERS");
    want["consumers"] = json!([]);
    let restored = |what: &str| {
        let store = work.path().join("store");
        restore(&fx, &backup, &store, &["--no-consumers"]).status(0);
        let got = found(&fx, &store, "$G", "ORDERS");
        same(what, &got, &want);
        fs::remove_dir_all(&store).unwrap();
    };
    restored("as it is");
    let n = |key: &str| said["state"][key].as_u64().unwrap();
    for (key, wrong) in [
        ("messages", n("messages") - 1),
        ("messages", n("messages") + 1),
        ("bytes", n("bytes") + 1),
        ("first_seq", n("first_seq") + 1),
        ("last_seq", n("last_seq") - 1),
        ("last_seq", n("last_seq") + 1),
    ] {
        let mut other = said.clone();
        other["state"][key] = json!(wrong);
        fs::write(&claim, other.to_string()).unwrap();
        restored(&format!("{key} {wrong}"));
    }
    fs::write(&claim, said.to_string()).unwrap();

    // The server's own blocks, with deleted messages and the tombstones that name them.
    let dir = stream_dir(&fx.stores()[0], "$G", "ORDERS");
    let mut tar = Tar::default();
    for name in ["meta.inf", "meta.sum"] {
        tar = tar.file(name, &fs::read(dir.join(name)).unwrap());
    }
    let mut blocks = 0;
    for name in finished(&dir.join("msgs")) {
        if name.ends_with(".blk") {
            tar = tar.file(
                &format!("msgs/{name}"),
                &fs::read(dir.join("msgs").join(&name)).unwrap(),
            );
            blocks += 1;
        }
    }
    assert!(blocks > 0);
    fs::write(&archive, tar.end()).unwrap();
    restored("with deleted messages in it");
}

#[test]
fn overlapping_subjects() {
    let fx = Fixture::open("2.14.5-basic");
    let (work, from) = (temp(), &fx.stores()[0]);
    let store = work.path().join("store");
    restore(&fx, from, &store, &["-s", "ORDERS"]).status(0);
    let before = fingerprint(&store);
    let ran = restore(&fx, from, &store, &["-s", "ORDERS", "--rename", "AGAIN"]).status(2);
    says(&ran, &["orders.>", "overlaps", "ORDERS", "$G"]);
    // With a wildcard on one side.
    let file = work.path().join("c.json");
    let mut config = truth(&fx, "$G", "WORK")["config"].clone();
    config["subjects"] = json!(["work.*", "*.new.1"]);
    fs::write(&file, config.to_string()).unwrap();
    let path = file.to_str().unwrap();
    let ran = restore(&fx, from, &store, &["-s", "WORK", "--config", path]).status(2);
    says(&ran, &["*.new.1", "overlaps"]);
    assert_eq!(before, fingerprint(&store));
    // Not in another account.
    restore(
        &fx,
        from,
        &store,
        &["-s", "ORDERS", "--rename", "AGAIN", "--to-account", "B"],
    )
    .status(0);
    // Nor with the one that is replaced.
    restore(&fx, from, &store, &["-s", "ORDERS", "--replace"]).status(0);
}

#[test]
fn streams_kept_in_memory() {
    let fx = Fixture::open("2.15.2-basic");
    let work = temp();
    let backup = work.path().join("b");
    fx.jetsam()
        .arg("backup")
        .args([&fx.stores()[0], &backup])
        .args(["-s", "WORK", "--format", "v2"])
        .run()
        .status(0);
    let path = backup.join("backup.json");
    let mut json: Value = common::read_json(&path);
    json["config"]["storage"] = json!("memory");
    fs::write(&path, json.to_string()).unwrap();
    let store = work.path().join("store");
    says(
        &restore(&fx, &backup, &store, &[]).status(2),
        &["memory", "--config"],
    );
    assert!(!store.exists());
    json["config"]["storage"] = json!("file");
    let file = work.path().join("c.json");
    fs::write(&file, json["config"].to_string()).unwrap();
    restore(&fx, &backup, &store, &["--config", file.to_str().unwrap()]).status(0);
    assert_eq!(
        found(&fx, &store, "$G", "WORK")["messages"],
        truth(&fx, "$G", "WORK")["messages"]
    );
}

#[test]
fn a_store_in_use() {
    let fx = Fixture::open("2.14.5-basic");
    let work = temp();
    let store = work.path().join("store");
    restore(&fx, &fx.stores()[0], &store, &["-s", "WORK"]).status(0);
    let block = stream_dir(&store, "$G", "WORK").join("msgs/1.blk");
    let block = fs::OpenOptions::new().append(true).open(&block).unwrap();
    let before = fingerprint(&store);
    for args in [
        &["-s", "EMPTY"][..],
        &["-s", "WORK", "--replace"],
        &["-s", "EMPTY", "--dry-run"],
    ] {
        says(
            &restore(&fx, &fx.stores()[0], &store, args).status(3),
            &["in use"],
        );
    }
    assert_eq!(before, fingerprint(&store));
    drop(block);
    restore(&fx, &fx.stores()[0], &store, &["-s", "EMPTY"]).status(0);
}

#[test]
fn the_jetstream_directory_itself() {
    let fx = Fixture::open("2.14.5-basic");
    let (work, from) = (temp(), &fx.stores()[0]);
    let store = work.path().join("store");
    restore(&fx, from, &store, &["-s", "WORK"]).status(0);
    restore(&fx, from, &store.join("jetstream"), &["-s", "ORDERS"]).status(0);
    restore(
        &fx,
        from,
        &store.join("jetstream/"),
        &["-s", "ORDERS", "--replace"],
    )
    .status(0);
    assert_eq!(
        finished(&store.join("jetstream/$G/streams")),
        ["ORDERS", "WORK"]
    );
    assert!(
        finished(&store)[1].starts_with("replaced-"),
        "{:?}",
        finished(&store)
    );
    assert!(!store.join("jetstream/jetstream").exists());
    // Relative, from inside.
    let mut j = fx
        .jetsam()
        .arg("restore")
        .arg(from.canonicalize().unwrap())
        .args(["jetstream", "-s", "EMPTY"]);
    j.command.current_dir(&store);
    j.run().status(0);
    assert_eq!(
        finished(&store.join("jetstream/$G/streams")),
        ["EMPTY", "ORDERS", "WORK"]
    );
}

#[test]
fn the_owner_of_the_store() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return;
    }
    let fx = Fixture::open("2.14.5-basic");
    let (work, from) = (temp(), &fx.stores()[0]);
    let store = work.path().join("store");
    let owners = |dir: &Path| {
        let mut all: Vec<u32> = fingerprint(dir)
            .keys()
            .map(|p| fs::symlink_metadata(p).unwrap().uid())
            .collect();
        all.dedup();
        all
    };
    // A new place above which somebody else owns everything.
    fs::create_dir(&store).unwrap();
    std::os::unix::fs::chown(&store, Some(1234), Some(1235)).unwrap();
    restore(&fx, from, &store, &["-s", "WORK"]).status(0);
    assert_eq!(owners(&store), [1234]);
    // The directory that holds jetstream/ is root's, as a mount point is; the server's own is not.
    std::os::unix::fs::chown(&store, Some(0), Some(0)).unwrap();
    restore(&fx, from, &store, &["-s", "ORDERS"]).status(0);
    assert_eq!(owners(&store.join("jetstream")), [1234]);
    assert_eq!(fs::metadata(&store).unwrap().uid(), 0);
    // What is replaced keeps its owner, too.
    restore(&fx, from, &store, &["-s", "ORDERS", "--replace"]).status(0);
    assert_eq!(owners(&store.join("jetstream")), [1234]);
}

// --- what is left when it cannot go on

/// Every stream is there whole or not at all, and what else is there shows what it is.
fn whole_or_absent(from: &Path, store: &Path) -> usize {
    let beside = finished(store);
    assert!(beside.is_empty() || beside == ["jetstream"], "{beside:?}");
    let streams = finished(&store.join("jetstream/$G/streams"));
    for stream in &streams {
        let ran = Jetsam::new()
            .args(["diff", "-q", "-s", stream])
            .args([from, store])
            .run();
        assert_eq!(ran.status, Some(0), "{}: {}", ran.line, ran.stderr);
    }
    if store.is_dir() {
        let ran = Jetsam::new()
            .args(["ls", "--raft", "--json"])
            .arg(store)
            .run();
        match ran.status {
            Some(0) => assert_eq!(
                ran.json().as_array().unwrap().len(),
                streams.len(),
                "{}",
                ran.stderr
            ),
            other => assert_eq!((other, streams.len()), (Some(2), 0), "{}", ran.stderr),
        }
    }
    streams.len()
}

#[test]
fn killed_at_any_time() {
    let work = temp();
    let from = work.path().join("from");
    make_store(&from, 12);
    let before = fingerprint(&from);
    let run = |store: &Path| Jetsam::new().arg("restore").args([&from, store]);
    let begun = Instant::now();
    run(&work.path().join("timed")).run().status(0);
    let whole_run = begun.elapsed();
    assert_eq!(whole_or_absent(&from, &work.path().join("timed")), 2);
    let (mut cut, mut left) = (0, 0);
    for i in 0..24u32 {
        let store = work.path().join(format!("d{i}"));
        let mut child = run(&store).spawn();
        std::thread::sleep(whole_run * i / 20);
        child.kill().unwrap();
        let ran = wait(child, "restore, killed");
        cut += usize::from(ran.status.is_none());
        let whole = whole_or_absent(&from, &store);
        assert!(ran.status.is_none() || whole == 2);
        left +=
            usize::from(store.is_dir() && names(&store).iter().any(|n| n.starts_with(".jetsam-")));
        if i % 4 == 0 {
            // Over what was left; what is there already is set aside.
            run(&store).arg("--replace").run().status(0);
            assert_eq!(finished(&store.join("jetstream/$G/streams")), ["A", "B"]);
            no_difference(&Fixture::open("2.14.5-basic"), &from, &store, &[]);
        }
        let _ = fs::remove_dir_all(&store);
    }
    assert!(cut > 5, "only {cut} runs were killed before their end");
    assert!(left > 0, "none was killed at work");
    assert_eq!(before, fingerprint(&from), "the source was touched");
}

#[test]
fn killed_while_it_replaces() {
    let work = temp();
    let (from, store) = (work.path().join("from"), work.path().join("store"));
    make_stream(&stream_dir(&from, "$G", "A"), "A", 3);
    // The old one is another stream of that name.
    make_stream(&stream_dir(&store, "$G", "A"), "A", 1);
    let old = contents(&stream_dir(&store, "$G", "A"));
    let copy = work.path().join("copy");
    let run = |store: &Path| {
        Jetsam::new()
            .arg("restore")
            .args([&from, store])
            .arg("--replace")
    };
    copy_tree(&store, &copy);
    let begun = Instant::now();
    run(&copy).run().status(0);
    let whole_run = begun.elapsed();
    for i in 0..24u32 {
        fs::remove_dir_all(&copy).unwrap();
        copy_tree(&store, &copy);
        let mut child = run(&copy).spawn();
        // Closer and closer around the end, where things are moved.
        std::thread::sleep(whole_run / 2 + whole_run * i / 30);
        child.kill().unwrap();
        let ran = wait(child, "restore --replace, killed");
        let at = contents(&stream_dir(&copy, "$G", "A"));
        let aside: Vec<_> = finished(&copy)
            .into_iter()
            .filter(|n| n.starts_with("replaced-"))
            .collect();
        let kept = aside.iter().any(|n| contents(&copy.join(n)) == old);
        assert!(at == old || kept, "the old one is gone: {:?}", names(&copy));
        if at != old {
            no_difference(&Fixture::open("2.14.5-basic"), &from, &copy, &[]);
        }
        assert!(ran.status.is_none() || at != old);
    }
}

#[test]
fn interrupted() {
    let work = temp();
    let from = work.path().join("from");
    make_store(&from, 12);
    let run = |store: &Path| Jetsam::new().arg("restore").args([&from, store]);
    let begun = Instant::now();
    run(&work.path().join("timed")).run().status(0);
    let whole_run = begun.elapsed();
    let mut interrupted = 0;
    for i in 0..16u32 {
        let store = work.path().join(format!("d{i}"));
        let child = run(&store).spawn();
        std::thread::sleep(whole_run * i / 16);
        signal(&child, if i % 2 == 0 { "INT" } else { "TERM" });
        let ran = wait(child, "restore, interrupted");
        let whole = whole_or_absent(&from, &store);
        match ran.status {
            Some(130) => {
                interrupted += 1;
                says(&ran, &["interrupted"]);
                assert!(whole < 2);
                assert!(!store.exists() || !names(&store).iter().any(|n| n.contains(".jetsam-")));
            }
            Some(0) => assert_eq!(whole, 2),
            // Before it listens to signals.
            None => assert_eq!(whole, 0),
            other => panic!("{other:?}: {}", ran.stderr),
        }
        let _ = fs::remove_dir_all(&store);
    }
    assert!(
        interrupted > 3,
        "only {interrupted} runs were interrupted at work"
    );
}

#[test]
fn a_full_disk() {
    let work = temp();
    let from = work.path().join("from");
    make_store(&from, 3);
    let before = fingerprint(&from);
    let small = work.path().join("small");
    if let Some(mounted) = Tmpfs::new(&small, "4m") {
        let store = small.join("store");
        // Known before anything is written.
        let ran = Jetsam::new()
            .arg("restore")
            .args([&from, &store])
            .run()
            .status(2);
        says(&ran, &["are needed", "are free", "small"]);
        assert!(!store.exists());
        // Not known: the bytes in a NATSARC1 archive's state are what it says, and servers accept 0.
        let source = work.path().join("b");
        fs::create_dir(&source).unwrap();
        let mut state = v2_state(0);
        state["messages"] = json!(400);
        state["last_seq"] = json!(400);
        let body = Noise(1).bytes(16 << 10);
        let archive = v2(&[], &state, |out| {
            for seq in 6..=400 {
                entry(out, [3, 0, body.len() as u64], seq, b"s.1", &body);
            }
        });
        fs::write(source.join("stream.tar.s2"), archive).unwrap();
        let backup = json!({"config": config("S"), "state": state});
        fs::write(source.join("backup.json"), backup.to_string()).unwrap();
        Jetsam::new()
            .arg("restore")
            .args([&source, &work.path().join("fits")])
            .run()
            .status(0);
        let ran = Jetsam::new()
            .arg("restore")
            .args([&source, &store])
            .run()
            .status(2);
        says(
            &ran,
            &["No space left", "S: not restored", "small/store", ".blk"],
        );
        assert_eq!(names(&small), Vec::<String>::new());
        drop(mounted);
    }
    let store = work.path().join("limited");
    let ran = Jetsam::new()
        .arg("restore")
        .args([&from, &store])
        .limited("ulimit -f 1000")
        .run()
        .status(2);
    says(&ran, &["too large", "limited", ".blk"]);
    assert!(!store.exists(), "{:?}", names(&store));
    assert_eq!(before, fingerprint(&from), "the source was touched");
}

#[test]
fn a_source_that_cannot_be_read_and_a_place_that_cannot_be_written() {
    let fx = Fixture::open("2.14.5-basic");
    let work = temp();
    let from = work.path().join("from");
    copy_tree(&fx.stores()[0], &from);
    // Root reads everything, but not a directory as a file.
    let block = stream_dir(&from, "$G", "WORK").join("msgs/1.blk");
    fs::remove_file(&block).unwrap();
    fs::create_dir(&block).unwrap();
    let store = work.path().join("store");
    let ran = restore(&fx, &from, &store, &[]).status(1);
    says(&ran, &["WORK"]);
    assert_eq!(
        finished(&store.join("jetstream/$G/streams")).len(),
        on_disk(&fx).len() - 1
    );
    for dest in [
        "/proc/jetsam",
        "/dev/null",
        "/dev/null/x",
        "/proc/self/nowhere/x",
    ] {
        let ran = restore(&fx, &fx.stores()[0], Path::new(dest), &["-s", "EMPTY"]).status(2);
        says(&ran, &[dest.split('/').nth(1).unwrap()]);
    }
    // Something in the way that is no directory.
    let odd = work.path().join("odd");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("jetstream"), "x").unwrap();
    let before = contents(&odd);
    let ran = restore(&fx, &fx.stores()[0], &odd, &["-s", "EMPTY"]).status(2);
    says(&ran, &["jetstream"]);
    assert_eq!(contents(&odd), before);
    assert_eq!(finished(&odd), ["jetstream"]);
    for missing in ["/nowhere", work.path().join("none").to_str().unwrap()] {
        says(
            &restore(&fx, Path::new(missing), &store, &[]).status(2),
            &[missing],
        );
    }
}

// --- hostile archives

/// Tar headers as wanted, right or wrong.
#[derive(Default, Clone)]
struct Tar(Vec<u8>);

impl Tar {
    fn header(mut self, name: &[u8], kind: u8, size: &[u8]) -> Self {
        let mut h = [0u8; 512];
        h[..name.len()].copy_from_slice(name);
        h[100..108].copy_from_slice(b"0000600\0");
        h[108..116].copy_from_slice(b"0000000\0");
        h[116..124].copy_from_slice(b"0000000\0");
        h[124..124 + size.len()].copy_from_slice(size);
        h[136..148].copy_from_slice(b"00000000000\0");
        h[156] = kind;
        if matches!(kind, b'1' | b'2') {
            h[157..168].copy_from_slice(b"/etc/passwd");
        }
        h[257..265].copy_from_slice(b"ustar\x0000");
        h[148..156].copy_from_slice(b"        ");
        let sum: u32 = h.iter().map(|b| u32::from(*b)).sum();
        h[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&h);
        self
    }

    fn body(mut self, body: &[u8]) -> Self {
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn member(self, name: &[u8], kind: u8, body: &[u8]) -> Self {
        let size = format!("{:011o}\0", body.len());
        self.header(name, kind, size.as_bytes()).body(body)
    }

    fn file(self, name: &str, body: &[u8]) -> Self {
        self.member(name.as_bytes(), b'0', body)
    }

    /// A stream of this name with one block of ten messages.
    fn stream(name: &str) -> Self {
        Self::meta(name).file("msgs/1.blk", &block(name, 1, 1, 10, 20))
    }

    fn meta(name: &str) -> Self {
        let inf = meta_inf(&config(name));
        Self::default()
            .file("meta.inf", &inf)
            .file("meta.sum", meta::sum(name, &inf).as_bytes())
    }

    fn consumer(self, stream: &str, dir: &str, name: &str) -> Self {
        let inf = json!({"Created": "2026-01-02T03:04:05Z", "name": name, "durable_name": name,
            "deliver_policy": "all", "ack_policy": "explicit", "replay_policy": "instant", "num_replicas": 0});
        let inf = inf.to_string();
        let sum = meta::sum(&format!("{stream}/{dir}"), inf.as_bytes());
        self.file(&format!("obs/{dir}/meta.inf"), inf.as_bytes())
            .file(&format!("obs/{dir}/meta.sum"), sum.as_bytes())
    }

    fn end(self) -> Vec<u8> {
        let mut raw = self.0;
        raw.extend_from_slice(&[0; 1024]);
        frame(&raw)
    }
}

const MEMORY: &str = "ulimit -v 900000";
const PEAK_KIB: u64 = 300 << 10;

/// What becomes of a hostile archive.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// No verb takes it for sound.
    Refused,
    /// It is not restored; the archive itself may be in order.
    NotRestored,
    /// Something harmless may come of it.
    Harmless,
}

use Fate::{Harmless, NotRestored, Refused};

/// Restores and checks a hostile archive: nothing written outside, little memory, no panic.
///
/// `must` are words of the message that restore refuses it with.
fn hostile(what: &str, archive: &[u8], backup_json: Option<&Value>, must: &[&str], fate: Fate) {
    let work = temp();
    let outside = work.path().join("a/b/c/d");
    fs::create_dir_all(&outside).unwrap();
    let source = work.path().join("source");
    fs::create_dir(&source).unwrap();
    let file = source.join("stream.tar.s2");
    fs::write(&file, archive).unwrap();
    let source = match backup_json {
        Some(json) => {
            fs::write(source.join("backup.json"), json.to_string()).unwrap();
            source
        }
        None => file,
    };
    let before = names(work.path());
    let at = |ran: &Ran| format!("{what}: {}: {:?}: {}", ran.line, ran.status, ran.stderr);
    let run = |args: &[&std::ffi::OsStr]| {
        let j = Jetsam::new().args(args).limited(MEMORY);
        let line = format!("{what}: {:?}", j.command);
        let child = j.spawn();
        let (ran, peak) = wait_and_measure(child, &line);
        assert!(peak < PEAK_KIB, "{what}: {peak} KiB");
        assert!(matches!(ran.status, Some(0..=2)), "{}", at(&ran));
        says(&ran, &[]);
        ran
    };
    let store = outside.join("store");
    let (src, dst) = (source.as_os_str(), store.as_os_str());
    for salvage in [false, true] {
        let mut args = vec!["restore".as_ref(), src, dst];
        if salvage {
            args.push("--salvage".as_ref());
        }
        let ran = run(&args);
        if fate != Harmless && !salvage {
            assert_ne!(ran.status, Some(0), "{}", at(&ran));
            for word in must {
                assert!(
                    ran.stderr.contains(word),
                    "{word:?} is not in the message: {}",
                    at(&ran)
                );
            }
            assert!(!store.exists(), "{}", at(&ran));
        }
        let mut after = names(work.path());
        if ran.status == Some(2) {
            assert_eq!(before, after, "{}", at(&ran));
        }
        after.retain(|n| !n.starts_with("a/b/c/d/store/"));
        assert_eq!(before, after, "{}", at(&ran));
        if store.exists() {
            assert_eq!(finished(&store), ["jetstream"], "{}", at(&ran));
            // Nothing but a stream in an account.
            for name in names(&store) {
                let parts: Vec<&str> = name.trim_end_matches('/').split('/').collect();
                let usual = match parts.as_slice() {
                    ["jetstream"] | ["jetstream", "$G"] | ["jetstream", "$G", "streams"] => true,
                    // Where the archive names none, the directory does.
                    ["jetstream", "$G", "streams", "S" | "source", rest @ ..] => match rest {
                        [] | ["meta.inf" | "meta.sum" | "msgs" | "obs"] => true,
                        ["msgs", f] => f.ends_with(".blk") || *f == "index.db",
                        ["obs", "C"] | ["obs", "C", "meta.inf" | "meta.sum" | "o.dat"] => true,
                        _ => false,
                    },
                    _ => false,
                };
                assert!(usual, "{what}: {name}");
            }
            fs::remove_dir_all(&store).unwrap();
        }
    }
    // As a source of a backup it does no more.
    let backup = outside.join("backup");
    let ran = run(&["backup".as_ref(), src, backup.as_os_str()]);
    assert!(fate != Refused || !backup.exists(), "{}", at(&ran));
    if backup.exists() {
        fs::remove_dir_all(&backup).unwrap();
    }
    assert_eq!(before, names(work.path()), "{}", at(&ran));
    let ran = run(&["check".as_ref(), src]);
    assert!(
        fate != Refused || ran.status != Some(0),
        "{}: {}",
        at(&ran),
        String::from_utf8_lossy(&ran.stdout)
    );
}

fn wait_and_measure(mut child: std::process::Child, line: &str) -> (Ran, u64) {
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let hwm = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        if let Some(kib) = hwm.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()) {
            peak = kib;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    (wait(child, line), peak)
}

#[test]
fn a_sound_archive_of_the_same_make_is_restored() {
    let work = temp();
    let file = work.path().join("S.tar.s2");
    fs::write(&file, Tar::stream("S").consumer("S", "C", "C").end()).unwrap();
    let store = work.path().join("store");
    Jetsam::new()
        .arg("restore")
        .args([&file, &store])
        .run()
        .status(0);
    let ran = Jetsam::new()
        .args(["info", "--json"])
        .arg(&store)
        .run()
        .status(0)
        .json();
    assert_eq!(
        (
            &ran[0]["state"]["messages"],
            &ran[0]["consumers"][0]["name"]
        ),
        (&json!(10), &json!("C"))
    );
    hostile(
        "sound",
        &Tar::stream("S").consumer("S", "C", "C").end(),
        None,
        &[],
        Harmless,
    );
}

#[test]
fn members_that_lead_outside() {
    let evil = b"evil";
    for name in [
        "../evil",
        "msgs/../../evil",
        "obs/../../../../evil",
        "..",
        "a/..",
        "../../../../../../tmp/evil",
    ] {
        hostile(
            name,
            &Tar::stream("S").file(name, evil).end(),
            None,
            &["\"..\""],
            Refused,
        );
    }
    for name in ["/tmp/jetsam-evil", "//etc/jetsam-evil", "/evil"] {
        hostile(
            name,
            &Tar::stream("S").file(name, evil).end(),
            None,
            &[],
            Harmless,
        );
        assert!(!Path::new(name).exists());
    }
    for (kind, word) in [
        (b'1', "hard link"),
        (b'2', "symbolic link"),
        (b'3', "device"),
        (b'4', "device"),
        (b'5', "directory"),
        (b'6', "pipe"),
        (b'7', "unknown kind"),
        (b'S', "sparse"),
    ] {
        hostile(
            word,
            &Tar::stream("S").member(b"msgs/2.blk", kind, b"").end(),
            None,
            &[word],
            Refused,
        );
        hostile(
            word,
            &Tar::stream("S").member(b"obs", kind, b"").end(),
            None,
            &[word],
            Refused,
        );
    }
    let nul = Tar::stream("S")
        .member(b"x", b'L', b"obs/a\0b/meta.inf\0")
        .file("ok", b"");
    hostile("NUL in a long name", &nul.end(), None, &[], Harmless);
    let pax = b"30 path=obs/a\0b/../../../evil\n";
    let nul = Tar::stream("S").member(b"x", b'x', pax).file("ok", b"");
    hostile("NUL in an extended name", &nul.end(), None, &[], Refused);
}

#[test]
fn members_twice_missing_enormous() {
    let inf = meta_inf(&config("S"));
    let twice = Tar::stream("S").file("msgs/1.blk", &block("S", 1, 1, 5, 9));
    hostile(
        "a block twice",
        &twice.end(),
        None,
        &["second member"],
        Refused,
    );
    let twice = Tar::stream("S").file("meta.inf", &inf);
    hostile(
        "meta.inf twice",
        &twice.end(),
        None,
        &["second member"],
        Refused,
    );
    let both = Tar::stream("S").file("msgs/1.blk/x", b"");
    hostile(
        "file and directory",
        &both.end(),
        None,
        &["same name"],
        Refused,
    );
    let blocks = block("S", 1, 1, 10, 20);
    hostile(
        "no meta.inf",
        &Tar::default().file("msgs/1.blk", &blocks).end(),
        None,
        &["meta.inf"],
        Refused,
    );
    let none = Tar::default().file("meta.inf", b"").file("meta.sum", b"");
    hostile("empty meta.inf", &none.end(), None, &["meta.inf"], Refused);
    let bad = Tar::default()
        .file("meta.inf", b"[1,2,")
        .file("msgs/1.blk", &blocks);
    hostile("no JSON", &bad.end(), None, &["meta.inf"], Refused);
    let deep = Tar::default().file("meta.inf", "[".repeat(1 << 20).as_bytes());
    hostile("deep JSON", &deep.end(), None, &["meta.inf"], Refused);
    hostile(
        "no meta.sum",
        &Tar::default().file("meta.inf", &inf).end(),
        None,
        &["meta.sum"],
        Refused,
    );
    let wrong = Tar::default()
        .file("meta.inf", &inf)
        .file("meta.sum", b"0123456789abcdef");
    hostile("wrong meta.sum", &wrong.end(), None, &["meta.sum"], Refused);
    hostile("nothing", &Tar::default().end(), None, &[], Refused);
    hostile("no bytes", b"", None, &[], Refused);
    let mut fat = config("S");
    fat["description"] = "x".repeat(40 << 20).into();
    let inf = meta_inf(&fat);
    let fat = Tar::default()
        .file("meta.inf", &inf)
        .file("meta.sum", meta::sum("S", &inf).as_bytes());
    hostile(
        "enormous meta.inf",
        &fat.end(),
        None,
        &["meta.inf"],
        Refused,
    );
}

#[test]
fn sizes_that_lie() {
    for (size, what) in [
        (&b"77777777777\0"[..], "8 GiB"),
        (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", "2^63-1"),
        (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", "2^64-1"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "-1"),
        (b"not a number", "no number"),
    ] {
        for name in ["msgs/2.blk", "meta.inf", "obs/C/o.dat"] {
            let tar = Tar::stream("S").header(name.as_bytes(), b'0', size);
            hostile(&format!("{name} {what}"), &tar.end(), None, &[], Refused);
        }
        let first = Tar::default()
            .header(b"meta.inf", b'0', size)
            .body(&meta_inf(&config("S")));
        hostile(&format!("first {what}"), &first.end(), None, &[], Refused);
    }
    let pax = Tar::meta("S")
        .member(b"x", b'x', b"30 size=18446744073709551615\n\n")
        .file("msgs/1.blk", b"x");
    hostile("extended size", &pax.end(), None, &[], Refused);
    let short = Tar::stream("S").header(b"msgs/2.blk", b'0', b"00000001000\0");
    hostile("cut", &frame(&short.0), None, &[], Refused);
}

/// Zeros that are `mib` long once they are decoded.
fn zeros(encoder: &mut Encoder, mib: usize, out: &mut Vec<u8>) {
    let mut one = Vec::new();
    encoder.encode_frame(&vec![0; 1 << 20], &mut one).unwrap();
    for _ in 0..mib {
        out.extend_from_slice(&one);
    }
}

#[test]
fn bombs() {
    let big = |name: &str, gib: u64| {
        let size = format!("{:011o}\0", gib << 30);
        let mut encoder = Encoder::new();
        let mut out = b"\xff\x06\x00\x00S2sTwO".to_vec();
        let tar = Tar::stream("S").header(name.as_bytes(), b'0', size.as_bytes());
        encoder.encode_stream(&tar.0, &mut out).unwrap();
        zeros(&mut encoder, (gib << 10) as usize, &mut out);
        encoder.encode_stream(&[0; 1024], &mut out).unwrap();
        out
    };
    for name in [
        "msgs/2.blk",
        "obs/C/o.dat",
        "obs/C/meta.inf",
        "msgs/index.db",
        "errors.txt",
    ] {
        hostile(
            &format!("S2 bomb {name}"),
            &big(name, 2),
            None,
            &[],
            if name == "msgs/index.db" {
                Harmless
            } else {
                Refused
            },
        );
    }
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let tar = Tar::stream("S").header(
        b"msgs/2.blk",
        b'0',
        format!("{:011o}\0", 400u64 << 20).as_bytes(),
    );
    gz.write_all(&tar.0).unwrap();
    for _ in 0..400 {
        gz.write_all(&vec![0; 1 << 20]).unwrap();
    }
    gz.write_all(&[0; 1024]).unwrap();
    hostile("gzip bomb", &gz.finish().unwrap(), None, &[], Refused);
    // Frames that say nothing, without end.
    let mut skip = b"\xff\x06\x00\x00S2sTwO".to_vec();
    skip.extend(b"\x80\x00\x00\x00".repeat(2 << 20));
    hostile("skippable frames", &skip, None, &[], Refused);
    let mut padded = frame(&Tar::stream("S").0);
    padded.extend(b"\xfe\x00\x00\x00".repeat(1 << 20));
    hostile("padding", &padded, None, &[], Refused);
    let again = b"\xff\x06\x00\x00S2sTwO".repeat(200_000);
    hostile("identifiers", &again, None, &[], Refused);
}

#[test]
fn names_of_streams_and_consumers() {
    for name in [
        "../../evil",
        "..",
        ".",
        "a/b",
        "/tmp/evil",
        "a\\b",
        "a.b",
        "a b",
        "",
        "a\0b",
        "a>",
    ] {
        hostile(
            &format!("stream {name:?}"),
            &Tar::stream(name).end(),
            None,
            &[],
            NotRestored,
        );
    }
    let long = "x".repeat(300);
    hostile(
        "a long stream name",
        &Tar::stream(&long).end(),
        None,
        &[],
        NotRestored,
    );
    // `obs/./meta.inf` is a file in obs/, which is no consumer's.
    let tar = Tar::stream("S").consumer("S", ".", "C");
    hostile("consumer .", &tar.end(), None, &[], Harmless);
    for dir in ["..", "../..", "../../../evil"] {
        let tar = Tar::stream("S").consumer("S", dir, "C");
        hostile(&format!("consumer {dir}"), &tar.end(), None, &[], Refused);
    }
    for dir in ["a/b", "a/b/c"] {
        let tar = Tar::stream("S").consumer("S", dir, "C");
        hostile(&format!("consumer {dir}"), &tar.end(), None, &[], Refused);
    }
    // The directory is what counts, not what the configuration says.
    for name in ["../../evil", "a/b", "..", ""] {
        let tar = Tar::stream("S").consumer("S", "C", name);
        hostile(
            &format!("consumer C as {name:?}"),
            &tar.end(),
            None,
            &[],
            Harmless,
        );
    }
}

fn uv(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// An entry of a NATSARC1 archive: lengths as given, not as they are.
fn entry(out: &mut Vec<u8>, lens: [u64; 3], seq: u64, name: &[u8], body: &[u8]) {
    uv(out, lens[0]);
    uv(out, 2_000_000_000_000_000_000);
    uv(out, seq);
    uv(out, lens[1]);
    uv(out, lens[2]);
    out.extend_from_slice(name);
    out.extend_from_slice(body);
}

fn v2(consumers: &[(&str, Value)], state: &Value, more: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = b"NATSARC1".to_vec();
    let put = |out: &mut Vec<u8>, seq, name: &str, body: &[u8]| {
        entry(
            out,
            [name.len() as u64, 0, body.len() as u64],
            seq,
            name.as_bytes(),
            body,
        );
    };
    put(&mut out, 0, "state.json", state.to_string().as_bytes());
    for (name, config) in consumers {
        let body = json!({"config": config, "state": {"delivered": {"consumer_seq": 0, "stream_seq": 0},
            "ack_floor": {"consumer_seq": 0, "stream_seq": 0}}});
        put(
            &mut out,
            0,
            &format!("consumers/{name}"),
            body.to_string().as_bytes(),
        );
    }
    for seq in 1..=5 {
        put(&mut out, seq, "s.1", b"hello");
    }
    more(&mut out);
    out.extend_from_slice(&[0; 5]);
    frame(&out)
}

fn v2_state(consumers: usize) -> Value {
    json!({"messages": 5, "bytes": 0, "first_seq": 1, "first_ts": "2026-01-02T03:04:05Z", "last_seq": 5,
        "last_ts": "2026-01-02T03:04:05Z", "consumer_count": consumers})
}

#[test]
fn archives_of_the_new_kind() {
    let backup = json!({"config": config("S"), "state": v2_state(0)});
    let consumer = |name: &str| json!({"name": name, "durable_name": name, "deliver_policy": "all", "ack_policy": "explicit", "replay_policy": "instant"});
    let sound = v2(&[("C", consumer("C"))], &v2_state(1), |_| {});
    hostile("sound v2", &sound, Some(&backup), &[], Harmless);
    let work = temp();
    fs::create_dir(work.path().join("b")).unwrap();
    fs::write(work.path().join("b/stream.tar.s2"), &sound).unwrap();
    fs::write(work.path().join("b/backup.json"), backup.to_string()).unwrap();
    Jetsam::new()
        .arg("restore")
        .args([work.path().join("b"), work.path().join("store")])
        .run()
        .status(0);

    for name in [
        "../../evil",
        "..",
        ".",
        "a/b",
        "/tmp/evil",
        "a\0b",
        "",
        &"x".repeat(300),
    ] {
        let archive = v2(&[(name, consumer(name))], &v2_state(1), |_| {});
        hostile(
            &format!("v2 consumer {name:?}"),
            &archive,
            Some(&backup),
            &[],
            NotRestored,
        );
        let archive = v2(&[("C", consumer(name))], &v2_state(1), |_| {});
        hostile(
            &format!("v2 consumer C as {name:?}"),
            &archive,
            Some(&backup),
            &[],
            if name.is_empty() {
                Harmless
            } else {
                NotRestored
            },
        );
    }
    let twice = v2(
        &[("C", consumer("C")), ("C", consumer("C"))],
        &v2_state(2),
        |_| {},
    );
    hostile("v2 consumer twice", &twice, Some(&backup), &[], Harmless);
    let work = temp();
    fs::create_dir(work.path().join("b")).unwrap();
    fs::write(work.path().join("b/stream.tar.s2"), &twice).unwrap();
    fs::write(work.path().join("b/backup.json"), backup.to_string()).unwrap();
    let ran = Jetsam::new()
        .arg("restore")
        .args([work.path().join("b"), work.path().join("store")])
        .run()
        .status(2);
    says(&ran, &["two of that name", "\"C\""]);

    let near = [u64::MAX, (1 << 63) - 1, 1 << 40];
    for n in near {
        for lens in [[n, 0, 1], [3, n, 1], [3, 0, n], [3, n, n], [n, n, n]] {
            let archive = v2(&[], &v2_state(0), |out| entry(out, lens, 6, b"s.1", b"x"));
            hostile(
                &format!("v2 message {lens:?}"),
                &archive,
                Some(&backup),
                &[],
                Refused,
            );
            let mut raw = b"NATSARC1".to_vec();
            entry(&mut raw, lens, 0, b"state.json", b"{}");
            hostile(
                &format!("v2 first {lens:?}"),
                &frame(&raw),
                Some(&backup),
                &[],
                Refused,
            );
        }
    }
    for (what, state) in [
        (
            "more messages",
            json!({"messages": u64::MAX, "first_seq": 1, "last_seq": 5, "consumer_count": 0}),
        ),
        (
            "less messages",
            json!({"messages": 1, "first_seq": 1, "last_seq": 5, "consumer_count": 0}),
        ),
        (
            "first behind last",
            json!({"messages": 5, "first_seq": 9, "last_seq": 5, "consumer_count": 0}),
        ),
        (
            "consumers",
            json!({"messages": 5, "first_seq": 1, "last_seq": 5, "consumer_count": 1u64 << 60}),
        ),
        ("no object", json!([1])),
    ] {
        hostile(what, &v2(&[], &state, |_| {}), Some(&backup), &[], Refused);
    }
    let back = v2(&[], &v2_state(0), |out| {
        entry(out, [3, 0, 1], 2, b"s.1", b"x")
    });
    hostile("a sequence again", &back, Some(&backup), &[], Refused);
    let nul = v2(&[], &v2_state(0), |out| {
        entry(out, [4, 0, 1], 6, b"s.\0x", b"x")
    });
    hostile("a subject with NUL", &nul, Some(&backup), &[], Harmless);
    // The name comes from backup.json here.
    for name in ["../../evil", "a/b", ".."] {
        let backup = json!({"config": config(name), "state": v2_state(0)});
        hostile(
            &format!("v2 stream {name:?}"),
            &v2(&[], &v2_state(0), |_| {}),
            Some(&backup),
            &[],
            Harmless,
        );
        let work = temp();
        fs::create_dir(work.path().join("b")).unwrap();
        fs::write(
            work.path().join("b/stream.tar.s2"),
            v2(&[], &v2_state(0), |_| {}),
        )
        .unwrap();
        fs::write(work.path().join("b/backup.json"), backup.to_string()).unwrap();
        let ran = Jetsam::new()
            .arg("restore")
            .args([work.path().join("b"), work.path().join("store")])
            .run()
            .status(2);
        says(&ran, &["no name that servers take"]);
    }
}
