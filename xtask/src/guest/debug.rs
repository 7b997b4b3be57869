//! `guest debug`: a kernel that checks itself, without the patch series, for the module.

use super::kernel::DEBUG;

/// A kernel for two processors, with KASAN, lockdep and modules, without the patch series
///
/// Builds it, some eight minutes on two processors; the cache keeps it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args) -> anyhow::Result<()> {
    let kernel = DEBUG.build()?;
    println!("{}", kernel.image.display());
    Ok(())
}
