//! A consumer's directory: `meta.inf`, `meta.sum`, `meta.key`, `o.dat`.

use super::{CONSUMER_FILE, META_FILE, SMALL_FILE, Stream, read_optional};
use crate::finding::{Code, Finding, Severity};
use crate::format::crypt::{self, SealKey};
use crate::format::meta::{self, MetaInf};
use crate::format::o_dat::{self, ConsumerState};
use crate::source::archive::V2Consumer;
use crate::source::tree::Tree;
use serde_json::{Map, Value};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// A consumer, opened.
#[derive(Debug, Clone)]
pub struct Consumer {
    /// Name: the directory's.
    pub name: String,
    /// Its directory in the stream's tree; empty in a NATSARC1 archive.
    pub dir: PathBuf,
    /// `meta.inf`.
    pub meta: Option<MetaInf>,
    /// `o.dat`; `None` when missing, empty or unreadable.
    pub state: Option<ConsumerState>,
    /// The state could not be read because of damage (as opposed to: there is none).
    pub state_damaged: bool,
    /// It is encrypted, and its key file does not open.
    pub(super) locked: bool,
}

impl Consumer {
    pub(super) fn from_entry(entry: &V2Consumer) -> Self {
        Self {
            state: Some(entry.state.clone()),
            ..Self::configured(&entry.name, &entry.config)
        }
    }

    pub(super) fn configured(name: &str, config: &Map<String, Value>) -> Self {
        Self {
            name: name.to_owned(),
            dir: PathBuf::new(),
            meta: Some(MetaInf::new_consumer(config.clone(), None, name)),
            state: None,
            state_damaged: false,
            locked: false,
        }
    }
}

impl Stream {
    /// A consumer, and what is wrong with it.
    pub(super) fn open_consumer(
        &self,
        tree: &dyn Tree,
        dir: &Path,
        name: &OsStr,
    ) -> (Option<Consumer>, Vec<Finding>) {
        let name = name.to_string_lossy().into_owned();
        let mut findings = Vec::new();
        let mut consumer = Consumer {
            name: name.clone(),
            dir: dir.to_owned(),
            meta: None,
            state: None,
            state_damaged: false,
            locked: false,
        };
        let seal = self.consumer_key(tree, &mut consumer, &mut findings);
        self.consumer_meta(tree, &mut consumer, seal.as_ref(), &mut findings);
        self.consumer_state(tree, &mut consumer, seal.as_ref(), &mut findings);
        let findings = findings.into_iter().map(|f| f.consumer(&name)).collect();
        (Some(consumer), findings)
    }

    /// `Ok(None)`: not encrypted. `Err`: encrypted, and it does not open.
    fn consumer_key(
        &self,
        tree: &dyn Tree,
        consumer: &mut Consumer,
        findings: &mut Vec<Finding>,
    ) -> Result<Option<SealKey>, ()> {
        let path = consumer.dir.join("meta.key");
        match read_optional(tree, &path, SMALL_FILE) {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => {
                let context = crypt::Context::Consumer {
                    account: self.account.as_bytes(),
                    stream: self.name.as_bytes(),
                    consumer: consumer.name.as_bytes(),
                };
                crypt::open_key_file(&bytes, &self.keys, &context)
                    .map(Some)
                    .map_err(|e| {
                        consumer.locked = true;
                        findings.push(self.key_finding(&e).file(self.place(&path)));
                    })
            }
            Err(f) => {
                findings.push(f.file(self.place(&path)));
                Err(())
            }
        }
    }

