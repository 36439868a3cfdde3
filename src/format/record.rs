//! One message record in a block (`<n>.blk`).
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | `len`: whole record, this field and the hash included; bit 31 = the record has headers |
//! | 4 | 8 | `seq`: bit 63 = erased or skipped, bit 62 = tombstone, the rest the stream sequence |
//! | 12 | 8 | `ts`, ns since the epoch, signed |
//! | 20 | 2 | `slen`, length of the subject |
//! | 22 | slen | subject |
//! | 22+slen | 4 | `hlen`, length of the header block; only with bit 31 of `len` |
//! | … | hlen | header block, starting `NATS/1.0\r\n`; only with bit 31 |
//! | … | rest | payload |
//! | len-8 | 8 | HighwayHash-64 under the block's key |
//!
//! The hash covers bytes 4..20, the subject, the headers and the payload. It does **not** cover
//! `len`, `slen` and `hlen`: a wrong `hlen`, or a wrong `slen` of a record without headers, moves a
//! border without disturbing the hash. [`Record::border_doubts`] finds what structure alone can tell.
//!
//! A block's logical content is nothing but records. Holds for every release from 2.2 to 2.15.
//! Tombstones are written since 2.10. Releases before 2.10.28 and 2.11.0–2.11.1 wrote records over
//! 32 MiB that every server since 2.7 then refuses to read back, so any length whose hash matches
//! is accepted here.

use super::bytes::{Fault, FaultKind};
use super::hash::HashKey;

/// Bytes before the subject.
pub const FIXED_LEN: usize = 22;
/// Length of the trailing hash.
pub const HASH_LEN: usize = 8;
/// The smallest record: no subject, no headers, no payload.
pub const MIN_LEN: usize = FIXED_LEN + HASH_LEN;
/// Set in `len`: the record has headers.
pub const HEADERS_BIT: u32 = 1 << 31;
/// Set in `seq`: erased, or a sequence without a message.
pub const ERASED_BIT: u64 = 1 << 63;
/// Set in `seq`: a delete marker for the sequence in the low bits.
pub const TOMBSTONE_BIT: u64 = 1 << 62;
/// The length over which servers since 2.7 take a record for damaged.
pub const SERVER_MAX_LEN: usize = 32 << 20;

/// What a record stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A message as it was published.
    Message,
    /// A sequence that was used without a message, or a delete that compaction made explicit.
    Skip,
    /// A message that was overwritten with random bytes (secure delete).
    Erased,
    /// "This sequence was deleted", or a memory of the last sequence when blocks go.
    Tombstone,
}

impl Kind {
    /// As `inspect` prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Skip => "skip",
            Self::Erased => "erased",
            Self::Tombstone => "tombstone",
        }
    }
}

/// A record whose lengths are consistent. Whether its bytes are proven is the hash's business.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Offset of its first byte in the logical block.
    pub offset: u64,
    /// The whole record.
    pub raw: &'a [u8],
    /// What it stands for.
    pub kind: Kind,
    /// Stream sequence, flags removed.
    pub seq: u64,
    /// Time of publishing (for a tombstone: of the deleted message), ns.
    pub ts: i64,
    /// Subject bytes.
    pub subject: &'a [u8],
    /// Header block; empty when there is none.
    pub headers: &'a [u8],
    /// Payload. If `hlen` runs over the record, headers and payload are here together.
    pub payload: &'a [u8],
    /// The record claims to have headers.
    pub has_headers: bool,
    /// `hlen` fits the record (always true without headers).
    pub headers_fit: bool,
}

/// Reads `len` without its flag.
pub(in crate::format) fn record_len(buf: &[u8]) -> Option<(usize, bool)> {
    let word = u32::from_le_bytes(*buf.first_chunk::<4>()?);
    Some(((word & !HEADERS_BIT) as usize, word & HEADERS_BIT != 0))
}

