//! `backup.json`: what the `nats` CLI leaves beside an archive: `{"config": StreamConfig, "state": StreamState}`.
//!
//! Indented by two spaces, no newline at the end. `config` and `state` are those of the snapshot reply, so
//! `config` has the API's defaults and `state` describes the stream when the backup *began*. The file is
//! empty until the backup has succeeded.
//!
//! The CLI reads the reply into its own types and writes those: see [`cli_json`](super::cli_json) for the
//! fields of `config`. Those of `state` are in another order than the server's, and `subjects` is never
//! in a snapshot's reply.

use super::bytes::{Fault, FaultKind};
use super::cli_json::{indented, stream_config};
use crate::time::{ZERO, parse_rfc3339};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

/// Ceiling for the file: a state may list deletes and subjects.
pub const MAX_LEN: u64 = 256 << 20;

/// A stream's state in the API's terms: in a reply, in `backup.json`, in a NATSARC1 archive. Unknown
/// fields are ignored, missing ones are zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StreamState {
    /// Live messages.
    pub messages: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// First sequence.
    pub first_seq: u64,
    /// Its time, RFC 3339.
    pub first_ts: String,
    /// Last sequence.
    pub last_seq: u64,
    /// Its time, RFC 3339.
    pub last_ts: String,
    /// Distinct subjects.
    pub num_subjects: Option<u64>,
    /// Sequences without message.
    pub num_deleted: Option<u64>,
    /// These sequences; only replies of releases up to 2.9.8 list them.
    pub deleted: Option<Vec<u64>>,
    /// What was lost to damage; likewise.
    pub lost: Option<Lost>,
    /// Consumers; in a NATSARC1 archive those that follow.
    pub consumer_count: i64,
}

/// What a server knows it lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Lost {
    /// Sequences.
    pub msgs: Option<Vec<u64>>,
    /// Bytes.
    pub bytes: u64,
}

impl StreamState {
    /// Time of the first message, ns since the epoch; 0 if there is none.
    pub fn first_ns(&self) -> i64 {
        parse_rfc3339(&self.first_ts).unwrap_or(0)
    }

    /// Time of the last message, ns since the epoch; 0 if there is none.
    pub fn last_ns(&self) -> i64 {
        parse_rfc3339(&self.last_ts).unwrap_or(0)
    }

    /// As servers write it: what is none is left out.
    pub fn to_json(&self) -> Map<String, Value> {
        let time = |t: &str| if t.is_empty() { ZERO } else { t }.to_owned();
        let some = |n: Option<u64>| n.filter(|n| *n > 0).map(Value::from);
        let deleted = self.deleted.clone().filter(|d| !d.is_empty());
        let lost = |l: &Lost| json!({"msgs": l.msgs, "bytes": l.bytes});
        let fields = [
            ("messages", Some(self.messages.into())),
            ("bytes", Some(self.bytes.into())),
            ("first_seq", Some(self.first_seq.into())),
            ("first_ts", Some(time(&self.first_ts).into())),
            ("last_seq", Some(self.last_seq.into())),
            ("last_ts", Some(time(&self.last_ts).into())),
            ("num_subjects", some(self.num_subjects)),
            ("num_deleted", some(self.num_deleted)),
            ("deleted", deleted.map(Value::from)),
            ("lost", self.lost.as_ref().map(lost)),
            ("consumer_count", Some(self.consumer_count.into())),
        ];
        let there = fields.into_iter();
        there
            .filter_map(|(k, v)| Some((k.to_owned(), v?)))
            .collect()
    }
}

impl Serialize for StreamState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

/// `backup.json`, decoded.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BackupJson {
    /// The stream's configuration, with the API's defaults.
    pub config: Map<String, Value>,
    /// Its state when the backup began.
    pub state: StreamState,
}

impl BackupJson {
    /// The stream's name.
    pub fn name(&self) -> Option<&str> {
        self.config
            .get("name")
            .and_then(Value::as_str)
            .filter(|n| !n.is_empty())
    }
}

