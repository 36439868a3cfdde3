//! The raft directories of real clusters against what is known otherwise: the servers' names, the streams
//! and messages that clients were told of, and what raft promises between nodes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use common::{Fixture, instant};
use jetsam::format::crypt::{KeyRing, ServerKey};
use jetsam::format::raft::{
    EntryType, decode_append_entry, decode_peers, decode_snapshot, decode_vote, op_name,
};
use jetsam::format::record::{Kind, OnDamage, Proof, Step, scan};
use jetsam::format::{Cursor, o_dat, s2};
use jetsam::source::{self, Role};
use jetsam::stream::{Scratch, Stream, Want};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The id that a server gives itself, by its name.
fn node_id(name: &str) -> String {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    Sha256::digest(name)
        .iter()
        .take(8)
        .map(|b| char::from(DIGITS[usize::from(*b) % 62]))
        .collect()
}

fn nodes() -> BTreeSet<String> {
    ["n0", "n1", "n2"].map(node_id).into()
}

/// One entry of a log; its data starts with the operation if it is a normal one.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    kind: EntryType,
    data: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Appended {
    leader: String,
    term: u64,
    commit: u64,
    previous: (u64, u64),
    last_term: Option<u64>,
    entries: Vec<Entry>,
}

/// A raft group on one node.
struct Group {
    name: String,
    /// `account`, `stream`, `consumer` and `type`, since 2.10.4.
    metadata: Option<Value>,
    dir: PathBuf,
    term: u64,
    /// Term, index and data of the newest snapshot.
    snapshot: Option<(u64, u64, Vec<u8>)>,
    /// By index, what compaction has left behind included.
    log: BTreeMap<u64, Appended>,
}

fn groups(fx: &Fixture, store: &Path) -> BTreeMap<String, Group> {
    let keys = KeyRing {
        current: fx.key().map(ServerKey::new),
        previous: None,
    };
    let source = source::open(store, &Default::default()).unwrap();
    let root = if store.join("jetstream").is_dir() {
        store.join("jetstream")
    } else {
        store.to_owned()
    };
    let mut out = BTreeMap::new();
    for s in source.groups.iter().filter(|g| g.role == Role::RaftGroup) {
        let dir = [&root, store]
            .into_iter()
            .map(|d| d.join(&s.path))
            .find(|d| d.is_dir())
            .unwrap();
        let want = Want {
            subjects: false,
            consumers: false,
        };
        let stream = Stream::open(s, &keys, want);
        assert!(!stream.locked, "{}", s.name);
        let meta = stream.meta.as_ref().unwrap();
        assert_eq!(meta.name.as_deref(), Some(s.name.as_str()));
        let group = Group {
            name: s.name.clone(),
            metadata: meta.get("metadata").cloned(),
            term: vote(&dir),
            snapshot: snapshot(&dir, &s.name),
            log: log(&stream),
            dir,
        };
        peers(&group);
        out.insert(s.name.clone(), group);
    }
    out
}

/// The log's records, all proven, each at the index that its payload says.
fn log(stream: &Stream) -> BTreeMap<u64, Appended> {
    let mut out = BTreeMap::new();
    let mut scratch = Scratch::default();
    for file in &stream.blocks {
        let block = stream.load(file, &mut scratch).unwrap();
        assert_eq!(block.findings, [], "{}/{}", stream.name, file.n);
        let prover = stream.prover(file.n);
        scan(block.bytes, 0, &prover, OnDamage::Resync, |step| {
            let Step::Record(record, Proof::Proven) = step else {
                panic!("{}/{}: {step:?}", stream.name, file.n);
            };
            if record.kind != Kind::Message {
                return;
            }
            assert!(record.subject.is_empty() && !record.has_headers);
            let e = decode_append_entry(record.payload, 0).unwrap();
            assert_eq!(e.previous_index + 1, record.seq, "{}", stream.name);
            let entry = |x: &jetsam::format::raft::Entry<'_>| Entry {
                kind: x.kind,
                data: x.data.to_vec(),
            };
            let appended = Appended {
                leader: e.leader.clone(),
                term: e.term,
                commit: e.commit,
                previous: (e.previous_term, e.previous_index),
                last_term: e.last_term,
                entries: e.entries.iter().map(entry).collect(),
            };
            out.insert(record.seq, appended);
        });
    }
    out
}