impl<'a> Record<'a> {
    /// Decodes the record that starts at `buf[0]`, which lies at `offset` in the logical block.
    ///
    /// Lengths must be consistent; `hlen` may overrun (the server does not check it on recovery
    /// either), which [`Record::headers_fit`] tells.
    pub fn decode(buf: &'a [u8], offset: u64) -> Result<Self, Fault> {
        let fault = |at: u64, kind| Err(Fault::new(offset.saturating_add(at), kind));
        let Some((len, has_headers)) = record_len(buf) else {
            return fault(
                0,
                FaultKind::Truncated {
                    need: 4,
                    have: buf.len() as u64,
                },
            );
        };
        if len < MIN_LEN {
            return fault(0, FaultKind::Invalid("record length (below 30)"));
        }
        let Some(raw) = buf.get(..len) else {
            return fault(
                0,
                FaultKind::Truncated {
                    need: len as u64,
                    have: buf.len() as u64,
                },
            );
        };
        // `len` is at least 30, so the fixed part is there.
        let (Some(seq), Some(ts), Some(slen)) = (
            raw.get(4..).and_then(|b| b.first_chunk::<8>()),
            raw.get(12..).and_then(|b| b.first_chunk::<8>()),
            raw.get(20..).and_then(|b| b.first_chunk::<2>()),
        ) else {
            return fault(0, FaultKind::Invalid("record length (below 30)"));
        };
        let (seq, ts) = (u64::from_le_bytes(*seq), i64::from_le_bytes(*ts));
        let slen = usize::from(u16::from_le_bytes(*slen));
        let body_end = len - HASH_LEN;
        let after_subject = FIXED_LEN + slen;
        let body_start = after_subject + if has_headers { 4 } else { 0 };
        let (Some(subject), Some(body)) = (
            raw.get(FIXED_LEN..after_subject),
            raw.get(body_start..body_end),
        ) else {
            return fault(
                20,
                FaultKind::Invalid("subject length (past the end of the record)"),
            );
        };
        let (mut headers, mut payload, mut headers_fit) = (&[][..], body, true);
        if has_headers {
            let hlen = raw
                .get(after_subject..)
                .and_then(|b| b.first_chunk::<4>())
                .map_or(u32::MAX, |b| u32::from_le_bytes(*b));
            match body.split_at_checked(hlen as usize) {
                Some((h, p)) => (headers, payload) = (h, p),
                None => headers_fit = false,
            }
        }
        let kind = if seq & TOMBSTONE_BIT != 0 {
            Kind::Tombstone
        } else if seq & ERASED_BIT == 0 {
            Kind::Message
        } else if len == MIN_LEN {
            Kind::Skip
        } else {
            Kind::Erased
        };
        Ok(Self {
            offset,
            raw,
            kind,
            seq: seq & !(ERASED_BIT | TOMBSTONE_BIT),
            ts,
            subject,
            headers,
            payload,
            has_headers,
            headers_fit,
        })
    }

    /// Length on disk: what the server counts as the message's bytes.
    pub fn len(&self) -> u64 {
        self.raw.len() as u64
    }

    /// Never: a record has at least 30 bytes.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// The stored hash.
    pub fn hash(&self) -> [u8; 8] {
        self.raw.last_chunk::<8>().copied().unwrap_or_default()
    }

    /// The two or three runs of bytes that the hash covers.
    #[inline(always)]
    fn covered(&self) -> (&'a [u8], &'a [u8], &'a [u8]) {
        let end = self.raw.len().saturating_sub(HASH_LEN);
        let fixed = self.raw.get(4..20).unwrap_or_default();
        if self.has_headers {
            let after = FIXED_LEN + self.subject.len() + 4;
            (
                fixed,
                self.subject,
                self.raw.get(after..end).unwrap_or_default(),
            )
        } else {
            (fixed, self.raw.get(FIXED_LEN..end).unwrap_or_default(), &[])
        }
    }

    /// True when the record's bytes are proven by its hash.
    pub fn proves(&self, prover: &Prover) -> bool {
        prover.sum(self) == self.hash()
    }

