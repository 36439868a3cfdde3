//! What jetsam reads out of real stores and archives, compared with what the server said.
//!
//! For every fixture: `info` and `view` of the store directory, of each archive that the server made, and of
//! backup directories made of these; `ls`, `check` and `diff` on the same sources. Everything has to be equal to
//! `truth.json`. Where a file cannot hold what the API said, [`Expected`] says so, once, with the reason: there is
//! no other list of exceptions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

#[macro_use]
mod common;

use common::{Differences, Fixture, Jetsam, instant, read_json, stream_dirs};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

macro_rules! fixtures {
    ($($module:ident = $name:literal,)*) => {
        const ALL: &[&str] = &[$($name),*];
        $(mod $module {
            #[test]
            fn store() { super::store($name); }
            #[test]
            fn archives() { super::archives($name); }
            #[test]
            fn backup_directories() { super::backup_directories($name); }
            #[test]
            fn check_finds_nothing() { super::check_finds_nothing($name); }
            #[test]
            fn diff_finds_nothing() { super::diff_finds_nothing($name); }
            #[test]
            fn ls() { super::ls($name); }
        })*
    };
}

every_store!(fixtures);

#[test]
fn no_fixture_is_forgotten() {
    let mut all = ALL.to_vec();
    all.sort_unstable();
    assert_eq!(all, common::fixture_names("stores"));
}

/// Where a stream was read from: decides what can be known about it.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// The server's directory.
    Store,
    /// A tar archive: holds the configuration.
    V1,
    /// A NATSARC1 archive: holds neither the stream's configuration nor any time of creation.
    V2,
    /// A NATSARC1 archive with its `backup.json`: the configuration is there, the times of creation are not.
    V2Backup,
}

/// When something was created.
#[derive(Clone)]
enum Created {
    /// At this time exactly.
    At(Value),
    /// The API's time and the one on disk are two readings of the clock within one creation: see [`Expected::new`].
    SoonAfter(Value),
    /// The source does not tell.
    Unknown,
}

const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

impl Created {
    fn check(&self, path: &str, got: Option<&Value>, out: &mut Differences) {
        match (self, got) {
            (Created::Unknown, None | Some(Value::Null)) => {}
            (Created::Unknown, Some(v)) if v == ZERO_TIME => {}
            (Created::Unknown, Some(v)) => out.add(format!(
                "{path}.created: {v}, which this source cannot know"
            )),
            (_, None) => out.add(format!("{path}.created: missing")),
            (Created::At(want), Some(v)) => out.json(&format!("{path}.created"), v, want),
            (Created::SoonAfter(want), Some(v)) => {
                let (Some(w), Some(g)) = (instant(want), instant(v)) else {
                    return out.add(format!("{path}.created: {v} is no time"));
                };
                let later = g.duration_since(w);
                if later.is_negative() || later.as_secs() >= 1 {
                    out.add(format!(
                        "{path}.created: {v} is not within the second after {want}"
                    ));
                }
            }
        }
    }
}

struct ExpectedConsumer {
    created: Created,
    /// In the form of the contract, without `created`.
    value: Value,
    /// What it is where there is no `o.dat`.
    unstored: Option<Value>,
}

/// What `info` and `view` have to say about one stream.
struct Expected {
    account: String,
    name: String,
    config: Value,
    created: Created,
    state: Value,
    consumers: BTreeMap<String, ExpectedConsumer>,
    messages: Vec<Value>,
    never_written: bool,
    last_ts_lost: bool,
}

impl Expected {
    /// The rules, each with its reason. `recovered` is the same stream as read back after a start, if known.
    fn new(
        fx: &Fixture,
        account: &str,
        name: &str,
        truth: &Value,
        recovered: Option<&Value>,
    ) -> Self {
        let version = fx.version();
        let messages = truth["messages"].as_array().unwrap().clone();

        // `_nats.ver` and `_nats.level` name the server that answers: servers since 2.11 put them into each
        // answer and take them out again before they store a configuration. Everything else is stored.
        let mut config = truth["config"].clone();
        if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("_nats.ver");
            metadata.remove("_nats.level");
            if metadata.is_empty() {
                config.as_object_mut().unwrap().remove("metadata");
            }
        }

