//! S2 blocks: the elements of one compressed chunk.
//!
//! | part    | bytes  | content |
//! |---------|--------|---------|
//! | length  | 1..=5  | uvarint: bytes that the block decodes to, at most `u32::MAX` |
//! | element | repeated until the input ends | by the two low bits of its first byte, the tag |
//!
//! | tag & 3 | element | length | offset |
//! |---------|---------|--------|--------|
//! | 0 | literal | `tag >> 2` + 1; 60..=63 say that 1..=4 little-endian bytes hold length - 1 | the bytes follow |
//! | 1 | copy    | `(tag >> 2) & 7` + 4 | 11 bits: `tag >> 5`, next byte; never 0 |
//! | 1 | repeat  | offset field 0: field 0..=4 is + 4, 5 is 1 byte + 8, 6 is 2 bytes + 260, 7 is 3 bytes + 65540 | that of the last copy |
//! | 2 | copy    | `tag >> 2` + 1 | 2 bytes |
//! | 3 | copy    | `tag >> 2` + 1 | 4 bytes |
//!
//! Holds for every server version (the format of klauspost/compress `s2`; Snappy blocks are the
//! subset without repeats). Traps: there is no checksum inside a block; an offset of 0, one beyond
//! what is decoded, and a repeat before any copy are faults; the elements must make exactly the
//! claimed length; the offset may be smaller than the length (a run); an overlong but valid length
//! of up to five bytes is accepted, as Go does.
//!
//! Facts from the S2 block description and observed accept/reject of the reference decoder.

/// Why a block does not decode: where in the block, and how much came out before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockFault {
    /// The length at the start is cut off, over five bytes or over 32 bits.
    #[error("malformed block length")]
    Length,
    /// The claimed length is over what the caller allows.
    #[error("claimed block length {claimed} is over the ceiling of {max}")]
    TooLarge {
        /// Bytes the block claims to decode to.
        claimed: u64,
        /// What it may claim.
        max: u64,
    },
    /// An element runs over the end of the block.
    #[error(
        "element at block offset {offset} runs over the end of the block ({decoded} bytes decoded)"
    )]
    Truncated {
        /// Where the element starts in the block.
        offset: usize,
        /// Bytes decoded before it (with what is there of a literal).
        decoded: usize,
    },
    /// A copy reaches back before the start of the block, or by nothing.
    #[error("copy at block offset {offset} reaches back {back} of {decoded} bytes decoded")]
    Offset {
        /// Where the element starts in the block.
        offset: usize,
        /// Bytes decoded before it.
        decoded: usize,
        /// How far it reaches back.
        back: u32,
    },
    /// An element makes more than the claimed length.
    #[error(
        "element at block offset {offset} makes {len} bytes where {left} are left of the claimed length ({decoded} bytes decoded)"
    )]
    Overrun {
        /// Where the element starts in the block.
        offset: usize,
        /// Bytes decoded before it.
        decoded: usize,
        /// Bytes it would make.
        len: u64,
        /// Bytes left of the claimed length.
        left: usize,
    },
    /// The block ends before the claimed length is reached.
    #[error("block ends at offset {offset} after {decoded} of {claimed} claimed bytes")]
    Short {
        /// Length of the block.
        offset: usize,
        /// Bytes decoded.
        decoded: usize,
        /// Bytes claimed.
        claimed: usize,
    },
}

impl BlockFault {
    /// Offset in the block at which the fault shows.
    pub fn offset(&self) -> usize {
        match *self {
            Self::Length | Self::TooLarge { .. } => 0,
            Self::Truncated { offset, .. }
            | Self::Offset { offset, .. }
            | Self::Overrun { offset, .. }
            | Self::Short { offset, .. } => offset,
        }
    }

    /// Bytes decoded before the fault. Without a checksum they are only likely to be right.
    pub fn decoded(&self) -> usize {
        match *self {
            Self::Length | Self::TooLarge { .. } => 0,
            Self::Truncated { decoded, .. }
            | Self::Offset { decoded, .. }
            | Self::Overrun { decoded, .. }
            | Self::Short { decoded, .. } => decoded,
        }
    }
}

