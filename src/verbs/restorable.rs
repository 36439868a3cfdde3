//! What a restore of an archive runs into: the part of `jetsam check` that looks at a backup as servers will.
//!
//! An archive that is whole is not yet one that every server takes. Where the server that made it takes it back, or
//! the likes of it, what another needs is a note; where it takes a changed configuration or another tool, a warning;
//! an error only where no server takes it. Each limit was tried with the servers that are named.

use super::render;
use crate::finding::{Code, Finding, Severity};
use crate::format::backup_json::BackupJson;
use crate::format::meta::{self, MetaInf};
use crate::format::{cli_json, o_dat};
use crate::source::text;
use crate::state::StreamState;
use crate::state::subjects::collide;
use crate::stream::meanwhile::{Missing, Removes, judge, removes};
use crate::stream::{Consumer, Stream};
use serde_json::{Map, Value};
use std::path::Path;

/// What was found in the archive.
pub(super) struct Contents<'a> {
    /// The state that its messages come to.
    pub(super) state: &'a StreamState,
    /// The largest message of a NATSARC1 archive: sequence, bytes.
    pub(super) largest: (u64, u64),
    /// A record does not prove itself.
    pub(super) damaged: bool,
}

/// The default limit for a message, with its headers.
const MAX_PAYLOAD: u64 = 1 << 20;
/// No server stores a longer record.
const MAX_RECORD: u64 = 32 << 20;
/// How many consumers 2.15 restores into a stream without a limit.
const MAX_CONSUMERS: usize = 1000;
/// The releases that brought API levels 1 to 5.
const LEVELS: [&str; 5] = ["2.11.0", "2.12.0", "2.12.5", "2.14.0", "2.15.0"];
/// More replicas no server allows.
const MAX_REPLICAS: i64 = 5;
const MAX_NAME: usize = 255;
/// Filters of a work queue that are compared with one another, which takes the square of it.
const MAX_FILTERS: usize = 1000;

/// Says what a restore of the archive runs into.
pub(super) fn check(
    stream: &Stream,
    backup: Option<&BackupJson>,
    contents: &Contents<'_>,
    out: &mut Vec<Finding>,
) {
    let json = text(&stream.path.with_file_name("backup.json"));
    if let Some(backup) = backup {
        // An archive that cannot be read to its end was reported, and holds fewer for that reason.
        claims(stream, backup, contents.state, &json, out);
        configs(stream, backup, &json, out);
    }
    let configured = backup.map(|b| MetaInf::new_stream(b.config.clone(), None));
    let archive = text(&stream.path);
    let mut found = Vec::new();
    if let Some(meta) = configured.as_ref().or(stream.meta.as_ref()) {
        name(stream, meta, &mut found);
        replicas(stream, meta, &mut found);
        consumers(stream, meta, &mut found);
        limits(meta, contents, &mut found);
        storage(stream, meta, &mut found);
        levels(stream, meta, &mut found);
        entries(stream, Some(meta), contents, &mut found);
        cluster(stream, meta, contents.state, &mut found);
    } else {
        entries(stream, None, contents, &mut found);
    }
    blocks(stream, contents, &mut found);
    let placed = |f: Finding| {
        if f.file.is_none() {
            f.file(&*archive)
        } else {
            f
        }
    };
    out.extend(found.into_iter().map(placed));
}

/// Live messages with sequences up to `last`.
fn live_up_to(state: &StreamState, last: u64) -> u64 {
    let after = |seq| -> u64 { state.blocks.iter().map(|b| b.live_from(seq)).sum() };
    after(0).saturating_sub(after(last.saturating_add(1)))
}

