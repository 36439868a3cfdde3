//! What jetsam's decoders say of an example, by its kind.

use super::{Example, common, file, path_of};
use jetsam::format::block::{self, Container};
use jetsam::format::crypt::{Context, KeyRing, SealKey, ServerKey, open_key_file};
use jetsam::format::hash::HashKey;
use jetsam::format::record::{OnDamage, Prover, Record, Step, scan};
use jetsam::format::s2::{FrameKind, Frames, decode_stream, parse_chunk_header};
use jetsam::format::{
    archive_v2, fss, idx, index_db, meta, o_dat, raft, sched_db, sources_db, tar, thw_db,
};
use jetsam::source::archive::{self, Opened};
use serde_json::{Value, json};

fn value(v: impl serde::Serialize) -> Value {
    serde_json::to_value(v).unwrap()
}

fn lossy(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| hex(bytes), str::to_owned)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn record(r: &Record<'_>, prover: &Prover) -> Value {
    json!({
        "kind": r.kind.as_str(), "seq": r.seq, "ts": r.ts, "len": r.len(), "subject": lossy(r.subject),
        "headers": lossy(r.headers), "payload": lossy(r.payload), "hash": hex(&r.hash()), "proven": r.proves(prover),
    })
}

fn open_key(e: &Example, key_file: &[u8]) -> SealKey {
    let keys = KeyRing {
        current: Some(ServerKey::new(e.arg("key"))),
        previous: None,
    };
    let (account, stream) = (e.arg("account").as_bytes(), e.arg("stream").as_bytes());
    let context = match (e.args.get("block"), e.args.get("consumer")) {
        (Some(n), _) => Context::Block {
            info: account,
            store: stream,
            n: n.parse().unwrap(),
        },
        (_, Some(consumer)) => Context::Consumer {
            account,
            stream,
            consumer: consumer.as_bytes(),
        },
        _ => Context::Stream { account, stream },
    };
    open_key_file(key_file, &keys, &context).unwrap()
}