/// The length a block claims to decode to, and how many bytes say so.
pub fn claimed_len(src: &[u8]) -> Result<(u32, usize), BlockFault> {
    let mut value = 0u64;
    for (i, &byte) in src.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            let value = u32::try_from(value).map_err(|_| BlockFault::Length)?;
            return Ok((value, i + 1));
        }
    }
    Err(BlockFault::Length)
}

/// Decodes one block and appends it to `out`: the bytes it made, at most `max`. After a fault what
/// was decoded before it is appended too; [`BlockFault::decoded`] says how much.
pub fn decode_block(src: &[u8], out: &mut Vec<u8>, max: usize) -> Result<usize, BlockFault> {
    let (claimed, header) = claimed_len(src)?;
    let len = usize::try_from(claimed).unwrap_or(usize::MAX);
    if len > max {
        return Err(BlockFault::TooLarge {
            claimed: u64::from(claimed),
            max: max as u64,
        });
    }
    let start = out.len();
    out.resize(start.saturating_add(len), 0);
    let dst = out.get_mut(start..).unwrap_or_default();
    let result = decode_elements(src, header, dst);
    if let Err(fault) = result {
        out.truncate(start.saturating_add(fault.decoded()));
    }
    result.map(|()| len)
}

/// Decodes one block into `dst`, which may be longer than what the block claims: the bytes made.
/// Saves zeroing when one buffer serves many blocks. Bytes of `dst` past the result (or past
/// [`BlockFault::decoded`]) are arbitrary.
pub fn decode_block_into(src: &[u8], dst: &mut [u8]) -> Result<usize, BlockFault> {
    let (claimed, header) = claimed_len(src)?;
    let len = usize::try_from(claimed).unwrap_or(usize::MAX);
    let max = dst.len() as u64;
    let dst = dst.get_mut(..len).ok_or(BlockFault::TooLarge {
        claimed: u64::from(claimed),
        max,
    })?;
    decode_elements(src, header, dst).map(|()| len)
}

/// One element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::format) enum Element {
    /// Bytes that follow.
    Literal,
    /// What lies so far back.
    Copy(u32),
    /// What lies as far back as for the last copy.
    Repeat,
}

/// Reads the element at the start of `word` (eight bytes, zero-padded at the end of the block):
/// what it is, the size of its tag and fields, the bytes it makes.
#[inline(always)]
pub(in crate::format) fn parse(word: u64) -> (Element, usize, u64) {
    let tag = word & 0xff;
    match tag & 3 {
        0 => match tag >> 2 {
            x @ 0..60 => (Element::Literal, 1, x + 1),
            60 => (Element::Literal, 2, ((word >> 8) & 0xff) + 1),
            61 => (Element::Literal, 3, ((word >> 8) & 0xffff) + 1),
            62 => (Element::Literal, 4, ((word >> 8) & 0xff_ffff) + 1),
            _ => (Element::Literal, 5, ((word >> 8) & 0xffff_ffff) + 1),
        },
        1 => {
            let back = ((tag & 0xe0) << 3) | ((word >> 8) & 0xff);
            let field = (tag >> 2) & 7;
            if back != 0 {
                return (Element::Copy(back as u32), 2, field + 4);
            }
            match field {
                5 => (Element::Repeat, 3, ((word >> 16) & 0xff) + 8),
                6 => (Element::Repeat, 4, ((word >> 16) & 0xffff) + 260),
                7 => (Element::Repeat, 5, ((word >> 16) & 0xff_ffff) + 65540),
                _ => (Element::Repeat, 2, field + 4),
            }
        }
        2 => (Element::Copy((word >> 8) as u16 as u32), 3, (tag >> 2) + 1),
        _ => (Element::Copy((word >> 8) as u32), 5, (tag >> 2) + 1),
    }
}

