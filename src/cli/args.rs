//! What the user typed.

use crate::verbs::part::Choice;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use std::num::NonZeroU64;
use std::path::PathBuf;

const AFTER: &str = "\
Exit status:
  0    done; nothing wrong found
  1    done, and damage, loss or a difference was found
  2    usage or I/O error
  3    the store is in use by a running server, or changed while it was read
  4    a key is missing or wrong
  130  interrupted

jetsam never writes into a source. Copy a damaged store before you start a server on it: a start
truncates and deletes what it cannot read.";

/// Reads, proves and inspects the data directories of stopped NATS servers, and their backups.
#[derive(Debug, Parser)]
#[command(name = "jetsam", version, about, after_help = AFTER, arg_required_else_help = true)]
#[command(disable_help_subcommand = true, propagate_version = true)]
pub struct Cli {
    /// The verb.
    #[command(subcommand)]
    pub verb: Verb,
    /// Options of every verb.
    #[command(flatten)]
    pub global: Global,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Options of every verb.
#[derive(Debug, Args)]
pub struct Global {
    /// Only this account; `*` matches any run of characters. Also the account of a stream directory
    /// whose path does not tell it.
    #[arg(short, long = "account", value_name = "NAME", global = true)]
    pub accounts: Vec<String>,
    /// Only this stream; `*` matches any run of characters.
    #[arg(short, long = "stream", value_name = "NAME", global = true)]
    pub streams: Vec<String>,
    /// Only this consumer; `*` matches any run of characters.
    #[arg(short, long = "consumer", value_name = "NAME", global = true)]
    pub consumers: Vec<String>,
    /// File with the server's encryption key; one newline at its end is ignored.
    #[arg(long, value_name = "FILE", global = true, value_hint = ValueHint::FilePath, help_heading = "Keys")]
    pub key_file: Option<PathBuf>,
    /// Environment variable with the server's encryption key [default: JETSAM_KEY].
    #[arg(
        long,
        value_name = "NAME",
        global = true,
        conflicts_with = "key_file",
        help_heading = "Keys"
    )]
    pub key_env: Option<String>,
    /// File with the server's previous encryption key.
    #[arg(long, value_name = "FILE", global = true, value_hint = ValueHint::FilePath, help_heading = "Keys")]
    pub prev_key_file: Option<PathBuf>,
    /// Environment variable with the server's previous encryption key [default: JETSAM_PREV_KEY].
    #[arg(
        long,
        value_name = "NAME",
        global = true,
        conflicts_with = "prev_key_file",
        help_heading = "Keys"
    )]
    pub prev_key_env: Option<String>,
    /// Write JSON.
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// Print plain log lines instead of a progress bar.
    #[arg(long, global = true, help_heading = "Output")]
    pub no_progress: bool,
    /// No progress and no warnings.
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// Note how the run went in a file for Prometheus's node_exporter (`backup`, `check`,
    /// `restore`).
    #[arg(long, value_name = "FILE", global = true, value_hint = ValueHint::FilePath, help_heading = "Output")]
    pub metrics: Option<PathBuf>,
    /// Colours.
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "auto",
        global = true,
        help_heading = "Output"
    )]
    pub color: When,
    /// Threads; 0 means one for each core.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        global = true,
        help_heading = "Reading"
    )]
    pub threads: usize,
    /// Read a store that a running server has open; what is shown may be torn.
    #[arg(long, global = true, help_heading = "Reading")]
    pub live: bool,
    /// Read sources no faster than this, all threads together: bytes a second, such as 50M or 200MB/s.
    #[arg(
        long,
        value_name = "RATE",
        value_parser = rate,
        conflicts_with = "mmap",
        global = true,
        help_heading = "Reading"
    )]
    pub io_limit: Option<NonZeroU64>,
    /// Map blocks into memory instead of reading them. Faster when they are cached; but a bad sector, or
    /// a file that is cut meanwhile, then kills jetsam (SIGBUS).
    #[arg(long, global = true, help_heading = "Reading")]
    pub mmap: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List accounts and streams.
    #[command(
        after_help = "Examples:\n  jetsam ls /data/nats\n  jetsam ls /backup/nats-account --json\n  jetsam ls /data/nats -a ACME -s 'KV_*' --consumers"
    )]
    Ls {
        /// Store, account, stream or backup directory, or an archive.
        #[arg(value_hint = ValueHint::AnyPath)]
        source: PathBuf,
        /// Also list consumers.
        #[arg(long = "consumers", id = "list_consumers")]
        consumers: bool,
        /// Also list raft groups and unfinished batches.
        #[arg(long)]
        raft: bool,
    },
    /// Show configuration, state and consumers of streams.
    #[command(
        after_help = "Examples:\n  jetsam info /data/nats -s ORDERS\n  jetsam info /backup/ORDERS --json --deleted --subjects\n  JETSAM_KEY=... jetsam info /data/nats --json"
    )]
    Info {
        /// Store, account, stream or backup directory, or an archive.
        #[arg(value_hint = ValueHint::AnyPath)]
        source: PathBuf,
        /// List the sequences of deleted messages.
        #[arg(long)]
        deleted: bool,
        /// List the subjects with their message counts.
        #[arg(long)]
        subjects: bool,
    },
    /// Show messages.
    #[command(
        after_help = "Examples:\n  jetsam view /data/nats -s ORDERS --subject 'orders.new.>' --since 2h\n  jetsam view /data/nats -s ORDERS --seq 1000..2000 --json | jq -r .data | base64 -d\n  jetsam view /backup/KV_config --last-per-subject\n  jetsam view /data/nats -s ORDERS --deleted --json"
    )]
    View(ViewArgs),
    /// Show every record of a block and every field of the other files of a store.
    #[command(
        after_help = "Examples:\n  jetsam inspect /data/nats/jetstream/'$G'/streams/ORDERS/msgs/17.blk\n  jetsam inspect 17.blk --stream ORDERS --block 17 --json\n  jetsam inspect index.db --stream ORDERS"
    )]
    Inspect {
        /// Files of a store.
        #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
        files: Vec<PathBuf>,
        /// Show the bytes as well.
        #[arg(long)]
        hexdump: bool,
        /// The block's number, where the file's name does not tell it.
        #[arg(long, value_name = "N")]
        block: Option<u64>,
    },
    /// Read and prove everything: records, checksums, index, consumers, archives.
    #[command(
        after_help = "With --part or --sample everything but the blocks is checked as ever, and of the blocks those chosen: each\nis read, proven, and compared with its entry in index.db. What takes all blocks of a stream is left to a\ncheck without these options; an archive is read whole or not at all.\n\nExamples:\n  jetsam check /data/nats\n  jetsam check /backup/last-night/* --json\n  jetsam check /data/nats -s ORDERS -q && echo sound\n  jetsam check /data/nats --part $(date +%u)/7 --io-limit 100M\n  jetsam check /data/nats --sample 5%\n  timeout -s INT 6h jetsam check /data/nats --state /var/lib/jetsam/check.state"
    )]
    Check(CheckArgs),
    /// Archive streams of a stopped server, for `nats stream restore`.
    #[command(
        after_help = "With one stream (-s, or a stream directory as SOURCE) DEST gets backup.json and stream.tar.s2; with an\naccount (-a, or an account directory) DEST/STREAM/..., else DEST/ACCOUNT/STREAM/...\n\nExamples:\n  jetsam backup /data/nats /backup/ORDERS -s ORDERS\n  jetsam backup /data/nats /backup/last-night\n  nats stream restore /backup/ORDERS"
    )]
    Backup(BackupArgs),
    /// Put streams from any source into a stopped server's store.
    #[command(
        after_help = "Everything is looked at before anything is written; a stream is there whole or not at all.\n\nExamples:\n  jetsam restore /backup/ORDERS /data/nats\n  jetsam restore /backup/last-night /data/nats --dry-run\n  jetsam restore /old/nats /data/nats -s ORDERS --rename ORDERS_OLD --replicas 1\n  jetsam restore /backup/ORDERS /data/nats --out-key-file /run/secrets/js.key --out-cipher aes"
    )]
    Restore(Box<RestoreArgs>),
    /// Bring back everything that can be proven, out of whatever is left, into a new store.
    #[command(
        after_help = "Examples:\n  jetsam salvage /data/nats /data/nats-new\n  jetsam salvage /data/nats /data/nats-new -s ORDERS --deleted --json\n  jetsam salvage /backup/ORDERS/stream.tar.s2 /backup/ORDERS-new --format v1\n  jetsam salvage 17.blk /tmp/out -s ORDERS --config ORDERS.json"
    )]
    Salvage(Box<SalvageArgs>),
    /// Configurations of streams and consumers, without messages.
    #[command(
        after_help = "Examples:\n  jetsam config show /data/nats -s ORDERS\n  jetsam config backup /data/nats /backup/config\n  jetsam config backup /data/nats /backup/config --plain && nats stream add --config /backup/config/stream_ORDERS.json"
    )]
    Config {
        /// What to do with them.
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Compare two sources message by message.
    #[command(
        after_help = "Examples:\n  jetsam diff /data/nats /backup/nats-account\n  jetsam diff n0/store n1/store -s ORDERS --json"
    )]
    Diff {
        /// One source.
        #[arg(value_hint = ValueHint::AnyPath)]
        a: PathBuf,
        /// The other.
        #[arg(value_hint = ValueHint::AnyPath)]
        b: PathBuf,
    },
    /// Print the completion script for a shell.
    #[command(after_help = "Example:\n  jetsam completions bash > /etc/bash_completion.d/jetsam")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, of jetsam or of one verb.
    #[command(after_help = "Example:\n  jetsam man check | man -l -")]
    Man {
        /// A verb.
        verb: Option<String>,
    },
}

