//! Single and double bit flips under HighwayHash-64, with as little hashing as there can be.
//!
//! The hash takes packets of 32 bytes. Up to its last step, which mixes everything, the first and
//! the second 16 bytes of each packet act on two halves of the state that know nothing of each
//! other. So
//!
//! * the state before packet `k` is shared by all candidates that first differ in `k`;
//! * one pass over what follows serves two candidates, one per half, each finished together with the
//!   other half of the undamaged stream's last state;
//! * two flips in different halves need no pass of their own, only the last step.
//!
//! For `n` bytes the single bits cost `n²/8` packets. The last, partial packet is mixed differently
//! and tried by brute force, together with the packet before it.

/// Bits of a packet.
const PACKET: usize = 256;
/// Bits of half a packet.
const HALF: usize = 128;
/// Bytes of a packet.
pub(in crate::format) const PACKET_LEN: usize = 32;

/// What is searched.
#[derive(Debug, Clone, Copy)]
pub(in crate::format) struct Job<'a> {
    /// Key of the hash.
    pub key: [u64; 4],
    /// What the hash covers.
    pub data: &'a [u8],
    /// The hash that `data` should have.
    pub stored: u64,
    /// 0: single bits. Else: two bits at most so far apart.
    pub near: usize,
}

/// A flip that gives the stored hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::format) enum Hit {
    /// Of a bit of the data.
    One(usize),
    /// Of two bits of the data.
    Two(usize, usize),
    /// Of a bit of the data and one of the stored hash.
    WithHash(usize, u32),
}

/// A part of a job, to run in parallel with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::format) enum Part {
    /// The candidates whose first flip is in these whole packets.
    Packets(usize, usize),
    /// Those whose last flip is in the partial packet or the stored hash.
    Tail,
}

impl Job<'_> {
    /// Whole packets.
    pub(in crate::format) fn packets(&self) -> usize {
        self.data.len() / PACKET_LEN
    }

    /// Candidates and bytes hashed for packet `k`.
    pub(in crate::format) fn cost(&self, k: usize) -> (u64, u64) {
        let suffix = (self.data.len() - (k * PACKET_LEN).min(self.data.len())) as u64;
        // The last step is worth about five packets.
        let finish = 5 * PACKET_LEN as u64;
        if self.near == 0 {
            return (
                PACKET as u64,
                HALF as u64 * suffix.saturating_add(2 * finish),
            );
        }
        let near = self.near as u64;
        let candidates = PACKET as u64 * near;
        let passes = HALF as u64 * (near + 2);
        (
            candidates,
            passes
                .saturating_mul(suffix)
                .saturating_add(candidates * finish),
        )
    }

    /// Candidates and bytes hashed for the partial packet.
    pub(in crate::format) fn tail_cost(&self) -> (u64, u64) {
        let bits = 8 * (self.data.len() % PACKET_LEN) as u64;
        let candidates = if self.near == 0 {
            bits
        } else {
            (bits + PACKET as u64) * self.near as u64
        };
        (
            candidates,
            candidates * 7 * PACKET_LEN as u64 + self.data.len() as u64,
        )
    }
}

/// The partial packet as the hash takes it.
fn partial(tail: &[u8]) -> [u8; PACKET_LEN] {
    let mut packet = [0u8; PACKET_LEN];
    let n = tail.len() % PACKET_LEN;
    let (words, odd) = tail.split_at(n & !3);
    for (to, from) in packet.iter_mut().zip(words) {
        *to = *from;
    }
    if n & 16 != 0 {
        if let (Some(to), Some(from)) = (packet.last_chunk_mut::<4>(), tail.last_chunk::<4>()) {
            *to = *from;
        }
    } else if let (Some(a), Some(b), Some(c)) = (odd.first(), odd.get(odd.len() >> 1), odd.last()) {
        (packet[16], packet[17], packet[18]) = (*a, *b, *c);
    }
    packet
}

