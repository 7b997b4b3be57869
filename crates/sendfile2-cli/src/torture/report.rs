//! The findings of a run: added up while it runs, as a table, as JSON, and as a verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::bail;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use hdrhistogram::Histogram;
use sendfile2::Engine;
use serde::Serialize;

use super::Args;
use super::block::Wrong;
use super::message::{ClientsTally, Overwrite, ServerTally};
use crate::netns::Net;
use crate::units;

/// The number of wrong blocks, and of unexpected things, that are shown in full.
const SAMPLES: usize = 10;

/// Memory is compared over this many seconds at the beginning and the end, or over a tenth.
const MINUTE: f64 = 60.0;

/// A server fills its caches in the first moments.
const WARM: f64 = 1.0;

#[derive(Debug)]
pub(super) struct Totals {
    began: Instant,
    pub(super) seconds: f64,
    connections: u64,
    responses: u64,
    cut: u64,
    resets: u64,
    refused: u64,
    client_timeouts: u64,
    bytes: u64,
    wrong_blocks: u64,
    samples: Vec<Wrong>,
    first_wrong: Option<f64>,
    /// Sends and leases that were left when servers stopped in good order; `None` if none did.
    pub(super) unknown_left: Option<u64>,
    overwrites: u64,
    waits: u64,
    deadlines: u64,
    in_the_way: u64,
    aborts: u64,
    detached: u64,
    not_detached: u64,
    pages_stayed: u64,
    detaching: Duration,
    refused_writers: u64,
    released: u64,
    copied: u64,
    choices: BTreeMap<String, u64>,
    ended: BTreeMap<String, u64>,
    writer_micros: Histogram<u64>,
    /// One list for each server: seconds since its start, and bytes.
    rss: Vec<(Instant, Vec<(f64, u64)>)>,
    disturbed: BTreeMap<String, u64>,
    faults: BTreeMap<String, u64>,
    skipped: BTreeMap<String, String>,
    unexpected: Vec<String>,
    unexpected_more: u64,
}

impl Default for Totals {
    fn default() -> Self {
        Totals {
            began: Instant::now(),
            seconds: 0.0,
            connections: 0,
            responses: 0,
            cut: 0,
            resets: 0,
            refused: 0,
            client_timeouts: 0,
            bytes: 0,
            wrong_blocks: 0,
            samples: Vec::new(),
            first_wrong: None,
            unknown_left: None,
            overwrites: 0,
            waits: 0,
            deadlines: 0,
            in_the_way: 0,
            aborts: 0,
            detached: 0,
            not_detached: 0,
            pages_stayed: 0,
            detaching: Duration::ZERO,
            refused_writers: 0,
            released: 0,
            copied: 0,
            choices: BTreeMap::new(),
            ended: BTreeMap::new(),
            // Resizes as it must.
            #[expect(clippy::expect_used, reason = "2 digits are allowed")]
            writer_micros: Histogram::new(2).expect("2 digits"),
            rss: Vec::new(),
            disturbed: BTreeMap::new(),
            faults: BTreeMap::new(),
            skipped: BTreeMap::new(),
            unexpected: Vec::new(),
            unexpected_more: 0,
        }
    }
}

impl Totals {
    /// Begins the totals, when the clients start.
    pub(super) fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// Counts another server that starts.
    pub(super) fn life(&mut self) {
        self.rss.push((Instant::now(), Vec::new()));
    }

    pub(super) fn server(&mut self, tally: &ServerTally) {
        self.overwrites += tally.overwrites;
        self.waits += tally.waits;
        self.deadlines += tally.deadlines;
        self.in_the_way += tally.in_the_way;
        self.aborts += tally.aborts;
        self.detached += tally.detached;
        self.not_detached += tally.not_detached;
        self.pages_stayed += tally.pages_stayed;
        self.detaching += tally.detaching;
        self.refused_writers += tally.refused;
        self.released += tally.released;
        self.copied += tally.copied;
        add(&mut self.choices, &tally.choices);
        add(&mut self.ended, &tally.ended);
        for (micros, n) in &tally.writer_micros {
            // The histogram resizes itself: nothing is out of range.
            let _ = self.writer_micros.record_n(*micros, *n);
        }
        if let Some((began, samples)) = self.rss.last_mut() {
            samples.push((began.elapsed().as_secs_f64(), tally.rss));
        }
    }

    pub(super) fn clients(&mut self, tally: &ClientsTally) {
        self.connections += tally.connections;
        if self.seconds == 0.0 {
            // Afterwards there is no server any more.
            self.refused += tally.refused;
        }
        self.responses += tally.responses;
        self.cut += tally.cut;
        self.resets += tally.resets;
        self.client_timeouts += tally.timeouts;
        self.bytes += tally.bytes;
        self.wrong_blocks += tally.wrong;
    }

