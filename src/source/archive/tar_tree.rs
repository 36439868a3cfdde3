//! A tar archive as a tree of files.
//!
//! Opening reads the headers only and makes a table of the members; reading a member then takes
//! what it needs from the container, so members of an S2-framed or plain tar can be read in any
//! order and by several threads.

use super::{Container, MAX_FINDINGS, Notes};
use crate::finding::{Code, Finding, Severity};
use crate::format::tar;
use crate::source::limit::Limit;
use crate::source::tree::{Child, ChildKind, ReadError, ReadFault, Tree};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Bound;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::Arc;

const BLOCK: u64 = tar::BLOCK as u64;
/// Members beyond these are not looked at.
const MAX_MEMBERS: usize = 600_000;
const MAX_NAMES: usize = 32 << 20;
const MAX_HEADERS: u64 = 4_000_000;
/// No stream's files have longer or deeper names.
const MAX_NAME: usize = 4096;
const MAX_DEPTH: usize = 16;
/// Go's reader refuses longer extended headers too.
const MAX_EXTENDED: u64 = 1 << 20;
const MAX_META: u64 = 8 << 20;
const MAX_ERRORS_TEXT: usize = 2048;
/// A member is not longer than this and so many times the archive: real ones are far below, and one
/// that is longer is a bomb.
const MEMBER_BASE: u64 = 128 << 20;
const MEMBER_RATIO: u64 = 64;
/// Read ahead for headers.
const AHEAD: u64 = 32 << 10;

#[derive(Debug, Clone, Copy)]
struct Member {
    at: u64,
    size: u64,
    modified: i64,
}

/// The members of a tar archive.
#[derive(Debug)]
pub struct TarTree {
    container: Container,
    members: Members,
    findings: Vec<Finding>,
    name: Option<String>,
}

/// Reads headers: small pieces in ascending order.
struct Headers<'a> {
    container: &'a Container,
    at: u64,
    buf: Vec<u8>,
    proven: bool,
    /// Why not, until that was reported.
    fault: Option<String>,
}

impl Headers<'_> {
    fn load(&mut self, at: u64, len: u64) -> io::Result<()> {
        self.fault = None;
        self.buf.resize(usize::try_from(len).unwrap_or(0), 0);
        let fault = &mut self.fault;
        let n = self
            .container
            .read(at, &mut self.buf, &mut |_, why| *fault = Some(why))?;
        self.buf.truncate(n);
        (self.at, self.proven) = (at, self.fault.is_none());
        Ok(())
    }

    /// The block at `at`, unless the archive ends before its end; and whether it is proven.
    fn block(&mut self, at: u64) -> io::Result<Option<([u8; tar::BLOCK], bool)>> {
        let inside = at >= self.at
            && at.saturating_add(BLOCK) <= self.at.saturating_add(self.buf.len() as u64);
        if !inside || !self.proven {
            let ahead = self
                .container
                .segment_end(at)
                .saturating_sub(at)
                .clamp(BLOCK, AHEAD);
            self.load(at, ahead)?;
            if !self.proven {
                self.load(at, BLOCK)?;
            }
        }
        let from = usize::try_from(at.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let block = self.buf.get(from..).and_then(|rest| rest.first_chunk());
        Ok(block.map(|b| (*b, self.proven)))
    }
}

/// Makes the table of members.
struct Index<'a> {
    container: &'a Container,
    members: Members,
    names: usize,
    notes: Notes,
}

/// How the walk through the headers ended.
enum End {
    /// With the end marker, which ends here.
    At(u64),
    /// Without it.
    Missing,
    /// Before the end: it went on too long.
    GaveUp,
}

/// What extended headers say about the next member.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<i64>,
    sparse: bool,
    any: bool,
}

fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let short: String = text
        .chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(200).is_some() {
        format!("{short}…")
    } else {
        short
    }
}

fn padded(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(BLOCK)
}