/// What `backup.json` says of the state.
///
/// That is the state when the backup began. Every message of that time which is still there when the server comes to
/// it is in the archive, so the archive never ends before that state; a tar also has what was stored while it was
/// made. Fewer of the old messages are loss, unless limits or acknowledgements may have removed them meanwhile.
fn claims(
    stream: &Stream,
    backup: &BackupJson,
    state: &StreamState,
    json: &str,
    out: &mut Vec<Finding>,
) {
    let claimed = &backup.state;
    let mut add = |code, severity: Option<Severity>, detail: String| {
        let f = Finding::new(code, detail).file(json);
        out.push(match severity {
            Some(severity) => f.severity(severity),
            None => f,
        });
    };
    let there = stream.consumers.len() as u64;
    let said = u64::try_from(claimed.consumer_count).unwrap_or(0);
    if there != said {
        let why = match (stream.entries(), there < said) {
            (_, false) => "some were made while the backup was",
            (None, true) => "it was made without them, or they are kept in memory",
            (Some(_), true) => "it was made without them, or they went while it was made",
        };
        add(
            Code::BackupConsumers,
            None,
            format!("backup.json says {said} consumers, the archive holds {there}: {why}"),
        );
    }
    if let Some(v2) = stream.entries() {
        // Both are of one moment. What is there was compared with the archive's own.
        let own = v2.state();
        let same = (own.messages, own.first_seq, own.last_seq)
            == (claimed.messages, claimed.first_seq, claimed.last_seq);
        if !same {
            // A server that gave up at once says nothing of its state.
            let severity = (claimed.last_seq <= own.last_seq).then_some(Severity::Warning);
            add(
                Code::BackupJson,
                severity,
                format!(
                    "backup.json says {} messages, {} to {}, state.json in the archive {}, {} to {}: they are not of one backup",
                    claimed.messages,
                    claimed.first_seq,
                    claimed.last_seq,
                    own.messages,
                    own.first_seq,
                    own.last_seq
                ),
            );
        }
        return;
    }
    if claimed.last_seq > state.last_seq {
        return add(
            Code::BackupJson,
            None,
            format!(
                "backup.json says that the stream ends at sequence {}, the archive at {}",
                claimed.last_seq, state.last_seq
            ),
        );
    }
    let held = live_up_to(state, claimed.last_seq);
    let more = state.msgs.saturating_sub(held);
    if more > 0 {
        add(
            Code::BackupMeanwhile,
            None,
            format!(
                "{} after the stored state of the stream",
                render::number_of(more, "message")
            ),
        );
    }
    let meta = MetaInf::new_stream(backup.config.clone(), None);
    let removes = removes(&meta, claimed.messages, claimed.bytes);
    if held > claimed.messages {
        // The record of a removal is in a later block, which may be gone before it is read: servers bring such a
        // message back in a restore, where it was acknowledged before.
        let (code, severity) = match removes {
            Removes::Nothing => (Code::BackupJson, Some(Severity::Warning)),
            Removes::Oldest | Removes::Any => (Code::BackupMeanwhile, None),
        };
        add(
            code,
            severity,
            format!(
                "backup.json says {} messages up to sequence {}, the archive holds {held}",
                claimed.messages, claimed.last_seq
            ),
        );
    } else if held < claimed.messages {
        let missing = claimed.messages.saturating_sub(held);
        let first = if held > 0 {
            state.first_seq
        } else {
            claimed.last_seq.saturating_add(1)
        };
        let front = first.saturating_sub(claimed.first_seq);
        let code = match judge(removes, missing, front) {
            Missing::Lost => Code::BackupJson,
            // A tar has the server's own blocks, in which damage shows by itself.
            Missing::Trimmed | Missing::Removed => Code::BackupMeanwhile,
        };
        add(
            code,
            None,
            format!(
                "backup.json says {} messages up to sequence {}, the archive holds {held} of them",
                claimed.messages, claimed.last_seq
            ),
        );
    }
}

/// A configuration for comparison: as the CLI writes it, the API's own keys left out.
fn comparable(config: &Map<String, Value>) -> Map<String, Value> {
    let mut config = cli_json::stream_config(config);
    let unlimited = [
        "max_consumers",
        "max_msgs",
        "max_bytes",
        "max_msg_size",
        "max_msgs_per_subject",
    ];
    for key in unlimited {
        // Servers take 0 for -1.
        if config
            .get(key)
            .and_then(Value::as_i64)
            .is_none_or(|n| n <= 0)
        {
            config.shift_remove(key);
        }
    }
    let of_the_server = |key: &str, value: &Value| {
        matches!(key, "_nats.ver" | "_nats.level") || (key == "_nats.req.level" && value == "0")
    };
    let mut empty = false;
    if let Some(Value::Object(metadata)) = config.get_mut("metadata") {
        metadata.retain(|key, value| !of_the_server(key, value));
        empty = metadata.is_empty();
    }
    if empty {
        config.shift_remove("metadata");
    }
    // A standalone server's 0 is 1.
    if config.get("num_replicas").and_then(Value::as_i64) == Some(0) {
        config.insert("num_replicas".to_owned(), 1.into());
    }
    config
}

