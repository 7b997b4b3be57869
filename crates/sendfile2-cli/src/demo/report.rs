//! The demo's findings: as a table with its explanation, as JSON, and as a verdict.

use std::fmt;

use anyhow::bail;
use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, TableComponent, presets,
};
use sendfile2::Choice;
use serde::Serialize;

use super::case::{Case, Outcome, Pieces};
use crate::scratch::Scratch;
use crate::units;

/// The wait, in microseconds, above which an ACK was delayed: the kernel delays one by 40 ms at
/// least.
const DELAYED_ACK: u64 = 30_000;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    rows: Vec<Row>,
    size: u64,
    /// Bytes of a piece, which is sent and measured at a time; not known if nothing was sent.
    piece_bytes: Option<u64>,
    kernel: String,
    filesystem: String,
    directory: String,
    #[serde(skip)]
    pieces: Option<Pieces>,
    /// The receiver was in another network namespace.
    #[serde(skip)]
    elsewhere: bool,
}

/// The row of a case. The names of the fields are those of the JSON.
#[derive(Debug, Serialize)]
struct Row {
    way: &'static str,
    overwritten_at: &'static str,
    bytes: u64,
    wrong_bytes: u64,
    /// Whether no byte was wrong; unknown if nothing was sent.
    safe: Option<bool>,
    /// Median, from the return of the first send call of a piece to its release.
    micros_until_free: Option<u64>,
    micros_until_free_max: Option<u64>,
    /// Median, from when the whole piece was sent until the writer could overwrite it.
    writer_wait_micros: Option<u64>,
    writer_wait_micros_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zerocopy_sends: Option<u64>,
    /// The share of these sends that came back COPIED.
    #[serde(skip_serializing_if = "Option::is_none")]
    copied_share: Option<f64>,
    /// The engine that most of the sends took.
    #[serde(skip_serializing_if = "Option::is_none")]
    engine_taken: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    choices: Vec<Taken>,
    /// The reason why the engine does not work here.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    #[serde(skip)]
    when: &'static str,
    #[serde(skip)]
    control: bool,
}

/// An engine that was taken, why, and for how many sends.
#[derive(Debug, Serialize)]
struct Taken {
    engine: &'static str,
    why: String,
    sends: u64,
}

impl Row {
    fn new(case: Case, outcome: Outcome, size: u64) -> Self {
        let empty = Row {
            way: case.name(),
            overwritten_at: case.overwritten_at(),
            bytes: 0,
            wrong_bytes: 0,
            safe: None,
            micros_until_free: None,
            micros_until_free_max: None,
            writer_wait_micros: None,
            writer_wait_micros_max: None,
            zerocopy_sends: None,
            copied_share: None,
            engine_taken: None,
            choices: Vec::new(),
            refused: None,
            when: case.when(),
            control: case.is_control(),
        };
        match outcome {
            Outcome::Refused(reason) => Row { refused: Some(reason), ..empty },
            Outcome::Sent(measured) => Row {
                bytes: size,
                wrong_bytes: measured.wrong_bytes,
                safe: Some(measured.wrong_bytes == 0),
                micros_until_free: measured.free.map(|t| t.median),
                micros_until_free_max: measured.free.map(|t| t.longest),
                writer_wait_micros: Some(measured.wait.median),
                writer_wait_micros_max: Some(measured.wait.longest),
                zerocopy_sends: measured.zerocopy.map(|(sends, _)| sends),
                copied_share: measured.zerocopy.map(|(sends, copied)| share(copied, sends)),
                engine_taken: taken(&measured.choices),
                choices: measured
                    .choices
                    .iter()
                    .map(|(choice, sends)| Taken {
                        engine: choice.engine.name(),
                        why: choice.reason.to_string(),
                        sends: *sends,
                    })
                    .collect(),
                ..empty
            },
        }
    }

    fn cells(&self) -> Vec<Cell> {
        let time = |micros: Option<u64>| match micros {
            Some(micros) => units::micros(micros),
            None if self.safe.is_none() => String::new(),
            None => "unknown".into(),
        };
        let verdict = match self.safe {
            Some(true) => Cell::new("SAFE").fg(Color::Green).add_attribute(Attribute::Bold),
            Some(false) => Cell::new("UNSAFE").fg(Color::Red).add_attribute(Attribute::Bold),
            None => Cell::new("REFUSED").fg(Color::Yellow).add_attribute(Attribute::Bold),
        };
        let wrong = match self.safe {
            None => String::new(),
            Some(true) => "0".into(),
            Some(false) => {
                format!("{} ({})", self.wrong_bytes, percent(share(self.wrong_bytes, self.bytes)))
            }
        };
        vec![
            Cell::new(self.way),
            Cell::new(self.when),
            Cell::new(self.safe.map_or_else(String::new, |_| units::bytes(self.bytes))),
            Cell::new(wrong),
            verdict,
            Cell::new(time(self.micros_until_free)),
            Cell::new(time(self.writer_wait_micros_max)),
        ]
    }
}

