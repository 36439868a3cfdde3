//! `salvage` against every single flipped bit of small stores that real servers wrote: what it gives back is what the
//! server said before its stop (`truth.json`), and its report names the file, the byte and the bit.
//!
//! All bits of all files of the stores in `fixtures/tiny`, each as the server left it and once more without its
//! `index.db`. By default one bit of every 61 is tried; `JETSAM_EVERY_BIT=1` tries all of them (some minutes):
//!
//! ```text
//! JETSAM_EVERY_BIT=1 cargo test --release --test salvage bits:: -- --nocapture
//! ```
//!
//! Which bits cannot be brought back, because nothing on disk could tell, is what [`by_kind`] and [`told`] say.

use super::common::{self, Fixture, copy_tree, instant};
use base64::Engine as _;
use jetsam::format::crypt::{KeyRing, ServerKey};
use jetsam::format::meta::MetaInf;
use jetsam::format::o_dat::ConsumerState;
use jetsam::pipeline::Threads;
use jetsam::salvage::{Ask, Mended, lost, mend};
use jetsam::source::StreamSource;
use jetsam::state::{Depth, survey, visit::Pass};
use jetsam::stream::{Scratch, Stream, Want};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// One of so many bits is tried by default; no multiple of 2, so that each place in a byte has its turn.
const SAMPLE: usize = 61;

/// A message: sequence, time, subject, headers, payload.
type Message = (u64, i64, Vec<u8>, Vec<u8>, Vec<u8>);

/// All that there is to a stream.
#[derive(Debug, Clone, PartialEq)]
struct Reading {
    messages: Vec<Message>,
    /// First and last sequence and time, bytes.
    state: (u64, i64, u64, i64, u64),
    deleted: Vec<(u64, u64)>,
    subjects: BTreeMap<Vec<u8>, u64>,
    meta: Option<MetaInf>,
    consumers: Vec<(String, Option<MetaInf>, Option<ConsumerState>)>,
}

pub(super) fn keys(fx: &Fixture) -> KeyRing {
    KeyRing {
        current: fx.key().map(ServerKey::new),
        previous: None,
    }
}

fn source(store: &Path) -> StreamSource {
    let source = jetsam::source::open(store, &Default::default()).unwrap();
    let [one] = source.streams.as_slice() else {
        panic!("{}: not one stream", store.display());
    };
    one.clone()
}

fn read(source: &StreamSource, keys: &KeyRing, threads: &Threads) -> Reading {
    let want = Want {
        subjects: true,
        consumers: true,
    };
    let stream = Stream::open(source, keys, want);
    let depth = Depth {
        subjects: true,
        prove: false,
    };
    let state = survey(&stream, threads, depth, &|_| {}).state;
    let mut messages = Vec::new();
    Pass::new(&stream, &state, threads, &|_| {}).run(
        Vec::new,
        |piece: &mut Vec<Message>, m| {
            piece.push((
                m.seq,
                m.ts,
                m.subject.to_vec(),
                m.headers.to_vec(),
                m.payload.to_vec(),
            ));
            ControlFlow::Continue(())
        },
        |mut piece| {
            messages.append(&mut piece);
            ControlFlow::Continue(())
        },
    );
    let subjects = state.subjects.iter().flat_map(|s| s.iter());
    Reading {
        messages,
        state: (
            state.first_seq,
            state.first_ts,
            state.last_seq,
            state.last_ts,
            state.bytes,
        ),
        deleted: state.deleted(),
        subjects: subjects
            .filter(|(_, n)| *n > 0)
            .map(|(s, n)| (s.to_vec(), n))
            .collect(),
        meta: stream.meta.clone(),
        consumers: stream
            .consumers
            .iter()
            .map(|c| (c.name.clone(), c.meta.clone(), c.state.clone()))
            .collect(),
    }
}

fn mended(source: &StreamSource, keys: &KeyRing, threads: &Threads) -> Mended {
    mend(
        source,
        Path::new(""),
        Ask {
            keys,
            threads,
            seconds: 1.0,
            unproven: false,
            config: None,
            assigned: &BTreeMap::new(),
            names: std::slice::from_ref(&source.name),
            stop: &AtomicBool::new(false),
            progress: &|_| {},
        },
    )
}

