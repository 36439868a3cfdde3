//! The `jetsam` command. Everything it does lives in the library.

fn main() -> std::process::ExitCode {
    jetsam::cli::main()
}
