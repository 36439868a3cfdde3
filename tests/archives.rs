//! What `jetsam check` says of archives and backup directories beyond their own damage: whether they hold what they say
//! of themselves, and what a restore of them runs into. `tests/live/check_test.go` has servers do what it says.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

#[path = "common/backup.rs"]
mod backup;
mod common;

use backup::{block, config, make_stream, meta_inf};
use common::{Fixture, Jetsam, fixture_names};
use jetsam::format::backup_json::StreamState;
use jetsam::format::o_dat::{self, ConsumerState};
use jetsam::format::s2::{self, Encoder};
use jetsam::format::{archive_v2, meta, tar};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// One of many archives: what is not said is that of a sound one.
struct Archive {
    config: Value,
    /// In `meta.inf`; none: the same.
    inside: Option<Value>,
    /// Runs of messages: first sequence and how many.
    runs: Vec<(u64, u64)>,
    payload: usize,
    /// Messages, first and last in the state.
    claim: (u64, u64, u64),
    consumers: Vec<(Value, ConsumerState)>,
    claimed_consumers: Option<i64>,
    more: Vec<(&'static str, Vec<u8>)>,
}

impl Archive {
    fn new(changes: Value) -> Self {
        Self {
            config: merged(config("S"), changes),
            inside: None,
            runs: vec![(1, 10)],
            payload: 20,
            claim: (10, 1, 10),
            consumers: Vec::new(),
            claimed_consumers: None,
            more: Vec::new(),
        }
    }

    fn holds(mut self, runs: &[(u64, u64)], claim: (u64, u64, u64)) -> Self {
        (self.runs, self.claim) = (runs.to_vec(), claim);
        self
    }

    fn consumer(mut self, changes: Value, state: ConsumerState) -> Self {
        let c = json!({"durable_name": "C", "name": "C", "ack_policy": "explicit", "deliver_policy": "all", "num_replicas": 0});
        self.consumers.push((merged(c, changes), state));
        self
    }

    fn state(&self) -> StreamState {
        let count = self.consumers.len() as i64;
        StreamState {
            messages: self.claim.0,
            bytes: self.claim.0 * 55,
            first_seq: self.claim.1,
            last_seq: self.claim.2,
            consumer_count: count,
            ..StreamState::default()
        }
    }

    /// Writes the directory.
    fn write(&self, dir: &Path, v2: bool) {
        fs::create_dir_all(dir).unwrap();
        let raw = if v2 { self.v2() } else { self.v1() };
        let mut packed = Vec::new();
        Encoder::new().encode_stream(&raw, &mut packed).unwrap();
        assert!(packed.starts_with(&s2::MAGIC));
        fs::write(dir.join("stream.tar.s2"), packed).unwrap();
        let mut state = self.state();
        state.consumer_count = self.claimed_consumers.unwrap_or(state.consumer_count);
        let json = json!({"config": self.config, "state": state});
        fs::write(dir.join("backup.json"), json.to_string()).unwrap();
    }

    fn v1(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut member = |name: &str, data: &[u8]| {
            let size = data.len() as u64;
            tar::put_header(&mut out, name.as_bytes(), size, 1_800_000_000_000_000_000).unwrap();
            out.extend_from_slice(data);
            out.extend_from_slice(tar::padding(size));
        };
        let inside = self.inside.as_ref().unwrap_or(&self.config);
        let inf = meta_inf(inside);
        let name = inside["name"].as_str().unwrap();
        member("meta.inf", &inf);
        member("meta.sum", meta::sum(name, &inf).as_bytes());
        let runs = self.runs.iter();
        let blk: Vec<u8> = runs
            .flat_map(|(first, count)| block(name, 1, *first, *count, self.payload))
            .collect();
        member("msgs/1.blk", &blk);
        for (config, state) in &self.consumers {
            let consumer = config["name"].as_str().unwrap();
            let Value::Object(config) = config.clone() else {
                panic!()
            };
            let created = Some("2026-01-02T03:04:05Z".to_owned());
            let inf =
                meta::encode_consumer(&meta::MetaInf::new_consumer(config, created, consumer));
            let sum = meta::sum(&format!("{name}/{consumer}"), &inf);
            member(&format!("obs/{consumer}/meta.inf"), &inf);
            member(&format!("obs/{consumer}/meta.sum"), sum.as_bytes());
            member(&format!("obs/{consumer}/o.dat"), &o_dat::encode(state));
        }
        for (name, body) in &self.more {
            member(name, body);
        }
        out.extend_from_slice(&tar::END);
        out
    }

