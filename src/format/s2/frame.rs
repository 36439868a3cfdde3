//! The S2 stream: chunks, each with a header of four bytes.
//!
//! | off | bytes | content |
//! |-----|-------|---------|
//! | 0   | 1     | kind |
//! | 1   | 3     | length of the body, little-endian |
//! | 4   | length | body |
//!
//! | kind | chunk | body |
//! |------|-------|------|
//! | `ff` | identifier: first chunk, may come again | `S2sTwO`, or `sNaPpY` (then no chunk decodes to over 64 KiB) |
//! | `00` | compressed | masked CRC-32C of the decoded bytes (u32 LE), one [block] |
//! | `01` | raw        | masked CRC-32C (u32 LE), the bytes |
//! | `02..=7f` | reserved, must not be skipped: a fault | |
//! | `80..=fd` | skippable (`99` is an index; the server writes none) | anything |
//! | `fe` | padding | anything |
//!
//! The mask: `rotate_right(crc, 15) + 0xa282ead8`. No bytes at all are a valid empty stream; the
//! server's writer makes exactly that of empty input. There is no end marker: a stream cut between
//! two chunks can not be told from a whole one.
//!
//! Holds for all server versions. The writer makes chunks of 1 MiB; the reader takes up to 4 MiB
//! decoded ([`MAX_FRAME_DECODED`]) and refuses a data chunk whose body is over
//! [`MAX_FRAME_BODY`]. One to three stray bytes at the end, a missing first identifier and a wrong
//! later one are corrupt input to the server too.
//!
//! Facts from the Snappy framing format, the S2 notes to it, and observed accept/reject of the
//! reference reader.

use std::fmt;

use super::block::{self, BlockFault};
use crate::format::bytes::{Fault, FaultKind};

/// The identifier chunk that starts a stream.
pub const MAGIC: [u8; 10] = *b"\xff\x06\x00\x00S2sTwO";

/// Most a chunk may decode to: the limit of the server's reader.
pub const MAX_FRAME_DECODED: usize = 4 << 20;

/// Most a chunk of a Snappy stream may decode to.
pub const MAX_SNAPPY_DECODED: usize = 64 << 10;

/// Longest body of a data chunk the server reads: what [`MAX_FRAME_DECODED`] bytes of literals
/// need, and the checksum.
pub const MAX_FRAME_BODY: usize = MAX_FRAME_DECODED + 8 + 4;

/// Bytes of a chunk header.
pub const CHUNK_HEADER: usize = 4;

/// Faults kept in a [`StreamReport`].
pub const MAX_FAULTS: usize = 64;

/// What a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// Stream identifier.
    Identifier,
    /// Checksum and one S2 block.
    Compressed,
    /// Checksum and plain bytes.
    Raw,
    /// Padding.
    Padding,
    /// Reserved, to be skipped.
    Skippable(u8),
    /// Reserved, must not be skipped: a fault.
    Reserved(u8),
}

impl FrameKind {
    /// The kind a first header byte stands for.
    pub fn of(kind: u8) -> Self {
        match kind {
            0x00 => Self::Compressed,
            0x01 => Self::Raw,
            0x02..=0x7f => Self::Reserved(kind),
            0x80..=0xfd => Self::Skippable(kind),
            0xfe => Self::Padding,
            0xff => Self::Identifier,
        }
    }

    /// True for the chunks that hold content.
    pub fn is_data(self) -> bool {
        matches!(self, Self::Compressed | Self::Raw)
    }
}

/// Kind and body length in a chunk header.
pub fn parse_chunk_header(bytes: [u8; 4]) -> (u8, u32) {
    let [kind, a, b, c] = bytes;
    (kind, u32::from_le_bytes([a, b, c, 0]))
}