    pub(super) fn wrong(&mut self, wrong: Wrong) {
        self.wrong_blocks += 1;
        self.first_wrong.get_or_insert(self.began.elapsed().as_secs_f64());
        if self.samples.len() < SAMPLES {
            self.samples.push(wrong);
        }
    }

    pub(super) fn unexpected(&mut self, what: String) {
        if self.unexpected.len() < SAMPLES {
            self.unexpected.push(what);
        } else {
            self.unexpected_more += 1;
        }
    }

    pub(super) fn disturbed(&mut self, done: &BTreeMap<String, u64>) {
        add(&mut self.disturbed, done);
    }

    pub(super) fn fault(&mut self, name: &str) {
        *self.faults.entry(name.into()).or_default() += 1;
    }

    pub(super) fn skip(&mut self, name: &str, why: &str) {
        self.skipped.insert(name.into(), why.into());
    }

    /// Notes a fault, or who was to disturb, that should have come and did not.
    pub(super) fn missed(&mut self, name: &str) {
        let came = self.faults.contains_key(name) || self.disturbed.contains_key(name);
        if !came && !self.skipped.contains_key(name) {
            self.skip(name, "the run was over before it came");
        }
    }

    /// Returns the totals in one line, while the torture runs.
    pub(super) fn line(&self) -> String {
        let rss =
            self.rss.last().and_then(|(_, samples)| samples.last()).map_or(0, |(_, rss)| *rss);
        format!(
            "{} responses, {} wrong blocks, {} overwrites, {} detached, {} writers waited, {} aborts, \
             {}",
            self.responses,
            self.wrong_blocks,
            self.overwrites,
            self.detached,
            self.waits,
            self.aborts,
            units::bytes(rss)
        )
    }

    /// The memory of the server that lived longest: mean in MB at the beginning and the end.
    fn memory(&self) -> (Option<f64>, Option<f64>) {
        let life = |samples: &[(f64, u64)]| samples.last().map_or(0.0, |(at, _)| *at);
        let longest = self.rss.iter().max_by(|a, b| life(&a.1).total_cmp(&life(&b.1)));
        let Some((_, samples)) = longest else { return (None, None) };
        let end = life(samples);
        let first = samples.first().map_or(0.0, |(at, _)| *at);
        let begin = if end > 5.0 * WARM { first + WARM } else { first };
        let window = MINUTE.min((end - begin) / 10.0).max(0.5);
        let mean = |from: f64, to: f64| {
            let within: Vec<u64> = samples
                .iter()
                .filter(|(at, _)| (from..=to).contains(at))
                .map(|(_, rss)| *rss)
                .collect();
            let mean = within.iter().sum::<u64>().checked_div(within.len() as u64)?;
            Some(hundredths(mean as f64 / 1e6))
        };
        (mean(begin, begin + window), mean(end - window, end))
    }

    /// The mean time of a try to detach a range, in microseconds.
    fn detaching_mean(&self) -> u64 {
        let tries = u128::from(self.detached + self.not_detached).max(1);
        u64::try_from(self.detaching.as_micros() / tries).unwrap_or(u64::MAX)
    }

    /// `not_detached` tells why the file cannot be detached, if that was asked for and it cannot.
    pub(super) fn report(
        &self,
        args: &Args,
        net: &Net,
        seed: u64,
        filesystem: String,
        not_detached: Option<String>,
    ) -> Report {
        let (rss_first_mb, rss_last_mb) = self.memory();
        let at = |percentile| self.writer_micros.value_at_percentile(percentile);
        Report {
            engine: args.engine.to_string(),
            needs_detaching: args.engine == Engine::Sendfile,
            overwrite: args.overwrite,
            sparse: args.sparse,
            no_detaching: not_detached,
            clients: args.clients,
            writers: args.writers,
            processes: args.processes,
            slots: args.slots,
            slot_size: args.slot_size,
            seed,
            duration_s: hundredths(self.seconds),
            network: net.name,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            filesystem,
            connections: self.connections,
            responses: self.responses,
            responses_cut: self.cut,
            resets_seen: self.resets,
            connections_refused: self.refused,
            client_timeouts: self.client_timeouts,
            bytes: self.bytes,
            overwrites: self.overwrites,
            wrong_blocks: self.wrong_blocks,
            wrong_samples: self.samples.clone(),
            first_wrong_after_s: self.first_wrong.map(hundredths),
            unknown_left: self.unknown_left,
            aborts: self.aborts,
            detached: self.detached,
            detaching_failed: self.not_detached,
            pages_stayed: self.pages_stayed,
            detaching_mean_micros: self.detaching_mean(),
            writers_not_detached: self.refused_writers,
            writers_waited: self.waits,
            writer_deadlines: self.deadlines,
            writers_refused: self.in_the_way,
            zerocopy_sends: self.released,
            copied_share: (self.released > 0).then(|| self.copied as f64 / self.released as f64),
            choices: self.choices.clone(),
            ended: self.ended.clone(),
            writer_wait_micros: Percentiles {
                p50: at(50.0),
                p90: at(90.0),
                p99: at(99.0),
                max: self.writer_micros.max(),
            },
            rss_first_mb,
            rss_last_mb,
            servers: self.rss.len(),
            disturbed: self.disturbed.clone(),
            faults: self.faults.clone(),
            skipped: self.skipped.clone(),
            unexpected: self.unexpected.clone(),
            unexpected_more: self.unexpected_more,
        }
    }
}

