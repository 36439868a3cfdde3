//! The files of a raft group, `_js_/<group>/`: a log that is itself a file store, and these beside it.
//!
//! | file | layout |
//! |---|---|
//! | `tav.idx` | term u64; optionally the 8-byte id of the peer voted for |
//! | `peers.idx` | cluster size u32, number of ids u32, that many 8-byte ids, domain extension u16 (2.7+) |
//! | `commit.idx` | 2.15.1+, `_meta_` only: commit index u64, HighwayHash-64 under `_meta_` over it |
//! | `snapshots/snap.<term>.<index>` | last term u64, last index u64, length u32, peer state, data, HighwayHash-64 under the group's name over everything before |
//!
//! A record of the log has no subject; its sequence is the raft index; its payload is an append entry:
//! leader id (8), term, commit, previous term, previous index (u64 each), number of entries u16, then for
//! each entry a length u32 (type included), its type u8 and its data; since 2.11.5 a uvarint at the end.
//! Nothing but the log (and `meta.inf`) is ever encrypted.

use super::bytes::{Cursor, Fault, FaultKind};
use super::hash::HashKey;
use serde::Serialize;

/// An 8-character node id.
pub type NodeId = String;

fn id(c: &mut Cursor<'_>) -> Result<NodeId, Fault> {
    Ok(String::from_utf8_lossy(&c.array::<8>()?).into_owned())
}

/// `peers.idx`, and the peer state of snapshots and entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Peers {
    /// Expected size of the cluster.
    pub cluster_size: u32,
    /// Known peers.
    pub peers: Vec<NodeId>,
    /// 0 undetermined, 1 extended, 2 not extended; absent before 2.7.
    pub domain_extension: Option<u16>,
}

/// Decodes a peer state.
pub fn decode_peers(buf: &[u8], base: u64) -> Result<Peers, Fault> {
    let mut c = Cursor::new(buf, base);
    let cluster_size = c.u32()?;
    let at = c.clone();
    let n = u64::from(c.u32()?);
    let ceiling = (c.remaining() / 8) as u64;
    if n > ceiling {
        return Err(at.fault(FaultKind::TooLarge {
            what: "number of peers",
            value: n,
            ceiling,
        }));
    }
    let mut peers = Vec::new();
    for _ in 0..n {
        peers.push(id(&mut c)?);
    }
    let domain_extension = if c.is_empty() { None } else { Some(c.u16()?) };
    Ok(Peers {
        cluster_size,
        peers,
        domain_extension,
    })
}

/// `tav.idx`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vote {
    /// Term.
    pub term: u64,
    /// Who was voted for.
    pub voted: Option<NodeId>,
}

/// Decodes `tav.idx`.
pub fn decode_vote(buf: &[u8], base: u64) -> Result<Vote, Fault> {
    let mut c = Cursor::new(buf, base);
    let term = c.u64()?;
    let voted = if c.is_empty() {
        None
    } else {
        Some(id(&mut c)?).filter(|v| v != "\0\0\0\0\0\0\0\0")
    };
    Ok(Vote { term, voted })
}

/// Decodes `commit.idx`: the commit index.
pub fn decode_commit(buf: &[u8], base: u64, group: &[u8]) -> Result<u64, Fault> {
    let mut c = Cursor::new(buf, base);
    let index = c.u64()?;
    let at = c.clone();
    if c.array::<8>()? != HashKey::new(group).sum(&index.to_le_bytes()) {
        return Err(at.fault(FaultKind::Checksum { what: "commit.idx" }));
    }
    Ok(index)
}

/// A snapshot's frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot<'a> {
    /// Term of the last entry that it covers.
    pub last_term: u64,
    /// Index of the last entry that it covers.
    pub last_index: u64,
    /// Peers at that time.
    pub peers: Peers,
    /// The group's own data: of streams, consumers or the assignments.
    pub data: &'a [u8],
}

/// Decodes a snapshot file, its hash included.
pub fn decode_snapshot<'a>(buf: &'a [u8], base: u64, group: &[u8]) -> Result<Snapshot<'a>, Fault> {
    let short = Fault::new(
        base,
        FaultKind::Truncated {
            need: 28,
            have: buf.len() as u64,
        },
    );
    let Some((body, hash)) = buf
        .len()
        .checked_sub(8)
        .and_then(|at| buf.split_at_checked(at))
    else {
        return Err(short);
    };
    let mut c = Cursor::new(body, base);
    let (last_term, last_index) = (c.u64()?, c.u64()?);
    let len = c.u32()? as usize;
    let at = c.offset();
    let peers = c.take(len)?;
    if HashKey::new(group).sum(body) != hash {
        return Err(Fault::new(
            base.saturating_add(body.len() as u64),
            FaultKind::Checksum { what: "snapshot" },
        ));
    }
    Ok(Snapshot {
        last_term,
        last_index,
        peers: decode_peers(peers, at)?,
        data: c.rest(),
    })
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryType {
    /// An operation of the group; its first byte says which.
    Normal,
    /// A snapshot of old releases.
    OldSnapshot,
    /// A peer state.
    PeerState,
    /// A peer joins.
    AddPeer,
    /// A peer leaves.
    RemovePeer,
    /// A new leader is asked for.
    LeaderTransfer,
    /// A snapshot.
    Snapshot,
    /// Something newer.
    Unknown(u8),
}

