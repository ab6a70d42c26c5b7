//! What the kernel forwards by, as `ip` shows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde_json::Value;

use super::Family;
use crate::Netns;

/// Next hops by prefix. Routes without a gateway (connected, blackhole) and the kernel's own are left out.
pub(super) fn routes(ns: &Netns, family: Family) -> Result<BTreeMap<IpNet, BTreeSet<IpAddr>>> {
    let flag = match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    };
    let text = ns.ip(&["-j", flag, "route", "show", "table", "main"])?;
    parse(&text, family).with_context(|| format!("`ip route` said {text}"))
}

fn parse(text: &str, family: Family) -> Result<BTreeMap<IpNet, BTreeSet<IpAddr>>> {
    let mut routes = BTreeMap::<IpNet, BTreeSet<IpAddr>>::new();
    if text.trim().is_empty() {
        return Ok(routes);
    }
    for route in serde_json::from_str::<Vec<Value>>(text)? {
        let several = route["nexthops"].as_array();
        let next_hops = several.map_or_else(|| std::slice::from_ref(&route), Vec::as_slice);
        let next_hops: BTreeSet<IpAddr> = next_hops.iter().filter_map(gateway).collect();
        if route["protocol"] == "kernel" || next_hops.is_empty() {
            continue;
        }
        let destination = route["dst"].as_str().context("a route without destination")?;
        routes
            .entry(prefix(destination, family)?)
            .or_default()
            .extend(next_hops);
    }
    Ok(routes)
}

fn gateway(hop: &Value) -> Option<IpAddr> {
    let gateway = hop["gateway"].as_str().or_else(|| hop["via"]["host"].as_str());
    gateway?.parse().ok()
}

fn prefix(text: &str, family: Family) -> Result<IpNet> {
    if text == "default" {
        let any = match family {
            Family::V4 => "0.0.0.0/0",
            Family::V6 => "::/0",
        };
        return Ok(any.parse()?);
    }
    if text.contains('/') {
        return text.parse().with_context(|| format!("destination {text}"));
    }
    let host: IpAddr = text.parse().with_context(|| format!("destination {text}"))?;
    Ok(host.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_next_hops_and_those_of_the_other_family_are_read() -> Result<()> {
        let text = r#"[{"dst":"10.0.0.0/24","dev":"eth0","protocol":"kernel"},
            {"dst":"203.0.113.1","protocol":"bird","nexthops":[{"gateway":"10.0.0.2"},{"gateway":"10.0.0.3"}]},
            {"type":"blackhole","dst":"192.0.2.0/24","protocol":"bird"},
            {"dst":"default","protocol":"static","via":{"family":"inet6","host":"fe80::1"}}]"#;
        let routes = parse(text, Family::V4)?;
        assert_eq!(routes.len(), 2);
        let hops: BTreeSet<IpAddr> = [[10, 0, 0, 2].into(), [10, 0, 0, 3].into()].into();
        assert_eq!(routes[&"203.0.113.1/32".parse()?], hops);
        assert_eq!(routes[&"0.0.0.0/0".parse()?], ["fe80::1".parse()?].into());
        Ok(())
    }
}
