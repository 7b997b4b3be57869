//! The machine of the measurements, and how busy it was with other things.

use std::hint::black_box;
use std::time::{Duration, Instant};

use procfs::{Current, CurrentSI};
use serde::{Deserialize, Serialize};

use super::stats::Median;

/// Load of others, as a share of one processor, from which on results are doubtful.
const QUIET: f64 = 0.25;

/// The machine and its state, on which the results depend.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) kernel: String,
    pub(super) cpu: String,
    pub(super) processors: usize,
    pub(super) sender_processor: Option<usize>,
    pub(super) receiver_processor: Option<usize>,
    pub(super) memory_bytes: u64,
    pub(super) last_level_cache_bytes: Option<u64>,
    /// The governor of the frequency; `None` where the machine does not report it, as virtual ones
    /// do not.
    pub(super) governor: Option<String>,
    pub(super) filesystem: String,
    /// The rate of a loop that copies more than the caches hold, and of one that copies half of a
    /// small one; in GB/s.
    pub(super) memory_copy_gb_per_s: f64,
    pub(super) cached_copy_gb_per_s: f64,
    pub(super) load_before: Option<f32>,
    pub(super) load_after: Option<f32>,
    /// The processors that other programs used meanwhile, as a number of processors.
    pub(super) others: Option<f64>,
    /// The share of the time that a hypervisor took away.
    pub(super) steal: Option<f64>,
}

/// The processors that the two processes are to stay on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Processors {
    pub(super) sender: Option<usize>,
    pub(super) receiver: Option<usize>,
}

impl Processors {
    /// Chooses two processors on different cores, if this process may use two; else none is pinned.
    pub(super) fn choose() -> Self {
        let allowed = rustix::thread::sched_getaffinity(None).ok();
        let mut cores = Vec::new();
        for cpu in 0..rustix::thread::CpuSet::MAX_CPU {
            if !allowed.as_ref().is_some_and(|set| set.is_set(cpu)) {
                continue;
            }
            let file = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            let siblings = std::fs::read_to_string(file).unwrap_or_else(|_| cpu.to_string());
            if !cores.iter().any(|(known, _)| *known == siblings) {
                cores.push((siblings, cpu));
            }
        }
        match cores[..] {
            [(_, sender), (_, receiver), ..] => {
                Processors { sender: Some(sender), receiver: Some(receiver) }
            }
            _ => Processors { sender: None, receiver: None },
        }
    }
}

/// The ticks of the processors before the measurement.
#[derive(Debug)]
pub(super) struct Before {
    start: Instant,
    used: Used,
}

/// Ticks of all processors together, since the machine started, and of this process's family.
#[derive(Debug)]
struct Used {
    busy: u64,
    steal: u64,
    own: u64,
}

impl Used {
    fn now() -> Option<Self> {
        let total = procfs::KernelStats::current().ok()?.total;
        let own = procfs::process::Process::myself().ok()?.stat().ok()?;
        let ended = u64::try_from(own.cutime + own.cstime).unwrap_or(0);
        Some(Used {
            busy: total.user
                + total.nice
                + total.system
                + total.irq.unwrap_or(0)
                + total.softirq.unwrap_or(0),
            steal: total.steal.unwrap_or(0),
            own: own.utime + own.stime + ended,
        })
    }
}

impl Machine {
    pub(super) fn new(filesystem: String, cpus: Processors) -> Self {
        let cache = last_level_cache();
        let info = procfs::CpuInfo::current().ok();
        let governor = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
        Machine {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu: info
                .as_ref()
                .and_then(|info| info.model_name(0))
                .unwrap_or(std::env::consts::ARCH)
                .into(),
            processors: std::thread::available_parallelism().map_or(1, Into::into),
            sender_processor: cpus.sender,
            receiver_processor: cpus.receiver,
            memory_bytes: procfs::Meminfo::current().map_or(0, |memory| memory.mem_total),
            last_level_cache_bytes: cache,
            governor: std::fs::read_to_string(governor).ok().map(|name| name.trim().into()),
            filesystem,
            // Twice the cache at least, for each of both buffers.
            memory_copy_gb_per_s: copy_rate(
                cache.unwrap_or(32 << 20).clamp(32 << 20, 128 << 20) * 2,
            ),
            cached_copy_gb_per_s: copy_rate(128 << 10),
            load_before: load(),
            load_after: None,
            others: None,
            steal: None,
        }
    }

    /// Takes the ticks when the first process starts; [`Machine::after`] takes them again, when all
    /// have ended.
    pub(super) fn before() -> Option<Before> {
        Some(Before { start: Instant::now(), used: Used::now()? })
    }

    #[expect(clippy::cast_precision_loss, reason = "ticks of a run")]
    pub(super) fn after(&mut self, before: Option<Before>) {
        self.load_after = load();
        let Some((before, now)) = before.zip(Used::now()) else { return };
        let ticks = before.start.elapsed().as_secs_f64() * procfs::ticks_per_second() as f64;
        let others = (now.busy - before.used.busy).saturating_sub(now.own - before.used.own);
        self.others = Some(others as f64 / ticks);
        self.steal = Some((now.steal - before.used.steal) as f64 / ticks / self.processors as f64);
    }

    /// Returns warnings of what makes the results doubtful.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(others) = self.others.filter(|others| *others > QUIET) {
            warnings.push(format!(
                "other programs and kernel threads used {others:.2} processors meanwhile: times are \
                 longer than on an idle machine, ratios less certain"
            ));
        }
        if let Some(steal) = self.steal.filter(|steal| *steal > 0.02) {
            warnings.push(format!("the hypervisor took away {:.0} % of the time", steal * 100.0));
        }
        if self.sender_processor.is_none() {
            warnings.push(
                "sender and receiver share a processor: there are no two cores to keep them apart"
                    .into(),
            );
        }
        warnings
    }
}

fn load() -> Option<f32> {
    procfs::LoadAverage::current().ok().map(|load| load.one)
}

fn last_level_cache() -> Option<u64> {
    let sizes = (0..8).filter_map(|index| {
        let file = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        crate::units::size(std::fs::read_to_string(file).ok()?.trim()).ok()
    });
    sizes.max()
}

/// Copies `bytes` again and again; returns how many GB a second.
#[expect(clippy::cast_precision_loss, reason = "sizes of buffers")]
fn copy_rate(bytes: u64) -> f64 {
    const LONG_ENOUGH: Duration = Duration::from_millis(30);
    let bytes = usize::try_from(bytes).unwrap_or(1 << 28);
    let (from, mut to) = (vec![1_u8; bytes], vec![2_u8; bytes]);
    let rates = (0..5).map(|_| {
        let (start, mut copied) = (Instant::now(), 0);
        while copied == 0 || start.elapsed() < LONG_ENOUGH {
            // So that clocks are not what is measured.
            for _ in 0..((1 << 20) / bytes).max(1) {
                to.copy_from_slice(black_box(&from));
                black_box(&mut to);
                copied += bytes;
            }
        }
        copied as f64 / start.elapsed().as_secs_f64() / 1e9
    });
    Median::of(rates).value
}
