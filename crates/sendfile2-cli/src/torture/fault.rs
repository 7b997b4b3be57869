//! The faults, and when they come.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

/// A fault that is brought about on purpose during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Fault {
    ClientKill,
    ServerKill,
    Emfile,
    Memlock,
    Optmem,
}

impl Fault {
    pub(super) const ALL: [Fault; 5] =
        [Fault::ClientKill, Fault::ServerKill, Fault::Emfile, Fault::Memlock, Fault::Optmem];

    /// Returns the fault's name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Fault::ClientKill => "client-kill",
            Fault::ServerKill => "server-kill",
            Fault::Emfile => "emfile",
            Fault::Memlock => "memlock",
            Fault::Optmem => "optmem",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The faults that `--faults` names: `none`, `all`, or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Faults(pub(super) Vec<Fault>);

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => return Ok(Faults(Vec::new())),
            "all" => return Ok(Faults(Fault::ALL.to_vec())),
            _ => {}
        }
        let one = |name| {
            Fault::ALL.into_iter().find(|fault| fault.name() == name).ok_or_else(|| {
                let all = Fault::ALL.map(Fault::name).join(", ");
                format!("no fault is called {name:?}: give none, all, or a list of {all}")
            })
        };
        let mut faults = text.split(',').map(one).collect::<Result<Vec<_>, _>>()?;
        faults.sort_unstable();
        faults.dedup();
        Ok(Faults(faults))
    }
}

/// An action of the parent at some time of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    KillClients,
    KillServer,
    Emfile,
    /// Stop the server in good order, and start one with or without the limit of 64 KiB.
    Restart {
        memlock: bool,
    },
    /// Set `net.core.optmem_max`; `None` for the value from before the run.
    Optmem(Option<u32>),
}

/// Returns the actions of a run of this length and their times, in order.
pub(super) fn schedule(faults: &[Fault], run: Duration) -> Vec<(Duration, Action)> {
    let at = |share: f64| run.mul_f64(share);
    // Once in so many seconds, within a part of the run.
    let every = |seconds: u64, from: f64, to: f64| {
        let n = u32::try_from(run.as_secs() / seconds).unwrap_or(20).clamp(2, 20);
        (0..n).map(move |i| from + (to - from) * f64::from(i) / f64::from(n))
    };
    let mut plan = Vec::new();
    for fault in faults {
        match fault {
            Fault::ClientKill => {
                plan.extend(every(3, 0.05, 1.0).map(|t| (at(t), Action::KillClients)));
            }
            Fault::Emfile => plan.push((at(0.1), Action::Emfile)),
            Fault::ServerKill => {
                plan.extend(every(10, 0.2, 0.5).map(|t| (at(t), Action::KillServer)));
            }
            Fault::Memlock => {
                plan.push((at(0.5), Action::Restart { memlock: true }));
                plan.push((at(0.65), Action::Restart { memlock: false }));
            }
            Fault::Optmem => {
                // The least there is: nothing by reference. Then a few sends for each socket.
                plan.push((at(0.7), Action::Optmem(Some(0))));
                plan.push((at(0.75), Action::Optmem(Some(4096))));
                plan.push((at(0.85), Action::Optmem(None)));
            }
        }
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named() {
        assert_eq!("none".parse(), Ok(Faults(Vec::new())));
        assert_eq!("all".parse(), Ok(Faults(Fault::ALL.to_vec())));
        let two = Faults(vec![Fault::ClientKill, Fault::Emfile]);
        assert_eq!("emfile,client-kill,emfile".parse(), Ok(two));
        let said = "emfile,fire".parse::<Faults>().expect_err("unknown");
        assert!(said.contains("fire") && said.contains("server-kill"), "{said}");
    }

    #[test]
    fn every_fault_comes_within_the_run_and_is_taken_back() {
        for seconds in [1, 30, 600] {
            let run = Duration::from_secs(seconds);
            let plan = schedule(&Fault::ALL, run);
            assert!(plan.is_sorted_by_key(|(at, _)| *at));
            assert!(plan.iter().all(|(at, _)| *at < run));
            let last =
                |find: fn(&Action) -> bool| plan.iter().rev().find(|(_, a)| find(a)).map(|p| p.1);
            assert_eq!(last(|a| matches!(a, Action::Optmem(_))), Some(Action::Optmem(None)));
            let restart = last(|a| matches!(a, Action::Restart { .. }));
            assert_eq!(restart, Some(Action::Restart { memlock: false }));
            let kills = plan.iter().filter(|(_, a)| *a == Action::KillServer).count();
            assert!((2..=20).contains(&kills), "{kills}");
        }
    }
}
