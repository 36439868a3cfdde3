//! `salvage`: what it brings back is what the server had (`truth.json`, or the undamaged store), what it does not
//! bring back it names, and nothing else changes.
//!
//! * [`bits`]: every bit of the tiny stores.
//! * [`many_bits`]: many flipped bits at once in every store that a server left.
//! * [`structures`]: pages, blocks and files lost, moved, doubled or garbled.
//! * [`contract`]: options, exit status, report, source untouched.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

#[path = "salvage/bits.rs"]
mod bits;
#[macro_use]
mod common;
#[path = "salvage/contract.rs"]
mod contract;
#[path = "salvage/deleted.rs"]
mod deleted;
#[path = "common/backup.rs"]
mod helpers;
#[path = "salvage/many_bits.rs"]
mod many_bits;
#[path = "salvage/structures.rs"]
mod structures;

use common::{Fixture, Ran};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Messages by sequence.
type Messages = BTreeMap<u64, Value>;
/// Account and stream.
type Name = (String, String);

/// What is served of each stream of a source, by `view`.
fn view(fx: &Fixture, source: &Path) -> BTreeMap<Name, Messages> {
    let ran = fx.jetsam().args(["view", "--json"]).arg(source).run();
    assert!(matches!(ran.status, Some(0 | 1)), "{}", ran.stderr);
    let mut out: BTreeMap<Name, Messages> = BTreeMap::new();
    for mut line in ran.json_lines() {
        let mut take = |key| match line.as_object_mut().unwrap().remove(key) {
            Some(Value::String(s)) => s,
            other => panic!("{key}: {other:?}"),
        };
        let name = (take("account"), take("stream"));
        let seq = line["seq"].as_u64().unwrap();
        let before = out.entry(name).or_default().insert(seq, line);
        assert!(before.is_none(), "sequence {seq} twice");
    }
    out
}

/// Configuration, state and consumers of each stream, by `info`, without what another directory or a single server
/// changes.
fn info(fx: &Fixture, source: &Path) -> BTreeMap<Name, Value> {
    let ran = fx
        .jetsam()
        .args(["info", "--json", "--deleted", "--subjects"])
        .arg(source)
        .run();
    assert!(matches!(ran.status, Some(0 | 1)), "{}", ran.stderr);
    let Value::Array(all) = ran.json() else {
        panic!("{}", ran.text());
    };
    all.into_iter()
        .map(|mut v| {
            let o = v.as_object_mut().unwrap();
            o.remove("path");
            o.remove("storage");
            // In a stream that never had a message the first sequence is 0 or 1: servers give either.
            if v.pointer("/state/last_seq") == Some(&0.into()) {
                *v.pointer_mut("/state/first_seq").unwrap() = 1.into();
            }
            if let Some(r) = v.pointer_mut("/config/num_replicas") {
                *r = 1.into();
            }
            for c in v["consumers"].as_array_mut().unwrap() {
                if let Some(r) = c.pointer_mut("/config/num_replicas")
                    && r.as_u64() > Some(1)
                {
                    *r = 1.into();
                }
            }
            let name = |v: &Value| v.as_str().unwrap().to_owned();
            ((name(&v["account"]), name(&v["config"]["name"])), v)
        })
        .collect()
}

/// Runs `salvage --json`; its report.
fn salvage(fx: &Fixture, source: &Path, dest: &Path, more: &[&str]) -> (Ran, Value) {
    let ran = fx
        .jetsam()
        .args(["salvage", "--json", "-q"])
        .args(more)
        .arg(source)
        .arg(dest)
        .run()
        .no_panic();
    let report = match ran.status {
        Some(0 | 1) => ran.json(),
        _ => Value::Null,
    };
    (ran, report)
}

/// The sequences of `[[from, to], …]`.
fn sequences(ranges: &Value) -> BTreeSet<u64> {
    ranges
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|r| r[0].as_u64().unwrap()..=r[1].as_u64().unwrap())
        .collect()
}

/// A small generator of numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}
