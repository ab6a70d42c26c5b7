//! `peers` and `announcements`: who is told of VIP addresses, for people and for programs.
//!
//! Never writes to the API server.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use operator_api::{Announcement, BgpPeer, CONDITION_VALID, LbNode, Origin, PeerStatus, VipTable};
use serde::Serialize;

use super::{
    args::{Format, ListArgs},
    cluster, output,
};
use crate::index::Kind;

/// A peer on an LB node; or one that no LB node has.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct PeerView {
    name: String,
    address: String,
    /// `None`: a peer of an LB node's own file.
    asn: Option<u32>,
    local_asn: Option<u32>,
    /// Empty: none has it.
    lb_node: String,
    /// Of the session, as the LB node says.
    session: String,
    /// Prefixes that it is told.
    announced: u32,
    /// What went wrong last.
    last_error: Option<String>,
    /// What is wrong with the BgpPeer; empty: nothing.
    why: String,
}

/// `vipline-operator peers`.
pub(super) async fn peers(args: &ListArgs) -> anyhow::Result<()> {
    let client = args.api.client().await?;
    let own = &args.api.namespace;
    let (peers, nodes) = tokio::try_join!(
        cluster::list(Api::<BgpPeer>::namespaced(client.clone(), own), Kind::Peer, |peer| peer),
        cluster::list(Api::<LbNode>::namespaced(client.clone(), own), Kind::LbNode, |node| {
            node
        }),
    )?;
    let views = peer_views(&peers, &nodes);
    let mut out = io::stdout().lock();
    match args.output {
        Format::Json => output::json(&mut out, &views)?,
        Format::Table => peer_table(&mut out, views)?,
    }
    out.flush()?;
    Ok(())
}

fn peer_views(peers: &[BgpPeer], nodes: &[LbNode]) -> Vec<PeerView> {
    let mut views: Vec<PeerView> = peers.iter().flat_map(|peer| of_peer(peer, nodes)).collect();
    for node in nodes {
        let bgp = node
            .status
            .as_ref()
            .and_then(|status| status.announcing.as_ref()?.bgp.as_ref());
        let of_file = bgp.filter(|bgp| bgp.origin == Origin::File);
        let sessions = of_file.map(|bgp| bgp.peers.as_slice()).unwrap_or_default();
        views.extend(sessions.iter().map(|session| PeerView {
            name: session.name.clone(),
            address: session.address.clone(),
            asn: None,
            local_asn: of_file.map(|bgp| bgp.local_asn),
            why: "of the LB node's file".to_owned(),
            ..on(Some(node), Some(session))
        }));
    }
    views
}

fn of_peer(peer: &BgpPeer, nodes: &[LbNode]) -> Vec<PeerView> {
    let name = peer.metadata.name.clone().unwrap_or_default();
    let status = peer.status.clone().unwrap_or_default();
    let why = fault(&status.conditions, status.observed_generation, peer.metadata.generation);
    let whole = |view: PeerView| PeerView {
        name: name.clone(),
        address: peer.spec.address.clone(),
        asn: Some(peer.spec.asn),
        local_asn: Some(peer.spec.local_asn),
        why: why.clone(),
        ..view
    };
    let with = nodes.iter().filter(|node| {
        let of = node.metadata.name.as_ref();
        of.is_some_and(|of| status.nodes.contains(of))
    });
    let views = with.map(|node| {
        let bgp = node
            .status
            .as_ref()
            .and_then(|status| status.announcing.as_ref()?.bgp.as_ref());
        let of_cluster = bgp.filter(|bgp| bgp.origin == Origin::Cluster);
        let session = of_cluster.and_then(|bgp| bgp.peers.iter().find(|session| session.name == name));
        whole(on(Some(node), session))
    });
    let views: Vec<_> = views.collect();
    if views.is_empty() {
        return vec![whole(on(None, None))];
    }
    views
}

/// What an LB node says of a session.
fn on(node: Option<&LbNode>, session: Option<&PeerStatus>) -> PeerView {
    PeerView {
        name: String::new(),
        address: String::new(),
        asn: None,
        local_asn: None,
        lb_node: node.and_then(|node| node.metadata.name.clone()).unwrap_or_default(),
        session: session.map(|session| session.state.clone()).unwrap_or_default(),
        announced: session.map(|session| session.announced).unwrap_or_default(),
        last_error: session.and_then(|session| session.last_error.clone()),
        why: String::new(),
    }
}