/// `backup.json` against `meta.inf`. NATSARC1 has no configuration of its own.
fn configs(stream: &Stream, backup: &BackupJson, json: &str, out: &mut Vec<Finding>) {
    let meta = MetaInf::new_stream(backup.config.clone(), None);
    let unknown = meta::unknown_keys(&meta);
    if !unknown.is_empty() {
        out.push(
            Finding::new(
                Code::ConfigUnknownKey,
                format!("servers since 2.12 refuse it: unknown {}", listed(&unknown)),
            )
            .severity(Severity::Note)
            .action("the nats CLI and jetsam leave it out of what they restore")
            .file(json),
        );
    }
    let (None, Some(inside)) = (stream.entries(), &stream.meta) else {
        return;
    };
    if let (Some(a), Some(b)) = (backup.name(), inside.name.as_deref())
        && a != b
    {
        out.push(
            Finding::new(
                Code::BackupJson,
                format!("backup.json is of stream {a:?}, the archive of {b:?}: servers refuse it"),
            )
            .file(json),
        );
    }
    let (ours, theirs) = (comparable(&backup.config), comparable(&inside.config));
    let keys = ours
        .keys()
        .chain(theirs.keys().filter(|k| !ours.contains_key(*k)));
    let mut different = Vec::new();
    for key in keys.filter(|k| *k != "name") {
        let (a, b) = (ours.get(key), theirs.get(key));
        if a != b {
            let shown = |v: Option<&Value>| v.map_or_else(|| "none".to_owned(), Value::to_string);
            different.push(format!("{key} {} instead of {}", shown(a), shown(b)));
        }
    }
    if !different.is_empty() {
        out.push(
            Finding::new(
                Code::BackupConfig,
                format!("not the archive's meta.inf: {}", listed(&different)),
            )
            .file(json),
        );
    }
}

/// A few of them, and how many more.
fn listed(all: &[String]) -> String {
    const SHOWN: usize = 10;
    let some = all.get(..SHOWN).unwrap_or(all).join(", ");
    match all.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{some} and {more} more"),
        _ => some,
    }
}

fn name(stream: &Stream, meta: &MetaInf, out: &mut Vec<Finding>) {
    let name = meta.name.as_deref().unwrap_or(&stream.name);
    if name.is_empty()
        || name.len() > MAX_NAME
        || name.contains([' ', '\t', '\r', '\n', '\x0c', '.', '*', '>', '\0'])
    {
        out.push(Finding::new(
            Code::RestoreName,
            format!("no server takes {name:?} for a stream's name"),
        ));
    } else if name.contains(['/', '\\']) {
        out.push(
            Finding::new(
                Code::RestoreName,
                format!("servers since 2.12.8 and 2.14 refuse the name {name:?}, the nats CLI too"),
            )
            .severity(Severity::Warning),
        );
    }
}

fn replicas(stream: &Stream, meta: &MetaInf, out: &mut Vec<Finding>) {
    let replicas = meta.num_replicas();
    if !(0..=MAX_REPLICAS).contains(&replicas) {
        out.push(
            Finding::new(
                Code::RestoreReplicas,
                format!("{replicas} replicas: servers take up to {MAX_REPLICAS}"),
            )
            .severity(Severity::Warning),
        );
    } else if replicas > 1 {
        let finding = Finding::new(
            Code::RestoreReplicas,
            format!("{replicas} replicas: standalone servers refuse it"),
        );
        // The CLI changes the stream's number alone.
        let fixed: Vec<String> = stream
            .consumers
            .iter()
            .filter(|c| replicas_of(c) > 1)
            .map(|c| c.name.clone())
            .collect();
        out.push(if fixed.is_empty() {
            finding
        } else {
            finding.action(format!(
                "restore it into a cluster, or with `jetsam restore --replicas 1`; `nats stream restore --replicas 1` is refused because of the replicas of {}",
                listed(&fixed)
            ))
        });
    }
}

fn replicas_of(c: &Consumer) -> i64 {
    c.meta.as_ref().map_or(0, MetaInf::num_replicas)
}

