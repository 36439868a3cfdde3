//! The headers of tar members and of NATSARC1 entries, as far as reading needs them.

/// Tar: blocks of 512 bytes; each member is a header block and its data, padded to whole blocks.
///
/// | off | bytes | field |
/// |-----|-------|-------|
/// | 0   | 100 | name, ended by NUL if shorter |
/// | 124 | 12  | size: octal, or big-endian binary with the top bit set |
/// | 136 | 12  | time of change, likewise, seconds |
/// | 148 | 8   | octal sum of the header's bytes, these eight taken as spaces |
/// | 156 | 1   | kind |
/// | 257 | 6   | `ustar` and NUL (POSIX) or space (GNU) |
/// | 345 | 155 | POSIX: what precedes the name and a slash |
pub(super) mod tar {
    use crate::format::Cursor;

    pub(in super::super) const BLOCK: usize = 512;
    const SECOND: i64 = 1_000_000_000;

    /// A member's own header.
    #[derive(Debug, Clone, Default)]
    pub(in super::super) struct Header {
        pub(in super::super) name: Vec<u8>,
        pub(in super::super) kind: u8,
        pub(in super::super) size: u64,
        /// ns since the epoch.
        pub(in super::super) modified: i64,
    }

    /// What an extended header says.
    #[derive(Debug, Clone, Default)]
    pub(in super::super) struct Pax {
        pub(in super::super) path: Option<Vec<u8>>,
        pub(in super::super) size: Option<u64>,
        pub(in super::super) modified: Option<i64>,
        pub(in super::super) sparse: bool,
    }

    fn text(field: &[u8]) -> &[u8] {
        field.split(|c| *c == 0).next().unwrap_or_default()
    }

    fn number(field: &[u8]) -> Option<u64> {
        let (first, rest) = field.split_first()?;
        if first & 0x80 != 0 {
            // Negative ones have the next bit set too.
            let first = u64::from(first & 0x7f);
            return rest.iter().try_fold(first, |sum, b| {
                sum.checked_mul(256)?.checked_add(u64::from(*b))
            });
        }
        let digits = text(field).trim_ascii();
        let digits = std::str::from_utf8(digits)
            .ok()
            .filter(|d| !d.starts_with('+'))?;
        if digits.is_empty() {
            return Some(0);
        }
        u64::from_str_radix(digits, 8).ok()
    }

    /// Whether this is a header: its checksum is right (some old writers sum signed bytes).
    pub(in super::super) fn is_header(block: &[u8]) -> bool {
        let (Some(block), Some(field)) = (block.get(..BLOCK), block.get(148..156)) else {
            return false;
        };
        let bytes = block.iter().enumerate();
        let bytes = bytes.map(|(i, b)| if (148..156).contains(&i) { b' ' } else { *b });
        let (unsigned, signed) = bytes.fold((0i64, 0i64), |(unsigned, signed), b| {
            (unsigned + i64::from(b), signed + i64::from(b as i8))
        });
        let blank = unsigned == 8 * i64::from(b' ');
        number(field)
            .and_then(|n| i64::try_from(n).ok())
            .is_some_and(|stored| !blank && (stored == unsigned || stored == signed))
    }

    /// Reads a header block.
    pub(in super::super) fn header(block: &[u8]) -> Option<Header> {
        if !is_header(block) {
            return None;
        }
        let mut name = text(block.get(..100)?).to_vec();
        if block.get(257..263)? == b"ustar\0" {
            let before = text(block.get(345..500)?);
            if !before.is_empty() {
                name = [before, b"/", &name].concat();
            }
        }
        let seconds = number(block.get(136..148)?)
            .and_then(|s| i64::try_from(s).ok())
            .unwrap_or(0);
        Some(Header {
            name,
            kind: *block.get(156)?,
            size: number(block.get(124..136)?)?,
            modified: seconds.saturating_mul(SECOND),
        })
    }