/// Options of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Store, account, stream or backup directories, or archives.
    #[arg(required = true, value_name = "SOURCE", value_hint = ValueHint::AnyPath)]
    pub sources: Vec<PathBuf>,
    /// Read the K-th of N parts of the blocks; the same blocks each time, and each in one part.
    #[arg(long, value_name = "K/N", value_parser = Choice::part, conflicts_with = "sample")]
    pub part: Option<Choice>,
    /// Read about so many of a hundred blocks, chosen by chance.
    #[arg(long, value_name = "P%", value_parser = Choice::sample)]
    pub sample: Option<f64>,
    /// Make the choice of an earlier sample again; its summary tells the seed.
    #[arg(long, value_name = "N", requires = "sample")]
    pub seed: Option<u64>,
    /// Note in FILE what is done: interrupted, the same command goes on from there. What has changed since is checked
    /// again; a check that came to its end begins anew.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub state: Option<PathBuf>,
}

impl CheckArgs {
    /// Which blocks are read.
    pub fn choice(&self) -> Choice {
        match (self.part, self.sample) {
            (Some(part), _) => part,
            (None, Some(percent)) => Choice::Sample {
                percent,
                seed: self.seed,
            },
            (None, None) => Choice::All,
        }
    }
}

/// What `config` does.
#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Write each configuration to a file: stream_S.json, stream_S_consumer_C.json.
    #[command(
        after_help = "The files have the checksummed form of the old `nats backup`. With several accounts they are in DIR/ACCOUNT.\n\nExamples:\n  jetsam config backup /data/nats /backup/config\n  jetsam config backup /data/nats /backup/plain --plain -a ACME\n  nats stream add --config /backup/plain/stream_ORDERS.json"
    )]
    Backup {
        /// Store, account, stream or backup directory, an archive, or a directory of such files.
        #[arg(value_hint = ValueHint::AnyPath)]
        source: PathBuf,
        /// Where the files go; new, or empty.
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
        /// Write the configurations alone, as `nats stream add --config` and `nats consumer add --config` take
        /// them.
        #[arg(long)]
        plain: bool,
    },
    /// Show configurations; of a directory of such files, verify the checksums.
    #[command(
        after_help = "Examples:\n  jetsam config show /data/nats -s ORDERS\n  jetsam config show /backup/config --json"
    )]
    Show {
        /// Store, account, stream or backup directory, an archive, or what `config backup` wrote.
        #[arg(value_hint = ValueHint::AnyPath)]
        source: PathBuf,
    },
}

