//! What a stream holds, as the JetStream API tells it.

use crate::shape::{BEGIN, Parts};
use crate::write::{Done, Maker, consumer_config, consumer_state};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jetsam::time::{rfc3339, rfc3339_or_zero};
use serde_json::{Map, Value, json};

/// Messages of a stream, at most; of more a sample.
const MESSAGES: u64 = 1000;
/// Consumers, at most.
const CONSUMERS: u64 = 1000;
/// Deleted sequences and subjects that are listed, at most.
const LISTED: u64 = 100_000;

/// A stream that was made.
pub fn stream(maker: &Maker<'_>, done: &Done) -> Value {
    let (shape, db) = (&done.shape, &done.state);
    let span = if db.msgs == 0 {
        0
    } else {
        db.last_seq - db.first_seq + 1
    };
    let num_deleted = span - db.msgs;
    let mut state = json!({
        "messages": db.msgs,
        "bytes": db.bytes,
        "first_seq": db.first_seq,
        "first_ts": rfc3339_or_zero(db.first_ts),
        "last_seq": db.last_seq,
        "last_ts": rfc3339_or_zero(db.last_ts),
        "num_subjects": db.num_subjects,
        "num_deleted": num_deleted,
        "consumer_count": maker.args.consumers,
    });
    if num_deleted > 0 && num_deleted <= LISTED {
        let mut deleted = Vec::new();
        let mut next = db.first_seq;
        for i in 0..shape.messages {
            let seq = shape.seq(i);
            deleted.extend(next..seq);
            next = seq + 1;
        }
        state["deleted"] = deleted.into();
    }
    if db.num_subjects <= LISTED {
        let mut subjects = Map::new();
        let mut text = Vec::new();
        let mut put = |id, n: u32| {
            shape.put_subject(&mut text, id);
            subjects.insert(String::from_utf8_lossy(&text).into_owned(), n.into());
        };
        if shape.kv {
            (0..shape.messages).for_each(|id| put(id, 1));
        }
        for (id, n) in (0..).zip(&done.counts).filter(|(_, n)| **n > 0) {
            put(id, *n);
        }
        state["subjects"] = subjects.into();
    }
    json!({
        "config": maker.stream_config(shape),
        "created": rfc3339(BEGIN),
        "state": state,
        "messages": messages(done),
        "consumers": consumers(maker, done),
    })
}

fn messages(done: &Done) -> Vec<Value> {
    let shape = &done.shape;
    let some = shape.messages.min(MESSAGES);
    let mut parts = Parts::default();
    (0..some)
        .map(|n| {
            // The first and the last are among them.
            let last = u128::from(shape.messages - 1);
            let i = (u128::from(n) * last / u128::from(some.max(2) - 1)) as u64;
            let seq = shape.seq(i);
            shape.message(i, &mut parts);
            let mut message = json!({
                "seq": seq,
                "subject": String::from_utf8_lossy(&parts.subject),
                "time": rfc3339(shape.ts(seq)),
            });
            for (key, bytes) in [("hdrs", &parts.headers), ("data", &parts.payload)] {
                if !bytes.is_empty() {
                    message[key] = STANDARD.encode(bytes).into();
                }
            }
            message
        })
        .collect()
}

fn consumers(maker: &Maker<'_>, done: &Done) -> Map<String, Value> {
    let shape = &done.shape;
    (1..=maker.args.consumers.min(CONSUMERS))
        .map(|c| {
            let name = format!("C{c}");
            let state = consumer_state(shape, c);
            let delivered = state.delivered.consumer - state.redelivered.len() as u64;
            let consumer = json!({
                "stream_name": shape.name,
                "name": name,
                "created": rfc3339(BEGIN),
                "config": consumer_config(&name),
                "delivered": { "consumer_seq": state.delivered.consumer, "stream_seq": state.delivered.stream },
                "ack_floor": { "consumer_seq": state.ack_floor.consumer, "stream_seq": state.ack_floor.stream },
                "num_ack_pending": state.pending.len(),
                "num_redelivered": state.redelivered.len(),
                "num_pending": shape.messages - delivered,
            });
            (name, consumer)
        })
        .collect()
}
