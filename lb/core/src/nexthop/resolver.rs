//! Which routes to look up again, and what the view says. Never decides about one interface or neighbour itself.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;

use super::{
    Address, Command, Event, Link, NextHopView, RouteAnswer, Settings, Unresolved,
    links::Links,
    neighbours::{Key, Neighbours, Outcome},
};
use crate::desired::{BackendId, NextHop, Via};

/// Route lookups of one step; the rest follows in the next one. Their answers fit the driver's receive buffer.
pub const LOOKUPS_PER_STEP: usize = 64;
/// Least time between two passes over what changed. The first change is followed up at once; a storm of them costs one pass
/// per gap. It is the debounce: well below the 50 ms that an endpoint change may take.
pub const PASS_GAP: Duration = Duration::from_millis(10);

/// Turns what the kernel says into next hops. Silent until the first [`Event::Snapshot`].
///
/// Drive it so: feed what happened, call [`Resolver::step`], carry out the commands, feed the answers, and again until a step
/// returns nothing; then wait for the next event or for [`Resolver::deadline`].
///
/// Work is bounded: a route change asks only about backends inside its prefix, an interface change only about backends behind
/// it (all, for a configured one), and all changes within [`PASS_GAP`] share one pass. A pass costs one route lookup per
/// distinct backend address at most; backends behind the same gateway share its neighbour entry.
#[derive(Debug, Default)]
pub struct Resolver {
    settings: Settings,
    backends: BTreeMap<BackendId, IpAddr>,
    /// What the kernel last said of each distinct backend address.
    routes: BTreeMap<IpAddr, Option<RouteAnswer>>,
    links: Links,
    addresses: BTreeMap<Key, Address>,
    neighbours: Neighbours,
    /// To look up in the next pass, in this one, and asked without an answer yet.
    dirty: BTreeSet<IpAddr>,
    pass: VecDeque<IpAddr>,
    asked: BTreeSet<IpAddr>,
    /// No pass begins before.
    next_pass: Duration,
    synced: bool,
    /// Something changed that the view does not say yet.
    stale: bool,
    view: NextHopView,
}

