//! What `check` says a server's start would do, held to damage of which everything is known. That servers do so is
//! tried in `tests/live/onstart_test.go`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use common::{Fixture, Jetsam, copy_tree};
use jetsam::format::hash::HashKey;
use jetsam::format::record::{NewRecord, encode};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

struct Harmed {
    fx: Fixture,
    _work: tempfile::TempDir,
    store: PathBuf,
    stream: &'static str,
}

impl Harmed {
    fn new(fixture: &str, stream: &'static str) -> Self {
        let fx = Fixture::open(fixture);
        let work = tempfile::tempdir().unwrap();
        let store = work.path().join("store");
        copy_tree(&fx.stores()[0], &store);
        Self {
            fx,
            _work: work,
            store,
            stream,
        }
    }

    fn dir(&self) -> PathBuf {
        self.store.join("jetstream/$G/streams").join(self.stream)
    }

    fn block(&self, n: u64) -> PathBuf {
        self.dir().join(format!("msgs/{n}.blk"))
    }

    fn scanned(self) -> Self {
        fs::remove_file(self.dir().join("msgs/index.db")).unwrap();
        self
    }

    fn records(&self, n: u64) -> Vec<Value> {
        let ran = self.fx.jetsam().args(["inspect", "--json"]);
        ran.arg(self.block(n)).run().status(0).json_lines()
    }

    /// Spoils the payload of the `i`th record of a block, and gives its offset.
    fn flip(&self, n: u64, i: usize) -> u64 {
        let records = self.records(n);
        let at = records[i]["offset"].as_u64().unwrap();
        let end = at + records[i]["length"].as_u64().unwrap();
        let mut bytes = fs::read(self.block(n)).unwrap();
        bytes[end as usize - 9] ^= 1;
        fs::write(self.block(n), bytes).unwrap();
        at
    }

    /// Live messages of these sequences, as the truth has them.
    fn live(&self, from: &Value, to: &Value) -> usize {
        let range = from.as_u64().unwrap()..=to.as_u64().unwrap();
        let lines = self.fx.view_lines("$G", self.stream);
        let live = lines
            .iter()
            .filter(|m| range.contains(&m["seq"].as_u64().unwrap()));
        live.count()
    }

    fn check(&self) -> common::Ran {
        let check = self
            .fx
            .jetsam()
            .args(["check", "--json", "-s", self.stream]);
        check.arg(&self.store).run().no_panic()
    }

    /// (code, on_start) of each finding.
    fn says(&self) -> Vec<(String, String)> {
        let report = self.check().json();
        let findings = report["findings"].as_array().unwrap().iter();
        let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
        findings
            .map(|f| (text(&f["code"]), text(&f["on_start"])))
            .collect()
    }

    fn says_of(&self, code: &str) -> String {
        let all = self.says();
        let found = all.iter().find(|(c, _)| c == code);
        found
            .unwrap_or_else(|| panic!("no {code}: {all:?}"))
            .1
            .clone()
    }
}

fn thousands(n: u64) -> String {
    match n {
        0..1000 => n.to_string(),
        n => format!("{},{:03}", n / 1000, n % 1000),
    }
}

#[test]
fn truncation_counts_what_is_behind() {
    for fixture in ["2.14.5-basic", "2.14.5-aes-basic"] {
        let h = Harmed::new(fixture, "BLOCKS");
        let records = h.records(2);
        let at = h.flip(2, 40);
        let lost = h.live(&records[40]["seq"], &records.last().unwrap()["seq"]);
        assert!(lost > 40);
        let cut = format!(
            "truncates 2.blk at {}: {lost} messages are lost, 1 of them damaged",
            thousands(at)
        );
        let kept = "nothing while index.db is valid: 1 message cannot be read; without it ";
        assert_eq!(h.says_of("record_hash"), format!("{kept}{cut}"));
        let h = h.scanned();
        assert_eq!(h.says_of("record_hash"), cut);
        // What comes before the first is kept, what comes after goes with it.
        h.flip_again(&records, 60);
        let said: Vec<String> = h.says().into_iter().map(|(_, s)| s).collect();
        let two = cut.replace("1 of them", "2 of them");
        assert_eq!(said, [two.as_str(), "as said of the first damage in 2.blk"]);
    }
}

impl Harmed {
    fn flip_again(&self, records: &[Value], i: usize) {
        let end = records[i]["offset"].as_u64().unwrap() + records[i]["length"].as_u64().unwrap();
        let mut bytes = fs::read(self.block(2)).unwrap();
        bytes[end as usize - 9] ^= 1;
        fs::write(self.block(2), bytes).unwrap();
    }
}

