//! `sendfile2 bench report`.

mod plot;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, ensure};

use super::result::{Rows, Saved};
use super::table;
use crate::args::{self, Page};
use crate::output;

pub(super) fn run(args: &args::Report) -> anyhow::Result<()> {
    let mut results = Vec::new();
    for path in &args.results {
        let saved = Saved::read(path)?;
        ensure!(!saved.rows.is_empty(), "{} has no rows", path.display());
        results.push((name(path), saved));
    }
    let (path, text) = match &args.output {
        Page::Html(path) => (path, html(&results)?),
        Page::Markdown(path) => (path, markdown(&results)),
    };
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    output::note(&format!("wrote {}", path.display()));
    Ok(())
}

/// Returns the name of a result: that of its file.
fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn heading(name: &str, saved: &Saved) -> String {
    let what = match saved.rows {
        Rows::Engines(_) => "What sending costs",
        Rows::Guard(_) => "What leases cost",
        Rows::Latency(_) => "When a send is released and acknowledged",
        Rows::Memory(_) => "What is kept in memory",
        Rows::Http(_) => "What serving by HTTP costs",
        Rows::Crowd(_) => "Many slow clients",
        Rows::Cache(_) => "What answers from a cache cost",
    };
    format!("{what} ({name})")
}

fn markdown(results: &[(String, Saved)]) -> String {
    let mut text = String::from("# sendfile2 bench\n");
    for (name, saved) in results {
        let _ = write!(text, "\n## {}\n\n{}\n", heading(name, saved), table::markdown(saved));
        for paragraph in table::notes(saved) {
            let _ = write!(text, "\n{paragraph}\n");
        }
    }
    text
}

fn html(results: &[(String, Saved)]) -> anyhow::Result<String> {
    let mut body = String::new();
    for (name, saved) in results {
        let _ = writeln!(body, "<section>\n<h2>{}</h2>", escape(&heading(name, saved)));
        body.push_str(&plot::plots(&saved.rows)?);
        for paragraph in table::notes(saved) {
            let _ = writeln!(body, "<p>{}</p>", escape(&paragraph));
        }
        let _ = writeln!(body, "<div class=\"wide\">{}</div>\n</section>", rows(saved));
    }
    let page = include_str!("report/page.html");
    Ok(page.replace("/*SERIES*/", &plot::styles()).replace("<!--BODY-->", &body))
}

/// The rows as a table.
fn rows(saved: &Saved) -> String {
    let table = table::rows(&saved.rows);
    let line = |row: &comfy_table::Row, tag: &str| {
        let mut text = String::from("<tr>");
        for (column, cell) in row.cell_iter().enumerate() {
            let content = escape(&cell.content());
            let class = match (content.as_str(), column < table::text_columns(&saved.rows)) {
                (table::NOT_KNOWN, _) => " class=\"text unsafe\"",
                (_, true) => " class=\"text\"",
                (_, false) => "",
            };
            let _ = write!(text, "<{tag}{class}>{content}</{tag}>");
        }
        text + "</tr>\n"
    };
    let head = table.header().map_or(String::new(), |row| line(row, "th"));
    let body: String = table.row_iter().map(|row| line(row, "td")).collect();
    format!("<table>\n<thead>{head}</thead>\n<tbody>{body}</tbody>\n</table>")
}

/// Text as HTML: what is in a result may come from anywhere.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