    /// What looks wrong about the borders that the hash does not cover. `None` when all is well.
    pub fn border_doubts(&self) -> Option<BorderDoubt> {
        if self.kind != Kind::Message {
            return (!self.subject.is_empty() && self.kind != Kind::Erased).then_some(
                BorderDoubt::Subject("a record without message has a subject"),
            );
        }
        if self.has_headers {
            if !self.headers_fit {
                return Some(BorderDoubt::Headers("header length runs over the record"));
            }
            if self.headers.is_empty() {
                return Some(BorderDoubt::Headers("header flag without headers"));
            }
            if !self.headers.starts_with(b"NATS/1.0") {
                return Some(BorderDoubt::Headers("headers do not start with NATS/1.0"));
            }
            if !self.headers.ends_with(b"\r\n\r\n") {
                return Some(BorderDoubt::Headers(
                    "headers do not end with an empty line",
                ));
            }
        }
        subject_doubt(self.subject).map(BorderDoubt::Subject)
    }

    /// The header length at which the header block ends as it should, if there is exactly one such
    /// place that [`Record::border_doubts`] would accept.
    pub fn better_header_len(&self) -> Option<usize> {
        let (_, _, body) = self.covered();
        if !self.has_headers || !body.starts_with(b"NATS/1.0") {
            return None;
        }
        body.windows(4)
            .position(|w| w == b"\r\n\r\n")
            .map(|at| at + 4)
    }
}

/// A border inside a record that looks misplaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BorderDoubt {
    /// The header block.
    Headers(&'static str),
    /// The subject.
    Subject(&'static str),
}

impl BorderDoubt {
    /// In words.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Headers(s) | Self::Subject(s) => s,
        }
    }
}

/// Why `subject` could not have been stored by a server: a stored subject is literal.
pub fn subject_doubt(subject: &[u8]) -> Option<&'static str> {
    let mut token = 0usize;
    let (mut first, mut wild) = (0u8, false);
    for &b in subject {
        match b {
            b'.' => {
                if token == 0 {
                    return Some("subject with an empty token");
                }
                if wild && token == 1 {
                    return Some("subject with a wildcard");
                }
                (token, wild) = (0, false);
                continue;
            }
            b' ' | b'\t' | b'\r' | b'\n' | 0x0c | 0 => return Some("subject with white space"),
            b'*' | b'>' if token == 0 => wild = true,
            _ => {}
        }
        if token == 0 {
            first = b;
        }
        token += 1;
    }
    let _ = first;
    if subject.is_empty() {
        return None;
    }
    if token == 0 {
        return Some("subject that ends in a dot");
    }
    (wild && token == 1).then_some("subject with a wildcard")
}

/// Computes record hashes for one block. Chosen once per block; see [`Prover::sum`].
#[derive(Debug, Clone, Copy)]
pub struct Prover {
    key: HashKey,
}

impl Prover {
    /// For records under `key`.
    pub fn new(key: HashKey) -> Self {
        Self { key }
    }

    /// The prover for block `n` of `name`.
    pub fn for_block(name: impl AsRef<[u8]>, n: u64) -> Self {
        Self::new(HashKey::block(name, n))
    }

    /// Its key.
    pub fn key(&self) -> HashKey {
        self.key
    }

    /// The hash of a record whose covered bytes are `fixed` (sequence and time), `a` and `b`.
    pub(in crate::format) fn sum_parts(&self, fixed: &[u8], a: &[u8], b: &[u8]) -> [u8; 8] {
        simd::sum(self.key.lanes(), fixed, a, b)
    }

    /// The hash that `record` should carry.
    pub fn sum(&self, record: &Record<'_>) -> [u8; 8] {
        let (a, b, c) = record.covered();
        simd::sum(self.key.lanes(), a, b, c)
    }
}

/// The one place where the hash is computed with the instruction set of the machine.
pub(in crate::format) mod simd {
    use crate::format::mend::lanes;
    use highway::{AvxHash, HighwayHash, HighwayHasher, Key};

    #[inline(always)]
    fn digest(mut hasher: impl HighwayHash, a: &[u8], b: &[u8], c: &[u8]) -> [u8; 8] {
        hasher.append(a);
        hasher.append(b);
        if !c.is_empty() {
            hasher.append(c);
        }
        hasher.finalize64().to_le_bytes()
    }

