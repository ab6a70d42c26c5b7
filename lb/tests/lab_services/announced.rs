//! Who announces a Service's address, from the pool to the segment and back into the Service's condition: operator and LB nodes
//! together.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result};
use lab::{Topology, require_root};
use serde_json::json;

use crate::{HTTP, PROXY_DELAY, at, lab_support::eventually, site::Site};

impl Site {
    /// `Status/Reason: message` of the condition.
    fn announced(&self, name: &str) -> String {
        let service = self.service(name).unwrap_or_default();
        let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|it| it["type"] == "vipline.dev/Announced");
        let word = |key: &str| found.and_then(|it| it[key].as_str()).unwrap_or_default();
        format!("{}/{}: {}", word("status"), word("reason"), word("message"))
    }

    fn wait_until_announced(&self, name: &str, said: &str) -> Result<()> {
        eventually(said, || Ok(self.announced(name).starts_with(said)))
            .with_context(|| self.announced(name))
            .map(drop)
    }

    /// An Event comes after the write that it is about.
    fn wait_until_told(&self, name: &str, reason: &str, words: &str) -> Result<()> {
        let is_told = |said: &String| said.starts_with(words);
        eventually(reason, || Ok(self.events(name).get(reason).is_some_and(is_told)))
            .with_context(|| format!("{:?}", self.events(name)))
            .map(drop)
    }

    fn set_pool(&self, addresses: &[String]) {
        let patch = json!({"spec": {"addresses": addresses}});
        let merged = self.cluster.server.merge("addresspools", "", "public", "", patch);
        merged.unwrap_or_else(|failure| panic!("{failure:?}"));
    }
}

#[test]
fn a_pool_of_the_lb_nodes_own_network_needs_no_other_object_and_an_address_of_another_host_is_left_alone() -> Result<()>
{
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().lbs(2).workers(2).client_on_link().build()?;
    let site = Site::start(topology, PROXY_DELAY)?;
    let [a, b, c, _] = site.topology.lb(0).addr_v4().octets();
    let near: IpAddr = Ipv4Addr::new(a, b, c, 150).into();
    let taken: IpAddr = Ipv4Addr::new(a, b, c, 151).into();
    site.set_pool(&[format!("{near}/32")]);
    let address = site.serving("web", &HTTP, json!({}))?;
    assert_eq!(address, [near]);
    site.wait_until_announced("web", "True/L2: by L2 (default)")?;
    site.wait_until_told("web", "Announced", "Announced by L2 (default)")?;

    // A host of the segment has the next address.
    let client = site.topology.client().ns();
    client.ip(&["addr", "add", &format!("{taken}/32"), "dev", "eth0"])?;
    site.set_pool(&[format!("{near}/32"), format!("{taken}/32")]);
    site.set_pods("other", &HTTP, &site.all_pods())?;
    site.create_service("other", &HTTP, json!({}))?;
    assert_eq!(site.wait_for_addresses("other", 1)?, [taken]);
    site.wait_until_announced("other", "False/AddressInUse: in use by ")?;
    site.wait_until_told("other", "AddressInUse", "Not announced: in use by ")?;
    assert_eq!(
        site.announced("web"),
        "True/L2: by L2 (default)",
        "the other is as it was"
    );
    client.ip(&["addr", "del", &format!("{taken}/32"), "dev", "eth0"])?;
    // It is asked for again every half minute.
    let start = std::time::Instant::now();
    while site.announced("other") != "True/L2: by L2 (default)" {
        anyhow::ensure!(start.elapsed().as_secs() < 60, "{}", site.announced("other"));
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    site.wait_until_served("other", "TCP", at(&[taken], 80)?)
}

#[test]
fn where_no_lb_node_has_a_network_with_an_address_that_is_said_and_a_route_brings_it_all_the_same() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = Site::start(Topology::builder().workers(2).build()?, PROXY_DELAY)?;
    let address = site.serving("web", &HTTP, json!({}))?;
    let address = address.first().context("one")?;
    let start = format!("False/NotConnected: no LB node has a network with {address} (they have ");
    site.wait_until_announced("web", &start)?;
    site.wait_until_told("web", "NotAnnounced", "Not announced: no LB node has a network with ")
}