/// The checksum stored with a chunk that decodes to `raw`.
pub fn masked_crc(raw: &[u8]) -> u32 {
    crc32c::crc32c(raw)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// One chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Absolute offset of its header.
    pub offset: u64,
    /// What it is.
    pub kind: FrameKind,
    /// What follows the header.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Its length, with the header.
    pub fn length(&self) -> u64 {
        (self.body.len() as u64).saturating_add(CHUNK_HEADER as u64)
    }

    /// The checksum stored in it: data chunks have one.
    pub fn stored_crc(&self) -> Option<u32> {
        let crc = self.body.first_chunk::<4>()?;
        self.kind.is_data().then(|| u32::from_le_bytes(*crc))
    }

    /// What it decodes to by its own word: 0 if it holds no content. What the server's reader would
    /// refuse unseen is a fault: no room for a checksum, a malformed length, too much.
    pub fn decoded_len(&self) -> Result<usize, Fault> {
        let data = self.data()?;
        let too_large = |at, what, value: usize, ceiling: usize| {
            let kind = FaultKind::TooLarge {
                what,
                value: value as u64,
                ceiling: ceiling as u64,
            };
            Fault::new(self.at(at), kind)
        };
        if self.kind.is_data() && self.body.len() > MAX_FRAME_BODY {
            return Err(too_large(
                0,
                "S2 chunk length",
                self.body.len(),
                MAX_FRAME_BODY,
            ));
        }
        let len = match self.kind {
            FrameKind::Raw => data.len(),
            FrameKind::Compressed => match block::claimed_len(data) {
                Ok((len, _)) => usize::try_from(len).unwrap_or(usize::MAX),
                Err(_) => {
                    return Err(Fault::new(
                        self.at(8),
                        FaultKind::Invalid("S2 block length"),
                    ));
                }
            },
            _ => return Ok(0),
        };
        if len > MAX_FRAME_DECODED {
            return Err(too_large(
                8,
                "S2 chunk's decoded length",
                len,
                MAX_FRAME_DECODED,
            ));
        }
        Ok(len)
    }

    /// The body after the checksum of a data chunk, the whole body of another.
    fn data(&self) -> Result<&'a [u8], Fault> {
        if !self.kind.is_data() {
            return Ok(self.body);
        }
        self.body.get(4..).ok_or_else(|| {
            let have = self.body.len() as u64;
            Fault::new(self.at(4), FaultKind::Truncated { need: 4, have })
        })
    }

    /// The absolute offset of the byte `at` after the start of the header.
    fn at(&self, at: usize) -> u64 {
        self.offset.saturating_add(at as u64)
    }

    /// Checks what a chunk without content can have wrong.
    fn check(&self) -> Result<(), Fault> {
        match self.kind {
            FrameKind::Identifier if self.body != b"S2sTwO" && self.body != b"sNaPpY" => {
                Err(Fault::new(
                    self.offset,
                    FaultKind::Magic {
                        format: "S2 stream",
                    },
                ))
            }
            FrameKind::Reserved(_) => Err(Fault::new(
                self.offset,
                FaultKind::Invalid("S2 chunk kind (reserved, not to be skipped)"),
            )),
            _ => Ok(()),
        }
    }
}

/// Walks the chunks of a stream. Bodies are not decoded; ends after the first fault.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    buf: &'a [u8],
    pos: usize,
    base: u64,
    identified: bool,
    snappy: bool,
    done: bool,
    torn: Option<Frame<'a>>,
}

impl<'a> Frames<'a> {
    /// The chunks of the stream `buf`, whose first byte lies at `base`.
    pub fn new(buf: &'a [u8], base: u64) -> Self {
        Self {
            buf,
            pos: 0,
            base,
            identified: false,
            snappy: false,
            done: false,
            torn: None,
        }
    }

    /// The chunks of a piece of a stream that starts at a chunk: no identifier is asked for.
    pub fn resume(buf: &'a [u8], base: u64) -> Self {
        Self {
            identified: true,
            ..Self::new(buf, base)
        }
    }

    /// Bytes of whole chunks walked over.
    pub fn consumed(&self) -> u64 {
        self.pos as u64
    }

    /// True after a Snappy identifier.
    pub fn is_snappy(&self) -> bool {
        self.snappy
    }

