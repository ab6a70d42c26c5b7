//! BIRD 2: its configuration, and `birdc`'s tables as values.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;

use super::{
    BfdSession, BfdState, BfdTimers, Family, Injected, Neighbour, Route, RouterConfig, Session, SessionState,
    daemons::{Daemons, Recipe},
};

pub(super) fn recipe(config: &RouterConfig) -> Recipe {
    Recipe {
        prepare: "mkdir /run/bird".to_owned(),
        files: vec![("/run/bird/bird.conf", text(config))],
        daemons: vec![(None, "bird -f -c /run/bird/bird.conf -s /run/bird/bird.ctl".to_owned())],
    }
}

fn text(config: &RouterConfig) -> String {
    let mut text = format!(
        "router id {};
log stderr {{ info, warning, error, fatal, bug, auth, remote }};
protocol device {{ scan time 1; }}
protocol direct {{ ipv4; ipv6; }}
",
        config.router_id
    );
    for family in [Family::V4, Family::V6] {
        let word = family.word();
        text += &format!(
            "protocol kernel {{ merge paths on; {word} {{ import none; export where source != RTS_DEVICE; }}; }}
protocol static injected_{word} {{
  {word};
"
        );
        for injected in config.inject.iter().filter(|injected| family.holds(&injected.prefix)) {
            text += &format!(
                "  route {} blackhole {{ {} }};\n",
                injected.prefix,
                attributes(injected)
            );
        }
        text += "}\n";
    }
    text += "protocol bfd {\n";
    for peer in &config.bfd_peers {
        let timers = timers(peer.timers);
        text += &match &peer.interface {
            Some(interface) => format!(
                "  interface \"{interface}\" {{ {timers} }};\n  neighbor {} dev \"{interface}\" local {};\n",
                peer.address, peer.local
            ),
            None => format!(
                "  multihop {{ {timers} }};\n  neighbor {} local {} multihop on;\n",
                peer.address, peer.local
            ),
        };
    }
    text += "}\n";
    text += "filter injected {\n  if source != RTS_STATIC then reject;\n";
    for injected in &config.inject {
        // One that an export filter does not set is not told to another AS.
        if let Some(med) = injected.med {
            text += &format!("  if net = {} then bgp_med = {med};\n", injected.prefix);
        }
    }
    text += "  accept;\n}\n";
    for (index, each) in config.neighbours.iter().enumerate() {
        text += &neighbour(config, each, index);
    }
    text
}

fn attributes(injected: &Injected) -> String {
    let mut text = String::new();
    for (high, low) in &injected.communities {
        text += &format!("bgp_community.add(({high},{low})); ");
    }
    for (global, first, second) in &injected.large_communities {
        text += &format!("bgp_large_community.add(({global},{first},{second})); ");
    }
    text
}

fn timers(timers: BfdTimers) -> String {
    let BfdTimers {
        min_tx_ms,
        min_rx_ms,
        multiplier,
    } = timers;
    format!("min tx interval {min_tx_ms} ms; min rx interval {min_rx_ms} ms; multiplier {multiplier};")
}

/// A `protocol bgp`, named after the neighbour's place in the configuration.
fn neighbour(config: &RouterConfig, neighbour: &Neighbour, index: usize) -> String {
    let local = neighbour.local.map_or_else(String::new, |address| address.to_string());
    let mut text = format!(
        "protocol bgp {} {{
  local {local} as {};
  neighbor {} as {};
  hold time {};
  connect delay time 1; connect retry time 1; error wait time 1, 2;
  graceful restart {}; long lived graceful restart off;
",
        name(index),
        config.asn,
        neighbour.address,
        neighbour.asn,
        neighbour.hold_time,
        if neighbour.graceful_restart { "aware" } else { "off" },
    );
    if let Some(interface) = &neighbour.interface {
        text += &format!("  interface \"{interface}\";\n");
    }
    text += &match neighbour.multihop {
        Some(hops) => format!("  multihop {hops};\n"),
        None => "  direct;\n".to_owned(),
    };
    if let Some(password) = &neighbour.password {
        text += &format!("  password \"{password}\";\n");
    }
    if neighbour.passive {
        text += "  passive on;\n";
    }
    if let Some(bfd) = neighbour.bfd {
        text += &format!("  bfd {{ {} }};\n", timers(bfd));
    }
    for family in &neighbour.families {
        let extended = match family {
            Family::V4 if neighbour.extended_next_hop => "extended next hop on; ",
            Family::V4 | Family::V6 => "",
        };
        text += &format!(
            "  {} {{ import all; export filter injected; next hop self; {extended}}};\n",
            family.word()
        );
    }
    text + "}\n"
}

fn name(index: usize) -> String {
    format!("neighbour{index}")
}

fn birdc(daemons: &Daemons, question: &str) -> Result<String> {
    let mut words = vec!["birdc", "-r", "-s", "/run/bird/bird.ctl"];
    words.extend(question.split(' '));
    daemons.ask(&words)
}

pub(super) fn sessions(daemons: &Daemons) -> Result<BTreeMap<IpAddr, Session>> {
    parse_sessions(&birdc(daemons, "show protocols all")?)
}

fn parse_sessions(text: &str) -> Result<BTreeMap<IpAddr, Session>> {
    let mut sessions = BTreeMap::new();
    let (mut state, mut last) = (None, None);
    for line in text.lines() {
        let Some((key, value)) = line.trim().split_once(": ") else {
            continue;
        };
        let value = value.trim();
        match key {
            "BGP state" => state = Some(session_state(value)?),
            "Neighbor address" => {
                let address = address(value)?;
                let state = state.take().with_context(|| format!("no state of {address}"))?;
                let last_error = None;
                sessions.insert(address, Session { state, last_error });
                last = Some(address);
            }
            "Last error" => {
                if let Some(session) = last.and_then(|last| sessions.get_mut(&last)) {
                    session.last_error = Some(value.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(sessions)
}

fn session_state(word: &str) -> Result<SessionState> {
    Ok(match word {
        "Down" | "Idle" | "Close" => SessionState::Idle,
        "Passive" | "Active" => SessionState::Active,
        "Connect" => SessionState::Connect,
        "OpenSent" => SessionState::OpenSent,
        "OpenConfirm" => SessionState::OpenConfirm,
        "Established" => SessionState::Established,
        _ => bail!("BGP state {word}"),
    })
}

/// An address that may have a scope: `fe80::1%eth0`.
fn address(text: &str) -> Result<IpAddr> {
    let bare = text.split('%').next().unwrap_or(text);
    bare.parse().with_context(|| format!("address {text}"))
}

pub(super) fn routes(daemons: &Daemons, config: &RouterConfig, family: Family) -> Result<Vec<Route>> {
    let table = match family {
        Family::V4 => "master4",
        Family::V6 => "master6",
    };
    parse_routes(&birdc(daemons, &format!("show route all table {table}"))?, config)
}

/// Paths begin with a line like `192.0.2.0/24 unicast [neighbour0 21:06:58.628 from 10.0.0.2] * (100) [AS65002i]`, without the prefix
/// from a prefix's second path on; their attributes follow, indented by a tab.
fn parse_routes(text: &str, config: &RouterConfig) -> Result<Vec<Route>> {
    let mut routes: Vec<Route> = Vec::new();
    let (mut prefix, mut wanted): (Option<IpNet>, bool) = (None, false);
    for line in text.lines() {
        if let Some(attribute) = line.strip_prefix('\t') {
            if let (true, Some(route)) = (wanted, routes.last_mut()) {
                read_attribute(route, attribute).with_context(|| format!("attribute `{attribute}`"))?;
            }
            continue;
        }
        let Some((left, right)) = line.split_once('[') else {
            continue;
        };
        if !line.starts_with(' ') {
            let first = left.split_whitespace().next().context("a line without a prefix")?;
            prefix = Some(first.parse().with_context(|| format!("prefix {first}"))?);
        }
        let protocol = right.split_whitespace().next().unwrap_or_default();
        let from = (0..config.neighbours.len()).find(|&index| name(index) == protocol);
        wanted = from.is_some();
        if let Some(from) = from {
            routes.push(Route {
                prefix: prefix.context("a path without a prefix")?,
                from: Some(config.neighbours[from].address),
                best: right.contains("] * ("),
                stale: false,
                next_hops: BTreeSet::new(),
                as_path: Vec::new(),
                communities: BTreeSet::new(),
                large_communities: BTreeSet::new(),
                local_pref: None,
                med: None,
            });
        }
    }
    Ok(routes)
}

fn read_attribute(route: &mut Route, attribute: &str) -> Result<()> {
    let Some((key, value)) = attribute.split_once(": ") else {
        return Ok(());
    };
    match key {
        "BGP.next_hop" => route.next_hops = value.split_whitespace().map(address).collect::<Result<_>>()?,
        "BGP.as_path" => route.as_path = numbers(value)?,
        "BGP.local_pref" => route.local_pref = Some(value.parse()?),
        "BGP.med" => route.med = Some(value.parse()?),
        "BGP.community" => {
            for pair in numbers::<u16>(value)?.chunks_exact(2) {
                route.communities.insert((pair[0], pair[1]));
            }
        }
        "BGP.large_community" => {
            for three in numbers::<u32>(value)?.chunks_exact(3) {
                route.large_communities.insert((three[0], three[1], three[2]));
            }
        }
        _ => {}
    }
    Ok(())
}

/// All numbers, whatever stands between them.
fn numbers<T: std::str::FromStr<Err = std::num::ParseIntError>>(text: &str) -> Result<Vec<T>> {
    text.split(|letter: char| !letter.is_ascii_digit())
        .filter(|word| !word.is_empty())
        .map(|word| word.parse().with_context(|| format!("number {word}")))
        .collect()
}

pub(super) fn bfd_sessions(daemons: &Daemons) -> Result<BTreeMap<IpAddr, BfdSession>> {
    parse_bfd_sessions(&birdc(daemons, "show bfd sessions")?)
}

/// Lines like `10.0.0.2  eth0  Up  21:07:38.369  0.100  0.300`.
fn parse_bfd_sessions(text: &str) -> Result<BTreeMap<IpAddr, BfdSession>> {
    let mut sessions = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [peer, _, state, .., interval, _] = words.as_slice() else {
            continue;
        };
        let Ok(peer) = address(peer) else { continue };
        let state = match *state {
            "AdminDown" => BfdState::AdminDown,
            "Down" => BfdState::Down,
            "Init" => BfdState::Init,
            "Up" => BfdState::Up,
            _ => bail!("BFD state {state}"),
        };
        let (seconds, thousandths) = interval.split_once('.').context("an interval without a point")?;
        let interval_ms = seconds.parse::<u32>()? * 1000 + thousandths.parse::<u32>()?;
        sessions.insert(
            peer,
            BfdSession {
                state,
                interval_ms,
                remote_diagnostic: None,
            },
        );
    }
    Ok(sessions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_bird_2_0_12_are_read() -> Result<()> {
        let config = RouterConfig::new(65_001, [10, 0, 0, 1].into())
            .neighbour(Neighbour::new([10, 0, 0, 2].into(), 65_002))
            .neighbour(Neighbour::new("fd00::3".parse()?, 65_003));
        let text = "BIRD 2.0.12 ready.\nAccess restricted\nTable master4:
198.51.100.0/24      blackhole [injected_ipv4 21:06:57.456] * (200)
\tType: static univ
192.0.2.0/24         unicast [neighbour0 21:06:58.628] * (100) [AS65002i]
\tvia 10.0.0.2 on eth0
\tBGP.as_path: 65002
\tBGP.next_hop: 10.0.0.2
\tBGP.local_pref: 100
\tBGP.community: (65002,5) (65535,0)
\tBGP.large_community: (65002, 5, 6) (1, 2, 3)
                     unicast [neighbour1 21:06:58.630 from fd00::3] (100) [AS65003i]
\tvia fd00::3 on eth0
\tBGP.as_path: 65003 {65002 4200000000}
\tBGP.next_hop: fd00::3 fe80::3
\tBGP.med: 7
10.0.0.0/24          unicast [direct1 21:06:57.462] * (240)
\tdev eth0
";
        let routes = parse_routes(text, &config)?;
        let [first, second] = routes.as_slice() else {
            panic!("{routes:?}")
        };
        assert!(first.best && !second.best);
        assert_eq!(first.prefix, second.prefix);
        assert_eq!(first.from, Some([10, 0, 0, 2].into()));
        assert_eq!(first.communities, [(65_002, 5), (65_535, 0)].into());
        assert_eq!(first.large_communities, [(65_002, 5, 6), (1, 2, 3)].into());
        assert_eq!((first.local_pref, first.med), (Some(100), None));
        assert_eq!(second.from, Some("fd00::3".parse()?));
        assert_eq!(second.next_hops, ["fd00::3".parse()?, "fe80::3".parse()?].into());
        assert_eq!(second.as_path, [65_003, 65_002, 4_200_000_000]);
        assert_eq!((second.local_pref, second.med), (None, Some(7)));

        let text =
            "neighbour0 BGP        ---        up     21:06:57.528  Established\n  BGP state:          Established
    Neighbor address: 10.0.0.2\n    Neighbor AS:      65002
neighbour1 BGP        ---        start  21:06:57.528  Active\n  BGP state:          Active
    Neighbor address: fe80::3%eth0\n    Last error:       Received: Peer de-configured\n";
        let sessions = parse_sessions(text)?;
        assert_eq!(sessions[&[10, 0, 0, 2].into()].state, SessionState::Established);
        let second = &sessions[&"fe80::3".parse()?];
        assert_eq!(second.state, SessionState::Active);
        assert_eq!(second.last_error.as_deref(), Some("Received: Peer de-configured"));

        let text = "bfd1:\nIP address                Interface  State      Since         Interval  Timeout
10.0.0.2                  eth0       Up         21:07:38.369    0.100    0.300
fd00::3                   ---        Down       21:07:21.399    1.000    0.000\n";
        let sessions = parse_bfd_sessions(text)?;
        assert_eq!(sessions.len(), 2);
        let first = sessions[&[10, 0, 0, 2].into()].clone();
        assert_eq!((first.state, first.interval_ms), (BfdState::Up, 100));
        assert_eq!(sessions[&"fd00::3".parse()?].interval_ms, 1000);
        Ok(())
    }
}
