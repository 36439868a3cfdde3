//! A gzip file, which can only be read from its start. Going back takes up the decoder as it was somewhere before.

use super::frames::pread;
use crate::source::limit::{Input, Limit};
use flate2::bufread::GzDecoder;
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush, MZStatus};
use std::fmt;
use std::io::{self, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};

/// Reads a file by offset, so that the handle has no position to share.
#[derive(Debug)]
struct At {
    file: Arc<Input>,
    at: u64,
}

impl Read for At {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = pread(&self.file, self.at, buf)?;
        self.at = self.at.saturating_add(n as u64);
        Ok(n)
    }
}

#[derive(Debug)]
struct State {
    decoder: GzDecoder<BufReader<At>>,
    at: u64,
    end: Option<End>,
    back: Option<Back>,
}

/// Where the decoded bytes end, and why there if not by the format's own end.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) at: u64,
    /// The file ends early.
    pub(super) cut: bool,
    /// What is wrong.
    pub(super) fault: Option<String>,
    /// Bytes in the file after the end.
    pub(super) trailing: bool,
}

/// A gzip file.
#[derive(Debug)]
pub(super) struct Gzip {
    file: Arc<Input>,
    state: Mutex<State>,
}

fn start(file: &Arc<Input>) -> GzDecoder<BufReader<At>> {
    GzDecoder::new(BufReader::with_capacity(
        64 << 10,
        At {
            file: file.clone(),
            at: 0,
        },
    ))
}

impl Gzip {
    pub(super) fn new(file: Input) -> Self {
        let file = Arc::new(file);
        let state = State {
            decoder: start(&file),
            at: 0,
            end: None,
            back: None,
        };
        Self {
            file,
            state: Mutex::new(state),
        }
    }

    /// Reads decoded bytes; fewer than `out` only at the end.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if offset < state.at {
            if let Some(n) = state.again(&self.file, offset, out)? {
                return Ok(n);
            }
            state.decoder = start(&self.file);
            state.at = 0;
        }
        let mut skipped = [0; 16 << 10];
        loop {
            let left = usize::try_from(offset.saturating_sub(state.at)).unwrap_or(usize::MAX);
            let n = left.min(skipped.len());
            let Some(skip) = skipped.get_mut(..n).filter(|s| !s.is_empty()) else {
                break;
            };
            if state.fill(skip)? < n {
                return Ok(0);
            }
        }
        state.fill(out)
    }

    /// What reading it is limited by.
    pub(super) fn limit(&self) -> Option<Arc<Limit>> {
        self.file.limit()
    }

    /// Decoded length, once the end was read.
    pub(super) fn end(&self) -> Option<u64> {
        self.ending().map(|e| e.at)
    }

    /// How it ends, once that was read.
    pub(super) fn ending(&self) -> Option<End> {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .end
            .clone()
    }
}

impl State {
    /// Reads what was decoded before. `None` where that gives less than it did then, because of damage.
    fn again(
        &mut self,
        file: &Arc<Input>,
        offset: u64,
        out: &mut [u8],
    ) -> io::Result<Option<usize>> {
        let left = match &self.end {
            Some(end) => end.at.saturating_sub(offset),
            None => u64::MAX,
        };
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        let out = out.get_mut(..want).unwrap_or_default();
        if self.back.is_none() {
            self.back = Back::new(file);
        }
        let Some(back) = &mut self.back else {
            return Ok(None);
        };
        let done = back.read(offset, out)?;
        Ok(Some(done).filter(|n| *n == want))
    }

    fn fill(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut done = 0usize;
        while let Some(rest) = out.get_mut(done..).filter(|r| !r.is_empty()) {
            // The decoder does not go on after a fault.
            if self.end.as_ref().is_some_and(|e| e.at <= self.at) {
                break;
            }
            let (cut, fault) = match self.decoder.read(rest) {
                Ok(0) => (false, None),
                Ok(n) => {
                    done = done.saturating_add(n);
                    self.at = self.at.saturating_add(n as u64);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => (true, None),
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
                    ) || e.get_ref().is_some() =>
                {
                    (false, Some(e.to_string()))
                }
                Err(e) => return Err(e),
            };
            let trailing = !cut && fault.is_none() && {
                let inner = self.decoder.get_mut();
                io::BufRead::fill_buf(inner).is_ok_and(|rest| !rest.is_empty())
            };
            self.end = Some(End {
                at: self.at,
                cut,
                fault,
                trailing,
            });
        }
        Ok(done)
    }
}