    /// After a truncation fault, what is there of the last chunk. A data chunk may still give some
    /// content, that no checksum vouches for.
    pub fn torn(&self) -> Option<Frame<'a>> {
        self.torn
    }

    fn walk(&mut self) -> Result<Option<Frame<'a>>, Fault> {
        let rest = self.buf.get(self.pos..).unwrap_or_default();
        let offset = self.base.saturating_add(self.pos as u64);
        let truncated = |need: usize| {
            let kind = FaultKind::Truncated {
                need: need as u64,
                have: rest.len() as u64,
            };
            Fault::new(offset, kind)
        };
        if rest.is_empty() {
            return Ok(None);
        }
        let Some((header, after)) = rest.split_first_chunk::<CHUNK_HEADER>() else {
            return Err(truncated(CHUNK_HEADER));
        };
        let (kind, len) = parse_chunk_header(*header);
        let kind = FrameKind::of(kind);
        if !self.identified && kind != FrameKind::Identifier {
            return Err(Fault::new(
                offset,
                FaultKind::Magic {
                    format: "S2 stream",
                },
            ));
        }
        let len = len as usize;
        let Some(body) = after.get(..len) else {
            self.torn = Some(Frame {
                offset,
                kind,
                body: after,
            });
            return Err(truncated(CHUNK_HEADER.saturating_add(len)));
        };
        let frame = Frame { offset, kind, body };
        frame.check()?;
        if kind == FrameKind::Identifier {
            self.identified = true;
            self.snappy = body == b"sNaPpY";
        }
        self.pos = self.pos.saturating_add(CHUNK_HEADER).saturating_add(len);
        Ok(Some(frame))
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.walk().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Why a chunk does not decode, where, and how much it gave before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}, at offset {offset}")]
pub struct FrameFault {
    /// Absolute offset in the compressed input at which the fault shows.
    pub offset: u64,
    /// Bytes the chunk gave before the fault; all of them if only the checksum is wrong.
    pub decoded: usize,
    /// What is wrong.
    pub kind: FrameFaultKind,
}

/// What is wrong with a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameFaultKind {
    /// It decodes, but not to what its checksum says.
    Crc {
        /// The checksum stored in it.
        stored: u32,
        /// That of what it decodes to.
        computed: u32,
    },
    /// Its block does not decode.
    Block(BlockFault),
    /// The chunk itself, or the chain of chunks, is broken.
    Frame(FaultKind),
}

impl fmt::Display for FrameFaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crc { stored, computed } => write!(
                f,
                "S2 chunk checksum does not match: {stored:#010x} stored, {computed:#010x} computed"
            ),
            Self::Block(fault) => write!(f, "S2 block: {fault}"),
            Self::Frame(kind) => write!(f, "S2 chunk: {kind}"),
        }
    }
}

impl From<Fault> for FrameFault {
    fn from(fault: Fault) -> Self {
        Self {
            offset: fault.offset,
            decoded: 0,
            kind: FrameFaultKind::Frame(fault.kind),
        }
    }
}

/// Decodes one chunk and appends it to `out`: the bytes appended, 0 for a chunk without content.
///
/// After a fault inside the block what was decoded before it is appended; after a checksum fault
/// all of it is: [`FrameFault::decoded`] says how much.
pub fn decode_frame(
    frame: &Frame<'_>,
    out: &mut Vec<u8>,
    verify_crc: bool,
) -> Result<usize, FrameFault> {
    let start = out.len();
    let result = decode_frame_over(frame, out, start, verify_crc);
    let (Ok(made) | Err(FrameFault { decoded: made, .. })) = &result;
    out.truncate(start.saturating_add(*made));
    result
}

/// As [`decode_frame`], over what `out` holds from `start` on: zeroing room that is written to anyway
/// costs a twelfth of checking a compressed store. Behind what was made are arbitrary bytes.
fn decode_frame_over(
    frame: &Frame<'_>,
    out: &mut Vec<u8>,
    start: usize,
    verify_crc: bool,
) -> Result<usize, FrameFault> {
    frame.check()?;
    let len = frame.decoded_len()?;
    let Some(stored) = frame.stored_crc() else {
        return Ok(0);
    };
    let data = frame.data()?;
    let end = start.saturating_add(len);
    if out.len() < end {
        out.resize(end, 0);
    }
    let dst = out.get_mut(start..end).unwrap_or_default();
    if frame.kind == FrameKind::Raw {
        dst.copy_from_slice(data);
    } else {
        block::decode_block_into(data, dst).map_err(|fault| FrameFault {
            offset: frame.at(8).saturating_add(fault.offset() as u64),
            decoded: fault.decoded(),
            kind: FrameFaultKind::Block(fault),
        })?;
    }
    if verify_crc {
        let computed = masked_crc(dst);
        if computed != stored {
            let kind = FrameFaultKind::Crc { stored, computed };
            return Err(FrameFault {
                offset: frame.at(4),
                decoded: len,
                kind,
            });
        }
    }
    Ok(len)
}

