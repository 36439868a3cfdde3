//! What the tests of `backup` and `restore` share: trees compared, archives opened with other people's readers,
//! what the server said about a stream, stores large enough to be interrupted.
#![allow(
    dead_code,
    reason = "each test binary uses its own part of this module"
)]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use crate::common::{Differences, Fixture, Jetsam, Ran, instant};
use jetsam::format::hash::HashKey;
use jetsam::format::meta::{self, MetaInf};
use jetsam::format::record::{NewRecord, encode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

pub const ENC_KEY: &str = "s3cr3t-fixture-key";

/// Every file and directory below `root`, relative to it, sorted; directories end in a slash.
pub fn names(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.unwrap().path();
            let mut name = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                name.push('/');
                todo.push(path);
            }
            all.push(name);
        }
    }
    all.sort();
    all
}

/// The names in a directory that are not jetsam's own leftovers; none where it does not exist.
pub fn finished(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut all: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| !n.starts_with(".jetsam-"))
        .collect();
    all.sort();
    all
}

/// An S2 stream, decoded by a library that is not jetsam's own decoder.
pub fn unframe(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    minlz::Reader::new(fs::File::open(path).unwrap())
        .read_to_end(&mut out)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    out
}

/// The members of a v1 archive, in order.
pub fn members(path: &Path) -> Vec<(String, Vec<u8>)> {
    let raw = unframe(path);
    let mut all = Vec::new();
    for entry in tar::Archive::new(raw.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        assert!(entry.header().entry_type().is_file());
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut body = Vec::new();
        entry.read_to_end(&mut body).unwrap();
        all.push((name, body));
    }
    all
}

/// S2 frames of uncompressed chunks: framing as the specification has it.
pub fn frame(raw: &[u8]) -> Vec<u8> {
    let mut out = b"\xff\x06\x00\x00S2sTwO".to_vec();
    for chunk in raw.chunks(60_000) {
        let crc = crc32c::crc32c(chunk)
            .rotate_right(15)
            .wrapping_add(0xa282_ead8);
        out.push(1);
        out.extend_from_slice(&(chunk.len() as u32 + 4).to_le_bytes()[..3]);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(chunk);
    }
    out
}

/// What the server said about a stream, as jetsam shows it: config, created, state, consumers, messages.
///
/// For fixtures of clean stops by 2.12 and later nothing else needs to be known; `tests/truth.rs` has the rules
/// for the others.
pub fn truth(fx: &Fixture, account: &str, stream: &str) -> Value {
    let said = &fx.truth["accounts"][account][stream];
    let mut config = said["config"].clone();
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        // Of the answer, not of the stream.
        metadata.remove("_nats.ver");
        metadata.remove("_nats.level");
    }
    let mut state = said["state"].clone();
    for key in ["deleted", "subjects", "consumer_count"] {
        state.as_object_mut().unwrap().remove(key);
    }
    state["num_deleted"] = said["state"]
        .get("num_deleted")
        .cloned()
        .unwrap_or(json!(0));
    state["num_subjects"] = said["state"]
        .get("num_subjects")
        .cloned()
        .unwrap_or(json!(0));
    if state["last_seq"] == 0 {
        // Never written: the API says first 0 and one deleted, before a restart; see tests/truth.rs.
        state["first_seq"] = json!(1);
        state["num_deleted"] = json!(0);
    }
    let consumers: Vec<Value> = said["consumers"]
        .as_object()
        .unwrap()
        .values()
        .map(|c| {
            json!({
                "name": c["name"], "config": c["config"], "created": c["created"],
                "delivered": pair(&c["delivered"]), "ack_floor": pair(&c["ack_floor"]),
                "num_ack_pending": c["num_ack_pending"], "num_redelivered": c["num_redelivered"],
                "num_pending": c["num_pending"],
            })
        })
        .collect();
    json!({
        "config": config, "created": said["created"], "state": state, "consumers": consumers,
        "messages": said["messages"],
    })
}

