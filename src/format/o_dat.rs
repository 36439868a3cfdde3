//! `o.dat`: the state of a consumer; also the data of a consumer's raft snapshot.
//!
//! | field | encoding |
//! |---|---|
//! | magic 22, version 1 or 2 | 2 bytes |
//! | ack floor: consumer, stream | uvarint × 2 |
//! | delivered: consumer, stream | uvarint × 2 |
//! | number of pending entries | uvarint |
//! | base time, only if there are any | varint, Unix **seconds** |
//! | each pending: stream sequence − floor | uvarint |
//! | … consumer sequence − floor (version 2 only) | uvarint |
//! | … base − time (version 2), time − base (version 1) | varint, seconds |
//! | number of redelivered entries | uvarint |
//! | each redelivered: stream sequence − floor, deliveries − 1 | uvarint × 2 |
//!
//! Version 2 is what every release from 2.2 to 2.15 writes; version 1 is older. In version 1,
//! `delivered` is relative to the floor and names the *next* message.
//!
//! Facts and traps:
//! * Entries are in no order. All sequence arithmetic wraps at 64 bits. Times are whole seconds.
//! * There is no checksum. A file of no bytes is a consumer without state.
//! * 2.2.0–2.3.0 wrote in place without cutting the file: bytes after the end mean nothing.
//! * Servers take a file that ends within the redelivered entries for good.
//! * Releases up to 2.6.2 forgot to add the floor back to redelivered sequences and wrote the
//!   result again, so that these can be far off.
//! * Encrypted: `nonce ++ AEAD`, see [`crypt`](super::crypt). The file of a replicated consumer is
//!   a copy that lags behind its raft log.
//!
//! From the server's consumer state code and `o.dat` files that 2.2.6 to 2.15.2 wrote.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::bytes::{Cursor, Fault, FaultKind, put_uvarint, put_varint};

const MAGIC: u8 = 22;
const SECOND: i64 = 1_000_000_000;
const BIT63: u64 = 1 << 63;

/// A consumer sequence and the stream sequence it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SeqPair {
    /// Sequence in the consumer (counts deliveries).
    pub consumer: u64,
    /// Sequence in the stream.
    pub stream: u64,
}

/// A message that was delivered and not yet acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pending {
    /// Consumer sequence of the delivery; 0 in files of version 1.
    pub consumer_seq: u64,
    /// When it was delivered, nanoseconds.
    pub timestamp: i64,
}

/// The state of a consumer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConsumerState {
    /// The last delivered.
    pub delivered: SeqPair,
    /// Everything up to here is acknowledged.
    pub ack_floor: SeqPair,
    /// Delivered, not acknowledged; by stream sequence.
    pub pending: BTreeMap<u64, Pending>,
    /// Deliveries beyond the first, by stream sequence.
    pub redelivered: BTreeMap<u64, u64>,
}

/// Decodes a state; also returns the bytes it took (there may be more: they mean nothing).
pub fn decode(buf: &[u8], base: u64) -> Result<(ConsumerState, usize), Fault> {
    match decode_partial(buf, base)? {
        (state, consumed, None) => Ok((state, consumed)),
        (_, _, Some(fault)) => Err(fault),
    }
}

/// Decodes as much as there is: fails only where not even `delivered` and the floor are there,
/// otherwise returns what was read, the bytes it took and the fault that ended it.
pub fn decode_partial(
    buf: &[u8],
    base: u64,
) -> Result<(ConsumerState, usize, Option<Fault>), Fault> {
    let mut state = ConsumerState::default();
    if buf.is_empty() {
        return Ok((state, 0, None));
    }
    let mut c = Cursor::new(buf, base);
    let version = header(&mut c)?;
    let floor = SeqPair { consumer: c.uvarint()?, stream: c.uvarint()? };
    state.ack_floor = floor;
    state.delivered = SeqPair { consumer: c.uvarint()?, stream: c.uvarint()? };
    if version == 1 {
        for (delivered, floor) in [
            (&mut state.delivered.consumer, floor.consumer),
            (&mut state.delivered.stream, floor.stream),
        ] {
            if floor > 1 {
                *delivered = delivered.wrapping_add(floor - 1);
            }
        }
    }
    let fault = entries(&mut c, version, &mut state).err();
    Ok((state, c.consumed(), fault))
}