/// What came of decoding a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamReport {
    /// Data chunks seen, broken ones included.
    pub frames: u64,
    /// The first [`MAX_FAULTS`] faults.
    pub faults: Vec<FrameFault>,
    /// All faults, also those not kept.
    pub fault_count: u64,
    /// The input ends inside a chunk.
    pub truncated: bool,
    /// Bytes of input walked over: up to the end, the chunk that stopped the walk, or the torn one.
    pub consumed: u64,
}

impl StreamReport {
    /// True if the server's reader would take the stream.
    pub fn is_clean(&self) -> bool {
        self.fault_count == 0
    }

    fn fault(&mut self, fault: FrameFault) {
        self.fault_count = self.fault_count.saturating_add(1);
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        }
    }
}

/// Decodes a stream and appends it to `out`, which never grows over `ceiling` bytes.
///
/// Without `keep_going` the first fault ends it. With it, a broken chunk is filled up with zeros
/// to the length it claims, so that what follows keeps its offset, and the walk goes on; a chunk
/// whose claim can not be believed adds nothing. A broken chain of chunks, and the ceiling, end it
/// always. Of a torn last chunk what decodes is appended, without padding.
pub fn decode_stream(
    buf: &[u8],
    base: u64,
    out: &mut Vec<u8>,
    ceiling: usize,
    keep_going: bool,
) -> StreamReport {
    let start = out.len();
    decode_frames(Frames::new(buf, base), out, start, ceiling, keep_going)
}

/// As [`decode_stream`], for what is left of a walk, and over what `out` holds from `start` on.
pub fn decode_frames(
    frames: Frames<'_>,
    out: &mut Vec<u8>,
    start: usize,
    ceiling: usize,
    keep_going: bool,
) -> StreamReport {
    let mut end = start;
    let report = decode_over(frames, out, &mut end, ceiling, keep_going);
    out.truncate(end);
    report
}