/// The engine that served most of the sends.
fn taken(choices: &[(Choice, u64)]) -> Option<&'static str> {
    choices.iter().max_by_key(|(_, sends)| sends).map(|(choice, _)| choice.engine.name())
}

fn share(part: u64, whole: u64) -> f64 {
    // Both are far below 2^53.
    #[expect(clippy::cast_precision_loss, reason = "only shown")]
    let share = part as f64 / whole.max(1) as f64;
    share
}

/// Formats a share in percent, never rounded to 0 % or 100 % where it is neither.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 0.1 {
        "< 0.1 %".into()
    } else if percent > 99.9 && percent < 100.0 {
        "> 99.9 %".into()
    } else if percent.fract() == 0.0 {
        format!("{percent:.0} %")
    } else {
        format!("{percent:.1} %")
    }
}

impl Report {
    pub(super) fn new(outcomes: Vec<(Case, Outcome)>, file: &Scratch, elsewhere: bool) -> Self {
        let pieces = outcomes.iter().find_map(|(_, outcome)| match outcome {
            Outcome::Sent(measured) => Some(measured.pieces),
            Outcome::Refused(_) => None,
        });
        Report {
            rows: outcomes
                .into_iter()
                .map(|(case, outcome)| Row::new(case, outcome, file.size))
                .collect(),
            size: file.size,
            piece_bytes: pieces.map(|pieces| pieces.bytes),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            filesystem: file.filesystem.clone(),
            directory: file.directory.display().to_string(),
            pieces,
            elsewhere,
        }
    }

