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
//! | `00` | compressed | masked CRC-32C of the decoded bytes (u32 LE), one [block](super::block) |
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
    frame.check()?;
    let len = frame.decoded_len()?;
    let Some(stored) = frame.stored_crc() else {
        return Ok(0);
    };
    let data = frame.data()?;
    let start = out.len();
    if frame.kind == FrameKind::Raw {
        out.extend_from_slice(data);
    } else {
        block::decode_block(data, out, len).map_err(|fault| FrameFault {
            offset: frame.at(8).saturating_add(fault.offset() as u64),
            decoded: fault.decoded(),
            kind: FrameFaultKind::Block(fault),
        })?;
    }
    if verify_crc {
        let computed = masked_crc(out.get(start..).unwrap_or_default());
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
    let mut report = StreamReport::default();
    let mut frames = Frames::new(buf, base);
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
        match next {
            Ok(frame) if !frame.kind.is_data() => {}
            Ok(frame) => {
                report.frames = report.frames.saturating_add(1);
                let start = out.len();
                let (fault, stop) = match limit(&frame, frames.is_snappy(), start) {
                    Ok(len) => match decode_frame(&frame, out, true) {
                        Ok(_) => {
                            report.consumed = frames.consumed();
                            continue;
                        }
                        Err(fault) => {
                            if keep_going {
                                out.resize(start.saturating_add(len), 0);
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
                    if limit(&frame, frames.is_snappy(), out.len()).is_ok() {
                        fault.decoded = match decode_frame(&frame, out, false) {
                            Ok(n) => n,
                            Err(partial) => partial.decoded,
                        };
                    }
                }
                report.fault(fault);
            }
        }
        report.consumed = frames.consumed();
    }
    report
}
