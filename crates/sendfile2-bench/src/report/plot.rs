//! Plots, as SVG within a page. Each colour is written as it is in light mode; the page's styles
//! replace it in dark mode.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::super::result::{LatencyRow, Row, Rows};
use super::escape;
use crate::units;

const SIZE: (u32, u32) = (500, 300);

/// Text and axes, and the lines of the grid; in light mode and in dark mode.
const INK: (RGBColor, &str) = (RGBColor(28, 30, 33), "#e6e8eb");
const GRID: (RGBColor, &str) = (RGBColor(217, 220, 225), "#383d45");

/// The colours of the methods (those of Okabe and Ito, which most people can distinguish), in light
/// mode and in dark mode. Ways that come later take the last one.
const COLOURS: [(&str, RGBColor, &str); 7] = [
    ("sendfile", RGBColor(213, 94, 0), "#ff8f47"),
    ("splice", RGBColor(204, 121, 167), "#e79cc6"),
    ("read+write", RGBColor(120, 120, 120), "#a8a8a8"),
    ("copy", RGBColor(0, 114, 178), "#56b4e9"),
    ("zerocopy", RGBColor(0, 158, 115), "#2fd0a2"),
    ("auto", RGBColor(1, 1, 1), "#fefefe"),
    ("", RGBColor(138, 96, 190), "#b99be8"),
];

fn colour(method: &str) -> RGBColor {
    let known = COLOURS.iter().find(|(name, ..)| *name == method);
    known.unwrap_or(&COLOURS[COLOURS.len() - 1]).1
}

/// Returns the styles that replace the colours in dark mode, and mark methods that do not report the release.
pub(super) fn styles() -> String {
    let mut text = String::from("@media (prefers-color-scheme: dark) {\n");
    let all = COLOURS.iter().map(|(_, light, dark)| (*light, *dark)).chain([INK, GRID]);
    for (RGBColor(r, g, b), dark) in all {
        let light = format!("#{r:02X}{g:02X}{b:02X}");
        let _ = writeln!(
            text,
            "  svg [stroke=\"{light}\"] {{ stroke: {dark}; }}\n  svg [fill=\"{light}\"] {{ fill: {dark}; }}"
        );
    }
    text + "}"
}

/// All plots of a result; none for what tables say better.
pub(super) fn plots(rows: &Rows) -> anyhow::Result<String> {
    match rows {
        Rows::Engines(rows) => engines(rows),
        Rows::Latency(rows) => latency(rows),
        Rows::Guard(_) | Rows::Memory(_) | Rows::Http(_) | Rows::Crowd(_) | Rows::Cache(_) => {
            Ok(String::new())
        }
    }
}

/// One line of a plot.
struct Series {
    method: String,
    safe: bool,
    points: Vec<(f64, f64)>,
    /// Whether markers grow further on, which show more than the line.
    growing: bool,
}

impl Series {
    /// Draws its line and its markers. Methods that do not report the release are dashed, with triangles.
    fn draw<X, Y>(
        &self,
        chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, Y>>,
    ) -> anyhow::Result<()>
    where
        X: Ranged<ValueType = f64>,
        Y: Ranged<ValueType = f64>,
    {
        let colour = colour(&self.method);
        // Where the marks say it, the line only leads from one to the next.
        let line = if self.growing {
            ShapeStyle::from(colour.mix(0.4)).stroke_width(1)
        } else {
            colour.stroke_width(if self.method == "auto" { 3 } else { 2 })
        };
        let points = || self.points.iter().copied();
        if self.safe {
            chart.draw_series(LineSeries::new(points(), line))?;
        } else {
            chart.draw_series(DashedLineSeries::new(points(), 6, 4, line))?;
        }
        let sized = |i: usize| if self.growing { 3 + i.min(6) } else { 3 };
        let sized = |i: usize| i32::try_from(sized(i)).unwrap_or(3);
        if self.safe {
            chart.draw_series(
                points().enumerate().map(|(i, at)| Circle::new(at, sized(i), colour.filled())),
            )?;
        } else {
            chart.draw_series(
                points()
                    .enumerate()
                    .map(|(i, at)| TriangleMarker::new(at, sized(i) + 2, colour.filled())),
            )?;
        }
        Ok(())
    }
}

