//! Who announces a Service's addresses: from pools, BgpPeers and Announcements to tables, statuses, conditions and Events.

use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use operator_api::{Announcement, BgpPeer, CONDITION_ANNOUNCED};
use serde_json::{Value, json};

use crate::cluster::Cluster;

impl Cluster {
    fn peers(&self) -> Api<BgpPeer> {
        Api::namespaced(self.client.clone(), &self.own)
    }

    fn announcements(&self) -> Api<Announcement> {
        Api::namespaced(self.client.clone(), &self.own)
    }

    async fn peer(&self, name: &str, spec: Value) -> Result<BgpPeer, kube::Error> {
        let object =
            json!({"apiVersion": "vipline.dev/v1alpha1", "kind": "BgpPeer", "metadata": {"name": name}, "spec": spec});
        let object: BgpPeer = serde_json::from_value(object).unwrap();
        self.peers().create(&PostParams::default(), &object).await
    }

    async fn announce(&self, name: &str, spec: Value) -> Result<Announcement, kube::Error> {
        let object = json!({"apiVersion": "vipline.dev/v1alpha1", "kind": "Announcement", "metadata": {"name": name}, "spec": spec});
        let object: Announcement = serde_json::from_value(object).unwrap();
        self.announcements().create(&PostParams::default(), &object).await
    }

    /// Until the condition says just this.
    async fn is_announced(&self, service: &str, said: &str) {
        self.until(&format!("{service}: {said}"), || async {
            let condition = self.condition(service, CONDITION_ANNOUNCED).await;
            condition.is_some_and(|it| format!("{}/{}: {}", it.status, it.reason, it.message) == said)
        })
        .await;
    }

    /// Until a table's addresses have these Announcements.
    async fn has_announcements(&self, service: &str, names: Option<&[&str]>) {
        let names: Option<Vec<String>> = names.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        self.table_is(service, "its Announcements", |table| {
            table
                .spec
                .addresses
                .iter()
                .all(|address| address.announcements == names)
        })
        .await;
    }

    /// A network that the test's addresses are in.
    fn network(&self) -> String {
        format!("{}/24", self.ip4(0))
    }
}

fn up(peers: &[&str]) -> Value {
    let session =
        |name: &&str| json!({"name": name, "address": "192.0.2.254", "state": "established", "established": true});
    let (sessions, count): (Vec<_>, _) = (peers.iter().map(session).collect(), peers.len());
    json!({"origin": "Cluster", "localAsn": 65000, "peers": sessions, "peerCount": count, "established": count})
}

