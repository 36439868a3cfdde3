//! `config show` and `config backup` against what servers said and what the `nats` CLI's library wrote, and the
//! file that `--metrics` writes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use common::{Differences, Fixture, Jetsam, copy_tree, fingerprint, fixture_names, read_json};
use jetsam::format::config_backup::{self, ConfigBackup, Configuration};
use jetsam::format::meta;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A configuration as the API gave it, without what a server adds to its answers (see `tests/truth.rs`).
fn stored(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("_nats.ver");
        metadata.remove("_nats.level");
        if metadata.is_empty() {
            config.as_object_mut().unwrap().remove("metadata");
        }
    }
    config
}

/// By account and stream, in the form of `config show --json`: what the API said.
fn truth(fx: &Fixture, store: &Path) -> BTreeMap<(String, String), Value> {
    let mut all = BTreeMap::new();
    for (account, streams) in fx.truth["accounts"].as_object().unwrap() {
        for (name, truth) in streams.as_object().unwrap() {
            let on_one_node_only = fx.is_cluster() && name == "LOCAL";
            let dir = store
                .join("jetstream")
                .join(account)
                .join("streams")
                .join(name);
            if truth["config"]["storage"] == "memory" || (on_one_node_only && !dir.is_dir()) {
                continue;
            }
            let mut consumers: Vec<Value> = truth["consumers"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, info)| json!({ "name": name, "config": info["config"] }))
                .collect();
            consumers.sort_by_key(|c| c["name"].as_str().unwrap().to_owned());
            let value = json!({
                "account": account, "stream": name,
                "config": stored(&truth["config"]), "consumers": consumers,
            });
            all.insert((account.clone(), name.clone()), value);
        }
    }
    assert!(!all.is_empty());
    all
}

fn show(fx: &Fixture, source: &Path) -> BTreeMap<(String, String), Value> {
    let ran = fx
        .jetsam()
        .args(["config", "show", "--json"])
        .arg(source)
        .run()
        .status(0);
    let all = ran.json();
    let mut found = BTreeMap::new();
    for mut s in all.as_array().unwrap().iter().cloned() {
        // NATSARC1 archives have them in no order.
        let consumers = s["consumers"].as_array_mut().unwrap();
        consumers.sort_by_key(|c| c["name"].as_str().unwrap().to_owned());
        let text = |key: &str| s[key].as_str().unwrap().to_owned();
        let before = found.insert((text("account"), text("stream")), s);
        assert!(before.is_none());
    }
    found
}

fn compare(
    what: &str,
    got: &BTreeMap<(String, String), Value>,
    want: &BTreeMap<(String, String), Value>,
) {
    let mut out = Differences::default();
    assert!(
        got.keys().eq(want.keys()),
        "{what}: {:?} but the truth is {:?}",
        got.keys(),
        want.keys()
    );
    for (key, want) in want {
        let consumers = |v: &Value| v["consumers"].as_array().unwrap().clone();
        let (g, w) = (consumers(&got[key]), consumers(want));
        out.json(
            &format!("{key:?} config"),
            &got[key]["config"],
            &want["config"],
        );
        let names = |c: &[Value]| c.iter().map(|c| c["name"].clone()).collect::<Vec<_>>();
        assert_eq!(names(&g), names(&w), "{what} {key:?}");
        for (g, w) in g.iter().zip(&w) {
            out.json(&format!("{key:?} > {}", w["name"]), g, w);
        }
    }
    out.none(what);
}

/// Whether a consumer is one that a server makes for itself and nobody backs up.
fn is_internal(consumer: &Value) -> bool {
    consumer["config"]["sourcing"] == true || consumer["config"]["direct"] == true
}

fn without_internal(
    mut all: BTreeMap<(String, String), Value>,
) -> BTreeMap<(String, String), Value> {
    for s in all.values_mut() {
        s["consumers"]
            .as_array_mut()
            .unwrap()
            .retain(|c| !is_internal(c));
    }
    all
}

/// A copy with no account where only one was selected: the files do not tell it then.
fn as_in_files(all: BTreeMap<(String, String), Value>) -> BTreeMap<(String, String), Value> {
    let accounts: std::collections::BTreeSet<_> = all.keys().map(|k| k.0.clone()).collect();
    if accounts.len() > 1 {
        return all;
    }
    all.into_iter()
        .map(|((_, name), v)| ((String::new(), name), v))
        .collect()
}

#[test]
fn show_gives_what_the_api_gave() {
    for name in fixture_names("stores") {
        let fx = Fixture::open(&name);
        for store in fx.stores() {
            compare(&name, &show(&fx, &store), &truth(&fx, &store));
        }
    }
}

