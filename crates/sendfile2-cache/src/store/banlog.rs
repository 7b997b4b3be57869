//! The list of bans on disk: appended to, and written anew when it is full.

use super::ban::Ban;
use super::core::Core;
use super::disk::Disk;
use super::error::StoreError;
use super::log::{self, Listed};

/// Where the next ban goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BanLog {
    second: bool,
    epoch: u64,
    /// From the half's beginning; `None` if no half is in force, or is not to be any more.
    end: Option<u64>,
}

impl BanLog {
    /// Reads the half that is in force.
    pub(super) fn read(disk: &Disk) -> Result<(Self, Listed), StoreError> {
        let mut best: Option<(BanLog, Listed)> = None;
        for second in [false, true] {
            let half = disk.read(disk.sizes.half(second))?;
            let Some(listed) = log::read(&disk.secret, &half) else { continue };
            if best.as_ref().is_none_or(|(best, _)| best.epoch < listed.epoch) {
                let end = (!listed.damaged).then_some(listed.end as u64);
                best = Some((BanLog { second, epoch: listed.epoch, end }, listed));
            }
        }
        // Without one there was none, or it is damaged: no epoch of before comes after this.
        let now = || std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_secs()) << 20;
        Ok(best.unwrap_or_else(|| {
            let listed = Listed { damaged: true, ..Listed::default() };
            (BanLog { second: true, epoch: now(), end: None }, listed)
        }))
    }

    /// Appends a ban that is in force in memory already, and returns when it is on disk.
    pub(super) fn append(&mut self, core: &Core, seq: u64, ban: &Ban) -> Result<(), StoreError> {
        let disk = &core.disk;
        let record = log::encode(&disk.secret, self.epoch, seq, ban);
        let half = disk.sizes.half(self.second);
        let room = |end: &u64| half.start + end + record.len() as u64 <= half.end;
        let Some(end) = self.end.filter(room) else { return self.rewrite(core) };
        // What a write that failed has left there is written anew.
        self.end = None;
        disk.write(&record, half.start + end)?;
        core.sync()?;
        self.end = Some(end + record.len() as u64);
        Ok(())
    }

    /// Writes those that are still in force to the other half, and puts that in force.
    pub(super) fn rewrite(&mut self, core: &Core) -> Result<(), StoreError> {
        let disk = &core.disk;
        let bans = {
            let mut state = core.state();
            let floor = state.floor();
            state.bans.expire(floor);
            state.bans.list()
        };
        // If this fails, the next try has an epoch of its own, and nothing is appended before it.
        (self.end, self.epoch) = (None, self.epoch + 1);
        let (second, epoch) = (!self.second, self.epoch);
        let half = disk.sizes.half(second);
        let marker = log::marker(&disk.secret, epoch);
        let mut bytes = Vec::new();
        for (seq, ban) in &bans {
            bytes.extend(log::encode(&disk.secret, epoch, *seq, ban));
        }
        let end = (marker.len() + bytes.len()) as u64;
        if half.start + end > half.end {
            return Err(StoreError::TooManyBans);
        }
        // A try that failed may have put this half in force.
        disk.write(&vec![0; marker.len()], half.start)?;
        core.sync()?;
        // All that made bans superfluous is on disk before they are gone.
        disk.write(&bytes, half.start + marker.len() as u64)?;
        core.sync()?;
        disk.write(&marker, half.start)?;
        core.sync()?;
        *self = BanLog { second, epoch, end: Some(end) };
        Ok(())
    }
}
