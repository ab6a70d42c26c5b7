//! The programs of the build, through the verifier, with maps written from [`Tables`].

use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, Result, bail};
use lb::datapath::{Balancer, Capacity, Decapsulator, Mapped, PerCpu};
use xdp_prog::{abi::Traffic, verdict::Verdict};
use zerocopy::{Immutable, IntoBytes};

use super::tables::{BACKENDS, RANGES, Tables, VIPS};

/// What the program told the driver (`enum xdp_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Aborted,
    Drop,
    Pass,
    Tx,
    Redirect,
}

/// What came out of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) action: Action,
    /// The frame, with metadata in front of it where the program put some.
    pub(crate) frame: Vec<u8>,
}

/// All counters of a program, without the zeroes.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) verdicts: BTreeMap<Verdict, u64>,
    pub(crate) vips: BTreeMap<u32, (u64, u64)>,
    pub(crate) backends: BTreeMap<u32, (u64, u64)>,
}

impl Counts {
    pub(crate) fn verdict(&mut self, verdict: Verdict) {
        *self.verdicts.entry(verdict).or_default() += 1;
    }

    pub(crate) fn traffic(&mut self, vip: u32, backend: u32, bytes: u64) {
        for (counters, position) in [(&mut self.vips, vip), (&mut self.backends, backend)] {
            let counter = counters.entry(position).or_default();
            *counter = (counter.0 + 1, counter.1 + bytes);
        }
    }

    /// Packets of all verdicts.
    pub(crate) fn packets(&self) -> u64 {
        self.verdicts.values().sum()
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}; VIPs (packets, bytes) {:?}; backends {:?}",
            self.verdicts, self.vips, self.backends
        )
    }
}

/// A loaded program.
pub(crate) enum Kernel {
    Balancer(Box<Balancer>),
    Worker(Box<Decapsulator>),
}

impl Kernel {
    /// The balancer with these tables.
    pub(crate) fn balancer(tables: &Tables) -> Result<Self> {
        let capacity = Capacity {
            vips: VIPS as u32,
            backends: BACKENDS as u32 - 1,
            ranges: RANGES as u32,
            table_segments: 1,
        };
        let mut balancer = Balancer::load(&tables.config, &capacity).context("the balancer")?;
        balancer.slots.add_segment()?;
        if !tables.ports.is_empty() {
            balancer.ports.add(&tables.ports)?;
        }
        let kernel = Self::Balancer(Box::new(balancer));
        kernel.write(tables)?;
        Ok(kernel)
    }

    /// The worker node's program with these tables.
    pub(crate) fn worker(tables: &Tables) -> Result<Self> {
        let worker = Decapsulator::load(&tables.config, RANGES as u32).context("the decapsulator")?;
        let kernel = Self::Worker(Box::new(worker));
        kernel.write(tables)?;
        Ok(kernel)
    }

    /// Writes the tables into the maps of the loaded program.
    pub(crate) fn write(&self, tables: &Tables) -> Result<()> {
        match self {
            Self::Balancer(balancer) => {
                fill(&balancer.vips_v4, &tables.vips_v4)?;
                fill(&balancer.vips_v6, &tables.vips_v6)?;
                fill(&balancer.backends, &tables.backends)?;
                if balancer.vip_options.entries() > 1 {
                    fill(&balancer.vip_options, &tables.options)?;
                }
                fill(&balancer.ranges, &tables.ranges)?;
                fill(&balancer.settings, &tables.settings)?;
                for (word, value) in (0..).zip(&tables.slots) {
                    balancer.slots.store(word, *value)?;
                }
            }
            Self::Worker(worker) => {
                fill(&worker.ranges, &tables.ranges)?;
                fill(&worker.settings, &tables.settings)?;
            }
        }
        Ok(())
    }

    /// One frame, once, from the loopback device.
    pub(crate) fn run(&self, frame: &[u8]) -> Result<Ran> {
        let program = match self {
            Self::Balancer(balancer) => &balancer.program,
            Self::Worker(worker) => &worker.program,
        };
        let run = program.test_run(frame, 1)?;
        let action = match run.retval {
            0 => Action::Aborted,
            1 => Action::Drop,
            2 => Action::Pass,
            3 => Action::Tx,
            4 => Action::Redirect,
            other => bail!("{other} is no XDP action"),
        };
        Ok(Ran {
            action,
            frame: run.data_out,
        })
    }

    /// All counters.
    pub(crate) fn counts(&self) -> Result<Counts> {
        let verdicts = match self {
            Self::Balancer(balancer) => balancer.counters.verdicts.read()?,
            Self::Worker(worker) => worker.counters.read()?,
        };
        let mut counts = Counts {
            verdicts: verdicts.into_iter().filter(|&(_, packets)| packets != 0).collect(),
            ..Counts::default()
        };
        if let Self::Balancer(balancer) = self {
            counts.vips = traffic(&balancer.counters.vips)?;
            counts.backends = traffic(&balancer.counters.backends)?;
        }
        Ok(counts)
    }

    /// Counters of the verdicts alone: one system call.
    pub(crate) fn verdicts(&self) -> Result<Vec<(Verdict, u64)>> {
        Ok(match self {
            Self::Balancer(balancer) => balancer.counters.verdicts.read()?,
            Self::Worker(worker) => worker.counters.read()?,
        })
    }
}

fn fill<T: IntoBytes + Immutable>(map: &Mapped, values: &[T]) -> Result<()> {
    let words: Vec<u64> = values
        .as_bytes()
        .chunks_exact(8)
        .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
        .collect();
    Ok(map.fill(0, &words)?)
}

fn traffic(counters: &PerCpu<Traffic>) -> Result<BTreeMap<u32, (u64, u64)>> {
    let sums = counters.sums(counters.entries())?;
    Ok((0..)
        .zip(sums)
        .filter(|(_, sum)| *sum != Traffic::default())
        .map(|(at, sum)| (at, (sum.packets, sum.bytes)))
        .collect())
}
