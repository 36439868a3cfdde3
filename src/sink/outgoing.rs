//! A stream as it is to be written: name, configuration and consumers, made fit for the servers that
//! will read it.

use crate::format::meta::{self, MetaInf};
use crate::format::o_dat::ConsumerState;
use crate::state::StreamState;
use crate::stream::Stream;
use serde_json::{Map, Value};
use std::borrow::Cow;

/// A consumer to be written.
#[derive(Debug, Clone)]
pub struct OutConsumer<'a> {
    /// Name: its directory.
    pub name: String,
    /// Configuration.
    pub meta: Cow<'a, MetaInf>,
    /// Delivered, ack floor, pending, redelivered; `None` for one that has none yet.
    pub state: Option<Cow<'a, ConsumerState>>,
}

/// A stream to be written.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Where the messages come from.
    pub stream: &'a Stream,
    /// Which of them are live.
    pub state: &'a StreamState,
    /// Its name from now on.
    pub name: String,
    /// Its configuration.
    pub meta: MetaInf,
    /// Its consumers.
    pub consumers: Vec<OutConsumer<'a>>,
    /// What was left out of the configurations because servers refuse it, for a message to the user.
    pub dropped: Vec<String>,
}

/// A name that can be one directory.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\', '\0'])
}

/// Removes `a` or `a.b.c` wherever it occurs.
fn remove(config: &mut Map<String, Value>, path: &str) {
    let Some((parents, last)) = path.rsplit_once('.') else {
        config.shift_remove(path);
        return;
    };
    let mut steps = parents.split('.');
    let mut at: Vec<&mut Value> = match steps.next().and_then(|key| config.get_mut(key)) {
        Some(value) => vec![value],
        None => return,
    };
    // Each step leads through objects, and through lists of them.
    loop {
        at = at
            .into_iter()
            .flat_map(|v| match v {
                Value::Array(items) => items.iter_mut().collect(),
                other => vec![other],
            })
            .collect();
        let Some(key) = steps.next() else { break };
        at = at.into_iter().filter_map(|v| v.get_mut(key)).collect();
    }
    for value in at {
        if let Value::Object(map) = value {
            map.shift_remove(last);
        }
    }
}

/// Leaves out what servers refuse, and names it.
pub fn sanitise(meta: &mut MetaInf, whose: &str, dropped: &mut Vec<String>) {
    let mut keys = meta::unknown_keys(meta);
    if meta.template_owner().is_some() {
        keys.push("template_owner".into());
    } else {
        remove(&mut meta.config, "template_owner");
    }
    for key in keys {
        remove(&mut meta.config, &key);
        dropped.push(format!("{whose}: {key}"));
    }
}

fn set(meta: &mut MetaInf, key: &str, value: Value) {
    let key = meta
        .config
        .keys()
        .find(|k| k.eq_ignore_ascii_case(key))
        .cloned()
        .unwrap_or_else(|| key.to_owned());
    meta.config.insert(key, value);
}

impl<'a> Outgoing<'a> {
    /// A stream as it is. `None` without a configuration.
    pub fn new(stream: &'a Stream, state: &'a StreamState) -> Option<Self> {
        let mut meta = stream.meta.clone()?;
        // NATSARC1 archives do not hold times of creation.
        let now = || crate::time::rfc3339(crate::time::now());
        meta.created.get_or_insert_with(now);
        let mut dropped = Vec::new();
        sanitise(&mut meta, &format!("stream {}", stream.name), &mut dropped);
        let consumers = stream
            .consumers
            .iter()
            .filter_map(|c| {
                let mut meta = Cow::Borrowed(c.meta.as_ref()?);
                if meta.created.is_none() {
                    meta.to_mut().created = Some(now());
                }
                if !meta::unknown_keys(&meta).is_empty() || meta.get("template_owner").is_some() {
                    let whose = format!("consumer {}", c.name);
                    sanitise(meta.to_mut(), &whose, &mut dropped);
                }
                Some(OutConsumer {
                    name: c.name.clone(),
                    meta,
                    state: c.state.as_ref().map(Cow::Borrowed),
                })
            })
            .collect();
        let name = meta.name.clone().unwrap_or_else(|| stream.name.clone());
        Some(Self {
            stream,
            state,
            name,
            meta,
            consumers,
            dropped,
        })
    }