#[test]
fn a_first_record_takes_the_block_with_it() {
    let h = Harmed::new("2.14.5-basic", "BLOCKS");
    let records = h.records(3);
    h.flip(3, 0);
    let lost = h.live(&records[0]["seq"], &records.last().unwrap()["seq"]);
    let h = h.scanned();
    let want = format!("deletes 3.blk: {lost} messages are lost, 1 of them damaged");
    assert_eq!(h.says_of("record_hash"), want);
}

#[test]
fn tombstones_and_the_last_sequence_go_too() {
    let h = Harmed::new("2.14.5-basic", "ORDERS");
    let records = h.records(1);
    let i = records.iter().position(|r| r["seq"] == 204).unwrap();
    let before: Vec<&Value> = records[..i]
        .iter()
        .filter(|r| r["kind"] == "message")
        .map(|r| &r["seq"])
        .collect();
    let gone = |r: &&Value| r["kind"] == "tombstone";
    let back = records[i..]
        .iter()
        .filter(gone)
        .filter(|r| before.contains(&&r["seq"]))
        .count();
    let last = records.iter().rfind(|r| r["kind"] == "message").unwrap()["seq"].clone();
    let at = h.flip(1, i);
    let lost = h.live(&records[i]["seq"], &last);
    assert!(back > 0 && lost > 1);
    let want = format!(
        "truncates 1.blk at {}: {lost} messages are lost, 1 of them damaged, and up to {back} deleted messages may come back; \
         the last sequence falls back from {last} to {}",
        thousands(at),
        records[i - 1]["seq"]
    );
    assert_eq!(h.scanned().says_of("record_hash"), want);
}

#[test]
fn a_wrong_length_is_cut_at_the_first_read() {
    let h = Harmed::new("2.14.5-basic", "BLOCKS");
    let records = h.records(2);
    let at = records[40]["offset"].as_u64().unwrap();
    let mut bytes = fs::read(h.block(2)).unwrap();
    bytes[at as usize + 2] ^= 0x10;
    fs::write(h.block(2), bytes).unwrap();
    let lost = h.live(&records[40]["seq"], &records.last().unwrap()["seq"]);
    let cut = format!("truncates 2.blk at {}", thousands(at));
    assert_eq!(
        h.says_of("record_structure"),
        format!("{cut} when it is first read: {lost} messages are lost, 1 of them damaged")
    );
    // Without an index nobody knows what the damaged bytes held: one message or none.
    let want = format!(
        "{cut}: {} to {lost} messages are lost, and deleted ones may come back",
        lost - 1
    );
    assert_eq!(h.scanned().says_of("record_structure"), want);
}

#[test]
fn a_compressed_block_takes_the_stream_with_it() {
    let h = Harmed::new("2.14.5-compress", "S2").scanned();
    let mut bytes = fs::read(h.block(2)).unwrap();
    bytes[200] ^= 1;
    fs::write(h.block(2), bytes).unwrap();
    let readable = h.check().json()["summary"]["messages"].as_u64().unwrap();
    assert_eq!(
        h.says_of("compression"),
        format!(
            "removes the stream's directory: the stream is gone, {readable} readable messages with it; 2.10 to 2.12 delete 2.blk alone"
        )
    );
    let text = Jetsam::new()
        .args(["check", "-s", "S2"])
        .arg(&h.store)
        .run()
        .status(1)
        .text();
    assert!(
        text.contains("\n    on start: removes the stream's directory: "),
        "{text}"
    );
    assert!(!text.contains("on start: goes with"), "{text}");
}

#[test]
fn a_stream_that_is_skipped_loses_nothing() {
    let h = Harmed::new("2.14.5-basic", "BLOCKS").scanned();
    h.flip(2, 40);
    fs::remove_file(h.dir().join("meta.sum")).unwrap();
    let skips = "skips the stream: all its files stay as they are";
    assert_eq!(h.says_of("sum_missing"), skips);
    assert_eq!(h.says_of("record_hash"), "nothing: the stream is skipped");
    let text = Jetsam::new()
        .args(["check", "-s", "BLOCKS"])
        .arg(&h.store)
        .run()
        .status(1)
        .text();
    assert!(!text.contains("on start:"), "{text}");
}

