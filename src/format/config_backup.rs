//! The old `nats backup DIR` (2020 to 2022): one file for each configuration, no messages.
//!
//! | file | `type` | configuration |
//! |---|---|---|
//! | `stream_S.json` | `stream` | the stream's configuration |
//! | `stream_S_consumer_C.json` | `consumer` | `{"name":C,"stream":S,"config":…}`; durable consumers only |
//! | `stream_template_T.json` | `stream_template` | `{"name":T,"config":…,"max_streams":N}`; until 2022 |
//!
//! Each is an object in this order, indented by two spaces, no newline at the end:
//!
//! | key | value |
//! |---|---|
//! | `type` | as above |
//! | `time` | when it was made, RFC 3339, UTC, whole seconds |
//! | `configuration` | base64 (standard, padded) of the configuration's JSON, indented likewise |
//! | `checksum` | SHA-256 of that JSON's bytes, lowercase hex |
//!
//! Facts and traps:
//! * The CLI restores nothing from a directory in which any `*.json` has a wrong sum, so a
//!   `backup.json` in it, which it put there itself if asked for data, stops it.
//! * Streams are restored first, then templates and consumers. A stream with `template_owner` is not.
//! * The CLI's versions have other fields: a file is written again as it was read. New ones have the
//!   form of [`cli_json`](super::cli_json).
//!
//! From `backup.go` of jsm.go 0.0.17 to 0.0.35, and files made with its types.

use super::bytes::{Fault, FaultKind};
use super::cli_json::{indented, old_consumer_config, old_stream_config};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// Ceiling for the file.
pub const MAX_LEN: u64 = 32 << 20;

/// One file.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigBackup {
    /// When it was made, RFC 3339.
    pub time: String,
    /// What is in it.
    pub configuration: Configuration,
}

/// A configuration.
#[derive(Debug, Clone, PartialEq)]
pub enum Configuration {
    /// A stream's.
    Stream(Map<String, Value>),
    /// `name`, `stream`, `config` of a consumer.
    Consumer(Map<String, Value>),
    /// `name`, `config`, `max_streams` of a template.
    Template(Map<String, Value>),
}

impl Configuration {
    /// A stream's, in the CLI's form.
    pub fn stream(config: &Map<String, Value>) -> Self {
        Self::Stream(old_stream_config(config))
    }

    /// A consumer's, in the CLI's form.
    pub fn consumer(stream: &str, name: &str, config: &Map<String, Value>) -> Self {
        let fields = [
            ("name".to_owned(), name.into()),
            ("stream".to_owned(), stream.into()),
            ("config".to_owned(), old_consumer_config(config).into()),
        ];
        Self::Consumer(fields.into_iter().collect())
    }

    fn parts(&self) -> (&'static str, &Map<String, Value>) {
        match self {
            Self::Stream(map) => ("stream", map),
            Self::Consumer(map) => ("consumer", map),
            Self::Template(map) => ("stream_template", map),
        }
    }

    fn text(&self, key: &str) -> &str {
        let value = self.parts().1.get(key);
        value.and_then(Value::as_str).unwrap_or_default()
    }

    /// The name of the stream, consumer or template.
    pub fn name(&self) -> &str {
        self.text("name")
    }

    /// The name of its file; names come from input and may not be fit for one.
    pub fn file_name(&self) -> String {
        let name = self.name();
        match self {
            Self::Stream(_) => format!("stream_{name}.json"),
            Self::Consumer(_) => format!("stream_{}_consumer_{name}.json", self.text("stream")),
            Self::Template(_) => format!("stream_template_{name}.json"),
        }
    }
}

fn sum(json: &[u8]) -> String {
    let sum = Sha256::digest(json);
    sum.iter().map(|b| format!("{b:02x}")).collect()
}

/// Decodes a file; its sum must be right.
pub fn decode(text: &[u8]) -> Result<ConfigBackup, Fault> {
    let invalid = |what| Fault::new(0, FaultKind::Invalid(what));
    if text.len() as u64 > MAX_LEN {
        let kind = FaultKind::TooLarge {
            what: "configuration backup",
            value: text.len() as u64,
            ceiling: MAX_LEN,
        };
        return Err(Fault::new(0, kind));
    }
    #[derive(Deserialize)]
    struct File {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        time: String,
        configuration: String,
        checksum: String,
    }
    let file: File =
        serde_json::from_slice(text).map_err(|_| invalid("configuration backup (not one)"))?;
    let json = BASE64_STANDARD
        .decode(&file.configuration)
        .map_err(|_| invalid("configuration backup (base64)"))?;
    if sum(&json) != file.checksum {
        let what = "configuration backup";
        return Err(Fault::new(0, FaultKind::Checksum { what }));
    }
    let map: Map<String, Value> = serde_json::from_slice(&json)
        .map_err(|_| invalid("configuration backup (configuration is no JSON object)"))?;
    let configuration = match file.kind.as_str() {
        "stream" => Configuration::Stream(map),
        "consumer" => Configuration::Consumer(map),
        "stream_template" => Configuration::Template(map),
        _ => return Err(invalid("configuration backup (unknown type)")),
    };
    Ok(ConfigBackup {
        time: file.time,
        configuration,
    })
}

