//! Counts the kernel's event `iomap:iomap_dio_invalidate_fail`: a direct write could not take pages
//! out of the page cache, and went in place.

use std::fs::{read_to_string, write};
use std::io;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// An instance of the kernel's tracing of its own, which is gone when this is dropped.
pub struct Faults {
    instance: PathBuf,
    tracefs: TempDir,
}

impl Drop for Faults {
    fn drop(&mut self) {
        let removed = std::fs::remove_dir(&self.instance);
        let unmounted = Command::new("umount").arg(self.tracefs.path()).status();
        if removed.is_err() || !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays", self.instance.display());
        }
    }
}

impl Faults {
    /// Counts from now on; where that cannot be, says so as a skip.
    pub fn begin() -> Option<Self> {
        let tracefs = TempDir::new().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tracefs", "tracefs"]).arg(tracefs.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            println!("SKIP: tracefs cannot be mounted");
            return None;
        }
        let name = format!("instances/sendfile2-{}", std::process::id());
        let faults = Faults { instance: tracefs.path().join(name), tracefs };
        let event = faults.instance.join("events/iomap/iomap_dio_invalidate_fail/enable");
        let enabled = std::fs::create_dir(&faults.instance).and_then(|()| write(event, "1"));
        match enabled {
            Ok(()) => Some(faults),
            Err(why) => {
                println!("SKIP: iomap:iomap_dio_invalidate_fail cannot be counted: {why}");
                None
            }
        }
    }

    /// Those of the filesystem with this device (`st_dev`).
    pub fn on(&self, device: u64) -> io::Result<u64> {
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let device = format!("iomap_dio_invalidate_fail: dev {major}:{minor} ");
        let trace = read_to_string(self.instance.join("trace"))?;
        Ok(trace.lines().filter(|line| line.contains(&device)).count() as u64)
    }
}