#[test]
fn keys_of_blocks() {
    let h = Harmed::new("2.14.5-aes-basic", "BLOCKS");
    let records = h.records(2);
    let lost = h.live(&records[0]["seq"], &records.last().unwrap()["seq"]);
    let key = h.dir().join("msgs/2.key");
    let mut bytes = fs::read(&key).unwrap();
    bytes[40] ^= 1;
    fs::write(&key, bytes).unwrap();
    assert_eq!(
        h.says_of("key_file"),
        format!(
            "nothing while index.db is valid: {lost} messages cannot be read; without it deletes 2.blk: {lost} messages are lost, \
             and deleted ones may come back; 2.14.0 to 2.14.3 remove the stream's directory"
        )
    );
    fs::remove_file(&key).unwrap();
    let said = h.says_of("plaintext");
    assert_eq!(
        said,
        format!(
            "makes a new 2.key when it is first read, and so gives up 2.blk: {lost} messages are lost"
        )
    );
    let said = h.scanned().says_of("plaintext");
    assert!(
        said.starts_with("removes the stream's directory: "),
        "{said}"
    );
}

#[test]
fn records_over_32_mib() {
    for (size, large) in [
        (33usize << 20, true),
        (32 << 20, true),
        ((32 << 20) - 64, false),
    ] {
        let h = Harmed::new("2.14.5-basic", "ORDERS").scanned();
        let mut block = Vec::new();
        let payload = vec![0; size];
        let record = NewRecord {
            seq: 301,
            ts: 1,
            subject: b"orders.large",
            headers: b"",
            payload: &payload,
        };
        encode(&mut block, &HashKey::block(b"ORDERS", 2), &record).unwrap();
        fs::write(h.block(2), block).unwrap();
        let want = "deletes 2.blk: 1 message is lost; the last sequence falls back from 301 to 300";
        let large_ones: Vec<_> = h
            .says()
            .into_iter()
            .filter(|(c, _)| c == "record_large")
            .collect();
        let all = [("record_large".to_owned(), want.to_owned())];
        assert_eq!(large_ones, &all[..usize::from(large)], "{size}");
    }
}

#[test]
fn the_log_of_a_raft_group() {
    let fx = Fixture::open("2.14.5-cluster");
    let work = tempfile::tempdir().unwrap();
    let store = work.path().join("store");
    copy_tree(&fx.stores()[0], &store);
    let group = "S-R3F-Cp0nksAo";
    let block = store
        .join("jetstream/$SYS/_js_")
        .join(group)
        .join("msgs/2.blk");
    let inspect = || Jetsam::new().args(["inspect", "--json"]).arg(&block).run();
    let records: Vec<Value> = inspect().status(0).json_lines();
    let messages: Vec<&Value> = records.iter().filter(|r| r["kind"] == "message").collect();
    let bad = messages[messages.len() / 2];
    let end = bad["offset"].as_u64().unwrap() + bad["length"].as_u64().unwrap();
    let mut bytes = fs::read(&block).unwrap();
    bytes[end as usize - 9] ^= 1;
    fs::write(&block, bytes).unwrap();
    let report = Jetsam::new()
        .args(["check", "--json", "-s", group])
        .arg(&store)
        .run()
        .status(1)
        .json();
    let findings = report["findings"].as_array().unwrap();
    let found = findings
        .iter()
        .find(|f| f["code"] == "record_hash")
        .unwrap();
    let lost = messages.len() - messages.len() / 2;
    let want = format!(
        "cuts the log at entry {} and fetches what follows from the other nodes: {lost} entries are lost here",
        bad["seq"]
    );
    assert_eq!(found["on_start"], want.as_str());
}

/// Nobody starts a server on an archive, and nothing is said of a store in which nothing is wrong.
#[test]
fn archives_are_not_started() {
    let h = Harmed::new("2.14.5-basic", "BLOCKS");
    assert_eq!(h.says(), []);
    let archive = h.fx.dir.join("snapshots/$G/BLOCKS.tar.s2");
    let mut bytes = fs::read(&archive).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let broken: &Path = &h.store.join("broken.tar.s2");
    fs::write(broken, bytes).unwrap();
    let report = Jetsam::new()
        .args(["check", "--json"])
        .arg(broken)
        .run()
        .status(1)
        .json();
    let findings = report["findings"].as_array().unwrap();
    assert!(!findings.is_empty());
    assert!(
        findings.iter().all(|f| f.get("on_start").is_none()),
        "{findings:?}"
    );
}