/// Servers restore all consumers or nothing.
fn consumers(stream: &Stream, meta: &MetaInf, out: &mut Vec<Finding>) {
    let replicas = meta.num_replicas().max(1);
    let shared = meta.retention() != "limits";
    for c in &stream.consumers {
        let own = replicas_of(c);
        let why = if own > replicas {
            format!(
                "{own} replicas, the stream {replicas}: servers since 2.8.3 refuse the archive because of it"
            )
        } else if shared && own != 0 && own != replicas {
            format!(
                "{own} replicas, the stream {replicas}, which is not of retention limits: servers refuse the archive because of it"
            )
        } else {
            continue;
        };
        let finding = Finding::new(Code::RestoreConsumer, why).consumer(&c.name);
        out.push(if own > replicas {
            finding.action(format!(
                "restore it with `jetsam restore --replicas {replicas}`, which gives the consumer as many, or into a cluster with as many replicas for the stream"
            ))
        } else {
            finding
        });
    }
    // Servers do not count those that mirrors and sources use.
    let counted: Vec<(&Consumer, &MetaInf)> = stream
        .consumers
        .iter()
        .filter_map(|c| Some((c, c.meta.as_ref()?)))
        .filter(|(_, m)| !m.direct() && m.get("sourcing").and_then(Value::as_bool) != Some(true))
        .collect();
    let max = meta
        .get("max_consumers")
        .and_then(Value::as_i64)
        .unwrap_or(0);
    let count = counted.len();
    if max > 0 && count as u64 > max.unsigned_abs() {
        out.push(Finding::new(
            Code::RestoreConsumerCount,
            format!("{count} consumers, max_consumers is {max}: servers refuse the archive"),
        ));
    } else if count > MAX_CONSUMERS && max <= 0 {
        out.push(
            Finding::new(
                Code::RestoreConsumerCount,
                format!("{count} consumers: servers since 2.15 refuse more than {MAX_CONSUMERS} by default"),
            )
            .action("set the stream's max_consumers (in backup.json, or `nats stream restore --config`) or the server's default_max_consumers"),
        );
    }
    if meta.retention() == "workqueue" {
        work_queue(&counted, out);
    }
}

fn work_queue(consumers: &[(&Consumer, &MetaInf)], out: &mut Vec<Finding>) {
    let mut add = |c: &Consumer, why: &str| {
        let why = format!("servers refuse the archive because of it: {why}");
        out.push(Finding::new(Code::RestoreConsumer, why).consumer(&c.name));
    };
    let mut filters: Vec<(&str, usize)> = Vec::new();
    for (i, (c, m)) in consumers.iter().enumerate() {
        if !matches!(m.ack_policy(), "explicit" | "flow_control") {
            add(c, "a work queue's consumers acknowledge explicitly");
        }
        if m.deliver_policy() != "all" {
            add(c, "a work queue's consumers begin with the first message");
        }
        let own = m.filters();
        if own.is_empty() && consumers.len() > 1 {
            add(
                c,
                "it has no filter and is not the work queue's only consumer",
            );
        }
        filters.extend(own.into_iter().map(|f| (f, i)));
    }
    filters.truncate(MAX_FILTERS);
    for (n, (filter, i)) in filters.iter().enumerate() {
        let rest = filters.get(n.saturating_add(1)..).unwrap_or_default();
        let clash = rest
            .iter()
            .find(|(f, j)| i != j && collide(filter.as_bytes(), f.as_bytes()));
        if let Some((other, j)) = clash
            && let (Some((c, _)), Some((d, _))) = (consumers.get(*i), consumers.get(*j))
        {
            add(
                c,
                &format!(
                    "its filter {filter} overlaps {other} of {} in a work queue (servers up to 2.9.6 let it)",
                    d.name
                ),
            );
        }
    }
}