    fn consumer_meta(
        &self,
        tree: &dyn Tree,
        consumer: &mut Consumer,
        seal: Result<&Option<SealKey>, &()>,
        findings: &mut Vec<Finding>,
    ) {
        let path = consumer.dir.join("meta.inf");
        let place = self.place(&path);
        let raw = match read_optional(tree, &path, META_FILE) {
            Ok(Some(raw)) => raw,
            Ok(None) => {
                findings.push(Finding::new(Code::ConsumerMeta, "no meta.inf").file(place));
                return;
            }
            Err(f) => {
                findings.push(f.file(place));
                return;
            }
        };
        let sum_path = consumer.dir.join("meta.sum");
        let sum_place = self.place(&sum_path);
        match read_optional(tree, &sum_path, SMALL_FILE) {
            Ok(Some(sum)) => {
                let key = format!("{}/{}", self.name, consumer.name);
                if let Err(e) = meta::check_sum(key.as_bytes(), &raw, &sum) {
                    findings.push(Finding::new(Code::ConsumerSum, e.to_string()).file(sum_place));
                }
            }
            Ok(None) => findings.push(
                Finding::new(
                    Code::ConsumerMeta,
                    "no meta.sum: servers skip this consumer at start",
                )
                .file(sum_place),
            ),
            Err(f) => findings.push(f.file(sum_place)),
        }
        let Ok(seal) = seal else { return };
        let plain = match seal {
            Some(seal) => match seal.open(&raw) {
                Ok(plain) => plain,
                Err(_) if raw.starts_with(b"{") => {
                    findings.push(
                        Finding::new(Code::Plaintext, "meta.inf is plaintext beside a meta.key")
                            .action(super::AS_CIPHERTEXT)
                            .file(place.clone()),
                    );
                    raw
                }
                Err(fault) => {
                    findings.push(
                        Finding::new(Code::ConsumerMeta, fault.kind.to_string())
                            .file(place)
                            .offset(fault.offset),
                    );
                    return;
                }
            },
            None => raw,
        };
        match meta::decode_consumer(&plain) {
            Ok(found) => consumer.meta = Some(found),
            Err(fault) => findings.push(
                Finding::new(Code::ConsumerMeta, fault.kind.to_string())
                    .file(place)
                    .offset(fault.offset),
            ),
        }
    }

    fn consumer_state(
        &self,
        tree: &dyn Tree,
        consumer: &mut Consumer,
        seal: Result<&Option<SealKey>, &()>,
        findings: &mut Vec<Finding>,
    ) {
        let path = consumer.dir.join("o.dat");
        let place = self.place(&path);
        let raw = match read_optional(tree, &path, CONSUMER_FILE) {
            // None yet, or nothing in it: a consumer that never delivered.
            Ok(None) => return,
            Ok(Some(raw)) if raw.is_empty() => return,
            Ok(Some(raw)) => raw,
            Err(f) => {
                consumer.state_damaged = true;
                findings.push(f.file(place));
                return;
            }
        };
        let Ok(seal) = seal else {
            consumer.state_damaged = true;
            return;
        };
        let plain = match seal {
            Some(seal) => match seal.open(&raw) {
                Ok(plain) => plain,
                Err(_) if raw.first() == Some(&o_dat::MAGIC) => raw,
                Err(fault) => {
                    consumer.state_damaged = true;
                    findings.push(
                        Finding::new(Code::ConsumerState, fault.kind.to_string())
                            .file(place)
                            .offset(fault.offset),
                    );
                    return;
                }
            },
            None => raw,
        };
        match o_dat::decode(&plain, 0) {
            Ok((state, used)) => {
                for problem in o_dat::validate(&state) {
                    findings.push(
                        Finding::new(Code::ConsumerAhead, problem.to_string()).file(place.clone()),
                    );
                }
                if used < plain.len() {
                    findings.push(
                        Finding::new(Code::ConsumerState, format!("{} bytes after the state", plain.len() - used))
                            .severity(Severity::Note)
                            .action("left by servers up to 2.3.0, which did not shorten the file; every server ignores them")
                            .file(place)
                            .offset(used as u64),
                    );
                }
                consumer.state = Some(state);
            }
            Err(fault) => {
                consumer.state_damaged = true;
                findings.push(
                    Finding::new(Code::ConsumerState, fault.kind.to_string())
                        .file(place)
                        .offset(fault.offset),
                );
            }
        }
    }
}