    /// Hashes small records about twice as fast as [`HighwayHasher`], which can not be inlined
    /// across its run-time choice of instruction set.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn sum_avx2(key: [u64; 4], a: &[u8], b: &[u8], c: &[u8]) -> [u8; 8] {
        #[expect(
            unsafe_code,
            reason = "AVX2 is enabled for this function, which is all it asks"
        )]
        let hasher = unsafe { AvxHash::force_new(Key(key)) };
        digest(hasher, a, b, c)
    }

    /// Looks for flipped bits: see [`lanes`].
    pub(in crate::format) fn find_flips(
        job: &lanes::Job<'_>,
        part: lanes::Part,
    ) -> Option<lanes::Hit> {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            #[expect(
                unsafe_code,
                reason = "the processor has AVX2, checked on the line above"
            )]
            return unsafe { lanes::avx2::find(job, part) };
        }
        lanes::portable::find(job, part)
    }

    pub(super) fn sum(key: [u64; 4], a: &[u8], b: &[u8], c: &[u8]) -> [u8; 8] {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            #[expect(
                unsafe_code,
                reason = "the processor has AVX2, checked on the line above"
            )]
            return unsafe { sum_avx2(key, a, b, c) };
        }
        digest(HighwayHasher::new(Key(key)), a, b, c)
    }

    #[cfg(test)]
    pub(super) fn sum_portable(key: [u64; 4], a: &[u8], b: &[u8], c: &[u8]) -> [u8; 8] {
        digest(highway::PortableHash::new(Key(key)), a, b, c)
    }
}

/// Whether a record found by [`scan`] is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Its hash matches.
    Proven,
    /// Its hash does not match, but its lengths lead to a proven record or the end of the block.
    HashMismatch,
}

/// What [`scan`] meets, in order of offset.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// A record.
    Record(Record<'a>, Proof),
    /// Bytes that no record covers, `why` being the fault at `from`.
    Gap {
        /// First byte.
        from: u64,
        /// One past the last byte.
        to: u64,
        /// The record that claims to start here runs past the end of the block, and nothing behind
        /// it proves itself: a torn write.
        torn: bool,
    },
}

/// What [`scan`] does at a record that does not prove itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDamage {
    /// Go on at the next offset where a record proves itself.
    Resync,
    /// Stop, as a server does when it rebuilds its state.
    Stop,
}

/// Hashing that resync may do, as a multiple of the block's length: what bounds the time that
/// hostile bytes can cost.
const RESYNC_BUDGET: u64 = 64;

/// Walks the records of a logical block from its first byte; `base` is the offset of `buf[0]`.
///
/// Returns the offset where the scan ended: the end of `buf`, unless `on_damage` is `Stop`.
pub fn scan<'a>(
    buf: &'a [u8],
    base: u64,
    prover: &Prover,
    on_damage: OnDamage,
    mut visit: impl FnMut(Step<'a>),
) -> u64 {
    let mut pos = 0usize;
    let mut near = None;
    let mut budget = (buf.len() as u64)
        .saturating_mul(RESYNC_BUDGET)
        .saturating_add(1 << 20);
    while let Some(rest) = buf.get(pos..).filter(|r| !r.is_empty()) {
        let at = base.saturating_add(pos as u64);
        let decoded = Record::decode(rest, at);
        if let Ok(record) = decoded
            && record.proves(prover)
        {
            pos = pos.saturating_add(record.raw.len());
            near = Some(record.seq);
            visit(Step::Record(record, Proof::Proven));
            continue;
        }
        if on_damage == OnDamage::Stop {
            return at;
        }
        // A bad hash with good lengths: the next record, or the end, is where the lengths say.
        if let Ok(record) = decoded {
            let after = rest.get(record.raw.len()..).unwrap_or_default();
            let next_proves = Record::decode(after, 0).is_ok_and(|next| {
                budget = budget.saturating_sub(next.len());
                next.proves(prover)
            });
            if next_proves {
                pos = pos.saturating_add(record.raw.len());
                visit(Step::Record(record, Proof::HashMismatch));
                continue;
            }
            if after.is_empty() && resync_near(rest, 1, near, prover, &mut budget).is_none() {
                visit(Step::Record(record, Proof::HashMismatch));
                pos = buf.len();
                continue;
            }
        }
        let found = resync_near(rest, 1, near, prover, &mut budget);
        // Several bad records in a row: lengths that chain up to the next proven record are
        // records whose content is damaged, not garbage.
        let until = found.unwrap_or(rest.len());
        let mut chained = 0usize;
        if let Some(target) = found
            && chains_to(rest, target)
        {
            while chained < target {
                let Some(bytes) = rest.get(chained..) else {
                    break;
                };
                let offset = at.saturating_add(chained as u64);
                let Ok(record) = Record::decode(bytes, offset) else {
                    break;
                };
                chained = chained.saturating_add(record.raw.len());
                visit(Step::Record(record, Proof::HashMismatch));
            }
        }
        if chained < until {
            let torn = found.is_none()
                && (rest.len() < MIN_LEN
                    || matches!(&decoded, Err(f) if matches!(f.kind, FaultKind::Truncated { .. })));
            visit(Step::Gap {
                from: at.saturating_add(chained as u64),
                to: at.saturating_add(until as u64),
                torn,
            });
        }
        pos = pos.saturating_add(until);
    }
    base.saturating_add(pos as u64)
}