#[test]
fn plain_files_hold_what_the_api_gave() {
    for name in fixture_names("stores") {
        let fx = Fixture::open(&name);
        let store = &fx.stores()[0];
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("config");
        let ran = fx
            .jetsam()
            .args(["config", "backup", "--plain"])
            .arg(store)
            .arg(&dest)
            .run()
            .status(0);
        assert_eq!(
            ran.stderr.contains("plaintext"),
            fx.key().is_some(),
            "{name}: {}",
            ran.stderr
        );
        let want = as_in_files(without_internal(truth(&fx, store)));
        compare(&name, &show(&fx, &dest), &want);
        // Each file by itself, read by nothing of jetsam's.
        for ((account, stream), want) in &want {
            let base = dest.join(account);
            let config = read_json(&base.join(format!("stream_{stream}.json")));
            let mut out = Differences::default();
            out.json(stream, &config, &want["config"]);
            for c in want["consumers"].as_array().unwrap() {
                let consumer = c["name"].as_str().unwrap();
                let file = base.join(format!("stream_{stream}_consumer_{consumer}.json"));
                out.json(consumer, &read_json(&file), &c["config"]);
            }
            out.none(&name);
        }
    }
}

/// What is set in `want` and how it is in `got`: the checksummed form leaves out what is zero.
fn keeps_what_is_set(path: &str, got: &Value, want: &Value, out: &mut Differences) {
    let (Some(got), Some(want)) = (got.as_object(), want.as_object()) else {
        return out.json(path, got, want);
    };
    for (key, want) in want {
        let zero = match want {
            Value::Object(o) => o.is_empty(),
            Value::Array(a) => a.is_empty(),
            v => [
                json!(false),
                json!(0),
                json!(""),
                json!("none"),
                json!("default"),
            ]
            .contains(v),
        };
        match got.get(key) {
            Some(got) if want.is_object() => {
                keeps_what_is_set(&format!("{path}.{key}"), got, want, out)
            }
            Some(got) => out.json(&format!("{path}.{key}"), got, want),
            None if zero => {}
            None => out.add(format!("{path}.{key}: missing, the truth is {want}")),
        }
    }
}

#[test]
fn checksummed_files_keep_what_is_set() {
    for name in fixture_names("stores") {
        let fx = Fixture::open(&name);
        let store = &fx.stores()[0];
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("config");
        fx.jetsam()
            .args(["config", "backup"])
            .arg(store)
            .arg(&dest)
            .run()
            .status(0);
        let want = as_in_files(without_internal(truth(&fx, store)));
        let got = show(&fx, &dest);
        assert!(got.keys().eq(want.keys()), "{name}");
        let mut out = Differences::default();
        for (key, want) in &want {
            keeps_what_is_set(&key.1, &got[key]["config"], &want["config"], &mut out);
            let consumers = |v: &Value| v["consumers"].as_array().unwrap().clone();
            let (g, w) = (consumers(&got[key]), consumers(want));
            assert_eq!(g.len(), w.len(), "{name} {key:?}");
            for (g, w) in g.iter().zip(&w) {
                keeps_what_is_set(&key.1, g, w, &mut out);
            }
        }
        out.none(&name);
    }
}

#[test]
fn archives_and_backup_directories_give_the_same() {
    for name in [
        "2.2.6-basic",
        "2.9.25-accounts",
        "2.14.5-aes-basic",
        "2.15.2-new",
    ] {
        let fx = Fixture::open(name);
        let store = &fx.stores()[0];
        let dir = tempfile::tempdir().unwrap();
        let mut all = 0;
        for ((account, stream), want) in truth(&fx, store) {
            let snapshots = fx.dir.join("snapshots").join(&account);
            let archive = snapshots.join(format!("{stream}.tar.s2"));
            let reply = read_json(&snapshots.join(format!("{stream}.json")));
            let want = BTreeMap::from([((String::new(), stream.clone()), want)]);
            let backup = dir.path().join(&account).join(&stream);
            fs::create_dir_all(&backup).unwrap();
            fs::copy(&archive, backup.join("stream.tar.s2")).unwrap();
            let reply = json!({ "config": reply["config"], "state": reply["state"] });
            fs::write(backup.join("backup.json"), reply.to_string()).unwrap();
            let mut got = show(&fx, &backup);
            // 2.15's reply has the server's additions in it.
            for s in got.values_mut() {
                s["config"] = stored(&s["config"]);
            }
            compare(&format!("{name} {stream}"), &got, &want);
            if fx.version() < (2, 15, 0) {
                compare(
                    &format!("{name} {stream}.tar.s2"),
                    &show(&fx, &archive),
                    &want,
                );
            } else {
                // It holds no configuration: that is told, and nothing is written.
                let ran = fx
                    .jetsam()
                    .args(["config", "show"])
                    .arg(&archive)
                    .run()
                    .status(1);
                assert!(ran.stderr.contains("meta_missing"), "{}", ran.stderr);
                let dest = dir.path().join("none");
                fx.jetsam()
                    .args(["config", "backup"])
                    .arg(&archive)
                    .arg(&dest)
                    .run()
                    .status(1);
                assert!(!dest.exists());
            }
            all += 1;
        }
        assert!(all >= 3, "{name}");
    }
}

