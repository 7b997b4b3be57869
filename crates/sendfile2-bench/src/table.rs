//! Results as tables, for terminals and for markdown.

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, TableComponent, presets};

use super::result::{
    CacheRow, CrowdRow, Figure, GuardRow, HttpRow, LatencyRow, MemoryRow, Row, Rows, Saved,
};
use crate::{output, units};

/// Returns a result as text for a terminal: the table, and the notes.
pub(super) fn text(saved: &Saved) -> String {
    let mut text = plain(rows(&saved.rows)) + "\n";
    for paragraph in notes(saved) {
        text.push_str(&textwrap::fill(&paragraph, output::width()));
        text.push('\n');
    }
    text
}

/// Returns a table as text for a terminal.
pub(super) fn plain(mut table: Table) -> String {
    table
        .load_preset(presets::UTF8_HORIZONTAL_ONLY)
        .remove_style(TableComponent::HorizontalLines)
        .remove_style(TableComponent::MiddleIntersections)
        // Where colours are not wanted, they are taken out when it is printed.
        .enforce_styling()
        .set_content_arrangement(ContentArrangement::Disabled);
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    format!("{table}\n")
}

/// Returns the rows as a table in markdown.
pub(super) fn markdown(saved: &Saved) -> String {
    let mut table = rows(&saved.rows);
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.to_string()
}

/// Returns the meaning of the columns, and the circumstances of the measurement.
pub(super) fn notes(saved: &Saved) -> Vec<String> {
    legend(&saved.rows).into_iter().map(String::from).chain(about(saved)).collect()
}

/// Returns the meaning of the columns.
fn legend(rows: &Rows) -> Vec<&'static str> {
    match rows {
        Rows::Engines(_) => vec![
            "Medians, with half the width of their 95 % confidence intervals. CPU is in seconds a GB \
             (10^9 bytes), that of the sender and that of sender and receiver together; \"x\" is the \
             ratio to sendfile(2) of the same round, and less CPU is better. Call is the bytes of one \
             call, \"+more\" if each call announced more; a \"cold\" file was not in the page cache. \"Of memory\" is the throughput as a share of that of a copy loop in \
             memory.",
            "\"Release known\" is whether the sender learns when the file may be overwritten: sendfile \
             and splice never report it; sendfile+lease needs none, as its file's writers detach it.",
            "COPIED is the share of the sends whose bytes the kernel copied before the receiver did: \
             plain copies, and zerocopy sends whose notification said COPIED. Nothing that stays on \
             one machine is zero copy, whatever it is called: the receiver always copies, and for a \
             zerocopy send the kernel copies once more when it delivers. sendfile and splice do not \
             report copies.",
            "User instructions of a send are in the JSON where the processor's counters are to be had; \
             docs/costs.md has other ways, and system calls.",
        ],
        Rows::Guard(_) => vec![
            "Nanoseconds of CPU, for sends the sender's, with half the width of the 95 % confidence \
             interval; \"x\" is the ratio to the same sends without a lease (for sendfile, to \
             sendfile(2)), in the same round. For writes: nanoseconds that passed, and the ratio to \
             direct writes between them.",
        ],
        Rows::Latency(_) => vec![
            "Microseconds from when the last byte was handed over, on an otherwise idle connection, \
             watched without a pause (resolution about 1 µs). \"Until\" is the end of the time. Released: \
             the file may be overwritten. Acknowledged: the receiver's TCP has the bytes. \"Release \
             known\" is whether the sender learns when the file may be overwritten: sendfile and splice \
             never report it.",
        ],
        Rows::Memory(_) => vec![
            "Bytes of anonymous memory that the process grew by (Anonymous in /proc/self/smaps_rollup), \
             divided by how many there were. The kernel's own memory is not in it.",
        ],
        Rows::Http(_) => vec![
            "Medians, with half the width of their 95 % confidence intervals. CPU is in seconds a GB \
             (10^9 bytes), that of the server and that of server and client together; \"x\" is the \
             ratio to nginx in the same round. Over loopback what the receiving end's TCP does is \
             counted where it was done, mostly with the server.",
        ],
        Rows::Cache(_) => vec![
            "Medians, with half the width of their 95 % confidence intervals. CPU is in microseconds a \
             request, that of the server, with all its processes, and that of server and client \
             together; \"x\" is the ratio in the same round to the better of both nginx, which is the one \
             that has 1. Over loopback what the receiving end's TCP does is counted where it was done, \
             mostly with the server.",
            "Misses: a quarter of the requests is for what nobody asked for before, and the store is \
             smaller than what is asked for, so that old answers are overwritten or deleted all the \
             time. p99 is of the hits among them; each connection waits for its answer before it asks \
             again, so that a slow server is asked less.",
            "Restart: the objects were stored one by one, by requests, in the time \"filled\"; the server was \
             killed (SIGKILL) and started again, and \"first hit\" is the time from its start until it had \
             answered one of the first objects from its store. Memory is anonymous memory for each object, \
             beyond that of an empty server: nginx keeps its index in a shared zone, which is not in it.",
        ],
        Rows::Crowd(_) => vec![
            "All clients were connected at once, and each read one file at a steady rate. Complete is \
             the number of clients that got the whole file; wrong bytes are those that differ from the \
             file. Memory is \
             what the server's resident memory grew by at most, divided by the clients: when none had \
             asked yet, and while all read. CPU is the server's share of one processor meanwhile.",
        ],
    }
}

