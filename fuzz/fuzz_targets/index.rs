//! Every small binary file: `index.db`, `.idx`, `.fss`, `o.dat`, `thw.db`, `sched.db`, `sources.db`,
//! sequence sets, the files of raft groups, the headers in archives. Input: the file; every decoder gets it.
#![no_main]

use jetsam::format::hash::HashKey;
use jetsam::format::{
    Cursor, Fault, archive_v2, fss, idx, index_db, o_dat, raft, sched_db, seqset, sources_db, tar,
    thw_db,
};
use jetsam_fuzz::Input;
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
    members(buf);
    entries(buf);
});

/// The headers of one member of a tar: its name, size and time, and the bytes they took.
fn member(buf: &[u8]) -> Option<(Vec<u8>, u64, i64, usize)> {
    let first = tar::header(buf)?;
    if first.kind != b'x' {
        return Some((first.name, first.size, first.modified, tar::BLOCK));
    }
    let rest = &buf[tar::BLOCK..];
    let len = usize::try_from(first.size).ok()?;
    let pax = tar::pax(rest.get(..len)?)?;
    let at = len + tar::padding(first.size).len();
    let own = tar::header(rest.get(at..)?)?;
    Some((
        pax.path.unwrap_or(own.name),
        pax.size.unwrap_or(own.size),
        pax.modified.unwrap_or(own.modified),
        2 * tar::BLOCK + at,
    ))
}

fn members(buf: &[u8]) {
    assert!(tar::header(buf).is_none() || tar::is_header(buf));
    let _ = (member(buf), tar::pax(buf));
    let mut input = Input(buf);
    let (size, modified) = (input.u64(), input.u64() as i64);
    let name = input.rest();
    let mut out = Vec::new();
    if tar::put_header(&mut out, name, size, modified).is_ok() {
        assert_eq!(out.len() % tar::BLOCK, 0);
        assert_eq!(
            member(&out),
            Some((name.to_vec(), size, modified, out.len()))
        );
    }
}

fn entries(buf: &[u8]) {
    if let Some((h, used)) = value(buf, archive_v2::header(buf, 0)) {
        let mut out = Vec::new();
        archive_v2::put_header(&mut out, &h);
        assert_eq!(archive_v2::header(&out, 0), Ok((h, out.len())));
        assert!(used <= buf.len());
    }
    let mut input = Input(buf);
    let (seq, time) = (input.u64(), input.u64() as i64);
    let (name, headers) = (input.short(), input.short());
    let payload = input.rest();
    let mut out = Vec::new();
    archive_v2::put_message(&mut out, name, time, seq, headers, payload);
    let (h, used) = archive_v2::header(&out, 0).unwrap();
    let lengths = (
        name.len() as u64,
        headers.len() as u64,
        payload.len() as u64,
    );
    assert_eq!((h.name, h.headers, h.payload), lengths);
    assert_eq!((h.sequence, h.timestamp), (seq, time));
    assert_eq!(out[used..], [name, headers, payload].concat());
}

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
        if out.len() < index_db::MIN_LEN {
            // No blocks and hardly a number: nothing that a server writes.
            continue;
        }
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
    if let Some((f, used)) = value(buf, fss::decode(buf, 0)) {
        assert!(used <= buf.len());
        serde_json::to_string(&f).unwrap();
        let out = fss::encode(&f, &key);
        // A shorter file, without a subject, no server writes or reads.
        if out.len() >= 24 {
            fss::check_hash(&out, &key).unwrap();
            assert_eq!(fss::decode(&out, 0), Ok((f, out.len())));
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
