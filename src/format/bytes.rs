//! Checked reading and writing of the primitive encodings that every format here shares.

use std::fmt;

/// Why bytes could not be decoded, and the absolute offset of the byte where it shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at offset {offset}")]
pub struct Fault {
    /// Offset in the file (or decoded stream) the bytes came from.
    pub offset: u64,
    /// What is wrong there.
    pub kind: FaultKind,
}

/// What is wrong at a [`Fault`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// `need` bytes were asked for, `have` are left.
    Truncated {
        /// Bytes asked for.
        need: u64,
        /// Bytes left.
        have: u64,
    },
    /// The first byte(s) are not those of the format.
    Magic {
        /// The format that was expected, e.g. `index.db`.
        format: &'static str,
    },
    /// The format is right, its version unknown.
    Version {
        /// The format.
        format: &'static str,
        /// The version found.
        found: u64,
    },
    /// A varint that runs over ten bytes or past 64 bits.
    Varint,
    /// A count or length beyond its ceiling.
    TooLarge {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it may be at most.
        ceiling: u64,
    },
    /// A checksum does not match.
    Checksum {
        /// What it covers.
        what: &'static str,
    },
    /// A sealed file does not open with the key (authentication failed).
    Sealed,
    /// A field has a value that the format does not allow.
    Invalid(&'static str),
    /// Bytes after the end of the value.
    Trailing {
        /// How many.
        bytes: u64,
    },
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { need, have } => {
                write!(f, "truncated: {need} bytes needed, {have} left")
            }
            Self::Magic { format } => write!(f, "not a {format}: wrong first bytes"),
            Self::Version { format, found } => write!(f, "unknown {format} version {found}"),
            Self::Varint => write!(f, "malformed variable-length integer"),
            Self::TooLarge {
                what,
                value,
                ceiling,
            } => {
                write!(f, "{what} {value} is over the ceiling of {ceiling}")
            }
            Self::Checksum { what } => write!(f, "{what} checksum does not match"),
            Self::Sealed => write!(f, "authentication failed: wrong key or damaged bytes"),
            Self::Invalid(what) => write!(f, "invalid {what}"),
            Self::Trailing { bytes } => write!(f, "{bytes} bytes after the end"),
        }
    }
}

impl Fault {
    /// A fault of `kind` at `offset`.
    pub fn new(offset: u64, kind: FaultKind) -> Self {
        Self { offset, kind }
    }
}

/// A checked reader over a slice that knows the absolute offset of its first byte.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    buf: &'a [u8],
    pos: usize,
    base: u64,
}

impl<'a> Cursor<'a> {
    /// Reads `buf`, whose first byte lies at `base`.
    pub fn new(buf: &'a [u8], base: u64) -> Self {
        Self { buf, pos: 0, base }
    }

    /// Absolute offset of the next byte.
    pub fn offset(&self) -> u64 {
        self.base.saturating_add(self.pos as u64)
    }

    /// Bytes consumed so far.
    pub fn consumed(&self) -> usize {
        self.pos
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.buf.len().saturating_sub(self.pos)
    }

