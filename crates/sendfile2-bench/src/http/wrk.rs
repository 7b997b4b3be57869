//! wrk, the client of the HTTP benchmark.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde::Deserialize;
use tempfile::NamedTempFile;

use super::spawn;

/// The script by which wrk prints its summary in the end, as JSON.
const SCRIPT: &str = r#"
done = function(summary, latency, requests)
    local e = summary.errors
    io.write(string.format('\nRESULT {"requests":%.0f,"bytes":%.0f,"micros":%.0f,"errors":%.0f}\n',
        summary.requests, summary.bytes, summary.duration,
        e.connect + e.read + e.write + e.status + e.timeout))
end
"#;

/// The seconds that a sample takes.
const SECONDS: u32 = 1;

/// The program wrk, and what each run of it needs.
#[derive(Debug)]
pub(crate) struct Wrk {
    script: NamedTempFile,
    /// The processor that it runs on.
    cpu: Option<usize>,
}

/// The counts of a run, as the script prints them.
#[derive(Debug, Deserialize)]
struct Summary {
    requests: u64,
    bytes: u64,
    /// The time that the run took, in microseconds.
    micros: u64,
    errors: u64,
}

/// One measurement of a server, of which each has one a round.
#[derive(Debug)]
pub(crate) struct Sample {
    summary: Summary,
    /// The CPU time of the server, in seconds.
    server: f64,
    /// The CPU time of wrk, in seconds.
    client: f64,
}

impl Wrk {
    /// Finds wrk, which is to run on the processor `cpu` if that is given.
    pub(crate) fn find(cpu: Option<usize>) -> anyhow::Result<Self> {
        // wrk exits with an error for this option; that it starts is all that is asked.
        Command::new("wrk").arg("--version").output().context(
            "wrk, which makes the requests, does not start (Debian: apt-get install wrk)",
        )?;
        let mut script = NamedTempFile::new().context("cannot make a file for wrk")?;
        script.write_all(SCRIPT.as_bytes())?;
        Ok(Wrk { script, cpu })
    }

    /// Runs wrk for a sample: each connection requests the path again and again of the server, whose
    /// seconds of CPU `cpu` returns.
    pub(crate) fn run(
        &self,
        address: SocketAddr,
        path: &str,
        connections: u32,
        cpu: impl Fn() -> anyhow::Result<f64>,
    ) -> anyhow::Result<Sample> {
        let mut command = Command::new("wrk");
        command.args(["-t1", "-c", &connections.to_string(), "-d", &format!("{SECONDS}s")]);
        command.args(["--timeout", "60s", "-s"]).arg(self.script.path());
        command.arg(format!("http://{address}{path}")).stdout(Stdio::piped());
        let before = (cpu()?, cpu_of_children()?);
        let output = spawn(&mut command, self.cpu)?.wait_with_output().context("wrk")?;
        let (server, client) = (cpu()? - before.0, cpu_of_children()? - before.1);
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find_map(|line| line.strip_prefix("RESULT "));
        let line = line.with_context(|| format!("wrk failed: {text}"))?;
        let summary: Summary = serde_json::from_str(line)?;
        ensure!(summary.errors == 0, "{} of wrk's requests failed", summary.errors);
        ensure!(summary.bytes > 0, "wrk received nothing");
        Ok(Sample { summary, server, client })
    }
}

/// Returns the CPU time of the child processes that have ended, in seconds.
#[expect(clippy::cast_precision_loss, reason = "ticks of a run")]
fn cpu_of_children() -> anyhow::Result<f64> {
    let stat = procfs::process::Process::myself()?.stat()?;
    Ok((stat.cutime + stat.cstime) as f64 / procfs::ticks_per_second() as f64)
}

#[expect(clippy::cast_precision_loss, reason = "a sample is short")]
impl Sample {
    fn seconds(&self) -> f64 {
        self.summary.micros as f64 / 1e6
    }

    fn gb(&self) -> f64 {
        self.summary.bytes as f64 / 1e9
    }

    pub(crate) fn requests_per_s(&self) -> f64 {
        self.summary.requests as f64 / self.seconds()
    }

    pub(super) fn gb_per_s(&self) -> f64 {
        self.gb() / self.seconds()
    }

    /// Returns the CPU time of the server, in microseconds a request.
    pub(crate) fn server_cpu_of_request(&self) -> f64 {
        self.server * 1e6 / self.summary.requests as f64
    }

    /// Returns the CPU time of server and client together, in microseconds a request.
    pub(crate) fn total_cpu_of_request(&self) -> f64 {
        (self.server + self.client) * 1e6 / self.summary.requests as f64
    }

    /// Returns the CPU time of the server, in seconds a GB.
    pub(super) fn server_cpu(&self) -> f64 {
        self.server / self.gb()
    }

    /// Returns the CPU time of server and client together, in seconds a GB.
    pub(super) fn total_cpu(&self) -> f64 {
        (self.server + self.client) / self.gb()
    }
}
