//! What this machine could do at most, beside what `check` does: each part of its work alone, on all cores, over all blocks of
//! a store — reading from the page cache, deciphering, decoding, hashing — and the whole.
//!
//! `cargo bench --bench limits -- STORE...`, with `JETSAM_KEY` for encrypted stores; medians of five rounds. A store's decoded
//! blocks have to fit into the memory. Of a store that is encrypted and compressed, decoding is left out.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use jetsam::format::block::{self, Container};
use jetsam::format::crypt::{KeyRing, ServerKey};
use jetsam::format::record::{OnDamage, scan};
use jetsam::pipeline::{Threads, ordered};
use jetsam::source::{self, OpenOptions};
use jetsam::stream::{BlockFile, Scratch, Stream, Want};

const ROUNDS: usize = 5;
const CEILING: u64 = 1 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo bench` adds `--bench`; without stores there is nothing to measure.
    let stores: Vec<PathBuf> = env::args_os()
        .skip(1)
        .filter(|a| !a.to_string_lossy().starts_with('-'))
        .map(PathBuf::from)
        .collect();
    println!(
        "| store | in blocks | read | decipher | decode | hash | all four | `check` | parts ÷ check |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for store in &stores {
        measure(store)?;
    }
    Ok(())
}

/// Seconds of `work` for each of `count` blocks on all threads, each with a buffer of its own.
fn timed(threads: &Threads, count: usize, work: impl Fn(usize, &mut Vec<u8>) + Sync) -> f64 {
    let begun = Instant::now();
    let done = |_, ()| ControlFlow::Continue(());
    ordered(threads, count, Vec::new, work, done);
    begun.elapsed().as_secs_f64()
}

fn measure(store: &Path) -> Result<(), Box<dyn Error>> {
    let current = env::var("JETSAM_KEY").ok().map(ServerKey::new);
    let keys = KeyRing {
        current,
        previous: None,
    };
    let threads = Threads::new(0)?;
    let source = source::open(store, &OpenOptions::default())?;
    let want = Want {
        subjects: false,
        consumers: false,
    };
    let streams = source.streams.iter().map(|s| Stream::open(s, &keys, want));
    let streams: Vec<Stream> = streams.collect();
    let blocks: Vec<(&Stream, &BlockFile)> = streams
        .iter()
        .flat_map(|s| s.blocks.iter().map(move |b| (s, b)))
        .collect();
    let read = |i: usize, into: &mut Vec<u8>| {
        if let Some((stream, file)) = blocks.get(i)
            && let Some((tree, _)) = stream.tree()
        {
            let path = stream.msgs_dir().join(format!("{}.blk", file.n));
            let _ = tree.read_into(&path, into, CEILING);
        }
    };
    let (mut raw, mut logical) = (Vec::new(), Vec::new());
    let mut scratch = Scratch::default();
    for (i, (stream, file)) in blocks.iter().enumerate() {
        let loaded = stream
            .load(file, &mut scratch)
            .map_err(|f| f.detail.clone())?;
        // Of a plain store the decoded blocks are the files.
        let is_plain = !loaded.encrypted && !loaded.container.is_compressed();
        logical.push(loaded.bytes.to_vec());
        let mut bytes = Vec::new();
        if !is_plain {
            read(i, &mut bytes);
        }
        raw.push(bytes);
    }
    let bytes: usize = logical.iter().map(Vec::len).sum();
    let cipher = streams.iter().find_map(|s| s.cipher);
    let key = cipher.map(|cipher| {
        let context = jetsam::format::crypt::Context::Stream {
            account: b"$G",
            stream: b"LIMITS",
        };
        jetsam::format::crypt::make_key_file(&ServerKey::new(*b"key"), cipher, &context).1
    });
    let prover = |i: usize| blocks.get(i).map(|(s, f)| s.prover(f.n));

    let mut times: [Vec<f64>; 5] = Default::default();
    for _ in 0..ROUNDS {
        let n = blocks.len();
        let parts = [
            timed(&threads, n, read),
            timed(&threads, n, |i, buf| {
                if let (Some(key), Some(raw)) = (&key, raw.get(i)) {
                    buf.resize(raw.len(), 0);
                    key.apply_keystream(0, black_box(buf));
                }
            }),
            timed(&threads, n, |i, buf| {
                if let (None, Some(raw), Some(prover)) = (cipher, raw.get(i), prover(i))
                    && let Container::S2 { header, .. } = Container::detect(raw, &prover)
                {
                    block::decompress(black_box(raw), header, buf, CEILING as usize);
                }
            }),
            timed(&threads, n, |i, _| {
                if let (Some(bytes), Some(prover)) = (logical.get(i), prover(i)) {
                    let mut records = 0u64;
                    scan(black_box(bytes), 0, &prover, OnDamage::Resync, |_| {
                        records += 1
                    });
                    black_box(records);
                }
            }),
            check(store)?,
        ];
        for (all, one) in times.iter_mut().zip(parts) {
            all.push(one);
        }
    }
    let [read, decipher, decode, hash, check] = times.map(median);
    let parts = read + decipher + decode + hash;
    let name = store.file_name().unwrap_or_default().to_string_lossy();
    println!(
        "| {name} | {:.2} GB | {read:.3} s | {decipher:.3} s | {decode:.3} s | {hash:.3} s | {parts:.3} s | {check:.3} s | {:.2} |",
        bytes as f64 / 1e9,
        parts / check
    );
    Ok(())
}

/// The whole, as a process of its own.
fn check(store: &Path) -> Result<f64, Box<dyn Error>> {
    let begun = Instant::now();
    let status = Command::new(env!("CARGO_BIN_EXE_jetsam"))
        .args(["-q", "--no-progress", "check"])
        .arg(store)
        .stdout(Stdio::null())
        .status()?;
    let seconds = begun.elapsed().as_secs_f64();
    match status.success() {
        true => Ok(seconds),
        false => Err(format!("{}: the check failed: {status}", store.display()).into()),
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}
