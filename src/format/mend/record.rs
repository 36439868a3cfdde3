//! Mending a record: its bytes, the lengths outside its hash, and its stored hash.
//!
//! | damaged | found by | proof |
//! |---|---|---|
//! | stored hash | one hash: it differs in one bit (or two near ones) | hash |
//! | `len` | one hash for each of its bits, and for the place where the next record begins | hash |
//! | header bit | one hash | hash |
//! | `slen`, with headers | one hash for each of its bits, and for where `NATS/1.0` stands | hash |
//! | sequence, time, subject, headers, payload | every bit, half a packet at a time | hash |
//! | `slen`, without headers | subjects: those known, the configured ones, what a subject may be | none: [`Sureness`] |
//! | `hlen` | the empty line that ends the headers | none: [`Sureness`] |
//!
//! The hash does not cover the last two: a wrong one leaves a proven record with a misplaced border,
//! see [`border`]. Two flipped bits are found when they are near each other.
//!
//! [`walk`] does all of it for a block: proven records, mended ones, and what is left between.

use super::{Effort, Flip, Reach, Tried, by_hash, differences, search, toggle};
use crate::format::record::{
    BorderDoubt, ERASED_BIT, FIXED_LEN, HASH_LEN, HEADERS_BIT, Kind, MIN_LEN, OnDamage, Proof,
    Prover, Record, Step, TOMBSTONE_BIT, scan, subject_doubt,
};

/// Says whether a subject is known to the letter.
pub type IsKnown<'a> = &'a (dyn Fn(&[u8]) -> bool + Sync);

/// What is known about subjects where the block comes from.
#[derive(Clone, Copy, Default)]
pub struct Known<'a> {
    /// Knows subjects from `index.db`, or from other records.
    pub subjects: Option<IsKnown<'a>>,
    /// `subjects` knows every subject of the stream, so any other is suspicious: a current
    /// `index.db` does, but for messages deleted since.
    pub all: bool,
    /// The stream's configured subjects, where all that is stored must match one of them (so not
    /// for mirrors and sources, nor after they were changed). Empty: not known.
    pub filters: &'a [&'a str],
    /// A raft log: all subjects are empty.
    pub raft: bool,
}

impl std::fmt::Debug for Known<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known")
            .field("subjects", &self.subjects.is_some())
            .field("all", &self.all)
            .field("filters", &self.filters)
            .field("raft", &self.raft)
            .finish()
    }
}

/// What speaks for a subject, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Evidence {
    /// No server stores it, or this stream does not take it.
    Against,
    /// It could be one.
    Possible,
    /// The stream is configured for it.
    Configured,
    /// It is known.
    Exact,
}

impl Known<'_> {
    fn evidence(&self, subject: &[u8]) -> Evidence {
        if self.raft || subject.is_empty() {
            return match self.raft && subject.is_empty() {
                true => Evidence::Exact,
                false => Evidence::Against,
            };
        }
        if subject_doubt(subject).is_some() || subject.iter().any(u8::is_ascii_control) {
            return Evidence::Against;
        }
        if self.subjects.is_some_and(|known| known(subject)) {
            return Evidence::Exact;
        }
        if self.filters.is_empty() {
            return Evidence::Possible;
        }
        match self.filters.iter().any(|f| matches(f.as_bytes(), subject)) {
            true => Evidence::Configured,
            false => Evidence::Against,
        }
    }
}

/// Whether `subject` matches `filter` with its wildcards.
fn matches(filter: &[u8], subject: &[u8]) -> bool {
    let mut tokens = subject.split(|&b| b == b'.');
    for want in filter.split(|&b| b == b'.') {
        match (want, tokens.next()) {
            (b">", Some(_)) => return true,
            (b"*", Some(_)) => {}
            (want, Some(token)) if want == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// How sure a border is that the hash does not prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sureness {
    /// One of several possible places, or none better than where it is: not to be relied on.
    Open,
    /// The only place within a flipped bit that makes sense.
    Fair,
    /// A flipped bit away from what is known, or the only place that the format leaves.
    Strong,
}

/// Which border.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `slen`: between subject and payload.
    SubjectLen,
    /// `hlen`: between headers and payload.
    HeaderLen,
}

/// A border that is, or looks, misplaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Border {
    /// Which.
    pub field: Field,
    /// The length that is stored.
    pub stored: u32,
    /// What it should be; as stored where nothing better was found.
    pub better: u32,
    /// The bits that differ.
    pub flips: Vec<Flip>,
    /// How sure `better` is. Not to be applied when [`Sureness::Open`].
    pub sure: Sureness,
    /// What is wrong, in words.
    pub reason: &'static str,
}

impl Border {
    /// Puts the better length into the record.
    pub fn apply(&self, raw: &mut [u8]) {
        let slen = Shape::read(raw).map_or(0, |s| s.slen);
        let (at, bytes) = match self.field {
            Field::SubjectLen => (20, self.better.to_le_bytes().split_at(2).0.to_vec()),
            Field::HeaderLen => (FIXED_LEN + slen, self.better.to_le_bytes().to_vec()),
        };
        if let Some(to) = raw.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(&bytes);
        }
    }
}

/// The fields outside the hash that say where everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    len: usize,
    headers: bool,
    slen: usize,
}

