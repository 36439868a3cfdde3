//! Writing files that are synced in the end anyway past the page cache, where the file system allows it.
//!
//! A backup or a restore writes gigabytes that nobody reads soon. Through the page cache each byte is copied once
//! more, pushes something useful out, and still has to be waited for; measured on a virtual machine, that costs more
//! than everything else together.

use super::SinkError;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::mpsc::{channel, sync_channel};

/// Offsets, lengths and addresses of direct writes are multiples of this.
const ALIGN: usize = 4096;
/// One write.
const PIECE: usize = 4 << 20;
/// Files below this go through the page cache: many small direct writes are slow.
const SMALL: usize = 256 << 10;

/// A buffer that begins where a direct write can.
#[derive(Debug)]
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Default for Aligned {
    fn default() -> Self {
        let bytes = vec![0; PIECE + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN);
        Self {
            // Never happens; an unaligned write is then refused and done again through the page cache.
            start: if start < ALIGN { start } else { 0 },
            bytes,
            len: 0,
        }
    }
}

impl Aligned {
    /// Takes as much of `from` as fits; gives the rest.
    fn fill<'b>(&mut self, from: &'b [u8]) -> &'b [u8] {
        let (taken, rest) = from.split_at(from.len().min(PIECE - self.len));
        let at = self.start + self.len;
        if let Some(to) = self.bytes.get_mut(at..at + taken.len()) {
            to.copy_from_slice(taken);
        }
        self.len += taken.len();
        rest
    }

    fn is_full(&self) -> bool {
        self.len == PIECE
    }

    /// What is in it, and zeros up to a multiple of [`ALIGN`].
    fn padded(&mut self) -> &[u8] {
        let (from, to) = (
            self.start + self.len,
            self.start + self.len.next_multiple_of(ALIGN),
        );
        if let Some(rest) = self.bytes.get_mut(from..to) {
            rest.fill(0);
        }
        self.bytes.get(self.start..to).unwrap_or_default()
    }
}

/// A new file, and whether it is written directly.
struct Output {
    file: File,
    direct: bool,
}

#[cfg(target_os = "linux")]
const DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits() as i32;

impl Output {
    fn create(path: &Path, mode: u32, direct: bool) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode);
        #[cfg(target_os = "linux")]
        if direct {
            match options.clone().custom_flags(DIRECT).open(path) {
                Ok(file) => return Ok(Self { file, direct: true }),
                // Not on this file system; it may have made the file all the same.
                Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                    let _ = std::fs::remove_file(path);
                }
                Err(e) => return Err(e),
            }
        }
        let _ = direct;
        Ok(Self {
            file: options.open(path)?,
            direct: false,
        })
    }

    fn write(&mut self, piece: &mut Aligned, offset: u64) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if self.direct {
            match self.file.write_all_at(piece.padded(), offset) {
                Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
                    let flags = fcntl_getfl(&self.file)?;
                    fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
                    self.direct = false;
                }
                done => return done,
            }
        }
        let (from, to) = (piece.start, piece.start + piece.len);
        self.file
            .write_all_at(piece.bytes.get(from..to).unwrap_or_default(), offset)
    }

    /// Cuts off the padding and waits for the disk.
    fn finish(&self, len: u64) -> io::Result<()> {
        if self.direct {
            self.file.set_len(len)?;
        }
        self.file.sync_all()
    }
}

/// Writes a whole new file, by way of `buffer`. Large ones are on the disk then; small ones have to be synced.
pub fn write_file(path: &Path, mode: u32, bytes: &[u8], buffer: &mut Aligned) -> io::Result<()> {
    let mut out = Output::create(path, mode, bytes.len() >= SMALL)?;
    if !out.direct {
        out.file.write_all_at(bytes, 0)?;
        return if bytes.len() >= SMALL {
            out.file.sync_data()
        } else {
            Ok(())
        };
    }
    let (mut rest, mut offset) = (bytes, 0u64);
    while !rest.is_empty() {
        buffer.len = 0;
        rest = buffer.fill(rest);
        out.write(buffer, offset)?;
        offset = offset.saturating_add(buffer.len as u64);
    }
    out.finish(bytes.len() as u64)
}

