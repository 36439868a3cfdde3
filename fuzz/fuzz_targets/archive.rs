//! A whole archive through the source layer and every reading verb. Input: flags, `backup.json`
//! (none if empty), archive.
//!
//! | flag | meaning |
//! |---|---|
//! | 0–1 | how the bytes are wrapped: 0 as they are, 1 in S2 frames, 2 in gzip, 3 not at all |
//! | 2 | the checksums of tar headers are put right |
//!
//! With 1 to 3, bytes that are an S2 stream are unwrapped first, wrong checksums or not: so changed
//! bytes get past the checksums of the frames.
#![no_main]

use jetsam::format::s2::{self, Encoder};
use jetsam::verbs::{diff, ls};
use jetsam_fuzz::{Input, read_all, run, scratch_dir};
use libfuzzer_sys::fuzz_target;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::LazyLock;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = scratch_dir().join("ORDERS");
    std::fs::create_dir_all(&dir).unwrap();
    dir
});

/// No archive in the corpus is larger.
const CEILING: usize = 1 << 20;

fn unwrap(bytes: &[u8]) -> Vec<u8> {
    if !bytes.starts_with(&s2::MAGIC) {
        return bytes.to_vec();
    }
    let mut out = Vec::new();
    for frame in s2::Frames::new(bytes, 0).map_while(Result::ok) {
        if frame.decoded_len().is_ok_and(|n| n + out.len() <= CEILING) {
            let _ = s2::decode_frame(&frame, &mut out, false);
        }
    }
    out
}

fn fix_tar(bytes: &mut [u8]) {
    for header in bytes.chunks_exact_mut(512) {
        if &header[257..262] == b"ustar" {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let flags = input.u8();
    let backup = input.long();
    let bytes = input.rest();
    let mut content = if flags & 3 == 0 {
        bytes.to_vec()
    } else {
        unwrap(bytes)
    };
    if flags & 4 != 0 {
        fix_tar(&mut content);
    }
    let file = match flags & 3 {
        1 => {
            let mut out = Vec::new();
            Encoder::new().encode_stream(&content, &mut out).unwrap();
            out
        }
        2 => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(&content).unwrap();
            out.finish().unwrap()
        }
        _ => content,
    };
    let path = DIR.join("stream.tar.s2");
    std::fs::write(&path, &file).unwrap();
    let json = DIR.join("backup.json");
    let source = if backup.is_empty() {
        let _ = std::fs::remove_file(&json);
        path
    } else {
        std::fs::write(&json, backup).unwrap();
        DIR.clone()
    };
    read_all(&source);
    let options = ls::Options {
        consumers: true,
        raft: true,
    };
    let _ = run(true, |ctx| ls::run(ctx, &source, &options));
    if flags & 8 != 0 {
        let _ = run(true, |ctx| {
            diff::run(ctx, &source, &source, &diff::Options {})
        });
    }
});
