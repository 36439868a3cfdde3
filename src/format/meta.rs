//! `meta.inf` and `meta.sum`: the configuration of a stream, consumer or raft group.
//!
//! | file | content |
//! |---|---|
//! | stream `meta.inf` | JSON object: `Created` (RFC 3339, nanoseconds, UTC), then every field of the stream's configuration |
//! | consumer `meta.inf` | `Created`, `Name`, then every field of the consumer's configuration |
//! | raft group `meta.inf` | as a stream's, named after the group; since 2.10.4 `metadata` has `account`, `stream`, `consumer`, `type` |
//! | `meta.sum` | 16 lowercase hex digits, nothing else: the hash of `meta.inf` as on disk, ciphertext if encrypted |
//!
//! The key of the hash is the *directory's* name, see [`hash`](super::hash). Encrypted: `nonce ++
//! AEAD`, see [`crypt`](super::crypt). Holds for 2.2 to 2.15; which release brought which key is in
//! [`STREAM_KEYS`] and [`CONSUMER_KEYS`].
//!
//! Facts and traps:
//! * The JSON is Go's: compact, `<`, `>`, `&`, U+2028 and U+2029 escaped. [`encode_stream`] and
//!   [`encode_consumer`] give back the very bytes a server wrote, key order included.
//! * Go matches keys without regard to case, takes the last of duplicates, and replaces what is not
//!   UTF-8; so does this. Nesting is limited to 128 levels here.
//! * `Created` is the identity of a stream for those that source it (2.15): keep all its digits.
//! * Servers skip a stream whose sum does not match; a consumer's sum must exist and is never read.
//! * An unknown key anywhere takes the stream offline since 2.11.9 and 2.12.0; `template_owner`
//!   (2.2–2.12) is one such since 2.14. So does a `_nats.req.level` above the server's.
//! * Files of before 2.9 have `"Name":""` for consumers.
//!
//! From the configuration types of 2.2.6 to 2.15.2 and the `meta.inf` files that these wrote.

use std::borrow::Cow;
use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Value};

use super::bytes::{Fault, FaultKind};
use super::hash::HashKey;

/// No `meta.inf` is larger.
pub const MAX_META: usize = 16 << 20;

const REQUIRED_LEVEL: &str = "_nats.req.level";

/// Whose configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MetaKind {
    /// A stream or raft group.
    #[default]
    Stream,
    /// A consumer.
    Consumer,
}

/// A decoded `meta.inf`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MetaInf {
    /// Stream or consumer.
    pub kind: MetaKind,
    /// `Created` as written.
    pub created: Option<String>,
    /// `Created` as nanoseconds; none where it does not parse or does not fit (Go's zero time).
    pub created_ns: Option<i64>,
    /// The name: of a consumer the first of `Name`, `name`, `durable_name` that is not empty.
    pub name: Option<String>,
    /// Every other field, in the order of the file.
    pub config: Map<String, Value>,
    /// A consumer's `Name` as written.
    pub consumer_name: Option<String>,
}

/// Decodes a stream's or raft group's `meta.inf`.
pub fn decode_stream(json: &[u8]) -> Result<MetaInf, Fault> {
    decode(json, MetaKind::Stream)
}

/// Decodes a consumer's `meta.inf`.
pub fn decode_consumer(json: &[u8]) -> Result<MetaInf, Fault> {
    decode(json, MetaKind::Consumer)
}

fn decode(json: &[u8], kind: MetaKind) -> Result<MetaInf, Fault> {
    let mut config = parse_object(json)?;
    let created = match take(&mut config, "Created", true) {
        None => None,
        Some(Value::String(text)) => Some(text),
        Some(_) => return Err(Fault::new(0, FaultKind::Invalid("Created"))),
    };
    let consumer_name = match kind {
        MetaKind::Stream => None,
        // Not `name`, which is the configuration's.
        MetaKind::Consumer => match take(&mut config, "Name", false) {
            None => None,
            Some(Value::String(text)) => Some(text),
            Some(_) => return Err(Fault::new(0, FaultKind::Invalid("Name"))),
        },
    };
    Ok(MetaInf::new(kind, created, consumer_name, config))
}

