//! The formats on disk: bytes and an absolute offset in, a value and the length consumed out.
//!
//! Nothing here knows a path, does I/O or prints. Every size that comes from input has a ceiling,
//! every read is checked, nothing recurses over input. Decoders sit beside their encoders.
//!
//! All fixed-width integers are little-endian. `uvarint` is LEB128 as Go's `binary.Uvarint`,
//! `varint` is zig-zag over it. Times are nanoseconds since the Unix epoch (`i64`) unless said.

pub mod archive_v2;
pub mod backup_json;
pub mod block;
pub mod bytes;
pub mod cli_json;
pub mod config_backup;
pub mod crypt;
pub mod fss;
pub mod hash;
pub mod headers;
pub mod idx;
pub mod index_db;
pub mod mend;
pub mod meta;
pub mod o_dat;
pub mod raft;
pub mod record;
pub mod s2;
pub mod sched_db;
pub mod seqset;
pub mod sources_db;
pub mod tar;
#[cfg(test)]
pub(crate) mod testing;
pub mod thw_db;

pub use bytes::{Cursor, Fault, FaultKind};
