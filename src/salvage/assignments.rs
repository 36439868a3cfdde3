//! Configurations in a cluster's meta group: its snapshot and its log hold that of every stream, in clear where the
//! streams themselves are encrypted.

use crate::format::crypt::KeyRing;
use crate::format::raft::{self, EntryType};
use crate::format::s2;
use crate::pipeline::Threads;
use crate::source::{Body, Role, StreamSource};
use crate::state::visit::Pass;
use crate::state::{Depth, survey};
use crate::stream::{Stream, Want};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Name of the group.
const META: &str = "_meta_";
/// Ceiling for a snapshot, as a file and decoded.
const SNAPSHOT: u64 = 256 << 20;

/// Configurations by account and stream.
pub type Assignments = BTreeMap<(String, String), Assigned>;

/// A stream's configuration.
#[derive(Debug, Clone)]
pub struct Assigned {
    /// The configuration.
    pub config: Map<String, Value>,
    /// When the stream was made.
    pub created: Option<String>,
}

/// Operations of the group's log that bring a stream's configuration.
const ASSIGN: [u8; 2] = [0, 11];

/// What the meta groups among `groups` say.
pub fn read(groups: &[StreamSource], keys: &KeyRing, threads: &Threads) -> Assignments {
    let mut out = Assignments::new();
    for group in groups {
        if group.role == Role::RaftGroup && group.name == META {
            snapshot(group, &mut out);
            log(group, keys, threads, &mut out);
        }
    }
    out
}

/// Notes an assignment: `{client: {acc, svc?}, stream: StreamConfig, …}`.
fn note(assignment: &mut Value, out: &mut Assignments) {
    let Some(Value::Object(config)) = assignment.get_mut("stream").map(Value::take) else {
        return;
    };
    let client = assignment.get("client");
    let account = ["svc", "acc"]
        .iter()
        .filter_map(|key| client?.get(key)?.as_str())
        .find(|name| !name.is_empty());
    let name = config.get("name").and_then(Value::as_str);
    if let (Some(account), Some(name)) = (account, name) {
        let created = assignment.get("created").and_then(Value::as_str);
        let key = (account.to_owned(), name.to_owned());
        let created = created.map(str::to_owned);
        out.insert(key, Assigned { config, created });
    }
}

/// The newest snapshot that proves itself.
fn snapshot(group: &StreamSource, out: &mut Assignments) {
    let Body::Blocks { tree, dir, .. } = &group.body else {
        return;
    };
    let at = dir.join("snapshots");
    let mut files: Vec<(u64, u64, std::path::PathBuf)> = tree
        .children(&at)
        .unwrap_or_default()
        .iter()
        .filter_map(|c| {
            let (term, index) = c.name.to_str()?.strip_prefix("snap.")?.split_once('.')?;
            Some((term.parse().ok()?, index.parse().ok()?, at.join(&c.name)))
        })
        .collect();
    files.sort();
    for (_, _, path) in files.iter().rev() {
        let mut raw = Vec::new();
        if tree.read_into(path, &mut raw, SNAPSHOT).is_err() {
            continue;
        }
        let Ok(snapshot) = raft::decode_snapshot(&raw, 0, META.as_bytes()) else {
            continue;
        };
        let mut json = Vec::new();
        let ceiling = usize::try_from(SNAPSHOT).unwrap_or(usize::MAX);
        if s2::decode_block(snapshot.data, &mut json, ceiling).is_err() {
            continue;
        }
        if let Ok(mut all) = serde_json::from_slice::<Vec<Value>>(&json) {
            all.iter_mut().for_each(|a| note(a, out));
            return;
        }
    }
}

/// What the log says since.
fn log(group: &StreamSource, keys: &KeyRing, threads: &Threads, out: &mut Assignments) {
    let want = Want::NOTHING;
    let stream = Stream::open(group, keys, want);
    let found = survey(&stream, threads, Depth::default(), &|_| {});
    let pass = Pass::new(&stream, &found.state, threads, &|_| {});
    pass.run(
        Vec::new,
        |assigned: &mut Vec<Value>, m| {
            let entries =
                raft::decode_append_entry(m.payload, 0).map_or_else(|_| Vec::new(), |e| e.entries);
            for e in entries {
                if e.kind == EntryType::Normal
                    && let Some((op, json)) = e.data.split_first()
                    && ASSIGN.contains(op)
                    && let Ok(assignment) = serde_json::from_slice(json)
                {
                    assigned.push(assignment);
                }
            }
            ControlFlow::Continue(())
        },
        |mut assigned| {
            assigned.iter_mut().for_each(|a| note(a, out));
            ControlFlow::Continue(())
        },
    );
}