    fn v2(&self) -> Vec<u8> {
        let now = 1_800_000_000_000_000_000;
        let mut out = archive_v2::MAGIC.to_vec();
        archive_v2::put_state(&mut out, now, &self.state());
        for (config, state) in &self.consumers {
            let name = config["name"].as_str().unwrap();
            archive_v2::put_consumer(&mut out, now, name, config.as_object().unwrap(), state);
        }
        for (first, count) in &self.runs {
            for seq in *first..first + count {
                archive_v2::put_message(&mut out, b"s.1", now, seq, b"", &vec![b'x'; self.payload]);
            }
        }
        out.extend_from_slice(&archive_v2::END);
        out
    }

    /// Fails unless `check` finds this and nothing else: `CODE SEVERITY`, sorted. What every NATSARC1 archive has
    /// is left out.
    #[track_caller]
    fn gives(&self, v2: bool, want: &[&str]) -> Vec<Value> {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("S");
        self.write(&at, v2);
        let found = check(&at);
        let mut got: Vec<String> = found
            .iter()
            .map(|f| {
                let text = |key: &str| f[key].as_str().unwrap().to_owned();
                format!("{} {}", text("code"), text("severity"))
            })
            .filter(|f| f != "restore_format note" && f != "index_missing note")
            .collect();
        got.sort();
        assert_eq!(got, want, "{found:#?}");
        found
    }
}

fn merged(mut base: Value, changes: Value) -> Value {
    let Value::Object(changes) = changes else {
        panic!()
    };
    for (key, value) in changes {
        base[key] = value;
    }
    base
}

fn check(source: &Path) -> Vec<Value> {
    let ran = Jetsam::new().args(["check", "--json"]).arg(source).run();
    let json = ran.json();
    let errors = json["summary"]["errors"].as_u64().unwrap();
    assert_eq!(ran.status, Some(i32::from(errors > 0)), "{}", ran.stderr);
    json["findings"].as_array().unwrap().clone()
}

/// Consumer and stream sequences: delivered, ack floor.
fn at(delivered: (u64, u64), floor: (u64, u64)) -> ConsumerState {
    let json = json!({
        "delivered": {"consumer_seq": delivered.0, "stream_seq": delivered.1},
        "ack_floor": {"consumer_seq": floor.0, "stream_seq": floor.1},
    });
    ConsumerState::from_json(&json).unwrap()
}

#[track_caller]
fn details(found: &[Value], code: &str, words: &[&str]) {
    let of_code = || found.iter().filter(|f| f["code"] == code);
    for word in words {
        let said = of_code().any(|f| {
            let text = format!("{} {}", f["detail"], f["action"]);
            text.contains(word)
        });
        assert!(
            said,
            "{word:?} is not in {:#?}",
            of_code().collect::<Vec<_>>()
        );
    }
}

#[test]
fn archives_of_servers_and_of_jetsam_are_restorable() {
    let (mut of_servers, mut own) = (0, 0);
    for name in fixture_names("stores") {
        let fx = Fixture::open(&name);
        let work = tempfile::tempdir().unwrap();
        let snapshots = fx.dir.join("snapshots");
        let mut sources = Vec::new();
        if snapshots.is_dir() {
            for account in fs::read_dir(&snapshots).unwrap() {
                let account = account.unwrap();
                for file in fs::read_dir(account.path()).unwrap() {
                    let file = file.unwrap().path();
                    let Some(stem) = file
                        .file_name()
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .strip_suffix(".json")
                    else {
                        continue;
                    };
                    // As the CLI leaves them: the reply has the same parts.
                    let to = work
                        .path()
                        .join("server")
                        .join(account.file_name())
                        .join(stem);
                    fs::create_dir_all(&to).unwrap();
                    fs::copy(&file, to.join("backup.json")).unwrap();
                    fs::copy(file.with_extension("tar.s2"), to.join("stream.tar.s2")).unwrap();
                    of_servers += 1;
                }
            }
            sources.push(work.path().join("server"));
        }
        for format in ["v1", "v2"] {
            let to = work.path().join(format);
            let store = &fx.stores()[0];
            let made = fx
                .jetsam()
                .args(["-q", "backup", "--format", format])
                .arg(store)
                .arg(&to);
            made.run().status(0);
            sources.push(to);
            own += 1;
        }
        for source in sources {
            for f in check(&source) {
                assert_eq!(f["severity"], "note", "{name}: {f:#}");
                let code = f["code"].as_str().unwrap();
                // A stopped stream or an idle one: nothing came or went, and all is said of it.
                assert!(!code.starts_with("backup_"), "{name}: {f:#}");
                if code == "restore_replicas" {
                    assert!(fx.is_cluster(), "{name}: {f:#}");
                }
            }
        }
    }
    assert!(of_servers >= 50 && own >= 30, "{of_servers} {own}");
}

#[test]
fn a_state_is_of_the_time_when_the_backup_began() {
    for v2 in [false, true] {
        Archive::new(json!({})).gives(v2, &[]);
        Archive::new(json!({}))
            .holds(&[(1, 4), (8, 3)], (7, 1, 10))
            .gives(v2, &[]);
        Archive::new(json!({}))
            .holds(&[], (0, 11, 10))
            .gives(v2, if v2 { &[] } else { &["backup_json error"] });
    }
    let fewer = |changes| Archive::new(changes).holds(&[(1, 4), (8, 3)], (10, 1, 10));
    let trimmed = |changes| Archive::new(changes).holds(&[(4, 7)], (10, 1, 10));
    let lost = |v2| {
        if v2 {
            "archive_incomplete error"
        } else {
            "backup_json error"
        }
    };
    for v2 in [false, true] {
        // Nothing removes messages.
        fewer(json!({})).gives(v2, &[lost(v2)]);
        trimmed(json!({})).gives(v2, &[lost(v2)]);
        // Limits remove the oldest, and may overtake the backup.
        for (limit, value, over) in [
            ("max_msgs", 11, None),
            ("max_age", 3_000_000_000_000_000_000i64, None),
            ("max_bytes", 600, Some("restore_limits note")),
        ] {
            let limits = json!({ limit: value });
            let over: Vec<&str> = over.into_iter().collect();
            let want = |own: &'static str| [vec![own], over.clone()].concat();
            let own = if v2 {
                "archive_incomplete warning"
            } else {
                "backup_meanwhile note"
            };
            fewer(limits.clone()).gives(v2, &want(own));
            let own = if v2 {
                "archive_incomplete note"
            } else {
                "backup_meanwhile note"
            };
            trimmed(limits).gives(v2, &want(own));
        }
        // Far from a limit they do not.
        fewer(json!({"max_msgs": 12})).gives(v2, &[lost(v2)]);
        // Acknowledgements remove any. In NATSARC1 what cannot be read looks the same.
        let own = if v2 {
            "archive_incomplete warning"
        } else {
            "backup_meanwhile note"
        };
        fewer(json!({"retention": "workqueue"})).gives(v2, &[own]);
        fewer(json!({"max_msgs_per_subject": 10})).gives(v2, &[own]);
        let own = if v2 {
            "archive_incomplete note"
        } else {
            "backup_meanwhile note"
        };
        trimmed(json!({"retention": "interest"})).gives(v2, &[own]);
    }
    // A tar goes on where the state ended, never the other way round.
    Archive::new(json!({}))
        .holds(&[(1, 12)], (10, 1, 10))
        .gives(false, &["backup_meanwhile note"]);
    Archive::new(json!({}))
        .holds(&[(1, 10)], (12, 1, 12))
        .gives(false, &["backup_json error"]);
    Archive::new(json!({}))
        .holds(&[(1, 12)], (9, 1, 10))
        .gives(false, &["backup_json warning", "backup_meanwhile note"]);
    let queue = json!({"retention": "workqueue"});
    Archive::new(queue)
        .holds(&[(1, 10)], (9, 1, 10))
        .gives(false, &["backup_meanwhile note"]);
}

#[test]
fn what_a_server_left_out_of_natsarc1_is_named() {
    let found = Archive::new(json!({}))
        .holds(&[(1, 4), (6, 5)], (10, 1, 10))
        .gives(true, &["archive_incomplete error"]);
    details(
        &found,
        "archive_incomplete",
        &["10 messages", "holds 9", "could not read"],
    );
    // Alone, without configuration, too.
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("S");
    let a = Archive::new(json!({"retention": "workqueue"})).holds(&[(1, 4), (6, 5)], (10, 1, 10));
    a.write(&at, true);
    let lone = check(&at.join("stream.tar.s2"));
    assert!(
        lone.iter()
            .any(|f| f["code"] == "archive_incomplete" && f["severity"] == "error")
    );
    // Where it ends early, that is why.
    let raw = a.v2();
    let mut packed = Vec::new();
    Encoder::new()
        .encode_stream(&raw[..raw.len() - 100], &mut packed)
        .unwrap();
    fs::write(at.join("stream.tar.s2"), packed).unwrap();
    let found = check(&at);
    assert!(found.iter().any(|f| f["code"] == "archive_truncated"));
    assert!(
        found.iter().all(|f| f["severity"] != "warning"),
        "{found:#?}"
    );
    details(&found, "archive_incomplete", &["take another backup"]);
}

#[test]
fn backup_json_is_that_of_the_archive() {
    let with = |inside: Value| {
        let mut a = Archive::new(json!({}));
        a.inside = Some(merged(a.config.clone(), inside));
        a
    };
    let found = with(json!({"max_msgs": 500, "deny_delete": true}))
        .gives(false, &["backup_config warning"]);
    details(
        &found,
        "backup_config",
        &[
            "max_msgs none instead of 500",
            "deny_delete false instead of true",
        ],
    );
    // Defaults, what the API adds, and what is written in another way.
    with(json!({"max_msgs": 0, "sealed": false, "sources": null, "metadata": {"_nats.req.level": "0"}})).gives(false, &[]);
    let mut a = Archive::new(
        json!({"metadata": {"_nats.ver": "2.14.9", "_nats.level": "4"}, "consumer_limits": {}}),
    );
    a.inside = Some(config("S"));
    a.gives(false, &[]);
    with(json!({"name": "T"})).gives(false, &["backup_json error"]);
    let a = Archive::new(json!({"max_mgs": 1}));
    a.gives(true, &["config_unknown_key note"]);

    let one = || Archive::new(json!({})).consumer(json!({}), at((10, 10), (10, 10)));
    for v2 in [false, true] {
        one().gives(v2, &[]);
        for count in [0, 5] {
            let mut a = one();
            a.claimed_consumers = Some(count);
            a.gives(v2, &["backup_consumers note"]);
        }
    }
    // The state in NATSARC1 is that of its backup.json.
    let dir = tempfile::tempdir().unwrap();
    for (claim, want) in [((9, 1, 9), "warning"), ((12, 1, 12), "error")] {
        let s = dir.path().join(want);
        Archive::new(json!({})).write(&s, true);
        let mut a = Archive::new(json!({}));
        a.claim = claim;
        let json = json!({"config": a.config, "state": a.state()});
        fs::write(s.join("backup.json"), json.to_string()).unwrap();
        let found = check(&s);
        assert!(
            found
                .iter()
                .any(|f| f["code"] == "backup_json" && f["severity"] == want),
            "{found:#?}"
        );
    }
}

#[test]
fn an_archive_that_its_server_gave_up_is_an_error() {
    let mut a = Archive::new(json!({}));
    a.more.push(("errors.txt", b"disk on fire".to_vec()));
    let found = a.gives(false, &["archive_errors error"]);
    details(
        &found,
        "archive_errors",
        &["disk on fire", "another backup"],
    );
}

#[test]
fn names_replicas_and_storage() {
    for v2 in [false, true] {
        // In a tar these are in the subjects of the messages here, too.
        let names: &[&str] = if v2 {
            &["a.b", "a b", "a*", ">"]
        } else {
            &["a.b"]
        };
        for name in names {
            Archive::new(json!({ "name": name })).gives(v2, &["restore_name error"]);
        }
        Archive::new(json!({"name": "a\\b"})).gives(v2, &["restore_name warning"]);
        let found = Archive::new(json!({"num_replicas": 3})).gives(v2, &["restore_replicas note"]);
        details(
            &found,
            "restore_replicas",
            &["`nats stream restore --replicas 1` or"],
        );
        Archive::new(json!({"num_replicas": 6})).gives(v2, &["restore_replicas warning"]);
        Archive::new(json!({"storage": "memory"})).gives(v2, &["restore_storage warning"]);
        let own = |stream: u64, consumer: u64, retention: &str| {
            Archive::new(json!({"num_replicas": stream, "retention": retention}))
                .consumer(json!({"num_replicas": consumer}), at((10, 10), (10, 10)))
        };
        own(1, 1, "limits").gives(v2, &[]);
        let found = own(1, 3, "limits").gives(v2, &["restore_consumer warning"]);
        details(
            &found,
            "restore_consumer",
            &["`jetsam restore --replicas 1`"],
        );
        let found = own(3, 3, "workqueue").gives(v2, &["restore_replicas note"]);
        details(
            &found,
            "restore_replicas",
            &["because of the replicas of C"],
        );
        own(3, 1, "limits").gives(v2, &["restore_replicas note"]);
        own(3, 1, "interest").gives(v2, &["restore_consumer warning", "restore_replicas note"]);
    }
}

#[test]
fn consumers_of_a_work_queue() {
    let caught_up = || at((10, 10), (10, 10));
    let queue = |own: &[Value]| {
        let mut a = Archive::new(json!({"retention": "workqueue"}));
        for (i, changes) in own.iter().enumerate() {
            let name = format!("C{i}");
            let named = merged(changes.clone(), json!({"name": name, "durable_name": name}));
            a = a.consumer(named, caught_up());
        }
        a
    };
    for v2 in [false, true] {
        queue(&[json!({})]).gives(v2, &[]);
        queue(&[
            json!({"filter_subject": "s.1"}),
            json!({"filter_subjects": ["s.2", "s.3.>"]}),
        ])
        .gives(v2, &[]);
        queue(&[
            json!({"filter_subject": "s.*.x"}),
            json!({"filter_subject": "s.1.>"}),
        ])
        .gives(v2, &["restore_consumer warning"]);
        queue(&[json!({}), json!({"filter_subject": "s.1"})])
            .gives(v2, &["restore_consumer warning"]);
        queue(&[json!({"ack_policy": "all"})]).gives(v2, &["restore_consumer warning"]);
        queue(&[json!({"deliver_policy": "new"})]).gives(v2, &["restore_consumer warning"]);
    }
    let many = |count: usize, max: i64| {
        let mut a = queue(&vec![json!({}); count]);
        a.config["retention"] = json!("limits");
        a.config["max_consumers"] = json!(max);
        a
    };
    many(1000, -1).gives(true, &[]);
    let found = many(1001, -1).gives(true, &["restore_consumer_count warning"]);
    details(
        &found,
        "restore_consumer_count",
        &["since 2.15", "default_max_consumers"],
    );
    many(1001, 1001).gives(true, &[]);
    many(3, 2).gives(true, &["restore_consumer_count warning"]);
    // Servers do not count what mirrors and sources use.
    let mut a = many(3, 2);
    a.consumers[1].0["direct"] = json!(true);
    a.gives(true, &[]);
}

#[test]
fn releases_that_a_configuration_needs() {
    for v2 in [false, true] {
        for (level, words) in [
            ("1", "2.11.0"),
            ("2", "2.12.0"),
            ("3", "2.12.5"),
            ("4", "2.14.0"),
            ("5", "2.15.0"),
        ] {
            let found = Archive::new(json!({"metadata": {"_nats.req.level": level}}))
                .gives(v2, &["restore_api_level note"]);
            details(&found, "restore_api_level", &[words]);
        }
        for level in ["6", "x"] {
            Archive::new(json!({"metadata": {"_nats.req.level": level}}))
                .gives(v2, &["restore_api_level warning"]);
        }
        Archive::new(json!({"metadata": {"_nats.req.level": "0"}})).gives(v2, &[]);
        let found = Archive::new(json!({"metadata": {"_nats.req.level": "1"}}))
            .consumer(
                json!({"metadata": {"_nats.req.level": "2"}}),
                at((10, 10), (10, 10)),
            )
            .gives(v2, &["restore_api_level note"]);
        assert!(found.iter().any(|f| f["consumer"] == "C"), "{found:#?}");
    }
}

#[test]
fn limits_that_a_restore_applies() {
    for v2 in [false, true] {
        Archive::new(json!({"max_msgs": 10})).gives(v2, &[]);
        // A scan of blocks applies the limits of meta.inf.
        let mut a = Archive::new(json!({"max_msgs": 9}));
        a.inside = Some(config("S"));
        let mut want = vec!["restore_limits warning"];
        if !v2 {
            want.insert(0, "backup_config warning");
        }
        a.gives(v2, &want);
        Archive::new(json!({"max_bytes": 1_000_000})).gives(v2, &["restore_limits note"]);
    }
    // The messages in the blocks are of January 2026.
    let found =
        Archive::new(json!({"max_age": 1_000_000_000})).gives(false, &["restore_limits warning"]);
    details(&found, "restore_limits", &["all messages are older"]);

    let sized = |payload, changes| {
        let mut a = Archive::new(changes);
        a.payload = payload;
        a
    };
    for v2 in [false, true] {
        sized(1 << 20, json!({})).gives(v2, &[]);
        // A tar's blocks are not measured.
        let want: &[&str] = if v2 { &["restore_size warning"] } else { &[] };
        sized((1 << 20) + 1, json!({})).gives(v2, want);
        sized(101, json!({"max_msg_size": 100})).gives(v2, want);
        sized(100, json!({"max_msg_size": 100})).gives(v2, &[]);
    }
    Archive::new(json!({"first_seq": 5})).gives(true, &["restore_limits warning"]);
    Archive::new(json!({"first_seq": 1})).gives(true, &[]);
}

#[test]
fn states_that_no_server_restores() {
    for claim in [(10, 0, 10), (1, 11, 10), (0, 12, 10), (11, 1, 10)] {
        let a = Archive::new(json!({})).holds(&[(1, 10)], claim);
        let dir = tempfile::tempdir().unwrap();
        a.write(&dir.path().join("S"), true);
        let found = check(&dir.path().join("S"));
        details(&found, "archive_damaged", &["state.json:"]);
    }
    // The ack floor after what was delivered.
    let found = Archive::new(json!({}))
        .consumer(json!({}), at((5, 5), (6, 6)))
        .gives(true, &["restore_consumer warning"]);
    details(&found, "restore_consumer", &["leave what they restored"]);
}

#[test]
fn a_cluster_leaves_out_what_is_pending() {
    let cluster = |state: &[ConsumerState], policy: &str| {
        let mut a = Archive::new(json!({"num_replicas": 3}));
        for (i, s) in state.iter().enumerate() {
            let name = format!("C{i}");
            let changes = json!({"name": name, "durable_name": name, "ack_policy": policy});
            a = a.consumer(changes, s.clone());
        }
        a
    };
    let json = json!({"delivered": {"consumer_seq": 5, "stream_seq": 5}, "ack_floor": {"consumer_seq": 2, "stream_seq": 2},
        "pending": {"4": {"Sequence": 4, "Timestamp": 1_800_000_000_000_000_000i64}}});
    let some = ConsumerState::from_json(&json).unwrap();
    let back = at((2, 2), (2, 2));
    let note = "restore_replicas note";
    let found = cluster(std::slice::from_ref(&back), "explicit")
        .gives(true, &["archive_cluster warning", note]);
    details(&found, "archive_cluster", &["C0", "acknowledged"]);
    // A consumer at the end had nothing pending, one that does not acknowledge neither; with one that has something
    // pending no cluster's server made it. A tar has the state that is on disk.
    cluster(&[at((10, 10), (10, 10))], "explicit").gives(true, &[note]);
    cluster(std::slice::from_ref(&back), "none").gives(true, &[note]);
    cluster(&[back.clone(), some], "explicit").gives(true, &[note]);
    cluster(std::slice::from_ref(&back), "explicit").gives(false, &[note]);
    let mut alone = cluster(&[back], "explicit");
    alone.config["num_replicas"] = json!(1);
    alone.gives(true, &[]);
}

#[test]
fn an_ephemeral_consumer_of_a_2_15_0_cluster() {
    let a = Archive::new(json!({})).consumer(json!({}), at((10, 10), (10, 10)));
    let mut raw = a.v2();
    // The entry is named `consumers`, joined with no name.
    let at = raw.windows(11).position(|w| w == b"consumers/C").unwrap();
    raw.drain(at + 9..at + 11);
    let length = raw[..at].iter().rposition(|b| *b == 11).unwrap();
    raw[length] = 9;
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("S");
    a.write(&to, true);
    let mut packed = Vec::new();
    Encoder::new().encode_stream(&raw, &mut packed).unwrap();
    fs::write(to.join("stream.tar.s2"), packed).unwrap();
    let found = check(&to);
    details(
        &found,
        "archive_member",
        &["clusters of 2.15.0", "`jetsam backup`"],
    );
    assert!(
        found.iter().all(|f| f["code"] != "archive_damaged"),
        "{found:#?}"
    );
}

#[test]
fn keys_in_an_archive() {
    let mut a = Archive::new(json!({}));
    a.more.push(("meta.key", vec![7; 72]));
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("S");
    a.write(&at, false);
    let ran = Jetsam::new().args(["check", "--json"]).arg(&at).run();
    let found = ran.json()["findings"].as_array().unwrap().clone();
    assert!(
        found
            .iter()
            .any(|f| f["code"] == "restore_keys" && f["severity"] == "warning"),
        "{found:#?}"
    );
}

#[test]
fn stores_are_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    let stream = dir.path().join("jetstream/$G/streams/S");
    make_stream(&stream, "S", 1);
    let inf = meta_inf(&merged(
        config("S"),
        json!({"num_replicas": 3, "metadata": {"_nats.req.level": "99"}}),
    ));
    fs::write(stream.join("meta.sum"), meta::sum("S", &inf)).unwrap();
    fs::write(stream.join("meta.inf"), inf).unwrap();
    for source in [dir.path(), &stream] {
        let found = check(source);
        let of_restores = |f: &&Value| f["code"].as_str().unwrap().starts_with("restore_");
        assert_eq!(found.iter().find(of_restores), None);
    }
}
