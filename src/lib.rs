//! `jetsam` reads, proves, inspects, archives and restores the data directories of stopped NATS
//! servers (JetStream's file store).
//!
//! The layers, lowest first; each knows only those above it in this list:
//!
//! * [`format`](mod@format) — bytes in, values out. No paths, no I/O, no printing.
//! * [`finding`] — what is wrong, where, how bad, and what to do about it.
//! * [`source`] — where bytes come from: a directory, one file, an archive.
//! * [`stream`] — one stream opened: configuration, keys, blocks, index, consumers.
//! * [`state`] — what the server would serve.
//! * [`salvage`] — what can be put right about a stream before it is read.
//! * [`sink`] — where messages go: archives, store directories.
//! * [`verbs`] — what the commands do.
//! * [`cli`] — arguments, tables, progress, exit codes.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

pub mod cli;
pub mod finding;
pub mod format;
pub mod pipeline;
pub mod salvage;
pub mod sink;
pub mod source;
pub mod state;
pub mod stream;
pub mod time;
pub mod verbs;
