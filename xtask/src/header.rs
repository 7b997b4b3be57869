//! `sendfile2.h`, from the Rust source.

use anyhow::{Context, bail, ensure};

/// Write crates/sendfile2-c/include/sendfile2.h anew from the Rust source
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write nothing, and fail if it is not up to date
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let room = crate::root()?.join("crates/sendfile2-c");
    let path = room.join("include/sendfile2.h");
    let config = cbindgen::Config::from_file(room.join("cbindgen.toml"))
        .map_err(anyhow::Error::msg)
        .context("cbindgen.toml")?;
    let bindings = cbindgen::Builder::new()
        .with_src(room.join("src/abi.rs"))
        .with_config(config)
        .generate()
        .context("the header could not be made from src/abi.rs")?;
    let mut header = Vec::new();
    bindings.write(&mut header);
    ensure!(!header.is_empty(), "the header is empty");
    let old = std::fs::read(&path).unwrap_or_default();
    if args.check {
        if old != header {
            bail!("{} is not what src/abi.rs says: run `cargo xtask header`", path.display());
        }
        return Ok(());
    }
    if old != header {
        std::fs::write(&path, header).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
