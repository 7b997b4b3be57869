//! `sendfile2 bench compare`.

use anyhow::ensure;
use comfy_table::Cell;
use serde::Serialize;

use super::result::{CacheRow, Figure, GuardRow, HttpRow, Row, Rows, Saved};
use super::table::{self, figure};
use crate::{args, output, units};

/// The findings of a comparison.
#[derive(Debug, Serialize)]
struct Comparison {
    changed: Vec<Change>,
    /// Figures whose intervals overlap, or that have none.
    unchanged: usize,
    /// Figures, among the unchanged ones, without an interval: too few rounds.
    uncertain: usize,
    /// Rows that only one of them has.
    only_before: Vec<String>,
    only_after: Vec<String>,
    /// The differences for which the results may differ, too: machine, kernel, settings.
    differences: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Change {
    what: String,
    figure: &'static str,
    before: f64,
    before_ci: [f64; 2],
    after: f64,
    after_ci: [f64; 2],
    /// (after - before) / before
    change: f64,
    better: bool,
}

/// A row by its name, and its figures: name, whether more is better, value, interval.
type Figures = Vec<(&'static str, bool, f64, Option<[f64; 2]>)>;

pub(super) fn run(args: &args::Compare) -> anyhow::Result<()> {
    let (before, after) = (Saved::read(&args.before)?, Saved::read(&args.after)?);
    ensure!(
        before.bench() == after.bench(),
        "{} is of bench {}, {} of bench {}: give two of the same",
        args.before.display(),
        before.bench(),
        args.after.display(),
        after.bench()
    );
    ensure!(
        matches!(before.rows, Rows::Engines(_) | Rows::Guard(_) | Rows::Http(_) | Rows::Cache(_)),
        "results of bench {} have no confidence intervals to compare by",
        before.bench()
    );
    let comparison = compare(&before, &after);
    if args.json {
        output::print(&format!("{}\n", serde_json::to_string(&comparison)?))
    } else {
        output::print(&text(&comparison))
    }
}

fn compare(before: &Saved, after: &Saved) -> Comparison {
    let (old, new) = (named(&before.rows), named(&after.rows));
    let missing = |from: &[(String, Figures)], other: &[(String, Figures)]| {
        let has = |name: &str| other.iter().any(|(known, _)| known == name);
        from.iter().map(|(name, _)| name.clone()).filter(|name| !has(name)).collect()
    };
    let mut comparison = Comparison {
        changed: Vec::new(),
        unchanged: 0,
        uncertain: 0,
        only_before: missing(&old, &new),
        only_after: missing(&new, &old),
        differences: differences(before, after),
    };
    for (what, figures) in old {
        let Some((_, others)) = new.iter().find(|(name, _)| *name == what) else { continue };
        for ((figure, more, before, before_ci), (_, _, after, after_ci)) in
            figures.into_iter().zip(others)
        {
            let Some((before_ci, after_ci)) = before_ci.zip(*after_ci) else {
                comparison.unchanged += 1;
                comparison.uncertain += 1;
                continue;
            };
            if before_ci[0] <= after_ci[1] && after_ci[0] <= before_ci[1] {
                comparison.unchanged += 1;
                continue;
            }
            comparison.changed.push(Change {
                what: what.clone(),
                figure,
                before,
                before_ci,
                after: *after,
                after_ci,
                change: (after - before) / before,
                better: (*after > before) == more,
            });
        }
    }
    comparison
}

fn named(rows: &Rows) -> Vec<(String, Figures)> {
    match rows {
        Rows::Engines(rows) => rows.iter().map(engine).collect(),
        Rows::Guard(rows) => rows.iter().map(guard).collect(),
        Rows::Http(rows) => rows.iter().map(http).collect(),
        Rows::Cache(rows) => rows.iter().map(cache).collect(),
        Rows::Latency(_) | Rows::Memory(_) | Rows::Crowd(_) => Vec::new(),
    }
}

fn engine(row: &Row) -> (String, Figures) {
    let cold = if row.cold { ", cold" } else { "" };
    let more = if row.more { ", more follows" } else { "" };
    let (chunk, size) = (units::bytes(row.chunk), units::bytes(row.size));
    let Row { path, method, .. } = row;
    let streams = units::streams(row.streams);
    let name = format!("{method}: {path}, {streams}, calls of {chunk}, {size}{cold}{more}");
    let ci = &row.ci;
    let figures = vec![
        ("GB/s", true, row.gb_per_s, ci.gb_per_s),
        ("sender CPU s/GB", false, row.sender_cpu_s_per_gb, ci.sender_cpu_s_per_gb),
        ("total CPU s/GB", false, row.total_cpu_s_per_gb, ci.total_cpu_s_per_gb),
        ("throughput ratio", true, row.throughput_ratio, ci.throughput_ratio),
        ("sender CPU ratio", false, row.sender_cpu_ratio, ci.sender_cpu_ratio),
        ("total CPU ratio", false, row.total_cpu_ratio, ci.total_cpu_ratio),
    ];
    // The reference's own ratios are always 1.
    let own = if row.method == row.reference { 3 } else { 6 };
    (name, figures.into_iter().take(own).collect())
}

fn guard(row: &GuardRow) -> (String, Figures) {
    let mut figures = vec![("ns", false, row.nanoseconds, row.ci)];
    figures.extend(row.ratio.map(|ratio| ("ratio", false, ratio, row.ratio_ci)));
    (row.what.clone(), figures)
}

fn http(row: &HttpRow) -> (String, Figures) {
    let HttpRow { server, size, connections, .. } = row;
    let figures = [
        ("requests/s", "requests/s ratio", true, row.requests_per_s),
        ("server CPU s/GB", "server CPU ratio", false, row.server_cpu_s_per_gb),
        ("total CPU s/GB", "total CPU ratio", false, row.total_cpu_s_per_gb),
    ];
    let figures = with_ratios(figures, server != "nginx");
    (format!("{server}: {connections} connections, {}", units::bytes(*size)), figures)
}

/// Returns figures and their ratios, if these are not the reference's own, which are always 1.
fn with_ratios(
    figures: impl IntoIterator<Item = (&'static str, &'static str, bool, Figure)>,
    ratios: bool,
) -> Figures {
    let figures = figures.into_iter().flat_map(|(name, of, more, figure)| {
        let ratio = figure.ratio.filter(|_| ratios);
        let ratio = ratio.map(|ratio| (of, more, ratio, figure.ratio_ci));
        [Some((name, more, figure.value, figure.ci)), ratio].into_iter().flatten()
    });
    figures.collect()
}

fn cache(row: &CacheRow) -> (String, Figures) {
    let CacheRow { server, load, size, connections, .. } = row;
    let figures = [
        ("requests/s", "requests/s ratio", true, row.requests_per_s),
        ("server CPU µs", "server CPU ratio", false, row.server_cpu_us_per_request),
        ("total CPU µs", "total CPU ratio", false, row.total_cpu_us_per_request),
        ("p99 µs", "p99 ratio", false, row.p99_us),
    ];
    let figures = figures.into_iter().filter_map(|(name, of, more, f)| Some((name, of, more, f?)));
    let figures = with_ratios(figures, !server.starts_with("nginx"));
    (format!("{server}: {load}, {connections} connections, {}", units::bytes(*size)), figures)
}

/// Returns the other differences between two results: of the machine and the settings.
fn differences(before: &Saved, after: &Saved) -> Vec<String> {
    let (a, b) = (&before.machine, &after.machine);
    let mut found = Vec::new();
    let mut note = |what: &str, a: &str, b: &str| {
        if a != b {
            found.push(format!("{what}: {a} before, {b} after"));
        }
    };
    note("kernel", &a.kernel, &b.kernel);
    note("processor", &a.cpu, &b.cpu);
    note("filesystem", &a.filesystem, &b.filesystem);
    note("processors", &a.processors.to_string(), &b.processors.to_string());
    for (when, saved) in [("before", before), ("after", after)] {
        found.extend(saved.warnings.iter().map(|warning| format!("{when}: {warning}")));
    }
    found
}

fn text(comparison: &Comparison) -> String {
    let Comparison { changed, unchanged, uncertain, only_before, only_after, differences } =
        comparison;
    let mut text = String::new();
    let compared = changed.len() + unchanged - uncertain;
    if changed.is_empty() {
        text.push_str(match (compared, uncertain) {
            (0, 0) => "There is nothing to compare: they have no figure in common.\n",
            (0, _) => "Nothing can be said.\n",
            (_, 0) => "Nothing changed beyond noise.\n",
            _ => "Of what can be compared nothing changed beyond noise.\n",
        });
    } else {
        let header = &["what", "figure", "before", "after", "change", ""];
        let rows = changed.iter().map(|change| {
            vec![
                Cell::new(&change.what),
                Cell::new(change.figure),
                Cell::new(figure(change.before, Some(change.before_ci), 3)),
                Cell::new(figure(change.after, Some(change.after_ci), 3)),
                Cell::new(format!("{:+.1} %", change.change * 100.0)),
                table::verdict(change.better, "better", "WORSE"),
            ]
        });
        text.push_str(&table::plain(table::table(header, 2, rows)));
        text.push('\n');
    }
    let changed = changed.len();
    text.push_str(&format!("{changed} of {compared} figures changed"));
    if *uncertain > 0 {
        text.push_str(&format!(
            "; {uncertain} more cannot be compared, for they have too few rounds (measure longer: \
             --time)"
        ));
    }
    text.push_str(".\n");
    for (when, rows) in [("first", only_before), ("second", only_after)] {
        for row in rows {
            text.push_str(&format!("Only in the {when}: {row}.\n"));
        }
    }
    for difference in differences {
        text.push_str(&format!("NOTE: {difference}.\n"));
    }
    text
}