impl Shape {
    fn new(word: u32, slen: u16) -> Self {
        Self {
            len: (word & !HEADERS_BIT) as usize,
            headers: word & HEADERS_BIT != 0,
            slen: usize::from(slen),
        }
    }

    fn read(buf: &[u8]) -> Option<Self> {
        let word = u32::from_le_bytes(*buf.first_chunk()?);
        let slen = u16::from_le_bytes(*buf.get(20..)?.first_chunk()?);
        Some(Self::new(word, slen))
    }

    fn word(&self) -> u32 {
        self.len as u32 | if self.headers { HEADERS_BIT } else { 0 }
    }

    /// Bytes that the hash leaves out between subject and the rest.
    fn hole(&self) -> usize {
        if self.headers { 4 } else { 0 }
    }

    fn fits(&self, have: usize) -> bool {
        self.len <= have && MIN_LEN + self.slen + self.hole() <= self.len
    }

    /// The same with a subject length that fits where it has no part in the hash.
    fn provable(mut self) -> Self {
        if !self.headers {
            self.slen = self.slen.min(self.len.saturating_sub(MIN_LEN));
        }
        self
    }

    /// What the hash covers, and the stored hash.
    fn parts<'a>(&self, buf: &'a [u8]) -> Option<([&'a [u8]; 3], [u8; 8])> {
        let end = self.len.checked_sub(HASH_LEN)?;
        let subject_end = FIXED_LEN + self.slen;
        Some((
            [
                buf.get(4..20)?,
                buf.get(FIXED_LEN..subject_end)?,
                buf.get(subject_end + self.hole()..end)?,
            ],
            *buf.get(end..)?.first_chunk()?,
        ))
    }

    /// Where in the record bit `i` of the covered bytes (and of the hash behind them) lies.
    fn place(&self, i: usize) -> usize {
        let byte = i / 8;
        let at = match byte {
            0..16 => byte + 4,
            _ if byte < 16 + self.slen => byte + 6,
            _ => byte + 6 + self.hole(),
        };
        at * 8 + i % 8
    }

    fn write(&self, raw: &mut [u8]) {
        if let Some(to) = raw.first_chunk_mut::<4>() {
            *to = self.word().to_le_bytes();
        }
        if let Some(to) = raw.get_mut(20..22) {
            to.copy_from_slice(&(self.slen as u16).to_le_bytes());
        }
    }
}

/// A record that was mended and is now proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// Where it starts, in the logical block.
    pub offset: u64,
    /// The record as it should be.
    pub raw: Vec<u8>,
    /// The bits that were wrong.
    pub flips: Vec<Flip>,
    /// A border of it that the hash does not prove and that is or was doubtful. Applied to `raw`
    /// (and part of `flips`) unless it is [`Sureness::Open`] and the stored one fits.
    pub border: Option<Border>,
}

impl Mended {
    /// The record.
    pub fn record(&self) -> Option<Record<'_>> {
        Record::decode(&self.raw, self.offset).ok()
    }
}

/// Tries to mend the record that starts at `buf[0]`, which lies at `offset` in the logical block.
/// `buf` ends where the next proven record begins, or the block ends.
pub fn mend(
    buf: &[u8],
    offset: u64,
    prover: &Prover,
    known: &Known<'_>,
    effort: &Effort<'_>,
) -> (Option<Mended>, Tried) {
    let mut tried = Tried::default();
    let raw = find(buf, prover, effort, &mut tried);
    let mended = raw.map(|mut raw| {
        let border = settle(&raw, offset, known);
        if let Some(border) = &border
            && (border.sure > Sureness::Open || Record::decode(&raw, offset).is_err())
        {
            border.apply(&mut raw);
        }
        Mended {
            offset,
            flips: differences(buf, &raw, offset),
            raw,
            border,
        }
    });
    (mended, tried)
}