/// The messages that the server itself gave.
fn true_messages(fx: &Fixture) -> Vec<Message> {
    let bytes = |v: &Value| {
        let text = v.as_str().unwrap_or("");
        base64::engine::general_purpose::STANDARD
            .decode(text)
            .unwrap()
    };
    fx.truth["accounts"]["$G"]["TINY"]["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            (
                m["seq"].as_u64().unwrap(),
                i64::try_from(instant(&m["time"]).unwrap().as_nanosecond()).unwrap(),
                m["subject"].as_str().unwrap().as_bytes().to_vec(),
                bytes(&m["hdrs"]),
                bytes(&m["data"]),
            )
        })
        .collect()
}

/// A kind of byte: of which file, and which field of it.
type Kind = (&'static str, &'static str);

/// A file, and what each of its bytes is.
struct File {
    path: PathBuf,
    kinds: Vec<Kind>,
    /// For each byte of a plain or encrypted block: its record's sequence and offset.
    records: Vec<(u64, usize)>,
    /// The block, decrypted.
    logical: Vec<u8>,
}

/// What the bytes of a logical block are, and whose.
pub(super) fn fields(block: &[u8]) -> Vec<(&'static str, u64)> {
    let mut out = Vec::new();
    while let Some(head) = block.get(out.len()..out.len() + 22) {
        let word = u32::from_le_bytes(head[..4].try_into().unwrap());
        let (len, headers) = ((word & 0x7fff_ffff) as usize, word >> 31 == 1);
        let seq = u64::from_le_bytes(head[4..12].try_into().unwrap());
        let slen = usize::from(u16::from_le_bytes(head[20..22].try_into().unwrap()));
        let mut add = |what, n| out.extend(std::iter::repeat_n((what, seq), n));
        let begin = 30 + slen + if headers { 4 } else { 0 };
        assert!(len >= begin, "not a plain block");
        add("length", 4);
        add("sequence", 8);
        add("time", 8);
        add(
            match (headers, seq >> 62) {
                (true, _) => "subject length before headers",
                (false, 0) => "subject length",
                (false, _) => "subject length of none",
            },
            2,
        );
        add("subject", slen);
        if headers {
            add("header length", 4);
        }
        add("content", len - begin);
        add("hash", 8);
    }
    assert_eq!(out.len(), block.len(), "not a plain block");
    out
}

/// What the bytes of a plain `.idx` are.
fn idx_fields(file: &[u8]) -> Vec<Kind> {
    let mut out = vec![("idx", "magic"), ("idx", "version")];
    for field in [
        "messages",
        "bytes",
        "first sequence",
        "first time",
        "last sequence",
        "last time",
        "deleted",
    ] {
        while file[out.len()] & 0x80 != 0 {
            out.push(("idx", field));
        }
        out.push(("idx", field));
    }
    out.extend([("idx", "checksum"); 8]);
    out.resize(file.len(), ("idx", "deletions"));
    out
}

