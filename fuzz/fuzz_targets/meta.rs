//! Text: the JSON of `meta.inf`, `backup.json`, configuration backups, consumers and their states; header
//! blocks of messages; times. Input: the text itself.
#![no_main]

use jetsam::format::config_backup::{self, ConfigBackup, Configuration};
use jetsam::format::meta::{self, MetaInf};
use jetsam::format::o_dat::ConsumerState;
use jetsam::format::{Fault, archive_v2, backup_json, headers};
use jetsam::time;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Numbers with a fraction are no part of any configuration, and their text may change once.
fn exact(value: &Value) -> bool {
    match value {
        Value::Number(n) => !n.is_f64(),
        Value::Array(list) => list.iter().all(exact),
        Value::Object(map) => map.values().all(exact),
        _ => true,
    }
}

fn meta_inf(
    text: &[u8],
    decode: fn(&[u8]) -> Result<MetaInf, Fault>,
    encode: fn(&MetaInf) -> Vec<u8>,
) {
    let m = match decode(text) {
        Ok(m) => m,
        // Bytes that are not UTF-8 are replaced by longer ones.
        Err(f) => return assert!(f.offset <= 3 * text.len() as u64),
    };
    let all = (
        (
            m.get("name"),
            m.metadata("_nats.req.level"),
            m.required_api_level(),
        ),
        (m.num_replicas(), m.subjects(), m.retention(), m.discard()),
        (m.storage(), m.compression(), m.max_msgs(), m.max_bytes()),
        (m.max_age(), m.max_msgs_per_subject(), m.max_msg_size()),
        (m.first_seq(), m.allow_msg_ttl(), m.allow_msg_schedules()),
        (
            m.subject_delete_marker_ttl(),
            m.has_mirror(),
            m.has_sources(),
        ),
        (m.template_owner(), m.filters(), m.deliver_policy()),
        (m.ack_policy(), m.opt_start_seq(), m.opt_start_time()),
        (m.max_deliver(), m.direct(), m.mem_storage()),
        (meta::unknown_keys(&m), meta::oldest_writer(&m)),
        meta::unknown_values(&m),
    );
    drop(all);
    if m.config.values().all(exact) {
        let out = encode(&m);
        let back = decode(&out).expect("what was written decodes");
        assert_eq!(back, m);
        assert_eq!(encode(&back), out);
    }
}

fn configuration(backup: ConfigBackup) {
    assert!(!backup.configuration.file_name().contains('\0'));
    let out = config_backup::encode(&backup);
    let back = config_backup::decode(&out).expect("what was written decodes");
    let (Configuration::Stream(map) | Configuration::Consumer(map) | Configuration::Template(map)) =
        &backup.configuration;
    if map.values().all(exact) {
        assert_eq!(back, backup);
    }
}

fuzz_target!(|data: &[u8]| {
    meta_inf(data, meta::decode_stream, meta::encode_stream);
    meta_inf(data, meta::decode_consumer, meta::encode_consumer);
    if let Ok(b) = backup_json::decode(data) {
        let _ = b.name();
        let out = backup_json::encode(&b);
        let back = backup_json::decode(&out).expect("what was written decodes");
        // Times that are absent and numbers that are zero have one form when written.
        assert_eq!(back.state.to_json(), b.state.to_json());
        if b.config.values().all(exact) {
            assert_eq!(backup_json::encode(&back), out);
        }
    }
    if let Ok(b) = config_backup::decode(data) {
        configuration(b);
    }
    if let Ok((config, state)) = archive_v2::consumer(data) {
        let mut out = Vec::new();
        archive_v2::put_consumer(&mut out, 1, "C", &config, &state);
        let (header, used) = archive_v2::header(&out, 0).unwrap();
        assert_eq!(
            (used as u64 + header.name + header.payload) as usize,
            out.len()
        );
        let body = &out[used + header.name as usize..];
        if config.values().all(exact) {
            assert_eq!(archive_v2::consumer(body), Ok((config, state)));
        }
    }
    for name in ["Nats-TTL", "Nats-Schedule", "Nats-Stream-Source"] {
        let value = headers::get(data, name.as_bytes()).unwrap_or(data);
        let _ = (headers::ttl(value), headers::stream_source(value));
    }
    if let Ok(value) = serde_json::from_slice::<Value>(data) {
        let text = meta::go_json(&value);
        let back: Value = serde_json::from_slice(&text).expect("JSON again");
        if exact(&value) {
            assert_eq!(back, value);
        }
        if let Value::Object(map) = &value {
            for configuration in [
                Configuration::stream(map),
                Configuration::consumer("S", "C", map),
            ] {
                let time = time::rfc3339(data.len() as i64);
                self::configuration(ConfigBackup {
                    time,
                    configuration,
                });
            }
        }
        if let Ok(state) = ConsumerState::from_json(&value) {
            assert_eq!(ConsumerState::from_json(&state.to_json()).unwrap(), state);
        }
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(ns) = time::parse_rfc3339(text)
    {
        assert_eq!(time::parse_rfc3339(&time::rfc3339(ns)), Some(ns));
    }
    if let Some(head) = data.first_chunk::<8>() {
        let ns = i64::from_le_bytes(*head);
        assert_eq!(time::parse_rfc3339(&time::rfc3339(ns)), Some(ns));
    }
});
