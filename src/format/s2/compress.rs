//! Making S2 blocks: greedy matching over a small table of positions, tuned for speed.
//!
//! The output is within a percent or so of the server's own in size. Whatever the table says, a match is only
//! taken after its bytes were compared, so a wrong entry can cost size, never content.

/// Bits of the table's index.
const TABLE_BITS: u32 = 14;
/// Entries of the table.
const TABLE: usize = 1 << TABLE_BITS;
/// Below this many bytes from the end nothing is matched: loads of 8 bytes need room.
const MARGIN: usize = 16;
/// Longest input: positions are 32 bits, and the server's writer uses 1 MiB.
pub const MAX_INPUT: usize = 4 << 20;

/// The positions of what was seen, by hash. Kept from one block to the next to save its allocation.
#[derive(Debug)]
pub struct Table(Box<[u32; TABLE]>);

impl Default for Table {
    fn default() -> Self {
        Self(vec![0; TABLE].try_into().unwrap_or_else(|_| Box::new([0; TABLE])))
    }
}

/// Upper bound of what [`compress`] appends for `n` bytes.
fn bound(n: usize) -> usize {
    n + n / 6 + 64
}

fn load32(src: &[u8], at: usize) -> u32 {
    src.get(at..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |b| u32::from_le_bytes(*b))
}

fn load64(src: &[u8], at: usize) -> u64 {
    src.get(at..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |b| u64::from_le_bytes(*b))
}

/// A slot for the lowest six bytes of `v`.
fn slot(v: u64) -> usize {
    const PRIME: u64 = 227_718_039_650_203;
    (((v << 16).wrapping_mul(PRIME)) >> (64 - TABLE_BITS)) as usize
}

/// How many bytes from `a` and from `b` on are the same; `a < b`.
fn common(src: &[u8], mut a: usize, b: usize) -> usize {
    let mut at = b;
    while at + 8 <= src.len() {
        let differ = load64(src, a) ^ load64(src, at);
        if differ != 0 {
            return at - b + (differ.trailing_zeros() / 8) as usize;
        }
        a += 8;
        at += 8;
    }
    while at < src.len() && src.get(a) == src.get(at) {
        a += 1;
        at += 1;
    }
    at - b
}

/// Writes elements to a buffer that is long enough ([`bound`]).
struct Out<'a> {
    dst: &'a mut [u8],
    at: usize,
}

impl Out<'_> {
    /// Writes 8 bytes, of which the first `len` count.
    fn put(&mut self, bytes: u64, len: usize) {
        if let Some(to) = self.dst.get_mut(self.at..).and_then(<[u8]>::first_chunk_mut) {
            *to = bytes.to_le_bytes();
        }
        self.at += len;
    }

    fn literal(&mut self, src: &[u8], from: usize, to: usize) {
        let n = to - from;
        if n == 0 {
            return;
        }
        let m = (n - 1) as u64;
        match m {
            0..60 => self.put(m << 2, 1),
            60..0x100 => self.put(60 << 2 | m << 8, 2),
            0x100..0x1_0000 => self.put(61 << 2 | m << 8, 3),
            _ => self.put(62 << 2 | m << 8, 4),
        }
        // Most literals are short: 16 bytes at once, where there is room, are faster than a few.
        if n <= 16
            && let Some(bytes) = src.get(from..).and_then(<[u8]>::first_chunk::<16>)
            && let Some(to) = self.dst.get_mut(self.at..).and_then(<[u8]>::first_chunk_mut)
        {
            *to = *bytes;
        } else if let (Some(to), Some(bytes)) =
            (self.dst.get_mut(self.at..self.at + n), src.get(from..to))
        {
            to.copy_from_slice(bytes);
        }
        self.at += n;
    }

    /// The offset of the copy before, again; `len` is at least 4.
    fn repeat(&mut self, len: usize) {
        let mut len = len as u64;
        while len > 0 {
            let n = len.min((1 << 24) + 65_539);
            match n {
                0..=8 => self.put((n - 4) << 2 | 1, 2),
                9..=263 => self.put(5 << 2 | 1 | (n - 8) << 16, 3),
                264..=65_795 => self.put(6 << 2 | 1 | (n - 260) << 16, 4),
                _ => self.put(7 << 2 | 1 | (n - 65_540) << 16, 5),
            }
            len -= n;
        }
    }

    /// A copy; `len` is at least 4.
    fn copy(&mut self, offset: usize, len: usize) {
        let (o, n) = (offset as u64, len as u64);
        if offset >= 65_536 {
            // A repeat is 4 bytes at least.
            let first = if n <= 64 { n } else { 60 };
            self.put((first - 1) << 2 | 3 | o << 8, 5);
            if n > first {
                self.repeat((n - first) as usize);
            }
        } else if n > 64 {
            self.put(59 << 2 | 2 | o << 8, 3);
            self.repeat(len - 60);
        } else if n < 12 && offset < 2048 {
            self.put((o >> 8) << 5 | (n - 4) << 2 | 1 | (o & 0xff) << 8, 2);
        } else {
            self.put((n - 1) << 2 | 2 | o << 8, 3);
        }
    }
}

