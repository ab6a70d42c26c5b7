//! Services through the API and nothing else: the operator, LB nodes, worker agents, kube-proxies that know a VIP from the status
//! only and are up to 5 s late, and a client that is not of the cluster.

mod announced;
mod joins;
mod kube_proxies;
#[path = "../lab_support/mod.rs"]
mod lab_support;
mod leaving;
mod reach;
mod site;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{Client, Load, LoadKind, Node, Topology, require_root};
use lab_support::{assert_spread, count_servers, eventually};
use serde_json::json;
use site::{Pod, Site};

/// Longest delay of a kube-proxy.
const PROXY_DELAY: Duration = Duration::from_secs(5);
const HTTP: [(&str, u16); 1] = [("TCP", 80)];
/// As an ingress controller has them: HTTP/3 is UDP on the port of HTTPS.
const INGRESS: [(&str, u16); 3] = [("TCP", 80), ("TCP", 443), ("UDP", 443)];

impl Site {
    fn client(&self) -> Client {
        self.topology.client().with_timeout(Duration::from_millis(500))
    }

    fn worker(&self, index: usize) -> &Node {
        self.topology.worker(index)
    }

    fn all_pods(&self) -> Vec<Pod<'_>> {
        self.topology.workers().iter().map(Pod::ready).collect()
    }

    /// A Service with a pod on every worker, served.
    fn serving(&self, name: &str, ports: &[(&str, u16)], spec: serde_json::Value) -> Result<Vec<IpAddr>> {
        self.set_pods(name, ports, &self.all_pods())?;
        let families = spec["ipFamilyPolicy"].as_str() == Some("RequireDualStack");
        self.create_service(name, ports, spec)?;
        let addresses = self.wait_for_addresses(name, if families { 2 } else { 1 })?;
        for address in &addresses {
            for (protocol, port) in ports {
                self.wait_until_served(name, protocol, SocketAddr::new(*address, *port))?;
            }
        }
        Ok(addresses)
    }

    /// Every one of some requests is answered.
    fn is_served(&self, client: &Client, protocol: &str, vip: SocketAddr) -> Result<bool> {
        let replies = match protocol {
            "UDP" => client.try_udp_get(vip, 12)?,
            _ => client.try_http_get(vip, 12)?,
        };
        Ok(replies.iter().all(Result::is_ok))
    }

    fn wait_until_served(&self, name: &str, protocol: &str, vip: SocketAddr) -> Result<()> {
        let client = self.client();
        let what = format!("{protocol} {vip} is served on every try");
        eventually(&what, || self.is_served(&client, protocol, vip)).with_context(|| self.describe(name))?;
        Ok(())
    }

    /// Who answers, of many.
    fn servers(&self, vip: SocketAddr) -> Result<BTreeSet<String>> {
        let replies = self.client().http_get(vip, 60)?;
        Ok(replies.into_iter().map(|reply| reply.server).collect())
    }

    fn wait_for_servers(&self, name: &str, vip: SocketAddr, expected: &[&str]) -> Result<()> {
        let expected: BTreeSet<String> = expected.iter().map(ToString::to_string).collect();
        let what = format!("{vip} is served by {expected:?}");
        eventually(&what, || Ok(self.servers(vip).is_ok_and(|servers| servers == expected)))
            .with_context(|| self.describe(name))?;
        Ok(())
    }

    /// How requests fail, in words.
    fn failures(&self, protocol: &str, vip: SocketAddr) -> Result<Vec<String>> {
        let client = self.client();
        let replies = match protocol {
            "UDP" => client.try_udp_get(vip, 3)?,
            _ => client.try_http_get(vip, 3)?,
        };
        let failures = replies.into_iter().map(|reply| match reply {
            Ok(reply) => format!("answered by {}", reply.server),
            Err(error) => format!("{error:#}").to_lowercase(),
        });
        Ok(failures.collect())
    }

    fn wait_until_refused(&self, name: &str, protocol: &str, vip: SocketAddr) -> Result<()> {
        let what = format!("{protocol} {vip} is refused");
        eventually(&what, || {
            let failures = self.failures(protocol, vip)?;
            Ok(failures.iter().all(|how| how.contains("refused")))
        })
        .with_context(|| format!("{:?}\n{}", self.failures(protocol, vip), self.describe(name)))?;
        Ok(())
    }
}

fn start(workers: u8) -> Result<Site> {
    Site::start(Topology::builder().workers(workers).build()?, PROXY_DELAY)
}

fn at(address: &[IpAddr], port: u16) -> Result<SocketAddr> {
    let Some(address) = address.first() else {
        bail!("no address")
    };
    Ok(SocketAddr::new(*address, port))
}

