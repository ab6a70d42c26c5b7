//! A loaded program with its tables, and the planner that knows what stands where.

use std::collections::BTreeMap;

use lb_core::{
    desired::{BackendId, Desired, NextHops, VipKey},
    nexthop::NextHopView,
};
use xdp_prog::{
    abi::{Config, Traffic},
    verdict::Verdict,
};

use crate::{
    control::{BackendView, VipView},
    datapath::{AttachMode, Attachment, Balancer, DatapathError},
    source::file::LbFile,
};

/// What earlier programs of this daemon counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Carried {
    verdicts: BTreeMap<Verdict, u64>,
    vips: BTreeMap<VipKey, Traffic>,
    backends: BTreeMap<BackendId, Traffic>,
}

/// How much there is.
pub(super) struct Sizes {
    pub(super) vips: usize,
    pub(super) backends: usize,
    pub(super) ready: usize,
    pub(super) tables: usize,
}

/// A loaded program with its tables.
pub(super) struct Tables {
    balancer: Balancer,
    carried: Carried,
}

impl Tables {
    pub(super) fn load(file: &LbFile, carried: Carried) -> anyhow::Result<Self> {
        let config = Config { features: file.config.features(), ..Config::EMPTY };
        Ok(Self { balancer: Balancer::load(&config, &file.config.capacity)?, carried })
    }

    pub(super) fn reach(&mut self, _desired: &Desired, _hops: &NextHops) -> anyhow::Result<usize> {
        anyhow::bail!("the planner is not there yet")
    }

    pub(super) fn attach(&self, interface: &str, mode: AttachMode) -> Result<Attachment, DatapathError> {
        self.balancer.program.attach(interface, mode)
    }

    pub(super) fn take_over(&self, attachments: &mut [Attachment], _old: &Self) -> Result<(), DatapathError> {
        for attachment in attachments {
            self.balancer.program.take_over(attachment)?;
        }
        Ok(())
    }

    pub(super) fn carry(&self) -> anyhow::Result<Carried> {
        Ok(self.carried.clone())
    }

    pub(super) fn verdicts(&self) -> anyhow::Result<Vec<(Verdict, u64)>> {
        Ok(self.balancer.counters.verdicts.read()?)
    }

    pub(super) fn vips(&self, _view: &NextHopView) -> anyhow::Result<Vec<VipView>> {
        Ok(self.carried.vips.keys().filter_map(|_| None).collect())
    }

    pub(super) fn backends(&self, _view: &NextHopView) -> anyhow::Result<Vec<BackendView>> {
        Ok(self.carried.backends.keys().filter_map(|_| None).collect())
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes { vips: 0, backends: 0, ready: 0, tables: self.carried.verdicts.len() }
    }
}
