//! Rounds: in each, every method is measured once, in an order of chance, and its ratio is to the
//! reference of the same round.

use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use super::machine::Machine;
use super::message::Job;
use super::process::{Pair, Sample};
use super::result::{Intervals, Row};
use super::stats::Median;
use crate::method::Method;
use crate::units;

/// The setting of a measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) path: &'static str,
    pub(super) streams: u32,
    pub(super) chunk: u64,
    pub(super) size: u64,
    pub(super) cold: bool,
    pub(super) more: bool,
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Setting { path, streams, chunk, size, cold, more } = *self;
        let (chunk, size) = (units::bytes(chunk), units::bytes(size));
        let streams = units::streams(streams);
        let cold = if cold { ", cold" } else { "" };
        let more = if more { ", more follows" } else { "" };
        write!(f, "{path}, {streams}, calls of {chunk}, {size}{cold}{more}")
    }
}

/// The conditions on which a measurement stops.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The share of the median that an interval's width is at most, when the measurement stops
    /// early.
    pub(super) width: f64,
    /// The time to stop at in any case.
    pub(super) deadline: Instant,
}

impl Limits {
    /// The rest of the time, shared by `settings` that are still to be measured.
    pub(super) fn share(&self, settings: usize) -> Self {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(settings.max(1)).unwrap_or(u32::MAX);
        Limits { deadline: Instant::now() + share, ..*self }
    }

    /// Returns the time that a measurement may take before something is broken.
    pub(super) fn timeout(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()) + Duration::from_secs(3)
    }
}

/// A bar that shows the time and what is measured; on standard error, where that is a terminal.
pub(super) fn progress(limits: &Limits) -> anyhow::Result<ProgressBar> {
    let left = limits.deadline.saturating_duration_since(Instant::now());
    let style = ProgressStyle::with_template("{bar:20} {pos} of at most {len} s  {wide_msg}")?;
    Ok(ProgressBar::new(left.as_secs()).with_style(style))
}

/// A measurement: for each method, a sample a round.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) setting: Setting,
    samples: Vec<(Method, Vec<Sample>)>,
    /// Methods that do not work here, and why.
    pub(super) refused: Vec<(Method, String)>,
}

/// The number of bytes that each connection sends before anything is known.
const WARM_UP: u64 = 4 << 20;

/// The shortest and the longest that a measurement takes, if there is the time.
const SHORTEST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(200);

/// The number of rounds that are aimed at.
const ROUNDS: u32 = 12;

pub(super) fn measure(
    pair: &mut Pair,
    methods: &[Method],
    setting: Setting,
    limits: &Limits,
    progress: &ProgressBar,
) -> anyhow::Result<Measured> {
    let start = Instant::now();
    let streams = u64::from(setting.streams);
    let job = |bytes: u64| {
        let Setting { chunk, size, cold, more, .. } = setting;
        Job { bytes, chunk, size, cold, more }
    };
    let mut methods = methods.to_vec();
    let mut refused: Vec<(Method, String)> = Vec::new();
    // Connections live through all rounds: windows have grown, and `auto` has learned.
    let slowest = loop {
        pair.connect(&methods, setting.streams as usize)?;
        let bytes = if setting.cold { setting.size } else { WARM_UP.max(setting.chunk) * streams };
        let mut slowest = f64::INFINITY;
        let mut failed = None;
        for method in &methods {
            match pair.send(
                *method,
                job(bytes.min(256 << 20)),
                limits.timeout().min(Duration::from_secs(5)),
            ) {
                Ok(sample) => slowest = slowest.min(sample.gb_per_s()),
                Err(error) => {
                    failed = Some((*method, error));
                    break;
                }
            }
        }
        let Some((method, error)) = failed else { break slowest };
        if method == Method::Sendfile {
            return Err(error.context(method.to_string()));
        }
        // The rest of its connections would be in the way of the others.
        methods.retain(|other| *other != method);
        refused.push((method, crate::output::whole(&error)));
    };
    let left = limits.deadline.saturating_duration_since(start);
    let count = u32::try_from(methods.len())?;
    let long = (left / (ROUNDS * count)).clamp(SHORTEST, LONGEST);
    let bytes = if setting.cold {
        setting.size
    } else {
        // A rate in GB/s is one in bytes a nanosecond.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive")]
        let bytes = (slowest * long.as_secs_f64() * 1e9) as u64;
        bytes.next_multiple_of(setting.chunk).max(setting.chunk * streams)
    };

    let mut samples: Vec<_> = methods.iter().map(|method| (*method, Vec::new())).collect();
    let mut longest = Duration::ZERO;
    let mut measured = 0;
    while measured == 0 || Instant::now() + longest < limits.deadline {
        let begin = Instant::now();
        let mut round: Vec<_> = samples.iter_mut().collect();
        fastrand::shuffle(&mut round);
        for (method, samples) in round {
            let sample = pair.send(*method, job(bytes), limits.timeout());
            samples.push(sample.with_context(|| format!("{method}, {setting}"))?);
        }
        longest = longest.max(begin.elapsed());
        progress.set_position(progress.elapsed().as_secs());
        measured += 1;
        if widest(&samples) <= limits.width {
            break;
        }
    }
    Ok(Measured { setting, samples, refused })
}

