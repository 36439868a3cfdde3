//! Making S2 blocks: greedy matching over a small table of positions, tuned for speed.
//!
//! The output is within a percent or so of the server's own in size. Whatever the table says, a match is only
//! taken after its bytes were compared, so a wrong entry can cost size, never content.

/// Bits of the table's index.
const TABLE_BITS: u32 = 16;
/// Entries of the table.
const TABLE: usize = 1 << TABLE_BITS;
/// Below this many bytes from the end nothing is matched: loads of 8 bytes need room.
const MARGIN: usize = 16;
/// Longest input: positions are 32 bits, and the server's writer uses 1 MiB.
pub const MAX_INPUT: usize = 4 << 20;

/// What the encoder needs besides its input, kept from one block to the next.
#[derive(Debug)]
pub struct Table {
    /// The positions of what was seen, by hash.
    slots: Box<[u32; TABLE]>,
    /// The elements in the making; never shrinks, since clearing it takes time.
    elements: Vec<u8>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            slots: Box::new([0; TABLE]),
            elements: Vec::new(),
        }
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
        if let Some(to) = self
            .dst
            .get_mut(self.at..)
            .and_then(<[u8]>::first_chunk_mut)
        {
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
            && let Some(to) = self
                .dst
                .get_mut(self.at..)
                .and_then(<[u8]>::first_chunk_mut)
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
        let far = u64::from(offset >= 65_536);
        if n > 64 {
            // A repeat is 4 bytes at least.
            self.put(59 << 2 | (2 + far) | o << 8, 3 + 2 * far as usize);
            self.repeat(len - 60);
        } else if n < 12 && offset < 2048 {
            self.put((o >> 8) << 5 | (n - 4) << 2 | 1 | (o & 0xff) << 8, 2);
        } else {
            // Without a branch on the distance, which is as good as random.
            self.put((n - 1) << 2 | (2 + far) | o << 8, 3 + 2 * far as usize);
        }
    }
}

/// Appends `src` as a block to `out`, unless it would be longer than `limit` bytes without its length
/// field. Says whether it did.
pub fn compress(src: &[u8], table: &mut Table, limit: usize, out: &mut Vec<u8>) -> bool {
    if src.len() > MAX_INPUT {
        return false;
    }
    if table.elements.len() < bound(src.len()) {
        table.elements.resize(bound(src.len()), 0);
    }
    let used = elements(src, &mut table.slots, &mut table.elements);
    let Some(made) = table.elements.get(..used).filter(|_| used <= limit) else {
        return false;
    };
    super::super::bytes::put_uvarint(out, src.len() as u64);
    out.extend_from_slice(made);
    true
}

fn elements(src: &[u8], table: &mut [u32; TABLE], dst: &mut [u8]) -> usize {
    table.fill(0);
    let mut out = Out { dst, at: 0 };
    let limit = src.len().saturating_sub(MARGIN);
    let (mut s, mut lit) = (1usize, 0usize);
    #[expect(
        clippy::indexing_slicing,
        reason = "slot() is below the table's length"
    )]
    while s < limit {
        // Two positions at once. The table only ever holds positions before them.
        let v = load64(src, s);
        let (h0, h1) = (slot(v), slot(v >> 8));
        let mut candidate = table[h0] as usize;
        let second = table[h1] as usize;
        table[h0] = s as u32;
        table[h1] = (s + 1) as u32;
        if v as u32 == load32(src, candidate) && candidate < s {
        } else if (v >> 8) as u32 == load32(src, second) && second <= s {
            candidate = second;
            s += 1;
        } else {
            // The farther apart the longer there was no match.
            s += 2 + ((s - lit) >> 6);
            continue;
        }
        // Backwards as far as it goes.
        while s > lit && candidate > 0 && src.get(s - 1) == src.get(candidate - 1) {
            s -= 1;
            candidate -= 1;
        }
        out.literal(src, lit, s);
        let n = common(src, candidate, s);
        out.copy(s - candidate, n);
        s += n;
        lit = s;
    }
    out.literal(src, lit, src.len());
    out.at
}

#[cfg(test)]
mod tests {
    use super::super::block::decode_block;
    use super::*;
    use proptest::prelude::*;

    /// Encodes, decodes here and elsewhere; gives the block.
    fn round(raw: &[u8], table: &mut Table) -> Vec<u8> {
        let mut block = Vec::new();
        assert!(compress(raw, table, usize::MAX, &mut block));
        let mut out = Vec::new();
        assert_eq!(decode_block(&block, &mut out, raw.len()), Ok(raw.len()));
        assert!(out == raw, "{} bytes", raw.len());
        assert!(minlz::s2::decode(&block).unwrap() == raw);
        block
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 33) as usize) % n
        }
    }

    #[test]
    fn every_length_and_offset_of_a_copy() {
        let mut table = Table::default();
        let mut r = Random(1);
        let noise: Vec<u8> = (0..200_000).map(|_| r.below(256) as u8).collect();
        for offset in [
            1, 2, 3, 7, 8, 100, 2047, 2048, 2049, 65_535, 65_536, 65_537, 150_000,
        ] {
            for len in (4..80).chain([
                255, 259, 263, 264, 323, 324, 400, 65_000, 65_795, 65_860, 66_000, 140_000,
            ]) {
                // What was `offset` bytes before comes again, between bytes that do not match.
                let mut raw = noise[..offset.max(16)].to_vec();
                let from = raw.len() - offset;
                for i in 0..len {
                    raw.push(raw[from + i]);
                }
                raw.extend_from_slice(&noise[150_000..150_040]);
                round(&raw, &mut table);
            }
        }
        // A long run is a copy with repeats.
        for len in [70_000usize, 1 << 20, MAX_INPUT] {
            let block = round(&vec![7; len], &mut table);
            assert!(block.len() < 60, "{len}: {}", block.len());
        }
    }

    #[test]
    fn every_short_input() {
        let mut table = Table::default();
        let mut r = Random(2);
        for len in 0..200 {
            for kinds in [1, 2, 3, 256] {
                let raw: Vec<u8> = (0..len).map(|_| r.below(kinds) as u8).collect();
                round(&raw, &mut table);
            }
        }
    }

    #[test]
    fn what_does_not_fit_the_limit_leaves_nothing() {
        let (mut table, mut out) = (Table::default(), b"before".to_vec());
        assert!(!compress(
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &mut table,
            8,
            &mut out
        ));
        assert!(!compress(
            &vec![0; MAX_INPUT + 1],
            &mut table,
            usize::MAX,
            &mut out
        ));
        assert_eq!(out, b"before");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        // Pieces of earlier content, edited a little, between new bytes: what a log or a queue looks like.
        #[test]
        fn texts_that_quote_themselves(seed in any::<u64>(), kinds in 2usize..=256, pieces in 1usize..400) {
            let mut r = Random(seed);
            let n = r.below(100) + 1;
            let mut raw: Vec<u8> = (0..n).map(|_| r.below(kinds) as u8).collect();
            for _ in 0..pieces {
                if r.below(3) == 0 {
                    let n = r.below(60);
                    raw.extend((0..n).map(|_| r.below(kinds) as u8));
                } else {
                    let from = r.below(raw.len());
                    let bits = r.below(13);
                    let n = r.below(1 << bits) + 1;
                    for i in 0..n {
                        raw.push(raw[from + i]);
                    }
                    if r.below(2) == 0 {
                        let at = raw.len() - 1 - r.below(n);
                        raw[at] ^= 1 << r.below(8);
                    }
                }
            }
            raw.truncate(1 << 20);
            round(&raw, &mut Table::default());
        }
    }
}
