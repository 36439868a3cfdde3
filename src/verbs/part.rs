//! Which blocks a check reads: all, one of several parts, or a random sample.
//!
//! It depends on the account, the stream and the block's number alone, so that a block stays in its part whatever is
//! stored or removed. An archive is one unit and counts as its block 0, which no stream has.

use super::resume::{Notes, Stamp};
use crate::format::hash::HashKey;
use crate::source::tree::ChildKind;
use crate::source::{Body, StreamSource, numbered};
use crate::state::{BlockState, Earlier, Plan, Seen};
use crate::stream::{BlockFile, Stream};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

/// More parts than anybody has nights for.
pub const MAX_PARTS: u64 = 10_000;
/// The block that stands for an archive as a whole.
pub const ARCHIVE: u64 = 0;

/// Which blocks of a source are read.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Choice {
    /// All.
    #[default]
    All,
    /// The `k`-th of `n` parts, from 1.
    Part {
        /// Which.
        k: u64,
        /// Of how many.
        n: u64,
    },
    /// About so many of a hundred, by chance.
    Sample {
        /// More than 0, 100 at most.
        percent: f64,
        /// What the choice follows from.
        seed: Option<u64>,
    },
}

impl Choice {
    /// Reads `3/7`.
    pub fn part(text: &str) -> Result<Self, String> {
        text.split_once('/')
            .and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)))
            .filter(|(k, n)| (1..=*n).contains(k) && *n <= MAX_PARTS)
            .map(|(k, n)| Self::Part { k, n })
            .ok_or_else(|| format!("{text:?} is no part such as 3/7 (of {MAX_PARTS} at most)"))
    }

    /// Reads the percentage of a sample: `5%`, `0.1`.
    pub fn sample(text: &str) -> Result<f64, String> {
        let number = text.strip_suffix('%').unwrap_or(text).trim_end();
        number
            .parse()
            .ok()
            .filter(|p| *p > 0.0 && *p <= 100.0)
            .ok_or_else(|| format!("{text:?} is no percentage such as 5% or 0.1%"))
    }

    /// With a seed, where it needs one: its own, this one, else one by chance that is easily typed.
    #[must_use]
    pub fn seeded(self, other: Option<u64>) -> Self {
        let by_chance = || RandomState::new().build_hasher().finish() & u64::from(u32::MAX);
        match self {
            Self::Sample { percent, seed } => Self::Sample {
                percent,
                seed: Some(seed.or(other).unwrap_or_else(by_chance)),
            },
            other => other,
        }
    }

    /// Whether everything is read.
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }

    /// The choice in one stream.
    pub fn of(self, account: &str, stream: &str) -> Chosen {
        let named = [account.as_bytes(), b"\0", stream.as_bytes()];
        let sum = HashKey::new("jetsam check").sum_parts(&named);
        Chosen {
            choice: self,
            stream: u64::from_le_bytes(sum),
        }
    }

    /// In words, for the summary.
    pub fn words(&self) -> Option<String> {
        match self {
            Self::All => None,
            Self::Part { k, n } => Some(format!("part {k} of {n}")),
            Self::Sample { percent, seed } => Some(format!(
                "a sample of {percent}%, seed {}",
                seed.unwrap_or(0)
            )),
        }
    }
}

impl Serialize for Choice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match *self {
            Self::All => {}
            Self::Part { k, n } => map.serialize_entry("part", &json!({ "k": k, "n": n }))?,
            Self::Sample { percent, seed } => {
                let whole = percent.fract() == 0.0;
                let percent: Value = if whole {
                    json!(percent as u64)
                } else {
                    json!(percent)
                };
                map.serialize_entry("sample", &json!({ "percent": percent, "seed": seed }))?;
            }
        }
        map.end()
    }
}

/// The blocks of one stream that are read.
#[derive(Debug, Clone, Copy)]
pub struct Chosen {
    choice: Choice,
    stream: u64,
}

/// Spreads a number over all 64 bits (the finalizer of SplitMix64).
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

impl Chosen {
    /// Whether block `n` is among them.
    pub fn takes(&self, n: u64) -> bool {
        match self.choice {
            Choice::All => true,
            // One after the other, so that the parts of a stream are of one size.
            Choice::Part { k, n: parts } => {
                let parts = parts.max(1);
                (self.stream % parts + n % parts) % parts == k.saturating_sub(1)
            }
            Choice::Sample { percent, seed } => {
                let chance = mix(mix(self.stream ^ mix(seed.unwrap_or(0))).wrapping_add(n));
                // 53 bits are what a float holds.
                let chance = (chance >> 11) as f64 / (1u64 << 53) as f64;
                chance * 100.0 < percent
            }
        }
    }

    /// Whether they are all.
    pub fn is_all(&self) -> bool {
        self.choice.is_all()
    }
}

/// How many blocks a stream has, unread.
pub fn count(source: &StreamSource) -> u64 {
    match &source.body {
        Body::Blocks { tree, dir, msgs } => {
            let children = tree.children(&dir.join(msgs)).unwrap_or_default();
            let files = children.iter().filter(|c| c.kind == ChildKind::File);
            let blocks: BTreeSet<u64> = files.filter_map(|c| numbered(&c.name, "blk")).collect();
            blocks.len() as u64
        }
        Body::Entries(_) => 1,
        Body::Config(_) => 0,
    }
}