/// One JSON object and nothing behind it but white space.
fn parse_object(json: &[u8]) -> Result<Map<String, Value>, Fault> {
    let len = json.len() as u64;
    if json.len() > MAX_META {
        let kind = FaultKind::TooLarge {
            what: "meta.inf",
            value: len,
            ceiling: MAX_META as u64,
        };
        return Err(Fault::new(0, kind));
    }
    let text: Cow<'_, str> = String::from_utf8_lossy(json);
    let mut values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let truncated = || Fault::new(len, FaultKind::Truncated { need: 1, have: 0 });
    let value = match values.next() {
        None => return Err(truncated()),
        Some(Err(e)) if e.is_eof() => return Err(truncated()),
        Some(Err(e)) => {
            let before = text.split_inclusive('\n').take(e.line().saturating_sub(1));
            let line_start: usize = before.map(str::len).sum();
            let offset = line_start.saturating_add(e.column().saturating_sub(1)) as u64;
            return Err(Fault::new(offset.min(len), FaultKind::Invalid("JSON")));
        }
        Some(Ok(value)) => value,
    };
    let end = values.byte_offset();
    let rest = text.get(end..).unwrap_or_default();
    if !rest.trim_matches([' ', '\t', '\r', '\n']).is_empty() {
        let bytes = rest.len() as u64;
        return Err(Fault::new(end as u64, FaultKind::Trailing { bytes }));
    }
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(Fault::new(0, FaultKind::Invalid("JSON: not an object"))),
    }
}

/// Removes `key`, in another case too if `fold`, and keeps the order of the others.
fn take(map: &mut Map<String, Value>, key: &str, fold: bool) -> Option<Value> {
    if let Some(value) = map.shift_remove(key) {
        return Some(value);
    }
    let other = map
        .keys()
        .find(|k| fold && k.eq_ignore_ascii_case(key))?
        .clone();
    map.shift_remove(&other)
}

/// The bytes a server would write for this stream.
pub fn encode_stream(meta: &MetaInf) -> Vec<u8> {
    encode(meta, None)
}

/// The bytes a server would write for this consumer.
pub fn encode_consumer(meta: &MetaInf) -> Vec<u8> {
    encode(meta, meta.consumer_name.as_ref())
}

fn encode(meta: &MetaInf, name: Option<&String>) -> Vec<u8> {
    let mut all = Map::new();
    for (key, text) in [("Created", meta.created.as_ref()), ("Name", name)] {
        if let Some(text) = text {
            all.insert(key.into(), Value::String(text.clone()));
        }
    }
    all.extend(meta.config.iter().map(|(k, v)| (k.clone(), v.clone())));
    go_json(&Value::Object(all))
}

/// `value` as Go's `json.Marshal` writes it: compact, and safe to embed in HTML.
pub fn go_json(value: &Value) -> Vec<u8> {
    struct Go;
    impl Formatter for Go {
        fn write_string_fragment<W>(&mut self, out: &mut W, text: &str) -> io::Result<()>
        where
            W: ?Sized + io::Write,
        {
            for part in text.split_inclusive(['<', '>', '&', '\u{2028}', '\u{2029}']) {
                match part.chars().next_back() {
                    Some(c @ ('<' | '>' | '&' | '\u{2028}' | '\u{2029}')) => {
                        let plain = part.get(..part.len() - c.len_utf8()).unwrap_or_default();
                        out.write_all(plain.as_bytes())?;
                        write!(out, "\\u{:04x}", u32::from(c))?;
                    }
                    _ => out.write_all(part.as_bytes())?,
                }
            }
            Ok(())
        }
    }
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Go);
    #[expect(
        clippy::expect_used,
        reason = "a Value has text keys, a Vec takes every write"
    )]
    value.serialize(&mut serializer).expect("JSON to memory");
    out
}

impl MetaInf {
    /// A stream's, from its configuration and creation time.
    pub fn new_stream(config: Map<String, Value>, created: Option<String>) -> Self {
        Self::new(MetaKind::Stream, created, None, config)
    }

    /// A consumer's, from its configuration, creation time and name.
    pub fn new_consumer(
        config: Map<String, Value>,
        created: Option<String>,
        name: impl Into<String>,
    ) -> Self {
        Self::new(MetaKind::Consumer, created, Some(name.into()), config)
    }

    fn new(
        kind: MetaKind,
        created: Option<String>,
        consumer_name: Option<String>,
        config: Map<String, Value>,
    ) -> Self {
        let created_ns = created.as_deref().and_then(nanoseconds);
        let mut meta = Self {
            kind,
            created,
            created_ns,
            name: None,
            config,
            consumer_name,
        };
        let config_name = Some(meta.text("name"));
        let durable = (kind == MetaKind::Consumer).then(|| meta.text("durable_name"));
        let names = [meta.consumer_name.as_deref(), config_name, durable];
        let name = names
            .into_iter()
            .flatten()
            .find(|n| !n.is_empty())
            .map(str::to_owned);
        meta.name = name;
        meta
    }

