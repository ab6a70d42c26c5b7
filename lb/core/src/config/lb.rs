//! The LB node's file: `vipline run --config FILE`; with `--kube`, what of it is this node's own.
//!
//! Never lists the node's own addresses and never reads the seed's file: the daemon does.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use ipnet::IpNet;
use xdp_prog::abi::feature;

use super::{
    BgpConfig, Capacity, ConfigErrors, Encap, Interface, L2Config, Seed, SlowPathConfig, TransitConfig, Warning,
    address, bgp,
    capacity::{self, MAX_CAPACITY_BACKENDS, MAX_CAPACITY_VIPS},
    encap, health, interface, l2, metrics,
    problem::Problem,
    read::{Fields, Spot},
    read_file, seed,
    sets::Sets,
    slow_path, socket_path, transit, tunnel,
    vips::Vips,
};
use crate::{announce::Told, desired::Desired, plan, ranges::RangeSet};

/// Default of [`LbConfig::control_socket`].
pub const DEFAULT_LB_SOCKET: &str = "/run/vipline/lb.sock";

/// Everything that an LB node's file says, checked as far as a file alone can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LbConfig {
    /// Where client packets arrive, and where encapsulated ones may leave. At least one, each once.
    pub interfaces: Vec<Interface>,
    /// Where the flow hash's seed comes from.
    pub seed: Seed,
    /// Where outer headers come from.
    pub encap: Encap,
    /// What is dropped whatever VIP it is for.
    pub protection: Protection,
    /// Room in the maps.
    pub capacity: Capacity,
    /// Who does what the fast path leaves alone.
    pub slow_path: SlowPathConfig,
    /// Whether flows are kept where they live when backends change.
    pub transit: TransitConfig,
    /// Which VIP addresses this node answers for.
    pub l2: L2Config,
    /// Which routers are told of VIP addresses; `None`: none.
    pub bgp: Option<BgpConfig>,
    /// What a cluster says of announcing; nothing, where a file does.
    pub told: Arc<Told>,
    /// Where `/metrics` is; `None`: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Unix socket of the CLI. An absolute path.
    pub control_socket: PathBuf,
    /// What the tables should say. `own_addresses` and the tunnel's `locals` are empty: the daemon fills them.
    pub desired: Desired,
    /// Named backend sets that no VIP uses.
    pub unused_sets: Vec<String>,
    /// [`feature`] bits that stay on although nothing asks for them at the moment: in a cluster, a Service with source ranges that
    /// comes and goes must not swap the program each time. A file has none.
    pub kept_features: u64,
}

/// Drops that do not depend on the VIP. The deny-list is [`Desired::denied_sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Drop sources that cannot be on the Internet (RFC 1122 3.2.1.3, RFC 4291 2.5).
    pub drop_martians: bool,
    /// Drop packets whose source is the VIP they are sent to ("LAND").
    pub drop_source_is_vip: bool,
}

impl Default for Protection {
    /// Both on.
    fn default() -> Self {
        Self {
            drop_martians: true,
            drop_source_is_vip: true,
        }
    }
}

impl LbConfig {
    /// Reads a file's text.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, in the order of the file.
    pub fn parse(yaml: &str) -> Result<Self, ConfigErrors> {
        read_file(yaml, |at| at.fields(|fields| lb(fields, Says::Everything)))
    }

    /// Reads the text of a file for `--kube`: this node's own settings. VIPs, backends and the seed come from the cluster, and a file
    /// that has them is refused. Without `interfaces`, [`Self::interfaces`] is empty: the daemon takes that of the default route.
    ///
    /// # Errors
    ///
    /// As [`Self::parse`].
    pub fn parse_kube(yaml: &str) -> Result<Self, ConfigErrors> {
        read_file(yaml, |at| at.fields(|fields| lb(fields, Says::OwnSettings)))
    }