/// Returns the machine, its load, the settings of the paths, and what was skipped.
fn about(saved: &Saved) -> Vec<String> {
    let machine = &saved.machine;
    let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
    let mut lines = vec![format!(
        "Measured on {}, {} processors, {} of memory, Linux {}, files on {}{}. A loop copies {:.1} GB/s \
         in memory and {:.1} GB/s in the cache.",
        machine.cpu,
        machine.processors,
        units::bytes(machine.memory_bytes),
        machine.kernel,
        machine.filesystem,
        machine
            .governor
            .as_ref()
            .map_or(String::new(), |governor| format!(", governor {governor}")),
        machine.memory_copy_gb_per_s,
        machine.cached_copy_gb_per_s,
    )];
    if let (Some(sender), Some(receiver)) = (machine.sender_processor, machine.receiver_processor) {
        lines.push(format!("Sender on processor {sender}, receiver on processor {receiver}."));
    }
    if let (Some(before), Some(after)) = (machine.load_before, machine.load_after) {
        let others = machine
            .others
            .map_or(String::new(), |others| format!("; others used {others:.2} processors"));
        let steal = machine.steal.map_or(String::new(), |steal| {
            format!("; the hypervisor took {:.1} % of the time", steal * 100.0)
        });
        lines.push(format!("Load average {before:.2} before, {after:.2} after{others}{steal}."));
    }
    for path in &saved.paths {
        lines.push(format!(
            "{}: {}, tcp_wmem {}, tcp_rmem {}.",
            path.path,
            or(&path.congestion_control),
            or(&path.tcp_wmem),
            or(&path.tcp_rmem)
        ));
    }
    lines.extend(saved.skipped.iter().map(|s| format!("SKIP: {}: {}", s.what, s.why)));
    lines.extend(saved.warnings.iter().map(|warning| format!("WARNING: {warning}.")));
    lines
}

