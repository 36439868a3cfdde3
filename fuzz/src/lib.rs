//! What several targets need: taking input apart, a place for files, verbs run in memory, and the
//! rule that what `view` calls live is proven.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jetsam::format::crypt::{KeyRing, ServerKey};
use jetsam::format::hash::HashKey;
use jetsam::format::record::{Prover, Record};
use jetsam::pipeline::Threads;
use jetsam::source::{self, Body, Source};
use jetsam::stream::{Scratch, Stream, Want};
use jetsam::verbs::{self, Context, Exit, Failure, Silent};
use serde_json::Value;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The server key of every encrypted fixture.
pub const KEY: &str = "s3cr3t-fixture-key";

/// Input as a row of numbers and byte strings; short input reads as zeros and empty strings.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        head
    }

    pub fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub fn u64(&mut self) -> u64 {
        let mut out = [0; 8];
        let got = self.bytes(8);
        out[..got.len()].copy_from_slice(got);
        u64::from_le_bytes(out)
    }

    /// A string behind its length in one byte.
    pub fn short(&mut self) -> &'a [u8] {
        let n = self.u8();
        self.bytes(n.into())
    }

    /// A string behind its length in two bytes.
    pub fn long(&mut self) -> &'a [u8] {
        let n = self.u16();
        self.bytes(n.into())
    }

    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// A directory for this process, in memory where the system has such a place. `run.sh` names one
/// and removes it.
pub fn scratch_dir() -> PathBuf {
    let base = std::env::var_os("JETSAM_FUZZ_DIR").map_or_else(
        || {
            let shm = PathBuf::from("/dev/shm");
            if shm.is_dir() {
                shm
            } else {
                std::env::temp_dir()
            }
        },
        PathBuf::from,
    );
    let dir = base.join(format!("jetsam-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Gives every record that the lengths lead to the hash it should have, so that changed bytes get
/// past the proof.
pub fn reseal(block: &mut [u8], prover: &Prover) {
    let mut pos = 0;
    while let Ok(r) = Record::decode(&block[pos..], 0) {
        let (sum, len) = (prover.sum(&r), r.raw.len());
        block[pos + len - 8..pos + len].copy_from_slice(&sum);
        pos += len;
    }
}

/// Runs a verb in memory; gives what it wrote.
pub fn run(
    json: bool,
    verb: impl FnOnce(&mut Context<'_>) -> Result<Exit, Failure>,
) -> (Result<Exit, Failure>, Vec<u8>) {
    let mut out = Vec::new();
    let mut ctx = Context {
        threads: Threads::one(),
        keys: keys(),
        selector: Default::default(),
        open: Default::default(),
        live: false,
        json,
        style: Default::default(),
        out: &mut out,
        monitor: &Silent,
        metrics: None,
        stop: Default::default(),
    };
    let exit = verb(&mut ctx);
    (exit, out)
}

pub fn keys() -> KeyRing {
    KeyRing {
        current: Some(ServerKey::new(KEY)),
        previous: None,
    }
}

fn lines(out: &[u8]) -> impl Iterator<Item = Value> {
    out.split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).expect("a line of JSON"))
}

/// Every reading verb over a source; what they write must be JSON, and what `view` shows as live
/// must be proven.
pub fn read_all(path: &Path) {
    let (exit, out) = run(true, |ctx| {
        verbs::check::run(ctx, &[path.to_owned()], &verbs::check::Options::default())
    });
    if exit.is_err() {
        return;
    }
    let report: Value = serde_json::from_slice(&out).expect("check writes JSON");
    assert!(report["findings"].is_array());

    let options = verbs::info::Options {
        deleted: true,
        subjects: true,
    };
    let (exit, out) = run(true, |ctx| verbs::info::run(ctx, path, &options));
    exit.expect("info after check");
    let info: Value = serde_json::from_slice(&out).expect("info writes JSON");
    assert!(info.is_array());

    let options = verbs::view::Options {
        deleted: true,
        ..Default::default()
    };
    let (exit, out) = run(true, |ctx| verbs::view::run(ctx, path, &options));
    exit.expect("view after check");
    let source = source::open(path, &Default::default()).expect("opens again");
    live_is_proven(&source, &out);
}

type Proven = HashSet<(u64, Vec<u8>)>;

/// Sequence and content (subject, headers and payload in one) of everything in the stream's blocks
/// that has the hash it should have, wherever it lies.
fn proven(source: &Source, account: &str, name: &str) -> Option<Proven> {
    let mut all = Proven::new();
    for s in &source.streams {
        if (s.account.as_str(), s.name.as_str()) != (account, name) {
            continue;
        }
        if !matches!(s.body, Body::Blocks { .. }) {
            return None;
        }
        let want = Want {
            subjects: false,
            consumers: false,
        };
        let stream = Stream::open(s, &keys(), want);
        let mut scratch = Scratch::default();
        for file in &stream.blocks {
            let Ok(block) = stream.load(file, &mut scratch) else {
                continue;
            };
            let key = HashKey::block(name, file.n);
            for at in 0..block.bytes.len() {
                all.extend(proven_at(&block.bytes[at..], &key));
            }
        }
    }
    Some(all)
}

/// The record at the start of `buf`, read without the library's own record reader.
fn proven_at(buf: &[u8], key: &HashKey) -> Option<(u64, Vec<u8>)> {
    let word = u32::from_le_bytes(*buf.first_chunk()?);
    let (len, headers) = ((word & 0x7fff_ffff) as usize, word >> 31 == 1);
    if !(30..=buf.len()).contains(&len) {
        return None;
    }
    let (body, hash) = buf[..len].split_at(len - 8);
    let seq = u64::from_le_bytes(body[4..12].try_into().ok()?);
    let mut content = body[22..].to_vec();
    if headers {
        let slen = usize::from(u16::from_le_bytes([body[20], body[21]]));
        if slen + 4 > content.len() {
            return None;
        }
        content.drain(slen..slen + 4);
    }
    (key.sum_parts(&[&body[4..20], &content]) == hash).then_some((seq, content))
}

fn live_is_proven(source: &Source, out: &[u8]) {
    let mut at = (String::new(), String::new());
    let mut known: Option<Proven> = None;
    for line in lines(out) {
        let text = |k: &str| line[k].as_str().unwrap_or_default().to_owned();
        let bytes = |k: &str| STANDARD.decode(text(k)).expect("base64");
        let seq = line["seq"].as_u64().expect("a sequence");
        if line.get("deleted").is_some() {
            continue;
        }
        let here = (text("account"), text("stream"));
        if known.is_none() || at != here {
            known = proven(source, &here.0, &here.1);
            at = here;
        }
        let Some(known) = &known else { continue };
        let mut content = match line.get("subject_base64") {
            Some(_) => bytes("subject_base64"),
            None => text("subject").into_bytes(),
        };
        content.extend(bytes("hdrs"));
        content.extend(bytes("data"));
        assert!(
            known.contains(&(seq, content)),
            "live but not proven: {line}"
        );
    }
}
