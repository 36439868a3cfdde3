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

use super::block;
use super::frame::{MAGIC, masked_crc};

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

/// Encodes chunks; keeps its buffers from one to the next.
///
/// Each block is decoded again and compared before it is handed out. One that does not come back
/// right is written as a raw chunk instead.
#[derive(Default)]
pub struct Encoder {
    backend: minlz::s2::Encoder,
    check: Vec<u8>,
    rejected: u64,
}

impl Encoder {
    /// An encoder; buffers are allocated at first use.
    pub fn new() -> Self {
        Self::default()
    }

    /// Blocks that did not decode to their input and were replaced by raw chunks.
    pub fn rejected(&self) -> u64 {
        self.rejected
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
        let block = self.block(raw);
        let (kind, content) = match &block {
            Some(block) => (0u8, block.as_slice()),
            None => (1, raw),
        };
        let [a, b, c, _] = ((content.len() + 4) as u32).to_le_bytes();
        out.extend_from_slice(&[kind, a, b, c]);
        out.extend_from_slice(&masked_crc(raw).to_le_bytes());
        out.extend_from_slice(content);
        Ok(())
    }

    /// `raw` as a block, if that is short enough and decodes to `raw` again.
    fn block(&mut self, raw: &[u8]) -> Option<Vec<u8>> {
        if raw.len() < MIN_BLOCK {
            return None;
        }
        let block = self.backend.encode(raw);
        let (_, header) = block::claimed_len(&block).unwrap_or_default();
        if block.len().saturating_sub(header) > raw.len() - raw.len() / 32 - 5 {
            return None;
        }
        if self.check.len() < raw.len() {
            self.check.resize(raw.len(), 0);
        }
        let n = block::decode_block_into(&block, &mut self.check);
        if n == Ok(raw.len()) && self.check.get(..raw.len()) == Some(raw) {
            return Some(block);
        }
        self.rejected = self.rejected.saturating_add(1);
        None
    }
}
