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

/// First byte.
pub const MAGIC: u8 = 22;
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
    let floor = SeqPair {
        consumer: c.uvarint()?,
        stream: c.uvarint()?,
    };
    state.ack_floor = floor;
    state.delivered = SeqPair {
        consumer: c.uvarint()?,
        stream: c.uvarint()?,
    };
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
            Err(Fault::new(
                at,
                FaultKind::Version {
                    format: "o.dat",
                    found,
                },
            ))
        }
    }
}

fn entries(c: &mut Cursor<'_>, version: u8, state: &mut ConsumerState) -> Result<(), Fault> {
    let floor = state.ack_floor;
    // Counts are not checked against the bytes left: nothing is allocated on their word, and of a
    // file that was cut short the entries that are there count.
    let pending = c.uvarint()?;
    if pending > 0 {
        let base = c.varint()?;
        for _ in 0..pending {
            let seq = c.uvarint()?.wrapping_add(floor.stream);
            let (consumer_seq, seconds) = if version == 1 {
                (0, base.wrapping_add(c.varint()?))
            } else {
                (
                    c.uvarint()?.wrapping_add(floor.consumer),
                    base.wrapping_sub(c.varint()?),
                )
            };
            let timestamp = seconds.wrapping_mul(SECOND);
            state.pending.insert(
                seq,
                Pending {
                    consumer_seq,
                    timestamp,
                },
            );
        }
    }
    for _ in 0..c.uvarint()? {
        let (raw, count) = (c.uvarint()?, c.uvarint()?);
        if raw == 0 || count == 0 {
            continue;
        }
        let seq = raw.wrapping_add(floor.stream);
        // A sequence that never had the floor subtracted (2.6.2 and before).
        let seq = if seq >= BIT63 && raw < BIT63 {
            raw
        } else {
            seq
        };
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
    for n in [
        floor.consumer,
        floor.stream,
        state.delivered.consumer,
        state.delivered.stream,
    ] {
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
    let ConsumerState {
        delivered,
        ack_floor: floor,
        pending,
        redelivered,
    } = state;
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
    let outside = pending
        .keys()
        .filter(|&&seq| seq <= floor.stream || seq > delivered.stream);
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
                v => v
                    .as_i64()
                    .ok_or_else(|| invalid("consumer state: pending timestamp"))?,
            };
            let consumer_seq = number(field(entry, "Sequence"))?;
            state.pending.insert(
                seq,
                Pending {
                    consumer_seq,
                    timestamp,
                },
            );
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
    let folded = || {
        map.iter()
            .find(|(k, _)| k.eq_ignore_ascii_case(key))
            .map(|(_, v)| v)
    };
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
    Ok(SeqPair {
        consumer: number(consumer)?,
        stream: number(stream)?,
    })
}

fn entries_of(value: &Value) -> Result<Vec<(u64, &Value)>, Fault> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    object(value, "consumer state: map")?
        .iter()
        .map(|(k, v)| {
            Ok((
                k.parse().map_err(|_| invalid("consumer state: map key"))?,
                v,
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Consumer NEW of a 2.15.2 server: the file …
    const NEW: &str = "1602010d165b0eb8cf87b00d130500340c00380d00451100190700200900330b003c0e00\
                       3f0f004410000101004712004e13000703000207010101";
    /// … and the same state in the archive that server made of the stream.
    const NEW_JSON: &str = r#"{"delivered":{"consumer_seq":22,"stream_seq":91},"ack_floor":{"consumer_seq":1,"stream_seq":13},"pending":{"14":{"Sequence":2,"Timestamp":1795224540000426362},"20":{"Sequence":4,"Timestamp":1795224540002212906},"32":{"Sequence":6,"Timestamp":1795224540005554023},"38":{"Sequence":8,"Timestamp":1795224540007237283},"45":{"Sequence":10,"Timestamp":1795224540009044811},"64":{"Sequence":12,"Timestamp":1795224540014472802},"65":{"Sequence":13,"Timestamp":1795224540014769676},"69":{"Sequence":14,"Timestamp":1795224540015924222},"73":{"Sequence":15,"Timestamp":1795224540017085093},"76":{"Sequence":16,"Timestamp":1795224540017934949},"81":{"Sequence":17,"Timestamp":1795224540019255488},"82":{"Sequence":18,"Timestamp":1795224540019476751},"84":{"Sequence":19,"Timestamp":1795224540020072581},"91":{"Sequence":20,"Timestamp":1795224540021885001}},"redelivered":{"14":1,"20":1}}"#;
    /// Consumer NEW of a 2.2.6 server.
    const OLD: &str = "16020101145b0eca9e87b00d1315082507083f0b080d1408440d085312085a1308400c0848\
                       0e085010085111081f05082c09084b0f08020d011301";

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    fn pair(consumer: u64, stream: u64) -> SeqPair {
        SeqPair { consumer, stream }
    }

    #[test]
    fn a_file_and_an_archive_of_the_same_consumer_agree() {
        let file = hex(NEW);
        let (state, used) = decode(&file, 0).unwrap();
        assert_eq!(used, file.len());
        let json: Value = serde_json::from_str(NEW_JSON).unwrap();
        let mut archived = ConsumerState::from_json(&json).unwrap();
        assert_eq!(archived.to_json().to_string(), NEW_JSON);
        // The file has whole seconds.
        for pending in archived.pending.values_mut() {
            pending.timestamp -= pending.timestamp % SECOND;
        }
        assert_eq!(state, archived);
        assert_eq!(validate(&state), []);
        // Encoding the archived state gives the file but for the order of its entries.
        let again = encode(&archived);
        assert_eq!(again.len(), file.len());
        assert_eq!(decode(&again, 0).unwrap(), (state, again.len()));
    }

    #[test]
    fn the_oldest_release() {
        let (state, _) = decode(&hex(OLD), 0).unwrap();
        assert_eq!(
            (state.delivered, state.ack_floor),
            (pair(20, 91), pair(1, 1))
        );
        let seqs: Vec<u64> = state.pending.keys().copied().collect();
        assert_eq!(
            seqs,
            [14, 20, 32, 38, 45, 64, 65, 69, 73, 76, 81, 82, 84, 91]
        );
        assert_eq!(state.redelivered, BTreeMap::from([(14, 1), (20, 1)]));
    }

    #[test]
    fn states_without_entries_encode_to_the_bytes_of_servers() {
        // Never used; and starting at sequence 100, by 2.9.25 and by 2.15.2.
        for file in ["1602000000000000", "1602000000630000", "1602006300630000"] {
            let file = hex(file);
            assert_eq!(encode(&decode(&file, 0).unwrap().0), file);
        }
        assert_eq!(decode(&[], 0).unwrap(), (ConsumerState::default(), 0));
    }

    #[test]
    fn version_1_is_relative_and_names_the_next() {
        // Floor 10/20; delivered 3/5 past the floor as "next"; one pending 2 past the floor,
        // 7 s after the base of 1000 s; sequence 4 past the floor redelivered twice.
        let file = [22, 1, 10, 20, 4, 6, 1, 0xd0, 0x0f, 2, 14, 1, 4, 2];
        let (state, used) = decode(&file, 0).unwrap();
        assert_eq!(used, file.len());
        assert_eq!(
            (state.delivered, state.ack_floor),
            (pair(13, 25), pair(10, 20))
        );
        let pending = Pending {
            consumer_seq: 0,
            timestamp: 1007 * SECOND,
        };
        assert_eq!(state.pending, BTreeMap::from([(22, pending)]));
        assert_eq!(state.redelivered, BTreeMap::from([(24, 2)]));
        // A floor of 0 or 1 leaves delivered alone.
        assert_eq!(
            decode(&[22, 1, 1, 0, 4, 6, 0, 0], 0).unwrap().0.delivered,
            pair(4, 6)
        );
    }

    #[test]
    fn bytes_behind_the_end_are_left() {
        let mut file = hex(NEW);
        let len = file.len();
        file.extend([9; 40]);
        assert_eq!(
            decode(&file, 0).unwrap(),
            (decode(&file[..len], 0).unwrap().0, len)
        );
    }

    #[test]
    fn truncation_keeps_what_was_read() {
        let file = hex(NEW);
        for len in 1..file.len() {
            let fault = decode(&file[..len], 1000).unwrap_err();
            assert!(
                (1000..=1000 + len as u64).contains(&fault.offset),
                "{fault}"
            );
            let partial = decode_partial(&file[..len], 0);
            if len < 6 {
                partial.unwrap_err();
            } else {
                let (state, _, fault) = partial.unwrap();
                assert_eq!(
                    (state.delivered, state.ack_floor),
                    (pair(22, 91), pair(1, 13))
                );
                assert!(fault.is_some());
            }
        }
        // All pending entries, and the first of the two redelivered ones.
        let (state, _, _) = decode_partial(&file[..file.len() - 1], 0).unwrap();
        assert_eq!((state.pending.len(), state.redelivered.len()), (14, 1));
    }

    #[test]
    fn what_is_no_state_is_refused_where_it_shows() {
        let kind = |file: &[u8]| decode(file, 50).unwrap_err();
        let magic = FaultKind::Magic { format: "o.dat" };
        assert_eq!(kind(&[0; 8]), Fault::new(50, magic));
        let version = FaultKind::Version {
            format: "o.dat",
            found: 3,
        };
        assert_eq!(kind(&[22, 3, 0, 0, 0, 0, 0, 0]), Fault::new(51, version));
        // A count that the file cannot hold ends with the file.
        for at in [6, 7] {
            let mut file = vec![22, 2, 0, 0, 0, 0, 0, 0];
            file.truncate(at);
            put_uvarint(&mut file, u64::MAX);
            file.extend([0; 100]);
            let truncated = FaultKind::Truncated { need: 1, have: 0 };
            assert_eq!(kind(&file), Fault::new(50 + file.len() as u64, truncated));
        }
    }

    #[test]
    fn redelivered_sequences_that_never_lost_the_floor() {
        let redelivered = |raw: u64| {
            let mut file = vec![22, 2, 5];
            for n in [1 << 62, 6, 1 << 62, 0, 1, raw, 3] {
                put_uvarint(&mut file, n);
            }
            decode(&file, 0).unwrap().0.redelivered
        };
        assert_eq!(redelivered(9), BTreeMap::from([((1 << 62) + 9, 3)]));
        let unshifted = (1 << 62) + 9;
        assert_eq!(redelivered(unshifted), BTreeMap::from([(unshifted, 3)]));
        assert_eq!(redelivered(0), BTreeMap::new());
    }

    #[test]
    fn extreme_values_survive() {
        let entry = Pending {
            consumer_seq: 0,
            timestamp: i64::MIN / SECOND * SECOND,
        };
        let late = Pending {
            consumer_seq: u64::MAX,
            timestamp: i64::MAX / SECOND * SECOND,
        };
        let state = ConsumerState {
            delivered: pair(u64::MAX, 0),
            ack_floor: pair(u64::MAX, (1 << 62) - 1),
            pending: BTreeMap::from([(0, entry), (u64::MAX, late)]),
            redelivered: BTreeMap::from([(1, u64::MAX)]),
        };
        let file = encode(&state);
        assert_eq!(decode(&file, 0).unwrap(), (state.clone(), file.len()));
        assert_eq!(ConsumerState::from_json(&state.to_json()).unwrap(), state);
    }

    #[test]
    fn problems_are_named() {
        let mut state = decode(&hex(NEW), 0).unwrap().0;
        state.pending.insert(13, Pending::default());
        state.pending.insert(92, Pending::default());
        state.redelivered.insert(92, 1);
        let found = validate(&state);
        let expected = [
            StateProblem::PendingOutside(13),
            StateProblem::PendingOutside(92),
            StateProblem::RedeliveredOutside(92),
        ];
        assert_eq!(found, expected);
        assert!(!found.iter().any(StateProblem::is_refused));

        let state = ConsumerState {
            ack_floor: pair(5, BIT63),
            pending: BTreeMap::from([(0, Pending::default())]),
            ..ConsumerState::default()
        };
        let refused: Vec<_> = validate(&state)
            .into_iter()
            .filter(StateProblem::is_refused)
            .collect();
        let expected = [
            StateProblem::HugeSequence(BIT63),
            StateProblem::PendingOutside(0),
        ];
        assert_eq!(refused, expected);
        assert_eq!(validate(&state).len(), 4);
    }

    #[test]
    fn json_is_read_as_go_reads_it() {
        let state = |text: &str| ConsumerState::from_json(&serde_json::from_str(text).unwrap());
        assert_eq!(state("{}").unwrap(), ConsumerState::default());
        let folded = r#"{"Delivered":{"Consumer_Seq":3},"ack_floor":null,"x":1,
                         "pending":{"7":{"sequence":2,"timestamp":-1}},"redelivered":null}"#;
        let expected = ConsumerState {
            delivered: pair(3, 0),
            pending: BTreeMap::from([(
                7,
                Pending {
                    consumer_seq: 2,
                    timestamp: -1,
                },
            )]),
            ..ConsumerState::default()
        };
        assert_eq!(state(folded).unwrap(), expected);
        for bad in [
            "[]",
            r#"{"delivered":5}"#,
            r#"{"delivered":{"consumer_seq":-1}}"#,
            r#"{"pending":{"x":{}}}"#,
            r#"{"pending":{"7":9}}"#,
            r#"{"redelivered":{"7":"9"}}"#,
        ] {
            assert!(
                matches!(state(bad).unwrap_err().kind, FaultKind::Invalid(_)),
                "{bad}"
            );
        }
        // Go sorts the keys of a map as text.
        let order = r#"{"delivered":{"consumer_seq":0,"stream_seq":0},"ack_floor":{"consumer_seq":0,"stream_seq":0},"redelivered":{"10":1,"9":2}}"#;
        assert_eq!(state(order).unwrap().to_json().to_string(), order);
    }

    proptest::proptest! {
        #[test]
        fn any_state_survives_encoding(
            floors in proptest::array::uniform4(0..BIT63),
            pending in proptest::collection::btree_map(0..BIT63, (0u64.., 0i64..4_000_000_000), 0..20),
            redelivered in proptest::collection::btree_map(1u64 << 62..BIT63, 1u64.., 0..20),
        ) {
            let state = ConsumerState {
                delivered: pair(floors[0], floors[1]),
                ack_floor: pair(floors[2], floors[3] >> 1),
                pending: pending
                    .into_iter()
                    .map(|(k, (seq, s))| (k, Pending { consumer_seq: seq, timestamp: s * SECOND }))
                    .collect(),
                redelivered,
            };
            let file = encode(&state);
            proptest::prop_assert_eq!(decode(&file, 0).unwrap(), (state, file.len()));
        }

        #[test]
        fn no_bytes_make_it_panic(mut file: Vec<u8>) {
            let _ = decode_partial(&file, 0);
            if let Some(start) = file.get_mut(..2) {
                start.copy_from_slice(&[22, 1 + (start[0] & 1)]);
                if let Ok((state, _, _)) = decode_partial(&file, 0) {
                    validate(&state);
                    encode(&state);
                }
            }
        }
    }
}
