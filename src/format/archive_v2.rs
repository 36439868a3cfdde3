//! NATSARC1, the archive that 2.15 makes of a stream: 8 bytes, then entries. S2-framed as a whole.
//!
//! | field of an entry | encoding |
//! |-------------------|----------|
//! | length of the name | uvarint, at most 1 MiB |
//! | time, ns since the epoch | varint |
//! | stream sequence; 0 for what is not a message | uvarint |
//! | length of the headers | uvarint |
//! | length of the payload | uvarint |
//! | name, headers, payload | bytes |
//!
//! | order | name | time | payload |
//! |-------|------|------|---------|
//! | 1 | `state.json` | of the backup | the stream's state, with the number of consumers that follow |
//! | 2 | `consumers/NAME`, in no order | of the backup | `{"config":ConsumerConfig,"state":ConsumerState}` |
//! | 3 | the subject, by ascending sequence | of the message | the message |
//! | 4 | none: five zeros | 0 | the end marker |
//!
//! Facts and traps:
//! * No checksums, no padding: only the S2 frames prove it. Without the end marker it was cut off.
//! * The stream's name, its configuration and `Created` are not in it, nor those of deleted messages:
//!   gaps in the sequences are deletes.
//! * `consumer_count` must be the number of consumers there, `first_seq` not above the first message.
//! * Servers clip a consumer's state to the stream's last sequence before they write it ([`clip`]).
//! * Keys of pending entries are capitalised; Go sorts the sequences in a state as text.
//! * 2.15.0 wrote ephemeral consumers of clusters without a name.
//!
//! From the archive and backup code of 2.15.0 to 2.15.2 and archives that they made.

use super::backup_json::StreamState;
use super::bytes::{Cursor, Fault, FaultKind, put_uvarint, put_varint};
use super::meta::go_json;
use super::o_dat::ConsumerState;
use serde_json::{Map, Value};

/// First bytes.
pub const MAGIC: &[u8; 8] = b"NATSARC1";
/// The end marker.
pub const END: [u8; 5] = [0; 5];
/// Name of the first entry.
pub const STATE: &str = "state.json";
/// What the names of consumers' entries begin with.
pub const CONSUMERS: &str = "consumers/";
/// Longest name that servers read.
pub const MAX_NAME: u64 = 1 << 20;

/// An entry's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Length of the name.
    pub name: u64,
    /// ns since the epoch.
    pub timestamp: i64,
    /// Stream sequence, 0 for what is not a message.
    pub sequence: u64,
    /// Length of the headers.
    pub headers: u64,
    /// Length of the payload.
    pub payload: u64,
}

/// Reads a header; also gives the bytes it took.
pub fn header(buf: &[u8], base: u64) -> Result<(Header, usize), Fault> {
    let mut c = Cursor::new(buf, base);
    let header = Header {
        name: c.uvarint()?,
        timestamp: c.varint()?,
        sequence: c.uvarint()?,
        headers: c.uvarint()?,
        payload: c.uvarint()?,
    };
    Ok((header, c.consumed()))
}

/// Appends a header. The name, the headers and the payload belong after it.
pub fn put_header(out: &mut Vec<u8>, header: &Header) {
    put_uvarint(out, header.name);
    put_varint(out, header.timestamp);
    put_uvarint(out, header.sequence);
    put_uvarint(out, header.headers);
    put_uvarint(out, header.payload);
}

/// Appends a message: `name` is its subject.
pub fn put_message(
    out: &mut Vec<u8>,
    name: &[u8],
    timestamp: i64,
    sequence: u64,
    headers: &[u8],
    payload: &[u8],
) {
    let header = Header {
        name: name.len() as u64,
        timestamp,
        sequence,
        headers: headers.len() as u64,
        payload: payload.len() as u64,
    };
    put_header(out, &header);
    for part in [name, headers, payload] {
        out.extend_from_slice(part);
    }
}

/// Appends the stream's state, the first entry; `now` is the time of the backup.
pub fn put_state(out: &mut Vec<u8>, now: i64, state: &StreamState) {
    let json = go_json(&Value::Object(state.to_json()));
    put_message(out, STATE.as_bytes(), now, 0, &[], &json);
}

/// Appends a consumer.
pub fn put_consumer(
    out: &mut Vec<u8>,
    now: i64,
    name: &str,
    config: &Map<String, Value>,
    state: &ConsumerState,
) {
    let mut both = Map::new();
    both.insert("config".to_owned(), Value::Object(config.clone()));
    both.insert("state".to_owned(), state.to_json());
    let json = go_json(&Value::Object(both));
    let name = [CONSUMERS, name].concat();
    put_message(out, name.as_bytes(), now, 0, &[], &json);
}

/// Clips a consumer's state to the stream's last sequence, as servers do.
pub fn clip(state: &mut ConsumerState, last_seq: u64) {
    for stream in [&mut state.delivered.stream, &mut state.ack_floor.stream] {
        *stream = last_seq.min(*stream);
    }
    state.pending.retain(|seq, _| *seq <= last_seq);
    state.redelivered.retain(|seq, _| *seq <= last_seq);
}

