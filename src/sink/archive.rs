//! Archives of one stream: v1, a tar that every server restores, and v2, NATSARC1 of 2.15. Both are S2-framed.
//!
//! Workers make whole runs of S2 frames out of their blocks, so encoding is parallel and only writing is not.

use super::block::{Block, Layout, last_sequence};
use super::outgoing::Outgoing;
use super::{Pool, SinkError, Written, direct};
use crate::finding::Severity;
use crate::format::backup_json::StreamState;
use crate::format::index_db::BlockEntry;
use crate::format::o_dat::ConsumerState;
use crate::format::record::encoded_len;
use crate::format::s2::{self, Encoder, FRAME_SIZE};
use crate::format::{Fault, archive_v2, o_dat, tar};
use crate::state::subjects::SubjectMap;
use crate::state::visit::Pass;
use crate::time::rfc3339_or_zero;
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Permissions of archives, as the `nats` CLI gives them; their directory is for the owner only.
const FILE_MODE: u32 = 0o644;

/// Which archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// A tar, as servers up to 2.14 make it; restored by every server.
    #[default]
    V1,
    /// NATSARC1, as 2.15 makes it; restored by 2.15 and later.
    V2,
}

/// The state of a stream as the API gives it, deletes and subjects counted, not listed.
pub fn api_state(out: &Outgoing<'_>) -> StreamState {
    let s = out.state;
    StreamState {
        messages: s.msgs,
        bytes: s.bytes,
        first_seq: s.first_seq,
        first_ts: rfc3339_or_zero(s.first_ts),
        last_seq: s.last_seq,
        last_ts: rfc3339_or_zero(s.last_ts),
        num_subjects: s.num_subjects,
        num_deleted: Some(s.num_deleted()),
        consumer_count: i64::try_from(out.consumers.len()).unwrap_or(i64::MAX),
        ..StreamState::default()
    }
}

/// The state of what can be proven of a damaged stream: what an archive of it holds.
pub fn proven_state(out: &Outgoing<'_>, pass: &Pass<'_>) -> StreamState {
    let mut claim = api_state(out);
    let (mut messages, mut bytes, mut first) = (0u64, 0u64, None);
    let mut subjects = SubjectMap::new();
    pass.run(
        || (0u64, None, SubjectMap::new()),
        |(bytes, first, subjects), m| {
            let len = encoded_len(m.subject.len(), m.headers.len(), m.payload.len());
            *bytes = bytes.saturating_add(len);
            first.get_or_insert((m.seq, m.ts));
            *subjects.value_mut(m.subject) += 1;
            ControlFlow::Continue(())
        },
        |(len, begins, of_block)| {
            bytes = bytes.saturating_add(len);
            first = first.or(begins);
            for (subject, count) in of_block.iter() {
                messages = messages.saturating_add(count);
                *subjects.value_mut(subject) += count;
            }
            ControlFlow::Continue(())
        },
    );
    let (first_seq, first_ts) = first.unwrap_or((claim.last_seq.saturating_add(1), 0));
    // A gap before the first message is no gap: the stream begins with it.
    (claim.first_seq, claim.first_ts) = (first_seq, rfc3339_or_zero(first_ts));
    (claim.messages, claim.bytes) = (messages, bytes);
    claim.num_subjects = Some(subjects.len() as u64);
    let sequences = claim.last_seq.saturating_add(1).saturating_sub(first_seq);
    claim.num_deleted = Some(sequences.saturating_sub(messages));
    claim
}

/// Encodes `raw` as frames.
fn frames(encoder: &mut Encoder, raw: &[u8], out: &mut Vec<u8>) -> Result<(), SinkError> {
    for piece in raw.chunks(FRAME_SIZE) {
        encoder
            .encode_frame(piece, out)
            .map_err(|e| SinkError::Format(e.to_string()))?;
    }
    Ok(())
}

fn format_error(fault: &Fault) -> SinkError {
    SinkError::Format(fault.kind.to_string())
}

/// Appends a tar member.
fn member(out: &mut Vec<u8>, name: &str, data: &[u8], now: i64) -> Result<(), SinkError> {
    let size = data.len() as u64;
    tar::put_header(out, name.as_bytes(), size, now).map_err(|f| format_error(&f))?;
    out.extend_from_slice(data);
    out.extend_from_slice(tar::padding(size));
    Ok(())
}

