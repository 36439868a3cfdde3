//! Limits that a server's start enforces after a scan of the blocks.
//!
//! Removals by a limit leave no tombstone, so a scan brings such messages back and the limit has to
//! take them away again. Age is not among them: the state is the one at the stop.

use super::StreamState;
use super::subjects::SubjectMap;
use super::visit::live_records;
use crate::format::meta::MetaInf;
use crate::format::record::Record;
use crate::stream::{Scratch, Stream};

/// Removes, from the first message on, those that `remove` asks for, until it says that all is done.
fn remove_from_head(
    stream: &Stream,
    state: &mut StreamState,
    mut remove: impl FnMut(&Record<'_>, &StreamTotals, &SubjectMap) -> bool,
    mut done: impl FnMut(&StreamTotals, &SubjectMap) -> bool,
) {
    let mut scratch = Scratch::default();
    let mut totals = StreamTotals {
        msgs: state.msgs,
        bytes: state.bytes,
    };
    let mut subjects = state.subjects.take().unwrap_or_default();
    for i in 0..state.blocks.len() {
        if done(&totals, &subjects) {
            break;
        }
        let Some(before) = state.blocks.get(i).filter(|b| b.msgs > 0).cloned() else {
            continue;
        };
        let Some(file) = stream.blocks.iter().find(|f| f.n == before.n) else {
            continue;
        };
        let Ok(loaded) = stream.load(file, &mut scratch) else {
            continue;
        };
        let mut after = before.clone();
        let mut first: Option<(u64, i64)> = None;
        live_records(stream, before.n, loaded.bytes, &before, |r| {
            if !done(&totals, &subjects) && remove(&r, &totals, &subjects) {
                totals.msgs = totals.msgs.saturating_sub(1);
                totals.bytes = totals.bytes.saturating_sub(r.len());
                after.msgs = after.msgs.saturating_sub(1);
                after.bytes = after.bytes.saturating_sub(r.len());
                after.deleted.insert(r.seq);
                let count = subjects.value_mut(r.subject);
                *count = count.saturating_sub(1);
            } else if first.is_none() {
                first = Some((r.seq, r.ts));
            }
        });
        match first {
            Some((seq, ts)) => {
                (after.first, after.first_ts) = (seq, ts);
                after.deleted.remove_below(seq);
            }
            None => {
                (after.first, after.first_ts) = (after.last.saturating_add(1), 0);
                after.deleted = Default::default();
            }
        }
        if let Some(b) = state.blocks.get_mut(i) {
            *b = after;
        }
    }
    state.msgs = totals.msgs;
    state.bytes = totals.bytes;
    state.subjects = Some(subjects);
    let head = state
        .blocks
        .iter()
        .find(|b| b.msgs > 0)
        .map(|b| (b.first, b.first_ts));
    (state.first_seq, state.first_ts) = head.unwrap_or((state.last_seq.saturating_add(1), 0));
    state.set_floors();
}

/// Running totals of a stream.
pub(super) struct StreamTotals {
    msgs: u64,
    bytes: u64,
}

/// A limit of a configuration; none is the highest number.
fn limit(v: i64) -> u64 {
    u64::try_from(v).ok().filter(|v| *v > 0).unwrap_or(u64::MAX)
}

/// How many messages of one subject the stream keeps.
pub fn per_subject(meta: &MetaInf) -> u64 {
    limit(meta.max_msgs_per_subject())
}

/// Whether a state is within the limits of the stream, but for those of single subjects.
pub(super) fn allow(stream: &Stream, state: &StreamState) -> bool {
    stream.meta.as_ref().is_none_or(|meta| {
        state.msgs <= limit(meta.max_msgs()) && state.bytes <= limit(meta.max_bytes())
    })
}

/// Enforces the limits of the stream's configuration on a scanned state.
pub(super) fn enforce(stream: &Stream, state: &mut StreamState) {
    let Some(meta) = &stream.meta else { return };
    if stream.role != crate::source::Role::Stream {
        return;
    }
    let (max_msgs, max_bytes) = (limit(meta.max_msgs()), limit(meta.max_bytes()));
    let over = |t: &StreamTotals| t.msgs > max_msgs || t.bytes > max_bytes;
    let now = StreamTotals {
        msgs: state.msgs,
        bytes: state.bytes,
    };
    if meta.discard() != "new" && over(&now) {
        remove_from_head(stream, state, |_, t, _| over(t), |t, _| !over(t));
    }
    let per_subject = per_subject(meta);
    if per_subject < u64::MAX {
        let mut excess: u64 = state.subjects.as_ref().map_or(0, |m| {
            m.iter().map(|(_, n)| n.saturating_sub(per_subject)).sum()
        });
        if excess > 0 {
            let excess = std::cell::Cell::new(std::mem::take(&mut excess));
            remove_from_head(
                stream,
                state,
                |r, _, subjects| {
                    let too_many = subjects.get(r.subject).unwrap_or(0) > per_subject;
                    if too_many {
                        excess.set(excess.get().saturating_sub(1));
                    }
                    too_many
                },
                |_, _| excess.get() == 0,
            );
        }
    }
    // A start purges what lies below the configured first sequence.
    let first = meta.first_seq();
    if first > 0 && state.first_seq < first && state.last_seq > 0 {
        remove_from_head(stream, state, |r, _, _| r.seq < first, |_, _| false);
        if state.last_seq < first {
            state.last_seq = first - 1;
            state.first_seq = first;
        }
    } else if first > 0 && state.last_seq == 0 && state.msgs == 0 {
        (state.first_seq, state.last_seq) = (first, first - 1);
    }
}
