//! Sources whose numbers are made up: what they claim must cost neither memory nor time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use common::Jetsam;
use jetsam::format::archive_v2::{END, MAGIC, put_message, put_state};
use jetsam::format::backup_json::StreamState;
use jetsam::format::s2::Encoder;
use serde_json::json;
use std::fs;

/// Two messages, and nearly all sequences between them.
#[test]
fn a_gap_of_2_to_the_62_sequences_is_told_by_its_ends() {
    const LAST: u64 = 1 << 62;
    const TIME: i64 = 1_763_700_000_000_000_000;
    let state = StreamState {
        messages: 2,
        first_seq: 1,
        last_seq: LAST,
        ..StreamState::default()
    };
    let mut content = MAGIC.to_vec();
    put_state(&mut content, TIME, &state);
    put_message(&mut content, b"a", TIME, 1, b"", b"first");
    put_message(&mut content, b"a", TIME, LAST, b"", b"last");
    content.extend_from_slice(&END);
    let mut archive = Vec::new();
    Encoder::new()
        .encode_stream(&content, &mut archive)
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ORDERS.tar.s2");
    fs::write(&file, &archive).unwrap();

    let info = Jetsam::new()
        .args(["info", "--json", "--deleted"])
        .arg(&file)
        .run();
    let state = &info.json()[0]["state"];
    assert_eq!(state["messages"], 2);
    assert_eq!(state["num_deleted"], LAST - 2);
    assert_eq!(state["deleted"], json!(null));
    assert_eq!(state["deleted_ranges"], json!([[2, LAST - 1]]));
    Jetsam::new().arg("check").arg(&file).run().status(0);
}
