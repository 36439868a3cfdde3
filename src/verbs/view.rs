//! `view`: messages, in stream order.
//!
//! Workers turn blocks into output; only writing it is done one after the other.

use super::{Context, Exit, Failure, exit_for, render, warn_of};
use crate::finding::Finding;
use crate::source::{Source, SourceKind, StreamSource};
use crate::state::subjects::{SubjectMap, matches_any};
use crate::state::visit::{Deleted, Message, Pass, Select};
use crate::state::{self, Depth};
use crate::stream::{Stream, Want};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fs;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// How much of a payload people are shown as text, and as a hexdump.
const SHOWN_TEXT: usize = 1 << 10;
const SHOWN_HEX: usize = 256;
/// Output buffers over this size are given back.
const KEEP: usize = 32 << 20;

/// Where messages go, unless as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Output {
    /// For people.
    #[default]
    Human,
    /// The payloads, one after the other, nothing in between.
    Raw,
    /// A file for each payload: `<account>/<stream>/<sequence>` below this directory.
    Dir(PathBuf),
}

/// Which messages to show, and how. What is left empty does not restrict.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Subjects with NATS wildcards: any of them.
    pub subjects: Vec<String>,
    /// Sequences, inclusive.
    pub seq: Option<(u64, u64)>,
    /// Not before this time, ns.
    pub since: Option<i64>,
    /// Not after this time, ns.
    pub until: Option<i64>,
    /// Headers that a message must have, each with this value if one is given. A name in another
    /// case counts only where the message has none in the given one.
    pub headers: Vec<(String, Option<String>)>,
    /// Of the messages that match, the last of each subject.
    pub last_per_subject: bool,
    /// No more than these, over all streams.
    pub limit: Option<u64>,
    /// From each stream's last to its first.
    pub reverse: bool,
    /// Also records that are still on disk and not live.
    pub deleted: bool,
    /// Where to.
    pub output: Output,
}

impl Options {
    fn select(&self) -> Select<'static> {
        Select {
            seq: self.seq.unwrap_or((0, u64::MAX)),
            time: (
                self.since.unwrap_or(i64::MIN),
                self.until.unwrap_or(i64::MAX),
            ),
            only: None,
        }
    }

    fn matches(&self, m: &Message<'_>) -> bool {
        matches_any(&self.subjects, m.subject)
            && self
                .headers
                .iter()
                .all(|(name, value)| has_header(m.headers, name, value.as_deref()))
    }
}

/// Whether a header block has this header (with this value).
fn has_header(block: &[u8], name: &str, value: Option<&str>) -> bool {
    let lines = || {
        block.split(|b| *b == b'\n').skip(1).filter_map(|line| {
            let colon = line.iter().position(|b| *b == b':')?;
            let (key, rest) = line.split_at_checked(colon)?;
            Some((key, rest.get(1..).unwrap_or_default().trim_ascii()))
        })
    };
    let wanted = |v: &[u8]| value.is_none_or(|w| v == w.trim().as_bytes());
    let name = name.as_bytes();
    if lines().any(|(key, _)| key == name) {
        return lines().any(|(key, v)| key == name && wanted(v));
    }
    lines().any(|(key, v)| key.eq_ignore_ascii_case(name) && wanted(v))
}

/// Output of some consecutive messages.
struct Chunk {
    out: Vec<u8>,
    /// For each message where its output ends, if that is of interest.
    ends: Vec<Mark>,
    clock: Clock,
    count: u64,
}

struct Mark {
    seq: u64,
    deleted: Option<Deleted>,
    end: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Human,
    Payload,
}