/// The record at `buf[0]` with bits flipped so that its hash is right. A subject length that the
/// hash does not cover may still be wrong.
fn find(buf: &[u8], prover: &Prover, effort: &Effort<'_>, tried: &mut Tried) -> Option<Vec<u8>> {
    let stored = Shape::read(buf).filter(|_| buf.len() >= MIN_LEN)?;
    let whole = |shape: &Shape, flips: &[usize]| {
        let mut raw = buf.get(..shape.len)?.to_vec();
        // A subject length that the hash does not cover is left to be looked at on its own.
        let slen = if shape.headers {
            shape.slen
        } else {
            stored.slen
        };
        Shape { slen, ..*shape }.write(&mut raw);
        for &flip in flips {
            toggle(&mut raw, shape.place(flip));
        }
        Some(raw)
    };

    // What lies outside the hash, with what it says of everything else.
    let shapes = shapes(buf, stored);
    tried.count(0, buf.len().min(1 << 16) as u64);
    let wrong = |i: usize| {
        let (parts, hash) = shapes.get(i)?.parts(buf)?;
        let [fixed, a, b] = parts;
        let sum = u64::from_le_bytes(prover.sum_parts(fixed, a, b));
        Some(sum ^ u64::from_le_bytes(hash))
    };
    let cost = |i: usize| (1, shapes.get(i).map_or(0, |s| s.len as u64));
    let (hit, reach) = search(effort, tried, shapes.len(), cost, |i| {
        wrong(i).filter(|&w| w == 0).map(|_| i)
    });
    tried.structure = reach;
    if let Some(shape) = hit.and_then(|i| shapes.get(i)) {
        return whole(shape, &[]);
    }
    if reach != Reach::All {
        return None;
    }

    // One or two near bits of what the hash covers, or of the hash.
    let as_it_says = stored.provable();
    let far = shapes.iter().find(|s| {
        s.len == buf.len()
            && s.slen == as_it_says.slen
            && (s.word() ^ stored.word()).count_ones() == 1
    });
    let first = as_it_says.fits(buf.len()).then_some(&as_it_says);
    for (shape, near) in [(first, effort.near), (far, 0)] {
        let Some(shape) = shape else {
            continue;
        };
        let ([fixed, a, b], hash) = shape.parts(buf)?;
        let data = [fixed, a, b].concat();
        let before = *tried;
        let effort = Effort { near, ..*effort };
        let found = by_hash(prover.key(), &data, hash, &(0..0), &effort, tried);
        if first.is_some() && near == 0 {
            (tried.single, tried.double) = (before.single, before.double);
        }
        if let Some(flips) = found {
            return whole(shape, &flips);
        }
    }

    // One bit outside the hash and one near it.
    if effort.near() == 0 {
        return None;
    }
    let pairs = outside_pairs(effort.near());
    let mut longest = 0;
    let costs: Vec<u64> = pairs
        .iter()
        .map(|&(a, b)| {
            let len = changed(buf, a, b)
                .filter(|s| s.fits(buf.len()))
                .map_or(0, |s| s.len);
            longest = longest.max(len);
            len as u64
        })
        .collect();
    let (hit, reach) = search(
        effort,
        tried,
        pairs.len(),
        |i| (1, costs.get(i).copied().unwrap_or(0)),
        |i| {
            let &(a, b) = pairs.get(i)?;
            let shape = changed(buf, a, b).filter(|s| s.fits(buf.len()))?;
            let mut raw = buf.get(..shape.len)?.to_vec();
            toggle(&mut raw, a);
            toggle(&mut raw, b);
            let ([fixed, x, y], hash) = shape.parts(&raw)?;
            (prover.sum_parts(fixed, x, y) == hash).then_some(raw)
        },
    );
    if reach != Reach::All && tried.double == Reach::All {
        tried.double = Reach::Part;
    }
    if tried.double == Reach::None {
        tried.double = reach;
    }
    hit
}

/// The shape after two bits of the record's start have been flipped.
fn changed(buf: &[u8], a: usize, b: usize) -> Option<Shape> {
    let mut head = *buf.first_chunk::<FIXED_LEN>()?;
    toggle(&mut head, a);
    toggle(&mut head, b);
    Shape::read(&head).map(Shape::provable)
}

/// Pairs of bits at most `near` apart of which one or both are in `len` or `slen`.
fn outside_pairs(near: usize) -> Vec<(usize, usize)> {
    let outside = |i: &usize| *i < 32 || (160..176).contains(i);
    let mut pairs = Vec::new();
    for a in 0..176 {
        for b in a + 1..=a + near {
            if outside(&a) || outside(&b) {
                pairs.push((a, b));
            }
        }
    }
    pairs
}

/// What `len`, header bit and `slen` could have been, likely ones first; only what fits.
fn shapes(buf: &[u8], stored: Shape) -> Vec<Shape> {
    let have = buf.len();
    // Where the headers start, if there are any: their subject ends four bytes before.
    let headers_at = buf
        .get(..have.min(FIXED_LEN + usize::from(u16::MAX) + 14))
        .unwrap_or_default()
        .windows(10)
        .position(|w| w == b"NATS/1.0\r\n")
        .and_then(|at| at.checked_sub(FIXED_LEN + 4));
    let mut words = vec![stored.word()];
    words.extend((0..32).rev().map(|bit| stored.word() ^ (1 << bit)));
    if have < HEADERS_BIT as usize {
        words.extend([have as u32, have as u32 | HEADERS_BIT]);
    }
    let mut slens = vec![stored.slen as u16];
    slens.extend((0..16).map(|bit| stored.slen as u16 ^ (1 << bit)));
    slens.extend(headers_at.and_then(|n| u16::try_from(n).ok()));
    let mut all: Vec<Shape> = Vec::new();
    let mut put = |word, slen| {
        let shape = Shape::new(word, slen).provable();
        if shape.fits(have) && !all.contains(&shape) {
            all.push(shape);
        }
    };
    for &word in &words {
        put(word, stored.slen as u16);
    }
    for &slen in &slens {
        put(stored.word(), slen);
    }
    // More than one of the three, where the surroundings say what they should be.
    for word in [stored.word(), have as u32, have as u32 | HEADERS_BIT] {
        for &slen in slens.iter().rev().take(2) {
            put(word, slen);
        }
    }
    all
}

/// Looks at the border of `record`, which is proven, that its hash does not cover: `None` when
/// nothing speaks against it.
pub fn border(record: &Record<'_>, known: &Known<'_>) -> Option<Border> {
    settle(record.raw, record.offset, known)
}