/// Decodes a consumer's entry.
pub fn consumer(body: &[u8]) -> Result<(Map<String, Value>, ConsumerState), Fault> {
    let invalid = |what| Fault::new(0, FaultKind::Invalid(what));
    let mut value: Value = serde_json::from_slice(body).map_err(|e| {
        let column = u64::try_from(e.column()).unwrap_or(0).saturating_sub(1);
        Fault::new(column, FaultKind::Invalid("consumer (not JSON)"))
    })?;
    let config = match value.get_mut("config").map(Value::take) {
        Some(Value::Object(config)) => config,
        _ => return Err(invalid("consumer (no config)")),
    };
    match value.get("state") {
        Some(state @ Value::Object(_)) => Ok((config, ConsumerState::from_json(state)?)),
        _ => Err(invalid("consumer (no state)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::{snapshots, unframe};

    /// Takes an archive apart and makes it again; gives the entries of each kind.
    fn again(archive: &[u8]) -> ([usize; 3], Vec<u8>) {
        let mut out = MAGIC.to_vec();
        let (mut at, mut counts) = (MAGIC.len(), [0; 3]);
        loop {
            let (h, n) = header(&archive[at..], at as u64).unwrap();
            let mut rest = &archive[at + n..];
            let mut part = |len: u64| {
                let (part, after) = rest.split_at(len as usize);
                rest = after;
                part
            };
            let (name, headers, payload) = (part(h.name), part(h.headers), part(h.payload));
            at = archive.len() - rest.len();
            let text = std::str::from_utf8(name).unwrap();
            if h == Header::default() {
                out.extend_from_slice(&END);
                assert_eq!(at, archive.len());
                return (counts, out);
            } else if h.sequence > 0 {
                put_message(&mut out, name, h.timestamp, h.sequence, headers, payload);
                counts[2] += 1;
            } else if let Some(name) = text.strip_prefix(CONSUMERS) {
                let (config, state) = consumer(payload).unwrap();
                put_consumer(&mut out, h.timestamp, name, &config, &state);
                // What a server wrote is clipped already.
                let state: StreamState = serde_json::from_slice(&archive_state(archive)).unwrap();
                let (_, mut clipped) = consumer(payload).unwrap();
                clip(&mut clipped, state.last_seq);
                assert_eq!(clipped, consumer(payload).unwrap().1);
                counts[1] += 1;
            } else {
                assert_eq!(text, STATE);
                let state = serde_json::from_slice(payload).unwrap();
                put_state(&mut out, h.timestamp, &state);
                counts[0] += 1;
            }
        }
    }

    fn archive_state(archive: &[u8]) -> Vec<u8> {
        let (h, n) = header(&archive[MAGIC.len()..], 0).unwrap();
        let at = MAGIC.len() + n + h.name as usize;
        archive[at..][..h.payload as usize].to_vec()
    }

    #[test]
    fn archives_of_servers_are_made_again_to_the_byte() {
        let mut total = [0; 3];
        for (fixture, name, archive) in snapshots() {
            if !fixture.starts_with("2.15") {
                continue;
            }
            let archive = unframe(&archive);
            let (counts, out) = again(&archive);
            assert!(out == archive, "{fixture} {name}");
            assert_eq!(counts[0], 1);
            total.iter_mut().zip(counts).for_each(|(t, n)| *t += n);
        }
        assert_eq!(total, [24, 14, 2288]);
    }

    #[test]
    fn a_message_of_a_server() {
        // The only message of a stream in memory, and the end, as 2.15.2 sent them.
        let want = b"\x03\xfa\xea\xdc\xd9\xe5\xdf\xf5\xe9\x31\x01\0\x05memhello\0\0\0\0\0";
        let mut out = Vec::new();
        put_message(
            &mut out,
            b"mem",
            1_795_224_857_942_399_677,
            1,
            b"",
            b"hello",
        );
        out.extend_from_slice(&END);
        assert_eq!(out, want);
    }

    #[test]
    fn states_are_clipped() {
        let json = br#"{"config":{"durable_name":"C"},"state":{"delivered":{"consumer_seq":9,"stream_seq":12},
            "ack_floor":{"consumer_seq":5,"stream_seq":11},"pending":{"10":{"Sequence":6,"Timestamp":5},
            "12":{"Sequence":7,"Timestamp":5}},"redelivered":{"10":1,"11":2}}}"#;
        let (config, mut state) = consumer(json).unwrap();
        assert_eq!(config["durable_name"], "C");
        clip(&mut state, 10);
        assert_eq!((state.delivered.consumer, state.delivered.stream), (9, 10));
        assert_eq!((state.ack_floor.consumer, state.ack_floor.stream), (5, 10));
        assert!(state.pending.keys().eq(&[10]) && state.redelivered.keys().eq(&[10]));
        for bad in [
            "",
            "[]",
            "{",
            r#"{"config":{}}"#,
            r#"{"config":1,"state":{}}"#,
            r#"{"config":{},"state":[]}"#,
        ] {
            consumer(bad.as_bytes()).unwrap_err();
        }
    }
}