impl Resolver {
    /// A resolver without backends.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            ..Self::default()
        }
    }

    /// Replaces the settings.
    pub fn set_settings(&mut self, settings: Settings) {
        if self.settings != settings {
            self.settings = settings;
            self.mark_all();
        }
    }

    /// Replaces the backends. What is known of addresses that stay is kept.
    pub fn set_backends(&mut self, backends: BTreeMap<BackendId, IpAddr>) {
        if self.backends == backends {
            return;
        }
        self.backends = backends;
        let wanted: BTreeSet<IpAddr> = self.backends.values().copied().collect();
        self.routes.retain(|destination, _| wanted.contains(destination));
        self.dirty.retain(|destination| wanted.contains(destination));
        for destination in wanted {
            if let Entry::Vacant(new) = self.routes.entry(destination) {
                new.insert(None);
                self.dirty.insert(destination);
            }
        }
        self.stale = true;
    }

    /// Takes in what the kernel said.
    pub fn apply(&mut self, event: Event, now: Duration) {
        match event {
            Event::Snapshot(snapshot) => {
                self.links.replace(snapshot.links);
                self.addresses = snapshot
                    .addresses
                    .into_iter()
                    .map(|a| ((a.ifindex, a.address), a))
                    .collect();
                self.neighbours.replace(snapshot.neighbours, now);
                self.synced = true;
                self.mark_all();
            }
            Event::Link(link) => self.link_changed(link),
            Event::LinkGone(ifindex) => {
                let all = self.links.is_egress(ifindex, &self.settings.interfaces);
                if self.links.remove(ifindex) {
                    self.neighbours.forget_link(ifindex);
                    self.addresses.retain(|(on, _), _| *on != ifindex);
                    self.mark_behind(ifindex, all);
                }
            }
            Event::Address(address) => {
                let key = (address.ifindex, address.address);
                // Router advertisements refresh lifetimes all the time, and every pod brings a link-local address.
                if self.addresses.insert(key, address) != Some(address) && !is_link_local(address.address) {
                    self.mark_family(address.address);
                }
            }
            Event::AddressGone(ifindex, address) => {
                if self.addresses.remove(&(ifindex, address)).is_some() && !is_link_local(address) {
                    self.mark_family(address);
                }
            }
            Event::RoutesChanged(prefix) => self.mark_prefix(prefix),
            Event::Route { destination, answer } => self.answered(destination, answer, now),
            Event::Neighbour(seen) => {
                self.stale |= self.neighbours.see((seen.ifindex, seen.address), Some(seen), now);
            }
            Event::NeighbourGone(ifindex, address) => {
                self.stale |= self.neighbours.see((ifindex, address), None, now);
            }
        }
    }

    /// Packets wait for this backend's next hop: it is asked for again now and not when its turn comes.
    pub fn want(&mut self, backend: &BackendId, now: Duration) {
        let Some(destination) = self.backends.get(backend) else {
            return;
        };
        match self.routes.get(destination).copied().flatten() {
            Some(RouteAnswer::Unicast { ifindex, gateway, .. }) => {
                self.neighbours.hurry((ifindex, gateway.unwrap_or(*destination)), now);
            }
            Some(RouteAnswer::Local | RouteAnswer::Refused(_)) | None => {}
        }
    }

    /// What to do now; empty when there is nothing.
    pub fn step(&mut self, now: Duration) -> Vec<Command> {
        let mut commands = Vec::new();
        if !self.synced {
            return commands;
        }
        if self.asked.is_empty() && self.pass.is_empty() && !self.dirty.is_empty() && self.next_pass <= now {
            self.pass = std::mem::take(&mut self.dirty).into_iter().collect();
        }
        if self.asked.is_empty() {
            let batch = self.pass.len().min(LOOKUPS_PER_STEP);
            for destination in self.pass.drain(..batch) {
                let source = self.settings.sources.fixed_for(destination);
                let source = source.filter(|source| self.addresses.keys().any(|(_, own)| own == source));
                self.asked.insert(destination);
                commands.push(Command::LookUpRoute { destination, source });
            }
        }
        // A view in the middle of a pass would show routes of two different moments.
        if !self.asked.is_empty() {
            return commands;
        }
        self.stale |= self.neighbours.expire(now);
        if self.stale {
            self.stale = false;
            let view = self.resolve_all();
            if view != self.view {
                self.view = view.clone();
                commands.push(Command::Changed(view));
            }
        }
        // Until every route is known, an entry of an earlier process may be needed yet.
        if self.view.complete {
            self.neighbours.commands(now, &mut commands);
        }
        commands
    }

    /// When to call [`Resolver::step`] though nothing happened.
    pub fn deadline(&self) -> Option<Duration> {
        if !self.synced || !self.asked.is_empty() {
            return None;
        }
        if self.stale || !self.pass.is_empty() {
            return Some(Duration::ZERO);
        }
        let pass = (!self.dirty.is_empty()).then_some(self.next_pass);
        let neighbours = self.neighbours.deadline().filter(|_| self.view.complete);
        pass.into_iter().chain(neighbours).min()
    }

    /// What was last reported by [`Command::Changed`].
    pub const fn view(&self) -> &NextHopView {
        &self.view
    }

    /// What to do before the end: neighbours are let go. Not called on a restart that hands over.
    pub fn stop(&mut self) -> Vec<Command> {
        self.synced = false;
        self.neighbours.release_all()
    }

    fn answered(&mut self, destination: IpAddr, answer: RouteAnswer, now: Duration) {
        if !self.asked.remove(&destination) {
            return;
        }
        if let Some(route) = self.routes.get_mut(&destination) {
            self.stale |= *route != Some(answer);
            *route = Some(answer);
        }
        if self.asked.is_empty() && self.pass.is_empty() {
            self.next_pass = now + PASS_GAP;
        }
    }

    fn link_changed(&mut self, link: Link) {
        let ifindex = link.ifindex;
        let before = self.links.is_egress(ifindex, &self.settings.interfaces);
        if self.links.insert(link) {
            let all = before || self.links.is_egress(ifindex, &self.settings.interfaces);
            self.mark_behind(ifindex, all);
        }
    }

    fn mark_all(&mut self) {
        self.stale = true;
        self.dirty.extend(self.routes.keys());
    }

    /// Marks what has its route by an interface, or `all`: the kernel says nothing of IPv4 routes that a link takes with it.
    fn mark_behind(&mut self, ifindex: u32, all: bool) {
        self.stale = true;
        let behind = |route: &Option<RouteAnswer>| match route {
            Some(RouteAnswer::Unicast { ifindex: egress, .. }) => *egress == ifindex,
            Some(RouteAnswer::Local | RouteAnswer::Refused(_)) | None => false,
        };
        let marked = self.routes.iter().filter(|(_, route)| all || behind(route));
        self.dirty.extend(marked.map(|(destination, _)| *destination));
    }

    fn mark_family(&mut self, of: IpAddr) {
        self.stale = true;
        self.dirty.extend(
            self.routes
                .keys()
                .filter(|destination| destination.is_ipv4() == of.is_ipv4()),
        );
    }

    fn mark_prefix(&mut self, prefix: Option<IpNet>) {
        match prefix {
            None => self.dirty.extend(self.routes.keys()),
            Some(net) => {
                let inside = self.routes.range(net.network()..=net.broadcast());
                self.dirty.extend(inside.map(|(destination, _)| *destination));
            }
        }
    }

    fn resolve_all(&mut self) -> NextHopView {
        let mut needed = BTreeSet::new();
        let outcomes: BTreeMap<IpAddr, Result<NextHop, Unresolved>> = self
            .routes
            .iter()
            .map(|(destination, route)| (*destination, self.resolve(*destination, *route, &mut needed)))
            .collect();
        self.neighbours.need(needed);
        let mut view = NextHopView {
            own_addresses: self
                .addresses
                .keys()
                .map(|(_, address)| *address)
                .filter(is_own)
                .collect(),
            down: self.links.down(&self.settings.interfaces),
            complete: self.routes.values().all(Option::is_some),
            ..NextHopView::default()
        };
        for (backend, destination) in &self.backends {
            let next_hop = match outcomes.get(destination) {
                Some(Ok(next_hop)) => next_hop.clone(),
                Some(Err(reason)) => {
                    view.unresolved.insert(backend.clone(), reason.clone());
                    NextHop::Unresolved
                }
                None => continue, // cannot be: every backend's address has an entry in `routes`
            };
            view.next_hops.insert(backend.clone(), next_hop);
        }
        view
    }

    fn resolve(
        &self,
        destination: IpAddr,
        route: Option<RouteAnswer>,
        needed: &mut BTreeSet<Key>,
    ) -> Result<NextHop, Unresolved> {
        let (ifindex, gateway, preferred, route_mtu) = match route.ok_or(Unresolved::NotLookedUp)? {
            RouteAnswer::Local => return Ok(NextHop::Local),
            RouteAnswer::Refused(refusal) => return Err(Unresolved::Route(refusal)),
            RouteAnswer::Unicast {
                ifindex,
                gateway,
                source,
                mtu,
            } => (ifindex, gateway, source, mtu),
        };
        let egress = self.links.egress(ifindex, &self.settings.interfaces)?;
        let source = self.settings.sources.fixed_for(destination);
        let source = source.or(preferred.filter(|source| is_source(*source, destination)));
        let source = source.or_else(|| self.source_on(ifindex, destination));
        let source = source.ok_or_else(|| Unresolved::NoSource(egress.name.clone()))?;
        let neighbour = (ifindex, gateway.unwrap_or(destination));
        needed.insert(neighbour);
        let destination_mac = match self.neighbours.outcome(neighbour) {
            Outcome::Resolved(mac) => mac,
            Outcome::Resolving => return Err(Unresolved::NeighbourResolving(neighbour.1, egress.name)),
            Outcome::Failed => return Err(Unresolved::NeighbourFailed(neighbour.1, egress.name)),
        };
        let mtu = route_mtu.map_or(egress.mtu, |mtu| mtu.min(egress.mtu));
        Ok(NextHop::Via(Via {
            ifindex: egress.ifindex,
            port: egress.port,
            destination_mac,
            source_mac: egress.source_mac,
            source,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            tags: egress.tags,
        }))
    }

    /// An address of the interface to send from, where the kernel names none.
    fn source_on(&self, ifindex: u32, destination: IpAddr) -> Option<IpAddr> {
        let on = self
            .addresses
            .values()
            .filter(|address| address.ifindex == ifindex && address.usable);
        on.map(|address| address.address)
            .find(|address| is_source(*address, destination))
    }
}

/// Whether packets to `destination` may come from `source` and be routed.
fn is_source(source: IpAddr, destination: IpAddr) -> bool {
    source.is_ipv4() == destination.is_ipv4() && !source.is_unspecified() && !is_link_local(source)
}

/// Whether others may know this node by the address.
fn is_own(address: &IpAddr) -> bool {
    !address.is_loopback() && !is_link_local(*address)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false, // 169.254.0.0/16 is routed in some fabrics
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
