//! `completions` and `man`: what packagers install beside the command.

use std::path::{Path, PathBuf};

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
    /// Directory to write them into
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
    // "help" needs no page.
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    std::fs::create_dir_all(directory)
        .and_then(|()| pages(&command, directory))
        .with_context(|| format!("cannot write man pages into {}", directory.display()))
}

/// Writes the pages of a command and of those below it.
fn pages(command: &clap::Command, directory: &Path) -> std::io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages(below, directory)?;
    }
    let man = clap_mangen::Man::new(command.clone());
    let mut page = Vec::new();
    man.render(&mut page)?;
    let also = if command.get_name() == "sendfile2" {
        &["msg_zerocopy(1)", "sendfile(2)", "sendfile2(3)", "sendfile2(7)"][..]
    } else {
        &["sendfile2(1)", "sendfile2(7)"]
    };
    let page = with_headings(&String::from_utf8_lossy(&page), also);
    std::fs::write(directory.join(man.get_filename()), page)
}

/// A page with the headings that manual pages have: `clap_mangen` puts all that follows a command's
/// help below one of its own.
fn with_headings(page: &str, also: &[&str]) -> String {
    let (before, extra) = page.split_once(".SH EXTRA\n").unwrap_or((page, ""));
    let (extra, after) = match extra.find(".SH ") {
        Some(at) => extra.split_at(at),
        None => (extra, ""),
    };
    let (mut status, mut notes, mut examples) = (String::new(), String::new(), String::new());
    for paragraph in extra.trim_end().split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
        if let Some(lines) = paragraph.strip_prefix("Examples:\n") {
            examples = format!(".SH EXAMPLES\n.nf\n{lines}\n.fi\n");
        } else if let Some(text) = paragraph.strip_prefix("Exit status: ") {
            status = format!(".SH EXIT STATUS\n{text}\n");
        } else {
            notes = format!("{notes}.SH NOTES\n{paragraph}\n");
        }
    }
    let also: Vec<String> = also
        .iter()
        .filter_map(|page| page.split_once('('))
        .map(|(name, section)| format!("\\fB{}\\fR({section}", name.replace('-', "\\-")))
        .collect();
    let also = also.join(",\n");
    format!("{before}{status}{notes}{examples}.SH SEE ALSO\n{also}\n{after}")
}