    /// True when nothing is left.
    pub fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    /// The bytes left, without consuming them.
    pub fn rest(&self) -> &'a [u8] {
        self.buf.get(self.pos..).unwrap_or_default()
    }

    /// A fault of `kind` at the current offset.
    pub fn fault(&self, kind: FaultKind) -> Fault {
        Fault::new(self.offset(), kind)
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        match self.buf.get(self.pos..).and_then(|rest| rest.get(..n)) {
            Some(bytes) => {
                self.pos = self.pos.saturating_add(n);
                Ok(bytes)
            }
            None => Err(self.fault(FaultKind::Truncated {
                need: n as u64,
                have: self.remaining() as u64,
            })),
        }
    }

    /// The next `n` bytes, where `n` is itself input: it must not be over `ceiling`.
    pub fn take_bounded(
        &mut self,
        what: &'static str,
        n: u64,
        ceiling: u64,
    ) -> Result<&'a [u8], Fault> {
        if n > ceiling {
            return Err(self.fault(FaultKind::TooLarge {
                what,
                value: n,
                ceiling,
            }));
        }
        let n = usize::try_from(n).map_err(|_| {
            self.fault(FaultKind::TooLarge {
                what,
                value: n,
                ceiling,
            })
        })?;
        self.take(n)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.take(N)?;
        let mut out = [0; N];
        out.copy_from_slice(bytes);
        Ok(out)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Fault> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> Result<u16, Fault> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little-endian, signed.
    pub fn i64(&mut self) -> Result<i64, Fault> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// An unsigned LEB128 integer of at most ten bytes (Go's `binary.Uvarint`).
    pub fn uvarint(&mut self) -> Result<u64, Fault> {
        let start = self.pos;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.buf.get(self.pos) else {
                let have = self.remaining() as u64;
                self.pos = start;
                return Err(self.fault(FaultKind::Truncated {
                    need: have + 1,
                    have,
                }));
            };
            self.pos += 1;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        self.pos = start;
        Err(self.fault(FaultKind::Varint))
    }

    /// A zig-zag LEB128 integer (Go's `binary.Varint`).
    pub fn varint(&mut self) -> Result<i64, Fault> {
        let u = self.uvarint()?;
        Ok(((u >> 1) as i64) ^ -((u & 1) as i64))
    }

    /// A count of items that take at least `min_size` bytes each: it can not be over what the
    /// remaining bytes could hold, so nothing is allocated on the word of a damaged count.
    pub fn count(&mut self, what: &'static str, min_size: u64) -> Result<u64, Fault> {
        let at = self.clone();
        let n = self.uvarint()?;
        let ceiling = (self.remaining() as u64) / min_size.max(1);
        if n > ceiling {
            return Err(at.fault(FaultKind::TooLarge {
                what,
                value: n,
                ceiling,
            }));
        }
        Ok(n)
    }
}

/// Appends an unsigned LEB128 integer.
pub fn put_uvarint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a zig-zag LEB128 integer.
pub fn put_varint(out: &mut Vec<u8>, value: i64) {
    put_uvarint(out, ((value << 1) ^ (value >> 63)) as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_at_the_edges() {
        for v in [
            0,
            1,
            127,
            128,
            300,
            u64::from(u32::MAX),
            u64::MAX - 1,
            u64::MAX,
        ] {
            let mut out = Vec::new();
            put_uvarint(&mut out, v);
            let mut c = Cursor::new(&out, 0);
            assert_eq!(c.uvarint().unwrap(), v);
            assert!(c.is_empty());
        }
        for v in [0, 1, -1, 63, -64, 64, i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            put_varint(&mut out, v);
            assert_eq!(Cursor::new(&out, 0).varint().unwrap(), v);
        }
    }

    #[test]
    fn overlong_varint_is_refused_where_it_starts() {
        let mut c = Cursor::new(
            &[
                0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
            ],
            100,
        );
        assert_eq!(c.u8().unwrap(), 0);
        assert_eq!(c.uvarint().unwrap_err(), Fault::new(101, FaultKind::Varint));
    }

    #[test]
    fn truncation_names_the_offset() {
        let mut c = Cursor::new(&[1, 2, 3], 40);
        c.u16().unwrap();
        assert_eq!(
            c.u32().unwrap_err(),
            Fault::new(42, FaultKind::Truncated { need: 4, have: 1 })
        );
    }

    #[test]
    fn a_count_is_bounded_by_what_is_left() {
        let mut c = Cursor::new(&[200, 1, 0, 0], 0);
        assert!(matches!(
            c.count("entries", 1).unwrap_err().kind,
            FaultKind::TooLarge {
                value: 200,
                ceiling: 2,
                ..
            }
        ));
    }
}