/// The files that jsm.go 0.0.35 made of the configurations that servers gave.
fn made_by_the_cli() -> Vec<Value> {
    let packed =
        fs::read(common::fixtures_dir().join("vectors/archive/cli-config-backup.jsonl.gz"))
            .unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed.as_slice())
        .read_to_string(&mut text)
        .unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn files_are_byte_for_byte_those_of_the_cli() {
    let cases = made_by_the_cli();
    let mut compared = [0; 2];
    for name in ["2.2.6-basic", "2.9.25-basic", "2.9.25-cluster"] {
        let fx = Fixture::open(name);
        let store = &fx.stores()[0];
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("config");
        fx.jetsam()
            .args(["config", "backup", "-a", "$G"])
            .arg(store)
            .arg(&dest)
            .run()
            .status(0);
        for ((_, stream), truth) in truth(&fx, store) {
            let mut check = |config: &Value, file: String, kind: usize| {
                let ours = fs::read_to_string(dest.join(&file)).unwrap();
                let time = serde_json::from_str::<Value>(&ours).unwrap()["time"].clone();
                let time = time.as_str().unwrap();
                assert_eq!((time.len(), time.as_bytes()[19]), (20, b'Z'), "{time}");
                let same = |c: &&Value| {
                    c["config"] == *config
                        && match kind {
                            0 => c["kind"] == "stream",
                            _ => {
                                format!(
                                    "stream_{}_consumer_{}.json",
                                    c["stream"].as_str().unwrap(),
                                    c["name"].as_str().unwrap()
                                ) == file
                            }
                        }
                };
                let Some(case) = cases.iter().find(same) else {
                    return;
                };
                let theirs = case["file"].as_str().unwrap();
                assert_eq!(
                    ours.replace(time, "2022-06-01T10:20:30Z"),
                    theirs,
                    "{name} {file}"
                );
                compared[kind] += 1;
            };
            check(&truth["config"], format!("stream_{stream}.json"), 0);
            for c in truth["consumers"].as_array().unwrap() {
                let file = format!(
                    "stream_{stream}_consumer_{}.json",
                    c["name"].as_str().unwrap()
                );
                check(&c["config"], file, 1);
            }
        }
    }
    assert!(compared[0] >= 20 && compared[1] >= 8, "{compared:?}");
}

#[test]
fn a_directory_that_the_cli_wrote_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let cases = made_by_the_cli();
    let mut streams: BTreeMap<String, &Value> = BTreeMap::new();
    let mut consumers = Vec::new();
    for case in &cases {
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        let name = if case["kind"] == "stream" {
            let name = text(&case["config"]["name"]);
            streams.insert(name.clone(), &case["config"]);
            format!("stream_{name}.json")
        } else {
            consumers.push((text(&case["stream"]), text(&case["name"]), &case["config"]));
            format!(
                "stream_{}_consumer_{}.json",
                text(&case["stream"]),
                text(&case["name"])
            )
        };
        fs::write(dir.path().join(name), case["file"].as_str().unwrap()).unwrap();
    }
    // The CLI put these there too when it was asked for data.
    fs::write(dir.path().join("backup.json"), "{}").unwrap();
    consumers.retain(|c| streams.contains_key(&c.0));
    let ran = Jetsam::new()
        .args(["config", "show", "--json"])
        .arg(dir.path())
        .run();
    // S has consumers and no configuration.
    let ran = ran.status(1);
    assert!(
        ran.stderr.contains("S: config_backup: consumers without"),
        "{}",
        ran.stderr
    );
    let mut got = ran.json().as_array().unwrap().clone();
    got.retain(|s| s["stream"] != "S");
    assert_eq!(got.len(), streams.len());
    let mut out = Differences::default();
    let mut seen = 0;
    for s in &got {
        let name = s["stream"].as_str().unwrap();
        keeps_what_is_set(name, &s["config"], streams[name], &mut out);
        for c in s["consumers"].as_array().unwrap() {
            let of = |w: &&(String, String, &Value)| w.0 == name && c["name"] == json!(w.1);
            let want = consumers.iter().find(of).unwrap();
            keeps_what_is_set(&want.1, &c["config"], want.2, &mut out);
            seen += 1;
        }
    }
    assert_eq!(seen, consumers.len());
    assert!(seen >= 8);
    out.none("the CLI's directory");
}

