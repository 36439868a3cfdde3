//! Finding the flipped bits of an S2-framed archive.
//!
//! Nothing but a frame's CRC-32C vouches for a correction here: it is taken only where no other bit, flipped,
//! gives the same checksum. The records of a tar archive prove themselves later.

use super::frames::{Frames, Patched, S2, pread};
use crate::format::mend::{Effort, Flip, s2};
use crate::format::s2::MAX_FRAME_BODY;
use crate::source::limit::{Input, Limit};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What was found out about an archive's frames.
#[derive(Debug, Default)]
pub struct MendedFrames {
    /// The flipped bits, for each frame.
    pub frames: Vec<Vec<Flip>>,
    /// Frames that could not be corrected.
    pub broken: u64,
    /// What the search has cost.
    pub spent: u64,
}

/// Searches the flipped bits in an archive's frames. Nothing for an archive that is not S2-framed.
pub fn mend(path: &Path, effort: &Effort<'_>) -> io::Result<MendedFrames> {
    mend_with(path, effort, None)
}

/// As [`mend`], read no faster than `limit` allows.
pub fn mend_with(
    path: &Path,
    effort: &Effort<'_>,
    limit: Option<Arc<Limit>>,
) -> io::Result<MendedFrames> {
    let mut out = MendedFrames::default();
    let file = crate::source::dir::open_read_only(&std::fs::canonicalize(path)?)?;
    let file = Input::new(file, limit);
    let len = file.size()?;
    let mut head = [0; S2.len()];
    let n = pread(&file, 0, &mut head)?;
    let identifier: Vec<Flip> = head
        .iter()
        .zip(S2)
        .enumerate()
        .flat_map(|(i, (a, b))| {
            let wrong = a ^ b;
            (0..8u8)
                .filter(move |bit| (wrong >> bit) & 1 == 1)
                .map(move |bit| Flip {
                    offset: i as u64,
                    bit,
                })
        })
        .collect();
    // A file that is no S2 stream at all differs in some forty bits.
    if n < S2.len() || identifier.len() > 8 {
        return Ok(out);
    }
    if !identifier.is_empty() {
        out.frames.push(identifier.clone());
    }
    let frames = Frames::open(Patched::new(file, &identifier), len)?;
    let mut bytes = Vec::new();
    for at in frames.damaged()? {
        let room = len.saturating_sub(at).min(2 * MAX_FRAME_BODY as u64 + 8);
        bytes.resize(usize::try_from(room).unwrap_or(0), 0);
        let n = frames.raw(at, &mut bytes)?;
        bytes.truncate(n);
        let share = Effort {
            bytes: effort.bytes.saturating_sub(out.spent),
            ..*effort
        };
        let (mended, _, tried) = s2::mend(&bytes, at, &|_| s2::Verdict::default(), &share);
        out.spent = out.spent.saturating_add(tried.spent);
        match mended {
            Some(m) => out.frames.push(m.flips),
            None => out.broken += 1,
        }
    }
    Ok(out)
}
