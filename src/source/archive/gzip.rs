//! A gzip file, which can only be read from its start: going back begins again.

use super::frames::pread;
use crate::source::limit::{Input, Limit};
use flate2::bufread::GzDecoder;
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