    /// What [`Self::parse_kube`] makes of a file that says nothing.
    pub fn kube() -> Self {
        Self {
            interfaces: Vec::new(),
            seed: Seed::Cluster,
            encap: Encap::default(),
            protection: Protection::default(),
            capacity: Capacity::KUBE,
            slow_path: SlowPathConfig::default(),
            transit: TransitConfig::default(),
            l2: L2Config::default(),
            bgp: None,
            told: Arc::default(),
            metrics_listen: None,
            control_socket: DEFAULT_LB_SOCKET.into(),
            desired: Desired::default(),
            unused_sets: Vec::new(),
            kept_features: 0,
        }
    }

    /// The [`feature`] bits that this configuration uses: what is not used is dead code in the program.
    ///
    /// [`feature::REDIRECT`] is on with more than one interface.
    pub fn features(&self) -> u64 {
        let prefix = match self.encap {
            Encap::Node { .. } => false,
            Encap::Prefix { .. } => true,
        };
        [
            (self.protection.drop_martians, feature::DROP_MARTIANS),
            (self.protection.drop_source_is_vip, feature::DROP_SOURCE_IS_VIP),
            (self.interfaces.len() > 1, feature::REDIRECT),
            (prefix, feature::SOURCE_PREFIX),
            (self.slow_path.enabled, feature::SLOW_PATH),
            (self.transit.enabled, feature::TRANSIT),
        ]
        .into_iter()
        .fold(
            plan::features(&self.desired) | self.kept_features,
            |features, (on, bit)| {
                if on { features | bit } else { features }
            },
        )
    }

    /// What is allowed and should be said loudly all the same.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = interface::warnings(&self.interfaces);
        warnings.extend(
            self.unused_sets
                .iter()
                .map(|name| Warning::UnusedSet { name: name.clone() }),
        );
        let without_backend = |set: &crate::desired::BackendSet| set.members.iter().all(|member| member.weight == 0);
        let vips = self.desired.vips.iter().filter(|(_, vip)| without_backend(&vip.set));
        warnings.extend(vips.map(|(vip, _)| Warning::NoBackend { vip: *vip }));
        if !self.l2.owned.is_empty() {
            let owns_one = self.desired.vips.keys().any(|vip| self.l2.owns(vip.address));
            warnings.extend((!owns_one).then_some(Warning::OwnsNoVip));
            warnings.extend((!self.slow_path.enabled).then_some(Warning::OwnedUnanswered));
        }
        let peers = self.bgp.iter().flat_map(|bgp| &bgp.peers);
        let contradictory = peers.filter(|peer| peer.bfd.is_some() && peer.session.restart_time_s.is_some());
        warnings.extend(contradictory.map(|peer| Warning::BfdEndsGracefulRestart {
            peer: Arc::clone(&peer.name),
        }));
        warnings
    }

    /// Keys in which `new` differs and that only new workers of the slow path take on: a live reload starts them anew, and what
    /// they hold meanwhile is lost. Empty where none is running before or after.
    pub fn slow_path_restarts(&self, new: &Self) -> Vec<&'static str> {
        let (old, new) = (&self.slow_path, &new.slow_path);
        let both = old.enabled && new.enabled;
        let differs = [
            (old.mode != new.mode, "slow_path.mode"),
            (old.busy_poll_us != new.busy_poll_us, "slow_path.busy_poll_us"),
            (old.cpus != new.cpus, "slow_path.cpus"),
            (
                old.frames_per_queue != new.frames_per_queue,
                "slow_path.frames_per_queue",
            ),
        ];
        let differs = differs.into_iter().filter(|(differs, _)| both && *differs);
        differs.map(|(_, key)| key).collect()
    }

    /// Keys in which `new` differs and that are fixed for the life of the process: a live reload cannot change them. What it
    /// does about the others is [`super::reload::decide`]'s.
    pub fn differs_fixed(&self, new: &Self) -> Vec<&'static str> {
        let mut differs = Vec::new();
        differs.extend((self.interfaces != new.interfaces).then_some("interfaces"));
        differs.extend((self.control_socket != new.control_socket).then_some("control_socket"));
        differs
    }
}

/// How much a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Everything,
    /// VIPs, backends and the seed come from the cluster.
    OwnSettings,
}

