//! Writing S2 streams as the server's writer does: an identifier, then chunks of 1 MiB.
//!
//! | chunk | when |
//! |-------|------|
//! | identifier | before the first data; empty input gives no bytes at all |
//! | compressed (`00`) | the block is at most n - n/32 - 5 bytes, its length field not counted |
//! | raw (`01`) | otherwise, and always below 32 bytes |
//!
//! Holds for all server versions. The bytes of a block are not those the server would write: two
//! S2 encoders (and two versions of one) differ. So streams are compared decoded, never as bytes.

use super::compress::{Table, compress};
use super::frame::{CHUNK_HEADER, MAGIC, masked_crc};

/// Content of a chunk: the block size of the server's writer.
pub const FRAME_SIZE: usize = 1 << 20;

/// Input shorter than this is not worth a block.
const MIN_BLOCK: usize = 32;

/// Why nothing was encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// More than [`FRAME_SIZE`] bytes for one chunk.
    #[error("{len} bytes do not fit in one S2 chunk of {FRAME_SIZE}")]
    TooLarge {
        /// Bytes given.
        len: usize,
    },
}

/// Encodes chunks; keeps its table from one to the next.
#[derive(Debug, Default)]
pub struct Encoder {
    table: Table,
}

impl Encoder {
    /// An encoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `raw` as a whole stream to `out`.
    pub fn encode_stream(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if !raw.is_empty() {
            out.extend_from_slice(&MAGIC);
        }
        for piece in raw.chunks(FRAME_SIZE) {
            self.encode_frame(piece, out)?;
        }
        Ok(())
    }

    /// Appends `raw`, at most [`FRAME_SIZE`] bytes, as one chunk to `out`. Nothing in, nothing out.
    pub fn encode_frame(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if raw.is_empty() {
            return Ok(());
        }
        if raw.len() > FRAME_SIZE {
            return Err(EncodeError::TooLarge { len: raw.len() });
        }
        let start = out.len();
        out.extend_from_slice(&[0; CHUNK_HEADER]);
        out.extend_from_slice(&masked_crc(raw).to_le_bytes());
        let limit = (raw.len() - raw.len() / 32).saturating_sub(5);
        let packed = raw.len() >= MIN_BLOCK && compress(raw, &mut self.table, limit, out);
        if !packed {
            out.extend_from_slice(raw);
        }
        let [a, b, c, _] = ((out.len() - start - CHUNK_HEADER) as u32).to_le_bytes();
        if let Some(header) = out.get_mut(start..).and_then(<[u8]>::first_chunk_mut) {
            *header = [u8::from(!packed), a, b, c];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{FrameKind, Frames, decode_stream};
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    fn encode(raw: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new();
        encoder.encode_stream(raw, &mut out).unwrap();
        out
    }

    fn kinds(stream: &[u8]) -> Vec<(FrameKind, usize)> {
        let frames = Frames::new(stream, 0).map(|f| f.unwrap());
        frames.map(|f| (f.kind, f.decoded_len().unwrap())).collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        let step = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        (0..len).map(step).collect()
    }

    #[test]
    fn streams_are_laid_out_as_the_server_does() {
        use FrameKind::{Compressed, Identifier, Raw};
        assert!(encode(b"").is_empty());
        assert_eq!(kinds(&encode(&[b'a'; 31])), [(Identifier, 0), (Raw, 31)]);
        assert_eq!(
            kinds(&encode(&[b'a'; 32])),
            [(Identifier, 0), (Compressed, 32)]
        );
        assert_eq!(kinds(&encode(&noise(5000))), [(Identifier, 0), (Raw, 5000)]);
        let long = vec![b'a'; 2 * FRAME_SIZE + 40];
        let want = [
            (Identifier, 0),
            (Compressed, FRAME_SIZE),
            (Compressed, FRAME_SIZE),
            (Compressed, 40),
        ];
        assert_eq!(kinds(&encode(&long)), want);
    }

    #[test]
    fn a_block_that_saves_too_little_is_not_used() {
        // Ever more of one repeated run between noise: on both sides of n - n/32 - 5.
        let (mut raw_seen, mut packed_seen) = (0, 0);
        for run in 0..200 {
            let raw = [noise(2000), vec![0; run]].concat();
            let stream = encode(&raw);
            let frame = Frames::new(&stream, 0).nth(1).unwrap().unwrap();
            let mut block = Vec::new();
            assert!(compress(
                &raw,
                &mut Table::default(),
                usize::MAX,
                &mut block
            ));
            if frame.kind == FrameKind::Raw {
                raw_seen += 1;
                assert!(block.len() - 2 > raw.len() - raw.len() / 32 - 5);
            } else {
                packed_seen += 1;
                assert!(block.len() - 2 <= raw.len() - raw.len() / 32 - 5);
            }
        }
        assert!(raw_seen > 50 && packed_seen > 50);
    }

    #[test]
    fn one_chunk_has_a_limit() {
        let long = vec![0; FRAME_SIZE + 1];
        let (mut encoder, mut out) = (Encoder::new(), Vec::new());
        let refused = encoder.encode_frame(&long, &mut out);
        assert_eq!(
            refused,
            Err(EncodeError::TooLarge {
                len: FRAME_SIZE + 1
            })
        );
        assert_eq!(encoder.encode_frame(b"", &mut out), Ok(()));
        assert!(out.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn round_trips_here_and_elsewhere(
            pieces in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 1..60), 1..3000usize), 1..8),
        ) {
            let raw: Vec<u8> = pieces.iter().flat_map(|(v, n)| v.repeat(*n)).collect();
            let stream = encode(&raw);
            let mut out = Vec::new();
            prop_assert!(decode_stream(&stream, 0, &mut out, raw.len(), false).is_clean());
            prop_assert!(out == raw);
            let mut theirs = Vec::new();
            minlz::s2::Reader::new(stream.as_slice()).read_to_end(&mut theirs).unwrap();
            prop_assert!(theirs == raw);
        }
    }
}