fn pair(v: &Value) -> Value {
    json!({ "consumer_seq": v["consumer_seq"], "stream_seq": v["stream_seq"] })
}

/// The same of a stream in a source.
pub fn found(fx: &Fixture, source: &Path, account: &str, stream: &str) -> Value {
    let select = |verb: &str| {
        let mut j = fx.jetsam().args([verb, "--json", "-s", stream]).arg(source);
        if !account.is_empty() {
            j = j.args(["-a", account]);
        }
        j.run().status(0)
    };
    let info = select("info").json();
    assert_eq!(info.as_array().unwrap().len(), 1, "{info}");
    let info = &info[0];
    let mut state = info["state"].clone();
    state.as_object_mut().unwrap().remove("consumer_count");
    for key in ["num_deleted", "num_subjects"] {
        if state.get(key).is_none() {
            state[key] = json!(0);
        }
    }
    if state["last_seq"] == 0 && state["first_seq"] == 0 {
        state["first_seq"] = json!(1);
    }
    let consumers: Vec<Value> = info["consumers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| {
            let mut c = c.clone();
            c.as_object_mut().unwrap().remove("stream_name");
            for key in ["delivered", "ack_floor"] {
                c[key] = pair(&c[key]);
            }
            c
        })
        .collect();
    let messages: Vec<Value> = select("view")
        .json_lines()
        .into_iter()
        .map(|mut m| {
            m.as_object_mut()
                .unwrap()
                .retain(|k, _| k != "account" && k != "stream");
            m
        })
        .collect();
    json!({
        "config": info["config"], "created": info["created"], "state": state, "consumers": consumers,
        "messages": messages,
    })
}

/// Fails where the two differ, lists walked so that the first difference is named.
#[track_caller]
pub fn same(what: &str, got: &Value, want: &Value) {
    let mut d = Differences::default();
    for key in ["config", "created", "state"] {
        d.json(key, &got[key], &want[key]);
    }
    for key in ["consumers", "messages"] {
        let (g, w) = (got[key].as_array().unwrap(), want[key].as_array().unwrap());
        if g.len() != w.len() {
            d.add(format!("{} {key}, the truth is {}", g.len(), w.len()));
        }
        for (i, (g, w)) in g.iter().zip(w).enumerate() {
            d.json(&format!("{key}[{i}]"), g, w);
        }
    }
    d.none(what);
}

/// The streams of a fixture that are on disk: (account, name).
pub fn on_disk(fx: &Fixture) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (account, streams) in fx.truth["accounts"].as_object().unwrap() {
        for (name, s) in streams.as_object().unwrap() {
            if s["config"]["storage"] != "memory" {
                all.push((account.clone(), name.clone()));
            }
        }
    }
    all.sort();
    all
}

/// `jetsam diff`, which has to find nothing.
#[track_caller]
pub fn no_difference(fx: &Fixture, a: &Path, b: &Path, more: &[&str]) {
    let ran = fx
        .jetsam()
        .args(["diff", "--json"])
        .args([a, b])
        .args(more)
        .run();
    assert_eq!(
        (ran.status, String::from_utf8_lossy(&ran.stdout).as_ref()),
        (Some(0), ""),
        "{}: {}",
        ran.line,
        ran.stderr
    );
}

/// Pseudo-random bytes: nothing that compresses.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(n + 8);
        while out.len() < n {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(n);
        out
    }
}

/// A stream's configuration.
pub fn config(name: &str) -> Value {
    json!({
        "name": name, "subjects": [format!("{}.>", name.to_lowercase())], "retention": "limits",
        "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msgs_per_subject": -1,
        "max_msg_size": -1, "discard": "old", "storage": "file", "num_replicas": 1,
        "duplicate_window": 120_000_000_000u64,
    })
}

