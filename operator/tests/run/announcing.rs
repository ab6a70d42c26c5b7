//! What announcing costs the API server: nothing at rest, and nothing for each Service when an LB node comes or goes.

use std::time::Duration;

use serde_json::json;

use crate::{
    birth::metric,
    stage::{OWN, Stage, eventually},
};

/// Nothing more is coming.
const QUIET: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread")]
async fn at_rest_nothing_is_written_and_an_lb_node_more_is_two_statuses_and_no_service() {
    let stage = Stage::new().await;
    let _one = stage.lb_node("lb1", "192.0.2.1/32");
    let operator = stage.operator(|options| options.listen = Some(([127, 0, 0, 1], 0).into()));
    for (kind, name, spec) in [
        (
            "BgpPeer",
            "tor1",
            json!({"address": "10.0.0.1", "asn": 65001, "localAsn": 65000}),
        ),
        ("Announcement", "core", json!({"bgp": {}})),
    ] {
        let object = json!({"apiVersion": "vipline.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": OWN}, "spec": spec});
        stage.server.create(object).unwrap();
    }
    for name in ["a", "b", "c"] {
        stage.service(name, json!({})).await;
        stage.served(name).await;
    }
    stage.settled(QUIET).await;
    let writes = stage.server.writes();
    writes.reset();
    // Longer than it takes to look at both again.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(stage.writes(), 0, "{:?}", writes.all());

    let nodes = |resource: &str, name: &str| {
        let object = stage.server.read(resource, OWN, name).unwrap();
        object["status"]["nodes"].as_array().map_or(0, Vec::len)
    };
    assert_eq!((nodes("announcements", "core"), nodes("bgppeers", "tor1")), (1, 1));
    let _two = stage.lb_node("lb2", "192.0.2.2/32");
    eventually("it is in both", || async {
        nodes("announcements", "core") == 2 && nodes("bgppeers", "tor1") == 2
    })
    .await;
    stage.settled(QUIET).await;
    assert_eq!(writes.of("apply", "announcements", "status"), 1);
    assert_eq!(writes.of("apply", "bgppeers", "status"), 1);
    assert_eq!(writes.of("apply", "viptables", ""), 0);
    let lb_nodes = "vipline_operator_announcement_lb_nodes{announcement=\"core\"}";
    assert_eq!(metric(&operator, lb_nodes).await, 2.0);
    assert_eq!(
        metric(&operator, "vipline_operator_bgp_peer_lb_nodes{peer=\"tor1\"}").await,
        2.0
    );
    assert_eq!(
        metric(&operator, "vipline_operator_bgp_peer_established{peer=\"tor1\"}").await,
        0.0
    );
}
