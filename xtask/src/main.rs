//! Chores that cargo has no command for.
#![forbid(unsafe_code)]

mod api;
mod ci;
mod guest;
mod header;
mod install;
mod layers;
mod packages;
mod rust;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Parser;

/// Chores of the project.
#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
enum Chore {
    Api(api::Args),
    Ci(ci::Args),
    Install(install::Args),
    Header(header::Args),
    Layers(layers::Args),
    Guest(guest::Args),
}

fn main() -> anyhow::Result<()> {
    match Chore::parse() {
        Chore::Api(args) => api::run(&args),
        Chore::Ci(args) => ci::run(&args),
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
