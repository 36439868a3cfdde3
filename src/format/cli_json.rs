//! Configurations and JSON in the form that the `nats` CLI gives them.
//!
//! The CLI reads what the server says into types of its own and writes these: other order than the
//! server's, unknown keys dropped, empty fields left out or not as the tables here say. The tables
//! are those of its library jsm.go 0.4.1 (2026), which writes what earlier ones wrote wherever they
//! knew the field; `template_owner` and what a consumer's table lacks of 0.4.1's is said there.

use serde_json::{Map, Value};

/// What a field holds, and so what its zero is.
#[derive(Debug, Clone, Copy)]
enum Of {
    Text,
    Number,
    Flag,
    /// A word, and the one that is zero.
    Word(&'static str),
    List,
    /// Free keys, which Go sorts.
    Table,
    One(&'static [Field]),
    Many(&'static [Field]),
}
use Of::{Flag, List, Many, Number, One, Table, Text, Word};

#[derive(Debug, Clone, Copy)]
struct Field {
    key: &'static str,
    of: Of,
    /// Written although zero.
    always: bool,
}

/// Left out if zero.
const fn may(key: &'static str, of: Of) -> Field {
    let always = false;
    Field { key, of, always }
}

const fn always(key: &'static str, of: Of) -> Field {
    let always = true;
    Field { key, of, always }
}

const TRANSFORM: &[Field] = &[always("src", Text), always("dest", Text)];

const SOURCE: &[Field] = &[
    always("name", Text),
    may("opt_start_seq", Number),
    may("opt_start_time", Text),
    may("filter_subject", Text),
    may(
        "external",
        One(&[always("api", Text), always("deliver", Text)]),
    ),
    may("subject_transforms", Many(TRANSFORM)),
    may(
        "consumer",
        One(&[may("name", Text), always("deliver_subject", Text)]),
    ),
];

const STREAM: &[Field] = &[
    always("name", Text),
    may("description", Text),
    may("subjects", List),
    always("retention", Word("limits")),
    always("max_consumers", Number),
    always("max_msgs_per_subject", Number),
    always("max_msgs", Number),
    always("max_bytes", Number),
    always("max_age", Number),
    may("max_msg_size", Number),
    always("storage", Word("file")),
    always("discard", Word("old")),
    always("num_replicas", Number),
    may("no_ack", Flag),
    // Up to 2022.
    may("template_owner", Text),
    may("duplicate_window", Number),
    may(
        "placement",
        One(&[
            may("cluster", Text),
            may("tags", List),
            may("preferred", Text),
        ]),
    ),
    may("mirror", One(SOURCE)),
    may("sources", Many(SOURCE)),
    may("compression", Word("none")),
    may("subject_transform", One(TRANSFORM)),
    may(
        "republish",
        One(&[
            may("src", Text),
            always("dest", Text),
            may("headers_only", Flag),
        ]),
    ),
    always("sealed", Flag),
    always("deny_delete", Flag),
    always("deny_purge", Flag),
    always("allow_rollup_hdrs", Flag),
    always("allow_direct", Flag),
    always("mirror_direct", Flag),
    may("discard_new_per_subject", Flag),
    may("first_seq", Number),
    may("metadata", Table),
    may("allow_msg_ttl", Flag),
    may("subject_delete_marker_ttl", Number),
    always(
        "consumer_limits",
        One(&[
            may("inactive_threshold", Number),
            may("max_ack_pending", Number),
        ]),
    ),
    may("allow_atomic", Flag),
    may("allow_msg_counter", Flag),
    may("allow_msg_schedules", Flag),
    may("persist_mode", Word("default")),
    may("allow_batched", Flag),
];

const CONSUMER: &[Field] = &[
    may("description", Text),
    always("ack_policy", Word("none")),
    may("ack_wait", Number),
    always("deliver_policy", Word("all")),
    may("deliver_subject", Text),
    may("deliver_group", Text),
    may("durable_name", Text),
    may("name", Text),
    may("filter_subject", Text),
    may("filter_subjects", List),
    may("flow_control", Flag),
    may("idle_heartbeat", Number),
    may("max_ack_pending", Number),
    may("max_deliver", Number),
    may("backoff", List),
    may("max_waiting", Number),
    may("opt_start_seq", Number),
    may("opt_start_time", Text),
    may("rate_limit_bps", Number),
    always("replay_policy", Word("instant")),
    may("sample_freq", Text),
    may("headers_only", Flag),
    may("max_batch", Number),
    may("max_expires", Number),
    may("max_bytes", Number),
    may("inactive_threshold", Number),
    always("num_replicas", Number),
    may("mem_storage", Flag),
    may("metadata", Table),
    // 0.4.1 always writes it, year 1 if there is none.
    may("pause_until", Text),
    may("priority_groups", List),
    may("priority_policy", Word("none")),
    may("priority_timeout", Number),
    may("direct", Flag),
];

/// A stream's configuration as the CLI has it in `backup.json`.
pub fn stream_config(config: &Map<String, Value>) -> Map<String, Value> {
    let mut out = shape(config, STREAM);
    out.shift_remove("template_owner");
    out
}

/// A stream's configuration as the CLI had it in configuration backups, which ended before 2.10;
/// what came later is there if it is set.
pub fn old_stream_config(config: &Map<String, Value>) -> Map<String, Value> {
    let mut out = shape(config, STREAM);
    if let Some(Value::Object(limits)) = out.get("consumer_limits")
        && limits.is_empty()
    {
        out.shift_remove("consumer_limits");
    }
    out
}

/// A consumer's configuration, likewise.
pub fn old_consumer_config(config: &Map<String, Value>) -> Map<String, Value> {
    shape(config, CONSUMER)
}

/// Nothing recurses further than the tables.
fn shape(map: &Map<String, Value>, fields: &[Field]) -> Map<String, Value> {
    let mut out = Map::new();
    for field in fields {
        let value = map.get(field.key);
        let is_zero = |v: &Value| match (field.of, v) {
            (Text, Value::String(text)) => text.is_empty(),
            (Word(zero), Value::String(text)) => text.is_empty() || text == zero,
            (Number, Value::Number(n)) => n.as_u64() == Some(0) || (!n.is_u64() && !n.is_i64()),
            (Flag, Value::Bool(set)) => !set,
            (List | Many(_), Value::Array(items)) => items.is_empty(),
            (Table, Value::Object(map)) => map.is_empty(),
            (One(_), Value::Object(_)) => false,
            _ => true,
        };
        let value = value.filter(|v| !is_zero(v));
        if value.is_none() && !field.always {
            continue;
        }
        let shaped = match (field.of, value) {
            (One(fields), Some(Value::Object(map))) => shape(map, fields).into(),
            (Many(fields), Some(Value::Array(items))) => {
                let items = items.iter().filter_map(Value::as_object);
                items.map(|item| Value::from(shape(item, fields))).collect()
            }
            (Table, Some(Value::Object(map))) => {
                let mut map = map.clone();
                map.sort_keys();
                map.into()
            }
            (_, Some(value)) => value.clone(),
            (Text, None) => "".into(),
            (Word(zero), None) => zero.into(),
            (Number, None) => 0.into(),
            (Flag, None) => false.into(),
            (List | Many(_), None) => Value::Null,
            (Table | One(_), None) => Map::new().into(),
        };
        out.insert(field.key.to_owned(), shaped);
    }
    out
}

/// `value` as Go's `json.MarshalIndent` writes it with two spaces: no newline at the end, safe to
/// embed in HTML.
pub fn indented(value: &Value) -> Vec<u8> {
    let text = format!("{value:#}");
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // None of these occurs outside of strings.
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out.into_bytes()
}