/// Shows messages.
pub fn run(ctx: &mut Context<'_>, source: &Path, options: &Options) -> Result<Exit, Failure> {
    let form = match (&options.output, ctx.json) {
        (Output::Human, true) => Form::Json,
        (Output::Human, false) => Form::Human,
        (_, false) => Form::Payload,
        (_, true) => {
            return Err(Failure::Usage(
                "payloads alone and JSON exclude each other".into(),
            ));
        }
    };
    if options.deleted && options.output == Output::Raw {
        return Err(Failure::Usage(
            "payloads alone cannot tell deleted messages from live ones".into(),
        ));
    }
    let opened = ctx.open(source)?;
    ctx.require_match(&opened)?;
    if let Output::Dir(dir) = &options.output {
        outside(dir, &opened.source)?;
    }
    let selector = ctx.selector.clone();
    let mut findings: Vec<Finding> = opened.findings(&selector).cloned().collect();
    let streams: Vec<&StreamSource> = opened.streams(&selector).collect();
    let mut left = options.limit.unwrap_or(u64::MAX);
    let several = streams.len() > 1;
    for s in streams {
        if left == 0 {
            break;
        }
        let mut stream = Stream::open(s, &ctx.keys, Want::NOTHING);
        findings.append(&mut stream.findings);
        // Without its key nothing of it can be read.
        if !stream.locked {
            left = show(ctx, &stream, options, form, several, left, &mut findings)?;
        }
    }
    ctx.out.flush()?;
    warn_of(ctx.monitor, &findings);
    Ok(ctx.close(&opened, exit_for(&findings)))
}

