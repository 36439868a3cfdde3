//! What is wrong with a store or an archive: typed, placed, with an action the user can take.
//!
//! Verbs produce findings; printing them and turning them into an exit code comes last (see
//! [`cli`](crate::cli)).

use serde::Serialize;

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing is lost and nothing has to be done.
    Note,
    /// Nothing is lost, but a server or a restore will act on it (or it is evidence of a past fault).
    Warning,
    /// Damage or loss: exit status 1.
    Error,
}

/// Declares the finding codes: the variant, its text, and its default severity and action.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $severity:ident, $action:literal;)*) => {
        /// What kind of finding it is. The text form is part of the output contract.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every code, for documentation and tests.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The text used in `--json` and in human output.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// The severity that this kind has unless a verb knows better.
            pub fn severity(self) -> Severity {
                match self { $(Code::$variant => Severity::$severity,)* }
            }

            /// What the user can do about this kind of finding.
            pub fn action(self) -> &'static str {
                match self { $(Code::$variant => $action,)* }
            }
        }
    };
}

codes! {
    // Reaching the bytes.
    /// A file or directory could not be read.
    Unreadable = "unreadable", Error, "check permissions and the disk; the rest of the store was read";
    /// A file is larger than the ceiling for its kind.
    TooLarge = "too_large", Error, "no server writes a file of this kind this large; look at it with `jetsam inspect`";
    /// A symbolic link, device, socket or other thing that no server makes.
    NotAFile = "not_a_file", Warning, "a server would follow or trip over it; jetsam does not follow it";
    /// A name that is not UTF-8 or that no server makes.
    OddName = "odd_name", Note, "no server uses it; it was listed and otherwise left alone";
    /// A left-over of an interrupted operation, or a directory being deleted.
    Leftover = "leftover", Note, "copy the store before starting a server: a start deletes left-overs";
    /// The store is open in a running server, or changed while it was read.
    InUse = "in_use", Warning, "stop the server, or read a snapshot of the disk";

    // Keys.
    /// The store is encrypted and no key was given.
    KeyMissing = "key_missing", Error, "give the server's key with --key-file or --key-env";
    /// No given key opens a key file or a sealed file.
    KeyWrong = "key_wrong", Error, "give the key this was written with (also --prev-key-file); if it is the right one the key file is damaged";
    /// A key file has a wrong size or is damaged.
    KeyFile = "key_file", Error, "do not start a server on this store: servers delete what they cannot decrypt; copy the directory first";
    /// A plaintext file in an encrypted store.
    Plaintext = "plaintext", Note, "a server encrypts it when it next loads it";

    // Stream metadata.
    /// `meta.inf` is missing.
    MetaMissing = "meta_missing", Error, "servers skip this stream at start; the messages are still readable here";
    /// `meta.inf` does not parse.
    MetaInvalid = "meta_invalid", Error, "servers skip this stream at start; the messages are still readable here";
    /// `meta.sum` is missing.
    SumMissing = "sum_missing", Error, "servers skip a stream without meta.sum at start";
    /// `meta.sum` does not match `meta.inf`.
    SumMismatch = "sum_mismatch", Error, "meta.inf or meta.sum is damaged; servers skip a stream whose checksum differs";
    /// The name in `meta.inf` is not the directory's.
    NameMismatch = "name_mismatch", Error, "a server would create an empty stream of the other name beside it; rename the directory back";
    /// A key in `meta.inf` that newer servers refuse.
    ConfigUnknownKey = "config_unknown_key", Warning, "newer servers take the stream offline at start because of it";
    /// A configuration that some server lines do not load (API level, replicas on a standalone server…).
    ConfigUnsupported = "config_unsupported", Note, "start it with a server that supports it";
    /// A file of a configuration backup is damaged or does not fit the others.
    ConfigBackup = "config_backup", Error, "do not restore it; take the configuration from the store, or from another backup";

    // Blocks.
    /// A record's hash does not match its bytes.
    RecordHash = "record_hash", Error, "do not start a server on this store before copying it: without a valid index.db a start truncates the block here";
    /// A record's lengths cannot be right, or it runs past the end of the block.
    RecordStructure = "record_structure", Error, "do not start a server on this store before copying it: a start truncates the block here";
    /// A header length or subject border that the record's hash does not cover is wrong.
    RecordFields = "record_fields", Error, "subject, headers and payload of this record are split in the wrong place; its bytes are proven";
    /// Bytes that no record covers.
    Garbage = "garbage", Error, "do not start a server on this store before copying it: a start truncates the block here";
    /// A record that ends past the end of the file: the last write of a killed server.
    TornTail = "torn_tail", Warning, "a write that was cut off by a crash; a server start cuts it away";
    /// Sequences that go down, or the same sequence twice.
    RecordOrder = "record_order", Warning, "servers serve the first and ignore the later one";
    /// The same sequence in two blocks.
    BlockOverlap = "block_overlap", Warning, "servers serve the one in the lower block";
    /// A compressed block or frame does not decode.
    Compression = "compression", Error, "do not start a server on this store before copying it: a start deletes the block or the whole stream";
    /// A compressed block without its header (written by a server bug).
    HeaderlessS2 = "headerless_s2", Warning, "no server can read this block back; copy the store before a start";
    /// A plain block that some servers take for a compressed one.
    CmpLookalike = "cmp_lookalike", Warning, "servers up to 2.14.6 delete this block or the whole stream; start it with 2.14.7 or later";
    /// A block that the index lists but that is not there.
    BlockMissing = "block_missing", Error, "messages of this block are gone from this directory; look for another copy or a backup";
    /// Messages that the state claims and that no block holds.
    MessagesMissing = "messages_missing", Error, "messages are gone from this source; look for another copy or a backup";
    /// A record that servers take for damage because of its length alone.
    RecordLarge = "record_large", Warning, "servers take it for damage: copy the store before a start, and keep this message elsewhere";
    /// A block that belongs to another number or stream.
    BlockForeign = "block_foreign", Error, "the block was renamed or copied from elsewhere: give it its own name back (see detail)";

    // index.db, idx, fss and the other side files.
    /// A side file does not decode or its checksum is wrong.
    IndexDamaged = "index_damaged", Error, "a server start rebuilds it by scanning every block, and truncates at the first bad record it meets";
    /// `index.db` is of an earlier time than the blocks (normal after a crash).
    IndexOutdated = "index_outdated", Note, "normal after a crash; a server start scans the blocks";
    /// `index.db` is missing.
    IndexMissing = "index_missing", Note, "a server start scans the blocks";
    /// `index.db` is valid and contradicts the blocks.
    IndexDisagrees = "index_disagrees", Error, "the server believes index.db: messages are hidden or missing; copy the store before a start";
    /// A side file other than `index.db` is damaged, or contradicts the blocks.
    SideFile = "side_file", Warning, "servers rebuild it from the blocks";

    // Consumers.
    /// A consumer's metadata is missing or does not parse.
    ConsumerMeta = "consumer_meta", Error, "servers skip or delete this consumer at start; copy its directory first";
    /// A consumer's `meta.sum` does not match (no server verifies it).
    ConsumerSum = "consumer_sum", Error, "no server verifies it, so the configuration may be damaged: compare it with what you expect";
    /// A consumer's `o.dat` does not decode.
    ConsumerState = "consumer_state", Error, "servers up to 2.14.5 delete this consumer at start, later ones skip it; copy its directory first";
    /// A consumer's state contradicts itself or its stream.
    ConsumerAhead = "consumer_ahead", Warning, "the server will reset or redeliver";

    // Archives.
    /// The archive's container (S2, gzip, tar, NATSARC1) is damaged.
    ArchiveDamaged = "archive_damaged", Error, "the archive cannot be restored whole; take another backup";
    /// The archive ends before its end marker.
    ArchiveTruncated = "archive_truncated", Error, "the archive is incomplete: the backup was interrupted; take another backup";
    /// The server recorded an error in the archive while it wrote it.
    ArchiveErrors = "archive_errors", Error, "the server gave up while writing this backup; take another backup";
    /// A member that a restore refuses or that should not be there.
    ArchiveMember = "archive_member", Error, "servers refuse to restore this archive";
    /// Bytes after the end of the archive.
    ArchiveTrailing = "archive_trailing", Warning, "servers 2.12.6-2.14.9 report a failed restore because of it, although the stream is created";
    /// `backup.json` is missing, invalid or contradicts the archive.
    BackupJson = "backup_json", Error, "the backup does not hold what its backup.json says; take another backup";
    /// Fewer messages than the archive's own state says.
    ArchiveIncomplete = "archive_incomplete", Error, "the server left out messages it could not read; salvage the store they came from";
    /// A NATSARC1 archive of a cluster, which leaves out what is pending.
    ArchiveCluster = "archive_cluster", Warning, "after a restore expect messages again that were acknowledged; take the consumers from a node's store with `jetsam backup`";
    /// Messages came or went while the backup was made.
    BackupMeanwhile = "backup_meanwhile", Note, "normal where the stream was in use";
    /// `backup.json` and the archive have different configurations.
    BackupConfig = "backup_config", Warning, "a restore uses that of backup.json; if it was not changed on purpose, take the other (`nats stream restore --config`)";
    /// The archive has not as many consumers as `backup.json` says.
    BackupConsumers = "backup_consumers", Note, "a restore brings back those that are in the archive";

    // What a restore of a whole archive runs into.
    /// No server takes the stream's name.
    RestoreName = "restore_name", Error, "restore it with `jetsam restore --rename`";
    /// More replicas than a standalone server allows.
    RestoreReplicas = "restore_replicas", Note, "restore it into a cluster, or with `nats stream restore --replicas 1` or `jetsam restore --replicas 1`";
    /// A consumer because of which servers refuse the whole archive.
    RestoreConsumer = "restore_consumer", Warning, "leave the consumer out: `jetsam backup -c` makes an archive of chosen ones";
    /// More consumers than servers allow.
    RestoreConsumerCount = "restore_consumer_count", Warning, "raise the limit, or make an archive of fewer with `jetsam backup -c`";
    /// The configuration needs a certain server.
    RestoreApiLevel = "restore_api_level", Note, "restore it with a server of that release or later";
    /// The form of the archive needs a certain server.
    RestoreFormat = "restore_format", Note, "`jetsam backup` makes an archive of it that every server takes";
    /// Limits that apply to a restore.
    RestoreLimits = "restore_limits", Warning, "raise the limit in backup.json before the restore, or lift it with `nats stream restore --config`";
    /// A message too large for a restore.
    RestoreSize = "restore_size", Warning, "raise the limit, or restore an archive that `jetsam backup` makes of it: that form is not measured";
    /// Kept in memory.
    RestoreStorage = "restore_storage", Warning, "restore it with another configuration (`--config`, \"storage\": \"file\")";
    /// Key files in an archive.
    RestoreKeys = "restore_keys", Warning, "make a plaintext archive of it with `jetsam backup` and the key";
    /// A restore that a server does not survive.
    RestoreCrash = "restore_crash", Warning, "do not restore it; make an archive without the damage with `jetsam backup --salvage`";
    /// Something to know before restoring it somewhere.
    RestoreHint = "restore_hint", Note, "see detail";

    // Raft groups.
    /// A raft group's file is damaged.
    Raft = "raft", Error, "a server start truncates or removes what it cannot read in a raft group; copy the directory first";
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What the start of a server on this store would do to what was found. In JSON it is its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnStart {
    /// In words.
    pub text: String,
    /// Something that can be read now is lost by it.
    pub destroys: bool,
}

impl Serialize for OnStart {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// Something found, and where. Absent fields are left out of the JSON form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kind.
    pub code: Code,
    /// How bad it is.
    pub severity: Severity,
    /// Account, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Stream (or raft group).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Consumer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// File, relative to the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Byte offset in `file` (for compressed or encrypted blocks: in the decoded block; `detail` says so).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Stream sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// What a server's start would do to it; only in stores, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_start: Option<OnStart>,
    /// Whether `jetsam salvage` puts it right (errors in streams).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repairable: Option<bool>,
    /// What was found, in words.
    pub detail: String,
    /// What the user can do.
    pub action: String,
}

impl Finding {
    /// A finding of `code` with its default severity and action.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            severity: code.severity(),
            account: None,
            stream: None,
            consumer: None,
            file: None,
            offset: None,
            seq: None,
            on_start: None,
            repairable: None,
            detail: detail.into(),
            action: code.action().to_owned(),
        }
    }

    /// Sets the severity.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// Sets the account and stream.
    #[must_use]
    pub fn stream(mut self, account: &str, stream: &str) -> Self {
        if !account.is_empty() {
            self.account = Some(account.to_owned());
        }
        self.stream = Some(stream.to_owned());
        self
    }

    /// Sets the consumer.
    #[must_use]
    pub fn consumer(mut self, name: &str) -> Self {
        self.consumer = Some(name.to_owned());
        self
    }

    /// Sets the file, relative to the source.
    #[must_use]
    pub fn file(mut self, file: impl Into<String>) -> Self {
        self.file = Some(file.into());
        self
    }

    /// Sets the offset in the file.
    #[must_use]
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Sets the stream sequence.
    #[must_use]
    pub fn seq(mut self, seq: u64) -> Self {
        self.seq = Some(seq);
        self
    }

    /// Replaces the action.
    #[must_use]
    pub fn action(mut self, action: impl Into<String>) -> Self {
        self.action = action.into();
        self
    }
}
