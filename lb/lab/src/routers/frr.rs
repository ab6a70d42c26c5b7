//! FRR: zebra, bfdd and bgpd, their configuration, and vtysh's JSON as values.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    BfdSession, BfdState, BfdTimers, Family, Injected, Neighbour, Route, RouterConfig, Session, SessionState,
    daemons::{Daemons, Recipe},
};

/// Where Debian's FRR has its daemons and their sockets.
const PROGRAMS: &str = "/usr/lib/frr";
const ZEBRA: &str = "/run/frr/zserv.api";
const BFDD: &str = "/run/frr/bfdd.vty";
/// What makes a daemon stay, with no terminal on TCP.
const OPTIONS: &str = "-A 127.0.0.1 -P 0";

/// zebra first: a daemon that finds none tries again only after ten seconds.
pub(super) fn recipe(config: &RouterConfig, name: &str) -> Recipe {
    let daemon = |program: &str| format!("{PROGRAMS}/{program} -f /run/frr/{program}.conf {OPTIONS}");
    let head = format!("hostname {name}\nlog stdout\n");
    Recipe {
        prepare: "mkdir /run/frr\nchown frr:frr /run/frr".to_owned(),
        files: vec![
            ("/run/frr/zebra.conf", head.clone()),
            ("/run/frr/bfdd.conf", format!("{head}{}", bfdd(config))),
            ("/run/frr/bgpd.conf", format!("{head}{}", bgpd(config))),
        ],
        daemons: vec![
            (None, daemon("zebra")),
            (Some(ZEBRA), daemon("bfdd")),
            (Some(BFDD), daemon("bgpd")),
        ],
    }
}

fn bfdd(config: &RouterConfig) -> String {
    let mut text = "bfd\n".to_owned();
    for peer in &config.bfd_peers {
        let BfdTimers {
            min_tx_ms,
            min_rx_ms,
            multiplier,
        } = peer.timers;
        let place = match &peer.interface {
            Some(interface) => format!("local-address {} interface {interface}", peer.local),
            None => format!("multihop local-address {}", peer.local),
        };
        text += &format!(
            " peer {} {place}
  detect-multiplier {multiplier}
  transmit-interval {min_tx_ms}
  receive-interval {min_rx_ms}
 exit
",
            peer.address
        );
    }
    text + "exit\n"
}

fn bgpd(config: &RouterConfig) -> String {
    let mut text = String::new();
    for (index, injected) in config.inject.iter().enumerate() {
        text += &route_map(index, injected);
    }
    text += &format!(
        "router bgp {}
 bgp router-id {}
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 no bgp network import-check
 bgp bestpath as-path multipath-relax
",
        config.asn, config.router_id
    );
    for each in &config.neighbours {
        text += &neighbour(each);
    }
    for family in [Family::V4, Family::V6] {
        text += &format!(
            " address-family {} unicast\n  maximum-paths 8\n  maximum-paths ibgp 8\n",
            family.word()
        );
        for (index, injected) in config.inject.iter().enumerate() {
            if family.holds(&injected.prefix) {
                text += &format!("  network {} route-map injected-{index}\n", injected.prefix);
            }
        }
        for neighbour in config.neighbours.iter().filter(|each| each.families.contains(&family)) {
            text += &format!("  neighbor {} activate\n", neighbour.address);
        }
        text += " exit-address-family\n";
    }
    text + "exit\n"
}

fn route_map(index: usize, injected: &Injected) -> String {
    let mut text = format!("route-map injected-{index} permit 10\n");
    let communities: Vec<String> = injected
        .communities
        .iter()
        .map(|(high, low)| format!("{high}:{low}"))
        .collect();
    if !communities.is_empty() {
        text += &format!(" set community {}\n", communities.join(" "));
    }
    let large: Vec<String> = injected
        .large_communities
        .iter()
        .map(|(a, b, c)| format!("{a}:{b}:{c}"))
        .collect();
    if !large.is_empty() {
        text += &format!(" set large-community {}\n", large.join(" "));
    }
    if let Some(med) = injected.med {
        text += &format!(" set metric {med}\n");
    }
    text + "exit\n"
}

fn neighbour(neighbour: &Neighbour) -> String {
    let keepalive = (neighbour.hold_time / 3).max(1);
    let mut lines = vec![
        format!("remote-as {}", neighbour.asn),
        format!("timers {keepalive} {}", neighbour.hold_time),
        "timers connect 1".to_owned(),
        "advertisement-interval 0".to_owned(),
        if neighbour.graceful_restart {
            "graceful-restart-helper".to_owned()
        } else {
            "graceful-restart-disable".to_owned()
        },
    ];
    lines.extend(
        neighbour
            .interface
            .iter()
            .map(|interface| format!("interface {interface}")),
    );
    lines.extend(neighbour.local.iter().map(|local| format!("update-source {local}")));
    lines.extend(neighbour.password.iter().map(|password| format!("password {password}")));
    lines.extend(neighbour.multihop.iter().map(|hops| format!("ebgp-multihop {hops}")));
    if neighbour.passive {
        lines.push("passive".to_owned());
    }
    if neighbour.extended_next_hop {
        lines.push("capability extended-nexthop".to_owned());
    }
    lines.extend(
        neighbour
            .bfd
            .iter()
            .map(|bfd| format!("bfd {} {} {}", bfd.multiplier, bfd.min_rx_ms, bfd.min_tx_ms)),
    );
    let line = |line: &String| format!(" neighbor {} {line}\n", neighbour.address);
    lines.iter().map(line).collect()
}

