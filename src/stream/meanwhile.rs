//! What may have happened to a stream while its backup was made.
//!
//! A server notes the state, then reads the messages, and goes on serving: when it comes to a message, the message
//! may be gone. It is one that is removed by limits or acknowledgements; deletes and purges by a client count as loss
//! here, for nothing tells them from it (and until 2.14 servers refuse them during a backup).

use crate::format::meta::MetaInf;

/// Which messages a stream's configuration has a server remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removes {
    /// None.
    Nothing,
    /// The oldest.
    Oldest,
    /// Any.
    Any,
}

/// Which messages a server may remove from a stream with this configuration by itself.
pub fn removes(meta: &MetaInf) -> Removes {
    if meta.retention() != "limits"
        || meta.allow_msg_ttl()
        || meta.allow_msg_schedules()
        || meta.max_msgs_per_subject() > 0
        || meta
            .get("allow_rollup_hdrs")
            .is_some_and(|v| v.as_bool() == Some(true))
    {
        Removes::Any
    } else if meta.max_msgs() > 0 || meta.max_bytes() > 0 || meta.max_age() > 0 {
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
    /// Others are missing too, and the stream is one that loses such.
    Removed,
    /// Nothing accounts for it.
    Lost,
}

/// Judges `missing` messages, of which `front` at most are from before the first that is there.
pub fn judge(meta: Option<&MetaInf>, missing: u64, front: u64) -> Missing {
    match meta.map_or(Removes::Nothing, removes) {
        Removes::Nothing => Missing::Lost,
        // What limits remove is a run at the start: more than fits there is missing elsewhere.
        Removes::Oldest | Removes::Any if missing <= front => Missing::Trimmed,
        Removes::Oldest => Missing::Lost,
        Removes::Any => Missing::Removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_limits_cannot_have_removed_is_lost() {
        let of = |config: Value| {
            let Value::Object(config) = config else {
                panic!()
            };
            let meta = MetaInf::new_stream(config, None);
            [(1, 5), (5, 5), (6, 5)].map(|(n, front)| judge(Some(&meta), n, front))
        };
        use Missing::{Lost, Removed, Trimmed};
        assert_eq!(of(json!({"max_msgs": -1, "max_age": 0})), [Lost; 3]);
        for limit in ["max_msgs", "max_bytes", "max_age"] {
            assert_eq!(of(json!({limit: 10})), [Trimmed, Trimmed, Lost]);
        }
        for config in [
            json!({"retention": "workqueue"}),
            json!({"retention": "interest"}),
            json!({"max_msgs_per_subject": 1}),
            json!({"allow_msg_ttl": true}),
            json!({"allow_rollup_hdrs": true}),
        ] {
            assert_eq!(of(config), [Trimmed, Trimmed, Removed]);
        }
        assert_eq!(judge(None, 1, 1), Lost);
    }
}
