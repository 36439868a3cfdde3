//! The container of a message block: what lies around the records in `<n>.blk`.
//!
//! Written in this order: records → compression → encryption. Encryption (see
//! [`crypt`](crate::format::crypt)) covers the whole file, so the bytes here are decrypted already.
//!
//! | container | layout | written by |
//! |---|---|---|
//! | plain | records | every release |
//! | S2 | `cmp`, algorithm `1`, `uvarint` original size, S2 framed stream of all but the last 8 bytes, those 8 bytes raw | 2.10+, streams with `compression: s2`, not the last block |
//! | headerless S2 | S2 framed stream of all but the last 8 bytes **of the encrypted block**, those 8 bytes raw | a fault of 2.10.0–2.12.11 and 2.14.0–2.14.2 when a purge up to a sequence reclaims space |
//!
//! * The original size is not to be trusted: 2.11.7–2.11.17 and 2.12.0–2.12.4 store the compressed one.
//! * A plain block whose first record is 7,368,035 or 24,145,251 bytes long starts with `cmp\0` or
//!   `cmp\1`. Only algorithm `1` is ever written, so `cmp\0` is plain; for `cmp\1` the first record's
//!   hash decides. Servers up to 2.14.6 take both for compressed.
//! * A headerless block starts with the S2 stream identifier; as a record that would be one of
//!   1,694 MB, so there is nothing to confuse it with.

use super::bytes::Cursor;
use super::record::{Prover, Record};
use super::s2;

/// `cmp` and the only algorithm that is ever written.
pub const S2_MAGIC: [u8; 4] = *b"cmp\x01";
/// The raw bytes at the end of a compressed block: the hash of its last record.
pub const TAIL_LEN: usize = 8;

/// What a block's (decrypted) bytes are wrapped in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// Nothing.
    Plain {
        /// It starts like a compressed block, although its first record proves that it is none.
        lookalike: bool,
    },
    /// S2 behind a `cmp` header.
    S2 {
        /// Length of the header.
        header: usize,
        /// The size it claims to have had; not reliable.
        original: u64,
    },
    /// S2 without the header. If the store is encrypted, the *decompressed* bytes are ciphertext.
    HeaderlessS2,
}

impl Container {
    /// Finds out what `raw` is wrapped in.
    pub fn detect(raw: &[u8], prover: &Prover) -> Self {
        if raw.starts_with(&s2::MAGIC) {
            return Self::HeaderlessS2;
        }
        if raw.starts_with(b"cmp") {
            let lookalike = Record::decode(raw, 0).is_ok_and(|r| r.proves(prover));
            if lookalike {
                return Self::Plain { lookalike };
            }
            if raw.starts_with(&S2_MAGIC) {
                let mut cursor = Cursor::new(raw.get(S2_MAGIC.len()..).unwrap_or_default(), 4);
                if let Ok(original) = cursor.uvarint() {
                    return Self::S2 {
                        header: S2_MAGIC.len() + cursor.consumed(),
                        original,
                    };
                }
            }
        }
        Self::Plain { lookalike: false }
    }

    /// True unless plain.
    pub fn is_compressed(self) -> bool {
        !matches!(self, Self::Plain { .. })
    }
}

/// Decompresses the S2 stream of a block whose header is `header` bytes long into `out`, over what it
/// holds, and appends the raw tail. Faults have offsets in `raw`.
///
/// With faults, what could be decoded is in `out` at the right offsets (a broken chunk's missing
/// rest is zeros), as far as the chunks' own claims can be believed.
pub fn decompress(
    raw: &[u8],
    header: usize,
    out: &mut Vec<u8>,
    ceiling: usize,
) -> s2::StreamReport {
    let end = raw
        .len()
        .saturating_sub(TAIL_LEN)
        .max(header.min(raw.len()));
    let body = raw.get(header..end).unwrap_or_default();
    let frames = s2::Frames::new(body, header as u64);
    let report = s2::decode_frames(frames, out, 0, ceiling, true);
    out.extend_from_slice(raw.get(end..).unwrap_or_default());
    report
}

/// Wraps a logical block as a server does when it rolls to the next one. Blocks of less than
/// [`TAIL_LEN`] bytes are left plain.
pub fn compress(
    logical: &[u8],
    encoder: &mut s2::Encoder,
    out: &mut Vec<u8>,
) -> Result<(), s2::EncodeError> {
    let Some(body) = logical.len().checked_sub(TAIL_LEN) else {
        out.extend_from_slice(logical);
        return Ok(());
    };
    out.extend_from_slice(&S2_MAGIC);
    super::bytes::put_uvarint(out, logical.len() as u64);
    encoder.encode_stream(logical.get(..body).unwrap_or_default(), out)?;
    out.extend_from_slice(logical.get(body..).unwrap_or_default());
    Ok(())
}