    /// A field, by its name in whatever case.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.config.get(key).or_else(|| {
            self.config
                .iter()
                .find(|(k, _)| k.eq_ignore_ascii_case(key))
                .map(|(_, value)| value)
        })
    }

    fn text(&self, key: &str) -> &str {
        self.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn text_or<'a>(&'a self, key: &str, default: &'a str) -> &'a str {
        Some(self.text(key))
            .filter(|t| !t.is_empty())
            .unwrap_or(default)
    }

    fn int(&self, key: &str) -> i64 {
        self.get(key).and_then(Value::as_i64).unwrap_or_default()
    }

    fn uint(&self, key: &str) -> u64 {
        self.get(key).and_then(Value::as_u64).unwrap_or_default()
    }

    fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or_default()
    }

    fn texts(&self, key: &str) -> impl Iterator<Item = &str> {
        self.get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
    }

    /// `metadata`: one value.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.get("metadata")?.get(key)?.as_str()
    }

    /// The API level a server must have (`_nats.req.level`); what is no number no server has.
    pub fn required_api_level(&self) -> Option<u32> {
        let level = self
            .metadata(REQUIRED_LEVEL)
            .filter(|level| !level.is_empty())?;
        Some(level.parse().unwrap_or(u32::MAX))
    }

    /// Replicas; a consumer's 0 means as many as its stream has.
    pub fn num_replicas(&self) -> i64 {
        self.int("num_replicas")
    }

    /// A stream's subjects.
    pub fn subjects(&self) -> Vec<&str> {
        self.texts("subjects").collect()
    }

    /// `limits`, `interest` or `workqueue`.
    pub fn retention(&self) -> &str {
        self.text_or("retention", "limits")
    }

    /// `old` or `new`.
    pub fn discard(&self) -> &str {
        self.text_or("discard", "old")
    }

    /// `file` or `memory`.
    pub fn storage(&self) -> &str {
        self.text_or("storage", "file")
    }

    /// `none` or `s2`; absent before 2.10.
    pub fn compression(&self) -> Option<&str> {
        self.get("compression")?.as_str()
    }

    /// Most messages; 0 or less: no limit.
    pub fn max_msgs(&self) -> i64 {
        self.int("max_msgs")
    }

    /// Most bytes; 0 or less: no limit.
    pub fn max_bytes(&self) -> i64 {
        self.int("max_bytes")
    }

    /// Oldest age in nanoseconds; 0: no limit.
    pub fn max_age(&self) -> i64 {
        self.int("max_age")
    }

    /// Most messages of a subject; 0 or less: no limit.
    pub fn max_msgs_per_subject(&self) -> i64 {
        self.int("max_msgs_per_subject")
    }

    /// Largest message; 0 or less: no limit.
    pub fn max_msg_size(&self) -> i64 {
        self.int("max_msg_size")
    }

    /// The first sequence the stream was told to use; 0: not told.
    pub fn first_seq(&self) -> u64 {
        self.uint("first_seq")
    }

    /// Per-message TTLs are on.
    pub fn allow_msg_ttl(&self) -> bool {
        self.flag("allow_msg_ttl")
    }

    /// Message schedules are on.
    pub fn allow_msg_schedules(&self) -> bool {
        self.flag("allow_msg_schedules")
    }

    /// TTL of subject delete markers in nanoseconds; 0: there are none.
    pub fn subject_delete_marker_ttl(&self) -> i64 {
        self.int("subject_delete_marker_ttl")
    }

    /// The stream mirrors another.
    pub fn has_mirror(&self) -> bool {
        self.get("mirror").is_some_and(Value::is_object)
    }

    /// The stream has sources.
    pub fn has_sources(&self) -> bool {
        self.get("sources")
            .and_then(Value::as_array)
            .is_some_and(|s| !s.is_empty())
    }

    /// The template that made the stream (2.2–2.12): 2.14 and later refuse the stream for it.
    pub fn template_owner(&self) -> Option<&str> {
        self.get("template_owner")?.as_str()
    }

    /// A consumer's filters, however they were given; none means everything.
    pub fn filters(&self) -> Vec<&str> {
        let one = Some(self.text("filter_subject")).filter(|f| !f.is_empty());
        one.into_iter()
            .chain(self.texts("filter_subjects"))
            .collect()
    }

    /// `all`, `last`, `new`, `by_start_sequence`, `by_start_time` or `last_per_subject`.
    pub fn deliver_policy(&self) -> &str {
        match self.text_or("deliver_policy", "all") {
            "undefined" => "all",
            policy => policy,
        }
    }

    /// `none`, `all`, `explicit` or `flow_control`.
    pub fn ack_policy(&self) -> &str {
        self.text_or("ack_policy", "none")
    }

    /// Where `by_start_sequence` starts.
    pub fn opt_start_seq(&self) -> u64 {
        self.uint("opt_start_seq")
    }

    /// Where `by_start_time` starts, nanoseconds.
    pub fn opt_start_time(&self) -> Option<i64> {
        nanoseconds(self.text("opt_start_time"))
    }

    /// Most deliveries of a message; 0 or less: no limit.
    pub fn max_deliver(&self) -> i64 {
        self.int("max_deliver")
    }

    /// A consumer that a mirror or source made for itself.
    pub fn direct(&self) -> bool {
        self.flag("direct")
    }

    /// Keeps its state in memory although the stream is on disk.
    pub fn mem_storage(&self) -> bool {
        self.flag("mem_storage")
    }
}