/// The widest interval of those that must be narrow.
fn widest(samples: &[(Method, Vec<Sample>)]) -> f64 {
    let figures = [Sample::gb_per_s, Sample::total_cpu];
    let widths = samples.iter().flat_map(|(_, samples)| {
        figures.map(|figure| Median::of(samples.iter().map(figure)).width())
    });
    widths.fold(0.0, f64::max)
}

/// Seconds of CPU a GB, from nanoseconds.
#[expect(clippy::cast_precision_loss, reason = "a measurement is short")]
impl Sample {
    fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / self.elapsed as f64
    }

    fn sender_cpu(&self) -> f64 {
        self.sent.cpu as f64 / self.bytes as f64
    }

    fn receiver_cpu(&self) -> f64 {
        self.receiver_cpu as f64 / self.bytes as f64
    }

    fn total_cpu(&self) -> f64 {
        self.sender_cpu() + self.receiver_cpu()
    }

    /// Nanoseconds of the sender's CPU for a send.
    pub(super) fn sender_cpu_per_send(&self) -> f64 {
        self.sent.cpu as f64 / self.sent.sends.max(1) as f64
    }
}

impl Measured {
    fn samples(&self, method: Method) -> Option<&[Sample]> {
        self.samples.iter().find(|(other, _)| *other == method).map(|(_, samples)| &samples[..])
    }

    /// A figure of a method, and its ratio to that of `reference`, round by round.
    pub(super) fn figure(
        &self,
        method: Method,
        reference: Method,
        figure: impl Fn(&Sample) -> f64,
    ) -> Option<(Median, Median)> {
        let (own, reference) = (self.samples(method)?, self.samples(reference)?);
        let ratios = own.iter().zip(reference).map(|(a, b)| figure(a) / figure(b));
        Some((Median::of(own.iter().map(&figure)), Median::of(ratios)))
    }

    pub(super) fn rounds(&self) -> usize {
        self.samples.first().map_or(0, |(_, samples)| samples.len())
    }

    pub(super) fn rows(&self, machine: &Machine) -> Vec<Row> {
        self.samples.iter().filter_map(|(method, _)| self.row(*method, machine)).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of a run")]
    fn row(&self, method: Method, machine: &Machine) -> Option<Row> {
        let Setting { path, streams, chunk, size, cold, more } = self.setting;
        let (throughput, throughput_ratio) =
            self.figure(method, Method::Sendfile, Sample::gb_per_s)?;
        let (sender, sender_ratio) = self.figure(method, Method::Sendfile, Sample::sender_cpu)?;
        let (receiver, _) = self.figure(method, Method::Sendfile, Sample::receiver_cpu)?;
        let (total, total_ratio) = self.figure(method, Method::Sendfile, Sample::total_cpu)?;
        let samples = self.samples(method)?;
        let sum = |of: fn(&Sample) -> u64| samples.iter().map(of).sum::<u64>() as f64;
        let sends = sum(|s| s.sent.sends).max(1.0);
        let counted = |of: fn(&Sample) -> Option<u64>| {
            let counted: Option<u64> = samples.iter().map(of).sum();
            counted.map(|n| n as f64 / sends)
        };
        Some(Row {
            path: path.into(),
            streams,
            method: method.name(),
            safe: method.is_safe(),
            chunk,
            size,
            cold,
            more,
            gb_per_s: throughput.value,
            sender_cpu_s_per_gb: sender.value,
            receiver_cpu_s_per_gb: receiver.value,
            total_cpu_s_per_gb: total.value,
            throughput_ratio: throughput_ratio.value,
            sender_cpu_ratio: sender_ratio.value,
            total_cpu_ratio: total_ratio.value,
            reference: Method::Sendfile.name(),
            copied_share: counted(|s| s.sent.copies),
            memory_copy_share: throughput.value / machine.memory_copy_gb_per_s,
            rounds: samples.len(),
            ci: Intervals {
                gb_per_s: throughput.interval,
                sender_cpu_s_per_gb: sender.interval,
                total_cpu_s_per_gb: total.interval,
                throughput_ratio: throughput_ratio.interval,
                sender_cpu_ratio: sender_ratio.interval,
                total_cpu_ratio: total_ratio.interval,
            },
            bytes_per_send: sum(|s| s.bytes) / sends,
            switches_per_send: sum(|s| s.sent.switches) / sends,
            preemptions_per_send: sum(|s| s.sent.preemptions) / sends,
            user_instructions_per_send: counted(|s| s.sent.instructions),
        })
    }
}