fn add(sum: &mut BTreeMap<String, u64>, more: &BTreeMap<String, u64>) {
    for (key, n) in more {
        *sum.entry(key.clone()).or_default() += n;
    }
}

fn hundredths(n: f64) -> f64 {
    (n * 100.0).round() / 100.0
}

/// The report on a run. The names of the fields are those of the JSON.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    engine: String,
    #[serde(skip)]
    needs_detaching: bool,
    overwrite: Overwrite,
    sparse: bool,
    /// The reason why the file cannot be detached, though that was asked for: writers waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_detaching: Option<String>,
    clients: u32,
    writers: u32,
    processes: u32,
    slots: u32,
    slot_size: u32,
    seed: u64,
    duration_s: f64,
    network: &'static str,
    kernel: String,
    filesystem: String,
    connections: u64,
    /// Responses received to the end.
    responses: u64,
    /// Responses that ended early; what had come was checked.
    responses_cut: u64,
    resets_seen: u64,
    connections_refused: u64,
    client_timeouts: u64,
    bytes: u64,
    overwrites: u64,
    wrong_blocks: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wrong_samples: Vec<Wrong>,
    first_wrong_after_s: Option<f64>,
    unknown_left: Option<u64>,
    aborts: u64,
    /// Ranges detached for a writer, tries that failed, and the mean time of both.
    detached: u64,
    detaching_failed: u64,
    /// Times that pages were found in the page cache after they had been taken out: another try
    /// followed, or a failure.
    pages_stayed: u64,
    detaching_mean_micros: u64,
    /// Writers that were told so, and wrote nothing.
    writers_not_detached: u64,
    writers_waited: u64,
    writer_deadlines: u64,
    writers_refused: u64,
    zerocopy_sends: u64,
    copied_share: Option<f64>,
    choices: BTreeMap<String, u64>,
    ended: BTreeMap<String, u64>,
    writer_wait_micros: Percentiles,
    rss_first_mb: Option<f64>,
    rss_last_mb: Option<f64>,
    servers: usize,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    disturbed: BTreeMap<String, u64>,
    faults: BTreeMap<String, u64>,
    skipped: BTreeMap<String, String>,
    unexpected: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    unexpected_more: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[derive(Debug, Serialize)]
struct Percentiles {
    p50: u64,
    p90: u64,
    p99: u64,
    max: u64,
}

impl Report {
    fn is_control(&self) -> bool {
        self.overwrite == Overwrite::InPlace
    }