/// The formats of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ArchiveFormat {
    /// A tar; every server restores it.
    V1,
    /// NATSARC1; servers since 2.15 restore it.
    V2,
}

impl From<ArchiveFormat> for crate::sink::archive::Format {
    fn from(f: ArchiveFormat) -> Self {
        match f {
            ArchiveFormat::V1 => Self::V1,
            ArchiveFormat::V2 => Self::V2,
        }
    }
}

/// Options of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Store, account, stream or backup directory, or an archive.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub source: PathBuf,
    /// Where the backup directories go; new, or empty.
    #[arg(value_hint = ValueHint::DirPath)]
    pub dest: PathBuf,
    /// Format of the archives.
    #[arg(long, value_name = "FORMAT", default_value = "v1")]
    pub format: ArchiveFormat,
    /// Leave consumers out.
    #[arg(long)]
    pub no_consumers: bool,
    /// Put right and archive what can be proven of a damaged stream, instead of refusing it.
    #[arg(long)]
    pub salvage: bool,
}

/// Options of `salvage`.
#[derive(Debug, Args)]
pub struct SalvageArgs {
    /// Store, account, stream or backup directory, archive, or one block.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub source: PathBuf,
    /// The new store directory, or where the backup directories go; new, or empty.
    #[arg(value_hint = ValueHint::DirPath)]
    pub dest: PathBuf,
    /// Write backup directories instead of a store directory.
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<ArchiveFormat>,
    /// Also bring back deleted messages that are still on disk, into streams NAME_deleted.
    #[arg(long, conflicts_with = "format")]
    pub deleted: bool,
    /// Keep records whose content cannot be proven, and list them.
    #[arg(long)]
    pub unverified: bool,
    /// Seconds to search for flipped bits in each damaged file; 0: do not search.
    #[arg(long, value_name = "SECONDS", default_value_t = crate::salvage::SECONDS)]
    pub effort: f64,
    /// File with the configuration of a stream that has lost its own (StreamConfig, JSON).
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Leave consumers out.
    #[arg(long)]
    pub no_consumers: bool,
    /// Encryption of the new store.
    #[command(flatten)]
    pub out: OutKey,
}