/// Names that a server gives to members.
fn is_usual(name: &[u8]) -> bool {
    matches!(name, b"meta.inf" | b"meta.sum" | b"errors.txt")
        || name.starts_with(b"msgs/")
        || name.starts_with(b"obs/")
}

impl Index<'_> {
    fn member_note(&mut self, kind: &'static str, severity: Severity, name: &[u8], at: u64) {
        let container = self.container;
        self.notes.add(kind, || {
            let finding = Finding::new(Code::ArchiveMember, format!("{kind}: {}", shown(name)));
            let finding = match severity {
                Severity::Error => finding,
                s => finding.severity(s).action("see detail"),
            };
            container.locate(finding, at)
        });
    }

    /// The name as it would be relative to the stream's directory; reports the ones refused.
    fn clean(&mut self, raw: &[u8], at: u64) -> Option<Vec<u8>> {
        let refuse = |index: &mut Self, why| {
            index.member_note(why, Severity::Error, raw, at);
            None
        };
        if raw.contains(&0) {
            return refuse(self, "a name with a NUL byte");
        }
        if raw.len() > MAX_NAME {
            return refuse(self, "a name longer than any file's");
        }
        let mut name = raw.to_vec();
        if name.starts_with(b"obs\\") || name.starts_with(b"msgs\\") {
            name.iter_mut()
                .filter(|c| **c == b'\\')
                .for_each(|c| *c = b'/');
            self.member_note(
                "a name with backslashes, made by a server on Windows: restored anywhere else, the consumers are lost",
                Severity::Warning,
                raw,
                at,
            );
        } else if name.starts_with(b"/") {
            self.member_note(
                "an absolute name, taken as relative (servers do the same)",
                Severity::Warning,
                raw,
                at,
            );
        }
        let mut clean: Vec<u8> = Vec::with_capacity(name.len());
        let mut depth = 0usize;
        for part in name.split(|c| *c == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return refuse(self, "a name with \"..\""),
                _ => {}
            }
            if depth > 0 {
                clean.push(b'/');
            }
            clean.extend_from_slice(part);
            depth = depth.saturating_add(1);
        }
        if clean.is_empty() {
            return refuse(self, "a name of nothing");
        }
        if depth > MAX_DEPTH {
            return refuse(self, "a name with too many directories");
        }
        Some(clean)
    }

    fn add(&mut self, raw: &[u8], member: Member, at: u64) -> bool {
        let Some(name) = self.clean(raw, at) else {
            return true;
        };
        let ends = |i: usize| name.get(..i).unwrap_or_default();
        let mut above = name
            .iter()
            .enumerate()
            .filter(|(_, c)| **c == b'/')
            .map(|(i, _)| i);
        if below(&self.members, &prefix(&name)).is_some()
            || above.any(|i| self.members.contains_key(ends(i)))
        {
            self.member_note(
                "a file and a directory of the same name",
                Severity::Error,
                raw,
                at,
            );
            return true;
        }
        self.names = self.names.saturating_add(name.len());
        if self.members.len() >= MAX_MEMBERS || self.names > MAX_NAMES {
            return false;
        }
        if self.members.insert(name.into(), member).is_some() {
            self.member_note(
                "a second member of the same name; the last is used",
                Severity::Error,
                raw,
                at,
            );
        }
        true
    }

    /// Reads the body of an extended header.
    fn body(&mut self, at: u64, size: u64) -> io::Result<Option<Vec<u8>>> {
        if size > MAX_EXTENDED {
            let container = self.container;
            self.notes.add("an extended header", || {
                let detail = format!("an extended header of {size} bytes, over the ceiling of {MAX_EXTENDED}; not read");
                container.locate(Finding::new(Code::ArchiveMember, detail), at)
            });
            return Ok(None);
        }
        let mut body = vec![0; usize::try_from(size).unwrap_or(0)];
        let n = self.container.read(at, &mut body, &mut |_, _| {})?;
        body.truncate(n);
        Ok(Some(body))
    }

    fn damaged(&mut self, at: u64, detail: &str) {
        let container = self.container;
        self.notes.add("tar", || {
            container.locate(
                Finding::new(
                    Code::ArchiveDamaged,
                    format!("{detail} (at {at} of the tar)"),
                ),
                at,
            )
        });
    }

    /// Walks the archive.
    fn walk(&mut self, file_len: u64) -> io::Result<End> {
        let mut headers = Headers {
            container: self.container,
            at: 0,
            buf: Vec::new(),
            proven: true,
            fault: None,
        };
        let mut at = 0u64;
        let mut walked = 0u64;
        let mut ext = Extended::default();
        let mut searching = false;
        // What a search may read: enough for any archive, not for a bomb.
        let mut search_left = file_len.saturating_mul(32).max(1 << 30);
        // Where a row of zero blocks began.
        let mut zeros: Option<u64> = None;
        let mut reported: Option<String> = None;
        loop {
            let block = headers.block(at)?;
            if let Some(why) = headers.fault.take()
                && reported.as_ref() != Some(&why)
            {
                self.damaged(at, &why);
                reported = Some(why);
            }
            let Some((block, proven)) = block else {
                // After damage the marker need not be where a header was expected.
                let ended = zeros.filter(|from| at.saturating_sub(*from) >= 2 * BLOCK);
                return Ok(
                    ended.map_or(End::Missing, |from| End::At(from.saturating_add(2 * BLOCK)))
                );
            };
            if block.iter().all(|b| *b == 0) {
                let from = *zeros.get_or_insert(at);
                at = at.saturating_add(BLOCK);
                if !proven && !searching {
                    self.damaged(at, "damaged where a header belongs; searching the next one");
                    searching = true;
                    ext = Extended::default();
                }
                if searching {
                    if !proven {
                        zeros = None;
                    }
                    match search_left.checked_sub(BLOCK) {
                        Some(left) => search_left = left,
                        None => return Ok(End::GaveUp),
                    }
                } else if at.saturating_sub(from) >= 2 * BLOCK {
                    return Ok(End::At(at));
                }
                continue;
            }
            let header = tar::header(&block);
            if zeros.take().is_some() && !searching {
                self.damaged(at, "a single block of zeros, which ends the archive for a server, and more after it");
            }
            let header = header.filter(|h| {
                let name = h.name.strip_prefix(b"./").unwrap_or(&h.name);
                !searching || matches!(h.kind, b'x' | b'L') || is_usual(name)
            });
            let Some(header) = header else {
                if !searching {
                    self.damaged(at, "not a tar header; searching the next one");
                    searching = true;
                    ext = Extended::default();
                }
                at = at.saturating_add(BLOCK);
                match search_left.checked_sub(BLOCK) {
                    Some(left) => search_left = left,
                    None => return Ok(End::GaveUp),
                }
                continue;
            };
            searching = false;
            walked = walked.saturating_add(1);
            let data = at.saturating_add(BLOCK);
            let size = match header.kind {
                b'x' | b'L' | b'K' | b'g' => header.size,
                _ => ext.size.unwrap_or(header.size),
            };
            let Some(next) = padded(size).and_then(|n| data.checked_add(n)) else {
                self.damaged(at, "a size that no archive has");
                ext = Extended::default();
                at = data;
                searching = true;
                continue;
            };
            match header.kind {
                b'x' | b'L' => {
                    ext.any = true;
                    if let Some(body) = self.body(data, size)? {
                        if header.kind == b'L' {
                            ext.path = body.split(|c| *c == 0).next().map(<[u8]>::to_vec);
                        } else if let Some(pax) = tar::pax(&body) {
                            ext.path = pax.path.or(ext.path);
                            ext.size = pax.size.or(ext.size);
                            ext.modified = pax.modified.or(ext.modified);
                            ext.sparse |= pax.sparse;
                        } else {
                            self.damaged(at, "an extended header that does not parse");
                        }
                    }
                }
                b'K' => ext.any = true,
                kind => {
                    let ext = std::mem::take(&mut ext);
                    let name = ext.path.unwrap_or(header.name);
                    let refused = match kind {
                        b'0' | 0 if ext.sparse => Some("a sparse file"),
                        b'0' | 0 if name.ends_with(b"/") => Some("a directory"),
                        b'0' | 0 => None,
                        b'1' => Some("a hard link"),
                        b'2' => Some("a symbolic link"),
                        b'3' | b'4' | b'6' => Some("a device or pipe"),
                        b'5' => Some("a directory"),
                        b'g' => Some("a global extended header"),
                        b'S' => Some("a sparse file"),
                        _ => Some("a member of an unknown kind"),
                    };
                    let member = Member {
                        at: data,
                        size,
                        modified: ext.modified.unwrap_or(header.modified),
                    };
                    if let Some(why) = refused {
                        self.member_note(why, Severity::Error, &name, at);
                    } else if !self.add(&name, member, at) {
                        return Ok(self.too_many());
                    }
                }
            }
            if walked >= MAX_HEADERS {
                return Ok(self.too_many());
            }
            at = next;
        }
    }

    fn too_many(&mut self) -> End {
        self.notes.add("members", || {
            Finding::new(
                Code::TooLarge,
                "more members than any stream has; the rest was not looked at",
            )
        });
        End::GaveUp
    }

    /// Cuts the member that runs past the end.
    fn cut(&mut self, end: u64) {
        // Members that begin earlier end earlier, unless a header lied.
        for member in self.members.values_mut() {
            let have = end.saturating_sub(member.at);
            member.size = member.size.min(have);
        }
    }

    /// What comes after the end marker.
    fn after(&mut self, end: u64) -> io::Result<()> {
        let mut rest = vec![0; 64 << 10];
        let n = self.container.read(end, &mut rest, &mut |_, _| {})?;
        let junk = rest.iter().take(n).position(|b| *b != 0);
        let trailing = |detail: String, at: Option<u64>| {
            let f = Finding::new(Code::ArchiveTrailing, detail);
            at.into_iter().fold(f, Finding::offset)
        };
        if let Container::S2(frames) = self.container
            && let Some((_, frame_end)) = frames.frame_at(end.saturating_sub(1))?
            && frame_end < frames.len()
        {
            let more = frames.len().saturating_sub(frame_end);
            let detail = format!("{more} bytes after the S2 frame in which the tar ends");
            self.notes
                .add("after the end", || trailing(detail, Some(frame_end)));
        } else if let Some(i) = junk {
            // Zeros are padding: most programs pad a tar to 10 KiB.
            let at = end.saturating_add(i as u64);
            let finding = trailing(
                "bytes after the end of the tar".to_owned(),
                self.container.place(at),
            )
            .severity(Severity::Note)
            .action("servers pass over them");
            self.notes.add("after the end", || finding);
        }
        Ok(())
    }

    fn gzip_end(&mut self, from: u64) -> io::Result<()> {
        let Container::Gzip(gzip) = self.container else {
            return Ok(());
        };
        // The checksum is at the very end.
        let mut buf = vec![0; 64 << 10];
        let mut at = from;
        while gzip.end().is_none() && at.saturating_sub(from) < 1 << 30 {
            at = at.saturating_add(gzip.read(at, &mut buf)? as u64);
        }
        let Some(end) = gzip.ending() else {
            self.notes.add("after the end", || {
                Finding::new(
                    Code::ArchiveTrailing,
                    "more than 1 GiB after the end of the tar",
                )
            });
            return Ok(());
        };
        if end.cut {
            self.notes.add("gzip", || {
                Finding::new(Code::ArchiveTruncated, "the gzip stream is cut off")
            });
        }
        if let Some(why) = end.fault {
            self.notes.add("gzip", || {
                Finding::new(Code::ArchiveDamaged, format!("gzip: {why}"))
            });
        }
        if end.trailing {
            self.notes.add("after the end", || {
                Finding::new(
                    Code::ArchiveTrailing,
                    "bytes after the end of the gzip stream",
                )
            });
        }
        Ok(())
    }
}