/// RFC 3339 to nanoseconds, where they fit.
fn nanoseconds(text: &str) -> Option<i64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    time.as_nanosecond().try_into().ok()
}

/// What `meta.sum` says of `meta` (as on disk): 16 hex digits.
pub fn sum(key_name: &str, meta: &[u8]) -> String {
    HashKey::new(key_name).sum_hex(meta)
}

/// Why a `meta.sum` does not match.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SumFault {
    /// Not 16 lowercase hex digits, which servers compare to the letter.
    #[error("not 16 lowercase hex digits but {len} bytes{}", if *.matches { ", though the right sum" } else { "" })]
    Form {
        /// Its length.
        len: usize,
        /// The right sum, in capitals or with white space around it.
        matches: bool,
    },
    /// The sum of other bytes or under another name.
    #[error("the sum is {stored}, that of meta.inf {computed}")]
    Differs {
        /// The sum in the file.
        stored: String,
        /// What it should be.
        computed: String,
    },
}

/// Checks `sum_file`, the content of `meta.sum`, against `meta`, that of `meta.inf`.
pub fn check_sum(key_name: &[u8], meta: &[u8], sum_file: &[u8]) -> Result<(), SumFault> {
    let computed = HashKey::new(key_name).sum_hex(meta);
    if sum_file == computed.as_bytes() {
        return Ok(());
    }
    let is_sum = sum_file.len() == 16
        && sum_file
            .iter()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
    if is_sum {
        let stored = String::from_utf8_lossy(sum_file).into_owned();
        return Err(SumFault::Differs { stored, computed });
    }
    let matches = sum_file
        .trim_ascii()
        .eq_ignore_ascii_case(computed.as_bytes());
    Err(SumFault::Form {
        len: sum_file.len(),
        matches,
    })
}

/// The keys of a stream's configuration and the release that brought each.
pub const STREAM_KEYS: &[(&str, &str)] = &[
    ("name", "2.2.0"),
    ("subjects", "2.2.0"),
    ("retention", "2.2.0"),
    ("max_consumers", "2.2.0"),
    ("max_msgs", "2.2.0"),
    ("max_bytes", "2.2.0"),
    ("discard", "2.2.0"),
    ("max_age", "2.2.0"),
    ("max_msg_size", "2.2.0"),
    ("storage", "2.2.0"),
    ("num_replicas", "2.2.0"),
    ("no_ack", "2.2.0"),
    ("template_owner", "2.2.0"),
    ("duplicate_window", "2.2.0"),
    ("placement", "2.2.0"),
    ("mirror", "2.2.0"),
    ("sources", "2.2.0"),
    ("max_msgs_per_subject", "2.3.0"),
    ("description", "2.3.3"),
    ("sealed", "2.6.2"),
    ("deny_delete", "2.6.2"),
    ("deny_purge", "2.6.2"),
    ("allow_rollup_hdrs", "2.6.2"),
    ("republish", "2.8.3"),
    ("allow_direct", "2.9.0"),
    ("mirror_direct", "2.9.0"),
    ("discard_new_per_subject", "2.9.1"),
    ("compression", "2.10.0"),
    ("first_seq", "2.10.0"),
    ("subject_transform", "2.10.0"),
    ("consumer_limits", "2.10.0"),
    ("metadata", "2.10.0"),
    ("allow_msg_ttl", "2.11.0"),
    ("subject_delete_marker_ttl", "2.11.0"),
    ("allow_msg_counter", "2.12.0"),
    ("allow_atomic", "2.12.0"),
    ("allow_msg_schedules", "2.12.0"),
    ("persist_mode", "2.12.0"),
    ("allow_batched", "2.14.0"),
];

