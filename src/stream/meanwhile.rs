//! What may have happened to a stream while its backup was made.
//!
//! A server notes the state, then reads the messages, and goes on serving: when it comes to a message, the message
//! may be gone. It is one that is removed by limits or acknowledgements; deletes and purges by a client count as loss
//! here, for nothing tells them from it (and until 2.14 servers refuse them during a backup).

use crate::format::meta::MetaInf;

/// Which messages a server may remove from a stream by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removes {
    /// None.
    Nothing,
    /// The oldest.
    Oldest,
    /// Any.
    Any,
}

/// What limits may remove from a stream with this configuration and state. One that is far from its limit does not
/// reach it while a backup is made; ages are not asked for, as nobody knows how long that took.
pub fn removes(meta: &MetaInf, messages: u64, bytes: u64) -> Removes {
    let near = |limit: i64, held: u64| {
        u64::try_from(limit).is_ok_and(|l| l > 0 && held >= l.saturating_sub(l / 10))
    };
    if meta.retention() != "limits"
        || meta.allow_msg_ttl()
        || meta.allow_msg_schedules()
        || meta.max_msgs_per_subject() > 0
        || meta
            .get("allow_rollup_hdrs")
            .is_some_and(|v| v.as_bool() == Some(true))
    {
        Removes::Any
    } else if near(meta.max_msgs(), messages) || near(meta.max_bytes(), bytes) || meta.max_age() > 0
    {
        Removes::Oldest
    } else {
        Removes::Nothing
    }
}

/// Why an archive holds fewer messages than its state says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The oldest ones are missing, as the stream's limits would have it.
    Trimmed,
    /// Others are missing too. Acknowledgements remove any; and where limits remove the oldest, they may overtake the
    /// backup, which has read those before.
    Removed,
    /// Nothing accounts for it.
    Lost,
}

/// Judges `missing` messages, of which `front` at most are from before the first that is there.
pub fn judge(removes: Removes, missing: u64, front: u64) -> Missing {
    match removes {
        Removes::Nothing => Missing::Lost,
        _ if missing <= front => Missing::Trimmed,
        _ => Missing::Removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_nothing_removes_is_lost() {
        let of = |config: Value| {
            let Value::Object(config) = config else {
                panic!()
            };
            removes(&MetaInf::new_stream(config, None), 90, 900)
        };
        for config in [
            json!({"max_msgs": -1, "max_age": 0, "max_bytes": 0}),
            json!({"max_msgs": 101, "max_bytes": 1001}),
        ] {
            assert_eq!(of(config), Removes::Nothing);
        }
        for config in [
            json!({"max_msgs": 100}),
            json!({"max_msgs": 1}),
            json!({"max_bytes": 1000}),
            json!({"max_age": 1}),
        ] {
            assert_eq!(of(config), Removes::Oldest);
        }
        for config in [
            json!({"retention": "workqueue"}),
            json!({"retention": "interest"}),
            json!({"max_msgs_per_subject": 1}),
            json!({"allow_msg_ttl": true}),
            json!({"allow_rollup_hdrs": true}),
        ] {
            assert_eq!(of(config), Removes::Any);
        }
        use Missing::{Lost, Removed, Trimmed};
        for (removes, want) in [
            (Removes::Nothing, [Lost, Lost, Lost]),
            (Removes::Oldest, [Trimmed, Trimmed, Removed]),
            (Removes::Any, [Trimmed, Trimmed, Removed]),
        ] {
            assert_eq!([1, 5, 6].map(|n| judge(removes, n, 5)), want);
        }
    }
}
