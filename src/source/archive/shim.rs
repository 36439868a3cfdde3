//! Stand-ins.
pub(super) mod tar {
    pub(in super::super) const BLOCK: usize = 512;
    #[derive(Debug, Clone, Default)]
    pub(in super::super) struct Header {
        pub name: Vec<u8>,
        pub kind: u8,
        pub size: u64,
        pub mtime: i64,
    }
    fn text(b: &[u8]) -> &[u8] {
        b.split(|c| *c == 0).next().unwrap_or_default()
    }
    fn num(b: &[u8]) -> Option<u64> {
        let first = *b.first()?;
        if first & 0x80 != 0 {
            let mut v: u64 = 0;
            for (i, c) in b.iter().enumerate() {
                let c = if i == 0 { c & 0x7f } else { *c };
                v = v.checked_mul(256)?.checked_add(u64::from(c))?;
            }
            return Some(v);
        }
        let s: Vec<u8> = b
            .iter()
            .copied()
            .filter(|c| *c != 0 && *c != b' ')
            .collect();
        if s.is_empty() {
            return Some(0);
        }
        u64::from_str_radix(std::str::from_utf8(&s).ok()?, 8).ok()
    }
    pub(in super::super) fn is_header(b: &[u8]) -> bool {
        let Some(field) = b.get(148..156) else {
            return false;
        };
        let Some(want) = num(field) else { return false };
        let sum: u64 = b
            .iter()
            .take(512)
            .enumerate()
            .map(|(i, c)| {
                if (148..156).contains(&i) {
                    32
                } else {
                    u64::from(*c)
                }
            })
            .sum();
        b.len() >= 512 && want == sum && sum != 256
    }
    pub(in super::super) fn header(b: &[u8]) -> Option<Header> {
        if !is_header(b) {
            return None;
        }
        let mut name = text(b.get(..100)?).to_vec();
        if b.get(257..263)? == b"ustar\0" {
            let prefix = text(b.get(345..500)?);
            if !prefix.is_empty() {
                name = [prefix, b"/", &name].concat();
            }
        }
        Some(Header {
            name,
            kind: *b.get(156)?,
            size: num(b.get(124..136)?)?,
            mtime: i64::try_from(num(b.get(136..148)?)?)
                .ok()?
                .saturating_mul(1_000_000_000),
        })
    }
    #[derive(Debug, Clone, Default)]
    pub(in super::super) struct Pax {
        pub path: Option<Vec<u8>>,
        pub size: Option<u64>,
        pub mtime: Option<i64>,
        pub sparse: bool,
    }
    pub(in super::super) fn pax(mut b: &[u8]) -> Option<Pax> {
        let mut out = Pax::default();
        while !b.is_empty() {
            let sp = b.iter().position(|c| *c == b' ')?;
            let n: usize = std::str::from_utf8(b.get(..sp)?).ok()?.parse().ok()?;
            let rec = b.get(sp + 1..n.checked_sub(1)?)?;
            let eq = rec.iter().position(|c| *c == b'=')?;
            let (k, v) = (rec.get(..eq)?, rec.get(eq + 1..)?);
            match k {
                b"path" => out.path = Some(v.to_vec()),
                b"size" => out.size = Some(std::str::from_utf8(v).ok()?.parse().ok()?),
                b"mtime" => {
                    let s = std::str::from_utf8(v).ok()?;
                    let (sec, frac) = s.split_once('.').unwrap_or((s, ""));
                    let frac: i64 = format!("{frac:0<9}").get(..9)?.parse().ok()?;
                    out.mtime = Some(
                        sec.parse::<i64>()
                            .ok()?
                            .saturating_mul(1_000_000_000)
                            .saturating_add(frac),
                    );
                }
                _ if k.starts_with(b"GNU.sparse") => out.sparse = true,
                _ => {}
            }
            b = b.get(n..)?;
        }
        Some(out)
    }
}
pub(super) mod archive_v2 {
    use crate::format::{Cursor, Fault};
    pub(in super::super) const MAGIC: &[u8; 8] = b"NATSARC1";
    #[derive(Debug, Clone, Copy, Default, PartialEq)]
    pub(in super::super) struct Header {
        pub name: u64,
        pub timestamp: i64,
        pub sequence: u64,
        pub headers: u64,
        pub payload: u64,
    }
    pub(in super::super) fn header(b: &[u8], base: u64) -> Result<(Header, usize), Fault> {
        let mut c = Cursor::new(b, base);
        let h = Header {
            name: c.uvarint()?,
            timestamp: c.varint()?,
            sequence: c.uvarint()?,
            headers: c.uvarint()?,
            payload: c.uvarint()?,
        };
        Ok((h, c.consumed()))
    }
}