/// Returns the key of the plots: a list of the methods and their colours.
fn key(rows: &[(String, bool)]) -> String {
    let mut text = String::from("<ul class=\"key\">\n");
    let mut seen = BTreeSet::new();
    for (method, safe) in rows {
        if !seen.insert(method) {
            continue;
        }
        let RGBColor(r, g, b) = colour(method);
        let (light, width) =
            (format!("#{r:02X}{g:02X}{b:02X}"), if method == "auto" { 3 } else { 2 });
        let marker = if *safe {
            format!("<circle cx=\"17\" cy=\"7\" r=\"4\" fill=\"{light}\"/>")
        } else {
            format!("<path d=\"M17 2 L21.5 10 L12.5 10 Z\" fill=\"{light}\"/>")
        };
        let dash = if *safe { "" } else { " stroke-dasharray=\"6 4\"" };
        let _ = writeln!(
            text,
            "<li><svg width=\"34\" height=\"14\"><line x1=\"0\" y1=\"7\" x2=\"34\" y2=\"7\" \
             stroke=\"{light}\" stroke-width=\"{width}\"{dash}/>{marker}</svg>{}{}</li>",
            escape(method),
            if *safe { "" } else { " <span class=\"unsafe\">release not known</span>" },
        );
    }
    text + "</ul>\n"
}

/// The axes of a plot.
struct Axes<'a> {
    title: String,
    x: (&'a str, f64, f64),
    y: (&'a str, f64),
    x_label: &'a dyn Fn(&f64) -> String,
    x_labels: usize,
}

/// Draws a plot with linear axes.
fn linear(axes: &Axes<'_>, series: &[Series], level: Option<f64>) -> anyhow::Result<String> {
    drawn(|area| {
        let (_, low, high) = axes.x;
        let mut chart = builder(area, axes).build_cartesian_2d(low..high, 0.0..axes.y.1 * 1.08)?;
        mesh(&mut chart, axes, &|y| format!("{y:.1}"))?;
        if let Some(level) = level {
            chart.draw_series([PathElement::new(vec![(low, level), (high, level)], INK.0)])?;
        }
        series.iter().try_for_each(|series| series.draw(&mut chart))
    })
}

/// Draws the grid and the axes.
fn mesh<X, Y>(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<X, Y>>,
    axes: &Axes<'_>,
    y_label: &dyn Fn(&f64) -> String,
) -> anyhow::Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let style = || ("sans-serif", 12).into_font().color(&INK.0);
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).bold_line_style(GRID.0).axis_style(INK.0);
    mesh.x_labels(axes.x_labels).x_label_formatter(axes.x_label).x_desc(axes.x.0);
    mesh.y_labels(6).y_label_formatter(y_label).y_desc(axes.y.0);
    mesh.label_style(style()).axis_desc_style(style()).draw()?;
    Ok(())
}

fn builder<'a, 'b>(
    area: &'a DrawingArea<SVGBackend<'b>, Shift>,
    axes: &Axes<'_>,
) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    let centre = Pos::new(HPos::Center, VPos::Top);
    let style = ("sans-serif", 14).into_font().color(&INK.0).pos(centre);
    builder.caption(&axes.title, style).margin(6).margin_right(14);
    builder.x_label_area_size(38).y_label_area_size(52);
    builder
}

/// An SVG drawing of the usual size.
fn drawn(
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw(&area)?;
        area.present()?;
    }
    Ok(text)
}

/// Groups `rows` by a name, in the order in which they come.
fn panels<R>(rows: &[R], name: impl Fn(&R) -> String) -> Vec<(String, Vec<&R>)> {
    let mut panels: Vec<(String, Vec<&R>)> = Vec::new();
    for row in rows {
        let name = name(row);
        match panels.iter_mut().find(|(known, _)| *known == name) {
            Some((_, panel)) => panel.push(row),
            None => panels.push((name, vec![row])),
        }
    }
    panels
}

/// The lines of a panel, in the order in which methods are listed.
fn lines(rows: &[&Row], point: impl Fn(&Row) -> (f64, f64), growing: bool) -> Vec<Series> {
    panels(rows, |row| row.method.clone())
        .into_iter()
        .map(|(method, mut rows)| {
            rows.sort_by_key(|row| row.chunk);
            Series {
                safe: rows.iter().all(|row| row.safe),
                points: rows.iter().map(|row| point(row)).collect(),
                method,
                growing,
            }
        })
        .collect()
}

fn highest(series: &[Series], of: impl Fn(&(f64, f64)) -> f64) -> f64 {
    series.iter().flat_map(|series| &series.points).map(of).fold(0.0, f64::max)
}

