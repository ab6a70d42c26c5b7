//! Where a flow would go.

use std::net::SocketAddr;

use lb_core::{desired::Protocol, nexthop::NextHopView};

use super::tables::Tables;
use crate::control::ExplainView;

pub(super) fn explain(
    _tables: &Tables,
    _view: &NextHopView,
    _ingress: u32,
    _protocol: Protocol,
    _source: SocketAddr,
    _destination: SocketAddr,
) -> anyhow::Result<ExplainView> {
    anyhow::bail!("the planner is not there yet")
}