/// The ciphers of servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CipherName {
    /// XChaCha20, the servers' default.
    Chacha,
    /// AES-256.
    Aes,
}

impl From<CipherName> for crate::format::crypt::Cipher {
    fn from(c: CipherName) -> Self {
        match c {
            CipherName::Chacha => Self::ChaCha,
            CipherName::Aes => Self::Aes,
        }
    }
}

/// How a store directory that is written is encrypted.
#[derive(Debug, Args)]
pub struct OutKey {
    /// File with the key for the new store; one newline at its end is ignored.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Keys")]
    pub out_key_file: Option<PathBuf>,
    /// Environment variable with the key for the new store.
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with = "out_key_file",
        help_heading = "Keys"
    )]
    pub out_key_env: Option<String>,
    /// Cipher of the new store [default: the source's, else chacha].
    #[arg(long, value_name = "CIPHER", help_heading = "Keys")]
    pub out_cipher: Option<CipherName>,
    /// Write plaintext even where the source is encrypted.
    #[arg(long, conflicts_with_all = ["out_key_file", "out_key_env", "out_cipher"], help_heading = "Keys")]
    pub decrypt: bool,
}

/// Options of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// An archive, backup directory, or any other source.
    #[arg(value_name = "ARCHIVE", value_hint = ValueHint::AnyPath)]
    pub source: PathBuf,
    /// The store directory of a stopped server, or a new, empty place.
    #[arg(value_name = "STORE_DIR", value_hint = ValueHint::DirPath)]
    pub dest: PathBuf,
    /// Restore into this account [default: the source's, else $G].
    #[arg(long, value_name = "NAME")]
    pub to_account: Option<String>,
    /// Give the stream another name.
    #[arg(long, value_name = "NEW")]
    pub rename: Option<String>,
    /// Number of replicas of the stream and, at most, of its consumers.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=5))]
    pub replicas: Option<i64>,
    /// File with another configuration (StreamConfig, JSON).
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Leave consumers out.
    #[arg(long)]
    pub no_consumers: bool,
    /// Set an existing stream aside, beside jetstream/; it is never deleted.
    #[arg(long)]
    pub replace: bool,
    /// Limit for all streams there together, as the server's max_file: 10G, 500M.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_file: Option<u64>,
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Restore what can be proven of a damaged source, instead of refusing it.
    #[arg(long)]
    pub salvage: bool,
    /// Encryption of the new store.
    #[command(flatten)]
    pub out: OutKey,
}