/// The file's bytes.
pub fn encode(backup: &ConfigBackup) -> Vec<u8> {
    let (kind, map) = backup.configuration.parts();
    let json = indented(&Value::Object(map.clone()));
    indented(&json!({
        "type": kind,
        "time": backup.time,
        "configuration": BASE64_STANDARD.encode(&json),
        "checksum": sum(&json),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::vector;

    #[test]
    fn files_are_those_of_the_cli() {
        // Configurations of streams and consumers that 2.2.6 and 2.9.25 gave, some with every field,
        // and the files that jsm.go 0.0.35 makes of them.
        let packed = include_bytes!("../../fixtures/vectors/archive/cli-config-backup.jsonl.gz");
        let mut kinds = [0; 2];
        for case in vector(packed) {
            let config = case["config"].as_object().unwrap();
            let text = |key: &str| case[key].as_str().unwrap();
            let file = text("file").as_bytes();
            let back = decode(file).unwrap();
            assert_eq!(String::from_utf8(encode(&back)).unwrap(), text("file"));
            let (configuration, name) = if text("kind") == "stream" {
                kinds[0] += 1;
                let name = format!("stream_{}.json", config["name"].as_str().unwrap());
                (Configuration::stream(config), name)
            } else {
                kinds[1] += 1;
                let name = format!("stream_{}_consumer_{}.json", text("stream"), text("name"));
                (
                    Configuration::consumer(text("stream"), text("name"), config),
                    name,
                )
            };
            assert_eq!(configuration.file_name(), name);
            let time = "2022-06-01T10:20:30Z".to_owned();
            let made = ConfigBackup {
                time,
                configuration,
            };
            assert_eq!(String::from_utf8(encode(&made)).unwrap(), text("file"));
        }
        assert_eq!(kinds, [25, 10]);
    }

    #[test]
    fn what_is_newer_is_kept_if_it_is_set() {
        let config = json!({"name":"A","compression":"s2","consumer_limits":{"max_ack_pending":1},
            "template_owner":"T","allow_msg_ttl":false,"metadata":{"b":"","a":""}});
        let Configuration::Stream(map) = Configuration::stream(config.as_object().unwrap()) else {
            panic!();
        };
        assert_eq!(map["consumer_limits"], json!({"max_ack_pending":1}));
        assert_eq!(
            (map["compression"].as_str(), map["template_owner"].as_str()),
            (Some("s2"), Some("T"))
        );
        assert!(map["metadata"].as_object().unwrap().keys().eq(["a", "b"]));
        assert!(!map.contains_key("allow_msg_ttl"));
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let made = ConfigBackup {
            time: "2021-01-01T00:00:00Z".to_owned(),
            configuration: Configuration::Template(Map::from_iter([(
                "name".to_owned(),
                "T".into(),
            )])),
        };
        let file = String::from_utf8(encode(&made)).unwrap();
        assert_eq!(decode(file.as_bytes()).unwrap(), made);
        assert_eq!(made.configuration.file_name(), "stream_template_T.json");
        let kind = |text: &str| decode(text.as_bytes()).unwrap_err().kind;
        let sum = FaultKind::Checksum {
            what: "configuration backup",
        };
        assert_eq!(kind(&file.replace("ewogICJ", "ewogICK")), sum);
        assert_eq!(
            kind(&file.replacen("\"checksum\": \"", "\"checksum\": \"A", 1)),
            sum
        );
        for bad in [
            "",
            "{}",
            "[]",
            // backup.json, which the CLI left in the same directory.
            r#"{"config":{"name":"A"},"state":{}}"#,
            &file.replace("stream_template", "secret"),
            &file.replace("ewogICJ", "ewogIC"),
        ] {
            assert!(matches!(kind(bad), FaultKind::Invalid(_)), "{bad}");
        }
        let long = vec![b' '; 1 + MAX_LEN as usize];
        assert!(matches!(
            decode(&long).unwrap_err().kind,
            FaultKind::TooLarge { .. }
        ));
    }
}
