//! `--io-limit`: so many bytes a second are read from sources, by all threads together, and no more.
//!
//! What was read is paid for afterwards, by waiting, so that a run takes at least its bytes divided by the rate. Reads
//! are made in small pieces: the device sees an even flow. Time that nobody used is kept for a moment only.

use std::fs::File;
use std::io::{self, Read as _};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// So much unused time counts for the next reads: sleeps are never exact.
const KEPT: Duration = Duration::from_millis(100);
/// Nobody sleeps longer than this without looking whether to stop.
const NAP: Duration = Duration::from_millis(100);
/// What is read at once, at least and at most; in between, a tenth of a second's worth.
const PIECES: (u64, u64) = (4 << 10, 1 << 20);

/// The arithmetic: when what was taken so far is paid for.
#[derive(Debug)]
pub struct Bucket {
    rate: NonZeroU64,
    paid: Instant,
}

impl Bucket {
    /// `rate` bytes a second, from `now` on.
    pub fn new(rate: NonZeroU64, now: Instant) -> Self {
        Self { rate, paid: now }
    }

    /// Takes so many bytes; gives how long to wait then.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.rate.get()));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let from = now
            .checked_sub(KEPT)
            .map_or(self.paid, |kept| self.paid.max(kept));
        self.paid = from.checked_add(cost).unwrap_or(from);
        self.paid.saturating_duration_since(now)
    }
}

/// A limit that all who read share.
#[derive(Debug)]
pub struct Limit {
    bucket: Mutex<Bucket>,
    piece: usize,
    stop: Arc<AtomicBool>,
}

impl Limit {
    /// `rate` bytes a second. Once `stop` is set nobody waits any more.
    pub fn new(rate: NonZeroU64, stop: Arc<AtomicBool>) -> Self {
        let piece = (rate.get() / 10).clamp(PIECES.0, PIECES.1);
        Self {
            bucket: Mutex::new(Bucket::new(rate, Instant::now())),
            piece: piece as usize,
            stop,
        }
    }

    /// Pays for bytes that were read.
    pub fn take(&self, bytes: usize) {
        let now = Instant::now();
        let wait = self
            .bucket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(bytes as u64, now);
        while !self.stop.load(Ordering::Relaxed) {
            let left = wait.saturating_sub(now.elapsed());
            if left.is_zero() {
                return;
            }
            sleep(left.min(NAP));
        }
    }

    /// Reads some bytes at `at`, a piece at most.
    pub fn read_at(&self, file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let piece = buf.len().min(self.piece);
        let n = file.read_at(buf.get_mut(..piece).unwrap_or_default(), at)?;
        self.take(n);
        Ok(n)
    }

    /// Adds what is left of a file to `buf`, `ceiling` bytes at most.
    pub fn read_to_end(&self, file: &File, ceiling: u64, buf: &mut Vec<u8>) -> io::Result<()> {
        let mut left = ceiling;
        loop {
            let n = file.take(left.min(self.piece as u64)).read_to_end(buf)?;
            if n == 0 {
                return Ok(());
            }
            self.take(n);
            left = left.saturating_sub(n as u64);
        }
    }
}

/// A file of a source, read by offset.
#[derive(Debug)]
pub struct Input {
    file: File,
    limit: Option<Arc<Limit>>,
}

impl Input {
    /// The file, read no faster than `limit` allows.
    pub fn new(file: File, limit: Option<Arc<Limit>>) -> Self {
        Self { file, limit }
    }

    /// Another handle.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::new(self.file.try_clone()?, self.limit.clone()))
    }

    /// Its length.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads some bytes at `at`.
    pub fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        match &self.limit {
            None => self.file.read_at(buf, at),
            Some(limit) => limit.read_at(&self.file, buf, at),
        }
    }

    /// What it is limited by.
    pub fn limit(&self) -> Option<Arc<Limit>> {
        self.limit.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(n: u64) -> NonZeroU64 {
        NonZeroU64::new(n).unwrap()
    }

    #[test]
    fn what_is_taken_is_paid_for_by_waiting() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        let mut b = Bucket::new(rate(1000), start);
        // Two who read at once wait one after the other.
        assert_eq!(b.take(100, at(0)), ms(100));
        assert_eq!(b.take(50, at(0)), ms(150));
        assert_eq!(b.take(0, at(50)), ms(100));
        // What was slept too long is made up for.
        assert_eq!(b.take(100, at(200)), ms(50));
        // A long rest is not: a tenth of a second counts.
        assert_eq!(b.take(100, at(10_000)), ms(0));
        assert_eq!(b.take(100, at(10_000)), ms(100));
        // At the start nothing was saved.
        let mut b = Bucket::new(rate(1000), start);
        assert_eq!(b.take(30, at(20)), ms(10));
        // Rounded up, and nothing overflows.
        assert_eq!(
            Bucket::new(rate(3), start).take(1, start),
            Duration::from_nanos(333_333_334)
        );
        b.take(u64::MAX, at(30));
        b.take(u64::MAX, at(40));
    }

    #[test]
    fn any_pace_takes_at_least_the_bytes_divided_by_the_rate() {
        let start = Instant::now();
        let mut b = Bucket::new(rate(1_000_000), start);
        let (mut now, mut taken, mut seed) = (start, 0u64, 1u64);
        for _ in 0..10_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let bytes = seed >> 44;
            // Each is as late as it likes to be.
            now += b.take(bytes, now) + Duration::from_micros((seed >> 20) % 200_000);
            taken += bytes;
            assert!(now - start >= Duration::from_micros(taken));
        }
    }

    #[test]
    fn who_is_told_to_stop_does_not_wait() {
        let stop = Arc::new(AtomicBool::new(true));
        let started = Instant::now();
        Limit::new(rate(1), stop.clone()).take(1 << 20);
        let limit = Arc::new(Limit::new(rate(1), Arc::default()));
        let other = limit.clone();
        let waits = std::thread::spawn(move || other.take(1 << 20));
        sleep(Duration::from_millis(20));
        limit.stop.store(true, Ordering::Relaxed);
        waits.join().unwrap();
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn pieces_make_up_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let limit = Limit::new(rate(100_000_000), Arc::default());
        let small = Limit {
            piece: 999,
            ..limit
        };
        let mut buf = Vec::new();
        let file = File::open(&path).unwrap();
        small.read_to_end(&file, 1 << 20, &mut buf).unwrap();
        assert!(buf == bytes);
        buf.clear();
        let file = File::open(&path).unwrap();
        small.read_to_end(&file, 5000, &mut buf).unwrap();
        assert!(buf == bytes[..5000]);
        let mut some = [0; 5000];
        assert_eq!(small.read_at(&file, &mut some, 7).unwrap(), 999);
        assert_eq!(some[..999], bytes[7..1006]);
    }
}