fn header(c: &mut Cursor<'_>) -> Result<u8, Fault> {
    let at = c.offset();
    if c.u8()? != MAGIC {
        return Err(Fault::new(at, FaultKind::Magic { format: "o.dat" }));
    }
    let at = c.offset();
    match c.u8()? {
        version @ 1..=2 => Ok(version),
        other => {
            let found = u64::from(other);
            Err(Fault::new(at, FaultKind::Version { format: "o.dat", found }))
        }
    }
}

fn entries(c: &mut Cursor<'_>, version: u8, state: &mut ConsumerState) -> Result<(), Fault> {
    let floor = state.ack_floor;
    let pending = c.count("pending entries", if version == 1 { 2 } else { 3 })?;
    if pending > 0 {
        let base = c.varint()?;
        for _ in 0..pending {
            let seq = c.uvarint()?.wrapping_add(floor.stream);
            let (consumer_seq, seconds) = if version == 1 {
                (0, base.wrapping_add(c.varint()?))
            } else {
                (c.uvarint()?.wrapping_add(floor.consumer), base.wrapping_sub(c.varint()?))
            };
            let timestamp = seconds.wrapping_mul(SECOND);
            state.pending.insert(seq, Pending { consumer_seq, timestamp });
        }
    }
    for _ in 0..c.count("redelivered entries", 2)? {
        let (raw, count) = (c.uvarint()?, c.uvarint()?);
        if raw == 0 || count == 0 {
            continue;
        }
        let seq = raw.wrapping_add(floor.stream);
        // A sequence that never had the floor subtracted (2.6.2 and before).
        let seq = if seq >= BIT63 && raw < BIT63 { raw } else { seq };
        state.redelivered.insert(seq, count);
    }
    Ok(())
}

/// Encodes as version 2, as servers do. Times are cut to whole seconds.
///
/// The base time, for which a server takes the time of writing, is that of the newest pending
/// entry, so that the same state always gives the same bytes.
pub fn encode(state: &ConsumerState) -> Vec<u8> {
    let floor = state.ack_floor;
    let mut out = vec![MAGIC, 2];
    for n in [floor.consumer, floor.stream, state.delivered.consumer, state.delivered.stream] {
        put_uvarint(&mut out, n);
    }
    put_uvarint(&mut out, state.pending.len() as u64);
    if let Some(base) = state.pending.values().map(|p| p.timestamp / SECOND).max() {
        put_varint(&mut out, base);
        for (seq, p) in &state.pending {
            put_uvarint(&mut out, seq.wrapping_sub(floor.stream));
            put_uvarint(&mut out, p.consumer_seq.wrapping_sub(floor.consumer));
            put_varint(&mut out, base.wrapping_sub(p.timestamp / SECOND));
        }
    }
    put_uvarint(&mut out, state.redelivered.len() as u64);
    for (seq, count) in &state.redelivered {
        put_uvarint(&mut out, seq.wrapping_sub(floor.stream));
        put_uvarint(&mut out, *count);
    }
    out
}

/// Something about a decoded state that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateProblem {
    /// The consumer's floor is past its last delivery.
    #[error("ack floor {floor} is past the last delivered consumer sequence {delivered}")]
    ConsumerFloor {
        /// The floor.
        floor: u64,
        /// The last delivered.
        delivered: u64,
    },
    /// The stream's floor is past the last delivery.
    #[error("ack floor {floor} is past the last delivered stream sequence {delivered}")]
    StreamFloor {
        /// The floor.
        floor: u64,
        /// The last delivered.
        delivered: u64,
    },
    /// `delivered` or the floor is a stream sequence that no stream reaches.
    #[error("impossible stream sequence {0}")]
    HugeSequence(u64),
    /// A pending message outside of (floor, delivered].
    #[error("pending sequence {0} is outside of what was delivered and not acknowledged")]
    PendingOutside(u64),
    /// A redelivered message past the last delivery.
    #[error("redelivered sequence {0} was never delivered")]
    RedeliveredOutside(u64),
}

impl StateProblem {
    /// True for what makes a server (2.10.7 and later) refuse the file as corrupt; the others it
    /// loads, though a restore of an archive refuses all but the last kind.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::HugeSequence(_) | Self::PendingOutside(0))
    }
}