fn limits(meta: &MetaInf, contents: &Contents<'_>, out: &mut Vec<Finding>) {
    let state = contents.state;
    let mut add = |severity, detail: String| {
        out.push(Finding::new(Code::RestoreLimits, detail).severity(severity));
    };
    let over = |limit: i64, held: u64| u64::try_from(limit).is_ok_and(|l| l > 0 && held > l);
    if over(meta.max_msgs(), state.msgs) {
        add(
            Severity::Warning,
            format!(
                "max_msgs is {}, the archive holds {}: a restore removes the oldest",
                meta.max_msgs(),
                state.msgs
            ),
        );
    }
    if over(meta.max_bytes(), state.bytes) {
        add(
            Severity::Warning,
            format!(
                "max_bytes is {}, the archive holds {}: a restore removes the oldest",
                meta.max_bytes(),
                state.bytes
            ),
        );
    }
    let age = meta.max_age();
    if age > 0 && state.msgs > 0 {
        let now = crate::time::now();
        let expired = |ts: i64| ts.saturating_add(age) < now;
        let severity = match (expired(state.first_ts), expired(state.last_ts)) {
            (_, true) => Some((Severity::Warning, "all messages are")),
            (true, false) => Some((Severity::Note, "some messages are")),
            _ => None,
        };
        if let Some((severity, which)) = severity {
            add(
                severity,
                format!("{which} older than max_age by now: a restore removes them at once"),
            );
        }
    }
    if let Some(reserved) = u64::try_from(meta.max_bytes()).ok().filter(|n| *n > 0) {
        let detail = format!(
            "max_bytes reserves {}: servers and accounts without that room refuse it (since 2.10.27 and 2.11.1 with room for the archive besides)",
            render::bytes(reserved)
        );
        out.push(
            Finding::new(Code::RestoreLimits, detail)
                .severity(Severity::Note)
                .action("see that the account and the server have the room"),
        );
    }
}

fn storage(stream: &Stream, meta: &MetaInf, out: &mut Vec<Finding>) {
    if meta.storage() == "memory" {
        let why = if stream.entries().is_some() {
            "kept in memory: the nats CLI refuses it, 2.15 takes it by its API"
        } else {
            "kept in memory: the nats CLI refuses it, servers make an empty stream of it"
        };
        out.push(Finding::new(Code::RestoreStorage, why));
    }
}

fn levels(stream: &Stream, meta: &MetaInf, out: &mut Vec<Finding>) {
    let own = meta.required_api_level().map(|level| (level, None));
    let theirs = stream.consumers.iter().filter_map(|c| {
        let level = c.meta.as_ref()?.required_api_level()?;
        Some((level, Some(c.name.as_str())))
    });
    // The first of the highest.
    let highest = own
        .into_iter()
        .chain(theirs)
        .fold((0, None), |a, b| if b.0 > a.0 { b } else { a });
    let (level, consumer) = highest;
    let Some(before) = level.checked_sub(1) else {
        return;
    };
    let release = usize::try_from(before).ok().and_then(|i| LEVELS.get(i));
    let finding = match release {
        // Nothing of 2.11 refuses its own level, and what is older knows of none.
        Some(release) if level == 1 => Finding::new(
            Code::RestoreApiLevel,
            format!("needs {release} (API level 1): earlier servers restore it without what they do not know"),
        ),
        Some(release) => Finding::new(
            Code::RestoreApiLevel,
            format!(
                "needs {release} (API level {level}): earlier servers refuse it or take it offline at their next start, those before 2.11.9 restore it without what they do not know"
            ),
        ),
        None => Finding::new(
            Code::RestoreApiLevel,
            "needs an API level that no server up to 2.15.2 has: they restore it, and take it offline at their next start",
        )
        .severity(Severity::Warning)
        .action("take out _nats.req.level, if the server does not need it"),
    };
    out.push(match consumer {
        Some(name) => finding.consumer(name),
        None => finding,
    });
}

