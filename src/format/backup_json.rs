//! stub
#![allow(missing_docs)]
pub const MAX_LEN: u64 = 1 << 20;
#[derive(Debug, Clone)]
pub struct BackupJson;
impl BackupJson { pub fn name(&self) -> Option<&str> { None } }
pub fn decode(_: &[u8]) -> Result<BackupJson, super::Fault> { Ok(BackupJson) }