/// What cannot be about `state`.
pub fn validate(state: &ConsumerState) -> Vec<StateProblem> {
    let ConsumerState { delivered, ack_floor: floor, pending, redelivered } = state;
    let mut out = Vec::new();
    for seq in [floor.stream, delivered.stream] {
        if seq >= BIT63 {
            out.push(StateProblem::HugeSequence(seq));
        }
    }
    if floor.consumer > delivered.consumer {
        let (floor, delivered) = (floor.consumer, delivered.consumer);
        out.push(StateProblem::ConsumerFloor { floor, delivered });
    }
    if floor.stream > delivered.stream {
        let (floor, delivered) = (floor.stream, delivered.stream);
        out.push(StateProblem::StreamFloor { floor, delivered });
    }
    let outside = pending.keys().filter(|&&seq| seq <= floor.stream || seq > delivered.stream);
    out.extend(outside.map(|&seq| StateProblem::PendingOutside(seq)));
    let outside = redelivered.keys().filter(|&&seq| seq > delivered.stream);
    out.extend(outside.map(|&seq| StateProblem::RedeliveredOutside(seq)));
    out
}

impl ConsumerState {
    /// Reads the JSON form of archives and of the meta layer:
    /// `{"delivered":{"consumer_seq","stream_seq"},"ack_floor":{…},"pending":{"<seq>":{"Sequence",
    /// "Timestamp"}},"redelivered":{"<seq>":n}}`. As in Go, key case does not matter, what is absent
    /// or null is zero, and unknown keys are passed over.
    pub fn from_json(value: &Value) -> Result<Self, Fault> {
        let top = object(value, "consumer state: not an object")?;
        let mut state = Self {
            delivered: pair(field(top, "delivered"))?,
            ack_floor: pair(field(top, "ack_floor"))?,
            ..Self::default()
        };
        for (seq, entry) in entries_of(field(top, "pending"))? {
            let entry = object(entry, "consumer state: pending entry")?;
            let timestamp = match field(entry, "Timestamp") {
                Value::Null => 0,
                v => v.as_i64().ok_or_else(|| invalid("consumer state: pending timestamp"))?,
            };
            let consumer_seq = number(field(entry, "Sequence"))?;
            state.pending.insert(seq, Pending { consumer_seq, timestamp });
        }
        for (seq, count) in entries_of(field(top, "redelivered"))? {
            state.redelivered.insert(seq, number(count)?);
        }
        Ok(state)
    }

    /// Writes the JSON form, with the key order of the server: maps sorted by their keys' text,
    /// empty ones left out.
    pub fn to_json(&self) -> Value {
        fn by_text(entries: impl Iterator<Item = (u64, Value)>) -> Value {
            let mut entries: Vec<_> = entries.map(|(seq, v)| (seq.to_string(), v)).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        let pair = |p: SeqPair| json!({"consumer_seq": p.consumer, "stream_seq": p.stream});
        let mut out = Map::new();
        out.insert("delivered".into(), pair(self.delivered));
        out.insert("ack_floor".into(), pair(self.ack_floor));
        if !self.pending.is_empty() {
            let entry = |p: &Pending| json!({"Sequence": p.consumer_seq, "Timestamp": p.timestamp});
            let pending = by_text(self.pending.iter().map(|(seq, p)| (*seq, entry(p))));
            out.insert("pending".into(), pending);
        }
        if !self.redelivered.is_empty() {
            let entries = self.redelivered.iter().map(|(seq, n)| (*seq, json!(n)));
            out.insert("redelivered".into(), by_text(entries));
        }
        Value::Object(out)
    }
}

fn invalid(what: &'static str) -> Fault {
    Fault::new(0, FaultKind::Invalid(what))
}

fn object<'a>(value: &'a Value, what: &'static str) -> Result<&'a Map<String, Value>, Fault> {
    value.as_object().ok_or_else(|| invalid(what))
}

fn field<'a>(map: &'a Map<String, Value>, key: &str) -> &'a Value {
    let folded = || map.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v);
    map.get(key).or_else(folded).unwrap_or(&Value::Null)
}

fn number(value: &Value) -> Result<u64, Fault> {
    match value {
        Value::Null => Ok(0),
        v => v.as_u64().ok_or_else(|| invalid("consumer state: number")),
    }
}

fn pair(value: &Value) -> Result<SeqPair, Fault> {
    if value.is_null() {
        return Ok(SeqPair::default());
    }
    let map = object(value, "consumer state: sequence pair")?;
    let (consumer, stream) = (field(map, "consumer_seq"), field(map, "stream_seq"));
    Ok(SeqPair { consumer: number(consumer)?, stream: number(stream)? })
}

fn entries_of(value: &Value) -> Result<Vec<(u64, &Value)>, Fault> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    object(value, "consumer state: map")?
        .iter()
        .map(|(k, v)| Ok((k.parse().map_err(|_| invalid("consumer state: map key"))?, v)))
        .collect()
}