fn tor() -> Value {
    json!({"address": "192.0.2.254", "asn": 65001, "localAsn": 65000})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_alone_is_announced_by_l2_where_lb_nodes_have_a_network_with_it() {
    let (cluster, (_operator, lb)) = Cluster::served().await;
    lb.says(json!({"l2": {"networks": [cluster.network()]}}));
    cluster.service("web", json!({})).await;
    let address = cluster.is_served("web").await.remove(0);
    cluster.is_announced("web", "True/L2: by L2 (default)").await;
    let told = cluster.is_told("web", "Announced").await.remove(0);
    assert_eq!(told, "Announced by L2 (default)");
    cluster.has_announcements("web", None).await;

    // Another host has it, and then no more.
    let exception =
        json!({"address": address, "way": "L2", "reason": "AddressInUse", "why": "in use by 02:00:00:00:00:ab"});
    lb.says(json!({"l2": {"networks": [cluster.network()]}, "exceptions": [exception], "exceptionCount": 1}));
    cluster
        .is_announced("web", "False/AddressInUse: in use by 02:00:00:00:00:ab")
        .await;
    let told = cluster.is_told("web", "AddressInUse").await.remove(0);
    assert_eq!(told, "Not announced: in use by 02:00:00:00:00:ab");
    assert_eq!(cluster.addresses("web").await, [address], "clients keep it");
    lb.says(json!({"l2": {"networks": [cluster.network()]}}));
    cluster.is_announced("web", "True/L2: by L2 (default)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_and_an_announcement_take_a_pool_from_l2_to_bgp_and_their_end_back() {
    let (cluster, (_operator, lb)) = Cluster::served().await;
    lb.says(json!({"l2": {"networks": [cluster.network()]}}));
    cluster.service("web", json!({})).await;
    cluster.is_announced("web", "True/L2: by L2 (default)").await;

    cluster.peer("tor1", tor()).await.unwrap();
    let pool = cluster.pool_name("main");
    cluster
        .announce("core", json!({"pools": [pool], "bgp": {"communities": ["65000:100"]}}))
        .await
        .unwrap();
    cluster.has_announcements("web", Some(&["core"])).await;
    let status = cluster.announcements().get("core").await.unwrap().status.unwrap();
    assert_eq!(
        (status.nodes, status.peers),
        (vec!["lb1".to_owned()], vec!["tor1".to_owned()])
    );
    cluster
        .is_announced("web", "False/NoPeer: no session is established of Announcement core")
        .await;
    cluster.is_told("web", "NotAnnounced").await;

    lb.says(json!({"bgp": up(&["tor1"])}));
    cluster
        .is_announced("web", "True/BGP: by BGP (Announcement core)")
        .await;
    cluster
        .until("the peer is established", || async {
            let status = cluster.peers().get("tor1").await.unwrap().status;
            status.is_some_and(|status| status.state == "1/1 established" && status.nodes == ["lb1"])
        })
        .await;

    // By the Service's labels.
    let selects = json!({"spec": {"serviceSelector": {"matchLabels": {"tier": "gold"}}}});
    let merge = PatchParams::default();
    cluster
        .announcements()
        .patch("core", &merge, &Patch::Merge(selects))
        .await
        .unwrap();
    cluster.has_announcements("web", Some(&[])).await;
    cluster
        .is_announced(
            "web",
            "False/NoAnnouncement: Announcements name its pool, and none selects this Service",
        )
        .await;
    cluster
        .patch("web", json!({"metadata": {"labels": {"tier": "gold"}}}))
        .await;
    cluster.has_announcements("web", Some(&["core"])).await;
    cluster
        .is_announced("web", "True/BGP: by BGP (Announcement core)")
        .await;

    let announcements = cluster.announcements();
    announcements.delete("core", &DeleteParams::default()).await.unwrap();
    cluster.has_announcements("web", None).await;
    lb.says(json!({"l2": {"networks": [cluster.network()]}}));
    cluster.is_announced("web", "True/L2: by L2 (default)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_object_can_show_to_be_wrong_is_refused_and_what_takes_two_is_said() {
    let (cluster, _running) = Cluster::served().await;
    let refused = |answer: Result<(), kube::Error>, words: &str| {
        let kube::Error::Api(status) = answer.unwrap_err() else {
            panic!("no answer of an API server");
        };
        assert_eq!(status.code, 422, "{status}");
        assert!(status.message.contains(words), "{status}");
    };
    let none = cluster.announce("none", json!({})).await.map(drop);
    refused(none, "say how: bgp, l2 or both");
    let mut near = tor();
    (near["asn"], near["multihop"]) = (json!(65000), json!(2));
    refused(
        cluster.peer("near", near).await.map(drop),
        "iBGP peers may be any number of hops away",
    );
    let mut zero = tor();
    zero["holdTimeSeconds"] = json!(1);
    refused(cluster.peer("zero", zero).await.map(drop), "holdTimeSeconds");

    cluster.peer("a", tor()).await.unwrap();
    let mut other = tor();
    (other["address"], other["localAsn"]) = (json!("192.0.2.253"), json!(64999));
    cluster.peer("b", other).await.unwrap();
    cluster
        .until("the second AS is refused", || async {
            let status = cluster.peers().get("b").await.unwrap().status.unwrap_or_default();
            let mut conditions = status.conditions.iter();
            conditions.any(|it| it.reason == "LocalAsnDiffers" && it.status == "False") && status.nodes.is_empty()
        })
        .await;
}