/// A size as servers read it: bytes, or with K, M, G, T (1024).
fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size such as 500M or 10G");
    let upper = text.to_ascii_uppercase();
    let clean = upper.trim_end_matches("IB").trim_end_matches('B');
    let (number, shift) = match clean.as_bytes().last() {
        Some(b'K') => (clean.trim_end_matches('K'), 10),
        Some(b'M') => (clean.trim_end_matches('M'), 20),
        Some(b'G') => (clean.trim_end_matches('G'), 30),
        Some(b'T') => (clean.trim_end_matches('T'), 40),
        _ => (clean, 0),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

/// Bytes a second: a size, perhaps with `/s` behind it.
fn rate(text: &str) -> Result<NonZeroU64, String> {
    let bad = || format!("{text:?} is no rate such as 50M or 200MB/s");
    let amount = text
        .strip_suffix("/s")
        .or_else(|| text.strip_suffix("/S"))
        .unwrap_or(text);
    size(amount).ok().and_then(NonZeroU64::new).ok_or_else(bad)
}

/// Options of `view`.
#[derive(Debug, Args)]
pub struct ViewArgs {
    /// Store, account, stream or backup directory, or an archive.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub source: PathBuf,
    /// Only subjects that match; NATS wildcards; repeatable.
    #[arg(long = "subject", value_name = "FILTER")]
    pub subjects: Vec<String>,
    /// Only these sequences: `FROM`, `FROM..`, `FROM..TO` or `..TO`, both ends included.
    #[arg(long, value_name = "FROM[..TO]", value_parser = sequences)]
    pub seq: Option<(u64, u64)>,
    /// Not before this time: RFC 3339, or an age such as `90s`, `2h`, `3d`.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<i64>,
    /// Not after this time: RFC 3339, or an age such as `90s`, `2h`, `3d`.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub until: Option<i64>,
    /// Only messages with this header (and value); repeatable.
    #[arg(long = "header", value_name = "NAME[=VALUE]", value_parser = header)]
    pub headers: Vec<(String, Option<String>)>,
    /// Only the last message of each subject.
    #[arg(long)]
    pub last_per_subject: bool,
    /// No more than N messages.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Newest first.
    #[arg(long)]
    pub reverse: bool,
    /// Also show records that are deleted but still on disk, each with the reason.
    #[arg(long)]
    pub deleted: bool,
    /// Write the payloads only.
    #[arg(long, conflicts_with_all = ["json", "out_dir"])]
    pub raw: bool,
    /// Write each payload to a file ACCOUNT/STREAM/SEQUENCE below DIR.
    #[arg(long, value_name = "DIR", conflicts_with = "json", value_hint = ValueHint::DirPath)]
    pub out_dir: Option<PathBuf>,
}

fn sequences(text: &str) -> Result<(u64, u64), String> {
    let number = |t: &str, default| match t {
        "" => Ok(default),
        t => t.parse::<u64>().map_err(|e| format!("{t:?}: {e}")),
    };
    let (from, to) = match text.split_once("..") {
        Some((from, to)) => (
            number(from, 0)?,
            number(to.trim_start_matches('='), u64::MAX)?,
        ),
        None if text.is_empty() => return Err("no sequence".into()),
        None => {
            let seq = number(text, 0)?;
            (seq, seq)
        }
    };
    if from > to {
        Err(format!("{from} is behind {to}"))
    } else {
        Ok((from, to))
    }
}

fn header(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        Err("no header name".into())
    } else {
        Ok((name.to_owned(), value))
    }
}

fn time(text: &str) -> Result<i64, String> {
    if let Some(ns) = crate::time::parse_rfc3339(text) {
        return Ok(ns);
    }
    let bad = || format!("{text:?} is neither RFC 3339 nor an age such as 90s, 15m, 2h, 3d");
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(at);
    let unit: i64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(bad()),
    };
    let age: i64 = number.parse().map_err(|_| bad())?;
    let age = age
        .checked_mul(unit)
        .and_then(|s| s.checked_mul(1_000_000_000))
        .ok_or_else(bad)?;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_nanos()).ok())
        .ok_or_else(bad)?;
    Ok(now.saturating_sub(age))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rates() {
        for (text, want) in [
            ("4096", 4096),
            ("50M", 50 << 20),
            ("200MB/s", 200 << 20),
            ("1GiB/S", 1 << 30),
            ("7k/s", 7 << 10),
        ] {
            assert_eq!(rate(text).map(NonZeroU64::get), Ok(want), "{text}");
        }
        for bad in [
            "",
            "0",
            "0M/s",
            "M",
            "/s",
            "5/s/s",
            "-1",
            "1.5M",
            "99999999T",
        ] {
            rate(bad).unwrap_err();
        }
    }

    #[test]
    fn sequences_and_ages() {
        assert_eq!(sequences("5"), Ok((5, 5)));
        assert_eq!(sequences("5..9"), Ok((5, 9)));
        assert_eq!(sequences("5.."), Ok((5, u64::MAX)));
        assert_eq!(sequences("..9"), Ok((0, 9)));
        for bad in ["", "x", "9..5", "-1"] {
            sequences(bad).unwrap_err();
        }
        assert_eq!(time("2025-11-21T00:36:33Z"), Ok(1_763_685_393_000_000_000));
        assert!(time("2h").unwrap() < time("1h").unwrap());
        for bad in ["", "h", "2", "2y", "99999999999999d"] {
            time(bad).unwrap_err();
        }
        assert_eq!(header("A=b=c"), Ok(("A".into(), Some("b=c".into()))));
        header("=x").unwrap_err();
    }
}