    /// A consumer that cannot be written: its name is no file's, or another has it.
    pub fn bad_consumer(&self) -> Option<&str> {
        let mut names = std::collections::BTreeSet::new();
        let mut all = self.consumers.iter().map(|c| c.name.as_str());
        all.find(|name| !is_plain_name(name) || !names.insert(*name))
    }

    /// Gives it another name.
    pub fn rename(&mut self, name: &str) {
        set(&mut self.meta, "name", name.into());
        name.clone_into(&mut self.name);
        self.meta.name = Some(name.to_owned());
    }

    /// Gives it another configuration; name and time of creation stay.
    pub fn reconfigure(&mut self, config: Map<String, Value>) {
        let mut meta = MetaInf::new_stream(config, self.meta.created.clone());
        sanitise(
            &mut meta,
            &format!("stream {}", self.name),
            &mut self.dropped,
        );
        self.meta = meta;
        let name = self.name.clone();
        self.rename(&name);
    }

    /// Gives it and its consumers another number of replicas.
    pub fn set_replicas(&mut self, replicas: i64) {
        set(&mut self.meta, "num_replicas", replicas.into());
        for c in &mut self.consumers {
            if c.meta.num_replicas() > replicas {
                set(c.meta.to_mut(), "num_replicas", replicas.into());
            }
        }
    }

    /// Makes the consumers' states fit a stream that has lost its end: none is ahead of its last sequence.
    pub fn fit_consumers(&mut self) {
        for c in &mut self.consumers {
            if let Some(state) = &mut c.state {
                crate::format::archive_v2::clip(state.to_mut(), self.state.last_seq);
            }
        }
    }

    /// `meta.inf` of the stream and its `meta.sum`, in plaintext.
    pub fn stream_meta(&self) -> (Vec<u8>, String) {
        let inf = meta::encode_stream(&self.meta);
        let sum = meta::sum(&self.name, &inf);
        (inf, sum)
    }

    /// `meta.inf` of a consumer and its `meta.sum`, in plaintext.
    pub fn consumer_meta(&self, c: &OutConsumer<'_>) -> (Vec<u8>, String) {
        let inf = meta::encode_consumer(&c.meta);
        let sum = meta::sum(&self.consumer_key(c), &inf);
        (inf, sum)
    }

    /// The name that keys a consumer's `meta.sum`.
    pub fn consumer_key(&self, c: &OutConsumer<'_>) -> String {
        format!("{}/{}", self.name, c.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_servers_refuse_is_left_out_and_named() {
        let config = json!({
            "name": "S", "template_owner": "T", "odd": 1, "num_replicas": 3,
            "sources": [{"name": "A", "nmae": 1}, {"name": "B", "subject_transforms": [{"src": "a", "x": 1}]}],
        });
        let Value::Object(config) = config else {
            panic!()
        };
        let mut meta = MetaInf::new_stream(config, None);
        let mut dropped = Vec::new();
        sanitise(&mut meta, "stream S", &mut dropped);
        assert_eq!(
            dropped,
            [
                "stream S: odd",
                "stream S: sources.nmae",
                "stream S: sources.subject_transforms.x",
                "stream S: template_owner"
            ]
        );
        assert_eq!(
            Value::Object(meta.config),
            json!({
                "name": "S", "num_replicas": 3,
                "sources": [{"name": "A"}, {"name": "B", "subject_transforms": [{"src": "a"}]}],
            })
        );
    }
}
