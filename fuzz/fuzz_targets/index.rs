//! Every small binary file: `index.db`, `.idx`, `.fss`, `o.dat`, `thw.db`, `sched.db`, `sources.db`,
//! sequence sets and the files of raft groups. Input: the file; every decoder gets it.
#![no_main]

use jetsam::format::hash::HashKey;
use jetsam::format::{
    Cursor, Fault, fss, idx, index_db, o_dat, raft, sched_db, seqset, sources_db, thw_db,
};
use libfuzzer_sys::fuzz_target;

const SECOND: i64 = 1_000_000_000;

/// The value, where there is one; a fault must lie in the input.
fn value<T>(buf: &[u8], got: Result<T, Fault>) -> Option<T> {
    match got {
        Ok(v) => Some(v),
        Err(f) => {
            assert!(f.offset <= buf.len() as u64, "{f}");
            None
        }
    }
}

fuzz_target!(|buf: &[u8]| {
    consumer(buf);
    sequences(buf);
    index(buf);
    block_index(buf);
    tables(buf);
    raft_files(buf);
});

fn consumer(buf: &[u8]) {
    let Some((mut state, used, fault)) = value(buf, o_dat::decode_partial(buf, 0)) else {
        o_dat::decode(buf, 0).unwrap_err();
        return;
    };
    assert!(used <= buf.len());
    assert_eq!(o_dat::decode(buf, 0).is_ok(), fault.is_none());
    let problems = o_dat::validate(&state);
    assert_eq!(
        o_dat::ConsumerState::from_json(&state.to_json()).unwrap(),
        state
    );
    // Times are written as whole seconds; sequences near the end of 64 bits have no encoding.
    for p in state.pending.values_mut() {
        p.timestamp -= p.timestamp % SECOND;
    }
    if problems.is_empty() && state.ack_floor.stream < 1 << 62 {
        let out = o_dat::encode(&state);
        assert_eq!(o_dat::decode(&out, 0), Ok((state, out.len())));
    }
}

fn sequences(buf: &[u8]) {
    let mut c = Cursor::new(buf, 0);
    let Some(mut set) = value(buf, seqset::decode(&mut c)) else {
        return;
    };
    assert!(c.consumed() <= buf.len());
    let mut out = Vec::new();
    seqset::encode(&set, &mut out);
    assert_eq!(out.len() as u64, seqset::encoded_len(&set));
    let mut c = Cursor::new(&out, 0);
    assert_eq!(seqset::decode(&mut c).as_ref(), Ok(&set));
    assert!(c.is_empty());
    let all: Vec<u64> = set.iter().collect();
    assert_eq!(all.len() as u64, set.len());
    assert!(all.is_sorted_by(|a, b| a < b));
    assert_eq!(set.count_range(0, u64::MAX), set.len());
    if let (Some(min), Some(max)) = (set.min(), set.max()) {
        assert_eq!((Some(&min), Some(&max)), (all.first(), all.last()));
        assert!(set.remove(max) && !set.contains(max));
        set.remove_below(max);
        assert!(set.is_empty());
    }
}

fn index(buf: &[u8]) {
    let _ = value(buf, index_db::check_hash(buf, b"A"));
    // With and without the hash at the end.
    for body in [buf, &buf[..buf.len().saturating_sub(8)]] {
        let with = |subjects| index_db::decode(body, 0, index_db::Options { subjects });
        let without = with(false);
        let Some(mut db) = value(body, with(true)) else {
            without.unwrap_err();
            continue;
        };
        let without = without.unwrap();
        assert_eq!(
            (without.num_subjects, &without.blocks),
            (db.num_subjects, &db.blocks)
        );
        assert_eq!(db.subjects.iter().count() as u64, db.num_subjects);
        let _ = (db.subjects.invalid(), index_db::totals_agree(&db));
        serde_json::to_string(&db).unwrap();
        db.trailing = 0;
        let out = index_db::encode(&db, db.version, b"A");
        let body = index_db::check_hash(&out, b"A").unwrap();
        let again = index_db::decode(body, 0, index_db::Options { subjects: true });
        assert_eq!(again.as_ref(), Ok(&db));
    }
}

fn block_index(buf: &[u8]) {
    if let Some(mut i) = value(buf, idx::decode(buf, 0)) {
        assert!(i.consumed <= buf.len());
        let _ = i.adds_up();
        serde_json::to_string(&i).unwrap();
        // As many are written as there are.
        i.announced_deleted = i.deleted.len();
        let out = idx::encode(&i);
        (i.consumed, i.outside) = (out.len(), 0);
        assert_eq!(idx::decode(&out, 0), Ok(i));
    }
    let key = HashKey::new(b"A");
    let _ = value(buf, fss::check_hash(buf, &key));
    for body in [buf, &buf[..buf.len().saturating_sub(8)]] {
        if let Some((f, used)) = value(body, fss::decode(body, 0)) {
            assert!(used <= body.len());
            serde_json::to_string(&f).unwrap();
            let out = fss::encode(&f, &key);
            fss::check_hash(&out, &key).unwrap();
            assert_eq!(fss::decode(&out[..out.len() - 8], 0).map(|r| r.0), Ok(f));
        }
    }
}

fn tables(buf: &[u8]) {
    macro_rules! table {
        ($($format:ident)*) => { $(
            if let Some((db, used)) = value(buf, $format::decode(buf, 0)) {
                assert!(used <= buf.len());
                serde_json::to_string(&db).unwrap();
                let out = $format::encode(&db);
                assert_eq!($format::decode(&out, 0), Ok((db, out.len())));
            }
        )* };
    }
    table!(thw_db sched_db sources_db);
}

fn raft_files(buf: &[u8]) {
    if let Some(p) = value(buf, raft::decode_peers(buf, 0)) {
        assert!(8 + 8 * p.peers.len() <= buf.len());
    }
    let _ = value(buf, raft::decode_vote(buf, 0));
    // Plain, and with the hash that makes it whole.
    let hashed = [buf, &HashKey::new(b"G").sum(buf)].concat();
    for file in [buf, &hashed] {
        let _ = value(file, raft::decode_commit(file, 0, b"G"));
        if let Some(s) = value(file, raft::decode_snapshot(file, 0, b"G")) {
            assert!(s.data.len() + 28 <= file.len());
        }
    }
    if buf.len() == 8 {
        let index = u64::from_le_bytes(buf.try_into().unwrap());
        assert_eq!(raft::decode_commit(&hashed, 0, b"G"), Ok(index));
    }
    if let Some(e) = value(buf, raft::decode_append_entry(buf, 0)) {
        // Put together again it is what was read.
        let mut out = buf[..8].to_vec();
        for n in [e.term, e.commit, e.previous_term, e.previous_index] {
            out.extend(n.to_le_bytes());
        }
        out.extend((e.entries.len() as u16).to_le_bytes());
        for x in &e.entries {
            let _ = raft::op_name(x.data);
            out.extend((x.data.len() as u32 + 1).to_le_bytes());
            out.push(buf[out.len()]);
            assert_eq!(raft::EntryType::from(out[out.len() - 1]), x.kind);
            out.extend(x.data);
        }
        assert_eq!(out, buf[..out.len()]);
    }
}
