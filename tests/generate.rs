//! The stores that `examples/make_store` makes: nothing is wrong with them, and they hold what it says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

#[path = "../examples/make_store/args.rs"]
mod args;
mod common;
#[path = "../examples/make_store/shape.rs"]
mod shape;
#[path = "../examples/make_store/truth.rs"]
mod truth;
#[path = "../examples/make_store/write.rs"]
mod write;

use clap::Parser;
use common::{Jetsam, read_json};
use serde_json::{Value, json};
use std::path::Path;

/// Makes a store beside the truth about it.
fn make(dir: &Path, options: &str) -> Value {
    let (store, file) = (dir.join("store"), dir.join("truth.json"));
    let all = ["make_store".as_ref(), store.as_os_str()]
        .into_iter()
        .chain(options.split_whitespace().map(AsRef::as_ref))
        .chain(["--truth".as_ref(), file.as_os_str()]);
    let args = args::Args::parse_from(all);
    let made = write::make(&args).unwrap_or_else(|e| panic!("{options}: {e}"));
    let truth = read_json(&file);
    let streams = truth[&args.account].as_object().unwrap();
    assert_eq!(made.streams, args.streams);
    assert_eq!(made.messages, args.streams * args.messages);
    let bytes = |s: &Value| s["state"]["bytes"].as_u64().unwrap();
    assert_eq!(made.bytes, streams.values().map(bytes).sum::<u64>());
    truth
}

fn jetsam(dir: &Path, verb: &str, more: &[&str]) -> common::Ran {
    let mut jetsam = Jetsam::new();
    jetsam.command.env("JETSAM_KEY", "s3cret");
    jetsam
        .args([verb, "--json"])
        .args(more)
        .arg(dir.join("store"))
        .run()
}

/// `check` finds nothing, `info` and `view` say what the generator says. Messages are compared where all of them
/// are in the truth.
fn holds(options: &str) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let truth = make(dir.path(), options);
    let check = jetsam(dir.path(), "check", &[]).status(0).json();
    assert_eq!(check["findings"], json!([]), "{options}");

    let infos = jetsam(dir.path(), "info", &["--subjects"]).status(0).json();
    let infos = infos.as_array().unwrap();
    let messages = jetsam(dir.path(), "view", &[]).status(0).json_lines();
    let mut seen = 0;
    for (account, streams) in truth.as_object().unwrap() {
        for (name, want) in streams.as_object().unwrap() {
            let about = |i: &&Value| i["account"] == *account && i["config"]["name"] == *name;
            let got = infos.iter().find(about).unwrap();
            seen += 1;
            let at = format!("{options}: {name}");
            assert_eq!(got["created"], want["created"], "{at}");
            let mut state = want["state"].as_object().unwrap().clone();
            state.remove("deleted");
            for (key, value) in state {
                // Where there is nothing, it may be left out.
                let none = got["state"][&key].is_null() && (value == 0 || value == json!({}));
                assert!(none || got["state"][&key] == value, "{at}: {key}: {value}");
            }
            for (name, want) in want["consumers"].as_object().unwrap() {
                let all = got["consumers"].as_array().unwrap();
                let got = all.iter().find(|c| c["name"] == *name).unwrap();
                for (key, value) in want.as_object().unwrap() {
                    assert_eq!(&got[key], value, "{at}: {name}: {key}");
                }
            }
            let want = want["messages"].as_array().unwrap();
            let got: Vec<_> = messages.iter().filter(|m| m["stream"] == *name).collect();
            let all = got.len() as u64 == want.len() as u64;
            assert!(all || want.len() == 1000, "{at}: {} messages", got.len());
            for want in want {
                let same = |m: &&&Value| m["seq"] == want["seq"];
                let got = got
                    .iter()
                    .find(same)
                    .unwrap_or_else(|| panic!("{at}: {want}"));
                for (key, value) in want.as_object().unwrap() {
                    assert_eq!(&got[key], value, "{at}: {key} of {}", want["seq"]);
                }
            }
        }
    }
    assert_eq!(seen, infos.len());
    truth
}

#[test]
fn plain() {
    let truth = holds("--messages 700 --size 10..2k --headers");
    assert_eq!(truth["$G"]["S1"]["state"]["last_seq"], 700);
    for kind in ["json", "text", "random", "zero"] {
        holds(&format!(
            "--messages 50 --size 0..300 --payload {kind} --seed 7"
        ));
    }
}