#[test]
fn a_service_lives_from_creation_to_deletion() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = start(3)?;
    let address = site.serving("web", &HTTP, json!({}))?;
    let vip = at(&address, 80)?;
    let service = site.service("web").context("the Service")?;
    assert_eq!(
        service["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP",
        "{service:#}"
    );
    assert_eq!(
        service["metadata"]["annotations"]["vipline.dev/ip-allocated-from-pool"],
        "public"
    );
    let claim = site.cluster.server.read("addressclaims", "", &vip.ip().to_string());
    assert_eq!(
        claim.context("its claim")?["spec"]["holders"][0]["service"]["name"],
        "web"
    );
    let events = site.events("web");
    assert!(
        events.contains_key("IPAllocated") && events.contains_key("EnsuredLoadBalancer"),
        "{events:?}"
    );

    // Scaled down to one pod, then drained of the node it is on.
    site.set_pods("web", &HTTP, &[Pod::ready(site.worker(0))])?;
    site.wait_for_servers("web", vip, &["worker-1"])?;
    site.set_pods("web", &HTTP, &[Pod::ready(site.worker(1)), Pod::ready(site.worker(2))])?;
    site.wait_for_servers("web", vip, &["worker-2", "worker-3"])?;

    // To nothing: a reset, which a client that waits for a time-out would not see. And back.
    site.set_pods("web", &HTTP, &[])?;
    site.wait_until_refused("web", "TCP", vip)?;
    site.set_pods("web", &HTTP, &site.all_pods())?;
    site.wait_until_served("web", "TCP", vip)?;

    site.delete_service("web")?;
    eventually("the Service is gone", || Ok(site.service("web").is_none())).with_context(|| site.describe("web"))?;
    assert_eq!(
        site.cluster.server.list("addressclaims"),
        Vec::<serde_json::Value>::new()
    );
    eventually("the VIP is out of the maps", || Ok(site.lbs[0].vips()?.is_empty()))?;
    // Free again.
    assert_eq!(site.serving("other", &HTTP, json!({}))?, address);
    Ok(())
}

#[test]
fn an_ingress_controller_is_served_on_both_families_and_all_ports() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = start(2)?;
    let spec = json!({"ipFamilyPolicy": "RequireDualStack", "externalTrafficPolicy": "Local"});
    let addresses = site.serving("ingress", &INGRESS, spec)?;
    assert!(addresses[0].is_ipv4() && addresses[1].is_ipv6(), "{addresses:?}");
    for address in addresses {
        let vip = SocketAddr::new(address, 443);
        for replies in [site.client().http_get(vip, 40)?, site.client().udp_get(vip, 40)?] {
            assert_spread("ingress", &count_servers(&replies), &[("worker-1", 1), ("worker-2", 1)]);
            assert!(
                replies.iter().all(|reply| reply.client_seen == reply.local_addr),
                "policy Local keeps the client's address"
            );
        }
    }
    Ok(())
}

#[test]
fn policy_local_goes_by_weight_and_a_change_of_policy_is_taken_live() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = start(3)?;
    let local = json!({"externalTrafficPolicy": "Local"});
    let (first, second) = (site.worker(0), site.worker(1));
    site.set_pods("web", &HTTP, &[Pod::ready(first)])?;
    site.create_service("web", &HTTP, local)?;
    let vip = at(&site.wait_for_addresses("web", 1)?, 80)?;
    site.wait_for_servers("web", vip, &["worker-1"])?;
    let backends = || -> Result<Vec<String>> {
        let backends = site.lbs[0].backends()?;
        let current = backends.into_iter().filter(|backend| !backend.has_departed);
        Ok(current.map(|backend| backend.name).collect())
    };
    assert_eq!(backends()?, ["worker-1/ipv4"], "only nodes with endpoints");

    site.set_pods("web", &HTTP, &[Pod::ready(first), Pod::ready(second)])?;
    site.wait_for_servers("web", vip, &["worker-1", "worker-2"])?;

    // A pod that ends is left alone while another is ready, and is the last resort of the whole cluster when none is.
    let ending = Pod {
        node: first,
        ready: false,
        terminating: true,
    };
    site.set_pods("web", &HTTP, &[ending, Pod::ready(second)])?;
    site.wait_for_servers("web", vip, &["worker-2"])?;
    // Its health may say so before its table does.
    eventually("it is no backend any more", || Ok(backends()? == ["worker-2/ipv4"]))
        .with_context(|| site.describe("web"))?;
    site.set_pods("web", &HTTP, &[ending])?;
    site.wait_for_servers("web", vip, &["worker-1"])?;

    site.change_service("web", json!({"spec": {"externalTrafficPolicy": "Cluster"}}))?;
    eventually("all nodes are backends", || Ok(backends()?.len() == 3)).with_context(|| site.describe("web"))?;
    eventually(
        "kube-proxy masquerades, and no longer passes the client's address on",
        || {
            let replies = site.client().http_get(vip, 10);
            Ok(replies.is_ok_and(|replies| replies.iter().all(|reply| reply.client_seen != reply.local_addr)))
        },
    )
    .with_context(|| site.describe("web"))?;
    site.wait_until_served("web", "TCP", vip)
}