/// What jetsam says of an example.
pub fn decode(e: &Example) -> Value {
    let bytes = e.bytes.as_slice();
    match e.kind.as_str() {
        "record" => {
            let r = Record::decode(bytes, 0).unwrap();
            assert_eq!(r.raw.len(), bytes.len(), "{}", e.place);
            record(&r, &Prover::for_block(e.arg("stream"), e.number("block")))
        }
        "records" => {
            let prover = Prover::for_block(e.arg("stream"), e.number("block"));
            let mut all = Vec::new();
            scan(bytes, 0, &prover, OnDamage::Resync, |step| match step {
                Step::Record(r, proof) => {
                    all.push(json!([r.kind.as_str(), r.seq, format!("{proof:?}")]))
                }
                Step::Gap { from, to, .. } => all.push(json!(["gap", from, to])),
            });
            Value::Array(all)
        }
        "container" => {
            let prover = Prover::for_block(e.arg("stream"), e.number("block"));
            let Container::S2 { header, original } = Container::detect(bytes, &prover) else {
                panic!("{}", e.place)
            };
            let (kind, length) =
                parse_chunk_header(bytes[header + 10..header + 14].try_into().unwrap());
            let mut out = Vec::new();
            assert!(block::decompress(&file(e.arg("whole")), header, &mut out, 1 << 24).is_clean());
            json!({"header": header, "original": original, "chunk": {"kind": kind, "length": length}, "decompressed": out.len()})
        }
        "s2" => {
            let chunks: Vec<_> = Frames::new(bytes, 0)
                .map(|f| f.unwrap())
                .map(|f| match f.kind {
                    FrameKind::Identifier => json!(["identifier", lossy(f.body)]),
                    kind => json!([format!("{kind:?}").to_lowercase(), {"length": f.body.len(), "crc": f.stored_crc()}]),
                })
                .collect();
            let mut out = Vec::new();
            assert!(decode_stream(bytes, 0, &mut out, 1 << 24, false).is_clean());
            json!({"chunks": chunks, "content": lossy(&out)})
        }
        "key" => {
            let key = open_key(e, bytes);
            json!({"cipher": key.cipher.as_str(), "which": format!("{:?}", key.which), "excess": key.excess})
        }
        "sealed" => json!(hex(&open_key(e, &file(e.arg("key-file")))
            .open(bytes)
            .unwrap())),
        "keystream" => {
            let mut plain = bytes.to_vec();
            open_key(e, &file(e.arg("key-file"))).apply_keystream(e.number("offset"), &mut plain);
            json!(hex(&plain))
        }
        "index" => {
            let body = index_db::check_hash(bytes, e.arg("stream").as_bytes()).unwrap();
            let db = index_db::decode(body, 0, index_db::Options { subjects: true }).unwrap();
            index_db::totals_agree(&db).unwrap();
            value(&db)
        }
        "idx" => value(idx::decode(bytes, 0).unwrap()),
        "fss" => {
            fss::check_hash(bytes, &HashKey::block(e.arg("stream"), e.number("block"))).unwrap();
            value(&fss::decode(bytes, 0).unwrap().0)
        }
        "thw" => value(&thw_db::decode(bytes, 0).unwrap().0),
        "sched" => value(&sched_db::decode(bytes, 0).unwrap().0),
        "sources" => value(&sources_db::decode(bytes, 0).unwrap().0),
        "o-dat" => {
            let (state, used) = o_dat::decode(bytes, 0).unwrap();
            assert_eq!(
                (used, o_dat::encode(&state).len()),
                (bytes.len(), bytes.len()),
                "{}",
                e.place
            );
            state.to_json()
        }
        "meta" => {
            let m = if e.arg("of") == "consumer" {
                meta::decode_consumer(bytes)
            } else {
                meta::decode_stream(bytes)
            }
            .unwrap();
            json!({"created": m.created, "created_ns": m.created_ns, "name": m.name, "config": m.config})
        }
        "sum" => {
            json!({"proven": meta::check_sum(e.arg("name").as_bytes(), &file(e.arg("meta")), bytes).is_ok()})
        }
        "current" => {
            let index = file(e.arg("index"));
            let body = index_db::check_hash(&index, e.arg("stream").as_bytes()).unwrap();
            let db = index_db::decode(body, 0, index_db::Options { subjects: false }).unwrap();
            json!({"index says": hex(&db.last_checksum), "current": db.last_checksum == bytes})
        }
        "vote" => value(raft::decode_vote(bytes, 0).unwrap()),
        "peers" => value(raft::decode_peers(bytes, 0).unwrap()),
        "snapshot" => {
            let s = raft::decode_snapshot(bytes, 0, e.arg("group").as_bytes()).unwrap();
            json!({"last_term": s.last_term, "last_index": s.last_index, "peers": s.peers, "data": hex(s.data)})
        }
        "log" => {
            let r = Record::decode(bytes, 0).unwrap();
            assert!(
                r.proves(&Prover::for_block(e.arg("group"), e.number("block"))),
                "{}",
                e.place
            );
            let a = raft::decode_append_entry(r.payload, 0).unwrap();
            let entry = |x: &raft::Entry<'_>| json!({"type": x.kind, "op": raft::op_name(x.data), "data": hex(x.data)});
            json!({
                "index": r.seq, "leader": a.leader, "term": a.term, "commit": a.commit, "previous_term": a.previous_term,
                "previous_index": a.previous_index, "entries": a.entries.iter().map(entry).collect::<Vec<_>>(),
            })
        }
        "archive" => {
            let Opened::V2(v2) = archive::open(&path_of(e.arg("archive"))).unwrap() else {
                panic!("{}", e.place)
            };
            json!({"state": v2.state(), "consumers": v2.consumers().len()})
        }
        "entry" => {
            let (h, len) = archive_v2::header(bytes, 0).unwrap();
            let (name, body) = bytes[len..].split_at(h.name as usize);
            let (headers, payload) = body.split_at(h.headers as usize);
            assert_eq!(payload.len() as u64, h.payload, "{}", e.place);
            json!({"name": lossy(name), "time": h.timestamp, "sequence": h.sequence, "headers": lossy(headers), "payload": lossy(payload)})
        }
        "tar" => {
            let h = tar::header(bytes).unwrap();
            json!({"name": lossy(&h.name), "kind": char::from(h.kind), "size": h.size, "modified": h.modified})
        }
        "pax" => json!({"modified": tar::pax(bytes).unwrap().modified}),
        "members" => {
            let bytes = file(&format!("s2:{}", e.arg("archive")));
            let mut tar = ::tar::Archive::new(bytes.as_slice());
            let names: Vec<_> = tar
                .entries()
                .unwrap()
                .map(|m| m.unwrap().path().unwrap().display().to_string())
                .collect();
            json!(names.join("\n"))
        }
        "tree" => {
            let base = path_of(&format!("{}:store", e.arg("of")));
            let files = common::fingerprint(&base)
                .into_keys()
                .filter(|p| p.is_file());
            let names = files.map(|p| p.strip_prefix(&base).unwrap().display().to_string());
            json!(names.collect::<Vec<_>>().join("\n"))
        }
        other => panic!("{}: what is {other:?}?", e.place),
    }
}
