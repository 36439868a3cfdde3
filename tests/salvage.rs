//! `salvage`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

#[path = "salvage/bits.rs"]
mod bits;
mod common;