fn vote(dir: &Path) -> u64 {
    let vote = decode_vote(&fs::read(dir.join("tav.idx")).unwrap(), 0).unwrap();
    assert!(vote.term >= 1, "{}", dir.display());
    if let Some(voted) = &vote.voted {
        assert!(nodes().contains(voted), "{voted}");
    }
    vote.term
}

fn peers(group: &Group) {
    let bytes = fs::read(group.dir.join("peers.idx")).unwrap();
    let peers = decode_peers(&bytes, 0).unwrap();
    assert_eq!(peers.cluster_size, 3, "{}", group.name);
    assert_eq!(peers.peers.len(), 3, "{}", group.name);
    assert_eq!(BTreeSet::from_iter(peers.peers), nodes(), "{}", group.name);
    assert_eq!(peers.domain_extension, Some(0), "{}", group.name);
}

/// The newest snapshot; its file is named after what is in it.
fn snapshot(dir: &Path, group: &str) -> Option<(u64, u64, Vec<u8>)> {
    let files = fs::read_dir(dir.join("snapshots")).ok()?;
    let all = files.map(|f| {
        let path = f.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let s = decode_snapshot(&bytes, 0, group.as_bytes()).unwrap();
        let name = format!("snap.{}.{}", s.last_term, s.last_index);
        assert_eq!(path.file_name().unwrap().to_str(), Some(name.as_str()));
        // The first ones were made while the cluster formed.
        let peers = BTreeSet::from_iter(s.peers.peers);
        assert!(peers.len() >= 2 && peers.is_subset(&nodes()), "{group}");
        assert_eq!(s.peers.cluster_size as usize, peers.len(), "{group}");
        decode_snapshot(&bytes, 0, b"another").unwrap_err();
        (s.last_term, s.last_index, s.data.to_vec())
    });
    all.max_by_key(|s| (s.0, s.1))
}

/// A message in a stream's log.
#[derive(Debug, PartialEq)]
struct Published {
    lseq: u64,
    ts: i64,
    subject: String,
    payload: Vec<u8>,
}

fn published(entry: &Entry) -> Option<Published> {
    if entry.kind != EntryType::Normal {
        return None;
    }
    let unpacked;
    let body = match op_name(&entry.data)? {
        "stream_msg" => &entry.data[1..],
        "compressed_stream_msg" => {
            let mut out = Vec::new();
            s2::decode_block(&entry.data[1..], &mut out, 64 << 20).unwrap();
            unpacked = out;
            &unpacked[..]
        }
        _ => return None,
    };
    let mut c = Cursor::new(body, 0);
    let (lseq, ts) = (c.u64().unwrap(), c.i64().unwrap());
    let mut part = |long: bool| {
        let len = if long {
            c.u32().unwrap() as usize
        } else {
            c.u16().unwrap().into()
        };
        c.take(len).unwrap().to_vec()
    };
    let (subject, _reply, _headers, payload) = (part(false), part(false), part(false), part(true));
    Some(Published {
        lseq,
        ts,
        subject: String::from_utf8(subject).unwrap(),
        payload,
    })
}

/// What raft promises within one log.
fn is_a_log(g: &Group) {
    let mut before: Option<(u64, &Appended)> = None;
    for (index, e) in &g.log {
        let at = format!("{} at {index}", g.name);
        assert!(nodes().contains(&e.leader), "{at}: {}", e.leader);
        assert!((1..=g.term).contains(&e.term), "{at}: term {}", e.term);
        assert!(e.commit < *index, "{at}: commit {}", e.commit);
        assert!(e.previous.0 <= e.term, "{at}");
        assert!(!e.entries.is_empty(), "{at}: a heartbeat");
        // Zero but in entries sent to a node that lags behind.
        assert!(
            e.last_term
                .is_none_or(|t| t == 0 || (e.term..=g.term).contains(&t)),
            "{at}: {:?}",
            e.last_term
        );
        for x in &e.entries {
            assert!(!matches!(x.kind, EntryType::Unknown(_)), "{at}");
            if x.kind == EntryType::Normal {
                assert!(op_name(&x.data).is_some(), "{at}: {:?}", x.data.first());
            }
            if x.kind == EntryType::PeerState {
                // While the cluster forms, its first entries know some of the nodes.
                let peers = BTreeSet::from_iter(decode_peers(&x.data, 0).unwrap().peers);
                let forming = g.name == "_meta_" && peers.is_subset(&nodes());
                assert!(peers == nodes() || forming, "{at}: {peers:?}");
            }
        }
        if let Some((i, b)) = before {
            assert_eq!(i + 1, *index, "{at}: a gap");
            assert_eq!(e.previous.0, b.term, "{at}");
            assert!(e.commit >= b.commit || e.term > b.term, "{at}");
        }
        before = Some((*index, e));
    }
    // A log goes on where the snapshot ends.
    if let (Some((term, index, _)), Some((first, e))) = (&g.snapshot, g.log.first_key_value()) {
        assert!(*first <= index + 1, "{}: {first} after {index}", g.name);
        if *first == index + 1 {
            assert_eq!(e.previous, (*term, *index), "{}", g.name);
        }
        if let Some(e) = g.log.get(index) {
            assert_eq!(e.term, *term, "{}", g.name);
        }
    }
}

