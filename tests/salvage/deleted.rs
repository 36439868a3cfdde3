//! `--deleted`: what a server was deleting, purging, staging or had not committed.

use super::common::{Fixture, Jetsam, copy_tree};
use super::helpers::make_stream;
use super::{Messages, salvage, view};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

struct Store {
    fx: Fixture,
    work: TempDir,
    store: PathBuf,
}

impl Store {
    fn new() -> Self {
        let fx = Fixture::open("2.14.5-basic");
        let work = tempfile::tempdir().unwrap();
        let store = work.path().join("store");
        copy_tree(&fx.stores()[0], &store);
        Self { fx, work, store }
    }

    fn account(&self) -> PathBuf {
        self.store.join("jetstream/$G")
    }

    fn truth(&self, stream: &str) -> Messages {
        let all = &self.fx.truth["accounts"]["$G"][stream]["messages"];
        let all = all.as_array().unwrap().iter();
        all.map(|m| (m["seq"].as_u64().unwrap(), m.clone()))
            .collect()
    }

    /// What `salvage --deleted` makes of it: the report, and what is in the new store.
    fn deleted(&self) -> (Value, std::collections::BTreeMap<super::Name, Messages>) {
        let dest = self.work.path().join("new");
        let (ran, report) = salvage(&self.fx, &self.store, &dest, &["--deleted"]);
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
        // It is a store without a fault.
        Jetsam::new().arg("check").arg(&dest).run().status(0);
        (report, view(&self.fx, &dest))
    }
}

fn name(stream: &str) -> super::Name {
    ("$G".to_owned(), stream.to_owned())
}

/// A stream that was moved to `place` is not served by anything but `--deleted`, and that brings it back whole.
fn moved(place: &str) {
    let s = Store::new();
    let want = s.truth("ORDERS");
    let at = s.account().join(place);
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::rename(s.account().join("streams/ORDERS"), &at).unwrap();
    assert!(!view(&s.fx, &s.store).contains_key(&name("ORDERS")));
    let dest = s.work.path().join("without");
    salvage(&s.fx, &s.store, &dest, &[]).0.status(0);
    assert!(!view(&s.fx, &dest).contains_key(&name("ORDERS")), "{place}");
    let (_, got) = s.deleted();
    assert_eq!(got[&name("ORDERS")], want, "{place}");
    assert_eq!(
        got[&name("WORK")],
        s.truth("WORK"),
        "the others are there, too"
    );
}

#[test]
fn a_stream_that_was_being_deleted() {
    moved("streams/.ORDERS");
}

#[test]
fn a_stream_that_was_being_restored() {
    moved("../.snap-staging/8fYxJ4P2");
}

#[test]
fn a_stream_in_the_scratch_space_of_a_backup() {
    moved("__snapshots__/snapshot-ORDERS");
}

#[test]
fn a_stream_directory_in_the_wrong_place() {
    moved("ORDERS");
}

/// A purge sets the messages aside before it deletes them.
#[test]
fn messages_that_were_being_purged() {
    let s = Store::new();
    let dir = s.account().join("streams/ORDERS");
    fs::rename(dir.join("msgs"), dir.join("__msgs__")).unwrap();
    fs::remove_file(dir.join("__msgs__/index.db")).unwrap();
    fs::create_dir(dir.join("msgs")).unwrap();
    let (report, got) = s.deleted();
    assert!(got.get(&name("ORDERS")).is_none_or(Messages::is_empty));
    assert_eq!(got[&name("ORDERS_purged")], s.truth("ORDERS"));
    let row = report["deleted"].as_array().unwrap().iter();
    let row: Vec<&Value> = row.filter(|r| r["stream"] == "ORDERS_purged").collect();
    assert_eq!(row.len(), 1);
    assert_eq!(row[0]["deleted_from"], "ORDERS");
    assert_eq!(row[0]["messages"], s.truth("ORDERS").len());
}

/// A batch that was not committed is a small store within the stream.
#[test]
fn messages_of_an_unfinished_batch() {
    let s = Store::new();
    let batches = s.account().join("streams/ORDERS/batches");
    make_stream(&batches.join("0a1b2c"), "0a1b2c", 1);
    let (report, got) = s.deleted();
    assert_eq!(got[&name("ORDERS")], s.truth("ORDERS"));
    let batch = &got[&name("ORDERS_batch")];
    let rows = report["deleted"].as_array().unwrap();
    let row = rows.iter().find(|r| r["stream"] == "ORDERS_batch").unwrap();
    assert_eq!(row["deleted_from"], "ORDERS");
    assert_eq!((&row["messages"], batch.len()), (&64.into(), 64));
    assert_eq!(batch[&7]["subject"], "0a1b2c.7");
}
