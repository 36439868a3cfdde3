//! S2 frames: what this module needs of them.

/// Bytes that tell what a frame is: kind and length, checksum, and the block's own length.
pub(super) const HEADER: usize = 13;
/// A frame decodes to at most this.
pub(super) const MAX_BLOCK: u32 = 4 << 20;
/// A frame takes at most this in the file.
pub(super) const MAX_CHUNK: usize = (4 << 20) + (1 << 20);

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Compressed(u32),
    Plain(u32),
    Other,
}
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Bytes after the first four.
    pub(super) body: u32,
}
pub(super) enum HeaderFault {
    Cut,
    Bad(&'static str),
}

pub(super) fn header(bytes: &[u8]) -> Result<Option<Header>, HeaderFault> {
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else {
        return if bytes.is_empty() {
            Ok(None)
        } else {
            Err(HeaderFault::Cut)
        };
    };
    let [kind, a, b, c] = *head;
    let body = u32::from_le_bytes([a, b, c, 0]);
    let kind = match kind {
        0 => {
            if body < 5 || body as usize > MAX_CHUNK {
                return Err(HeaderFault::Bad("impossible length"));
            }
            let Some(claim) = rest.get(4..).and_then(claim) else {
                return Err(if bytes.len() < HEADER {
                    HeaderFault::Cut
                } else {
                    HeaderFault::Bad("impossible block length")
                });
            };
            Kind::Compressed(claim)
        }
        1 => {
            let n = body
                .checked_sub(4)
                .filter(|n| *n <= MAX_BLOCK)
                .ok_or(HeaderFault::Bad("impossible length"))?;
            Kind::Plain(n)
        }
        2..0x80 => return Err(HeaderFault::Bad("unknown kind")),
        0xff if body != 6 || !(rest.starts_with(b"S2sTwO") || rest.starts_with(b"sNaPpY")) => {
            return Err(HeaderFault::Bad("not an S2 identifier"));
        }
        _ => Kind::Other,
    };
    Ok(Some(Header { kind, body }))
}

pub(super) fn claim(body: &[u8]) -> Option<u32> {
    let n = crate::format::Cursor::new(body, 0).uvarint().ok()?;
    u32::try_from(n).ok().filter(|n| *n <= MAX_BLOCK)
}

pub(super) fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

pub(super) fn decode(body: &[u8], out: &mut [u8]) -> Result<(), String> {
    match minlz::s2::decode(body) {
        Ok(v) if v.len() == out.len() => {
            out.copy_from_slice(&v);
            Ok(())
        }
        Ok(_) => {
            out.fill(0);
            Err("length".into())
        }
        Err(e) => {
            out.fill(0);
            Err(e.to_string())
        }
    }
}

pub(super) fn decode_prefix(_body: &[u8], _out: &mut [u8]) -> usize {
    0
}
