//! The options.

use clap::{Parser, ValueEnum};
use std::path::PathBuf;

/// Makes a store directory that a server starts with.
#[derive(Debug, Clone, Parser)]
#[command(name = "make_store", about, max_term_width = 100)]
pub struct Args {
    /// The store directory; streams are added to what is there.
    pub dest: PathBuf,
    /// How many streams.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub streams: u64,
    /// Name of the stream; of several, what comes before their number.
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub name: Option<String>,
    /// Account.
    #[arg(long, default_value = "$G", value_parser = name)]
    pub account: String,
    /// Messages in each stream.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub messages: u64,
    /// Bytes of a payload: `500`, `4k`, or `100..2k` for any size from one to the other.
    #[arg(long, value_name = "SIZE[..SIZE]", default_value = "500", value_parser = sizes)]
    pub size: (u64, u64),
    /// Subjects of each stream: `orders.<n>`, of several streams `orders.<stream>.<n>`.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=u64::from(u32::MAX)))]
    pub subjects: u64,
    /// First part of the subjects.
    #[arg(long, value_name = "SUBJECT", default_value = "orders")]
    pub prefix: String,
    /// One message for each subject, and no more (max_msgs_per_subject 1).
    #[arg(long, conflicts_with = "subjects")]
    pub kv: bool,
    /// Give the messages headers.
    #[arg(long)]
    pub headers: bool,
    /// Size at which a block is full; 8M, and 2M where it is encrypted.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub block_size: Option<u64>,
    /// Runs of deleted messages, spread evenly: 10x100000000 for ten of a hundred million.
    #[arg(long, value_name = "COUNTxLEN", value_parser = runs, default_value = "0x0")]
    pub deleted_runs: (u64, u64),
    /// Begin a new block behind each of these runs, so that no block lists them as deleted.
    #[arg(long)]
    pub between_blocks: bool,
    /// How many of a hundred messages are deleted, one here and one there.
    #[arg(long, value_name = "PERCENT", value_parser = percent, default_value = "0")]
    pub deleted_scattered: u64,
    /// Compress all blocks but the last.
    #[arg(long)]
    pub s2: bool,
    /// Encrypt the store.
    #[arg(long, requires = "key")]
    pub cipher: Option<CipherName>,
    /// The server's key.
    #[arg(long, requires = "cipher")]
    pub key: Option<String>,
    /// Durable pull consumers of each stream, with some messages pending.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub consumers: u64,
    /// Leave out index.db, as a server that was killed early does.
    #[arg(long)]
    pub no_index: bool,
    /// Another seed makes other messages.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// What payloads are made of.
    #[arg(long, default_value = "json")]
    pub payload: Kind,
    /// Write down what the streams hold: configuration, state, consumers, messages (of more than 1,000 a sample).
    #[arg(long, value_name = "FILE")]
    pub truth: Option<PathBuf>,
    /// Threads; 0 for one on each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

/// Ciphers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CipherName {
    /// XChaCha20.
    Chacha,
    /// AES-256.
    Aes,
}

/// Payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Looks like JSON, and is cut where the size says; S2 makes it two and a half times smaller.
    Json,
    /// Words.
    Text,
    /// Nothing makes it smaller.
    Random,
    /// Zeros.
    Zero,
}

/// Names of accounts and streams become names of directories.
fn name(text: &str) -> Result<String, String> {
    let bad = text.is_empty() || text.contains(['/', '\\', '.', '*', '>', ' ', '\0']);
    (!bad)
        .then(|| text.to_owned())
        .ok_or_else(|| "no name for an account or a stream".into())
}

/// Bytes, or with k, M, G, T (1024).
fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size such as 500, 4k or 1G");
    let upper = text.to_ascii_uppercase();
    let digits = upper.trim_end_matches(['K', 'M', 'G', 'T']);
    let shift = match &upper.as_str()[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

fn sizes(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = match text.split_once("..") {
        Some((from, to)) => (size(from)?, size(to)?),
        None => (size(text)?, size(text)?),
    };
    match from <= to && to < 1 << 31 {
        true => Ok((from, to)),
        false => Err("sizes go up to 2G".into()),
    }
}

fn runs(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once('x');
    parts
        .and_then(|(count, len)| Some((count.parse().ok()?, len.parse().ok()?)))
        .ok_or_else(|| format!("{text:?} is not COUNTxLEN"))
}

/// Gives millionths.
fn percent(text: &str) -> Result<u64, String> {
    let bad = || "a percentage from 0 to 99.99".to_owned();
    let n: f64 = text.parse().map_err(|_| bad())?;
    (0.0..=99.99)
        .contains(&n)
        .then_some((n * 10_000.0).round() as u64)
        .ok_or_else(bad)
}
