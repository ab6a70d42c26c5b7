//! GoBGP: its configuration, and `gobgp -j` as values. It has no BFD and leaves the kernel's table alone.
//!
//! After a session that its neighbour ended it rests for 30 s, whatever its file says of that.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    Family, Injected, Neighbour, Route, RouterConfig, Session, SessionState,
    daemons::{Daemons, Recipe},
};

pub(super) fn recipe(config: &RouterConfig) -> Result<Recipe> {
    let asks_for_bfd = config.neighbours.iter().any(|neighbour| neighbour.bfd.is_some());
    ensure!(!asks_for_bfd && config.bfd_peers.is_empty(), "GoBGP has no BFD");
    Ok(Recipe {
        prepare: String::new(),
        files: vec![("/run/gobgpd.toml", text(config))],
        daemons: vec![(
            None,
            "gobgpd -t toml -f /run/gobgpd.toml --api-hosts 127.0.0.1:50051".to_owned(),
        )],
    })
}

fn text(config: &RouterConfig) -> String {
    let mut text = format!(
        "[global.config]\nas = {}\nrouter-id = \"{}\"\n",
        config.asn, config.router_id
    );
    for each in &config.neighbours {
        text += &neighbour(each);
    }
    text
}

fn neighbour(neighbour: &Neighbour) -> String {
    let scope = neighbour
        .interface
        .as_ref()
        .map_or_else(String::new, |name| format!("%{name}"));
    let mut text = format!(
        "[[neighbors]]
[neighbors.config]
neighbor-address = \"{}{scope}\"
peer-as = {}
",
        neighbour.address, neighbour.asn
    );
    if let Some(password) = &neighbour.password {
        text += &format!("auth-password = \"{password}\"\n");
    }
    text += &format!(
        "[neighbors.timers.config]
connect-retry = 1
hold-time = {}
keepalive-interval = {}
[neighbors.transport.config]
passive-mode = {}
",
        neighbour.hold_time,
        (neighbour.hold_time / 3).max(1),
        neighbour.passive
    );
    if let Some(local) = neighbour.local {
        text += &format!("local-address = \"{local}\"\n");
    }
    if let Some(hops) = neighbour.multihop {
        text += &format!("[neighbors.ebgp-multihop.config]\nenabled = true\nmultihop-ttl = {hops}\n");
    }
    if neighbour.graceful_restart {
        text += "[neighbors.graceful-restart.config]\nenabled = true\nhelper-only = true\nrestart-time = 120\n";
    }
    for family in &neighbour.families {
        text += &format!(
            "[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{}-unicast\"\n",
            family.word()
        );
        if neighbour.graceful_restart {
            text += "[neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true\n";
        }
    }
    text
}

/// Announces what the configuration injects: GoBGP has no file for it.
pub(super) fn inject(daemons: &Daemons, config: &RouterConfig) -> Result<()> {
    for injected in &config.inject {
        let words = words(injected);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        daemons.ask(&words)?;
    }
    Ok(())
}

fn words(injected: &Injected) -> Vec<String> {
    let family = if Family::V4.holds(&injected.prefix) {
        Family::V4
    } else {
        Family::V6
    };
    let mut words: Vec<String> = ["gobgp", "global", "rib", "add"].map(ToOwned::to_owned).into();
    words.extend([injected.prefix.to_string(), "-a".to_owned(), family.word().to_owned()]);
    words.extend(["origin".to_owned(), "igp".to_owned()]);
    if let Some(next_hop) = injected.next_hop {
        words.extend(["nexthop".to_owned(), next_hop.to_string()]);
    }
    let communities: Vec<String> = injected
        .communities
        .iter()
        .map(|(high, low)| format!("{high}:{low}"))
        .collect();
    if !communities.is_empty() {
        words.extend(["community".to_owned(), communities.join(",")]);
    }
    let large: Vec<String> = injected
        .large_communities
        .iter()
        .map(|(a, b, c)| format!("{a}:{b}:{c}"))
        .collect();
    if !large.is_empty() {
        words.extend(["large-community".to_owned(), large.join(",")]);
    }
    if let Some(med) = injected.med {
        words.extend(["med".to_owned(), med.to_string()]);
    }
    words
}

fn gobgp(daemons: &Daemons, question: &str) -> Result<Value> {
    let mut words = vec!["gobgp", "-j"];
    words.extend(question.split(' '));
    let text = daemons.ask(&words)?;
    if text.trim().is_empty() || text.trim() == "null" {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).with_context(|| format!("`gobgp {question}` said {text}"))
}

pub(super) fn sessions(daemons: &Daemons) -> Result<BTreeMap<IpAddr, Session>> {
    parse_sessions(&gobgp(daemons, "neighbor")?)
}

fn parse_sessions(value: &Value) -> Result<BTreeMap<IpAddr, Session>> {
    let mut sessions = BTreeMap::new();
    for neighbour in value.as_array().into_iter().flatten() {
        let address = neighbour["conf"]["neighbor_address"]
            .as_str()
            .context("a neighbour without address")?;
        // apipb.PeerState.SessionState: unknown, then the states in RFC 4271's order.
        let state = match neighbour["state"]["session_state"].as_u64() {
            None | Some(0 | 1) => SessionState::Idle,
            Some(2) => SessionState::Connect,
            Some(3) => SessionState::Active,
            Some(4) => SessionState::OpenSent,
            Some(5) => SessionState::OpenConfirm,
            Some(6) => SessionState::Established,
            Some(other) => bail!("state of {address}: {other}"),
        };
        let bare = address.split('%').next().unwrap_or(address);
        let bare = bare.parse().with_context(|| format!("neighbour {address}"))?;
        let last_error = None;
        sessions.insert(bare, Session { state, last_error });
    }
    Ok(sessions)
}