impl From<u8> for EntryType {
    fn from(v: u8) -> Self {
        match v {
            0 => Self::Normal,
            1 => Self::OldSnapshot,
            2 => Self::PeerState,
            3 => Self::AddPeer,
            4 => Self::RemovePeer,
            5 => Self::LeaderTransfer,
            6 => Self::Snapshot,
            v => Self::Unknown(v),
        }
    }
}

/// The name of a normal entry's operation, by its first byte.
pub fn op_name(data: &[u8]) -> Option<&'static str> {
    const NAMES: [&str; 19] = [
        "assign_stream",
        "assign_consumer",
        "remove_stream",
        "remove_consumer",
        "stream_msg",
        "purge_stream",
        "delete_msg",
        "update_delivered",
        "update_acks",
        "assign_compressed_consumer",
        "update_skip",
        "update_stream",
        "add_pending_request",
        "remove_pending_request",
        "compressed_stream_msg",
        "delete_range",
        "batch_msg",
        "batch_commit",
        "reset_seq",
    ];
    NAMES.get(usize::from(*data.first()?)).copied()
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it is.
    pub kind: EntryType,
    /// Its data.
    pub data: &'a [u8],
}

/// The payload of a record in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppendEntry<'a> {
    /// The leader that sent it.
    pub leader: NodeId,
    /// Its term.
    pub term: u64,
    /// What it had committed.
    pub commit: u64,
    /// Term of the entry before.
    pub previous_term: u64,
    /// Index of the entry before; this record's sequence is one more.
    pub previous_index: u64,
    /// The entries.
    pub entries: Vec<Entry<'a>>,
    /// 2.11.5+.
    pub last_term: Option<u64>,
}

/// Decodes the payload of a record in the log.
pub fn decode_append_entry(buf: &[u8], base: u64) -> Result<AppendEntry<'_>, Fault> {
    let mut c = Cursor::new(buf, base);
    let leader = id(&mut c)?;
    let (term, commit, previous_term, previous_index) = (c.u64()?, c.u64()?, c.u64()?, c.u64()?);
    let n = c.u16()?;
    let mut entries = Vec::new();
    for _ in 0..n {
        let at = c.clone();
        let len = (c.u32()? as usize)
            .checked_sub(1)
            .ok_or_else(|| at.fault(FaultKind::Invalid("entry length (0)")))?;
        let kind = EntryType::from(c.u8()?);
        entries.push(Entry {
            kind,
            data: c.take(len)?,
        });
    }
    let last_term = if c.is_empty() {
        None
    } else {
        Some(c.uvarint()?)
    };
    Ok(AppendEntry {
        leader,
        term,
        commit,
        previous_term,
        previous_index,
        entries,
        last_term,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_prove_themselves() {
        let mut file = Vec::new();
        file.extend_from_slice(&3u64.to_le_bytes());
        file.extend_from_slice(&77u64.to_le_bytes());
        let mut peers = Vec::new();
        peers.extend_from_slice(&3u32.to_le_bytes());
        peers.extend_from_slice(&1u32.to_le_bytes());
        peers.extend_from_slice(b"wjuCaEDI\x02\x00");
        file.extend_from_slice(&(peers.len() as u32).to_le_bytes());
        file.extend_from_slice(&peers);
        file.extend_from_slice(b"data");
        let hash = HashKey::new("_meta_").sum(&file);
        file.extend_from_slice(&hash);
        let snap = decode_snapshot(&file, 0, b"_meta_").unwrap();
        assert_eq!(
            (snap.last_term, snap.last_index, snap.data),
            (3, 77, &b"data"[..])
        );
        assert_eq!(snap.peers.peers, ["wjuCaEDI"]);
        decode_snapshot(&file, 0, b"other").unwrap_err();
        for n in 0..file.len() {
            decode_snapshot(&file[..n], 0, b"_meta_").unwrap_err();
        }
    }
}