/// The files below `dir`, relative to it.
fn names(dir: &Path) -> Vec<String> {
    let mut found: Vec<String> = fingerprint(dir)
        .keys()
        .filter(|p| p.is_file())
        .map(|p| p.strip_prefix(dir).unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    found
}

fn backed_up(name: &str, more: &[&str]) -> (tempfile::TempDir, PathBuf, Fixture) {
    let fx = Fixture::open(name);
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("config");
    fx.jetsam()
        .args(["config", "backup"])
        .args(more)
        .arg(&fx.stores()[0])
        .arg(&dest)
        .run()
        .status(0);
    (dir, dest, fx)
}

#[test]
fn accounts_have_directories_where_there_are_several() {
    let (_keep, dest, fx) = backed_up("2.12.15-accounts", &[]);
    let both = [
        "ACME/stream_EVENTS.json",
        "ACME/stream_EVENTS_consumer_TAIL.json",
        "ACME/stream_ONLY_A.json",
        "BETA/stream_EVENTS.json",
        "BETA/stream_EVENTS_consumer_TAIL.json",
    ];
    assert_eq!(names(&dest), both);
    let (_keep, one, _) = backed_up("2.12.15-accounts", &["-a", "ACME"]);
    assert_eq!(
        names(&one),
        [
            "stream_EVENTS.json",
            "stream_EVENTS_consumer_TAIL.json",
            "stream_ONLY_A.json"
        ]
    );
    let (_keep, few, _) = backed_up("2.12.15-accounts", &["-s", "EVENTS", "-c", "NONE"]);
    assert_eq!(
        names(&few),
        ["ACME/stream_EVENTS.json", "BETA/stream_EVENTS.json"]
    );
    // The same selection of what was written, and a copy of it.
    let ran = fx
        .jetsam()
        .args(["config", "show", "--json", "-a", "BETA"])
        .arg(&dest)
        .run()
        .status(0);
    assert_eq!(ran.json().as_array().unwrap().len(), 1);
    fx.jetsam()
        .args(["config", "show", "-a", "NONE"])
        .arg(&dest)
        .run()
        .status(2);
    let again = few.with_file_name("again");
    fx.jetsam()
        .args(["config", "backup"])
        .arg(&dest)
        .arg(&again)
        .run()
        .status(0);
    for name in both {
        let configuration = |dir: &Path| read_json(&dir.join(name))["configuration"].clone();
        assert_eq!(configuration(&dest), configuration(&again));
    }
}

#[test]
fn a_wrong_checksum_is_a_finding() {
    let (_keep, dest, fx) = backed_up("2.14.5-basic", &[]);
    let file = dest.join("stream_ORDERS_consumer_NEW.json");
    let text = fs::read_to_string(&file).unwrap();
    let sum = read_json(&file)["checksum"].as_str().unwrap().to_owned();
    let mut wrong = sum.clone().into_bytes();
    wrong[7] ^= 1;
    fs::write(
        &file,
        text.replace(&sum, std::str::from_utf8(&wrong).unwrap()),
    )
    .unwrap();
    let ran = fx
        .jetsam()
        .args(["config", "show", "--json"])
        .arg(&dest)
        .run()
        .status(1);
    assert!(
        ran.stderr.contains("stream_ORDERS_consumer_NEW.json"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("checksum"), "{}", ran.stderr);
    let all = ran.json();
    let orders = all
        .as_array()
        .unwrap()
        .iter()
        .find(|s| s["stream"] == "ORDERS")
        .unwrap();
    let left: Vec<_> = orders["consumers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].clone())
        .collect();
    assert_eq!(left, ["ALL", "NOACK", "PUSH", "UNUSED"]);
    // The rest is still written, and what is not is told.
    let again = dest.with_file_name("again");
    let ran = fx
        .jetsam()
        .args(["config", "backup"])
        .arg(&dest)
        .arg(&again)
        .run()
        .status(1);
    assert!(
        ran.stderr.contains("stream_ORDERS_consumer_NEW.json"),
        "{}",
        ran.stderr
    );
    let mut want = names(&dest);
    want.retain(|n| n != "stream_ORDERS_consumer_NEW.json");
    assert_eq!(names(&again), want);
}

#[test]
fn what_is_no_configuration_is_told() {
    let (_keep, dest, fx) = backed_up("2.14.5-basic", &["-s", "WORK", "--plain"]);
    for (name, text) in [
        ("stream_A.json", "{\"name\":\"A\"".to_owned()),
        ("stream_B.json", "[]".to_owned()),
        ("stream_C.json", "{\"name\":\"X\"}".to_owned()),
        (
            "stream_WORK_consumer_Y.json",
            "{\"durable_name\":\"X\"}".to_owned(),
        ),
    ] {
        fs::write(dest.join(name), text).unwrap();
        let ran = fx
            .jetsam()
            .args(["config", "show", "--json"])
            .arg(&dest)
            .run()
            .status(1);
        assert!(
            ran.stderr.contains(&format!("{name}: config_backup")),
            "{}",
            ran.stderr
        );
        let ran = ran.json();
        assert_eq!(
            (ran.as_array().unwrap().len(), &ran[0]["stream"]),
            (1, &json!("WORK"))
        );
        fs::remove_file(dest.join(name)).unwrap();
    }
    std::os::unix::fs::symlink("stream_WORK.json", dest.join("stream_L.json")).unwrap();
    let ran = fx
        .jetsam()
        .args(["config", "show"])
        .arg(&dest)
        .run()
        .status(1);
    assert!(
        ran.stderr.contains("stream_L.json: not_a_file"),
        "{}",
        ran.stderr
    );
    assert!(!String::from_utf8_lossy(&ran.stdout).contains("Stream L"));
    // Another name: what is in it counts.
    let (_keep, dest, fx) = backed_up("2.14.5-basic", &["-s", "WORK"]);
    fs::rename(
        dest.join("stream_WORK.json"),
        dest.join("stream_OTHER.json"),
    )
    .unwrap();
    let ran = fx
        .jetsam()
        .args(["config", "show", "--json"])
        .arg(&dest)
        .run()
        .status(0);
    assert_eq!(ran.json()[0]["config"]["name"], "WORK");
    assert!(ran.stderr.contains("renamed"), "{}", ran.stderr);
}

#[test]
fn an_encrypted_store_needs_its_key() {
    let fx = Fixture::open("2.14.5-aes-basic");
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("config");
    for key in [None, Some("wrong")] {
        for args in [vec!["config", "show"], vec!["config", "backup"]] {
            let mut jetsam = Jetsam::new().args(&args).arg(&fx.stores()[0]);
            if args[1] == "backup" {
                jetsam = jetsam.arg(&dest);
            }
            if let Some(key) = key {
                jetsam.command.env("JETSAM_KEY", key);
            }
            jetsam.run().status(4);
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn nothing_is_replaced_and_nothing_goes_into_the_source() {
    let fx = Fixture::open("2.14.5-basic");
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    copy_tree(&fx.stores()[0], &store);
    let dest = dir.path().join("config");
    let run = |dest: &Path| {
        fx.jetsam()
            .args(["config", "backup"])
            .arg(&store)
            .arg(dest)
            .run()
    };
    fs::create_dir(&dest).unwrap();
    fs::write(dest.join("mine"), "1").unwrap();
    let before = fingerprint(&store);
    assert!(run(&dest).status(2).stderr.contains("not empty"));
    assert_eq!(names(&dest), ["mine"]);
    assert!(
        run(&store.join("config"))
            .status(2)
            .stderr
            .contains("inside of the source")
    );
    fs::remove_file(dest.join("mine")).unwrap();
    run(&dest).status(0);
    assert_eq!(before, fingerprint(&store));
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        2,
        "something else was left"
    );
}

/// A directory with checksummed configurations of streams (and one consumer each, if named).
fn made(dir: &Path, streams: &[(&str, &[&str])]) {
    fs::create_dir(dir).unwrap();
    let put = |n: usize, configuration| {
        let time = "2026-01-01T00:00:00Z".to_owned();
        let file = config_backup::encode(&ConfigBackup {
            time,
            configuration,
        });
        fs::write(dir.join(format!("stream_{n}.json")), file).unwrap();
    };
    let map = |v: Value| -> Map<String, Value> { v.as_object().unwrap().clone() };
    let mut n = 0;
    for (stream, consumers) in streams {
        put(n, Configuration::stream(&map(json!({ "name": stream }))));
        n += 1;
        for c in *consumers {
            let config = map(json!({ "durable_name": c, "name": c }));
            put(n, Configuration::consumer(stream, c, &config));
            n += 1;
        }
    }
}

#[test]
fn names_that_are_no_file_names_are_refused() {
    let long = "x".repeat(200);
    type Case<'a> = (&'a [(&'a str, &'a [&'a str])], &'a str);
    let cases: &[Case<'_>] = &[
        (&[("../../up", &[])], "stream \"../../up\""),
        (&[("a/b", &[])], "stream \"a/b\""),
        (&[("a\\b", &[])], "stream"),
        (&[("a\u{1b}[2Jb", &[])], "stream"),
        (&[("A", &["c/d"])], "consumer \"c/d\""),
        (&[(&long, &[&long])], "consumer"),
        // stream_A_consumer_B_consumer_C.json is either's.
        (
            &[("A", &["B_consumer_C"]), ("A_consumer_B", &["C"])],
            "two configurations",
        ),
        (
            &[("A_consumer_B", &[]), ("A", &["B"])],
            "two configurations",
        ),
    ];
    for (streams, why) in cases {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        made(&source, streams);
        let dest = dir.path().join("config");
        let ran = Jetsam::new()
            .args(["config", "backup", "-q"])
            .arg(&source)
            .arg(&dest)
            .run()
            .status(2);
        assert!(
            ran.stderr.contains(why) && ran.stderr.contains("nothing was written"),
            "{}",
            ran.stderr
        );
        assert!(!ran.stderr.contains('\u{1b}'));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        Jetsam::new()
            .args(["config", "show"])
            .arg(&source)
            .run()
            .status(0);
    }
    // The same where names are fit.
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    made(&source, &[("A b.c", &["d é"])]);
    let dest = dir.path().join("config");
    Jetsam::new()
        .args(["config", "backup"])
        .arg(&source)
        .arg(&dest)
        .run()
        .status(0);
    assert_eq!(
        names(&dest),
        ["stream_A b.c.json", "stream_A b.c_consumer_d é.json"]
    );
}

/// Changes a `meta.inf` and its sum.
fn change(dir: &Path, key: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    let mut map = read_json(&dir.join("meta.inf"))
        .as_object()
        .unwrap()
        .clone();
    change(&mut map);
    let inf = meta::go_json(&map.into());
    fs::write(dir.join("meta.sum"), meta::sum(key, &inf)).unwrap();
    fs::write(dir.join("meta.inf"), inf).unwrap();
}

#[test]
fn plain_files_have_no_key_that_servers_refuse() {
    let fx = Fixture::open("2.14.5-basic");
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    copy_tree(&fx.stores()[0], &store);
    let work = store.join("jetstream/$G/streams/WORK");
    change(&work, "WORK", |m| {
        m.insert("template_owner".into(), json!("T"));
        m.insert("odd".into(), json!(1));
    });
    change(&work.join("obs/WORKER"), "WORK/WORKER", |m| {
        m.insert("strange".into(), json!([1]));
    });
    let dest = dir.path().join("config");
    let ran = fx
        .jetsam()
        .args(["config", "backup", "--plain"])
        .arg(&store)
        .arg(&dest)
        .run()
        .status(0);
    for what in [
        "stream WORK: odd",
        "stream WORK: template_owner",
        "consumer WORK > WORKER: strange",
    ] {
        assert!(
            ran.stderr.contains(&format!("{what}: left out")),
            "{what}: {}",
            ran.stderr
        );
    }
    let truth = &fx.truth["accounts"]["$G"]["WORK"];
    let mut out = Differences::default();
    out.json(
        "WORK",
        &read_json(&dest.join("stream_WORK.json")),
        &stored(&truth["config"]),
    );
    let consumer = read_json(&dest.join("stream_WORK_consumer_WORKER.json"));
    out.json("WORKER", &consumer, &truth["consumers"]["WORKER"]["config"]);
    out.none("plain");
}

#[test]
fn what_cannot_be_proven_is_not_written() {
    let fx = Fixture::open("2.14.5-basic");
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    copy_tree(&fx.stores()[0], &store);
    let streams = store.join("jetstream/$G/streams");
    for sum in ["WORK/meta.sum", "ORDERS/obs/PUSH/meta.sum"] {
        fs::write(streams.join(sum), "0123456789abcdef").unwrap();
    }
    // Damage to messages is no concern of this verb.
    fs::write(streams.join("BLOCKS/msgs/index.db"), "damaged").unwrap();
    let dest = dir.path().join("config");
    let ran = fx
        .jetsam()
        .args(["config", "backup"])
        .arg(&store)
        .arg(&dest)
        .run()
        .status(1);
    assert!(
        ran.stderr.contains("stream WORK: not backed up"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("consumer ORDERS > PUSH: not backed up"),
        "{}",
        ran.stderr
    );
    assert!(!ran.stderr.contains("BLOCKS"), "{}", ran.stderr);
    let got = names(&dest);
    assert!(
        !got.iter().any(|n| n.contains("WORK") || n.contains("PUSH")),
        "{got:?}"
    );
    assert_eq!(got.len(), 9 + 2 + 4);
    // It is shown all the same.
    let ran = fx
        .jetsam()
        .args(["config", "show", "-s", "WORK"])
        .arg(&store)
        .run()
        .status(1);
    assert!(String::from_utf8_lossy(&ran.stdout).contains("work.*"));
    // What is not asked for is no concern either.
    let some = dir.path().join("some");
    let select = ["config", "backup", "-s", "ORDERS", "-c", "NEW"];
    fx.jetsam()
        .args(select)
        .arg(&store)
        .arg(&some)
        .run()
        .status(0);
    assert_eq!(names(&some).len(), 2);
    // A configuration beside a store does not hide it.
    fs::write(store.join("stream_X.json"), r#"{"name":"X"}"#).unwrap();
    let ran = fx.jetsam().args(["config", "show", "--json"]);
    let ran = ran.arg(&store).run().status(1);
    assert_eq!(ran.json().as_array().unwrap().len(), 10);
    fx.jetsam().arg("check").arg(&store).run().status(1);
    // Nothing at all: no directory.
    let none = dir.path().join("none");
    fx.jetsam()
        .args(["config", "backup", "-s", "WORK"])
        .arg(&store)
        .arg(&none)
        .run()
        .status(1);
    assert!(!none.exists());
}

#[test]
fn show_for_people() {
    let fx = Fixture::open("2.14.5-basic");
    let ran = fx
        .jetsam()
        .args(["config", "show", "-s", "ORDERS"])
        .arg(&fx.stores()[0])
        .run()
        .status(0);
    let text = String::from_utf8(ran.stdout).unwrap();
    for line in [
        "Stream ORDERS in account $G",
        "orders of the shop",
        "orders.new.>",
        "push to push.orders",
        "by_start_sequence 100",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    for consumer in fx.truth["accounts"]["$G"]["ORDERS"]["consumers"]
        .as_object()
        .unwrap()
        .keys()
    {
        assert!(
            text.lines().any(|l| l.starts_with(&format!("{consumer} "))),
            "{consumer}: {text}"
        );
    }
}

/// A sample: name, labels, value.
type Sample = (String, BTreeMap<String, String>, f64);

/// Parses the text format, line by line; every metric must have its help and type before it.
fn parse(text: &str) -> Vec<Sample> {
    assert!(text.ends_with('\n'));
    let mut samples = Vec::new();
    let (mut help, mut kind) = (None, None);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').unwrap();
            assert!(!words.is_empty());
            help = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, of) = rest.split_once(' ').unwrap();
            assert_eq!(of, "gauge");
            kind = Some(name.to_owned());
        } else {
            let (name, rest) = line.split_once('{').unwrap();
            assert_eq!(
                (help.as_deref(), kind.as_deref()),
                (Some(name), Some(name)),
                "{line}"
            );
            let mut labels = BTreeMap::new();
            let mut rest = rest.chars();
            'labels: loop {
                let key: String = rest.by_ref().take_while(|c| *c != '=').collect();
                assert!(key.bytes().all(|b| b.is_ascii_lowercase()), "{line}");
                assert_eq!(rest.next(), Some('"'));
                let mut value = String::new();
                loop {
                    match rest.next().unwrap() {
                        '"' => break,
                        '\\' => value.push(match rest.next().unwrap() {
                            'n' => '\n',
                            c @ ('"' | '\\') => c,
                            c => panic!("\\{c} in {line}"),
                        }),
                        c => value.push(c),
                    }
                }
                assert!(labels.insert(key, value).is_none());
                match rest.next().unwrap() {
                    ',' => {}
                    '}' => break 'labels,
                    c => panic!("{c} in {line}"),
                }
            }
            let value = rest.as_str().strip_prefix(' ').unwrap().parse().unwrap();
            samples.push((name.to_owned(), labels, value));
        }
    }
    samples
}

/// The values by name without the prefix; all must be of this verb and source.
fn metrics(file: &Path, verb: &str, source: &str) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for (name, labels, value) in parse(&fs::read_to_string(file).unwrap()) {
        let want = BTreeMap::from([
            ("verb".to_owned(), verb.to_owned()),
            ("source".to_owned(), source.to_owned()),
        ]);
        assert_eq!(labels, want);
        let name = name.strip_prefix("jetsam_last_run_").unwrap().to_owned();
        assert!(all.insert(name, value).is_none());
    }
    let names: Vec<_> = all.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "bytes",
            "duration_seconds",
            "end_time_seconds",
            "findings",
            "streams",
            "success"
        ]
    );
    all
}

#[test]
fn metrics_say_how_the_last_run_went() {
    let fx = Fixture::open("2.14.5-basic");
    let dir = tempfile::tempdir().unwrap();
    // A name that has to be escaped.
    let store = dir.path().join("st\"o\\re\nx");
    copy_tree(&fx.stores()[0], &store);
    let place = dir.path().join("metrics");
    fs::create_dir(&place).unwrap();
    let file = place.join("jetsam.prom");
    fs::write(&file, "of an earlier run\n").unwrap();
    let began = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
        .floor();
    let source = store.to_str().unwrap();
    let streams = truth(&fx, &store).len() as f64;

    let check = |status| {
        let ran = fx
            .jetsam()
            .args(["check", "--json"])
            .arg(&store)
            .arg("--metrics")
            .arg(&file)
            .run()
            .status(status);
        (ran.json(), metrics(&file, "check", source))
    };
    let (report, m) = check(0);
    assert_eq!(
        (m["success"], m["streams"], m["findings"]),
        (1.0, streams, 0.0)
    );
    assert_eq!(m["bytes"], report["summary"]["bytes"].as_f64().unwrap());
    assert!(m["bytes"] > 250_000.0);
    assert!(m["duration_seconds"] > 0.0 && m["duration_seconds"] < 600.0);
    assert!(m["end_time_seconds"] >= began && m["end_time_seconds"] < began + 600.0);

    let dest = dir.path().join("backup");
    let backup = |source: &Path, status| {
        let _ = fs::remove_dir_all(&dest);
        fx.jetsam()
            .arg("backup")
            .arg("--metrics")
            .arg(&file)
            .arg(source)
            .arg(&dest)
            .run()
            .status(status);
    };
    backup(&store, 0);
    let m = metrics(&file, "backup", source);
    assert_eq!(
        (m["success"], m["streams"], m["findings"]),
        (1.0, streams, 0.0)
    );
    let archives = fingerprint(&dest)
        .into_keys()
        .filter(|p| p.ends_with("stream.tar.s2"));
    let len: u64 = archives.map(|p| fs::metadata(p).unwrap().len()).sum();
    assert_eq!(m["bytes"], len as f64);

    // A damaged record: found, and that stream is not archived.
    let block = store.join("jetstream/$G/streams/ORDERS/msgs/1.blk");
    let mut bytes = fs::read(&block).unwrap();
    bytes[60] ^= 1;
    fs::write(&block, bytes).unwrap();
    let (report, m) = check(1);
    let summary = &report["summary"];
    let found = summary["errors"].as_f64().unwrap() + summary["warnings"].as_f64().unwrap();
    assert!(found >= 1.0);
    assert_eq!(
        (m["success"], m["streams"], m["findings"]),
        (0.0, streams, found)
    );
    backup(&store, 1);
    let m = metrics(&file, "backup", source);
    assert_eq!((m["success"], m["streams"]), (0.0, streams - 1.0));
    assert!(m["findings"] >= 1.0);

    let archive = dest.join("$G/WORK");
    let restored = dir.path().join("restored");
    let ran = fx.jetsam().arg("restore").arg("--metrics").arg(&file);
    ran.arg(&archive).arg(&restored).run().status(0);
    let m = metrics(&file, "restore", archive.to_str().unwrap());
    assert_eq!((m["success"], m["streams"]), (1.0, 1.0));
    assert!(m["bytes"] > 1000.0);

    // A run that cannot even begin says so too.
    let nowhere = dir.path().join("nowhere");
    backup(&nowhere, 2);
    let m = metrics(&file, "backup", nowhere.to_str().unwrap());
    assert_eq!((m["success"], m["streams"], m["bytes"]), (0.0, 0.0, 0.0));
    assert_eq!(names(&place), ["jetsam.prom"], "a temporary file was left");

    // Not into the source, not where nothing can be written, not for other verbs.
    let before = fingerprint(&store);
    let run = |verb: &str, file: &Path| {
        fx.jetsam()
            .arg(verb)
            .arg(&store)
            .arg("--metrics")
            .arg(file)
            .run()
    };
    assert!(
        run("check", &store.join("x.prom"))
            .status(2)
            .stderr
            .contains("inside of the source")
    );
    assert_eq!(before, fingerprint(&store));
    assert!(
        run("check", &nowhere.join("x.prom"))
            .status(2)
            .stderr
            .contains("metrics file")
    );
    run("ls", &file).status(2);
}

#[test]
fn the_backup_script_keeps_what_is_proven() {
    let fx = Fixture::open("2.14.5-aes-basic");
    let dir = tempfile::tempdir().unwrap();
    let (backups, place) = (dir.path().join("back ups"), dir.path().join("metrics"));
    let (store, key) = (dir.path().join("store"), dir.path().join("key"));
    fs::create_dir(&backups).unwrap();
    fs::create_dir(&place).unwrap();
    copy_tree(&fx.stores()[0], &store);
    fs::write(&key, fx.key().unwrap()).unwrap();
    let old = backups.join("2020-01-01T000000Z");
    let mine = backups.join("2020-mine");
    for path in [&old, &mine] {
        fs::create_dir(path).unwrap();
        let days_ago = SystemTime::now() - std::time::Duration::from_secs(40 * 86_400);
        let times = fs::FileTimes::new().set_modified(days_ago);
        fs::File::open(path).unwrap().set_times(times).unwrap();
    }
    let binary = Jetsam::new().command.get_program().to_owned();
    let bin = Path::new(&binary).parent().unwrap().to_owned();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/jetsam-backup.sh");
    let run = |source: &Path| {
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let out = std::process::Command::new("sh")
            .arg(&script)
            .env("PATH", path)
            .env("JETSAM_SOURCE", source)
            .env("JETSAM_BACKUPS", &backups)
            .env("JETSAM_METRICS", &place)
            .env("JETSAM_KEY_FILE", &key)
            .env("JETSAM_KEEP_DAYS", "30")
            .output()
            .unwrap();
        out.status.code()
    };
    let new = backups.join("new");
    let dated = || {
        let mut found: Vec<_> = fs::read_dir(&backups)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| *p != mine && *p != old)
            .collect();
        found.sort();
        found
    };
    let metrics = |verb: &str, source: &Path| {
        let file = place.join(format!("jetsam_{verb}.prom"));
        metrics(&file, verb, source.to_str().unwrap())
    };

    // Nothing to back up: nothing is made, nothing removed.
    assert_eq!(run(&dir.path().join("nowhere")), Some(2));
    assert_eq!((dated().len(), old.exists()), (0, true));

    // What a failed run left behind is in nobody's way.
    fs::create_dir(&new).unwrap();
    fs::write(new.join("left"), "").unwrap();
    assert_eq!(run(&store), Some(0));
    let first = dated();
    assert_eq!(first.len(), 1);
    assert!(first[0].join("$G/ORDERS/backup.json").is_file());
    assert!(!old.exists() && mine.exists() && !new.exists());
    let streams = truth(&fx, &store).len() as f64;
    for (verb, source) in [("backup", &store), ("check", &new)] {
        let m = metrics(verb, source);
        assert_eq!((m["success"], m["streams"]), (1.0, streams), "{verb}");
    }

    // A damaged stream: the others are kept, and the exit status says so.
    let block = store.join("jetstream/$G/streams/ORDERS/msgs/1.blk");
    let mut bytes = fs::read(&block).unwrap();
    bytes[60] ^= 1;
    fs::write(&block, bytes).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100)); // the names are of seconds
    assert_eq!(run(&store), Some(1));
    let second = dated();
    assert_eq!(second.len(), 2);
    assert!(second[1].join("$G/WORK/backup.json").is_file());
    assert!(!second[1].join("$G/ORDERS").exists());
    assert_eq!(metrics("backup", &store)["success"], 0.0);
    assert_eq!(metrics("check", &new)["success"], 1.0);
}