/// Of `out` the bytes up to `end` count.
fn decode_over(
    mut frames: Frames<'_>,
    out: &mut Vec<u8>,
    end: &mut usize,
    ceiling: usize,
    keep_going: bool,
) -> StreamReport {
    let mut report = StreamReport::default();
    let limit =
        |frame: &Frame<'_>, snappy: bool, have: usize| -> Result<usize, (FrameFault, bool)> {
            let len = frame.decoded_len().map_err(|fault| (fault.into(), false))?;
            let too_large = |what, value: usize, ceiling: usize| {
                let kind = FaultKind::TooLarge {
                    what,
                    value: value as u64,
                    ceiling: ceiling as u64,
                };
                FrameFault::from(Fault::new(frame.offset, kind))
            };
            if snappy && len > MAX_SNAPPY_DECODED {
                let fault = too_large("Snappy chunk's decoded length", len, MAX_SNAPPY_DECODED);
                return Err((fault, false));
            }
            let total = have.saturating_add(len);
            if total > ceiling {
                return Err((
                    too_large("decoded length of the S2 stream", total, ceiling),
                    true,
                ));
            }
            Ok(len)
        };
    while let Some(next) = frames.next() {
        let torn = next.is_err().then(|| frames.torn()).flatten();
        let start = *end;
        match next {
            Ok(frame) if !frame.kind.is_data() => {}
            Ok(frame) => {
                report.frames = report.frames.saturating_add(1);
                let (fault, stop) = match limit(&frame, frames.is_snappy(), start) {
                    Ok(len) => match decode_frame_over(&frame, out, start, true) {
                        Ok(made) => {
                            *end = start.saturating_add(made);
                            report.consumed = frames.consumed();
                            continue;
                        }
                        Err(fault) => {
                            *end = start.saturating_add(fault.decoded);
                            if keep_going {
                                out.truncate(*end);
                                *end = start.saturating_add(len);
                                out.resize(*end, 0);
                            }
                            (fault, false)
                        }
                    },
                    Err(refused) => refused,
                };
                report.fault(fault);
                if stop || !keep_going {
                    return report;
                }
            }
            Err(fault) => {
                report.truncated = matches!(fault.kind, FaultKind::Truncated { .. });
                let mut fault = FrameFault::from(fault);
                if let Some(frame) = torn.filter(|frame| frame.kind.is_data()) {
                    report.frames = report.frames.saturating_add(1);
                    if limit(&frame, frames.is_snappy(), start).is_ok() {
                        fault.decoded = match decode_frame_over(&frame, out, start, false) {
                            Ok(n) => n,
                            Err(partial) => partial.decoded,
                        };
                        *end = start.saturating_add(fault.decoded);
                    }
                }
                report.fault(fault);
            }
        }
        report.consumed = frames.consumed();
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn chunk(kind: u8, body: &[u8]) -> Vec<u8> {
        let [a, b, c, _] = (body.len() as u32).to_le_bytes();
        [&[kind, a, b, c], body].concat()
    }

    fn raw_chunk(raw: &[u8]) -> Vec<u8> {
        chunk(1, &[&masked_crc(raw).to_le_bytes(), raw].concat())
    }

    fn packed_chunk(raw: &[u8]) -> Vec<u8> {
        chunk(
            0,
            &[
                masked_crc(raw).to_le_bytes().to_vec(),
                minlz::s2::encode(raw),
            ]
            .concat(),
        )
    }

    fn stream(chunks: &[Vec<u8>]) -> Vec<u8> {
        [MAGIC.to_vec(), chunks.concat()].concat()
    }

    fn strict(buf: &[u8]) -> (StreamReport, Vec<u8>) {
        for keep_going in [false, true] {
            // What lay there before must not show.
            let (mut fresh, mut over) = (b"kept".to_vec(), vec![0xee; 64 + buf.len() * 4]);
            over[..4].copy_from_slice(b"kept");
            let want = decode_stream(buf, 0, &mut fresh, 1 << 30, keep_going);
            let got = decode_frames(Frames::new(buf, 0), &mut over, 4, 1 << 30, keep_going);
            assert_eq!((got, over), (want, fresh));
        }
        let mut out = Vec::new();
        let report = decode_stream(buf, 0, &mut out, 1 << 30, false);
        (report, out)
    }

    fn only_fault(report: &StreamReport) -> FrameFault {
        assert_eq!(report.fault_count, 1, "{report:?}");
        report.faults[0].clone()
    }

    /// Streams of the reference writer in all its variants, with length and SHA-256 of what went in.
    #[test]
    fn reads_every_variant_of_the_reference_writer() {
        const PAGES: &str = "f34e016c45486295b25767a4d3d974ef1cc88163c720ffed6d952558f55060d4";
        const PAGES_300K: &str = "7858c6c2e50d9671b09814beb7055e7896a602be87b9225acfa7f90ad52e6de4";
        for (name, len, frames, sha) in [
            ("default", 1_200_000, 2, PAGES),
            ("better", 1_200_000, 2, PAGES),
            ("best", 1_200_000, 2, PAGES),
            ("64k", 300_000, 5, PAGES_300K),
            ("index", 300_000, 5, PAGES_300K),
            (
                "4m",
                4_500_000,
                2,
                "e376de6298a7663d69057f0976cbf064d4bdb8631d912bee5f7b0a571a0690c4",
            ),
            (
                "snappy",
                100_000,
                2,
                "8ba59f13da20cd9155f53a93acfcd4ec59d77dd4cd93a6f4d004a46d0d7700be",
            ),
            (
                "uncompressed",
                10_000,
                1,
                "8063a772c604d7cee3e9bb0da0559a789e95ba590bb3da03936e65605960426a",
            ),
            (
                "mixed",
                11_000,
                3,
                "f56bcdaad59ffd671c01b4ad097eec3f93c6e5cc86b5af9d49a5e90b69bad9b4",
            ),
            (
                "padding",
                5_000,
                1,
                "4729462cc61d9a6c20c67b0d874966f32eec86b65fb6694d54872b3b351221d0",
            ),
            (
                "tiny",
                1,
                1,
                "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
            ),
            (
                "empty",
                0,
                0,
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                "copyn",
                19_992,
                1,
                "d9e19f092919274b64851c620fd89f111cff00e5339ec0b41349a9da3fd470b0",
            ),
            (
                "concatenated",
                6_000,
                2,
                "fa5599658dbf6057ed1948668d66faf2970a11c0c01be8f1be59edd0bdf4183b",
            ),
        ] {
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/vectors/s2/");
            let buf = std::fs::read(format!("{dir}{name}.s2")).unwrap();
            let (report, out) = strict(&buf);
            assert!(report.is_clean() && !report.truncated, "{name}: {report:?}");
            assert_eq!(report.consumed, buf.len() as u64, "{name}");
            assert_eq!(report.frames, frames, "{name}");
            let hex: String = Sha256::digest(&out)
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            assert_eq!((out.len(), hex.as_str()), (len, sha), "{name}");

            // The table of chunks tells the same: contiguous, lengths as decoded.
            let (mut at, mut total) = (500, 0);
            for frame in Frames::new(&buf, 500) {
                let frame = frame.unwrap();
                assert_eq!(frame.offset, at);
                let header = buf[(at - 500) as usize..][..4].try_into().unwrap();
                let (kind, body) = parse_chunk_header(header);
                assert_eq!(
                    (FrameKind::of(kind), u64::from(body) + 4),
                    (frame.kind, frame.length())
                );
                at += frame.length();
                total += frame.decoded_len().unwrap();
            }
            assert_eq!((at - 500, total), (buf.len() as u64, len));
        }
    }

    #[test]
    fn the_checksum_is_the_one_of_the_reference_writer() {
        let buf = std::fs::read(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/fixtures/vectors/s2/tiny.s2"
        ))
        .unwrap();
        let frame = Frames::new(&buf, 0).nth(1).unwrap().unwrap();
        assert_eq!(
            (frame.kind, &frame.body[4..]),
            (FrameKind::Raw, b"x".as_slice())
        );
        assert_eq!(frame.stored_crc(), Some(masked_crc(b"x")));
    }

    #[test]
    fn endless_skippable_chunks_need_no_stack() {
        let one = [chunk(0xfe, b""), chunk(0x80, b"abc"), chunk(0xfd, b"")].concat();
        let mut buf = MAGIC.to_vec();
        for _ in 0..300_000 {
            buf.extend_from_slice(&one);
        }
        buf.extend(raw_chunk(b"end"));
        let decode = move || strict(&buf);
        let small = std::thread::Builder::new().stack_size(64 << 10);
        let (report, out) = small.spawn(decode).unwrap().join().unwrap();
        assert!(report.is_clean());
        assert_eq!((report.frames, out.as_slice()), (1, b"end".as_slice()));
    }

    #[test]
    fn what_the_server_refuses_is_a_fault() {
        let raw = b"some content, some content, some content";
        let good = packed_chunk(raw);
        let truncated = |need, have| FrameFaultKind::Frame(FaultKind::Truncated { need, have });
        let magic = FrameFaultKind::Frame(FaultKind::Magic {
            format: "S2 stream",
        });
        let n = good.len() as u64;
        let stray = |n: usize| [stream(std::slice::from_ref(&good)), vec![0; n]].concat();
        for (what, buf, offset, kind) in [
            ("no identifier", good.clone(), 0, magic.clone()),
            (
                "bare tar or gzip",
                b"\x1f\x8b\x08\x00\x00".to_vec(),
                0,
                magic.clone(),
            ),
            ("1 stray byte", stray(1), 10 + n, truncated(4, 1)),
            ("3 stray bytes", stray(3), 10 + n, truncated(4, 3)),
            ("only a byte", vec![0xff], 0, truncated(4, 1)),
            (
                "header only",
                [MAGIC.to_vec(), vec![1, 9, 0, 0]].concat(),
                10,
                truncated(13, 4),
            ),
            (
                "torn padding",
                stream(&[vec![0xfe, 9, 0, 0, 0]]),
                10,
                truncated(13, 5),
            ),
            (
                "bad magic later",
                stream(&[chunk(0xff, b"S2sTwo")]),
                10,
                magic.clone(),
            ),
            (
                "bad identifier length",
                stream(&[chunk(0xff, b"S2sTwO!")]),
                10,
                magic,
            ),
            (
                "no room for the checksum",
                stream(&[chunk(1, b"abc")]),
                14,
                truncated(4, 3),
            ),
            (
                "no block",
                stream(&[chunk(0, b"\x01\x02\x03\x04")]),
                18,
                FrameFaultKind::Frame(FaultKind::Invalid("S2 block length")),
            ),
        ] {
            let (report, _) = strict(&buf);
            let fault = only_fault(&report);
            assert_eq!((fault.offset, fault.kind), (offset, kind.clone()), "{what}");
            let torn = matches!(&kind, FrameFaultKind::Frame(FaultKind::Truncated { .. }));
            assert_eq!(
                report.truncated,
                torn && what != "no room for the checksum",
                "{what}"
            );
        }
        for kind in 0x02..=0x7f {
            let (report, out) = strict(&stream(&[good.clone(), chunk(kind, b""), good.clone()]));
            assert!(matches!(
                only_fault(&report).kind,
                FrameFaultKind::Frame(FaultKind::Invalid(_))
            ));
            assert_eq!((report.consumed, out.as_slice()), (10 + n, raw.as_slice()));
        }
        let mut frames = Frames::new(&[0xff, 6, 0], 7);
        assert_eq!(frames.next().unwrap().unwrap_err().offset, 7);
        assert!(frames.next().is_none());
        assert!(Frames::new(&[], 0).next().is_none());
        assert!(Frames::resume(&good, 0).next().unwrap().is_ok());
    }

    #[test]
    fn limits_of_a_chunk() {
        let too_large = |buf: &[u8]| {
            let kind = only_fault(&strict(buf).0).kind;
            matches!(kind, FrameFaultKind::Frame(FaultKind::TooLarge { .. }))
        };
        // The reference's longest encoding of 4 MiB is 4194312 bytes.
        assert_eq!(MAX_FRAME_BODY, 4_194_312 + 4);
        let full = vec![b'a'; MAX_FRAME_DECODED + 1];
        let exact = &full[..MAX_FRAME_DECODED];
        assert!(
            strict(&stream(&[packed_chunk(exact), raw_chunk(exact)]))
                .0
                .is_clean()
        );
        assert!(too_large(&stream(&[packed_chunk(&full)])));
        assert!(too_large(&stream(&[raw_chunk(&full)])));
        assert!(too_large(&stream(&[chunk(
            0,
            &vec![0; MAX_FRAME_BODY + 1]
        )])));
        assert!(!too_large(&stream(&[chunk(0, &vec![0; MAX_FRAME_BODY])])));

        let snappy = |chunks: &[Vec<u8>]| [chunk(0xff, b"sNaPpY"), chunks.concat()].concat();
        let small = &full[..MAX_SNAPPY_DECODED];
        assert!(
            strict(&snappy(&[packed_chunk(small), raw_chunk(small)]))
                .0
                .is_clean()
        );
        let over = &full[..=MAX_SNAPPY_DECODED];
        assert!(too_large(&snappy(&[packed_chunk(over)])));
        assert!(too_large(&snappy(&[raw_chunk(over)])));
        // A later S2 identifier lifts the limit.
        assert!(
            strict(&snappy(&[stream(&[packed_chunk(over)])]))
                .0
                .is_clean()
        );
    }

    #[test]
    fn a_bomb_stops_at_the_ceiling() {
        let bomb = packed_chunk(&vec![0; MAX_FRAME_DECODED]);
        assert!(bomb.len() < 30);
        // Lies: claims 4 MiB, has one byte.
        let liar = chunk(0, b"\0\0\0\0\x80\x80\x80\x02\x00a");
        for one in [bomb, liar] {
            let buf = stream(&vec![one; 10_000]);
            for keep_going in [false, true] {
                let mut out = vec![1; 100];
                let report = decode_stream(&buf, 0, &mut out, 20 << 20, keep_going);
                assert!(out.len() <= 20 << 20 && !report.is_clean());
                let last = report.faults.last().unwrap();
                let ceiling =
                    matches!(last.kind, FrameFaultKind::Frame(FaultKind::TooLarge { .. }));
                assert!(ceiling || !keep_going);
            }
        }
    }

    #[test]
    fn a_broken_chunk_keeps_the_place_of_the_others() {
        let a: Vec<u8> = (0..3000u32).flat_map(|i| (i / 5).to_le_bytes()).collect();
        let b: Vec<u8> = (0..2000u32).flat_map(|i| (i / 3).to_be_bytes()).collect();
        let (first, second, third) = (packed_chunk(&a), packed_chunk(&b), raw_chunk(&a));
        let at = (10 + first.len()) as u64;

        // A copy that reaches back too far, in the middle of the second chunk's block.
        let mut broken = second.clone();
        let (fault_at, good) = (100..broken.len())
            .find_map(|i| {
                broken[8 + i..][..3].copy_from_slice(&[0x02, 0xff, 0xff]);
                let mut out = Vec::new();
                let fault = block::decode_block(&broken[8..], &mut out, 1 << 20).err();
                let fault = fault.filter(|f| f.decoded() > 100 && b.starts_with(&out));
                broken.copy_from_slice(&second);
                fault.map(|f| (f.offset(), f.decoded()))
            })
            .unwrap();
        broken[8 + fault_at..][..3].copy_from_slice(&[0x02, 0xff, 0xff]);

        let mut flipped = second.clone();
        flipped[5] ^= 0x40;

        for (chunk, offset, decoded) in [
            (broken, at + 8 + fault_at as u64, good),
            (flipped, at + 4, b.len()),
        ] {
            let buf = stream(&[first.clone(), chunk, third.clone()]);
            let (report, out) = strict(&buf);
            let fault = only_fault(&report);
            assert_eq!(
                (fault.offset, fault.decoded, report.consumed),
                (offset, decoded, at)
            );
            assert_eq!(out, [&a, &b[..decoded]].concat());

            let mut out = Vec::new();
            let report = decode_stream(&buf, 0, &mut out, 1 << 30, true);
            assert_eq!(only_fault(&report), fault);
            assert_eq!((report.frames, report.consumed), (3, buf.len() as u64));
            assert_eq!(
                out,
                [&a, &b[..decoded], &vec![0; b.len() - decoded], &a].concat()
            );
        }
    }

    #[test]
    fn a_torn_stream_gives_what_is_there() {
        let a: Vec<u8> = (0..3000u32).flat_map(|i| (i / 5).to_le_bytes()).collect();
        let whole = stream(&[packed_chunk(&a), raw_chunk(&a), packed_chunk(&a)]);
        let all = a.repeat(3);
        for cut in 0..whole.len() {
            let (report, out) = strict(&whole[..cut]);
            assert!(all.starts_with(&out), "cut at {cut}");
            assert!(report.consumed <= cut as u64);
            if report.consumed == cut as u64 {
                assert!(report.is_clean() && out.len() % a.len() == 0);
            } else {
                assert!(report.truncated);
                let fault = only_fault(&report);
                assert_eq!(fault.offset, report.consumed);
                assert_eq!((out.len() - fault.decoded) % a.len(), 0);
            }
        }
        // Most of a chunk is worth most of its content.
        assert!(strict(&whole[..whole.len() - 20]).1.len() > all.len() - 1000);
    }

    #[test]
    fn faults_kept_are_bounded() {
        let mut bad = raw_chunk(b"abc");
        bad[4] ^= 1;
        let mut out = Vec::new();
        let report = decode_stream(&stream(&vec![bad; 1000]), 0, &mut out, 1 << 20, true);
        assert_eq!(
            (report.faults.len(), report.fault_count, out.len()),
            (MAX_FAULTS, 1000, 3000)
        );
        assert!(
            report.faults[0]
                .to_string()
                .contains("checksum does not match")
        );
        let frame = Frame {
            offset: 0,
            kind: FrameKind::Raw,
            body: b"\0\0\0\0abc",
        };
        assert_eq!(decode_frame(&frame, &mut Vec::new(), false), Ok(3));
        assert_eq!(
            decode_frame(&frame, &mut Vec::new(), true)
                .unwrap_err()
                .decoded,
            3
        );
    }
}