#[test]
fn nothing_and_little() {
    holds("--messages 0 --consumers 1");
    holds("--messages 1 --size 0 --consumers 4");
    holds("--messages 0 --cipher aes --key s3cret");
    holds("--messages 2 --streams 2 --consumers 2 --account ACME --name X");
}

#[test]
fn compressed_and_encrypted() {
    for (cipher, s2) in [
        ("", true),
        ("chacha", false),
        ("chacha", true),
        ("aes", false),
    ] {
        let mut options = "--messages 900 --headers --block-size 64k --consumers 5".to_owned();
        if s2 {
            options += " --s2";
        }
        if !cipher.is_empty() {
            options += &format!(" --cipher {cipher} --key s3cret");
        }
        holds(&options);
        holds(&format!("{options} --no-index"));
    }
}

#[test]
fn deletes() {
    let state = |options| holds(options)["$G"]["S1"]["state"].clone();
    let got = state("--messages 900 --deleted-runs 7x1000 --block-size 20k --consumers 20");
    assert_eq!(got["num_deleted"], 7000);
    let got = state("--messages 900 --deleted-runs 7x1000 --block-size 20k --between-blocks");
    assert_eq!(got["num_deleted"], 7000);
    let got = state("--messages 900 --deleted-runs 10x100000000 --consumers 9");
    assert_eq!(got["num_deleted"], 1_000_000_000);
    assert_eq!(got["last_seq"], 1_000_000_900);
    let got = state("--messages 900 --deleted-scattered 50 --block-size 20k --consumers 20");
    assert_eq!(got["num_deleted"], 899);
    assert_eq!(got["deleted"][1], 4);
    let got = state("--messages 900 --deleted-scattered 90 --deleted-runs 2x5000 --no-index");
    assert_eq!(got["num_deleted"], 8990 + 1 + 10_000 - 900);
}

#[test]
fn runs_between_blocks_are_in_no_block() {
    for (option, listed) in [("", true), ("--between-blocks", false)] {
        let dir = tempfile::tempdir().unwrap();
        make(
            dir.path(),
            &format!("--messages 100 --deleted-runs 3x50 {option}"),
        );
        let file = dir
            .path()
            .join("store/jetstream/$G/streams/S1/msgs/index.db");
        let index = Jetsam::new().args(["inspect", "--json"]).arg(file).run();
        let index = index.status(0).json().to_string();
        assert_eq!(index.contains("\"num_deleted\":150"), listed, "{index}");
    }
}

/// So many that they are described side by side.
#[test]
fn very_many_streams_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    // Two large ones, which are not left to one thread.
    let options = "--streams 2 --name LARGE --messages 100 --size 700k --payload zero";
    let mut truth = make(dir.path(), options);
    let small = make(dir.path(), "--streams 150 --messages 7 --consumers 1");
    let streams = truth["$G"].as_object_mut().unwrap();
    streams.extend(small["$G"].as_object().unwrap().clone());
    // Some that have to be scanned, and one that is damaged.
    let at = |name: &str| dir.path().join("store/jetstream/$G/streams").join(name);
    for name in ["LARGE2", "S77"] {
        std::fs::remove_file(at(name).join("msgs/index.db")).unwrap();
    }
    std::fs::write(at("S5").join("meta.inf"), b"{").unwrap();
    let run = |verb, threads, more: &[&str]| {
        let all = [&["--threads", threads], more].concat();
        jetsam(dir.path(), verb, &all).status(1)
    };
    for verb in ["info", "ls"] {
        let one = run(verb, "1", &[]);
        for threads in ["2", "5"] {
            let more = run(verb, threads, &[]);
            assert_eq!((&more.stdout, &more.stderr), (&one.stdout, &one.stderr));
        }
        assert!(one.stderr.contains("S5"), "{}", one.stderr);
        let got = one.json();
        let got = got.as_array().unwrap();
        assert_eq!(got.len(), streams.len());
        let name = |s: &Value| match verb {
            "ls" => s["stream"].as_str().unwrap().to_owned(),
            _ => s["path"]
                .as_str()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap()
                .to_owned(),
        };
        assert!(got.is_sorted_by_key(name));
        for stream in got {
            let want = &streams[&name(stream)]["state"];
            let state = if verb == "ls" {
                stream
            } else {
                &stream["state"]
            };
            assert_eq!(state["messages"], want["messages"], "{stream}");
            assert_eq!(state["last_seq"], want["last_seq"], "{stream}");
        }
    }
}

