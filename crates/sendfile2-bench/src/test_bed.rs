//! The things that all benchmarks have in common: a file, a machine, places to send from and to,
//! and results to be shown.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Context;

use super::machine::{Before, Machine, Processors};
use super::process::Pair;
use super::result::{PathRow, Rows, Saved, Skipped};
use super::table;
use crate::args::{Common, Path};
use crate::netns::Net;
use crate::output;
use crate::scratch::Scratch;

/// A place to measure at.
#[derive(Debug)]
pub(super) struct TestBed {
    file: File,
    pub(super) directory: PathBuf,
    pub(super) processors: Processors,
    pub(super) machine: Machine,
    before: Option<Before>,
    paths: Vec<PathRow>,
    place: Option<Net>,
    skipped: Vec<Skipped>,
}

impl TestBed {
    /// Makes a file of `size` bytes, and looks at the machine.
    pub(super) fn new(common: &Common, size: u64) -> anyhow::Result<Self> {
        let before = Machine::before();
        let scratch = Scratch::new(common.dir.as_deref(), size)?;
        let processors = Processors::choose();
        let machine = Machine::new(scratch.filesystem, processors);
        // The sender inherits it; it has no name to be opened by.
        rustix::io::fcntl_setfd(&scratch.file, rustix::io::FdFlags::empty())?;
        let (paths, place, skipped) = (Vec::new(), None, Vec::new());
        Ok(TestBed {
            file: scratch.file,
            directory: scratch.directory,
            processors,
            machine,
            before,
            paths,
            place,
            skipped,
        })
    }

    /// Sets the place that [`Path::Peer`] leads to.
    pub(super) fn set_place(&mut self, place: Net) {
        self.place = Some(place);
    }

    /// Starts a sender and a receiver; nothing where namespaces are forbidden.
    pub(super) fn pair(&mut self, path: Path) -> anyhow::Result<Option<Pair>> {
        let net = match path {
            Path::Loopback => Net::loopback(),
            Path::Peer => self.place.take().context("there is no --peer-netns")?,
            Path::Veth => match Net::veth() {
                Ok(net) => net,
                Err(error) => {
                    self.skip([Skipped { what: path.to_string(), why: output::whole(&error) }]);
                    return Ok(None);
                }
            },
        };
        let pair = Pair::start(net, &self.file, self.processors)?;
        self.paths.push(PathRow::new(path.name(), &pair.hello));
        Ok(Some(pair))
    }

    /// Notes what could not be measured.
    pub(super) fn skip(&mut self, skipped: impl IntoIterator<Item = Skipped>) {
        for skipped in skipped {
            output::note(&format!("SKIP: {}: {}", skipped.what, skipped.why));
            self.skipped.push(skipped);
        }
    }

    /// Prints and saves the results, when all processes have ended.
    pub(super) fn finish(mut self, rows: Rows, common: &Common) -> anyhow::Result<()> {
        self.machine.after(self.before);
        let saved = Saved::new(rows, self.machine, self.paths, self.skipped);
        saved.save(common.save.as_deref())?;
        if common.json {
            output::print(&format!("{}\n", serde_json::to_string(&saved)?))
        } else {
            output::print(&table::text(&saved))
        }
    }
}