fn vtysh(daemons: &Daemons, daemon: &str, question: &str) -> Result<Value> {
    let text = daemons.ask(&["vtysh", "-d", daemon, "-c", question])?;
    serde_json::from_str(&text).with_context(|| format!("`{question}` said {text}"))
}

/// Whether all three daemons do.
pub(super) fn answers(daemons: &Daemons) -> Result<()> {
    sessions(daemons)?;
    bfd_sessions(daemons)?;
    vtysh(daemons, "zebra", "show interface json").map(drop)
}

/// It runs on without the lines that it does not understand.
pub(super) fn understood(daemons: &Daemons) -> Result<()> {
    let said = daemons.said();
    let complaint = said.lines().find(|line| line.contains("on config line"));
    complaint.map_or(Ok(()), |line| {
        bail!("FRR does not understand its configuration: {line}")
    })
}

pub(super) fn sessions(daemons: &Daemons) -> Result<BTreeMap<IpAddr, Session>> {
    parse_sessions(&vtysh(daemons, "bgpd", "show bgp neighbors json")?)
}

fn parse_sessions(value: &Value) -> Result<BTreeMap<IpAddr, Session>> {
    let neighbours = value.as_object().context("neighbours")?;
    let mut sessions = BTreeMap::new();
    for (address, neighbour) in neighbours {
        let Ok(address) = address.parse() else { continue };
        let state = match neighbour["bgpState"].as_str() {
            Some("Idle" | "Clearing" | "Deleted") => SessionState::Idle,
            Some("Connect") => SessionState::Connect,
            Some("Active") => SessionState::Active,
            Some("OpenSent") => SessionState::OpenSent,
            Some("OpenConfirm") => SessionState::OpenConfirm,
            Some("Established") => SessionState::Established,
            other => bail!("state of {address}: {other:?}"),
        };
        let word = |key: &str| neighbour[key].as_str().filter(|word| !word.is_empty());
        let last_error = word("lastNotificationReason").or_else(|| word("lastResetDueTo"));
        let last_error = last_error.map(ToOwned::to_owned);
        sessions.insert(address, Session { state, last_error });
    }
    Ok(sessions)
}

pub(super) fn routes(daemons: &Daemons, family: Family) -> Result<Vec<Route>> {
    let question = format!("show bgp {} unicast json detail", family.word());
    let text = daemons.ask(&["vtysh", "-d", "bgpd", "-c", &question])?;
    if text.trim().is_empty() {
        // What an empty table is shown as.
        return Ok(Vec::new());
    }
    let value: Value = serde_json::from_str(&text).with_context(|| format!("`{question}` said {text}"))?;
    parse_routes(&value)
}

/// A prefix has an array: first what goes for all its paths, then the paths.
fn parse_routes(value: &Value) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for (prefix, paths) in value["routes"].as_object().into_iter().flatten() {
        let paths = paths.as_array().with_context(|| format!("paths to {prefix}"))?;
        for path in paths
            .iter()
            .filter(|path| path["aspath"].is_object() && path["sourced"] != true)
        {
            let prefix = prefix.parse().with_context(|| format!("prefix {prefix}"))?;
            routes.push(Route {
                prefix,
                from: path["peer"]["peerId"].as_str().and_then(|peer| peer.parse().ok()),
                best: path["bestpath"]["overall"] == true,
                stale: path["stale"] == true,
                next_hops: list(&path["nexthops"])
                    .filter_map(|hop| hop["ip"].as_str()?.parse().ok())
                    .collect(),
                as_path: list(&path["aspath"]["segments"])
                    .flat_map(|segment| list(&segment["list"]))
                    .map(number)
                    .collect::<Result<_>>()?,
                communities: list(&path["community"]["list"]).map(community).collect::<Result<_>>()?,
                large_communities: list(&path["largeCommunity"]["list"])
                    .map(large_community)
                    .collect::<Result<BTreeSet<_>>>()?,
                local_pref: path.get("locPrf").map(number).transpose()?,
                med: path.get("metric").map(number).transpose()?,
            });
        }
    }
    Ok(routes)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn number(value: &Value) -> Result<u32> {
    let number = value.as_u64().with_context(|| format!("{value} is no number"))?;
    Ok(u32::try_from(number)?)
}