/// Returns the rows as a table without a style.
pub(super) fn rows(rows: &Rows) -> Table {
    let numbers = text_columns(rows);
    match rows {
        Rows::Engines(rows) => table(
            &[
                "path",
                "streams",
                "file",
                "call",
                "method",
                "release known",
                "GB/s",
                "x",
                "sender CPU",
                "x",
                "total CPU",
                "x",
                "COPIED",
                "of memory",
                "rounds",
            ],
            numbers,
            rows.iter().map(engine_cells),
        ),
        Rows::Guard(rows) => {
            table(&["what", "ns", "x", "rounds"], numbers, rows.iter().map(guard_cells))
        }
        Rows::Latency(rows) => table(
            &[
                "path",
                "size",
                "method",
                "release known",
                "until",
                "p50",
                "p90",
                "p99",
                "p99.9",
                "max",
                "sends",
            ],
            numbers,
            rows.iter().map(latency_cells),
        ),
        Rows::Memory(rows) => {
            table(&["what", "bytes", "number"], numbers, rows.iter().map(memory_cells))
        }
        Rows::Http(rows) => table(
            &[
                "file",
                "clients",
                "server",
                "requests/s",
                "x",
                "GB/s",
                "server CPU",
                "x",
                "total CPU",
                "x",
                "rounds",
            ],
            numbers,
            rows.iter().map(http_cells),
        ),
        Rows::Cache(rows) => table(
            &[
                "load",
                "body",
                "clients",
                "server",
                "requests/s",
                "x",
                "server CPU",
                "x",
                "total CPU",
                "x",
                "p99",
                "x",
                "hits",
                "rounds",
                "filled",
                "first hit",
                "memory",
            ],
            numbers,
            rows.iter().map(cache_cells),
        ),
        Rows::Crowd(rows) => table(
            &[
                "engine",
                "clients",
                "complete",
                "wrong bytes",
                "seconds",
                "idle memory",
                "memory",
                "server CPU",
            ],
            numbers,
            rows.iter().map(crowd_cells),
        ),
    }
}

/// Returns the number of columns before the first one with numbers to compare.
pub(super) fn text_columns(rows: &Rows) -> usize {
    match rows {
        Rows::Engines(_) => 6,
        Rows::Latency(_) => 5,
        Rows::Http(_) => 3,
        Rows::Cache(_) => 4,
        Rows::Guard(_) | Rows::Memory(_) | Rows::Crowd(_) => 1,
    }
}

