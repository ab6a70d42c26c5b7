//! What both daemons need when a cluster tells them what to do: this node's interfaces and outer sources.
//!
//! Never asks the API server anything; that is [`crate::source::kube`]'s.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use lb_core::{
    announce::Member,
    bfd::Timers,
    config::{AttachMode, Encap, Interface, L2Config, L2Group, LbConfig, not_unicast},
    desired::{Desired, Tunnel},
    plan,
};
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        link::LinkAttribute,
        route::{RouteAttribute, RouteMessage, RouteType},
    },
};
use sd_notify::NotifyState;

use super::life;
use crate::{
    control::Answer,
    source::kube::{
        agent::Standing,
        announce::{AddressNames, Said, Shared},
        index::{Own, Snapshot},
    },
};

/// Most outer sources that an LbNode may have.
const MAX_SOURCES: usize = 16;

/// The configured interfaces, or else those of the default routes.
///
/// # Errors
///
/// When there are neither.
pub(super) async fn interfaces(configured: Vec<Interface>) -> anyhow::Result<Vec<Interface>> {
    if !configured.is_empty() {
        return Ok(configured);
    }
    let names = default_interfaces()
        .await
        .context("cannot find the default route's interface")?;
    anyhow::ensure!(
        !names.is_empty(),
        "there is no default route whose interface could be taken: list `interfaces` in a file and give it by --config"
    );
    tracing::info!(
        "no interfaces are configured: the default route's are taken: {}",
        names.join(", ")
    );
    let interface = |name: String| Interface {
        name: Arc::from(name),
        mode: AttachMode::Auto,
    };
    Ok(names.into_iter().map(interface).collect())
}

/// Names of the interfaces that default routes of the main table go out of, those of several next hops included.
async fn default_interfaces() -> anyhow::Result<Vec<String>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut indexes = BTreeSet::new();
    for message in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let mut routes = std::pin::pin!(handle.route().get(message).execute());
        while let Some(route) = routes.try_next().await? {
            if is_default(&route) {
                indexes.extend(egress(&route));
            }
        }
    }
    let mut names = BTreeMap::new();
    let mut links = std::pin::pin!(handle.link().get().execute());
    while let Some(link) = links.try_next().await? {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        if let Some(name) = name.filter(|_| indexes.contains(&link.header.index)) {
            names.insert(link.header.index, name);
        }
    }
    connection.abort();
    Ok(names.into_values().collect())
}

fn is_default(route: &RouteMessage) -> bool {
    /// `RT_TABLE_MAIN`.
    const MAIN: u32 = 254;
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let table = table.unwrap_or(u32::from(route.header.table));
    route.header.destination_prefix_length == 0 && table == MAIN && route.header.kind == RouteType::Unicast
}

fn egress(route: &RouteMessage) -> Vec<u32> {
    let of = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    };
    route.attributes.iter().flat_map(of).collect()
}

/// Outer sources of what this node sends, as CIDR blocks: its prefixes, the addresses that the file names, or all of its
/// interfaces'.
pub(super) fn tunnel_sources(config: &LbConfig) -> Vec<String> {
    let named = named_sources(&config.encap);
    let (has_v4, has_v6) = match &config.encap {
        // The other family has no source at all.
        Encap::Prefix { .. } => (true, true),
        Encap::Node { source_v4, source_v6 } => (source_v4.is_some(), source_v6.is_some()),
    };
    let mut sources: BTreeSet<IpNet> = named.into_iter().collect();
    let names: BTreeSet<&str> = config.interfaces.iter().map(|interface| &*interface.name).collect();
    let addresses = interface_addresses(&names).unwrap_or_else(|error| {
        tracing::error!("cannot list this node's addresses: {error}");
        BTreeSet::new()
    });
    let is_vip = |address: &IpAddr| config.desired.vips.keys().any(|key| key.address == *address);
    let missing = addresses
        .into_iter()
        .filter(|address| if address.is_ipv4() { !has_v4 } else { !has_v6 })
        .filter(|address| not_unicast(*address).is_none() && !is_vip(address));
    sources.extend(missing.map(IpNet::from));
    sources.iter().take(MAX_SOURCES).map(ToString::to_string).collect()
}

/// Addresses of this node with the length of their network, on these interfaces: where others on its segments hear it. Not link-local
/// ones, which say nothing to others.
pub(super) fn places(names: &BTreeSet<&str>) -> nix::Result<BTreeSet<IpNet>> {
    let of_ours = getifaddrs()?.filter(|entry| names.contains(&*entry.interface_name));
    let places = of_ours.filter_map(|entry| {
        let (address, mask) = (ip(&entry.address?)?, ip(&entry.netmask?)?);
        not_unicast(address).is_none().then_some(())?;
        IpNet::with_netmask(address, mask).ok()
    });
    Ok(places.collect())
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

fn interface_addresses(names: &BTreeSet<&str>) -> nix::Result<BTreeSet<IpAddr>> {
    let of_ours = getifaddrs()?.filter(|entry| names.contains(&*entry.interface_name));
    Ok(of_ours.filter_map(|entry| ip(&entry.address?)).collect())
}

/// Outer sources that the file names.
fn named_sources(encap: &Encap) -> Vec<IpNet> {
    match encap {
        Encap::Node { source_v4, source_v6 } => {
            let v4 = source_v4.map(|address| IpNet::from(IpAddr::V4(address)));
            let v6 = source_v6.map(|address| IpNet::from(IpAddr::V6(address)));
            v4.into_iter().chain(v6).collect()
        }
        Encap::Prefix { .. } => encap.prefixes().collect(),
    }
}

/// What tables must agree with.
pub(super) fn own(node: &Arc<str>, config: &LbConfig) -> Own {
    Own {
        node: Arc::clone(node),
        capacity: config.capacity,
        sources: named_sources(&config.encap),
        keeps_records: config.transit.enabled,
    }
}

/// What is asked of announcing, and by whom.
pub(super) struct Asks<'a> {
    /// This node's name.
    pub(super) node: &'a Member,
    /// What the cluster says.
    pub(super) said: &'a Said,
    /// By what addresses are announced.
    pub(super) names: &'a AddressNames,
}