/// The keys of a consumer's configuration and the release that brought each.
pub const CONSUMER_KEYS: &[(&str, &str)] = &[
    ("durable_name", "2.2.0"),
    ("deliver_subject", "2.2.0"),
    ("deliver_policy", "2.2.0"),
    ("opt_start_seq", "2.2.0"),
    ("opt_start_time", "2.2.0"),
    ("ack_policy", "2.2.0"),
    ("ack_wait", "2.2.0"),
    ("max_deliver", "2.2.0"),
    ("filter_subject", "2.2.0"),
    ("replay_policy", "2.2.0"),
    ("rate_limit_bps", "2.2.0"),
    ("sample_freq", "2.2.0"),
    ("max_waiting", "2.2.0"),
    ("max_ack_pending", "2.2.0"),
    ("idle_heartbeat", "2.2.0"),
    ("flow_control", "2.2.0"),
    ("direct", "2.2.0"),
    ("description", "2.3.3"),
    ("deliver_group", "2.4.0"),
    ("headers_only", "2.6.2"),
    ("max_batch", "2.7.0"),
    ("max_expires", "2.7.0"),
    ("inactive_threshold", "2.7.0"),
    ("backoff", "2.7.1"),
    ("max_bytes", "2.8.3"),
    ("num_replicas", "2.8.3"),
    ("mem_storage", "2.8.3"),
    ("name", "2.9.0"),
    ("filter_subjects", "2.10.0"),
    ("metadata", "2.10.0"),
    ("pause_until", "2.11.0"),
    ("priority_groups", "2.11.0"),
    ("priority_policy", "2.11.0"),
    ("priority_timeout", "2.11.0"),
    ("sourcing", "2.14.0"),
];

/// The keys of the objects inside a stream's configuration.
fn nested_keys(key: &str) -> Option<&'static [&'static str]> {
    Some(match key {
        "placement" => &["cluster", "tags", "preferred"],
        "mirror" | "sources" => &[
            "name",
            "opt_start_seq",
            "opt_start_time",
            "filter_subject",
            "external",
            "subject_transforms",
            "consumer",
        ],
        "external" => &["api", "deliver"],
        "consumer" => &["name", "deliver_subject"],
        "subject_transform" | "subject_transforms" => &["src", "dest"],
        "republish" => &["src", "dest", "headers_only"],
        "consumer_limits" => &["inactive_threshold", "max_ack_pending"],
        _ => return None,
    })
}

/// The keys that no release up to 2.15.2 knows, nested ones as `sources.nmae`.
pub fn unknown_keys(meta: &MetaInf) -> Vec<String> {
    let known = match meta.kind {
        MetaKind::Stream => STREAM_KEYS,
        MetaKind::Consumer => CONSUMER_KEYS,
    };
    let mut unknown = Vec::new();
    let mut nested: Vec<(String, &'static [&'static str], &Value)> = Vec::new();
    for (key, value) in &meta.config {
        match known.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)) {
            None => unknown.push(key.clone()),
            Some((k, _)) if meta.kind == MetaKind::Stream => {
                nested.extend(nested_keys(k).map(|keys| (key.clone(), keys, value)));
            }
            Some(_) => {}
        }
    }
    // Only known keys are entered, and these are at most three deep.
    while let Some((path, keys, value)) = nested.pop() {
        match value {
            Value::Array(items) => {
                let objects = items.iter().filter(|item| item.is_object());
                nested.extend(objects.map(|item| (path.clone(), keys, item)));
            }
            Value::Object(map) => {
                for (key, value) in map {
                    let path = format!("{path}.{key}");
                    match keys.iter().find(|k| k.eq_ignore_ascii_case(key)) {
                        None => unknown.push(path),
                        Some(k) => nested.extend(nested_keys(k).map(|keys| (path, keys, value))),
                    }
                }
            }
            _ => {}
        }
    }
    unknown.sort();
    unknown.dedup();
    unknown
}

/// The oldest release that can have written this, judged by its keys: the newest of them.
pub fn oldest_writer(meta: &MetaInf) -> &'static str {
    let known = match meta.kind {
        MetaKind::Stream => STREAM_KEYS,
        MetaKind::Consumer => CONSUMER_KEYS,
    };
    // Both lists go from old to new.
    let newest = known
        .iter()
        .rev()
        .find(|(key, _)| meta.config.contains_key(*key));
    newest.map_or("2.2.0", |(_, release)| release)
}