/// Appends to the file that is being written.
pub type Append<'a> = dyn FnMut(&[u8]) -> Result<(), SinkError> + 'a;

/// Makes a new file of what `body` appends, which goes on while the disk writes. Synced at the end.
pub fn write_stream<R>(
    path: &Path,
    mode: u32,
    body: impl FnOnce(&mut Append<'_>) -> Result<R, SinkError>,
) -> Result<R, SinkError> {
    let mut out = Output::create(path, mode, true).map_err(SinkError::io(path))?;
    std::thread::scope(|scope| {
        let (full, queue) = sync_channel::<Aligned>(1);
        let (give_back, free) = channel::<Aligned>();
        let writing = scope.spawn(move || -> io::Result<()> {
            let mut offset = 0u64;
            for mut piece in queue {
                out.write(&mut piece, offset)?;
                offset = offset.saturating_add(piece.len as u64);
                piece.len = 0;
                let _ = give_back.send(piece);
            }
            out.finish(offset)
        });
        let (mut piece, mut made) = (Aligned::default(), 1);
        let mut broken = false;
        let result = body(&mut |bytes| {
            let mut rest = bytes;
            while !rest.is_empty() && !broken {
                rest = piece.fill(rest);
                if piece.is_full() {
                    let next = if made < 3 {
                        made += 1;
                        Aligned::default()
                    } else {
                        // The writer's end is gone where it has failed: told when it is joined.
                        match free.recv() {
                            Ok(next) => next,
                            Err(_) => {
                                broken = true;
                                break;
                            }
                        }
                    };
                    broken |= full.send(std::mem::replace(&mut piece, next)).is_err();
                }
            }
            if broken {
                Err(SinkError::Format("the file could not be written".into()))
            } else {
                Ok(())
            }
        });
        if result.is_ok() && piece.len > 0 {
            let _ = full.send(piece);
        }
        drop(full);
        // What the disk says comes first: it is the reason where both failed.
        match writing.join() {
            Ok(Err(e)) => Err(SinkError::io(path)(e)),
            _ => result,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_written_as_it_is() {
        // Both on a file system with direct writes and, where there is one, on one without.
        for dir in [std::env::temp_dir(), "/dev/shm".into(), "target".into()] {
            let Ok(dir) = tempfile::tempdir_in(dir) else {
                continue;
            };
            let mut buffer = Aligned::default();
            let lengths = [
                0,
                1,
                4095,
                4096,
                SMALL - 1,
                SMALL,
                SMALL + 1,
                PIECE,
                PIECE + 1,
                2 * PIECE + 5000,
            ];
            for (i, len) in lengths.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
                let path = dir.path().join(format!("file{i}"));
                write_file(&path, 0o640, &bytes, &mut buffer).unwrap();
                assert!(std::fs::read(&path).unwrap() == bytes, "{len}");
                write_file(&path, 0o640, &bytes, &mut buffer).unwrap_err();
                for cut in [1000, 70_000, PIECE * 2] {
                    let path = dir.path().join(format!("stream{i}-{cut}"));
                    let done = write_stream(&path, 0o600, |append| {
                        for piece in bytes.chunks(cut) {
                            append(piece)?;
                        }
                        Ok(7)
                    });
                    assert_eq!(done.unwrap(), 7);
                    assert!(std::fs::read(&path).unwrap() == bytes, "{len} {cut}");
                }
            }
        }
    }

    #[test]
    fn a_full_disk_is_told() {
        let full = Path::new("/dev/full");
        if !full.exists() {
            return;
        }
        // A device cannot be made anew, so this is about the error's way only.
        let e = write_stream(full, 0o600, |append| append(b"x")).unwrap_err();
        assert!(e.to_string().contains("/dev/full"), "{e}");
    }
}
