//! What a figure was measured on. Never a guess: what the machine does not say is said to be unknown.

use std::{collections::BTreeMap, fs};

use lb::datapath::jiffies_per_second;
use serde::{Deserialize, Serialize};

const UNKNOWN: &str = "unknown";

/// Facts about the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Kernel release.
    pub(crate) kernel: String,
    /// CPU model.
    pub(crate) cpu: String,
    /// The processor says that it runs under a hypervisor.
    pub(crate) virtual_machine: bool,
    /// CPUs online.
    pub(crate) cpus: usize,
    /// CPUs possible: what per-CPU maps have room for.
    pub(crate) possible_cpus: usize,
    /// Caches of CPU 0, from the nearest on: `L1d 32K`.
    pub(crate) caches: Vec<String>,
    /// What the kernel says of each CPU vulnerability that concerns this machine.
    pub(crate) mitigations: BTreeMap<String, String>,
    /// Jiffies per second.
    pub(crate) hz: Option<u32>,
    /// `net.core.bpf_jit_enable`.
    pub(crate) jit: String,
    /// `net.core.bpf_jit_harden`.
    pub(crate) jit_harden: String,
    /// Load averages of 1, 5 and 15 minutes when the benchmark began: others on the machine make its figures worse.
    pub(crate) load_average: String,
}

impl Machine {
    /// This one, now.
    pub(crate) fn this() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu_line = |key: &str| {
            cpuinfo
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.trim() == key)
                .map(|(_, v)| v.trim())
        };
        let load = read("/proc/loadavg");
        Self {
            kernel: read("/proc/sys/kernel/osrelease"),
            cpu: cpu_line("model name").unwrap_or(UNKNOWN).to_owned(),
            virtual_machine: cpu_line("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            cpus: cpu_list(&read("/sys/devices/system/cpu/online")),
            possible_cpus: cpu_list(&read("/sys/devices/system/cpu/possible")),
            caches: caches(),
            mitigations: mitigations(),
            hz: jiffies_per_second().ok(),
            jit: read("/proc/sys/net/core/bpf_jit_enable"),
            jit_harden: read("/proc/sys/net/core/bpf_jit_harden"),
            load_average: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| UNKNOWN.to_owned(), |text| text.trim().to_owned())
}

/// Number of CPUs in a list like `0-3,8`; 0 where it is none.
fn cpu_list(list: &str) -> usize {
    list.split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(last.parse::<usize>().ok()? - first.parse::<usize>().ok()? + 1)
        })
        .sum()
}

fn caches() -> Vec<String> {
    let of = |index: usize, what: &str| {
        fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{what}"))
    };
    (0..8)
        .map_while(|index| {
            let (level, kind, size) = (
                of(index, "level").ok()?,
                of(index, "type").ok()?,
                of(index, "size").ok()?,
            );
            let kind = match kind.trim() {
                "Data" => "d",
                "Instruction" => "i",
                _ => "",
            };
            Some(format!("L{}{kind} {}", level.trim(), size.trim()))
        })
        .collect()
}

fn mitigations() -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let state = fs::read_to_string(entry.path()).ok()?.trim().to_owned();
            (state != "Not affected").then(|| (entry.file_name().to_string_lossy().into_owned(), state))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Machine, cpu_list};

    #[test]
    fn cpu_lists_are_counted() {
        assert_eq!(cpu_list("0"), 1);
        assert_eq!(cpu_list("0-1"), 2);
        assert_eq!(cpu_list("0-3,8,10-11"), 7);
        assert_eq!(cpu_list("unknown"), 0);
    }

    #[test]
    fn this_machine_says_what_it_is() {
        let machine = Machine::this();
        assert!(
            machine.cpus >= 1 && machine.possible_cpus >= machine.cpus,
            "{machine:?}"
        );
        assert!(machine.kernel.contains('.') && machine.hz.is_some(), "{machine:?}");
        assert_eq!(machine.load_average.split(' ').count(), 3);
    }
}