        // In a cluster before 2.12 the API gives the time at which the meta leader assigned the stream, while
        // each replica's store notes when it was itself made.
        let created = if fx.is_cluster() && version < (2, 12, 0) {
            Created::SoonAfter(truth["created"].clone())
        } else {
            Created::At(truth["created"].clone())
        };

        let mut consumers = BTreeMap::new();
        for (consumer, info) in truth["consumers"].as_object().unwrap() {
            let mut value = json!({
                "stream_name": info["stream_name"], "name": info["name"], "config": info["config"],
                "delivered": pair(&info["delivered"]), "ack_floor": pair(&info["ack_floor"]),
                "num_ack_pending": info["num_ack_pending"], "num_redelivered": info["num_redelivered"],
                "num_pending": info["num_pending"],
            });

            // Until 2.11 the consumer and its store each read the clock; the API gives the former, `meta.inf`
            // the latter. A restart takes over the one on disk, as the `-kill` fixtures prove.
            let created = match recovered.map(|r| &r["consumers"][consumer]["created"]) {
                Some(at) => Created::At(at.clone()),
                None if version < (2, 12, 0) => Created::SoonAfter(info["created"].clone()),
                None => Created::At(info["created"].clone()),
            };

            // 2.2 does not count a redelivery as delivered in the stored state: 20 deliveries, 2 of them again.
            if version < (2, 3, 0) && (name, consumer.as_str()) == ("ORDERS", "NEW") {
                value["delivered"]["consumer_seq"] = json!(20);
            }
            // Before 2.9 the stored ack floor is the acked message, while the server's own moves on to just
            // before the next pending one.
            if version < (2, 9, 0) && (name, consumer.as_str()) == ("ORDERS", "NEW") {
                value["ack_floor"]["stream_seq"] = json!(1);
            }
            // Before 2.9 a consumer that never delivered has a stored state of zeros. The API says where it starts
            // until the server stops; every server that opens the store, up to 2.15, says what is stored: zero,
            // with all messages before it.
            // Where not even that was written, the configuration says where it starts.
            let mut unstored = None;
            if version < (2, 9, 0)
                && info["delivered"]["consumer_seq"] == 0
                && let Some(start) = info["config"]["opt_start_seq"].as_u64()
            {
                let from = messages
                    .iter()
                    .filter(|m| m["seq"].as_u64().unwrap() >= start);
                value["num_pending"] = json!(from.count());
                unstored = Some(value.clone());
                for key in ["delivered", "ack_floor"] {
                    value[key]["stream_seq"] = json!(0);
                }
                value["num_pending"] = json!(messages.len());
            }
            consumers.insert(
                consumer.clone(),
                ExpectedConsumer {
                    created,
                    value,
                    unstored,
                },
            );
        }

