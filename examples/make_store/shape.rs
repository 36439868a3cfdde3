//! What message number `i` of a stream is: a function of the options and `i` alone, so that blocks can be made in any
//! order.

use crate::args::{Args, Kind};
use jetsam::format::record::encoded_len;
use std::io::Write as _;
use std::sync::Arc;

/// Time of the first message: 2025-01-01.
pub const BEGIN: i64 = 1_735_689_600_000_000_000;
/// Between one sequence and the next.
const STEP: i64 = 1_000_000;
/// Bytes that payloads are cut from.
const POOL: usize = 8 << 20;
const MILLION: u64 = 1_000_000;

/// A number that looks random, and is the same every time (splitmix64).
pub fn mix(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One of `0..n`.
fn below(random: u64, n: u64) -> u64 {
    ((u128::from(random) * u128::from(n)) >> 64) as u64
}

/// Text that payloads are cut from, and where they may begin.
#[derive(Debug)]
pub struct Pool {
    kind: Kind,
    bytes: Vec<u8>,
    starts: Vec<u32>,
}

impl Pool {
    pub fn new(kind: Kind, seed: u64) -> Self {
        let mut pool = Self {
            kind,
            bytes: Vec::new(),
            starts: Vec::new(),
        };
        let mut at = 0;
        let mut random = || {
            at += 1;
            mix(!seed, at)
        };
        let words: Vec<Vec<u8>> = (0..512)
            .map(|_| {
                let (n, r) = (2 + random() % 7, random());
                let letter = |i| b"etaoinshrdlucmfw"[(r >> (4 * i)) as usize % 16];
                (0..n).map(letter).collect()
            })
            .collect();
        let text = matches!(kind, Kind::Json | Kind::Text);
        while text && pool.bytes.len() < POOL {
            pool.starts.push(pool.bytes.len() as u32);
            // Some words are more common than others.
            let mut word = || {
                let n = below(random(), 1 << 22);
                &words[((n * n) >> 35) as usize]
            };
            let out = &mut pool.bytes;
            let mut words = |out: &mut Vec<u8>, n| {
                for i in 0..n {
                    if i > 0 {
                        out.push(b' ');
                    }
                    out.extend_from_slice(word());
                }
            };
            if kind == Kind::Text {
                words(out, 12);
                out.extend_from_slice(b". ");
                continue;
            }
            let _ = out.write_all(b"\"customer\":\"");
            words(out, 2);
            let _ = out.write_all(b"\",\"note\":\"");
            words(out, 8);
            let (a, b) = (random(), random());
            let _ = write!(
                out,
                "\",\"quantity\":{},\"price\":{}.{:02},\"ref\":\"{:06x}\",\"paid\":{}}},{{",
                a % 50,
                (a >> 8) % 1000,
                (a >> 20) % 100,
                b as u32 >> 8,
                b >> 63 == 1,
            );
        }
        pool
    }

    /// Appends the payload of `len` bytes for the message `i`.
    fn put(&self, out: &mut Vec<u8>, i: u64, random: u64, len: usize) {
        out.reserve(len);
        match self.kind {
            Kind::Zero => out.resize(out.len() + len, 0),
            Kind::Random => {
                for n in 0..len.div_ceil(8) as u64 {
                    out.extend_from_slice(&mix(random, n).to_le_bytes());
                }
            }
            Kind::Json | Kind::Text => {
                if self.kind == Kind::Json {
                    let _ = write!(out, "{{\"id\":{i},");
                }
                // One message goes on where the one before ended: memory is fast in that order.
                let records = self.starts.len();
                let stride = len * records / self.bytes.len() + 1;
                let start = (i as usize).wrapping_mul(stride) % records;
                let mut from = self.starts[start] as usize;
                while out.len() < len {
                    let rest = &self.bytes[from..];
                    out.extend_from_slice(&rest[..rest.len().min(len - out.len())]);
                    from = 0;
                }
            }
        }
        out.truncate(len);
    }
}

/// All messages of one stream.
#[derive(Debug, Clone)]
pub struct Shape {
    pub name: String,
    pub prefix: String,
    pub messages: u64,
    pub subjects: u64,
    pub kv: bool,
    headers: bool,
    seed: u64,
    size: (u64, u64),
    runs: (u64, u64),
    scattered: u64,
    between_blocks: bool,
    pool: Arc<Pool>,
}

/// Buffers for one message.
#[derive(Debug, Default)]
pub struct Parts {
    pub subject: Vec<u8>,
    pub headers: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Shape {
    /// Of the stream number `k` (from 1).
    pub fn new(args: &Args, k: u64, pool: &Arc<Pool>) -> Self {
        let several = args.streams > 1;
        let name = args.name.as_deref();
        let name = match several || name.is_none() {
            true => format!("{}{k}", name.unwrap_or("S")),
            false => name.unwrap_or("S").to_owned(),
        };
        Self {
            prefix: match several {
                true => format!("{}.{k}.", args.prefix),
                false => format!("{}.", args.prefix),
            },
            name,
            messages: args.messages,
            subjects: if args.kv {
                args.messages
            } else {
                args.subjects
            },
            kv: args.kv,
            headers: args.headers,
            seed: mix(args.seed, k),
            size: args.size,
            runs: args.deleted_runs,
            scattered: args.deleted_scattered,
            between_blocks: args.between_blocks,
            pool: Arc::clone(pool),
        }
    }

    /// How many runs of deletes come before message `i`.
    fn runs_before(&self, i: u64) -> u64 {
        let (count, _) = self.runs;
        // Run r (from 1) comes right before the message r * messages / (count + 1).
        let parts = u128::from(count) + 1;
        let r = (u128::from(i) * parts + parts - 1) / u128::from(self.messages.max(1));
        (r as u64).min(count)
    }

    /// Sequence of message `i`. The first is 1 and the last is not deleted.
    pub fn seq(&self, i: u64) -> u64 {
        let scattered = match self.scattered {
            0 => i,
            n => (u128::from(i) * u128::from(MILLION) / u128::from(MILLION - n)) as u64,
        };
        let runs = match self.runs.0 {
            0 => 0,
            _ => self.runs_before(i).saturating_mul(self.runs.1),
        };
        scattered.saturating_add(runs).saturating_add(1)
    }

    /// Sequence of the last message, 0 without any.
    pub fn last_seq(&self) -> u64 {
        match self.messages {
            0 => 0,
            n => self.seq(n - 1),
        }
    }

    /// Whether a block has to begin with message `i`.
    pub fn begins_block(&self, i: u64) -> bool {
        self.between_blocks && i > 0 && self.runs_before(i) > self.runs_before(i - 1)
    }

    pub fn ts(&self, seq: u64) -> i64 {
        BEGIN.saturating_add((seq as i64).saturating_mul(STEP))
    }

    fn size(&self, i: u64) -> u64 {
        let (from, to) = self.size;
        from + below(mix(self.seed ^ 1, i), to - from + 1)
    }

    /// Number of the subject of message `i`.
    pub fn subject(&self, i: u64) -> u64 {
        match self.kv {
            // Each once, in an order that is not theirs: 2^64 - 59 is prime.
            true => {
                let factor = 0xffff_ffff_ffff_ffc5 % self.subjects;
                (u128::from(i) * u128::from(factor) % u128::from(self.subjects)) as u64
            }
            false => below(mix(self.seed ^ 2, i), self.subjects),
        }
    }

    /// Length of the record of a message `i` with this subject.
    pub fn record_len(&self, i: u64, subject: u64) -> u64 {
        let digits = subject.checked_ilog10().unwrap_or(0) as usize + 1;
        let headers = if self.headers { HEADERS_LEN } else { 0 };
        encoded_len(self.prefix.len() + digits, headers, self.size(i) as usize)
    }

    pub fn put_subject(&self, out: &mut Vec<u8>, subject: u64) {
        out.clear();
        out.extend_from_slice(self.prefix.as_bytes());
        let _ = write!(out, "{subject}");
    }

    /// The parts of message `i`.
    pub fn message(&self, i: u64, parts: &mut Parts) {
        self.put_subject(&mut parts.subject, self.subject(i));
        parts.headers.clear();
        if self.headers {
            put_headers(&mut parts.headers, self.seed, i);
        }
        parts.payload.clear();
        let len = self.size(i) as usize;
        self.pool
            .put(&mut parts.payload, i, mix(self.seed ^ 3, i), len);
    }

    /// A number for consumer `c`.
    pub fn of_consumer(&self, c: u64, n: u64) -> u64 {
        below(mix(self.seed ^ 4, c), n)
    }
}

const HEADERS_LEN: usize = 68;

fn put_headers(out: &mut Vec<u8>, seed: u64, i: u64) {
    let _ = write!(
        out,
        "NATS/1.0\r\nNats-Msg-Id: {i:016x}\r\nTrace: {:016x}\r\n\r\n",
        mix(seed ^ 5, i)
    );
}