#[test]
fn many_subjects_blocks_streams() {
    let truth = holds("--kv --messages 1000 --size 64 --block-size 10k");
    let state = &truth["$G"]["S1"]["state"];
    assert_eq!(state["num_subjects"], 1000);
    assert_eq!(state["subjects"]["orders.999"], 1);
    holds("--messages 600 --block-size 1 --size 10..20");
    holds("--streams 20 --messages 10 --consumers 2");
    holds("--messages 3000 --subjects 100000");
}

/// One record that is larger than what servers take back.
#[test]
fn a_large_record() {
    let dir = tempfile::tempdir().unwrap();
    let truth = make(dir.path(), "--messages 1 --size 64M");
    let bytes = 30 + "orders.00".len() as u64 + (64 << 20);
    let digits = bytes - truth["$G"]["S1"]["state"]["bytes"].as_u64().unwrap();
    assert!(digits < 2, "{digits}");
    let check = jetsam(dir.path(), "check", &[]).json();
    for f in check["findings"].as_array().unwrap() {
        assert_ne!(f["severity"], "error", "{f}");
    }
    let message = &jetsam(dir.path(), "view", &[]).status(0).json_lines()[0];
    assert_eq!(message["data"], truth["$G"]["S1"]["messages"][0]["data"]);
}

/// The same options give the same messages, and another seed gives others.
#[test]
fn the_seed_decides() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = "--messages 300 --block-size 9k --deleted-scattered 30 --streams 9";
    let one = make(a.path(), options);
    assert_eq!(one, make(b.path(), &format!("{options} --threads 1")));
    let block =
        |dir: &Path| std::fs::read(dir.join("store/jetstream/$G/streams/S9/msgs/2.blk")).unwrap();
    assert_eq!(block(a.path()), block(b.path()));
    let c = tempfile::tempdir().unwrap();
    assert_ne!(one, make(c.path(), &format!("{options} --seed 2")));
}

/// What is there stays.
#[test]
fn a_stream_is_never_written_over() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), "--messages 3");
    let before =
        std::fs::read(dir.path().join("store/jetstream/$G/streams/S1/msgs/1.blk")).unwrap();
    let store = dir.path().join("store");
    let again = args::Args::parse_from(["make_store".as_ref(), store.as_os_str()]);
    assert!(write::make(&again).is_err());
    let after = std::fs::read(dir.path().join("store/jetstream/$G/streams/S1/msgs/1.blk")).unwrap();
    assert_eq!(before, after);
}

/// With very many subjects the check adds up their hashes; what that says is wrong is then looked for.
#[test]
fn one_wrong_subject_of_very_many() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), "--kv --messages 70000 --size 64");
    let check = |status| jetsam(dir.path(), "check", &[]).status(status).json();
    let sound = check(0);
    assert_eq!(sound["findings"], json!([]));
    assert_eq!(sound["summary"]["messages"], 70_000);
    // No hash covers the length of a subject: here it takes two bytes more, or less.
    let path = dir.path().join("store/jetstream/$G/streams/S1/msgs/1.blk");
    let mut block = std::fs::read(&path).unwrap();
    let len = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap()) as usize;
    let at = (0..30_000).fold(0, |at, _| at + len(at));
    let subject = |block: &[u8]| {
        let bytes = &block[at + 22..at + 22 + usize::from(block[at + 20])];
        format!("{:?}", String::from_utf8_lossy(bytes))
    };
    block[at + 20] ^= 2;
    std::fs::write(&path, &block).unwrap();
    let found = check(1)["findings"].clone();
    let details = found.as_array().unwrap().iter();
    let details: Vec<&str> = details.filter_map(|f| f["detail"].as_str()).collect();
    let name = subject(&block);
    let named = details.iter().any(|d| d.contains(&name));
    assert!(named, "{name}: {details:?}");
}