/// Makes a table whose columns from `numbers` on are numbers.
pub(super) fn table(
    header: &[&str],
    numbers: usize,
    rows: impl Iterator<Item = Vec<Cell>>,
) -> Table {
    let mut table = Table::new();
    table.set_header(header.iter().copied()).add_rows(rows);
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Returns a cell with `yes` in green if `good`, or with `no` in red.
pub(super) fn verdict(good: bool, yes: &str, no: &str) -> Cell {
    if good { Cell::new(yes).fg(Color::Green) } else { Cell::new(no).fg(Color::Red) }
}

/// The cell of a method that does not report the release.
pub(super) const NOT_KNOWN: &str = "NO";

/// Returns a cell that shows whether the sender learns when the file may be overwritten.
fn release_known(known: bool) -> Cell {
    verdict(known, "yes", NOT_KNOWN)
}

/// Formats a figure, with half the width of its confidence interval if it has one.
pub(super) fn figure(value: f64, interval: Option<[f64; 2]>, digits: usize) -> String {
    match interval {
        Some([low, high]) => format!("{value:.digits$} ±{:.digits$}", (high - low) / 2.0),
        None => format!("{value:.digits$}"),
    }
}

fn engine_cells(row: &Row) -> Vec<Cell> {
    let cold = if row.cold { " cold" } else { "" };
    let more = if row.more { " +more" } else { "" };
    vec![
        Cell::new(&row.path),
        Cell::new(row.streams),
        Cell::new(units::bytes(row.size) + cold),
        Cell::new(units::bytes(row.chunk) + more),
        Cell::new(&row.method),
        release_known(row.safe),
        Cell::new(figure(row.gb_per_s, row.ci.gb_per_s, 2)),
        Cell::new(format!("{:.2}", row.throughput_ratio)),
        Cell::new(figure(row.sender_cpu_s_per_gb, row.ci.sender_cpu_s_per_gb, 3)),
        Cell::new(format!("{:.2}", row.sender_cpu_ratio)),
        Cell::new(figure(row.total_cpu_s_per_gb, row.ci.total_cpu_s_per_gb, 3)),
        Cell::new(format!("{:.2}", row.total_cpu_ratio)),
        Cell::new(row.copied_share.map_or("-".into(), |share| format!("{:.0} %", share * 100.0))),
        Cell::new(format!("{:.0} %", row.memory_copy_share * 100.0)),
        Cell::new(row.rounds),
    ]
}

fn guard_cells(row: &GuardRow) -> Vec<Cell> {
    vec![
        Cell::new(&row.what),
        Cell::new(figure(row.nanoseconds, row.ci, 0)),
        Cell::new(row.ratio.map_or(String::new(), |ratio| figure(ratio, row.ratio_ci, 2))),
        Cell::new(row.rounds),
    ]
}

fn latency_cells(row: &LatencyRow) -> Vec<Cell> {
    let mut cells = vec![
        Cell::new(&row.path),
        Cell::new(units::bytes(row.size)),
        Cell::new(&row.method),
        release_known(row.safe),
        Cell::new(&row.until),
    ];
    cells.extend(
        [row.p50, row.p90, row.p99, row.p999, row.max].map(|t| Cell::new(format!("{t:.1}"))),
    );
    cells.push(Cell::new(row.sends));
    cells
}

fn memory_cells(row: &MemoryRow) -> Vec<Cell> {
    vec![Cell::new(&row.what), Cell::new(format!("{:.0}", row.bytes)), Cell::new(row.number)]
}

fn http_cells(row: &HttpRow) -> Vec<Cell> {
    let value = |f: &Figure, digits| Cell::new(figure(f.value, f.ci, digits));
    let ratio =
        |f: &Figure| Cell::new(f.ratio.map_or(String::new(), |ratio| figure(ratio, f.ratio_ci, 2)));
    vec![
        Cell::new(units::bytes(row.size)),
        Cell::new(row.connections),
        Cell::new(&row.server),
        value(&row.requests_per_s, 0),
        ratio(&row.requests_per_s),
        value(&row.gb_per_s, 2),
        value(&row.server_cpu_s_per_gb, 3),
        ratio(&row.server_cpu_s_per_gb),
        value(&row.total_cpu_s_per_gb, 3),
        ratio(&row.total_cpu_s_per_gb),
        Cell::new(row.rounds),
    ]
}

fn cache_cells(row: &CacheRow) -> Vec<Cell> {
    let both = |f: &Option<Figure>, digits| {
        let value = f.map_or(String::new(), |f| figure(f.value, f.ci, digits));
        let ratio = f.and_then(|f| Some(figure(f.ratio?, f.ratio_ci, 2)));
        [Cell::new(value), Cell::new(ratio.unwrap_or_default())]
    };
    let some = |value: Option<String>| Cell::new(value.unwrap_or_default());
    let load = match row.objects {
        Some(objects) => format!("{}, {objects} objects", row.load),
        None => row.load.clone(),
    };
    let mut cells = vec![
        Cell::new(load),
        Cell::new(units::bytes(row.size)),
        Cell::new(row.connections),
        Cell::new(&row.server),
    ];
    cells.extend(both(&row.requests_per_s, 0));
    cells.extend(both(&row.server_cpu_us_per_request, 1));
    cells.extend(both(&row.total_cpu_us_per_request, 1));
    cells.extend(both(&row.p99_us, 0));
    cells.push(some(row.hit_share.map(|share| format!("{:.0} %", share * 100.0))));
    cells.push(Cell::new(row.rounds));
    cells.push(some(row.fill_s.map(|seconds| format!("{seconds:.0} s"))));
    cells.push(some(row.first_hit_s.map(|seconds| format!("{seconds:.2} s"))));
    cells.push(some(row.bytes_per_object.map(|bytes| format!("{bytes:.0} B"))));
    cells
}

fn crowd_cells(row: &CrowdRow) -> Vec<Cell> {
    let memory = |bytes: f64| Cell::new(format!("{:.1} KiB", bytes / 1024.0));
    let complete = format!("{}", row.complete);
    vec![
        Cell::new(&row.engine),
        Cell::new(row.connections),
        verdict(row.complete == row.connections, &complete, &complete),
        verdict(row.wrong_bytes == 0, "0", &row.wrong_bytes.to_string()),
        Cell::new(format!("{:.1}", row.seconds)),
        memory(row.resident_bytes_per_idle_connection),
        memory(row.resident_bytes_per_connection),
        Cell::new(format!("{:.0} %", row.server_cpu_share * 100.0)),
    ]
}
