//! What tests ask of a cluster.
//!
//! Never changes anything.

use k8s_openapi::{
    api::{core::v1::Service, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use operator_api::{AddressClaim, Backends, CONDITION_PROGRAMMED, LocalNode, VipTable};
use serde_json::{Value, json};

use crate::cluster::Cluster;

impl Cluster {
    /// A Service that is there.
    pub(crate) async fn see(&self, name: &str) -> Service {
        self.services().get(name).await.unwrap()
    }

    /// Addresses in a Service's status; none, if it is not there.
    pub(crate) async fn addresses(&self, name: &str) -> Vec<String> {
        let service = self.services().get_opt(name).await.unwrap();
        service.as_ref().map(addresses).unwrap_or_default()
    }

    /// Waits until a Service has an address and LB nodes have it; its addresses.
    pub(crate) async fn is_served(&self, name: &str) -> Vec<String> {
        self.until(&format!("{name} has an address"), || async {
            !self.addresses(name).await.is_empty()
                && self.says(name, CONDITION_PROGRAMMED).await.as_deref() == Some("True")
        })
        .await;
        self.addresses(name).await
    }

    /// Waits until a Service's status names these addresses.
    pub(crate) async fn has(&self, name: &str, wanted: &[String]) {
        self.until(&format!("{name} has {wanted:?}"), || async {
            self.addresses(name).await == wanted
        })
        .await;
    }

    /// A condition of a Service.
    pub(crate) async fn condition(&self, name: &str, kind: &str) -> Option<Condition> {
        let service = self.services().get_opt(name).await.unwrap()?;
        let conditions = service.status?.conditions?;
        conditions.into_iter().find(|condition| condition.type_ == kind)
    }

    /// The status of a condition of a Service.
    pub(crate) async fn says(&self, name: &str, kind: &str) -> Option<String> {
        Some(self.condition(name, kind).await?.status)
    }

    /// Waits until a condition of a Service is false, for a reason; its message.
    pub(crate) async fn is_refused(&self, name: &str, kind: &str, reason: &str) -> String {
        self.until(&format!("{name}: {kind} is false, {reason}"), || async {
            let condition = self.condition(name, kind).await;
            condition.is_some_and(|condition| condition.status == "False" && condition.reason == reason)
        })
        .await;
        self.condition(name, kind).await.unwrap().message
    }

    /// The notes of Events of a reason about a Service of the test's namespace.
    pub(crate) async fn events(&self, name: &str, reason: &str) -> Vec<String> {
        let events = Api::<Event>::namespaced(self.client.clone(), &self.namespace);
        let events = events.list(&ListParams::default()).await.unwrap().items;
        let about = |event: &Event| {
            let regarding = event.regarding.as_ref();
            let about = regarding.and_then(|regarding| regarding.name.as_deref());
            about == Some(name) && event.reason.as_deref() == Some(reason)
        };
        let events = events.into_iter().filter(about);
        events.map(|event| event.note.unwrap_or_default()).collect()
    }

    /// Waits for an Event; the notes of all of its reason.
    pub(crate) async fn is_told(&self, name: &str, reason: &str) -> Vec<String> {
        self.until(&format!("{name}: Event {reason}"), || async {
            !self.events(name, reason).await.is_empty()
        })
        .await;
        self.events(name, reason).await
    }

    /// A Service's table.
    pub(crate) async fn table(&self, name: &str) -> Option<VipTable> {
        let name = VipTable::name_of(&self.namespace, name);
        self.tables().get_opt(&name).await.unwrap()
    }

    /// Waits until a Service's table is as it should be.
    pub(crate) async fn table_is(&self, name: &str, what: &str, is: impl Fn(&VipTable) -> bool) {
        self.until(&format!("the table of {name}: {what}"), || async {
            self.table(name).await.is_some_and(|table| is(&table))
        })
        .await;
    }

    /// The claim of an address.
    pub(crate) async fn claim(&self, address: &str) -> Option<AddressClaim> {
        let name = AddressClaim::name_of(address.parse().unwrap());
        self.claims().get_opt(&name).await.unwrap()
    }

    /// Waits until nobody has an address.
    pub(crate) async fn is_free(&self, address: &str) {
        self.until(&format!("{address} is free"), || async {
            self.claim(address).await.is_none()
        })
        .await;
    }

    /// Waits until a Service is not there any more.
    pub(crate) async fn is_gone(&self, name: &str) {
        self.until(&format!("{name} is gone"), || async {
            self.services().get_opt(name).await.unwrap().is_none()
        })
        .await;
    }

    /// Waits until nothing of ours is on a Service: no table, no finalizer, no annotation, no address, no condition.
    pub(crate) async fn is_let_go(&self, name: &str) {
        self.until(&format!("{name} is let go"), || async {
            let service = self.see(name).await;
            let conditions = service.status.as_ref().and_then(|status| status.conditions.as_ref());
            service.finalizers().is_empty()
                && !service
                    .annotations()
                    .contains_key(operator_api::ANNOTATION_ALLOCATED_FROM)
                && addresses(&service).is_empty()
                && conditions.is_none_or(Vec::is_empty)
                && self.table(name).await.is_none()
        })
        .await;
    }

    /// A pool's status as JSON.
    pub(crate) async fn pool_status(&self, name: &str) -> Value {
        let pool = self.pools().get(&self.pool_name(name)).await.unwrap();
        serde_json::to_value(pool.status).unwrap()
    }

    /// Waits until a pool's numbers are these.
    pub(crate) async fn pool_counts(&self, name: &str, ipv4: (i64, i64), ipv6: (i64, i64)) {
        let wanted = [ipv4, ipv6].map(|(used, free)| json!({"used": used, "free": free, "total": used + free}));
        self.until(&format!("pool {name}: used and free {ipv4:?}, {ipv6:?}"), || async {
            let status = self.pool_status(name).await;
            [&status["ipv4"], &status["ipv6"]] == [&wanted[0], &wanted[1]]
        })
        .await;
    }
}

/// Addresses in a Service's status.
pub(crate) fn addresses(service: &Service) -> Vec<String> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    ingress.iter().filter_map(|ingress| ingress.ip.clone()).collect()
}

/// Ports of a table as kubectl prints them.
pub(crate) fn ports(table: &VipTable) -> Vec<String> {
    let ports = table.spec.ports.iter();
    ports.map(|port| format!("{}/{:?}", port.port, port.protocol)).collect()
}

/// Nodes of a table with policy Local.
pub(crate) fn local_nodes(table: &VipTable) -> Option<&[LocalNode]> {
    match &table.spec.backends {
        Backends::Local { nodes, .. } => Some(nodes),
        Backends::NodeSet { .. } => None,
    }
}
