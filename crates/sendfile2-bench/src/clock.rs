//! The clocks and counters of a process.

use rustix::time::{ClockId, clock_gettime};

/// Returns `CLOCK_MONOTONIC`, which is the same in all processes, in nanoseconds.
pub(super) fn now() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// CPU time that this process has used, in nanoseconds. Interrupts and the network's softirqs that
/// struck while it ran are in it, unless the kernel was built with `IRQ_TIME_ACCOUNTING`.
pub(super) fn cpu() -> u64 {
    nanoseconds(ClockId::ProcessCPUTime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Neither is negative.
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or(0)
}

/// Returns how often this thread gave up the processor, and how often it was taken from it.
pub(super) fn switches() -> (u64, u64) {
    let status = procfs::process::Process::myself().and_then(|process| process.status());
    let status = status.ok();
    (
        status.as_ref().and_then(|s| s.voluntary_ctxt_switches).unwrap_or(0),
        status.as_ref().and_then(|s| s.nonvoluntary_ctxt_switches).unwrap_or(0),
    )
}

/// Keeps this thread, and those it starts, on one processor.
pub(super) fn pin(cpu: Option<usize>) -> rustix::io::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)
}