pub(super) fn routes(daemons: &Daemons, family: Family) -> Result<Vec<Route>> {
    parse_routes(&gobgp(daemons, &format!("global rib -a {}", family.word()))?)
}

fn parse_routes(value: &Value) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for (prefix, paths) in value.as_object().into_iter().flatten() {
        let paths = paths.as_array().with_context(|| format!("paths to {prefix}"))?;
        for path in paths {
            // What it announces itself has no neighbour.
            let Some(from) = path["neighbor-ip"].as_str() else {
                continue;
            };
            let bare = from.split('%').next().unwrap_or(from);
            let mut route = Route {
                prefix: prefix.parse().with_context(|| format!("prefix {prefix}"))?,
                from: Some(bare.parse().with_context(|| format!("neighbour {from}"))?),
                best: path["best"] == true,
                stale: path["stale"] == true,
                next_hops: BTreeSet::new(),
                as_path: Vec::new(),
                communities: BTreeSet::new(),
                large_communities: BTreeSet::new(),
                local_pref: None,
                med: None,
            };
            for attribute in list(&path["attrs"]) {
                read_attribute(&mut route, attribute).with_context(|| format!("attribute {attribute}"))?;
            }
            routes.push(route);
        }
    }
    Ok(routes)
}

/// By the attributes' numbers in the registry of BGP path attributes.
fn read_attribute(route: &mut Route, attribute: &Value) -> Result<()> {
    let number = |value: &Value| -> Result<u32> { Ok(u32::try_from(value.as_u64().context("no number")?)?) };
    match attribute["type"].as_u64() {
        Some(2) => {
            let segments = list(&attribute["as_paths"]);
            route.as_path = segments
                .flat_map(|segment| list(&segment["asns"]))
                .map(number)
                .collect::<Result<_>>()?;
        }
        Some(3 | 14) => {
            let next_hop = attribute["nexthop"].as_str().context("no next hop")?;
            route
                .next_hops
                .insert(next_hop.parse().with_context(|| format!("next hop {next_hop}"))?);
        }
        Some(4) => route.med = Some(number(&attribute["metric"])?),
        Some(5) => route.local_pref = Some(number(&attribute["value"])?),
        Some(8) => {
            for community in list(&attribute["communities"]) {
                let [a, b, c, d] = number(community)?.to_be_bytes();
                route
                    .communities
                    .insert((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])));
            }
        }
        Some(32) => {
            for community in list(&attribute["value"]) {
                let part = |name: &str| number(&community[name]);
                route
                    .large_communities
                    .insert((part("ASN")?, part("LocalData1")?, part("LocalData2")?));
            }
        }
        _ => {}
    }
    Ok(())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_gobgp_3_10_are_read() -> Result<()> {
        let text = r#"{"2001:db8:1::/48":[{"nlri":{"prefix":"2001:db8:1::/48"},"best":true,"attrs":[{"type":1,"value":0},
            {"type":2,"as_paths":[{"segment_type":2,"num":1,"asns":[65001,4200000000]}]},{"type":8,"communities":[4259905613]},
            {"type":4,"metric":7},{"type":5,"value":200},
            {"type":32,"value":[{"ASN":65001,"LocalData1":1,"LocalData2":2}]},
            {"type":14,"nexthop":"fd00::1","afi":2,"safi":1,"value":[]}],"stale":false,"source-id":"10.0.0.1","neighbor-ip":"10.0.0.1"}],
            "2001:db8:3::/48":[{"best":true,"attrs":[{"type":14,"nexthop":"fd00::3"}],"stale":false}]}"#;
        let routes = parse_routes(&serde_json::from_str(text)?)?;
        let [route] = routes.as_slice() else {
            panic!("{routes:?}")
        };
        assert_eq!(route.prefix, "2001:db8:1::/48".parse()?);
        assert_eq!(route.from, Some([10, 0, 0, 1].into()));
        assert!(route.best && !route.stale);
        assert_eq!(route.next_hops, ["fd00::1".parse()?].into());
        assert_eq!(route.as_path, [65_001, 4_200_000_000]);
        assert_eq!(route.communities, [(65_001, 77)].into());
        assert_eq!(route.large_communities, [(65_001, 1, 2)].into());
        assert_eq!((route.local_pref, route.med), (Some(200), Some(7)));
        let sessions = r#"[{"conf":{"neighbor_address":"10.0.0.1"},"state":{"session_state":6}},
            {"conf":{"neighbor_address":"fe80::1%eth0"},"state":{}}]"#;
        let sessions = parse_sessions(&serde_json::from_str(sessions)?)?;
        assert_eq!(sessions[&[10, 0, 0, 1].into()].state, SessionState::Established);
        assert_eq!(sessions[&"fe80::1".parse()?].state, SessionState::Idle);
        Ok(())
    }
}
