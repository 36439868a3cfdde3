//! Random access to what an S2-framed file holds, without decoding all of it.
//!
//! Every frame (at most 4 MiB, 1 MiB from a server) can be decoded by itself. Opening reads only
//! the frame headers and remembers where frames begin; a read decodes the frames it touches. The
//! table is thinned when it grows: between two remembered frames headers are walked again, so
//! memory is bounded for a file of any number of frames.
//!
//! Damage stays local. A frame that does not decode, or whose checksum is wrong, is reported and
//! its bytes are what could be decoded, then zeros. Where a frame's *header* is damaged the next
//! frame that proves itself is searched, and what lies between is one such frame.

use super::MAX_FINDINGS;
use crate::finding::{Code, Finding};
use crate::format::mend::Flip;
use crate::format::s2::{self, FrameKind};
use crate::source::limit::{Input, Limit};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// What a server's writer puts in a frame: all frames but the last are this long.
const USUAL_BLOCK: u32 = 1 << 20;
/// Frames remembered at most (16 bytes each).
const MAX_ANCHORS: usize = 1 << 20;
/// Decoded frames kept.
const CACHED: usize = 3;
/// Frames this small are not worth keeping.
const CACHE_FROM: u32 = 4 << 10;
/// Header read ahead, where frames are small and where they are not.
const FAR: usize = 32 << 10;
const NEAR: usize = 32;

/// Bytes that tell what a frame is: kind and length, checksum, and the block's own length.
const HEADER: usize = 13;

/// What a frame is, by its first bytes.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A compressed block of so many bytes.
    Compressed(u32),
    /// So many bytes as they are.
    Plain(u32),
    /// Nothing of the content.
    Other,
}

#[derive(Debug, Clone, Copy)]
struct Header {
    kind: Kind,
    /// Bytes after the first four.
    body: u32,
}

