//! VIPs and their options.
//!
//! Never drops a VIP silently: one that cannot be is an error, one without backends must say `backends: []`.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    address,
    problem::Problem,
    read::{At, Spot},
    sets::{Pool, Sets},
    words::{Kind, LaterMode, Quoted},
};
use crate::{
    desired::{Limits, Protocol, Rate, TooBig, Vip, VipKey, keeps_datagrams},
    schedule::{AFFINITY_S, MAX_AFFINITY_S, Scheduler},
};

/// Every VIP of a file.
#[derive(Debug, Default)]
pub(super) struct Vips {
    /// Those without errors.
    pub(super) vips: BTreeMap<VipKey, Vip>,
    /// Where every VIP address stands first, that of VIPs with errors too.
    pub(super) addresses: BTreeMap<IpAddr, Spot>,
    /// Where every VIP stands first, those with errors too.
    pub(super) spots: BTreeMap<VipKey, Spot>,
}

impl Vips {
    /// `vips`.
    pub(super) fn read(&mut self, at: &At<'_>, sets: &mut Sets) -> Option<()> {
        for at in at.list()? {
            if let Some((key, vip)) = self.vip(&at, sets) {
                self.vips.insert(key, vip);
            }
        }
        Some(())
    }

    fn vip(&mut self, vip: &At<'_>, sets: &mut Sets) -> Option<(VipKey, Vip)> {
        vip.fields(|fields| {
            let address = fields.required("address").and_then(|at| {
                let address = address::unicast(&at)?;
                self.addresses.entry(address).or_insert_with(|| at.spot().clone());
                Some(address)
            });
            let protocol = fields.required("protocol").and_then(|at| protocol(&at));
            let port = fields.required("port").and_then(|at| at.within(1, u16::MAX));
            let key = match (address, protocol, port) {
                (Some(address), Some(protocol), Some(port)) => self.unique(
                    vip,
                    VipKey {
                        address,
                        protocol,
                        port,
                    },
                ),
                (_, _, _) => None,
            };
            let mode = fields.or("mode", (), |at| mode(&at));
            let slots = fields.optional("table_slots");
            let health = fields.optional("health");
            let pool = fields
                .required("backends")
                .and_then(|at| sets.of_vip(&at, slots, health));
            let limits = fields.or("limits", Limits::default(), |at| limits(&at, protocol));
            let allowed_sources = fields.or("allowed_sources", None, |at| allowed_sources(&at).map(Some));
            let too_big = fields.or("too_big", TooBig::default(), |at| too_big(&at));
            let clamp_mss = fields.or("clamp_mss", false, |at| clamp_mss(&at, protocol));
            let scheduler = fields.or("scheduler", Scheduler::default(), |at| scheduler(&at));
            let affinity = fields.or("affinity", Affinity::None, |at| affinity(&at, scheduler));
            // Who counts flows, or remembers clients, must know of each.
            let records = scheduler.is_some_and(Scheduler::counts) || matches!(affinity, Some(Affinity::Remembered(_)));
            let keeps = fields.or("keep_datagrams", records || port.is_none_or(keeps_datagrams), |at| {
                keep_datagrams(&at, protocol, records)
            });
            mode?;
            let (affinity, keeps) = (affinity?, keeps?);
            let Pool { set, checks } = pool?;
            let allowed_sources = allowed_sources?.map(Into::into);
            Some((
                key?,
                Vip {
                    set,
                    base: None,
                    limits: limits?,
                    allowed_sources,
                    too_big: too_big?,
                    clamp_mss: clamp_mss?,
                    client_affinity: affinity == Affinity::Hashed,
                    scheduler: scheduler?,
                    affinity_timeout_s: match affinity {
                        Affinity::None | Affinity::Hashed => None,
                        Affinity::Remembered(seconds) => Some(seconds),
                    },
                    each_datagram: !keeps,
                    keeps_datagrams: keeps,
                    checks,
                },
            ))
        })
    }

    fn unique(&mut self, at: &At<'_>, vip: VipKey) -> Option<VipKey> {
        if let Some(first) = self.spots.get(&vip) {
            return at.fail(Problem::DuplicateVip {
                vip,
                first: first.to_string(),
            });
        }
        self.spots.insert(vip, at.spot().clone());
        Some(vip)
    }
}

fn protocol(at: &At<'_>) -> Option<Protocol> {
    match at.text()? {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => at.fail(Problem::LaterProtocol),
        other => at.fail(Problem::NotOneOf {
            value: Quoted::new(other),
            allowed: &["tcp", "udp"],
        }),
    }
}