/// What is announced, as the cluster says; and as this node's file does, where it says anything of a way.
pub(super) fn announce(config: &mut LbConfig, local: &LbConfig, asks: &Asks<'_>) {
    let names = config.interfaces.iter().map(|interface| &*interface.name).collect();
    let places = places(&names).unwrap_or_else(|error| {
        tracing::error!("cannot list this node's addresses: {error}");
        BTreeSet::new()
    });
    let Shared {
        mut told,
        members,
        probes,
    } = asks.said.told(asks.node, asks.names, &places);
    if local.bgp.is_some() {
        told.routers = None;
    } else {
        config.bgp.clone_from(&asks.said.bgp);
    }
    if is_l2_of_file(local) {
        told.segments = None;
    } else {
        let networks: BTreeSet<IpNet> = places.iter().map(IpNet::trunc).collect();
        config.l2 = L2Config {
            owned: networks.into_iter().collect(),
            probe: probes,
            // Alone, too: who comes later finds one that answers already, and goes on.
            group: (!told.is_awaited).then(|| L2Group {
                name: Arc::clone(asks.node),
                from: members
                    .iter()
                    .map(|(name, (_, ours))| (Arc::clone(name), *ours))
                    .collect(),
                others: members.into_iter().map(|(name, (theirs, _))| (name, theirs)).collect(),
                timers: Timers::default(),
            }),
        };
    }
    config.told = Arc::new(told);
}

/// Whether this node's file says which addresses it answers for on segments.
pub(super) fn is_l2_of_file(local: &LbConfig) -> bool {
    !local.l2.owned.is_empty() || local.l2.group.is_some()
}

/// This node's own settings, and what the cluster says. Features that were in use `before` stay on.
pub(super) fn compose(local: &LbConfig, snapshot: Snapshot, asks: &Asks<'_>, before: Option<&LbConfig>) -> LbConfig {
    let tunnel = snapshot.tunnel.map(|accepts| Tunnel {
        sources: accepts.sources,
        vip_prefixes: accepts.vip_prefixes,
        ..local.desired.tunnel.clone().unwrap_or_default()
    });
    let desired = Desired {
        vips: snapshot.vips,
        backends: snapshot.backends,
        departed: snapshot.departed,
        gone: snapshot.gone,
        denied_sources: local.desired.denied_sources.clone(),
        own_addresses: BTreeSet::new(),
        tunnel,
    };
    let mut config = LbConfig {
        kept_features: before.map_or(0, |before| before.kept_features | plan::features(&before.desired)),
        desired,
        ..own_part(local)
    };
    announce(&mut config, local, asks);
    config
}

/// A configuration without what it desires: cheap to copy.
fn own_part(local: &LbConfig) -> LbConfig {
    LbConfig {
        interfaces: local.interfaces.clone(),
        seed: local.seed.clone(),
        encap: local.encap.clone(),
        protection: local.protection,
        capacity: local.capacity,
        slow_path: local.slow_path.clone(),
        transit: local.transit,
        l2: local.l2.clone(),
        bgp: local.bgp.clone(),
        told: Arc::default(),
        metrics_listen: local.metrics_listen,
        control_socket: local.control_socket.clone(),
        desired: Desired::default(),
        unused_sets: Vec::new(),
        kept_features: 0,
    }
}

/// Does what needs a runtime of its own on another thread: this one has one.
///
/// # Errors
///
/// What `start` says.
pub(super) async fn off_this_thread<T, E>(start: impl FnOnce() -> Result<T, E> + Send + 'static) -> anyhow::Result<T>
where
    T: Send + 'static,
    E: Into<anyhow::Error> + Send + 'static,
{
    let started = tokio::task::spawn_blocking(start).await;
    started.context("the start was cut short")?.map_err(Into::into)
}

/// How often the service manager is told that the wait goes on, and for how long it shall have patience: systemd would call a start
/// that takes 90 s a failure.
pub(super) const STILL_WAITING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(60));

/// Refuses a question about tables or packets while there are none.
pub(super) fn not_yet(question: Answer, standing: &Standing) {
    question.with::<()>(Err(format!("nothing is served yet: {}", said(standing))));
}

/// Tells the service manager that the wait goes on.
pub(super) fn still_waiting(standing: &Standing) {
    let patience = u32::try_from(STILL_WAITING.1.as_micros()).unwrap_or(u32::MAX);
    life::tell(&[
        NotifyState::Status(&said(standing)),
        NotifyState::ExtendTimeoutUsec(patience),
    ]);
}

/// What is waited for, in a line.
fn said(standing: &Standing) -> String {
    let waits: Vec<&str> = standing.waiting.iter().map(|wait| &*wait.what).collect();
    match (&standing.trouble, waits.as_slice()) {
        (Some(trouble), []) => format!("the maps cannot take what the cluster says: {trouble}"),
        (None, []) => "the tables are being written".to_owned(),
        (_, waits) => format!("waits for {}", waits.join("; ")),
    }
}

/// What stands in the place of the file's name in the status.
pub(super) fn config_name(path: Option<&Path>) -> String {
    path.map_or_else(
        || "none (told by the cluster)".to_owned(),
        |path| path.display().to_string(),
    )
}