        let mut expected = Expected {
            account: account.to_owned(),
            name: name.to_owned(),
            config,
            created,
            state: Value::Null,
            consumers,
            messages,
            // The API of a server that has not yet stored anything gives first 0 and "one deleted", an artefact of
            // 0 - 0 + 1 - 0. On disk such a stream is an empty block, or one that begins at 1, and the same server
            // gives first 1 and none deleted after a restart (2.9.25-kill-basic). Both are accepted.
            never_written: truth["state"]["last_seq"] == 0,
            // Before 2.9 the `.idx` of a purged block does not keep the last time, and there is nothing else.
            last_ts_lost: version < (2, 9, 0) && truth["state"]["messages"] == 0,
        };
        expected.state = expected.complete_state(&truth["state"]);
        expected
    }

    /// The state with nothing left out: servers omit zero counts, and 2.2 has neither subjects nor their number.
    fn complete_state(&self, api: &Value) -> Value {
        let mut subjects = Map::new();
        for m in &self.messages {
            let n = subjects
                .entry(m["subject"].as_str().unwrap())
                .or_insert(json!(0));
            *n = json!(n.as_u64().unwrap() + 1);
        }
        if api.get("subjects").is_some() {
            assert_eq!(
                api["subjects"],
                Value::Object(subjects.clone()),
                "truth.json contradicts itself"
            );
        }
        json!({
            "messages": api["messages"], "bytes": api["bytes"],
            "first_seq": api["first_seq"], "first_ts": api["first_ts"],
            "last_seq": api["last_seq"], "last_ts": api["last_ts"],
            "num_subjects": subjects.len(),
            "num_deleted": api.get("num_deleted").unwrap_or(&json!(0)),
            "consumer_count": self.consumers.len(),
            "deleted": api.get("deleted").unwrap_or(&json!([])),
            "subjects": subjects,
        })
    }

    /// The same stream on a replica that has only the messages up to `last`.
    fn cut(&mut self, last: u64) {
        self.messages.retain(|m| m["seq"].as_u64().unwrap() <= last);
        let mut api = self.state.clone();
        api.as_object_mut().unwrap().remove("subjects");
        let end = self.messages.last().unwrap();
        api["messages"] = json!(self.messages.len());
        api["bytes"] = json!(self.messages.iter().map(stored_len).sum::<u64>());
        api["last_seq"] = end["seq"].clone();
        api["last_ts"] = end["time"].clone();
        self.state = self.complete_state(&api);
        for c in self.consumers.values_mut() {
            let from = c.value["delivered"]["stream_seq"].as_u64().unwrap();
            let n = self
                .messages
                .iter()
                .filter(|m| m["seq"].as_u64().unwrap() > from)
                .count();
            c.value["num_pending"] = json!(n);
        }
    }

    fn check_info(&self, got: &Value, form: Form, out: &mut Differences) {
        let at = format!("{}/{}", self.account, self.name);
        if form != Form::V2 {
            out.json(&format!("{at} config"), &got["config"], &self.config);
        }
        let created = match form {
            Form::Store | Form::V1 => self.created.clone(),
            Form::V2 | Form::V2Backup => Created::Unknown,
        };
        created.check(&at, got.get("created"), out);
        self.check_state(&at, &got["state"], out);

        let empty = Vec::new();
        let consumers = got["consumers"].as_array().unwrap_or(&empty);
        let names: Vec<_> = consumers
            .iter()
            .map(|c| c["name"].as_str().unwrap_or("?"))
            .collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        if sorted
            != self
                .consumers
                .keys()
                .map(String::as_str)
                .collect::<Vec<_>>()
        {
            out.add(format!(
                "{at}: consumers {names:?}, the truth is {:?}",
                self.consumers.keys()
            ));
        }
        for got in consumers {
            let Some(want) = self.consumers.get(got["name"].as_str().unwrap_or_default()) else {
                continue;
            };
            want.check(&at, got, form, out);
        }
    }

    fn check_state(&self, at: &str, got: &Value, out: &mut Differences) {
        let Some(got) = got.as_object() else {
            return out.add(format!("{at}: no state"));
        };
        let mut got: Map<_, _> = got.clone();
        for (key, nothing) in [
            ("num_deleted", json!(0)),
            ("num_subjects", json!(0)),
            ("deleted", json!([])),
            ("subjects", json!({})),
        ] {
            let v = got.entry(key).or_insert(nothing.clone());
            if v.is_null() {
                *v = nothing;
            }
        }
        let want = self.state.as_object().unwrap();
        got.retain(|k, _| want.contains_key(k)); // more may be said than the API does
        let mut got = Value::Object(got);
        if self.never_written && (got["first_seq"] == 0 || got["first_seq"] == 1) {
            for key in ["first_seq", "num_deleted", "deleted"] {
                if key == "first_seq" || got[key] == json!(0) || got[key] == json!([]) {
                    got[key] = want[key].clone();
                }
            }
        }
        if self.last_ts_lost
            && (got["last_ts"] == ZERO_TIME || got["last_ts"] == "1970-01-01T00:00:00Z")
        {
            got["last_ts"] = want["last_ts"].clone();
        }
        out.json(&format!("{at} state"), &got, &self.state);
    }

    fn check_messages(&self, got: &[Value], out: &mut Differences) {
        let at = format!("{}/{}", self.account, self.name);
        let seqs = |m: &[Value]| {
            m.iter()
                .map(|m| m["seq"].as_u64().unwrap_or(0))
                .collect::<Vec<_>>()
        };
        let (g, w) = (seqs(got), seqs(&self.messages));
        if g != w {
            let missing: Vec<_> = w.iter().filter(|s| !g.contains(s)).collect();
            let extra: Vec<_> = g.iter().filter(|s| !w.contains(s)).collect();
            let order = if g.is_sorted() { "" } else { ", out of order" };
            return out.add(format!(
                "{at}: messages missing {missing:?}, extra {extra:?}{order}"
            ));
        }
        for (g, w) in got.iter().zip(&self.messages) {
            let mut g = g.as_object().unwrap().clone();
            g.retain(|k, _| k != "account" && k != "stream");
            out.json(&format!("{at} message {}", w["seq"]), &Value::Object(g), w);
        }
    }
}