/// Raises the ack floor of a state to `floor`, before which there is nothing to acknowledge. A server that
/// restores NATSARC1 makes the consumer with that ack floor, and then ignores a state with a lower one.
fn raise(state: &mut ConsumerState, floor: u64) {
    if *state == ConsumerState::default() || state.ack_floor.stream >= floor {
        return;
    }
    state.ack_floor.stream = floor;
    state.delivered.stream = state.delivered.stream.max(floor);
    state.pending.retain(|seq, _| *seq > floor);
    state.redelivered.retain(|seq, _| *seq > floor);
}

/// What a worker hands to the writer.
struct Piece {
    frames: Vec<u8>,
    number: u64,
    messages: u64,
    raw: u64,
    last_seq: u64,
    /// What is in it, for a salvage.
    entry: Option<BlockEntry>,
}

/// Writes an archive of the messages of `pass` to a new file at `path`. Refuses a pass that does
/// not bring the messages of `claim`, and damage; with `salvage`, damage is no reason.
pub fn write(
    format: Format,
    out: &Outgoing<'_>,
    claim: &StreamState,
    pass: &Pass<'_>,
    salvage: bool,
    path: &Path,
    stop: &AtomicBool,
) -> Result<Written, SinkError> {
    direct::write_stream(path, FILE_MODE, |append| {
        let mut put = |written: &mut Written, bytes: &[u8]| {
            written.compressed = written.compressed.saturating_add(bytes.len() as u64);
            append(bytes)
        };
        entries(format, out, claim, pass, salvage, &mut put, stop)
    })
}

/// Takes pieces of the archive, in order.
type Put<'a> = dyn FnMut(&mut Written, &[u8]) -> Result<(), SinkError> + 'a;

