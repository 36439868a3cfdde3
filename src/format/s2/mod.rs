//! S2, the compression of blocks (server 2.10 and later), backups and some Raft entries.
//!
//! | level | module | content |
//! |-------|--------|---------|
//! | stream | [`frame`] | identifier and checksummed chunks: blocks on disk, backups, Raft entries since 2.10.25 |
//! | block  | [`block`] | the elements of one chunk; Raft entries and meta snapshots hold bare blocks |
//! | writer | [`encode`] | streams as the server's writer makes them |
//!
//! A stream starts with `ff 06 00 00 S2sTwO`. Snappy is not S2, but S2 reads Snappy.
//!
//! Decoding is safe code of our own: it does not recurse over chunks, gives what it decoded before
//! a fault and where the fault is, and takes and refuses exactly what the server's decoder does.

pub mod block;
pub mod compress;
pub mod encode;
pub mod frame;

pub use block::{BlockFault, decode_block, decode_block_into};
pub use encode::{EncodeError, Encoder, FRAME_SIZE};
pub use frame::{
    CHUNK_HEADER, Frame, FrameFault, FrameFaultKind, FrameKind, Frames, MAGIC, MAX_FRAME_BODY,
    MAX_FRAME_DECODED, StreamReport, decode_frame, decode_frames, decode_stream, masked_crc,
    parse_chunk_header,
};