type Assigned = BTreeMap<String, (String, Option<String>)>;

/// What the meta layer has assigned to all three nodes: stream, or stream and consumer, by group.
fn assigned(meta: &Group) -> Assigned {
    let mut out = Assigned::new();
    let mut add = |group: &Value, stream: &Value, consumer: Option<&Value>| {
        let stream = stream.as_str().unwrap();
        let members: BTreeSet<String> = serde_json::from_value(group["peers"].clone()).unwrap();
        if members.len() == 1 {
            assert_eq!(stream, "LOCAL");
            return;
        }
        assert_eq!(members, nodes());
        let consumer = consumer.map(|c| c.as_str().unwrap().to_owned());
        let name = group["name"].as_str().unwrap().to_owned();
        out.insert(name, (stream.to_owned(), consumer));
    };
    if let Some((_, _, data)) = meta.snapshot.as_ref().filter(|s| !s.2.is_empty()) {
        let mut json = Vec::new();
        s2::decode_block(data, &mut json, 64 << 20).unwrap();
        let streams: Value = serde_json::from_slice(&json).unwrap();
        for s in streams.as_array().unwrap() {
            add(&s["group"], &s["stream"]["name"], None);
            for c in s["Consumers"].as_array().into_iter().flatten() {
                add(&c["group"], &s["stream"]["name"], Some(&c["name"]));
            }
        }
    }
    for entry in meta.log.values().flat_map(|e| &e.entries) {
        if entry.kind != EntryType::Normal {
            continue;
        }
        match op_name(&entry.data).unwrap() {
            "assign_stream" => {
                let v: Value = serde_json::from_slice(&entry.data[1..]).unwrap();
                add(&v["group"], &v["stream"]["name"], None);
            }
            "assign_compressed_consumer" => {
                let mut json = Vec::new();
                let report = s2::decode_stream(&entry.data[1..], 0, &mut json, 64 << 20, false);
                assert!(report.is_clean());
                let v: Value = serde_json::from_slice(&json).unwrap();
                add(&v["group"], &v["stream"], Some(&v["name"]));
            }
            "assign_consumer" => {
                let v: Value = serde_json::from_slice(&entry.data[1..]).unwrap();
                add(&v["group"], &v["stream"], Some(&v["name"]));
            }
            other => panic!("{other}"),
        }
    }
    out
}

/// Nodes whose meta layer has been overwritten by that of an earlier run of the same program: the same
/// streams and consumers, in groups of other names.
const OTHER_RUN: [(&str, usize); 4] = [
    ("2.9.25-cluster", 0),
    ("2.9.25-cluster", 1),
    ("2.14.5-cluster", 0),
    ("2.14.5-cluster", 1),
];