/// A decoder at work.
#[derive(Clone)]
struct Place {
    decoder: Box<InflateState>,
    /// Bytes decoded so far.
    at: u64,
    /// Where in the file it goes on.
    read: u64,
}

/// What decodes again what was decoded before, from the nearest of the places that it has kept: a stream's blocks are
/// read from the last to the first, and from the start for each of them would be for ever.
struct Back {
    file: Arc<Input>,
    now: Place,
    /// In ascending order; the first is the start.
    kept: Vec<Place>,
    /// Decoded bytes between two of them.
    spacing: u64,
    input: Vec<u8>,
    /// Where in the file `input` begins.
    input_at: u64,
}

impl fmt::Debug for Back {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Back")
            .field("at", &self.now.at)
            .field("kept", &self.kept.len())
            .finish_non_exhaustive()
    }
}

impl Back {
    const SPACING: u64 = 4 << 20;
    /// Places kept, of 43 kB each. One more, and every other is given up.
    const MOST: usize = if cfg!(test) { 3 } else { 1024 };
    const INPUT: usize = 64 << 10;
    /// Decoded at a time, so that there is a chance to keep a place.
    const STEP: usize = 256 << 10;

    /// `None` where the file has no sound header.
    fn new(file: &Arc<Input>) -> Option<Self> {
        let decoder = start(file);
        decoder.header()?;
        let reader = decoder.get_ref();
        let first = Place {
            decoder: InflateState::new_boxed(DataFormat::Raw),
            at: 0,
            read: reader
                .get_ref()
                .at
                .saturating_sub(reader.buffer().len() as u64),
        };
        Some(Self {
            file: file.clone(),
            now: first.clone(),
            kept: vec![first],
            spacing: Self::SPACING,
            input: Vec::new(),
            input_at: 0,
        })
    }

    /// Fewer bytes than `out` has room for at the end, and where the file does not decode.
    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let nearest = self.kept.iter().rev().find(|p| p.at <= offset);
        if let Some(place) = nearest
            && (offset < self.now.at || place.at > self.now.at)
        {
            self.now = place.clone();
        }
        let mut skipped = vec![0; Self::STEP];
        while self.now.at < offset {
            let left = usize::try_from(offset.saturating_sub(self.now.at)).unwrap_or(usize::MAX);
            let skip = skipped.get_mut(..left.min(Self::STEP)).unwrap_or_default();
            if self.fill(skip)? < skip.len() {
                return Ok(0);
            }
        }
        let mut done = 0usize;
        for piece in out.chunks_mut(Self::STEP) {
            let n = self.fill(piece)?;
            done = done.saturating_add(n);
            if n < piece.len() {
                break;
            }
        }
        Ok(done)
    }

    fn fill(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let last = self.kept.last().map_or(0, |p| p.at);
        if self.now.at >= last.saturating_add(self.spacing) {
            self.kept.push(self.now.clone());
            if self.kept.len() > Self::MOST {
                let mut keep = false;
                self.kept.retain(|_| {
                    keep = !keep;
                    keep
                });
                self.spacing = self.spacing.saturating_mul(2);
            }
        }
        let mut done = 0usize;
        while let Some(rest) = out.get_mut(done..).filter(|r| !r.is_empty()) {
            let held = self.input_at..self.input_at.saturating_add(self.input.len() as u64);
            if !held.contains(&self.now.read) {
                self.input.resize(Self::INPUT, 0);
                let n = pread(&self.file, self.now.read, &mut self.input)?;
                self.input.truncate(n);
                self.input_at = self.now.read;
            }
            let at =
                usize::try_from(self.now.read.saturating_sub(self.input_at)).unwrap_or(usize::MAX);
            let input = self.input.get(at..).unwrap_or_default();
            let result = inflate(&mut self.now.decoder, input, rest, MZFlush::None);
            self.now.read = self.now.read.saturating_add(result.bytes_consumed as u64);
            self.now.at = self.now.at.saturating_add(result.bytes_written as u64);
            done = done.saturating_add(result.bytes_written);
            let is_stuck = result.bytes_consumed == 0 && result.bytes_written == 0;
            if is_stuck || result.status != Ok(MZStatus::Ok) {
                break;
            }
        }
        Ok(done)
    }
}