/// For each byte the sequence and offset of its record.
fn starts(fields: &[(&'static str, u64)]) -> Vec<(u64, usize)> {
    let (mut out, mut start) = (Vec::new(), 0);
    for (at, (field, seq)) in fields.iter().enumerate() {
        if *field == "length" && (at == 0 || fields[at - 1].0 != "length") {
            start = at;
        }
        out.push((*seq, start));
    }
    out
}

/// What the bytes of a compressed block (decrypted) are: the header, and chunk by chunk.
fn compressed_fields(block: &[u8]) -> Vec<&'static str> {
    assert!(block.starts_with(b"cmp\x01"));
    let mut out = vec!["magic"; 4];
    while block[out.len()] & 0x80 != 0 {
        out.push("original size");
    }
    out.push("original size");
    while out.len() < block.len() - 8 {
        let at = out.len();
        let len = u32::from_le_bytes(block[at..at + 4].try_into().unwrap()) >> 8;
        out.push("chunk type");
        out.extend(["chunk length"; 3]);
        if block[at] == 0xff {
            out.extend(vec!["chunk magic"; len as usize]);
        } else {
            out.extend(["chunk checksum"; 4]);
            out.extend(vec!["chunk"; len as usize - 4]);
        }
    }
    out.extend(["hash"; 8]);
    assert_eq!(out.len(), block.len());
    out
}

/// The logical content of every block of every stream, by the block's file, and whether it is compressed.
pub(super) fn contents(source: &StreamSource, keys: &KeyRing) -> BTreeMap<u64, (Vec<u8>, bool)> {
    let want = Want {
        subjects: false,
        consumers: false,
    };
    let stream = Stream::open(source, keys, want);
    let mut scratch = Scratch::default();
    let mut out = BTreeMap::new();
    for block in &stream.blocks {
        let loaded = stream.load(block, &mut scratch).unwrap();
        let compressed = loaded.container.is_compressed();
        out.insert(block.n, (loaded.bytes.to_vec(), compressed));
    }
    out
}

fn files(fx: &Fixture, store: &Path) -> Vec<File> {
    let mut out = Vec::new();
    let mut todo = vec![store.to_owned()];
    let blocks = contents(&source(store), &keys(fx));
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            let len = fs::metadata(&path).unwrap().len() as usize;
            let consumer = path.to_str().unwrap().contains("/obs/");
            let sealed = fx.key().is_some();
            let (mut records, mut plain) = (Vec::new(), Vec::new());
            let kinds: Vec<Kind> = match name.rsplit_once('.').unwrap() {
                (n, "blk") => {
                    let (logical, compressed) = &blocks[&n.parse().unwrap()];
                    if *compressed && sealed {
                        // The chunks' fields are where they are in the plain store; its header
                        // counts the bytes of the block.
                        let mut kinds = vec![("compressed block", "any"); len];
                        let digits = (usize::BITS - logical.len().leading_zeros()).div_ceil(7);
                        kinds[4..4 + digits as usize].fill(("compressed block", "original size"));
                        kinds
                    } else if *compressed {
                        let fields = compressed_fields(&fs::read(&path).unwrap());
                        let kind = |f| ("compressed block", f);
                        fields.into_iter().map(kind).collect()
                    } else {
                        let fields = fields(logical);
                        records = starts(&fields);
                        plain.clone_from(logical);
                        fields.iter().map(|(f, _)| ("block", *f)).collect()
                    }
                }
                ("meta", "inf") if consumer => vec![("consumer meta.inf", ""); len],
                ("meta", "sum") if consumer => vec![("consumer meta.sum", ""); len],
                ("meta", "key") if consumer => vec![("consumer meta.key", ""); len],
                ("meta", "inf") => vec![("meta.inf", ""); len],
                ("meta", "sum") => vec![("meta.sum", ""); len],
                ("meta", "key") => vec![("meta.key", ""); len],
                (_, "key") => vec![("block key", ""); len],
                ("index", "db") => vec![("index.db", ""); len],
                ("o", "dat") if sealed => vec![("sealed o.dat", ""); len],
                ("o", "dat") => vec![("plain o.dat", ""); len],
                (_, "idx") => idx_fields(&fs::read(&path).unwrap()),
                (_, "fss") => vec![("fss", ""); len],
                _ => panic!("{}: what is this?", path.display()),
            };
            assert_eq!(kinds.len(), len, "{}", path.display());
            out.push(File {
                path,
                kinds,
                records,
                logical: plain,
            });
        }
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    out
}

/// What became of a flipped bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Became {
    /// The stream is as it was, and the report names the bit, and nothing else.
    Mended,
    /// The stream is as it was; there was no need to correct anything.
    Same,
    /// The stream is as it was, by another bit of the same chunk that does the same to its content.
    Equivalent,
    /// The stream is as it was, the report says something else.
    Misreported,
    /// The report tells of a loss.
    Lost,
    /// The messages are as they were, something else is not.
    Around,
    /// The message is not what it was, and the report says that it is not verified.
    Unverified,
    /// The messages are not what they were, and the report does not say so.
    Different,
}

/// How many other records of the block have the subject of the one at `start`.
fn others(file: &File, start: usize) -> usize {
    let subject = |start: usize| {
        let len = u16::from_le_bytes(file.logical[start + 20..start + 22].try_into().unwrap());
        &file.logical[start + 22..start + 22 + usize::from(len)]
    };
    let starts: BTreeSet<usize> = file.records.iter().map(|r| r.1).collect();
    let is_other = |s: &&usize| **s != start && subject(**s) == subject(start);
    starts.iter().filter(is_other).count()
}