/// The kernel, once for each set of primitives: both halves of the source are the same.
macro_rules! kernel {
    ($($feature:meta)?) => {
        /// State of the hash.
        #[derive(Clone, Copy)]
        struct State {
            v0: V,
            v1: V,
            m0: V,
            m1: V,
        }

        $(#[$feature])?
        #[inline]
        fn start(key: [u64; 4]) -> State {
            let m0 = [
                0xdbe6_d5d5_fe4c_ce2f,
                0xa409_3822_299f_31d0,
                0x1319_8a2e_0370_7344,
                0x243f_6a88_85a3_08d3,
            ];
            let m1 = [
                0x3bd3_9e10_cb0e_f593,
                0xc0ac_f169_b5f1_8a8c,
                0xbe54_66cf_34e9_0c6c,
                0x4528_21e6_38d0_1377,
            ];
            State {
                v0: xor(lanes(m0), lanes(key)),
                v1: xor(lanes(m1), lanes(key.map(|k| k.rotate_left(32)))),
                m0: lanes(m0),
                m1: lanes(m1),
            }
        }

        $(#[$feature])?
        #[inline]
        fn update(s: &mut State, packet: V) {
            s.v1 = add(s.v1, add(s.m0, packet));
            s.m0 = xor(s.m0, mul(s.v1, s.v0));
            s.v0 = add(s.v0, s.m1);
            s.m1 = xor(s.m1, mul(s.v0, s.v1));
            s.v0 = add(s.v0, zip(s.v1));
            s.v1 = add(s.v1, zip(s.v0));
        }

        $(#[$feature])?
        #[inline]
        fn load(packet: &[u8; PACKET_LEN]) -> V {
            let mut words = [0u64; 4];
            for (word, bytes) in words.iter_mut().zip(packet.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            lanes(words)
        }

        /// Bit `i` of a packet.
        $(#[$feature])?
        #[inline]
        fn bit(i: usize) -> V {
            let mut words = [0u64; 4];
            if let Some(word) = words.get_mut(i / 64) {
                *word = 1 << (i % 64);
            }
            lanes(words)
        }

        /// Takes in what is left after the whole packets.
        $(#[$feature])?
        #[inline]
        fn remainder(s: &mut State, n: usize, packet: V) {
            if n > 0 {
                s.v0 = add(s.v0, lanes([((n as u64) << 32) + n as u64; 4]));
                s.v1 = rotate32(s.v1, n as u32);
                update(s, packet);
            }
        }

        /// The whole packets `rest` and then the tail, for several streams at once.
        $(#[$feature])?
        #[inline]
        fn run<const W: usize>(
            mut s: [State; W],
            rest: &[[u8; PACKET_LEN]],
            tail_len: usize,
            tail: V,
        ) -> [State; W] {
            for packet in rest {
                let packet = load(packet);
                for s in &mut s {
                    update(s, packet);
                }
            }
            for s in &mut s {
                remainder(s, tail_len, tail);
            }
            s
        }

        $(#[$feature])?
        #[inline]
        fn finish(mut s: State) -> u64 {
            for _ in 0..4 {
                let permuted = permute(s.v0);
                update(&mut s, permuted);
            }
            lane0(add(add(s.v0, s.v1), add(s.m0, s.m1)))
        }

        /// First half of `a`, second half of `b`.
        $(#[$feature])?
        #[inline]
        fn join(a: &State, b: &State) -> State {
            State {
                v0: halves(a.v0, b.v0),
                v1: halves(a.v1, b.v1),
                m0: halves(a.m0, b.m0),
                m1: halves(a.m1, b.m1),
            }
        }

        /// Last states of the 128 streams that have bit `t` and bit `128 + t` of the packet flipped.
        $(#[$feature])?
        #[inline]
        fn singles(
            before: State,
            packet: V,
            rest: &[[u8; PACKET_LEN]],
            tail_len: usize,
            tail: V,
            out: &mut Vec<State>,
        ) {
            out.clear();
            for t in (0..HALF).step_by(2) {
                let mut pair = [before; 2];
                for (i, s) in pair.iter_mut().enumerate() {
                    update(s, xor(packet, xor(bit(t + i), bit(t + i + HALF))));
                }
                out.extend(run(pair, rest, tail_len, tail));
            }
        }

        /// All candidates whose first flip is in the packets `from..to`.
        $(#[$feature])?
        fn packets(job: &Job<'_>, from: usize, to: usize) -> Option<Hit> {
            let (all, tail) = job.data.as_chunks::<PACKET_LEN>();
            let (tail_len, tail) = (tail.len(), load(&partial(tail)));
            let mut before = start(job.key);
            for packet in all.iter().take(from) {
                update(&mut before, load(packet));
            }
            let [undamaged] = run(
                [before],
                all.get(from..).unwrap_or_default(),
                tail_len,
                tail,
            );
            let (mut here, mut next) = (Vec::with_capacity(HALF), Vec::with_capacity(HALF));
            let mut next_is = usize::MAX;
            for k in from..to.min(all.len()) {
                let packet = load(all.get(k)?);
                let rest = all.get(k + 1..).unwrap_or_default();
                if next_is == k {
                    std::mem::swap(&mut here, &mut next);
                } else {
                    singles(before, packet, rest, tail_len, tail, &mut here);
                }
                let at = k * PACKET;
                let was = before;
                update(&mut before, packet);
                if job.near == 0 {
                    for (t, s) in here.iter().enumerate() {
                        if finish(join(s, &undamaged)) == job.stored {
                            return Some(Hit::One(at + t));
                        }
                        if finish(join(&undamaged, s)) == job.stored {
                            return Some(Hit::One(at + HALF + t));
                        }
                    }
                    continue;
                }
                // Two flips in the same half: one pass for both halves again.
                for t in 0..HALF {
                    let last = (HALF - 1).min(t + job.near);
                    for u in (t + 1..=last).step_by(2) {
                        let mut pair = [was; 2];
                        let second = [u, (u + 1).min(last)];
                        for (s, u) in pair.iter_mut().zip(second) {
                            let first = xor(bit(t), bit(t + HALF));
                            let both = xor(first, xor(bit(u), bit(u + HALF)));
                            update(s, xor(packet, both));
                        }
                        let pair = run(pair, rest, tail_len, tail);
                        for (s, u) in pair.iter().zip(second) {
                            if finish(join(s, &undamaged)) == job.stored {
                                return Some(Hit::Two(at + t, at + u));
                            }
                            if finish(join(&undamaged, s)) == job.stored {
                                return Some(Hit::Two(at + HALF + t, at + HALF + u));
                            }
                        }
                    }
                }
                // One in each half of this packet.
                for (t, a) in here.iter().enumerate().skip(HALF.saturating_sub(job.near)) {
                    for (u, b) in here.iter().enumerate().take(job.near.saturating_sub(HALF - 1 - t)) {
                        if finish(join(a, b)) == job.stored {
                            return Some(Hit::Two(at + t, at + HALF + u));
                        }
                    }
                }
                // One in the second half of this packet, one in the first half of the next.
                if let Some((packet, rest)) = rest.split_first() {
                    singles(before, load(packet), rest, tail_len, tail, &mut next);
                    next_is = k + 1;
                    for (t, a) in here.iter().enumerate().skip(HALF.saturating_sub(job.near)) {
                        for (u, b) in next.iter().enumerate().take(job.near.saturating_sub(HALF - 1 - t)) {
                            if finish(join(b, a)) == job.stored {
                                return Some(Hit::Two(at + HALF + t, at + PACKET + u));
                            }
                        }
                    }
                }
            }
            None
        }

        /// All candidates whose last flip is in the partial packet or in the stored hash.
        $(#[$feature])?
        fn tail(job: &Job<'_>) -> Option<Hit> {
            let (all, tail) = job.data.as_chunks::<PACKET_LEN>();
            let (last, earlier) = match all.split_last() {
                Some((last, earlier)) => (Some(last), earlier),
                None => (None, all),
            };
            let mut before = start(job.key);
            for packet in earlier {
                update(&mut before, load(packet));
            }
            let from = earlier.len() * PACKET;
            let tail_from = all.len() * PACKET;
            let end = job.data.len() * 8;
            let hash = |flips: [usize; 2]| {
                let mut s = before;
                if let Some(last) = last {
                    let mut packet = load(last);
                    for flip in flips.into_iter().filter(|&f| f < tail_from) {
                        packet = xor(packet, bit(flip - from));
                    }
                    update(&mut s, packet);
                }
                let mut rest = [0u8; PACKET_LEN];
                for (to, from) in rest.iter_mut().zip(tail) {
                    *to = *from;
                }
                for flip in flips.into_iter().filter(|&f| (tail_from..end).contains(&f)) {
                    if let Some(byte) = rest.get_mut((flip - tail_from) / 8) {
                        *byte ^= 1 << (flip % 8);
                    }
                }
                let packet = partial(rest.get(..tail.len()).unwrap_or_default());
                remainder(&mut s, tail.len(), load(&packet));
                finish(s)
            };
            if job.near == 0 {
                return (tail_from..end)
                    .find(|&a| hash([a, end]) == job.stored)
                    .map(Hit::One);
            }
            for a in from..end {
                let wrong = hash([a, end]) ^ job.stored;
                if wrong.count_ones() == 1 {
                    let b = wrong.trailing_zeros();
                    if end + b as usize - a <= job.near {
                        return Some(Hit::WithHash(a, b));
                    }
                }
                for b in tail_from.max(a + 1)..end.min(a + job.near + 1) {
                    if hash([a, b]) == job.stored {
                        return Some(Hit::Two(a, b));
                    }
                }
            }
            None
        }

        /// Tries a part of the candidates.
        $(#[$feature])?
        pub(in crate::format) fn find(job: &Job<'_>, part: Part) -> Option<Hit> {
            match part {
                Part::Packets(from, to) => packets(job, from, to),
                Part::Tail => tail(job),
            }
        }
    };
}

/// On any machine.
pub(in crate::format) mod portable {
    use super::{HALF, Hit, Job, PACKET, PACKET_LEN, Part, partial};

    type V = [u64; 4];

    #[inline]
    fn each(a: V, b: V, f: impl Fn(u64, u64) -> u64) -> V {
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a, b);
        [f(a0, b0), f(a1, b1), f(a2, b2), f(a3, b3)]
    }

    #[inline]
    fn lanes(words: [u64; 4]) -> V {
        words
    }

    #[inline]
    fn add(a: V, b: V) -> V {
        each(a, b, u64::wrapping_add)
    }

    #[inline]
    fn xor(a: V, b: V) -> V {
        each(a, b, |a, b| a ^ b)
    }

    /// Low halves of `a` times high halves of `b`.
    #[inline]
    fn mul(a: V, b: V) -> V {
        each(a, b, |a, b| (a & 0xffff_ffff) * (b >> 32))
    }

    #[inline]
    fn zip([v0, v1, v2, v3]: V) -> V {
        let pair = |lo: u64, hi: u64| {
            let l = lo.to_le_bytes();
            let h = hi.to_le_bytes();
            (
                u64::from_le_bytes([l[3], h[4], l[2], l[5], h[6], l[1], h[7], l[0]]),
                u64::from_le_bytes([h[3], l[4], h[2], h[5], h[1], l[6], h[0], l[7]]),
            )
        };
        let ((a, b), (c, d)) = (pair(v0, v1), pair(v2, v3));
        [a, b, c, d]
    }

    #[inline]
    fn rotate32(v: V, n: u32) -> V {
        v.map(|lane| {
            let (low, high) = (lane as u32, (lane >> 32) as u32);
            u64::from(low.rotate_left(n)) | u64::from(high.rotate_left(n)) << 32
        })
    }

    #[inline]
    fn permute([a, b, c, d]: V) -> V {
        [c, d, a, b].map(|v| v.rotate_left(32))
    }

    #[inline]
    fn halves([a, b, ..]: V, [.., c, d]: V) -> V {
        [a, b, c, d]
    }

    #[inline]
    fn lane0([a, ..]: V) -> u64 {
        a
    }

    kernel!();

    /// The hash, to compare with.
    #[cfg(test)]
    pub(super) fn sum(key: [u64; 4], data: &[u8]) -> u64 {
        let (all, tail) = data.as_chunks::<PACKET_LEN>();
        let [s] = run([start(key)], all, tail.len(), load(&partial(tail)));
        finish(s)
    }
}

/// With AVX2: the safe functions that need it enabled in their caller.
#[cfg(target_arch = "x86_64")]
pub(in crate::format) mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm_cvtsi128_si64, _mm256_add_epi64, _mm256_blend_epi32, _mm256_castsi256_si128,
        _mm256_mul_epu32, _mm256_or_si256, _mm256_permute4x64_epi64, _mm256_set_epi64x,
        _mm256_set1_epi32, _mm256_shuffle_epi8, _mm256_shuffle_epi32, _mm256_sllv_epi32,
        _mm256_srli_epi64, _mm256_srlv_epi32, _mm256_xor_si256,
    };

    use super::{HALF, Hit, Job, PACKET, PACKET_LEN, Part, partial};

    type V = __m256i;

    #[target_feature(enable = "avx2")]
    #[inline]
    fn lanes([a, b, c, d]: [u64; 4]) -> V {
        _mm256_set_epi64x(d as i64, c as i64, b as i64, a as i64)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn add(a: V, b: V) -> V {
        _mm256_add_epi64(a, b)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn xor(a: V, b: V) -> V {
        _mm256_xor_si256(a, b)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn mul(a: V, b: V) -> V {
        _mm256_mul_epu32(a, _mm256_srli_epi64::<32>(b))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn zip(v: V) -> V {
        let (high, low) = (0x0708_0609_0d0a_040b, 0x000f_010e_0502_0c03);
        _mm256_shuffle_epi8(v, _mm256_set_epi64x(high, low, high, low))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn rotate32(v: V, n: u32) -> V {
        _mm256_or_si256(
            _mm256_sllv_epi32(v, _mm256_set1_epi32(n as i32)),
            _mm256_srlv_epi32(v, _mm256_set1_epi32(32 - n as i32)),
        )
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn permute(v: V) -> V {
        _mm256_shuffle_epi32::<0b10_11_00_01>(_mm256_permute4x64_epi64::<0b01_00_11_10>(v))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn halves(a: V, b: V) -> V {
        _mm256_blend_epi32::<0xf0>(a, b)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn lane0(v: V) -> u64 {
        _mm_cvtsi128_si64(_mm256_castsi256_si128(v)) as u64
    }

    kernel!(target_feature(enable = "avx2"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::hash::HashKey;
    use crate::format::record::simd;

    fn bytes(n: usize) -> Vec<u8> {
        (0..n as u32).map(|i| ((i * i) >> 3) as u8).collect()
    }

    fn expected(key: HashKey, data: &[u8]) -> u64 {
        u64::from_le_bytes(key.sum(data))
    }

    #[test]
    fn both_kernels_compute_the_hash() {
        let key = HashKey::new("ORDERS");
        for n in 0..200 {
            let data = bytes(n);
            assert_eq!(
                portable::sum(key.lanes(), &data),
                expected(key, &data),
                "{n}"
            );
        }
    }

    /// All parts of a job, by the kernel of this machine and the portable one.
    fn find(job: &Job<'_>) -> Option<Hit> {
        let n = job.packets();
        let parts: Vec<_> = (0..n)
            .step_by(3)
            .map(|k| Part::Packets(k, (k + 3).min(n)))
            .chain([Part::Tail])
            .collect();
        let here = parts.iter().find_map(|&p| simd::find_flips(job, p));
        let anywhere = parts.iter().find_map(|&p| portable::find(job, p));
        assert_eq!(here, anywhere);
        here
    }

    #[test]
    fn every_single_bit_is_found() {
        let key = HashKey::new("ORDERS");
        for n in [1, 3, 15, 16, 31, 32, 33, 64, 83, 110] {
            let mut data = bytes(n);
            let stored = expected(key, &data);
            for i in 0..n * 8 {
                super::super::toggle(&mut data, i);
                let job = Job {
                    key: key.lanes(),
                    data: &data,
                    stored,
                    near: 0,
                };
                assert_eq!(find(&job), Some(Hit::One(i)), "bit {i} of {n} bytes");
                super::super::toggle(&mut data, i);
            }
        }
    }

    #[test]
    fn every_two_near_bits_are_found() {
        let key = HashKey::new("ORDERS");
        let near = 20;
        for n in [5, 31, 32, 37, 64, 75] {
            let mut data = bytes(n);
            let stored = expected(key, &data);
            for i in (0..n * 8).step_by(3) {
                for d in [1, 2, 3, 7, 8, 13, 19, 20, 21] {
                    let (a, b) = (i, i + d);
                    let mut damaged = stored;
                    super::super::toggle(&mut data, a);
                    if b < n * 8 {
                        super::super::toggle(&mut data, b);
                    } else {
                        damaged ^= 1 << (b - n * 8);
                    }
                    let job = Job {
                        key: key.lanes(),
                        data: &data,
                        stored: damaged,
                        near,
                    };
                    let want = if d > near {
                        None
                    } else if b < n * 8 {
                        Some(Hit::Two(a, b))
                    } else {
                        Some(Hit::WithHash(a, (b - n * 8) as u32))
                    };
                    assert_eq!(find(&job), want, "bits {a} and {b} of {n} bytes");
                    super::super::toggle(&mut data, a);
                    if b < n * 8 {
                        super::super::toggle(&mut data, b);
                    }
                }
            }
        }
    }
}