    /// Seconds with a fraction, as ns.
    fn time(value: &[u8]) -> Option<i64> {
        let text = std::str::from_utf8(value).ok()?;
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let fraction: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
        let seconds: i64 = seconds.parse().ok()?;
        Some(seconds.saturating_mul(SECOND).saturating_add(fraction))
    }

    /// Reads the body of an extended header: records of `LENGTH KEY=VALUE\n`, where the length
    /// counts the whole record.
    pub(in super::super) fn pax(body: &[u8]) -> Option<Pax> {
        let mut pax = Pax::default();
        let mut c = Cursor::new(body, 0);
        while !c.is_empty() {
            let digits = c.rest().iter().position(|b| *b == b' ')?;
            let len: usize = std::str::from_utf8(c.rest().get(..digits)?)
                .ok()?
                .parse()
                .ok()?;
            let (last, record) = c.take(len).ok()?.get(digits + 1..)?.split_last()?;
            let equals = record
                .iter()
                .position(|b| *b == b'=')
                .filter(|_| *last == b'\n')?;
            let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
            match key {
                b"path" => pax.path = Some(value.to_vec()),
                b"size" => pax.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                b"mtime" => pax.modified = Some(time(value)?),
                _ => pax.sparse |= key.starts_with(b"GNU.sparse."),
            }
        }
        Some(pax)
    }
}

/// NATSARC1: 8 bytes, then entries, each a header, a name, headers and payload.
///
/// | field | encoding |
/// |-------|----------|
/// | length of the name | uvarint |
/// | time, ns since the epoch | varint |
/// | stream sequence; 0 for what is not a message | uvarint |
/// | length of the headers | uvarint |
/// | length of the payload | uvarint |
///
/// A header of zeros ends the archive. `state.json` is the first entry, `consumers/NAME` follow,
/// then the messages, whose name is the subject.
pub(super) mod archive_v2 {
    use crate::format::{Cursor, Fault};

    pub(in super::super) const MAGIC: &[u8; 8] = b"NATSARC1";

    /// An entry's header.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub(in super::super) struct Header {
        pub(in super::super) name: u64,
        pub(in super::super) timestamp: i64,
        pub(in super::super) sequence: u64,
        pub(in super::super) headers: u64,
        pub(in super::super) payload: u64,
    }

    /// Reads a header; also gives the bytes it took.
    pub(in super::super) fn header(buf: &[u8], base: u64) -> Result<(Header, usize), Fault> {
        let mut c = Cursor::new(buf, base);
        let header = Header {
            name: c.uvarint()?,
            timestamp: c.varint()?,
            sequence: c.uvarint()?,
            headers: c.uvarint()?,
            payload: c.uvarint()?,
        };
        Ok((header, c.consumed()))
    }
}

#[cfg(test)]
mod tests {
    use super::tar;

    #[test]
    fn extended_headers_are_read_and_odd_ones_refused() {
        let pax = tar::pax(b"30 mtime=1763700000.123456789\n11 path=ab\n15 size=123456\n").unwrap();
        assert_eq!(pax.modified, Some(1_763_700_000_123_456_789));
        assert_eq!(
            (pax.path.as_deref(), pax.size),
            (Some(b"ab".as_slice()), Some(123_456))
        );
        for bad in [
            b"99 path=ab\n".as_slice(),
            b"0 path=ab\n",
            b"3 p\n",
            b"path=ab\n",
            b"11 path=abX",
            b"18446744073709551615 path=ab\n",
            b"9 size=x\n",
        ] {
            assert!(tar::pax(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_over_eight_gigabytes_are_binary() {
        let mut header = ::tar::Header::new_gnu();
        header.set_path("msgs/1.blk").unwrap();
        header.set_size(1 << 40);
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        let got = tar::header(header.as_bytes()).unwrap();
        assert_eq!(
            (got.size, got.modified),
            (1 << 40, 1_700_000_000_000_000_000)
        );
        assert_eq!(got.name, b"msgs/1.blk");
        let mut changed = *header.as_bytes();
        changed[3] ^= 1;
        assert!(tar::header(&changed).is_none());
        assert!(!tar::is_header(&[0; 512]) && !tar::is_header(b"short"));
    }
}