/// True when the lengths of consecutive records lead from `buf[0]` to exactly `target`.
fn chains_to(buf: &[u8], target: usize) -> bool {
    let mut pos = 0usize;
    while pos < target {
        let Some(record) = buf.get(pos..target).and_then(|b| Record::decode(b, 0).ok()) else {
            return false;
        };
        pos = pos.saturating_add(record.raw.len());
    }
    pos == target
}

/// The first offset from `from` on where a record proves itself. Cheap tests first, the hash last.
/// `budget` is the number of bytes that may still be hashed, or gone through in vain.
pub fn resync(buf: &[u8], from: usize, prover: &Prover, budget: &mut u64) -> Option<usize> {
    resync_near(buf, from, None, prover, budget)
}

/// Sequences at or above this are only believed with a reason: in random bytes they, and not the
/// lengths, tell a record that is worth its hash.
const UNUSUAL_SEQ: u64 = 1 << 48;

/// [`resync`] in a block where the sequence `near` is known. A record with a sequence above 2^48 is
/// believed when that is less than 2^32 away from `near`, or when the block ends behind it, or what
/// looks like a record with such a sequence follows; else only where there is no other.
pub fn resync_near(
    buf: &[u8],
    from: usize,
    near: Option<u64>,
    prover: &Prover,
    budget: &mut u64,
) -> Option<usize> {
    let close = |a: u64, b: u64| a.abs_diff(b) >> 32 == 0;
    let usual = |seq: u64| seq < UNUSUAL_SEQ || near.is_some_and(|near| close(seq, near));
    let followed = |start: &Start, at: usize| {
        let rest = buf.get(at + start.len..).unwrap_or_default();
        rest.is_empty()
            || Start::read(rest).is_some_and(|next| usual(next.seq) || close(next.seq, start.seq))
    };
    let wanted = |start: &Start, at: usize| usual(start.seq) || followed(start, at);
    let found = hunt(buf, from, wanted, prover, budget);
    if found.is_some() {
        return found;
    }
    *budget = budget.checked_sub(buf.len().saturating_sub(from) as u64)?;
    hunt(buf, from, |start, at| !wanted(start, at), prover, budget)
}

/// What the start of a record says, where its lengths fit.
struct Start {
    len: usize,
    seq: u64,
}

impl Start {
    #[inline(always)]
    fn read(buf: &[u8]) -> Option<Self> {
        let fixed = buf.first_chunk::<FIXED_LEN>()?;
        let [w0, w1, w2, w3, s0, s1, s2, s3, s4, s5, s6, s7, .., l0, l1] = *fixed;
        let word = u32::from_le_bytes([w0, w1, w2, w3]);
        let len = (word & !HEADERS_BIT) as usize;
        if len < MIN_LEN || len > buf.len() {
            return None;
        }
        let hole = if word & HEADERS_BIT != 0 { 4 } else { 0 };
        let taken = usize::from(u16::from_le_bytes([l0, l1])) + hole;
        let seq = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        (taken <= len - MIN_LEN).then_some(Self {
            len,
            seq: seq & !(ERASED_BIT | TOMBSTONE_BIT),
        })
    }
}