enum HeaderFault {
    /// The file ends in it.
    Cut,
    Bad(&'static str),
}

/// Reads a frame's header from its first [`HEADER`] bytes; `None` if there are no bytes.
fn header(bytes: &[u8]) -> Result<Option<Header>, HeaderFault> {
    let Some((head, rest)) = bytes.split_first_chunk::<{ s2::CHUNK_HEADER }>() else {
        return if bytes.is_empty() {
            Ok(None)
        } else {
            Err(HeaderFault::Cut)
        };
    };
    let (kind, body) = s2::parse_chunk_header(*head);
    let bad = HeaderFault::Bad;
    let kind = match FrameKind::of(kind) {
        FrameKind::Compressed | FrameKind::Raw if body as usize > s2::MAX_FRAME_BODY => {
            return Err(bad("an impossible length"));
        }
        FrameKind::Compressed if body < 5 => return Err(bad("an impossible length")),
        FrameKind::Compressed => match rest.get(4..).and_then(claim) {
            Some(decoded) => Kind::Compressed(decoded),
            None if bytes.len() < HEADER => return Err(HeaderFault::Cut),
            None => return Err(bad("an impossible block length")),
        },
        FrameKind::Raw => match body.checked_sub(4) {
            Some(n) if n as usize <= s2::MAX_FRAME_DECODED => Kind::Plain(n),
            _ => return Err(bad("an impossible length")),
        },
        FrameKind::Reserved(_) => return Err(bad("an unknown kind")),
        FrameKind::Identifier => {
            if body != 6 || !(rest.starts_with(b"S2sTwO") || rest.starts_with(b"sNaPpY")) {
                return Err(bad("an identifier that is not one of S2"));
            }
            Kind::Other
        }
        FrameKind::Padding | FrameKind::Skippable(_) => Kind::Other,
    };
    Ok(Some(Header { kind, body }))
}

/// What a block says it decodes to, unless no frame decodes to so much.
fn claim(block: &[u8]) -> Option<u32> {
    let (len, _) = s2::block::claimed_len(block).ok()?;
    (len as usize <= s2::MAX_FRAME_DECODED).then_some(len)
}

/// Decodes a block into `out`; what it does not give is zeros.
fn decode_block(block: &[u8], out: &mut [u8]) -> Result<(), String> {
    let (given, result) = match s2::decode_block_into(block, out) {
        Ok(n) if n == out.len() => return Ok(()),
        Ok(n) => (n, format!("it decodes to {n} bytes")),
        Err(fault) => (fault.decoded(), fault.to_string()),
    };
    if let Some(rest) = out.get_mut(given..) {
        rest.fill(0);
    }
    Err(result)
}

/// A file that reads with some of its bits the other way round.
#[derive(Debug)]
pub(super) struct Patched {
    file: Input,
    wrong: BTreeMap<u64, u8>,
}

impl Patched {
    /// The file with these bits put right.
    pub(super) fn new(file: Input, flips: &[Flip]) -> Self {
        let mut wrong = BTreeMap::new();
        for f in flips {
            *wrong.entry(f.offset).or_default() ^= 1 << (f.bit & 7);
        }
        Self { file, wrong }
    }
}

/// What can be read at any place.
pub(super) trait ReadAt {
    /// Reads some bytes at `at`.
    fn read_some(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
}

impl ReadAt for Input {
    fn read_some(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.read_at(buf, at)
    }
}

impl ReadAt for Arc<Input> {
    fn read_some(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.read_at(buf, at)
    }
}

impl ReadAt for Patched {
    fn read_some(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let n = self.file.read_at(buf, at)?;
        for (offset, wrong) in self.wrong.range(at..at.saturating_add(n as u64)) {
            let i = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX);
            if let Some(byte) = buf.get_mut(i) {
                *byte ^= wrong;
            }
        }
        Ok(n)
    }
}

/// Reads up to `buf.len()` bytes at `at`; fewer only at the end of the file.
pub(super) fn pread(file: &impl ReadAt, at: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0usize;
    while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
        match file.read_some(rest, at.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(n) => done = done.saturating_add(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// A few bytes of a file, read ahead.
#[derive(Debug, Default)]
struct Window {
    at: u64,
    buf: Vec<u8>,
}

impl Window {
    /// Up to `want` bytes at `at`, of which `ahead` are read if they are not here yet.
    fn get(&mut self, file: &Patched, at: u64, want: usize, ahead: usize) -> io::Result<&[u8]> {
        let have = at
            .checked_sub(self.at)
            .and_then(|skip| usize::try_from(skip).ok());
        let have = have.filter(|skip| self.buf.len().saturating_sub(*skip) >= want);
        let start = match have {
            Some(skip) => skip,
            None => {
                self.buf.resize(want.max(ahead), 0);
                let n = pread(file, at, &mut self.buf)?;
                self.buf.truncate(n);
                self.at = at;
                0
            }
        };
        let rest = self.buf.get(start..).unwrap_or_default();
        Ok(rest.get(..want).unwrap_or(rest))
    }
}

/// A frame whose header cannot be believed.
#[derive(Debug, Clone, Copy)]
struct Hole {
    /// Where the next frame begins.
    next: u64,
    /// Decoded bytes assumed for it.
    decoded: u32,
    compressed: bool,
}

/// One data frame.
#[derive(Debug, Clone, Copy)]
struct Frame {
    at: u64,
    end: u64,
    decoded_at: u64,
    decoded: u32,
    compressed: bool,
    hole: bool,
}

enum Step {
    Data(Frame),
    /// Padding, an index, an identifier: `end` is where it ends.
    Other,
    End,
    /// It runs past the end of the file.
    Cut(Frame),
    Bad(&'static str),
}

struct Walker<'a> {
    frames: &'a Frames,
    window: Window,
    at: u64,
    decoded_at: u64,
    ahead: usize,
}

impl Walker<'_> {
    fn step(&mut self) -> io::Result<Step> {
        let (at, decoded_at, len) = (self.at, self.decoded_at, self.frames.len);
        if let Some(hole) = self.frames.holes.get(&at) {
            let frame = Frame {
                at,
                end: hole.next,
                decoded_at,
                decoded: hole.decoded,
                compressed: hole.compressed,
                hole: true,
            };
            return Ok(self.pass(frame));
        }
        let bytes = self.window.get(&self.frames.file, at, HEADER, self.ahead)?;
        let parsed = match header(bytes) {
            Ok(Some(h)) => h,
            Ok(None) => return Ok(Step::End),
            Err(HeaderFault::Cut) => {
                let frame = Frame {
                    at,
                    end: len,
                    decoded_at,
                    decoded: 0,
                    compressed: true,
                    hole: false,
                };
                return Ok(Step::Cut(frame));
            }
            Err(HeaderFault::Bad(why)) => return Ok(Step::Bad(why)),
        };
        let end = at.saturating_add(4).saturating_add(u64::from(parsed.body));
        let (decoded, compressed) = match parsed.kind {
            Kind::Compressed(n) => (n, true),
            Kind::Plain(n) => (n, false),
            Kind::Other => (0, true),
        };
        let frame = Frame {
            at,
            end,
            decoded_at,
            decoded,
            compressed,
            hole: false,
        };
        if end > len {
            return Ok(Step::Cut(frame));
        }
        if matches!(parsed.kind, Kind::Other) {
            self.advance(end);
            return Ok(Step::Other);
        }
        Ok(self.pass(frame))
    }

    fn advance(&mut self, end: u64) {
        self.ahead = if end.saturating_sub(self.at) > FAR as u64 {
            NEAR
        } else {
            FAR
        };
        self.at = end;
    }

    fn pass(&mut self, frame: Frame) -> Step {
        self.advance(frame.end);
        self.decoded_at = self.decoded_at.saturating_add(u64::from(frame.decoded));
        Step::Data(frame)
    }

    /// The next frame with data. Opening has walked here before, so anything else is the end.
    fn data(&mut self) -> io::Result<Option<Frame>> {
        loop {
            match self.step()? {
                Step::Data(frame) => return Ok(Some(frame)),
                Step::Other => {}
                Step::End | Step::Cut(_) | Step::Bad(_) => return Ok(None),
            }
        }
    }
}

/// A decoded frame and what was wrong with it.
#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    fault: Option<String>,
}

thread_local! {
    /// The frame as it is in the file.
    static BODY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// An S2-framed file.
#[derive(Debug)]
pub(super) struct Frames {
    file: Patched,
    len: u64,
    /// Where some frames begin: in the file, decoded.
    anchors: Vec<(u64, u64)>,
    /// One in so many frames is in `anchors`.
    stride: u64,
    decoded: u64,
    holes: BTreeMap<u64, Hole>,
    usual: u32,
    /// How many more candidates a search may decode: keeps hostile files from taking days.
    trials: u32,
    cache: Mutex<Vec<(u64, Arc<Block>)>>,
    /// What is wrong with the frames' headers.
    pub(super) findings: Vec<Finding>,
}

impl Frames {
    fn empty(file: Patched, len: u64) -> Self {
        Self {
            file,
            len,
            anchors: Vec::new(),
            stride: 1,
            decoded: 0,
            holes: BTreeMap::new(),
            usual: USUAL_BLOCK,
            trials: 10_000,
            cache: Mutex::default(),
            findings: Vec::new(),
        }
    }

    /// Walks the frame headers.
    pub(super) fn open(file: Patched, len: u64) -> io::Result<Self> {
        let mut frames = Self::empty(file, len);
        let mut head = [0; S2.len()];
        pread(&frames.file, 0, &mut head)?;
        if !is_framed(&head) {
            let detail = "the S2 identifier at the start is damaged";
            frames
                .findings
                .push(Finding::new(Code::ArchiveDamaged, detail).offset(0));
            frames.holes.insert(
                0,
                Hole {
                    next: head.len() as u64,
                    decoded: 0,
                    compressed: true,
                },
            );
        }
        let mut doubts = MAX_FINDINGS;
        // The last frame with data: if what follows makes no sense, its length may be wrong.
        let mut last: Option<Frame> = None;
        let (mut at, mut decoded_at, mut count) = (0u64, 0u64, 0u64);
        // Each turn walks until something is wrong, which is then a hole to walk over.
        loop {
            let mut anchors = std::mem::take(&mut frames.anchors);
            let mut stride = frames.stride;
            let mut walker = frames.walker(at, decoded_at);
            let stopped = loop {
                let before = (walker.at, walker.decoded_at);
                match walker.step()? {
                    Step::Data(f) => {
                        // A length that is not the usual one: damage would shift all that follows.
                        if f.decoded != walker.frames.usual && !f.hole && f.end < len && doubts > 0
                        {
                            doubts = doubts.saturating_sub(1);
                            if !walker.frames.proves(&f) {
                                (walker.at, walker.decoded_at) = before;
                                break Step::Bad("its kind or length cannot be right");
                            }
                        }
                        if f.decoded == 0 {
                            continue;
                        }
                        if count.is_multiple_of(stride) {
                            if anchors.len() >= MAX_ANCHORS {
                                stride = stride.saturating_mul(2);
                                let mut keep = false;
                                anchors.retain(|_| {
                                    keep = !keep;
                                    keep
                                });
                            }
                            if count.is_multiple_of(stride) {
                                anchors.push((f.at, f.decoded_at));
                            }
                        }
                        count = count.saturating_add(1);
                        last = Some(f);
                    }
                    Step::Other => {
                        if doubts > 0 && walker.frames.is_hidden(before.0, walker.at)? {
                            doubts = doubts.saturating_sub(1);
                            (walker.at, walker.decoded_at) = before;
                            break Step::Bad("its kind is damaged");
                        }
                    }
                    stop => break stop,
                }
            };
            (at, decoded_at) = (walker.at, walker.decoded_at);
            frames.anchors = anchors;
            frames.stride = stride;
            frames.decoded = decoded_at;
            if count > 0 && frames.usual == USUAL_BLOCK {
                frames.usual = frames.first_block()?;
            }
            let (why, cut) = match stopped {
                Step::Cut(frame) => ("it runs past the end of the file", Some(frame)),
                Step::Bad(why) => (why, None),
                Step::End | Step::Data(_) | Step::Other => return Ok(frames),
            };
            let (stopped_at, stopped_decoded) = (at, decoded_at);
            if let Some(f) = last.take().filter(|f| !f.hole) {
                if frames.proves(&f) {
                    (at, decoded_at) = (f.end, f.decoded_at.saturating_add(u64::from(f.decoded)));
                } else {
                    (at, decoded_at) = (f.at, f.decoded_at);
                    count = count.saturating_sub(1);
                    frames.anchors.pop_if(|(a, _)| *a == f.at);
                }
            }
            let next = if frames.holes.len() < MAX_FINDINGS {
                frames.search(at)?
            } else {
                None
            };
            let Some(next) = next else {
                frames.stop(stopped_at, stopped_decoded, why, cut)?;
                return Ok(frames);
            };
            frames.decoded = decoded_at;
            let (decoded, proven) = frames.hole_len(at, next)?;
            frames.holes.insert(
                at,
                Hole {
                    next,
                    decoded,
                    compressed: true,
                },
            );
            let detail = if proven {
                format!("S2 frame header: {why}; the frame's content is proven all the same")
            } else {
                let skipped = next.saturating_sub(at);
                format!(
                    "S2 frame header: {why}; reading goes on {skipped} bytes later, {decoded} decoded bytes are taken for lost"
                )
            };
            frames
                .findings
                .push(Finding::new(Code::ArchiveDamaged, detail).offset(at));
        }
    }

    fn walker(&self, at: u64, decoded_at: u64) -> Walker<'_> {
        Walker {
            frames: self,
            window: Window::default(),
            at,
            decoded_at,
            ahead: FAR,
        }
    }

    fn walker_at(&self, offset: u64) -> Walker<'_> {
        let after = self
            .anchors
            .partition_point(|(_, decoded_at)| *decoded_at <= offset);
        let (at, decoded_at) = after
            .checked_sub(1)
            .and_then(|i| self.anchors.get(i))
            .copied()
            .unwrap_or_default();
        let mut walker = self.walker(at, decoded_at);
        if self.stride == 1 {
            walker.ahead = NEAR;
        }
        walker
    }

    /// Whether a frame decodes and matches its checksum.
    fn proves(&self, frame: &Frame) -> bool {
        let mut bytes = vec![0; frame.decoded as usize];
        self.decode(frame, &mut bytes).is_none()
    }

    /// Whether what calls itself padding or the like is a frame with data.
    fn is_hidden(&self, at: u64, end: u64) -> io::Result<bool> {
        let size = end.saturating_sub(at);
        if size < 12 || size > s2::MAX_FRAME_BODY as u64 {
            return Ok(false);
        }
        let mut head = [0; HEADER];
        let n = pread(&self.file, at, &mut head)?;
        let claim = claim(head.get(8..n).unwrap_or_default()).unwrap_or(0);
        if claim != self.usual && size.saturating_sub(8) != u64::from(self.usual) && end != self.len
        {
            return Ok(false);
        }
        Ok(self.hole_len(at, end)?.1)
    }

    /// Length of the first frame where that is proven and another one follows.
    fn first_block(&self) -> io::Result<u32> {
        let mut walker = self.walker_at(0);
        let Some(frame) = walker.data()?.filter(|f| f.end < self.len && f.decoded > 0) else {
            return Ok(USUAL_BLOCK);
        };
        Ok(if self.proves(&frame) {
            frame.decoded
        } else {
            USUAL_BLOCK
        })
    }

    /// Nothing that can be read follows `at`.
    fn stop(&mut self, at: u64, decoded_at: u64, why: &str, cut: Option<Frame>) -> io::Result<()> {
        let Some(frame) = cut else {
            self.findings.push(
                Finding::new(
                    Code::ArchiveDamaged,
                    format!("S2 frame header: {why}; nothing after it can be read"),
                )
                .offset(at),
            );
            return Ok(());
        };
        self.findings.push(
            Finding::new(Code::ArchiveTruncated, "the file ends within an S2 frame").offset(at),
        );
        // What is there of the last frame: no checksum proves it, but records may prove themselves.
        let mut body = vec![
            0;
            usize::try_from(self.len.saturating_sub(at))
                .unwrap_or(0)
                .min(s2::MAX_FRAME_BODY)
        ];
        let n = pread(&self.file, at, &mut body)?;
        body.truncate(n);
        let mut out = vec![0; frame.decoded as usize];
        let kept = match (frame.compressed, body.get(8..)) {
            (true, Some(body)) => match s2::decode_block_into(body, &mut out) {
                Ok(n) => n,
                Err(fault) => fault.decoded(),
            },
            (false, Some(body)) => body.len().min(out.len()),
            (_, None) => 0,
        };
        let kept = u32::try_from(kept).unwrap_or(0);
        if kept > 0 {
            self.holes.insert(
                at,
                Hole {
                    next: self.len,
                    decoded: kept,
                    compressed: frame.compressed,
                },
            );
            self.anchors.push((at, decoded_at));
            self.decoded = decoded_at.saturating_add(u64::from(kept));
        }
        Ok(())
    }

    /// Searches the first frame after `from` that proves itself.
    fn search(&mut self, from: u64) -> io::Result<Option<u64>> {
        let mut window = Window::default();
        let mut next = Window::default();
        let mut at = from.saturating_add(1);
        while at.saturating_add(8) < self.len {
            let here = window.get(&self.file, at, HEADER, 256 << 10)?;
            let candidate = match header(here) {
                Ok(Some(h)) => {
                    let end = at.saturating_add(4).saturating_add(u64::from(h.body));
                    let decoded = match h.kind {
                        Kind::Compressed(n) | Kind::Plain(n) => n,
                        Kind::Other => 0,
                    };
                    let likely = decoded == self.usual || end == self.len;
                    (likely && decoded > 0 && end <= self.len).then_some((h, end, decoded))
                }
                _ => None,
            };
            if let Some((h, end, decoded)) = candidate {
                let follows = next.get(&self.file, end, HEADER, NEAR)?;
                if header(follows).is_ok() {
                    let compressed = matches!(h.kind, Kind::Compressed(_));
                    let frame = Frame {
                        at,
                        end,
                        decoded_at: 0,
                        decoded,
                        compressed,
                        hole: false,
                    };
                    let Some(left) = self.trials.checked_sub(1) else {
                        return Ok(None);
                    };
                    self.trials = left;
                    if self.proves(&frame) {
                        return Ok(Some(at));
                    }
                }
            }
            at = at.saturating_add(1);
        }
        Ok(None)
    }

    /// How many decoded bytes lie between a damaged frame header and the next good one: exact
    /// where only the header is damaged.
    fn hole_len(&self, at: u64, next: u64) -> io::Result<(u32, bool)> {
        let body = next.saturating_sub(at);
        if body < 12 {
            return Ok((0, false));
        }
        let mut bytes = vec![0; s2::MAX_FRAME_DECODED];
        let claim = {
            let mut head = [0; HEADER];
            let n = pread(&self.file, at, &mut head)?;
            claim(head.get(8..n).unwrap_or_default()).unwrap_or(0)
        };
        for decoded in [
            claim,
            u32::try_from(body.saturating_sub(8)).unwrap_or(u32::MAX),
        ] {
            let frame = Frame {
                at,
                end: next,
                decoded_at: 0,
                decoded,
                compressed: true,
                hole: true,
            };
            if let Some(out) = bytes.get_mut(..decoded as usize)
                && self.decode(&frame, out).is_none()
            {
                return Ok((decoded, true));
            }
        }
        // Several frames may be gone: as many as have room, by what frames took so far.
        let (frames, taken) = (self.decoded / u64::from(self.usual).max(1), at);
        let each = taken.checked_div(frames).unwrap_or(0).max(1);
        let lost = if frames == 0 {
            1
        } else {
            (body.saturating_add(each / 2) / each).max(1)
        };
        let lost = lost.saturating_mul(u64::from(self.usual));
        Ok((u32::try_from(lost).unwrap_or(self.usual), false))
    }

    /// Decodes a frame into `out`, which is as long as it claims to be. What could not be decoded
    /// is zeros; the fault says why.
    fn decode(&self, frame: &Frame, out: &mut [u8]) -> Option<String> {
        let size = frame.end.saturating_sub(frame.at).saturating_sub(4);
        let size = usize::try_from(size)
            .unwrap_or(usize::MAX)
            .min(s2::MAX_FRAME_BODY);
        BODY.with_borrow_mut(|body| {
            body.resize(size, 0);
            match pread(&self.file, frame.at.saturating_add(4), body) {
                Ok(n) => body.truncate(n),
                Err(e) => {
                    out.fill(0);
                    return Some(format!("cannot be read: {e}"));
                }
            }
            let Some((crc, body)) = body.split_first_chunk::<4>() else {
                out.fill(0);
                return Some("it is gone: the file is shorter than before".to_owned());
            };
            let crc = u32::from_le_bytes(*crc);
            // The kind may be what is damaged.
            if frame.hole && body.len() == out.len() && s2::masked_crc(body) == crc {
                out.copy_from_slice(body);
                return None;
            }
            if frame.compressed {
                if let Err(why) = decode_block(body, out) {
                    return Some(why);
                }
            } else {
                let n = body.len().min(out.len());
                if let (Some(dst), Some(src)) = (out.get_mut(..n), body.get(..n)) {
                    dst.copy_from_slice(src);
                }
                if let Some(rest) = out.get_mut(n..) {
                    rest.fill(0);
                }
            }
            (s2::masked_crc(out) != crc).then(|| "its checksum does not match".to_owned())
        })
    }

    fn cached(&self, frame: &Frame) -> Arc<Block> {
        let find = |cache: &mut Vec<(u64, Arc<Block>)>| {
            let i = cache.iter().position(|(at, _)| *at == frame.at)?;
            let hit = cache.remove(i);
            let found = hit.1.clone();
            cache.push(hit);
            Some(found)
        };
        let lock = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if frame.decoded >= CACHE_FROM
            && let Some(block) = find(&mut lock())
        {
            return block;
        }
        let mut bytes = vec![0; frame.decoded as usize];
        let fault = self.decode(frame, &mut bytes);
        let block = Arc::new(Block { bytes, fault });
        if frame.decoded >= CACHE_FROM {
            let mut cache = lock();
            if cache.len() >= CACHED {
                cache.remove(0);
            }
            cache.push((frame.at, block.clone()));
        }
        block
    }

    /// Decoded length.
    pub(super) fn decoded(&self) -> u64 {
        self.decoded
    }

    /// Reads decoded bytes; fewer than `out` only at the end. `fault` gets the decoded range of
    /// bytes that are not proven.
    pub(super) fn read(
        &self,
        offset: u64,
        out: &mut [u8],
        fault: &mut dyn FnMut(Range<u64>, String),
    ) -> io::Result<usize> {
        let left = usize::try_from(self.decoded.saturating_sub(offset)).unwrap_or(usize::MAX);
        let want = out.len().min(left);
        let mut walker = self.walker_at(offset);
        let mut done = 0usize;
        while done < want {
            let Some(frame) = walker.data()? else { break };
            let at = offset.saturating_add(done as u64);
            let end = frame.decoded_at.saturating_add(u64::from(frame.decoded));
            if end <= at {
                continue;
            }
            let skip = usize::try_from(at.saturating_sub(frame.decoded_at)).unwrap_or(usize::MAX);
            let n = usize::try_from(end.saturating_sub(at))
                .unwrap_or(usize::MAX)
                .min(want.saturating_sub(done));
            let Some(dst) = out.get_mut(done..done.saturating_add(n)) else {
                break;
            };
            let why = if frame.decoded as usize > s2::MAX_FRAME_DECODED {
                dst.fill(0);
                Some("lost".to_owned())
            } else if n == frame.decoded as usize {
                self.decode(&frame, dst)
            } else {
                let block = self.cached(&frame);
                if let Some(src) = block.bytes.get(skip..skip.saturating_add(n)) {
                    dst.copy_from_slice(src);
                }
                block.fault.clone()
            };
            if let Some(why) = why {
                let range = at..at.saturating_add(n as u64);
                fault(
                    range,
                    format!("the archive's S2 frame at {}: {why}", frame.at),
                );
            }
            done = done.saturating_add(n);
        }
        Ok(done)
    }

    /// Where a read that begins at `offset` best ends: at the end of a frame.
    pub(super) fn segment_end(&self, offset: u64) -> u64 {
        let from = offset.saturating_add(u64::from(USUAL_BLOCK / 2));
        let next = self
            .anchors
            .partition_point(|(_, decoded_at)| *decoded_at < from);
        let end = self
            .anchors
            .get(next)
            .map_or(self.decoded, |(_, decoded_at)| *decoded_at);
        end.min(offset.saturating_add(s2::MAX_FRAME_DECODED as u64))
    }

    /// The place in the file of the frame that holds a decoded offset.
    pub(super) fn frame_at(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let mut walker = self.walker_at(offset);
        while let Some(frame) = walker.data()? {
            if frame.decoded_at.saturating_add(u64::from(frame.decoded)) > offset {
                return Ok(Some((frame.at, frame.end)));
            }
        }
        Ok(None)
    }

    /// Where the frames begin that do not decode to what their checksum says.
    pub(super) fn damaged(&self) -> io::Result<Vec<u64>> {
        let mut walker = self.walker(0, 0);
        let (mut found, mut bytes) = (Vec::new(), Vec::new());
        while let Some(frame) = walker.data()? {
            bytes.resize(frame.decoded as usize, 0);
            // Of a hole, the header at least is wrong.
            if frame.hole || self.decode(&frame, &mut bytes).is_some() {
                found.push(frame.at);
            }
        }
        Ok(found)
    }

    /// Reads bytes of the file.
    pub(super) fn raw(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        pread(&self.file, at, buf)
    }

    /// What reading it is limited by.
    pub(super) fn limit(&self) -> Option<Arc<Limit>> {
        self.file.file.limit()
    }

    /// Length of the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }
}

pub(super) const S2: &[u8] = b"\xff\x06\0\0S2sTwO";
const SNAPPY: &[u8] = b"\xff\x06\0\0sNaPpY";

/// Whether a file with these first bytes is S2-framed.
pub(super) fn is_framed(head: &[u8]) -> bool {
    head.starts_with(S2) || head.starts_with(SNAPPY)
}

/// Whether this is all there is of an S2-framed file.
pub(super) fn is_cut_identifier(file: &[u8]) -> bool {
    S2.starts_with(file) || SNAPPY.starts_with(file)
}

/// Whether a file is S2-framed but for its first bytes: a frame that proves itself follows them.
pub(super) fn lost_identifier(file: Input, len: u64, head: &[u8]) -> io::Result<bool> {
    let at = S2.len() as u64;
    let Ok(Some(h)) = header(head.get(S2.len()..).unwrap_or_default()) else {
        return Ok(false);
    };
    let end = at.saturating_add(4).saturating_add(u64::from(h.body));
    let (decoded, compressed) = match h.kind {
        Kind::Compressed(n) => (n, true),
        Kind::Plain(n) => (n, false),
        Kind::Other => return Ok(false),
    };
    if end > len || decoded == 0 {
        return Ok(false);
    }
    let frame = Frame {
        at,
        end,
        decoded_at: 0,
        decoded,
        compressed,
        hole: false,
    };
    Ok(Frames::empty(Patched::new(file, &[]), len).proves(&frame))
}