#[test]
fn endpoints_by_hand_and_a_udp_service_are_served_and_refused() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = start(2)?;
    let dns = [("UDP", 53)];
    site.create_service("dns", &dns, json!({"selector": null}))?;
    let vip = at(&site.wait_for_addresses("dns", 1)?, 53)?;
    site.wait_until_refused("dns", "UDP", vip)?;
    site.set_endpoints_by_hand("dns", &dns, &[Pod::ready(site.worker(0))])?;
    site.wait_until_served("dns", "UDP", vip)?;
    site.set_endpoints_by_hand("dns", &dns, &[])?;
    site.wait_until_refused("dns", "UDP", vip)
}

#[test]
fn source_ranges_are_enforced_by_the_lb_node_and_follow_the_service() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = start(1)?;
    let own = format!("{}/32", site.client().addr_v4());
    let vip = at(
        &site.serving("web", &HTTP, json!({"loadBalancerSourceRanges": [own]}))?,
        80,
    )?;
    let denied = || -> Result<u64> { Ok(site.lbs[0].counted()?.of("drop source_not_allowed")) };
    assert_eq!(denied()?, 0);
    site.change_service("web", json!({"spec": {"loadBalancerSourceRanges": ["192.0.2.0/24"]}}))?;
    eventually("the client is kept out", || {
        let failures = site.failures("TCP", vip)?;
        Ok(failures.iter().all(|how| !how.contains("answered")) && denied()? > 0)
    })
    .with_context(|| site.describe("web"))?;
    site.change_service("web", json!({"spec": {"loadBalancerSourceRanges": null}}))?;
    site.wait_until_served("web", "TCP", vip)
}

#[test]
fn a_client_stays_with_its_pod_where_the_service_asks_for_it() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = start(3)?;
    let vip = at(&site.serving("web", &HTTP, json!({}))?, 80)?;
    site.wait_for_servers("web", vip, &["worker-1", "worker-2", "worker-3"])?;
    site.change_service("web", json!({"spec": {"sessionAffinity": "ClientIP"}}))?;
    eventually("one pod answers all", || {
        Ok(site.servers(vip).is_ok_and(|servers| servers.len() == 1))
    })
    .with_context(|| site.describe("web"))?;
    site.change_service(
        "web",
        json!({"spec": {"sessionAffinity": "None", "sessionAffinityConfig": null}}),
    )?;
    site.wait_for_servers("web", vip, &["worker-1", "worker-2", "worker-3"])
}

#[test]
fn traffic_goes_on_while_operator_and_api_server_are_away() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut site = start(2)?;
    let vip = at(&site.serving("web", &HTTP, json!({}))?, 80)?;
    let load = Load::start(site.topology.client(), vip, LoadKind::NewConnections, 2)?;
    load.wait_for(20, Duration::from_secs(5))?;
    site.kill_operator();
    site.cluster.endpoints.values().for_each(|endpoint| endpoint.close());
    eventually("the LB node knows", || {
        let kube = site.lbs[0].status()?.kube;
        Ok(kube.is_some_and(|kube| kube.connected_s.is_none() && !kube.away.is_empty()))
    })?;
    let before = load.answered();
    load.wait_for(before + 50, Duration::from_secs(5))?;
    let report = load.stop()?;
    assert_eq!(report.failed, 0, "{report:?}");

    // A Service that comes meanwhile is served once they are back.
    site.set_pods("late", &HTTP, &site.all_pods())?;
    site.create_service("late", &HTTP, json!({}))?;
    for endpoint in site.cluster.endpoints.values() {
        endpoint.reopen()?;
    }
    site.start_operator()?;
    let late = at(&site.wait_for_addresses("late", 1)?, 80)?;
    site.wait_until_served("late", "TCP", late)?;
    site.wait_until_served("web", "TCP", vip)
}

/// Longer than everything that may lapse while an API server is away: Leases, a watch's minute, two rounds of backing off.
const OUTAGE: Duration = Duration::from_secs(125);