fn lb(fields: &mut Fields<'_>, says: Says) -> Option<LbConfig> {
    let (interfaces, seed, default_capacity) = match says {
        Says::Everything => {
            let interfaces = fields.required("interfaces").and_then(|at| interface::interfaces(&at));
            (interfaces, seed::seed(fields), Capacity::default())
        }
        Says::OwnSettings => {
            fields.refuse(&[
                ("seed", "the Secret vipline-flow-seed"),
                ("seed_file", "the Secret vipline-flow-seed"),
            ]);
            let interfaces = fields.or("interfaces", Vec::new(), |at| interface::interfaces(&at));
            (interfaces, Some(Seed::Cluster), Capacity::KUBE)
        }
    };
    let mut encap_spot = fields.spot().absent("encap");
    let encap = fields.or("encap", Encap::default(), |at| {
        encap_spot = at.spot().clone();
        encap::encap(&at)
    });
    let protection = fields.or("protection", (Protection::default(), Vec::new()), |at| {
        at.fields(|fields| {
            let drop_martians = fields.or("drop_martians", true, |at| at.bool());
            let drop_source_is_vip = fields.or("drop_source_is_vip", true, |at| at.bool());
            let denied_sources = fields.or("denied_sources", Vec::new(), |at| address::networks(&at));
            let (drop_martians, drop_source_is_vip) = (drop_martians?, drop_source_is_vip?);
            Some((
                Protection {
                    drop_martians,
                    drop_source_is_vip,
                },
                denied_sources?,
            ))
        })
    });
    let capacity = fields.or("capacity", default_capacity, |at| {
        capacity::capacity(&at, default_capacity)
    });
    let control_socket = fields.or("control_socket", DEFAULT_LB_SOCKET.into(), |at| socket_path(&at));
    let slow_path = fields.or("slow_path", SlowPathConfig::default(), |at| slow_path::slow_path(&at));
    let transit = fields.or("transit", TransitConfig::default(), |at| transit::transit(&at));
    let l2 = fields.or("l2", L2Config::default(), |at| l2::l2(&at));
    let bgp = fields.or("bgp", None, |at| bgp::bgp(&at).map(Some));
    let metrics_listen = fields.or("metrics", None, |at| metrics::listen(&at).map(Some));
    let mut sets = Sets::default();
    let mut vips = Vips::default();
    let tunnel = match says {
        Says::Everything => {
            let tunnel = fields.or("tunnel", None, |at| tunnel::tunnel(&at).map(Some));
            if let Some(at) = fields.optional("health") {
                sets.health = health::defaults(&at).unwrap_or_default();
            }
            if let Some(at) = fields.optional("backend_sets") {
                sets.read_named(&at);
            }
            if let Some(at) = fields.required("vips") {
                vips.read(&at, &mut sets);
                // Counted where they are, errors and all: too many is too many.
                if let Some(capacity) = &capacity {
                    over_capacity(fields, at.spot(), capacity, &vips, &sets);
                }
            }
            tunnel
        }
        Says::OwnSettings => {
            fields.refuse(&[
                ("backend_sets", "VipTables and NodeSets"),
                ("health", "VipTables"),
                ("vips", "VipTables"),
            ]);
            fields.or("tunnel", None, |at| tunnel::own_tunnel(&at).map(Some))
        }
    };
    no_address_twice(fields, &encap_spot, encap.as_ref(), &vips, &sets);
    if transit.is_some_and(|transit| !transit.enabled) {
        for (key, vip) in &vips.vips {
            if vip.is_scheduled()
                && let Some(spot) = vips.spots.get(key)
            {
                fields.note(spot, Problem::RecordsOff);
            }
        }
    }

    let (protection, denied_sources) = protection?;
    let (capacity, tunnel) = (capacity?, tunnel?);
    let desired = Desired {
        backends: sets.to_desired(),
        departed: std::collections::BTreeMap::new(),
        gone: BTreeSet::new(),
        vips: vips.vips,
        denied_sources,
        own_addresses: BTreeSet::new(),
        tunnel,
    };
    let ranges = all_ranges(&desired);
    if ranges > capacity.ranges as usize {
        return fields.fail_at(
            "capacity",
            Problem::RangesOverCapacity {
                ranges,
                capacity: capacity.ranges,
            },
        );
    }
    Some(LbConfig {
        interfaces: interfaces?,
        seed: seed?,
        encap: encap?,
        protection,
        capacity,
        slow_path: slow_path?,
        transit: transit?,
        l2: l2?,
        bgp: bgp?,
        told: Arc::default(),
        metrics_listen: metrics_listen?,
        control_socket: control_socket?,
        desired,
        unused_sets: sets.unused(),
        kept_features: 0,
    })
}