fn engines(rows: &[Row]) -> anyhow::Result<String> {
    let panels = panels(rows, |row| {
        let cold = if row.cold { ", cold" } else { "" };
        let more = if row.more { ", more follows" } else { "" };
        format!(
            "{}, {}, {}{cold}{more}",
            row.path,
            units::streams(row.streams),
            units::bytes(row.size)
        )
    });
    let named: Vec<_> = rows.iter().map(|row| (row.method.clone(), row.safe)).collect();
    let mut text = key(&named);
    text.push_str("<h3>Throughput against total CPU (up and left is better; larger marks, larger calls)</h3>\n<div class=\"plots\">\n");
    for (name, rows) in &panels {
        let series = lines(rows, |row| (row.total_cpu_s_per_gb, row.gb_per_s), true);
        let axes = Axes {
            title: name.clone(),
            x: ("CPU seconds a GB, sender and receiver", 0.0, highest(&series, |p| p.0) * 1.08),
            y: ("GB/s", highest(&series, |p| p.1)),
            x_label: &|x| format!("{x:.1}"),
            x_labels: 8,
        };
        text.push_str(&linear(&axes, &series, None)?);
    }
    text.push_str("</div>\n<h3>Total CPU, as a ratio to sendfile(2), by the size of a call (lower is better)</h3>\n<div class=\"plots\">\n");
    for (name, rows) in &panels {
        let chunks: Vec<u64> =
            rows.iter().map(|row| row.chunk).collect::<BTreeSet<_>>().into_iter().collect();
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let place = |chunk: u64| chunks.iter().position(|c| *c == chunk).unwrap_or(0) as f64;
        let series = lines(rows, |row| (place(row.chunk), row.total_cpu_ratio), false);
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let end = chunks.len() as f64 - 0.7;
        let label = |x: &f64| {
            let chunk = chunks.iter().find(|chunk| (place(**chunk) - x).abs() < 1e-6);
            chunk.map_or(String::new(), |chunk| units::bytes(*chunk))
        };
        let axes = Axes {
            title: name.clone(),
            x: ("bytes a call", -0.3, end),
            y: ("total CPU, ratio", highest(&series, |p| p.1).max(1.0)),
            x_label: &label,
            x_labels: 2 * chunks.len() + 1,
        };
        text.push_str(&linear(&axes, &series, Some(1.0))?);
    }
    Ok(text + "</div>\n")
}

/// Returns the place of a percentile on the axis: its number of nines.
fn nines(percentile: f64) -> f64 {
    if percentile >= 100.0 { MAX } else { -(1.0 - percentile / 100.0).log10() }
}

/// The place of the largest value on that axis.
const MAX: f64 = 3.5;

fn latency(rows: &[LatencyRow]) -> anyhow::Result<String> {
    let named: Vec<_> = rows.iter().map(|row| (row.method.clone(), row.safe)).collect();
    let mut text = key(&named);
    text.push_str("<div class=\"plots\">\n");
    let panels =
        panels(rows, |row| format!("{}: {}, {}", row.until, row.path, units::bytes(row.size)));
    let label = |x: &f64| match *x {
        x if x.abs() < 1e-6 => "0 %".into(),
        x if (x - 1.0).abs() < 1e-6 => "90 %".into(),
        x if (x - 2.0).abs() < 1e-6 => "99 %".into(),
        x if (x - 3.0).abs() < 1e-6 => "99.9 %".into(),
        x if (x - MAX).abs() < 1e-6 => "max".into(),
        _ => String::new(),
    };
    for (name, rows) in panels {
        let series: Vec<_> = rows
            .iter()
            .map(|row| Series {
                method: row.method.clone(),
                safe: row.safe,
                // A logarithmic axis has no 0.
                points: row.curve.iter().map(|[p, t]| (nines(*p), t.max(0.1))).collect(),
                growing: false,
            })
            .collect();
        let top = highest(&series, |p| p.1) * 1.5;
        let axes = Axes {
            title: name,
            x: ("share of the sends", 0.0, MAX),
            y: ("microseconds", top),
            x_label: &label,
            x_labels: 8,
        };
        text.push_str(&drawn(|area| {
            let y = (0.1..top).log_scale();
            let mut chart = builder(area, &axes).build_cartesian_2d(0.0..MAX, y)?;
            mesh(&mut chart, &axes, &|y| format!("{y}"))?;
            series.iter().try_for_each(|series| series.draw(&mut chart))
        })?);
    }
    Ok(text + "</div>\n")
}
