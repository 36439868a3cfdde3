//! Unpacks a committed fixture, a store that a real server wrote, into `target/demo/`.
//!
//! usage: `cargo run --example unpack -- 2.14.5-basic`

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "2.14.5-basic".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packed = root.join(format!("fixtures/stores/{name}.tar.xz"));
    let target = root.join("target/demo").join(&name);
    if target.exists() {
        std::fs::remove_dir_all(&target)?;
    }
    std::fs::create_dir_all(&target)?;
    let file = std::fs::File::open(&packed).map_err(|e| format!("{}: {e}", packed.display()))?;
    tar::Archive::new(xz2::read::XzDecoder::new(file)).unpack(&target)?;
    println!("{}", target.display());
    Ok(())
}