/// Positions that are looked at together.
const STRIDE: usize = 32;

/// The first offset from `from` on with a proven record whose start `wanted` wants.
fn hunt(
    buf: &[u8],
    from: usize,
    wanted: impl Fn(&Start, usize) -> bool,
    prover: &Prover,
    budget: &mut u64,
) -> Option<usize> {
    let last = buf.len().checked_sub(MIN_LEN)?;
    // No length that fits has a higher last byte, its flag aside.
    let top = (buf.len().saturating_sub(from) >> 24).min(0x7f) as u8;
    let mut pos = from;
    while pos <= last {
        if let Some(tops) = buf.get(pos + 3..).and_then(|b| b.first_chunk::<STRIDE>())
            && !tops.iter().fold(false, |any, b| any | (b & 0x7f <= top))
        {
            pos += STRIDE;
            continue;
        }
        for at in pos..=last.min(pos + STRIDE - 1) {
            let rest = buf.get(at..).unwrap_or_default();
            if let Some(start) = Start::read(rest)
                && wanted(&start, at)
                && let Ok(record) = Record::decode(rest, 0)
            {
                *budget = budget.checked_sub(record.len())?;
                if record.proves(prover) {
                    return Some(at);
                }
            }
        }
        pos += STRIDE;
    }
    None
}

/// What goes into a record that is written.
#[derive(Debug, Clone, Copy)]
pub struct NewRecord<'a> {
    /// Sequence with its flag bits, if any.
    pub seq: u64,
    /// Time, ns.
    pub ts: i64,
    /// Subject, at most 65,535 bytes.
    pub subject: &'a [u8],
    /// Header block, empty for none.
    pub headers: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
}

/// The length that a record with these parts has on disk.
pub fn encoded_len(subject: usize, headers: usize, payload: usize) -> u64 {
    let headers = if headers > 0 { headers as u64 + 4 } else { 0 };
    MIN_LEN as u64 + subject as u64 + headers + payload as u64
}

