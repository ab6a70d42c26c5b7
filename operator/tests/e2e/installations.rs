//! Two installations of Vipline in one cluster, with pools in common: each has its own claims and leaves the other's alone.

use kube::{Api, ResourceExt, api::ListParams};
use operator_api::{ANNOTATION_ADDRESSES, AddressClaim, CONDITION_ALLOCATED, VipTable, installation};
use serde_json::{Value, json};
use vipline_operator::run::Operator;

use crate::{cluster::Cluster, lb_node::ScriptedLbNode};

/// The second installation.
struct Beside {
    namespace: String,
    class: String,
    _running: (Operator, ScriptedLbNode),
}

impl Beside {
    async fn start(cluster: &Cluster) -> Self {
        Self::start_in(cluster, cluster.another_namespace("beside", json!({})).await)
    }

    /// As after a restart.
    fn start_in(cluster: &Cluster, namespace: String) -> Self {
        let class = format!("{}-beside", cluster.class);
        let operator = cluster.operator(|options| {
            options.settings.namespace.clone_from(&namespace);
            options.settings.class.clone_from(&class);
        });
        let lb_node = cluster.lb_node_in(&namespace, "lb2");
        Self {
            namespace,
            class,
            _running: (operator, lb_node),
        }
    }

    fn of_ours(&self) -> Value {
        json!({"loadBalancerClass": self.class})
    }
}

/// Installation of the claim of an address.
async fn installation_of(cluster: &Cluster, address: &str) -> Option<String> {
    let name = AddressClaim::name_of(address.parse().unwrap());
    cluster.claims().get_opt(&name).await.unwrap()?.spec.installation
}

#[tokio::test(flavor = "multi_thread")]
async fn two_installations_allocate_around_each_other_and_give_back_their_own_only() {
    let (cluster, running) = Cluster::served().await;
    cluster.service("first", json!({})).await;
    let first = cluster.is_served("first").await;
    let beside = Beside::start(&cluster).await;
    cluster.service("second", beside.of_ours()).await;
    let second = cluster.is_served("second").await;
    assert_ne!(first, second);
    assert_eq!(
        installation_of(&cluster, &first[0]).await,
        Some(installation(&cluster.own))
    );
    assert_eq!(
        installation_of(&cluster, &second[0]).await,
        Some(installation(&beside.namespace))
    );

    // An address of the other's, by name: an Event and the condition say who has it.
    let asks = json!({ANNOTATION_ADDRESSES: first[0]});
    cluster.annotated("asks", asks, beside.of_ours()).await;
    let why = cluster
        .is_refused("asks", CONDITION_ALLOCATED, "AllocationFailed")
        .await;
    let held = format!(
        "{} is held by the installation {}",
        first[0],
        installation(&cluster.own)
    );
    assert!(why.contains(&held), "{why}");

    // Both look at everything again: an operator that starts anew sweeps what it finds.
    let namespace = beside.namespace.clone();
    drop((running, beside));
    let _running = (cluster.operator(|_| {}), cluster.lb_node("lb1"));
    let beside = Beside::start_in(&cluster, namespace);
    cluster
        .stays("both have what they had", || async {
            installation_of(&cluster, &first[0]).await == Some(installation(&cluster.own))
                && installation_of(&cluster, &second[0]).await == Some(installation(&beside.namespace))
                && cluster.addresses("first").await == first
                && cluster.addresses("second").await == second
        })
        .await;
    let tables = Api::<VipTable>::namespaced(cluster.client.clone(), &beside.namespace);
    let tables = tables.list(&ListParams::default()).await.unwrap().items;
    let tables: Vec<String> = tables.iter().map(ResourceExt::name_any).collect();
    assert_eq!(tables, [VipTable::name_of(&cluster.namespace, "second")]);

    // What one gives back, the other may have.
    cluster.delete("first").await;
    cluster.has("asks", &first).await;
    assert_eq!(
        installation_of(&cluster, &first[0]).await,
        Some(installation(&beside.namespace))
    );
    assert_eq!(cluster.addresses("second").await, second);
}
