//! Stub.
use super::{Context, Exit, Failure};
/// Options.
pub struct Options {
    /// Show the bytes.
    pub hexdump: bool,
    /// The block's number.
    pub block: Option<u64>,
}
/// Runs the verb.
pub fn run(_: &mut Context<'_>, _: &[std::path::PathBuf], _: &Options) -> Result<Exit, Failure> {
    Ok(Exit::Failed)
}
