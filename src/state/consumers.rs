//! Consumers: how many messages each still has before it.

use super::subjects::{SubjectMap, matches_any};
use super::visit::live_records;
use super::{StreamState, blocks_to_read};
use crate::format::o_dat::SeqPair;
use crate::pipeline::{self, Threads};
use crate::stream::{Consumer, Scratch, Stream};
use std::ops::ControlFlow;

/// What a consumer has delivered and what was acknowledged, whether or not it has a state yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Last delivered.
    pub delivered: SeqPair,
    /// Everything up to here is acknowledged.
    pub ack_floor: SeqPair,
}

/// Where a consumer stands.
pub fn position(consumer: &Consumer, state: &StreamState) -> Position {
    // Zeros count, too: a consumer that never delivered starts over at every server's start.
    if let Some(s) = &consumer.state {
        return Position {
            delivered: s.delivered,
            ack_floor: s.ack_floor,
        };
    }
    // A consumer without a state starts where its delivery policy says.
    let policy = consumer
        .meta
        .as_ref()
        .map(|m| m.deliver_policy())
        .unwrap_or("all");
    let next = match policy {
        "new" => state.last_seq.saturating_add(1),
        "last" => state.last_seq,
        "by_start_sequence" => consumer
            .meta
            .as_ref()
            .map_or(0, |m| m.opt_start_seq())
            .max(1),
        _ => state.first_seq.max(1),
    };
    let stream = next.saturating_sub(1);
    Position {
        delivered: SeqPair {
            consumer: 0,
            stream,
        },
        ack_floor: SeqPair {
            consumer: 0,
            stream,
        },
    }
}

struct Filtered<'a> {
    index: usize,
    from: u64,
    filters: Vec<&'a str>,
    last_per_subject: bool,
}

/// The number of messages that each consumer has not been delivered yet, in the order of
/// [`Stream::consumers`]. Blocks are read only where a filter needs their subjects.
pub fn pending(stream: &Stream, state: &StreamState, threads: &Threads) -> Vec<u64> {
    let mut out = vec![0u64; stream.consumers.len()];
    let mut filtered: Vec<Filtered<'_>> = Vec::new();
    for (index, consumer) in stream.consumers.iter().enumerate() {
        let from = position(consumer, state).delivered.stream.saturating_add(1);
        if from > state.last_seq || state.msgs == 0 {
            continue;
        }
        let mut filters = consumer
            .meta
            .as_ref()
            .map(|m| m.filters())
            .unwrap_or_default();
        if filters.contains(&">") {
            filters.clear();
        }
        let last_per_subject = consumer
            .meta
            .as_ref()
            .is_some_and(|m| m.deliver_policy() == "last_per_subject");
        if filters.is_empty() && !last_per_subject {
            let total: u64 = state.blocks.iter().map(|b| b.live_from(from)).sum();
            set(&mut out, index, total.min(state.msgs));
        } else if !last_per_subject
            && from <= state.first_seq
            && let Some(subjects) = &state.subjects
        {
            let total = subjects
                .iter()
                .filter(|(s, _)| matches_any(&filters, s))
                .map(|(_, n)| n)
                .sum();
            set(&mut out, index, total);
        } else {
            filtered.push(Filtered {
                index,
                from,
                filters,
                last_per_subject,
            });
        }
    }
    if filtered.is_empty() {
        return out;
    }
    if let Some(v2) = stream.entries() {
        let mut counts = Counts::new(&filtered);
        // An archive that breaks off was reported by the survey; what came before counts.
        let _ = v2.visit(threads, &mut |m| {
            counts.add(&filtered, m.seq, m.subject);
            ControlFlow::Continue(())
        });
        counts.finish(&filtered, &mut out);
        return out;
    }
    let lowest = filtered.iter().map(|f| f.from).min().unwrap_or(0);
    let blocks: Vec<_> = blocks_to_read(stream, state)
        .into_iter()
        .filter(|(_, b)| b.msgs > 0 && b.last >= lowest)
        .collect();
    let mut total = Counts::new(&filtered);
    pipeline::ordered(
        stream.readers(threads),
        blocks.len(),
        Scratch::default,
        |i, scratch| {
            let mut counts = Counts::new(&filtered);
            if let Some((file, block)) = blocks.get(i)
                && let Ok(loaded) = stream.load(file, scratch)
            {
                live_records(stream, file.n, loaded.bytes, block, |r| {
                    counts.add(&filtered, r.seq, r.subject)
                });
            }
            counts
        },
        |_, counts| {
            total.merge(&counts);
            ControlFlow::Continue(())
        },
    );
    total.finish(&filtered, &mut out);
    out
}

fn set(out: &mut [u64], index: usize, value: u64) {
    if let Some(slot) = out.get_mut(index) {
        *slot = value;
    }
}

/// Per filtered consumer: matching messages, or the last sequence of each matching subject.
struct Counts {
    matched: Vec<u64>,
    last: Option<SubjectMap>,
}

impl Counts {
    fn new(filtered: &[Filtered<'_>]) -> Self {
        let last = filtered.iter().any(|f| f.last_per_subject);
        Self {
            matched: vec![0; filtered.len()],
            last: last.then(SubjectMap::new),
        }
    }

    fn add(&mut self, filtered: &[Filtered<'_>], seq: u64, subject: &[u8]) {
        for (f, n) in filtered.iter().zip(&mut self.matched) {
            if !f.last_per_subject && seq >= f.from && matches_any(&f.filters, subject) {
                *n += 1;
            }
        }
        if let Some(last) = &mut self.last {
            let value = last.value_mut(subject);
            *value = seq.max(*value);
        }
    }

    fn merge(&mut self, other: &Self) {
        for (n, m) in self.matched.iter_mut().zip(&other.matched) {
            *n += m;
        }
        if let (Some(last), Some(more)) = (&mut self.last, &other.last) {
            for (subject, seq) in more.iter() {
                let value = last.value_mut(subject);
                *value = seq.max(*value);
            }
        }
    }

    fn finish(self, filtered: &[Filtered<'_>], out: &mut [u64]) {
        for (f, n) in filtered.iter().zip(self.matched) {
            let n = match &self.last {
                Some(last) if f.last_per_subject => last
                    .iter()
                    .filter(|(s, seq)| *seq >= f.from && matches_any(&f.filters, s))
                    .count() as u64,
                _ => n,
            };
            set(out, f.index, n);
        }
    }
}