type Members = BTreeMap<Box<[u8]>, Member>;

/// What the names below a directory begin with.
fn prefix(dir: &[u8]) -> Vec<u8> {
    let mut prefix = dir.to_vec();
    if !prefix.is_empty() {
        prefix.push(b'/');
    }
    prefix
}

/// The first member whose name begins with `prefix`.
fn below<'a>(members: &'a Members, prefix: &[u8]) -> Option<(&'a [u8], &'a Member)> {
    let (name, member) = members
        .range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
        .next()?;
    name.starts_with(prefix).then_some((name, member))
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl TarTree {
    pub(super) fn open(container: Container, file_len: u64) -> io::Result<Self> {
        let mut index = Index {
            container: &container,
            members: BTreeMap::new(),
            names: 0,
            notes: Notes::default(),
        };
        let end = index.walk(file_len)?;
        match end {
            End::At(end) => {
                index.after(end)?;
                index.gzip_end(end)?;
            }
            End::GaveUp => {}
            End::Missing => {
                index.gzip_end(0)?;
                index.notes.add("end", || {
                    Finding::new(
                        Code::ArchiveTruncated,
                        "the tar has no end marker: the backup was interrupted",
                    )
                });
            }
        }
        if let Some(end) = index.container.end() {
            index.cut(end);
        }
        let Index { members, notes, .. } = index;
        let mut findings = match &container {
            Container::S2(frames) => frames.findings.clone(),
            Container::Plain { .. } => vec![Finding::new(
                Code::RestoreHint,
                "a plain tar: servers restore it only within an S2 stream (restore it with jetsam, or make a backup of it)",
            )],
            Container::Gzip(_) => vec![Finding::new(
                Code::RestoreHint,
                "a gzip archive, as previews made them in 2020: no released server restores it (restore it with jetsam, or make a backup of it)",
            )],
        };
        findings.extend(notes.into_findings());
        let mut tree = Self {
            container,
            members,
            findings,
            name: None,
        };
        tree.look_inside();
        Ok(tree)
    }

    fn look_inside(&mut self) {
        let mut buf = Vec::new();
        if let Ok(faults) = self.read_into(Path::new("errors.txt"), &mut buf, 1 << 20) {
            buf.truncate(MAX_ERRORS_TEXT);
            let text = String::from_utf8_lossy(&buf);
            let doubt = if faults.is_empty() { "" } else { " (damaged)" };
            let detail = format!("errors.txt{doubt}: {}", text.trim().escape_debug());
            self.findings
                .push(Finding::new(Code::ArchiveErrors, detail));
        } else if self.members.contains_key(b"errors.txt".as_slice()) {
            self.findings.push(Finding::new(
                Code::ArchiveErrors,
                "errors.txt, which cannot be read",
            ));
        }
        if self
            .read_into(Path::new("meta.inf"), &mut buf, MAX_META)
            .is_ok()
        {
            #[derive(serde::Deserialize)]
            struct Meta {
                name: String,
            }
            self.name = serde_json::from_slice::<Meta>(&buf)
                .ok()
                .map(|m| m.name)
                .filter(|n| !n.is_empty());
        }
    }

    /// The stream's name, by the `meta.inf` in the archive.
    pub fn stream_name(&self) -> Option<String> {
        self.name.clone()
    }

    /// What is wrong with the archive's structure. Damage of members shows when they are read.
    pub fn findings(&self) -> Vec<Finding> {
        self.findings.clone()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn into_container(self) -> Container {
        self.container
    }

    fn member(&self, path: &Path) -> io::Result<Member> {
        self.members
            .get(path.as_os_str().as_bytes())
            .copied()
            .ok_or_else(not_found)
    }
}

fn file_child(name: &[u8], member: &Member) -> Child {
    Child {
        name: OsString::from_vec(name.to_vec()),
        kind: ChildKind::File,
        len: member.size,
        modified: member.modified,
    }
}

fn dir_child(name: &[u8]) -> Child {
    Child {
        name: OsString::from_vec(name.to_vec()),
        kind: ChildKind::Dir,
        len: 0,
        modified: 0,
    }
}

impl Tree for TarTree {
    fn children(&self, dir: &Path) -> io::Result<Vec<Child>> {
        let prefix = prefix(dir.as_os_str().as_bytes());
        let mut out = Vec::new();
        let mut from = prefix.clone();
        // Each turn takes one name: a directory's members are skipped at once.
        while let Some((name, member)) = self
            .members
            .range::<[u8], _>((Bound::Included(from.as_slice()), Bound::Unbounded))
            .next()
            .filter(|(name, _)| name.starts_with(&prefix))
        {
            let rest = name.get(prefix.len()..).unwrap_or_default();
            from.clear();
            match rest.iter().position(|c| *c == b'/') {
                Some(end) => {
                    let part = rest.get(..end).unwrap_or_default();
                    out.push(dir_child(part));
                    from.extend_from_slice(&prefix);
                    from.extend_from_slice(part);
                    // The byte after the slash.
                    from.push(b'/' + 1);
                }
                None => {
                    out.push(file_child(rest, member));
                    from.extend_from_slice(name);
                    from.push(0);
                }
            }
        }
        if out.is_empty() && !prefix.is_empty() {
            return Err(not_found());
        }
        out.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    fn stat(&self, path: &Path) -> io::Result<Child> {
        let name = path.as_os_str().as_bytes();
        let last = path.file_name().unwrap_or(OsStr::new("")).as_bytes();
        if let Some(member) = self.members.get(name) {
            return Ok(file_child(last, member));
        }
        if name.is_empty() || below(&self.members, &prefix(name)).is_some() {
            return Ok(dir_child(last));
        }
        Err(not_found())
    }

    fn read_into(
        &self,
        path: &Path,
        buf: &mut Vec<u8>,
        ceiling: u64,
    ) -> Result<Vec<ReadFault>, ReadError> {
        let member = self.member(path)?;
        let unpacked = self.container.file_len().saturating_mul(MEMBER_RATIO);
        let ceiling = ceiling.min(MEMBER_BASE.saturating_add(unpacked));
        if member.size > ceiling {
            return Err(ReadError::TooLarge {
                len: member.size,
                ceiling,
            });
        }
        // What is there already is overwritten: no need to zero it.
        buf.resize(usize::try_from(member.size).map_err(io::Error::other)?, 0);
        let mut faults = Vec::new();
        let n = self.container.read(member.at, buf, &mut |range, detail| {
            if faults.len() < MAX_FINDINGS {
                faults.push(ReadFault {
                    offset: range.start.saturating_sub(member.at),
                    detail,
                });
            }
        })?;
        buf.truncate(n);
        if (n as u64) < member.size {
            let detail = format!(
                "{} bytes of it are gone: the archive ends",
                member.size.saturating_sub(n as u64)
            );
            faults.push(ReadFault {
                offset: n as u64,
                detail,
            });
        }
        Ok(faults)
    }

    fn read_at(&self, path: &Path, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let member = self.member(path)?;
        let left = usize::try_from(member.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let n = buf.len().min(left);
        match buf.get_mut(..n) {
            Some(buf) if n > 0 => {
                self.container
                    .read(member.at.saturating_add(offset), buf, &mut |_, _| {})
            }
            _ => Ok(0),
        }
    }

    fn limit(&self) -> Option<Arc<Limit>> {
        self.container.limit()
    }

    fn sequential(&self) -> bool {
        matches!(self.container, Container::Gzip(_))
    }
}