/// Appends `src` as a block to `out`, unless it would be longer than `limit` bytes without its length
/// field. Says whether it did.
pub fn compress(src: &[u8], table: &mut Table, limit: usize, out: &mut Vec<u8>) -> bool {
    if src.len() > MAX_INPUT {
        return false;
    }
    let start = out.len();
    super::super::bytes::put_uvarint(out, src.len() as u64);
    let body = out.len();
    out.resize(body + bound(src.len()), 0);
    let used = elements(src, table, out.get_mut(body..).unwrap_or_default());
    if used > limit {
        out.truncate(start);
        return false;
    }
    out.truncate(body + used);
    true
}

fn elements(src: &[u8], table: &mut Table, dst: &mut [u8]) -> usize {
    let table = &mut *table.0;
    table.fill(0);
    let mut out = Out { dst, at: 0 };
    let limit = src.len().saturating_sub(MARGIN);
    let (mut s, mut lit, mut repeat) = (1usize, 0usize, 0usize);
    #[expect(clippy::indexing_slicing, reason = "slot() is below the table's length")]
    'outer: while s < limit {
        // Look for a match, the farther apart the longer there was none.
        let mut candidate;
        loop {
            let v = load64(src, s);
            let (h0, h1) = (slot(v), slot(v >> 8));
            candidate = table[h0] as usize;
            let second = table[h1] as usize;
            table[h0] = s as u32;
            table[h1] = (s + 1) as u32;
            if repeat > 0 && (v >> 8) as u32 == load32(src, s + 1 - repeat) {
                let mut from = s + 1;
                while from > lit && from > repeat && src.get(from - 1) == src.get(from - 1 - repeat) {
                    from -= 1;
                }
                out.literal(src, lit, from);
                let n = common(src, from - repeat, from);
                out.repeat(n);
                s = from + n;
                lit = s;
                if s >= limit {
                    break 'outer;
                }
                continue;
            }
            if v as u32 == load32(src, candidate) && candidate < s {
                break;
            }
            if (v >> 8) as u32 == load32(src, second) && second <= s {
                candidate = second;
                s += 1;
                break;
            }
            s += 2 + ((s - lit) >> 6);
            if s >= limit {
                break 'outer;
            }
        }
        // Backwards as far as it goes.
        while s > lit && candidate > 0 && src.get(s - 1) == src.get(candidate - 1) {
            s -= 1;
            candidate -= 1;
        }
        out.literal(src, lit, s);
        loop {
            let n = common(src, candidate, s);
            repeat = s - candidate;
            out.copy(repeat, n);
            s += n;
            lit = s;
            if s >= limit {
                break 'outer;
            }
            // Another one right behind it?
            let v = load64(src, s - 2);
            let (before, here) = (slot(v), slot(v >> 16));
            candidate = table[here] as usize;
            table[before] = (s - 2) as u32;
            table[here] = s as u32;
            if (v >> 16) as u32 != load32(src, candidate) {
                s += 1;
                break;
            }
        }
    }
    out.literal(src, lit, src.len());
    out.at
}