/// The same for a record whose `slen` may not even fit.
fn settle(raw: &[u8], offset: u64, known: &Known<'_>) -> Option<Border> {
    let shape = Shape::read(raw)?;
    if shape.headers {
        return settle_headers(&Record::decode(raw, offset).ok()?);
    }
    let room = raw.len().checked_sub(MIN_LEN)?;
    let seq = u64::from_le_bytes(*raw.get(4..)?.first_chunk()?);
    let reason = "subject length (past the end of the record)";
    if seq & (ERASED_BIT | TOMBSTONE_BIT) != 0 || room == 0 || known.raft {
        // Nothing but a message has a subject, and none in a raft log.
        let reason = if shape.slen > room {
            reason
        } else {
            "a record without message has a subject"
        };
        return (shape.slen != 0)
            .then(|| subject_border(raw, offset, shape.slen, 0, Sureness::Strong, reason));
    }
    let evidence = |slen: usize| {
        raw.get(FIXED_LEN..FIXED_LEN + slen)
            .filter(|_| slen <= room)
            .map(|s| known.evidence(s))
    };
    let now = evidence(shape.slen);
    match now {
        Some(Evidence::Exact) => return None,
        // Nothing could speak louder.
        Some(Evidence::Possible | Evidence::Configured) if known.subjects.is_none() => return None,
        _ => {}
    }
    let mut best = Vec::new();
    let mut level = now.unwrap_or(Evidence::Against);
    for slen in (0..16).map(|bit| shape.slen ^ (1 << bit)) {
        let Some(found) = evidence(slen).filter(|&e| e != Evidence::Against && e >= level) else {
            continue;
        };
        if found > level {
            best.clear();
        }
        level = found;
        best.push(slen);
    }
    let bad = matches!(now, None | Some(Evidence::Against));
    let sure = match best.as_slice() {
        // As it is, it is as good as anything else.
        _ if !bad && level == now.unwrap_or(Evidence::Against) => return None,
        [_] if !bad && known.all => Sureness::Fair,
        // Possible as it is; but one bit away from one that is known. New subjects come up.
        _ if !bad => Sureness::Open,
        [_] if level == Evidence::Exact => Sureness::Strong,
        [_] => Sureness::Fair,
        _ => Sureness::Open,
    };
    let reason = match now {
        None => reason,
        Some(_) if !bad => "a known subject is one bit of the subject length away",
        Some(_) => raw
            .get(FIXED_LEN..FIXED_LEN + shape.slen)
            .and_then(subject_doubt)
            .unwrap_or("subject that the stream does not take"),
    };
    let better = best.first().copied();
    // One that does not fit can not stay.
    let better = better.unwrap_or(if now.is_none() { 0 } else { shape.slen });
    let sure = if best.is_empty() {
        Sureness::Open
    } else {
        sure
    };
    Some(subject_border(
        raw, offset, shape.slen, better, sure, reason,
    ))
}

fn subject_border(
    raw: &[u8],
    offset: u64,
    stored: usize,
    better: usize,
    sure: Sureness,
    reason: &'static str,
) -> Border {
    let mut border = Border {
        field: Field::SubjectLen,
        stored: stored as u32,
        better: better as u32,
        flips: Vec::new(),
        sure,
        reason,
    };
    let mut mended = raw.to_vec();
    border.apply(&mut mended);
    border.flips = differences(raw, &mended, offset);
    border
}

fn settle_headers(record: &Record<'_>) -> Option<Border> {
    if record.kind != Kind::Message {
        return None;
    }
    let at = FIXED_LEN + record.subject.len();
    let stored = u32::from_le_bytes(*record.raw.get(at..)?.first_chunk()?);
    let better = record.better_header_len().map(|n| n as u32);
    let bits = better.map_or(0, |b| (b ^ stored).count_ones());
    let (sure, reason) = match (record.border_doubts(), bits) {
        (Some(BorderDoubt::Headers(reason)), 1) => (Sureness::Strong, reason),
        (Some(BorderDoubt::Headers(reason)), 2..) => (Sureness::Fair, reason),
        (Some(BorderDoubt::Headers(reason)), 0) => (Sureness::Open, reason),
        // It ends in an empty line, but not the first, which is one bit away.
        (_, 1) => (Sureness::Fair, "headers go on behind an empty line"),
        _ => return None,
    };
    let mut border = Border {
        field: Field::HeaderLen,
        stored,
        better: better.unwrap_or(stored),
        flips: Vec::new(),
        sure,
        reason,
    };
    let mut mended = record.raw.to_vec();
    border.apply(&mut mended);
    border.flips = differences(record.raw, &mended, record.offset);
    Some(border)
}