/// What the tag of a copy says.
#[derive(Clone, Copy)]
struct CopyTag {
    /// Of the four bytes after the tag, those that hold the low part of the offset.
    mask: u32,
    /// High part of the offset.
    high: u16,
    /// Length.
    len: u8,
    /// Size of the element.
    size: u8,
}

/// Copies by tag: one look-up instead of a branch that can not be foreseen.
#[expect(
    clippy::indexing_slicing,
    reason = "constant evaluation can not panic at run time"
)]
static COPIES: [CopyTag; 256] = {
    let mut all = [CopyTag {
        mask: 0,
        high: 0,
        len: 0,
        size: 0,
    }; 256];
    let mut tag = 0;
    while tag < 256 {
        let x = tag as u8;
        all[tag] = match x & 3 {
            1 => CopyTag {
                mask: 0xff,
                high: ((x & 0xe0) as u16) << 3,
                len: ((x >> 2) & 7) + 4,
                size: 2,
            },
            2 => CopyTag {
                mask: 0xffff,
                high: 0,
                len: (x >> 2) + 1,
                size: 3,
            },
            3 => CopyTag {
                mask: 0xffff_ffff,
                high: 0,
                len: (x >> 2) + 1,
                size: 5,
            },
            _ => CopyTag {
                mask: 0,
                high: 0,
                len: 0,
                size: 0,
            },
        };
        tag += 1;
    }
    all
};

/// Bytes moved at once. A short copy may write up to this many bytes too far: the next element
/// overwrites them, and near the end of the output the exact path is taken.
const STEP: usize = 16;

/// Longest copy done in steps; `memmove` is better above.
const STEPPED: usize = 64;

/// Where decoding stands.
struct State {
    /// Next byte of the block.
    s: usize,
    /// Next byte of the output: what is decoded.
    d: usize,
    /// Offset of the last copy, for repeats; 0 before the first one.
    back: usize,
}

/// Decodes the elements of `src` from `header` on into `dst`, which they must fill exactly.
///
/// The loop does what is short and far from both ends; all else, faults included, is left to
/// [`step`], so accepting and rejecting is decided there only.
fn decode_elements(src: &[u8], header: usize, dst: &mut [u8]) -> Result<(), BlockFault> {
    let mut st = State {
        s: header,
        d: 0,
        back: 0,
    };
    let stepped_end = dst.len().saturating_sub(STEPPED + STEP);
    while st.s < src.len() {
        let State {
            mut s,
            mut d,
            mut back,
        } = st;
        while let Some(window) = src
            .get(s..)
            .and_then(|rest| rest.first_chunk::<{ STEP + 1 }>())
        {
            if d > stepped_end {
                break;
            }
            let tag = window[0];
            if tag & 3 == 0 {
                let n = usize::from(tag >> 2) + 1;
                if n > STEP {
                    break;
                }
                let Some(to) = dst
                    .get_mut(d..)
                    .and_then(|rest| rest.first_chunk_mut::<STEP>())
                else {
                    break;
                };
                to.copy_from_slice(&window[1..]);
                s += 1 + n;
                d += n;
                continue;
            }
            let Some(copy) = COPIES.get(usize::from(tag)) else {
                break;
            };
            let fields = u32::from_le_bytes([window[1], window[2], window[3], window[4]]);
            let mut from = (fields & copy.mask) as usize + usize::from(copy.high);
            let mut len = usize::from(copy.len);
            let mut size = usize::from(copy.size);
            if from == 0 {
                from = back;
                match (tag & 3, tag >> 2) {
                    (1, 0..=4) => {}
                    (1, 5) => {
                        size = 3;
                        len = usize::from(window[2]) + 8;
                    }
                    _ => break,
                }
            }
            if from == 0 || from > d || len > STEPPED {
                break;
            }
            copy_stepped(dst, d, from, len);
            back = from;
            s += size;
            d += len;
        }
        st = State { s, d, back };
        step(src, dst, &mut st)?;
    }
    if st.d < dst.len() {
        return Err(BlockFault::Short {
            offset: src.len(),
            decoded: st.d,
            claimed: dst.len(),
        });
    }
    Ok(())
}