/// Fields whose value no release knows (`field: value`); servers skip the stream or consumer.
pub fn unknown_values(meta: &MetaInf) -> Vec<String> {
    const STREAM: &[(&str, &[&str])] = &[
        ("retention", &["limits", "interest", "workqueue"]),
        ("discard", &["old", "new"]),
        ("storage", &["file", "memory"]),
        ("compression", &["none", "s2"]),
        ("persist_mode", &["", "default", "async"]),
    ];
    const CONSUMER: &[(&str, &[&str])] = &[
        ("ack_policy", &["none", "all", "explicit", "flow_control"]),
        ("replay_policy", &["instant", "original"]),
        (
            "priority_policy",
            &["none", "overflow", "pinned_client", "prioritized"],
        ),
        (
            "deliver_policy",
            &[
                "all",
                "undefined",
                "last",
                "new",
                "by_start_sequence",
                "by_start_time",
                "last_per_subject",
            ],
        ),
    ];
    let fields = match meta.kind {
        MetaKind::Stream => STREAM,
        MetaKind::Consumer => CONSUMER,
    };
    let is_known =
        |value: &Value, known: &[&str]| value.as_str().is_some_and(|v| known.contains(&v));
    fields
        .iter()
        .filter_map(|(key, known)| Some((key, meta.get(key)?, known)))
        .filter(|(_, value, known)| !is_known(value, known))
        .map(|(key, value, _)| format!("{key}: {value}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! vector {
        ($name:literal) => {
            (
                include_bytes!(concat!("../../fixtures/vectors/meta/", $name, ".inf")).as_slice(),
                include_bytes!(concat!("../../fixtures/vectors/meta/", $name, ".sum")).as_slice(),
            )
        };
    }

    fn invalid(offset: u64, what: &'static str) -> Fault {
        Fault::new(offset, FaultKind::Invalid(what))
    }

    #[test]
    fn files_of_servers_come_back_byte_for_byte() {
        let streams = [
            (
                vector!("2.15.2-sourced"),
                "SOURCED",
                "2.11.0",
                1795224540638589064,
            ),
            (
                vector!("2.15.2-s2"),
                "S2META",
                "2.11.0",
                1795224545268094400,
            ),
            (
                vector!("2.14.5-raft"),
                "C-R3F-X5Iui4j0",
                "2.11.0",
                1795221531742096652,
            ),
        ];
        for ((inf, sum_file), name, oldest, created) in streams {
            let meta = decode_stream(inf).unwrap();
            assert_eq!(
                (meta.name.as_deref(), meta.created_ns),
                (Some(name), Some(created))
            );
            assert_eq!(oldest_writer(&meta), oldest);
            assert_eq!(encode_stream(&meta), inf);
            check_sum(name.as_bytes(), inf, sum_file).unwrap();
            assert_eq!(sum(name, inf).as_bytes(), sum_file);
            assert_eq!(
                (unknown_keys(&meta), unknown_values(&meta)),
                (vec![], vec![])
            );
        }
        let (inf, sum_file) = vector!("2.2.6-consumer");
        let meta = decode_consumer(inf).unwrap();
        assert_eq!(encode_consumer(&meta), inf);
        assert_eq!(
            (meta.name.as_deref(), meta.consumer_name.as_deref()),
            (Some("NEW"), Some(""))
        );
        assert_eq!(oldest_writer(&meta), "2.2.0");
        check_sum(b"ORDERS/NEW", inf, sum_file).unwrap();
        assert_eq!(
            (unknown_keys(&meta), unknown_values(&meta)),
            (vec![], vec![])
        );
    }

    #[test]
    fn staged_batches_have_no_creation_time() {
        let (inf, sum_file) = vector!("2.14.5-batch");
        let meta = decode_stream(inf).unwrap();
        assert_eq!(meta.created.as_deref(), Some("0001-01-01T00:00:00Z"));
        assert_eq!(meta.created_ns, None);
        assert_eq!(encode_stream(&meta), inf);
        check_sum(b"AKVWNmEF", inf, sum_file).unwrap();
    }

    #[test]
    fn stream_fields() {
        let meta = decode_stream(vector!("2.15.2-s2").0).unwrap();
        assert_eq!(meta.subjects(), ["s2m.>"]);
        let texts = (
            meta.retention(),
            meta.discard(),
            meta.storage(),
            meta.compression(),
        );
        assert_eq!(texts, ("limits", "old", "file", Some("s2")));
        let limits = (
            meta.max_msgs(),
            meta.max_bytes(),
            meta.max_age(),
            meta.max_msg_size(),
        );
        assert_eq!(limits, (-1, -1, 0, -1));
        let numbers = (
            meta.max_msgs_per_subject(),
            meta.first_seq(),
            meta.num_replicas(),
        );
        assert_eq!(numbers, (-1, 1000, 1));
        assert_eq!(
            (meta.metadata("team"), meta.metadata("none")),
            (Some("billing"), None)
        );
        assert_eq!(meta.required_api_level(), Some(0));
        assert!(!meta.has_sources() && !meta.has_mirror() && !meta.allow_msg_ttl());
        assert!(meta.config.keys().eq([
            "name",
            "subjects",
            "retention",
            "max_consumers",
            "max_msgs",
            "max_bytes",
            "max_age",
            "max_msgs_per_subject",
            "max_msg_size",
            "discard",
            "storage",
            "num_replicas",
            "duplicate_window",
            "compression",
            "first_seq",
            "allow_direct",
            "mirror_direct",
            "sealed",
            "deny_delete",
            "deny_purge",
            "allow_rollup_hdrs",
            "consumer_limits",
            "allow_msg_ttl",
            "metadata",
        ]));

        assert!(
            decode_stream(vector!("2.15.2-sourced").0)
                .unwrap()
                .has_sources()
        );
        let raft = decode_stream(vector!("2.14.5-raft").0).unwrap();
        let labels = ["account", "stream", "consumer", "type"].map(|k| raft.metadata(k).unwrap());
        assert_eq!(labels, ["$G", "ORDERS", "MAIN", "consumer"]);
    }

    #[test]
    fn consumer_fields() {
        let meta = decode_consumer(vector!("2.2.6-consumer").0).unwrap();
        assert_eq!(meta.filters(), ["orders.new.>"]);
        assert_eq!(
            (meta.deliver_policy(), meta.ack_policy()),
            ("all", "explicit")
        );
        assert_eq!(
            (meta.max_deliver(), meta.direct(), meta.mem_storage()),
            (-1, false, false)
        );
        let many = br#"{"filter_subjects":["a","b.>"],"deliver_policy":"by_start_time",
            "opt_start_time":"2026-01-02T03:04:05.6+01:00","opt_start_seq":18446744073709551615}"#;
        let many = decode_consumer(many).unwrap();
        assert_eq!(
            (many.filters(), many.name.as_deref()),
            (vec!["a", "b.>"], None)
        );
        assert_eq!(many.opt_start_time(), Some(1767319445600000000));
        assert_eq!(many.opt_start_seq(), u64::MAX);
    }

    #[test]
    fn strings_are_escaped_as_go_does() {
        // What Go 1.26's json.Marshal makes of this text.
        let text = "<a&b> \u{2028}\u{2029}\"\\\n\u{1} < é \u{8}\u{c}";
        let go = r#""\u003ca\u0026b\u003e \u2028\u2029\"\\\n\u0001 \u003c é \b\f""#;
        assert_eq!(String::from_utf8(go_json(&text.into())).unwrap(), go);
        let keys = decode_stream(br#"{"metadata":{"a\u0026b":"\u003c"}}"#).unwrap();
        assert_eq!(
            encode_stream(&keys),
            br#"{"metadata":{"a\u0026b":"\u003c"}}"#
        );
    }

    #[test]
    fn names_are_matched_as_go_matches_them() {
        let json = br#"{"created":"2020-01-01T00:00:00Z","NAME":"A","Max_Msgs":7,"Name":"B"}"#;
        let meta = decode_stream(json).unwrap();
        assert_eq!(meta.created_ns, Some(1577836800000000000));
        assert_eq!(meta.max_msgs(), 7);
        assert_eq!(unknown_keys(&meta), [""; 0]);
        let meta = decode_consumer(br#"{"Name":"","name":"N","durable_name":"D"}"#).unwrap();
        assert_eq!(meta.name.as_deref(), Some("N"));
        let meta = decode_stream(b"{\"name\":\"a\xffb\",\"max_msgs\":1,\"max_msgs\":2}").unwrap();
        assert_eq!(
            (meta.name.as_deref(), meta.max_msgs()),
            (Some("a\u{fffd}b"), 2)
        );
    }

    #[test]
    fn what_is_unknown_is_named() {
        let json = br#"{"name":"A","retention":"forever","storage":"file","compression":7,
            "template_owner":"T","nmae":1,"metadata":{"free":"text"},
            "placement":{"cluster":"c","tag":[]},"mirror":{"name":"M","external":{"api":"","x":1}},
            "sources":[{"name":"S","subject_transforms":[{"src":"a","dst":"b"}]},{"nmae":1}]}"#;
        let meta = decode_stream(json).unwrap();
        let unknown = [
            "mirror.external.x",
            "nmae",
            "placement.tag",
            "sources.nmae",
            "sources.subject_transforms.dst",
        ];
        assert_eq!(unknown_keys(&meta), unknown);
        assert_eq!(
            unknown_values(&meta),
            ["retention: \"forever\"", "compression: 7"]
        );
        assert_eq!(meta.template_owner(), Some("T"));
        // A stream's key in a consumer.
        let meta = decode_consumer(br#"{"sealed":true,"ack_policy":"some"}"#).unwrap();
        assert_eq!(
            (unknown_keys(&meta), unknown_values(&meta)),
            (vec!["sealed".into()], vec!["ack_policy: \"some\"".into()])
        );
        let level = |json: &[u8]| decode_stream(json).unwrap().required_api_level();
        assert_eq!(level(br#"{"metadata":{"_nats.req.level":"5"}}"#), Some(5));
        assert_eq!(
            level(br#"{"metadata":{"_nats.req.level":"x"}}"#),
            Some(u32::MAX)
        );
        assert_eq!(level(br#"{"metadata":{"_nats.req.level":""}}"#), None);
    }

    #[test]
    fn faults_say_where() {
        let fault = |json: &[u8]| decode_stream(json).unwrap_err();
        assert_eq!(
            fault(b"{\"name\":\"A\",\n \"max_msgs\":x}"),
            invalid(25, "JSON")
        );
        assert_eq!(fault(b"{\"name\":?}"), invalid(8, "JSON"));
        assert_eq!(fault(&[0; 400]), invalid(0, "JSON"));
        assert_eq!(fault(b"[]"), invalid(0, "JSON: not an object"));
        assert_eq!(fault(b"{\"Created\":5}"), invalid(0, "Created"));
        let behind = fault(b"{\"name\":\"A\"} \n{}");
        assert_eq!(behind, Fault::new(12, FaultKind::Trailing { bytes: 4 }));
        decode_stream(b" {\"name\":\"A\"} \n").unwrap();

        let (inf, _) = vector!("2.15.2-sourced");
        for len in 0..inf.len() {
            let truncated = FaultKind::Truncated { need: 1, have: 0 };
            assert_eq!(fault(&inf[..len]), Fault::new(len as u64, truncated));
        }
    }

    #[test]
    fn hostile_sizes_are_refused() {
        let deep = [b"{\"name\":".repeat(100_000), b"1".to_vec()].concat();
        assert!(matches!(
            decode_stream(&deep).unwrap_err().kind,
            FaultKind::Invalid("JSON")
        ));
        let big = vec![b' '; MAX_META + 1];
        let fault = decode_stream(&big).unwrap_err();
        assert!(matches!(
            fault.kind,
            FaultKind::TooLarge {
                value: 16_777_217,
                ..
            }
        ));
    }

    #[test]
    fn sums_are_compared_to_the_letter() {
        let (inf, stored) = vector!("2.15.2-s2");
        check_sum(b"S2META", inf, stored).unwrap();
        for (name, inf) in [("s2meta", inf), ("S2META", &inf[1..])] {
            let fault = check_sum(name.as_bytes(), inf, stored).unwrap_err();
            let (stored, computed) = ("490e65ae03bfe4b7".to_owned(), sum(name, inf));
            assert_eq!(fault, SumFault::Differs { stored, computed });
        }
        let form = |file: &[u8]| check_sum(b"S2META", inf, file).unwrap_err();
        assert_eq!(
            form(b"490e65ae03bfe4b7\n"),
            SumFault::Form {
                len: 17,
                matches: true
            }
        );
        assert_eq!(
            form(b"490E65AE03BFE4B7"),
            SumFault::Form {
                len: 16,
                matches: true
            }
        );
        assert_eq!(
            form(b"490e65ae03bfe4b"),
            SumFault::Form {
                len: 15,
                matches: false
            }
        );
        assert_eq!(
            form(&[0xff; 16]),
            SumFault::Form {
                len: 16,
                matches: false
            }
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, flip in 0usize..512, to: u8) {
            let _ = decode_stream(&bytes);
            let mut inf = vector!("2.15.2-sourced").0.to_vec();
            if let Some(byte) = inf.get_mut(flip) {
                *byte = to;
            }
            for meta in [decode_stream(&inf), decode_consumer(&inf)].into_iter().flatten() {
                unknown_keys(&meta);
                unknown_values(&meta);
                let again = encode_stream(&meta);
                proptest::prop_assert_eq!(decode_stream(&again).unwrap().config, meta.config);
            }
        }
    }
}