    /// Fails if something was wrong, or if nothing was proved.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        if self.wrong_blocks > 0 && !self.is_control() {
            bail!(
                "torture: NOT SAFE: {} wrong blocks (seed {}): please report this, with the output \
                 of --json",
                self.wrong_blocks,
                self.seed
            );
        }
        if let Some(first) = self.unexpected.first() {
            let n = self.unexpected.len() as u64 + self.unexpected_more;
            let more = if n > 1 { format!(" (and {} more)", n - 1) } else { String::new() };
            bail!("torture: what must not happen: {first}{more}");
        }
        if self.client_timeouts > 0 && !self.is_control() {
            bail!(
                "torture: {} times a client got neither bytes nor the end of its connection for \
                 {} s",
                self.client_timeouts,
                super::client::TIMEOUT.as_secs()
            );
        }
        match self.unknown_left {
            None => bail!("torture: no server came to its end, so what is left is not known"),
            Some(0) => {}
            Some(n) => {
                bail!("torture: {n} sends or leases were never released (seed {})", self.seed)
            }
        }
        if self.responses == 0 || self.overwrites == 0 {
            bail!("torture: this run proves nothing: nothing was received or nothing overwritten");
        }
        if self.needs_detaching && !self.is_control() && self.detached == 0 {
            bail!("torture: this run proves nothing: nothing was detached");
        }
        if self.is_control() && self.wrong_blocks == 0 {
            bail!(
                "torture: too weak to prove anything: every block arrived right though the pages \
                 were overwritten in place as soon as the call that sent them had returned"
            );
        }
        Ok(())
    }

    fn how(&self) -> &'static str {
        match (self.overwrite, &self.no_detaching) {
            (Overwrite::Detach, None) => "at once, what is in flight is detached",
            (Overwrite::Detach, Some(_)) | (Overwrite::Wait, _) => {
                "what is in flight is waited for"
            }
            (Overwrite::InPlace, _) => "in place when the send has returned (the control)",
        }
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let optional = |n: Option<f64>, unit: &str| {
            n.map_or_else(|| "not known".into(), |n| format!("{n}{unit}"))
        };
        let list = |map: &BTreeMap<String, u64>| {
            map.iter().map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join("\n")
        };
        let Percentiles { p50, p90, p99, max } = self.writer_wait_micros;
        let mut rows = vec![
            ("Engine", self.engine.clone()),
            ("Network", self.network.into()),
            ("Clients", format!("{} in {} processes", self.clients, self.processes)),
            ("Writers", self.writers.to_string()),
            (
                "File",
                format!(
                    "{} slots of {} on {}",
                    self.slots,
                    units::bytes(self.slot_size.into()),
                    self.filesystem
                ),
            ),
            ("Time", format!("{} s, seed {}", self.duration_s, self.seed)),
            (
                "Responses",
                format!(
                    "{} whole, {} cut, on {} connections",
                    self.responses, self.responses_cut, self.connections
                ),
            ),
            ("Checked", units::bytes(self.bytes)),
            ("Overwrites", format!("{}, {}", self.overwrites, self.how())),
            ("Writer took", {
                let [p50, p90, p99, max] = [p50, p90, p99, max].map(units::micros);
                format!("p50 {p50}, p90 {p90}, p99 {p99}, at most {max}")
            }),
            (
                "Writers",
                format!(
                    "{} waited, {} deadlines passed",
                    self.writers_waited, self.writer_deadlines
                ),
            ),
            ("Aborts", self.aborts.to_string()),
        ];
        if self.detached + self.detaching_failed > 0 {
            let each = units::micros(self.detaching_mean_micros);
            rows.push((
                "Detached",
                format!(
                    "{} ranges, {} tries failed, {each} each; {} times pages stayed or came back; \
                     {} writers were refused",
                    self.detached,
                    self.detaching_failed,
                    self.pages_stayed,
                    self.writers_not_detached
                ),
            ));
        }
        if let Some(why) = &self.no_detaching {
            rows.push(("Not detached", format!("writers waited: {why}")));
        }
        if self.zerocopy_sends > 0 {
            let share = optional(self.copied_share.map(|s| hundredths(s * 100.0)), " %");
            rows.push(("Zerocopy", format!("{} sends, {share} COPIED", self.zerocopy_sends)));
        }
        if !self.choices.is_empty() {
            rows.push(("Sent by", list(&self.choices)));
        }
        if !self.ended.is_empty() {
            rows.push(("Ended by", list(&self.ended)));
        }
        rows.push((
            "Memory",
            format!(
                "{} at first, {} at last",
                optional(self.rss_first_mb, " MB"),
                optional(self.rss_last_mb, " MB")
            ),
        ));
        if !self.disturbed.is_empty() {
            rows.push(("Disturbed by", list(&self.disturbed)));
        }
        if !self.faults.is_empty() {
            rows.push(("Faults", list(&self.faults)));
        }
        for (name, why) in &self.skipped {
            rows.push(("Skipped", format!("{name}: {why}")));
        }
        for what in &self.unexpected {
            rows.push(("Unexpected", what.clone()));
        }
        let left = self.unknown_left.map_or_else(|| "not known".into(), |n| n.to_string());
        rows.push(("Unknown left", left));
        rows
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .enforce_styling()
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(u16::try_from(textwrap::termwidth().min(100)).unwrap_or(80));
        for (name, value) in self.rows() {
            table.add_row([Cell::new(name), Cell::new(value)]);
        }
        // Wrong blocks of the control are what it is for.
        let colour =
            if (self.wrong_blocks > 0) == self.is_control() { Color::Green } else { Color::Red };
        let wrong = match self.first_wrong_after_s {
            Some(after) => format!("{}, the first after {after} s", self.wrong_blocks),
            None => self.wrong_blocks.to_string(),
        };
        let bold = |text: &str| Cell::new(text).fg(colour).add_attribute(Attribute::Bold);
        table.add_row([bold("Wrong blocks"), bold(&wrong)]);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in table.lines() {
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
