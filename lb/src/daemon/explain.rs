//! `vipline explain`: the program's own logic, run on the host over the live maps.

use std::net::SocketAddr;

use lb_core::{desired::Protocol, explain, nexthop::NextHopView};
use xdp_prog::{abi::BackendIndex, host::Placed};

use super::tables::Tables;
use crate::control::{ExplainView, PlacedBy};

/// Where a flow's first packet would go, coming in by interface `ingress`.
pub(super) fn explain(
    tables: &Tables,
    view: &NextHopView,
    ingress: u32,
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
) -> anyhow::Result<ExplainView> {
    let moment = (ingress, tables.jiffies.now());
    let outcome = explain::explain(tables.balancer.live(), moment, protocol, source, destination)?;
    let choice = outcome.choice;
    let vip = choice
        .and_then(|choice| tables.planner.vip_at(choice.vip))
        .and_then(|key| tables.planner.vip(&key));
    let backend = choice
        .filter(|choice| choice.backend != BackendIndex::NONE)
        .and_then(|choice| {
            tables
                .planner
                .backends()
                .find(|backend| backend.index == choice.backend)
        });
    Ok(ExplainView {
        flow: format!("{protocol} {source} -> {destination}"),
        fate: outcome.verdict.fate().name().to_owned(),
        reason: outcome.verdict.reason().to_owned(),
        meaning: outcome.verdict.describe().to_owned(),
        vip: vip.map(|vip| vip.key.to_string()),
        affinity: vip.map(|vip| vip.client_affinity.into()),
        scheduler: vip.map(|vip| vip.scheduler.name().to_owned()),
        placed_by: backend.and(choice).map(|choice| match choice.by {
            Placed::Slot => PlacedBy::Slot,
            Placed::Record => PlacedBy::Record,
            Placed::Scheduler => PlacedBy::Scheduler,
        }),
        health: None,
        slot: vip.zip(choice).map(|(vip, choice)| (vip.table.slots, choice.slot)),
        backend: backend.map(|backend| backend.id.to_string()),
        address: backend.map(|backend| backend.address),
        next_hop: backend.map(|backend| tables.next_hop(backend.id, view)),
    })
}