/// What a condition says is wrong.
fn fault(conditions: &[Condition], observed: i64, generation: Option<i64>) -> String {
    let bad = |condition: &&Condition| condition.type_ == CONDITION_VALID && condition.status == "False";
    match conditions.iter().find(bad) {
        Some(condition) => format!("{}: {}", condition.reason, condition.message),
        None if observed < generation.unwrap_or_default() => "not seen by the operator yet".to_owned(),
        None => String::new(),
    }
}

fn or(text: String, empty: &str) -> String {
    if text.is_empty() { empty.to_owned() } else { text }
}

fn peer_table(out: &mut dyn Write, views: Vec<PeerView>) -> io::Result<()> {
    if views.is_empty() {
        return writeln!(out, "No BgpPeers, and no LB node has peers of its own file.");
    }
    let asn = |asn: Option<u32>| asn.map_or("-".to_owned(), |asn| asn.to_string());
    let rows = views.into_iter().map(|view| {
        vec![
            view.name,
            view.address,
            asn(view.asn),
            asn(view.local_asn),
            or(view.lb_node, "-"),
            or(view.session, "-"),
            view.announced.to_string(),
            view.last_error.unwrap_or_else(|| "-".to_owned()),
            or(view.why, "ok"),
        ]
    });
    let headings = [
        "NAME",
        "ADDRESS",
        ">ASN",
        ">LOCAL-ASN",
        "LB-NODE",
        "SESSION",
        ">ANNOUNCED",
        "LAST-ERROR",
        "STATE",
    ];
    output::table(out, &headings, rows.collect())
}

/// What is known of an Announcement.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AnnouncementView {
    name: String,
    /// Peers that are told.
    peers: Vec<String>,
    l2: bool,
    nodes: Vec<String>,
    /// Addresses of tables that have it.
    addresses: usize,
    why: String,
}

/// `vipline-operator announcements`.
pub(super) async fn announcements(args: &ListArgs) -> anyhow::Result<()> {
    let client = args.api.client().await?;
    let own = &args.api.namespace;
    let (announcements, tables) = tokio::try_join!(
        cluster::list(
            Api::<Announcement>::namespaced(client.clone(), own),
            Kind::Announcement,
            |it| it
        ),
        cluster::list(Api::<VipTable>::namespaced(client.clone(), own), Kind::Table, |table| {
            table
        }),
    )?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for name in tables
        .iter()
        .flat_map(|table| &table.spec.addresses)
        .flat_map(|address| address.announcements.iter().flatten())
    {
        *counts.entry(name.clone()).or_default() += 1;
    }
    let views: Vec<_> = announcements
        .into_iter()
        .map(|it| announcement_view(it, &counts))
        .collect();
    let mut out = io::stdout().lock();
    match args.output {
        Format::Json => output::json(&mut out, &views)?,
        Format::Table => announcement_table(&mut out, views)?,
    }
    out.flush()?;
    Ok(())
}

fn announcement_view(announcement: Announcement, counts: &BTreeMap<String, usize>) -> AnnouncementView {
    let status = announcement.status.unwrap_or_default();
    let generation = announcement.metadata.generation;
    let name = announcement.metadata.name.unwrap_or_default();
    AnnouncementView {
        why: fault(&status.conditions, status.observed_generation, generation),
        addresses: counts.get(&name).copied().unwrap_or_default(),
        peers: status.peers,
        l2: status.l2,
        nodes: status.nodes,
        name,
    }
}

fn announcement_table(out: &mut dyn Write, views: Vec<AnnouncementView>) -> io::Result<()> {
    if views.is_empty() {
        return writeln!(
            out,
            "No Announcements: LB nodes answer by L2 for addresses of their connected networks, unless their files say otherwise."
        );
    }
    let rows = views.into_iter().map(|view| {
        vec![
            view.name,
            or(view.peers.join(","), "-"),
            if view.l2 { "yes" } else { "no" }.to_owned(),
            or(view.nodes.join(","), "-"),
            view.addresses.to_string(),
            or(view.why, "ok"),
        ]
    });
    let headings = ["NAME", "BGP", "L2", "LB-NODES", ">ADDRESSES", "STATE"];
    output::table(out, &headings, rows.collect())
}