/// Copies `len <= STEPPED` bytes from `back` bytes before `d` to `d`, in steps. The caller knows
/// that `1 <= back <= d` and that `len + STEP` bytes fit after `d`.
#[inline(always)]
fn copy_stepped(dst: &mut [u8], d: usize, back: usize, len: usize) {
    let mut from = d - back;
    let mut at = d;
    let end = d + len;
    if back < STEP {
        // A run: each round doubles the distance, until a step no longer reads what it writes.
        let mut gap = back;
        while gap < STEP && at < end {
            dst.copy_within(from..from + STEP, at);
            at += gap;
            gap *= 2;
        }
        if at >= end {
            return;
        }
    }
    dst.copy_within(from..from + STEP, at);
    while at + STEP < end {
        from += STEP;
        at += STEP;
        dst.copy_within(from..from + STEP, at);
    }
}

/// Decodes the one element at `st`, if there is one, exactly and with every check.
#[inline(never)]
fn step(src: &[u8], dst: &mut [u8], st: &mut State) -> Result<(), BlockFault> {
    let State { s, d, .. } = *st;
    let rest = src.get(s..).unwrap_or_default();
    if rest.is_empty() {
        return Ok(());
    }
    let mut word = [0u8; 8];
    for (to, from) in word.iter_mut().zip(rest) {
        *to = *from;
    }
    let (element, size, len64) = parse(u64::from_le_bytes(word));
    let left = dst.len().saturating_sub(d);
    let truncated = |decoded| BlockFault::Truncated { offset: s, decoded };
    let body = rest.get(size..).ok_or(truncated(d))?;
    let len = usize::try_from(len64).unwrap_or(usize::MAX);
    let overrun = BlockFault::Overrun {
        offset: s,
        decoded: d,
        len: len64,
        left,
    };
    let back = match element {
        Element::Literal => {
            let n = len.min(body.len());
            let (Some(to), Some(from)) = (
                dst.get_mut(d..).and_then(|to| to.get_mut(..n)),
                body.get(..n),
            ) else {
                return Err(overrun);
            };
            to.copy_from_slice(from);
            if n < len {
                return Err(truncated(d + n));
            }
            st.s = s + size + len;
            st.d = d + len;
            return Ok(());
        }
        Element::Copy(back) => back as usize,
        Element::Repeat => st.back,
    };
    if back == 0 || back > d {
        return Err(BlockFault::Offset {
            offset: s,
            decoded: d,
            back: back as u32,
        });
    }
    if len > left {
        return Err(overrun);
    }
    // A run grows by doubling: what is copied so far has the same period.
    let from = d - back;
    let mut done = 0;
    while done < len {
        let n = (len - done).min(back + done);
        dst.copy_within(from..from + n, d + done);
        done += n;
    }
    *st = State {
        s: s + size,
        d: d + len,
        back,
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    fn decode(src: &[u8]) -> (Result<usize, BlockFault>, Vec<u8>) {
        let mut out = b"kept".to_vec();
        let result = decode_block(src, &mut out, 8 << 20);
        assert_eq!(&out[..4], b"kept");
        (result, out.split_off(4))
    }

    /// Blocks and mutated blocks with the verdict of the reference decoder: u32 length, block,
    /// accepted (1) or not (0), u32 decoded length, first 8 bytes of the SHA-256 of the content.
    #[test]
    fn agrees_with_the_reference_decoder() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/fixtures/vectors/s2/blocks.bin"
        );
        let file = std::fs::read(path).unwrap();
        let mut rest = file.as_slice();
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at(n);
            rest = tail;
            (head.to_vec(), tail.is_empty())
        };
        let u32_of = |b: &[u8]| u32::from_le_bytes(b.try_into().unwrap()) as usize;
        let (mut accepted, mut refused) = (0, 0);
        loop {
            let n = u32_of(&take(4).0);
            let block = take(n).0;
            let ok = take(1).0 == [1];
            let len = u32_of(&take(4).0);
            let (hash, last) = take(8);
            let (result, out) = decode(&block);
            match result {
                Ok(n) => {
                    assert!(ok, "{block:02x?} must be refused");
                    assert_eq!((n, out.len()), (len, len));
                    assert_eq!(Sha256::digest(&out)[..8], hash[..]);
                    accepted += 1;
                }
                Err(fault) => {
                    assert!(!ok, "{block:02x?} must be accepted: {fault}");
                    assert_eq!(out.len(), fault.decoded());
                    refused += 1;
                }
            }
            if last {
                break;
            }
        }
        assert_eq!((accepted, refused), (629, 371));
    }

    #[test]
    fn every_element_by_hand() {
        // "abcd", copy 4 back 4, repeat 4 (field 0), repeat 8 + 1, repeat 260 + 2, repeat 65540 + 1.
        let total: u32 = 4 + 4 + 4 + 9 + 262 + 65541;
        let mut block = Vec::new();
        crate::format::bytes::put_uvarint(&mut block, u64::from(total));
        block.extend_from_slice(b"\x0cabcd");
        block.extend_from_slice(&[0x01, 4]);
        block.extend_from_slice(&[0x01, 0]);
        block.extend_from_slice(&[5 << 2 | 1, 0, 1]);
        block.extend_from_slice(&[6 << 2 | 1, 0, 2, 0]);
        block.extend_from_slice(&[7 << 2 | 1, 0, 1, 0, 0]);
        let (result, out) = decode(&block);
        assert_eq!(result, Ok(total as usize));
        assert!(out.iter().zip(b"abcd".iter().cycle()).all(|(a, b)| a == b));

        // The four long literal forms, and copies with two and four offset bytes.
        let block = b"\x0e\xf0\x01ab\xf4\x01\x00cd\xf8\x01\x00\x00ef\xfc\x01\x00\x00\x00gh\
            \x0a\x08\x00\x0b\x03\x00\x00\x00";
        let (result, out) = decode(block);
        assert_eq!(
            (result, out.as_slice()),
            (Ok(14), b"abcdefghabcabc".as_slice())
        );
    }

    #[test]
    fn runs_of_every_short_distance_and_length() {
        let seed: Vec<u8> = (0..100u8).collect();
        for back in 1..=70u16 {
            for len in 1..=64u8 {
                // Slack after the copy, so that the fast path is taken too.
                for slack in [0usize, 200] {
                    let mut want = seed.clone();
                    for _ in 0..len {
                        want.push(want[want.len() - usize::from(back)]);
                    }
                    want.extend(std::iter::repeat_n(7, slack));
                    let mut block = Vec::new();
                    crate::format::bytes::put_uvarint(&mut block, want.len() as u64);
                    block.extend_from_slice(&[60 << 2, 99]);
                    block.extend_from_slice(&seed);
                    block.push((len - 1) << 2 | 2);
                    block.extend_from_slice(&back.to_le_bytes());
                    for _ in 0..slack {
                        block.extend_from_slice(&[0, 7]);
                    }
                    let (result, out) = decode(&block);
                    assert_eq!(result, Ok(want.len()));
                    assert_eq!(out, want, "back {back} len {len}");
                }
            }
        }
    }

    #[test]
    fn faults_say_where_and_what_was_good() {
        let cases: [(&[u8], BlockFault, &[u8]); 11] = [
            (b"", BlockFault::Length, b""),
            (b"\xff\xff", BlockFault::Length, b""),
            (b"\x80\x80\x80\x80\x80\x00", BlockFault::Length, b""),
            (b"\xff\xff\xff\xff\x1f", BlockFault::Length, b""),
            (
                b"\xff\xff\xff\xff\x0f",
                BlockFault::TooLarge {
                    claimed: 0xffff_ffff,
                    max: 8 << 20,
                },
                b"",
            ),
            (
                b"\x08\x04ab\x04c",
                BlockFault::Truncated {
                    offset: 4,
                    decoded: 3,
                },
                b"abc",
            ),
            (
                b"\x08\x04ab\x02\x01",
                BlockFault::Truncated {
                    offset: 4,
                    decoded: 2,
                },
                b"ab",
            ),
            (
                b"\x08\x04ab\x02\x03\x00",
                BlockFault::Offset {
                    offset: 4,
                    decoded: 2,
                    back: 3,
                },
                b"ab",
            ),
            // A repeat before any copy.
            (
                b"\x08\x04ab\x01\x00",
                BlockFault::Offset {
                    offset: 4,
                    decoded: 2,
                    back: 0,
                },
                b"ab",
            ),
            (
                b"\x03\x04ab\x06\x01\x00",
                BlockFault::Overrun {
                    offset: 4,
                    decoded: 2,
                    len: 2,
                    left: 1,
                },
                b"ab",
            ),
            (
                b"\x08\x04ab",
                BlockFault::Short {
                    offset: 4,
                    decoded: 2,
                    claimed: 8,
                },
                b"ab",
            ),
        ];
        for (block, fault, good) in cases {
            let (result, out) = decode(block);
            assert_eq!(result, Err(fault), "{block:02x?}");
            assert_eq!(out, good);
            assert_eq!(fault.decoded(), good.len());
        }
        assert_eq!(decode(b"\x00").0, Ok(0));
        // Overlong, but five bytes: accepted by the reference decoder.
        assert_eq!(decode(b"\x81\x80\x80\x80\x00\x00a"), (Ok(1), b"a".to_vec()));
    }

    #[test]
    fn a_lying_length_is_bounded_before_anything_is_allocated() {
        let mut out = Vec::new();
        let fault = decode_block(b"\x81\x80\x80\x02\x00a", &mut out, 4 << 20).unwrap_err();
        let claimed = (4 << 20) + 1;
        assert_eq!(
            fault,
            BlockFault::TooLarge {
                claimed,
                max: 4 << 20
            }
        );
        assert_eq!(out.capacity(), 0);
        assert_eq!(
            decode_block_into(b"\x03\x08abc", &mut [0; 2])
                .unwrap_err()
                .decoded(),
            0
        );
    }

    fn content() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            (any::<u8>(), 0..5000usize).prop_map(|(b, n)| vec![b; n]),
            (proptest::collection::vec(any::<u8>(), 1..40), 1..60usize)
                .prop_map(|(v, n)| v.repeat(n)),
            "[a-e \"{}:]{0,400}".prop_map(String::into_bytes),
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|v| v.concat())
    }

    fn encodings(raw: &[u8]) -> [Vec<u8>; 4] {
        use minlz::s2;
        [
            s2::encode(raw),
            s2::encode_better(raw),
            s2::encode_best(raw),
            s2::encode_snappy(raw),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn decodes_what_another_encoder_made(raw in content()) {
            for block in encodings(&raw) {
                let (result, out) = decode(&block);
                prop_assert_eq!(result, Ok(raw.len()));
                prop_assert!(out == raw);
                let mut dst = vec![0; raw.len() + 3];
                prop_assert_eq!(decode_block_into(&block, &mut dst), Ok(raw.len()));
                prop_assert!(dst[..raw.len()] == raw);
            }
        }

        #[test]
        fn agrees_with_another_decoder_on_damage(
            raw in content(),
            hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            for mut block in encodings(&raw) {
                for (at, value) in &hits {
                    let i = at.index(block.len());
                    block[i] = *value;
                }
                if let Some(cut) = &cut {
                    block.truncate(cut.index(block.len()));
                }
                if claimed_len(&block).is_ok_and(|(len, _)| len > 8 << 20) {
                    continue;
                }
                let (result, out) = decode(&block);
                match minlz::s2::decode(&block) {
                    Ok(theirs) => prop_assert!(result.is_ok() && out == theirs),
                    Err(_) => prop_assert_eq!(result.unwrap_err().decoded(), out.len()),
                }
            }
        }
    }
}
