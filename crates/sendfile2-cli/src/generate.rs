//! `completions` and `man`: what packagers install beside the command.

use std::path::PathBuf;

use anyhow::Context;
use clap::{CommandFactory, ValueHint};
use clap_complete::Shell;

use crate::{Cli, output};

/// Print the completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 completions bash > ~/.bash_completion.d/sendfile2
  sendfile2 completions fish > ~/.config/fish/completions/sendfile2.fish
  sendfile2 completions zsh > ~/.zfunc/_sendfile2")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

/// Write the man pages into a directory
///
/// One page for sendfile2 and one for each of its commands. The directory is made if it is missing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 man ~/.local/share/man/man1 && man sendfile2-demo
  sendfile2 man . && man ./sendfile2.1")]
pub(crate) struct Man {
    /// Where to write them
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    directory: PathBuf,
}

pub(crate) fn completions(args: &Completions) -> anyhow::Result<()> {
    // Into memory first: clap_complete panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sendfile2", &mut script);
    output::print(&String::from_utf8(script)?)
}

pub(crate) fn man(args: &Man) -> anyhow::Result<()> {
    let directory = &args.directory;
    std::fs::create_dir_all(directory)
        .and_then(|()| {
            // "help" needs no page.
            let command = Cli::command().disable_help_subcommand(true);
            clap_mangen::generate_to(command, directory)
        })
        .with_context(|| format!("cannot write man pages into {}", directory.display()))
}
