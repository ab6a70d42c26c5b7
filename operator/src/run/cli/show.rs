//! `services` and `pools`: what there is, for people and for programs.
//!
//! Never writes to the API server.

use std::io::{self, Write};

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::Condition};
use kube::Api;
use operator_api::{AddressPool, CONDITION_ANNOUNCED, CONDITION_CONFLICT, Usage};
use serde::Serialize;

use super::{
    args::{Format, ListArgs},
    cluster, output,
};
use crate::{
    ServiceKey,
    index::{Index, Kind},
    run::state,
};

/// What is known of a Service.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceView {
    namespace: String,
    name: String,
    /// In its status.
    addresses: Vec<String>,
    /// In its table: what LB nodes are told.
    table_addresses: Vec<String>,
    pools: Vec<String>,
    ports: Vec<String>,
    /// Live LB nodes that have it in their maps.
    programmed_on: usize,
    /// Live LB nodes.
    lb_nodes: usize,
    /// How it is announced: `BGP`, `L2`, `BGPAndL2`, or why not; empty: not looked at yet.
    announced: String,
    /// What is wrong with it; empty: nothing.
    why: String,
}

/// `vipline-operator services`.
pub(super) async fn services(args: &ListArgs) -> anyhow::Result<()> {
    let client = args.api.client().await?;
    let index = cluster::read(&client, &args.api, &args.class).await?;
    let views = service_views(&index);
    let mut out = io::stdout().lock();
    match args.output {
        Format::Json => output::json(&mut out, &views)?,
        Format::Table => service_table(&mut out, views)?,
    }
    out.flush()?;
    Ok(())
}

fn service_views(index: &Index) -> Vec<ServiceView> {
    let keys = index.services();
    keys.filter_map(|key| service_view(index, key)).collect()
}

/// `None`: it is not ours, and nothing of ours is on it.
fn service_view(index: &Index, key: &ServiceKey) -> Option<ServiceView> {
    let service = index.service(key)?;
    let table = index.table(key);
    let (_, why) = state::of(index, key)?;
    let coverage = table.map(|table| index.programmed(table)).unwrap_or_default();
    let addresses = table.map(|table| table.spec.addresses.clone()).unwrap_or_default();
    let mut pools: Vec<_> = addresses.iter().map(|address| address.pool.clone()).collect();
    pools.sort();
    pools.dedup();
    let ports = table.map(|table| table.spec.ports.clone()).unwrap_or_default();
    let word = |protocol| match protocol {
        operator_api::Protocol::Tcp => "TCP",
        operator_api::Protocol::Udp => "UDP",
    };
    Some(ServiceView {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        addresses: ingress(service),
        table_addresses: addresses.into_iter().map(|address| address.address).collect(),
        pools,
        ports: ports
            .iter()
            .map(|port| format!("{}/{}", port.port, word(port.protocol)))
            .collect(),
        programmed_on: coverage.on,
        lb_nodes: coverage.of,
        announced: announced(service),
        why,
    })
}

fn announced(service: &Service) -> String {
    let conditions = service.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    let found = conditions.find(|condition| condition.type_ == CONDITION_ANNOUNCED);
    found.map(|condition| condition.reason.clone()).unwrap_or_default()
}

fn ingress(service: &Service) -> Vec<String> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    let addresses = ingress.into_iter().flatten();
    addresses
        .filter_map(|ingress| ingress.ip.clone().or_else(|| ingress.hostname.clone()))
        .collect()
}

fn service_table(out: &mut dyn Write, views: Vec<ServiceView>) -> io::Result<()> {
    if views.is_empty() {
        return writeln!(
            out,
            "No Services of ours: type LoadBalancer with our class, or with externalIPs that a pool allows."
        );
    }
    let rows = views.into_iter().map(|view| {
        let addresses = if view.addresses.is_empty() {
            "-".to_owned()
        } else {
            view.addresses.join(",")
        };
        vec![
            view.namespace,
            view.name,
            addresses,
            view.pools.join(","),
            view.ports.join(","),
            format!("{}/{}", view.programmed_on, view.lb_nodes),
            if view.announced.is_empty() {
                "-".to_owned()
            } else {
                view.announced
            },
            if view.why.is_empty() { "ok".to_owned() } else { view.why },
        ]
    });
    let headings = [
        "NAMESPACE",
        "NAME",
        "ADDRESSES",
        "POOL",
        "PORTS",
        ">PROGRAMMED",
        "ANNOUNCED",
        "STATE",
    ];
    output::table(out, &headings, rows.collect())
}

/// What is known of a pool.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolView {
    name: String,
    addresses: Vec<String>,
    auto_assign: bool,
    priority: Option<i32>,
    ipv4: Usage,
    ipv6: Usage,
    why: String,
}

/// `vipline-operator pools`.
pub(super) async fn pools(args: &ListArgs) -> anyhow::Result<()> {
    let client = args.api.client().await?;
    let pools = cluster::list(Api::<AddressPool>::all(client), Kind::Pool, |pool| pool).await?;
    let views = pools.into_iter().map(pool_view).collect::<Vec<_>>();
    let mut out = io::stdout().lock();
    match args.output {
        Format::Json => output::json(&mut out, &views)?,
        Format::Table => pool_table(&mut out, views)?,
    }
    out.flush()?;
    Ok(())
}

fn pool_view(pool: AddressPool) -> PoolView {
    let status = pool.status.unwrap_or_default();
    let bad = |condition: &&Condition| {
        (condition.type_ == CONDITION_CONFLICT && condition.status == "True")
            || (condition.type_ == "Valid" && condition.status == "False")
    };
    let generation = pool.metadata.generation.unwrap_or_default();
    let why = match status.conditions.iter().find(bad) {
        Some(condition) => format!("{}: {}", condition.reason, condition.message),
        None if status.observed_generation < generation => "not seen by the operator yet".to_owned(),
        None => String::new(),
    };
    PoolView {
        name: pool.metadata.name.unwrap_or_default(),
        addresses: pool.spec.addresses,
        auto_assign: pool.spec.auto_assign,
        priority: pool.spec.priority,
        ipv4: status.ipv4,
        ipv6: status.ipv6,
        why,
    }
}

fn pool_table(out: &mut dyn Write, views: Vec<PoolView>) -> io::Result<()> {
    if views.is_empty() {
        return writeln!(out, "No AddressPools: no Service gets an address before there is one.");
    }
    let of = |usage: Usage| format!("{}/{}", usage.used, usage.total);
    let rows = views.into_iter().map(|view| {
        vec![
            view.name,
            view.addresses.join(","),
            if view.auto_assign { "yes" } else { "no" }.to_owned(),
            view.priority.map_or("-".to_owned(), |priority| priority.to_string()),
            of(view.ipv4),
            of(view.ipv6),
            if view.why.is_empty() { "ok".to_owned() } else { view.why },
        ]
    });
    let headings = [
        "NAME",
        "ADDRESSES",
        "AUTO-ASSIGN",
        ">PRIORITY",
        ">IPV4",
        ">IPV6",
        "STATE",
    ];
    output::table(out, &headings, rows.collect())
}
