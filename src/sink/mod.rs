//! Where messages go: archives and store directories.
//!
//! A sink is fed block by block from a [pass](crate::state::visit::Pass) over a stream's live messages. What
//! it makes is staged and renamed when it is complete: whatever interrupts it, nothing half-made is left that
//! looks whole.

pub mod block;
pub mod outgoing;
pub mod staged;
