//! Makes stores of any shape and size, as a server that stopped would have left them: for tests and benchmarks at
//! sizes that take a server hours to fill.
//!
//! usage: `cargo run --release --example make_store -- DEST --streams 3 --messages 1000 --s2`
//!
//! The same options give the same messages; `--truth` writes down what they are.
#![allow(
    clippy::indexing_slicing,
    reason = "nothing here is read from files: what it indexes, it made"
)]

mod args;
mod shape;
mod truth;
mod write;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match write::make(&args::Args::parse()) {
        Ok(made) => {
            println!("{made}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("make_store: {e}");
            ExitCode::FAILURE
        }
    }
}