fn over_capacity(fields: &Fields<'_>, spot: &Spot, capacity: &Capacity, vips: &Vips, sets: &Sets) {
    let counts = [
        (
            vips.spots.len(),
            "VIPs",
            "capacity.vips",
            capacity.vips,
            MAX_CAPACITY_VIPS,
        ),
        (
            sets.backends().count(),
            "backends",
            "capacity.backends",
            capacity.backends,
            MAX_CAPACITY_BACKENDS,
        ),
    ];
    for (count, what, key, capacity, most) in counts {
        if count > capacity as usize {
            fields.note(
                spot,
                Problem::OverCapacity {
                    count,
                    what,
                    key,
                    capacity,
                    most,
                },
            );
        }
    }
}

/// A backend that is a VIP address would get its own packets back; an outer source that is one would not be this node's own.
fn no_address_twice(fields: &Fields<'_>, encap_spot: &Spot, encap: Option<&Encap>, vips: &Vips, sets: &Sets) {
    for (_, address, spot) in sets.backends() {
        if let Some(vip) = vips.addresses.get(&address) {
            fields.note(
                spot,
                Problem::BackendIsVip {
                    address,
                    vip: vip.to_string(),
                },
            );
        }
    }
    let Some(encap) = encap else { return };
    match encap {
        Encap::Node { source_v4, source_v6 } => {
            let sources = [
                ("source_v4", source_v4.map(IpAddr::V4)),
                ("source_v6", source_v6.map(IpAddr::V6)),
            ];
            for (key, source) in sources {
                if let Some(address) = source
                    && let Some(vip) = vips.addresses.get(&address)
                {
                    fields.note(
                        &encap_spot.absent(key),
                        Problem::SourceIsVip {
                            address,
                            vip: vip.to_string(),
                        },
                    );
                }
            }
        }
        Encap::Prefix { v4, v6 } => {
            let backends = sets.backends().map(|(_, address, spot)| (address, spot));
            for (address, spot) in vips
                .addresses
                .iter()
                .map(|(address, spot)| (*address, spot))
                .chain(backends)
            {
                if let Some(prefix) = encap.prefixes().find(|prefix| prefix.contains(&address)) {
                    fields.note(spot, Problem::InSourcePrefix { address, prefix });
                }
            }
            for (missing, key, family) in [(v4.is_none(), "prefix_v4", "IPv4"), (v6.is_none(), "prefix_v6", "IPv6")] {
                let of_family = |address: IpAddr| address.is_ipv4() == (family == "IPv4");
                if missing && let Some((backend, ..)) = sets.backends().find(|(_, address, _)| of_family(*address)) {
                    let problem = Problem::NoPrefixForBackend {
                        backend: backend.to_string(),
                        family,
                    };
                    fields.note(&encap_spot.absent(key), problem);
                }
            }
        }
    }
}

/// Places that all lists together take in `RANGES`: equal ones share theirs.
fn all_ranges(desired: &Desired) -> usize {
    let mut lists: BTreeSet<&[IpNet]> = desired
        .vips
        .values()
        .filter_map(|vip| vip.allowed_sources.as_deref())
        .collect();
    lists.insert(&desired.denied_sources);
    if let Some(tunnel) = &desired.tunnel {
        lists.extend([&*tunnel.sources, &*tunnel.vip_prefixes, &*tunnel.denied_inner_sources]);
    }
    let sets: BTreeSet<RangeSet> = lists.into_iter().map(RangeSet::from_cidrs).collect();
    sets.iter().map(RangeSet::padded_len).sum()
}