impl ExpectedConsumer {
    fn check(&self, at: &str, got: &Value, form: Form, out: &mut Differences) {
        let at = format!("{at} > {}", self.value["name"].as_str().unwrap());
        let created = if matches!(form, Form::V2 | Form::V2Backup) {
            Created::Unknown
        } else {
            self.created.clone()
        };
        created.check(&at, got.get("created"), out);
        let mut got = got.as_object().unwrap().clone();
        got.retain(|k, _| self.value.get(k).is_some());
        let mut got = Value::Object(got);
        for key in ["delivered", "ack_floor"] {
            got[key] = pair(&got[key]);
        }
        if self.unstored.as_ref() == Some(&got) {
            return;
        }
        out.json(&at, &got, &self.value);
    }
}

/// A sequence pair without the time of last activity, which no file holds.
fn pair(v: &Value) -> Value {
    json!({ "consumer_seq": v["consumer_seq"], "stream_seq": v["stream_seq"] })
}

/// The length of a message's record in a block.
fn stored_len(m: &Value) -> u64 {
    use base64::Engine as _;
    let len = |key: &str| {
        m[key].as_str().map_or(0, |s| {
            base64::engine::general_purpose::STANDARD
                .decode(s)
                .unwrap()
                .len() as u64
        })
    };
    let headers = if m.get("hdrs").is_some() {
        4 + len("hdrs")
    } else {
        0
    };
    30 + m["subject"].as_str().unwrap().len() as u64 + headers + len("data")
}

/// Every stream of the fixture that a disk can hold: streams in memory leave nothing.
fn expected(fx: &Fixture) -> Vec<Expected> {
    let recovered = fx.recovered();
    let mut all = Vec::new();
    for (account, streams) in fx.truth["accounts"].as_object().unwrap() {
        for (name, truth) in streams.as_object().unwrap() {
            if truth["config"]["storage"] == "memory" {
                continue;
            }
            let recovered = recovered.as_ref().map(|r| &r["accounts"][account][name]);
            all.push(Expected::new(fx, account, name, truth, recovered));
        }
    }
    all
}

/// What one node's directory holds of it.
fn expected_on(fx: &Fixture, store: &Path) -> Vec<Expected> {
    let mut all = expected(fx);
    if fx.is_cluster() {
        // LOCAL has one replica, on one of the nodes.
        let has_local = store.join("jetstream/$G/streams/LOCAL").is_dir();
        all.retain(|e| e.name != "LOCAL" || has_local);
        if store.ends_with("n2/store") {
            // Stopped before the last 40 messages of ORDERS.
            for e in all.iter_mut().filter(|e| e.name == "ORDERS") {
                let last = e.state["last_seq"].as_u64().unwrap();
                e.cut(last - 40);
            }
        }
    }
    all
}

fn info(fx: &Fixture, source: &Path) -> Vec<Value> {
    let ran = fx
        .jetsam()
        .args(["info", "--json", "--deleted", "--subjects"])
        .arg(source)
        .run()
        .status(0);
    ran.json()
        .as_array()
        .expect("info --json is an array")
        .clone()
}

fn view(fx: &Fixture, source: &Path) -> BTreeMap<(String, String), Vec<Value>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for line in fx
        .jetsam()
        .args(["view", "--json"])
        .arg(source)
        .run()
        .status(0)
        .json_lines()
    {
        let text = |k: &str| line[k].as_str().unwrap_or_default().to_owned();
        all.entry((text("account"), text("stream")))
            .or_default()
            .push(line);
    }
    all
}

