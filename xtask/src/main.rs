//! Chores that cargo has no command for.
#![forbid(unsafe_code)]

mod api;
mod ci;
mod dist;
mod guest;
mod header;
mod install;
mod layers;
mod packages;
mod rust;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

/// Chores of the project.
#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
enum Chore {
    Api(api::Args),
    Ci(ci::Args),
    Dist(dist::Args),
    Install(install::Args),
    Header(header::Args),
    Layers(layers::Args),
    Guest(guest::Args),
}

fn main() -> ExitCode {
    match run(Chore::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Not by `Debug`, which adds a backtrace where RUST_BACKTRACE is set.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> anyhow::Result<()> {
    match chore {
        Chore::Api(args) => api::run(&args),
        Chore::Ci(args) => ci::run(&args),
        Chore::Dist(args) => dist::run(&args),
        Chore::Install(args) => install::run(&args),
        Chore::Header(args) => header::run(&args),
        Chore::Layers(args) => layers::run(&args),
        Chore::Guest(args) => guest::run(&args),
    }
}

/// The root of the checkout.
fn root() -> anyhow::Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(Path::to_owned).context("the checkout has no root")
}
