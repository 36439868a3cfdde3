//! `--io-limit`, and `check` in parts, of a sample, and in several sittings.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use common::{Fixture, Jetsam};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

fn report(j: Jetsam, source: &Path) -> Value {
    j.arg("check").arg(source).arg("--json").run().json()
}

/// With a limit the answer is the same, and takes at least the bytes divided by the rate.
#[test]
fn a_limit_is_kept() {
    let f = Fixture::open("2.14.5-basic");
    let store = &f.stores()[0];
    let archive = f.dir.join("snapshots/$G/BLOCKS.tar.s2");
    let v2 = Fixture::open("2.15.2-basic")
        .dir
        .join("snapshots/$G/BLOCKS.tar.s2");
    let in_store = report(f.jetsam(), store)["summary"]["bytes"].as_u64();
    for (source, bytes) in [
        (store, in_store.unwrap()),
        (&archive, fs::metadata(&archive).unwrap().len()),
        (&v2, fs::metadata(&v2).unwrap().len()),
    ] {
        let whole = report(f.jetsam(), source);
        assert_eq!(whole["summary"]["errors"], 0);
        let rate = bytes * 5 / 2;
        for threads in ["1", "4"] {
            let started = Instant::now();
            let j = f.jetsam().arg("--io-limit").arg(format!("{rate}/s"));
            let slow = report(j.args(["--threads", threads]), source);
            let took = started.elapsed();
            assert_eq!(slow, whole);
            let least = Duration::from_millis(400);
            assert!(took >= least, "{source:?}, {threads} threads: {took:?}");
        }
    }
}

#[test]
fn a_limit_that_is_none_is_refused() {
    let f = Fixture::open("2.14.5-basic");
    let store = &f.stores()[0];
    for options in [
        &["--io-limit", "0"][..],
        &["--io-limit", "fast"],
        &["--io-limit", "1M", "--mmap"],
    ] {
        let ran = f.jetsam().arg("ls").arg(store).args(options).run();
        assert!(ran.status(2).stdout.is_empty());
    }
    let meta = store.join("jetstream/$G/streams/WORK/meta.inf");
    assert!(meta.exists());
    let j = f.jetsam().arg("inspect").arg(meta);
    j.args(["--io-limit", "1M"]).run().status(2);
}