/// Where serde_json met a fault, as an offset.
fn offset_of(text: &[u8], e: &serde_json::Error) -> u64 {
    let line = e.line().saturating_sub(1);
    let start: usize = text
        .split_inclusive(|b| *b == b'\n')
        .take(line)
        .map(<[u8]>::len)
        .sum();
    start.saturating_add(e.column()).saturating_sub(1) as u64
}

/// Decodes the file.
pub fn decode(text: &[u8]) -> Result<BackupJson, Fault> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(Fault::new(0, FaultKind::Invalid("backup.json (empty)")));
    }
    #[derive(Deserialize)]
    struct File {
        config: Map<String, Value>,
        #[serde(default)]
        state: StreamState,
    }
    match serde_json::from_slice::<File>(text) {
        Ok(File { config, state }) => Ok(BackupJson { config, state }),
        Err(e) if e.is_data() => Err(Fault::new(
            offset_of(text, &e),
            FaultKind::Invalid("backup.json (not a configuration and a state)"),
        )),
        Err(e) => Err(Fault::new(
            offset_of(text, &e),
            FaultKind::Invalid("backup.json (not JSON)"),
        )),
    }
}

/// The file as the CLI leaves it (jsm.go 0.4.1).
pub fn encode(backup: &BackupJson) -> Vec<u8> {
    let mut state = backup.state.to_json();
    for key in ["num_subjects", "lost", "consumer_count"] {
        if let Some(value) = state.shift_remove(key) {
            state.insert(key.to_owned(), value);
        }
    }
    indented(&json!({"config": stream_config(&backup.config), "state": state}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::{replies, vector};

    #[test]
    fn files_are_those_of_the_cli() {
        // What jsm.go 0.4.1 makes of every reply in the fixtures, and of two that were made up: with
        // every field, with hardly any.
        let packed = include_bytes!("../../fixtures/vectors/archive/cli-backup-json.jsonl.gz");
        let replies = replies();
        let (mut of_servers, mut deleted) = (0, 0);
        for case in vector(packed) {
            let text = |key: &str| case[key].as_str();
            let reply = match (text("reply"), text("fixture"), text("stream")) {
                (Some(reply), ..) => reply.as_bytes().to_vec(),
                (_, Some(fixture), Some(stream)) => {
                    of_servers += 1;
                    let mut found = replies.iter().filter(|r| r.0 == fixture && r.1 == stream);
                    found.next().unwrap().2.clone()
                }
                _ => panic!("{case}"),
            };
            // A reply has the same two parts, with the server's fields in the server's order.
            let backup = decode(&reply).unwrap();
            deleted += usize::from(backup.state.deleted.is_some());
            let want = text("backup").unwrap();
            assert_eq!(String::from_utf8(encode(&backup)).unwrap(), want);
            let again = encode(&decode(want.as_bytes()).unwrap());
            assert_eq!(String::from_utf8(again).unwrap(), want);
        }
        assert_eq!(of_servers, replies.len());
        assert!(of_servers > 150 && deleted > 10, "{of_servers} {deleted}");
    }

    #[test]
    fn what_the_cli_writes() {
        let text = br#"{
  "config": { "name": "ORDERS", "retention": "limits" },
  "state": { "messages": 3, "bytes": 120, "first_seq": 1, "first_ts": "2026-11-21T00:00:00Z", "last_seq": 3,
             "last_ts": "2026-11-21T00:00:01Z", "consumer_count": 2, "lost": null }
}"#;
        let b = decode(text).unwrap();
        assert_eq!(b.name(), Some("ORDERS"));
        assert_eq!(
            (b.state.messages, b.state.last_seq, b.state.consumer_count),
            (3, 3, 2)
        );
        assert_eq!(decode(br#"{"config":{},"state":{}}"#).unwrap().name(), None);
        decode(b"").unwrap_err();
        decode(b"[]").unwrap_err();
        let fault = decode(b"{\n \"config\": {},\n x").unwrap_err();
        assert_eq!(fault.offset, 18);
    }
}