/// What [`walk`] meets, in order of offset.
#[derive(Debug)]
pub enum Found<'a> {
    /// A record that proves itself, and what is to be said about its border.
    Proven(Record<'a>, Option<Border>),
    /// A record that was mended, and what that took.
    Mended(&'a Mended, Tried),
    /// A record that its neighbours prove to be there, but that could not be mended.
    Unproven(Record<'a>, Tried),
    /// Bytes without a record that could be proven or mended.
    Gap {
        /// First byte.
        from: u64,
        /// One past the last.
        to: u64,
        /// The record that claims to start here runs past the end of the block: a torn write.
        torn: bool,
        /// What was tried there.
        tried: Tried,
    },
}

/// Damage between proven records.
struct Damage {
    from: usize,
    to: usize,
    /// Sequences around it.
    after: Option<u64>,
    before: Option<u64>,
}

/// Walks a logical block whose first byte lies at `base`, mending what does not prove itself.
/// `effort` is for the whole block; what is left of it goes evenly to the damages still to come.
pub fn walk(
    buf: &[u8],
    base: u64,
    prover: &Prover,
    known: &Known<'_>,
    effort: &Effort<'_>,
    mut visit: impl FnMut(Found<'_>),
) -> Tried {
    let index = |offset: u64| offset.saturating_sub(base) as usize;
    let mut damages: Vec<Damage> = Vec::new();
    let mut records: Vec<Record<'_>> = Vec::new();
    let mut steps: Vec<(bool, usize)> = Vec::new();
    scan(buf, base, prover, OnDamage::Resync, |step| {
        let (from, to) = match step {
            Step::Record(r, Proof::Proven) => {
                if let Some(damage) = damages.last_mut().filter(|d| d.before.is_none()) {
                    damage.before = Some(r.seq);
                }
                steps.push((true, records.len()));
                records.push(r);
                return;
            }
            Step::Record(r, Proof::HashMismatch) => (r.offset, r.offset + r.len()),
            Step::Gap { from, to, .. } => (from, to),
        };
        let (from, to) = (index(from), index(to));
        match damages.last_mut() {
            Some(last) if last.to == from && last.before.is_none() => last.to = to,
            _ => {
                steps.push((false, damages.len()));
                damages.push(Damage {
                    from,
                    to,
                    after: records.last().map(|r| r.seq),
                    before: None,
                });
            }
        }
    });
    let mut total = Tried::default();
    let mut left = damages.len() as u64;
    for (proven, i) in steps {
        if proven {
            if let Some(record) = records.get(i) {
                visit(Found::Proven(*record, border(record, known)));
            }
        } else if let Some(damage) = damages.get(i) {
            let share = Effort {
                bytes: total.left(effort) / left.max(1),
                ..*effort
            };
            left -= 1;
            let tried = repair(buf, base, damage, prover, known, &share, &mut visit);
            total.count(tried.candidates, tried.spent);
        }
    }
    total
}

/// Mends what is between two proven records.
fn repair(
    buf: &[u8],
    base: u64,
    damage: &Damage,
    prover: &Prover,
    known: &Known<'_>,
    effort: &Effort<'_>,
    visit: &mut impl FnMut(Found<'_>),
) -> Tried {
    let mut total = Tried::default();
    let mut pos = damage.from;
    let mut after = damage.after;
    let mut gap: Option<(usize, Tried)> = None;
    let torn = |from: usize| {
        damage.to == buf.len()
            && buf
                .get(from..)
                .and_then(Shape::read)
                .is_none_or(|s| !s.fits(damage.to - from))
    };
    let close = |gap: &mut Option<(usize, Tried)>, to: usize, visit: &mut dyn FnMut(Found<'_>)| {
        if let Some((from, tried)) = gap.take() {
            visit(Found::Gap {
                from: base.saturating_add(from as u64),
                to: base.saturating_add(to as u64),
                torn: to == buf.len() && torn(from),
                tried,
            });
        }
    };
    while let Some(rest) = buf.get(pos..damage.to).filter(|r| r.len() >= MIN_LEN) {
        let offset = base.saturating_add(pos as u64);
        let share = Effort {
            bytes: total.left(effort),
            ..*effort
        };
        let (mended, tried) = if share.bytes == 0 || effort.cancelled() {
            (None, Tried::default())
        } else {
            mend(rest, offset, prover, known, &share)
        };
        total.count(tried.candidates, tried.spent);
        if let Some(mended) = mended {
            close(&mut gap, pos, visit);
            pos += mended.raw.len();
            after = mended.record().map(|r| r.seq).or(after);
            visit(Found::Mended(&mended, tried));
            continue;
        }
        // Lengths that lead to the next record that looks like one, or to the end.
        if let Ok(record) = Record::decode(rest, offset)
            && in_order(&record, after, damage.before)
            && rest
                .get(record.raw.len()..)
                .is_some_and(|next| next.is_empty() || next_is_likely(next, after, damage.before))
        {
            close(&mut gap, pos, visit);
            pos += record.raw.len();
            visit(Found::Unproven(record, tried));
            continue;
        }
        gap.get_or_insert((pos, tried));
        // The next place that looks like a record between these two.
        pos = (pos + 1..damage.to)
            .find(|&at| {
                buf.get(at..damage.to)
                    .is_some_and(|b| next_is_likely(b, after, damage.before))
            })
            .unwrap_or(damage.to);
    }
    if pos < damage.to {
        gap.get_or_insert((pos, Tried::default()));
    }
    close(&mut gap, damage.to, visit);
    total
}

/// Whether a sequence lies between those of the proven records around it.
fn in_order(record: &Record<'_>, after: Option<u64>, before: Option<u64>) -> bool {
    // Tombstones are in order of deletion.
    record.kind == Kind::Tombstone
        || (after.is_none_or(|a| a < record.seq) && before.is_none_or(|b| record.seq < b))
}

/// Whether `buf` starts like a record between the sequences `after` and `before`.
fn next_is_likely(buf: &[u8], after: Option<u64>, before: Option<u64>) -> bool {
    let Ok(record) = Record::decode(buf, 0) else {
        return false;
    };
    let near = |seq: u64, other: Option<u64>| other.is_none_or(|o| o.abs_diff(seq) < 1 << 20);
    in_order(&record, after, before)
        && (near(record.seq, after) && near(record.seq, before))
        && record.seq != 0
        && (record.kind == Kind::Message) == (record.raw.len() > MIN_LEN)
        && record.ts >= 0
        && record.subject.len() <= 256
        && subject_doubt(record.subject).is_none()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Noise, ONE, tiny};
    use super::*;
    use crate::format::hash::HashKey;
    use crate::format::record::{NewRecord, encode};

    const TWO: Effort<'_> = Effort { near: 16, ..ONE };

    /// What `walk` makes of a block: the records with what was mended, as bytes.
    struct Walked {
        bytes: Vec<u8>,
        flips: Vec<Flip>,
        borders: Vec<Border>,
        unproven: usize,
        gaps: Vec<(u64, u64, bool)>,
        records: usize,
        tried: Tried,
    }

    fn walked(block: &[u8], prover: &Prover, known: &Known<'_>, effort: &Effort<'_>) -> Walked {
        let mut w = Walked {
            bytes: Vec::new(),
            flips: Vec::new(),
            borders: Vec::new(),
            unproven: 0,
            gaps: Vec::new(),
            records: 0,
            tried: Tried::default(),
        };
        w.tried = walk(block, 0, prover, known, effort, |found| match found {
            Found::Proven(r, border) => {
                let mut raw = r.raw.to_vec();
                if let Some(border) = border {
                    if border.sure > Sureness::Open {
                        border.apply(&mut raw);
                        w.flips.extend(&border.flips);
                    }
                    w.borders.push(border);
                }
                w.bytes.extend(raw);
                w.records += 1;
            }
            Found::Mended(m, _) => {
                assert!(m.record().unwrap().proves(prover));
                w.bytes.extend(&m.raw);
                w.flips.extend(&m.flips);
                w.borders.extend(m.border.clone());
                w.records += 1;
            }
            Found::Unproven(r, _) => {
                w.bytes.extend(r.raw);
                w.unproven += 1;
            }
            Found::Gap { from, to, torn, .. } => w.gaps.push((from, to, torn)),
        });
        w
    }

    /// The block of a tiny store, decrypted where needed.
    fn tiny_block(fixture: &str, name: &str) -> (Vec<u8>, Option<crate::format::crypt::SealKey>) {
        use crate::format::crypt::{Context, KeyRing, ServerKey, open_key_file};
        let n = name.split('.').next().unwrap();
        let mut block = tiny(fixture, &format!("msgs/{name}"));
        let truth: serde_json::Value =
            serde_json::from_slice(&tiny(fixture, "../../../../../truth.json")).unwrap();
        let key = truth["key"].as_str().map(|key| {
            let keys = KeyRing {
                current: Some(ServerKey::new(key)),
                previous: None,
            };
            let context = Context::Block {
                info: b"$G",
                store: b"TINY",
                n: n.parse().unwrap(),
            };
            open_key_file(&tiny(fixture, &format!("msgs/{n}.key")), &keys, &context).unwrap()
        });
        if let Some(key) = &key {
            key.apply_keystream(0, &mut block);
        }
        (block, key)
    }

    fn subjects_of(block: &[u8], prover: &Prover) -> Vec<Vec<u8>> {
        let mut subjects = Vec::new();
        scan(block, 0, prover, OnDamage::Stop, |step| {
            if let Step::Record(r, _) = step {
                subjects.push(r.subject.to_vec());
            }
        });
        subjects
    }

    #[test]
    fn every_bit_of_blocks_that_servers_wrote() {
        for fixture in ["2.14.9-plain", "2.2.6-plain", "2.14.9-chacha"] {
            let (block, key) = tiny_block(fixture, "1.blk");
            let prover = Prover::for_block("TINY", 1);
            let subjects = subjects_of(&block, &prover);
            assert!(subjects.len() > 5);
            let is_known = |s: &[u8]| subjects.iter().any(|k| k == s);
            let known = Known {
                subjects: Some(&is_known),
                all: true,
                ..Known::default()
            };
            let plain = walked(&block, &prover, &known, &ONE);
            assert_eq!(
                (plain.bytes.as_slice(), plain.flips.len()),
                (block.as_slice(), 0)
            );
            assert_eq!(plain.borders, []);
            for bit in 0..block.len() * 8 {
                let mut damaged = block.clone();
                if let Some(key) = &key {
                    // The flip happens in the file, under the cipher.
                    key.apply_keystream(0, &mut damaged);
                    toggle(&mut damaged, bit);
                    key.apply_keystream(0, &mut damaged);
                } else {
                    toggle(&mut damaged, bit);
                }
                let w = walked(&damaged, &prover, &known, &ONE);
                assert_eq!(w.gaps, [], "bit {bit}");
                assert_eq!(w.flips, [Flip::at(0, bit)], "{fixture}: bit {bit}");
                assert_eq!(w.bytes, block, "{fixture}: bit {bit}");
                assert_eq!((w.unproven, w.records), (0, subjects.len()));
            }
        }
    }

    #[test]
    fn two_near_bits_of_blocks_that_servers_wrote() {
        let (block, _) = tiny_block("2.14.9-plain", "1.blk");
        let prover = Prover::for_block("TINY", 1);
        let subjects = subjects_of(&block, &prover);
        let is_known = |s: &[u8]| subjects.iter().any(|k| k == s);
        let known = Known {
            subjects: Some(&is_known),
            all: true,
            ..Known::default()
        };
        let mut noise = Noise::new(5);
        let (mut mended, mut tries) = (0, 0);
        for _ in 0..400 {
            let a = noise.below(block.len() * 8 - 17);
            let b = a + 1 + noise.below(16);
            let mut damaged = block.clone();
            toggle(&mut damaged, a);
            toggle(&mut damaged, b);
            let w = walked(&damaged, &prover, &known, &TWO);
            tries += 1;
            mended += usize::from(w.bytes == block);
            // Whatever comes out was there.
            assert!(w.records + 1 >= subjects.len(), "bits {a} and {b}");
        }
        // What stays are pairs that lie in borders without a proof.
        assert!(mended * 100 > tries * 97, "{mended} of {tries}");
    }

    fn message(seq: u64, headers: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let record = NewRecord {
            seq,
            ts: 1_763_685_393_000_000_000 + seq as i64,
            subject: b"orders.new",
            headers,
            payload,
        };
        encode(&mut out, &HashKey::block("S", 1), &record).unwrap();
        out
    }

    #[test]
    fn bits_of_larger_records() {
        let prover = Prover::for_block("S", 1);
        let mut noise = Noise::new(7);
        for (n, samples) in [(500, 200), (3000, 60), (16_384, 6)] {
            let raw = message(3, b"NATS/1.0\r\nA: b\r\n\r\n", &noise.bytes(n));
            for _ in 0..samples {
                let bit = noise.below(raw.len() * 8);
                let mut damaged = raw.clone();
                toggle(&mut damaged, bit);
                let (mended, tried) = mend(&damaged, 100, &prover, &Known::default(), &ONE);
                let mended = mended.unwrap_or_else(|| panic!("bit {bit} of {n}"));
                assert_eq!(mended.raw, raw, "bit {bit} of {n}");
                assert_eq!(mended.flips, [Flip::at(100, bit)]);
                assert!(tried.chance_of_coincidence() < 1e-10);
            }
        }
    }

    #[test]
    fn several_damaged_records_in_a_row() {
        let prover = Prover::for_block("S", 1);
        let all: Vec<Vec<u8>> = (1..=6).map(|i| message(i, b"", &[b'p'; 90])).collect();
        let block = all.concat();
        let n = all[0].len();
        // A length, a payload, a hash, one after the other.
        let bits = [n * 8 + 7, (2 * n + 60) * 8 + 1, (4 * n - 3) * 8];
        let mut damaged = block.clone();
        for bit in bits {
            toggle(&mut damaged, bit);
        }
        let w = walked(&damaged, &prover, &Known::default(), &ONE);
        assert_eq!(w.bytes, block);
        assert_eq!(w.flips, bits.map(|b| Flip::at(0, b)));
        // The second can not be mended: the others still are.
        damaged[2 * n + 50..2 * n + 60].fill(0);
        let w = walked(&damaged, &prover, &Known::default(), &ONE);
        assert_eq!((w.records, w.unproven, w.gaps.len()), (5, 1, 0));
        // Nor does it say how long it is: found by what follows.
        damaged[2 * n..2 * n + 4].fill(0xee);
        let w = walked(&damaged, &prover, &Known::default(), &ONE);
        let gap = (2 * n as u64, 3 * n as u64, false);
        assert_eq!((w.records, w.unproven, w.gaps), (5, 0, vec![gap]));
    }

    #[test]
    fn without_effort_records_are_still_told_apart() {
        let prover = Prover::for_block("S", 1);
        let all: Vec<Vec<u8>> = (1..=6).map(|i| message(i, b"", &[b'p'; 90])).collect();
        let n = all[0].len();
        let mut damaged = all.concat();
        toggle(&mut damaged, (n + 60) * 8);
        toggle(&mut damaged, (2 * n + 60) * 8);
        toggle(&mut damaged, (4 * n + 3) * 8);
        let stop = std::sync::atomic::AtomicBool::new(true);
        let cancelled = Effort {
            cancel: Some(&stop),
            ..ONE
        };
        for effort in [Effort { bytes: 0, ..ONE }, cancelled] {
            let w = walked(&damaged, &prover, &Known::default(), &effort);
            let gap = (4 * n as u64, 5 * n as u64, false);
            assert_eq!((w.records, w.unproven, w.gaps), (3, 2, vec![gap]));
            assert_eq!((w.flips.len(), w.tried), (0, Tried::default()));
        }
    }

    #[test]
    fn what_is_no_flip_stays_a_gap_and_nothing_is_made_up() {
        let (block, _) = tiny_block("2.14.9-plain", "1.blk");
        let prover = Prover::for_block("TINY", 1);
        let mut originals = std::collections::HashSet::new();
        scan(&block, 0, &prover, OnDamage::Stop, |step| {
            if let Step::Record(r, _) = step {
                originals.insert(r.raw.to_vec());
            }
        });
        let mut noise = Noise::new(11);
        for i in 0..300 {
            let mut damaged = block.clone();
            let at = noise.below(block.len());
            let n = 1 + noise.below(40);
            let to = (at + n).min(block.len());
            match i % 5 {
                0 => drop(damaged.splice(at..at, noise.bytes(n))),
                1 => drop(damaged.drain(at..to)),
                2 => damaged[at..to].reverse(),
                3 => damaged[at..to].fill(0),
                _ => damaged.truncate(at),
            }
            let mut count = 0;
            let visit = |found: Found<'_>| match found {
                Found::Proven(r, _) => {
                    assert!(originals.contains(r.raw));
                    count += 1;
                }
                Found::Mended(m, _) => {
                    assert!(originals.contains(&m.raw), "{:?}", m.flips);
                    count += 1;
                }
                _ => {}
            };
            walk(&damaged, 0, &prover, &Known::default(), &TWO, visit);
            // At most two records touched, except where the tail is gone.
            assert!(i % 5 == 4 || count + 2 >= originals.len(), "{i}: {count}");
        }
    }

    #[test]
    fn a_million_candidates_of_garbage_prove_nothing() {
        let prover = Prover::for_block("S", 1);
        let mut noise = Noise::new(13);
        let mut candidates = 0;
        for _ in 0..60 {
            let n = 60 + noise.below(250);
            let mut garbage = noise.bytes(n);
            garbage[..4].copy_from_slice(&(n as u32).to_le_bytes());
            garbage[20..22].copy_from_slice(&5u16.to_le_bytes());
            let (mended, tried) = mend(&garbage, 0, &prover, &Known::default(), &TWO);
            assert_eq!(mended, None);
            assert!(tried.is_complete(16));
            candidates += tried.candidates;
        }
        assert!(candidates > 1_000_000);
    }

    #[test]
    fn hostile_blocks_end_with_the_budget() {
        let prover = Prover::for_block("S", 1);
        let n = 1 << 18;
        // Every position looks like the start of a record; and nothing but zeros.
        let mut every = vec![0u8; n];
        for i in (0..n - 4).step_by(4) {
            every[i..i + 4].copy_from_slice(&(((n - i) as u32) & 0xffff).to_le_bytes());
        }
        for block in [every, vec![0; n], vec![0x80; n]] {
            let effort = Effort {
                bytes: 1 << 28,
                ..TWO
            };
            let started = std::time::Instant::now();
            let w = walked(&block, &prover, &Known::default(), &effort);
            assert_eq!((w.records, w.flips.len()), (0, 0));
            assert!(w.tried.spent <= effort.bytes + (1 << 24));
            assert!(started.elapsed().as_secs() < 20);
        }
    }

    #[test]
    fn subject_lengths_by_what_is_known() {
        let block = [message(1, b"", b"{\"a\":1}"), message(2, b"", b"{\"a\":2}")].concat();
        let prover = Prover::for_block("S", 1);
        let mut damaged = block.clone();
        let bit = 20 * 8 + 3; // 10 becomes 2
        toggle(&mut damaged, bit);
        let filters = ["orders.>"];
        let exact = |s: &[u8]| s == b"orders.new";
        let borders = |known: &Known<'_>| walked(&damaged, &prover, known, &ONE).borders;
        let by_config = borders(&Known {
            filters: &filters,
            ..Known::default()
        });
        // `orders.new{"a":1}` is one bit more, and no worse a subject.
        assert_eq!(by_config.len(), 1);
        assert_eq!(by_config[0].reason, "subject that the stream does not take");
        let by_index = borders(&Known {
            subjects: Some(&exact),
            filters: &filters,
            ..Known::default()
        });
        assert_eq!(
            (by_index[0].better, by_index[0].sure),
            (10, Sureness::Strong)
        );
        assert_eq!(by_index[0].flips, [Flip::at(0, bit)]);
        // Without configuration `or` is a subject: only a remark.
        let remark = borders(&Known {
            subjects: Some(&exact),
            ..Known::default()
        });
        assert_eq!((remark[0].better, remark[0].sure), (10, Sureness::Open));
        let fair = borders(&Known {
            subjects: Some(&exact),
            all: true,
            ..Known::default()
        });
        assert_eq!((fair[0].better, fair[0].sure), (10, Sureness::Fair));
        assert_eq!(borders(&Known::default()), []);
    }

    #[test]
    fn header_lengths_by_the_empty_line() {
        let headers = b"NATS/1.0\r\nNats-Msg-Id: 7\r\n\r\n";
        let raw = message(1, headers, b"payload\r\n\r\nmore");
        let prover = Prover::for_block("S", 1);
        for bit in 0..32 {
            let mut damaged = raw.clone();
            toggle(&mut damaged, (22 + 10) * 8 + bit);
            let record = Record::decode(&damaged, 0).unwrap();
            assert!(record.proves(&prover));
            let found = border(&record, &Known::default()).unwrap();
            assert_eq!(
                (found.field, found.better),
                (Field::HeaderLen, headers.len() as u32)
            );
            assert!(found.sure >= Sureness::Fair);
            let mut mended = damaged.clone();
            found.apply(&mut mended);
            assert_eq!(mended, raw);
        }
        assert_eq!(
            border(&Record::decode(&raw, 0).unwrap(), &Known::default()),
            None
        );
    }

    #[test]
    fn filters_match_as_servers_do() {
        for (filter, subject, want) in [
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("a", "a", true),
            ("a", "ab", false),
        ] {
            assert_eq!(
                matches(filter.as_bytes(), subject.as_bytes()),
                want,
                "{filter} {subject}"
            );
        }
    }
}