fn cluster(name: &str) {
    let fx = Fixture::open(name);
    let all: Vec<_> = fx.stores().iter().map(|s| groups(&fx, s)).collect();
    let truth = fx.truth["accounts"]["$G"].as_object().unwrap();

    // Streams with three replicas and their consumers, and the assignments.
    let mut wanted: BTreeSet<(String, Option<String>)> = BTreeSet::new();
    for (stream, t) in truth.iter().filter(|(s, _)| *s != "LOCAL") {
        wanted.insert((stream.clone(), None));
        for consumer in t["consumers"].as_object().into_iter().flatten() {
            wanted.insert((stream.clone(), Some(consumer.0.clone())));
        }
    }
    assert_eq!(wanted.len(), 5);

    let names = assigned(&all[2]["_meta_"]);
    let (mut compared, mut same, mut snapshots) = (0, 0, 0);
    for (node, groups) in all.iter().enumerate() {
        let here = assigned(&groups["_meta_"]);
        let found: BTreeSet<_> = here.values().cloned().collect();
        assert_eq!(found, wanted, "{name} n{node}");
        if OTHER_RUN.contains(&(name, node)) {
            assert_ne!(here, names, "{name} n{node}");
        } else {
            assert_eq!(here, names, "{name} n{node}");
        }
        let dirs: BTreeSet<_> = groups.keys().filter(|g| *g != "_meta_").collect();
        assert_eq!(dirs, names.keys().collect(), "{name} n{node}");
        for g in groups.values() {
            is_a_log(g);
            let since = fx.version() >= (2, 11, 5);
            assert!(g.log.values().all(|e| e.last_term.is_some() == since));
            snapshots += usize::from(g.snapshot.is_some());
            let Some((stream, consumer)) = names.get(&g.name) else {
                assert_eq!(g.name, "_meta_");
                continue;
            };
            let prefix = if consumer.is_some() {
                "C-R3F-"
            } else {
                "S-R3F-"
            };
            assert!(g.name.starts_with(prefix), "{}", g.name);
            if fx.version() >= (2, 10, 4) {
                let m = g.metadata.as_ref().expect("metadata");
                assert_eq!(
                    (m["account"].as_str(), m["stream"].as_str()),
                    (Some("$G"), Some(&stream[..]))
                );
                assert_eq!(m["consumer"].as_str(), consumer.as_deref());
            }
            let t = &truth[stream];
            match consumer {
                None => compared += messages(g, t),
                Some(_) => consumer_snapshot(g, t),
            }
        }
    }
    assert!(compared > 300, "{name}: only {compared} messages compared");
    assert!(snapshots >= 3, "{name}: only {snapshots} snapshots");

    // What two nodes have at an index in the same term is the same.
    for (i, a) in all.iter().enumerate() {
        for b in &all[i + 1..] {
            for (name, g) in a.iter().filter(|(g, _)| *g != "_meta_") {
                for (index, e) in &g.log {
                    if let Some(other) = b[name].log.get(index)
                        && other.term == e.term
                    {
                        assert_eq!(e.entries, other.entries, "{name} at {index}");
                        assert_eq!(e.previous, other.previous, "{name} at {index}");
                        same += 1;
                    }
                }
            }
        }
    }
    assert!(same > 300, "{name}: only {same} entries compared");
}

/// The messages in a stream's log are those that a client could read, as far as they were not deleted.
fn messages(g: &Group, truth: &Value) -> usize {
    use base64::Engine as _;
    let by_seq: BTreeMap<u64, &Value> = truth["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["seq"].as_u64().unwrap(), m))
        .collect();
    let last = truth["state"]["last_seq"].as_u64().unwrap();
    let mut compared = 0;
    for p in g
        .log
        .values()
        .flat_map(|e| &e.entries)
        .filter_map(published)
    {
        let seq = p.lseq + 1;
        assert!(seq <= last, "{}: {seq} of {last}", g.name);
        let Some(m) = by_seq.get(&seq) else { continue };
        assert_eq!(
            m["subject"].as_str(),
            Some(p.subject.as_str()),
            "{} {seq}",
            g.name
        );
        let ns = instant(&m["time"]).unwrap().as_nanosecond();
        assert_eq!(ns, i128::from(p.ts), "{} {seq}", g.name);
        let data = base64::prelude::BASE64_STANDARD
            .decode(m["data"].as_str().unwrap_or_default())
            .unwrap();
        assert_eq!(data, p.payload, "{} {seq}", g.name);
        compared += 1;
    }
    compared
}

/// A consumer's snapshot is its state; nothing in it is past the stream's end.
fn consumer_snapshot(g: &Group, truth: &Value) {
    let Some((_, _, data)) = &g.snapshot else {
        return;
    };
    let (state, used) = o_dat::decode(data, 0).unwrap();
    assert_eq!(used, data.len(), "{}", g.name);
    assert_eq!(o_dat::validate(&state), [], "{}", g.name);
    let last = truth["state"]["last_seq"].as_u64().unwrap();
    assert!(state.delivered.stream <= last, "{}: {state:?}", g.name);
}

#[test]
fn cluster_of_2_9() {
    cluster("2.9.25-cluster");
}

#[test]
fn cluster_of_2_14() {
    cluster("2.14.5-cluster");
}

#[test]
fn encrypted_cluster_of_2_14() {
    cluster("2.14.5-aes-cluster");
}