/// There is one mode that works, so a VIP does not carry it.
fn mode(at: &At<'_>) -> Option<()> {
    match at.text()? {
        "DsrIpip" => Some(()),
        "DsrGue" => at.fail(Problem::LaterMode {
            mode: LaterMode::DsrGue,
        }),
        "DsrL2" => at.fail(Problem::LaterMode { mode: LaterMode::DsrL2 }),
        "NodePortNat" => at.fail(Problem::LaterMode {
            mode: LaterMode::NodePortNat,
        }),
        other => at.fail(Problem::NotOneOf {
            value: Quoted::new(other),
            allowed: &["DsrIpip"],
        }),
    }
}

fn too_big(at: &At<'_>) -> Option<TooBig> {
    match at.text()? {
        "fragment" => Some(TooBig::Fragment),
        "answer" => Some(TooBig::Answer),
        other => at.fail(Problem::NotOneOf {
            value: Quoted::new(other),
            allowed: &["fragment", "answer"],
        }),
    }
}

fn clamp_mss(at: &At<'_>, protocol: Option<Protocol>) -> Option<bool> {
    let clamp = at.bool()?;
    if clamp && protocol == Some(Protocol::Udp) {
        return at.fail(Problem::ClampOfUdp);
    }
    Some(clamp)
}

fn keep_datagrams(at: &At<'_>, protocol: Option<Protocol>, records: bool) -> Option<bool> {
    if protocol == Some(Protocol::Tcp) {
        return at.fail(Problem::DatagramsOfTcp);
    }
    let keeps = at.bool()?;
    if records && !keeps {
        return at.fail(Problem::DatagramsUnknown);
    }
    Some(keeps)
}

/// `affinity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Affinity {
    None,
    /// By a hash of the client's address.
    Hashed,
    /// By what is remembered of clients, for so many seconds.
    Remembered(u32),
}

fn affinity(at: &At<'_>, scheduler: Option<Scheduler>) -> Option<Affinity> {
    if at.kind() == Kind::Map {
        return at.fields(|fields| {
            let of_client = fields.required("client_ip");
            of_client?.fields(|fields| {
                let timeout = fields.or("timeout_s", AFFINITY_S, |at| at.within(1, MAX_AFFINITY_S));
                Some(Affinity::Remembered(timeout?))
            })
        });
    }
    match at.text()? {
        "none" => Some(Affinity::None),
        "client_ip" => match scheduler {
            None | Some(Scheduler::Maglev | Scheduler::SourceHash) => Some(Affinity::Hashed),
            Some(scheduler) => at.fail(Problem::AffinityOfScheduler {
                scheduler: scheduler.name(),
            }),
        },
        other => at.fail(Problem::NotOneOf {
            value: Quoted::new(other),
            allowed: &["none", "client_ip"],
        }),
    }
}

fn scheduler(at: &At<'_>) -> Option<Scheduler> {
    let name = at.text()?;
    match Scheduler::named(name) {
        Some(scheduler) => Some(scheduler),
        None => at.fail(Problem::NotOneOf {
            value: Quoted::new(name),
            allowed: &Scheduler::NAMES,
        }),
    }
}

fn limits(at: &At<'_>, protocol: Option<Protocol>) -> Option<Limits> {
    at.fields(|fields| {
        let mut rate = |rate_key, burst_key| {
            let per_second = fields.optional(rate_key);
            let burst = fields.optional(burst_key);
            if let (Some(at), Some(Protocol::Udp), "syns_per_second_per_cpu") = (&per_second, protocol, rate_key) {
                at.note(Problem::SynsOfUdp);
            }
            let Some(per_second) = per_second else {
                return match burst {
                    Some(at) => at.fail(Problem::BurstWithoutRate { rate: rate_key }),
                    None => Some(None),
                };
            };
            let per_second = per_second.within(1, u32::MAX);
            let burst = burst.map_or(Some(None), |at| at.within(1, u32::MAX).map(Some));
            let (per_second, burst) = (per_second?, burst?);
            // As much as a second brings: a limit that is new does not punish what was within it.
            Some(Some(Rate {
                per_second,
                burst: burst.unwrap_or(per_second),
            }))
        };
        let packets = rate("packets_per_second_per_cpu", "packets_burst");
        let syns = rate("syns_per_second_per_cpu", "syns_burst");
        Some(Limits {
            packets: packets?,
            syns: syns?,
        })
    })
}

fn allowed_sources(at: &At<'_>) -> Option<Vec<IpNet>> {
    let networks = address::networks(at)?;
    if networks.is_empty() {
        return at.fail(Problem::EmptyList {
            hint: "it would let nobody in; remove the key to let everybody in",
        });
    }
    Some(networks)
}
