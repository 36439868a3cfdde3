//! Deleted messages that are still on disk, as streams of their own: never mixed with what is live.

use crate::format::meta::{self, MetaInf};
use crate::format::seqset::SeqSet;
use crate::pipeline::Threads;
use crate::source::overlay::Overlay;
use crate::source::tree::{ChildKind, Tree as _};
use crate::source::{Body, StreamSource};
use crate::state::StreamState;
use crate::state::visit::{Deleted, Pass};
use crate::stream::Stream;
use crate::stream::mends::Mends;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// Messages that count as deleted.
#[derive(Debug)]
pub struct Found {
    /// A source that holds them and nothing else.
    pub source: StreamSource,
    /// Which they are, by why they count as deleted.
    pub why: BTreeMap<&'static str, SeqSet>,
}

/// The configuration of a stream of deleted messages: it takes no subject that another stream has, and
/// removes nothing by itself.
pub fn configuration(name: &str, of: &str) -> Map<String, Value> {
    let mut config = super::unlimited(name, json!([name]));
    let description = format!("messages deleted from {of}, found by jetsam salvage");
    config.insert("description".into(), description.into());
    config
}

/// The messages of a stream that are deleted and still in its blocks. `None` where there are none.
pub fn in_blocks(
    source: &StreamSource,
    stream: &Stream,
    state: &StreamState,
    threads: &Threads,
) -> Option<Found> {
    let Body::Blocks { tree, dir, msgs } = &source.body else {
        return None;
    };
    let pass = Pass {
        deleted: true,
        ..Pass::new(stream, state, threads, &|_| {})
    };
    let mut mends = (*source.mends).clone();
    (mends.only_kept, mends.witness) = (true, false);
    let mut why: BTreeMap<&'static str, SeqSet> = BTreeMap::new();
    let mut seen = SeqSet::new();
    pass.run(
        Vec::new,
        |found: &mut Vec<(u64, u64, Deleted)>, m| {
            // Of what was overwritten only the sequence is left; what was superseded is there, live.
            if let Some(reason) = m
                .deleted
                .filter(|d| !matches!(d, Deleted::Erased | Deleted::Superseded))
            {
                found.push((m.block, m.seq, reason));
            }
            ControlFlow::Continue(())
        },
        |found| {
            for (n, seq, reason) in found {
                if seen.insert(seq) {
                    mends.blocks.entry(n).or_default().keep.insert(seq);
                    why.entry(reason.as_str()).or_default().insert(seq);
                }
            }
            ControlFlow::Continue(())
        },
    );
    if seen.is_empty() {
        return None;
    }
    // What was looked for under its block's number is there under no other.
    let listed: Vec<u64> = stream.blocks.iter().map(|b| b.n).collect();
    mends
        .blocks
        .retain(|n, b| listed.contains(n) && !b.keep.is_empty());
    let mut overlay = Overlay::new(tree.clone());
    bare(&mut overlay, dir, &dir.join(msgs), &stream.name, stream);
    let mut source = source.clone();
    set(&mut source, overlay, mends);
    Some(Found { source, why })
}

/// The messages in `__msgs__`, which a purge has set aside and a server was deleting.
pub fn purged(source: &StreamSource, stream: &Stream) -> Option<StreamSource> {
    let Body::Blocks { tree, dir, .. } = &source.body else {
        return None;
    };
    let aside = dir.join("__msgs__");
    let there = tree.children(&aside).ok()?;
    if !there.iter().any(|c| c.kind == ChildKind::File) {
        return None;
    }
    let mut overlay = Overlay::new(tree.clone());
    bare(&mut overlay, dir, &aside, &stream.name, stream);
    let mut source = source.clone();
    set(&mut source, overlay, Mends::default());
    if let Body::Blocks { msgs, .. } = &mut source.body {
        *msgs = "__msgs__".into();
    }
    Some(source)
}

/// The messages of an atomic batch that was not committed.
pub fn batch(source: &StreamSource, stream: &Stream) -> Option<StreamSource> {
    let Body::Blocks { tree, dir, msgs } = &source.body else {
        return None;
    };
    if stream.blocks.iter().all(|b| b.len == 0) {
        return None;
    }
    let mut overlay = Overlay::new(tree.clone());
    bare(&mut overlay, dir, &dir.join(msgs), &stream.name, stream);
    let mut out = source.clone();
    set(&mut out, overlay, (*source.mends).clone());
    Some(out)
}

fn set(source: &mut StreamSource, overlay: Overlay, mends: Mends) {
    if let Body::Blocks { tree, .. } = &mut source.body {
        *tree = Arc::new(overlay);
    }
    source.mends = Arc::new(mends);
    source.backup = None;
    source.findings.clear();
}

/// Hides what says anything about live messages, and gives the stream a configuration without limits.
fn bare(overlay: &mut Overlay, dir: &Path, msgs: &Path, name: &str, stream: &Stream) {
    overlay.hide(msgs.join("index.db"));
    for b in &stream.blocks {
        overlay.hide(msgs.join(format!("{}.idx", b.n)));
    }
    for c in overlay.children(&dir.join("obs")).unwrap_or_default() {
        overlay.hide(dir.join("obs").join(&c.name));
    }
    let inf = meta::encode_stream(&MetaInf::new_stream(configuration(name, name), None));
    let sum = meta::sum(name, &inf);
    overlay.put(dir.join("meta.inf"), inf);
    overlay.put(dir.join("meta.sum"), sum.into_bytes());
}