pub fn meta_inf(config: &Value) -> Vec<u8> {
    let Value::Object(config) = config.clone() else {
        panic!()
    };
    let created = Some("2026-01-02T03:04:05.123456789Z".to_owned());
    meta::encode_stream(&MetaInf::new_stream(config, created))
}

/// A block of `count` messages from `first` on.
pub fn block(stream: &str, n: u64, first: u64, count: u64, payload: usize) -> Vec<u8> {
    let key = HashKey::block(stream, n);
    let mut noise = Noise(first);
    let mut out = Vec::new();
    for seq in first..first + count {
        let subject = format!("{}.{}", stream.to_lowercase(), seq % 10);
        let record = NewRecord {
            seq,
            ts: 1_767_323_045_000_000_000 + seq as i64 * 1000,
            subject: subject.as_bytes(),
            headers: b"",
            payload: &noise.bytes(payload),
        };
        encode(&mut out, &key, &record).unwrap();
    }
    out
}

/// A stream directory with `blocks` blocks of 1 MiB, as a killed server leaves it: no `index.db`.
pub fn make_stream(dir: &Path, name: &str, blocks: u64) {
    fs::create_dir_all(dir.join("msgs")).unwrap();
    let inf = meta_inf(&config(name));
    fs::write(dir.join("meta.sum"), meta::sum(name, &inf)).unwrap();
    fs::write(dir.join("meta.inf"), inf).unwrap();
    for n in 1..=blocks {
        let bytes = block(name, n, (n - 1) * 64 + 1, 64, 16 << 10);
        fs::write(dir.join(format!("msgs/{n}.blk")), bytes).unwrap();
    }
}

/// A store with the streams A and B of `blocks` MiB each.
pub fn make_store(root: &Path, blocks: u64) {
    for name in ["A", "B"] {
        make_stream(&root.join("jetstream/$G/streams").join(name), name, blocks);
    }
}

impl Jetsam {
    pub fn spawn(mut self) -> Child {
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// The same call through `sh`, after `limits` such as `ulimit -v 900000`.
    pub fn limited(self, limits: &str) -> Jetsam {
        let mut sh = std::process::Command::new("sh");
        sh.arg("-c")
            .arg(format!("{limits}; exec \"$0\" \"$@\""))
            .arg(self.command.get_program())
            .args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => sh.env(name, value),
                None => sh.env_remove(name),
            };
        }
        Jetsam { command: sh }
    }
}

/// Waits for a child, but not for ever.
pub fn wait(mut child: Child, line: &str) -> Ran {
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{line}: still running after a minute");
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let (mut stdout, mut stderr) = (Vec::new(), String::new());
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut stdout)
        .unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    Ran {
        line: line.to_owned(),
        status: status.code(),
        stdout,
        stderr,
    }
}

/// Sends a signal to a child of ours.
pub fn signal(child: &Child, name: &str) {
    let status = std::process::Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .stderr(Stdio::null())
        .status()
        .unwrap();
    let _ = status; // It may have ended meanwhile.
}

/// A small file system of its own; `None` where that is not allowed.
pub struct Tmpfs(pub PathBuf);

impl Tmpfs {
    pub fn new(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success());
        mounted.then(|| Tmpfs(at.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

/// The message has all of these in it.
#[track_caller]
pub fn says(ran: &Ran, words: &[&str]) {
    for word in words {
        assert!(
            ran.stderr.contains(word),
            "{}: {word:?} is not in the message: {}",
            ran.line,
            ran.stderr
        );
    }
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
}

/// Both are the same time, to the nanosecond.
pub fn same_time(a: &Value, b: &Value) -> bool {
    instant(a).is_some() && instant(a) == instant(b)
}

/// A store's files by name, with content and mode.
pub fn contents(root: &Path) -> BTreeMap<String, Vec<u8>> {
    names(root)
        .into_iter()
        .filter(|n| !n.ends_with('/'))
        .map(|n| (n.clone(), fs::read(root.join(&n)).unwrap()))
        .collect()
}
