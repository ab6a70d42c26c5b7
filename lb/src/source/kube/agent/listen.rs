//! What comes from the API server: watches, and Secrets, which are read now and then.
//!
//! Never decides what follows.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use operator_api::{
    Announcement, AnnouncementSpec, AnnouncementStatus, BGP_SECRET, BgpPeer, BgpPeerSpec, BgpPeerStatus, LbNode,
    LbNodeSpec, LbNodeStatus, Lean, NodeSet, NodeSetSpec, SEED_KEY, SEED_SECRET, TunnelConfig, TunnelConfigSpec,
    VipTable, VipTableSpec,
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::super::{
    announce::Both,
    object::Received,
    watch::{self, Told, say_client},
};

/// How often the Secret is read: until it is there, and then.
const SEED_POLL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// How often the Secret with BGP passwords is read.
const PASSWORD_POLL: Duration = Duration::from_secs(5);

/// What comes from the API server.
pub(super) enum Heard {
    Tables(Told<VipTableSpec>, tokio::time::Instant),
    NodeSets(Told<NodeSetSpec>, tokio::time::Instant),
    Tunnel(Told<TunnelConfigSpec>, tokio::time::Instant),
    Announcements(Told<Both<AnnouncementSpec, AnnouncementStatus>>, tokio::time::Instant),
    Peers(Told<Both<BgpPeerSpec, BgpPeerStatus>>, tokio::time::Instant),
    LbNodes(Told<Both<LbNodeSpec, LbNodeStatus>>, tokio::time::Instant),
    /// The Secret's keys, none where there is no Secret; or why it cannot be read.
    Passwords(Result<BTreeMap<String, Arc<[u8]>>, String>),
    /// The Secret's text, or why it cannot be read.
    Seed(Result<String, String>),
}

/// Listens until nobody does any more.
pub(super) fn listen(client: &Client, namespace: &str, to: mpsc::Sender<Heard>) {
    let all = watch::config;
    let tables = Api::<Lean<Received<VipTable>>>::namespaced(client.clone(), namespace);
    tokio::spawn(watch::follow(tables, all(), Heard::Tables, to.clone()));
    let node_sets = Api::<Lean<Received<NodeSet>>>::namespaced(client.clone(), namespace);
    tokio::spawn(watch::follow(node_sets, all(), Heard::NodeSets, to.clone()));
    let tunnel = Api::<Lean<Received<TunnelConfig>>>::namespaced(client.clone(), namespace);
    tokio::spawn(watch::follow(tunnel, all(), Heard::Tunnel, to.clone()));
    let announcements = Api::<Lean<Received<Announcement>>>::namespaced(client.clone(), namespace);
    tokio::spawn(watch::follow(announcements, all(), Heard::Announcements, to.clone()));
    let peers = Api::<Lean<Received<BgpPeer>>>::namespaced(client.clone(), namespace);
    tokio::spawn(watch::follow(peers, all(), Heard::Peers, to.clone()));
    let nodes = Api::<Lean<Received<LbNode>>>::namespaced(client.clone(), namespace);
    tokio::spawn(watch::follow(nodes, all(), Heard::LbNodes, to.clone()));
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    tokio::spawn(poll_passwords(secrets, to.clone()));
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    tokio::spawn(poll_seed(secrets, to));
}

/// Reads the Secret with passwords until nobody listens. That there is none is no fault.
async fn poll_passwords(secrets: Api<Secret>, to: mpsc::Sender<Heard>) {
    const PATIENCE: Duration = Duration::from_secs(5);
    loop {
        let said = match timeout(PATIENCE, secrets.get_opt(BGP_SECRET)).await {
            Ok(Ok(secret)) => {
                let data = secret.and_then(|secret| secret.data).unwrap_or_default();
                Ok(data.into_iter().map(|(key, bytes)| (key, bytes.0.into())).collect())
            }
            Ok(Err(error)) => Err(say_client(&error)),
            Err(_) => Err(format!("no answer for {} s", PATIENCE.as_secs())),
        };
        if to.send(Heard::Passwords(said)).await.is_err() {
            return;
        }
        sleep(PASSWORD_POLL).await;
    }
}

/// Reads the Secret until nobody listens.
async fn poll_seed(secrets: Api<Secret>, to: mpsc::Sender<Heard>) {
    const PATIENCE: Duration = Duration::from_secs(5);
    loop {
        let said = match timeout(PATIENCE, secrets.get(SEED_SECRET)).await {
            Ok(Ok(secret)) => text(&secret),
            Ok(Err(error)) => Err(say_client(&error)),
            Err(_) => Err(format!("no answer for {} s", PATIENCE.as_secs())),
        };
        let pause = if said.is_ok() { SEED_POLL.1 } else { SEED_POLL.0 };
        if to.send(Heard::Seed(said)).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

fn text(secret: &Secret) -> Result<String, String> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(SEED_KEY));
    let bytes = bytes.ok_or_else(|| format!("it has no key `{SEED_KEY}`"))?;
    String::from_utf8(bytes.0.clone()).map_err(|_| format!("its `{SEED_KEY}` is no text"))
}
