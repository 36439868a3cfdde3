//! S2: chunks, blocks, whole streams, the container of message blocks; the encoder. Input: flags, bytes.
#![no_main]

use jetsam::format::block::{self, Container};
use jetsam::format::record::Prover;
use jetsam::format::s2::{
    self, Encoder, FRAME_SIZE, Frames, MAX_FRAME_DECODED, decode_block, decode_block_into,
    decode_frame, decode_stream,
};
use jetsam_fuzz::Input;
use libfuzzer_sys::fuzz_target;

const CEILING: usize = 256 << 10;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let flags = input.u8();
    let buf = input.rest();

    // One block: into a vector and into a slice alike.
    let mut vec = vec![9; 3];
    let got = decode_block(buf, &mut vec, CEILING);
    assert_eq!(&vec[..3], &[9; 3]);
    assert!(vec.len() <= 3 + CEILING);
    let mut slice = vec![0; CEILING];
    let same = decode_block_into(buf, &mut slice);
    match (got, same) {
        (Ok(a), Ok(b)) => {
            assert_eq!((a, a), (b, vec.len() - 3));
            assert_eq!(vec[3..], slice[..b]);
        }
        (Err(a), Err(b)) => {
            assert!(a.offset() <= buf.len() && a.decoded() <= CEILING);
            assert_eq!(a, b);
        }
        (a, b) => panic!("{a:?} but {b:?}"),
    }

    // The walk over the chunks covers the input in order; each decodes to what it claims at most.
    let base = if flags & 1 != 0 { 1 << 40 } else { 0 };
    let mut frames = if flags & 2 != 0 {
        Frames::resume(buf, base)
    } else {
        Frames::new(buf, base)
    };
    let mut at = base;
    let mut clean = true;
    let mut joined = Vec::new();
    for frame in frames.by_ref() {
        let Ok(frame) = frame else {
            clean = false;
            break;
        };
        assert_eq!(frame.offset, at);
        at += frame.length();
        let mut one = Vec::new();
        if let Ok(claimed) = frame.decoded_len() {
            assert!(claimed <= MAX_FRAME_DECODED);
            if joined.len() + claimed <= CEILING {
                match decode_frame(&frame, &mut one, true) {
                    Ok(n) => assert_eq!((n, n), (claimed, one.len())),
                    Err(_) => clean = false,
                }
                assert!(one.len() <= claimed);
                joined.extend(one);
            } else {
                clean = false;
            }
        } else if frame.kind.is_data() {
            clean = false;
        }
    }
    assert!(frames.consumed() <= buf.len() as u64);

    // The whole stream: bounded, and where nothing is wrong the chunks in a row.
    for keep_going in [false, true] {
        let mut out = Vec::new();
        let report = decode_stream(buf, base, &mut out, CEILING, keep_going);
        assert!(out.len() <= CEILING);
        assert!(report.consumed <= buf.len() as u64);
        assert!(report.faults.len() as u64 <= report.fault_count);
        if flags & 2 == 0 {
            assert_eq!(report.is_clean(), clean, "{report:?}");
            if clean {
                assert_eq!(out, joined);
            }
        }
    }

    // A message block's container.
    let prover = Prover::for_block("A", 1);
    let header = match Container::detect(buf, &prover) {
        Container::S2 { header, .. } => Some(header),
        Container::HeaderlessS2 => Some(0),
        Container::Plain { .. } => None,
    };
    if let Some(header) = header {
        let mut out = Vec::new();
        block::decompress(buf, header, &mut out, CEILING);
        assert!(out.len() <= CEILING + block::TAIL_LEN);
    }

    // What is written reads back.
    let raw: Vec<u8> = if flags & 4 != 0 {
        buf.iter()
            .copied()
            .cycle()
            .take(buf.len() * usize::from(flags >> 3) * 8)
            .collect()
    } else {
        buf.to_vec()
    };
    let mut encoder = Encoder::new();
    let (mut packed, mut back) = (Vec::new(), Vec::new());
    encoder.encode_stream(&raw, &mut packed).unwrap();
    let report = decode_stream(&packed, 0, &mut back, raw.len(), false);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(back, raw);
    if raw.len() <= FRAME_SIZE {
        packed.clear();
        encoder.encode_frame(&raw, &mut packed).unwrap();
        let mut whole = s2::MAGIC.to_vec();
        whole.extend(&packed);
        back.clear();
        assert!(decode_stream(&whole, 0, &mut back, raw.len(), false).is_clean());
        assert_eq!(back, raw);
    }
    packed.clear();
    block::compress(&raw, &mut encoder, &mut packed).unwrap();
    if packed == raw {
        // Too short to be compressed; no block is.
        assert!(raw.len() < block::TAIL_LEN);
    } else if let Container::S2 { header, original } = Container::detect(&packed, &prover) {
        back.clear();
        assert!(block::decompress(&packed, header, &mut back, raw.len()).is_clean());
        assert_eq!(back, raw);
        assert_eq!(original, raw.len() as u64);
    } else {
        panic!("compressed, and does not look it");
    }
});