fn every_bit(name: &str, without_index: bool) {
    let fx = Fixture::open_kind("tiny", name);
    let every = std::env::var_os("JETSAM_EVERY_BIT").is_some();
    let work = tempfile::tempdir().unwrap();
    let store = work.path().join("store");
    copy_tree(&fx.stores()[0], &store);
    let (keys, threads) = (keys(&fx), Threads::new(1).unwrap());
    let good = read(&source(&store), &keys, &threads);
    assert_eq!(
        good.messages,
        true_messages(&fx),
        "read right to begin with"
    );
    let dir = store.join("jetstream/$G/streams/TINY");
    if without_index {
        fs::remove_file(dir.join("msgs/index.db")).unwrap();
        let without = read(&source(&store), &keys, &threads);
        assert_eq!(without, good, "the blocks alone tell the same");
    }
    let first = mended(&source(&store), &keys, &threads);
    assert!(first.report.corrections.is_empty() && first.report.notes.is_empty());
    assert_eq!(read(&first.source, &keys, &threads), good);

    let files = files(&fx, &store);
    let blocks = contents(&source(&store), &keys);
    // Stores from before 2.10 have no index.db to begin with.
    let listed = dir.join("msgs/index.db").exists();
    let live: BTreeSet<u64> = good.messages.iter().map(|m| m.0).collect();
    let filters: Vec<String> = fx.truth["accounts"]["$G"]["TINY"]["config"]["subjects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s.as_str().unwrap().to_owned())
        .collect();
    let mut table: BTreeMap<(Kind, Became), u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut count = 0;
    for file in &files {
        let bytes = fs::read(&file.path).unwrap();
        let place = file.path.strip_prefix(&store).unwrap().to_str().unwrap();
        for offset in 0..bytes.len() {
            for bit in 0..8u8 {
                count += 1;
                if !every && count % SAMPLE != 0 {
                    continue;
                }
                let mut bad = bytes.clone();
                bad[offset] ^= 1 << bit;
                fs::write(&file.path, &bad).unwrap();
                let damaged = source(&store);
                let m = mended(&damaged, &keys, &threads);
                let after = read(&m.source, &keys, &threads);
                let named = match m.report.corrections.as_slice() {
                    [c] => {
                        let [at] = c.flips.as_slice() else {
                            panic!("{c:?}");
                        };
                        // The end of a compressed block is not compressed: there the place is
                        // one in the decompressed block.
                        let from_end = bytes.len() - offset;
                        let tail = c.decompressed && from_end <= 8 && at.offset > offset as u64;
                        c.file == place
                            && at.bit == bit
                            && (at.offset == offset as u64 && !c.decompressed || tail)
                    }
                    _ => false,
                };
                let one = matches!(m.report.corrections.as_slice(), [c]
                    if c.flips.len() == 1 && c.file == place && !c.decompressed);
                let stream = Stream::open(
                    &m.source,
                    &keys,
                    Want {
                        subjects: true,
                        consumers: false,
                    },
                );
                let depth = Depth::default();
                let state = survey(&stream, &threads, depth, &|_| {}).state;
                let mut held = jetsam::format::seqset::SeqSet::new();
                for m in &after.messages {
                    held.insert(m.0);
                }
                let lost = !lost(&m.report, &stream, &state, &held).is_empty();
                let became = if after == good {
                    match (named, m.report.corrections.is_empty()) {
                        _ if lost => Became::Misreported,
                        (true, _) => Became::Mended,
                        (_, true) => Became::Same,
                        _ if one && file.kinds[offset].0 == "compressed block" => {
                            Became::Equivalent
                        }
                        _ => Became::Misreported,
                    }
                } else if lost {
                    Became::Lost
                } else if after.messages == good.messages {
                    Became::Around
                } else if matches!(m.report.unproven.as_slice(), [(f, _, seq)]
                    if f == place && file.records[offset].0 == *seq)
                {
                    Became::Unverified
                } else {
                    Became::Different
                };
                let kind = file.kinds[offset];
                *table.entry((kind, became)).or_default() += 1;
                // In a run of equal bytes S2 may copy from another place and still give the same block.
                let harmless = kind.0 == "compressed block"
                    && became == Became::Same
                    && contents(&damaged, &keys) == blocks;
                let want = match kind {
                    ("block", "subject length") if !listed => {
                        let (seq, start) = file.records[offset];
                        let flipped = (offset - start - 20, bit);
                        let told = told(&file.logical[start..], flipped, &filters);
                        // What other records have more than once is known, if not always for sure.
                        let known = others(file, start) > 1;
                        match (told, live.contains(&seq)) {
                            (true, _) => Became::Mended,
                            (false, true) if became == Became::Mended => became,
                            (false, true) if known => Became::Unverified,
                            (false, true) if became == Became::Unverified => became,
                            (false, true) => Became::Different,
                            (false, false) if became == Became::Mended => became,
                            (false, false) => Became::Same,
                        }
                    }
                    ("idx", _) => TWINS
                        .iter()
                        .find(|t| (t.0, t.1) == (offset, bit))
                        .map_or(Became::Mended, |t| t.2),
                    _ if harmless => Became::Same,
                    ("compressed block", "chunk" | "any") if became == Became::Equivalent => became,
                    kind => by_kind(kind),
                };
                if became != want {
                    wrong.push(format!(
                        "{place} byte {offset} bit {bit} ({} {}): {became:?}, not {want:?}\n    corrections {:?}\n    notes {:?}",
                        kind.0, kind.1, m.report.corrections, m.report.notes
                    ));
                }
            }
        }
        fs::write(&file.path, &bytes).unwrap();
    }
    for ((kind, became), n) in &table {
        println!(
            "{name}{}: {:20} {:30} {became:?} {n}",
            if without_index {
                " without index.db"
            } else {
                ""
            },
            kind.0,
            kind.1
        );
    }
    assert!(
        wrong.is_empty(),
        "{name}: {} bits\n  {}",
        wrong.len(),
        wrong
            .iter()
            .take(if every { usize::MAX } else { 40 })
            .cloned()
            .collect::<Vec<_>>()
            .join("\n  ")
    );
}

/// Bits of the tiny stores' `1.idx` for which another fits the block as well, by offset and place. The index has no
/// checksum; its numbers are those of the block. Another sequence is deleted then, with a record of the same length;
/// or so many bytes would be right if another were.
const TWINS: [(usize, u8, Became); 4] = [
    (3, 1, Became::Same),
    (34, 0, Became::Different),
    (34, 2, Became::Different),
    (34, 4, Became::Different),
];

/// What becomes of a flipped bit, by the kind of its byte: it is put right, but where nothing on disk can tell.
fn by_kind(kind: Kind) -> Became {
    match kind {
        // It has no checksum: whatever it says then is the consumer's state. Messages are not concerned.
        ("plain o.dat", _) => Became::Around,
        // Nothing in it is needed.
        ("fss", _) => Became::Same,
        // No server reads it, and no release before 2.12.5 wrote it right.
        ("compressed block", "original size") => Became::Same,
        _ => Became::Mended,
    }
}

/// Whether the subject's length tells by itself that this bit of it is flipped, without an `index.db` that lists the
/// subjects. The hash does not: it is over subject and payload as one run of bytes. What remains is that a subject
/// must be one that the stream takes, and that no other length within a flipped bit gives one, too.
fn told(record: &[u8], (byte, bit): (usize, u8), filters: &[String]) -> bool {
    let word = u32::from_le_bytes(record[..4].try_into().unwrap());
    let body = &record[22..(word & 0x7fff_ffff) as usize - 8];
    let length = usize::from(u16::from_le_bytes(record[20..22].try_into().unwrap()));
    let takes = |length: usize| {
        let Some(Ok(subject)) = body.get(..length).map(std::str::from_utf8) else {
            return false;
        };
        let token = |t: &str| {
            let odd = |c: char| c.is_ascii_control() || c == ' ';
            !t.is_empty() && !t.contains(odd) && t != "*" && t != ">"
        };
        let tokens: Vec<&str> = subject.split('.').collect();
        // Filters of the tiny stores have no `>`.
        let matches = |f: &String| {
            let filter: Vec<&str> = f.split('.').collect();
            let pairs = filter.iter().zip(&tokens);
            filter.len() == tokens.len() && pairs.into_iter().all(|(f, t)| *f == "*" || f == t)
        };
        tokens.iter().all(|t| token(t)) && filters.iter().any(matches)
    };
    let flipped = length ^ 1 << (usize::from(bit) + 8 * byte);
    let others = (0..16).filter(|b| takes(flipped ^ 1 << b)).count();
    assert!(takes(length) && others >= 1);
    !takes(flipped) && others == 1
}

macro_rules! every_bit {
    ($($test:ident = $name:literal $(, $without:ident)?;)*) => {
        const TINY: &[&str] = &[$($name),*];
        $(#[test] fn $test() { every_bit($name, false); }
          $(#[test] fn $without() { every_bit($name, true); })?)*
    };
}

every_bit! {
    plain_with_idx_2_2 = "2.2.6-plain";
    plain_with_idx_and_fss_2_9 = "2.9.25-plain";
    plain_2_14 = "2.14.9-plain", plain_2_14_without_index;
    s2_2_15 = "2.15.2-s2", s2_2_15_without_index;
    chacha_2_14 = "2.14.9-chacha", chacha_2_14_without_index;
    aes_2_14 = "2.14.9-aes", aes_2_14_without_index;
    s2_chacha_2_15 = "2.15.2-s2-chacha", s2_chacha_2_15_without_index;
}

#[test]
fn no_tiny_store_is_forgotten() {
    let all: BTreeSet<String> = TINY.iter().map(|s| (*s).to_owned()).collect();
    let there: BTreeSet<String> = common::fixture_names("tiny").into_iter().collect();
    assert_eq!(all, there);
}