/// Appends a record. Fails where the parts are longer than the format can say.
pub fn encode(out: &mut Vec<u8>, key: &HashKey, record: &NewRecord<'_>) -> Result<(), Fault> {
    let len = encoded_len(
        record.subject.len(),
        record.headers.len(),
        record.payload.len(),
    );
    let ceiling = u64::from(HEADERS_BIT - 1);
    let too_large = |what, value, ceiling| {
        Fault::new(
            0,
            FaultKind::TooLarge {
                what,
                value,
                ceiling,
            },
        )
    };
    let slen = u16::try_from(record.subject.len()).map_err(|_| {
        too_large(
            "subject length",
            record.subject.len() as u64,
            u64::from(u16::MAX),
        )
    })?;
    if len > ceiling {
        return Err(too_large("record length", len, ceiling));
    }
    let flag = if record.headers.is_empty() {
        0
    } else {
        HEADERS_BIT
    };
    let start = out.len();
    out.extend_from_slice(&((len as u32) | flag).to_le_bytes());
    out.extend_from_slice(&record.seq.to_le_bytes());
    out.extend_from_slice(&record.ts.to_le_bytes());
    out.extend_from_slice(&slen.to_le_bytes());
    out.extend_from_slice(record.subject);
    if !record.headers.is_empty() {
        out.extend_from_slice(&(record.headers.len() as u32).to_le_bytes());
        out.extend_from_slice(record.headers);
    }
    out.extend_from_slice(record.payload);
    let written = out.get(start..).unwrap_or_default();
    let body = FIXED_LEN + record.subject.len() + if flag == 0 { 0 } else { 4 };
    let hash = simd::sum(
        key.lanes(),
        written.get(4..20).unwrap_or_default(),
        record.subject,
        written.get(body..).unwrap_or_default(),
    );
    out.extend_from_slice(&hash);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(seq: u64, subject: &[u8], headers: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let key = HashKey::block("S", 1);
        encode(
            &mut out,
            &key,
            &NewRecord {
                seq,
                ts: 5,
                subject,
                headers,
                payload,
            },
        )
        .unwrap();
        out
    }

    fn steps(buf: &[u8]) -> Vec<String> {
        let mut out = Vec::new();
        scan(buf, 0, &Prover::for_block("S", 1), OnDamage::Resync, |s| {
            out.push(match s {
                Step::Record(r, p) => format!("{} {} {p:?}", r.offset, r.seq),
                Step::Gap { from, to, torn } => format!("gap {from}..{to} torn={torn}"),
            });
        });
        out
    }

    #[test]
    fn simd_and_portable_hashes_agree() {
        let data: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        let key = HashKey::new("k").lanes();
        for n in [0, 1, 15, 16, 17, 31, 32, 33, 100, 999] {
            assert_eq!(
                simd::sum(key, &data[..16], &data[..n], &data[n / 2..n]),
                simd::sum_portable(key, &data[..16], &data[..n], &data[n / 2..n])
            );
        }
    }

    #[test]
    fn records_round_trip() {
        let raw = message(9, b"a.b", b"NATS/1.0\r\nK: v\r\n\r\n", b"hello");
        let r = Record::decode(&raw, 100).unwrap();
        assert_eq!((r.seq, r.ts, r.kind, r.offset), (9, 5, Kind::Message, 100));
        assert_eq!(
            (r.subject, r.headers, r.payload),
            (&b"a.b"[..], &b"NATS/1.0\r\nK: v\r\n\r\n"[..], &b"hello"[..])
        );
        assert!(r.proves(&Prover::for_block("S", 1)));
        assert!(!r.proves(&Prover::for_block("S", 2)));
        assert_eq!(r.len(), encoded_len(3, 18, 5));
        assert_eq!(r.border_doubts(), None);
    }

    #[test]
    fn scan_goes_on_behind_a_bad_record() {
        let mut buf = message(1, b"x", b"", b"one");
        let second = buf.len();
        buf.extend(message(2, b"x", b"", b"two"));
        let third = buf.len();
        buf.extend(message(3, b"x", b"", b"three"));
        assert_eq!(steps(&buf).len(), 3);
        let mut flipped = buf.clone();
        flipped[second + 25] ^= 1;
        assert_eq!(steps(&flipped)[1], format!("{second} 2 HashMismatch"));
        let mut length = buf.clone();
        length[second + 1] ^= 0x40;
        assert_eq!(
            steps(&length)[1],
            format!("gap {second}..{third} torn=false")
        );
        assert_eq!(steps(&length)[2], format!("{third} 3 Proven"));
        let cut = &buf[..third + 10];
        assert_eq!(
            steps(cut)[2],
            format!("gap {third}..{} torn=true", third + 10)
        );
    }

    #[test]
    fn two_bad_records_in_a_row_keep_their_borders() {
        let mut buf = Vec::new();
        let mut at = Vec::new();
        for i in 1..=4u64 {
            at.push(buf.len());
            buf.extend(message(i, b"x", b"", b"payload"));
        }
        buf[at[1] + 26] ^= 1;
        buf[at[2] + 26] ^= 1;
        let got = steps(&buf);
        assert_eq!(got[1], format!("{} 2 HashMismatch", at[1]));
        assert_eq!(got[2], format!("{} 3 HashMismatch", at[2]));
        assert_eq!(got[3], format!("{} 4 Proven", at[3]));
    }

    #[test]
    fn resync_finds_every_record_behind_any_garbage() {
        // Lengths, sequences and borders of all kinds behind garbage of all kinds and lengths.
        let mut noise = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            noise
        };
        let seqs = [1, 77, 1 << 40, (1 << 48) - 1, 1 << 48, (1 << 62) - 1];
        for (i, garbage) in (0..200usize).map(|i| i * 7 % 150).enumerate() {
            let mut buf: Vec<u8> = (0..garbage)
                .map(|_| match i % 3 {
                    0 => next() as u8,
                    1 => b'x',
                    _ => (next() & 1) as u8,
                })
                .collect();
            let seq = seqs[i % seqs.len()];
            let headers: &[u8] = if i % 2 == 0 { b"" } else { b"NATS/1.0\r\n\r\n" };
            buf.extend(message(seq, b"a.b", headers, &b"payload".repeat(i % 60)));
            buf.extend((0..i % 80).map(|_| next() as u8));
            let prover = Prover::for_block("S", 1);
            assert_eq!(resync(&buf, 0, &prover, &mut 1_000_000), Some(garbage));
            assert_eq!(resync(&buf, garbage + 1, &prover, &mut 1_000_000), None);
            // Without budget nothing is found.
            assert_eq!(resync(&buf, garbage, &prover, &mut 29), None);
        }
        // An unusual sequence next to a known one is not put off.
        let mut buf = b"garbage".to_vec();
        buf.extend(message(1 << 60, b"a", b"", b""));
        buf.extend(message(5, b"a", b"", b""));
        let prover = Prover::for_block("S", 1);
        let near = |n| resync_near(&buf, 1, n, &prover, &mut 1_000_000);
        assert_eq!(near(Some((1 << 60) - 9)), Some(7));
        // Nor one with a record behind it.
        assert_eq!(near(None), Some(7));
        assert_eq!(near(Some(3)), Some(7));
        // One between damages is.
        buf[7 + 31] ^= 0x7f;
        buf.extend(message(6, b"a", b"", b""));
        let near = |n| resync_near(&buf, 1, n, &prover, &mut 1_000_000);
        assert_eq!(near(Some((1 << 60) - 9)), Some(7));
        assert_eq!(near(None), Some(7 + 62));
    }

    #[test]
    fn unusual_sequences_between_garbage_end_with_the_budget() {
        // Each of them needs a look at everything behind it, for a better one.
        let n = 4000;
        let mut buf = Vec::new();
        for i in 0..n {
            buf.extend(message(1 << (50 + i % 2 * 5), b"a", b"", b""));
            buf.push(0);
        }
        let got = steps(&buf);
        let proven = got.iter().filter(|s| s.ends_with("Proven")).count();
        assert!((64..1000).contains(&proven), "{proven}");
        // Usual ones are not put off.
        let n = 500;
        let mut buf = Vec::new();
        for i in 0..n {
            buf.extend(message(i, b"a", b"", b""));
            buf.push(0);
        }
        assert_eq!(steps(&buf).len(), 2 * n as usize);
    }

    #[test]
    fn resync_gets_through_megabytes_of_noise() {
        // Of random bytes every 512th position has a length that fits: hashing each would cost
        // more than the budget after some kilobytes.
        let mut noise = 1u64;
        let mut buf: Vec<u8> = (0..4 << 20)
            .map(|_| {
                noise = noise.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(11);
                (noise >> 33) as u8
            })
            .collect();
        let at = buf.len();
        buf.extend(message(3, b"x", b"", b"there"));
        assert_eq!(steps(&buf)[1], format!("{at} 3 Proven"));
    }

    #[test]
    fn hostile_lengths_are_bounded() {
        // Every offset claims a record to the end of the block.
        let n = 1 << 16;
        let mut buf = vec![0u8; n];
        for i in (0..n - 4).step_by(4) {
            buf[i..i + 4].copy_from_slice(&((n - i) as u32).to_le_bytes());
        }
        let started = std::time::Instant::now();
        assert!(!steps(&buf).is_empty());
        assert!(started.elapsed().as_secs() < 20);
    }

    #[test]
    fn subjects_that_no_server_stores() {
        assert_eq!(subject_doubt(b"orders.new.3"), None);
        assert_eq!(subject_doubt(b"$KV.b.k"), None);
        assert_eq!(subject_doubt(b"a*b.c>"), None);
        for bad in [&b"a..b"[..], b".a", b"a.", b"a.*", b"a.>", b"a b", b"a\r\n"] {
            assert!(subject_doubt(bad).is_some(), "{bad:?}");
        }
    }
}