/// `65001:77`, or the name of a well-known one.
fn community(value: &Value) -> Result<(u16, u16)> {
    let text = value.as_str().context("a community")?;
    Ok(match text {
        "gracefulShutdown" => (65_535, 0),
        "acceptOwn" => (65_535, 1),
        "llgrStale" => (65_535, 6),
        "noLlgr" => (65_535, 7),
        "blackhole" => (65_535, 666),
        "noExport" => (65_535, 65_281),
        "noAdvertise" => (65_535, 65_282),
        "localAs" => (65_535, 65_283),
        "noPeer" => (65_535, 65_284),
        _ => {
            let (high, low) = text.split_once(':').with_context(|| format!("community {text}"))?;
            (high.parse()?, low.parse()?)
        }
    })
}

fn large_community(value: &Value) -> Result<(u32, u32, u32)> {
    let text = value.as_str().context("a large community")?;
    let parts = text.split(':').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    ensure!(parts.len() == 3, "large community {text}");
    Ok((parts[0], parts[1], parts[2]))
}

pub(super) fn bfd_sessions(daemons: &Daemons) -> Result<BTreeMap<IpAddr, BfdSession>> {
    parse_bfd_sessions(&vtysh(daemons, "bfdd", "show bfd peers json")?)
}

fn parse_bfd_sessions(value: &Value) -> Result<BTreeMap<IpAddr, BfdSession>> {
    let mut sessions = BTreeMap::new();
    for peer in list(value) {
        let address = peer["peer"].as_str().context("a peer without address")?;
        let state = match peer["status"].as_str() {
            Some("shutdown") => BfdState::AdminDown,
            Some("down") => BfdState::Down,
            Some("init") => BfdState::Init,
            Some("up") => BfdState::Up,
            other => bail!("BFD state of {address}: {other:?}"),
        };
        // What it will send at once it is up; until then it is a packet a second.
        let interval_ms = match state {
            BfdState::Up => number(&peer["transmit-interval"])?.max(number(&peer["remote-receive-interval"])?),
            BfdState::AdminDown | BfdState::Down | BfdState::Init => 1000,
        };
        let address = address.parse().with_context(|| format!("peer {address}"))?;
        sessions.insert(
            address,
            BfdSession {
                state,
                interval_ms,
                remote_diagnostic: peer["remote-diagnostic"].as_str().map(ToOwned::to_owned),
            },
        );
    }
    Ok(sessions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_frr_8_4_are_read() -> Result<()> {
        let text = r#"{"routes": {"2001:db8:1::/48": [{"prefix":"2001:db8:1::/48","version":2,"advertisedTo":{}},
            {"aspath":{"string":"65001","segments":[{"type":"as-sequence","list":[65001, 4200000000]}],"length":1},
            "valid":true,"bestpath":{"overall":true},"metric":7,"locPrf":100,
            "community":{"list":["65001:77", "gracefulShutdown"]},"largeCommunity":{"list":["65001:1:2"]},
            "nexthops":[{"ip":"fd00::1","scope":"global"},{"ip":"fe80::1","scope":"link-local"}],
            "peer":{"peerId":"10.0.0.1","type":"external"}}],
            "2001:db8:2::/48": [{"prefix":"2001:db8:2::/48"},
            {"aspath":{"string":"Local","segments":[],"length":0},"sourced":true,"peer":{"peerId":"::"}}]}}"#;
        let routes = parse_routes(&serde_json::from_str(text)?)?;
        let [route] = routes.as_slice() else {
            panic!("{routes:?}")
        };
        assert_eq!(route.prefix, "2001:db8:1::/48".parse()?);
        assert_eq!(route.from, Some([10, 0, 0, 1].into()));
        assert!(route.best && !route.stale);
        assert_eq!(route.next_hops, ["fd00::1".parse()?, "fe80::1".parse()?].into());
        assert_eq!(route.as_path, [65_001, 4_200_000_000]);
        assert_eq!(route.communities, [(65_001, 77), (65_535, 0)].into());
        assert_eq!(route.large_communities, [(65_001, 1, 2)].into());
        assert_eq!((route.local_pref, route.med), (Some(100), Some(7)));

        let text = r#"[{"peer":"10.0.0.1","status":"up","transmit-interval":100,"remote-receive-interval":200},
            {"peer":"fd00::1","status":"shutdown","transmit-interval":100,"remote-receive-interval":200}]"#;
        let sessions = parse_bfd_sessions(&serde_json::from_str(text)?)?;
        let first = sessions[&[10, 0, 0, 1].into()].clone();
        assert_eq!((first.state, first.interval_ms), (BfdState::Up, 200));
        assert_eq!(sessions[&"fd00::1".parse()?].state, BfdState::AdminDown);

        let text = r#"{"10.0.0.1":{"bgpState":"Idle","lastResetDueTo":"BFD down received"}}"#;
        let sessions = parse_sessions(&serde_json::from_str(text)?)?;
        let session = &sessions[&[10, 0, 0, 1].into()];
        assert_eq!(session.state, SessionState::Idle);
        assert_eq!(session.last_error.as_deref(), Some("BFD down received"));
        Ok(())
    }
}