    /// Fails if an engine was not safe, or if nothing was proved.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        let unsafe_engines: Vec<&str> = self
            .rows
            .iter()
            .filter(|row| !row.control && row.safe == Some(false))
            .map(|row| row.way)
            .collect();
        if !unsafe_engines.is_empty() {
            bail!(
                "demo: NOT SAFE: bytes overwritten after their release, or detached, arrived changed ({}): please \
                 report this, with the output of --json",
                unsafe_engines.join(", ")
            );
        }
        if !self.control_failed() {
            bail!(
                "demo: this run proves nothing: sendfile(2) delivered every byte right though the \
                 file was overwritten when it returned, so the engines may have been lucky, too"
            );
        }
        Ok(())
    }

    /// The control at return: if not even that shows wrong bytes, this demo would not see any.
    fn control_failed(&self) -> bool {
        self.rows.iter().any(|row| row.overwritten_at == "return" && row.wrong_bytes > 0)
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table
            .load_preset(presets::UTF8_HORIZONTAL_ONLY)
            // No lines between the rows.
            .remove_style(TableComponent::HorizontalLines)
            .remove_style(TableComponent::MiddleIntersections)
            // Where colours are not wanted, they are taken out when it is printed.
            .enforce_styling()
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header([
                "Way",
                "Overwritten\nwhen",
                "Bytes",
                "Wrong bytes",
                "Verdict",
                "Free\nafter",
                "Writer\nwaited",
            ]);
        for row in &self.rows {
            table.add_row(row.cells());
        }
        for (i, column) in table.column_iter_mut().enumerate() {
            // With the space between columns, two; narrow enough for 80 columns.
            column.set_padding((0, u16::from(i < 6)));
            if [2, 3, 5, 6].contains(&i) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    /// Returns the sentences that explain the table.
    fn explanation(&self) -> Vec<String> {
        let mut text = Vec::new();
        if let Some(Pieces { number, bytes }) = self.pieces {
            text.push(format!(
                "Each way sent the file over TCP on this machine, in {number} {} of {}. Each piece \
                 was overwritten in the file, every byte of it, at the moment named; only then did \
                 the receiver read it.",
                if number == 1 { "piece" } else { "pieces" },
                units::bytes(bytes.min(self.size)),
            ));
        }
        if self.verdict().is_ok() {
            let acked = self.rows.iter().any(|r| r.overwritten_at == "acked" && r.wrong_bytes > 0);
            text.push(format!(
                "sendfile(2) queues the file's pages themselves and returns: what is overwritten \
                 then arrives changed. {}sendfile2 says when the kernel has let go (released): what \
                 is overwritten after that arrives as it was sent.{}",
                if acked {
                    "An ACK from a receiver on the same machine does not end this, as the pages are \
                     in its queue. "
                } else {
                    ""
                },
                if self.rows.iter().any(|r| r.overwritten_at == "detached" && r.bytes > 0) {
                    " Or the writer takes the piece's pages out of the page cache (detached): they \
                     stay with the packets, old bytes and all, whoever sent them, and nobody waits \
                     for the receiver."
                } else {
                    ""
                }
            ));
        }
        let mut times = String::from(
            "Free after (median over the pieces): from the return of the first send call for a \
             piece until its release; with sendfile(2) nobody tells. Writer waited (longest): from when \
             the piece was sent until it could be overwritten.",
        );
        let waited_for_ack = |row: &Row| {
            row.overwritten_at != "detached" && row.writer_wait_micros_max > Some(DELAYED_ACK)
        };
        if self.rows.iter().any(waited_for_ack) {
            times.push_str(
                " A wait of about 40 ms is a delayed ACK: the receiver does not read, so its TCP is \
                 in no hurry.",
            );
        }
        text.push(times);
        for row in &self.rows {
            if let Some(reason) = &row.refused {
                text.push(format!("{} does not work here: {reason}.", row.way));
            }
            for taken in &row.choices {
                if taken.engine != row.way {
                    let sends = if taken.sends == 1 { "send" } else { "sends" };
                    text.push(format!(
                        "{} took {} for {} {sends}: {}.",
                        row.way, taken.engine, taken.sends, taken.why
                    ));
                }
            }
        }
        let (mut sends, mut copied) = (0, 0.0);
        for row in &self.rows {
            if let (Some(n), Some(share)) = (row.zerocopy_sends, row.copied_share) {
                sends += n;
                #[expect(clippy::cast_precision_loss, reason = "only shown")]
                let of = share * n as f64;
                copied += of;
            }
        }
        if sends > 0 {
            #[expect(clippy::cast_precision_loss, reason = "only shown")]
            let share = copied / sends as f64;
            let copied = percent(share);
            text.push(if self.elsewhere {
                format!("Of the {sends} zerocopy sends here {copied} came back COPIED.")
            } else {
                format!(
                    "On loopback the kernel copies every zerocopy send when it is received \
                     ({copied} of the {sends} here came back COPIED). So this shows that a release \
                     can be trusted, not that nothing was copied: true zero copy has to be proved \
                     elsewhere, where a network card reads the file's pages."
                )
            });
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Linux {}, a file of {} on {} in {}\n",
            self.kernel,
            units::bytes(self.size),
            self.filesystem,
            self.directory
        )?;
        for line in self.table().lines() {
            writeln!(f, "{}", line.trim_end())?;
        }
        for sentence in self.explanation() {
            writeln!(f, "\n{}", textwrap::fill(&sentence, textwrap::termwidth().min(100)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sendfile2::Engine;

    use super::super::case::{Measured, Times};
    use super::*;

    fn row(case: Case, wrong_bytes: u64) -> Row {
        let times = Times { median: 1, longest: 2 };
        let measured = Measured {
            pieces: Pieces { number: 1, bytes: 100 },
            wrong_bytes,
            free: None,
            wait: times,
            zerocopy: None,
            choices: Vec::new(),
        };
        Row::new(case, Outcome::Sent(measured), 100)
    }

    fn verdict(rows: Vec<Row>) -> Result<(), String> {
        let report = Report {
            rows,
            size: 100,
            piece_bytes: None,
            kernel: String::new(),
            filesystem: String::new(),
            directory: String::new(),
            pieces: None,
            elsewhere: false,
        };
        report.verdict().map_err(|e| e.to_string())
    }

    #[test]
    fn wrong_bytes_of_the_control_only_are_a_success() {
        let rows = vec![row(Case::CONTROL, 1), row(Case::engine(Engine::Copy), 0)];
        assert_eq!(verdict(rows), Ok(()));
    }

    #[test]
    fn one_wrong_byte_of_an_engine_is_a_failure_that_names_it() {
        let rows = vec![
            row(Case::CONTROL, 100),
            row(Case::engine(Engine::Copy), 0),
            row(Case::engine(Engine::Zerocopy), 1),
        ];
        let said = verdict(rows).expect_err("unsafe");
        assert!(said.contains("(zerocopy)"), "{said}");
    }

    #[test]
    fn a_control_without_wrong_bytes_proves_nothing() {
        let rows = vec![row(Case::CONTROL, 0), row(Case::engine(Engine::Copy), 0)];
        let said = verdict(rows).expect_err("no proof");
        assert!(said.contains("proves nothing"), "{said}");
    }

    #[test]
    fn what_is_refused_is_neither_safe_nor_unsafe() {
        let refused =
            Row::new(Case::engine(Engine::Zerocopy), Outcome::Refused("because".into()), 100);
        assert_eq!((refused.safe, refused.bytes), (None, 0));
        assert_eq!(verdict(vec![row(Case::CONTROL, 100), refused]), Ok(()));
    }

    #[test]
    fn shares_are_never_rounded_to_none_or_all() {
        assert_eq!(percent(share(1, 1 << 30)), "< 0.1 %");
        assert_eq!(percent(share((1 << 30) - 1, 1 << 30)), "> 99.9 %");
        assert_eq!(percent(share(1, 3)), "33.3 %");
        assert_eq!(percent(1.0), "100 %");
    }
}