/// What only NATSARC1 has.
fn entries(
    stream: &Stream,
    meta: Option<&MetaInf>,
    contents: &Contents<'_>,
    out: &mut Vec<Finding>,
) {
    let Some(v2) = stream.entries() else {
        return;
    };
    out.push(Finding::new(
        Code::RestoreFormat,
        "a NATSARC1 archive: servers before 2.15 refuse it",
    ));
    let state = v2.state();
    let (first, last, messages) = (state.first_seq, state.last_seq, state.messages);
    let why = if state.consumer_count < 0 {
        Some("a negative number of consumers")
    } else if first == 0 {
        (last != 0 || messages != 0).then_some("messages without a first sequence")
    } else if first > last {
        (first.checked_sub(1) != Some(last) || messages != 0).then_some("it ends before it begins")
    } else {
        (messages > last.saturating_sub(first).saturating_add(1))
            .then_some("more messages than sequences")
    };
    if let Some(why) = why {
        out.push(Finding::new(
            Code::ArchiveDamaged,
            format!("state.json: {why}: servers refuse it"),
        ));
    }
    for c in &stream.consumers {
        let problems = c.state.as_ref().map(o_dat::validate).unwrap_or_default();
        if let Some(problem) = problems.first() {
            out.push(
                Finding::new(
                    Code::RestoreConsumer,
                    format!("{problem}: servers refuse the archive because of it, and leave what they restored"),
                )
                .consumer(&c.name),
            );
        }
    }
    let configured_first = meta.map_or(0, MetaInf::first_seq);
    if configured_first > first {
        out.push(
            Finding::new(
                Code::RestoreLimits,
                format!("first_seq is {configured_first}, the archive begins at {first}: 2.15 does not restore it"),
            )
            .action("take first_seq out of backup.json"),
        );
    }
    let (seq, len) = contents.largest;
    let max = meta.map_or(-1, MetaInf::max_msg_size);
    let allowed = u64::try_from(max).ok().filter(|n| *n > 0);
    let why = if len > MAX_RECORD {
        "no server stores it".to_owned()
    } else if let Some(max) = allowed.filter(|n| len > *n) {
        format!("max_msg_size is {max}: servers stop there, and leave what they restored")
    } else if len > MAX_PAYLOAD {
        format!(
            "servers with a lower max_payload (the default is {MAX_PAYLOAD}) stop there, and leave what they restored"
        )
    } else {
        return;
    };
    out.push(
        Finding::new(
            Code::RestoreSize,
            format!("a message of {len} bytes with its headers: {why}"),
        )
        .seq(seq),
    );
}

/// A cluster's server knows of its consumers only how far they are: what it writes has neither pending nor redelivered
/// messages, and where some are pending it goes back to the ack floor, so that what was acknowledged above it comes
/// again. Such a consumer looks like one with nothing pending; but in an archive in which none has, one that is not at
/// the end may have been set back. A stream with one replica does not tell that it was in a cluster.
fn cluster(stream: &Stream, meta: &MetaInf, state: &StreamState, out: &mut Vec<Finding>) {
    let placed = meta
        .get("placement")
        .is_some_and(|p| p.get("cluster").is_some_and(|c| c != ""));
    if stream.entries().is_none() || !(meta.num_replicas() > 1 || placed) {
        return;
    }
    let states = || {
        stream
            .consumers
            .iter()
            .filter_map(|c| Some((c, c.state.as_ref()?)))
    };
    if states().any(|(_, s)| !s.pending.is_empty() || !s.redelivered.is_empty()) {
        return;
    }
    let back: Vec<String> = states()
        .filter(|(c, s)| {
            c.meta.as_ref().is_some_and(|m| m.ack_policy() != "none")
                && s.delivered == s.ack_floor
                && s.delivered.stream < state.last_seq
        })
        .map(|(c, _)| c.name.clone())
        .collect();
    if !back.is_empty() {
        out.push(Finding::new(
            Code::ArchiveCluster,
            format!(
                "of a cluster, whose servers leave out pending acknowledgements: perhaps set back to the ack floor: {}",
                listed(&back)
            ),
        ));
    }
}

/// What only a tar has.
fn blocks(stream: &Stream, contents: &Contents<'_>, out: &mut Vec<Finding>) {
    let Some((tree, _)) = stream.tree() else {
        return;
    };
    if stream.cipher.is_some() || stream.blocks.iter().any(|b| b.key) {
        out.push(Finding::new(
            Code::RestoreKeys,
            "key files in it: servers without that very key refuse it",
        ));
    }
    let scheduled = stream
        .meta
        .as_ref()
        .is_some_and(|m| m.allow_msg_ttl() || m.allow_msg_schedules());
    let index = tree.stat(Path::new("msgs/index.db")).is_ok();
    if contents.damaged && scheduled && index {
        out.push(Finding::new(
            Code::RestoreCrash,
            "a damaged message, an index.db and message TTLs or schedules: servers 2.15.0-2.15.2 end while they restore it, and at every start after that",
        ));
    }
}