/// Shows up to `left` messages of one stream; returns how many more may be shown.
fn show(
    ctx: &mut Context<'_>,
    stream: &Stream,
    options: &Options,
    form: Form,
    several: bool,
    mut left: u64,
    findings: &mut Vec<Finding>,
) -> Result<u64, Failure> {
    let Context {
        threads,
        monitor,
        out,
        style,
        ..
    } = ctx;
    let (threads, monitor, style) = (&*threads, *monitor, *style);
    let progress = |n: u64| monitor.advance(n);
    let label = label(stream);
    monitor.begin(&format!("{label}: state"), stream.block_bytes());
    let mut survey = state::survey(stream, threads, Depth::default(), &progress);
    monitor.end();
    findings.append(&mut survey.findings);

    let mut pass = Pass::new(stream, &survey.state, threads, &progress);
    pass.select = options.select();
    pass.deleted = options.deleted;
    pass.reverse = options.reverse;
    let last: Vec<u64>;
    if options.last_per_subject {
        monitor.begin(&format!("{label}: subjects"), pass.file_bytes());
        last = last_of_subjects(&pass, options);
        monitor.end();
        pass.select.only = Some(&last);
    }
    monitor.begin(&format!("{label}: messages"), pass.file_bytes());
    let marks = options.limit.is_some() || matches!(options.output, Output::Dir(_));
    let cap = left;
    let prefix = json_prefix(stream);
    let spare: Mutex<Vec<Vec<u8>>> = Mutex::default();
    let spare = || spare.lock().unwrap_or_else(PoisonError::into_inner);
    let make = || Chunk {
        out: spare().pop().unwrap_or_default(),
        ends: Vec::new(),
        clock: Clock::default(),
        count: 0,
    };
    let visit = |chunk: &mut Chunk, m: &Message<'_>| {
        if !options.matches(m) {
            return ControlFlow::Continue(());
        }
        let Chunk { out, clock, .. } = chunk;
        match form {
            Form::Json => json_line(out, clock, &prefix, m),
            Form::Human => human(out, clock, style, m),
            Form::Payload => out.extend_from_slice(m.payload),
        }
        chunk.count += 1;
        if marks {
            chunk.ends.push(Mark {
                seq: m.seq,
                deleted: m.deleted,
                end: chunk.out.len(),
            });
        }
        if chunk.count >= cap {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let mut failed: Option<io::Error> = None;
    let mut titled = !several || form != Form::Human;
    let damage = pass.run(make, visit, |mut chunk| {
        let shown = chunk.count.min(left);
        let written = if shown == 0 {
            Ok(())
        } else if let Output::Dir(dir) = &options.output {
            let taken = chunk.ends.get(..shown as usize).unwrap_or_default();
            write_files(dir, stream, &chunk.out, taken)
        } else {
            let end = match usize::try_from(shown)
                .ok()
                .and_then(|n| chunk.ends.get(n.checked_sub(1)?))
            {
                Some(mark) => mark.end,
                None => chunk.out.len(),
            };
            let title = if titled {
                Ok(())
            } else {
                titled = true;
                writeln!(
                    out,
                    "{}\n",
                    render::paint(style, &render::safe(&label), render::Color::Green)
                )
            };
            title.and_then(|()| out.write_all(chunk.out.get(..end).unwrap_or_default()))
        };
        left -= shown;
        chunk.out.clear();
        if chunk.out.capacity() <= KEEP {
            spare().push(chunk.out);
        }
        match written {
            Ok(()) if left > 0 => ControlFlow::Continue(()),
            Ok(()) => ControlFlow::Break(()),
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    });
    monitor.end();
    findings.extend(damage);
    match failed {
        Some(e) => Err(e.into()),
        None => Ok(left),
    }
}

fn label(stream: &Stream) -> String {
    if stream.account.is_empty() {
        stream.name.clone()
    } else {
        format!("{}/{}", stream.account, stream.name)
    }
}

/// The sequences of the last matching live message of each subject, ascending.
fn last_of_subjects(pass: &Pass<'_>, options: &Options) -> Vec<u64> {
    let pass = Pass {
        deleted: false,
        reverse: false,
        ..*pass
    };
    let mut last = SubjectMap::new();
    // What is damaged is met, and said, in the pass that shows the messages.
    let _ = pass.run(
        SubjectMap::new,
        |map, m| {
            if options.matches(m) {
                *map.value_mut(m.subject) = m.seq;
            }
            ControlFlow::Continue(())
        },
        |map| {
            for (subject, seq) in map.iter() {
                *last.value_mut(subject) = seq;
            }
            ControlFlow::Continue(())
        },
    );
    let mut seqs: Vec<u64> = last.iter().map(|(_, seq)| seq).collect();
    seqs.sort_unstable();
    seqs
}

/// Times as text, quickly: the text of a second is kept.
#[derive(Default)]
struct Clock {
    second: Option<i64>,
    text: String,
}

impl Clock {
    fn write(&mut self, ns: i64, out: &mut Vec<u8>) {
        const SECOND: i64 = 1_000_000_000;
        let (second, part) = (ns.div_euclid(SECOND), ns.rem_euclid(SECOND));
        if self.second != Some(second) {
            self.second = Some(second);
            self.text = crate::time::rfc3339(ns.saturating_sub(part));
            // The very first second that 64 bits can tell begins before them.
            if ns.checked_sub(part).is_none() {
                self.second = None;
                return crate::time::write_rfc3339(ns, out);
            }
            self.text.pop();
        }
        out.extend_from_slice(self.text.as_bytes());
        if part != 0 {
            let mut digits = [b'0'; 10];
            digits[0] = b'.';
            let mut rest = part;
            for d in digits.iter_mut().skip(1).rev() {
                *d = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
            let end = digits
                .iter()
                .rposition(|b| *b != b'0')
                .map_or(0, |at| at + 1);
            out.extend_from_slice(digits.get(..end).unwrap_or_default());
        }
        out.push(b'Z');
    }
}

/// Appends a number.
fn number(mut n: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut used = 0;
    for d in digits.iter_mut().rev() {
        *d = b'0' + (n % 10) as u8;
        n /= 10;
        used += 1;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(20 - used..).unwrap_or_default());
}

/// Appends standard base64.
fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    let len = bytes.len().div_ceil(3).saturating_mul(4);
    out.resize(start.saturating_add(len), 0);
    let space = out.get_mut(start..).unwrap_or_default();
    // The space is exactly what is needed.
    let _ = STANDARD.encode_slice(bytes, space);
}

/// Appends the inside of a JSON string.
fn json_text(text: &str, out: &mut Vec<u8>) {
    let mut rest = text.as_bytes();
    while let Some(at) = rest
        .iter()
        .position(|b| *b < 0x20 || *b == b'"' || *b == b'\\')
    {
        let (clean, tail) = rest.split_at(at);
        out.extend_from_slice(clean);
        let Some((b, tail)) = tail.split_first() else {
            break;
        };
        match b {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *b]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b => {
                // Writing to a Vec does not fail.
                let _ = write!(out, "\\u{b:04x}");
            }
        }
        rest = tail;
    }
    out.extend_from_slice(rest);
}

/// What every line of a stream begins with.
fn json_prefix(stream: &Stream) -> Vec<u8> {
    let mut out = b"{\"account\":\"".to_vec();
    json_text(&stream.account, &mut out);
    out.extend_from_slice(b"\",\"stream\":\"");
    json_text(&stream.name, &mut out);
    out.extend_from_slice(b"\",\"seq\":");
    out
}

fn json_line(out: &mut Vec<u8>, clock: &mut Clock, prefix: &[u8], m: &Message<'_>) {
    out.reserve(prefix.len() + m.subject.len() + (m.headers.len() + m.payload.len()) / 3 * 4 + 128);
    out.extend_from_slice(prefix);
    number(m.seq, out);
    out.extend_from_slice(b",\"subject\":\"");
    match std::str::from_utf8(m.subject) {
        Ok(subject) => json_text(subject, out),
        Err(_) => {
            json_text(&String::from_utf8_lossy(m.subject), out);
            out.extend_from_slice(b"\",\"subject_base64\":\"");
            base64(m.subject, out);
        }
    }
    out.extend_from_slice(b"\",\"time\":\"");
    if m.deleted == Some(Deleted::Erased) && m.ts == 0 {
        out.extend_from_slice(crate::time::ZERO.as_bytes());
    } else {
        clock.write(m.ts, out);
    }
    out.push(b'"');
    for (key, value) in [
        (&b",\"hdrs\":\""[..], m.headers),
        (b",\"data\":\"", m.payload),
    ] {
        if !value.is_empty() {
            out.extend_from_slice(key);
            base64(value, out);
            out.push(b'"');
        }
    }
    if let Some(why) = m.deleted {
        out.extend_from_slice(b",\"deleted\":\"");
        json_text(why.as_str(), out);
        out.push(b'"');
    }
    out.extend_from_slice(b"}\n");
}

/// Text that a terminal can be shown: its line breaks and tabs stay.
fn printable(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let strange = |c: char| c.is_control() && !matches!(c, '\n' | '\t' | '\r');
    (!text.contains(strange)).then_some(text)
}

fn human(out: &mut Vec<u8>, clock: &mut Clock, style: render::Style, m: &Message<'_>) {
    let mut line = |text: &str| {
        out.extend_from_slice(text.as_bytes());
        out.push(b'\n');
    };
    let mut time = Vec::new();
    clock.write(m.ts, &mut time);
    let erased = m.deleted == Some(Deleted::Erased);
    let mut title = render::paint(style, &format!("#{}", m.seq), render::Color::Cyan);
    if !erased {
        title.push_str(&format!(
            "  {}  {}  {} bytes",
            render::safe(&String::from_utf8_lossy(m.subject)),
            String::from_utf8_lossy(&time),
            m.payload.len()
        ));
    }
    if let Some(why) = m.deleted {
        let why = format!("  deleted: {}", why.as_str());
        title.push_str(&render::paint(style, &why, render::Color::Yellow));
    }
    line(&title);
    let headers = String::from_utf8_lossy(m.headers);
    for (i, h) in headers.split("\r\n").enumerate() {
        // The first line is the version, perhaps with a status.
        let h = if i == 0 {
            h.strip_prefix("NATS/1.0").unwrap_or(h).trim()
        } else {
            h
        };
        if !h.is_empty() {
            line(&format!("  {}", render::safe(h)));
        }
    }
    let payload = m.payload;
    if payload.is_empty() {
    } else if let Some(text) = printable(payload) {
        let end = text.floor_char_boundary(SHOWN_TEXT);
        for l in text.get(..end).unwrap_or_default().lines() {
            line(l.trim_end_matches('\r').replace('\r', "\\r").as_str());
        }
        if end < text.len() {
            line(&format!(
                "… {} bytes more",
                render::count((text.len() - end) as u64)
            ));
        }
    } else {
        for (i, row) in payload.chunks(16).take(SHOWN_HEX / 16).enumerate() {
            let mut hex = String::new();
            let mut ascii = String::new();
            for b in row {
                hex.push_str(&format!("{b:02x} "));
                ascii.push(if b.is_ascii_graphic() || *b == b' ' {
                    char::from(*b)
                } else {
                    '.'
                });
            }
            line(&format!("{:08x}  {hex:<48} {ascii}", i * 16));
        }
        if payload.len() > SHOWN_HEX {
            line(&format!(
                "… {} bytes more",
                render::count((payload.len() - SHOWN_HEX) as u64)
            ));
        }
    }
    line("");
}

/// Fails for a directory inside of the source: nothing is ever written there.
fn outside(dir: &Path, source: &Source) -> Result<(), Failure> {
    let root = match source.kind {
        SourceKind::Archive => return Ok(()),
        // A lone block: its directory belongs to the store.
        SourceKind::File => source.path.parent().filter(|p| !p.as_os_str().is_empty()),
        _ => Some(source.path.as_path()),
    };
    let root = fs::canonicalize(root.unwrap_or(Path::new(".")))?;
    let absolute = std::path::absolute(dir)?;
    // Of a directory that is yet to be made the nearest one above it counts.
    let made = absolute
        .ancestors()
        .find_map(|a| Some((a, fs::canonicalize(a).ok()?)));
    let (above, real) = made.unwrap_or((Path::new("/"), "/".into()));
    if real.starts_with(&root) {
        return Err(Failure::Usage(format!(
            "{}: lies inside the source; nothing is written there",
            dir.display()
        )));
    }
    // Where these lead is not known before the directories are made.
    let tail = absolute.strip_prefix(above).unwrap_or(&absolute);
    if tail.components().any(|c| c == Component::ParentDir) {
        return Err(Failure::Usage(format!(
            "{}: has .. after a directory that is not there",
            dir.display()
        )));
    }
    Ok(())
}

/// A name from the source as the name of a file: one component, nothing special.
fn component(name: &str) -> String {
    let clean: String = name
        .chars()
        .map(|c| {
            if c == '/' || c == '\\' || c.is_control() {
                '_'
            } else {
                c
            }
        })
        .collect();
    match clean.as_str() {
        "" | "." | ".." => format!("_{clean}"),
        _ => clean,
    }
}

/// Writes each payload to a file of its own, which must be new.
fn write_files(dir: &Path, stream: &Stream, out: &[u8], marks: &[Mark]) -> io::Result<()> {
    let mut dir = dir.to_owned();
    if !stream.account.is_empty() {
        dir.push(component(&stream.account));
    }
    dir.push(component(&stream.name));
    let at = |path: &Path, e: io::Error| {
        io::Error::new(
            e.kind(),
            format!("{}: {e}; files written before it stay", path.display()),
        )
    };
    fs::create_dir_all(&dir).map_err(|e| at(&dir, e))?;
    let mut start = 0;
    for mark in marks {
        let payload = out.get(start..mark.end).unwrap_or_default();
        start = mark.end;
        let base = match mark.deleted {
            None => mark.seq.to_string(),
            // Nothing of it is left.
            Some(Deleted::Erased) => continue,
            Some(_) => format!("{}.deleted", mark.seq),
        };
        let mut path = dir.join(&base);
        let mut again = 1;
        loop {
            match write_whole(&dir, &path, payload) {
                Ok(()) => break,
                // A sequence can be on disk more than once, but live only once.
                Err(e)
                    if e.kind() == io::ErrorKind::AlreadyExists
                        && mark.deleted.is_some()
                        && again < 100 =>
                {
                    again += 1;
                    path = dir.join(format!("{base}.{again}"));
                }
                Err(e) => return Err(at(&path, e)),
            }
        }
    }
    Ok(())
}

/// Writes a new file that is there whole or not at all, whatever interrupts it.
fn write_whole(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = dir.join(format!(".jetsam-{}.part", std::process::id()));
    let written = fs::File::create(&part)
        .and_then(|mut f| f.write_all(bytes))
        // A link, unlike a rename, replaces nothing.
        .and_then(|()| match fs::hard_link(&part, path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                // A file system without links.
                if fs::symlink_metadata(path).is_ok() {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                fs::rename(&part, path)
            }
            linked => linked,
        });
    match (fs::remove_file(&part), &written) {
        (Err(e), Ok(())) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<'a>(subject: &'a [u8], headers: &'a [u8], payload: &'a [u8]) -> Message<'a> {
        Message {
            seq: 1_234_567,
            ts: 1_763_685_393_979_674_300,
            subject,
            headers,
            payload,
            deleted: None,
            raw: &[],
            block: 0,
        }
    }

    fn json(m: &Message<'_>) -> serde_json::Value {
        let mut out = Vec::new();
        json_line(
            &mut out,
            &mut Clock::default(),
            b"{\"account\":\"A\",\"stream\":\"S\",\"seq\":",
            m,
        );
        assert_eq!(out.pop(), Some(b'\n'));
        assert!(!out.contains(&b'\n'));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_line_is_the_apis_stored_message() {
        assert_eq!(
            json(&message(
                b"a.b",
                b"NATS/1.0\r\nA: b\r\n\r\n",
                b"\x00\xff\xfe\xfd"
            )),
            serde_json::json!({
                "account": "A", "stream": "S", "seq": 1_234_567, "subject": "a.b",
                "time": "2025-11-21T00:36:33.9796743Z",
                "hdrs": "TkFUUy8xLjANCkE6IGINCg0K", "data": "AP/+/Q==",
            })
        );
        let bare = json(&message(b"a", b"", b""));
        assert!(bare.get("hdrs").is_none() && bare.get("data").is_none());
    }

    #[test]
    fn every_subject_survives_json() {
        for b in 0..=255u8 {
            let subject = [b'x', b, b'"', b'\\', b'\n', 0x1f, b'y'];
            let line = json(&message(&subject, b"", b""));
            match std::str::from_utf8(&subject) {
                Ok(s) => {
                    assert_eq!(line["subject"], s);
                    assert!(line.get("subject_base64").is_none());
                }
                Err(_) => {
                    assert_eq!(line["subject"], String::from_utf8_lossy(&subject).as_ref());
                    let text = line["subject_base64"].as_str().unwrap();
                    assert_eq!(STANDARD.decode(text).unwrap(), subject);
                }
            }
        }
        assert_eq!(
            json(&message("\u{fc}\u{7f}\u{1f600}".as_bytes(), b"", b""))["subject"],
            "\u{fc}\u{7f}\u{1f600}"
        );
    }

    #[test]
    fn times_are_those_of_the_slow_way() {
        let mut clock = Clock::default();
        let second = 1_763_685_393_000_000_000i64;
        for ns in [
            second,
            second + 1,
            second + 999_999_999,
            second + 500_000_000,
            second + 1_000_000_000,
            0,
            -1,
            -1_000_000_000,
            i64::MAX,
            i64::MIN,
            i64::MIN + 1,
            second + 10,
        ] {
            let mut out = Vec::new();
            clock.write(ns, &mut out);
            assert_eq!(
                String::from_utf8(out).unwrap(),
                crate::time::rfc3339(ns),
                "{ns}"
            );
        }
    }

    #[test]
    fn numbers() {
        for n in [0, 7, 10, 1_234_567_890, u64::MAX] {
            let mut out = Vec::new();
            number(n, &mut out);
            assert_eq!(out, n.to_string().as_bytes());
        }
    }

    #[test]
    fn headers_match_by_name_and_value() {
        let block = b"NATS/1.0\r\nNats-Msg-Id: 7\r\nA:x:y\r\na: z\r\nEmpty:\r\nA: second \r\n\r\n";
        for (name, value, want) in [
            ("Nats-Msg-Id", None, true),
            ("Nats-Msg-Id", Some("7"), true),
            ("Nats-Msg-Id", Some("8"), false),
            ("A", Some("x:y"), true),
            ("A", Some("second"), true),
            // The exact name is there, so the other case does not count.
            ("A", Some("z"), false),
            ("a", Some("z"), true),
            ("nats-msg-id", Some("7"), true),
            ("Empty", Some(""), true),
            ("Empty", None, true),
            ("NATS/1.0", None, false),
            ("Missing", None, false),
        ] {
            assert_eq!(has_header(block, name, value), want, "{name} {value:?}");
        }
        assert!(!has_header(b"", "A", None));
    }

    #[test]
    fn people_see_no_control_characters() {
        let show = |m: &Message<'_>| {
            let mut out = Vec::new();
            human(&mut out, &mut Clock::default(), render::Style::default(), m);
            String::from_utf8(out).unwrap()
        };
        let evil = b"a\x1b[2Jb\x07\r\n\x9b";
        for m in [
            message(evil, b"", b""),
            message(b"a", b"NATS/1.0 \x1b[0m\r\nA: \x1b]0;x\x07\r\n\r\n", b""),
            message(b"a", b"", evil),
            message(b"a", b"", "x\ry\u{9b}".as_bytes()),
            message(b"a", b"", b"line\rover\r\nnext"),
        ] {
            let text = show(&m);
            assert!(
                !text.chars().any(|c| c.is_control() && c != '\n'),
                "{text:?}"
            );
        }
        let long = "\u{e4}".repeat(5000);
        assert!(show(&message(b"a", b"", long.as_bytes())).contains("\u{2026} 8,976 bytes more"));
        let binary = show(&message(b"a", b"", &[0u8; 300]));
        assert!(binary.contains("00000000  00 00") && binary.contains("\u{2026} 44 bytes more"));
    }

    #[test]
    fn nothing_is_written_into_the_source() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path();
        fs::create_dir_all(root.join("store/S/msgs")).unwrap();
        fs::create_dir_all(root.join("out")).unwrap();
        std::os::unix::fs::symlink(root.join("store"), root.join("link")).unwrap();
        let source = crate::source::open(&root.join("store/S"), &Default::default()).unwrap();
        let mut source = source;
        for kind in [SourceKind::Store, SourceKind::Stream] {
            source.kind = kind;
            for (dir, fine) in [
                ("out", true),
                ("out/a/b", true),
                ("new", true),
                ("store/other", true),
                ("store/S/../../x", true),
                ("store/S", false),
                ("store/S/msgs/new", false),
                ("link/S/x", false),
                ("out/../store/S/x", false),
                ("none/../store/S/x", false),
            ] {
                assert_eq!(outside(&root.join(dir), &source).is_ok(), fine, "{dir}");
            }
        }
        source.kind = SourceKind::File;
        source.path = root.join("store/S/msgs/1.blk");
        assert!(outside(&root.join("store/S/msgs/x"), &source).is_err());
        assert!(outside(&root.join("out"), &source).is_ok());
    }

    #[test]
    fn names_become_single_components() {
        for (name, want) in [
            ("$G", "$G"),
            ("", "_"),
            ("..", "_.."),
            ("../x", ".._x"),
            ("a/b", "a_b"),
            ("a\0b", "a_b"),
        ] {
            assert_eq!(component(name), want);
        }
    }
}