fn entries(
    format: Format,
    out: &Outgoing<'_>,
    claim: &StreamState,
    pass: &Pass<'_>,
    salvage: bool,
    put: &mut Put<'_>,
    stop: &AtomicBool,
) -> Result<Written, SinkError> {
    let now = crate::time::now();
    let mut written = Written::default();
    let mut encoder = Encoder::new();
    put(&mut written, &s2::MAGIC)?;

    let mut head = Vec::new();
    match format {
        Format::V1 => {
            let (inf, sum) = out.stream_meta();
            member(&mut head, "meta.inf", &inf, now)?;
            member(&mut head, "meta.sum", sum.as_bytes(), now)?;
        }
        Format::V2 => {
            head.extend_from_slice(archive_v2::MAGIC);
            archive_v2::put_state(&mut head, now, claim);
            for c in &out.consumers {
                let mut state = c.state.as_deref().cloned().unwrap_or_default();
                archive_v2::clip(&mut state, out.state.last_seq);
                let start = c.meta.get("opt_start_seq").and_then(Value::as_u64);
                let first = start.unwrap_or(0).max(out.state.first_seq);
                raise(&mut state, first.saturating_sub(1));
                archive_v2::put_consumer(&mut head, now, &c.name, &c.meta.config, &state);
                whole_frames(&mut encoder, &mut head, &mut written, put)?;
            }
        }
    }
    last_frames(&mut encoder, &head, &mut written, put)?;

    let layout = Layout::new(&out.name, &out.stream.name);
    let (encoders, buffers) = (Pool::default(), Pool::default());
    let make = || Block::in_buffer(buffers.take());
    let finish = |mut block: Block| {
        let mut encoder: Encoder = encoders.take();
        let mut raw = 0u64;
        let done = (|| {
            if let Some(fault) = &block.fault {
                return Err(format_error(fault));
            }
            let mut frames_out: Vec<u8> = buffers.take();
            if !block.is_empty() {
                let size = block.bytes.len() as u64;
                raw = size;
                if format == Format::V1 {
                    let mut header = Vec::new();
                    let name = format!("msgs/{}.blk", block.entry.index);
                    tar::put_header(&mut header, name.as_bytes(), size, now)
                        .map_err(|f| format_error(&f))?;
                    frames(&mut encoder, &header, &mut frames_out)?;
                    block.bytes.extend_from_slice(tar::padding(size));
                    raw = (header.len() as u64).saturating_add(block.bytes.len() as u64);
                }
                frames(&mut encoder, &block.bytes, &mut frames_out)?;
            }
            block.close();
            Ok(Piece {
                frames: frames_out,
                number: block.entry.index,
                messages: if block.is_empty() {
                    0
                } else {
                    block.entry.msgs()
                },
                raw,
                last_seq: block.entry.last,
                entry: (salvage && !block.is_empty()).then(|| std::mem::take(&mut block.entry)),
            })
        })();
        encoders.give(encoder);
        block.bytes.clear();
        buffers.give(std::mem::take(&mut block.bytes));
        done
    };
    let (mut error, mut last_live, mut last_number) = (None, 0, 0);
    let findings = pass.run_with(
        make,
        |block, m| {
            if format == Format::V1 {
                block.push(&layout, m);
            } else {
                block.note(m);
                archive_v2::put_message(
                    &mut block.bytes,
                    m.subject,
                    m.ts,
                    m.seq,
                    m.headers,
                    m.payload,
                );
            }
            ControlFlow::Continue(())
        },
        finish,
        |piece| {
            let result = piece.and_then(|p: Piece| {
                written.messages = written.messages.saturating_add(p.messages);
                written.raw = written.raw.saturating_add(p.raw);
                if let Some(entry) = &p.entry {
                    written.hold(entry);
                }
                last_live = p.last_seq.max(last_live);
                last_number = p.number.max(last_number);
                let done = put(&mut written, &p.frames);
                let mut frames = p.frames;
                frames.clear();
                buffers.give(frames);
                done
            });
            if let Err(e) = result {
                error = Some(e);
                return ControlFlow::Break(());
            }
            if stop.load(Ordering::Relaxed) {
                error = Some(SinkError::Interrupted);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        },
    );
    if let Some(e) = error {
        return Err(e);
    }
    let damaged = findings.iter().any(|f| f.severity == Severity::Error);
    if (damaged && !salvage) || written.messages != claim.messages {
        return Err(SinkError::Damaged {
            findings,
            read: written.messages,
            expected: claim.messages,
        });
    }
    written.findings = findings;

    let mut tail = Vec::new();
    match format {
        Format::V1 => {
            if let Some((block, idx)) = last_sequence(
                out.state,
                last_live,
                last_number.saturating_add(1),
                &out.name,
            ) {
                let n = block.entry.index;
                member(&mut tail, &format!("msgs/{n}.idx"), &idx, now)?;
                member(&mut tail, &format!("msgs/{n}.blk"), &block.bytes, now)?;
            }
            for c in &out.consumers {
                let (inf, sum) = out.consumer_meta(c);
                member(&mut tail, &format!("obs/{}/meta.inf", c.name), &inf, now)?;
                member(
                    &mut tail,
                    &format!("obs/{}/meta.sum", c.name),
                    sum.as_bytes(),
                    now,
                )?;
                if let Some(state) = &c.state {
                    let bytes = o_dat::encode(state);
                    member(&mut tail, &format!("obs/{}/o.dat", c.name), &bytes, now)?;
                }
                whole_frames(&mut encoder, &mut tail, &mut written, put)?;
            }
            tail.extend_from_slice(&tar::END);
        }
        Format::V2 => tail.extend_from_slice(&archive_v2::END),
    }
    last_frames(&mut encoder, &tail, &mut written, put)?;
    Ok(written)
}

/// Puts what fills frames, so that a stream with very many consumers needs no memory for all of them.
fn whole_frames(
    encoder: &mut Encoder,
    raw: &mut Vec<u8>,
    written: &mut Written,
    put: &mut Put<'_>,
) -> Result<(), SinkError> {
    let whole = raw.len() - raw.len() % FRAME_SIZE;
    if whole > 0 {
        last_frames(encoder, raw.get(..whole).unwrap_or_default(), written, put)?;
        raw.drain(..whole);
    }
    Ok(())
}

fn last_frames(
    encoder: &mut Encoder,
    raw: &[u8],
    written: &mut Written,
    put: &mut Put<'_>,
) -> Result<(), SinkError> {
    let mut compressed = Vec::new();
    frames(encoder, raw, &mut compressed)?;
    put(written, &compressed)?;
    written.raw = written.raw.saturating_add(raw.len() as u64);
    Ok(())
}