/// The check of one stream: what is read of it, and what is known of it from before.
pub struct Sitting<'a> {
    /// The blocks that are read.
    pub chosen: Chosen,
    /// What earlier runs have noted of the stream.
    pub notes: Option<Notes<'a>>,
    /// The stream.
    pub stream: &'a Stream,
    /// Set when the user wants it to stop.
    pub stop: &'a AtomicBool,
}

impl Plan for Sitting<'_> {
    fn is_whole(&self) -> bool {
        self.chosen.is_all()
    }

    fn takes(&self, n: u64) -> bool {
        self.chosen.takes(n)
    }

    fn earlier(&self, file: &BlockFile, known: Option<&BlockState>) -> Earlier {
        let Some(notes) = &self.notes else {
            return Earlier::NotKept;
        };
        match Stamp::of(self.stream, file, known) {
            None => Earlier::NotKept,
            Some(stamp) => match notes.block(file.n, &stamp) {
                Some(seen) => Earlier::Seen(seen),
                None => Earlier::Unseen(stamp),
            },
        }
    }

    fn seen(&self, n: u64, stamp: Stamp, seen: &Seen) {
        if let Some(notes) = &self.notes {
            notes.add_block(n, stamp, seen);
        }
    }

    fn go_on(&self) -> ControlFlow<()> {
        if self.stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAMS: [(&str, &str); 4] = [("$G", "ORDERS"), ("$G", "A"), ("A", "$G"), ("", "KV_x")];

    #[test]
    fn each_block_is_in_one_part_and_the_parts_are_of_one_size() {
        for n in [1, 2, 7, 100, 9_999, 10_000] {
            for (account, stream) in STREAMS {
                let parts: Vec<Chosen> = (1..=n)
                    .map(|k| Choice::Part { k, n }.of(account, stream))
                    .collect();
                let blocks = 300;
                let mut sizes = vec![0u64; n as usize];
                for b in 5_000..5_000 + blocks {
                    let mut of = parts.iter().enumerate().filter(|(_, p)| p.takes(b));
                    sizes[of.next().unwrap().0] += 1;
                    assert!(of.next().is_none());
                }
                let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
                assert!(most - least <= 1, "{n}: {least} to {most}");
            }
        }
    }

    /// Many streams of one block each, as buckets and archives are, spread as well.
    #[test]
    fn small_streams_are_spread() {
        let mut sizes = [0u64; 7];
        for i in 0..7_000 {
            let name = format!("S{i}");
            let of = (1..=7).position(|k| Choice::Part { k, n: 7 }.of("$G", &name).takes(ARCHIVE));
            sizes[of.unwrap()] += 1;
        }
        assert!(sizes.iter().all(|s| (850..1150).contains(s)), "{sizes:?}");
    }

    /// The parts of today are those of the next release: a check that takes a year goes on.
    #[test]
    fn the_choice_never_changes() {
        let of = |choice: Choice| {
            let chosen = choice.of("$G", "ORDERS");
            (1..=60).filter(|n| chosen.takes(*n)).collect::<Vec<u64>>()
        };
        let part = of(Choice::Part { k: 3, n: 7 });
        assert_eq!(part, [7, 14, 21, 28, 35, 42, 49, 56]);
        let sample = |seed| {
            of(Choice::Sample {
                percent: 10.0,
                seed: Some(seed),
            })
        };
        assert_eq!(sample(1), sample(1));
        assert_ne!(sample(1), sample(2));
        assert_eq!(sample(1), [22, 26, 48, 51]);
        assert_ne!(
            Choice::All.of("a", "b").stream,
            Choice::All.of("ab", "").stream
        );
    }

    #[test]
    fn samples_have_about_the_size_that_was_asked_for() {
        for (percent, seed) in [(0.5, 1), (5.0, 2), (50.0, 3), (99.5, 4), (100.0, 5)] {
            let choice = Choice::Sample {
                percent,
                seed: Some(seed),
            };
            let mut taken = 0u64;
            for i in 0..100 {
                let chosen = choice.of("$G", &format!("S{i}"));
                taken += (1..=1000).filter(|n| chosen.takes(*n)).count() as u64;
            }
            let want = percent * 1000.0;
            let off = (taken as f64 - want).abs();
            // Five standard deviations.
            let far = 5.0 * (want * (1.0 - percent / 100.0)).sqrt();
            assert!(off <= far, "{percent}: {taken}");
        }
    }

    #[test]
    fn what_is_typed() {
        assert_eq!(Choice::part("3/7"), Ok(Choice::Part { k: 3, n: 7 }));
        assert!(Choice::part("1/1").is_ok() && Choice::part("10000/10000").is_ok());
        for bad in [
            "", "3", "0/7", "8/7", "1/10001", "1/0", "-1/7", "a/b", "1/2/3",
        ] {
            Choice::part(bad).unwrap_err();
        }
        for (text, want) in [("5%", 5.0), ("0.1", 0.1), ("100 %", 100.0)] {
            assert_eq!(Choice::sample(text), Ok(want));
        }
        for bad in ["", "%", "0", "-1", "100.1", "NaN", "inf", "1%%"] {
            Choice::sample(bad).unwrap_err();
        }
        let json = |c: Choice| serde_json::to_string(&c).unwrap();
        assert_eq!(json(Choice::All), "{}");
        let percent = 5.0;
        let seed = Some(9);
        assert_eq!(
            json(Choice::Sample { percent, seed }),
            r#"{"sample":{"percent":5,"seed":9}}"#
        );
    }
}
