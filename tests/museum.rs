//! The museum of damage, `fixtures/damage`: what salvage brings out of each store is what was in it before the damage,
//! as `expected.json` and the archive's `truth.json` say. Both were written without jetsam.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use common::{Jetsam, instant, read_json};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const STREAM: &str = "M";

fn museum() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/damage")
}

fn expected() -> Value {
    read_json(&museum().join("expected.json"))
}

fn sequences(ranges: &Value) -> BTreeSet<u64> {
    let ranges = ranges.as_array().map_or(&[][..], Vec::as_slice);
    let bound = |r: &Value, i: usize| r[i].as_u64().unwrap();
    ranges
        .iter()
        .flat_map(|r| bound(r, 0)..=bound(r, 1))
        .collect()
}

fn text(v: &Value) -> String {
    use base64::Engine as _;
    let b64 = v.as_str().unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(b64)
        .unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A jetsam that has the exhibit's key, if there is one.
fn jetsam(about: &Value, verb: &str) -> Jetsam {
    let j = Jetsam::new().arg(verb);
    match about["key"].as_str() {
        Some(key) => {
            let mut j = j;
            j.command.env("JETSAM_KEY", key);
            j
        }
        None => j,
    }
}

fn visit(name: &str) {
    let about = &expected()[name];
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::open(museum().join(format!("{name}.tar.xz"))).unwrap();
    tar::Archive::new(xz2::read::XzDecoder::new(file))
        .unpack(dir.path())
        .unwrap();
    let truth = read_json(&dir.path().join("truth.json"));
    let messages: BTreeMap<u64, &Value> = truth["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["seq"].as_u64().unwrap(), m))
        .collect();
    for (i, want) in about["outcomes"].as_array().unwrap().iter().enumerate() {
        let source = dir.path().join(want["dir"].as_str().unwrap());
        let dest = dir.path().join(format!("salvaged-{i}"));
        outcome(name, about, want, &source, &dest, &messages, &truth);
    }
}

fn outcome(
    name: &str,
    about: &Value,
    want: &Value,
    source: &Path,
    dest: &Path,
    messages: &BTreeMap<u64, &Value>,
    truth: &Value,
) {
    let place = format!("{name}, {}", want["dir"]);
    let ran = jetsam(about, "salvage")
        .arg("--json")
        .args([source, dest])
        .run();
    if want["exit"] != -1 {
        assert_eq!(
            json!(ran.status),
            want["exit"],
            "{place}: exit\n{}",
            ran.text()
        );
    }
    let report = &ran.json()["streams"][0];
    assert_eq!(report["stream"], STREAM, "{place}");

    // What is there is what it was.
    let view = jetsam(about, "view").arg("--json").arg(dest).run();
    let mut held = BTreeSet::new();
    for m in view.status(0).json_lines() {
        let seq = m["seq"].as_u64().unwrap();
        let was = messages
            .get(&seq)
            .unwrap_or_else(|| panic!("{place}: message {seq} did not exist"));
        assert_eq!(m["subject"], was["subject"], "{place}: message {seq}");
        assert_eq!(
            instant(&m["time"]),
            instant(&was["time"]),
            "{place}: message {seq}"
        );
        assert_eq!(text(&m["hdrs"]), was["hdrs"], "{place}: message {seq}");
        assert_eq!(text(&m["data"]), was["data"], "{place}: message {seq}");
        held.insert(seq);
    }

    // All that has to be there is, nothing else, and what is not is told.
    let must = sequences(&want["messages"]);
    let maybe = sequences(&want["maybe"]);
    let missing: Vec<_> = must.difference(&held).collect();
    assert!(
        missing.is_empty(),
        "{place}: missing {missing:?}\n{report:#}"
    );
    let more: BTreeSet<_> = held.difference(&must).copied().collect();
    assert!(more.is_subset(&maybe), "{place}: {more:?} came back");
    let at_least = want["at_least"].as_u64().unwrap_or(0);
    assert!(
        more.len() as u64 >= at_least,
        "{place}: {} came back of a damaged block, not {at_least}",
        more.len()
    );
    if want["exit"] != -1 {
        let lost: BTreeSet<u64> = sequences(&want["lost"])
            .union(&maybe.difference(&held).copied().collect())
            .copied()
            .collect();
        assert_eq!(
            sequences(&report["lost"]),
            lost,
            "{place}: lost\n{report:#}"
        );
    }
    assert_eq!(report["messages"], held.len(), "{place}");
    assert_eq!(
        report["from_leftovers"],
        want.get("from_leftovers").cloned().unwrap_or(json!(0)),
        "{place}"
    );
    assert_eq!(
        report["reconstructed"],
        want.get("reconstructed").cloned().unwrap_or(json!(false)),
        "{place}"
    );

    // The very bits that were flipped, and no other.
    let bits = |list: &Value, f: fn(&Value) -> Vec<(String, u64, u64)>| -> BTreeSet<_> {
        list.as_array().unwrap().iter().flat_map(f).collect()
    };
    let flipped = bits(&want["corrections"], |c| vec![bit(&c["file"], c)]);
    let corrected = bits(&report["corrections"], |c| {
        let flips = c["flips"].as_array().unwrap();
        flips.iter().map(|f| bit(&c["file"], f)).collect()
    });
    assert_eq!(corrected, flipped, "{place}: corrections");

    // The consumer goes on where it was.
    let info = jetsam(about, "info").arg("--json").arg(dest).run();
    let info = &info.status(0).json()[0];
    if want["consumer"] == true {
        let (got, was) = (&info["consumers"][0], &truth["consumers"]["C"]);
        for seqs in ["delivered", "ack_floor"] {
            for seq in ["consumer_seq", "stream_seq"] {
                assert_eq!(got[seqs][seq], was[seqs][seq], "{place}: {seqs}.{seq}");
            }
        }
        assert_eq!(got["num_ack_pending"], was["num_ack_pending"], "{place}");
    }
    if want.get("reconstructed").is_none() {
        let config = &truth["config"];
        assert_eq!(info["config"]["subjects"], config["subjects"], "{place}");
        assert_eq!(
            instant(&info["created"]),
            instant(&truth["created"]),
            "{place}"
        );
    }
    jetsam(about, "check").arg(dest).run().status(0);
}

fn bit(file: &Value, at: &Value) -> (String, u64, u64) {
    (
        file.as_str().unwrap().to_owned(),
        at["offset"].as_u64().unwrap(),
        at["bit"].as_u64().unwrap(),
    )
}

macro_rules! exhibits {
    ($($name:ident)+) => {
        $(#[test] fn $name() { visit(&stringify!($name).replace('_', "-")); })+

        /// Every archive has its test and its expectations, and the museum stays small.
        #[test]
        fn nothing_is_left_out() {
            let tests: BTreeSet<String> = [$(stringify!($name)),+].map(|n| n.replace('_', "-")).into();
            let expected: BTreeSet<String> = expected().as_object().unwrap().keys().cloned().collect();
            let mut archives = BTreeSet::new();
            let mut size = 0;
            for entry in fs::read_dir(museum()).unwrap() {
                let entry = entry.unwrap();
                size += entry.metadata().unwrap().len();
                let name = entry.file_name().into_string().unwrap();
                archives.extend(name.strip_suffix(".tar.xz").map(str::to_owned));
            }
            assert_eq!(tests, archives);
            assert_eq!(tests, expected);
            assert!(size < 300_000, "{size}");
        }
    };
}

exhibits! {
    flipped_bit flipped_length flipped_metadata flipped_s2 flipped_keys flipped_chacha erased_in_compressed headerless_s2
    swallowed_tombstones cut_by_start cut_by_start_s2 zero_tail torn_page torn_tail stale_index interrupted_purge
    blk_tmp_left missing_block renamed_block no_meta_inf no_meta_sum
}