/// `info` and `view` of a source that holds exactly these streams; `account` is how the source names it.
fn check_source(
    fx: &Fixture,
    source: &Path,
    want: &[Expected],
    form: Form,
    account: impl Fn(&Expected) -> String,
) {
    let mut out = Differences::default();
    let got = info(fx, source);
    let mut left = got.clone();
    let mut messages = view(fx, source);
    for e in want {
        let account = account(e);
        let here = |v: &Value| {
            v["account"] == json!(account)
                && (form == Form::V2 || v["config"]["name"] == json!(e.name))
        };
        match left.iter().position(here) {
            Some(i) => e.check_info(&left.remove(i), form, &mut out),
            None => out.add(format!("info: no stream {}/{}", e.account, e.name)),
        }
        // A v2 archive does not hold its stream's name.
        let key = if form == Form::V2 {
            messages.keys().next().cloned()
        } else {
            Some((account, e.name.clone()))
        };
        e.check_messages(
            &key.and_then(|k| messages.remove(&k)).unwrap_or_default(),
            &mut out,
        );
    }
    for extra in left {
        out.add(format!(
            "info: also {}/{}",
            extra["account"], extra["config"]["name"]
        ));
    }
    for (extra, lines) in messages {
        out.add(format!("view: also {} messages of {extra:?}", lines.len()));
    }
    out.none(&format!(
        "{}: {}",
        fx.name,
        source.strip_prefix(&fx.dir).unwrap_or(source).display()
    ));
}

fn store(name: &str) {
    let fx = Fixture::open(name);
    for store in fx.stores() {
        check_source(&fx, &store, &expected_on(&fx, &store), Form::Store, |e| {
            e.account.clone()
        });
    }
    if fx.is_cluster() {
        let local = fx
            .stores()
            .iter()
            .filter(|s| s.join("jetstream/$G/streams/LOCAL").is_dir())
            .count();
        assert_eq!(local, 1, "LOCAL has one replica");
    }
}

/// The server's archives: (stream, archive, the reply that came with it).
fn snapshots(fx: &Fixture) -> Vec<(Expected, PathBuf, Value)> {
    let all: Vec<_> = expected(fx)
        .into_iter()
        .map(|e| {
            let stem = fx.dir.join("snapshots").join(&e.account).join(&e.name);
            let reply = read_json(&stem.with_added_extension("json"));
            (e, stem.with_added_extension("tar.s2"), reply)
        })
        .collect();
    assert!(!all.is_empty());
    all
}

fn archive_form(fx: &Fixture) -> Form {
    if fx.version() < (2, 15, 0) {
        Form::V1
    } else {
        Form::V2
    }
}

fn archives(name: &str) {
    let fx = Fixture::open(name);
    for (e, archive, _) in snapshots(&fx) {
        check_source(&fx, &archive, &[e], archive_form(&fx), |_| String::new());
    }
}

/// `ACCOUNT/STREAM/{backup.json, stream.tar.s2}` as `nats account backup` would have made them.
fn make_backups(fx: &Fixture) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (e, archive, reply) in snapshots(fx) {
        let dir = root.path().join(&e.account).join(&e.name);
        fs::create_dir_all(&dir).unwrap();
        let about = json!({ "config": reply["config"], "state": reply["state"] });
        fs::write(
            dir.join("backup.json"),
            serde_json::to_vec_pretty(&about).unwrap(),
        )
        .unwrap();
        fs::copy(archive, dir.join("stream.tar.s2")).unwrap();
    }
    root
}

fn backup_form(fx: &Fixture) -> Form {
    if archive_form(fx) == Form::V1 {
        Form::V1
    } else {
        Form::V2Backup
    }
}