#[test]
fn an_api_server_that_is_gone_for_minutes_breaks_nothing_and_is_caught_up_with() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = start(2)?;
    let vip = at(&site.serving("web", &HTTP, json!({}))?, 80)?;
    let (before, client) = (site.ingress("web"), site.client());
    site.cluster.server.faults().refuse(true);
    // In the process of the API server, which meets no fault.
    site.set_pods("late", &HTTP, &site.all_pods())?;
    site.create_service("late", &HTTP, json!({}))?;
    site.set_pods("web", &HTTP, &[Pod::ready(site.worker(1))])?;
    let (start, mut asked) = (Instant::now(), 0);
    let away = || {
        let kube = site.lbs[0].status()?.kube;
        Ok(kube.is_some_and(|kube| kube.connected_s.is_none() && !kube.away.is_empty()))
    };
    eventually("the LB node knows", away)?;
    while start.elapsed() < OUTAGE {
        let answer = client.http_get(vip, 10);
        ensure!(answer.is_ok(), "{:?} into it: {answer:?}", start.elapsed());
        asked += 1;
        sleep(Duration::from_millis(100));
    }
    ensure!(asked > 500 && away()?, "{asked} connections");
    ensure!(site.ingress("late").is_empty(), "somebody got through");

    site.cluster.server.faults().refuse(false);
    let late = at(&site.wait_for_addresses("late", 1)?, 80)?;
    site.wait_until_served("late", "TCP", late)?;
    site.wait_for_servers("web", vip, &["worker-2"])?;
    assert_eq!(site.ingress("web"), before);
    Ok(())
}

#[test]
fn a_node_that_is_drained_leaves_and_comes_back() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = start(3)?;
    let vip = at(&site.serving("web", &HTTP, json!({}))?, 80)?;
    let exclude = |value: serde_json::Value| {
        let label = json!({"metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": value}}});
        site.cluster
            .server
            .merge("nodes", "", "worker-2", "", label)
            .map_err(|failure| anyhow::anyhow!("{failure:?}"))
    };
    let backends = || -> Result<usize> {
        let backends = site.lbs[0].backends()?;
        Ok(backends.iter().filter(|backend| !backend.has_departed).count())
    };
    let writes = site.cluster.server.writes();
    let said = |resource: &str| writes.of("*", resource, "*");
    writes.reset();
    let start = Instant::now();
    exclude(json!(""))?;
    eventually("two nodes are left", || Ok(backends()? == 2)).with_context(|| site.describe("web"))?;
    eventually("the LB node says so", || Ok(said("lbnodes") > 0))?;
    // And whatever else there is to write.
    sleep(Duration::from_secs(2));
    let lb_nodes = said("lbnodes");
    assert!(
        lb_nodes <= start.elapsed().as_secs() + 1,
        "{lb_nodes} in {:?}",
        start.elapsed()
    );
    assert_eq!(
        (
            said("nodesets"),
            said("viptables"),
            said("addressclaims"),
            said("services")
        ),
        (1, 0, 0, 0),
        "{:?}",
        writes.all()
    );
    assert!(site.is_served(&site.client(), "TCP", vip)?);
    exclude(json!(null))?;
    eventually("three nodes are there", || Ok(backends()? == 3))?;
    site.wait_until_served("web", "TCP", vip)
}

#[test]
fn an_lb_node_whose_node_is_gone_is_trusted_by_no_worker_any_more() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = Site::start(Topology::builder().lbs(2).workers(1).build()?, PROXY_DELAY)?;
    let sources = || -> Vec<String> {
        let tunnel = site
            .cluster
            .server
            .read("tunnelconfigs", lab_support::NAMESPACE, "default");
        let sources = tunnel.unwrap_or_default()["spec"]["sources"].clone();
        let sources = sources.as_array().cloned().unwrap_or_default();
        sources
            .iter()
            .filter_map(|source| source.as_str().map(ToOwned::to_owned))
            .collect()
    };
    let of = |lb: &Node| format!("{}/32", lb.addr_v4());
    let (stays, goes) = (site.topology.lb(0), site.topology.lb(1));
    let trusts = |lb: &Node| sources().contains(&of(lb));
    eventually("both are trusted", || Ok(trusts(stays) && trusts(goes)))?;
    let deleted = site.cluster.server.delete("nodes", "", goes.name());
    deleted.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    eventually("one is left", || Ok(trusts(stays) && !trusts(goes)))?;
    assert_eq!(site.cluster.lb_node(goes.name()), None);
    Ok(())
}