fn backup_directories(name: &str) {
    let fx = Fixture::open(name);
    let root = make_backups(&fx);
    let form = backup_form(&fx);
    let all = expected(&fx);
    check_source(&fx, root.path(), &all, form, |e| e.account.clone());

    let mut accounts: BTreeMap<String, Vec<Expected>> = BTreeMap::new();
    for e in all {
        accounts.entry(e.account.clone()).or_default().push(e);
    }
    for (account, streams) in &accounts {
        check_source(&fx, &root.path().join(account), streams, form, |_| {
            String::new()
        });
    }
    let (account, mut streams) = accounts.pop_first().unwrap();
    let one = streams.remove(0);
    check_source(
        &fx,
        &root.path().join(account).join(&one.name),
        &[one],
        form,
        |_| String::new(),
    );
}

/// Healthy sources: not one error or warning, and the sums are right.
fn check_finds_nothing(name: &str) {
    let fx = Fixture::open(name);
    let clean = |source: &Path, want: Option<&[Expected]>| {
        let got = fx
            .jetsam()
            .args(["check", "--json"])
            .arg(source)
            .run()
            .status(0)
            .json();
        let mut out = Differences::default();
        for finding in got["findings"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|f| f["severity"] != "note")
        {
            out.add(finding.to_string());
        }
        let summary = &got["summary"];
        out.json("summary.errors", &summary["errors"], &json!(0));
        out.json("summary.warnings", &summary["warnings"], &json!(0));
        if let Some(want) = want {
            out.json("summary.streams", &summary["streams"], &json!(want.len()));
            let consumers: usize = want.iter().map(|e| e.consumers.len()).sum();
            out.json(
                "summary.consumers",
                &summary["consumers"],
                &json!(consumers),
            );
            let messages: usize = want.iter().map(|e| e.messages.len()).sum();
            out.json("summary.messages", &summary["messages"], &json!(messages));
        }
        out.none(&format!(
            "check {}: {}",
            fx.name,
            source.strip_prefix(&fx.dir).unwrap_or(source).display()
        ));
    };
    for store in fx.stores() {
        // A cluster's raft groups may or may not be counted as streams.
        let want = expected_on(&fx, &store);
        clean(&store, (!fx.is_cluster()).then_some(&want[..]));
    }
    for (e, archive, _) in snapshots(&fx) {
        clean(&archive, Some(&[e]));
    }
    clean(make_backups(&fx).path(), Some(&expected(&fx)));
}

/// A store and the server's own archives of it hold the same.
fn diff_finds_nothing(name: &str) {
    let fx = Fixture::open(name);
    let backups = make_backups(&fx);
    let diff = |a: &Path, b: &Path| fx.jetsam().args(["diff", "--json"]).arg(a).arg(b).run();
    for store in fx.stores() {
        if !fx.is_cluster() {
            let ran = diff(&store, backups.path()).status(0);
            assert_eq!(ran.json_lines(), Vec::<Value>::new());
            let ran = diff(backups.path(), &store).status(0);
            assert_eq!(ran.json_lines(), Vec::<Value>::new());
        }
        for (account, stream, dir) in stream_dirs(&store) {
            let archive = fx
                .dir
                .join("snapshots")
                .join(&account)
                .join(format!("{stream}.tar.s2"));
            if store.ends_with("n2/store") && stream == "ORDERS" {
                // The late messages, and nothing that is there.
                let ran = diff(&dir, &archive).status(1);
                assert!(
                    ran.json_lines().len() >= 40 || !ran.stdout.is_empty(),
                    "{}",
                    ran.line
                );
                continue;
            }
            let ran = diff(&dir, &archive).status(0);
            assert_eq!(ran.json_lines(), Vec::<Value>::new(), "{}", ran.line);
        }
    }
}

/// `ls` says the same as `info`.
fn ls(name: &str) {
    let fx = Fixture::open(name);
    for store in fx.stores() {
        let listed = fx
            .jetsam()
            .args(["ls", "--json"])
            .arg(&store)
            .run()
            .status(0)
            .json();
        let known = info(&fx, &store);
        let mut out = Differences::default();
        let key = |v: &Value| {
            (
                v["account"].to_string(),
                v["stream"]
                    .as_str()
                    .or(v["config"]["name"].as_str())
                    .map(str::to_owned),
            )
        };
        let mut rows: BTreeMap<_, _> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|r| (key(r), r))
            .collect();
        for i in &known {
            let Some(row) = rows.remove(&key(i)) else {
                out.add(format!("no row for {:?}", key(i)));
                continue;
            };
            let want = json!({
                "path": i["path"], "messages": i["state"]["messages"], "bytes": i["state"]["bytes"],
                "first_seq": i["state"]["first_seq"], "last_seq": i["state"]["last_seq"],
                "consumers": i["state"]["consumer_count"], "blocks": i["storage"]["blocks"],
                "cipher": i["storage"]["cipher"], "compression": i["storage"]["compression"],
            });
            let mut got = row.as_object().unwrap().clone();
            got.retain(|k, _| want.get(k).is_some());
            out.json(&format!("{:?}", key(i)), &Value::Object(got), &want);

            let cipher = fx.truth["cipher"].as_str().unwrap_or("none");
            out.json("cipher", &row["cipher"], &json!(cipher));
        }
        for extra in rows.keys() {
            out.add(format!("also a row for {extra:?}"));
        }
        out.none(&format!("ls {name}"));
    }
}

/// The tiny stores, too, are what their servers said.
#[test]
fn tiny_stores() {
    let names = common::fixture_names("tiny");
    assert!(names.len() >= 7);
    for name in names {
        let fx = Fixture::open_kind("tiny", &name);
        check_source(&fx, &fx.stores()[0], &expected(&fx), Form::Store, |e| {
            e.account.clone()
        });
    }
}

/// The same stream, reached by way of each kind of directory.
#[test]
fn every_form_of_directory_gives_the_same() {
    for name in ["2.15.2-accounts", "2.9.25-accounts"] {
        let fx = Fixture::open(name);
        let store = &fx.stores()[0];
        check_source(
            &fx,
            &store.join("jetstream"),
            &expected(&fx),
            Form::Store,
            |e| e.account.clone(),
        );
        for account in ["ACME", "BETA"] {
            let dir = store.join("jetstream").join(account);
            let mut want = expected(&fx);
            want.retain(|e| e.account == account);
            check_source(&fx, &dir, &want, Form::Store, |e| e.account.clone());
        }
        let (account, stream, dir) = &stream_dirs(store)[0];
        let mut want = expected(&fx);
        want.retain(|e| (&e.account, &e.name) == (account, stream));
        check_source(&fx, dir, &want, Form::Store, |e| e.account.clone());

        // Moved elsewhere: nobody can tell the account any more.
        let elsewhere = tempfile::tempdir().unwrap();
        common::copy_tree(dir, &elsewhere.path().join(stream));
        check_source(
            &fx,
            &elsewhere.path().join(stream),
            &want,
            Form::Store,
            |_| String::new(),
        );

        // Without meta.inf there is no configuration, but every message.
        let bare = elsewhere.path().join(stream);
        fs::remove_file(bare.join("meta.inf")).unwrap();
        fs::remove_file(bare.join("meta.sum")).unwrap();
        let got: Vec<_> = Jetsam::new()
            .args(["view", "--json"])
            .arg(&bare)
            .run()
            .json_lines();
        let mut out = Differences::default();
        want[0].check_messages(&got, &mut out);
        out.none(name);
    }
}

/// Without a key, or with a wrong one, nothing is taken for plaintext and nothing is guessed.
#[test]
fn keys_are_asked_for() {
    for name in [
        "2.7.4-chacha-basic",
        "2.14.5-aes-basic",
        "2.15.2-chacha-compress",
    ] {
        let fx = Fixture::open(name);
        let store = &fx.stores()[0];
        for verb in ["info", "view"] {
            Jetsam::new()
                .args([verb, "--json"])
                .arg(store)
                .run()
                .status(4);
            let mut wrong = Jetsam::new().args([verb, "--json"]).arg(store);
            wrong.command.env("JETSAM_KEY", "not the key");
            wrong.run().status(4);
        }
        // One trailing newline in a key file is ignored.
        let key = tempfile::NamedTempFile::new().unwrap();
        fs::write(key.path(), format!("{}\n", fx.key().unwrap())).unwrap();
        let ran = Jetsam::new()
            .args(["info", "--json", "--key-file"])
            .arg(key.path())
            .arg(store)
            .run()
            .status(0);
        assert_eq!(ran.json().as_array().unwrap().len(), expected(&fx).len());
    }
}
